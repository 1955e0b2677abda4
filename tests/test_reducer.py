"""The reducer: against the published head written out with torch's own layers; its parts; in `fit` and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import made
from milnet.annotations import Table, load_table, save_table
from milnet.checkpoints import load_model, save_model
from milnet.errors import ArtifactError, LeakError, UsageError
from milnet.evaluation import crossvalidate, evaluate
from milnet.features import FeatureSet, PackedMaps, load_feature_set, pack_maps, photos_digest
from milnet.model.reducer import Reducer
from milnet.recipe import Recipe, load_recipe
from milnet.recipes import fit, load_reducer
from milnet.reduction import reduce_features
from milnet.splits import Split, find_folds
from milnet.training import Run, moments

SMALL = ["epochs=2", "batch=16", "width=8", "depth=1", "calibration_folds=2",
         "reducer.width=16", "reducer.epochs=2", "reducer.batch=16"]  # fmt: skip


def randomised(network: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return network.eval()


def written_out(network: Reducer, x: Tensor, published: bool) -> tuple[Tensor, Tensor]:
    """The head as its description says, on maps [B, D, 5, 5], with convolutions and pooling in the order it names."""
    state = network.state_dict()

    def norm(y: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(y, *parts, training=False)

    def conv(y: Tensor, name: str, padding: int = 0) -> Tensor:
        return functional.conv2d(y, state[f"{name}.weight"][:, :, None, None], state[f"{name}.bias"], padding=padding)

    first = norm(conv(x, "branch1.0"), "branch1.1").relu()
    second = norm(conv(x, "branch2.0"), "branch2.1").relu()
    sides = []
    for name, padding in (("branch2_row", (0, 1)), ("branch2_column", (1, 0))):
        weight, bias = state[f"{name}.convolve.weight"], state[f"{name}.convolve.bias"]
        sides.append(norm(functional.conv2d(second, weight, bias, padding=padding), f"{name}.norm.0").relu())
    if published:
        third = conv(functional.avg_pool2d(x, 3, 1), "branch3_linear", padding=1)
    else:
        third = conv(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "branch3_linear")
    third = norm(third, "branch3_norm.0").relu()
    reduced = torch.cat([first, *sides, third], 1).mean((2, 3))
    y = reduced
    for at in (0, 4):
        y = norm(y @ state[f"head.{at}.weight"].T + state[f"head.{at}.bias"], f"head.{at + 1}").relu()
    y = y @ state["head.8.weight"].T + state["head.8.bias"]
    return reduced, torch.log_softmax(norm(y, "head.9").relu() if published else y, 1)


@pytest.mark.parametrize("variant", ["milnet", "published"])
def test_against_the_head_written_out(variant: Any) -> None:
    network = randomised(Reducer(12, 5, width=16, variant=variant)).double()
    assert isinstance(network, Reducer)
    x = torch.randn(3, 12, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reduced, log_p = written_out(network, x, variant == "published")
    with torch.no_grad():
        torch.testing.assert_close(network.reduce(x.flatten(2).mT), reduced, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(network(x.flatten(2).mT), log_p, rtol=1e-6, atol=1e-9)
    assert reduced.shape == (3, 48) and network.outputs == 48


def test_sizes() -> None:
    """137,866,014 parameters as published; ours lacks the last batch norm, two numbers a value."""
    with torch.device("meta"):
        published, ours = Reducer(16928, 10, variant="published"), Reducer(16928, 10)
    assert sum(p.numel() for p in published.parameters()) == 137_866_014
    assert sum(p.numel() for p in ours.parameters()) == 137_866_014 - 20
    assert ours.outputs == 6144


def test_what_the_published_third_branch_loses() -> None:
    """Its 16 outer cells do not see the photo; ours all do."""
    for variant, blind in (("published", 16), ("milnet", 0)):
        network = randomised(Reducer(6, 4, width=8, variant=variant))  # type: ignore[arg-type]
        assert isinstance(network, Reducer)
        y = torch.randn(2, 25, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            cells = network.average(y) - network.average(y + 1)
        assert int((cells.abs().sum((0, 2)) < 1e-6).sum()) == blind


def test_a_photo_does_not_depend_on_its_batch() -> None:
    network = randomised(Reducer(6, 4, width=8))
    x = torch.randn(5, 25, 6)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-5, atol=1e-6)


# ---- maps on disk ----------------------------------------------------------------------------------------------------


def test_packed_maps_lose_half_a_step() -> None:
    maps = np.random.default_rng(0).gamma(1, 1, (7, 25, 33)).astype(np.float32)
    maps[:, :, 3] = 0.25  # a channel that does not vary
    maps[:, :, 4] = 0
    packed = PackedMaps(*pack_maps(maps))
    assert packed.shape == (7, 25, 33)
    some = packed[np.array([2, 5])]
    assert some.dtype == np.float16 and some.shape == (2, 25, 33)
    span = maps.max(1, keepdims=True) - maps.min(1, keepdims=True)
    # half a step, and the roundings of the scales and the result to float16
    allowed = span / 510 + 2e-3 * np.abs(maps).max(1, keepdims=True)
    assert (np.abs(some - maps[[2, 5]]) <= allowed[[2, 5]]).all()
    np.testing.assert_allclose(some[:, :, 3], 0.25, rtol=1e-3)
    assert (some[:, :, 4] == 0).all()


def test_moments_of_maps_are_over_photos_and_cells() -> None:
    maps = np.random.default_rng(0).normal(size=(9, 25, 4)).astype(np.float16)
    rows = np.array([0, 3, 4, 8])
    mean, deviation = moments(maps, rows)
    flat = maps[rows].astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(deviation, flat.std(0), rtol=0, atol=1e-6)


# ---- learning --------------------------------------------------------------------------------------------------------


def wide_features(table: Table, seed: int = 0, channels: int = 12) -> FeatureSet:
    """The made features, with maps that tell the score."""
    plain = made.features(table, seed)
    rng = np.random.default_rng([seed, 1])
    scores = table.scores if np.isfinite(table.votes).all() else np.zeros(len(table))
    maps = 0.5 * rng.normal(size=(len(table), 25, channels)) + scores[:, None, None] * rng.normal(size=channels)
    config = {**plain.config["nodes"], "name": "made:wide", "span": [0, channels], "digest": "m" * 64}
    return replace(plain, maps=maps.astype(np.float16), config={**plain.config, "maps": {**config, "pooling": "area"}})


def test_recipes_with_a_reducer() -> None:
    recipe = load_recipe("milnet", ["reducer.width=64", "width=32"])
    assert (recipe.model, recipe.width, recipe.reducer and recipe.reducer.width) == ("graph", 32, 64)
    large, small = recipe.resolve(200_000), load_recipe("milnet").resolve(500)
    assert large.reducer is not None and small.reducer is not None
    assert (large.reducer.learning_rate, large.reducer.batch, large.reducer.epochs) == (3e-5, 128, 10)
    assert load_recipe("reducer").resolve(200_000).width == 2048 and small.reducer.width == 512
    assert load_recipe("published", ["reducer=reducer"]).takes_maps
    assert load_recipe("milnet", ["reducer=none"]).reducer is None
    from dataclasses import asdict

    assert Recipe.of(asdict(large)) == large
    with pytest.raises(UsageError, match="expected reducer or none, got 'x'"):
        load_recipe("published", ["reducer=x"])
    with pytest.raises(UsageError, match="a recipe has no field 'wdth'"):
        load_recipe("milnet", ["reducer.wdth=4"])
    with pytest.raises(UsageError, match="expected reducer to be a recipe of model reducer"):
        load_recipe("reducer", ["reducer.width=4"])


def test_a_recipe_file_with_a_reducer(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "published"\nwidth = 8\n[reducer]\nwidth = 24\nvariant = "published"\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.reducer is not None and (recipe.reducer.width, recipe.reducer.variant) == (24, "published")


def test_test_votes_never_reach_the_reducer() -> None:
    table = made.table()
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    recipe = load_recipe("milnet", SMALL)
    features = wide_features(table)
    models = []
    for how in ("as they are", "missing", "permuted", "a training row changed"):
        votes = table.votes.copy()
        nodes, maps = np.array(features.nodes), np.array(features.maps)
        if how == "missing":
            votes[split.test], nodes[split.test], maps[split.test] = np.nan, np.nan, np.nan
        elif how == "permuted":
            votes[split.test] = np.random.default_rng(1).permuted(votes[split.test], axis=1)
        elif how != "as they are":
            votes[split.train[0]] = votes[split.train[0]][::-1] + 1
        changed = replace(features, nodes=nodes, maps=maps)
        models.append(fit(recipe, replace(table, votes=votes), changed, split, 0))
    states = [
        [*model.network.state_dict().values(), *model.reducer.state_dict().values()]  # type: ignore[union-attr]
        for model in models
    ]
    assert all(torch.equal(a, b) for other in states[1:3] for a, b in zip(states[0], other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[3], strict=True))


def test_maps_are_asked_for() -> None:
    table = made.table()
    split = Split(np.arange(60), np.arange(60, 90))
    for name in ("milnet", "reducer"):
        with pytest.raises(UsageError, match=r"learns from wide maps, and the features have none: .*--wide"):
            fit(load_recipe(name), table, made.features(table), split, 0)


def test_crossvalidated_saved_and_loaded(tmp_path: Path) -> None:
    table = made.table()
    features = wide_features(table)
    recipe = load_recipe("milnet", SMALL)
    predictions, lines = crossvalidate(recipe, table, features, find_folds(table, "fold"), [0])
    assert np.isfinite(predictions.distributions).all() and len(lines) == 3
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    model = fit(recipe, table, features, split, 0, calibrate=True)
    assert model.features.keys() == {"semantic", "maps"} and len(model.doubt.percentiles) == len(split.train)
    save_model(model, tmp_path / "model")
    again, _ = load_model(tmp_path / "model")
    assert again.reducer_recipe == model.reducer_recipe and again.reducer is not None
    assert again.reducer_history == model.reducer_history and len(again.reducer_history) == 2
    p, q = (evaluate(m, table, features, split.test, split="test").distributions for m in (model, again))
    np.testing.assert_array_equal(p, q)
    with pytest.raises(UsageError, match="learns from wide maps"):
        evaluate(again, table, made.features(table), split.test, split="test")


def test_a_killed_fit_goes_on(tmp_path: Path) -> None:
    """Each phase that is finished is read back: the same weights, and nothing is trained twice."""
    table = made.table()
    features, recipe = wide_features(table), load_recipe("milnet", SMALL)
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    whole = fit(recipe, table, features, split, 0, run=Run(tmp_path / "a", {}))
    stopped = Run(tmp_path / "b", {})
    calls = 0

    def stop(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += what == "refit-reducer"
        if calls == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, table, features, split, 0, run=stopped, progress=stop)
    assert {"choose-reducer", "choose"} <= Run(tmp_path / "b", {}).results.keys()
    resumed = fit(recipe, table, features, split, 0, run=Run(tmp_path / "b", {}))
    for a, b in ((whole.network, resumed.network), (whole.reducer, resumed.reducer)):
        assert a is not None and b is not None
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y)


# ---- milnet reduce ---------------------------------------------------------------------------------------------------


def data_folder(folder: Path, table: Table, features: FeatureSet) -> None:
    """A DATA folder with the made features, as an extraction would have left it."""
    from milnet.artifacts import FORMATS, Manifest, digest_file, write_array, write_lines, write_manifest

    save_table(table, folder, inputs={})
    place = folder / "features" / "made"
    place.mkdir(parents=True)
    maps = np.asarray(features.maps)
    write_array(place / "features.npy", features.nodes)
    write_array(place / "wide.npy", maps)
    write_lines(place / "pixels.txt", features.pixels)
    width = features.nodes.shape[1]
    config = {"backbone": "made", "weights": "w", "preprocess": {}, "normalisation": {},
              "ranges": {"taps": [0, width], "last": [width - 8, width]},
              "wide": {"pooling": "area", "cells": 5, "stored": "float16"}}  # fmt: skip
    files = {name: digest_file(place / name) for name in ("features.npy", "wide.npy", "pixels.txt")}
    manifest = Manifest("features", config, files, {"photos": photos_digest(table)}, format=FORMATS["features"])
    write_manifest(place, manifest)


def test_reduced_features_carry_their_network_and_what_it_has_seen(tmp_path: Path) -> None:
    table = made.table()
    data_folder(tmp_path / "data", table, wide_features(table))
    table, _ = load_table(tmp_path / "data")
    features = load_feature_set(tmp_path / "data", table)
    assert features.maps is not None and features.config["maps"]["pooling"] == "area"
    assert "wide" not in features.config["nodes"]["extraction"]
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    recipe = load_recipe("reducer", ["width=16", "epochs=2", "batch=16"])
    folder = tmp_path / "data" / "features" / "reduced"
    run = Run(tmp_path / "run", {})
    manifest, model = reduce_features(recipe, table, features, split, 0, folder, run=run)
    assert manifest.counts["seen"] == len(split.train)
    with pytest.raises(ArtifactError, match="exists already"):
        reduce_features(recipe, table, features, split, 0, folder, run=run)

    reduced = load_feature_set(tmp_path / "data", table, semantic="made", nodes="reduced")
    assert reduced.nodes.shape == (90, 48) and reduced.maps is None and reduced.reducer == folder
    network, _, history = load_reducer(folder)
    assert len(history) == 2 and history[0]["epoch"] == 1
    with torch.inference_mode():
        expected = network.reduce(torch.from_numpy(np.array(features.maps[:5])))
    np.testing.assert_allclose(reduced.nodes[:5], expected, rtol=1e-3, atol=1e-3)

    graph = load_recipe("published", ["width=8", "depth=1", "epochs=2", "batch=16"])
    fitted = fit(graph, table, reduced, split, 0)
    assert fitted.reducer is not None and set(fitted.seen) == set(model.seen)
    evaluate(fitted, table, reduced, split.test, split="test")
    # trained on other photos than the reducer, which has seen what is now the test: refused
    other = Split(split.test, split.train[:20])
    contaminated = fit(graph, table, reduced, other, 0)
    assert len(contaminated.seen) == len(table)
    with pytest.raises(LeakError, match="were seen in training"):
        evaluate(contaminated, table, reduced, other.test, split="test")
    with pytest.raises(LeakError, match="were seen in training"):
        crossvalidate(graph, table, reduced, find_folds(table, "fold"), [0])


def test_reducing_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milnet.reduction._BLOCK", 16)
    table = made.table()
    data_folder(tmp_path / "data", table, wide_features(table))
    features = load_feature_set(tmp_path / "data", table)
    split = Split(table.rows_where("split", "train"), table.rows_where("split", "test"))
    recipe = load_recipe("reducer", ["width=16", "epochs=2", "batch=16"])
    digests = []
    for name in ("whole", "stopped"):
        calls = 0

        def stop(done: int, total: int, what: str, name: str = name) -> None:
            nonlocal calls
            calls += what == "photos reduced"
            if name == "stopped" and calls == 3:
                raise KeyboardInterrupt

        folder = tmp_path / name
        arguments: Any = (recipe, table, features, split, 0, folder)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                reduce_features(*arguments, run=Run(tmp_path / f"{name}.run", {}), progress=stop)
            marks = np.load(tmp_path / f"{name}.run" / "reduced" / "marks.npy")
            assert marks.tolist() == [1, 1, 1, 0, 0, 0]
        manifest, _ = reduce_features(*arguments, run=Run(tmp_path / f"{name}.run", {}))
        digests.append(manifest.digest)
    assert digests[0] == digests[1]


def test_too_few_training_photos() -> None:
    table = made.table()
    with pytest.raises(UsageError, match="expected at least 2 training photos beside the set-aside ones, got 1 of 2"):
        fit(load_recipe("single"), table, made.features(table), Split(np.arange(2), np.arange(60, 90)), 0)


def test_a_checkpoint_beside_reduced_features_knows_what_their_reducer_saw(tmp_path: Path) -> None:
    from milnet.published import beside_pool, convert
    from test_published import random_state

    torch.save(random_state(), tmp_path / "net.pth")
    convert(tmp_path / "net.pth", tmp_path / "converted")
    table = made.table()
    plain = made.features(table)
    seen = (("made:photo003", ""),)
    features = replace(plain, nodes=plain.nodes[:, :6], seen=seen)
    model = beside_pool(tmp_path / "converted", table, features, np.arange(60))
    assert seen[0] in model.seen and len(model.seen) == 61


def test_a_recipe_that_is_no_reducer_is_refused(tmp_path: Path) -> None:
    table = made.table()
    with pytest.raises(UsageError, match="expected a recipe of model reducer, got single"):
        reduce_features(Recipe(), table, wide_features(table), Split(np.arange(60), np.arange(60, 90)), 0,
                        tmp_path / "x", run=Run(tmp_path / "run", {}))  # fmt: skip
