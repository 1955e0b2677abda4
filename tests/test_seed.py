"""The seed's commands on a small AVA: train and test by the name of the data set, from photo files to metrics."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import made
from milnet.annotations import load_table
from milnet.artifacts import read_manifest
from milnet.checkpoints import load_model
from milnet.datasets.ava import seed_layout
from milnet.errors import ArtifactError, UsageError
from milnet.features import Features
from milnet.scoring import Scorer
from test_cli import milnet

pytestmark = made.needs_timm
N = 40
CHAIN = ["--backbone", "timm/test_resnet", "--weights", "random:0", "--size", "64",
         "--semantic-backbone", "timm/test_efficientnet", "--semantic-weights", "random:0"]  # fmt: skip
SMALL = [f"--set={x}" for x in ("width=8", "depth=1", "epochs=2", "batch=16", "calibration_folds=2")]


def ids() -> list[int]:
    return [1000 + 7 * i for i in range(N)]


def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    level = rng.normal(5, 1, N)
    return rng.poisson(60 * np.exp(-0.5 * (np.arange(1, 11) - level[:, None]) ** 2)) + 1


def seed_folder(root: Path, protocol: str, *, fractions: bool, test_name: str, nested: bool = True) -> Path:
    """A data root as the seed document has it; every fourth photo is tested."""
    lists = root / f"{protocol}_aesthetic_image_list" if nested else root
    lists.mkdir(parents=True)
    (root / "images").mkdir(exist_ok=True)
    votes, lines = counts(), []
    for i, (id_, row) in enumerate(zip(ids(), votes, strict=True)):
        made.photo(i, *[(96, 72), (72, 96)][i % 2]).save(root / "images" / f"{id_}.jpg", quality=95)
        shares = row / row.sum()
        mean = float(shares @ np.arange(1, 11))
        lines.append(
            f"{id_} {' '.join(f'{x:.10f}' for x in shares)} {mean:.6f}"
            if fractions
            else f"{i + 1} {id_} {' '.join(map(str, row))} 0 0 1"
        )
    (lists / f"AVA_{protocol}.txt").write_text("\n".join(lines) + "\n")
    (lists / f"train_{protocol}.txt").write_text("".join(f"{x}\r\n" for i, x in enumerate(ids()) if i % 4))
    (lists / test_name).write_text("".join(f"{x}\n" for i, x in enumerate(ids()) if i % 4 == 0))
    return root


@pytest.mark.parametrize(
    ("protocol", "fractions", "test_name", "nested"),
    [
        ("19928", True, "test_19998.txt", True),  # the name that the seed prints
        ("19928", False, "test_19928.txt", True),
        ("19998", True, "test_19998.txt", True),
        ("19998", False, "test_19998.txt", False),
    ],
)
def test_layouts(tmp_path: Path, protocol: str, fractions: bool, test_name: str, nested: bool) -> None:
    root = seed_folder(tmp_path / "root", protocol, fractions=fractions, test_name=test_name, nested=nested)
    labels, options = seed_layout(root, protocol)  # type: ignore[arg-type]
    assert labels.name == f"AVA_{protocol}.txt" and options.test_list is not None
    assert options.test_list.name == test_name and options.images == root / "images"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    root = seed_folder(tmp_path / "root", "19998", fractions=True, test_name="test_19998.txt")
    lists = root / "19998_aesthetic_image_list"
    (lists / "train_19998.txt").rename(lists / "x.txt")
    with pytest.raises(UsageError, match=r"expected the list of training photos in .*train_19998\.txt or ILG_train"):
        seed_layout(root, "19998")
    (lists / "x.txt").rename(lists / "train_19998.txt")
    shutil.rmtree(root / "images")
    assert seed_layout(root, "19998")[1].images is None
    said = milnet("import", "ava-19998", root, "-o", tmp_path / "data").stdout  # labels alone are imported all the same
    assert "photos: not looked for, no folder was named" in said
    where = ["--dataset", "ava-19998", "--dataroot", root, "-o", tmp_path / "model", *CHAIN]
    assert "the folder of the photos is not known: pass --images DIR" in milnet("train", *where, code=2).stderr
    assert "expected the folder of AVA" in milnet("train", *where[:3], tmp_path / "none", *where[4:], code=2).stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root, and a model trained on it by the seed's command: reducer, graph, two backbones."""
    folder = tmp_path_factory.mktemp("seed")
    seed_folder(folder / "root", "19928", fractions=False, test_name="test_19998.txt")
    said = train(folder, folder / "model").stdout
    assert "published on 30 photos" in said and "reducer of" in said
    return folder


