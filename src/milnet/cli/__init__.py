"""The command line. Only this package prints; each command calls the library and shows what it returned."""

from __future__ import annotations

from milnet.cli import data, learn, numbers, use  # noqa: F401  (each registers its commands, in the order of --help)
from milnet.cli.common import app, main

__all__ = ["app", "main"]
