"""What storing wide maps as bytes costs: the numbers, the predictions, and a reducer trained on them.

    milnet features DATA --backbone timm/mobilenetv2_100 --weights FILE --wide float16 --name wide
    python benchmarks/packed_maps.py DATA --features wide --folds fold_random

One fold: a reducer trained on the float16 maps of the training part predicts the test part from float16 maps and from
bytes; a second one is trained and tested on bytes alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from milnet import splits
from milnet.annotations import load_table
from milnet.evaluation import find_same_photos, predict_rows
from milnet.features import PackedMaps, load_feature_set, pack_maps
from milnet.metrics import Task, measure
from milnet.recipe import load_recipe
from milnet.recipes import fit, require_maps
from timing import machine


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", help="features with float16 maps")
    parser.add_argument("--folds", default="fold_random")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe reducer")
    options = parser.parse_args(arguments)
    print(machine())
    table, _ = load_table(options.data)
    features = load_feature_set(options.data, table, semantic=options.features, nodes=options.features)
    exact = np.asarray(require_maps(features)[np.arange(len(table))], np.float32)
    packed = PackedMaps(*pack_maps(exact))
    error = packed[np.arange(len(table))].astype(np.float32) - exact
    print(
        f"numbers: root mean square error {np.sqrt((error**2).mean()):.2g}, of their deviation "
        f"{np.sqrt((error**2).mean()) / exact.std():.2%}; space {(25 + 4) / 50:.0%} of float16"
    )
    folds = splits.find_folds(table, options.folds)
    test = np.flatnonzero((folds.codes == options.fold) & features.readable)
    train, _ = splits.without_twins(
        np.flatnonzero(folds.codes != options.fold), test, find_same_photos(table, features).pairs
    )
    recipe = load_recipe("reducer", options.set)
    task, true = Task(table.values, table.threshold, table.side), table.distributions[test]
    as_bytes = replace(features, maps=packed)
    split = splits.Split(train, test, folds.group)
    model = fit(recipe, table, features, split, options.seed)
    again = fit(recipe, table, as_bytes, split, options.seed)
    base = predict_rows(model, table, features, test)
    for name, p in (
        ("float16, tested on float16", base),
        ("float16, tested on bytes", predict_rows(model, table, as_bytes, test)),
        ("bytes, tested on bytes", predict_rows(again, table, as_bytes, test)),
    ):
        found = measure(true, p, task)
        moved = np.abs((p - base) @ table.values)
        print(
            f"trained on {name}: SRCC {found['srcc']:.4f}, EMD2 {found['emd2']:.4f}; scores moved by {moved.mean():.4f}"
            f" on average, {moved.max():.4f} at most ({len(test)} photos)"
        )


if __name__ == "__main__":
    main()
