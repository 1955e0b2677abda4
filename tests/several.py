"""Work of several processes that a test starts together. Importable by them; pytest does not collect it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import made
from killed import CONTEXT
from milnet import processes, training
from milnet.checkpoints import save_model
from milnet.losses import emd as emd
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.splits import Split
from milnet.training import Run

STILL = Recipe(  # nothing in it depends on how a batch is shared
    name="still", model="graph", norm="layer", width=8, depth=2, dropout=0.0, loss="adaptive_emd", epochs=3, patience=3,
    batch=16, calibration_folds=2,
)  # fmt: skip
Work = Callable[..., None]
_store: Any = None  # as torchrun does, the one who starts them keeps what they tell each other: it outlives them


def start(count: int, work: Work, *arguments: Any) -> list[Any]:
    """Start `count` processes that join each other and do `work`; one alone joins nobody."""
    global _store
    _store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    port = _store.port
    started = [CONTEXT.Process(target=_one, args=(i, count, port, work, arguments)) for i in range(count)]
    for process in started:
        process.start()
    return started


def finish(started: list[Any], seconds: float = 60) -> list[int]:
    """Their exit codes; AssertionError, and no process left, when they take longer."""
    end = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    late = [i for i, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
        process.join()
    assert not late, f"processes {late} did not end within {seconds} s"
    return [process.exitcode for process in started]


def run(count: int, work: Work, *arguments: Any) -> None:
    """Do `work` in `count` processes; all must succeed."""
    assert finish(start(count, work, *arguments)) == [0] * count


def _one(rank: int, count: int, port: int, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1")
    if count > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )  # fmt: skip
        processes.join()
    try:
        work(*arguments)
    except Exception as error:
        said = processes.lost(error) or error
        if processes.speaks():
            with (Path(arguments[0]) / "said.txt").open("a") as file:
                file.write(f"{type(said).__name__}: {said}\n")
        sys.stderr.flush()
        os._exit(2)
    processes.leave()


def train(folder: str, recipe: Recipe, die_at: int = 0, how: str = "", who: int = -1, save_seconds: float = 30) -> None:
    """A whole training into `folder`/model; the loss of each step, as each process has it, into `losses-RANK.json`.

    At step `die_at` process `who` (-1: the last) ends as `how` says: "kill", "nan", "raise" or "terminate".
    """
    losses: list[float] = []
    step = training._step

    def watched(*before: Any) -> float:
        *others, batch, sizes = before
        if die_at and len(losses) + 1 == die_at and processes.rank() == who % processes.world():
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            if how == "raise":
                raise OSError("the disk has gone")
            if how == "nan":
                batch = replace(batch, photo=batch.photo * float("nan"))
        losses.append(step(*others, batch, sizes))
        return losses[-1]

    training._step = watched
    place = Path(folder)
    table = made.table()
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    keeps = Run(place / "run", {"test": 1}, save_seconds=save_seconds)
    model = fit(recipe, table, made.features(table), split, 7, run=keeps, calibrate=True)
    (place / f"losses-{processes.rank()}.json").write_text(json.dumps(losses))
    torch.save(model.network.state_dict(), place / f"weights-{processes.rank()}.pt")
    processes.from_first(lambda: save_model(model, place / "model"))


def keep(folder: str, number: int) -> None:
    """Open `folder`/run for a training of that number."""
    Run(Path(folder) / "run", {"number": number})


def reduce(folder: str, in_memory: bool) -> None:
    """A `milnet` recipe's training, and its reducer's numbers of all photos, as each process has them."""
    if not in_memory:
        training.IN_MEMORY = 0
    from test_reducer import wide_features

    table = made.table(230)
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    beneath = replace(STILL, name="reducer", model="reducer", epochs=1)
    recipe = replace(STILL, name="milnet", reducer=beneath, epochs=1)
    features = wide_features(table)
    run = Run(Path(folder) / "run", {"number": 1})
    model = fit(recipe, table, features, split, 7, run=run)
    rows = np.arange(230)[::-1].copy()
    assert features.maps is not None
    np.save(Path(folder) / f"reduced-{processes.rank()}.npy", model.reduce(features.maps, rows))
    (Path(folder) / f"losses-{processes.rank()}.json").write_text(json.dumps([line["emd2"] for line in model.history]))


def predict(folder: str, sizes: list[int]) -> None:
    """Predictions for the first n photos, for each n of `sizes`, as each process has them."""
    from milnet.recipe import make_network
    from milnet.samples import Samples

    nodes = np.random.default_rng(0).normal(size=(max(sizes, default=1), 24)).astype(np.float16)
    network = make_network(Recipe().resolve(100), 24, 5, 0)
    found = [training.predict(network, Samples(nodes, np.arange(n, dtype=np.int64))) for n in sizes]
    np.savez(Path(folder) / f"found-{processes.rank()}.npz", *found)
