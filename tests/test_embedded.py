"""XMP inside photos: nothing of a JPEG but its XMP segment changes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

import made
from made_xmp import ENTRY, packet, rated, state, values
from milnet.embedded import MOST_BYTES, XMP_HEAD, read_embedded, segments, with_packet
from milnet.errors import ImageError
from milnet.images import open_photo
from milnet.packets import read_packet
from milnet.xmp import read_rating, write_rating


def parts(data: bytes) -> tuple[list[bytes], bytes]:
    """An independent look at a JPEG: its segments before the scan, and everything from the scan on."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at:end])
        at = end
    return found, data[at:]


def without_xmp(data: bytes) -> tuple[list[bytes], bytes]:
    found, scan = parts(data)
    return [part for part in found if not part[4:].startswith(XMP_HEAD)], scan


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def inserted(data: bytes, at: int, *more: bytes) -> bytes:
    """A JPEG with more segments before its segment number `at`."""
    found, scan = parts(data)
    return data[:2] + b"".join([*found[:at], *more, *found[at:]]) + scan


def exif(rating: int = 0) -> bytes:
    block = Image.Exif()
    block[0x010F] = "camera"
    if rating:
        block[0x4746] = rating
    return block.tobytes()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    made.photo(1).save(path, exif=exif(), comment=b"a note", icc_profile=b"p" * 300, progressive=True)
    path.write_bytes(path.read_bytes() + b"trailing data")
    return path


def test_only_the_segment_changes(photo: Path) -> None:
    before, pixels = photo.read_bytes(), open_photo(photo).digest
    assert write_rating(photo, ENTRY, embed=True).action == "created"
    after = photo.read_bytes()
    assert [path.name for path in photo.parent.iterdir()] == ["a.jpg"]  # and there is no sidecar
    assert without_xmp(after) == parts(before) and len(parts(after)[0]) == len(parts(before)[0]) + 1
    assert open_photo(photo).digest == pixels
    with Image.open(photo) as image:
        assert read_packet(image.info["xmp"]).stars == 4
    # Behind JFIF and EXIF.
    heads = [part[4:8] for part in parts(after)[0]]
    assert heads[:3] == [b"JFIF", b"Exif", b"http"]
    write_rating(photo, ENTRY.__class__(2, 1.0, None, None, None, None, None, "e"), embed=True)
    assert without_xmp(photo.read_bytes()) == parts(before)
    assert read_packet(read_embedded(photo).packet or b"").stars == 2
    assert read_rating(photo) is None


def test_a_packet_that_was_there(photo: Path) -> None:
    """It stays where it is, the order of all segments too."""
    made.photo(1).save(photo, xmp=packet('xmp:Label="Red"', 'xmp:Rating="0"').encode(), exif=exif(), comment=b"note")
    before = photo.read_bytes()
    assert write_rating(photo, ENTRY, embed=True).action == "merged"
    old, new = parts(before), parts(photo.read_bytes())
    assert old[1] == new[1]
    assert [a == b for a, b in zip(old[0], new[0], strict=True)] == [not a[4:].startswith(XMP_HEAD) for a in old[0]]
    text = (read_embedded(photo).packet or b"").decode()
    assert 'xmp:Label="Red"' in text and 'xmp:Rating="4"' in text


def test_human_ratings_inside(photo: Path) -> None:
    made.photo(1).save(photo, xmp=rated(2).encode())
    outcome = write_rating(photo, ENTRY, embed=True)
    assert (outcome.action, outcome.human) == ("kept rating", 2) and read_rating(photo) == 2
    assert b'xmp:Rating="2"' in (read_embedded(photo).packet or b"")
    made.photo(1).save(photo, exif=exif(3))
    assert write_rating(photo, ENTRY, embed=True).human == 3
    assert read_packet(read_embedded(photo).packet or b"").rating is None
    # A sidecar that exists says it too, and is kept up to date, as programs prefer it.
    sidecar = photo.with_name("a.jpg.xmp")
    made.photo(1).save(photo)
    sidecar.write_text(rated(5))
    outcome = write_rating(photo, ENTRY, embed=True)
    assert outcome.human == 5 and outcome.written == (sidecar, photo)
    assert values(sidecar)["Score"] == "5.1234" and read_packet(read_embedded(photo).packet or b"").rating is None


def test_fill_bytes_and_markers_without_length(photo: Path) -> None:
    found, scan = parts(photo.read_bytes())
    data = b"\xff\xd8" + found[0] + b"\xff\xff\xff" + found[1][1:] + b"\xff\x01" + b"".join(found[2:]) + scan
    photo.write_bytes(data)
    write_rating(photo, ENTRY, embed=True)
    after = photo.read_bytes()
    at, size = after.index(b"\xff\xe1", after.index(b"Exif")), len(after) - len(data)
    assert after[at + 4 :].startswith(XMP_HEAD) and after[:at] + after[at + size :] == data