def train(folder: Path, output: Path, *more: object, dataset: str = "AVA_19928", code: int = 0):  # type: ignore[no-untyped-def]
    where = ["--dataset", dataset, "--dataroot", folder / "root", "-o", output]
    return milnet("train", *where, *CHAIN, *SMALL, "--reduce-set=width=16", "--reduce-set=epochs=2", *more, code=code)


def test_the_chain_leaves_its_parts(place: Path) -> None:
    table, manifest = load_table(place / "model.data")
    assert manifest.config["source"]["protocol"] == "AVA 19928" and len(table) == N
    made_ = {path.name for path in (place / "model.data" / "features").iterdir()}
    assert made_ == {"timm-test_resnet", "timm-test_efficientnet", "timm-test_resnet-reduced"}
    model, _ = load_model(place / "model")
    assert model.reducer is not None and model.reducer.outputs == 48
    assert model.features["nodes"]["extraction"]["backbone"] == "timm/test_resnet"
    assert model.features["semantic"]["extraction"]["backbone"] == "timm/test_efficientnet"
    assert {name for name, _ in model.seen} == {f"ava:{x}" for i, x in enumerate(ids()) if i % 4}
    assert not (place / "model.run").exists() and not list((place / "model.data" / "features").glob(".*"))


def test_test_by_name(place: Path, tmp_path: Path) -> None:
    where = ["--dataset", "ava", "--dataroot", place / "root", "--eval_model", place / "model"]
    results = json.loads(milnet("test", *where, "-o", tmp_path / "results.json", "--json").stdout)
    assert results["photos"] == 10 and results["folds"]["label"] == "test"
    # on a fresh DATA everything is made again from the photos, by the model's own backbones and reducer
    again = json.loads(milnet("test", *where, "--data", tmp_path / "fresh", "--json").stdout)
    assert again["photos"] == 10
    for metric in ("srcc", "emd2"):
        assert abs(again["metrics"][metric]["mean"] - results["metrics"][metric]["mean"]) < 1e-3
    reduced = Features(tmp_path / "fresh" / "features" / "timm-test_resnet-reduced", load_table(tmp_path / "fresh")[0])
    assert reduced.width == 48


def test_directly_from_a_photo(place: Path) -> None:
    """Backbones, reducer, graph and pool: a photo file gives the distribution that the evaluation has for it."""
    scorer = Scorer.load(place / "model", workers=0)
    photo = place / "root" / "images" / f"{ids()[0]}.jpg"
    (score,) = scorer.score([photo])
    table, _ = load_table(place / "model.data")
    from milnet.evaluation import evaluate
    from milnet.features import load_feature_set

    names = {"semantic": "timm-test_efficientnet", "nodes": "timm-test_resnet-reduced"}
    features = load_feature_set(place / "model.data", table, **names)
    row = table.ids.index(str(ids()[0]))
    p = evaluate(scorer.model, table, features, np.array([row]), split="test").distributions[0, 0]
    np.testing.assert_allclose(score.distribution, p, rtol=0, atol=1e-3)
    assert len(score.references) == 4 and sum(score.distribution) == pytest.approx(1)
    # the same photo again, among others, in another order
    others = [place / "root" / "images" / f"{x}.jpg" for x in ids()[:7]]
    scores = {s.photo: s for s in scorer.score(others[::-1])}
    np.testing.assert_allclose(scores[str(photo)].distribution, score.distribution, rtol=0, atol=1e-5)


