"""One person's taste against the general model, on real people.

    python benchmarks/taste.py bundled ratings.csv --features pocket --work taste -o taste-pocket.json

RATINGS has a line `rater,image,rating` for each vote of DATA. Of each rater 60 rated photos are held back, and taste
learns from 10, 30, 60 and 100 of the others (each set within the next), as `milnet taste` does. Shown is the mean over
raters of the rank correlation with their own ratings of the 60, of

    general   the recipe `votes`, which has seen neither the photo (5 folds) nor any vote of this rater
    alone     the person's ratings without a general model
    both      what `milnet taste` makes: the person's ratings beside the general model
    crowd     the mean vote of all the others on those very photos: the best of what is the same for everybody

The networks of `general` are trained and tuned without the rater's block (10 blocks of raters); from the votes of its
pool the rater's own are taken off exactly, the prediction being linear in them. What is left of the rater is how many
votes a photo has, which says nothing of what they were. Two ways to hold photos back:

    random    any 60 photos; the general model's folds are the column fold_random
    theme     whole themes, none of which is among the rated photos; fold_theme, so that the general model has no photo
              of the theme either (of some raters 97 to 99 photos are left to learn from)

The numbers of `taste.Prior` were chosen with the 200 raters of --raters develop (--sweep shows what else they might
be); the default is 200 others. Networks are kept in WORK as they are finished, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import FloatArray, IntArray, Table, load_table
from milnet.artifacts import atomic_path, digest_file, write_json
from milnet.errors import AnnotationError
from milnet.evaluation import find_references, find_same_photos
from milnet.features import FeatureSet, load_feature_set
from milnet.metrics import interval, srcc
from milnet.model.votes import Votes, with_mean
from milnet.places import find_data
from milnet.pool import RatedPool
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.splits import Split, find_folds, without_twins
from milnet.taste import ALONE, Beside, Prior, likeness, one_vote, points, taste_of

BLOCKS, FOLDS, UNSEEN = 10, 5, 60
COUNTS = (10, 30, 60, 100)
KINDS = ("random", "theme")
EACH = 200  # raters to develop on, and to report on
WAYS = ("general", "alone", "both", "crowd")


@dataclass(frozen=True)
class Raters:
    """`ratings` [R, N], NaN where a rater has not rated a photo; `block` [R]; `names` [R]."""

    names: tuple[str, ...]
    ratings: FloatArray
    block: IntArray

    def chosen(self, which: str) -> IntArray:
        """The raters to develop on or to report on, of those who did not rate all photos alike."""
        order = np.random.default_rng(0).permutation(len(self.names))
        varied = np.nanmin(self.ratings, axis=1) < np.nanmax(self.ratings, axis=1)
        some = order[varied[order]]
        return np.asarray(some[:EACH] if which == "develop" else some[EACH : 2 * EACH], np.int64)


def read_ratings(path: Path, table: Table) -> Raters:
    """The ratings of a csv file; AnnotationError unless they are the table's votes one by one."""
    row_of = {id_: row for row, id_ in enumerate(table.ids)}
    names: dict[str, int] = {}
    lines: list[tuple[int, int, float]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            rater = names.setdefault(line["rater"], len(names))
            lines.append((rater, row_of[line["image"].rpartition(".")[0]], float(line["rating"])))
    ratings = np.full((len(names), len(table)), np.nan)
    for rater, row, rating in lines:
        ratings[rater, row] = rating
    votes = np.stack([(ratings == value).sum(0) for value in table.values], axis=1)
    if not np.array_equal(votes, table.votes):
        raise AnnotationError("these ratings are not the votes of DATA", file=path)
    block = np.empty(len(names), np.int64)
    block[np.random.default_rng(0).permutation(len(names))] = np.arange(len(names)) % BLOCKS
    return Raters(tuple(names), ratings, block)


def without_block(table: Table, raters: Raters, block: int) -> Table:
    """The table without the votes of a block of raters."""
    theirs = raters.ratings[raters.block == block]
    taken = np.stack([(theirs == value).sum(0) for value in table.values], axis=1)
    return replace(table, votes=table.votes - taken)


def load(data: Path, features: str) -> tuple[Table, FeatureSet]:
    """DATA with one of its extractions."""
    table, _ = load_table(data)
    return table, load_feature_set(data, table, semantic=features, nodes=features)


def cell(work: Path, features: str, kind: str, block: int, fold: int) -> Path:
    """Where the network that has not seen a block of raters and a fold of photos is kept."""
    return work / f"{features}-{kind}-{block}-{fold}.npz"


def train(
    data: Path, ratings: Path, work: Path, features: str, settings: list[str], kind: str, block: int, fold: int
) -> None:
    """Train one network, unless it is there, and keep what its predictions are made of, as arrays."""
    path = cell(work, features, kind, block, fold)
    if path.exists():
        return
    torch.set_num_threads(1)
    table, chosen = load(data, features)
    table = without_block(table, read_ratings(ratings, table), block)
    folds = find_folds(table, f"fold_{kind}", group=table.groups[0] if kind == "theme" else None)
    test = np.flatnonzero(folds.codes == fold)
    learned, _ = without_twins(np.flatnonzero(folds.codes != fold), test, find_same_photos(table, chosen).pairs)
    model = fit(load_recipe("votes", settings), table, chosen, Split(learned, test, folds.group), 0)
    found = linear(model, table, chosen, test)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, rows=test, pool=learned, base=found["base"], own=found["own"], weight=found["weight"])


