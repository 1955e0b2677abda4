"""A capacity model: what each step of scoring costs a photo on one core, and what that makes of very many photos.

    python benchmarks/capacity.py IMAGES --weights mobilenetv2_100.safetensors -o capacity.json
    python benchmarks/capacity.py --from capacity.json --price-core 0.04 --price-gpu 2.5

Measured, one thread each, rounds in turn: decoding with both resizes and the technical values (photos as they are, and
12-megapixel JPEGs made of them), the forward pass, judging (references, votes, parts of the score), writing. The rest
is arithmetic and says so: core-hours = photos x seconds; a GPU forward pass = its floating-point operations at the
sustained rate given by --gpu-tflops; cost = hours x price; the time of a cluster = the slowest step over its workers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from milnet.backbones import load_backbone
from milnet.bulk import score_all, write_folder
from milnet.extraction import Extractor
from milnet.images import open_photo
from milnet.library import find_photos
from milnet.outputs import write_scores
from milnet.preprocess import Decoded, Preprocess, decode
from milnet.scoring import Score, Scorer, Seen
from milnet.sources import Here, Photos
from timing import machine

COUNTS = (1_000_000, 100_000_000, 5_000_000_000)
HOUR = 3600.0
OTHERS = {"resnet50 (320)": ("resnet50", Preprocess()), "mlsp (640x480)": ("mlsp", Preprocess(1024, "original", 1))}


def rate(step: Callable[[], object], photos: int, rounds: int) -> list[float]:
    """Seconds a photo in each round, after one that warms up."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        step()
        found.append((time.perf_counter() - began) / photos)
    return found[1:]


def operations(extractor: Extractor, group: list[tuple[int, Decoded]]) -> float:
    """Floating-point operations of the forward pass of one photo, at all its sizes."""
    with FlopCounterMode(display=False) as counter:
        extractor.forward(group)
    return float(counter.get_total_flops() / extractor.batch)


def forward(extractor: Extractor, views: Sequence[Decoded], rounds: int) -> tuple[list[float], float]:
    """Seconds a photo in full batches of one shape, and operations a photo."""
    shape = views[0].views[0].shape
    alike = [one for one in views if one.views[0].shape == shape]
    groups = [
        list(enumerate(alike[start : start + extractor.batch]))
        for start in range(0, len(alike) - extractor.batch + 1, extractor.batch)
    ]
    flops = operations(extractor, groups[0])
    return rate(lambda: [extractor.forward(group) for group in groups], len(groups) * extractor.batch, rounds), flops


