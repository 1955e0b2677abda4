"""Pure search over two matrices: the K pool rows most similar to each query.

Exact and blocked: matrix products propose candidates, whose similarity is then computed again, row by row in float64,
so the result depends on neither block size nor batch. Ties go to the lower pool position. What must not be found (the
photo itself, its twin, its group) is excluded before ranking.

The product of a block of queries goes over the pool tile by tile. Only what comes within the rounding error of the k-th
best so far is looked at again, a few numbers a tile, so that nearly all the time is the product's own. Queries are read
block by block, the pool is held once as float32; one that is too large for that is read tile by tile for each block.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import IntArray
from milnet.errors import NumericError, UsageError
from milnet.features import evenly, stored_rows, torch_threads

Similarity = Literal["cosine", "l2"]
SAME_PHOTO = 0.97  # cosine above which two photos count as the same one
BLOCK = 1024  # queries searched for at once: the product of fewer is slower
_SLACK = 16  # candidates beyond K that are kept while tiles go by
_TILE = 8192  # pool rows in a product on a CPU: 32 MiB of it at a time, about what caches hold
_FIRST = 1024  # pool rows in the first product, of which nothing is known yet; each next one may double
_FORGOTTEN = 64 * 1024  # rows after which the pages of a memory map are let go
_READ = 1024  # rows read at once: with more, most of the time goes into fresh memory
_ROUNDING = 2.0**-23  # times sqrt(D) and the squared lengths: far above the rounding seen in float32 products


@dataclass(frozen=True)
class References:
    """For Q queries the K most similar pool rows, most similar first.

    `index` [Q, K] int64 pool rows, -1 where fewer than K were allowed; `similarity` [Q, K] float32, -inf there. A
    result that repeats a row or is not in order is refused.
    """

    index: IntArray
    similarity: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.index.shape != self.similarity.shape or self.index.ndim != 2:
            raise UsageError(f"expected two equal [Q, K] arrays, got {self.index.shape} and {self.similarity.shape}")
        if (self.similarity[:, 1:] > self.similarity[:, :-1]).any():
            raise UsageError("references must come with falling similarity")
        ordered = np.sort(self.index, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise UsageError("a photo cannot be the same query's reference twice")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which of the K places are filled, [Q, K]."""
        return self.index >= 0

    def first(self, k: int) -> References:
        """The k most similar."""
        return References(self.index[:, :k], self.similarity[:, :k])


