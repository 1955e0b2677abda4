"""The report: one file that holds all it shows, with every text escaped and every sum right.

What the file holds is tested here; what a reader sees and does with it in test_report_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

import made
import milnet.report
from milnet.album import match_photos, places_file, remember
from milnet.errors import UsageError
from milnet.images import open_photo
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.report import Figures, check_report, shown, signed, write_report
from milnet.scoring import Failure, Reference, Score, Scorer, ranked
from milnet.signals import Signals
from milnet.splits import Split
from milnet.taste import fit_taste
from milnet.version import __version__

VOID = {"meta", "img", "br", "input"}
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


def scorer(model: Model, **options: Any) -> Scorer:
    return Scorer(model, made.NoBackbone(), made.NoBackbone(), "d" * 64, **options)  # type: ignore[arg-type]


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
        self.scripts: list[tuple[dict[str, str | None], str]] = []
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
        if self.open[-1:] == ["script"]:
            self.scripts.append((self.elements[-1][1], data))
        elif data.strip() and self.open and self.open[-1] != "style":
            self.texts.append((self.open[-1], " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    @property
    def data(self) -> Any:
        """What the script is given."""
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == "report-data"]
        return json.loads(text)

    @property
    def pictures(self) -> dict[str, str]:
        """The address of each picture, by the name of its block; "" where there is none."""
        blocks = {str(a["id"]): "" for a in self.of("script", type="text/plain")}
        return blocks | {str(a["id"]): text for a, text in self.scripts if a.get("type") == "text/plain"}

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and all(a.get(n) == v for n, v in wanted.items())]


def written(path: Path, *arguments: Any, **options: Any) -> Page:
    """Write a report and read it."""
    write_report(path, *arguments, **{"introduction": "votes on 60 photos", **options})
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    without = re.sub(r"base64,[^\"<]*", "", html).replace("http://www.w3.org/2000/svg", "")  # the name of a language
    assert not re.search(r"https?://|//[a-z]|url\(|@import", without)
    (policy,) = [a["content"] or "" for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = [text for attributes, text in page.scripts if not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "eval" not in script
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "link", "object", "form", "base", "img"}
        assert not any(name.startswith("on") or name in {"src", "style"} for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        if tag == "script":
            assert attributes.get("type") in {None, "application/json", "text/plain"}
    for address in page.pictures.values():
        assert address == "" or address.startswith(("data:image/webp;base64,", "data:image/jpeg;base64,"))
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-controls", "for"):
            # "photo-name" comes with a photo's page
            assert attributes.get(name) in {None, "photo-name", *identifiers}
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers
    return page


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def plain(page: Page) -> str:
    """The table that stands where no script runs."""
    return page.text.partition("here is the plain list.")[2].partition("Could not be scored")[0]


def test_the_script_is_the_modules_joined() -> None:
    """Modules share one scope in a report: each name is there once, and what is imported was exported before."""
    folder = Path(milnet.report.__file__).parent / "web"
    names: list[str] = []
    exported: set[str] = set()
    for module in ("pieces.js", "gallery.js", "report.js"):
        code = (folder / module).read_text(encoding="utf-8")
        wanted = re.findall(r"^import \{([^}]*)\} from", code, flags=re.MULTILINE)
        assert {name.strip() for group in wanted for name in group.split(",")} <= exported, module
        names += re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", code, flags=re.MULTILINE)
        exported |= set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", code, flags=re.MULTILINE))
    assert len(names) > 40 and len(names) == len(set(names))
    script = milnet.report._script()
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)
    assert all(script.count(f"\nfunction {name}(") + script.count(f"\nconst {name} =") == 1 for name in exported)


@pytest.mark.parametrize("name", ["votes", "single"])
def test_what_it_holds(models: dict[str, Model], tmp_path: Path, name: str) -> None:
    photos = [str(tmp_path / f"p{i}.png") for i in range(4)]
    for i, photo in enumerate(photos):
        made.photo(i, 1600, 1000).save(photo)
    by = scorer(models[name])
    scores = scored(by, photos)
    page = written(tmp_path / "r.html", scores, [], scorer=by, introduction="Try `milnet x` <now>", command="milnet it")
    ordered = sorted(scores, key=lambda score: -score.score)
    listed = page.data["photos"]
    assert [photo["name"] for photo in listed] == [Path(score.photo).name for score in ordered]
    assert [photo["path"] for photo in listed] == [score.photo for score in ordered]
    assert list(page.pictures) == [f"picture-{i}" for i in (1, 2, 3, 4)]
    for score, address in zip(ordered, page.pictures.values(), strict=True):
        with picture(address) as image, Image.open(score.photo) as original:
            assert image.size == (1024, 640)
            small = np.asarray(original.resize(image.size), float)
            assert np.abs(np.asarray(image, float) - small).mean() < 6  # this photo, not another
    for score, photo in zip(ordered, listed, strict=True):
        for key in ("score", "low", "high", "spread", "percentile", "unlike", "base", "own", "rest"):
            assert photo[key] == pytest.approx(getattr(score, key), abs=1e-6)
        assert photo["stars"] == score.stars
        assert photo["votes"] == pytest.approx(score.distribution, abs=1e-6)
        assert photo["burst"] is photo["signals"] is None and photo["outside"] is False
        assert f"{score.score:.2f} {score.low:.2f} to {score.high:.2f}" in plain(page)
    assert page.data["values"] == [1, 2, 3, 4, 5]
    assert page.data["stars"] == 5
    assert ("code", "milnet x") in page.texts
    assert "Try milnet x <now>" in page.text
    for expected in (f"milnet {__version__}", "d" * 64, "milnet it", "no judgement of a person"):
        assert expected in page.text
    assert "What people would say about these photos" in page.text


def test_the_same_file_again(models: dict[str, Model], tmp_path: Path) -> None:
    """But for the date; and nothing is left beside it."""
    by = scorer(models["votes"])
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, scored(by, ["x", "y"]), [], scorer=by, introduction="")
    a, b = (re.sub(r"<time.*", "", (tmp_path / name).read_text()) for name in ("a.html", "b.html"))
    assert a == b
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distribution": (1.0,)}, "zip"),
        ({"score": float("nan")}, "JSON"),
        ({"references": (Reference("r", 0.5, (1.0, 2.0), 0.1),)}, "2 votes for 5 values"),
    ],
)
def test_a_report_that_fails_leaves_the_old_one(
    models: dict[str, Model], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    by = scorer(models["votes"])
    (tmp_path / "r.html").write_text("old")
    broken = replace(scored(by, ["x"])[0], **change)
    with pytest.raises(ValueError, match=words):
        write_report(tmp_path / "r.html", [broken], [], scorer=by, introduction="")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.html", "old")]


@pytest.mark.parametrize("name", ["votes", "single"])
def test_the_parts_give_the_score(models: dict[str, Model], tmp_path: Path, name: str) -> None:
    """base + own + references + rest = score; a pool photo stands in the file once, however many consulted it."""
    by = scorer(models[name])
    scores = scored(by, [f"p{i}" for i in range(12)])
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    data = page.data
    for score, photo in zip(sorted(scores, key=lambda s: (-s.score, s.photo)), data["photos"], strict=True):
        listed = photo["references"]
        total = photo["base"] + photo["own"] + sum(adds for _, _, adds in listed) + photo["rest"]
        assert total == pytest.approx(photo["score"], abs=1e-4)
        assert [data["pool"][number]["name"] for number, _, _ in listed] == [r.id for r in score.references]
        assert [likeness for _, likeness, _ in listed] == pytest.approx(
            [r.similarity for r in score.references], abs=1e-4
        )
        assert [adds for _, _, adds in listed] == pytest.approx([r.influence for r in score.references], abs=1e-6)
        for (number, _, _), reference in zip(listed, score.references, strict=True):
            assert data["pool"][number]["votes"] == pytest.approx(reference.votes, abs=1e-3)
        largest = max([("own", score.own), *((r.id, r.influence) for r in score.references)], key=lambda p: abs(p[1]))
        assert f"{largest[0]} {signed(largest[1])}" in plain(page)
    consulted = {reference.id for score in scores for reference in score.references}
    assert sorted(reference["name"] for reference in data["pool"]) == sorted(consulted)
    assert ("the rest of the pool (52 photos)" in str(data["photos"])) == (name == "votes")


def test_two_votes_of_one_name(models: dict[str, Model], tmp_path: Path) -> None:
    """Scores of two models: a reference's votes are those of its own score."""
    by = scorer(models["votes"])
    first, second = scored(by, ["a", "b"])
    scores = [
        replace(first, references=(Reference("r", 0.5, (1.0, 0.0, 0.0, 0.0, 0.0), 0.1),)),
        replace(second, references=(Reference("r", 0.5, (0.0, 0.0, 0.0, 0.0, 1.0), 0.1),)),
    ]
    data = written(tmp_path / "r.html", scores, [], scorer=by).data
    votes = {photo["name"]: data["pool"][photo["references"][0][0]]["votes"] for photo in data["photos"]}
    assert votes == {"a": [1, 0, 0, 0, 0], "b": [0, 0, 0, 0, 1]}


