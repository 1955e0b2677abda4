"""Decoding and resizing, against independent computations and with every way a file can be wrong."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, features

import made_files
from milnet import images
from milnet.errors import ImageError, UsageError
from milnet.images import header_size, input_size, open_photo, resize_crop, resize_whole, to_array


def photo(width: int = 60, height: int = 40, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with soft edges, like a small photo; no two sides or corners are alike. HWC."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image | NDArray[np.uint8], kind: str, **options: object) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(source: images.Source) -> NDArray[np.int16]:
    return to_array(open_photo(source).pixels).astype(np.int16)


def refused(source: images.Source, text: str, **options: int) -> ImageError:
    with pytest.raises(ImageError, match=text) as caught:
        open_photo(source, **options)
    return caught.value


def exif(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """An EXIF block that holds the orientation alone."""
    value = struct.pack(order + ("I" if kind == 4 else "Hxx"), orientation)
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8)
    return b"Exif\0\0" + head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


# ---- sources and formats ---------------------------------------------------------------------------------------------


def test_all_sources_give_the_same_pixels(tmp_path: Path) -> None:
    array = photo()
    data = encode(array, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (array, data, path, str(path), Image.open(io.BytesIO(data)), array[:, ::-1][:, ::-1]):
        found = open_photo(source)
        assert found.pixels.mode == "RGB"
        assert found.reduced == 1
        assert type(found.pixels) is Image.Image
        np.testing.assert_array_equal(to_array(found.pixels), array)
        assert header_size(source) == (60, 40)


def test_grey_and_rgba_arrays() -> None:
    grey = photo()[..., 0]
    np.testing.assert_array_equal(pixels(grey), np.repeat(grey[..., None], 3, axis=2))
    half = np.dstack([photo(), np.full((40, 60), 128, np.uint8)])
    expected = photo() * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(pixels(half), expected, atol=1)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32 of shape 4x5x3"),
        (np.zeros((4, 5, 2), np.uint8), "uint8 of shape 4x5x2"),
        (np.zeros((3, 4, 5), np.uint8), "uint8 of shape 3x4x5"),
        (np.zeros(4, np.uint8), "uint8 of shape 4"),
    ],
)
def test_wrong_arrays(array: NDArray[np.uint8], found: str) -> None:
    refused(array, f"^<array>: expected uint8 of shape HxW, HxWx3 or HxWx4, got {found}$")


def test_wrong_type_and_no_pixels() -> None:
    refused(3, "^int: expected a path, bytes, a PIL image or an array of uint8$")  # type: ignore[arg-type]
    refused(np.zeros((0, 5, 3), np.uint8), r"^<array>: has no pixels \(5 x 0\)$")
    refused(Image.new("RGB", (0, 7)), r"^<PIL image>: has no pixels \(0 x 7\)$")
    empty_gif = b"GIF89a" + bytes(7) + b";"
    assert refused(empty_gif, "^<bytes>: ").file == "<bytes>"


def test_the_callers_image_and_array_are_left_alone() -> None:
    image = Image.open(io.BytesIO(encode(photo(), "JPEG", exif=exif(6))))
    found = open_photo(image).pixels
    assert found.size == (40, 60)
    assert image.size == (60, 40)
    assert "exif" in image.info
    plain = Image.new("RGB", (4, 4))
    copy = open_photo(plain).pixels
    copy.putpixel((0, 0), (255, 0, 0))
    assert plain.getpixel((0, 0)) == (0, 0, 0)
    assert found.info == {}
    array = photo()
    copy = open_photo(array).pixels
    copy.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(array, photo())


LOSSLESS = [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("PPM", {})]
LOSSLESS += [("WEBP", {"lossless": True}), ("JPEG2000", {"irreversible": False})]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    data = encode(photo(), kind, **options)
    np.testing.assert_array_equal(pixels(data), photo())
    path = tmp_path / "wrong suffix.jpg"  # the content decides
    path.write_bytes(data)
    np.testing.assert_array_equal(pixels(path), photo())


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "WEBP"])
def test_lossy_formats(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {"subsampling": 0} if kind == "JPEG" else {}
    assert np.abs(pixels(encode(photo(), kind, quality=95, **options)) - photo()).mean() < 4


def test_a_format_this_pillow_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.OPEN, "BMP", (Image.OPEN["BMP"][0], lambda prefix: "BMP support is not installed"))
    refused(b"BM" + bytes(60), "^<bytes>: BMP support is not installed$")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_is_its_first_frame(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *others = [Image.new("RGB", (8, 6), colour) for colour in colours]
    data = encode(first, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(pixels(data), np.broadcast_to((255, 0, 0), (6, 8, 3)))


def test_multi_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.new("RGB", (16, 8), (200, 10, 10)), Image.new("RGB", (16, 8), (10, 10, 200))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(pixels(data) - np.array((200, 10, 10))).max() <= 3


def test_suffixes() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".tif", ".tiff", ".gif", ".bmp", ".jp2", ".ppm"} <= (
        images.SUFFIXES
    )
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in images.SUFFIXES)


def test_digest() -> None:
    import hashlib

    array = photo()
    found = open_photo(array)
    assert found.digest == hashlib.sha256(b"60x40" + array.tobytes()).hexdigest()
    assert found.digest == open_photo(encode(array, "PNG")).digest
    assert open_photo(np.zeros((2, 8, 3), np.uint8)).digest != open_photo(np.zeros((8, 2, 3), np.uint8)).digest


# ---- orientation -----------------------------------------------------------------------------------------------------

UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF", "AVIF"])
def test_orientation(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    tag = Image.Exif()
    tag[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    data = encode(photo(), kind, exif=tag if kind == "TIFF" else exif(orientation), **options.get(kind, {}))
    expected = UPRIGHT[orientation](photo())
    found = pixels(data)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= (0 if kind in ("PNG", "WEBP", "TIFF") else 2)
    assert header_size(data) == (expected.shape[1], expected.shape[0])
    np.testing.assert_array_equal(found, to_array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_byte_orders_and_number_types(order: str, kind: int) -> None:
    assert header_size(encode(photo(), "JPEG", exif=exif(6, order, kind))) == (40, 60)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_png_with_exif_behind_the_pixels() -> None:
    data = encode(photo(), "PNG")
    data = data[:-12] + chunk(b"eXIf", exif(6)[6:]) + data[-12:]
    assert header_size(data) == (40, 60)
    np.testing.assert_array_equal(pixels(data), UPRIGHT[6](photo()))


def test_png_with_exif_as_text() -> None:
    block = exif(8)
    data = encode(photo(), "PNG")
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    found = data[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + data[33:]
    assert header_size(found) == (40, 60)
    broken = data[:33] + chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz\n") + data[33:]
    np.testing.assert_array_equal(pixels(broken), photo())


@pytest.mark.parametrize(
    "block", [exif(0), exif(9), exif(6)[:20], b"Exif\0\0", b"Exif\0\0rubbish", exif(6)[:10] + b"\xff" * 30]
)
def test_damaged_exif_is_ignored(block: bytes) -> None:
    """Without a warning: those are errors in these tests."""
    assert header_size(encode(photo(), "JPEG", exif=block)) == (60, 40)
    assert open_photo(encode(photo(), "JPEG", exif=block)).pixels.size == (60, 40)


# ---- full size and EXIF ----------------------------------------------------------------------------------------------

DATED = b"Exif\0\0" + made_files.exif_block("2023:01:02 03:04:05", "678", orientation=6)


def dates(block: bytes) -> dict[int, str]:
    """The texts of an EXIF block, by Pillow's own reader."""
    assert block[:2] in (b"II", b"MM")
    found = Image.Exif()
    found.load(b"Exif\0\0" + block)
    return {tag: value for tag, value in {**found, **found.get_ifd(0x8769)}.items() if isinstance(value, str)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_of_each_format(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(photo(), kind, exif=DATED)
    found = open_photo(data)
    assert dates(found.exif) == {0x010F: "Maker", 0x9003: "2023:01:02 03:04:05", 0x9291: "678"}
    assert found.size == found.pixels.size == (40, 60)
    assert open_photo(encode(photo(), kind)).exif == b""
    assert open_photo(Image.open(io.BytesIO(data))).exif == found.exif


def test_exif_of_a_png_that_stores_it_otherwise() -> None:
    data = encode(photo(), "PNG")
    late = data[:-12] + chunk(b"eXIf", DATED[6:]) + data[-12:]
    text = f"\nexif\n{len(DATED):8}\n{DATED.hex()}\n".encode()
    old = data[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + data[33:]
    assert open_photo(late).exif == open_photo(old).exif == DATED[6:]


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_a_tiff(order: str, tmp_path: Path) -> None:
    """Its own directories; a block with the dates is made of them, the pixels stay where they are."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix={"<": b"II", ">": b"MM"}[order])
    tags[0x0132], tags[0x0110] = "2021:01:01 00:00:00", "A camera"
    tags[0x8769] = {0x9003: "2020:12:31 23:59:59", 0x9291: "07"}
    path = tmp_path / "a.tif"
    Image.fromarray(photo()).save(path, tiffinfo=tags)
    found = open_photo(path)
    assert dates(found.exif) == {
        0x0110: "A camera", 0x0132: "2021:01:01 00:00:00", 0x9003: "2020:12:31 23:59:59", 0x9291: "07",
    }  # fmt: skip
    assert len(found.exif) < 200
    np.testing.assert_array_equal(pixels(path), photo())
    assert open_photo(encode(photo(), "TIFF")).exif == b""


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0rubbish", DATED[:20], DATED[:10] + b"\xff" * 30])
def test_damaged_exif_is_no_error(block: bytes) -> None:
    found = open_photo(encode(photo(), "JPEG", exif=block)).exif
    assert found in (b"", block[6:])


def test_full_size_of_a_reduced_jpeg() -> None:
    data = encode(photo(801, 603), "JPEG", exif=exif(6))
    found = open_photo(data, draft_side=100)
    assert (found.reduced, found.pixels.size, found.size) == (4, (151, 201), (603, 801))
    assert open_photo(data).size == header_size(data) == (603, 801)
    assert open_photo(photo(5, 3)).size == (5, 3)


# ---- colour ----------------------------------------------------------------------------------------------------------

D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = {"primaries": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))}
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def to_d50(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Linear RGB of the primaries and D65 -> XYZ of D50, by Bradford's adaptation. 3x3, columns R, G, B."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    matrix = columns * np.linalg.solve(columns, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((bradford @ D50) / (bradford @ white))
    return np.linalg.inv(bradford) @ scale @ bradford @ matrix


def encode_srgb(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear 0..1, clipped, to 0..255."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def xyz_to_srgb(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """XYZ of D50, [..., 3], to sRGB 0..255."""
    return encode_srgb(xyz @ np.linalg.inv(to_d50(SRGB["primaries"])).T)


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """A version 2 profile of these tags."""
    text = b"test"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + text + b"\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + text + b"\0",
        b"wtpt": fixed(D50),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"lcms", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    return head.ljust(128, b"\0") + table + body


def fixed(xyz: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in xyz)


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    columns = to_d50(primaries).T
    tags = {name + b"XYZ": fixed(column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    return icc(b"RGB ", {**tags, **{name + b"TRC": curve(gamma) for name in (b"r", b"g", b"b")}})


def grey_profile(gamma: float) -> bytes:
    return icc(b"GRAY", {b"kTRC": curve(gamma)})


def ink_lab(inks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lab of C, M, Y, K [..., 4] in 0..1: straight lines between the 16 corners of the ink cube.

    Of real inks black is neutral and darkest, and all corners but the three inks are grey here.
    """
    single = {(1, 0, 0): (70, -20, -25), (0, 1, 0): (55, 55, 0), (0, 0, 1): (88, -5, 50)}
    lab = np.zeros((*inks.shape[:-1], 3))
    for corner in np.ndindex(2, 2, 2, 2):
        weight = np.prod(np.where(corner, inks, 1 - inks), axis=-1)
        neutral = (0 if corner[3] else 100 - 25 * sum(corner[:3]), 0, 0)
        lab += weight[..., None] * (neutral if corner[3] else single.get(corner[:3], neutral))
    return lab


def cmyk_profile() -> bytes:
    """A table profile: the 16 corners of `ink_lab`."""
    corners = np.array(list(np.ndindex(2, 2, 2, 2)), float)
    table = np.rint(ink_lab(corners) * [2.55, 1, 1] + [0, 128, 128]).astype(np.uint8)
    identity = b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    ramp = bytes(range(256))
    content = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table.tobytes() + ramp * 3
    return icc(b"CMYK", {b"A2B0": content}, kind=b"prtr", pcs=b"Lab ")


def lab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    light, a, b = np.moveaxis(lab, -1, 0)
    fy = (light + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    return xyz_to_srgb(D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)))


@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.19921875), (P3, 1.0), (ADOBE, 1.8)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "ARRAY"])
def test_rgb_profile_against_the_matrices(primaries: tuple[tuple[float, float], ...], gamma: float, kind: str) -> None:
    array = photo(90, 80)
    profile = rgb_profile(primaries, gamma)
    source: images.Source
    if kind == "ARRAY":
        source = Image.fromarray(array)
        source.info["icc_profile"] = profile
    else:
        source = encode(array, kind, icc_profile=profile, **({"lossless": True} if kind == "WEBP" else {}))
    gamma = round(gamma * 256) / 256
    expected = xyz_to_srgb((array / 255.0) ** gamma @ to_d50(primaries).T)
    assert np.abs(expected - array).max() > 20  # the profile matters
    np.testing.assert_allclose(pixels(source), expected, atol=2)


