"""Any photo -> its score: the same one each time, files and arrays alike, bad photos apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
from PIL import Image

import made
import milnet
from milnet.checkpoints import save_model
from milnet.errors import ArtifactError, ImageError, UsageError, WeightsError
from milnet.extraction import Extractor
from milnet.features import load_feature_set
from milnet.files import score_files
from milnet.library import find_photos
from milnet.outputs import columns, write_scores
from milnet.preprocess import Preprocess
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.scoring import Score, Scorer, check_stars, ranked
from milnet.splits import Split
from milnet.storing import extract

pytestmark = made.needs_timm
RECIPE = Recipe(name="published", model="graph", width=8, depth=1, epochs=3, patience=3, batch=16, calibration_folds=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, a graph `model` trained on them, and a `single` one."""
    from milnet.backbones import load_backbone

    folder = tmp_path_factory.mktemp("scoring")
    table = replace(made.table(60), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    extractor = Extractor.build(load_backbone("timm/test_resnet", "random:0"), Preprocess(size=64), workers=0)
    extract(table, folder / "data" / "features" / "f", extractor, weights="random:0")
    features = load_feature_set(folder / "data", table)
    rows = np.arange(len(table))
    for name, recipe in (("model", RECIPE), ("single", replace(RECIPE, name="single", model="single"))):
        save_model(fit(recipe, table, features, Split(rows, rows[:0]), 0, calibrate=True), folder / name)
    (folder / "new").mkdir()
    for i in range(12):
        made.photo(1000 + i, *[(96, 72), (72, 96), (160, 64)][i % 3]).save(folder / "new" / f"n{i:02}.png")
    return folder


def test_scores(place: Path) -> None:
    scorer = Scorer.load(place / "model")
    paths = sorted((place / "new").iterdir())
    scores = scorer.score(paths)
    assert [score.photo for score in scores] == [str(path) for path in paths]
    values = np.arange(1, 6)
    for score in scores:
        p = np.array(score.distribution)
        assert p.sum() == pytest.approx(1, abs=1e-9)
        assert score.score == pytest.approx(p @ values, abs=1e-9)
        deviation = np.sqrt(p @ (values - score.score) ** 2)
        assert score.spread == pytest.approx(float(scorer.model.doubt.spread(deviation[None])[0]), abs=1e-9)
        assert score.percentile is not None and score.low is not None and score.high is not None
        assert 0 <= score.percentile <= 100
        assert 1 <= score.low < score.score < score.high <= 5
        assert score.unlike is not None and 0 <= score.unlike <= 1
        nearest = np.array([score.references[0].similarity])
        assert score.unlike == pytest.approx(float(scorer.model.doubt.unlike(nearest)[0]), abs=2 / 60)  # rounded
        assert len(score.references) == 4
        parts = score.base + score.own + sum(r.influence for r in score.references) + score.rest
        assert parts == pytest.approx(score.score, abs=1e-9)
    order = np.argsort([score.score for score in scores])
    assert scores[order[0]].folder_percentile == 0
    assert scores[order[-1]].folder_percentile == 100
    reference = scores[0].references[0]
    row = made.table(60).ids.index(reference.id)
    np.testing.assert_allclose(reference.votes, made.table(60).votes[row], atol=1e-6)


def test_paths_images_arrays_and_bytes_score_the_same(place: Path) -> None:
    scorer = Scorer.load(place / "model")
    path = place / "new" / "n01.png"
    with Image.open(path) as image:
        picture = image.copy()
    found = [scorer.score(source)[0] for source in (path, str(path), picture, np.asarray(picture), path.read_bytes())]
    assert len({score.score for score in found}) == 1
    assert found[2].photo == "<Image 0>"


def test_the_same_photo_scores_the_same_in_any_company(place: Path) -> None:
    paths = sorted((place / "new").iterdir())
    expected = {score.photo: score for score in Scorer.load(place / "model", batch=4, workers=0).score(paths)}
    rng = np.random.default_rng(0)
    for batch in (1, 3, 16):
        for workers in (0, 2):
            scorer = Scorer.load(place / "model", batch=batch, workers=workers)
            shuffled = [paths[i] for i in rng.permutation(len(paths))]
            for score in scorer.score(shuffled):
                assert score.score == pytest.approx(expected[score.photo].score, abs=1e-5)
                assert [r.id for r in score.references] == [r.id for r in expected[score.photo].references]


def test_invariance_on_the_real_backbone(test_data: Path, tmp_path: Path) -> None:
    """Real weights, real photos, mixed shapes; the pool's stored float16 features against fresh ones."""
    from milnet.annotations import Problems
    from milnet.backbones import load_backbone
    from milnet.datasets import read_dataset

    weights = test_data / "weights" / "mobilenetv2_100.safetensors"
    table = read_dataset("oasis", test_data / "data" / "oasis", Problems()).table.take(range(0, 677, 17))
    extractor = Extractor.build(load_backbone("timm/mobilenetv2_100", str(weights)), Preprocess(size=160), batch=4)
    extract(table, tmp_path / "features" / "f", extractor, weights=str(weights))
    features = load_feature_set(tmp_path, table)
    rows = np.arange(len(table))
    save_model(fit(RECIPE, table, features, Split(rows, rows[:0]), 0), tmp_path / "model")
    paths = sorted((test_data / "data" / "photos" / "bsds500").glob("*.jpg"))[:9]
    paths += sorted((test_data / "data" / "photos" / "imagenet_sample").glob("*.*"))[:10]
    paths.append(table.image_path(0))
    expected = {s.photo: s.score for s in Scorer.load(tmp_path / "model", batch=4, workers=0).score(paths)}
    assert np.std(list(expected.values())) > 0.01
    rng = np.random.default_rng(0)
    for batch in (1, 3, 16):
        for workers in (0, 2):
            found = Scorer.load(tmp_path / "model", batch=batch, workers=workers).score(
                [paths[i] for i in rng.permutation(len(paths))]
            )
            for score in found:
                assert score.score == pytest.approx(expected[score.photo], abs=1e-5)


def test_a_pool_photo_does_not_consult_itself(place: Path) -> None:
    scorer = Scorer.load(place / "model")
    for score in scorer.score(sorted((place / "photos").iterdir())[:10]):
        assert Path(score.photo).stem not in [reference.id for reference in score.references]


def test_single_consults_nobody(place: Path) -> None:
    score = Scorer.load(place / "single").score(place / "new" / "n00.png")[0]
    assert score.references == ()
    assert score.base + score.own == pytest.approx(score.score, abs=1e-9)
    assert score.rest == pytest.approx(0, abs=1e-9)
    assert score.low is not None and score.unlike is not None  # like whom it is, is known all the same
    assert not (place / "single" / "pool" / "nodes.npy").exists()


def test_a_bad_photo(place: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(place / "model")
    (tmp_path / "bad.jpg").write_text("no image")
    good = place / "new" / "n00.png"
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        scorer.score([good, tmp_path / "bad.jpg"])
    found = score_files(scorer, [tmp_path / "bad.jpg", good, tmp_path / "gone.jpg"])
    assert [score.photo for score in found.scores] == [str(good)]
    assert found.forward == 1
    assert [failure.photo for failure in found.failures] == [str(tmp_path / "bad.jpg"), str(tmp_path / "gone.jpg")]


def test_loading_says_what_is_wrong(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Scorer.load(tmp_path / "none")
    with pytest.raises(WeightsError, match="are not those the features were made with"):
        Scorer.load(place / "model", weights="random:1")
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        Scorer.load(place / "model", weights=tmp_path / "gone.safetensors")
    assert milnet.Scorer is Scorer


def example(score: float, photo: str = "a.jpg", percentile: float | None = None) -> Score:
    return Score(
        photo, score, None, None, 1.0, percentile, None, None, None, (0.5, 0.5), 1.5, score - 1.5, (), 0.0, (1.0, 2.0),
        "m",
    )  # fmt: skip


def test_folder_percentiles() -> None:
    found = ranked([example(s) for s in (3.0, 1.0, 2.0, 2.0)])
    assert [score.folder_percentile for score in found] == [100.0, 0.0, 50.0, 50.0]
    assert ranked([example(1.0)])[0].folder_percentile is None
    copies = ranked([example(s) for s in (3.0, 1.0, 2.0, 2.0 + 1e-6)])  # one picture in two batches
    assert [score.folder_percentile for score in copies] == [100.0, 0.0, 50.0, 50.0]
    near = ranked([example(s) for s in (3.0, 1.0, 2.0, 2.0 + 1e-4)])
    assert [score.folder_percentile for score in near] == pytest.approx([100.0, 0.0, 100 / 3, 200 / 3])


def test_stars() -> None:
    """A photo at the percentile of a limit has the star; the limits are the user's; none without a percentile."""
    percentiles = [0.0, 9.9, 10.0, 50.0, 65.0, 90.0, 100.0]
    stars = lambda limits: [s.stars for s in ranked([example(1.0, percentile=p) for p in percentiles], limits)]  # noqa: E731
    assert stars((10, 35, 65, 90)) == [1, 1, 2, 3, 4, 5, 5]
    assert stars((50,)) == [1, 1, 1, 2, 2, 2, 2]
    assert ranked([example(1.0)])[0].stars is None
    given = lambda limits, of: [s.stars for s in ranked([example(x) for x in (1.0, 2.5, 3.0)], limits, of)]  # noqa: E731
    assert given((2.5,), "score") == [1, 2, 2]
    assert given((40, 60), "folder_percentile") == [1, 2, 3]
    assert check_stars((-1, 700), "score") == (-1.0, 700.0)
    with pytest.raises(UsageError, match="expected ascending scores, for example"):
        check_stars((3, 2), "score")
    for wrong in ((), (50, 50), (60, 40), (0, 50), (50, 100), (float("nan"),)):
        with pytest.raises(UsageError, match="expected ascending percentiles between 0 and 100"):
            check_stars(wrong)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_outputs(suffix: str, place: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(place / "model")
    scores = scorer.score(sorted((place / "new").iterdir()))
    path = tmp_path / f"scores{suffix}"
    write_scores(path, scores, scorer.model.values.tolist())
    expected = columns(scorer.model.values.tolist())
    assert expected[12:17] == ["p_1", "p_2", "p_3", "p_4", "p_5"]
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert list(rows[0]) == expected
        assert rows[0]["references"][0]["id"] == scores[0].references[0].id
    else:
        frame = polars.read_csv(path) if suffix == ".csv" else polars.read_parquet(path)
        assert frame.columns == expected
        rows = frame.to_dicts()
        assert json.loads(rows[0]["references"])[0]["similarity"] == scores[0].references[0].similarity
    assert [row["photo"] for row in rows] == [score.photo for score in scores]
    np.testing.assert_allclose([row["score"] for row in rows], [score.score for score in scores], atol=1e-12)
    for name in ("low", "high", "spread", "percentile", "stars", "unlike", "base", "own", "rest"):
        np.testing.assert_allclose([row[name] for row in rows], [getattr(s, name) for s in scores], atol=1e-12)
    write_scores(path, [example(1.5)], [1.0, 2.0])  # not calibrated
    if suffix == ".parquet":
        (row,) = polars.read_parquet(path).to_dicts()
    else:
        (row,) = [json.loads(path.read_text())] if suffix == ".jsonl" else polars.read_csv(path).to_dicts()
    assert row["low"] is row["high"] is row["unlike"] is row["percentile"] is row["stars"] is None
    write_scores(path, [], [1.0, 2.0])  # no photo at all: still a table
    with pytest.raises(UsageError, match=r"expected a name ending in \.csv, \.jsonl, \.parquet"):
        write_scores(tmp_path / "scores.txt", scores, [1.0])


def test_find_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "sub/c.webp", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    names = lambda found: [path.relative_to(tmp_path).as_posix() for path in found.photos]  # noqa: E731
    assert names(find_photos([tmp_path])) == ["a.png", "b.JPG", "sub/c.webp"]
    assert names(find_photos([tmp_path / "notes.txt", tmp_path / "a.png", tmp_path])) == [
        "notes.txt", "a.png", "b.JPG", "sub/c.webp",
    ]  # fmt: skip
    assert names(find_photos([str(tmp_path / "*.png")])) == ["a.png"]
    with pytest.raises(UsageError, match="there is no such file, folder or pattern"):
        find_photos([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no photos in"):
        find_photos([tmp_path / "empty"])


def test_a_score_does_not_depend_on_the_others(test_data: Path) -> None:
    """One photo alone, in a pair, in a folder: the same score. Sums of few rows are made in another order."""
    scorer = Scorer.load("pocket")
    photos = find_photos([str(test_data / "data" / "oasis" / "images")]).photos[:40]
    together = [score.score for score in scorer.score(photos)]
    alone = [scorer.score(photo)[0].score for photo in photos]
    pairs = [score.score for i in range(0, 40, 2) for score in scorer.score(photos[i : i + 2])]
    assert np.allclose(alone, together, atol=1e-12)
    assert np.allclose(pairs, together, atol=1e-12)
