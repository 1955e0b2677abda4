"""The commands, end to end, as a user runs them: made photos, an untrained backbone, real files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

import made
from milnet.cli import main

pytestmark = made.needs_timm
BACKBONE = ["--backbone", "timm/test_resnet", "--weights", "random:0", "--size", "64"]
SMALL = [
    "--set",
    "width=8",
    "--set",
    "depth=1",
    "--set",
    "epochs=3",
    "--set",
    "batch=16",
    "--set",
    "calibration_folds=2",
]


def milnet(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in this process (a new one imports torch for seconds); its exit code must be `code`."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["milnet", *map(str, arguments)]
    offline = os.environ.get("HF_HUB_OFFLINE")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        found = int(end.code or 0)
    finally:
        sys.argv = before
        if offline is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
    done = subprocess.CompletedProcess(list(arguments), found, out.getvalue(), err.getvalue())
    assert found == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """votes.csv, photos, DATA with features, and a trained MODEL."""
    folder = tmp_path_factory.mktemp("cli")
    table = made.table(60)
    made.photo_folder(folder / "photos", table)
    made.votes_csv(folder / "votes.csv", table)
    options = ["--images", folder / "photos", "--group-columns", "theme"]
    said = milnet("import", "table", folder / "votes.csv", *options, "-o", folder / "data").stdout
    assert "60 photos, 5 values 1..5" in said
    assert "60 photos x" in milnet("features", folder / "data", *BACKBONE).stdout
    assert "references from a pool of 45" in milnet("references", folder / "data", "-k", 20).stdout
    said = milnet("train", folder / "data", "-o", folder / "model", *SMALL).stdout
    assert "published on 45 photos" in said
    assert not (folder / "model.run").exists()
    return folder


def test_the_seed_decides_a_trained_model(place: Path, tmp_path: Path) -> None:
    digests = [
        json.loads(milnet("train", place / "data", "-o", tmp_path / name, *SMALL, "--json", "--seed", seed).stdout)[
            "digest"
        ]
        for name, seed in (("a", 0), ("b", 1))
    ]
    assert json.loads((place / "model" / "manifest.json").read_text())["digest"] == digests[0] != digests[1]


def test_score(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "in" / "sub")
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    (tmp_path / "in" / "wrong.jpg").write_bytes((place / "photos" / "photo000.png").read_bytes())  # a PNG by content
    out = tmp_path / "scores.csv"
    done = milnet("score", tmp_path / "in", "--model", place / "model", "-o", out, code=1)
    assert "not scored" in done.stderr
    assert "bad.jpg" in done.stderr
    assert "model: published on 45 rated photos of votes, cross-validated SRCC" in done.stdout
    assert len(polars.read_csv(out)) == 61
    errors = polars.read_csv(tmp_path / "scores.errors.csv")
    assert errors["photo"].to_list() == [str(tmp_path / "in" / "bad.jpg")]
    (tmp_path / "in" / "bad.jpg").unlink()
    for name in ("scores.csv", "scores.jsonl", "scores.parquet"):
        milnet("score", tmp_path / "in", "--model", place / "model", "-o", tmp_path / name)
    assert not (tmp_path / "scores.errors.csv").exists()
    assert len(polars.read_parquet(tmp_path / "scores.parquet")) == 61
    assert not list(tmp_path.glob("*.journal*"))
    result = json.loads(milnet("score", tmp_path / "in" / "wrong.jpg", "--model", place / "model", "--json").stdout)
    assert result["scores"][0]["photo"].endswith("wrong.jpg")
    assert milnet("score", tmp_path / "in", "--model", place / "model", "--quiet").stdout == ""


@pytest.mark.parametrize("no_cache", [False, True])
def test_score_goes_on_after_a_kill(no_cache: bool, place: Path, tmp_path: Path) -> None:
    """Killed in the middle: nothing is lost, nothing is there twice, nothing is made again."""
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    (tmp_path / "in").mkdir()
    for i in range(300):
        made.photo(2000 + i, 320, 240).save(tmp_path / "in" / f"{i:03}.png")
    options = ["score", tmp_path / "in", "--model", place / "model"]
    milnet(*options, "--no-cache", "-o", whole)
    assert not list(tmp_path.glob("*.journal*"))
    options += ["-o", cut, "--json", *(["--no-cache"] if no_cache else [])]
    command = [sys.executable, "-c", "from milnet.cli import main; main()", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = tmp_path / "cut.csv.journal" if no_cache else Path(os.environ["MILNET_HOME"]) / "cache.sqlite"
    wal = kept.with_name(kept.name + "-wal")
    while process.poll() is None and not (wal.exists() and wal.stat().st_size > 800_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists()
    found = sqlite3.connect(kept)
    (before,) = found.execute("SELECT count(*) FROM features").fetchone()
    found.close()
    assert 0 < before < 300
    assert json.loads(milnet(*options).stdout)["forward"] == 300 - before
    assert kept.exists() != no_cache  # the journal has done its work
    first, second = polars.read_csv(whole), polars.read_csv(cut)
    assert first["photo"].to_list() == second["photo"].to_list()
    assert (first["score"] - second["score"]).abs().max() < 1e-5  # type: ignore[operator]
    assert json.loads(milnet(*options).stdout)["forward"] == (300 if no_cache else 0)


def test_score_for_other_programs(place: Path, tmp_path: Path) -> None:
    """The best, those above a limit, lists in and lists out."""
    everything = json.loads(milnet("score", place / "photos", "--model", place / "model", "--json").stdout)["scores"]
    best = sorted(everything, key=lambda row: -row["score"])
    options = ["score", "--model", place / "model"]
    out = tmp_path / "top.csv"
    milnet(*options, place / "photos", "--top", 3, "-o", out)
    top = polars.read_csv(out)
    assert top["photo"].to_list() == [row["photo"] for row in best[:3]]
    assert top["folder_percentile"].to_list() == [row["folder_percentile"] for row in best[:3]]  # among all
    limit = best[10]["score"]
    said = milnet(*options, place / "photos", "--min-score", limit, "--files").stdout.splitlines()
    assert said == [row["photo"] for row in everything if row["score"] >= limit]
    assert len(said) == 11
    odd = tmp_path / "line\nbreak.png"
    shutil.copy(place / "photos" / "photo000.png", odd)
    assert "pass --null" in milnet(*options, odd, "--files", code=2).stderr
    assert milnet(*options, odd, "--files", "--null").stdout == f"{odd}\0"
    (tmp_path / "list").write_text("".join(f"{row['photo']}\n" for row in best[:5]) + f"{tmp_path / 'gone.png'}\n")
    listed = milnet(*options, "--files-from", tmp_path / "list", "--json", code=1)
    found = json.loads(listed.stdout)
    assert [row["photo"] for row in found["scores"]] == [row["photo"] for row in best[:5]]
    assert [failure["photo"] for failure in found["failures"]] == [str(tmp_path / "gone.png")]
    assert found["forward"] == 0
    for wrong, why in (
        (["--null"], "pass --files"), (["--dry-run"], "pass --xmp"), ([], "which photos"),
        (["--sidecar", "append"], "pass --xmp"), ([place / "photos", "--files", "--json"], "pass one of them"),
        ([place / "photos", "--stars", "score:a"], "expected limits with commas"),
        ([place / "photos", "--stars", "votes:1"], "expected limits with commas"),
    ):  # fmt: skip
        assert why in milnet(*options, *wrong, code=2).stderr
    stars = milnet(*options, place / "photos", "--stars", f"score:{limit}", "--json").stdout
    assert sum(row["stars"] == 2 for row in json.loads(stars)["scores"]) == 11


def test_cache(place: Path, tmp_path: Path) -> None:
    assert "empty" in milnet("cache").stdout
    shutil.copytree(place / "photos", tmp_path / "in")
    milnet("score", tmp_path / "in", "--model", place / "model")
    found = json.loads(milnet("cache", "--json").stdout)
    assert (found["files"], found["photos"], list(found["models"].values())) == (60, 60, [60])
    assert "60 photos" in milnet("cache").stdout
    (tmp_path / "in" / "photo000.png").unlink()
    assert "would forget 1 scores, features of 1 photos" in milnet("cache", "--missing", "--dry-run").stdout
    assert json.loads(milnet("cache", "--missing", "--json").stdout)["removed"] == {
        "files": 1, "features": 1, "scores": 1,
    }  # fmt: skip
    assert "--all" in milnet("cache", "--dry-run", code=2).stderr
    assert "no score here is of such a model" in milnet("cache", "--model", "zzz", code=2).stderr
    assert "would forget 59" in milnet("cache", "--all", "--dry-run").stdout
    assert json.loads(milnet("cache", "--json").stdout)["photos"] == 59
    assert "everything forgotten" in milnet("cache", "--all").stdout
    assert json.loads(milnet("cache", "--json").stdout)["photos"] == 0
    home = Path(os.environ["MILNET_HOME"])
    (home / "cache.sqlite").write_text("no database " * 100)
    assert "remove it and run again" in milnet("score", tmp_path / "in", "--model", place / "model", code=2).stderr
    assert "60 more" not in milnet("score", tmp_path / "in", "--model", place / "model", "--no-cache").stdout


def test_evaluate(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    done = milnet("evaluate", place / "model", data, "-o", tmp_path / "test.json")
    assert "15 photos" in done.stdout
    assert "for the first time" in done.stdout
    assert "2 times" in milnet("evaluate", place / "model", data).stdout
    results = json.loads((tmp_path / "test.json").read_text())
    assert results["kind"] == "evaluation"
    assert results["command"].startswith("milnet evaluate")
    assert (tmp_path / "test.predictions.csv").exists()
    refused = milnet("evaluate", place / "model", data, "--split", "train", code=2).stderr
    assert "45 of 45 test photos were seen in training by the model" in refused
    assert (
        "no photo has split = 'valid'; there are: test, train"
        in milnet("evaluate", place / "model", data, "--split", "valid", code=2).stderr
    )


def test_crossvalidate(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = milnet("crossvalidate", place / "data", "--recipe", "single", *SMALL, "--against", "published", "--folds",
                  "fold_theme", "--seeds", 1, "-o", out)  # fmt: skip
    assert "never splitting theme" in done.stdout
    assert "single minus published, paired" in done.stdout
    results = json.loads(out.read_text())
    assert results["folds"] == {"label": "fold_theme", "names": ["0", "1", "2"], "group": "theme"}
    assert set(results["against"]["difference"]["srcc"]) == {"difference", "low", "high", "real"}
    assert not (tmp_path / "results.json.run").exists()
    for folds, text in (("none", "neither a column"), ("1", "expected 2 to"), ("split", None)):
        done = milnet("crossvalidate", place / "data", *SMALL, "--folds", folds, "--seeds", 1, code=2 if text else 0)
        assert text is None or text in done.stderr


def test_train_says_what_is_in_the_way(place: Path, tmp_path: Path) -> None:
    assert "exists already" in milnet("train", place / "data", "-o", place / "model", code=2).stderr
    (tmp_path / "m.run").mkdir()
    refused = milnet("train", place / "data", "-o", tmp_path / "m", code=2).stderr
    assert "pass --resume to go on, or --overwrite to start anew" in refused
    assert (
        "no photo has split = 'x'"
        in milnet("train", place / "data", "-o", tmp_path / "n", "--split", "x", code=2).stderr
    )


def test_train_resumes_after_a_kill(place: Path, tmp_path: Path) -> None:
    waits = f"""
