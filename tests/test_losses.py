"""Losses: golden values of the published code, independent computations, and what no wrong formula can pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor

from milnet import losses
from milnet.annotations import Problems
from milnet.datasets import read_dataset
from milnet.errors import UsageError
from milnet.losses import (
    AdaptiveEMD,
    LossName,
    PublishedAdaEMD,
    adaptive_weighting,
    emd,
    make_loss,
    prefix_l1,
    published_weighting,
)

P = torch.tensor([[0, 0, 1, 4, 10, 12, 8, 3, 1, 1], [2, 1, 1, 2, 3, 6, 10, 9, 4, 2]], dtype=torch.float64) / 40
UNIFORM = torch.full((2, 10), 0.1, dtype=torch.float64)
NAMES = get_args(LossName)


def one_hot(*bins: int, size: int = 10, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(bins), size).to(dtype)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def random_rows(n: int, seed: int, size: int = 10) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(size, 0.5), n))


histograms = st.integers(2, 12).flatmap(
    lambda size: st.tuples(
        *(st.lists(st.integers(0, 50), min_size=size, max_size=size).filter(any) for _ in range(2)),
    )
)


def distributions(counts: Sequence[int]) -> Tensor:
    votes = torch.tensor([counts], dtype=torch.float64)
    return votes / votes.sum()


# ---- golden values of the published code (docs/method.md) ------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.2, (0.3930149819, 0.2078656335)), (0.9, (0.5788998186, 0.4086563348))]
)
def test_published_adaemd(threshold: float, expected: tuple[float, float]) -> None:
    weighted = published_weighting(prefix_l1(P, UNIFORM), scalar(threshold), scalar(0.1))
    torch.testing.assert_close(weighted, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    loss = PublishedAdaEMD().double()
    loss.threshold.fill_(threshold)
    loss.offset.fill_(0.1)
    assert loss(P, UNIFORM).item() == pytest.approx(sum(expected) / 2, abs=1e-9)


@pytest.mark.parametrize(("r", "expected"), [(1, 0.1375), (2, 0.1640866)])
def test_true_emd(r: float, expected: float) -> None:
    assert emd(P, UNIFORM, r).mean().item() == pytest.approx(expected, abs=5e-8)  # as many digits as are written down


def test_the_published_distance_falls_with_the_distance() -> None:
    moved = prefix_l1(one_hot(*[0] * 9), one_hot(*range(1, 10)))
    assert moved[[0, 1, 8]].tolist() == pytest.approx([1.92, 1.84, 1.14], abs=5e-3)  # two decimals are written down
    assert (moved.diff() < 0).all()
    assert prefix_l1(one_hot(0, 8), one_hot(1, 9)).tolist() == pytest.approx([1.924, 0.707], abs=6e-4)
    assert (emd(one_hot(*[0] * 9), one_hot(*range(1, 10))).diff() > 0).all()


# ---- oracles ---------------------------------------------------------------------------------------------------------


@given(histograms)
@settings(deadline=None)
def test_emd_is_the_wasserstein_distance(pair: tuple[list[int], list[int]]) -> None:
    p, q = map(distributions, pair)
    bins = np.arange(p.shape[1])
    expected = wasserstein_distance(bins, bins, p[0].numpy(), q[0].numpy())
    assert p.shape[1] * emd(p, q, 1).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("r", [1, 1.5, 2, 3])
def test_distances_against_loops(r: float) -> None:
    p, q = random_rows(30, 0), random_rows(30, 1)
    for row in range(30):
        carried = wrong = transported = prefix = 0.0
        for a, b in zip(p[row].tolist(), q[row].tolist(), strict=True):
            carried += a - b
            wrong += abs(a - b)
            transported += abs(carried) ** r / 10
            prefix += wrong**r / 10
        assert emd(p, q, r)[row].item() == pytest.approx(transported ** (1 / r), abs=1e-12)
        assert prefix_l1(p, q, r)[row].item() == pytest.approx(prefix ** (1 / r), abs=1e-12)


def test_published_adaemd_against_a_loop() -> None:
    loss = PublishedAdaEMD().double()
    loss.threshold.fill_(0.2)
    threshold, offset = 0.2, 0.0
    for epoch in range(3):
        batches = []
        for batch in range(4):
            # some batches close, some far, so that both branches are taken
            p = random_rows(16, 10 * epoch + batch)
            q = p.lerp(random_rows(16, 100 + 10 * epoch + batch), 0.1 + 0.2 * batch)
            total = 0.0
            for row in range(16):
                prefix, squares = 0.0, 0.0
                for a, b in zip(p[row].tolist(), q[row].tolist(), strict=True):
                    prefix += abs(a - b)
                    squares += prefix**2
                e = math.sqrt(squares / 10)
                total += e if e < threshold else (offset + e) * e
            assert loss(p, q).item() == pytest.approx(total / 16, abs=1e-10)
            offset = 0.99 * total / 16 + 0.01 * offset
            batches.append(total / 16)
        loss.end_epoch()
        threshold = sum(batches) / 4
        assert loss.threshold.item() == pytest.approx(threshold, abs=1e-10)


# ---- invariants ------------------------------------------------------------------------------------------------------


@given(histograms, st.sampled_from([1, 1.5, 2, 4]))
@settings(deadline=None)
def test_emd_is_a_distance(pair: tuple[list[int], list[int]], r: float) -> None:
    p, q = map(distributions, pair)
    forth, back = emd(p, q, r).item(), emd(q, p, r).item()
    assert forth == pytest.approx(back, abs=1e-12)
    assert emd(p, p, r).item() == 0
    # counts of at most 600 votes cannot differ by less than 1 / 600^2 without being equal
    assert (forth > 1e-7) == (not torch.allclose(p, q, rtol=0, atol=1e-9))
    assert 0 <= forth <= ((p.shape[1] - 1) / p.shape[1]) ** (1 / r) + 1e-12
    assert 0 <= prefix_l1(p, q, r).item() <= 2 + 1e-12


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any), st.sampled_from([1, 2, 3]))
@settings(deadline=None)
def test_emd_grows_with_the_bins_moved(counts: list[int], r: float) -> None:
    start = distributions(counts + [0] * 6)
    moved = [emd(start, start.roll(bins, 1), r).item() for bins in range(7)]
    assert all(near < far for near, far in pairwise(moved))


def test_the_largest_distances() -> None:
    assert emd(one_hot(0), one_hot(9), 1).item() == pytest.approx(0.9, abs=1e-12)
    assert emd(one_hot(0), one_hot(9), 2).item() == pytest.approx(0.9**0.5, abs=1e-12)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("r", [1, 1.5, 2, 3])
def test_gradients_are_finite_everywhere(name: LossName, r: float, dtype: torch.dtype) -> None:
    spread = random_rows(1, 5).to(dtype)
    targets = torch.cat([one_hot(0, 9, 4, dtype=dtype), spread, spread, spread])
    loss = make_loss(name, r).to(dtype)
    for guess in (targets.clone(), targets + torch.finfo(dtype).tiny, one_hot(0, 0, 4, 1, 9, 3, dtype=dtype), targets):
        p = guess.clone().requires_grad_()
        value = loss(p, targets)
        value.backward()
        assert torch.isfinite(value) and p.grad is not None and torch.isfinite(p.grad).all()
        logits = (guess.clamp_min(1e-30)).log().requires_grad_()
        loss(torch.softmax(logits, 1), targets).backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()
        loss.end_epoch()  # the second and later rounds run with a threshold


def test_no_gradient_at_equality() -> None:
    p = P.clone().requires_grad_()
    emd(p, P).sum().backward()
    assert p.grad is not None and (p.grad == 0).all()


@pytest.mark.parametrize("distance", [emd, prefix_l1])
@pytest.mark.parametrize("r", [1, 2, 2.5])
def test_gradients_against_differences(distance: Callable[[Tensor, Tensor, float], Tensor], r: float) -> None:
    # through a softmax, as in training: the CDFs always meet at the last bin, where r = 1 has a kink for a free p
    logits, q = random_rows(3, 7).requires_grad_(), random_rows(3, 8)
    assert torch.autograd.gradcheck(lambda x: distance(torch.softmax(x, 1), q, r), logits)

    def weighted(x: Tensor) -> Tensor:
        return adaptive_weighting(emd(torch.softmax(x, 1), q, r), scalar(0.1), scalar(0.05))

    assert torch.autograd.gradcheck(weighted, logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_nan_stays_a_nan(name: LossName, r: float) -> None:
    p = P.clone()
    p[1, 4] = torch.nan
    loss = make_loss(name, r).double()
    for _ in range(2):
        assert torch.isnan(loss(p, UNIFORM))
        loss.end_epoch()


def test_an_exponent_below_one_is_refused() -> None:
    for name in NAMES:
        with pytest.raises(UsageError, match=r"expected an exponent r >= 1 of the EMD, got 0\.5"):
            make_loss(name, 0.5)


# ---- weighting -------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 0.9), st.floats(1e-3, 2), st.floats(0, 1))
@settings(deadline=None)
def test_adaptive_weighting(threshold: float, scale: float, value: float) -> None:
    t, c = scalar(threshold), scalar(scale)
    e = scalar(value).requires_grad_()
    weighted = adaptive_weighting(e, t, c)
    weighted.backward()
    assert weighted.item() >= value
    assert e.grad is not None
    assert e.grad.item() == pytest.approx(1 + max(value - threshold, 0) / scale, rel=1e-9)
    below, at, above = (adaptive_weighting(t + step, t, c).item() for step in (-1e-9, 0, 1e-9))
    assert at == threshold
    assert below == pytest.approx(at, abs=1e-8) and above == pytest.approx(at, abs=1e-8)


def test_adaptive_weighting_by_hand() -> None:
    e = torch.tensor([0.1, 0.2, 0.3, 0.6], dtype=torch.float64)
    found = adaptive_weighting(e, scalar(0.2), scalar(0.1))
    # .3 + .1^2 / .2 = .35; .6 + .4^2 / .2 = 1.4
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.35, 1.4], abs=1e-12)


def test_the_published_weighting_turns_hard_photos_down() -> None:
    """Its slope C + 2e is below 1 for small e, and the loss falls where a photo becomes hard."""
    e = scalar(0.25).requires_grad_()
    published_weighting(e, scalar(0.2), scalar(0.3)).backward()
    assert e.grad is not None and e.grad.item() == pytest.approx(0.3 + 2 * 0.25, abs=1e-12) and e.grad.item() < 1
    easy, hard = (published_weighting(scalar(x), scalar(0.2), scalar(0.3)).item() for x in (0.2 - 1e-9, 0.2))
    assert hard == pytest.approx(0.1, abs=1e-12) and hard < easy / 1.9
    ours = scalar(0.25).requires_grad_()
    adaptive_weighting(ours, scalar(0.2), scalar(0.3)).backward()
    assert ours.grad is not None and ours.grad.item() > 1


# ---- state -----------------------------------------------------------------------------------------------------------


def test_adaptive_emd_by_hand() -> None:
    """r = 1 and one-hot rows m bins apart, whose distance is m / 10."""
    loss = AdaptiveEMD(r=1).double()
    assert loss(one_hot(0, 0), one_hot(1, 3)).item() == pytest.approx(0.2, abs=1e-12)  # (.1 + .3) / 2, plain
    assert loss.scale.item() == pytest.approx(0.2, abs=1e-12)
    assert loss(one_hot(0), one_hot(5)).item() == pytest.approx(0.5, abs=1e-12)
    assert loss.scale.item() == pytest.approx(0.99 * 0.2 + 0.01 * 0.5, abs=1e-12)
    loss.end_epoch()
    assert loss.threshold.item() == pytest.approx(0.3, abs=1e-12)  # (.1 + .3 + .5) / 3 photos, not 2 batches
    scale = 0.99 * 0.203 + 0.01 * 0.35
    expected = (0.2 + 0.5 + 0.2**2 / (2 * scale)) / 2
    assert loss(one_hot(0, 0), one_hot(2, 5)).item() == pytest.approx(expected, abs=1e-12)
    loss.end_epoch()
    assert loss.threshold.item() == pytest.approx(0.35, abs=1e-12)  # the unmodulated distances of that epoch alone


def test_published_adaemd_by_hand() -> None:
    """With the true EMD, r = 1, one-hot rows m bins apart: distance m / 10; t = .2, C = 0 at the start."""
    loss = PublishedAdaEMD(r=1, true_emd=True).double()
    loss.threshold.fill_(0.2)
    first = (0.1 + 0.4**2) / 2
    assert loss(one_hot(0, 0), one_hot(1, 4)).item() == pytest.approx(first, abs=1e-12)
    assert loss.offset.item() == pytest.approx(0.99 * first, abs=1e-12)
    second = (0.99 * first + 0.5) * 0.5
    assert loss(one_hot(0), one_hot(5)).item() == pytest.approx(second, abs=1e-12)
    assert loss.offset.item() == pytest.approx(0.99 * second + 0.01 * 0.99 * first, abs=1e-12)
    loss.end_epoch()
    assert loss.threshold.item() == pytest.approx((first + second) / 2, abs=1e-12)
    assert loss.total.item() == loss.batches.item() == 0


@pytest.mark.parametrize("kind", [AdaptiveEMD, PublishedAdaEMD])
def test_state(kind: type[AdaptiveEMD | PublishedAdaEMD]) -> None:
    def run(loss: losses.Loss, batches: range) -> list[float]:
        found = []
        for batch in batches:
            found.append(loss(random_rows(8, batch), random_rows(8, 50 + batch)).item())
            if batch % 3 == 2:
                loss.end_epoch()
        return found

    whole, first, second = kind(), kind(), kind()
    expected = run(whole, range(10))
    start = run(first, range(4))
    second.load_state_dict(first.state_dict())
    assert start + run(second, range(4, 10)) == expected
    assert whole.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in second.state_dict().items())

    before = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.eval()
    whole(random_rows(8, 90), random_rows(8, 91))
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())
    assert not any(value.requires_grad for value in whole.state_dict().values())


@pytest.mark.parametrize("kind", [AdaptiveEMD, PublishedAdaEMD])
def test_an_epoch_without_batches_keeps_the_threshold(kind: type[AdaptiveEMD | PublishedAdaEMD]) -> None:
    loss = kind()
    loss(P, UNIFORM)
    loss.end_epoch()
    threshold = loss.threshold.clone()
    loss.end_epoch()
    assert torch.equal(loss.threshold, threshold) and torch.isfinite(threshold)


def test_names() -> None:
    plain = emd(P, UNIFORM, 1).mean()
    assert torch.equal(make_loss("emd", 1)(P, UNIFORM), plain)
    assert torch.equal(make_loss("adaptive_emd", 1)(P, UNIFORM), plain)  # its first epoch
    assert torch.equal(make_loss("published_emd", 1)(P, UNIFORM), prefix_l1(P, UNIFORM, 1).mean())
    assert isinstance(make_loss("published_adaemd"), PublishedAdaEMD)


# ---- what was measured on AVA ----------------------------------------------------------------------------------------


def test_what_the_published_loss_does_on_real_votes(test_data: Path) -> None:
    """The same prediction for every photo: hard photos are turned down, and with the true EMD the threshold collapses.

    The numbers of docs/method.md are of another sample of AVA, hence the tolerances.
    """
    table = read_dataset("ava", test_data / "data" / "ava", Problems()).table
    q = torch.from_numpy(table.distributions)[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    p = q.mean(0, keepdim=True)
    true, published = PublishedAdaEMD(true_emd=True).double(), PublishedAdaEMD().double()
    thresholds, slopes = [], []
    for _ in range(2):
        for batch in q.split(128):
            guess = p.expand(len(batch), -1)
            e = prefix_l1(guess, batch)
            slopes.append((published.offset + 2 * e)[e >= published.threshold].mean().item())
            true(guess, batch)
            published(guess, batch)
        true.end_epoch()
        published.end_epoch()
        thresholds.append(true.threshold.item())
    assert thresholds == pytest.approx([0.08, 0.04], abs=0.01)
    assert 0.75 < np.mean(slopes[1:]) < 0.88
