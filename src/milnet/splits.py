"""Who is trained on and who is tested: folds, groups, validation, and the same photo under two names.

Groups act only when asked: by naming the column, or by folds that never split it. Validation is carved from the
training part the way the folds are.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from milnet.annotations import IntArray, Table
from milnet.errors import AnnotationError, LeakError, UsageError


@dataclass(frozen=True)
class Split:
    """Rows of a table: `train` is learned from, `test` only predicted; they share no row.

    `group` names the column whose photos stay together and do not consult each other, or None.
    """

    train: IntArray
    test: IntArray
    group: str | None = None

    def __post_init__(self) -> None:
        common = np.intersect1d(self.train, self.test)
        if len(common):
            raise LeakError(f"{len(common)} rows are in the training and in the test part, the first is {common[0]}")


@dataclass(frozen=True)
class Folds:
    """`codes` [N]: the fold of each row (-1: in none, always trained on); `names` of the folds; `label` for reports.

    `group`: the column that the folds never split, if any.
    """

    label: str
    names: tuple[str, ...]
    codes: IntArray
    group: str | None = None


def components(n: int, pairs: NDArray[np.int64]) -> IntArray:
    """Codes [n] of the connected parts of a graph with the edges `pairs` [E, 2]; a code is its lowest row."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    first = np.unique(labels, return_index=True)[1]
    return np.asarray(first[labels], dtype=np.int64)


def code_pairs(codes: IntArray) -> NDArray[np.int64]:
    """Edges [E, 2] that join the rows of equal code; negative codes join nobody."""
    order = np.argsort(codes, kind="stable")
    same = (codes[order][1:] == codes[order][:-1]) & (codes[order][1:] >= 0)
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64)


def whole(folds: IntArray, groups: IntArray) -> bool:
    """Whether each group lies in one fold."""
    inside = groups >= 0
    pairs = np.unique(np.stack([groups[inside], folds[inside]]), axis=1)
    return bool(pairs.shape[1] == len(np.unique(groups[inside])))


def never_split(folds: IntArray, groups: IntArray) -> bool:
    """Whether each group lies in one fold, and some group has more than one photo."""
    sizes = np.unique(groups[groups >= 0], return_counts=True)[1]
    return bool((sizes > 1).any()) and whole(folds, groups)


def make_folds(n: int, k: int, seed: int, groups: IntArray | None = None) -> IntArray:
    """`k` folds of nearly equal size, [N]; groups (negative: alone) stay whole. A pure function of its arguments."""
    units = components(n, code_pairs(np.full(n, -1, np.int64) if groups is None else groups))
    members, inverse, sizes = np.unique(units, return_inverse=True, return_counts=True)
    if not 2 <= k <= len(members):
        raise UsageError(f"expected 2 to {len(members)} folds (there are so many photos or groups), got {k}")
    order = np.random.default_rng(seed).permutation(len(members))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, each into the smallest fold so far
    fold_of, filled = np.zeros(len(members), np.int64), np.zeros(k, np.int64)
    for unit in order:
        fold = int(filled.argmin())
        fold_of[unit] = fold
        filled[fold] += sizes[unit]
    return fold_of[inverse]


def find_folds(table: Table, wanted: str, *, group: str | None = None, seed: int = 0) -> Folds:
    """The folds a user names: a column of the table, a csv FILE (`image,fold`), or a number of folds.

    `group` names a column whose photos must stay together: it steers numbered folds, and folds that split it are an
    error. Without it, the first declared group column that the folds never split is taken.
    """
    if group is not None:
        table.column(group)
    if wanted.isdecimal():
        codes = make_folds(len(table), int(wanted), seed, None if group is None else table.codes(group))
        names: tuple[str, ...] = tuple(str(i) for i in range(int(wanted)))
        label = f"{wanted} folds, seed {seed}" + (f", by {group}" if group else "")
    else:
        texts = table.columns[wanted] if wanted in table.columns else _fold_file(table, wanted)
        names = tuple(sorted(set(texts) - {""}))
        if len(names) < 2:
            got = f"1, {names[0]!r}" if names else "none"
            raise UsageError(f"{wanted}: expected at least 2 folds, got {got}")
        number = {name: i for i, name in enumerate(names)}
        codes = np.array([number.get(text, -1) for text in texts], dtype=np.int64)
        label = wanted if wanted in table.columns else Path(wanted).name
    if group is not None:
        if not whole(codes, table.codes(group)):
            raise UsageError(f"--group {group}: the folds {label!r} split it; choose folds that do not, or a number")
        return Folds(label, names, codes, group)
    kept = [name for name in table.groups if never_split(codes, table.codes(name))]
    return Folds(label, names, codes, kept[0] if kept else None)


