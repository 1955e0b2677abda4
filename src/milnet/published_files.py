"""Reference lists as the MILNet authors published them, as a store of references.

`*_refer_100.txt`, one line a photo: its id, then the ids of its 100 references, nearest first, separated by blanks,
with a blank at the end; lines end in LF or CRLF. Where ids are numbers, "007" and "7" are the same photo, as in the
labels.

The lists have an order and no similarities, so the store holds a rank in their place: 1 for the first reference, less
by 0.001 for each further one. It is a rank, not a similarity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from milnet.annotations import IntArray, Problems, Table
from milnet.artifacts import FORMATS, Manifest, digest_file, new_folder, write_array, write_manifest
from milnet.errors import AnnotationError, UsageError
from milnet.features import Progress
from milnet.pool import ids_digest, replaceable

COUNT = 100  # references a line
STEP = 0.001  # by which the rank falls from one reference to the next


@dataclass(frozen=True)
class PublishedReferences:
    """What the lists say about a table of N photos.

    `index` [N, count] rows of the table, nearest first, -1 at the end where references were dropped and in rows that
    have no line; `listed` [N] which rows have one; `itself`: how many photos stood among their own references, which
    were dropped; `sha256` of each file.
    """

    index: IntArray
    listed: IntArray
    itself: int
    sha256: tuple[str, ...]


class _Ids:
    """Rows of a table by the id of a photo, as bytes; numbers with and without leading zeros."""

    def __init__(self, table: Table) -> None:
        self.name = table.name
        self.rows = {id_.encode(): row for row, id_ in enumerate(table.ids)}
        self.numbers = all(id_.isascii() and id_.isdigit() for id_ in table.ids)
        self.plain: dict[bytes, int] = {}
        for id_, row in self.rows.items():
            if id_.isdigit():
                short = id_.lstrip(b"0") or b"0"
                self.plain[short] = -1 if short in self.plain else row  # "7" beside "07": only the very text counts

    def row(self, text: bytes) -> int:
        """The row of a photo, -1 when the table has none of this id."""
        found = self.rows.get(text)
        if found is None:
            found = self.plain.get(text.lstrip(b"0") or b"0", -1) if text.isdigit() else -1
        return found

    def why_not(self, text: bytes) -> str:
        """What is wrong with an id that has no row."""
        shown = text.decode("utf-8", "backslashreplace")[:40]
        if self.numbers and not (text.isdigit() and len(text) <= 9):
            return f"expected a whole number of at most 9 digits as image id, got {shown!r}"
        return f"image id {shown!r} is not in the table {self.name}"


def _lines(file: Path, digest: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line but blank ones at the end, read one by one: the file may be large."""
    try:
        with file.open("rb") as stream:
            blank: list[int] = []
            for place, line in enumerate(stream, 1):
                digest.update(line)
                text = line.removeprefix(b"\xef\xbb\xbf") if place == 1 else line
                if not text.strip():
                    blank.append(place)
                    continue
                yield from ((number, b"") for number in blank)
                blank = []
                yield place, text
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror or error}", file=file) from error


def load_published_references(
    files: Path | Sequence[Path],
    table: Table,
    problems: Problems | None = None,
    *,
    count: int = COUNT,
    progress: Progress | None = None,
) -> PublishedReferences:
    """Read one `*_refer_100.txt`, or several (training and test photos), as rows of `table`.

    Defects go to `problems` with file and line. Whose line is passed over: another number of fields than 1 + `count`,
    an id that is malformed or not in the table, a photo with two lines (the first one counts). Which reference is
    passed over, the next ones moving up: an id that is malformed or not in the table, one named twice. A photo among
    its own references is dropped and counted, which is no defect. Raises AnnotationError for a file that is empty or
    of other photos.
    """
    files = [files] if isinstance(files, Path) else list(files)
    if not files or count < 1:
        raise UsageError(f"expected at least one file and one reference a photo, got {len(files)} and {count}")
    problems = problems or Problems()
    ids = _Ids(table)
    index = np.full((len(table), count), -1, np.int64)
    seen: dict[int, str] = {}
    digests, itself, lines = [], 0, 0
    for file in files:
        digest = hashlib.sha256()
        known, any_line = len(seen), False
        for place, line in _lines(file, digest):
            any_line, lines = True, lines + 1
            if progress is not None and lines % 1000 == 0:
                progress(min(lines, len(table)), len(table), "lists")
            fields = line.split()
            if len(fields) != 1 + count:
                problems.add(
                    f"expected an image id and {count} references, got {len(fields)} fields", file=file, line=place
                )
                continue
            row, *rows = map(ids.row, fields)
            if row < 0:
                problems.add(ids.why_not(fields[0]), file=file, line=place)
                continue
            if row in seen:
                problems.add(
                    f"image id {table.ids[row]} has two lines: the first is {seen[row]}", file=file, line=place
                )
                continue
            seen[row] = f"line {place} of {file.name}"
            if min(rows) < 0:
                lost = [field for field, found in zip(fields[1:], rows, strict=True) if found < 0]
                more = f" ({len(lost)} such references)" if len(lost) > 1 else ""
                problems.add(f"{ids.why_not(lost[0])}{more}", file=file, line=place)
            kept = dict.fromkeys(found for found in rows if found >= 0)
            twice = sum(found >= 0 for found in rows) - len(kept)
            if twice:
                problems.add(f"{twice} references are named twice", file=file, line=place)
            if row in kept:
                itself += 1
                del kept[row]
            index[row, : len(kept)] = list(kept)
        if not any_line:
            raise AnnotationError("expected lists of references, but the file is empty", file=file)
        if len(seen) == known:
            raise AnnotationError(
                f"none of its photos is in the table {table.name} with a usable list: is it of other photos?", file=file
            )
        digests.append(digest.hexdigest())
    if progress is not None:
        progress(len(table), len(table), "lists")
    return PublishedReferences(index, np.array(sorted(seen), np.int64), itself, tuple(digests))


def make_published_store(
    table: Table,
    files: Path | Sequence[Path],
    folder: Path,
    *,
    count: int = COUNT,
    problems: Problems | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write published lists as a store of references to `folder`, where `pool.find_store` finds it by its name.

    Its similarity is "published", its values are ranks. Photos without a line have no references there. Raises
    ArtifactError when `folder` exists already (unless `overwrite`) or is no store, else as `load_published_references`.
    """
    replaceable(folder, overwrite=overwrite)
    lists = load_published_references(files, table, problems, count=count, progress=progress)
    filled = lists.index >= 0
    ranks = (1 - STEP * np.arange(count)).astype(np.float32)
    used = np.unique(lists.index[filled])
    with new_folder(folder, "references", overwrite=overwrite) as building:
        write_array(building / "index.npy", lists.index)
        write_array(building / "similarity.npy", np.where(filled, ranks, np.float32(-np.inf)))
        write_array(building / "pool.npy", used)
        inputs = {"list" if at == 0 else f"list{at + 1}": sha256 for at, sha256 in enumerate(lists.sha256)}
        manifest = Manifest(
            kind="references",
            format=FORMATS["references"],
            config={"k": count, "similarity": "published", "exclude_group": None, "near_duplicate": None},
            files={name: digest_file(building / name) for name in ("index.npy", "pool.npy", "similarity.npy")},
            inputs={**inputs, "ids": ids_digest(table.ids)},
            counts={
                "photos": len(lists.listed),
                "pool": len(used),
                "short": int((~filled[lists.listed]).any(1).sum()),
                "itself": lists.itself,
            },
        )
        write_manifest(building, manifest)
    return manifest
