"""Maximum entropy against an independent optimiser, and what any right answer must satisfy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from milnet.entropy import feasible_sds, maximum_entropy
from milnet.errors import AnnotationError, NumericError, UsageError


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def moments(p, values):
    mean = p @ values
    return mean, ((values - mean[:, None]) ** 2 * p).sum(1)


@pytest.mark.parametrize(
    ("values", "mean", "sd"),
    [
        (np.arange(1, 11), 5.4, None),
        (np.arange(1, 11), 2.0, None),
        (np.arange(1, 11), 5.4, 1.4),
        (np.arange(1, 11), 5.4, 3.5),
        (np.arange(1, 8), 6.1, 0.7),
        (np.arange(0, 11), 3.0, 2.0),
        (np.arange(1, 5.5, 0.5), 3.3, 0.6),
    ],
)
def test_against_an_independent_optimiser(values, mean, sd):
    """The primal problem, solved by sequential quadratic programming, knows nothing of exponential families."""
    values = values.astype(float)
    constraints = [{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p: p @ values - mean}]
    if sd is not None:
        constraints.append({"type": "eq", "fun": lambda p: p @ (values - mean) ** 2 - sd**2})
    answer = minimize(
        lambda p: (p * np.log(p)).sum(),
        np.full(len(values), 1 / len(values)),
        jac=lambda p: np.log(p) + 1,
        bounds=[(1e-12, 1)] * len(values),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 2000},
    )
    p = maximum_entropy([mean], None if sd is None else [sd], values)[0]
    assert np.abs(answer.x @ values - mean) < 1e-9
    # Entropy is flat at its maximum, so the optimiser's own accuracy limits the comparison.
    np.testing.assert_allclose(p, answer.x, atol=1e-6)


def votes(size):
    return st.lists(st.integers(0, 40), min_size=size, max_size=size).filter(any)


@settings(deadline=None)
@given(st.integers(2, 21).flatmap(votes))
def test_moments_match_and_nothing_possible_has_more_entropy(counts):
    values = np.arange(1.0, len(counts) + 1)
    other = np.array([counts]) / sum(counts)
    mean, variance = moments(other, values)
    span = values[-1] - values[0]
    for sds in (None, np.sqrt(variance)):
        p = maximum_entropy(mean, sds, values)
        assert (p >= 0).all()
        found_mean, found_variance = moments(p, values)
        assert abs(p.sum() - 1) < 1e-12
        assert abs(found_mean - mean) < 1e-9 * span
        assert sds is None or abs(found_variance - variance) < 1e-9 * span**2
        assert entropy(p) >= entropy(other) - 1e-9
    least, largest = feasible_sds(mean, values)
    assert least - 1e-6 <= np.sqrt(variance) <= largest + 1e-6


def test_symmetric_about_the_middle():
    values = np.arange(1.0, 8)
    for sds in (None, [0.3], [1.0], [2.0], [2.9]):
        p = maximum_entropy([4.0], sds, values)[0]
        np.testing.assert_allclose(p, p[::-1], atol=1e-12)
    np.testing.assert_allclose(maximum_entropy([4.0], None, values)[0], 1 / 7, atol=1e-12)
    np.testing.assert_allclose(maximum_entropy([4.0], [2.0], values)[0], 1 / 7, atol=1e-12)  # sd of the uniform is 2


def test_mirrored_means_give_mirrored_distributions():
    values = np.arange(1.0, 11)
    p, q = maximum_entropy([3.2, 7.8], [1.1, 1.1], values)
    np.testing.assert_allclose(p, q[::-1], atol=1e-12)


def test_edges():
    values = np.arange(1.0, 6)
    np.testing.assert_array_equal(maximum_entropy([1, 5], None, values), np.eye(5)[[0, 4]])
    np.testing.assert_array_equal(maximum_entropy([1, 5], [0, 0], values), np.eye(5)[[0, 4]])
    np.testing.assert_array_equal(maximum_entropy([3], [0], values), np.eye(5)[[2]])
    np.testing.assert_allclose(maximum_entropy([2.5], [0.5], values), [[0, 0.5, 0.5, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(maximum_entropy([3], [2], values), [[0.5, 0, 0, 0, 0.5]], atol=1e-12)
    assert maximum_entropy([], None, values).shape == (0, 5)
    assert maximum_entropy([], [], values).shape == (0, 5)


@pytest.mark.parametrize("size", [3, 10, 101])
@pytest.mark.parametrize("share", [1e-9, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9])
def test_close_to_the_edges(size, share):
    values = np.arange(1.0, size + 1)
    means = np.linspace(1.001, size - 0.001, 57)
    least, largest = feasible_sds(means, values)
    variance = least**2 * (1 - share) + largest**2 * share
    found_mean, found = moments(maximum_entropy(means, np.sqrt(variance), values), values)
    assert np.abs(found_mean - means).max() < 1e-9 * size
    assert np.abs(found - variance).max() < 1e-9 * size**2


def test_refusals():
    values = np.arange(1.0, 8)
    with pytest.raises(AnnotationError, match=r"row 1: the mean 7\.5 is outside the values 1 to 7"):
        maximum_entropy([4, 7.5], None, values)
    with pytest.raises(NumericError, match="row 0: the mean is nan"):
        maximum_entropy([np.nan], None, values)
    with pytest.raises(NumericError, match="row 0: the standard deviation is inf"):
        maximum_entropy([4], [np.inf], values)
    with pytest.raises(
        AnnotationError, match=r"row 1: with mean 2\.5 on the values 1 to 7 .* between 0\.5 and 2\.59808, got 0\.2"
    ):
        maximum_entropy([2.5, 2.5], [0.5, 0.2], values)
    with pytest.raises(AnnotationError, match=r"between 0 and 3, got 3\.1"):
        maximum_entropy([4], [3.1], values)
    with pytest.raises(AnnotationError, match="got -1"):
        maximum_entropy([4], [-1], values)
    with pytest.raises(UsageError, match="one standard deviation for each of 1 means"):
        maximum_entropy([4], [1, 1], values)
    with pytest.raises(UsageError, match="at least 2 increasing values"):
        maximum_entropy([4], None, [1, 1])
