"""Approximate search: what an index proposes is ranked exactly, and a flat index finds what the exact search finds."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import made
from milnet import pool as pool_module
from milnet import references as references_module
from milnet.artifacts import read_manifest, write_text
from milnet.cli import app
from milnet.errors import ArtifactError, MissingExtraError, UsageError
from milnet.features import load_feature_set
from milnet.index import (
    Index,
    Kind,
    build_index,
    choose,
    forms,
    import_faiss,
    index_blocks,
    read_index,
    read_memory,
)
from milnet.pool import RatedPool, find_store, make_store
from milnet.references import Exclusion, References, Similarity, search

pytest.importorskip("faiss")
ROWS = np.arange(3000)


def clustered(n: int, seed: int, width: int = 64) -> NDArray[np.float16]:
    """Photos around 60 centres; every tenth is the copy of the one before it, every eleventh nearly."""
    centres = np.random.default_rng(0).normal(size=(60, width))
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(0, 60, n)] + 0.7 * rng.normal(size=(n, width))
    x[10::10] = x[9:-1:10]
    x[11::11] = x[10:-1:11] + 1e-3 * rng.normal(size=x[11::11].shape)
    return np.asarray(x, np.float16)


POOL, QUERIES = clustered(3000, 1), clustered(90, 2)
GROUPS = [Exclusion(np.arange(90) % 7, ROWS % 7), Exclusion(np.where(ROWS[:90] < 5, 1, -1), (ROWS % 50 != 0) * 1)]


def found(index: Index, k: int, **how: Any) -> References:
    rows, best = np.full((len(QUERIES), k), -1), np.full((len(QUERIES), k), -np.inf, np.float32)
    for places, some in index_blocks(QUERIES, POOL, index, k, **how):
        rows[places], best[places] = some.index, some.similarity
    return References(rows, best)


def same(a: References, b: References) -> None:
    np.testing.assert_array_equal(a.index, b.index)
    assert a.similarity.tobytes() == b.similarity.tobytes()


def recall(a: References, b: References) -> float:
    pairs = zip(a.index, b.index, strict=True)
    return float(np.mean([len(set(x) & set(y)) / len(y) for x, y in pairs]))


@pytest.fixture(scope="module")
def indexes() -> dict[Kind, Index]:
    return {kind: build_index(POOL, ROWS, choose(3000, 64, kind=kind)) for kind in ("flat", "hnsw", "ivf-pq")}


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_flat_is_exact_to_the_bit(similarity: Similarity, form: int) -> None:
    """Ties of copies, exclusions, float16 vectors that order photos otherwise: the same references."""
    index = build_index(POOL, ROWS, forms("flat", 3000, 64, similarity)[form])
    for k, exclude, limit in ((1, (), 0.97), (4, GROUPS, 0.97), (70, GROUPS, None), (4, (), 0.5), (3000, GROUPS, 0.97)):
        exact = search(QUERIES, POOL, k, exclude=exclude, similarity=similarity, near_duplicate=limit)
        same(found(index, k, exclude=exclude, near_duplicate=limit), exact)
        same(found(index, k, exclude=exclude, near_duplicate=limit, block=13), exact)


def test_float16_alone_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the proof that makes it exact: without it, photos that float16 puts behind are missed."""
    monkeypatch.setattr("milnet.index._Finder._enough", lambda self, q, found, seems, n: found.found.all(1))
    monkeypatch.setattr("milnet.index.Plan.candidates", lambda self, k: k)
    index = build_index(POOL, ROWS, forms("flat", 3000, 64, "cosine")[1])
    exact = search(QUERIES, POOL, 70, near_duplicate=None)
    assert not np.array_equal(found(index, 70).index, exact.index)


@pytest.mark.parametrize("kind", ["hnsw", "ivf-pq"])
def test_what_is_found_is_ranked_exactly(indexes: dict[Kind, Index], kind: Kind) -> None:
    exact = search(QUERIES, POOL, 20, exclude=GROUPS, near_duplicate=0.97)
    some = found(indexes[kind], 20, exclude=GROUPS, near_duplicate=0.97)
    assert recall(some.first(4), exact.first(4)) > 0.97 and recall(some, exact) > 0.95
    q, p = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (QUERIES, POOL))
    cosine = (q[:, None] * p[some.index]).sum(2)
    np.testing.assert_allclose(some.similarity, cosine, rtol=0, atol=1e-6)
    assert (some.similarity <= 0.97).all()
    for pair in GROUPS:
        assert not pair.meet(slice(None), some.index).any()


