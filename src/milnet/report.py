"""One HTML file about some photos: their scores, what moved them, and how good the model is.

The file holds everything it shows, thumbnails too. It loads nothing, runs nothing, and opens by a double click.
`report.html.jinja` has the words and the looks; here its numbers are made. Every text is escaped there.
"""

from __future__ import annotations

import io
import math
import os
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from milnet.album import known_photos, thumbnail
from milnet.artifacts import atomic_path
from milnet.doubt import COVERAGE, UNLIKE
from milnet.errors import ArtifactError, UsageError
from milnet.features import Progress
from milnet.scoring import Failure, Reference, Score, Scorer, star_signs
from milnet.version import __version__

_SIDE = 360  # pixels of a photo's long side, and of a pool photo's
_POOL_SIDE = 112
_OPEN = 20  # photos up to which the explanations are unfolded
_WORKERS = 4  # threads that decode
_METRICS = {  # how the metrics are written, and what they say
    "srcc": ("SRCC", "rank correlation of predicted and true mean votes; 1 is the best"),
    "plcc": ("PLCC", "linear correlation of the same; 1 is the best"),
    "emd2": ("EMD", "distance between the predicted and the true distribution of votes; 0 is the best"),
}
_WIDTH, _TOP, _BASE, _BAND = 360, 20, 112, 146  # of the chart, in its own units; y grows downwards
_SMALL = (72, 28)  # width and height of a small histogram
_MARK = '<meta name="generator" content="milnet'  # by which a report of ours is known
_JOINERS = "\u200c\u200d"  # they join emoji and letters, and are not printable by themselves
_UNITS = re.compile(r"(?<=\d) (?=%)")


@dataclass(frozen=True)
class Figures:
    """Results of a cross-validation, for one table: `rows` of (label, {metric: (mean, low, high)}).

    The metrics are named as in results: srcc, plcc, emd2. `title` says which folds, `note` stands below.
    """

    title: str
    rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A thumbnail inside the file: its address ("data:...") and its size in pixels."""

    address: str
    width: int
    height: int


def check_report(path: Path) -> None:
    """Raise UsageError, before any work is done, when no report can or must be written to `path`."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"-o {path}: expected a file name ending in .html, in a folder that exists")
    if path.exists():
        with path.open("rb") as file:
            if _MARK.encode() not in file.read(4096):
                raise UsageError(f"-o {path}: exists and is no report of milnet; choose another name")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"-o {path}: the folder cannot be written")


def write_report(
    path: Path,
    scores: Sequence[Score],
    failures: Sequence[Failure],
    *,
    scorer: Scorer,
    introduction: str,
    figures: Sequence[Figures] = (),
    command: str = "",
    progress: Progress | None = None,
) -> None:
    """Write the report to `path`, whole or not at all.

    `introduction`: one line that says which model scored and how good it is; what stands in `backticks` is shown as
    code. `figures`: results measured in this run. `command`: what the user typed. Photos are shown where their files
    can still be read, pool photos where `milnet pool images` found them and they have not changed since.
    """
    ordered = sorted(scores, key=lambda score: (-score.score, score.photo))
    pool, note = _pool_pictures(ordered, scorer, progress)
    names = Counter(Path(score.photo).name for score in ordered)
    model = scorer.model
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["unbroken"] = lambda text: _UNITS.sub("\N{NO-BREAK SPACE}", text)
    now = datetime.now().astimezone()
    content = environment.get_template("report.html.jinja").generate(
        introduction=introduction.split("`"),
        values=[f"{value:g}" for value in model.values],
        pool_size=len(model.pool),
        table=model.table_name,
        stars=[(f"{limit:g}", count) for count, limit in enumerate(scorer.stars, 2)],
        unlike=_share(UNLIKE),
        coverage=f"{COVERAGE:.0%}".replace("%", " %"),
        outside=sum(_outside(score) for score in ordered),
        figures=[_table(one) for one in figures],
        metrics=[_METRICS[name] for name in _METRICS if any(name in row[1] for one in figures for row in one.rows)],
        count=len(ordered),
        cards=_cards(ordered, scorer, pool, names, progress),
        open=len(ordered) <= _OPEN,
        pool=list(pool.values()),
        pool_note=note,
        failures=failures,
        version=__version__,
        digest=scorer.digest,
        command=command,
        date=now.strftime("%Y-%m-%d %H:%M %Z").strip(),
        date_iso=now.isoformat(timespec="seconds"),
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(content)


def shown(text: str) -> str:
    """A text as it can be shown: what a screen has no sign for (line breaks, stray bytes, turned text) as an escape."""
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def _picture(jpeg: bytes | None) -> Picture | None:
    if jpeg is None:
        return None
    with Image.open(io.BytesIO(jpeg)) as image:
        return Picture("data:image/jpeg;base64," + b64encode(jpeg).decode("ascii"), *image.size)


def _pool_pictures(
    scores: Sequence[Score], scorer: Scorer, progress: Progress | None
) -> tuple[dict[str, tuple[int, Picture]], str]:
    """{pool id: (number, picture)} of the references that can be shown, each once; and why there are none, if so."""
    try:
        places = known_photos()
    except ArtifactError as error:  # the scores are made and good: say it there, and show them
        return {}, str(error)
    digests = dict(zip(scorer.model.pool.ids, scorer.model.pool.pixels, strict=True))
    wanted = dict.fromkeys(reference.id for score in scores for reference in score.references)
    known = [(photo, digests[photo]) for photo in wanted if digests.get(photo) in places]

    def look(item: tuple[str, str]) -> Picture | None:
        return _picture(thumbnail(places[item[1]], item[1], _POOL_SIDE))

    pictures: dict[str, tuple[int, Picture]] = {}
    for (photo, _), picture in zip(known, _told(look, known, "photos of the pool", progress), strict=True):
        if picture is not None:
            pictures[photo] = (len(pictures), picture)
    return pictures, ""


def _told(
    function: Callable[[Any], Picture | None], items: Sequence[Any], what: str, progress: Progress | None
) -> Iterator[Picture | None]:
    """The results of threads, in the order of `items`; `progress` is told."""
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="milnet-report") as executor:
        for done, result in enumerate(executor.map(function, items), 1):
            yield result
            if progress is not None:
                progress(done, len(items), what)


