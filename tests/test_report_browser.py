"""The report in a browser: what a reader sees and does. Each result is compared with the scores themselves."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import browsing
from milnet.report import shown, signed, write_report
from milnet.scoring import Failure, Reference, Score, ranked
from milnet.signals import Signals

VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
MANY = 300
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILNET_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def scorer(**options: Any) -> Any:
    """What a report wants to know of a scorer; no photo goes through it."""
    ids = tuple(f"ref{i}" for i in range(20))
    pool = type("Pool", (), {"ids": ids, "pixels": ("",) * 20, "__len__": lambda self: 20})()
    return SimpleNamespace(
        **{
            "model": SimpleNamespace(table_name="made"), "values": np.array(VALUES), "pool": pool, "taste": None,
            "whole": False, "exact": True, "stars": (10.0, 35.0, 65.0, 90.0), "stars_of": "percentile",
            "digest": "d" * 64, **options,
        }
    )  # fmt: skip


def made_scores(count: int, folder: Path) -> list[Score]:
    """Scores in which every quantity varies by itself; some lack things; parts that add up."""
    rng = np.random.default_rng(0)
    scores = []
    for i in range(count):
        votes = rng.dirichlet(np.full(5, 2.0))
        mean = float(votes @ VALUES)
        picked = rng.choice(20, 3, replace=False)
        references = tuple(
            Reference(f"ref{j}", float(rng.uniform(0.5, 1)), (float(j), 2.0, 3.0, 4.0, 1.0), float(rng.normal(0, 0.2)))
            for j in picked
        )
        own, rest = (float(x) for x in rng.normal(0, 0.1, 2))
        low, high = max(1.0, mean - rng.uniform(0.2, 1)), min(5.0, mean + rng.uniform(0.2, 1))
        unknown = i % 17 == 5
        scores.append(
            Score(
                photo=str(folder / f"IMG_{i}.png"),
                score=mean,
                low=None if unknown else low,
                high=None if unknown else high,
                spread=float(np.sqrt(votes @ np.square(VALUES) - mean**2)),
                percentile=float(rng.uniform(0, 100)),
                stars=None,
                folder_percentile=None,
                unlike=None if unknown else float(rng.uniform(0, 1)),
                distribution=tuple(votes.tolist()),
                base=mean - own - rest - sum(reference.influence for reference in references),
                own=own,
                references=references,
                rest=rest,
                values=VALUES,
                model="d" * 64,
                signals=Signals(6000, 4000, float(rng.uniform(0, 100)), 0.01, 0.002, 2.5),
            )
        )
    scores = ranked(scores)
    for group, start in enumerate(range(0, count - 4, 7), 1):  # bursts of three, among photos that stand alone
        members = sorted(range(start, start + 3), key=lambda i: -scores[i].score)
        for rank, i in enumerate(members, 1):
            scores[i] = replace(scores[i], group=group, rank=rank, keep=rank == 1)
    return scores


def colour(i: int) -> tuple[int, int, int]:
    """The one colour of the made photo i: no two are near each other."""
    return (40 + 30 * (i % 7), 40 + 30 * (i // 7 % 7), 40 + 30 * (i // 49 % 7))


def number(score: Score) -> int:
    return int(Path(score.photo).stem.removeprefix("IMG_"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one colour each; IMG_3 is missing."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(MANY):
        if i != 3:
            Image.new("RGB", (48, 32) if i % 2 else (32, 48), colour(i)).save(folder / f"IMG_{i}.png")
    return folder


@pytest.fixture(scope="module")
def scores(folder: Path) -> list[Score]:
    return made_scores(MANY, folder)


def best_first(scores: Sequence[Score]) -> list[Score]:
    return sorted(scores, key=lambda score: (-score.score, score.photo))


def report(path: Path, scores: Sequence[Score], failures: Sequence[Failure] = (), **options: Any) -> Path:
    write_report(path, scores, failures, scorer=options.pop("scorer", scorer()), introduction="made", **options)
    return path


@pytest.fixture(scope="module")
def many(scores: list[Score], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("many") / "report.html", scores, [Failure("bad.jpg", "is cut")])


@pytest.fixture(scope="module")
def few(scores: list[Score], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("few") / "report.html", scores[:12])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.chromium() as one:
        yield one


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a file without a network; in the end nothing was asked for, refused, or went wrong."""
    contexts, wrong = [], []

    def opened(
        path: Path | str, *, width: int = 1200, height: int = 800, part: str = "", offline: bool = True, **options: Any
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        context.set_offline(offline)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
        address = path.as_uri() if isinstance(path, Path) else path
        page.on(
            "request",
            lambda request: None if request.url.startswith(("data:", "blob:", address)) else wrong.append(request.url),
        )
        if options.get("java_script_enabled", True):
            page.add_init_script(
                "addEventListener('securitypolicyviolation', e => console.error('refused: ' + e.blockedURI))"
            )
        page.goto(address + part)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def listed(page: Any) -> list[int]:
    """The numbers of the photos now shown, in their order, from the list that the page would save.

    The file itself is not made: a browser refuses to save many in a row. `test_saving` saves one.
    """
    text = page.evaluate("""async () => {
      const make = URL.createObjectURL, click = HTMLAnchorElement.prototype.click;
      let blob = null;
      URL.createObjectURL = (given) => { blob = given; return make.call(URL, given); };
      HTMLAnchorElement.prototype.click = () => {};
      document.getElementById('save').click();
      URL.createObjectURL = make;
      HTMLAnchorElement.prototype.click = click;
      return blob.text();
    }""")
    return [int(Path(line).stem.removeprefix("IMG_")) for line in text.splitlines()]


def in_view(page: Any) -> list[str]:
    """Names on the tiles or rows there are, in the order of the document."""
    found: list[str] = page.locator("#sheet .name, #sheet .row .open bdi").all_inner_texts()
    return found


def found(page: Any) -> str:
    text: str = page.locator("#found").inner_text()
    return text


def visible_text(page: Any) -> str:
    text: str = page.locator("body").inner_text()
    return text


AVERAGES = """async () => {
  const found = [];
  for (const cell of document.querySelectorAll('.tile, .row')) {
    const image = cell.querySelector('img');
    const name = cell.querySelector('bdi').textContent;
    if (!image) { found.push([name, null]); continue; }
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0, 1, 1);
    found.push([name, [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)]);
  }
  return found;
}"""


def settled(page: Any) -> None:
    """Wait until the page shows what it should after a scroll, which it learns of in the next frame."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def check_pictures(page: Any) -> int:
    """Each tile in view shows its own photo; how many have a picture."""
    seen = 0
    for name, average in page.evaluate(AVERAGES):
        i = int(name.removeprefix("IMG_").removesuffix(".png"))
        if i == 3:
            assert average is None
        else:
            assert np.abs(np.subtract(average, colour(i))).max() <= 12, name
            seen += 1
    return seen


# ---- the list --------------------------------------------------------------------------------------------------------


def test_many_photos(many: Path, scores: list[Score], open_page: Open) -> None:
    """Tiles, the best first; only those in view exist, and they show their own photos, wherever one scrolls."""
    page = open_page(many)
    assert page.title() == "milnet report: 300 photos"
    assert found(page) == "300 photos, by score, highest first"
    names = [Path(score.photo).name for score in best_first(scores)]
    tiles = in_view(page)
    assert tiles == names[: len(tiles)]
    assert 8 <= len(tiles) <= 60
    assert check_pictures(page) >= 8
    for part in (0.3, 0.99, 0.5, 0.0):
        page.evaluate("part => scrollTo(0, part * document.body.scrollHeight)", part)
        settled(page)
        tiles = in_view(page)
        start = names.index(tiles[0])
        assert tiles == names[start : start + len(tiles)] and len(tiles) <= 60
        assert check_pictures(page) >= 3
        for tile in page.locator(".tile").all()[:3]:
            assert int(tile.get_attribute("aria-posinset")) == names.index(tile.locator(".name").inner_text()) + 1
            assert tile.get_attribute("aria-setsize") == "300"
    assert "2.5 of" not in visible_text(page)


def quantity(name: str) -> Callable[[Score], float | None]:
    return {
        "Score": lambda s: s.score,
        "Name": lambda s: float(number(s)),  # IMG_2 comes before IMG_10
        "Percentile": lambda s: s.percentile,
        "Interval width": lambda s: None if s.low is None or s.high is None else s.high - s.low,
        "Spread": lambda s: s.spread,
        "Unlike": lambda s: s.unlike,
        "Sharpness": lambda s: s.signals.sharpness if s.signals else None,
    }[name]


LABELS = {
    "Score": "Score", "Name": "Name", "Percentile": "Percentile", "Interval width": "Width of the interval (doubt)",
    "Spread": "Spread of the votes", "Unlike": "Unlike the pool\u2019s photos (doubt)",
    "Sharpness": "Sharpness",
}  # fmt: skip


def test_sort(many: Path, scores: list[Score], open_page: Open) -> None:
    """By each quantity, both ways; what a photo lacks comes last; equal ones by score."""
    page = open_page(many)
    options = page.locator("#sort option").all_inner_texts()
    assert sorted(options) == sorted([*LABELS.values(), "Burst"])
    for name, label in LABELS.items():
        of = quantity(name)
        page.get_by_label("Sort by").select_option(label=label)
        for turned in (False, True):
            if turned:
                page.locator("#direction").click()
            descending = (name != "Name") != turned
            known = [s for s in best_first(scores) if of(s) is not None]
            ordered = sorted(known, key=lambda s: (of(s) or 0.0) * (-1 if descending else 1))
            ordered += [s for s in best_first(scores) if of(s) is None]
            expected = [number(score) for score in ordered]
            assert listed(page) == expected, (name, turned)
            tiles = in_view(page)
            assert tiles == [f"IMG_{i}.png" for i in expected[: len(tiles)]]
            direction = ("z to a", "a to z") if name == "Name" else ("highest first", "lowest first")
            assert found(page) == f"300 photos, by {name.lower()}, {direction[0 if descending else 1]}"
    assert check_pictures(page) >= 8


def test_sort_by_burst(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many)
    page.get_by_label("Sort by").select_option(label="Burst")
    alone = [s for s in best_first(scores) if s.group is None]
    ordered = sorted((s for s in scores if s.group is not None), key=lambda s: (s.group or 0, s.rank or 0))
    assert listed(page) == [number(s) for s in [*ordered, *alone]]
    assert page.locator(".tile").first.locator(".badge").inner_text() == "burst 1: 1 of 3, keep"
    page.locator("#direction").click()
    ordered.sort(key=lambda s: (-(s.group or 0), s.rank or 0))  # inside a burst the best stays first
    assert listed(page) == [number(s) for s in [*ordered, *alone]]


def open_filters(page: Any) -> None:
    page.get_by_role("button", name="Filter", exact=True).click()


def test_filters(many: Path, scores: list[Score], open_page: Open) -> None:
    """Each by itself, and together; each is named on a chip that ends it."""
    page = open_page(many)
    open_filters(page)
    ordered = best_first(scores)

    def expect(passes: Callable[[Score], bool]) -> None:
        expected = [number(score) for score in ordered if passes(score)]
        assert 0 < len(expected) < 300
        assert listed(page) == expected
        assert found(page).startswith(f"{len(expected)} of 300 photos, ")

    def clear(chip: str) -> None:
        page.get_by_role("button", name=f"{chip}: end this filter").click()
        assert page.locator("#chips button").count() == 0 and found(page).startswith("300 photos")

    for name, label in LABELS.items():
        if name == "Name":
            continue
        of, digits = quantity(name), 0 if name in {"Percentile", "Sharpness"} else 2
        known = [round(x, digits) for x in map(of, scores) if x is not None]
        low, high = (round(float(x), digits) for x in np.quantile(known, [0.3, 0.7]))

        def within(
            score: Score, low: float = -math.inf, high: float = math.inf, of: Any = of, digits: int = digits
        ) -> bool:
            x = of(score)
            return x is not None and low <= round(x, digits) <= high

        page.get_by_label(f"{label}, from").fill(f"{low:.{digits}f}")
        expect(lambda s, low=low, within=within: within(s, low))  # type: ignore[misc]
        page.get_by_label(f"{label}, to").fill(f"{high:.{digits}f}")
        expect(lambda s, low=low, high=high, within=within: within(s, low, high))  # type: ignore[misc]
        clear(f"{name} {low:.{digits}f} to {high:.{digits}f}")
        assert page.get_by_label(f"{label}, from").input_value() == ""
    for star in (1, 2, 4):
        page.locator(f"[data-stars='{star}']").uncheck()
    expect(lambda s: s.stars in (3, 5))
    clear("Stars 3, 5")
    for choice, passes in {
        "Best of each burst only": lambda s: s.group is None or s.rank == 1,
        "Only what is worth keeping": lambda s: s.group is None or s.keep is True,
        "Photos in bursts": lambda s: s.group is not None,
        "Photos that stand alone": lambda s: s.group is None,
    }.items():
        page.get_by_label("Bursts").select_option(label=choice)
        expect(passes)
        clear(choice)
    for choice, outside in (("Only unlike anything it learned from", True), ("Only photos like those", False)):
        page.get_by_label("Like the pool\u2019s photos", exact=True).select_option(label=choice)
        expect(lambda s, outside=outside: (s.unlike is not None and s.unlike > 0.97) == outside)  # type: ignore[misc]
        clear(choice)
    page.get_by_label("Name", exact=True).fill("mg_12")
    expect(lambda s: "IMG_12" in s.photo)
    page.get_by_label("Score, from").fill("3")
    page.get_by_label("Bursts").select_option(label="Photos in bursts")
    expect(lambda s: "IMG_12" in s.photo and round(s.score, 2) >= 3 and s.group is not None)
    assert page.locator("#filter").inner_text() == "Filter (3)"
    page.get_by_label("Name", exact=True).fill("there is none")
    assert found(page).startswith("0 of 300")
    assert in_view(page) == [] and page.get_by_role("button", name="Save the list").is_disabled()
    page.get_by_role("button", name="Clear them").click()
    assert found(page).startswith("300 photos") and page.locator("#filter").inner_text() == "Filter"


def test_histograms(many: Path, scores: list[Score], open_page: Open) -> None:
    """Bars count the photos, all and those shown; a click or a drag over them filters."""
    page = open_page(many)
    for title, of, digits in (("Scores", lambda s: s.score, 2), ("Percentiles", lambda s: s.percentile, 0)):
        bars = page.get_by_role("group", name=f"{title} of the photos").get_by_role("button")
        total = 0
        for label in bars.evaluate_all("bars => bars.map(bar => bar.getAttribute('aria-label'))"):
            low, high, now, count = (float(x) for x in re.findall(r"[\d.]+", label))
            assert now == count == sum(low <= round(of(s), digits) <= high for s in scores)
            total += int(count)
        assert total == 300
        bar = bars.nth(5)
        label = bar.get_attribute("aria-label")
        low, high, _, count = (float(x) for x in re.findall(r"[\d.]+", label))
        bar.click()
        assert bar.get_attribute("aria-pressed") == "true"
        assert sorted(listed(page)) == sorted(number(s) for s in scores if low <= round(of(s), digits) <= high)
        bar.click()  # again: no filter
        assert found(page).startswith("300 photos")
        end = bars.nth(8)
        box, last = bar.bounding_box(), end.bounding_box()
        page.mouse.move(box["x"] + 3, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(last["x"] + 3, last["y"] + 20)
        page.mouse.up()
        high = float(re.findall(r"[\d.]+", end.get_attribute("aria-label"))[1])
        assert sorted(listed(page)) == sorted(number(s) for s in scores if low <= round(of(s), digits) <= high)
        assert [b.get_attribute("aria-pressed") for b in bars.all()[4:10]] == ["false", *["true"] * 4, "false"]
        shown_now = [int(re.findall(r": (\d+) of", b.get_attribute("aria-label"))[0]) for b in bars.all()]
        assert sum(shown_now[:5]) == sum(shown_now[9:]) == 0 and sum(shown_now) == len(listed(page))
        page.locator("#chips button").click()
    bars.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert bars.nth(1).get_attribute("aria-pressed") == "true"


def test_table(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many, width=1400)
    page.get_by_role("button", name="Table").click()
    first = best_first(scores)[0]
    cells = page.get_by_role("row").nth(1).get_by_role("cell").all_inner_texts()
    signals = first.signals
    assert signals is not None
    assert cells[1].startswith(Path(first.photo).name)
    assert cells[2] == f"{first.score:.2f}"
    assert cells[3].strip() == f"{first.low:.2f} to {first.high:.2f}"
    assert cells[4:6] == [
        f"{first.percentile:.0f}",
        "\u2605" * (first.stars or 0) + "\u2606" * (5 - (first.stars or 0)),
    ]
    assert cells[6:9] == [f"{first.spread:.2f}", f"{first.unlike:.2f}", f"{signals.sharpness:.0f}"]
    assert page.get_by_role("table").get_attribute("aria-rowcount") == "301"
    head = page.get_by_role("columnheader", name="Spread")
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert listed(page) == [number(s) for s in sorted(scores, key=lambda s: -(s.spread or 0))]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert listed(page) == [number(s) for s in sorted(scores, key=lambda s: s.spread or 0)]
    assert check_pictures(page) >= 5
    page.get_by_role("row").nth(2).get_by_role("link").click()
    page.locator("#photo").wait_for()


def test_sizes(many: Path, open_page: Open) -> None:
    """As many columns as fit, also after the window has changed."""
    page = open_page(many)

    def has_columns(count: int) -> None:
        """It comes to have so many, all of them in the window."""
        end, seen = time.monotonic() + 60, None
        while seen != (count, True):
            assert time.monotonic() < end, f"expected {count} columns in the window, got {seen}"
            settled(page)
            sides = page.locator(".tile").evaluate_all(
                "tiles => tiles.map(tile => tile.getBoundingClientRect()).map(({left, right}) => [left, right])"
            )
            width = page.evaluate("innerWidth")
            seen = len({left for left, _ in sides}), all(right <= width for _, right in sides)

    has_columns(4)
    page.set_viewport_size({"width": 700, "height": 800})
    has_columns(2)
    page.get_by_label("Size").evaluate("e => { e.value = 150; e.dispatchEvent(new Event('input')); }")
    has_columns(4)


# ---- a photo's page --------------------------------------------------------------------------------------------------


def test_open(many: Path, scores: list[Score], open_page: Open) -> None:
    """By a click, by its address; back, the next one, and closing lead to the list, to the photo seen last."""
    ordered = best_first(scores)
    page = open_page(many)
    name = page.locator("#photo-name bdi")
    page.locator(".tile a").nth(2).click()
    page.locator("#photo").wait_for()
    assert page.url.endswith("#photo-3") and name.inner_text() == Path(ordered[2].photo).name
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Next photo").click()
    assert page.url.endswith("#photo-5") and name.inner_text() == Path(ordered[4].photo).name
    assert page.locator(".where").inner_text() == "5 of 300"
    page.keyboard.press("ArrowLeft")
    assert page.url.endswith("#photo-4")
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "#" not in url)
    page.locator("#photo").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.hash") == "#photo-4"
    page.locator(".tile a").nth(0).click()
    page.locator("#photo").wait_for()
    page.go_back()
    page.locator("#photo").wait_for(state="hidden")
    page.go_forward()
    page.locator("#photo").wait_for()
    assert name.inner_text() == Path(ordered[0].photo).name
    assert page.get_by_role("button", name="Previous photo").is_disabled()
    shared = open_page(many, part="#photo-17")
    assert shared.locator("#photo-name bdi").inner_text() == Path(ordered[16].photo).name
    shared.get_by_role("button", name="Close").click()
    shared.locator("#photo").wait_for(state="hidden")
    assert "#" not in shared.url
    assert shared.evaluate("document.activeElement.hash") == "#photo-17"
    shared.goto(many.as_uri() + "#photo-9999")
    assert not shared.locator("#photo").is_visible()


def test_next_follows_the_list(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many)
    page.get_by_label("Sort by").select_option(label="Name")
    page.get_by_label("Name", exact=True).fill("img_12")
    page.locator(".tile a").first.click()
    page.locator("#photo").wait_for()
    seen = []
    for _ in range(3):
        seen.append(page.locator("#photo-name bdi").inner_text())
        page.keyboard.press("ArrowRight")
    assert seen == ["IMG_12.png", "IMG_120.png", "IMG_121.png"]
    assert page.locator(".where").inner_text() == "4 of 11 shown"


def minus(text: str) -> float:
    return float(text.replace(MINUS, "-"))


def test_what_a_photos_page_says(many: Path, scores: list[Score], open_page: Open) -> None:
    """Its numbers are those of the score; bars as high and as long as they should be; the parts add up as printed."""
    ordered = best_first(scores)
    place = next(
        i for i, s in enumerate(ordered) if s.group is not None and s.low is not None and (s.unlike or 0) < 0.9
    )
    score = ordered[place]
    page = open_page(many, part=f"#photo-{place + 1}")
    dialog = page.locator("#photo")
    text = " ".join(dialog.inner_text().split())
    assert f"{score.score:.2f} on a scale of 1 to 5" in text
    assert f"Percentile {score.percentile:.0f}: scores higher than {score.percentile:.0f} % of the pool" in text
    assert f"90 % interval {score.low:.2f} to {score.high:.2f} Spread of the votes {score.spread:.2f}" in text
    assert f"Unlike {score.unlike:.2f} limit 0.97" in text
    assert f"burst {score.group}: {score.rank} of 3" in text
    assert "6,000 × 4,000 24.0 megapixels" in text and "Clipped highlights 1.0 % Clipped shadows 0.20 %" in text
    assert score.signals is not None
    assert (
        f"Sharpness {score.signals.sharpness:.0f} of 100, in the sharpest part" in text and "Noise 2.5 of 255" in text
    )
    assert "They take no part in the score." in text
    assert dialog.locator(".stars").get_attribute("aria-label") == f"{score.stars} of 5 stars"
    bars = dialog.locator(".chart .bar-of").evaluate_all("bars => bars.map(bar => Number(bar.getAttribute('height')))")
    np.testing.assert_allclose(bars, 92 * np.array(score.distribution) / max(score.distribution), atol=0.06)
    words = ", ".join(f"{v:g}: {100 * p:.0f} %" for v, p in zip(VALUES, score.distribution, strict=True))
    assert dialog.locator(".chart").get_attribute("aria-label") == f"Predicted votes by value: {words}"
    dot = float(dialog.locator(".chart .dot").get_attribute("cx"))
    assert dot == pytest.approx(72 * (score.score - 0.5), abs=0.06)
    band = dialog.locator(".chart .band")
    assert float(band.get_attribute("x")) == pytest.approx(72 * (score.low - 0.5), abs=0.06)  # type: ignore[operator]
    assert float(band.get_attribute("width")) == pytest.approx(72 * (score.high - score.low), abs=0.12)  # type: ignore[operator]
    numbers = [minus(x) for x in dialog.locator(".parts td.number").all_inner_texts()]
    *parts, total = numbers
    exact = [score.base, score.own, *(r.influence for r in score.references), score.rest]
    assert parts == pytest.approx(exact, abs=5.1e-4) and total == pytest.approx(score.score, abs=5.1e-4)
    assert abs(sum(parts) - total) <= 0.0005 * len(numbers) + 1e-9
    lengths = dialog.locator(".signed rect").evaluate_all(
        "bars => bars.map(b => [b.getAttribute('class'), b.getAttribute('x'), b.getAttribute('width')])"
    )
    steps = np.array(exact[1:])
    np.testing.assert_allclose([float(w) for _, _, w in lengths], 48 * np.abs(steps) / np.abs(steps).max(), atol=0.06)
    assert [kind for kind, _, _ in lengths] == ["up" if x > 0 else "down" for x in steps]
    assert all(float(x) == (0 if kind == "up" else -float(w)) for kind, x, w in lengths)
    for reference, row in zip(score.references, dialog.locator(".parts tbody tr").all()[2:], strict=False):
        mean = float(np.dot(reference.votes, VALUES) / sum(reference.votes))
        assert row.locator("bdi").inner_text() == reference.id
        assert row.locator("td.likeness").all_inner_texts() == [f"{mean:.2f}", f"{reference.similarity:.2f}"]
        heights = row.locator(".votes rect").evaluate_all("bars => bars.map(b => Number(b.getAttribute('height')))")
        np.testing.assert_allclose(heights, 28 * np.array(reference.votes) / max(reference.votes), atol=0.06)
    assert dialog.locator("img").first.get_attribute("alt") == f"The photo {Path(score.photo).name}"
    link = dialog.get_by_role("link", name=score.photo)
    assert link.evaluate("link => link.href") == Path(score.photo).as_uri()
    assert link.get_attribute("target") == "_blank" and link.get_attribute("rel") == "noopener noreferrer"
    members = dialog.locator(".film a")
    assert members.count() == 3
    assert members.locator("[aria-current]").count() == 0 and dialog.locator(".film a[aria-current]").count() == 1
    before = page.evaluate("history.length")
    members.nth(2).click()
    assert page.evaluate("history.length") == before  # closing leads to the list, not to each photo seen
    third = next(s for s in scores if s.group == score.group and s.rank == 3)
    assert page.locator("#photo-name bdi").inner_text() == Path(third.photo).name
    page.get_by_title("Show this burst alone").click()
    assert not dialog.is_visible()
    assert listed(page) == [number(s) for s in sorted(scores, key=lambda s: s.rank or 9) if s.group == score.group]


def test_outside_and_missing(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """A warning where the pool knows nothing like the photo; nothing is said of what is not known."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("low", "high", "percentile", "stars", "unlike", "spread", "signals", "group", "rank", "keep")
    )
    bare = [replace(s, references=(), rest=0.0, **nothing) for s in scores[:9]]
    page = open_page(report(tmp_path / "bare.html", bare))
    for view in ("Full", "Grid", "Table"):
        page.get_by_role("button", name=view, exact=True).click()
        text = visible_text(page)
        assert not re.search(r"undefined|NaN|null|None|\[object", text), view
        assert "Percentile " not in text.replace("Percentile and stars", "") and "burst" not in text.lower()
    page.get_by_role("button", name="Full", exact=True).click()
    assert (
        page.locator(".chart .band, .stars, .warning, td.people").count() == 0
        and page.locator(".chart .dot").count() == 9
    )
    assert page.locator("#sort option").all_inner_texts() == ["Score", "Name"]
    open_filters(page)
    assert page.locator("#filters legend").all_inner_texts() == ["Score", "All filters"]
    page.goto(page.url + "#compare-1-2")
    assert "nothing is known of how sure that is" in page.locator(".verdict").inner_text()
    far = open_page(report(tmp_path / "far.html", [replace(scores[0], unlike=0.9701), replace(scores[1], unlike=0.97)]))
    assert far.locator(".warning").count() == 1
    assert "Unlike is 0.9701: " in far.locator(".warning").inner_text()
    assert "Trust neither its score nor its interval." in far.locator(".warning").inner_text()


