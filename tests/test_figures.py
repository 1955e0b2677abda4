"""Figures: what stands on a sheet and in figures.csv, whatever photos are called and wherever they are; files."""

from __future__ import annotations

import builtins
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import made
from milnet.annotations import Table, load_table, save_table
from milnet.checkpoints import load_model
from milnet.errors import MissingExtraError, UsageError
from milnet.features import FeatureSet, load_feature_set
from milnet.figures import (
    FORMATS,
    SHEETS,
    Sheet,
    ShownPhoto,
    ShownReference,
    check_folder,
    choose,
    draw_curves,
    draw_scatter,
    draw_sheet,
    load_pictures,
    make_sheets,
    require_matplotlib,
    shorten,
    write_figure,
    write_numbers,
)
from milnet.metrics import Task
from milnet.model.graph import Graph
from milnet.published import published_names
from milnet.recipe import RECIPES
from milnet.recipes import Model, fit
from milnet.results import Predictions
from milnet.splits import Split
from test_cli import BACKBONE, SMALL, milnet

matplotlib = pytest.importorskip("matplotlib")
NAMES = (
    "$x_1$ and $y^2$ \\frac{",
    "a_very_long_identifier_" + "0123456789" * 12,
    "写真のコンテスト受賞作品",
    "صورة جميلة",
    "tab\there\x07\u202e",
    "W" * 60,
    "<b>&amp;--></b>",
    "%s {0} #",
)
PICTURES = ("best.png", "worst.png", "disagreed.png", "scatter.png", "curves.png")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def texts(figure: Any) -> list[str]:
    """All that is written on a figure, without ticks."""
    return [text.get_text() for text in (*figure.texts, *(text for axes in figure.axes for text in axes.texts))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, DATA with features, a MODEL that consults references, its figures; 12 of 48 photos are tested."""
    if made.needs_timm.args[0]:
        pytest.skip("needs the extra timm")
    folder = tmp_path_factory.mktemp("figures")
    table = made.table(48)
    made.photo_folder(folder / "photos", table)
    made.votes_csv(folder / "votes.csv", table)
    milnet("import", "table", folder / "votes.csv", "--images", folder / "photos", "-o", folder / "data")
    milnet("features", folder / "data", *BACKBONE)
    milnet("train", folder / "data", "-o", folder / "model", *SMALL)
    return folder


@pytest.fixture(scope="module")
def drawn(place: Path) -> Path:
    """The figures of `place`, as the command makes them; what it said is in said.json."""
    shutil.copytree(place / "data", place / "looked")
    said = milnet("figures", place / "model", place / "looked", "-o", place / "figures", "--count", 3, "--json")
    (place / "said.json").write_text(said.stdout)
    return place / "figures"


def test_the_command_writes_all_figures(place: Path, drawn: Path) -> None:
    said = json.loads((place / "said.json").read_text())
    assert sorted(path.name for path in drawn.iterdir()) == sorted([*PICTURES, "figures.csv"])
    assert sorted(said["files"]) == sorted([*PICTURES, "figures.csv"])
    assert (said["photos"], said["looks"], said["not_shown"], said["files_unknown"]) == (12, 1, [], [])
    for name in PICTURES:
        with Image.open(drawn / name) as picture:
            picture.load()
            assert min(picture.size) > 500
            assert "Software" not in picture.info
    assert milnet("evaluate", place / "model", place / "looked").stdout.endswith("honest\n")  # the second look


def test_the_numbers_are_those_of_evaluate(place: Path, drawn: Path, tmp_path: Path) -> None:
    """figures.csv against predictions.csv and the votes, ranked and measured here in a few lines."""
    shutil.copytree(place / "data", tmp_path / "data")
    milnet("evaluate", place / "model", tmp_path / "data", "-o", tmp_path / "r.json")
    table, _ = load_table(place / "data")
    votes = dict(zip(table.ids, table.votes / table.votes.sum(1, keepdims=True), strict=True))
    guesses = {
        row["photo"]: np.array([float(row[f"p_{v:g}"]) for v in table.values])
        for row in rows_of(tmp_path / "r.predictions.csv")
    }
    emd = {id_: np.sqrt(np.mean(np.cumsum(p - votes[id_]) ** 2)) for id_, p in guesses.items()}
    spread = {id_: np.sqrt(votes[id_] @ table.values**2 - (votes[id_] @ table.values) ** 2) for id_ in guesses}
    ranked = {
        "best": sorted(guesses, key=lambda id_: emd[id_]),
        "worst": sorted(guesses, key=lambda id_: -emd[id_]),
        "disagreed": sorted(guesses, key=lambda id_: -spread[id_]),
    }
    rows = rows_of(drawn / "figures.csv")
    assert len(rows) == 9
    for name in SHEETS:
        own = [row for row in rows if row["sheet"] == name]
        assert [row["place"] for row in own] == ["1", "2", "3"]
        assert [row["photo"] for row in own] == ranked[name][:3]
    assert json.loads((place / "said.json").read_text())["sheets"] == {name: ranked[name][:3] for name in SHEETS}
    for row in rows:
        true, guess = votes[row["photo"]], guesses[row["photo"]]
        assert float(row["true_score"]) == pytest.approx(true @ table.values, abs=1e-12)
        assert float(row["predicted_score"]) == pytest.approx(guess @ table.values, abs=1e-6)
        assert float(row["emd2"]) == pytest.approx(emd[row["photo"]], abs=1e-6)
        assert float(row["true_spread"]) == pytest.approx(spread[row["photo"]], abs=1e-9)
        assert float(row["predicted_spread"]) > 0
        assert [float(row[f"true_{v:g}"]) for v in table.values] == pytest.approx(true.tolist())
        assert [float(row[f"p_{v:g}"]) for v in table.values] == pytest.approx(guess.tolist(), abs=1e-6)


def test_the_references_are_the_nearest_of_the_pool(place: Path, drawn: Path) -> None:
    table, _ = load_table(place / "data")
    semantic = np.asarray(load_feature_set(place / "data", table).semantic, np.float64)
    semantic /= np.linalg.norm(semantic, axis=1, keepdims=True)
    model, _ = load_model(place / "model")
    limit = model.pool.near_duplicate or 2
    pool = [row for row, split in enumerate(table.columns["split"]) if split == "train"]
    for row in rows_of(drawn / "figures.csv"):
        likeness = semantic[pool] @ semantic[table.ids.index(row["photo"])]
        order = [i for i in np.argsort(-likeness) if likeness[i] <= limit][: model.recipe.references]
        references = json.loads(row["references"])
        assert [one["id"] for one in references] == [table.ids[pool[i]] for i in order]
        assert [one["similarity"] for one in references] == pytest.approx(likeness[order].tolist(), abs=1e-5)
        for one in references:
            votes = table.votes[table.ids.index(one["id"])]
            assert one["votes"] == pytest.approx(votes.tolist())
            assert one["score"] == pytest.approx(votes @ table.values / votes.sum())


def test_figures_are_the_same_again_and_replace_only_their_own(place: Path, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "f")
    (tmp_path / "f" / "mine.txt").write_text("mine")
    (tmp_path / "f" / "worst.png").write_bytes(b"old")
    shutil.copytree(place / "data", tmp_path / "data")
    command = ["figures", place / "model", tmp_path / "data", "-o", tmp_path / "f", "--count", 3]
    refused = milnet(*command, code=2).stderr
    assert "exists and is not empty; choose another name, or pass --overwrite" in refused
    assert not (tmp_path / "data" / "looks.jsonl").exists()  # a refused command has not looked
    done = milnet(*command, "--overwrite")
    assert "this split has been looked at for the first time" in done.stdout
    assert f"published on 12 photos of {load_table(tmp_path / 'data')[0].name}, split test" in done.stdout
    assert done.stderr == ""
    for name in (*PICTURES, "figures.csv"):
        assert (tmp_path / "f" / name).read_bytes() == (drawn / name).read_bytes(), name
    assert (tmp_path / "f" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == sorted([*PICTURES, "figures.csv", "mine.txt"])
    assert "2 times: each look" in milnet(*command, "--overwrite").stdout


def test_missing_photos_leave_frames_empty(place: Path, drawn: Path, tmp_path: Path) -> None:
    rows = rows_of(drawn / "figures.csv")
    gone, broken = rows[0]["photo"], json.loads(rows[0]["references"])[0]["id"]
    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / f"{gone}.png").unlink()
    (tmp_path / "photos" / f"{broken}.png").write_text("no image")
    shutil.copytree(place / "data", tmp_path / "data")
    command = ["figures", place / "model", tmp_path / "data", "--count", 3]
    done = milnet(*command, "--images", tmp_path / "photos", "-o", tmp_path / "f")
    assert f"not shown: {tmp_path / 'photos' / gone}.png: does not exist" in done.stderr
    assert f"not shown: {tmp_path / 'photos' / broken}.png" in done.stderr
    assert "2 photos could not be shown; where are they? pass --images DIR" in done.stderr
    assert (tmp_path / "f" / "figures.csv").read_bytes() == (drawn / "figures.csv").read_bytes()
    assert (tmp_path / "f" / "best.png").read_bytes() != (drawn / "best.png").read_bytes()
    (tmp_path / "empty").mkdir()
    assert "photos could not be shown" in milnet(*command, "--images", tmp_path / "empty", "-o", tmp_path / "g").stderr
    refused = milnet(*command, "--images", tmp_path / "none", "-o", tmp_path / "h", code=2).stderr
    assert "there is no such folder" in refused
    assert not (tmp_path / "h").exists()


def test_labels_without_photos(place: Path, tmp_path: Path) -> None:
    """Votes and features are enough: the files of photos need not be known at all."""
    table, manifest = load_table(place / "data")
    table = replace(table, image_root=None)
    shutil.copytree(place / "data", tmp_path / "data")
    save_table(table, tmp_path / "data", inputs=manifest.inputs, overwrite=True)
    done = milnet("figures", place / "model", tmp_path / "data", "-o", tmp_path / "f", "--count", 1)
    assert "photos are not known; their frames on the sheets stay empty" in done.stderr
    assert (tmp_path / "f" / "best.png").exists()


def test_a_model_without_references(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    milnet("train", tmp_path / "data", "-o", tmp_path / "m", *SMALL, "--recipe", "single")
    milnet("figures", tmp_path / "m", tmp_path / "data", "-o", tmp_path / "f", "--format", "svg", "--count", 20)
    rows = rows_of(tmp_path / "f" / "figures.csv")
    assert len(rows) == 36  # there are but 12 test photos
    assert {row["references"] for row in rows} == {""}
    assert sorted(path.name for path in (tmp_path / "f").glob("*.svg")) == sorted(
        name.replace("png", "svg") for name in PICTURES
    )


def test_a_converted_checkpoint_has_no_curves(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    width = load_feature_set(place / "data", load_table(place / "data")[0]).nodes.shape[1]
    state = Graph(width, 5, width=4, depth=1).state_dict()
    torch.save({theirs: state[ours] for theirs, ours in published_names(1).items()}, tmp_path / "published.pth")
    milnet("convert", tmp_path / "published.pth", "-o", tmp_path / "m")
    done = milnet("figures", tmp_path / "m", tmp_path / "data", "-o", tmp_path / "f", "--format", "pdf", "--count", 1)
    assert "a leak cannot be checked" in done.stderr
    assert "no curves: the model keeps no history of its training" in done.stdout
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        *("best.pdf", "disagreed.pdf", "figures.csv", "scatter.pdf", "worst.pdf")
    ]
    assert json.loads(rows_of(tmp_path / "f" / "figures.csv")[0]["references"])


def test_seen_photos_are_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    command = ["figures", place / "model", tmp_path / "data", "-o", tmp_path / "f"]
    assert "were seen in training by the model" in milnet(*command, "--split", "train", code=2).stderr
    assert "were seen in training by the model" in milnet(*command, "--split", "all", code=2).stderr
    assert "no photo has split = 'x'; there are: test, train" in milnet(*command, "--split", "x", code=2).stderr
    assert "--format gif: expected png, pdf, svg" in milnet(*command, "--format", "gif", code=2).stderr
    assert "Invalid value for '--count'" in milnet(*command, "--count", 0, code=2).stderr
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "data" / "looks.jsonl").exists()


def test_a_folder_that_cannot_be_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "best.png").write_bytes(b"mine")
    for folder, text in (
        (tmp_path / "file", "expected a folder to make, but there is a file of that name"),
        (tmp_path / "file" / "f" / "g", f"{tmp_path / 'file'} is a file, so there can be no folder in it"),
        (tmp_path / "photos", "holds no figures of milnet (no figures.csv), so nothing in it is overwritten"),
    ):
        refused = milnet("figures", place / "model", place / "data", "-o", folder, "--overwrite", code=2).stderr
        assert text in refused
    (tmp_path / "photos" / "figures.csv").write_bytes(b"\xff\xfe my own figures\n")
    with pytest.raises(UsageError, match="holds no figures of milnet"):
        check_folder(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "best.png").read_bytes() == b"mine"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"nothing can be written to .*; choose another place"):
        check_folder(tmp_path / "new")
    monkeypatch.undo()
    check_folder(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()


def test_without_matplotlib(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_matplotlib(name: str, *arguments: Any, **settings: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    text = r"milnet figures needs the package 'matplotlib', which is not installed: pip install 'milnet\[plots\]'"
    for draw in (
        require_matplotlib,
        lambda: draw_sheet(sheet(), np.arange(1, 6.0), {}),
        lambda: draw_scatter(np.eye(5), np.eye(5), Task(np.arange(1, 6.0), 3, ">=")),
        lambda: draw_curves([{"epoch": 1.0, "loss": 0.1, "emd2": 0.1, "srcc": 0.5}], 1),
    ):
        with pytest.raises(MissingExtraError, match=text):
            draw()
    refused = milnet("figures", place / "model", place / "data", "-o", tmp_path / "f", code=2).stderr
    assert "pip install 'milnet[plots]'" in refused
    assert not (tmp_path / "f").exists()
    assert not (place / "data" / "looks.jsonl").exists()


# ---- the library -----------------------------------------------------------------------------------------------------


def fitted(recipe: str = "published", n: int = 60) -> tuple[Model, Table, FeatureSet, Predictions]:
    """A small model and predictions that are drawn at random: what is chosen must not depend on a network."""
    table = made.table(n)
    features = made.features(table)
    small = replace(RECIPES[recipe], width=4, depth=1, epochs=1, batch=16, refit=False)
    train, test = table.rows_where("split", "train"), table.rows_where("split", "test")
    model = fit(small, table, features, Split(train, test, None), 0)
    p = np.random.default_rng(1).dirichlet(np.ones(5), len(test))
    return model, table, features, Predictions(test, np.zeros(len(test), np.int64), ("test",), (0,), p[None])


def sheet(names: tuple[str, ...] = NAMES, references: int = 3, files: bool = False) -> Sheet:
    rng = np.random.default_rng(0)
    file = Path("nowhere.png") if files else None

    def reference(i: int) -> ShownReference:
        return ShownReference(names[i % len(names)], 0.9 - 0.1 * i, rng.poisson(9, 5) + 1.0, file)

    photos = [
        ShownPhoto(name, *rng.dirichlet(np.ones(5), 2), 0.1, tuple(reference(i + j) for j in range(references)), file)
        for i, name in enumerate(names)
    ]
    return Sheet("worst", tuple(photos), 100)


def test_ties_go_to_the_first_of_the_table() -> None:
    table = made.table(8)
    table = replace(table, votes=np.tile(table.votes[:1], (8, 1)))
    rows = np.array([6, 2, 4, 0])
    p = np.tile(np.full(5, 0.2), (4, 1))
    predictions = Predictions(rows, np.zeros(4, np.int64), ("test",), (0,), p[None])
    for places in choose(table, predictions, 3).values():
        assert rows[places].tolist() == [0, 2, 4]
    assert all(len(places) == 4 for places in choose(table, predictions, 99).values())
    with pytest.raises(UsageError, match="expected at least 1 photo a sheet, got 0"):
        choose(table, predictions, 0)


def test_files_of_references_are_those_of_the_model_s_own_table() -> None:
    model, table, features, predictions = fitted()
    table = replace(table, image_root=Path("photos"))
    sheets = make_sheets(model, table, features, predictions, 4)
    for reference in (one for s in sheets for photo in s.photos for one in photo.references or ()):
        assert reference.file == Path("photos") / f"{reference.id}.png"
    model.table_name = "another"  # the same ids there are other photos
    for s in make_sheets(model, table, features, predictions, 4):
        assert all(one.file is None for photo in s.photos for one in photo.references or ())
        assert all(photo.file == Path("photos") / f"{photo.id}.png" for photo in s.photos)


def test_a_single_model_s_sheet_says_that_nothing_was_consulted() -> None:
    model, table, features, predictions = fitted("single")
    (best, *_) = make_sheets(model, table, features, predictions, 2)
    assert [photo.references for photo in best.photos] == [None, None]
    figure = draw_sheet(best, table.values, {}, "single on made")
    assert any("the model consults no references" in text for text in texts(figure))
    assert len(figure.axes) == 4  # two photos, two charts


def test_what_stands_on_a_sheet() -> None:
    values = np.array([1, 1.5, 2, 2.5, 3])
    shown = sheet(("a", "b"), references=8, files=True)
    figure = draw_sheet(shown, values, {Path("nowhere.png"): Image.new("RGB", (40, 20))}, "published on made")
    written = texts(figure)
    photo = shown.photos[0]
    assert "the 6 nearest of 8 references, with their votes" in written
    assert "2 of 100 photos; published on made" in written
    score = photo.true @ values
    spread = np.sqrt(photo.true @ values**2 - score**2)
    assert f"votes: score {score:.2f}, spread {spread:.2f}" in written
    assert f"predicted: score {photo.predicted @ values:.2f}" in " ".join(written)
    charts = [axes for axes in figure.axes if axes.patches]
    assert len(charts) == 2 * (1 + 6)
    assert [label.get_text() for label in charts[0].get_xticklabels()] == ["1", "1.5", "2", "2.5", "3"]
    assert [bar.get_height() for bar in charts[0].patches] == photo.true.tolist()
    assert charts[0].lines[0].get_ydata().tolist() == photo.predicted.tolist()
    assert len({chart.get_ylim() for chart in charts[:7]}) == 1  # votes of a photo and its references compare by height
    first = next(one for one in photo.references or ())
    assert [bar.get_height() for bar in charts[1].patches] == (first.votes / first.votes.sum()).tolist()
    many = draw_sheet(sheet(("a",)), np.linspace(0, 100, 5), {})
    assert "file not known" in texts(many)
    assert "could not be read" in texts(draw_sheet(sheet(("a",), files=True), values, {}))


def test_strange_ids(tmp_path: Path) -> None:
    values = np.arange(1, 6.0)
    shown = sheet(references=1)
    for format_ in FORMATS:
        paths = [tmp_path / f"{n}.{format_}" for n in "ab"]
        for path in paths:
            write_figure(draw_sheet(shown, values, {}, "on $made$_x"), path)
        assert paths[0].read_bytes() == paths[1].read_bytes(), format_
    assert b"Date" not in (tmp_path / "a.pdf").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    figure = draw_sheet(shown, values, {}, "on $made$_x")
    assert NAMES[0] in texts(figure)
    names = [text for text in figure.texts if text.get_fontsize() == 9 and not text.get_text().isdigit()]
    assert len(names) == len(NAMES)
    assert max(text.get_window_extent().width for text in names) <= 2 * figure.dpi  # none runs into its chart
    write_numbers(tmp_path / "n.csv", [shown], values)
    assert [row["photo"] for row in rows_of(tmp_path / "n.csv")] == list(NAMES)
    assert [json.loads(row["references"])[0]["id"] for row in rows_of(tmp_path / "n.csv")] == list(NAMES)


def test_a_user_s_matplotlibrc_is_set_aside(tmp_path: Path) -> None:
    values = np.arange(1, 6.0)
    write_figure(draw_sheet(sheet(("a$b$",)), values, {}), tmp_path / "a.png")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.dpi": 10}):
        write_figure(draw_sheet(sheet(("a$b$",)), values, {}), tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("short", 5, "short"),
        ("abcdefghij", 5, "ab…ij"),
        ("abcdefghij", 6, "abc…ij"),
        ("写真写真写真", 12, "写真写真写真"),
        ("写真写真写真", 9, "写真…写真"),
        ("a\tb\u202ec", 9, "a\ufffdb\ufffdc"),
        ("", 3, ""),
    ],
)
def test_shorten(text: str, width: int, expected: str) -> None:
    assert shorten(text, width) == expected


@pytest.mark.parametrize("n", [1, 30, 2001])
def test_scatter(n: int, tmp_path: Path) -> None:
    values = np.arange(1, 6.0)
    true, predicted = np.random.default_rng(0).dirichlet(np.ones(5), (2, n))
    figure = draw_scatter(true, predicted, Task(values, 3, ">="), "on $made")
    write_figure(figure, tmp_path / "s.png")
    x, y = true @ values, predicted @ values
    title = figure.texts[0].get_text()
    assert f"MSE {((x - y) ** 2).mean():.3f}" in title
    if n > 1:
        assert f"PLCC {np.corrcoef(x, y)[0, 1]:.3f}" in title
        ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
        assert f"SRCC {ranks:.3f}" in title
    else:
        assert "SRCC none, PLCC none" in title
    assert f"accuracy {((x >= 3) == (y >= 3)).mean():.3f} (good: >= 3, dotted)" in texts(figure)
    assert len(figure.axes) == (2 if n > 2000 else 1)
    axes = figure.axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    assert len(axes.lines) == 3  # the diagonal and both lines of the threshold
    points = axes.collections[0]
    if n <= 2000:
        assert points.get_offsets().tolist() == np.stack([x, y], 1).tolist()
    else:
        assert points.get_array().sum() == n  # no photo is left out of the hexagons
    assert len(draw_scatter(true, predicted, Task(values, 0, ">=")).axes[0].lines) == 1


def test_curves(tmp_path: Path) -> None:
    history: list[dict[str, float | None]] = [
        {"epoch": i + 1.0, "loss": 1 / (i + 1), "rate": 1e-3, "emd2": 0.1 + 0.01 * abs(i - 4), "srcc": 0.1 * i}
        for i in range(8)
    ]
    history[0]["srcc"] = None  # the correlation of something constant
    figure = draw_curves(history, 5, "on $made")
    write_figure(figure, tmp_path / "c.png")
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "validation EMD2", "validation SRCC"]
    for axes, name in zip(figure.axes, ("loss", "emd2", "srcc"), strict=True):
        curve, mark = axes.lines
        assert curve.get_xdata().tolist() == [line["epoch"] for line in history]
        wanted = [np.nan if line[name] is None else line[name] for line in history]
        assert np.array_equal(curve.get_ydata(), wanted, equal_nan=True)
        assert list(mark.get_xdata()) == [5, 5]
    assert "0.1000" in texts(figure)
    assert "learning curves, 5 of 8 epochs chosen" in texts(figure)
    draw_curves(history[:1], 1)
    with pytest.raises(UsageError, match="the model keeps no history of its training"):
        draw_curves([], 0)


def test_files_appear_whole(tmp_path: Path) -> None:
    figure = draw_scatter(np.eye(5), np.eye(5), Task(np.arange(1, 6.0), 3, ">="))
    with pytest.raises(UsageError, match=r"s.gif: expected a name ending in .png, .pdf, .svg"):
        write_figure(figure, tmp_path / "s.gif")
    figure.axes[0].set_title("$\\frac{$")  # cannot be drawn
    with pytest.raises(ValueError, match="frac"):
        write_figure(figure, tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_upright_and_small(tmp_path: Path) -> None:
    made.photo(0, 600, 300).save(tmp_path / "a.jpg", exif=_turned())
    made.photo(1, 30, 20).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_text("no image")
    files = [tmp_path / name for name in ("a.jpg", "b.png", "c.jpg", "d.jpg")]
    pictures, failures = load_pictures(files, 100)
    assert {path.name: picture.size for path, picture in pictures.items()} == {"a.jpg": (50, 100), "b.png": (30, 20)}
    assert [Path(error.file).name for error in failures] == ["c.jpg", "d.jpg"]


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_real_photos(test_data: Path, place: Path, tmp_path: Path) -> None:
    """OASIS: photos as they come, an untrained backbone, every sheet filled."""
    source = test_data / "data" / "oasis"
    lines = (source / "votes.csv").read_text().splitlines()
    head, rows = lines[0], lines[1::24]
    split = [f"{line},{'test' if i % 3 == 0 else 'train'}" for i, line in enumerate(rows)]
    (tmp_path / "votes.csv").write_text("\n".join([f"{head},split", *split]) + "\n")
    milnet("import", "table", tmp_path / "votes.csv", "--images", source / "images", "-o", tmp_path / "data")
    milnet("features", tmp_path / "data", *BACKBONE)
    milnet("train", tmp_path / "data", "-o", tmp_path / "m", *SMALL)
    done = milnet("figures", tmp_path / "m", tmp_path / "data", "-o", tmp_path / "f", "--count", 2)
    assert done.stderr == ""
    assert (tmp_path / "f" / "worst.png").stat().st_size > 100_000  # photos, not empty frames
