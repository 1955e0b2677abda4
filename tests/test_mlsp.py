"""MLSP: the 43 layers against a forward pass written out here, and pooling to 5x5 cells against its definition."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import made
from milnet.backbones import PUBLISHED, Backbone, load_backbone
from milnet.errors import UsageError
from milnet.mlsp import area_pool, area_weights, pool_cells

CHANNELS = [320, *[128] * 10, 1088, *[384] * 20, 2080, *[448] * 10]  # docs/method.md, in the order of the network


@cache
def mlsp() -> Backbone:
    """InceptionResNetV2 with random weights whose batch norms do something: fresh ones are nearly the identity."""
    backbone = load_backbone("mlsp", "random:0")
    generator = torch.Generator().manual_seed(1)
    for name, buffer in backbone.network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return backbone


def photos(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def inception_resnet_v2(state: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Szegedy et al. 2016 written out from the weights alone: the joined branches of each mixed layer; the last one."""

    def conv(x: Tensor, name: str, stride: int = 1, padding: Any = 0) -> Tensor:
        x = functional.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *norm, training=False, eps=1e-3).relu()

    def chain(x: Tensor, name: str, *steps: tuple[int, Any]) -> Tensor:
        for i, (stride, padding) in enumerate(steps):
            x = conv(x, f"{name}.{i}", stride, padding)
        return x

    def up(x: Tensor, joined: Tensor, name: str, scale: float, relu: bool = True) -> Tensor:
        x = x + scale * functional.conv2d(joined, state[f"{name}.conv2d.weight"], state[f"{name}.conv2d.bias"])
        return x.relu() if relu else x

    x = conv(x, "conv2d_1a", 2)
    x = conv(x, "conv2d_2a")
    x = conv(x, "conv2d_2b", 1, 1)
    x = functional.max_pool2d(x, 3, 2)
    x = conv(x, "conv2d_3b")
    x = conv(x, "conv2d_4a")
    x = functional.max_pool2d(x, 3, 2)
    pooled = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.cat(
        [
            conv(x, "mixed_5b.branch0"),
            chain(x, "mixed_5b.branch1", (1, 0), (1, 2)),
            chain(x, "mixed_5b.branch2", (1, 0), (1, 1), (1, 1)),
            conv(pooled, "mixed_5b.branch3.1"),
        ],
        1,
    )
    taps = [x]
    for i in range(10):
        name = f"repeat.{i}"
        branches = [
            conv(x, f"{name}.branch0"),
            chain(x, f"{name}.branch1", (1, 0), (1, 1)),
            chain(x, f"{name}.branch2", (1, 0), (1, 1), (1, 1)),
        ]
        taps.append(torch.cat(branches, 1))
        x = up(x, taps[-1], name, 0.17)
    x = torch.cat(
        [
            conv(x, "mixed_6a.branch0", 2),
            chain(x, "mixed_6a.branch1", (1, 0), (1, 1), (2, 0)),
            functional.max_pool2d(x, 3, 2),
        ],
        1,
    )
    taps.append(x)
    for i in range(20):
        name = f"repeat_1.{i}"
        branches = [conv(x, f"{name}.branch0"), chain(x, f"{name}.branch1", (1, 0), (1, (0, 3)), (1, (3, 0)))]
        taps.append(torch.cat(branches, 1))
        x = up(x, taps[-1], name, 0.10)
    x = torch.cat(
        [
            chain(x, "mixed_7a.branch0", (1, 0), (2, 0)),
            chain(x, "mixed_7a.branch1", (1, 0), (2, 0)),
            chain(x, "mixed_7a.branch2", (1, 0), (1, 1), (2, 0)),
            functional.max_pool2d(x, 3, 2),
        ],
        1,
    )
    taps.append(x)
    for name in [*(f"repeat_2.{i}" for i in range(9)), "block8"]:
        branches = [conv(x, f"{name}.branch0"), chain(x, f"{name}.branch1", (1, 0), (1, (0, 1)), (1, (1, 0)))]
        taps.append(torch.cat(branches, 1))
        final = name == "block8"  # neither scaled nor rectified
        x = up(x, taps[-1], name, 1.0 if final else 0.20, relu=not final)
    return taps, conv(x, "conv2d_7b")


