"""The published formats of rated photos, one file each; here is which name is read by which reader."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from milnet.annotations import Problems
from milnet.datasets.aadb import AadbOptions, read_aadb
from milnet.datasets.ava import AvaOptions, read_ava
from milnet.datasets.eva import EvaOptions, read_eva
from milnet.datasets.imported import Imported
from milnet.datasets.koniq10k import Koniq10kOptions, read_koniq10k
from milnet.datasets.oasis import OasisOptions, read_oasis
from milnet.datasets.para import ParaOptions, read_para
from milnet.datasets.table import TableOptions, read_table
from milnet.datasets.tad66k import Tad66kOptions, read_tad66k
from milnet.errors import UsageError

Options = (
    TableOptions | OasisOptions | AvaOptions | Tad66kOptions | Koniq10kOptions | EvaOptions | ParaOptions | AadbOptions
)
_T = TypeVar("_T")

# name -> its options
FORMATS: dict[str, type[Options]] = {
    "table": TableOptions,
    "oasis": OasisOptions,
    "ava-19928": AvaOptions,
    "ava-19998": AvaOptions,
    "tad66k": Tad66kOptions,
    "koniq10k": Koniq10kOptions,
    "eva": EvaOptions,
    "para": ParaOptions,
    "aadb": AadbOptions,
}
ALIASES = {
    "ava": "ava-19928",
    "ava-ilg": "ava-19998",
    "tad-66k": "tad66k",
    "koniq-10k": "koniq10k",
    "koniq": "koniq10k",
}


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
        case "tad66k":
            return read_tad66k(source, problems, _own(options, Tad66kOptions, format_))
        case "koniq10k":
            return read_koniq10k(source, problems, _own(options, Koniq10kOptions, format_))
        case "eva":
            return read_eva(source, problems, _own(options, EvaOptions, format_))
        case "para":
            return read_para(source, problems, _own(options, ParaOptions, format_))
        case "aadb":
            return read_aadb(source, problems, _own(options, AadbOptions, format_))
        case _:
            return read_table(source, problems, _own(options, TableOptions, format_))


def _own(options: Options | None, kind: type[_T], format_: str) -> _T | None:
    if options is None or isinstance(options, kind):
        return options
    raise UsageError(f"the format {format_} is read with {kind.__name__}, got {type(options).__name__}")
