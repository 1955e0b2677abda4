"""How the small defaults of the recipes were chosen: inner cross-validation inside ONE outer training part.

    python benchmarks/choose_defaults.py DATA --fold fold_random --recipe single

Only photos outside fold 0 of the named column are used; the test photos of that fold are never looked at. Each line of
`VARIANTS` is one variant; their number belongs into docs/experiments.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from milnet import splits
from milnet.annotations import load_table
from milnet.features import load_feature_set
from milnet.metrics import Task, measure
from milnet.recipe import load_recipe
from milnet.recipes import fit

VARIANTS: dict[str, list[list[str]]] = {
    "single": [
        [],
        ["dropout=0.5"],
        ["weight_decay=1e-3"],
        ["learning_rate=3e-4"],
        ["learning_rate=3e-4", "dropout=0.5"],
        ["learning_rate=3e-4", "weight_decay=1e-3"],
        ["learning_rate=3e-4", "weight_decay=1e-2"],
        ["width=256", "learning_rate=3e-4", "dropout=0.5"],
        ["learning_rate=1e-3", "decay=0.7", "decay_epochs=2"],
        ["learning_rate=3e-4", "dropout=0.5", "batch=16"],
    ],
    "published": [
        [],
        ["learning_rate=3e-4"],
        ["dropout=0.2", "learning_rate=3e-4"],
        ["depth=1"],
        ["weight_decay=1e-3"],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fold", default="fold_random")
    parser.add_argument("--recipe", default="single", choices=sorted(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table, _ = load_table(options.data)
    features = load_feature_set(options.data, table)
    outer = splits.find_folds(table, options.fold)
    rows = np.flatnonzero(outer.codes != 0)
    groups = table.codes(outer.group)[rows] if outer.group else None
    task = Task(table.values, table.threshold, table.side)
    for settings in VARIANTS[options.recipe]:
        recipe = load_recipe(options.recipe, settings)
        found = []
        for seed in range(options.seeds):
            inner = splits.make_folds(len(rows), 5, seed, groups)
            guess = np.zeros((len(rows), len(table.values)))
            for fold in range(5):
                test, train = rows[inner == fold], rows[inner != fold]
                model = fit(recipe, table, features, splits.Split(train, test, outer.group), seed)
                taken = table.take(test)
                references = model.find(
                    np.asarray(features.semantic[test]),
                    ids=taken.ids,
                    pixels=[features.pixels[row] for row in test],
                    groups=taken.column(outer.group) if outer.group else None,
                )
                guess[inner == fold] = model.predict(np.asarray(features.nodes[test]), references)
            found.append(measure(table.distributions[rows], guess, task))
        mean = {name: float(np.mean([one[name] for one in found])) for name in ("srcc", "plcc", "emd2")}
        print(
            options.recipe,
            options.fold,
            " ".join(settings) or "defaults",
            {k: round(v, 4) for k, v in mean.items()},
            flush=True,
        )


if __name__ == "__main__":
    main()