def test_a_stopped_chain_goes_on(place: Path, tmp_path: Path) -> None:
    """What is there is not made again, and the model is the same."""
    shutil.copytree(place / "model.data", tmp_path / "m.data")
    shutil.rmtree(tmp_path / "m.data" / "features" / "timm-test_resnet-reduced")
    (tmp_path / "root").symlink_to(place / "root")
    said = train(tmp_path, tmp_path / "m").stdout
    assert "imported already" in said and "reducer of" in said
    assert read_manifest(tmp_path / "m").files == read_manifest(place / "model").files


def test_misuse(place: Path, tmp_path: Path) -> None:
    root = ["--dataroot", place / "root"]
    for arguments, text in (
        (["train", "-o", tmp_path / "m"], "expected DATA, or --dataset NAME and --dataroot DIR"),
        (["train", "--dataset", "ava", "-o", tmp_path / "m"], "expected either DATA, or --dataset NAME and"),
        (["train", tmp_path, "--dataset", "ava", *root, "-o", tmp_path / "m"], "expected either DATA, or"),
        (["train", "--dataset", "ava", *root], "expected a MODEL folder to make: -o MODEL"),
        (["train", "--dataset", "avu", *root, "-o", tmp_path / "m"], "there is no format 'avu'"),
        (["train", "--dataset", "ava", *root, "-o", tmp_path / "m", "--maps", "all"], "expected auto, float16"),
        (["train", "--dataset", "ava", *root, "-o", tmp_path / "m", "--nodes", "x"], "the backbones decide"),
        (["train", "--dataset", "ava", *root, "-o", place / "model"], "exists already"),
        (["train", "--dataset", "ava-ilg", *root, "-o", tmp_path / "m", *CHAIN], "expected the labels in"),
        (["train", "--dataset", "ava", *root, "-o", tmp_path / "m", "--set", "widht=8"], "has no field 'widht'"),
        (["train", "--dataset", "ava", *root, "-o", tmp_path / "m", "--reduce-set", "x=8"], "has no field 'x'"),
        (
            ["train", "--dataset", "ava", *root, "-o", tmp_path / "m", *CHAIN[:-1], "none"],
            "expected a safetensors file",
        ),
        (["test", "--dataset", "ava", *root, "--eval_model", tmp_path], "expected a milnet model folder"),
    ):
        assert text in milnet(*arguments, code=2).stderr
    assert not (tmp_path / "m.data").exists()  # all that was said before any work


