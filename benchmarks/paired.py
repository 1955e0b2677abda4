"""Paired differences of measured recipes, from the predictions that `milnet crossvalidate -o` left beside its results.

    python benchmarks/paired.py DATA first.json second.json [more.json ...]

Each of the results is compared with the first one: mean over the seeds both have, 95 % bootstrap over the groups of the
folds (else the first declared group), as `crossvalidate --against` does it within one run. * = the interval excludes 0.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from milnet.annotations import FloatArray, IntArray, Table, load_table
from milnet.metrics import Task, paired_difference
from milnet.results import clusters, predictions_path


def read_predictions(path: Path, table: Table) -> tuple[IntArray, dict[int, FloatArray]]:
    """Rows [n] of the table that were predicted, ascending, and the distributions [n, S] of each seed."""
    row_of = {id_: row for row, id_ in enumerate(table.ids)}
    found: dict[int, dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            p = [float(line[f"p_{value:g}"]) for value in table.values]
            found.setdefault(int(line["seed"]), {})[row_of[line["photo"]]] = p
    rows = np.array(sorted(next(iter(found.values()))), np.int64)
    return rows, {seed: np.array([of[int(row)] for row in rows]) for seed, of in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    table, _ = load_table(options.data)
    task = Task(table.values, table.threshold, table.side)
    first, *others = options.results
    about: Any = json.loads(first.read_text(encoding="utf-8"))
    rows, base = read_predictions(predictions_path(first), table)
    for path in others:
        again, other = read_predictions(predictions_path(path), table)
        if not np.array_equal(rows, again):
            raise SystemExit(f"{first} and {path} are of different photos")
        seeds = sorted(base.keys() & other.keys())
        difference = paired_difference(
            table.distributions[rows],
            [base[seed] for seed in seeds],
            [other[seed] for seed in seeds],
            task,
            clusters(table, rows, about["folds"]["group"]),
        )
        print(f"{first.name} minus {path.name}, seeds {', '.join(map(str, seeds))}:")
        for metric in ("srcc", "plcc", "emd2"):
            d = difference[metric]
            print(f"  {metric} {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]{' *' if d['real'] else ''}")


if __name__ == "__main__":
    main()