def test_photos_of_one_name(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """Where names are the same, the folders below the common one are shown, wherever the name is; else not."""
    long = "a-folder-with-a-long-name-" * 3
    paths = [f"/in/{long}/{day}/IMG_1.jpg" for day in ("monday", "tuesday")] + ["/in/IMG_1.jpg", "/in/x/IMG_2.jpg"]
    same = [replace(s, photo=photo) for s, photo in zip(scores, paths, strict=False)]
    labels = [f"{long}/monday/IMG_1.jpg", f"{long}/tuesday/IMG_1.jpg", "IMG_1.jpg", "IMG_2.jpg"]
    label = dict(zip(paths, labels, strict=True))
    page = open_page(path := report(tmp_path / "r.html", same), width=900)
    expected = [label[s.photo] for s in best_first(same)]
    for view, place in (("Full", "#full h3 a"), ("Grid", ".tile .name"), ("Table", ".row .open")):
        page.get_by_role("button", name=view, exact=True).click()
        seen = [text.split("burst")[0] for text in page.locator(place).all_text_contents()]
        assert seen == expected, view
        if view == "Full":
            continue
        ends = page.locator("#sheet .within").evaluate_all("""all => all.map(folder => {
          const text = folder.querySelector('bdi').getBoundingClientRect(), box = folder.getBoundingClientRect();
          return [Math.abs(text.right - box.right), text.left < box.left, folder.nextSibling.scrollWidth
            <= folder.nextSibling.clientWidth + 1];
        })""")
        assert len(ends) == 2  # the end of the folders stays in view, their beginning is cut off, the name is whole
        assert all(gap < 1 and cut and fits for gap, cut, fits in ends), view
    for place, text in enumerate(expected, 1):
        page.goto(path.as_uri() + f"#photo-{place}")
        assert page.locator("#photo-name span:not(.place)").first.text_content() == text
        assert page.locator("#photo .face img, #photo .face .frame").count() == 1
    page.goto(path.as_uri() + "#compare-1-2")
    assert page.locator("#compare h3 a").all_text_contents() == expected[:2]
    assert page.locator(".verdict p").first.text_content().startswith(f"{expected[0]} scores ")


def test_percentiles_in_words(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """ "All" and "none", and 100 and 0, only where it is so."""
    said = {
        100.0: ("100", "all of"), 99.999: ("99.99", "99.99\xa0% of"), 99.7: ("99.7", "99.7\xa0% of"),
        50.4: ("50", "50\xa0% of"), 0.2: ("0.2", "0.2\xa0% of"), 0.001: ("0.01", "0.01\xa0% of"),
        0.0: ("0", "none of"),
    }  # fmt: skip
    some = [replace(score, percentile=x) for score, x in zip(best_first(scores), said, strict=False)]
    page = open_page(report(tmp_path / "r.html", some))
    ranks = [f"Percentile {short}: scores higher than {part} the pool\u2019s photos." for short, part in said.values()]
    assert page.locator(".rank").all_text_contents() == ranks
    page.get_by_role("button", name="Grid", exact=True).click()
    assert page.locator(".tile .soft[title]").evaluate_all("all => all.map(e => e.title)") == ranks
    assert [text.split()[-1].lstrip("P") for text in page.locator(".tile .soft[title]").all_text_contents()] == [
        short for short, _ in said.values()
    ]


def test_signs_are_explained(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """What is short on a tile says what it means when the pointer rests on it."""
    first, second = (replace(s, low=s.score - 0.5, high=s.score + 0.25) for s in best_first(scores)[:2])
    page = open_page(report(tmp_path / "r.html", [replace(first, unlike=0.99), replace(second, unlike=0.2)]))
    page.get_by_role("button", name="Grid", exact=True).click()
    tile, other = page.locator(".tile").all()
    words = f"Dot: score {first.score:.2f} on a scale of 1 to 5. Band: 90\xa0% interval, "
    title = str(tile.locator(".strip").get_attribute("title")).replace("90 %", "90\xa0%")
    assert title == words + f"{first.low:.2f} to {first.high:.2f}."
    assert tile.locator(".badge.warn").inner_text() == "unlike anything it learned from"
    box = tile.locator(".badge.warn").bounding_box()
    under = "([x, y]) => document.elementFromPoint(x, y).closest('[title]').title"
    why = "Hardly one of the pool\u2019s photos is so far from the others: trust neither score nor interval"
    assert page.evaluate(under, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]) == why
    assert other.locator(".badge.warn").count() == 0 and other.locator(".frame").get_attribute("title") is None
    tick = other.locator(".tick")
    other.hover()
    assert tick.evaluate("e => getComputedStyle(e, '::before').content") == '"Compare"'
    assert tick.get_attribute("title") == "Mark this photo, to compare it with another (key c)"
    boxes = [other.locator(".frame").bounding_box(), tick.bounding_box()]
    assert boxes[0]["y"] <= boxes[1]["y"] and boxes[1]["y"] + boxes[1]["height"] <= boxes[0]["y"] + boxes[0]["height"]


def test_ones_own_ratings(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """Under a taste references are the reader's ratings: one number each, and no pool is spoken of."""
    votes = ((0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0))
    references = tuple(replace(r, votes=v) for r, v in zip(scores[0].references, votes, strict=True))
    some = [replace(s, references=references, spread=None, unlike=0.99) for s in scores[:2]]
    path = report(tmp_path / "r.html", some, scorer=scorer(taste=object(), whole=True))
    page = open_page(path, part="#photo-1")
    parts = page.locator("#photo .parts")
    assert parts.locator("thead th").all_text_contents() == ["Part", "Your rating", "Likeness", "Direction", "Adds"]
    rows = [row.locator("td.likeness").all_text_contents() for row in parts.locator("tbody tr").all()[2:5]]
    assert rows == [[r, f"{one.similarity:.2f}"] for r, one in zip(("4", "3.5", "5"), references, strict=True)]
    assert {row.locator("th, td").count() for row in parts.locator("tr").all()} == {5}
    assert "your other rated photos (17)" in parts.inner_text()
    for part, view in (("#photo-1", ""), ("#compare-1-2", ""), ("", "Grid"), ("", "Table"), ("", "Full")):
        page.goto(path.as_uri() + part)
        if view:
            page.get_by_role("button", name=view, exact=True).click()
        text = visible_text(page) + str(page.locator("[title]").evaluate_all("all => all.map(e => e.title)"))
        assert not re.search(r"\b(pool|votes?|panel)\b", text, flags=re.IGNORECASE), (part, view)
        assert "nlike any photo you rated" in text


@pytest.mark.parametrize("width", [1300, 1920])
def test_photos_are_on_the_first_screen(many: Path, open_page: Open, width: int) -> None:
    """The first row of a long list is whole on it, and begins in its upper half."""
    page = open_page(many, width=width, height=900)
    box = page.locator(".tile").first.bounding_box()
    assert box["y"] <= 420 and box["y"] + box["height"] <= 720


def test_one_photo(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """Nothing to sort or compare: the photo and what moved its score."""
    page = open_page(report(tmp_path / "one.html", scores[:1]))
    assert page.locator(".card").count() == 1 and page.locator(".moved[open]").count() == 1
    assert page.get_by_role("button").all_inner_texts() == ["Colours: system"]
    assert page.get_by_role("heading", level=1).inner_text() == "What people would say about this photo"
    page.keyboard.press("c")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 0


def test_no_photo(tmp_path: Path, open_page: Open) -> None:
    page = open_page(report(tmp_path / "none.html", [], [Failure("a.jpg", "is cut")]))
    assert "No photo was scored in this run." in visible_text(page)
    page.get_by_role("button", name="Colours: system").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_few_photos(few: Path, scores: list[Score], open_page: Open) -> None:
    """All in full below each other, with the parts open; the other views are there too."""
    page = open_page(few)
    ordered = best_first(scores[:12])
    assert page.locator("#full h3 bdi").all_inner_texts() == [Path(s.photo).name for s in ordered]
    assert page.locator(".moved[open]").count() == 12
    assert page.locator("#meaning").get_attribute("open") == ""
    page.get_by_label("Sort by").select_option(label="Name")
    assert page.locator("#full h3 bdi").all_inner_texts() == [f"IMG_{i}.png" for i in range(12)]
    page.get_by_label("Name", exact=True).fill("1")
    assert page.locator("#full h3 bdi").all_inner_texts() == ["IMG_1.png", "IMG_10.png", "IMG_11.png"]
    page.get_by_role("link", name="IMG_10.png").click()
    page.locator("#photo").wait_for()
    assert page.locator("#photo-name bdi").inner_text() == "IMG_10.png"
    page.keyboard.press("Escape")
    page.locator("#photo").wait_for(state="hidden")
    page.get_by_role("button", name="Mark IMG_1.png to compare").click()
    page.get_by_role("button", name="Mark IMG_11.png to compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#compare").wait_for()
    assert page.locator("#compare h3 bdi").all_inner_texts() == ["IMG_1.png", "IMG_11.png"]


# ---- two side by side ------------------------------------------------------------------------------------------------


def test_compare(many: Path, scores: list[Score], open_page: Open) -> None:
    ordered = best_first(scores)
    page = open_page(many)
    for i in (0, 5):
        page.locator(".tile").nth(i).hover()
        page.locator(".tile").nth(i).get_by_role("button").click()
    assert page.locator(".tile.marked").count() == 2
    assert page.locator("#tray bdi").all_inner_texts() == [Path(ordered[i].photo).name for i in (0, 5)]
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#compare").wait_for()
    assert page.url.endswith("#compare-1-6")
    dialog, names = page.locator("#compare"), page.locator("#compare .face h3 bdi")

    def check(a: Score, b: Score) -> None:
        names.first.wait_for()
        assert names.all_inner_texts() == [Path(a.photo).name, Path(b.photo).name]
        assert dialog.locator(".score b").all_inner_texts() == [f"{a.score:.2f}", f"{b.score:.2f}"]
        assert dialog.locator(".chart").count() == 2
        table = dialog.locator(".parts")
        rows = [
            [minus(x) if x not in {"", "\N{EN DASH}"} else None for x in row.locator("td.number").all_inner_texts()]
            for row in table.locator("tbody tr, tfoot tr").all()
        ]
        of = [{r.id: r.influence for r in s.references} for s in (a, b)]
        names_of_rows = table.locator("tbody bdi").all_inner_texts()
        assert sorted(names_of_rows) == sorted({*of[0], *of[1]})
        for name, (left, right, gap) in zip(names_of_rows, rows[2:-2], strict=True):
            assert (left is None, right is None) == (name not in of[0], name not in of[1])
            assert gap == pytest.approx(of[0].get(name, 0) - of[1].get(name, 0), abs=5.1e-4)
        gaps = [abs(row[2]) for row in rows[2:-2] if row[2] is not None]
        assert gaps == sorted(gaps, reverse=True)
        assert rows[1] == pytest.approx([a.own, b.own, a.own - b.own], abs=5.1e-4)
        assert rows[-1] == pytest.approx([a.score, b.score, a.score - b.score], abs=5.1e-4)

    check(ordered[0], ordered[5])
    page.get_by_role("button", name="Swap").click()
    assert page.url.endswith("#compare-6-1")
    check(ordered[5], ordered[0])
    page.keyboard.press("s")
    page.keyboard.press("ArrowRight")
    check(ordered[0], ordered[6])
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "#" not in url)
    dialog.wait_for(state="hidden")
    shared = open_page(many, part="#compare-3-40")
    assert shared.locator("#compare .face h3 bdi").all_inner_texts() == [Path(ordered[i].photo).name for i in (2, 39)]
    shared.locator("#compare .face h3 a").first.click()
    shared.locator("#photo").wait_for()
    assert shared.locator("#photo-name bdi").inner_text() == Path(ordered[2].photo).name
    shared.keyboard.press("Escape")  # back to the two
    shared.locator("#compare").wait_for()
    shared.evaluate("document.querySelector('#compare').close()")  # as a browser may do by itself
    shared.wait_for_url(lambda url: "#" not in url)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ((4.0, 3.5, 4.5), (3.8, 3.0, 4.2), "overlap, from 3.50 to 4.20: a large panel could well prefer either."),
        ((4.0, 3.5, 4.5), (3.0, 2.2, 3.8), "overlap, from 3.50 to 3.80: this order is likely, but not sure."),
        ((3.0, 2.2, 3.8), (4.0, 3.5, 4.5), "overlap, from 3.50 to 3.80: this order is likely, but not sure."),
        ((4.0, 3.5, 4.5), (3.0, 2.4, 3.6), "overlap a little, from 3.50 to 3.60: a large panel would most likely put"),
        ((3.0, 2.4, 3.6), (4.0, 3.5, 4.5), "overlap a little, from 3.50 to 3.60: a large panel would most likely put"),
        ((4.0, 3.0, 4.1), (3.0, 2.0, 3.1), "overlap, from 3.00 to 3.10: a large panel could well prefer either."),
        ((4.0, 4.0, 4.0), (3.0, 2.0, 4.0), "overlap, from 4.00 to 4.00: a large panel could well prefer either."),
        ((4.5, 4.2, 4.8), (3.0, 2.4, 3.6), "do not overlap: a large panel would most likely put them in this order"),
        ((4.0, None, None), (3.0, 2.4, 3.6), "nothing is known of how sure that is."),
        ((4.0, 3.5, 4.5), (4.001, 3.5, 4.5), "Both have the same score."),
    ],
)  # fmt: skip
def test_verdict(
    scores: list[Score], tmp_path: Path, open_page: Open, left: tuple[Any, ...], right: tuple[Any, ...], words: str
) -> None:
    """What two intervals allow to say, and no more."""
    pair = [
        replace(score, photo=name, score=x, low=low, high=high, unlike=unlike, group=None, rank=None, keep=None)
        for score, name, (x, low, high), unlike in zip(scores[:2], "ab", (left, right), (0.5, 0.99), strict=True)
    ]
    order = best_first(pair)
    places = [order.index(score) + 1 for score in pair]
    page = open_page(report(tmp_path / "r.html", pair), part=f"#compare-{places[0]}-{places[1]}")
    said = " ".join(page.locator(".verdict").inner_text().split())
    assert words in said
    if abs(left[0] - right[0]) > 0.01:
        better, worse = ("a", "b") if left[0] > right[0] else ("b", "a")
        assert said.startswith(f"{better} scores {abs(left[0] - right[0]):.2f} higher than {worse}.")
    assert "b is unlike anything it learned from: trust no comparison with it." in said
    assert "a is unlike" not in said


def test_most_likely_is_nineteen_of_twenty(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """ "Most likely" is said where, with normal errors, the order is right in 95 of 100 cases or more."""
    z, pairs = NormalDist().inv_cdf(0.95), []  # half the width of an interval of 90 %, in standard deviations
    for narrow, overlap in ((n, o) for n in (0.1, 0.5, 1.0) for o in (-0.01, 0.01, 0.19, 0.21, 0.5)):
        gap = 0.5 * (1 + narrow) - overlap * narrow  # between the middles of intervals `narrow` and 1 wide
        right = NormalDist(gap, math.hypot(0.5, 0.5 * narrow) / z)
        for up in (narrow, 1.0):  # either may be the higher one
            pairs += [(gap, up, 1 + narrow - up, overlap, 1 - right.cdf(0))]
    far: dict[str, Any] = {"group": None, "rank": None, "keep": None, "unlike": 0.5}
    made = []
    for i, (gap, up, down, _, _) in enumerate(pairs):
        for name, x, width in (("a", 3 + gap / 2, up), ("b", 3 - gap / 2, down)):
            photo = f"{i}{name}"
            made.append(replace(scores[0], photo=photo, score=x, low=x - width / 2, high=x + width / 2, **far))
    path = report(tmp_path / "r.html", made)
    places = {score.photo: place for place, score in enumerate(best_first(made), 1)}
    page = open_page(path)
    for i, (_, _, _, overlap, chance) in enumerate(pairs):
        page.goto(path.as_uri() + f"#compare-{places[f'{i}a']}-{places[f'{i}b']}")
        said = page.locator(".verdict").inner_text()
        assert said.startswith(f"{i}a scores ")
        assert ("most likely" in said) == (overlap < 0.2), (i, said)
        if overlap < 0.2:
            assert chance >= 0.95
        else:
            assert chance < 0.98 and ("likely, but not sure" in said) == (overlap < 0.5)


def test_a_third_mark(many: Path, scores: list[Score], open_page: Open) -> None:
    """It takes the place of the first; the tray forgets on demand."""
    page = open_page(many)
    page.locator(".tile a").nth(0).focus()
    for _ in range(3):
        page.keyboard.press("c")
        page.keyboard.press("ArrowRight")
    names = [Path(s.photo).name for s in best_first(scores)]
    assert page.locator("#tray bdi").all_inner_texts() == names[1:3]
    page.get_by_role("button", name=f"Take {names[1]} out of the comparison").click()
    assert page.locator("#tray bdi").all_inner_texts() == names[2:3]
    assert page.get_by_role("button", name="Mark one more").is_disabled()
    page.get_by_role("button", name=f"Take {names[2]} out of the comparison").click()
    assert not page.locator("#tray").is_visible()


# ---- keys, colours, paper, other ways to read ------------------------------------------------------------------------


def test_keys(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many)
    names = [Path(s.photo).name for s in best_first(scores)]

    def focused() -> int:
        return int(page.evaluate("Number(document.activeElement.hash.replace('#photo-', ''))"))

    page.keyboard.press("ArrowRight")  # from the page into the list
    assert focused() == 1
    moves = {"ArrowRight": 2, "ArrowDown": 6, "ArrowLeft": 5, "ArrowUp": 1, "End": 300, "ArrowRight ": 300, "Home": 1}
    for key, place in moves.items():
        page.keyboard.press(key.strip())
        assert focused() == place, key
        box = page.locator(":focus").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 801
        assert page.locator(".tile").count() <= 70
    page.keyboard.press("PageDown")
    assert focused() > 4
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 9000)  # what has the focus stays, though it is out of view
    end = time.monotonic() + 60
    while page.evaluate("scrollY") < before + 5000:
        assert time.monotonic() < end, "the wheel does not scroll"
        settled(page)
    settled(page)
    place = focused()
    page.keyboard.press("ArrowRight")
    assert focused() == place + 1
    page.keyboard.press("Enter")
    page.locator("#photo").wait_for()
    assert page.locator("#photo-name bdi").inner_text() == names[place]
    page.keyboard.press("c")
    assert page.locator("#photo [data-do=mark]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    page.locator("#photo").wait_for(state="hidden")
    assert focused() == place + 1
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("?c/img_29")
    assert page.locator("#search").input_value() == "?c/img_29" and not page.locator("#help").is_visible()
    page.locator("#search").fill("img_29")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.classList.contains('open')")
    page.keyboard.press("f")
    assert page.locator("#filters").is_visible() and page.evaluate("document.activeElement.id") == "from-score"
    page.locator(".tile a").first.focus()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.get_by_label("Single letters and signs act as keys").uncheck()
    page.keyboard.press("Escape")
    page.locator(".tile a").first.focus()
    for key in ("?", "/", "c"):
        page.keyboard.press(key)
    assert not page.locator("#help").is_visible() and page.locator(".tile.marked").count() <= 1
    page.reload()
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible()  # the choice is kept


def test_the_focus_does_not_leave_a_page_above(many: Path, open_page: Open) -> None:
    page = open_page(many, part="#photo-2")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "[document.body, ...document.querySelectorAll('#photo, #photo *')].includes(document.activeElement)"
        )


def test_light_and_dark(many: Path, open_page: Open) -> None:
    """As the system has it, or as the reader chose, who is remembered."""

    def background(page: Any) -> str:
        text: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return text

    light, dark = "rgb(246, 246, 243)", "rgb(19, 21, 24)"
    assert background(open_page(many, color_scheme="light")) == light
    page = open_page(many, color_scheme="dark")
    assert background(page) == dark
    page.get_by_role("button", name="Colours: system").click()
    assert background(page) == light
    page.get_by_role("button", name="Colours: light").click()
    assert background(page) == dark
    page.reload()
    assert page.get_by_role("button", name="Colours: dark").is_visible()
    page.emulate_media(color_scheme="light")
    assert background(page) == dark
    page.get_by_role("button", name="Colours: dark").click()
    assert background(page) == light


def test_without_scripts(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many, java_script_enabled=False)
    rows = page.locator("table.plain tbody tr")
    assert rows.count() == 300
    first = best_first(scores)[0]
    assert rows.first.inner_text().split("\t")[1:4] == [
        f"{first.score:.2f}",
        f"{first.low:.2f} to {first.high:.2f}",
        f"{first.percentile:.0f}",
    ]
    part = max([("own", first.own), *((r.id, r.influence) for r in first.references)], key=lambda p: abs(p[1]))
    assert f"{part[0]} {signed(part[1])}" in rows.first.inner_text()
    assert "is cut" in visible_text(page)
    assert page.locator("button:visible, input:visible, dialog:visible, select:visible").count() == 0


def test_hostile_names(scores: list[Score], tmp_path: Path, open_page: Open) -> None:
    """Whatever a file is called, it is text: on tiles, pages, in comparisons, lists and searches."""
    names = [
        "<script>alert(1)<\u2044script>", "</script><img src=x onerror=alert(1)>", "<!--<script>", "a\nb\t\x1b[31m",
        "turned \u202egpj.exe", "&lt;b&gt;&amp;", "\u2028\u2029", "javascript:alert(1)", "__proto__", "constructor",
        "\"'` onfocus=alert(1) autofocus x=", "stray \udcff", "\u05e9\u05dc\u05d5\u05dd.jpg", "https://example.org/x.jpg",
        "${alert(1)}", "%3Cscript%3E",
    ]  # fmt: skip
    references = (replace(scores[0].references[0], id=names[1]), replace(scores[0].references[1], id="__proto__"))
    hostile = [replace(s, photo=name, references=references) for s, name in zip(scores, names, strict=False)]
    path = report(tmp_path / "r.html", hostile, [Failure(name, name) for name in names], command=names[1])
    page = open_page(path, height=2000)
    ordered = best_first(hostile)
    visible = [shown(Path(s.photo).name) for s in ordered]
    for view, place in (("Full", "#full h3 bdi"), ("Grid", ".tile .name"), ("Table", ".row .open bdi")):
        page.get_by_role("button", name=view, exact=True).click()
        seen = page.locator(place).all_text_contents()
        assert seen == visible, view
    page.locator("#search").fill("</script><img")
    assert found(page).startswith("1 of 16")
    page.locator("#search").fill("")
    for i in range(1, 17):
        page.goto(path.as_uri() + f"#photo-{i}")
        assert page.locator("#photo-name bdi").text_content() == visible[i - 1]
        assert page.locator("#photo .parts bdi").first.text_content() == names[1]
    page.goto(path.as_uri() + "#compare-1-2")
    assert page.locator("#compare h3 bdi").all_text_contents() == visible[:2]
    page.goto(path.as_uri())
    assert page.locator("script:not([type])").count() == 1
    assert page.locator("img").count() == 0 and page.locator("[onerror], [onfocus], [onload]").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the list").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").split("\n")
    assert lines == [*(shown(s.photo) for s in ordered), ""]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow(many: Path, few: Path, open_page: Open, scheme: str) -> None:
    """At 400 pixels nothing is cut off at the side."""
    page = open_page(many, width=400, height=800, color_scheme=scheme)

    def fits(what: str) -> None:
        wide = page.evaluate(
            "Math.max(...[...document.querySelectorAll('html, dialog[open] .dialog-body')].map(e => e.scrollWidth))"
        )
        assert wide <= 400, what

    fits("grid")
    page.get_by_label("Sort by").select_option(label=LABELS["Unlike"])  # so that some have the long badge
    rights = page.locator(".tile .badge.warn").evaluate_all(
        "all => all.map(e => [e, e.closest('.tile')].map(x => x.getBoundingClientRect().right))"
    )
    assert len(rights) > 0 and all(badge <= tile for badge, tile in rights)
    open_filters(page)
    fits("filters")
    open_filters(page)
    page.locator(".tile a").first.click()
    fits("photo")
    page.goto(many.as_uri() + "#compare-1-2")
    fits("compare")
    page.goto(many.as_uri())
    page.get_by_role("button", name="Table").click()
    fits("table")
    assert page.locator(".row").first.get_by_role("cell").count() >= 4
    page = open_page(few, width=400, height=800)
    fits("full")


