"""What every importer returns, and how it meets a folder of photos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from milnet.annotations import Table
from milnet.errors import AnnotationError, UsageError
from milnet.images import SUFFIXES


@dataclass(frozen=True)
class Imported:
    """A table, what it was read from (role -> sha256 of the file), and lines that tell people what was found."""

    table: Table
    inputs: dict[str, str]
    report: tuple[str, ...]


def photo_id(text: str) -> str:
    """The id of a photo: its name as the label file writes it, without an image's ending."""
    stem, dot, ending = text.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in SUFFIXES else text


def files_below(folder: Path, *, deep: bool = True) -> dict[str, None]:
    """Names of the files in `folder`, below it too when `deep`, with "/", sorted; listed once, not asked one by one.

    Raises UsageError when `folder` is not a folder that can be listed.
    """
    if not folder.is_dir():
        raise UsageError(f"expected a folder of photos, got {folder}")
    if not deep:
        return dict.fromkeys(sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir()))
    names: list[str] = []
    for root, _, files in os.walk(folder):
        below = Path(root).relative_to(folder).as_posix()
        names += files if below == "." else [f"{below}/{name}" for name in files]
    return dict.fromkeys(sorted(names))


def first_few(names: list[str], limit: int = 10) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def tally(table: Table, column: str) -> str:
    """How many photos have each text of a column, in words, in the order the texts first appear."""
    counts = Counter(table.column(column))
    return f"{column}: " + ", ".join(f"{count:,} {text or '(none)'}" for text, count in counts.items())


def require_photos(count: int, file: Path) -> None:
    """Raise AnnotationError when no photo is left to make a table of."""
    if not count:
        raise AnnotationError("no photo with usable votes is left", file=file)


def find_folder(source: Path, wanted: Sequence[str], below: Sequence[str], what: str) -> Path:
    """`source`, or the folder of `below` in it, that holds one of `wanted`. Raises UsageError when there is none."""
    for folder in (source, *(source / name for name in below)):
        if any((folder / name).exists() for name in wanted):
            return folder
    raise UsageError(f"expected {what} with {' or '.join(wanted)}, got {source}")


def find_photos(texts: Sequence[str], folder: Path | None, report: list[str]) -> tuple[tuple[str, ...], Path | None]:
    """The file of each photo below `folder`, "" where there is none; as the labels write it when no folder is named.

    A text is the name of a file below the folder, or such a name without an image's ending; or, where there is no such
    file, the end of exactly one path ("a.jpg" for "2021/a.jpg"). A line for people is added to `report`. Raises
    UsageError when several files fit.
    """
    if folder is None:
        report.append("photos: not looked for, no folder was named")
        return tuple(text if photo_id(text) != text else "" for text in texts), None
    names = files_below(folder)
    photos = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return match_photos(texts, names, photos, str(folder), report), folder


def match_photos(
    texts: Sequence[str], names: Mapping[str, object], photos: Sequence[str], where: str, report: list[str]
) -> tuple[str, ...]:
    """The name of each photo, "" where there is none, as `find_photos` says.

    Among `names` as a whole, and by what they end in among `photos`; `where` they are.
    """
    by_id: dict[str, list[str]] = {}
    for name in photos:
        by_id.setdefault(photo_id(name), []).append(name)
    ends: dict[int, dict[str, list[str]]] = {}  # number of parts -> the last parts of a path, and without its ending
    images: list[str] = []
    for text in texts:
        if text in names:
            images.append(text)
            continue
        fitting = by_id.get(text, []) if photo_id(text) == text else []
        if not fitting:
            parts = text.count("/") + 1
            if parts not in ends:
                ends[parts] = _ends(photos, parts)
            fitting = ends[parts].get(text, [])
        if len(fitting) > 1:
            raise UsageError(
                f"photo {text!r} could be {' or '.join(fitting[:4])} in {where}: keep one of them there, "
                "or name another folder"
            )
        images.append(fitting[0] if fitting else "")
    missing = [text for text, image in zip(texts, images, strict=True) if not image]
    report.append(
        f"photos: {len(texts) - len(missing):,} in {where}"
        + (f", {len(missing):,} missing: {first_few(missing)}" if missing else "")
    )
    return tuple(images)


def _ends(photos: Sequence[str], parts: int) -> dict[str, list[str]]:
    """Last `parts` parts of a path, with and without its ending -> the paths."""
    found: dict[str, list[str]] = {}
    for name in photos:
        if name.count("/") >= parts:
            end = "/".join(name.split("/")[-parts:])
            for key in {end, photo_id(end)}:
                found.setdefault(key, []).append(name)
    return found
