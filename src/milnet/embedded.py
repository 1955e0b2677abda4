"""What lies inside an image file: its XMP packet and the rating in its EXIF; and a JPEG with another packet.

    JPEG                     segments APP1
    PNG                      iTXt and eXIf
    WebP                     chunks "XMP " and "EXIF"
    TIFF, and RAW like it    tags of the first directory
    HEIC, AVIF, CR3, ...     the first <x:xmpmeta> of the file, which such files hold as plain text; EXIF is not read

Damage in a part that is not asked for is not seen. Nothing is decoded, and of a big file only the parts are read.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from milnet.errors import ImageError
from milnet.packets import fit

XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
EXIF_HEAD = b"Exif\0\0"
MOST_BYTES = 65_502  # of a packet in a JPEG segment
_LARGEST = 100_000_000  # bytes of a packet in another file: more is damage
_RATING, _PERCENT, _XMP_TAG = 0x4746, 0x4749, 700
_ORDERS = {b"II": "<", b"MM": ">"}
_TIFF_LIKE = (42, 43, 0x55, 0x1BC, 0x4F52, 0x5352)  # TIFF, BigTIFF, and what RW2, JPEG XR and ORF have in that place
_META = re.compile(rb"<x:x[am]pmeta[\s>].*?</x:x[am]pmeta\s*>", re.DOTALL)
_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8}  # TIFF type -> bytes: BYTE, SHORT, LONG, UNDEFINED, IFD, LONG8


@dataclass(frozen=True)
class Embedded:
    """The packet, None where there is none; EXIF Rating (0 to 5) and RatingPercent (0 to 100)."""

    packet: bytes | None = None
    rating: int | None = None
    percent: int | None = None


@dataclass(frozen=True)
class Segment:
    """A segment of a JPEG: its marker (0xE1 = APP1), and where it begins and ends, marker included."""

    marker: int
    start: int
    end: int
    head: bytes  # the first 40 bytes of its content

    @property
    def is_xmp(self) -> bool:
        return self.marker == 0xE1 and self.head.startswith(XMP_HEAD)

    @property
    def is_exif(self) -> bool:
        return self.marker == 0xE1 and self.head.startswith(EXIF_HEAD)


def read_embedded(photo: Path) -> Embedded:
    """Packet and rating inside an image file of any kind. ImageError when it cannot be read or is cut."""
    try:
        with photo.open("rb") as file:
            start = file.read(16)
            if start.startswith(b"\xff\xd8"):
                return _jpeg(file, photo)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _png(file)
            if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                return _webp(file)
            order = _ORDERS.get(start[:2])
            if order is not None and struct.unpack(order + "H", start[2:4])[0] in _TIFF_LIKE:
                return _tiff(file, 0)
            return Embedded(_found(file))
    except OSError as error:
        raise ImageError(photo, f"cannot be read: {error.strerror or error}") from error
    except (struct.error, zlib.error) as error:
        raise ImageError(photo, f"its metadata is damaged ({error}): is the file cut?") from None


def is_jpeg(photo: Path) -> bool:
    """Whether the file is a JPEG, by its content."""
    try:
        with photo.open("rb") as file:
            return file.read(3) == b"\xff\xd8\xff"
    except OSError as error:
        raise ImageError(photo, f"cannot be read: {error.strerror or error}") from error


def segments(file: BinaryIO, photo: Path) -> list[Segment]:
    """The segments of a JPEG before its picture; the last is the start of the scan. ImageError when it has no scan."""
    found: list[Segment] = []
    at = 2
    while True:
        file.seek(at)
        head = file.read(4)
        if len(head) == 4 and head[:2] == b"\xff\xff":  # a fill byte
            at += 1
            continue
        if len(head) < 4 or head[0] != 0xFF:
            raise ImageError(photo, f"is no complete JPEG (no marker at byte {at}): is the file cut?")
        marker = head[1]
        length = 0 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else struct.unpack(">H", head[2:])[0]
        found.append(Segment(marker, at, at + 2 + length, file.read(40)[: max(0, length - 2)]))
        if marker in (0xDA, 0xD9):
            return found
        at += 2 + length


def _jpeg(file: BinaryIO, photo: Path) -> Embedded:
    packet, exif = None, Embedded()
    for segment in segments(file, photo):
        if segment.is_xmp and packet is None:
            packet = _part(file, segment.start + 4 + len(XMP_HEAD), segment.end)
        elif segment.is_exif and exif == Embedded():
            exif = _exif(file, segment.start + 4)
    return Embedded(packet, exif.rating, exif.percent)


def _png(file: BinaryIO) -> Embedded:
    packet, exif = None, Embedded()
    at = 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return Embedded(packet, exif.rating, exif.percent)
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif = _exif(file, at + 8)
        elif kind == b"iTXt" and packet is None:
            content = _part(file, at + 8, at + 8 + length)
            key, _, rest = content.partition(b"\0")
            if key == b"XML:com.adobe.xmp":
                text = rest[2:].split(b"\0", 2)[2]  # behind the language and the translated key
                packet = zlib.decompress(text) if rest[:1] == b"\x01" else text
        at += length + 12


def _webp(file: BinaryIO) -> Embedded:
    packet, exif = None, Embedded()
    at = 12
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return Embedded(packet, exif.rating, exif.percent)
        kind, length = struct.unpack("<4sI", head)
        if kind == b"XMP " and packet is None:
            packet = _part(file, at + 8, at + 8 + length)
        elif kind == b"EXIF":
            exif = _exif(file, at + 8)
        at += 8 + length + length % 2


def _exif(file: BinaryIO, start: int) -> Embedded:
    """The EXIF at byte `start`; damaged EXIF says nothing, for the photo is good all the same."""
    file.seek(start)
    try:
        return _tiff(file, start + (len(EXIF_HEAD) if file.read(len(EXIF_HEAD)) == EXIF_HEAD else 0))
    except struct.error:
        return Embedded()


def _tiff(file: BinaryIO, base: int) -> Embedded:
    """The first directory of a TIFF that begins at byte `base`, also a BigTIFF."""
    file.seek(base)
    head = file.read(16)
    order = _ORDERS.get(head[:2])
    if order is None:
        return Embedded()
    big = struct.unpack_from(order + "H", head, 2)[0] == 43
    count_form, entry_form, offset_form = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (start,) = struct.unpack_from(order + offset_form, head, 8 if big else 4)
    file.seek(base + start)
    (count,) = struct.unpack(order + count_form, file.read(struct.calcsize(count_form)))
    width = struct.calcsize(order + entry_form)
    entries = file.read(min(count, 65_535) * width)
    packet, numbers = None, {}
    for at in range(0, len(entries) - width + 1, width):
        tag, kind, items, value = struct.unpack_from(order + entry_form, entries, at)
        if tag in (_RATING, _PERCENT) and kind in (1, 3, 4):
            (numbers[tag],) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], value)
        elif tag == _XMP_TAG and kind in _SIZES:
            size = items * _SIZES[kind]
            where = base + struct.unpack(order + offset_form, value)[0]
            packet = value[:size] if size <= len(value) else _part(file, where, where + size)
    return Embedded(packet, numbers.get(_RATING), numbers.get(_PERCENT))


def _found(file: BinaryIO) -> bytes | None:
    """The first packet that stands in a file as plain text."""
    file.seek(0, 2)
    if file.tell() == 0:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = _META.search(content)
        return None if match is None else match[0]


def _part(file: BinaryIO, start: int, end: int) -> bytes:
    """Bytes `start` to `end`; struct.error when the file has not that many."""
    if not 0 <= end - start <= _LARGEST:
        raise struct.error(f"a packet of {end - start} bytes")
    file.seek(start)
    data = file.read(end - start)
    if len(data) < end - start:
        raise struct.error("the packet is cut")
    return data


def with_packet(photo: Path, packet: bytes) -> bytes:
    """The bytes of a JPEG with this packet in place of its own, or behind its EXIF where it has none.

    Every other byte is as it was. Raises ImageError for what is no JPEG, for a packet that is too long, for two
    packets, and where the length of what stands before a second picture's index (MPF) would have to change.
    """
    if not is_jpeg(photo):
        raise ImageError(photo, "is no JPEG: its rating can only go into a sidecar (leave out --embed-jpeg)")
    try:
        with photo.open("rb") as file:
            parts = segments(file, photo)
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise ImageError(photo, f"cannot be read: {error.strerror or error}") from error
    own = [number for number, part in enumerate(parts) if part.is_xmp]
    if len(own) > 1:
        raise ImageError(photo, "holds two XMP packets: leave one, with exiftool for example")
    if own:
        at = own[0]
        start, end = parts[at].start, parts[at].end
    else:
        # Behind JFIF and EXIF, which some programs look for in the first bytes.
        at = next((number for number, part in enumerate(parts) if not _leads(part)), 0)
        start = end = parts[at].start
    # Indexes count bytes from themselves to later pictures, so what lies in between must keep its length.
    counted = any(part.marker == 0xE2 and part.head.startswith(b"MPF\0") for part in parts[:at])
    # The trailer of the AXS File Concatenation Protocol counts from the beginning of the file.
    counted = counted or data[-12:-8] in (b"AXS!", b"AXS*")
    length = end - start - 4 - len(XMP_HEAD)
    fitted = packet
    if counted or len(packet) > MOST_BYTES:
        fitted = fit(packet, length if counted and own else MOST_BYTES) or packet
    if len(fitted) > MOST_BYTES:
        raise ImageError(
            photo, f"its XMP would be {len(fitted):,} bytes long, more than the {MOST_BYTES:,} of a JPEG: use a sidecar"
        )
    if counted and len(fitted) != length:
        raise ImageError(
            photo,
            "another part of it counts its bytes (a second picture, or a trailer), so that its XMP cannot grow: "
            "use a sidecar",
        )
    segment = b"\xff\xe1" + struct.pack(">H", len(XMP_HEAD) + len(fitted) + 2) + XMP_HEAD + fitted
    return data[:start] + segment + data[end:]


def _leads(part: Segment) -> bool:
    """Whether a segment stands before XMP: JFIF and its extension, EXIF."""
    return part.marker == 0xE0 or part.is_exif