def test_names_and_texts(many: Path, open_page: Open) -> None:
    """Every control has a name, every picture a text or one beside it, and focus can be seen."""
    page = open_page(many)
    open_filters(page)
    unnamed = """() => [...document.querySelectorAll('button, input, select, a, dialog')].filter(e => {
      const by = e.getAttribute('aria-labelledby'), named = e.getAttribute('aria-label') || e.textContent.trim()
        || (by && document.getElementById(by)?.textContent)
        || (e.labels && [...e.labels].some(label => label.textContent.trim()));
      return !named && !(e.id === 'photo' && !e.open);
    }).map(e => e.outerHTML)"""
    for part in ("", "#photo-1", "#compare-1-2"):
        page.goto(many.as_uri() + part)
        assert page.evaluate(unnamed) == []
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("#photo .face img, #compare .face img").evaluate_all(
            "all => all.every(i => i.alt.startsWith('The photo '))"
        )
        assert page.locator("svg:not([aria-hidden]):not([role=img][aria-label])").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    roles = page.locator("#found").evaluate("e => [e.getAttribute('role'), e.getAttribute('aria-live')]")
    assert roles == ["status", "polite"]


def test_printing(many: Path, few: Path, open_page: Open) -> None:
    """All photos that are shown go on paper; a photo's page is printed alone."""
    page = open_page(many)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".tile").count() == 300
    page.emulate_media(media="print")
    boxes = [tile.bounding_box() for tile in page.locator(".tile").all()[:8]]
    assert all(box["height"] > 100 for box in boxes) and len({(box["x"], box["y"]) for box in boxes}) == 8
    assert not page.locator(".bar").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(".tile").count() < 60
    page = open_page(few, part="#photo-1")
    page.emulate_media(media="print")
    assert page.locator("#photo .parts").is_visible() and not page.locator("#full").is_visible()


