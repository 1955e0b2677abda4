"""pool add, pool images: more rated photos for a trained model; where its photos lie."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, Data, ModelFolder, Nodes, Overwrite, Semantic, app, command, command_line

pool = typer.Typer(no_args_is_help=True, help="The rated photos that a model consults.")
app.add_typer(pool, name="pool")


@command("add", pool)
def add(
    context: Context,
    model: ModelFolder,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="MODEL folder to make.", show_default=False)],
    split: Annotated[str, typer.Option(help="Value of the column `split`; `all` for every photo.")] = "all",
    semantic: Semantic = None,
    nodes: Nodes = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Add the rated photos of DATA to a model's pool; nothing is trained again."""
    import numpy as np

    from milnet.annotations import load_table
    from milnet.checkpoints import load_model, save_model
    from milnet.errors import ArtifactError
    from milnet.features import load_feature_set
    from milnet.growing import add_to_pool

    if output.exists() and not overwrite:
        raise ArtifactError(f"{output} exists already: choose another name, or pass --overwrite to replace it")
    began = time.monotonic()
    device = context.compute_device()
    fitted, manifest = load_model(model, device=device)
    table, data_manifest = load_table(data)
    features = load_feature_set(data, table, semantic=semantic, nodes=nodes)
    rows = np.arange(len(table)) if split == "all" else table.rows_where("split", split)
    grown, told = add_to_pool(fitted, table, features, rows, device=device)
    notes = {key: value for key, value in manifest.notes.items() if key != "features"}
    if told.added:
        added = {"data": data_manifest.digest, "photos": len(told.added), "command": command_line()}
        notes["added"] = [*notes.get("added", []), added]
    saved = save_model(grown, output, overwrite=overwrite, notes=notes)  # unchanged, if nothing was new
    context.say(
        f"{output}: {len(told.added):,} photos added to {len(fitted.pool):,}, {len(grown.pool):,} in all"
        + (f"; {len(told.known):,} were there already" if told.known else "")
        + f", {time.monotonic() - began:.1f} s, digest {saved.digest[:12]}"
    )
    if not told.added:
        context.say(f"no new photo: {output} is the same model as {model}")
    if told.unreadable:
        context.warn(
            f"{len(told.unreadable):,} photos have no features and were left out: {', '.join(told.unreadable[:5])}"
        )
    if fitted.recipe.whole and not grown.recipe.whole:
        context.say(
            f"the pool is too large to be consulted as a whole: from now on the {grown.recipe.references} nearest"
        )
    stale = grown.doubt.stale
    if stale:
        context.warn(
            "percentile, interval and unlike belong to the old pool and are given no longer: train again to have them"
        )
    elif told.added and len(grown.doubt.percentiles):
        context.say("percentile, interval and unlike were made anew for this pool")
    return {
        "model": str(output),
        "digest": saved.digest,
        "pool": len(grown.pool),
        "added": len(told.added),
        "known": list(told.known),
        "unreadable": list(told.unreadable),
        "stale": stale,
    }


@command("images", pool)
def images(
    context: Context,
    model: ModelFolder,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with your copies of the pool's photos.", show_default=False)
    ],
) -> Mapping[str, Any]:
    """Say where the photos of a model's pool lie, so that reports can show them. A pool holds no pixels of its own."""
    from milnet.album import match_photos, places_file, remember
    from milnet.checkpoints import load_model

    fitted, _ = load_model(model)
    with context.progress() as progress:
        matched = match_photos(fitted.pool, folder, progress)
    total = len(fitted.pool)
    count = total - len(matched.other) - len(matched.missing) - len(matched.unreadable)
    context.failed = not count
    if count:
        remember(matched.found)
        context.say(f"{count:,} of the pool's {total:,} photos found in {folder}; {places_file()} says where")
    else:
        context.warn(f"none of the pool's {total:,} photos found in {folder}")
    lists = {
        "other": (matched.other, "have a file of their name with other pixels (saved anew, or cropped)"),
        "unreadable": (matched.unreadable, "have a file of their name that cannot be read"),
        "missing": (matched.missing, "have no file of their name"),
    }
    for ids, what in lists.values():
        if ids:
            more = ", ..." if len(ids) > 5 else ""
            context.say(f"{len(ids):,} {what}: {', '.join(ids[:5])}{more}")
    if matched.other and fitted.features["semantic"]["extraction"].get("preprocess", {}).get("draft"):
        context.warn("its features were made with --draft: large JPEGs cannot be recognised by their pixels")
    return {
        "model": str(model),
        "folder": str(folder),
        "pool": total,
        "found": count,
        **{name: list(ids) for name, (ids, _) in lists.items()},
        "photos": {digest: str(path) for digest, path in matched.found.items()},
    }
