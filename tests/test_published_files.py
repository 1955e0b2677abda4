"""Reference lists as published, line by line, and the store they become."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import made
from milnet.annotations import Problems, Table, save_table
from milnet.artifacts import read_manifest
from milnet.errors import AnnotationError, ArtifactError, UsageError
from milnet.pool import RatedPool, find_store, make_store
from milnet.published_files import load_published_references, make_published_store

N = 30


def table() -> Table:
    """Ids are numbers, as AVA's: 100, 101, ..."""
    return replace(made.table(N), ids=tuple(str(100 + row) for row in range(N)), name="ava")


def lists(count: int = 4, rows: range = range(N)) -> dict[int, list[int]]:
    return {row: [(row + step) % N for step in range(1, count + 1)] for row in rows}


def write(path: Path, of: dict[int, list[int]], *, end: str = "\r\n") -> Path:
    """As published: blanks between the ids, one at the end of the line."""
    path.write_bytes(
        "".join(f"{100 + row} {' '.join(str(100 + r) for r in refs)} {end}" for row, refs in of.items()).encode()
    )
    return path


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_as_published(end: str, tmp_path: Path) -> None:
    """100 references a line, in any order of the lines; rows without a line have none."""
    big = replace(made.table(150), ids=tuple(str(100 + row) for row in range(150)))
    wanted = {
        row: np.random.default_rng(row).permutation([r for r in range(150) if r != row])[:100].tolist()
        for row in (7, 149, 0)
    }
    file = write(tmp_path / "test_refer_100.txt", wanted, end=end)
    found = load_published_references(file, big)
    for row in range(150):
        assert found.index[row].tolist() == wanted.get(row, [-1] * 100)
    assert found.listed.tolist() == [0, 7, 149] and found.itself == 0
    assert found.sha256 == (hashlib.sha256(file.read_bytes()).hexdigest(),)


def test_leading_zeros(tmp_path: Path) -> None:
    """Numbers are the same photo with and without zeros, other texts are not; "7" beside "07" keep apart."""
    numbers = replace(made.table(4), ids=("7", "08", "9", "10"))
    (tmp_path / "list").write_text("007 8 0010 \n8 9 7\n")
    found = load_published_references(tmp_path / "list", numbers, count=2)
    assert found.index.tolist() == [[1, 3], [2, 0], [-1, -1], [-1, -1]]
    texts = replace(made.table(4), ids=("a", "0a", "7", "07"))
    (tmp_path / "list").write_text("a 0a 07\n0a 7 a\n")
    assert load_published_references(tmp_path / "list", texts, count=2).index[:2].tolist() == [[1, 3], [2, 0]]
    (tmp_path / "list").write_text("a 007 07\n")
    with pytest.raises(AnnotationError, match="image id '007' is not in the table made"):
        load_published_references(tmp_path / "list", texts, count=2)