def test_profile_with_alpha_and_orientation() -> None:
    """Colour first, then white behind it, then turned."""
    array = photo()
    data = encode(
        np.dstack([array, np.full((40, 60), 100, np.uint8)]), "PNG", icc_profile=rgb_profile(P3, 2.2), exif=exif(6)
    )
    colour = xyz_to_srgb((array / 255.0) ** (563 / 256) @ to_d50(P3).T)
    np.testing.assert_allclose(pixels(data), UPRIGHT[6](colour * (100 / 255) + 155), atol=2)


def test_palette_with_profile() -> None:
    image = Image.fromarray(photo()).quantize(16)
    expected = xyz_to_srgb((to_array(image) / 255.0) ** (563 / 256) @ to_d50(P3).T)
    np.testing.assert_allclose(pixels(encode(image, "PNG", icc_profile=rgb_profile(P3, 2.2))), expected, atol=2)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profile(mode: str) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    expected = encode_srgb((ramp / 255.0) ** 1.75)[..., None]
    np.testing.assert_allclose(pixels(encode(image, "PNG", icc_profile=grey_profile(1.75))), expected + [0] * 3, atol=2)


def test_grey_photo_with_an_rgb_profile() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    data = encode(ramp, "PNG", icc_profile=rgb_profile(SRGB["primaries"], 1.0))
    np.testing.assert_allclose(pixels(data), encode_srgb(ramp / 255.0)[..., None] + [0] * 3, atol=2)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_profile(kind: str) -> None:
    """Ramps of each ink; Pillow writes JPEG the Adobe way, inverted."""
    steps = np.repeat(np.arange(0, 256, 17), 8)
    inks = np.zeros((4 * 8, len(steps), 4), np.uint8)
    for ink in range(4):
        inks[8 * ink : 8 * ink + 8, :, ink] = steps
    image = Image.new("CMYK", inks.shape[1::-1])
    image.frombytes(inks.tobytes())
    data = encode(image, kind, icc_profile=cmyk_profile(), **({"quality": 100} if kind == "JPEG" else {}))
    expected = lab_to_srgb(ink_lab(inks / 255.0))
    np.testing.assert_allclose(pixels(data), expected, atol=2 if kind == "TIFF" else 5)  # JPEG adds its own


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_without_a_profile(kind: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encode(image, kind)) - np.array([255, 0, 0])).max() <= 2
    paper = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert pixels(encode(paper, kind)).min() >= 253


