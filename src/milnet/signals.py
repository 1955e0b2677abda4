"""Technical measurements of a photo: advice beside the score, never mixed into it.

All are made on the brightness (luma, 0..255) of the decoded pixels, in a few milliseconds, and depend on nothing else.

*Sharpness.* Take two pixels that are r apart and the mean square difference of their brightness, S(r). Across clean
edges S grows as r, across blurred ones as r squared, and fine detail that differs from pixel to pixel has as much of it
near as far. So 4 S(1) / S(4) is 1/4 where nothing is sharp, 1 at edges one pixel wide, 4 in the finest detail; half its
logarithm to base 4 gives the scale of 0, 50 and 100. It hardly depends on the contrast. It is taken for each of about
12 x 9 tiles, in the worse of the two directions (a shaken photo is sharp along the motion), and the sharpest tile
counts: a blurred background does no harm. What noise adds to S is subtracted, and tiles of little contrast are drawn
towards 0, so that noise does not pass for detail.

*At which size.* Photos of more than 2,400 pixels are shrunk by a whole number to a long side near 1,600 first, about
what a screen shows; smaller ones are taken as they are. So "sharp" means sharp on a full screen, or pixel by pixel if
the photo is smaller than that. A JPEG that was decoded at a reduced scale (`Photo.reduced`) is measured on what was
decoded, and a blur of a few pixels of the file no longer shows there: compare sharpness and noise only of photos that
were decoded alike, and decode with `draft_side=1024` or none to see the blur of single pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = 253  # brightness from which a pixel counts as clipped: JPEG scatters pure white and black by 1 or 2
BLACK = 2
_SCREEN = 1600  # pixels of the long side that sharpness is measured near
_TILES = 12  # along the long side
_FAR = 4  # pixels between the two whose difference that of neighbours is compared with
_FLAT = 16.0  # squared steps of brightness: a tile of less contrast than this is not judged by it
_DOUBT = 4.0  # how much more contrast than noise a tile must have, for the noise is known to some tenths only
_BLOCK = 16  # pixels a side of the blocks that noise is looked for in
_STRIPS = 24  # rows of blocks that are looked at, spread over the height; of wide photos fewer, a quarter at least
# The tenth part of the blocks of pure noise shows this much less than its deviation, as 256 pixels scatter.
_TENTH = 0.892


@dataclass(frozen=True)
class Signals:
    """What can be measured of the upright photo's own pixels, whatever it shows."""

    width: int  # pixels of the photo as it is in the file
    height: int
    sharpness: float  # of the sharpest tile: 0 blurred, 50 edges one pixel wide, 100 the finest detail there can be
    highlights: float  # share of pixels that are white (brightness 253 to 255), 0..1
    shadows: float  # share of pixels that are black (brightness 0 to 2), 0..1
    noise: float  # estimated standard deviation of the noise of the brightness in flat parts, in steps of 255


def measure(pixels: Image.Image, size: tuple[int, int]) -> Signals:
    """Measure an upright sRGB photo, mode RGB or L; `size`: (width, height) of the full photo, were it decoded reduced.

    A colour that is at its limit in one channel alone, as in a red flower, is not clipped: only what is white or black
    has lost everything. Photos of less than 18 pixels a side have no noise, of less than 8 no sharpness: 0.
    """
    grey = pixels.convert("L")
    counts = grey.histogram()
    total = grey.width * grey.height
    shrink = max(1, round(max(grey.size) / _SCREEN))
    screen = grey if shrink == 1 else grey.reduce(shrink)
    own, seen = np.asarray(grey), np.asarray(screen)
    noise = noise_of(own)
    return Signals(
        width=size[0],
        height=size[1],
        sharpness=round(sharpness_of(seen, noise if shrink == 1 else noise_of(seen)), 2),
        highlights=sum(counts[WHITE:]) / total,
        shadows=sum(counts[: BLACK + 1]) / total,
        noise=round(noise, 3),
    )


def sharpness_of(grey: NDArray[np.uint8], noise: float) -> float:
    """Sharpness (0..100) of the sharpest tile of the brightness HW uint8, whose noise has this standard deviation."""
    height, width = (side - _FAR for side in grey.shape)
    if min(height, width) < _FAR:
        return 0.0
    # Whole tiles over nearly all of the photo: each side is divided evenly.
    tile = max(_BLOCK, max(height, width) // _TILES)
    rows, columns = max(1, round(height / tile)), max(1, round(width / tile))
    tall, wide = height // rows, width // columns
    x = grey[: rows * tall + _FAR, : columns * wide + _FAR].astype(np.float32)
    inner = x[:-_FAR, :-_FAR]
    noisy = 2 * noise * noise  # what noise adds to the squared difference of any two pixels

    def energy(other: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean square difference of each tile, [rows, columns], without that of the noise."""
        difference = (other - inner).reshape(rows, tall, columns, wide)
        return np.asarray(np.einsum("rhcw,rhcw->rc", difference, difference) / (tall * wide) - noisy).clip(0)

    floor = _FLAT + _DOUBT * noisy
    across = _FAR * energy(x[:-_FAR, 1 : 1 - _FAR]) / (energy(x[:-_FAR, _FAR:]) + floor)
    down = _FAR * energy(x[1 : 1 - _FAR, :-_FAR]) / (energy(x[_FAR:, :-_FAR]) + floor)
    best = float(np.minimum(across, down).max())
    return min(max(50 + 50 * log(best, _FAR), 0.0), 100.0) if best > 0 else 0.0


def noise_of(grey: NDArray[np.uint8]) -> float:
    """Standard deviation of the noise of the brightness HW uint8, in its steps.

    What is left of blocks of 16 x 16 pixels without anything straight (Immerkaer's second difference of the second
    difference), in the flattest tenth of them; blocks that are clipped are left out while ten others remain. Photos
    that are full of detail everywhere show it as noise.
    """
    height, width = grey.shape
    count, wide = (height - 2) // _BLOCK, (width - 2) // _BLOCK * _BLOCK
    if count < 1 or wide < 1:
        return 0.0
    strips = min(count, max(_STRIPS // 4, _STRIPS * 1024 // width))
    tops = np.unique(np.linspace(0, height - 2 - _BLOCK, strips).astype(int))
    x = np.stack([grey[top : top + _BLOCK + 2, : wide + 2] for top in tops])
    inner = x[:, 1:-1, 1:-1]
    clear = (_of_blocks(np.maximum, inner.max(1)) < WHITE) & (_of_blocks(np.minimum, inner.min(1)) > BLACK)
    rest = _second_difference(_second_difference(x.astype(np.float32)).swapaxes(1, 2)).swapaxes(1, 2)
    power = _of_blocks(np.add, np.einsum("thw,thw->tw", rest, rest)) / (36 * _BLOCK * _BLOCK)  # 36: weights, squared
    flattest = np.quantile(power[clear] if clear.sum() >= 10 else power, 0.1)
    return float(np.sqrt(flattest)) / _TENTH


def _second_difference(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis, [..., n] -> [..., n - 2]."""
    slope = x[..., 1:] - x[..., :-1]
    return slope[..., 1:] - slope[..., :-1]


def _of_blocks(ufunc: np.ufunc, columns: NDArray[Any]) -> NDArray[Any]:
    """What the columns of each block have together, [strips, width] -> [strips, blocks]."""
    return np.asarray(ufunc.reduce(columns.reshape(len(columns), -1, _BLOCK), axis=2))
