"""Photos -> numbers: the same photo gives the same features, whatever else is in the batch; bad photos are named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import made
from milnet.errors import ArtifactError, UsageError
from milnet.extraction import Extractor
from milnet.features import Features, load_feature_set, same_pixels, take_rows, torch_threads
from milnet.preprocess import Preprocess
from milnet.storing import extract

pytestmark = made.needs_timm


def extractor(batch: int = 4, workers: int = 0, size: int = 64, seed: int = 0) -> Extractor:
    from milnet.backbones import load_backbone

    return Extractor.build(
        load_backbone("timm/test_resnet", f"random:{seed}"), Preprocess(size=size), batch=batch, workers=workers
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    made.photo_folder(folder, made.table(30))
    return folder


def table_in(folder: Path) -> made.Table:
    return replace(made.table(30), image_root=folder)


def features_of(paths: list[Path], by: Extractor) -> dict[Path, np.ndarray]:
    return {result.key: result.features for result in by.stream((path, path) for path in paths)}


def test_a_photo_s_features_depend_on_nothing_else(photos: Path) -> None:
    paths = sorted(photos.iterdir())
    whole = features_of(paths, extractor())
    rng = np.random.default_rng(0)
    for workers in (0, 2):
        shuffled = [paths[i] for i in rng.permutation(len(paths))]
        some = features_of(shuffled[:13], extractor(workers=workers))
        for path, found in some.items():
            np.testing.assert_array_equal(found, whole[path])  # bit-equal at one batch size
    for batch in (1, 3, 16):
        for path, found in features_of(paths, extractor(batch=batch)).items():
            np.testing.assert_allclose(found, whole[path], rtol=1e-4, atol=1e-5)


def test_extract(photos: Path, tmp_path: Path) -> None:
    table = table_in(photos)
    seen: list[tuple[int, int]] = []
    manifest = extract(
        table,
        tmp_path / "f",
        extractor(),
        weights="random:0",
        progress=lambda done, total, what: seen.append((done, total)),
    )
    made_ = Features(tmp_path / "f", table)
    assert made_.values.dtype == np.float16
    assert made_.values.shape == (30, made_.width)
    assert manifest.counts == {"photos": 30, "unreadable": 0}
    assert seen[0] == (0, 30)
    assert seen[-1] == (30, 30)
    fresh = features_of([table.image_path(7)], extractor())[table.image_path(7)]
    np.testing.assert_array_equal(made_.values[7], fresh.astype(np.float16))
    again = extract(table, tmp_path / "g", extractor(workers=2), weights="random:0")
    assert again.digest == manifest.digest
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ArtifactError, match="exists already: choose another --name"):
        extract(table, tmp_path / "f", extractor(), weights="random:0")


def test_bad_photos_are_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    made.photo_folder(folder, made.table(30))
    (folder / "photo003.png").write_bytes((folder / "photo003.png").read_bytes()[:200])
    (folder / "photo005.png").write_text("no image")
    (folder / "photo007.png").unlink()
    (folder / "photo011.png").write_bytes((folder / "photo010.png").read_bytes())
    table = table_in(folder)
    table = replace(table, images=(*table.images[:9], "", *table.images[10:]))  # no file is known for photo009
    manifest = extract(table, tmp_path / "f", extractor(workers=2), weights="random:0")
    assert manifest.counts == {"photos": 26, "unreadable": 4}
    lines = (tmp_path / "f" / "errors.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", "photo003", "photo005", "photo007", "photo009"]
    made_ = Features(tmp_path / "f", table)
    bad = np.isin(np.arange(30), [3, 5, 7, 9])
    np.testing.assert_array_equal(made_.readable, ~bad)
    assert np.isnan(made_.values[bad]).all()
    assert np.isfinite(made_.values[~bad]).all()
    assert same_pixels(table, made_) == [("photo010", "photo011")]


def test_an_unfinished_extraction_of_other_options_is_refused(photos: Path, tmp_path: Path) -> None:
    table = table_in(photos)

    def dies(done: int, total: int, what: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(table, tmp_path / "f", extractor(), weights="random:0", progress=dies, save_seconds=0)
    with pytest.raises(ArtifactError, match="size: 64 -> 96"):
        extract(table, tmp_path / "f", extractor(size=96), weights="random:0")
    with pytest.raises(ArtifactError, match="weights: "):
        extract(table, tmp_path / "f", extractor(seed=1), weights="random:1")
    seen: list[int] = []
    extract(
        table, tmp_path / "f", extractor(), weights="random:0", progress=lambda done, total, what: seen.append(done)
    )
    assert seen[0] >= 4  # what was saved is not done again


def test_features_of_other_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    table = table_in(photos)
    extract(table, tmp_path / "f", extractor(), weights="random:0")
    with pytest.raises(ArtifactError, match=r"features of other photos than DATA \(made, 29 photos\)"):
        Features(tmp_path / "f", table.take(range(29)))
    voted = replace(table, votes=table.votes + 1)
    Features(tmp_path / "f", voted)  # other votes: the photos are the same


def test_choosing_features(photos: Path, tmp_path: Path) -> None:
    table = table_in(photos)
    with pytest.raises(UsageError, match="has no features yet: run `milnet features"):
        load_feature_set(tmp_path, table)
    extract(table, tmp_path / "features" / "a", extractor(), weights="random:0")
    one = load_feature_set(tmp_path, table)
    assert one.nodes.shape[1] > one.semantic.shape[1]
    np.testing.assert_array_equal(one.nodes[:, -one.semantic.shape[1] :], one.semantic)
    extract(table, tmp_path / "features" / "b", extractor(size=96), weights="random:0")
    with pytest.raises(UsageError, match=r"several extractions \(a, b\): choose one with --semantic"):
        load_feature_set(tmp_path, table)
    both = load_feature_set(tmp_path, table, semantic="a", nodes="b:last")
    assert both.config["nodes"]["name"] == "b:last"
    for wanted, text in (("c", "has no features 'c'"), ("a:first", "a has no range 'first'")):
        with pytest.raises(UsageError, match=text):
            load_feature_set(tmp_path, table, semantic=wanted, nodes="a")


def test_take_rows() -> None:
    array = np.arange(20, dtype=np.float16).reshape(10, 2)
    rows = np.array([7, 2, 2, 9])
    np.testing.assert_array_equal(take_rows(array, rows), array[rows].astype(np.float32))


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="import the labels again with --images DIR"):
        extract(replace(made.table(30), images=("",) * 30), tmp_path / "f", extractor(), weights="random:0")


@pytest.mark.parametrize(("size", "multiple"), [(16, 32), (0, 1)])
def test_preprocess_is_checked(size: int, multiple: int) -> None:
    with pytest.raises(UsageError, match="size >= multiple"):
        Preprocess(size=size, multiple=multiple)


def test_batches_that_pass_side_by_side(tmp_path: Path) -> None:
    """Several threads, each with a replica on the same weights: every photo has its own numbers, bit for bit."""
    by = extractor(batch=2, workers=2)
    photos = [(i, np.asarray(made.photo(i, *[(96, 72), (72, 96), (64, 64)][i % 3]))) for i in range(60)]
    alone = {r.key: r.features for group in by._batches(photos) for r in by.forward(group[1])}  # type: ignore[arg-type]
    with torch_threads(4):  # as on a machine with four cores
        for _ in range(3):
            found = {r.key: r.features for r in by.stream(photos)}
            assert sorted(found) == list(range(60))
            for key, features in found.items():
                np.testing.assert_allclose(features, alone[key], atol=1e-5)
        assert torch.get_num_threads() == 4
    replica = by.backbone.replica()
    assert replica is not by.backbone
    assert {p.data_ptr() for p in replica.parameters()} == {p.data_ptr() for p in by.backbone.parameters()}


def test_one_backbone_in_several_threads() -> None:
    """What reads the maps of one pass never reads those of another."""
    backbone = extractor().backbone
    inputs = [torch.full((1, 3, 64, 64), 3 * i, dtype=torch.uint8) for i in range(24)]
    expected = [backbone(x) for x in inputs]
    with ThreadPoolExecutor(4) as executor:
        for a, b in zip(executor.map(backbone, inputs * 3), expected * 3, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
