"""Photos -> numbers: decode in threads, forward in batches of one fixed size.

The forward pass sees only full batches: photos of the same input size are gathered, a short batch is padded with black.
So the features of a photo depend on the photo, the backbone and the batch size, and on nothing else. Photos that keep
their own size are visited size by size, so that few batches are short.

`StreamedMaps` makes wide maps (mlsp.py) anew each time they are read; `storing.py` keeps features on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import Table
from milnet.backbones import Backbone, load_backbone
from milnet.errors import ImageError, NumericError, UsageError
from milnet.images import (
    LEAST_SIDE,
    MAX_PIXELS,
    Source,
    header_size,
    open_photo,
    original_size,
    resize_crop,
    resize_original,
    resize_whole,
    to_array,
)
from milnet.mlsp import CELLS, Pooling

Key = TypeVar("Key")
Fit = Literal["whole", "crop", "original"]
_WAITING = 1 << 29  # bytes of decoded photos that may wait for others of their size


def silent(done: int, total: int, what: str) -> None:
    """The progress of a caller that wants none."""


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes the input of a backbone."""

    size: int = 320  # pixels: long side of a whole photo, side of the crop, largest long side of an original photo
    fit: Fit = "whole"  # the whole photo at one long side; the centre square; or the whole photo at its own size
    multiple: int = 32  # sides of a whole photo are rounded to multiples of this
    crop_fraction: float = 0.875  # share of the short side that a crop keeps
    draft: bool = False  # let libjpeg shrink very large JPEGs while decoding (see images.open_photo for the tolerance)

    def __post_init__(self) -> None:
        if self.size < self.multiple or self.multiple < 1 or not 0 < self.crop_fraction <= 1:
            raise UsageError(
                f"expected size >= multiple >= 1 and 0 < crop fraction <= 1, got size {self.size}, multiple "
                f"{self.multiple}, crop fraction {self.crop_fraction}"
            )
        if self.fit == "original" and self.size < LEAST_SIDE:
            raise UsageError(f"--size {self.size}: photos at their own size have at least {LEAST_SIDE} pixels a side")

    def __call__(self, source: Source, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], str]:
        """Pixels HWC uint8 in [0, 255] at input size, and the digest of the photo's own pixels."""
        photo = open_photo(source, max_pixels=max_pixels, draft_side=self.size if self.draft else None)
        if self.fit == "original":
            try:
                resized = resize_original(photo.pixels, limit=self.size)
            except UsageError as error:
                name = source if isinstance(source, str | Path) else f"<{type(source).__name__}>"
                raise ImageError(name, str(error)) from error
        elif self.fit == "whole":
            resized = resize_whole(photo.pixels, size=self.size, multiple=self.multiple)
        else:
            resized = resize_crop(photo.pixels, size=self.size, crop_fraction=self.crop_fraction)
        return to_array(resized), photo.digest


