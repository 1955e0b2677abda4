"""Whose rating, which sidecar, and what may be written where."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import made
from made_xmp import ENTRY, packet, rated, state, values
from milnet.embedded import read_embedded
from milnet.errors import ImageError, NumericError, UsageError
from milnet.images import open_photo
from milnet.packets import RATING, read_packet, set_properties
from milnet.xmp import Naming, Outcome, find_sidecars, read_rating, write_rating


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    made.photo(1).save(path)
    return path


def test_a_new_sidecar(photo: Path) -> None:
    outcome = write_rating(photo, ENTRY)
    sidecar = photo.with_name("a.jpg.xmp")
    assert outcome == Outcome("created", (sidecar,), (sidecar,), rating=4)
    version = values(sidecar).pop("Version")
    assert version
    assert values(sidecar) == {
        "Rating": "4", "Stars": "4", "Score": "5.1234", "Low": "4.5000", "High": "5.7500", "Percentile": "88.0000",
        "FolderPercentile": "50.0000", "Unlike": "0.2500", "Model": "d" * 64, "Version": version,
    }  # fmt: skip
    assert read_rating(photo) is None  # it is ours
    umask = os.umask(0)
    os.umask(umask)
    assert sidecar.stat().st_mode & 0o777 == 0o666 & ~umask
    assert sorted(path.name for path in photo.parent.iterdir()) == ["a.jpg", "a.jpg.xmp"]


def test_the_other_naming(photo: Path) -> None:
    sidecar = photo.with_name("a.xmp")
    assert write_rating(photo, ENTRY, naming="replace").paths == (sidecar,)
    assert write_rating(photo, ENTRY, naming="append").paths == (sidecar,)  # what is there is used
    with pytest.raises(UsageError, match="named 'append'"):
        write_rating(photo, ENTRY, naming="other")  # type: ignore[arg-type]


def test_what_is_none_is_left_out_and_taken_out(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    write_rating(photo, ENTRY)
    less = replace(ENTRY, low=None, high=None, percentile=None, folder_percentile=None, unlike=None)
    assert write_rating(photo, less).action == "merged"
    assert sorted(values(sidecar)) == ["Model", "Rating", "Score", "Stars", "Version"]
    assert write_rating(photo, replace(less, stars=None)).action == "unchanged"  # ratings stay as they are
    assert write_rating(photo, ENTRY).action == "merged"
    assert values(sidecar)["Low"] == "4.5000"


def test_twice_is_once(photo: Path) -> None:
    for embed in (False, True):
        write_rating(photo, ENTRY, embed=embed)
        before = state(photo.parent)
        outcome = write_rating(photo, ENTRY, embed=embed)
        assert outcome.action == "unchanged" and outcome.written == () and outcome.paths
        assert state(photo.parent) == before


def test_ours_is_updated_and_a_human_is_not(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    write_rating(photo, ENTRY)
    assert write_rating(photo, replace(ENTRY, stars=2)).action == "merged"
    assert values(sidecar)["Rating"] == values(sidecar)["Stars"] == "2"
    # A human changes it.
    sidecar.write_text(sidecar.read_text().replace('xmp:Rating="2"', 'xmp:Rating="5"'))
    assert read_rating(photo) == 5
    outcome = write_rating(photo, replace(ENTRY, stars=3, score=3.0))
    assert (outcome.action, outcome.human, outcome.written) == ("kept rating", 5, (sidecar,))
    assert values(sidecar)["Rating"] == "5" and values(sidecar)["Score"] == "3.0000"
    assert "Stars" not in values(sidecar)
    before = state(photo.parent)
    assert write_rating(photo, replace(ENTRY, stars=3, score=3.0)).action == "kept rating"
    assert state(photo.parent) == before
    # The human changes it to the number that the last entry had: still a human's.
    sidecar.write_text(sidecar.read_text().replace('xmp:Rating="5"', 'xmp:Rating="3"'))
    assert read_rating(photo) == 3
    # Told to, it is replaced, and then it is ours.
    assert write_rating(photo, ENTRY, replace=True) == Outcome("merged", (sidecar,), (sidecar,), rating=4)
    assert values(sidecar)["Rating"] == "4" and read_rating(photo) is None
    assert write_rating(photo, replace(ENTRY, stars=-1)).action == "merged"
    assert values(sidecar)["Rating"] == "-1" and read_rating(photo) is None


@pytest.mark.parametrize("rating", [-1, 1, 4, 5])
def test_a_human_rating_that_was_there(photo: Path, rating: int) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    for _ in range(2):  # a human who gave 4, our stars, is a human as well
        sidecar.write_text(rated(rating))
        for entry in (ENTRY, replace(ENTRY, stars=5)):
            assert write_rating(photo, entry).human == rating and read_rating(photo) == rating
        assert sidecar.read_text().count(f'xmp:Rating="{rating}"') == 1
        assert "Stars" not in values(sidecar) and values(sidecar)["Score"] == "5.1234"
        assert write_rating(photo, replace(ENTRY, stars=None)).action == "unchanged"
        assert write_rating(photo, replace(ENTRY, stars=None, score=1)).action == "merged"


def test_zero_is_no_rating(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    assert read_rating(photo) is None
    assert write_rating(photo, ENTRY).action == "merged"
    assert values(sidecar)["Rating"] == "4" and sidecar.read_text().count("Rating") == rated(0).count("Rating")
    sidecar.write_text(sidecar.read_text().replace('xmp:Rating="4"', 'xmp:Rating="0"'))
    assert read_rating(photo) is None and write_rating(photo, ENTRY).action == "merged"


def test_microsoft_ratings_are_human(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(packet('MicrosoftPhoto:Rating="75"'))
    assert read_rating(photo) == 4
    assert write_rating(photo, replace(ENTRY, stars=1)).human == 4 and "Rating" not in values(sidecar)
    assert write_rating(photo, replace(ENTRY, stars=1), replace=True).action == "merged"
    assert values(sidecar)["Rating"] == "1" and 'MicrosoftPhoto:Rating="75"' in sidecar.read_text()
    assert read_rating(photo) is None


def test_a_rating_inside_the_photo_is_not_contradicted(photo: Path) -> None:
    """Also not by a rating of ours that was written before it was there. A sidecar that was there gets no rating."""
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(packet('xmp:Label="Red"'))
    made.photo(1).save(photo, xmp=rated(2).encode())
    assert read_rating(photo) == 2
    outcome = write_rating(photo, ENTRY)
    assert (outcome.action, outcome.human, outcome.written) == ("kept rating", 2, (sidecar,))
    assert "Rating" not in values(sidecar) and values(sidecar)["Score"] == "5.1234"
    assert write_rating(photo, ENTRY, replace=True).action == "merged"
    assert values(sidecar)["Rating"] == values(sidecar)["Stars"] == "4" and read_rating(photo) == 2
    assert write_rating(photo, ENTRY).human == 2
    assert "Rating" not in values(sidecar) and "Stars" not in values(sidecar)
    # The sidecar's own rating goes first.
    sidecar.write_text(rated(5))
    assert read_rating(photo) == 5


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (content, _) in state(folder).items()}


INSIDE = [("xmp", -1), ("xmp", 2), ("xmp", 4), ("microsoft", 5), ("exif", 1), ("exif", 4), ("percent", 3)]


@pytest.mark.parametrize("naming", ["append", "replace"])
@pytest.mark.parametrize(("kind", "rating"), INSIDE)
def test_a_new_sidecar_says_the_rating_inside(photo: Path, kind: str, rating: int, naming: Naming) -> None:
    """Programs that prefer sidecars would take one without a rating for "no stars". 4 is what our stars are, too."""
    sidecar = photo.with_name("a.jpg.xmp" if naming == "append" else "a.xmp")
    how: dict[str, bytes] = {
        "xmp": {"xmp": rated(rating).encode()},
        "microsoft": {"xmp": packet('MicrosoftPhoto:Rating="99"').encode()},
        "exif": {"exif": exif(rating)},
        "percent": {"exif": exif(50, 0x4749)},
    }[kind]
    made.photo(1).save(photo, **how)
    before = photo.read_bytes()
    kept = Outcome("kept rating", (sidecar,), (sidecar,), rating, rating=rating)
    assert write_rating(photo, ENTRY, naming=naming, dry_run=True) == kept and not sidecar.exists()
    assert write_rating(photo, ENTRY, naming=naming) == kept
    found = values(sidecar)
    assert found["Rating"] == str(rating) and "Stars" not in found and found["Score"] == "5.1234"
    assert read_rating(photo) == rating
    if shutil.which("exiftool") is not None:  # which knows nothing of us
        command = ["exiftool", "-config", "", "-s3", "-XMP-xmp:Rating", str(sidecar)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(rating)
    files = contents(photo.parent)
    assert write_rating(photo, ENTRY, naming=naming) == replace(kept, written=())
    # Still the human's, whatever the stars are.
    assert write_rating(photo, replace(ENTRY, stars=5, score=1.0), naming=naming).human == rating
    assert values(sidecar)["Rating"] == str(rating) and "Stars" not in values(sidecar)
    assert write_rating(photo, ENTRY, naming=naming).rating == rating and contents(photo.parent) == files
    # Told to, it is replaced; the photo itself is as it was all the time.
    assert write_rating(photo, ENTRY, replace=True) == Outcome("merged", (sidecar,), (sidecar,), rating=4)
    assert values(sidecar)["Rating"] == values(sidecar)["Stars"] == "4" and photo.read_bytes() == before


@pytest.mark.parametrize("told", [False, True])
def test_a_new_sidecar_without_stars_says_the_rating_inside(photo: Path, told: bool) -> None:
    """Without stars there is nothing to replace a rating with."""
    sidecar = photo.with_name("a.jpg.xmp")
    made.photo(1).save(photo, xmp=rated(3).encode())
    outcome = write_rating(photo, replace(ENTRY, stars=None), replace=told)
    assert outcome == Outcome("created", (sidecar,), (sidecar,), 3, rating=3)
    assert values(sidecar)["Rating"] == "3" and read_rating(photo) == 3


def test_a_rating_inside_that_is_no_humans_is_not_copied(photo: Path) -> None:
    """Ours from before, and 0, which is none; nor does writing into the photo make a sidecar."""
    sidecar = photo.with_name("a.jpg.xmp")
    unstarred = replace(ENTRY, stars=None)
    write_rating(photo, ENTRY, embed=True)
    assert write_rating(photo, unstarred).rating == 4 and "Rating" not in values(sidecar)
    sidecar.unlink()
    made.photo(1).save(photo, xmp=rated(0).encode(), exif=exif(0))
    assert write_rating(photo, unstarred).rating is None and "Rating" not in values(sidecar)
    sidecar.unlink()
    made.photo(1).save(photo, xmp=rated(3).encode())
    outcome = write_rating(photo, ENTRY, embed=True)
    assert outcome == Outcome("kept rating", (photo,), (photo,), 3, rating=3) and not sidecar.exists()
    made.photo(1).save(photo, exif=exif(3))
    assert write_rating(photo, ENTRY, embed=True).rating == 3
    inside = read_embedded(photo)
    assert inside.packet is not None and RATING not in read_packet(inside.packet).sites and read_rating(photo) == 3


def test_the_outcome_says_the_rating(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    assert write_rating(photo, replace(ENTRY, stars=None)).rating is None
    assert write_rating(photo, replace(ENTRY, stars=-1)).rating == -1
    assert write_rating(photo, replace(ENTRY, stars=None, score=1.0)).rating == -1  # stays as it is
    assert write_rating(photo, ENTRY, embed=True).rating == 4
    sidecar.write_text(rated(2))
    assert write_rating(photo, ENTRY).rating == write_rating(photo, ENTRY, dry_run=True).rating == 2
    assert write_rating(photo, ENTRY, replace=True, dry_run=True).rating == 4


def exif(rating: int, tag: int = 0x4746) -> bytes:
    from PIL import Image

    block = Image.Exif()
    block[tag] = rating
    return block.tobytes()


def test_exif_ratings(tmp_path: Path) -> None:
    for name, rating, expected in (("a", 3, 3), ("b", 0, None), ("c", 77, None)):
        photo = tmp_path / f"{name}.jpg"
        made.photo(1).save(photo, exif=exif(rating))
        assert read_rating(photo) == expected
        assert write_rating(photo, ENTRY).human == expected
    percent = tmp_path / "p.jpg"
    made.photo(1).save(percent, exif=exif(50, 0x4749))
    assert read_rating(percent) == 3
    # Programs that write our rating on into the EXIF do not make it a human's.
    made.photo(1).save(percent, exif=exif(4))
    write_rating(percent, ENTRY, embed=True, replace=True)
    assert read_rating(percent) is None
    assert write_rating(percent, replace(ENTRY, stars=1), embed=True).action == "merged"


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "avif", "mpo"])
def test_ratings_inside_other_formats(tmp_path: Path, suffix: str) -> None:
    photo = tmp_path / f"a.{suffix}"
    if suffix == "png":
        from PIL import PngImagePlugin

        for compressed in (False, True):
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", rated(3), zip=compressed)
            made.photo(1).save(photo, pnginfo=info)
            assert read_rating(photo) == 3
    elif suffix == "tif":
        made.photo(1).save(photo, tiffinfo={700: rated(3).encode()})
        assert read_rating(photo) == 3
        made.photo(1).save(photo, tiffinfo={700: rated(3).encode()}, big_tiff=True)
    else:
        made.photo(1).save(photo, xmp=rated(3).encode())
    assert read_rating(photo) == 3
    if suffix in ("png", "webp", "mpo"):
        made.photo(1).save(photo, exif=exif(2))
        assert read_rating(photo) == 2
    elif suffix == "tif":
        for big in (False, True):
            made.photo(1).save(photo, tiffinfo={0x4746: 2}, big_tiff=big)
            assert read_rating(photo) == 2
    made.photo(1).save(photo)
    assert read_rating(photo) is None
    assert write_rating(photo, ENTRY).action == "created" and read_rating(photo) is None
    if suffix != "mpo":  # which is JPEG
        before = state(tmp_path)
        with pytest.raises(ImageError, match=r"is no JPEG: its rating can only go into a sidecar"):
            write_rating(photo, ENTRY, embed=True)
        assert state(tmp_path) == before


# ---- which sidecar ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp", "a.jpg.XMP", "a.XMP"])
def test_a_sidecar_that_exists_is_used(photo: Path, name: str) -> None:
    sidecar = photo.with_name(name)
    sidecar.write_text(rated(0))
    for naming in ("append", "replace"):
        assert write_rating(photo, ENTRY, naming=naming).paths == (sidecar,)  # type: ignore[arg-type]
    assert values(sidecar)["Rating"] == "4" and find_sidecars(photo) == [sidecar]
    assert len(list(photo.parent.iterdir())) == 2


def test_both_sidecars(photo: Path) -> None:
    first, second = photo.with_name("a.jpg.xmp"), photo.with_name("a.xmp")
    first.write_text(rated(0))
    second.write_text(rated(0))
    outcome = write_rating(photo, ENTRY)
    assert outcome.written == (first, second) and values(first) == values(second)
    assert outcome.notes == ("has 2 sidecars, which are kept alike: a.jpg.xmp, a.xmp",)
    # Of two that disagree, the one changed last says what a human thinks; both stay.
    first.write_text(rated(2))
    second.write_text(rated(3))
    os.utime(second, ns=(first.stat().st_mtime_ns + 10**9,) * 2)
    assert read_rating(photo) == 3
    os.utime(first, ns=(second.stat().st_mtime_ns + 10**9,) * 2)
    assert read_rating(photo) == 2
    assert write_rating(photo, ENTRY).human == 2
    assert values(first)["Rating"] == "2" and values(second)["Rating"] == "3"
    # A human's rating in one is not contradicted by one of ours in the other.
    second.write_text(rated(0))
    first.unlink()
    write_rating(photo, ENTRY)
    first.write_text(rated(2))
    assert write_rating(photo, ENTRY).human == 2
    assert "Rating" not in values(second) and "Stars" not in values(second)


def test_a_sidecar_of_the_raw_is_left_alone(photo: Path) -> None:
    """Lightroom's `a.xmp` beside `a.jpg` and `a.CR3` belongs to the RAW."""
    raw = photo.with_name("a.CR3")
    raw.write_bytes(b"\0\0\0\x18ftypcrx ")
    shared = photo.with_name("a.xmp")
    for text in (rated(5), packet('xmp:Rating="5"', 'photoshop:SidecarForExtension="CR3"')):
        shared.write_text(text)
        before = shared.read_bytes()
        assert read_rating(photo) is None and read_rating(raw) == 5
        outcome = write_rating(photo, ENTRY, naming="replace")
        assert outcome.paths == (photo.with_name("a.jpg.xmp"),) and shared.read_bytes() == before
        assert outcome.notes == ("a.xmp is meant for another file of that name, and was left alone",)
        assert write_rating(raw, ENTRY).paths == (shared,)
        photo.with_name("a.jpg.xmp").unlink()
    raw.unlink()  # moved away, but the sidecar still says whose it is
    assert find_sidecars(photo) == []
    shared.unlink()
    raw.write_bytes(b"\0\0\0\x18ftypcrx ")
    # None exists: one that could be the RAW's is not made for the JPEG.
    outcome = write_rating(photo, ENTRY, naming="replace")
    assert outcome.paths == (photo.with_name("a.jpg.xmp"),)
    assert outcome.notes == ("a.xmp could be meant for another file of that name, so it is a.jpg.xmp",)
    assert write_rating(raw, ENTRY, naming="replace").paths == (shared,)
    assert values(photo.with_name("a.jpg.xmp")) == values(shared)


