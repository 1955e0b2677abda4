"""test: a trained model or a converted checkpoint on the test photos of a data set, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, command
from milnet.cli.dataset import finished, finished_import, plain, ready_data
from milnet.errors import UsageError

if TYPE_CHECKING:
    from milnet.artifacts import Manifest


@command("test")
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
    from milnet.artifacts import read_manifest
    from milnet.cli.measure import evaluate_
    from milnet.cli.numbers import features as extract_
    from milnet.cli.numbers import references as references_
    from milnet.datasets import format_name

    manifest = read_manifest(eval_model, "model")
    name = format_name(dataset)
    if data is None:
        own = eval_model.with_name(eval_model.name + ".data")
        fits = finished_import(own, name)
        data = own if fits else eval_model.with_name(f"{eval_model.name}.data-{name}")
    ready_data(context, name, dataroot, data)
    chosen: dict[str, Any] = {}
    if "checkpoint" in manifest.inputs:
        if published_features is not None and not finished(data, "published"):
            plain(extract_)(context, data, published=published_features)
        if published_references and not (data / "references" / "published" / "manifest.json").is_file():
            plain(references_)(context, data, published=published_references)
        if not any((data / "features").glob("*/manifest.json")):
            raise UsageError(
                f"{eval_model} is a converted checkpoint, which has no backbone: pass the files with its features, "
                f"--published-features FOLDER (and --published-references LIST for its references)"
            )
        chosen = {"references": "published"} if published_references else {}
        if published_features is not None:
            chosen |= {"semantic": "published", "nodes": "published"}
    else:
        names = _features_of(context, eval_model, manifest, data, weights, semantic_weights)
        chosen = {"semantic": names[0], "nodes": names[1]}
    result: Mapping[str, Any] = plain(evaluate_)(context, eval_model, data, output=output, **chosen)
    return result


def _features_of(
    context: Context, model: Path, manifest: Manifest, data: Path, weights: str | None, semantic_weights: str | None
) -> tuple[str, str]:
    """The features of `data` that a model needs, NAME:RANGE for semantic and nodes; made where they are not there."""
    from milnet.annotations import load_table
    from milnet.artifacts import read_manifest
    from milnet.checkpoints import load_model
    from milnet.extraction import extract, load_extractor
    from milnet.recipes import load_reducer
    from milnet.reduction import apply_reducer
    from milnet.scoring import where_weights

    fitted, _ = load_model(model)
    table, _ = load_table(data)
    folder = data / "features"
    made = {path.parent.name: read_manifest(path.parent, "features") for path in sorted(folder.glob("*/manifest.json"))}
    names = []
    for role in ("semantic", "maps" if fitted.recipe.takes_maps else "nodes"):
        part = fitted.features[role]
        label = part["name"].removesuffix(":wide").partition(":")
        given, option = (semantic_weights, "--semantic-weights") if role == "semantic" else (weights, "--weights")
        fitting = [name for name, one in made.items() if _is_kind(one, part["extraction"], maps=role == "maps")]
        if not fitting:
            config = part["extraction"]
            reducing = "reducer" in config
            pooling = part.get("pooling") or (config.get("wide") or {}).get("pooling")
            how: Any = {"offline": context.offline, "device": context.compute_device(), "pooling": pooling}
            place = where_weights(part, given, option)
            extractor = load_extractor(config, place, **how)
            with context.progress() as progress:
                if reducing:
                    reducer, _, _ = load_reducer(model)
                    one = apply_reducer(
                        reducer, table, extractor, folder / label[0], dict(config), weights=place, progress=progress
                    )
                else:
                    stored: Any = "float16" if role == "maps" else None
                    one = extract(table, folder / label[0], extractor, weights=place, wide=stored, progress=progress)
            made[label[0]] = one
            fitting = [label[0]]
        names.append(fitting[0] if role == "maps" else f"{fitting[0]}:{label[2] or 'taps'}")
    return names[0], names[1]


def _is_kind(one: Manifest, extraction: Mapping[str, Any], *, maps: bool) -> bool:
    """Whether features were made as a model's were."""
    config = dict(one.config)
    stored = config.get("wide")
    if "reducer" not in extraction:
        config.pop("wide", None)
    return config == dict(extraction) and (not maps or stored is not None)
