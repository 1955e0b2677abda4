"""The page of `milnet serve` in a browser, against the real service: dropping, sorting, comparing, teaching, saving."""

from __future__ import annotations

import base64
import csv
import io
import json
import mimetypes
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import browsing
import made
from milnet.images import SUFFIXES
from milnet.outputs import write_scores
from milnet.report import _MODULES
from milnet.scoring import Reference, Score, ranked
from milnet.signals import Signals
from milnet.version import __version__

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

WEB = Path(__file__).parents[1] / "src/milnet/web"
COUNT = 20
TOKEN = "correct-horse-battery-staple"


# ---- the service, the browser, photos --------------------------------------------------------------------------------


def start(folder: Path, port: int = 0, **variables: str) -> tuple[subprocess.Popen[str], str]:
    """A service of its own, by default on a free port, and its address."""
    environment = {**os.environ, "MILNET_HOME": str(folder), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "milnet", "serve", "--model", "pocket", "--port", str(port)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"(http://127\.0\.0\.1:\d+/) is there", line):
            return process, found[1]
    raise AssertionError(said)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=45)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, address = start(tmp_path_factory.mktemp("service"))
    yield address
    stop(process)


def drawn(seed: int, width: int, height: int) -> Image.Image:
    """A pattern with shapes on it: unlike each other to the model, as smooth pictures are not."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    one, other = rng.integers(0, 256, (2, 3))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 120)
    along = x * np.cos(angle) + y * np.sin(angle)
    share = (
        along / np.abs(along).max(),
        (np.sin(2 * np.pi * along / period) > 0).astype(float),
        (x // period + y // period) % 2,
        rng.uniform(size=(height, width)),
        np.hypot(x - width * rng.uniform(), y - height * rng.uniform()) % period / period,
    )[seed % 5][..., None]
    image = Image.fromarray((one * (1 - share) + other * share).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(seed // 5 * 3):
        left, right = sorted(rng.integers(0, width, 2).tolist())
        top, bottom = sorted(rng.integers(0, height, 2).tolist())
        shape = draw.ellipse if rng.uniform() < 0.5 else draw.rectangle
        shape([left, top, right + 1, bottom + 1], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several shapes, all different: real ones where they are there, else made ones."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(640, 480), (480, 640), (600, 600), (720, 400)]
    paths = []
    given = Path(os.environ.get("MILNET_TEST_DATA", "nowhere")) / "data/oasis/images"
    real = sorted(given.glob("*.jpg"))[::30][:COUNT] if given.is_dir() else []
    for i in range(COUNT):
        path = folder / f"IMG_{i}.jpg"
        if real:
            shutil.copy(real[i], path)
        else:
            drawn(i, *sizes[i % len(sizes)]).save(path, quality=92)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.chromium() as one:
        yield one


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, service: str) -> Iterator[Open]:
    """Open the page; in the end nothing was refused by its policy, asked of others, or went wrong."""
    contexts, wrong = [], []
    expected: list[str] = []

    def opened(
        address: str = "",
        *,
        width: int = 1240,
        height: int = 860,
        allow: Sequence[str] = (),
        **how: Any,
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **how)
        contexts.append(context)
        expected.extend(["404 (Not Found)", *allow])  # pools come without pictures
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
        home = address or service
        page.on(
            "request",
            lambda request: None if request.url.startswith(("data:", "blob:", home)) else wrong.append(request.url),
        )
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('refused: ' + e.violatedDirective))"
        )
        page.goto(home)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [text for text in wrong if not any(part in text for part in expected)] == []


DROP = """async (files) => {
  const transfer = new DataTransfer();
  for (const [name, type, data] of files) {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type, lastModified: 1 }));
  }
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.querySelector('.drop').dispatchEvent(event);
  }
}"""


def drop(page: Any, paths: Sequence[Path]) -> None:
    """Drop files on the page, as a hand would."""
    page.locator("#files").wait_for()
    kinds = [mimetypes.guess_type(path.name)[0] or "" for path in paths]
    data = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    page.evaluate(DROP, [[path.name, kind, text] for path, kind, text in zip(paths, kinds, data, strict=True)])


def until(page: Any, expression: str, what: Any = True, seconds: float = 60) -> None:
    """Ask the page again and again: its policy does not let Playwright wait inside of it."""
    end = time.monotonic() + seconds
    while (found := page.evaluate(expression)) != what:
        assert time.monotonic() < end, f"{expression}: {found!r}"
        page.wait_for_timeout(20)


def done(page: Any, count: int) -> None:
    """Wait until so many photos are in the list and nothing is under way."""
    quiet = "document.getElementById('progress').hidden && document.getElementById('stopped').hidden"
    shown = f"/^(\\d+ of )?{count} photo/.test(document.getElementById('found').textContent)"
    until(page, f"{quiet} && {shown}")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def saved(page: Any, button: str = "#csv") -> str:
    with page.expect_download() as download:
        page.locator(button).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def names(page: Any) -> list[str]:
    """Names on the tiles there are, in the order of the document."""
    found: list[str] = page.locator("#sheet .name").all_text_contents()
    return found


# ---- pieces by themselves --------------------------------------------------------------------------------------------


def test_the_endings_are_those_the_service_reads(open_page: Open) -> None:
    page = open_page()
    found = page.evaluate("import('/static/gather.js').then((module) => [...module.SUFFIXES])")
    assert {f".{suffix}" for suffix in found} == SUFFIXES


def test_a_dropped_folder_is_walked(open_page: Open) -> None:
    """All of it, however few entries come at a time; hidden ones are passed over, unreadable ones named."""
    found = open_page().evaluate("""async () => {
      const file = (path, bad) => ({ isFile: true, name: path.split('/').pop(), fullPath: path, file: (done, fail) =>
        bad ? fail(new Error('gone')) : done(new File(['x'], path.split('/').pop())) });
      const folder = (path, entries) => ({ isFile: false, name: path.split('/').pop(), fullPath: path,
        createReader: () => { let at = 0; return { readEntries: (done) => done(entries.slice(at, at += 100)) }; } });
      const many = Array.from({ length: 250 }, (_, i) => file(`/trip/a/${i}.JPG`));
      const hidden = [folder('/trip/.thumbnails', [file('/trip/.thumbnails/x.jpg')]), file('/trip/.y.jpg'),
        folder('/trip/@eaDir', [file('/trip/@eaDir/z.jpg')])];
      const other = [file('/trip/notes.txt'), file('/trip/gone.jpg', true)];
      const root = folder('/trip', [folder('/trip/a', many), ...hidden, ...other, file('/trip/b.heic')]);
      const text = { kind: 'string' }, item = (entry) => ({ kind: 'file', webkitGetAsEntry: () => entry });
      const { dropped } = await import('/static/gather.js');
      const { photos, others } = await dropped({ items: [text, item(root), item(file('/c.png'))], files: [] });
      return [photos.map(({ path }) => path), others];
    }""")
    photos = sorted([f"trip/a/{i}.JPG" for i in range(250)] + ["trip/b.heic", "c.png"])
    assert found[0] == photos and sorted(found[1]) == ["trip/gone.jpg", "trip/notes.txt"]


def awkward_scores() -> list[Score]:
    rng = random.Random(0)
    values = (1.0, 1.5, 2.0)
    texts = ["a.jpg", 'b,"c".jpg', "=1+1.jpg", "d\u00e9\u4e2d.jpg", "e f;g.jpg", "h\ni.jpg", "-5", "@x", ""]
    scores = []
    for i, text in enumerate(texts):
        x = [rng.uniform(-1, 1) * 10 ** rng.randint(-9, 18) for _ in range(12)]
        reference = Reference(f'r\u00e9f"{i}\\\t', x[0], (x[1], 2.0, 0.0), x[2])
        scores.append(
            Score(
                photo=text, score=x[3] if i else 3.0, low=None if i % 2 else x[4], high=x[5], spread=None,
                percentile=100.0, stars=None if i % 3 else 2, folder_percentile=None, unlike=x[6],
                distribution=(0.25, x[7], 1e-7),
                base=x[8], own=-0.0, references=(reference,) * (i % 3), rest=1e16, values=values, model="d" * 64,
                signals=None if i == 4 else Signals(6000, 4000, x[9], 0.0, 1e-5, x[10]),
                group=None if i % 2 else i, rank=None if i % 2 else 1, keep=None if i % 2 else i > 3,
            )
        )  # fmt: skip
    return ranked(scores)


def test_the_csv_is_that_of_the_command(open_page: Open, tmp_path: Path) -> None:
    """Byte by byte what `milnet score -o scores.csv` writes, of awkward names and numbers."""
    scores = awkward_scores()
    write_scores(tmp_path / "scores.csv", scores, scores[0].values)
    given = [
        {
            "path": score.photo,
            "score": {**json.loads(json.dumps(score.to_json())), "distribution": score.distribution},
            "stars": score.stars,
            "folderPercentile": score.folder_percentile,
            "burst": None if score.group is None else {"number": score.group, "rank": score.rank, "keep": score.keep},
        }
        for score in scores
    ]
    page = open_page()
    text = page.evaluate(
        "([rows, about]) => import('/static/table.js').then((module) => module.csvOf(rows, about))",
        [given, {"values": list(scores[0].values), "digest": "d" * 64, "version": __version__}],
    )
    assert text.encode() == (tmp_path / "scores.csv").read_bytes()


def test_numbers_are_written_as_python_does(open_page: Open) -> None:
    rng = random.Random(1)
    numbers = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(3000)]
    numbers += [float(f"{rng.uniform(-10, 10):.3g}e{k}") for k in range(-8, 20) for _ in range(20)]
    numbers = [x for x in numbers if x == x and abs(x) != float("inf")] + [0.0, -0.0, 1e16, 1e-4, 1e-5, 123456789.0]
    texts = open_page().evaluate(
        "(numbers) => import('/static/table.js').then((module) => numbers.map(module.pythonNumber))", numbers
    )
    assert texts == [repr(x) for x in numbers]


def test_percentiles_among_the_photos(open_page: Open) -> None:
    rng = random.Random(2)
    for count in (1, 2, 7, 40):
        base = awkward_scores()[0]
        values = [rng.randint(0, count // 2) + rng.choice((0, 1e-6, 1e-3)) for _ in range(count)]
        scores = ranked([replace(base, score=value) for value in values])
        found = open_page().evaluate(
            "(x) => import('/static/table.js').then(({percentilesAmong}) => x.map(percentilesAmong(x)))",
            [score.score for score in scores],
        )
        expected = [score.folder_percentile for score in scores]
        assert found == (expected if count < 2 else pytest.approx(expected, abs=1e-12))


def test_the_report_needs_no_module_of_the_page() -> None:
    assert set(_MODULES) == {"pieces.js", "gallery.js", "report.js"}
    for path in WEB.glob("*.jinja"):
        text = path.read_text(encoding="utf-8")
        if path.name in ("serve.html.jinja", "about.html.jinja"):
            assert not re.search(r"<style|style=|\son[a-z]+=|<script(?![^>]*\bsrc=)", text), path.name


# ---- photos come -----------------------------------------------------------------------------------------------------


def test_an_empty_page(open_page: Open) -> None:
    page = open_page()
    page.locator("#files").wait_for()
    text = page.locator("main").inner_text()
    assert "Drop photos or folders here" in text and "nowhere else" in text
    assert page.locator("#where").inner_text() in page.url
    assert not page.locator("#app").is_visible() and not page.locator("#teach-toggle").is_visible()


def test_twenty_photos(open_page: Open, service: str, photos: list[Path], tmp_path: Path) -> None:
    """Dropped, watched, sorted, filtered, compared, saved: with the numbers of `milnet score`."""
    page = open_page()
    bad, text = tmp_path / "bad.jpg", tmp_path / "notes.txt"
    bad.write_bytes(b"no photo")
    text.write_text("x")
    page.evaluate("""() => {
      window.seen = [];
      new MutationObserver(() => {
        const bar = document.getElementById('bar');
        window.seen.push([document.getElementById('progress-words').textContent, bar.getAttribute('aria-valuenow'),
          document.querySelectorAll('.tile').length]);
      }).observe(document.getElementById('progress'), { subtree: true, childList: true, attributes: true });
    }""")
    drop(page, [*photos, bad, text])
    done(page, COUNT)
    seen = page.evaluate("window.seen")
    assert re.match(r"\d+ of 21(, [\d.]+ photos a second, \d+ s left)?$", seen[-1][0]), seen[-1]
    shares = [int(share) for _, share, _ in seen]
    assert shares == sorted(shares) and shares[0] < 20 and shares[-1] == 100
    assert page.locator("#failed-count").inner_text() == "1 photo could not be scored"
    assert "bad.jpg" in (page.locator("#failed-list").text_content() or "")
    assert page.locator("#others-count").inner_text().startswith("1 file left out")
    assert page.locator("#others-list").text_content() == "notes.txt"
    # each tile shows its own photo
    until(page, "document.querySelectorAll('.tile img').length >= 8")
    for tile in page.locator(".tile").all()[:4]:
        size = "async (i) => { await i.decode(); return i.naturalWidth / i.naturalHeight; }"
        ratio = tile.locator("img").evaluate(size)
        with Image.open(photos[0].parent / tile.locator(".name").inner_text()) as image:
            assert ratio == pytest.approx(image.width / image.height, rel=0.02)

    expected = tmp_path / "scores.csv"
    command = [sys.executable, "-m", "milnet", "score", *map(str, photos), "-o", str(expected), "--quiet"]
    home = {"MILNET_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **home})
    theirs = {Path(row["photo"]).name: row for row in rows(expected.read_text())}
    ours = rows(saved(page))
    # shares of the pool's 677 photos: rounding takes a photo over one of them or two
    apart = {"unlike": 2 / 677, "percentile": 0.3}
    assert list(ours[0]) == list(next(iter(theirs.values())))
    assert [row["photo"] for row in ours] == sorted(theirs, key=lambda name: (-float(theirs[name]["score"]), name))
    for row in ours:
        other = theirs[row["photo"]]
        for key in set(row) - {"photo", "references"}:
            try:
                assert float(row[key]) == pytest.approx(float(other[key]), abs=apart.get(key, 1e-5)), (
                    row["photo"],
                    key,
                )
            except ValueError:
                assert row[key] == other[key], (row["photo"], key)
        mine, references = json.loads(row["references"]), json.loads(other["references"])
        assert [one["id"] for one in mine] == [one["id"] for one in references]
        assert list(mine[0]) == list(references[0])

    by_name = sorted(theirs, key=lambda name: int(name[4:-4]))
    page.get_by_label("Sort by").select_option(label="Name")
    assert names(page) == by_name[: len(names(page))]
    page.get_by_label("Sort by").select_option(label="Score")
    page.locator("#direction").click()
    assert names(page)[0] == ours[-1]["photo"]
    page.get_by_role("button", name="Filter", exact=True).click()
    limit = round(float(ours[9]["score"]), 2)
    page.locator("#from-score").fill(str(limit))
    passing = [row["photo"] for row in ours if round(float(row["score"]), 2) >= limit]
    assert page.locator("#found").inner_text() == f"{len(passing)} of 20 photos, by score, lowest first"
    assert sorted(row["photo"] for row in rows(saved(page))) == sorted(passing)
    assert len(rows(saved(page, "#csv-all"))) == COUNT
    page.get_by_role("button", name=re.compile("Score from .*: end this filter")).click()

    page.locator("#direction").click()
    first, second = page.locator(".tile").nth(0), page.locator(".tile").nth(1)
    for tile in (first, second):
        tile.hover()
        tile.locator(".tick").click()
    page.locator("#tray").get_by_role("button", name="Compare", exact=True).click()
    gap = round(float(ours[0]["score"]), 2) - round(float(ours[1]["score"]), 2)
    verdict = page.locator("#compare .verdict").inner_text()
    assert f"scores {gap:.2f} higher than" in verdict if gap >= 0.005 else "the same score" in verdict
    assert page.locator("#compare .parts tfoot td.number").first.inner_text() == f"{float(ours[0]['score']):.3f}"
    page.keyboard.press("Escape")

    first.get_by_role("link").click()
    shown = page.locator("#photo")
    shown.locator("img").first.wait_for()
    assert shown.locator(".score b").inner_text() == f"{float(ours[0]['score']):.2f}"
    parts = [
        float(cell.inner_text().replace("\u2212", "-"))
        for cell in shown.locator(".parts tbody tr td.number:last-child").all()
    ]
    assert sum(parts) == pytest.approx(float(ours[0]["score"]), abs=0.01)
    assert "Sharpness" in shown.inner_text()
    # in its own page a photo is shown as large as it is
    with Image.open(photos[0].parent / ours[0]["photo"]) as image:
        shown.locator(".frame img").first.evaluate("(i) => i.decode()")
        assert shown.locator(".face img").evaluate("(i) => i.naturalWidth") == image.width


def test_the_same_photo_is_one(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    """Dropped again, or under another name: it is shown once."""
    page = open_page()
    copy = tmp_path / "copy.jpg"
    shutil.copy(photos[0], copy)
    drop(page, [photos[0], photos[1], copy])
    done(page, 2)
    assert page.locator("#twice").inner_text() == "1 file had been there already, and is shown once."
    drop(page, [photos[0], photos[2]])
    done(page, 3)
    assert page.locator("#twice").inner_text().startswith("2 files")


def test_a_folder(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    """With its subfolders; hidden files do not count; equal names are told apart by their folders."""
    for name, source in (("trip/a/x.jpg", 0), ("trip/b/x.jpg", 1), ("trip/y.jpg", 2), ("trip/.hidden.jpg", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos[source], tmp_path / name)
    (tmp_path / "trip/a/x.xmp").write_text("<x/>")
    page = open_page()
    page.locator("#folder-input").set_input_files(tmp_path / "trip")
    done(page, 3)
    assert sorted(names(page)) == ["a/x.jpg", "b/x.jpg", "y.jpg"]
    assert sorted(row["photo"] for row in rows(saved(page))) == ["trip/a/x.jpg", "trip/b/x.jpg", "trip/y.jpg"]
    assert page.locator("#others-list").text_content() == "trip/a/x.xmp"


def test_more_photos_leave_the_reader_alone(open_page: Open, photos: list[Path]) -> None:
    """Order, filter, mark, focus and the open page stay while others come."""
    page = open_page()
    drop(page, photos[:6])
    done(page, 6)
    page.get_by_label("Sort by").select_option(label="Name")
    page.locator("#search").fill("IMG_")
    page.locator(".tile .open").nth(3).focus()
    page.keyboard.press("c")
    drop(page, photos[6:10])
    done(page, 10)
    assert page.evaluate("document.activeElement.closest('.tile').querySelector('.name').textContent") == "IMG_3.jpg"
    assert page.locator(".tile.marked .name").all_inner_texts() == ["IMG_3.jpg"]
    assert names(page) == [path.name for path in photos[:10]]
    page.keyboard.press("Enter")
    page.locator("#photo .where").wait_for()
    assert page.locator("#photo .where").inner_text() == "4 of 10"
    page.locator("#photo .dialog-body").evaluate("(e) => { e.scrollTop = 120; }")
    drop(page, photos[10:14])
    until(page, "document.querySelector('#photo .where').textContent === '4 of 14'")
    assert page.locator("#photo").is_visible() and "IMG_3.jpg" in page.locator("#photo-name").inner_text()
    assert page.locator("#photo .dialog-body").evaluate("(e) => e.scrollTop") == 120


def test_pictures_come_for_what_is_in_view(open_page: Open, service: str, tmp_path: Path) -> None:
    """Of many photos only those near the view are decoded, and what the browser cannot show the service shows."""
    paths = []
    for i in range(60):
        paths.append(tmp_path / f"p{i}.png")
        made.photo(i, 64, 48).save(paths[-1])
    other = tmp_path / "other.tif"
    made.photo(99, 300, 200).save(other)
    page = open_page(height=600)
    previews: list[str] = []
    page.on("request", lambda request: previews.append(request.url) if request.url.endswith("v1/preview") else None)
    page.evaluate("""() => {
      window.made = 0;
      const before = window.createImageBitmap;
      window.createImageBitmap = (...given) => { window.made++; return before(...given); };
    }""")
    drop(page, [*paths, other])
    done(page, 61)
    page.locator("#search").fill("other")
    image = page.locator(".tile img")
    image.wait_for()
    assert image.evaluate("async (i) => { await i.decode(); return [i.naturalWidth, i.naturalHeight]; }") == [300, 200]
    assert len(previews) == 1
    assert 5 <= page.evaluate("window.made") < 50  # those seen while they came, too
    page.locator(".tile .open").click()
    page.locator("#photo .face img").wait_for()
    until(page, "document.querySelector('#photo .face img').naturalWidth === 300")


# ---- when things go wrong --------------------------------------------------------------------------------------------


def test_a_busy_service(open_page: Open, photos: list[Path]) -> None:
    """429: it waits as long as it is told to, says so, and goes on."""
    page = open_page(allow=["429"])
    refused: list[Any] = []

    def busy(route: Any) -> None:
        if len(refused) < 2:
            refused.append(route)
            route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/problem+json", body="{}")
        else:
            route.continue_()

    page.route("**/v1/explain*", busy)
    drop(page, photos[:3])
    page.get_by_text("The service is busy: going on in 1 second").wait_for()
    done(page, 3)
    assert len(refused) == 2


def test_a_lost_connection(open_page: Open, photos: list[Path]) -> None:
    """What was not scored is kept; Try again sends that alone."""
    page = open_page(allow=["ERR_FAILED", "ERR_CONNECTION", "ERR_INTERNET"])
    calls: list[int] = []

    def lost(route: Any) -> None:
        calls.append((route.request.post_data_buffer or b"").count(b'name="photos"'))
        route.abort() if len(calls) == 2 else route.continue_()

    page.route("**/v1/explain*", lost)
    drop(page, photos)
    page.locator("#stopped").wait_for()
    assert "The connection to the service was lost. " in page.locator("#stopped-words").inner_text()
    sent = sum(calls)
    page.get_by_role("button", name="Try again").click()
    done(page, COUNT)
    assert sum(calls) - sent == COUNT - (sent - calls[1])
    assert page.locator("#failures").is_hidden()


def test_an_answer_that_ends_early(open_page: Open, photos: list[Path]) -> None:
    page = open_page()
    cut: list[int] = []

    def early(route: Any) -> None:
        if cut:
            return route.continue_()
        answer = route.fetch()
        cut.append(1)
        lines = answer.text().splitlines(keepends=True)
        return route.fulfill(response=answer, body="".join(lines[:2]))

    page.route("**/v1/explain*", early)
    drop(page, photos[:5])
    page.locator("#stopped").wait_for()
    assert "3 photos are not scored yet." in page.locator("#stopped-words").inner_text()
    page.get_by_role("button", name="Try again").click()
    done(page, 5)


def test_cancel(open_page: Open, photos: list[Path]) -> None:
    """What is scored stays, the rest is gone, and can be dropped again."""
    page = open_page(allow=["ERR_FAILED"])
    held: list[Any] = []
    page.route("**/v1/explain*", lambda route: route.continue_() if not held else None)
    drop(page, photos[:2])
    done(page, 2)
    held.append(True)
    drop(page, photos[:6])
    page.locator("#cancel").click()
    done(page, 2)
    held.clear()
    drop(page, photos[:6])
    done(page, 6)


def test_a_photo_that_is_too_large(open_page: Open, photos: list[Path]) -> None:
    """413 of a call of several: each is sent alone, and the one is named."""
    page = open_page(allow=["413"])

    def large(route: Any) -> None:
        if b"IMG_1.jpg" in (route.request.post_data_buffer or b""):
            problem = {"title": "no", "status": 413, "detail": "a photo is too large"}
            return route.fulfill(status=413, content_type="application/problem+json", body=json.dumps(problem))
        return route.continue_()

    page.route("**/v1/explain*", large)
    drop(page, photos[:4])
    done(page, 3)
    assert page.locator("#failed-list").text_content() == "IMG_1.jpga photo is too large"


def test_the_token(browser: Any, open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    """It is asked for, a wrong one is refused, the right one holds over a reload, and never stands in an address.

    When the service was started anew meanwhile, the page goes on with it.
    """
    process, address = start(tmp_path, MILNET_TOKEN=TOKEN)
    try:
        page = open_page(address, allow=["401", "ERR_CONNECTION_REFUSED"])
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        dialog = page.locator("#token")
        dialog.wait_for()
        assert not page.locator("#files").is_visible()
        page.locator("#token-field").fill("a-wrong-one-of-some-length")
        page.keyboard.press("Enter")
        page.get_by_text("This is not the token of this service.").wait_for()
        page.keyboard.press("Escape")
        assert dialog.is_visible()
        page.locator("#token-field").fill(TOKEN)
        page.get_by_role("button", name="Use it").click()
        drop(page, photos[:3])
        done(page, 3)
        page.reload()
        drop(page, photos[:1])
        done(page, 1)
        stop(process)
        drop(page, photos[1:3])
        page.locator("#stopped").wait_for()
        page.get_by_role("button", name="Try again").click()
        until(page, "document.getElementById('stopped-words').textContent.startsWith('The service still does')")
        process, _ = start(tmp_path, int(address.rsplit(":", 1)[1].strip("/")), MILNET_TOKEN=TOKEN)
        page.get_by_role("button", name="Try again").click()
        done(page, 3)
        assert len(asked) > 5 and not any(TOKEN in url for url in asked)
        assert page.evaluate("localStorage.getItem('milnet-token')") is None
    finally:
        stop(process)


# ---- one's own taste -------------------------------------------------------------------------------------------------


def test_a_taste(open_page: Open, service: str, photos: list[Path]) -> None:
    """Rated by keys and by hand, learned, used, downloaded; after a reload ratings and taste are there; removed."""
    page = open_page(allow=["409", "404"])
    drop(page, photos)
    done(page, COUNT)
    scores = {row["photo"]: float(row["score"]) for row in rows(saved(page))}
    page.get_by_role("button", name="Teach it your taste").click()
    assert page.locator("#learn").is_disabled()
    page.get_by_label("Sort by").select_option(label="Name")
    page.locator("#direction").click()  # from z to a, and back
    page.locator("#direction").click()
    page.locator(".tile .open").first.focus()
    given = {path.name: 1 + (3 * i) % 5 for i, path in enumerate(photos[:14])}
    for path in photos[:14]:
        page.keyboard.press(str(given[path.name]))
        page.keyboard.press("ArrowRight")
    assert page.locator("#rated").inner_text().startswith("14 rated; 10 are the least")
    assert page.locator("#said").inner_text().startswith("IMG_13.jpg")
    tile = page.locator(".tile", has_text="IMG_0.jpg")
    assert tile.locator(".give.on").count() == given["IMG_0.jpg"]
    tile.get_by_role("button", name=f"{given['IMG_0.jpg']} star", exact=False).first.click()  # takes it off
    assert page.locator("#rated").inner_text().startswith("13 rated")
    tile.get_by_role("button", name="2 stars").click()
    given["IMG_0.jpg"] = 2
    page.get_by_role("button", name="Save the ratings").scroll_into_view_if_needed()
    listed = {row["photo"]: int(row["rating"]) for row in rows(saved(page, "#save-ratings"))}
    assert listed == given

    # the service has forgotten one: it is sent again, and then the ratings
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.url) if "/v1/" in request.url else None)
    ids = page.evaluate("Object.keys(JSON.parse(localStorage.getItem('milnet-ratings')))")
    once: list[int] = []

    def forgotten(route: Any) -> None:
        if once:
            return route.continue_()
        once.append(1)
        problem = {"status": 409, "title": "no", "detail": "some are not remembered", "missing": ids[:2]}
        return route.fulfill(status=409, content_type="application/problem+json", body=json.dumps(problem))

    page.route("**/v1/tastes", forgotten)
    page.locator("#taste-name").fill("mine")
    page.locator("#learn").click()
    item = page.locator("#tastes li", has_text="mine")
    item.wait_for()
    assert [url.rsplit("/v1/")[1] for url in calls[:3]] == ["tastes", "score", "tastes"]
    with urllib.request.urlopen(service + "v1/models") as answer:
        (taste,) = [one for one in json.load(answer)["models"] if one["name"] == "mine"]
    text = item.inner_text()
    assert taste["checked"]["verdict"][1:] in text
    for name in ("general", "alone", "both"):
        assert f"{taste['checked'][name]:.2f}".replace("-", "\u2212") in text
    with page.expect_download() as download:
        item.get_by_role("button", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert any(name.endswith("manifest.json") for name in archive.namelist())

    item.get_by_role("button", name="Use it").click()
    page.get_by_role("heading", name="What you would say about your photos").wait_for()
    done(page, COUNT)
    own = {row["photo"]: row for row in rows(saved(page))}
    assert own.keys() == scores.keys() and "p_5" in own["IMG_0.jpg"] and "p_7" not in own["IMG_0.jpg"]
    assert own["IMG_0.jpg"]["model"] == taste["digest"]
    page.locator("#teach-close").click()
    page.locator(".tile .open").first.click()
    reference = page.locator("#photo .reference").first  # one of the photos dropped here, with its picture
    reference.locator("img").wait_for()
    assert reference.locator("bdi").inner_text() in given
    page.keyboard.press("Escape")
    page.get_by_label("Model").select_option("pocket")
    page.get_by_role("heading", name="What people would say about your photos").wait_for()
    done(page, COUNT)
    assert {row["photo"]: float(row["score"]) for row in rows(saved(page))} == scores

    page.reload()
    drop(page, photos)
    done(page, COUNT)
    assert "mine (your taste)" in page.locator("#model option").all_inner_texts()
    page.get_by_role("button", name="Teach it your taste").click()
    assert page.locator("#rated").inner_text().startswith("14 rated")
    page.get_by_label("Sort by").select_option(label="Your rating")
    stars = [tile.locator(".give.on").count() for tile in page.locator(".tile").all()]
    assert len(stars) >= 4 and stars[:12] == sorted(given.values(), reverse=True)[: len(stars)][:12]
    page.locator("#tastes li", has_text="mine").get_by_role("button", name="Remove").click()
    until(page, "!document.getElementById('tastes').textContent.includes('mine')")
    page.get_by_role("button", name="Forget all ratings").click()
    assert page.locator("#rated").inner_text().startswith("14 rated")  # it asks first
    page.get_by_role("button", name="Press again to forget all").click()
    assert page.locator("#rated").inner_text().startswith("0 rated")
    assert page.locator(".give.on").count() == 0


def test_what_the_service_forgot_is_sent_again(open_page: Open, photos: list[Path]) -> None:
    """Another model is asked by ids; those it does not know are sent as files."""
    page = open_page()
    drop(page, photos[:10])
    done(page, 10)
    page.get_by_role("button", name="Teach it your taste").click()
    page.locator(".tile .open").first.focus()
    for i in range(10):
        page.keyboard.press(str(1 + i % 5))
        page.keyboard.press("ArrowRight")
    page.locator("#taste-name").fill("other")
    page.locator("#learn").click()
    item = page.locator("#tastes li", has_text="other")
    item.wait_for()
    sent: list[str] = []

    def forget(route: Any) -> None:
        kind = route.request.headers["content-type"].split(";")[0]
        sent.append(kind)
        if kind != "application/json":
            return route.continue_()
        ids = json.loads(route.request.post_data)["ids"]
        told = {"photo": "", "reason": "?", "unknown": True}
        lines = [{"failure": {"index": i, "id": one, **told}} for i, one in enumerate(ids)]
        body = "".join(f"{json.dumps(line)}\n" for line in lines)
        return route.fulfill(status=200, content_type="application/x-ndjson", body=body)

    page.route("**/v1/explain*", forget)
    item.get_by_role("button", name="Use it").click()
    page.get_by_role("heading", name="What you would say about your photos").wait_for()
    done(page, 10)
    assert sent[0] == "application/json" and set(sent[1:]) == {"multipart/form-data"}
    assert page.locator("#failures").is_hidden()
    item.get_by_role("button", name="Remove").click()
    page.get_by_role("heading", name="What people would say about your photos").wait_for()
    done(page, 10)


# ---- for everybody ---------------------------------------------------------------------------------------------------


def axe(page: Any, what: str) -> None:
    """No serious or critical violation."""
    package = pytest.importorskip("axe_playwright_python", reason="needs the Python package axe-playwright-python")
    script = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    worst = [
        (one["id"], [node["html"][:150] for node in one["nodes"]][:3])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert worst == [], what


@pytest.mark.parametrize(("scheme", "width"), [("light", 1240), ("dark", 1240), ("light", 390)])
def test_accessible(open_page: Open, photos: list[Path], tmp_path: Path, scheme: str, width: int) -> None:
    bad, text = tmp_path / "bad.jpg", tmp_path / "notes.txt"
    bad.write_bytes(b"no photo")
    text.write_text("x")
    page = open_page(width=width, height=844, color_scheme=scheme)
    page.locator("#files").wait_for()
    axe(page, "empty")
    drop(page, [*photos[:12], bad, text])
    done(page, 12)
    until(page, "document.querySelectorAll('.tile img').length >= 2")
    axe(page, "photos")
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_role("button", name="Teach it your taste").click()
    page.locator("#failures summary").click()
    page.locator("#others summary").click()
    for tile in page.locator(".tile").all()[:3]:
        tile.get_by_role("button", name="4 stars").click()
    axe(page, "filters and teaching")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Table", exact=True).click()
    page.locator("#list").scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('.row').length > 0")
    if width > 700:
        assert page.locator(".row .rating").count() == page.locator(".row").count()
    axe(page, "table")
    page.get_by_role("button", name="Grid", exact=True).click()
    page.locator("#list").scroll_into_view_if_needed()
    page.locator(".tile .open").first.click()
    page.locator("#photo").wait_for()
    axe(page, "a photo")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("c")
    page.keyboard.press("v")
    page.locator("#compare").wait_for()
    axe(page, "compare")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(page.url.split("#")[0] + "about")
    page.locator("#model-list .panel").first.wait_for()
    axe(page, "about")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "pocket" in page.locator("#model-list").inner_text()


def test_keyboard_alone(open_page: Open, photos: list[Path]) -> None:
    """From the top of the page to a comparison and a rating without a pointer; the focus is never lost."""
    page = open_page()
    page.on("filechooser", lambda chooser: chooser.set_files(photos[:8]))
    page.locator("#files").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the photos"
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert seen.index("files") < seen.index("folder")
    page.locator("#files").focus()
    page.keyboard.press("Enter")
    done(page, 8)
    assert page.evaluate("document.activeElement.id") == "files"
    while page.evaluate("document.activeElement.id") != "teach-toggle":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "teach-title"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('open')"):
            break
    first = page.evaluate("document.activeElement.querySelector('.name').textContent")
    assert first == names(page)[0]
    page.keyboard.press("4")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("c")
    assert page.locator("#rated").inner_text().startswith("1 rated")
    page.keyboard.press("Enter")
    page.locator("#photo").wait_for()
    page.keyboard.press("5")
    assert page.locator("#photo .give.on").count() == 5
    page.keyboard.press("Backspace")
    assert page.locator("#photo .give.on").count() == 0
    page.keyboard.press("v")
    page.locator("#compare").wait_for()
    page.keyboard.press("Escape")
    page.locator("#photo").wait_for()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog[open]')")
    until(page, "document.activeElement.closest('.tile') !== null")


def test_paste(open_page: Open, photos: list[Path]) -> None:
    page = open_page()
    page.locator("#files").wait_for()
    page.evaluate(
        """(data) => {
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], 'image.jpg', { type: 'image/jpeg' }));
      document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }));
    }""",
        base64.b64encode(photos[0].read_bytes()).decode(),
    )
    done(page, 1)
    assert names(page) == ["image.jpg"]
