"""Scores as people read them: which model, stars, percentile, interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context
from milnet.errors import UsageError
from milnet.places import bundled, find_model

if TYPE_CHECKING:
    from milnet.scoring import Failure, Score, Scorer, StarsOf

ModelName = Annotated[
    str | None,
    typer.Option(
        help="MODEL folder, or a shipped model: pocket | standard.", show_default="standard if its weights were added"
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        help="What passes photos through the backbone: torch | onnx (extra onnx, on a CPU) | auto (times both on the "
        "first photos, takes the faster)."
    ),
]
Stars = Annotated[
    str | None,
    typer.Option(
        help="Percentiles in the pool from which a photo has 2, 3, ... stars; folder:20,40,60,80 for percentiles in "
        "the folder, score:2.5,3.5,4.5,5.5 for scores.",
        show_default="10,35,65,90",
    ),
]


@dataclass(frozen=True)
class Named:
    """What the arguments of a command name: photos, and what cannot be one."""

    photos: tuple[Path, ...]
    failures: tuple[Failure, ...]


def find_library(context: Context, photos: Sequence[str] | None, files_from: str | None = None) -> Named:
    """The photos that are meant; says what was left out on purpose. UsageError when there are none."""
    from milnet.library import find_photos
    from milnet.scoring import Failure

    if not photos and files_from is None:
        raise UsageError("which photos? Expected files, folders or patterns, or a list: --files-from FILE")
    library = find_photos(photos or (), files_from=files_from)
    for note in library.notes:
        context.warn(note)
    return Named(library.photos, tuple(Failure(error.file, error.reason) for error in library.failures))


def load_scorer(
    context: Context, model: str | None, stars: str | None, weights: str | None, **how: Any
) -> tuple[str, Scorer]:
    """The name and the scorer of what --model names, or of the best shipped model that works here; introduced."""
    from milnet.scoring import Scorer, introduction
    from milnet.shipped import best_model

    name = model or best_model(context.warn)
    # without --model nobody has named a folder: one that happens to lie here is not meant
    folder = find_model(name) if model else bundled(name)
    scorer = Scorer.load(
        folder, weights=weights, device=context.compute_device(), offline=context.offline, **read_stars(stars), **how
    )
    context.say(introduction(name, scorer))
    if scorer.pool.index is None and not scorer.pool.stays:
        context.warn(
            f"the pool's {len(scorer.pool):,} photos are read anew for every {scorer.together} photos that are scored: "
            f"an index is far faster (milnet pool index {name} -o INDEXED --index faiss)"
        )
    return name, scorer


def read_stars(text: str | None) -> dict[str, Any]:
    """What --stars says, checked, for a scorer; nothing where it says nothing."""
    from milnet.scoring import check_stars

    if text is None:
        return {}
    kinds: dict[str, StarsOf] = {
        "": "percentile",
        "pool": "percentile",
        "folder": "folder_percentile",
        "score": "score",
    }
    kind, _, limits = text.rpartition(":")
    try:
        found = [float(part) for part in limits.split(",")]
        return {"stars": check_stars(found, kinds[kind]), "stars_of": kinds[kind]}
    except (ValueError, KeyError):
        raise UsageError(
            f"--stars {text}: expected limits with commas, for example 10,35,65,90 (percentiles in the pool), "
            f"folder:20,40,60,80 or score:2.5,3.5,4.5,5.5"
        ) from None


def show_scores(context: Context, scorer: Scorer, scores: Sequence[Score], limit: int) -> None:
    """A table of the best `limit` scores."""
    from milnet.doubt import UNLIKE
    from milnet.scoring import star_signs

    context.table(
        ["photo", "score", "stars", "percentile", "90 % interval", "spread", "unlike"],
        [
            [
                s.photo,
                f"{s.score:.2f}",
                star_signs(s.stars, len(scorer.stars) + 1),
                "" if s.percentile is None else whole_percent(s.percentile),
                interval(s),
                "" if s.spread is None else f"{s.spread:.2f}",
                "" if s.unlike is None else f"{s.unlike:.2f}" + ("!" if s.unlike > UNLIKE else ""),
            ]
            for s in sorted(scores, key=lambda s: -s.score)[:limit]
        ],
    )


def whole_percent(x: float) -> str:
    """A percentile without digits behind the point; 100 only where it is all."""
    return f"{min(x, 99.0) if x < 100 else x:.0f}"


def interval(score: Score) -> str:
    """The 90 % interval, or nothing where the model cannot tell."""
    return "" if score.low is None else f"{score.low:.2f} to {score.high:.2f}"


def tell_failures(context: Context, failures: Sequence[Failure]) -> None:
    """Name each photo that could not be scored; with any, the command ends with 1."""
    for failure in failures:
        context.warn(f"not scored: {failure.photo}: {failure.reason}")
    context.failed = bool(failures)
