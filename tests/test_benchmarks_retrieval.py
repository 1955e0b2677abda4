"""The benchmark of the search runs and compares right; the synthetic data of AVA's size is what it says."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milnet.annotations import load_table
from milnet.artifacts import read_manifest, verify_files
from milnet.features import load_feature_set
from milnet.pool import RatedPool, find_store, make_store
from milnet.references import References
from milnet.splits import training_rows

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ["--queries", "70", "--pool", "600", "--width", "64", "--k", "5", "--centres", "12", "--block", "32"]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def retrieval(path: None) -> Any:
    return import_module("retrieval")


@pytest.fixture
def ava_size(path: None) -> Any:
    return import_module("ava_size")


def test_retrieval(retrieval: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    retrieval.main([*TINY, "--sample", "20", "--published", "2"])
    assert torch.get_num_threads() == before
    told = capsys.readouterr().out
    assert "70 queries, pool 600 x 64 float16, 5 references, blocks of 32" in told
    assert "20 queries against float64: 0 of 100 places differ, by " in told
    assert re.search(r"rate of ours / rate of the products alone: \d+\.\d{3}; blocks after the first", told)
    assert re.search(r"ratio: \d+\.\d x .* over 2 rounds", told)


def test_retrieval_notices_what_is_wrong(retrieval: Any) -> None:
    pool, queries = (retrieval.clustered(n, 32, 5, seed) for n, seed in ((200, 0), (20, 1)))
    rows = retrieval.normalised(pool)
    found = retrieval.measure(queries, pool, rows, 4, 8)
    assert [len(x) for x in (found.ours, found.whole, found.tiled)] == [3] * 3 and found.sizes == [8, 8, 4]
    picks = np.arange(20)
    differ, apart = retrieval.disagreement(found.references, queries, rows, picks)
    assert differ == 0 and apart < retrieval.UNIT
    index = found.references.index.copy()
    index[3, 1] = next(row for row in range(200) if row not in index[3])
    wrong = References(index, found.references.similarity - np.float32(0.001))
    differ, apart = retrieval.disagreement(wrong, queries, rows, picks)
    assert differ == 1 and apart == pytest.approx(0.001, abs=1e-6)


def test_the_published_way_finds_the_same(retrieval: Any) -> None:
    """Rows of length 1: the smallest distance is the highest cosine."""
    pool, queries = (retrieval.clustered(n, 32, 5, seed) for n, seed in ((200, 0), (5, 1)))
    rows, ones = retrieval.normalised(pool), retrieval.normalised(queries)
    found = retrieval.measure(queries, pool, rows, 4, 8)
    for i in range(5):
        assert retrieval.published(rows, ones[i : i + 1])[:4].tolist() == found.references.index[i].tolist()


def test_ava_size(ava_size: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = 1200
    for name in ("one", "two"):
        ava_size.main(["make", str(tmp_path / name), "--photos", str(photos)])
    assert f"{tmp_path / 'one'}: 1,200 photos, 0.02 GB" in capsys.readouterr().out
    table, data = load_table(tmp_path / "one")
    assert data.digest == read_manifest(tmp_path / "two").digest
    for part in ("semantic", "nodes"):
        folders = [tmp_path / name / "features" / part for name in ("one", "two")]
        manifests = [read_manifest(folder, "features") for folder in folders]
        verify_files(folders[0], manifests[0])
        assert manifests[0].digest == manifests[1].digest

    assert len(table) == photos and table.values.tolist() == list(range(1, 11))
    assert table.columns["split"].count("test") == round(photos * 19_998 / 237_108)
    features = load_feature_set(tmp_path / "one", table, semantic="semantic", nodes="nodes")
    assert features.semantic.shape == (photos, 2048) and features.nodes.shape == (photos, 6144)
    assert features.semantic.dtype == features.nodes.dtype == np.float16 and features.readable.all()
    assert len(set(features.pixels)) == photos

    themes = np.array(table.columns["theme"])
    rows = training_rows(table)
    make_store(table, features, tmp_path / "one" / "references" / "all", 10, pool_rows=rows)
    store = find_store(tmp_path / "one", features, rows, None)
    assert store is not None and RatedPool.of(table, features, rows).near_duplicate is not None
    assert (themes[store.index] == themes[:, None]).mean() > 0.95
    train, test = np.split(np.random.default_rng(0).permutation(photos), [1000])
    nodes, scores = np.asarray(features.nodes, np.float32), table.scores
    direction = (scores[train] - scores[train].mean()) @ nodes[train]
    assert 0.6 < np.corrcoef(nodes[test] @ direction, scores[test])[0, 1] < 0.95


def test_ava_size_by_default(ava_size: Any) -> None:
    """The numbers of photos of ILGnet's split, and votes like AVA's."""
    table = ava_size.rated(ava_size.PHOTOS, 0)
    assert table.columns["split"].count("train") == 217_110 and table.columns["split"].count("test") == 19_998
    assert 5 < table.scores.mean() < 6 and 0.6 < table.scores.std() < 1 and 1.2 < table.spreads.mean() < 1.7
    with pytest.raises(SystemExit, match="--photos 3: expected at least 20"):
        ava_size.main(["make", "x", "--photos", "3"])
