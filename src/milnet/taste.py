"""One person's own ratings beside a general model: their scores on their own scale, and why.

A person has given n photos ratings y_i, on levels of their own; m and s are their mean and deviation. a(x) is what the
general model says of a photo, in deviations from what it usually says.

    expected   e(x) = m + s b a(x)                                       a person agrees with the crowd so far: b = .46
    likeness   k(x, x') = exp(-d^2)                                      d between the points of Votes.embed
    weights    w(x) = (C + N)^-1 c(x),  c = level + slope a a' + signal k,  N the noise of one rating
    score(x)   = e(x) + sum_i w_i(x) (y_i - e(x_i))

That is a Gaussian process (Rasmussen and Williams 2006, eq. 2.25 and 2.38) whose mean is the general model on the
person's scale. With few ratings w is small and the general model speaks; ratings that are not as expected move the
score of photos like theirs. The score is linear in them, so that what each one did is known exactly.

The distribution is the mean of two of that score: the general one on the person's levels, moved to the mean e, plus
w times (the one vote - what was expected of that photo), which takes up whatever shape the ratings have, and one
without holes, sqrt(the general one x the shares of the person's ratings), moved to the score.

The numbers of `Prior` were chosen with 200 raters of OASIS, on two backbones, and reported on 200 others
(benchmarks/taste.py): one person's ratings are too few to choose them by. A rated photo that is scored again consults
neither itself nor what looks the same; m, s and all that follows are then without it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milnet import splits
from milnet.annotations import FloatArray, IntArray
from milnet.artifacts import (
    FORMATS,
    Manifest,
    digest_file,
    new_folder,
    read_array,
    read_json,
    read_lines,
    read_manifest,
    verify_files,
    write_array,
    write_json,
    write_lines,
    write_manifest,
)
from milnet.checkpoints import load_model, save_model
from milnet.doubt import Doubt, fit_doubt
from milnet.errors import ArtifactError, UsageError
from milnet.explanation import Explanation
from milnet.features import evenly, stored_rows
from milnet.metrics import FEWEST_CLUSTERS, check_distributions, interval, resamples, srcc
from milnet.model.votes import Votes, with_mean
from milnet.pool import RatedPool
from milnet.recipes import Model
from milnet.references import References

FEWEST, MOST = 10, 2000  # ratings
SCALES = (5, 10)  # levels 1 .. 5, else 1 .. 10, where none are named
_REPEATS, _SAMPLES = 20, 1000  # of the cross-validation, and of the bootstrap
_EDGE = 1e-3  # of a level: so far from the ends a mean stays
_SOME = 1000  # photos from which a median is taken


@dataclass(frozen=True)
class Prior:
    """What is known of people before they rate, in units of the variance of their ratings."""

    slope: float = 0.46  # b: how far ratings follow the general model
    slope_variance: float = 0.02  # how much people differ in that
    level_variance: float = 1.0  # how far the mean of a few ratings may be from the person's
    signal: float = 0.4  # what likeness can tell beyond the general model
    noise: float = 0.65  # what it cannot


ALONE = Prior(slope=0.0, slope_variance=0.0, signal=0.65)  # the ratings without a general model, to compare with


class Beside:
    """The weights of n rated photos: `a` [n] what the general model says of them, `between` [n, n] their likeness."""

    def __init__(self, prior: Prior, a: FloatArray, between: FloatArray) -> None:
        self.prior, self.a = prior, a
        self.inverse = np.linalg.inv(self._alike(a, between) + prior.noise * np.eye(len(a)))

    def _alike(self, a: FloatArray, near: FloatArray) -> FloatArray:
        p = self.prior
        return np.asarray(p.level_variance + p.slope_variance * np.outer(a, self.a) + p.signal * near)

    def weights(self, a: FloatArray, near: FloatArray) -> FloatArray:
        """w [B, n] of all rated photos for photos with likeness `near` [B, n]."""
        return np.asarray(self._alike(a, near) @ self.inverse)

    def without(self, w: FloatArray, keep: NDArray[np.bool_]) -> FloatArray:
        """w [B, n] as if those were not rated where `keep` [n] is False: 0 there.

        With R kept and E left out, (C_RR)^-1 = G_RR - G_RE (G_EE)^-1 G_ER, G the inverse over all.
        """
        if keep.all():
            return w
        rows = self.inverse[~keep]
        return np.asarray((w - w[:, ~keep] @ np.linalg.solve(rows[:, ~keep], rows)) * keep)

    def expected(self, a: FloatArray, ratings: FloatArray, values: FloatArray) -> FloatArray:
        """e [n] of photos of which the general model says `a`, for a person with these `ratings`; inside `values`."""
        step = values[1] - values[0]
        spread = max(float(ratings.std()), step / 2)  # of ratings that hardly differ, the deviation says little
        e = ratings.mean() + spread * self.prior.slope * a
        return np.asarray(e.clip(values[0] + _EDGE * step, values[-1] - _EDGE * step))

    def held_out(self, w: FloatArray, ratings: FloatArray, out: NDArray[np.bool_], values: FloatArray) -> FloatArray:
        """Scores of the rated photos `out` [n] beside the others, from the weights [n, n] of all for all."""
        known = ratings[~out]
        off = np.where(out, 0.0, ratings - self.expected(self.a, known, values))
        return np.asarray(self.expected(self.a[out], known, values) + self.without(w[out], ~out) @ off)


@dataclass(frozen=True)
class Checked:
    """How well the rated photos are predicted by models that have not seen their rating (and that of none of a burst).

    SRCC with the ratings of the general model, of the ratings alone and of both; `low`, `high`: 95 % bootstrap interval
    over bursts of both minus general. NaN where there is none.
    """

    photos: int
    bursts: int  # sets of photos that are the same, or of one group; most hold one photo
    folds: int
    seen: int  # photos that the general model had learned from: what it says of them is by networks that had not
    general: float
    alone: float
    both: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """SRCC that the ratings add to the general model."""
        return self.both - self.general

    @property
    def beats(self) -> bool:
        """Whether taste is better than the general model, and not by luck."""
        return bool(self.low > 0)

    @property
    def worse(self) -> bool:
        """Whether taste is worse than the general model, and not by luck."""
        return bool(self.high < 0)

    @property
    def verdict(self) -> str:
        """The answer for people, a sentence with its numbers.

        Without proof the two are still used together: with few ratings the general model speaks by itself, and over
        many people both were no worse from 10 ratings on (docs/experiments.md).
        """
        numbers = (
            f"on photos held back, rank correlation {self.both:.2f} against {self.general:.2f} of the general model "
            f"({self.difference:+.2f}, 95 % between {self.low:+.2f} and {self.high:+.2f})"
        )
        if self.beats:
            return f"your taste beats the general model: {numbers}"
        if self.worse:
            return f"not enough ratings to beat the general model, which is better: {numbers}"
        if not np.isfinite(self.low):
            return "not enough ratings to beat the general model: too few differ to measure it"
        return f"not enough ratings to beat the general model: {numbers}"


@dataclass(frozen=True)
class Taste:
    """A person's rated photos beside the general model.

    `pool`: the n rated photos with the one vote of each on the S levels `values`, and their groups. `expected` [n, Sg]:
    what the general model says of them, on its own values. `usual`: mean and deviation of what it says of photos.
    `doubt`: percentile among the rated photos, interval of one rating. `checked`: how good it is.
    """

    general: Model
    pool: RatedPool
    values: FloatArray
    expected: FloatArray
    usual: tuple[float, float]
    prior: Prior
    doubt: Doubt
    checked: Checked

    def __len__(self) -> int:
        return len(self.pool)

    @cached_property
    def ratings(self) -> FloatArray:
        """The person's ratings [n]."""
        return np.asarray(self.pool.distributions @ self.values)

    @cached_property
    def _points(self) -> FloatArray:
        return points(self.general, self.pool.nodes, self.pool.semantic)

    @cached_property
    def _beside(self) -> Beside:
        return Beside(self.prior, self._said(self.expected), likeness(self._points, self._points))

    def _said(self, p: FloatArray) -> FloatArray:
        """a [n] of the general model's distributions [n, Sg]."""
        return np.asarray((p @ self.general.values - self.usual[0]) / self.usual[1])

    def find(self, semantic: NDArray[Any], *, pixels: Sequence[str] | None = None, device: str = "cpu") -> References:
        """All rated photos by likeness to each photo [B, Ds]; -1 for those that are the photo itself."""
        return self.pool.find(semantic, len(self.pool), pixels=pixels, device=device)

    def explain(
        self,
        nodes: NDArray[Any],
        semantic: NDArray[Any],
        references: References | None = None,
        *,
        pixels: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> Explanation:
        """Predict photos, in parts: score = base + own + influences, in units of the person's `values`.

        `base` is the mean rating, `own` what the general model says of the photo on the person's scale, an influence
        what a rating did by being other than expected. `nodes` [B, D] (or maps), `semantic` [B, Ds], `pixels` [B]
        digests; `references`: what `find` gave.
        """
        references = references or self.find(semantic, pixels=pixels, device=device)
        p = said(self.general, nodes, semantic, pixels, device=device)
        keep = np.zeros((len(p), len(self.pool)), np.bool_)
        row, column = np.nonzero(references.found)
        keep[row, references.index[row, column]] = True
        near = likeness(points(self.general, nodes, semantic), self._points)
        return self.judge(p, near, keep, references)

    def judge(
        self, p: FloatArray, near: FloatArray, keep: NDArray[np.bool_], references: References | None = None
    ) -> Explanation:
        """The same from the general distributions [B, Sg], likeness and who is consulted [B, n].

        Without `references` the columns of the influences are the rated photos.
        """
        found, bases = np.empty((len(p), len(self.values))), np.empty(len(p))
        owns, influences = np.empty(len(p)), np.empty(near.shape)
        every = self._beside.weights(self._said(p), near)
        masks, which = np.unique(keep, axis=0, return_inverse=True)
        for i, mask in enumerate(masks):
            rows = np.flatnonzero(which.reshape(-1) == i)
            known = self.ratings[mask]
            w = self._beside.without(every[rows], mask)[:, mask]
            own, theirs = self._crowd(p[rows], known), self._crowd(self.expected[mask], known)
            raw = own + w @ (self.pool.distributions[mask] - theirs)
            voted = with_mean(torch.from_numpy(raw)).numpy()
            levels = len(self.values)  # so many votes of the crowd smooth the person's shares
            shares = self.pool.distributions[mask].sum(0) + levels * (theirs.mean(0) if len(theirs) else 1 / levels)
            smooth = moved(np.sqrt(own * shares), voted @ np.arange(levels) / voted.sum(1))
            q = (voted / voted.sum(1, keepdims=True) + smooth) / 2
            base = known.mean() if len(known) else self.values.mean()
            of_own, of_each = own @ self.values - base, w * (known - theirs @ self.values)
            # A score that no distribution has was cut to one that some has: the parts are cut with it.
            added = of_own + of_each.sum(1)
            small = np.abs(added) < 1e-9
            cut = np.where(small, 1.0, (q @ self.values - base) / np.where(small, 1.0, added))
            found[rows], bases[rows], owns[rows] = q, base, of_own * cut
            each = np.zeros((len(rows), len(mask)))
            each[:, mask] = of_each * cut[:, None]
            influences[rows] = each
        check_distributions(found)
        if references is not None:
            influences = np.take_along_axis(influences, references.index.clip(0), 1) * references.found
        return Explanation(found, bases, owns, influences, np.zeros(len(p)))

    def _crowd(self, p: FloatArray, ratings: FloatArray) -> FloatArray:
        """The general distributions [B, Sg] on the person's levels, moved to the mean that their `ratings` expect."""
        if not len(ratings):  # every rated photo is the photo itself
            ratings = np.array([self.values.mean()])
        mean = self._beside.expected(self._said(p), ratings, self.values)
        step = self.values[1] - self.values[0]
        return moved(p @ between_levels(p.shape[1], len(self.values)), (mean - self.values[0]) / step)


def fit_taste(
    general: Model,
    nodes: NDArray[Any],
    semantic: NDArray[Any],
    pixels: Sequence[str],
    ids: Sequence[str],
    ratings: Sequence[float] | FloatArray,
    values: Sequence[float] | FloatArray | None = None,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Taste:
    """The taste of one person who gave n photos these `ratings` [n], and how much better it is than the general model.

    `nodes` [n, D] (or maps [n, 25, D]) and `semantic` [n, Ds] as the general model takes them; `pixels` [n] digests,
    "" where unknown; `ids` [n], unique; `values`: the levels of the scale, by default 1 .. 5 or 1 .. 10; `groups` [n]:
    photos that are held back together, such as bursts, "" for none. Raises UsageError where ratings are fewer than 10,
    more than 2,000, all equal, or no levels.
    """
    ids, pixels = tuple(ids), tuple(pixels)
    given, values = check_ratings(ids, ratings, values)
    n, names = len(ids), ("",) * len(ids) if groups is None else tuple(groups)
    sizes = {"nodes": len(nodes), "semantic": len(semantic), "pixels": len(pixels), "groups": len(names)}
    for what, size in sizes.items():
        if size != n:
            raise UsageError(f"expected {what} of {n} rated photos, got {size}")
    # as they will be on disk: what is loaded scores as what was fitted
    nodes, semantic = np.asarray(nodes, np.float16), np.asarray(semantic, np.float16)
    pool = RatedPool(
        ids=ids,
        pixels=pixels,
        groups=names,
        distributions=one_vote(given, values),
        totals=np.ones(n),
        semantic=semantic,
        nodes=nodes,
        rows=np.arange(n, dtype=np.int64),
        near_duplicate=general.pool.near_duplicate,  # a person's own photos may be nothing but bursts
    )
    expected = said(general, nodes, semantic, pixels, device=device)
    return taste_of(general, pool, values, expected, _usual(general, expected), seed=seed)


def taste_of(
    general: Model,
    pool: RatedPool,
    values: FloatArray,
    expected: FloatArray,
    usual: tuple[float, float],
    *,
    seed: int = 0,
) -> Taste:
    """The taste of rated photos of which it is known what the general model says (see the fields of `Taste`)."""
    untried = Taste(
        general, pool, values, expected, usual, Prior(), Doubt(), Checked(0, 0, 0, 0, *([float("nan")] * 5))
    )
    bursts = _bursts(pool)
    if (different := len(np.unique(bursts))) < FEWEST_CLUSTERS:
        raise UsageError(
            f"expected ratings of at least {FEWEST_CLUSTERS} different photos, got {different}: photos that look the "
            f"same, or are of one group, count once"
        )
    taste = replace(untried, checked=_check(untried, bursts, seed))
    return replace(taste, doubt=_doubt(taste, bursts, seed))


def check_ratings(
    ids: Sequence[str], ratings: Sequence[float] | FloatArray, values: Sequence[float] | FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """Ratings [n] and levels [S] as numbers; UsageError says what is wrong with them."""
    given = np.asarray(ratings, np.float64)
    if given.shape != (len(ids),):
        raise UsageError(f"expected one rating for each of {len(ids)} photos, got {given.shape}")
    if len(set(ids)) != len(ids):
        twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})[:5]
        raise UsageError(f"expected one rating a photo; more than one: {', '.join(twice)}")
    if not FEWEST <= len(given) <= MOST:
        raise UsageError(f"expected {FEWEST} to {MOST:,} rated photos, got {len(given):,}")
    if values is None:
        low = np.flatnonzero(given <= 0)
        if len(low):
            raise UsageError(
                f"{ids[low[0]]}: a rating of {given[low[0]]:g}; 0 is a photo not rated and -1 a rejected one: leave "
                f"them out, or name the levels of a scale that has them"
            )
        whole = [top for top in SCALES if np.isin(given, np.arange(1, top + 1)).all()]
        if not whole:
            raise UsageError("expected ratings 1 to 5 or 1 to 10; of another scale, name the levels (--levels 1,1.5,2)")
        values = np.arange(1.0, whole[0] + 1)
    levels = np.asarray(values, np.float64)
    steps = np.diff(levels)
    if levels.ndim != 1 or len(levels) < 2 or not np.isfinite(levels).all() or steps[0] <= 0 or np.ptp(steps) > 1e-9:
        raise UsageError(f"expected at least 2 increasing, equally spaced levels, got {levels.tolist()}")
    off = np.flatnonzero(~(np.abs(given[:, None] - levels[None]) < 1e-6 * steps[0]).any(1))
    if len(off):
        raise UsageError(f"{ids[off[0]]}: expected one of the levels {_listed(levels)}, got {given[off[0]]:g}")
    if np.ptp(given) == 0:
        raise UsageError(f"all {len(given)} ratings are {given[0]:g}: there is nothing to learn from them")
    return given, levels


def one_vote(ratings: FloatArray, values: FloatArray) -> FloatArray:
    """Distributions [n, S] with all at the level of each rating [n]."""
    near = np.abs(ratings[:, None] - values[None]) < (values[1] - values[0]) / 2
    return np.asarray(near, np.float64)


def _listed(levels: FloatArray) -> str:
    return ", ".join(f"{level:g}" for level in levels)


def said(
    general: Model,
    nodes: NDArray[Any],
    semantic: NDArray[Any],
    pixels: Sequence[str] | None = None,
    *,
    device: str = "cpu",
) -> FloatArray:
    """The general model's distributions [n, S] of photos; of one it has learned from, by what had not seen it.

    (Where that is known: `votes`, calibrated.)
    """
    semantic = np.asarray(semantic, np.float32)
    references = general.find(semantic, pixels=pixels, device=device)
    p = np.array(general.predict(nodes, references, device=device))
    pool, network = general.pool, general.network
    if pixels is None or pool.alone is None or not isinstance(network, Votes):
        return p
    place = {digest: i for i, digest in enumerate(pool.pixels) if digest and np.isfinite(pool.alone[i, 0])}
    rows = np.array([i for i, digest in enumerate(pixels) if digest in place], np.int64)
    if not len(rows):
        return p
    where = torch.device(general.recipe.device(device))
    alone = torch.from_numpy(pool.alone[[place[pixels[i]] for i in rows]]).to(where)
    samples = general.samples(nodes, references)
    with torch.inference_mode():
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):
            item = samples.batch(rows[some]).to(where)
            parts = network.weighed(alone[some], network.consult(item.photo, item.pool, item.index, item.keep))
            q = network.joined(parts, item.pool, item.index)
            p[rows[some]] = (q / q.sum(1, keepdim=True)).cpu().numpy()
    return p


