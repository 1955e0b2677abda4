"""A library as people have them, scored by the command: nothing lost, nothing done twice, what is broken is named.

    python benchmarks/library.py PHOTOS/ -o library.json                   all photos below PHOTOS/
    python benchmarks/library.py PHOTOS/ --photos 300 --kills 3 -o x.json  fewer

A temporary library is made of the photos, of copies of some in every format, and of files that are odd or broken: see
`ODD` and `BROKEN`. Then `milnet score LIBRARY -o out.csv` runs as a user would type it, never as root, and each time
what it wrote is compared with what is expected of each file:

    first      every good file in out.csv once, every other one in out.errors.csv with a reason, exit code 1
    again      the same rows, and no photo goes through a backbone
    changed    a photo was replaced, one was moved, one was copied: one forward pass
    killed     with an empty cache, killed (SIGKILL) at random moments, then run to its end: the rows of `first`

Exits with 1 when anything is not as expected.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import site
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

import milnet

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
made_files: Any = import_module("made_files")  # HEIC and DNG: nothing here can write them

NOBODY = 65534  # user and group that files are read as when this is started by root
SCORED, FAILED, UNSEEN = "scored", "failed", "unseen"


# ---- files -----------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image: Image.Image, long: int | None = None) -> Any:
    """HWC uint8, with even sides; with a long side of `long`."""
    if long is not None:
        scale = long / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    array = np.array(image)
    return array[: array.shape[0] // 2 * 2, : array.shape[1] // 2 * 2]


def as_dng(image: Image.Image, *, preview: bool = True) -> bytes:
    """A RAW whose sensor saw the image, with the camera's own picture of 1,200 pixels or without one."""
    if not preview:
        return bytes(made_files.dng(pixels(image)))
    picture = Image.fromarray(pixels(image, 1200))
    return bytes(made_files.dng(pixels(image), preview=encoded(picture, "JPEG", quality=90), preview_size=picture.size))


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: encoded(image, "PNG"),
    "webp": lambda image: encoded(image, "WEBP", quality=90),
    "avif": lambda image: encoded(image, "AVIF", quality=90),
    "tif": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "gif": lambda image: encoded(image, "GIF"),
    "bmp": lambda image: encoded(image, "BMP"),
    "jp2": lambda image: encoded(image, "JPEG2000"),
    "ppm": lambda image: encoded(image, "PPM"),
    "heic": lambda image: bytes(made_files.heic(pixels(image))),
    "dng": as_dng,
}


