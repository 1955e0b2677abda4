"""Photos -> numbers: decode in threads, forward in batches of one fixed size.

The forward pass sees only full batches: photos of the same input size are gathered, a short batch is padded with black.
So the features of a photo depend on the photo, the backbone, the input sizes and the batch size, and on nothing else.
Photos that keep their own size are visited size by size, so that few batches are short. At several sizes a photo is
decoded once and passes through the backbone at each; its features are the mean over the sizes.

`StreamedMaps` makes wide maps (mlsp.py) anew each time they are read; `storing.py` keeps features on the disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import Table
from milnet.backbones import Backbone, load_backbone
from milnet.errors import ImageError, NumericError, UsageError
from milnet.images import (
    MAX_PIXELS,
    Photo,
    Source,
    header_size,
    original_size,
)
from milnet.mlsp import CELLS, Pooling
from milnet.preprocess import Decoded, Preprocess, decode
from milnet.runtime import Engine, make_engine

Key = TypeVar("Key")
_LARGE = 512  # pixels of the long side above which a photo is passed by itself
_SIDE_BY_SIDE = 64  # photos that pass at once on a CPU at most
_LARGE_SIDE_BY_SIDE = 4  # large ones, which take some 300 MB each
_WAITING = 1 << 29  # bytes of decoded photos that may wait for others of their size


def silent(done: int, total: int, what: str) -> None:
    """The progress of a caller that wants none."""


@dataclass(frozen=True)
class Extracted(Generic[Key]):
    """One photo's result: `features` [D] float32 and `pixels` (its digest), or `error`; `maps` [25, C] if asked for."""

    key: Key
    features: NDArray[np.float32] | None = None
    pixels: str = ""
    error: ImageError | None = None
    maps: NDArray[np.float32] | None = None
    looked: Any = None  # what the extractor's `look` made of it