def linear(model: Model, table: Table, features: FeatureSet, rows: IntArray) -> dict[str, NDArray[Any]]:
    """What predictions are made of: base [S] + own [n, S] + weight [n, P] times the pool's (votes - base)."""
    network = model.network
    assert isinstance(network, Votes) and model.recipe.whole
    references = find_references(model, table, features, rows)
    batch = model.samples(model.numbers(features, rows), references).batch(np.arange(len(rows)))
    with torch.inference_mode():
        parts = network.parts(batch.photo, batch.pool, batch.index, batch.keep)
    return {"base": network.base.numpy(), "own": parts.own.numpy(), "weight": parts.weight.numpy()}


def predicted(kept: dict[str, NDArray[Any]], votes: NDArray[Any]) -> FloatArray:
    """Distributions [n, S] by a kept network, beside the `votes` [P, S] of its pool."""
    shares = votes / votes.sum(1, keepdims=True)
    raw = kept["base"] + kept["own"] + kept["weight"] @ (shares - kept["base"])
    p = with_mean(torch.from_numpy(raw)).numpy()
    return np.asarray(p / p.sum(1, keepdims=True))


def general(work: Path, features: str, kind: str, table: Table, raters: Raters, rater: int) -> FloatArray:
    """What the general model says of every photo [N, S], without the photo and without the rater."""
    own = raters.ratings[rater]
    votes = table.votes - (own[:, None] == table.values)
    found = np.full(table.votes.shape, np.nan)
    for fold in range(FOLDS):
        with np.load(cell(work, features, kind, int(raters.block[rater]), fold), allow_pickle=False) as data:
            kept = dict(data)
        found[kept["rows"]] = predicted(kept, votes[kept["pool"]])
    return found


def draw(table: Table, raters: Raters, rater: int, kind: str) -> tuple[IntArray, IntArray]:
    """Rated photos [up to 100] in the order they are taken, and the unseen ones [60]."""
    rng = np.random.default_rng([rater, KINDS.index(kind)])
    have = np.flatnonzero(np.isfinite(raters.ratings[rater]))
    if kind == "random":
        order = rng.permutation(have)
        return order[UNSEEN : UNSEEN + COUNTS[-1]], order[:UNSEEN]
    theme = table.codes(table.groups[0])[have]
    held = np.empty(0, np.int64)
    for one_theme in rng.permutation(np.unique(theme)):
        held = np.concatenate([held, have[theme == one_theme]])
        if len(held) >= UNSEEN:
            break
    return rng.permutation(np.setdiff1d(have, held))[: COUNTS[-1]], rng.permutation(held)[:UNSEEN]


