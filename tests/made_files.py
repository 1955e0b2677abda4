"""Photos in formats that nothing here can write: RAW (DNG) and HEIC, byte by byte, and files that are wrong.

`dng` writes a sensor's values, with or without a camera's picture beside them. `heic` writes HEVC of the simplest kind:
every block is its pixels as they are (I_PCM), so that what is decoded must be equal to what was written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ASCII, SHORT, LONG, RATIONAL, SRATIONAL, BYTE = 2, 3, 4, 5, 10, 1

# ---- TIFF ------------------------------------------------------------------------------------------------------------

Entry = tuple[int, int, object]  # tag, type, bytes | number | numbers


def _packed(kind: int, value: object) -> tuple[int, bytes]:
    """Count and bytes of a value, little-endian."""
    if isinstance(value, bytes):
        return len(value), value
    numbers = list(value) if isinstance(value, Sequence) else [value]
    if kind in (RATIONAL, SRATIONAL):
        return len(numbers), b"".join(struct.pack("<ii", round(n * 10000), 10000) for n in numbers)
    letter = {BYTE: "B", SHORT: "H", LONG: "I"}[kind]
    return len(numbers), struct.pack(f"<{len(numbers)}{letter}", *numbers)


def ifd(entries: Sequence[Entry], place: int) -> bytes:
    """A TIFF directory for byte `place` of its file, with the values that do not fit into it behind it."""
    after = place + 2 + 12 * len(entries) + 4
    lines, data = struct.pack("<H", len(entries)), b""
    for tag, kind, value in sorted(entries, key=lambda entry: entry[0]):
        count, content = _packed(kind, value)
        if len(content) > 4:
            content, data = struct.pack("<I", after + len(data)), data + content + bytes(len(content) % 2)
        lines += struct.pack("<HHI", tag, kind, count) + content.ljust(4, b"\0")
    return lines + bytes(4) + data


def exif_block(original: str = "2024:05:06 07:08:09", subsecond: str = "", orientation: int = 1) -> bytes:
    """An EXIF block with a camera, an orientation and a date."""
    below: list[Entry] = [(0x9003, ASCII, original.encode() + b"\0")]
    if subsecond:
        below.append((0x9291, ASCII, subsecond.encode() + b"\0"))
    entries: list[Entry] = [(0x0112, SHORT, orientation), (0x010F, ASCII, b"Maker\0"), (0x8769, LONG, 0)]
    start = 8 + len(ifd(entries, 8))
    return b"II*\0" + struct.pack("<I", 8) + ifd([*entries[:2], (0x8769, LONG, start)], 8) + ifd(below, start)


# ---- RAW -------------------------------------------------------------------------------------------------------------


def mosaic(rgb: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Linear 12-bit values of an RGGB sensor that sees this sRGB picture HWC (with an even number of rows, columns)."""
    x = rgb / 255.0
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) * 4095
    found = np.empty(rgb.shape[:2])
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        found[row::2, column::2] = linear[row::2, column::2, channel]
    return found.round().astype(np.uint16)


def dng(
    rgb: NDArray[np.uint8],
    *,
    preview: bytes | None = None,
    preview_size: tuple[int, int] = (0, 0),
    orientation: int = 1,
    date: str = "2024:05:06 07:08:09",
) -> bytes:
    """A DNG of an RGGB sensor that sees `rgb` HWC; its colours are sRGB. `preview`: a JPEG of the camera's.

    As cameras do it: the first directory is the preview, the sensor's values are in one below it.
    """
    height, width = rgb.shape[:2]
    values = mosaic(rgb).astype("<u2").tobytes()
    # XYZ (D65) -> linear sRGB, which is what the sensor sees
    matrix = [3.2404542, -1.5371385, -0.4985314, -0.9692660, 1.8760108, 0.0415560, 0.0556434, -0.2040259, 1.0572252]
    sensor: list[Entry] = [
        (254, LONG, 0), (256, LONG, width), (257, LONG, height), (258, SHORT, 16), (259, SHORT, 1),
        (262, SHORT, 32803), (273, LONG, 0), (277, SHORT, 1), (278, LONG, height), (279, LONG, len(values)),
        (284, SHORT, 1), (33421, SHORT, [2, 2]), (33422, BYTE, bytes([0, 1, 1, 2])),
        (50711, SHORT, 1), (50714, SHORT, 0), (50717, SHORT, 4095),
    ]  # fmt: skip
    common: list[Entry] = [
        (271, ASCII, b"Made\0"), (272, ASCII, b"Made One\0"), (274, SHORT, orientation), (306, ASCII, date.encode() + b"\0"),
        (50706, BYTE, bytes([1, 4, 0, 0])), (50707, BYTE, bytes([1, 1, 0, 0])), (50708, ASCII, b"Made One\0"),
        (50721, SRATIONAL, matrix), (50728, RATIONAL, [1.0, 1.0, 1.0]), (50778, SHORT, 21), (34665, LONG, 0),
    ]  # fmt: skip
    below: list[Entry] = [(0x9003, ASCII, date.encode() + b"\0"), (0x9291, ASCII, b"25\0")]
    if preview is None:
        first = [*common, *sensor]
    else:
        first = [
            *common, (254, LONG, 1), (256, LONG, preview_size[0]), (257, LONG, preview_size[1]),
            (258, SHORT, [8, 8, 8]), (259, SHORT, 7), (262, SHORT, 6), (273, LONG, 0), (277, SHORT, 3),
            (278, LONG, preview_size[1]), (279, LONG, len(preview)), (330, LONG, 0),
        ]  # fmt: skip

    def put(entries: list[Entry], tag: int, value: int) -> None:
        entries[:] = [(t, k, value if t == tag else v) for t, k, v in entries]

    place = 8 + len(ifd(first, 8))
    put(first, 34665, place)
    place += len(ifd(below, place))
    tail = ifd(below, first_value(first, 34665))
    if preview is None:
        put(first, 273, place)
        return b"II*\0" + struct.pack("<I", 8) + ifd(first, 8) + tail + values
    put(first, 330, place)
    after = place + len(ifd(sensor, place))
    put(first, 273, after)
    put(sensor, 273, after + len(preview) + len(preview) % 2)
    picture = preview + bytes(len(preview) % 2)
    return b"II*\0" + struct.pack("<I", 8) + ifd(first, 8) + tail + ifd(sensor, place) + picture + values


def first_value(entries: Sequence[Entry], tag: int) -> int:
    """The number of a tag."""
    (value,) = (value for t, _, value in entries if t == tag)
    assert isinstance(value, int)
    return value
