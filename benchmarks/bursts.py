"""Bursts on a made set: how many of the photos that belong together are found, and how many others with them.

    python benchmarks/bursts.py DATA PHOTOS --half development -o development.json
    python benchmarks/bursts.py DATA PHOTOS --half final -o final.json [--weights mobilenetv2_100.safetensors]

DATA: OASIS (images/, votes.csv); PHOTOS: a folder with bsds500/. Themes and scenes are split in two halves once and for
all: thresholds come from the first, the second is run with what `milnet.bursts` then has.

A burst is 1 to 8 frames of one photo, 0.1 to 10 s apart (evenly in the logarithm), saved as JPEG with EXIF: moved by
up to 4 % of the sides each (so 8 % between two), turned by up to 2 degrees, zoomed by up to 3 %; white balance, blur,
noise and quality drawn. Of four kinds in turn: as it is, a bracket (0, -2, +2, -1, +1 EV, clipped), a subject of
20 to 35 % of the width that moves through the scene, a zoom of up to 15 %. Bursts stand in sessions, hours apart:

* strangers: 4 photos of different things, 0.5 to 10 s between them: likeness must tell them apart;
* minutes: 3 photos of one theme, 2 to 20 minutes between them;
* hours: the same photo again, 1 to 5 hours later;
* seconds: 3 photos of one theme, 0.5 to 10 s between them. Near-duplicates by design, so reported by itself;
* rough: 2 strangers, but each frame moved by up to 9 %, turned by up to 5 degrees, zoomed by 10 % a frame, or with a
  subject of 40 to 55 % of the width that moves by up to 8 % a frame. Reported by itself.

Pairs of frames of one session are counted: precision, recall, with 95 % intervals by bootstrap over sessions; and
bursts of two frames and more that were found whole with nothing else in them. Beside the likeness of `milnet.bursts`,
with and without the features of a model: time alone (2 and 30 s), features alone (limits: development half).
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from milnet import bursts
from milnet.bursts import GAP, SOFT, capture_time, cosine, find_bursts, join, layout, likeness, rank_bursts
from milnet.images import open_photo
from milnet.scoring import Scorer
from milnet.signals import measure
from timing import machine

KINDS = ("as it is", "bracket", "moving", "zoom")
ROUGH = ("far moved", "large subject", "zoom a frame", "turned")
MAIN = ("strangers", "minutes", "hours")
SESSIONS = {"strangers": 40, "minutes": 18, "hours": 20, "seconds": 18, "rough": 20}
FEATURES_ALONE = {"pocket": 0.90, "standard": 0.80}  # cosines: the best sum of precision and recall, development
DEVELOPMENT, FINAL = 0, 1
Random = np.random.Generator


# ---- the made set ----------------------------------------------------------------------------------------------------


@dataclass
class Frames:
    """What is in the folder: JPEG files, and the truth about them."""

    files: list[bytes] = field(default_factory=list)
    burst: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # of each session
    changes: list[str] = field(default_factory=list)  # of each frame


def sources(data: Path, photos: Path, half: int) -> tuple[list[list[Path]], list[Path]]:
    """Photos by theme (themes of 3 and more), and scenes; of one half."""
    themes: dict[str, list[Path]] = {}
    with (data / "votes.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            themes.setdefault(row["theme"], []).append(data / "images" / row["image"])
    rng = np.random.default_rng(0)
    names = rng.permutation(sorted(themes)).tolist()[half::2]
    scenes = rng.permutation(sorted((photos / "bsds500").glob("*.jpg"))).tolist()[half::2]
    return [themes[name] for name in names if len(themes[name]) >= 3], scenes


def exposed(image: Image.Image, ev: float, balance: Sequence[float]) -> Image.Image:
    """As if the exposure had been 2 to the `ev` times as long, clipped as a camera does; channels times `balance`."""
    x = np.arange(256) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    table: list[int] = []
    for times in balance:
        light = np.clip(linear * 2.0**ev * times, 0, 1)
        table += np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).tolist()
    return image.point([int(v) for v in table])


def pasted(image: Image.Image, subject: Image.Image, share: float, at: NDArray[np.float64]) -> Image.Image:
    """With an oval of another photo on it, `share` as wide as the picture, around a place in shares of the sides."""
    patch = subject.resize((round(image.width * share), round(image.height * share)))
    mask = Image.new("L", patch.size, 0)
    ImageDraw.Draw(mask).ellipse((4, 4, patch.width - 4, patch.height - 4), fill=255)
    image = image.copy()
    x, y = at * image.size - np.array(patch.size) / 2
    image.paste(patch, (round(x), round(y)), mask.filter(ImageFilter.GaussianBlur(2)))
    return image


def shot(
    image: Image.Image,
    rng: Random,
    *,
    keep: float = 0.84,
    move: float = 0.04,
    turn: float = 2.0,
    ev: float = 0.0,
    blur: float | None = None,
) -> Image.Image:
    """One frame by a hand that shakes: `keep` of each side, moved by up to `move`, turned by up to `turn` degrees.

    `blur`: in pixels; None: drawn, mostly none.
    """
    image = image.rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC)
    side = min(keep * rng.uniform(0.97, 1.03), 0.96)
    left, top = np.clip(0.5 + rng.uniform(-move, move, 2) - side / 2, 0.02, 0.98 - side) * image.size
    box = (left, top, left + side * image.width, top + side * image.height)
    image = image.resize((round(0.84 * image.width), round(0.84 * image.height)), Image.Resampling.BICUBIC, box)
    image = exposed(image, ev + rng.normal(0, 0.1), (1 + rng.normal(0, 0.03), 1, 1 + rng.normal(0, 0.03)))
    if blur is None:
        blur = rng.uniform(0.3, 1.5) if rng.random() < 0.4 else 0.0
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    noise = rng.normal(0, rng.uniform(0, 8), (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def burst(image: Image.Image, subject: Image.Image, kind: str, count: int, rng: Random) -> list[Image.Image]:
    """`count` frames of one photo."""
    place, way = rng.uniform(0.3, 0.7, 2), rng.uniform(-1, 1, 2)
    share = rng.uniform(0.4, 0.55) if kind == "large subject" else rng.uniform(0.2, 0.35)
    found = []
    for i in range(count):
        of, how = image, {}
        if kind in ("moving", "large subject"):
            step = 0.08 if kind == "large subject" else 0.06
            of = pasted(image, subject, share, np.clip(place + step * way * i, 0.15, 0.85))
        elif kind == "bracket":
            how = {"ev": (0.0, -2.0, 2.0, -1.0, 1.0)[i % 5]}
        elif kind == "zoom":
            how = {"keep": 0.84 / rng.uniform(1, 1.15)}
        elif kind == "zoom a frame":
            how = {"keep": 0.84 / 1.1**i}
        elif kind == "far moved":
            how = {"keep": 0.72, "move": 0.09}
        elif kind == "turned":
            how = {"turn": 5.0}
        found.append(shot(of, rng, **how))
    return found


def jpeg(image: Image.Image, taken: float, rng: Random) -> bytes:
    """As a camera writes it."""
    moment, exif, stream = datetime.fromtimestamp(taken, UTC), Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769).update({0x9003: f"{moment:%Y:%m:%d %H:%M:%S}", 0x9291: f"{moment.microsecond:06}"})
    image.save(stream, "JPEG", quality=int(rng.integers(60, 96)), exif=exif)
    return stream.getvalue()


def make(data: Path, photos: Path, half: int, share: float) -> Frames:
    """The made set of one half; `share` of its sessions."""
    themes, scenes = sources(data, photos, half)
    rng = np.random.default_rng([1, half])
    frames = Frames()
    clock, bursts_made = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp(), 0
    themed = iter(rng.permutation(len(themes)).tolist())
    alone = iter(rng.permutation(len(scenes)).tolist())
    for kind, sessions in SESSIONS.items():
        for _ in range(max(1, round(sessions * share))):
            if kind in ("minutes", "seconds"):
                theme = themes[next(themed)]
                chosen = [theme[i] for i in rng.permutation(len(theme))[:3]]
            elif kind == "hours":
                chosen = [scenes[next(alone)]] * 2
            else:
                chosen = [scenes[next(alone)] for _ in range(4 if kind == "strangers" else 2)]
            for path in chosen:
                image, subject = (open_photo(p).pixels for p in (path, scenes[int(rng.integers(len(scenes)))]))
                change = (ROUGH if kind == "rough" else KINDS)[bursts_made % 4]
                for picture in burst(image, subject, change, int(rng.integers(1, 9)), rng):
                    frames.files.append(jpeg(picture, clock, rng))
                    frames.burst.append(bursts_made)
                    frames.session.append(len(frames.kinds))
                    frames.changes.append(change)
                    clock += np.exp(rng.uniform(np.log(0.1), np.log(10)))
                bursts_made += 1
                clock += {"minutes": rng.uniform(120, 1200), "hours": rng.uniform(3600, 18000)}.get(
                    kind, rng.uniform(0.5, 10)
                )
            frames.kinds.append(kind)
            clock += rng.uniform(3600, 18000)
    return frames


# ---- what is found ---------------------------------------------------------------------------------------------------


def counted(frames: Frames, found: Sequence[int | None]) -> NDArray[np.int64]:
    """For each session: pairs rightly together, pairs together, pairs that belong together, bursts whole, bursts."""
    counts = np.zeros((len(frames.kinds), 5), np.int64)
    label = np.array([-1 - i if number is None else number for i, number in enumerate(found)])
    truth, session = np.array(frames.burst), np.array(frames.session)
    for k in range(len(counts)):
        here = np.flatnonzero(session == k)
        i, j = (here[side] for side in np.triu_indices(len(here), 1))
        together, belong = label[i] == label[j], truth[i] == truth[j]
        counts[k, :3] = (together & belong).sum(), together.sum(), belong.sum()
        for one in np.unique(truth[here]):
            members = np.flatnonzero(truth == one)
            if len(members) > 1:
                whole = len(set(label[members])) == 1 and (label == label[members[0]]).sum() == len(members)
                counts[k, 3:] += (int(whole), 1)
    return counts


def shares(counts: NDArray[np.int64]) -> dict[str, float]:
    """Precision and recall of pairs, share of bursts found whole; 1 where there was nothing to find or to miss."""
    right, together, belong, whole, all_bursts = counts.sum(0).tolist()
    return {
        "precision": right / together if together else 1.0,
        "recall": right / belong if belong else 1.0,
        "whole": whole / all_bursts if all_bursts else 1.0,
    }


def judged(frames: Frames, found: Sequence[int | None]) -> dict[str, Any]:
    """Of the sessions that count, with intervals; and of each kind of session, and each kind of change."""
    counts, kinds = counted(frames, found), np.array(frames.kinds)
    main = counts[np.isin(kinds, MAIN)]
    rng = np.random.default_rng(0)
    drawn = [shares(main[rng.integers(0, len(main), len(main))]) for _ in range(1000)]
    result: dict[str, Any] = {}
    for name, value in shares(main).items():
        low, high = np.quantile([one[name] for one in drawn], (0.025, 0.975))
        result[name] = {"mean": value, "low": float(low), "high": float(high)}
    result["kinds"] = {kind: shares(counts[kinds == kind]) for kind in SESSIONS}
    label = np.array([-1 - i if number is None else number for i, number in enumerate(found)])
    truth, changes = np.array(frames.burst), np.array(frames.changes)
    result["recall by change"] = {}
    for change in (*KINDS, *ROUGH):
        here = np.flatnonzero(changes == change)
        i, j = (here[side] for side in np.triu_indices(len(here), 1))
        belong = truth[i] == truth[j]
        result["recall by change"][change] = float((label[i] == label[j])[belong].mean())
    return result


def line(name: str, result: dict[str, Any]) -> str:
    """A row for people."""
    main = "  ".join(
        f"{result[k]['mean']:.3f} [{result[k]['low']:.3f}, {result[k]['high']:.3f}]"
        for k in ("precision", "recall", "whole")
    )
    kinds = "  ".join(f"{k} {v['precision']:.3f}/{v['recall']:.3f}" for k, v in result["kinds"].items())
    return f"{name:34} {main}\n{'':34} {kinds}"


def labels(groups: list[list[int]], count: int) -> list[int | None]:
    """Numbers of the groups of more than one."""
    found: list[int | None] = [None] * count
    for number, group in enumerate(groups):
        for i in group if len(group) > 1 else ():
            found[i] = number
    return found


# ---- what is compared ------------------------------------------------------------------------------------------------


def features_of(frames: Frames, scorer: Scorer) -> NDArray[np.float32]:
    """Semantic features [n, D] of the scorer's model."""
    rows: dict[int, NDArray[np.float32]] = {}
    for one in scorer.semantic.stream(enumerate(frames.files)):
        assert one.features is not None
        rows[one.key] = one.features[scorer.semantic_span]
    return np.stack([rows[i] for i in range(len(frames.files))])


