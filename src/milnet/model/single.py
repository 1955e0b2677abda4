"""The photo alone: the published network without its references.

    x [B, D] -> v = relu(bn(W x)) [B, C] -> linear -> log-softmax [B, S]

The same reduction and the same head as `graph.Graph`, so that the difference between the two is what references give.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milnet.model.common import Norm, Pool, Standardise, photo_norm


class Single(nn.Module):
    """One photo -> log p [B, S]; the pool is ignored."""

    uses = "nothing"

    def __init__(
        self, features: int, bins: int, *, width: int = 128, dropout: float = 0.0, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.standardise = Standardise(features)
        self.drop_input = nn.Dropout(dropout)
        self.reduce = nn.Sequential(nn.Linear(features, width), photo_norm(width, norm), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.read = nn.Linear(width, bins)

    def forward(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """`photo` [B, D] -> log p [B, S]."""
        v = self.reduce(self.drop_input(self.standardise(photo)))
        return torch.log_softmax(self.read(self.drop(v)), dim=-1)
