"""The benchmarks of extraction, of an epoch at AVA's size and of packed maps, tiny: they measure what they say."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@made.needs_timm
def test_extraction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extraction: Any = import_module("extraction")
    made.photo_folder(tmp_path, made.table(6))
    extraction.main([str(tmp_path), "--backbone", "timm/test_resnet", "--photos", "6", "--rounds", "1", "--wide"])
    assert "timm/test_resnet wide, batch 4: pipeline" in capsys.readouterr().out
    extractor = extraction.make("timm/test_resnet", wide=False)
    files = sorted(tmp_path.glob("*.png"))
    # what is timed alone are the batches that the pipeline makes: four shapes, one of them twice
    ready = extraction.batches(extractor, files)
    assert sorted(tuple(x.shape) for x in ready) == sorted({tuple(x.shape) for x in ready}) and len(ready) == 4
    by_hand = torch.cat([extractor.backbone(x) for x in ready])
    streamed = [r.features for r in extractor.stream(enumerate(files))]
    for features in streamed:
        assert (by_hand - torch.from_numpy(features)).abs().sum(1).min() < 1e-4


def test_an_epoch_at_avas_size_is_resumable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ava_size: Any = import_module("ava_size")
    epoch: Any = import_module("epoch")
    ava_size.main(["make", str(tmp_path / "data"), "--photos", "600"])
    capsys.readouterr()
    settings = ["--set", "width=8", "--set", "depth=1", "--set", "batch=32"]
    epoch.main([str(tmp_path / "data"), str(tmp_path / "run"), "--steps", "3", *settings])
    said = capsys.readouterr().out
    assert "96 photos, batches of 32 x (1 + 4) x" in said and "loading is" in said and "peak memory" in said
    assert not (tmp_path / "run").exists()


def test_packed_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_reducer import data_folder, wide_features

    packed: Any = import_module("packed_maps")
    table = made.table()
    data_folder(tmp_path / "data", table, wide_features(table))
    settings = ["--set", "width=16", "--set", "epochs=2", "--set", "batch=16"]
    packed.main([str(tmp_path / "data"), "--folds", "fold", *settings])
    lines = capsys.readouterr().out.splitlines()
    assert "space 58% of float16" in lines[1]
    moved = [float(line.partition("moved by ")[2].partition(" ")[0]) for line in lines[2:]]
    assert moved[0] == 0 and 0 <= moved[1] < 0.05 and np.isfinite(moved).all() and len(moved) == 3


def test_one_fold_is_that_of_the_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from milnet.evaluation import crossvalidate
    from milnet.metrics import srcc
    from milnet.recipe import load_recipe
    from milnet.splits import find_folds
    from test_reducer import data_folder, wide_features

    one_fold: Any = import_module("one_fold")
    table = made.table()
    features = wide_features(table)
    data_folder(tmp_path / "data", table, features)
    settings = ["width=8", "epochs=2", "batch=16"]
    options = ["--recipe", "single", "--folds", "fold", "--fold", "1", *(f"--set={x}" for x in settings)]
    one_fold.main([str(tmp_path / "data"), *options])
    predictions, _ = crossvalidate(load_recipe("single", settings), table, features, find_folds(table, "fold"), [0])
    at = predictions.fold == 1
    expected = srcc(table.scores[predictions.rows[at]], predictions.distributions[0][at] @ table.values)
    assert f"fold 1, 30 photos: SRCC {expected:.4f}" in capsys.readouterr().out


def test_paired_differences_are_those_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From two runs' files the same numbers come as from `crossvalidate --against` within one."""
    from test_cli import milnet
    from test_reducer import data_folder, wide_features

    paired: Any = import_module("paired")
    table = made.table()
    data_folder(tmp_path / "data", table, wide_features(table))
    options = ["--set", "width=8", "--set", "epochs=2", "--folds", "fold", "--seeds", 2]
    (tmp_path / "other.toml").write_text("width = 8\nepochs = 2\ndropout = 0.1\n")
    how = [tmp_path / "data", *options, "--against", tmp_path / "other.toml", "-o", tmp_path / "both.json"]
    said = milnet("crossvalidate", *how).stdout
    milnet(
        "crossvalidate", tmp_path / "data", "--recipe", tmp_path / "other.toml", *options[4:], "-o", tmp_path / "b.json"
    )
    paired.main([str(tmp_path / "data"), str(tmp_path / "both.json"), str(tmp_path / "b.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("both.json minus b.json, seeds 0, 1") and len(lines) == 4
    for line in lines[1:]:
        assert line in said


def test_resolutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The closed form of leave-one-group-out is what refitting without the group gives; test votes are not touched."""
    from test_reducer import data_folder, wide_features

    resolutions: Any = import_module("resolutions")
    rng = np.random.default_rng(0)
    x, targets, groups = rng.normal(size=(20, 3)), rng.normal(size=(20, 4)), np.arange(20) // 3
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(2))
    found = resolutions.leave_out(kernel, 0.1, targets, groups)
    for group in range(7):
        out, rest = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + 0.1 * np.eye(len(rest)), targets[rest])
        np.testing.assert_allclose(found[out], kernel[np.ix_(out, rest)] @ weights, rtol=1e-6, atol=1e-9)
    table = made.table(60)
    columns = {**table.columns, "fold_random": table.columns["fold"]}
    table = replace(table, columns=columns)
    data_folder(tmp_path / "data", table, wide_features(table))
    resolutions.main([str(tmp_path / "data"), "made", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("made, random folds: SRCC 0.") and lines[1].startswith("made, theme folds: SRCC")
    folds, none = np.arange(60) % 3, np.zeros((0, 2), np.int64)
    d = resolutions.squared_distances(rng.normal(size=(60, 5)))
    p = resolutions.crossvalidated(table, d, folds, np.arange(60), none)
    votes = table.votes.copy()
    votes[folds == 1] = votes[folds == 1][:, ::-1] + 3
    q = resolutions.crossvalidated(replace(table, votes=votes), d, folds, np.arange(60), none)
    np.testing.assert_array_equal(p[folds == 1], q[folds == 1])
    assert not np.array_equal(p[folds == 0], q[folds == 0])
