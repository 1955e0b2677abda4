"""How far a score can be trusted: what the tables of doubt promise holds on photos that they were not made from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import approx_fprime, minimize

import made
from milnet import recipes, splits
from milnet.annotations import deviation
from milnet.doubt import COVERAGE, Doubt, _fit_size, fit_doubt
from milnet.metrics import plcc
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.splits import Split

Floats = NDArray[np.float64]
VALUES = np.arange(1.0, 8.0)


def shares(means: Floats, widths: Floats | float, values: Floats = VALUES) -> Floats:
    """Distributions [n, S] like a bell."""
    heights = np.exp(-0.5 * ((values - means[:, None]) / np.broadcast_to(widths, means.shape)[:, None]) ** 2)
    return np.asarray(heights / heights.sum(1, keepdims=True))


def drawn(n: int, seed: int, varies: bool = True) -> tuple[Floats, Floats, Floats]:
    """Predictions p, votes q and nearest similarity of n photos; errors grow with the deviation and the distance."""
    rng = np.random.default_rng(seed)
    means, widths, nearest = rng.uniform(2.5, 5.5, n), rng.uniform(0.8, 1.6, n), rng.uniform(0.3, 0.9, n)
    size = 0.35 * np.exp(1.2 * (widths - 1.2) - 2.0 * (nearest - 0.6)) if varies else np.full(n, 0.35)
    q = shares(means + size * rng.laplace(size=n) / np.sqrt(2), 0.5 + 0.6 * widths + 0.05 * rng.normal(size=n))
    return shares(means, widths), q, nearest.astype(np.float32).astype(np.float64)


def interval(doubt: Doubt, p: Floats, nearest: Floats) -> tuple[Floats, Floats]:
    return doubt.within(p @ VALUES, deviation(p, VALUES), nearest, VALUES)


# ---- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("n", [100, 600])
def test_nine_of_ten_fresh_photos_lie_within(n: int, varies: bool) -> None:
    covered, thirds, constant_thirds, ratios = [], [], [], []
    for seed in range(12):
        doubt = fit_doubt(*drawn(n, seed, varies), VALUES)
        p, q, nearest = drawn(3000, 1000 + seed, varies)
        low, high = interval(doubt, p, nearest)
        score, true, width = p @ VALUES, q @ VALUES, (high - low) / 2
        within = (low <= true) & (true <= high)
        covered.append(within.mean())
        parts = np.array_split(np.argsort(width, kind="stable"), 3)
        thirds.append([within[some].mean() for some in parts])
        half = np.sort(np.abs(score - true))[int(within.sum()) - 1]  # the constant one that holds as many
        constant_thirds.append([(np.abs(score - true) <= half)[some].mean() for some in parts])
        ratios.append(width.mean() / half)
    # one table's coverage deviates by sqrt(.9 x .1 / n) from .9 (the quantile of n residuals)
    error = np.sqrt(COVERAGE * (1 - COVERAGE) * (1 / n + 1 / 3000))
    assert np.mean(covered) == pytest.approx(COVERAGE, abs=3 * error / np.sqrt(12))
    assert np.abs(np.array(covered) - COVERAGE).max() < 4 * error
    found, constant = np.mean(thirds, 0), np.mean(constant_thirds, 0)
    if varies and n == 600:
        np.testing.assert_allclose(found, COVERAGE, atol=0.02)
        assert constant[0] > 0.97 and constant[2] < 0.82  # where a constant width fails
        assert np.mean(ratios) < 0.97
    elif not varies:
        assert np.ptp(found) < (0.15 if n == 100 else 0.04)
        assert np.mean(ratios) < (1.06 if n == 100 else 1.02)


def test_the_size_is_the_likeliest() -> None:
    """Of Laplace residuals, mean |residual| = s, each slope shrunk by .02 b^2."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        signals = np.random.default_rng(seed).normal(size=(80, 3)).clip(-3, 3)
        residuals = np.exp(-1 + signals @ [0.5, -0.3, 0.0]) * rng.exponential(size=80)

        def loss(b: Floats, signals: Floats = signals, residuals: Floats = residuals) -> float:
            s = np.exp(b[0] + b[1] * signals[:, 0] + b[2] * signals[:, 1] + b[3] * signals[:, 2])
            likelihood = np.prod(np.exp(-residuals / s) / s)  # 80 of them: no underflow
            return float(-np.log(likelihood) / 80 + 0.02 * (b[1] ** 2 + b[2] ** 2 + b[3] ** 2))

        found = _fit_size(signals, residuals)
        options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20_000, "maxfev": 20_000}
        expected = minimize(loss, np.zeros(4), method="Nelder-Mead", options=options)
        assert loss(found) <= expected.fun + 1e-9
        np.testing.assert_allclose(found, expected.x, atol=1e-3)
        assert np.abs(approx_fprime(found, loss, 1e-6)).max() < 1e-4
    constant = _fit_size(np.zeros((50, 3)), np.full(50, 0.2))
    np.testing.assert_allclose(constant, [np.log(0.2), 0, 0, 0], atol=1e-6)