def written(scores: Sequence[Score], values: Sequence[float], rounds: int) -> dict[str, tuple[list[float], float]]:
    """Seconds and bytes a photo of each format."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "jsonl", "parquet"):
            path = Path(folder) / f"scores.{suffix}"
            seconds = rate(lambda path=path: write_scores(path, scores, values), len(scores), rounds)  # type: ignore[misc]
            found[suffix] = (seconds, path.stat().st_size / len(scores))
    return found


def driven(scorer: Scorer, files: Sequence[Path], rounds: int) -> list[float]:
    """Seconds a photo of what one process does for all workers: shards to places, bursts and a folder of Parquet."""
    photos = Photos()
    for number in range(5 * len(files)):
        photos.add_file(f"{number:06}.jpg", str(files[number % len(files)]))
    with tempfile.TemporaryDirectory() as folder:
        part, output = Path(folder) / "part", Path(folder) / "scores"
        score_all(scorer, photos, part, Here())

        def finish() -> None:
            bulk = score_all(scorer, photos, part, Here())  # every shard is there
            shutil.rmtree(output, ignore_errors=True)
            write_folder(output, bulk, [], bulk.chosen())

        return rate(finish, len(photos), rounds)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    found = find_photos([str(options.images)]).photos
    files = [found[i] for i in np.random.default_rng(0).permutation(len(found))[: options.photos]]
    steps: dict[str, list[float]] = {}
    flops: dict[str, float] = {}
    sizes = {"photo as it is": statistics.mean(file.stat().st_size for file in files)}
    large = []
    for file in files[: max(4, options.photos // 10)]:
        buffer = io.BytesIO()
        open_photo(file).pixels.resize((4000, 3000), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        large.append(buffer.getvalue())
    sizes["12-megapixel JPEG"] = statistics.mean(map(len, large))
    models = ["pocket", *(["standard"] if options.weights else [])]
    for name in models:
        weights = options.weights if name == "standard" else None
        scorer = Scorer.load(name, weights=weights, workers=0)
        extractor = scorer.nodes
        how, look = extractor.preprocess, extractor.look
        steps[f"{name}: decode, photo as it is"] = rate(
            lambda how=how, look=look: [decode(file, how, look) for file in files],  # type: ignore[misc]
            len(files), options.rounds,
        )  # fmt: skip
        steps[f"{name}: decode, 12-megapixel JPEG"] = rate(
            lambda how=how, look=look: [decode(photo, how, look) for photo in large],  # type: ignore[misc]
            len(large), options.rounds,
        )  # fmt: skip
        decoded = [decode(file, how, look) for file in files]
        some = decoded if name == "pocket" else decoded[: max(8, len(decoded) // 8)]
        steps[f"{name}: forward"], flops[name] = forward(extractor, some, options.rounds)
        group = list(enumerate(some[: extractor.batch]))
        numbers = [extractor.forward(group)[0]] * 16
        seen = [Seen(one.features, one.features, one.pixels) for one in numbers if one.features is not None]
        steps[f"{name}: judge, pool of {len(scorer.pool):,}"] = rate(
            lambda scorer=scorer, seen=seen: scorer.judge(["a.jpg"] * 16, seen),  # type: ignore[misc]
            16, 4 * options.rounds,
        )  # fmt: skip
        if name == "pocket":
            for suffix, (seconds, size) in written(scorer.score(files), scorer.values.tolist(), options.rounds).items():
                steps[f"write {suffix}"], sizes[f"score in {suffix}"] = seconds, size
            steps["one process for all workers: shards to a folder"] = driven(scorer, files, options.rounds)
        sizes[f"{name}: features (float16)"] = 2.0 * extractor.backbone.width
    for name, (backbone, preprocess) in OTHERS.items() if options.others else ():
        extractor = Extractor.build(load_backbone(backbone, "random:0"), preprocess, workers=0)
        one = decode(np.zeros((480, 640, 3), np.uint8), preprocess)
        steps[f"{name}: forward"], flops[name] = forward(extractor, [one] * extractor.batch, options.rounds)
    return {"machine": machine(), "photos": len(files), "seconds": steps, "flops": flops, "bytes": sizes}


def show(data: dict[str, Any], options: argparse.Namespace) -> None:
    """The measured rates, then what they make of very many photos."""
    print(data["machine"])
    seconds = {name: statistics.median(rounds) for name, rounds in data["seconds"].items()}
    print(f"\nMeasured on one core, {data['photos']} photos; milliseconds a photo, photos/s (range over rounds)")
    for name, rounds in data["seconds"].items():
        print(f"  {name:<42} {1e3 * seconds[name]:9.3f} ms {1 / seconds[name]:9.1f}/s", end="")
        print(f"  ({1 / max(rounds):.1f} .. {1 / min(rounds):.1f})")
    for name, size in data["bytes"].items():
        print(f"  {name:<42} {size:12,.0f} bytes")
    for name, flops in data["flops"].items():
        speed = flops / 1e9 / seconds[f"{name}: forward"]
        print(f"  {name:<42} {flops / 1e9:12.2f} GFLOP a photo; on one core {speed:.0f} GFLOP/s")
    models = [name.partition(":")[0] for name in seconds if ": judge" in name]
    print(
        f"\nArithmetic from these: {options.price_core:g} a core-hour, {options.price_gpu:g} a GPU-hour with "
        f"{options.gpu_tflops:g} TFLOP/s sustained; output as Parquet; {options.cores:,} cores"
    )
    for model in models:
        judge = next(value for name, value in seconds.items() if name.startswith(f"{model}: judge"))
        for kind in ("photo as it is", "12-megapixel JPEG"):
            parts = {
                "decode": seconds[f"{model}: decode, {kind}"],
                "forward": seconds[f"{model}: forward"],
                "judge": judge,
                "write": seconds["write parquet"],
            }
            core = sum(parts.values())
            worst = max(parts, key=lambda name: parts[name])
            share = parts[worst] / core
            print(f"\n{model}, {kind}: {1e3 * core:.1f} core-ms a photo; the most is {worst} ({share:.0%})")
            gpu = data["flops"][model] / (options.gpu_tflops * 1e12)
            rest = core - parts["forward"]
            print(
                f"  with a GPU for the forward pass: {1e6 * gpu:.0f} us of it a photo (arithmetic); it needs "
                f"{rest / gpu:,.0f} cores to decode, judge and write as fast"
            )
            heads = ("photos", "core-hours", "cost", "days", "GPU-hours", "+ core-hours", "cost", "TB read", "TB out")
            print("  " + " ".join(f"{head:>13}" for head in heads))
            for count in COUNTS:
                hours, gpu_hours, rest_hours = count * core / HOUR, count * gpu / HOUR, count * rest / HOUR
                cells = (
                    f"{count:,}",
                    f"{hours:,.0f}",
                    f"{hours * options.price_core:,.0f}",
                    f"{hours / options.cores / 24:.2f}",
                    f"{gpu_hours:,.1f}",
                    f"{rest_hours:,.0f}",
                    f"{gpu_hours * options.price_gpu + rest_hours * options.price_core:,.0f}",
                    f"{count * data['bytes'][kind] / 1e12:,.1f}",
                    f"{count * data['bytes']['score in parquet'] / 1e12:,.2f}",
                )
                print("  " + " ".join(f"{cell:>13}" for cell in cells))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--weights", help="of mobilenetv2_100, for `standard`")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", action="store_true", help="also time resnet50 and InceptionResNetV2 (extra timm)")
    parser.add_argument("--price-core", type=float, default=0.04, help="of a core-hour, in any currency")
    parser.add_argument("--price-gpu", type=float, default=2.5, help="of a GPU-hour")
    parser.add_argument("--gpu-tflops", type=float, default=30.0, help="sustained, float32")
    parser.add_argument("--cores", type=int, default=1000, help="of the cluster whose days are told")
    parser.add_argument("--from", dest="source", type=Path, help="figures of an earlier run")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    if (options.images is None) == (options.source is None):
        parser.error("expected either IMAGES to measure with, or --from FILE of an earlier run")
    data = measure(options) if options.source is None else json.loads(options.source.read_text(encoding="utf-8"))
    if options.output is not None:
        options.output.write_text(json.dumps(data, indent=1), encoding="utf-8")
    show(data, options)


if __name__ == "__main__":
    main()
