"""AADB, aesthetics with attributes (Kong, Shen, Lin, Mech and Fowlkes, ECCV 2016).

    imgListTrainRegression_score.txt, imgListValidationRegression_score.txt, imgListTestNewRegression_score.txt
        FILE VALUE     the mean of 5 raters' 1..5, brought to 0..1
    imgListTrainRegression_ATTRIBUTE.txt, ... (optional)
        FILE VALUE     an attribute, -1..1

The lists without "New" are of the older test photos and are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from milnet.annotations import Problems
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_folder, photo_id, tally
from milnet.datasets.table import make_table
from milnet.datasets.text import Sheet, join, only_numbers, read_lines, unclean, unique

PARTS = {"train": "Train", "validation": "Validation", "test": "TestNew"}
RATERS = 5
_ATTRIBUTE = re.compile(r"imgList(Train|Validation|TestNew)Regression_([A-Za-z0-9]+)\.txt")


@dataclass(frozen=True)
class AadbOptions:
    """How to read AADB."""

    images: Path | None = None  # folder of the photos, at any depth below


def read_aadb(source: Path, problems: Problems, options: AadbOptions | None = None) -> Imported:
    """Read the folder of the lists, or the folder that has it as `imgListFiles_label`.

    Gives values 0, 0.25 .. 1 (a rater's 1 .. 5) with the distribution of largest entropy x 5 votes, the column split
    (train, validation, test) and one for each attribute, empty where no list names the photo. Raises UsageError when no
    list is found, AnnotationError when one of the three is missing; a line that cannot be used is a defect.
    """
    lists = {split: f"imgList{part}Regression_score.txt" for split, part in PARTS.items()}
    folder = find_folder(source, tuple(lists.values()), ("imgListFiles_label",), "AADB")
    inputs: dict[str, str] = {}
    report: list[str] = []
    named: dict[str, set[str]] = {}
    sheets = []
    for split, name in lists.items():
        sheet, named[split] = _read(folder / name, "score", problems, inputs)
        sheets.append(sheet.with_columns({"split": [split] * len(sheet.rows)}))
    made = make_table(
        join(sheets, folder)[0],
        problems,
        "image",
        VoteColumns("mean", ("score",), np.linspace(0, 1, RATERS), each=RATERS),
        name="aadb",
        source={"format": "aadb"},
        images=(options or AadbOptions()).images,
    )
    columns = dict(made.table.columns)
    found = {match[2] for path in folder.iterdir() if (match := _ATTRIBUTE.fullmatch(path.name))} - {"score"}
    for attribute in sorted(found):
        texts: dict[str, str] = {}
        for split, part in PARTS.items():
            file = folder / f"imgList{part}Regression_{attribute}.txt"
            if file.exists():
                texts |= _attribute(file, attribute, named[split], lists[split], problems, inputs)
            else:
                report.append(f"there is no {file.name}: the attribute is empty for these photos")
        columns[attribute] = tuple(texts.get(photo, "") for photo in made.table.ids)
        if empty := columns[attribute].count(""):
            report.append(f"{attribute}: empty for {empty:,} photos")
    table = replace(made.table, columns=columns)
    return Imported(table, inputs, (*made.report, *report, tally(table, "split")))


def _read(file: Path, name: str, problems: Problems, inputs: dict[str, str]) -> tuple[Sheet, set[str]]:
    """A list as a sheet with the columns image and `name`, two fields a line; and the ids that its lines begin with."""
    lines, inputs[file.name] = read_lines(file)
    rows, places = [], []
    for place, line in enumerate(lines, 1):
        fields = line.split()
        if reason := unclean([line]):
            problems.add(reason, file=file, line=place)
        elif len(fields) != 2:
            wanted = "expected the name of a photo and a number"
            problems.add(f"{wanted}, got {len(fields)} fields: {line[:80]!r}", file=file, line=place)
        else:
            rows.append(fields)
            places.append(place)
    sheet = Sheet(file, inputs[file.name], ("image", name), rows, places)
    return sheet, {photo_id(line.split()[0]) for line in lines if line.strip()}


def _attribute(
    file: Path, name: str, known: set[str], scores: str, problems: Problems, inputs: dict[str, str]
) -> dict[str, str]:
    """Photo id -> its attribute, as the list writes it. A photo that the scores lack is a defect of its line."""
    sheet = only_numbers(_read(file, name, problems, inputs)[0], problems, {name: (-1, 1)})
    texts: dict[str, str] = {}
    for row, photo in zip(*unique(sheet, problems, "image", "photo", photo_id), strict=True):
        if photo in known:
            texts[photo] = sheet.rows[row][1]
        else:
            sheet.defect(problems, row, f"the photo {sheet.rows[row][0]!r} is not in {scores}")
    return texts
