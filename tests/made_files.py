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
    taken: bool = True,
) -> bytes:
    """A DNG of an RGGB sensor that sees `rgb` HWC; its colours are sRGB. `preview`: a JPEG of the camera's.
    `taken`: whether it says when the photo was taken, and not merely when the file was written.

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
        (271, ASCII, b"Made\0"), (272, ASCII, b"Made One\0"), (274, SHORT, orientation),
        (306, ASCII, date.encode() + b"\0"),
        (50706, BYTE, bytes([1, 4, 0, 0])), (50707, BYTE, bytes([1, 1, 0, 0])), (50708, ASCII, b"Made One\0"),
        (50721, SRATIONAL, matrix), (50728, RATIONAL, [1.0, 1.0, 1.0]), (50778, SHORT, 21), (34665, LONG, 0),
    ]  # fmt: skip
    below: list[Entry] = [(0x9003, ASCII, date.encode() + b"\0"), (0x9291, ASCII, b"25\0")] if taken else []
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


# ---- HEVC ------------------------------------------------------------------------------------------------------------

BLOCK = 16  # pixels a side of a coding block

# Column 3 of the table of ranges of the least probable symbol (ITU-T H.265, table 9-52), by state.
_RANGES = (
    240, 227, 216, 205, 195, 185, 175, 166, 158, 150, 142, 135, 128, 122, 116, 110, 104, 99, 94, 89, 85, 80, 76, 72, 69,
    65, 62, 59, 56, 53, 50, 48, 45, 43, 41, 39, 37, 35, 33, 31, 30, 28, 27, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15,
    14, 14, 13, 12, 12, 11, 11, 10, 9,
)  # fmt: skip


class _Bits:
    """Bits, most significant first."""

    def __init__(self) -> None:
        self.bits: list[str] = []

    def u(self, count: int, value: int = 0) -> None:
        """An unsigned number of `count` bits."""
        self.bits.append(f"{value:0{count}b}")

    def ue(self, *values: int) -> None:
        """Numbers in exponential Golomb code."""
        for value in values:
            code = f"{value + 1:b}"
            self.bits.append("0" * (len(code) - 1) + code)

    def aligned(self) -> bytes:
        """All so far, filled up with zeros to a whole byte."""
        text = "".join(self.bits)
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""

    def end(self) -> bytes:
        """With the one bit that ends a unit."""
        self.u(1, 1)
        return self.aligned()


def _unit(kind: int, content: bytes) -> bytes:
    """A NAL unit: no three bytes in it may look like a start code."""
    safe, zeros = bytearray(), 0
    for byte in content:
        if zeros >= 2 and byte <= 3:
            safe.append(3)
            zeros = 0
        safe.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes([kind << 1, 1]) + bytes(safe)


def _level(bits: _Bits) -> None:
    """profile_tier_level: format range extensions, level 6.2."""
    bits.u(8, 4)
    bits.u(32, 1 << (31 - 4))
    bits.u(48, 0b1001 << 44)
    bits.u(8, 186)


def hevc(planes: Sequence[NDArray[np.integer]], depth: int = 8) -> tuple[list[bytes], bytes, tuple[int, int]]:
    """Parameter sets, picture and (width, height) of one HEVC picture of 1 plane, or 3 [H, W]; even sides in 4:2:0.

    Its sides are multiples of 16: the last row and column are repeated, and cut away by the conformance window.
    """
    height, width = planes[0].shape
    down, right = -height % BLOCK, -width % BLOCK
    step = [height // plane.shape[0] for plane in planes]  # 2: chroma has half the rows and columns
    padded = [((0, down // by), (0, right // by)) for by in step]
    planes = [np.pad(plane, how, "edge") for plane, how in zip(planes, padded, strict=True)]
    full_height, full_width = planes[0].shape
    chroma = _chroma(planes)

    video = _Bits()
    video.u(4, 0)
    video.u(2, 3)
    video.u(6, 0)
    video.u(3, 0)
    video.u(1, 1)
    video.u(16, 0xFFFF)
    _level(video)
    video.u(1, 1)
    video.ue(0, 0, 0)
    video.u(6, 0)
    video.ue(0)
    video.u(2, 0)

    sequence = _Bits()
    sequence.u(4, 0)
    sequence.u(3, 0)
    sequence.u(1, 1)
    _level(sequence)
    sequence.ue(0, chroma)
    if chroma == 3:
        sequence.u(1, 0)
    sequence.ue(full_width, full_height)
    sequence.u(1, 1)
    sequence.ue(0, right // max(step), 0, down // max(step))
    sequence.ue(depth - 8, depth - 8, 0)
    sequence.u(1, 1)
    sequence.ue(0, 0, 0)
    sequence.ue(1, 0, 0, 2, 0, 0)  # blocks of 16 that are never split
    sequence.u(3, 0)
    sequence.u(1, 1)  # pcm_enabled_flag
    sequence.u(4, depth - 1)
    sequence.u(4, depth - 1)
    sequence.ue(1, 0)
    sequence.u(1, 1)
    sequence.ue(0)
    sequence.u(3, 0)
    sequence.u(2, 0)

    picture = _Bits()
    picture.ue(0, 0)
    picture.u(7, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 0)
    picture.ue(0, 0)
    picture.u(7, 0)
    picture.u(3, 0b101)  # deblocking_filter_control_present, no override, switched off
    picture.u(2, 0)
    picture.ue(0)
    picture.u(2, 0)

    head = _Bits()
    head.u(2, 0b10)
    head.ue(0, 2, 0)  # picture parameters 0, an I slice, no change of the quantiser
    parts, state = [head.end()], 0
    for top in range(0, full_height, BLOCK):
        for left in range(0, full_width, BLOCK):
            code = _Arithmetic()  # is started anew behind each block
            if top or left:
                code.terminate(False)  # the slice goes on
            code.likely(_RANGES[state])  # one part
            state = min(state + 1, 62)
            code.terminate(True)  # pixels as they are
            bits = _Bits()
            for plane, by in zip(planes, step, strict=True):
                rows, columns = slice(top // by, (top + BLOCK) // by), slice(left // by, (left + BLOCK) // by)
                for value in plane[rows, columns].ravel().tolist():
                    bits.u(depth, value)
            parts += [code.bits.aligned(), bits.aligned()]
    code = _Arithmetic()
    code.terminate(True)  # the slice ends; the last bit of the code is the one that ends the unit
    parts.append(code.bits.aligned())
    sets = [_unit(32, video.end()), _unit(33, sequence.end()), _unit(34, picture.end())]
    return sets, _unit(19, b"".join(parts)), (width, height)


def _chroma(planes: Sequence[NDArray[np.integer]]) -> int:
    """chroma_format_idc: grey, 4:2:0 or 4:4:4."""
    return 0 if len(planes) == 1 else 3 if planes[1].shape == planes[0].shape else 1


class _Arithmetic:
    """The encoder of H.265, section 9.3.4: as much of it as blocks of plain pixels need."""

    def __init__(self) -> None:
        self.bits = _Bits()
        self._low, self._range, self._waiting, self._first = 0, 510, 0, True

    def likely(self, least: int) -> None:
        """The more probable symbol; the other one has the range `least`."""
        self._range -= least
        self._renormalise()

    def terminate(self, yes: bool) -> None:
        """A symbol that is nearly always no; yes ends the code."""
        self._range -= 2
        if not yes:
            self._renormalise()
            return
        self._low += self._range
        self._range = 2
        self._renormalise()
        self._put(self._low >> 9 & 1)
        self.bits.u(2, self._low >> 7 & 3 | 1)

    def _renormalise(self) -> None:
        while self._range < 256:
            if self._low >= 512:
                self._low -= 512
                self._put(1)
            elif self._low < 256:
                self._put(0)
            else:
                self._low -= 256
                self._waiting += 1
            self._range *= 2
            self._low *= 2

    def _put(self, bit: int) -> None:
        if not self._first:
            self.bits.u(1, bit)
        self._first = False
        for _ in range(self._waiting):
            self.bits.u(1, 1 - bit)
        self._waiting = 0


# ---- HEIF ------------------------------------------------------------------------------------------------------------


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an ISO file."""
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def _full(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def usual_planes(rgb: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Y, Cb, Cr of BT.601 in 0..255; the last two with half the rows and columns."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [(blue - light) / 1.772 + 128, (red - light) / 1.402 + 128]
    halves = [c.reshape(c.shape[0] // 2, 2, c.shape[1] // 2, 2).mean((1, 3)) for c in colours]
    return [plane.round().clip(0, 255).astype(np.uint8) for plane in (light, *halves)]


def heic(
    rgb: NDArray[np.integer],
    *,
    depth: int = 8,
    alpha: NDArray[np.integer] | None = None,
    turns: int = 0,
    mirror: int | None = None,
    exif: bytes = b"",
    profile: bytes = b"",
    tiles: int = 1,
    usual: bool = False,
    brands: bytes = b"heicmif1heic",
    claimed: tuple[int, int] | None = None,
) -> bytes:
    """A HEIC file whose decoded pixels are `rgb` HWC (of `depth` bits), before it is turned and mirrored.

    `turns`: quarters anticlockwise; `mirror`: 0 or 1 as in the box `imir`. `tiles`: put together of that many
    pictures side by side, as phones do. `usual`: as they code colours, too (BT.601, all values used, 4:2:0), which is
    not exact; needs 8 bits and even sides. `claimed`: width and height the container names instead of the true ones.
    """
    height, width = rgb.shape[:2]
    properties: list[bytes] = []
    items: list[tuple[bytes, bytes, list[tuple[bool, int]], bool]] = []  # kind, content, properties, hidden
    references: list[tuple[bytes, int, list[int]]] = []

    def property_(data: bytes) -> int:
        if data not in properties:
            properties.append(data)
        return properties.index(data) + 1

    def coded(planes: Sequence[NDArray[np.integer]], bits: int, hidden: bool) -> int:
        sets, picture, size = hevc(planes, bits)
        config = bytes([1, 4]) + struct.pack(">I", 1 << (31 - 4)) + bytes([0x90, 0, 0, 0, 0, 0, 186, 0xF0, 0, 0xFC])
        config += bytes([0xFC | _chroma(planes), 0xF8 | bits - 8, 0xF8 | bits - 8, 0, 0, 0x0F, 3])
        for unit in sets:
            config += bytes([0x80 | unit[0] >> 1]) + struct.pack(">HH", 1, len(unit)) + unit
        shown = size if claimed is None else claimed
        mine = [
            (True, property_(box(b"hvcC", config))),
            (False, property_(_full(b"ispe", struct.pack(">II", *shown)))),
            (False, property_(_full(b"pixi", bytes([len(planes), *[bits] * len(planes)])))),
        ]
        items.append((b"hvc1", struct.pack(">I", len(picture)) + picture, mine, hidden))
        return len(items)

    # matrix 0: G, B and R as they are, no loss; 6: BT.601
    look = [(False, property_(box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6 if usual else 0, 0x80))))]
    if profile:
        look.append((False, property_(box(b"colr", b"prof", profile))))
    if turns:
        look.append((True, property_(box(b"irot", bytes([turns])))))
    if mirror is not None:
        look.append((True, property_(box(b"imir", bytes([mirror])))))
    planes = usual_planes(rgb) if usual else [rgb[..., 1], rgb[..., 2], rgb[..., 0]]
    if tiles == 1:
        primary = coded(planes, depth, False)
        items[-1][2].extend(look)
    else:
        step = width // tiles
        parts = []
        for tile in range(tiles):
            parts.append(coded([p[:, tile * step : (tile + 1) * step] for p in planes], depth, True))
            items[-1][2].append(look[0])
        content = struct.pack(">BBBBHH", 0, 0, 0, tiles - 1, step * tiles, height)
        whole = (False, property_(_full(b"ispe", struct.pack(">II", step * tiles, height))))
        items.append((b"grid", content, [whole, *look], False))
        primary = len(items)
        references.append((b"dimg", primary, parts))
    if alpha is not None:
        mask = coded([alpha], depth, True)
        items[-1][2].append((True, property_(_full(b"auxC", b"urn:mpeg:hevc:2015:auxid:1\0"))))
        items[-1][2].extend(one for one in look if properties[one[1] - 1][4:8] in (b"irot", b"imir"))
        references.append((b"auxl", mask, [primary]))
    if exif:
        items.append((b"Exif", struct.pack(">I", 6) + b"Exif\0\0" + exif, [], True))
        references.append((b"cdsc", len(items), [primary]))

    infos, associations = b"", b""
    for number, (kind, _, mine, hidden) in enumerate(items, 1):
        infos += _full(b"infe", struct.pack(">HH4s", number, 0, kind), b"\0", version=2, flags=int(hidden))
        if mine:
            associations += struct.pack(">HB", number, len(mine))
            associations += bytes(essential << 7 | index for essential, index in mine)
    counted = sum(bool(mine) for _, _, mine, _ in items)
    refs = b"".join(box(kind, struct.pack(f">HH{len(to)}H", of, len(to), *to)) for kind, of, to in references)

    def meta(place: int) -> bytes:
        extents = b""
        for number, (_, content, _, _) in enumerate(items, 1):
            extents += struct.pack(">HHHII", number, 0, 1, place, len(content))
            place += len(content)
        return _full(
            b"meta",
            _full(b"hdlr", bytes(4), b"pict", bytes(13)),
            _full(b"pitm", struct.pack(">H", primary)),
            _full(b"iloc", bytes([0x44, 0]), struct.pack(">H", len(items)), extents),
            _full(b"iinf", struct.pack(">H", len(items)), infos),
            _full(b"iref", refs) if refs else b"",
            box(b"iprp", box(b"ipco", *properties), _full(b"ipma", struct.pack(">I", counted), associations)),
        )

    start = box(b"ftyp", brands[:4], bytes(4), brands[4:])
    place = len(start) + len(meta(0)) + 8
    return start + meta(place) + box(b"mdat", *(content for _, content, _, _ in items))
