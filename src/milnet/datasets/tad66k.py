"""TAD66K, theme-oriented aesthetics (He, Zhang, Xie, Jiang and Ming, IJCAI 2022).

    merge/train.csv, merge/test.csv              image,score
    unmerge/train/THEME.csv, unmerge/test/...    image,score, a file for each theme

Scores are means on 0..10; votes are not published. The two are different splits of the same photos: 478 photos of the
test part of `merge` are in the training part of `unmerge`. Where both are there, the column `crosses` names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from milnet.annotations import Problems
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_folder, first_few, photo_id, tally
from milnet.datasets.table import make_table
from milnet.datasets.text import Sheet, join, number, read_csv
from milnet.errors import AnnotationError, UsageError

Variant = Literal["merge", "unmerge"]
_VARIANTS: tuple[Variant, ...] = get_args(Variant)
_SPLITS = ("train", "test")
_COLUMNS = ("image", "score")


@dataclass(frozen=True)
class Tad66kOptions:
    """How to read TAD66K."""

    variant: str | None = None  # merge or unmerge; else merge where it is there
    images: Path | None = None  # folder of the photos


def read_tad66k(source: Path, problems: Problems, options: Tad66kOptions | None = None) -> Imported:
    """Read the folder that holds `merge` or `unmerge` or both, or has them in `labels`.

    Gives values 0..10 with the distribution of largest entropy, one vote a photo, and the columns split (train, test);
    for unmerge also theme, a declared group (a photo in several themes is one photo, its theme "A+B"); where both
    variants are there, crosses: "yes" for a photo on the other side of the other variant's split. Raises UsageError
    when the variant is not there, AnnotationError when one of its files is missing; a row that cannot be used, a
    photo in both parts, and a photo with two scores are defects with their line.
    """
    options = options or Tad66kOptions()
    folder = find_folder(source, _VARIANTS, ("labels",), "TAD66K")
    there = [variant for variant in _VARIANTS if (folder / variant).exists()]
    if options.variant is not None and options.variant not in there:
        raise UsageError(f"--variant {options.variant}: expected {' or '.join(there)}, which {folder} holds")
    inputs: dict[str, str] = {}
    report: list[str] = []
    sheets = {variant: _read(folder / variant, problems, inputs, report) for variant in there}
    variant = next(name for name in there if options.variant in (None, name))
    sheet = sheets[variant]
    if len(there) == 2:
        crosses = _crossing(sheets, report)
        sheet = sheet.with_columns({"crosses": ["yes" if photo_id(p) in crosses else "" for p in sheet.cells("image")]})
    made = make_table(
        sheet,
        problems,
        "image",
        VoteColumns("mean", ("score",), np.arange(11.0)),
        name="tad66k",
        source={"format": "tad66k", "variant": variant},
        groups=("theme",) if "theme" in sheet.names else (),
        images=options.images,
        report=report,
    )
    return Imported(made.table, inputs, (f"the variant {variant}", *made.report, tally(made.table, "split")))


def _read(folder: Path, problems: Problems, inputs: dict[str, str], report: list[str]) -> Sheet:
    """The rows of one variant with the columns image, score, split and, for unmerge, theme: one row a photo."""
    merged = folder.name == "merge"
    files = {
        split: [folder / f"{split}.csv"] if merged else sorted((folder / split).glob("*.csv")) for split in _SPLITS
    }
    for split, other in (_SPLITS, _SPLITS[::-1]):
        if not files[split]:
            raise AnnotationError("expected a file for each theme, THEME.csv", file=folder / split)
        if not merged:
            for name in sorted({file.name for file in files[other]} - {file.name for file in files[split]}):
                problems.add(f"there is no such file, but there is one in {other}", file=folder / split / name)
    sheets = []
    for part, file in [(split, file) for split in _SPLITS for file in files[split]]:
        sheet = read_csv(file, problems)
        sheet.require(_COLUMNS)
        if not sheet.rows:
            problems.add("no photo with a usable row is left", file=file)
        inputs[f"{folder.name}/{file.relative_to(folder).as_posix()}"] = sheet.sha256
        columns = {name: sheet.cells(name) for name in _COLUMNS} | {"split": [part] * len(sheet.rows)}
        columns |= {} if merged else {"theme": [file.stem] * len(sheet.rows)}
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        sheets.append(Sheet(file, sheet.sha256, tuple(columns), rows, sheet.places))
    joined = join(sheets, folder)[0]
    return joined if merged else _one_row_a_photo(joined, problems, report)


def _one_row_a_photo(sheet: Sheet, problems: Problems, report: list[str]) -> Sheet:
    """A photo of several themes of one part, with one score, as one row whose theme is all of them ("A+B").

    Another score is a defect. A photo twice in one theme, or in both parts, is left to be found with all other photos
    that are there twice.
    """
    image, score, split, theme = range(len(sheet.names))
    first: dict[str, int] = {}
    themes: dict[int, list[str]] = {}
    kept: list[int] = []
    for row, cells in enumerate(sheet.rows):
        before = first.setdefault(photo_id(cells[image]), row)
        earlier = sheet.rows[before]
        same = earlier[split] == cells[split] and earlier[image] == cells[image]
        if before == row or not same or cells[theme] in themes[before]:
            themes.setdefault(row, [cells[theme]])
            kept.append(row)
        elif cells[score] == earlier[score] or number(cells[score]) == number(earlier[score]) is not None:
            themes[before].append(cells[theme])
        else:
            sheet.defect(
                problems,
                row,
                f"photo {cells[image]!r} has the score {cells[score]!r}, but {earlier[score]!r} on "
                f"{sheet.place(before, row)}",
            )
    several = [row for row in kept if len(themes[row]) > 1]
    if several:
        names = first_few([sheet.rows[row][image] for row in several])
        report.append(f"{len(several):,} photos are in several themes, which are joined by '+': {names}")
    sheet = sheet.take(kept)
    return sheet.with_columns({"theme": ["+".join(themes[row]) for row in kept]})


def _crossing(sheets: dict[Variant, Sheet], report: list[str]) -> set[str]:
    """Ids of the photos that one variant tests on and the other trains on."""
    parts = {
        variant: {
            side: {
                photo_id(photo): None
                for photo, split in zip(sheet.cells("image"), sheet.cells("split"), strict=True)
                if split == side
            }
            for side in _SPLITS
        }
        for variant, sheet in sheets.items()
    }
    crossing: set[str] = set()
    for one, other in (_VARIANTS, _VARIANTS[::-1]):
        found = [photo for photo in parts[one]["test"] if photo in parts[other]["train"]]
        report.append(
            f"{len(found):,} photos of the test part of {one} are in the training part of {other}"
            + (f": {first_few(found)}" if found else "")
        )
        crossing |= set(found)
    return crossing