@dataclass(frozen=True)
class Exclusion:
    """Pairs that must not meet: query i never gets pool row j when `query[i] == pool[j] >= 0` (ids, pixels, groups)."""

    query: IntArray  # [Q] codes, negative = excludes nothing
    pool: IntArray  # [P]

    def meet(self, queries: slice, pool: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each of `queries` and the pool rows `pool` [q or 1, K] beside it are such a pair, [q, K]."""
        own = self.query[queries, None]
        return np.asarray((self.pool[pool] == own) & (own >= 0))


def same_photo_limit(semantic: NDArray[Any], rows: IntArray, sample: int = 512) -> float | None:
    """The cosine above which two photos count as the same one, or None where likeness cannot tell.

    In the features of an untrained network all photos are alike and .97 would mean nothing. So the limit holds only
    where it is rare: one pair, or fewer than 2 % of the pairs, of (at most 512, evenly taken) photos are above it.
    """
    if len(rows) < 2:
        return SAME_PHOTO
    x = read_rows(semantic, np.sort(rows)[evenly(len(rows), sample)], "cosine")
    above = int((x @ x.T > SAME_PHOTO).sum()) - len(x)
    return SAME_PHOTO if above <= 2 or above < 0.02 * len(x) * (len(x) - 1) else None  # a pair is counted twice


def _ascending(rows: IntArray) -> IntArray:
    """The order in which `rows` are read: a memory map gives ascending rows about three times faster."""
    sorted_already = len(rows) < 2 or bool((rows[1:] > rows[:-1]).all())
    return np.arange(len(rows)) if sorted_already else np.argsort(rows, kind="stable")


def read_rows(array: NDArray[Any], rows: IntArray, similarity: Similarity) -> Tensor:
    """Rows [n] of an array as float32 [n, D], of length 1 for cosine: a copy, whatever the array is."""
    consecutive = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    part = array[int(rows[0]) : int(rows[-1]) + 1] if consecutive else stored_rows(array, rows)
    # torch widens float16 several times faster than numpy, but takes no read-only or reversed array
    tensor = torch.from_numpy(np.array(part, order="C")).float()
    lengths = tensor.norm(dim=1, keepdim=True)
    if not torch.isfinite(lengths).all() and not torch.isfinite(tensor).all():  # lengths alone may overflow
        row = rows[int((~torch.isfinite(tensor).all(1)).nonzero()[0])]
        raise NumericError(f"row {row} of the features is not finite: unreadable photos must be left out of a search")
    # the bits of torch.nn.functional.normalize, in place
    return tensor.div_(lengths.clamp_min_(1e-12)) if similarity == "cosine" else tensor


def forget_pages(array: NDArray[Any]) -> None:
    """Let go of what was read of a memory map: pages that stay mapped count as this process's memory."""
    array = getattr(array, "codes", array)  # of rows kept as bytes
    if isinstance(array, np.memmap) and array.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # read only: nothing can be lost


@dataclass(frozen=True)
class Prepared:
    """A pool as it is searched: rows `chosen` [P] of `array`, of length 1 for cosine, the `longest` of them.

    `rows` [P, D] float32, with `half_squares` [P] of their lengths for l2; None where they do not fit into the memory
    allowed and are read whenever they are needed.
    """

    array: NDArray[Any]
    chosen: IntArray
    similarity: Similarity
    device: str
    longest: Tensor
    rows: Tensor | None
    half_squares: Tensor | None

    @staticmethod
    def of(
        array: NDArray[Any], chosen: IntArray, similarity: Similarity, device: str = "cpu", memory: int | None = None
    ) -> Prepared:
        """Read it once. `memory`: bytes of float32 that may be held (None: all of it)."""
        held = memory is None or held_bytes(len(chosen), array.shape[1]) <= memory
        rows = torch.empty((len(chosen), array.shape[1]), device=device) if held else None
        squares = torch.empty(len(chosen), device=device) if held and similarity == "l2" else None
        longest = torch.zeros((), device=device)
        order = _ascending(chosen)
        for start in range(0, len(order), _READ):
            places = order[start : start + _READ]
            part = read_rows(array, chosen[places], similarity).to(device)
            at = torch.from_numpy(places).to(device)
            longest = torch.maximum(longest, part.norm(dim=1).max())
            if rows is not None:
                rows.index_copy_(0, at, part)
            if squares is not None:
                squares.index_copy_(0, at, part.square_().sum(1) / 2)
            if start % _FORGOTTEN == 0:
                forget_pages(array)
        forget_pages(array)
        return Prepared(array, chosen, similarity, device, longest, rows, squares)

    def __len__(self) -> int:
        return len(self.chosen)

    def at(self, positions: Tensor) -> Tensor:
        """Rows of pool positions [n], [n, D]."""
        if self.rows is not None:
            return self.rows.index_select(0, positions)
        return _rows_at(self.array, self.chosen, positions.cpu().numpy(), self.similarity).to(self.device)

    def tile(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Rows of the positions from `start` to `stop`, and half the squares of their lengths for l2."""
        if self.rows is not None:
            return self.rows[start:stop], None if self.half_squares is None else self.half_squares[start:stop]
        parts, halves = [], []
        with torch_threads(1):  # as where it is held: the last bits of a length depend on it
            for first in range(start, stop, _READ):
                positions = np.arange(first, min(first + _READ, stop))
                part = _rows_at(self.array, self.chosen, positions, self.similarity).to(self.device)
                parts.append(part)
                if self.similarity == "l2":
                    halves.append(part.square().sum(1) / 2)
        forget_pages(self.array)
        return torch.cat(parts), torch.cat(halves) if halves else None


def held_bytes(photos: int, width: int) -> int:
    """Bytes of a pool that is held for a search."""
    return 4 * photos * width


def _rows_at(array: NDArray[Any], chosen: IntArray, positions: IntArray, similarity: Similarity) -> Tensor:
    """`read_rows` of positions [n] among `chosen`, each row read once and in ascending order."""
    wanted, inverse = np.unique(chosen[positions], return_inverse=True)
    rows = read_rows(array, wanted, similarity)
    return rows if len(wanted) == len(positions) and (np.diff(inverse) == 1).all() else rows[torch.from_numpy(inverse)]


def search(
    queries: NDArray[Any],
    pool: NDArray[Any],
    k: int,
    *,
    query_rows: IntArray | None = None,
    pool_rows: IntArray | None = None,
    exclude: Sequence[Exclusion] = (),
    similarity: Similarity = "cosine",
    near_duplicate: float | None = SAME_PHOTO,
    block: int = BLOCK,
    device: str = "cpu",
    prepared: Prepared | None = None,
    memory: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> References:
    """The `k` rows of `pool` [P, D] most similar to each of `queries` [Q, D].

    Both may be memory-mapped and of any float type. With `query_rows` [Q] and `pool_rows` [P], row numbers into larger
    arrays, only those rows take part; positions found and excluded are those in `pool_rows`, and nothing is copied
    but a block of queries and, once, the pool as float32.

    `similarity`: cosine, or `l2` (minus the Euclidean distance, as the published code). `near_duplicate`: pool rows
    whose cosine with the query is above it count as the same photo and are left out (None: keep them; only for cosine).
    Places that cannot be filled hold -1. `block`: queries at once; changes time and memory (about 0.1 MB a query), not
    the result; nor does `memory`: bytes above which the pool is not held as float32 but read again for each block
    (None: held). `prepared`: the same pool rows, read before. Raises NumericError naming a row (of its array) that is
    not finite, UsageError for shapes that do not fit.
    """
    count = len(queries) if query_rows is None else len(query_rows)
    index = np.full((count, max(k, 0)), -1, np.int64)
    best = np.full(index.shape, -np.inf, np.float32)
    done = 0
    for places, found in search_blocks(
        queries,
        pool,
        k,
        query_rows=query_rows,
        pool_rows=pool_rows,
        exclude=exclude,
        similarity=similarity,
        near_duplicate=near_duplicate,
        block=block,
        device=device,
        prepared=prepared,
        memory=memory,
    ):
        index[places], best[places] = found.index, found.similarity
        done += len(places)
        if progress is not None:
            progress(done, count, "searches")
    return References(index, best)


def search_blocks(
    queries: NDArray[Any],
    pool: NDArray[Any],
    k: int,
    *,
    query_rows: IntArray | None = None,
    pool_rows: IntArray | None = None,
    exclude: Sequence[Exclusion] = (),
    similarity: Similarity = "cosine",
    near_duplicate: float | None = SAME_PHOTO,
    block: int = BLOCK,
    device: str = "cpu",
    prepared: Prepared | None = None,
    memory: int | None = None,
) -> Iterator[tuple[IntArray, References]]:
    """`search`, block by block, for work that is saved on the way: positions [B] among the queries, their references.

    Blocks come in the order in which their rows are stored.
    """
    check_shapes(queries, pool, k, block)
    wanted = np.arange(len(queries)) if query_rows is None else np.asarray(query_rows, np.int64)
    if not len(wanted):
        return
    chosen = np.arange(len(pool)) if pool_rows is None else np.asarray(pool_rows, np.int64)
    if prepared is None:
        with torch_threads(1):  # as below
            prepared = Prepared.of(pool, chosen, similarity, device, memory)
    codes = [(e.query, torch.from_numpy(e.pool).to(device)) for e in exclude]
    limit = near_duplicate if similarity == "cosine" else None
    order = _ascending(wanted)
    space: dict[str, Tensor] = {}
    for start in range(0, len(order), block):
        places = order[start : start + block]
        with torch_threads(1):
            q = read_rows(queries, wanted[places], similarity).to(device)
        own = [(torch.from_numpy(query[places]).to(device), theirs) for query, theirs in codes]
        yield places, _search_block(q, prepared, k, own, similarity, limit, space)


def check_shapes(queries: NDArray[Any], pool: NDArray[Any], k: int, block: int) -> None:
    """Raise UsageError unless [Q, D] and [P, D] can be searched for `k` in blocks."""
    if queries.ndim != 2 or pool.ndim != 2 or queries.shape[1] != pool.shape[1]:
        raise UsageError(f"expected queries [Q, D] and pool [P, D], got {queries.shape} and {pool.shape}")
    if k < 1 or block < 1:
        raise UsageError(f"expected k >= 1 and block >= 1, got {k} and {block}")


def _search_block(
    q: Tensor,
    pool: Prepared,
    k: int,
    codes: Sequence[tuple[Tensor, Tensor]],
    similarity: Similarity,
    limit: float | None,
    space: dict[str, Tensor],
) -> References:
    """References of one block [B, D]. `space` keeps the memory of the products from one block to the next."""
    error = rounding(q, pool.longest)
    best = _Best(q, pool, error, k, similarity)
    largest = _TILE if q.device.type == "cpu" else 8 * _TILE
    start = 0
    while start < len(pool):
        stop = min(start + min(max(_FIRST, start), largest), len(pool))
        tile, half_squares = pool.tile(start, stop)
        rough = _room(space, "rough", q, (len(q), stop - start), torch.float32)
        if half_squares is None:
            torch.mm(q, tile.T, out=rough)
        else:
            torch.addmm(-half_squares, q, tile.T, out=rough)
        # Only products are worth several threads: after microseconds of work, waiting for a busy core costs more.
        with torch_threads(1):
            above = _room(space, "above", q, (len(q), stop - start), torch.bool)
            torch.ge(rough, best.floor[:, None], out=above)
            # flat positions: pairs of indices take twice as long to find
            flat = above.view(-1).nonzero()[:, 0]
            values = rough.view(-1)[flat]
            rows = torch.div(flat, stop - start, rounding_mode="floor")
            positions = flat - rows * (stop - start) + start
            keep = _allowed(q, pool, rows, positions, values, error, codes, limit)
            if keep is not None:
                rows, positions, values = rows[keep], positions[keep], values[keep]
            if len(rows):
                best.add(rows, positions, values)
        start = stop
    with torch_threads(1):
        return best.ranked()


def rounding(q: Tensor, longest: Tensor | float) -> Tensor:
    """A bound [B] on the error of a float32 product of each query with any row that is no longer than `longest`."""
    bound: Tensor = _ROUNDING * q.shape[1] ** 0.5 * (q.norm(dim=1) + longest).square()
    return bound


def _room(space: dict[str, Tensor], name: str, like: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory that is used again: fresh pages for every product cost as much as looking through it."""
    size = shape[0] * shape[1]
    if name not in space or space[name].numel() < size:
        space[name] = torch.empty(size, dtype=dtype, device=like.device)
    return space[name][:size].view(shape)


def _allowed(
    q: Tensor,
    pool: Prepared,
    rows: Tensor,
    positions: Tensor,
    values: Tensor,
    error: Tensor,
    codes: Sequence[tuple[Tensor, Tensor]],
    limit: float | None,
) -> Tensor | None:
    """Which pairs of query and pool row may meet, [n] bool, or None when all may.

    Cosines at the border of `limit` (wrong by `error` at most) are computed exactly.
    """
    bad: Tensor | None = None
    for own, theirs in codes:
        mine = own[rows]
        same = (mine == theirs[positions]) & (mine >= 0)
        bad = same if bad is None else bad | same
    if limit is not None:
        margin = error[rows]
        above = values > limit
        border = ((values >= limit - margin) & (values <= limit + margin)).nonzero()[:, 0]
        for part in torch.split(border, 512):  # bounds the gathered copy
            above[part] = _exact(q[rows[part]], pool.at(positions[part]), "cosine") > limit
        bad = above if bad is None else bad | above
    return None if bad is None or not bool(bad.any()) else ~bad


def _exact(q: Tensor, p: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of rows [..., D] that belong together, in float64."""
    near, own = p.double(), q.double()
    return near.mul_(own).sum(-1) if similarity == "cosine" else -near.sub_(own).norm(dim=-1)


class _Best:
    """The candidates of B queries so far, at least all that may be among the `k` best: values, positions [B, C].

    `floor` [B]: a product below it is out. Products are wrong by `error` at most, so k values that reach v mean k
    similarities that reach v - error, and what is below v - 2 error is behind all of them.
    """

    def __init__(self, q: Tensor, pool: Prepared, error: Tensor, k: int, similarity: Similarity) -> None:
        self.q, self.pool, self.error, self.k, self.similarity = q, pool, error, k, similarity
        self.many = k + _SLACK
        self.values = torch.full((len(q), self.many + _FIRST), -torch.inf, device=q.device)
        self.positions = torch.zeros(self.values.shape, dtype=torch.int64, device=q.device)
        self.count = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        self.floor = torch.full((len(q),), -torch.inf, device=q.device)

    def add(self, rows: Tensor, positions: Tensor, values: Tensor) -> None:
        """Take in n candidates, `rows` ascending, and leave out what can no longer be among the best."""
        new = torch.bincount(rows, minlength=len(self.q))
        width = int((self.count + new).max())
        if width > self.values.shape[1]:
            more = (0, width - self.values.shape[1])
            self.values = torch.nn.functional.pad(self.values, more, value=-torch.inf)
            self.positions = torch.nn.functional.pad(self.positions, more)
        first = self.count - (new.cumsum(0) - new) + torch.arange(len(new), device=rows.device) * self.values.shape[1]
        at = torch.arange(len(rows), device=rows.device) + first[rows]
        self.values.view(-1)[at] = values
        self.positions.view(-1)[at] = positions
        self.count += new
        self._tighten(width)

    def _tighten(self, width: int) -> None:
        many = min(self.many, width)
        values, at = self.values[:, :width].topk(many, dim=1)
        positions = self.positions.gather(1, at)
        if many >= self.k:
            self.floor = values[:, self.k - 1] - 2 * self.error
        if many < width:
            # Where what is left out is not clearly behind the k-th, products cannot decide: the exact order does.
            unclear = (self.count > many) & (values[:, -1] >= self.floor)
            for row in unclear.nonzero()[:, 0].tolist():
                positions[row], values[row] = self._decided(row, width, many)
            self.values[:, many:width] = -torch.inf
            self.count.clamp_(max=many)
        self.values[:, :many], self.positions[:, :many] = values, positions

    def _decided(self, row: int, width: int, many: int) -> tuple[Tensor, Tensor]:
        """The `many` best of one query by exact similarity, ties to the lower position; highest product first."""
        near = (self.values[row, :width] >= self.floor[row]).nonzero()[:, 0]
        near = near[self.positions[row, near].argsort()]
        exact = torch.cat(
            [
                _exact(self.q[row], self.pool.at(self.positions[row, part]), self.similarity)
                for part in torch.split(near, 512)
            ]
        )
        near = near[exact.float().argsort(descending=True, stable=True)[:many]]
        values, order = self.values[row, near].sort(descending=True)
        return self.positions[row, near[order]], values

    def ranked(self) -> References:
        """The k best by exact similarity, ties to the lower position."""
        width = int((self.values >= self.floor[:, None]).logical_and_(self.values > -torch.inf).sum(1).max())
        values, candidates = self.values[:, :width], self.positions[:, :width]  # highest first since the last `add`
        scores = similarities(self.q, self.pool, candidates)
        return ranked(torch.where(values == -torch.inf, -torch.inf, scores.float()), candidates, self.k)


def similarities(q: Tensor, pool: Prepared, candidates: Tensor) -> Tensor:
    """Exact similarity [B, C] float64 of queries [B, D] and pool positions `candidates` [B, C] beside them."""
    width = candidates.shape[1]
    scores = torch.full(candidates.shape, -torch.inf, dtype=torch.float64, device=q.device)
    # A gathered copy that stays in the cache; elsewhere one that keeps the device busy.
    numbers = 1 << (18 if q.device.type == "cpu" else 25)
    step = max(1, numbers // max(1, width * q.shape[1]))
    for i in range(0, len(q) if width else 0, step):
        of = slice(i, i + step)
        near = pool.at(candidates[of].reshape(-1)).view(-1, width, q.shape[1])
        scores[of] = _exact(q[of, None], near, pool.similarity)
    return scores


def ranked(scores: Tensor, candidates: Tensor, k: int) -> References:
    """The `k` best of `candidates` [B, C] by their `scores` [B, C], -inf for none, ties to the lower position."""
    by_position = candidates.argsort(dim=1, stable=True)
    scores, candidates = scores.gather(1, by_position), candidates.gather(1, by_position)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores, candidates = scores.gather(1, order), candidates.gather(1, order)
    index = np.full((len(scores), k), -1, np.int64)
    best = np.full(index.shape, -np.inf, np.float32)
    filled = scores > -torch.inf
    index[:, : order.shape[1]] = torch.where(filled, candidates, -1).cpu().numpy()
    best[:, : order.shape[1]] = scores.cpu().numpy()
    return References(index, best)
