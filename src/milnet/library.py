"""Which photos a user means: files, folders (with what is below them), patterns, lists.

Nothing is decoded here. Folders are listed once each, links and loops included; what cannot be listed or is no file
becomes a failure that names it, so that one bad place never ends a run over a large library.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milnet import heif, raw
from milnet.errors import ImageError, UsageError
from milnet.images import EXTRAS, SUFFIXES

STDIN = "-"  # as the name of a list: the standard input
_MAGIC = re.compile("[*?[]")

# Folders that programs fill with copies, thumbnails or deleted photos; compared in lower case. Names with a leading
# dot (.thumbnails, .Trash, ._x.jpg of macOS, .dtrash of digiKam) are left out as hidden ones.
_NOT_PHOTOS = frozenset({"@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "__macosx"})
_SIDECARS = (".xmp",)  # metadata beside a photo, which `folder/*` matches as well; no photo


@dataclass(frozen=True)
class Library:
    """What the arguments of a command name."""

    photos: tuple[Path, ...]  # files to be decoded, each real file once
    failures: tuple[ImageError, ...]  # what was named or found and cannot be a photo: `file` and `reason`
    skipped: Mapping[str, int]  # why -> how many entries were left out on purpose; see `notes`

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about files that were left out: those that an extra would read."""
        return tuple(
            f"{count:,} {name} {'file was' if count == 1 else 'files were'} left out: pip install 'milnet[{extra}]' "
            "to read such files"
            for extra, name in (("heif", "HEIC"), ("raw", "RAW"))
            if (count := self.skipped.get(extra))
        )


@dataclass
class _Found:
    """A library in the making. `photos`: by real path, so that "a/../b.jpg" and "b.jpg" are one file."""

    photos: dict[str, Path] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)  # keys of photos that a walk met under another name than their own
    failures: dict[str, ImageError] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    listed: set[tuple[int, int]] = field(default_factory=set)  # device and inode of the folders that were listed

    def fail(self, path: Path, reason: str) -> None:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # of a name that is not UTF-8: what can be printed
        self.failures.setdefault(name, ImageError(name, reason))


def find_photos(
    arguments: Iterable[str | Path] = (), *, files_from: str | Path | Sequence[str] | None = None
) -> Library:
    """The photos named by `arguments` and then by the list `files_from`, in their order, folders sorted by name.

    A file is taken whatever its suffix (but for .xmp, the sidecar of a photo). In folders, and below them, only files
    with the suffix of an image are, and those that need an extra only where it is installed; hidden files and folders
    are left out, and so are the thumbnails and bins of other programs. Links are followed; a file that is found
    several times counts once, by its own name where that was found. A pattern (`*`, `?`, `[`, and `**` for any
    folders) that is no file is expanded.

    `files_from`: a file with one path a line, or with a NUL behind each path, `-` is the standard input; or the paths.
    Blank lines are skipped; nothing is expanded. A path of the list that does not exist is a failure and the rest goes
    on. An argument that does not exist is a UsageError; so are a list that cannot be read, and nothing found at all.
    But a list with no path in it, without arguments, is an empty library: nothing was new.
    """
    found = _Found()
    arguments = list(arguments)
    for argument in arguments:
        path = Path(argument)
        if not _there(path):
            with contextlib.suppress(RuntimeError):  # "~name" where there is no such user
                path = path.expanduser()
        if _there(path):
            _take(found, path)
            continue
        matches = _expand(path) if _MAGIC.search(str(path)) else []
        if not matches:
            raise UsageError(f"{argument}: there is no such file, folder or pattern")
        for match in matches:
            _take(found, match)
    listed = 0
    if files_from is not None:
        for name in listed_names(files_from) if isinstance(files_from, str | Path) else files_from:
            _take(found, Path(name))
            listed += 1
    library = Library(tuple(found.photos.values()), tuple(found.failures.values()), dict(found.skipped))
    if not library.photos and not library.failures and (arguments or listed or files_from is None):
        named = [*map(str, arguments), *([_list_name(files_from)] if listed else [])]
        where = f"in {', '.join(named)}" if named else "were named"
        raise UsageError(f"no photos {where}: expected {_kinds()} files" + "".join(f"; {n}" for n in library.notes))
    return library


def _list_name(files_from: object) -> str:
    return f"the list {files_from}" if isinstance(files_from, str | Path) else "the list"


def photos_below(folder: Path) -> list[Path]:
    """Files worth trying in `folder` and below, as `find_photos` finds them; what cannot be listed is left out."""
    found = _Found()
    _walk(found, folder)
    return list(found.photos.values())


# ---- files and folders -----------------------------------------------------------------------------------------------


def _there(path: Path) -> bool:
    """Whether there is such a name, as far as one may look; also of a broken link."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _take(found: _Found, path: Path) -> None:
    """A file or folder that was named: no rule about suffixes or hidden names holds for itself."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        found.fail(path, _why(error, path))
        return
    if stat.S_ISDIR(kind):
        _walk(found, path)
    elif not stat.S_ISREG(kind):  # a pipe or a device could be read for ever
        found.fail(path, "is not a regular file")
    elif path.suffix.lower() in _SIDECARS:
        found.skipped["sidecars"] += 1
    else:
        key = os.path.realpath(path)
        found.photos.setdefault(key, path)
        found.links.discard(key)


