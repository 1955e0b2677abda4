"""From a mean (and a standard deviation) to a distribution of votes, in a stated way: maximum entropy.

Among all distributions on the S values with the given mean, and the given standard deviation when there is one, the
one of largest entropy has the form p ~ exp(a v + b v^2) (b = 0 without a standard deviation): it assumes nothing that
was not said (Jaynes 1957; Cover and Thomas, Elements of Information Theory, chapter 12).

The multipliers minimise log sum exp(lambda . g), where g are the features minus their wanted means; Newton's method
with halved steps, all rows at once, float64. `N` rows, `S` values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milnet.errors import AnnotationError, NumericError, UsageError

FloatArray = NDArray[np.float64]

# All in units where the values span [-1, 1]. Moments closer than SNAP to the edge of what is possible are put on it.
SNAP = 1e-12
AIM = 1e-13
ACCEPT = 1e-10
ITERATIONS = 300


def feasible_sds(means: ArrayLike, values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest standard deviation a distribution on `values` [S] can have, for each of `means` [N].

    Smallest: all votes on the two values around the mean. Largest: all votes on the two ends. Both [N], in units of
    `values`. Raises AnnotationError for a mean outside the values, NumericError for one that is not finite.
    """
    grid, t, centre, half = _grid(values)
    m = _scaled_means(means, grid, centre, half)
    below, above = _neighbours(m, t)
    low = np.sqrt(np.maximum((m - below) * (above - m), 0))
    high = np.sqrt(np.maximum((m + 1) * (1 - m), 0))
    return low * half, high * half


def maximum_entropy(means: ArrayLike, sds: ArrayLike | None, values: ArrayLike) -> FloatArray:
    """The distribution of largest entropy on `values` with each mean, and each standard deviation when given.

    `means` [N] and `sds` [N] or None in units of `values` [S] (increasing). Returns [N, S] float64, rows sum to 1; the
    mean is accurate to 1e-9 of the range of the values, the variance to 1e-9 of its square. Raises AnnotationError
    naming the row when a mean lies outside the values or a standard deviation is not possible with its mean (it says
    what is), NumericError for NaN.
    """
    grid, t, centre, half = _grid(values)
    m = _scaled_means(means, grid, centre, half)
    if sds is None:
        target, quadratic, p = _mean_only(m, t)
    else:
        target, quadratic, p = _mean_and_sd(m, np.atleast_1d(np.asarray(sds, dtype=np.float64)), t, grid, centre, half)
    inside = np.isnan(p[:, 0])  # rows that are not settled by lying on an edge
    linear = t[None] - m[inside, None]
    features = linear[..., None] if quadratic is None else np.stack([linear, quadratic[inside]], axis=2)
    if target is not None:
        features[..., 1] -= target[inside, None]
    p[inside] = _newton(features)
    return p


def _grid(values: ArrayLike) -> tuple[FloatArray, FloatArray, float, float]:
    """The values, the same scaled to [-1, 1], their centre and half their range."""
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
        raise UsageError(f"expected at least 2 increasing values, got {grid.tolist()}")
    centre, half = float(grid[0] + grid[-1]) / 2, float(grid[-1] - grid[0]) / 2
    t = (grid - centre) / half
    t[0], t[-1] = -1.0, 1.0
    return grid, t, centre, half


def _scaled_means(means: ArrayLike, grid: FloatArray, centre: float, half: float) -> FloatArray:
    raw = np.atleast_1d(np.asarray(means, dtype=np.float64))
    if not np.isfinite(raw).all():
        row = int(np.flatnonzero(~np.isfinite(raw))[0])
        raise NumericError(f"row {row}: the mean is {raw[row]}, expected a number")
    m = (raw - centre) / half
    outside = np.abs(m) > 1 + SNAP
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise AnnotationError(f"row {row}: the mean {raw[row]:g} is outside the values {grid[0]:g} to {grid[-1]:g}")
    return np.clip(m, -1, 1)