def test_the_interval_by_hand() -> None:
    """score +- c exp(b . (1, signals)), c the 90 % quantile of split conformal; signals end at 3 deviations.

    The size behind each residual of c is as fitted without it (here it is), and no residual counts as less than a
    thousandth of the range of the values.
    """
    p, q, nearest = drawn(99, 0)
    doubt = fit_doubt(p, q, nearest, VALUES)
    score, widths = p @ VALUES, deviation(p, VALUES)
    raw = np.stack([score, widths, nearest], 1)
    assert doubt.interval is not None
    np.testing.assert_allclose(doubt.interval["centre"], raw.mean(0))
    np.testing.assert_allclose(doubt.interval["scale"], raw.std(0))
    x, residuals = ((raw - raw.mean(0)) / raw.std(0)).clip(-3, 3), np.maximum(np.abs(score - q @ VALUES), 0.006)
    ratio = np.empty(99)
    for one in range(99):
        b = _fit_size(np.delete(x, one, 0), np.delete(residuals, one))
        ratio[one] = residuals[one] / np.exp(b[0] + x[one] @ b[1:])
    b = np.array(doubt.interval["coefficients"])
    np.testing.assert_allclose(b, _fit_size(x, residuals), atol=1e-6)
    # the 90th of 99: 90 of 100 with the next photo
    (factor,) = doubt.interval["factor"]
    assert factor == pytest.approx(np.sort(ratio)[89], rel=0.02)
    assert factor > np.sort(residuals / np.exp(b[0] + x @ b[1:]))[89]
    low, high = interval(doubt, p, nearest)
    half = factor * np.exp(b[0] + x @ b[1:])
    np.testing.assert_allclose(low, np.maximum(score - half, 1))
    np.testing.assert_allclose(high, np.minimum(score + half, 7))
    assert ((low <= q @ VALUES) & (q @ VALUES <= high)).sum() >= 90
    far = [
        doubt.within(np.array([4.0]), np.array([w]), np.array([s]), VALUES) for w, s in ((1e9, -1e9), (1e4, -np.inf))
    ]
    assert far[0] == far[1]  # nothing is extrapolated


def test_the_interval_stays_inside_the_values() -> None:
    doubt = fit_doubt(*drawn(200, 0), VALUES)
    rng = np.random.default_rng(1)
    score, widths = rng.uniform(1, 7, 500), rng.uniform(0, 3, 500)
    low, high = doubt.within(score, widths, rng.uniform(-1, 1, 500).astype(np.float32), VALUES)
    assert (low >= 1).all() and (high <= 7).all() and (low <= score).all() and (score <= high).all()
    assert (low == 1).any() and (high == 7).any()
    unknown = doubt.within(np.array([4.0]), np.array([1.0]), np.array([np.nan]), VALUES)
    assert np.isnan(unknown).all()


def test_the_order_of_the_photos_is_nothing() -> None:
    p, q, nearest = drawn(70, 0)
    order = np.random.default_rng(0).permutation(70)
    one, other = (fit_doubt(p[some], q[some], nearest[some], VALUES) for some in (np.arange(70), order))
    np.testing.assert_allclose(interval(one, p, nearest), interval(other, p, nearest), atol=1e-4)


# ---- percentile, unlike, spread --------------------------------------------------------------------------------------


