"""What is shipped: whole, small, without pixels or paths, and found by its names; which model is the default."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import made
import milnet.places
from made import needs_timm
from milnet.annotations import load_table
from milnet.artifacts import digest_file, read_manifest, verify_files, write_manifest
from milnet.checkpoints import load_model, save_model
from milnet.errors import ArtifactError
from milnet.features import Features
from milnet.images import SUFFIXES
from milnet.places import BUNDLED, MODELS, bundled, find_data, find_model, looks_folder
from milnet.recipe import RECIPES
from milnet.recipes import fit
from milnet.scoring import Scorer
from milnet.shipped import best_model
from milnet.splits import Split
from test_cli import milnet as run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with nothing in it."""
    monkeypatch.setenv("MILNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A made picture: sky, sun and sea."""
    y, x = np.mgrid[0:240, 0:320]
    sky = np.stack([120 + y / 4, 160 + y / 6, 235 - y / 8], -1)
    sky[(x - 230) ** 2 + (y - 60) ** 2 < 900] = (255, 240, 180)
    sky[150:] = np.stack([20 + y / 9, 80 + y / 7, 130 + y / 8], -1)[150:]
    Image.fromarray(sky.astype(np.uint8)).save(tmp_path / "sea.png")
    return tmp_path / "sea.png"


def test_no_more_than_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 16e6


def test_no_pixels_and_no_paths() -> None:
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix.lower() in SUFFIXES]
    for path in files:
        if path.suffix in (".json", ".txt", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert not any(place in text for place in ('"/', ":\\\\", "home/", "tmp/")), path


def test_notice() -> None:
    text = " ".join(bundled("NOTICE").read_text(encoding="utf-8").split())
    for words in (
        "Kurdi",
        "Brielmann",
        "No licence text was found",
        "NOT covered by the Apache License",
        "may be removed",
    ):
        assert words in text


def test_whole() -> None:
    """Every file is as its manifest says, those that a model shares with the pool too."""
    for folder in (find_data("bundled"), *map(find_model, MODELS)):
        verify_files(folder, read_manifest(folder))
    table, _ = load_table(find_data("bundled"))
    assert len(table) == 677
    assert table.groups == ("theme",)
    assert {"fold_random", "fold_theme", "theme"} <= table.columns.keys()
    for name in ("pocket", "mobilenetv2_100"):
        features = Features(find_data("bundled") / "features" / name, table)
        verify_files(features.folder, features.manifest)
        assert features.values.dtype == np.float16
        assert features.readable.all()


def test_the_votes_are_the_published_ones(test_data: Path) -> None:
    import polars

    frame = polars.read_csv(test_data / "data" / "oasis" / "votes.csv")
    table, _ = load_table(find_data("bundled"))
    rows = {Path(name).stem: row for row, name in enumerate(frame["image"])}
    order = [
        rows[id_] if id_ in rows else rows[Path(image).name] for id_, image in zip(table.ids, table.images, strict=True)
    ]
    votes = frame.select([f"v{i}" for i in range(1, 8)]).to_numpy()[order]
    np.testing.assert_array_equal(table.votes, votes)
    assert [frame["theme"][row] for row in order] == list(table.column("theme"))


@pytest.mark.parametrize(("name", "least"), [("pocket", 0.58), ("standard", 0.80)])
def test_models(name: str, least: float) -> None:
    model, _ = load_model(find_model(name))
    table, _ = load_table(find_data("bundled"))
    assert model.pool.ids == table.ids
    np.testing.assert_allclose(model.pool.distributions, table.distributions, atol=1e-12)
    assert model.doubt.srcc is not None
    assert model.doubt.srcc > least
    features = Features(find_data("bundled") / "features" / MODELS[name], table)
    np.testing.assert_array_equal(model.pool.nodes, features.values)
    first, end = features.span("last")
    np.testing.assert_array_equal(model.pool.semantic, features.values[:, first:end])
    assert model.features["nodes"]["extraction"] == features.manifest.config


def test_a_shipped_model_can_be_saved_anew(tmp_path: Path) -> None:
    """A copy carries what the shipped one borrows, and is the same model."""
    model, manifest = load_model(find_model("pocket"))
    saved = save_model(model, tmp_path / "copy")
    assert saved.digest == manifest.digest
    assert (tmp_path / "copy" / "pool" / "nodes.npy").is_file()
    assert "borrowed" not in read_manifest(tmp_path / "copy").notes


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_data("bundled") == BUNDLED / "pool"
    assert find_data("other") == Path("other")
    assert find_model("pocket") == BUNDLED / "pocket"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()
    (tmp_path / "bundled").mkdir()
    assert find_model("pocket") == Path("pocket")  # a folder of that name is what the user means
    assert find_data("bundled") == Path("bundled")


def test_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bundled folder its names say so, and one's own data and models work as before."""
    monkeypatch.setattr(milnet.places, "BUNDLED", tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="its bundled data were removed"):
        Scorer.load("pocket")
    for command in (("score", "--model", "pocket", tmp_path), ("crossvalidate", "bundled"), ("explain", tmp_path)):
        Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
        assert "its bundled data were removed" in run(*command, code=2).stderr
    table = made.table(60)
    model = fit(RECIPES["votes"], table, made.features(table), Split(np.arange(60), np.arange(0), None), 0)
    save_model(model, tmp_path / "model")
    assert "model, format" in run("info", tmp_path / "model").stdout
    assert load_model(tmp_path / "model")[0].pool.ids == table.ids


def test_nothing_is_written_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A look at the shipped pool is noted with the user, whatever way its path goes."""
    (tmp_path / "link").symlink_to(BUNDLED / "pool")
    monkeypatch.chdir(BUNDLED)
    for way in (BUNDLED / "pool", Path("pool"), tmp_path / "link"):
        assert looks_folder(way) == home
    assert looks_folder(tmp_path) == tmp_path


def test_a_grown_shipped_model_stands_alone(tmp_path: Path) -> None:
    """`pool add pocket` makes a folder that needs nothing beside it."""
    done = run(
        "pool", "add", "pocket", "bundled", "--nodes", "pocket", "--semantic", "pocket", "-o", tmp_path / "larger"
    )
    assert "no new photo" in done.stdout
    shutil.move(tmp_path / "larger", tmp_path / "elsewhere")
    assert load_model(tmp_path / "elsewhere")[1].digest == read_manifest(find_model("pocket")).digest


def test_borrowing_is_for_what_is_shipped(tmp_path: Path) -> None:
    """A folder from elsewhere cannot send milnet to other places."""
    shutil.copytree(find_model("pocket"), tmp_path / "copy")
    with pytest.raises(ArtifactError, match=r"nodes.npy is missing"):
        load_model(tmp_path / "copy")


def test_score(photo: Path) -> None:
    """With nothing added, `pocket`: the first line says so, and how to get the better one."""
    assert best_model(pytest.fail) == "pocket"
    done = run("score", photo)
    first = done.stdout.splitlines()[0]
    srcc = load_model(find_model("pocket"))[0].doubt.srcc
    assert first.startswith("pocket: votes on 677 rated photos of oasis")
    assert f"cross-validated SRCC {srcc:.2f}" in first
    assert "`milnet weights add FILE`" in first
    found = json.loads(run("score", photo, "--json", "--stars", "1,2").stdout)
    score = found["scores"][0]
    assert 1 <= score["low"] <= score["score"] <= score["high"] <= 7
    assert score["stars"] == 1 + (score["percentile"] >= 1) + (score["percentile"] >= 2)
    assert abs(score["base"] + score["own"] + score["rest"] + sum(
        reference["influence"] for reference in json.loads(score["references"])
    ) - score["score"]) < 1e-4  # fmt: skip
    for wrong in ("5,a", "60,40", ""):
        assert "expected" in run("score", photo, "--stars", wrong, code=2).stderr
    explained = run("explain", photo).stdout
    assert explained.splitlines()[0] == first
    assert "★" in explained


def test_in_python(photo: Path) -> None:
    scorer = Scorer.load("pocket", stars=(50,))
    (score,) = scorer.score([photo])
    assert score.stars in (1, 2)
    assert score.percentile is not None
    assert score.stars == 1 + (score.percentile >= 50)


@needs_timm
def test_standard_is_the_default_once_its_weights_are_there(photo: Path, test_data: Path, home: Path) -> None:
    weights = test_data / "weights" / "mobilenetv2_100.safetensors"
    assert "milnet weights add" in run("score", photo, "--model", "standard", code=2).stderr
    run("weights", "add", weights)
    assert best_model(pytest.fail) == "standard"
    done = run("score", photo)
    assert done.stdout.startswith("standard: votes on 677 rated photos of oasis")
    assert "better model" not in done.stdout.splitlines()[0]
    (home / "weights" / "standard.json").unlink()  # half of it is lost: said, and pocket goes on
    again = run("score", photo)
    assert again.stdout.startswith("pocket: ")
    assert "the model standard cannot be used" in again.stderr


def test_crossvalidating_what_is_shipped() -> None:
    """The shipped pool is a data set by its name."""
    done = run(
        "crossvalidate", "bundled", "--nodes", "pocket", "--semantic", "pocket", "--folds", "fold_random",
        "--seeds", "1", "--recipe", "single", "--set", "epochs=2", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["photos"] == 677
    assert run("info", "bundled", "--verify").stdout


def test_a_folder_that_happens_to_lie_here_is_not_the_default(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("score", photo).stdout.startswith("pocket: votes on 677")


def test_no_home(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know can score all the same."""
    monkeypatch.delenv("MILNET_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    done = run("score", photo)
    assert done.stdout.startswith("pocket: ")
    assert "set MILNET_HOME" in done.stderr


def test_a_model_of_format_1_is_read(tmp_path: Path) -> None:
    """As it was written before: the semantic features in a file of their own, whatever columns they are."""
    copy = tmp_path / "old"
    model, _ = load_model(find_model("pocket"))
    save_model(model, copy)
    np.save(copy / "pool" / "semantic.npy", np.asarray(model.pool.semantic))
    new = read_manifest(copy)
    config = {key: value for key, value in new.config.items() if key != "semantic_columns"}
    files = {**new.files, "pool/semantic.npy": digest_file(copy / "pool" / "semantic.npy")}
    write_manifest(copy, replace(new, format=1, config=config, files=files))
    old, manifest = load_model(copy)
    assert manifest.format == 1
    np.testing.assert_array_equal(old.pool.semantic, model.pool.semantic)
    np.testing.assert_array_equal(old.pool.nodes, model.pool.nodes)