@pytest.mark.parametrize("kind", ["hnsw", "ivf-pq"])
def test_exclusions_that_leave_few(indexes: dict[Kind, Index], kind: Kind) -> None:
    """All but 30 photos are of the queries' group: no number of candidates is enough, and none is missed."""
    exclude = [Exclusion(np.zeros(90, np.int64), (ROWS % 100 == 0) * 1)]
    same(found(indexes[kind], 25, exclude=exclude), search(QUERIES, POOL, 25, exclude=exclude, near_duplicate=None))
    short = found(indexes[kind], 40, exclude=exclude)
    assert (short.found.sum(1) == 30).all()


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-pq"])
def test_some_rows_of_larger_arrays(kind: Kind) -> None:
    """Positions are those among the rows chosen, in whatever order they are."""
    rows = np.random.default_rng(4).permutation(3000)[:1500]
    queries = np.array([5, 80, 3])
    index = build_index(POOL, rows, choose(1500, 64, kind=kind))
    exact = search(QUERIES, POOL, 4, query_rows=queries, pool_rows=rows)
    (places, some), *rest = index_blocks(
        QUERIES, POOL, index, 4, query_rows=queries, pool_rows=rows, near_duplicate=0.97
    )
    assert not rest and sorted(places) == [0, 1, 2]
    assert recall(some, References(exact.index[places], exact.similarity[places])) >= (1 if kind == "flat" else 0.9)


def test_the_same_index_twice(indexes: dict[Kind, Index]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind in ("flat", "hnsw", "ivf-pq"):
            again = [found(build_index(POOL, ROWS, choose(3000, 64, kind=kind)), 8) for _ in range(2)]
            same(*again)
    finally:
        torch.set_num_threads(before)


def test_another_pool_is_refused(indexes: dict[Kind, Index]) -> None:
    with pytest.raises(UsageError, match="expected an index over the 2,999 photos of this pool, got one over 3,000"):
        list(index_blocks(QUERIES, POOL, indexes["flat"], 4, pool_rows=ROWS[1:]))


# ---- more photos, and fewer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "ivf-pq", "hnsw"])
def test_added_and_removed(kind: Kind, tmp_path: Path) -> None:
    """As an index over the photos that are left, in their order; the old one is as it was."""
    old = build_index(POOL, ROWS[:2000], choose(2000, 64, kind=kind))
    rows = POOL.astype(np.float32) / np.linalg.norm(POOL.astype(np.float32), axis=1, keepdims=True)
    larger = old.added(rows[2000:2500])
    gone = np.arange(0, 2500, 3)
    smaller = larger.without(gone)
    if kind == "hnsw":
        assert smaller is None
        smaller, left = larger, ROWS[:2500]
    else:
        assert smaller is not None
        left = np.delete(ROWS[:2500], gone)
        smaller = smaller.added(rows[2500:])
        left = np.concatenate([left, ROWS[2500:]])
    smaller.save(tmp_path)
    for one in (smaller, Index.load(tmp_path)):
        assert len(one) == len(left) and len(old) == 2000
        some = found(one, 4, pool_rows=left)
        exact = search(QUERIES, POOL, 4, pool_rows=left, near_duplicate=None)
        if kind == "flat":
            same(some, exact)
        assert recall(some, exact) > 0.95
    assert recall(found(old, 4, pool_rows=ROWS[:2000]), search(QUERIES, POOL, 4, pool_rows=ROWS[:2000])) > 0.9


def test_a_damaged_index(tmp_path: Path, indexes: dict[Kind, Index]) -> None:
    indexes["ivf-pq"].save(tmp_path)
    whole = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"does not hold together .*: make it again"):
        Index.load(tmp_path)
    (tmp_path / "index.faiss").write_bytes(whole)
    write_text(tmp_path / "index.json", "{}")
    with pytest.raises(ArtifactError, match="does not hold together"):
        Index.load(tmp_path)


# ---- which one -------------------------------------------------------------------------------------------------------


def test_the_best_that_fits() -> None:
    assert choose(1000, 1280).kind == "flat" and choose(1000, 1280).form == "Flat"
    large = 2_000_000
    assert choose(large, 1280).form == "PCA256,HNSW32,SQfp16"
    sizes = [(3e9, "HNSW32,SQfp16"), (1.9e9, "HNSW32,SQ8"), (1.5e9, "HNSW16,SQ8"), (1.1e9, "PQ64"), (0.95e9, "PQ32")]
    for memory, form in sizes:
        plan = choose(large, 1280, memory=int(memory))
        assert form in plan.form and plan.bytes <= plan.peak <= memory, plan
    assert choose(large, 1280, kind="flat", memory=6 * 10**9).form == "SQfp16"
    with pytest.raises(
        UsageError,
        match=r"--memory 1.00GB is too little for an index of kind flat over 2,000,000 photos x 1,280: the smallest "
        r"\(SQfp16\) needs 5.\d\dGB while it is built and 5.12GB afterwards; ivf-pq needs less",
    ):
        choose(large, 1280, kind="flat", memory=10**9)
    with pytest.raises(UsageError, match=r"of kind flat, hnsw or ivf-pq over .* needs 0.\d\dGB while"):
        choose(large, 1280, memory=10**6)
    with pytest.raises(UsageError, match="kind ivf-pq needs at least 1,000 photos, got 999: choose flat"):
        choose(999, 64, kind="ivf-pq")


