"""Who voted how: the table of rated photos, and the `DATA/` folder that holds it.

Words: *values* are the S equally spaced score values of a data set (AVA: 1..10); *votes* say how many people chose
each; *distribution* = votes / their sum; *score* = sum of p * values; *spread* = the standard deviation of p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from milnet.artifacts import (
    FORMATS,
    Manifest,
    digest_file,
    new_folder,
    read_array,
    read_lines,
    read_manifest,
    verify_files,
    write_array,
    write_lines,
    write_manifest,
)
from milnet.errors import AnnotationError, ArtifactError, NumericError, UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Side = Literal[">", ">="]


class Problems:
    """Where importers report the defects of a label file.

    Without `keep_going` the first defect is raised as AnnotationError; with it, defects are collected in `found` and
    the importer goes on without the line.
    """

    def __init__(self, *, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self.found: list[AnnotationError] = []

    def add(self, reason: str, *, file: str | Path, line: int | None = None) -> None:
        """Report one defect: what was expected, what was found. `line` is 1-based."""
        error = AnnotationError(reason, file=file, line=line)
        if not self.keep_going:
            raise error
        self.found.append(error)


def deviation(p: FloatArray, values: FloatArray) -> FloatArray:
    """Standard deviation [n] of distributions [n, S], in units of `values`."""
    return np.asarray(np.sqrt((p * (values[None] - (p @ values)[:, None]) ** 2).sum(1)))


@dataclass(frozen=True)
class Table:
    """N rated photos of one data set.

    `ids` are unique; `votes` [N, S] float64 >= 0 (counts; fractions times total where the source gives fractions);
    `values` [S] float64, increasing, equally spaced; `columns` hold one text a photo; `images` the path of each photo
    below `image_root` ("" where unknown); `groups` names the columns whose photos belong together (theme,
    photographer); `threshold` and `side` define "good" for the accuracy of this data set.
    """

    name: str
    ids: tuple[str, ...]
    votes: FloatArray
    values: FloatArray
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    image_root: Path | None = None
    groups: tuple[str, ...] = ()
    threshold: float = 0.0
    side: Side = ">="
    source: Mapping[str, Any] = field(default_factory=dict)  # how it was read: part of the digest

    def __post_init__(self) -> None:
        n, s = len(self.ids), len(self.values)
        if self.votes.shape != (n, s):
            raise UsageError(f"expected votes of shape ({n}, {s}) for {n} ids and {s} values, got {self.votes.shape}")
        if (
            s < 2
            or not np.allclose(np.diff(self.values), self.values[1] - self.values[0])
            or np.diff(self.values)[0] <= 0
        ):
            raise UsageError(f"expected at least 2 increasing, equally spaced values, got {self.values.tolist()}")
        if not np.isfinite(self.threshold):
            raise UsageError(f"expected a finite threshold, got {self.threshold}")
        if len(set(self.ids)) != n:
            twice = sorted(i for i in set(self.ids) if self.ids.count(i) > 1) if n < 10000 else ["(many rows)"]
            raise UsageError(f"photo ids must be unique; more than once: {', '.join(twice[:5])}")
        for name, column in {**self.columns, "images": self.images or self.ids}.items():
            if len(column) != n:
                raise UsageError(f"column {name!r} has {len(column)} values for {n} photos")
        for name in self.groups:
            if name not in self.columns:
                raise UsageError(
                    f"group column {name!r} is not a column; there are: {', '.join(self.columns) or 'none'}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def id_space(self) -> str:
        """Whose photos the ids name: the table itself, or the data set it took its photos from (EVA's are AVA's)."""
        return str(self.source.get("ids", self.name))

    @property
    def totals(self) -> FloatArray:
        """Number of votes of each photo, [N]."""
        return np.asarray(self.votes.sum(1))

    @property
    def distributions(self) -> FloatArray:
        """Share of votes at each value, [N, S], rows sum to 1."""
        return np.asarray(self.votes / self.totals[:, None])

    @property
    def scores(self) -> FloatArray:
        """Mean vote of each photo, [N], in units of `values`."""
        return np.asarray(self.distributions @ self.values)

    @property
    def spreads(self) -> FloatArray:
        """Standard deviation of each photo's votes, [N], in units of `values`: how much viewers disagree."""
        return deviation(self.distributions, self.values)

    def column(self, name: str) -> tuple[str, ...]:
        """The column `name`; raises UsageError that lists the columns when there is none."""
        if name not in self.columns:
            raise UsageError(f"there is no column {name!r}; there are: {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def codes(self, name: str) -> IntArray:
        """Column `name` as whole numbers [N], equal where the texts are equal; "" belongs to nobody and gives -1."""
        column = np.array(self.column(name), dtype=object).astype(str)
        codes = np.unique(column, return_inverse=True)[1].astype(np.int64)
        return np.where(column == "", np.int64(-1), codes)

    def take(self, rows: NDArray[np.integer[Any]] | Sequence[int]) -> Table:
        """The photos of `rows`, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            votes=self.votes[rows],
            columns={name: tuple(column[row] for row in rows) for name, column in self.columns.items()},
            images=tuple(self.images[row] for row in rows) if self.images else (),
        )

    def rows_where(self, column: str, value: str) -> IntArray:
        """Rows whose `column` is `value`; raises UsageError listing the values when there are none."""
        texts = self.column(column)
        rows = np.array([row for row, text in enumerate(texts) if text == value], dtype=np.int64)
        if not len(rows):
            raise UsageError(f"no photo has {column} = {value!r}; there are: {', '.join(sorted(set(texts))[:20])}")
        return rows

    def image_path(self, row: int) -> Path:
        """The file of photo `row`; raises UsageError when the photo folder is not known."""
        name = self.images[row] if self.images else ""
        if not name:
            raise UsageError(
                f"the file of photo {self.ids[row]!r} is not known: import the table again with --images DIR"
            )
        path = Path(name)
        if path.is_absolute():
            return path
        if self.image_root is None:
            raise UsageError("the folder of the photos is not known: pass --images DIR")
        return self.image_root / path

    def check(self) -> None:
        """Raise NumericError when a photo's votes are not finite, negative, or all zero: it has no distribution."""
        bad = np.flatnonzero(~(np.isfinite(self.votes).all(1) & (self.votes >= 0).all(1) & (self.votes.sum(1) > 0)))
        if len(bad):
            row = int(bad[0])
            raise NumericError(
                f"{len(bad)} of {len(self)} photos have no usable votes; the first is {self.ids[row]!r}: "
                f"expected numbers >= 0 with a positive sum, got {self.votes[row].tolist()}"
            )


def save_table(table: Table, folder: Path, *, inputs: Mapping[str, str], overwrite: bool = False) -> Manifest:
    """Write `DATA/`: ids, votes, values, columns, manifest. `inputs` maps each source file's role to its sha256."""
    table.check()
    root = None if table.image_root is None else str(table.image_root.resolve())
    # Features name the photos they belong to and references the features, so what does not fit will be refused; and how
    # often a split was looked at is not forgotten by importing it again.
    with new_folder(folder, "data", overwrite=overwrite, keep=("features", "references", "looks.jsonl")) as building:
        write_lines(building / "ids.txt", table.ids)
        write_array(building / "votes.npy", table.votes.astype(np.float64))
        write_array(building / "values.npy", table.values.astype(np.float64))
        write_lines(building / "images.txt", table.images or ("",) * len(table))
        for name, column in table.columns.items():
            if not name or not all(c.isalnum() or c in "_-." for c in name) or name.startswith("."):
                raise UsageError(f"column name {name!r}: expected letters, digits, '_', '-' or '.'")
            write_lines(building / "columns" / f"{name}.txt", column)
        paths = sorted(path.relative_to(building).as_posix() for path in building.rglob("*") if path.is_file())
        manifest = Manifest(
            kind="data",
            format=FORMATS["data"],
            config={
                "name": table.name,
                "columns": sorted(table.columns),
                "groups": list(table.groups),
                "threshold": table.threshold,
                "side": table.side,
                "source": dict(table.source),
            },
            files={path: digest_file(building / path) for path in paths},
            inputs=dict(inputs),
            counts={"photos": len(table), "values": len(table.values), "votes": float(table.votes.sum())},
            notes={"image_root": root},
        )
        write_manifest(building, manifest)
    return manifest


def load_table(folder: Path, *, verify: bool = True) -> tuple[Table, Manifest]:
    """Read `DATA/`; with `verify` the files are compared with the digests of the manifest."""
    manifest = read_manifest(folder, "data")
    if verify:
        verify_files(folder, manifest)
    config = manifest.config
    root = manifest.notes.get("image_root")
    try:
        table = Table(
            name=config["name"],
            ids=read_lines(folder / "ids.txt"),
            votes=read_array(folder / "votes.npy"),
            values=read_array(folder / "values.npy"),
            columns={name: read_lines(folder / "columns" / f"{name}.txt") for name in config["columns"]},
            images=read_lines(folder / "images.txt"),
            image_root=None if root is None else Path(root),
            groups=tuple(config["groups"]),
            threshold=config["threshold"],
            side=config["side"],
            source=config["source"],
        )
    except (KeyError, UsageError) as error:
        raise ArtifactError(f"{folder} does not hold together ({error}): import it again") from error
    table.check()
    return table, manifest