@made.needs_timm
@pytest.mark.parametrize(("height", "width"), [(299, 299), (331, 500), (480, 640)])
def test_mlsp_against_a_network_written_out(height: int, width: int) -> None:
    backbone, x = mlsp(), photos(height, width)
    with torch.inference_mode():
        taps, last = inception_resnet_v2(dict(backbone.network.state_dict()), (x / 255 - 0.5) / 0.5)
    features, wide = backbone.wide(x)
    assert [tap.shape[1] for tap in taps] == CHANNELS and sum(CHANNELS) == 16928
    assert features.shape == (1, 16928 + 1536) and wide.shape == (1, 25, 16928)
    assert backbone.ranges == {"taps": (0, 16928), "last": (16928, 18464)}
    start = 0
    for tap in taps:  # layer by layer, so that an error names its layer
        columns = slice(start, start + tap.shape[1])
        close(features[:, columns], tap.mean((2, 3)))
        close(wide[..., columns], brute_force(tap, 5).flatten(2).mT)
        start += tap.shape[1]
    close(features[:, start:], last.mean((2, 3)))
    close(backbone(x), features)


def close(ours: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().mean().item())


def brute_force(x: Tensor, cells: int) -> Tensor:
    """The mean of each cell by overlap, every pixel of every cell looked at; float64."""
    out = torch.zeros(*x.shape[:2], cells, cells, dtype=torch.float64)
    sides = [[overlaps(size, cells, i) for i in range(cells)] for size in x.shape[2:]]
    for i, rows in enumerate(sides[0]):
        for j, columns in enumerate(sides[1]):
            area = sum(rows.values()) * sum(columns.values())
            total = torch.zeros(x.shape[:2], dtype=torch.float64)
            for y, tall in rows.items():
                for z, broad in columns.items():
                    total += float(tall * broad / area) * x[:, :, y, z].double()
            out[:, :, i, j] = total
    return out.float()


def overlaps(size: int, cells: int, cell: int) -> dict[int, Fraction]:
    """Pixel -> how much of it lies in the cell."""
    left, right = Fraction(cell * size, cells), Fraction((cell + 1) * size, cells)
    found = {pixel: min(right, Fraction(pixel + 1)) - max(left, Fraction(pixel)) for pixel in range(size)}
    return {pixel: share for pixel, share in found.items() if share > 0}


@made.needs_timm
def test_names_of_the_taps() -> None:
    names = [(tap.module, tap.side) for tap in mlsp().taps]
    assert len(names) == len(set(names)) == 43
    assert names[0] == ("mixed_5b", "output") and names[1] == ("repeat.0.conv2d", "input")
    assert names[11] == ("mixed_6a", "output") and names[32] == ("mixed_7a", "output")
    assert names[33] == ("repeat_2.0.conv2d", "input") and names[42] == ("block8.conv2d", "input")


def test_an_8x8_map_in_5x5_cells_by_hand() -> None:
    """8 pixels in 5 cells: a cell is 1.6 pixels wide. Cell 0 covers pixel 0 and .6 of pixel 1; cell 1 the other .4,
    pixel 2 and .2 of pixel 3; cell 2 .8 of pixel 3 and .8 of pixel 4; and the same from the other side."""
    by_hand = torch.tensor(
        [
            [1, 0.6, 0, 0, 0, 0, 0, 0],
            [0, 0.4, 1, 0.2, 0, 0, 0, 0],
            [0, 0, 0, 0.8, 0.8, 0, 0, 0],
            [0, 0, 0, 0, 0.2, 1, 0.4, 0],
            [0, 0, 0, 0, 0, 0, 0.6, 1],
        ]
    ) / 1.6  # fmt: skip
    torch.testing.assert_close(area_weights(8), by_hand, rtol=0, atol=1e-7)
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 1, 3] = 2.56  # .6 of it in row 0, .4 in row 1; .2 in column 1, .8 in column 2; a cell has 2.56 pixels
    expected = torch.zeros(5, 5)
    expected[0, 1], expected[0, 2], expected[1, 1], expected[1, 2] = 0.12, 0.48, 0.08, 0.32
    torch.testing.assert_close(area_pool(x)[0, :, :, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4), (5, 5), (7, 12), (10, 15), (35, 33)])
