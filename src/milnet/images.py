"""Pixels: any image file, bytes, PIL image or array becomes an upright sRGB photo; resizing for a backbone.

    open_photo -> Photo -> resize_whole | resize_crop | resize_original -> to_array     HWC uint8 RGB in [0, 255]

Pillow reads most formats; HEIC (heif.py) and RAW (raw.py) are read by extras.

What a viewer would show is what is scored: EXIF orientation is applied, embedded colour profiles are followed,
transparent parts lie on white, an animation is its first frame. The decoder is chosen by content, never by suffix.
Everything that is wrong with a file is an `ImageError`. Damaged or cut files are refused, never half shown.
Nothing global in Pillow is changed, and every function may be called from many threads.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

# A plugin registers itself when it is imported; JPEG and TIFF have readers of our own below.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from milnet import exif, heif, raw
from milnet.errors import ImageError, UsageError

MAX_PIXELS = 200_000_000  # width x height; a small file can claim any size and so fill the memory
_NAMES = "apng avif avifs bmp gif j2k jfif jp2 jpe jpeg jpf jpg jpx mpo pbm pgm png pnm ppm tif tiff webp"
LEAST_SIDE = 96  # pixels a side that `original_size` gives at least: InceptionResNetV2 takes no less than 75
# suffix -> the extra that reads such files
EXTRAS = dict.fromkeys(heif.SUFFIXES, "heif") | dict.fromkeys(raw.SUFFIXES, "raw")
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split()) | EXTRAS.keys()  # of files worth trying, in lower case

Source = str | Path | bytes | Image.Image | NDArray[np.uint8]  # array: HxW grey, HxWx3 RGB or HxWx4 RGBA, uint8

_TRANSPOSE = {  # EXIF orientation -> what makes the photo upright; 1 needs nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # PIL mode -> colour space named in a profile
_SIXTEEN_TO_EIGHT = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # rounded, 0 -> 0, 65535 -> 255


@dataclass(frozen=True)
class Photo:
    """A decoded photo."""

    pixels: Image.Image  # mode RGB, sRGB, upright
    reduced: int  # 1 = decoded in full; 2, 4, 8 = the sides of a JPEG were divided by this while decoding
    size: tuple[int, int]  # width, height of the upright photo in full: more than `pixels` has when those were reduced
    exif: bytes = b""  # its EXIF as a TIFF block (exif.py), b"" where there is none; the orientation no longer holds

    @property
    def digest(self) -> str:
        """Identity of the pixels: sha256 of width, height and RGB bytes, 64 hexadecimal digits.

        The same picture decoded in full and reduced has two digests: compare those of `reduced == 1`.
        """
        width, height = self.pixels.size
        digest = hashlib.sha256(f"{width}x{height}".encode())
        digest.update(self.pixels.tobytes())
        return digest.hexdigest()


def open_photo(source: Source, *, max_pixels: int = MAX_PIXELS, draft_side: int | None = None) -> Photo:
    """Decode `source` to an upright sRGB photo, mode RGB.

    A PIL image counts as its current frame, with the EXIF orientation and the colour profile of its `info`; it is
    never changed or closed. More than `max_pixels` (width x height, read from the header before anything is decoded)
    is refused.

    With `draft_side`, a JPEG whose long side is at least 4 x draft_side is decoded at 1/2, 1/4 or 1/8, the least that
    leaves a long side of 2 x draft_side: faster, other pixels. After the final bicubic resize to a long side of
    `draft_side`, the mean absolute difference to full decoding is at most 1.0 of 255 on photos (0.2 to 0.8 measured).

    Of a RAW `pixels` is the camera's own picture where that is large enough, else a development (raw.py), and `size` is
    that of the sensor.

    Raises ImageError, which names the file, "<bytes>", "<PIL image>" or "<array>", and the reason.
    """
    if draft_side is not None and draft_side < 1:
        raise UsageError(f"draft_side must be at least 1 pixel, got {draft_side}")
    with _opened(source) as opened:
        image, name = opened.image, opened.name
        _check_pixels(image, name, max_pixels)
        size = image.size
        reduced = 1 if draft_side is None else _draft(image, draft_side)
        image.load()
        if reduced == 1 and image.size != size:  # the header of a HEIC or RAW may not tell the truth
            _check_pixels(image, name, max_pixels)
            size = image.size
        pixels = _srgb(image, name)
        # After load(): a PNG may have its EXIF behind the pixels, and a TIFF is turned by load() itself.
        orientation, block = opened.orientation(), opened.exif()
        transpose = _TRANSPOSE.get(orientation)
        if transpose is not None:
            pixels = pixels.transpose(transpose)
        elif pixels is image:
            pixels = image.copy()  # the caller's image, or one that holds on to its file
        pixels.info = {}  # the profile and the orientation no longer hold
    return Photo(pixels, reduced, _upright(opened.full_size or size, orientation), block)


def header_size(source: Source) -> tuple[int, int]:
    """(width, height) in pixels of what `open_photo` gives in full, from the header alone; nothing is decoded.

    Of any size. Raises ImageError as `open_photo` does; damage behind the header is not seen.
    """
    with _opened(source) as opened:
        orientation = opened.orientation()
        if orientation == 1 and opened.stream is not None and opened.image.format == "PNG":
            orientation = exif.orientation(exif.block(_late_png_exif(opened.stream)))
        return _upright(opened.image.size, orientation)


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width} x {height} = {width * height} pixels, more than the limit of {max_pixels}: "
            "make the image smaller, or raise max_pixels if you trust it",
        )


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def input_size(width: int, height: int, *, size: int, multiple: int = 32) -> tuple[int, int]:
    """(width, height) of the whole photo as network input: aspect kept, long side `size`.

    Each side is rounded to the nearest multiple of `multiple`, half up, and is at least one multiple.
    (500, 400) with size 320 gives (320, 256). Raises UsageError when a number is below 1.
    """
    if min(width, height, size, multiple) < 1:
        raise UsageError(f"sizes must be at least 1: got a photo of {width} x {height}, {size=}, {multiple=}")
    unit = max(width, height) * multiple  # whole numbers throughout, so that a half is a half
    new_width, new_height = (max(1, (2 * side * size + unit) // (2 * unit)) * multiple for side in (width, height))
    return new_width, new_height


def resize_whole(image: Image.Image, *, size: int, multiple: int = 32) -> Image.Image:
    """The whole image at `input_size`, bicubic with antialiasing."""
    # No `reducing_gap`: it is faster, but other pixels mean other scores.
    return image.resize(input_size(*image.size, size=size, multiple=multiple), Image.Resampling.BICUBIC)


def original_size(width: int, height: int, *, limit: int) -> tuple[int, int]:
    """(width, height) of a photo at its own size: aspect kept, long side at most `limit`, short side at least 96.

    Raises UsageError when both are not possible: a strip more than limit / 96 times as long as wide.
    """
    long, short = max(width, height), min(width, height)
    scale = min(1.0, limit / long)
    if short * scale < LEAST_SIDE:
        scale = LEAST_SIDE / short
    if round(long * scale) > limit:
        raise UsageError(
            f"a photo of {width} x {height} is too narrow: at a long side of {limit} its short side would be below "
            f"{LEAST_SIDE} pixels"
        )
    return max(LEAST_SIDE, round(width * scale)), max(LEAST_SIDE, round(height * scale))


def resize_original(image: Image.Image, *, limit: int) -> Image.Image:
    """The image at `original_size`: untouched where that is its own size, else bicubic. Raises UsageError."""
    size = original_size(*image.size, limit=limit)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def resize_crop(image: Image.Image, *, size: int, crop_fraction: float = 0.875) -> Image.Image:
    """The middle `size` x `size` of the image after its short side became round(size / crop_fraction), bicubic.

    The evaluation usual for ImageNet; images that are smaller are enlarged. Raises UsageError.
    """
    if size < 1 or not 0 < crop_fraction <= 1:
        raise UsageError(f"expected size >= 1 and 0 < crop_fraction <= 1, got {size=}, {crop_fraction=}")
    short = round(size / crop_fraction)
    # Of a strip only the middle, four times as long as wide: 1 x 100,000 would become 256 x 25,600,000.
    sides = [min(side, 4 * min(image.size)) for side in image.size]
    left, top = ((whole - side) / 2 for whole, side in zip(image.size, sides, strict=True))
    width, height = (short * side // min(sides) for side in sides)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + sides[0], top + sides[1]))
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """RGB values of an image as an array of its own: HWC uint8 in [0, 255], contiguous, writable."""
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8, order="C")


# ---- opening ---------------------------------------------------------------------------------------------------------


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's reader without its look for a resolution in the EXIF, which warns when that is damaged.

    Opened by this class, a multi-picture file (MPO) is its first picture.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's reader without its second size check: memory made here is memory `load_prepare` does not check."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()


# Only formats of photos: others would run Ghostscript (EPS), or have no signature and take any file (TGA).
_OWN_READERS = {"JPEG": _Jpeg, "TIFF": _Tiff}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "JPEG2000", "PPM")


def _reader(stream: IO[bytes], name: str) -> ImageFile.ImageFile:
    """Read the header with the reader whose signature fits.

    Image.open is not used: it measures the size against Image.MAX_IMAGE_PIXELS, with a warning up to twice that and
    an error above. Neither changing that number nor silencing warnings is safe with threads, and both belong to the
    host program. This is Image.open's own loop without that check; `open_photo` then applies its own limit. Two inner
    checks of Pillow remain, both an ImageError above twice its limit: of WebP, and of a GIF frame beyond its canvas.
    Pillow's warnings about odd metadata of a TIFF or an animated PNG are left as they are.
    """
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(name, "the file is empty")
    for kind in _FORMATS:
        factory, accept = Image.OPEN[kind]
        answer = accept is None or accept(prefix)
        if isinstance(answer, str):  # the format is known, but this Pillow was built without it
            raise ImageError(name, answer)
        if answer:
            stream.seek(0)
            return _OWN_READERS.get(kind, factory)(stream, "")  # without a name, so that nothing maps the file
    raise ImageError(name, f"not an image of a format that is read here ({', '.join(_FORMATS)}, HEIC, RAW)")


def _read_header(stream: BinaryIO, name: str) -> _Opened:
    """Open a file by its content. HEIC and RAW come first: Pillow takes some of them for AVIF, or for TIFF."""
    if heif.is_heif(stream):
        return _Opened(heif.open_heif(stream, name), name, stream)
    if not raw.is_raw(stream):
        stream.seek(0)
        return _Opened(_reader(stream, name), name, stream)
    found = raw.open_raw(stream, name)
    if found.preview is not None:
        preview = _Jpeg(BytesIO(found.preview), "")
        if found.is_enough(preview.size):
            return _Opened(preview, name, stream, found)
    return _Opened(found.image, name, stream, found)


@dataclass(frozen=True)
class _Opened:
    """An image with its header read."""

    image: Image.Image
    name: str  # for errors
    stream: BinaryIO | None
    raw: raw.Raw | None = None  # what the image is a picture of

    @property
    def full_size(self) -> tuple[int, int] | None:
        """Size, not turned as the image is not, of what the image is a smaller picture of."""
        return None if self.raw is None else self.raw.size

    def orientation(self) -> int:
        """EXIF orientation 1 to 8: what is still to be done to the image."""
        if self.image.format == "HEIF":  # its decoder has done it
            return 1
        own = exif.orientation(_exif(self.image))
        return own if self.raw is None else self.raw.turn(self.image.size, own)

    def exif(self) -> bytes:
        """The EXIF as a block of its own; b"" where there is none."""
        if self.raw is not None:
            blocks = (self.raw.exif, _exif(self.image))  # the second: of the camera's picture
            return next((block for block in blocks if exif.is_dated(block)), self.raw.date or self.raw.exif)
        if self.image.format == "TIFF" and self.stream is not None:
            return exif.of_tiff(self.stream)
        return _exif(self.image)


@contextmanager
def _opened(source: Source) -> Iterator[_Opened]:
    """Read the header; whatever goes wrong, here or inside, is an ImageError."""
    stream: BinaryIO | None = None
    name = "<array>"
    try:
        if isinstance(source, str | Path):
            name, stream = str(source), _open_file(Path(source))
        elif isinstance(source, bytes):
            name, stream = "<bytes>", BytesIO(source)
        if stream is not None:
            opened = _read_header(stream, name)
        elif isinstance(source, Image.Image):
            name = "<PIL image>"
            opened = _Opened(source, name, None)
        else:
            opened = _Opened(_from_array(source), name, None)
        if min(opened.image.size) < 1:
            raise ImageError(name, f"has no pixels ({opened.image.width} x {opened.image.height})")
        yield opened
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(name, "not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"{error} The limit is Pillow's own, PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # Pillow's readers raise nearly everything on damaged files
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ImageError(name, f"cannot be decoded, it is damaged or cut short ({what})") from error
    finally:
        if stream is not None:
            stream.close()


def _open_file(path: Path) -> BinaryIO:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(path, "is a folder, not an image file")
        if not stat.S_ISREG(kind):  # a pipe or a device could be read for ever
            raise ImageError(path, "is not a regular file")
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(path, "does not exist") from None
    except PermissionError:
        raise ImageError(path, "no permission to read it") from None
    except (OSError, ValueError) as error:  # too long a name, a null character, a loop of links, a broken disk
        raise ImageError(path, f"cannot be opened ({error})") from error


def _from_array(array: object) -> Image.Image:
    if not isinstance(array, np.ndarray):
        raise ImageError(type(array).__name__, "expected a path, bytes, a PIL image or an array of uint8")
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        found = f"{array.dtype} of shape {'x'.join(map(str, array.shape))}"
        raise ImageError("<array>", f"expected uint8 of shape HxW, HxWx3 or HxWx4, got {found}")
    if 0 in array.shape:
        raise ImageError("<array>", f"has no pixels ({array.shape[1]} x {array.shape[0]})")
    return Image.fromarray(np.array(array, order="C"))  # a copy: Pillow would share the caller's memory


def _draft(image: Image.Image, draft_side: int) -> int:
    """Ask libjpeg to decode at a fraction, if that leaves enough; returns the divisor of the sides, 1 if in full."""
    width, height = image.size
    long = max(width, height)
    if not isinstance(image, _Jpeg) or long < 4 * draft_side:
        return 1
    divisor = next((divisor for divisor in (8, 4) if long >= divisor * 2 * draft_side), 2)
    # The mode is passed as it is, because draft() can also change it. A side below the divisor makes it decode in full.
    answer = image.draft(image.mode, (max(1, width // divisor), max(1, height // divisor)))
    return 1 if answer is None else round(width / answer[1][2])


# ---- EXIF ------------------------------------------------------------------------------------------------------------


def _exif(image: Image.Image) -> bytes:
    """The EXIF block of an image, b"" when there is none or it is damaged.

    Read here and not by Image.getexif, which warns on damage and decodes the pixels of a PNG. A TIFF has no entry in
    `info`: Pillow turns it itself.
    """
    found = image.info.get("exif") or b""
    text = image.info.get("Raw profile type exif")  # a PNG by older ImageMagick: name, length, hexadecimal digits
    if not found and isinstance(text, str):
        try:
            found = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return b""
    return exif.block(found) if isinstance(found, bytes) else b""


def _late_png_exif(stream: BinaryIO) -> bytes:
    """The EXIF of a PNG wherever it stands, empty if there is none."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return stream.read(length)
        stream.seek(length + 4, 1)  # the content and its checksum
    return b""


