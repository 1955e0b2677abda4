"""What a measured model looks like: sheets of test photos beside their references, scores, learning curves.

    make_sheets   the best and worst predicted and the most disagreed photos of a test split, with their references
    draw_sheet    a row a photo: the photo, its votes and the predicted ones, each reference with its own votes
    draw_scatter  predicted against true scores        draw_curves  a training, epoch by epoch

matplotlib (extra `plots`) is imported where it is needed, without pyplot: nothing of it stays open. A user's
matplotlibrc is set aside while drawing, and no file holds a date, so the same numbers give the same figures.
"""

from __future__ import annotations

import csv
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import atomic_path
from milnet.errors import ImageError, MissingExtraError, UsageError
from milnet.evaluation import find_references
from milnet.features import FeatureSet
from milnet.images import open_photo
from milnet.metrics import Task, emd_rows
from milnet.pool import Store
from milnet.recipes import Model
from milnet.results import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "pdf", "svg"]
FORMATS = ("png", "pdf", "svg")
SHEETS = {  # name -> what it shows
    "best": "the lowest EMD2 between votes and prediction",
    "worst": "the highest EMD2 between votes and prediction",
    "disagreed": "the largest spread of votes",
}
SHOWN_REFERENCES = 6  # references of a photo that a sheet has room for
WRITTEN_REFERENCES = 100  # references of a photo in figures.csv: of a pool that was consulted as a whole, the nearest
PICTURE_SIDE = 400  # pixels: long side of a photo on a sheet
NUMBERS = "figures.csv"
_COLUMNS = ("sheet", "place", "photo", "true_score", "predicted_score", "emd2", "true_spread", "predicted_spread")
_DPI = 110
# Inches on a sheet: the parts of a row from left to right, a row's height, and what stands above the first.
_MARGIN, _PHOTO, _CHART, _CELL, _GAP, _ROW, _HEAD = 0.25, 2.2, 2.6, 1.5, 0.18, 2.62, 0.98
_CHART_AT = _MARGIN + _PHOTO + 0.53
_REFERENCES_AT = _CHART_AT + _CHART + 2 * _GAP
_MANY = 2000  # points above which a scatter shows how many lie in a cell
# Okabe and Ito's colours, which people who see few colours tell apart; votes and predictions differ in form, too.
_VOTES, _PREDICTED, _REFERENCE, _LINE = "#0072B2", "#D55E00", "#7F7F7F", "#444444"
_FONTS = (  # for ids in scripts that matplotlib's own font lacks: those of these that are installed
    "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Noto Sans Thai", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
    "WenQuanYi Zen Hei", "Arial Unicode MS",
)  # fmt: skip


# ---- what is shown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownReference:
    """A rated photo that was consulted: its id, likeness (as the model measures it), votes [S], file if known."""

    id: str
    similarity: float
    votes: FloatArray
    file: Path | None = None


@dataclass(frozen=True)
class ShownPhoto:
    """A test photo on a sheet: `true` and `predicted` distributions [S], EMD2 in bins, references most similar first.

    `references` is None where the model scores photos alone.
    """

    id: str
    true: FloatArray
    predicted: FloatArray
    emd2: float
    references: tuple[ShownReference, ...] | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Sheet:
    """Some of the `of` photos that were measured, the first being the one that is most what `name` says."""

    name: str
    photos: tuple[ShownPhoto, ...]
    of: int

    def shown(self) -> list[ShownPhoto | ShownReference]:
        """The photos, each followed by those of its references that have room."""
        found: list[ShownPhoto | ShownReference] = []
        for photo in self.photos:
            found += [photo, *(photo.references or ())[:SHOWN_REFERENCES]]
        return found

    def files(self) -> list[Path]:
        """The files of what is shown, each once, where they are known."""
        return list(dict.fromkeys(item.file for item in self.shown() if item.file is not None))


