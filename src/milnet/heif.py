"""HEIC and HEIF photos, as phones write them: by the extra `heif`, opened like an image of Pillow's own.

The container says how the picture is turned and mirrored, and libheif does it while decoding. The orientation in the
EXIF says the same once more and must not be followed again. Pillow's list of formats is not changed.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from typing import BinaryIO

from PIL import ImageFile

from milnet.errors import ImageError

SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
_HEVC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_ANY = frozenset((b"mif1", b"mif2", b"msf1", b"miaf"))  # the container alone, whatever codes the picture
_AV1 = frozenset((b"avif", b"avis"))
_PARTS = frozenset((b"ftyp", b"meta", b"mdat", b"moov"))  # boxes that a picture is in


def is_available() -> bool:
    """Whether the extra is installed; it is not imported."""
    return find_spec("pi_heif") is not None


def is_heif(stream: BinaryIO) -> bool:
    """Whether a file is a HEIF container with no AV1 picture (that is AVIF, which Pillow reads)."""
    stream.seek(0)
    head = stream.read(8)
    if len(head) < 8 or head[4:] != b"ftyp":
        return False
    content = stream.read(min(struct.unpack(">I", head[:4])[0] - 8, 1024)) if head[:4] > b"\0\0\0\x08" else b""
    major, others = content[:4], {content[at : at + 4] for at in range(8, len(content), 4)}
    return major in _HEVC or (major in _ANY and not others & _AV1)


def open_heif(stream: BinaryIO, name: str) -> ImageFile.ImageFile:
    """The primary picture with its header read: size as it is shown, colour profile and EXIF in `info`.

    `load` decodes it: 8 bits a channel. Raises ImageError when the extra is missing or the file is cut short; other
    damage raises whatever the decoder does.
    """
    try:
        import pi_heif
    except ImportError:
        raise ImageError(name, "a HEIC photo: pip install 'milnet[heif]' to read such files") from None
    _check_whole(stream, name)
    stream.seek(0)
    image: ImageFile.ImageFile = pi_heif.HeifImageFile(stream, "")
    return image


def _check_whole(stream: BinaryIO, name: str) -> None:
    """Raise ImageError when a box the picture is in reaches beyond the end: the decoder might fill what is missing.

    Behind the last one there may be anything: some phones append a film, or notes of their own.
    """
    end = stream.seek(0, 2)
    place = 0
    while place < end:
        stream.seek(place)
        head = stream.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: up to the end, whatever that is; else no box
            return
        if kind in _PARTS and place + size > end:
            raise ImageError(name, f"is cut short: at byte {place} a part of {size} begins, the file has {end}")
        if kind == b"meta":
            stream.seek(place)
            _check_items(stream.read(size), name)
        place += size


def _check_items(meta: bytes, name: str) -> None:
    """Raise ImageError when what an item is (ISO 14496-12, `infe`) is no text: the decoder would crash on it."""
    place = meta.find(b"infe")
    while place >= 4:
        size, version = int.from_bytes(meta[place - 4 : place], "big"), meta[place + 4 : place + 5]
        kind = place + (14 if version == b"\x03" else 12)  # behind flags, number and protection
        try:
            meta[kind : place - 4 + size].decode()
        except UnicodeDecodeError:
            raise ImageError(
                name, f"is damaged: at byte {kind} of its description an item is of no known kind"
            ) from None
        place = meta.find(b"infe", place + 4)
