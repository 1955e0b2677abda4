"""A pool of which only what scoring needs is kept: reduced nodes instead of raw ones.

Nothing is trained again. `graph` keeps what its first layer makes of each pool photo, `votes` the points whose
distances are its likeness, along their main directions. Photos that are added later are reduced the same way. Semantic
features may be kept as bytes: half the space, but other references for some photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import IntArray
from milnet.errors import UsageError
from milnet.features import stored_rows
from milnet.model.compact import CompactGraph, CompactVotes
from milnet.model.graph import Graph
from milnet.model.votes import Votes
from milnet.recipe import Network
from milnet.recipes import Model

Form = Literal["float16", "int8"]  # of the semantic features: 2 bytes a number, or 1
KEPT = 0.9999  # share of the points' squared length that their directions keep, unless their number is given
_AT_ONCE = 4096  # pool photos reduced together


class PackedRows:
    """Rows kept as bytes, number = code * scale of the row, [P, D]: an array that gives float32 rows when asked.

    `codes` int8 [P, D], perhaps memory-mapped; `scales` float32 [P].
    """

    ndim, itemsize = 2, 4  # of what it gives
    dtype = np.dtype(np.float32)

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self.codes, self.scales, self.shape = codes, scales, codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.asarray(self.codes[rows], np.float32)
        found *= np.asarray(self.scales[rows])[..., None]
        return found

    @staticmethod
    def of(rows: NDArray[Any]) -> PackedRows:
        """Rows [n, D] as bytes: off by 1/254 of the largest number of the row at most."""
        numbers = np.asarray(rows, np.float32)
        scales = np.maximum(np.abs(numbers).max(1, initial=0) / np.float32(127), np.float32(1e-30))
        return PackedRows(np.rint(numbers / scales[:, None]).astype(np.int8), scales)

    def taken(self, rows: IntArray) -> PackedRows:
        """Some of the rows, still packed."""
        return PackedRows(stored_rows(self.codes, rows), self.scales[rows])

    def followed_by(self, rows: NDArray[Any]) -> PackedRows:
        """With further rows [n, D] behind."""
        more = PackedRows.of(rows)
        return PackedRows(np.concatenate([self.codes, more.codes]), np.concatenate([self.scales, more.scales]))


def is_compact(model: Model) -> bool:
    """Whether the pool's nodes are reduced already."""
    return isinstance(model.network, CompactGraph | CompactVotes)


def compact_network(network: Network, config: Mapping[str, Any]) -> Network:
    """The network of a compact model before its weights are read; `config`: the `compact` of its manifest."""
    numbers = int(config["nodes"])
    if isinstance(network, Votes):
        wide = network.embed(torch.zeros(1, network.standardise.mean.shape[0])).shape[1]
        return CompactVotes(network, torch.zeros(wide, numbers))
    assert isinstance(network, Graph)
    return CompactGraph(network, torch.zeros(numbers))


def entered(network: Network, nodes: NDArray[Any], *, device: str = "cpu") -> NDArray[Any]:
    """What a pool keeps of photos with nodes [n, D]: [n, C] float16 beside a compact network, else the nodes."""
    if not isinstance(network, CompactGraph | CompactVotes):
        return nodes
    network.eval().to(device)
    reduce = network.entered if isinstance(network, CompactGraph) else network.embed
    found = np.empty((len(nodes), _width(network)), np.float16)
    with torch.inference_mode():
        for start in range(0, len(nodes), _AT_ONCE):
            part = torch.from_numpy(np.ascontiguousarray(nodes[start : start + _AT_ONCE])).to(device)
            found[start : start + len(part)] = reduce(part).half().cpu().numpy()
    return found


def _width(network: CompactGraph | CompactVotes) -> int:
    numbers = network.nobody if isinstance(network, CompactGraph) else network.projection
    return int(numbers.shape[-1])


def compact(model: Model, *, dims: int | None = None, semantic: Form = "float16", device: str = "cpu") -> Model:
    """The same model with a smaller pool.

    `dims`: directions that `votes` keeps (by default those that hold .9999 of the points' squared length); a graph
    keeps its width. Raises UsageError where there is nothing to reduce: a model that consults no pool, one that is
    compact already, or nodes that are not more than what would be kept.
    """
    if not model.uses_references:
        raise UsageError(f"a model of the recipe {model.recipe.name} scores photos alone: its pool holds no nodes")
    if is_compact(model):
        raise UsageError("the pool of this model is compact already")
    device = model.recipe.device(device)
    network, pool = model.network.to(device).eval(), model.pool
    wide = network.standardise.mean.shape[0]
    if isinstance(network, Votes):
        smaller: CompactVotes | CompactGraph = CompactVotes(network, _directions(model, network, dims, device))
    else:
        if dims is not None:
            raise UsageError("--dims is for models of the recipe votes: a graph keeps the width of its network")
        assert isinstance(network, Graph)
        mean = torch.from_numpy(pool.mean_nodes).to(device)
        with torch.no_grad():
            smaller = CompactGraph(network, network.reduce(network.standardise(mean[None])[None])[0, 0])
    kept = _width(smaller)
    if kept >= wide:
        raise UsageError(f"the pool's nodes have {wide:,} numbers and would keep {kept:,}: nothing would be smaller")
    nodes = np.empty((len(pool), kept), np.float16)
    codes: Any = np.empty((len(pool), pool.semantic.shape[1]), np.int8 if semantic == "int8" else np.float16)
    scales = np.empty(len(pool), np.float32)
    for start in range(0, len(pool), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        nodes[part] = entered(smaller, stored_rows(pool.nodes, pool.rows[part]), device=device)
        rows = stored_rows(pool.semantic, pool.rows[part])
        if semantic == "int8":
            packed = PackedRows.of(rows)
            codes[part], scales[part] = packed.codes, packed.scales
        else:
            codes[part] = rows
    kept_semantic: Any = PackedRows(codes, scales) if semantic == "int8" else codes
    return replace(
        model,
        network=smaller.eval(),
        pool=replace(
            pool,
            nodes=nodes,
            semantic=kept_semantic,
            rows=np.arange(len(pool), dtype=np.int64),
            table_rows=None,
        ),
    )


def _directions(model: Model, network: Votes, dims: int | None, device: str) -> Tensor:
    """The main directions [E, C] of the pool's points, orthonormal: lengths and angles within them stay as they are."""
    pool = model.pool
    total: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(pool), _AT_ONCE):
            part = stored_rows(pool.nodes, pool.rows[start : start + _AT_ONCE])
            z = network.embed(torch.from_numpy(np.ascontiguousarray(part)).to(device)).double()
            total = z.T @ z if total is None else total + z.T @ z
        assert total is not None
        lengths, directions = torch.linalg.eigh(total)  # ascending
    lengths, directions = lengths.flip(0).clamp_min(0), directions.flip(1)
    if dims is None:
        share = lengths.cumsum(0) / lengths.sum()
        dims = int((share < KEPT).sum()) + 1
        dims = -(-dims // 8) * 8
    if not 1 <= dims <= len(lengths):
        raise UsageError(f"--dims {dims}: expected 1 to {len(lengths):,}, as many as the points have numbers")
    chosen: Tensor = directions[:, :dims].float().clone(memory_format=torch.contiguous_format)
    return chosen
