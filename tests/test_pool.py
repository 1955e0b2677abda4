"""The pool: nobody consults himself, and nobody is tested on what was learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from milnet import pool as pool_module
from milnet.annotations import Table
from milnet.errors import LeakError, NumericError, UsageError
from milnet.features import FeatureSet
from milnet.pool import Codes, RatedPool, find_store, make_store, refuse_seen

N = 40


def table(name: str = "small") -> Table:
    votes = np.random.default_rng(0).integers(1, 20, (N, 4)).astype(np.float64)
    themes = tuple(f"t{row % 6}" if row % 7 else "" for row in range(N))
    return Table(name, tuple(f"p{row}" for row in range(N)), votes, np.arange(4.0), {"theme": themes})


def features(twins: tuple[tuple[int, int], ...] = ()) -> FeatureSet:
    """Random features; each pair of `twins` has the same pixels. The last photo could not be read."""
    semantic = np.random.default_rng(1).normal(size=(N, 8)).astype(np.float16)
    pixels = [f"{row:064x}" for row in range(N)]
    for a, b in twins:
        pixels[b] = pixels[a]
    semantic[-1], pixels[-1] = np.nan, ""
    readable = np.array([bool(digest) for digest in pixels])
    nodes = np.random.default_rng(2).normal(size=(N, 3)).astype(np.float16)
    config = {"semantic": {"digest": "d", "span": [0, 8]}}
    return FeatureSet(semantic, nodes, tuple(pixels), readable, config)


ROWS = np.arange(N - 1)


def cosines(f: FeatureSet) -> np.ndarray:
    x = f.semantic[ROWS].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_of() -> None:
    rows = np.array([5, 3, 30])
    pool = RatedPool.of(table(), features(), rows, "theme")
    assert len(pool) == 3 and pool.ids == ("p5", "p3", "p30") and pool.groups == ("t5", "t3", "t0")
    assert RatedPool.of(table(), features(), rows).groups == ("", "", "")
    votes = table().votes[rows]
    np.testing.assert_allclose(pool.distributions, votes / votes.sum(1, keepdims=True))
    np.testing.assert_array_equal(pool.totals, votes.sum(1))
    np.testing.assert_array_equal(pool.nodes_at(np.array([2, 0])), features().nodes[[30, 5]].astype(np.float32))
    smaller = pool.take(np.array([2, 1]))
    assert smaller.ids == ("p30", "p3") and smaller.rows.tolist() == [30, 3] and smaller.groups == ("t0", "t3")
    np.testing.assert_array_equal(smaller.nodes_at(np.array([0])), features().nodes[[30]].astype(np.float32))
    np.testing.assert_array_equal(smaller.distributions, pool.distributions[[2, 1]])


def test_who_cannot_be_in_a_pool() -> None:
    with pytest.raises(UsageError, match="an unreadable photo cannot be in the pool"):
        RatedPool.of(table(), features(), np.array([0, N - 1]))
    data = table()
    data.votes[7] = 0
    with pytest.raises(NumericError, match="1 of 2 photos have no usable votes; the first is 'p7'"):
        RatedPool.of(data, features(), np.array([0, 7]))
    with pytest.raises(UsageError, match="there is no column 'burst'"):
        RatedPool.of(table(), features(), np.array([0]), "burst")


def test_find() -> None:
    """By brute force: not itself by id, nor its pixels, nor (when asked) its group; "" is no group."""
    data, f = table(), features(twins=((0, 20), (3, 4)))
    pool = RatedPool.of(data, f, ROWS, "theme")
    themes = data.column("theme")
    for groups in (False, True):
        values = cosines(f)
        for i in ROWS:
            for j in ROWS:
                kin = groups and themes[i] == themes[j] != ""
                if i == j or f.pixels[i] == f.pixels[j] or kin or values[i, j] > 0.97:
                    values[i, j] = -np.inf
        found = pool.find(
            f.semantic[ROWS],
            5,
            ids=data.ids[: N - 1],
            pixels=f.pixels[: N - 1],
            groups=themes[: N - 1] if groups else None,
        )
        np.testing.assert_array_equal(found.index, np.argsort(-values, axis=1, kind="stable")[:, :5])
    assert themes[0] == themes[7] == "" and np.isfinite(values[0, 7])


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_rows_of_a_larger_array(similarity: str, tmp_path: Path) -> None:
    """Queries as row numbers of a memory map: what a copy of these rows finds, with a store and without."""
    data, f = table(), features(twins=((0, 20), (3, 4)))
    np.save(tmp_path / "semantic.npy", f.semantic)
    mapped = np.load(tmp_path / "semantic.npy", mmap_mode="r")
    make_store(data, f, tmp_path / "references" / "all", 12, pool_rows=ROWS, similarity=similarity)
    store = find_store(tmp_path, f, ROWS, None)
    pool = RatedPool.of(data, f, ROWS[::2], "theme")
    for rows in (ROWS, ROWS[3:20], np.array([30, 2, 17, 4])):
        known = {
            "ids": [data.ids[row] for row in rows],
            "pixels": [f.pixels[row] for row in rows],
            "groups": [data.column("theme")[row] for row in rows],
            "similarity": similarity,
        }
        expected = pool.find(f.semantic[rows], 4, **known)
        for with_store in ({}, {"store": store, "queries": rows}):
            found = pool.find(mapped, 4, rows=rows, **with_store, **known)
            np.testing.assert_array_equal(found.index, expected.index)
            assert found.similarity.tobytes() == expected.similarity.tobytes()


def test_likeness_alone_is_enough() -> None:
    """A pool photo that looks the same is left out without any id; so it is when only pixels or ids agree."""
    f = features()
    pool = RatedPool.of(table(), f, ROWS)
    bare = pool.find(f.semantic[ROWS], 5)
    assert not (bare.index == ROWS[:, None]).any()
    turned = -f.semantic[ROWS].astype(np.float32)  # the photo itself is the least like
    assert (pool.find(turned, N, ids=[""] * len(ROWS)).index == ROWS[:, None]).any(1).all()
    for kind in ("ids", "pixels"):
        known = {"ids": pool.ids, "pixels": pool.pixels}[kind]
        found = pool.find(turned, N, **{kind: known})
        assert not (found.index == ROWS[:, None]).any() and (found.found.sum(1) == N - 2).all()


def test_the_whole_pool_is_ranked_as_a_search_ranks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins by pixels and by likeness, groups, too many places, ties; and it refuses what a search refuses."""
    f = features(((3, 8), (20, 21)))
    f.semantic[12] = f.semantic[11] + np.float16(0.001)  # alike
    f.semantic[31] = f.semantic[30]  # a tie for everybody else
    pool = RatedPool.of(table(), f, ROWS[::2], "theme")
    t = table()
    who = {"rows": ROWS, "ids": [t.ids[i] for i in ROWS], "pixels": [f.pixels[i] for i in ROWS]}
    for k in (len(pool), len(pool) + 3):
        for groups in (None, [t.column("theme")[i] for i in ROWS]):
            fast = pool.find(f.semantic, k, groups=groups, **who)  # type: ignore[arg-type]
            with monkeypatch.context() as without:
                without.setattr(pool_module, "_RANKED", 0)
                searched = pool.find(f.semantic, k, groups=groups, **who)  # type: ignore[arg-type]
            np.testing.assert_array_equal(fast.index, searched.index)
            np.testing.assert_allclose(fast.similarity, searched.similarity, atol=1e-7)
            assert (fast.index >= 0).sum() > 10 * len(ROWS)
    with pytest.raises(NumericError, match=r"row 39 of the features is not finite"):
        pool.find(f.semantic, len(pool), rows=np.array([3, N - 1]))


