"""What grows with what: the time of scoring against the number of photos, of the pool, and of references.

    python benchmarks/growth.py -o growth.json
    python benchmarks/growth.py --photos 1000,3000,10000 --pool 1000,10000,100000 --references 4,16,64,256

Photos are drawn (soft coloured noise, every one different, 400x300, JPEG); `milnet score` runs on them from start to
end, without its cache, in a process of its own whose largest resident memory is told. Pools are synthetic: clustered
features of width 1,280 and made votes; a `votes` model and a `published` one find the references of 64 photos among
them and predict. Rounds run through all sizes in turn. An exponent is the slope of log time over log size by least
squares: 1 is linear. `--start` seconds are what a command with one photo takes, and are taken off before the fit.
Pools of millions, and approximate indexes, are in pools.py; many processes in cluster.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milnet.doubt import Doubt
from milnet.explanation import explain
from milnet.pool import RatedPool
from milnet.recipe import RECIPES, make_network
from milnet.recipes import Model
from retrieval import clustered
from speed import timed
from timing import machine

WIDTH, BINS, ASKED = 1280, 7, 64
KINDS = {"votes": 64, "published": 4}  # references by default


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def draw(folder: Path, first: int, count: int) -> None:
    """JPEGs of soft coloured noise, numbered from `first`."""
    for number in range(first, first + count):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(
            folder / f"{number:06}.jpg", quality=85
        )


def of_photos(sizes: list[int], model: str, rounds: int) -> dict[str, Any]:
    """Seconds and megabytes of whole commands."""
    found: dict[int, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {}
        for size in (1, *sizes):
            folders[size] = Path(name) / str(size)
            folders[size].mkdir()
            draw(folders[size], 0, size)
        for _ in range(rounds):
            for size, folder in folders.items():
                output = str(Path(name) / "scores.csv")
                command = ["score", str(folder), "--model", model, "--no-cache", "-o", output]
                found.setdefault(size, []).append(timed(command))
    start = min(seconds for seconds, _ in found.pop(1))
    middle = [statistics.median(seconds for seconds, _ in found[size]) for size in sizes]
    return {
        "sizes": sizes,
        "seconds": {size: [seconds for seconds, _ in found[size]] for size in sizes},
        "megabytes": {size: max(memory for _, memory in found[size]) for size in sizes},
        "start": start,
        "exponent": exponent(sizes, [max(seconds - start, 1e-3) for seconds in middle]),
    }


def make(kind: str, size: int, references: int, features: NDArray[Any] | None = None) -> Model:
    """An untrained model of a recipe with a synthetic pool: it costs what a trained one costs."""
    features = clustered(size, WIDTH, max(10, size // 50), 0) if features is None else features
    generator = np.random.default_rng(size)
    votes = generator.integers(1, 30, (size, BINS)).astype(np.float64)
    recipe = RECIPES[kind].resolve(1_000_000)
    recipe = type(recipe).of({**recipe.__dict__, "references": references, "reducer": None})
    network = make_network(recipe, WIDTH, BINS, 0)
    sample = features[:1000].astype(np.float32)
    network.standardise.set(*(_tensor(moment) for moment in (sample.mean(0), sample.std(0))))
    pool = RatedPool(
        ids=tuple(map(str, range(size))),
        pixels=("",) * size,
        groups=("",) * size,
        distributions=votes / votes.sum(1, keepdims=True),
        totals=votes.sum(1),
        semantic=features,
        nodes=features,
        rows=np.arange(size),
    )
    return Model(
        recipe=recipe, network=network.eval(), values=np.arange(1.0, BINS + 1), pool=pool, features={}, seen=(), seed=0,
        table_name="made", threshold=4.0, side=">=", group=None, epochs=0, history=[], doubt=Doubt(), inputs={},
    )  # fmt: skip


def _tensor(moment: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(moment, np.float32))


def judged(model: Model) -> float:
    """Seconds to find the references of 64 new photos and to predict beside them."""
    new = clustered(ASKED, WIDTH, 10, 1).astype(np.float32)
    began = time.perf_counter()
    explain(model, new, model.find(new))
    return time.perf_counter() - began


def of_pool(kind: str, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Seconds for 64 photos, the first call apart: it makes the pool ready."""
    models = {size: make(kind, size, KINDS[kind]) for size in sizes}
    first = {size: judged(model) for size, model in models.items()}
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, model in models.items():
            found[size].append(judged(model))
    middle = [statistics.median(found[size]) for size in sizes]
    return {"sizes": sizes, "seconds": found, "first": first, "exponent": exponent(sizes, middle)}


def of_references(kind: str, sizes: list[int], pool: int, rounds: int) -> dict[str, Any]:
    """The same against the number of references."""
    models = {size: make(kind, pool, size) for size in sizes}
    for model in models.values():
        judged(model)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, model in models.items():
            found[size].append(judged(model))
    middle = [statistics.median(found[size]) for size in sizes]
    return {"sizes": sizes, "seconds": found, "exponent": exponent(sizes, middle)}


def show(title: str, found: dict[str, Any]) -> None:
    """Median seconds at each size, and the exponent."""
    print(f"\n{title}: exponent {found['exponent']:.2f}")
    for size in found["sizes"]:
        rounds = found["seconds"][size]
        line = f"  {size:>9,}  {statistics.median(rounds):9.3f} s ({min(rounds):.3f} .. {max(rounds):.3f})"
        if "megabytes" in found:
            line += f", most memory {found['megabytes'][size]:,.0f} MB"
        if "first" in found:
            line += f", the first call {found['first'][size]:.3f} s"
        print(line)
    if "start" in found:
        print(f"  one photo, start and end: {found['start']:.1f} s, taken off before the fit")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser.add_argument("--photos", type=numbers, default=[1000, 3000, 10_000])
    parser.add_argument("--pool", type=numbers, default=[1000, 10_000, 100_000])
    parser.add_argument("--references", type=numbers, default=[4, 16, 64, 256])
    parser.add_argument("--among", type=int, default=20_000, help="photos in the pool while references grow")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rounds", type=int, default=5, help="of pools and references; of photos 1")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    print(machine())
    found: dict[str, Any] = {}
    for kind, references in KINDS.items():
        if options.pool:
            name = f"{kind}, {references} references: {ASKED} photos against pool photos"
            found[name] = of_pool(kind, options.pool, options.rounds)
            show(name, found[name])
    if options.references:
        name = f"votes, pool of {options.among:,}: {ASKED} photos against references"
        found[name] = of_references("votes", options.references, options.among, options.rounds)
        show(name, found[name])
    if options.photos:
        name = f"milnet score --model {options.model} --no-cache: whole commands against photos"
        found[name] = of_photos(options.photos, options.model, 1)
        show(name, found[name])
    if options.output is not None:
        options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
