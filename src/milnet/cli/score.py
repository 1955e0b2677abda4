"""score, cache: scores of whole libraries, as files other programs read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import (
    Address,
    Context,
    ImageColumn,
    RayWorkers,
    Workers,
    command,
    command_line,
    read_workers,
)
from milnet.cli.showing import ModelName, Runtime, Stars, find_library, load_scorer, show_scores, tell_failures
from milnet.errors import UsageError

if TYPE_CHECKING:
    from milnet.cache import Cache
    from milnet.cluster import Cluster
    from milnet.files import Scored
    from milnet.scoring import Failure, Score, Scorer
    from milnet.xmp import Outcome

_OUT = "Output"
_XMP = "XMP ratings"
_SHOWN = 20  # of many photos the best that are shown


@command("score")
def score(
    context: Context,
    photos: Annotated[
        list[str] | None,
        typer.Argument(help="Photos, folders, patterns; tar or Parquet files, URLs.", show_default=False),
    ] = None,
    model: ModelName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="scores.csv, .jsonl or .parquet; of tar, Parquet, URLs or by Ray also a folder.",
            show_default=False,
            rich_help_panel=_OUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="report.html: look, sort, filter, compare.", show_default=False, rich_help_panel=_OUT),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Give only photos of at least this score.", show_default=False, rich_help_panel=_OUT),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Give only the best N, the best first.", show_default=False, rich_help_panel=_OUT),
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Print only the photos' paths, for other programs.", rich_help_panel=_OUT)
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "--null", "-0", help="With --files: a NUL behind each path, for `xargs -0`.", rich_help_panel=_OUT
        ),
    ] = False,
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Write stars and score to XMP sidecars.", rich_help_panel=_XMP)
    ] = False,
    sidecar: Annotated[
        str | None,
        typer.Option(
            help="Name of new sidecars: append (a.jpg.xmp) or replace (a.xmp).",
            show_default="append",
            rich_help_panel=_XMP,
        ),
    ] = None,
    embed_jpeg: Annotated[
        bool,
        typer.Option("--embed-jpeg", help="Write into JPEG files themselves, not beside them.", rich_help_panel=_XMP),
    ] = False,
    replace_ratings: Annotated[
        bool, typer.Option("--replace-ratings", help="Replace ratings that people gave.", rich_help_panel=_XMP)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what --xmp would write, and write no XMP.", rich_help_panel=_XMP)
    ] = False,
    files_from: Annotated[
        str | None,
        typer.Option(help="A list of photos, one a line; `-` is standard input.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Photos a forward pass.", show_default="4 on a CPU (1 above 512 pixels), else 64"),
    ] = None,
    workers: Workers = None,
    address: Address = None,
    ray_workers: RayWorkers = None,
    image_column: ImageColumn = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels.", show_default="200 million")
    ] = None,
    stars: Stars = None,
    runtime: Runtime = "torch",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor fill the cache of earlier runs.")
    ] = False,
) -> Mapping[str, Any]:
    """Score photos. Bad ones are listed and the rest is scored. Nothing is computed twice: stop it, and go on later."""
    from milnet.files import score_files
    from milnet.images import MAX_PIXELS
    from milnet.outputs import (
        check_output,
        check_suffix,
        errors_path,
        is_folder,
        select,
        write_failures,
        write_ratings,
        write_scores,
    )
    from milnet.report import check_report, write_report
    from milnet.scoring import introduction
    from milnet.sources import is_far

    if sidecar not in (None, "append", "replace"):
        raise UsageError(f"--sidecar {sidecar}: expected append (a.jpg.xmp) or replace (a.xmp)")
    threads, cluster = read_workers(context, workers, address, ray_workers, runtime)
    many = cluster is not None or any(is_far(photo) or "{" in photo for photo in photos or ())
    if output is not None and not (many and is_folder(output)):
        check_suffix(output)
    if report is not None:
        check_report(report)
    if many and (report is not None or xmp):
        raise UsageError(
            f"{'--xmp' if report is None else '--report'} is for photos that are files here, scored by one process: "
            f"score these with -o, and the chosen ones again as files, without --workers ray"
        )
    if null and not files:
        raise UsageError("--null says how --files ends its lines: pass --files, too")
    if (embed_jpeg or replace_ratings or dry_run or sidecar) and not xmp:
        raise UsageError(
            "--sidecar, --embed-jpeg, --replace-ratings and --dry-run say how --xmp writes: pass --xmp, too"
        )
    if files and context.json:
        raise UsageError("--files and --json both say what stands on standard output: pass one of them")
    context.quiet = context.quiet or files  # standard output is for the paths
    how = {"batch": batch, "workers": threads, "max_pixels": max_pixels or MAX_PIXELS, "runtime": runtime}
    if many:
        name, scorer = load_scorer(context, model, stars, weights, **how)
        return _score_many(
            context, name, scorer, photos or [], files_from, image_column, cluster, output, min_score, top,
            paths=files, null=null,
        )  # fmt: skip
    library = find_library(context, photos, files_from)
    name, scorer = load_scorer(context, model, stars, weights, **how)
    if output is not None:
        check_output(output, scorer.values.tolist())
    if xmp and len(scorer.stars) > 4:
        raise UsageError(
            f"{len(scorer.stars) + 1} numbers of stars, and XMP has at most 5: pass four limits, for example "
            f"--stars 10,35,65,90"
        )
    cache, own = open_cache(context, output, no_cache=no_cache)
    began, finished = time.monotonic(), False
    try:
        with context.progress() as progress:
            scored = score_files(scorer, library.photos, cache, progress=progress)
        failures = [*library.failures, *scored.failures]
        scores = select(scored.scores, min_score, top)
        if files and not null:
            _check_lines([s.photo for s in scores])
        seconds = time.monotonic() - began
        outcomes: dict[str, Outcome] = {}
        refused: list[Failure] = []
        if xmp:
            naming: Any = sidecar or "append"
            how = {"naming": naming, "replace": replace_ratings, "embed": embed_jpeg, "dry_run": dry_run}
            with context.progress() as progress:
                outcomes, refused = write_ratings(scores, cache, progress, **how)
        if output is not None:
            write_scores(output, scores, scorer.values.tolist())
            if failures:
                write_failures(errors_path(output), failures)
            else:
                errors_path(output).unlink(missing_ok=True)  # left by an earlier run
        if report is not None:
            with context.progress() as progress:
                opening = introduction(name, scorer)
                more: Any = {"command": command_line(), "progress": progress}
                write_report(report, scores, failures, scorer=scorer, introduction=opening, **more)
        finished = True
    finally:
        if cache is not None:
            if cache.trouble:
                context.warn(f"not all was kept for later runs: {cache.trouble}")
            cache.close(remove=own and finished)
    if files:
        _print_files([s.photo for s in scores], null=null)
    else:
        show_scores(context, scorer, scores, 20 if output or report else len(scores))
        if (output or report) and len(scores) > 20:
            context.say(f"... and {len(scores) - 20:,} more in {output or report}")
        _tell_counts(context, scored, scores, failures, seconds)
        for line in scorer.probed:
            context.say(line)
        for path in (output, report):
            if path is not None:
                context.say(str(path))
    if xmp:
        _tell_ratings(context, outcomes, dry_run=dry_run)
    tell_failures(context, failures)
    for failure in refused:
        context.warn(f"rating not written: {failure.photo}: {failure.reason}")
        context.failed = True
    return {
        "model": name,
        "scores": [s.row() for s in scores] if context.json else [],
        "failures": [failure.__dict__ for failure in failures],
        "forward": scored.forward,
        "seconds": seconds,
        **(_ratings(outcomes, refused) if xmp else {}),
    }


def _score_many(
    context: Context,
    name: str,
    scorer: Scorer,
    arguments: Sequence[str],
    files_from: str | None,
    image_column: str | None,
    cluster: Cluster | None,
    output: Path | None,
    min_score: float | None,
    top: int | None,
    *,
    paths: bool,
    null: bool,
) -> Mapping[str, Any]:
    """Photos from anywhere, by worker processes or here: more of them than memory should hold."""
    import shutil
    import tempfile
    from contextlib import nullcontext

    from milnet.artifacts import check_new_folder
    from milnet.bulk import score_all, write_folder
    from milnet.outputs import check_output, errors_path, is_folder, write_failures, write_scores
    from milnet.scoring import Failure
    from milnet.sources import Here, find_sources

    values = scorer.values.tolist()
    if output is not None and is_folder(output):
        check_new_folder(output, "scores", overwrite=output.exists())
    elif output is not None:
        check_output(output, values)
    began = time.monotonic()
    sources = find_sources(arguments, files_from=files_from, image_column=image_column)
    for note in sources.notes:
        context.warn(note)
    context.say(f"{len(sources.photos):,} photos found in {time.monotonic() - began:.1f} s")
    if paths and not null:
        _check_lines(sources.photos.names)
    began = time.monotonic()
    kept = None if output is None else output.parent / f".{output.name}.part"
    part = kept or Path(tempfile.mkdtemp(prefix="milnet-scores-"))
    try:
        with context.progress() as progress, cluster or nullcontext(Here()) as runner:
            bulk = score_all(scorer, sources.photos, part, runner, progress=progress)
        failures = [*(Failure(error.file, error.reason) for error in sources.failures), *bulk.failures]
        rows = bulk.chosen(min_score, top)
        if output is not None and is_folder(output):
            write_folder(output, bulk, failures, rows)
        elif output is not None:
            write_scores(output, bulk.scores(rows), values)
            if failures:
                write_failures(errors_path(output), failures)
            else:
                errors_path(output).unlink(missing_ok=True)  # left by an earlier run
        seconds = time.monotonic() - began
        if paths:
            _print_files((score.photo for score in bulk.scores(rows)), null=null)
        else:
            best = bulk.chosen(min_score, min(top or _SHOWN, _SHOWN))
            show_scores(context, scorer, list(bulk.scores(best)), _SHOWN)
            if len(rows) > _SHOWN:
                context.say(f"... and {len(rows) - _SHOWN:,} more" + (f" in {output}" if output else ": -o keeps them"))
            bad = f"; {len(failures):,} could not be scored" if failures else ""
            rate = f"{bulk.new:,} new, {bulk.new / seconds:.3g} a second"
            context.say(f"{len(bulk):,} photos scored in {seconds:.1f} s ({rate}){bad}")
            for line in scorer.probed:
                context.say(line)
            if output is not None:
                context.say(str(output))
        listed = [score.row() for score in bulk.scores(rows)] if context.json and output is None else []
    finally:
        if kept is None:
            shutil.rmtree(part)
    if kept is not None:
        shutil.rmtree(kept)
    tell_failures(context, failures)
    return {
        "model": name,
        "scored": len(bulk),
        "scores": listed,
        "failures": [failure.__dict__ for failure in failures],
        "forward": bulk.new,
        "seconds": seconds,
    }


def open_cache(context: Context, output: Path | None, *, no_cache: bool) -> tuple[Cache | None, bool]:
    """The user's cache; else one beside the output, so that a stopped run can go on, and whether it is of this run."""
    from milnet.cache import Cache, UnwritableError, cache_file

    if not no_cache:
        try:
            return Cache(cache_file()), False
        except (UnwritableError, UsageError) as error:  # no permission, no home
            context.warn(f"nothing is kept for later runs: {error}")
    return (None, False) if output is None else (Cache(output.with_name(output.name + ".journal")), True)