def _walk(found: _Found, top: Path) -> None:
    """Every photo in `top` and below: the files of a folder by name, then its folders by name.

    Linked folders come last, so that photos keep their own path where both lead to them, and each folder is listed
    once, so that loops end.
    """
    readable = _readable_suffixes()
    waiting, linked = [top], list[Path]()  # both: the next one last
    while waiting or linked:
        folder = (waiting or linked).pop()
        try:
            info = folder.stat()
            if (info.st_dev, info.st_ino) in found.listed:
                continue
            found.listed.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            found.fail(folder, _why(error, folder))
            continue
        real = os.path.realpath(folder)
        below: list[Path] = []
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                found.skipped["hidden"] += 1
                continue
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  (a Path for each file costs seconds)
            try:
                is_link, is_folder = entry.is_symlink(), entry.is_dir()
            except OSError:  # a loop of links
                is_link, is_folder = True, False
            if is_folder:
                if name.lower() in _NOT_PHOTOS or suffix == ".lrdata" or _is_derived(folder, name):
                    found.skipped["folders of other programs"] += 1
                elif is_link:
                    linked.append(folder / name)
                else:
                    below.append(folder / name)
            elif suffix not in SUFFIXES:
                found.skipped["other files"] += 1
            elif suffix not in readable:
                found.skipped[EXTRAS[suffix]] += 1
            elif is_link:
                _take_link(found, folder / name)
            elif not entry.is_file():
                found.fail(folder / name, "is not a regular file")
            else:
                key = os.path.join(real, name)  # noqa: PTH118
                if key in found.links:  # its own name, and its own place
                    found.links.remove(key)
                    del found.photos[key]
                found.photos.setdefault(key, folder / name)
        waiting += reversed(below)
        if not waiting:
            linked.sort(reverse=True)


def _take_link(found: _Found, path: Path) -> None:
    """A link to a file that a walk met."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        found.fail(path, "is a link to a file that does not exist" if _missing(error) else _why(error, path))
        return
    if not stat.S_ISREG(kind):
        found.fail(path, "is not a regular file")
        return
    key = os.path.realpath(path)
    if key not in found.photos:
        found.photos[key] = path
        found.links.add(key)


def _is_derived(folder: Path, name: str) -> bool:
    """Whether `folder / name` holds what Apple Photos made from the originals of its library."""
    return folder.suffix.lower() == ".photoslibrary" and name.lower() not in ("originals", "masters")


def _readable_suffixes() -> frozenset[str]:
    """Suffixes of photos that can be decoded here: those of an extra only where it is installed."""
    there = {"heif": heif.is_available(), "raw": raw.is_available()}
    return frozenset(suffix for suffix in SUFFIXES if suffix not in EXTRAS or there[EXTRAS[suffix]])


def _missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def _why(error: Exception, path: Path) -> str:
    if _missing(error):
        return "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
    if isinstance(error, PermissionError):
        return "no permission to list this folder" if path.is_dir() else "no permission to read it"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a loop of links"
    return f"cannot be opened ({error})"  # too long a name, a null character, a broken disk


def _kinds() -> str:
    """The usual kinds of photos that can be decoded here, in words."""
    kinds = ["JPEG", "PNG", "WebP", "AVIF", "TIFF", "GIF"]
    if heif.is_available():
        kinds.append("HEIC")
    if raw.is_available():
        kinds.append("RAW")
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}"


# ---- patterns --------------------------------------------------------------------------------------------------------


def _expand(pattern: Path) -> list[Path]:
    """What a pattern matches, by name. `**` is any number of folders; hidden names only match a written dot.

    Not glob.glob: its `**` follows loops of links until the system gives up.
    """
    first, *rest = pattern.parts if pattern.is_absolute() else (".", *pattern.parts)
    found = _matches(Path(first), rest)
    return sorted(dict.fromkeys(found))


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    part, *rest = parts
    if part == "**":
        if not rest:
            yield folder  # with what is below it
            return
        for one in _folders_below(folder):
            yield from _matches(one, rest)
        return
    if not _MAGIC.search(part):
        names = [part] if _there(folder / part) else []
    else:
        try:
            every = [name for name in os.listdir(folder) if part.startswith(".") or not name.startswith(".")]  # noqa: PTH208
        except OSError:
            every = []
        names = fnmatch.filter(every, part)
    for name in names:
        if not rest:
            yield folder / name
        elif (folder / name).is_dir():
            yield from _matches(folder / name, rest)


def _folders_below(top: Path) -> Iterator[Path]:
    """`top` and every folder below it that is not hidden, each once; links are followed."""
    waiting, listed = [top], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        try:
            info = folder.stat()
            if (info.st_dev, info.st_ino) in listed:
                continue
            listed.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as entries:
                waiting += [folder / entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
        except OSError:
            continue
        yield folder


# ---- lists -----------------------------------------------------------------------------------------------------------


def listed_names(place: str | Path) -> Iterator[str]:
    """What a list names, one a line or one before each NUL. Names that are not UTF-8 are kept as the system does."""
    try:
        data = sys.stdin.buffer.read() if str(place) == STDIN else Path(place).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"the list {place} cannot be read: {error}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as a Windows shell writes it
        try:
            data = data.decode("utf-16").encode("utf-8")
        except UnicodeError as error:
            raise UsageError(f"the list {place} is damaged: {error}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    names = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    for name in names:
        if name.strip():
            yield os.fsdecode(name)
