"""One fold of a cross-validation, for what is too slow for five.

    python benchmarks/one_fold.py DATA --recipe milnet --set reducer.width=2048 --folds fold_random --fold 0 --run RUN

The same code as `milnet crossvalidate`, on the photos of one fold; with --run a killed call goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from milnet.annotations import load_table
from milnet.evaluation import crossvalidate
from milnet.features import load_feature_set
from milnet.metrics import Task, measure
from milnet.recipe import load_recipe
from milnet.splits import find_folds
from timing import machine


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="milnet")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--features", help="features for both roles")
    parser.add_argument("--folds", default="fold_random")
    parser.add_argument("--fold", type=int, default=0, help="number of the fold that is tested")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--run", type=Path, help="where the state is kept")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    table, _ = load_table(options.data)
    features = load_feature_set(options.data, table, semantic=options.features, nodes=options.features)
    folds = find_folds(table, options.folds)
    one = replace(
        folds,
        names=(folds.names[options.fold],),
        codes=np.where(folds.codes == options.fold, 0, -1).astype(np.int64),
    )
    recipe = load_recipe(options.recipe, options.set)
    began = time.monotonic()
    predictions, lines = crossvalidate(recipe, table, features, one, [options.seed], run=options.run)
    found = measure(
        table.distributions[predictions.rows],
        predictions.distributions[0],
        Task(table.values, table.threshold, table.side),
    )
    print(
        f"{recipe.name} {' '.join(options.set)}, {folds.label}, fold {one.names[0]}, {len(predictions.rows)} photos: "
        f"SRCC {found['srcc']:.4f}, PLCC {found['plcc']:.4f}, EMD2 {found['emd2']:.4f}, accuracy "
        f"{found['accuracy']:.4f}; {lines[0]['epochs']} epochs, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
