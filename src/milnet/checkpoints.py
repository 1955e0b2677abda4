"""`MODEL/` on disk: manifest, recipe, weights, the tables of doubt, pool. Nothing in it can run code.

manifest.json  recipe.json  weights.safetensors  calibration.json  seen.txt  log.json
reducer.json  reducer.safetensors     where the nodes are reduced wide maps
pool/  ids.txt  pixels.txt  groups.txt  votes.npy [P, S]  semantic.npy [P, Ds]  nodes.npy [P, Dn]  (float16)
       no semantic.npy where its numbers are columns of nodes.npy (`semantic_columns` of the manifest)
       alone.npy [P, S]               of a calibrated `votes`: what each photo is alone
       semantic_scale.npy [P]         beside a semantic.npy of bytes (compact.py)
       index.faiss  index.json        an index that proposes references (index.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from milnet.annotations import IntArray
from milnet.artifacts import (
    FORMATS,
    Manifest,
    atomic_path,
    digest_file,
    make_ordinary,
    new_folder,
    read_array,
    read_json,
    read_lines,
    read_manifest,
    verify_files,
    write_array,
    write_json,
    write_lines,
    write_manifest,
)
from milnet.compact import PackedRows, compact_network, is_compact
from milnet.doubt import Doubt
from milnet.errors import ArtifactError, UsageError
from milnet.features import read_seen, seen_lines, stored_rows
from milnet.index import Index
from milnet.model.reducer import Reducer
from milnet.pool import RatedPool
from milnet.recipe import Recipe, make_network
from milnet.recipes import Model, last_layer, load_reducer
from milnet.training import contiguous_state


def save_model(
    model: Model, folder: Path, *, overwrite: bool = False, notes: Mapping[str, Any] | None = None
) -> Manifest:
    """Write `MODEL/`; the manifest names the data, the features and every file by digest."""
    with new_folder(folder, "model", overwrite=overwrite) as building:
        write_json(building / "recipe.json", model.recipe.to_json())
        save_file(contiguous_state(model.network), building / "weights.safetensors")
        write_json(building / "calibration.json", model.doubt.to_json())
        write_json(building / "log.json", model.history)
        write_lines(building / "seen.txt", seen_lines(model.seen))
        if model.reducer is not None and model.reducer_recipe is not None:
            save_reducer(model.reducer, model.reducer_recipe, model.reducer_history, building)
        _save_pool(model, building / "pool")
        return finish_model(
            building,
            config={
                "values": model.values.tolist(),
                "features": {role: _identity(part) for role, part in model.features.items()},
                "seed": model.seed,
                "table": model.table_name,
                "threshold": model.threshold,
                "side": model.side,
                "group": model.group,
                "near_duplicate": model.pool.near_duplicate,
                "epochs": model.epochs,
                "seen": f"{len(model.seen)} photos of {model.table_name}" + _foreign(model),
                "semantic_columns": _semantic_columns(model),
                "channels": int(model.network.standardise.mean.shape[0]),
                **_smaller(model),
            },
            inputs=model.inputs,
            counts={"pool": len(model.pool), "parameters": sum(p.numel() for p in model.network.parameters())},
            notes={
                **{key: value for key, value in (notes or {}).items() if key != "borrowed"},  # it has its own now
                "features": {role: {k: part[k] for k in _PLACES if k in part} for role, part in model.features.items()},
            },
        )


def _smaller(model: Model) -> dict[str, Any]:
    """What the manifest says of a compact pool, and of an index over it."""
    pool, found = model.pool, {}
    if is_compact(model):
        form = "int8" if isinstance(pool.semantic, PackedRows) else "float16"
        found["compact"] = {"nodes": pool.nodes.shape[1], "semantic": form}
    if pool.index is not None:
        found["index"] = pool.index.plan.config
    return found


def _foreign(model: Model) -> str:
    """What is not known of the photos that the features' makers had seen, in words."""
    parts = sorted({part["extraction"]["seen"] for part in model.features.values() if "seen" in part["extraction"]})
    return f"; those of its features' makers: {', '.join(parts)}" if parts else ""