@pytest.mark.parametrize("profile", [b"", b"broken", rgb_profile(P3, 2.2)])
def test_lab(profile: bytes) -> None:
    lab = np.array([[[100, 0, 0], [0, 0, 0], [50, 0, 0], [60, 40, 30], [40, -20, 20], [70, 5, -30]]], float)
    image = Image.new("LAB", (6, 1))
    image.frombytes(np.rint(lab * [2.55, 1, 1]).astype(np.int16).astype(np.uint8).tobytes())  # a and b are signed
    if profile:
        image.info["icc_profile"] = profile
    np.testing.assert_allclose(pixels(image), lab_to_srgb(lab), atol=2)
    np.testing.assert_allclose(pixels(encode(image, "TIFF")), lab_to_srgb(lab), atol=2)


@pytest.mark.parametrize("profile", [b"rubbish", rgb_profile(P3, 2.2)[:200], grey_profile(1.0), cmyk_profile(), b""])
def test_broken_and_foreign_profiles_are_ignored(profile: bytes) -> None:
    np.testing.assert_array_equal(pixels(encode(photo(), "PNG", icc_profile=profile)), photo())


def test_profiles_that_are_srgb_change_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert images._transform(profile, "RGB") is None
    np.testing.assert_array_equal(pixels(encode(photo(), "PNG", icc_profile=profile)), photo())
    assert images._transform(rgb_profile(SRGB["primaries"], 2.2), "RGB") is not None  # near, but not it


