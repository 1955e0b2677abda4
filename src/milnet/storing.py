"""Features on the disk as they are made: `extract` writes `DATA/features/NAME/` and goes on where a killed run stopped.

While unfinished, features live in a hidden folder beside their place, with a mark for each finished row; killed at any
moment, the next run goes on from there. Wide maps (mlsp.py) are written beside them when asked.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    canonical_json,
    differences,
    digest_file,
    put_in_place,
    read_manifest,
    write_lines,
    write_manifest,
    write_text,
)
from milnet.errors import ArtifactError, ImageError, UsageError
from milnet.extraction import Extractor, silent, to_half
from milnet.features import Progress, WideForm, pack_maps, photos_digest, torch_threads, write_errors
from milnet.mlsp import CELLS


@dataclass(frozen=True)
class Change:
    """What is done with a photo's maps before they are stored in the place of its features: a reducer.

    `apply` maps [25, C] float16 -> numbers [width]; `config` what the features then are; `write` puts further files
    into the folder and names them.
    """

    width: int
    apply: Callable[[NDArray[np.float16]], NDArray[np.float32]]
    config: Mapping[str, Any]
    write: Callable[[Path], Sequence[str]]


def extract(
    table: Table,
    folder: Path,
    extractor: Extractor,
    *,
    weights: str,
    wide: WideForm | None = None,
    change: Change | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    save_seconds: float = 5.0,
) -> Manifest:
    """Extract the features of every photo of `table` into `folder`; goes on where a killed run stopped.

    With `wide` the maps are stored too, in that form; with `change` what it makes of the maps is stored instead of the
    features (the extractor needs a pooling for both).
    Raises ArtifactError when `folder` is complete already (unless `overwrite`) or an unfinished run had other options.
    """
    if (folder / "manifest.json").exists() and not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another --name, or pass --overwrite to replace it")
    if not any(table.images):
        raise UsageError(f"no photo of {table.name} has a known file: import the labels again with --images DIR")
    if folder.exists():
        read_manifest(folder, "features")  # only features are replaced
    config, inputs = extractor.config, {"photos": photos_digest(table)}
    width = extractor.backbone.width
    if change is not None:
        config, width = dict(change.config), change.width
    if wide is not None:
        config["wide"] = {"pooling": extractor.pooling, "cells": CELLS, "stored": wide}
        held = sum(path.stat().st_blocks * 512 for path in (folder.parent / f".{folder.name}.part").glob("wide*.npy"))
        need, free = wide_bytes(len(table), extractor.backbone.wide_channels, wide) - held, _free(folder.parent)
        if need > free:
            raise UsageError(
                f"the wide maps of {len(table):,} photos take {need / 1e9:.1f} GB more as {wide}, but {folder.parent} "
                f"has {free / 1e9:.1f} GB free: store them as int8, on another disk, or not (reduce --stream)"
            )
    part = folder.parent / f".{folder.name}.part"
    identity = json.loads(canonical_json({"config": config, "inputs": inputs}))
    channels = 0 if wide is None else extractor.backbone.wide_channels
    store = _Unfinished(part, len(table), width, identity, extractor.batch, channels, wide)
    extractor = replace(extractor, batch=store.batch)
    todo = [int(row) for row in np.flatnonzero(~store.done)]
    errors = {row: ImageError("", "no file is known for this photo") for row in todo if not table.images[row]}
    finished, saved = len(table) - len(todo) + len(errors), time.monotonic()
    progress(finished, len(table), "photos")

    with torch_threads(store.threads):
        order = extractor.by_size([row for row in todo if row not in errors], table.image_path)
        for result in extractor.stream((row, table.image_path(row)) for row in order):
            if result.features is not None:
                numbers = result.features
                if change is not None:
                    assert result.maps is not None
                    numbers = change.apply(to_half(result.maps, result.key))  # as stored maps are
                store.put(result.key, numbers, result.pixels, result.maps)
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
    more = () if change is None else change.write(part)
    return store.finish(folder, config, inputs, weights=weights, errors=lines, more=more)


def wide_bytes(photos: int, channels: int, form: WideForm) -> int:
    """Bytes on disk of the wide maps of so many photos."""
    numbers = photos * channels
    return numbers * CELLS * CELLS * 2 if form == "float16" else numbers * (CELLS * CELLS + 4)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class _Unfinished:
    """Arrays of an extraction under way. A row counts as done only after its numbers have been flushed to disk."""

    def __init__(
        self,
        part: Path,
        n: int,
        width: int,
        identity: Mapping[str, Any],
        batch: int,
        channels: int = 0,
        wide: WideForm | None = None,
    ) -> None:
        self.part, self.wide = part, wide
        self.unsaved: list[int] = []
        names = part / "identity.json"
        old = json.loads(names.read_text(encoding="utf-8")) if names.exists() else None
        if old is not None and old["identity"] != identity:
            raise ArtifactError(
                f"{part} holds an unfinished extraction with other options or photos: run it with the same ones "
                f"({differences(old['identity'], identity)}), or remove that folder"
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
        self.maps: dict[str, NDArray[Any]] = {}
        if wide is not None:
            cells, kind = (n, CELLS * CELLS, channels), np.float16 if wide == "float16" else np.uint8
            self.maps["wide"] = open_memmap(part / "wide.npy", mode, kind, cells if fresh else None)
        if wide == "int8":
            scales = (n, 2, channels) if fresh else None
            self.maps["wide_range"] = open_memmap(part / "wide_range.npy", mode, np.float16, scales)
        if fresh:
            self.features[:] = np.nan
            self.save()
            # last: without it the three arrays are made anew
            write_text(names, canonical_json({"identity": identity, "batch": self.batch, "threads": self.threads}))

    @property
    def done(self) -> NDArray[np.bool_]:
        return np.asarray(self.marks, dtype=np.bool_)

    def put(
        self, row: int, features: NDArray[np.float32], pixels: str, maps: NDArray[np.float32] | None = None
    ) -> None:
        self.features[row] = to_half(features, row)
        self.pixels[row] = np.frombuffer(bytes.fromhex(pixels), np.uint8)
        if self.wide is not None and maps is not None:
            half = to_half(maps, row)
            if self.wide == "float16":
                self.maps["wide"][row] = half
            else:
                self.maps["wide"][row], self.maps["wide_range"][row] = pack_maps(half.astype(np.float32))
        self.unsaved.append(row)

    def save(self) -> None:
        self.features.flush()
        self.pixels.flush()
        for array in self.maps.values():
            array.flush()  # type: ignore[attr-defined]
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
        more: Sequence[str] = (),
    ) -> Manifest:
        done = self.done
        digests = [bytes(p).hex() if ok else "" for p, ok in zip(self.pixels, done, strict=True)]
        write_lines(self.part / "pixels.txt", digests)
        write_errors(self.part / "errors.csv", errors)
        # errors.csv names paths of this machine: kept beside, not part of the identity
        manifest = Manifest(
            kind="features",
            format=FORMATS["features"],
            config=config,
            files={
                name: digest_file(self.part / name)
                for name in ("features.npy", "pixels.txt", *(f"{name}.npy" for name in self.maps), *more)
            },
            inputs=inputs,
            counts={"photos": int(done.sum()), "unreadable": len(errors)},
            notes={"weights": weights},
        )
        write_manifest(self.part, manifest)
        put_in_place(self.part, folder)
        # Only now: had these gone earlier, a kill in between would have lost the work.
        for name in ("identity.json", "done.npy", "pixels.npy"):
            (folder / name).unlink()
        return manifest
