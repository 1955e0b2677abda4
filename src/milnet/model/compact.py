"""Networks beside a compact pool: what they first do to a pool photo's nodes is done once and kept instead of them.

`photo` [B, D] enters raw, as ever; `pool.nodes` [P, C] are reduced already:

    graph    v = relu(bn(W x)), the width of the network: the same numbers, but for the rounding of what is kept
    votes    the points whose distances are the likeness, along their C main directions

Which of the two some nodes are is told by how many numbers they have: C < D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milnet.model.common import Pool
from milnet.model.graph import Graph
from milnet.model.votes import Votes


class CompactGraph(Graph):
    """`whole` (whose parts it shares) beside reduced nodes. `nobody` [C]: the pool's mean photo, reduced."""

    nobody: Tensor

    def __init__(self, whole: Graph, nobody: Tensor) -> None:
        nn.Module.__init__(self)
        self.references = whole.references
        for name, part in whole.named_children():
            self.add_module(name, part)
        self.register_buffer("nobody", nobody)

    def entered(self, nodes: Tensor) -> Tensor:
        """Nodes [n, D] as they are kept, [n, C]; those that are kept already, [n, C], as they are."""
        if nodes.shape[-1] == len(self.nobody):
            return nodes.to(self.nobody.dtype)
        reduced: Tensor = self.reduce(self.standardise(nodes)[None])[0]
        return reduced

    def forward(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """`photo` [B, D], `pool.nodes` [P, C], `index` [B, references] -> log p [B, S]."""
        assert pool is not None and index is not None
        v = torch.cat([self.entered(photo)[:, None], self.entered(pool.nodes)[index]], dim=1)
        return self.from_reduced(v)


class CompactVotes(Votes):
    """`whole` (whose parts it shares) beside points. `projection` [E, C]: the main directions of the pool's points."""

    projection: Tensor

    def __init__(self, whole: Votes, projection: Tensor) -> None:
        nn.Module.__init__(self)
        self.own, self.last, self._known = whole.own, whole.last, None
        for name, numbers in whole.named_buffers(recurse=False):
            self.register_buffer(name, numbers)
        self.register_buffer("projection", projection)

    def embed(self, nodes: Tensor) -> Tensor:
        """Nodes [..., D] -> points [..., C]; points as they are."""
        if nodes.shape[-1] == self.projection.shape[1]:
            return nodes.to(self.projection.dtype)
        return super().embed(nodes) @ self.projection
