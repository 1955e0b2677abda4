"""Backbone weights that a user adds once: read from three kinds of file, checked, kept in the user's folder.

The weights `standard` are torchvision's first ImageNet weights of MobileNetV2. They are published as torchvision's own
file and as an ONNX export. Both become the state of timm's network, with every batch norm folded into its convolution.
Folding moves the last bits, so the files are not compared by digest: each must give the expected features of four
pictures that are made by integer arithmetic.

    USER_FOLDER/weights/NAME.safetensors   the state dict
    USER_FOLDER/weights/NAME.json          sha256 of that file, digest of the state, where it came from
    USER_FOLDER/weights/NAME.part          a download under way; NAME.part.json says of what
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from milnet.artifacts import atomic_path, digest_file, digest_text, read_array, read_json, write_json
from milnet.backbones import Backbone, load_backbone
from milnet.errors import ArtifactError, MissingExtraError, UsageError, WeightsError, in_short
from milnet.places import bundled, user_folder
from milnet.version import __version__

Progress: TypeAlias = Callable[[int, int, str], None]  # done, total, what
_Pairs: TypeAlias = Sequence[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]  # convolution, the batch norm behind it

LIMIT = 200_000_000  # bytes: a file of MobileNetV2 has 9 to 14 million
TOLERANCE = 1e-3  # relative difference of features; folding makes 4e-6, half precision 2e-2, two channels swapped 1e-2
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Known:
    """Weights that can be added: their backbone, the digest of their state, where they are published."""

    name: str
    backbone: str
    digest: str  # Backbone.digest of the state from which the expected features were made
    published: str
    others: str  # weights of the same network that people may take for these


STANDARD = Known(
    "standard",
    "timm/mobilenetv2_100",
    "2e485884bbb254cb0e22f97b41d2d2c37627a0876a661216edb4f1749cd4d724",
    "torchvision's mobilenet_v2-b0353104.pth (MobileNet_V2_Weights.IMAGENET1K_V1), or mobilenetv2-10.onnx or "
    "mobilenetv2-12.onnx of the ONNX model zoo",
    "timm's own mobilenetv2_100 and torchvision's IMAGENET1K_V2 are other weights",
)
KNOWN = {STANDARD.name: STANDARD}


@dataclass(frozen=True)
class Added:
    """Weights that are kept: their name, the safetensors file, the digest of its state, the kind of file it was."""

    name: str
    path: Path
    digest: str  # of the state as it is kept: `Backbone.digest`
    kind: str  # "safetensors", "onnx" or "torch"


@dataclass(frozen=True)
class _Layer:
    """A convolution as a file has it, and the batch norm behind it, where there is one."""

    name: str
    weight: Tensor
    bias: Tensor | None
    norm: tuple[Tensor, ...] | None = None  # weight, bias, mean, variance
    eps: float = 1e-5


def add_weights(path: Path, name: str = "standard", *, source: str | None = None) -> Added:
    """Read weights, check them, and keep them for the backbone that `name` stands for.

    What was kept before is replaced, after the new file has passed. `source`: what messages and the record call the
    file, by default its own name. Raises WeightsError for what is not those weights, and as `read_weights`.
    """
    known = _known(name)
    shown = source or str(path)
    state, kind = _read(path, known, shown)
    kept_at, record = _places(name)
    import safetensors.torch

    with atomic_path(kept_at) as temporary:
        safetensors.torch.save_file(state, temporary)
        backbone = load_backbone(known.backbone, str(temporary))  # what is checked is what is kept
        check(backbone, name, source=shown)
        digest = digest_file(temporary)
    write_json(
        record,
        {
            "name": name,
            "backbone": known.backbone,
            "sha256": digest,
            "digest": backbone.digest,
            "kind": kind,
            "source": Path(shown).name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "milnet": __version__,
        },
    )
    return Added(name, kept_at, backbone.digest, kind)


def kept(name: str) -> Added | None:
    """The weights that were added under `name`, None where there are none.

    Raises WeightsError when they were changed, damaged or removed in part, UsageError for an unknown name.
    """
    _known(name)
    path, record = _places(name)
    if not path.exists() and not record.exists():
        return None
    again = f"add the weights again: milnet weights add FILE, or remove {path} and {record.name}"
    for one in (path, record):
        if not one.is_file():
            raise WeightsError(f"{one} is missing: what was added as {name} was removed in part; {again}")
    try:
        data = read_json(record)
        added, expected = Added(name, path, str(data["digest"]), str(data["kind"])), data["sha256"]
    except (ArtifactError, KeyError, TypeError) as error:
        raise WeightsError(f"{record} is damaged ({error!r}): {again}") from error
    if digest_file(path) != expected:
        raise WeightsError(f"{path} does not have the content it was added with: it was changed or damaged; {again}")
    return added


def require(name: str) -> Added:
    """The weights that were added under `name`; WeightsError, with what to do, where there are none."""
    added = kept(name)
    if added is None:
        raise WeightsError(
            f"the weights {name!r} were not added on this machine: get {_known(name).published}, then "
            f"milnet weights add FILE"
        )
    return added


def stand_in(digest: str) -> Added | None:
    """What is kept for weights with that digest.

    Its own digest may be another, because folding a batch norm rounds; it gave the same features when it was added.
    None for a digest that nothing is known of, or where nothing was added. Raises WeightsError as `kept`.
    """
    return next((kept(known.name) for known in KNOWN.values() if known.digest == digest), None)


def _known(name: str) -> Known:
    if name not in KNOWN:
        raise UsageError(f"there are no weights of the name {name!r} to add: expected {', '.join(KNOWN)}")
    return KNOWN[name]


def _places(name: str) -> tuple[Path, Path]:
    """The file that is kept, and its record."""
    folder = user_folder() / "weights"
    return folder / f"{name}.safetensors", folder / f"{name}.json"


# Checking


def probe_inputs() -> Tensor:
    """Four pictures, uint8 [4, 3, 96, 128], made of integers alone: the same on every machine.

    Gradients; checkers of three sizes; noise; rings, a coarse noise and their mixture.
    """
    height, width = 96, 128
    y, x = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    full = torch.zeros(height, width, dtype=torch.int64)
    gradients = [
        full + x * 255 // (width - 1),
        full + y * 255 // (height - 1),
        (x + 2 * y) * 255 // (width + 2 * height),
    ]
    checkers = [(x // side + y // side) % 2 * (255 - side) + side for side in (16, 8, 4)]
    fine = _noise(3 * height * width, 1).view(3, height, width)
    coarse = _noise(12 * 16, 2).view(12, 16).repeat_interleave(8, 0).repeat_interleave(8, 1)
    rings = ((x - 70) * (x - 70) + (y - 40) * (y - 40)) // 24 % 256
    pictures = [torch.stack(gradients), torch.stack(checkers), fine]
    pictures.append(torch.stack([rings, coarse, (rings + 2 * coarse) // 3]))
    return torch.stack(pictures).to(torch.uint8)


def _noise(count: int, seed: int) -> Tensor:
    """`count` numbers 0..255, the high bits of a linear congruential generator."""
    found = []
    for _ in range(count):
        seed = (1664525 * seed + 1013904223) % 2**32
        found.append(seed >> 24)
    return torch.tensor(found)


def check(backbone: Backbone, name: str, *, source: str = "this file") -> None:
    """Compare a backbone's features of `probe_inputs` with those that `name` must give.

    The difference of each picture, divided by the length of what is expected, may be `TOLERANCE` at most, in the last
    layer and in the blocks before it. Raises WeightsError that says how far off they are; `source` names the file.
    """
    known = _known(name)
    expected = torch.from_numpy(read_array(bundled(f"{name}.probes.npy"))).double()
    found = backbone(probe_inputs()).double()
    if found.shape != expected.shape:
        raise WeightsError(
            f"{source}: expected {expected.shape[1]:,} features of {known.backbone}, got {found.shape[1]:,} of "
            f"{backbone.name}"
        )
    first, end = backbone.ranges["last"]
    off = {
        part: float(((found - expected)[:, span].norm(dim=1) / expected[:, span].norm(dim=1)).max())
        for part, span in (("the blocks", slice(0, first)), ("the last layer", slice(first, end)))
    }
    if not all(value <= TOLERANCE for value in off.values()):  # a NaN is not at most anything
        raise WeightsError(
            f"{source} does not hold the weights {name!r}: on the test pictures the features of "
            f"{' and '.join(f'{part} are {value:.2%}' for part, value in off.items())} away from what is expected, "
            f"{TOLERANCE:.1%} is allowed. Expected {known.published}; {known.others}"
        )


# Reading


def read_weights(path: Path, name: str = "standard") -> dict[str, Tensor]:
    """The state dict of the timm network of `name` from a file of any of three kinds, told by content.

    safetensors or a torch state dict, with timm's or torchvision's names; ONNX with one Conv a convolution, in their
    order. Every batch norm is folded into its convolution: weight 1, mean 0, variance 1 - eps, the bias what is left.
    float32, on the CPU. Nothing in the file is run. Raises WeightsError for a file that is missing, unreadable, of
    another kind or of another network; MissingExtraError for ONNX without the package. Does not compare the values
    with what `name` should be: `check` does.
    """
    return _read(path, _known(name), str(path))[0]


def _read(path: Path, known: Known, shown: str) -> tuple[dict[str, Tensor], str]:
    """The state dict, and the kind of file it was."""
    data = _bytes(path, known, shown)
    pairs = _pairs(load_backbone(known.backbone, "random:0").network)
    # The header of a safetensors file is a JSON object behind its length. The fields of a protobuf message carry a
    # number; ONNX begins with its first one, the version, which is small, and another field.
    if data[8:9] == b"{":
        return _folded(_layers(_safetensors(data, shown), pairs, shown), pairs, shown), "safetensors"
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return _folded(_layers(_torch(data, shown), pairs, shown), pairs, shown), "torch"
    if data[:1] == b"\x08" and 0 < data[1] < 32 and data[2] & 7 in (0, 2):
        return _folded(_onnx(data, pairs, shown), pairs, shown), "onnx"
    start = data[:64].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, which says where the file is: download the file itself"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page: download the file itself"
    else:
        found = f"a file that begins with {data[:8]!r}"
    raise WeightsError(
        f"{shown}: expected a safetensors file, an ONNX model or a torch state dict, got {found}. The weights "
        f"{known.name!r} are {known.published}"
    )


def _bytes(path: Path, known: Known, shown: str) -> bytes:
    """The whole file, which is read once: what is told apart is what is read."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing there"
        raise WeightsError(f"{shown}: expected a file with weights ({known.published}), got {what}")
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise WeightsError(f"{shown} cannot be read ({error})") from error
    if len(data) > LIMIT:
        raise WeightsError(
            f"{shown}: expected at most {LIMIT // 10**6} MB, got more: it is no file of {known.backbone}"
        )
    if len(data) < 16:
        raise WeightsError(f"{shown}: expected a file with weights, got {len(data)} bytes: get it again")
    return data