def _neighbours(m: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The values just below and above each mean; both are the value itself when the mean lies on it."""
    nearest = t[np.abs(t[None] - m[:, None]).argmin(1)]
    position = np.clip(np.searchsorted(t, m, side="right"), 1, len(t) - 1)
    on = np.abs(nearest - m) <= SNAP
    return np.where(on, nearest, t[position - 1]), np.where(on, nearest, t[position])


def _two_points(m: FloatArray, below: FloatArray, above: FloatArray, t: FloatArray) -> FloatArray:
    """The distributions [n, S] with mean m that live on two values (or on one, when both are the same)."""
    width = above - below
    share = np.divide(m - below, width, out=np.zeros_like(m), where=width > 0)
    p = np.zeros((len(m), len(t)))
    rows = np.arange(len(m))
    p[rows, np.searchsorted(t, below)] += 1 - share
    p[rows, np.searchsorted(t, above)] += share
    return p


def _mean_only(m: FloatArray, t: FloatArray) -> tuple[None, None, FloatArray]:
    """Rows with their mean on an end are settled; the others are NaN."""
    p = np.full((len(m), len(t)), np.nan)
    edge = 1 - np.abs(m) <= SNAP
    ends = np.sign(m[edge])
    p[edge] = _two_points(ends, ends, ends, t)
    return None, None, p


def _mean_and_sd(
    m: FloatArray, sds: FloatArray, t: FloatArray, grid: FloatArray, centre: float, half: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Wanted mean [N] of the quadratic feature, the feature [N, S], and the rows settled by lying on an edge."""
    if sds.shape != m.shape:
        raise UsageError(f"expected one standard deviation for each of {len(m)} means, got shape {sds.shape}")
    if not np.isfinite(sds).all():
        row = int(np.flatnonzero(~np.isfinite(sds))[0])
        raise NumericError(f"row {row}: the standard deviation is {sds[row]}, expected a number")
    below, above = _neighbours(m, t)
    variance = (sds / half) ** 2
    over = variance - (m - below) * (above - m)  # above the least possible variance
    under = (m + 1) * (1 - m) - variance  # below the largest possible variance
    wrong = (over < -SNAP) | (under < -SNAP) | (sds < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        mean = m[row] * half + centre
        low, high = (float(bound[0]) for bound in feasible_sds([mean], grid))
        raise AnnotationError(
            f"row {row}: with mean {mean:g} on the values {grid[0]:g} to {grid[-1]:g} the standard deviation is "
            f"between {low:.6g} and {high:.6g}, got {sds[row]:g}"
        )
    p = np.full((len(m), len(t)), np.nan)
    least, largest = over <= SNAP, under <= SNAP
    p[largest] = _two_points(m[largest], np.full(int(largest.sum()), -1.0), np.full(int(largest.sum()), 1.0), t)
    p[least] = _two_points(m[least], below[least], above[least], t)
    # v and v^2 nearly coincide as features when nearly all votes sit on two values, so the quadratic feature is chosen
    # to vanish there: on the neighbours of the mean when the spread is small, on the ends when it is large. With the
    # constant and the linear one it spans the same family.
    small = (over <= under)[:, None]
    near = (t[None] - below[:, None]) * (t[None] - above[:, None])
    far = (t[None] + 1) * (t[None] - 1)
    return np.where(small[:, 0], over, -under), np.where(small, near, np.broadcast_to(far, near.shape)), p


def _newton(features: FloatArray) -> FloatArray:
    """Distributions [n, S] ~ exp(lambda . features) under which each of the features [n, S, F] has mean 0."""
    n, _, f = features.shape
    multipliers = np.zeros((n, f))
    p, level = _evaluate(features, multipliers)
    for _ in range(ITERATIONS):
        gradient = np.einsum("ns,nsf->nf", p, features)
        active = np.flatnonzero(np.abs(gradient).max(1, initial=0) > AIM)
        if not len(active):
            break
        g, feature = gradient[active], features[active]
        centred = feature - g[:, None]
        hessian = np.einsum("ns,nsf,nsk->nfk", p[active], centred, centred)
        # Scaled to a unit diagonal: the two features may differ by many orders of magnitude.
        scale = np.sqrt(np.maximum(np.einsum("nff->nf", hessian), 1e-300))
        correlation = hessian / (scale[:, :, None] * scale[:, None, :]) + 1e-14 * np.eye(f)
        step = -np.linalg.solve(correlation, (g / scale)[..., None])[..., 0] / scale
        slope = (step * g).sum(1)
        size = np.ones(len(active))
        todo = np.arange(len(active))
        while len(todo):
            rows = active[todo]
            trial = multipliers[rows] + size[todo, None] * step[todo]
            q, value = _evaluate(feature[todo], trial)
            noise = 1e-14 * np.maximum(1, np.abs(level[rows]))  # near the minimum the values differ by rounding only
            done = (value <= level[rows] + 1e-4 * size[todo] * slope[todo] + noise) | (size[todo] < 1e-12)
            multipliers[rows[done]], p[rows[done]], level[rows[done]] = trial[done], q[done], value[done]
            todo = todo[~done]
            size[todo] /= 2
    error = np.abs(np.einsum("ns,nsf->nf", p, features)).max(initial=0)
    if not error <= ACCEPT:
        raise NumericError(f"the distribution of largest entropy was not found: its moments are off by {error:.1e}")
    return p


def _evaluate(features: FloatArray, multipliers: FloatArray) -> tuple[FloatArray, FloatArray]:
    """p [n, S] and log of its normaliser [n]."""
    exponent = np.einsum("nsf,nf->ns", features, multipliers)
    top = exponent.max(1)
    weight = np.exp(exponent - top[:, None])
    total = weight.sum(1)
    return weight / total[:, None], top + np.log(total)
