"""Weights that a user adds: three kinds of file become the same network, anything else is refused, downloads go on."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import made
from milnet.artifacts import write_array
from milnet.backbones import Backbone, digest_state, load_backbone
from milnet.checkpoints import save_model
from milnet.errors import MissingExtraError, UsageError, WeightsError
from milnet.extraction import Extractor
from milnet.features import load_feature_set
from milnet.preprocess import Preprocess
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.scoring import Scorer, where_weights
from milnet.splits import Split
from milnet.storing import extract
from milnet.weights import (
    KNOWN,
    LIMIT,
    Added,
    add_weights,
    check,
    get_weights,
    kept,
    probe_inputs,
    read_weights,
    require,
    stand_in,
    torchvision_names,
)
from test_cli import milnet

pytestmark = made.needs_timm
BACKBONE = "timm/mobilenetv2_100"
EPS = 1e-5
State = dict[str, Tensor]


def mobilenet(seed: int) -> nn.Module:
    """torchvision's network with random weights; its batch norms have statistics of pictures, random scale and bias."""
    from milnet._torchvision import make_torchvision_importable

    make_torchvision_importable()
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.mobilenet_v2()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.6, 1.4)
                module.bias.data.uniform_(-0.4, 0.4)
                module.momentum = None  # a plain mean over what it sees
        with torch.no_grad():  # without statistics all pictures would look alike in the last layers
            network.train()(probe_inputs().float() / 64 - 2)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 0.1
    return network.eval()


def layers(network: nn.Module) -> list[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    found = list(network.named_modules())
    convolutions = [(name, module) for name, module in found if isinstance(module, nn.Conv2d)]
    norms = [(name, module) for name, module in found if isinstance(module, nn.BatchNorm2d)]
    return [(*a, *b) for a, b in zip(convolutions, norms, strict=True)]


def timm_network() -> nn.Module:
    return load_backbone(BACKBONE, "random:0").network


def fold(theirs: nn.Module, kind: Any = np.float32) -> State:
    """An independent folding, channel by channel in NumPy, into timm's names; in float32, as exporters do it."""
    state: State = {}
    for (_, convolution, _, norm), (name, _, norm_name, _) in zip(layers(theirs), layers(timm_network()), strict=True):
        gamma, beta, mean, variance = (
            np.asarray(value.detach(), kind)
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)  # type: ignore[union-attr]
        )
        weight = np.array(convolution.weight.detach(), kind)
        for channel in range(len(weight)):
            weight[channel] *= gamma[channel] / np.sqrt(variance[channel] + kind(EPS))
        state[f"{name}.weight"] = torch.tensor(weight, dtype=torch.float32)
        bias = beta - gamma * mean / np.sqrt(variance + kind(EPS))
        state |= plain_norm(norm_name, torch.tensor(bias, dtype=torch.float32))
    return state