def _safetensors(data: bytes, shown: str) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch does not have
        raise WeightsError(f"{shown} is a damaged safetensors file ({in_short(error)}): get it again") from error


def _torch(data: bytes, shown: str) -> dict[str, Tensor]:
    """The tensors of a torch file. Only tensors and plain containers are unpickled: nothing in it is run."""
    try:
        if data[:2] == b"PK" and sum(one.file_size for one in zipfile.ZipFile(io.BytesIO(data)).infolist()) > LIMIT:
            raise WeightsError(f"{shown}: expected at most {LIMIT // 10**6} MB, got a file that unpacks to more")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{shown}: expected a torch state dict, got a file that is damaged, or holds more than tensors, which "
            f"could run code and is refused ({type(error).__name__}): get it again, or save model.state_dict()"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(
            f"{shown}: expected a state dict, name -> tensor, got other objects: save model.state_dict()"
        )
    if state and all(key.startswith("module.") for key in state):  # saved by a model in DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value.detach() for key, value in state.items()}


def _pairs(network: nn.Module) -> _Pairs:
    """The convolutions of a network in the order they are used, each with the batch norm behind it, and their names."""
    convolutions = [(name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d)]
    norms = [(name, one) for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)]
    assert [one.out_channels for _, one in convolutions] == [one.num_features for _, one in norms]
    return [(*a, *b) for a, b in zip(convolutions, norms, strict=True)]


