"""pool add, images, remove, compact, index: what a trained model consults, larger, smaller, or found faster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import (
    Context,
    Data,
    Memory,
    ModelFolder,
    Nodes,
    Overwrite,
    Seed,
    Semantic,
    app,
    command,
    command_line,
    plan_index,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="MODEL folder to make.", show_default=False)]
if TYPE_CHECKING:
    from milnet.artifacts import Manifest
    from milnet.recipes import Model

pool = typer.Typer(no_args_is_help=True, help="The rated photos that a model consults.")
app.add_typer(pool, name="pool")


@command("add", pool)
def add(
    context: Context,
    model: ModelFolder,
    data: Data,
    output: Output,
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


@command("remove", pool)
def remove(
    context: Context,
    model: ModelFolder,
    output: Output,
    ids: Annotated[list[str], typer.Option(help="A photo id of the pool, or a FILE with one a line; several times.")],
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Take rated photos out of a model's pool; nothing is trained again, and what was learned from them stays."""
    from milnet.errors import UsageError
    from milnet.growing import remove_from_pool
    from milnet.library import listed_names

    fitted, manifest = _open(context, model, output, overwrite)
    known = set(fitted.pool.ids)  # an id that a file happens to have for its name is that id
    lists = (listed_names(one) if one not in known and Path(one).is_file() else (one,) for one in ids)
    names = [name for some in lists for name in some]
    if not names:
        raise UsageError(f"--ids {' '.join(ids)}: expected ids of photos, one a line; there is none")
    smaller, built = remove_from_pool(fitted, names, device=context.compute_device())
    removed = {"photos": len(fitted.pool) - len(smaller.pool), "command": command_line()}
    digest = _save(smaller, manifest, output, overwrite, removed=removed)
    context.say(
        f"{output}: {removed['photos']:,} photos removed, {len(smaller.pool):,} are left, digest {digest[:12]}; "
        f"trained parts have still seen them"
    )
    if built:
        context.say("the index cannot forget photos: it was built anew")
    if smaller.doubt.stale:
        context.warn(
            "percentile, interval and unlike belong to the old pool and are given no longer: train again to have them"
        )
    return {
        "model": str(output), "digest": digest, "pool": len(smaller.pool), "removed": removed["photos"],
        "index_built": built, "stale": smaller.doubt.stale,
    }  # fmt: skip


@command("compact", pool)
def compact_(
    context: Context,
    model: ModelFolder,
    output: Output,
    dims: Annotated[
        int | None,
        typer.Option(min=1, help="votes: numbers kept of a photo's point.", show_default="what holds .9999 of it"),
    ] = None,
    semantic: Annotated[
        str, typer.Option(help="Semantic features: float16 | int8 (half the space; some references differ).")
    ] = "float16",
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Keep only what scoring needs of each pool photo: what the network makes of it instead of its raw features."""
    from milnet.compact import compact
    from milnet.errors import UsageError

    if semantic not in ("float16", "int8"):
        raise UsageError(f"--semantic {semantic}: expected float16 or int8")
    fitted, manifest = _open(context, model, output, overwrite)
    smaller = compact(fitted, dims=dims, semantic=semantic, device=context.compute_device())  # type: ignore[arg-type]
    before = _pool_bytes(model) / len(smaller.pool)
    digest = _save(smaller, manifest, output, overwrite)
    after = _pool_bytes(output) / len(smaller.pool)
    context.say(
        f"{output}: {before:,.0f} bytes a pool photo before, {after:,.0f} now ({before / after:.1f} times less); nodes "
        f"{fitted.pool.nodes.shape[1]:,} -> {smaller.pool.nodes.shape[1]:,} numbers, digest {digest[:12]}"
    )
    return {
        "model": str(output), "digest": digest, "pool": len(smaller.pool), "nodes": smaller.pool.nodes.shape[1],
        "bytes_before": before, "bytes": after,
    }  # fmt: skip


@command("index", pool)
def index(
    context: Context,
    model: ModelFolder,
    output: Output,
    kind: Annotated[
        str, typer.Option("--index", help="faiss (the kind that fits) | faiss:flat, faiss:hnsw, faiss:ivf-pq | exact")
    ] = "faiss",
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Store an index with a model, by which scoring finds references in a pool of millions; exact: take it away."""
    from dataclasses import replace

    from milnet.errors import UsageError
    from milnet.index import build_index, read_index, read_memory

    approximate, chosen = read_index(kind)
    limit = None if memory is None else read_memory(memory)
    fitted, manifest = _open(context, model, output, overwrite)
    if not fitted.uses_references:
        raise UsageError(f"a model of the recipe {fitted.recipe.name} scores photos alone: it searches for nobody")
    if fitted.recipe.whole:
        context.warn("each photo consults the whole pool of this model: the index serves only its nearest photo")
    pool, made = fitted.pool, None
    began = time.monotonic()
    if approximate:
        how = (context, len(pool), pool.semantic.shape[1], chosen, limit, fitted.recipe.similarity)
        plan = plan_index(*how)
        with context.progress() as progress:
            made = build_index(pool.semantic, pool.rows, plan, seed=seed, progress=progress)
    digest = _save(replace(fitted, pool=replace(pool, index=made)), manifest, output, overwrite)
    what = "no index" if made is None else f"an index of kind {made.plan.kind}"
    context.say(f"{output}: {what}, {time.monotonic() - began:.1f} s, digest {digest[:12]}")
    return {"model": str(output), "digest": digest, "index": None if made is None else made.plan.config}


def _open(context: Context, model: Path, output: Path, overwrite: bool) -> tuple[Model, Manifest]:
    from milnet.artifacts import check_new_folder
    from milnet.checkpoints import load_model

    check_new_folder(output, "model", overwrite=overwrite)
    return load_model(model, device=context.compute_device())


def _save(model: Model, manifest: Manifest, output: Path, overwrite: bool, **added: Any) -> str:
    """Write the model with the notes of the old one and what was done; its digest."""
    from milnet.checkpoints import save_model

    notes = {key: value for key, value in manifest.notes.items() if key != "features"}
    for name, what in added.items():
        notes[name] = [*notes.get(name, []), what]
    return save_model(model, output, overwrite=overwrite, notes=notes).digest


def _pool_bytes(model: Path) -> int:
    from milnet.artifacts import read_manifest

    manifest = read_manifest(model, "model")
    return sum(manifest.place(model, name).stat().st_size for name in manifest.files if name.startswith("pool/"))
