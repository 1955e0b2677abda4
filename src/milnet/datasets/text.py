"""Label files as text: lines, numbers, csv and Parquet, each row with the place it came from.

The bytes that are digested are the bytes that are parsed. What a number may look like is said here once, because
Python's `int` and `float` accept more than a label file should hold ("1_000", "nan", digits of other scripts).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from milnet.annotations import Problems
from milnet.errors import AnnotationError

_WHOLE = re.compile(r"[0-9]{1,15}(?:\.0*)?")  # up to 15 digits a float64 holds exactly; "3.0" is how pandas writes 3
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_UNDECODED = re.compile("[\ud800-\udfff]")


def whole(text: str) -> int | None:
    """A whole number >= 0 of at most 15 digits, or None; blanks around it and a decimal part of 0 are allowed."""
    text = text.strip()
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """A finite decimal number, or None; blanks around it are allowed."""
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) and len(text) <= 40 else None


def one_line(text: str) -> str:
    """The text with line breaks replaced by blanks: the table keeps one line a photo."""
    return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


def read_bytes(file: Path) -> tuple[bytes, str]:
    """Content and its sha256. Raises AnnotationError when the file cannot be read or is empty."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror or error}", file=file) from error
    if not data.strip():
        raise AnnotationError("expected labels, but the file is empty", file=file)
    return data, hashlib.sha256(data).hexdigest()


def decode(data: bytes) -> str:
    """UTF-8 with or without a byte order mark; bytes that are not UTF-8 become lone surrogates, reported by line."""
    return data.decode("utf-8-sig", "surrogateescape")


