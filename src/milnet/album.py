"""Where a user's copies of a pool's photos lie. A pool holds no pixels; it knows the digest of each photo's pixels.

    USER_FOLDER/photos.json     {digest of the pixels: absolute path of the file}

A name only says which files are worth decoding. What counts is the digest, also when the photo is shown later: a file
that was changed in the meantime is never shown as the pool's photo.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from milnet.artifacts import write_json
from milnet.errors import ArtifactError, ImageError, UsageError
from milnet.features import Progress
from milnet.images import open_photo
from milnet.library import photos_below
from milnet.places import user_folder
from milnet.pool import RatedPool
from milnet.preprocess import SCREEN

_WORKERS = min(os.cpu_count() or 1, 8)  # threads that decode
_AHEAD = 256  # photos of the pool that are under way at once
_QUALITY = 80  # of a thumbnail, as Pillow counts


@dataclass(frozen=True)
class Matched:
    """What a folder holds of a pool's photos: `found` {digest of the pixels: absolute path}, and the ids of the rest.

    `other`: a file has the name, and other pixels (it was saved anew, or cropped). `unreadable`: a file has the name
    and cannot be decoded. `missing`: no file has the name, or the pool knows no digest for the photo.
    """

    found: Mapping[str, Path]
    other: tuple[str, ...]
    missing: tuple[str, ...]
    unreadable: tuple[str, ...]


def match_photos(pool: RatedPool, folder: Path, progress: Progress | None = None) -> Matched:
    """Look for the photos of `pool` in `folder` and below; hidden files are left out.

    A file's name fits when its stem, its name, or its path below `folder` without the suffix is the photo's id (of an
    id TABLE:ID, as photos of another table have it, also ID). Where none fits to the letter, capitals, blanks and `_`
    do not matter. Only files whose name fits are decoded, in full; so photos whose features were made with `--draft`
    from large JPEGs have a digest of reduced pixels, and count as `other`. Raises UsageError for what is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder with photos; there is {'a file' if folder.exists() else 'none'}")
    folder = folder.resolve()
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for path in photos_below(folder):
        names = {path.name, path.stem, path.relative_to(folder).with_suffix("").as_posix()}
        for name in names:
            exact.setdefault(name, []).append(path)
        for name in {_loose(name) for name in names}:
            loose.setdefault(name, []).append(path)

    def candidates(photo: str) -> list[Path]:
        own = (photo, photo.partition(":")[2])
        for names, key in ((exact, str), (loose, _loose)):
            paths = [path for name in own if name for path in names.get(key(name), [])]
            if paths:
                return list(dict.fromkeys(paths))
        return []

    found: dict[str, Path] = {}
    failed: dict[int, str] = {}  # position in the pool -> why it was not found
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="milnet-album") as executor:
        for start in range(0, len(pool), _AHEAD):
            part = range(start, min(start + _AHEAD, len(pool)))
            results = executor.map(lambda i: _look(candidates(pool.ids[i]), pool.pixels[i]), part)
            for i, result in zip(part, results, strict=True):
                if isinstance(result, Path):
                    found.setdefault(pool.pixels[i], result)
                else:
                    failed[i] = result
                if progress is not None:
                    progress(i + 1, len(pool), "photos of the pool")

    def of(state: str) -> tuple[str, ...]:  # a photo that the pool has twice is found when one of the two is
        return tuple(pool.ids[i] for i, why in failed.items() if why == state and pool.pixels[i] not in found)

    return Matched(found, of("other"), of("missing"), of("unreadable"))


def _loose(name: str) -> str:
    """A name without case, blanks and `_`; an accent is one whether it is stored apart from its letter or not."""
    return re.sub(r"[\s_]+", "", unicodedata.normalize("NFC", name).casefold())


def _look(paths: list[Path], digest: str) -> Path | Literal["other", "missing", "unreadable"]:
    """The first of `paths` whose pixels have this digest, else why there is none."""
    if not paths or not digest:
        return "missing"
    readable = False
    for path in paths:
        try:
            if open_photo(path).digest == digest:
                return path
            readable = True
        except ImageError:
            continue
    return "other" if readable else "unreadable"


def places_file() -> Path:
    """The file with the places, below the user's folder."""
    return user_folder() / "photos.json"


def remember(found: Mapping[str, Path]) -> None:
    """Add {digest of the pixels: absolute path} to the places known so far; a known digest gets its new place.

    Raises ArtifactError when the file with the places is damaged.
    """
    known = {**known_photos(), **found}
    write_json(places_file(), {digest: str(path) for digest, path in known.items()})


def known_photos() -> dict[str, Path]:
    """Where photos lie, by the digest of their pixels; empty where nothing was remembered.

    The files may have been changed since: `thumbnail` looks. Raises ArtifactError when the file is damaged.
    """
    path = places_file()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(data, dict) or not all(isinstance(place, str) for place in data.values()):
        raise _damaged(path, "expected digests and paths")
    return {digest: Path(place) for digest, place in data.items()}


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path}, which says where a pool's photos lie, cannot be read ({why}): "
        f"remove it and run `milnet pool images` again"
    )


def thumbnail(path: Path, digest: str | None, side: int) -> bytes | None:
    """A JPEG of the photo with a long side of at most `side` pixels; smaller photos keep their size.

    None when the file cannot be read, or when its pixels do not have this `digest` (None: whatever it shows).
    """
    # the pixels as an extractor decodes a large JPEG, or all of them
    for draft_side in (side,) if digest is None else (SCREEN, None):
        try:
            photo = open_photo(path, draft_side=draft_side)
        except ImageError:
            return None
        if digest is None or photo.digest == digest:
            break
    else:
        return None
    photo.pixels.thumbnail((side, side))
    stream = BytesIO()
    photo.pixels.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