def test_saving(many: Path, scores: list[Score], open_page: Open) -> None:
    page = open_page(many)
    page.locator("#search").fill("img_1")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the list").click()
    assert download.value.suggested_filename == "photos.txt"
    expected = [score.photo for score in best_first(scores) if "IMG_1" in score.photo]
    assert Path(download.value.path()).read_text(encoding="utf-8") == "\n".join(expected) + "\n"


def test_copying(many: Path, scores: list[Score], browser: Any, open_page: Open) -> None:
    page = open_page(many, permissions=["clipboard-read", "clipboard-write"])
    page.locator("#search").fill("img_1")
    page.get_by_role("button", name="Copy the list").click()
    page.get_by_role("button", name="Copied 111").wait_for()
    expected = [score.photo for score in best_first(scores) if "IMG_1" in score.photo]
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == expected


def test_the_benchmark(folder: Path, tmp_path: Path) -> None:
    """It measures each action in a browser, on any number of photos."""
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks/report.py"), str(folder), "--rounds", "1"]
    options = ["--photos", "320", "-o", str(tmp_path / "x.json"), "--keep", str(tmp_path / "r.html")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)  # in a process of its own
    assert done.returncode == 0, done.stderr
    assert "320 photos, " in done.stdout and done.stdout.count("floor ") == 3
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["photos"] == 320  # more than there are
    assert found["megabytes"] == pytest.approx((tmp_path / "r.html").stat().st_size / 1e6)
    sorts = [name for name in found if name.startswith("sort by ")]
    assert len(sorts) == 16 and all(0 < found[name][0][0] <= found[name][0][1] < 30 for name in sorts)
    assert 0 < found["load, first tiles"][0] < 30 and len(found["scroll, a frame"]) == 200
    assert found["reached"]["sort"] == max(found[name][0][0] for name in found if name.startswith("sort"))


