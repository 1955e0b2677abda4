"""Simple predictors on the same photos, features, folds and metrics as `milnet crossvalidate`, to compare it with.

    python benchmarks/baselines.py DATA --folds fold_random --folds fold_theme -o baselines.json

    constant      the mean distribution of the training photos (pooled over folds its correlations are an artefact:
                  a fold with good photos leaves a lower mean for the others)
    ridge         ridge regression from the standardised node features
    neighbours    mean distribution of the k references, weighted by softmax(sharpness * cosine)
    kernel_ridge  kernel ridge regression over the whole pool, exp(-gamma * |x - y|^2) on semantic features of length 1

What is free (`grid` of each) is chosen for each fold by cross-validation inside its training part: 5 folds, grouped
where the folds never split a group, lowest mean EMD2. Both regressions predict the deviation from the mean
distribution; what falls below 0 is clipped and the rest brought to sum 1. A predictor gets a table in which every vote
but those of its training photos is NaN. All are deterministic, so one "seed" stands for each. The matrices have the
size of the training part squared: meant for up to some 10,000 photos.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve

from milnet import splits
from milnet.annotations import FloatArray, IntArray, Table, load_table
from milnet.evaluation import find_same_photos
from milnet.features import FeatureSet, load_feature_set, take_rows
from milnet.metrics import Task, check_distributions, emd_rows, paired_difference
from milnet.pool import RatedPool
from milnet.results import SCHEMA, Predictions, clusters, summarise, write_results
from milnet.splits import Folds, Split
from milnet.training import moments
from milnet.version import __version__
from timing import machine

INNER = 5  # folds inside a training part
SHOWN = ("srcc", "plcc", "emd2", "emd1", "accuracy")
Setting = Mapping[str, float]
Predict = Callable[[Table, FeatureSet, Split, Setting], FloatArray]  # distributions [n, S] of the rows `split.test`


def constant(table: Table, features: FeatureSet, split: Split, setting: Setting) -> FloatArray:
    """The mean distribution of the training part."""
    mean = table.take(split.train).distributions.mean(0)
    return np.tile(mean, (len(split.test), 1))


def ridge(table: Table, features: FeatureSet, split: Split, setting: Setting) -> FloatArray:
    """W minimises |Y - mean - X W|^2 + ridge * D * |W|^2, X [n, D] standardised on the training part."""
    mean, deviation = (x.double().numpy() for x in moments(features.nodes, split.train))
    scale = np.where(deviation > 0, deviation, 1.0)
    x, new = ((take_rows(features.nodes, rows) - mean) / scale for rows in (split.train, split.test))
    width = x.shape[1]
    return regression(x @ x.T / width, new @ x.T / width, table.take(split.train).distributions, setting["ridge"])


def kernel_ridge(table: Table, features: FeatureSet, split: Split, setting: Setting) -> FloatArray:
    """Every photo of the training part is a centre; of 0 similarity to all of them, a photo gets the mean."""
    x, new = (unit_rows(features, rows) for rows in (split.train, split.test))

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.asarray(np.exp(-setting["gamma"] * (2 - 2 * a @ b.T)))  # |a - b|^2 of two rows of length 1

    return regression(kernel(x, x), kernel(new, x), table.take(split.train).distributions, setting["ridge"])


def unit_rows(features: FeatureSet, rows: IntArray) -> FloatArray:
    """Semantic features of `rows`, brought to length 1, [n, D]."""
    x = take_rows(features.semantic, rows).astype(np.float64)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12))


def regression(among: FloatArray, across: FloatArray, targets: FloatArray, strength: float) -> FloatArray:
    """Ridge regression in its dual form: kernels `among` training photos [n, n] and `across` to the new ones [m, n]."""
    mean = targets.mean(0)
    weights = solve(among + strength * np.eye(len(among)), targets - mean, assume_a="pos")
    p = (mean + across @ weights).clip(0)  # each row sums to 1 before it is clipped, so to at least 1 after
    return np.asarray(p / p.sum(1, keepdims=True))


def neighbours(table: Table, features: FeatureSet, split: Split, setting: Setting) -> FloatArray:
    """The references are those of the recipes: nobody's twin, nobody of the same group where groups act."""
    pool = RatedPool.of(table, features, split.train, split.group)
    found = pool.find(
        take_rows(features.semantic, split.test),
        int(setting["k"]),
        ids=[table.ids[row] for row in split.test],
        pixels=[features.pixels[row] for row in split.test],
        groups=[table.column(split.group)[row] for row in split.test] if split.group else None,
    )
    # a place that could not be filled has similarity -inf, so weight 0
    weights = np.exp(setting["sharpness"] * (found.similarity - found.similarity[:, :1]).astype(np.float64))
    p = np.einsum("nk,nks->ns", weights, pool.distributions[found.index])
    return np.asarray(p / p.sum(1, keepdims=True))