# ---- cards -----------------------------------------------------------------------------------------------------------


def _cards(
    scores: Sequence[Score],
    scorer: Scorer,
    pool: Mapping[str, tuple[int, Picture]],
    names: Mapping[str, int],
    progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    """What the template shows of each photo, one after the other: thousands of thumbnails need not be held."""

    def look(score: Score) -> Picture | None:
        return _picture(thumbnail(Path(score.photo), None, _SIDE))

    for place, (score, picture) in enumerate(
        zip(scores, _told(look, scores, "pictures of the report", progress), strict=True), 1
    ):
        path, most = Path(score.photo), len(scorer.stars) + 1
        name = path.name or score.photo
        yield {
            "place": place,
            "name": name,
            "folder": str(path.parent) if names[path.name] > 1 else "",
            "picture": picture,
            "score": f"{score.score:.2f}",
            "ends": (f"{score.values[0]:g}", f"{score.values[-1]:g}"),
            "stars": score.stars,
            "star_signs": star_signs(score.stars, most),
            "most_stars": most,
            "percentile": None if score.percentile is None else f"{score.percentile:.0f}",
            "interval": None if score.low is None else (f"{score.low:.2f}", f"{score.high:.2f}"),
            "spread": f"{score.spread:.2f}",
            "chart": _chart(score),
            "outside": _outside(score),
            "unlike": None if score.unlike is None else _share(score.unlike),
            **_parts(score, scorer, pool),
        }


def _share(x: float) -> str:
    """Two digits, more where they decide on which side of UNLIKE it is."""
    digits = next(n for n in (2, 3, 4, 17) if (round(x, n) > UNLIKE) == (x > UNLIKE))
    return f"{x:.{digits}f}"


def _outside(score: Score) -> bool:
    return score.unlike is not None and score.unlike > UNLIKE


def _parts(score: Score, scorer: Scorer, pool: Mapping[str, tuple[int, Picture]]) -> dict[str, Any]:
    """The rows below "What moved this score": base + own + references + rest = sum, each with its signed bar."""
    model = scorer.model
    steps = [score.own, score.rest, *(reference.influence for reference in score.references)]
    bar = partial(_bar, largest=max(map(abs, steps)))

    def row(reference: Reference) -> dict[str, Any]:
        total = sum(reference.votes)
        mean = sum(v * n for v, n in zip(score.values, reference.votes, strict=True)) / total if total else math.nan
        number, picture = pool.get(reference.id, (None, None))
        return {
            "name": reference.id,
            "number": number,
            "picture": picture,
            "similarity": f"{reference.similarity:.2f}",
            "mean": _number(mean, 2),
            "votes": _histogram(reference.votes),
            "votes_text": _in_words(score.values, [f"{n:g}" for n in reference.votes]),
            "adds": signed(reference.influence),
            "bar": bar(reference.influence),
        }

    others = len(model.pool) - len(score.references) if model.recipe.whole else 0
    what = "the other references"
    if model.recipe.model == "graph":
        what = "not explained by leaving one out"
    elif others:
        what = f"the rest of the pool ({others:,} photos)"
    return {
        "base": f"{score.base:.3f}",
        "own": {"adds": signed(score.own), "bar": bar(score.own)},
        "references": [row(reference) for reference in score.references],
        "rest": {"what": what, "adds": signed(score.rest), "bar": bar(score.rest)}
        if score.references or abs(score.rest) >= 5e-4
        else None,
        "sum": f"{score.score:.3f}",
    }


def signed(x: float) -> str:
    """A number with its sign and three digits; of nothing, no sign."""
    text = f"{abs(x):.3f}"
    return text if float(text) == 0 else ("+" if x > 0 else "\N{MINUS SIGN}") + text


def _number(x: float, digits: int) -> str:
    return f"{x:.{digits}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(x) else "\N{EN DASH}"


def _table(figures: Figures) -> dict[str, Any]:
    """A table of results: columns in the order of `_METRICS`, others behind them; each cell (mean, interval)."""
    names = dict.fromkeys(name for _, found in figures.rows for name in found)
    names = dict.fromkeys((*(known for known in _METRICS if known in names), *names))
    rows = []
    for label, found in figures.rows:
        cells = []
        for name in names:
            mean, low, high = found.get(name, (math.nan,) * 3)
            interval = f"{_number(low, 3)} to {_number(high, 3)}" if math.isfinite(low) and math.isfinite(high) else ""
            cells.append((_number(mean, 3), interval))
        rows.append((label, cells))
    return {
        "title": figures.title,
        "columns": [_METRICS[name][0] if name in _METRICS else name for name in names],
        "rows": rows,
        "note": figures.note,
    }


# ---- drawings, in their own units ------------------------------------------------------------------------------------


def _chart(score: Score) -> dict[str, Any]:
    """The predicted distribution as bars, the values below, and the score with its interval on the same axis."""
    count = len(score.values)
    slot = _WIDTH / count
    most = max(*score.distribution, 1e-9)
    every = math.ceil(count / 12)  # so that the numbers below do not touch each other
    bars = []
    for i, (value, share) in enumerate(zip(score.values, score.distribution, strict=True)):
        height = (_BASE - _TOP) * share / most
        bars.append(
            {
                **_rectangle(slot * (i + 0.14), _BASE - height, slot * 0.72, height),
                "middle": _units(slot * (i + 0.5)),
                "above": _units(_BASE - height - 6),
                "share": f"{100 * share:.0f}" if count <= 12 else "",
                "value": f"{value:g}" if i % every == 0 else "",
            }
        )

    def at(x: float) -> float:
        return slot * (0.5 + (x - score.values[0]) / (score.values[1] - score.values[0]))

    band = None
    if score.low is not None and score.high is not None:
        band = _rectangle(at(score.low), _BAND - 4, at(score.high) - at(score.low), 8)
    return {
        "width": _WIDTH,
        "base": _BASE,
        "below": _BASE + 18,
        "line": _BAND,
        "ends": (_units(slot * 0.5), _units(_WIDTH - slot * 0.5)),
        "height": _BAND + 10,
        "bars": bars,
        "band": band,
        "dot": _units(at(score.score)),
        "words": _in_words(score.values, [f"{100 * share:.0f} %" for share in score.distribution]),
    }


def _histogram(votes: Sequence[float]) -> dict[str, Any]:
    width, height = _SMALL
    slot, most = width / len(votes), max(*votes, 1e-9)
    return {
        "width": width,
        "height": height,
        "bars": [
            _rectangle(slot * (i + 0.12), height - height * n / most, slot * 0.76, height * n / most)
            for i, n in enumerate(votes)
        ],
    }


def _bar(x: float, largest: float) -> dict[str, Any]:
    """A signed bar around 0 in a box from -50 to 50."""
    length = 48 * abs(x) / largest if largest else 0.0
    return {"x": _units(0 if x >= 0 else -length), "width": _units(length), "sign": "up" if x >= 0 else "down"}


def _rectangle(x: float, y: float, width: float, height: float) -> dict[str, str]:
    return {"x": _units(x), "y": _units(y), "width": _units(width), "height": _units(height)}


def _units(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def _in_words(values: Iterable[float], numbers: Iterable[str]) -> str:
    """A drawing for those who do not see it."""
    return ", ".join(f"{value:g}: {number}" for value, number in zip(values, numbers, strict=True))
