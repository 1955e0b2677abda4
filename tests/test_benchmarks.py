"""The benchmarks: baselines touch no test label and solve what they say; what is timed computes the same thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from made import photo
from milnet.annotations import Table, save_table
from milnet.evaluation import crossvalidate, find_same_photos
from milnet.features import FeatureSet
from milnet.recipe import load_recipe
from milnet.results import write_predictions
from milnet.splits import Split, find_folds

FOLDER = Path(__file__).parents[1] / "benchmarks"
N, S = 60, 5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def baselines(path: None) -> Any:
    return import_module("baselines")


def small() -> tuple[Table, FeatureSet]:
    """Photos whose votes follow their features; two of them, in different folds, are the same photo."""
    generator = np.random.default_rng(0)
    semantic = generator.normal(size=(N, 8)).astype(np.float16)
    nodes = np.concatenate([semantic, generator.normal(size=(N, 4)).astype(np.float16), np.ones((N, 1))], axis=1)
    votes = 40 * np.exp(-0.5 * (np.arange(S) - 2 - semantic[:, :1]) ** 2) + generator.integers(1, 9, (N, S))
    themes = tuple(f"t{row // 3}" for row in range(N))
    columns = {"theme": themes, "fold": tuple(str(row % 3) for row in range(N))}
    columns["whole"] = tuple(str(row // 3 % 3) for row in range(N))
    table = Table("small", tuple(f"p{row}" for row in range(N)), votes, np.arange(1.0, S + 1), columns,
                  groups=("theme",), threshold=3.0)  # fmt: skip
    pixels = [f"{row:064x}" for row in range(N)]
    pixels[7] = pixels[0]
    config = {role: {"digest": "d", "span": [0, 8], "name": "x"} for role in ("semantic", "nodes")}
    return table, FeatureSet(semantic, nodes.astype(np.float16), tuple(pixels), np.ones(N, np.bool_), config)


def tiny(baselines: Any) -> list[Any]:
    """Every baseline with two values of each setting."""
    return [replace(one, grid={name: values[1:3] for name, values in one.grid.items()}) for one in baselines.BASELINES]


@pytest.mark.parametrize("column", ["fold", "whole"])
def test_test_votes_are_never_touched(baselines: Any, column: str) -> None:
    table, features = small()
    folds = find_folds(table, column)
    assert folds.group == ("theme" if column == "whole" else None)
    test = np.flatnonzero(folds.codes == 1)
    train = np.flatnonzero(folds.codes != 1)
    same = find_same_photos(table, features).pairs
    missing, permuted = table.votes.copy(), table.votes.copy()
    missing[test] = np.nan
    permuted[test] = np.random.default_rng(1).permuted(table.votes[test], axis=1)[::-1]
    for baseline in tiny(baselines):
        found = []
        for votes in (table.votes, missing, permuted):
            known = replace(table, votes=votes)
            chosen = baselines.choose(baseline, known, features, train, folds.group, same)
            split = Split(train, test, folds.group)
            # also without the blindfold
            direct = baseline.predict(known, features, split, chosen)
            p = baselines.predict_blind(baseline, known, features, split, chosen)
            np.testing.assert_array_equal(direct, p)
            found.append((chosen, p))
        for chosen, p in found[1:]:
            assert chosen == found[0][0]
            np.testing.assert_array_equal(p, found[0][1])
        # and the votes of the training photos do matter
        other = replace(table, votes=np.roll(table.votes, 1, axis=1))
        assert not np.allclose(baselines.predict_blind(baseline, other, features, split, chosen), p)


def test_a_predictor_sees_no_votes_but_those_of_training(baselines: Any) -> None:
    table, features = small()
    train, test = np.arange(40), np.arange(45, N)
    seen: list[Table] = []

    def predict(table: Table, *_: Any) -> np.ndarray:
        seen.append(table)
        return np.full((len(test), S), 1 / S)

    baselines.predict_blind(baselines.Baseline("spy", predict), table, features, Split(train, test), {})
    assert np.isnan(seen[0].votes[40:]).all()
    np.testing.assert_array_equal(seen[0].votes[:40], table.votes[:40])


def test_crossvalidate_has_the_splits_of_milnet(baselines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same photos are trained on, tested and left out as twins."""
    table, features = small()
    readable = features.readable.copy()
    readable[11] = False
    features = replace(features, readable=readable)
    folds = find_folds(table, "fold")
    ours: list[Split] = []
    theirs: list[Split] = []

    def spy(table: Table, features: FeatureSet, split: Split, setting: Any) -> np.ndarray:
        ours.append(split)
        return np.full((len(split.test), S), 1 / S)

    def fit(recipe: Any, table: Table, features: FeatureSet, split: Split, *_: Any, **__: Any) -> None:
        theirs.append(split)
        raise StopIteration

    same = find_same_photos(table, features)
    baselines.crossvalidate(baselines.Baseline("spy", spy), table, features, folds, same.pairs)
    monkeypatch.setattr("milnet.evaluation.fit", fit)
    for fold in range(3):
        only = replace(folds, names=folds.names[fold : fold + 1], codes=np.where(folds.codes == fold, 0, 1))
        with pytest.raises(StopIteration):
            crossvalidate(load_recipe("single"), table, features, only, [0])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.train, b.train[readable[b.train]])  # fit leaves the unreadable out
        np.testing.assert_array_equal(a.test, b.test)
    assert 0 not in ours[1].train and 7 in ours[1].test and 7 not in ours[0].train


