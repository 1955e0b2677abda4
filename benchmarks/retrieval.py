"""References at AVA's size: exact search beside the bare matrix product, and beside the published way.

    python benchmarks/retrieval.py

Ours: `milnet.references.search`, as `milnet references` uses it: the pool read once from float16, queries block by
block, near-duplicates left out, the k best ranked in float64.
The floor: `queries @ pool.T` in float32 and nothing else, the same blocks of queries, whole and in the same tiles of
the pool (the faster of the two counts), its memory kept from one product to the next. What ours takes beyond it is the
price of ranking. Both run block by block in turn, so that a slow moment of the machine meets both.
Theirs: the way of the published code, one query at a time: `torch.nn.functional.pairwise_distance` to every pool photo,
then a full `argsort`.
The pool is synthetic and seeded: photos around centres, at distances that differ from photo to photo, and one in a
hundred nearly the copy of another. A sample of the queries is compared with all products in float64.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.references import BLOCK, SAME_PHOTO, References, search_blocks
from timing import Ratio, machine

TILE = 8192  # pool rows in a product, as ours
UNIT = 2.0**-23  # of float32 numbers from 1 to 2


def clustered(photos: int, width: int, centres: int, seed: int) -> NDArray[Any]:
    """Features [photos, width] float16 around `centres` centres; every hundredth row is nearly the one before it."""
    middle = np.random.default_rng(0).standard_normal((centres, width), np.float32)
    generator = np.random.default_rng([1, seed])
    features = np.empty((photos, width), np.float16)
    for start in range(0, photos, 4096):
        count = min(4096, photos - start)
        spread = generator.uniform(0.4, 1.0, (count, 1)).astype(np.float32)
        part = middle[generator.integers(0, centres, count)]
        part += spread * generator.standard_normal((count, width), np.float32)
        part[100::100] = part[99:-1:100] + 0.05 * generator.standard_normal(part[100::100].shape, np.float32)
        features[start : start + count] = part
    return features


def normalised(features: NDArray[Any]) -> Tensor:
    """Float32 rows of length 1, [N, D]."""
    rows = torch.empty(features.shape)
    for start in range(0, len(features), 4096):
        part = torch.from_numpy(features[start : start + 4096]).float()
        rows[start : start + 4096] = torch.nn.functional.normalize(part, dim=1)
    return rows


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@dataclass
class Floor:
    """The products of one block of queries with the whole pool, and nothing else."""

    pool: Tensor
    block: int

    def __post_init__(self) -> None:
        self.room = torch.empty(self.block * len(self.pool))

    def whole(self, q: Tensor) -> None:
        """One product."""
        torch.mm(q, self.pool.T, out=self.room[: len(q) * len(self.pool)].view(len(q), -1))

    def tiled(self, q: Tensor) -> None:
        """One product for each tile, all into the same memory."""
        for start in range(0, len(self.pool), TILE):
            tile = self.pool[start : start + TILE]
            torch.mm(q, tile.T, out=self.room[: len(q) * len(tile)].view(len(q), -1))


def published(pool: Tensor, one: Tensor) -> Tensor:
    """Pool positions from near to far, [P], for one query [1, D]."""
    return torch.nn.functional.pairwise_distance(pool, one.expand_as(pool)).argsort()


@dataclass
class Found:
    """What was measured: seconds for each block of queries, and the references of all of them."""

    references: References
    reading: float
    ours: list[float]
    whole: list[float]
    tiled: list[float]
    sizes: list[int]


def measure(queries: NDArray[Any], pool: NDArray[Any], rows: Tensor, k: int, block: int) -> Found:
    """Search for all queries; after each block of ours, its bare products. `rows`: the pool, normalised."""
    floor = Floor(rows, min(block, len(queries)))
    reading = seconds(lambda: list(search_blocks(queries[:1], pool, k)))  # one query: nearly all of it is the pool
    index, similarity = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    ours: list[float] = []
    whole: list[float] = []
    tiled: list[float] = []
    sizes: list[int] = []
    blocks = search_blocks(queries, pool, k, block=block)
    warm = normalised(queries[:block])
    floor.whole(warm)
    while True:
        began = time.perf_counter()
        following = next(blocks, None)
        took = time.perf_counter() - began
        if following is None:
            break
        places, references = following
        index[places], similarity[places] = references.index, references.similarity
        q = normalised(queries[places])
        ours.append(took)
        tiled.append(seconds(lambda q=q: floor.tiled(q)))  # type: ignore[misc]
        whole.append(seconds(lambda q=q: floor.whole(q)))  # type: ignore[misc]
        sizes.append(len(places))
    return Found(References(index, similarity), reading, ours, whole, tiled, sizes)


def disagreement(found: References, queries: NDArray[Any], rows: Tensor, picks: NDArray[np.int64]) -> tuple[int, float]:
    """Against all products in float64: places where another photo stands, and the largest difference in similarity.

    Photos whose similarity is the same float32 number up to its last bit may change places: sums in another order.
    """
    q = normalised(queries[picks]).double()
    values = torch.empty((len(picks), len(rows)), dtype=torch.float64)
    for start in range(0, len(rows), TILE):
        values[:, start : start + TILE] = q @ rows[start : start + TILE].double().T
    values[values > SAME_PHOTO] = -torch.inf
    k = found.index.shape[1]
    expected = torch.argsort(values.float(), dim=1, descending=True, stable=True)[:, :k].numpy()
    best = np.take_along_axis(values.numpy(), expected, 1)
    full = np.full(found.index[picks].shape, -np.inf)
    full[:, : best.shape[1]] = best
    ours = found.similarity[picks].astype(np.float64)
    both = np.isfinite(full) & np.isfinite(ours)
    if not np.array_equal(np.isfinite(full), np.isfinite(ours)):
        return found.index.size, float("inf")
    apart = float(np.abs(full - ours)[both].max(initial=0.0))
    padded = np.full(full.shape, -1)
    padded[:, : expected.shape[1]] = expected
    return int((np.where(both, padded, -1) != found.index[picks]).sum()), apart


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000, help="photos that want references (default 20,000)")
    parser.add_argument("--pool", type=int, default=217_110, help="photos to find them among (default 217,110)")
    parser.add_argument("--width", type=int, default=2048, help="numbers a photo (default 2048)")
    parser.add_argument("--k", type=int, default=100, help="references a photo (default 100)")
    parser.add_argument("--centres", type=int, default=2000, help="centres of the synthetic photos (default 2,000)")
    parser.add_argument("--block", type=int, default=BLOCK, help=f"queries in a product (default {BLOCK})")
    parser.add_argument("--sample", type=int, default=50, help="queries compared with float64 (default 50)")
    parser.add_argument("--published", type=int, default=5, help="queries searched the published way (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    print(
        f"{options.queries:,} queries, pool {options.pool:,} x {options.width:,} float16, {options.k} references, "
        f"blocks of {options.block}"
    )
    pool = clustered(options.pool, options.width, options.centres, 0)
    queries = clustered(options.queries, options.width, options.centres, 1)
    rows = normalised(pool)
    found = measure(queries, pool, rows, options.k, options.block)

    total = sum(found.ours)
    floor = min(sum(found.whole), sum(found.tiled))
    work = 2 * options.queries * options.pool * options.width / 1e9
    name = "whole" if sum(found.whole) <= sum(found.tiled) else "in tiles"
    print(f"products alone, {name}: {floor:.1f} s, {options.queries / floor:.0f} queries/s, {work / floor:.0f} GFLOP/s")
    print(f"  (whole {sum(found.whole):.1f} s, in tiles {sum(found.tiled):.1f} s)")
    print(f"ours: {total:.1f} s, {options.queries / total:.0f} queries/s; of it reading the pool {found.reading:.1f} s")
    rest = [min(pair) / ours for ours, *pair in zip(found.ours, found.whole, found.tiled, strict=True)][1:]
    spread = f"; blocks after the first {min(rest):.2f} .. {max(rest):.2f}, median {statistics.median(rest):.2f}"
    print(f"rate of ours / rate of the products alone: {floor / total:.3f}{spread if rest else ''}")

    picks = np.random.default_rng(2).choice(options.queries, min(options.sample, options.queries), replace=False)
    differ, apart = disagreement(found.references, queries, rows, picks.astype(np.int64))
    print(f"{len(picks)} queries against float64: {differ} of {len(picks) * options.k} places differ, by {apart:.1g}")
    if apart > UNIT:
        raise SystemExit(f"the similarities differ by {apart:.2g}, allowed {UNIT:.2g}")

    ones = normalised(queries[: options.published])
    times = [seconds(lambda i=i: published(rows, ones[i : i + 1])) for i in range(len(ones))]  # type: ignore[misc]
    each = statistics.median(times)
    per_query = [ours / size for ours, size in zip(found.ours, found.sizes, strict=True)]
    print(f"published, one query at a time: {each * 1e3:.1f} ms a query; ours {total / options.queries * 1e3:.3f} ms")
    print(Ratio([statistics.mean(per_query)] * len(times), times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (30 if sys.platform == "darwin" else 20))
    print(f"peak memory {peak:.1f} GiB, all ways and the float16 and float32 pools of the comparison included")


if __name__ == "__main__":
    main()