@dataclass(frozen=True)
class Extracted(Generic[Key]):
    """One photo's result: `features` [D] float32 and `pixels` (its digest), or `error`; `maps` [25, C] if asked for."""

    key: Key
    features: NDArray[np.float32] | None = None
    pixels: str = ""
    error: ImageError | None = None
    maps: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Extractor:
    """A backbone with its preprocessing: sources in, features out.

    `batch`: photos in a forward pass; `workers`: decoding threads (0: decode in the calling thread). `pooling`: also
    give wide maps, pooled that way.
    """

    backbone: Backbone
    preprocess: Preprocess
    batch: int
    device: torch.device
    workers: int = 2
    max_pixels: int = MAX_PIXELS
    pooling: Pooling | None = None

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
    ) -> Extractor:
        """Choose what was left open: `default_batch`, and one decoding thread a core."""
        target = torch.device(device)
        batch = default_batch(preprocess.fit, target.type) if batch is None else batch
        workers = min(os.cpu_count() or 1, 16) if workers is None else workers
        if batch < 1 or workers < 0:
            raise UsageError(f"expected batch >= 1 and workers >= 0, got {batch} and {workers}")
        # channels_last is about twice as fast on a CPU
        backbone = backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pooling is not None and not backbone.wide_channels:
            raise UsageError(f"{backbone.name} has no wide features: its blocks give tokens, not maps")
        return Extractor(backbone, preprocess, batch, target, workers, max_pixels, pooling)

    def stream(self, items: Iterable[tuple[Key, Source]]) -> Iterator[Extracted[Key]]:
        """Yield one result for each (key, source), not in their order. A bad photo is a result, never an exception."""
        waiting: dict[tuple[int, ...], list[tuple[Key, NDArray[np.uint8], str]]] = {}
        held = 0  # bytes
        for key, decoded in self._decoded(items):
            if isinstance(decoded, ImageError):
                yield Extracted(key, error=decoded)
                continue
            group = waiting.setdefault(decoded[0].shape, [])
            group.append((key, *decoded))
            held += decoded[0].nbytes
            shape = decoded[0].shape if len(group) == self.batch else None
            if shape is None and held > _WAITING:  # many sizes: the fullest batch goes, though it is short
                shape = max(waiting, key=lambda size: len(waiting[size]))
            if shape is not None:
                held -= sum(pixels.nbytes for _, pixels, _ in waiting[shape])
                yield from self._forward(waiting.pop(shape))
        for group in waiting.values():
            yield from self._forward(group)

    def _decode(self, source: Source) -> tuple[NDArray[np.uint8], str] | ImageError:
        try:
            return self.preprocess(source, self.max_pixels)
        except ImageError as error:
            return error

    def _decoded(
        self, items: Iterable[tuple[Key, Source]]
    ) -> Iterator[tuple[Key, tuple[NDArray[np.uint8], str] | ImageError]]:
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

    def _forward(self, group: list[tuple[Key, NDArray[np.uint8], str]]) -> Iterator[Extracted[Key]]:
        pixels = np.zeros((self.batch, *group[0][1].shape), np.uint8)
        for row, (_, image, _) in enumerate(group):
            pixels[row] = image
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # NHWC in memory = channels_last
        maps: NDArray[np.float32] | None = None
        if self.pooling is None:
            features = self.backbone(x)[: len(group)].cpu().numpy()
        else:
            narrow, wide = self.backbone.wide(x, self.pooling)
            features, maps = narrow[: len(group)].cpu().numpy(), wide[: len(group)].cpu().numpy()
        if not np.isfinite(features).all():
            raise NumericError(f"{self.backbone.name} gave features that are not finite for {group[0][0]!r} or near it")
        for i, (key, _, digest) in enumerate(group):
            yield Extracted(key, features[i], digest, maps=None if maps is None else maps[i])

    def by_size(self, rows: list[int], paths: Callable[[int], Path]) -> list[int]:
        """The `rows` in an order in which photos of one input size follow each other, where sizes are the photos' own.

        Only the headers are read; a photo whose header cannot be read comes last, and fails when it is decoded.
        """
        if self.preprocess.fit != "original" or len(rows) < 2:
            return rows

        def size(row: int) -> tuple[int, int]:
            try:
                return original_size(*header_size(paths(row)), limit=self.preprocess.size)
            except (ImageError, UsageError):
                return (1 << 30, 0)

        with ThreadPoolExecutor(max(1, self.workers), thread_name_prefix="milnet-sizes") as executor:
            sizes = list(executor.map(size, rows))
        return [row for _, row in sorted(zip(sizes, rows, strict=True))]

    @property
    def config(self) -> dict[str, Any]:
        """What decides the features of a photo, up to rounding."""
        return {
            "backbone": self.backbone.name,
            "weights": self.backbone.digest,
            "preprocess": asdict(self.preprocess),
            "normalisation": self.backbone.normalisation,
            "ranges": {name: list(ends) for name, ends in self.backbone.ranges.items()},
        }


def default_batch(fit: Fit, device: str) -> int:
    """Photos a forward pass: what was fastest on a CPU; elsewhere fewer where the photos come in many sizes."""
    if device == "cpu":
        return 1 if fit == "original" else 4
    return 8 if fit == "original" else 64


def load_extractor(
    config: Mapping[str, Any],
    weights: str,
    *,
    offline: bool = False,
    device: str = "cpu",
    batch: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    pooling: Pooling | None = None,
) -> Extractor:
    """The extractor that a features manifest describes; refuses weights of another digest, and features without one."""
    if not config.get("preprocess"):
        raise UsageError(
            f"these features were not made from photos by milnet ({config.get('backbone')}): photos cannot be "
            f"turned into such numbers; extract features with a backbone"
        )
    backbone = load_backbone(
        config["backbone"],
        weights,
        offline=offline,
        digest=config["weights"],
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