def test_choose_takes_the_lowest_inner_error(baselines: Any) -> None:
    table, features = small()
    truth = table.distributions

    def predict(table: Table, features: FeatureSet, split: Split, setting: Any) -> np.ndarray:
        mixed: np.ndarray = (1 - setting["off"]) * truth[split.test] + setting["off"] / S
        return mixed

    baseline = baselines.Baseline("x", predict, {"off": (0.5, 0.1, 0.9)})
    same = find_same_photos(table, features).pairs
    assert baselines.choose(baseline, table, features, np.arange(40), "theme", same) == {"off": 0.1}


def test_ridge_solves_its_least_squares(baselines: Any) -> None:
    table, features = small()
    train, test = np.arange(40), np.arange(40, N)
    strength = 0.7
    x = features.nodes.astype(np.float64)
    deviation = x[train].std(0)
    x = (x - x[train].mean(0)) / np.where(deviation > 0, deviation, 1)
    width = x.shape[1]
    # an unpenalised intercept, and a row a feature that pulls its weight to 0
    left = np.block([[x[train], np.ones((40, 1))], [np.sqrt(strength * width) * np.eye(width), np.zeros((width, 1))]])
    weights = np.linalg.lstsq(left, np.concatenate([table.distributions[train], np.zeros((width, S))]), rcond=None)[0]
    raw = np.column_stack([x[test], np.ones(len(test))]) @ weights
    expected = raw.clip(0) / raw.clip(0).sum(1, keepdims=True)
    got = baselines.ridge(table, features, Split(train, test), {"ridge": strength})
    np.testing.assert_allclose(got, expected, atol=1e-6)  # the standardiser's moments are float32


def test_kernel_ridge_solves_its_system(baselines: Any) -> None:
    table, features = small()
    train, test = np.arange(40), np.arange(40, N)
    x = features.semantic.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    kernel = np.exp(-2 * ((x[:, None] - x[None]) ** 2).sum(2))
    true = table.distributions[train]
    weights = np.linalg.inv(kernel[:40, :40] + 0.1 * np.eye(40)) @ (true - true.mean(0))
    raw = kernel[40:, :40] @ weights + true.mean(0)
    expected = raw.clip(0) / raw.clip(0).sum(1, keepdims=True)
    got = baselines.kernel_ridge(table, features, Split(train, test), {"gamma": 2, "ridge": 0.1})
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_neighbours_weigh_by_softmax(baselines: Any) -> None:
    table, features = small()
    train, test = np.arange(8, 40), np.array([0, 50])
    x = features.semantic.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    got = baselines.neighbours(table, features, Split(train, test), {"k": 3, "sharpness": 10})
    for row, p in zip(test, got, strict=True):
        cosine = x[train] @ x[row]
        nearest = np.argsort(-cosine)[:3]
        weights = np.exp(10 * cosine[nearest])
        expected = weights @ table.distributions[train[nearest]] / weights.sum()
        np.testing.assert_allclose(p, expected, atol=1e-6)  # similarities are float32
    few = Split(train[:2], test)  # fewer photos than references asked for
    more, all_ = (baselines.neighbours(table, features, few, {"k": k, "sharpness": 10}) for k in (5, 2))
    np.testing.assert_array_equal(more, all_)


