"""`fit`: the one door to learning. It learns, it is decided by its seed, and it never sees a test row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import made
from milnet import splits
from milnet.checkpoints import load_model, save_model
from milnet.errors import ArtifactError, NumericError, UsageError
from milnet.metrics import srcc
from milnet.recipe import SMALL, Recipe, load_recipe
from milnet.recipes import Model, fit
from milnet.samples import epoch_batches
from milnet.splits import Split
from milnet.training import best_epoch, stalled

SINGLE = Recipe(width=16, epochs=8, patience=4, batch=16, calibration_folds=2)
GRAPH = replace(SINGLE, name="published", model="graph", depth=2)


def split_of(table: made.Table) -> Split:
    return Split(table.rows_where("split", "train"), table.rows_where("split", "test"))


def state(model: Model) -> Mapping[str, Tensor]:
    return model.network.state_dict()


def equal(a: Model, b: Model) -> bool:
    x, y = state(a), state(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def predictions(model: Model, table: made.Table, features: made.FeatureSet, rows: np.ndarray) -> np.ndarray:
    references = model.find(features.semantic[rows], ids=[table.ids[row] for row in rows])
    return model.predict(features.nodes[rows], references)


@pytest.mark.parametrize("recipe", [SINGLE, GRAPH], ids=["single", "graph"])
def test_it_learns_what_is_there(recipe: Recipe) -> None:
    table = made.table(150)
    features, split = made.features(table), split_of(table)
    model = fit(replace(recipe, epochs=40, patience=20), table, features, split, 0)
    p = predictions(model, table, features, split.test)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert srcc(table.scores[split.test], p @ table.values) > 0.8
    assert len(model.pool) == len(split.train)
    assert set(model.seen) == {(f"made:{table.ids[row]}", features.pixels[row]) for row in split.train}


@pytest.mark.parametrize("recipe", [SINGLE, GRAPH], ids=["single", "graph"])
@pytest.mark.parametrize("group", [None, "theme"])
@pytest.mark.parametrize("refit", [True, False])
def test_no_leak_from_the_test_rows(recipe: Recipe, group: str | None, refit: bool) -> None:
    """Test votes and features that are NaN, or votes that are permuted: same weights, bit for bit."""
    recipe = replace(recipe, refit=refit)
    table = made.table()
    features = made.features(table)
    split = replace(split_of(table), group=group)
    if group:  # whole themes are tested
        inside = table.codes("theme") % 4 == 0
        split = Split(np.flatnonzero(~inside), np.flatnonzero(inside), group)
    honest = fit(recipe, table, features, split, 3, calibrate=True)

    votes = table.votes.copy()
    votes[split.test] = np.nan
    nodes = features.nodes.copy()
    nodes[split.test] = np.nan
    blind = replace(features, nodes=nodes, semantic=nodes[:, -8:])
    assert equal(honest, fit(recipe, replace(table, votes=votes), blind, split, 3))

    votes = table.votes.copy()
    votes[split.test] = votes[np.random.default_rng(0).permutation(split.test)]
    permuted = fit(recipe, replace(table, votes=votes), features, split, 3, calibrate=True)
    assert equal(honest, permuted)
    np.testing.assert_array_equal(honest.doubt.percentiles, permuted.doubt.percentiles)

    votes[split.train[0]] = votes[split.train[0]][::-1]  # and the test can fail: one training row does count
    assert not equal(honest, fit(recipe, replace(table, votes=votes), features, split, 3))


def test_one_seed_decides_all() -> None:
    table = made.table()
    features, split = made.features(table), split_of(table)
    first = fit(GRAPH, table, features, split, 1, calibrate=True)
    torch.manual_seed(99)
    np.random.default_rng(5).random()
    again = fit(GRAPH, table, features, split, 1, calibrate=True)
    assert equal(first, again)
    np.testing.assert_array_equal(first.doubt.percentiles, again.doubt.percentiles)
    assert not equal(first, fit(GRAPH, table, features, split, 2))


def test_validation_photos_are_out_of_the_pool_while_epochs_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from milnet import recipes

    pools: list[set[int]] = []
    original = recipes.RatedPool.of

    def spy(table: made.Table, features: made.FeatureSet, rows: np.ndarray, group: str | None = None) -> object:
        pools.append(set(rows.tolist()))
        return original(table, features, rows, group)

    monkeypatch.setattr(recipes.RatedPool, "of", staticmethod(spy))
    table = made.table()
    split = split_of(table)
    fit(GRAPH, table, made.features(table), split, 0)
    kept, validation = splits.carve(split.train, GRAPH.validation, 0)
    assert pools[0] == set(kept.tolist())
    assert not pools[0] & set(validation.tolist())
    assert pools[-1] == set(split.train.tolist())
    assert not any(pool & set(split.test.tolist()) for pool in pools)


def test_groups_act_when_asked() -> None:
    table = made.table()
    features = made.features(table)
    inside = table.codes("theme") % 3 == 0
    split = Split(np.flatnonzero(~inside), np.flatnonzero(inside), "theme")
    model = fit(GRAPH, table, features, split, 0)
    rows = split.train
    free = model.pool.find(features.semantic[rows], 4, ids=[table.ids[row] for row in rows])
    bound = model.find(
        features.semantic[rows], ids=[table.ids[r] for r in rows], groups=[table.columns["theme"][r] for r in rows]
    )
    assert bound is not None
    theme = table.codes("theme")
    same = lambda found: (theme[split.train][found.index] == theme[rows][:, None]).mean()  # noqa: E731
    assert same(free) > 0.5
    assert same(bound) == 0


def test_unreadable_photos_take_no_part() -> None:
    table = made.table()
    features, split = made.features(table), split_of(table)
    nodes, readable = features.nodes.copy(), features.readable.copy()
    nodes[split.train[:3]] = np.nan
    readable[split.train[:3]] = False
    model = fit(SINGLE, table, replace(features, nodes=nodes, semantic=nodes[:, -8:], readable=readable), split, 0)
    assert len(model.pool) == len(split.train) - 3
    smaller = fit(SINGLE, table, features, replace(split, train=split.train[3:]), 0)
    assert equal(model, smaller)


def test_without_refit_the_best_epoch_is_kept() -> None:
    table = made.table()
    features, split = made.features(table), split_of(table)
    recipe = replace(SINGLE, refit=False, learning_rate=0.05, epochs=12, patience=12)
    model = fit(recipe, table, features, split, 0)
    values = [line["emd2"] for line in model.history]
    assert model.epochs == int(np.argmin(values)) + 1
    _, validation = splits.carve(split.train, recipe.validation, 0)
    # the kept network measures on validation what the log says of its epoch
    from milnet.metrics import emd_rows

    p = model.predict(features.nodes[validation])
    assert emd_rows(table.distributions[validation], p, 2).mean() == pytest.approx(min(values), abs=1e-9)
    assert len(model.pool) == len(split.train)


def test_percentiles_come_from_out_of_fold_scores() -> None:
    table = made.table()
    model = fit(SINGLE, table, made.features(table), split_of(table), 0, calibrate=True)
    assert len(model.doubt.percentiles) == len(model.pool)
    ordered = model.doubt.percentiles
    assert model.doubt.percentile(np.array([-1.0, 99.0])).tolist() == [0.0, 100.0]
    middle = model.doubt.percentile(np.array([ordered[10]]))[0]
    assert middle == pytest.approx(100 * 10.5 / len(ordered))
    bare = fit(SINGLE, table, made.features(table), split_of(table), 0)
    assert np.isnan(bare.doubt.percentile(np.array([3.0]))).all()


@pytest.mark.parametrize("recipe", [SINGLE, GRAPH], ids=["single", "graph"])
def test_a_saved_model_predicts_the_same(recipe: Recipe, tmp_path: Path) -> None:
    table = made.table()
    features, split = made.features(table), split_of(table)
    model = fit(recipe, table, features, split, 0, calibrate=True)
    manifest = save_model(model, tmp_path / "model")
    loaded, again = load_model(tmp_path / "model")
    assert again.digest == manifest.digest
    np.testing.assert_allclose(
        predictions(loaded, table, features, split.test), predictions(model, table, features, split.test), atol=1e-6
    )
    assert loaded.seen == model.seen
    assert loaded.recipe == model.recipe
    np.testing.assert_array_equal(loaded.doubt.percentiles, model.doubt.percentiles)
    save_model(loaded, tmp_path / "copy")  # a second save of the same model has the same files
    assert load_model(tmp_path / "copy")[1].files == manifest.files

    weights = tmp_path / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="changed or damaged"):
        load_model(tmp_path / "model")


def test_a_diverging_training_is_an_error() -> None:
    table = made.table()
    features = made.features(table)
    nodes = features.nodes.astype(np.float32)
    nodes[table.rows_where("split", "train")[5]] = np.nan
    with pytest.raises(NumericError, match="the loss is nan: training diverged"):
        fit(SINGLE, table, replace(features, nodes=nodes), split_of(table), 0)


def test_recipes_are_resolved_by_size() -> None:
    small, large = Recipe().resolve(SMALL - 1), Recipe().resolve(SMALL)
    assert (small.refit, large.refit) == (True, False)
    assert (large.width, large.depth, large.learning_rate, large.batch, large.epochs) == (512, 6, 3e-4, 128, 10)
    assert Recipe(width=7).resolve(10).width == 7


def test_load_recipe(tmp_path: Path) -> None:
    assert load_recipe("published").model == "graph"
    changed = load_recipe(
        "single", ["width=64", "learning_rate=1e-2", "refit=false", "loss=adaptive_emd", "depth=none"]
    )
    assert (changed.width, changed.learning_rate, changed.refit, changed.loss) == (64, 0.01, False, "adaptive_emd")
    (tmp_path / "mine.toml").write_text('base = "published"\nwidth = 32\nadjacency = "fusion"\n')
    mine = load_recipe(str(tmp_path / "mine.toml"), ["width=16"])
    assert (mine.name, mine.model, mine.width, mine.adjacency) == ("mine", "graph", 16, "fusion")
    for name, settings, text in (
        ("votess", [], "unknown recipe 'votess': expected single, published, votes, reducer, milnet or a FILE.toml"),
        ("single", ["widht=3"], "a recipe has no field 'widht'"),
        ("single", ["width"], "expected field=value"),
        ("single", ["width=wide"], "width: expected int, got 'wide'"),
        ("single", ["width=-3"], "expected width > 0, got -3"),
        ("single", ["loss=l2"], "loss: expected emd, adaptive_emd"),
        ("single", ["refit=maybe"], "expected true or false, got 'maybe'"),
        ("single", ["learning_rate=nan"], "expected a finite number"),
        ("single", ["dropout=1"], "0 <= dropout < 1"),
        (str(tmp_path / "none.toml"), [], "cannot read the recipe"),
    ):
        with pytest.raises(UsageError, match=text):
            load_recipe(name, settings)


def test_the_order_of_an_epoch_is_a_pure_function() -> None:
    batches = epoch_batches(101, 32, 5, "refit", 3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(101))
    assert {len(batch) for batch in batches} == {25, 26}
    for other in ((101, 32, 6, "refit", 3), (101, 32, 5, "choose", 3), (101, 32, 5, "refit", 4)):
        assert not np.array_equal(np.concatenate(batches), np.concatenate(epoch_batches(*other)))
    assert np.array_equal(np.concatenate(batches), np.concatenate(epoch_batches(101, 32, 5, "refit", 3)))


def test_stopping() -> None:
    history = [{"emd2": value} for value in (5, 4, 3, 2, 3, 4, 5, 6)]
    assert best_epoch(history) == 4
    assert stalled(history, 4)
    assert not stalled(history, 5)
    assert not stalled(history, None)


def test_less_precision_is_for_the_steps_alone(tmp_path: Path) -> None:
    """What is measured and predicted is the network that is saved, in float32; then others may be trained."""
    table = made.table(100)
    features, rows = made.features(table), np.arange(100)
    split, quick = Split(rows[:70], rows[70:]), ["epochs=3", "patience=3", "width=16"]
    model = fit(load_recipe("single", [*quick, "precision=bf16"]), table, features, split, 0)
    plain = fit(load_recipe("single", quick), table, features, split, 0)
    save_model(model, tmp_path / "model")
    read, _ = load_model(tmp_path / "model")
    nodes = features.nodes[rows[70:]]
    np.testing.assert_array_equal(model.predict(nodes, None), read.predict(nodes, None))
    assert np.abs(model.predict(nodes, None) - plain.predict(nodes, None)).max() > 1e-5  # it did take other steps
    with pytest.raises(UsageError, match="precision=fp16: expected a GPU"):
        fit(load_recipe("single", [*quick, "precision=fp16"]), table, features, split, 0)