def points(general: Model, nodes: NDArray[Any], semantic: NDArray[Any]) -> FloatArray:
    """Where photos lie [n, E]; the squared distance of two usual photos is 1.

    As `votes` sees them; for another recipe the semantic features, each of length 1.
    """
    network = general.network
    if isinstance(network, Votes):
        where = network.base.device
        with torch.inference_mode():
            found = network.embed(torch.from_numpy(np.asarray(nodes, np.float32)).to(where))
        return np.asarray(found.double().cpu().numpy())
    some = _unit(stored_rows(general.pool.semantic, general.pool.rows[evenly(len(general.pool), _SOME)]))
    squared = (2 - 2 * some @ some.T)[~np.eye(len(some), dtype=np.bool_)]
    return np.asarray(_unit(semantic) / np.sqrt(max(float(np.median(squared)), 1e-6)))


def _unit(x: NDArray[Any]) -> FloatArray:
    x = np.asarray(x, np.float64)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12))


def likeness(x: FloatArray, others: FloatArray) -> FloatArray:
    """exp(-squared distance) of points [n, E] and [m, E], [n, m] in 0..1."""
    squared = (x**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * x @ others.T
    return np.asarray(np.exp(-squared.clip(0)))


def between_levels(before: int, after: int) -> FloatArray:
    """Matrix [before, after] that takes shares at `before` levels to `after` ones, end to end; means are kept."""
    at = np.linspace(0, after - 1, before)
    return np.asarray((1 - np.abs(at[:, None] - np.arange(after)[None])).clip(0))


def moved(p: FloatArray, mean: FloatArray) -> FloatArray:
    """Distributions [n, S] tilted by exp(t bin), each with the t that gives it the `mean` [n], in bins."""
    start, bins = np.log(p.clip(1e-6)), np.arange(p.shape[1])
    low, high = np.full(len(p), -40.0), np.full(len(p), 40.0)
    q = p
    for _ in range(50):  # bisection
        middle = (low + high) / 2
        q = start + middle[:, None] * bins
        q = np.exp(q - q.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        above = q @ bins > mean
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return q


def _usual(general: Model, expected: FloatArray) -> tuple[float, float]:
    """Mean and deviation of what the general model says of photos it has not seen: of its pool, else of the rated."""
    known = general.doubt.percentiles
    scores = known if len(known) >= FEWEST else expected @ general.values
    return float(scores.mean()), max(float(scores.std()), 1e-6 * float(np.ptp(general.values)))


def _bursts(pool: RatedPool) -> IntArray:
    """Codes [n], equal for photos that are the same one, or of the same group, also by way of a third."""
    codes = np.unique(np.array(pool.pixels), return_inverse=True)[1].astype(np.int64)
    codes = np.where(np.array(pool.pixels) == "", -1, codes)
    same = splits.same_photos(codes, pool.semantic, np.ones(len(pool), np.bool_), pool.near_duplicate)
    groups = np.unique(np.array(pool.groups), return_inverse=True)[1].astype(np.int64)
    groups = np.where(np.array(pool.groups) == "", -1, groups)
    return splits.components(len(pool), np.concatenate([same, splits.code_pairs(groups)]))


def _folds(bursts: IntArray, seed: int) -> IntArray:
    """Folds [n] of about 10 bursts each, at least 2 and at most 10."""
    return splits.make_folds(len(bursts), min(max(len(np.unique(bursts)) // 10, 2), 10), seed, bursts)


def _check(taste: Taste, bursts: IntArray, seed: int) -> Checked:
    """Cross-validation, many times over other folds.

    A photo held back lowers the mean of the others when its own rating is high, which would count against whatever
    learns that mean. So predictions are taken from the mean of their fold, and averaged over the assignments.
    """
    both = taste._beside
    near, ratings, values = likeness(taste._points, taste._points), taste.ratings, taste.values
    single = Beside(ALONE, both.a, near)
    weights = {machine: machine.weights(both.a, near) for machine in (single, both)}
    n = len(taste)
    found = {"general": np.zeros(n), "alone": np.zeros(n), "both": np.zeros(n)}
    for repeat in range(_REPEATS):
        fold_of = _folds(bursts, seed + repeat)
        for fold in range(fold_of.max() + 1):
            out = fold_of == fold
            for name, scores in (
                ("general", both.a[out]),
                ("alone", single.held_out(weights[single], ratings, out, values)),
                ("both", both.held_out(weights[both], ratings, out, values)),
            ):
                found[name][out] += scores - scores.mean()
    known = {digest for _, digest in taste.general.seen if digest}
    samples = resamples(bursts, _SAMPLES, seed)
    differences = np.array(
        [srcc(ratings[rows], found["both"][rows]) - srcc(ratings[rows], found["general"][rows]) for rows in samples]
    )
    low, high = interval(differences)
    return Checked(
        photos=n,
        bursts=len(np.unique(bursts)),
        folds=int(_folds(bursts, seed).max()) + 1,
        seen=sum(digest in known for digest in taste.pool.pixels),
        low=low,
        high=high,
        **{name: srcc(ratings, scores) for name, scores in found.items()},
    )


def _doubt(taste: Taste, bursts: IntArray, seed: int) -> Doubt:
    """The tables of the rated photos: each predicted without the ratings of its fold."""
    fold_of = _folds(bursts, seed)
    near = likeness(taste._points, taste._points)
    p = taste.judge(taste.expected, near, fold_of[:, None] != fold_of[None]).distribution
    groups = [str(code) for code in bursts]
    nearest = replace(taste.pool, groups=tuple(groups)).find(
        taste.pool.semantic, 1, pixels=taste.pool.pixels, groups=groups
    )
    tables = fit_doubt(p, taste.pool.distributions, nearest.similarity[:, 0], taste.values)
    both = taste.checked.both
    return replace(tables, line=None, srcc=both if np.isfinite(both) else None)  # one vote has no spread


def save_taste(
    taste: Taste, folder: Path, *, overwrite: bool = False, notes: Mapping[str, Any] | None = None
) -> Manifest:
    """Write a taste: the rated photos' numbers and ratings, no pixels, and a whole copy of the general model."""
    pool = taste.pool
    with new_folder(folder, "taste", overwrite=overwrite) as building:
        general = save_model(taste.general, building / "general")
        write_lines(building / "ids.txt", pool.ids)
        write_lines(building / "pixels.txt", pool.pixels)
        write_lines(building / "groups.txt", pool.groups)
        write_array(building / "ratings.npy", taste.ratings)
        write_array(building / "expected.npy", taste.expected)
        write_array(building / "nodes.npy", pool.nodes)
        write_array(building / "semantic.npy", pool.semantic)
        write_json(building / "calibration.json", taste.doubt.to_json())
        write_json(building / "checked.json", asdict(taste.checked))
        names = sorted(path.name for path in building.iterdir() if path.is_file())
        manifest = Manifest(
            kind="taste",
            format=FORMATS["taste"],
            config=json.loads(
                json.dumps(
                    {
                        "values": taste.values.tolist(),
                        "usual": list(taste.usual),
                        "prior": asdict(taste.prior),
                        "near_duplicate": pool.near_duplicate,
                    }
                )
            ),
            files={name: digest_file(building / name) for name in names},
            inputs={"general": general.digest},
            counts={"photos": len(pool)},
            notes=dict(notes or {}),
        )
        write_manifest(building, manifest)
    return manifest


def load_taste(folder: Path, *, device: str = "cpu") -> tuple[Taste, Manifest]:
    """Read what `save_taste` wrote; ArtifactError for what is damaged, or is no taste."""
    manifest = read_manifest(folder, "taste")
    verify_files(folder, manifest)
    general, inside = load_model(folder / "general", device=device)
    if inside.digest != manifest.inputs.get("general"):
        raise ArtifactError(f"{folder}: the general model in it is another one than it was made with; make it again")
    config = manifest.config
    try:
        values = np.array(config["values"], np.float64)
        ratings, ids = read_array(folder / "ratings.npy"), read_lines(folder / "ids.txt")
        pool = RatedPool(
            ids=ids,
            pixels=read_lines(folder / "pixels.txt"),
            groups=read_lines(folder / "groups.txt"),
            distributions=(np.rint((ratings[:, None] - values[None]) / (values[1] - values[0])) == 0).astype(
                np.float64
            ),
            totals=np.ones(len(ids)),
            semantic=read_array(folder / "semantic.npy"),
            nodes=read_array(folder / "nodes.npy"),
            rows=np.arange(len(ids), dtype=np.int64),
            near_duplicate=config["near_duplicate"],
        )
        numbers: dict[str, Any] = {
            name: float("nan") if x is None else x for name, x in read_json(folder / "checked.json").items()
        }
        taste = Taste(
            general=general,
            pool=pool,
            values=values,
            expected=read_array(folder / "expected.npy"),
            usual=(float(config["usual"][0]), float(config["usual"][1])),
            prior=Prior(**config["prior"]),
            doubt=Doubt.of_json(read_json(folder / "calibration.json")),
            checked=Checked(**numbers),
        )
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} does not hold together ({error}): make it again") from error
    return taste, manifest
