"""What the shipped networks' features are worth: scores, retrieval and `unlike`, beside what needs no training.

    python benchmarks/in_the_box.py DATA PHOTOS WEIGHTS -o in_the_box.json

DATA: the rated photos with their images. PHOTOS: unrated photos; those listed in tools/pocket/left_out.txt, which the
pocket network has not seen, are used. WEIGHTS: of mobilenetv2_100.

Features: hand-made statistics (handmade.py); the pocket network untrained, and as shipped; mobilenetv2_100 as the model
`standard` uses it. On each: ridge, kernel ridge (parameters chosen inside the training part, baselines.py) and the
recipe `votes`, on the columns fold_random and fold_theme; one seed for `votes` unless --seeds says otherwise.
Retrieval: of each `imagen` photo the 4 most alike among the others of that part: the share of its own category.
Unlike: AUROC of 1 - the nearest likeness in the pool, photos of `bsds500` against pictures that are none.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baselines import BASELINES
from baselines import crossvalidate as crossvalidate_baseline
from doubt import auroc
from handmade import of_pictures
from milnet.annotations import load_table
from milnet.backbones import load_backbone
from milnet.evaluation import crossvalidate, find_same_photos
from milnet.extraction import Extractor
from milnet.features import FeatureSet
from milnet.places import bundled
from milnet.preprocess import Preprocess
from milnet.recipe import RECIPES
from milnet.results import summarise
from milnet.splits import find_folds
from non_photos import make
from timing import machine

SHOWN = ("srcc", "plcc", "emd2")
LEFT_OUT = Path(__file__).parents[1] / "tools" / "pocket" / "left_out.txt"
NAMES = ("hand-made", "untrained pocket", "pocket", "mobilenetv2_100")


def extractor(name: str, weights: str) -> Extractor:
    """What turns photos into the features of a row, as the shipped models do."""
    model = "standard" if name == "mobilenetv2_100" else "pocket"
    config = json.loads((bundled(model) / "manifest.json").read_text())["config"]["features"]["nodes"]["extraction"]
    where = {"pocket": "cached", "untrained pocket": "random:0", "mobilenetv2_100": weights}[name]
    backbone = load_backbone(config["backbone"], where)
    return Extractor.build(backbone, Preprocess(**config["preprocess"]), workers=1)


def numbers(name: str, pictures: list[Any], weights: str) -> tuple[NDArray[np.float32], slice]:
    """Features [N, D] of paths or images, and the columns that retrieval reads."""
    if name == "hand-made":
        found = of_pictures(pictures)
        # likeness of numbers in different units needs one unit: deviations over these photos
        return (found - found.mean(0)) / (found.std(0) + 1e-9), slice(None)
    made = extractor(name, weights)
    found = np.empty((len(pictures), made.backbone.width), np.float32)
    for result in made.stream(enumerate(pictures)):
        if result.error is not None:
            raise result.error
        found[result.key] = result.features
    return found, slice(*made.backbone.ranges["last"])


def measure(data: Path, folder: Path, name: str, method: str, kind: str, seed: int) -> dict[str, Any]:
    """One method on one set of features and one kind of folds."""
    torch.set_num_threads(1)
    table, _ = load_table(data)
    features = feature_set(folder, name)
    group = table.groups[0] if kind == "theme" else None
    folds = find_folds(table, f"fold_{kind}", group=group)
    if method == "votes":
        predictions, _ = crossvalidate(RECIPES["votes"], table, features, folds, [seed])
    else:
        baseline = next(one for one in BASELINES if one.name == method)
        same = find_same_photos(table, features).pairs
        predictions, _ = crossvalidate_baseline(baseline, table, features, folds, same)
    found = summarise(table, predictions, group=group)
    return {
        "features": name, "method": method, "kind": kind, "seed": seed,
        **{metric: [found[metric][part] for part in ("mean", "low", "high")] for metric in SHOWN},
    }  # fmt: skip


def feature_set(folder: Path, name: str) -> FeatureSet:
    """What `main` has put down."""
    with np.load(folder / f"{name}.npz") as file:
        values, pixels, first, end = file["values"], file["pixels"], int(file["span"][0]), int(file["span"][1])
    config = {
        role: {"name": name, "digest": name, "span": span, "extraction": {"ranges": {"last": [first, end]}}}
        for role, span in (("semantic", [first, end]), ("nodes", [0, values.shape[1]]))
    }
    readable = np.ones(len(values), np.bool_)
    return FeatureSet(values[:, first:end], values, tuple(pixels.tolist()), readable, config)


def precision(features: NDArray[np.float32], categories: list[str]) -> float:
    """Share of the 4 most alike (cosine) that are of the photo's own category."""
    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    likeness = x @ x.T
    np.fill_diagonal(likeness, -np.inf)
    names = np.array(categories)
    return float((names[np.argsort(-likeness, axis=1)[:, :4]] == names[:, None]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(machine())
    table, _ = load_table(options.data)
    rated = [table.image_path(row) for row in range(len(table))]
    left_out = [line for line in LEFT_OUT.read_text().splitlines() if not line.startswith("#")]
    imagen = [options.photos / line for line in left_out if line.startswith("imagen/")]
    scenes = [options.photos / line for line in left_out if line.startswith("bsds500/")]
    categories = [path.name.split("_")[0] for path in imagen]
    no_photos = list(make(200).values())
    digests = [Preprocess(320)(path)[1] for path in rated]
    result: dict[str, Any] = {"machine": machine(), "retrieval": {}, "unlike": {}, "scores": []}
    folder = options.output.with_suffix(".features")
    folder.mkdir(exist_ok=True)
    for name in options.only:
        every, span = numbers(name, [*rated, *imagen, *scenes, *no_photos], options.weights)
        ends = np.cumsum([len(rated), len(imagen), len(scenes)])
        own, found, real, other = np.split(every[:, span], ends)
        np.savez(
            folder / f"{name}.npz",
            values=every[: len(rated)].astype(np.float16),
            pixels=np.array(digests),
            span=np.array([span.start or 0, span.stop or every.shape[1]]),
        )
        result["retrieval"][name] = precision(found, categories)
        pool = own / np.linalg.norm(own, axis=1, keepdims=True)
        nearest = [((x / np.linalg.norm(x, axis=1, keepdims=True)) @ pool.T).max(1) for x in (other, real)]
        result["unlike"][name] = auroc(*nearest)
        print(f"{name}: precision at 4 {result['retrieval'][name]:.3f}, unlike AUROC {result['unlike'][name]:.3f}")
    methods = [("ridge", 0), ("kernel_ridge", 0), *(("votes", seed) for seed in range(options.seeds))]
    jobs = list(product(options.only, methods, ("random", "theme")))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as executor:
        futures = [
            executor.submit(measure, options.data, folder, name, method, kind, seed)
            for name, (method, seed), kind in jobs
        ]
        for future in futures:
            row = future.result()
            result["scores"].append(row)
            cells = "  ".join("{} {:.3f} [{:.3f}, {:.3f}]".format(metric, *row[metric]) for metric in SHOWN)
            print(f"{row['features']:18} {row['method']:13} {row['kind']:7} {cells}", flush=True)
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