# ---- while it is being read ------------------------------------------------------------------------------------------


@contextmanager
def slowly(path: Path, cut: int) -> Iterator[tuple[str, threading.Event]]:
    """Serve a file that stops after `cut` bytes until the event is set."""
    go_on, content = threading.Event(), path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut])
            self.wfile.flush()
            go_on.wait(300)
            self.wfile.write(content[cut:])

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", go_on
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()


def test_the_first_photos_come_first(scores: list[Score], tmp_path: Path, browser: Any) -> None:
    """They can be seen, sorted and opened while the rest of the file is being read; no picture is shown in part."""
    rng = np.random.default_rng(0)
    for i in range(30):  # so much noise that each picture is longer than what a browser reads at once
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / f"IMG_{i}.png")
    some = [replace(score, photo=str(tmp_path / Path(score.photo).name)) for score in scores[:30]]
    path = report(tmp_path / "r.html", some)
    cut = path.read_bytes().index(b'id="picture-4"') + 40_000
    with slowly(path, cut) as (address, go_on):
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(address, wait_until="commit")
        page.locator(".tile img").nth(2).wait_for(timeout=60_000)
        page.wait_for_timeout(200)
        assert page.evaluate("document.readyState") == "loading"
        tiles = page.locator(".tile")
        assert [tiles.nth(i).locator("img").count() for i in range(5)] == [1, 1, 1, 0, 0]
        assert page.locator(".none").count() == 0  # not yet is not never
        page.get_by_label("Sort by").select_option(label="Name")
        assert found(page) == "30 photos, by name, a to z"
        page.get_by_label("Sort by").select_option(label="Score")
        tiles.nth(4).get_by_role("link").click()
        page.locator("#photo").wait_for()
        assert page.locator("#photo-name .place").inner_text() == "5"
        page.keyboard.press("Escape")
        go_on.set()
        page.wait_for_load_state()
        page.locator(".tile img").nth(7).wait_for()
        widths = page.evaluate(
            "Promise.all([...document.querySelectorAll('.tile img')].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert len(widths) >= 8 and set(widths) == {400}
        page.close()
