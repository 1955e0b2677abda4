"""The demo: every number computed in the run, from the installed package alone, with the network refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milnet import places
from milnet.annotations import load_table, save_table
from milnet.demo import Cell, cells, measure
from milnet.places import find_data
from test_cli import milnet

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
    save_table(replace(table, votes=table.votes[order]), tmp_path / "data", inputs={})
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
    cells = [(row["recipe"], row["features"], row["kind"]) for row in found["measured"]]
    assert [cell for cell in cells if cell[2] == "random"] == [
        ("single", "mobilenetv2_100", "random"),
        ("published", "mobilenetv2_100", "random"),
        ("votes", "mobilenetv2_100", "random"),
        ("votes", "pocket", "random"),
    ]
    srcc = {(row["recipe"], row["features"]): row["srcc"][0] for row in found["measured"] if row["kind"] == "random"}
    assert srcc["votes", "mobilenetv2_100"] > srcc["single", "mobilenetv2_100"] > 0.75
    assert srcc["votes", "pocket"] > 0.5
    assert len(found["left_out"]) == 8 - len(cells) > 0  # what was done by then counts
    assert [Path(score["photo"]).name for score in found["scores"]] == ["a.png", "b.png"]
    assert Path(found["failures"][0]["photo"]).name == "bad.jpg"
    page = (tmp_path / "report.html").read_text()
    assert "a.png" in page
    assert f"{srcc['votes', 'pocket']:.3f}" in page
    assert "milnet weights add" in page
    assert not (tmp_path / "home").exists()  # nothing is left behind


def test_wrong_output(tmp_path: Path) -> None:
    """Refused before anything is measured."""
    (tmp_path / "mine.html").write_text("<p>my page</p>")
    for name, words in (
        ("report.txt", "expected a file name ending in .html"),
        ("none/report.html", "in a folder that exists"),
        ("mine.html", "is no report of milnet"),
    ):
        assert words in milnet("demo", "-o", tmp_path / name, code=2).stderr
    good = ("-o", str(tmp_path / "r.html"))
    assert "no such file" in milnet("demo", tmp_path / "none.jpg", *good, code=2).stderr
    assert "expected ascending percentiles" in milnet("demo", "--stars", "60,40", *good, code=2).stderr


def test_stopped(tmp_path: Path) -> None:
    """An interrupt ends the processes too, and leaves nothing behind."""
    command = [sys.executable, "-m", "milnet", "demo", "-o", str(tmp_path / "r.html")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc")
    until = time.monotonic() + 60
    while len(children.read_text().split()) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    born = children.read_text().split()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    alive = lambda: [pid for pid in born if "milnet" in command_of(pid) or "spawn_main" in command_of(pid)]  # noqa: E731
    until = time.monotonic() + 30
    while alive() and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive()
    assert not list(tmp_path.glob("milnet-demo-*"))


def command_of(pid: str) -> str:
    """The command line of a process, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bundled data the demo says what is missing."""
    monkeypatch.setattr(places, "BUNDLED", tmp_path)
    assert "its bundled data were removed" in milnet("demo", "-o", tmp_path / "r.html", code=2).stderr
