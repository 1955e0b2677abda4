"""`milnet export`: a MODEL as one ONNX network with its pool inside, for programs without PyTorch.

    photo, uint8 [B, H, W, 3] at each size -> features [B, D] -> its references in the pool -> distribution, score

The graph does what scoring.py does, in the same precision (float64 from the likenesses on). What ONNX lacks is written
out: a linear system as Newton's iteration, a bisection as a few looks at many points at once. Photos are resized by
whoever calls it: `model.json` says how, and holds the pool's photos and the tables of doubt. Two things differ from
scoring: the same photo is known by likeness alone, not by its pixels, and of a whole pool the 16 most alike photos at
most are left out as the same one.

    DIR/  manifest.json  model.json  model.onnx [model.onnx.data]
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from milnet.artifacts import FORMATS, Manifest, digest_file, new_folder, write_json, write_manifest
from milnet.explanation import CUT
from milnet.extraction import Extractor
from milnet.features import stored_rows
from milnet.model.common import Pool
from milnet.model.graph import Graph
from milnet.model.votes import NEAR, Votes
from milnet.pool import RatedPool
from milnet.preprocess import Decoded
from milnet.references import Similarity, read_rows
from milnet.runtime import OPSET, ExportError, Images, backbone_file, join_onnx, open_session, require_onnx, write_onnx
from milnet.scoring import LISTED, Scorer, Seen
from milnet.version import __version__

LEFT_OUT = 16  # pool photos that may be left out as the photo itself where the whole pool is consulted
TOLERANCE = 1e-4  # of a share or a score, between the file and PyTorch
_POINTS, _LOOKS = 257, 5  # of `with_mean`: 80 / 256^5 is below 1e-10


def solve(matrix: Tensor, right: Tensor, condition: float) -> Tensor:
    """x [B, n] of matrix [B, n, n] x = right [B, n], the matrix symmetric positive definite, in float64.

    By Newton's iteration for the inverse (Schulz 1933), X <- X (2 - A X) from X = 1 / |A|: products alone, of which
    `condition`, a bound on |A| |A^-1| (maximum norms), says how many it takes: the error is squared each time.
    """
    unit = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    twice = 2 * unit
    inverse = unit / matrix.abs().sum(2).amax(1)[:, None, None]
    for _ in range(math.ceil(math.log2(max(condition, 2.0))) + 5):  # (1 - 1 / c)^(32 c) is below 1e-13
        inverse = inverse @ (twice - matrix @ inverse)
    return (inverse @ right[:, :, None])[:, :, 0]


def with_mean(p: Tensor, least: float = 1e-6) -> Tensor:
    """`model.votes.with_mean` without a branch; its bisection as looks at 257 points at once."""
    bins = torch.arange(p.shape[1], dtype=p.dtype)
    edge = 1e-3
    mean = (p @ bins).clamp(edge, p.shape[1] - 1 - edge)
    start = p.clamp_min(least).log()
    low, width = torch.full_like(mean, -40.0), 80.0
    for _ in range(_LOOKS):
        width = width / (_POINTS - 1)
        tilts = low[:, None] + width * torch.arange(_POINTS, dtype=p.dtype)  # [B, points]
        means = torch.softmax(start[:, None] + tilts[:, :, None] * bins, 2) @ bins
        low = low + width * ((means <= mean[:, None]).to(p.dtype).sum(1) - 1).clamp_min(0)
    fixed = torch.softmax(start + (low + width / 2)[:, None] * bins, 1)
    bad = (p < least).to(p.dtype).amax(1, keepdim=True) > 0
    return torch.where(bad, fixed, p)


class _Search(nn.Module):
    """Similarity of photos to every pool photo; -inf where that is the photo itself."""

    rows: Tensor

    def __init__(self, pool: RatedPool, similarity: Similarity) -> None:
        super().__init__()
        self.register_buffer("rows", read_rows(pool.semantic, pool.rows, similarity))  # [P, Ds]
        self.cosine = similarity == "cosine"
        self.limit = pool.near_duplicate if self.cosine else None

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Ds] float32 -> similarity [B, P] float32, all, and with -inf for what may not be consulted."""
        rows = self.rows.double()
        if self.cosine:
            found = normalize(semantic, dim=1).double() @ rows.T
        else:
            own = semantic.double()
            squared = own.square().sum(1, keepdim=True) - 2 * (own @ rows.T) + rows.square().sum(1)
            found = -squared.clamp_min(0).sqrt()
        every = found.float()
        if self.limit is None:
            return every, every
        return every, torch.where(found <= self.limit, every, float("-inf"))


