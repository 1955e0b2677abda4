"""More rated photos in a trained model's pool: nothing is learned again, and they are really consulted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import made
from milnet.annotations import Table
from milnet.artifacts import read_json, write_json, write_text
from milnet.checkpoints import finish_model, load_model, save_model
from milnet.doubt import Doubt
from milnet.errors import ArtifactError, LeakError, NumericError, UsageError
from milnet.evaluation import evaluate, find_references, predict_rows
from milnet.features import FeatureSet
from milnet.growing import add_to_pool
from milnet.model.votes import Votes
from milnet.pool import RatedPool
from milnet.recipe import Recipe, load_recipe
from milnet.recipes import Model, doubt_of_votes, fit
from milnet.scoring import Score, Scorer
from milnet.splits import Split

Floats = NDArray[np.float64]
QUICK = ("width=8", "depth=1", "epochs=4", "patience=2", "batch=32", "calibration_folds=2")
TABLE = made.table(120)
# A model of the first 60, the next 40 to be added, in two parts; 20 to predict. All have photos of each theme.
OLD, NEW, TEST = (np.arange(*ends) for ends in ((0, 60), (60, 100), (100, 120)))
FIRST, SECOND = NEW[:15], NEW[15:]


def features_of(table: Table) -> FeatureSet:
    """Those of `made`, which say that the last 8 columns are the backbone's last layer."""
    features = made.features(table)
    nodes = {**features.config["nodes"], "extraction": {"ranges": {"last": [16, 24]}}}
    return replace(features, config={**features.config, "nodes": nodes})


FEATURES = features_of(TABLE)


def recipe(name: str = "votes", *settings: str) -> Recipe:
    return load_recipe(name, [*QUICK, *settings])


def trained(chosen: Recipe, group: str | None = None, *, calibrate: bool = True) -> Model:
    return fit(chosen, TABLE, FEATURES, Split(OLD, TEST, group), 0, calibrate=calibrate)


@pytest.fixture(scope="module")
def votes() -> Model:
    return trained(recipe())


@pytest.fixture(scope="module")
def published() -> Model:
    return trained(recipe("published"))


def grown(model: Model, rows: NDArray[np.int64] = NEW, **other: Any) -> Model:
    return add_to_pool(model, other.get("table", TABLE), other.get("features", FEATURES), rows)[0]


def predictions(model: Model, rows: NDArray[np.int64] = TEST) -> Floats:
    return predict_rows(model, TABLE, FEATURES, rows)


def by_hand(model: Model, rows: NDArray[np.int64]) -> Model:
    """The same network beside a pool made of the table's `rows`."""
    return replace(model, pool=RatedPool.of(TABLE, FEATURES, rows, model.group))


def other_table(name: str = "other", **source: Any) -> Table:
    """Other photos of the same kind under another name, with ids of their own."""
    return replace(
        TABLE.take(NEW), name=name, ids=tuple(f"x{i}" for i in range(len(NEW))), source=source, images=(), groups=()
    )


def part_of(features: FeatureSet, rows: NDArray[np.int64], pixels: Callable[[int], str] | None = None) -> FeatureSet:
    return replace(
        features,
        semantic=features.semantic[rows],
        nodes=features.nodes[rows],
        pixels=tuple(pixels(i) if pixels else features.pixels[row] for i, row in enumerate(rows)),
        readable=features.readable[rows],
    )


def scores(model: Model, rows: NDArray[np.int64] = TEST) -> list[Score]:
    scorer = Scorer(model, made.NoBackbone(), made.NoBackbone(), "digest")  # type: ignore[arg-type]  # no photo is seen
    return scorer.score_features(
        FEATURES.nodes[rows], FEATURES.semantic[rows].astype(np.float32), photos=[TABLE.ids[row] for row in rows]
    )


def same_doubt(a: Doubt, b: Doubt, *, factor: float) -> None:
    np.testing.assert_allclose(a.percentiles, b.percentiles, rtol=0, atol=1e-6)
    np.testing.assert_allclose(a.nearest, b.nearest, rtol=0, atol=1e-6)
    assert a.line is not None and b.line is not None and a.interval is not None and b.interval is not None
    np.testing.assert_allclose(a.line, b.line, rtol=0, atol=1e-6)
    assert a.interval.keys() == b.interval.keys()
    for name, numbers in a.interval.items():
        least = {"factor": factor, "coefficients": 1e-4}.get(name, 1e-6)
        np.testing.assert_allclose(numbers, b.interval[name], rtol=0, atol=least)
    assert not a.stale and not b.stale


