"""The whole chain by the name of a data set: what `train --dataset NAME --dataroot DIR` and `test` share.

Both only call import, features, reduce, train and evaluate, in that order, and pass over what is there already: stopped
at any moment, the same command goes on. What they make in between lies in DATA, `MODEL.data` unless --data says where.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context
from milnet.errors import ArtifactError, UsageError

WITH = "With --dataset"
Dataset = Annotated[
    str | None,
    typer.Option(help="Train on a data set by its name (ava-19928, ava-19998, ...).", rich_help_panel=WITH),
]
Dataroot = Annotated[
    Path | None, typer.Option(help="Folder of the data set.", rich_help_panel=WITH, show_default=False)
]
Work = Annotated[
    Path | None, typer.Option("--data", help="DATA folder.", rich_help_panel=WITH, show_default="MODEL.data")
]


@dataclass(frozen=True)
class Chain:
    """Which networks make which features. The defaults are the paper's."""

    backbone: str = "mlsp"
    weights: str = "cached"
    semantic_backbone: str = "resnet50"
    semantic_weights: str = "cached"
    maps: str = "auto"
    size: int | None = None
    reduce: tuple[str, ...] = ()  # settings of the reducer


def ready_data(context: Context, dataset: str, dataroot: Path, data: Path) -> Path:
    """Import the data set into `data`, unless it is there already; refuses a DATA folder of another one."""
    from milnet.artifacts import digest_file, read_manifest
    from milnet.cli.data import import_
    from milnet.datasets import format_name
    from milnet.datasets.ava import seed_layout

    name = format_name(dataset)
    options: dict[str, Any] = {}
    source = dataroot
    if name in ("ava-19928", "ava-19998"):
        source, found = seed_layout(dataroot, "19928" if name == "ava-19928" else "19998")
        options = {"train_list": found.train_list, "test_list": found.test_list, "images": found.images}
    if (data / "manifest.json").is_file():
        manifest = read_manifest(data, "data")
        same = source.is_dir() or manifest.inputs.get("labels") == digest_file(source)
        if manifest.config["source"].get("format") != name or not same:
            raise ArtifactError(
                f"{data} holds {manifest.config['source'].get('format')} from other labels, expected {name} of "
                f"{dataroot}: choose another folder with --data"
            )
        context.say(f"{data}: imported already")
        return data
    plain(import_)(context, name, source, data, **options)
    return data


def ready_features(context: Context, data: Path, chain: Chain) -> tuple[str, str]:
    """Extract and reduce what is not there yet; the names of the semantic and the node features."""
    from milnet.cli.numbers import features, reduce

    semantic, nodes = (name.replace("/", "-") for name in (chain.semantic_backbone, chain.backbone))
    if semantic == nodes and chain.weights != chain.semantic_weights:
        raise UsageError(f"{chain.backbone} cannot have two sets of weights: {chain.weights}, {chain.semantic_weights}")
    maps = _maps(context, data, chain)
    wide = maps if maps in ("float16", "int8") else None
    if not finished(data, nodes):
        plain(features)(context, data, chain.backbone, weights=chain.weights, size=chain.size, wide=wide)
    if not finished(data, semantic):
        plain(features)(context, data, chain.semantic_backbone, weights=chain.semantic_weights)
    if maps == "narrow":
        return semantic, nodes
    reduced = f"{nodes}-reduced"
    if not finished(data, reduced):
        stream = {"stream": True, "weights": chain.weights} if wide is None else {}
        plain(reduce)(context, data, features=nodes, settings=list(chain.reduce), resume=True, **stream)
    return semantic, reduced


def finished(data: Path, name: str) -> bool:
    """Whether `data` has complete features of that name."""
    return (data / "features" / name / "manifest.json").is_file()


def _maps(context: Context, data: Path, chain: Chain) -> str:
    """How the reducer gets its maps; `auto` stores them where they fit into half of the free space."""
    from milnet.annotations import load_table
    from milnet.extraction import wide_bytes
    from milnet.features import Features

    if chain.maps not in ("auto", "float16", "int8", "stream", "narrow"):
        raise UsageError(f"--maps {chain.maps}: expected auto, float16, int8, stream or narrow")
    if chain.maps != "auto":
        return chain.maps
    table, _ = load_table(data, verify=False)
    nodes = chain.backbone.replace("/", "-")
    if finished(data, nodes):
        stored = Features(data / "features" / nodes, table).manifest.config.get("wide", {}).get("stored")
        return str(stored or "stream")
    free, channels = shutil.disk_usage(data).free, 16928
    for form in ("float16", "int8"):
        need = wide_bytes(len(table), channels, form)
        if need < free / 2:
            context.say(f"maps are stored as {form}: up to {need / 1e9:.1f} GB of {free / 1e9:.1f} GB free")
            return form
    context.say("maps do not fit the disk: they are made anew in each epoch (--maps narrow does without them)")
    return "stream"


def train_by_name(
    context: Context,
    dataset: str,
    dataroot: Path,
    output: Path,
    data: Path | None,
    chain: Chain,
    *,
    overwrite: bool,
    **options: Any,
) -> Mapping[str, Any]:
    """`milnet train --dataset`."""
    from milnet.cli.train import train

    if output.exists() and not overwrite:
        raise ArtifactError(f"{output} exists already: choose another name, or pass --overwrite to replace it")
    folder = ready_data(context, dataset, dataroot, data or output.with_name(output.name + ".data"))
    semantic, nodes = ready_features(context, folder, chain)
    going_on = output.with_name(output.name + ".run").exists()
    result: Mapping[str, Any] = plain(train)(
        context, folder, output=output, semantic=semantic, nodes=nodes, resume=going_on, overwrite=overwrite, **options
    )
    return result


def finished_import(data: Path, name: str) -> bool:
    """Whether `data` is a complete import of that format."""
    from milnet.artifacts import read_manifest

    if not (data / "manifest.json").is_file():
        return False
    return bool(read_manifest(data, "data").config["source"].get("format") == name)


def plain(wrapped: Any) -> Any:
    """The function behind a command, without exit codes and printing of --json."""
    return wrapped.__wrapped__
