"""import, features, references: from published label files and photos to numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, command
from milnet.errors import UsageError

Data = Annotated[Path, typer.Argument(help="DATA folder, as `milnet import` made it.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Semantic = Annotated[str | None, typer.Option(help="Features for retrieval, NAME[:range].", show_default="NAME:last")]
Nodes = Annotated[str | None, typer.Option(help="Features for the network, NAME[:range].", show_default="NAME:taps")]
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


@command("features")
def features(
    context: Context,
    data: Data,
    backbone: Annotated[str, typer.Option(help="timm/MODEL, for example timm/mobilenetv2_100.", show_default=False)],
    weights: Annotated[
        str, typer.Option(help="safetensors FILE | cached (hub cache) | hub (download) | random:SEED (untrained).")
    ] = "cached",
    name: Annotated[str | None, typer.Option(help="Name of the features.", show_default="the backbone's")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Long side in pixels; with --fit crop, side of the square.")
    ] = None,
    fit: Annotated[str, typer.Option(help="whole (the whole photo, aspect kept) | crop (centre square)")] = "whole",
    draft: Annotated[bool, typer.Option("--draft", help="Shrink very large JPEGs while decoding.")] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Photos a forward pass.", show_default="4 on a CPU, else 64")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding threads.", show_default="one a core")] = None,
    images: Annotated[Path | None, typer.Option(help="Where the photos are now.", show_default="as imported")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels.", show_default="200 million")
    ] = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Pass every photo through a frozen network. Stopped at any moment, the same command goes on."""
    from dataclasses import replace

    from milnet.annotations import load_table
    from milnet.artifacts import plain_name
    from milnet.backbones import load_backbone
    from milnet.extraction import Extractor, Preprocess, extract
    from milnet.features import Features, same_pixels
    from milnet.images import MAX_PIXELS

    device = context.compute_device()
    table, _ = load_table(data)
    folder = data / "features" / plain_name(name or backbone.replace("/", "-"), "--name")
    if images is not None:
        if not images.is_dir():
            raise UsageError(f"--images {images}: there is no such folder")
        table = replace(table, image_root=images)
    if fit not in ("whole", "crop"):
        raise UsageError(f"--fit {fit}: expected whole or crop")
    network = load_backbone(backbone, weights, offline=context.offline)
    side = size or (320 if fit == "whole" else network.native_size)
    multiple = 1 if fit == "crop" else 32
    preprocess = Preprocess(side, fit, multiple, network.crop_fraction if fit == "crop" else 0.875, draft)  # type: ignore[arg-type]
    extractor = Extractor.build(
        network, preprocess, device=device, batch=batch, workers=workers, max_pixels=max_pixels or MAX_PIXELS
    )
    began = time.monotonic()
    place = str(Path(weights).resolve()) if Path(weights).is_file() else weights
    with context.progress() as progress:
        manifest = extract(table, folder, extractor, weights=place, overwrite=overwrite, progress=progress)
    seconds = time.monotonic() - began
    made = Features(folder, table)
    ranges = ", ".join(f"{range_} {a}:{b}" for range_, (a, b) in made.ranges.items())
    context.say(
        f"{folder}: {manifest.counts['photos']:,} photos x {made.width:,} ({ranges}), {seconds:.1f} s, "
        f"{len(table) / seconds:.1f} photos/s, digest {manifest.digest[:12]}"
    )
    twins = same_pixels(table, made)
    for ids in twins:
        context.say(f"the same picture under {len(ids)} names: {', '.join(ids)} (kept on one side of every split)")
    if manifest.counts["unreadable"]:
        context.failed = True
        context.warn(
            f"{manifest.counts['unreadable']:,} photos could not be read and take no part: {folder / 'errors.csv'}"
        )
        for line in (folder / "errors.csv").read_text(encoding="utf-8").splitlines()[1:6]:
            context.warn(f"  {line}")
    return {
        "features": str(folder),
        "digest": manifest.digest,
        "ranges": made.ranges,
        "seconds": seconds,
        "same_pixels": twins,
        **manifest.counts,
    }


@command("references")
def references(
    context: Context,
    data: Data,
    k: Annotated[int, typer.Option("-k", min=1, help="References a photo.")] = 100,
    exclude_group: Annotated[
        str | None, typer.Option(help="Column whose photos may not be references of each other.", show_default=False)
    ] = None,
    semantic: Semantic = None,
    similarity: Annotated[str, typer.Option(help="cosine | l2")] = "cosine",
    name: Annotated[str | None, typer.Option(help="Name of the store.", show_default="from the options")] = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Find every photo's nearest rated photos once. Optional: train and evaluate search themselves otherwise."""
    from milnet.annotations import load_table
    from milnet.artifacts import plain_name
    from milnet.features import load_feature_set
    from milnet.pool import make_store
    from milnet.splits import training_rows

    device = context.compute_device()
    if similarity not in ("cosine", "l2"):
        raise UsageError(f"--similarity {similarity}: expected cosine or l2")
    table, _ = load_table(data)
    features_ = load_feature_set(data, table, semantic=semantic, nodes=semantic)
    pool_rows = training_rows(table)
    own = f"{similarity}-{k}" + (f"-without-{exclude_group}" if exclude_group else "")
    folder = data / "references" / plain_name(name or own, "--name")
    began = time.monotonic()
    with context.progress() as progress:
        manifest = make_store(
            table,
            features_,
            folder,
            k,
            pool_rows=pool_rows,
            group=exclude_group,
            similarity=similarity,  # type: ignore[arg-type]
            device=device,
            overwrite=overwrite,
            progress=progress,
        )
    counts = manifest.counts
    context.say(
        f"{folder}: {counts['photos']:,} photos x {k} references from a pool of {counts['pool']:,}, "
        f"{time.monotonic() - began:.1f} s, digest {manifest.digest[:12]}"
    )
    if counts["short"]:
        context.say(f"{counts['short']:,} photos have fewer than {k} possible references")
    return {"references": str(folder), "digest": manifest.digest, **counts}