import time
from pathlib import Path
from milnet import training
from milnet.cli import main
step = training._step
def wait_to_be_killed(*inputs):  # once the first phase is done
    if Path({str(tmp_path / "m.run" / "results.json")!r}).exists():
        time.sleep(600)
    return step(*inputs)
training._step = wait_to_be_killed
main()
"""
    command = [sys.executable, "-c", waits, "train", str(place / "data"), "-o", str(tmp_path / "m"), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "m.run" / "results.json").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (tmp_path / "m.run").exists()
    assert not (tmp_path / "m").exists()
    refused = milnet("train", place / "data", "-o", tmp_path / "m", *SMALL, "--seed", 5, "--resume", code=2).stderr
    assert "unfinished training of other data, options, seed or versions" in refused
    resumed = json.loads(milnet("train", place / "data", "-o", tmp_path / "m", *SMALL, "--resume", "--json").stdout)
    assert resumed["digest"] == json.loads((place / "model" / "manifest.json").read_text())["digest"]
    assert not (tmp_path / "m.run").exists()


def test_tensorboard(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    milnet("train", place / "data", "-o", tmp_path / "m", *SMALL, "--tensorboard")
    assert list((tmp_path / "m.tensorboard").glob("events*"))


def test_convert(place: Path, tmp_path: Path) -> None:
    from milnet.published import published_names

    network = __import__("milnet.model.graph", fromlist=["Graph"]).Graph(12, 5, width=4, depth=1)
    state = network.state_dict()
    torch.save({theirs: state[ours] for theirs, ours in published_names(1).items()}, tmp_path / "published.pth")
    assert "parameters from published.pth" in milnet("convert", tmp_path / "published.pth", "-o", tmp_path / "m").stdout
    refused = milnet("score", place / "photos", "--model", tmp_path / "m", code=2).stderr
    assert "it has no pool and no backbone, so it cannot see photos" in refused
    refused = milnet("evaluate", tmp_path / "m", place / "data", code=2).stderr
    assert "takes 12 node features" in refused


def test_a_converted_checkpoint_is_evaluated(place: Path, tmp_path: Path) -> None:
    from milnet.published import published_names

    manifest = json.loads(next((place / "data" / "features").glob("*/manifest.json")).read_text())
    width = max(end for _, end in manifest["config"]["ranges"].values())
    network = __import__("milnet.model.graph", fromlist=["Graph"]).Graph(width, 5, width=4, depth=1)
    state = network.state_dict()
    torch.save({theirs: state[ours] for theirs, ours in published_names(1).items()}, tmp_path / "published.pth")
    milnet("convert", tmp_path / "published.pth", "-o", tmp_path / "m")
    shutil.copytree(place / "data", tmp_path / "data")
    done = milnet("evaluate", tmp_path / "m", tmp_path / "data")
    assert "15 photos" in done.stdout
    assert "unknown (published.pth); a leak cannot be checked" in done.stderr


def test_import_reports_defects(place: Path, tmp_path: Path) -> None:
    lines = (place / "votes.csv").read_text().splitlines()
    lines[7] = lines[7].rsplit(",", 1)[0] + ",-3"
    (tmp_path / "broken.csv").write_text("\n".join(lines) + "\n")
    refused = milnet("import", "table", tmp_path / "broken.csv", "-o", tmp_path / "d", code=2).stderr
    assert "broken.csv, line 8: " in refused
    assert not (tmp_path / "d").exists()
    done = milnet("import", "table", tmp_path / "broken.csv", "-o", tmp_path / "d", "--keep-going", code=1)
    assert "skipped: " in done.stderr
    assert "59 photos" in done.stdout
    assert (
        "--labels: not an option of the format table"
        in milnet("import", "table", place / "votes.csv", "-o", tmp_path / "e", "--labels", "x", code=2).stderr
    )
    assert "there is no format 'avva'" in milnet("import", "avva", place, "-o", tmp_path / "e", code=2).stderr


def test_importing_again_keeps_the_features(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    milnet("evaluate", place / "model", tmp_path / "data")
    options = ["--images", place / "photos", "--group-columns", "theme", "-o", tmp_path / "data"]
    assert "exists already" in milnet("import", "table", place / "votes.csv", *options, code=2).stderr
    milnet("import", "table", place / "votes.csv", *options, "--overwrite")
    assert "2 times" in milnet("evaluate", place / "model", tmp_path / "data").stdout
    assert not list(tmp_path.glob(".data*"))
    milnet("import", "table", place / "votes.csv", "-o", place / "photos", "--overwrite", code=2)
    assert len(list((place / "photos").iterdir())) == 60  # a user's folder is never replaced


def test_features_say_what_is_wrong(place: Path, tmp_path: Path) -> None:
    data = place / "data"
    for options, text in (
        (["--backbone", "purse"], "unknown backbone 'purse': expected pocket, resnet50, mlsp or timm/MODEL"),
        (["--backbone", "timm/mobilenetv2_1000"], "timm has no model 'mobilenetv2_1000'; similar: mobile"),
        (["--backbone", "timm/test_resnet", "--weights", "none.safetensors"], "expected a safetensors file"),
        (["--backbone", "timm/test_resnet", "--fit", "squash"], "expected whole or crop or original"),
        (["--backbone", "timm/test_resnet", "--weights", "random:x"], "expected random:SEED"),
        (BACKBONE, "exists already"),
    ):
        assert text in milnet("features", data, *options, code=2).stderr
    refused = milnet("features", data, "--backbone", "timm/resnet18", "--weights", "hub", "--offline", code=2).stderr
    assert "--offline forbids downloading" in refused
    assert "pass --weights FILE" in refused


def test_bad_photos_are_counted(place: Path, tmp_path: Path) -> None:
    made.photo_folder(tmp_path / "photos", made.table(60))
    (tmp_path / "photos" / "photo004.png").write_text("no image")
    milnet("import", "table", place / "votes.csv", "--images", tmp_path / "photos", "-o", tmp_path / "data")
    done = milnet("features", tmp_path / "data", *BACKBONE, code=1)
    assert "1 photos could not be read and take no part" in done.stderr
    assert "photo004" in done.stderr
    assert (
        "1 unreadable left out" in milnet("crossvalidate", tmp_path / "data", *SMALL, "--folds", 3, "--seeds", 1).stdout
    )


def test_info_and_doctor(place: Path) -> None:
    assert "model, format 2" in milnet("info", place / "model", "--verify").stdout
    assert json.loads(milnet("info", place / "data", "--json").stdout)["kind"] == "data"
    assert "has no manifest.json" in milnet("info", place, code=2).stderr
    facts = json.loads(milnet("doctor", "--json").stdout)
    assert facts["packages"]["torch"]
    assert facts["backbones"] == "work"


def test_the_installed_command() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("milnet"), "info", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: expected a milnet folder, but /nowhere does not exist\n"


def test_the_model_s_identity_is_not_where_things_lie(place: Path, tmp_path: Path) -> None:
    """The same data under another folder and another name of features: the same model."""
    shutil.copytree(place / "data", tmp_path / "moved")
    (features,) = (tmp_path / "moved" / "features").iterdir()
    features.rename(features.with_name("other"))
    digest = json.loads(milnet("train", tmp_path / "moved", "-o", tmp_path / "m", *SMALL, "--json").stdout)["digest"]
    assert digest == json.loads((place / "model" / "manifest.json").read_text())["digest"]


def test_the_line_between_good_and_bad(place: Path) -> None:
    said = [
        json.loads(milnet("crossvalidate", place / "data", *SMALL, "--folds", 3, "--seeds", 1, "--json", *more).stdout)
        for more in ([], ["--threshold", "2", "--side", ">"])
    ]
    assert [one["accuracy"] for one in said] == [{"threshold": 3.0, "side": ">="}, {"threshold": 2.0, "side": ">"}]
    assert said[0]["metrics"]["srcc"] == said[1]["metrics"]["srcc"]


def test_nothing_of_the_user_is_overwritten(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    mine = tmp_path / "mine.csv"
    mine.write_text("image,notes\n")
    (tmp_path / "mine.json").write_text("[1]")
    (tmp_path / "new.errors.csv").write_text("my,errors\n")
    photo = place / "photos" / "photo000.png"
    for command, text in (
        (["features", data, *BACKBONE, "--name", "..", "--overwrite"], "--name ..: expected letters"),
        (["references", data, "--name", "../x"], "--name ../x: expected letters"),
        (["train", data, "-o", data, "--overwrite", *SMALL], "is a 'data' folder"),
        (["score", photo, "--model", place / "model", "-o", mine], "holds no scores of milnet"),
        (["score", photo, "--model", place / "model", "-o", tmp_path / "new.csv"], "was not made by milnet"),
        (["score", photo, "--model", place / "model", "-o", tmp_path / "no" / "a.csv"], "its folder does not exist"),
        (["evaluate", place / "model", data, "-o", mine], "expected a file name ending in .json"),
        (["evaluate", place / "model", data, "-o", tmp_path / "mine.json"], "holds no results of milnet"),
        (["crossvalidate", data, "-o", data], "expected a file name ending in .json"),
    ):
        assert text in milnet(*command, code=2).stderr, command
    assert mine.read_text() == "image,notes\n"
    assert not (data / "looks.jsonl").exists()  # a refused command has not looked
    assert json.loads((data / "manifest.json").read_text())["kind"] == "data"
    for name in ("a.csv", "a.jsonl", "a.parquet"):  # its own outputs it does replace
        for _ in range(2):
            milnet("score", photo, "--model", place / "model", "-o", tmp_path / name)


def test_strange_names(place: Path, tmp_path: Path) -> None:
    for name in ("[x].jpg", "dir[b].jpg", "~tilde.jpg", "line\nbreak.jpg"):
        made.photo(1).save(tmp_path / name)
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes((tmp_path / "[x].jpg").read_bytes())
    done = milnet("score", tmp_path, "--model", place / "model", "-o", tmp_path / "s.csv", code=1)
    assert "[x].jpg" in done.stdout
    assert "its name is not valid UTF-8" in done.stderr
    assert len(polars.read_csv(tmp_path / "s.csv")) == 4
    assert (
        len(json.loads(milnet("score", tmp_path / "[x].jpg", "--model", place / "model", "--json").stdout)["scores"])
        == 1
    )
    twice = milnet(
        "score", tmp_path / "[x].jpg", tmp_path / ".." / tmp_path.name / "[x].jpg", "--model", place / "model", "--json"
    )
    assert len(json.loads(twice.stdout)["scores"]) == 1


def test_constant_scores(place: Path, tmp_path: Path) -> None:
    """A correlation does not exist there: null in JSON, and training still comes to its end."""
    table = made.table(60)
    votes = table.votes.copy()
    votes[:] = votes[0]
    made.votes_csv(tmp_path / "votes.csv", replace(table, votes=votes))
    milnet("import", "table", tmp_path / "votes.csv", "--images", place / "photos", "-o", tmp_path / "data")
    milnet("features", tmp_path / "data", *BACKBONE)
    milnet("train", tmp_path / "data", "-o", tmp_path / "m", *SMALL)
    said = milnet("crossvalidate", tmp_path / "data", *SMALL, "--folds", 3, "--seeds", 1, "--json").stdout
    assert json.loads(said)["metrics"]["srcc"]["mean"] is None
    assert "NaN" not in said


def test_a_refused_training_leaves_nothing(place: Path, tmp_path: Path) -> None:
    milnet("train", place / "data", "-o", tmp_path / "m", "--group", "nosuch", code=2)
    milnet("train", place / "data", "-o", tmp_path / "m", "--seed", -1, code=2)
    milnet("train", place / "data", "-o", tmp_path / "m", "--set", "references=500", *SMALL, code=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_no_photo_at_all_is_not_an_extraction(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    empty = tmp_path / "empty"
    empty.mkdir()
    options = [*BACKBONE, "--name", "other"]
    refused = milnet("features", tmp_path / "data", *options, "--images", empty, code=2).stderr
    assert "none of the 60 photos could be read" in refused
    assert "there is no such folder" in milnet("features", tmp_path / "data", *options, "--images", "no", code=2).stderr
    milnet("features", tmp_path / "data", *options)


@pytest.fixture(scope="module")
def consulting(place: Path) -> Path:
    """A folder with DATA whose votes are for bright photos, models of three recipes, and photos nobody has rated."""
    folder = place / "consulting"
    (folder / "in").mkdir(parents=True)
    for i in range(3):
        made.photo(3000 + i).save(folder / "in" / f"new{i}.png")
    table = made.table(60)
    light = np.array([np.asarray(made.photo(i)).mean() for i in range(60)])
    shares = np.exp(-0.5 * (table.values - 3 - 1.5 * ((light - light.mean()) / light.std())[:, None]) ** 2)
    made.votes_csv(folder / "votes.csv", replace(table, votes=np.rint(50 * shares / shares.sum(1, keepdims=True)) + 1))
    milnet("import", "table", folder / "votes.csv", "--images", place / "photos", "-o", folder / "data")
    milnet("features", folder / "data", *BACKBONE)
    for recipe in ("votes", "published", "single"):
        milnet("train", folder / "data", "-o", folder / recipe, "--recipe", recipe, *SMALL)
    return folder


def explained(said: str) -> dict[str, tuple[float, dict[str, float], float]]:
    """What `milnet explain` printed: of each photo its score, the parts by name, and the score below them."""
    found: dict[str, tuple[float, dict[str, float], float]] = {}
    for text in re.split(r"^(?=\S.*: \d+\.\d+ on a scale of 1 to 5$)", said, flags=re.MULTILINE)[1:]:
        photo, score = re.match(r"(.*): (\d+\.\d+) on a scale", text).groups()  # type: ignore[union-attr]
        lines = text.split("similarity", 1)[1].splitlines()[1:]
        rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]
        parts = {row[0]: float(row[-1]) for row in rows}
        assert len(parts) == len(rows)
        found[photo] = float(score), parts, parts.pop("score")
    return found


@pytest.mark.parametrize("recipe", ["votes", "published", "single"])
def test_explain(consulting: Path, recipe: str) -> None:
    photos = [consulting / "in" / f"new{i}.png" for i in range(3)]
    said = milnet("explain", consulting / "in", "--model", consulting / recipe).stdout
    found = explained(said)
    assert list(found) == [str(photo) for photo in photos]
    scored = json.loads(milnet("score", consulting / "in", "--model", consulting / recipe, "--json").stdout)["scores"]
    names = {name for name in next(iter(found.values()))[1] if not name.startswith("photo")}
    own = {"base: the mean vote of the photos it learned from", "own: what the photo itself adds"}
    more = {"votes": {"the rest of the pool (37 photos)"}, "published": {"not explained by leaving one out"}}
    assert names == own | more.get(recipe, set())
    for (score, parts, total), one in zip(found.values(), scored, strict=True):
        assert abs(total - score) < 0.006
        assert abs(total - one["score"]) < 0.0006
        assert abs(sum(parts.values()) - total) < 0.0006 * (len(parts) + 1)
        assert len(parts) == len(names) + {"votes": 8, "published": 4, "single": 0}[recipe]
        if recipe != "single":  # photos do move the score, and not the same way
            assert len({part for name, part in parts.items() if name.startswith("photo")}) > 2
        interval = f"90 % interval for the mean vote of a large panel: {one['low']:.2f} to {one['high']:.2f}"
        assert interval in said
        assert f"scores higher than {one['percentile']:.0f} % of the pool's 45 photos" in said
        assert f"unlike {one['unlike']:.2f}: " in said
    assert milnet("explain", *photos, "--model", consulting / recipe, "--quiet").stdout == ""


@pytest.mark.parametrize("recipe", ["votes", "published", "single"])
def test_the_parts_of_an_explanation_in_json(consulting: Path, recipe: str) -> None:
    result = json.loads(milnet("explain", consulting / "in", "--model", consulting / recipe, "--json").stdout)
    assert result["digest"] == json.loads((consulting / recipe / "manifest.json").read_text())["digest"]
    assert len(result["scores"]) == 3
    for score in result["scores"]:
        influences = [reference["influence"] for reference in score["references"]]
        parts = [score["base"], score["own"], *influences, score["rest"]]
        assert abs(sum(parts) - score["score"]) < 1e-4
        assert abs(score["base"] - score["score"]) > 1e-6
        assert all(sum(reference["votes"]) >= 5 for reference in score["references"])
        assert recipe != "single" or (influences == [] and abs(score["rest"]) < 1e-9)
        assert recipe == "single" or len({reference["id"] for reference in score["references"]}) == len(influences) > 1


def test_a_broken_photo_is_not_explained(consulting: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    photo = consulting / "in" / "new0.png"
    for options in ([], ["--json"]):
        done = milnet("explain", photo, tmp_path / "bad.jpg", "--model", consulting / "votes", *options, code=1)
        assert "not scored: " in done.stderr
        assert "bad.jpg" in done.stderr
    assert [one["photo"] for one in json.loads(done.stdout)["scores"]] == [str(photo)]
    assert [one["photo"] for one in json.loads(done.stdout)["failures"]] == [str(tmp_path / "bad.jpg")]
    alone = milnet("explain", tmp_path / "bad.jpg", "--model", consulting / "votes", code=1)
    assert len(alone.stdout.splitlines()) == 1  # which model it is, and nothing of the photo
    assert "does not exist" in milnet("explain", photo, "--model", tmp_path / "none", code=2).stderr


def test_a_pool_grows(consulting: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(consulting / "data", data)
    add = ["pool", "add", consulting / "votes", data, "--split", "test", "-o"]
    done = milnet(*add, tmp_path / "larger")
    assert "15 photos added to 45, 60 in all, " in done.stdout
    assert "percentile, interval and unlike were made anew for this pool" in done.stdout
    assert done.stderr == ""
    said = milnet("explain", consulting / "in", "--model", tmp_path / "larger").stdout
    before = explained(milnet("explain", consulting / "in", "--model", consulting / "votes").stdout)
    assert "the rest of the pool (52 photos)" in said
    assert "% of the pool's 60 photos" in said
    assert any(abs(one[2] - two[2]) > 0.001 for one, two in zip(explained(said).values(), before.values(), strict=True))
    refused = milnet("evaluate", tmp_path / "larger", data, code=2).stderr
    assert "15 of 15 test photos were seen in training" in refused
    notes = json.loads((tmp_path / "larger" / "manifest.json").read_text())["notes"]
    assert [(one["photos"], one["command"].split()[:3]) for one in notes["added"]] == [(15, ["milnet", "pool", "add"])]
    assert notes["command"].startswith("milnet train")
    for option, code in (([], 2), (["--overwrite"], 0)):
        assert ("exists already" in milnet(*add, tmp_path / "larger", *option, code=code).stderr) == bool(code)
    result = json.loads(milnet(*add, tmp_path / "json", "--json").stdout)
    assert {key: result[key] for key in ("pool", "added", "known", "unreadable", "stale")} == {
        "pool": 60, "added": 15, "known": [], "unreadable": [], "stale": False,
    }  # fmt: skip


def test_nothing_new_for_a_pool(consulting: Path, tmp_path: Path) -> None:
    """A chain of commands goes on: the model is there, and it is the same one."""
    done = milnet("pool", "add", consulting / "votes", consulting / "data", "--split", "train", "-o", tmp_path / "same")
    assert f"no new photo: {tmp_path / 'same'} is the same model as {consulting / 'votes'}" in done.stdout
    assert "0 photos added to 45, 45 in all; 45 were there already" in done.stdout
    assert "anew" not in done.stdout
    manifests = [
        json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "same", consulting / "votes")
    ]
    assert manifests[0] == manifests[1]
    milnet("info", tmp_path / "same", "--verify")


def test_a_grown_pool_of_another_recipe(consulting: Path, tmp_path: Path) -> None:
    """Its percentile, interval and unlike are of the old pool: said, and left out from then on."""
    done = milnet("pool", "add", consulting / "published", consulting / "data", "-o", tmp_path / "larger")
    assert "15 photos added to 45, 60 in all; 45 were there already" in done.stdout
    assert "percentile, interval and unlike belong to the old pool and are given no longer" in done.stderr
    said = milnet("explain", consulting / "in", "--model", tmp_path / "larger").stdout
    assert len(explained(said)) == 3
    assert "not explained by leaving one out" in said
    for word in ("interval", "percentile", "unlike", "scores higher"):
        assert word not in said
    for score in json.loads(milnet("score", consulting / "in", "--model", tmp_path / "larger", "--json").stdout)[
        "scores"
    ]:
        assert score["low"] is score["high"] is score["percentile"] is score["unlike"] is None
    refused = milnet("pool", "add", consulting / "single", consulting / "data", "-o", tmp_path / "no", code=2).stderr
    assert "scores photos alone" in refused
    assert not (tmp_path / "no").exists()


def test_a_pool_takes_photos_of_another_table(consulting: Path, tmp_path: Path) -> None:
    """Other photos, some broken, under another name; and what has other features or values is refused."""
    table = made.table(20, seed=5)
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(table.images):
        made.photo(5000 + i).save(tmp_path / "photos" / name)
    made.photo(1, 72, 96).save(tmp_path / "photos" / table.images[3])  # a photo of the pool under another name
    (tmp_path / "photos" / table.images[4]).write_text("no image")
    made.votes_csv(tmp_path / "other.csv", table)
    milnet("import", "table", tmp_path / "other.csv", "--images", tmp_path / "photos", "--name", "other", "-o",
           tmp_path / "data")  # fmt: skip
    add = ["pool", "add", consulting / "votes", tmp_path / "data", "-o", tmp_path / "larger"]
    assert "has no features yet" in milnet(*add, code=2).stderr
    milnet("features", tmp_path / "data", *BACKBONE, code=1)
    milnet("features", tmp_path / "data", *BACKBONE[:-1], "96", "--name", "large", code=1)
    refused = milnet(*add, "--semantic", "large", "--nodes", "large", code=2).stderr
    assert "the model was trained on semantic features" in refused
    assert not (tmp_path / "larger").exists()
    done = milnet(*add, "--semantic", "timm-test_resnet", "--nodes", "timm-test_resnet", code=0)
    assert "18 photos added to 45, 63 in all; 1 were there already" in done.stdout
    assert "1 photos have no features and were left out: other:photo004" in done.stderr
    ids = (tmp_path / "larger" / "pool" / "ids.txt").read_text().split()
    assert ids[44:47] == ["photo058", "other:photo000", "other:photo001"]
    found = json.loads(
        milnet("explain", tmp_path / "photos" / "photo000.png", "--model", tmp_path / "larger", "--json").stdout
    )
    assert "other:photo000" not in [reference["id"] for reference in found["scores"][0]["references"]]
    chosen = ["--semantic", "timm-test_resnet", "--nodes", "timm-test_resnet"]
    assert (
        "19 of 19 test"
        in milnet("evaluate", tmp_path / "larger", tmp_path / "data", "--split", "all", *chosen, code=2).stderr
    )


def test_usage() -> None:
    assert milnet("--version").stdout.startswith("milnet ")
    assert "No such command" in milnet("scroe", code=2).stderr
    assert "No such option" in milnet("doctor", "--devcie", "cpu", code=2).stderr
    assert "--device tpu: not available here; there is: cpu" in milnet("doctor", "--device", "tpu", code=2).stderr


def test_taste(place: Path, tmp_path: Path) -> None:
    """Rated photos become a MODEL; scoring with it needs no new forward pass and never asks a photo about itself."""
    photos = sorted((place / "photos").iterdir())[:40]
    rng = np.random.default_rng(0)
    rated = [(photo, int(rng.integers(1, 6))) for photo in photos]
    table = tmp_path / "mine.csv"
    table.write_text("photo,rating\n" + "".join(f"{photo.name},{stars}\n" for photo, stars in rated))
    options = ["taste", *photos, "--model", place / "model", "--ratings", table]
    made_it = json.loads(milnet(*options, "-o", tmp_path / "mine", "--json").stdout)
    assert made_it["photos"] == 40
    assert made_it["values"] == [1, 2, 3, 4, 5]
    checked = made_it["checked"]
    assert checked["low"] <= checked["difference"] <= checked["high"]
    assert made_it["verdict"].startswith("not enough ratings to beat the general model")  # they are chance
    assert checked["beats"] is False
    assert "exists already" in milnet(*options, "-o", tmp_path / "mine", code=2).stderr
    assert "your taste: both" in milnet(*options, "-o", tmp_path / "mine", "--overwrite").stdout

    said = milnet("score", place / "photos", "--model", tmp_path / "mine", "-o", tmp_path / "s.csv").stdout
    assert "your taste, from 40 photos you rated" in said
    scores = polars.read_csv(tmp_path / "s.csv")
    assert scores["spread"].null_count() == 60
    assert set(scores["model"]) == {made_it["digest"]}
    scored = json.loads(milnet("score", *photos, "--model", tmp_path / "mine", "--json").stdout)
    assert scored["forward"] == 0
    for row, photo in zip(scored["scores"], photos, strict=True):
        parts = row["base"] + row["own"] + row["rest"] + sum(r["influence"] for r in json.loads(row["references"]))
        assert parts == pytest.approx(row["score"], abs=1e-4)
        assert photo.name not in [r["id"] for r in json.loads(row["references"])]
        assert 1 <= row["stars"] <= 5
    assert "the mean of your ratings" in milnet("explain", photos[0], "--model", tmp_path / "mine").stdout
    assert "is a taste itself" in milnet(*options[:-4], "--model", tmp_path / "mine", "--ratings", table, "-o",
                                         tmp_path / "x", code=2).stderr  # fmt: skip
    assert "expected numbers with commas" in milnet(*options, "-o", tmp_path / "x", "--levels", "a", code=2).stderr
    assert "expected 'xmp' or a file" in milnet(*options[:-1], tmp_path / "none", "-o", tmp_path / "x", code=2).stderr
    assert not (tmp_path / "x").exists()


def test_taste_from_stars_in_sidecars(place: Path, tmp_path: Path) -> None:
    """Stars that a human gave, written as other programs write them; those that milnet gave are not a taste."""
    shutil.copytree(place / "photos", tmp_path / "in")
    photos = sorted((tmp_path / "in").iterdir())
    milnet("score", *photos[:20], "--model", place / "model", "--xmp")
    options = ["taste", tmp_path / "in", "--model", place / "model", "--ratings", "xmp", "-o", tmp_path / "mine"]
    assert "expected 10 to 2,000 rated photos, got 0" in milnet(*options, code=2).stderr
    for i, photo in enumerate(photos[20:50]):
        photo.with_suffix(".xmp").write_text(
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="{1 + i % 5}"/></rdf:RDF>'
            "</x:xmpmeta>"
        )
    assert json.loads(milnet(*options, "--json").stdout)["photos"] == 30


def test_score_writes_xmp(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "in")
    options = ["score", tmp_path / "in", "--model", place / "model", "--xmp"]
    assert "nothing was written: --dry-run): 60 created" in milnet(*options, "--dry-run").stdout
    assert not list((tmp_path / "in").glob("*.xmp"))
    assert "XMP: 60 created" in milnet(*options).stdout
    assert len(list((tmp_path / "in").glob("*.png.xmp"))) == 60
    assert "XMP: 60 unchanged" in milnet(*options).stdout
    (tmp_path / "in" / "photo000.png.xmp").write_text("no XMP")
    refused = milnet(*options, code=1)
    assert "rating not written: " in refused.stderr and "photo000.png" in refused.stderr
    assert (tmp_path / "in" / "photo000.png.xmp").read_text() == "no XMP"
    assert "XMP has at most 5" in milnet(*options, "--stars", "10,20,30,40,50", code=2).stderr
    assert "expected append" in milnet(*options, "--sidecar", "x", code=2).stderr
    (tmp_path / "jpeg").mkdir()
    made.photo(1).save(tmp_path / "jpeg" / "a.jpg")
    options = ["score", tmp_path / "jpeg", "--model", place / "model", "--xmp", "--embed-jpeg", "--json"]
    assert json.loads(milnet(*options).stdout)["forward"] == 1
    assert b"urn:milnet:xmp" in (tmp_path / "jpeg" / "a.jpg").read_bytes()
    assert json.loads(milnet(*options).stdout)["forward"] == 0  # the file has changed, the photo has not