# ---- colour ----------------------------------------------------------------------------------------------------------


def _srgb(image: Image.Image, name: str) -> Image.Image:
    """The loaded image in sRGB, mode RGB, transparent parts on white: the colour of the pages photos are shown on."""
    colour, alpha = _colour_and_alpha(image, name)
    profile = image.info.get("icc_profile") or b""
    for mode in (colour.mode, "RGB") if colour.mode == "L" else (colour.mode,):  # grey photos may have RGB profiles
        transform = _transform(profile, mode)
        if transform is not None:
            colour = transform.apply(colour if colour.mode == mode else colour.convert(mode))
            break
    if colour.mode != "RGB":
        colour = colour.convert("RGB")
    if alpha is None:
        return colour
    white = Image.new("RGB", colour.size, "white")
    white.paste(colour, mask=alpha)
    return white


def _colour_and_alpha(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Split off the transparency; the colour has mode L, RGB, CMYK or LAB, 8 bits a channel."""
    clear = image.info.get("transparency")  # the one value or colour that is transparent, or alpha of a palette
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        alpha = None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        return Image.fromarray(_eight_bits(values, name)), alpha
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode[:-1] + "A")
    if image.mode == "LA" or (image.mode in ("1", "L") and clear is not None):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return (image if image.mode in _SPACES else image.convert("RGB")), None


def _eight_bits(values: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """Grey values of 16 bits, or floats, to 0..255, rounded.

    Whole numbers count as 0..65535, whatever their largest is: Pillow gives 16-bit files as 32-bit numbers, too. Floats
    count as 0..1 (clipped) up to 2, else as 0..255, else as 0..65535. Other ranges are refused, not guessed.
    """
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer):
        if low < 0 or high > 65535:
            raise ImageError(name, f"grey values {low:.0f} to {high:.0f}, expected 0 to 65535: save it with 16 bits")
        eight: NDArray[np.uint8] = _SIXTEEN_TO_EIGHT[values]
        return eight
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(name, "grey values that are NaN or infinite: save it with 16 bits")
    if high > 65535:
        raise ImageError(name, f"float grey values up to {high:g}, expected 0 to 1, 255 or 65535: save it with 16 bits")
    white = 1 if high <= 2 else 255 if high <= 255 else 65535
    return (np.clip(values.astype(np.float32) / white, 0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile to sRGB, None if there is nothing to do.

    A profile that is broken or of another colour space is ignored on purpose, as browsers do: the photo is fine, and
    without a profile numbers mean sRGB. A profile that moves no colour of a grid by more than 1 of 255 is sRGB itself,
    of which many slightly different copies are in use: None, whatever its name. Built once for a profile and mode;
    applying it is safe in many threads at once.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip().lower() != _SPACES[mode].lower():
            raise ValueError(f"a profile for {source.profile.xcolor_space}")
        transform = _convert(source, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        if mode != "LAB":
            return None
        # Without a profile Lab is that of D50, the usual one.
        return _convert(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), mode)
    if mode in ("L", "RGB"):
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        probe = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        moved = np.abs(np.int16(to_array(transform.apply(probe))) - np.int16(to_array(probe)))
        if moved.max() <= 1:
            return None
    return transform


def _convert(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    # Perceptual intent: the one meant for photos, in every table profile; the black of a press becomes black. Profiles
    # of three primaries and curves know one intent only. Finer tables: less error where colours leave sRGB, no slower.
    flags = ImageCms.Flags.HIGHRESPRECALC
    return ImageCms.ImageCmsTransform(source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=flags)
