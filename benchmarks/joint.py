"""Joint learning against what it must beat: recipe `votes`, its ablations, and the rest, on the same folds.

    milnet features DATA --backbone timm/mobilenetv2_100 --weights FILE --size 224,320,448,576,704 --name sizes
    milnet features DATA --backbone timm/mobilenetv2_100 --weights FILE --name w320
    python benchmarks/joint.py DATA --features sizes --also w320 -o joint

Folds: the columns fold_random and fold_theme, and further assignments of each kind (seeds 1, 2, 3). Every training is
kept in OUT as it is finished, so that a stopped run goes on; the report is made of what is there at the end.

Rows, each predicted out of fold:
    single        the photo alone                        published   the paper's graph over photo and 4 references
    votes         the recipe, whole pool                 K=8, K=32   beside so many references instead of the pool
    alone (K=0)   its own network, no references         permuted    the pool's votes shuffled at test time
    zeroed        references' features set to 0          unlearned   no own network, likeness and noise as before
                                                                     learning (g = 1, noise = 0.1)
    kernel ridge  RBF over the whole pool; gamma and ridge by leave-one-out (-group-out) inside the training part:
                  `last` is the one of the data's reference numbers, `last+taps` has the parts that votes has
    stack         half kernel ridge (last+taps), half the mean of four seeds' `single`
What was tried on the way was tried on the photos of half of the groups (`set_aside`), by cross-validation among them;
so the main rows are reported on the others too.

`single` is trained as the own network of `votes` is (same seeds), so that its predictions are those of K=0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milnet import splits
from milnet.annotations import FloatArray, IntArray, Table, load_table
from milnet.artifacts import atomic_path
from milnet.evaluation import find_references, find_same_photos
from milnet.explanation import explain
from milnet.features import Features, FeatureSet, load_feature_set
from milnet.metrics import emd_rows, srcc
from milnet.model.votes import Votes
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.references import References
from milnet.splits import Split
from resolutions import crossvalidated, squared_distances

KINDS = ("random", "theme")
LOSSES = 3  # seeds of the comparison of losses


@dataclass(frozen=True)
class Cell:
    """One training and its test photos. `assignment` 0 is the column of DATA, others are made with that seed."""

    features: str
    recipe: str
    loss: str
    kind: str
    assignment: int
    seed: int
    fold: int

    @property
    def name(self) -> str:
        return "-".join(str(x).replace("/", "_") for x in vars(self).values()) + ".npz"


def folds_of(table: Table, kind: str, assignment: int, group: str) -> IntArray:
    """Fold of each photo, [N]."""
    if assignment == 0:
        return splits.find_folds(table, f"fold_{kind}").codes
    groups = table.codes(group) if kind == "theme" else None
    return splits.make_folds(len(table), 5, assignment, groups)


def set_aside(table: Table, group: str) -> NDArray[np.bool_]:
    """Whether a photo [N] is of one of the groups that choices were made on: half of them, drawn once."""
    codes = table.codes(group)
    groups = np.unique(codes)
    return np.isin(codes, np.random.default_rng(2026).permutation(groups)[: len(groups) // 2])


def one_fold(
    data: Path, name: str, kind: str, assignment: int, fold: int, group: str
) -> tuple[Table, FeatureSet, Split]:
    """The table, its features `name`, and the photos to learn from and to test on, twins of test photos left out."""
    table, _ = load_table(data)
    features = load_feature_set(data, table, semantic=name, nodes=name)
    codes = folds_of(table, kind, assignment, group)
    test = np.flatnonzero((codes == fold) & features.readable)
    same = find_same_photos(table, features).pairs
    train, _ = splits.without_twins(np.flatnonzero(codes != fold), test, same)
    return table, features, Split(train, test, group if kind == "theme" else None)


def train(data: Path, out: Path, cell: Cell, group: str) -> str:
    """Do one cell, unless it is there."""
    path = out / cell.name
    if path.exists():
        return "found"
    torch.set_num_threads(1)
    table, features, split = one_fold(data, cell.features, cell.kind, cell.assignment, cell.fold, group)
    test, recipe = split.test, load_recipe(cell.recipe, [f"loss={cell.loss}"])
    began = time.perf_counter()
    model = fit(recipe, table, features, split, cell.seed)
    seconds = time.perf_counter() - began
    nodes = model.numbers(features, test)
    references = find_references(model, table, features, test)
    found: dict[str, Any] = {"rows": test, cell.recipe: model.predict(nodes, references), "seconds": seconds}
    if isinstance(model.network, Votes):
        found |= ablations(model, nodes, table, features, test)
        if (cell.assignment, cell.seed) == (0, 0):
            found["changes"] = mirrored(model, nodes, references)
        found["unlearned"] = unlearned(model, nodes, table, features, test)  # last: it changes the network
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **found)
    return f"{seconds:.1f} s"


def ablations(model: Model, nodes: Any, table: Table, features: FeatureSet, test: IntArray) -> dict[str, Any]:
    """Predictions of one fitted model with something taken away."""
    rng, pool = np.random.default_rng(0), model.pool
    references = find_references(model, table, features, test)
    assert references is not None
    found: dict[str, Any] = {"alone": model.predict(nodes, None), "nearest": references.similarity[:, 0]}
    for k in (8, 32):
        few = replace(model, recipe=replace(model.recipe, references=k))
        found[f"K={k}"] = few.predict(nodes, find_references(few, table, features, test))
    order = rng.permutation(len(pool))
    shuffled = replace(pool, distributions=pool.distributions[order], totals=pool.totals[order])
    found["permuted"] = replace(model, pool=shuffled).predict(nodes, references)
    found["zeroed"] = replace(
        model, pool=replace(pool, nodes=np.zeros((len(pool), nodes.shape[1]), np.float16), rows=np.arange(len(pool)))
    ).predict(nodes, references)

    return found


def mirrored(model: Model, nodes: Any, references: References | None) -> FloatArray:
    """Predicted and real change [n, 4] of the score when the votes of the most influential reference are mirrored.

    The last two columns: of a random reference.
    """
    assert references is not None
    rng, pool, parts = np.random.default_rng(0), model.pool, explain(model, nodes, references)
    scores = parts.distribution @ model.values
    pool_scores, middle = pool.distributions @ model.values, model.values[[0, -1]].sum()
    changes = np.zeros((len(scores), 4))
    for photo in range(len(scores)):
        places = np.flatnonzero(references.index[photo] >= 0)
        top = places[np.argmax(np.abs(parts.influence[photo, places]))]
        for column, place in ((0, top), (2, rng.choice(places))):
            who = references.index[photo, place]
            votes = pool.distributions.copy()
            votes[who] = votes[who, ::-1]
            share = parts.influence[photo, place] / (pool_scores[who] - parts.base[photo])
            one = References(references.index[[photo]], references.similarity[[photo]])
            other = replace(model, pool=replace(pool, distributions=votes))
            after = (other.predict(nodes[[photo]], one) @ model.values)[0]
            changes[photo, column : column + 2] = share * (middle - 2 * pool_scores[who]), after - scores[photo]
    return changes


def unlearned(model: Model, nodes: Any, table: Table, features: FeatureSet, test: IntArray) -> FloatArray:
    """From the votes alone, with likeness and noise as they are before learning."""
    network = model.network
    assert isinstance(network, Votes)
    network.sharpness.fill_(1.0)
    network.noise.fill_(0.1)
    samples = model.samples(nodes, find_references(model, table, features, test))
    batch = samples.batch(np.arange(len(test)))
    with torch.inference_mode():
        weight = network.consult(batch.photo, batch.pool, batch.index, batch.keep).weight
        p: FloatArray = network.mixed(network.beside(weight, batch.pool, batch.index)).numpy()
    return p


def cells(options: argparse.Namespace) -> list[Cell]:
    """All trainings, the most wanted first."""
    assignments = range(options.assignments + 1)
    wanted = [
        Cell(options.features, "votes", "emd", kind, assignment, seed, fold)
        for seed, assignment, kind, fold in itertools.product(range(options.seeds), assignments, KINDS, range(5))
    ]
    for loss in ("emd", "adaptive_emd", "published_adaemd"):
        for recipe in ("votes", "published"):
            wanted += [
                Cell(options.features, recipe, loss, kind, 0, seed, fold)
                for seed, kind, fold in itertools.product(range(min(LOSSES, options.seeds)), KINDS, range(5))
            ]
    wanted += [
        Cell(features, "votes", "emd", kind, assignment, seed, fold)
        for features in options.also
        for seed, assignment, kind, fold in itertools.product(range(options.seeds), assignments, KINDS, range(5))
    ]
    return list(dict.fromkeys(wanted))


def kernel_ridge(data: Path, out: Path, table: Table, features: str, parts: str, options: argparse.Namespace) -> None:
    """Out-of-fold distributions for every assignment, kept like the cells."""
    path = out / f"{features}-kernel-{parts}.npz"
    if path.exists():
        return
    stored = Features(data / "features" / features, table)
    distance = []
    for part in parts.split("+"):
        x = np.asarray(stored.values[:, slice(*stored.span(part))], np.float64)
        distance.append(squared_distances(x if part == "last" else (x - x.mean(0)) / (x.std(0) + 1e-6)))
    same = find_same_photos(table, load_feature_set(data, table, semantic=features, nodes=features)).pairs
    found: dict[str, Any] = {}
    for kind, assignment in itertools.product(KINDS, range(options.assignments + 1)):
        groups = table.codes(options.group) if kind == "theme" else np.arange(len(table))
        codes = folds_of(table, kind, assignment, options.group)
        found[f"{kind}-{assignment}"] = crossvalidated(table, np.mean(distance, axis=0), codes, groups, same)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **found)


class Collected:
    """The predictions of a finished run: `get(row, features, loss, kind, assignment, seed)` -> [N, S]."""

    def __init__(self, out: Path, table: Table) -> None:
        self.out, self.table = out, table
        self.kept: dict[str, dict[str, Any]] = {}

    def cell(self, cell: Cell) -> dict[str, Any]:
        if cell.name not in self.kept:
            with np.load(self.out / cell.name, allow_pickle=False) as data:
                self.kept[cell.name] = dict(data)
        return self.kept[cell.name]

    def get(self, row: str, features: str, loss: str, kind: str, assignment: int, seed: int) -> FloatArray:
        if row.startswith("kernel ridge"):
            with np.load(self.out / f"{features}-kernel-{row.split()[-1]}.npz", allow_pickle=False) as data:
                kernel: FloatArray = data[f"{kind}-{assignment}"]
            return kernel
        if row == "stack":
            count = len(list(self.out.glob(f"{features}-votes-{loss}-{kind}-{assignment}-?-0.npz")))
            own = [self.get("single", features, loss, kind, assignment, one) for one in range(min(4, count))]
            ridge = self.get("kernel ridge last+taps", features, loss, kind, assignment, 0)
            return np.asarray((np.mean(own, axis=0) + ridge) / 2)
        name = {"single": "alone"}.get(row, row)
        found: FloatArray = np.full_like(self.table.distributions, np.nan)
        recipe = "published" if row == "published" else "votes"
        for fold in range(5):
            data = self.cell(Cell(features, recipe, loss, kind, assignment, seed, fold))
            found[data["rows"]] = data[name]
        return found


def compare(
    table: Table,
    first: list[FloatArray],
    second: list[FloatArray],
    clusters: IntArray,
    seed: int = 0,
    draws: int = 1000,
) -> dict[str, tuple[float, float, float]]:
    """Mean difference in SRCC and EMD2 of two lists of predictions, with 95 % bootstrap intervals over clusters."""
    true, values = table.distributions, table.values
    scores = table.scores
    rows_of = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    a, b = [p @ values for p in first], [p @ values for p in second]
    gain = np.mean([emd_rows(true, p, 2) - emd_rows(true, q, 2) for p, q in zip(first, second, strict=True)], axis=0)
    rng, drawn = np.random.default_rng(0), []

    def difference(rows: IntArray) -> float:
        return float(
            np.mean([srcc(scores[rows], x[rows]) - srcc(scores[rows], y[rows]) for x, y in zip(a, b, strict=True)])
        )

    for _ in range(draws):
        rows = np.concatenate([rows_of[c] for c in rng.integers(0, len(rows_of), len(rows_of))])
        drawn.append((difference(rows), gain[rows].mean()))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    whole = np.arange(len(scores))
    return {
        "srcc": (difference(whole), float(low[0]), float(high[0])),
        "emd2": (float(gain.mean()), float(low[1]), float(high[1])),
    }


def report(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Print the tables; returns what they hold."""
    collected, groups = Collected(options.output, table), table.codes(options.group)
    every, seeds = list(range(options.assignments + 1)), list(range(options.seeds))
    summary: dict[str, Any] = {"rows": [], "comparisons": []}

    def runs(row: str, features: str, loss: str, kind: str, of: list[int]) -> list[FloatArray]:
        # what no seed decides is repeated, so that every list pairs up
        some = seeds[:LOSSES] if of == [0] else seeds
        return [collected.get(row, features, loss, kind, a, s) for a, s in itertools.product(of, some)]

    def show(row: str, features: str, loss: str, of: list[int], some: IntArray | None = None) -> None:
        some = np.arange(len(table)) if some is None else some
        line = f"{row:24s} {features:8s} {loss:16s}"
        for kind in KINDS:
            found = runs(row, features, loss, kind, of)
            s = [srcc(table.scores[some], p[some] @ table.values) for p in found]
            e = float(np.mean([emd_rows(table.distributions[some], p[some], 2).mean() for p in found]))
            line += f" | {kind} {np.mean(s):.4f} (sd {np.std(s):.4f}) {e:.4f}"
            summary["rows"].append(
                {"row": row, "features": features, "loss": loss, "kind": kind, "assignments": len(of),
                 "photos": len(some), "srcc": float(np.mean(s)), "sd": float(np.std(s)), "emd2": e}
            )  # fmt: skip
        print(line, flush=True)

    print(f"\nSRCC (sd over assignments and seeds) EMD2; {len(every)} assignments, {len(seeds)} seeds")
    for features in [*options.also, options.features]:
        for row in ("kernel ridge last", "kernel ridge last+taps", "single", "stack", "votes"):
            show(row, features, "emd", every)
    for row in ("K=8", "K=32", "alone", "permuted", "zeroed", "unlearned"):
        show(row, options.features, "emd", every)
    rest = np.flatnonzero(~set_aside(table, options.group))
    print(f"\nthe same on the {len(rest)} photos of the groups on which no choice was made")
    for features, row in itertools.product(
        [*options.also, options.features], ("kernel ridge last", "kernel ridge last+taps", "single", "votes")
    ):
        show(row, features, "emd", every, rest)
    print(f"\nthe columns of folds alone, {min(LOSSES, len(seeds))} seeds")
    for row in ("kernel ridge last", "kernel ridge last+taps"):
        show(row, options.features, "emd", [0])
    for row, loss in itertools.product(("single", "published", "votes"), ("emd", "adaptive_emd", "published_adaemd")):
        show(row, options.features, loss, [0])

    def against(title: str, first: tuple[str, str, str], second: tuple[str, str, str], of: list[int]) -> None:
        for kind in KINDS:
            found = compare(table, runs(*first, kind, of), runs(*second, kind, of), groups)
            text = "  ".join(
                f"{name} {d:+.4f} [{low:+.4f}, {high:+.4f}]{' *' if low * high > 0 else ''}"
                for name, (d, low, high) in found.items()
            )
            print(f"{title:58s} {kind:6s} {text}", flush=True)
            summary["comparisons"].append({"title": title, "kind": kind, **found})

    main_, base = options.features, options.also[0] if options.also else options.features
    print("\ndifferences, 95 % bootstrap over groups; SRCC: more is better, EMD2: less; * = 0 is outside")
    for features, other in dict.fromkeys([(main_, main_), (main_, base), (base, base)]):
        for row in ("single", "kernel ridge last", "kernel ridge last+taps", "stack"):
            title = f"votes ({features}) - {row} ({other})"
            against(title, ("votes", features, "emd"), (row, other, "emd"), every)
    for row in ("K=8", "K=32", "permuted", "zeroed", "unlearned"):
        against(f"votes - {row}", ("votes", main_, "emd"), (row, main_, "emd"), every)
    for row, loss in itertools.product(("single", "published", "votes"), ("adaptive_emd", "published_adaemd")):
        against(f"{row}: {loss} - emd", (row, main_, loss), (row, main_, "emd"), [0])
    against("votes - published", ("votes", main_, "emd"), ("published", main_, "emd"), [0])

    losses(table, runs, options, groups)
    curve(table, collected, options)
    influences(table, collected, options)
    times = [float(collected.cell(Cell(main_, "votes", "emd", k, 0, s, f))["seconds"])
             for k, s, f in itertools.product(KINDS, seeds, range(5))]  # fmt: skip
    print(f"\none fit of votes: median {np.median(times):.1f} s, highest {max(times):.1f} s (one thread)")
    return summary