def sixteen_bits(image: Image.Image) -> bytes:
    """A colour PNG of 16 bits a channel, which Pillow cannot write."""
    values = (np.array(image).astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def oriented(image: Image.Image, orientation: int) -> bytes:
    """A JPEG that says how it is to be turned."""
    block = Image.Exif()
    block[0x0112] = orientation
    return encoded(image, "JPEG", exif=block)


def bomb() -> bytes:
    """A PNG of 200 bytes that claims 100,000 x 100,000 pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bad_checksum(data: bytes) -> bytes:
    """A PNG with one bit of its pixels turned."""
    place = data.index(b"IDAT") + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def animation(image: Image.Image, kind: str) -> bytes:
    """Three frames, the first one the image."""
    return encoded(image, kind, save_all=True, append_images=[image.rotate(90), image.rotate(180)])


def lab(image: Image.Image) -> bytes:
    """A TIFF in Lab."""
    srgb, to = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    found = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, to, "RGB", "LAB"))
    assert found is not None
    return encoded(found, "TIFF")


def dated(image: Image.Image) -> bytes:
    """A TIFF with a date in its own directory."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0132] = "2024:05:06 07:08:09"
    return encoded(image, "TIFF", tiffinfo=tags)


# Odd and good: name -> the file made of a photo.
ODD: dict[str, Callable[[Image.Image], bytes]] = {
    "one pixel.png": lambda image: encoded(image.resize((1, 1)), "PNG"),
    "one pixel.jpg": lambda image: encoded(image.resize((1, 1)), "JPEG"),
    "20,000 wide.jpg": lambda image: encoded(image.resize((20_000, 400)), "JPEG", quality=60),
    "20,000 high.png": lambda image: encoded(image.resize((60, 20_000)), "PNG", compress_level=1),
    "cmyk.jpg": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "cmyk.tif": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "lab.tif": lab,
    "16 bits grey.png": lambda image: encoded(
        Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257), "PNG"
    ),
    "16 bits grey.tif": lambda image: encoded(
        Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257), "TIFF"
    ),
    "16 bits.png": sixteen_bits,
    "10 bits.heic": lambda image: bytes(made_files.heic(pixels(image).astype(np.uint16) * 4, depth=10)),
    "grey.jpg": lambda image: encoded(image.convert("L"), "JPEG"),
    "palette.png": lambda image: encoded(image.quantize(64), "PNG"),
    "black and white.png": lambda image: encoded(image.convert("1"), "PNG"),
    "float.tif": lambda image: encoded(
        Image.fromarray(np.array(image.convert("L")).astype(np.float32) / 255), "TIFF"
    ),
    "alpha.png": lambda image: encoded(image.convert("RGBA").rotate(20, expand=True), "PNG"),
    "alpha.webp": lambda image: encoded(image.convert("RGBA").rotate(20), "WEBP"),
    "progressive.jpg": lambda image: encoded(image, "JPEG", progressive=True),
    "animation.gif": lambda image: animation(image, "GIF"),
    "animation.webp": lambda image: animation(image, "WEBP"),
    "animation.png": lambda image: animation(image, "PNG"),
    "several pictures.mpo": lambda image: animation(image, "MPO"),
    "broken profile.jpg": lambda image: encoded(image, "JPEG", icc_profile=b"no profile"),
    "broken exif.jpg": lambda image: encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "dated.tif": dated,
    "turned.heic": lambda image: bytes(
        made_files.heic(pixels(image), turns=1, exif=made_files.exif_block(orientation=8))
    ),
    "tiles.heic": lambda image: bytes(made_files.heic(pixels(image, 256)[:, :256], tiles=4)),
    "no picture of the camera.dng": lambda image: as_dng(image, preview=False),
    "png, really.jpg": lambda image: encoded(image, "PNG"),
    "jpeg, really.png": lambda image: encoded(image, "JPEG"),
    "heic, really.jpg": lambda image: bytes(made_files.heic(pixels(image))),
    "raw, really.tif": as_dng,
    "UPPER.JPEG": lambda image: encoded(image, "JPEG"),
    **{f"orientation {n}.jpg": partial(oriented, orientation=n) for n in range(1, 9)},
    **{
        name: lambda image: encoded(image, "JPEG")
        for name in (
            "Türkçe 写真 \U0001f4f7.jpg", "e\u0301.jpg", "two\nlines.jpg", "tab\tand \"quotes\", commas.jpg",
            "-o.jpg", " blank.jpg", "[a-z]*?.jpg", "x" * 250 + ".jpg", "@file.jpg", "~.jpg", "=1+1.jpg",
        )
    },
}  # fmt: skip

_TEXTS = {
    "text.jpg": b"no image at all",
    "page.png": b"<html><body>not found</body></html>",
    "paper.jpg": b"%PDF-1.7\n",
}
_TEXTS |= {"archive.jpg": b"PK\3\4" + bytes(200), "film.jpg": struct.pack(">I", 24) + b"ftypisom" + bytes(300)}
_TEXTS |= {"empty.jpg": b"", "empty.png": b"", "empty.heic": b"", "empty.dng": b"", "zeros.jpg": bytes(5000)}
_TEXTS |= {
    "start alone.jpg": b"\xff\xd8\xff\xe0",
    "start alone.tif": b"II*\0",
    "no frame.gif": b"GIF89a" + bytes(7) + b";",
}

