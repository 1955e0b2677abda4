"""What `votes` learns of its references without steps: how alike is alike, and how far votes can be trusted.

Each training photo is predicted from the votes of the others (never from its own, nor, where groups act, from its
group's: the references then look like those of a test), and the sharpness of the likeness and the noise of the votes
that give the lowest loss are kept. Both are searched for by steps of factor 4, then 2, from g = 1 and noise = 0.1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from milnet.features import evenly
from milnet.losses import Loss
from milnet.model.votes import Votes
from milnet.pool import RatedPool
from milnet.samples import Samples

_SOME = 1000  # photos from which medians are taken, and at most so many are predicted
_RANGE = 3  # powers of 2 that the two are changed by at most


def tune(
    network: Votes, samples: Samples, pool: RatedPool, loss: Callable[[], Loss], *, device: str = "cpu"
) -> dict[str, float]:
    """Set the network's `base`, `scale`, `sampling`, `sharpness` and `noise`; returns the last two, the loss.

    `samples`: training photos with their votes and their references in `pool`, the training photos. `loss` makes a
    fresh one.
    """
    network.to(device).eval()
    with torch.inference_mode():
        _describe(network, pool)
        rows = evenly(len(samples), _SOME)
        picks = np.array_split(rows, -(-len(rows) // 256))
        batches = [batch.to(torch.device(device)) for batch, _ in samples.batches(picks)]
        true = torch.cat([batch.target for batch in batches if batch.target is not None]).double()
        known: dict[tuple[int, int], float] = {}  # by powers of 2

        def choose(at: tuple[int, int]) -> None:
            network.sharpness.fill_(2.0 ** at[0])
            network.noise.fill_(0.1 * 2.0 ** at[1])

        def value(at: tuple[int, int]) -> float:
            if at not in known:
                choose(at)
                guess = []
                for batch in batches:
                    weight = network.consult(batch.photo, batch.pool, batch.index, batch.keep).weight
                    guess.append(network.mixed(network.beside(weight, batch.pool, batch.index)))
                known[at] = _measure(loss(), torch.cat(guess), true)
            return known[at]

        best = (0, 0)
        for step in (2, 1):
            while True:
                around = [(best[0] + i * step, best[1] + j * step) for i in (0, 1, -1) for j in (0, 1, -1)]
                better = min([best, *(at for at in around if max(map(abs, at)) <= _RANGE)], key=value)
                if better == best:
                    break
                best = better
        choose(best)
    return {"sharpness": float(network.sharpness), "noise": float(network.noise), "loss": known[best]}


def _describe(network: Votes, pool: RatedPool) -> None:
    """The mean of the votes, what chance makes of them, and the usual distance between photos."""
    device = network.base.device
    q = torch.from_numpy(pool.distributions).to(device)
    network.base.copy_(q.mean(0) / q.mean(0).sum())
    some = torch.from_numpy(pool.nodes_at(evenly(len(pool), _SOME))).to(device)
    for i, x in enumerate(parts := network.points(some)):
        squared = (2 - 2 * x @ x.T)[~torch.eye(len(x), dtype=torch.bool, device=x.device)]
        network.scale[i] = 1 / (len(parts) * squared.median().clamp_min(1e-6))
    panel = 1 / (1 / torch.from_numpy(pool.totals)).mean()
    below = q.cumsum(1)[:, :-1]  # what an earth mover's distance compares
    chance = (below * (1 - below)).mean()  # variance in a panel of one
    varies = (below.var(0).mean() - chance / panel).clamp_min(chance * 1e-3)  # of the true shares, between photos
    network.sampling.fill_(float(chance / varies))


def _measure(loss: Loss, p: Tensor, q: Tensor) -> float:
    """The loss of one epoch of these predictions, once it has seen another: what an adaptive loss adapts to."""
    loss.to(p.device).train()
    loss(p, q)
    loss.end_epoch()
    loss.eval()
    return float(loss(p, q))