def test_a_profile_is_read_once() -> None:
    images._transform.cache_clear()
    data = encode(photo(), "PNG", icc_profile=rgb_profile(P3, 2.0))
    for _ in range(3):
        open_photo(data)
    assert images._transform.cache_info()[:2] == (2, 1)  # hits, misses


# ---- transparency and number formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparent_is_white_whatever_lies_behind(mode: str) -> None:
    grey = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    grey.putpixel((0, 0), (7, 7, 7, 0))
    grey.putpixel((2, 0), (100, 100, 100, 51))
    image = grey.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode)).convert(mode)
    np.testing.assert_allclose(pixels(image)[0, :, 0], [255, 100, 100 * 0.2 + 255 * 0.8], atol=3)
    assert pixels(image)[0, 0].tolist() == [255] * 3


def test_palette_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
    image.frombytes(bytes([0, 1, 2]))
    assert pixels(encode(image, "PNG"))[0].tolist() == [[10, 20, 30], [200, 100, 50], [1, 2, 3]]
    one = pixels(encode(image, "GIF", transparency=1))[0].tolist()
    assert one == [[10, 20, 30], [255, 255, 255], [1, 2, 3]]
    alphas = pixels(encode(image, "PNG", transparency=bytes([255, 0, 51])))[0]
    np.testing.assert_allclose(alphas, [[10, 20, 30], [255] * 3, [204, 204, 205]], atol=1)


