"""The pocket network: a small convolutional network in pure torch, trained by this project from scratch.

It imitates what `mobilenetv2_100` sees (`tools/pocket/` remakes it) at half the teacher's input size: a photo whose
long side is 160 pixels gives maps as the teacher gives them at 320.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

WIDTHS = (24, 32, 64, 192)  # channels at 1/2, 1/4, 1/8 and 1/16 of the input
DEPTHS = (1, 2, 3)  # residual blocks at 1/4, 1/8 and 1/16
SEMANTIC = 256  # channels of the last map in training: principal components of the teacher's last map
# As shipped: the same directions, not centred, and what is constant in the teacher's map as one more channel. So the
# cosine of two photos is what the teacher's would be.
CHANNELS = SEMANTIC + 1
# As timm describes its networks: what the input was in training.
POCKET_CONFIG = {
    "input_size": (3, 112, 112),
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


class Convolution(nn.Sequential):
    """3x3 or 1x1 convolution, batch norm where it is trained, ReLU unless it ends a block."""

    def __init__(
        self, channels: int, out: int, size: int = 3, stride: int = 1, *, relu: bool = True, norm: bool = False
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, out, size, stride, size // 2, bias=not norm)]
        if norm:
            layers.append(nn.BatchNorm2d(out))
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity (He et al., CVPR 2016)."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, norm=norm)
        self.second = Convolution(channels, channels, relu=False, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        return torch.relu(x + self.second(self.first(x)))


class PocketNetwork(nn.Module):
    """[B, 3, H, W] normalised pixels -> maps [B, channels, H/16, W/16]; `forward_head` takes their mean.

    With `norm` it has the batch norms it is trained with; without, they are folded into the convolutions.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = DEPTHS,
        *,
        channels: int = CHANNELS,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Convolution(3, widths[0], stride=2, norm=norm)
        self.stages = nn.ModuleList()
        for before, width, depth in zip(widths, widths[1:], depths, strict=False):
            blocks = [Block(width, norm) for _ in range(depth)]
            self.stages.append(nn.Sequential(Convolution(before, width, stride=2, norm=norm), *blocks))
        self.semantic = nn.Conv2d(widths[-1], channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    pretrained_cfg = POCKET_CONFIG

    def maps(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, and the last map."""
        found = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [*found, self.semantic(x)]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map."""
        return self.maps(x)[-1]

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Mean over the map, [B, channels]."""
        return features.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels -> pooled last layer."""
        return self.forward_head(self.forward_features(x))


def fold(trained: PocketNetwork, widths: Sequence[int], depths: Sequence[int]) -> PocketNetwork:
    """The network without batch norms that computes what `trained` computes in evaluation mode."""
    folded = PocketNetwork(widths, depths, channels=trained.semantic.out_channels)
    for learned, plain in zip(
        (m for m in trained.modules() if isinstance(m, Convolution)),
        (m for m in folded.modules() if isinstance(m, Convolution)),
        strict=True,
    ):
        norm: Any = learned[1]
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        plain[0].weight.data = learned[0].weight.data * scale[:, None, None, None]
        plain[0].bias.data = (norm.bias - norm.running_mean * scale).detach().clone()
    folded.semantic.load_state_dict(trained.semantic.state_dict())
    return folded.eval()
