"""A small library with everything odd and broken in it, through the command: benchmarks/library.py with 30 photos."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import made
from milnet import heif, raw
from milnet.places import BUNDLED

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("library")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX names, links and signals")
@pytest.mark.skipif(not (heif.is_available() and raw.is_available()), reason="needs the extras heif and raw")
@pytest.mark.skipif(not BUNDLED.is_dir(), reason="needs a shipped model")
def test_a_library(library: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(30):
        made.photo(i, *((240, 180) if i % 2 else (160, 240))).save(photos / f"{i:02}.jpg", quality=90)
    output = tmp_path / "found.json"
    options = ["--copies", "1", "--kills", "2", "--options", "--model pocket --threads 1", "-o", str(output)]
    code = library.main([str(photos), *options])
    found = json.loads(output.read_text(encoding="utf-8"))
    assert not found["problems"], capsys.readouterr().out
    assert code == 0
    assert found["exit_code"] == 1
    assert found["kinds"]["photos: scored"] == 30
    assert found["kinds"]["broken: failed"] == len(library.BROKEN) >= 40
    assert found["kinds"]["odd: scored"] == len(library.ODD)
    assert found["first"]["forward"] == found["contents"] > 80
    assert (found["again"]["forward"], found["changed"]["forward"]) == (0, 1)
    assert ("secret.jpg" in found["reasons"]) == found["ordinary_user"]
    assert found["ordinary_user"] or os.geteuid() == 0


def test_what_is_missing_is_noticed(library: Any, tmp_path: Path) -> None:
    made_library = library.Made(tmp_path)
    for name, expected in (("a.jpg", "scored"), ("b.jpg", "scored"), ("c.jpg", "failed"), ("d.jpg", "unseen")):
        made_library.put(name, b"", expected, "kind")
    row = {"photo": str(tmp_path / "a.jpg"), "score": "3.5"}
    other = {"photo": str(tmp_path / "b.jpg"), "score": "2.5"}
    failure = (str(tmp_path / "c.jpg"), "a reason")
    run = library.Run(1, 1.0, 2, (row, other), (failure,))
    assert library.problems(made_library, run) == []
    for wrong, text in (
        (library.Run(0, 1.0, 2, (row, other), (failure,)), "exit code 0"),
        (library.Run(1, 1.0, 2, (row,), (failure,)), "b.jpg' is not in out.csv"),
        (library.Run(1, 1.0, 2, (row, other, other), (failure,)), "b.jpg' is 2 times in out.csv"),
        (library.Run(1, 1.0, 2, (row, other), ()), "c.jpg' is not in out.errors.csv"),
        (library.Run(1, 1.0, 2, (row, other), (failure, (str(tmp_path / "d.jpg"), "x"))), "d.jpg' is in out.errors"),
        (library.Run(1, 1.0, 2, (row, other), ((failure[0], " "),)), "c.jpg' has no reason"),
        (library.Run(1, 1.0, 2, (row, {**other, "score": "nan"}), (failure,)), "b.jpg': no score"),
    ):
        (found,) = library.problems(made_library, wrong)
        assert text in found
    assert library.difference(run, library.Run(1, 1.0, 2, (row, {**other, "score": "2.75"}), ())) == (1, 0.25)
    assert library.difference(run, library.Run(1, 1.0, 2, (row,), ())) == (1, 0.0)
