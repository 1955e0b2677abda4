"""The published code's feature files, one pickled array a photo: read without unpickling, imported as features.

The published extractors write for each photo a file named by the bare id, with a NumPy array of floats:

    pickle.dump     (1, 6144) reduced, (1, 16928, 1, 1) narrow, (1, 16928, 5, 5) wide
    torch.save      (1, 2048) semantic: the same pickle inside a zip file, or between short ones (before torch 1.6)

A pickle is a program, and running a foreign one runs whatever its author chose. Nothing is run here: Python's own
`pickletools` splits the file into instructions, and a machine of the few that NumPy arrays need carries them out on
inert descriptions. It knows five names (two of them at two places, for NumPy 1 and 2) and calls none of them: the array
is made at the end from a shape, a type and bytes that fit each other. Everything else is refused by name.
"""

from __future__ import annotations

import io
import math
import pickletools
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    digest_file,
    new_folder,
    write_array,
    write_lines,
    write_manifest,
)
from milnet.datasets.imported import files_below
from milnet.errors import ArtifactError, MilnetError, NumericError, UsageError
from milnet.features import Progress, photos_digest, write_errors
from milnet.mlsp import CELLS

MAX_BYTES = 64 << 20  # of a file; the largest published one has 1.7 MB

_FLOATS = ("f2", "f4", "f8")
_MOST_DIMENSIONS = 8
_MOST_INSTRUCTIONS = 1000  # an array takes about 60
_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "buffer",
    "numpy._core.numeric _frombuffer": "buffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that begins torch's files without zip
_MARK = object()


class _Refused(Exception):
    """Why a file is not read; becomes an ArtifactError that names the file."""


@dataclass(frozen=True)
class _Name:
    """One of `_NAMES`, by what it means."""

    meaning: str


@dataclass
class _Type:
    """A type of floats; `order` is "" until the file says it."""

    code: str
    order: str = ""


@dataclass
class _Array:
    """An array as the file describes it; `type` is None until it does."""

    shape: tuple[int, ...] = ()
    type: _Type | None = None
    data: bytes | bytearray = b""
    fortran: bool = False


def read_array_pickle(path: Path) -> NDArray[np.floating[Any]]:
    """The array of floats in a feature file of the published code: any shape, float16, float32 or float64.

    Runs nothing that the file holds. Raises ArtifactError naming the file and what was found for anything but one array
    of floats (another name to call, objects, another type, lengths that do not fit, damage, more than 64 MiB),
    NumericError for NaN and infinities.
    """
    try:
        described = _described(_contents(path))
        array = _made(described)
    except _Refused as refused:
        raise ArtifactError(
            f"{path}: {refused}; expected one NumPy array of floats, pickled or saved by torch, and nothing else"
        ) from None
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise NumericError(f"{path}: expected finite numbers, got {array[at]} at {at}")
    return array


def _contents(path: Path) -> bytes:
    """The bytes of a file that is not too large; of a pipe or a device nothing is read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _Refused("is no file")
        if found.st_size > MAX_BYTES:
            raise _Refused(f"has {found.st_size:,} bytes, more than {MAX_BYTES:,}")
        with path.open("rb") as file:
            data = file.read(found.st_size + 1)  # what is asked for is reserved at once
    except OSError as error:
        raise _Refused(f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise _Refused("is empty")
    if len(data) != found.st_size:
        raise _Refused("changes while it is read")
    return data


def _described(data: bytes) -> _Array:
    """The array that a file describes, whichever way it was written."""
    if data.startswith(b"PK\x03\x04"):
        data = _zipped(data)
    if data.startswith(_TORCH):
        # number, version, system, array, keys of tensors: only the array matters, the others are not carried out
        start = 0
        for _ in range(3):
            start = _skipped(data, start)
        array, end = _machine(data, start)
        end = _skipped(data, end)
    else:
        array, end = _machine(data, 0)
    if end != len(data):
        raise _Refused(f"has {len(data) - end:,} bytes behind its end")
    return array


def _zipped(data: bytes) -> bytes:
    """The pickle inside a zip file of torch. Torch does not compress, so what is compressed is refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = [entry for entry in archive.infolist() if entry.filename.split("/")[-1] == "data.pkl"]
            if len(inside) != 1:
                raise _Refused(f"is a zip file with {len(inside)} entries data.pkl instead of one")
            if inside[0].compress_type != zipfile.ZIP_STORED or inside[0].file_size > len(data):
                raise _Refused("is a zip file with a compressed data.pkl, which torch does not write")
            return archive.read(inside[0])
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        struct.error,
    ) as error:
        raise _Refused(f"is a damaged zip file ({error})") from error