@dataclass(frozen=True)
class Extractor:
    """A backbone with its preprocessing: sources in, features [D] out, D = the backbone's width.

    `batch`: photos in a forward pass; `workers`: decoding threads (0: decode in the calling thread). `pooling`: also
    give wide maps, pooled that way. `look`: what else is wanted of each decoded photo, in the decoding thread.
    `engine`: passes photos through the backbone by onnxruntime (None: PyTorch does).
    """

    backbone: Backbone
    preprocess: Preprocess
    batch: int
    device: torch.device
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    pooling: Pooling | None = None
    look: Callable[[Photo], Any] | None = None
    engine: Engine | None = None

    @staticmethod
    def build(
        backbone: Backbone,
        preprocess: Preprocess,
        *,
        device: str = "cpu",
        batch: int | None = None,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        pooling: Pooling | None = None,
        runtime: str = "torch",
    ) -> Extractor:
        """Choose what was left open: `default_batch`, and one decoding thread a core. `runtime`: see `make_engine`."""
        target = torch.device(device)
        torch.backends.cudnn.allow_tf32 = False  # features of GPUs and CPUs count as the same; TF32 is 1e-3 off
        batch = default_batch(preprocess, target.type) if batch is None else batch
        workers = min(os.cpu_count() or 1, 16) if workers is None else workers
        if batch < 1 or workers < 0:
            raise UsageError(f"expected batch >= 1 and workers >= 0, got {batch} and {workers}")
        # channels_last is about twice as fast on a CPU
        backbone = backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pooling is not None and not backbone.wide_channels:
            raise UsageError(f"{backbone.name} has no wide features: its blocks give tokens, not maps")
        if len(preprocess.sizes) > 1:
            shown = ",".join(map(str, preprocess.sizes))
            if pooling is not None:
                raise UsageError(f"wide maps (--wide, reduce --stream) are made at one size, got the sizes {shown}")
            if backbone.fixed_size:
                raise UsageError(
                    f"{backbone.name} takes inputs of {backbone.native_size} pixels alone, got the sizes {shown}"
                )
        made = Extractor(backbone, preprocess, batch, target, workers, max_pixels, pooling)
        passes, maps = made.side_by_side, pooling is not None
        return replace(made, engine=make_engine(backbone, runtime, device=target.type, passes=passes, maps=maps))

    @property
    def side_by_side(self) -> int:
        """Batches that pass at once: on a CPU one a thread, as far as memory goes."""
        if self.device.type != "cpu":
            return 1
        most = _SIDE_BY_SIDE if self.preprocess.sizes[-1] <= _LARGE else _LARGE_SIDE_BY_SIDE
        return min(torch.get_num_threads(), max(1, most // self.batch))

    def stream(self, items: Iterable[tuple[Key, Source]]) -> Iterator[Extracted[Key]]:
        """Yield one result for each (key, source), not in their order. A bad photo is a result, never an exception."""
        passes: _Passes[Key] = _Passes(self)
        try:
            for key, group in self._batches(items):
                if isinstance(group, ImageError):
                    yield Extracted(key, error=group)
                else:
                    yield from passes.give(group)
            yield from passes.rest()
        finally:
            passes.close()

    def _batches(
        self, items: Iterable[tuple[Key, Source]]
    ) -> Iterator[tuple[Key, list[tuple[Key, Decoded]] | ImageError]]:
        """Decoded photos that pass together, full batches as soon as there are any; each with a key of theirs."""
        # By the shapes of all views, so that what makes a full batch at one size makes it at every size.
        waiting: dict[tuple[tuple[int, ...], ...], list[tuple[Key, Decoded]]] = {}
        held = 0  # bytes
        for key, decoded in self._decoded(items):
            if isinstance(decoded, ImageError):
                yield key, decoded
                continue
            shapes = tuple(view.shape for view in decoded.views)
            group = waiting.setdefault(shapes, [])
            group.append((key, decoded))
            held += sum(view.nbytes for view in decoded.views)
            full = shapes if len(group) == self.batch else None
            if full is None and held > _WAITING:  # many shapes: the fullest batch goes, though it is short
                full = max(waiting, key=lambda shapes: len(waiting[shapes]))
            if full is not None:
                held -= sum(view.nbytes for _, one in waiting[full] for view in one.views)
                yield key, waiting.pop(full)
        for group in waiting.values():
            yield group[0][0], group

    def _decode(self, source: Source) -> Decoded | ImageError:
        try:
            return decode(source, self.preprocess, self.look, self.max_pixels)
        except ImageError as error:
            return error

    def _decoded(self, items: Iterable[tuple[Key, Source]]) -> Iterator[tuple[Key, Decoded | ImageError]]:
        if self.workers == 0:
            for key, source in items:
                yield key, self._decode(source)
            return
        ahead = 2 * self.workers + self.batch  # decoded photos that may wait: bounds the memory
        with ThreadPoolExecutor(self.workers, thread_name_prefix="milnet-decode") as executor:
            queue: list[tuple[Key, Future[Any]]] = []
            try:
                for key, source in items:
                    queue.append((key, executor.submit(self._decode, source)))
                    if len(queue) > ahead:
                        first, future = queue.pop(0)
                        yield first, future.result()
                for first, future in queue:
                    yield first, future.result()
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def forward(self, group: list[tuple[Key, Decoded]], backbone: Backbone | None = None) -> list[Extracted[Key]]:
        """Pass one batch, padded with black if it is short; through a replica of the backbone, if one is given."""
        backbone = backbone or self.backbone
        found: list[NDArray[np.float32]] = []  # for each size [n, D]
        maps: NDArray[np.float32] | None = None
        views = [np.zeros((self.batch, *first.shape), np.uint8) for first in group[0][1].views]
        for view, pixels in enumerate(views):
            for row, (_, decoded) in enumerate(group):
                pixels[row] = decoded.views[view]
        by_onnx = self.engine if self.engine is not None and self.engine.wanted(views) else None
        for pixels in views:
            if by_onnx is not None:
                found.append(by_onnx(pixels)[: len(group)])
                continue
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # NHWC in memory = channels_last
            if self.pooling is None:
                narrow = backbone(x)
            else:
                narrow, wide = backbone.wide(x, self.pooling)
                maps = wide[: len(group)].cpu().numpy()
            found.append(narrow[: len(group)].cpu().numpy())
        features = found[0]
        for one in found[1:]:  # the mean in float32, by ascending size: the same rounding every time
            features = features + one
        features = features / np.float32(len(found))  # by 1: bit for bit what it was
        if not np.isfinite(features).all():
            raise NumericError(f"{self.backbone.name} gave features that are not finite for {group[0][0]!r} or near it")
        return [
            Extracted(key, features[i], one.pixels, maps=None if maps is None else maps[i], looked=one.looked)
            for i, (key, one) in enumerate(group)
        ]

    def by_size(self, rows: list[int], paths: Callable[[int], Path]) -> list[int]:
        """The `rows` in an order in which photos of one input size follow each other, where sizes are the photos' own.

        Only the headers are read; a photo whose header cannot be read comes last, and fails when it is decoded.
        """
        if self.preprocess.fit != "original" or len(rows) < 2:
            return rows

        def size(row: int) -> tuple[int, int]:
            try:
                return original_size(*header_size(paths(row)), limit=self.preprocess.sizes[-1])
            except (ImageError, UsageError):
                return (1 << 30, 0)

        with ThreadPoolExecutor(max(1, self.workers), thread_name_prefix="milnet-sizes") as executor:
            sizes = list(executor.map(size, rows))
        return [row for _, row in sorted(zip(sizes, rows, strict=True))]

    @property
    def config(self) -> dict[str, Any]:
        """What decides the features of a photo, up to rounding; equal to what JSON gives back of it."""
        sizes = self.preprocess.sizes
        return {
            "backbone": self.backbone.name,
            "weights": self.backbone.digest,
            "preprocess": {**asdict(self.preprocess), "size": sizes[0] if len(sizes) == 1 else list(sizes)},
            "normalisation": self.backbone.normalisation,
            "ranges": {name: list(ends) for name, ends in self.backbone.ranges.items()},
        }


class _Passes(Generic[Key]):
    """Batches on their way through the backbone, given back in their order.

    On a CPU several pass side by side, each by a thread of its own: two batches by one thread each are half again as
    fast as one after the other by two threads, which wait for each other at every layer. Elsewhere one after the other.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor, self._before = extractor, torch.get_num_threads()
        self._count = extractor.side_by_side
        self._under_way: deque[Future[list[Extracted[Key]]]] = deque()
        self._executor = None
        if extractor.device.type == "cpu":
            threads = self._before // self._count
            self._executor = ThreadPoolExecutor(
                self._count, "milnet-forward", initializer=torch.set_num_threads, initargs=(threads,)
            )

    def give(self, group: list[tuple[Key, Decoded]]) -> Iterator[Extracted[Key]]:
        """Pass a batch; yields what is finished of earlier ones."""
        if self._executor is None:
            yield from self._extractor.forward(group)
            return
        self._under_way.append(self._executor.submit(self._forward, group))
        while len(self._under_way) > 2 * self._count:
            yield from self._under_way.popleft().result()

    def _forward(self, group: list[tuple[Key, Decoded]]) -> list[Extracted[Key]]:
        with self._extractor.backbone.borrowed() as backbone:
            return self._extractor.forward(group, backbone)

    def rest(self) -> Iterator[Extracted[Key]]:
        """What is still under way."""
        while self._under_way:
            yield from self._under_way.popleft().result()

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._before)  # those of the passes became what new threads begin with


def default_batch(preprocess: Preprocess, device: str) -> int:
    """Photos a forward pass: what was fastest on a CPU; elsewhere fewer where the photos come in many sizes."""
    original = preprocess.fit == "original"
    if device == "cpu":  # several large photos at once are slower than one by one, and take half as much memory again
        return 1 if original or preprocess.sizes[-1] > _LARGE else 4
    return 8 if original else 64


def load_extractor(
    config: Mapping[str, Any],
    weights: str,
    *,
    digest: str | None = None,
    offline: bool = False,
    device: str = "cpu",
    batch: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    pooling: Pooling | None = None,
    runtime: str = "torch",
) -> Extractor:
    """The extractor that a features manifest describes; refuses weights of another digest, and features without one.

    `digest`: that of weights which stand in for those of the features.
    """
    if not config.get("preprocess"):
        raise UsageError(
            f"these features were not made from photos by milnet ({config.get('backbone')}): photos cannot be "
            f"turned into such numbers; extract features with a backbone"
        )
    backbone = load_backbone(
        config["backbone"],
        weights,
        offline=offline,
        digest=digest or config["weights"],
        normalisation=config["normalisation"],
    )
    return Extractor.build(
        backbone,
        Preprocess(**config["preprocess"]),
        device=device,
        batch=batch,
        workers=workers,
        max_pixels=max_pixels,
        pooling=pooling,
        runtime=runtime,
    )


class StreamedMaps:
    """The wide maps of a table's photos, made from the files each time they are asked for: no disk, much computing.

    `maps[rows]` gives [n, 25, C] float16, the same numbers that would have been stored. A photo that cannot be read
    raises ImageError: its row must not be asked for.
    """

    itemsize = 2

    def __init__(self, table: Table, extractor: Extractor) -> None:
        if extractor.pooling is None:
            raise UsageError("streaming wide maps needs an extractor with a pooling")
        self.table, self.extractor = table, extractor
        self.shape: tuple[int, ...] = (len(table), CELLS * CELLS, extractor.backbone.wide_channels)

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        wanted = np.atleast_1d(np.asarray(rows, np.int64))
        found = np.empty((len(wanted), *self.shape[1:]), np.float16)
        for result in self.extractor.stream((i, self.table.image_path(int(row))) for i, row in enumerate(wanted)):
            if result.error is not None:
                raise result.error
            assert result.maps is not None
            found[result.key] = to_half(result.maps, int(wanted[result.key]))
        return found


def to_half(numbers: NDArray[np.float32], row: int) -> NDArray[np.float16]:
    """float16 for the disk; raises NumericError naming the row when a number does not fit."""
    with np.errstate(over="ignore"):
        stored = numbers.astype(np.float16)
    if not np.isfinite(stored).all():
        raise NumericError(f"a feature of row {row} does not fit float16: {np.abs(numbers).max():.4g} is above 65504")
    return stored
