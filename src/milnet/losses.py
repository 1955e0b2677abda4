"""Distances between vote distributions, and the losses made of them.

Shapes: p, q [B, S], each row non-negative with sum 1; all distances are in bins, averaged over the S bins, [B].
Pure functions hold the mathematics; `AdaptiveEMD` and `PublishedAdaEMD` hold the state, in buffers, so a resume
finds it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from milnet.errors import UsageError

LossName = Literal["emd", "adaptive_emd", "published_adaemd", "published_emd"]


def _root(x: Tensor, r: float) -> Tensor:
    """x^(1/r) of x >= 0 with gradient 0 (not infinite) at x = 0."""
    if r == 1:
        return x
    zero = x == 0  # and not `x > 0`: a NaN must stay one
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).pow(1 / r))


def emd(p: Tensor, q: Tensor, r: float = 2) -> Tensor:
    """Earth mover's distance (mean over bins of |CDF_p - CDF_q|^r)^(1/r), [B] (Hou et al. 2016; Talebi, Milanfar 2018).

    0 exactly when p = q; with r = 1 it is scipy's Wasserstein distance between the bins, divided by S.
    """
    gap = torch.cumsum(p - q, dim=-1).abs()
    return _root(gap.pow(r).mean(-1), r)


def prefix_l1(p: Tensor, q: Tensor, r: float = 2) -> Tensor:
    """What the published code calls EMD: the absolute value is taken inside the prefix sum, [B].

    Not an earth mover's distance: moving all votes further away costs less. For parity only.
    """
    return _root(torch.cumsum((p - q).abs(), dim=-1).pow(r).mean(-1), r)


def adaptive_weighting(e: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """Our AdaEMD: e below `threshold` t, above it e + (e - t)^2 / (2 c), element by element.

    Continuous, with the continuous slope 1 + max(e - t, 0) / c >= 1: hard photos weigh more, none weighs less.
    """
    excess = (e - threshold).clamp_min(0)
    return e + excess.square() / (2 * scale)


def published_weighting(e: Tensor, threshold: Tensor, offset: Tensor) -> Tensor:
    """AdaEMD as published: e if e < t else (C + e) * e. Its slope C + 2e is below 1 where it matters on AVA."""
    return torch.where(e < threshold, e, (offset + e) * e)


Together = Callable[[Tensor], Tensor]  # distances of a share of the batch -> of the whole batch


class Loss(nn.Module):
    """A loss over a batch, scalar. `end_epoch` is called after each epoch; state lives in buffers.

    Where several processes share a batch, `together` makes their distances one: the loss and its state are then those
    of the whole batch in each of them.
    """

    def forward(self, p: Tensor, q: Tensor, together: Together | None = None) -> Tensor:
        """Predicted p [B, S] and true q [B, S] -> scalar."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Update what depends on a whole epoch."""


class EMD(Loss):
    """Mean `emd` of the batch; with `published`, mean `prefix_l1`."""

    def __init__(self, r: float = 2, *, published: bool = False) -> None:
        super().__init__()
        self.r, self.distance = r, prefix_l1 if published else emd

    def forward(self, p: Tensor, q: Tensor, together: Together | None = None) -> Tensor:
        return _whole(self.distance(p, q, self.r), together).mean()


class AdaptiveEMD(Loss):
    """Our AdaEMD. t: mean unmodulated EMD of the last epoch (infinite in the first: plain EMD); c: its running mean.

    The running mean follows the newest batch with weight 0.01 and starts at the first batch.
    """

    threshold: Tensor
    scale: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, r: float = 2, momentum: float = 0.99) -> None:
        super().__init__()
        self.r, self.momentum = r, momentum
        self.register_buffer("threshold", torch.tensor(float("inf")))
        self.register_buffer("scale", torch.tensor(0.0))
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, p: Tensor, q: Tensor, together: Together | None = None) -> Tensor:
        e = _whole(emd(p, q, self.r), together)
        if self.training:
            mean = e.detach().mean()
            fresh = self.momentum * self.scale + (1 - self.momentum) * mean
            self.scale.copy_(torch.where(self.scale > 0, fresh, mean))
            self.total += e.detach().sum()
            self.count += len(e)
        return adaptive_weighting(e, self.threshold, self.scale.clamp_min(1e-6)).mean()

    def end_epoch(self) -> None:
        if self.count > 0:
            self.threshold.copy_(self.total / self.count)
        self.total.zero_()
        self.count.zero_()


class PublishedAdaEMD(Loss):
    """AdaEMD as the published code computes it, on its `prefix_l1` (t0 = 0.2, C0 = 0).

    After each batch C <- 0.99 L + 0.01 C; after each epoch t <- mean of the epoch's modulated batch losses L.
    With `true_emd` the same weighting acts on the real EMD.
    """

    threshold: Tensor
    offset: Tensor
    total: Tensor
    batches: Tensor

    def __init__(self, r: float = 2, *, true_emd: bool = False) -> None:
        super().__init__()
        self.r, self.distance = r, emd if true_emd else prefix_l1
        self.register_buffer("threshold", torch.tensor(0.2))
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0.0))

    def forward(self, p: Tensor, q: Tensor, together: Together | None = None) -> Tensor:
        e = _whole(self.distance(p, q, self.r), together)
        loss = published_weighting(e, self.threshold, self.offset).mean()
        if self.training:
            self.offset.copy_(0.99 * loss.detach() + 0.01 * self.offset)
            self.total += loss.detach()
            self.batches += 1
        return loss

    def end_epoch(self) -> None:
        if self.batches > 0:
            self.threshold.copy_(self.total / self.batches)
        self.total.zero_()
        self.batches.zero_()


def _whole(e: Tensor, together: Together | None) -> Tensor:
    return e if together is None else together(e)


def make_loss(name: LossName, r: float = 2) -> Loss:
    """The loss of that name; `r` is its exponent, at least 1 (below, the gradient is infinite where the CDFs meet)."""
    if not r >= 1:
        raise UsageError(f"expected an exponent r >= 1 of the EMD, got {r}")
    match name:
        case "emd":
            return EMD(r)
        case "adaptive_emd":
            return AdaptiveEMD(r)
        case "published_adaemd":
            return PublishedAdaEMD(r)
        case "published_emd":
            return EMD(r, published=True)
