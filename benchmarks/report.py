"""How a report of many photos behaves in a browser: loading, sorting, filtering, opening, scrolling.

    python benchmarks/report.py PHOTOS/ --photos 2000 -o report.json [--keep report.html]

The pictures are those of real photos. The scores are made up, from a seeded generator: features of the pool's photos
are mixed in pairs and scored by the model, so that references, parts, intervals and percentiles are as real ones are;
signals and bursts are random. Where more photos are asked for than there are, they are repeated. Chromium runs without
a screen and without a graphics card, from a file, its cache empty.

* load: from the start of the navigation until the first tiles are painted with their pictures decoded, and until the
  whole file is read; a fresh browser for each round.
* sort, filter, open: from the event of the input until the frame after the change is painted, and until all pictures
  in view are decoded as well. For each key the median over the rounds.
* scroll: the time between frames while the list is scrolled by 400 pixels a frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from milnet.library import photos_below
from milnet.report import write_report
from milnet.scoring import Score, Scorer, ranked
from milnet.signals import Signals
from milnet.version import __version__

FLOORS = {"load, first tiles": 2.0, "sort": 0.1, "megabytes": 60.0}  # seconds, seconds, 10^6 bytes for 2,000 photos

# Both resolve with the time at which it is so, on the clock of the page.
WAIT = """
  const frame = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();  // answered after the frame is handed on
    channel.port1.onmessage = () => done(performance.now());
    channel.port2.postMessage(0);
  }));
  const pictures = async () => {
    const inside = [...document.querySelectorAll('#sheet img, dialog[open] img')].filter((image) => {
      const box = image.getBoundingClientRect();
      return box.bottom > 0 && box.top < innerHeight;
    });
    await Promise.all(inside.map((image) => image.decode()));
    await frame();
    return performance.now();
  };