def test_baselines_command(baselines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    table, features = small()
    save_table(table, tmp_path / "data", inputs={})
    monkeypatch.setattr(baselines, "load_feature_set", lambda *_, **__: features)
    monkeypatch.setattr(baselines, "BASELINES", tiny(baselines))
    monkeypatch.setattr(baselines, "summarise", partial(baselines.summarise, samples=20))
    monkeypatch.setattr(baselines, "paired_difference", partial(baselines.paired_difference, count=20))
    folds = find_folds(table, "fold")
    same = find_same_photos(table, features)
    recipe = load_recipe("single", ["epochs=1", "width=4"])
    predictions, _ = crossvalidate(recipe, table, features, folds, [0, 1], same=same)
    against, other = tmp_path / "results.predictions.csv", tmp_path / "other.csv"
    write_predictions(against, table, predictions)
    write_predictions(other, table, replace(predictions, fold_names=("a", "b", "c")))
    names = [folds.names[code] for code in predictions.fold]
    runs = baselines.read_predictions(against, table, predictions.rows, names)
    np.testing.assert_array_equal(np.stack(runs), predictions.distributions)
    assert baselines.read_predictions(other, table, predictions.rows, names) is None

    output = tmp_path / "baselines.json"
    common = [str(tmp_path / "data"), "--folds", "whole", "--folds", "fold"]
    baselines.main([*common, "--against", str(against), "-o", str(output)])
    results = json.loads(output.read_text())
    assert results["kind"] == "baselines" and "--folds whole" in results["command"]
    rows = {(row["folds"]["label"], row["baseline"]): row for row in results["rows"]}
    assert len(rows) == 8
    assert rows["whole", "ridge"]["against"] == {}
    ridge = rows["fold", "ridge"]
    assert set(ridge["chosen"]) == {"0", "1", "2"} and set(ridge["chosen"]["0"]) == {"ridge"}
    assert ridge["metrics"]["srcc"]["mean"] > 0.5 > abs(rows["fold", "constant"]["metrics"]["srcc"]["mean"])
    found = ridge["against"][str(against)]["emd2"]
    assert found["low"] < found["difference"] < found["high"]
    text = capsys.readouterr().out
    assert "never splitting theme" in text and "ridge chose, fold by fold: ridge=" in text and "baseline minus" in text

    with pytest.raises(SystemExit, match=r"other\.csv: photos or folds other than those of whole, fold"):
        baselines.main([*common, "--against", str(other)])
    against.write_text("photo,seed\np0,0\n")
    with pytest.raises(SystemExit, match=r"no predictions\.csv of small: it has no column fold, p_1"):
        baselines.main([*common, "--against", str(against)])


def test_losses_command(path: None, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = import_module("losses")
    losses.main(["--batch", "6", "--rounds", "2", "--calls", "1"])  # raises unless loss and gradient agree
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("ratio: ") and lines[-1].endswith("over 2 rounds)")
    monkeypatch.setattr(losses, "loop_published", losses.loop_adaptive)
    with pytest.raises(SystemExit, match="PublishedAdaEMD: loss or gradient differ by"):
        losses.main(["--batch", "6", "--rounds", "1", "--calls", "1"])


def test_batches_command(path: None, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = import_module("batches")
    small = ["--photos", "50", "--width", "16", "--batch", "8", "--batches", "2", "--rounds", "2"]
    batches.main([*small, "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("ratio: ") and "memory map: ours" in lines[-2] and "in memory: ours" in lines[-3]
    assert not list(tmp_path.iterdir())
    _, mapped, memory = batches.make_both(tmp_path, 50, 16, np.random.default_rng(0))
    assert mapped._photos.tensor is None and memory._photos.tensor is not None
    assert isinstance(mapped._photos.array, np.memmap)
    monkeypatch.setattr(batches, "TOLERANCE", 1e-9)
    with pytest.raises(SystemExit, match="the batches differ by"):
        batches.main(small)


def test_serving_command(path: None, capsys: Any, tmp_path: Path) -> None:
    """A small run: every way gives the same scores, overload is refused and over, and what was measured adds up."""
    serving = import_module("serving")
    photos, output = tmp_path / "photos", tmp_path / "serving.json"
    photos.mkdir()
    for seed in range(12):
        photo(seed, *((200, 160) if seed % 3 else (160, 200))).save(photos / f"{seed}.jpg")
    small = [str(photos), "--rounds", "1", "--clients", "8", "--overload", "6", "-o", str(output)]
    code = serving.main(small)
    found = json.loads(output.read_text())
    # how fast it is says nothing here, so that the floors may be missed; nothing else may
    assert code == bool(found["problems"])
    # nor whether a service of unknown speed was overloaded: what it refused must be what it says it refused
    assert all("overload" not in text or "got none" in text for text in found["problems"]), found["problems"]
    assert found["largest_difference"] <= 1e-5 and found["photos"] == 12
    ways = found["rounds"][0]
    assert list(ways) == ["one by one", "score", "score, cache", "8 clients"]
    one = ways["8 clients"]
    assert one["photos_per_pass"] * one["passes"] == pytest.approx(12)
    assert sum(one["passes_by_size"].values()) == one["passes"] and one["service_cpu_seconds"] > 0
    over = found["overload"]
    sent = round(6 * over["photos_per_second_sent"])
    assert sum(over["statuses"].values()) == sent and over["statuses"].get("429", 0) == over["refused_by_its_own_count"]
    assert found["ratios"]["score"][0] <= 1 and over["again"]["photos_per_second"] > 0
    assert "8 clients again" in capsys.readouterr().out
    missed = serving.problems({**found, "ratios": {"8 clients": [0.79]}, "overload": None})
    assert missed[0] == "8 clients: 0.79 of the photos a second of `milnet score`, expected at least 0.80"


@pytest.mark.slow
def test_pools_command(path: None, capsys: Any, tmp_path: Path) -> None:
    """Small pools, each way in a process of its own; exact is what the others are compared with."""
    pytest.importorskip("faiss")
    small = ["search", "--sizes", "1500,3000", "--queries", "32", "--ones", "2", "--fit-from", "1500"]
    import_module("pools").main([*small, "--folder", str(tmp_path), "-o", str(tmp_path / "x.json")])
    found = json.loads((tmp_path / "x.json").read_text())
    ways = {(row["way"], row["size"]): row for row in found["rows"]}
    assert set(ways) == {(way, size) for way in ("exact", "flat", "ivf-pq", "hnsw") for size in (1500, 3000)}
    for (way, _), row in ways.items():
        assert row["recall4"] > 0.9 and row["judged"] > 0 and row["one"] > 0 and row["build"] >= 0
        assert way != "flat" or (row["recall4"], row["recall64"], row["moved64"]) == (1, 1, [0, 0])
        assert way == "exact" or 0 <= row["anonymous"] < row["planned"] + (200 << 20)
    assert set(found["exponents"]) == {"exact", "flat", "ivf-pq", "hnsw"}
    assert "failed" not in capsys.readouterr().out


@pytest.mark.slow
def test_cluster_command(path: None, test_data: Path, capsys: Any, tmp_path: Path) -> None:
    """One process, Ray, and Ray with a worker killed: the same scores."""
    pytest.importorskip("ray")
    photos, output = test_data / "data" / "oasis" / "images", tmp_path / "x.json"
    import_module("cluster").main([str(photos), "-n", "96", "--photos", "16,48", "--rounds", "1", "-o", str(output)])
    found = json.loads(output.read_text())
    assert found["difference"] <= 1e-5 and found["sizes"] == [16, 48]
    killed = found["ways"]["ray, a worker killed"][0]
    assert killed["killed"] == 1 and found["ways"]["one process"][0]["processes"] < killed["processes"]
    assert all(found["starts"][way] < found["ways"][way][0]["seconds"] for way in found["starts"])
    assert "largest difference of a score" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["timing", "baselines", "losses", "batches"])
def test_names_are_free(path: None, name: str) -> None:
    """The scripts import each other by bare names: nothing else may answer to them."""
    assert Path(str(import_module(name).__file__)) == FOLDER / f"{name}.py"
    assert name in sys.modules