def plain_norm(name: str, bias: Tensor) -> State:
    count = len(bias)
    return {
        f"{name}.weight": torch.ones(count),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros(count),
        f"{name}.running_var": torch.full((count,), 1 - EPS),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def unfold(folded: State, seed: int = 0) -> nn.Module:
    """torchvision's network that computes the same as a folded state, with random batch norms."""
    theirs = mobilenet(seed)
    for (_, convolution, _, norm), (name, _, norm_name, _) in zip(layers(theirs), layers(timm_network()), strict=True):
        assert norm.running_var is not None and norm.running_mean is not None
        scale = (norm.weight.double() / (norm.running_var.double() + EPS).sqrt()).detach()
        convolution.weight.data = (folded[f"{name}.weight"].double() / scale.view(-1, 1, 1, 1)).float()
        norm.bias.data = (folded[f"{norm_name}.bias"].double() + norm.running_mean.double() * scale).float()
    return theirs


def onnx_bytes(theirs: nn.Module, folded: State, form: str) -> bytes:
    """A model as an exporter writes it: "folded", "norms" (Conv + BatchNormalization) or "constants"."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, stored, last = [], [], "input"

    def store(name: str, values: Tensor) -> str:
        tensor = numpy_helper.from_array(values.detach().numpy(), name)
        if form == "constants":  # as a node, under another name
            nodes.append(helper.make_node("Constant", [], [f"{name}/c"], value=tensor))
            nodes.append(helper.make_node("Identity", [f"{name}/c"], [name]))
        else:
            stored.append(tensor)
        return name

    for i, ((_, convolution, _, norm), (name, _, norm_name, _)) in enumerate(
        zip(layers(theirs), layers(timm_network()), strict=True)
    ):
        how: dict[str, Any] = {
            "kernel_shape": list(convolution.kernel_size),
            "strides": list(convolution.stride),
            "pads": [int(convolution.padding[0])] * 4,
            "group": convolution.groups,
        }
        if form == "norms":
            inputs = [last, store(f"w{i}", convolution.weight)]
            nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], **how))
            parts = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
            vectors = [store(f"n{i}.{k}", part) for k, part in enumerate(parts)]  # type: ignore[arg-type]
            nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *vectors], [f"b{i}"], epsilon=EPS))
            last = f"b{i}"
        else:
            inputs = [last, store(f"w{i}", folded[f"{name}.weight"]), store(f"v{i}", folded[f"{norm_name}.bias"])]
            nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], name=f"Conv_{i}", **how))
            last = f"c{i}"
        nodes.append(helper.make_node("Clip", [last], [f"a{i}"]))
        last = f"a{i}"
    stored += [
        numpy_helper.from_array(np.zeros((10, 1280), np.float32), "classifier.1.weight"),
        numpy_helper.from_array(np.zeros(10, np.float32), "classifier.1.bias"),
    ]
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "classifier.1.weight", "classifier.1.bias"], ["output"], transB=1))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])
    model = helper.make_model(helper.make_graph(nodes, "mobilenetv2", [image], [output], stored))
    return bytes(model.SerializeToString())


def torch_bytes(value: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def safe_bytes(state: State) -> bytes:
    import safetensors.torch

    return bytes(safetensors.torch.save(state))


def timm_names(theirs: nn.Module) -> State:
    """The state of torchvision's network under timm's names, batch norms as they are."""
    state: State = {}
    for (_, convolution, _, norm), (name, _, norm_name, _) in zip(layers(theirs), layers(timm_network()), strict=True):
        state[f"{name}.weight"] = convolution.weight.detach()
        state |= {f"{norm_name}.{part}": value for part, value in norm.state_dict().items()}
    return state


KINDS: dict[str, tuple[str, Callable[[nn.Module, State], bytes]]] = {
    "safetensors": ("safetensors", lambda theirs, folded: safe_bytes(folded)),
    "safetensors with norms": ("safetensors", lambda theirs, folded: safe_bytes(timm_names(theirs))),
    "safetensors with torchvision's names": ("safetensors", lambda theirs, folded: safe_bytes(theirs.state_dict())),
    "onnx": ("onnx", lambda theirs, folded: onnx_bytes(theirs, folded, "folded")),
    "onnx with norms": ("onnx", lambda theirs, folded: onnx_bytes(theirs, folded, "norms")),
    "onnx of constants": ("onnx", lambda theirs, folded: onnx_bytes(theirs, folded, "constants")),
    "torch": ("torch", lambda theirs, folded: torch_bytes(theirs.state_dict())),
    "torch with module.": (
        "torch",
        lambda theirs, folded: torch_bytes(OrderedDict((f"module.{k}", v) for k, v in theirs.state_dict().items())),
    ),
    "torch in a dict": (
        "torch",
        lambda theirs, folded: torch_bytes({"epoch": 3, "state_dict": theirs.state_dict()}),
    ),
    "old torch": (
        "torch",
        lambda theirs, folded: torch_bytes(theirs.state_dict(), _use_new_zipfile_serialization=False),
    ),
    "torch with timm's names": ("torch", lambda theirs, folded: torch_bytes(folded)),
}
THREE = ("safetensors", "onnx with norms", "torch")  # one of each kind


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return mobilenet(1)


@pytest.fixture(scope="module")
def folded(theirs: nn.Module) -> State:
    return fold(theirs)


def backbone_of(state: State, folder: Path) -> Backbone:
    path = folder / "state.safetensors"
    path.write_bytes(safe_bytes(state))
    return load_backbone(BACKBONE, str(path))


@pytest.fixture(scope="module")
def expected(folded: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the expected features of the random network."""
    folder = tmp_path_factory.mktemp("expected")
    write_array(folder / "standard.probes.npy", backbone_of(folded, folder)(probe_inputs()).numpy())
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "home" / "weights"


@pytest.fixture
def played(folded: State, expected: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The random network plays the part of `standard`; gives its digest."""
    digest = digest_state(folded)
    monkeypatch.setitem(KNOWN, "standard", replace(KNOWN["standard"], digest=digest))
    monkeypatch.setattr("milnet.weights.bundled", lambda name: expected / name)
    return digest


@pytest.fixture
def files(theirs: nn.Module, folded: State, tmp_path: Path) -> Callable[[str], Path]:
    """Writes the file of a kind; its name says nothing."""

    def write(kind: str) -> Path:
        path = tmp_path / "file.bin"
        path.write_bytes(KINDS[kind][1](theirs, folded))
        return path

    return write


# Reading


def test_the_test_pictures_are_the_same_everywhere() -> None:
    pictures = probe_inputs()
    assert pictures.shape == (4, 3, 96, 128)
    assert pictures.dtype == torch.uint8
    # golden: made once, on x86; integers alone decide it
    digest = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
    assert digest == "060a95aba5699ae37c92961721071550ccce791e78743d66a16848cbf718c186"
    assert (pictures.float().flatten(2).std(2) > 30).all()


def test_torchvision_names_are_those_of_torchvision(theirs: nn.Module) -> None:
    assert torchvision_names() == [(name, norm) for name, _, norm, _ in layers(theirs)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_network(
    kind: str, files: Callable[[str], Path], folded: State, played: str, home: Path
) -> None:
    path = files(kind)
    state = read_weights(path)
    assert list(state) == list(timm_network().state_dict())
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-6, atol=1e-6)
    added = add_weights(path)
    assert added == Added("standard", home / "standard.safetensors", digest_state(state), KINDS[kind][0])
    assert kept("standard") == added == stand_in(played) == require("standard")
    assert load_backbone(BACKBONE, str(added.path)).digest == added.digest
    record = json.loads((home / "standard.json").read_text())
    assert record["source"] == "file.bin"
    assert record["kind"] == added.kind
    assert {one.name for one in home.iterdir()} == {"standard.safetensors", "standard.json"}


def test_what_is_folded_keeps_its_bits(files: Callable[[str], Path], played: str, theirs: nn.Module) -> None:
    for kind in ("safetensors", "onnx", "onnx of constants", "torch with timm's names"):
        assert digest_state(read_weights(files(kind))) == played, kind
    exact = digest_state(fold(theirs, np.float64))
    assert exact != played
    for kind in ("safetensors with norms", "torch", "old torch"):
        assert digest_state(read_weights(files(kind))) == exact, kind


def test_features_are_those_of_torchvision(theirs: nn.Module, files: Callable[[str], Path], tmp_path: Path) -> None:
    """Oracle: torchvision's own forward pass with its batch norms, against timm's with what was folded."""
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.inference_mode():
        right = theirs.features((probe_inputs().float() / 255 - mean) / deviation).mean((2, 3))  # type: ignore[operator]
    for kind in THREE:
        backbone = backbone_of(read_weights(files(kind)), tmp_path)
        first, end = backbone.ranges["last"]
        found = backbone(probe_inputs())[:, first:end]
        assert float((found - right).norm() / right.norm()) < 1e-4, kind


# Refusals


def test_other_weights_are_refused_and_replace_nothing(
    files: Callable[[str], Path], played: str, tmp_path: Path, home: Path
) -> None:
    added = add_weights(files("torch"))
    other = tmp_path / "other.pth"
    other.write_bytes(torch_bytes(mobilenet(2).state_dict()))
    with pytest.raises(
        WeightsError, match=r"other.pth does not hold the weights 'standard'.*timm's own mobilenetv2_100"
    ):
        add_weights(other)
    assert kept("standard") == added
    with pytest.raises(WeightsError, match=r"the blocks are \d+\.\d+% and the last layer are \d+\.\d+% away"):
        check(load_backbone(BACKBONE, "random:0"), "standard")
    with pytest.raises(
        WeightsError, match=r"expected 2,784 features of timm/mobilenetv2_100, got 368 of timm/test_resn"
    ):
        check(load_backbone("timm/test_resnet", "random:0"), "standard")
    assert {one.name for one in home.iterdir()} == {"standard.safetensors", "standard.json"}


def test_a_small_difference_passes_and_a_large_one_does_not(played: str, folded: State, tmp_path: Path) -> None:
    def moved(part: str, by: float) -> Backbone:
        generator = torch.Generator().manual_seed(0)
        noise = {
            name: tensor * (1 + by * torch.randn(tensor.shape, generator=generator))
            for name, tensor in folded.items()
            if name.startswith(part) and name.endswith("weight") and tensor.ndim == 4
        }
        return backbone_of({**folded, **noise}, tmp_path)

    check(moved("", 1e-6), "standard")
    for part in ("conv_head", "blocks.6", "conv_stem"):
        with pytest.raises(WeightsError, match="does not hold the weights"):
            check(moved(part, 0.1), "standard")


def test_the_expected_features_have_their_shape() -> None:
    """Those that are shipped: without real data nothing else looks at them."""
    from milnet.places import bundled

    features = np.load(bundled("standard.probes.npy"))
    assert features.shape == (4, 2784)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    with pytest.raises(WeightsError, match="does not hold the weights 'standard'"):
        check(load_backbone(BACKBONE, "random:0"), "standard")


class _Code:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def changed(folded: State, **tensors: Tensor | None) -> State:
    state = {**folded, **{name.replace("_dot_", "."): value for name, value in tensors.items()}}  # type: ignore[dict-item]
    return {name: value for name, value in state.items() if value is not None}


def bad_files(theirs: nn.Module, folded: State, made_by_code: Path) -> dict[str, tuple[bytes, str]]:
    """Content -> what must be said of it."""
    import onnx
    from onnx import numpy_helper

    def edited(form: str, edit: Callable[[Any], None]) -> bytes:
        model = onnx.load_model_from_string(onnx_bytes(theirs, folded, form))
        edit(model.graph)
        return bytes(model.SerializeToString())

    def outside(graph: Any) -> None:
        graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        graph.initializer[0].external_data.add(key="location", value="weights.data")
        graph.initializer[0].ClearField("raw_data")

    def shape(graph: Any) -> None:
        graph.initializer[0].dims[0] = 2**40

    def short(graph: Any) -> None:
        graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-4]

    def integers(graph: Any) -> None:
        graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((32, 3, 3, 3), np.int8), "w0"))

    def unnamed(graph: Any) -> None:
        graph.initializer[0].name = "elsewhere"

    def no_inputs(graph: Any) -> None:
        del graph.node[0].input[1:]

    def fewer(graph: Any) -> None:
        del graph.node[0]

    def no_number(graph: Any) -> None:
        values = np.full((32, 3, 3, 3), np.nan, np.float32)
        graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w0"))

    stem = folded["conv_stem.weight"]
    safe, model, state = safe_bytes(folded), onnx_bytes(theirs, folded, "folded"), torch_bytes(theirs.state_dict())
    old = torch_bytes(theirs.state_dict(), _use_new_zipfile_serialization=False)
    negative = {**theirs.state_dict(), "features.0.1.running_var": torch.full((32,), -1.0)}
    huge = {**theirs.state_dict(), "features.0.0.weight": torch.zeros(1).expand(10**6, 10**6)}
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    return {
        "empty": (b"", "expected a file with weights, got 0 bytes"),
        "short": (b"abc", "expected a file with weights, got 3 bytes"),
        "text": (
            b"these are not the weights you are looking for",
            "expected a safetensors file, an ONNX model or a torch",
        ),
        "random": (np.random.default_rng(0).bytes(100_000), "expected a safetensors file"),
        "zeros": (bytes(100_000), "expected a safetensors file"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "got a web page"),
        "safetensors, half": (safe[: len(safe) // 2], "damaged safetensors"),
        "safetensors, header cut": (safe[:5000], "damaged safetensors"),
        "safetensors, long": (safe + b"more", "damaged safetensors"),
        "safetensors, huge header": ((2**62).to_bytes(8, "little") + safe[8:], "damaged safetensors"),
        "safetensors, huge tensor": (len(header).to_bytes(8, "little") + header, "damaged safetensors"),
        "safetensors, empty": (safe_bytes({}), "260 missing"),
        "safetensors, one missing": (
            safe_bytes(changed(folded, bn1_dot_bias=None)),
            r"1 missing \(bn1.bias\) and 0 unk",
        ),
        "safetensors, one more": (
            safe_bytes({**folded, "more": stem[0].clone()}),
            r"0 missing \(\) and 1 unknown \(more\)",
        ),
        "safetensors, shape": (
            safe_bytes(changed(folded, conv_stem_dot_weight=stem[:, :2].contiguous())),
            r"expected shape \[32, 3, 3, 3\] at conv_stem, got \[32, 2, 3, 3\]",
        ),
        "safetensors, vector": (
            safe_bytes(changed(folded, bn1_dot_bias=torch.zeros(1, 32))),
            r"expected shape \[32\] at conv_stem, got \[1, 32\]",
        ),
        "safetensors, NaN": (safe_bytes(changed(folded, conv_stem_dot_weight=stem * torch.nan)), "not finite numbers"),
        "safetensors, integers": (safe_bytes(changed(folded, conv_stem_dot_weight=stem.int())), "got torch.int32"),
        "safetensors, too large": (
            safe_bytes(changed(folded, conv_stem_dot_weight=stem.double() * 1e300)),
            "not finite numbers",
        ),
        "onnx, half": (model[: len(model) // 2], "damaged ONNX"),
        "onnx, damaged": (model[:100] + bytes(1000) + model[1100:], "ONNX|Conv nodes"),
        "onnx, outside": (edited("folded", outside), "lie in another file, which is not read"),
        "onnx, shape": (
            edited("folded", shape),
            r"expected shape \[32, 3, 3, 3\] for 'w0', got \[1099511627776, 3, 3, 3\]",
        ),
        "onnx, short": (edited("folded", short), "damaged ONNX"),
        "onnx, integers": (edited("folded", integers), "got integers: a quantised or stripped"),
        "onnx, unnamed": (edited("folded", unnamed), "got none: a quantised or stripped"),
        "onnx, no inputs": (edited("folded", no_inputs), "'Conv_0' lacks inputs"),
        "onnx, fewer": (edited("folded", fewer), "expected 52 Conv nodes, got 51"),
        "onnx, NaN": (edited("folded", no_number), "not finite numbers"),
        "torch, half": (state[: len(state) // 2], "damaged, or holds more than tensors"),
        "torch, end cut": (state[:-30], "damaged, or holds more than tensors"),
        "torch, old, half": (old[: len(old) // 2], "damaged, or holds more than tensors"),
        "torch, another network": (
            torch_bytes({"features.0.0.weight": stem}),
            r"259 missing \(features.0.1.bias.*\) and 0 unknown",
        ),
        "torch, a tensor": (torch_bytes(stem), "expected a state dict, name -> tensor, got other objects"),
        "torch, a list": (torch_bytes([stem]), "expected a state dict, name -> tensor, got other objects"),
        "torch, empty": (torch_bytes({}), "260 missing"),
        "torch, a claim": (torch_bytes(huge), r"expected shape \[32, 3, 3, 3\] .* got \[1000000, 1000000\]"),
        "torch, negative": (torch_bytes(negative), "not finite numbers"),
        "torch, a network": (torch_bytes(theirs), "more than tensors, which could run code and is refused"),
        "torch, code": (torch_bytes({"a": _Code(made_by_code)}), "could run code and is refused"),
        "a pickle": (pickle.dumps({"a": 1, "b": "long enough"}), "could run code and is refused"),
        "a pickle, code": (pickle.dumps(_Code(made_by_code)), "could run code and is refused"),
        "a zip bomb": (bomb(), "could run code and is refused|unpacks to more"),
    }


def bomb() -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(LIMIT // 10**6 + 1):
            file.write(bytes(10**6))
    return buffer.getvalue()


def test_bad_files(theirs: nn.Module, folded: State, tmp_path: Path, home: Path) -> None:
    made_by_code = tmp_path / "made by code"
    path = tmp_path / "file.bin"
    for name, (content, said) in bad_files(theirs, folded, made_by_code).items():
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=said) as caught:
            add_weights(path)
        assert str(path) in str(caught.value), name
        assert not made_by_code.exists(), name
    assert not home.exists()


def test_no_file_a_folder_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected a file with weights .*mobilenetv2-12.onnx.*, got nothing there"):
        add_weights(tmp_path / "missing")
    with pytest.raises(WeightsError, match="got a folder"):
        add_weights(tmp_path)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(WeightsError, match="expected at most 200 MB, got more"):
        add_weights(huge)


def test_onnx_is_an_extra(files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = files("onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"reading weights from an ONNX file needs .*milnet\[onnx\]"):
        add_weights(path)
    read_weights(files("torch"))


# What is kept


def test_nothing_is_kept_at_first(played: str) -> None:
    assert kept("standard") is None
    assert stand_in(played) is None
    assert stand_in("0" * 64) is None
    with pytest.raises(WeightsError, match=r"'standard' were not added on this machine: .*milnet weights add FILE"):
        require("standard")
    for call in (
        kept,
        require,
        lambda name: get_weights(name, "http://127.0.0.1/"),
        lambda name: add_weights(Path(), name),
    ):
        with pytest.raises(UsageError, match="no weights of the name 'other' to add: expected standard"):
            call("other")


def test_adding_again_replaces(files: Callable[[str], Path], played: str) -> None:
    first, second = add_weights(files("safetensors")), add_weights(files("torch"))
    assert first.digest == played != second.digest
    assert kept("standard") == second


@pytest.mark.parametrize("damage", ["file", "no file", "no record", "no json", "other json", "list"])
def test_what_was_damaged_is_an_error(damage: str, files: Callable[[str], Path], played: str, home: Path) -> None:
    path = files("safetensors")
    added = add_weights(path)
    record = home / "standard.json"
    said = f"{record} is damaged"
    if damage == "file":
        with added.path.open("r+b") as file:
            file.seek(100_000)
            file.write(b"\0\0\0\1")
        said = "changed or damaged"
    elif damage.startswith("no f"):
        added.path.unlink()
        said = f"{added.path} is missing"
    elif damage == "no record":
        record.unlink()
        said = f"{record} is missing"
    else:
        record.write_text({"no json": "{", "other json": "{}", "list": "[]"}[damage])
    for call in (lambda: kept("standard"), lambda: stand_in(played)):
        with pytest.raises(WeightsError, match=f"{said}.*add the weights again: milnet weights add FILE"):
            call()
    assert add_weights(path) == kept("standard")


# Downloads


class Server:
    """A web server on this machine that can be told how to behave."""

    def __init__(self, content: bytes) -> None:
        self.content, self.tag, self.changed = content, '"one"', "Tue, 01 Sep 2026 10:00:00 GMT"
        self.ranges, self.length = True, True
        self.says, self.stops = len(content), len(content)  # length that is claimed; bytes after which it hangs up
        self.status, self.location = 200, ""
        self.asked: list[str | None] = []  # the Range of each request
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # a client that went away
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/models/mobilenetv2-12.onnx"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append(wanted)
        if self.status != 200:
            request.send_response(self.status)
            if self.location:
                request.send_header("Location", self.location)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first = 0
        if wanted and self.ranges and request.headers["If-Range"] in (self.tag, self.changed):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(self.content):
                request.send_error(416)
                return
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        if self.tag:
            request.send_header("ETag", self.tag)
        if self.changed:
            request.send_header("Last-Modified", self.changed)
        if self.length:
            request.send_header("Content-Length", str(self.says - first))
        request.end_headers()
        request.wfile.write(self.content[first : self.stops])

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(theirs: nn.Module, folded: State) -> Iterator[Server]:
    one = Server(onnx_bytes(theirs, folded, "folded"))
    yield one
    one.close()


def test_get_the_whole(server: Server, played: str, home: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    added = get_weights("standard", server.url, lambda *step: seen.append(step))
    assert added == kept("standard")
    assert (added.digest, added.kind) == (played, "onnx")
    assert json.loads((home / "standard.json").read_text())["source"] == "mobilenetv2-12.onnx"
    size = len(server.content)
    assert seen[-1] == (size, size, "bytes")
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert {one.name for one in home.iterdir()} == {"standard.safetensors", "standard.json"}
    assert server.asked == [None]


def test_get_without_a_length(server: Server, played: str) -> None:
    server.length = False
    assert get_weights("standard", server.url).digest == played


def interrupt(server: Server, at: int = 2_000_000) -> None:
    """Begin a download and press Ctrl-C."""

    def stop(done: int, total: int, what: str) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_weights("standard", server.url, stop)


def test_get_goes_on_after_an_interruption(server: Server, played: str, home: Path) -> None:
    interrupt(server)
    size = (home / "standard.part").stat().st_size
    assert 2_000_000 <= size < 2_200_000
    assert kept("standard") is None
    seen: list[int] = []
    assert get_weights("standard", server.url, lambda done, *_: seen.append(done)).digest == played
    assert server.asked == [None, f"bytes={size}-"]
    assert seen[0] > size
    assert {one.name for one in home.iterdir()} == {"standard.safetensors", "standard.json"}


def test_get_goes_on_by_the_date_where_there_is_no_strong_tag(server: Server, played: str) -> None:
    server.tag = 'W/"weak"'
    interrupt(server)
    assert get_weights("standard", server.url).digest == played
    assert server.asked[1] is not None


@pytest.mark.parametrize("why", ["no ranges", "changed", "changed and unaware", "no validator", "other url", "no note"])
def test_get_begins_anew_where_it_cannot_go_on(
    why: str, server: Server, played: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "no validator":
        server.tag = server.changed = ""
    interrupt(server)
    part = home / "standard.part"
    part.write_bytes(bytes(part.stat().st_size))  # were it gone on with, the file would be of no use
    url = server.url
    if why == "no ranges":
        server.ranges = False
    elif why == "changed":
        server.tag = '"two"'
        server.changed = "Wed, 02 Sep 2026 10:00:00 GMT"
    elif why == "changed and unaware":  # a server that sends a piece of the new file all the same
        answer = server.answer

        def unaware(request: http.server.BaseHTTPRequestHandler) -> None:
            server.tag = str(request.headers["If-Range"] or '"two"')
            send = request.send_header
            request.send_header = lambda name, value: send(name, '"two"' if name == "ETag" else value)  # type: ignore[method-assign]
            answer(request)

        monkeypatch.setattr(server, "answer", unaware)
    elif why == "other url":
        url += "?other"
    elif why == "no note":
        (home / "standard.part.json").unlink()
    assert get_weights("standard", url).digest == played
    assert len(server.asked) == (3 if why == "changed and unaware" else 2)


def test_get_a_file_that_became_shorter(server: Server, played: str, home: Path) -> None:
    server.content, whole = server.content + bytes(3_000_000), server.content
    server.says = server.stops = len(server.content)
    interrupt(server, len(whole) + 1_000_000)
    server.content = whole
    server.says = server.stops = len(whole)
    assert get_weights("standard", server.url).digest == played
    assert len(server.asked) == 3  # the piece, which is not there (416), the whole


def test_get_what_was_complete_needs_no_server(server: Server, played: str, home: Path) -> None:
    interrupt(server, len(server.content))
    server.status = 500
    assert get_weights("standard", server.url).digest == played


def test_get_a_truncated_file(server: Server, played: str, home: Path) -> None:
    size = len(server.content)
    server.stops = size // 2
    said = rf"expected {size:,} bytes, got {size // 2:,} before the connection ended: run it again to go on"
    with pytest.raises(WeightsError, match=said):
        get_weights("standard", server.url)
    assert (home / "standard.part").stat().st_size == size // 2
    server.stops = size * 3 // 4
    with pytest.raises(WeightsError, match=rf"got {size * 3 // 4:,} before"):
        get_weights("standard", server.url)
    server.stops = size
    assert get_weights("standard", server.url).digest == played
    # a length that never comes
    server.says = size + 100
    with pytest.raises(WeightsError, match=rf"expected {size + 100:,} bytes, got {size:,}"):
        get_weights("standard", server.url)


def test_get_a_wrong_file(server: Server, played: str, home: Path) -> None:
    for content, said in (
        (torch_bytes(mobilenet(2).state_dict()), "mobilenetv2-12.onnx does not hold the weights 'standard'"),
        (b"<html>you must log in to see this</html>", "mobilenetv2-12.onnx: expected .* got a web page"),
    ):
        server.content = content
        server.says = server.stops = len(content)
        with pytest.raises(WeightsError, match=said):
            get_weights("standard", server.url)
        assert not list(home.iterdir())


def test_get_a_huge_file(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.says = LIMIT + 1
    with pytest.raises(WeightsError, match="expected at most 200 MB, got more"):
        get_weights("standard", server.url)
    monkeypatch.setattr("milnet.weights.LIMIT", 10**6)
    server.length = False  # it is seen only when it has come
    with pytest.raises(WeightsError, match="expected at most 1 MB, got more"):
        get_weights("standard", server.url)
    assert not list(home.iterdir())


def test_get_with_onnx_missing_keeps_the_download(
    server: Server, played: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        with pytest.raises(MissingExtraError):
            get_weights("standard", server.url)
    assert (home / "standard.part").exists()
    assert get_weights("standard", server.url).digest == played
    assert server.asked == [None]


def test_get_from_where_there_is_nothing(server: Server, home: Path) -> None:
    server.status = 404
    with pytest.raises(WeightsError, match="the server answered 404 Not Found: check the address"):
        get_weights("standard", server.url)
    server.status = 206
    with pytest.raises(WeightsError, match="expected a whole file, got a piece"):
        get_weights("standard", server.url)
    server.close()
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*refused"):
        get_weights("standard", server.url)
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        get_weights("standard", "http://a..b/")
    server.__init__(b"")  # type: ignore[misc]  # for the fixture to close


def test_get_follows_to_web_addresses_only(server: Server, played: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(server.content)
    server.status, server.location = 302, (tmp_path / "local").as_uri()
    with pytest.raises(WeightsError, match="302"):
        get_weights("standard", server.url)
    server.location = "ftp://127.0.0.1/file"
    with pytest.raises(WeightsError, match="unknown url type"):
        get_weights("standard", server.url)
    for url in (
        (tmp_path / "local").as_uri(), "ftp://127.0.0.1/file", "data:,weights", str(tmp_path / "local"), "http://",
        "http://127.0.0.1:port/", "http://127.0.0.1/a b", "http://127.0.0.1/ä", "http://127.0.0.1/a\nb",
    ):  # fmt: skip
        with pytest.raises(UsageError, match="expected an address that begins with https:// or http://"):
            get_weights("standard", url)


# The commands


def test_commands(server: Server, files: Callable[[str], Path], played: str, home: Path) -> None:
    done = milnet("weights", "add", files("torch"))
    assert f"{home / 'standard.safetensors'}: kept, from a file of the kind torch" in done.stdout
    assert "milnet score now uses standard" in done.stdout
    result = json.loads(milnet("weights", "get", "standard", "--url", server.url, "--json").stdout)
    assert result == {
        "name": "standard", "path": str(home / "standard.safetensors"), "digest": played, "kind": "onnx"
    }  # fmt: skip
    asked = len(server.asked)
    said = milnet("weights", "get", "standard", "--url", server.url, "--offline", code=2).stderr
    assert "--offline forbids downloads" in said
    assert len(server.asked) == asked
    assert "milnet weights add FILE" in said
    assert "expected an address" in milnet("weights", "get", "standard", "--url", "file:///etc/hosts", code=2).stderr
    assert "got nothing there" in milnet("weights", "add", "missing.onnx", code=2).stderr
    assert "expected standard" in milnet("weights", "get", "other", "--url", server.url, code=2).stderr
    shown = milnet("weights", code=2)
    assert "Commands" in shown.stdout + shown.stderr


# In use

RECIPE = Recipe(name="published", model="graph", width=8, depth=1, epochs=3, patience=3, batch=16)


@pytest.fixture(scope="module")
def trained(folded: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` and a `model` that was trained with a file of weights that is gone now, and `photos`."""
    folder = tmp_path_factory.mktemp("trained")
    table = replace(made.table(24), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    made.votes_csv(folder / "votes.csv", table)
    backbone = backbone_of(folded, folder)
    place = folder / "state.safetensors"
    extract(
        table,
        folder / "data" / "features" / "f",
        Extractor.build(backbone, Preprocess(size=64), workers=0),
        weights=str(place),
    )
    features = load_feature_set(folder / "data", table)
    rows = np.arange(len(table))
    save_model(fit(RECIPE, table, features, Split(rows, rows[:0]), 0), folder / "model")
    place.rename(folder / "elsewhere")
    return folder


def scores(folder: Path, **how: Any) -> list[float]:
    photos = sorted((folder / "photos").iterdir())[:3]
    return [score.score for score in Scorer.load(folder / "model", workers=0, **how).score(photos)]


def test_scores_are_the_same_with_every_kind(
    trained: Path, files: Callable[[str], Path], played: str, home: Path
) -> None:
    with pytest.raises(
        WeightsError, match=r"not there any more: pass --weights FILE .* or add it once and for all: milne"
    ):
        scores(trained)
    right = scores(trained, weights=trained / "elsewhere")
    assert np.std(right) > 1e-3
    for kind in THREE:
        added = add_weights(files(kind))
        np.testing.assert_allclose(scores(trained), right, rtol=0, atol=1e-4)
        np.testing.assert_allclose(scores(trained, weights="standard"), right, rtol=0, atol=1e-4)
        assert (added.digest == played) is (kind == "safetensors")  # the others stand in
    # weights that are named are not stood in for
    other = home / "copy.safetensors"
    shutil.copy(home / "standard.safetensors", other)
    with pytest.raises(WeightsError, match="are not those the features were made with"):
        scores(trained, weights=other)
    (home / "standard.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="add the weights again"):
        scores(trained)


def test_where_weights(files: Callable[[str], Path], played: str) -> None:
    part = {"weights": "/gone", "extraction": {"weights": played}}
    other = {"weights": "/gone", "extraction": {"weights": "0" * 64}}
    with pytest.raises(WeightsError, match="were not added"):
        where_weights(part, "standard", "--weights")
    added = add_weights(files("torch"))
    assert where_weights(part, None, "--weights") == (str(added.path), added.digest)
    assert where_weights(part, "standard", "--weights") == (str(added.path), added.digest)
    assert where_weights(part, "file", "--weights") == ("file", played)
    assert where_weights({**part, "weights": "hub"}, None, "--weights") == ("cached", played)
    assert where_weights({**part, "weights": "cached"}, None, "--weights") == ("cached", played)
    assert where_weights({**part, "weights": str(added.path)}, None, "--weights") == (str(added.path), played)
    assert where_weights({**other, "weights": "standard"}, None, "--weights") == (str(added.path), added.digest)
    assert where_weights(other, "standard", "--weights") == (str(added.path), "0" * 64)  # of something else
    with pytest.raises(WeightsError, match=r"sha256 000000000000\.\.\.$"):
        where_weights(other, None, "--weights")


def test_features_with_what_was_added(
    trained: Path, files: Callable[[str], Path], played: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, options = tmp_path / "data", ["--backbone", BACKBONE, "--weights", "standard", "--size", "64"]
    milnet("import", "table", trained / "votes.csv", "--images", trained / "photos", "-o", data)
    assert "were not added on this machine" in milnet("features", data, *options, code=2).stderr
    said = milnet("features", data, "--backbone", "timm/test_resnet", "--weights", "standard", code=2).stderr
    assert "--weights standard are weights of timm/mobilenetv2_100, not of timm/test_resnet" in said
    added = add_weights(files("torch"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "standard").write_text("a file of that name means nothing")
    milnet("features", data, *options)
    manifest = json.loads((data / "features" / "timm-mobilenetv2_100" / "manifest.json").read_text())
    assert manifest["config"]["weights"] == played != added.digest  # one identity, whatever file they came from
    assert manifest["notes"]["weights"] == "standard"
    small = ["--set", "width=8", "--set", "depth=1", "--set", "epochs=2", "--set", "batch=16"]
    milnet("train", data, "-o", tmp_path / "model", "--recipe", "published", *small, "--set", "calibration_folds=2")
    shutil.copytree(trained / "photos", tmp_path / "photos")
    right = scores(tmp_path)
    # another file of the same weights, here or on another machine
    assert add_weights(files("safetensors")).digest == played
    np.testing.assert_allclose(scores(tmp_path), right, rtol=0, atol=1e-4)


def test_the_command_line_stays_light() -> None:
    code = "import milnet.cli.weights, sys; print([m for m in ('torch', 'numpy', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# With the real weights


def test_the_real_weights(test_data: Path, tmp_path: Path) -> None:
    """The published numbers in three kinds of file: they pass, and photos score the same."""
    from milnet.annotations import Problems
    from milnet.datasets import read_dataset

    shared = test_data / "weights" / "mobilenetv2_100.safetensors"
    added = add_weights(shared)
    assert added.digest == KNOWN["standard"].digest
    folded = read_weights(shared)
    theirs = unfold(folded)
    table = read_dataset("oasis", test_data / "data" / "oasis", Problems()).table.take(range(0, 677, 28))
    place = tmp_path / "here.safetensors"
    shutil.copy(shared, place)
    extractor = Extractor.build(load_backbone(BACKBONE, str(place)), Preprocess(size=160), workers=0)
    extract(table, tmp_path / "features" / "f", extractor, weights=str(place))
    features = load_feature_set(tmp_path, table)
    rows = np.arange(len(table))
    save_model(fit(RECIPE, table, features, Split(rows, rows[:0]), 0), tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for path in sorted((test_data / "data" / "photos" / "bsds500").glob("*.jpg"))[:3]:
        shutil.copy(path, tmp_path / "photos")
    right = scores(tmp_path)
    place.unlink()
    digests = {}
    for kind, (_, write) in KINDS.items():
        path = tmp_path / "file.bin"
        path.write_bytes(write(theirs, folded))
        digests[kind] = add_weights(path).digest
        if kind in (*THREE, "onnx"):
            np.testing.assert_allclose(scores(tmp_path), right, rtol=0, atol=1e-4)
    assert digests["safetensors"] == digests["onnx"] == added.digest
    assert digests["torch"] != added.digest  # rounding
    wrong = {**folded, "conv_head.weight": folded["conv_head.weight"].flip(0)}
    (tmp_path / "wrong").write_bytes(safe_bytes(wrong))
    with pytest.raises(WeightsError, match=r"the blocks are 0\.0\d% and the last layer are \d+"):
        add_weights(tmp_path / "wrong")