@dataclass(frozen=True)
class Baseline:
    """A predictor and the values among which each of its settings is chosen."""

    name: str
    predict: Predict
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def settings(self) -> list[dict[str, float]]:
        """Every combination of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


BASELINES = (
    Baseline("constant", constant),
    Baseline("ridge", ridge, {"ridge": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}),
    Baseline("neighbours", neighbours, {"k": (4, 8, 16, 32), "sharpness": (5, 10, 20, 40)}),
    Baseline("kernel_ridge", kernel_ridge, {"gamma": (0.5, 1, 2, 4), "ridge": (0.03, 0.1, 0.3, 1)}),
)


def predict_blind(baseline: Baseline, table: Table, features: FeatureSet, split: Split, setting: Setting) -> FloatArray:
    """`baseline.predict` with a table that holds no votes but those of the training part."""
    votes = np.full_like(table.votes, np.nan)
    votes[split.train] = table.votes[split.train]
    p = baseline.predict(replace(table, votes=votes), features, split, setting)
    check_distributions(p)
    return p


def choose(
    baseline: Baseline, table: Table, features: FeatureSet, train: IntArray, group: str | None, same: NDArray[np.int64]
) -> dict[str, float]:
    """The setting with the lowest EMD2 in a cross-validation inside `train`; of equals the first of the grid."""
    settings = baseline.settings()
    if len(settings) == 1:
        return settings[0]
    codes = splits.make_folds(len(train), INNER, 0, table.codes(group)[train] if group else None)
    true = table.take(train).distributions
    errors = np.zeros((len(settings), len(train)))
    for fold in range(INNER):
        inside, _ = splits.without_twins(train[codes != fold], train[codes == fold], same)
        split = Split(inside, train[codes == fold], group)
        for i, setting in enumerate(settings):
            p = predict_blind(baseline, table, features, split, setting)
            errors[i, codes == fold] = emd_rows(true[codes == fold], p, 2)
    return settings[int(errors.mean(1).argmin())]


def crossvalidate(
    baseline: Baseline, table: Table, features: FeatureSet, folds: Folds, same: NDArray[np.int64]
) -> tuple[Predictions, list[dict[str, float]]]:
    """Each fold predicted from the others, and the setting chosen for each; the rows are those of `milnet`'s own."""
    tested = np.flatnonzero((folds.codes >= 0) & features.readable)
    found = np.full((1, len(tested), len(table.values)), np.nan)
    chosen = []
    for fold in range(len(folds.names)):
        test = tested[folds.codes[tested] == fold]
        train, _ = splits.without_twins(np.flatnonzero((folds.codes != fold) & features.readable), test, same)
        chosen.append(choose(baseline, table, features, train, folds.group, same))
        found[0, folds.codes[tested] == fold] = predict_blind(
            baseline, table, features, Split(train, test, folds.group), chosen[-1]
        )
    return Predictions(tested, folds.codes[tested], folds.names, (0,), found), chosen


def read_predictions(path: Path, table: Table, rows: IntArray, names: Sequence[str]) -> list[FloatArray] | None:
    """The runs [n, S] of a predictions.csv, a seed each, in the order of `rows`; None when its folds are others.

    `names` [n]: the fold in which each of `rows` was tested.
    """
    import polars

    frame = polars.read_csv(path, schema_overrides={"photo": polars.String, "fold": polars.String})
    columns = [f"p_{value:g}" for value in table.values]
    missing = {"photo", "fold", "seed", *columns} - set(frame.columns)
    if missing:
        raise SystemExit(f"{path} is no predictions.csv of {table.name}: it has no column {', '.join(sorted(missing))}")
    wanted = {table.ids[row]: name for row, name in zip(rows, names, strict=True)}
    runs = []
    for _, part in sorted(frame.partition_by("seed", as_dict=True).items()):
        if len(part) != len(wanted) or dict(zip(part["photo"], part["fold"], strict=True)) != wanted:
            return None
        at = {photo: i for i, photo in enumerate(part["photo"])}
        order = [at[table.ids[row]] for row in rows]
        runs.append(part.select(columns).cast(polars.Float64).to_numpy()[order])
    return runs