def choose(table: Table, predictions: Predictions, count: int) -> dict[str, IntArray]:
    """Places [count] among the predictions (of the first seed) for each sheet; ties go to the first in the table."""
    if count < 1:
        raise UsageError(f"expected at least 1 photo a sheet, got {count}")
    true = table.distributions[predictions.rows]
    distance = emd_rows(true, predictions.distributions[0], 2)
    keys = {"best": distance, "worst": -distance, "disagreed": -table.spreads[predictions.rows]}
    # Rounded: the last bits of a sum decide between equals on one machine and not on another.
    return {name: np.lexsort((predictions.rows, np.round(keys[name], 12)))[:count] for name in SHEETS}


def make_sheets(
    model: Model,
    table: Table,
    features: FeatureSet,
    predictions: Predictions,
    count: int = 6,
    *,
    store: Store | None = None,
    device: str = "cpu",
) -> list[Sheet]:
    """The best, worst and most disagreed `count` of the predicted photos, with the references the model consulted.

    `predictions` are those of `evaluation.evaluate` with the same model, table and features. Files of references are
    known only where the pool's photos come from `table`.
    """
    chosen = choose(table, predictions, count)
    places = np.unique(np.concatenate(list(chosen.values())))
    true, predicted = table.distributions[predictions.rows], predictions.distributions[0]
    distance = emd_rows(true, predicted, 2)
    found = find_references(model, table, features, predictions.rows[places], store=store, device=device)
    own_photos = table.name == model.table_name
    row_of = {id_: row for row, id_ in enumerate(table.ids)} if own_photos and found is not None else {}

    def reference(position: int, similarity: float) -> ShownReference:
        id_, pool = model.pool.ids[position], model.pool
        file = _file(table, row_of[id_]) if id_ in row_of else None
        return ShownReference(id_, similarity, pool.distributions[position] * pool.totals[position], file)

    shown = {}
    for i, place in enumerate(places):
        row, references = int(predictions.rows[place]), None
        if found is not None:
            pairs = zip(found.index[i], found.similarity[i], strict=True)
            references = tuple(reference(int(at), float(s)) for at, s in pairs if at >= 0)
        shown[int(place)] = ShownPhoto(
            table.ids[row], true[place], predicted[place], float(distance[place]), references, _file(table, row)
        )
    return [Sheet(name, tuple(shown[int(place)] for place in chosen[name]), len(predictions.rows)) for name in SHEETS]


def _file(table: Table, row: int) -> Path | None:
    try:
        return table.image_path(row)
    except UsageError:  # the labels came without photos: the sheet shows the numbers
        return None


def load_pictures(files: Sequence[Path], side: int = PICTURE_SIDE) -> tuple[dict[Path, Image.Image], list[ImageError]]:
    """The photos, upright, with a long side of at most `side` pixels; those that cannot be read, with the reason."""
    pictures, failures = {}, []
    for file in files:
        try:
            picture = open_photo(file, draft_side=side).pixels
        except ImageError as error:
            failures.append(error)
            continue
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        pictures[file] = picture
    return pictures, failures


# ---- drawing ---------------------------------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", "milnet figures") from error


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults and ours for a while, whatever the user's matplotlibrc says (LaTeX, fonts, dates)."""
    require_matplotlib()
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    with matplotlib.rc_context(), warnings.catch_warnings():
        # An id in a script that no installed font has is drawn as boxes; figures.csv has it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": ["DejaVu Sans", *(name for name in _FONTS if name in installed)],
                "font.size": 8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.linewidth": 0.6,
                "axes.unicode_minus": False,
                "xtick.major.width": 0.6,
                "ytick.major.width": 0.6,
                "legend.frameon": False,
                "svg.hashsalt": "milnet",
            }
        )
        yield


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "none"


