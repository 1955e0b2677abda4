"""A score in parts: they sum to it, and each is what it says: what the score would change by."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from numpy.typing import NDArray

import made
from milnet import scoring
from milnet.explanation import Explanation, explain
from milnet.model.graph import Graph
from milnet.model.votes import Votes
from milnet.outputs import write_scores
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.references import References
from milnet.scoring import LISTED, Scorer
from milnet.splits import Split

Floats = NDArray[np.float64]
QUICK = ("width=8", "depth=1", "epochs=3", "patience=3", "batch=16", "calibration_folds=2")
CASES = [("single", ()), ("published", ()), *(("votes", (f"references={k}",)) for k in ("all", "3", "0"))]
TABLE = made.table(100)
FEATURES = replace(
    made.features(TABLE),
    config={
        **made.features(TABLE).config,
        "nodes": {**made.features(TABLE).config["nodes"], "extraction": {"ranges": {"last": [16, 24]}}},
    },
)
TEST = TABLE.rows_where("split", "test")
KEPT: dict[Any, Model] = {}


def fitted(name: str, settings: tuple[str, ...] = ()) -> Model:
    """A model of the training rows, made once."""
    if (name, settings) not in KEPT:
        recipe = load_recipe(name, [*QUICK, *settings])
        split = Split(TABLE.rows_where("split", "train"), TEST)
        KEPT[name, settings] = fit(recipe, TABLE, FEATURES, split, 0, calibrate=True)
    return KEPT[name, settings]


def find(model: Model) -> References | None:
    return model.find(FEATURES.semantic[TEST], ids=[TABLE.ids[row] for row in TEST])


def explained(model: Model) -> Explanation:
    return explain(model, FEATURES.nodes[TEST], find(model))


def score(model: Model, references: References | None) -> Floats:
    return np.asarray(model.predict(FEATURES.nodes[TEST], references) @ model.values)


def with_votes(model: Model, position: int, votes: Floats) -> Model:
    """The same beside a pool in which one photo was judged otherwise."""
    distributions = model.pool.distributions.copy()
    distributions[position] = votes
    return replace(model, pool=replace(model.pool, distributions=distributions))


def total(parts: Explanation) -> Floats:
    return np.asarray(parts.base + parts.own + parts.influence.sum(1) + parts.remainder)


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_parts_sum_to_the_score(name: str, settings: tuple[str, ...]) -> None:
    model = fitted(name, settings)
    references, parts = find(model), explained(model)
    n = len(TEST)
    np.testing.assert_allclose(parts.distribution, model.predict(FEATURES.nodes[TEST], references), rtol=0, atol=1e-9)
    np.testing.assert_allclose(total(parts), parts.distribution @ model.values, rtol=0, atol=1e-9)
    assert parts.influence.shape == (n, 0 if references is None else references.index.shape[1])
    assert parts.base.shape == parts.own.shape == parts.remainder.shape == (n,)
    expected = (model.pool.distributions @ model.values).mean()
    np.testing.assert_allclose(parts.base, expected, atol=1e-9)
    if name == "votes":
        np.testing.assert_array_equal(parts.remainder, 0)
    elif name == "single":
        np.testing.assert_allclose(parts.remainder, 0, atol=1e-12)
    else:
        assert np.abs(parts.remainder).max() > 1e-4
    if parts.influence.shape[1]:
        assert np.abs(parts.influence).max() > 1e-3
        assert np.abs(parts.own).max() > 1e-3


def test_photos_at_once_or_one_by_one() -> None:
    for name, settings in CASES:
        model = fitted(name, settings)
        references, parts = find(model), explained(model)
        for i in (0, 7):
            some = None if references is None else References(references.index[[i]], references.similarity[[i]])
            one = explain(model, FEATURES.nodes[TEST[[i]]], some)
            for part in ("distribution", "base", "own", "influence", "remainder"):
                np.testing.assert_allclose(getattr(one, part)[0], getattr(parts, part)[i], atol=1e-6)
    many = explain(fitted("votes", ("references=3",)), FEATURES.nodes, fitted("votes", ("references=3",)).find(
        FEATURES.semantic))  # fmt: skip
    assert len(many.own) == 100  # more than a batch


@pytest.mark.parametrize("settings", [("references=all",), ("references=3",)])
def test_the_influence_of_votes_is_exact(settings: tuple[str, ...]) -> None:
    """Other votes of a reference move the score by its share of their change; votes equal to base influence nothing."""
    model = fitted("votes", settings)
    references, parts = find(model), explained(model)
    assert references is not None and isinstance(model.network, Votes)
    base, values = float(parts.base[0]), model.values
    before, scores = parts.distribution @ values, model.pool.distributions @ values
    rng, moved = np.random.default_rng(0), []
    for position in rng.permutation(np.unique(references.index))[:12]:
        photo, place = np.nonzero(references.index == position)
        share = parts.influence[photo, place] / (scores[position] - base)
        for votes in (model.pool.distributions[position][::-1], rng.dirichlet(np.ones(5)), np.full(5, 0.2)):
            change = np.zeros(len(TEST))
            change[photo] = share * (votes @ values - scores[position])
            after = score(with_votes(model, int(position), votes), references)
            np.testing.assert_allclose(after, before + change, rtol=0, atol=1e-5)
            moved.append(np.abs(change).max())
        neutral = with_votes(model, int(position), model.network.base.numpy())
        again = explain(neutral, FEATURES.nodes[TEST], references)
        np.testing.assert_allclose(again.influence[photo, place], 0, atol=1e-6)
        kept = np.setdiff1d(np.arange(len(TEST)), photo)
        np.testing.assert_array_equal(again.influence[kept], parts.influence[kept])
    assert max(moved) > 0.005
    # an influence points from base to what people said of the reference, where its weight is positive
    weights = parts.influence / (scores[references.index] - base)
    assert (weights > 0).any() and weights.max() < 1


def test_own_is_what_the_photo_says_alone() -> None:
    model = fitted("votes", ("references=0",))
    parts = explained(model)
    alone = model.predict(FEATURES.nodes[TEST], None) @ model.values
    np.testing.assert_allclose(parts.base + parts.own, alone, rtol=0, atol=1e-9)
    beside = fitted("votes", ("references=all",))
    assert isinstance(beside.network, Votes)
    with torch.no_grad():
        photo = torch.from_numpy(FEATURES.nodes[TEST])
        own = beside.network.own(photo).exp().double().numpy() @ model.values
        references = find(beside)
        assert references is not None
        keep = torch.zeros(len(TEST), len(beside.pool), dtype=torch.bool)
        for i, row in enumerate(references.index):
            keep[i, row[row >= 0]] = True  # without the same photo
        open_ = beside.network.consult(photo, beside.pool.tensors, None, keep).open.numpy()
    found = explained(beside)
    np.testing.assert_allclose(found.own, open_ * (own - found.base), atol=1e-5)


def test_large_parts_of_a_small_sum() -> None:
    """Rounding stays rounding where own and the references are against each other: it was 1e-5 of a part, or more."""
    model = fitted("votes", ("references=3",))
    references, parts = find(model), explained(model)
    assert references is not None
    gain = model.pool.distributions @ model.values - parts.base[0]
    weights = parts.influence / gain[references.index]
    needed = (1e-5 - parts.own) / weights.sum(1)  # the mean vote - base of each reference, for a sum of 1e-5
    tried = 0
    for i in np.flatnonzero((np.abs(needed) < 1.2) & (np.abs(parts.own) > 0.01)):
        mean = float(parts.base[0] + needed[i])
        votes = 0.2 + (mean - model.values.mean()) * (model.values - model.values.mean()) / 10  # of that mean
        assert votes.min() > 0
        other = model
        for position in references.index[i]:
            other = with_votes(other, int(position), votes)
        found = explain(other, FEATURES.nodes[TEST[[i]]], References(references.index[[i]], references.similarity[[i]]))
        assert abs(float(found.own[0] + found.influence[0].sum())) < 1e-4
        assert float(found.own[0]) == pytest.approx(parts.own[i], abs=1e-6)
        np.testing.assert_allclose(found.influence[0], weights[i] * needed[i], atol=1e-6)
        tried += 1
    assert tried >= 3


def test_missing_references_have_no_influence() -> None:
    model = fitted("votes", ("references=3",))
    references = find(model)
    assert references is not None
    index, similarity = references.index.copy(), references.similarity.copy()
    index[:4, 2], similarity[:4, 2], index[4], similarity[4] = -1, -np.inf, -1, -np.inf
    few = References(index, similarity)
    for whole in (False, True):
        one = replace(model, recipe=replace(model.recipe, references="all" if whole else 3))
        parts = explain(one, FEATURES.nodes[TEST], few)
        np.testing.assert_array_equal(parts.influence[index < 0], 0)
        np.testing.assert_allclose(total(parts), parts.distribution @ model.values, rtol=0, atol=1e-9)
        np.testing.assert_allclose(parts.distribution, one.predict(FEATURES.nodes[TEST], few), atol=1e-9)


def test_leaving_out_a_reference_of_the_graph() -> None:
    """Against the graph fed with the nodes themselves, the mean of the pool's in the place of a reference."""
    model = fitted("published")
    references, parts = find(model), explained(model)
    assert references is not None and isinstance(model.network, Graph)
    nodes, pool = FEATURES.nodes.astype(np.float64), model.pool
    mean = nodes[pool.rows].mean(0)

    def look(x: Floats) -> Floats:
        with torch.no_grad():
            p = model.network.from_nodes(torch.from_numpy(x).float()).double().exp().numpy()  # type: ignore[union-attr]
        return np.asarray((p / p.sum(1, keepdims=True)) @ model.values)

    together = np.concatenate([nodes[TEST][:, None], nodes[pool.rows[references.index]]], axis=1)  # [n, 1 + K, D]
    whole = look(together)
    np.testing.assert_allclose(parts.distribution @ model.values, whole, atol=1e-5)
    for place in range(4):
        without = together.copy()
        without[:, 1 + place] = mean
        np.testing.assert_allclose(parts.influence[:, place], whole - look(without), atol=1e-5)
    nobody = together.copy()
    nobody[:, 1:] = mean
    np.testing.assert_allclose(parts.base + parts.own, look(nobody), atol=1e-5)


