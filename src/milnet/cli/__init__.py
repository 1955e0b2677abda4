"""The command line. Only this package prints; each command calls the library and shows what it returned."""

from __future__ import annotations

# Each registers its commands: the order is that of --help.
# isort: off
from milnet.cli import demo  # noqa: F401
from milnet.cli import data  # noqa: F401
from milnet.cli import numbers  # noqa: F401
from milnet.cli import train  # noqa: F401
from milnet.cli import test  # noqa: F401
from milnet.cli import measure  # noqa: F401
from milnet.cli import figures  # noqa: F401
from milnet.cli import score  # noqa: F401
from milnet.cli import use  # noqa: F401
from milnet.cli import taste  # noqa: F401
from milnet.cli import serve  # noqa: F401
from milnet.cli import export  # noqa: F401
from milnet.cli import pool  # noqa: F401
from milnet.cli import weights  # noqa: F401

# isort: on
from milnet.cli.common import app, main

__all__ = ["app", "main"]
