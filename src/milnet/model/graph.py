"""The published network: a graph over the photo and its references.

Source: the authors' 2022 release (structure re-written from its description, docs/method.md lists every deviation).

    nodes x [B, N, D], node 0 the photo
    reduce       v = relu(bn(W x))                                               [B, N, C]
    layer x L    R = theta(v) phi(v)^T / N                                       [B, N, N]   (no softmax)
                 v = v + bn0(W (R g(v)))                                         [B, N, C]   (bn0 starts at 0)
    read out     flatten channel-major (index c*N + n), linear, log-softmax      [B, S]

theta, phi, g are linear + batch norm + relu on each node. The published code writes each as a convolution of width 1
over [B, C, N]; here nodes are rows and the same numbers are a linear map, which is faster on a CPU. Because the last
batch norm of a layer starts at zero, each layer is the identity at the start. The read-out sees the nodes in their
order, so the order of references matters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from milnet.model.common import Norm, Pool, Standardise, gather_nodes, linear_norm_relu, node_norm

Adjacency = Literal["similarity", "transport", "fusion", "random"]


def covariance(x: Tensor, ridge: float = 1e-3) -> Tensor:
    """Covariance of the nodes over the channels, [B, N, C] -> [B, N, N], with `ridge` x its mean variance added."""
    centred = x - x.mean(2, keepdim=True)
    cov: Tensor = centred @ centred.mT / x.shape[2]
    mean_variance = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    shrunk: Tensor = cov + (ridge * mean_variance + 1e-6)[:, None, None] * identity
    return shrunk


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Power of a symmetric positive definite matrix, [B, N, N]."""
    values, vectors = torch.linalg.eigh(matrix)
    powered: Tensor = (vectors * values.clamp_min(1e-12).pow(power)[:, None]) @ vectors.mT
    return powered


def monge_kantorovich(source: Tensor, target: Tensor) -> Tensor:
    """The linear map T that carries a Gaussian of covariance `source` to one of `target` at least cost, [B, N, N].

    T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2, so T A T = B and T is the identity when A = B.
    """
    root, inverse_root = matrix_power(source, 0.5), matrix_power(source, -0.5)
    return inverse_root @ matrix_power(root @ target @ root, 0.5) @ inverse_root


class GraphLayer(nn.Module):
    """One residual graph layer, [B, N, C] -> [B, N, C].

    `adjacency` says what R is: `similarity` theta phi^T / N (the paper); `transport` the Monge-Kantorovich map between
    the node covariances of theta and phi, without gradient; `fusion` their sum; `random` a fixed seeded matrix.
    """

    random: Tensor

    def __init__(
        self, width: int, nodes: int, adjacency: Adjacency = "similarity", seed: int = 0, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.adjacency = adjacency
        self.g = linear_norm_relu(width, width, norm)
        self.theta = linear_norm_relu(width, width, norm)
        self.phi = linear_norm_relu(width, width, norm)
        self.out = nn.Sequential(nn.Linear(width, width), node_norm(width, norm))
        for parameter in self.out[1].parameters():
            nn.init.zeros_(parameter)
        if adjacency in ("random", "transport"):  # no gradient reaches them, and none is waited for
            self.theta.requires_grad_(False)
            self.phi.requires_grad_(False)
        if adjacency == "random":
            generator = torch.Generator().manual_seed(seed)
            self.register_buffer("random", torch.randn(nodes, nodes, generator=generator) / nodes)

    def relation(self, v: Tensor) -> Tensor:
        """R, [B, N, N]."""
        if self.adjacency == "random":
            return self.random.expand(len(v), -1, -1)
        theta, phi = self.theta(v), self.phi(v)
        similarity: Tensor = theta @ phi.mT / v.shape[1]
        if self.adjacency == "similarity":
            return similarity
        with torch.no_grad():
            transport = monge_kantorovich(covariance(theta.detach()), covariance(phi.detach()))
        return transport if self.adjacency == "transport" else similarity + transport

    def forward(self, v: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        message = self.relation(v) @ self.g(v)  # node i receives sum_j R[i, j] g(v_j)
        updated: Tensor = v + self.out(message)
        return updated


class Graph(nn.Module):
    """The photo and exactly `references` references -> log p [B, S]."""

    uses = "references"

    def __init__(
        self,
        features: int,
        bins: int,
        *,
        width: int = 512,
        depth: int = 6,
        references: int = 4,
        adjacency: Adjacency = "similarity",
        dropout: float = 0.0,
        seed: int = 0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        nodes = references + 1
        self.references = references
        self.standardise = Standardise(features)
        self.drop_input = nn.Dropout(dropout)
        self.reduce = linear_norm_relu(features, width, norm)
        self.layers = nn.ModuleList(GraphLayer(width, nodes, adjacency, seed + i, norm) for i in range(depth))
        self.drop = nn.Dropout(dropout)
        self.read = nn.Linear(width * nodes, bins)

    def forward(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """`photo` [B, D], `pool.nodes` [P, D], `index` [B, references] -> log p [B, S]."""
        if index is None or index.shape[1] != self.references:
            got = "none" if index is None else str(index.shape[1])
            raise ValueError(f"this graph was built for {self.references} references a photo, got {got}")
        return self.from_nodes(gather_nodes(photo, pool, index))

    def from_nodes(self, nodes: Tensor) -> Tensor:
        """The same from node features [B, N, D], node 0 the photo."""
        x = self.standardise(nodes)
        # A dropped feature is dropped in the photo and its references alike, so that they stay comparable.
        return self.from_reduced(self.reduce(x * self.drop_input(torch.ones_like(x[:, :1]))))

    def from_reduced(self, v: Tensor) -> Tensor:
        """The same from reduced nodes [B, N, C]."""
        for layer in self.layers:
            v = layer(v)
        return torch.log_softmax(self.read(self.drop(v.mT.flatten(1))), dim=-1)