# ---- what is consulted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("references", ["all", "3"])
def test_two_steps_are_as_good_as_one(references: str) -> None:
    model = trained(recipe("votes", f"references={references}"))
    at_once, stepwise = grown(model), grown(grown(model, FIRST), SECOND)
    backwards = grown(grown(model, SECOND), FIRST)
    expected = predictions(at_once)
    assert np.abs(expected - predictions(model)).max() > 0.01
    for other in (stepwise, backwards, grown(model, NEW[::-1])):
        assert sorted(other.pool.ids) == sorted(at_once.pool.ids)
        assert set(other.seen) == set(at_once.seen)
        assert len(other.seen) == 100
        np.testing.assert_allclose(predictions(other), expected, rtol=0, atol=1e-6)
        # the folds behind the factor of the interval go by the order of the pool
        same_doubt(other.doubt, at_once.doubt, factor=1e-5 if other is stepwise else 0.5)


def process(model: Model, rows: NDArray[np.int64]) -> Floats:
    """What the votes of the whole pool give for photos of the table: an independent Gaussian process, in numpy."""
    state = {name: x.double().numpy() for name, x in model.network.state_dict().items()}
    pool, network = model.pool, model.network
    assert isinstance(network, Votes) and network.last == (16, 24)

    def squared(x: Floats, y: Floats) -> Floats:
        """Of the distances of all nodes and of the last layer, as directions."""
        total = np.zeros((len(x), len(y)))
        whole = [np.clip((z - state["own.standardise.mean"]) / state["own.standardise.scale"], -8, 8) for z in (x, y)]
        for scale, (a, b) in zip(state["scale"], (whole, (x[:, 16:], y[:, 16:])), strict=True):
            a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
            total += scale * ((a[:, None] - b[None]) ** 2).sum(2)
        return total

    nodes, photos = pool.nodes[pool.rows].astype(float), FEATURES.nodes[rows].astype(float)
    g = float(state["sharpness"])
    covariance = np.exp(-g * squared(nodes, nodes))
    covariance += np.diag(state["noise"] + (1 - np.exp(-g)) * state["sampling"] / pool.totals)
    near = np.exp(-g * squared(photos, nodes))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (photos[:, -8:], nodes[:, -8:]))
    w, v = np.zeros_like(near), np.ones((len(near), 1))
    for i, keep in enumerate(x @ y.T <= 0.97):  # what is the photo itself is not asked
        alike = np.flatnonzero(keep)[np.argsort(-near[i, keep])]
        for some in (alike, alike[:16]):  # the mean of two readings
            one = np.linalg.solve(covariance[np.ix_(some, some)], near[i, some])
            w[i, some] += one / 2
            v[i] -= one @ near[i, some] / 2
    with torch.no_grad():
        own = network.own(torch.from_numpy(FEATURES.nodes[rows])).double().exp().numpy()
    base = state["base"]
    return np.asarray(base + v * (own - base) + (1 - v) * (w @ (pool.distributions - base)))


def test_the_new_votes_are_consulted(votes: Model) -> None:
    """As by an independent Gaussian process over the larger pool; the smaller one gives something else."""
    larger = grown(votes)
    assert len(larger.pool) == 100
    np.testing.assert_array_equal(larger.pool.distributions, TABLE.distributions[:100])
    found, expected = predictions(larger), process(larger, TEST)
    inside = (expected > 1e-4).all(1)  # where no share is negative, nothing is tilted
    assert inside.sum() > 5
    np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found @ TABLE.values, (expected @ TABLE.values).clip(1, 5), rtol=0, atol=1e-3)
    assert np.abs(found - process(votes, TEST)).max() > 0.01
    changed = replace(TABLE, votes=TABLE.votes.copy())
    changed.votes[NEW[0]] = changed.votes[NEW[0]][::-1]
    assert np.abs(predictions(grown(votes, table=changed)) - found).max() > 1e-3


