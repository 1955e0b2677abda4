"""How far a score can be trusted: percentile, interval, spread and unlike, learned from out-of-fold predictions.

For n pool photos there is a prediction by a network that has not seen them, beside a pool without them; all four tables
come from these and belong to that pool alone.

    percentile  100 x the share of pool photos (ties half) whose out-of-fold score is lower
    spread      a + b x the deviation of the predicted distribution: predictions between two opinions are too wide
    interval    score +- c s(x), which held the mean vote of 90 % of the pool photos; s = exp(linear in the predicted
                score, its deviation, the nearest similarity), fitted to the absolute residuals (Laplace likelihood)
    unlike      1 - the share of pool photos whose own nearest similarity is lower: near 1, nothing in the pool is
                like the photo, and neither score nor interval mean much
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from milnet.annotations import FloatArray, deviation
from milnet.metrics import srcc

COVERAGE = 0.9  # share of photos whose mean vote lies within the interval
UNLIKE = 0.97  # above it a photo is called unlike: so are 3 % of the pool's own
_LEAST = 30  # photos below which nothing is fitted
_SHRINK = np.array([0.0, 0.02, 0.02, 0.02])  # times the squared coefficients


@dataclass(frozen=True)
class Doubt:
    """The tables of one pool; empty ones give NaN.

    `percentiles` and `nearest` are sorted. `line`: a, b of the spread, and the lowest and the highest deviation seen.
    `interval`: the centre and the scale of the three signals, the four coefficients of log s, and c. `stale`: the pool
    has changed since. `srcc`: the rank correlation of the out-of-fold scores with the mean votes, how good the model is
    on photos it has not seen.
    """

    percentiles: FloatArray = field(default_factory=lambda: np.empty(0))
    nearest: FloatArray = field(default_factory=lambda: np.empty(0))
    line: tuple[float, float, float, float] | None = None
    interval: Mapping[str, tuple[float, ...]] | None = None
    stale: bool = False
    srcc: float | None = None

    def percentile(self, scores: FloatArray) -> FloatArray:
        """100 x the share of pool photos (ties half) whose out-of-fold predicted score is lower, [n]."""
        if not len(self.percentiles) or self.stale:
            return np.full(len(scores), np.nan)
        below = np.searchsorted(self.percentiles, scores, "left") + np.searchsorted(self.percentiles, scores, "right")
        return np.asarray(50.0 * below / len(self.percentiles))

    def unlike(self, similarity: NDArray[Any]) -> FloatArray:
        """How far outside the pool photos are whose nearest pool photo has this `similarity` [n], 0..1."""
        if not len(self.nearest) or self.stale:
            return np.full(len(similarity), np.nan)
        lower = np.searchsorted(self.nearest, similarity, "left") / len(self.nearest)
        return np.where(np.isnan(similarity), np.nan, 1 - lower)

    def spread(self, deviations: FloatArray) -> FloatArray:
        """Expected standard deviation [n] of the votes on photos whose predicted distributions deviate so much."""
        if self.line is None or self.stale:
            return deviations
        a, b, lowest, highest = self.line
        return np.asarray((a + b * deviations.clip(lowest, highest)).clip(0))  # not extrapolated either

    def within(
        self, scores: FloatArray, deviations: FloatArray, similarity: NDArray[Any], values: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Low and high [n] of the 90 % interval for the mean vote of a large panel, inside the `values`."""
        if self.interval is None or self.stale:
            return np.full(len(scores), np.nan), np.full(len(scores), np.nan)
        how = self.interval
        signals = (_signals(scores, deviations, similarity) - np.array(how["centre"])) / np.array(how["scale"])
        # what no pool photo has shown is not extrapolated
        half = how["factor"][0] * _size(np.array(how["coefficients"]), signals.clip(-3, 3))
        return (scores - half).clip(values[0], values[-1]), (scores + half).clip(values[0], values[-1])

    def to_json(self) -> dict[str, Any]:
        """For calibration.json."""
        found = asdict(self)
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}

    @staticmethod
    def of_json(data: Mapping[str, Any]) -> Doubt:
        """What `to_json` gave; older models have percentiles alone."""
        line, interval = data.get("line"), data.get("interval")
        return Doubt(
            percentiles=np.array(data["percentiles"], np.float64),
            nearest=np.array(data.get("nearest", []), np.float64),
            line=None if line is None else (float(line[0]), float(line[1]), float(line[2]), float(line[3])),
            interval=None if interval is None else {name: tuple(map(float, x)) for name, x in interval.items()},
            stale=bool(data.get("stale", False)),
            srcc=None if data.get("srcc") is None else float(data["srcc"]),
        )


