"""Everything that can go wrong, as one picture.

    MilnetError                 what a user can meet; the command prints it and ends with 2
    +-- UsageError              an option, or options that do not fit together
    +-- AnnotationError         a label file: which file, which line, what was expected
    +-- ImageError              a photo that cannot be decoded: which file, why
    +-- ArtifactError           a folder of ours that is missing, foreign, older, incomplete, or of other inputs
    +-- LeakError               a test photo that some trained part has already seen
    +-- WeightsError            weights that are missing, unreachable, or not those of the network
    +-- MissingExtraError       an optional package that is not installed; says which command mends it
    +-- NumericError            a NaN or an infinity where there must be none

Each message says what was expected, what was found, where, and what to do. `assert` is for what cannot happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MilnetError(Exception):
    """Base of all errors that milnet raises on purpose."""


class UsageError(MilnetError):
    """An option or an argument is wrong, or two of them do not fit together."""


class AnnotationError(MilnetError):
    """A label file has a defect.

    `file` and `line` (1-based; None when the defect is not of one line) say where.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, line: int | None = None) -> None:
        where = "" if file is None else f"{file}{'' if line is None else f', line {line}'}: "
        super().__init__(where + message)
        self.file = None if file is None else str(file)
        self.line = line
        self.reason = message


class ImageError(MilnetError):
    """A photo cannot be read; `file` names it."""

    def __init__(self, file: str | Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)
        self.reason = reason


class ArtifactError(MilnetError):
    """A milnet folder is missing, incomplete, of another kind or format, or was made from other inputs."""


class LeakError(MilnetError):
    """A test photo was seen by a trained part or sits in the pool; `ids` lists them."""

    def __init__(self, message: str, ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class WeightsError(MilnetError):
    """Weights are missing, unreachable, or belong to another network."""


class MissingExtraError(MilnetError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'milnet[{extra}]'"
        )
        self.package, self.extra = package, extra


class ProcessError(MilnetError):
    """Another process of the same run failed or ended, so that this one cannot go on."""


class NumericError(MilnetError):
    """A value is NaN or infinite where it must be finite."""


def in_short(error: BaseException) -> str:
    """The kind of a foreign error and the first line of what it says, at most 200 characters of it."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