@pytest.mark.parametrize("kind", ["flat", "hnsw", pytest.param("ivf-pq", marks=pytest.mark.slow)])
def test_bytes_are_what_is_said(kind: Kind, tmp_path: Path) -> None:
    """Within a third of what faiss writes; tables that it makes when it reads are not on disk."""
    for width in (320,) if kind == "ivf-pq" else (64, 320):
        array = clustered(3000, 3, width)
        for plan in forms(kind, 3000, width, "cosine"):
            build_index(array, ROWS, plan).save(tmp_path)
            tables = 1024 * int(plan.form.partition("PQ")[2][:-2]) * 256 if kind == "ivf-pq" else 0
            assert (tmp_path / "index.faiss").stat().st_size == pytest.approx(plan.bytes - tables, rel=0.35), plan


def test_texts() -> None:
    assert [read_memory(text) for text in ("4GB", "1.5 MiB", "500mb", "12")] == [4 * 10**9, 3 << 19, 5 * 10**8, 12]
    for text in ("much", "0GB", "-1GB", "4 GB each"):
        with pytest.raises(UsageError, match=f"--memory {text}: expected a size, for example 4GB or 500MB"):
            read_memory(text)
    assert read_index("exact") == (False, None) and read_index("faiss") == (True, None)
    assert read_index("faiss:ivf-pq") == (True, "ivf-pq")
    for text in ("flat", "faiss:", "faiss:lsh", "exact:flat"):
        with pytest.raises(
            UsageError, match=f"--index {text}: expected exact, faiss, faiss:flat, faiss:ivf-pq, faiss:h"
        ):
            read_index(text)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "faiss")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"an approximate index needs the package 'faiss'.*'milnet\[faiss\]'"):
        import_faiss()


