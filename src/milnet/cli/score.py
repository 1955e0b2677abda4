"""score, cache: scores of whole libraries, as files other programs read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, command, command_line
from milnet.cli.showing import ModelName, Stars, find_library, introduction, load_scorer, show_scores, tell_failures
from milnet.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from milnet.cache import Cache
    from milnet.scoring import Failure
    from milnet.xmp import Outcome

_OUT = "Output"
_XMP = "XMP ratings"


@command("score")
def score(
    context: Context,
    photos: Annotated[list[str] | None, typer.Argument(help="Photos, folders, patterns.", show_default=False)] = None,
    model: ModelName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="scores.csv, .jsonl or .parquet.", show_default=False, rich_help_panel=_OUT
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
        str,
        typer.Option(help="Name of new sidecars: append (a.jpg.xmp) or replace (a.xmp).", rich_help_panel=_XMP),
    ] = "append",
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
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding threads.", show_default="one a core")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels.", show_default="200 million")
    ] = None,
    stars: Stars = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor fill the cache of earlier runs.")
    ] = False,
) -> Mapping[str, Any]:
    """Score photos. Bad ones are listed and the rest is scored. Nothing is computed twice: stop it, and go on later."""
    from milnet.images import MAX_PIXELS
    from milnet.outputs import (
        check_output,
        check_suffix,
        errors_path,
        select,
        write_failures,
        write_ratings,
        write_scores,
    )
    from milnet.report import check_report, write_report
    from milnet.scoring import score_files

    if sidecar not in ("append", "replace"):
        raise UsageError(f"--sidecar {sidecar}: expected append (a.jpg.xmp) or replace (a.xmp)")
    if output is not None:
        check_suffix(output)
    if report is not None:
        check_report(report)
    if null and not files:
        raise UsageError("--null says how --files ends its lines: pass --files, too")
    if (embed_jpeg or replace_ratings or dry_run) and not xmp:
        raise UsageError("--embed-jpeg, --replace-ratings and --dry-run say how --xmp writes: pass --xmp, too")
    context.quiet = context.quiet or files  # standard output is for the paths
    library = find_library(context, photos, files_from)
    how = {"batch": batch, "workers": workers, "max_pixels": max_pixels or MAX_PIXELS}
    name, scorer = load_scorer(context, model, stars, weights, **how)
    if output is not None:
        check_output(output, scorer.values.tolist())
    if xmp and len(scorer.stars) > 4:
        raise UsageError(f"--stars: {len(scorer.stars)} limits make {len(scorer.stars) + 1} stars, XMP has at most 5")
    cache = open_cache(context, output, no_cache=no_cache)
    own = cache is not None and output is not None and cache.path.parent == output.parent and no_cache
    began, finished = time.monotonic(), False
    try:
        with context.progress() as progress:
            scored = score_files(scorer, library.photos, cache, progress=progress)
        failures = [*library.failures, *scored.failures]
        scores = select(scored.scores, min_score, top)
        seconds = time.monotonic() - began
        outcomes: dict[str, Outcome] = {}
        refused: list[Failure] = []
        if xmp:
            naming: Any = sidecar
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
            cache.close(remove=own and finished)
    if files:
        _print_files([s.photo for s in scores], null=null)
    else:
        show_scores(context, scorer, scores, 20 if output or report else len(scores))
        if (output or report) and len(scores) > 20:
            context.say(f"... and {len(scores) - 20:,} more in {output or report}")
        rate = f", {scored.forward / seconds:.3g} a second" if scored.forward and seconds > 1 else ""
        known = f"{scored.forward:,} of {len(library.photos):,} photos were new{rate}; " if cache is not None else ""
        places = "".join(f", {path}" for path in (output, report) if path)
        context.say(f"{len(scores):,} photos, {known}{seconds:.1f} s{places}")
    if xmp:
        _tell_ratings(context, outcomes, dry_run=dry_run)
    tell_failures(context, failures)
    for failure in refused:
        context.warn(f"rating not written: {failure.photo}: {failure.reason}")
        context.failed = True
    return {
        "model": name,
        "scores": [s.row() for s in scores],
        "failures": [failure.__dict__ for failure in failures],
        "forward": scored.forward,
        "seconds": seconds,
        **(_ratings(outcomes, refused) if xmp else {}),
    }


def open_cache(context: Context, output: Path | None, *, no_cache: bool) -> Cache | None:
    """The user's cache; else, so that a stopped run can go on, one beside the output for the time of the work."""
    from milnet.cache import Cache, cache_file

    if not no_cache:
        try:
            path = cache_file()
        except UsageError as error:  # a user without a home
            context.warn(f"no cache: {error}")
        else:
            try:
                return Cache(path)
            except ArtifactError as error:
                if path.exists():
                    raise
                context.warn(f"no cache: {error}")
    return None if output is None else Cache(output.with_name(output.name + ".journal"))


