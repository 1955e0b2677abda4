"""The report: one file that holds all it shows, with every text escaped and every sum right."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import made
from milnet.album import match_photos, places_file, remember
from milnet.images import open_photo
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.report import Figures, shown, signed, write_report
from milnet.scoring import Failure, Reference, Score, Scorer, ranked
from milnet.splits import Split
from milnet.version import __version__

VOID = {"meta", "img", "br"}
TABLE = made.table(90)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of the test's own."""
    monkeypatch.setenv("MILNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """Calibrated models of two recipes, one that asks nobody and one that asks its whole pool of 60."""
    quick = ["epochs=2", "width=8", "depth=1", "calibration_folds=2"]
    split = Split(np.arange(60), np.arange(60, 90))
    features = made.features(TABLE)
    nodes = {**features.config["nodes"], "extraction": {"ranges": {"last": [16, 24]}}}
    features = replace(features, config={**features.config, "nodes": nodes})
    return {
        name: fit(load_recipe(name, quick), TABLE, features, split, 0, calibrate=True) for name in ("single", "votes")
    }


def scorer(model: Model) -> Scorer:
    return Scorer(model, None, None, "d" * 64)  # type: ignore[arg-type]  # no photo goes through a backbone


def scored(of: Scorer, photos: Sequence[str]) -> list[Score]:
    features, rows = made.features(TABLE), np.arange(60, 60 + len(photos))
    return ranked(of.score_features(features.nodes[rows], features.semantic[rows].astype(np.float32), photos=photos))


class Page(HTMLParser):
    """What a file holds: elements with their attributes, and the texts; refuses tags that do not balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost tag, text
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open and self.open[-1] != "style":
            self.texts.append((self.open[-1], " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and all(a.get(n) == v for n, v in wanted.items())]


def written(path: Path, *arguments: Any, **options: Any) -> Page:
    """Write a report and read it."""
    write_report(path, *arguments, **{"introduction": "votes on 60 photos", **options})
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    assert not re.search(r"https?://|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "link", "object", "form", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/jpeg;base64,", "#")), target
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in page.elements:
        if attributes.get("aria-labelledby"):
            assert attributes["aria-labelledby"] in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers
    return page


def picture(address: str | None) -> Image.Image:
    assert address is not None
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))


@pytest.mark.parametrize("name", ["votes", "single"])
def test_what_it_shows(models: dict[str, Model], tmp_path: Path, name: str) -> None:
    photos = [str(tmp_path / f"p{i}.png") for i in range(4)]
    for i, photo in enumerate(photos):
        made.photo(i, 800, 500).save(photo)
    by = scorer(models[name])
    scores = scored(by, photos)
    page = written(tmp_path / "r.html", scores, [], scorer=by, introduction="Try `milnet x` <now>", command="milnet it")
    ordered = sorted(scores, key=lambda score: -score.score)
    assert [text for tag, text in page.texts if tag == "bdi" and text.endswith(".png")] == [
        Path(score.photo).name for score in ordered
    ]
    assert [attributes["alt"] for attributes in page.of("img")] == [f"The photo {Path(s.photo).name}" for s in ordered]
    for score, attributes in zip(ordered, page.of("img"), strict=True):
        with picture(attributes["src"]) as image:
            assert image.size == (360, 225) == (int(attributes["width"] or 0), int(attributes["height"] or 0))
            with Image.open(score.photo) as original:
                small = np.asarray(original.resize(image.size), float)
            assert np.abs(np.asarray(image, float) - small).mean() < 6  # this photo, not another
    assert [text for tag, text in page.texts if tag == "b"] == [f"{score.score:.2f}" for score in ordered]
    for score in ordered:
        assert score.stars is not None and score.percentile is not None and score.low is not None
        assert f"Percentile {score.percentile:.0f}: scores higher than" in page.text
        assert f"{score.low:.2f} to {score.high:.2f}" in page.text
    labels = [a["aria-label"] for a in page.of("p", class_="stars")]
    assert labels == [f"{score.stars} of 5 stars" for score in ordered]
    signs = [text for tag, text in page.texts if tag == "p" and set(text) <= {"\u2605", "\u2606"}]
    assert signs == ["\u2605" * (score.stars or 0) + "\u2606" * (5 - (score.stars or 0)) for score in ordered]
    assert ("code", "milnet x") in page.texts
    assert "Try milnet x <now>" in page.text
    for expected in (
        f"milnet {__version__}",
        "d" * 64,
        "milnet it",
        "on a scale of 1 to 5",
        "no judgement of a person",
    ):
        assert expected in page.text
    assert len(page.of("details")) == 4
    assert all("open" in details for details in page.of("details"))