@pytest.mark.parametrize("settings", [("references=all",), ("references=3",)])
@pytest.mark.parametrize("highest", [True, False])
def test_a_mean_that_no_distribution_has(settings: tuple[str, ...], highest: bool) -> None:
    """The score is cut to the values, and its parts with it."""
    model = fitted("votes", settings)
    votes = np.zeros_like(model.pool.distributions)
    votes[:, -1 if highest else 0], votes[:, 0 if highest else -1] = 6, -5  # a mean of 25 or -19 on a scale from 1 to 5
    planted = replace(model, pool=replace(model.pool, distributions=votes))
    parts, before = explained(planted), explained(model)
    found = parts.distribution @ model.values
    np.testing.assert_allclose(total(parts), found, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(parts.remainder, 0)
    assert (found >= 1).all() and (found <= 5).all()
    cut = found > 4.99 if highest else found < 1.01
    assert cut.sum() > len(TEST) / 2
    # both are cut alike, and where the references carried it over the edge it is to them that the score is owed
    share = parts.own / before.own
    assert (share[cut] > 0).all() and (share[cut] < 1).all()
    np.testing.assert_allclose(
        parts.influence.sum(1)[cut] + parts.own[cut], (4.999 if highest else 1.001) - parts.base[cut], atol=1e-6
    )


# ---- as it is shown --------------------------------------------------------------------------------------------------


def scorer_of(model: Model) -> Scorer:
    return Scorer(model, made.NoBackbone(), made.NoBackbone(), "digest")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "settings"), [*CASES, ("votes", ("references=8",)), ("votes", ("references=9",))])
