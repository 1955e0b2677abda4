"""How far the doubt of `votes` can be trusted: interval, spread and unlike, on photos that no part has learned from.

    milnet features DATA --backbone timm/mobilenetv2_100 --weights FILE --size 224,320,448,576,704 --name sizes
    python benchmarks/doubt.py DATA --features sizes --weights FILE -o doubt

Folds: the columns fold_random and fold_theme, and nine further assignments of each kind (seeds 1 to 9). Every training
is kept in OUT as it is finished, so that a stopped run goes on; the report is made of what is there at the end.

    interval   share of held-out photos whose mean vote lies within it, of all and of each third of the photos by its
               width; its mean half-width beside the constant one that holds as many of the same photos
    spread     correlation with the deviation of the votes, and mean error, before (deviation of the predicted
               distribution) and after calibration
    unlike     share of held-out photos, and of the 200 pictures of non_photos.py, that it flags; AUROC of what it ranks
               by (the nearest cosine), and of what else could be ranked by: the mean of the 4 nearest cosines, what the
               references leave open (v of model/votes.py), the largest likeness k

Each figure is the mean over the assignments, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from joint import KINDS, one_fold
from milnet.annotations import FloatArray, Table, deviation, load_table
from milnet.artifacts import atomic_path
from milnet.doubt import UNLIKE
from milnet.evaluation import find_references
from milnet.extraction import load_extractor
from milnet.features import load_feature_set
from milnet.metrics import plcc, srcc
from milnet.model.votes import Votes
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.references import References
from non_photos import KINDS as NON_PHOTOS
from non_photos import make

RANKED = {"nearest": 1, "nearest 4": 1, "open": -1, "likeness": 1}  # 1: higher is more like the pool


@dataclass(frozen=True)
class Cell:
    """One training and its test photos. `assignment` 0 is the column of DATA, others are made with that seed."""

    features: str
    kind: str
    assignment: int
    fold: int

    @property
    def name(self) -> str:
        return f"{self.features}-{self.kind}-{self.assignment}-{self.fold}.npz"


def extract(data: Path, out: Path, name: str, weights: str, count: int) -> None:
    """Features of the non-photos, as the photos' were made, unless they are there."""
    path = out / f"{name}-non-photos.npz"
    if path.exists():
        return
    table, _ = load_table(data)
    config = load_feature_set(data, table, semantic=name, nodes=name).config
    extractor = load_extractor(config["nodes"]["extraction"], weights, workers=0)
    pictures = make(count)
    found: dict[str, Any] = {result.key: result.features for result in extractor.stream(pictures.items())}
    rows = np.stack([found[key] for key in pictures])
    parts: dict[str, Any] = {
        role: rows[:, slice(*part["span"])] for role, part in config.items() if role in ("semantic", "nodes")
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, kinds=np.array([key.partition("-")[0] for key in pictures]), **parts)


def train(data: Path, out: Path, cell: Cell, group: str, settings: tuple[str, ...]) -> str:
    """Do one cell, unless it is there."""
    path = out / cell.name
    if path.exists():
        return "found"
    torch.set_num_threads(1)
    table, features, split = one_fold(data, cell.features, cell.kind, cell.assignment, cell.fold, group)
    test = split.test
    began = time.perf_counter()
    model = fit(load_recipe("votes", settings), table, features, split, 0, calibrate=True)
    seconds = time.perf_counter() - began
    found: dict[str, Any] = seen(model, model.numbers(features, test), find_references(model, table, features, test))
    with np.load(out / f"{cell.features}-non-photos.npz", allow_pickle=False) as others:
        strange = seen(model, others["nodes"], model.find(others["semantic"]))
    found |= {f"non-photo {name}": x for name, x in strange.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, rows=test, seconds=np.array(seconds), **found)
    return f"{seconds:.1f} s"


def seen(model: Model, nodes: NDArray[Any], references: References | None) -> dict[str, NDArray[Any]]:
    """What a model says of photos, [n] each: as the scorer does, and how like the pool they are in four ways."""
    assert references is not None and isinstance(model.network, Votes)
    doubt, similarity = model.doubt, references.similarity
    p = model.predict(nodes, references)
    scores, deviations, nearest = p @ model.values, deviation(p, model.values), similarity[:, 0]
    low, high = doubt.within(scores, deviations, nearest, model.values)
    batch = model.samples(nodes, references).batch(np.arange(len(nodes)))
    assert batch.pool is not None and batch.keep is not None
    with torch.inference_mode():
        open_ = model.network.consult(batch.photo, batch.pool, batch.index, batch.keep).open
        likeness = model.network.likeness(model.network.embed(batch.photo), model.network.embed(batch.pool.nodes))
    return {
        "score": scores,
        "deviation": deviations,
        "low": low,
        "high": high,
        "spread": doubt.spread(deviations),
        "unlike": doubt.unlike(nearest),
        "nearest": nearest,
        "nearest 4": similarity[:, :4].mean(1),
        "open": open_.numpy(),
        "likeness": (likeness * batch.keep).amax(1).numpy(),
    }


def auroc(lower: NDArray[Any], higher: NDArray[Any]) -> float:
    """Probability that one of `higher` is above one of `lower`, ties half."""
    ranks = rankdata(np.concatenate([lower, higher]))[len(lower) :]
    return float((ranks.mean() - (len(higher) + 1) / 2) / len(lower))


def width_of(scores: FloatArray, half: float, values: FloatArray) -> float:
    """Mean half-width of intervals score +- `half`, cut to the values as those of the model are."""
    low, high = (scores + sign * half for sign in (-1, 1))
    return float((high.clip(values[0], values[-1]) - low.clip(values[0], values[-1])).mean() / 2)