def torchvision_names() -> list[tuple[str, str]]:
    """Names of torchvision's 52 convolutions of MobileNetV2 and of the batch norms behind them, in their order."""
    names = [("features.0.0", "features.0.1")]
    for block in range(1, 18):
        parts = [f"features.{block}.conv.{part}" for part in range(4)]
        opening = parts[:1] if block == 1 else parts[:2]  # the first block does not expand
        names += [(f"{part}.0", f"{part}.1") for part in opening]
        names.append((parts[len(opening)], f"features.{block}.conv.{len(opening) + 1}"))
    return [*names, ("features.18.0", "features.18.1")]


_OF_NORM = ("weight", "bias", "running_mean", "running_var")


def _layers(state: Mapping[str, Tensor], pairs: _Pairs, shown: str) -> list[_Layer]:
    """The layers of a state dict with timm's or torchvision's names; every tensor must fit, but for the classifier."""
    ours = [(convolution, norm) for convolution, _, norm, _ in pairs]
    theirs = torchvision_names()
    named, head = (theirs, "classifier.1.") if f"{theirs[0][0]}.weight" in state else (ours, "classifier.")
    wanted = {
        name
        for convolution, norm in named
        for name in (f"{convolution}.weight", *(f"{norm}.{part}" for part in _OF_NORM))
    }
    counters = {f"{norm}.num_batches_tracked" for _, norm in named}  # older files lack them; nothing reads them
    surplus = sorted(key for key in state.keys() - wanted - counters if not key.startswith(head))
    missing = sorted(wanted - state.keys())
    if missing or surplus:
        raise WeightsError(
            f"{shown}: expected timm's or torchvision's tensors of MobileNetV2, got {len(missing)} missing "
            f"({', '.join(missing[:3])}) and {len(surplus)} unknown ({', '.join(surplus[:3])}): it is another network, "
            f"or a part of this one"
        )
    return [
        _Layer(
            convolution,
            state[f"{convolution}.weight"],
            None,
            tuple(state[f"{norm}.{part}"] for part in _OF_NORM),
            module.eps,
        )
        for (convolution, norm), (_, _, _, module) in zip(named, pairs, strict=True)
    ]


