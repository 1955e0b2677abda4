"""features, reduce, references: from photos to the numbers that the method sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import (
    Address,
    Context,
    Group,
    ImageColumn,
    IndexOption,
    Memory,
    Overwrite,
    OwnData,
    RayWorkers,
    Resume,
    Seed,
    Semantic,
    Settings,
    Workers,
    command,
    plan_index,
    read_workers,
    run_folder,
    training_side,
    warn_of_norms,
)
from milnet.cli.showing import Runtime
from milnet.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from milnet.annotations import IntArray, Table
    from milnet.extraction import Extractor
    from milnet.features import FeatureSet
    from milnet.sources import Item, Runner


@command("features")
def features(
    context: Context,
    data: OwnData,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="pocket (shipped) | resnet50 | mlsp | timm/MODEL, for example timm/mobilenetv2_100.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="safetensors FILE | standard (as added with `milnet weights`) | cached (hub cache) | hub (download) | "
            "random:SEED (untrained)."
        ),
    ] = "cached",
    name: Annotated[str | None, typer.Option(help="Name of the features.", show_default="the backbone's")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Long side of the input in pixels, or several, whose features are averaged: 320,448. With --fit crop, "
            "side of the square; original: the largest long side.",
            show_default="320, the network's own, 1024",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="whole (the whole photo at one long side) | crop (centre square) | original (at its own size)",
            show_default="whole; mlsp: original",
        ),
    ] = None,
    preprocess: Annotated[
        str,
        typer.Option(help="timm (the weights' own) | published (no normalisation, original size, adaptive pooling)"),
    ] = "timm",
    wide: Annotated[
        str | None,
        typer.Option(help="Also store the maps in 5x5 cells: float16 | int8 (58 % of the space)", show_default=False),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help="How maps become 5x5 cells: area | adaptive", show_default="area; published: adaptive"),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(help="Read the published code's files, one a photo, instead of photos.", show_default=False),
    ] = None,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="With --published: wide files become the means of their cells.")
    ] = False,
    draft: Annotated[bool, typer.Option("--draft", help="Shrink very large JPEGs while decoding.")] = False,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Photos a forward pass.", show_default="4 on a CPU (1 above 512 pixels), else 64"),
    ] = None,
    workers: Workers = None,
    runtime: Runtime = "torch",
    address: Address = None,
    ray_workers: RayWorkers = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the photos are now: a folder, a URL, tar or Parquet files.", show_default="as imported"
        ),
    ] = None,
    image_column: ImageColumn = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels.", show_default="200 million")
    ] = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Pass every photo through a frozen network. Stopped at any moment, the same command goes on."""
    from milnet.annotations import load_table
    from milnet.artifacts import plain_name
    from milnet.sources import is_far

    sizes = None if size is None else read_sizes(size)
    table, _ = load_table(data)
    if (backbone is None) == (published is None):
        raise UsageError("expected either --backbone NAME or --published FOLDER")
    folder = data / "features" / plain_name(name or (backbone or "published").replace("/", "-"), "--name")
    far = None
    if images is not None and (len(images) > 1 or is_far(images[0]) or "{" in images[0]):
        far = _find_images(context, table, images, image_column)
    elif images is not None:
        if not Path(images[0]).is_dir():
            raise UsageError(f"--images {images[0]}: there is no such folder")
        table = replace(table, image_root=Path(images[0]))
    threads, cluster = read_workers(context, workers, address, ray_workers, runtime)
    if published is not None:
        if wide not in (None, "float16"):
            raise UsageError(f"--wide {wide}: with --published expected float16")
        return _published_features(
            context, table, published, folder, narrow=narrow, wide=wide is not None, overwrite=overwrite
        )
    assert backbone is not None
    extractor = make_extractor(
        context, backbone, weights, size=sizes, fit=fit, preprocess=preprocess, pooling=pooling, wide=wide, draft=draft,
        batch=batch, workers=threads, max_pixels=max_pixels, runtime=runtime,
    )  # fmt: skip
    with cluster or nullcontext() as runner:
        return extract_features(
            context, table, folder, extractor, weights, wide=wide, overwrite=overwrite, items=far, runner=runner
        )


