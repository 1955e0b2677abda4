"""import: from published label files to DATA."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, Overwrite, command
from milnet.errors import UsageError

_TABLE, _AVA = "For table", "For ava-..."


@command("import")
def import_(
    context: Context,
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="table | oasis | ava-19928 (ava) | ava-19998 (ava-ilg) | tad66k | koniq10k | eva | para | aadb",
            show_default=False,
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Label file or folder.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="DATA folder to make.", show_default=False)],
    images: Annotated[Path | None, typer.Option(help="Folder of the photos.", show_default=False)] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="List defective lines and go on without them.")
    ] = False,
    overwrite: Overwrite = False,
    labels: Annotated[Path | None, typer.Option(help="The list of votes (AVA.txt).", rich_help_panel=_AVA)] = None,
    train_list: Annotated[Path | None, typer.Option(help="Ids of the training photos.", rich_help_panel=_AVA)] = None,
    test_list: Annotated[Path | None, typer.Option(help="Ids of the test photos.", rich_help_panel=_AVA)] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="merge | unmerge", show_default="merge where it is there", rich_help_panel="For tad66k"),
    ] = None,
    photo_column: Annotated[str | None, typer.Option(help="Column of the photo.", rich_help_panel=_TABLE)] = None,
    count_columns: Annotated[
        str | None, typer.Option(help="Columns of counts: v1..v7, v* or a,b,c.", rich_help_panel=_TABLE)
    ] = None,
    fraction_columns: Annotated[
        str | None, typer.Option(help="Columns of fractions, lowest value first.", rich_help_panel=_TABLE)
    ] = None,
    total_column: Annotated[str | None, typer.Option(help="Number of votes.", rich_help_panel=_TABLE)] = None,
    mean_column: Annotated[
        str | None, typer.Option(help="Mean vote; becomes a distribution by maximum entropy.", rich_help_panel=_TABLE)
    ] = None,
    sd_column: Annotated[
        str | None, typer.Option(help="Standard deviation of the votes.", rich_help_panel=_TABLE)
    ] = None,
    rating_column: Annotated[
        str | None, typer.Option(help="The rating, where each row is one rating.", rich_help_panel=_TABLE)
    ] = None,
    rater_column: Annotated[str | None, typer.Option(help="Who gave the rating.", rich_help_panel=_TABLE)] = None,
    values: Annotated[
        str | None, typer.Option(help="Score values: 1:7, 0:10:0.5 or 1,1.5,2.", rich_help_panel=_TABLE)
    ] = None,
    group_columns: Annotated[
        str | None, typer.Option(help="Columns whose photos belong together.", rich_help_panel=_TABLE)
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that becomes `split`.", rich_help_panel=_TABLE)
    ] = None,
    separator: Annotated[str | None, typer.Option(help="Field separator; `tab`.", rich_help_panel=_TABLE)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.", rich_help_panel=_TABLE)] = None,
    threshold: Annotated[
        float | None, typer.Option(help="A good photo has at least this.", rich_help_panel=_TABLE)
    ] = None,
) -> Mapping[str, Any]:
    """Read published label files: who voted how, with groups, splits and folds."""
    from milnet.annotations import Problems, save_table
    from milnet.datasets import FORMATS, format_name, read_dataset

    began = time.monotonic()
    given: dict[str, Any] = {
        option: value
        for option, value in {
            "images": images, "labels": labels, "train_list": train_list, "test_list": test_list,
            "variant": variant,
            "photo_column": photo_column, "count_columns": count_columns, "fraction_columns": fraction_columns,
            "total_column": total_column, "mean_column": mean_column, "sd_column": sd_column,
            "rating_column": rating_column, "rater_column": rater_column, "values": values,
            "group_columns": group_columns, "split_column": split_column, "separator": separator, "name": name,
            "threshold": threshold,
        }.items()
        if value is not None
    }  # fmt: skip
    kind = FORMATS[format_name(format_)]
    foreign = sorted(given.keys() - kind.__dataclass_fields__.keys())
    if foreign:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in foreign)
        raise UsageError(f"{options}: not an option of the format {format_name(format_)}")
    problems = Problems(keep_going=keep_going)
    imported = read_dataset(format_, source, problems, kind(**given))
    manifest = save_table(imported.table, output, inputs=imported.inputs, overwrite=overwrite)
    for line in imported.report:
        context.say(line)
    for problem in problems.found:
        context.warn(f"skipped: {problem}")
    context.failed = bool(problems.found)
    table = imported.table
    context.say(
        f"{output}: {len(table):,} photos, {len(table.values)} values {table.values[0]:g}..{table.values[-1]:g}, "
        f"{table.votes.sum():,.0f} votes, digest {manifest.digest[:12]}, {time.monotonic() - began:.1f} s"
    )
    return {
        "data": str(output),
        "digest": manifest.digest,
        "photos": len(table),
        "values": table.values.tolist(),
        "columns": sorted(table.columns),
        "report": list(imported.report),
        "skipped": [str(problem) for problem in problems.found],
    }
