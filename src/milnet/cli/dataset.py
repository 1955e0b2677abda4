"""The whole chain by the name of a data set: what `train --dataset NAME --dataroot DIR` and `test` share.

Both only call import, features, reduce, train and evaluate, in that order, and pass over what is there already when it
was made from the same files with the same options: stopped at any moment, the same command goes on. What they make in
between lies in DATA, `MODEL.data` unless --data says where. What is wrong with the options is said before any work.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, refuse_several, training_side
from milnet.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from milnet.artifacts import Manifest
    from milnet.extraction import Extractor
    from milnet.recipe import Recipe

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
_MAPS = ("auto", "float16", "int8", "stream", "narrow")


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
    seed: int = 0
    split: str | None = None
    group: str | None = None

    @property
    def nodes(self) -> str:
        """The name of the node features."""
        return self.backbone.replace("/", "-")

    @property
    def semantic(self) -> str:
        """The name of the semantic features."""
        return self.semantic_backbone.replace("/", "-")


def ready_data(context: Context, dataset: str, dataroot: Path, data: Path) -> Path:
    """Import the data set into `data`, unless just that is there already; refuses DATA made from other files."""
    from milnet.annotations import Problems
    from milnet.artifacts import differences, read_manifest
    from milnet.cli.data import import_
    from milnet.datasets import format_name, read_dataset

    name = format_name(dataset)
    if not (data / "manifest.json").is_file():
        plain(import_)(context, name, dataroot, data)
        return data
    manifest = read_manifest(data, "data")
    imported = read_dataset(name, dataroot, Problems())
    was = {"source": manifest.config["source"], "files": dict(manifest.inputs)}
    now = {"source": dict(imported.table.source), "files": dict(imported.inputs)}
    if was != json.loads(json.dumps(now)):
        raise ArtifactError(
            f"{data} was imported from other files than those of {dataroot} ({differences(was, now)}): choose another "
            f"folder with --data"
        )
    context.say(f"{data}: imported already")
    return data


def ready_features(
    context: Context, data: Path, chain: Chain, recipe: Recipe, nodes: Extractor, semantic: Extractor
) -> tuple[str, str]:
    """Extract and reduce what is not there yet; the names of the semantic and the node features."""
    from milnet.annotations import load_table
    from milnet.artifacts import read_json
    from milnet.cli.numbers import digest_rows, extract_features, reduce
    from milnet.features import Features, load_feature_set

    maps = _maps(context, data, chain, nodes)
    table, _ = load_table(data)
    wide = maps if maps in ("float16", "int8") else None
    # streamed maps are made later, from the photos
    both = [(chain.nodes, chain.weights, nodes if wide else replace(nodes, pooling=None))]
    if chain.semantic != chain.nodes:
        both.append((chain.semantic, chain.semantic_weights, semantic))
    for name, weights, extractor in both:
        stored = wide if name == chain.nodes else None
        if finished(data, name):
            made = Features(data / "features" / name, table)
            _refuse_other(made.manifest, extractor, stored, data / "features" / name)
        else:
            refuse_several("features")
            extract_features(context, table, data / "features" / name, extractor, weights, wide=stored)
    if maps == "narrow" or recipe.takes_maps:
        if recipe.takes_maps and wide is None:
            raise UsageError(f"the recipe {recipe.name} learns from stored maps: --maps float16 or int8, got {maps}")
        return chain.semantic, chain.nodes
    reduced = f"{chain.nodes}-reduced"
    if finished(data, reduced):
        features = load_feature_set(data, table, semantic=chain.semantic, nodes=reduced)
        rows, _ = training_side(context, table, features, chain.split)
        manifest = Features(data / "features" / reduced, table).manifest
        was = {key: manifest.notes.get(key) for key in ("seed", "group")}
        beneath = read_json(data / "features" / reduced / "reducer.json")["recipe"]
        wanted = _given(chain)
        if (
            manifest.inputs["maps"] != Features(data / "features" / chain.nodes, table).manifest.digest
            or manifest.inputs["rows"] != digest_rows(rows)
            or was != {"seed": chain.seed, "group": chain.group}
            or any(beneath[key] != value for key, value in wanted.items())
        ):
            raise ArtifactError(
                f"{data / 'features' / reduced} was reduced from other maps, on other training photos or with other "
                f"options (--seed, --split, --group, --reduce-set): remove it, or choose another folder with --data"
            )
        return chain.semantic, reduced
    stream = {} if wide is not None else {"stream": True, "weights": chain.weights}
    plain(reduce)(
        context, data, features=chain.nodes, semantic=chain.semantic, settings=list(chain.reduce), resume=True,
        seed=chain.seed, split=chain.split, group=chain.group, **stream,
    )  # fmt: skip
    return chain.semantic, reduced


def _given(chain: Chain) -> dict[str, Any]:
    """The fields of the reducer's recipe that --reduce-set names, with their values."""
    from dataclasses import asdict

    from milnet.recipe import load_recipe

    recipe = asdict(load_recipe("reducer", chain.reduce))
    return {field: recipe[field] for field in (setting.partition("=")[0].strip() for setting in chain.reduce)}


