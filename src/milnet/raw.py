"""RAW photos of cameras, by the extra `raw`: the picture the camera itself made of it, else a plain development.

Nearly every RAW holds a JPEG of what the camera showed. That is what its photographer saw, it is read in a fraction of
the time, and it is taken when it is large enough. What networks see of a photo has a long side of a few hundred pixels,
so 1,024 are plenty; of an old, small sensor half of its own pixels will do. Only where there is no such picture the
RAW is developed: white balance of the camera, sRGB, and a *fixed* brightness. Automatic brightness would lift a night
scene to daylight and show the frames of one burst in different light.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milnet import exif
from milnet.errors import ImageError

_NAMES = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
ENOUGH = 1024  # pixels: from this long side on, the camera's picture is taken
# Pixels of the long side from which a sensor is developed at half size: each 2x2 of its cells becomes one pixel. That
# takes a fifth of the time (24 million cells: 0.3 s, not 1.6 s), and moves a network input of 320 pixels by 0.1 of 255.
_HALVED = 4096

_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb", b"II\x1a\0\0\0HEAPCCDR")
_TIFF = (b"II*\0", b"MM\0*")
_CFA, _LINEAR = 32803, 34892  # photometric interpretations of a sensor's own values
_CODECS = {32767, 32769, 32770, 34713, 65000, 65535}  # compressions of Sony, Epson, Samsung, Nikon, Kodak, Pentax
_ORIENTATION = (1, 2, 4, 3, 5, 8, 6, 7)  # EXIF orientation of each `flip` of LibRaw


def is_available() -> bool:
    """Whether the extra is installed; it is not imported."""
    return find_spec("rawpy") is not None


def is_raw(stream: BinaryIO) -> bool:
    """Whether a file is a camera's RAW, by its content: a signature, or the marks of a sensor in a TIFF's directories.

    Several makers' files begin like any TIFF, and a reader of TIFFs would show their thumbnail.
    """
    stream.seek(0)
    start = stream.read(16)
    if start.startswith(_STARTS) or start[4:12] == b"ftypcrx ":
        return True
    if not start.startswith(_TIFF):
        return False
    if start[8:10] == b"CR" or start[8:12] in (b"IIII", b"MMMM"):  # Canon; Phase One
        return True
    for directory in exif.directories(stream):
        photometric, compression = directory.numbers(262), directory.numbers(259)
        if 50706 in directory.values or 33421 in directory.values:  # DNGVersion, the size of a colour filter's pattern
            return True
        if photometric in ((_CFA,), (_LINEAR,)) or (compression and compression[0] in _CODECS):
            return True
    return False


@dataclass(frozen=True)
class Raw:
    """A RAW with its header read."""

    preview: bytes | None  # the camera's JPEG, of any size
    image: Image.Image  # without it: the camera's bitmap if that is large enough, else what `load` develops; not turned
    orientation: int  # EXIF orientation of the sensor's pixels
    size: tuple[int, int]  # width, height of the sensor's picture, not turned
    exif: bytes  # a block of what the file's own directories say of camera and dates, b"" where there are none
    date: bytes  # a block with the date that LibRaw found, b"" where it found none; whole seconds

    def is_enough(self, picture: tuple[int, int]) -> bool:
        """Whether a picture of the camera's (width, height) is large enough to stand for the photo."""
        return max(picture) >= ENOUGH or 2 * max(picture) >= max(self.size)

    def turn(self, picture: tuple[int, int], own: int = 1) -> int:
        """The EXIF orientation of a picture of the camera's (width, height): its `own`, else that of the sensor.

        1 where the camera has already turned it: the sensor lies on its side and the picture stands, or the other way.
        """
        turned = own if own != 1 else self.orientation
        return 1 if turned >= 5 and (picture[0] > picture[1]) != (self.size[0] > self.size[1]) else turned


def open_raw(stream: BinaryIO, name: str) -> Raw:
    """Read the header, and take out the camera's picture. Raises ImageError."""
    try:
        import rawpy
    except ImportError:
        raise ImageError(name, "a RAW photo: pip install 'milnet[raw]' to read such files") from None
    block = exif.of_tiff(stream)
    stream.seek(0)
    try:
        raw = rawpy.imread(stream)  # one object a call: it is not safe with threads
        sizes = raw.sizes
        try:
            picture = raw.extract_thumb()
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError, NotImplementedError):
            picture = None
    except rawpy.LibRawError as error:
        raise ImageError(name, _reason(error)) from error
    size = (int(sizes.width), int(sizes.height))
    turned = _ORIENTATION[sizes.flip] if 0 <= sizes.flip < 8 else 1
    developed = Raw(None, _Development(raw, size, name), turned, size, block, _date(raw))
    if picture is None:
        return developed
    if picture.format == rawpy.ThumbFormat.JPEG:
        return replace(developed, preview=bytes(picture.data))
    bitmap = np.array(picture.data)  # a copy: the memory is the reader's
    usable = bitmap.dtype == np.uint8 and bitmap.ndim == 3 and bitmap.shape[2] == 3
    if not usable or not developed.is_enough((bitmap.shape[1], bitmap.shape[0])):
        return developed
    return replace(developed, image=Image.fromarray(bitmap))


class _Development(Image.Image):
    """What the sensor's values become when they are developed by `load`; until then its size alone."""

    format = "RAW"

    def __init__(self, raw: Any, size: tuple[int, int], name: str) -> None:
        super().__init__()
        self._raw, self._name, self._halved = raw, name, max(size) >= _HALVED
        self._mode = "RGB"
        self._size = ((size[0] + 1) // 2, (size[1] + 1) // 2) if self._halved else size

    def load(self) -> Any:
        if self._im is None:
            pixels = Image.fromarray(_developed(self._raw, self._halved, self._name))
            self._size, self.im = pixels.size, pixels.im
        return super().load()


def _developed(raw: Any, halved: bool, name: str) -> NDArray[np.uint8]:
    """The sensor's picture HWC, not turned; always the same for the same file."""
    import rawpy

    try:
        pixels: NDArray[np.uint8] = raw.postprocess(
            half_size=halved, use_camera_wb=True, no_auto_bright=True, output_bps=8, user_flip=0,
            output_color=rawpy.ColorSpace.sRGB, gamma=(2.4, 12.92),
        )  # fmt: skip
    except rawpy.LibRawError as error:
        raise ImageError(name, _reason(error)) from error
    finally:
        raw.close()
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2)


def _date(raw: Any) -> bytes:
    """A block with the time that LibRaw found, as the camera's clock showed it."""
    try:
        time = raw.other.timestamp
    except (AttributeError, OSError, ValueError, OverflowError):
        return b""
    text = time.strftime("%Y:%m:%d %H:%M:%S") if time.year > 1970 else ""
    return exif.made({exif.EXIF_IFD: {0x9003: text.encode()}})


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else ""
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    return f"a RAW that cannot be read ({type(error).__name__}: {text})"