def correlated(a: FloatArray, b: FloatArray) -> float:
    """Rank correlation, 0 where one is constant: nothing was told apart."""
    found = srcc(a, b)
    return found if np.isfinite(found) else 0.0


def off(p: FloatArray, true: FloatArray, values: FloatArray) -> float:
    """Ranked probability score of distributions [n, S] for single ratings [n], lower is better: squared EMD, r = 2."""
    gap = np.cumsum(p, axis=1) - (true[:, None] <= values)
    return float((gap[:, :-1] ** 2).mean())


def measure(data: Path, ratings: Path, work: Path, features: str, kind: str, some: list[int]) -> list[dict[str, Any]]:
    """What is found of some raters, a dictionary for each."""
    torch.set_num_threads(1)
    table, chosen = load(data, features)
    raters, values = read_ratings(ratings, table), table.values
    with_features = shape(table, chosen)
    where = points(with_features, chosen.nodes, chosen.semantic)
    return [
        one(
            table,
            chosen,
            raters,
            with_features,
            where,
            general(work, features, kind, table, raters, r),
            kind,
            r,
            values,
        )
        for r in some
    ]


def shape(table: Table, features: FeatureSet) -> Model:
    """A model that knows the moments and usual distances of the features, and has learned nothing of any vote."""
    nothing = replace(table, votes=np.ones_like(table.votes))
    rows = np.arange(len(table))
    return fit(load_recipe("votes", ["epochs=1"]), nothing, features, Split(rows, rows[:0]), 0)


def one(
    table: Table,
    features: FeatureSet,
    raters: Raters,
    model: Model,
    where: FloatArray,
    p: FloatArray,
    kind: str,
    rater: int,
    values: FloatArray,
) -> dict[str, Any]:
    """Everything about one rater, [4] for the counts of ratings."""
    own, (rated, unseen) = raters.ratings[rater], draw(table, raters, rater, kind)
    scores, true = p @ values, own[unseen]
    others = (table.votes @ values - np.nan_to_num(own)) / (table.totals - np.isfinite(own))
    usual = (float(scores.mean()), float(scores.std()))
    found: dict[str, Any] = {way: [] for way in (*WAYS, "covered", "half-width", "off", "off general", "off shares")}
    found |= {"verdict": [], "gain": [], "seconds": []}
    for n in COUNTS:
        some = rated[:n]
        pool = pool_of(table, features, some, own, values)
        began = time.perf_counter()
        taste = taste_of(model, pool, values, p[some], usual)
        found["seconds"].append(time.perf_counter() - began)
        near = likeness(where[unseen], where[some])
        q = taste.judge(p[unseen], near, np.ones(near.shape, np.bool_)).distribution
        low, high = taste.doubt.within(
            q @ values, np.sqrt(variance(q, values)), nearest(features, unseen, some), values
        )
        shares = np.broadcast_to(one_vote(own[some], values).mean(0), q.shape)
        found["general"].append(correlated(true, scores[unseen]))
        found["alone"].append(correlated(true, alone(own[some], where[some], near, values)))
        found["both"].append(correlated(true, q @ values))
        found["crowd"].append(correlated(true, others[unseen]))
        found["covered"].append(float(((low <= true) & (true <= high)).mean()) if np.isfinite(low).all() else None)
        found["half-width"].append(float((high - low).mean() / 2) if np.isfinite(low).all() else None)
        for name, said in (("off", q), ("off general", p[unseen]), ("off shares", shares)):
            found[name].append(off(said, true, values))
        found["verdict"].append(taste.checked.beats)
        found["gain"].append(taste.checked.difference)
    # ratings that belong to other photos: nothing can be learned from them
    shuffled = own.copy()
    shuffled[some] = np.random.default_rng([rater, 7]).permutation(own[some])
    taste = taste_of(model, pool_of(table, features, some, shuffled, values), values, p[some], usual)
    q = taste.judge(p[unseen], near, np.ones(near.shape, np.bool_)).distribution
    found["shuffled"] = {
        "both": correlated(true, q @ values),
        "alone": correlated(true, alone(shuffled[some], where[some], near, values)),
        "verdict": taste.checked.beats,
        "checked alone": taste.checked.alone,
    }
    return found


