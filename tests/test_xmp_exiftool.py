"""XMP against exiftool, an independent reader and writer: what it made is merged, what we made it reads and keeps."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import made
from made_xmp import ENTRY, values
from milnet.embedded import read_embedded
from milnet.images import open_photo
from milnet.packets import read_packet, set_properties
from milnet.xmp import read_rating, write_rating
from test_packets import CASES

pytestmark = pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs the program exiftool")

OURS = ("Rating", "Stars", "Score", "Low", "High", "Percentile", "FolderPercentile", "Unlike", "Model", "Version")
# What photographers' programs write: lists, languages, structures in lists, several namespaces.
TAGS = [
    "-XMP-lr:HierarchicalSubject=Animals|Birds|Wren", "-XMP-lr:HierarchicalSubject=Places|Çeşme",
    "-XMP-dc:Subject=wren",
    "-XMP-dc:Subject=a <b> & \"c\"", "-XMP-dc:Title=Wren", "-XMP-dc:Title-de=Zaunkönig", "-XMP-dc:Rights=©",
    "-XMP-aux:Lens=EF 100mm", "-XMP-aux:SerialNumber=0123", "-XMP-exif:FNumber=2.8",
    "-XMP-exif:UserComment-x-default=hi",
    "-XMP-tiff:Make=Camera", "-XMP-photoshop:City=Izmir", "-XMP-xmp:Label=Red",
    "-XMP-xmp:CreateDate=2020:01:02 03:04:05",
    "-XMP-crs:Exposure2012=+0.35", "-XMP-crs:ToneCurvePV2012=0, 0", "-XMP-crs:ToneCurvePV2012=255, 255",
    "-XMP-iptcExt:PersonInImage=Ada", "-XMP-xmpRights:Marked=True", "-XMP-digiKam:TagsList=Animals/Birds",
    "-XMP-xmpMM:History=[{Action=saved,When=2020:01:01,Changed=/},{Action=derived,Parameters=a b}]",
    "-XMP-xmpMM:DerivedFrom={DocumentID=1,InstanceID=2}",
    "-XMP-mwg-rs:RegionInfo={AppliedToDimensions={W=96,H=72,Unit=pixel},RegionList=[{Area={X=.5,Y=.5,W=.1,H=.2,"
    "Unit=normalized},Name=Ada,Type=Face},{Area={X=.2,Y=.2,W=.1,H=.1,Unit=normalized},Type=Pet}]}",
    "-XMP-MP:RegionInfoMP={Regions=[{PersonDisplayName=Ada,Rectangle=0.1\\, 0.2\\, 0.3\\, 0.4}]}",
    "-XMP-own:Note=mine", "-XMP-own:Rating=3", "-XMP-own:Score=7",
]  # fmt: skip
CONFIG = """%Image::ExifTool::UserDefined = (
    'Image::ExifTool::XMP::Main' => { own => { SubDirectory => { TagTable => 'Image::ExifTool::UserDefined::own' } } },
);
%Image::ExifTool::UserDefined::own = (
    GROUPS => { 0 => 'XMP', 1 => 'XMP-own', 2 => 'Image' }, NAMESPACE => { 'own' => 'http://example.org/own#' },
    WRITABLE => 'string', Note => { }, Rating => { }, Score => { },
);
1;
"""


UNREADABLE = ("other prefixes", "taken prefixes", "RDF by default", "comments", "several")


def exiftool(*arguments: str | Path) -> str:
    done = subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(tmp_path: Path, *arguments: str | Path) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    exiftool("-config", config, "-q", "-overwrite_original", *arguments)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """All tags of each file but those of the file system."""
    found = json.loads(exiftool("-j", "-G1", "-a", "-struct", "-b", *paths), parse_float=str)
    assert [Path(one.pop("SourceFile")) for one in found] == list(paths)
    skipped = ("System:", "ExifTool:ExifToolVersion")
    return [{name: value for name, value in one.items() if not name.startswith(skipped)} for one in found]


def others(tags: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in tags.items() if name.split(":")[0] != "XMP-milnet" and name != "XMP-xmp:Rating"
    }


def ours(tags: dict[str, Any]) -> dict[str, Any]:
    return {name.split(":")[1]: str(value) for name, value in tags.items() if name.startswith("XMP-milnet:")}


FORMS = [
    [],
    ["-api", "Compact=Shorthand"],
    ["-api", "Compact=AllSpace,NoPadding,OneDesc,Shorthand"],
    ["-api", "Compact=OneDesc"],
]


def test_sidecars_exiftool_made(tmp_path: Path) -> None:
    """Four ways of writing, five ratings: all other tags survive, and the rating is what it should be."""
    ratings: list[int | None] = [None, 0, 3, -1, 5]
    photos = []
    for number, form in enumerate(FORMS):
        for rating in ratings:
            photo = tmp_path / f"{number}_{rating}.jpg"
            made.photo(1).save(photo)
            photos.append((photo, rating))
            photo.with_name(f"{photo.name}.xmp").unlink(missing_ok=True)
        first = tmp_path / f"{number}_None.jpg.xmp"
        write(tmp_path, *form, *TAGS, first)
        for rating in ratings[1:]:
            shutil.copy(first, tmp_path / f"{number}_{rating}.jpg.xmp")
    for rating in ratings[1:]:
        for number, form in enumerate(FORMS):
            write(tmp_path, *form, f"-XMP-xmp:Rating={rating}", tmp_path / f"{number}_{rating}.jpg.xmp")
    sidecars = [photo.with_name(f"{photo.name}.xmp") for photo, _ in photos]
    before = read(sidecars)
    assert len(before[0]) > 25 and "XMP-own:Note" in before[0] and before[0]["XMP-mwg-rs:RegionInfo"]
    for (photo, rating), _ in zip(photos, sidecars, strict=True):
        assert read_rating(photo) == (rating or None)
        assert write_rating(photo, ENTRY).action == ("kept rating" if rating else "merged")
    after = read(sidecars)
    for (_, rating), sidecar, old, new in zip(photos, sidecars, before, after, strict=True):
        assert others(new) == others(old)
        assert new["XMP-xmp:Rating"] == (rating or 4)
        assert ours(new) == {name: value for name, value in values(sidecar).items() if name != "Rating"}
        assert ("Stars" in ours(new)) == (not rating)
    for photo, _ in photos:  # told to, we replace it
        write_rating(photo, ENTRY, replace=True)
    told = read(sidecars)
    for old, new in zip(before, told, strict=True):
        assert others(new) == others(old) and new["XMP-xmp:Rating"] == 4 and ours(new)["Stars"] == "4"


def test_exiftool_keeps_ours(tmp_path: Path) -> None:
    """It reads a namespace it does not know and writes it out again; then the rating is still ours, and updated."""
    photo = tmp_path / "a.jpg"
    made.photo(1).save(photo)
    sidecar = photo.with_name("a.jpg.xmp")
    write_rating(photo, ENTRY)
    for form in FORMS:
        write(tmp_path, *form, "-XMP-dc:Title=new", "-XMP-xmp:Label=Blue", sidecar)
        (tags,) = read([sidecar])
        assert ours(tags) == {name: value for name, value in values(sidecar).items() if name != "Rating"}
        assert read_rating(photo) is None and write_rating(photo, ENTRY).action == "unchanged"
        assert write_rating(photo, replace(ENTRY, stars=2, low=None)).action == "merged"
        (tags,) = read([sidecar])
        assert tags["XMP-xmp:Rating"] == 2 and ours(tags)["Stars"] == "2" and "Low" not in ours(tags)
        assert tags["XMP-dc:Title"] == "new" and tags["XMP-xmp:Label"] == "Blue"
        assert write_rating(photo, ENTRY).action == "merged"
    write(tmp_path, "-XMP-xmp:Rating=1", sidecar)
    assert read_rating(photo) == 1 and write_rating(photo, ENTRY).human == 1


def test_every_form_of_packet(tmp_path: Path) -> None:
    """The packets of test_packets.py, as exiftool sees them before and after."""
    # exiftool reads by patterns: prefixes whatever they stand for, no default namespace, no ">" in a value.
    names = [name for name in CASES if name not in UNREADABLE]
    before, after = [], []
    for number, name in enumerate(names):
        data = CASES[name][0].encode()
        for paths, content in (
            (before, data),
            (after, set_properties(read_packet(data), {("urn:milnet:xmp:1/", "Score"): "5.1234"})),
        ):
            path = tmp_path / f"{len(paths)}_{'after' if paths is after else 'before'}.xmp"
            path.write_bytes(content)
            paths.append(path)
        assert len(before) == number + 1
    for name, old, new in zip(names, read(before), read(after), strict=True):
        assert new.pop("XMP-milnet:Score", None) == "5.1234", name
        assert new == old, name


def test_jpegs_exiftool_made(tmp_path: Path) -> None:
    """EXIF, IPTC, profile, comment and XMP: all tags survive, and no byte of the picture changes."""
    photos = []
    for number, form in enumerate(FORMS):
        photo = tmp_path / f"{number}.jpg"
        made.photo(number).save(photo, icc_profile=_profile(), comment=b"note")
        write(
            tmp_path, *form, *TAGS, "-EXIF:Artist=me", "-IPTC:Keywords=a", "-IPTC:Keywords=b",
            "-Photoshop:CopyrightFlag=1", photo,
        )  # fmt: skip
        photos.append(photo)
    plain = tmp_path / "plain.jpg"
    made.photo(9).save(plain)
    photos.append(plain)
    pixels, before = [open_photo(photo).digest for photo in photos], read(photos)
    hashes = [_scan(photo) for photo in photos]
    for photo in photos:
        assert write_rating(photo, ENTRY, embed=True).action == ("created" if photo == plain else "merged")
    after = read(photos)
    for old, new in zip(before, after, strict=True):
        assert others(new).keys() - others(old).keys() <= {"XMP-x:XMPToolkit"}
        assert {name: new[name] for name in others(old)} == others(old)
        assert new["XMP-xmp:Rating"] == 4 and set(ours(new)) == set(OURS) - {"Rating"}
    assert [open_photo(photo).digest for photo in photos] == pixels and [_scan(photo) for photo in photos] == hashes

    # And back: exiftool changes the rating in place, which is then a human's.
    write(tmp_path, "-XMP-xmp:Rating=2", *photos)
    assert [read_rating(photo) for photo in photos] == [2] * len(photos)
    assert all(write_rating(photo, ENTRY, embed=True).human == 2 for photo in photos)


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _scan(photo: Path) -> bytes:
    data = photo.read_bytes()
    return data[data.rindex(b"\xff\xda") :]


def test_extended_xmp(tmp_path: Path) -> None:
    """A JPEG whose XMP exiftool had to split: its parts stay, and it reads the same out of them."""
    photo = tmp_path / "a.jpg"
    made.photo(1).save(photo)
    long = tmp_path / "long.txt"
    long.write_text("x" * 200_000)
    write(tmp_path, *TAGS, f"-XMP-dc:Description<={long}", "-XMP-xmp:Rating=0", photo)
    assert photo.read_bytes().count(b"http://ns.adobe.com/xmp/extension/") == 4
    (before,) = read([photo])
    assert len(before["XMP-dc:Description"]) == 200_000
    assert write_rating(photo, ENTRY, embed=True).action == "merged"
    (after,) = read([photo])
    assert others(after) == others(before) and after["XMP-xmp:Rating"] == 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "jp2"])
def test_ratings_exiftool_wrote_into_photos(tmp_path: Path, suffix: str) -> None:
    photos = []
    for number, tag in enumerate(
        ("XMP-xmp:Rating=3", "XMP-microsoft:RatingPercent=50", "EXIF:Rating=3", "XMP-xmp:Label=no")
    ):
        if suffix in ("gif", "jp2", "webp") and tag.startswith("EXIF"):
            continue  # no place for it, or exiftool 12 cannot write it there
        photo = tmp_path / f"{number}.{suffix}"
        made.photo(1).convert("P" if suffix == "gif" else "RGB").save(photo)
        write(tmp_path, f"-{tag}", photo)
        photos.append((photo, None if "Label" in tag else 3))
    assert [read_rating(photo) for photo, _ in photos] == [rating for _, rating in photos]
    for photo, rating in photos:
        before = photo.read_bytes()
        assert write_rating(photo, replace(ENTRY, stars=1)).human == rating and photo.read_bytes() == before


def test_what_exiftool_says_of_a_new_packet(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    made.photo(1).save(photo)
    write_rating(photo, ENTRY)
    sidecar = photo.with_name("a.jpg.xmp")
    (tags,) = read([sidecar])
    assert tags.pop("File:FileType") == "XMP" and tags.pop("File:MIMEType") == "application/rdf+xml"
    tags.pop("File:FileTypeExtension")
    assert {name.split(":")[1] for name in tags} == set(OURS)
    assert exiftool("-validate", "-s3", sidecar).strip() == "OK"
    write_rating(photo, ENTRY, embed=True)
    packet = exiftool("-XMP", "-b", photo)
    assert packet.encode() == read_embedded(photo).packet
