"""One person's own ratings of their photos, from where they keep them.

    xmp             sidecars, XMP and EXIF inside the photos: xmp.read_rating
    a table         csv, tsv, jsonl or Parquet: a column for the photo, one for the rating
    *.lrcat         the catalogue of Lightroom Classic
    digikam4.db     the database of digiKam

What a file is, its content tells. Databases are opened so that nothing is written, not even a lock: an open catalogue
works, with what its program has written to disk so far.

How tables name photos: by a full path; by a path from the folder of the table; else by the file's name, with as many of
the folders before it as agree; else by that name without its ending. Two photos that fit equally well are ambiguous,
and left out. Catalogues name whole libraries, in which names repeat: there the full path has to agree, or, where the
library was moved, all of it from the name of its root folder on.

The schema of digiKam was checked against one of its own (version 5 and later: AlbumRoots, Albums, Images,
ImageInformation); that of Lightroom, which Adobe does not publish, against descriptions and readers by others (versions
4 to 14: Adobe_images, AgLibraryFile, AgLibraryFolder, AgLibraryRootFolder).
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from milnet.annotations import Problems
from milnet.datasets.columns import named, one_of
from milnet.datasets.imported import first_few, photo_id
from milnet.datasets.text import Sheet, decode, number, one_line, read_csv, read_lines, read_parquet, unclean
from milnet.errors import AnnotationError, ImageError, UsageError
from milnet.xmp import read_rating

UNRATED, REJECTED, NOT_FOUND = "unrated", "rejected", "not found"
STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
_PHOTO = ("photo", "image", "file", "path", "filename", "imagename", "sourcefile")
_RATING = ("rating", "stars", "score")
_ZIP = b"PK\x03\x04"  # spreadsheets, too
_SEPARATORS = ",;\t"  # spreadsheets of half of Europe write ";"
_SAME_FILE = 1_000_000  # how well a full path fits; a name fits as well as the number of parts that agree


@dataclass(frozen=True)
class LeftOut:
    """A photo without a rating to learn from: `reason` is "unrated", "rejected", "not found", or says more."""

    photo: Path
    reason: str


@dataclass(frozen=True)
class Ratings:
    """Photos and one person's ratings of them, in the order the photos were given."""

    source: str  # what they were read from, in words
    photos: tuple[Path, ...]
    ratings: tuple[float, ...]
    left_out: tuple[LeftOut, ...]
    values: tuple[float, ...] | None  # the levels that can be given, increasing; None where only the ratings tell
    unmatched: tuple[str, ...] = ()  # photos that a table rates and that were not among the photos given
    notes: tuple[str, ...] = ()
    place: str = "the table"  # where photos that were not found have no rating: "the table" or "the catalogue"

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def report(self) -> list[str]:
        """Lines for people: how many ratings of which value, what was left out and why."""
        levels = ", ".join(f"{count:,} x {value:g}" for value, count in sorted(Counter(self.ratings).items()))
        total = len(self) + len(self.left_out)
        lines = [f"{len(self):,} of {total:,} photos are rated in {self.source}" + (f": {levels}" if levels else "")]
        plain = {UNRATED: "unrated", REJECTED: "rejected"}
        counts = Counter(one.reason for one in self.left_out)
        told = [f"{counts[reason]:,} {words}" for reason, words in plain.items() if counts[reason]]
        if missing := counts[NOT_FOUND]:
            told.append(f"{missing:,} {'has' if missing == 1 else 'have'} no rating in {self.place}")
        if told:
            lines.append("left out: " + ", ".join(told))
        odd = [f"left out: {one.photo}: {one.reason}" for one in self.left_out if one.reason not in (*plain, NOT_FOUND)]
        lines += odd if len(odd) <= 10 else [*odd[:9], f"left out: {len(odd) - 9:,} more for reasons of this kind"]
        if self.unmatched:
            lines.append(f"rated, but not among the photos: {len(self.unmatched):,}: {first_few(list(self.unmatched))}")
        return [*lines, *self.notes]


