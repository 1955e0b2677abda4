"""Metrics against scipy and the losses; intervals against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from milnet import losses
from milnet.errors import NumericError, UsageError
from milnet.metrics import (
    Task,
    bootstrap,
    check_distributions,
    emd_rows,
    interval,
    krcc,
    measure,
    paired_difference,
    plcc,
    resamples,
    srcc,
)

TASK = Task(np.arange(1.0, 6.0), 3.0, ">=")
ALONE = -1


def rows(n: int, seed: int, size: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.7), n)


def alone(n: int) -> NDArray[np.int64]:
    return np.full(n, ALONE, np.int64)


def delta(*bins: int) -> NDArray[np.float64]:
    """All votes on one bin, so that the score is the bin's value."""
    return np.eye(5)[list(bins)]


# ---- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_against_scipy(seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    a = generator.normal(size=200)
    b = a + generator.normal(size=200)
    if ties:
        a, b = a.round(), b.round()
        assert len(np.unique(a)) < 20
    assert srcc(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert plcc(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    # tau-b from its definition
    x, y = (np.sign(v[:, None] - v[None])[np.triu_indices(200, 1)] for v in (a, b))
    assert krcc(a, b) == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)), abs=1e-12)


@pytest.mark.parametrize("constant", [0.1, 3.0, 5.3])
@pytest.mark.parametrize("n", [3, 7, 1000])
def test_a_constant_has_no_correlation(constant: float, n: int) -> None:
    a, b = np.full(n, constant), np.random.default_rng(0).normal(size=n)
    for metric in (srcc, plcc, krcc):
        assert np.isnan(metric(a, b)) and np.isnan(metric(b, a))


@pytest.mark.parametrize("r", [1, 2, 3])
def test_emd_is_that_of_the_losses(r: float) -> None:
    p, q = rows(50, 0), rows(50, 1)
    expected = losses.emd(torch.from_numpy(p), torch.from_numpy(q), r).numpy()
    np.testing.assert_allclose(emd_rows(q, p, r), expected, rtol=0, atol=1e-12)


def test_accuracy_says_which_side_the_threshold_is_on() -> None:
    """Scores 2, 3, 4 against 3, 3, 2: a score on the threshold is good with ">=" and not with ">"."""
    true, guess = delta(1, 2, 3), delta(2, 2, 1)
    at_least, above = (Task(TASK.values, 3.0, side) for side in (">=", ">"))
    assert at_least.good(np.array([2.9, 3.0, 3.1])).tolist() == [False, True, True]
    assert above.good(np.array([2.9, 3.0, 3.1])).tolist() == [False, False, True]
    assert measure(true, guess, at_least)["accuracy"] == pytest.approx(1 / 3)
    assert measure(true, guess, above)["accuracy"] == pytest.approx(2 / 3)


def test_measure() -> None:
    true, guess = rows(80, 0), rows(80, 1)
    found = measure(true, guess, TASK)
    a, b = true @ TASK.values, guess @ TASK.values
    assert list(found) == ["srcc", "plcc", "krcc", "accuracy", "mse", "emd1", "emd2"]
    assert found["srcc"] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found["krcc"] == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert found["mse"] == pytest.approx(np.mean([(x - y) ** 2 for x, y in zip(a, b, strict=True)]), abs=1e-12)
    bins = np.arange(5)
    wasserstein = [stats.wasserstein_distance(bins, bins, p, q) / 5 for p, q in zip(true, guess, strict=True)]
    assert found["emd1"] == pytest.approx(np.mean(wasserstein), abs=1e-12)
    assert found["emd2"] > found["emd1"]
    perfect = measure(true, true, TASK)
    assert (perfect["mse"], perfect["emd1"], perfect["emd2"], perfect["accuracy"]) == (0, 0, 0, 1)
    assert [perfect[name] for name in ("srcc", "plcc", "krcc")] == pytest.approx([1, 1, 1], abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 0.9])
def test_what_is_no_distribution_is_an_error(bad: float) -> None:
    guess = rows(6, 0)
    guess[4, 1] = bad
    with pytest.raises(NumericError, match=r"1 of 6 predictions are no distributions; the first is row 4: .*diverged"):
        measure(rows(6, 1), guess, TASK)
    with pytest.raises(NumericError, match="1 of 6 true distributions are no distributions; the first is row 4"):
        measure(guess, rows(6, 1), TASK)
    check_distributions(np.delete(guess, 4, axis=0))


# ---- resampling ------------------------------------------------------------------------------------------------------


def test_whole_clusters_are_drawn() -> None:
    clusters = np.array([7, -1, 3, 7, -1, 3, 3, -5])
    members = [{0, 3}, {2, 5, 6}, {1}, {4}, {7}]  # negative codes are alone, equal or not
    seen: set[int] = set()
    for drawn in resamples(clusters, 200, 0):
        counts = np.bincount(drawn, minlength=8)
        for cluster in members:
            assert len({int(counts[row]) for row in cluster}) == 1
        assert sum(int(counts[min(cluster)]) for cluster in members) == 5
        seen.add(len(drawn))
    assert len(seen) > 3  # clusters differ in size, so do the samples
    negative = np.array([-1, -1, -1])
    assert {len(drawn) for drawn in resamples(negative, 50, 0)} == {3}
    assert any(len(set(drawn.tolist())) < 3 for drawn in resamples(negative, 50, 0))