def save_reducer(reducer: Reducer, recipe: Recipe, history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write reducer.safetensors and reducer.json, which `recipes.load_reducer` reads."""
    save_file(contiguous_state(reducer), folder / "reducer.safetensors")
    sizes = {"channels": reducer.standardise.mean.shape[0], "values": bins(reducer)}
    write_json(folder / "reducer.json", {"recipe": recipe.to_json(), **sizes, "history": list(history)})


def bins(reducer: Reducer) -> int:
    """S, the score values a reducer predicts."""
    return next(layer.out_features for layer in reversed(reducer.head) if isinstance(layer, nn.Linear))


_WHOLE = 2  # format of a model that is not compact: older versions read it, too
_PLACES = ("name", "weights")  # of features: a label and where a file lay, no part of what they are


def _identity(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in _PLACES}


def finish_model(
    building: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    counts: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> Manifest:
    """Write the manifest over all files of a model folder that is being built."""
    for path in building.rglob("*.safetensors"):
        make_ordinary(path)
    paths = sorted(path.relative_to(building).as_posix() for path in building.rglob("*") if path.is_file())
    # JSON and back: what is digested is what a reader will find
    manifest = Manifest(
        kind="model",
        format=FORMATS["model"] if "compact" in config else _WHOLE,
        config=json.loads(json.dumps(config)),
        files={path: digest_file(building / path) for path in paths},
        inputs=dict(inputs),
        counts=dict(counts),
        notes=dict(notes),
    )
    write_manifest(building, manifest)
    return manifest


def _save_pool(model: Model, folder: Path) -> None:
    pool = model.pool
    folder.mkdir()
    write_lines(folder / "ids.txt", pool.ids)
    write_lines(folder / "pixels.txt", pool.pixels)
    write_lines(folder / "groups.txt", pool.groups)
    write_array(folder / "votes.npy", pool.distributions * pool.totals[:, None])
    if pool.alone is not None:
        write_array(folder / "alone.npy", pool.alone)
    if isinstance(pool.semantic, PackedRows):
        packed = pool.semantic.taken(pool.rows)
        write_array(folder / "semantic.npy", packed.codes)
        write_array(folder / "semantic_scale.npy", packed.scales)
    elif _semantic_columns(model) is None:
        _write_rows(folder / "semantic.npy", pool.semantic, pool.rows)
    if model.uses_references:  # a network that never consults the pool does not carry its node features
        _write_rows(folder / "nodes.npy", pool.nodes, pool.rows)
    if pool.index is not None:
        pool.index.save(folder)


def _semantic_columns(model: Model) -> list[int] | None:
    """Which columns of the pool's nodes its semantic features are: first and last + 1, or None."""
    semantic, nodes = model.features["semantic"], model.features.get("nodes", {})
    if (
        not model.uses_references
        or is_compact(model)
        or model.recipe.takes_maps
        or semantic["digest"] != nodes.get("digest")
    ):
        return None
    (first, end), (start, stop) = semantic["span"], nodes["span"]
    return [first - start, end - start] if start <= first and end <= stop else None


def _write_rows(path: Path, array: NDArray[Any], rows: IntArray, block: int = 8192) -> None:
    """Rows of a perhaps memory-mapped array as float16, block by block: a pool of AVA's size is 4 GB."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(rows), array.shape[1])}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), block):  # not through a memory map, which would stay in memory as a whole
            file.write(stored_rows(array, rows[start : start + block]).astype("<f2").tobytes())


def load_model(folder: Path, *, device: str = "cpu", verify: bool = True) -> tuple[Model, Manifest]:
    """Read `MODEL/`; refuses what is damaged, and a converted checkpoint, which has no pool and no backbone."""
    manifest = read_manifest(folder, "model")
    if verify:
        verify_files(folder, manifest)
    config = manifest.config
    if "pool/ids.txt" not in manifest.files:
        raise UsageError(
            f"{folder} is a converted checkpoint: it has no pool and no backbone, so it cannot see photos; "
            f"milnet.published.predict takes its node features directly"
        )
    try:
        recipe = Recipe.of(read_json(folder / "recipe.json"))
        weights = load_file(folder / "weights.safetensors")
        last = last_layer(recipe, config["features"])
        network = make_network(recipe, _channels(config), len(config["values"]), int(config["seed"]), last)
        if "compact" in config:
            network = compact_network(network, config["compact"])
        network.load_state_dict(weights)
        votes = read_array(folder / "pool" / "votes.npy")
        columns, whole = config.get("semantic_columns"), "pool/nodes.npy" in manifest.files
        nodes = read_array(manifest.place(folder, "pool/nodes.npy"), mmap=True) if whole else None
        semantic: Any
        if "pool/semantic_scale.npy" in manifest.files:
            codes = read_array(folder / "pool" / "semantic.npy", mmap=True)
            semantic = PackedRows(codes, read_array(folder / "pool" / "semantic_scale.npy"))
        elif columns is None:
            semantic = read_array(folder / "pool" / "semantic.npy", mmap=True)
        elif nodes is None:
            raise ValueError("no pool/nodes.npy to take the semantic features from")
        else:
            semantic = nodes[:, columns[0] : columns[1]]
        pool = RatedPool(
            ids=read_lines(folder / "pool" / "ids.txt"),
            pixels=read_lines(folder / "pool" / "pixels.txt"),
            groups=read_lines(folder / "pool" / "groups.txt"),
            distributions=votes / votes.sum(1, keepdims=True),
            totals=votes.sum(1),
            semantic=semantic,
            nodes=semantic[:, :0] if nodes is None else nodes,
            rows=np.arange(len(votes), dtype=np.int64),
            near_duplicate=config["near_duplicate"],
            alone=read_array(folder / "pool" / "alone.npy") if "pool/alone.npy" in manifest.files else None,
            index=Index.load(folder / "pool") if "pool/index.json" in manifest.files else None,
        )
        seen = read_seen(folder / "seen.txt")
        doubt = Doubt.of_json(read_json(folder / "calibration.json"))
        history = read_json(folder / "log.json")
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder} does not hold together ({error}): train it again") from error
    model = Model(
        recipe=recipe,
        network=network.to(recipe.device(device)).eval(),
        values=np.array(config["values"], dtype=np.float64),
        pool=pool,
        features={
            role: {**part, **manifest.notes["features"].get(role, {})} for role, part in config["features"].items()
        },
        seen=seen,
        seed=config["seed"],
        table_name=config["table"],
        threshold=config["threshold"],
        side=config["side"],
        group=config["group"],
        epochs=config["epochs"],
        history=history,
        doubt=doubt,
        inputs=manifest.inputs,
    )
    if "reducer.safetensors" in manifest.files:
        model.reducer, model.reducer_recipe, model.reducer_history = load_reducer(folder)
    return model, manifest


def _channels(config: Mapping[str, Any]) -> int:
    """Numbers a photo that the network takes."""
    if "channels" in config:
        return int(config["channels"])
    start, end = config["features"]["nodes"]["span"]
    return int(end) - int(start)
