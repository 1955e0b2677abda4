"""A compact pool scores as the whole one does, everywhere a model is used; photos come and go, and an index follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import made
from milnet.artifacts import read_manifest
from milnet.checkpoints import load_model, save_model
from milnet.cli import app
from milnet.compact import PackedRows, compact
from milnet.errors import MilnetError, UsageError
from milnet.evaluation import predict_rows
from milnet.explanation import explain
from milnet.features import FeatureSet
from milnet.growing import add_to_pool, remove_from_pool
from milnet.index import Kind, build_index, choose
from milnet.model.compact import CompactGraph, CompactVotes
from milnet.recipe import load_recipe
from milnet.recipes import Model, doubt_of_votes, fit
from milnet.scoring import Score, Scorer
from milnet.splits import Split
from milnet.taste import fit_taste

QUICK = ("width=8", "depth=1", "epochs=4", "patience=2", "batch=32", "calibration_folds=2")
TABLE = made.table(160)
OLD, NEW, TEST = (np.arange(*ends) for ends in ((0, 100), (100, 120), (120, 160)))


def features() -> FeatureSet:
    """Nodes of 200 numbers, most of them of few directions, as real ones; the last 8 are the backbone's last layer."""
    features = made.features(TABLE)
    mixed = np.random.default_rng(5).normal(size=(16, 200 - 8)) / 4
    nodes = np.concatenate([features.nodes[:, :16].astype(float) @ mixed, features.nodes[:, -8:]], 1).astype(np.float16)
    part = {**features.config["nodes"], "span": [0, 200], "extraction": {"ranges": {"last": [192, 200]}}}
    semantic = {**features.config["semantic"], "span": [192, 200]}
    return replace(features, nodes=nodes, semantic=nodes[:, -8:], config={"nodes": part, "semantic": semantic})


FEATURES = features()
NAMES = ("published", "votes", "votes-few")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    found = {}
    for name in NAMES:
        recipe, _, few = name.partition("-")
        chosen = load_recipe(recipe, [*QUICK, *(["references=6"] if few else [])])
        found[name] = fit(chosen, TABLE, FEATURES, Split(OLD, TEST, None), 0, calibrate=True)
    return found


def predictions(model: Model) -> NDArray[np.float64]:
    return predict_rows(model, TABLE, FEATURES, TEST)


def scores(model: Model) -> list[Score]:
    scorer = Scorer(model, made.NoBackbone(), made.NoBackbone(), "digest")  # type: ignore[arg-type]  # no photo is seen
    return scorer.score_features(FEATURES.nodes[TEST], FEATURES.semantic[TEST].astype(np.float32), photos=["x"] * 40)


# ---- the same scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_stay(models: dict[str, Model], name: str, tmp_path: Path) -> None:
    """To the rounding of float16; with bytes for the semantic features another reference may be found."""
    model = models[name]
    smaller = compact(model)
    expected = predictions(model) @ TABLE.values
    assert isinstance(smaller.network, CompactGraph | CompactVotes)
    assert smaller.pool.nodes.shape[1] <= 32 and smaller.pool.nodes.dtype == np.float16
    save_model(smaller, tmp_path / "small")
    loaded, manifest = load_model(tmp_path / "small")
    assert manifest.format == 3 and manifest.config["compact"]["semantic"] == "float16"
    np.testing.assert_array_equal(predictions(loaded), predictions(smaller))
    np.testing.assert_allclose(predictions(loaded) @ TABLE.values, expected, rtol=0, atol=5e-3)
    assert np.abs(predictions(loaded) - predictions(model)).max() > 0  # it is another computation
    save_model(model, tmp_path / "whole")
    assert read_manifest(tmp_path / "whole").format == 2  # older versions read it
    size = {
        folder: sum(p.stat().st_size for p in (tmp_path / folder / "pool").iterdir()) for folder in ("whole", "small")
    }
    assert size["small"] < 0.7 * size["whole"]
    with_bytes = compact(model, semantic="int8")
    save_model(with_bytes, tmp_path / "bytes")
    again, _ = load_model(tmp_path / "bytes")
    assert isinstance(again.pool.semantic, PackedRows)
    np.testing.assert_array_equal(predictions(again), predictions(with_bytes))
    assert np.median(np.abs(predictions(again) @ TABLE.values - expected)) < 5e-3


