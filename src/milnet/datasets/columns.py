"""Which columns of a general table hold the votes, and on which values.

Named columns are taken as named. Otherwise one of these, in this order, and an error that lists them when two fit:

    prefix + number   at least 3 columns whose numbers are equally spaced and begin at 0 or 1 (v1..v7, c1..c5, 1..10,
                      score_1.0..score_5.0), all cells numbers >= 0. Their numbers are the values. Whole numbers are
                      counts; rows that sum to about 1 are fractions
    rating            one row a rating
    mean (and sd)     only when there are neither of these: means stand beside votes in many files
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from milnet.datasets.text import Sheet, number
from milnet.errors import AnnotationError, UsageError

FloatArray = NDArray[np.float64]
Form = Literal["counts", "fractions", "mean", "ratings"]

MOST_VALUES = 1001
_NUMBERED = re.compile(r"(.*?)([0-9]{1,6}(?:\.[0-9]{1,6})?)", re.DOTALL)


@dataclass(frozen=True)
class VoteColumns:
    """Where the votes are. `columns` are S counts or fractions, or the one mean or rating."""

    form: Form
    columns: tuple[str, ...]
    values: FloatArray | None  # [S], None when only the ratings themselves can tell
    total: str | None = None
    sd: str | None = None
    rater: str | None = None
    each: float = 1.0  # the number of votes of each photo, for fractions and means without a total

    @property
    def used(self) -> set[str]:
        """The columns that are consumed and do not become columns of the table."""
        extras = (self.total, self.sd, self.rater)
        return {*self.columns, *(name for name in extras if name is not None)}


def parse_values(text: str) -> FloatArray:
    """Values [S] from "1:7", "0:10:0.5" (first:last[:step]) or "1,1.5,2". Raises UsageError saying what is wrong."""
    hint = f"values {text!r}: expected FIRST:LAST, FIRST:LAST:STEP or a list 1,2,3"
    separator = ":" if ":" in text else ","
    parts = [number(part) for part in text.split(separator)]
    numbers = [part for part in parts if part is not None]
    if len(numbers) < len(parts) or (separator == ":" and len(parts) > 3):
        raise UsageError(hint)
    if separator == ":":
        first, last, step = (*numbers, 1.0)[:3]
        steps = (last - first) / step if step > 0 else -1.0
        if abs(steps - round(steps)) > 1e-6 or not 0 < steps < MOST_VALUES:
            raise UsageError(
                f"{hint}; the last is a whole number of steps above the first, at most {MOST_VALUES} values"
            )
        return np.linspace(first, last, round(steps) + 1)
    values = np.array(numbers)
    if len(values) < 2 or len(values) > MOST_VALUES or not _equally_spaced(values):
        raise UsageError(f"{hint}; 2 to {MOST_VALUES} increasing and equally spaced values")
    return values


def _equally_spaced(values: FloatArray) -> bool:
    steps = np.diff(values)
    return bool(len(steps) and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0))


def _split(name: str) -> tuple[str, str] | None:
    """Prefix and number of a column name that ends with a number."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else (match[1], match[2])


def expand(names: Sequence[str], spec: str) -> tuple[str, ...]:
    """The columns a text names: a list "a,b,c", a range "v1..v7", or "v*": prefix and number, by number.

    Raises UsageError that lists the columns of the file when one is not there.
    """
    chosen: list[str] = []
    for part in (part.strip() for part in spec.split(",")):
        first, dots, last = part.partition("..")
        if part in names:
            found = [part]
        elif dots:
            found = _range(names, first, last, part)
        elif part.endswith("*"):
            found = [name for _, name in _numbered(names).get(part[:-1], [])]
        else:
            found = []
        if not found:
            raise UsageError(f"there is no column {part!r}; there are: {', '.join(names)}")
        chosen += found
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"{spec!r} names a column twice: {', '.join(chosen)}")
    return tuple(chosen)


