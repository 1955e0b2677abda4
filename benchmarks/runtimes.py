"""PyTorch and onnxruntime: photos a second of the forward alone and of the whole command, and what int8 costs.

    python benchmarks/runtimes.py DATA PHOTOS --model pocket -o runtimes.json
    python benchmarks/runtimes.py DATA PHOTOS --model standard --weights FILE -o runtimes-standard.json

DATA: the rated photos with their images. PHOTOS: unrated photos: some of the first half are what int8 is calibrated on,
some of the second are timed.

Ways: PyTorch with weights and photos as they are (`eager`), and with channels last, as milnet has them; onnxruntime
with all graph optimisations, as milnet uses it, with the basic ones, and with two kinds of int8: dynamic (activations
are measured while it runs) and static (measured before, on unrated photos; QDQ, a scale a channel). Rounds go through
all ways in turn; the median is reported with the slowest and the fastest round.

    forward   batches of real photos, already decoded: one batch after the other by all threads; batches side by side
              with a thread each, as milnet passes them
    command   `milnet score --no-cache`, start and output included
    int8      SRCC of `votes` on the columns fold_random and fold_theme, with features of each way
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime import quantization

import milnet.runtime
from in_the_box import measure
from milnet.annotations import load_table
from milnet.backbones import Backbone
from milnet.extraction import Extractor
from milnet.library import find_photos
from milnet.preprocess import decode
from milnet.runtime import export_backbone
from milnet.scoring import Scorer
from timing import machine

WAYS = ("eager", "channels_last", "onnxruntime", "basic", "int8 dynamic", "int8 static")
BY_COMMAND = ("eager", "channels_last", "onnxruntime", "int8 static")
Images = NDArray[np.uint8]


class OfFile:
    """In the place of an extractor's engine: a given ONNX file."""

    said = ""

    def __init__(self, path: Path, *, basic: bool = False) -> None:
        self.path, self.basic = path, basic
        self.sessions: dict[int, Any] = {}

    def wanted(self, views: Any) -> bool:
        return True

    def __call__(self, photos: Images) -> NDArray[np.float32]:
        threads = torch.get_num_threads()
        if threads not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            if self.basic:
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            self.sessions[threads] = onnxruntime.InferenceSession(self.path, options)
        found: NDArray[np.float32] = self.sessions[threads].run(None, {"photo": photos})[0]
        return found


class Photos(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Photos for the calibration, one by one at each size."""

    def __init__(self, views: list[Images]) -> None:
        self.left = iter(views)

    def get_next(self) -> dict[str, Images] | None:
        photo = next(self.left, None)
        return None if photo is None else {"photo": photo[None]}


def make_files(extractor: Extractor, folder: Path, photos: list[Path]) -> dict[str, Path]:
    """The ONNX files of a backbone by way; the static int8 one calibrated on `photos`."""
    paths = {name: folder / f"{name.replace(' ', '-')}.onnx" for name in ("onnxruntime", *WAYS[4:])}
    if not paths["int8 static"].exists():
        export_backbone(extractor.backbone, paths["onnxruntime"])
        ready = folder / "ready.onnx"
        logging.disable(logging.WARNING)  # shapes that are not known, a screen for each
        quantization.quant_pre_process(paths["onnxruntime"], ready, skip_symbolic_shape=True)
        quantization.quantize_dynamic(ready, paths["int8 dynamic"], weight_type=quantization.QuantType.QUInt8)
        views = [view for photo in photos for view in decode(photo, extractor.preprocess).views]
        quantization.quantize_static(
            ready,
            paths["int8 static"],
            Photos(views),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"],  # the means of the maps stay as they are
            # the range of the usual photo: single extremes would leave the others a few of the 256 steps
            extra_options={"CalibMovingAverage": True},
        )
    return {**paths, "basic": paths["onnxruntime"]}


def make_ways(backbone: Backbone, files: dict[str, Path]) -> dict[str, Callable[[Images], Any]]:
    """What passes uint8 [B, H, W, 3] through the backbone, by way; each may be called by several threads."""
    plain = backbone.replica()
    plain.network = plain.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    lasting = backbone.replica()
    lasting.network = lasting.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def eager(photos: Images) -> Any:
        with plain.borrowed() as one:
            return one(torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous())

    def channels_last(photos: Images) -> Any:
        with lasting.borrowed() as one:
            return one(torch.from_numpy(photos).permute(0, 3, 1, 2))

    found: dict[str, Callable[[Images], Any]] = {"eager": eager, "channels_last": channels_last}
    return found | {name: OfFile(files[name], basic=name == "basic") for name in WAYS[2:]}


def time_forward(
    ways: dict[str, Callable[[Images], Any]], views: list[tuple[Images, ...]], batch: int, passes: int, rounds: int
) -> dict[str, list[float]]:
    """Photos a second in each round; `views`: photos of one shape at each size."""
    batches = [
        [np.stack(some) for some in zip(*views[i : i + batch], strict=True)] for i in range(0, len(views), batch)
    ]
    batches = [one for one in batches if len(one[0]) == batch]
    before = torch.get_num_threads()
    threads = max(1, before // passes)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with ThreadPoolExecutor(passes, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
        for _ in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                for future in [executor.submit(lambda way=way, one=one: [way(x) for x in one]) for one in batches]:  # type: ignore[misc]
                    future.result()
                rates[name].append(batch * len(batches) / (time.perf_counter() - began))
    torch.set_num_threads(before)
    return {name: found[1:] for name, found in rates.items()}  # the first warms up


def time_command(
    model: list[str], photos: list[Path], files: dict[str, Path], folder: Path, rounds: int
) -> dict[str, list[float]]:
    """Photos a second of the whole command."""
    listed = folder / "photos.txt"
    listed.write_text("\n".join(map(str, photos)))
    rates: dict[str, list[float]] = {name: [] for name in BY_COMMAND}
    for _ in range(rounds):
        for name, found in rates.items():
            file = files["int8 static" if name == "int8 static" else "onnxruntime"]
            arguments = ["score", "--files-from", str(listed), *model, "--no-cache", "-o", str(folder / "scores.csv")]
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "--as", name, str(file), *arguments], check=True, stdout=subprocess.DEVNULL
            )
            found.append(len(photos) / (time.perf_counter() - began))
    return rates


def as_command(name: str, file: str, arguments: list[str]) -> None:
    """`milnet` with one of the ways; of onnxruntime the file is there, as it is for all but a user's first run."""
    from milnet.cli import main as milnet_main

    if name == "eager":
        plain, build = Backbone.forward, Backbone.to

        def contiguous(self: Backbone, x: torch.Tensor) -> torch.Tensor:
            return plain(self, x.contiguous())

        Backbone.forward = contiguous  # type: ignore[method-assign]
        Backbone.to = lambda self, target, memory_format: build(self, target)  # type: ignore[method-assign,assignment]
    elif name != "channels_last":
        milnet.runtime.backbone_file = lambda backbone: Path(file)
        arguments = [*arguments, "--runtime", "onnx"]
    sys.argv = ["milnet", *arguments]
    milnet_main()


def time_int8(data: Path, extractor: Extractor, files: dict[str, Path], folder: Path) -> list[dict[str, Any]]:
    """SRCC of `votes` on features of each kind of number."""
    table, _ = load_table(data)
    paths = [table.image_path(row) for row in range(len(table))]
    found: list[dict[str, Any]] = []
    kept: dict[str, NDArray[np.float32]] = {}
    for name in ("onnxruntime", *WAYS[4:]):
        one: Extractor = replace(extractor, engine=OfFile(files[name]))  # type: ignore[arg-type]
        values, pixels = np.empty((len(paths), one.backbone.width), np.float32), [""] * len(paths)
        for result in one.stream(enumerate(paths)):
            if result.error is not None:
                raise result.error
            values[result.key], pixels[result.key] = result.features, result.pixels
        kept[name] = values
        span = np.array(one.backbone.ranges["last"])
        np.savez(folder / f"{name}.npz", values=values.astype(np.float16), pixels=np.array(pixels), span=span)
        x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (values, kept["onnxruntime"]))
        likeness = float((x * y).sum(1).mean())
        for kind in ("random", "theme"):
            row = measure(data, folder, name, "votes", kind, 0)
            found.append({**row, "likeness": likeness})
            low, high = row["srcc"][1:]
            print(
                f"{name:14} {kind:7} SRCC {row['srcc'][0]:.4f} [{low:.3f}, {high:.3f}], features' mean cosine with "
                f"float32's {likeness:.5f}",
                flush=True,
            )
    return found


