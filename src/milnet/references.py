"""Pure search over two matrices: the K pool rows most similar to each query.

Exact and blocked: a matrix product proposes a few more candidates than asked, each candidate's similarity is then
computed again, row by row in float64, so the result depends on neither block size nor batch. Ties go to the lower pool
position. What must not be found (the photo itself, its twin, its group) is excluded before ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import IntArray
from milnet.errors import NumericError, UsageError

Similarity = Literal["cosine", "l2"]
SAME_PHOTO = 0.97  # cosine above which two photos count as the same one
_SLACK = 8  # candidates beyond K that the matrix product proposes
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


def same_photo_limit(semantic: NDArray[Any], rows: IntArray, sample: int = 512) -> float | None:
    """The cosine above which two photos count as the same one, or None where likeness cannot tell.

    In the features of an untrained network all photos are alike and .97 would mean nothing. So the limit holds only
    where it is rare: one pair, or fewer than 2 % of the pairs, of (at most 512, evenly taken) photos are above it.
    """
    if len(rows) < 2:
        return SAME_PHOTO
    some = np.unique(np.linspace(0, len(rows) - 1, min(sample, len(rows))).astype(np.int64))
    x = _normalised(semantic[np.sort(rows)[some]], "cosine")
    above = int((x @ x.T > SAME_PHOTO).sum()) - len(x)
    return SAME_PHOTO if above <= 2 or above < 0.02 * len(x) * (len(x) - 1) else None  # a pair is counted twice


def _normalised(matrix: NDArray[Any], similarity: Similarity) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
    if not torch.isfinite(tensor).all():
        row = int((~torch.isfinite(tensor).all(1)).nonzero()[0])
        raise NumericError(f"row {row} of the features is not finite: unreadable photos must be left out of a search")
    return torch.nn.functional.normalize(tensor, dim=1) if similarity == "cosine" else tensor


def search(
    queries: NDArray[Any],
    pool: NDArray[Any],
    k: int,
    *,
    exclude: Sequence[Exclusion] = (),
    similarity: Similarity = "cosine",
    near_duplicate: float | None = SAME_PHOTO,
    block: int = 256,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> References:
    """The `k` rows of `pool` [P, D] most similar to each of `queries` [Q, D].

    `similarity`: cosine, or `l2` (minus the Euclidean distance, as the published code). `near_duplicate`: pool rows
    whose cosine with the query is above it count as the same photo and are left out (None: keep them; only for cosine).
    Places that cannot be filled hold -1.
    """
    if queries.ndim != 2 or pool.ndim != 2 or queries.shape[1] != pool.shape[1]:
        raise UsageError(f"expected queries [Q, D] and pool [P, D], got {queries.shape} and {pool.shape}")
    if k < 1 or block < 1:
        raise UsageError(f"expected k >= 1 and block >= 1, got {k} and {block}")
    q_all, p = _normalised(queries, similarity), _normalised(pool, similarity).to(device)
    codes = [(torch.from_numpy(e.query), torch.from_numpy(e.pool).to(device)) for e in exclude]
    half_square = p.square().sum(1) / 2 if similarity == "l2" else None
    longest = p.norm(dim=1).max() if len(p) else torch.zeros((), device=device)
    index = np.full((len(q_all), k), -1, np.int64)
    best = np.full((len(q_all), k), -np.inf, np.float32)
    for start in range(0, len(q_all), block):
        stop = min(start + block, len(q_all))
        q = q_all[start:stop].to(device)
        rough = q @ p.T if half_square is None else torch.addmm(-half_square, q, p.T)
        for query_codes, pool_codes in codes:
            own = query_codes[start:stop].to(device)[:, None]
            rough.masked_fill_((own == pool_codes[None]) & (own >= 0), -torch.inf)
        error = _ROUNDING * q.shape[1] ** 0.5 * (q.norm(dim=1) + longest).square()  # [B] bound on that of `rough`
        if similarity == "cosine" and near_duplicate is not None:
            _drop_near(q, p, rough, error, near_duplicate)
        rows, values = _rank(q, p, rough, error, k, similarity)
        index[start:stop, : rows.shape[1]] = rows.cpu().numpy()
        best[start:stop, : rows.shape[1]] = values.cpu().numpy()
        if progress is not None:
            progress(stop, len(q_all), "searches")
    return References(index, best)


def _drop_near(q: Tensor, p: Tensor, rough: Tensor, error: Tensor, limit: float) -> None:
    """Set to -inf, in place, the pairs whose exact cosine is above `limit`; only those at the border are computed."""
    above = rough > limit
    border = ((rough >= limit - error[:, None]) & (rough <= limit + error[:, None])).nonzero()
    for part in torch.split(border, 4096):  # bounds the gathered copy
        i, j = part.unbind(1)
        above[i, j] = _exact(q[i], p[j], "cosine") > limit
    rough.masked_fill_(above, -torch.inf)


def _exact(q: Tensor, p: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of rows [..., D] that belong together, in float64."""
    near, own = p.double(), q.double()
    return (near * own).sum(-1) if similarity == "cosine" else -(near - own).norm(dim=-1)


def _rank(q: Tensor, p: Tensor, rough: Tensor, error: Tensor, k: int, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Exact order of one block: rows [B, min(k, P)] and similarities float32. `rough` is wrong by `error` at most."""
    many = min(k + _SLACK, len(p))
    values, candidates = rough.topk(many, dim=1)
    exact = torch.empty(values.shape, dtype=torch.float64, device=q.device)
    for i in range(0, len(q), 32):  # bounds the gathered copy
        exact[i : i + 32] = _exact(q[i : i + 32, None], p[candidates[i : i + 32]], similarity)
    exact = torch.where(values == -torch.inf, -torch.inf, exact)
    # The proposals are complete when the last of them is clearly behind the k-th; if not, look further for that query.
    if many < len(p):
        floor = values[:, k - 1] - 2 * error
        for row in ((values[:, -1] >= floor) & (values[:, -1] > -torch.inf)).nonzero()[:, 0].tolist():
            candidates[row], exact[row] = _rank_all(q[row], p, rough[row], floor[row], many, similarity)
    scores = exact.float()
    by_position = candidates.argsort(dim=1, stable=True)
    scores, candidates = scores.gather(1, by_position), candidates.gather(1, by_position)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores, candidates = scores.gather(1, order), candidates.gather(1, order)
    return torch.where(scores == -torch.inf, -1, candidates), scores


def _rank_all(
    q: Tensor, p: Tensor, rough: Tensor, floor: Tensor, many: int, similarity: Similarity
) -> tuple[Tensor, Tensor]:
    """The `many` best for one query among all pool rows whose `rough` reaches `floor`, ties to the lower position."""
    candidates = (rough >= floor).nonzero()[:, 0]
    exact = torch.cat([_exact(q, p[part], similarity) for part in torch.split(candidates, 4096)])
    order = exact.float().argsort(descending=True, stable=True)[:many]
    return candidates[order], exact[order]