def shorten(text: str, width: int) -> str:
    """A text of at most `width` letters, wide ones counting twice; what is too long loses its middle.

    Characters that nothing can draw (control characters, directions) become "\ufffd".
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)

    def wide(part: str) -> int:
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in part)

    if wide(text) <= width:
        return text
    left, right = "", ""
    for i in range(len(text)):  # by turns from both ends
        left, right = (left + text[i // 2], right) if i % 2 == 0 else (left, text[-1 - i // 2] + right)
        if wide(left) + wide(right) + 1 > width:
            break
    return (left[:-1] + "…" + right) if i % 2 == 0 else (left + "…" + right[1:])


class _Page:
    """A figure of a fixed size on which things lie at inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, x: float, y: float, text: str, *, room: float | None = None, **settings: Any) -> None:
        """A line of text whose top is at y, shortened to `room` inches; never read as a formula."""
        line = self.figure.text(x / self.width, 1 - y / self.height, text, va="top", parse_math=False, **settings)
        if room is None:
            return
        width = 60
        line.set_text(shorten(text, width))
        while width > 3 and (inches := line.get_window_extent().width / _DPI) > room:
            width = max(3, min(width - 1, int(width * room / inches) + 1))
            line.set_text(shorten(text, width))

    def rule(self, y: float) -> None:
        """A thin line across the page."""
        from matplotlib.lines import Line2D

        x, at = _MARGIN / self.width, 1 - y / self.height
        self.figure.add_artist(Line2D([x, 1 - x], [at, at], color="#DDDDDD", linewidth=0.8))

    def picture(self, x: float, y: float, width: float, height: float, picture: Image.Image | None, why: str) -> None:
        """A photo in the upper left of a box, or an empty frame that says why there is none."""
        if picture is not None:
            scale = min(width / picture.width, height / picture.height)
            width, height = picture.width * scale, picture.height * scale
        axes = self.axes(x, y, width, height)
        axes.set_xticks([])
        axes.set_yticks([])
        if picture is not None:
            axes.set_axis_off()
            axes.imshow(np.asarray(picture), aspect="auto", interpolation="antialiased", interpolation_stage="rgba")
            return
        axes.set_facecolor("#F2F2F2")
        for spine in axes.spines.values():
            spine.set(visible=True, color="#BBBBBB", linestyle=":")
        axes.text(0.5, 0.5, why, ha="center", va="center", color="#666666", fontsize=7, transform=axes.transAxes)


