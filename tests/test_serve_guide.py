"""docs/serve.md and examples/service.py: what they show works, and what they say of limits and options is so."""

from __future__ import annotations

import csv
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made import photo
from served import Served, service

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "serve.md"
PHOTOS = 14


def blocks(kind: str) -> list[str]:
    found = re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide takes for granted: a.jpg, b.jpg, Photos/ and ratings.csv."""
    place = tmp_path_factory.mktemp("guide")
    (place / "Photos" / "sub").mkdir(parents=True)
    for name in ("a", "b"):
        photo(ord(name)).save(place / f"{name}.jpg")
    rows = []
    for seed in range(PHOTOS):
        rng = np.random.default_rng(seed)
        side = int(rng.integers(2, 24))
        small = Image.fromarray(rng.integers(0, 256, (side, side + 2, 3), dtype=np.uint8))
        way = [Image.Resampling.NEAREST, Image.Resampling.BICUBIC][seed % 2]
        small.resize((128, 96), way).save(place / "Photos" / f"{seed:02}.jpg")
        rows.append({"photo": f"Photos/{seed:02}.jpg", "rating": 1 + seed % 5})
    (place / "Photos" / "sub" / "bad.png").write_bytes(b"no image")
    with (place / "ratings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["photo", "rating"])
        writer.writeheader()
        writer.writerows(rows)
    return place


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with service(tmp_path_factory.mktemp("served")) as running:
        yield running


def test_python(folder: Path, there: Served, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The blocks, one after the other, as a reader would run them."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    told = []
    for block in blocks("python"):
        assert "http://127.0.0.1:8500" in block
        exec(compile(block.replace("http://127.0.0.1:8500", there.url), str(GUIDE), "exec"), names)
        told.append(capsys.readouterr().out)
    assert [line.split()[0] for line in told[0].splitlines()] == [f"Photos/{n:02}.jpg" for n in range(PHOTOS)]
    assert "could not be scored" not in told[0] and 1 <= len(told[1].splitlines()) <= 5
    assert "general model" in told[2] and "Scored(index=0" in told[2] and (folder / "mine.zip").stat().st_size > 1000


def test_curl(folder: Path, there: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("curl")]
    assert len(commands) == 5
    for command in commands:
        line = command.replace("http://127.0.0.1:8500", there.url)
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=True)
        assert '"detail"' not in done.stdout, done.stdout
        wanted = {"Accept": '{"done":{"scored":2,"failed":0}}', "explain": '"references"', "models": '"limits"'}
        assert next((text for word, text in wanted.items() if word in line), '"scores":[{') in done.stdout


def test_options_are_those_of_the_command() -> None:
    from milnet.cli.serve import serve

    text = GUIDE.read_text(encoding="utf-8")
    given = inspect.signature(serve).parameters
    for line in re.findall(r"milnet serve (--.*)", text):
        for option in re.findall(r"--([a-z-]+)", line.split("#")[0]):
            assert option.replace("-", "_") in {*given, "offline"}, line
    rows = re.findall(r"^\|[^|]*\| `--([a-z-]+)` \| ([\d,]+)", text, re.MULTILINE)
    assert len(rows) == 5
    for option, default in rows:
        assert given[option.replace("-", "_")].default == int(default.replace(",", "")), option


def test_limits_are_those_of_the_code() -> None:
    """Numbers of the guide that are no options."""
    from milnet.server import api, decoders, lessons, running, uploads

    text = GUIDE.read_text(encoding="utf-8")
    for said in (
        f"| decoding one photo | | {decoders.SECONDS:g} s |",
        f"| a photo from its last byte to its score | | {api._SECONDS:g} s |",
        f"| a byte every {uploads._QUIET:g} s, {uploads._SLOWEST / 1000:g} kB/s after {uploads._GRACE:g} s |",
        f"| saying what is wanted; being idle | | {running._HEADERS:g} s |",
        f"| tastes | | {lessons.MOST} |",
        f"for at most {running._FINISH:g} s",
    ):
        assert said in text
    assert running._HEADERS == running._IDLE


def test_figures_are_those_of_the_service(there: Served) -> None:
    found = {name[0] for name in there.figures()}
    for name in re.findall(r"`(milnet_[a-z_]+)`", GUIDE.read_text(encoding="utf-8")):
        assert {name, f"{name}_sum"} & found or name == "milnet_photos_total", name  # of photos: once there are some


def test_the_example(folder: Path, there: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = import_module("service")
    output = tmp_path / "scores.csv"
    assert example.main([str(folder / "Photos"), "-o", str(output), "--url", there.url, "--model", "pocket"]) == 1
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["photo"]).name for row in rows] == [f"{n:02}.jpg" for n in range(PHOTOS)]
    whole = there.form("/v1/score", [(row["photo"], Path(row["photo"]).read_bytes()) for row in rows]).json()["scores"]
    for row, wanted in zip(rows, whole, strict=True):
        assert float(row["score"]) == pytest.approx(wanted["score"], abs=1e-5)
        assert row["outside"] == str(wanted["outside"])
    assert "bad.png: not an image" in capsys.readouterr().err
    assert example.main([str(folder), "-o", str(output), "--url", there.url, "--model", "none"]) == 2
    assert "404: no such model here" in capsys.readouterr().err
    sys.modules.pop("service")
