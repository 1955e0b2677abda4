"""`milnet reduce`: wide maps -> a reducer, learned on the training side, -> the reduced features of every photo.

The result is a features folder like any other, with the network that made it and the photos it has seen:

    features.npy float16 [N, 3C]   pixels.txt   readable.npy   reducer.safetensors   reducer.json   seen.txt

so that whoever learns from these features carries the reducer and its `seen` along. Maps are read from the disk or made
anew from the photos, whatever `features.maps` is; killed at any moment, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet import processes
from milnet.annotations import Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    canonical_json,
    digest_file,
    digest_text,
    put_in_place,
    read_manifest,
    write_array,
    write_lines,
    write_manifest,
)
from milnet.checkpoints import save_reducer
from milnet.errors import ArtifactError, UsageError
from milnet.extraction import Extractor
from milnet.features import FeatureSet, Progress, photos_digest, seen_lines, torch_threads
from milnet.model.reducer import Reducer
from milnet.recipe import Recipe
from milnet.recipes import Model, fit, reduce_into, require_maps
from milnet.splits import Split
from milnet.storing import Change, extract
from milnet.training import Run

_FILES = ("features.npy", "pixels.txt", "readable.npy", "reducer.json", "reducer.safetensors", "seen.txt")
_BLOCK = 512  # photos reduced between two marks on the disk


def reduce_features(
    recipe: Recipe,
    table: Table,
    features: FeatureSet,
    split: Split,
    seed: int,
    folder: Path,
    *,
    run: Run,
    device: str = "cpu",
    overwrite: bool = False,
    notes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, Model]:
    """Learn a reducer on `split.train` and write the reduced features of all readable photos to `folder`.

    Raises UsageError for a recipe that is no reducer or features without maps, ArtifactError when `folder` is there.
    """
    if recipe.model != "reducer":
        raise UsageError(f"expected a recipe of model reducer, got {recipe.name} of model {recipe.model}")
    if (folder / "manifest.json").exists() and not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another --name, or pass --overwrite to replace it")
    if folder.exists():
        read_manifest(folder, "features")  # only features are replaced
    maps = require_maps(features)
    # Its weights do not see the set-aside photos, so that whoever trains on these features may set them aside again.
    recipe = replace(recipe, refit=False)
    model = fit(recipe, table, features, split, seed, device=device, run=run, progress=progress)
    assert isinstance(model.network, Reducer) and run.folder is not None
    rows = np.flatnonzero(features.readable)
    part, outputs = run.folder / "reduced", model.network.outputs
    left = processes.from_first(lambda: _make(part, len(table), outputs, -(-len(rows) // _BLOCK)))
    values, marks = _open(part)
    for block in processes.share(left):  # several processes write into the same files
        some = rows[block * _BLOCK : (block + 1) * _BLOCK]
        with torch_threads(run.threads):
            reduce_into(values, model.network, maps, some, some, device=device)
        values.flush()  # type: ignore[attr-defined]
        marks[block] = 1
        marks.flush()  # type: ignore[attr-defined]
        if progress is not None:
            progress(min((block + 1) * _BLOCK, len(rows)), len(rows), "photos reduced")
    processes.meet()
    manifest = processes.from_first(lambda: _finish(part, folder, model, table, features, split, seed, notes))
    return manifest, model


def _finish(
    part: Path,
    folder: Path,
    model: Model,
    table: Table,
    features: FeatureSet,
    split: Split,
    seed: int,
    notes: Mapping[str, Any] | None,
) -> Manifest:
    """Write what stands beside the reduced features, and put all in place."""
    assert isinstance(model.network, Reducer)
    config, readable = features.config["maps"], int(features.readable.sum())
    write_lines(part / "pixels.txt", features.pixels)
    write_array(part / "readable.npy", features.readable)
    write_lines(part / "seen.txt", seen_lines(model.seen))
    save_reducer(model.network, model.recipe, model.history, part)
    manifest = Manifest(
        kind="features",
        format=FORMATS["features"],
        config={
            **config["extraction"],
            "ranges": {"taps": [0, model.network.outputs]},
            "wide": {"pooling": config["pooling"]},
            "reducer": digest_text(
                canonical_json([digest_file(part / f"reducer.{ending}") for ending in ("json", "safetensors")])
            ),
        },
        files={name: digest_file(part / name) for name in _FILES},
        inputs={"photos": photos_digest(table), "maps": config["digest"], "rows": digest_text(rows_text(split.train))},
        counts={"photos": readable, "unreadable": len(table) - readable, "seen": len(model.seen)},
        notes={**(notes or {}), "weights": config["weights"], "seed": seed, "group": split.group},
    )
    (part / "manifest.json").unlink(missing_ok=True)
    write_manifest(part, manifest)
    put_in_place(part, folder)
    (folder / "marks.npy").unlink(missing_ok=True)
    return manifest


def apply_reducer(
    model: Model,
    table: Table,
    extractor: Extractor,
    folder: Path,
    *,
    weights: str,
    progress: Progress,
) -> Manifest:
    """The features that a model's reducer, learned before it, makes of a table's photos, maps made from the photos.

    The folder is what `reduce_features` would have left: it holds the reducer, and what the model has seen. Goes on
    where a killed run stopped. Raises ArtifactError when `folder` is there or no photo can be read.
    """
    reducer, recipe = model.reducer, model.reducer_recipe
    assert reducer is not None and recipe is not None

    def write(part: Path) -> tuple[str, ...]:
        save_reducer(reducer, recipe, model.reducer_history, part)
        write_lines(part / "seen.txt", seen_lines(model.seen))
        return "reducer.json", "reducer.safetensors", "seen.txt"

    def apply(maps: NDArray[np.float16]) -> NDArray[np.float32]:
        numbers: NDArray[np.float32] = model.reduce(maps[None], np.zeros(1, np.int64))[0].astype(np.float32)
        return numbers

    change = Change(reducer.outputs, apply, model.features["nodes"]["extraction"], write)
    return extract(table, folder, extractor, weights=weights, change=change, progress=progress)


def rows_text(rows: NDArray[Any]) -> str:
    """The training rows that the manifest of reduced features names by digest."""
    return canonical_json(np.sort(rows).tolist())


def _make(part: Path, photos: int, outputs: int, blocks: int) -> list[int]:
    """Begin the reduced features, NaN where nothing is yet, or go on with them; the blocks that are left to do."""
    part.mkdir(exist_ok=True)
    if not (part / "marks.npy").exists():
        values = np.lib.format.open_memmap(part / "features.npy", "w+", np.float16, (photos, outputs))
        values[:] = np.nan
        values.flush()
        write_array(part / "marks.npy", np.zeros(blocks, np.uint8))  # last: without it the features are made anew
    left: list[int] = np.flatnonzero(np.load(part / "marks.npy") == 0).tolist()
    return left


def _open(part: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The reduced features under way, and a mark for each finished block."""
    return np.lib.format.open_memmap(part / "features.npy", "r+"), np.lib.format.open_memmap(part / "marks.npy", "r+")