def test_what_is_there_is_used_only_when_it_is_the_same(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model.data", tmp_path / "m.data")
    (tmp_path / "root").symlink_to(place / "root")
    for changed, text in (
        (["--weights", "random:1"], "timm-test_resnet was made with other options (weights: "),
        (["--size", "96"], "size: 64 -> 96"),
        (["--semantic-weights", "random:7"], "timm-test_efficientnet was made with other options"),
        (["--maps", "int8"], "maps: float16 -> int8"),
        (["--reduce-set", "width=24"], "was reduced from other maps, on other training photos or with other options"),
        (["--seed", "5"], "was reduced from other maps, on other training photos or with other options"),
    ):
        assert text in train(tmp_path, tmp_path / "m", *changed, code=2).stderr, changed
    root = tmp_path / "other"
    shutil.copytree(place / "root", root)
    with (root / "19928_aesthetic_image_list" / "test_19998.txt").open("a") as file:
        file.write("77\n")
    where = ["--dataset", "ava", "--dataroot", root, "-o", tmp_path / "m", *CHAIN]
    assert "was imported from other files than those of" in milnet("train", *where, code=2).stderr


def test_what_the_reducer_has_seen_cannot_be_lost(place: Path, tmp_path: Path) -> None:
    """Features that `test` makes for another protocol carry the reducer and its `seen`; seen photos are refused."""
    shutil.copytree(place / "root", tmp_path / "root")
    shutil.copytree(tmp_path / "root" / "19928_aesthetic_image_list", tmp_path / "root" / "19998_aesthetic_image_list")
    lists = tmp_path / "root" / "19998_aesthetic_image_list"
    (lists / "AVA_19928.txt").rename(lists / "AVA_19998.txt")
    trained, tested = [x for i, x in enumerate(ids()) if i % 4], [x for i, x in enumerate(ids()) if i % 4 == 0]
    (lists / "train_19998.txt").write_text("".join(f"{x}\n" for x in tested))  # the two sides change places
    (lists / "test_19998.txt").write_text("".join(f"{x}\n" for x in trained))
    (lists / "train_19928.txt").unlink()
    where = ["--dataset", "ava-19998", "--dataroot", tmp_path / "root", "--eval_model", place / "model"]
    data = tmp_path / "fresh"
    refused = milnet("test", *where, "--data", data, code=2).stderr
    assert "30 of 30 test photos were seen in training by the model (by id)" in refused
    assert not (data / "features").exists()  # before anything is computed
    # where some are new, features are made, and a model trained on them has seen what their reducer has
    (lists / "test_19998.txt").write_text("".join(f"{x}\n" for x in tested[5:]))
    (lists / "train_19998.txt").write_text("".join(f"{x}\n" for x in [*trained, *tested[:5]]))
    data = tmp_path / "other"
    milnet("test", *where, "--data", data)
    table, _ = load_table(data)
    reduced = Features(data / "features" / "timm-test_resnet-reduced", table)
    assert reduced.reducer is not None and {n for n, _ in reduced.seen} == {f"ava:{x}" for x in trained}
    (data / "features" / "timm-test_resnet-reduced" / "seen.txt").unlink()
    with pytest.raises(ArtifactError, match=r"seen\.txt"):
        Features(data / "features" / "timm-test_resnet-reduced", table)


def test_a_folder_of_ones_own_is_not_taken_for_a_run(place: Path, tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to(place / "root")
    (tmp_path / "m.run").mkdir()
    (tmp_path / "m.run" / "note").write_text("mine")
    shutil.copytree(place / "model.data", tmp_path / "m.data")
    for more in ([], ["--overwrite"]):
        assert "m.run was not made by milnet" in train(tmp_path, tmp_path / "m", *more, code=2).stderr
    assert (tmp_path / "m.run" / "note").read_text() == "mine"


def test_the_recipe_milnet_by_name(place: Path, tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to(place / "root")
    shutil.copytree(place / "model.data", tmp_path / "m.data")
    said = train(
        tmp_path, tmp_path / "m", "--recipe", "milnet", "--set=reducer.width=16", "--set=reducer.epochs=2"
    ).stdout
    assert "milnet on 30 photos" in said
    where = ["--dataset", "ava", "--dataroot", place / "root", "--eval_model", tmp_path / "m", "--json"]
    again = json.loads(milnet("test", *where, "--data", tmp_path / "fresh").stdout)
    results = json.loads(milnet("test", *where).stdout)
    assert abs(again["metrics"]["emd2"]["mean"] - results["metrics"]["emd2"]["mean"]) < 1e-3


def test_a_test_photo_among_the_training_photos(place: Path, tmp_path: Path) -> None:
    """Copied under another name it is left out of training; a model that has seen it is refused."""
    root = tmp_path / "root"
    shutil.copytree(place / "root", root)
    lists = root / "19928_aesthetic_image_list"
    copied, name = root / "images" / f"{ids()[0]}.jpg", 5
    picture = Image.open(copied)
    picture.save(root / "images" / "5.png")  # the same pixels in another file
    (root / "images" / "5.png").rename(root / "images" / f"{name}.jpg")
    with (lists / "AVA_19928.txt").open("a") as file:
        file.write(f"99 {name} 1 1 2 3 9 9 3 2 1 1 0 0 1\n")
    with (lists / "train_19928.txt").open("a") as file:
        file.write(f"{name}\r\n")
    said = train(tmp_path, tmp_path / "model", "--maps", "narrow").stdout
    assert f"left out of training, the same photo is in the test split: {name}" in said
    assert f"ava:{name}" not in {seen for seen, _ in load_model(tmp_path / "model")[0].seen}
    # where the test list did not name the original, the copy was learned from; testing the original is refused
    lines = (lists / "test_19998.txt").read_text().splitlines()
    (lists / "test_19998.txt").write_text("\n".join(lines[1:]) + "\n")
    train(tmp_path, tmp_path / "other", "--maps", "narrow")
    (lists / "test_19998.txt").write_text("\n".join(lines) + "\n")
    where = ["--dataset", "ava", "--dataroot", root, "--eval_model", tmp_path / "other", "--data", tmp_path / "fresh"]
    assert "1 of 10 test photos were seen in training by the model" in milnet("test", *where, code=2).stderr


def test_a_converted_checkpoint_with_the_published_files(place: Path, tmp_path: Path) -> None:
    """The published code's checkpoint, its feature files and its lists of references: the whole of its own test."""
    from milnet.model.graph import Graph
    from milnet.published import published_names

    torch.manual_seed(0)
    network = Graph(12, 10, width=8, depth=2).eval()
    ours = network.state_dict()
    torch.save({theirs: ours[name] for theirs, name in published_names(2).items()}, tmp_path / "best.pth")
    milnet("convert", tmp_path / "best.pth", "-o", tmp_path / "converted")
    rng = np.random.default_rng(1)
    numbers = {x: rng.normal(size=(1, 12)).astype(np.float32) for x in ids()}
    (tmp_path / "files").mkdir()
    for x, row in numbers.items():
        (tmp_path / "files" / str(x)).write_bytes(pickle.dumps(row))
    trained = [x for i, x in enumerate(ids()) if i % 4]
    picks = {x: [t for t in rng.permutation(trained).tolist() if t != x][:5] for x in ids()}
    (tmp_path / "refer.txt").write_text("".join(f"{x} {' '.join(map(str, row))} \n" for x, row in picks.items()))
    where = ["--dataset", "ava", "--dataroot", place / "root", "--eval_model", tmp_path / "converted"]
    assert "--published-features FOLDER" in milnet("test", *where, code=2).stderr
    files = ["--published-features", tmp_path / "files"]
    store = ["references", tmp_path / "converted.data-ava-19928", "-k", 5, "--published", tmp_path / "refer.txt"]
    milnet(*store)
    lists = ["--published-references", tmp_path / "refer.txt"]
    done = milnet("test", *where, *files, *lists, "-o", tmp_path / "r.json")
    assert "photos seen in training: unknown (best.pth); a leak cannot be checked" in done.stderr
    # what is trained on features of others says that nobody knows what those have seen
    data, both = tmp_path / "converted.data-ava-19928", ["--semantic", "published", "--nodes", "published"]
    milnet("train", data, "-o", tmp_path / "own", *both, *SMALL)
    said = milnet("evaluate", tmp_path / "own", data, *both).stderr
    assert "30 photos of ava; those of its features' makers: unknown (published files); a leak there cannot" in said
    import polars

    rows = polars.read_csv(tmp_path / "r.predictions.csv").sort("photo")
    for photo, *p in rows.select("photo", *(f"p_{v}" for v in range(1, 11))).rows():
        nodes = torch.from_numpy(np.stack([numbers[x][0] for x in (photo, *picks[photo][:4])])[None])
        with torch.no_grad():
            expected = network.from_nodes(nodes.half().float()).exp()[0].numpy()
        np.testing.assert_allclose(p, expected, rtol=0, atol=1e-5)
