"""The published formats of rated photos, one file each; here is which name is read by which reader."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from milnet.annotations import Problems
from milnet.datasets.ava import AvaOptions, read_ava
from milnet.datasets.imported import Imported
from milnet.datasets.oasis import OasisOptions, read_oasis
from milnet.datasets.table import TableOptions, read_table
from milnet.errors import UsageError

Options = AvaOptions | OasisOptions | TableOptions
_T = TypeVar("_T")

# name -> its options
FORMATS: dict[str, type[Options]] = {
    "table": TableOptions,
    "oasis": OasisOptions,
    "ava-19928": AvaOptions,
    "ava-19998": AvaOptions,
}
ALIASES = {"ava": "ava-19928", "ava-ilg": "ava-19998"}


def format_name(text: str) -> str:
    """The name of a format as FORMATS has it: "AVA_19928" and "ava" are "ava-19928". UsageError lists the formats."""
    name = text.strip().lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in FORMATS:
        known = ", ".join(f"{n}{''.join(f' ({a})' for a, of in ALIASES.items() if of == n)}" for n in FORMATS)
        raise UsageError(f"there is no format {text!r}; there are: {known}")
    return name


def read_dataset(format_: str, source: Path, problems: Problems, options: Options | None = None) -> Imported:
    """Read `source`, which is in `format_`. `options` are those of the format (FORMATS), None for the defaults.

    Raises UsageError for an unknown format and options of another one, AnnotationError for the first defect of a label
    file (all defects are collected in `problems` and their rows skipped when it keeps going).
    """
    match format_name(format_):
        case "oasis":
            return read_oasis(source, problems, _own(options, OasisOptions, format_))
        case "ava-19928":
            return read_ava(source, problems, _own(options, AvaOptions, format_), protocol="19928")
        case "ava-19998":
            return read_ava(source, problems, _own(options, AvaOptions, format_), protocol="19998")
        case _:
            return read_table(source, problems, _own(options, TableOptions, format_))


def _own(options: Options | None, kind: type[_T], format_: str) -> _T | None:
    if options is None or isinstance(options, kind):
        return options
    raise UsageError(f"the format {format_} is read with {kind.__name__}, got {type(options).__name__}")