def agree(rows: NDArray[np.float32], limit: float, i: int, j: int) -> bool:
    """By features."""
    return cosine(rows[i], rows[j]) >= limit


def above(like: NDArray[np.float32], limit: float, i: int, j: int) -> bool:
    """By likeness of layouts."""
    return bool(like[i, j] >= limit)


def either(
    like: NDArray[np.float32], limit: float, partly: float, rows: NDArray[np.float32], cosines: float, i: int, j: int
) -> bool:
    """By layouts, or by both in part."""
    return above(like, limit, i, j) or (above(like, partly, i, j) and agree(rows, cosines, i, j))


def near(times: Sequence[tuple[float, int]]) -> list[tuple[int, int]]:
    """Pairs of photos that `join` may ask for."""
    found = []
    for k, (moment, i) in enumerate(times):
        for later, j in times[k + 1 :]:
            if later - moment > GAP:
                break
            found.append((i, j))
    return found


def advice(scenes: list[Path], scorer: Scorer) -> dict[str, Any]:
    """Bursts of four sharp frames and a blurred one: where that goes, and how much the scores of the four differ."""
    rng, result = np.random.default_rng(2), dict[str, Any]()
    for blur in (0.5, 1.0, 2.0):
        behind, soft, apart, kept = [], [], [], {0.0: 0, 0.05: 0, 0.1: 0}
        for path in scenes[:60]:
            original = open_photo(path).pixels
            frames = [shot(original, rng, blur=0.0) for _ in range(4)] + [shot(original, rng, blur=blur)]
            sharp = [measure(frame, frame.size).sharpness for frame in frames]
            scores = [score.score for score in scorer.score(frames)]
            groups: list[int | None] = [1] * 5
            places = [place for place in rank_bursts(groups, scores, sharp) if place is not None]
            behind.append(places[4].rank == 5)
            soft += [value < max(sharp) - SOFT for value in sharp[:4]]
            apart.append(float(np.std(scores[:4], ddof=1)))
            for margin in kept:
                kept[margin] += sum(p.keep for p in rank_bursts(groups, scores, sharp, near=margin) if p is not None)
        row = {
            "blurred one last": float(np.mean(behind)),
            "sharp ones called soft": float(np.mean(soft)),
            "deviation of scores": float(np.median(apart)),
            **{f"kept of 5, near {margin:g}": number / len(behind) for margin, number in kept.items()},
        }
        result[f"blur {blur:g}"] = row
        print(f"one of five blurred by {blur:g}:", ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="OASIS: a folder with images/ and votes.csv")
    parser.add_argument("photos", type=Path, help="a folder with bsds500/")
    parser.add_argument("--half", choices=["development", "final"], required=True)
    parser.add_argument("--share", type=float, default=1.0, help="share of the sessions (default 1)")
    parser.add_argument("--weights", type=Path, help="of mobilenetv2_100: the features of `standard` as well")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(machine())
    half = DEVELOPMENT if options.half == "development" else FINAL
    frames = make(options.data, options.photos, half, options.share)
    decoded = [open_photo(file) for file in frames.files]
    taken = [capture_time(photo.exif) for photo in decoded]
    layouts = np.stack([layout(photo.pixels) for photo in decoded])
    print(f"{len(taken)} frames of {len(set(frames.burst))} bursts in {len(frames.kinds)} sessions")
    scorer = Scorer.load("pocket")
    features = {"pocket": features_of(frames, scorer)}
    if options.weights:
        features["standard"] = features_of(frames, Scorer.load("standard", weights=options.weights))
    times = sorted((moment, i) for i, moment in enumerate(taken) if moment is not None)
    count = len(taken)
    assert len(times) == count
    tried = dict[str, Callable[[], list[int | None]]]()

    def add(name: str, alike: Callable[[int, int], bool], gap: float = GAP, share: float = 0.5) -> None:
        tried[name] = lambda: labels(join(times, alike, gap=gap, share=share), count)

    for gap in (2.0, GAP):
        add(f"time alone, {gap:g} s", lambda i, j: True, gap)
    for name, rows in features.items():
        for limit in np.arange(0.6, 0.99, 0.02) if half == DEVELOPMENT else [FEATURES_ALONE[name]]:
            add(f"{name} alone, {limit:.2f}", partial(agree, rows, limit))
    if half == DEVELOPMENT:
        like = np.zeros((count, count), np.float32)
        for i, j in near(times):
            like[i, j] = like[j, i] = likeness(layouts[i], layouts[j])
        for limit in np.arange(0.3, 0.61, 0.05):
            for share, linking in ((0.5, "half"), (1e-9, "any")):
                add(f"layout {limit:.2f}, {linking}", partial(above, like, limit), share=share)
        for name, rows in features.items():
            for limit, partly, cosines in itertools.product((0.4, 0.45, 0.5, 0.55), (0.1, 0.2, 0.3), (0.9, 0.93, 0.95)):
                add(
                    f"layout {limit:.2f} or {partly:.1f} and {name} {cosines:.2f}",
                    partial(either, like, limit, partly, rows, cosines),
                )
    tried["as shipped, no features"] = lambda: find_bursts(taken, layouts)
    for name, rows in features.items():
        tried[f"as shipped, {name}"] = partial(find_bursts, taken, layouts, rows)

    result: dict[str, Any] = {
        "machine": machine(),
        "half": options.half,
        "frames": count,
        "sessions": {kind: frames.kinds.count(kind) for kind in SESSIONS},
        "limits": {name: getattr(bursts, name) for name in ("GAP", "ALIKE", "PARTLY", "AGREE", "SOFT")},
        "ways": {},
    }
    print(
        "                                   precision, recall, bursts whole; below: precision/recall by kind of session"
    )
    for name, way in tried.items():
        result["ways"][name] = judged(frames, way())
        print(line(name, result["ways"][name]), flush=True)
    began = time.perf_counter()
    find_bursts(taken, layouts, features["pocket"])
    result["milliseconds a photo"] = (time.perf_counter() - began) / count * 1e3
    print(f"find_bursts: {result['milliseconds a photo']:.3f} ms a photo")
    result["advice"] = advice(sources(options.data, options.photos, half)[1], scorer)
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
