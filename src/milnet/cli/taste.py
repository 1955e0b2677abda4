"""taste: a model of one's own ratings."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, Overwrite, command, command_line
from milnet.cli.score import open_cache
from milnet.cli.showing import ModelName, find_library, load_scorer
from milnet.errors import ArtifactError, UsageError


@command("taste")
def taste(
    context: Context,
    photos: Annotated[list[str], typer.Argument(help="Your photos: files, folders, patterns.", show_default=False)],
    ratings: Annotated[
        str,
        typer.Option(
            help="Where your ratings are: xmp (stars in sidecars and in the photos), a table, a Lightroom catalogue "
            "(.lrcat), or digiKam's database (digikam4.db).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="MODEL folder to make.", show_default=False)],
    model: ModelName = None,
    photo_column: Annotated[
        str | None, typer.Option(help="Column of a table with the photos.", show_default="photo, image, file, path")
    ] = None,
    rating_column: Annotated[
        str | None, typer.Option(help="Column of a table with the ratings.", show_default="rating, stars, score")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="The levels you rate with.", show_default="1,2,3,4,5; of a table also 1 to 10")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither use nor fill the cache of earlier runs.")
    ] = False,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Learn your taste from 10 to 2,000 photos you rated, and say whether that is better than the general model."""
    from milnet.album import remember
    from milnet.artifacts import check_new_folder
    from milnet.files import see_files
    from milnet.ratings import read_ratings
    from milnet.taste import check_ratings, fit_taste, save_taste

    check_new_folder(output, "taste", overwrite=overwrite)
    values = None if levels is None else _levels(levels)
    library = find_library(context, photos)
    given = read_ratings(library.photos, ratings, photo_column=photo_column, rating_column=rating_column, levels=values)
    for line in given.report:
        context.say(line)
    names = _ids(given.photos)
    check_ratings(names, given.ratings, values or given.values)
    name, scorer = load_scorer(context, model, None, weights)
    if scorer.taste is not None:
        raise UsageError(f"--model {name}: is a taste itself; expected the general model to begin with")
    began = time.monotonic()
    cache, _ = open_cache(context, None, no_cache=no_cache)
    try:
        with context.progress() as progress:
            seen, failures = see_files(scorer, given.photos, cache, progress=progress)
    finally:
        if cache is not None:
            cache.close()
    for failure in [*library.failures, *failures]:
        context.warn(f"left out: {failure.photo}: {failure.reason}")
        context.failed = True
    kept = [(photo, rating) for photo, rating in zip(given.photos, given.ratings, strict=True) if photo in seen]
    if not kept:
        raise UsageError("none of the rated photos can be read: nothing to learn from")
    nodes, semantic = scorer.entering([seen[photo] for photo, _ in kept])
    pixels = [seen[photo].pixels for photo, _ in kept]
    fitted = fit_taste(
        scorer.model,
        nodes,
        semantic,
        pixels,
        _ids([photo for photo, _ in kept]),
        [rating for _, rating in kept],
        values or given.values,
        device=scorer.device,
    )
    notes = {"command": command_line(), "ratings": given.source, "general": name}
    saved = save_taste(fitted, output, overwrite=overwrite, notes=notes)
    checked = fitted.checked
    context.table(
        ["  rank correlation with your ratings, of photos held back", "SRCC"],
        [
            ["  the general model", f"{checked.general:.3f}"],
            ["  your ratings alone", f"{checked.alone:.3f}"],
            ["  your taste: both", f"{checked.both:.3f}"],
        ],
    )
    context.say(checked.verdict)
    context.say(f"{output}: {len(kept):,} photos, {time.monotonic() - began:.1f} s, digest {saved.digest[:12]}")
    if checked.worse:
        context.say("next: milnet score PHOTOS, with the general model; or rate more photos")
    else:
        context.say(f"next: milnet score PHOTOS --model {output}")
    try:  # so that reports can show them
        remember({digest: photo.resolve() for (photo, _), digest in zip(kept, pixels, strict=True)})
    except (ArtifactError, UsageError, OSError) as error:
        context.warn(f"reports will not show your rated photos: {error}")
    return {
        "model": str(output),
        "digest": saved.digest,
        "general": name,
        "photos": len(kept),
        "values": fitted.values.tolist(),
        "checked": {**checked.__dict__, "difference": checked.difference, "beats": checked.beats},
        "verdict": checked.verdict,
        "failures": [failure.__dict__ for failure in [*library.failures, *failures]],
    }


def _levels(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--levels {text}: expected numbers with commas, for example 1,2,3,4,5") from None


def _ids(photos: Sequence[Path]) -> list[str]:
    """A name for each photo: its path below the folder that holds them all."""
    paths = [photo.absolute() for photo in photos]
    if not paths:
        return []
    top = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(top).as_posix() for path in paths]