def _onnx(data: bytes, pairs: _Pairs, shown: str) -> list[_Layer]:
    """The layers of an ONNX model: its Conv nodes in their order, and the BatchNormalization behind each, if any."""
    try:
        import onnx
        import onnx.numpy_helper
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "reading weights from an ONNX file") from error
    try:
        graph = onnx.load_model_from_string(data).graph
    except DecodeError as error:
        raise WeightsError(f"{shown} is a damaged ONNX file ({in_short(error)}): get it again") from error
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for output in node.output[:1]:
            if node.op_type == "Constant":
                for one in node.attribute:
                    stored[output] = one.t
            elif node.op_type == "Identity" and node.input and node.input[0] in stored:  # exporters share equal ones
                stored[output] = stored[node.input[0]]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = stored.get(name)
        if tensor is None or tensor.data_type not in floats:
            raise WeightsError(
                f"{shown}: expected the numbers of {name!r} in the file as floating-point, got "
                f"{'none' if tensor is None else 'integers'}: a quantised or stripped model cannot be added"
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise WeightsError(
                f"{shown}: the numbers of {name!r} lie in another file, which is not read: save the model as one file"
            )
        if tuple(tensor.dims) != shape:  # before anything of that size is made
            raise WeightsError(f"{shown}: expected shape {list(shape)} for {name!r}, got {list(tensor.dims)}")
        try:
            return torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("float64"))
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{shown} is a damaged ONNX file ({name}: {in_short(error)}): get it again") from error

    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization" and node.input}
    if len(convolutions) != len(pairs):
        raise WeightsError(
            f"{shown}: expected {len(pairs)} Conv nodes, got {len(convolutions)}: it is another network, or was "
            f"quantised, or is incomplete"
        )
    layers = []
    for node, (name, module, _, _) in zip(convolutions, pairs, strict=True):
        inputs = [one for one in node.input if one]
        norm = norms.get(node.output[0]) if node.output else None
        if len(inputs) < 2 or (norm is not None and len(norm.input) < 5):
            raise WeightsError(f"{shown} is a damaged ONNX file (node {node.name!r} lacks inputs): get it again")
        vector = (module.out_channels,)
        weight = read(inputs[1], tuple(module.weight.shape))
        bias = read(inputs[2], vector) if len(inputs) > 2 else None
        if norm is None:
            layers.append(_Layer(name, weight, bias))
            continue
        eps = next((float(one.f) for one in norm.attribute if one.name == "epsilon"), 1e-5)
        layers.append(_Layer(name, weight, bias, tuple(read(one, vector) for one in norm.input[1:5]), eps))
    return layers


