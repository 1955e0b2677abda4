"""Technical signals: against slow loops, on pictures whose answer is known, on photos changed in a known way."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from milnet.images import open_photo
from milnet.signals import Signals, measure, noise_of, sharpness_of


def of(pixels: Image.Image) -> Signals:
    return measure(pixels, pixels.size)


def grey(x: NDArray[np.generic]) -> Image.Image:
    """Brightness HW to a photo."""
    return Image.fromarray(np.asarray(x).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def leaves(seed: int, width: int = 500, height: int = 400) -> Image.Image:
    """Rectangles of all sizes over each other: edges one pixel wide everywhere, as in a photo of many things."""
    rng = np.random.default_rng(seed)
    x = np.full((height, width), 125.0)
    for _ in range(600):
        wide, tall = (8 / rng.uniform(0.05, 1, 2)).astype(int)
        left, top = rng.integers(-20, width), rng.integers(-20, height)
        x[max(top, 0) : max(top + tall, 0), max(left, 0) : max(left + wide, 0)] = rng.uniform(30, 220)
    return grey(x)


def noisy(image: Image.Image, deviation: float, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, deviation, (image.height, image.width))
    return grey(np.asarray(image.convert("L"), np.float64) + noise)


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


# ---- against loops ---------------------------------------------------------------------------------------------------


def slow_sharpness(x: list[list[int]], noise: float) -> float:
    """The definition, pixel by pixel."""
    height, width = len(x) - 4, len(x[0]) - 4
    tile = max(16, max(height, width) // 12)
    rows, columns = max(1, round(height / tile)), max(1, round(width / tile))
    tall, wide = height // rows, width // columns
    best = 0.0
    for top in range(0, rows * tall, tall):
        for left in range(0, columns * wide, wide):
            ratios = []
            for down, right in ((0, 1), (1, 0)):
                near = far = 0.0
                for i in range(top, top + tall):
                    for j in range(left, left + wide):
                        near += (x[i + down][j + right] - x[i][j]) ** 2
                        far += (x[i + 4 * down][j + 4 * right] - x[i][j]) ** 2
                near = max(near / (tall * wide) - 2 * noise**2, 0)
                far = max(far / (tall * wide) - 2 * noise**2, 0)
                ratios.append(4 * near / (far + 16 + 8 * noise**2))
            best = max(best, min(ratios))
    return min(max(50 + 25 * math.log2(best), 0), 100) if best else 0.0


@pytest.mark.parametrize(("seed", "width", "height", "noise"), [(0, 90, 70, 0.0), (1, 61, 120, 2.0), (2, 40, 23, 1.0)])
def test_sharpness_is_what_loops_give(seed: int, width: int, height: int, noise: float) -> None:
    x = np.asarray(blurred(leaves(seed, width, height), 0.6 * seed).convert("L"))
    assert sharpness_of(x, noise) == pytest.approx(slow_sharpness(x.tolist(), noise), abs=1e-3)


def slow_noise(x: NDArray[np.int64]) -> float:
    """The definition with the 3 x 3 weights; for photos of which every block is looked at, and none is clipped."""
    weights = np.outer([1, -2, 1], [1, -2, 1])
    powers = []
    for top in range(0, len(x) - 17, 16):
        for left in range(0, len(x[0]) - 17, 16):
            block = [
                (weights * x[i : i + 3, j : j + 3]).sum() ** 2
                for i in range(top, top + 16)
                for j in range(left, left + 16)
            ]
            powers.append(np.mean(block) / 36)
    return float(np.sqrt(np.quantile(powers, 0.1)) / 0.892)


def test_noise_is_what_loops_give() -> None:
    x = np.asarray(noisy(blurred(leaves(3, 82, 66), 2), 6).convert("L")).clip(3, 252)
    assert noise_of(x) == pytest.approx(slow_noise(x.astype(np.int64)), rel=1e-5)


# ---- known pictures --------------------------------------------------------------------------------------------------


def test_clipping_is_exact() -> None:
    x = np.full((40, 50, 3), 128, np.uint8)
    x[:10, :20] = 255  # 200 of 2,000
    x[:1, 20:30] = 253  # 10 more
    x[1:2, 20:30] = 252  # not white
    x[30:, :5] = 0  # 50
    x[20:22, :5] = 2  # 10 more
    x[22:24, :5] = 3  # not black
    x[12:14, :] = (255, 0, 0)  # a colour at its limit has not lost everything
    signals = of(Image.fromarray(x))
    assert signals.highlights == 210 / 2000
    assert signals.shadows == 60 / 2000
    assert of(Image.new("RGB", (30, 30), "white")) == Signals(30, 30, 0.0, 1.0, 0.0, 0.0)
    assert of(Image.new("RGB", (30, 30), "black")) == Signals(30, 30, 0.0, 0.0, 1.0, 0.0)


def test_the_scale_of_sharpness() -> None:
    """0 for what is flat or smooth, 50 for edges one pixel wide, 100 for detail that differs from pixel to pixel."""
    y, x = np.mgrid[0:400, 0:500]
    assert of(grey(np.full((400, 500), 90.0))).sharpness == 0
    assert of(grey(x / 2 + y / 8)).sharpness == 0  # a gradient
    assert of(grey(128 + 100 * np.sin(x / 20) * np.sin(y / 20))).sharpness == 0
    board = 60 + 130 * ((x // 20 + y // 20) % 2)
    assert of(grey(board)).sharpness == pytest.approx(50, abs=2)
    # Edges in 4 steps of 1/4: S(1) = 4/16, S(4) = 44/16, so 4 S(1) / S(4) = .364, and 50 + 25 log2(.364) = 13.5.
    ramp = np.abs(x % 40 - 20).clip(8, 12) * 32.5 - 200
    both = ramp / 2 + np.abs(y % 40 - 20).clip(8, 12) * 16.25
    assert of(grey(both)).sharpness == pytest.approx(13.5, abs=2.5)
    pairs = 90 + 50 * (x % 2) + 50 * (y % 2) + 30 * (x // 4 % 2) + 30 * (y // 4 % 2)
    assert of(grey(pairs)).sharpness == 100


def test_noise_alone_is_not_sharp() -> None:
    for seed, deviation in enumerate((1, 3, 8, 20)):
        signals = of(noisy(grey(np.full((400, 500), 120.0)), deviation, seed))
        assert signals.noise == pytest.approx(np.hypot(deviation, 12**-0.5), rel=0.04)  # rounding adds its own
        assert signals.sharpness < 25


def test_one_sharp_tile_is_enough() -> None:
    """A blurred background does no harm; and where the sharp tile is does not matter much."""
    sharp = leaves(1)
    soft = blurred(sharp, 4)
    assert of(soft).sharpness < 10
    found = []
    for left, top in ((0, 0), (210, 160), (410, 310)):
        photo = soft.copy()
        box = (left, top, left + 90, top + 90)
        photo.paste(sharp.crop(box), box)
        found.append(of(photo).sharpness)
    assert min(found) > 40


def test_sharp_in_one_direction_is_not_sharp() -> None:
    """A camera that moved across leaves all edges across as sharp as they were."""
    x = np.asarray(leaves(2).convert("L"), np.float64)
    moved = np.mean([np.roll(x, i, 1) for i in range(9)], axis=0)
    plain, shaken = of(grey(x)).sharpness, of(grey(moved)).sharpness
    assert shaken < plain - 20


def test_large_photos_are_measured_as_a_screen_shows_them() -> None:
    large = leaves(5, 3200, 2400)
    shown = large.reduce(2)
    assert measure(large, large.size).sharpness == of(shown).sharpness  # grey as they are, so nothing is rounded twice
    signals = measure(shown, (6400, 4800))  # decoded at a half or less
    assert (signals.width, signals.height) == (6400, 4800)
    assert noise_of(np.asarray(noisy(grey(np.full((2000, 3000), 100.0)), 5).convert("L"))) == pytest.approx(5, rel=0.02)


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 200), (7, 7), (8, 8), (17, 17), (18, 18), (1000, 8), (20, 900), (9, 5000)]
)
def test_photos_of_every_shape(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    signals = of(Image.fromarray(x))
    assert 0 <= signals.sharpness <= 100
    assert (signals.sharpness > 0) <= (min(size) >= 8)
    assert (signals.noise > 0) == (min(size) >= 18)
    assert all(math.isfinite(value) for value in vars(signals).values())


def test_golden_values() -> None:
    """Of made pictures, from the first version: a change of these is a change for users."""
    assert of(leaves(0)) == Signals(500, 400, pytest.approx(57.49, abs=0.02), 0.0, 0.0, 0.0)
    signals = of(noisy(blurred(leaves(0), 1), 4))
    assert signals.sharpness == pytest.approx(17.61, abs=0.02)
    assert signals.noise == pytest.approx(4.06, abs=0.002)


# ---- photos ----------------------------------------------------------------------------------------------------------


def photos(test_data: Path, count: int) -> list[Image.Image]:
    """Every so many of the OASIS photos, other ones than were used to choose the measure only by chance."""
    paths = sorted((test_data / "data/oasis/images").glob("*.jpg"))
    return [open_photo(path).pixels for path in paths[:: len(paths) // count]]


def test_blur_lowers_it_step_by_step(test_data: Path) -> None:
    falls = []
    for photo in photos(test_data, 40):
        found = [of(blurred(photo, radius)).sharpness for radius in (0, 0.5, 1, 2, 4)]
        falls.append([a > b or a == b == 0 for a, b in pairwise(found)])
        assert found[0] > found[2] + 10
        x = np.asarray(photo.convert("L"), np.float64)
        moved = [of(grey(np.mean([np.roll(x, i, 0) for i in range(n)], axis=0))).sharpness for n in (1, 5)]
        assert moved[1] < moved[0]
    assert np.mean(falls) > 0.98


def test_brightness_hardly_matters_and_noise_does_not_help(test_data: Path) -> None:
    dark, helped = [], []
    for i, photo in enumerate(photos(test_data, 40)):
        plain = of(photo).sharpness
        dark.append(abs(of(photo.point(lambda x: round(x * 0.6))).sharpness - plain))
        soft = blurred(photo, 2)
        helped.append(of(noisy(soft, 10, i)).sharpness - of(soft).sharpness)
        assert of(noisy(soft, 10, i)).sharpness < plain
    assert np.median(dark) < 3
    assert np.median(helped) <= 0
    assert max(helped) < 25


@pytest.mark.parametrize("deviation", [5.0, 10.0, 20.0])
def test_added_noise_is_found(test_data: Path, deviation: float) -> None:
    off = []
    for i, photo in enumerate(photos(test_data, 40)):
        own, found = of(photo).noise, of(noisy(photo, deviation, i)).noise
        off.append(found / np.hypot(own, deviation) - 1)
    assert np.median(np.abs(off)) < 0.08
    assert np.quantile(np.abs(off), 0.9) < 0.15


def test_the_same_in_many_threads(test_data: Path) -> None:
    images = photos(test_data, 12)
    alone = [of(photo) for photo in images]
    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(of, images * 3)) == alone * 3