def losses(table: Table, runs: Any, options: argparse.Namespace, groups: IntArray) -> None:
    """EMD2 of each loss on easy and hard photos, and on photos whose voters agree and disagree."""
    print("\nEMD2 and SRCC by third of the photos: emd, then what each adaptive loss changes (EMD2, 95 % bootstrap)")
    for kind, row in itertools.product(KINDS, ("single", "votes", "published")):
        easy = np.mean(
            [emd_rows(table.distributions, p, 2) for p in runs("single", options.features, "emd", kind, [0])], 0
        )
        for name, key in (("hard for single", easy), ("voters disagree", table.spreads)):
            order = np.argsort(key)
            for third, rows in zip(("low", "middle", "high"), np.array_split(order, 3), strict=True):
                some = table.take(rows)
                plain = [p[rows] for p in runs(row, options.features, "emd", kind, [0])]
                mean = np.mean([emd_rows(some.distributions, p, 2).mean() for p in plain])
                line = f"{row:9s} {kind:6s} {name:16s} {third:6s} {mean:.4f}"
                for loss in ("adaptive_emd", "published_adaemd"):
                    other = [p[rows] for p in runs(row, options.features, loss, kind, [0])]
                    d, low, high = compare(some, other, plain, groups[rows], draws=300)["emd2"]
                    line += f"  {loss} {d:+.4f} [{low:+.4f}, {high:+.4f}]{' *' if low * high > 0 else ''}"
                print(line, flush=True)


