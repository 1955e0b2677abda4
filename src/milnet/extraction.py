"""Photos -> numbers: decode in threads, forward in batches of one fixed size, resumable.

The forward pass sees only full batches: photos of the same input size are gathered, a short batch is padded with black.
So the features of a photo depend on the photo, the backbone and the batch size, and on nothing else.

While unfinished, features live in a hidden folder beside their place, with a mark for each finished row; killed at any
moment, the next run goes on from there.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    canonical_json,
    digest_file,
    read_manifest,
    write_lines,
    write_manifest,
    write_text,
)
from milnet.backbones import Backbone, load_backbone
from milnet.errors import ArtifactError, ImageError, NumericError, UsageError
from milnet.features import Progress, photos_digest, torch_threads
from milnet.images import MAX_PIXELS, Source, open_photo, resize_crop, resize_whole, to_array

Key = TypeVar("Key")


def silent(done: int, total: int, what: str) -> None:
    """The progress of a caller that wants none."""


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes the input of a backbone."""

    size: int = 320  # pixels: long side of a whole photo, or side of the crop
    fit: Literal["whole", "crop"] = "whole"  # the whole photo, aspect kept; or the centre square
    multiple: int = 32  # sides of a whole photo are rounded to multiples of this
    crop_fraction: float = 0.875  # share of the short side that a crop keeps
    draft: bool = False  # let libjpeg shrink very large JPEGs while decoding (see images.open_photo for the tolerance)

    def __post_init__(self) -> None:
        if self.size < self.multiple or self.multiple < 1 or not 0 < self.crop_fraction <= 1:
            raise UsageError(
                f"expected size >= multiple >= 1 and 0 < crop fraction <= 1, got size {self.size}, multiple "
                f"{self.multiple}, crop fraction {self.crop_fraction}"
            )

    def __call__(self, source: Source, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], str]:
        """Pixels HWC uint8 in [0, 255] at input size, and the digest of the photo's own pixels."""
        photo = open_photo(source, max_pixels=max_pixels, draft_side=self.size if self.draft else None)
        if self.fit == "whole":
            resized = resize_whole(photo.pixels, size=self.size, multiple=self.multiple)
        else:
            resized = resize_crop(photo.pixels, size=self.size, crop_fraction=self.crop_fraction)
        return to_array(resized), photo.digest


@dataclass(frozen=True)
class Extracted(Generic[Key]):
    """One photo's result: `features` [D] float32 and `pixels` (its digest), or `error`."""

    key: Key
    features: NDArray[np.float32] | None = None
    pixels: str = ""
    error: ImageError | None = None


