"""HEIC and RAW: decoded exactly, the right way up, refused when damaged, and named when the extra is missing."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

import made_files
from milnet import exif, heif, raw
from milnet.errors import ImageError
from milnet.images import Photo, header_size, open_photo, to_array

Pixels = NDArray[np.uint8]


def picture(width: int = 60, height: int = 40) -> Pixels:
    """Smooth colours, no two sides or corners alike. HWC."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


RGB = picture()
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def pixels(found: Photo) -> NDArray[np.int16]:
    return to_array(found.pixels).astype(np.int16)


def jpeg(rgb: Pixels, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling=0, **options)
    return stream.getvalue()


def dates(block: bytes) -> dict[int, str]:
    """The texts of an EXIF block, by Pillow's own reader."""
    found = Image.Exif()
    found.load(b"Exif\0\0" + block)
    return {tag: str(value) for tag, value in {**found, **found.get_ifd(0x8769)}.items() if isinstance(value, str)}


# ---- HEIC ------------------------------------------------------------------------------------------------------------

needs_heif = pytest.mark.skipif(not heif.is_available(), reason="needs the extra heif")


@needs_heif
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_heic_pixels_are_exact(depth: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(depth)
    noise = rng.integers(0, 1 << depth, (37, 53, 3))  # sides that are no multiple of a block
    path = tmp_path / "phone.jpg"  # the content decides
    path.write_bytes(made_files.heic(noise, depth=depth))
    found = open_photo(path)
    np.testing.assert_array_equal(pixels(found), noise >> (depth - 8))
    assert found.size == found.pixels.size == header_size(path) == (53, 37)
    assert (found.reduced, found.exif, found.pixels.mode) == (1, b"", "RGB")
    assert open_photo(path, draft_side=5).digest == found.digest


@needs_heif
def test_heic_as_phones_code_it() -> None:
    """BT.601 with half the rows and columns of colour, against the formula."""
    rgb = picture(202, 130)
    light, blue, red = made_files.usual_planes(rgb)
    blue, red = (plane.repeat(2, 0).repeat(2, 1) - 128.0 for plane in (blue, red))
    expected = np.stack([light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue], -1)
    found = pixels(open_photo(made_files.heic(rgb, usual=True)))
    np.testing.assert_allclose(found, expected.clip(0, 255), atol=1.5)
    assert np.abs(found - rgb).mean() < 2


@needs_heif
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif_says", [False, True])
def test_heic_is_turned_once(orientation: int, exif_says: bool) -> None:
    """As the container says; the EXIF of a phone says the same once more."""
    turns, mirror = {
        1: (0, None),
        2: (0, 1),
        3: (2, None),
        4: (0, 0),
        5: (1, 0),
        6: (3, None),
        7: (1, 1),
        8: (1, None),
    }[orientation]
    block = made_files.exif_block(orientation=orientation) if exif_says else b""
    data = made_files.heic(RGB, turns=turns, mirror=mirror, exif=block)
    expected = UPRIGHT[orientation](RGB)
    found = open_photo(data)
    np.testing.assert_array_equal(pixels(found), expected)
    assert found.size == header_size(data) == (expected.shape[1], expected.shape[0])
    assert bool(found.exif) == exif_says


@needs_heif
def test_heic_of_tiles_with_alpha_profile_and_date() -> None:
    wide = picture(256, 64)
    np.testing.assert_array_equal(pixels(open_photo(made_files.heic(wide, tiles=4, turns=1))), np.rot90(wide))
    half = made_files.heic(RGB, alpha=np.full(RGB.shape[:2], 128, np.uint8), turns=2)
    np.testing.assert_allclose(
        pixels(open_photo(half)), np.rint(RGB * (128 / 255) + 255 * (127 / 255))[::-1, ::-1], atol=1
    )
    dated = open_photo(made_files.heic(RGB, exif=made_files.exif_block("2023:01:02 03:04:05", "67")))
    assert dates(dated.exif)[0x9003] == "2023:01:02 03:04:05"
    png = io.BytesIO()
    swapped = _swapped_primaries(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    Image.fromarray(RGB).save(png, "PNG", icc_profile=swapped)
    found = pixels(open_photo(made_files.heic(RGB, profile=swapped)))
    np.testing.assert_array_equal(found, pixels(open_photo(png.getvalue())))
    assert np.abs(found - RGB).max() > 50


def _swapped_primaries(profile: bytes) -> bytes:
    """A profile whose red is green and whose green is red: what it does to a photo is plain to see."""
    head, table = bytearray(profile), 132
    count = int.from_bytes(profile[128:132], "big")
    for at in range(table, table + 12 * count, 12):
        name = bytes(profile[at : at + 4])
        head[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(head)


@needs_heif
@pytest.mark.parametrize(
    ("brands", "is_heif"),
    [
        (b"heicmif1heic", True),
        (b"heixmif1heic", True),
        (b"mif1heicmif1", True),
        (b"mif1mif1miaf", True),
        (b"mif1avifmif1", False),
        (b"avifmif1miaf", False),
        (b"crx crx isom", False),
        (b"qt  qt  ", False),
    ],
)
def test_brands(brands: bytes, is_heif: bool) -> None:
    data = made_files.heic(RGB, brands=brands)
    assert heif.is_heif(io.BytesIO(data)) is is_heif
    if is_heif:
        np.testing.assert_array_equal(pixels(open_photo(data)), RGB)
    else:
        with pytest.raises(ImageError):
            open_photo(data)


@needs_heif
@pytest.mark.parametrize("tiles", [1, 2])
def test_cut_heic_is_refused(tiles: int) -> None:
    data = made_files.heic(RGB[:32, :32], tiles=tiles)
    for length in {*range(1, len(data), 61), len(data) - 1}:
        with pytest.raises(ImageError, match=r"^<bytes>: (is cut short|not an image of a format)"):
            open_photo(data[:length])


@needs_heif
@pytest.mark.parametrize("trailer", [b"x", b"\0", b"notes of a phone, SEFT", bytes(9), b"\0\0\1\0mpvd" + bytes(99)])
def test_what_phones_append_to_a_heic(trailer: bytes) -> None:
    np.testing.assert_array_equal(pixels(open_photo(made_files.heic(RGB) + trailer)), RGB)


@needs_heif
def test_heic_limits_and_lies() -> None:
    text = "^<bytes>: 30000 x 30000 = 900000000 pixels, more than the limit of 200000000"
    with pytest.raises(ImageError, match=text):
        open_photo(made_files.heic(RGB, claimed=(30000, 30000)))
    with pytest.raises(ImageError, match="cannot be decoded, it is damaged"):
        open_photo(made_files.heic(RGB, claimed=(6, 4)), max_pixels=100)
    with pytest.raises(ImageError, match="60 x 40 = 2400 pixels, more than the limit of 2399"):
        open_photo(made_files.heic(RGB), max_pixels=2399)


def test_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    for data, kind, extra in ((made_files.heic(RGB), "HEIC", "heif"), (made_files.dng(RGB), "RAW", "raw")):
        text = rf"^<bytes>: a {kind} photo: pip install 'milnet\[{extra}\]' to read such files$"
        with pytest.raises(ImageError, match=text):
            open_photo(data)
        with pytest.raises(ImageError, match=text):
            header_size(data)


def test_pillow_is_left_as_it_was() -> None:
    before = dict(Image.OPEN), dict(Image.EXTENSION)
    for data in (made_files.heic(RGB), made_files.dng(RGB)):
        header_size(data)
    assert before == (Image.OPEN, Image.EXTENSION)
    assert "HEIF" not in Image.OPEN


# ---- RAW -------------------------------------------------------------------------------------------------------------

needs_raw = pytest.mark.skipif(not raw.is_available(), reason="needs the extra raw")
SENSOR = picture(300, 200)
SEEN = picture(1200, 800)[:, :, ::-1]  # the camera's picture: unlike the sensor's, so that one can tell them apart


@needs_raw
@pytest.mark.parametrize("orientation", range(1, 9))
def test_raw_is_developed(orientation: int) -> None:
    """A sensor that sees sRGB colours gives them back: with its own white balance and no brightness of ours."""
    data = made_files.dng(SENSOR, orientation=orientation)
    expected = UPRIGHT[orientation](SENSOR)
    found = open_photo(data)
    assert found.size == found.pixels.size == header_size(data) == (expected.shape[1], expected.shape[0])
    difference = np.abs(pixels(found) - expected)[8:-8, 8:-8]
    assert difference.mean() < 1
    assert difference.max() < 25  # where a colour turns within few pixels
    assert open_photo(data).digest == found.digest


@needs_raw
def test_a_dark_raw_stays_dark() -> None:
    found = pixels(open_photo(made_files.dng(SENSOR // 4)))
    assert abs(found.mean() - (SENSOR // 4).mean()) < 1


@needs_raw
def test_large_sensors_are_developed_at_half_size() -> None:
    large = np.array(Image.fromarray(SENSOR).resize((4200, 202), Image.Resampling.BICUBIC))
    data = made_files.dng(large, orientation=6)
    found = open_photo(data)
    assert found.pixels.size == header_size(data) == (101, 2100)
    assert found.size == (202, 4200)
    small = np.array(Image.fromarray(large).resize((2100, 101), Image.Resampling.BOX))
    assert np.abs(pixels(found) - np.rot90(small, -1)).mean() < 2


@needs_raw
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_cameras_picture_is_taken(orientation: int) -> None:
    data = made_files.dng(SENSOR, preview=jpeg(SEEN), preview_size=(1200, 800), orientation=orientation)
    found, expected = open_photo(data), UPRIGHT[orientation](SEEN)
    assert np.abs(pixels(found) - expected).mean() < 2
    assert found.pixels.size == header_size(data) == (expected.shape[1], expected.shape[0])
    assert found.size == ((300, 200) if orientation < 5 else (200, 300))  # the sensor's
    reduced = open_photo(data, draft_side=150)
    assert (reduced.reduced, max(reduced.pixels.size), reduced.size) == (4, 300, found.size)


@needs_raw
def test_a_picture_that_the_camera_has_turned_is_not_turned_again() -> None:
    standing = np.ascontiguousarray(np.rot90(SEEN, -1))
    data = made_files.dng(SENSOR, preview=jpeg(standing), preview_size=(800, 1200), orientation=6)
    assert np.abs(pixels(open_photo(data)) - standing).mean() < 2
    own = jpeg(SEEN, exif=b"Exif\0\0" + made_files.exif_block(orientation=8))  # says so itself
    own = own[:2] + own[20:]  # the EXIF first, as cameras do it, and no JFIF
    found = open_photo(made_files.dng(SENSOR, preview=own, preview_size=(1200, 800)))
    assert np.abs(pixels(found) - np.rot90(SEEN)).mean() < 2


@needs_raw
@pytest.mark.parametrize(
    ("sensor", "preview", "taken"),
    [
        ((300, 200), (150, 100), True),  # half of a small sensor
        ((300, 200), (148, 98), False),
        ((2400, 160), (1024, 68), True),
        ((2400, 160), (1020, 68), False),
    ],
)
def test_a_small_picture_is_not_enough(sensor: tuple[int, int], preview: tuple[int, int], taken: bool) -> None:
    rgb = np.full((sensor[1], sensor[0], 3), (40, 60, 200), np.uint8)
    small = np.full((preview[1], preview[0], 3), (200, 60, 40), np.uint8)
    found = open_photo(made_files.dng(rgb, preview=jpeg(small), preview_size=preview))
    assert found.pixels.size == (preview if taken else sensor)
    assert np.abs(pixels(found).mean((0, 1)) - ((200, 60, 40) if taken else (40, 60, 200))).max() < 3


@needs_raw
def test_date_of_a_raw(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(made_files.dng(SENSOR, date="2022:03:04 05:06:07"))
    found = dates(open_photo(path).exif)
    assert found[0x9003] == found[0x0132] == "2022:03:04 05:06:07"
    assert (found[0x9291], found[0x010F]) == ("25", "Made")
    assert exif.orientation(open_photo(path).exif) == 1


@needs_raw
def test_date_of_a_raw_that_says_it_elsewhere() -> None:
    """In the EXIF of the camera's picture (Fujifilm), or where only LibRaw finds it (Canon's CR3)."""
    shown = jpeg(SEEN, exif=b"Exif\0\0" + made_files.exif_block("2021:02:03 04:05:06", "78"))
    shown = shown[:2] + shown[20:]  # the EXIF first
    found = open_photo(made_files.dng(SENSOR, preview=shown, preview_size=(1200, 800), taken=False))
    assert (dates(found.exif)[0x9003], dates(found.exif)[0x9291]) == ("2021:02:03 04:05:06", "78")
    found = open_photo(made_files.dng(SENSOR, date="2022:03:04 05:06:07", taken=False))
    assert dates(found.exif) == {0x9003: "2022:03:04 05:06:07"}
    assert dates(open_photo(made_files.dng(SENSOR, date="", taken=False)).exif).keys() == {0x010F, 0x0110}


def test_is_dated() -> None:
    assert exif.is_dated(made_files.exif_block())
    assert exif.is_dated(exif.made({exif.EXIF_IFD: {0x9004: b"2020:01:01 00:00:00"}}))
    assert not exif.is_dated(exif.made({0: {0x0132: b"2020:01:01 00:00:00"}}))
    assert not exif.is_dated(b"")


@needs_raw
def test_wrong_raws() -> None:
    with pytest.raises(ImageError, match=r"^<bytes>: 300 x 200 = 60000 pixels, more than the limit of 59999"):
        open_photo(made_files.dng(SENSOR), max_pixels=59_999)
    data = made_files.dng(SENSOR)
    for length in (*range(50, 1000, 97), *range(1000, len(data), 12_000), len(data) - 2):
        with pytest.raises(ImageError) as caught:
            open_photo(data[:length])
        assert caught.value.reason
    shown = made_files.dng(SENSOR, preview=jpeg(SEEN), preview_size=(1200, 800))
    for length in range(1200, 60_000, 9_000):  # within the picture
        with pytest.raises(ImageError):
            open_photo(shown[:length])
    for start in raw._STARTS:
        with pytest.raises(ImageError, match=r"^<bytes>: a RAW that cannot be read"):
            open_photo(start + bytes(300))


def test_tiffs_that_are_no_raw() -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "TIFF")
    assert not raw.is_raw(stream)
    assert raw.is_raw(io.BytesIO(made_files.dng(RGB)))
    assert raw.is_raw(io.BytesIO(made_files.dng(RGB, preview=jpeg(RGB), preview_size=(60, 40))))


@needs_heif
@needs_raw
def test_threads() -> None:
    sources = [
        made_files.dng(SENSOR),
        made_files.heic(RGB),
        made_files.dng(SENSOR, orientation=6),
        made_files.heic(RGB, turns=1),
    ]
    expected = [open_photo(source).digest for source in sources]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda source: open_photo(source).digest, sources * 10)) == expected * 10


@needs_heif
@needs_raw
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6), st.floats(0, 1.2))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damage(of_raw: bool, changes: list[tuple[int, int]], cut: float) -> None:
    data = bytearray(DAMAGED[of_raw])
    for place, value in changes:
        data[place] = value
    source = bytes(data[: int(len(data) * cut)])
    for read in (lambda: open_photo(source, max_pixels=1_000_000), lambda: header_size(source)):
        try:
            read()
        except ImageError as error:
            assert error.reason


DAMAGED = {True: made_files.dng(RGB), False: made_files.heic(RGB[:32, :32], exif=made_files.exif_block())}


# ---- EXIF blocks -----------------------------------------------------------------------------------------------------


def test_made_blocks_are_read_by_pillow() -> None:
    texts = {0: {0x010F: b"Canon", 0x0110: b"R5"}, exif.EXIF_IFD: {0x9003: b"2020:01:01 00:00:00", 0x9291: b"5"}}
    assert dates(exif.made(texts)) == {0x010F: "Canon", 0x0110: "R5", 0x9003: "2020:01:01 00:00:00", 0x9291: "5"}
    assert dates(exif.made({exif.EXIF_IFD: {0x9003: b"2020"}})) == {0x9003: "2020"}
    assert exif.made({}) == exif.made({0: {0x010F: b""}}) == b""


@given(st.sampled_from((b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes(head: bytes, data: bytes) -> None:
    assert 1 <= exif.orientation(head + data) <= 8
    assert isinstance(exif.of_tiff(io.BytesIO(head + data)), bytes)
    assert len(list(exif.directories(io.BytesIO(head + data)))) < 1000
    raw.is_raw(io.BytesIO(head + data))
    heif.is_heif(io.BytesIO(data))


def test_circles_of_directories_end() -> None:
    one = b"II*\0" + (8).to_bytes(4, "little") + b"\0\0" + (8).to_bytes(4, "little")
    assert len(list(exif.directories(io.BytesIO(one)))) == 1


@needs_heif
@pytest.mark.parametrize("place", [0, 3, 4])  # of the type, and of the name behind it
def test_an_item_of_no_kind(place: int) -> None:
    """libheif's Python side crashes, and the whole process with it, where a type is no text."""
    data = bytearray(DAMAGED[False])
    at = data.index(b"Exif", data.index(b"infe"))
    data[at + place] = 0xC3
    with pytest.raises(ImageError, match=r"is damaged: at byte .* an item is of no known kind"):
        open_photo(bytes(data))
