"""onnxruntime instead of PyTorch for the pass through a frozen backbone, and ONNX files as this project writes them.

A backbone is exported once, checked against PyTorch and kept with the user by the digest of its weights. Its features
then differ from PyTorch's by rounding, and scores by less than a cache or an output could tell (docs/deploy.md). Which
of the two is faster depends on the network and on the machine: `auto` runs both on the first photos and takes the
faster. Both have the same threads: as many passes side by side as an extractor has, each with its share of them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milnet.artifacts import atomic_path, canonical_json, digest_text
from milnet.backbones import Backbone, digest_state
from milnet.errors import MissingExtraError, UsageError, in_short
from milnet.places import user_folder
from milnet.version import __version__

RuntimeName = Literal["torch", "onnx", "auto"]
RUNTIMES: tuple[RuntimeName, ...] = ("torch", "onnx", "auto")
OPSET = 18  # of the files we write; their IR version is 10, which onnxruntime 1.18 and later read
_LARGEST = 1_500_000_000  # bytes of weights above which they lie in a file of their own: one of protobuf ends at 2 GiB
_AGREES = 1e-3  # of the largest feature: so far an exported backbone may be from PyTorch, 1e-6 is usual
_ROUNDS = 3  # of the probe, behind one that warms up

Images = NDArray[np.uint8]  # [B, H, W, 3] RGB in [0, 255]


class ExportError(UsageError):
    """A network that ONNX, or its exporter, cannot express."""


class _Narrow(nn.Module):
    """uint8 [B, H, W, 3] -> features [B, D], as a backbone makes them of one size."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, photos: list[Tensor]) -> Tensor:
        return self.backbone.narrow(photos[0].permute(0, 3, 1, 2))