def show(title: str, rates: dict[str, list[float]]) -> None:
    print(title)
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["channels_last"], strict=True))
        print(
            f"  {name:14} {statistics.median(found):7.1f} photos/s ({min(found):.1f} .. {max(found):.1f}), "
            f"{ratio:.2f} x channels_last",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--as"]:
        as_command(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--weights", help="of mobilenetv2_100, for `standard`")
    parser.add_argument("--count", type=int, default=300, help="photos of the command")
    parser.add_argument("--forward", type=int, default=64, help="photos of the forward alone")
    parser.add_argument("--calibrate", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", nargs="*", choices=("forward", "command", "int8"), default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(f"{machine()}, onnxruntime {onnxruntime.__version__}")
    scorer = Scorer.load(options.model, weights=options.weights)
    extractor = replace(scorer.nodes, look=None)
    unrated = list(find_photos([options.photos]).photos)
    half = len(unrated) // 2
    some = unrated[: half : max(1, half // options.calibrate)][: options.calibrate]
    timed = unrated[half :: max(1, half // options.count)][: options.count]
    result: dict[str, Any] = {"machine": machine(), "onnxruntime": onnxruntime.__version__, "model": options.model}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(extractor, folder, some)
        if "forward" not in options.skip:
            seen = [decode(path, extractor.preprocess).views for path in unrated[half:]]
            shapes = [tuple(view.shape for view in views) for views in seen]
            most = max(set(shapes), key=shapes.count)  # of one shape, so that they make batches
            views = [one for one, shape in zip(seen, shapes, strict=True) if shape == most][: options.forward]
            result["shapes"] = [list(shape) for shape in most]
            ways, threads = make_ways(extractor.backbone, files), torch.get_num_threads()
            for batch, passes in ((1, 1), (1, threads), (4, 1), (4, threads)):
                rates = time_forward(ways, views, batch, passes, options.rounds)
                each = threads // passes
                title = f"forward, {len(views)} photos, batch {batch}, {passes} side by side by {each} thread(s)"
                show(title, rates)
                result[title] = rates
        if "command" not in options.skip:
            model = ["--model", options.model, *(["--weights", options.weights] if options.weights else [])]
            rates = time_command(model, timed, files, folder, options.rounds)
            show(f"milnet score --no-cache, {len(timed)} photos", rates)
            result["command"] = {"photos": len(timed), "rates": rates}
        if "int8" not in options.skip:
            result["int8"] = time_int8(options.data, extractor, files, folder)
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
