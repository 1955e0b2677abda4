"""A search for references that a test starts in another process and kills. Importable by that process."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

import made
from milnet.features import FeatureSet


def large() -> FeatureSet:
    """Features of `made.table(1500)`, enough for some seconds of work."""
    return made.features(made.table(1500), width=300, semantic=256)


def suicide(moment: str, count: int) -> None:
    """Kill this process at the `count`-th flush of an array or renaming, or while it puts the folder in its place."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    left = [count]
    flush, unlink, replace = np.memmap.flush, Path.unlink, Path.replace

    def flushed(array: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            die()
        flush(array)

    def replaced(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0 if moment == "rename" else path.suffix == ".part":
            die()
        return replace(path, target)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.name == "identity.json":
            die()
        unlink(path, missing_ok)

    if moment == "flush":
        np.memmap.flush = flushed  # type: ignore[method-assign]
    elif moment in ("rename", "move"):
        Path.replace = replaced  # type: ignore[assignment, method-assign]
    elif moment == "removal":
        shutil.rmtree = die  # type: ignore[assignment]
    elif moment == "moved":
        Path.unlink = unlinked  # type: ignore[method-assign]


def search(folder: str, moment: str = "", count: int = 0, overwrite: bool = False) -> None:
    """A whole search into `folder`/store, marking rows as done at every block of 8."""
    from milnet.pool import make_store

    torch.set_num_threads(1)
    if moment:
        suicide(moment, count)
    table = made.table(1500)
    make_store(
        table,
        large(),
        Path(folder) / "store",
        10,
        pool_rows=table.rows_where("split", "train"),
        group="theme",
        overwrite=overwrite,
        block=8,
        save_seconds=0,
    )
