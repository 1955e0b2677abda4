"""One epoch of the published graph at AVA's size: how long the network waits for its batches, and the peak memory.

    python benchmarks/ava_size.py make DATA                          # 4 GB of synthetic features, once
    milnet references DATA -k 100 --semantic semantic                # optional: found once instead of in here
    python benchmarks/epoch.py DATA RUN --steps 200

Trains `published` as `milnet train` does (batch 128, width 512, 6 layers) on the training split, batches read from the
memory map. RUN keeps the state: killed at any moment, the same command goes on. `--steps` takes so many batches instead
of the whole epoch. Loading is the time a step waits for its batch; the rest is forward, backward and the optimiser.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import torch

from milnet import samples as samples_module
from milnet.annotations import load_table
from milnet.features import load_feature_set, torch_threads
from milnet.losses import make_loss
from milnet.pool import RatedPool, find_store
from milnet.recipe import load_recipe, make_network
from milnet.samples import Samples
from milnet.splits import training_rows
from milnet.training import Plan, Run, moments, train_epochs
from timing import machine


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, help="batches (default: one epoch)")
    parser.add_argument("--semantic", default="semantic")
    parser.add_argument("--nodes", default="nodes")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe")
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    table, manifest = load_table(options.data)
    features = load_feature_set(options.data, table, semantic=options.semantic, nodes=options.nodes)
    rows = training_rows(table)
    recipe = load_recipe("published", options.set).resolve(len(rows))
    assert recipe.batch and recipe.learning_rate and recipe.decay is not None and recipe.weight_decay is not None
    pool = RatedPool.of(table, features, rows)
    store = find_store(options.data, features, rows, None)
    if options.steps:  # photos from all over, as an epoch takes them, with references among all
        rows = np.sort(np.random.default_rng(0).choice(rows, options.steps * recipe.batch, replace=False))
    found = pool.find(
        features.semantic, recipe.looks_for(len(pool)), rows=rows, store=store, queries=rows,
        ids=[table.ids[row] for row in rows], pixels=[features.pixels[row] for row in rows],
    )  # fmt: skip
    limit, samples_module.IN_MEMORY = samples_module.IN_MEMORY, 0  # as at AVA's size, however few photos there are
    samples = Samples(features.nodes, rows, pool, found, table.take(rows).distributions)
    samples_module.IN_MEMORY = limit
    network = make_network(recipe, features.nodes.shape[1], table.votes.shape[1], 0)
    network.standardise.set(*moments(features.nodes, rows))
    identity = {"data": manifest.digest, "steps": options.steps}
    run = Run(options.run, identity)
    plan = Plan(recipe.batch, recipe.learning_rate, recipe.weight_decay, recipe.decay, recipe.decay_epochs, 0)
    print(
        f"{len(rows):,} photos, batches of {recipe.batch} x (1 + {found.index.shape[1]}) x {features.nodes.shape[1]}, "
        f"{'in memory' if samples.in_memory else 'from the memory map'}; references "
        f"{'from a store' if store else 'searched for'}",
        flush=True,
    )
    with torch_threads(run.threads):
        train_epochs(network, make_loss(recipe.loss, recipe.r), samples, 1, plan, phase="epoch", run=run)
    line = json.loads((options.run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    waited, computed = line["loading"], line["seconds"] - line["loading"]
    print(
        f"loading {waited:.2f} s, forward and backward {computed:.1f} s: loading is {100 * waited / computed:.2f} % of "
        f"it; loss {line['loss']:.4f}"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, mapped files included")
    if not np.isfinite(line["loss"]) or not torch.isfinite(next(network.parameters())).all():
        raise SystemExit("the training diverged")
    shutil.rmtree(options.run)


if __name__ == "__main__":
    main()