def test_a_sidecar_that_could_be_anybodys_is_left_alone(photo: Path) -> None:
    made.photo(2).save(other := photo.with_name("a.png"))
    shared = photo.with_name("a.xmp")
    shared.write_text(rated(5))
    for one in (photo, other):
        assert read_rating(one) is None
        assert write_rating(one, ENTRY).paths == (one.with_name(f"{one.name}.xmp"),)
    assert shared.read_text() == rated(5)
    # It says whose it is.
    shared.write_text(packet('xmp:Rating="5"', 'photoshop:SidecarForExtension="PNG"'))
    assert read_rating(other) == 5 and read_rating(photo) is None
    # Two RAW files: nobody's.
    raws = [photo.with_name("b.CR2"), photo.with_name("b.dng")]
    for raw in raws:
        raw.write_bytes(b"raw")
    photo.with_name("b.xmp").write_text(rated(5))
    assert [find_sidecars(raw) for raw in raws] == [[], []]


def test_links_are_written_through(photo: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere / "real.xmp"
    target.write_text(rated(0))
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.symlink_to(target)
    assert write_rating(photo, ENTRY).paths == (sidecar,)
    assert sidecar.is_symlink() and values(target)["Rating"] == "4"
    # Two names of one file are one sidecar.
    photo.with_name("a.xmp").symlink_to(target)
    assert find_sidecars(photo) == [sidecar]
    target.unlink()
    with pytest.raises(ImageError, match=r"a.jpg.xmp: is a link to a file that does not exist"):
        write_rating(photo, ENTRY)
    # A photo that is a link: the sidecar lies beside the link, the JPEG is written where it is.
    real = elsewhere / "real.jpg"
    made.photo(3).save(real)
    link = tmp_path / "link.jpg"
    link.symlink_to(real)
    assert write_rating(link, ENTRY).paths == (tmp_path / "link.jpg.xmp",)
    before = real.read_bytes()
    write_rating(link, ENTRY, embed=True)
    assert link.is_symlink() and real.read_bytes() != before


def test_mode_and_attributes_stay(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    sidecar.chmod(0o640)
    os.utime(sidecar, (1, 1))
    attributes = hasattr(os, "setxattr")
    if attributes:
        try:
            os.setxattr(sidecar, "user.note", b"kept")
        except OSError:
            attributes = False
    write_rating(photo, ENTRY)
    assert sidecar.stat().st_mode & 0o777 == 0o640 and sidecar.stat().st_mtime > 1_000_000
    if attributes:
        assert os.getxattr(sidecar, "user.note") == b"kept"


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "a.jpg.xmp: expected XMP, but it is empty: remove it; it was left as it is"),
        (rated(3)[:-10].encode(), "is not well-formed XML"),
        (b"<!DOCTYPE a []>" + rated(3).encode(), "it has a DTD"),
        (b"<svg/>", "XML without rdf:RDF"),
        (rated(9).encode(), "a.jpg.xmp: expected a rating from -1 to 5, got 9; it was left as it is"),
        (packet('xmp:Rating="good"').encode(), "expected a number in Rating, got 'good'"),
    ],
)
def test_a_sidecar_in_doubt_is_left_alone(photo: Path, content: bytes, reason: str) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_bytes(content)
    before = state(photo.parent)
    for embed in (False, True):
        with pytest.raises(ImageError, match=reason):
            write_rating(photo, ENTRY, embed=embed)
    with pytest.raises(ImageError, match=reason):
        read_rating(photo)
    assert state(photo.parent) == before


