"""The search against brute force, and everything it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milnet import references
from milnet.errors import NumericError, UsageError
from milnet.references import SAME_PHOTO, Exclusion, References, Similarity, same_photo_limit, search, search_blocks

Matrix = NDArray[np.float32]


def normal(shape: tuple[int, int], seed: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def signs(shape: tuple[int, int], seed: int) -> Matrix:
    """+-1, with a power of 4 columns: normalising and all sums are exact in any precision, and many cosines tie."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)


def cluster(shape: tuple[int, int], seed: int, width: float) -> Matrix:
    """Rows around one centre, so close that float32 products cannot tell them apart."""
    generator = np.random.default_rng(seed)
    return (np.full(shape[1], 3.0) + width * generator.normal(size=shape)).astype(np.float32)


def similarities(queries: Matrix, pool: Matrix, similarity: Similarity = "cosine") -> NDArray[np.float64]:
    """[Q, P] in float64, from the float32 rows that are compared."""
    if similarity == "l2":
        return np.array([-np.sqrt(((pool.astype(np.float64) - q) ** 2).sum(1)) for q in queries.astype(np.float64)])
    q, p = (
        torch.nn.functional.normalize(torch.from_numpy(x), dim=1).numpy().astype(np.float64) for x in (queries, pool)
    )
    return np.array([(p * row).sum(1) for row in q])


def brute(values: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k highest of each row as float32, the lower position first where they tie; -inf gives no position."""
    values = values.astype(np.float32)
    index = np.argsort(-values, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(values, index, 1)
    missing = k - index.shape[1]
    index = np.pad(np.where(best == -np.inf, -1, index), ((0, 0), (0, max(missing, 0))), constant_values=-1)
    return index, np.pad(best, ((0, 0), (0, max(missing, 0))), constant_values=-np.inf)


def same(found: References, expected: tuple[NDArray[np.int64], NDArray[np.float32]]) -> None:
    np.testing.assert_array_equal(found.index, expected[0])
    np.testing.assert_allclose(found.similarity, expected[1], rtol=2e-7, atol=0)  # one unit of float32
    assert found.index.dtype == np.int64 and found.similarity.dtype == np.float32


# ---- against brute force ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("make", [normal, signs, lambda shape, seed: cluster(shape, seed, 1.0)])
def test_against_brute_force(make: Callable[[tuple[int, int], int], Matrix], k: int, similarity: Similarity) -> None:
    queries, pool = make((60, 16), 0), make((300, 16), 1)
    expected = brute(similarities(queries, pool, similarity), k)
    same(search(queries, pool, k, similarity=similarity, near_duplicate=None), expected)


def test_an_independent_cosine() -> None:
    """Without the float32 rows of the package: numpy's norms in float64."""
    queries, pool = normal((20, 30), 0), normal((100, 30), 1)
    q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(np.float64), pool.astype(np.float64)))
    found = search(queries, pool, 5, near_duplicate=None)
    np.testing.assert_array_equal(found.index, np.argsort(-(q @ p.T), axis=1)[:, :5])
    # the rows are normalised in float32
    np.testing.assert_allclose(found.similarity, -np.sort(-(q @ p.T), axis=1)[:, :5], rtol=0, atol=3e-7)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("width", [1e-4, 1e-5, 1e-6, 1e-7])
def test_clusters_closer_than_float32_products(width: float, similarity: Similarity) -> None:
    pool = cluster((300, 256), 0, width)
    queries = pool[:40] + normal((40, 256), 1)
    expected = brute(similarities(queries, pool, similarity), 4)
    for block in (1, 7, 256):
        same(search(queries, pool, 4, similarity=similarity, near_duplicate=None, block=block), expected)


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("copies", [2, 9, 13, 40])  # more than 8 exceed the candidates beyond k
def test_ties_go_to_the_lower_position(copies: int, similarity: Similarity) -> None:
    distinct = normal((20, 24), 0)
    order = np.random.default_rng(1).permutation(20 * copies)
    pool, queries = np.repeat(distinct, copies, 0)[order], normal((15, 24), 2)
    for k in (1, 4, copies, copies + 3):
        found = search(queries, pool, k, similarity=similarity)
        same(found, brute(similarities(queries, pool, similarity), k))
        for row, values in zip(found.index, found.similarity, strict=True):
            for value in set(values.tolist()):
                assert (np.diff(row[values == value]) > 0).all()