def test_shared_codes() -> None:
    found = Codes(["c", "a", "", "b", "d"]).shared(["a", "", "b", "a", "new", "newer"])
    equal = (found.query[:, None] == found.pool[None]) & (found.query[:, None] >= 0)
    expected = [[x == y != "" for y in ["c", "a", "", "b", "d"]] for x in ["a", "", "b", "a", "new", "newer"]]
    assert equal.tolist() == expected
    assert (found.query[1], found.pool[2]) == (-1, -1) and found.query.dtype == np.int64


# ---- what was seen ---------------------------------------------------------------------------------------------------


def test_seen_by_id() -> None:
    data, f = table(), features()
    refuse_seen(data, f, np.array([1, 2]), [("small:p3", "x"), ("small:p11", "")], "the network")
    with pytest.raises(LeakError, match=r"2 of 3 test photos were seen .*by the network .*first: p3, p5\. Te") as e:
        refuse_seen(data, f, np.array([3, 4, 5]), [("small:p5", ""), ("small:p3", "")], "the network")
    assert e.value.ids == ("p3", "p5")


def test_seen_under_another_name() -> None:
    """The same id of another table is another photo; the same pixels are the same photo, whatever their name."""
    data, f = table(), features()
    refuse_seen(data, f, np.array([3]), [("other:p3", "")], "the reducer")
    refuse_seen(data, f, np.array([N - 1]), [("other:p3", "")], "the reducer")  # unreadable: "" is not a digest
    with pytest.raises(LeakError, match=r"1 of 2 test photos .* by the reducer") as e:
        refuse_seen(data, f, np.array([3, 4]), [("other:zzz", f.pixels[4])], "the reducer")
    assert e.value.ids == ("p4",)


# ---- stores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "theme"])
@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("at_once", [4096, 7])
def test_a_store_changes_nothing(
    at_once: int, group: str | None, similarity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References out of a store are those of a search, in the whole pool and in smaller ones."""
    monkeypatch.setattr(pool_module, "_SELECTED", at_once)
    data, f = table(), features(twins=((0, 20), (3, 4)))
    make_store(data, f, tmp_path / "references" / "all", 12, pool_rows=np.arange(N), similarity=similarity)
    store = find_store(tmp_path, f, np.arange(N), None)
    assert store is not None
    themes = data.column("theme")
    for rows in (ROWS, ROWS[::2], ROWS[5:11]):
        pool = RatedPool.of(data, f, rows, group)
        known = {
            "ids": data.ids[: N - 1],
            "pixels": f.pixels[: N - 1],
            "groups": themes[: N - 1] if group else None,
            "similarity": similarity,
        }
        expected = pool.find(f.semantic[ROWS], 4, **known)
        found = pool.find(f.semantic[ROWS], 4, store=store, queries=ROWS, **known)
        np.testing.assert_array_equal(found.index, expected.index)
        np.testing.assert_array_equal(found.similarity, expected.similarity)


def test_a_store_of_other_inputs_is_not_used(tmp_path: Path) -> None:
    data, f = table(), features()
    make_store(data, f, tmp_path / "references" / "all", 5, pool_rows=np.arange(20), group="theme")
    assert find_store(tmp_path, f, np.arange(20), "theme") is not None
    assert find_store(tmp_path, f, np.arange(20), None) is None  # it lacks photos of the own theme
    assert find_store(tmp_path, f, np.arange(21), "theme") is None
    f.config["semantic"]["digest"] = "other"  # type: ignore[index]
    assert find_store(tmp_path, f, np.arange(20), "theme") is None
    assert find_store(tmp_path / "none", f, np.arange(20), None) is None