def test_what_is_no_photo(tmp_path: Path, photo: Path) -> None:
    for path, reason in ((tmp_path / "no.jpg", "there is no such file"), (tmp_path, "no such file")):
        with pytest.raises(ImageError, match=reason):
            write_rating(path, ENTRY)
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(3))
    with pytest.raises(ImageError, match="is a sidecar: expected a photo"):
        read_rating(sidecar)
    photo.write_bytes(photo.read_bytes()[:100])
    assert read_rating(photo) == 3
    sidecar.unlink()
    with pytest.raises(ImageError, match=r"a.jpg: is no complete JPEG \(no marker at byte \d+\): is the file cut\?"):
        write_rating(photo, ENTRY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    photo.with_name("a.xmp").mkdir()
    with pytest.raises(ImageError, match=r"a.xmp: cannot be read: Is a directory"):
        write_rating(photo, ENTRY)


def test_entries_are_checked() -> None:
    for stars in (0, 6, -2):
        with pytest.raises(UsageError, match=f"stars must be 1 to 5, or -1 for rejected, got {stars}"):
            replace(ENTRY, stars=stars)
    with pytest.raises(NumericError, match="Score is nan"):
        replace(ENTRY, score=float("nan"))
    with pytest.raises(UsageError, match="printable"):
        replace(ENTRY, model="a\nb")


def test_read_only_files_are_left_alone(photo: Path) -> None:
    """Also for root, whom the system would let write."""
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    sidecar.chmod(0o444)
    photo.chmod(0o444)
    before = state(photo.parent)
    for dry_run in (False, True):
        with pytest.raises(ImageError, match=r"a.jpg.xmp: is read-only; it was left as it is"):
            write_rating(photo, ENTRY, dry_run=dry_run)
        with pytest.raises(ImageError, match=r"is read-only"):
            write_rating(photo, ENTRY, dry_run=dry_run, embed=True)
    # One of two: the other is not written either.
    photo.with_name("a.xmp").write_text(rated(0))
    with pytest.raises(ImageError, match=r"a.jpg.xmp: is read-only"):
        write_rating(photo, ENTRY)
    assert photo.with_name("a.xmp").read_text() == rated(0)
    photo.with_name("a.xmp").unlink()
    assert state(photo.parent) == before


def test_read_only_folders(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo.parent.chmod(0o555)
    if os.access(photo.parent, os.W_OK):  # root may write everywhere
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != photo.parent and real(path, mode))
    try:
        with pytest.raises(ImageError, match=r"a.jpg.xmp: its folder is read-only; nothing was written"):
            write_rating(photo, ENTRY)
    finally:
        photo.parent.chmod(0o755)
    assert [path.name for path in photo.parent.iterdir()] == ["a.jpg"]


def test_a_full_disk(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    before = state(photo.parent)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ImageError, match=r"a.jpg.xmp: cannot be written: No space left on device; it was left"):
        write_rating(photo, ENTRY)
    assert state(photo.parent) == before


def test_what_another_program_writes_meanwhile_stays(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    real = os.fsync
    for before in (None, rated(0)):
        sidecar.unlink(missing_ok=True)
        if before is not None:
            sidecar.write_text(before)

        def meanwhile(handle: int) -> None:
            sidecar.write_text(packet('xmp:Rating="5"', 'xmp:Label="Red"'))
            real(handle)

        monkeypatch.setattr(os, "fsync", meanwhile)
        with pytest.raises(ImageError, match=r"a.jpg.xmp: was changed by another program just now; .*: run again"):
            write_rating(photo, ENTRY)
        monkeypatch.setattr(os, "fsync", real)
        assert (
            sidecar.read_text() == packet('xmp:Rating="5"', 'xmp:Label="Red"')
            and len(list(photo.parent.iterdir())) == 2
        )
        assert write_rating(photo, ENTRY).human == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_any_moment(photo: Path) -> None:
    """The sidecar and the JPEG are what they were or what they should be, never half of it."""
    code = (
        "import sys; from pathlib import Path; from milnet.xmp import *\n"
        "photo = Path(sys.argv[1]); print(flush=True)\n"
        "for n in range(10**9):\n"
        "    for embed in (False, True):\n"
        "        write_rating(photo, Entry(1 + n % 5, float(n), None, None, None, None, None, 'd' * n), embed=embed)"
    )
    write_rating(photo, ENTRY)
    pixels = open_photo(photo).digest
    for delay in (0.0, 0.003, 0.011, 0.03, 0.1):
        process = subprocess.Popen([sys.executable, "-c", code, str(photo)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        found = values(photo.with_name("a.jpg.xmp"))
        assert found["Rating"] == found["Stars"] and read_rating(photo) is None
        assert open_photo(photo).digest == pixels


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("human"), st.sampled_from([-1, 0, 1, 2, 3]), st.none()),
            st.tuples(st.just("milnet"), st.sampled_from([-1, 1, 2, 3]), st.booleans()),
        ),
        max_size=8,
    )
)
def test_any_course_of_events(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, bool | None]]
) -> None:
    """Against two numbers: the rating, and the one that is ours."""
    photo = tmp_path_factory.mktemp("course") / "a.jpg"
    made.photo(1).save(photo)
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    rating, ours = 0, None
    for who, stars, told in events:
        if who == "human":
            sidecar.write_bytes(set_properties(read_packet(sidecar.read_bytes()), {RATING: str(stars)}))
            rating = stars
        else:
            kept = rating not in (0, ours) and not told
            outcome = write_rating(photo, replace(ENTRY, stars=stars), replace=bool(told))
            assert outcome.rating == (rating if kept else stars)
            assert outcome.human == (rating if kept else None)
            rating, ours = (rating, None) if kept else (stars, stars)
        found = values(sidecar)
        assert (found["Rating"], found.get("Stars")) == (str(rating), None if ours is None else str(ours))
        assert read_rating(photo) == (None if rating in (0, ours) else rating)


