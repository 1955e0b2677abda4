"""Wide maps: stored, as bytes, made anew; photos at their own size; `milnet features --wide` and `milnet reduce`."""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made
from milnet.annotations import Table, load_table
from milnet.backbones import load_backbone
from milnet.errors import ImageError, UsageError
from milnet.extraction import Extractor, StreamedMaps, default_batch
from milnet.features import Features, load_feature_set
from milnet.images import original_size
from milnet.preprocess import Preprocess
from milnet.storing import extract, wide_bytes
from test_cli import milnet

pytestmark = made.needs_timm


def rated(folder: Path, n: int = 12) -> Table:
    """A few photos of several sizes; the last one is damaged."""
    table = replace(made.table(n), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    (folder / "photos" / table.images[-1]).write_bytes(b"no photo")
    return table


def extractor(fit: Any = "original", pooling: Any = "area", batch: int = 2) -> Extractor:
    network = load_backbone("timm/test_resnet", "random:0")
    how = Preprocess(size=200 if fit == "original" else 64, fit=fit, multiple=1 if fit == "original" else 32)
    return Extractor.build(network, how, batch=batch, workers=2, pooling=pooling)


def test_stored_packed_and_streamed_maps(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    table = rated(tmp_path)
    for form in ("float16", "int8"):
        extract(table, tmp_path / "features" / form, extractor(), weights="random:0", wide=form)  # type: ignore[arg-type]
    stored, packed = (Features(tmp_path / "features" / form, table) for form in ("float16", "int8"))
    assert stored.maps is not None and packed.maps is not None
    rows = np.array([0, 3, 4, 9])
    exact = np.asarray(stored.maps[rows])
    assert exact.shape == (4, 25, stored.width) and exact.dtype == np.float16
    streamed = StreamedMaps(table, extractor())
    assert streamed.shape == stored.maps.shape
    np.testing.assert_array_equal(streamed[rows], exact)  # the same numbers, whether stored or made anew
    span = exact.astype(np.float32).max(1, keepdims=True) - exact.astype(np.float32).min(1, keepdims=True)
    assert (np.abs(packed.maps[rows].astype(np.float32) - exact) <= span / 500 + 1e-3 * np.abs(exact).max()).all()
    np.testing.assert_allclose(exact.astype(np.float32).mean(1), stored.values[rows], rtol=5e-3, atol=2e-3)
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / "features" / form).glob("wide*.npy")) for form in ("float16", "int8")
    ]
    assert 0.55 < sizes[1] / sizes[0] < 0.6
    assert sizes[0] - 128 == wide_bytes(12, stored.width, "float16")
    assert not stored.readable[-1] and "photo011,/" in (stored.folder / "errors.csv").read_text()
    with pytest.raises(ImageError):
        streamed[np.array([11])]
    # the maps are no part of what the narrow features are
    assert stored.manifest.config["wide"] == {"pooling": "area", "cells": 5, "stored": "float16"}


def test_a_photos_maps_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    table = rated(tmp_path)
    paths = [table.image_path(row) for row in range(11)]
    one = {r.key: r for r in extractor().stream(enumerate(paths))}
    other = {r.key: r for r in extractor().stream([(i, paths[i]) for i in (7, 2, 10)])}
    for key, result in other.items():
        np.testing.assert_array_equal(result.maps, one[key].maps)
        np.testing.assert_array_equal(result.features, one[key].features)


