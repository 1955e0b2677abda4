"""Photo + references with their votes: what people said of the photos that resemble this one, and what it says itself.

    z = (standardised nodes, last layer), each of length 1       likeness  k(x, y) = exp(-g d(x, y))
    w = (K + N)^-1 k(references, x)                              K [K, K] between the references, N their noise
    v = 1 - w . k(references, x)                                 what the references leave open of the photo, 0..1
    p = base + v (own(x) - base) + (1 - v) sum_i w_i (votes_i - base)

`own` is the one-photo network (single.py). The rest is a Gaussian process over the graph of photo and references: w
weighs each reference by its likeness to the photo *and* to the other references, so that five pictures of one lake do
not count five times (Rasmussen and Williams 2006, eq. 2.25), and v is the posterior variance (eq. 2.26) in units of
the prior one. p is linear in the references' votes, so each one's influence on the score is exact. Without references
w = 0 and v = 1: the photo alone.

The references are the K of `index`, or with `index` None the whole pool, whose (K + N)^-1 is kept between calls. Of the
whole pool w and v are the means of two readings: of all of it, and of the 16 most alike alone. The one is better where
nothing in the pool is close, the other where something is (docs/experiments.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from milnet.model.common import Norm, Pool, Standardise
from milnet.model.single import Single

NEAR = 16  # pool photos in the second reading of a whole pool
_AT_ONCE = 16  # photos whose references are gathered together: K rows of D numbers each


class _Consulted(NamedTuple):
    """The references' say before it is shared with the photo's own, float64."""

    weight: Tensor  # [B, K or P] w
    open: Tensor  # [B] v, what they leave open


class Parts(NamedTuple):
    """What is added to `base`, float64."""

    own: Tensor  # [B, S] by the photo itself: v (own(x) - base)
    weight: Tensor  # [B, K or P] times each reference's (votes - base): (1 - v) w


class _Known(NamedTuple):
    """A whole pool as the network uses it."""

    pool: Pool
    settings: tuple[float, ...]
    points: Tensor  # [P, E] float64
    between: Tensor  # [P, P] K + N
    inverse: Tensor  # [P, P] its inverse


class Votes(nn.Module):
    """Photo + pool with votes -> log p [B, S]. `last`: the columns of the nodes that are the backbone's last layer."""

    uses = "references"
    base: Tensor
    scale: Tensor
    sharpness: Tensor
    noise: Tensor
    sampling: Tensor

    def __init__(
        self,
        features: int,
        bins: int,
        *,
        width: int = 128,
        dropout: float = 0.0,
        last: tuple[int, int] | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.own = Single(features, bins, width=width, dropout=dropout, norm=norm)
        self.last = last
        self.register_buffer("base", torch.full((bins,), 1 / bins, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(1 if last is None else 2))  # of the squared distance of each part
        self.register_buffer("sharpness", torch.tensor(1.0))  # g
        self.register_buffer("noise", torch.tensor(0.1))  # of the votes of an endless panel; the signal is 1
        self.register_buffer("sampling", torch.tensor(0.0))  # what a panel of one adds to it
        self._known: _Known | None = None

    @property
    def standardise(self) -> Standardise:
        """In front of the own network and of the likeness alike."""
        return self.own.standardise

    def points(self, nodes: Tensor) -> list[Tensor]:
        """Nodes [..., D] -> the parts whose distances make the likeness, each [..., E_b] of length 1."""
        parts = [normalize(self.standardise(nodes), dim=-1)]
        if self.last is not None:
            parts.append(normalize(nodes[..., slice(*self.last)].float(), dim=-1))
        return parts

    def embed(self, nodes: Tensor) -> Tensor:
        """Nodes [..., D] -> points [..., E] with |z - z'|^2 = sum of `scale` x squared distance of the parts."""
        return torch.cat([x * s.sqrt() for x, s in zip(self.points(nodes), self.scale, strict=True)], dim=-1)

    def likeness(self, z: Tensor, others: Tensor) -> Tensor:
        """k of points [..., N, E] and [..., M, E], [..., N, M] float64 in 0..1."""
        squared = 2 * (self.scale.sum() - z @ others.transpose(-1, -2)).double()
        return torch.exp(-self.sharpness.double() * squared.clamp_min(0))

    def noise_of(self, pool: Pool) -> Tensor:
        """Noise [P] of each pool photo's votes, float64, signal = 1: what likeness cannot tell, and chance.

        A panel of few is trusted less than one of many. `sampling` is in units of what varies between two usual photos,
        whose squared distance is 1 and whose likeness is exp(-g): 1 - exp(-g) of the signal.
        """
        noise = self.noise.double()
        if pool.totals is None:
            return noise.expand(len(pool.nodes))
        return noise - torch.expm1(-self.sharpness.double()) * self.sampling.double() / pool.totals.double()

    def consult(self, photo: Tensor, pool: Pool | None, index: Tensor | None, keep: Tensor | None) -> _Consulted:
        """Who is asked, and what that leaves open. `photo` [B, D]; `keep` is False for whom it must not ask."""
        if pool is None or (index is not None and not index.shape[1]):
            nobody = torch.zeros(len(photo), 0, dtype=torch.float64, device=photo.device)
            return _Consulted(nobody, 1 - nobody.sum(1))
        if index is None:
            return self._beside_all(photo, pool, keep)
        found = [
            self._beside(photo[some], pool, index[some], None if keep is None else keep[some])
            for some in (slice(start, start + _AT_ONCE) for start in range(0, max(len(photo), 1), _AT_ONCE))
        ]
        return _Consulted(torch.cat([one.weight for one in found]), torch.cat([one.open for one in found]))

    def parts(self, photo: Tensor, pool: Pool | None, index: Tensor | None, keep: Tensor | None) -> Parts:
        """What the prediction of each photo [B, D] is made of; `keep` [B, K], of the whole pool [B, P]."""
        return self.weighed(self.alone(photo), self.consult(photo, pool, index, keep))

    def alone(self, photo: Tensor) -> Tensor:
        """What the own network says of photos [B, D], [B, S] float64: of sum 1 to the last bit, not float32's."""
        p: Tensor = self.own(photo).double().exp()
        return p / p.sum(-1, keepdim=True)

    def weighed(self, alone: Tensor, consulted: _Consulted) -> Parts:
        """What `alone` [B, S] and the references add, each with its share."""
        open_ = consulted.open[:, None]
        return Parts(open_ * (alone - self.base), (1 - open_) * consulted.weight)

    def forward(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """`photo` [B, D] -> log p [B, S] float64."""
        return self.joined(self.parts(photo, pool, index, keep), pool, index).log()

    def joined(self, parts: Parts, pool: Pool | None, index: Tensor | None) -> Tensor:
        """The distributions [B, S] that the parts make."""
        return self.mixed(parts.own + self.beside(parts.weight, pool, index))

    def beside(self, weight: Tensor, pool: Pool | None, index: Tensor | None) -> Tensor:
        """What the references add to `base`, [B, S]: the sum of their weighted (votes - base)."""
        if pool is None:
            return weight @ weight.new_zeros(weight.shape[1], len(self.base))
        votes = pool.distributions.double() - self.base
        return weight @ votes if index is None else (weight[..., None] * votes[index]).sum(1)

    def mixed(self, added: Tensor) -> Tensor:
        """`base` + what is added [B, S] as a distribution of the same mean."""
        return with_mean(self.base + added)

    def _beside(self, photo: Tensor, pool: Pool, index: Tensor, keep: Tensor | None) -> _Consulted:
        """w [B, K] and v [B] for the K references of each photo."""
        z = self.embed(pool.nodes[index])  # [B, K, E]
        near = self.likeness(self.embed(photo)[:, None], z)[:, 0]
        between = self.likeness(z, z) + torch.diag_embed(self.noise_of(pool)[index])
        return _solved(near, between, torch.ones_like(near, dtype=torch.bool) if keep is None else keep)

    def _beside_all(self, photo: Tensor, pool: Pool, keep: Tensor | None) -> _Consulted:
        """w [B, P] and v [B] for the whole pool: the mean of two readings, all of it and the nearest alone."""
        known = self._know(pool)
        near = self.likeness(self.embed(photo).double(), known.points)
        keep = torch.ones_like(near, dtype=torch.bool) if keep is None else keep
        near = near * keep
        w = near @ known.inverse
        if not keep.all():
            w = (w - self._of_left_out(w, known.inverse, keep)) * keep  # 0 to the last bit: their votes cannot matter
        few = self._nearest(near, keep)
        close = _solved(near.gather(1, few), known.between[few[:, :, None], few[:, None]], keep.gather(1, few))
        open_ = (1 - (w * near).sum(1)).clamp(0, 1)
        return _Consulted((w.scatter_add(1, few, close.weight)) / 2, (open_ + close.open) / 2)

    @staticmethod
    def _nearest(near: Tensor, keep: Tensor) -> Tensor:
        """Places [B, NEAR] of the most alike that may be consulted, then of others; of those equally alike, the first.

        Equally to 1e-5, so that copies of a photo are alike. The likenesses are float64 products: by the last bits of
        float32 ones, which depend on the batch, another photo was now and then the 16th, and a score .007 another.
        """
        size = near.shape[1]
        rank = torch.where(keep, (near * 1e5).round(), -1) * size - torch.arange(size, device=near.device)
        return rank.topk(min(NEAR, size), dim=1).indices

    @staticmethod
    def _of_left_out(w: Tensor, inverse: Tensor, keep: Tensor) -> Tensor:
        """What must be taken off w [B, P] so that it is as if the pool were without what each photo may not consult.

        With R kept and E left out, (K_RR)^-1 = G_RR - G_RE (G_EE)^-1 G_ER, G the inverse over all.
        """
        off = torch.zeros_like(w)
        for i in (~keep).any(1).nonzero()[:, 0].tolist():  # one by one: a group may be half of the pool
            out = ~keep[i]
            rows = inverse[out]  # [E, P]
            off[i] = torch.linalg.solve(rows[:, out], w[i, out]) @ rows
        return off

    def _know(self, pool: Pool) -> _Known:
        settings = (*self.scale.tolist(), *(x.item() for x in (self.sharpness, self.noise, self.sampling)))
        known = self._known
        if known is None or known.pool is not pool or known.settings != settings:
            z = self.embed(pool.nodes)
            between = self.likeness(z, z) + torch.diag(self.noise_of(pool))
            known = self._known = _Known(pool, settings, z.double(), between, torch.linalg.inv(between))
        return known


def _solved(near: Tensor, between: Tensor, keep: Tensor) -> _Consulted:
    """w [B, K] and v [B] from likenesses [B, K] and [B, K, K] + noise; where `keep` is False a reference is nobody."""
    near = near * keep
    both = keep[:, :, None] & keep[:, None]
    eye = torch.eye(keep.shape[1], dtype=between.dtype, device=between.device)
    # Not linalg.solve: of many matrices above about 150 rows its LU never ended with two threads of MKL 2024.2.
    lower = torch.linalg.cholesky(torch.where(both, between, eye))
    w = torch.cholesky_solve(near[..., None], lower)[..., 0]
    return _Consulted(w, (1 - (w * near).sum(1)).clamp(0, 1))


def with_mean(p: Tensor, least: float = 1e-6) -> Tensor:
    """Rows [B, S] that sum to 1 but may be negative somewhere -> distributions of the same mean.

    Negative shares become `least`, and the others are tilted by exp(t s), with the t that keeps the mean. A mean that
    no distribution has becomes the nearest that one has.
    """
    bad = (p < least).any(1)
    if not bad.any():
        return p
    bins = torch.arange(p.shape[1], dtype=p.dtype, device=p.device)
    edge = 1e-3
    mean = (p[bad] @ bins).clamp(edge, p.shape[1] - 1 - edge)
    start = p[bad].clamp_min(least).log()
    low, high = torch.full_like(mean, -40.0), torch.full_like(mean, 40.0)
    for _ in range(60):  # bisection: to the last bit
        middle = (low + high) / 2
        above = torch.softmax(start + middle[:, None] * bins, 1) @ bins > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    fixed = p.clone()
    fixed[bad] = torch.softmax(start + ((low + high) / 2)[:, None] * bins, 1)
    return fixed