def test_an_earlier_rating_inside_is_told(photo: Path) -> None:
    write_rating(photo, ENTRY, embed=True)
    assert write_rating(photo, ENTRY).notes == ()
    note = "holds an earlier rating of milnet inside, which stays: it changes when written there again"
    assert write_rating(photo, replace(ENTRY, stars=1)).notes == (note,)
    write_rating(photo, replace(ENTRY, stars=1), embed=True)
    assert write_rating(photo, replace(ENTRY, stars=1)).notes == ()


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_write_that_stops_halfway(photo: Path) -> None:
    """A real one: the system allows 64 bytes."""
    sidecar = photo.with_name("a.jpg.xmp")
    sidecar.write_text(rated(0))
    before = state(photo.parent)
    code = (
        "import resource, sys; from pathlib import Path; from milnet.xmp import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "write_rating(Path(sys.argv[1]), Entry(4, 5.0, None, None, None, None, None, 'd'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(photo)], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be written: File too large; it was left as it is" in done.stderr
    assert state(photo.parent) == before


def test_dry_run_touches_nothing(photo: Path) -> None:
    sidecar = photo.with_name("a.jpg.xmp")
    steps = [
        lambda: None,
        lambda: sidecar.write_text(rated(0)),
        lambda: sidecar.write_text(rated(3)),
        lambda: write_rating(photo, ENTRY),
        lambda: made.photo(1).save(photo, xmp=rated(2).encode()),
    ]
    for step in steps:
        step()
        for embed in (False, True):
            for told in (False, True):
                before = state(photo.parent)
                planned = write_rating(photo, ENTRY, embed=embed, replace=told, dry_run=True)
                assert state(photo.parent) == before
                assert write_rating(photo, ENTRY, embed=embed, replace=told) == planned
                for path in photo.parent.iterdir():
                    path.unlink()
                for name, (content, _) in before.items():
                    photo.with_name(name).write_bytes(content)