@pytest.mark.parametrize("name", ["votes", "published"])
@pytest.mark.parametrize("references", ["all", "3"])
def test_it_is_the_pool_made_by_hand(name: str, references: str) -> None:
    if (name, references) == ("published", "all"):
        references = "5"
    model = trained(recipe(name, f"references={references}"), calibrate=False)
    rows = np.concatenate([OLD, NEW])
    larger, expected = grown(model), predictions(by_hand(model, rows))
    np.testing.assert_allclose(predictions(larger), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - predictions(model)).max() > 1e-3
    assert larger.pool.near_duplicate == model.pool.near_duplicate
    found = larger.find(FEATURES.semantic[TEST])
    assert found is not None
    assert found.index.shape[1] == {"3": 3, "5": 5, "all": 100}[references]
    assert (found.index >= 60).any()


def test_the_networks_stay_as_they_are(votes: Model) -> None:
    before = {name: x.clone() for name, x in votes.network.state_dict().items()}
    pool, doubt, expected = votes.pool, votes.doubt, predictions(votes)
    larger = grown(votes)
    after = larger.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert votes.pool is pool and votes.doubt is doubt and len(votes.pool) == 60 and len(votes.seen) == 60
    predictions(larger)
    np.testing.assert_array_equal(predictions(votes), expected)  # and the old model works on, beside the new one
    assert not larger.network.training


# ---- who comes in ----------------------------------------------------------------------------------------------------


def test_known_photos_and_unreadable_ones_stay_out(votes: Model) -> None:
    pixels = list(FEATURES.pixels)
    pixels[61] = pixels[5]  # in the pool under another id
    pixels[70] = pixels[66]  # twice inside the addition
    pixels[80] = pixels[81] = ""  # unknown pixels are nobody's
    readable = FEATURES.readable.copy()
    readable[75] = False
    features = replace(FEATURES, pixels=tuple(pixels), readable=readable)
    rows = np.array([3, 61, 66, 70, 75, 80, 81, 66])
    larger, told = add_to_pool(votes, TABLE, features, rows)
    assert told.added == ("photo066", "photo080", "photo081")
    assert told.known == ("photo003", "photo061", "photo070", "photo066")
    assert told.unreadable == ("photo075",)
    pool = larger.pool
    assert pool.ids == (*votes.pool.ids, *told.added)
    assert {
        len(part) for part in (pool, pool.pixels, pool.groups, pool.totals, pool.rows, pool.nodes, pool.semantic)
    } == {63}
    assert pool.alone is not None and len(pool.alone) == 63
    np.testing.assert_array_equal(pool.distributions[60:], TABLE.distributions[[66, 80, 81]])
    np.testing.assert_array_equal(pool.nodes[60:], FEATURES.nodes[[66, 80, 81]])


def test_nothing_new_is_the_same_model(votes: Model) -> None:
    same, told = add_to_pool(votes, TABLE, FEATURES, OLD[:7])
    assert same is votes
    assert (told.added, told.known) == ((), TABLE.ids[:7])
    assert add_to_pool(votes, TABLE, FEATURES, OLD[:0]) == (votes, type(told)((), (), ()))
    larger = grown(votes)
    assert add_to_pool(larger, TABLE, FEATURES, NEW)[0] is larger


def test_photos_of_another_table(votes: Model) -> None:
    """They are named after it, and the model never mistakes their ids for its own."""
    other = replace(other_table(), ids=tuple(TABLE.ids[: len(NEW)]))  # the ids of photos that are in the pool
    features = part_of(FEATURES, NEW)
    larger, told = add_to_pool(votes, other, features, np.arange(30))
    assert told.added == tuple(f"other:{id_}" for id_ in TABLE.ids[:30])
    assert larger.seen[60:] == tuple((f"other:{other.ids[i]}", features.pixels[i]) for i in range(30))
    np.testing.assert_array_equal(larger.pool.distributions, grown(votes, NEW[:30]).pool.distributions)
    again, told = add_to_pool(larger, other, features, np.arange(40))  # the second time too
    assert (len(told.added), len(told.known)) == (10, 30)
    nameless = replace(features, pixels=("",) * len(NEW))
    assert add_to_pool(again, other, nameless, np.arange(40))[0] is again
    with pytest.raises(LeakError, match="30 of 40"):
        evaluate(larger, other, nameless, np.arange(40), split="x")