def test_second_pictures_stay(tmp_path: Path) -> None:
    """An MPO's index counts the bytes to its second picture: ours goes before the index, or nowhere."""
    photo = tmp_path / "a.jpg"
    first, second = made.photo(1), made.photo(2)
    first.save(photo, "MPO", save_all=True, append_images=[second])

    def pictures(data: bytes) -> list[bytes]:
        frames = []
        with Image.open(io.BytesIO(data)) as image:
            for number in range(image.n_frames):
                image.seek(number)
                frames.append(image.convert("RGB").tobytes())
        return frames

    before = photo.read_bytes()
    assert any(part[4:8] == b"MPF\0" for part in parts(before)[0]) and len(pictures(before)) == 2
    write_rating(photo, ENTRY, embed=True)
    after = photo.read_bytes()
    assert pictures(after) == pictures(before) and without_xmp(after) == parts(before)
    # Behind the index: only a packet with room to spare can change.
    index = next(number for number, part in enumerate(parts(before)[0]) if part[4:8] == b"MPF\0")
    wrapped = f"<?xpacket begin=''?>{rated(0)}{' ' * 1000}<?xpacket end='w'?>".encode()
    for content, fits in ((wrapped, True), (rated(0).encode(), False)):
        photo.write_bytes(inserted(before, index + 1, segment(0xE1, XMP_HEAD + content)))
        old = photo.read_bytes()
        if fits:
            write_rating(photo, ENTRY, embed=True)
            assert len(photo.read_bytes()) == len(old) and without_xmp(photo.read_bytes()) == without_xmp(old)
            assert read_packet(read_embedded(photo).packet or b"").stars == 4
            write_rating(photo, ENTRY.__class__(1, 2.0, None, None, None, None, None, "e"), embed=True)  # shorter
            assert len(photo.read_bytes()) == len(old)
        else:
            with pytest.raises(ImageError, match=r"counts its bytes \(a second picture, or a trailer\)"):
                write_rating(photo, ENTRY, embed=True)
            assert photo.read_bytes() == old


def test_a_trailer_that_counts_from_the_beginning(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes() + b"AXS!" + bytes(8))
    before = state(photo.parent)
    with pytest.raises(ImageError, match="counts its bytes"):
        write_rating(photo, ENTRY, embed=True)
    assert state(photo.parent) == before


def test_the_limit_of_a_segment(photo: Path) -> None:
    def content(size: int, blanks: int = 0) -> bytes:
        text = packet('xmp:Label="{}"', 'xmp:Rating="0"') + " " * blanks + "<?xpacket end='w'?>"
        return text.replace("{}", "x" * (size - len(text) + 2)).encode()

    plain = photo.read_bytes()
    photo.write_bytes(inserted(plain, 2, segment(0xE1, XMP_HEAD + content(3000))))
    write_rating(photo, ENTRY, embed=True)
    most = MOST_BYTES - (len(read_embedded(photo).packet or b"") - 3000)  # what leaves room for ours
    for size, blanks, fits in ((most, 0, True), (most + 1, 0, False), (MOST_BYTES, 800, True)):
        photo.write_bytes(inserted(plain, 2, segment(0xE1, XMP_HEAD + content(size, blanks))))
        before = photo.read_bytes()
        if fits:
            write_rating(photo, ENTRY, embed=True)
            assert len(read_embedded(photo).packet or b"") == MOST_BYTES
            assert without_xmp(photo.read_bytes()) == without_xmp(before)
        else:
            with pytest.raises(ImageError, match=r"its XMP would be 65,503 bytes long, more than the 65,502 of a JPEG"):
                write_rating(photo, ENTRY, embed=True)
            assert photo.read_bytes() == before


def test_extended_segments_stay(photo: Path) -> None:
    extension = segment(
        0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 5, 0) + b"<x/>\n"
    )
    photo.write_bytes(
        inserted(photo.read_bytes(), 2, segment(0xE1, XMP_HEAD + rated(0).encode()), extension, extension)
    )
    before = photo.read_bytes()
    write_rating(photo, ENTRY, embed=True)
    assert without_xmp(photo.read_bytes()) == without_xmp(before) and photo.read_bytes().count(extension) == 2


