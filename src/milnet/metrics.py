"""How well predicted distributions fit the true ones, and how sure one can be of that.

Shapes: `true` and `predicted` are distributions [N, S] float64, `values` [S]. Scores are in units of `values`, EMD in
bins averaged over the S bins. A NaN is an error, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from milnet.annotations import FloatArray, IntArray, Side
from milnet.errors import NumericError, UsageError

FEWEST_CLUSTERS = 5  # below, a bootstrap interval would be an invention
Metric = Callable[[FloatArray, FloatArray], float]


def srcc(a: FloatArray, b: FloatArray) -> float:
    """Spearman's rank correlation of two score vectors [N]; ties get their mean rank. NaN when one is constant."""
    return plcc(stats.rankdata(a), stats.rankdata(b))


def plcc(a: FloatArray, b: FloatArray) -> float:
    """Pearson's linear correlation of two score vectors [N]; NaN when one is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # rounding of the mean would leave a meaningless number
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def krcc(a: FloatArray, b: FloatArray) -> float:
    """Kendall's tau-b of two score vectors [N]."""
    return float(stats.kendalltau(a, b).statistic)


def emd_rows(true: FloatArray, predicted: FloatArray, r: float) -> FloatArray:
    """Earth mover's distance of each row, [N]: (mean over bins of |CDF difference|^r)^(1/r)."""
    gap = np.abs(np.cumsum(predicted - true, axis=1))
    return np.asarray((gap**r).mean(1) ** (1 / r))


@dataclass(frozen=True)
class Task:
    """What is measured: the score values and what counts as a good photo."""

    values: FloatArray
    threshold: float
    side: Side

    def good(self, scores: FloatArray) -> NDArray[np.bool_]:
        """Whether each score is on the good side of the threshold, [N]."""
        return scores >= self.threshold if self.side == ">=" else scores > self.threshold

    def metrics(self) -> dict[str, Metric]:
        """Name -> function of (true [N, S], predicted [N, S]); a higher value is better only for the first four."""

        def of_scores(function: Callable[[FloatArray, FloatArray], float]) -> Metric:
            return lambda true, predicted: function(true @ self.values, predicted @ self.values)

        return {
            "srcc": of_scores(srcc),
            "plcc": of_scores(plcc),
            "krcc": of_scores(krcc),
            "accuracy": of_scores(lambda a, b: float((self.good(a) == self.good(b)).mean())),
            "mse": of_scores(lambda a, b: float(((a - b) ** 2).mean())),
            "emd1": lambda true, predicted: float(emd_rows(true, predicted, 1).mean()),
            "emd2": lambda true, predicted: float(emd_rows(true, predicted, 2).mean()),
        }


def check_distributions(predicted: FloatArray, what: str = "predictions") -> None:
    """Raise NumericError unless every row is finite, non-negative and sums to 1."""
    bad = ~np.isfinite(predicted).all(1) | (predicted < 0).any(1) | (np.abs(predicted.sum(1) - 1) > 1e-4)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise NumericError(
            f"{int(bad.sum())} of {len(predicted)} {what} are no distributions; the first is row {row}: "
            f"{predicted[row].tolist()}. Training has diverged or a feature is not finite"
        )


def measure(true: FloatArray, predicted: FloatArray, task: Task) -> dict[str, float]:
    """All metrics over all rows."""
    check_distributions(predicted)
    check_distributions(true, "true distributions")
    return {name: metric(true, predicted) for name, metric in task.metrics().items()}


def resamples(clusters: IntArray, count: int, seed: int) -> Sequence[IntArray]:
    """`count` bootstrap samples of rows, drawn by cluster: whole clusters with replacement.

    `clusters` [N] are codes; rows with a negative code are clusters of their own.
    """
    own = np.where(clusters < 0, np.arange(len(clusters)) + clusters.max(initial=0) + 1, clusters)
    order = np.argsort(own, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(own[order])) + 1)
    generator = np.random.default_rng(seed)
    return [
        np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))]) for _ in range(count)
    ]


def interval(samples: NDArray[Any], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values [R], of those that exist; NaN when none does."""
    if np.isnan(samples).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    true: FloatArray, runs: Sequence[FloatArray], task: Task, clusters: IntArray, *, count: int = 1000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Metric -> its value in each bootstrap sample [count], averaged over `runs` (seeds), each [N, S].

    With fewer than 5 clusters all values are NaN: so few say nothing about other ones.
    """
    if len(np.unique(clusters[clusters >= 0])) + (clusters < 0).sum() < FEWEST_CLUSTERS:
        return {name: np.full(count, np.nan) for name in task.metrics()}
    samples = resamples(clusters, count, seed)
    return {
        name: np.array([np.mean([metric(true[rows], run[rows]) for run in runs]) for rows in samples])
        for name, metric in task.metrics().items()
    }


def paired_difference(
    true: FloatArray,
    first: Sequence[FloatArray],
    second: Sequence[FloatArray],
    task: Task,
    clusters: IntArray,
    *,
    count: int = 1000,
    seed: int = 0,
) -> Mapping[str, Mapping[str, float | bool]]:
    """First minus second in each metric, on the same photos: difference, 95 % interval, `real` when it excludes 0.

    Both are lists of seeds, each [N, S]. Clusters are resampled together for both, so their common luck cancels.
    """
    if not first or not second:
        raise UsageError("a paired difference needs at least one run on each side")
    a = bootstrap(true, first, task, clusters, count=count, seed=seed)
    b = bootstrap(true, second, task, clusters, count=count, seed=seed)
    result: dict[str, dict[str, float | bool]] = {}
    for name, metric in task.metrics().items():
        difference = float(
            np.mean([metric(true, run) for run in first]) - np.mean([metric(true, run) for run in second])
        )
        low, high = interval(a[name] - b[name])
        result[name] = {"difference": difference, "low": low, "high": high, "real": bool(low > 0 or high < 0)}
    return result
