"""Photos a second of the whole command `milnet score`, start and output included, and the most memory it took.

    python benchmarks/speed.py IMAGES --weights FILE

IMAGES: photos of about 500x400. They are scored as they are, and as 12-megapixel JPEGs (4000x3000, quality 90) made of
them in a temporary folder. Rounds alternate between the models; the median is reported. `milnet --help` beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from milnet.images import open_photo
from milnet.library import find_photos
from timing import machine

COMMAND = str(Path(sys.executable).with_name("milnet"))


def timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds and the largest resident memory in MB of a command that must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"milnet {' '.join(arguments)} ended with {status}: run it by itself to see why")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", required=True, help="of mobilenetv2_100, for `standard`")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--large", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    helps = [timed(["--help"])[0] for _ in range(options.rounds + 1)][1:]
    print(f"milnet --help: {statistics.median(helps):.2f} s")
    files = find_photos([options.images]).photos
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        for target, count in ((small, options.photos), (large, options.large)):
            target.mkdir()
            for file in files[:count]:
                if target is small:
                    (target / file.name).symlink_to(file.resolve())
                else:
                    pixels = open_photo(file).pixels.resize((4000, 3000), Image.Resampling.BICUBIC)
                    pixels.save(target / f"{file.stem}.jpg", quality=90)
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for model, extra in (("pocket", []), ("standard", ["--weights", options.weights])):
                for target in (small, large):
                    output = str(Path(folder, "scores.csv"))
                    took = timed(["score", str(target), "--model", model, *extra, "--no-cache", "-o", output])
                    found.setdefault((model, target.name), []).append(took)
    for (model, kind), times in found.items():
        wanted, what = (options.photos, "500x400") if kind == "small" else (options.large, "12-megapixel JPEG")
        count = min(wanted, len(files))
        most = max(memory for _, memory in times)
        rates = sorted(count / seconds for seconds, _ in times)
        print(
            f"{model}, {what}: {statistics.median(rates):.1f} photos/s "
            f"({rates[0]:.1f} .. {rates[-1]:.1f}), {count} photos, most memory {most:.0f} MB"
        )


if __name__ == "__main__":
    main()
