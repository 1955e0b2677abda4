"""The benchmark of joint learning: what is taken away is away, what an explanation promises is what happens."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made
from milnet.evaluation import find_references
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.splits import Split

TABLE = made.table(90)
FEATURES = made.features(TABLE)
TEST = np.arange(70, 90)


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return import_module("joint")


@pytest.fixture(scope="module")
def model() -> Model:
    recipe = load_recipe("votes", ["epochs=3", "width=8"])
    return fit(recipe, TABLE, FEATURES, Split(np.arange(70), TEST), 0)


def test_ablations(joint: Any, model: Model) -> None:
    nodes = model.numbers(FEATURES, TEST)
    whole = model.predict(nodes, find_references(model, TABLE, FEATURES, TEST))
    found = joint.ablations(model, nodes, TABLE, FEATURES, TEST)
    assert found.keys() == {"alone", "nearest", "K=8", "K=32", "permuted", "zeroed"}
    np.testing.assert_array_equal(found["alone"], model.predict(nodes, None))
    for name in ("alone", "K=8", "K=32", "permuted", "zeroed"):
        np.testing.assert_allclose(found[name].sum(1), 1)
        assert np.abs(found[name] - whole).max() > 1e-4, name
    again = model.predict(nodes, find_references(model, TABLE, FEATURES, TEST))
    np.testing.assert_array_equal(again, whole)  # the model itself is left as it was
    assert np.abs(joint.unlearned(model, nodes, TABLE, FEATURES, TEST) - whole).max() > 1e-4


def test_mirrored(joint: Any) -> None:
    recipe = load_recipe("votes", ["epochs=3", "width=8"])
    fitted = fit(recipe, TABLE, FEATURES, Split(np.arange(70), TEST), 0)
    nodes = fitted.numbers(FEATURES, TEST)
    changes = joint.mirrored(fitted, nodes, find_references(fitted, TABLE, FEATURES, TEST))
    np.testing.assert_allclose(changes[:, 0], changes[:, 1], atol=1e-5)
    np.testing.assert_allclose(changes[:, 2], changes[:, 3], atol=1e-5)
    assert np.abs(changes[:, 1]).mean() > np.abs(changes[:, 3]).mean() > 0


def test_compare_and_set_aside(joint: Any) -> None:
    true = TABLE.distributions
    wrong = np.roll(true, 1, axis=1)
    groups = TABLE.codes("theme")
    found = joint.compare(TABLE, [true, true], [wrong, wrong], groups, draws=50)
    assert found["srcc"][1] > 0 > found["emd2"][2] and found["srcc"][1] <= found["srcc"][0]
    assert joint.compare(TABLE, [wrong], [wrong], groups, draws=20)["emd2"] == (0.0, 0.0, 0.0)
    aside = joint.set_aside(TABLE, "theme")
    chosen = set(groups[aside])
    assert chosen.isdisjoint(groups[~aside]) and len(chosen) == len(set(groups)) // 2
    np.testing.assert_array_equal(aside, joint.set_aside(TABLE, "theme"))
