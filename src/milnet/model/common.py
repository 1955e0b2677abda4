"""What the networks share: the pool they may consult, the standardiser in front, the layer of many nodes.

Shapes: B photos, K references, N = K + 1 nodes, P pool photos, D features, C width, S score values.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Pool(NamedTuple):
    """Rated photos a network may consult, as tensors."""

    nodes: Tensor  # [P, D] node features, any float type
    distributions: Tensor  # [P, S] votes / their sum
    totals: Tensor | None = None  # [P] number of votes

    def to(self, device: torch.device) -> Pool:
        """The same on another device; the pool itself when it is there already."""
        if self.nodes.device == device:
            return self
        totals = None if self.totals is None else self.totals.to(device)
        return Pool(self.nodes.to(device), self.distributions.to(device), totals)


class Network(Protocol):
    """The contract every network fulfils. `uses` says what it wants of the pool."""

    uses: str  # "nothing" (index may be None) or "references" (the rows in `index`)

    def __call__(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Log-probability of each score value, [B, S]."""
        ...


class Standardise(nn.Module):
    """(x - mean) / scale, with the two fitted on training photos and stored as buffers.

    A feature that is constant in training gets scale 1, so it stays 0 there and harmless elsewhere. Values are limited
    to +-`limit` deviations: one odd photo cannot throw the network far outside what it was trained on.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, limit: float = 8.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def set(self, mean: Tensor, deviation: Tensor) -> None:
        """Take over the mean [D] and standard deviation [D] of the training photos."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of any float type -> [..., D] float32."""
        return ((x.to(self.mean.dtype) - self.mean) / self.scale).clamp(-self.limit, self.limit)


Norm = Literal["batch", "layer"]  # of the numbers inside a network: over the batch, or over the channels of each node


class NodeNorm(nn.BatchNorm1d):
    """Batch norm over photos and nodes (or cells of a map) together, [B, N, C] -> [B, N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class SyncNodeNorm(nn.SyncBatchNorm):
    """The same with the statistics of the batch of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


def node_norm(width: int, norm: Norm) -> nn.Module:
    """Norm of nodes [B, N, C]."""
    return NodeNorm(width) if norm == "batch" else nn.LayerNorm(width)


def photo_norm(width: int, norm: Norm) -> nn.Module:
    """Norm of photos [B, C]."""
    return nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)


def synchronise(network: nn.Module) -> None:
    """Let the batch norms of a network take their statistics from all processes; torch trains such on GPUs alone."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm1d):
                kind = SyncNodeNorm if isinstance(norm, NodeNorm) else nn.SyncBatchNorm
                other = kind(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device)
                other.load_state_dict(norm.state_dict())
                other.weight, other.bias = norm.weight, norm.bias  # the same parameters: some may be frozen
                setattr(parent, name, other.train(norm.training))


def linear_norm_relu(inputs: int, outputs: int, norm: Norm = "batch") -> nn.Sequential:
    """Linear map of each node, norm (batch: over photos and nodes), relu."""
    return nn.Sequential(nn.Linear(inputs, outputs), node_norm(outputs, norm), nn.ReLU())


def gather_nodes(photo: Tensor, pool: Pool | None, index: Tensor | None) -> Tensor:
    """The photo (node 0) and its references, [B, 1 + K, D]; without an index the photo alone, [B, 1, D]."""
    nodes = photo[:, None]
    if pool is None or index is None:
        return nodes
    both = torch.promote_types(photo.dtype, pool.nodes.dtype)
    return torch.cat([nodes.to(both), pool.nodes[index].to(both)], dim=1)