def _histogram(
    axes: Axes, values: FloatArray, votes: FloatArray, top: float, *, predicted: FloatArray | None, labels: int
) -> None:
    """Votes as bars, the prediction as a line with points; an upright line at each mean. `labels`: ticks at most."""
    step = float(values[1] - values[0])
    colour = _REFERENCE if predicted is None else _VOTES
    axes.bar(values, votes, width=0.8 * step, color=colour, linewidth=0, alpha=0.85)
    means = [(votes, colour)]
    if predicted is not None:
        axes.plot(values, predicted, color=_PREDICTED, marker="o", markersize=3.5, linewidth=1.4)
        means.append((predicted, _PREDICTED))
    for p, ink in means:
        axes.axvline(float(p @ values), color=ink, linewidth=1.1, linestyle="-" if p is votes else "--")
    axes.set_xlim(values[0] - 0.7 * step, values[-1] + 0.7 * step)
    axes.set_ylim(0, top)
    ticks = values[:: -(-len(values) // labels)]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.tick_params(labelsize=7, length=2, pad=1.5)


def draw_sheet(sheet: Sheet, values: FloatArray, pictures: Mapping[Path, Image.Image], about: str = "") -> Figure:
    """A sheet: a row a photo. `values` [S]; `pictures` as `load_pictures` gives them; `about` what was measured.

    A photo that is not among the pictures leaves an empty frame. Raises MissingExtraError.
    """
    with _style():
        most = max((len(photo.references or ()) for photo in sheet.photos), default=0)
        columns = min(SHOWN_REFERENCES, most)
        width = _REFERENCES_AT + columns * (_CELL + _GAP) - _GAP + _MARGIN if columns else _CHART_AT + _CHART + _MARGIN
        page = _Page(max(width, 6.0), _HEAD + len(sheet.photos) * _ROW)
        page.text(_MARGIN, 0.15, f"{sheet.name}: {SHEETS.get(sheet.name, '')}", fontsize=12, weight="bold")
        told = [f"{len(sheet.photos):,} of {sheet.of:,} photos", *([about] if about else [])]
        if all(photo.references is None for photo in sheet.photos):
            told.append("the model consults no references")
        page.text(_MARGIN, 0.40, "; ".join(told))
        page.text(_MARGIN, 0.60, "bars: votes", color=_VOTES)
        page.text(_MARGIN + 0.8, 0.60, "points: predicted", color=_PREDICTED)
        page.text(_MARGIN + 1.95, 0.60, "upright lines: the scores (means)", color=_LINE)
        if columns:
            those = f"the {columns} nearest of {most} references" if most > columns else "references, the nearest first"
            page.text(_REFERENCES_AT, 0.60, f"{those}, with their votes", color=_LINE)
        for i, photo in enumerate(sheet.photos):
            y = _HEAD + i * _ROW
            if i:
                page.rule(y - 0.08)
            _draw_row(page, y, i + 1, photo, values, pictures)
        return page.figure


def _draw_row(
    page: _Page,
    y: float,
    place: int,
    photo: ShownPhoto,
    values: FloatArray,
    pictures: Mapping[Path, Image.Image],
) -> None:
    """One photo with what was predicted for it and beside which references, from `y` inches on."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    references = (photo.references or ())[:SHOWN_REFERENCES]
    shares = [reference.votes / reference.votes.sum() for reference in references]
    top = 1.12 * max(float(p.max()) for p in (photo.true, photo.predicted, *shares))  # one height for the whole row
    page.text(_MARGIN, y, str(place), fontsize=9, weight="bold")
    page.text(_MARGIN + 0.25, y, photo.id, room=_PHOTO - 0.25, fontsize=9, weight="bold")
    page.picture(_MARGIN, y + 0.24, _PHOTO, 2.06, _picture(pictures, photo.file), _why(photo.file))
    for i, (what, p, ink) in enumerate((("votes", photo.true, _VOTES), ("predicted", photo.predicted, _PREDICTED))):
        score, spread = _moments(p, values)
        page.text(_CHART_AT, y + 0.16 * i, f"{what}: score {_number(score)}, spread {_number(spread)}", color=ink)
    page.text(_CHART_AT + _CHART, y, f"EMD2 {_number(photo.emd2, 3)}", color=_LINE, ha="right")
    axes = page.axes(_CHART_AT, y + 0.4, _CHART, 1.9)
    _histogram(axes, values, photo.true, top, predicted=photo.predicted, labels=11)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    for i, (reference, p) in enumerate(zip(references, shares, strict=True)):
        x = _REFERENCES_AT + i * (_CELL + _GAP)
        score, spread = _moments(p, values)
        page.text(x, y, reference.id, room=_CELL)
        page.text(x, y + 0.16, f"score {_number(score)}, spread {_number(spread)}", color=_LINE, fontsize=7.5)
        page.text(x, y + 0.30, f"similarity {_number(reference.similarity)}", color=_LINE, fontsize=7.5)
        page.picture(x, y + 0.47, _CELL, 1.12, _picture(pictures, reference.file), _why(reference.file))
        axes = page.axes(x, y + 1.66, _CELL, 0.64)
        _histogram(axes, values, p, top, predicted=None, labels=11)
        axes.set_yticks([])


def _picture(pictures: Mapping[Path, Image.Image], file: Path | None) -> Image.Image | None:
    return None if file is None else pictures.get(file)


def _why(file: Path | None) -> str:
    return "file not known" if file is None else "could not be read"


def _moments(p: FloatArray, values: FloatArray) -> tuple[float, float]:
    """Score and spread of a distribution [S], in units of `values`."""
    score = float(p @ values)
    return score, float(np.sqrt(p @ (values - score) ** 2))


def draw_scatter(true: FloatArray, predicted: FloatArray, task: Task, about: str = "") -> Figure:
    """Predicted against true scores of n photos; `true` and `predicted` are distributions [n, S].

    Above 2,000 photos hexagons tell how many photos lie in them. The lines of the accuracy threshold are left out
    where it lies outside the values. Raises MissingExtraError.
    """
    x, y = true @ task.values, predicted @ task.values
    functions = task.metrics()
    found = {name: functions[name](true, predicted) for name in ("srcc", "plcc", "mse", "accuracy")}
    with _style():
        many = len(x) > _MANY
        page = _Page(6.2 if many else 5.5, 6.0)
        axes = page.axes(0.7, 0.85, 4.6, 4.6)
        marks = [task.threshold] if task.values[0] <= task.threshold <= task.values[-1] else []
        low, high = (f([f(x), f(y), *marks]) for f in (np.min, np.max))
        pad = 0.04 * (high - low) or float(task.values[1] - task.values[0])
        limits = (low - pad, high + pad)
        axes.plot(limits, limits, color=_PREDICTED, linewidth=1, zorder=3)
        for mark in marks:
            axes.axvline(mark, color=_LINE, linewidth=0.7, linestyle=":", zorder=3)
            axes.axhline(mark, color=_LINE, linewidth=0.7, linestyle=":", zorder=3)
        if many:
            from matplotlib.colors import LinearSegmentedColormap
            from matplotlib.ticker import FuncFormatter, NullFormatter

            shades = LinearSegmentedColormap.from_list("votes", ["#BBD7EA", _VOTES, "#00243A"])
            shown = axes.hexbin(x, y, gridsize=60, extent=(*limits, *limits), bins="log", mincnt=1, cmap=shades)
            bar = page.figure.colorbar(shown, cax=page.axes(5.42, 0.85, 0.12, 4.6))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
            bar.set_label("photos in a hexagon")
        else:
            alpha = 0.7 if len(x) < 300 else 0.4
            axes.scatter(x, y, s=14, color=_VOTES, alpha=alpha, linewidths=0)
        axes.set(xlim=limits, ylim=limits, xlabel="true score (mean vote)", ylabel="predicted score")
        told = ", ".join(f"{name.upper()} {_number(found[name], 3)}" for name in ("srcc", "plcc", "mse"))
        page.text(0.7, 0.15, told, fontsize=12, weight="bold")
        page.text(0.7, 0.40, f"{len(x):,} photos" + (f"; {about}" if about else ""))
        if marks:
            line = f"accuracy {_number(found['accuracy'], 3)} (good: {task.side} {task.threshold:g}, dotted)"
            page.text(0.7, 0.57, line, color=_LINE)
        return page.figure


def draw_curves(history: Sequence[Mapping[str, float | None]], chosen: int, about: str = "") -> Figure:
    """Training loss, validation EMD2 and SRCC of a training, epoch by epoch, with the `chosen` number of epochs.

    `history`: lines with epoch, loss, emd2, srcc, as `Model.history` has them; None where a value does not exist.
    Raises UsageError when there is no line, MissingExtraError.
    """
    if not history:
        raise UsageError("there are no learning curves: the model keeps no history of its training")
    panels = (
        ("loss", "training loss", _LINE),
        ("emd2", "validation EMD2", _VOTES),
        ("srcc", "validation SRCC", _PREDICTED),
    )
    epochs = np.array([line["epoch"] for line in history], np.float64)
    with _style():
        from matplotlib.ticker import MaxNLocator

        page = _Page(6.2, 6.1)
        page.text(0.8, 0.15, f"learning curves, {chosen} of {len(history)} epochs chosen", fontsize=12, weight="bold")
        page.text(0.8, 0.40, about)
        for i, (name, label, ink) in enumerate(panels):
            axes = page.axes(0.8, 0.75 + 1.68 * i, 5.15, 1.45)
            curve = np.array([np.nan if line.get(name) is None else line[name] for line in history], np.float64)
            axes.plot(epochs, curve, color=ink, linewidth=1.4, marker="o" if len(epochs) <= 30 else None, markersize=3)
            axes.axvline(chosen, color=_LINE, linewidth=0.9, linestyle="--")
            if chosen in epochs:
                value = curve[int(np.flatnonzero(epochs == chosen)[0])]
                side = -1 if chosen > epochs.mean() else 1
                axes.annotate(
                    _number(value, 4),
                    (chosen, 1),
                    (4 * side, -3),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="left" if side > 0 else "right",
                    va="top",
                    color=_LINE,
                )
            axes.set_ylabel(label)
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            if i < len(panels) - 1:
                axes.tick_params(labelbottom=False)
        axes.set_xlabel("epoch")
        return page.figure


# ---- files -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raise UsageError, before any work is done, when figures cannot or must not be written to `folder`.

    A folder that is not empty is taken only with `overwrite`, and only when it holds a figures.csv of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: expected a folder to make, but there is a file of that name")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UsageError(f"-o {folder}: {above} is a file, so there can be no folder in it")
    if not os.access(above, os.W_OK):
        raise UsageError(f"-o {folder}: nothing can be written to {above}; choose another place")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"-o {folder}: exists and is not empty; choose another name, or pass --overwrite")
    first = b""
    if (folder / NUMBERS).is_file():
        with (folder / NUMBERS).open("rb") as file:
            first = file.readline(100_000)
    if not first.startswith(",".join(_COLUMNS).encode()):
        raise UsageError(f"-o {folder}: holds no figures of milnet (no {NUMBERS}), so nothing in it is overwritten")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix: .png, .pdf or .svg, without dates; it appears whole or not at all."""
    format_ = path.suffix.lower().lstrip(".")
    if format_ not in FORMATS:
        raise UsageError(f"{path}: expected a name ending in .{', .'.join(FORMATS)}")
    no_dates: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    with _style(), atomic_path(path) as temporary:
        figure.savefig(temporary, format=format_, metadata=no_dates[format_])


def write_numbers(path: Path, sheets: Sequence[Sheet], values: FloatArray) -> None:
    """Write figures.csv: every number on the sheets, a row a photo, `place` counting from 1 as on the sheet.

    Columns: sheet, place, photo, true_score, predicted_score, emd2, true_spread, predicted_spread, true_VALUE and
    p_VALUE for each value (shares), references (JSON: id, similarity, score, spread, votes; those that were
    consulted, at most 100, nearest first; empty where the model scores photos alone).
    """
    names = [f"{value:g}" for value in values]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(f"true_{n}" for n in names), *(f"p_{n}" for n in names), "references"])
        for sheet in sheets:
            for place, photo in enumerate(sheet.photos, 1):
                (score, spread), (guess, doubt) = (_moments(p, values) for p in (photo.true, photo.predicted))
                writer.writerow(
                    [
                        *(sheet.name, place, photo.id, score, guess, photo.emd2, spread, doubt),
                        *photo.true.tolist(),
                        *photo.predicted.tolist(),
                        "" if photo.references is None else _reference_json(photo.references, values),
                    ]
                )


def _reference_json(references: Sequence[ShownReference], values: FloatArray) -> str:
    lines = []
    for reference in references[:WRITTEN_REFERENCES]:
        score, spread = _moments(reference.votes / reference.votes.sum(), values)
        lines.append(
            {
                "id": reference.id,
                "similarity": reference.similarity,
                "score": score,
                "spread": spread,
                "votes": reference.votes.tolist(),
            }
        )
    return json.dumps(lines, ensure_ascii=False, allow_nan=False)