def curve(table: Table, collected: Collected, options: argparse.Namespace) -> None:
    """What the references give, by the similarity of the nearest one."""
    print("\nvotes - alone by the similarity of the nearest reference (both kinds of folds together)")
    near, error, score = [], [], []
    for kind, a, s in itertools.product(KINDS, range(options.assignments + 1), range(options.seeds)):
        similarity = np.full(len(table), np.nan)
        for fold in range(5):
            data = collected.cell(Cell(options.features, "votes", "emd", kind, a, s, fold))
            similarity[data["rows"]] = data["nearest"]
        p, alone = (collected.get(row, options.features, "emd", kind, a, s) for row in ("votes", "alone"))
        near.append(similarity)
        error.append(emd_rows(table.distributions, p, 2) - emd_rows(table.distributions, alone, 2))
        score.append(np.abs(p @ table.values - table.scores) - np.abs(alone @ table.values - table.scores))
    nearest, emd2, absolute = (np.concatenate(x) for x in (near, error, score))
    theme = np.tile(table.codes(options.group), len(near))
    edges = np.quantile(nearest, [0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1])
    rng = np.random.default_rng(0)
    for low, high in itertools.pairwise(edges):
        some = (nearest >= low) & (nearest <= high)
        codes, place = np.unique(theme[some], return_inverse=True)
        sums, counts = np.bincount(place, emd2[some]), np.bincount(place)
        picks = rng.integers(0, len(codes), (1000, len(codes)))
        drawn = sums[picks].sum(1) / counts[picks].sum(1)
        print(
            f"  {low:.3f} to {high:.3f}: EMD2 {emd2[some].mean():+.4f} "
            f"[{np.quantile(drawn, 0.025):+.4f}, {np.quantile(drawn, 0.975):+.4f}], "
            f"|error| of the score {absolute[some].mean():+.3f}"
        )


