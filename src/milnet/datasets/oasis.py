"""The `oasis` format: a folder with photos and the whole distribution of their votes.

    images/NAME              the photos
    votes.csv                image,theme,category,v1,...,vS: how many people gave 1, ..., S; S is told by the header
    folds.csv (optional)     image,FOLD,...: fixed folds; every photo exactly once

It is our own, made for the OASIS photos (Kurdi, Lozano and Banaji 2017) with the beauty ratings of Brielmann and Pelli
(2019), where S is 7; any data set written this way is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milnet.annotations import Problems, Table
from milnet.datasets.imported import Imported, files_below, first_few, photo_id, require_photos
from milnet.datasets.text import Sheet, one_line, read_csv, unique, whole
from milnet.errors import AnnotationError, UsageError

_LEADING = ("image", "theme", "category")


@dataclass(frozen=True)
class OasisOptions:
    """How to read the oasis format."""

    images: Path | None = None  # folder of the photos when it is not `images/` in the source


def read_oasis(source: Path, problems: Problems, options: OasisOptions | None = None) -> Imported:
    """Read the folder `source`. A photo without a file is a defect of its line in votes.csv.

    Gives columns theme, category and one for each fold, the group theme, values 1..S, the threshold in their middle.
    """
    options = options or OasisOptions()
    if not source.is_dir():
        raise UsageError(f"expected a folder with votes.csv and images/, got {source}")
    root, below = (source, "images/") if options.images is None else (options.images, "")
    there = files_below(root / below, deep=False)
    sheet = read_csv(source / "votes.csv", problems)
    values = _values(sheet)
    listed, ids = unique(sheet, problems, "image", "the name of a photo", photo_id)
    files = [sheet.rows[row][0] for row in listed]
    votes, kept = [], []
    for position, row in enumerate(listed):
        counts = [whole(cell) for cell in sheet.rows[row][len(_LEADING) :]]
        numbers = [count for count in counts if count is not None]
        if len(numbers) < len(counts):
            at = counts.index(None)
            cell = sheet.rows[row][len(_LEADING) + at]
            sheet.defect(problems, row, f"expected a whole number >= 0 in column 'v{at + 1}', got {cell!r}")
        elif not any(numbers):
            sheet.defect(problems, row, f"expected at least one vote for {files[position]!r}, got none")
        elif files[position] not in there:
            sheet.defect(problems, row, f"the photo {files[position]!r} is not in {root / below}")
        else:
            votes.append(numbers)
            kept.append(position)
    columns = {
        name: [one_line(sheet.rows[listed[position]][at]) for position in kept]
        for at, name in enumerate(_LEADING[1:], 1)
    }
    inputs = {"votes.csv": sheet.sha256}
    report = [f"{len(kept):,} photos, {len(values)} values, {len(set(columns['theme'])):,} themes"]
    if (source / "folds.csv").exists():
        folds = read_csv(source / "folds.csv", problems)
        inputs["folds.csv"] = folds.sha256
        texts = _folds(folds, problems, [row[0] for row in sheet.rows], [files[position] for position in kept])
        complete = [at for at, position in enumerate(kept) if files[position] in texts]
        kept, votes = [kept[at] for at in complete], [votes[at] for at in complete]
        columns = {name: [column[at] for at in complete] for name, column in columns.items()}
        for at, name in enumerate(folds.names[1:]):
            columns[name] = [texts[files[position]][at] for position in kept]
            report.append(f"folds {name!r}: {', '.join(sorted(set(columns[name])))}")
    require_photos(len(kept), sheet.file)
    table = Table(
        name="oasis",
        ids=tuple(ids[position] for position in kept),
        votes=np.array(votes, dtype=np.float64),
        values=values,
        columns={name: tuple(column) for name, column in columns.items()},
        images=tuple(below + files[position] for position in kept),
        image_root=root,
        groups=("theme",),
        threshold=float(values[0] + values[-1]) / 2,
        source={"format": "oasis"},
    )
    unused = sorted(set(there) - set(sheet.cells("image")))
    if unused:
        report.append(f"{len(unused):,} files in {root / below} are in no row of votes.csv: {first_few(unused)}")
    return Imported(table, inputs, tuple(report))


def _values(sheet: Sheet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """1..S from the header."""
    size = len(sheet.names) - len(_LEADING)
    expected = (*_LEADING, *(f"v{value}" for value in range(1, size + 1)))
    if size < 2 or sheet.names != expected:
        raise AnnotationError(
            f"expected the header image,theme,category,v1,v2,... with at least 2 values, got {','.join(sheet.names)}",
            file=sheet.file,
            line=1,
        )
    return np.arange(1, size + 1, dtype=np.float64)


def _folds(folds: Sheet, problems: Problems, known: list[str], wanted: list[str]) -> dict[str, list[str]]:
    """Fold texts by file name; every photo of votes.csv exactly once, no others. `wanted` must all be there."""
    taken = {"theme", "category"}
    for name in folds.names[1:]:
        if name in taken or not name or not all(c.isalnum() or c in "_-" for c in name):
            raise AnnotationError(
                f"expected names of folds (letters, digits, '_', '-'; not theme or category), got {name!r}",
                file=folds.file,
                line=1,
            )
    if folds.names[0] != "image":
        raise AnnotationError(
            f"expected the header image,FOLD,..., got {','.join(folds.names)}", file=folds.file, line=1
        )
    texts: dict[str, list[str]] = {}
    voted, named = set(known), set()
    for row in unique(folds, problems, "image", "the name of a photo", str)[0]:
        file, *cells = folds.rows[row]
        named.add(file)
        if file not in voted:
            folds.defect(problems, row, f"the photo {file!r} is not in votes.csv")
        elif not all(cell.strip() for cell in cells):
            folds.defect(problems, row, f"expected a fold for {file!r} in every column, got {','.join(cells)!r}")
        else:
            texts[file] = [one_line(cell.strip()) for cell in cells]
    for file in wanted:
        if file not in named:
            problems.add(f"expected every photo of votes.csv once, but {file!r} is not there", file=folds.file)
    return texts