def test_percentiles() -> None:
    p, q, nearest = drawn(80, 0)
    p[10:20] = p[0]
    doubt = fit_doubt(p, q, nearest, VALUES)
    scores = p @ VALUES
    asked = np.concatenate([scores[:30], [1.0, 4.0, 7.0]])
    expected = [stats.percentileofscore(scores, x, kind="mean") for x in asked]
    np.testing.assert_allclose(doubt.percentile(asked), expected, atol=1e-9)
    assert doubt.percentile(asked)[-3:].tolist()[::2] == [0, 100]


def test_unlike() -> None:
    p, q, nearest = drawn(50, 0)
    nearest[5:9], nearest[30:33] = nearest[4], -np.inf
    doubt = fit_doubt(p, q, nearest, VALUES)
    known = nearest[np.isfinite(nearest)]
    asked = np.array([*nearest[:8], 0.0, 1.0, 0.61, -np.inf])
    expected = [1 - np.mean([other < x for other in known]) for x in asked]
    np.testing.assert_allclose(doubt.unlike(asked), expected, atol=1e-12)
    assert doubt.unlike(asked)[[8, 9, 11]].tolist() == [1, 0, 1]
    assert np.isnan(doubt.unlike(np.array([np.nan, 0.5]))).tolist() == [True, False]
    single = asked.astype(np.float32)  # what a search gives
    np.testing.assert_array_equal(doubt.unlike(single), doubt.unlike(single.astype(np.float64)))


def test_the_spread_is_on_the_line() -> None:
    p, q, nearest = drawn(200, 0)
    doubt = fit_doubt(p, q, nearest, VALUES)
    predicted, true = deviation(p, VALUES), deviation(q, VALUES)
    x = np.stack([np.ones(200), predicted], 1)
    (a, b), *_ = np.linalg.lstsq(x, true)
    assert 0.2 < b < 0.9
    np.testing.assert_allclose(doubt.spread(predicted), a + b * predicted, atol=1e-9)
    assert doubt.spread(predicted).mean() == pytest.approx(true.mean(), abs=1e-9)
    assert plcc(doubt.spread(predicted), true) == pytest.approx(plcc(predicted, true), abs=1e-9)
    ends = doubt.spread(np.array([0.0, 3.0]))  # what was not seen is not extrapolated
    np.testing.assert_allclose(ends, a + b * predicted[[predicted.argmin(), predicted.argmax()]], atol=1e-9)


# ---- too little, or all alike ----------------------------------------------------------------------------------------


def sane(doubt: Doubt, spreads: tuple[float, float]) -> None:
    """Numbers in their ranges whatever is asked."""
    rng = np.random.default_rng(0)
    score, widths = rng.uniform(1, 7, 300), rng.uniform(0, 3, 300)
    nearest = rng.choice([-np.inf, -1.0, 0.0, 0.5, 0.9, 1.0], 300)
    low, high = doubt.within(score, widths, nearest, VALUES)
    assert np.isfinite([low, high]).all()
    assert ((low >= 1) & (low < score) & (score < high) & (high <= 7)).all()
    found = doubt.spread(widths)
    assert (found >= spreads[0] - 1e-9).all() and (found <= spreads[1] + 1e-9).all()


