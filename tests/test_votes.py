"""The recipe `votes`: a Gaussian process over photo and references, beside the photo's own network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

import made
from milnet import splits, training, tuning
from milnet.checkpoints import load_model, save_model
from milnet.errors import UsageError
from milnet.losses import Loss, make_loss
from milnet.metrics import srcc
from milnet.model.common import Pool
from milnet.model.votes import Votes, with_mean
from milnet.pool import RatedPool
from milnet.recipe import Recipe, load_recipe
from milnet.recipes import Model, fit
from milnet.references import References
from milnet.samples import Samples
from milnet.splits import Split
from milnet.training import Run
from milnet.tuning import tune

Floats = NDArray[np.float64]
FEATURES, BINS, POOL = 7, 5, 24
LASTS = [None, (4, 7)]


def random_network(seed: int = 0, last: tuple[int, int] | None = None) -> Votes:
    """A network whose every number is random; evaluation mode, float64."""
    torch.manual_seed(seed)
    network = Votes(FEATURES, BINS, width=6, last=last).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name == "sharpness":
                tensor.uniform_(0.2, 0.6)
            elif name.endswith(("running_var", "scale", "noise", "sampling")):
                tensor.uniform_(0.5, 2)
            elif name == "base":
                tensor.copy_(torch.rand(BINS).softmax(0))
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5)
    return network.eval()


def random_pool(size: int = POOL, seed: int = 1, totals: bool = True) -> Pool:
    rng = np.random.default_rng(seed)
    votes = torch.from_numpy(rng.dirichlet(np.ones(BINS), size))
    numbers = torch.from_numpy(rng.integers(1, 60, size).astype(float)) if totals else None
    return Pool(torch.from_numpy(rng.normal(size=(size, FEATURES))), votes, numbers)


def random_photos(count: int = 4, seed: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, FEATURES)))


def random_index(photos: int, references: int, pool: int = POOL, seed: int = 3) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.permutation(pool)[:references] for _ in range(photos)]))


def part_of(pool: Pool, positions: list[int]) -> Pool:
    return Pool(
        pool.nodes[positions], pool.distributions[positions], None if pool.totals is None else pool.totals[positions]
    )


def look(network: Votes, *inputs: Any, **named: Any) -> Tensor:
    with torch.no_grad():
        return network(*inputs, **named).exp()


def consult(network: Votes, photo: Tensor, pool: Pool, index: Tensor | None = None, keep: Tensor | None = None) -> Any:
    with torch.no_grad():
        return network.consult(photo, pool, index, keep)


def same(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- an independent Gaussian process ---------------------------------------------------------------------------------


def squared_distance(state: Mapping[str, Floats], x: Floats, y: Floats, last: tuple[int, int] | None) -> float:
    """Between two photos [D]: of all the standardised nodes, and of the last layer, as directions."""
    mean, deviation = state["own.standardise.mean"], state["own.standardise.scale"]
    pairs = [tuple(np.clip((photo - mean) / deviation, -8, 8) for photo in (x, y))]
    if last is not None:
        pairs.append(tuple(photo[last[0] : last[1]] for photo in (x, y)))
    total = 0.0
    for scale, (a, b) in zip(state["scale"], pairs, strict=True):
        total += scale * ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()
    return total


def process(
    state: Mapping[str, Floats], photo: Floats, nodes: Floats, totals: Floats | None, last: tuple[int, int] | None
) -> tuple[Floats, float]:
    """w and v of one photo [D] beside its references [K, D]."""
    g, n = state["sharpness"], len(nodes)
    k = np.array([np.exp(-g * squared_distance(state, x, photo, last)) for x in nodes])
    covariance = np.array([[np.exp(-g * squared_distance(state, x, y, last)) for y in nodes] for x in nodes])
    for i in range(n):
        covariance[i, i] += state["noise"]
        if totals is not None:
            covariance[i, i] += (1 - np.exp(-g)) * state["sampling"] / totals[i]
    w = np.linalg.solve(covariance, k)
    return w, 1 - w @ k


def most_alike(state: Mapping[str, Floats], photo: Floats, nodes: Floats, last: tuple[int, int] | None) -> list[int]:
    """Positions of the 16 of [P, D] that are most alike to one photo [D], or of all."""
    apart = [squared_distance(state, x, photo, last) for x in nodes]
    return sorted(range(len(nodes)), key=lambda i: apart[i])[:16]


def pool_process(
    state: Mapping[str, Floats], photo: Floats, nodes: Floats, totals: Floats | None, last: tuple[int, int] | None
) -> tuple[Floats, float]:
    """w and v of one photo [D] beside the whole pool [P, D]: half by all of it, half by the most alike alone."""
    w, v = process(state, photo, nodes, totals, last)
    near = most_alike(state, photo, nodes, last)
    w_near, v_near = process(state, photo, nodes[near], None if totals is None else totals[near], last)
    mean = 0.5 * w
    for i, weight in zip(near, w_near, strict=True):
        mean[i] += 0.5 * weight
    return mean, 0.5 * v + 0.5 * v_near


def alone(state: Mapping[str, Floats], photo: Floats) -> Floats:
    """What the photo's own network says of one photo [D]."""
    x = np.clip((photo - state["own.standardise.mean"]) / state["own.standardise.scale"], -8, 8)
    v = state["own.reduce.0.weight"] @ x + state["own.reduce.0.bias"]
    v = (v - state["own.reduce.1.running_mean"]) / np.sqrt(state["own.reduce.1.running_var"] + 1e-5)
    v = np.maximum(v * state["own.reduce.1.weight"] + state["own.reduce.1.bias"], 0)
    logits = state["own.read.weight"] @ v + state["own.read.bias"]
    return np.asarray(np.exp(logits) / np.exp(logits).sum())


def tilted(p: Floats) -> Floats:
    """One row that may be negative as a distribution of the same mean, as far as there is one."""
    if (p >= 1e-6).all():
        return p
    bins = np.arange(len(p))
    mean = min(max(p @ bins, 1e-3), len(p) - 1 - 1e-3)
    start = np.maximum(p, 1e-6)

    def tilt(t: float) -> Floats:
        logits = np.log(start) + t * bins
        shares = np.exp(logits - logits.max())
        return np.asarray(shares / shares.sum())

    return tilt(brentq(lambda t: tilt(t) @ bins - mean, -90, 90, xtol=1e-14, rtol=1e-14))