def test_the_same_file_again(models: dict[str, Model], tmp_path: Path) -> None:
    """But for the date; and nothing is left beside it."""
    by = scorer(models["votes"])
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, scored(by, ["x", "y"]), [], scorer=by, introduction="")
    a, b = (re.sub(r"<time.*", "", (tmp_path / name).read_text()) for name in ("a.html", "b.html"))
    assert a == b
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_report_that_fails_leaves_the_old_one(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    (tmp_path / "r.html").write_text("old")
    broken = replace(scored(by, ["x"])[0], distribution=(1.0,))
    with pytest.raises(ValueError, match="zip"):
        write_report(tmp_path / "r.html", [broken], [], scorer=by, introduction="")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.html", "old")]


@pytest.mark.parametrize("name", ["votes", "single"])
def test_the_parts_give_the_score(models: dict[str, Model], tmp_path: Path, name: str) -> None:
    """As printed: base + own + references + rest = score, to the rounding of each; the bars have their signs."""
    by = scorer(models[name])
    scores = scored(by, [f"p{i}" for i in range(12)])
    write_report(tmp_path / "r.html", scores, [], scorer=by, introduction="")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    tables = re.findall(r'<table class="parts">.*?</table>', html, flags=re.DOTALL)
    assert len(tables) == 12
    for score, table in zip(sorted(scores, key=lambda s: (-s.score, s.photo)), tables, strict=True):
        numbers = [float(x.replace("\N{MINUS SIGN}", "-")) for x in re.findall(r'<td class="number">(.*?)</td>', table)]
        *parts, total = numbers
        assert abs(sum(parts) - total) <= 0.0005 * len(numbers) + 1e-9
        assert abs(total - score.score) <= 0.0005
        assert parts[0] == pytest.approx(score.base, abs=5e-4)
        assert parts[1] == pytest.approx(score.own, abs=5e-4)
        assert parts[2 : 2 + len(score.references)] == pytest.approx([r.influence for r in score.references], abs=5e-4)
        bars = re.findall(r'<rect class="(up|down)" x="(.*?)" y="1" width="(.*?)"', table)
        assert len(bars) == len(parts) - 1  # the base has none
        for part, (sign, x, width) in zip(parts[1:], bars, strict=True):
            assert part == 0 or sign == ("up" if part > 0 else "down")
            assert float(x) == (0 if sign == "up" else -float(width))
        lengths = np.array([float(width) for _, _, width in bars])
        assert lengths.max() == 48  # the largest part of each photo fills its side
        exact = np.abs([score.own, *(r.influence for r in score.references), score.rest])[: len(lengths)]
        np.testing.assert_allclose(lengths, 48 * exact / exact.max(), atol=0.06)
        for reference in score.references:
            row = table[table.index(f"<bdi>{reference.id}</bdi>") :].split("</tr>")[0]
            mean = float(np.dot(reference.votes, score.values) / sum(reference.votes))
            assert re.findall(r'<td class="likeness">(.*?)</td>', row) == [f"{mean:.2f}", f"{reference.similarity:.2f}"]
            heights = [float(h) for h in re.findall(r'<rect x=.*?height="(.*?)"', row)]
            np.testing.assert_allclose(heights, 28 * np.array(reference.votes) / max(reference.votes), atol=0.06)
    assert ("the rest of the pool (52 photos)" in html) == (name == "votes")
    assert ("Likeness" in html) == (name == "votes")


def test_the_chart(models: dict[str, Model], tmp_path: Path) -> None:
    """Five bars 72 units apart; the score and its interval lie on the axis of the values."""
    by = scorer(models["votes"])
    score = replace(scored(by, ["p"])[0], distribution=(0.0, 0.1, 0.2, 0.3, 0.4), score=4.0, low=3.5, high=4.25)
    page = written(tmp_path / "r.html", [score], [], scorer=by)
    bars = page.of("rect", class_="bar")
    assert [float(bar["height"] or 0) for bar in bars] == [0, 23, 46, 69, 92]
    assert np.diff([float(bar["x"] or 0) for bar in bars]) == pytest.approx([72] * 4, abs=0.11)
    values = page.of("text", class_="value")
    places = dict(zip((1, 2, 3, 4, 5), [float(text["x"] or 0) for text in values], strict=True))
    assert float(page.of("circle")[0]["cx"] or 0) == places[4]
    band = page.of("rect", class_="band")[0]
    left, width = float(band["x"] or 0), float(band["width"] or 0)
    assert left == pytest.approx((places[3] + places[4]) / 2)
    assert left + width == pytest.approx(places[4] + 0.25 * 72)
    assert page.of("svg", class_="chart")[0]["aria-label"] == (
        "Predicted votes by value: 1: 0 %, 2: 10 %, 3: 20 %, 4: 30 %, 5: 40 %"
    )


HOSTILE = (
    '<script>alert("x")</script>.jpg',
    "\"'> onload=alert(1) x='.jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "two\nlines\t\x1b[31m.jpg",
    "turned \u202egpj.exe",
    "&amp;lt;.jpg",
    "stray \udcff byte.jpg",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd.jpg",
    "https://example.org/x.jpg",
)


def test_names_can_hold_anything(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    names = [name.replace("/", "\u2044") for name in HOSTILE]
    scores = [
        replace(score, references=(replace(score.references[0], id=name), *score.references[1:]))
        for score, name in zip(scored(by, names), names, strict=True)
    ]
    figures = [Figures(name, [(name, {name: (1.0, 0.0, 2.0)})], name) for name in names]
    page = written(
        tmp_path / "r.html", scores, [Failure(name, name) for name in names], scorer=by, introduction=" ".join(names),
        command=" ".join(names), figures=figures,
    )  # fmt: skip
    for name in names:
        visible = " ".join(shown(name).split())
        assert sum(text == visible for _, text in page.texts) >= 7  # card, reference, failure x 2, title, row, note ...
    assert shown("two\nlines\t\x1b") == "two\\nlines\\t\\x1b"
    assert shown(HOSTILE[4]) == "turned \\u202egpj.exe"
    assert shown("\udcff") == "\\udcff"
    assert shown(HOSTILE[7]) == HOSTILE[7]
    assert "{{ 7 * 7 }}{% raw %}.jpg" in page.text


def test_outside_the_pool(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    first, second, third = scored(by, ["a.jpg", "b.jpg", "c.jpg"])
    scores = [replace(first, unlike=0.9701), replace(second, unlike=0.97), replace(third, unlike=None)]
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    warnings = page.of("div", class_="warning")
    assert [warning["role"] for warning in warnings] == ["note"]
    assert page.text.count("Trust neither its score nor its interval.") == 1
    assert "Unlike is 0.9701: " in page.text  # 0.97 would not be above the limit
    assert "1 outside what the pool shows" in page.text
    assert "limit 0.97" in page.text
    calm = written(tmp_path / "r.html", [second], [], scorer=by)
    assert calm.of("div", class_="warning") == []
    assert "1 outside what" not in calm.text


def test_a_model_that_was_not_calibrated(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    nothing: dict[str, Any] = dict.fromkeys(("low", "high", "percentile", "stars", "unlike"))
    page = written(tmp_path / "r.html", [replace(scored(by, ["a.jpg"])[0], **nothing)], [], scorer=by)
    assert "None" not in page.text and "nan" not in page.text
    assert page.of("p", class_="stars") == page.of("rect", class_="band") == []
    assert "Percentile " not in page.text.replace("Percentile and stars", "")
    assert "Band: interval" not in page.text
    assert len(page.of("circle", class_="dot")) == 1


def test_other_stars(models: dict[str, Model], tmp_path: Path) -> None:
    by = Scorer(models["votes"], None, None, "", stars=(50, 99.5))  # type: ignore[arg-type]
    score = replace(scored(by, ["a.jpg"])[0], stars=2)
    page = written(tmp_path / "r.html", [score], [], scorer=by)
    assert "2 stars begin at percentile 50, 3 stars at 99.5." in page.text
    assert [a["aria-label"] for a in page.of("p", class_="stars")] == ["2 of 3 stars"]


def test_no_photos(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    figures = [
        Figures(
            "Five random folds",
            [
                ("single", {"emd2": (0.123, 0.1, 0.15), "srcc": (-0.25, -0.5, 0.0), "other": (1.0, 0.5, 1.5)}),
                ("votes", {"srcc": (0.75, float("nan"), float("nan"))}),
            ],
            "One seed.",
        )
    ]
    page = written(tmp_path / "r.html", [], [], scorer=by, figures=figures)
    assert "No photo was scored in this run." in page.text
    assert "Relative to the 60 rated photos of the pool (made)" in page.text
    assert page.of("article") == page.of("img") == []
    assert "Five random folds Model SRCC EMD other single" in page.text
    minus = "\N{MINUS SIGN}"
    cells = [text for tag, text in page.texts if tag in {"b", "span"}]
    assert cells == [
        f"{minus}0.250", f"{minus}0.500 to 0.000", "0.123", "0.100 to 0.150", "1.000", "0.500 to 1.500",
        "0.750", "\N{EN DASH}", "\N{EN DASH}",
    ]  # fmt: skip
    assert "One seed." in page.text
    assert "rank correlation" in page.text and "linear correlation" not in page.text
    bare = written(tmp_path / "r.html", [], [], scorer=by)
    assert bare.of("table") == []


def test_failures(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    failures = [Failure("in/bad.jpg", "is cut <off>"), Failure("worse.jpg", "does not exist")]
    page = written(tmp_path / "r.html", scored(by, ["a.jpg"]), failures, scorer=by)
    assert "2 could not be scored" in page.text
    assert "Could not be scored in/bad.jpg is cut <off> worse.jpg does not exist" in page.text
    assert "No picture: the file cannot be read any more." in page.text
    assert "Could not be scored" not in written(tmp_path / "r.html", scored(by, ["a.jpg"]), [], scorer=by).text


def test_folders_of_photos_with_one_name(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    page = written(tmp_path / "r.html", scored(by, ["x/a.jpg", "y/a.jpg", "z/b.jpg"]), [], scorer=by)
    names = [text for tag, text in page.texts if tag == "bdi" and not text.startswith("photo")]
    assert sorted(names) == ["a.jpg", "a.jpg", "b.jpg", "x", "y"]


def test_many_photos_are_folded(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    page = written(tmp_path / "r.html", scored(by, [f"{i}.jpg" for i in range(21)]), [], scorer=by)
    assert len(page.of("details")) == 21
    assert not any("open" in details for details in page.of("details"))


def test_many_values(tmp_path: Path, models: dict[str, Model]) -> None:
    """A scale of 0 to 100: fewer numbers below the bars."""
    by = scorer(models["votes"])
    values = tuple(map(float, range(101)))
    votes = tuple(float(v == 40) for v in values)
    score = replace(
        scored(by, ["a.jpg"])[0], values=values, distribution=votes, score=40.0, low=30.0, high=50.0,
        references=(Reference("r", 0.5, votes, 0.0),),
    )  # fmt: skip
    page = written(tmp_path / "r.html", [score], [], scorer=by)
    assert len(page.of("text")) == 12
    assert len(page.of("rect", class_="bar")) == 101
    assert "on a scale of 0 to 100" in page.text


def test_signed() -> None:
    minus = "\N{MINUS SIGN}"
    assert [signed(x) for x in (0.1234, -0.1236, 0.0, -0.0, 0.0004, -0.0004)] == [
        "+0.123", f"{minus}0.124", "0.000", "0.000", "0.000", "0.000",
    ]  # fmt: skip


def test_photos_of_the_pool(models: dict[str, Model], tmp_path: Path, home: Path) -> None:
    """Those that were found are shown, each once in the file; one that was changed since is not."""
    made.photo_folder(tmp_path / "pool", TABLE)
    digests = tuple(open_photo(tmp_path / "pool" / name).digest for name in TABLE.images[:60])
    model = replace(models["votes"], pool=replace(models["votes"].pool, pixels=digests))
    by = scorer(model)
    scores = scored(by, ["a.jpg", "b.jpg"])
    consulted = {reference.id for score in scores for reference in score.references}
    assert written(tmp_path / "r.html", scores, [], scorer=by).of("symbol") == []
    remember(match_photos(model.pool, tmp_path / "pool"))
    made.photo(1000).save(tmp_path / "pool" / f"{scores[0].references[0].id}.png")
    known = consulted - {scores[0].references[0].id}
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    assert len(page.of("symbol")) == len(page.of("image")) == len(known)
    uses = [reference.id for score in scores for reference in score.references if reference.id in known]
    labels = [a["aria-label"] for a in page.of("svg", role="img") if (a["aria-label"] or "").startswith("The pool")]
    assert sorted(map(str, labels)) == sorted(f"The pool\u2019s photo {photo}" for photo in uses)
    numbers = [(a["href"] or "").removeprefix("#pool-") for a in page.of("use")]
    images = page.of("image")
    order = sorted(scores, key=lambda score: -score.score)
    shown_ids = [reference.id for score in order for reference in score.references if reference.id in known]
    for photo, number in zip(shown_ids, numbers, strict=True):
        with picture(images[int(number)]["href"]) as image, Image.open(tmp_path / "pool" / f"{photo}.png") as original:
            small = np.asarray(original.resize(image.size), float)
            assert np.abs(np.asarray(image, float) - small).mean() < 8
    shutil.rmtree(tmp_path / "pool")
    assert written(tmp_path / "r.html", scores, [], scorer=by).of("symbol") == []
    places_file().write_text("{")
    damaged = written(tmp_path / "r.html", scores, [], scorer=by)
    assert "The pool\u2019s photos are not shown: " in damaged.text
    assert "remove it and run `milnet pool images` again" in damaged.text


def test_progress(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    calls: list[tuple[int, int, str]] = []
    write_report(
        tmp_path / "r.html", scored(by, ["a.jpg", "b.jpg"]), [], scorer=by, introduction="",
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert calls == [(1, 2, "pictures of the report"), (2, 2, "pictures of the report")]
