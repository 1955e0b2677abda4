"""The whole method on a rated pool in under two minutes: measured, trained, ready to score.

Every number is computed in the run: each recipe is cross-validated on the pool's own folds, in processes side by side;
then the best one is trained on all of it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch

from milnet.annotations import load_table
from milnet.checkpoints import save_model
from milnet.errors import MilnetError
from milnet.evaluation import crossvalidate
from milnet.features import load_feature_set
from milnet.recipe import RECIPES
from milnet.recipes import fit
from milnet.results import summarise
from milnet.splits import Split, find_folds

SECONDS = 100.0  # after which no more is measured: what is left of two minutes is for the photos
KINDS = {"random": "fold_random", "theme": "fold_theme"}  # kinds of folds, and the columns of the pool that hold them
METRICS = ("srcc", "plcc", "emd2")


@dataclass(frozen=True)
class Cell:
    """One recipe to cross-validate on the features `features` of a pool, on folds of one kind."""

    recipe: str
    features: str
    kind: str

    @property
    def label(self) -> str:
        """For people: recipe and features."""
        return f"{self.recipe} on {self.features}"


@dataclass(frozen=True)
class Measured:
    """Mean, low and high (95 % bootstrap over themes) of each of METRICS, from one seed."""

    cell: Cell
    metrics: dict[str, tuple[float, float, float]]


def cells(usable: str, best: str) -> list[Cell]:
    """What is measured: the recipes on the best features there are, and `votes` on those that work here if others."""
    rows = [(recipe, best) for recipe in ("single", "published", "votes")]
    rows += [("votes", usable)] if usable != best else []
    return [Cell(recipe, features, kind) for kind in KINDS for recipe, features in rows]


def measure(data: Path, cell: Cell) -> Measured:
    """Cross-validate one cell on the DATA folder `data`, with seed 0; on theme folds its group is never consulted."""
    torch.set_num_threads(1)
    table, _ = load_table(data)
    features = load_feature_set(data, table, semantic=cell.features, nodes=cell.features)
    group = table.groups[0] if cell.kind == "theme" else None
    folds = find_folds(table, KINDS[cell.kind], group=group)
    predictions, _ = crossvalidate(RECIPES[cell.recipe], table, features, folds, [0])
    found = summarise(table, predictions, group=group)
    return Measured(cell, {name: (found[name]["mean"], found[name]["low"], found[name]["high"]) for name in METRICS})


def train(data: Path, features: str, folder: Path) -> str:
    """Train `votes` on the whole DATA folder, with the tables of doubt, into the MODEL `folder`; its digest."""
    torch.set_num_threads(1)
    table, manifest = load_table(data)
    chosen = load_feature_set(data, table, semantic=features, nodes=features)
    rows = np.arange(len(table))
    model = fit(RECIPES["votes"], table, chosen, Split(rows, rows[:0], None), 0, calibrate=True)
    model.inputs = {**model.inputs, "data": manifest.digest}
    return save_model(model, folder).digest


def run(
    data: Path,
    usable: str,
    best: str,
    model: Path,
    *,
    seconds: float | None = None,
    workers: int | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[list[Measured], list[Cell]]:
    """Measure on DATA and train into the folder `model`; what was measured, and what time did not allow.

    `usable`: the features that photos can be turned into here; `best`: the best ones of `data`. Random folds come
    first, then the training; theme folds as far as `seconds` reach. `told` gets a line after each step.
    """
    began, seconds = time.monotonic(), SECONDS if seconds is None else seconds
    wanted = cells(usable, best)
    first, rest = [c for c in wanted if c.kind == "random"], [c for c in wanted if c.kind != "random"]
    count = workers or min(os.cpu_count() or 1, 4)
    executor = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_alone)
    measured: list[Measured] = []
    left: list[Cell] = []
    with _one_thread():
        try:
            # The longest first, so that no process is left alone with one at the end.
            needed = {executor.submit(measure, data, cell): cell for cell in sorted(first, key=_length, reverse=True)}
            trained = executor.submit(train, data, usable, model)
            optional = {executor.submit(measure, data, cell): cell for cell in sorted(rest, key=_length)}
            for future in as_completed(needed):
                measured.append(future.result())
                told(f"{needed[future].label}, five random folds: {time.monotonic() - began:.0f} s")
            trained.result()
            told(f"votes on {usable}, trained: {time.monotonic() - began:.0f} s")
            for future, cell in optional.items():
                try:
                    measured.append(future.result(timeout=max(0.0, seconds - (time.monotonic() - began))))
                    told(f"{cell.label}, five theme folds: {time.monotonic() - began:.0f} s")
                except Late:
                    left.append(cell)
        except BrokenProcessPool as error:
            raise MilnetError(
                f"a process that measured was ended from outside ({error}), perhaps for want of memory: each takes "
                f"about half a gigabyte; try --threads 1"
            ) from error
        finally:
            _stop(executor)
    order = {cell: place for place, cell in enumerate(wanted)}
    return sorted(measured, key=lambda found: order[found.cell]), left


def _length(cell: Cell) -> int:
    """How long a cell takes, compared with the others."""
    return ("single", "votes", "published").index(cell.recipe)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started meanwhile compute with one thread each, numpy's too: there is one for each core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _alone() -> None:
    """In each process: an interrupt is its parent's to answer, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stop(executor: ProcessPoolExecutor) -> None:
    """End the processes now: what they are still doing is wanted no more."""
    processes = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:  # until nothing is written any more
        process.join()
