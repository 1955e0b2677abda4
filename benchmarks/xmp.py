"""Ratings written into every JPEG of a folder, and beside it, with exiftool as the witness.

    python benchmarks/xmp.py PHOTOS/ -o xmp.json

The JPEGs are copied. Then exiftool (Debian: libimage-exiftool-perl) lists every tag, milnet embeds a rating in each,
exiftool lists again. Counted: tags that were there before and are lost or have another value (but those of the file
system and the rating itself), photos whose decoded pixels or whose bytes from the scan on have changed, what a second
run writes, and human ratings that were replaced. Then sidecars are made and merged. Times are per photo, of one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from milnet.embedded import is_jpeg, segments
from milnet.images import open_photo
from milnet.library import photos_below
from milnet.xmp import Entry, Outcome, read_rating, write_rating

_APART = ("System:", "ExifTool:ExifToolVersion", "XMP-xmp:Rating")  # tags that say nothing about what was kept
FIRST = Entry(3, 4.2, 3.9, 4.6, 55.5, 44.0, 0.1, "d" * 64)
LATER = Entry(4, 4.3, None, None, None, None, None, "e" * 64)


def tags(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: {tag: value}} as exiftool sees them."""
    listed = subprocess.run(
        ["exiftool", "-j", "-G1", "-a", "-struct", "-q", str(folder)], capture_output=True, text=True, check=True
    ).stdout
    return {
        Path(one["SourceFile"]).name: {tag: value for tag, value in one.items() if not tag.startswith(_APART)}
        for one in json.loads(listed)
    }


def scan(photo: Path) -> str:
    """Digest of the bytes from the first scan on."""
    with photo.open("rb") as file:
        start = segments(file, photo)[-1].start
    return hashlib.sha256(photo.read_bytes()[start:]).hexdigest()


def timed(what: Callable[[Path], Any], photos: Sequence[Path]) -> tuple[float, list[Any]]:
    """Milliseconds a photo, and what was answered."""
    began = time.perf_counter()
    answers = [what(photo) for photo in photos]
    return 1000 * (time.perf_counter() - began) / len(photos), answers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if shutil.which("exiftool") is None:
        parser.error("exiftool is not here (Debian: libimage-exiftool-perl)")
    with tempfile.TemporaryDirectory(prefix="milnet-xmp-") as place:
        folder = Path(place)
        for photo in photos_below(options.photos):
            if is_jpeg(photo):
                (folder / photo.name).write_bytes(photo.read_bytes())
        photos = sorted(folder.iterdir())
        before, pixels, scans = tags(folder), [open_photo(p).digest for p in photos], [scan(p) for p in photos]
        human = {photo: read_rating(photo) for photo in photos}
        ms: dict[str, float] = {}
        ms["embed"], done = timed(lambda photo: write_rating(photo, FIRST, embed=True), photos)
        after = tags(folder)
        lost = [
            f"{name}: {tag}"
            for name, old in before.items()
            for tag, value in old.items()
            if after[name].get(tag) != value
        ]
        ms["embed, unchanged"], again = timed(lambda photo: write_rating(photo, FIRST, embed=True), photos)
        found = {
            "jpegs": len(photos),
            "tags": sum(map(len, before.values())),
            "tags lost or changed": lost,
            "pixels changed": sum(a != open_photo(p).digest for a, p in zip(pixels, photos, strict=True)),
            "scans changed": sum(a != scan(p) for a, p in zip(scans, photos, strict=True)),
            "actions": Counter(outcome.action for outcome in done),
            "human ratings": Counter(str(rating) for rating in human.values() if rating is not None),
            "human ratings replaced": sum(
                rating is not None and read_rating(photo) != rating for photo, rating in human.items()
            ),
            "written by a second run": sum(len(outcome.written) for outcome in again),
        }
        steps: dict[str, tuple[Entry, Callable[[list[Outcome]], bool]]] = {
            "new sidecar": (FIRST, lambda outcomes: all(outcome.written for outcome in outcomes)),
            "sidecar, unchanged": (FIRST, lambda outcomes: not any(outcome.written for outcome in outcomes)),
            "sidecar merged": (LATER, lambda outcomes: all(outcome.written for outcome in outcomes)),
        }
        for name, (entry, expected) in steps.items():
            ms[name], outcomes = timed(lambda photo, entry=entry: write_rating(photo, entry), photos)  # type: ignore[misc]
            if not expected(outcomes):
                raise SystemExit(f"{name}: wrote something else than expected")
        ms["read"], _ = timed(read_rating, photos)
    result = {**found, "ms": ms}
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