def fit_doubt(p: FloatArray, q: FloatArray, nearest: NDArray[Any], values: FloatArray) -> Doubt:
    """From out-of-fold predictions p [n, S] of pool photos with votes q [n, S] (shares).

    `nearest` [n]: similarity of each to the most similar of the others that it may consult; -inf where there is none.
    """
    scores, true = p @ values, q @ values
    known = np.isfinite(nearest)
    quality = srcc(true, scores) if len(scores) > 1 else np.nan
    tables = Doubt(
        np.sort(scores), np.sort(nearest[known].astype(np.float64)), srcc=quality if np.isfinite(quality) else None
    )
    if known.sum() < _LEAST:
        return tables
    deviations = deviation(p, values)
    range_ = values[-1] - values[0]
    b, a = 0.0, float(deviation(q, values).mean())
    if np.ptp(deviations) > 1e-6 * range_:
        line = np.polyfit(deviations, deviation(q, values), 1)
        b, a = line if line[0] > 0 else (b, a)  # the wider the prediction, the less people disagree: that is chance
    raw = _signals(scores, deviations, nearest)[known]
    residuals = np.maximum(np.abs(scores - true)[known], 1e-3 * range_)  # the logarithm of 0 would rule all others
    centre, scale = raw.mean(0), np.maximum(raw.std(0), 1e-9)
    signals = ((raw - centre) / scale).clip(-3, 3)
    coefficients = _fit_size(signals, residuals)
    ratio = np.sort(_ratios(coefficients, signals, residuals))
    place = min(len(ratio) - 1, int(np.ceil((len(ratio) + 1) * COVERAGE)) - 1)  # split conformal (Vovk et al. 2005)
    interval = {
        "centre": tuple(centre.tolist()),
        "scale": tuple(scale.tolist()),
        "coefficients": tuple(coefficients.tolist()),
        "factor": (float(ratio[place]),),
    }
    return replace(
        tables, line=(float(a), float(b), float(deviations.min()), float(deviations.max())), interval=interval
    )


def _signals(scores: FloatArray, deviations: FloatArray, similarity: NDArray[Any]) -> FloatArray:
    return np.stack([scores, deviations, np.asarray(similarity, np.float64)], axis=1)


def _size(coefficients: FloatArray, signals: FloatArray) -> FloatArray:
    return np.asarray(np.exp(coefficients[0] + signals @ coefficients[1:]))


def _fit_size(signals: FloatArray, residuals: FloatArray) -> FloatArray:
    """Coefficients [4] of log s that make the absolute residuals likeliest; a little shrunk to a constant s. Convex."""
    x = np.concatenate([np.ones((len(signals), 1)), signals], axis=1)

    def loss(b: FloatArray) -> tuple[float, FloatArray]:
        log = x @ b
        relative = residuals * np.exp(-log)
        return float(np.mean(log + relative) + _SHRINK @ b**2), x.T @ (1 - relative) / len(x) + 2 * _SHRINK * b

    start = np.array([np.log(residuals.mean()), 0.0, 0.0, 0.0])
    return np.asarray(minimize(loss, start, jac=True, method="BFGS").x, dtype=np.float64)


def _ratios(coefficients: FloatArray, signals: FloatArray, residuals: FloatArray) -> FloatArray:
    """Each absolute residual [n] in units of s as it would have been fitted without that photo: one Newton step away.

    The s that a residual took part in flatters it.
    """
    x = np.concatenate([np.ones((len(signals), 1)), signals], axis=1)
    relative = residuals / _size(coefficients, signals)
    curvature = x.T @ (relative[:, None] * x) + 2 * len(x) * np.diag(_SHRINK)
    lever = np.einsum("ni,ij,nj->n", x, np.linalg.pinv(curvature, hermitian=True), x)
    step = (relative - 1) * lever / (1 - relative * lever).clip(1e-3)
    return np.asarray(relative * np.exp(step.clip(-20, 20)))
