"""Training on several processes against one: steps a second, and what becomes of the losses and of the figures.

    python benchmarks/processes.py -o processes.json
    python benchmarks/processes.py --rows 1000 --width 256 --steps 8 --recipes single --folds fold_random --seeds 1

Speed and losses: `published` at the width of AVA's features, synthetic (20,000 x 6,144 float16, random references and
votes), the same steps of the same batches of 128 photos by one process with one thread, one with two, and two with one
each (gloo, this machine). A step's time is the median after the first three, waiting for its batch included. With layer
norm the losses must be those of one process; with batch norm each process takes the statistics of its own half of a
batch (torch's SyncBatchNorm is for GPUs), and the table says what that does.

Figures: `milnet crossvalidate` on the shipped pool (677 real photos of OASIS) by one process and by two, pooled
out-of-fold SRCC with its 95 % interval, for recipes with batch norm, and by one process with layer norm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import numpy as np
import torch

from milnet import processes, training
from milnet.losses import make_loss
from milnet.pool import RatedPool
from milnet.recipe import load_recipe, make_network
from milnet.references import References
from milnet.samples import Samples
from milnet.training import Plan, Run, train_epochs
from timing import machine

WAYS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
BINS, REFERENCES, WARM = 10, 4, 3


def launch(count: int, threads: int, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command by torchrun, or alone; its output."""
    by = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *by, *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done


def make_rows(path: Path, rows: int, width: int) -> None:
    """Synthetic features, float16, on the disk."""
    made = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 1000):
        made[start : start + 1000] = rng.standard_normal((min(1000, rows - start), width), np.float32)
    made.flush()


def work(path: Path, steps: int, norm: str, threads: int, output: Path) -> None:
    """What each process does: train on the first photos, and note each step's end and loss."""
    torch.set_num_threads(threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        processes.join()
    nodes = np.load(path, mmap_mode="r")
    recipe = load_recipe("published", [f"norm={norm}"]).resolve(200_000)
    assert recipe.batch and recipe.learning_rate and recipe.decay is not None and recipe.weight_decay is not None
    rng = np.random.default_rng(1)
    votes = rng.dirichlet(np.full(BINS, 2.0), len(nodes))
    rows = np.arange(len(nodes), dtype=np.int64)
    names = tuple(map(str, rows))
    pool = RatedPool(
        ids=names, pixels=names, groups=names, distributions=votes, totals=np.full(len(rows), 100.0),
        semantic=nodes[:, :1], nodes=nodes, rows=rows, near_duplicate=1.0,
    )  # fmt: skip
    chosen = rows[: steps * recipe.batch]
    apart = np.arange(REFERENCES) * (len(rows) // (REFERENCES + 1))  # no photo is its own reference twice
    index = (rng.integers(0, len(rows), (len(chosen), 1)) + apart) % len(rows)
    found = References(index, np.full(index.shape, 0.5, np.float32))
    samples = Samples(nodes, chosen, pool, found, votes[chosen])
    network = make_network(recipe, nodes.shape[1], BINS, 0)
    plan = Plan(recipe.batch, recipe.learning_rate, recipe.weight_decay, recipe.decay, recipe.decay_epochs, 0)
    losses, ends = [], [time.perf_counter()]
    step = training._step

    def watched(*arguments: Any) -> float:
        losses.append(step(*arguments))
        ends.append(time.perf_counter())
        return losses[-1]

    training._step = watched  # type: ignore[assignment]
    loss = make_loss("adaptive_emd")
    train_epochs(network, loss, samples, 1, plan, phase="epoch", run=Run(None, {}))
    if processes.first():
        output.write_text(json.dumps({"losses": losses, "seconds": np.diff(ends).tolist()}))
    processes.leave()


def speed(rows: int, width: int, steps: int) -> list[dict[str, Any]]:
    """A line a norm and way: steps a second, and the losses against those of one process with one thread."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.npy"
        make_rows(path, rows, width)
        for norm in ("layer", "batch"):
            base: list[float] = []
            for count, threads in WAYS:
                output = Path(name) / "line.json"
                launch(
                    count, threads, __file__, "--work", str(path), "--steps", str(steps), "--norm", norm,
                    "--threads", str(threads), "-o", str(output),
                )  # fmt: skip
                line = json.loads(output.read_text())
                base = base or line["losses"]
                apart = float(np.abs(np.subtract(line["losses"], base)).max())
                a_second = 1 / statistics.median(line["seconds"][min(WARM, steps - 1) :])
                found.append(
                    {"norm": norm, "processes": count, "threads": threads, "steps_a_second": a_second,
                     "largest_difference_of_a_loss": apart, "first_loss": base[0], "last_loss": line["losses"][-1]}
                )  # fmt: skip
                print(
                    f"{norm:6} {count} x {threads} threads {a_second:8.3f} steps/s   largest difference of a loss "
                    f"{apart:.2e}   loss {line['losses'][0]:.4f} -> {line['losses'][-1]:.4f}",
                    flush=True,
                )
    return found


def figures(recipes: list[str], folds: list[str], seeds: int, settings: list[str]) -> list[dict[str, Any]]:
    """SRCC of each recipe and kind of folds: one process, two, and one with layer norm."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for recipe in recipes:
            for column in folds:
                for count, norm in ((1, "batch"), (2, "batch"), (1, "layer")):
                    output = Path(name) / f"{recipe}-{column}-{count}-{norm}.json"
                    own = ["--semantic", "mobilenetv2_100", "--nodes", "mobilenetv2_100", "--recipe", recipe]
                    changed = [f"--set={setting}" for setting in (f"norm={norm}", *settings)]
                    began = time.monotonic()
                    launch(
                        count, 1, "-m", "milnet", "crossvalidate", "bundled", *own, "--folds", column,
                        "--seeds", str(seeds), "-o", str(output), *changed,
                    )  # fmt: skip
                    seconds, metrics = time.monotonic() - began, json.loads(output.read_text())["metrics"]
                    srcc = {key: metrics["srcc"][key] for key in ("mean", "sd", "low", "high")}
                    found.append(
                        {"recipe": recipe, "folds": column, "processes": count, "norm": norm, "seeds": seeds,
                         "srcc": srcc, "emd2": metrics["emd2"]["mean"], "seconds": seconds}
                    )  # fmt: skip
                    print(
                        f"{recipe:10} {column:12} {norm:6} processes {count}  SRCC "
                        f"{srcc['mean']:.4f} [{srcc['low']:.3f}, {srcc['high']:.3f}]  EMD2 {found[-1]['emd2']:.4f}  "
                        f"{seconds:.0f} s",
                        flush=True,
                    )
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--recipes", default="single,published", help="for the figures; empty: none")
    parser.add_argument("--folds", default="fold_random,fold_theme")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a field of the recipes of the figures")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # the features, where this is one of the processes
    parser.add_argument("--norm", default="layer", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        work(options.work, options.steps, options.norm, options.threads, options.output)
        return
    print(machine(), flush=True)
    results: dict[str, Any] = {"machine": machine(), "rows": options.rows, "width": options.width}
    results["speed"] = speed(options.rows, options.width, options.steps)
    recipes = [name for name in options.recipes.split(",") if name]
    results["figures"] = figures(recipes, options.folds.split(","), options.seeds, options.set)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