class _Listed(nn.Module):
    """The references of a photo that are shown: rows of the pool, their similarity and their influence."""

    def forward(self, allowed: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity [B, P] and rows [B, R] -> rows, -1 for none, and their similarity, 0 for none."""
        similarity = allowed.gather(1, index)
        there = similarity > float("-inf")
        return torch.where(there, index, -1), torch.where(there, similarity, 0.0)


class _Alone(nn.Module):
    """A network that sees the photo alone."""

    names: tuple[str, ...] = ()

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.network = scorer.model.network

    def forward(self, nodes: Tensor, every: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Node features [B, D] -> p [B, S]."""
        if isinstance(self.network, Votes):
            return (with_mean(self.network.alone(nodes)),)
        return (self.network(nodes).double().exp(),)


class _Beside(nn.Module):
    """The pool's node features [P, D], as stored, and its votes."""

    nodes: Tensor
    shares: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        pool = scorer.model.pool
        self.network: Any = scorer.model.network
        self.k = scorer.model.recipe.looks_for(len(pool))
        self.register_buffer("nodes", torch.from_numpy(stored_rows(pool.nodes, pool.rows)))
        self.register_buffer("shares", torch.from_numpy(pool.distributions.astype(np.float32)))
        self.listed = _Listed()


class _ByGraph(_Beside):
    """A graph over the photo and exactly K references; a place that cannot be filled repeats the best."""

    names = ("references", "similarity")

    def forward(self, nodes: Tensor, every: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Node features [B, D] and the pool's similarity [B, P] -> p [B, S], references [B, R], similarity [B, R]."""
        values, index = allowed.topk(self.k, dim=1)
        filled = torch.where(values > float("-inf"), index, index[:, :1])
        p = self.network(nodes, Pool(self.nodes, self.shares), filled).double().exp()
        return (p, *self.listed(allowed, index[:, :LISTED]))


class _ByVotes(_Beside):
    """`votes`: p from what the photo itself and the references add, and each reference's influence."""

    names = ("references", "similarity", "influence")
    values: Tensor
    noise: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self.register_buffer("values", torch.from_numpy(scorer.values))
        with torch.no_grad():
            self.register_buffer("noise", self.network.noise_of(scorer.model.pool.tensors))
        self.least, self.noisiest = min(1.0, float(self.noise.min())), float(self.noise.max())
        if not self.least > 0:
            raise ExportError("the model's votes have no noise, so that its weights are not defined: train it again")

    def close(self, near: Tensor, points: Tensor, noise: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """w [B, K] and v [B] of K references with likeness `near` [B, K] to the photo, at `points` [B, K, E]."""
        eye = torch.eye(near.shape[1], dtype=near.dtype)
        between = self.network.likeness(points, points) + eye * noise[:, :, None]
        near = near * keep
        between = torch.where(keep[:, :, None] & keep[:, None], between, eye)
        size = near.shape[1]  # |A| is below size + noise, and no eigenvalue below the least noise
        w = solve(between, near, (size + self.noisiest) / self.least * size**0.5)
        return w, (1 - (w * near).sum(1)).clamp(0, 1)

    def joined(
        self, nodes: Tensor, weight: Tensor, open_: Tensor, shares: Tensor, index: Tensor | None, allowed: Tensor
    ) -> tuple[Tensor, ...]:
        """p, and the references that are shown: of more than 8, those that moved the score most.

        `weight` [B, K] of the pool photos `index` [B, K] with `shares` [B or 1, K, S]; of the whole pool without.
        """
        base, open_ = self.network.base, open_[:, None]
        own = open_ * (self.network.alone(nodes) - base)
        weight = (1 - open_) * weight
        votes = shares.double() - base
        theirs = (weight[:, :, None] * votes).sum(1) if index is not None else weight @ votes[0]
        p = with_mean(base + own + theirs)
        p = p / p.sum(1, keepdim=True)
        influence = weight * (votes @ self.values)  # [B, K]
        added = own @ self.values + influence.sum(1)
        moved = p @ self.values - base @ self.values
        least = CUT * self.values.abs().max()
        cut = torch.where(((moved - added).abs() > least) & (added.abs() > least), moved / added, 1.0)
        influence = influence * cut[:, None]
        # nearest first, so that of those that moved it equally the nearest are shown
        order = allowed.topk(self.k, dim=1).indices if index is None else index
        influence = influence.gather(1, order) if index is None else influence
        shown = min(LISTED, self.k)
        if self.k > LISTED:
            there = allowed.gather(1, order) > float("-inf")
            places = torch.where(there, influence.abs(), float("-inf")).topk(shown, dim=1).indices
        else:
            places = torch.arange(shown).expand(order.shape[0], -1)
        rows, similarity = self.listed(allowed, order.gather(1, places))
        return p, rows, similarity, influence.gather(1, places) * (rows >= 0)


class _ByVotesOfSome(_ByVotes):
    """`votes` beside K references."""

    def forward(self, nodes: Tensor, every: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Node features [B, D] and the pool's similarity [B, P] -> p [B, S], references, similarity, influence."""
        values, index = allowed.topk(self.k, dim=1)
        points = self.network.embed(self.nodes[index])
        near = self.network.likeness(self.network.embed(nodes)[:, None], points)[:, 0]
        weight, open_ = self.close(near, points, self.noise[index], values > float("-inf"))
        return self.joined(nodes, weight, open_, self.shares[index], index, allowed)


class _ByVotesOfAll(_ByVotes):
    """`votes` beside the whole pool: the mean of two readings, all of it and the nearest alone."""

    points: Tensor
    inverse: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        del self.nodes  # their points are enough
        with torch.no_grad():
            known = self.network._know(scorer.model.pool.tensors)
        self.register_buffer("points", known.points.float())  # what they are: half the bytes
        self.register_buffer("inverse", known.inverse)
        self.most = max(1.0, float(known.between.abs().sum(1).max()))  # above the largest eigenvalue of its inverse's

    def forward(self, nodes: Tensor, every: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Node features [B, D] and the pool's similarity [B, P] -> p [B, S], references, similarity, influence."""
        keep = allowed > float("-inf")
        size = self.points.shape[0]
        near = self.network.likeness(self.network.embed(nodes).double(), self.points.double()) * keep
        w = near @ self.inverse
        w = (w - self._of_left_out(w, every, keep)) * keep
        # equally alike to 1e-5: the first, as in model/votes.py
        rank = torch.where(keep, (near * 1e5).round(), -1.0) * size - torch.arange(size, dtype=near.dtype)
        few = rank.topk(min(NEAR, size), dim=1).indices
        close, close_open = self.close(near.gather(1, few), self.points[few], self.noise[few], keep.gather(1, few))
        open_ = (1 - (w * near).sum(1)).clamp(0, 1)
        weight, open_ = w.scatter_add(1, few, close) / 2, (open_ + close_open) / 2
        return self.joined(nodes, weight, open_, self.shares[None], None, allowed)

    def _of_left_out(self, w: Tensor, every: Tensor, keep: Tensor) -> Tensor:
        """`Votes._of_left_out`, for the most alike that are left out, `LEFT_OUT` at most: others are not there."""
        rank = torch.where(keep, float("-inf"), every)
        values, places = rank.topk(min(LEFT_OUT, w.shape[1]), dim=1)
        out = values > float("-inf")
        rows = self.inverse[places]  # [B, E, P]
        block = rows.gather(2, places[:, None].expand(-1, places.shape[1], -1))
        eye = torch.eye(places.shape[1], dtype=w.dtype)
        block = torch.where(out[:, :, None] & out[:, None], block, eye)
        condition = self.most / self.least * places.shape[1]
        return (solve(block, w.gather(1, places) * out, condition)[:, None] @ rows)[:, 0]


class _Head(nn.Module):
    """Behind the backbones: features at each size -> features, distribution, score, nearest, references."""

    values: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.counts = len(scorer.nodes.preprocess.sizes)
        self.two = scorer.semantic is not scorer.nodes
        self.node_span, self.semantic_span = slice(*scorer.model.features["nodes"]["span"]), scorer.semantic_span
        self.search = _Search(scorer.model.pool, scorer.model.recipe.similarity)
        self.judge = _judge(scorer)
        self.register_buffer("values", torch.from_numpy(scorer.values))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        seen = ("features", "semantic") if self.two else ("features",)
        return (*seen, "distribution", "score", "nearest", *self.judge.names)

    def forward(self, of_sizes: list[Tensor]) -> tuple[Tensor, ...]:
        """Features [B, D] at each size of each backbone -> what `outputs` names."""
        seen = [_mean(of_sizes[: self.counts])]
        if self.two:
            seen.append(_mean(of_sizes[self.counts :]))
        every, allowed = self.search(seen[-1][:, self.semantic_span])
        p, *more = self.judge(seen[0][:, self.node_span], every, allowed)
        p = p / p.sum(1, keepdim=True)
        return (*seen, p.float(), (p @ self.values).float(), allowed.amax(1), *(_plain(x) for x in more))


def _plain(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _mean(of_sizes: list[Tensor]) -> Tensor:
    """As `Extractor.forward`: summed by ascending size."""
    total = of_sizes[0]
    for one in of_sizes[1:]:
        total = total + one
    return total / len(of_sizes)


def _judge(scorer: Scorer) -> Any:
    """The part of the graph behind the features."""
    network, recipe = scorer.model.network, scorer.model.recipe
    if isinstance(network, Votes):
        k = recipe.looks_for(len(scorer.model.pool))
        return _Alone(scorer) if not k else _ByVotesOfAll(scorer) if recipe.whole else _ByVotesOfSome(scorer)
    return _ByGraph(scorer) if isinstance(network, Graph) else _Alone(scorer)


def _check(scorer: Scorer) -> None:
    """Raise ExportError for what has no form in ONNX here."""
    can = "models of the recipes single, published (adjacency similarity or random) and votes can be exported"
    if scorer.taste is not None:
        raise ExportError(f"a taste cannot be exported, only the general model in it (its folder `general`): {can}")
    if scorer.takes_maps or "nodes" not in scorer.model.features:
        raise ExportError(f"a model that sees wide maps cannot be exported: {can}")
    adjacency = scorer.model.recipe.adjacency
    if isinstance(scorer.model.network, Graph) and adjacency in ("transport", "fusion"):
        raise ExportError(f"adjacency {adjacency} needs eigenvalues, for which ONNX has no operator: {can}")
    if isinstance(scorer.model.network, Graph) and scorer.model.recipe.looks_for(0) > len(scorer.model.pool):
        raise ExportError(f"the pool has {len(scorer.model.pool)} photos, fewer than the references of one: {can}")


def export_model(scorer: Scorer, folder: Path, *, overwrite: bool = False) -> tuple[Manifest, float]:
    """Write the model of a `scorer` on the CPU to `folder`; its manifest, and how far a check was from PyTorch.

    Raises ExportError for a model that ONNX cannot express, or whose file gives other scores, ArtifactError for a
    folder that is there already.
    """
    _check(scorer)
    require_onnx("milnet export")
    with new_folder(folder, "export", overwrite=overwrite) as building:
        network, inputs = _Head(scorer).eval(), _inputs(scorer)
        described = _described(scorer, inputs, network.outputs)
        head = building / "head.onnx"
        write_onnx(
            network,
            [torch.zeros(2, one.extractor.backbone.width) for one in inputs],
            {f"of_{one.name}": {0: "batch"} for one in inputs},
            network.outputs,
            head,
            what="the model",
        )
        files = {id(one.extractor): backbone_file(one.extractor.backbone) for one in inputs}
        fronts = [(one.name, files[id(one.extractor)]) for one in inputs]
        said = json.dumps({name: part for name, part in described.items() if name != "pool"})
        join_onnx(fronts, head, building / "model.onnx", {"milnet": said})
        for leftover in building.glob("head.onnx*"):
            leftover.unlink()
        worst = _difference(scorer, building / "model.onnx", inputs)
        if not worst <= TOLERANCE:
            raise ExportError(f"the exported model differs from PyTorch by {worst:.3g}, expected {TOLERANCE:g} at most")
        write_json(building / "model.json", described)
        names = sorted(path.name for path in building.iterdir() if path.is_file())
        manifest = Manifest(
            kind="export",
            format=FORMATS["export"],
            config={"opset": OPSET, "outputs": list(network.outputs), "tolerance": TOLERANCE},
            files={name: digest_file(building / name) for name in names},
            inputs={"model": scorer.digest},
            counts={"pool": len(scorer.model.pool)},
        )
        write_manifest(building, manifest)
    return manifest, worst


def _extractors(scorer: Scorer) -> dict[str, Extractor]:
    if scorer.semantic is scorer.nodes:
        return {"photo": scorer.nodes}
    return {"nodes": scorer.nodes, "semantic": scorer.semantic}


class _Input(NamedTuple):
    """One input of the network: photos at one size."""

    name: str
    role: str  # which part of `preprocess` makes it
    size: int
    extractor: Extractor

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an example."""
        how = self.extractor.preprocess
        if self.extractor.backbone.fixed_size or how.fit == "crop":
            return self.size, self.size
        return max(how.multiple, 2 * self.size // 3 // how.multiple * how.multiple), self.size


def _inputs(scorer: Scorer) -> list[_Input]:
    return [
        _Input(f"{role}_{size}", role, size, extractor)
        for role, extractor in _extractors(scorer).items()
        for size in extractor.preprocess.sizes
    ]


def _described(scorer: Scorer, inputs: list[_Input], outputs: tuple[str, ...]) -> dict[str, Any]:
    """What a program needs beside the network: model.json."""
    model, pool = scorer.model, scorer.model.pool
    said = {
        "features": "numbers of the backbone, mean over the sizes",
        "semantic": "numbers of the backbone by which references are found",
        "distribution": "share of votes at each of `values`",
        "score": "mean of the distribution",
        "nearest": f"{model.recipe.similarity} similarity of the nearest pool photo that is not the photo itself",
        "references": "rows of `pool`, -1 for none: "
        + ("the nearest" if model.uses_references and model.recipe.looks_for(len(pool)) <= LISTED
           else "those that moved the score most"),
        "similarity": "of each of the references",
        "influence": "what each of the references added to the score",
    }  # fmt: skip
    return {
        "format": FORMATS["export"],
        "milnet": __version__,
        "model": scorer.digest,
        "recipe": asdict(model.recipe),
        "opset": OPSET,
        "inputs": [
            {
                "name": one.name,
                "size": one.size,
                "shape": ["batch", "height", "width", 3],
                "values": "uint8 RGB in 0..255, sRGB, upright by EXIF, transparent parts on white",
                "preprocess": one.role,
            }
            for one in inputs
        ],
        "outputs": {name: said[name] for name in outputs},
        "preprocess": {role: _preprocess(extractor) for role, extractor in _extractors(scorer).items()},
        "values": scorer.values.tolist(),
        "same_photo": None if model.recipe.similarity != "cosine" else pool.near_duplicate,
        "doubt": model.doubt.to_json(),
        "pool": {"ids": list(pool.ids), "votes": (pool.distributions * pool.totals[:, None]).round(6).tolist()},
    }


def _preprocess(extractor: Extractor) -> dict[str, Any]:
    """How a photo becomes an input, in full."""
    how = asdict(extractor.preprocess)
    return {
        "backbone": extractor.backbone.name,
        "weights": extractor.backbone.digest,
        **how,
        "sizes": list(extractor.preprocess.sizes),
        "sides": {
            "whole": "each side * size / the long side, rounded half up to a multiple of `multiple`, at least one",
            "crop": "short side to round(size / crop_fraction), then the middle square of size",
            "original": "the photo's own, at most size for the long side and at least 96 for the short one",
        }[extractor.preprocess.fit],
        "resampling": "bicubic, antialiased (a = -0.5, as Pillow does), on uint8",
        "normalisation": {**extractor.backbone.normalisation, "of": "pixels in 0..1", "where": "inside the network"},
    }


def _difference(scorer: Scorer, path: Path, inputs: list[_Input]) -> float:
    """The largest difference of a share or score between PyTorch and the file, on two made pictures."""
    rng, session = np.random.default_rng(0), open_session(path, 1)
    worst = 0.0
    for turned in (False, True):
        shapes = [one.shape[::-1] if turned else one.shape for one in inputs]
        views = [_picture(rng, *shape)[None] for shape in shapes]
        found = run(session, views)
        p, score = _by_torch(scorer, views)
        worst = max(worst, float(np.abs(found["distribution"] - p).max()), float(np.abs(found["score"] - score).max()))
    return worst


def _picture(rng: np.random.Generator, height: int, width: int) -> Images:
    """A smooth picture [H, W, 3] with some grain."""
    coarse = rng.uniform(0, 255, (4, 5, 3))
    rows, columns = np.linspace(0, 3, height), np.linspace(0, 4, width)
    across = np.stack([[np.interp(columns, np.arange(5), row[:, c]) for row in coarse] for c in range(3)], -1)
    full = np.stack([[np.interp(rows, np.arange(4), across[:, x, c]) for x in range(width)] for c in range(3)], -1)
    return (full.transpose(1, 0, 2) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def _by_torch(scorer: Scorer, views: list[Images]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distribution [1, S] and score [1] of one photo at all sizes."""
    features = []
    for extractor in _extractors(scorer).values():
        own, views = views[: len(extractor.preprocess.sizes)], views[len(extractor.preprocess.sizes) :]
        decoded = Decoded(tuple(view[0] for view in own), "", None)
        (result,) = extractor.forward([("", decoded)])
        assert result.features is not None
        features.append(result.features)
    (score,) = scorer.judge([""], [Seen(features[0], features[-1], "")])
    return np.array([score.distribution]), np.array([score.score])


def run(session: Any, views: list[Images]) -> dict[str, NDArray[Any]]:
    """What an exported network gives for photos at each size, by the names of its outputs."""
    names = [one.name for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]
    return dict(zip(outputs, session.run(None, dict(zip(names, views, strict=True))), strict=True))
