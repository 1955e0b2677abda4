"""demo: the whole method at work on the shipped pool."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, command, command_line
from milnet.cli.showing import Stars, introduction, read_stars, show_scores
from milnet.errors import UsageError
from milnet.places import POOL, find_data

_FEATURES = {"pocket": "pocket", "standard": "mobilenetv2_100"}  # of the shipped pool, by model
_NOTE = "One seed, pooled out-of-fold predictions; in brackets 95 % bootstrap intervals by theme. "
_TITLES = {
    "random": ("Five random folds", "Photos of the same theme may be among the references, as in one's own library."),
    "theme": ("Five theme folds", "No reference is of the photo's own theme."),
}


@command("demo")
def demo(
    context: Context,
    photos: Annotated[
        list[str] | None, typer.Argument(help="Photos, folders, patterns to score.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report to write.")] = Path("report.html"),
    stars: Stars = None,
) -> Mapping[str, Any]:
    """Measure the method on the shipped pool, train, score photos, write a report. No download, under two minutes."""
    from milnet.demo import METRICS, run
    from milnet.library import find_photos
    from milnet.report import Figures, write_report
    from milnet.scoring import STARS, Scorer, score_files
    from milnet.shipped import BETTER, best_model

    if output.suffix.lower() not in (".html", ".htm") or output.is_dir() or not output.parent.is_dir():
        raise UsageError(f"-o {output}: expected a file name ending in .html, in a folder that exists")
    files = find_photos(photos) if photos else []
    data, usable = find_data(POOL), best_model()
    limits = STARS if stars is None else read_stars(stars)
    began = time.monotonic()
    context.say(
        "The shipped pool: 677 photos, each judged by 104 to 368 people (1..7). Each recipe predicts each fold from "
        "the others."
    )
    with tempfile.TemporaryDirectory(prefix="milnet-demo-") as folder:
        model = Path(folder) / "model"
        with context.progress() as progress:
            measured, left = run(data, _FEATURES[usable], _FEATURES["standard"], model, told=progress.say)
        figures = []
        for kind, (title, what) in _TITLES.items():
            rows = tuple((f"{m.cell.recipe} on {m.cell.features}", m.metrics) for m in measured if m.cell.kind == kind)
            if not rows:
                context.say(f"{title}: no time was left for them")
                continue
            figures.append(Figures(title, rows, _NOTE + what))
            context.say(f"{title}. {what}")
            context.table(
                ["  recipe", *(name.upper() for name in METRICS)],
                [
                    [f"  {label}", *("{:.3f} [{:.3f}, {:.3f}]".format(*found[name]) for name in METRICS)]
                    for label, found in rows
                ],
            )
        scorer = Scorer.load(model, device=context.compute_device(), offline=True, stars=limits)
        opening = introduction(usable, scorer)
        with context.progress() as progress:
            scores, failures = score_files(scorer, files, progress=progress) if files else ([], [])
        write_report(
            output, scores, failures, scorer=scorer, introduction=opening, figures=figures, command=command_line()
        )
    if files:
        context.say(opening)
        show_scores(context, scorer, scores, len(scores))
    for failure in failures:
        context.warn(f"not scored: {failure.photo}: {failure.reason}")
    context.failed = bool(failures)
    context.say(f"{output.resolve()}, {time.monotonic() - began:.0f} s")
    return {
        "report": str(output.resolve()),
        "model": usable,
        "measured": [{**m.cell.__dict__, **m.metrics} for m in measured],
        "left_out": [cell.__dict__ for cell in left],
        "scores": [score.row() for score in scores],
        "failures": [failure.__dict__ for failure in failures],
        "better": BETTER if usable == "pocket" else None,
    }