def measure(
    baseline: Baseline,
    table: Table,
    features: FeatureSet,
    folds: Folds,
    same: NDArray[np.int64],
    against: Sequence[Path],
) -> dict[str, Any]:
    """One row of the results: metrics, chosen settings, paired differences to the files that have these folds."""
    predictions, chosen = crossvalidate(baseline, table, features, folds, same)
    names = [folds.names[code] for code in predictions.fold]
    others = {str(path): read_predictions(path, table, predictions.rows, names) for path in against}
    true, task = table.distributions[predictions.rows], Task(table.values, table.threshold, table.side)
    groups = clusters(table, predictions.rows, folds.group)
    return {
        "baseline": baseline.name,
        "folds": {"label": folds.label, "names": list(folds.names), "group": folds.group},
        "photos": len(predictions.rows),
        "grid": {name: list(values) for name, values in baseline.grid.items()},
        "chosen": dict(zip(folds.names, chosen, strict=True)),
        "metrics": summarise(table, predictions, group=folds.group),
        "against": {
            path: paired_difference(true, list(predictions.distributions), runs, task, groups)
            for path, runs in others.items()
            if runs is not None
        },
    }


def show(title: str, lines: Mapping[str, Sequence[str]]) -> None:
    """A table: a name, then a cell a metric."""
    print(f"\n{title}")
    for name, cells in {"": SHOWN, **lines}.items():
        print("".join([f"{name:14}", *(f"{cell:30}" for cell in cells)]).rstrip())


def report(table: Table, folds: Folds, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was measured on one choice of folds."""

    def value(found: Mapping[str, float]) -> str:
        return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"

    def change(found: Mapping[str, float]) -> str:
        return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{' *' if found['real'] else ''}"

    grouped = f", never splitting {folds.group}" if folds.group else ""
    show(
        f"{table.name}, {rows[0]['photos']:,} photos, folds {folds.label}{grouped}; accuracy at {table.side} "
        f"{table.threshold:g}; 95 % intervals",
        {row["baseline"]: [value(row["metrics"][name]) for name in SHOWN] for row in rows},
    )
    for row in rows:
        if row["grid"]:
            chosen = (" ".join(f"{k}={v:g}" for k, v in setting.items()) for setting in row["chosen"].values())
            print(f"  {row['baseline']} chose, fold by fold: {'; '.join(chosen)}")
    for path in rows[0]["against"]:
        show(
            f"baseline minus {path}, paired, 95 % interval (* excludes 0)",
            {row["baseline"]: [change(row["against"][path][name]) for name in SHOWN] for row in rows},
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="DATA folder with features")
    parser.add_argument("--folds", action="append", required=True, help="a column, a csv FILE or a number; repeatable")
    parser.add_argument("--group", help="column whose photos stay together, as in milnet crossvalidate")
    parser.add_argument("--semantic", help="NAME[:range] of the features for neighbours and kernel_ridge")
    parser.add_argument("--nodes", help="NAME[:range] of the features for ridge")
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        help="predictions.csv of milnet crossvalidate on one of the folds: each baseline minus it, paired; repeatable",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1); numpy: OMP_NUM_THREADS")
    parser.add_argument("--output", "-o", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    table, manifest = load_table(options.data)
    features = load_feature_set(options.data, table, semantic=options.semantic, nodes=options.nodes)
    same = find_same_photos(table, features).pairs
    rows: list[dict[str, Any]] = []
    for wanted in options.folds:
        folds = splits.find_folds(table, wanted, group=options.group)
        found = [measure(baseline, table, features, folds, same, options.against) for baseline in BASELINES]
        report(table, folds, found)
        rows += found
    left = [str(path) for path in options.against if not any(str(path) in row["against"] for row in rows)]
    if left:
        raise SystemExit(f"{', '.join(left)}: photos or folds other than those of {', '.join(options.folds)}")
    if options.output is not None:
        results = {
            "schema": SCHEMA,
            "kind": "baselines",
            "milnet": __version__,
            "command": shlex.join(["python", *sys.argv] if arguments is None else ["baselines.py", *arguments]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "data": {"name": table.name, "digest": manifest.digest, "source": dict(table.source)},
            "features": features.config,
            "choice": {"folds": INNER, "criterion": "emd2"},
            "rows": rows,
            "accuracy": {"threshold": table.threshold, "side": table.side},
        }
        write_results(options.output, results)
        print(f"\n{options.output}")


if __name__ == "__main__":
    main()