@pytest.mark.parametrize(
    ("line", "text", "row"),
    [
        ("103 104 105 106", "expected an image id and 4 references, got 4 fields", [-1] * 4),
        ("103 104 105 106 107 108", "expected an image id and 4 references, got 6 fields", [-1] * 4),
        ("", "expected an image id and 4 references, got 0 fields", [-1] * 4),
        ("10x 104 105 106 107", "whole number of at most 9 digits as image id, got '10x'", [-1] * 4),
        ("999 104 105 106 107", "image id '999' is not in the table ava", [-1] * 4),
        ("101 104 105 106 107", "image id 101 has two lines: the first is line 1 of list.txt", [-1] * 4),
        ("103 104 -5 106 107", "whole number of at most 9 digits as image id, got '-5'", [4, 6, 7, -1]),
        ("103 1e2 105 1.0 107", r"got '1e2' \(2 such references\)", [5, 7, -1, -1]),
        ("103 104 105 999 107", "image id '999' is not in the table ava", [4, 5, 7, -1]),
        ("103 104 105 104 107", "1 references are named twice", [4, 5, 7, -1]),
        ("103 104 105 \xe9 107", r"got '\\\\xe9'", [4, 5, 7, -1]),
    ],
)
def test_defects(line: str, text: str, row: list[int], tmp_path: Path) -> None:
    """Each is told with its line; who wants to go on gets the rest."""
    file = tmp_path / "list.txt"
    file.write_bytes(f"101 102 103 104 105 \r\n{line}\r\n102 103 104 105 106 \r\n\r\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match=text) as error:
        load_published_references(file, table(), count=4)
    assert error.value.line == 2 and error.value.file == str(file)
    problems = Problems(keep_going=True)
    found = load_published_references(file, table(), problems, count=4)
    assert len(problems.found) == 1
    assert found.index[[1, 2, 3]].tolist() == [[2, 3, 4, 5], [3, 4, 5, 6], row]


def test_files_that_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\r\n")
    with pytest.raises(AnnotationError, match="expected lists of references, but the file is empty"):
        load_published_references(tmp_path / "empty", table())
    with pytest.raises(AnnotationError, match="cannot be read: No such file"):
        load_published_references(tmp_path / "none", table())
    (tmp_path / "other").write_text("1 2 3\n4 5 6\n")
    with pytest.raises(AnnotationError, match="none of its photos is in the table ava"):
        load_published_references(tmp_path / "other", table(), Problems(keep_going=True), count=2)
    with pytest.raises(UsageError, match="expected at least one file and one reference a photo, got 0 and 100"):
        load_published_references([], table())


def test_a_photo_is_not_its_own_reference(tmp_path: Path) -> None:
    of = lists()
    of[3] = [3, 4, 5, 6]
    of[9] = [1, 2, 9, 5]
    found = load_published_references(write(tmp_path / "list", of), table(), count=4)
    assert found.itself == 2
    assert found.index[[3, 9]].tolist() == [[4, 5, 6, -1], [1, 2, 5, -1]]


def test_store(tmp_path: Path) -> None:
    """Found by its name only, with any features, for these photos only; ranks fall; the rest is searched for."""
    data, f = table(), made.features(table())
    save_table(data, tmp_path / "DATA", inputs={})
    train = write(tmp_path / "train_refer_100.txt", lists(rows=range(20)))
    test = write(tmp_path / "test_refer_100.txt", lists(rows=range(20, 25)))
    folder = tmp_path / "DATA" / "references" / "theirs"
    told: list[tuple[int, int, str]] = []
    manifest = make_published_store(data, [train, test], folder, count=4, progress=lambda *state: told.append(state))
    assert told[-1] == (N, N, "lists")
    assert manifest == read_manifest(folder, "references")
    assert manifest.config == {"k": 4, "similarity": "published", "exclude_group": None, "near_duplicate": None}
    assert manifest.inputs["list"] == hashlib.sha256(train.read_bytes()).hexdigest()
    assert manifest.counts == {"photos": 25, "pool": 28, "short": 0, "itself": 0}
    np.testing.assert_array_equal(np.load(folder / "pool.npy"), np.arange(1, 29))

    everyone = np.arange(N)
    assert find_store(tmp_path / "DATA", f, everyone, None) is None
    with pytest.raises(UsageError, match="has no references 'ours'; there are: theirs"):
        find_store(tmp_path / "DATA", f, everyone, None, "ours")
    store = find_store(tmp_path / "DATA", f, everyone, "theme", "theirs")
    assert store is not None
    pool = RatedPool.of(data, f, everyone)
    found = pool.find(f.semantic, 3, store=store, queries=everyone, ids=data.ids)
    assert found.index[:25].tolist() == [[(row + step) % N for step in (1, 2, 3)] for row in range(25)]
    np.testing.assert_allclose(found.similarity[:25], np.tile([1, 0.999, 0.998], (25, 1)), rtol=0, atol=1e-7)
    searched = pool.find(f.semantic[25:], 3, ids=data.ids[25:])
    np.testing.assert_array_equal(found.index[25:], searched.index)
    smaller = RatedPool.of(data, f, everyone[everyone != 5])  # 5 is left out, the next one moves up
    assert smaller.rows[smaller.find(f.semantic[3:4], 3, store=store, queries=np.array([3])).index].tolist() == [
        [4, 6, 7]
    ]
    assert not store.serves(pool, "cosine", 5)

    with pytest.raises(ArtifactError, match="exists already"):
        make_published_store(data, train, folder, count=4)
    make_published_store(data, train, folder, count=4, overwrite=True)
    save_table(replace(data, ids=data.ids[::-1]), tmp_path / "DATA", inputs={}, overwrite=True)
    with pytest.raises(ArtifactError, match="was made for other photos than those of"):
        find_store(tmp_path / "DATA", f, everyone, None, "theirs")


def test_a_store_of_ours_by_its_name(tmp_path: Path) -> None:
    data, f = made.table(), made.features(made.table())
    for name, group in (("a", None), ("b", "theme")):
        make_store(data, f, tmp_path / "references" / name, 5, pool_rows=np.arange(60), group=group)
    store = find_store(tmp_path, f, np.arange(60), "theme", "b")
    assert store is not None and store.index.shape == (90, 5)
    with pytest.raises(
        UsageError, match="b leaves out photos of the same theme, expected no group: choose another one"
    ):
        find_store(tmp_path, f, np.arange(60), None, "b")
    with pytest.raises(UsageError, match="a lacks 2 of the 62 photos of this pool"):
        find_store(tmp_path, f, np.arange(62), None, "a")
    f.config["semantic"]["digest"] = "other"  # type: ignore[index]
    with pytest.raises(UsageError, match=r"a was made from other features: expected .*, got "):
        find_store(tmp_path, f, np.arange(60), None, "a")
    with pytest.raises(UsageError, match="has no references 'a'; there are: none: run `milnet references` first"):
        find_store(tmp_path / "none", f, np.arange(60), None, "a")
