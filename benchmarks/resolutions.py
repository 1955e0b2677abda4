"""What the size of the input is worth: kernel ridge over the whole pool on features of one backbone at several sizes.

    milnet features DATA --backbone timm/mobilenetv2_100 --weights FILE --size 448 --name w448      # and others
    python benchmarks/resolutions.py DATA w320 w448 w576 w320+w448+w576

The kernel is exp(-gamma d), d the mean of the squared distances between photos in `last` (unit length) and in `taps`
(standardised, unit length) at each size, each divided by its median. Gamma and ridge are chosen inside each training
part by the closed form of leave-one-out (leave-one-group-out where the folds never split a group). The standardiser
of the taps sees all photos' features, never a vote. Folds: the columns fold_random and fold_theme, and further
assignments of each kind (seeds 1, 2, 3).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from milnet import splits
from milnet.annotations import FloatArray, IntArray, Table, load_table
from milnet.evaluation import find_same_photos
from milnet.features import Features, load_feature_set
from milnet.metrics import emd_rows, srcc

GAMMAS, RIDGES = (0.5, 1.0, 2.0), (0.03, 0.1, 0.3)


def squared_distances(x: FloatArray) -> FloatArray:
    """Of rows of unit length, [N, N], divided by their median."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    d = np.maximum(2 - 2 * x @ x.T, 0)
    return np.asarray(d / np.median(d))


def distances(features: Features) -> FloatArray:
    """Mean of the distances in `last` and in standardised `taps`, [N, N]."""
    last, taps = (np.asarray(features.values[:, slice(*features.span(name))], np.float64) for name in ("last", "taps"))
    standard = (taps - taps.mean(0)) / (taps.std(0) + 1e-6)
    return (squared_distances(last) + squared_distances(standard)) / 2


def leave_out(kernel: FloatArray, ridge: float, targets: FloatArray, groups: IntArray) -> FloatArray:
    """Predictions [n, S] of ridge regression with this kernel [n, n], each without the rows of its own group."""
    inverse = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
    weights = inverse @ targets
    found = np.empty_like(targets)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        found[rows] = targets[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], weights[rows])
    return found


def as_distributions(p: FloatArray) -> FloatArray:
    """Rows cut at 0 and scaled to 1."""
    p = np.clip(p, 1e-4, None)
    return np.asarray(p / p.sum(1, keepdims=True))


def crossvalidated(table: Table, d: FloatArray, codes: IntArray, groups: IntArray, same: IntArray) -> FloatArray:
    """Out-of-fold distributions [N, S]."""
    q = table.distributions
    found = np.empty_like(q)
    for fold in np.unique(codes):
        test = np.flatnonzero(codes == fold)
        train, _ = splits.without_twins(np.flatnonzero(codes != fold), test, same)
        base = q[train].mean(0)
        inside, across = d[np.ix_(train, train)], d[np.ix_(test, train)]

        losses = {}
        for gamma, ridge in itertools.product(GAMMAS, RIDGES):
            p = leave_out(np.exp(-gamma * inside), ridge, q[train] - base, groups[train])
            losses[gamma, ridge] = emd_rows(q[train], as_distributions(base + p), 2).mean()
        gamma, ridge = min(losses, key=lambda setting: losses[setting])
        kernel = np.exp(-gamma * inside) + ridge * np.eye(len(train))
        found[test] = as_distributions(base + np.exp(-gamma * across) @ np.linalg.solve(kernel, q[train] - base))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("features", nargs="+", help="names, or several joined by +")
    parser.add_argument("--group", default="theme")
    parser.add_argument("--seeds", type=int, default=3, help="further assignments of each kind (default 3)")
    options = parser.parse_args(arguments)
    table, _ = load_table(options.data)
    n, groups = len(table), table.codes(options.group)
    names = sorted({name for joined in options.features for name in joined.split("+")})
    found = {name: distances(Features(options.data / "features" / name, table)) for name in names}
    same = find_same_photos(table, load_feature_set(options.data, table, semantic=names[0], nodes=names[0])).pairs
    for joined in options.features:
        d = np.mean([found[name] for name in joined.split("+")], axis=0)
        for kind, of in (("random", np.arange(n)), ("theme", groups)):
            assignments = [splits.find_folds(table, f"fold_{kind}").codes] + [
                splits.make_folds(n, 5, seed, None if kind == "random" else groups)
                for seed in range(1, options.seeds + 1)
            ]
            predictions = [crossvalidated(table, d, codes, of, same) for codes in assignments]
            each = [srcc(table.scores, p @ table.values) for p in predictions]
            emd2 = np.mean([emd_rows(table.distributions, p, 2).mean() for p in predictions])
            print(
                f"{joined}, {kind} folds: SRCC {np.mean(each):.4f} ({' '.join(f'{x:.4f}' for x in each)}), "
                f"EMD2 {emd2:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