def test_a_score_lists_its_parts(name: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    model = fitted(name, settings)
    scorer = scorer_of(model)
    nodes, semantic = FEATURES.nodes[TEST], FEATURES.semantic[TEST]
    names = [TABLE.ids[row] for row in TEST]
    scores = scorer.score_features(nodes, semantic.astype(np.float32), photos=names)
    references = model.find(semantic.astype(np.float32))
    parts = explain(model, nodes, references)
    expected_count = 0 if references is None else min(references.index.shape[1], LISTED)
    for i, found in enumerate(scores):
        assert found.score == pytest.approx(parts.distribution[i] @ model.values, abs=1e-9)
        listed = sum(r.influence for r in found.references)
        assert found.base + found.own + listed + found.rest == pytest.approx(found.score, abs=1e-9)
        assert (found.base, found.own) == pytest.approx((parts.base[i], parts.own[i]), abs=1e-9)
        assert len(found.references) == expected_count
        if references is None:
            continue
        influence = np.abs(parts.influence[i])
        shown = [abs(r.influence) for r in found.references]
        if len(influence) > LISTED:
            np.testing.assert_allclose(shown, np.sort(influence)[::-1][:LISTED], atol=1e-9)
        else:  # all, nearest first
            np.testing.assert_allclose(shown, influence, atol=1e-9)
            assert found.rest == pytest.approx(parts.remainder[i], abs=1e-9)
        for one in found.references:
            position = model.pool.ids.index(one.id)
            place = int(np.flatnonzero(references.index[i] == position)[0])
            assert one.influence == pytest.approx(parts.influence[i, place], abs=1e-9)
            assert one.similarity == pytest.approx(float(references.similarity[i, place]), abs=1e-6)
            np.testing.assert_allclose(one.votes, TABLE.votes[TABLE.ids.index(one.id)], atol=1e-6)
        assert found.low is not None and found.high is not None and found.unlike is not None
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = tmp_path / f"scores{suffix}"
        write_scores(path, scores, model.values.tolist())
        for row, found in zip(read(path), scores, strict=True):
            shown = row["references"] if suffix == ".jsonl" else json.loads(row["references"])
            summed = sum(float(row[part]) for part in ("base", "own", "rest")) + sum(one["influence"] for one in shown)
            assert summed == pytest.approx(float(row["score"]), abs=1e-4)
            assert len(shown) == expected_count
            assert (float(row["base"]), float(row["own"]), float(row["rest"])) == (found.base, found.own, found.rest)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return polars.read_parquet(path).to_dicts()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["single", "published", "votes"])
