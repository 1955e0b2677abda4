"""One extraction at several input sizes: the mean of the features that each size alone gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made
from milnet import extraction, preprocess
from milnet.annotations import Table, load_table
from milnet.backbones import load_backbone
from milnet.checkpoints import save_model
from milnet.cli.numbers import read_sizes
from milnet.errors import ArtifactError, UsageError
from milnet.evaluation import predict_rows, refuse_other_features
from milnet.extraction import Extractor, load_extractor
from milnet.features import Features, load_feature_set
from milnet.preprocess import Preprocess
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.scoring import Scorer
from milnet.splits import Split
from milnet.storing import extract
from test_cli import milnet

SIZES = (64, 96, 128)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit for bit: at one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def extractor(
    size: int | tuple[int, ...], name: str = "timm/test_resnet", kind: Any = "whole", batch: int = 4, workers: int = 0
) -> Extractor:
    how = Preprocess(size, kind, 32 if kind == "whole" else 1)
    return Extractor.build(load_backbone(name, "random:0"), how, batch=batch, workers=workers)


def rated(folder: Path, n: int = 18) -> Table:
    table = replace(made.table(n), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    return table


def features_of(paths: list[Path], by: Extractor) -> dict[Path, np.ndarray]:
    return {result.key: result.features for result in by.stream((path, path) for path in paths)}


# ---- the mean over the sizes -----------------------------------------------------------------------------------------


@made.needs_timm
@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("timm/test_resnet", "whole", SIZES),
        ("timm/test_resnet", "crop", (50, 75, 96)),
        ("timm/mobilenetv2_100", "whole", (96, 128)),
        ("resnet50", "whole", (64, 96)),
        ("mlsp", "crop", (96, 128)),
    ],
)
def test_the_mean_of_what_each_size_alone_gives(name: str, kind: Any, sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Bit for bit, summed by ascending size, however the user wrote them."""
    table = rated(tmp_path, 18 if name == "timm/test_resnet" else 5)
    paths = [table.image_path(i) for i in range(len(table))]
    alone = [features_of(paths, extractor(size, name, kind)) for size in sizes]
    together = extractor(sizes[::-1], name, kind)
    found = features_of(paths, together)
    assert found.keys() == set(paths)
    for path in paths:
        ones = [one[path] for one in alone]
        total = ones[0]
        for one in ones[1:]:
            total = total + one
        assert found[path].dtype == np.float32 and found[path].shape == (together.backbone.width,)
        np.testing.assert_array_equal(found[path], total / np.float32(len(sizes)))
        np.testing.assert_allclose(found[path], np.mean(ones, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6)
        assert all(np.abs(found[path] - one).max() > 1e-4 for one in ones)  # the mean is none of them


@made.needs_timm
@pytest.mark.parametrize("size", [96, (96,)])
def test_one_size_is_what_the_backbone_gives(size: Any, tmp_path: Path) -> None:
    """Bit for bit: no mean is taken."""
    table = rated(tmp_path, 4)
    paths = [table.image_path(i) for i in range(4)]
    by = extractor(size, kind="crop")
    found = features_of(paths, by)
    pixels = np.stack([by.preprocess(path)[0][0] for path in paths])
    with torch.inference_mode():
        expected = by.backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_array_equal(np.stack([found[path] for path in paths]), expected)


@made.needs_timm
def test_a_photo_s_features_depend_on_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on what waits: with no room for it every batch is short."""
    table = rated(tmp_path)
    paths = [table.image_path(i) for i in range(len(table))]
    whole = features_of(paths, extractor(SIZES))
    rng = np.random.default_rng(0)
    for workers, room in ((0, 1 << 29), (2, 1 << 29), (2, 0)):
        monkeypatch.setattr(extraction, "_WAITING", room)
        some = [paths[i] for i in rng.permutation(len(paths))[:11]]
        found = features_of(some, extractor(SIZES, workers=workers))
        assert found.keys() == set(some)
        for path in some:
            np.testing.assert_array_equal(found[path], whole[path])


@made.needs_timm
def test_a_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, opened = rated(tmp_path, 3), []
    true = preprocess.open_photo

    def counting(source: Any, **options: Any) -> Any:
        opened.append((source, options["draft_side"]))
        return true(source, **options)

    monkeypatch.setattr(preprocess, "open_photo", counting)
    by = extractor(SIZES)
    paths = [table.image_path(i) for i in range(3)]
    features_of(paths, replace(by, preprocess=replace(by.preprocess, draft=True)))
    assert opened == [(path, 800) for path in paths]  # drafts are good enough for technical measurements, too
    opened.clear()
    large = replace(by.preprocess, size=(64, 1024), draft=True)
    large.open(paths[0])
    assert opened == [(paths[0], 1024)]  # and for the largest size


# ---- which sizes -----------------------------------------------------------------------------------------------------


def test_a_set_of_sizes_has_one_form() -> None:
    assert Preprocess((448, 320)) == Preprocess((320, 448)) == Preprocess([448, 320])  # type: ignore[arg-type]
    assert Preprocess((448, 320)).size == Preprocess((448, 320)).sizes == (320, 448)
    assert Preprocess((448,)) == Preprocess(448)
    assert Preprocess(448).size == 448 and Preprocess(448).sizes == (448,)


@pytest.mark.parametrize(
    ("sizes", "kind", "text"),
    [
        ((), "whole", "expected size >= multiple"),
        ((16, 64), "whole", "expected size >= multiple >= 1 .* got size 16,64"),
        ((64, 96, 64), "whole", "--size 64,64,96: expected sizes that differ after rounding .* multiple of 32"),
        ((320, 330), "whole", "--size 320,330: expected sizes that differ"),
        ((320, 448), "original", "--size 320,448: with --fit original expected one size"),
    ],
)
def test_sizes_that_are_refused(sizes: tuple[int, ...], kind: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Preprocess(sizes, kind)


def test_sizes_of_a_crop_are_not_rounded() -> None:
    assert Preprocess((320, 330), "crop", 1).sizes == (320, 330)


def test_the_sizes_a_user_writes() -> None:
    assert read_sizes("320") == (320,) and read_sizes("448, 320") == (448, 320)
    for text in ("", "abc", "0", "320,,448", "320,", "-64", "64.5", "320;448", "320,0", "²"):
        with pytest.raises(UsageError, match=f"--size {text}: expected pixels, a whole number from 1 or several"):
            read_sizes(text)


@made.needs_timm
def test_networks_that_take_one_size() -> None:
    with pytest.raises(UsageError, match=r"vit_tiny_patch16_224 takes inputs of 224 pixels alone, got the sizes 192,2"):
        extractor((192, 224), "timm/vit_tiny_patch16_224", "crop")
    network = load_backbone("timm/test_resnet", "random:0")
    for attempt in (
        lambda: Extractor.build(network, Preprocess((64, 96)), pooling="area"),
        lambda: load_extractor(extractor((64, 96)).config, "random:0", pooling="area"),
    ):
        with pytest.raises(UsageError, match=r"wide maps .* are made at one size, got the sizes 64,96"):
            attempt()


# ---- what is stored, and what is made of it --------------------------------------------------------------------------


@made.needs_timm
def test_one_size_is_stored_as_ever() -> None:
    """Any further entry, or another form of one, would make old features and models others than new ones."""
    one = extractor(64)
    assert one.config == {
        "backbone": "timm/test_resnet",
        "weights": one.backbone.digest,
        "preprocess": {"size": 64, "fit": "whole", "multiple": 32, "crop_fraction": 0.875, "draft": False},
        "normalisation": one.backbone.normalisation,
        "ranges": {name: list(ends) for name, ends in one.backbone.ranges.items()},
    }
    assert extractor((64,)).config == one.config


@made.needs_timm
def test_extract_and_go_on(tmp_path: Path) -> None:
    table = rated(tmp_path)
    (tmp_path / "photos" / table.images[-1]).write_bytes(b"no photo")
    manifest = extract(table, tmp_path / "whole", extractor((96, 64), workers=2), weights="random:0")
    assert manifest.config["preprocess"]["size"] == [64, 96]
    assert json.loads(json.dumps(manifest.config)) == manifest.config == extractor((64, 96)).config
    assert manifest.counts == {"photos": 17, "unreadable": 1}
    of = Features(tmp_path / "whole", table)
    network = extractor((64, 96)).backbone
    assert of.width == of.values.shape[1] == network.width and np.isnan(of.values[-1]).all()
    assert of.ranges == network.ranges

    def dies(done: int, total: int, what: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(table, tmp_path / "f", extractor((64, 96)), weights="random:0", progress=dies, save_seconds=0)
    for other, text in (((64, 128), r"size: \[64, 96\] -> \[64, 128\]"), (64, r"size: \[64, 96\] -> 64")):
        with pytest.raises(ArtifactError, match=text):
            extract(table, tmp_path / "f", extractor(other), weights="random:0")  # type: ignore[arg-type]
    seen: list[int] = []
    resumed = extract(
        table, tmp_path / "f", extractor((96, 64)), weights="random:0", progress=lambda done, *_: seen.append(done)
    )
    assert seen[0] >= 4 and resumed.digest == manifest.digest


@made.needs_timm
def test_a_model_of_several_sizes_scores_photos(tmp_path: Path) -> None:
    """From the files as from the stored numbers, up to float16; a model of other sizes is refused."""
    table = rated(tmp_path, 60)
    extract(table, tmp_path / "data" / "features" / "f", extractor((64, 96)), weights="random:0")
    rows = np.arange(len(table))
    for nodes in ("f", "f:last"):
        features = load_feature_set(tmp_path / "data", table, semantic="f", nodes=nodes)
        recipe = Recipe(name="single", model="single", width=8, epochs=3, patience=3, batch=16, calibration_folds=2)
        model = fit(recipe, table, features, Split(rows, rows[:0]), 0)
        save_model(model, tmp_path / nodes)
        stored = predict_rows(model, table, features, rows) @ table.values
        scorer = Scorer.load(tmp_path / nodes)
        assert scorer.nodes is scorer.semantic and scorer.nodes.preprocess.size == (64, 96)
        assert features.nodes.shape[1] == np.diff(scorer.nodes.backbone.ranges["last" if ":" in nodes else "taps"])
        scores = [score.score for score in scorer.score([table.image_path(i) for i in rows])]
        np.testing.assert_allclose(scores, stored, atol=1e-3)
        assert np.std(scores) > 0.01
    extract(table, tmp_path / "other" / "features" / "f", extractor((64, 128)), weights="random:0")
    other = load_feature_set(tmp_path / "other", table, nodes="f:last")
    with pytest.raises(ArtifactError, match=r"size \[64, 96\]\), but these are f:last \(.*size \[64, 128\]\)"):
        refuse_other_features(model, other)


@made.needs_timm
def test_as_a_user_types_it(tmp_path: Path) -> None:
    made.votes_csv(tmp_path / "votes.csv", rated(tmp_path, 12))
    data = tmp_path / "data"
    milnet("import", "table", tmp_path / "votes.csv", "--images", tmp_path / "photos", "-o", data)
    network = ["--backbone", "timm/test_resnet", "--weights", "random:0"]
    done = json.loads(milnet("features", data, *network, "--size", "96,64", "--name", "both", "--json").stdout)
    table, _ = load_table(data)
    both = Features(data / "features" / "both", table)
    assert {name: tuple(ends) for name, ends in done["ranges"].items()} == both.ranges
    ones = []
    for size in ("64", "96"):
        milnet("features", data, *network, "--size", size, "--name", f"at{size}")
        ones.append(Features(data / "features" / f"at{size}", table))
        assert both.ranges == ones[-1].ranges and both.width == ones[-1].width
    mean = np.mean([one.values for one in ones], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.float64(both.values), mean, rtol=2e-3, atol=1e-6)  # all of them float16
    told = json.loads(milnet("info", data / "features" / "both", "--verify", "--json").stdout)
    assert told["config"]["preprocess"]["size"] == [64, 96]
    assert "'size': [64, 96]" in milnet("info", data / "features" / "both").stdout
    for options, text in (
        (["--size", "abc"], "--size abc: expected pixels"),
        (["--size", "0"], "--size 0: expected pixels"),
        (["--size", "320,,448"], "--size 320,,448: expected pixels"),
        (["--size", "64,64"], "expected sizes that differ"),
        (["--size", "128,192", "--fit", "original"], "with --fit original expected one size"),
        (["--size", "64,96", "--wide", "int8"], "are made at one size, got the sizes 64,96"),
    ):
        assert text in milnet("features", data, *network, *options, "--name", "x", code=2).stderr
    stream = ["reduce", data, "--features", "both", "--stream"]
    assert "are made at one size, got the sizes 64,96" in milnet(*stream, code=2).stderr
    assert not list((data / "features").glob("*x*")) and not list((data / "features").glob("*reduced*"))