def test_area_pooling_by_its_definition(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(area_pool(x).permute(0, 3, 1, 2), brute_force(x, 5), rtol=0, atol=1e-6)
    # equal areas: the mean of the cells is the mean of the map, and constants stay
    torch.testing.assert_close(area_pool(x).mean((1, 2)), x.mean((2, 3)), rtol=0, atol=1e-6)
    if height % 5 == width % 5 == 0:
        torch.testing.assert_close(pool_cells(x, "adaptive"), pool_cells(x, "area"), rtol=0, atol=1e-6)
    elif min(height, width) > 5:
        assert (pool_cells(x, "adaptive") - pool_cells(x, "area")).abs().max() > 0.01
    # cell y * 5 + x
    torch.testing.assert_close(pool_cells(x, "area")[:, 7], area_pool(x)[:, 1, 2], rtol=0, atol=0)


@made.needs_timm
def test_the_published_preprocessing() -> None:
    published = load_backbone("mlsp", "random:0", normalisation=PUBLISHED)
    assert published.normalisation == {"mean": [0.0] * 3, "std": [1.0] * 3}
    x = photos(120, 100)
    own = load_backbone("mlsp", "random:0")
    assert own.normalisation == {"mean": [0.5] * 3, "std": [0.5] * 3}
    # pixels in [0, 1] to the one are pixels in [-1, 1] to the other
    expected = own((x.float() + 255) / 2)
    torch.testing.assert_close(published(x.float()), expected, rtol=1e-4, atol=1e-4 * expected.abs().mean().item())


@made.needs_timm
def test_resnet50_gives_its_last_layer() -> None:
    backbone = load_backbone("resnet50", "random:0")
    assert backbone.ranges == {"taps": (0, 2048), "last": (0, 2048)}
    x = photos(96, 128)
    plain = load_backbone("timm/resnet50.tv_in1k", "random:0")
    start, end = plain.ranges["last"]
    torch.testing.assert_close(backbone(x), plain(x)[:, start:end])
    assert backbone.normalisation["mean"] == [0.485, 0.456, 0.406]


@made.needs_timm
@pytest.mark.parametrize(("name", "channels"), [("timm/mobilenetv2_100", 2784), ("timm/resnet18", 1920)])
def test_wide_maps_of_any_convolutional_network(name: str, channels: int) -> None:
    backbone, x = load_backbone(name, "random:0"), photos(96, 160)
    features, wide = backbone.wide(x)
    assert backbone.wide_channels == channels and wide.shape == (1, 25, channels)
    torch.testing.assert_close(features, backbone(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide.mean(1), features[:, :channels], rtol=1e-4, atol=1e-4)


@made.needs_timm
def test_wide_maps_of_a_network_without_maps_are_refused() -> None:
    backbone = load_backbone("timm/vit_tiny_patch16_224", "random:0")
    with pytest.raises(UsageError, match="has no wide features: its blocks give tokens, not maps"):
        backbone.wide(photos(224, 224))


@made.needs_timm
def test_real_weights_real_photo(test_data: Any) -> None:
    """mobilenetv2_100 with its real weights: wide maps of a real photo keep its means."""
    from milnet.extraction import Extractor
    from milnet.preprocess import Preprocess

    network = load_backbone("timm/mobilenetv2_100", str(test_data / "weights" / "mobilenetv2_100.safetensors"))
    extractor = Extractor.build(network, Preprocess(), workers=0, pooling="area")
    photo = test_data / "data" / "oasis" / "images" / "Acorns1.jpg"
    (result,) = extractor.stream([("a", photo)])
    assert result.features is not None and result.maps is not None
    np.testing.assert_allclose(result.maps.mean(0), result.features, rtol=1e-3, atol=1e-4)