def test_samples_depend_on_the_seed_alone() -> None:
    clusters = np.array([0, 0, 1, 2, -1])
    first, again, other = (resamples(clusters, 20, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_interval_of_a_mean() -> None:
    """The bootstrap of a mean of 400 numbers has their standard error, sd / 20.

    Within 10 %: 1,000 samples fix a standard deviation to 2 %, their outer quantiles to about 5 %.
    """
    true, guess = rows(400, 0), rows(400, 1)
    samples = bootstrap(true, [guess], TASK, alone(400))["mse"]
    errors = ((true - guess) @ TASK.values) ** 2
    standard_error = errors.std() / 20
    low, high = interval(samples)
    assert samples.shape == (1000,)
    assert samples.std() == pytest.approx(standard_error, rel=0.1)
    assert (high - low) / (2 * 1.96) == pytest.approx(standard_error, rel=0.1)
    assert (high + low) / 2 == pytest.approx(errors.mean(), abs=standard_error / 5)
    narrow = interval(samples, 0.5)
    assert (narrow[1] - narrow[0]) / (2 * 0.6745) == pytest.approx(standard_error, rel=0.1)


def test_interval() -> None:
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert interval(np.array([np.nan, 1, 1])) == (1, 1)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_duplicated_rows_tell_nothing_new() -> None:
    """Each row four times, clustered: the interval of the single rows. Unclustered it is half as wide, and wrong."""
    true, guess = rows(100, 0), rows(100, 1)
    four = np.repeat(np.arange(100), 4)
    width = {
        name: float(np.diff(interval(bootstrap(t, [g], TASK, clusters)["mse"]))[0])
        for name, t, g, clusters in (
            ("single", true, guess, alone(100)),
            ("clustered", true[four], guess[four], four),
            ("unclustered", true[four], guess[four], alone(400)),
        )
    }
    # 15 %: outer quantiles of 1,000 samples
    assert width["clustered"] == pytest.approx(width["single"], rel=0.15)
    assert width["unclustered"] == pytest.approx(width["clustered"] / 2, rel=0.15)


def test_several_seeds_are_averaged() -> None:
    true, runs = rows(50, 0), [rows(50, 1), rows(50, 2)]
    both = bootstrap(true, runs, TASK, alone(50), count=20)
    each = [bootstrap(true, [run], TASK, alone(50), count=20) for run in runs]
    for name, samples in both.items():
        np.testing.assert_allclose(samples, (each[0][name] + each[1][name]) / 2, rtol=0, atol=1e-12)


# ---- paired differences ----------------------------------------------------------------------------------------------


def test_a_run_against_itself() -> None:
    true, guess = rows(60, 0), rows(60, 1)
    for found in paired_difference(true, [guess], [guess], TASK, alone(60), count=100).values():
        assert found == {"difference": 0, "low": 0, "high": 0, "real": False}


def test_a_better_run_is_really_better() -> None:
    true, noise = rows(200, 0), rows(200, 1)
    good, poor = 0.8 * true + 0.2 * noise, 0.2 * true + 0.8 * noise
    found = paired_difference(true, [good], [poor], TASK, alone(200), count=300)
    a, b = measure(true, good, TASK), measure(true, poor, TASK)
    for name, result in found.items():
        assert result["real"] is True
        assert result["difference"] == pytest.approx(a[name] - b[name], abs=1e-12)
        assert result["low"] < result["difference"] < result["high"]
        assert (result["difference"] > 0) == (name in ("srcc", "plcc", "krcc", "accuracy"))
    back = paired_difference(true, [poor], [good], TASK, alone(200), count=300)
    for name, result in back.items():
        assert (result["low"], result["high"]) == pytest.approx((-found[name]["high"], -found[name]["low"]))


def test_common_luck_cancels() -> None:
    """Two nearly equal runs differ surely by a little, though each alone is uncertain by far more."""
    true, noise = rows(200, 0), rows(200, 1)
    first, second = 0.60 * true + 0.40 * noise, 0.58 * true + 0.42 * noise
    paired = paired_difference(true, [first], [second], TASK, alone(200), count=300)["emd2"]
    single = interval(bootstrap(true, [first], TASK, alone(200), count=300)["emd2"])
    assert paired["real"] and abs(paired["difference"]) < (single[1] - single[0]) / 2


def test_clusters_can_make_a_difference_unreal() -> None:
    """One cluster in which the first run is better does not count as 100 photos."""
    generator = np.random.default_rng(0)
    true = delta(*generator.integers(0, 5, 120))
    first, second = true.copy(), true.copy()
    second[:100] = np.roll(second[:100], 1, axis=1)
    second[100:] = first[100:]
    first[100:110] = np.roll(first[100:110], 2, axis=1)
    clusters = np.concatenate([np.zeros(100, np.int64), np.arange(1, 21)])
    by_row = paired_difference(true, [first], [second], TASK, alone(120), count=300)["emd2"]
    by_cluster = paired_difference(true, [first], [second], TASK, clusters, count=300)["emd2"]
    assert by_row["difference"] == by_cluster["difference"]
    assert by_row["real"] is True and by_cluster["real"] is False


def test_a_constant_run_has_no_interval_of_its_correlation() -> None:
    true = rows(40, 0)
    constant = np.repeat(true.mean(0, keepdims=True), 40, axis=0)
    found = paired_difference(true, [constant], [rows(40, 1)], TASK, alone(40), count=30)
    assert np.isnan(found["srcc"]["difference"]) and not found["srcc"]["real"]
    assert np.isfinite(found["emd2"]["difference"])


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one run on each side"):
        paired_difference(rows(4, 0), [], [rows(4, 1)], TASK, alone(4))


def test_few_clusters_give_no_interval() -> None:
    true, guess = rows(40, 0), rows(40, 1)
    four = np.arange(40) % 4
    assert np.isnan(interval(bootstrap(true, [guess], TASK, four, count=10)["srcc"])).all()
    assert np.isfinite(interval(bootstrap(true, [guess], TASK, np.arange(40) % 5, count=10)["srcc"])).all()
    assert not any(d["real"] for d in paired_difference(true, [true], [guess], TASK, four, count=10).values())