def _find_images(
    context: Context, table: Table, images: Sequence[str], image_column: str | None
) -> Callable[[int], Item | None]:
    """Where the photos of a table are among those that --images names."""
    from milnet.datasets.imported import match_photos
    from milnet.sources import find_sources

    sources = find_sources(images, image_column=image_column)
    for failure in sources.failures:
        context.warn(str(failure))
    names = dict(zip(sources.photos.names, range(len(sources.photos)), strict=True))
    where = ", ".join(images)
    found = dict(enumerate(match_photos(table.images or table.ids, names, sources.photos.names, where, [])))
    left = [row for row, name in found.items() if not name]  # a key or id of a shard has no ending
    by_id = match_photos([table.ids[row] for row in left], names, sources.photos.names, where, [])
    found |= zip(left, by_id, strict=True)
    context.say(f"photos: {sum(map(bool, found.values())):,} of {len(table):,} in {where}")
    return lambda row: sources.photos[names[found[row]]] if found[row] else None


def extract_features(
    context: Context,
    table: Table,
    folder: Path,
    extractor: Extractor,
    weights: str,
    *,
    wide: str | None = None,
    overwrite: bool = False,
    items: Callable[[int], Item | None] | None = None,
    runner: Runner | None = None,
) -> Mapping[str, Any]:
    """Extract, and say what was made."""
    from milnet.features import Features, same_pixels
    from milnet.storing import extract

    began = time.monotonic()
    place = weights_place(weights)
    with context.progress() as progress:
        manifest = extract(
            table,
            folder,
            extractor,
            weights=place,
            wide=wide,  # type: ignore[arg-type]  # make_extractor has checked it
            overwrite=overwrite,
            progress=progress,
            items=items,
            runner=runner,
        )
    seconds = time.monotonic() - began
    made = Features(folder, table)
    ranges = ", ".join(f"{range_} {a}:{b}" for range_, (a, b) in made.ranges.items())
    context.say(
        f"{folder}: {manifest.counts['photos']:,} photos x {made.width:,} ({ranges}), {seconds:.1f} s, "
        f"{len(table) / seconds:.1f} photos/s, digest {manifest.digest[:12]}"
    )
    if extractor.engine is not None and extractor.engine.said:
        context.say(extractor.engine.said)
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