def test_ids_may_be_those_of_the_model_s_table(votes: Model) -> None:
    """As EVA's are AVA's: a photo of the pool is known by its id, whatever its pixels."""
    rows = np.array([0, 1, 60, 61])
    eva = replace(TABLE.take(rows), name="eva", source={"ids": "made"})
    features = part_of(FEATURES, rows, lambda i: f"eva{i}")
    larger, told = add_to_pool(votes, eva, features, np.arange(4))
    assert told.known == ("eva:photo000", "eva:photo001")
    assert told.added == ("eva:photo060", "eva:photo061")
    with pytest.raises(LeakError, match="2 of 3 test photos"):
        evaluate(larger, TABLE, FEATURES, np.array([60, 61, 110]), split="test")
    strange = replace(eva, source={})
    assert len(add_to_pool(votes, strange, features, np.arange(4))[1].added) == 4


@pytest.mark.parametrize("name", ["made", "other"])
def test_groups_act_for_new_photos_too(name: str) -> None:
    model = trained(recipe(), "theme")
    table = TABLE if name == "made" else replace(TABLE, name=name)
    features = FEATURES if name == "made" else part_of(FEATURES, np.arange(120))
    larger = grown(model, table=table, features=features)
    theme = np.array(TABLE.columns["theme"])
    if name != "made":  # another table's groups are others; its own photos still do not consult each other
        theme = np.concatenate([theme[:60], [f"{name}:{one}" for one in theme[60:]]])
    assert larger.pool.groups == tuple(theme[:100])
    pool = larger.pool
    found = larger.find(
        pool.semantic, rows=pool.rows, ids=list(pool.ids), pixels=list(pool.pixels), groups=list(pool.groups)
    )
    assert found is not None
    row, column = np.nonzero(found.index >= 0)
    assert len(row) > 5000
    assert not (theme[row] == theme[found.index[row, column]]).any()
    references = find_references(larger, table, features, TEST)
    assert references is not None
    row, column = np.nonzero(references.index >= 60)
    assert len(row)
    assert not (theme[TEST][row] == theme[references.index[row, column]]).any()