def require_onnx(purpose: str, packages: Sequence[str] = ("onnx", "onnxscript", "onnxruntime")) -> None:
    """Raise MissingExtraError unless these packages are there: all to write a file, the last to run one."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx", purpose)


def write_onnx(
    network: nn.Module,
    examples: Sequence[Tensor],
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    path: Path,
    *,
    what: str,
) -> None:
    """Write `network`, which takes a list of tensors like the `examples` and gives a tuple of them, to `path`.

    `inputs`: the name of each, and the names of those of its dimensions that may change; an example must have two or
    more in each of those. `what` names the network in errors. Weights above 1.5 GB go to `path` + ".data". Raises
    ExportError for what the exporter cannot express.
    """
    require_onnx(f"writing {what} as ONNX")
    loud = logging.getLogger("torch.fx.experimental.symbolic_shapes")  # prints the whole graph before it fails
    before = loud.level
    try:
        loud.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                network.eval(),
                (list(examples),),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=([dict(names) for names in inputs.values()],),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever stops the exporter is what the user wants to read
        reason = in_short(error.__cause__ or error)  # the outer one is advice to programmers
        raise ExportError(f"{what} cannot be written as ONNX ({reason}): PyTorch alone runs it") from error
    finally:
        loud.setLevel(before)
    assert program is not None
    graph = program.model.graph
    parts: list[Any] = [*graph.all_nodes(), *graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in parts:
        node.metadata_props.clear()  # lines of source and places on this machine
        node.doc_string = None
    program.model.metadata_props.clear()
    program.model.producer_name, program.model.producer_version = "milnet", __version__
    size = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    program.save(path, external_data=size > _LARGEST)


def join_onnx(fronts: Sequence[tuple[str, Path]], head: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Join backbones and what `write_onnx` wrote as the `head` behind them to one network, with all their weights.

    `fronts`: for each input of the head, in order, the name its photos get and the file of the backbone that makes it.
    The weights of a backbone that is there several times are there once.
    """
    import onnx

    joined = onnx.load(head)
    graph = joined.graph
    fed = [one.name for one in graph.input]
    del graph.input[:], graph.value_info[:]
    files = list(dict.fromkeys(file for _, file in fronts))
    before: list[Any] = []
    for (name, file), feature in zip(fronts, fed, strict=True):
        front = onnx.load(file).graph
        weights = f"backbone{files.index(file)}."
        names = {one.name: weights + one.name for one in front.initializer}
        if not any(one.name.startswith(weights) for one in graph.initializer):
            for one in front.initializer:
                one.name = names[one.name]
                graph.initializer.append(one)
        names |= {"photo": name, "features": feature, "": ""}  # "": an optional input that is not given
        for node in front.node:
            node.name = f"{name}.{node.name}"
            for values in (node.input, node.output):
                values[:] = [names.get(value, f"{name}.{value}") for value in values]
        before += front.node
        (photo,) = front.input
        photo.name = name
        for dimension in photo.type.tensor_type.shape.dim:
            if dimension.dim_param not in ("", "batch"):
                dimension.dim_param += f"_{name}"
        graph.input.append(photo)
    behind = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *behind])
    del joined.metadata_props[:]
    onnx.helper.set_model_props(joined, dict(metadata))
    if sum(len(one.raw_data) for one in graph.initializer) > _LARGEST:
        onnx.save(joined, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(joined, path)


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU for passes of `threads` threads each. Raises ExportError for a bad file."""
    require_onnx("running a network with onnxruntime", ["onnxruntime"])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # as OMP_WAIT_POLICY=PASSIVE does for PyTorch: threads that wait leave the core to those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base of its errors
        raise ExportError(
            f"{path} cannot be run by onnxruntime ({in_short(error)}): remove it and try again"
        ) from error


def backbone_file(backbone: Backbone) -> Path:
    """The ONNX file of a backbone in the user's folder; made and checked now unless it is there."""
    identity = {
        "name": backbone.name,
        "weights": digest_state(backbone.network.state_dict()),
        "normalisation": backbone.normalisation,
        "taps": [list(tap) for tap in backbone.taps],
        "opset": OPSET,
        "milnet": __version__,
        "torch": str(torch.__version__),
    }
    for package in ("timm", "onnx", "onnxscript"):
        with suppress(importlib.metadata.PackageNotFoundError):
            identity[package] = importlib.metadata.version(package)
    path = user_folder() / "onnx" / f"{digest_text(canonical_json(identity))}.onnx"
    if not path.is_file():
        with atomic_path(path) as building:
            export_backbone(backbone, building)
    return path


def export_backbone(backbone: Backbone, path: Path) -> None:
    """Write a backbone: `photo` uint8 [B, H, W, 3] -> `features` [B, D]; any size unless the network has one alone.

    Raises ExportError where it cannot be written, or where what was written gives other features.
    """
    what = f"the backbone {backbone.name}"
    if sum(tensor.nbytes for tensor in backbone.state_dict().values()) > _LARGEST:
        raise ExportError(f"{what} has more than {_LARGEST / 1e9:g} GB of weights: PyTorch alone runs it")
    side = backbone.native_size
    height, width = (side, side) if backbone.fixed_size else (max(64, side // 2), max(96, side))
    example = _pattern(2, height, width)
    free = {0: "batch"} if backbone.fixed_size else {0: "batch", 1: "height", 2: "width"}
    shapes = [(height, width)]
    if not backbone.fixed_size:  # the exporter follows the example alone: a network may branch by the size
        shapes += [(width, height), (32 * (1 + height // 32), 32 * (width // 32 - 1)), (32 * (1 + width // 32), 96)]
    with backbone.borrowed() as one:
        write_onnx(_Narrow(one), [example], {"photo": free}, ["features"], path, what=what)
        session = open_session(path, 1)
        for shape in shapes:
            photos = example if shape == shapes[0] else _pattern(1, *shape)
            expected = one(photos.permute(0, 3, 1, 2)).numpy()
            found = _run(session, photos.numpy(), what)
            worst, most = np.abs(found - expected).max(), np.abs(expected).max()
            if not worst <= _AGREES * most:
                raise ExportError(
                    f"{what} as ONNX gives other features than PyTorch (of {shape[1]}x{shape[0]}, by {worst:.3g}, the "
                    f"largest is {most:.3g}): PyTorch alone runs it"
                )


def _pattern(count: int, height: int, width: int) -> Tensor:
    """Something to look at, uint8 [count, height, width, 3]."""
    return torch.arange(count * height * width * 3).remainder(251).view(count, height, width, 3).to(torch.uint8)


def _run(session: Any, photos: Images, what: str) -> NDArray[np.float32]:
    """Features [B, D] of a pass. Raises ExportError with the words of onnxruntime."""
    try:
        found: NDArray[np.float32] = session.run(None, {"photo": photos})[0]
    except Exception as error:  # onnxruntime has no common base of its errors
        height, width = photos.shape[1:3]
        raise ExportError(
            f"{what} fails in onnxruntime on photos of {width}x{height} ({in_short(error)}): PyTorch alone runs it"
        ) from error
    return found


class Engine:
    """The pass through a backbone by onnxruntime. Any number of threads may use it at once.

    With `probe`, onnxruntime and PyTorch are both timed on the first photos, `passes` batches side by side, and the
    faster one is used; `said` then holds the figures.
    """

    def __init__(self, backbone: Backbone, *, probe: bool, passes: int) -> None:
        require_onnx("--runtime onnx", ["onnxruntime"])
        self.backbone, self.passes = backbone, passes
        self.said = ""
        self._wanted: bool | None = None if probe else True
        self._set_up()
        try:
            backbone_file(backbone)
        except (ExportError, OSError) as error:
            if not probe:
                raise
            self._wanted, self.said = False, f"PyTorch: {error}"

    def _set_up(self) -> None:
        """What belongs to this process."""
        self.passes = min(self.passes, torch.get_num_threads())
        self._threads = torch.get_num_threads() // self.passes  # of one pass
        self._sessions: dict[int, Any] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens its own sessions, and probes for itself."""
        return {name: part for name, part in self.__dict__.items() if name not in ("_sessions", "_lock", "_threads")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()

    def __call__(self, photos: Images) -> NDArray[np.float32]:
        """Features [B, D], by as many threads as PyTorch has in the calling one."""
        return _run(self._session(torch.get_num_threads()), photos, f"the backbone {self.backbone.name}")

    def wanted(self, views: Sequence[Images]) -> bool:
        """Whether onnxruntime is to be used; the first call of a probe measures, on these photos at each size."""
        with self._lock:
            if self._wanted is None:
                try:
                    self._wanted = self._probe(views)
                except (ExportError, OSError) as error:  # a damaged file, or a size that it fails on
                    self._wanted, self.said = False, f"PyTorch: {error}"
            return self._wanted

    def _session(self, threads: int) -> Any:
        with self._lock:
            return self._open(threads)

    def _open(self, threads: int) -> Any:
        if threads not in self._sessions:
            self._sessions[threads] = open_session(backbone_file(self.backbone), threads)
        return self._sessions[threads]

    def _probe(self, views: Sequence[Images]) -> bool:
        """Time both, in turn, each with all its passes side by side."""
        session, before = self._open(self._threads), torch.get_num_threads()

        def by_onnx() -> None:
            for photos in views:
                _run(session, photos, f"the backbone {self.backbone.name}")

        def by_torch() -> None:
            with self.backbone.borrowed() as backbone:
                for photos in views:
                    backbone(torch.from_numpy(photos).permute(0, 3, 1, 2))

        seconds: dict[Callable[[], None], list[float]] = {by_onnx: [], by_torch: []}
        with ThreadPoolExecutor(
            self.passes, "milnet-probe", initializer=torch.set_num_threads, initargs=(self._threads,)
        ) as executor:
            for _ in range(1 + _ROUNDS):
                for way, took in seconds.items():
                    began = time.perf_counter()
                    for future in [executor.submit(way) for _ in range(self.passes)]:
                        future.result()
                    took.append(time.perf_counter() - began)
        torch.set_num_threads(before)  # those of the probe became what new threads begin with
        photos = len(views[0]) * self.passes
        onnx, plain = (photos / statistics.median(took[1:]) for took in seconds.values())
        chosen = "onnxruntime" if onnx > plain else "PyTorch"
        self.said = (
            f"{chosen} passes the photos through {self.backbone.name}: onnxruntime {onnx:.3g} photos a second, PyTorch "
            f"{plain:.3g} (forward alone, {photos} photos, {self.passes} side by side)"
        )
        return onnx > plain


def make_engine(backbone: Backbone, runtime: str, *, device: str, passes: int, maps: bool) -> Engine | None:
    """The engine that --runtime names; None for PyTorch. Raises UsageError for what onnxruntime cannot do here."""
    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime}: expected {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}")
    if runtime == "torch":
        return None
    if not maps and device == "cpu":
        return Engine(backbone, probe=runtime == "auto", passes=passes)
    if runtime == "auto":
        return None
    if maps:
        raise UsageError("--runtime onnx: wide maps are made by PyTorch alone; pass --runtime torch")
    raise UsageError(f"--runtime onnx: onnxruntime computes on the CPU here, not on {device}; pass --device cpu")
