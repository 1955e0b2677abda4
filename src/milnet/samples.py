"""Batches of photos with their references, read from memory or from a memory map.

The order of an epoch is a pure function of (seed, phase, epoch).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import IntArray
from milnet.errors import UsageError
from milnet.features import Maps, stored_rows
from milnet.model.common import Pool
from milnet.pool import RatedPool
from milnet.references import References

IN_MEMORY = 1 << 30  # bytes of features that are kept as one tensor; above it rows are read batch by batch


@dataclass(frozen=True)
class Batch:
    """Input of a network, and the true distributions when there are any. Networks widen float16 features."""

    photo: Tensor  # [B, D]
    pool: Pool | None  # only the pool rows this batch needs
    index: Tensor | None  # [B, K] into `pool`; None: all of it
    similarity: Tensor | None  # [B, K]
    keep: Tensor | None  # [B, K] False where a reference is missing; of all of it [B, P]
    target: Tensor | None  # [B, S]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        return Batch(
            self.photo.to(device),
            None if self.pool is None else self.pool.to(device),
            move(self.index),
            move(self.similarity),
            move(self.keep),
            move(self.target),
        )


class Samples:
    """n photos with their references, served as batches of tensors.

    `nodes` [M, D] (or maps [M, 25, D]) with the photos at `rows` [n]; `references` into `pool` or None; `targets`
    [n, S] or None. Each batch reads the rows it needs once, in ascending order. With `whole` the references are all of
    the pool that may be consulted, and the network gets the pool as it is instead of an index into it. `few`: whether a
    photo may have no reference at all.
    """

    def __init__(
        self,
        nodes: NDArray[Any] | Maps,
        rows: IntArray,
        pool: RatedPool | None = None,
        references: References | None = None,
        targets: NDArray[Any] | None = None,
        *,
        whole: bool = False,
        few: bool = False,
    ) -> None:
        self.rows, self.pool, self.references, self.targets = rows, pool, references, targets
        self.whole = whole and references is not None
        if references is not None and not few and not references.found[:, :1].all():
            raise UsageError("a photo has no reference at all: the pool is too small, or its group is all of it")
        self.are_maps = len(nodes.shape) > 2
        self._photos = _Rows(nodes, rows)
        # A service asks for some photos at a time: then a large pool is not copied for the few rows they need.
        self._pool_nodes = None
        if pool is not None and references is not None and not self.whole:
            self._pool_nodes = _Rows(pool.nodes, pool.rows, keep=references.index.size >= len(pool))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        """Whether a batch is made without reading from a disk."""
        pool = self._pool_nodes
        return self._photos.tensor is not None and (pool is None or pool.tensor is not None)

    def batches(self, picks: list[IntArray]) -> Iterator[tuple[Batch, float]]:
        """The batches of `picks` in turn, each with the seconds spent waiting for it.

        What is read from a disk is read ahead, one batch in a second thread.
        """
        if self.in_memory:
            for some in picks:
                began = time.perf_counter()
                batch = self.batch(some)
                yield batch, time.perf_counter() - began
            return
        with ThreadPoolExecutor(1, thread_name_prefix="milnet-batches") as executor:
            following = [executor.submit(self.batch, some) for some in picks[:2]]
            try:
                for i in range(len(picks)):
                    began = time.perf_counter()
                    batch = following.pop(0).result()
                    waited = time.perf_counter() - began
                    if i + 2 < len(picks):
                        following.append(executor.submit(self.batch, picks[i + 2]))
                    yield batch, waited
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def batch(self, picks: IntArray) -> Batch:
        """The batch of samples `picks` [B]."""
        photo = self._photos.take(picks)
        target = None if self.targets is None else torch.from_numpy(self.targets[picks].astype(np.float32))
        if self.pool is None or self.references is None:
            return Batch(photo, None, None, None, None, target)
        found = self.references.index[picks]
        keep = found >= 0
        if self._pool_nodes is None:
            consulted = np.zeros((len(picks), len(self.pool)), np.bool_)
            row, column = np.nonzero(keep)
            consulted[row, found[row, column]] = True
            return Batch(photo, self.pool.tensors, None, None, torch.from_numpy(consulted), target)
        # A place that could not be filled repeats the best reference, for networks that want exactly K.
        needed, index = np.unique(np.where(keep, found, found[:, :1]).clip(0), return_inverse=True)
        pool = Pool(self._pool_nodes.take(needed), *self.pool.judged(needed))
        return Batch(
            photo,
            pool,
            torch.from_numpy(index.reshape(found.shape)),
            torch.from_numpy(self.references.similarity[picks]),
            torch.from_numpy(keep),
            target,
        )


class _Rows:
    """Rows of a feature array as stored: one tensor when that is small, else (or without `keep`) read when asked."""

    def __init__(self, array: NDArray[Any] | Maps, rows: IntArray, keep: bool = True) -> None:
        self.array, self.rows = array, rows
        small = keep and len(rows) * math.prod(array.shape[1:]) * array.itemsize <= IN_MEMORY
        self.tensor = torch.from_numpy(stored_rows(array, rows)) if small else None

    def take(self, picks: IntArray) -> Tensor:
        if self.tensor is not None:
            return self.tensor[torch.from_numpy(picks)]
        return torch.from_numpy(stored_rows(self.array, self.rows[picks]))


def epoch_batches(n: int, size: int, seed: int, phase: str, epoch: int) -> list[IntArray]:
    """The shuffled order of an epoch, cut into nearly equal batches of about `size`.

    No batch holds a single photo (unless n is 1): batch norm could not use it.
    """
    order = np.random.default_rng([seed, zlib.crc32(phase.encode()), epoch]).permutation(n)
    return [part.astype(np.int64) for part in np.array_split(order, max(1, min(-(-n // size), n // 2)))]


def shares(batch: IntArray, processes: int) -> list[IntArray]:
    """A batch cut for so many processes, in its order. None gets a single photo; of a short batch some get nothing."""
    parts = np.array_split(batch, max(1, min(processes, len(batch) // 2)))
    return [*parts, *[batch[:0]] * (processes - len(parts))]
