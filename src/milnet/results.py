"""`results.json` and `predictions.csv`: the one form in which measured numbers leave the program.

    {schema, kind, milnet, command, date, data, features, recipe, folds, seeds, photos, clusters,
     metrics: {srcc|plcc|krcc|accuracy|mse|emd1|emd2: {mean, sd, low, high, per_seed, per_fold}},
     accuracy: {threshold, side}}
    and, of a cross-validation: trainings, same_photos, against; of an evaluation: model, looks, seen

`mean`: per seed over the pooled out-of-fold predictions, then over seeds. `sd`: over seeds. `low`, `high`: 95 %
bootstrap interval of the mean, over groups where there are groups, else over photos.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import atomic_path, strict, write_text
from milnet.errors import UsageError
from milnet.metrics import Task, bootstrap, interval, measure
from milnet.version import __version__

SCHEMA = 1
METRICS = ("srcc", "plcc", "krcc", "accuracy", "mse", "emd1", "emd2")


@dataclass(frozen=True)
class Predictions:
    """Predicted distributions [seeds, n, S] of the photos `rows` [n], each by a model that has not seen it.

    `fold` [n] is the number of the fold in which the photo was tested, `fold_names` its name.
    """

    rows: IntArray
    fold: IntArray
    fold_names: tuple[str, ...]
    seeds: tuple[int, ...]
    distributions: FloatArray


def clusters(table: Table, rows: IntArray, group: str | None) -> IntArray:
    """Who is resampled together: the group of the folds, else the first declared group, else single photos."""
    name = cluster_column(table, group)
    return np.full(len(rows), -1, np.int64) if name is None else table.codes(name)[rows]


def cluster_column(table: Table, group: str | None) -> str | None:
    """The column whose photos are resampled together, if any."""
    return group or (table.groups[0] if table.groups else None)


def summarise(
    table: Table, predictions: Predictions, *, group: str | None = None, samples: int = 1000
) -> dict[str, dict[str, Any]]:
    """The `metrics` part of results.json."""
    true = table.distributions[predictions.rows]
    task = Task(table.values, table.threshold, table.side)
    runs = list(predictions.distributions)
    per_seed = [measure(true, run, task) for run in runs]
    drawn = bootstrap(true, runs, task, clusters(table, predictions.rows, group), count=samples)
    folds = [predictions.fold == fold for fold in range(len(predictions.fold_names))]
    functions = task.metrics()
    summary: dict[str, dict[str, Any]] = {}
    for name in METRICS:
        values = [found[name] for found in per_seed]
        low, high = interval(drawn[name])
        summary[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": low,
            "high": high,
            "per_seed": values,
            "per_fold": [float(np.mean([functions[name](true[at], run[at]) for run in runs])) for at in folds],
        }
    return summary


def make_results(
    kind: str,
    table: Table,
    predictions: Predictions,
    *,
    command: str,
    data: Mapping[str, Any],
    features: Mapping[str, Any],
    recipe: Mapping[str, Any],
    folds: Mapping[str, Any],
    group: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole of results.json."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "milnet": __version__,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": dict(data),
        "features": {
            role: {key: value for key, value in part.items() if key != "weights"}  # a path of this machine
            for role, part in features.items()
        },
        "recipe": dict(recipe),
        "folds": dict(folds),
        "seeds": list(predictions.seeds),
        "photos": len(predictions.rows),
        "clusters": cluster_column(table, group),
        "metrics": summarise(table, predictions, group=group),
        "accuracy": {"threshold": table.threshold, "side": table.side},
        **(extra or {}),
    }


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json."""
    write_text(path, json.dumps(strict(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def check_results_path(path: Path) -> None:
    """Raise UsageError, before any work is done, when results cannot or must not be written to `path`."""
    if path.suffix.lower() != ".json" or path.is_dir():
        raise UsageError(f"-o {path}: expected a file name ending in .json")
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: the folder {path.parent} does not exist")
    if path.exists():
        try:
            ours = "schema" in json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"-o {path}: exists and holds no results of milnet; choose another name")


def predictions_path(results: Path) -> Path:
    """Where the predictions of a results file stand: beside it, NAME.predictions.csv."""
    return results.with_name(f"{results.stem}.predictions.csv")


def write_predictions(path: Path, table: Table, predictions: Predictions) -> None:
    """Write predictions.csv: photo, seed, fold, score, then p_VALUE for each value."""
    import polars

    parts = []
    for seed, p in zip(predictions.seeds, predictions.distributions, strict=True):
        columns: dict[str, Sequence[Any]] = {
            "photo": [table.ids[row] for row in predictions.rows],
            "seed": [seed] * len(p),
            "fold": [predictions.fold_names[fold] for fold in predictions.fold],
            "score": (p @ table.values).tolist(),
            **{f"p_{value:g}": p[:, i].tolist() for i, value in enumerate(table.values)},
        }
        parts.append(polars.DataFrame(columns))
    with atomic_path(path) as temporary:
        polars.concat(parts).write_csv(temporary)
