"""Multi-level spatially pooled features (Hosu, Goldlücke, Saupe, CVPR 2019): which layers, and pooling to 5x5 cells.

The 43 "mixed" layers of InceptionResNetV2, each tapped at the concatenation of its branches (inside a residual block:
before the 1x1 up-projection, the scale and the sum), in the order of the network:

    mixed_5b 320   repeat (10 block35) 128 each   mixed_6a 1088   repeat_1 (20 block17) 384 each
    mixed_7a 2080  repeat_2 and block8 (10 block8) 448 each                              together 16,928 channels

*narrow*: the mean of each channel over the map, [16928]. *wide*: the map pooled to 5x5 cells, kept here as [25, 16928],
cell y * 5 + x. Pooling `area` averages over equal areas, so that a pixel on a border counts in both cells with the
share that lies in each (what TensorFlow's area resize does); `adaptive` is torch's adaptive average pooling, as in the
published code, whose cells overlap where a side is not a multiple of 5.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["area", "adaptive"]
CELLS = 5  # cells a side


class Tap(NamedTuple):
    """Where a feature map is read: the `output` of a module, or its `input` (what its branches were joined to)."""

    module: str
    side: Literal["input", "output"] = "output"


def mlsp_taps(network: nn.Module) -> tuple[Tap, ...]:
    """The 43 taps of timm's `inception_resnet_v2`, in the order of the network."""

    def joined(stage: str) -> list[Tap]:
        return [Tap(f"{stage}.{i}.conv2d", "input") for i in range(len(network.get_submodule(stage)))]  # type: ignore[arg-type]

    return (
        Tap("mixed_5b"),
        *joined("repeat"),
        Tap("mixed_6a"),
        *joined("repeat_1"),
        Tap("mixed_7a"),
        *joined("repeat_2"),
        Tap("block8.conv2d", "input"),
    )


@lru_cache(maxsize=1024)
def area_weights(size: int, cells: int = CELLS) -> Tensor:
    """How much each of `size` pixels in a row counts in each of `cells` equal cells, [cells, size]; rows sum to 1.

    Cell i covers [i, i + 1) * size / cells of the row; a pixel counts with the length that lies inside.
    """
    pixels = torch.arange(size, dtype=torch.float64)
    # In units of 1 / cells of a pixel all borders are whole numbers, so that no overlap is lost to rounding.
    left = torch.arange(cells, dtype=torch.float64)[:, None] * size
    overlap = torch.minimum(left + size, (pixels + 1) * cells) - torch.maximum(left, pixels * cells)
    return (overlap.clamp_min(0) / size).float()


def area_pool(x: Tensor, cells: int = CELLS) -> Tensor:
    """Mean over `cells` x `cells` equal areas by fractional overlap, [B, C, H, W] -> [B, cells, cells, C]."""
    rows, columns = (area_weights(side, cells).to(x) for side in x.shape[2:])
    # Rows first and channels last: two products of few large matrices, with maps as they lie in the memory.
    y = rows @ x.permute(0, 2, 3, 1).flatten(2)
    pooled: Tensor = columns @ y.view(len(x), cells, x.shape[3], x.shape[1])
    return pooled


def pool_cells(x: Tensor, pooling: Pooling, cells: int = CELLS) -> Tensor:
    """A feature map as its cells, [B, C, H, W] -> [B, cells * cells, C], cell y * cells + x."""
    if pooling == "area":
        return area_pool(x, cells).flatten(1, 2)
    return functional.adaptive_avg_pool2d(x, cells).flatten(2).mT