def _tell_counts(
    context: Context, scored: Scored, scores: Sequence[Score], failures: Sequence[Failure], seconds: float
) -> None:
    """How many photos, what was new, how fast, what was found among them."""
    total, chosen = len(scored.scores), len(scores)
    rate = f", {scored.forward / seconds:.3g} a second" if scored.forward and seconds > 1 else ""
    parts = [f"{total:,} photo{'' if total == 1 else 's'} scored in {seconds:.1f} s ({scored.forward:,} new{rate})"]
    groups = {score.group for score in scored.scores if score.group is not None}
    if groups:
        parts.append(f"{len(groups):,} burst{'' if len(groups) == 1 else 's'}")
    if failures:
        parts.append(f"{len(failures):,} could not be scored")
    if chosen < total:
        best = max(score.score for score in scored.scores)
        parts.append(f"{chosen:,} chosen" + ("" if chosen else f": the best has {best:.2f}"))
    context.say("; ".join(parts))


def _ratings(outcomes: Mapping[str, Outcome], refused: Sequence[Failure]) -> dict[str, Any]:
    return {
        "xmp": {photo: asdict(outcome) for photo, outcome in outcomes.items()},
        "xmp_failures": [failure.__dict__ for failure in refused],
    }


def _tell_ratings(context: Context, outcomes: Mapping[str, Outcome], *, dry_run: bool) -> None:
    """How many files were written, and whose ratings were kept."""
    for photo, outcome in outcomes.items():
        if dry_run:
            places = ", ".join(map(str, outcome.written)) or "says so already"
            stars = "no rating" if outcome.rating is None else f"rating {outcome.rating}"
            kept = "" if outcome.human is None else " of a human, kept"
            context.say(f"{photo}: {stars}{kept}; {outcome.action}: {places}")
        for note in outcome.notes:
            context.say(f"{photo}: {note}")
    counts = Counter(outcome.action for outcome in outcomes.values())
    parts = [f"{counts[action]:,} {action}" for action in ("created", "merged", "unchanged") if counts[action]]
    if counts["kept rating"]:
        parts.append(f"{counts['kept rating']:,} with a rating of a human, which is kept (--replace-ratings)")
    context.say(f"XMP{' (nothing was written: --dry-run)' if dry_run else ''}: " + (", ".join(parts) or "no photo"))