def test_many_sizes_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of one size waits for others only while few bytes wait."""
    monkeypatch.setattr("milnet.extraction._WAITING", 3 * 96 * 72 * 3)
    sizes = [(96 + i, 96) for i in range(20)]
    photos = [(i, np.asarray(made.photo(i, *size))) for i, size in enumerate(sizes)]
    passes: list[int] = []
    whole = extractor(batch=4)
    forward = whole.forward
    monkeypatch.setattr(
        Extractor, "forward", lambda self, group, network=None: (passes.append(len(group)), forward(group, network))[1]
    )
    assert sorted(r.key for r in whole.stream(photos)) == list(range(20))
    assert len(passes) == 20  # each went alone, padded


def test_photos_of_one_size_follow_each_other(tmp_path: Path) -> None:
    table = rated(tmp_path, 16)
    whole = extractor()
    order = whole.by_size(list(range(16)), table.image_path)
    assert sorted(order) == list(range(16)) and order[-1] == 15  # the damaged one
    sizes = [tuple(np.array([(96, 72), (72, 96), (96, 96), (128, 64)][row % 4])) for row in order[:-1]]
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    assert changes == 3
    assert extractor("whole").by_size([3, 1, 2], table.image_path) == [3, 1, 2]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),  # its own size
        ((3000, 2000), (1024, 683)),
        ((500, 80), (600, 96)),  # the short side is at least 96
        ((96, 1024), (96, 1024)),
        ((40, 30), (128, 96)),
    ],
)
def test_original_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert original_size(*size, limit=1024) == expected


def test_a_strip_is_a_bad_photo_not_an_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a photo of 2000 x 20 is too narrow"):
        original_size(2000, 20, limit=1024)
    strip = np.zeros((20, 2000, 3), np.uint8)
    bad, good = sorted(extractor().stream([(0, strip), (1, np.asarray(made.photo(1)))]), key=lambda r: r.key)
    assert bad.error is not None and "too narrow" in bad.error.reason and good.features is not None


def test_sizes_below_what_photos_have_at_least() -> None:
    with pytest.raises(UsageError, match="--size 33: photos at their own size have at least 96 pixels a side"):
        Preprocess(size=33, fit="original", multiple=1)


def test_default_batches() -> None:
    found = [
        default_batch(Preprocess(size, fit), device)  # type: ignore[arg-type]
        for size, fit in ((320, "whole"), ((224, 704), "whole"), (1024, "original"))
        for device in ("cpu", "cuda")
    ]
    assert found == [4, 64, 1, 64, 1, 8]


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rated(tmp_path)
    monkeypatch.setattr("milnet.storing._free", lambda folder: 1000)
    with pytest.raises(UsageError, match=r"maps of 12 photos take .* GB more as float16, but .* int8, on another disk"):
        extract(table, tmp_path / "features" / "f", extractor(), weights="random:0", wide="float16")


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    table = made.table(40)
    made.photo_folder(folder / "photos", table)
    made.votes_csv(folder / "votes.csv", table)
    milnet(
        "import",
        "table",
        folder / "votes.csv",
        "--images",
        folder / "photos",
        "--group-columns",
        "theme",
        "-o",
        folder / "data",
    )
    options = ["--backbone", "timm/test_resnet", "--weights", "random:0", "--fit", "original", "--wide", "float16"]
    said = milnet("features", folder / "data", *options, "--name", "wide").stdout
    assert "40 photos x" in said
    return folder


SMALL = ["--set", "width=16", "--set", "epochs=2", "--set", "batch=16"]


def test_reduce_from_stored_and_from_streamed_maps(place: Path) -> None:
    torch.set_num_threads(1)
    said = milnet("reduce", place / "data", *SMALL, "--threads", 1).stdout
    assert "40 photos x 48, reducer of" in said
    assert "exists already" in milnet("reduce", place / "data", "--features", "wide", *SMALL, code=2).stderr
    options = ["--features", "wide", "--stream", "--name", "streamed", *SMALL, "--threads", 1]
    made_ = json.loads(milnet("reduce", place / "data", *options, "--json").stdout)
    assert made_["seen"] == 30 and made_["photos"] == 40
    table, _ = load_table(place / "data")
    stored, streamed = (Features(place / "data" / "features" / name, table) for name in ("wide-reduced", "streamed"))
    np.testing.assert_array_equal(stored.values, streamed.values)  # trained on the same numbers
    assert stored.seen == streamed.seen and len(stored.seen) == 30
    said = milnet("train", place / "data", "-o", place / "model", "--semantic", "wide", "--nodes", "wide-reduced",
                  "--set=width=8", "--set=depth=1", "--set=epochs=2", "--set=calibration_folds=2").stdout  # fmt: skip
    assert "published on 30 photos" in said
    scores = json.loads(milnet("score", place / "photos", "--model", place / "model", "--json").stdout)["scores"]
    assert len(scores) == 40
    # a model of one backbone, whose semantic features and maps come from one forward pass
    milnet("evaluate", place / "model", place / "data", "--semantic", "wide", "--nodes", "wide-reduced")


def test_a_resumed_reduction_of_other_maps_is_refused(place: Path, tmp_path: Path) -> None:
    """Pooling, and whether maps are stored or made anew, belong to the identity of the training."""
    from milnet.training import Run

    asked: list[dict[str, Any]] = []
    options = ["--features", "wide", "--name", "again", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "__init__", lambda self, folder, identity, **_: asked.append(dict(identity)) or _stop())
        for more in ([], ["--stream"], ["--stream", "--pooling", "adaptive"]):
            milnet("reduce", place / "data", *options, *more, code=2)
    assert [(one["streamed"], one["pooling"]) for one in asked] == [(False, "area"), (True, "area"), (True, "adaptive")]


def _stop() -> None:
    raise UsageError("that is all")


def test_the_recipe_milnet_learns_its_reducer_inside(place: Path, tmp_path: Path) -> None:
    settings = ["width=8", "depth=1", "epochs=2", "reducer.width=16", "reducer.epochs=2", "calibration_folds=2"]
    options = ["--recipe", "milnet", *(f"--set={x}" for x in settings), "--semantic", "wide", "--nodes", "wide"]
    assert "milnet on 30 photos" in milnet("train", place / "data", "-o", tmp_path / "model", *options).stdout
    milnet("evaluate", tmp_path / "model", place / "data", "--semantic", "wide", "--nodes", "wide")
    if importlib.util.find_spec("matplotlib") is not None:
        where = ["--semantic", "wide", "--nodes", "wide", "-o", tmp_path / "figures", "--count", 2]
        milnet("figures", tmp_path / "model", place / "data", *where)
        made_ = {path.name for path in (tmp_path / "figures").iterdir()}
        assert {"curves.png", "reducer_curves.png", "best.png", "figures.csv"} <= made_
    scores = json.loads(milnet("score", place / "photos", "--model", tmp_path / "model", "--json").stdout)["scores"]
    assert len(scores) == 40 and len(json.loads(scores[0]["references"])) == 4
    results = json.loads(
        milnet("crossvalidate", place / "data", *options, "--folds", "fold", "--seeds", 1, "--json").stdout
    )
    assert results["recipe"]["reducer"]["width"] == 16 and results["features"]["maps"]["pooling"] == "area"


def test_what_reduce_and_features_refuse(place: Path, tmp_path: Path) -> None:
    data = place / "data"
    for arguments, text in (
        (["reduce", data, "--features", "none"], "has no features 'none'"),
        (
            ["reduce", data, "--features", "wide", "--name", "x", "--recipe", "single"],
            "expected a recipe of model reducer",
        ),
        (
            ["reduce", data, "--features", "wide", "--name", "x", "--stream", "--pooling", "max"],
            "expected area or adaptive",
        ),
        (
            ["features", data, "--backbone", "timm/test_resnet", "--weights", "random:0", "--wide", "int4"],
            "expected float16",
        ),
        (
            ["features", data, "--backbone", "timm/test_resnet", "--weights", "random:0", "--pooling", "area"],
            "goes with --wide",
        ),
        (["features", data, "--backbone", "timm/test_resnet", "--preprocess", "tv"], "expected timm or published"),
        (["features", data], "expected either --backbone NAME or --published FOLDER"),
    ):
        assert text in milnet(*arguments, code=2).stderr


def test_features_without_maps_cannot_be_reduced(tmp_path: Path) -> None:
    table = made.table(12)
    made.photo_folder(tmp_path / "photos", table)
    made.votes_csv(tmp_path / "votes.csv", table)
    milnet("import", "table", tmp_path / "votes.csv", "--images", tmp_path / "photos", "-o", tmp_path / "data")
    options = ["--backbone", "timm/test_resnet", "--weights", "random:0", "--size", "64"]
    milnet("features", tmp_path / "data", *options)
    assert "extract them with --wide, or pass --stream" in milnet("reduce", tmp_path / "data", code=2).stderr
    published = ["--preprocess", "published", "--wide", "int8", "--name", "published"]
    milnet("features", tmp_path / "data", *options[:4], *published)
    table, _ = load_table(tmp_path / "data")
    config = Features(tmp_path / "data" / "features" / "published", table).manifest.config
    assert config["normalisation"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert config["preprocess"]["fit"] == "original"
    assert config["wide"] == {"pooling": "adaptive", "cells": 5, "stored": "int8"}
    features = load_feature_set(tmp_path / "data", table, semantic="published", nodes="published")
    assert features.maps is not None
