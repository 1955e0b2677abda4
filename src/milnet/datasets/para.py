"""PARA, personalised image aesthetics with rich attributes (Yang et al., CVPR 2022).

    annotation/PARA-GiaaTrain.csv, PARA-GiaaTest.csv   one row a photo, with the columns
        imageName, sessionId                           the photo is imgs/sessionId/imageName
        aestheticScore_1.0, _1.5, ..., _5.0            how many people gave each of the 9 scores
        aestheticScore_mean, aestheticScore_std        kept as columns
        and anything else (scene, other scores ...)    kept as columns

PARA's terms allow research and learning only, of the data and of results made with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milnet.annotations import Problems
from milnet.datasets.columns import VoteColumns
from milnet.datasets.imported import Imported, find_folder, tally
from milnet.datasets.table import make_table
from milnet.datasets.text import Sheet, join, only_numbers, read_csv

FILES = {"train": "PARA-GiaaTrain.csv", "test": "PARA-GiaaTest.csv"}
_VALUES = np.arange(1.0, 5.5, 0.5)
_COUNTS = tuple(f"aestheticScore_{value:.1f}" for value in _VALUES)
_MOMENTS = ("aestheticScore_mean", "aestheticScore_std")


@dataclass(frozen=True)
class ParaOptions:
    """How to read PARA."""

    images: Path | None = None  # folder of the sessions; else `imgs` in the folder of PARA, when it is there


def read_para(source: Path, problems: Problems, options: ParaOptions | None = None) -> Imported:
    """Read the folder of PARA, or its folder `annotation`.

    Gives values 1, 1.5 .. 5, the columns split (train, test), session, aestheticScore_mean, aestheticScore_std and all
    others that both files have. Photo ids are the names of the photos without their session. Raises UsageError when
    neither file is found, AnnotationError when one is missing; a row that cannot be used is a defect with its line.
    """
    folder = find_folder(source, tuple(FILES.values()), ("annotation",), "PARA")
    sheets, inputs = [], {}
    for split, name in FILES.items():
        sheet = read_csv(folder / name, problems)
        sheet.require(("imageName", "sessionId", *_COUNTS, *_MOMENTS))
        sheet = sheet.with_columns({"split": [split] * len(sheet.rows)})
        sheets.append(only_numbers(sheet, problems, {_MOMENTS[0]: (1, 5), _MOMENTS[1]: (0, 4)}))
        inputs[split] = sheet.sha256
    joined, others = join(sheets, folder)
    report = [f"column {name!r} is in one of the files only and is left out" for name in others]
    joined, paths = _paths(joined, problems)
    images = (options or ParaOptions()).images
    if images is None:
        images = next((place / "imgs" for place in (folder, folder.parent) if (place / "imgs").is_dir()), None)
    made = make_table(
        joined,
        problems,
        "imageName",
        VoteColumns("counts", _COUNTS, _VALUES),
        name="para",
        source={"format": "para"},
        names={"sessionId": "session"},
        images=images,
        paths=paths,
        report=report,
    )
    terms = "PARA is for research and learning only: not for commercial use, neither the data nor results made with it"
    return Imported(made.table, inputs, (*made.report, tally(made.table, "split"), terms))


def _paths(sheet: Sheet, problems: Problems) -> tuple[Sheet, dict[str, str]]:
    """The rows that name a session, and for each photo its file below the folder of the sessions."""
    at, session = sheet.names.index("imageName"), sheet.names.index("sessionId")
    kept: list[int] = []
    paths: dict[str, str] = {}
    for row, cells in enumerate(sheet.rows):
        if cells[session].strip():
            kept.append(row)
            paths.setdefault(cells[at], f"{cells[session].strip()}/{cells[at]}")
        else:
            sheet.defect(problems, row, f"expected a session in column 'sessionId', got {cells[session]!r}")
    return sheet.take(kept), paths
