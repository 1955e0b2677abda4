"""Exported models: the same scores as PyTorch's, photo by photo, whatever the batch and the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import made
from milnet.artifacts import read_json, read_manifest, verify_files
from milnet.backbones import load_backbone
from milnet.checkpoints import save_model
from milnet.cli import app
from milnet.compact import compact
from milnet.errors import ArtifactError
from milnet.export import LEFT_OUT, export_model, run, solve, with_mean
from milnet.extraction import Extractor
from milnet.features import FeatureSet, load_feature_set
from milnet.model.votes import Votes
from milnet.model.votes import with_mean as bisected
from milnet.preprocess import Decoded, Preprocess, decode
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.runtime import ExportError, open_session
from milnet.scoring import Score, Scorer, Seen
from milnet.splits import Split
from milnet.storing import extract
from test_cli import milnet

pytest.importorskip("onnxruntime")
pytestmark = made.needs_timm
SMALL = Recipe(name="small", width=8, depth=1, epochs=2, patience=2, batch=16, calibration_folds=2)
RECIPES = {
    "single": SMALL,
    "published": replace(SMALL, model="graph"),
    "random": replace(SMALL, model="graph", adjacency="random"),
    "l2": replace(SMALL, model="graph", similarity="l2", references=2),
    "votes": replace(SMALL, model="votes"),
    "votes0": replace(SMALL, model="votes", references=0),
    "votes20": replace(SMALL, model="votes", references=20),
    "two": replace(SMALL, model="graph"),  # references by another backbone
    "compact": replace(SMALL, model="graph"),
    "compact votes": replace(SMALL, model="votes", references=20),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rated `photos`, and DATA with features of a small network at two sizes."""
    folder = tmp_path_factory.mktemp("export")
    table = replace(made.table(60), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    extractor = Extractor.build(load_backbone("timm/test_resnet", "random:0"), Preprocess(size=(64, 96)), workers=0)
    extract(table, folder / "data" / "features" / "f", extractor, weights="random:0")
    extractor = Extractor.build(
        load_backbone("timm/test_resnet", "random:1"), Preprocess(size=80, multiple=16), workers=0
    )
    extract(table, folder / "data" / "features" / "g", extractor, weights="random:1")
    return folder


def load(place: Path, name: str) -> Scorer:
    """A scorer of a model of that recipe."""
    folder = place / name
    if not folder.exists():
        table = replace(made.table(60), image_root=place / "photos")
        features = load_feature_set(place / "data", table, semantic="g" if name == "two" else "f", nodes="f")
        rows = np.arange(len(table))
        # of an untrained network all photos are alike: a limit that some pairs reach and most do not
        model = fit(RECIPES[name], table, features, Split(rows, rows[:0]), 0, calibrate=True)
        model.pool = replace(model.pool, near_duplicate=_limit(features))
        if isinstance(model.network, Votes):  # of such features it learns to ask nobody
            for setting, value in (("noise", 0.1), ("sharpness", 1.0), ("sampling", 0.5)):
                getattr(model.network, setting).fill_(value)
        save_model(compact(model) if name.startswith("compact") else model, folder)
    return Scorer.load(folder, workers=0)


def _limit(features: FeatureSet) -> float:
    x = np.asarray(features.semantic, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(np.quantile((x @ x.T)[np.triu_indices(len(x), 1)], 0.98))


Photo = list[Decoded]  # as each backbone takes it


def seen(scorer: Scorer, source: Any) -> Photo:
    """A photo as each backbone takes it; its pixels tell nobody that it is in the pool."""
    extractors = [scorer.nodes] if scorer.semantic is scorer.nodes else [scorer.nodes, scorer.semantic]
    return [decode(source, extractor.preprocess)._replace(pixels="") for extractor in extractors]


def judged(scorer: Scorer, photos: list[Photo]) -> list[Score]:
    """Scores as PyTorch makes them."""
    found = []
    for photo in photos:
        (nodes,) = scorer.nodes.forward([("", photo[0])])
        (semantic,) = scorer.semantic.forward([("", photo[-1])])
        one = scorer.seen(nodes, semantic)
        assert isinstance(one, Seen)
        found.append(one)
    return scorer.judge([str(i) for i in range(len(found))], found)


def agree(scorer: Scorer, scores: list[Score], found: dict[str, NDArray[Any]], tolerance: float = 1e-4) -> None:
    """What a file gives for photos is what PyTorch gives, distribution and score to `tolerance`."""
    for i, score in enumerate(scores):
        np.testing.assert_allclose(found["distribution"][i], score.distribution, atol=tolerance, rtol=0)
        assert found["score"][i] == pytest.approx(score.score, abs=tolerance)
        assert found["distribution"][i].sum() == pytest.approx(1, abs=1e-6)
        if "references" in found:
            there = found["references"][i] >= 0
            assert [scorer.pool.ids[row] for row in found["references"][i][there]] == [r.id for r in score.references]
            similarity = [r.similarity for r in score.references]
            np.testing.assert_allclose(found["similarity"][i][there], similarity, atol=1e-5)
        if "influence" in found:
            influence = [r.influence for r in score.references]
            np.testing.assert_allclose(found["influence"][i][there], influence, atol=tolerance)


def views(photos: list[Photo]) -> list[NDArray[np.uint8]]:
    """A batch at each size of each backbone."""
    of_each = [[view for decoded in photo for view in decoded.views] for photo in photos]
    return [np.stack(some) for some in zip(*of_each, strict=True)]


def check(scorer: Scorer, folder: Path, place: Path) -> None:
    """New photos and photos of the pool, of two sizes, alone and in a batch; a black one."""
    session = open_session(folder / "model.onnx", 1)
    of_pool = sorted((place / "photos").iterdir())[::12]
    wide = [made.photo(1000 + i, 160, 64) for i in range(3)]
    for sources in ([*of_pool, *(made.photo(900 + i) for i in range(3))], wide, [np.zeros((72, 96, 3), np.uint8)]):
        decoded = [seen(scorer, source) for source in sources]
        scores, together = judged(scorer, decoded), run(session, views(decoded))
        agree(scorer, scores, together)
        for i, one in enumerate(decoded):
            for name, found in run(session, views([one])).items():
                np.testing.assert_allclose(found[0], together[name][i], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name", ["published", *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name != "published")]
)
def test_an_exported_model_scores_as_pytorch_does(place: Path, tmp_path: Path, name: str) -> None:
    scorer = load(place, name)
    manifest, worst = export_model(scorer, tmp_path / "out")
    assert worst <= 1e-4
    verify_files(tmp_path / "out", manifest)
    check(scorer, tmp_path / "out", place)
    described = read_json(tmp_path / "out" / "model.json")
    assert described["model"] == scorer.digest
    two = ["nodes_64", "nodes_96", "semantic_80"]
    assert [one["name"] for one in described["inputs"]] == (two if name == "two" else ["photo_64", "photo_96"])
    nodes = described["preprocess"]["nodes" if name == "two" else "photo"]
    assert (nodes["weights"], nodes["sizes"]) == (scorer.nodes.backbone.digest, [64, 96])
    assert described["values"] == scorer.values.tolist()
    assert described["pool"]["ids"] == list(scorer.pool.ids)
    assert described["doubt"] == json.loads(json.dumps(scorer.doubt.to_json()))
    session = open_session(tmp_path / "out" / "model.onnx", 1)
    assert [one.name for one in session.get_outputs()] == list(described["outputs"])
    inside = json.loads(session.get_modelmeta().custom_metadata_map["milnet"])
    assert inside == {name: part for name, part in described.items() if name != "pool"}


def test_a_linear_system_by_products() -> None:
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.normal(size=(5, 64, 64)))
    matrix = a @ a.mT / 64 + 0.01 * torch.eye(64, dtype=torch.float64)
    right = torch.from_numpy(rng.normal(size=(5, 64)))
    condition = float((matrix.abs().sum(2).amax(1) * torch.linalg.inv(matrix).abs().sum(2).amax(1)).max())
    expected = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(solve(matrix, right, condition), expected, rtol=1e-8, atol=1e-8)
    assert float((solve(matrix, right, 2.0) - expected).abs().max()) > 1e-3  # too few steps for it


def test_shares_below_zero_as_the_bisection_mends_them() -> None:
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.normal(0.15, 0.3, (200, 7)))
    p = p / p.sum(1, keepdim=True)
    fine = torch.softmax(torch.from_numpy(rng.normal(size=(50, 7))), 1)
    both = torch.cat([p[(p.abs() < 5).all(1)], fine])
    torch.testing.assert_close(with_mean(both), bisected(both), rtol=0, atol=1e-8)
    assert torch.equal(with_mean(fine), fine)