def _fold_file(table: Table, wanted: str) -> tuple[str, ...]:
    path = Path(wanted)
    if not path.is_file():
        columns = ", ".join(table.columns) or "none"
        raise UsageError(f"--folds {wanted}: neither a column ({columns}), nor a csv file, nor a number")
    folds: dict[str, str] = {}
    known = set(table.ids)
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as error:
        raise AnnotationError(f"expected UTF-8 text ({error})", file=path) from error
    for number, row in enumerate(reader):
        line = reader.line_num
        if len(row) != 2:
            raise AnnotationError(f"expected image,fold, got {len(row)} fields", file=path, line=line)
        name = row[0] if row[0] in known else Path(row[0]).stem
        if name not in known:
            if number == 0:  # the header
                continue
            raise AnnotationError(f"{row[0]!r} is no photo of {table.name}", file=path, line=line)
        if name in folds:
            raise AnnotationError(f"{row[0]!r} has a fold already", file=path, line=line)
        folds[name] = row[1]
    missing = [id_ for id_ in table.ids if id_ not in folds]
    if missing:
        raise AnnotationError(f"{len(missing)} photos have no fold, the first is {missing[0]!r}", file=path)
    return tuple(folds[id_] for id_ in table.ids)


def carve(rows: IntArray, share: float, seed: int, groups: IntArray | None = None) -> tuple[IntArray, IntArray]:
    """Set aside about `share` of `rows` as validation, whole groups together: (kept, validation), both ascending.

    `groups` [N] are codes over the whole table.
    """
    units = components(len(rows), code_pairs(np.full(len(rows), -1, np.int64) if groups is None else groups[rows]))
    members, inverse, sizes = np.unique(units, return_inverse=True, return_counts=True)
    if len(members) < 2:
        raise UsageError(f"cannot set validation aside: {len(rows)} training photos in {len(members)} group")
    order = np.random.default_rng([seed, 0xCA12E]).permutation(len(members))
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = order[before < share * len(rows)][: len(members) - 1]
    inside = np.isin(inverse, chosen)
    return np.sort(rows[~inside]), np.sort(rows[inside])


def same_photos(
    pixels: IntArray, semantic: NDArray[np.float32], readable: NDArray[np.bool_], limit: float | None
) -> NDArray[np.int64]:
    """Pairs of rows [E, 2], lower row first, that are the same photo.

    Equal pixel codes (negative: unknown), or cosine of `semantic` above `limit`; without a limit pixels alone decide.
    All pairs are compared, in blocks: meant for tables of up to some 20,000 photos. Likeness is not carried on over
    third photos: a burst that drifts from one view to another is not one photo.
    """
    order = np.argsort(pixels, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(pixels[order])) + 1)
    pairs = [(int(a), int(b)) for rows in sets if pixels[rows[0]] >= 0 for a in rows for b in rows if a < b]
    if limit is not None:
        rows = np.flatnonzero(readable)
        x = semantic[rows].astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
        for start in range(0, len(rows), 1024):
            first, second = np.nonzero(x[start : start + 1024] @ x.T > limit)
            later = first + start < second
            pairs += zip(rows[first[later] + start].tolist(), rows[second[later]].tolist(), strict=True)
    return np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)


def without_twins(train: IntArray, test: IntArray, same: NDArray[np.int64]) -> tuple[IntArray, IntArray]:
    """Take out of `train` what is the same photo as one of `test`, by the pairs `same`: (kept, removed)."""
    both = np.concatenate([same, same[:, ::-1]])
    twin = np.isin(train, both[np.isin(both[:, 1], test), 0])
    return train[~twin], train[twin]


def training_rows(table: Table, split: str | None = None) -> IntArray:
    """Rows to learn from: `split` = "train" (or the value given); every row of a table that has no such column."""
    if "split" in table.columns:
        return table.rows_where("split", split or "train")
    if split is not None:
        raise UsageError(f"--split {split}: {table.name} has no column `split`")
    return np.arange(len(table), dtype=np.int64)


def test_rows(table: Table) -> IntArray:
    """Rows of the split "test"; none in a table without that column."""
    texts = table.columns.get("split", ())
    return np.array([row for row, text in enumerate(texts) if text == "test"], dtype=np.int64)