@given(
    st.integers(1, 12), st.integers(1, 40), st.integers(1, 15), st.integers(0, 10**6), st.sampled_from(["cosine", "l2"])
)
@settings(deadline=None, max_examples=150)
def test_any_size(q: int, p: int, k: int, seed: int, similarity: Similarity) -> None:
    """Few distinct values, zero rows and ties everywhere; excluded pairs; any number of candidates."""
    generator = np.random.default_rng(seed)
    queries, pool = (generator.integers(-1, 2, (n, 4)).astype(np.float32) for n in (q, p))
    exclusion = Exclusion(generator.integers(-1, 4, q), generator.integers(-1, 4, p))
    values = similarities(queries, pool, similarity)
    if similarity == "cosine":
        values[values > SAME_PHOTO] = -np.inf
    values[(exclusion.query[:, None] == exclusion.pool[None]) & (exclusion.query[:, None] >= 0)] = -np.inf
    block = int(generator.integers(1, 5))
    same(search(queries, pool, k, exclude=[exclusion], similarity=similarity, block=block), brute(values, k))


# ---- what it must not depend on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("dimension", [64, 1280])
@pytest.mark.parametrize("make", [normal, signs, lambda shape, seed: cluster(shape, seed, 1e-6)])
def test_blocks_change_no_bit(
    make: Callable[[tuple[int, int], int], Matrix], dimension: int, similarity: Similarity
) -> None:
    queries, pool = make((50, dimension), 0), make((200, dimension), 1)
    first, *others = (search(queries, pool, 6, similarity=similarity, block=block) for block in (256, 1, 7))
    for other in others:
        np.testing.assert_array_equal(other.index, first.index)
        assert other.similarity.tobytes() == first.similarity.tobytes()
    for row in (0, 17, 49):  # nor do the other queries
        alone = search(queries[row : row + 1], pool, 6, similarity=similarity)
        np.testing.assert_array_equal(alone.index[0], first.index[row])
        assert alone.similarity[0].tobytes() == first.similarity[row].tobytes()