"""
LOADED = """
(() => {
  // WAIT
  const look = async () => {
    const inside = (tile) => tile.getBoundingClientRect().top < innerHeight;
    const tiles = [...document.querySelectorAll('.tile')].filter(inside);
    if (!tiles.length || tiles.some((tile) => !tile.querySelector('img, .none'))) return requestAnimationFrame(look);
    await pictures();
    window.milnetFirst = performance.now();
  };
  requestAnimationFrame(look);
})();
""".replace("// WAIT", WAIT)
DO = """async ([what, value]) => {
  // WAIT
  const began = performance.now();
  if (what === 'sort') {
    const select = document.getElementById('sort');
    select.value = value;
    select.dispatchEvent(new Event('change', { bubbles: true }));
  } else if (what === 'turn') document.getElementById('direction').click();
  else if (what === 'search') {
    const field = document.getElementById('search');
    field.value = value;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  } else if (what === 'range') {
    const field = document.getElementById('from-score');
    field.value = value;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  } else if (what === 'layout') document.querySelector(`[data-layout=${value}]`).click();
  else if (what === 'open') {
    const shown = new Promise((done) => addEventListener('hashchange', done, { once: true }));
    location.hash = value;
    await shown;
  }
  const painted = (await frame()) - began;
  const decoded = (await pictures()) - began;
  return [painted / 1000, decoded / 1000];
}""".replace("// WAIT", WAIT)
SCROLL = """async (steps) => {
  const gaps = [];
  let last = performance.now();
  for (let i = 0; i < steps; i++) {
    scrollBy(0, 400);
    await new Promise((done) => requestAnimationFrame(done));
    const now = performance.now();
    gaps.push((now - last) / 1000);
    last = now;
  }
  return gaps;
}"""


def make_scores(model: str, photos: list[Path]) -> tuple[Scorer, list[Score]]:
    """Scores of photos that were never looked at: mixtures of two pool photos each, from a seeded generator."""
    scorer = Scorer.load(model)
    pool, count = scorer.model.pool, len(photos)
    rng = np.random.default_rng(0)
    pairs, weight = rng.integers(0, len(pool), (count, 2)), rng.uniform(0.2, 0.8, (count, 1))
    nodes, semantic = (
        (features[pairs[:, 0]] * weight + features[pairs[:, 1]] * (1 - weight)).astype(np.float32)
        for features in (pool.nodes, pool.semantic)
    )
    scores = ranked(scorer.score_features(nodes, semantic, photos=[str(photo) for photo in photos]))
    found: list[Score] = []
    while len(found) < count:
        members = scores[len(found) : len(found) + int(rng.choice([1, 1, 1, 2, 3, 5]))]
        order = sorted(range(len(members)), key=lambda i: -members[i].score)
        for i, score in enumerate(members):
            sharpness, highlights, shadows, noise = (
                rng.uniform(0, 100),
                rng.beta(1, 50),
                rng.beta(1, 50),
                rng.gamma(2, 1),
            )
            score = replace(
                score, signals=Signals(6000, 4000, float(sharpness), float(highlights), float(shadows), float(noise))
            )
            if len(members) > 1:
                rank = order.index(i) + 1
                score = replace(score, group=len(found) - i, rank=rank, keep=rank == 1)
            found.append(score)
    return scorer, found


def measure(report: Path, rounds: int, chromium: str) -> dict[str, Any]:
    """Seconds of each action, one number a round: [until painted, until decoded] where both are measured."""
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {"load, first tiles": [], "load, whole file": []}
    arguments = ["--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        for _ in range(rounds):
            browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            page.add_init_script(LOADED)
            page.goto(report.as_uri())
            while not page.evaluate("window.milnetFirst"):  # waiting in the page itself is against its policy
                time.sleep(0.005)
            first, whole = page.evaluate(
                "[window.milnetFirst, performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd]"
            )
            found["load, first tiles"].append(first / 1000)
            found["load, whole file"].append(whole / 1000)
            found["browser"] = f"Chromium {browser.version}"
            browser.close()
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.goto(report.as_uri())

        def act(name: str, *step: str) -> None:
            found.setdefault(name, []).append(page.evaluate(DO, list(step)))

        keys = page.locator("#sort option").evaluate_all("options => options.map(option => option.value)")
        page.evaluate("document.getElementById('list').scrollIntoView()")  # the list fills the window
        for _ in range(rounds):
            for layout in ("grid", "table"):
                act(f"view {layout}", "layout", layout)
                for key in keys[1:] + keys[:1]:
                    act(f"sort by {key}, {layout}", "sort", key)
                act(f"sort turned, {layout}", "turn", "")
                act(f"sort turned, {layout}", "turn", "")
            act("view grid", "layout", "grid")
            act("filter by name", "search", "1")
            act("filter by name", "search", "")
            act("filter by score", "range", "4.2")
            act("filter by score", "range", "")
        for place in range(1, rounds + 1):
            act("open a photo", "open", f"#photo-{place * 7}")
            page.go_back()
            act("compare two", "open", f"#compare-{place * 7}-{place * 5 + 1}")
            page.go_back()
        found["scroll, a frame"] = page.evaluate(SCROLL, 200)
        found["elements"] = page.evaluate("document.querySelectorAll('#sheet *').length")
        page.evaluate("scrollTo(0, 0)")
        found["memory, megabytes"] = page.evaluate("performance.memory.usedJSHeapSize / 1e6")
        browser.close()
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where the report stays")
    parser.add_argument("--output", "-o", type=Path)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("needs the program chromium")
    photos = photos_below(options.folder)
    order = np.random.default_rng(0).permutation(len(photos))
    photos = [photos[i] for i in np.resize(order, options.photos)]
    scorer, scores = make_scores(options.model, photos)
    with tempfile.TemporaryDirectory(prefix="milnet-report-") as folder:
        report = (options.keep or Path(folder) / "report.html").resolve()
        began = time.perf_counter()
        write_report(report, scores, [], scorer=scorer, introduction="made-up scores", command="benchmarks/report.py")
        wrote = time.perf_counter() - began
        found = measure(report, options.rounds, chromium)
        size = report.stat().st_size / 1e6
    found |= {"photos": len(photos), "megabytes": size, "written, seconds": wrote}
    print(f"{len(photos):,} photos, {size:.1f} MB, written in {wrote:.1f} s; {found['browser']}, {platform.machine()}")
    worst = 0.0
    for name, times in found.items():
        if not isinstance(times, list):
            continue
        if isinstance(times[0], list):
            painted, decoded = ([one[i] for one in times] for i in (0, 1))
            print(f"{name:32} {told(painted)}   with all pictures {told(decoded)}")
            if name.startswith("sort"):
                worst = max(worst, statistics.median(painted))
        elif name.startswith("scroll"):
            print(f"{name:32} {told(times)}   95 % below {1000 * float(np.quantile(times, 0.95)):.0f} ms")
        else:
            print(f"{name:32} {told(times)}")
    reached = {"load, first tiles": statistics.median(found["load, first tiles"]), "sort": worst, "megabytes": size}
    for name, floor in FLOORS.items():
        print(f"{'floor':8} {name:20} {reached[name]:8.3f} < {floor:g}: {'yes' if reached[name] < floor else 'NO'}")
    print(f"{found['elements']} elements in the list, {found['memory, megabytes']:.0f} MB of script memory")
    if options.output:
        found |= {"reached": reached, "floors": FLOORS, "milnet": __version__, "machine": platform.machine()}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def told(times: list[float]) -> str:
    """Median and range in milliseconds."""
    return f"{1000 * statistics.median(times):6.0f} ms ({1000 * min(times):.0f} .. {1000 * max(times):.0f})"


if __name__ == "__main__":
    main()
