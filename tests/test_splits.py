"""Folds, groups, validation, twins: small cases by hand, laws for all others, the real folds where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milnet.annotations import Problems, Table
from milnet.datasets import read_dataset
from milnet.errors import AnnotationError, LeakError, UsageError
from milnet.splits import (
    Split,
    carve,
    code_pairs,
    components,
    find_folds,
    make_folds,
    never_split,
    same_photos,
    whole,
    without_twins,
)

Codes = NDArray[np.int64]
codes = st.lists(st.integers(-1, 8), min_size=4, max_size=60).map(lambda values: np.array(values, np.int64))


def array(*values: int) -> Codes:
    return np.array(values, np.int64)


def table(**columns: str) -> Table:
    """Photos p0, p1, ... with one letter a photo in each column ("_" for none); `theme` and `burst` are groups."""
    texts = {name: tuple(letter.replace("_", "") for letter in text) for name, text in columns.items()}
    n = len(next(iter(texts.values()), "------"))
    groups = tuple(name for name in ("theme", "burst") if name in texts)
    return Table("small", tuple(f"p{i}" for i in range(n)), np.ones((n, 3)), np.arange(3.0), texts, groups=groups)


# ---- the parts -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 25), st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=30))
def test_components(n: int, edges: list[tuple[int, int]]) -> None:
    edges = [(a % n, b % n) for a, b in edges]
    found = components(n, np.array(edges, np.int64).reshape(-1, 2))
    expected = list(range(n))  # every row takes the lowest row it can reach, until nothing changes
    for _ in range(n):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert found.tolist() == expected


@given(codes)
def test_code_pairs(groups: Codes) -> None:
    joined = components(len(groups), code_pairs(groups))
    for i in range(len(groups)):
        for j in range(len(groups)):
            assert (joined[i] == joined[j]) == (i == j or (groups[i] == groups[j] and groups[i] >= 0))


def test_never_split() -> None:
    folds = array(0, 0, 1, 1, -1, -1)
    assert never_split(folds, array(3, 3, 5, 5, 7, 7)) and whole(folds, array(3, 3, 5, 5, 7, 7))
    assert not never_split(folds, array(3, 3, 5, 7, 7, -1)) and not whole(folds, array(3, 3, 5, 7, 7, -1))
    alone = array(0, 1, 2, 3, 4, 5)
    assert not never_split(folds, alone) and whole(folds, alone)  # no group has two photos
    assert not never_split(folds, np.full(6, -1)) and whole(folds, np.full(6, -1))
    assert never_split(folds, array(-1, -1, -1, 2, -1, -1)) is False
    assert never_split(folds, array(-1, -1, 2, 2, -1, -1)) is True


# ---- numbered folds --------------------------------------------------------------------------------------------------


@given(st.integers(2, 80), st.integers(2, 8), st.integers(0, 100))
def test_folds_are_balanced(n: int, k: int, seed: int) -> None:
    k = min(k, n)
    folds = make_folds(n, k, seed)
    sizes = np.bincount(folds, minlength=k)
    assert folds.shape == (n,) and len(sizes) == k and sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(make_folds(n, k, seed), folds)


@given(codes, st.integers(2, 5), st.integers(0, 100))
def test_groups_stay_whole(groups: Codes, k: int, seed: int) -> None:
    units = len(np.unique(groups[groups >= 0])) + int((groups < 0).sum())
    if units < k:
        with pytest.raises(UsageError, match=f"expected 2 to {units} folds .*got {k}"):
            make_folds(len(groups), k, seed, groups)
        return
    folds = make_folds(len(groups), k, seed, groups)
    sizes = np.bincount(folds, minlength=k)
    assert whole(folds, groups) and len(sizes) == k and sizes.min() > 0
    # the last unit went into the smallest fold: no fold is larger than another by more than the largest group
    largest = max([1, *np.unique(groups[groups >= 0], return_counts=True)[1].tolist()])
    assert sizes.max() - sizes.min() <= largest
    np.testing.assert_array_equal(make_folds(len(groups), k, seed, groups.copy()), folds)


def test_large_groups_are_placed_first() -> None:
    """One group of five and five photos alone make two even folds, whatever the seed."""
    groups = np.array([7] * 5 + [-1] * 5)
    assert all(np.bincount(make_folds(10, 2, seed, groups)).tolist() == [5, 5] for seed in range(20))


def test_folds_depend_on_the_seed() -> None:
    np.random.seed(0)  # noqa: NPY002  the global generator takes no part
    first = make_folds(40, 4, 0)
    np.random.seed(1)  # noqa: NPY002
    assert (make_folds(40, 4, 0) == first).all() and (make_folds(40, 4, 1) != first).any()


@pytest.mark.parametrize("k", [0, 1, 7])
def test_numbers_of_folds_that_cannot_be(k: int) -> None:
    with pytest.raises(UsageError, match=rf"expected 2 to 6 folds \(there are so many photos or groups\), got {k}"):
        make_folds(6, k, 0)


# ---- folds by name ---------------------------------------------------------------------------------------------------


def test_folds_of_a_column() -> None:
    data = table(fold="bbaa__", theme="xxyyzz", burst="xyyxzz")
    folds = find_folds(data, "fold")
    assert (folds.label, folds.names, folds.codes.tolist()) == ("fold", ("a", "b"), [1, 1, 0, 0, -1, -1])
    assert folds.group == "theme"  # the declared group that the folds never split
    assert find_folds(table(fold="abab", theme="xxyy"), "fold").group is None
    assert find_folds(table(fold="abab", theme="wxyz"), "fold").group is None  # nobody to keep apart
    with pytest.raises(UsageError, match="fold: expected at least 2 folds, got 1, 'a'"):
        find_folds(table(fold="aa_"), "fold")
    with pytest.raises(UsageError, match="fold: expected at least 2 folds, got none"):
        find_folds(table(fold="___"), "fold")


def test_folds_of_a_number() -> None:
    data = table(theme="aabbccdd", other="abcdefgh")
    folds = find_folds(data, "3", seed=5)
    np.testing.assert_array_equal(folds.codes, make_folds(8, 3, 5))
    assert (folds.label, folds.names) == ("3 folds, seed 5", ("0", "1", "2"))
    grouped = find_folds(data, "4", group="theme")
    assert grouped.label == "4 folds, seed 0, by theme" and grouped.group == "theme"
    assert whole(grouped.codes, data.codes("theme")) and sorted(np.bincount(grouped.codes)) == [2, 2, 2, 2]
    assert find_folds(data, "4", group="other").group == "other"  # groups of one photo cannot be split
    with pytest.raises(UsageError, match="expected 2 to 8 folds"):
        find_folds(data, "9")
    with pytest.raises(UsageError, match="expected 2 to 4 folds"):
        find_folds(data, "5", group="theme")


def test_groups_and_folds_that_disagree() -> None:
    data = table(fold="aabb", theme="xyyz")
    with pytest.raises(UsageError, match="--group theme: the folds 'fold' split it; choose folds that do not, or"):
        find_folds(data, "fold", group="theme")
    with pytest.raises(UsageError, match="there is no column 'photographer'; there are: fold, theme"):
        find_folds(data, "fold", group="photographer")


def test_folds_of_a_file(tmp_path: Path) -> None:
    data = table(theme="xxyy")
    file = tmp_path / "folds.csv"
    file.write_text("\ufeffimage,fold\np3.jpg,a\nsome/p0.png,b\np1,b\np2,\n", encoding="utf-8")
    folds = find_folds(data, str(file))
    assert (folds.label, folds.names, folds.codes.tolist()) == ("folds.csv", ("a", "b"), [1, 1, -1, 0])
    assert folds.group is None
    file.write_text("p0,b\np1,b\np2,a\np3,a\n", encoding="utf-8")  # no header
    assert find_folds(data, str(file)).codes.tolist() == [1, 1, 0, 0]
    assert find_folds(data, str(file)).group == "theme"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"image,fold\np0,a,b\n", "line 2: expected image,fold, got 3 fields"),
        (b"image,fold\np0,a\n\np1,a\n", "line 3: expected image,fold, got 0 fields"),
        (b"image,fold\np0,a\nq9,a\n", "line 3: 'q9' is no photo of small"),
        (b"p0,a\np1,b\np0.jpg,a\n", r"line 3: 'p0\.jpg' has a fold already"),
        (b"p0,a\np2,b\n", "csv: 2 photos have no fold, the first is 'p1'"),
        (b"", "csv: 4 photos have no fold, the first is 'p0'"),
        (b"p0,a\np1,\xff\n", "csv: expected UTF-8 text"),
    ],
)
def test_defects_of_a_fold_file(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    file.write_bytes(text)
    with pytest.raises(AnnotationError, match=message):
        find_folds(table(theme="xxyy"), str(file))


@pytest.mark.parametrize("wanted", ["nothing", "none.csv", "-3", "2.5", "²", ""])
def test_folds_that_are_nothing(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"neither a column \(theme\), nor a csv file, nor a number"):
        find_folds(table(theme="xxyy"), wanted)


# ---- validation ------------------------------------------------------------------------------------------------------


@given(codes, st.floats(0.01, 0.99), st.integers(0, 50))
def test_carve(groups: Codes, share: float, seed: int) -> None:
    rows = np.flatnonzero(np.arange(len(groups)) % 3 != 1)  # a part of the table
    own = groups[rows]
    units = len(np.unique(own[own >= 0])) + int((own < 0).sum())
    if units < 2:
        with pytest.raises(UsageError, match=f"cannot set validation aside: {len(rows)} training photos in 1 group"):
            carve(rows, share, seed, groups)
        return
    kept, validation = carve(rows, share, seed, groups)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, validation])), rows)
    assert len(kept) and len(validation) and (np.diff(kept) > 0).all() and (np.diff(validation) > 0).all()
    assert not set(groups[kept].tolist()) & set(groups[validation].tolist()) - {-1}
    # enough, and not more than the last group too many
    largest = max([1, *np.unique(own[own >= 0], return_counts=True)[1].tolist()])
    assert len(validation) < share * len(rows) + largest
    again = carve(rows, share, seed, groups)
    assert all((a == b).all() for a, b in zip(again, (kept, validation), strict=True))


def test_the_share_that_is_carved() -> None:
    rows = np.arange(100, 300)
    for share in (0.005, 0.15, 0.5):
        assert len(carve(rows, share, 0)[1]) == max(1, share * 200)
    assert len(carve(rows, 1.0, 0)[0]) == 1  # one photo is always left
    assert (carve(rows, 0.15, 0)[1] != carve(rows, 0.15, 1)[1]).any()
    assert len(carve(rows, 0.15, 0, np.arange(300) // 10)[1]) == 30


# ---- the same photo twice --------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([0.8, 0.95, None]))
@settings(deadline=None)
def test_same_photos_against_all_pairs(n: int, seed: int, limit: float | None) -> None:
    generator = np.random.default_rng(seed)
    semantic = generator.normal(size=(n, 3)).astype(np.float32)
    pixels = generator.integers(-1, n, n)
    readable = generator.random(n) > 0.1
    semantic[~readable] = np.nan
    pixels[~readable] = -1
    found = same_photos(pixels, semantic, readable, limit)
    x = semantic.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    same = (pixels[:, None] == pixels) & (pixels >= 0)
    if limit is not None:
        same |= np.nan_to_num(x @ x.T) > limit
    assert found.tolist() == np.argwhere(np.triu(same, 1)).tolist()


def test_twins() -> None:
    """Rows 0 and 3 share their pixels, 3 and 4 look alike; 0 and 4 are no twins for that. Row 2 could not be read."""
    semantic = np.array([[1, 0], [0, 1], [np.nan, np.nan], [-1, 0.5], [-1, 0.51], [-1, -1]], np.float32)
    readable = array(1, 1, 0, 1, 1, 1).astype(bool)
    same = same_photos(array(4, 5, -1, 4, 6, 7), semantic, readable, 0.99)
    assert same.tolist() == [[0, 3], [3, 4]]
    for test, twins in (([2, 4], [3]), ([3], [0]), ([0], [3]), ([1, 2], [])):
        kept, removed = without_twins(array(0, 3, 5), array(*test), same)
        assert removed.tolist() == twins and kept.tolist() == [row for row in (0, 3, 5) if row not in twins]
    assert same_photos(array(4, 5, -1, 4, 6, 7), semantic, readable, None).tolist() == [[0, 3]]
    assert same_photos(array(8, 8, 8, -1, -1, -1), semantic, readable, None).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_twins_in_large_tables() -> None:
    """More rows than a block; every third row is a copy of its first, scaled."""
    first = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    semantic = np.concatenate([first, 3 * first, first])
    found = same_photos(np.full(3000, -1), semantic, np.ones(3000, bool), 0.97)
    i = np.arange(1000)
    pairs = [np.stack([i + a, i + b], 1) for a, b in ((0, 1000), (0, 2000), (1000, 2000))]
    np.testing.assert_array_equal(found, np.array(sorted(np.concatenate(pairs).tolist())))


def test_a_split_shares_no_row() -> None:
    assert Split(array(0, 2), array(1), "theme").group == "theme"
    with pytest.raises(LeakError, match="2 rows are in the training and in the test part, the first is 3"):
        Split(array(0, 3, 5), array(5, 3, 4))


# ---- real folds ------------------------------------------------------------------------------------------------------


def test_the_folds_of_the_oasis_photos(test_data: Path) -> None:
    data = read_dataset("oasis", test_data / "data" / "oasis", Problems()).table
    by_theme, random = find_folds(data, "fold_theme"), find_folds(data, "fold_random")
    assert (by_theme.group, random.group) == ("theme", None)
    assert by_theme.names == random.names == tuple("01234")
    assert never_split(by_theme.codes, data.codes("theme")) and not never_split(random.codes, data.codes("theme"))
    assert find_folds(data, "fold_theme", group="theme").group == "theme"
    with pytest.raises(UsageError, match="--group theme: the folds 'fold_random' split it"):
        find_folds(data, "fold_random", group="theme")
    sizes = np.bincount(make_folds(len(data), 5, 0, data.codes("theme")))
    assert sizes.max() - sizes.min() <= 2
