"""Draw landscapes with votes from a stated rule, for pictures in documents: no real photo may be shown there.

    python tools/landscapes.py OUT [--photos 600]
    milnet import table OUT/votes.csv --images OUT/images --group-columns theme --name drawings -o OUT/data
    milnet features OUT/data --backbone pocket
    milnet train OUT/data --recipe votes -o OUT/model
    milnet pool images OUT/model OUT/images
    milnet score OUT/new --model OUT/model --report OUT/report.html
    python tools/report_pictures.py OUT/report.html -o docs/pictures

The rule: warm light, water and clouds please, a dull sky does not; drawings of one theme share light and shape. Writes
OUT/images/*.jpg with OUT/votes.csv, and a third as many OUT/new/*.jpg without votes, some of them in bursts.
"""

from __future__ import annotations

import argparse
import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFilter import GaussianBlur

WIDTH, HEIGHT, VALUES = 480, 320, 7
SKIES = {  # name -> colours of the sky above, of the haze at the horizon, of the light; how much people like it
    "noon": ((52, 112, 190), (186, 214, 236), (255, 250, 235), 0.4),
    "dusk": ((58, 48, 104), (246, 158, 92), (255, 206, 128), 1.3),
    "dawn": ((110, 142, 190), (248, 206, 186), (255, 236, 210), 1.0),
    "dull": ((132, 140, 148), (190, 194, 196), (214, 216, 216), -1.2),
    "night": ((10, 16, 40), (46, 66, 112), (226, 232, 255), 0.5),
    "storm": ((46, 52, 66), (128, 136, 146), (176, 184, 190), -0.2),
}
Colours = NDArray[np.float64]  # [height, width, 3] in 0..255


def waves(rng: np.random.Generator, count: int, roughness: float) -> NDArray[np.float64]:
    """A rugged line [count], about -1 .. 1."""
    x = np.linspace(0, 1, count)
    octaves = 2.0 ** np.arange(7)
    return np.asarray(sum(np.sin(2 * np.pi * (f * x * 1.3 + rng.uniform())) * f**-roughness for f in octaves) / 1.6)


def clouds(rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth noise [height, width] in 0..1, longer than high."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(5):
        small = rng.normal(size=(2 + 3 * 2**octave, 2 + 2 * 2**octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * 0.55**octave
    return 1 / (1 + np.exp(-2.2 * total))


def draw(rng: np.random.Generator, sky: str, ridges: int, water: bool, cover: float) -> Image.Image:
    """One landscape: sky, sun or moon, clouds (`cover` 0..1), ridges one behind the other, perhaps water."""
    above, haze, light, _ = (np.array(part, float) for part in SKIES[sky])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    horizon = rng.uniform(0.52, 0.68)
    picture: Colours = above + (haze - above) * np.clip(y / horizon, 0, 1)[..., None] ** 1.4
    distance = np.hypot(x - rng.uniform(0.3, 1.2), y - rng.uniform(0.18, 0.5))
    glow = np.exp(-distance / 0.16) * 0.75 + (distance < 0.032)
    picture += (light - picture) * np.clip(glow, 0, 1)[..., None] * (0.35 if sky in ("dull", "storm") else 1)
    veil = np.clip((clouds(rng) - (1 - cover)) * 2.4, 0, 0.85) * np.clip(1.25 - y / horizon, 0, 1)
    picture += ((light * 0.75 + haze * 0.25) * (0.62 if sky == "storm" else 0.96) - picture) * veil[..., None]
    grounds = np.array([[34.0, 52, 44], [52, 44, 40], [38, 44, 56]])
    ground = grounds[int(rng.integers(3))] * (0.5 if sky == "night" else 1)
    for layer in range(ridges):
        near = (layer + 1) / ridges
        line = horizon - 0.16 * (1 - near) + 0.1 * near - (0.16 - 0.09 * near) * waves(rng, WIDTH, 1.1 - 0.2 * near)
        colour = haze * 0.8 + (ground - haze * 0.8) * near**0.8
        depth = np.clip((y - line) / 0.35, 0, 1)[..., None]
        picture = np.where((y > line)[..., None], colour + (haze - colour) * 0.25 * depth * (1 - near), picture)
    if water:
        shore = int(HEIGHT * rng.uniform(0.72, 0.8))
        rows = np.arange(HEIGHT - shore)
        ripples = (2.5 * np.sin(rows / 1.7 + rng.uniform(0, 6)) * (0.3 + rows / len(rows))).astype(int)
        for row, shift in zip(rows, ripples, strict=True):
            picture[shore + row] = (
                np.roll(picture[max(0, shore - 1 - 2 * int(row))], int(shift), 0) * 0.82 + above * 0.1
            )
    edge = 1 - 0.3 * np.clip(np.hypot(x / 1.5 - 0.5, y - 0.5) - 0.25, 0, 1)[..., None]
    return Image.fromarray((picture * edge + rng.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=int, default=600)
    options = parser.parse_args()
    rng = np.random.default_rng(7)
    themes = [(sky, ridges, water) for sky in SKIES for ridges in (1, 3, 5) for water in (False, True)]
    for folder in ("images", "new"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    with (options.out / "votes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "theme", *(f"v{value}" for value in range(1, VALUES + 1))])
        for i in range(options.photos):
            theme = int(rng.integers(len(themes)))
            (sky, ridges, water), cover = themes[theme], float(rng.uniform(0.1, 0.8))
            name = f"{sky}{i:04}.jpg"
            draw(rng, sky, ridges, water, cover).save(options.out / "images" / name, quality=92)
            liked = 4 + SKIES[sky][3] + 0.5 * water + 0.15 * (ridges - 3) - 3 * (cover - 0.45) ** 2
            opinions = np.clip(np.rint(liked + rng.normal(0, 1.2, int(rng.integers(60, 141)))), 1, VALUES)
            writer.writerow([name, theme, *np.bincount(opinions.astype(int) - 1, minlength=VALUES)])
    taken, count = datetime(2026, 6, 1, 6), 0
    while count < options.photos // 3:
        sky, ridges, water = themes[int(rng.integers(len(themes)))]
        picture = draw(rng, sky, ridges, water, float(rng.uniform(0.1, 0.8)))
        taken += timedelta(minutes=int(rng.integers(5, 60)))
        for frame in range(int(rng.choice([1, 1, 1, 3, 4]))):  # now and then a burst from a hand that is not still
            left, top = (int(shift) for shift in rng.integers(0, 9, 2))
            one = picture.crop((left, top, left + WIDTH - 8, top + HEIGHT - 8))
            blur = GaussianBlur(float(rng.choice([0, 0, 1.6])) if frame else 0)
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = (taken + timedelta(seconds=frame)).strftime("%Y:%m:%d %H:%M:%S")
            one.filter(blur).save(options.out / "new" / f"view{count:04}.jpg", quality=92, exif=exif)
            count += 1


if __name__ == "__main__":
    main()