def test_what_cannot_be_embedded(photo: Path) -> None:
    plain = photo.read_bytes()
    one = segment(0xE1, XMP_HEAD + rated(0).encode())
    scan = plain.index(parts(plain)[1])
    for data, reason in (
        (inserted(plain, 2, one, one), "holds two XMP packets"),
        (inserted(plain, 2, segment(0xE1, XMP_HEAD + b"<x>")), "is not well-formed XML"),
        (plain[:scan], "is no complete JPEG"),
        (plain[:300], "is no complete JPEG"),
        (b"\xff\xd8\xff" + b"nonsense" * 4, "is no complete JPEG"),
        (b"GIF89a", "is no JPEG"),
        (b"", "is no JPEG"),
    ):
        photo.write_bytes(data)
        before = state(photo.parent)
        with pytest.raises(ImageError, match=reason):
            write_rating(photo, ENTRY, embed=True)
        assert state(photo.parent) == before


def test_segments(photo: Path) -> None:
    with photo.open("rb") as file:
        found = segments(file, photo)
    data = photo.read_bytes()
    assert [data[one.start : one.end] for one in found[:-1]] == parts(data)[0]
    assert data[found[-1].start :] == parts(data)[1] and found[-1].marker == 0xDA


def test_packets_in_files_of_unknown_build(tmp_path: Path) -> None:
    """HEIC, CR3 and others hold theirs as text, with or without a wrapper."""
    for number, text in enumerate((rated(3), f"<?xpacket begin=''?>{rated(3)}<?xpacket end='w'?>")):
        photo = tmp_path / f"{number}.cr3"
        photo.write_bytes(b"\0\0\0\x18ftypcrx " + b"\0<x:xmp" * 99 + text.encode() + b"</x:xmpmeta>" * 3)
        assert read_rating(photo) == 3
    photo.write_bytes(b"II\x1a\0\0\0HEAPCCDR" + bytes(99))  # begins like a TIFF and is none
    assert read_embedded(photo).packet is None and read_rating(photo) is None
    photo.write_bytes(b"")
    assert read_rating(photo) is None


def test_damaged_exif_says_nothing(photo: Path) -> None:
    for content in (
        b"Exif\0\0MM\0*\0\0\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0junkjunkjunkjunk",
        b"Exif\0\0II*\0\x08\0\0\0\x09\0",
    ):
        made.photo(1).save(photo)
        photo.write_bytes(inserted(photo.read_bytes(), 1, segment(0xE1, content)))
        assert read_rating(photo) is None


def test_cut_packets_are_told(tmp_path: Path) -> None:
    photo = tmp_path / "a.tif"
    made.photo(1).save(photo, tiffinfo={700: rated(3).encode()})
    data = photo.read_bytes()
    at = data.index(b"<x:xmpmeta")
    entry = data.index(struct.pack("<I", at))
    photo.write_bytes(data[:entry] + struct.pack("<I", len(data) - 5) + data[entry + 4 :])
    with pytest.raises(ImageError, match=r"a.tif: its metadata is damaged \(the packet is cut\): is the file cut\?"):
        read_rating(photo)
    png = tmp_path / "a.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**31, b"iTXt") + b"XML:com.adobe.xmp")
    with pytest.raises(ImageError, match="its metadata is damaged"):
        read_rating(png)


def test_real_photos(test_data: Path, tmp_path: Path) -> None:
    """Every tenth: the scan and all other segments to the byte, the pixels to the bit."""
    photos = sorted((test_data / "data/oasis/images").glob("*.jpg"))[::10]
    seen = 0
    for source in photos:
        data = source.read_bytes()
        photo = tmp_path / source.name
        photo.write_bytes(data)
        if not data.startswith(b"\xff\xd8"):
            continue
        human = read_rating(photo)
        write_rating(photo, ENTRY, embed=True)
        assert without_xmp(photo.read_bytes()) == without_xmp(data)
        assert open_photo(photo).digest == open_photo(source).digest
        assert human is not None or read_packet(read_embedded(photo).packet or b"").stars == 4
        seen += 1
    assert seen > 50


def test_a_packet_is_put_into_a_copy_of_the_bytes(photo: Path) -> None:
    before = photo.read_bytes()
    data = with_packet(photo, rated(1).encode())
    assert photo.read_bytes() == before and len(data) == len(before) + 4 + len(XMP_HEAD) + len(rated(1))


def test_parts_of_a_webp_begin_at_even_places(tmp_path: Path) -> None:
    photo = tmp_path / "a.webp"
    made.photo(1).save(photo, xmp=rated(3).encode())
    data = photo.read_bytes()
    photo.write_bytes(data[:12] + b"odd " + struct.pack("<I", 3) + b"xyz\0" + data[12:])
    assert read_rating(photo) == 3