@dataclass(frozen=True)
class Extractor:
    """A backbone with its preprocessing: sources in, features out.

    `batch`: photos in a forward pass; `workers`: decoding threads (0: decode in the calling thread).
    """

    backbone: Backbone
    preprocess: Preprocess
    batch: int
    device: torch.device
    workers: int = 2
    max_pixels: int = MAX_PIXELS

    @staticmethod
    def build(
        backbone: Backbone,
        preprocess: Preprocess,
        *,
        device: str = "cpu",
        batch: int | None = None,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Extractor:
        """Choose what was left open: batch 4 on a CPU (fastest there), 64 elsewhere; one decoding thread a core."""
        target = torch.device(device)
        batch = (4 if target.type == "cpu" else 64) if batch is None else batch
        workers = min(os.cpu_count() or 1, 16) if workers is None else workers
        if batch < 1 or workers < 0:
            raise UsageError(f"expected batch >= 1 and workers >= 0, got {batch} and {workers}")
        # channels_last is about twice as fast on a CPU
        backbone = backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Extractor(backbone, preprocess, batch, target, workers, max_pixels)

    def stream(self, items: Iterable[tuple[Key, Source]]) -> Iterator[Extracted[Key]]:
        """Yield one result for each (key, source), not in their order. A bad photo is a result, never an exception."""
        waiting: dict[tuple[int, ...], list[tuple[Key, NDArray[np.uint8], str]]] = {}
        for key, decoded in self._decoded(items):
            if isinstance(decoded, ImageError):
                yield Extracted(key, error=decoded)
                continue
            group = waiting.setdefault(decoded[0].shape, [])
            group.append((key, *decoded))
            if len(group) == self.batch:
                yield from self._forward(waiting.pop(decoded[0].shape))
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
        features = self.backbone(x)[: len(group)].cpu().numpy()
        if not np.isfinite(features).all():
            raise NumericError(f"{self.backbone.name} gave features that are not finite for {group[0][0]!r} or near it")
        for (key, _, digest), row in zip(group, features, strict=True):
            yield Extracted(key, row, digest)

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


def load_extractor(
    config: Mapping[str, Any],
    weights: str,
    *,
    offline: bool = False,
    device: str = "cpu",
    batch: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Extractor:
    """The extractor that a features manifest describes; refuses weights of another digest."""
    backbone = load_backbone(config["backbone"], weights, offline=offline, digest=config["weights"])
    preprocess = Preprocess(**config["preprocess"])
    return Extractor.build(backbone, preprocess, device=device, batch=batch, workers=workers, max_pixels=max_pixels)


def extract(
    table: Table,
    folder: Path,
    extractor: Extractor,
    *,
    weights: str,
    overwrite: bool = False,
    progress: Progress = silent,
    save_seconds: float = 5.0,
) -> Manifest:
    """Extract the features of every photo of `table` into `folder`; goes on where a killed run stopped.

    Raises ArtifactError when `folder` is complete already (unless `overwrite`) or an unfinished run had other options.
    """
    if (folder / "manifest.json").exists() and not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another --name, or pass --overwrite to replace it")
    if not any(table.images):
        raise UsageError(f"no photo of {table.name} has a known file: import the labels again with --images DIR")
    if folder.exists():
        read_manifest(folder, "features")  # only features are replaced
    config, inputs = extractor.config, {"photos": photos_digest(table)}
    part = folder.parent / f".{folder.name}.part"
    identity = json.loads(canonical_json({"config": config, "inputs": inputs}))
    store = _Unfinished(part, len(table), extractor.backbone.width, identity, extractor.batch)
    extractor = replace(extractor, batch=store.batch)
    todo = [int(row) for row in np.flatnonzero(~store.done)]
    errors = {row: ImageError("", "no file is known for this photo") for row in todo if not table.images[row]}
    finished, saved = len(table) - len(todo) + len(errors), time.monotonic()
    progress(finished, len(table), "photos")

    with torch_threads(store.threads):
        for result in extractor.stream((row, table.image_path(row)) for row in todo if row not in errors):
            if result.features is not None:
                store.put(result.key, result.features, result.pixels)
            elif result.error is not None:
                errors[result.key] = result.error
            finished += 1
            progress(finished, len(table), "photos")
            if time.monotonic() - saved > save_seconds:
                store.save()
                saved = time.monotonic()
        store.save()
    if errors and not store.done.any():
        first = errors[min(errors)]
        raise ArtifactError(
            f"none of the {len(table):,} photos could be read; the first: {first}. Where are they? pass --images DIR"
        )
    lines = [(table.ids[row], error.file, error.reason) for row, error in sorted(errors.items())]
    return store.finish(folder, config, inputs, weights=weights, errors=lines)


class _Unfinished:
    """Arrays of an extraction under way. A row counts as done only after its numbers have been flushed to disk."""

    def __init__(self, part: Path, n: int, width: int, identity: Mapping[str, Any], batch: int) -> None:
        self.part = part
        self.unsaved: list[int] = []
        names = part / "identity.json"
        old = json.loads(names.read_text(encoding="utf-8")) if names.exists() else None
        if old is not None and old["identity"] != identity:
            raise ArtifactError(
                f"{part} holds an unfinished extraction with other options or photos: run it with the same ones "
                f"({_differences(old['identity'], identity)}), or remove that folder"
            )
        fresh = old is None
        # Batch and threads move the last bits, so one extraction keeps to those it began with.
        self.batch: int = batch if old is None else old["batch"]
        self.threads: int = torch.get_num_threads() if old is None else old["threads"]
        part.mkdir(parents=True, exist_ok=True)
        mode: Literal["w+", "r+"] = "w+" if fresh else "r+"
        open_memmap = np.lib.format.open_memmap
        self.features = open_memmap(part / "features.npy", mode, np.float16, (n, width) if fresh else None)
        self.pixels = open_memmap(part / "pixels.npy", mode, np.uint8, (n, 32) if fresh else None)
        self.marks = open_memmap(part / "done.npy", mode, np.uint8, (n,) if fresh else None)
        if fresh:
            self.features[:] = np.nan
            self.save()
            # last: without it the three arrays are made anew
            write_text(names, canonical_json({"identity": identity, "batch": self.batch, "threads": self.threads}))

    @property
    def done(self) -> NDArray[np.bool_]:
        return np.asarray(self.marks, dtype=np.bool_)

    def put(self, row: int, features: NDArray[np.float32], pixels: str) -> None:
        with np.errstate(over="ignore"):
            stored = features.astype(np.float16)
        if not np.isfinite(stored).all():
            raise NumericError(
                f"a feature of row {row} does not fit float16: {np.abs(features).max():.4g} is above 65504"
            )
        self.features[row] = stored
        self.pixels[row] = np.frombuffer(bytes.fromhex(pixels), np.uint8)
        self.unsaved.append(row)

    def save(self) -> None:
        self.features.flush()
        self.pixels.flush()
        self.marks[self.unsaved] = 1
        self.marks.flush()
        self.unsaved = []

    def finish(
        self,
        folder: Path,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        weights: str,
        errors: list[tuple[str, str, str]],
    ) -> Manifest:
        done = self.done
        digests = [bytes(p).hex() if ok else "" for p, ok in zip(self.pixels, done, strict=True)]
        write_lines(self.part / "pixels.txt", digests)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "file", "reason"])
        writer.writerows(errors)
        write_text(self.part / "errors.csv", text.getvalue())
        # errors.csv names paths of this machine: kept beside, not part of the identity
        manifest = Manifest(
            kind="features",
            format=FORMATS["features"],
            config=config,
            files={name: digest_file(self.part / name) for name in ("features.npy", "pixels.txt")},
            inputs=inputs,
            counts={"photos": int(done.sum()), "unreadable": len(errors)},
            notes={"weights": weights},
        )
        write_manifest(self.part, manifest)
        if folder.exists():
            shutil.rmtree(folder)
        self.part.replace(folder)
        # Only now: had these gone earlier, a kill in between would have lost the work.
        for name in ("identity.json", "done.npy", "pixels.npy"):
            (folder / name).unlink()
        return manifest


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings of two nested configurations differ, as "name: old -> new"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(_differences(a, b))
        elif a != b:
            found.append(f"{name}: {str(a)[:40]} -> {str(b)[:40]}")
    return ", ".join(text for text in found if text)
