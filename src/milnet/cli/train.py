"""train: from numbers to a model, or from a data set by its name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import (
    Context,
    Group,
    Nodes,
    Overwrite,
    RecipeName,
    Resume,
    Seed,
    Semantic,
    Settings,
    Stored,
    command,
    command_line,
    run_folder,
    training_side,
    warn_of_norms,
)
from milnet.cli.dataset import WITH, Chain, Dataroot, Dataset, Work, train_by_name
from milnet.cli.numbers import digest_rows
from milnet.errors import ArtifactError, MilnetError, ProcessError, UsageError
from milnet.places import find_data


def _find_data(value: Path | None) -> Path | None:
    return None if value is None else find_data(value)


@command("train", several=True)
def train(
    context: Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="DATA folder or `bundled`; or --dataset and --dataroot.", show_default=False, callback=_find_data
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="MODEL folder to make.", show_default=False)
    ] = None,
    recipe: RecipeName = "published",
    settings: Settings = None,
    split: Annotated[
        str | None, typer.Option(help="Value of the column `split` to train on.", show_default="train")
    ] = None,
    group: Group = None,
    seed: Seed = 0,
    semantic: Semantic = None,
    nodes: Nodes = None,
    references: Stored = None,
    resume: Resume = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard curves beside the model.")
    ] = False,
    overwrite: Overwrite = False,
    dataset: Dataset = None,
    dataroot: Dataroot = None,
    work: Work = None,
    backbone: Annotated[str, typer.Option(help="Makes the node features.", rich_help_panel=WITH)] = "mlsp",
    weights: Annotated[str, typer.Option(help="Its weights, as in `features`.", rich_help_panel=WITH)] = "cached",
    semantic_backbone: Annotated[str, typer.Option(help="Finds the references.", rich_help_panel=WITH)] = "resnet50",
    semantic_weights: Annotated[str, typer.Option(help="Its weights.", rich_help_panel=WITH)] = "cached",
    maps: Annotated[
        str,
        typer.Option(
            help="Maps for the reducer: auto | float16 | int8 (stored) | stream (made anew) | narrow (no reducer)",
            rich_help_panel=WITH,
        ),
    ] = "auto",
    reduce_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--reduce-set", metavar="FIELD=VALUE", help="Change a field of the reducer.", rich_help_panel=WITH
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="As in `features`, of the node features.", rich_help_panel=WITH)
    ] = None,
) -> Mapping[str, Any]:
    """Train a recipe on DATA, or on a data set by its name; the training photos become the model's pool.

    With --dataset everything in between is made as well, and a stopped command goes on without --resume.
    """
    if output is None:
        raise UsageError("expected a MODEL folder to make: -o MODEL")
    if dataset is not None or dataroot is not None:
        if data is not None or dataset is None or dataroot is None:
            raise UsageError("expected either DATA, or --dataset NAME and --dataroot DIR")
        if semantic is not None or nodes is not None:
            raise UsageError("--semantic and --nodes go with DATA; with --dataset the backbones decide")
        chain = Chain(
            backbone, weights, semantic_backbone, semantic_weights, maps, size, tuple(reduce_settings or ()), seed,
            split, group,
        )  # fmt: skip
        return train_by_name(
            context, dataset, dataroot, output, work, chain, recipe=recipe, settings=settings, overwrite=overwrite,
            references=references, tensorboard=tensorboard,
        )  # fmt: skip
    if data is None:
        raise UsageError("expected DATA, or --dataset NAME and --dataroot DIR")
    import torch

    from milnet import processes
    from milnet.annotations import load_table
    from milnet.checkpoints import save_model
    from milnet.features import load_feature_set
    from milnet.pool import find_store
    from milnet.recipe import load_recipe
    from milnet.recipes import fit
    from milnet.splits import Split, training_rows
    from milnet.training import Run, write_tensorboard

    device = context.compute_device()
    if output.exists() and not overwrite:
        raise ArtifactError(f"{output} exists already: choose another name, or pass --overwrite to replace it")
    chosen = load_recipe(recipe, settings or [])
    warn_of_norms(context, chosen, device)
    table, manifest = load_table(data)
    features = load_feature_set(data, table, semantic=semantic, nodes=nodes)
    if group is not None:
        table.column(group)
    if features.reducer is not None and features.config["semantic"]["digest"] == features.config["nodes"]["digest"]:
        context.warn("references are found by reduced features: `milnet score` cannot use such a model")
    rows, tested = training_side(context, table, features, split)
    folder = run_folder(output, resume=resume, overwrite=overwrite)
    identity = {
        "recipe": asdict(chosen),
        "data": manifest.digest,
        "features": {role: part["digest"] for role, part in features.config.items()},
        "rows": digest_rows(rows),
        "group": group,
        "seed": seed,
        "device": device,
        "torch": torch.__version__,
    }
    run = Run(folder, identity)
    began = time.monotonic()
    store = find_store(data, features, training_rows(table), group, references)
    try:
        with context.progress() as progress:
            how: Any = {"device": device, "run": run, "store": store, "calibrate": True, "progress": progress}
            model = fit(chosen, table, features, Split(rows, tested, group), seed, **how)
    except MilnetError as error:
        if not isinstance(error, ProcessError):  # that one says nothing against this training
            run.remove_if_empty()
        raise
    model.inputs = {**model.inputs, "data": manifest.digest}
    notes = {"command": command_line()}
    saved = processes.from_first(lambda: save_model(model, output, overwrite=overwrite, notes=notes))
    if tensorboard and processes.first():
        write_tensorboard(run, output.with_name(output.name + ".tensorboard"))
    waited = run.waited()
    run.remove()
    best = model.history[model.epochs - 1]
    context.say(
        f"{output}: {model.recipe.name} on {len(model.pool):,} photos, {model.epochs} epochs, "
        f"{sum(p.numel() for p in model.network.parameters()):,} parameters, {time.monotonic() - began:.1f} s"
        f"{f' ({waited:.1%} of the training spent waiting for data)' if waited > 0.01 else ''}, "
        f"digest {saved.digest[:12]}"
    )
    context.say(f"validation while choosing the epochs: SRCC {best['srcc']:.3f}, EMD2 {best['emd2']:.4f} (optimistic)")
    return {
        "model": str(output),
        "digest": saved.digest,
        "recipe": asdict(model.recipe),
        "epochs": model.epochs,
        "pool": len(model.pool),
        "validation": best,
        "waiting": waited,  # share of the training spent waiting for data
    }
