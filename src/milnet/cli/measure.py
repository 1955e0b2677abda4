"""evaluate, crossvalidate, convert: honest figures about a model or a recipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import (
    Context,
    Data,
    Group,
    ModelFolder,
    Nodes,
    Overwrite,
    RecipeName,
    Semantic,
    Settings,
    Stored,
    command,
    command_line,
    load_measured,
    warn_of_norms,
)
from milnet.errors import UsageError
from milnet.places import looks_folder

if TYPE_CHECKING:
    from milnet.annotations import Table

Threshold = Annotated[
    float | None, typer.Option(help="A good photo has at least this score.", show_default="the data set's")
]
Side = Annotated[
    str | None, typer.Option(help=">= or >: whether the threshold itself is good.", show_default="the data set's")
]
_SHOWN = ("srcc", "plcc", "krcc", "accuracy", "mse", "emd1", "emd2")


@command("evaluate", several=True)
def evaluate_(
    context: Context,
    model: ModelFolder,
    data: Data,
    split: Annotated[str, typer.Option(help="Value of the column `split`; `all` for every photo.")] = "test",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="results.json to write.", show_default=False)
    ] = None,
    threshold: Threshold = None,
    side: Side = None,
    semantic: Semantic = None,
    nodes: Nodes = None,
    references: Stored = None,
) -> Mapping[str, Any]:
    """Measure a model on photos that no trained part has seen; refuses the others."""
    from milnet import processes
    from milnet.evaluation import evaluate, note_look
    from milnet.results import check_results_path, make_results, predictions_path, write_predictions, write_results

    if output is not None:
        check_results_path(output)
    device = context.compute_device()
    it = load_measured(context, model, data, split, semantic=semantic, nodes=nodes, references=references)
    fitted, table = it.model, _judged(it.table, threshold, side)
    predictions = evaluate(fitted, table, it.features, it.rows, split=split, store=it.store, device=device)
    looks = processes.from_first(lambda: note_look(looks_folder(data), it.digest, split, predictions.rows))
    results = make_results(
        "evaluation",
        table,
        predictions,
        command=command_line(),
        data={"name": table.name, "digest": it.data.digest, "source": dict(table.source)},
        features=it.features.config,
        recipe=asdict(fitted.recipe),
        folds={"label": split, "names": [split]},
        group=fitted.group,
        extra={"model": it.digest, "looks": looks, "seen": it.seen},
    )
    if output is not None and processes.first():
        write_results(output, results)
        write_predictions(predictions_path(output), table, predictions)
    skipped = len(it.rows) - len(predictions.rows)
    context.say(
        f"{fitted.recipe.name} on {len(predictions.rows):,} photos of {table.name}, split {split}"
        + (f"; {skipped:,} without features left out" if skipped else "")
    )
    show_metrics(context, {fitted.recipe.name: results["metrics"]}, results["accuracy"])
    times = "for the first time" if looks == 1 else f"{looks} times: each look makes its numbers a little less honest"
    context.say(f"this split has been looked at {times}")
    return results


@command("crossvalidate", several=True)
def crossvalidate_(
    context: Context,
    data: Data,
    recipe: RecipeName = "single",
    settings: Settings = None,
    folds: Annotated[str, typer.Option(help="A column, a csv FILE (image,fold), or a number of folds.")] = "5",
    group: Group = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, ...")] = 3,
    against: Annotated[
        str | None,
        typer.Option(
            help="A second recipe, as it stands, on the same folds; the paired difference is shown.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="results.json to write.", show_default=False)
    ] = None,
    threshold: Threshold = None,
    side: Side = None,
    semantic: Semantic = None,
    nodes: Nodes = None,
    references: Stored = None,
) -> Mapping[str, Any]:
    """Predict each fold by a model trained on the others. With -o, the same command goes on where it was stopped."""
    import numpy as np

    from milnet import processes
    from milnet.annotations import load_table
    from milnet.evaluation import crossvalidate, find_same_photos
    from milnet.features import load_feature_set
    from milnet.metrics import Task, paired_difference
    from milnet.pool import find_store
    from milnet.recipe import load_recipe
    from milnet.results import (
        check_results_path,
        clusters,
        make_results,
        predictions_path,
        write_predictions,
        write_results,
    )
    from milnet.splits import find_folds

    if output is not None:
        check_results_path(output)
    device = context.compute_device()
    table, manifest = load_table(data)
    table = _judged(table, threshold, side)
    features = load_feature_set(data, table, semantic=semantic, nodes=nodes)
    chosen = find_folds(table, folds, group=group)
    same = find_same_photos(table, features)
    recipes = [load_recipe(recipe, settings or [])] + ([load_recipe(against)] if against else [])
    for one in recipes:
        warn_of_norms(context, one, device)
    unreadable = int((~features.readable).sum())
    context.say(
        f"{table.name}: {len(table):,} photos{f', {unreadable:,} unreadable left out' if unreadable else ''}; folds "
        f"{chosen.label} ({len(chosen.names)})"
        + (f", never splitting {chosen.group}: its photos do not consult each other" if chosen.group else "")
    )
    outside = int((chosen.codes < 0).sum())
    if outside:
        context.say(f"{outside:,} photos are in no fold: always trained on, never tested")
    split_sets = [[table.ids[row] for row in rows] for rows in same.sets if len(set(chosen.codes[list(rows)])) > 1]
    if split_sets:
        context.say("the same photo in several folds (it is kept out of training where one of its names is tested):")
        for ids in split_sets[:10]:
            context.say("  " + _few(ids))
        if len(split_sets) > 10:
            context.say(f"  and {len(split_sets) - 10:,} more, see same_photos in the results")
    run = None if output is None else output.with_name(output.name + ".run")
    store = find_store(data, features, np.arange(len(table)), chosen.group, references)
    began = time.monotonic()
    with context.progress() as progress:
        shared = {"device": device, "run": run, "same": same, "store": store, "progress": progress}
        found = [crossvalidate(one, table, features, chosen, range(seeds), **shared) for one in recipes]  # type: ignore[arg-type]
    resolved = [one.resolve(lines[0]["pool"]) for one, (_, lines) in zip(recipes, found, strict=True)]
    extra: dict[str, Any] = {"trainings": found[0][1], "same_photos": split_sets}
    if against:
        rows = found[0][0].rows
        task = Task(table.values, table.threshold, table.side)
        extra["against"] = {
            "recipe": asdict(resolved[1]),
            "trainings": found[1][1],
            "metrics": {},
            "difference": paired_difference(
                table.distributions[rows],
                list(found[0][0].distributions),
                list(found[1][0].distributions),
                task,
                clusters(table, rows, chosen.group),
            ),
        }
    results = make_results(
        "crossvalidation",
        table,
        found[0][0],
        command=command_line(),
        data={"name": table.name, "digest": manifest.digest, "source": dict(table.source)},
        features=features.config,
        recipe=asdict(resolved[0]),
        folds={"label": chosen.label, "names": list(chosen.names), "group": chosen.group},
        group=chosen.group,
        extra=extra,
    )
    shown = {resolved[0].name: results["metrics"]}
    if against:
        from milnet.results import summarise

        results["against"]["metrics"] = summarise(table, found[1][0], group=chosen.group)
        shown[f"{resolved[1].name} (against)" if resolved[1].name in shown else resolved[1].name] = results["against"][
            "metrics"
        ]
    if output is not None and processes.first():
        write_results(output, results)
        write_predictions(predictions_path(output), table, found[0][0])
        if against:
            write_predictions(output.with_name(f"{output.stem}.against.predictions.csv"), table, found[1][0])
    if run is not None and processes.first():
        shutil.rmtree(run, ignore_errors=True)
    show_metrics(context, shown, results["accuracy"])
    if against:
        lines = results["against"]["difference"]
        context.say(f"{resolved[0].name} minus {resolved[1].name}, paired, 95 % interval (* excludes 0):")
        for metric in ("srcc", "plcc", "emd2"):
            d = lines[metric]
            context.say(
                f"  {metric} {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]{' *' if d['real'] else ''}"
            )
    plural = "s" if seeds > 1 else ""
    context.say(f"{seeds} seed{plural}, {time.monotonic() - began:.0f} s" + (f", {output}" if output else ""))
    return results


@command("convert")
def convert(
    context: Context,
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the published code.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="MODEL folder to make.", show_default=False)],
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Turn a checkpoint of the published code into a MODEL (without pool and backbone)."""
    from milnet.published import convert

    manifest = convert(checkpoint, output, overwrite=overwrite)
    context.say(
        f"{output}: {manifest.counts['parameters']:,} parameters from {checkpoint.name}, "
        f"digest {manifest.digest[:12]}; "
        f"milnet.published.predict takes its node features, milnet evaluate takes DATA with features of that width"
    )
    return {"model": str(output), "digest": manifest.digest, **manifest.counts}


def _judged(table: Table, threshold: float | None, side: str | None) -> Table:
    """The table with another line between good and bad photos."""
    if side not in (None, ">", ">="):
        raise UsageError(f"--side {side}: expected '>' or '>='")
    return replace(
        table,
        threshold=table.threshold if threshold is None else threshold,
        side=table.side if side is None else side,  # type: ignore[arg-type]
    )


def _few(ids: Sequence[str], limit: int = 10) -> str:
    """Some ids, and how many more there are."""
    return ", ".join(ids[:limit]) + (f" and {len(ids) - limit:,} more" if len(ids) > limit else "")


def show_metrics(context: Context, rows: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, Any]) -> None:
    """A table of mean [low, high]."""

    def cell(m: Mapping[str, Any]) -> str:
        known = m["low"] == m["low"]  # too few groups give no interval
        return f"{m['mean']:.4f} [{m['low']:.3f}, {m['high']:.3f}]" if known else f"{m['mean']:.4f}"

    names = [f"{n} ({accuracy['side']} {accuracy['threshold']:g})" if n == "accuracy" else n for n in _SHOWN]
    context.table(["", *names], [[label, *(cell(metrics[name]) for name in _SHOWN)] for label, metrics in rows.items()])