# ---- exact search within a memory, and between calls -----------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
def test_read_again_instead_of_held(similarity: Similarity, tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", POOL)
    stored = np.load(tmp_path / "pool.npy", mmap_mode="r")
    rows = np.random.default_rng(3).permutation(3000)[:2500]
    how: Any = {
        "pool_rows": rows,
        "similarity": similarity,
        "exclude": [Exclusion(GROUPS[0].query, GROUPS[0].pool[rows])],
    }
    held = search(QUERIES, POOL, 9, **how)
    for memory in (0, 2500 * 64 * 4 - 1, 2500 * 64 * 4):
        same(search(QUERIES, stored, 9, memory=memory, block=50, **how), held)


def test_a_few_photos_do_not_read_the_pool_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = made.table(3000)
    features = made.features(table)
    pool = RatedPool.of(table, features, ROWS)
    expected = search(features.semantic[:3], features.semantic, 5, near_duplicate=pool.near_duplicate)
    read: list[int] = []

    def counted(array: Any, rows: Any, similarity: Any) -> Any:
        read.append(len(rows))
        return real(array, rows, similarity)

    real = references_module.read_rows
    monkeypatch.setattr(references_module, "read_rows", counted)
    for _ in range(3):
        same(pool.find(features.semantic[:3], 5), expected)
    assert sum(read) == 3000 + 3 * 3
    monkeypatch.setattr(pool_module, "HELD", 1000)  # too large to be kept
    fresh = RatedPool.of(table, features, ROWS)
    same(fresh.find(features.semantic[:3], 5), expected)
    assert not fresh._prepared


def test_an_index_of_a_pool_proposes() -> None:
    table = made.table(3000)
    features = made.features(table, semantic=24)
    exact = RatedPool.of(table, features, ROWS)
    index = build_index(features.semantic, ROWS, choose(3000, 24, kind="hnsw"))
    pool = replace(exact, index=index)
    how: Any = {"rows": np.arange(200), "ids": table.ids[:200]}
    some, all_ = pool.find(features.semantic, 4, **how), exact.find(features.semantic, 4, **how)
    assert recall(some, all_) > 0.9
    assert not (some.index == np.arange(200)[:, None]).any()
    same(
        pool.find(features.semantic, 4, similarity="l2", **how),
        exact.find(features.semantic, 4, similarity="l2", **how),
    )
    assert pool.take(ROWS[:50]).index is None  # that of the larger pool would propose others


# ---- a store ---------------------------------------------------------------------------------------------------------

TABLE = made.table(3000)
FEATURES = made.features(TABLE, width=40, semantic=32)


def store(folder: Path, kind: Kind | None = None, **options: Any) -> None:
    plan = None if kind is None else choose(3000, 32, kind=kind)
    make_store(TABLE, FEATURES, folder, 6, pool_rows=ROWS, plan=plan, block=256, save_seconds=0, **options)


def test_a_large_pool_without_an_index_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a scorer reads all of the pool again and again, the command says what would help."""
    made.photo(1).save(tmp_path / "a.png")
    for held, told in ((0, True), (4 << 30, False)):
        monkeypatch.setattr("milnet.pool.HELD", held)
        result = CliRunner().invoke(app, ["score", str(tmp_path), "--model", "pocket", "--no-cache"])
        assert result.exit_code == 0 and ("milnet pool index pocket -o INDEXED" in result.output) == told, result.output


def test_stores(tmp_path: Path) -> None:
    for kind in (None, "flat", "ivf-pq", "hnsw"):
        store(tmp_path / "references" / str(kind), kind)  # type: ignore[arg-type]
    folders = {path.name: path for path in (tmp_path / "references").iterdir()}
    index, value = (
        {name: np.load(path / f"{part}.npy") for name, path in folders.items()} for part in ("index", "similarity")
    )
    assert index["flat"].tobytes() == index["None"].tobytes() and value["flat"].tobytes() == value["None"].tobytes()
    for kind in ("ivf-pq", "hnsw"):
        assert (index[kind] == index["None"]).mean() > 0.9
        manifest = read_manifest(folders[kind], "references")
        assert manifest.config["index"]["kind"] == kind and not manifest.config["index"]["exact"]
        assert set(manifest.files) == {"index.npy", "pool.npy", "similarity.npy"}
        assert sorted(path.name for path in folders[kind].iterdir()) == [
            *sorted(manifest.files)[:1],
            "manifest.json",
            *sorted(manifest.files)[1:],
        ]
    assert "index" not in read_manifest(folders["None"], "references").config


def test_an_approximate_store_never_passes_as_exact(tmp_path: Path) -> None:
    store(tmp_path / "references" / "near", "hnsw")
    write_text(tmp_path / "ids.txt", "".join(f"{id_}\n" for id_ in TABLE.ids))
    assert find_store(tmp_path, FEATURES, ROWS, None) is None
    named = find_store(tmp_path, FEATURES, ROWS, None, "near")
    assert named is not None and named.approximate
    store(tmp_path / "references" / "flat", "flat")
    found = find_store(tmp_path, FEATURES, ROWS, None)
    assert found is not None and not found.approximate


def test_a_stopped_run_does_not_build_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    real = pool_module.build_index

    def counted(*arguments: Any, **options: Any) -> Index:
        built.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(pool_module, "build_index", counted)

    def stop(done: int, total: int, what: str) -> None:
        if what == "searches" and done == 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "store", "hnsw", progress=stop)
    assert (tmp_path / ".store.part" / "index.faiss").exists()
    with pytest.raises(ArtifactError, match=r"unfinished search with other options or photos: .*index: "):
        store(tmp_path / "store", "ivf-pq")
    told: list[int] = []
    store(tmp_path / "store", "hnsw", progress=lambda done, total, what: told.append(done))
    assert built == [1] and told[0] == 512
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_real_features(test_data: Path) -> None:
    """The shipped pool's own features, in theme folds: an index loses nearly nothing at this size."""
    from milnet.annotations import load_table
    from milnet.places import find_data

    data = find_data(Path("bundled"))
    table, _ = load_table(data)
    features = load_feature_set(data, table, semantic="mobilenetv2_100", nodes="mobilenetv2_100")
    rows = np.arange(len(table))
    exact = search(features.semantic, features.semantic, 4, exclude=[Exclusion(rows, rows)])
    for kind in ("flat", "hnsw"):
        index = build_index(features.semantic, rows, choose(len(rows), 1280, kind=kind))
        some = np.full(exact.index.shape, -1)
        for places, one in index_blocks(
            features.semantic, features.semantic, index, 4, exclude=[Exclusion(rows, rows)], near_duplicate=0.97
        ):
            some[places] = one.index
        agreement = (some == exact.index).mean()
        assert agreement == 1 if kind == "flat" else agreement > 0.98


@pytest.mark.parametrize("count", [1, 3, 60, 255])
def test_fewer_photos_than_directions(count: int) -> None:
    """An index learns no more directions than there are photos."""
    array = np.random.default_rng(0).normal(size=(count, 640)).astype(np.float16)
    rows = np.arange(count)
    index = build_index(array, rows, choose(count, 640, kind="hnsw"))
    assert len(index) == count
