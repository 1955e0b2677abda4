"""Make a small rated photo set: rendered landscapes with votes drawn from a stated rule.

    python examples/rendered.py OUT [--photos 240]

These are drawings, not photographs, and no person has judged them. They exist so that every command can be tried where
no rated photos are at hand. The rule behind the votes: a good picture has rich colours, a horizon near a third, light
that is neither too dark nor too bright, and little noise; photos of one theme share palette and shape. Writes
OUT/images/*.jpg, OUT/votes.csv (image, theme, split, fold_random, fold_theme, v1..v7) and OUT/new/*.jpg without votes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, THEMES, VALUES = 320, 240, 40, 7


@dataclass(frozen=True)
class Scene:
    """What is drawn. All numbers but the hue are in [0, 1]."""

    hue: float  # of the sky, in turns
    colour: float  # how saturated
    light: float
    horizon: float  # height of the horizon, from the top
    hills: float
    noise: float

    @property
    def beauty(self) -> float:
        """The rule, about -2 .. 2."""
        thirds = 1 - 6 * min(abs(self.horizon - 1 / 3), abs(self.horizon - 2 / 3))
        return 2.2 * (self.colour - 0.5) + 0.7 * thirds - 5 * (self.light - 0.55) ** 2 - 1.5 * self.noise + 0.3


def theme_scene(rng: np.random.Generator) -> Scene:
    """What the photos of one theme have in common."""
    hue, colour, light, horizon, hills, noise = rng.uniform(0, 1, 6)
    return Scene(hue, colour, 0.25 + 0.6 * light, 0.2 + 0.6 * horizon, hills, noise**3)


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """One photo of a theme."""
    shift = rng.normal(0, 0.12, 6)
    near = np.clip(
        np.array([scene.colour, scene.light, scene.horizon, scene.hills, scene.noise]) + shift[1:], 0.02, 0.98
    )
    return Scene((scene.hue + 0.2 * shift[0]) % 1, *map(float, near))


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene: sky with a sun, hills, ground."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT, WIDTH])[:, None, None]
    bumps = sum(
        a * np.sin(2 * np.pi * (f * x + p))
        for a, f, p in zip((0.6, 0.3, 0.1), (1, 2.3, 5.1), rng.uniform(0, 1, 3), strict=True)
    )
    edge = scene.horizon + 0.12 * scene.hills * bumps
    ground = y > edge
    depth = np.clip((y - edge) / (1 - scene.horizon + 1e-6), 0, 1)
    sun = np.exp(-(((x - rng.uniform(0.1, 0.9)) / 0.07) ** 2 + ((y - 0.5 * scene.horizon) / 0.09) ** 2))
    hue = np.where(ground, scene.hue + 0.45 + 0.1 * depth, scene.hue + 0.1 * y)
    saturation = scene.colour * np.where(ground, 0.5 + 0.5 * depth, 0.9 - 0.4 * y)
    value = np.clip(scene.light * np.where(ground, 0.8 - 0.3 * depth, 1.2 - 0.4 * y) + 0.6 * sun * ~ground, 0, 1)
    value = np.clip(value + 0.35 * scene.noise * rng.normal(size=value.shape), 0, 1)
    hsv = np.stack([(hue % 1) * 255, saturation * 255, value * 255], -1).clip(0, 255).astype(np.uint8)
    return Image.fromarray(hsv, "HSV").convert("RGB")


def votes(scene: Scene, rng: np.random.Generator) -> NDArray[np.int64]:
    """60 to 140 people choose 1..7 around the beauty, each in their own way."""
    opinions = 4 + 1.3 * scene.beauty + rng.normal(0, 1.2, int(rng.integers(60, 141)))
    return np.bincount(np.clip(np.rint(opinions), 1, VALUES).astype(int) - 1, minlength=VALUES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=int, default=240, help="rated photos; an eighth as many new ones are added")
    options = parser.parse_args()
    if options.photos < 2 * THEMES:
        sys.exit(f"--photos {options.photos}: expected at least {2 * THEMES}, two for each theme")
    rng = np.random.default_rng(2022)
    scenes = [theme_scene(rng) for _ in range(THEMES)]
    for folder in ("images", "new"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    with (options.out / "votes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "theme", "split", "fold_random", "fold_theme", *(f"v{i}" for i in range(1, VALUES + 1))]
        )
        for i in range(options.photos):
            theme = i % THEMES
            scene = vary(scenes[theme], rng)
            render(scene, rng).save(options.out / "images" / f"photo{i:04}.jpg", quality=92)
            split, fold = ("test" if rng.random() < 0.25 else "train"), int(rng.integers(5))
            writer.writerow([f"photo{i:04}.jpg", f"theme{theme:02}", split, fold, theme % 5, *votes(scene, rng)])
    for i in range(options.photos // 8):
        render(vary(scenes[i % THEMES], rng), rng).save(options.out / "new" / f"new{i:03}.jpg", quality=92)
    print(
        f"{options.out}: {options.photos} rendered photos with drawn votes in {THEMES} themes, "
        f"{options.photos // 8} new ones"
    )


if __name__ == "__main__":
    main()
