"""One HTML file about some photos: their scores, what moved them, and how good the model is.

The file holds everything it shows, thumbnails too. It loads nothing from anywhere, and opens by a double click.

    web/report.html.jinja    the words, and what stands without a script: every text is escaped there
    web/meaning.html.jinja   what the score means; the page of `milnet serve` says it, too
    web/style.css            the looks, light and dark
    web/pieces.js            numbers, charts, tables of a photo
    web/gallery.js           sorting, filters, a photo's page, two photos side by side
    web/report.js            reads the data of the file, and begins

Here the numbers are made. They stand in the file as data: the photos as one JSON block, each picture as one text block
that is turned into an image when it comes into view. The only script that runs is the three modules joined, named by
its digest: a page opened by a double click may not load modules.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import features

from milnet.album import known_photos
from milnet.artifacts import atomic_path
from milnet.doubt import COVERAGE, UNLIKE
from milnet.errors import ArtifactError, MilnetError, UsageError
from milnet.features import Progress
from milnet.images import open_photo
from milnet.scoring import Failure, Score, Scorer, star_signs
from milnet.version import __version__

_FEW = 20  # photos up to which each is shown in full from the start
_FULL = 60  # photos up to which they can be shown in full below each other
_SIDES = (224, 1024)  # pixels of a picture's long side, at least and at most
_PICTURES = 36e6  # characters that the pictures of the photos together should take
_EACH = 17e3  # characters that a picture with a long side of 320 pixels takes, as measured
_POOL_SIDE = 160
_POOL_MOST = 2000  # photos of the pool that are shown at most: those that are consulted most
_QUALITY = 78  # of the pictures, as Pillow counts
_WORKERS = 4  # threads that decode
_METRICS = {  # how the metrics are written, and what they say
    "srcc": ("SRCC", "rank correlation of predicted and true mean votes; 1 is the best"),
    "plcc": ("PLCC", "linear correlation of the same; 1 is the best"),
    "emd2": ("EMD", "distance between the predicted and the true distribution of votes; 0 is the best"),
}
_STARS_OF = {"percentile": "percentile", "folder_percentile": "folder percentile", "score": "score"}
_MARK = '<meta name="generator" content="milnet'  # by which a report of ours is known
_FAR = {False: "unlike anything it learned from", True: "unlike any photo you rated"}  # by: own taste?
_WEB = Path(__file__).with_name("web")
_MODULES = ("pieces.js", "gallery.js", "report.js")  # each imports only from those before it
_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./[a-z]+\.js\";\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)
_JOINERS = "\u200c\u200d"  # they join emoji and letters, and are not printable by themselves
_UNITS = re.compile(r"(?<=\d) (?=%)")
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})  # inside JSON; json escapes all beyond ASCII itself


@dataclass(frozen=True)
class Figures:
    """Results of a cross-validation, for one table: `rows` of (label, {metric: (mean, low, high)}).

    The metrics are named as in results: srcc, plcc, emd2. `title` says which folds, `note` stands below.
    """

    title: str
    rows: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]]
    note: str = ""


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
    rated, count = scorer.pool, len(ordered)
    places, note = _known_places()
    pool = _Pool(ordered, dict(zip(rated.ids, rated.pixels, strict=True)), places)
    photos = list(_photos(ordered, scorer, pool, path))
    environment = Environment(
        loader=FileSystemLoader(_WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["unbroken"] = lambda text: _UNITS.sub("\N{NO-BREAK SPACE}", text)
    now = datetime.now().astimezone()
    script = _script()
    coverage = f"{COVERAGE:.0%}".replace("%", " %")
    values = [f"{value:g}" for value in scorer.values]
    own = scorer.taste is not None  # one person's taste
    data = {
        "photos": photos,
        "pool": pool.listed,
        "values": [float(value) for value in scorer.values],
        "coverage": coverage,
        "unlike": UNLIKE,
        "stars": len(scorer.stars) + 1,
        "full": _FULL,
        "view": "full" if count <= _FEW else "grid",
        "own": own,
        "far": _FAR[own],
    }
    content = environment.get_template("report.html.jinja").generate(
        style=Markup(_web("style.css")),
        script=Markup(script),
        digest_of_script=b64encode(sha256(script.encode()).digest()).decode("ascii"),
        data=_json(data),
        introduction=introduction.split("`"),
        values=values,
        own=own,
        pool_size=len(rated),
        table=scorer.model.table_name,
        stars=[(f"{limit:g}", number) for number, limit in enumerate(scorer.stars, 2)],
        stars_of=_STARS_OF[scorer.stars_of],
        unlike=_share(UNLIKE),
        coverage=coverage,
        outside=sum(_outside(score) for score in ordered),
        far=_FAR[own],
        bursts=len({score.group for score in ordered if score.group is not None}),
        figures=[_table(one) for one in figures],
        metrics=[_METRICS[name] for name in _METRICS if any(name in row[1] for one in figures for row in one.rows)],
        count=count,
        few=count <= _FEW,
        rows=[_row(score, photo, scorer) for score, photo in zip(ordered, photos, strict=True)],
        pictures=_pictures([Path(score.photo) for score in ordered], progress),
        pool_pictures=pool.pictures(progress),
        pool_note=note,
        pool_left=pool.left,
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


def signed(x: float) -> str:
    """A number with its sign and three digits; of nothing, no sign."""
    text = f"{abs(x):.3f}"
    return text if float(text) == 0 else ("+" if x > 0 else "\N{MINUS SIGN}") + text


def _web(name: str) -> str:
    """A file of the pages, with the line ends that a browser makes of it: the digest is of those."""
    return (_WEB / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _script() -> str:
    """The modules as one script: in one scope no names have to be imported, and no two are the same."""
    modules = (_EXPORT.sub("", _IMPORT.sub("", _web(name))) for name in _MODULES)
    return '(() => {\n"use strict";\n' + "\n".join(modules) + "})();\n"


def _json(data: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends one or begins a comment. Raises on NaN."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ESCAPES))


# ---- pictures --------------------------------------------------------------------------------------------------------


def _side(count: int) -> int:
    """Pixels of the long side of each of `count` pictures: large for few, so that the file stays handy for many.

    What a picture takes grows with the power 1.6 of its side, as measured.
    """
    least, most = _SIDES
    fitting = 320 * (_PICTURES / (_EACH * max(count, 1))) ** (1 / 1.6)
    return int(min(max(fitting // 16 * 16, least), most))


def _picture(path: Path, digest: str | None, side: int) -> str:
    """The address ("data:...") of a picture of the photo; "" when it cannot be shown, whatever is wrong with it.

    With a `digest` the pixels of the file must have it: a photo that was changed since is not the pool's.
    """
    kind = "WEBP" if features.check("webp") else "JPEG"
    try:
        photo = open_photo(path, draft_side=side if digest is None else None)
        if digest is not None and photo.digest != digest:
            return ""
        photo.pixels.thumbnail((side, side))
        stream = io.BytesIO()
        photo.pixels.save(stream, kind, quality=_QUALITY)
    except (MilnetError, OSError, ValueError, MemoryError):  # the score is good without its picture
        return ""
    return f"data:image/{kind.lower()};base64," + b64encode(stream.getvalue()).decode("ascii")


def _pictures(paths: Sequence[Path], progress: Progress | None) -> Iterator[str]:
    """The pictures of the photos, one after the other: thousands need not be held."""
    side = _side(len(paths))
    return _told(lambda path: _picture(path, None, side), paths, "pictures of the report", progress)


def _told(function: Callable[[Any], str], items: Sequence[Any], what: str, progress: Progress | None) -> Iterator[str]:
    """The results of threads, in the order of `items`; `progress` is told.

    The threads are ahead of whoever takes the results by two each at most, however slowly these are taken.
    """
    left, ahead = iter(items), deque[Future[str]]()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="milnet-report") as executor:
        try:
            for done in range(1, len(items) + 1):
                ahead.extend(executor.submit(function, item) for item in islice(left, 2 * _WORKERS - len(ahead)))
                yield ahead.popleft().result()
                if progress is not None:
                    progress(done, len(items), what)
        finally:
            executor.shutdown(cancel_futures=True)  # nobody will take them


def _known_places() -> tuple[dict[str, Path], str]:
    """Where photos of pools lie, by their digest; and why that is not known, if so."""
    try:
        return known_photos(), ""
    except ArtifactError as error:  # the scores are made and good: say it there, and show them
        return {}, str(error)


class _Pool:
    """The pool's photos that were consulted, each once however many photos refer to it.

    `listed`: id, votes and the number of its picture, or None. `left`: how many that could be shown are not.
    """

    def __init__(self, scores: Sequence[Score], digests: Mapping[str, str], places: Mapping[str, Path]) -> None:
        uses = dict.fromkeys((one.id, one.votes) for score in scores for one in score.references)
        self._number = {key: number for number, key in enumerate(uses)}
        often = Counter(one.id for score in scores for one in score.references).most_common()
        known = [name for name, _ in often if digests.get(name) in places]
        self.left = max(0, len(known) - _POOL_MOST)
        self._shown = [(places[digests[name]], digests[name]) for name in known[:_POOL_MOST]]
        numbers = {name: number for number, name in enumerate(known[:_POOL_MOST])}
        self.listed = [
            {"name": shown(name), "votes": [round(n, 3) for n in votes], "picture": numbers.get(name)}
            for name, votes in uses
        ]

    def number(self, name: str, votes: tuple[float, ...]) -> int:
        """Where a reference stands in `listed`."""
        return self._number[name, votes]

    def pictures(self, progress: Progress | None) -> Iterator[str]:
        """The pictures, in the order of their numbers."""
        return _told(lambda item: _picture(item[0], item[1], _POOL_SIDE), self._shown, "photos of the pool", progress)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _photos(scores: Sequence[Score], scorer: Scorer, pool: _Pool, report: Path) -> Iterator[dict[str, Any]]:
    """What the script knows of each photo; numbers to six digits, texts as they are shown."""
    sizes = Counter(score.group for score in scores)
    names = Counter(Path(score.photo).name for score in scores)
    common = _common_folder([Path(score.photo) for score in scores])

    def digits(x: float | None) -> float | None:
        return None if x is None else round(x, 6)

    for score in scores:
        path = Path(score.photo)
        name = path.name or score.photo
        listed = []
        for one in score.references:
            if len(one.votes) != len(score.values):
                raise ValueError(f"{one.id}: {len(one.votes)} votes for {len(score.values)} values")
            listed.append([pool.number(one.id, one.votes), round(one.similarity, 4), digits(one.influence)])
        yield {
            "name": shown(name),
            "folder": _below(path, common) if names[path.name] > 1 else "",
            "path": shown(score.photo),
            "file": _link(path, report),
            "score": digits(score.score),
            "low": digits(score.low),
            "high": digits(score.high),
            "spread": digits(score.spread),
            "percentile": digits(score.percentile),
            "stars": score.stars,
            "unlike": digits(score.unlike),
            "unlike_text": None if score.unlike is None else _share(score.unlike),
            "outside": _outside(score),
            "votes": [digits(p) for p, _ in zip(score.distribution, score.values, strict=True)],
            "base": digits(score.base),
            "own": digits(score.own),
            "references": listed,
            "rest": digits(score.rest),
            "rest_text": _rest(score, scorer),
            "signals": None if score.signals is None else asdict(score.signals),
            "burst": None
            if score.group is None
            else {
                "number": score.group,
                "rank": score.rank,
                "size": max(sizes[score.group], score.rank or 0),
                "keep": score.keep,
            },
        }


def _common_folder(paths: Sequence[Path]) -> Path | None:
    """The folder that all photos are in or below; None where there is none."""
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # no photos, other drives, or some from the root and some not
        return None


def _below(path: Path, common: Path | None) -> str:
    """The folders between `common` and a photo, with a slash behind, as they can be shown; "" where there are none."""
    folder = path.parent if common is None else path.parent.relative_to(common)
    return "" if folder == Path() else shown(folder.as_posix().rstrip("/") + "/")


def _link(photo: Path, report: Path) -> str:
    """The address of a photo seen from the report, so that both can be moved together; "" where there is no file."""
    try:
        if not photo.is_file():
            return ""
        return "./" + quote(Path(os.path.relpath(photo.absolute(), report.absolute().parent)).as_posix())
    except (OSError, ValueError):  # another drive, a name that no address can hold
        return ""


def _rest(score: Score, scorer: Scorer) -> str:
    """What the part `rest` of a score is."""
    others = len(scorer.pool) - len(score.references) if scorer.whole else 0
    if not scorer.exact:
        return "not explained by leaving one out"
    if not others:
        return "the other references"
    if scorer.taste is not None:
        return f"your other rated photos ({others:,})"
    return f"the rest of the pool ({others:,} photos)"


def _row(score: Score, photo: Mapping[str, Any], scorer: Scorer) -> dict[str, Any]:
    """A photo in the plain table that stands where no script runs."""
    burst = photo["burst"]
    parts = [("own", score.own), *((one.id, one.influence) for one in score.references)]
    parts.sort(key=lambda part: -abs(part[1]))
    return {
        "name": score.photo,
        "score": f"{score.score:.2f}",
        "interval": "" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}",
        "percentile": "" if score.percentile is None else _percentile(score.percentile),
        "stars": star_signs(score.stars, len(scorer.stars) + 1),
        "spread": "" if score.spread is None else f"{score.spread:.2f}",
        "unlike": photo["unlike_text"] or "",
        "outside": photo["outside"],
        "burst": ""
        if burst is None
        else f"{burst['number']}: {burst['rank']} of {burst['size']}{', keep' if burst['keep'] else ''}",
        "moved": ", ".join(f"{name} {signed(adds)}" for name, adds in parts[:2]),
    }


def _share(x: float) -> str:
    """Two digits, more where they decide on which side of UNLIKE it is."""
    digits = next(n for n in (2, 3, 4, 17) if (round(x, n) > UNLIKE) == (x > UNLIKE))
    return f"{x:.{digits}f}"


def _percentile(x: float) -> str:
    """No digits, more where it would look like all or none of the pool; "0" and "100" mean just that."""
    digits = next((n for n in (0, 1) if (round(x, n) in (0, 100)) == (x in (0, 100))), 2)
    return f"{x if digits < 2 else min(max(x, 0.01), 99.99):.{digits}f}"


def _outside(score: Score) -> bool:
    return score.unlike is not None and score.unlike > UNLIKE


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
