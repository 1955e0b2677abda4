"""What the tests share: real photos and labels, where there are any."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "MILNET_TEST_DATA"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
# What milnet keeps for a user (cache, weights, places) is not this user's while tests run.
os.environ["MILNET_HOME"] = tempfile.mkdtemp(prefix="milnet-tests-")
atexit.register(shutil.rmtree, os.environ["MILNET_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test finds nothing that another one has kept."""
    monkeypatch.setenv("MILNET_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data that MILNET_TEST_DATA names; without it the test is skipped."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"needs real data: {VARIABLE} is not set")
    folder = Path(os.environ[VARIABLE])
    if not (folder / "data").is_dir():
        pytest.fail(f"{VARIABLE}={folder}: expected a folder that holds `data`", pytrace=False)
    return folder


# The longest files, longest first: of several processes (`pytest -n 2`) none is left alone with one of them at the end.
LONGEST = (
    "test_demo", "test_serve_attacks", "test_cli", "test_taste", "test_serve_page", "test_library_end_to_end",
    "test_resume", "test_benchmarks", "test_export", "test_serve_api", "test_weights", "test_store",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process, which makes what they share once; files in the order above."""
    from xdist.scheduler import LoadFileScheduling  # where it is asked for, it is there

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if VARIABLE in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped because {VARIABLE} is not set", yellow=True)
