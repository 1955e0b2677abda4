"""The demo: every number computed in the run, from the installed package alone, with the network refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from milnet.annotations import load_table, save_table
from milnet.cli import app
from milnet.demo import Cell, cells, measure
from milnet.places import find_data

# Any connection but to this machine's own pipes ends the process that tries it.
REFUSE = """
import socket
def refuse(self, address, *rest):
    if self.family != getattr(socket, "AF_UNIX", None):
        raise SystemExit("the network was asked for: %r" % (address,))
    return connect(self, address, *rest)
connect, socket.socket.connect, socket.socket.connect_ex = socket.socket.connect, refuse, refuse
"""


def test_cells() -> None:
    assert [(c.recipe, c.features) for c in cells("pocket", "mobilenetv2_100") if c.kind == "random"] == [
        ("single", "mobilenetv2_100"),
        ("published", "mobilenetv2_100"),
        ("votes", "mobilenetv2_100"),
        ("votes", "pocket"),
    ]
    assert len(cells("mobilenetv2_100", "mobilenetv2_100")) == 6


def test_with_permuted_votes_nothing_is_predicted(tmp_path: Path) -> None:
    """The same pool with its votes dealt out anew: what is measured is learned, not written down."""
    table, _ = load_table(find_data("bundled"))
    order = np.random.default_rng(0).permutation(len(table))
    save_table(replace(table, votes=table.votes[order]), tmp_path / "data")
    (tmp_path / "data" / "features").symlink_to(find_data("bundled") / "features")
    found = measure(tmp_path / "data", Cell("votes", "pocket", "random"))
    assert abs(found.metrics["srcc"][0]) < 0.2


def test_the_whole(tmp_path: Path) -> None:
    """From nothing but the package: measured, trained, photos scored, a report; a bad photo is listed."""
    (tmp_path / "sitecustomize.py").write_text(REFUSE)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    photos = [str(tmp_path / name) for name in ("a.png", "b.png", "bad.jpg")]
    # theme folds are left out to save time, as they are on a slow machine
    code = "import milnet.demo; milnet.demo.SECONDS = 0.0\nfrom milnet.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MILNET_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", *photos, "-o", str(tmp_path / "report.html"), "--json"],
        capture_output=True, text=True, env=environment, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one photo failed
    found = json.loads(done.stdout)
    assert [(row["recipe"], row["features"], row["kind"]) for row in found["measured"]] == [
        ("single", "mobilenetv2_100", "random"),
        ("published", "mobilenetv2_100", "random"),
        ("votes", "mobilenetv2_100", "random"),
        ("votes", "pocket", "random"),
    ]
    srcc = {(row["recipe"], row["features"]): row["srcc"][0] for row in found["measured"]}
    assert srcc["votes", "mobilenetv2_100"] > srcc["single", "mobilenetv2_100"] > 0.75
    assert srcc["votes", "pocket"] > 0.5
    assert len(found["left_out"]) == 4
    assert [Path(score["photo"]).name for score in found["scores"]] == ["a.png", "b.png"]
    assert Path(found["failures"][0]["photo"]).name == "bad.jpg"
    page = (tmp_path / "report.html").read_text()
    assert "a.png" in page
    assert f"{srcc['votes', 'pocket']:.3f}" in page
    assert "milnet weights add" in page
    assert not (tmp_path / "home").exists()  # nothing is left behind


def test_wrong_output(tmp_path: Path) -> None:
    for name in ("report.txt", "none/report.html"):
        done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / name)])
        assert done.exit_code == 2, name
    missing = CliRunner().invoke(app, ["demo", str(tmp_path / "none.jpg"), "-o", str(tmp_path / "r.html")])
    assert missing.exit_code == 2
    assert "no such file" in str(missing.output) + str(missing.stderr)


@pytest.mark.parametrize("removed", ["pool", "pocket"])
def test_removed(removed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bundled data the demo says what is missing."""
    import milnet.places

    monkeypatch.setattr(milnet.places, "BUNDLED", tmp_path)
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 2