def _folded(layers: Sequence[_Layer], pairs: _Pairs, shown: str) -> dict[str, Tensor]:
    """A state dict of timm's network with the batch norms folded in float64. What is folded already keeps its bits."""
    state: dict[str, Tensor] = {}
    for layer, (name, module, norm_name, norm) in zip(layers, pairs, strict=True):
        shape, vector = tuple(module.weight.shape), (module.out_channels,)
        vectors = [one for one in (layer.bias, *(layer.norm or ())) if one is not None]
        for tensor, expected in ((layer.weight, shape), *((one, vector) for one in vectors)):
            # Before it is touched: a view in a pickle can claim any size.
            if tuple(tensor.shape) != expected:
                raise WeightsError(
                    f"{shown}: expected shape {list(expected)} at {layer.name}, got {list(tensor.shape)}: it is "
                    f"another network"
                )
            if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
                raise WeightsError(
                    f"{shown}: expected plain floating-point numbers at {layer.name}, got {tensor.dtype}: it was "
                    f"quantised or is damaged"
                )
        weight = layer.weight.double()
        bias = torch.zeros(vector, dtype=torch.float64) if layer.bias is None else layer.bias.double()
        if layer.norm is not None:
            scale, shift, mean, variance = (one.double() for one in layer.norm)
            scale = scale / (variance + layer.eps).sqrt()
            weight, bias = weight * scale.view(-1, 1, 1, 1), shift + (bias - mean) * scale
        weight, bias = weight.float().contiguous(), bias.float()
        if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise WeightsError(f"{shown}: the weights at {layer.name} are not finite numbers: the file is damaged")
        state[f"{name}.weight"] = weight
        state[f"{norm_name}.weight"] = torch.ones(vector)
        state[f"{norm_name}.bias"] = bias
        state[f"{norm_name}.running_mean"] = torch.zeros(vector)
        state[f"{norm_name}.running_var"] = torch.full(vector, 1 - norm.eps)
        state[f"{norm_name}.num_batches_tracked"] = torch.tensor(0)
    return state


# Downloading


def get_weights(name: str, url: str, progress: Progress | None = None) -> Added:
    """Download a file with weights from an http or https address, check it, and keep it.

    A download that was interrupted goes on where it was, if the server allows that and still has the same file;
    otherwise it begins anew. `progress(done, total, what)` counts bytes. Raises UsageError for another kind of address,
    WeightsError when the address cannot be reached, the file is too large, ended too early (what came is kept), or is
    not those weights (then it is removed).
    """
    _known(name)
    try:
        address = urllib.parse.urlsplit(url)
        fine = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # no number behind the colon
        fine = False
    if not fine or not url.isascii() or any(character.isspace() for character in url):
        raise UsageError(f"--url {url}: expected an address that begins with https:// or http://, with %-escapes")
    part = user_folder() / "weights" / f"{name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    note = part.with_name(f"{part.name}.json")
    shown = Path(urllib.parse.unquote(address.path)).name or address.hostname or name
    try:
        _download(url, part, note, progress)
        added = add_weights(part, name, source=shown)
    except _Interrupted:
        raise
    except WeightsError:
        _remove(part, note)
        raise
    _remove(part, note)
    return added