def _instructions(data: bytes, start: int) -> Iterator[tuple[str, Any]]:
    """(name, argument) of the instructions of the pickle at `start`, up to its stop; then ("", the place behind it)."""
    stream = io.BytesIO(data)
    stream.seek(start)
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if number == _MOST_INSTRUCTIONS:
                raise _Refused(f"is a pickle of more than {_MOST_INSTRUCTIONS:,} instructions")
            yield instruction.name, argument
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise _Refused(f"is not a complete pickle ({str(error)[:120]})") from error
    yield "", stream.tell()


def _skipped(data: bytes, start: int) -> int:
    """The place behind the pickle at `start`, of which nothing is carried out."""
    *_, (_, end) = _instructions(data, start)
    return int(end)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    ["BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
     "BINBYTES8", "BYTEARRAY8"]
)  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _machine(data: bytes, start: int) -> tuple[_Array, int]:
    """Carry out the pickle at `start` on descriptions: the array, and the place behind it.

    There are few instructions, each adds at most one value, and encoded texts are counted: memory stays near the
    file's size.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    room = len(data)  # bytes that texts may still become

    def pop(count: int) -> list[Any]:
        if len(stack) < count or any(value is _MARK for value in stack[len(stack) - count :]):
            raise _Refused("is a pickle that takes more than it has")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    end = 0
    for name, argument in _instructions(data, start):
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            count = next((n for n, value in enumerate(reversed(stack)) if value is _MARK), None)
            if count is None:
                raise _Refused("is a pickle with a tuple that has no beginning")
            values = tuple(pop(count))
            stack.pop()
            stack.append(values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_name(argument if name == "GLOBAL" else pop(2)))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            value = pop(1)[0]
            memo[len(memo) if name == "MEMOIZE" else argument] = value
            stack.append(value)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise _Refused(f"is a pickle that asks for value {argument}, which it never stored")
            stack.append(memo[argument])
        elif name == "REDUCE":
            called, arguments = pop(2)
            made = _called(called, arguments, room)
            room -= len(made) if isinstance(made, bytes) else 0
            stack.append(made)
        elif name == "BUILD":
            target, state = pop(2)
            _completed(target, state)
            stack.append(target)
        elif name == "":
            end = argument
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"holds the pickle instruction {name}, which no array of floats needs")
    if len(stack) != 1 or not isinstance(stack[0], _Array):
        what = type(stack[-1]).__name__.lstrip("_") if stack else "nothing"
        raise _Refused(f"holds {what} instead of an array")
    return stack[0], end


def _name(argument: Any) -> _Name:
    """A name that the pickle asks for; the only place where names are let in."""
    if isinstance(argument, list):
        if not all(isinstance(part, str) for part in argument):
            raise _Refused("is a pickle that asks for a name that is no text")
        argument = " ".join(argument)
    if argument not in _NAMES:
        raise _Refused(f"asks to import {'.'.join(str(argument).split(' ', 1))[:200]!r}, which was not done")
    return _Name(_NAMES[argument])


def _called(name: Any, arguments: Any, room: int) -> Any:
    """What a call would give, as a description; the call itself is not made."""
    meaning = name.meaning if isinstance(name, _Name) else None
    if not isinstance(arguments, tuple):
        raise _Refused("is a pickle with a call without arguments")
    match meaning, arguments:
        case "encode", (str() as text, "latin1"):
            if len(text) > room:
                raise _Refused("is a pickle that blows up one text many times")
            try:
                return text.encode("latin1")
            except UnicodeEncodeError as error:
                raise _Refused("holds a text that is not the bytes of an array") from error
        case "array", (_Name(meaning="ndarray"), (0,), (b"b" | "b")):
            return _Array()
        case "dtype", (str() as code, bool() | 0 | 1, bool() | 0 | 1):
            if code not in _FLOATS:
                kind = "objects" if code.startswith("O") else f"the type {code[:20]!r}"
                raise _Refused(f"holds an array of {kind}, not of floats ({', '.join(_FLOATS)})")
            return _Type(code)
        case "buffer", (bytes() | bytearray() as data, _Type() as kind, tuple() as shape, "C" | "F" as order):
            return _array(shape, kind, data, order == "F")
    raise _Refused(f"holds a call of {meaning or type(name).__name__} that makes no array of floats")


def _completed(target: Any, state: Any) -> None:
    """Give a type its byte order, or an array its content: each once."""
    match target, state:
        case _Type(order=""), (3, "<" | ">" as order, None, None, None, -1, -1, 0):
            target.order = order
        case _Array(type=None), (
            1,
            tuple() as shape,
            _Type() as kind,
            bool() as fortran,
            bytes() | bytearray() as data,
        ):
            described = _array(shape, kind, data, fortran)
            target.shape, target.type, target.data = described.shape, described.type, described.data
            target.fortran = described.fortran
        case _:
            raise _Refused(f"holds a state of {type(target).__name__.lstrip('_')} that makes no array of floats")


def _array(shape: tuple[Any, ...], kind: _Type, data: bytes | bytearray, fortran: bool) -> _Array:
    """An array whose shape, type and bytes fit each other; nothing of the shape's size is ever reserved."""
    if not kind.order:
        raise _Refused("holds an array without a byte order")
    if not 0 < len(shape) <= _MOST_DIMENSIONS or not all(type(side) is int and side > 0 for side in shape):
        # Not shown: the values may be nested or repeat each other without end.
        raise _Refused(f"holds an array whose shape is not 1 to {_MOST_DIMENSIONS} whole numbers above 0")
    wanted = math.prod(shape) * int(kind.code[1:])
    if wanted != len(data):
        raise _Refused(f"holds {len(data):,} bytes for an array of the shape {shape}, which takes {wanted:,}")
    return _Array(shape, kind, data, fortran)


