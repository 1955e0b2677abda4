"""One person's ratings beside a general model: the algebra, who consults whom, honest verdicts, what is on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import spearmanr

import made
from milnet.annotations import Table
from milnet.errors import ArtifactError, UsageError
from milnet.evaluation import find_references
from milnet.model.common import Pool
from milnet.model.votes import Votes
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.splits import Split
from milnet.taste import (
    ALONE,
    Beside,
    Prior,
    Taste,
    between_levels,
    fit_taste,
    likeness,
    load_taste,
    moved,
    one_vote,
    points,
    said,
    save_taste,
)

TABLE = made.table(150, values=7)
FEATURES = made.features(TABLE, width=40, semantic=16)
# photos of a theme are alike, but not the same ones
_APART = np.random.default_rng(1).normal(size=FEATURES.semantic.shape) * 0.3
FEATURES.nodes[:, -16:] += _APART.astype(np.float16)
LEARNED = np.arange(60)  # the general model's photos; the others are the person's
STARS = np.arange(1.0, 6.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def general() -> Model:
    recipe = load_recipe("votes", ["epochs=4", "patience=2", "width=8"])
    return fit(recipe, TABLE, FEATURES, Split(LEARNED, np.arange(60, 150)), 0, calibrate=True)


def stars(rows: Any, model: Model, seed: int = 0, *, follow: float = 0.5, own: float = 1.0) -> Any:
    """Ratings 1 .. 5 that follow the general model, a theme's level that is the person's own, and chance."""
    rng = np.random.default_rng(100 + seed)
    theme = np.array([int(t[1:]) for t in TABLE.columns["theme"]])
    liked = rng.normal(size=made.THEMES)[theme[rows]]
    g = said(model, FEATURES.nodes[rows], FEATURES.semantic[rows]) @ model.values
    y = follow * (g - g.mean()) / g.std() + own * liked + 0.4 * rng.normal(size=len(rows))
    return np.searchsorted([-1.2, -0.4, 0.4, 1.2], y) + 1.0


def taste_of(rows: Any, model: Model, ratings: Any, **options: Any) -> Taste:
    pixels = [FEATURES.pixels[row] for row in rows]
    ids = [TABLE.ids[row] for row in rows]
    return fit_taste(model, FEATURES.nodes[rows], FEATURES.semantic[rows], pixels, ids, ratings, **options)


def asked(taste: Taste, rows: Any, *, known: bool = True) -> Any:
    pixels = [FEATURES.pixels[row] for row in rows] if known else None
    return taste.explain(FEATURES.nodes[rows], FEATURES.semantic[rows], pixels=pixels)


RATED, UNSEEN = np.arange(60, 110), np.arange(110, 150)


@pytest.fixture(scope="module")
def taste(general: Model) -> Taste:
    return taste_of(RATED, general, stars(RATED, general))


def textbook(prior: Prior, a: Any, z: Any, y: Any, a_new: Any, z_new: Any, values: Any) -> Any:
    """Scores by the formula, a photo at a time, with an explicit solve."""
    step = values[1] - values[0]

    def expected(x: Any) -> Any:
        e = np.mean(y) + max(np.std(y), step / 2) * prior.slope * x
        return min(max(e, values[0] + 1e-3 * step), values[-1] - 1e-3 * step)

    def covariance(a1: float, z1: Any, a2: float, z2: Any) -> Any:
        near = np.exp(-np.sum((z1 - z2) ** 2))
        return prior.level_variance + prior.slope_variance * a1 * a2 + prior.signal * near

    n = len(y)
    c = np.array([[covariance(a[i], z[i], a[j], z[j]) for j in range(n)] for i in range(n)])
    off = np.array([y[i] - expected(a[i]) for i in range(n)])
    found = []
    for x, place in zip(a_new, z_new, strict=True):
        near = np.array([covariance(x, place, a[i], z[i]) for i in range(n)])
        found.append(expected(x) + near @ np.linalg.solve(c + prior.noise * np.eye(n), off))
    return np.array(found)


@pytest.mark.parametrize("prior", [Prior(), ALONE, Prior(slope=0.9, signal=1.5, noise=0.1)])
def test_the_algebra(prior: Prior) -> None:
    rng = np.random.default_rng(0)
    a, z, y = rng.normal(size=30), 0.4 * rng.normal(size=(30, 5)), rng.integers(1, 6, 30).astype(float)
    machine = Beside(prior, a, likeness(z, z))
    out = np.zeros(30, np.bool_)
    out[[3, 4, 20]] = True
    found = machine.held_out(machine.weights(a, likeness(z, z)), y, out, STARS)
    expected = textbook(prior, a[~out], z[~out], y[~out], a[out], z[out], STARS)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # taking photos out of the inverse is as good as never having had them
    fewer = Beside(prior, a[~out], likeness(z[~out], z[~out]))
    w = machine.without(machine.weights(a[out], likeness(z[out], z)), ~out)
    np.testing.assert_allclose(w[:, ~out], fewer.weights(a[out], likeness(z[out], z[~out])), atol=1e-9)
    assert (w[:, out] == 0).all()


def test_scores_are_the_formula(general: Model, taste: Taste) -> None:
    z, where = (points(general, FEATURES.nodes[rows], FEATURES.semantic[rows]) for rows in (RATED, UNSEEN))
    p = [said(general, FEATURES.nodes[rows], FEATURES.semantic[rows]) for rows in (RATED, UNSEEN)]
    known = general.doubt.percentiles
    a, a_new = ((q @ general.values - known.mean()) / known.std() for q in p)
    expected = textbook(taste.prior, a, z, taste.ratings, a_new, where, STARS)
    found = asked(taste, UNSEEN).distribution @ STARS
    np.testing.assert_allclose(found, expected.clip(1.001, 4.999), atol=1e-6)
    assert np.ptp(found) > 0.5


def test_parts(taste: Taste) -> None:
    found = asked(taste, UNSEEN)
    p = found.distribution
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found.base + found.own + found.influence.sum(1), p @ STARS, atol=1e-9)
    assert (found.remainder == 0).all()
    np.testing.assert_allclose(found.base, taste.ratings.mean())
    # a rating one star higher moves the score by its weight: through itself, and through the mean of all
    references = taste.find(FEATURES.semantic[UNSEEN])
    assert references.index.shape == found.influence.shape == (40, 50)
    near = likeness(points(taste.general, FEATURES.nodes[UNSEEN], FEATURES.semantic[UNSEEN]), taste._points)
    machine = taste._beside
    a = taste._said(said(taste.general, FEATURES.nodes[UNSEEN], FEATURES.semantic[UNSEEN]))
    w = machine.weights(a, near)
    off = taste.ratings - machine.expected(machine.a, taste.ratings, STARS)
    inside = (p @ STARS > 1.01) & (p @ STARS < 4.99)
    assert inside.sum() > 30
    np.testing.assert_allclose(
        found.influence[inside], np.take_along_axis(w * off, references.index, 1)[inside], atol=1e-6
    )


def test_distributions_have_no_holes_and_no_bumps_from_nowhere(taste: Taste) -> None:
    p = asked(taste, UNSEEN).distribution
    inside = np.abs(p @ STARS - 3) < 1
    assert inside.any() and (p[inside] > 1e-3).all()


def test_a_rated_photo_does_not_consult_itself(general: Model, taste: Taste) -> None:
    """Not by its pixels, and not by its likeness: whatever it was rated, it scores the same to the last bit."""
    for i in (0, 17, 49):
        other = taste.ratings.copy()
        other[i] = 5.0 if other[i] < 3 else 1.0
        changed = taste_of(RATED, general, other)
        for known in (True, False):
            first, second = asked(taste, RATED[[i]], known=known), asked(changed, RATED[[i]], known=known)
            np.testing.assert_array_equal(first.distribution, second.distribution)
            np.testing.assert_array_equal(first.influence, second.influence)
            assert first.base == second.base == pytest.approx(np.delete(taste.ratings, i).mean())
        assert np.abs(asked(taste, UNSEEN).distribution - asked(changed, UNSEEN).distribution).max() > 1e-4
    # as if it had never been rated
    fewer = taste_of(RATED[1:], general, taste.ratings[1:])
    np.testing.assert_allclose(asked(taste, RATED[:1]).distribution, asked(fewer, RATED[:1]).distribution, atol=1e-9)


def test_a_photo_scores_the_same_in_any_company(taste: Taste) -> None:
    rows = np.concatenate([UNSEEN[:5], RATED[:5]])
    together = asked(taste, rows).distribution
    one_by_one = np.concatenate([asked(taste, rows[[i]]).distribution for i in range(10)])
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)


def test_all_that_is_rated_may_be_the_photo_itself(general: Model) -> None:
    rows = np.full(12, 70)
    ids = [f"copy{i}" for i in range(12)]
    ratings = [1.0, 5.0] * 6
    with pytest.raises(UsageError, match="at least 5 different photos, got 1"):
        fit_taste(general, FEATURES.nodes[rows], FEATURES.semantic[rows], [""] * 12, ids, ratings)


def test_planted_taste_is_found(general: Model) -> None:
    rows, ratings = np.arange(60, 120), stars(np.arange(60, 150), general, own=1.2)
    found = taste_of(rows, general, ratings[:60])
    assert found.checked.beats and found.checked.low > 0
    assert found.checked.verdict.startswith("your taste beats the general model")
    assert (found.checked.photos, found.checked.bursts, found.checked.folds, found.checked.seen) == (60, 60, 6, 0)
    unseen = np.arange(120, 150)
    p, own = said(general, FEATURES.nodes[unseen], FEATURES.semantic[unseen]), asked(found, unseen).distribution
    assert spearmanr(own @ STARS, ratings[60:]).statistic > spearmanr(p @ general.values, ratings[60:]).statistic + 0.1
    low, high = found.doubt.within(own @ STARS, np.zeros(30), np.full(30, 0.9), STARS)
    assert ((low < own @ STARS) & (own @ STARS < high)).all()
    assert found.doubt.line is None and found.doubt.srcc == found.checked.both


def test_ratings_without_a_taste_do_not_beat_the_general_model(general: Model) -> None:
    told = 0
    for seed in range(12):  # ratings by chance: as seldom as 95 % promises
        ratings = np.random.default_rng(seed).integers(1, 6, 40).astype(float)
        told += taste_of(np.arange(60, 100), general, ratings, seed=seed).checked.beats
    assert told <= 1
    for seed in range(2):  # a person who agrees with everybody
        found = taste_of(RATED, general, stars(RATED, general, seed, follow=1.0, own=0.0))
        assert found.checked.general > 0.6 and not found.checked.beats
        assert found.checked.verdict.startswith("not enough ratings to beat the general model: on photos held back")


def test_what_is_checked_is_not_below_chance() -> None:
    """Where nothing is alike, all that is learned is the mean of the others, which a photo held back moves away."""
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(len(TABLE), 400)).astype(np.float16)
    features = replace(FEATURES, nodes=nodes, semantic=nodes[:, :200])
    recipe = load_recipe("votes", ["epochs=1", "patience=1", "width=4"])
    model = fit(recipe, TABLE, features, Split(LEARNED, np.arange(60, 150)), 0)
    rows, left_out, checked = np.arange(60, 80), [], []
    for seed in range(20):
        ratings = np.random.default_rng(seed).integers(1, 6, 20).astype(float)
        names = [str(row) for row in rows]
        found = fit_taste(model, nodes[rows], nodes[rows, :200], [""] * 20, names, ratings)
        single = Beside(ALONE, np.zeros(20), likeness(found._points, found._points))
        weights = single.weights(single.a, likeness(found._points, found._points))
        scores = [single.held_out(weights, ratings, np.arange(20) == i, STARS)[0] for i in range(20)]
        left_out.append(spearmanr(scores, ratings).statistic)
        checked.append(found.checked.alone)
    assert np.mean(left_out) < -0.5
    assert abs(np.mean(checked)) < 0.15


def test_with_few_ratings_the_general_model_speaks(general: Model) -> None:
    rows = RATED[:10]
    found = taste_of(rows, general, stars(rows, general, 3, own=0.0))
    p = said(general, FEATURES.nodes[UNSEEN], FEATURES.semantic[UNSEEN])
    assert spearmanr(asked(found, UNSEEN).distribution @ STARS, p @ general.values).statistic > 0.9
    assert found.doubt.interval is None and len(found.doubt.percentiles) == 10


def test_bursts_are_held_back_together(general: Model) -> None:
    """Each photo twice, rated the same by chance: a twin must not tell of its twin. By likeness, or by a group."""
    rows = np.repeat(np.arange(60, 85), 2)
    ratings = np.repeat(np.random.default_rng(1).integers(1, 6, 25), 2).astype(float)
    ids = [f"{row}-{i}" for i, row in enumerate(rows)]
    pixels = [f"{i:064x}" for i in range(1000, 1050)]
    found = fit_taste(general, FEATURES.nodes[rows], FEATURES.semantic[rows], pixels, ids, ratings)
    assert (found.checked.photos, found.checked.bursts) == (50, 25)
    assert found.checked.alone < 0.5
    rng = np.random.default_rng(2)  # too unlike to be the same photo, too alike to be independent
    other = FEATURES.semantic[rows] + 0.35 * rng.normal(size=(50, 16))
    groups = [str(row) for row in rows]
    apart = fit_taste(general, FEATURES.nodes[rows], other, pixels, ids, ratings)
    together = fit_taste(general, FEATURES.nodes[rows], other, pixels, ids, ratings, groups=groups)
    assert apart.checked.bursts > 40 and together.checked.bursts == 25
    assert apart.checked.alone > together.checked.alone + 0.2


def test_photos_that_the_general_model_knows(general: Model) -> None:
    """What it says of them is what the networks said that had not seen them: the very table of its percentiles."""
    pixels = [FEATURES.pixels[row] for row in LEARNED]
    p = said(general, FEATURES.nodes[LEARNED], FEATURES.semantic[LEARNED], pixels)
    np.testing.assert_allclose(np.sort(p @ general.values), general.doubt.percentiles, atol=1e-6)
    ratings = np.random.default_rng(0).integers(1, 6, 60).astype(float)
    assert taste_of(LEARNED, general, ratings).checked.seen == 60


def test_another_recipe(general: Model) -> None:
    recipe = load_recipe("single", ["epochs=4", "patience=2", "width=8"])
    single = fit(recipe, TABLE, FEATURES, Split(LEARNED, np.arange(60, 150)), 0)
    ratings = stars(np.arange(60, 120), general, own=1.2)
    found = taste_of(np.arange(60, 120), single, ratings)
    assert found.checked.both > found.checked.general
    squared = -np.log(likeness(*(points(single, FEATURES.nodes[LEARNED], FEATURES.semantic[LEARNED]),) * 2))
    assert np.median(squared[~np.eye(60, dtype=np.bool_)]) == pytest.approx(1, rel=1e-6)
    assert found.usual[1] == pytest.approx((found.expected @ single.values).std())  # no table of percentiles


def test_levels() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(7), 20)
    for levels in (2, 5, 7, 10):
        q = p @ between_levels(7, levels)
        np.testing.assert_allclose(q.sum(1), 1)
        np.testing.assert_allclose(q @ np.arange(levels) / (levels - 1), p @ np.arange(7) / 6, atol=1e-12)
    np.testing.assert_array_equal(between_levels(7, 7), np.eye(7))
    mean = rng.uniform(0.2, 5.8, 20)
    for one, to, q in zip(p, mean, moved(p, mean), strict=True):

        def tilted(t: float, one: Any = one) -> Any:
            x = np.maximum(one, 1e-6) * np.exp(t * np.arange(7))
            return x / x.sum()

        t = brentq(lambda t, to=to: tilted(t) @ np.arange(7) - to, -40, 40, xtol=1e-12)
        np.testing.assert_allclose(q, tilted(t), atol=1e-8)
    np.testing.assert_array_equal(one_vote(np.array([1.0, 4.0]), STARS), np.eye(5)[[0, 3]])


@pytest.mark.parametrize(
    ("ratings", "values", "message"),
    [
        ([1.0, 2.0] * 4, None, "expected 10 to 2,000 rated photos, got 8"),
        ([1.0, 2.0] * 1001, None, "expected 10 to 2,000 rated photos, got 2,002"),
        ([3.0] * 12, None, "all 12 ratings are 3"),
        ([3.0] * 11 + [0.0], None, "photo11: a rating of 0; 0 is a photo not rated and -1 a rejected one"),
        ([-1.0] + [3.0] * 11, None, "photo0: a rating of -1"),
        ([1.5, 2.0] * 6, None, "expected ratings 1 to 5 or 1 to 10"),
        ([1.0, 2.0] * 6, [2.0, 3.0, 4.0], "photo0: expected one of the levels 2, 3, 4, got 1"),
        ([1.0, float("nan")] * 6, STARS, "photo1: expected one of the levels 1, 2, 3, 4, 5, got nan"),
        ([1.0, 2.0] * 6, [1.0, 2.0, 4.0], "at least 2 increasing, equally spaced levels"),
        ([1.0, 2.0] * 6, [1.0], "at least 2 increasing, equally spaced levels"),
    ],
)
def test_what_is_refused(general: Model, ratings: Any, values: Any, message: str) -> None:
    rows = np.resize(RATED, len(ratings))
    ids = [f"photo{i}" for i in range(len(ratings))]
    with pytest.raises(UsageError, match=message):
        fit_taste(general, FEATURES.nodes[rows], FEATURES.semantic[rows], [""] * len(ids), ids, ratings, values)


def test_what_does_not_fit_together(general: Model) -> None:
    rows, ids = RATED[:12], [f"photo{i}" for i in range(12)]
    how: Any = (general, FEATURES.nodes[rows], FEATURES.semantic[rows])
    with pytest.raises(UsageError, match="expected one rating for each of 12 photos"):
        fit_taste(*how, [""] * 12, ids, [1.0, 2.0])
    with pytest.raises(UsageError, match="more than one: photo1"):
        fit_taste(*how, [""] * 12, ["photo1", *ids[1:]], [1.0, 2.0] * 6)
    with pytest.raises(UsageError, match="expected pixels of 12 rated photos, got 11"):
        fit_taste(*how, [""] * 11, ids, [1.0, 2.0] * 6)


def test_the_levels_of_a_scale(general: Model) -> None:
    def levels(ratings: Any, values: Any = None) -> Any:
        return taste_of(RATED[:10], general, ratings, values=values).values.tolist()

    assert levels([1, 2, 3, 3, 2, 1, 2, 3, 4, 2]) == [1, 2, 3, 4, 5]
    assert levels([1, 2, 3, 3, 2, 1, 2, 3, 8, 2]) == list(range(1, 11))
    assert levels([0, 2, 3, 3, 2, 1, 2, 3, 4, 2], np.arange(5)) == [0, 1, 2, 3, 4]
    assert levels([0.5, 1, 1, 1.5, 1, 1, 1, 1, 1, 1], [0.5, 1, 1.5]) == [0.5, 1, 1.5]


def test_on_disk(taste: Taste, tmp_path: Path) -> None:
    written = save_taste(taste, tmp_path / "mine", notes={"photos": "folder"})
    again, manifest = load_taste(tmp_path / "mine")
    assert manifest.digest == written.digest and manifest.kind == "taste"
    assert (again.pool.ids, again.checked, again.usual) == (taste.pool.ids, taste.checked, taste.usual)
    for rows in (UNSEEN, RATED):
        first, second = asked(taste, rows), asked(again, rows)
        for name in ("distribution", "base", "own", "influence"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(again.doubt.percentiles, taste.doubt.percentiles)
    assert again.doubt.interval == taste.doubt.interval and again.prior == taste.prior
    kinds = {path.suffix for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert kinds == {".json", ".npy", ".txt", ".safetensors"}
    assert save_taste(again, tmp_path / "twice").digest == written.digest
    with pytest.raises(ArtifactError, match="exists already"):
        save_taste(taste, tmp_path / "mine")
    save_taste(taste, tmp_path / "mine", overwrite=True)


def test_damage(taste: Taste, general: Model, tmp_path: Path) -> None:
    save_taste(taste, tmp_path / "mine")
    np.save(tmp_path / "mine" / "ratings.npy", taste.ratings[::-1])
    with pytest.raises(ArtifactError, match="changed or damaged"):
        load_taste(tmp_path / "mine")
    save_taste(taste, tmp_path / "two")
    other = replace(general, values=general.values + 1)
    save_taste(replace(taste, general=other), tmp_path / "three")
    (tmp_path / "two" / "general").rename(tmp_path / "away")
    (tmp_path / "three" / "general").rename(tmp_path / "two" / "general")
    with pytest.raises(ArtifactError, match="another one than it was made with"):
        load_taste(tmp_path / "two")
    with pytest.raises(ArtifactError, match="is a 'model' folder"):
        load_taste(tmp_path / "away")
    path = tmp_path / "two" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ArtifactError):
        load_taste(tmp_path / "two")


# The benchmark


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return import_module("taste")


def people(study: Any, path: Path, count: int = 40) -> tuple[Table, Any]:
    """A table of photos that made raters rated, most of them each, and its raters."""
    rng = np.random.default_rng(0)
    scores = TABLE.scores
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rater", "image", "rating"])
        votes = np.zeros_like(TABLE.votes)
        for rater in range(count):
            for row in np.flatnonzero(rng.random(len(TABLE)) < 0.9):
                rating = int(np.clip(np.rint(scores[row] + rng.normal()), 1, 7))
                votes[row, rating - 1] += 1
                writer.writerow([rater + 1, f"{TABLE.ids[row]}.jpg", rating])
    table = replace(TABLE, votes=votes)
    return table, study.read_ratings(path, table)


def test_ratings_one_by_one(study: Any, tmp_path: Path) -> None:
    table, raters = people(study, tmp_path / "ratings.csv")
    assert len(raters.names) == 40 and sorted(np.unique(raters.block)) == list(range(10))
    left = study.without_block(table, raters, 3)
    assert (table.votes - left.votes).sum() == np.isfinite(raters.ratings[raters.block == 3]).sum()
    with pytest.raises(Exception, match="not the votes of DATA"):
        study.read_ratings(tmp_path / "ratings.csv", TABLE)


def test_those_developed_on_are_not_reported(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = np.random.default_rng(0).integers(1, 8, (50, 9)).astype(float)
    ratings[7] = 4.0  # told nothing apart
    raters = study.Raters(tuple(map(str, range(50))), ratings, np.zeros(50, np.int64))
    monkeypatch.setattr(study, "EACH", 20)
    develop, report = set(raters.chosen("develop")), set(raters.chosen("report"))
    assert len(develop) == len(report) == 20 and not develop & report and 7 not in develop | report


def test_a_rater_is_taken_off_exactly(study: Any, tmp_path: Path) -> None:
    """The kept arrays beside a pool without the rater give what the network gives beside that pool."""
    table, raters = people(study, tmp_path / "ratings.csv")
    rows = np.arange(60, 150)
    model = fit(load_recipe("votes", ["epochs=2", "width=8"]), table, FEATURES, Split(LEARNED, rows), 0)
    network = model.network
    assert isinstance(network, Votes)
    kept = study.linear(model, table, FEATURES, rows)
    for rater in (0, 5):
        votes = table.votes - (raters.ratings[rater][:, None] == table.values)
        assert 0 < (table.votes - votes).sum() <= 150
        found = study.predicted(kept, votes[LEARNED])
        references = find_references(model, table, FEATURES, rows)
        batch = model.samples(FEATURES.nodes[rows], references).batch(np.arange(90))
        assert batch.pool is not None
        shares = torch.from_numpy(votes[LEARNED] / votes[LEARNED].sum(1, keepdims=True))
        pool = Pool(batch.pool.nodes, shares, batch.pool.totals)
        with torch.inference_mode():
            expected = network(batch.photo, pool, None, None, batch.keep).exp()
        np.testing.assert_allclose(found, (expected / expected.sum(1, keepdim=True)).numpy(), atol=1e-9)
        assert np.abs(found - study.predicted(kept, table.votes[LEARNED])).max() > 1e-4


def test_what_is_held_back(study: Any, tmp_path: Path) -> None:
    table, raters = people(study, tmp_path / "ratings.csv")
    theme = table.codes("theme")
    for rater in range(5):
        rated, unseen = study.draw(table, raters, rater, "random")
        assert len(set(rated) | set(unseen)) == len(rated) + 60 and np.isfinite(raters.ratings[rater][rated]).all()
        rated, unseen = study.draw(table, raters, rater, "theme")
        assert len(unseen) == 60 and not set(theme[rated]) & set(theme[unseen])


def test_single_ratings_are_measured(study: Any) -> None:
    true, values = np.array([1.0, 3.0]), np.arange(1.0, 4.0)
    assert study.off(np.eye(3)[[0, 2]], true, values) == 0
    assert study.off(np.eye(3)[[2, 0]], true, values) == 1
    assert study.off(np.full((2, 3), 1 / 3), true, values) == pytest.approx((4 / 9 + 1 / 9) / 2)
    assert study.correlated(np.ones(5), np.arange(5.0)) == 0


def test_the_whole_on_real_people(study: Any, test_data: Path, tmp_path: Path, capsys: Any) -> None:
    ratings = test_data / "data" / "oasis" / "ratings.csv"
    out = tmp_path / "x.json"
    study.main(
        ["bundled", str(ratings), "--kinds", "theme", "--first", "2", "--jobs", "1", "--work", str(tmp_path / "work"),
         "--set", "epochs=2", "--set", "width=16", "-o", str(out)]
    )  # fmt: skip
    assert "theme: 2 raters" in capsys.readouterr().out
    found = json.loads(out.read_text())["theme"]
    assert found["raters"] == 2 and len(found["each"]) == 2
    for n in ("10", "100"):
        assert 0.2 < found[n]["crowd"][0] < 0.9 and found[n]["both"][0] > 0.1
        assert 0 < found[n]["off"][0] < 0.2
        assert found[n]["both - general"][0] == pytest.approx(found[n]["both"][0] - found[n]["general"][0])
    assert found["10"]["covered"] is None and 0.7 < found["100"]["covered"][0] <= 1
