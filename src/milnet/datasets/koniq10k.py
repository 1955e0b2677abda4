"""KonIQ-10k, technical quality as 1.2 million ratings say it (Hosu, Lin, Sziranyi and Saupe, TIP 2020).

    koniq10k_distributions_sets.csv   image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set

c1..c5 are the fractions of the ratings 1..5, c_total their number, set is training, validation or test. MOS (0..100)
and SD are kept as columns and not compared with the fractions: no one line leads from the mean of the fractions to MOS.
10007357496.jpg and 10014002683.jpg have the means 3.479 and 3.481 and the MOS 68.7 and 64.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milnet.annotations import Problems
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_folder, tally
from milnet.datasets.table import make_table
from milnet.datasets.text import only_numbers, read_csv

LABELS = "koniq10k_distributions_sets.csv"
_SHARES = ("c1", "c2", "c3", "c4", "c5")
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Koniq10kOptions:
    """How to read KonIQ-10k."""

    images: Path | None = None  # folder of the photos, of one size: `1024x768` or `512x384`


def read_koniq10k(source: Path, problems: Problems, options: Koniq10kOptions | None = None) -> Imported:
    """Read the label file, or the folder that holds it.

    Gives values 1..5, fractions x c_total as votes, and the columns split (train, validation, test), MOS and SD. Raises
    UsageError when there is no such file; a row that cannot be used, or an unknown set, is a defect with its line.
    """
    file = source if source.is_file() else find_folder(source, (LABELS,), ("metadata",), "KonIQ-10k") / LABELS
    sheet = read_csv(file, problems)
    sheet.require(("image_name", *_SHARES, "c_total", "MOS", "SD", "set"))
    sheet = only_numbers(sheet, problems, {"MOS": (0, 100), "SD": (0, float("inf"))})
    kept = []
    for row, text in enumerate(sheet.cells("set")):
        if text in _SPLITS:
            kept.append(row)
        else:
            sheet.defect(problems, row, f"expected {', '.join(_SPLITS)} in column 'set', got {text!r}")
    sheet = sheet.take(kept)
    sheet = sheet.with_columns({"set": [_SPLITS[text] for text in sheet.cells("set")]})
    made = make_table(
        sheet,
        problems,
        "image_name",
        VoteColumns("fractions", _SHARES, np.arange(1.0, 6.0), total="c_total"),
        name="koniq10k",
        source={"format": "koniq10k"},
        names={"set": "split"},
        images=(options or Koniq10kOptions()).images,
    )
    return Imported(made.table, {"labels": sheet.sha256}, (*made.report, tally(made.table, "split")))