def test_what_cannot_be_exported_says_what_can(place: Path, tmp_path: Path) -> None:
    scorer = load(place, "votes")
    scorer.model.recipe = replace(scorer.model.recipe, model="reducer")
    with pytest.raises(ExportError, match="a model that sees wide maps cannot be exported: models of the recipes"):
        export_model(scorer, tmp_path / "out")
    table = replace(made.table(60), image_root=place / "photos")
    rows = np.arange(len(table))
    recipe = replace(SMALL, model="graph", adjacency="transport")
    model = fit(
        recipe, table, load_feature_set(place / "data", table, semantic="f", nodes="f"), Split(rows, rows[:0]), 0
    )
    save_model(model, tmp_path / "transport")
    with pytest.raises(ExportError, match="adjacency transport needs eigenvalues, for which ONNX has no operator"):
        export_model(Scorer.load(tmp_path / "transport"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = milnet("export", tmp_path / "transport", "-o", tmp_path / "out", "--device", "cuda", code=2).stderr
    assert "--device cuda: a model is exported on the CPU" in told


def test_a_folder_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for extra in ([], ["--overwrite"]):
        result = CliRunner().invoke(app, ["export", "pocket", "-o", str(tmp_path / "mine"), *extra])
        assert isinstance(result.exception, ArtifactError)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.slow
def test_more_of_the_same_photo_than_are_left_out(place: Path, tmp_path: Path) -> None:
    """Beyond 16 the others take no part either; only their traces in the weights stay."""
    scorer = load(place, "votes")
    scorer.model.pool = replace(scorer.model.pool, near_duplicate=-1.0)  # everybody is the photo itself
    export_model(scorer, tmp_path / "out")
    assert len(scorer.pool) > LEFT_OUT
    decoded = [seen(scorer, made.photo(7))]
    found = run(open_session(tmp_path / "out" / "model.onnx", 1), views(decoded))
    assert (found["references"] == -1).all()
    (score,) = judged(scorer, decoded)
    np.testing.assert_allclose(found["distribution"][0], score.distribution, atol=1e-4)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`milnet export pocket`."""
    folder = tmp_path_factory.mktemp("pocket") / "out"
    result = CliRunner().invoke(app, ["export", "pocket", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert "a pool of 677 photos inside, opset 18" in result.output
    return folder


@pytest.mark.slow
def test_pocket_on_500_real_photos(test_data: Path, pocket: Path) -> None:
    assert read_manifest(pocket, "export").inputs == {"model": Scorer.load("pocket").digest}
    scorer = Scorer.load("pocket", workers=0, batch=1)
    session = open_session(pocket / "model.onnx", 1)
    rated = sorted((test_data / "data" / "oasis" / "images").iterdir())[::4]
    others = sorted((test_data / "data" / "photos").rglob("*.jpg"))[::7]
    paths = [*rated, *others][:500]
    assert len(paths) == 500
    for path in paths:
        decoded = [seen(scorer, path)]
        agree(scorer, scorer.score(path), run(session, views(decoded)))


@pytest.mark.slow
def test_standard_on_real_photos(test_data: Path, tmp_path: Path) -> None:
    weights = test_data / "weights" / "mobilenetv2_100.safetensors"
    scorer = Scorer.load("standard", weights=weights, workers=0, batch=1)
    export_model(scorer, tmp_path / "out")
    session = open_session(tmp_path / "out" / "model.onnx", 1)
    rated = sorted((test_data / "data" / "oasis" / "images").iterdir())[::80]
    for path in [*rated, *sorted((test_data / "data" / "photos").rglob("*.jpg"))[::300]]:
        decoded = [seen(scorer, path)]
        agree(scorer, scorer.score(path), run(session, views(decoded)))


@pytest.mark.slow
def test_the_example_needs_neither_milnet_nor_torch(test_data: Path, pocket: Path, tmp_path: Path) -> None:
    """It decodes by itself: what differs is said in it. Many of these have a colour profile, some are no JPEGs."""
    for name in ("milnet", "torch"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text("raise ImportError('not here')")
    paths = [*sorted((test_data / "data" / "oasis" / "images").iterdir())[::16]]
    paths += [test_data / "data" / "oasis" / "images" / "Monkey3.jpg", tmp_path / "turned.jpg"]
    exif = Image.Exif()
    exif[0x0112] = 6
    made.photo(1, 400, 300).save(tmp_path / "turned.jpg", exif=exif)
    example = Path(__file__).parents[1] / "examples" / "onnx_score.py"
    blocked = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}
    probe = subprocess.run([sys.executable, "-c", "import milnet"], env=blocked, capture_output=True, text=True)
    assert "not here" in probe.stderr
    command = [sys.executable, str(example), str(pocket), *map(str, paths)]
    printed = subprocess.run(command, env=blocked, capture_output=True, text=True, check=True).stdout
    found = [json.loads(line) for line in printed.splitlines()]
    scores = Scorer.load("pocket").score(paths)
    apart = [abs(one["score"] - score.score) for one, score in zip(found, scores, strict=True)]
    assert sorted(apart)[len(apart) // 2] < 1e-4
    assert max(apart) < 1e-3
    for one, score in zip(found, scores, strict=True):
        np.testing.assert_allclose(one["p"], score.distribution, atol=1e-3)