def _ratings(outcomes: Mapping[str, Outcome], refused: Sequence[Failure]) -> dict[str, Any]:
    return {
        "xmp": {photo: asdict(outcome) for photo, outcome in outcomes.items()},
        "xmp_failures": [failure.__dict__ for failure in refused],
    }


def _tell_ratings(context: Context, outcomes: Mapping[str, Outcome], *, dry_run: bool) -> None:
    """How many files were written, and whose ratings were kept."""
    for photo, outcome in outcomes.items():
        if dry_run:
            places = ", ".join(map(str, outcome.written)) or "nothing to write"
            kept = "" if outcome.human is None else f", the rating {outcome.human} is kept"
            context.say(f"{photo}: {places}{kept}")
        for note in outcome.notes:
            context.say(f"{photo}: {note}")
    counts = Counter(outcome.action for outcome in outcomes.values())
    parts = [f"{counts[action]:,} {action}" for action in ("created", "merged", "unchanged") if counts[action]]
    if counts["kept rating"]:
        parts.append(f"{counts['kept rating']:,} with a rating of a human, which is kept (--replace-ratings)")
    context.say(f"XMP{' (nothing was written: --dry-run)' if dry_run else ''}: " + (", ".join(parts) or "no photo"))


def _print_files(photos: list[str], *, null: bool) -> None:
    """Paths on standard output."""
    import io
    import sys

    if not null and any("\n" in photo or "\r" in photo for photo in photos):
        raise UsageError("a photo's name has a line break in it, which no list of lines can hold: pass --null")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names as the files have them, whatever the terminal can show
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    print("".join(photo + ("\0" if null else "\n") for photo in photos), end="")


@command("cache")
def cache(
    context: Context,
    missing: Annotated[bool, typer.Option("--missing", help="Forget photos whose files are gone.")] = False,
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
    from milnet.cache import Cache, cache_file

    path = cache_file()
    if dry_run and not (missing or unused is not None or model or everything):
        raise UsageError("--dry-run: say what would be forgotten: --missing, --unused DAYS, --model DIGEST or --all")
    if not path.exists():
        context.say(f"{path}: empty")
        return {"path": str(path), "files": 0, "photos": 0, "backbones": {}, "models": {}, "bytes": 0}
    if everything and not dry_run:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        context.say(f"{path}: everything forgotten")
        return {"path": str(path), "removed": "all"}
    kept = Cache(path)
    try:
        removed: dict[str, int] | None = None
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
            + f"{removed['scores']:,} scores, the numbers of {removed['features']:,} photos, "
            f"{removed['files']:,} places of files"
        )
    context.say(f"{path}: {counts['bytes'] / 1e6:,.1f} MB, {counts['photos']:,} photos, {counts['files']:,} files")
    context.table(["  model", "scores"], [[f"  {digest[:12]}", f"{n:,}"] for digest, n in counts["models"].items()])
    context.table(
        ["  backbone", "photos"], [[f"  {digest[:12]}", f"{n:,}"] for digest, n in counts["backbones"].items()]
    )
    return {"path": str(path), **counts, **({} if removed is None else {"removed": removed})}
