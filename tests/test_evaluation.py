"""Honest numbers: every photo predicted once by a model that has not seen it, leaks refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest

import made
from milnet import evaluation
from milnet.checkpoints import load_model, save_model
from milnet.errors import ArtifactError, LeakError, UsageError
from milnet.evaluation import (
    crossvalidate,
    evaluate,
    find_references,
    find_same_photos,
    note_look,
    rows_of_pool,
)
from milnet.metrics import Task, srcc
from milnet.pool import find_store, make_store
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.results import METRICS, make_results, write_predictions, write_results
from milnet.splits import Split, find_folds

GRAPH = Recipe(name="published", model="graph", width=8, depth=1, epochs=4, patience=4, batch=16)
SINGLE = Recipe(width=8, epochs=4, patience=4, batch=16)


def test_each_photo_is_predicted_by_a_model_that_has_not_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = made.table()
    features = made.features(table)
    trained: list[tuple[set[int], set[int]]] = []
    original = evaluation.fit

    def spy(
        recipe: Recipe, table: made.Table, features: made.FeatureSet, split: Split, *rest: object, **more: object
    ) -> object:
        trained.append((set(split.train.tolist()), set(split.test.tolist())))
        return original(recipe, table, features, split, *rest, **more)

    monkeypatch.setattr(evaluation, "fit", spy)
    predictions, lines = crossvalidate(SINGLE, table, features, find_folds(table, "fold"), [0, 1])
    assert len(trained) == 6
    assert all(not train & test for train, test in trained)
    for seed in range(2):
        tested = [row for _, test in trained[3 * seed : 3 * seed + 3] for row in test]
        assert sorted(tested) == list(range(len(table)))
    assert predictions.distributions.shape == (2, len(table), 5)
    assert np.isfinite(predictions.distributions).all()
    assert [line["fold"] for line in lines] == ["0", "1", "2"] * 2


def test_permuted_votes_leave_nothing_to_predict() -> None:
    """The whole chain on votes that have nothing to do with the photos: no correlation may appear."""
    table = made.table(150)
    shuffled = replace(table, votes=table.votes[np.random.default_rng(1).permutation(150)])
    features = made.features(table)
    for recipe in (SINGLE, GRAPH):
        predictions, _ = crossvalidate(recipe, shuffled, features, find_folds(shuffled, "fold"), [0])
        assert abs(srcc(shuffled.scores, predictions.distributions[0] @ table.values)) < 0.3


def test_a_twin_is_kept_out_of_training() -> None:
    table = made.table()
    features = made.features(table)
    nodes = features.nodes.copy()
    nodes[:, -8:] = np.random.default_rng(0).normal(size=(len(table), 8))  # nobody is alike
    nodes[10] = nodes[0]  # likeness
    pixels = list(features.pixels)
    pixels[20] = pixels[1]  # same pixels
    features = replace(features, nodes=nodes, semantic=nodes[:, -8:], pixels=tuple(pixels))
    same = find_same_photos(table, features)
    assert same.sets == ((0, 10), (1, 20))
    folds = find_folds(table, "fold")
    _, lines = crossvalidate(SINGLE, table, features, folds, [0], same=same)
    crossing = sum(folds.codes[a] != folds.codes[b] for a, b in ((0, 10), (1, 20)))
    assert sum(line["twins"] for line in lines) == 2 * crossing > 0


def test_folds_that_keep_groups_make_them_act() -> None:
    table = made.table()
    assert find_folds(table, "fold_theme").group == "theme"
    assert find_folds(table, "fold").group is None


def test_crossvalidation_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made.table()
    features, folds = made.features(table), find_folds(table, "fold")
    whole, _ = crossvalidate(GRAPH, table, features, folds, [0, 1])
    calls = [0]
    original = evaluation.fit

    def dies(*arguments: object, **more: object) -> object:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(evaluation, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        crossvalidate(GRAPH, table, features, folds, [0, 1], run=tmp_path)
    resumed, _ = crossvalidate(GRAPH, table, features, folds, [0, 1], run=tmp_path)
    assert calls[0] == 4 + 3  # three were finished; the fourth and two more were left
    np.testing.assert_array_equal(whole.distributions, resumed.distributions)


def test_stored_references_change_nothing(tmp_path: Path) -> None:
    table = made.table()
    features, folds = made.features(table), find_folds(table, "fold_theme")
    rows = np.arange(len(table))
    make_store(table, features, tmp_path / "references" / "all", 60, pool_rows=rows, group=None)
    store = find_store(tmp_path, features, rows, "theme")
    assert store is not None
    assert find_store(tmp_path, features, rows, None) is not None
    with_store, _ = crossvalidate(GRAPH, table, features, folds, [0], store=store)
    without, _ = crossvalidate(GRAPH, table, features, folds, [0])
    np.testing.assert_array_equal(with_store.distributions, without.distributions)


def trained() -> tuple[made.Table, made.FeatureSet, Split, object]:
    table = made.table()
    features = made.features(table)
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    return table, features, split, fit(GRAPH, table, features, split, 0)


def test_evaluate_refuses_what_was_seen() -> None:
    table, features, split, model = trained()
    predictions = evaluate(model, table, features, split.test, split="test")
    assert len(predictions.rows) == len(split.test)
    with pytest.raises(
        LeakError, match=r"1 of \d+ test photos were seen in training by the model \(by id or by pixels\)"
    ):
        evaluate(model, table, features, np.append(split.test, split.train[0]), split="test")
    # another table, the same pixels under another name
    other = replace(table, name="other", ids=tuple(f"x{i}" for i in range(len(table))))
    pixels = list(features.pixels)
    pixels[split.test[0]] = features.pixels[split.train[0]]
    with pytest.raises(LeakError, match="x3"):
        evaluate(model, other, replace(features, pixels=tuple(pixels)), split.test, split="test")


def test_evaluate_refuses_other_features_and_values() -> None:
    table, features, split, model = trained()
    config = {role: {**part, "extraction": {"backbone": "timm/other"}} for role, part in features.config.items()}
    with pytest.raises(ArtifactError, match="the model was trained on semantic features made:last"):
        evaluate(model, table, replace(features, config=config), split.test, split="test")
    with pytest.raises(UsageError, match="they cannot be compared"):
        evaluate(model, replace(table, values=table.values + 1), features, split.test, split="test")


def test_looks_are_counted(tmp_path: Path) -> None:
    rows = np.arange(3)
    assert [note_look(tmp_path, "m", "test", rows) for _ in range(3)] == [1, 2, 3]
    assert note_look(tmp_path, "m", "test", rows[:2]) == 1
    assert len((tmp_path / "looks.jsonl").read_text().splitlines()) == 4


def test_results(tmp_path: Path) -> None:
    table = made.table()
    features, folds = made.features(table), find_folds(table, "fold")
    predictions, _ = crossvalidate(SINGLE, table, features, folds, [0, 1, 2])
    results = make_results(
        "crossvalidation", table, predictions, command="milnet crossvalidate", data={}, features={}, recipe={},
        folds={"label": "fold"},
    )  # fmt: skip
    write_results(tmp_path / "results.json", results)
    read = json.loads((tmp_path / "results.json").read_text())
    assert set(read["metrics"]) == set(METRICS)
    assert read["accuracy"] == {"threshold": 3.0, "side": ">="}
    for name, function in Task(table.values, 3.0, ">=").metrics().items():
        metric = read["metrics"][name]
        # pooled over the folds, then averaged over the seeds
        expected = [function(table.distributions, p) for p in predictions.distributions]
        assert metric["per_seed"] == pytest.approx(expected, abs=1e-12)
        assert metric["mean"] == pytest.approx(np.mean(expected), abs=1e-12)
        assert metric["sd"] == pytest.approx(np.std(expected, ddof=1), abs=1e-12)
        assert metric["low"] <= metric["mean"] <= metric["high"]
        assert len(metric["per_fold"]) == 3
    write_predictions(tmp_path / "predictions.csv", table, predictions)
    frame = polars.read_csv(tmp_path / "predictions.csv")
    assert frame.columns == ["photo", "seed", "fold", "score", "p_1", "p_2", "p_3", "p_4", "p_5"]
    assert len(frame) == 3 * len(table)
    first = frame.filter((polars.col("photo") == "photo007") & (polars.col("seed") == 1))
    np.testing.assert_allclose(first.select("^p_.*$").to_numpy()[0], predictions.distributions[1, 7], atol=1e-12)


def test_a_photo_of_ava_is_known_to_eva() -> None:
    """EVA's photo ids are AVA's: what a model of the one has seen is refused in a test on the other."""
    ava = made.table(name="ava")
    features = made.features(ava)
    split = Split(np.arange(60), np.arange(60, 90))
    model = fit(Recipe(width=8, epochs=1, batch=16), ava, features, split, 0)
    assert model.seen[0][0] == "ava:photo000"
    eva = replace(ava, name="eva", source={"format": "eva", "ids": "ava"})
    # other pixels: EVA's photos may have been saved again
    other = replace(features, pixels=tuple(f"{i + 1000:064x}" for i in range(len(eva))))
    with pytest.raises(LeakError, match="1 of 2 test photos were seen"):
        evaluate(model, eva, other, np.array([59, 60]), split="test")
    evaluate(model, replace(eva, source={}), other, np.array([59, 60]), split="test")
    trained_there = fit(Recipe(width=8, epochs=1, batch=16), eva, other, split, 0)
    with pytest.raises(LeakError, match="1 of 2 test photos were seen"):
        evaluate(trained_there, ava, features, np.array([59, 60]), split="test")


def test_references_found_before_are_used_and_belong_to_the_table(tmp_path: Path) -> None:
    """A store gives what a search gives, for a loaded model too, whose pool has rows of its own."""
    table = made.table()
    features = made.features(table)
    rows = np.arange(0, 60)
    recipe = Recipe(name="published", model="graph", width=8, depth=1, epochs=1, batch=16)
    save_model(fit(recipe, table, features, Split(rows[::-1].copy(), np.arange(60, 90)), 0), tmp_path / "model")
    model, _ = load_model(tmp_path / "model")
    make_store(table, features, tmp_path / "data" / "references" / "s", 10, pool_rows=rows)
    store = find_store(tmp_path / "data", features, rows, None)
    assert store is not None
    tested = np.arange(60, 90)
    found = find_references(model, table, features, tested, store=store)
    searched = find_references(model, table, features, tested)
    assert found is not None and searched is not None
    np.testing.assert_array_equal(found.index, searched.index)
    p = evaluate(model, table, features, tested, split="test", store=store).distributions
    np.testing.assert_array_equal(p, evaluate(model, table, features, tested, split="test").distributions)
    assert rows_of_pool(model, replace(table, name="other")) is None
    with pytest.raises(UsageError, match="belong to another table than the model's pool"):
        find_references(model, table.take(tested), features, tested, store=store)