def influences(table: Table, collected: Collected, options: argparse.Namespace) -> None:
    """Whether mirrored votes move the score as the explanation says."""
    for kind in KINDS:
        found = np.concatenate(
            [collected.cell(Cell(options.features, "votes", "emd", kind, 0, 0, fold))["changes"] for fold in range(5)]
        )
        meant = np.abs(found[:, 0]) > 1e-6
        right = np.sign(found[meant, 0]) == np.sign(found[meant, 1])
        more = np.abs(found[:, 1]) > np.abs(found[:, 3])
        print(
            f"mirrored votes, {kind} folds: the score moves as predicted in {right.mean():.1%} of {meant.sum()} photos "
            f"(largest gap {np.abs(found[:, 0] - found[:, 1]).max():.4f}), by {np.abs(found[:, 1]).mean():.3f}; of a "
            f"random reference by {np.abs(found[:, 3]).mean():.3f}; more than the random one in {more.mean():.1%}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", required=True, help="the features that everything is measured on")
    parser.add_argument("--also", action="append", default=[], help="features for the first rows again")
    parser.add_argument("--group", default="theme")
    parser.add_argument("--assignments", type=int, default=3, help="further assignments of each kind")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--report", action="store_true", help="only the report of what is there")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.output.mkdir(exist_ok=True)
    table, _ = load_table(options.data)
    if not options.report:
        for features, parts in itertools.product([options.features, *options.also], ("last", "last+taps")):
            kernel_ridge(options.data, options.output, table, features, parts, options)
        began, todo = time.monotonic(), cells(options)
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
            jobs = [workers.submit(train, options.data, options.output, cell, options.group) for cell in todo]
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if done % 20 == 0 or done == len(jobs):
                    print(f"{done} of {len(jobs)} trainings, {time.monotonic() - began:.0f} s", flush=True)
    summary = report(options, table)
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