class _Interrupted(WeightsError):
    """A download did not come to its end; what came is kept."""


class _Anew(Exception):
    """What the server sent does not continue what is there."""


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _opener() -> urllib.request.OpenerDirector:
    """http and https only, also behind a redirection: no local files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _began(url: str, part: Path, note: Path) -> dict[str, Any]:
    """What is known of a download under way: its size so far, its full size, what tells one file from another.

    Empty where there is none of this address, or nothing would tell whether the file is still the same.
    """
    try:
        data, done = read_json(note), part.stat().st_size
        if (
            data["url"] == digest_text(url)
            and data["validator"]
            and done
            and (not data["total"] or done <= data["total"])
        ):
            return {"done": done, "total": int(data["total"]), "validator": str(data["validator"])}
    except (ArtifactError, OSError, KeyError, TypeError, ValueError):
        pass  # it begins anew
    return {}


def _validator(headers: Any) -> str:
    """What If-Range takes: a strong ETag, else the date of the last change, else nothing."""
    tag = str(headers.get("ETag") or "")
    return tag if tag.startswith('"') else str(headers.get("Last-Modified") or "")


def _download(url: str, part: Path, note: Path, progress: Progress | None) -> None:
    """Make `part` the whole file behind `url`."""
    began = _began(url, part, note)
    if began and began["done"] == began["total"]:  # stopped between the last byte and the check
        return
    headers = {"User-Agent": f"milnet/{__version__}", "Accept-Encoding": "identity"}
    ranged = {"Range": f"bytes={began['done']}-", "If-Range": began["validator"]} if began else {}
    done = 0
    try:
        with _open(url, {**headers, **ranged}) as answer:
            rest = _rest(answer, began) if began and answer.status == 206 else None
            if answer.status == 206 and rest is None:  # a piece of another file, or not the one that was asked for
                if not began:
                    raise _Interrupted(f"{url}: expected a whole file, got a piece of one: try another address")
                raise _Anew
            done = began["done"] if rest is not None else 0
            length = answer.headers.get("Content-Length")
            total = rest or (int(length) if length and length.isdigit() else 0)
            _refuse_large(url, total)
            if rest is None:
                part.unlink(missing_ok=True)
                write_json(note, {"url": digest_text(url), "validator": _validator(answer.headers), "total": total})
            with part.open("ab") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    _refuse_large(url, done)
                    if progress is not None:
                        progress(done, total or done, "bytes")
    except _Anew:
        _remove(part, note)
        _download(url, part, note, progress)
        return
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code == 416 and began:  # the file has become shorter
                _remove(part, note)
                _download(url, part, note, progress)
                return
        raise _Interrupted(f"{url}: the server answered {error.code} {error.reason}: check the address") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a host that cannot be one
        if isinstance(error, OSError) and error.filename is not None:  # our disk, not the network
            raise
        reason = getattr(error, "reason", error)
        text = in_short(reason) if isinstance(reason, BaseException) else str(reason)
        kept_bytes = f"; {done:,} bytes are kept, run it again to go on" if done else ""
        raise _Interrupted(f"{url} cannot be downloaded ({text}){kept_bytes}") from error
    if total and done != total:
        raise _Interrupted(
            f"{url}: expected {total:,} bytes, got {done:,} before the connection ended: run it again to go on"
        )


def _open(url: str, headers: Mapping[str, str]) -> Any:
    return _opener().open(urllib.request.Request(url, headers=dict(headers)), timeout=_TIMEOUT)


def _rest(answer: Any, began: Mapping[str, Any]) -> int | None:
    """The full size of the file, if a partial answer goes on exactly where the download stopped, else None."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(answer.headers.get("Content-Range") or "").strip())
    if found is None:
        return None
    first, last, total = map(int, found.groups())
    same = _validator(answer.headers) in ("", began["validator"]) and began["total"] in (0, total)
    return total if same and first == began["done"] and last == total - 1 else None


def _refuse_large(url: str, size: int) -> None:
    if size > LIMIT:
        raise WeightsError(
            f"{url}: expected at most {LIMIT // 10**6} MB, got more: it is not the file with the weights"
        )