def numbers_of(network: Votes) -> dict[str, Floats]:
    return {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("references", [None, 1, 6])
@pytest.mark.parametrize("totals", [True, False])
def test_against_an_independent_process(references: int | None, totals: bool, last: tuple[int, int] | None) -> None:
    tilts = 0
    for seed in range(4):
        network, photo, pool = (
            random_network(seed, last),
            random_photos(20, seed),
            random_pool(seed=seed, totals=totals),
        )
        index = None if references is None else random_index(len(photo), references)
        found, p, state = consult(network, photo, pool, index), look(network, photo, pool, index), numbers_of(network)
        parts = network.parts(photo, pool, index, None)
        for b in range(len(photo)):
            rows = np.arange(POOL) if index is None else index[b].numpy()
            counts = None if pool.totals is None else pool.totals.numpy()[rows]
            asked = pool_process if index is None else process
            w, v = asked(state, photo[b].numpy(), pool.nodes.numpy()[rows], counts, last)
            base, own = state["base"], alone(state, photo[b].numpy())
            votes = pool.distributions.numpy()[rows]
            expected = base + v * (own - base) + (1 - v) * sum(w[i] * (votes[i] - base) for i in range(len(w)))
            np.testing.assert_allclose(found.weight[b], w, rtol=0, atol=1e-6)
            assert found.open[b].item() == pytest.approx(v, abs=1e-6)
            np.testing.assert_allclose(parts.weight[b].detach(), (1 - v) * w, rtol=0, atol=1e-6)
            np.testing.assert_allclose(parts.own[b].detach(), v * (own - base), rtol=0, atol=1e-6)
            np.testing.assert_allclose(p[b], tilted(expected), rtol=0, atol=1e-6)
            tilts += (expected < 1e-6).any()
            assert 0 < v < 1
        assert found.open.std() > 1e-3  # the photos do differ
    assert tilts < 20  # most rows are what the formula gives


def test_by_hand() -> None:
    """Squared distance 0.25, sharpness 2, noise 0.5 and what a panel of six adds: one reference, and the same twice."""
    network = Votes(2, 2, width=2).double().eval()
    network.sharpness.fill_(2.0)
    network.noise.fill_(0.5)
    network.sampling.fill_(3.0)
    photo = torch.tensor([[1.0, 0.0]]).double()
    cosine = 1 - 0.25 / 2
    near = torch.tensor([[cosine, np.sqrt(1 - cosine**2)]]).double() * 3  # length does not count
    votes = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    k = np.exp(-2.0 * 0.25)
    noise = 0.5 + (1 - np.exp(-2.0)) * 3.0 / 6.0  # a panel of six
    once, twice = (
        Pool(near.repeat(n, 1), votes.repeat(n, 1), torch.full((n,), 6.0, dtype=torch.float64)) for n in (1, 2)
    )
    np.testing.assert_allclose(network.noise_of(once), [noise], rtol=0, atol=1e-12)
    np.testing.assert_allclose(network.noise_of(once._replace(totals=None)), [0.5], rtol=0, atol=1e-12)
    w, v = consult(network, photo, once)
    np.testing.assert_allclose(w, [[k / (1 + noise)]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(v, [1 - k * k / (1 + noise)], rtol=0, atol=1e-9)
    w, v = consult(network, photo, twice)
    np.testing.assert_allclose(w, [[k / (2 + noise)] * 2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(v, [1 - 2 * k * k / (2 + noise)], rtol=0, atol=1e-9)
    with torch.no_grad():
        own = float(network.own(photo).exp()[0, 0])
    w1, v1 = k / (1 + noise), 1 - k * k / (1 + noise)
    expected = 0.5 + v1 * (own - 0.5) + (1 - v1) * w1 * 0.4
    assert look(network, photo, once)[0, 0].item() == pytest.approx(expected, abs=1e-9)
    # twenty times the same: sixteen are read twice, whichever they are
    many = Pool(near.repeat(20, 1), votes.repeat(20, 1), torch.full((20,), 6.0, dtype=torch.float64))
    w, v = consult(network, photo, many)
    of_all, of_near = k / (20 + noise), k / (16 + noise)
    np.testing.assert_allclose(w[0].sort()[0], [of_all / 2] * 4 + [(of_all + of_near) / 2] * 16, rtol=0, atol=1e-9)
    np.testing.assert_allclose(v, [1 - (20 * of_all + 16 * of_near) / 2 * k], rtol=0, atol=1e-9)
    # (0.6065 and 1.5 + 0.4323 written out, so that no formula of this file can hide a slip)
    assert consult(network, photo, once).weight.item() == pytest.approx(0.3138843, abs=1e-6)


# ---- a distribution of the same mean ---------------------------------------------------------------------------------


def rows_with_sum_one(count: int, bins: int, wild: float, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(bins, 9.0), count) + wild * rng.normal(size=(count, bins))
    return np.asarray(p + (1 - p.sum(1, keepdims=True)) / bins)


@pytest.mark.parametrize("bins", [2, 5, 10])
@pytest.mark.parametrize("wild", [0.0, 0.2, 0.4, 5.0])
def test_with_mean(bins: int, wild: float) -> None:
    p = rows_with_sum_one(60, bins, wild, bins)
    bad, mean = (p < 1e-6).any(1), p @ np.arange(bins)
    found = with_mean(torch.from_numpy(p)).numpy()
    assert np.array_equal(found[~bad], p[~bad])  # what is a distribution already keeps its bits
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-12)
    expected_mean = np.where(bad, mean.clip(1e-3, bins - 1 - 1e-3), mean)
    np.testing.assert_allclose(found @ np.arange(bins), expected_mean, rtol=0, atol=1e-9)
    for row, expected in zip(found, p, strict=True):
        np.testing.assert_allclose(row, tilted(expected), rtol=0, atol=1e-9)
    assert bad.any() == (wild > 0)
    if wild == 5:
        assert (mean < 0).any() and (mean > bins - 1).any()  # no distribution has such a mean


def test_the_mean_of_rows_beside_each_other() -> None:
    p = torch.from_numpy(rows_with_sum_one(30, 5, 0.1, 0))
    together, mended = with_mean(p), torch.cat([with_mean(row[None]) for row in p])
    same(together, mended, 1e-12)
    kept = p.clone()
    with_mean(p)
    assert torch.equal(p, kept)  # not in place
    assert with_mean(p[:0]).shape == (0, 5)


# ---- who may not be consulted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", LASTS)
def test_what_is_left_out_of_the_pool_is_not_there(last: tuple[int, int] | None) -> None:
    network, pool, photo = random_network(0, last), random_pool(), random_photos(11)
    state = numbers_of(network)
    near = [most_alike(state, one, pool.nodes.numpy(), last) for one in photo.numpy()]
    left_out: list[list[int]] = [[], [3], [0, 19], [*range(1, 18)], [*range(POOL)], [7, 8, 9]]
    left_out += [near[6], near[7][:5], [i for i in range(POOL) if i not in near[8]]]  # the others move up, or need not
    left_out += [[*range(7)], [*range(9)]]  # 17 stay, 15 stay
    keep = torch.ones(len(photo), POOL, dtype=torch.bool)
    for b, positions in enumerate(left_out):
        keep[b, positions] = False
    found, p = consult(network, photo, pool, None, keep), look(network, photo, pool, keep=keep)
    for b, positions in enumerate(left_out):
        rest = [i for i in range(POOL) if i not in positions]
        smaller, one = part_of(pool, rest), photo[b : b + 1]
        expected = consult(network, one, smaller)
        same(found.weight[b, rest], expected.weight[0])
        same(found.open[b], expected.open[0])
        same(p[b], look(network, one, smaller)[0])
        assert (found.weight[b, positions] == 0).all()
        same(p[b], look(network, one, pool, keep=keep[b : b + 1])[0])  # whatever the others leave out
        if rest and positions:
            assert (p[b] - look(network, one, pool)[0]).abs().max() > 1e-5  # and they would have counted
    assert found.open[4] == 1
    same(p[4], look(network, photo[4:5])[0], 1e-12)
    with torch.no_grad():
        same(p[4], network.own(photo[4:5]).exp()[0], 1e-12)


def test_a_missing_reference_is_not_there() -> None:
    network, pool, photo = random_network(), random_pool(), random_photos(5)
    index = random_index(5, 6)
    keep = torch.tensor([[1] * 6, [1] * 5 + [0], [1, 0, 1, 0, 0, 1], [0] * 6, [0] * 5 + [1]]).bool()
    found, p = consult(network, photo, pool, index, keep), look(network, photo, pool, index, keep=keep)
    for b in range(5):
        rest, one = index[b][keep[b]], photo[b : b + 1]
        expected = consult(network, one, pool, rest[None])
        same(found.weight[b][keep[b]], expected.weight[0])
        same(found.open[b], expected.open[0])
        assert (found.weight[b][~keep[b]] == 0).all()
        same(p[b], look(network, one, pool, rest[None])[0])
    assert found.open[3] == 1
    same(p[3], look(network, photo[3:4])[0], 1e-12)


def rated(size: int = POOL, groups: int = 0, features: int = FEATURES, seed: int = 0) -> RatedPool:
    """A pool of photos whose votes follow their nodes smoothly."""
    rng = np.random.default_rng(seed)
    nodes = rng.normal(size=(size, features))
    level = 1.5 * np.sin(2 * nodes[:, 0]) + nodes[:, 1]
    shares = np.exp(-0.5 * (np.arange(BINS)[None] - 2 - level[:, None]) ** 2)
    shares /= shares.sum(1, keepdims=True)
    totals = rng.integers(5, 40, size).astype(float)
    votes = np.stack([rng.multinomial(int(n), p) for n, p in zip(totals, shares, strict=True)])
    return RatedPool(
        ids=tuple(f"photo{i}" for i in range(size)),
        pixels=tuple(f"{i:064x}" for i in range(size)),
        groups=tuple(f"g{i % groups}" if groups else "" for i in range(size)),
        distributions=votes / totals[:, None],
        totals=totals,
        semantic=nodes,
        nodes=nodes,
        rows=np.arange(size, dtype=np.int64),
        near_duplicate=None,  # among so few numbers, likeness is no sign of the same photo
    )


def samples_of(pool: RatedPool, k: int, *, grouped: bool = False, few: bool = True) -> Samples:
    """The pool's photos with their references in it; k = P: all the others, as the network of `votes` sees them."""
    rows = np.arange(len(pool), dtype=np.int64)
    found = pool.find(pool.semantic, k, ids=pool.ids, groups=pool.groups if grouped else None)
    return Samples(pool.nodes, rows, pool, found, pool.distributions, whole=k == len(pool), few=few)


def test_samples_with_missing_places() -> None:
    """Index -1 in a batch, with an index and of the whole pool, is a reference that is not there."""
    network, pool, photo = random_network(), rated(), random_photos(4).numpy()
    index = np.array([[4, 2, 9, 7], [1, 3, -1, -1], [-1, -1, -1, -1], [8, -1, -1, -1]])
    found = References(index, np.where(index >= 0, -np.arange(4.0), -np.inf).astype(np.float32))
    rows = np.arange(4, dtype=np.int64)
    with pytest.raises(UsageError, match="a photo has no reference at all"):
        Samples(photo, rows, pool, found)
    chosen, whole = (Samples(photo, rows, pool, found, whole=whole, few=True) for whole in (False, True))
    for samples in (chosen, whole):
        batch = samples.batch(rows)
        assert (batch.index is None) == samples.whole
        p = look(network, batch.photo, batch.pool, batch.index, batch.similarity, batch.keep)
        np.testing.assert_allclose(training.predict(network, samples), p / p.sum(1, keepdim=True), rtol=0, atol=1e-12)
        for i in rows:
            rest = [int(j) for j in index[i] if j >= 0]
            alone = look(network, torch.from_numpy(photo[i : i + 1]), part_of(pool.tensors, rest))
            same(p[i], alone[0])
    nobody = Samples(photo, rows, pool, found.first(0), few=True).batch(rows)
    same(look(network, nobody.photo, nobody.pool, nobody.index), look(network, torch.from_numpy(photo)), 1e-12)


# ---- invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 16, 17, POOL, 60])
@pytest.mark.parametrize("last", LASTS)
def test_the_whole_pool_in_any_order(size: int, last: tuple[int, int] | None) -> None:
    """As all positions in `index`, up to 16; beyond, as the mean of them and of the 16 most alike in `index`."""
    network, pool, photo = random_network(last=last), random_pool(size), random_photos(20)
    p, found = look(network, photo, pool), consult(network, photo, pool)
    index = random_index(len(photo), size, size)  # all positions, in an order of each photo's own
    by_all = consult(network, photo, pool, index)
    weight, left_open = torch.zeros(len(photo), size).double().scatter(1, index, by_all.weight), by_all.open
    if size <= 16:
        same(look(network, photo, pool, index), p)
    else:
        state = numbers_of(network)
        near = torch.tensor([most_alike(state, one, pool.nodes.numpy(), last) for one in photo.numpy()])
        by_near = consult(network, photo, pool, near)
        close = torch.zeros(len(photo), size).double().scatter(1, near, by_near.weight)
        for one in (weight, close):
            assert (found.weight - one).abs().amax(1).min() > 1e-5  # neither alone
        weight, left_open = (weight + close) / 2, (left_open + by_near.open) / 2
        with torch.no_grad():
            parts = network.parts(photo, pool, None, None)
        same(parts.weight, (1 - left_open)[:, None] * weight)
    same(found.weight, weight)
    same(found.open, left_open)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    turned = part_of(pool, order.tolist())
    same(consult(network, photo, turned).weight, found.weight[:, order])
    same(look(network, photo, turned), p)


@pytest.mark.parametrize("of", [torch.float32, torch.float64])
@pytest.mark.parametrize("left_out", [False, True])
def test_equally_alike_at_place_16(of: torch.dtype, left_out: bool) -> None:
    """The same photo thirty times with other votes: whichever are read twice, they are so in every batch.

    The last bits of a likeness do depend on the batch, and on the column.
    """
    torch.manual_seed(0)
    features, many, others = 384, 30, 12
    network = Votes(features, BINS, width=4).to(of).eval()
    network.base = network.base.double()
    rng = np.random.default_rng(0)
    photo, copied = rng.normal(size=(37, features)), rng.normal(size=features)
    photo[:30] += copied  # to the others the copies are no more alike than what else there is
    place = rng.permutation(many + others)
    nodes = np.concatenate([np.tile(copied, (many, 1)), rng.normal(size=(others, features))])[place]
    votes = np.eye(BINS)[rng.integers(0, BINS, len(nodes))]
    pool = Pool(torch.from_numpy(nodes).to(of), torch.from_numpy(votes), None)
    x, copies = torch.from_numpy(photo).to(of), torch.from_numpy(place < many)
    keep = torch.from_numpy(rng.random((37, len(nodes))) < 0.8) if left_out else None
    together, found = look(network, x, pool, keep=keep), consult(network, x, pool, None, keep)
    for size in (1, 2, 5, 16):
        for start in range(0, 37, size):
            some = slice(start, start + size)
            of_some = None if keep is None else keep[some]
            same(consult(network, x[some], pool, None, of_some).weight, found.weight[some], 1e-5)
            same(look(network, x[some], pool, keep=of_some), together[some], 1e-5)
    for b in range(30):
        asked = copies if keep is None else copies & keep[b]
        assert asked.sum() > 16
        w = found.weight[b, asked].sort(descending=True).values
        same(w[:16], w[:1].expand(16), 1e-5)  # 16 of them twice, and all of them once
        same(w[16:], w[-1:].expand(len(w) - 16), 1e-5)
        assert w[15] > 1.2 * w[16] > 1e-3


def test_without_references_the_photo_alone() -> None:
    network, pool, photo = random_network(), random_pool(), random_photos()
    with torch.no_grad():
        own = network.own(photo).exp()
    nobody = torch.zeros(len(photo), 0, dtype=torch.int64)
    same(look(network, photo), own, 1e-12)
    same(look(network, photo, pool, nobody), own, 1e-12)
    assert consult(network, photo, pool, nobody).open.tolist() == [1.0] * len(photo)
    for index in (None, nobody, torch.zeros(0, 3, dtype=torch.int64)):
        count = len(photo) if index is nobody else 0
        assert look(network, photo[:count], pool, index).shape == (count, BINS)
    assert (look(network, photo, pool) - own).abs().max() > 0.01  # with them it differs


def test_pictures_of_one_lake_do_not_count_many_times() -> None:
    """(K + N)^-1: five of the same say little more than one, and leave what is not like them its weight."""
    network, photo = random_network(), random_photos(1)
    network.noise.fill_(0.05)
    network.sampling.fill_(0.0)
    pool = random_pool(2)
    one = float(consult(network, photo, pool).weight[0, 0])
    many = consult(network, photo, part_of(pool, [0] * 5 + [1])).weight[0]
    same(many[:5], many[:1].expand(5))
    assert one > 0.01
    assert one < many[:5].sum() < 1.25 * one  # and not five times as much
    lone = float(consult(network, photo, part_of(pool, [0])).weight)  # of forty, some are read without the other photo
    crowd = consult(network, photo, part_of(pool, [1] + [0] * 40)).weight[0, 1:]
    assert (one + lone) / 2 < crowd.sum() < 1.25 * (one + lone) / 2


@pytest.mark.parametrize("references", [None, 6])
def test_few_votes_weigh_less(references: int | None) -> None:
    network, photo, pool = random_network(), random_photos(1), random_pool()
    index = None if references is None else random_index(1, references)
    for place in range(references or POOL):
        position = place if index is None else int(index[0, place])
        weights = []
        for total in (1.0, 10.0, 1000.0):
            assert pool.totals is not None
            totals = pool.totals.clone()
            totals[position] = total
            weights.append(abs(float(consult(network, photo, pool._replace(totals=totals), index).weight[0, place])))
        assert weights[0] < weights[1] < weights[2]


@pytest.mark.parametrize("references", [None, 6])
def test_the_influence_of_a_reference_is_exact(references: int | None) -> None:
    """The mean score moves by the weight times the change of one reference's mean, tilted rows included."""
    network, pool, photo = random_network(), random_pool(), random_photos(10)
    index = None if references is None else random_index(10, references)
    values = torch.arange(1.0, BINS + 1).double()
    before = look(network, photo, pool, index) @ values
    with torch.no_grad():
        weight = network.parts(photo, pool, index, None).weight
    moved = 0
    for position in range(POOL):
        votes = pool.distributions.clone()
        votes[position] = votes[position].flip(0)
        change = (votes[position] - pool.distributions[position]) @ values
        after = look(network, photo, pool._replace(distributions=votes), index) @ values
        own = weight[:, position] if index is None else (weight * (index == position)).sum(1)
        same(after - before, own * change)
        moved += bool((after - before).abs().max() > 1e-3)
    assert moved > 3


def test_an_impossible_mean_only_ends_at_the_edge() -> None:
    network, photo = random_network(), random_photos(3)
    pool = random_pool()
    votes = torch.zeros(POOL, BINS).double()
    votes[:, -1] = 1
    network.base.copy_(torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01]))
    p = look(network, photo, pool._replace(distributions=votes * 3 - 2 * network.base))  # far outside
    assert (p > 0).all()
    same(p.sum(1), torch.ones(3).double())
    assert (p @ torch.arange(BINS).double() <= BINS - 1 - 1e-3 + 1e-9).all()


@pytest.mark.parametrize("references", [None, 0, 6])
@pytest.mark.parametrize("last", LASTS)
def test_distributions(references: int | None, last: tuple[int, int] | None) -> None:
    """Of float16 nodes in a float32 network, as it is used: positive, sum 1, whatever the features."""
    network = random_network(last=last).float()
    network.base = network.base.double()
    for far in (0.3, 1, 100):
        pool = random_pool()
        pool = Pool((far * pool.nodes).half(), pool.distributions.float(), pool.totals.float())  # type: ignore[union-attr]
        photo = (far * random_photos(40)).half()
        index = None if references is None else random_index(40, references)
        p = look(network, photo, pool, index)
        assert p.dtype == torch.float64
        assert (p > 0).all()
        same(p.sum(1), torch.ones(40).double(), 1e-6)
        wide = look(network.double(), photo.double(), Pool(pool.nodes.double(), *pool[1:]), index)
        same(p, wide, 1e-4)
        network.float()
        network.base = network.base.double()


@pytest.mark.parametrize("references", [None, 6])
def test_photos_at_once_or_one_by_one(references: int | None) -> None:
    network, pool, photo = random_network(), random_pool(), random_photos(37)  # more than are gathered at once
    index = None if references is None else random_index(37, references)
    keep = torch.from_numpy(np.random.default_rng(0).random((37, references or POOL)) < 0.8)
    together = look(network, photo, pool, index, keep=keep)
    for b in range(37):
        some = slice(b, b + 1)
        apart = look(network, photo[some], pool, None if index is None else index[some], keep=keep[some])
        same(apart[0], together[b])


def test_the_kept_inverse_is_not_stale() -> None:
    photo, pool, other = random_photos(), random_pool(), random_pool(seed=9)
    used = random_network()
    look(used, photo, pool)
    changes: list[tuple[str, float]] = [("noise", 0.2), ("sharpness", 0.1), ("sampling", 7.0), ("scale", 0.2)]
    for name, value in [("", 0.0), *changes]:
        fresh = random_network()
        fresh.load_state_dict(used.state_dict())
        before = look(used, photo, pool)
        for network in (used, fresh):
            if name:
                getattr(network, name).fill_(value)
        for asked in (pool, other, pool):
            assert torch.equal(look(used, photo, asked), look(fresh, photo, asked))
        assert torch.equal(look(used, photo, pool), before) == (not name)
    assert not torch.equal(look(used, photo, pool), look(used, photo, other))


def test_the_inverse_is_made_once_for_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pool, photo, inverse, sizes = random_network(), random_pool(), random_photos(), torch.linalg.inv, []

    def count(matrix: Tensor) -> Tensor:
        sizes.append(len(matrix))
        return inverse(matrix)

    monkeypatch.setattr(torch.linalg, "inv", count)
    for _ in range(3):
        look(network, photo, pool)
    look(network, photo[:1], pool, keep=torch.ones(1, POOL, dtype=torch.bool))
    assert sizes == [POOL]
    look(network, photo, random_pool(5))
    assert sizes == [POOL, 5]


# ---- tuning ----------------------------------------------------------------------------------------------------------


def emd() -> Loss:
    return make_loss("emd", 2)


def described(pool: RatedPool, last: tuple[int, int] | None) -> dict[str, Floats]:
    """What the tuning reads off the pool, with loops: base, scale, sampling."""
    q, n = pool.distributions, len(pool)
    state = {"own.standardise.mean": np.zeros(1), "own.standardise.scale": np.ones(1), "base": q.mean(0)}
    scales = []
    for nodes in [pool.nodes] if last is None else [pool.nodes, pool.nodes[:, last[0] : last[1]]]:
        only = {**state, "scale": np.ones(1)}
        pairs = [squared_distance(only, nodes[i], nodes[j], None) for i in range(n) for j in range(n) if i != j]
        scales.append(1 / (np.sort(pairs)[(len(pairs) - 1) // 2] * (1 if last is None else 2)))
    cdf = q.cumsum(1)[:, :-1]
    chance = (cdf * (1 - cdf)).mean()
    observed = cdf.var(axis=0, ddof=1).mean()
    between = max(observed - chance * (1 / pool.totals).mean(), chance * 1e-3)
    return {**state, "scale": np.array(scales), "sampling": np.array(chance / between)}


def left_out_loss(pool: RatedPool, settings: Mapping[str, Floats], squared: Floats) -> float:
    """The EMD of each photo's prediction by all the others, every one from a process of its own."""
    total, g = 0.0, settings["sharpness"]
    likeness, base = np.exp(-g * squared), settings["base"]
    noise = settings["noise"] + (1 - np.exp(-g)) * settings["sampling"] / pool.totals
    for i in range(len(pool)):
        rest = [j for j in range(len(pool)) if j != i]
        near = sorted(rest, key=lambda j: squared[i, j])[:16]
        added = np.zeros(BINS)
        for some in (rest, near):
            w = np.linalg.solve(likeness[np.ix_(some, some)] + np.diag(noise[some]), likeness[some, i])
            added += w @ (pool.distributions[some] - base) / 2
        p = tilted(base + added)
        total += np.sqrt(((p - pool.distributions[i]).cumsum() ** 2).mean())
    return total / len(pool)


@pytest.mark.parametrize("last", LASTS)
@pytest.mark.parametrize("of", ["rated", "planted"])
def test_tuning_finds_the_best(of: str, last: tuple[int, int] | None) -> None:
    """The best of what is around it, by an independent left-out prediction; on most pools the best of all there is."""
    pool = rated(26) if of == "rated" else planted(4.0, 0.05, size=26, features=FEATURES)
    network = Votes(FEATURES, BINS, width=4, last=last).double()
    line = tune(network, samples_of(pool, len(pool)), pool, emd)
    expected = described(pool, last)
    for name in ("base", "scale", "sampling"):
        np.testing.assert_allclose(getattr(network, name).numpy(), expected[name], rtol=1e-5, atol=0)
    assert (line["sharpness"], line["noise"]) == (network.sharpness, network.noise)
    squared = np.array([[squared_distance(expected, x, y, last) for y in pool.nodes] for x in pool.nodes])
    losses = {
        (i, j): left_out_loss(
            pool, {**expected, "sharpness": np.array(2.0**i), "noise": np.array(0.1 * 2.0**j)}, squared
        )
        for i in range(-3, 4)
        for j in range(-3, 4)
    }
    at = (round(np.log2(line["sharpness"])), round(np.log2(line["noise"] / 0.1)))
    assert line["loss"] == pytest.approx(losses[at], abs=1e-6)
    around = [(at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1)]
    assert all(line["loss"] < losses.get(place, 1) + 1e-6 for place in around)
    assert line["loss"] <= losses[0, 0] + 1e-6
    assert line["loss"] == pytest.approx(min(losses.values()), rel=1e-6 if of == "planted" else 0.03)
    assert min(losses.values()) < np.median(list(losses.values())) - 1e-3  # it matters


def planted(sharpness: float, noise: float, size: int = 200, features: int = 3) -> RatedPool:
    """Votes that are a draw of the very process, with that likeness and noise."""
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(size, features))
    z = nodes / np.linalg.norm(nodes, axis=1, keepdims=True)
    squared = ((z[:, None] - z[None]) ** 2).sum(-1)
    usual = np.median(squared[~np.eye(size, dtype=bool)])
    factor = np.linalg.cholesky(np.exp(-sharpness * squared / usual) + noise * np.eye(size))
    shares = np.maximum(0.2 + 0.05 * factor @ rng.normal(size=(size, BINS)), 0.01)
    return replace(
        rated(size),
        distributions=shares / shares.sum(1, keepdims=True),
        totals=np.full(size, 1e6),
        nodes=nodes,
        semantic=nodes,
    )


@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_tuning_recovers_what_was_planted(sharpness: float) -> None:
    pool = planted(sharpness, 0.05)
    network = Votes(3, BINS, width=4).double()
    line = tune(network, samples_of(pool, len(pool)), pool, emd)
    assert sharpness / 2.1 <= line["sharpness"] <= sharpness * 2.1


def guesses(
    pool: RatedPool, samples: Samples, network: Votes, monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[float, float], Tensor]:
    """All that the tuning predicts on its way, by sharpness and noise, beside what `network` was told of the pool."""
    seen: dict[tuple[float, float], Tensor] = {}

    def measure(loss: Loss, p: Tensor, q: Tensor) -> float:
        seen[float(network.sharpness), float(network.noise)] = p.clone()
        return 0.0  # the same way, whatever the votes

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_measure", measure)
        patch.setattr(tuning, "_describe", lambda network, pool: None)
        tune(network, samples, pool, emd)
    return seen


@pytest.mark.parametrize("k", [8, 30])
@pytest.mark.parametrize("grouped", [False, True])
def test_no_photo_is_predicted_from_its_own_votes(k: int, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor, where groups act, from those of its group."""
    pool, changed = rated(30, groups=10), 4
    network = random_network(5)
    votes = pool.distributions.copy()
    votes[changed] = votes[changed][::-1]
    other = replace(pool, distributions=votes)
    before, after = (
        guesses(each, samples_of(each, k, grouped=grouped), network, monkeypatch) for each in (pool, other)
    )
    assert before.keys() == after.keys()
    assert len(before) >= 5
    group = {4, 14, 24}
    told = {i for at in before for i in range(30) if (before[at][i] - after[at][i]).abs().max() > 1e-12}
    assert changed not in told
    assert len(told) > 3  # the others do hear of it
    if grouped:
        assert not told & group
    elif k == 30:
        assert told == set(range(30)) - {changed}


@pytest.mark.parametrize("loss", ["adaptive_emd", "published_adaemd", "published_emd"])
def test_tuning_by_other_losses(loss: Any) -> None:
    pool = rated(30)
    network = Votes(FEATURES, BINS, width=4)
    line = tune(network, samples_of(pool, 6), pool, lambda: make_loss(loss, 2))
    again = tune(Votes(FEATURES, BINS, width=4), samples_of(pool, 6), pool, lambda: make_loss(loss, 2))
    assert line == again
    assert np.isfinite(line["loss"])


# ---- end to end ------------------------------------------------------------------------------------------------------

QUICK = ("width=16", "epochs=6", "patience=3", "batch=16", "calibration_folds=2")


def recipe(*settings: str) -> Recipe:
    return load_recipe("votes", [*QUICK, *settings])


def split_of(table: made.Table) -> Split:
    return Split(table.rows_where("split", "train"), table.rows_where("split", "test"))


def features_of(table: made.Table) -> made.FeatureSet:
    """Those of `made`, which say that the last 8 columns are the backbone's last layer."""
    features = made.features(table)
    nodes = {**features.config["nodes"], "extraction": {"ranges": {"last": [16, 24]}}}
    return replace(features, config={**features.config, "nodes": nodes})


def equal(a: Model, b: Model) -> bool:
    x, y = a.network.state_dict(), b.network.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def predictions(model: Model, table: made.Table, features: made.FeatureSet, rows: NDArray[np.int64]) -> Floats:
    references = model.find(features.semantic[rows], ids=[table.ids[row] for row in rows])
    return model.predict(features.nodes[rows], references)


@pytest.mark.parametrize("references", ["all", "64", "12"])
def test_it_learns_more_than_the_photo_alone(references: str) -> None:
    table = made.table(150)
    features, split = features_of(table), split_of(table)
    model = fit(recipe(f"references={references}"), table, features, split, 0)
    assert isinstance(model.network, Votes)
    assert model.network.last == (16, 24)
    assert len(model.pool) == len(split.train)
    p = predictions(model, table, features, split.test)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    own = look(model.network, torch.from_numpy(features.nodes[split.test])).numpy()  # type: ignore[arg-type]
    with_references, without = (srcc(table.scores[split.test], guess @ table.values) for guess in (p, own))
    assert with_references > without + 0.02
    assert with_references > 0.9


def test_the_own_network_is_the_one_of_the_photo_alone() -> None:
    table = made.table()
    features, split = features_of(table), split_of(table)
    model = fit(recipe(), table, features, split, 4)
    single = fit(replace(recipe(), name="single", model="single"), table, features, split, 4)
    own = model.network.own.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(own[name], tensor) for name, tensor in single.network.state_dict().items())
    assert model.history == single.history


def test_one_seed_decides_all() -> None:
    table = made.table()
    features, split = features_of(table), split_of(table)
    first = fit(recipe(), table, features, split, 1, calibrate=True)
    torch.manual_seed(99)
    again = fit(recipe(), table, features, split, 1, calibrate=True)
    assert equal(first, again)
    np.testing.assert_array_equal(first.doubt.percentiles, again.doubt.percentiles)
    assert np.array_equal(*(predictions(model, table, features, split.test) for model in (first, again)))
    assert not equal(first, fit(recipe(), table, features, split, 2))


@pytest.mark.parametrize("group", [None, "theme"])
@pytest.mark.parametrize("settings", [(), ("references=5", "refit=false")])
def test_no_leak_from_the_test_rows(group: str | None, settings: tuple[str, ...]) -> None:
    """Test votes and features that are NaN, or votes that are permuted: same weights, bit for bit."""
    table, chosen = made.table(), recipe(*settings)
    features, split = features_of(table), split_of(table)
    if group:  # whole themes are tested
        inside = table.codes("theme") % 4 == 0
        split = Split(np.flatnonzero(~inside), np.flatnonzero(inside), group)
    honest = fit(chosen, table, features, split, 3, calibrate=True)

    votes = table.votes.copy()
    votes[split.test] = np.nan
    nodes = features.nodes.copy()
    nodes[split.test] = np.nan
    blind = replace(features, nodes=nodes, semantic=nodes[:, -8:])
    unseen = fit(chosen, replace(table, votes=votes), blind, split, 3, calibrate=True)
    assert equal(honest, unseen)
    np.testing.assert_array_equal(honest.doubt.percentiles, unseen.doubt.percentiles)

    votes = table.votes.copy()
    votes[split.test] = votes[np.random.default_rng(0).permutation(split.test)]
    permuted = fit(chosen, replace(table, votes=votes), features, split, 3, calibrate=True)
    assert equal(honest, permuted)
    np.testing.assert_array_equal(honest.doubt.percentiles, permuted.doubt.percentiles)

    votes[split.train[0]] = votes[split.train[0]][::-1]  # and the test can fail: one training row does count
    assert not equal(honest, fit(chosen, replace(table, votes=votes), features, split, 3))


def test_no_training_photo_consults_itself_or_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from milnet import recipes

    seen: list[tuple[Samples, Pool]] = []

    def spy(network: Votes, samples: Samples, pool: Pool, loss: Callable[[], Loss], **how: Any) -> dict[str, float]:
        seen.append((samples, pool))
        return tune(network, samples, pool, loss, **how)

    monkeypatch.setattr(recipes, "tune", spy)
    table = made.table()
    features = features_of(table)
    theme = table.codes("theme")
    inside = theme % 3 == 0
    for group in (None, "theme"):
        split = Split(np.flatnonzero(~inside), np.flatnonzero(inside), group)
        fit(recipe(), table, features, split, 0)
        samples, pool = seen[-1]
        n = len(split.train)
        batch = samples.batch(np.arange(n))
        assert len(pool) == n
        assert batch.index is None and batch.keep is not None
        assert not batch.keep.diagonal().any()
        alike = torch.from_numpy(theme[split.train][:, None] == theme[split.train][None])
        assert bool(batch.keep[alike].any()) == (group is None)
        assert batch.keep[~alike].float().mean() > 0.99


@pytest.mark.parametrize("steps", [3, 25, 10_000])
def test_a_stopped_run_ends_with_the_same_bits(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in a step of the training, or (10,000) in the tuning."""
    table = made.table()
    features, split = features_of(table), split_of(table)
    whole = fit(recipe(), table, features, split, 7)
    left, step, measure = [steps], training._step, tuning._measure

    def stop(*inputs: Any) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(*inputs)

    def stop_tuning(*inputs: Any) -> float:
        if steps == 10_000:
            raise KeyboardInterrupt
        return measure(*inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_step", stop)
        patch.setattr(tuning, "_measure", stop_tuning)
        fit(recipe(), table, features, split, 7, run=Run(tmp_path / "run", {"test": 1}, save_seconds=0))
    run = Run(tmp_path / "run", {"test": 1}, save_seconds=0)
    assert ("refit" in run.results) == (steps == 10_000)
    resumed = fit(recipe(), table, features, split, 7, run=run)
    assert equal(whole, resumed)
    assert resumed.history == whole.history
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines][-1] == "refit"


def test_the_log_of_a_run_can_be_read(tmp_path: Path) -> None:
    table = made.table()
    run = Run(tmp_path / "run", {"test": 1})
    fit(recipe("epochs=2"), table, features_of(table), split_of(table), 0, run=run)
    assert 0 <= run.waited() <= 1  # `milnet train` asks for it


@pytest.mark.parametrize(
    "references",
    [
        "0",
        "3",
        "all",
        "999",
    ],
)
def test_references(references: str, tmp_path: Path) -> None:
    table = made.table()
    features, split = features_of(table), split_of(table)
    model = fit(recipe(f"references={references}"), table, features, split, 0)
    n = len(split.train)
    expected = {"0": 0, "3": 3}.get(references, n)
    found = model.find(features.semantic[split.test], ids=[table.ids[row] for row in split.test])
    assert found is not None
    assert found.index.shape == (len(split.test), expected)
    p = predictions(model, table, features, split.test)
    network = model.network
    assert isinstance(network, Votes)
    photo = torch.from_numpy(features.nodes[split.test])
    if references == "0":
        with torch.no_grad():
            own = network.own(photo).double().exp().numpy()
        np.testing.assert_allclose(p, own, rtol=0, atol=1e-6)
    assert n > 16
    if references == "all":
        keep = torch.zeros(len(photo), n, dtype=torch.bool)
        for i, row in enumerate(found.index):
            keep[i, row[row >= 0]] = True
        whole = look(network, photo, model.pool.tensors, keep=keep)
        np.testing.assert_allclose(p, whole, rtol=0, atol=1e-5)
    else:  # a number, however large, is of references in `index`: read once
        index = torch.from_numpy(found.index).long()
        chosen = look(network, photo, model.pool.tensors, index.clamp_min(0), keep=index >= 0)
        np.testing.assert_allclose(p, chosen, rtol=0, atol=1e-5)
    save_model(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.recipe.references == ("all" if references == "all" else int(references))
    assert np.array_equal(predictions(loaded, table, features, split.test), p)


def test_impossible_references_are_refused() -> None:
    for name, references in (("published", "0"), ("published", "all"), ("votes", "-1"), ("votes", "some")):
        with pytest.raises(UsageError, match="references"):
            load_recipe(name, [f"references={references}"])
    for photos, expected in ((4999, "all"), (5000, 64)):
        assert load_recipe("votes").resolve(photos).references == expected
        assert load_recipe("votes", ["references=0"]).resolve(photos).references == 0
        assert load_recipe("published").resolve(photos).references == 4
    assert load_recipe("votes", ["references=64"]).looks_for(10) == 10


def test_the_large_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from 5,000 photos on: no refit, 64 references; here there are fewer."""
    for module in ("recipe", "recipes"):
        monkeypatch.setattr(f"milnet.{module}.SMALL", 10)
    table = made.table(80)
    features, split = features_of(table), split_of(table)
    model = fit(recipe("learning_rate=1e-3"), table, features, split, 0, calibrate=True)
    assert (model.recipe.refit, model.recipe.references, len(model.pool)) == (False, 64, 60)
    found = model.find(features.semantic[split.test], ids=[table.ids[row] for row in split.test])
    assert found is not None and found.index.shape == (20, 60)
    p = predictions(model, table, features, split.test)
    assert srcc(table.scores[split.test], p @ table.values) > 0.6
    assert model.epochs == 1 + int(np.argmin([line["emd2"] for line in model.history]))
    smaller = fit(recipe("learning_rate=1e-3", "references=4"), table, features, split, 0)
    assert np.abs(predictions(smaller, table, features, split.test) - p).max() > 0.01


@pytest.mark.parametrize("references", ["all", "5"])
def test_a_saved_model_predicts_the_same(references: str, tmp_path: Path) -> None:
    table = made.table()
    features, split = features_of(table), split_of(table)
    model = fit(recipe(f"references={references}"), table, features, split, 0, calibrate=True)
    manifest = save_model(model, tmp_path / "model")
    loaded, again = load_model(tmp_path / "model")
    assert again.digest == manifest.digest
    assert equal(loaded, model)
    assert isinstance(loaded.network, Votes)
    assert loaded.network.last == (16, 24)
    before, after = (predictions(each, table, features, split.test) for each in (model, loaded))
    assert np.array_equal(before, after)
    assert loaded.recipe == model.recipe
    save_model(loaded, tmp_path / "copy")
    assert load_model(tmp_path / "copy")[1].files == manifest.files


@pytest.mark.parametrize("settings", [(), ("refit=false", "references=5")])
def test_only_networks_of_the_photo_alone_learn_by_steps(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those behind the percentile table too, and its scores are of photos beside the others."""
    from milnet import recipes

    trained: list[Any] = []
    train = recipes.train_epochs

    def spy(network: Any, *inputs: Any, **how: Any) -> Any:
        trained.append(network)
        return train(network, *inputs, **how)

    monkeypatch.setattr(recipes, "train_epochs", spy)
    table = made.table()
    features, split = features_of(table), split_of(table)
    model = fit(recipe("epochs=2", *settings), table, features, split, 0, calibrate=True)
    assert len(trained) == (1 if settings else 2 + model.recipe.calibration_folds)
    assert not any(isinstance(network, Votes) for network in trained)
    _, validation = splits.carve(split.train, model.recipe.validation, 0)
    assert len(model.doubt.percentiles) == (len(validation) if settings else len(split.train))
    # those of the photos alone, two epochs old, are all alike; beside the others they differ
    own = look(model.network, torch.from_numpy(features.nodes[split.train])).numpy() @ table.values  # type: ignore[arg-type]
    assert model.doubt.percentiles.std() > 1.5 * own.std()


def test_many_references_with_several_threads() -> None:
    """Two hundred references, two threads: a batched LU of MKL never ended there. In a process that can be killed."""
    code = """
import numpy as np, torch
from milnet.model.votes import _solved
torch.set_num_threads(2)
x = torch.randn(16, 200, 300, dtype=torch.float64)
between = x @ x.mT / 300 + torch.eye(200, dtype=torch.float64)
near, keep = torch.rand(16, 200, dtype=torch.float64), torch.rand(16, 200) > 0.1
w = _solved(near, between, keep).weight
for i in range(16):
    some = keep[i].numpy()
    wanted = np.linalg.solve(between[i].numpy()[some][:, some], near[i].numpy()[some])
    assert np.abs(w[i].numpy()[some] - wanted).max() < 1e-10 and not w[i].numpy()[~some].any()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
