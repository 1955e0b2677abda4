"""The benchmark of doubt runs, goes on where it was, and counts right; the non-photos are what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

import made
from milnet.annotations import load_table, save_table

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def doubt(path: None) -> Any:
    return import_module("doubt")


def test_non_photos() -> None:
    non_photos = import_module("non_photos")
    found = non_photos.make(10)
    assert [name.partition("-")[0] for name in found] == [kind for kind in non_photos.KINDS for _ in range(2)]
    assert list(non_photos.KINDS) == ["noise", "flat", "text", "screenshot", "plot"]
    assert all(isinstance(x, Image.Image) and x.size == (500, 400) and x.mode == "RGB" for x in found.values())
    pixels = {name: x.tobytes() for name, x in found.items()}
    assert len(set(pixels.values())) == 10
    assert {name: x.tobytes() for name, x in non_photos.make(5).items()}.items() <= pixels.items()
    other = non_photos.make(10, seed=1)
    assert all(other[name].tobytes() != pixels[name] for name in found)
    with pytest.raises(ValueError, match="expected a multiple of 5"):
        non_photos.make(7)


def test_auroc(doubt: Any) -> None:
    rng = np.random.default_rng(0)
    lower, higher = rng.integers(0, 6, 40), rng.integers(2, 9, 30)
    expected = mannwhitneyu(higher, lower).statistic / (40 * 30)
    assert doubt.auroc(lower, higher) == pytest.approx(expected, abs=1e-12)
    assert doubt.auroc(np.arange(3), np.arange(5, 9)) == 1


def fold_of(rows: Any, scores: Any, half: Any) -> dict[str, Any]:
    n, four = len(rows), ("nearest", "nearest 4", "open", "likeness")
    near, wide = np.linspace(0.5, 0.9, n), np.linspace(1, 2, n)
    return {
        "rows": rows,
        "score": scores,
        "low": scores - half,
        "high": scores + half,
        "deviation": wide,
        "spread": wide - 0.1,
        "unlike": np.where(near < 0.51, 0.98, 0.5),
        "seconds": np.array(1.0),
        **dict.fromkeys(four, near),
        **{f"non-photo {name}": np.array([0.1, 0.2, 0.6, 0.7, 0.95]) for name in four},
        "kinds": np.array(["noise", "flat", "text", "screenshot", "plot"]),
        "non-photo unlike": np.array([1.0, 1.0, 0.5, 0.5, 0.0]),
        "non-photo low": np.ones(5),
        "non-photo high": np.full(5, 3.0),
    }


def test_what_is_counted(doubt: Any) -> None:
    table = made.table(60)
    rng = np.random.default_rng(0)
    error, half = rng.choice([-0.2, 0.2, 0.6], 60), rng.choice([0.1, 0.3, 0.7], 60)
    folds = [
        fold_of(rows, table.scores[rows] + error[rows], half[rows]) for rows in np.array_split(rng.permutation(60), 2)
    ]
    found = doubt.measure(table, folds)
    assert found["coverage"] == pytest.approx((np.abs(error) < half).mean())
    assert found["coverage, wide"] == pytest.approx((np.abs(error) < half)[np.argsort(half)[40:]].mean(), abs=0.3)
    assert found["half-width"] == pytest.approx(half.mean())
    assert 0.1 < found["constant half-width"] <= 0.6
    assert found["their ratio"] == pytest.approx(found["half-width"] / found["constant half-width"])
    assert found["spread before, bias"] - found["spread after, bias"] == pytest.approx(0.1)
    assert found["flagged, held-out"] == pytest.approx(1 / 30)
    assert found["flagged, all"] == pytest.approx(0.4)
    assert found["flagged, noise"] == 1 and found["flagged, plot"] == 0
    assert found["AUROC of nearest, noise"] == 1 and found["AUROC of nearest, plot"] == 0
    assert found["AUROC of open, noise"] == 0  # the other way round: open is high where nothing is alike
    assert found["non-photos, half-width"] == 1


@made.needs_timm
def test_the_whole(doubt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from milnet.backbones import load_backbone
    from milnet.extraction import Extractor
    from milnet.preprocess import Preprocess
    from milnet.storing import extract

    table = made.table(60)
    columns = {**table.columns, "fold_random": tuple(str(i % 5) for i in range(60))}
    columns["fold_theme"] = tuple(str(int(theme[1:]) % 5) for theme in table.columns["theme"])
    table = replace(table, image_root=tmp_path / "photos", columns=columns)
    made.photo_folder(tmp_path / "photos", table)
    save_table(table, tmp_path / "data", inputs={})
    extractor = Extractor.build(load_backbone("timm/test_resnet", "random:0"), Preprocess(size=64), workers=0)
    extract(table, tmp_path / "data" / "features" / "f", extractor, weights="random:0")
    out = tmp_path / "out"
    out.mkdir()
    doubt.extract(tmp_path / "data", out, "f", "random:0", 5)
    quick = ("epochs=1", "patience=1", "width=8", "calibration_folds=2")
    for kind in doubt.KINDS:
        for fold in range(5):
            doubt.train(tmp_path / "data", out, doubt.Cell("f", kind, 0, fold), "theme", quick)
    assert doubt.train(tmp_path / "data", out, doubt.Cell("f", "theme", 0, 2), "theme", quick) == "found"
    arguments = [
        str(tmp_path / "data"),
        "--features",
        "f",
        "--weights",
        "random:0",
        "--assignments",
        "0",
        "-o",
        str(out),
    ]
    doubt.main([*arguments, "--report"])
    told = capsys.readouterr().out
    assert "AUROC of likeness, screenshot" in told and "f, 1 assignments" in told
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["random"]["coverage"][0] <= 1
    with np.load(out / "f-theme-0-1.npz") as data:
        rows, score = data["rows"], data["score"]
        assert (load_table(tmp_path / "data")[0].codes("fold_theme")[rows] == 1).all()
        assert (data["low"] <= score).all() and (score <= data["high"]).all()
        assert len(data["non-photo unlike"]) == 5 and (data["open"] <= 1).all()
        assert ((data["likeness"] >= 0) & (data["likeness"] <= 1)).all()