def _range(names: Sequence[str], first: str, last: str, part: str) -> list[str]:
    ends = _split(first), _split(last)
    if first not in names or last not in names or ends[0] is None or ends[1] is None or ends[0][0] != ends[1][0]:
        raise UsageError(f"{part!r}: expected the first and the last of columns named PREFIX and number, like v1..v7")
    low, high = float(ends[0][1]), float(ends[1][1])
    return [name for value, name in _numbered(names)[ends[0][0]] if low <= value <= high]


def _numbered(names: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
    """prefix -> (number, column), by number."""
    families: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        if parts := _split(name):
            families.setdefault(parts[0], []).append((float(parts[1]), name))
    return {prefix: sorted(family) for prefix, family in families.items()}


def values_of(columns: Sequence[str], values: FloatArray | None) -> FloatArray:
    """The values of columns with counts or fractions: as given, else the numbers in the names of the columns."""
    if values is not None:
        if len(values) != len(columns):
            raise UsageError(f"{len(columns)} columns of votes ({', '.join(columns)}) for {len(values)} values")
        return values
    parts = [_split(name) for name in columns]
    numbers = np.array([float(part[1]) for part in parts if part is not None])
    if len(numbers) < len(columns) or len({part[0] for part in parts if part is not None}) > 1:
        raise UsageError(f"the names {', '.join(columns)} do not tell the values: say them with --values")
    if not _equally_spaced(numbers) or numbers[0] not in (0, 1):
        raise UsageError(
            f"the columns {columns[0]} to {columns[-1]} would mean the values "
            f"{', '.join(f'{value:g}' for value in numbers)}: expected equally spaced values that begin at 0 or 1; "
            "say them with --values (in the files of TANet and ReLIC score2 is the count of rating 1: --values 1:10)"
        )
    return numbers


def families(sheet: Sheet, taken: set[str]) -> list[tuple[str, ...]]:
    """Sets of columns that could be counts or fractions: at least 3, equally spaced, half the rows numbers >= 0."""
    found = []
    for family in _numbered([name for name in sheet.names if name not in taken]).values():
        columns = tuple(name for _, name in family)
        positions = [sheet.names.index(name) for name in columns]
        if len(family) < 3 or not _equally_spaced(np.array([value for value, _ in family])):
            continue
        good = sum(all(_is_vote(row[at]) for at in positions) for row in sheet.rows)
        # A defective line must not hide the votes: it is reported when the rows are read.
        if 2 * good >= len(sheet.rows):
            found.append(columns)
    return found


def _is_vote(text: str) -> bool:
    votes = number(text)
    return votes is not None and votes >= 0


def looks_like_fractions(sheet: Sheet, columns: Sequence[str]) -> bool:
    """Whether most rows of `columns` sum to about 1 and are not whole numbers."""
    positions = [sheet.names.index(name) for name in columns]
    sums, fractional = 0, False
    for row in sheet.rows:
        numbers = [number(row[at]) for at in positions]
        cells = [cell for cell in numbers if cell is not None]
        sums += len(cells) == len(numbers) and abs(sum(cells) - 1) < 1e-2
        fractional = fractional or any(cell % 1 for cell in cells)
    return fractional and 2 * sums > len(sheet.rows)


def one_of(sheet: Sheet, wanted: Sequence[str], what: str, option: str) -> str | None:
    """The column named like one of `wanted` (case, blanks, "_" and "-" do not matter); AnnotationError when two are."""
    found = [name for name in sheet.names if re.sub(r"[ _-]", "", name).lower() in wanted]
    if len(found) > 1:
        raise AnnotationError(
            f"columns {' and '.join(found)} could both be {what}: say which with {option}", file=sheet.file
        )
    return found[0] if found else None


def named(sheet: Sheet, name: str, option: str) -> str:
    """`name` when it is a column; UsageError that lists the columns when not."""
    if name not in sheet.names:
        raise UsageError(f"{option} {name!r}: there is no such column; there are: {', '.join(sheet.names)}")
    return name