HOSTILE = (
    '<script>alert("x")</script>.jpg',
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&lt;--\u2028\u2029",
    "\"'> onload=alert(1) x='.jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "two\nlines\t\x1b[31m.jpg",
    "turned \u202egpj.exe",
    "&amp;lt;.jpg",
    "stray \udcff byte.jpg",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd.jpg",
    "https://example.org/x.jpg",
    "__proto__",
)


def test_names_can_hold_anything(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    names = [name.replace("/", "\u2044") if i != 1 else name for i, name in enumerate(HOSTILE)]
    scores = [
        replace(score, references=(replace(score.references[0], id=name), *score.references[1:]))
        for score, name in zip(scored(by, names), names, strict=True)
    ]
    figures = [Figures(name, [(name, {name: (1.0, 0.0, 2.0)})], name) for name in names]
    page = written(
        tmp_path / "r.html", scores, [Failure(name, name) for name in names], scorer=by, introduction=" ".join(names),
        command=" ".join(names), figures=figures,
    )  # fmt: skip
    data = page.data
    assert {photo["path"] for photo in data["photos"]} == {shown(name) for name in names}
    assert {reference["name"] for reference in data["pool"]} >= {shown(name) for name in names}
    for name in names:
        visible = " ".join(shown(name).split())
        assert sum(text == visible for _, text in page.texts) >= 6  # plain list, failure x 2, title, row, note ...
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.isascii() or not re.search("[\u2028\u2029\u202e]", html)
    (block,) = re.findall(r'id="report-data">(.*?)</script>', html, flags=re.DOTALL)
    assert block.isascii() and not set("<>&") & set(block)
    assert shown("two\nlines\t\x1b") == "two\\nlines\\t\\x1b"
    assert shown("turned \u202egpj.exe") == "turned \\u202egpj.exe"
    assert shown("\udcff") == "\\udcff"
    assert shown(HOSTILE[10]) == HOSTILE[10]
    assert "{{ 7 * 7 }}{% raw %}.jpg" in page.text


def test_outside_the_pool(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    first, second, third = scored(by, ["a.jpg", "b.jpg", "c.jpg"])
    scores = [replace(first, unlike=0.9701), replace(second, unlike=0.97), replace(third, unlike=None)]
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    found = {photo["name"]: (photo["outside"], photo["unlike_text"]) for photo in page.data["photos"]}
    # 0.97 would not be above the limit
    assert found == {"a.jpg": (True, "0.9701"), "b.jpg": (False, "0.97"), "c.jpg": (False, None)}
    assert "1 unlike anything it learned from" in page.text
    assert plain(page).count("0.9701 unlike anything it learned from") == 1
    (chip,) = [a["title"] for a in page.of("span") if "title" in a]
    assert chip == "Above 0.97 in \u201cunlike\u201d: trust neither its score nor its interval"
    calm = written(tmp_path / "r.html", [second], [], scorer=by)
    assert "1 unlike anything" not in calm.text
    assert "Above 0.97 it is unlike anything it learned from: trust nothing said about it." in calm.text


def test_a_model_that_was_not_calibrated(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    nothing: dict[str, Any] = dict.fromkeys(("low", "high", "percentile", "stars", "unlike"))
    page = written(tmp_path / "r.html", [replace(scored(by, ["a.jpg"])[0], **nothing)], [], scorer=by)
    assert "None" not in page.text and "nan" not in page.text
    assert {page.data["photos"][0][key] for key in nothing} == {None}


def test_a_model_of_ones_own_taste(models: dict[str, Model], tmp_path: Path) -> None:
    """It has no spread, and says what the reader would say."""
    features, some = made.features(TABLE), np.arange(20)
    taste = fit_taste(
        models["votes"], features.nodes[some], features.semantic[some], [features.pixels[i] for i in some],
        [f"mine{i}" for i in some], np.arange(20) % 5 + 1.0,
    )  # fmt: skip
    by = scorer(models["votes"], taste=taste)
    scores = scored(by, ["a.jpg", "b.jpg"])
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    assert "What you would say about these photos" in page.text
    assert "the 20 photos you rated" in page.text and "your other rated photos (12)" in str(page.data)
    assert "unlike any photo you rated" in page.text and page.data["far"] == "unlike any photo you rated"
    assert not re.search(r"\bpool\b", page.text)
    assert all(one["name"].startswith("mine") for one in page.data["pool"])
    assert "predicted from your own ratings" in page.text
    assert "a large panel" not in page.text and "viewers will disagree" not in page.text
    assert page.data["own"] is True and page.data["photos"][0]["spread"] is None


def test_bursts_and_signals(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    a, b, c = scored(by, ["a.jpg", "b.jpg", "c.jpg"])
    signals = Signals(6000, 4000, 0.8125, 0.25, 0.001, 3.5)
    scores = [
        replace(a, group=3, rank=1, keep=True, signals=signals), replace(b, group=3, rank=2, keep=False), c,
    ]  # fmt: skip
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    photos = {photo["name"]: photo for photo in page.data["photos"]}
    assert photos["a.jpg"]["burst"] == {"number": 3, "rank": 1, "size": 2, "keep": True}
    assert photos["b.jpg"]["burst"] == {"number": 3, "rank": 2, "size": 2, "keep": False}
    assert photos["c.jpg"]["burst"] is None
    assert photos["a.jpg"]["signals"] == {
        "width": 6000, "height": 4000, "sharpness": 0.8125, "highlights": 0.25, "shadows": 0.001, "noise": 3.5,
    }  # fmt: skip
    assert "1 burst" in page.text and "is advice: nothing was moved or removed" in page.text
    assert "3: 1 of 2, keep" in plain(page)
    alone = written(tmp_path / "r.html", [c], [], scorer=by)
    assert "urst" not in alone.text


def test_other_stars(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"], stars=(50, 99.5))
    score = replace(scored(by, ["a.jpg"])[0], stars=2)
    page = written(tmp_path / "r.html", [score], [], scorer=by)
    assert "2 stars begin at percentile 50, 3 stars at 99.5." in page.text
    assert page.data["stars"] == 3 and page.data["photos"][0]["stars"] == 2
    assert "\u2605\u2605\u2606" in plain(page)
    by = scorer(models["votes"], stars=(2.5, 4), stars_of="score")
    assert "2 stars begin at score 2.5, 3 stars at 4." in written(tmp_path / "r.html", [score], [], scorer=by).text


def test_percentiles_at_the_ends(models: dict[str, Model], tmp_path: Path) -> None:
    """ "100" and "0" mean all and none."""
    by = scorer(models["votes"])
    score = scored(by, ["a.jpg"])[0]
    for percentile, expected in (
        (100.0, "100"),
        (99.7, "99.7"),
        (99.97, "99.97"),
        (99.999, "99.99"),
        (0.0, "0"),
        (0.2, "0.2"),
        (0.001, "0.01"),
        (50.4, "50"),
    ):
        page = written(tmp_path / "r.html", [replace(score, percentile=percentile)], [], scorer=by)
        assert f"{score.high:.2f} {expected} \u2605" in plain(page)


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
    assert page.of("dialog") == page.of("noscript") == []
    assert page.pictures == {}
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
    assert page.pictures == {"picture-1": ""}
    assert "Could not be scored" not in written(tmp_path / "r.html", scored(by, ["a.jpg"]), [], scorer=by).text


def test_folders_of_photos_with_one_name(models: dict[str, Model], tmp_path: Path) -> None:
    by = scorer(models["votes"])
    page = written(tmp_path / "r.html", scored(by, ["x/a.jpg", "y/a.jpg", "z/b.jpg"]), [], scorer=by)
    found = sorted((photo["name"], photo["folder"]) for photo in page.data["photos"])
    assert found == [("a.jpg", "x/"), ("a.jpg", "y/"), ("b.jpg", "")]


@pytest.mark.parametrize(
    ("photos", "folders"),
    [
        (["/in/x/1/a", "/in/x/2/a", "/in/a"], ["x/1/", "x/2/", ""]),  # below the folder that all are in
        (["/in/a", "/in/x/a", "/in/x/b"], ["", "x/", ""]),
        (["/in/x/a", "/in/xy/a"], ["x/", "xy/"]),  # folders, not letters, are in common
        (["a", "x/a"], ["", "x/"]),
        (["/in/x/a", "x/a"], ["/in/x/", "x/"]),  # none is in common
        (["/a", "/x/a"], ["", "x/"]),
        (["in/x\ny/a", "in/z/a"], ["x\\ny/", "z/"]),
        (["in/a", "in/a"], ["", ""]),
    ],
)
def test_the_folders_that_are_shown(
    models: dict[str, Model], tmp_path: Path, photos: list[str], folders: list[str]
) -> None:
    by = scorer(models["votes"])
    one = scored(by, ["a"])[0]
    page = written(tmp_path / "r.html", [replace(one, photo=photo) for photo in photos], [], scorer=by)
    found = sorted((photo["path"], photo["folder"]) for photo in page.data["photos"])
    assert found == sorted((shown(photo), folder) for photo, folder in zip(photos, folders, strict=True))


def test_links_to_the_files(models: dict[str, Model], tmp_path: Path) -> None:
    """Seen from the report, and nothing but a path: no name makes another kind of address of it."""
    by = scorer(models["votes"])
    names = ["a b#?%.png", "javascript:alert(1).png", "&quot;<>.png", "\u00fc.png", "none.png"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "reports").mkdir()
    for name in names[:-1]:
        made.photo(0).save(tmp_path / "photos" / name, "PNG")
    scores = scored(by, [str(tmp_path / "photos" / name) for name in names])
    page = written(tmp_path / "reports" / "r.html", scores, [], scorer=by)
    for photo in page.data["photos"]:
        if photo["name"] == "none.png":
            assert photo["file"] == ""
            continue
        assert photo["file"].startswith("./../photos/")
        address = urlsplit(urljoin((tmp_path / "reports" / "r.html").as_uri(), photo["file"]))
        assert (address.scheme, address.query, address.fragment) == ("file", "", "")
        assert Path(unquote(address.path)) == tmp_path / "photos" / photo["name"]


def test_few_and_many(models: dict[str, Model], tmp_path: Path) -> None:
    """Few photos are shown in full with all explanations open, many as tiles with the explanations folded."""
    by = scorer(models["votes"])
    for count, view in ((20, "full"), (21, "grid")):
        page = written(tmp_path / "r.html", scored(by, [f"{i}.jpg" for i in range(count)]), [], scorer=by)
        assert page.data["view"] == view
        assert ["open" in details for details in page.of("details")] == [view == "full"]


def test_signed() -> None:
    minus = "\N{MINUS SIGN}"
    assert [signed(x) for x in (0.1234, -0.1236, 0.0, -0.0, 0.0004, -0.0004)] == [
        "+0.123", f"{minus}0.124", "0.000", "0.000", "0.000", "0.000",
    ]  # fmt: skip


# ---- pictures --------------------------------------------------------------------------------------------------------


def pool_of_photos(models: dict[str, Model], folder: Path) -> Model:
    """The model, its pool's photos written to `folder`."""
    made.photo_folder(folder, TABLE)
    digests = tuple(open_photo(folder / name).digest for name in TABLE.images[:60])
    return replace(models["votes"], pool=replace(models["votes"].pool, pixels=digests))


def test_photos_of_the_pool(models: dict[str, Model], tmp_path: Path, home: Path) -> None:
    """Those that were found are shown, each once in the file; one that was changed since is not."""
    model = pool_of_photos(models, tmp_path / "pool")
    by = scorer(model)
    scores = scored(by, ["a.jpg", "b.jpg"])
    consulted = {reference.id for score in scores for reference in score.references}

    def pictures() -> dict[str, str]:
        """{pool id: address} of what is shown."""
        page = written(tmp_path / "r.html", scores, [], scorer=by)
        assert [reference["name"] for reference in page.data["pool"]] == list(
            dict.fromkeys(r.id for score in sorted(scores, key=lambda s: -s.score) for r in score.references)
        )
        blocks = [name for name in page.pictures if name.startswith("pool-")]
        assert blocks == [f"pool-{i}" for i in range(len(blocks))]
        found = {one["name"]: one["picture"] for one in page.data["pool"] if one["picture"] is not None}
        assert sorted(found.values()) == list(range(len(blocks)))
        return {name: page.pictures[f"pool-{number}"] for name, number in found.items()}

    assert pictures() == {}
    remember(match_photos(model.pool, tmp_path / "pool").found)
    changed = scores[0].references[0].id
    made.photo(1000).save(tmp_path / "pool" / f"{changed}.png")
    found = pictures()
    assert found.keys() == consulted
    assert [name for name, address in found.items() if not address] == [changed]
    for name in consulted - {changed}:
        with picture(found[name]) as image, Image.open(tmp_path / "pool" / f"{name}.png") as original:
            assert np.abs(np.asarray(image, float) - np.asarray(original, float)).mean() < 8
    shutil.rmtree(tmp_path / "pool")
    assert set(pictures().values()) == {""}
    places_file().write_text("{")
    damaged = written(tmp_path / "r.html", scores, [], scorer=by)
    assert "The pool\u2019s photos are not shown: " in damaged.text
    assert "remove it and run `milnet pool images` again" in damaged.text


def test_a_large_pool(models: dict[str, Model], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pool photos those consulted most are shown; the page says how many are not."""
    model = pool_of_photos(models, tmp_path / "pool")
    remember(match_photos(model.pool, tmp_path / "pool").found)
    by = scorer(model)
    scores = scored(by, [f"{i}.jpg" for i in range(6)])
    uses = [reference.id for score in scores for reference in score.references]
    monkeypatch.setattr(milnet.report, "_POOL_MOST", 3)
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    kept = [one["name"] for one in page.data["pool"] if one["picture"] is not None]
    least = min(uses.count(name) for name in kept)
    assert len(kept) == 3 and all(uses.count(name) <= least for name in set(uses) - set(kept))
    assert f"{len(set(uses)) - 3} others are named only." in page.text


def test_sizes_of_pictures() -> None:
    """Large for few photos; for many so small that 2,000 stay below 60 MB and 5,000 below 100."""
    sides = [milnet.report._side(count) for count in (0, 1, 100, 500, 1000, 2000, 5000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == sides[2] == 1024 and sides[-1] == 224
    assert 300 <= milnet.report._side(2000) <= 400


def test_pictures_are_small_enough(test_data: Path) -> None:
    """Real photos: 2,000 pictures take less than 60 MB by a wide margin."""
    photos = sorted((test_data / "data/photos").glob("*/*.jpg"))[::80]
    side = milnet.report._side(2000)
    sizes = [len(milnet.report._picture(photo, None, side)) for photo in photos]
    assert min(sizes) > 0
    assert 2000 * float(np.mean(sizes)) < 45e6


def test_a_picture_that_cannot_be_made(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with one file, the report is written, and the others are shown."""
    by = scorer(models["votes"])
    photos = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i, photo in enumerate(photos):
        made.photo(i).save(photo)
    scores = sorted(scored(by, photos), key=lambda score: -score.score)
    Path(scores[0].photo).write_bytes(b"no photo")
    Path(scores[1].photo).unlink()
    opened = milnet.report.open_photo

    def failing(path: Path, **options: Any) -> Any:
        if str(path) == scores[2].photo:
            raise MemoryError
        if str(path) == scores[3].photo:
            raise UsageError("needs an extra")
        return opened(path, **options)

    monkeypatch.setattr(milnet.report, "open_photo", failing)
    page = written(tmp_path / "r.html", scores, [], scorer=by)
    assert [bool(address) for address in page.pictures.values()] == [False, False, False, False, True]


def test_pictures_are_not_held(models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go into the file as they are made: never are more than a few finished and not written."""
    lock, live, most = threading.Lock(), 0, 0

    class Counted(str):
        def __del__(self) -> None:
            nonlocal live
            with lock:
                live -= 1

    def counted(path: Path, digest: str | None, side: int) -> str:
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        return Counted("data:image/webp;base64,AAAA")

    monkeypatch.setattr(milnet.report, "_picture", counted)
    by = scorer(models["votes"])
    one = scored(by, ["a.jpg"])[0]
    scores = [replace(one, photo=f"{i}.jpg") for i in range(100)]

    def slow(*_: Any) -> None:
        time.sleep(0.005)  # longer than a picture takes here: only a bound holds the threads back

    write_report(tmp_path / "r.html", scores, [], scorer=by, introduction="", progress=slow)
    # two for each thread, the one that is written and the one before it; a thread may not yet have let go of its last
    assert 1 <= most <= 3 * milnet.report._WORKERS + 2


def test_progress(models: dict[str, Model], tmp_path: Path, home: Path) -> None:
    model = pool_of_photos(models, tmp_path / "pool")
    by = scorer(model)
    scores = scored(by, ["a.jpg", "b.jpg"])
    calls: list[tuple[int, int, str]] = []

    def told(*call: Any) -> None:
        calls.append(call)

    write_report(tmp_path / "r.html", scores, [], scorer=by, introduction="", progress=told)
    assert calls == [(1, 2, "pictures of the report"), (2, 2, "pictures of the report")]
    remember(match_photos(model.pool, tmp_path / "pool").found)
    calls.clear()
    write_report(tmp_path / "r.html", scores, [], scorer=by, introduction="", progress=told)
    count = len({reference.id for score in scores for reference in score.references})
    assert calls[2:] == [(i + 1, count, "photos of the pool") for i in range(count)]


def test_where_a_report_may_go(models: dict[str, Model], tmp_path: Path) -> None:
    """A report takes the place of a report only."""
    by = scorer(models["votes"])
    write_report(tmp_path / "r.html", scored(by, ["a.jpg"]), [], scorer=by, introduction="x" * 5000)
    check_report(tmp_path / "r.html")
    check_report(tmp_path / "new.html")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    for name, words in (("mine.html", "is no report of milnet"), ("r.txt", "ending in .html"), ("no/r.html", "exists")):
        with pytest.raises(UsageError, match=words):
            check_report(tmp_path / name)


# ---- colours ---------------------------------------------------------------------------------------------------------


def colours() -> Iterator[tuple[str, dict[str, str]]]:
    """(scheme, {name: #rrggbb}) as the style sheet defines them."""
    text = (Path(milnet.report.__file__).parent / "web/style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text)
    for at, scheme in enumerate(("light", "dark")):
        yield scheme, {name: both[at] for name, *both in pairs}


def contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG 2.2 defines it, 1..21."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast() -> None:
    """Texts have a contrast of 4.5 on whatever they stand on, signs and the edges of controls 3: AA."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    texts = dict.fromkeys(("text", "soft", "link"), ("page", "card", "sunk", "chosen"))
    texts |= {"warn-text": ("warn-page",), "keep-text": ("keep-page",), "on-link": ("link",), "star": ("card", "sunk")}
    signs = dict.fromkeys(("bar", "dot", "up", "down", "edge", "link"), ("card", "sunk"))
    signs |= {"edge": ("page", "card", "sunk"), "dot": ("card", "band"), "link": ("page", "card", "chosen")}
    for scheme, named in colours():
        for least, pairs in ((4.5, texts), (3.0, signs)):
            for front, behind in pairs.items():
                for back in behind:
                    ratio = contrast(named[front], named[back])
                    assert ratio >= least, f"{scheme}: {front} on {back} has {ratio:.2f}, expected {least}"
