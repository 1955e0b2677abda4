"""What every importer returns, and how it meets a folder of photos."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from milnet.annotations import Table
from milnet.errors import AnnotationError, UsageError
from milnet.images import SUFFIXES

# Endings that are not part of a photo's id: of what we read, and of what a label file may name all the same.
IMAGE_SUFFIXES = SUFFIXES | {".heic", ".heif"}


@dataclass(frozen=True)
class Imported:
    """A table, what it was read from (role -> sha256 of the file), and lines that tell people what was found."""

    table: Table
    inputs: dict[str, str]
    report: tuple[str, ...]


def photo_id(text: str) -> str:
    """The id of a photo: its name as the label file writes it, without an image's ending."""
    stem, dot, ending = text.rpartition(".")
    return stem if stem and f"{dot}{ending}".lower() in IMAGE_SUFFIXES else text


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


def require_photos(count: int, file: Path) -> None:
    """Raise AnnotationError when no photo is left to make a table of."""
    if not count:
        raise AnnotationError("no photo with usable votes is left", file=file)
