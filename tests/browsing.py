"""Debian's chromium for tests of pages. Importing it skips the module where playwright or chromium is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_CHROMIUM = shutil.which("chromium")
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    pytest.skip("needs the Python package playwright", allow_module_level=True)
if _CHROMIUM is None:
    pytest.skip("needs the program chromium", allow_module_level=True)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, closed in the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
