"""The reducer: wide MLSP features of one photo -> 3 x width numbers -> the distribution of votes.

Source: the inception head of the authors' 2022 release (structure re-written; Hosu et al., CVPR 2019, for the idea).

    x [B, 25, D]        the maps of the photo in 5x5 cells
    branch 1            1x1                                                       [B, 25, C]
    branch 2            1x1, then 1x3 and 3x1 of C/2 each, side by side           [B, 25, C]
    branch 3            3x3 average, then 1x1                                     [B, 25, C]
    reduced             the three side by side, mean over the cells               [B, 3C]
    head                linear to 3C/2, to 3C/8, to S values; log-softmax         [B, S]

Each convolution is followed by batch norm and relu, each linear map but the last by batch norm, relu and dropout. It
learns to predict votes from the photo alone; then its head is taken off and the `reduced` numbers serve as nodes.

`variant` "published" keeps what docs/method.md counts as defects 10 and 11: branch 3 averages the nine inner windows
only and pads the 1x1 convolution around them, so that 16 of the 25 cells hold nothing of the photo; and the head ends
in batch norm, relu and dropout of one half. With D = 16,928, C = 2,048 and 10 values it has the 137,866,014 parameters
of the published network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from milnet.model.common import Norm, Pool, Standardise, linear_norm_relu, node_norm, photo_norm

Variant = Literal["milnet", "published"]
SIDE = 5  # cells a side


class Reducer(nn.Module):
    """One photo's maps [B, 25, D] -> log p [B, S]; `reduce` gives its 3 x width numbers. The pool is ignored."""

    uses = "nothing"

    def __init__(
        self,
        features: int,
        bins: int,
        *,
        width: int = 2048,
        dropout: float = 0.25,
        variant: Variant = "milnet",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.width, self.variant = width, variant
        half, first, second = width // 2, width * 3 // 2, width * 3 // 8
        self.standardise = Standardise(features)
        self.branch1 = linear_norm_relu(features, width, norm)
        self.branch2 = linear_norm_relu(features, width, norm)
        self.branch2_row = Window(width, half, (1, 3), norm)
        self.branch2_column = Window(width, half, (3, 1), norm)
        self.branch3_linear = nn.Linear(features, width)
        self.branch3_norm = nn.Sequential(node_norm(width, norm), nn.ReLU())
        head = [*norm_relu_drop(3 * width, first, dropout, norm), *norm_relu_drop(first, second, dropout, norm)]
        last = norm_relu_drop(second, bins, 0.5, norm) if variant == "published" else [nn.Linear(second, bins)]
        self.head = nn.Sequential(*head, *last)

    @property
    def outputs(self) -> int:
        """How many numbers `reduce` gives."""
        return 3 * self.width

    def forward(
        self,
        photo: Tensor,
        pool: Pool | None = None,
        index: Tensor | None = None,
        similarity: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """`photo` [B, 25, D] -> log p [B, S]."""
        return torch.log_softmax(self.head(self.reduce(photo)), dim=-1)

    def reduce(self, maps: Tensor) -> Tensor:
        """[B, 25, D] of any float type -> [B, 3 * width]."""
        x = self.standardise(maps)
        second = self.branch2(x)
        third = self.branch3_norm(self.average(self.branch3_linear(x)))
        return torch.cat([self.branch1(x), self.branch2_row(second), self.branch2_column(second), third], dim=2).mean(1)

    def average(self, y: Tensor) -> Tensor:
        """The 3x3 average of branch 3, [B, 25, C] -> [B, 25, C], after its linear map: the two commute.

        Ours averages what lies inside the map. Published: the nine whole windows, and around them the padded
        convolution of nothing, which is its bias.
        """
        maps = as_map(y)
        if self.variant == "milnet":
            averaged = functional.avg_pool2d(maps, 3, 1, padding=1, count_include_pad=False)
        else:
            bias = self.branch3_linear.bias.to(y.dtype)[:, None, None]
            averaged = functional.pad(functional.avg_pool2d(maps, 3, 1) - bias, (1, 1, 1, 1)) + bias
        return averaged.flatten(2).mT


def as_map(x: Tensor) -> Tensor:
    """[B, 25, C] -> [B, C, 5, 5]."""
    return x.mT.reshape(len(x), x.shape[2], SIDE, SIDE)


class Window(nn.Module):
    """Convolution of a 5x5 map with 3 cells in one direction, batch norm, relu: [B, 25, C] -> [B, 25, O]."""

    def __init__(self, inputs: int, outputs: int, window: tuple[int, int], norm: Norm = "batch") -> None:
        super().__init__()
        self.convolve = nn.Conv2d(inputs, outputs, window, padding=(window[0] // 2, window[1] // 2))
        self.norm = nn.Sequential(node_norm(outputs, norm), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[B, 25, inputs] -> [B, 25, outputs]."""
        normed: Tensor = self.norm(self.convolve(as_map(x)).flatten(2).mT)
        return normed


def norm_relu_drop(inputs: int, outputs: int, dropout: float, norm: Norm) -> list[nn.Module]:
    """A layer of the head: linear, norm (batch: over the photos), relu, dropout."""
    return [nn.Linear(inputs, outputs), photo_norm(outputs, norm), nn.ReLU(), nn.Dropout(dropout)]