def test_a_pool_too_large_to_be_consulted_as_a_whole(votes: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("milnet.recipe", "milnet.growing"):
        monkeypatch.setattr(f"{module}.WHOLE", 80)
    assert votes.recipe.whole and len(votes.pool) == 60
    larger = grown(votes, np.arange(60, 100))
    assert larger.recipe.references == 64 and len(larger.pool) == 100
    p = predict_rows(larger, TABLE, FEATURES, TEST)
    assert np.abs(p - predict_rows(votes, TABLE, FEATURES, TEST)).max() > 1e-3
    with pytest.raises(UsageError, match="a pool of 100 photos cannot be consulted as a whole"):
        predict_rows(replace(larger, recipe=votes.recipe), TABLE, FEATURES, TEST)


def test_a_table_without_the_group_column_has_none(votes: Model) -> None:
    model = trained(recipe(), "theme", calibrate=False)
    bare = replace(other_table(), columns={})
    assert set(grown(model, np.arange(5), table=bare, features=part_of(FEATURES, NEW)).pool.groups[60:]) == {""}
    assert set(grown(votes).pool.groups) == {""}  # and where groups do not act, nobody has one


def test_what_does_not_fit_is_refused(votes: Model) -> None:
    single = trained(recipe("single"), calibrate=False)
    with pytest.raises(UsageError, match="scores photos alone"):
        grown(single)
    shifted = replace(TABLE, values=TABLE.values + 1)
    with pytest.raises(UsageError, match=r"predicts values \[1.0, .* has \[2.0"):
        grown(votes, table=shifted)
    for role in ("semantic", "nodes"):
        config = {**FEATURES.config, role: {**FEATURES.config[role], "span": [0, 7]}}
        with pytest.raises(ArtifactError, match=f"trained on {role} features"):
            grown(votes, features=replace(FEATURES, config=config))
    broken = replace(TABLE, votes=TABLE.votes.copy())
    broken.votes[NEW[3]] = np.nan
    with pytest.raises(NumericError, match="'photo063'"):
        grown(votes, table=broken)
    assert len(votes.pool) == 60


@pytest.mark.parametrize("name", ["votes", "published"])
def test_added_photos_are_no_test_photos(name: str, votes: Model, published: Model) -> None:
    larger = grown({"votes": votes, "published": published}[name], FIRST)
    assert len(evaluate(larger, TABLE, FEATURES, TEST, split="test").rows) == 20
    with pytest.raises(LeakError, match="1 of 3 test photos were seen"):
        evaluate(larger, TABLE, FEATURES, np.array([FIRST[0], *TEST[:2]]), split="test")
    pixels = list(FEATURES.pixels)
    pixels[TEST[4]] = pixels[FIRST[0]]
    with pytest.raises(LeakError, match=TABLE.ids[TEST[4]]):
        evaluate(larger, TABLE, replace(FEATURES, pixels=tuple(pixels)), TEST, split="test")
    evaluate(larger, TABLE, FEATURES, SECOND, split="test")  # those that were not added may be tested


# ---- what is known of doubt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("references=3",), ("refit=false", "learning_rate=1e-3")])
def test_doubt_is_made_anew(settings: tuple[str, ...]) -> None:
    model = trained(recipe("votes", *settings))
    larger = grown(model)
    known = len(model.doubt.percentiles)
    assert known == (9 if "refit=false" in settings else 60)
    assert len(larger.doubt.percentiles) == len(larger.doubt.nearest) == known + 40
    assert not larger.doubt.stale
    # What the own network says of a new photo is honest; of an old one it stays what the folds' networks said.
    assert isinstance(model.network, Votes) and model.pool.alone is not None and larger.pool.alone is not None
    with torch.no_grad():
        own = model.network.own(torch.from_numpy(FEATURES.nodes[NEW])).double().exp().numpy()
        fitted = model.network.own(torch.from_numpy(FEATURES.nodes[OLD])).double().exp().numpy()
    np.testing.assert_allclose(larger.pool.alone[60:], own, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(larger.pool.alone[:60], model.pool.alone)
    assert np.nanmax(np.abs(larger.pool.alone[:60] - fitted)) > 1e-3 or "refit=false" in settings
    expected = doubt_of_votes(replace(by_hand(model, np.arange(100)), pool=replace(
        RatedPool.of(TABLE, FEATURES, np.arange(100)), alone=np.concatenate([model.pool.alone, own])
    )))  # fmt: skip
    np.testing.assert_allclose(larger.doubt.percentiles, expected.percentiles, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(larger.doubt.nearest, expected.nearest)
    missing = set(model.doubt.percentiles.round(6)) - set(larger.doubt.percentiles.round(6))
    assert len(missing) > known / 2  # the old photos are beside the new ones now


def test_a_photo_s_own_votes_tell_nothing_of_its_doubt(votes: Model) -> None:
    """New votes change the tables only by what the others say."""
    changed = replace(TABLE, votes=TABLE.votes.copy())
    changed.votes[NEW[7]] = changed.votes[NEW[7]][::-1]
    one, two = grown(votes, NEW[7:8]), grown(votes, NEW[7:8], table=changed)
    # 61 scores, one of them that of the new photo: the same in both, though all the others may hear of its votes
    assert one.pool.alone is not None and two.pool.alone is not None
    np.testing.assert_array_equal(one.pool.alone[60], two.pool.alone[60])
    own = float(predictions(votes, NEW[7:8])[0] @ TABLE.values)  # beside the old pool alone
    for larger in (one, two):
        assert np.abs(larger.doubt.percentiles - own).min() < 1e-6
    assert np.abs(one.doubt.percentiles - two.doubt.percentiles).max() > 1e-4


def test_a_photo_that_was_trained_on_says_nothing_alone(votes: Model) -> None:
    """By id or by pixels: it comes into the pool, but what the network says of it is not honest."""
    pixels = [*FEATURES.pixels[:90], "seen", *FEATURES.pixels[91:]]
    model = replace(votes, seen=(*votes.seen, ("made:photo072", ""), ("elsewhere:z", "seen")))
    larger, told = add_to_pool(model, TABLE, replace(FEATURES, pixels=tuple(pixels)), NEW)
    assert len(told.added) == 40
    assert larger.pool.alone is not None
    assert np.flatnonzero(np.isnan(larger.pool.alone[:, 0])).tolist() == [72, 90]
    assert len(larger.doubt.percentiles) == 98
    assert np.isfinite(larger.doubt.percentiles).all()
    assert np.isfinite(predictions(larger)).all()


def told(score: Score) -> dict[str, bool]:
    return {name: getattr(score, name) is not None for name in ("percentile", "low", "high", "unlike")}


def test_tables_of_an_old_pool_are_given_no_longer(published: Model) -> None:
    assert all(all(told(score).values()) for score in scores(published))
    larger = grown(published)
    assert larger.doubt.stale
    for score in scores(larger):
        assert not any(told(score).values())
        assert score.spread == pytest.approx(np.sqrt(np.array(score.distribution) @ (TABLE.values - score.score) ** 2))
    assert len(larger.doubt.percentiles) == 60  # what they were is not thrown away
    assert grown(grown(published, FIRST), SECOND).doubt.stale


def test_votes_keep_their_doubt(votes: Model) -> None:
    assert all(all(told(score).values()) for model in (votes, grown(votes)) for score in scores(model))


def test_what_was_never_calibrated_does_not_become_stale() -> None:
    for name in ("votes", "published"):
        larger = grown(trained(recipe(name), calibrate=False))
        assert larger.pool.alone is None
        assert not larger.doubt.stale
        assert len(larger.doubt.percentiles) == 0
        assert not any(told(scores(larger)[0]).values())


# ---- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["votes", "published"])
def test_a_grown_model_is_saved(name: str, votes: Model, published: Model, tmp_path: Path) -> None:
    larger = grown({"votes": votes, "published": published}[name])
    manifest = save_model(larger, tmp_path / "m")
    assert manifest.counts["pool"] == 100
    assert ("pool/alone.npy" in manifest.files) == (name == "votes")
    loaded, again = load_model(tmp_path / "m")
    assert again.digest == manifest.digest
    assert loaded.pool.ids == larger.pool.ids and loaded.pool.pixels == larger.pool.pixels
    assert loaded.seen == larger.seen
    np.testing.assert_array_equal(predictions(loaded), predictions(larger))
    assert loaded.doubt.to_json() == larger.doubt.to_json()
    # grown, saved, and grown again: as if at once
    save_model(grown(larger, TEST[:5]), tmp_path / "more")
    rest = grown(loaded, TEST[:5])
    rows = TEST[5:]
    np.testing.assert_allclose(
        predictions(rest, rows), predictions(load_model(tmp_path / "more")[0], rows), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(rest.doubt.percentiles, grown(larger, TEST[:5]).doubt.percentiles, rtol=0, atol=1e-6)


def older(folder: Path, model: Model, change: Callable[[Path], None]) -> Path:
    """A saved model whose files are changed to what another version would have written."""
    manifest = save_model(model, folder)
    change(folder)
    (folder / "manifest.json").unlink()
    finish_model(folder, manifest.config, manifest.inputs, manifest.counts, manifest.notes)
    return folder


def percentiles_alone(folder: Path) -> None:
    write_json(folder / "calibration.json", {"percentiles": read_json(folder / "calibration.json")["percentiles"]})
    (folder / "pool" / "alone.npy").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["votes", "published", "single"])
@pytest.mark.parametrize("references", [4, None])
def test_older_models_load(name: str, references: int | None, tmp_path: Path) -> None:
    """calibration.json with percentiles alone, no alone.npy, a recipe with fewer fields."""
    model = trained(recipe(name, "references=4"))

    def change(folder: Path) -> None:
        percentiles_alone(folder)
        written = read_json(folder / "recipe.json")
        for field in ("variant", "reducer", "precision", *(() if references else ("references",))):
            del written[field]
        if references is None and name != "single":
            written["references"] = 4
        write_json(folder / "recipe.json", written)

    loaded, _ = load_model(older(tmp_path / "m", model, change))
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    found = scores(loaded)[0]
    assert told(found) == {"percentile": True, "low": False, "high": False, "unlike": False}
    if name == "single":
        assert found.references == ()
        return
    assert not loaded.recipe.whole
    larger = grown(loaded)
    assert larger.doubt.stale and larger.pool.alone is None
    assert not any(told(scores(larger)[0]).values())


@pytest.mark.parametrize(
    "calibration", ["[]", "{}", '{"percentiles": [1], "line": [1]}', '{"percentiles": [1], "interval": [2]}']
)
def test_damaged_tables_are_refused(calibration: str, published: Model, tmp_path: Path) -> None:
    folder = older(tmp_path / "m", published, lambda at: write_text(at / "calibration.json", calibration))
    with pytest.raises(ArtifactError, match="does not hold together"):
        load_model(folder)