def measure(table: Table, folds: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of one assignment from its folds."""
    whole = {name: np.concatenate([fold[name] for fold in folds]) for name in folds[0] if folds[0][name].ndim}
    rows, true = whole["rows"], table.scores[whole["rows"]]
    within = (whole["low"] <= true) & (true <= whole["high"])
    width = (whole["high"] - whole["low"]) / 2
    errors = np.sort(np.abs(whole["score"] - true))
    constant = width_of(whole["score"], errors[max(int(within.sum()) - 1, 0)], table.values)
    found = {
        "srcc": srcc(true, whole["score"]),
        "coverage": within.mean(),
        **{
            f"coverage, {name}": within[some].mean()
            for name, some in zip(
                ("narrow", "middle", "wide"), np.array_split(np.argsort(width, kind="stable"), 3), strict=True
            )
        },
        "half-width": width.mean(),
        "constant half-width": constant,
        "their ratio": width.mean() / constant,
        "half-width, tenth percentile": np.quantile(width, 0.1),
        "half-width, ninetieth percentile": np.quantile(width, 0.9),
        "width and |error|, SRCC": srcc(width, np.abs(whole["score"] - true)),
        "spread before, correlation": plcc(table.spreads[rows], whole["deviation"]),
        "spread after, correlation": plcc(table.spreads[rows], whole["spread"]),
        "spread before, bias": (whole["deviation"] - table.spreads[rows]).mean(),
        "spread after, bias": (whole["spread"] - table.spreads[rows]).mean(),
        "spread before, |error|": np.abs(whole["deviation"] - table.spreads[rows]).mean(),
        "spread after, |error|": np.abs(whole["spread"] - table.spreads[rows]).mean(),
        "flagged, held-out": (whole["unlike"] > UNLIKE).mean(),
    }
    kinds = folds[0]["kinds"]
    for kind in ("all", *NON_PHOTOS):  # each fold has a pool of its own
        some = np.full(len(kinds), True) if kind == "all" else kinds == kind
        found[f"flagged, {kind}"] = np.mean([(fold["non-photo unlike"][some] > UNLIKE).mean() for fold in folds])
    for ranked, sign in RANKED.items():
        for kind in ("all", *NON_PHOTOS):
            some = np.full(len(kinds), True) if kind == "all" else kinds == kind
            pairs = [(-sign * fold[ranked], -sign * fold[f"non-photo {ranked}"][some]) for fold in folds]
            found[f"AUROC of {ranked}, {kind}"] = np.mean([auroc(photos, strange) for photos, strange in pairs])
        # what it would flag at the threshold that flags as many of the held-out photos as `unlike` should
        cuts = [np.quantile(-sign * fold[ranked], UNLIKE) for fold in folds]
        shares = [(-sign * fold[f"non-photo {ranked}"] > cut).mean() for fold, cut in zip(folds, cuts, strict=True)]
        found[f"flagged by {ranked} at {1 - UNLIKE:.0%} of the held-out"] = np.mean(shares)
    found["non-photos, half-width"] = np.mean(
        [((fold["non-photo high"] - fold["non-photo low"]) / 2).mean() for fold in folds]
    )
    return {name: float(x) for name, x in found.items()}


def report(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Print the table; returns what it holds."""
    summary: dict[str, Any] = {}
    with np.load(options.output / f"{options.features}-non-photos.npz", allow_pickle=False) as data:
        kinds = data["kinds"]
    seconds: list[float] = []
    for kind in KINDS:
        each: list[dict[str, float]] = []
        for assignment in range(options.assignments + 1):
            folds = []
            for fold in range(5):
                path = options.output / Cell(options.features, kind, assignment, fold).name
                with np.load(path, allow_pickle=False) as data:
                    folds.append({**data, "kinds": kinds})
                seconds.append(float(folds[-1]["seconds"]))
            each.append(measure(table, folds))
        summary[kind] = {name: [one[name] for one in each] for name in each[0]}
    print(f"\n{options.features}, {options.assignments + 1} assignments: mean (lowest .. highest)")
    print(f"{'':44s}" + "".join(f"{kind:>28s}" for kind in KINDS))
    for name in summary[KINDS[0]]:
        line = f"{name:44s}"
        for kind in KINDS:
            found = summary[kind][name]
            line += f"{np.mean(found):10.4f} ({min(found):7.4f} ..{max(found):7.4f})"
        print(line)
    print(f"one calibrated fit: median {np.median(seconds):.1f} s, highest {max(seconds):.1f} s (one thread)")
    return summary


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", required=True, help="the features of DATA to learn from")
    parser.add_argument("--weights", required=True, help="weights of their backbone, for the non-photos")
    parser.add_argument("--group", default="theme")
    parser.add_argument("--assignments", type=int, default=9, help="further assignments of each kind (default 9)")
    parser.add_argument("--quick", action="store_true", help="one further assignment alone")
    parser.add_argument("--pictures", type=int, default=200, help="non-photos (default 200)")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="field=value of the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--report", action="store_true", help="only the report of what is there")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.quick:
        options.assignments = 1
    options.output.mkdir(exist_ok=True)
    table, _ = load_table(options.data)
    if not options.report:
        extract(options.data, options.output, options.features, options.weights, options.pictures)
        todo = [
            Cell(options.features, kind, assignment, fold)
            for assignment, kind, fold in itertools.product(range(options.assignments + 1), KINDS, range(5))
        ]
        began, settings = time.monotonic(), tuple(options.settings)
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
            jobs = [workers.submit(train, options.data, options.output, cell, options.group, settings) for cell in todo]
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if done % 10 == 0 or done == len(jobs):
                    print(f"{done} of {len(jobs)} trainings, {time.monotonic() - began:.0f} s", flush=True)
    summary = report(options, table)
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
