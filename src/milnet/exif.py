"""EXIF and TIFF directories: what little of them is needed, read so that damage is never more than missing.

An EXIF block is a small TIFF file: 8 bytes of header, a directory (IFD) of 12-byte entries, and one below it. A TIFF or
RAW photo *is* such a file, of any size; `of_tiff` copies what is worth keeping of it into a block of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

ORIENTATION = 0x0112
EXIF_IFD, _SUB_IFDS = 0x8769, 0x014A
_TAKEN = (0x9003, 0x9004)  # DateTimeOriginal, DateTimeDigitized
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes, by TIFF type
_LONGEST = 1024  # bytes of a value worth reading; dates and names of cameras are far shorter
_MOST = 32  # directories of a file that are looked at, so that circles end

# Texts worth keeping of a TIFF or a RAW: which camera, and when. Of the first directory, and of the one for EXIF.
_TEXTS = {
    0: (0x010F, 0x0110, 0x0132),  # Make, Model, DateTime
    EXIF_IFD: (
        0x9003, 0x9004,  # DateTimeOriginal, DateTimeDigitized
        0x9010, 0x9011, 0x9012,  # OffsetTime of DateTime, Original, Digitized
        0x9290, 0x9291, 0x9292,  # SubSecTime of the same
        0xA431,  # BodySerialNumber
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Directory:
    """One IFD: tag -> its value's bytes (at most 1,024 of them), all numbers in byte order `order`."""

    order: str  # "<" or ">"
    values: Mapping[int, tuple[int, bytes]]  # tag -> TIFF type, bytes

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag, () where it is missing or holds none."""
        kind, data = self.values.get(tag, (0, b""))
        letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
        if letter is None:
            return ()
        count = len(data) // _SIZES[kind]
        return struct.unpack(f"{self.order}{count}{letter}", data[: count * _SIZES[kind]])

    def text(self, tag: int) -> bytes:
        """The bytes of a text without the zero at its end, b"" where it is missing or empty."""
        kind, data = self.values.get(tag, (0, b""))
        return data.split(b"\0")[0].strip() if kind == 2 else b""


def block(data: bytes) -> bytes:
    """EXIF as formats store it, without the `Exif\\0\\0` some put before it; b"" unless it begins as a TIFF does."""
    data = data.removeprefix(b"Exif\0\0")
    return data if _order(data[:8]) else b""


def orientation(exif: bytes) -> int:
    """EXIF orientation 1 to 8 of a block; 1 where there is none: the pixels are good all the same."""
    for directory in _chain(BytesIO(exif)):
        (value, *_) = directory.numbers(ORIENTATION) or (1,)
        return value if 1 <= value <= 8 else 1
    return 1


def texts(exif: bytes) -> dict[int, str]:
    """The texts of a block's directory for EXIF, by their tags; {} where there is none, or none that can be read."""
    stream = BytesIO(exif)
    for first in _chain(stream):
        for below in _at(stream, first.order, first.numbers(EXIF_IFD)[:1]):
            return {tag: below.text(tag).decode("latin-1") for tag in below.values if below.text(tag)}
        break
    return {}


def is_dated(exif: bytes) -> bool:
    """Whether a block says when the photo was taken (not merely when its file was written)."""
    return any(tag in _TAKEN for tag in texts(exif))


def of_tiff(stream: BinaryIO) -> bytes:
    """A block with the camera and the dates of a TIFF-structured file; b"" where it has none, or is no such file."""
    first = next(_chain(stream), None)
    if first is None:
        return b""
    found = {0: first}
    for below in _at(stream, first.order, first.numbers(EXIF_IFD)[:1]):
        found[EXIF_IFD] = below
    return made({part: {tag: found[part].text(tag) for tag in _TEXTS[part]} for part in found})


def made(texts: Mapping[int, Mapping[int, bytes]]) -> bytes:
    """A block of texts: {0 or 0x8769: {tag: text}}; empty texts are left out, b"" where none is left."""
    first = {tag: text + b"\0" for tag, text in texts.get(0, {}).items() if text}
    below = {tag: text + b"\0" for tag, text in texts.get(EXIF_IFD, {}).items() if text}
    if not first and not below:
        return b""
    head, entries = b"II*\0" + struct.pack("<I", 8), len(first) + bool(below)
    start = 8 + 2 + 12 * entries + 4  # of what lies behind the first directory
    texts_start = start + (2 + 12 * len(below) + 4 if below else 0)
    data = b""

    def directory(of: Mapping[int, bytes], extra: bytes = b"") -> bytes:
        nonlocal data
        lines = struct.pack("<H", len(of) + bool(extra))
        for tag, text in sorted(of.items()):
            if len(text) <= 4:
                value = text.ljust(4, b"\0")
            else:
                value = struct.pack("<I", texts_start + len(data))
                data += text
            lines += struct.pack("<HHI", tag, 2, len(text)) + value
        return lines + extra + bytes(4)

    pointer = struct.pack("<HHII", EXIF_IFD, 4, 1, start) if below else b""  # the highest tag: it comes last
    whole = head + directory(first, pointer)
    return (whole + directory(below) if below else whole) + data


def directories(stream: BinaryIO) -> Iterator[Directory]:
    """The directories of a TIFF-structured file and those directly below them, as far as they can be read."""
    seen = 0
    for directory in _chain(stream):
        yield directory
        for below in _at(stream, directory.order, directory.numbers(_SUB_IFDS)):
            yield below
            seen += 1
            if seen >= _MOST:
                return


# ---- reading ---------------------------------------------------------------------------------------------------------


def _order(head: bytes) -> str:
    """Byte order of a classic TIFF header, "" for anything else. The number behind it (42) differs in some RAWs."""
    return {b"II": "<", b"MM": ">"}.get(head[:2], "") if len(head) == 8 else ""


def _chain(stream: BinaryIO) -> Iterator[Directory]:
    """The directories from the first one on, as each names the next."""
    try:
        stream.seek(0)
        head = stream.read(8)
    except (OSError, ValueError):
        return
    order = _order(head)
    place = struct.unpack(f"{order}I", head[4:])[0] if order else 0
    seen = set[int]()
    while place and place not in seen and len(seen) < _MOST:
        seen.add(place)
        found = _read(stream, order, place)
        if found is None:
            return
        directory, place = found
        yield directory


def _at(stream: BinaryIO, order: str, places: tuple[int, ...]) -> Iterator[Directory]:
    for place in places[:_MOST]:
        found = _read(stream, order, place)
        if found is not None:
            yield found[0]


def _read(stream: BinaryIO, order: str, place: int) -> tuple[Directory, int] | None:
    """The directory at `place` and where the next one is (0: nowhere); entries that point outside are left out."""
    values: dict[int, tuple[int, bytes]] = {}
    try:
        stream.seek(place)
        (count,) = struct.unpack(f"{order}H", stream.read(2))
        table = stream.read(12 * count + 4)
        for at in range(0, 12 * min(count, len(table) // 12), 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", table, at)
            length = _SIZES.get(kind, 0) * number
            data = table[at + 8 : at + 8 + min(length, 4)]
            if length > 4:
                stream.seek(struct.unpack_from(f"{order}I", table, at + 8)[0])
                data = stream.read(min(length, _LONGEST))
            if data and len(data) == min(length, max(4, _LONGEST)):
                values.setdefault(tag, (kind, data))
        following = struct.unpack_from(f"{order}I", table, 12 * count)[0] if len(table) == 12 * count + 4 else 0
    except (struct.error, OSError, ValueError, OverflowError):
        return None if not values else (Directory(order, values), 0)
    return Directory(order, values), following
