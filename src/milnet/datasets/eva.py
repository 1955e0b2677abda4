"""EVA, explainable visual aesthetics (Kang, Valenzise and Dufaux, ATQAM/MAST 2020).

    votes_filtered.csv            separated by "=", one row a rating:
                                  image_id=user_id=score=difficulty=visual=composition=quality=semantic=vote_time=1=2=3=4
    image_content_category.csv    optional: "image_id","sort", the category of each photo, 1 to 6

Scores are whole numbers 0..10. EVA's photos are photos of AVA under their AVA ids, which the table's source says
(`"ids": "ava"`), so a test on EVA can be compared with what was trained on AVA. There is no official split. What else a
rater said (difficulty, attributes) is about one rating, not about the photo, and is not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milnet.annotations import Problems
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_folder, first_few
from milnet.datasets.table import make_table
from milnet.datasets.text import Sheet, read_csv, unique

LABELS, CATEGORIES = "votes_filtered.csv", "image_content_category.csv"
_ID = re.compile(r"\s*([0-9]{1,9})(?:\.jpg)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class EvaOptions:
    """How to read EVA."""

    images: Path | None = None  # folder of the photos ID.jpg, at any depth below


def read_eva(source: Path, problems: Problems, options: EvaOptions | None = None) -> Imported:
    """Read `votes_filtered.csv`, or the folder that holds it or has it in `data`.

    Gives values 0..10, counts of the ratings as votes, and the column category where the file of categories lies beside
    the ratings. Raises UsageError when there are no ratings; a row that cannot be used is a defect with its line.
    """
    file = source if source.is_file() else find_folder(source, (LABELS,), ("data",), "EVA") / LABELS
    sheet = read_csv(file, problems, separator="=")
    sheet.require(("image_id", "user_id", "score"))
    sheet, photos = _ava_ids(sheet, problems)
    texts = {"image_id": [f"{photo}.jpg" for photo in photos]}
    texts |= {name: sheet.cells(name) for name in ("user_id", "score")}
    inputs, report = {"labels": sheet.sha256}, []
    listed = file.parent / CATEGORIES
    if listed.exists():
        category, inputs["categories"] = _categories(listed, problems)
        texts["category"] = [category.get(photo, "") for photo in photos]
        without = sorted({photo for photo in photos if photo not in category}, key=int)
        if without:
            report.append(f"{len(without):,} photos have no category: {first_few(without)}")
    made = make_table(
        Sheet(file, sheet.sha256, tuple(texts), [list(row) for row in zip(*texts.values(), strict=True)], sheet.places),
        problems,
        "image_id",
        VoteColumns("ratings", ("score",), np.arange(11.0), rater="user_id"),
        name="eva",
        source={"format": "eva", "ids": "ava"},
        images=(options or EvaOptions()).images,
        report=report,
    )
    note = "the photos are photos of AVA: do not test on them what has learned from AVA's votes"
    return Imported(made.table, inputs, (*made.report, note))


def _ava_ids(sheet: Sheet, problems: Problems) -> tuple[Sheet, list[str]]:
    """The rows whose image id is one of AVA's, and those ids: "007" and "7.jpg" are "7"."""
    kept, photos = [], []
    for row, text in enumerate(sheet.cells("image_id")):
        if match := _ID.fullmatch(text):
            kept.append(row)
            photos.append(str(int(match[1])))
        else:
            sheet.defect(problems, row, f"expected a whole number of at most 9 digits as image id, got {text!r}")
    return sheet.take(kept), photos


def _categories(file: Path, problems: Problems) -> tuple[dict[str, str], str]:
    """image id -> its category, and the sha256 of the file; its photos need not all have been rated."""
    sheet = read_csv(file, problems)
    sheet.require(("image_id", "sort"))
    sheet, photos = _ava_ids(sheet, problems)
    sheet = sheet.with_columns({"image_id": photos})
    found: dict[str, str] = {}
    for row in unique(sheet, problems, "image_id", "photo", str)[0]:
        text = sheet.rows[row][sheet.names.index("sort")].strip()
        if text and text.isprintable():
            found[photos[row]] = text
        else:
            sheet.defect(problems, row, f"expected a category in column 'sort', got {text!r}")
    return found, sheet.sha256
