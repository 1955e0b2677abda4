"""What a larger pool gives a model that is not trained again: `milnet pool add` on five rotations of the folds.

    python benchmarks/growing.py DATA --features sizes

Recipe votes learns from two folds; its pool is these two, then a third is added, then a fourth; the fifth is tested.
For comparison, the same recipe trained on three and on four folds. Predictions of the five rotations are pooled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from joint import KINDS, compare, folds_of
from milnet import splits
from milnet.annotations import load_table
from milnet.evaluation import find_same_photos, predict_rows
from milnet.features import load_feature_set
from milnet.growing import add_to_pool
from milnet.metrics import emd_rows, srcc
from milnet.recipe import load_recipe
from milnet.recipes import fit
from milnet.splits import Split


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", required=True)
    parser.add_argument("--group", default="theme")
    parser.add_argument("--assignments", type=int, default=3, help="further assignments of each kind")
    options = parser.parse_args(arguments)
    table, _ = load_table(options.data)
    features = load_feature_set(options.data, table, semantic=options.features, nodes=options.features)
    same = find_same_photos(table, features).pairs
    recipe = load_recipe("votes")
    names = ("pool of 2 folds", "+ a third", "+ a fourth", "trained on 3", "trained on 4")
    for kind in KINDS:
        runs: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = {name: [] for name in names}
        gap, seconds = 0.0, []
        for assignment in range(options.assignments + 1):
            codes = folds_of(table, kind, assignment, options.group)
            found = {name: np.full_like(table.distributions, np.nan) for name in names}
            for fold in range(5):
                test = np.flatnonzero(codes == fold)
                parts = [
                    splits.without_twins(np.flatnonzero(codes == (fold + i) % 5), test, same)[0] for i in range(1, 5)
                ]
                group = options.group if kind == "theme" else None
                # calibration costs five more trainings: enough to compare it on the first folds
                split = Split(np.concatenate(parts[:2]), test, group)
                model = fit(recipe, table, features, split, 0, calibrate=assignment == 0)
                began = time.perf_counter()
                third, _ = add_to_pool(model, table, features, parts[2])
                seconds.append(time.perf_counter() - began)
                fourth, _ = add_to_pool(third, table, features, parts[3])
                at_once, _ = add_to_pool(model, table, features, np.concatenate(parts[2:]))
                for name, one in zip(names, (model, third, fourth), strict=False):
                    found[name][test] = predict_rows(one, table, features, test)
                other = predict_rows(at_once, table, features, test)
                gap = max(gap, float(np.abs(other - found["+ a fourth"][test]).max()))
                assert np.allclose(at_once.doubt.percentiles, fourth.doubt.percentiles, atol=1e-6)
                for name, some in (("trained on 3", parts[:3]), ("trained on 4", parts)):
                    again = fit(recipe, table, features, Split(np.concatenate(some), test, group), 0)
                    found[name][test] = predict_rows(again, table, features, test)
            for name in names:
                runs[name].append(found[name])
        print(f"{kind} folds, {options.assignments + 1} assignments")
        for name in names:
            s = [srcc(table.scores, p @ table.values) for p in runs[name]]
            e = np.mean([emd_rows(table.distributions, p, 2).mean() for p in runs[name]])
            d, low, high = compare(table, runs[name], runs[names[0]], table.codes(options.group))["srcc"]
            print(
                f"  {name:16s} SRCC {np.mean(s):.4f} EMD2 {e:.4f}; "
                f"SRCC against the first {d:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
        print(f"  in two steps against at once: {gap:.1e}; adding a fold takes {np.median(seconds):.2f} s", flush=True)


if __name__ == "__main__":
    main()
