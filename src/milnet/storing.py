"""Features on the disk as they are made: `extract` writes `DATA/features/NAME/` and goes on where a killed run stopped.

While unfinished, features live in a hidden folder beside their place, with a mark for each finished row; killed at any
moment, the next run goes on from there. Wide maps (mlsp.py) are written beside them when asked.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from milnet.extraction import Extracted, Extractor, silent, to_half
from milnet.features import Progress, WideForm, pack_maps, photos_digest, torch_threads, write_errors
from milnet.mlsp import CELLS
from milnet.sources import DEADLY, Item, Runner, fingerprint, is_near, opened

_PIECE, _LEAST_PIECE = 512, 16  # photos that are passed elsewhere at once, at most, and at least where they are large
_PIECE_BYTES = 64 << 20  # of their numbers, as far as that goes


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
    items: Callable[[int], Item | None] | None = None,
    runner: Runner | None = None,
) -> Manifest:
    """Extract the features of every photo of `table` into `folder`; goes on where a killed run stopped.

    `items`: where the photo of a row is, None where that is not known; by default the table says so. `runner`: who
    passes the photos, piece by piece (cluster.py), instead of this process; what it has finished is kept at once.
    With `wide` the maps are stored too, in that form; with `change` what it makes of the maps is stored instead of the
    features (the extractor needs a pooling for both).
    Raises ArtifactError when `folder` is complete already (unless `overwrite`) or an unfinished run had other options.
    """
    if (folder / "manifest.json").exists() and not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another --name, or pass --overwrite to replace it")
    sources = None if items is None else fingerprint(item for row in range(len(table)) if (item := items(row)))
    items = items or _files_of(table)
    todo = [row for row in range(len(table)) if items(row) is not None]
    if not todo:
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
    identity = json.loads(canonical_json({"config": config, "inputs": inputs, "sources": sources}))
    channels = 0 if wide is None else extractor.backbone.wide_channels
    store = _Unfinished(part, len(table), width, identity, extractor.batch, channels, wide)
    extractor = replace(extractor, batch=store.batch)
    errors = {
        int(row): ImageError("", "no file is known for this photo")
        for row in np.flatnonzero(~store.done)
        if items(int(row)) is None
    }
    todo = [row for row in todo if not store.done[row]]
    finished, saved = len(table) - len(todo), time.monotonic()
    progress(finished, len(table), "photos")

    def place(row: int) -> Item:
        found = items(row)
        assert found is not None
        return found

    with torch_threads(store.threads):
        groups = (
            _here(extractor, todo, place)
            if runner is None
            else _elsewhere(runner, extractor, todo, place, 2 * width + 2 * CELLS * CELLS * channels)
        )
        for group in groups:
            for result in group:
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
            if runner is not None or time.monotonic() - saved > save_seconds:
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


def _files_of(table: Table) -> Callable[[int], Item | None]:
    def item(row: int) -> Item | None:
        if not table.images[row]:
            return None
        path = str(table.image_path(row))
        return Item(path, path)

    return item


def _here(extractor: Extractor, rows: list[int], item: Callable[[int], Item]) -> Iterator[list[Extracted[int]]]:
    """Pass the photos of `rows` in this process, as they come."""
    failed: dict[int, ImageError] = {}
    order = (
        extractor.by_size(rows, lambda row: Path(item(row).place)) if all(is_near(item(row)) for row in rows) else rows
    )
    for result in extractor.stream(opened(((row, item(row)) for row in order), failed)):
        yield [_named(result, item(result.key).name)]
    yield [Extracted(row, error=error) for row, error in failed.items()]


def _named(result: Extracted[int], name: str) -> Extracted[int]:
    """A result whose error names the photo, and not only that it was bytes."""
    return result if result.error is None else replace(result, error=ImageError(name, result.error.reason))


def _elsewhere(
    runner: Runner, extractor: Extractor, rows: list[int], item: Callable[[int], Item], bytes_each: int
) -> Iterator[list[Extracted[int]]]:
    """Let others pass the photos of `rows`, piece by piece."""
    most = max(_LEAST_PIECE, min(_PIECE, _PIECE_BYTES // bytes_each))
    for some, data in runner.run(extractor, extract_piece, rows, item, most):
        if data is None:
            yield [Extracted(row, error=ImageError(item(row).name, DEADLY)) for row in some]
        else:
            yield list(read_piece(data))


def extract_piece(extractor: Extractor, items: Sequence[tuple[int, Item]]) -> bytes:
    """The features of a piece of a table, as they are stored, for `read_piece`: the work of another process."""
    results = [
        result for group in _here(extractor, [row for row, _ in items], dict(items).__getitem__) for result in group
    ]
    good = [result for result in results if result.features is not None]
    bad = [result.error for result in results if result.error is not None]
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.array([result.key for result in good], np.int64),
        "pixels": np.array([result.pixels for result in good], np.str_),
        "features": np.array([to_half(one.features, one.key) for one in good if one.features is not None]),
        "maps": np.array([to_half(one.maps, one.key) for one in good if one.maps is not None]),
        "bad": np.array([result.key for result in results if result.error is not None], np.int64),
        "files": np.array([error.file for error in bad], np.str_),
        "reasons": np.array([error.reason for error in bad], np.str_),
    }
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]  # numpy's own keyword is none of ours
    return data.getvalue()


def read_piece(data: bytes) -> Iterator[Extracted[int]]:
    """What `extract_piece` made; numbers as float32 that are float16, bit for bit."""
    with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
        piece = {name: loaded[name] for name in loaded.files}
    maps = piece["maps"]
    for i, row in enumerate(piece["rows"].tolist()):
        yield Extracted(
            row,
            piece["features"][i].astype(np.float32),
            str(piece["pixels"][i]),
            maps=maps[i].astype(np.float32) if len(maps) else None,
        )
    for row, file, reason in zip(piece["bad"].tolist(), piece["files"], piece["reasons"], strict=True):
        yield Extracted(row, error=ImageError(str(file), str(reason)))


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
