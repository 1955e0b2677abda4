"""demo: the whole method at work on the shipped pool."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, command, command_line
from milnet.cli.showing import Stars, find_library, read_stars, show_scores, tell_failures
from milnet.places import MODELS, bundled

if TYPE_CHECKING:
    from milnet.scoring import Failure, Score

_NOTE = "One seed, pooled out-of-fold predictions, with 95 % bootstrap intervals by theme. "
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
    from milnet.annotations import load_table
    from milnet.demo import METRICS, run
    from milnet.files import score_files
    from milnet.report import Figures, check_report, write_report
    from milnet.scoring import Scorer, introduction
    from milnet.shipped import BETTER, best_model

    check_report(output)
    limits, device = read_stars(stars), context.compute_device()  # before the work
    library = find_library(context, photos) if photos else None
    data, usable = bundled("pool"), best_model(context.warn)
    began = time.monotonic()
    table, _ = load_table(data)
    voters = table.votes.sum(1)
    context.say(
        f"The shipped pool: {len(table)} photos, each judged by {voters.min():.0f} to {voters.max():.0f} people "
        f"({table.values[0]:g}..{table.values[-1]:g}). Each recipe predicts each fold from the others."
    )
    # on Windows a file that is mapped into memory cannot be removed
    with tempfile.TemporaryDirectory(prefix="milnet-demo-", ignore_cleanup_errors=True) as folder:
        model = Path(folder) / "model"
        with context.progress() as progress:
            how: Any = {"workers": context.threads, "told": progress.say}
            measured, left = run(data, MODELS[usable], MODELS["standard"], model, **how)
        figures = []
        for kind, (title, what) in _TITLES.items():
            rows = tuple((m.cell.label, m.metrics) for m in measured if m.cell.kind == kind)
            missing = ", ".join(cell.label for cell in left if cell.kind == kind)
            late = f" No time was left for: {missing}." if missing else ""
            context.say(f"{title}. {what}{late}")
            if rows:
                figures.append(Figures(title, rows, _NOTE + what + late))
                context.table(["  recipe", *(name.upper() for name in METRICS)], [_row(*row) for row in rows])
        scorer = Scorer.load(model, device=device, offline=True, **limits)
        opening = introduction(usable, scorer)
        with context.progress() as progress:
            scores: list[Score] = []
            failures: list[Failure] = []
            if library is not None:
                scored = score_files(scorer, library.photos, progress=progress)
                scores, failures = scored.scores, [*library.failures, *scored.failures]
            how = {"figures": figures, "command": command_line(), "progress": progress}
            write_report(output, scores, failures, scorer=scorer, introduction=opening, **how)
    context.say(opening)
    if library is not None:
        show_scores(context, scorer, scores, len(scores))
    tell_failures(context, failures)
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


def _row(label: str, found: Mapping[str, tuple[float, float, float]]) -> list[str]:
    return [f"  {label}", *("{:.3f} [{:.3f}, {:.3f}]".format(*numbers) for numbers in found.values())]