@dataclass(frozen=True)
class _Row:
    """A rating and how its source names the photo."""

    paths: tuple[Path, ...]  # full paths it may have
    parts: tuple[str, ...]  # the path as written, the file's name last; of a catalogue, from its root folder's name on
    rating: float | None  # None: unrated
    rejected: bool
    place: str  # for people
    row: int = 0  # of the sheet
    whole: bool = False  # all of `parts` must agree


def read_ratings(
    photos: Sequence[Path],
    source: str,
    *,
    photo_column: str | None = None,
    rating_column: str | None = None,
    levels: Sequence[float] | None = None,
    problems: Problems | None = None,
) -> Ratings:
    """The ratings of these photos: from "xmp", or from the file that `source` names.

    Ratings of a table are any numbers; when all are stars (whole numbers, -1 to 5), 0 is unrated and -1 rejected, as in
    XMP, unless 0 or -1 is among the `levels` that the person says they rate with. An empty cell is unrated. The columns
    are found by their names (photo, image, file, path or filename; rating, stars or score, in any capitals), unless
    they are said.

    Raises UsageError for a source that is none, AnnotationError for a file that cannot be read. A line of a table that
    cannot be used is a defect with its number, reported to `problems`: the first is raised unless that keeps going.
    """
    if source == "xmp":
        return _from_xmp(photos)
    file = Path(source).expanduser()
    if not file.is_file():
        if file.is_dir():
            why = f"{source} is a folder"
        elif file.suffix or len(file.parts) > 1:
            why = f"{source} does not exist"
        else:
            why = f"ratings {source!r}"
        raise UsageError(f"{why}; expected 'xmp' or a file (.csv, .tsv, .jsonl, .parquet, .lrcat, digikam4.db)")
    start = _start(file)
    if start.startswith(b"SQLite format 3\0"):
        if photo_column or rating_column:
            raise UsageError(f"{file}: is a catalogue, whose columns are known: leave out their names")
        return _from_catalogue(photos, file)
    if (file.suffix.lower() == ".lrcat" or file.name.lower() == "digikam4.db") and not start.startswith(_ZIP):
        raise AnnotationError(
            "is no SQLite database, which a catalogue is: it is damaged, or something else under this name. Take the "
            "program's last backup of it",
            file=file,
        )
    return _from_table(photos, file, start, photo_column, rating_column, levels or (), problems or Problems())


def _start(file: Path, size: int = 16) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror or error}", file=file) from error


