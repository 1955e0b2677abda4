"""Classic photo statistics: what could be told of a photo before networks, as a baseline.

After Datta et al. (ECCV 2006) and Hasler and Suesstrunk (2003): brightness, contrast, colour, colourfulness, hues,
sharpness at three scales, directions of edges, and where in the frame they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import FloatArray
from milnet.images import Source
from milnet.preprocess import Preprocess

SIDE = 320  # long side, pixels


def statistics(pixels: NDArray[np.uint8]) -> FloatArray:
    """RGB pixels [H, W, 3] -> 141 numbers."""
    rgb = pixels.astype(np.float64) / 255
    most, least = rgb.max(2), rgb.min(2)
    light = rgb @ np.array([0.299, 0.587, 0.114])
    saturation = (most - least) / np.maximum(most, 1e-3)
    a, b = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    angle = np.arctan2(a, b)
    found: list[float] = []
    for map_ in (light, saturation, a, b):
        found += [map_.mean(), map_.std(), *np.quantile(map_, [0.05, 0.25, 0.5, 0.75, 0.95])]
        found += [((map_ - map_.mean()) ** 3).mean() / (map_.std() + 1e-3) ** 3]
    found += [np.hypot(a.std(), b.std()) + 0.3 * np.hypot(a.mean(), b.mean())]  # colourfulness
    for map_ in (light, saturation):
        found += (np.histogram(map_, 8, (0, 1))[0] / map_.size).tolist()
    hues = np.histogram(angle, 12, (-np.pi, np.pi), weights=np.hypot(a, b))[0] / light.size
    found += hues.tolist()
    share = hues / max(hues.sum(), 1e-9)
    found += [-(share * np.log(share + 1e-9)).sum()]
    smaller = light
    edges: list[NDArray[np.float64]] = []
    for scale in range(3):
        down, across = np.diff(smaller, axis=0)[:, :-1], np.diff(smaller, axis=1)[:-1]
        size = np.hypot(down, across)
        edges.append(size)
        laplace = 4 * smaller[1:-1, 1:-1] - smaller[:-2, 1:-1] - smaller[2:, 1:-1]
        laplace = laplace - smaller[1:-1, :-2] - smaller[1:-1, 2:]
        found += [size.mean(), size.std(), *np.quantile(size, [0.5, 0.9, 0.99]), laplace.var()]
        if scale == 0:
            directions = np.histogram(np.arctan2(down, across) % np.pi, 8, (0, np.pi), weights=size)[0]
            found += (directions / max(size.sum(), 1e-9)).tolist()
        rows, columns = (side // 2 * 2 for side in smaller.shape)
        smaller = smaller[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
    for map_ in (light, saturation, a, b, edges[0]):
        cells = [part.mean() for band in np.array_split(map_, 3, 0) for part in np.array_split(band, 3, 1)]
        found += [*cells, cells[4] - np.mean(cells)]
    found += [np.abs(light - light[:, ::-1]).mean(), np.abs(light - light[::-1]).mean()]  # symmetry
    found += [rgb.shape[1] / rgb.shape[0]]
    return np.array(found)


def of_pictures(pictures: Iterable[Source]) -> NDArray[np.float32]:
    """The statistics of paths or images, [N, 141]."""
    how = Preprocess(SIDE)
    return np.stack([statistics(how(picture)[0][0]) for picture in pictures]).astype(np.float32)