def _check_lines(photos: Iterable[str]) -> None:
    if any("\n" in photo or "\r" in photo for photo in photos):
        raise UsageError("a photo's name has a line break in it, which no list of lines can hold: pass --null")


def _print_files(photos: Iterable[str], *, null: bool) -> None:
    """Paths on standard output."""
    import io
    import sys

    if isinstance(sys.stdout, io.TextIOWrapper):  # names as the files have them, whatever the terminal can show
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    for photo in photos:
        print(photo, end="\0" if null else "\n")


@command("cache")
def cache(
    context: Context,
    missing: Annotated[
        bool, typer.Option("--missing", help="Forget files that are gone (connect your drives).")
    ] = False,
    unused: Annotated[
        int | None, typer.Option(min=0, metavar="DAYS", help="Forget what no run has used for so long.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Forget the scores of a model: its digest, or the start of it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Forget everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be forgotten.")] = False,
) -> Mapping[str, Any]:
    """Show what is kept of the photos that were scored, or, with an option that says which, forget some of it."""
    from milnet.cache import Cache, cache_file, remove_cache

    path = cache_file()
    if dry_run and not (missing or unused is not None or model or everything):
        raise UsageError("--dry-run: say what would be forgotten: --missing, --unused DAYS, --model DIGEST or --all")
    if not path.exists():
        context.say(f"{path}: empty")
        return {"path": str(path), "files": 0, "photos": 0, "backbones": {}, "models": {}, "bytes": 0}
    if everything and not dry_run:
        remove_cache(path)
        context.say(f"{path}: everything forgotten")
        return {"path": str(path), "removed": "all"}
    kept = Cache(path)
    try:
        removed: dict[str, int] | None = None
        if model and not any(digest.startswith(model) for digest in kept.counts()["models"]):
            raise UsageError(f"--model {model}: no score here is of such a model; `milnet cache` lists them")
        if everything:
            removed = kept.rows()
        elif missing or unused is not None or model:
            removed = kept.prune(missing=missing, unused=unused, model=model, dry_run=dry_run)
        counts = kept.counts()
    finally:
        kept.close()
    if removed is not None:
        context.say(
            ("would forget " if dry_run else "forgotten: ")
            + f"{removed['scores']:,} scores, features of {removed['features']:,} photos, {removed['files']:,} files"
        )
    context.say(f"{path}: {counts['bytes'] / 1e6:,.1f} MB, {counts['photos']:,} photos, {counts['files']:,} files")
    context.table(["  model", "scores"], [[f"  {digest[:12]}", f"{n:,}"] for digest, n in counts["models"].items()])
    context.table(
        ["  backbone", "photos"], [[f"  {digest[:12]}", f"{n:,}"] for digest, n in counts["backbones"].items()]
    )
    return {"path": str(path), **counts, **({} if removed is None else {"removed": removed})}