def read_lines(file: Path) -> tuple[list[str], str]:
    """The lines of a file, without LF or CRLF and without blank lines at the end; and the file's sha256."""
    data, sha256 = read_bytes(file)
    lines = [line.removesuffix("\r") for line in decode(data).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise AnnotationError("expected labels, but the file is empty", file=file)
    return lines, sha256


@dataclass(frozen=True)
class Sheet:
    """A csv or Parquet file: unique column names, rows of texts as long as the names, and where each row stands.

    `places` are 1-based: the line a row begins on in a csv file, the number of the row in a Parquet file. A sheet that
    was joined from several files says in `files` which one each row comes from; its `file` is what they stand for.
    """

    file: Path
    sha256: str
    names: tuple[str, ...]
    rows: list[list[str]]
    places: list[int]
    is_text: bool = True
    files: list[Path] | None = None

    def file_of(self, row: int) -> Path:
        """The file that row `row` (from 0) comes from."""
        return self.file if self.files is None else self.files[row]

    def place(self, row: int, beside: int | None = None) -> str:
        """Where row `row` (from 0) stands, in words; with its file when row `beside` comes from another one."""
        elsewhere = beside is not None and self.file_of(row) != self.file_of(beside)
        return f"{'line' if self.is_text else 'row'} {self.places[row]}" + (
            f" of {self.file_of(row)}" if elsewhere else ""
        )

    def defect(self, problems: Problems, row: int, reason: str) -> None:
        """Report a defect of row `row` (from 0)."""
        if self.is_text:
            problems.add(reason, file=self.file_of(row), line=self.places[row])
        else:
            problems.add(f"{self.place(row)}: {reason}", file=self.file_of(row))

    def cells(self, name: str) -> list[str]:
        """The texts of one column."""
        position = self.names.index(name)
        return [row[position] for row in self.rows]

    def take(self, rows: Sequence[int]) -> Sheet:
        """The same sheet with these rows (from 0) only."""
        return replace(
            self,
            rows=[self.rows[row] for row in rows],
            places=[self.places[row] for row in rows],
            files=None if self.files is None else [self.files[row] for row in rows],
        )

    def with_columns(self, columns: Mapping[str, Sequence[str]]) -> Sheet:
        """The same sheet with these columns behind or, where it has one of that name, in place of its own."""
        names = (*self.names, *(name for name in columns if name not in self.names))
        texts = {name: columns[name] if name in columns else self.cells(name) for name in names}
        return replace(self, names=names, rows=[list(row) for row in zip(*texts.values(), strict=True)])

    def require(self, names: Sequence[str]) -> None:
        """Raise AnnotationError when one of the columns is not there."""
        if missing := [name for name in names if name not in self.names]:
            raise AnnotationError(
                f"expected the columns {', '.join(names)}, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not among {', '.join(self.names)[:400]}",
                file=self.file,
                line=1 if self.is_text else None,
            )


def join(sheets: Sequence[Sheet], file: Path) -> tuple[Sheet, list[str]]:
    """The rows of several files, in the columns that all of them have; and the columns that only some have.

    `file` is what they stand for together, their folder for example.
    """
    names = tuple(name for name in sheets[0].names if all(name in sheet.names for sheet in sheets))
    others = sorted({name for sheet in sheets for name in sheet.names} - set(names))
    rows: list[list[str]] = []
    for sheet in sheets:
        chosen = [sheet.names.index(name) for name in names]
        rows += [[row[at] for at in chosen] for row in sheet.rows]
    places = [place for sheet in sheets for place in sheet.places]
    files = [sheet.file for sheet in sheets for _ in sheet.rows]
    return Sheet(file, "", names, rows, places, files=files), others


def only_numbers(sheet: Sheet, problems: Problems, limits: Mapping[str, tuple[float, float]]) -> Sheet:
    """The rows that have a number within its limits in each of these columns; the others are defects."""
    kept = []
    for row, cells in enumerate(sheet.rows):
        for name, (low, high) in limits.items():
            text = cells[sheet.names.index(name)]
            value = number(text)
            if value is None or not low <= value <= high:
                wanted = f"from {low:g} to {high:g}" if high < float("inf") else f">= {low:g}"
                sheet.defect(problems, row, f"expected a number {wanted} in column {name!r}, got {text!r}")
                break
        else:
            kept.append(row)
    return sheet.take(kept)


def read_csv(file: Path, problems: Problems, *, separator: str = ",") -> Sheet:
    """Read a csv file with a header; quoted fields may hold separators and line breaks (RFC 4180).

    Defects by line: another number of fields than the header, a blank line between rows, broken quoting, bytes that
    are not UTF-8, NUL. A defective header is always raised.
    """
    data, sha256 = read_bytes(file)
    text = decode(data)
    suspicious = "\0" in text or _UNDECODED.search(text) is not None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records: list[tuple[int, list[str]]] = []
    broken: list[tuple[int, str]] = []
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken.append((line, f"is not valid csv ({error})"))
            continue
        records.append((line, record))
    while records and not any(cell.strip() for cell in records[-1][1]):
        records.pop()
    if broken and (not records or broken[0][0] < records[0][0]):
        raise AnnotationError(broken[0][1], file=file, line=broken[0][0])
    if not records:
        raise AnnotationError("expected labels, but the file is empty", file=file)
    (first, header), *records = records
    names = _header(file, first, header, separator)
    rows: list[list[str]] = []
    places: list[int] = []
    reasons = dict(broken)
    for line, record in records:
        if len(record) != len(names):
            reasons[line] = (
                f"expected {len(names)} fields as in the header, got {len(record)}"
                if any(cell.strip() for cell in record)
                else "expected a row, got a blank line"
            )
        elif suspicious and (reason := unclean(record)):
            reasons[line] = reason
        else:
            rows.append(record)
            places.append(line)
    for line in sorted(reasons):
        problems.add(reasons[line], file=file, line=line)
    return Sheet(file, sha256, names, rows, places)


def _header(file: Path, line: int, header: list[str], separator: str) -> tuple[str, ...]:
    names = tuple(one_line(name).strip() for name in header)
    if reason := unclean(header):
        raise AnnotationError(reason, file=file, line=line)
    if len(names) < 2:
        raise AnnotationError(
            f"expected a header of at least 2 columns separated by {separator!r}, got {''.join(names)[:80]!r}: "
            "is there another separator? Say which with --separator",
            file=file,
            line=line,
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise AnnotationError(f"column {twice[0]!r} appears more than once in the header", file=file, line=line)
    return names


def unclean(record: list[str]) -> str:
    """Why the texts of a row cannot be used, or ""."""
    if any(_UNDECODED.search(cell) for cell in record):
        return "expected UTF-8, got other bytes: save the file as UTF-8"
    return "expected text, got a NUL character" if any("\0" in cell for cell in record) else ""


def read_parquet(file: Path) -> tuple[Sheet, list[str]]:
    """Read a Parquet file as texts; also the names of columns that hold lists or bytes and so are left out."""
    import polars as pl  # here, because it takes long to import and csv files do not need it

    data, sha256 = read_bytes(file)
    left_out: list[str] = []
    try:
        frame = pl.read_parquet(io.BytesIO(data))
        texts: dict[str, list[str]] = {}
        for column in frame.get_columns():
            kind = column.dtype
            if kind.is_numeric() or kind.is_temporal() or kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum):
                cells = column.to_physical() if kind == pl.Duration else column  # a duration has no text
                texts[column.name] = cells.cast(pl.String).fill_null("").to_list()
            else:
                left_out.append(column.name)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise AnnotationError(f"is not a readable Parquet file ({str(error)[:200]})", file=file) from error
    names = tuple(name.strip() for name in texts)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise AnnotationError(f"column {twice[0]!r} appears more than once", file=file)
    rows = [list(row) for row in zip(*texts.values(), strict=True)]
    return Sheet(file, sha256, names, rows, list(range(1, len(rows) + 1)), is_text=False), left_out


def unique(
    sheet: Sheet, problems: Problems, column: str, what: str, key: Callable[[str], str]
) -> tuple[list[int], list[str]]:
    """Rows whose `key` of `column` is there and new, and those keys; the others are defects naming the first."""
    position = sheet.names.index(column)
    seen: dict[str, int] = {}
    for row, cells in enumerate(sheet.rows):
        name = key(cells[position])
        if not name.strip() or "\n" in name or "\r" in name:
            sheet.defect(problems, row, f"expected {what} in column {column!r}, got {cells[position]!r}")
        elif name in seen:
            first = seen[name]
            sheet.defect(
                problems,
                row,
                f"{what} {cells[position]!r} appears twice: first on {sheet.place(first, row)}"
                + ("" if (other := sheet.rows[first][position]) == cells[position] else f" as {other!r}"),
            )
        else:
            seen[name] = row
    return list(seen.values()), list(seen)
