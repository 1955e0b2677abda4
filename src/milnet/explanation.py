"""What a score is made of: score = base + own + the influence of each reference (+ what stays unexplained).

`votes` is linear in its references' votes, so the parts are exact: base is the mean vote of its training photos, own
what the photo itself adds, and the influence of a reference its weight times (its mean vote - base). A graph network is
not: there the influence of a reference is what the score loses when the pool's mean photo takes its place, own is the
score beside mean photos alone, and the parts leave a remainder. A network that sees the photo alone has base and own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import FloatArray
from milnet.metrics import check_distributions
from milnet.model.common import Pool
from milnet.model.compact import CompactGraph
from milnet.model.votes import Votes
from milnet.recipe import Network
from milnet.recipes import Model
from milnet.references import References
from milnet.samples import Batch

CUT = 1e-6  # of the largest value: more than rounding


@dataclass(frozen=True)
class Explanation:
    """n predictions and their parts, in units of the score.

    `distribution` [n, S]; `base`, `own`, `remainder` [n]; `influence` [n, K], a column for each of the references.
    """

    distribution: FloatArray
    base: FloatArray
    own: FloatArray
    influence: FloatArray
    remainder: FloatArray


def explain(
    model: Model, nodes: NDArray[Any], references: References | None = None, *, device: str = "cpu"
) -> Explanation:
    """Predict photos with node features [n, D] (or maps) beside `references`, as `model.predict` does, in parts."""
    samples = model.samples(nodes, references)
    where, values = torch.device(model.recipe.device(device)), torch.from_numpy(model.values)
    network = placed(model.network, where)
    picks = np.split(np.arange(len(samples), dtype=np.int64), range(64, len(samples), 64))
    parts: list[tuple[Tensor, ...]] = []
    mean_photo = _mean_photo(model) if references is not None and not isinstance(network, Votes) else None
    with torch.inference_mode():
        for some, (batch, _) in zip(picks, samples.batches(picks), strict=True):
            item = batch.to(where)
            if isinstance(network, Votes):
                index = None if references is None else torch.from_numpy(references.index[some])
                parts.append(_of_votes(network, item, index, values))
                continue
            base = float(model.pool.mean_distribution @ model.values)
            if mean_photo is None:
                p = _distribution(network(item.photo, item.pool, item.index, item.similarity, item.keep))
                own, influence = p @ values - base, torch.zeros(len(p), 0)
            else:
                p, own, influence = _left_out(network, item, mean_photo.to(where), values)
                own = own - base
            parts.append((p, torch.full_like(p[:, 0], base), own, influence))
    whole: list[FloatArray] = [torch.cat(part).double().numpy() for part in zip(*parts, strict=True)]
    distribution, bases, owns, influences = whole
    check_distributions(distribution)
    remainder = distribution @ model.values - bases - owns - influences.sum(1)
    if isinstance(network, Votes):  # what rounding leaves; and of a score outside the values, which is cut, nothing
        remainder[:] = 0
    return Explanation(distribution, bases, owns, influences, remainder)


def placed(network: Network, where: torch.device) -> Network:
    """The network on a device, to be asked. Mostly it is already: a service asks for a few photos at a time."""
    there = next(network.buffers(), None)
    if network.training or there is None or there.device != where:
        network.to(where).eval()
    return network


def _of_votes(network: Votes, batch: Batch, index: Tensor | None, values: Tensor) -> tuple[Tensor, ...]:
    """Distribution, base, own and influence of each of `index` [B, K]: places in the whole pool, -1 where none."""
    found = network.parts(batch.photo, batch.pool, batch.index, batch.keep)
    p = network.joined(found, batch.pool, batch.index).cpu()
    p = p / p.sum(1, keepdim=True)
    base = (network.base.cpu() @ values).expand(len(p))
    own, influence = found.own.cpu() @ values, found.weight.cpu()
    if batch.pool is not None and index is not None and index.shape[1]:
        gain = (batch.pool.distributions.double().cpu() @ values) - base[0]
        if batch.index is None:
            influence = (influence * gain).gather(1, index.clamp_min(0)) * (index >= 0)
        else:
            influence = influence * gain[batch.index.cpu()]
    # A score that no distribution has was cut to one that some has: the parts are cut with it, in proportion. What
    # rounding leaves is added to own: in proportion it would be much, where large parts have a small sum.
    added, moved = own + influence.sum(1), p @ values - base
    least = CUT * values.abs().max()
    is_cut = ((moved - added).abs() > least) & (added.abs() > least)
    influence = influence * torch.where(is_cut, moved / added, torch.ones_like(added))[:, None]
    return p, base, moved - influence.sum(1), influence


def _left_out(network: Any, batch: Batch, mean_photo: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distribution, score beside mean photos alone, and what the score loses without each reference [B, K]."""
    assert batch.pool is not None and batch.index is not None
    both = torch.promote_types(batch.pool.nodes.dtype, mean_photo.dtype)
    nodes = torch.cat([batch.pool.nodes.to(both), mean_photo[None].to(both)])
    pool, nobody = Pool(nodes, batch.pool.distributions), len(nodes) - 1

    def score(index: Tensor) -> Tensor:
        return _distribution(network(batch.photo, pool, index, batch.similarity, batch.keep))

    p = _distribution(network(batch.photo, batch.pool, batch.index, batch.similarity, batch.keep))
    own = score(torch.full_like(batch.index, nobody)) @ values
    influence = []
    for place in range(batch.index.shape[1]):
        index = batch.index.clone()
        index[:, place] = nobody
        influence.append(p @ values - score(index) @ values)
    return p, own, torch.stack(influence, dim=1)


def _distribution(log_p: Tensor) -> Tensor:
    p = log_p.double().exp().cpu()
    return p / p.sum(1, keepdim=True)


def _mean_photo(model: Model) -> Tensor:
    """The pool's mean photo [D], as the nodes of its photos are."""
    network = model.network
    return network.nobody if isinstance(network, CompactGraph) else torch.from_numpy(model.pool.mean_nodes)