def _from_xmp(photos: Sequence[Path]) -> Ratings:
    found: list[tuple[Path, float]] = []
    left_out = []
    for photo in photos:
        try:
            rating = read_rating(photo)
        except ImageError as error:
            where = "" if error.file == str(photo) else f"{error.file}: "
            left_out.append(LeftOut(photo, where + error.reason))
            continue
        if rating is None or rating < 1:
            left_out.append(LeftOut(photo, UNRATED if rating is None else REJECTED))
        else:
            found.append((photo, float(rating)))
    return Ratings(
        "XMP", tuple(photo for photo, _ in found), tuple(rating for _, rating in found), tuple(left_out), STARS
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def _from_table(
    photos: Sequence[Path],
    file: Path,
    start: bytes,
    photo_column: str | None,
    rating_column: str | None,
    levels: Sequence[float],
    problems: Problems,
) -> Ratings:
    sheet = _sheet(file, start, problems)
    if {"photo", "score", "model", "milnet"} <= set(sheet.names):
        raise UsageError(f"{file}: these are scores that milnet gave, not ratings of yours")
    photo = _column(sheet, photo_column, _PHOTO, "photo")
    rating = _column(sheet, rating_column, _RATING, "rating")
    rows, stars = _rows(sheet, photo, rating, levels, problems)
    notes = []
    if stars and any(row.rating is None or row.rejected for row in rows):
        other = "" if levels else "; of a scale that has 0 or -1, name the levels: --levels 0,1,2,3,4,5"
        notes.append(f"these are stars: 0 or an empty cell is unrated, -1 is rejected{other}")
    return _matched(photos, rows, f"{file.name}, column {rating!r}", STARS if stars else None, notes, problems, sheet)


def _sheet(file: Path, start: bytes, problems: Problems) -> Sheet:
    suffix = file.suffix.lower()
    if start.startswith(b"PAR1"):
        return read_parquet(file)[0]
    if start.startswith(_ZIP) or suffix in (".parquet", ".xlsx", ".zip"):
        raise AnnotationError(
            "expected csv, tsv, jsonl, Parquet or a catalogue, got something else (a spreadsheet? save it as csv; a "
            "zipped copy of a catalogue? unpack it)",
            file=file,
        )
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(file, problems)
    return read_csv(file, problems, separator=_separator(file))


def _separator(file: Path) -> str:
    """What separates the columns: whatever makes most of them. AnnotationError where there is only one."""
    text = decode(_start(file, 65_536))
    headers: dict[str, list[str]] = {}
    for separator in _SEPARATORS:
        with suppress(csv.Error, StopIteration):  # read_csv says what is wrong
            headers[separator] = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    best = max(_SEPARATORS, key=lambda separator: len(headers.get(separator, ())))
    header = headers.get(best, [])
    if len(header) >= 2 or not text.strip() or unclean(header):
        return best
    for separator in _SEPARATORS:
        if separator not in headers:  # not valid csv, which read_csv says with the line
            return separator
    raise AnnotationError(
        "expected a table whose first line names a column for the photo and one for the rating, with a comma, a "
        f"semicolon or a tab between them, got {''.join(header)[:80]!r}",
        file=file,
        line=1,
    )


def _read_jsonl(file: Path, problems: Problems) -> Sheet:
    """One JSON object a line, as texts; lists and objects in it are left out."""
    lines, sha256 = read_lines(file)
    records: list[tuple[int, dict[str, str]]] = []
    for place, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(f"expected a JSON object, got {line[:40]!r} ({str(error)[:80]})", file=file, line=place)
            continue
        if not isinstance(record, dict):
            problems.add(f"expected a JSON object, got {line[:40]!r}", file=file, line=place)
            continue
        texts = {
            name.strip(): "" if value is None else value if isinstance(value, str) else json.dumps(value)
            for name, value in record.items()
            if not isinstance(value, list | dict)
        }
        if reason := unclean([*texts, *texts.values()]):
            problems.add(reason, file=file, line=place)
        else:
            records.append((place, texts))
    names = tuple(dict.fromkeys(name for _, record in records for name in record))
    rows = [[record.get(name, "") for name in names] for _, record in records]
    return Sheet(file, sha256, names, rows, [place for place, _ in records])


def _column(sheet: Sheet, given: str | None, wanted: Sequence[str], what: str) -> str:
    option = f"--{what}-column"
    if given is not None:
        return named(sheet, given, option)
    found = one_of(sheet, wanted, f"the {what}", option)
    if found is None:
        raise AnnotationError(
            f"expected a column {', '.join(wanted[:5])}, got {', '.join(sheet.names)[:400]}: say which is the {what} "
            f"with {option}",
            file=sheet.file,
        )
    return found


def _rows(
    sheet: Sheet, photo: str, rating: str, levels: Sequence[float], problems: Problems
) -> tuple[list[_Row], bool]:
    """The rows that can be used, and whether the ratings are stars."""
    at, of = sheet.names.index(photo), sheet.names.index(rating)
    read: list[tuple[int, str, float | None]] = []
    for row, cells in enumerate(sheet.rows):
        name, text = cells[at].strip(), cells[of]
        value = number(text)
        if not name or one_line(name) != name:
            sheet.defect(problems, row, f"expected a photo in column {photo!r}, got {cells[at]!r}")
        elif value is None and text.strip():
            sheet.defect(problems, row, f"expected a number in column {rating!r}, got {text!r}")
        else:
            read.append((row, name, value))
    values = {value for _, _, value in read if value is not None}
    stars = values <= {-1.0, 0.0, *STARS} and not {-1.0, 0.0} & set(levels)
    rows = []
    for row, name, value in read:
        rejected = stars and value == -1
        unrated = value is None or (stars and value < 1)
        parts = _parts(name)
        plain = Path(name).expanduser() if name.startswith("~/") else Path(name)
        paths = (sheet.file.parent / plain, plain) if parts else ()
        rows.append(_Row(paths, parts, None if unrated else value, rejected, sheet.place(row), row))
    return rows, stars


def _parts(text: str) -> tuple[str, ...]:
    """The parts of a path as written on any system: folders, then the file's name."""
    text = text.replace("\\", "/") if "\\" in text and "/" not in text else text
    return tuple(part for part in text.split("/") if part not in ("", ".", ".."))


# ---- catalogues ------------------------------------------------------------------------------------------------------


def _from_catalogue(photos: Sequence[Path], file: Path) -> Ratings:
    notes = []
    if any((log := file.with_name(file.name + end)).exists() and log.stat().st_size for end in ("-wal", "-journal")):
        notes.append(f"{file.name} is open in another program: ratings it has not written yet are missing; close it")
    with _opened(file) as ask:
        tables = {str(name) for (name,) in ask("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if {"Adobe_images", "AgLibraryFile", "AgLibraryFolder", "AgLibraryRootFolder"} <= tables:
            rows, kind = _lightroom(ask, file), "Lightroom"
        elif {"AlbumRoots", "Albums", "Images", "ImageInformation"} <= tables:
            rows, kind = _digikam(ask, tables), "digiKam"
        else:
            raise AnnotationError(
                "expected a catalogue of Lightroom Classic or the database of digiKam, got a database with the tables "
                f"{', '.join(sorted(tables))[:200] or '(none)'}",
                file=file,
            )
    return _matched(photos, rows, f"{kind}: {file.name}", STARS, notes, None, None)


Ask = Callable[[str], list[tuple[object, ...]]]


@contextmanager
def _opened(file: Path) -> Iterator[Ask]:
    """Ask a database that nobody writes to meanwhile, as far as SQLite is told: no lock is taken and none is heeded."""
    uri = f"file:{quote(str(file.resolve()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            database.execute("PRAGMA trusted_schema = OFF")  # what the file defines runs nothing
            yield lambda statement: database.execute(statement).fetchall()
    except sqlite3.Error as error:
        raise AnnotationError(
            f"cannot be read as a catalogue ({error}): is it damaged, or written to just now? Close its program",
            file=file,
        ) from error


def _lightroom(ask: Ask, file: Path) -> list[_Row]:
    """Ratings of Lightroom Classic. Virtual copies, which have a master, are not the photo; a flag can reject it."""
    columns = {str(row[1]) for table in ("AgLibraryRootFolder", "AgLibraryFile") for row in ask(_columns(table))}
    relative = "root.relativePathFromCatalog" if "relativePathFromCatalog" in columns else "NULL"
    beside = "file.sidecarExtensions" if "sidecarExtensions" in columns else "NULL"
    pick = "image.pick" if "pick" in {str(row[1]) for row in ask(_columns("Adobe_images"))} else "NULL"
    rows = []
    for rating, flag, root, from_catalogue, below, name, ending, others in ask(
        f"SELECT image.rating, {pick}, root.absolutePath, {relative}, folder.pathFromRoot, file.baseName, "
        f"file.extension, {beside} FROM Adobe_images image JOIN AgLibraryFile file ON file.id_local = image.rootFile "
        "JOIN AgLibraryFolder folder ON folder.id_local = file.folder "
        "JOIN AgLibraryRootFolder root ON root.id_local = folder.rootFolder "
        "WHERE image.masterImage IS NULL ORDER BY image.id_local"
    ):
        value = _stars(rating)
        # A JPEG that was taken with the RAW and imported as one photo with it.
        endings = [ending, *str(others or "").split(",")]
        for one in dict.fromkeys(str(end or "").strip() for end in endings):
            if one.lower() == "xmp" or (not one and ending):
                continue
            tail = f"{below or ''}{name}{f'.{one}' if one else ''}"
            roots = [Path(str(root or "/"))]
            if from_catalogue is not None:
                roots.append(file.resolve().parent / str(from_catalogue))
            rows.append(_in_catalogue(roots, tail, value, _is(flag, -1)))
    return rows


def _columns(table: str) -> str:
    return f"PRAGMA table_info({table})"


def _digikam(ask: Ask, tables: set[str]) -> list[_Row]:
    """Ratings of digiKam, in which -1 is unrated; a photo without one may have the pick label "rejected"."""
    rejected: set[object] = set()
    if {"Tags", "ImageTags"} <= tables:
        rejected = {
            row[0]
            for row in ask(
                "SELECT given.imageid FROM ImageTags given JOIN Tags tag ON tag.id = given.tagid "
                "WHERE tag.name = 'Pick Label Rejected'"
            )
        }
    rows = []
    for image, rating, identifier, specific, album, name in ask(
        "SELECT image.id, info.rating, root.identifier, root.specificPath, album.relativePath, image.name "
        "FROM Images image JOIN ImageInformation info ON info.imageid = image.id "
        "JOIN Albums album ON album.id = image.album JOIN AlbumRoots root ON root.id = album.albumRoot "
        "WHERE image.status IN (1, 2) ORDER BY image.id"  # visible and hidden; not removed
    ):
        value = _stars(rating)
        tail = f"{album or ''}/{name}".lstrip("/")
        below = str(specific or "").strip("/")
        roots = [Path(mount, below) for mount in _mounts(str(identifier or ""))]
        rows.append(_in_catalogue(roots, tail, value, image in rejected))
    return rows


def _in_catalogue(roots: Sequence[Path], tail: str, rating: float | None, rejected: bool) -> _Row:
    """A photo of a catalogue: `tail` is its path below the root folder, which may be at several places."""
    parts = (*_parts(str(roots[0]))[-1:], *_parts(tail))
    return _Row(tuple(root / tail for root in roots), parts, rating, rejected and rating is None, tail, whole=True)


def _mounts(identifier: str) -> list[str]:
    """Where the volume of an album root is: `volumeid:?path=...`, `networkshareid:?mountpath=...`; else at "/"."""
    _, _, query = identifier.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    return [unquote(value) for name, _, value in pairs if name in ("path", "mountpath")] or ["/"]


def _stars(rating: object) -> float | None:
    """1 to 5; None for anything else, which is how catalogues write "none"."""
    return float(rating) if isinstance(rating, int | float) and 1 <= rating <= 5 else None


def _is(value: object, wanted: float) -> bool:
    return isinstance(value, int | float) and value == wanted


# ---- which photo -----------------------------------------------------------------------------------------------------


def _matched(
    photos: Sequence[Path],
    rows: Sequence[_Row],
    source: str,
    values: tuple[float, ...] | None,
    notes: Sequence[str],
    problems: Problems | None,
    sheet: Sheet | None,
) -> Ratings:
    """The rating of each photo. Two rows that fit a photo equally well and disagree: a defect of a table's line."""
    index = _Index(photos)
    fitting: list[list[tuple[int, _Row]]] = [[] for _ in photos]  # photo -> how well each row fits it
    ambiguous: dict[int, str] = {}
    unmatched = []
    for row in rows:
        found, fit = index.find(row)
        if not found and sheet is not None:
            unmatched.append("/".join(row.parts))
        for at in found:
            if len(found) > 1:
                others = " or ".join(str(photos[other]) for other in found[:4])
                ambiguous.setdefault(at, f"ambiguous: {'/'.join(row.parts)!r} ({row.place}) could be {others}")
            else:
                fitting[at].append((fit, row))
    kept: list[tuple[Path, float]] = []
    left_out = []
    for at, photo in enumerate(photos):
        best = max((fit for fit, _ in fitting[at]), default=0)
        fitted = [row for fit, row in fitting[at] if fit == best]
        fitted = [row for row in fitted if row.rating is not None or row.rejected] or fitted  # the rest says nothing
        different = {(row.rating, row.rejected): row for row in fitted}
        if len(different) > 1:
            first, second = list(different.values())[:2]
            if sheet is not None and problems is not None:
                sheet.defect(
                    problems, second.row, f"photo {'/'.join(second.parts)!r} is rated otherwise on {first.place}"
                )
            left_out.append(LeftOut(photo, f"ambiguous: {first.place} and {second.place} rate it differently"))
        elif not fitted:
            left_out.append(LeftOut(photo, ambiguous.get(at, NOT_FOUND)))
        elif fitted[0].rating is None:
            left_out.append(LeftOut(photo, REJECTED if fitted[0].rejected else UNRATED))
        else:
            kept.append((photo, fitted[0].rating))
    return Ratings(
        source,
        tuple(photo for photo, _ in kept),
        tuple(rating for _, rating in kept),
        tuple(left_out),
        values,
        tuple(unmatched),
        tuple(notes),
        "the catalogue" if sheet is None else "the table",
    )


class _Index:
    """Photos by path, by name and by name without ending; capitals and ways of writing accents do not matter."""

    def __init__(self, photos: Sequence[Path]) -> None:
        self.exact = {os.path.realpath(photo): at for at, photo in enumerate(photos)}
        # Only of these the paths are looked up: asking the disk about a whole library takes long.
        self.known = {_alike(os.path.basename(path)) for path in self.exact} | {_alike(photo.name) for photo in photos}  # noqa: PTH119
        self.parts = [tuple(map(_alike, PurePosixPath(os.path.abspath(photo)).parts)) for photo in photos]  # noqa: PTH100
        self.names = [photo.name for photo in photos]
        self.by_name: dict[str, list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for at, name in enumerate(self.names):
            self.by_name.setdefault(_alike(name), []).append(at)
            self.by_stem.setdefault(_alike(photo_id(name)), []).append(at)

    def find(self, row: _Row) -> tuple[list[int], int]:
        """The photos that fit a row best (more than one: ambiguous), and how well they do."""
        if not row.parts:
            return [], 0
        wanted = tuple(map(_alike, row.parts))
        for path in row.paths if wanted[-1] in self.known else ():
            with suppress(ValueError, OSError):  # a NUL in a name
                if (at := self.exact.get(os.path.realpath(path))) is not None:
                    return [at], _SAME_FILE
        candidates = self.by_name.get(wanted[-1], [])
        fits = {at: _agreeing(self.parts[at], wanted) for at in candidates}
        if row.whole:
            found = [at for at in candidates if len(wanted) > 1 and fits[at] == len(wanted)]
            return found, len(wanted)
        if candidates:
            best = max(fits.values())
            found = [at for at in candidates if fits[at] == best]
            same = [at for at in found if self.names[at] == row.parts[-1]]
            return same or found, best
        return self.by_stem.get(_alike(photo_id(row.parts[-1])), []), 0


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _agreeing(path: tuple[str, ...], wanted: tuple[str, ...]) -> int:
    """How many parts of the two agree, counted from the end."""
    count = 0
    for one, other in zip(reversed(path), reversed(wanted), strict=False):
        if one != other:
            break
        count += 1
    return count