def read_sizes(text: str) -> tuple[int, ...]:
    """The input sizes in pixels that --size names: "320" or "320,448"."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size {text}: expected pixels, a whole number from 1 or several with commas (320,448)")
    return tuple(map(int, parts))


def weights_place(weights: str) -> str:
    """How a manifest names where the weights were."""
    from milnet.weights import KNOWN

    return str(Path(weights).resolve()) if weights not in KNOWN and Path(weights).is_file() else weights


def make_extractor(
    context: Context,
    backbone: str,
    weights: str,
    *,
    size: int | tuple[int, ...] | None = None,
    fit: str | None = None,
    preprocess: str = "timm",
    pooling: str | None = None,
    wide: str | None = None,
    draft: bool = False,
    batch: int | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
    runtime: str = "torch",
) -> Extractor:
    """The extractor that the options of `milnet features` describe."""
    from milnet.backbones import PUBLISHED, load_backbone
    from milnet.extraction import Extractor
    from milnet.images import MAX_PIXELS
    from milnet.preprocess import Preprocess
    from milnet.weights import KNOWN, require

    stands_for = None
    if weights in KNOWN:
        if backbone != KNOWN[weights].backbone:
            raise UsageError(
                f"--weights {weights} are weights of {KNOWN[weights].backbone}, not of {backbone}: pass --backbone "
                f"{KNOWN[weights].backbone}"
            )
        stands_for, weights = KNOWN[weights].digest, str(require(weights).path)
    for option, value, allowed in (
        ("--fit", fit, ("whole", "crop", "original")),
        ("--preprocess", preprocess, ("timm", "published")),
        ("--wide", wide, ("float16", "int8")),
        ("--pooling", pooling, ("area", "adaptive")),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"{option} {value}: expected {' or '.join(allowed)}")
    if pooling is not None and wide is None:
        raise UsageError("--pooling says how wide maps are made: it goes with --wide float16 or int8")
    as_published = preprocess == "published"
    network = load_backbone(
        backbone, weights, offline=context.offline, normalisation=PUBLISHED if as_published else None
    )
    if stands_for is not None:  # by the features of the probes; folding a batch norm may have moved the last bits
        network.digest = stands_for
    fit = fit or ("original" if backbone == "mlsp" or as_published else "whole")
    side = size or {"whole": 320, "crop": network.native_size, "original": 1024}[fit]
    how = Preprocess(
        size=side,
        fit=fit,  # type: ignore[arg-type]
        multiple=32 if fit == "whole" else 1,
        crop_fraction=network.crop_fraction if fit == "crop" else 0.875,
        draft=draft,
    )
    chosen = pooling or ("adaptive" if as_published else "area")
    return Extractor.build(
        network,
        how,
        device=context.compute_device(),
        batch=batch,
        workers=workers,
        max_pixels=max_pixels or MAX_PIXELS,
        pooling=None if wide is None else chosen,  # type: ignore[arg-type]
        runtime=runtime,
    )


def _published_features(
    context: Context, table: Table, source: Path, folder: Path, *, narrow: bool, wide: bool, overwrite: bool
) -> Mapping[str, Any]:
    """The features that the published code wrote, one pickle a photo."""
    from milnet.pickles import import_features

    began = time.monotonic()
    with context.progress() as progress:
        manifest = import_features(
            table, source, folder, narrow=narrow, wide=wide, overwrite=overwrite, progress=progress
        )
    width = manifest.config["ranges"]["taps"][1]
    context.say(
        f"{folder}: {manifest.counts['photos']:,} photos x {width:,} from {source}, {time.monotonic() - began:.1f} s, "
        f"digest {manifest.digest[:12]}; what their makers had seen is unknown"
    )
    if manifest.counts["unreadable"]:
        context.failed = True
        context.warn(f"{manifest.counts['unreadable']:,} photos have no file there: {folder / 'errors.csv'}")
    return {"features": str(folder), "digest": manifest.digest, **manifest.counts}


@command("reduce", several=True)
def reduce(
    context: Context,
    data: OwnData,
    features: Annotated[
        str | None, typer.Option(help="The features whose maps are reduced.", show_default="the only ones with maps")
    ] = None,
    semantic: Semantic = None,
    recipe: Annotated[str, typer.Option(help="reducer | FILE.toml")] = "reducer",
    settings: Settings = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Make the maps anew from the photos each time instead of reading stored ones."),
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="With --stream: the backbone's weights.", show_default="as for the features")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="With --stream: area | adaptive", show_default="that of the features, else area")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where the photos are now.", show_default="as imported")] = None,
    split: Annotated[
        str | None, typer.Option(help="Value of the column `split` to train on.", show_default="train")
    ] = None,
    group: Group = None,
    seed: Seed = 0,
    name: Annotated[str | None, typer.Option(help="Name of the features.", show_default="NAME-reduced")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Train the reducer on wide maps and write the reduced features of every photo."""
    import torch

    from milnet.annotations import load_table
    from milnet.artifacts import plain_name
    from milnet.features import Features, load_feature_set
    from milnet.recipe import load_recipe
    from milnet.recipes import require_maps
    from milnet.reduction import reduce_features
    from milnet.splits import Split
    from milnet.training import Run

    device = context.compute_device()
    table, manifest = load_table(data)
    if features is None:
        folders = sorted(path.parent for path in (data / "features").glob("*/manifest.json"))
        wide = [path.name for path in folders if stream or Features(path, table).maps is not None]
        if len(wide) != 1:
            raise UsageError(
                f"{data} has {'several' if wide else 'no'} features {'to choose from' if stream else 'with wide maps'}"
                f" ({', '.join(wide) or 'extract them with --wide, or pass --stream'}): say which with --features NAME"
            )
        features = wide[0]
    chosen = load_feature_set(data, table, semantic=semantic or features, nodes=features)
    if stream:
        photos = table if images is None else replace(table, image_root=images)
        chosen = _streaming(context, photos, chosen, weights, pooling)
    rows, tested = training_side(context, table, chosen, split)
    folder = data / "features" / plain_name(name or f"{features}-reduced", "--name")
    one = load_recipe(recipe, settings or [])
    warn_of_norms(context, one, device)
    if (folder / "manifest.json").exists() and not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another --name, or pass --overwrite to replace it")
    maps = chosen.config["maps"] if require_maps(chosen) is not None else {}
    identity = {
        "recipe": asdict(one), "data": manifest.digest, "maps": maps["digest"], "pooling": maps["pooling"],
        "streamed": stream, "rows": digest_rows(rows), "group": group, "seed": seed, "device": device,
        "torch": torch.__version__,
    }  # fmt: skip
    run = Run(run_folder(folder.with_name(f".{folder.name}"), resume=resume, overwrite=overwrite), identity)
    began = time.monotonic()
    with context.progress() as progress:
        made, model = reduce_features(
            one, table, chosen, Split(rows, tested, group), seed, folder,
            run=run, device=device, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    run.remove()
    best = model.history[model.epochs - 1]
    context.say(
        f"{folder}: {made.counts['photos']:,} photos x {made.config['ranges']['taps'][1]:,}, reducer of "
        f"{sum(p.numel() for p in model.network.parameters()):,} parameters, {model.epochs} epochs on {len(rows):,} "
        f"photos, {time.monotonic() - began:.1f} s, digest {made.digest[:12]}"
    )
    context.say(f"validation while choosing the epochs: SRCC {best['srcc']:.3f}, EMD2 {best['emd2']:.4f} (optimistic)")
    return {
        "features": str(folder),
        "digest": made.digest,
        "recipe": asdict(model.recipe),
        "epochs": model.epochs,
        "validation": best,
        **made.counts,
    }


def _streaming(
    context: Context, table: Table, features: FeatureSet, weights: str | None, pooling: str | None
) -> FeatureSet:
    """The feature set with maps that are made from the photos whenever they are asked for."""
    from milnet.backbones import PUBLISHED
    from milnet.extraction import StreamedMaps, load_extractor
    from milnet.scoring import where_weights

    if pooling not in (None, "area", "adaptive"):
        raise UsageError(f"--pooling {pooling}: expected area or adaptive")
    part = features.config["nodes"]
    published = part["extraction"].get("normalisation") == PUBLISHED
    chosen = pooling or features.config.get("maps", {}).get("pooling") or ("adaptive" if published else "area")
    place, _ = where_weights(part, weights, "--weights")  # the maps go beside stored numbers: no other last bits
    extractor = load_extractor(
        part["extraction"],
        place,
        offline=context.offline,
        device=context.compute_device(),
        pooling=chosen,  # type: ignore[arg-type]
    )
    maps = StreamedMaps(table, extractor)
    config = {**part, "name": f"{part['name']} (streamed)", "span": [0, maps.shape[2]], "pooling": chosen}
    return replace(features, maps=maps, config={**features.config, "maps": config})


def digest_rows(rows: IntArray) -> str:
    """Identity of a choice of rows, whatever their order."""
    from milnet.artifacts import digest_text
    from milnet.reduction import rows_text

    return digest_text(rows_text(rows))


@command("references")
def references(
    context: Context,
    data: OwnData,
    k: Annotated[int, typer.Option("-k", min=1, help="References a photo.")] = 100,
    exclude_group: Annotated[
        str | None, typer.Option(help="Column whose photos may not be references of each other.", show_default=False)
    ] = None,
    semantic: Semantic = None,
    similarity: Annotated[str, typer.Option(help="cosine | l2")] = "cosine",
    index: IndexOption = "exact",
    memory: Memory = None,
    seed: Seed = 0,
    published: Annotated[
        list[Path] | None,
        typer.Option(help="Read the published code's lists (*_refer_100.txt) instead.", show_default=False),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="With --published: list defective lines and go on without them.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the store.", show_default="from the options")] = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Find every photo's nearest rated photos once. Optional: train and evaluate search themselves otherwise.

    What an index found (--index faiss...) may lack a nearest photo: it is used where it is named, --references NAME.
    """
    from milnet.annotations import load_table
    from milnet.artifacts import plain_name
    from milnet.features import load_feature_set
    from milnet.index import import_faiss, read_index, read_memory
    from milnet.pool import make_store
    from milnet.splits import training_rows

    if published:
        return _published_references(
            context, data, published, k, plain_name(name or "published", "--name"), keep_going, overwrite
        )
    device = context.compute_device()
    if similarity not in ("cosine", "l2"):
        raise UsageError(f"--similarity {similarity}: expected cosine or l2")
    table, _ = load_table(data)
    features_ = load_feature_set(data, table, semantic=semantic, nodes=semantic)
    pool_rows = training_rows(table)
    approximate, kind = read_index(index)
    limit = None if memory is None else read_memory(memory)
    plan = None
    if approximate:
        import_faiss()
        count = int(features_.readable[pool_rows].sum())
        plan = plan_index(context, count, features_.semantic.shape[1], kind, limit, similarity)
    own = f"{similarity}-{k}" + (f"-without-{exclude_group}" if exclude_group else "")
    own += "" if plan is None else f"-{plan.kind}"
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
            plan=plan,
            seed=seed,
            memory=limit,
        )
    counts = manifest.counts
    context.say(
        f"{folder}: {counts['photos']:,} photos x {k} references from a pool of {counts['pool']:,}, "
        f"{time.monotonic() - began:.1f} s, digest {manifest.digest[:12]}"
    )
    if counts["short"]:
        context.say(f"{counts['short']:,} photos have fewer than {k} possible references")
    if plan is not None and not plan.exact:
        context.say(f"found by an index, so perhaps not all of the nearest: used by name, --references {folder.name}")
    return {"references": str(folder), "digest": manifest.digest, "index": manifest.config.get("index"), **counts}


def _published_references(
    context: Context, data: Path, lists: list[Path], k: int, name: str, keep_going: bool, overwrite: bool
) -> Mapping[str, Any]:
    """A store of the published lists, which train and evaluate use when they are named: --references NAME."""
    from milnet.annotations import Problems, load_table
    from milnet.published_files import make_published_store

    table, _ = load_table(data)
    folder, problems = data / "references" / name, Problems(keep_going=keep_going)
    with context.progress() as progress:
        manifest = make_published_store(
            table, lists, folder, count=k, problems=problems, overwrite=overwrite, progress=progress
        )
    for problem in problems.found:
        context.warn(f"skipped: {problem}")
    context.failed = bool(problems.found)
    counts = manifest.counts
    context.say(
        f"{folder}: {counts['photos']:,} photos with {k} references among {counts['pool']:,}, as published (ranks, no "
        f"similarities), digest {manifest.digest[:12]}; used by name: --references {name}"
    )
    if counts["itself"]:
        context.say(f"{counts['itself']:,} photos stood among their own references: dropped there")
    return {"references": str(folder), "digest": manifest.digest, **counts}