def test_half_precision_and_views() -> None:
    pool = normal((80, 20), 0).astype(np.float16)
    queries = normal((10, 40), 1)[:, ::2]
    expected = search(np.ascontiguousarray(queries), pool.astype(np.float32), 4)
    found = search(queries, pool, 4)
    assert found.similarity.tobytes() == expected.similarity.tobytes() and (found.index == expected.index).all()


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("sizes", [(1, 1, 0), (8, 16, 0), (3, 64, 2), (1024, 100, 16)])  # first tile, tiles, slack
@pytest.mark.parametrize("make", [normal, signs, lambda shape, seed: cluster(shape, seed, 1e-6)])
def test_tiles_change_no_bit(
    make: Callable[[tuple[int, int], int], Matrix],
    sizes: tuple[int, int, int],
    similarity: Similarity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates that pass from tile to tile, with too little room for those that products cannot tell apart."""
    queries, pool = make((30, 64), 0), make((300, 64), 1)
    groups = Exclusion(np.arange(30) % 4 - 1, np.arange(300) % 5 - 1)
    whole = search(queries, pool, 7, similarity=similarity, exclude=[groups])
    for name, value in zip(("_FIRST", "_TILE", "_SLACK"), sizes, strict=True):
        monkeypatch.setattr(references, name, value)
    tiled = search(queries, pool, 7, similarity=similarity, exclude=[groups])
    np.testing.assert_array_equal(tiled.index, whole.index)
    assert tiled.similarity.tobytes() == whole.similarity.tobytes()
    values = similarities(queries, pool, similarity)
    values[(groups.query[:, None] == groups.pool[None]) & (groups.query[:, None] >= 0)] = -np.inf
    if similarity == "cosine":
        values[values > SAME_PHOTO] = -np.inf
    same(tiled, brute(values, 7))


def test_a_pool_of_several_tiles() -> None:
    """With the sizes as they are, more than one product of full size; near copies and groups among them."""
    pool = normal((30_000, 16), 0)
    queries = pool[::997] + 0.3 * normal((31, 16), 1)
    groups = Exclusion(np.arange(31) % 3 - 1, np.arange(30_000) % 7 - 1)
    values = similarities(queries, pool)
    values[(groups.query[:, None] == groups.pool[None]) & (groups.query[:, None] >= 0)] = -np.inf
    values[values > SAME_PHOTO] = -np.inf
    same(search(queries, pool, 100, exclude=[groups]), brute(values, 100))


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_rows_of_larger_arrays(similarity: Similarity, tmp_path: Path) -> None:
    """Row numbers into a memory map and into some columns of it, in any order, give what copies of the rows give."""
    np.save(tmp_path / "features.npy", normal((200, 48), 0).astype(np.float16))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")[:, 8:40]
    generator = np.random.default_rng(1)
    for pool_rows in (np.arange(20, 170), np.sort(generator.permutation(200)[:90]), generator.permutation(200)[:90]):
        for query_rows in (np.arange(0, 60), generator.permutation(200)[:45], np.array([7, 7, 3])):
            own = Exclusion(query_rows, pool_rows)
            queries, pool = np.array(features[query_rows]), np.array(features[pool_rows])
            expected = search(queries, pool, 5, exclude=[own], similarity=similarity)
            found = search(
                features,
                features,
                5,
                query_rows=query_rows,
                pool_rows=pool_rows,
                exclude=[own],
                similarity=similarity,
                block=20,
            )
            np.testing.assert_array_equal(found.index, expected.index)
            assert found.similarity.tobytes() == expected.similarity.tobytes()
            assert not (pool_rows[found.index] == query_rows[:, None]).any()


def test_blocks_come_in_the_order_they_are_stored() -> None:
    features = normal((50, 8), 0)
    rows = np.random.default_rng(0).permutation(50)[:30]
    whole = search(features, features, 3, query_rows=rows)
    places = []
    for at, found in search_blocks(features, features, 3, query_rows=rows, block=8):
        np.testing.assert_array_equal(found.index, whole.index[at])
        places.append(at)
    assert [len(at) for at in places] == [8, 8, 8, 6]
    np.testing.assert_array_equal(rows[np.concatenate(places)], np.sort(rows))


# ---- near duplicates -------------------------------------------------------------------------------------------------


def test_near_duplicates_are_left_out() -> None:
    """Rows at cosines .95, .965, .975 and 1 with the query."""
    angles = np.arccos([0.95, 0.965, 0.975, 1.0])
    pool = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    query = np.array([[2.0, 0.0]], np.float32)
    assert search(query, pool, 4).index.tolist() == [[1, 0, -1, -1]]
    assert search(query, pool, 4, near_duplicate=None).index.tolist() == [[3, 2, 1, 0]]
    assert search(query, pool, 4, near_duplicate=0.96).index.tolist() == [[0, -1, -1, -1]]
    assert search(query, pool, 4, similarity="l2").index.tolist() == [[3, 2, 1, 0]]  # a limit on cosines only


def test_the_limit_is_exact() -> None:
    """3,000 rows whose cosine with the query is the limit up to rounding: blocks must not move any across."""
    generator = np.random.default_rng(0)
    v = generator.normal(size=512)
    v /= np.linalg.norm(v)
    w = generator.normal(size=(3000, 512))
    w -= (w @ v)[:, None] * v
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    pool = (SAME_PHOTO * v + (1 - SAME_PHOTO**2) ** 0.5 * w).astype(np.float32)
    queries = np.repeat(v[None].astype(np.float32), 9, 0)
    values = similarities(queries, pool)
    limit = float(np.median(values[0]))
    assert values[0].std() < 1e-7 and (values[0] > limit).sum() == 1500
    values[values > limit] = -np.inf
    for block in (1, 4, 256):
        same(search(queries, pool, 4, near_duplicate=limit, block=block), brute(values, 4))


# ---- exclusions ------------------------------------------------------------------------------------------------------


def test_exclusions() -> None:
    queries, pool = normal((30, 12), 0), normal((90, 12), 1)
    generator = np.random.default_rng(2)
    groups = Exclusion(generator.integers(-1, 5, 30), generator.integers(-1, 5, 90))
    ids = Exclusion(np.arange(30), np.concatenate([np.arange(30), np.full(60, -1)]))
    values = similarities(queries, pool)
    for i in range(30):
        for j in range(90):
            if i == j or (groups.query[i] >= 0 and groups.query[i] == groups.pool[j]):
                values[i, j] = -np.inf
    assert np.isfinite(values[groups.query == -1]).sum() == 89 * (groups.query == -1).sum()  # -1 excludes nothing
    for block in (4, 256):
        same(search(queries, pool, 10, exclude=[groups, ids], near_duplicate=None, block=block), brute(values, 10))


def test_too_few_candidates() -> None:
    queries, pool = normal((3, 8), 0), normal((5, 8), 1)
    exclusion = Exclusion(np.array([0, 1, -1]), np.array([0, 0, 0, 0, 0]))
    found = search(queries, pool, 7, exclude=[exclusion], near_duplicate=None)
    assert (found.index[0] == -1).all() and (found.similarity[0] == -np.inf).all()
    for row in (1, 2):
        assert sorted(found.index[row, :5].tolist()) == [0, 1, 2, 3, 4] and (found.index[row, 5:] == -1).all()
        assert np.isfinite(found.similarity[row, :5]).all() and (found.similarity[row, 5:] == -np.inf).all()
    assert found.found.sum(1).tolist() == [0, 5, 5]
    empty = search(queries, pool[:0], 2)
    assert (empty.index == -1).all() and empty.index.shape == (3, 2)
    assert len(search(queries[:0], pool, 2)) == 0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad: float) -> None:
    queries, pool = normal((5, 8), 0), normal((9, 8), 1)
    broken = pool.copy()
    broken[6, 2] = bad
    for pair in ((queries, broken), (broken, pool)):
        with pytest.raises(NumericError, match="row 6 of the features is not finite: unreadable photos must be left"):
            search(*pair, 2)


def test_the_row_that_is_not_finite_is_named_by_its_number_in_the_array() -> None:
    features = normal((50, 8), 0)
    features[33] = np.nan
    good = np.arange(30)
    for rows in (np.arange(30, 40), np.array([2, 33, 5])):
        with pytest.raises(NumericError, match="row 33 of the features is not finite"):
            search(features, features, 2, query_rows=rows, pool_rows=good)
        with pytest.raises(NumericError, match="row 33 of the features is not finite"):
            search(features, features, 2, query_rows=good, pool_rows=rows)
    assert (search(features, features, 2, query_rows=good, pool_rows=good).index >= 0).all()


def test_numbers_whose_squares_overflow_are_finite() -> None:
    queries, pool = normal((5, 8), 0), normal((9, 8), 1)
    queries[3, 2] = 3e38
    assert len(search(queries, pool, 2)) == 5


def test_shapes() -> None:
    queries, pool = normal((5, 8), 0), normal((9, 8), 1)
    for pair in ((queries, pool[:, :7]), (queries[0], pool), (queries, pool[0])):
        with pytest.raises(UsageError, match=r"expected queries \[Q, D\] and pool \[P, D\], got \("):
            search(*pair, 2)
    for k, block in ((0, 1), (1, 0), (-1, 5)):
        with pytest.raises(UsageError, match=f"expected k >= 1 and block >= 1, got {k} and {block}"):
            search(queries, pool, k, block=block)


def test_references_cannot_be_inconsistent() -> None:
    def build(index: list[list[int]], similarity: list[list[float]]) -> References:
        return References(np.array(index), np.array(similarity, np.float32))

    good = build([[3, 1, -1], [0, -1, -1]], [[0.9, 0.9, -np.inf], [0.1, -np.inf, -np.inf]])
    assert len(good) == 2 and good.found.tolist() == [[True, True, False], [True, False, False]]
    assert good.first(2).index.tolist() == [[3, 1], [0, -1]] and good.first(2).similarity.shape == (2, 2)
    with pytest.raises(UsageError, match="falling similarity"):
        build([[3, 1]], [[0.5, 0.6]])
    with pytest.raises(UsageError, match="the same query's reference twice"):
        build([[0, 1, 2], [2, 1, 2]], [[0.9, 0.8, 0.7]] * 2)
    with pytest.raises(UsageError, match=r"expected two equal \[Q, K\] arrays, got \(1, 2\) and \(1, 3\)"):
        build([[3, 1]], [[0.5, 0.4, 0.3]])
    with pytest.raises(UsageError, match="expected two equal"):
        References(np.arange(3), np.zeros(3, np.float32))


def test_progress() -> None:
    seen: list[tuple[int, int, str]] = []
    search(normal((10, 4), 0), normal((5, 4), 1), 1, block=4, progress=lambda *state: seen.append(state))
    assert seen == [(4, 10, "searches"), (8, 10, "searches"), (10, 10, "searches")]


# ---- the limit -------------------------------------------------------------------------------------------------------


def test_likeness_means_nothing_where_all_photos_are_alike() -> None:
    apart, alike = normal((700, 16), 0), cluster((700, 16), 0, 0.1)
    rows = np.arange(700)
    assert same_photo_limit(apart, rows) == SAME_PHOTO
    assert same_photo_limit(alike, rows) is None
    both = np.concatenate([apart, alike])
    assert same_photo_limit(both, rows) == SAME_PHOTO and same_photo_limit(both, rows + 700) is None
    assert same_photo_limit(alike, rows[:1]) == SAME_PHOTO  # nothing to compare
    # 20 photos are 190 pairs: three twins are 1.6 % of them, four are 2.1 %
    twins = np.concatenate([np.eye(20), np.eye(20)])
    assert same_photo_limit(twins, np.array([*range(17), 20, 21, 22])) == SAME_PHOTO
    assert same_photo_limit(twins, np.array([*range(16), 20, 21, 22, 23])) is None
