"""Backbones: which blocks, which numbers, whose weights. Small networks with random weights."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from milnet import backbones
from milnet.backbones import Backbone, digest_state, load_backbone, pool_map
from milnet.errors import MissingExtraError, UsageError, WeightsError

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
SMALL = "timm/mobilenetv2_100"


@cache
def random(name: str) -> Backbone:
    return load_backbone(name, "random:0")


def photos(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- which blocks ----------------------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(
    ("name", "blocks", "first", "final", "ranges"),
    [
        # 64 + 64 + 128 + 128 + 256 + 256 + 512 + 512; the last block is the last layer
        ("resnet18", 8, "layer1.0", "layer4.1", {"taps": (0, 1920), "last": (1408, 1920)}),
        ("mobilenetv2_100", 17, "blocks.0.0", "blocks.6.0", {"taps": (0, 2784), "last": (1504, 2784)}),
        ("vit_tiny_patch16_224", 12, "blocks.0", "blocks.11", {"taps": (0, 13 * 192), "last": (12 * 192, 13 * 192)}),
        (
            "swin_tiny_patch4_window7_224",
            12,
            "layers.0.blocks.0",
            "layers.3.blocks.1",
            # 2 x 96, 2 x 192, 6 x 384, 2 x 768, and 768 after the last norm
            {"taps": (0, 5184), "last": (4416, 5184)},
        ),
    ],
)
def test_blocks(name: str, blocks: int, first: str, final: str, ranges: dict[str, tuple[int, int]]) -> None:
    found = random(f"timm/{name}")
    assert (len(found.blocks), found.blocks[0], found.blocks[-1]) == (blocks, first, final)
    assert found.ranges == ranges and found.width == ranges["taps"][1]
    features = found(photos(2, 3, 224, 224))
    assert features.shape == (2, found.width) and features.dtype == torch.float32
    assert torch.isfinite(features).all() and not torch.equal(features[0], features[1])
    assert found.native_size == 224 and found.fixed_size == name.startswith(("vit", "swin"))
    assert not found.network.training and not any(p.requires_grad for p in found.parameters())


# ---- which numbers ---------------------------------------------------------------------------------------------------


def mobilenet_v2(state: dict[str, Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """MobileNetV2 (Sandler et al. 2018) written out: the mean map of each block, and of the last layer."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        w = state[f"{name}.weight"]
        x = functional.conv2d(
            x, w, state.get(f"{name}.bias"), stride, w.shape[2] // 2, groups=x.shape[1] if w.shape[1] == 1 else 1
        )
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    taps = []
    x = conv(x, "conv_stem", "bn1", 2).clamp(0, 6)
    for stage, (count, stride) in enumerate([(1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
        for number in range(count):
            name, before = f"blocks.{stage}.{number}", x
            step = stride if number == 0 else 1
            if stage == 0:
                x = conv(x, f"{name}.conv_dw", f"{name}.bn1", step).clamp(0, 6)
                x = conv(x, f"{name}.conv_pw", f"{name}.bn2")
            else:
                x = conv(x, f"{name}.conv_pw", f"{name}.bn1").clamp(0, 6)
                x = conv(x, f"{name}.conv_dw", f"{name}.bn2", step).clamp(0, 6)
                x = conv(x, f"{name}.conv_pwl", f"{name}.bn3")
            x = x + before if x.shape == before.shape else x
            taps.append(x.mean((2, 3)))
    return taps, conv(x, "conv_head", "bn2").clamp(0, 6).mean((2, 3))


def compare(backbone: Backbone, x: Tensor) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((x.double() / 255).float() - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        taps, last = mobilenet_v2(backbone.network.state_dict(), normalised)
    features = backbone(x)
    expected = torch.cat([*taps, last], 1)
    assert expected.std() > 1e-3
    # float32 through 52 convolutions, summed in another order
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    start, end = backbone.ranges["last"]
    torch.testing.assert_close(features[:, start:end], last, rtol=1e-5, atol=1e-5 * last.abs().max().item())


@needs_timm
def test_against_a_network_written_out() -> None:
    compare(random(SMALL), photos(2, 3, 64, 96))


@needs_timm
def test_the_trained_network(test_data: Path) -> None:
    backbone = load_backbone(SMALL, str(test_data / "weights" / "mobilenetv2_100.safetensors"))
    compare(backbone, photos(2, 3, 64, 96))
    assert backbone.weights.endswith("weights/mobilenetv2_100.safetensors")
    assert backbone.normalisation == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@needs_timm
def test_tokens_are_pooled_without_the_class_token() -> None:
    backbone, x = random("timm/vit_tiny_patch16_224"), photos(2, 3, 224, 224)
    net: Any = backbone.network
    with torch.no_grad():
        v = net._pos_embed(net.patch_embed((x.float() - backbone.mean) / backbone.std))
        assert v.shape == (2, 197, 192)
        for block, found in zip(net.blocks, backbone(x)[:, : 12 * 192].split(192, 1), strict=True):
            v = block(v)
            torch.testing.assert_close(found, v[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backbone(x)[:, 12 * 192 :], net.norm(v)[:, 0], rtol=1e-5, atol=1e-5)


@needs_timm
def test_maps_with_channels_last() -> None:
    """Swin's maps are [B, H, W, C]."""
    backbone, x = random("timm/swin_tiny_patch4_window7_224"), photos(1, 3, 224, 224)
    net: Any = backbone.network
    features = backbone(x)[0]
    with torch.no_grad():
        v = net.patch_embed((x.float() - backbone.mean) / backbone.std)
        at = 0
        for layer in net.layers:
            v = layer.downsample(v)
            for block in layer.blocks:
                v = block(v)
                assert v.shape[1] == v.shape[2]
                torch.testing.assert_close(features[at : at + v.shape[3]], v[0].mean((0, 1)), rtol=1e-5, atol=1e-5)
                at += v.shape[3]
        torch.testing.assert_close(features[at:], net.norm(v)[0].mean((0, 1)), rtol=1e-5, atol=1e-5)


def test_pooling() -> None:
    tokens, maps = torch.randn(2, 7, 3), torch.randn(2, 3, 4, 5)
    net = nn.Identity()
    assert torch.equal(pool_map(tokens, net), tokens.mean(1)) and torch.equal(pool_map(maps, net), maps.mean((2, 3)))
    net.num_prefix_tokens, net.output_fmt = 2, "NHWC"  # type: ignore[assignment]
    assert torch.equal(pool_map(tokens, net), tokens[:, 2:].mean(1))
    assert torch.equal(pool_map(maps, net), maps.mean((1, 2)))
    for output, kind in (((tokens, tokens), "tuple"), (torch.ones(2, 3), "Tensor")):
        with pytest.raises(UsageError, match=f"cannot pool a block output of type {kind}: the blocks give no maps"):
            pool_map(output, net)


# ---- the same photo, the same numbers --------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "side"), [("resnet18", 96), ("mobilenetv2_100", 96), ("vit_tiny_patch16_224", 224)])
def test_neighbours_change_no_bit(name: str, side: int, layout: torch.memory_format) -> None:
    backbone = load_backbone(f"timm/{name}", "random:1").to(memory_format=layout)
    photo = photos(3, side, side)
    rows = []
    for place in range(4):
        batch = photos(4, 3, side, side, seed=place).contiguous(memory_format=layout)
        batch[place] = photo
        rows.append(backbone(batch)[place])
    black = torch.zeros(4, 3, side, side, dtype=torch.uint8).contiguous(memory_format=layout)
    black[0] = photo
    for row in (*rows[1:], backbone(black)[0]):
        assert torch.equal(row, rows[0])


# ---- networks that are built another way -----------------------------------------------------------------------------


class Toy(nn.Module):
    """Two blocks on a map; `side`: the least input it takes; `head` after the last block."""

    def __init__(self, side: int, head: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2))
        self.side, self.head = side, head

    def forward_features(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.side:
            raise RuntimeError(f"Kernel size can't be greater than actual input size: {x.shape[-1]}")
        x = self.stem(x)
        for block in self.blocks:
            x = block[0](x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return self.head(x.mean((2, 3)))


def toy(side: int = 8, head: nn.Module | None = None, native: int = 128) -> Backbone:
    config = {"input_size": (3, native, native), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Toy(side, head or nn.Identity())
    net.feature_info = [{"module": "blocks.0.0"}, {"module": "blocks.1.0"}]  # type: ignore[assignment]
    return Backbone("timm/toy", net, "random:0", config)


def test_a_network_without_lists_of_blocks() -> None:
    """The ends of its stages count then. The last one is the last layer here, so it is there once."""
    found = toy()
    assert found.blocks == ["blocks.0.0", "blocks.1.0"]
    assert found.ranges == {"taps": (0, 8), "last": (4, 8)}
    assert toy(head=nn.Linear(4, 6)).ranges == {"taps": (0, 14), "last": (8, 14)}
    assert toy(head=nn.Tanh()).ranges == {"taps": (0, 12), "last": (8, 12)}  # the same shape, other numbers


def test_an_input_that_is_too_small() -> None:
    """What the network takes is asked at its own size: a network of 128 pixels need not take 64."""
    found = toy(side=100)
    assert found(photos(1, 3, 128, 100)).shape == (1, 8)
    with pytest.raises(UsageError, match=r"timm/toy does not take an input of 64x96 .*try --fit crop --size 128"):
        found(photos(1, 3, 96, 64))
    assert not any(module._forward_hooks for module in found.network.modules())


@needs_timm
def test_an_input_of_another_size_than_fixed() -> None:
    with pytest.raises(UsageError, match=r"does not take an input of 96x64 pixels .*--size 224"):
        random("timm/vit_tiny_patch16_224")(photos(1, 3, 64, 96))


# ---- names -----------------------------------------------------------------------------------------------------------


@needs_timm
def test_unknown_names() -> None:
    with pytest.raises(
        UsageError, match="unknown backbone 'resnet18': expected pocket, resnet50, mlsp or timm/MODEL, for"
    ):
        load_backbone("resnet18")
    with pytest.raises(UsageError, match=r"timm has no model 'mobilnetv2_100'; similar: mobilenetv2_100"):
        load_backbone("timm/mobilnetv2_100")
    with pytest.raises(UsageError, match=r"timm has no model '0'; similar: none"):
        load_backbone("timm/0")
    with pytest.raises(UsageError, match=r"timm cannot build 'resnet18\.nobody'"):
        load_backbone("timm/resnet18.nobody", "random:0")


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'timm\b.*pip install 'milnet\[timm\]'"):
        load_backbone(SMALL, "random:0")


# ---- weights ---------------------------------------------------------------------------------------------------------


@needs_timm
def test_random_weights() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = load_backbone(SMALL, "random:3")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    again, other = load_backbone(SMALL, "random:3"), load_backbone(SMALL, "random:4")
    assert first.digest == again.digest != other.digest and first.weights == "random:3"
    x = photos(1, 3, 64, 64)
    assert torch.equal(first(x), again(x)) and not torch.equal(first(x), other(x))
    for text in ("random:", "random:x", "random:1.5"):
        with pytest.raises(UsageError, match=f"--weights {text}: expected random:SEED with a whole number"):
            load_backbone(SMALL, text)


def test_the_digest_of_a_state() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).reshape(3, 2).reshape(2, 3)}
    assert digest_state(state) == digest_state(same)
    permuted = state["a"].T.contiguous().T  # equal values in another memory order
    assert digest_state({**state, "a": permuted}) == digest_state(state)
    others = [
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].double()},
        {**state, "a": state["a"] + 1},
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"]},
        {**state, "a": state["a"].to(torch.bfloat16)},
    ]
    assert len({digest_state(x) for x in (state, *others)}) == 7


@needs_timm
def test_a_weights_file(tmp_path: Path) -> None:
    source = load_backbone(SMALL, "random:5")
    state, file = dict(source.network.state_dict()), tmp_path / "net.safetensors"

    def write(changed: dict[str, Tensor]) -> str:
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file)
        return str(file)

    loaded = load_backbone(SMALL, write(state))
    assert loaded.digest == source.digest and loaded.weights == str(file)
    assert torch.equal(loaded(photos(1, 3, 64, 64)), source(photos(1, 3, 64, 64)))
    classifier = {"classifier.weight": torch.ones(1000, 1280), "classifier.bias": torch.ones(1000)}
    assert load_backbone(SMALL, write(state | classifier)).digest == source.digest
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert load_backbone(SMALL, write(without)).digest == source.digest

    message = r"net\.safetensors does not hold the weights of timm/mobilenetv2_100: "
    fewer = {name: tensor for name, tensor in state.items() if name != "bn1.bias"}
    with pytest.raises(WeightsError, match=message + r"1 tensors missing \(bn1\.bias\), 0 unknown \(\), 0 of another"):
        load_backbone(SMALL, write(fewer))
    with pytest.raises(WeightsError, match=message + r"0 tensors missing \(\), 1 unknown \(bn9\.bias\), 0 of another"):
        load_backbone(SMALL, write(state | {"bn9.bias": torch.ones(2)}))
    with pytest.raises(WeightsError, match=message + r"0 .*, 0 unknown \(\), 1 of another shape \(bn1\.bias\)"):
        load_backbone(SMALL, write(state | {"bn1.bias": torch.ones(2)}))


@needs_timm
def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "net.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    for name in ("net.pth", "short.safetensors"):
        with pytest.raises(WeightsError, match=r"is no safetensors file .*other formats can run code and are refused"):
            load_backbone(SMALL, str(tmp_path / name))
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(WeightsError, match="expected a safetensors file, 'cached', 'hub' or 'random:SEED'"):
            load_backbone(SMALL, str(missing))


@needs_timm
def test_other_weights_than_the_features_were_made_with() -> None:
    digest = random(SMALL).digest
    assert load_backbone(SMALL, "random:0", digest=digest).digest == digest
    with pytest.raises(
        WeightsError,
        match=rf"the weights of timm/mobilenetv2_100 from random:1 are not .*expected sha256 {digest[:12]}\.\.\., "
        r"got [0-9a-f]{12}\.\.\.; pass the right file with --weights",
    ):
        load_backbone(SMALL, "random:1", digest=digest)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and a network that must not be touched."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def touched(*_: object, **__: object) -> None:
        pytest.fail("the network was touched")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)
    return tmp_path / "hub"


@needs_timm
def test_nothing_is_downloaded_unless_asked(hub: Path) -> None:
    advice = (
        r"fetch model\.safetensors of timm/mobilenetv2_100\.ra_in1k where the hub can be reached and pass "
        r"--weights FILE, or use --weights random:0"
    )
    with pytest.raises(WeightsError, match=rf"not in the local hub cache and nothing is downloaded .*: {advice}"):
        load_backbone(SMALL)
    with pytest.raises(WeightsError, match=rf"not in the local hub cache and --offline forbids downloading: {advice}"):
        load_backbone(SMALL, "hub", offline=True)
    assert not hub.exists()


@needs_timm
def test_what_the_cache_holds_is_used(hub: Path) -> None:
    source = load_backbone(SMALL, "random:5")
    repository = hub / "models--timm--mobilenetv2_100.ra_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(dict(source.network.state_dict()), repository / "snapshots" / "abc" / "model.safetensors")
    for weights, offline in (("cached", False), ("cached", True), ("hub", True), ("hub", False)):
        found = load_backbone(SMALL, weights, offline=offline)
        assert found.digest == source.digest and found.weights == "hub:timm/mobilenetv2_100.ra_in1k"


@needs_timm
@pytest.mark.parametrize("kind", ["unreachable", "refused"])
def test_a_hub_that_does_not_answer(kind: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(repository: str, file: str) -> str:
        assert (repository, file) == ("timm/mobilenetv2_100.ra_in1k", "model.safetensors")
        missing = huggingface_hub.errors.LocalEntryNotFoundError
        raise OSError("no route\nto the hub") if kind == "unreachable" else missing("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=r"cannot get the weights of timm/\S+ from the hub \(\w+: no"):
        load_backbone(SMALL, "hub")


# ---- torchvision beside a torch of another build ---------------------------------------------------------------------

FAKE = """
import torch
try:
    torch.ops.torchvision.nms, torch.ops.torchvision.qnms
except AttributeError:
    raise RuntimeError("operator torchvision::nms does not exist") from None
"""
CALL = "from milnet._torchvision import make_torchvision_importable as m; m(); m(); import torchvision; print('fine')"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FAKE, "fine"),
        ("", "fine"),
        ("raise RuntimeError('another defect')", "another defect"),
        (None, "ModuleNotFound"),
    ],
)
def test_torchvision_becomes_importable(text: str | None, expected: str, tmp_path: Path) -> None:
    """With a torchvision that asks for its operators, as one of another build does; other defects are not hidden."""
    if text is None:
        text = "raise ModuleNotFoundError('torchvision')"
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert expected in (done.stdout if done.returncode == 0 else done.stderr)
    assert (done.returncode == 0) == (expected == "fine")


@needs_timm
def test_the_installed_torchvision() -> None:
    assert backbones._import_timm().is_model("resnet18")
    import torchvision

    assert torchvision.transforms is not None
