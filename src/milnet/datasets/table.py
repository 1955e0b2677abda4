"""The general format: a csv or Parquet file with a photo column and the votes in one of four forms.

    counts      one column a value: how many people chose it
    fractions   one column a value, summing to 1 within 0.001 (renormalised), and the number of votes if it is known
    mean        the mean, with the standard deviation if known: the distribution of largest entropy on stated values
    ratings     one row a rating: image, rating, and the rater if it is known

Without a number of votes each photo counts as one. Which columns: `columns.py`. Every other column becomes a text
column. The id of a photo is its text in the photo column without an image's ending.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import Problems, Table
from milnet.datasets import columns as find
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_photos, photo_id, require_photos
from milnet.datasets.text import Sheet, number, one_line, read_csv, read_parquet, unique, whole
from milnet.entropy import feasible_sds, maximum_entropy
from milnet.errors import AnnotationError, UsageError

FloatArray = NDArray[np.float64]

_PHOTO = ("image", "imageid", "imagename", "file", "photo", "filename")


@dataclass(frozen=True)
class TableOptions:
    """How to read a general table. Columns are named as in the header; several as "a,b,c", "v1..v7" or "v*"."""

    photo_column: str | None = None  # the column with the photo's file or id
    count_columns: str | None = None  # the columns with counts, lowest value first
    fraction_columns: str | None = None  # the columns with fractions, lowest value first
    total_column: str | None = None  # the number of votes, beside fractions or a mean
    mean_column: str | None = None  # the mean of the votes
    sd_column: str | None = None  # the standard deviation of the votes, beside the mean
    rating_column: str | None = None  # the rating, when each row is one rating
    rater_column: str | None = None  # who gave it
    values: str | None = None  # the score values: "1:7", "0:10:0.5" or "1,1.5,2"
    group_columns: str | None = None  # columns whose photos belong together
    split_column: str | None = None  # the column that becomes `split`
    separator: str = ","  # what separates the fields of a csv file; "tab" for a tabulator
    name: str | None = None  # the name of the data set; else the name of the file
    threshold: float | None = None  # "good" is at least this; else the middle of the values
    images: Path | None = None  # folder of the photos


@dataclass(frozen=True)
class Rated:
    """The photos of the file: the row that first names each, their ids, votes [N, S] and values [S]."""

    rows: list[int]
    ids: list[str]
    votes: FloatArray
    values: FloatArray
    report: list[str]
    dropped: frozenset[str] = frozenset()  # columns that say different things about one photo


def read_table(source: Path, problems: Problems, options: TableOptions | None = None) -> Imported:
    """Read the general format.

    Raises UsageError for options that do not fit the file, AnnotationError when the columns cannot be told apart; each
    row that cannot be used is a defect with its line (Parquet: row).
    """
    options = options or TableOptions()
    sheet, report = _read_sheet(source, problems, options)
    if options.photo_column is None:
        photo = find.one_of(sheet, _PHOTO, "the photo", "--photo-column")
        if photo is None:
            raise AnnotationError(
                f"expected a photo column (image, image_id, image_name, file, photo or filename), got the columns "
                f"{', '.join(sheet.names)}: say which with --photo-column",
                file=sheet.file,
            )
    else:
        photo = find.named(sheet, options.photo_column, "--photo-column")
    groups = () if options.group_columns is None else find.expand(sheet.names, options.group_columns)
    split = None if options.split_column is None else find.named(sheet, options.split_column, "--split-column")
    votes = _vote_columns(sheet, options, {photo, *groups, *([split] if split else [])})
    fixed = {name for name in (*groups, split) if name is not None}
    if overlap := sorted((votes.used | {photo}) & fixed):
        raise UsageError(f"column {overlap[0]!r} cannot be a group or the split: it holds the photos or their votes")
    made = make_table(
        sheet,
        problems,
        photo,
        votes,
        name=options.name or source.stem,
        source={"format": "table", "form": votes.form, "photo": photo, "columns": list(votes.columns)}
        | {role: name for role in ("total", "sd", "rater") if (name := getattr(votes, role)) is not None},
        names={} if split is None else {split: "split"},
        groups=groups,
        fixed=fixed,
        threshold=options.threshold,
        images=options.images,
        report=report,
    )
    return Imported(made.table, {"labels": sheet.sha256}, made.report)


def make_table(
    sheet: Sheet,
    problems: Problems,
    photo: str,
    votes: VoteColumns,
    *,
    name: str,
    source: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    groups: Sequence[str] = (),
    fixed: Collection[str] = (),
    threshold: float | None = None,
    images: Path | None = None,
    paths: Mapping[str, str] | None = None,
    report: Sequence[str] = (),
) -> Imported:
    """The table of a sheet whose columns are known: what all importers of such files end with. `inputs` stay empty.

    `photo` names the photo; `names`: columns that are called otherwise in the table; `groups`: columns whose photos
    belong together; `fixed`: columns that must not differ between the ratings of one photo; `threshold`: else the
    middle of the values; `paths`: text of the photo column -> file below the folder `images`, where the text is not
    the file. Rows that cannot be used are defects.
    """
    report = list(report)
    rated = ratings(sheet, problems, photo, votes, fixed) if votes.form == "ratings" else None
    rated = rated or a_row_a_photo(sheet, problems, photo, votes)
    require_photos(len(rated.rows), sheet.file)
    texts, renamed = _columns(sheet, rated, {photo} | votes.used, names or {}, report)
    at, values = sheet.names.index(photo), rated.values
    wanted = [sheet.rows[row][at] for row in rated.rows]
    files, root = find_photos([(paths or {}).get(text, text) for text in wanted], images, report)
    table = Table(
        name=name,
        ids=tuple(rated.ids),
        votes=rated.votes,
        values=values,
        columns=texts,
        images=files,
        image_root=root,
        groups=tuple(renamed[group] for group in groups),
        threshold=float(values[0] + values[-1]) / 2 if threshold is None else threshold,
        source=source,
    )
    head = (
        f"{len(table):,} photos; {photo!r} names them; {votes.form} in {_shorten(votes.columns)}",
        f"values {_shorten([f'{value:g}' for value in values])}",
    )
    return Imported(table, {}, (*head, *rated.report, *report))


def _shorten(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def _read_sheet(source: Path, problems: Problems, options: TableOptions) -> tuple[Sheet, list[str]]:
    """The file as texts. What it is, its first bytes tell."""
    separator = {"tab": "\t", "\\t": "\t"}.get(options.separator, options.separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise UsageError(f"--separator {options.separator!r}: expected one character, or tab")
    try:
        with source.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror or error}", file=source) from error
    if start == b"PAR1":
        sheet, left_out = read_parquet(source)
        report = [f"column {name!r} holds lists or bytes and is left out" for name in left_out]
    elif start == b"PK\x03\x04" or source.suffix.lower() in (".parquet", ".xlsx"):
        raise AnnotationError(
            "expected csv or Parquet, got something else (a spreadsheet? save it as csv)", file=source
        )
    else:
        sheet, report = read_csv(source, problems, separator=separator), []
    require_photos(len(sheet.rows), source)
    return sheet, report


def _vote_columns(sheet: Sheet, options: TableOptions, taken: set[str]) -> VoteColumns:
    """Where the votes are: as the options say, else as the header tells."""
    values = None if options.values is None else find.parse_values(options.values)
    ways = {
        "--count-columns": options.count_columns,
        "--fraction-columns": options.fraction_columns,
        "--mean-column": options.mean_column,
        "--rating-column": options.rating_column,
    }
    said = [way for way, given in ways.items() if given is not None]
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} exclude each other: the votes come in one form")
    if not said:
        found = _detect(sheet, values, taken)
    elif options.mean_column is not None:
        found = VoteColumns("mean", (find.named(sheet, options.mean_column, said[0]),), values)
    elif options.rating_column is not None:
        found = VoteColumns("ratings", (find.named(sheet, options.rating_column, said[0]),), values)
    else:
        columns = find.expand(sheet.names, options.count_columns or options.fraction_columns or "")
        form: find.Form = "counts" if options.count_columns is not None else "fractions"
        found = VoteColumns(form, columns, find.values_of(columns, values))
    total, sd, rater = options.total_column, options.sd_column, options.rater_column
    for option, given, forms in (
        ("--total-column", total, ("fractions", "mean")),
        ("--sd-column", sd, ("mean",)),
        ("--rater-column", rater, ("ratings",)),
    ):
        if given is not None:
            find.named(sheet, given, option)
            if found.form not in forms:
                raise UsageError(f"{option} goes with {' or '.join(forms)}, but the votes are {found.form}")
    if found.form == "mean":
        sd = sd or find.one_of(sheet, ("sd", "std"), "the standard deviation", "--sd-column")
        if values is None:
            raise UsageError(f"means in column {found.columns[0]!r} need their limits: say the values with --values")
    elif found.form == "ratings":
        rater = rater or find.one_of(sheet, ("rater",), "the rater", "--rater-column")
    if found.form in ("fractions", "mean") and total is None:
        prefix = re.sub(r"[ _-]", "", found.columns[0].rstrip("0123456789.")).lower()
        wanted = ("total", f"{prefix}total") if found.form == "fractions" else ("total",)
        total = find.one_of(sheet, wanted, "the number of votes", "--total-column")
    result = VoteColumns(found.form, found.columns, found.values, total, sd, rater)
    extras = [name for name in (total, sd, rater) if name is not None]
    if len(result.used) < len(found.columns) + len(extras) or result.used & taken:
        raise UsageError(
            f"a column is named for two things, among {', '.join((*found.columns, *extras, *sorted(taken)))}"
        )
    return result


def _detect(sheet: Sheet, values: FloatArray | None, taken: set[str]) -> VoteColumns:
    """The votes by the names of the columns; AnnotationError when none or several fit."""
    families = find.families(sheet, taken)
    rating = find.one_of(sheet, ("rating",), "the rating", "--rating-column")
    mean = find.one_of(sheet, ("mean",), "the mean", "--mean-column")
    ways = [f"{family[0]}..{family[-1]} (--count-columns, --fraction-columns)" for family in families]
    ways += [f"{rating} (--rating-column)"] if rating else []
    if len(ways) > 1:
        raise AnnotationError(f"the votes could be in {' or in '.join(ways)}: say which", file=sheet.file)
    if families:
        form: find.Form = "fractions" if find.looks_like_fractions(sheet, families[0]) else "counts"
        return VoteColumns(form, families[0], find.values_of(families[0], values))
    if rating:
        return VoteColumns("ratings", (rating,), values)
    if mean:
        return VoteColumns("mean", (mean,), values)
    raise AnnotationError(
        f"expected votes as counts (v1..v7), fractions, mean or rating, got the columns {', '.join(sheet.names)}: "
        "say where they are with --count-columns, --fraction-columns, --mean-column or --rating-column",
        file=sheet.file,
    )


def a_row_a_photo(sheet: Sheet, problems: Problems, photo: str, found: VoteColumns) -> Rated:
    """Counts, fractions and means."""
    assert found.values is not None  # _vote_columns refuses these forms without values
    positions = [sheet.names.index(name) for name in found.columns]
    rows, ids = unique(sheet, problems, photo, "photo", photo_id)
    kept: list[int] = []
    numbers: list[list[float]] = []
    for at, row in enumerate(rows):
        cells = [sheet.rows[row][position] for position in positions]
        answer = {"counts": _counts, "fractions": _fractions, "mean": _mean}[found.form](cells, found, sheet, row)
        if isinstance(answer, str):
            sheet.defect(problems, row, answer)
        else:
            kept.append(at)
            numbers.append(answer)
    rows, ids = [rows[at] for at in kept], [ids[at] for at in kept]
    require_photos(len(kept), sheet.file)
    array = np.array(numbers, dtype=np.float64)
    report: list[str] = []
    if found.form == "counts":
        votes = array
    else:
        alone = "not known, each photo has one" if found.each == 1 else f"{found.each:g} a photo"
        report.append(f"number of votes: {f'column {found.total!r}' if found.total else alone}")
        if found.form == "fractions":
            votes = array[:, :-1] * array[:, -1:]
        else:
            report.append(
                f"distributions: largest entropy with the mean{' and standard deviation' if found.sd else ''}"
            )
            sds = array[:, 1] if found.sd else None
            votes = maximum_entropy(array[:, 0], sds, found.values) * array[:, -1:]
    return Rated(rows, ids, votes, found.values, report)


def _counts(cells: list[str], found: VoteColumns, sheet: Sheet, row: int) -> list[float] | str:
    """S counts."""
    counts = [whole(cell) for cell in cells]
    if None in counts:
        at = counts.index(None)
        return f"expected a whole number >= 0 in column {found.columns[at]!r}, got {cells[at]!r}"
    return [float(count or 0) for count in counts] if any(counts) else "expected at least one vote, got none"


def _fractions(cells: list[str], found: VoteColumns, sheet: Sheet, row: int) -> list[float] | str:
    """S fractions that sum to 1, then the number of votes."""
    shares: list[float] = []
    for name, cell in zip(found.columns, cells, strict=True):
        share = number(cell)
        if share is None or share < 0:
            return f"expected a fraction >= 0 in column {name!r}, got {cell!r}"
        shares.append(share)
    total = sum(shares)
    if abs(total - 1) > 1e-3:
        return f"expected fractions that sum to 1 within 0.001, got {total:.6g}"
    votes = _total(found, sheet, row)
    return votes if isinstance(votes, str) else [*(share / total for share in shares), votes]


def _mean(cells: list[str], found: VoteColumns, sheet: Sheet, row: int) -> list[float] | str:
    """Mean, standard deviation when there is one, number of votes."""
    assert found.values is not None
    low, high = float(found.values[0]), float(found.values[-1])
    mean = number(cells[0])
    if mean is None or not low <= mean <= high:
        return f"expected a mean from {low:g} to {high:g} in column {found.columns[0]!r}, got {cells[0]!r}"
    votes = _total(found, sheet, row)
    if isinstance(votes, str):
        return votes
    if found.sd is None:
        return [mean, votes]
    text = sheet.rows[row][sheet.names.index(found.sd)]
    sd = number(text)
    least, largest = (float(bound[0]) for bound in feasible_sds([mean], found.values))
    # Variances, and less room for rounding than `maximum_entropy` leaves: what passes here passes there.
    room = 5e-13 * ((high - low) / 2) ** 2
    if sd is None or sd < 0 or not least**2 - room <= sd**2 <= largest**2 + room:
        return (
            f"expected a standard deviation from {least:.6g} to {largest:.6g} (all that is possible with the mean "
            f"{mean:g} on these values) in column {found.sd!r}, got {text!r}"
        )
    return [mean, sd, votes]


def _total(found: VoteColumns, sheet: Sheet, row: int) -> float | str:
    """The number of votes of a row."""
    if found.total is None:
        return found.each
    text = sheet.rows[row][sheet.names.index(found.total)]
    votes = number(text)
    return votes if votes is not None and votes > 0 else f"expected votes > 0 in column {found.total!r}, got {text!r}"


def ratings(sheet: Sheet, problems: Problems, photo: str, found: VoteColumns, fixed: Collection[str]) -> Rated:
    """One row a rating. Without given values they are all whole numbers from the lowest to the highest rating."""
    at, rating = sheet.names.index(photo), sheet.names.index(found.columns[0])
    rater = None if found.rater is None else sheet.names.index(found.rater)
    others = [k for k in range(len(sheet.names)) if k not in (at, rating, rater)]
    values, bins, report = _rating_bins(sheet, found)
    changing: set[int] = set()
    positions: dict[str, int] = {}
    first: list[int] = []
    given: dict[tuple[str, str], int] = {}
    pairs: list[tuple[int, int]] = []
    wanted = f"one of the values {_shorten([f'{value:g}' for value in values])}"
    for row, cells in enumerate(sheet.rows):
        text = cells[at]
        name = photo_id(text)
        bin_ = bins[cells[rating]]
        if not name.strip() or "\n" in text or "\r" in text:
            sheet.defect(problems, row, f"expected a photo in column {photo!r}, got {text!r}")
            continue
        if bin_ is None:
            hint = "" if found.values is not None else " (whole numbers unless --values says otherwise)"
            sheet.defect(
                problems, row, f"expected {wanted}{hint} in column {found.columns[0]!r}, got {cells[rating]!r}"
            )
            continue
        here = positions.get(name)
        if here is not None:
            before = sheet.rows[first[here]]
            if before[at] != text:
                place = sheet.place(first[here])
                sheet.defect(problems, row, f"photo {text!r} is {before[at]!r} on {place}: is it the same photo?")
                continue
            different = {k for k in others if cells[k] != before[k]}
            if clash := [k for k in different if sheet.names[k] in fixed]:
                column = sheet.names[clash[0]]
                sheet.defect(
                    problems,
                    row,
                    f"photo {text!r} has {cells[clash[0]]!r} in column {column!r}, but {before[clash[0]]!r} on "
                    f"{sheet.place(first[here])}",
                )
                continue
        else:
            different = set()
        if rater is not None:
            who = cells[rater].strip()
            if not who:
                sheet.defect(problems, row, f"expected a rater in column {found.rater!r}, got {cells[rater]!r}")
                continue
            if (earlier := given.setdefault((who, name), row)) != row:
                sheet.defect(problems, row, f"rater {who!r} rates {text!r} twice: first on {sheet.place(earlier)}")
                continue
        if here is None:
            here = positions[name] = len(first)
            first.append(row)
        changing |= different
        pairs.append((here, bin_))
    votes = np.zeros((len(first), len(values)))
    if pairs:
        index = np.array(pairs)
        np.add.at(votes, (index[:, 0], index[:, 1]), 1)
    raters = "" if rater is None else f" by {len({who for who, _ in given}):,} raters"
    report.insert(0, f"{len(pairs):,} ratings{raters}")
    report += [f"column {sheet.names[k]!r} differs between rows of one photo and is left out" for k in sorted(changing)]
    return Rated(first, list(positions), votes, values, report, frozenset(sheet.names[k] for k in changing))


def _rating_bins(sheet: Sheet, found: VoteColumns) -> tuple[FloatArray, dict[str, int | None], list[str]]:
    """The values, and for each text in the rating column its position among them, or None when it is not on them."""
    ratings = {text: number(text) for text in set(sheet.cells(found.columns[0]))}
    values, report = found.values, []
    if values is None:
        seen = [rating for rating in ratings.values() if rating is not None and rating % 1 == 0]
        if not seen or min(seen) == max(seen) or max(seen) - min(seen) >= find.MOST_VALUES:
            raise AnnotationError(
                f"the ratings in column {found.columns[0]!r} do not tell the values: expected at least two different "
                f"whole numbers less than {find.MOST_VALUES} apart; say the values with --values",
                file=sheet.file,
            )
        values = np.arange(min(seen), max(seen) + 1)
        report = [
            "values: the whole numbers from the lowest to the highest rating seen; is the scale wider? Say --values"
        ]
    width = float(values[1] - values[0])
    bins: dict[str, int | None] = {}
    for text, rating in ratings.items():
        nearest = None if rating is None else int(np.abs(values - rating).argmin())
        on = nearest is not None and rating is not None and abs(values[nearest] - rating) <= 1e-6 * width
        bins[text] = nearest if on else None
    return values, bins, report


def _columns(
    sheet: Sheet, rated: Rated, used: set[str], names: Mapping[str, str], report: list[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The text columns by their names in the table, and those names by the names in the file."""
    columns: dict[str, tuple[str, ...]] = {}
    renamed: dict[str, str] = {}
    owners: dict[str, str] = {}  # without case: some file systems do not tell "Theme" from "theme"
    for at, name in enumerate(sheet.names):
        if name in used or name in rated.dropped:
            continue
        if not name:
            report.append(f"column {at + 1} has no name and is left out")
            continue
        clean = names.get(name) or "".join(c if c.isalnum() or c in "_-." else "_" for c in name)
        clean = f"_{clean}" if clean.startswith(".") else clean
        if len(clean.encode()) > 200:
            raise AnnotationError(f"column name {name[:40]!r}... is too long: shorten it", file=sheet.file)
        if (owner := owners.setdefault(clean.casefold(), name)) != name:
            raise AnnotationError(
                f"columns {owner!r} and {name!r} would both be {clean!r}: rename one of them", file=sheet.file
            )
        if clean != name:
            report.append(f"column {name!r} is called {clean!r}")
        texts = [sheet.rows[row][at] for row in rated.rows]
        broken = sum("\n" in text or "\r" in text for text in texts)
        if broken:
            report.append(f"column {name!r}: line breaks in {broken:,} rows became blanks")
        columns[clean] = tuple(map(one_line, texts))
        renamed[name] = clean
    return columns, renamed
