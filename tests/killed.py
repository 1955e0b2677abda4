"""Work that a test starts in another process and kills. Importable by that process; pytest does not collect it."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import made

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["milnet.recipes", "milnet.checkpoints", "accelerate", "torch._dynamo", "made"])


def suicide_in_write(count: int) -> None:
    """Kill this process in the middle of the `count`-th write of a training state: half of the file is there."""
    write, left = torch.save, [count]

    def save(state: Any, path: Path) -> None:
        left[0] -= 1
        if left[0] > 0:
            write(state, path)
            return
        whole = io.BytesIO()
        write(state, whole)
        with Path(path).open("wb") as file:
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def train(folder: str, in_write: int = 0) -> None:
    """A whole training with calibration into `folder`/model, saving its state at every step."""
    from milnet.checkpoints import save_model
    from milnet.recipe import Recipe
    from milnet.recipes import fit
    from milnet.splits import Split
    from milnet.training import Run

    torch.set_num_threads(1)
    if in_write:
        suicide_in_write(in_write)
    table = made.table()
    recipe = Recipe(
        name="published",
        model="graph",
        width=8,
        depth=2,
        dropout=0.3,
        loss="adaptive_emd",
        epochs=6,
        patience=3,
        batch=16,
        calibration_folds=2,
    )
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    run = Run(Path(folder) / "run", {"test": 1}, save_seconds=0)
    model = fit(recipe, table, made.features(table), split, 7, run=run, calibrate=True)
    save_model(model, Path(folder) / "model")


def extract(folder: str, photos: str) -> None:
    """A whole extraction with wide maps into `folder`/features, marking rows as done at every photo."""
    from dataclasses import replace

    from milnet.backbones import load_backbone
    from milnet.extraction import Extractor
    from milnet.preprocess import Preprocess
    from milnet.storing import extract as run

    torch.set_num_threads(1)
    table = replace(made.table(), image_root=Path(photos))
    extractor = Extractor.build(
        load_backbone("timm/test_resnet", "random:0"), Preprocess(size=64), batch=4, workers=2, pooling="area"
    )
    run(table, Path(folder) / "features", extractor, weights="random:0", wide="int8", save_seconds=0)


def survives(work: Callable[..., None], *arguments: Any, seconds: float | None = None) -> bool:
    """Run `work` in a process of its own, killed after `seconds`; whether it came to its end."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise AssertionError(f"the work failed by itself with exit code {process.exitcode}")
    return process.exitcode == 0


def duration(work: Callable[..., None], *arguments: Any) -> float:
    """Seconds of an undisturbed run."""
    began = time.monotonic()
    assert survives(work, *arguments)
    return time.monotonic() - began


def delays(seconds: float, count: int, seed: int) -> list[float]:
    """When to kill: anywhere in the run, the start-up of a process included."""
    return list(np.random.default_rng(seed).uniform(0, seconds, count))