def cases() -> dict[str, tuple[Floats, Floats, Floats]]:
    p, q, nearest = drawn(60, 0)
    rng, one = np.random.default_rng(1), np.repeat(p[:1], 60, axis=0)
    rounded = one * (1 + 1e-15 * rng.normal(size=(60, 1)))
    worst, halves = p.copy(), p.copy()
    worst[3] = halves[:30] = np.eye(7)[0]
    some = np.where(np.arange(60) < 31, nearest, -np.inf)
    return {
        "as drawn": (p, q, nearest),
        "the least": tuple(x[:30] for x in (p, q, nearest)),  # type: ignore[dict-item]
        "some without others": (p, q, some),
        "no residual": (p, p.copy(), nearest),
        "equal residuals": (p, shares(p @ VALUES + 0.3, 1.0), nearest),
        "one residual": (p, worst, nearest),
        "half of the residuals": (p, halves, np.sort(nearest)),
        "equal predictions": (one, q, nearest),
        "predictions that differ by rounding": (rounded, q, nearest),
        "equal deviations": (shares(rng.uniform(3.9, 4.1, 60), 0.05), q, nearest),
        "wrong deviations": (p, shares(q @ VALUES, 3 - 1.5 * deviation(p, VALUES)), nearest),
        "equal similarities": (p, q, np.full(60, np.float32(0.7)).astype(np.float64)),
        "equal similarities but one": (p, q, np.where(np.arange(60) == 7, 0.1, 0.7)),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_odd_tables_give_no_nonsense(name: str) -> None:
    p, q, nearest = cases()[name]
    doubt = fit_doubt(p, q, nearest, VALUES)
    true = deviation(q, VALUES)
    assert doubt.line is not None and doubt.interval is not None
    sane(doubt, (true.min() - 0.1, true.max() + 0.1))
    assert doubt.line[1] >= 0
    within = (q @ VALUES >= interval(doubt, p, nearest)[0]) & (q @ VALUES <= interval(doubt, p, nearest)[1])
    assert within[np.isfinite(nearest)].mean() >= 0.9  # of those it was made from
    if name in ("equal predictions", "predictions that differ by rounding", "wrong deviations"):
        np.testing.assert_allclose(doubt.spread(np.array([0.1, 1.0, 2.0])), true.mean())


@pytest.mark.parametrize("found", [0, 1, 29])
def test_below_thirty_photos_nothing_is_fitted(found: int) -> None:
    p, q, nearest = drawn(40, 0)
    nearest[found:] = -np.inf
    doubt = fit_doubt(p, q, nearest, VALUES)
    assert doubt.line is None and doubt.interval is None
    assert (len(doubt.percentiles), len(doubt.nearest)) == (40, found)
    assert np.isnan(interval(doubt, p, nearest)).all()
    assert np.isfinite(doubt.percentile(p @ VALUES)).all()
    assert np.isnan(doubt.unlike(nearest)).all() == (found == 0)
    np.testing.assert_array_equal(doubt.spread(deviation(p, VALUES)), deviation(p, VALUES))
    few = fit_doubt(p[:found], q[:found], nearest[:found], VALUES)
    assert few.interval is None and len(few.percentiles) == found


def everything(doubt: Doubt, p: Floats, nearest: Floats) -> list[Floats]:
    widths = deviation(p, VALUES)
    return [doubt.percentile(p @ VALUES), doubt.unlike(nearest), *interval(doubt, p, nearest), doubt.spread(widths)]


def test_stale_tables_say_nothing() -> None:
    p, q, nearest = drawn(50, 0)
    fresh = fit_doubt(p, q, nearest, VALUES)
    for doubt in (replace(fresh, stale=True), Doubt()):
        *unknown, spread = everything(doubt, p, nearest)
        assert np.isnan(unknown).all()
        np.testing.assert_array_equal(spread, deviation(p, VALUES))  # the spread as predicted
    assert np.isfinite(everything(fresh, p, nearest)).all()


def test_through_json() -> None:
    p, q, nearest = drawn(64, 0)
    for doubt in (
        fit_doubt(p, q, nearest, VALUES),
        fit_doubt(p[:9], q[:9], nearest[:9], VALUES),
        replace(fit_doubt(p, q, nearest, VALUES), stale=True),
        Doubt(),
    ):
        again = Doubt.of_json(json.loads(json.dumps(doubt.to_json())))
        assert again.to_json() == doubt.to_json()
        assert (again.line, again.stale, again.interval) == (doubt.line, doubt.stale, doubt.interval)
        for a, b in zip(everything(doubt, p, nearest), everything(again, p, nearest), strict=True):
            np.testing.assert_array_equal(a, b)
    old = Doubt.of_json({"percentiles": [1.0, 2.0, 3.0]})  # what milnet wrote before there was doubt
    assert old.percentile(np.array([2.0])) == 50
    *_, low, high, spread = everything(old, p, nearest)
    assert np.isnan([low, high, old.unlike(nearest)]).all()
    np.testing.assert_array_equal(spread, deviation(p, VALUES))


# ---- made by fit -----------------------------------------------------------------------------------------------------

SETTINGS = ("width=8", "depth=1", "epochs=1", "patience=1", "batch=16", "calibration_folds=3")
CASES = [(name, small) for name in ("single", "published", "votes") for small in (True, False)]


def calibrated(
    monkeypatch: pytest.MonkeyPatch, name: str, small: bool, votes: Floats, group: str | None, *, tuned: bool = False
) -> tuple[NDArray[np.int64], Floats, Model]:
    """Rows of the out-of-fold predictions that a fit makes its tables from, those predictions, the model.

    One epoch, and without `tuned` the votes' likeness and noise as they begin: what is chosen by all votes of the pool
    together stays the same.
    """
    found: list[Floats] = []

    def spy(p: Floats, *inputs: Any) -> Doubt:
        found.append(p)
        return fit_doubt(p, *inputs)

    table = made.table(100)
    table, features = replace(table, votes=votes), made.features(table)
    themes = table.codes("theme")
    test = np.flatnonzero(themes % 5 == 0) if group else table.rows_where("split", "test")
    rows = np.setdiff1d(np.arange(len(table)), test)
    with monkeypatch.context() as patch:
        if not small:
            for module in ("recipe", "recipes"):
                patch.setattr(f"milnet.{module}.SMALL", 10)
        if not tuned:
            patch.setattr(recipes, "tune", lambda *inputs, **how: {})
        patch.setattr(recipes, "fit_doubt", spy)
        recipe = load_recipe(name, [*SETTINGS, *(() if small else ("validation=0.4",))])
        model = fit(recipe, table, features, Split(rows, test, group), 0, calibrate=True)
    assert len(found) == 1
    of = rows if small else splits.carve(rows, 0.4, 0, themes if group else None)[1]
    assert model.recipe.refit == small and len(found[0]) == len(of)
    return of, found[0], model


@pytest.mark.parametrize(("name", "small"), CASES)
def test_no_photo_is_predicted_from_its_own_votes(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    votes = made.table(100).votes
    of, p, model = calibrated(monkeypatch, name, small, votes, None)
    assert model.doubt.interval is not None and model.doubt.line is not None
    assert len(model.doubt.nearest) == len(of)
    moved = 0.0
    for place in (0, len(of) // 2):
        other = votes.copy()
        other[of[place]] = [9, 1, 1, 1, 1] if votes[of[place], 0] < 9 else [1, 1, 1, 1, 9]
        again, changed, _ = calibrated(monkeypatch, name, small, other, None)
        np.testing.assert_array_equal(again, of)
        np.testing.assert_array_equal(changed[place], p[place])
        moved = max(moved, float(np.abs(changed - p).max()))
    # others do learn from it; above 5,000 photos only those that are consulted
    assert moved > 1e-4 or (not small and name != "votes")


@pytest.mark.parametrize(("name", "small"), CASES)
def test_nor_from_its_group(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made.table(100)
    themes = table.codes("theme")
    of, p, _ = calibrated(monkeypatch, name, small, table.votes, "theme")
    theme = themes[of[0]]
    other = table.votes.copy()
    other[themes == theme] = other[themes == theme][:, ::-1] + [9, 0, 0, 0, 0]
    again, changed, _ = calibrated(monkeypatch, name, small, other, "theme")
    mine = themes[of] == theme
    np.testing.assert_array_equal(again, of)
    assert mine.sum() > 1
    np.testing.assert_array_equal(changed[mine], p[mine])
    assert np.abs(changed[~mine] - p[~mine]).max(initial=0) > 1e-4 or (not small and name != "votes")


def test_what_the_whole_pool_chooses_tells_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean vote, the likeness and the noise of `votes` are of all photos of the pool, the predicted one too."""
    votes = made.table(100).votes
    of, p, model = calibrated(monkeypatch, "votes", True, votes, None, tuned=True)
    other = votes.copy()
    other[of[0]] = [30, 1, 1, 1, 1]
    _, changed, again = calibrated(monkeypatch, "votes", True, other, None, tuned=True)
    assert model.pool.alone is not None and again.pool.alone is not None
    np.testing.assert_array_equal(model.pool.alone[0], again.pool.alone[0])
    assert np.abs(changed[0] - p[0]).max() < 2 / len(of)
    assert np.abs(model.pool.distributions[0] - again.pool.distributions[0]).max() > 0.2