def pool_of(table: Table, features: FeatureSet, rows: IntArray, own: FloatArray, values: FloatArray) -> RatedPool:
    """A person's rated photos."""
    return RatedPool(
        ids=tuple(table.ids[row] for row in rows),
        pixels=tuple(features.pixels[row] for row in rows),
        groups=("",) * len(rows),
        distributions=one_vote(own[rows], values),
        totals=np.ones(len(rows)),
        semantic=np.asarray(features.semantic[rows]),
        nodes=np.asarray(features.nodes[rows]),
        rows=np.arange(len(rows)),
    )


def alone(ratings: FloatArray, where: FloatArray, near: FloatArray, values: FloatArray) -> FloatArray:
    """Scores of photos with likeness `near` [m, n] from a person's ratings [n] alone."""
    nothing = np.zeros(len(near))
    machine = Beside(ALONE, np.zeros(len(ratings)), likeness(where, where))
    mean = machine.expected(machine.a, ratings, values)
    return np.asarray(mean[0] + machine.weights(nothing, near) @ (ratings - mean))


def nearest(features: FeatureSet, queries: IntArray, pool: IntArray) -> FloatArray:
    """Semantic cosine of each query to the most similar of the pool."""
    x = np.asarray(features.semantic, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray((x[queries] @ x[pool].T).max(1))


def variance(p: FloatArray, values: FloatArray) -> FloatArray:
    """Of distributions [n, S], [n]."""
    return np.asarray((p @ values**2 - (p @ values) ** 2).clip(0))


def told(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over raters with 95 % bootstrap intervals over raters, by count of ratings.

    What was checked is NaN of a rater whose few ratings are all alike (`milnet taste` refuses those).
    """
    rng = np.random.default_rng(0)
    samples = rng.integers(0, len(found), (2000, len(found)))

    def mean(x: NDArray[Any]) -> list[float]:
        low, high = interval(np.nanmean(x[samples], axis=1))
        return [float(np.nanmean(x)), low, high]

    summary: dict[str, Any] = {"raters": len(found)}
    for place, n in enumerate(COUNTS):
        at: dict[str, NDArray[Any]] = {way: np.array([one[way][place] for one in found]) for way in WAYS}
        said: dict[str, Any] = {way: mean(x) for way, x in at.items()}
        gain = at["both"] - at["general"]
        said |= {"both - general": mean(gain), "both - alone": mean(at["both"] - at["alone"])}
        said |= {
            "raters better": mean((gain > 0).astype(float)),
            "share of crowd": mean(at["both"])[0] / mean(at["crowd"])[0],
        }
        for name in ("off", "off general", "off shares", "covered", "half-width"):
            numbers = [one[name][place] for one in found]
            said[name] = None if None in numbers else mean(np.array(numbers))
        verdict = np.array([one["verdict"][place] for one in found])
        said["told that it beats"] = mean(verdict.astype(float))
        said["gain of those"] = float(gain[verdict].mean()) if verdict.any() else None
        said["gain of the others"] = float(gain[~verdict].mean()) if not verdict.all() else None
        said["gain as checked"] = mean(np.array([one["gain"][place] for one in found], float))
        said["seconds"] = float(np.median([one["seconds"][place] for one in found]))
        summary[str(n)] = said
    general = np.array([one["general"][-1] for one in found])
    for name in ("both", "alone", "checked alone"):
        summary[f"shuffled, {name}"] = mean(np.array([one["shuffled"][name] for one in found], float))
    summary["shuffled, both - general"] = mean(np.array([one["shuffled"]["both"] for one in found]) - general)
    summary["shuffled, told that it beats"] = mean(np.array([one["shuffled"]["verdict"] for one in found], float))
    return summary


def show(kind: str, summary: dict[str, Any]) -> None:
    """Print a summary."""
    print(f"\n{kind}: {summary['raters']} raters, mean [95 % over raters]")
    for name in summary["10"]:
        line = f"  {name:20s}"
        for n in COUNTS:
            x = summary[str(n)][name]
            text = "-" if x is None else f"{x:.4f}" if isinstance(x, float) else f"{x[0]:.4f} [{x[1]:+.3f} {x[2]:+.3f}]"
            line += f"{text:>26s}"
        print(line)
    for name, x in summary.items():
        if name.startswith("shuffled"):
            print(f"  {name:40s} {x[0]:+.4f} [{x[1]:+.4f} {x[2]:+.4f}]")


SWEEP = {
    "signal": (0.1, 0.2, 0.4, 0.8), "noise": (0.4, 0.65, 1.0), "slope": (0.0, 0.3, 0.46, 0.6, 1.0),
    "slope_variance": (0.0, 0.005, 0.02, 0.1, 0.5), "level_variance": (0.01, 1.0, 100.0),
}  # fmt: skip


def sweep(data: Path, ratings: Path, work: Path, features: str, kind: str, some: list[int]) -> dict[str, list[float]]:
    """Mean rank correlation of both, by count of ratings, with one number of `Prior` changed."""
    table, chosen = load(data, features)
    raters, values = read_ratings(ratings, table), table.values
    where = points(shape(table, chosen), chosen.nodes, chosen.semantic)
    between = likeness(where, where)
    priors = {f"{name} {x:g}": replace(Prior(), **{name: x}) for name, xs in SWEEP.items() for x in xs}
    found: dict[str, list[list[float]]] = {name: [] for name in priors}
    for rater in some:
        p = general(work, features, kind, table, raters, rater)
        a, own = (p @ values - (p @ values).mean()) / (p @ values).std(), raters.ratings[rater]
        rated, unseen = draw(table, raters, rater, kind)
        for name, prior in priors.items():
            line = []
            for n in COUNTS:
                rows = rated[:n]
                machine = Beside(prior, a[rows], between[np.ix_(rows, rows)])
                weight = machine.weights(a[unseen], between[np.ix_(unseen, rows)])
                gap = own[rows] - machine.expected(a[rows], own[rows], values)
                line.append(correlated(own[unseen], machine.expected(a[unseen], own[rows], values) + weight @ gap))
            found[name].append(line)
    return {name: np.mean(lines, axis=0).tolist() for name, lines in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--features", default="pocket", help="the features of DATA to use (default pocket)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--raters", choices=("develop", "report"), default="report")
    parser.add_argument("--first", type=int, help="only so many of them")
    parser.add_argument("--sweep", action="store_true", help="change the numbers of Prior one by one instead")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="field=value of the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--work", type=Path, required=True, help="where networks are kept")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    data = find_data(options.data)
    table, _ = load_table(data)
    raters = read_ratings(options.ratings, table)
    chosen = raters.chosen(options.raters)[: options.first]
    blocks = sorted({int(raters.block[r]) for r in chosen})
    began = time.monotonic()
    results: dict[str, Any] = {
        "kind": "taste",
        "date": datetime.date.today().isoformat(),
        "features": options.features,
        "ratings": digest_file(options.ratings),
        "raters": [raters.names[r] for r in chosen],
        "prior": Prior().__dict__,
    }
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        cells = list(itertools.product(options.kinds, blocks, range(FOLDS)))
        how = (data, options.ratings, options.work, options.features)
        jobs = [workers.submit(train, *how, options.settings, kind, block, fold) for kind, block, fold in cells]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            if done % 25 == 0 or done == len(jobs):
                print(f"{done} of {len(jobs)} networks, {time.monotonic() - began:.0f} s", flush=True)
        for kind in options.kinds:
            parts = [part.tolist() for part in np.array_split(chosen, options.jobs)]
            if options.sweep:
                found = sweep(*how, kind, chosen.tolist())
                print(f"\n{kind}: both at {', '.join(map(str, COUNTS))} ratings, {options.features}")
                for name, line in found.items():
                    print(f"  {name:22s}" + "".join(f"{x:9.4f}" for x in line))
                results[kind] = found
                continue
            each = [one for part in workers.map(partial(measure, *how, kind), parts) for one in part]
            results[kind] = told(each) | {"each": each}
            show(kind, results[kind])
    print(f"\n{time.monotonic() - began:.0f} s")
    write_json(options.output, results)


if __name__ == "__main__":
    main()