@pytest.mark.parametrize("name", NAMES)
def test_explanations_stay(models: dict[str, Model], name: str) -> None:
    whole, small = (
        explain(m, FEATURES.nodes[TEST], m.find(FEATURES.semantic[TEST])) for m in (models[name], compact(models[name]))
    )
    for part in ("distribution", "base", "own", "influence", "remainder"):
        np.testing.assert_allclose(getattr(small, part), getattr(whole, part), rtol=0, atol=5e-3)
    a, b = scores(models[name]), scores(compact(models[name]))
    assert [round(x.score - y.score, 2) for x, y in zip(a, b, strict=True)] == [0] * 40
    assert all(x.percentile == pytest.approx(y.percentile, abs=1.5) for x, y in zip(a, b, strict=True))


def test_fewer_directions_lose(models: dict[str, Model]) -> None:
    expected = predictions(models["votes"])
    errors = [np.abs(predictions(compact(models["votes"], dims=dims)) - expected).max() for dims in (1, 4, 24)]
    assert errors[0] > errors[1] > errors[2]


def test_doubt_and_taste_over_a_compact_pool(models: dict[str, Model]) -> None:
    model, small = models["votes"], compact(models["votes"])
    a, b = model.doubt, doubt_of_votes(small)
    np.testing.assert_allclose(a.percentiles, b.percentiles, rtol=0, atol=0.01)
    how: Any = {"ids": [f"x{i}" for i in range(40)], "ratings": np.tile([1.0, 2, 4, 5], 10)}
    taste = [fit_taste(m, FEATURES.nodes[TEST], FEATURES.semantic[TEST], [""] * 40, **how) for m in (model, small)]
    found = [
        one.explain(FEATURES.nodes[OLD[:9]], FEATURES.semantic[OLD[:9]]).distribution @ one.values for one in taste
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.02)


def test_packed_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float16)
    rows[3] = 0
    packed = PackedRows.of(rows)
    largest = np.abs(rows.astype(np.float32)).max(1)
    assert (np.abs(packed[:] - rows).max(1) <= largest / 254 + 1e-6).all() and packed.shape == (50, 30)
    np.testing.assert_array_equal(packed[np.array([4, 2])], packed[:][[4, 2]])
    np.testing.assert_array_equal(PackedRows.of(packed[:]).codes, packed.codes)  # packed again, nothing is lost
    both = packed.taken(np.array([7, 1])).followed_by(rows[:3])
    np.testing.assert_array_equal(both.codes, packed.codes[[7, 1, 0, 1, 2]])


def test_what_cannot_be_compact(models: dict[str, Model]) -> None:
    small = compact(models["votes"])
    single = fit(load_recipe("single", list(QUICK)), TABLE, FEATURES, Split(OLD, TEST, None), 0)
    wide = fit(load_recipe("published", [*QUICK, "width=200"]), TABLE, FEATURES, Split(OLD, TEST, None), 0)
    for model, dims, text in (
        (small, None, "the pool of this model is compact already"),
        (single, None, "a model of the recipe single scores photos alone: its pool holds no nodes"),
        (wide, None, "the pool's nodes have 200 numbers and would keep 200: nothing would be smaller"),
        (models["published"], 8, "--dims is for models of the recipe votes"),
        (models["votes"], 900, "--dims 900: expected 1 to 208, as many as the points have numbers"),
    ):
        with pytest.raises(UsageError, match=text):
            compact(model, dims=dims)


# ---- photos come and go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["float16", "int8"])
def test_added_to_a_compact_pool(models: dict[str, Model], name: str, form: Any, tmp_path: Path) -> None:
    """As if the larger pool had been made compact."""
    small = compact(models[name], semantic=form)
    save_model(small, tmp_path / "small")
    larger, told = add_to_pool(load_model(tmp_path / "small")[0], TABLE, FEATURES, NEW)
    assert len(told.added) == 20 and larger.pool.nodes.shape == (120, small.pool.nodes.shape[1])
    other, _ = add_to_pool(models[name], TABLE, FEATURES, NEW)
    expected = predictions(other) @ TABLE.values
    found = predictions(larger) @ TABLE.values
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 if form == "float16" else 0.5)
    save_model(larger, tmp_path / "larger")
    np.testing.assert_array_equal(predictions(load_model(tmp_path / "larger")[0]), predictions(larger))


@pytest.mark.parametrize("name", NAMES)
def test_added_and_removed_again(models: dict[str, Model], name: str) -> None:
    model = models[name]
    larger, told = add_to_pool(model, TABLE, FEATURES, NEW)
    back, built = remove_from_pool(larger, told.added)
    assert back.pool.ids == model.pool.ids and not built
    np.testing.assert_allclose(predictions(back), predictions(model), rtol=0, atol=1e-6)
    assert set(told.added) <= {id_.partition(":")[2] for id_, _ in back.seen}  # what was seen stays seen
    if name == "published":
        assert back.doubt.stale
    else:
        np.testing.assert_allclose(back.doubt.percentiles, model.doubt.percentiles, rtol=0, atol=1e-6)
    without_first, _ = remove_from_pool(model, model.pool.ids[:1])
    eva = replace(TABLE, name="eva", source={"ids": TABLE.name})
    known = add_to_pool(without_first, eva, replace(FEATURES, pixels=("",) * 160), OLD[:4])[1]
    assert known.added == ("eva:photo000",) and len(known.known) == 3  # the ids are still known to be the same


