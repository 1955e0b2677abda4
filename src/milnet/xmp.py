"""Ratings beside photos and in them: milnet's into XMP, the user's own out of it.

    IMG.jpg.xmp     darktable, digiKam: "append"          IMG.xmp     Lightroom and many others: "replace"

A sidecar that exists is used whichever name it has; where both exist, both are. `IMG.xmp` can be meant for only one of
several files called IMG: for the one that photoshop:SidecarForExtension names; else for the RAW file, if there is one;
else for nobody, and milnet leaves it alone. Copies that darktable numbers (IMG_01.jpg.xmp) are left alone too.
Lightroom looks for sidecars of RAW files only; of a JPEG it reads what is inside (`embed`).

*Whose rating.* A human's rating is never changed unless told (`replace`). A rating is ours when it equals milnet:Stars
in the same packet; a later change by a human makes them differ. What cannot be told apart: a human who gave exactly our
stars. Programs that drop namespaces they do not know make our rating look like a human's; then it stays as it is.
Where a human's rating is kept, anywhere, milnet:Stars is taken out, and so is a rating of ours that contradicts it.
Rating 0 is no rating.

*A new sidecar hides what is inside.* Programs that prefer sidecars (darktable) take one without xmp:Rating for "no
stars". So where a human rated inside the photo, a sidecar that milnet makes says that rating too, as the human's: from
then on the sidecar's counts. A sidecar that is there and has no rating gets none.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milnet.artifacts import make_ordinary
from milnet.embedded import Embedded, is_jpeg, read_embedded, with_packet
from milnet.errors import ImageError, NumericError, UsageError
from milnet.images import SUFFIXES
from milnet.packets import (
    MILNET,
    RATING,
    STARS,
    Name,
    Packet,
    PacketError,
    new_packet,
    read_packet,
    set_properties,
    stars_of_percent,
)
from milnet.version import __version__

Naming = Literal["append", "replace"]
Action = Literal["created", "merged", "unchanged", "kept rating"]

_RAW = (
    "3fr arw bay cap cr2 cr3 crw dcr dcs dng erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw orf pef ptx raf raw rw2 "
    "rwl sr2 srf srw x3f"
)
RAW_SUFFIXES = frozenset(f".{name}" for name in _RAW.split())  # in lower case
_OTHERS = frozenset((".avif", ".heic", ".heif", ".hif", ".jxl", ".psd"))
_SIDECAR = (".xmp", ".XMP", ".Xmp")


@dataclass(frozen=True)
class Entry:
    """What is written of one photo. What is None is left out."""

    stars: int | None  # 1 to 5, or -1 for rejected; None: the score alone is written, and ratings stay as they are
    score: float  # in units of the model's values
    low: float | None  # 90 % interval
    high: float | None
    percentile: float | None  # 0 to 100, in the pool
    folder_percentile: float | None  # 0 to 100, among the photos of the call
    unlike: float | None  # 0 to 1
    model: str  # digest of the model

    def __post_init__(self) -> None:
        if self.stars is not None and self.stars not in (-1, 1, 2, 3, 4, 5):
            raise UsageError(f"stars must be 1 to 5, or -1 for rejected, got {self.stars}")
        for name, value in self.numbers.items():
            if value is not None and not math.isfinite(value):
                raise NumericError(f"{name} is {value}: only finite numbers can be written as XMP")
        if not self.model.isprintable():
            raise UsageError(f"the digest of the model must be printable text, got {self.model!r}")

    @property
    def numbers(self) -> dict[str, float | None]:
        """The numbers by the names of their properties."""
        return {
            "Score": self.score,
            "Low": self.low,
            "High": self.high,
            "Percentile": self.percentile,
            "FolderPercentile": self.folder_percentile,
            "Unlike": self.unlike,
        }


@dataclass(frozen=True)
class Outcome:
    """What `write_rating` did, or would do.

    `action`: "created" (there was no XMP yet), "merged" (into what was there), "unchanged" (it said so already: nothing
    was written), "kept rating" (a human's rating stays; the score is beside it).
    """

    action: Action
    paths: tuple[Path, ...]  # the files that hold the entry now
    written: tuple[Path, ...]  # those of them that were changed or made
    human: int | None = None  # the rating that was kept, -1 or 1 to 5
    notes: tuple[str, ...] = ()  # for people: why it is another file than the one asked for
    rating: int | None = None  # what the photo is rated after this: the stars, or the rating that was kept; None: not


def write_rating(
    photo: Path,
    entry: Entry,
    *,
    naming: Naming = "append",
    replace: bool = False,
    embed: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Write stars and score of a photo into its sidecars, or with `embed` into the JPEG itself.

    With `embed`, sidecars that exist are kept up to date as well, since programs prefer them, and none is made. Nothing
    but xmp:Rating and milnet's own properties changes; of the JPEG nothing but its XMP segment. `replace` overwrites a
    human's xmp:Rating; MicrosoftPhoto:Rating and EXIF Rating stay, which count for less. Without stars nothing is
    replaced. Where there is no sidecar and a human rated inside the photo, the new sidecar says that rating too; a
    sidecar that is there and has no rating gets none of a human.
    `dry_run` says what would be done and touches nothing. The same entry a second time writes nothing.

    Raises ImageError, which names the file, when anything about it is in doubt: then all files are as they were.
    Each file is replaced as a whole or not at all; of two sidecars, the first may be written when the second fails.
    """
    _check(photo)
    if naming not in ("append", "replace"):
        raise UsageError(f"sidecars are named 'append' (IMG.jpg.xmp) or 'replace' (IMG.xmp), got {naming!r}")
    if embed and not is_jpeg(photo):
        raise ImageError(photo, "is no JPEG: its rating can only go into a sidecar (leave out --embed-jpeg)")
    replace = replace and entry.stars is not None
    found, notes = _find(photo)
    states = {path: _state(path) for path in (*found, photo)}
    sidecars = {path: _read(path) for path in found}
    inside = read_embedded(photo) if embed or not replace else Embedded()
    human = None if replace else _human(photo, sidecars, inside)
    new: dict[Path, bytes | None] = {}  # None: it says so already
    created = True
    for path, packet in sidecars.items():
        new[path] = _merged(path, packet, entry, human)
        created = False
    if embed:
        if inside.packet is None:
            new[photo] = with_packet(photo, new_packet(_properties(entry, None, human), padded=True))
        else:
            packet = _packet(photo, inside.packet)
            merged = _merged(photo, packet, entry, human)
            new[photo] = None if merged is None else with_packet(photo, merged)
            created = False
    elif not sidecars:
        path, note = _new_sidecar(photo, naming)
        notes += note
        properties = _properties(entry, None, human)
        if human is not None:
            properties[RATING] = str(human)
        new[path] = new_packet(properties)
    if not embed and inside.packet is not None and _packet(photo, inside.packet).stars not in (None, entry.stars):
        notes.append("holds an earlier rating of milnet inside, which stays: it changes when written there again")
    written = tuple(path for path, data in new.items() if data is not None)
    for path in written:
        _check_writable(path)
    if not dry_run:
        for path, data in new.items():
            if data is not None:
                _replace(path, data, states.get(path))
    action: Action = "created" if created else "merged" if written else "unchanged"
    if human is not None and entry.stars is not None:
        action = "kept rating"
    rating = human if human is not None else entry.stars
    if rating is None:  # then only ratings of ours can be there
        rating = _rating(photo, sidecars, inside)
    return Outcome(action, tuple(new), written, human, tuple(notes), rating)


def read_rating(photo: Path) -> int | None:
    """The rating a human gave the photo, -1 (rejected) or 1 to 5; None where there is none, or only milnet's.

    Read from the sidecars, the one changed last first; then from the XMP inside the photo; then, where that holds no
    rating, from its EXIF. In XMP, MicrosoftPhoto:Rating counts where there is no xmp:Rating. Raises ImageError when a
    file cannot be read or holds a rating that is none.
    """
    _check(photo)
    sidecars = {path: _read(path) for path in _find(photo)[0]}
    return _human(photo, sidecars, None)


def find_sidecars(photo: Path) -> list[Path]:
    """The sidecars of a photo that exist, by either naming; not one that is meant for another file of that name."""
    return _find(photo)[0]


def _check(photo: Path) -> None:
    if photo.suffix.lower() == ".xmp":
        raise ImageError(photo, "is a sidecar: expected a photo")
    if not photo.is_file():
        raise ImageError(photo, "there is no such file")


def _human(photo: Path, sidecars: Mapping[Path, Packet], inside: Embedded | None) -> int | None:
    """The human's rating. `inside` is read when it is needed, unless it is given."""
    for path in sorted(sidecars, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with _named(path):
            if (rating := sidecars[path].human) is not None:
                return rating
    inside = read_embedded(photo) if inside is None else inside
    with _named(photo):
        if inside.packet is not None:
            packet = read_packet(inside.packet)
            if packet.rating is not None:
                return packet.human
        if inside.rating is not None:
            return inside.rating if 1 <= inside.rating <= 5 else None  # cameras write 0, damage writes anything
        return stars_of_percent(inside.percent) if inside.percent is not None and inside.percent <= 100 else None


def _rating(photo: Path, sidecars: Mapping[Path, Packet], inside: Embedded) -> int | None:
    """The rating in XMP, whoever gave it: of the sidecars or, where none has one, inside the photo."""
    packets = [*sidecars.items()]
    if inside.packet is not None:
        packets.append((photo, _packet(photo, inside.packet)))
    for path, packet in packets:
        with _named(path):
            if (rating := packet.rating) is not None:
                return rating
    return None


def _properties(entry: Entry, packet: Packet | None, human: int | None) -> dict[Name, str | None]:
    """What the packet shall say; None: it shall not hold the property. Ratings that are not named stay."""
    values: dict[Name, str | None] = {}
    if human is not None:
        # milnet:Stars would make a human's rating look like ours, now or when it is changed to that number.
        values[STARS] = None
        if packet is not None and packet.rating is not None and packet.rating == packet.stars:
            values[RATING] = None
    elif entry.stars is not None:
        values[RATING] = values[STARS] = str(int(entry.stars))
    for name, value in entry.numbers.items():
        values[MILNET, name] = None if value is None else f"{round(float(value), 4) + 0.0:.4f}"
    values[MILNET, "Model"] = entry.model
    values[MILNET, "Version"] = __version__
    return values


def _merged(path: Path, packet: Packet, entry: Entry, human: int | None) -> bytes | None:
    """The packet with the entry in it; None when it holds it already."""
    with _named(path):
        data = set_properties(packet, _properties(entry, packet, human))
    return None if data == packet.data else data


def _packet(path: Path, data: bytes) -> Packet:
    with _named(path):
        return read_packet(data)


def _read(path: Path) -> Packet:
    """A sidecar. ImageError when it cannot be read or is no XMP."""
    if path.is_symlink() and not path.exists():
        raise ImageError(path, "is a link to a file that does not exist: remove it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
    return _packet(path, data)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """A defect of a packet as ImageError that names the file."""
    try:
        yield
    except PacketError as error:
        raise ImageError(path, f"{error}; it was left as it is") from None


# ---- which sidecar ---------------------------------------------------------------------------------------------------


def _find(photo: Path) -> tuple[list[Path], list[str]]:
    """The sidecars of `photo` that exist, and what to tell about it."""
    appended = [path for suffix in _SIDECAR if os.path.lexists(path := photo.with_name(photo.name + suffix))]
    replaced = [path for suffix in _SIDECAR if os.path.lexists(path := photo.with_suffix(suffix))]
    found: list[Path] = []
    notes: list[str] = []
    for path in (*appended, *replaced):
        if any(_same(path, other) for other in found):
            continue  # a file system that does not tell "xmp" from "XMP", or a link
        if path in replaced and not _owns(photo, path):
            notes.append(f"{path.name} is meant for another file of that name, and was left alone")
        else:
            found.append(path)
    if len(found) > 1:
        notes.append(f"has {len(found)} sidecars, which are kept alike: {', '.join(path.name for path in found)}")
    return found, notes


def _same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):  # a link that leads nowhere is like no other
        return path.samefile(other)
    return False


def _owns(photo: Path, sidecar: Path) -> bool:
    """Whether `IMG.xmp`, there or not, is meant for this one of the files called IMG."""
    extension = ""
    with contextlib.suppress(OSError, PacketError):  # who reads it later says what is wrong
        extension = read_packet(sidecar.read_bytes()).extension
    if extension:
        return extension == photo.suffix[1:].lower()
    siblings = _siblings(photo)
    if photo.suffix.lower() in RAW_SUFFIXES:
        return not any(path.suffix.lower() in RAW_SUFFIXES for path in siblings)
    return not siblings


def _siblings(photo: Path) -> list[Path]:
    """Other photos with the name of `photo` but for the suffix."""
    found = []
    for suffix in sorted(SUFFIXES | RAW_SUFFIXES | _OTHERS):
        for written in (suffix, suffix.upper(), f".{suffix[1:].capitalize()}"):
            path = photo.with_suffix(written)
            if path.name != photo.name and path.exists() and not _same(path, photo):
                found.append(path)
    return found


def _new_sidecar(photo: Path, naming: Naming) -> tuple[Path, list[str]]:
    """Where the sidecar of a photo that has none goes."""
    path, appended = photo.with_suffix(".xmp"), photo.with_name(f"{photo.name}.xmp")
    if naming == "append":
        return appended, []
    if any(os.path.lexists(photo.with_suffix(suffix)) for suffix in _SIDECAR):
        return appended, []  # it is another's, as was said when it was found
    if not _owns(photo, path):
        return appended, [f"{path.name} could be meant for another file of that name, so it is {appended.name}"]
    return path, []


# ---- files -----------------------------------------------------------------------------------------------------------


def _check_writable(path: Path) -> None:
    """Raise ImageError where a user has forbidden changes, which renaming another file onto this one would not heed."""
    if path.exists() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise ImageError(path, "is read-only; it was left as it is")
    if not os.access(Path(os.path.realpath(path)).parent, os.W_OK):
        raise ImageError(path, "its folder is read-only; nothing was written")


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when somebody writes a file; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _replace(path: Path, data: bytes, state: tuple[int, int, int] | None) -> None:
    """Write a file as a whole: through a link, with the mode, owner and attributes of the one it replaces.

    `state` is what the file was when it was read: what another program has written since is not overwritten.
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        old = target.stat() if target.exists() else None
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".milnet-", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if old is None:
            make_ordinary(temporary)
        else:
            _like(temporary, target, old)
        if _state(path) != state:
            raise ImageError(path, "was changed by another program just now; it was left as it is: run again")
        temporary.replace(target)
    except OSError as error:
        raise ImageError(path, f"cannot be written: {error.strerror or error}; it was left as it is") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _like(temporary: Path, target: Path, old: os.stat_result) -> None:
    """Give a new file the owner, mode and extended attributes of the old one, and the time of now."""
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only root can give files away
            os.chown(temporary, old.st_uid, old.st_gid)
    shutil.copystat(target, temporary)
    os.utime(temporary)
