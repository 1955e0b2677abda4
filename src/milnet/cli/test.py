"""test: a trained model or a converted checkpoint on the test photos of a data set, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, command, refuse_several
from milnet.cli.dataset import finished, plain, ready_data
from milnet.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from milnet.annotations import Table
    from milnet.artifacts import Manifest
    from milnet.recipes import Model


@command("test", several=True)
def test(
    context: Context,
    dataset: Annotated[str, typer.Option(help="ava-19928, ava-19998, ...", show_default=False)],
    dataroot: Annotated[Path, typer.Option(help="Folder of the data set.", show_default=False)],
    eval_model: Annotated[Path, typer.Option("--eval_model", "--eval-model", help="MODEL folder.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="DATA folder.", show_default="MODEL.data, else MODEL.data-NAME")
    ] = None,
    published_features: Annotated[
        Path | None,
        typer.Option(help="For a converted checkpoint: the published feature files.", show_default=False),
    ] = None,
    published_references: Annotated[
        list[Path] | None,
        typer.Option(help="For a converted checkpoint: the published lists of references.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the node backbone.", show_default="as at training")
    ] = None,
    semantic_weights: Annotated[
        str | None, typer.Option(help="Weights of the semantic backbone.", show_default="as at training")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="results.json to write.", show_default=False)
    ] = None,
) -> Mapping[str, Any]:
    """Measure a model on the test photos of a data set, by its name; refuses photos it has seen."""
    from milnet.annotations import load_table
    from milnet.artifacts import read_manifest
    from milnet.checkpoints import load_model
    from milnet.cli.measure import evaluate_
    from milnet.datasets import format_name
    from milnet.evaluation import refuse_other_values
    from milnet.pool import refuse_seen
    from milnet.results import check_results_path

    if output is not None:
        check_results_path(output)
    manifest = read_manifest(eval_model, "model")
    name = format_name(dataset)
    if data is None:
        own = eval_model.with_name(eval_model.name + ".data")
        data = own if _imported_as(own, name) else eval_model.with_name(f"{eval_model.name}.data-{name}")
    ready_data(context, name, dataroot, data)
    table, _ = load_table(data)
    if "checkpoint" in manifest.inputs:
        chosen = _published_files(context, eval_model, data, published_features, published_references)
    else:
        fitted, _ = load_model(eval_model)
        # Before features are made; when they are there, `evaluate` compares the pixels too.
        refuse_other_values(fitted, table)
        refuse_seen(table, None, table.rows_where("split", "test"), fitted.seen, "the model")
        chosen = _features_of(context, fitted, table, data, weights, semantic_weights)
    result: Mapping[str, Any] = plain(evaluate_)(context, eval_model, data, output=output, **chosen)
    return result


def _imported_as(data: Path, name: str) -> bool:
    """Whether `data` is a complete import of that format."""
    from milnet.artifacts import read_manifest

    if not (data / "manifest.json").is_file():
        return False
    return bool(read_manifest(data, "data").config["source"].get("format") == name)


def _published_files(
    context: Context, model: Path, data: Path, features: Path | None, lists: list[Path] | None
) -> dict[str, Any]:
    """The published code's feature files and lists, read into `data`; what `evaluate` is to use."""
    from milnet.artifacts import digest_file, read_manifest
    from milnet.cli.numbers import features as extract_
    from milnet.cli.numbers import references as references_

    chosen: dict[str, Any] = {}
    if features is not None:
        if not finished(data, "published"):
            plain(extract_)(context, data, published=features)
        was = read_manifest(data / "features" / "published", "features").notes.get("source")
        if was != str(features.resolve()):
            raise ArtifactError(
                f"{data / 'features' / 'published'} was read from {was}, not from {features.resolve()}: choose another "
                f"folder with --data"
            )
        chosen |= {"semantic": "published", "nodes": "published"}
    if lists:
        store = data / "references" / "published"
        if not (store / "manifest.json").is_file():
            with lists[0].open("rb") as file:  # how many references a line has, the first one tells
                count = len(file.readline().split()) - 1
            plain(references_)(context, data, k=max(count, 1), published=lists)
        inputs = read_manifest(store, "references").inputs
        if {digest_file(path) for path in lists} != {value for name, value in inputs.items() if name != "ids"}:
            raise ArtifactError(f"{store} was read from other lists than these: choose another folder with --data")
        chosen["references"] = "published"
    if not any((data / "features").glob("*/manifest.json")):
        raise UsageError(
            f"{model} is a converted checkpoint, which has no backbone: pass the files with its features, "
            f"--published-features FOLDER (and --published-references LIST for its references)"
        )
    return chosen


def _features_of(
    context: Context, model: Model, table: Table, data: Path, weights: str | None, semantic_weights: str | None
) -> dict[str, Any]:
    """The features of `data` that a model needs, NAME:RANGE for semantic and nodes; made where they are not there."""
    from milnet.artifacts import read_manifest
    from milnet.extraction import load_extractor
    from milnet.reduction import apply_reducer
    from milnet.scoring import where_weights
    from milnet.storing import extract

    folder = data / "features"
    made = {path.parent.name: read_manifest(path.parent, "features") for path in sorted(folder.glob("*/manifest.json"))}
    chosen: dict[str, Any] = {}
    for role in ("semantic", "maps" if model.recipe.takes_maps else "nodes"):
        part = model.features[role]
        label, _, span = part["name"].removesuffix(":wide").partition(":")
        fitting = [name for name, one in made.items() if _is_kind(one, part["extraction"], maps=role == "maps")]
        if fitting:
            name = fitting[0]
        else:
            refuse_several("features")
            name = next(free for i in range(len(made) + 1) if (free := f"{label}-{i}" if i else label) not in made)
            given, option = (semantic_weights, "--semantic-weights") if role == "semantic" else (weights, "--weights")
            pooling = part.get("pooling") or (part["extraction"].get("wide") or {}).get("pooling")
            place, _ = where_weights(part, given, option)  # features to be measured: no weights that merely stand in
            how: Any = {"offline": context.offline, "device": context.compute_device(), "pooling": pooling}
            extractor = load_extractor(part["extraction"], place, **how)
            with context.progress() as progress:
                if "reducer" in part["extraction"]:
                    one = apply_reducer(model, table, extractor, folder / name, weights=place, progress=progress)
                else:
                    stored: Any = "float16" if role == "maps" else None
                    one = extract(table, folder / name, extractor, weights=place, wide=stored, progress=progress)
            made[name] = one
        chosen["semantic" if role == "semantic" else "nodes"] = name if role == "maps" else f"{name}:{span or 'taps'}"
    return chosen


def _is_kind(one: Manifest, extraction: Mapping[str, Any], *, maps: bool) -> bool:
    """Whether features were made as a model's were."""
    config = dict(one.config)
    stored = config.get("wide")
    if "reducer" not in extraction:
        config.pop("wide", None)
    return config == dict(extraction) and (not maps or stored is not None)
