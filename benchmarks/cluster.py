"""Ray with worker processes against one process with decoding threads; what a kill costs; what grows with photos.

    python benchmarks/cluster.py PHOTOS -n 2000 -o cluster.json
    python benchmarks/cluster.py PHOTOS -n 60 --photos 100,300 --rounds 1     (small)

`milnet score` runs as a command of its own, from start to end, on the first -n photos of PHOTOS (again and again under
other names where there are fewer): once in this process with 2 decoding threads and 2 of computing, without its cache;
once with 2 workers of Ray with 1 processor each; once so with `kill -9` of a worker when a third is done. Rounds run
through these in turn. Told of each: seconds from start to end; photos a second with the start, and without it (a
command of the same kind with one photo, measured first, is taken off); memory, the largest sum over the command's
processes of the proportional set size, in which shared pages count once. The scores of all are
compared: a difference above 1e-5, a missing or repeated photo is an error. Then the same with 2 workers on each number
of --photos: the exponent is the slope of log time over log photos by least squares, with the start taken off.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from growth import exponent
from milnet.library import photos_below
from timing import machine

WAYS = ("one process", "ray", "ray, a worker killed")


@dataclass(frozen=True)
class Run:
    """One command."""

    seconds: float
    megabytes: float  # proportional, of all its processes together
    processes: int  # at that moment
    killed: int  # workers


def below(process: int) -> list[int]:
    """A process and all that it started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [process]
    for parent in found:
        found += [pid for pid, of in parents.items() if of == parent]
    return found


def proportional(pids: list[int]) -> float:
    """Megabytes of processes, shared pages counted once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


def is_worker(pid: int) -> bool:
    """Whether it is a process of Ray that has the network."""
    try:
        return "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def watch(process: subprocess.Popen[bytes], part: Path, count: int, kill: bool) -> tuple[float, int, int]:
    """Most megabytes, processes then, workers killed."""
    most, processes, killed = 0.0, 0, 0
    looked = 0.0
    while process.poll() is None:
        pids = below(process.pid)
        if time.perf_counter() - looked > 1:  # it takes the kernel some time
            looked = time.perf_counter()
            now = proportional(pids)
            if now > most:
                most, processes = now, len(pids)
        spans = [shard.stem.split("-") for shard in part.glob("*.parquet")]
        if kill and not killed and sum(int(last) - int(first) for first, last in spans) >= count / 3:
            for pid in [pid for pid in pids if is_worker(pid)][:1]:
                os.kill(pid, signal.SIGKILL)
                killed = 1
        time.sleep(0.2)
    return most, processes, killed


def run(folder: Path, way: str, count: int, model: str, output: Path) -> Run:
    """Score a folder."""
    how = ["--workers", "2", "--threads", "2", "--no-cache"]
    if way != WAYS[0]:
        how = ["--workers", "ray", "--ray-workers", "2", "--threads", "1"]
    command = [sys.executable, "-m", "milnet", "score", str(folder), "--model", model, "-o", str(output), *how]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        most, processes, killed = watch(process, output.parent / f".{output.name}.part", count, way == WAYS[2])
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return Run(seconds, most, processes, killed)


def link(photos: list[Path], folder: Path, count: int) -> None:
    """`count` files under names of their own: links to photos, again and again where there are fewer."""
    folder.mkdir()
    for number in range(count):
        source = photos[number % len(photos)]
        # hard links where they may be: a link to one file twice would count once
        target = folder / f"{number:07}{source.suffix}"
        try:
            os.link(source, target)
        except OSError:
            target.write_bytes(source.read_bytes())


def scores(output: Path) -> dict[str, float]:
    """The score of each photo of a CSV."""
    with output.open(newline="", encoding="utf-8") as file:
        rows = [(row["photo"], float(row["score"])) for row in csv.DictReader(file)]
    found = dict(rows)
    if len(found) != len(rows):
        raise SystemExit(f"{output}: {len(rows) - len(found)} photos are there twice")
    return found


def compare(photos: list[Path], count: int, model: str, rounds: int) -> tuple[dict[str, list[Run]], float]:
    """All ways in turn; the largest difference of two scores of one photo."""
    found: dict[str, list[Run]] = {way: [] for way in WAYS}
    apart = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        link(photos, folder, count)
        for _ in range(rounds):
            first: dict[str, float] = {}
            for way in WAYS:
                output = Path(name) / "scores.csv"
                found[way].append(run(folder, way, count, model, output))
                own = scores(output)
                first = first or own
                if own.keys() != first.keys():
                    raise SystemExit(f"{way}: {len(own)} photos, expected {len(first)}")
                apart = max(apart, max(abs(own[photo] - first[photo]) for photo in own))
    return found, apart


def grow(photos: list[Path], sizes: list[int], model: str, way: str = WAYS[1]) -> list[Run]:
    """Ray, or another way, on each number of photos."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "photos"
            link(photos, folder, size)
            found.append(run(folder, way, size, model, Path(name) / "scores.csv"))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", default="1000,3000,10000")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    photos = sorted(photos_below(options.source))
    print(machine(), flush=True)
    starts = {way: grow(photos, [1], options.model, way)[0].seconds for way in WAYS[:2]}
    starts[WAYS[2]] = starts[WAYS[1]]
    found, apart = compare(photos, options.n, options.model, options.rounds)
    print(f"start of one process {starts[WAYS[0]]:.1f} s, of Ray {starts[WAYS[1]]:.1f} s")
    print(f"{options.n} photos, {options.rounds} rounds, medians; largest difference of a score {apart:.1e}")
    print(f"{'':24}{'seconds':>9}{'photos/s':>10}{'without start':>15}{'MB (PSS)':>10}{'processes':>11}{'killed':>8}")
    for way, runs in found.items():
        seconds = statistics.median(one.seconds for one in runs)
        print(
            f"{way:24}{seconds:9.1f}{options.n / seconds:10.1f}"
            f"{options.n / max(seconds - starts[way], 1e-3):15.1f}"
            f"{max(one.megabytes for one in runs):10.0f}{max(one.processes for one in runs):11}"
            f"{sum(one.killed for one in runs):8}",
            flush=True,
        )
    if apart > 1e-5:
        raise SystemExit("scores differ by more than 1e-5")
    sizes = [int(size) for size in options.photos.split(",")]
    start = starts[WAYS[1]]
    runs = grow(photos, sizes, options.model)
    slope = exponent(sizes, [max(one.seconds - start, 1e-3) for one in runs])
    print(f"ray, time against photos: exponent {slope:.2f} (start of {start:.1f} s taken off)")
    for size, one in zip(sizes, runs, strict=True):
        print(f"{size:>12,} photos{one.seconds:9.1f} s{one.megabytes:9.0f} MB")
    if options.output is not None:
        result = {
            "machine": machine(), "model": options.model, "photos": options.n, "difference": apart,
            "ways": {way: [asdict(one) for one in runs_] for way, runs_ in found.items()},
            "starts": starts, "exponent": slope, "sizes": sizes, "growth": [asdict(one) for one in runs],
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
