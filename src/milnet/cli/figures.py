"""figures: what a model does on test photos, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, Data, ModelFolder, Nodes, Overwrite, Semantic, Stored, command, load_measured
from milnet.errors import ImageError, UsageError
from milnet.places import looks_folder


@command("figures")
def figures(
    context: Context,
    model: ModelFolder,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.", show_default=False)],
    split: Annotated[str, typer.Option(help="Value of the column `split`; `all` for every photo.")] = "test",
    count: Annotated[int, typer.Option(min=1, max=50, help="Photos a sheet.")] = 6,
    images: Annotated[Path | None, typer.Option(help="Where the photos are now.", show_default="as imported")] = None,
    format_: Annotated[str, typer.Option("--format", help="png | pdf | svg")] = "png",
    semantic: Semantic = None,
    nodes: Nodes = None,
    references: Stored = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Draw the best, worst and most disagreed test photos beside their references, the scores, the learning curves."""
    from dataclasses import replace

    from milnet.evaluation import evaluate, note_look
    from milnet.figures import (
        FORMATS,
        NUMBERS,
        check_folder,
        draw_curves,
        draw_scatter,
        draw_sheet,
        load_pictures,
        make_sheets,
        require_matplotlib,
        write_figure,
        write_numbers,
    )
    from milnet.metrics import Task
    from milnet.training import best_epoch

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_}: expected {', '.join(FORMATS)}")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: there is no such folder")
    check_folder(output, overwrite=overwrite)
    require_matplotlib()
    device = context.compute_device()
    it = load_measured(context, model, data, split, semantic=semantic, nodes=nodes, references=references)
    fitted, table, features = it.model, it.table, it.features
    predictions = evaluate(fitted, table, features, it.rows, split=split, store=it.store, device=device)
    looks = note_look(looks_folder(data), it.digest, split, predictions.rows)
    if images is not None:
        table = replace(table, image_root=images)  # only now: features belong to the table as it was imported

    about = f"{fitted.recipe.name} on {table.name}, split {split}"
    sheets = make_sheets(fitted, table, features, predictions, count, store=it.store, device=device)
    output.mkdir(parents=True, exist_ok=True)
    write_numbers(output / NUMBERS, sheets, table.values)  # first: it is what says that this folder is ours
    written, failed = [output / NUMBERS], dict[str, ImageError]()
    with context.progress() as progress:
        for i, sheet in enumerate(sheets):
            progress(i, len(sheets) + 2, "figures")
            pictures, failures = load_pictures(sheet.files())
            failed.update({error.file: error for error in failures})
            written.append(output / f"{sheet.name}.{format_}")
            write_figure(draw_sheet(sheet, table.values, pictures, about), written[-1])
        progress(len(sheets), len(sheets) + 2, "figures")
        task = Task(table.values, table.threshold, table.side)
        true, predicted = table.distributions[predictions.rows], predictions.distributions[0]
        written.append(output / f"scatter.{format_}")
        write_figure(draw_scatter(true, predicted, task, about), written[-1])
        if fitted.history:
            written.append(output / f"curves.{format_}")
            told = (
                f"{fitted.recipe.name} on {fitted.table_name}; validation photos chose the epochs, so it is optimistic"
            )
            write_figure(draw_curves(fitted.history, fitted.epochs, told), written[-1])
        if fitted.reducer_history:
            written.append(output / f"reducer_curves.{format_}")
            write_figure(
                draw_curves(fitted.reducer_history, best_epoch(fitted.reducer_history), f"the reducer under {about}"),
                written[-1],
            )

    skipped = len(it.rows) - len(predictions.rows)
    context.say(
        f"{fitted.recipe.name} on {len(predictions.rows):,} photos of {table.name}, split {split}"
        + (f"; {skipped:,} without features left out" if skipped else "")
    )
    context.table(
        ["sheet", "first photo", "true", "predicted", "EMD2"],
        [
            [
                f"{sheet.name}.{format_}",
                photo.id,
                f"{photo.true @ table.values:.2f}",
                f"{photo.predicted @ table.values:.2f}",
                f"{photo.emd2:.3f}",
            ]
            for sheet in sheets
            for photo in sheet.photos[:1]
        ],
    )
    unknown = {item.id for sheet in sheets for item in sheet.shown() if item.file is None}
    if unknown:
        context.warn(f"the files of {len(unknown):,} photos are not known; their frames on the sheets stay empty")
    for error in failed.values():
        context.warn(f"not shown: {error}")
    if failed:
        context.warn(f"{len(failed):,} photos could not be shown; where are they? pass --images DIR")
    if not fitted.history:
        context.say("no curves: the model keeps no history of its training")
    times = "for the first time" if looks == 1 else f"{looks} times: each look makes its numbers a little less honest"
    context.say(f"this split has been looked at {times}")
    context.say(f"{output}: {', '.join(path.name for path in written)}")
    return {
        "folder": str(output),
        "files": [path.name for path in written],
        "photos": len(predictions.rows),
        "looks": looks,
        "sheets": {sheet.name: [photo.id for photo in sheet.photos] for sheet in sheets},
        "not_shown": [{"photo": error.file, "reason": error.reason} for error in failed.values()],
        "files_unknown": sorted(unknown),
    }