def _maps(context: Context, data: Path, chain: Chain, extractor: Extractor) -> str:
    """`auto` takes what is there or has begun, else what fits into half of the free space."""
    from milnet.annotations import load_table
    from milnet.artifacts import read_json, read_manifest
    from milnet.storing import wide_bytes

    if chain.maps != "auto":
        return chain.maps
    begun = data / "features" / f".{chain.nodes}.part" / "identity.json"
    if finished(data, chain.nodes):
        config: Mapping[str, Any] = read_manifest(data / "features" / chain.nodes, "features").config
        return str(config.get("wide", {}).get("stored", "stream"))
    if begun.is_file():
        return str(read_json(begun)["identity"]["config"].get("wide", {}).get("stored", "stream"))
    table, _ = load_table(data, verify=False)
    free = shutil.disk_usage(data).free
    for form in ("float16", "int8"):
        need = wide_bytes(len(table), extractor.backbone.wide_channels, form)
        if need < free / 2:
            context.say(f"maps are stored as {form}: {need / 1e9:.1f} GB of {free / 1e9:.1f} GB free")
            return form
    context.say("maps do not fit the disk: they are made anew in each epoch (--maps narrow does without them)")
    return "stream"


def _refuse_other(manifest: Manifest, extractor: Extractor, stored: str | None, folder: Path) -> None:
    """Raise ArtifactError when finished features are not what the options describe."""
    from milnet.artifacts import differences

    was, now = dict(manifest.config), json.loads(json.dumps(extractor.config))
    has = was.pop("wide", {})
    if stored is not None:
        was, now = {**was, "maps": has.get("stored")}, {**now, "maps": stored}
        was, now = {**was, "pooling": has.get("pooling")}, {**now, "pooling": extractor.pooling}
    if was != now:
        raise ArtifactError(
            f"{folder} was made with other options ({differences(was, now)}): remove it, or choose another folder with "
            f"--data"
        )


def finished(data: Path, name: str) -> bool:
    """Whether `data` has complete features of that name."""
    return (data / "features" / name / "manifest.json").is_file()


def check_chain(chain: Chain, recipe: str, settings: list[str]) -> Recipe:
    """The recipe; raises UsageError for whatever is wrong with the options of the chain."""
    from milnet.recipe import load_recipe

    chosen = load_recipe(recipe, settings)
    _given(chain)
    if chain.maps not in _MAPS:
        raise UsageError(f"--maps {chain.maps}: expected {', '.join(_MAPS)}")
    if chain.semantic == chain.nodes and chain.weights != chain.semantic_weights:
        raise UsageError(f"{chain.backbone} cannot have two sets of weights: {chain.weights}, {chain.semantic_weights}")
    return chosen


def train_by_name(
    context: Context,
    dataset: str,
    dataroot: Path,
    output: Path,
    data: Path | None,
    chain: Chain,
    *,
    recipe: str,
    settings: list[str] | None,
    overwrite: bool,
    **options: Any,
) -> Mapping[str, Any]:
    """`milnet train --dataset`."""
    from milnet.artifacts import read_manifest
    from milnet.cli.numbers import make_extractor
    from milnet.cli.train import train
    from milnet.datasets import format_name

    if output.exists():
        if not overwrite:
            raise ArtifactError(f"{output} exists already: choose another name, or pass --overwrite to replace it")
        read_manifest(output, "model")  # only a model is replaced
    format_name(dataset)
    chosen = check_chain(chain, recipe, settings or [])
    # Before all work: weights that are missing are missed now, not after a day.
    wide = None if chain.maps == "narrow" else "float16"
    makes_nodes = make_extractor(context, chain.backbone, chain.weights, size=chain.size, wide=wide)
    makes_semantic = make_extractor(context, chain.semantic_backbone, chain.semantic_weights)
    folder = ready_data(context, dataset, dataroot, data or output.with_name(output.name + ".data"))
    semantic, nodes = ready_features(context, folder, chain, chosen, makes_nodes, makes_semantic)
    going_on = output.with_name(output.name + ".run").exists() and not overwrite
    result: Mapping[str, Any] = plain(train)(
        context, folder, output=output, recipe=recipe, settings=settings, semantic=semantic, nodes=nodes,
        seed=chain.seed, split=chain.split, group=chain.group, resume=going_on, overwrite=overwrite, **options,
    )  # fmt: skip
    return result


def plain(wrapped: Any) -> Any:
    """The function behind a command, without exit codes and printing of --json; refused as the command would be."""
    if not wrapped.several:
        refuse_several(wrapped.__name__.strip("_"))
    return wrapped.__wrapped__