_CUTS = {
    "jpg": (1, 5, 25, 50, 75, 90, 99), "png": (10, 50, 90), "webp": (10, 50, 90), "avif": (10, 50, 90),
    "tif": (10, 50, 90), "gif": (10, 50), "bmp": (10, 90), "jp2": (10, 50), "ppm": (10, 90), "heic": (5, 50, 99),
    "dng": (5, 40),
}  # fmt: skip


def _always(data: bytes, image: Image.Image) -> bytes:
    return data


def _cut(data: bytes, percent: int) -> bytes:
    return data[: len(data) * percent // 100]


def _cut_copy(kind: str, percent: int, image: Image.Image) -> bytes:
    return _cut(encoded(image, "JPEG", quality=90) if kind == "jpg" else FORMATS[kind](image), percent)


# Broken: they must be named, with a reason.
BROKEN: dict[str, Callable[[Image.Image], bytes]] = {
    **{name: partial(_always, data) for name, data in _TEXTS.items()},
    **{
        f"cut at {percent} %.{kind}": partial(_cut_copy, kind, percent)
        for kind, percents in _CUTS.items()
        for percent in percents
    },
    "cut raw.dng": lambda image: _cut(as_dng(image, preview=False), 80),
    "bomb.png": lambda image: bomb(),
    "bomb.heic": lambda image: bytes(made_files.heic(pixels(image), claimed=(60_000, 60_000))),
    "one bit.png": lambda image: bad_checksum(encoded(image, "PNG")),
    "not a number.tif": lambda image: encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF"),
    os.fsdecode(b"latin-1 caf\xe9.jpg"): lambda image: encoded(image, "JPEG"),  # no output could hold its name
}


@dataclass
class Made:
    """A library: what is expected of each file or folder, by its name in the output; how many contents are good."""

    folder: Path
    expected: dict[str, str] = field(default_factory=dict)
    contents: set[bytes] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)

    def put(self, name: str, data: bytes, expected: str, kind: str) -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.expect(path, expected, kind)
        if expected == SCORED:
            self.contents.add(data)
        return path

    def expect(self, path: Path, expected: str, kind: str) -> None:
        """What is to become of a file, or of a folder."""
        if expected != UNSEEN:
            self.expected[os.fsencode(path).decode("utf-8", "backslashreplace")] = expected
        self.kinds[f"{kind}: {expected}"] += 1

    def names(self, expected: str) -> list[str]:
        """The names of which this is expected."""
        return sorted(name for name, what in self.expected.items() if what == expected)