def test_one_transparent_value() -> None:
    row = np.array([[0, 90, 200]], np.uint8)
    assert pixels(encode(row, "PNG", transparency=90))[0, :, 0].tolist() == [0, 255, 200]
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert pixels(encode(rgb, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]
    sixteen = np.array([[0, 9000, 65535]], np.uint16)
    assert pixels(encode(sixteen, "PNG", transparency=9000))[0, :, 0].tolist() == [0, 255, 255]
    bits = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert pixels(encode(bits, "PNG", transparency=0))[0, :, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_keep_black_and_white(mode: str) -> None:
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8)).convert(mode)
    assert pixels(image)[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PIL", mode) for mode in ("I;16", "I;16L", "I;16B", "I;16N", "I")]
    + [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I"), ("PPM", "I;16"), ("PPM", "I")],
)
def test_sixteen_bit_grey_is_scaled(kind: str, mode: str) -> None:
    ramp = np.arange(65536).reshape(256, 256)
    order = {"I;16B": ">u2", "I;16N": "=u2", "I": "=i4"}.get(mode, "<u2")
    image = Image.new(mode, (256, 256))
    image.frombytes(ramp.astype(order).tobytes())
    found = pixels(image if kind == "PIL" else encode(image, kind))
    assert (found == found[..., :1]).all()
    flat = found[..., 0].ravel()
    assert (np.diff(flat) >= 0).all()
    np.testing.assert_array_equal(flat, np.rint(np.arange(65536) / 257))


def test_sixteen_bit_rgb_png() -> None:
    values = np.linspace(0, 65535, 300).astype(">u2").reshape(10, 10, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_allclose(pixels(data), values / 257, atol=1)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_float_grey(white: int) -> None:
    ramp = np.linspace(0, white, 256, dtype=np.float32)[None]
    for source in (Image.fromarray(ramp), encode(Image.fromarray(ramp), "TIFF")):
        np.testing.assert_array_equal(pixels(source)[0, :, 0], np.arange(256))
    over = ramp.copy()
    over[0, 0] = -0.1 * white  # ringing of a resize below black
    assert pixels(Image.fromarray(over))[0, 0].tolist() == [0, 0, 0]


def test_unknown_ranges_are_refused() -> None:
    row = np.array([[0.0, 70000.0]], np.float32)
    refused(Image.fromarray(row), "^<PIL image>: float grey values up to 70000, expected 0 to 1, 255 or 65535: save")
    refused(
        Image.fromarray(np.full((1, 2), np.nan, np.float32)),
        "^<PIL image>: grey values that are NaN or infinite: save it",
    )
    for low, high in ((0, 70000), (-5, 3)):
        image = Image.fromarray(np.array([[low, high]], np.int32))
        refused(encode(image, "TIFF"), f"^<bytes>: grey values {low} to {high}, expected 0 to 65535: save it with 16")


# ---- what can be wrong with a file -----------------------------------------------------------------------------------


def test_paths_that_are_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.jpg"
    error = refused(missing, "none.jpg: does not exist$")
    assert (error.file, error.reason) == (str(missing), "does not exist")
    refused(str(missing), "none.jpg: does not exist$")
    refused(tmp_path, "is a folder, not an image file$")
    refused("a\0b.jpg", "cannot be opened .*null")
    refused("x" * 5000, "cannot be opened .*name too long")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    refused(empty, "empty.jpg: the file is empty$")
    refused(b"", "^<bytes>: the file is empty$")
    text = tmp_path / "notes.png"
    text.write_text("this is no image at all")
    refused(text, "notes.png: not an image of a format that is read here .*JPEG, PNG")
    with pytest.raises(ImageError, match=r"notes\.png: not an image"):
        header_size(text)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is not a regular file$")

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    refused(text, "notes.png: no permission to read it$")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(photo(), "PNG"))
    path.chmod(0)
    refused(path, "no permission to read it$")


FILES = {
    "JPEG": encode(photo(), "JPEG", exif=exif(6), icc_profile=rgb_profile(P3, 2.2)),
    "PNG": encode(photo(), "PNG", exif=exif(6), icc_profile=rgb_profile(P3, 2.2)),
    "WEBP": encode(photo(), "WEBP", exif=exif(6), icc_profile=rgb_profile(P3, 2.2)),
    "GIF": encode(photo(), "GIF"),
    "TIFF": encode(photo(), "TIFF", icc_profile=rgb_profile(P3, 2.2)),
    "TIFF lzw": encode(photo(), "TIFF", compression="tiff_lzw"),
    "BMP": encode(photo(), "BMP"),
    "PPM": encode(photo(), "PPM"),
    "JPEG 2000": encode(photo(), "JPEG2000"),
}
if features.check("avif"):
    FILES["AVIF"] = encode(photo(), "AVIF", exif=exif(6), icc_profile=rgb_profile(P3, 2.2))


@pytest.mark.parametrize("kind", FILES)
def test_truncated_file(kind: str, tmp_path: Path) -> None:
    data = FILES[kind]
    open_photo(data)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(path, r"cut.img: cannot be decoded, it is damaged or cut short \(\w+")
    path.unlink()  # no handle is left open: fails on Windows, and a ResourceWarning is an error elsewhere


def test_memory_and_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    data = encode(photo(), "PNG")
    with monkeypatch.context() as patch:
        patch.setattr(images, "_srgb", full)
        refused(data, "^<bytes>: not enough memory to decode it$")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(encode(photo(), "WEBP"), r"^<bytes>: Image size \(2400 pixels\) exceeds .* PIL.Image.MAX_IMAGE_PIXELS$")


def test_interrupts_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_srgb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_photo(encode(photo(), "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "TIFF lzw", "BMP", "PPM"])
@pytest.mark.parametrize("limit", [2399, 1000, 10, None])
def test_pillows_limit_does_not_matter(kind: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its warning (up to twice the limit) nor its error (above)."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert open_photo(FILES[kind]).pixels.width in (40, 60)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", FILES)
def test_pixel_limit(kind: str) -> None:
    text = r": 60 x 40 = 2400 pixels, more than the limit of 2399: make the image smaller, or raise max_pixels if you"
    refused(FILES[kind], text, max_pixels=2399)
    assert open_photo(FILES[kind], max_pixels=2400).reduced == 1


def test_pixel_limit_of_images_arrays_and_a_bomb() -> None:
    refused(photo(), "^<array>: 60 x 40 = 2400 pixels, more than the limit of 100:", max_pixels=100)
    refused(Image.fromarray(photo()), "^<PIL image>: 60 x 40 = 2400 pixels", max_pixels=100)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    refused(bomb, "100000 x 100000 = 10000000000 pixels, more than the limit of 200000000")
    assert header_size(bomb) == (100_000, 100_000)


def only_image_errors(data: bytes) -> None:
    try:
        assert open_photo(data, max_pixels=1_000_000, draft_side=5).pixels.mode == "RGB"
    except ImageError as error:
        assert error.file == "<bytes>"
        assert error.reason
    try:
        header_size(data)
    except ImageError as error:
        assert error.file == "<bytes>"


SIGNATURES = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM", b"P6 ", b"RIFF\0\0\0\0WEBPVP8 ")


@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes(signature: bytes, data: bytes) -> None:
    only_image_errors(signature + data)


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8),
    st.booleans(),
    st.floats(0, 1.5),
)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_files(kind: str, changes: list[tuple[int, int]], in_header: bool, cut: float) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[place % (min(len(data), 64) if in_header else len(data))] = value
    only_image_errors(bytes(data[: int(len(data) * cut)]))


# ---- reduced decoding ------------------------------------------------------------------------------------------------

DRAFT_TOLERANCE = 1.0  # of 255, mean; stated in the docstring of open_photo


@pytest.mark.parametrize(
    ("long", "side", "expected"),
    [
        (639, 160, 1),  # below four times
        (640, 160, 2),
        (1279, 160, 2),
        (1280, 160, 4),
        (2560, 160, 8),
        (4096, 100, 8),
        (640, 640, 1),
    ],
)
@pytest.mark.parametrize("upright", [True, False])
def test_when_a_jpeg_is_reduced(long: int, side: int, expected: int, upright: bool) -> None:
    data = encode(photo(long, 48), "JPEG", exif=exif(1 if upright else 6))
    found = open_photo(data, draft_side=side)
    assert found.reduced == expected
    size = (-(-long // expected), -(-48 // expected))
    assert found.pixels.size == (size if upright else size[::-1])
    assert expected == 1 or max(size) >= 2 * side
    assert open_photo(data).reduced == 1


def test_only_jpeg_files_are_reduced() -> None:
    array = photo(400, 300)
    jpeg = encode(array, "JPEG")
    assert open_photo(jpeg, draft_side=50).reduced == 4
    for source in (array, encode(array, "PNG"), encode(array, "WEBP"), Image.open(io.BytesIO(jpeg))):
        found = open_photo(source, draft_side=50)
        assert (found.reduced, found.pixels.size) == (1, (400, 300))
    thin = open_photo(encode(photo(400, 3), "JPEG"), draft_side=50)
    assert (thin.reduced, thin.pixels.size) == (2, (200, 2))
    with pytest.raises(UsageError, match="draft_side must be at least 1 pixel, got 0"):
        open_photo(jpeg, draft_side=0)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_grey_and_cmyk(mode: str) -> None:
    data = encode(Image.fromarray(photo(400, 300)).convert(mode), "JPEG", quality=95)
    reduced, full = open_photo(data, draft_side=50), open_photo(data)
    assert reduced.reduced == 4
    difference = pixels(resize_whole(reduced.pixels, size=50, multiple=1)) - pixels(
        resize_whole(full.pixels, size=50, multiple=1)
    )
    assert np.abs(difference).mean() <= DRAFT_TOLERANCE


def draft_difference(data: bytes, side: int) -> float:
    reduced = open_photo(data, draft_side=side)
    assert reduced.reduced > 1
    full = open_photo(data)
    return float(
        np.abs(pixels(resize_whole(reduced.pixels, size=side)) - pixels(resize_whole(full.pixels, size=side))).mean()
    )


@pytest.mark.parametrize("long", [640, 1000, 1280, 2560])
def test_reduced_pixels_on_smooth_photos(long: int) -> None:
    array = photo(long, long * 3 // 4, seed=long)
    assert draft_difference(encode(array, "JPEG", quality=90), 160) <= DRAFT_TOLERANCE


@pytest.mark.parametrize("long", [1300, 2600])
def test_reduced_pixels_on_real_photos(long: int, test_data: Path) -> None:
    for path in sorted((test_data / "data/oasis/images").iterdir())[5::120]:
        large = open_photo(path).pixels.resize((long, long * 4 // 5), Image.Resampling.LANCZOS)
        assert draft_difference(encode(large, "JPEG", quality=90), 320) <= DRAFT_TOLERANCE


# ---- resizing --------------------------------------------------------------------------------------------------------


def test_input_size() -> None:
    assert input_size(500, 400, size=320) == (320, 256)
    assert input_size(400, 500, size=320) == (256, 320)
    assert input_size(10, 10_000, size=320) == (32, 320)
    assert input_size(100, 100, size=224, multiple=14) == (224, 224)
    assert input_size(4, 3, size=64) == (64, 64)  # 48 = 1.5 multiples: half goes up
    assert input_size(4000, 2999, size=64) == (64, 32)
    assert input_size(500, 400, size=300) == (288, 256)
    assert input_size(500, 400, size=1) == (32, 32)
    for wrong in ({"width": 0}, {"height": 0}, {"size": 0}, {"multiple": 0}):
        with pytest.raises(UsageError, match="sizes must be at least 1: got a photo of "):
            input_size(**({"width": 5, "height": 5, "size": 5} | wrong))


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 2000), st.integers(1, 64))
def test_input_size_is_the_nearest(width: int, height: int, size: int, multiple: int) -> None:
    from fractions import Fraction

    for side, found in zip((width, height), input_size(width, height, size=size, multiple=multiple), strict=True):
        assert found % multiple == 0
        exact = Fraction(side * size, max(width, height))
        assert found == multiple or -multiple / 2 < exact - found <= multiple / 2 or exact - found == -multiple / 2
        assert found - exact <= multiple / 2 or found == multiple


def test_resize_whole() -> None:
    image = Image.fromarray(photo(500, 400))
    found = resize_whole(image, size=320)
    assert found.size == (320, 256)
    expected = image.resize((320, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(to_array(found), to_array(expected))
    assert resize_whole(image, size=70, multiple=1).size == (70, 56)
    assert resize_whole(Image.new("RGB", (10, 3)), size=64).size == (64, 32)


@pytest.mark.parametrize("size", [(500, 400), (400, 500), (300, 300), (50, 40), (333, 257), (1000, 256)])
@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.9])
def test_resize_crop_is_resize_then_crop(size: tuple[int, int], fraction: float) -> None:
    image = Image.fromarray(photo(*size))
    found = resize_crop(image, size=224, crop_fraction=fraction)
    short = round(224 / fraction)
    scaled = [int(short * side / min(size)) for side in size]
    left, top = (round((side - 224) / 2) for side in scaled)
    expected = image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    assert found.size == (224, 224)
    np.testing.assert_array_equal(to_array(found), to_array(expected))


def test_resize_crop_of_a_strip_and_wrong_numbers() -> None:
    assert resize_crop(Image.new("RGB", (200_000, 1)), size=224).size == (224, 224)
    assert resize_crop(Image.new("RGB", (1, 1)), size=7, crop_fraction=0.5).size == (7, 7)
    for wrong in ({"size": 0}, {"size": 5, "crop_fraction": 0.0}, {"size": 5, "crop_fraction": 1.1}):
        with pytest.raises(UsageError, match="expected size >= 1 and 0 < crop_fraction <= 1, got size="):
            resize_crop(Image.new("RGB", (9, 9)), **wrong)  # type: ignore[arg-type]


def test_to_array() -> None:
    found = to_array(Image.fromarray(photo()))
    assert (found.dtype, found.shape) == (np.uint8, (40, 60, 3))
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert to_array(Image.new("L", (2, 1), 9)).tolist() == [[[9, 9, 9], [9, 9, 9]]]


# ---- threads and real photos -----------------------------------------------------------------------------------------


def test_threads_give_what_one_gives() -> None:
    sources = list(FILES.values()) + [
        encode(photo(seed=seed), "PNG", icc_profile=rgb_profile(P3, 1.5 + seed / 10)) for seed in range(20)
    ]
    expected = [open_photo(source, draft_side=10).digest for source in sources]
    images._transform.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda source: open_photo(source, draft_side=10).digest, sources * 8))
    assert found == expected * 8


def test_real_photos(test_data: Path) -> None:
    paths = sorted((test_data / "data/oasis/images").iterdir())
    assert len(paths) == 677
    profiled = 0
    for path in [*paths[::23], *(path for path in paths if path.name == "Monkey3.jpg")]:
        found = open_photo(path)
        assert found.pixels.size == header_size(path) == (500, 400)
        with Image.open(path) as image:
            profiled += "icc_profile" in image.info
            assert (image.format, image.mode) == (("PNG", "RGBA") if path.name == "Monkey3.jpg" else ("JPEG", "RGB"))
            if image.mode == "RGB" and "icc_profile" not in image.info:
                np.testing.assert_array_equal(to_array(found.pixels), to_array(image))
    assert profiled > 0
