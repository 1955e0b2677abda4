"""What the tests share: real photos and labels, where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "MILNET_TEST_DATA"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data that MILNET_TEST_DATA names; without it the test is skipped."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"needs real data: {VARIABLE} is not set")
    folder = Path(os.environ[VARIABLE])
    if not (folder / "data").is_dir():
        pytest.fail(f"{VARIABLE}={folder}: expected a folder that holds `data`", pytrace=False)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if VARIABLE in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped because {VARIABLE} is not set", yellow=True)