def build(folder: Path, photos: Sequence[Path], copies: int, *, permissions: bool) -> Made:
    """Make the library: the photos in folders of 250, `copies` of some in each format, one of everything odd."""
    made = Made(folder)
    for number, photo in enumerate(photos):
        made.put(f"photos/{number // 250:02}/{number:05}{photo.suffix}", photo.read_bytes(), SCORED, "photos")
    images = [Image.open(photo).convert("RGB") for photo in photos[:: max(1, len(photos) // 97)][:97]]
    for kind, encode in FORMATS.items():
        for number in range(copies):
            made.put(f"{kind}/{number:03}.{kind}", encode(images[number % len(images)]), SCORED, "every format")
    for number, (name, encode) in enumerate(ODD.items()):
        made.put(f"odd/{name}", encode(images[number % len(images)]), SCORED, "odd")
    for number, (name, encode) in enumerate(BROKEN.items()):
        made.put(f"broken/{name}", encode(images[number % len(images)]), FAILED, "broken")
    data = encoded(images[0], "JPEG")
    for number in range(3):
        made.put(f"twice/{number}.jpg", data, SCORED, "the same content")
    for name in (".hidden.jpg", "._a.jpg", ".thumbnails/t.jpg", "@eaDir/a.jpg", "#recycle/b.jpg", "notes.txt"):
        made.put(f"left out/{name}", data, UNSEEN, "left out")
    links = folder / "links"
    links.mkdir()
    for name, target in (("loop", folder), ("self", Path("self")), ("photo.jpg", folder / "twice/0.jpg")):
        (links / name).symlink_to(target)
        made.expect(links / name, UNSEEN, "links that lead to nothing new")
    for name in ("gone.jpg", "round.jpg"):
        (links / name).symlink_to("nowhere" if name == "gone.jpg" else name)
        made.expect(links / name, FAILED, "links that lead nowhere")
    os.mkfifo(folder / "broken/pipe.jpg")
    made.expect(folder / "broken/pipe.jpg", FAILED, "no regular file")
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "far.jpg").write_bytes(encoded(images[-1], "JPEG", quality=77))
    (links / "elsewhere").symlink_to(outside)
    made.contents.add((outside / "far.jpg").read_bytes())
    made.expect(links / "elsewhere/far.jpg", SCORED, "behind a link to a folder")
    if permissions:
        made.put("broken/secret.jpg", data, FAILED, "no permission").chmod(0)
        made.put("closed/secret.jpg", data, UNSEEN, "no permission")
        (folder / "closed").chmod(0)
        made.expect(folder / "closed", FAILED, "no permission")
    return made


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run of the command left."""

    code: int
    seconds: float
    forward: int
    rows: tuple[Mapping[str, str], ...]
    failures: tuple[tuple[str, str], ...]


class Runner:
    """`milnet score LIBRARY -o out.csv` as an ordinary user, with a home of its own."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder, self.options = folder, options
        self.home, self.output = folder / "home", folder / "out.csv"
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        packages = [str(Path(milnet.__file__).parents[1]), *site.getsitepackages()]
        self.environment = {
            **os.environ, "MILNET_HOME": str(self.home), "HOME": str(folder), "PYTHONPATH": os.pathsep.join(packages),
        }  # fmt: skip
        self.give()
        self.python = self._python()
        if not self.python:
            self.python, self.user = sys.executable, {}

    @property
    def ordinary(self) -> bool:
        """Whether the command runs as a user for whom permissions count."""
        return bool(self.user) or os.geteuid() != 0

    def _python(self) -> str:
        """An interpreter the user may run: this one, or, where it lies in root's own folder, the system's; "": none."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for python in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin:/bin")):
            if python is None:
                continue
            with suppress(OSError):
                command = [python, "-c", "import milnet.cli, torch, PIL"]
                if not subprocess.run(command, env=self.environment, cwd=self.folder, **self.user).returncode:
                    return python
        return ""

    def give(self) -> None:
        """All that is here belongs to the user who runs the command."""
        if self.user:
            for root, folders, files in os.walk(self.folder):
                for path in (root, *(os.path.join(root, name) for name in (*folders, *files))):  # noqa: PTH118
                    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command; its JSON goes to a file."""
        command = [self.python, "-m", "milnet", "score", str(self.folder / "library"), "-o", str(self.output)]
        with (self.folder / "json").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            how: Any = {"stdout": out, "stderr": err, "env": self.environment, "cwd": self.folder, **self.user}
            return subprocess.Popen([*command, "--json", *self.options], **how)

    def run(self) -> Run:
        """Run it to its end."""
        began = time.monotonic()
        code = self.start().wait()
        seconds = time.monotonic() - began
        try:
            forward = int(json.loads((self.folder / "json").read_text(encoding="utf-8"))["forward"])
        except (ValueError, KeyError):
            raise SystemExit(f"the command failed:\n{(self.folder / 'stderr').read_text()[-3000:]}") from None
        with self.output.open(newline="", encoding="utf-8") as file:
            rows = tuple(csv.DictReader(file))
        with self.output.with_name("out.errors.csv").open(newline="", encoding="utf-8") as file:
            failures = tuple((row["photo"], row["reason"]) for row in csv.DictReader(file))
        return Run(code, seconds, forward, rows, failures)

    def kept(self) -> int:
        """How many photos the cache knows the numbers of."""
        cache = self.home / "cache.sqlite"
        if not cache.exists():
            return 0
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(DISTINCT content) FROM features").fetchone()[0])
        return 0


def problems(made: Made, run: Run) -> list[str]:
    """What a run did not do as expected, in words."""
    found = []
    scored, failed = [row["photo"] for row in run.rows], [name for name, _ in run.failures]
    for what, names, expected in (("out.csv", scored, SCORED), ("out.errors.csv", failed, FAILED)):
        counts, wanted = Counter(names), set(made.names(expected))
        found += [f"{name!r} is {count} times in {what}" for name, count in counts.items() if count > 1]
        found += [f"{name!r} is not in {what}" for name in sorted(wanted - counts.keys())]
        found += [f"{name!r} is in {what}" for name in sorted(counts.keys() - wanted)]
    found += [f"{name!r} has no reason" for name, reason in run.failures if not reason.strip()]
    found += [f"{row['photo']!r}: no score" for row in run.rows if not np.isfinite(float(row["score"]))]
    if run.code != 1:
        found.append(f"exit code {run.code}, expected 1")
    return found


def difference(first: Run, second: Run) -> tuple[int, float]:
    """How many rows are not the same to the letter, and the largest difference of two scores."""
    other = {row["photo"]: row for row in second.rows}
    pairs = [(row, other[row["photo"]]) for row in first.rows if row["photo"] in other]
    differing = sum(a != b for a, b in pairs) + len(first.rows) + len(second.rows) - 2 * len(pairs)
    return differing, max((abs(float(a["score"]) - float(b["score"])) for a, b in pairs), default=0.0)


def kill_at_random(runner: Runner, idle: float, work: float, kills: int, rng: np.random.Generator) -> list[int]:
    """Kill runs at random moments; how many photos were kept after each.

    `idle`: seconds of a run that has nothing to do, `work`: what a whole run takes above that. A quarter of the kills
    falls into the start of the command, and the others share the work.
    """
    kept = []
    for _ in range(kills):
        process = runner.start()
        with suppress(subprocess.TimeoutExpired):
            early = rng.random() < 0.25
            process.wait(float(rng.uniform(0, idle) if early else idle + rng.uniform(0, 2 * work / (kills + 1))))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(runner.kept())
    return kept


def measure(
    folder: Path, made: Made, runner: Runner, kills: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """All runs, one after the other."""
    rng = np.random.default_rng(seed)
    wrong: list[str] = []
    first = runner.run()
    good = len(made.names(SCORED))
    wrong += [f"first: {text}" for text in problems(made, first)]
    if first.forward != len(made.contents):
        wrong.append(f"first: {first.forward} forward passes for {len(made.contents)} contents")
    say(f"first: {good} scored, {len(first.failures)} failed, {first.forward} forward, {first.seconds:.1f} s")

    again = runner.run()
    wrong += [f"again: {text}" for text in problems(made, again)]
    if again.forward or difference(first, again)[0]:
        wrong.append(f"again: {again.forward} forward passes, {difference(first, again)[0]} other rows")
    say(f"again: {again.forward} forward, {again.seconds:.1f} s")

    # A killed run starts from nothing, in a home of its own; its rows are those of the first run.
    shutil.move(runner.home, folder / "home.first")
    runner.output.unlink()
    runner.output.with_name("out.errors.csv").unlink()
    kept = kill_at_random(runner, again.seconds, max(0.0, first.seconds - again.seconds), kills, rng)
    left_files = sorted(path.name for path in folder.iterdir() if path.name.startswith("out"))
    finished = runner.run()
    wrong += [f"killed: {text}" for text in problems(made, finished)]
    rows, largest = difference(first, finished)
    if kept != sorted(kept):
        wrong.append(f"killed: what was kept became less: {kept}")
    if finished.forward != len(made.contents) - (kept[-1] if kept else 0):
        wrong.append(f"killed: {finished.forward} forward passes, {kept} kept before, {len(made.contents)} contents")
    if largest > 1e-5 or [row["photo"] for row in first.rows] != [row["photo"] for row in finished.rows]:
        wrong.append(f"killed: {rows} rows differ, a score by {largest:g}")
    say(f"killed {kills} times: kept {kept}, then {finished.forward} forward; {rows} rows differ, at most {largest:g}")

    changed_run, score_moved = change(made, runner, finished, wrong)
    say(f"one changed, one moved, one copied: {changed_run.forward} forward, {changed_run.seconds:.1f} s")
    return {
        "ordinary_user": runner.ordinary,
        "scored": good,
        "failed": len(first.failures),
        "contents": len(made.contents),
        "kinds": dict(sorted(made.kinds.items())),
        "exit_code": first.code,
        "first": {
            "seconds": first.seconds, "forward": first.forward, "photos_a_second": len(first.rows) / first.seconds,
        },
        "again": {"seconds": again.seconds, "forward": again.forward},
        "killed": {
            "kept_after_each_kill": kept, "forward": finished.forward, "seconds": finished.seconds,
            "rows_that_differ": rows, "largest_difference": largest, "files_left_by_kills": left_files,
        },
        "changed": {
            "seconds": changed_run.seconds, "forward": changed_run.forward, "moved_score_differs": score_moved,
        },
        "reasons": dict(sorted((Path(name).name, reason) for name, reason in first.failures)),
        "problems": wrong,
    }  # fmt: skip


def change(made: Made, runner: Runner, before: Run, wrong: list[str]) -> tuple[Run, float]:
    """Change one photo, move one, copy one, and run again; by how much the score of the moved one differs."""
    changed, moved, copied = [Path(name) for name in made.names(SCORED) if "/photos/" in name][:3]
    with Image.open(changed) as image:
        changed.write_bytes(encoded(image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG"))
    there, copy = moved.with_name("moved.jpg"), copied.with_name("copy.jpg")
    moved.rename(there)
    shutil.copyfile(copied, copy)
    del made.expected[str(moved)]
    made.expected |= {str(there): SCORED, str(copy): SCORED}
    runner.give()
    found = runner.run()
    wrong += [f"changed: {text}" for text in problems(made, found)]
    if found.forward != 1:
        wrong.append(f"changed: {found.forward} forward passes, expected 1")
    old = {row["photo"]: float(row["score"]) for row in before.rows}
    new = {row["photo"]: float(row["score"]) for row in found.rows}
    differs = max(abs(new[str(there)] - old[str(moved)]), abs(new[str(copy)] - old[str(copied)]))
    if differs or new[str(changed)] == old[str(changed)]:
        wrong.append(
            f"changed: the moved or copied photo's score differs by {differs:g}, or the changed one's does not"
        )
    return found, differs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos_folder", type=Path, metavar="PHOTOS", help="JPEG photos, in folders or not")
    parser.add_argument("--photos", type=int, help="use so many of them (default: all)")
    parser.add_argument("--copies", type=int, default=20, help="copies in each other format")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="", help="options for `milnet score`, for example '--model pocket'")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    photos = sorted(path for path in options.photos_folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if options.photos is not None:
        photos = photos[:: max(1, len(photos) // options.photos)][: options.photos]
    with tempfile.TemporaryDirectory(prefix="milnet-library-", ignore_cleanup_errors=True) as temporary:
        folder = Path(os.path.realpath(temporary))
        (folder / "library").mkdir()
        folder.chmod(0o755)
        runner = Runner(folder, options.options.split())
        made = build(folder / "library", photos, options.copies, permissions=runner.ordinary)
        runner.give()
        if not runner.ordinary:
            print(f"user {NOBODY} can run no Python that has milnet: as root, without files nobody may read")
        found = measure(folder, made, runner, options.kills, options.seed, lambda text: print(text, flush=True))
        if not runner.user and (closed := folder / "library/closed").exists():
            closed.chmod(0o700)  # or it could not be removed
    for text in found["problems"]:
        print(f"! {text}")
    print("all as expected" if not found["problems"] else f"{len(found['problems'])} things are not as expected")
    if options.output is not None:
        found["command"] = ["benchmarks/library.py", *(sys.argv[1:] if arguments is None else arguments)]
        options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
