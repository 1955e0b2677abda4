"""Which photos a user means: files, folders (with what is below them), patterns."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable
from pathlib import Path

from milnet.errors import UsageError
from milnet.images import SUFFIXES


def find_photos(arguments: Iterable[str | Path]) -> list[Path]:
    """The photo files named by `arguments`, in their order, folders sorted by name; each file once.

    A file is taken whatever its suffix; in folders only files with the suffix of an image are, and hidden ones are
    skipped. A pattern (`*`, `?`, `[`) that is no file is expanded. Raises UsageError for what does not exist and when
    nothing is found.
    """
    found: dict[str, Path] = {}  # by real path: "a/../b.jpg" and "b.jpg" are one file

    def take(paths: Iterable[Path]) -> None:
        for path in paths:
            found.setdefault(os.path.realpath(path), path)

    arguments = list(arguments)
    for argument in arguments:
        path = Path(argument)
        if not path.exists():
            with contextlib.suppress(RuntimeError):  # "~name" where there is no such user
                path = path.expanduser()
        if path.is_dir():
            take(photos_below(path))
        elif path.exists():
            take([path])
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207  (Path.glob wants a relative pattern)
            for match in map(Path, matches):
                take(photos_below(match) if match.is_dir() else [match])
        else:
            raise UsageError(f"{argument}: there is no such file, folder or pattern")
    if not found:
        raise UsageError(f"no photos in {', '.join(map(str, arguments))}: expected files ending in {_suffixes()}")
    return list(found.values())


def photos_below(folder: Path) -> list[Path]:
    """Files worth trying in `folder` and below, by name within each folder; hidden ones are skipped."""
    photos = []
    for root, folders, files in os.walk(folder):  # does not follow links to folders, so loops end
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        photos += [
            Path(root, name)
            for name in sorted(files)
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return photos


def _suffixes() -> str:
    return " ".join(sorted(SUFFIXES))