@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_photos_like_the_pool_are_not_unlike_it(name: str, similarity: str) -> None:
    """What the tables of doubt count as like is what the scorer looks up, however references are found."""
    model = fitted(name, (f"similarity={similarity}",))
    assert len(model.doubt.nearest) == len(model.pool)
    scorer = scorer_of(model)

    def unlike(semantic: NDArray[Any]) -> Floats:
        nodes = FEATURES.nodes[: len(semantic)]
        photos = [str(i) for i in range(len(semantic))]
        found = scorer.score_features(nodes, semantic.astype(np.float32), photos=photos)
        return np.array([one.unlike for one in found], np.float64)

    usual = unlike(FEATURES.semantic[TEST])
    assert 0.2 < usual.mean() < 0.8
    strange = np.random.default_rng(0).normal(0, 9, (20, 8))
    assert unlike(strange).mean() > usual.mean() + 0.2


def test_eight_are_listed_by_what_they_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LISTED", 2)
    model = fitted("published")
    (found, *_) = scorer_of(model).score_features(
        FEATURES.nodes[TEST[:1]], FEATURES.semantic[TEST[:1]].astype(np.float32), photos=["a"]
    )
    influence = explain(model, FEATURES.nodes[TEST[:1]], model.find(FEATURES.semantic[TEST[:1]])).influence[0]
    np.testing.assert_allclose(
        [abs(r.influence) for r in found.references], np.sort(np.abs(influence))[::-1][:2], atol=1e-9
    )
    assert found.base + found.own + sum(r.influence for r in found.references) + found.rest == pytest.approx(
        found.score
    )
