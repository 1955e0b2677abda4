"""Checkpoints of the published code: state dict -> `MODEL/`, and predictions equal to the published model's.

A published checkpoint is a state dict of 179 entries: refer_reduce_fc.{0,1}, then gcn1..gcnL with g, W, theta, phi
(each a convolution .0 and a batch norm .1), then gcn_fc (never used) and fc. It is loaded weights-only: no pickled code
runs. The result has no pool and no backbone; it is a function of node features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from milnet.annotations import IntArray, Table
from milnet.artifacts import Manifest, digest_file, new_folder, read_json, read_manifest, verify_files, write_json
from milnet.checkpoints import finish_model
from milnet.doubt import Doubt
from milnet.errors import ArtifactError, UsageError, WeightsError
from milnet.features import FeatureSet
from milnet.model.graph import Graph
from milnet.pool import RatedPool
from milnet.recipe import Recipe
from milnet.recipes import Model
from milnet.training import contiguous_state

_PARTS = {"g": "g", "W": "out", "theta": "theta", "phi": "phi"}  # published name -> ours, inside a layer
_UNUSED = ("gcn_fc.weight", "gcn_fc.bias")
_PREFIXES = ("module.", "model.")  # left by data-parallel training


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a published checkpoint file, names as published. Raises WeightsError for anything else."""
    if not path.is_file():
        raise WeightsError(f"{path} is no file: expected a checkpoint of the published code (.pth)")
    try:
        data: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except Exception as error:  # unpickling foreign files fails in many ways, all with one meaning
        reason = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{path} cannot be loaded as plain tensors ({type(error).__name__}: {reason}): "
            f"expected a state dict; files that need pickled code are refused"
        ) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"{path} holds no state dict: expected names with tensors, got {type(data).__name__}")
    state = {str(name): tensor for name, tensor in data.items()}
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def graph_from_state(state: Mapping[str, Tensor], where: str = "the checkpoint") -> Graph:
    """The network of a published state dict; sizes are read from the tensors. WeightsError names what differs."""
    depth = len({match[1] for name in state if (match := re.match(r"gcn(\d+)\.", name))})
    try:
        width, features = state["refer_reduce_fc.0.weight"].shape[:2]
        bins, flat = state["fc.weight"].shape
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{where} is not of the published graph network: expected refer_reduce_fc.0.weight, fc.weight ({error!r})"
        ) from error
    dtype = state["fc.weight"].dtype
    network = Graph(features, bins, width=width, depth=depth, references=flat // width - 1).to(dtype)
    network.standardise.limit = float("inf")  # the published network takes its features as they are
    names = published_names(depth)
    target = network.state_dict()
    missing = sorted(names.keys() - state.keys())
    unknown = sorted(state.keys() - names.keys() - set(_UNUSED))
    wrong = sorted(name for name in names.keys() & state.keys() if not _fits(state[name], target[names[name]]))
    if missing or unknown or wrong:
        raise WeightsError(
            f"{where} is not of the published graph network: "
            f"{len(missing)} entries missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}), {len(wrong)} of another size ({', '.join(wrong[:3])})"
        )
    # Published convolutions have windows of 1 (or 1x1): the same numbers in another shape.
    target.update({ours: state[name].reshape(target[ours].shape) for name, ours in names.items()})
    network.load_state_dict(target)
    return network.eval()


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    """Whether the two hold the same numbers in the same order: equal shapes but for windows of 1."""
    return theirs.numel() == ours.numel() and theirs.shape[:2] == ours.shape[:2]


def published_names(depth: int) -> dict[str, str]:
    """Published entry name -> our entry name, in the order of the published state dict, without what is never used."""
    blocks = {"refer_reduce_fc": "reduce"}
    for layer in range(depth):
        blocks |= {f"gcn{layer + 1}.{theirs}": f"layers.{layer}.{ours}" for theirs, ours in _PARTS.items()}
    entries = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    names = {f"{theirs}.{e}": f"{ours}.{e}" for theirs, ours in blocks.items() for e in entries}
    return names | {"fc.weight": "read.weight", "fc.bias": "read.bias"}


def convert(checkpoint: Path, folder: Path, *, overwrite: bool = False) -> Manifest:
    """Turn a published checkpoint into a `MODEL/` folder without pool and backbone."""
    network = graph_from_state(read_checkpoint(checkpoint), str(checkpoint))
    bins, flat = network.read.weight.shape
    width, features = flat // (network.references + 1), network.standardise.mean.shape[0]
    recipe = Recipe(
        name="published",
        model="graph",
        width=width,
        depth=len(network.layers),
        references=network.references,
        standardise=False,
    )
    with new_folder(folder, "model", overwrite=overwrite) as building:
        save_file(contiguous_state(network), building / "weights.safetensors")
        write_json(building / "recipe.json", asdict(recipe))
        return finish_model(
            building,
            config={
                "values": [float(i) for i in range(1, bins + 1)],
                "features": {"nodes": {"span": [0, features]}},
                "seen": f"unknown ({checkpoint.name})",
                "flat": flat,
            },
            inputs={"checkpoint": digest_file(checkpoint)},
            counts={"parameters": sum(p.numel() for p in network.parameters())},
            notes={"checkpoint": str(checkpoint)},
        )


def load_converted(folder: Path) -> Graph:
    """The network of a converted checkpoint."""
    manifest = read_manifest(folder, "model")
    if "checkpoint" not in manifest.inputs:
        raise UsageError(f"{folder} was trained by milnet, not converted: use milnet.Scorer for it")
    verify_files(folder, manifest)
    state = load_file(folder / "weights.safetensors")
    recipe = Recipe.of(read_json(folder / "recipe.json"))
    if recipe.width is None or recipe.depth is None:
        raise ArtifactError(f"{folder} does not hold together: convert the checkpoint again")
    network = Graph(
        manifest.config["features"]["nodes"]["span"][1],
        len(manifest.config["values"]),
        width=recipe.width,
        depth=recipe.depth,
        references=recipe.looks_for(0),
    ).to(state["read.weight"].dtype)
    network.standardise.limit = float("inf")
    network.load_state_dict(state)
    return network.eval()


def predict(model: str | Path | Graph, x: NDArray[Any] | Tensor, *, batch: int = 256) -> NDArray[np.float64]:
    """Probabilities [B, S] of node features `x` [B, N, D], node 0 the photo, then its references, most similar first.

    `model`: a folder that `milnet convert` wrote, or its network. Equal to the published model's output to 1e-5.
    """
    network = model if isinstance(model, Graph) else load_converted(Path(model))
    nodes = torch.as_tensor(x, dtype=network.read.weight.dtype)
    expected = (network.references + 1, network.standardise.mean.shape[0])
    if nodes.ndim != 3 or tuple(nodes.shape[1:]) != expected:
        raise UsageError(f"expected node features [B, {expected[0]}, {expected[1]}], got {tuple(nodes.shape)}")
    with torch.inference_mode():
        return np.concatenate([network.from_nodes(part).exp().double().numpy() for part in torch.split(nodes, batch)])


def beside_pool(folder: Path, table: Table, features: FeatureSet, pool_rows: IntArray) -> Model:
    """A converted checkpoint with the rated photos of a table as its pool, so that it can be evaluated there.

    `features.nodes` must be what the checkpoint was trained on (its width is all that can be checked).
    """
    network = load_converted(folder).float()
    manifest = read_manifest(folder, "model")
    width = network.standardise.mean.shape[0]
    if features.nodes.shape[1] != width:
        raise UsageError(
            f"{folder} takes {width} node features, but {features.config['nodes']['name']} has "
            f"{features.nodes.shape[1]}: choose others with --nodes"
        )
    recipe = Recipe.of(read_json(folder / "recipe.json"))
    pool = RatedPool.of(table, features, pool_rows[features.readable[pool_rows]])
    return Model(
        recipe=recipe,
        network=network,
        values=np.array(manifest.config["values"]),
        pool=pool,
        features={},
        seen=(
            *((f"{table.id_space}:{id_}", digest) for id_, digest in zip(pool.ids, pool.pixels, strict=True)),
            *features.seen,
        ),
        seed=0,
        table_name=table.name,
        threshold=table.threshold,
        side=table.side,
        group=None,
        epochs=0,
        history=[],
        doubt=Doubt(),
        inputs=manifest.inputs,
    )