def test_removal_is_really_without(models: dict[str, Model]) -> None:
    gone = models["votes-few"].pool.ids[::2]
    smaller, _ = remove_from_pool(models["votes-few"], gone)
    references = smaller.find(FEATURES.semantic[TEST])
    assert references is not None and references.index.max() < 50 and len(smaller.pool) == 50
    assert set(smaller.pool.ids).isdisjoint(gone)
    for ids, text in (
        (["nobody", "photo001"], r"1 of 2 ids are not in the pool: nobody; expected ids as pool/ids.txt has them"),
        (models["votes"].pool.ids[1:], "1 photos would be left of 100: the model needs at least 2"),
    ):
        with pytest.raises(UsageError, match=text):
            remove_from_pool(models["votes"], ids)
    with pytest.raises(UsageError, match="4 photos would be left of 100: the model needs at least 5"):
        remove_from_pool(models["published"], models["published"].pool.ids[4:])
    assert remove_from_pool(models["votes"], [])[0] is models["votes"]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_is_used_and_follows(models: dict[str, Model], kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    model = models["votes-few"]
    index = build_index(model.pool.semantic, model.pool.rows, choose(100, 8, kind=kind))
    indexed = replace(model, pool=replace(model.pool, index=index))
    save_model(indexed, tmp_path / "indexed")
    loaded, manifest = load_model(tmp_path / "indexed")
    assert manifest.config["index"]["kind"] == kind and manifest.format == 2
    assert loaded.pool.index is not None
    tolerance = 0 if kind == "flat" else 0.05
    for one in (loaded, indexed):
        np.testing.assert_allclose(predictions(one), predictions(model), rtol=0, atol=tolerance)
    larger, told = add_to_pool(loaded, TABLE, FEATURES, NEW)
    assert larger.pool.index is not None and len(larger.pool.index) == 120
    np.testing.assert_allclose(
        predictions(larger), predictions(add_to_pool(model, TABLE, FEATURES, NEW)[0]), rtol=0, atol=tolerance or 1e-6
    )
    back, built = remove_from_pool(larger, [*told.added, *model.pool.ids[:7]])
    assert built == (kind == "hnsw") and back.pool.index is not None and len(back.pool.index) == 93
    expected = remove_from_pool(model, model.pool.ids[:7])[0]
    np.testing.assert_allclose(predictions(back), predictions(expected), rtol=0, atol=tolerance or 1e-6)


# ---- the commands ----------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if isinstance(result.exception, MilnetError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands_on_the_shipped_model(tmp_path: Path) -> None:
    """The pocket model, made compact, indexed and smaller: each scores what the whole one scores."""
    pytest.importorskip("faiss")
    small = run("pool", "compact", "pocket", "-o", tmp_path / "small")
    assert small["bytes"] < small["bytes_before"] and small["pool"] == 677
    indexed = run("pool", "index", tmp_path / "small", "-o", tmp_path / "indexed", "--index", "faiss:flat")
    assert indexed["index"]["kind"] == "flat"
    plain = run("pool", "index", tmp_path / "indexed", "-o", tmp_path / "plain", "--index", "exact")
    assert plain["digest"] == small["digest"]
    ids = load_model(tmp_path / "small")[0].pool.ids[:3]
    (tmp_path / "ids.txt").write_text("\n".join(ids))  # without an end of the last line
    smaller = run("pool", "remove", tmp_path / "indexed", "-o", tmp_path / "smaller", "--ids", tmp_path / "ids.txt")
    assert (smaller["removed"], smaller["pool"], smaller["index_built"], smaller["stale"]) == (3, 674, False, False)
    photo = tmp_path / "photo.png"
    made.photo(3, 320, 240).save(photo)
    found = [Scorer.load(model).score([photo])[0] for model in ("pocket", tmp_path / "small", tmp_path / "indexed")]
    assert found[1].score == pytest.approx(found[0].score, abs=0.02)
    assert found[2].score == found[1].score and found[2].unlike == found[1].unlike
    with pytest.raises(UsageError, match="--semantic bits: expected float16 or int8"):
        run("pool", "compact", "pocket", "-o", tmp_path / "x", "--semantic", "bits")