def _made(described: _Array) -> NDArray[np.floating[Any]]:
    """The array itself, in this machine's byte order."""
    if described.type is None:
        raise _Refused("holds an array without content")
    stored = np.dtype(described.type.order + described.type.code)
    flat = np.frombuffer(described.data, stored)
    array: NDArray[np.floating[Any]] = flat.reshape(described.shape, order="F" if described.fortran else "C")
    return array.astype(stored.newbyteorder("="), order="C", copy=True)


def import_features(
    table: Table,
    source: Path,
    folder: Path,
    *,
    narrow: bool = False,
    wide: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    problems: list[MilnetError] | None = None,
) -> Manifest:
    """Write the features folder of `table` from the published code's files in `source`, one named by each photo's id.

    Arrays (1, D) and (1, D, 1, 1) become rows [N, D] float16; (1, D, 5, 5), the wide features, only with `narrow`
    or `wide`, as the means of their cells, and with `wide` the maps are stored beside them, for a reducer. Photos
    without a file are unreadable and listed in errors.csv. There are no pixels to digest, so pixels.txt is empty
    and `readable.npy` (bool [N]) says which rows count. Raises ArtifactError when no photo has a file, for a file
    that is no array of floats or of another shape than the first, NumericError for a number that is not finite or
    does not fit float16; with a list of `problems` these go there instead, and their photos are unreadable. Raises
    UsageError for wide features without `narrow` or `wide`, and for `wide` without them.
    """
    try:
        names = files_below(source)
    except UsageError as error:
        raise UsageError(f"expected the folder of the published feature files, got {source}") from error
    rows = [row for row, photo in enumerate(table.ids) if photo in names]
    if not rows:
        there = f"there are {len(names):,} files, the first {next(iter(names))!r}" if names else "there are none"
        raise ArtifactError(
            f"none of the {len(table):,} photos has a file in {source}: expected files named by the bare id, like "
            f"{table.ids[0]!r}; {there}"
        )
    errors = {row: ("", f"there is no file {photo!r}") for row, photo in enumerate(table.ids) if photo not in names}
    readable = np.zeros(len(table), np.bool_)
    with new_folder(folder, "features", overwrite=overwrite) as building:
        stored: np.memmap[Any, np.dtype[np.float16]] | None = None
        maps: np.memmap[Any, np.dtype[np.float16]] | None = None
        shape: tuple[int, ...] = ()
        for done, row in enumerate(rows):
            if progress is not None:
                progress(done, len(rows), "files")
            file = source / table.ids[row]
            try:
                cells, found = _row(file, narrow or wide)
                numbers = cells.mean(1)
                if stored is None:
                    # Only now is the width known; rows that are not written stay NaN.
                    shape, size = found, (len(table), len(numbers))
                    stored = np.lib.format.open_memmap(building / "features.npy", "w+", np.float16, size)
                    stored[:] = np.nan
                    if wide:
                        if cells.shape[1] != CELLS * CELLS:
                            raise UsageError(f"{file} holds {found}, no maps (1, D, 5, 5): leave --wide out")
                        room = (len(table), CELLS * CELLS, len(numbers))
                        maps = np.lib.format.open_memmap(building / "wide.npy", "w+", np.float16, room)
                if found != shape:
                    raise ArtifactError(f"{file}: expected an array {shape} like the first one, got {found}")
            except (ArtifactError, NumericError) as error:
                if problems is None:
                    raise
                problems.append(error)
                errors[row] = (str(file), str(error))
                continue
            stored[row], readable[row] = numbers, True
            if maps is not None:
                maps[row] = cells.T
        if progress is not None:
            progress(len(rows), len(rows), "files")
        if stored is None:
            raise ArtifactError(
                f"none of the {len(rows):,} files in {source} could be read; the first: {errors[rows[0]][1]}"
            )
        width = stored.shape[1]
        stored.flush()
        del stored
        files = ["features.npy", "pixels.txt", "readable.npy"]
        if maps is not None:
            maps.flush()
            files.append("wide.npy")
        write_array(building / "readable.npy", readable)
        write_lines(building / "pixels.txt", [""] * len(table))
        write_errors(building / "errors.csv", ((table.ids[row], *errors[row]) for row in sorted(errors)))
        manifest = Manifest(
            kind="features",
            format=FORMATS["features"],
            config={
                "backbone": "published files",
                "weights": "unknown",
                "preprocess": {},
                "normalisation": {},
                "ranges": {"taps": [0, width], "last": [0, width]},
                "seen": "unknown (published files)",
                # how the published code pools
                **({} if maps is None else {"wide": {"pooling": "adaptive", "cells": CELLS, "stored": "float16"}}),
            },
            files={name: digest_file(building / name) for name in files},
            inputs={"photos": photos_digest(table)},
            counts={"photos": int(readable.sum()), "unreadable": len(errors)},
            notes={"weights": "unknown", "source": str(source.resolve())},
        )
        write_manifest(building, manifest)
    return manifest


def _row(file: Path, wide: bool) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """The cells of one photo, [D, cells], all fit for float16, and the shape of the array they were in."""
    array = read_array_pickle(file)
    if array.ndim not in (2, 4) or array.shape[0] != 1:
        raise ArtifactError(f"{file}: expected an array (1, D), (1, D, 1, 1) or (1, D, 5, 5), got {array.shape}")
    cells = array.reshape(array.shape[1], -1).astype(np.float64)
    if cells.shape[1] > 1 and not wide:
        raise UsageError(
            f"{file} holds wide features {array.shape}, a map of {cells.shape[1]} cells for each number: pass --narrow "
            "(narrow=True) to import the means of the cells, or --wide float16 to keep the maps for a reducer as well"
        )
    with np.errstate(over="ignore"):
        fits = np.isfinite(cells.astype(np.float16)).all()
    if not fits:
        raise NumericError(f"{file}: a number does not fit float16: {np.abs(cells).max():.4g} is above 65504")
    return cells, array.shape
