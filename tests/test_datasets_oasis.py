"""The oasis format: a folder with photos and votes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from milnet.annotations import Problems, load_table, save_table
from milnet.datasets import read_dataset
from milnet.datasets.oasis import OasisOptions, read_oasis
from milnet.errors import AnnotationError, MilnetError, UsageError

VOTES = (
    "image,theme,category,v1,v2,v3\nLake1.jpg,Lake,Scene,1,2,3\nLake2.png,Lake,Scene,0,0,4\nDog.jpg,Dog,Animal,5,0,1\n"
)
FOLDS = "image,fold_a,fold_b\nDog.jpg,1,0\nLake1.jpg,0,1\nLake2.png,1,1\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("Lake1.jpg", "Lake2.png", "Dog.jpg"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "votes.csv").write_text(VOTES)
    (tmp_path / "folds.csv").write_text(FOLDS)
    return tmp_path


def test_reads_votes_and_folds(folder):
    imported = read_dataset("Oasis", folder, Problems())
    table = imported.table
    assert table.ids == ("Lake1", "Lake2", "Dog")
    np.testing.assert_array_equal(table.votes, [[1, 2, 3], [0, 0, 4], [5, 0, 1]])
    assert table.values.tolist() == [1, 2, 3] and table.threshold == 2 and table.name == "oasis"
    assert dict(table.columns) == {
        "theme": ("Lake", "Lake", "Dog"),
        "category": ("Scene", "Scene", "Animal"),
        "fold_a": ("0", "1", "1"),
        "fold_b": ("1", "1", "0"),
    }
    assert table.groups == ("theme",)
    assert table.images == ("images/Lake1.jpg", "images/Lake2.png", "images/Dog.jpg")
    assert table.image_path(1) == folder / "images" / "Lake2.png"
    assert sorted(imported.inputs) == ["folds.csv", "votes.csv"]
    save_table(table, folder / "data", inputs=imported.inputs)
    assert load_table(folder / "data")[0].ids == table.ids


def test_line_ends_and_byte_order_mark_do_not_matter(folder):
    plain = read_oasis(folder, Problems()).table
    (folder / "votes.csv").write_bytes(b"\xef\xbb\xbf" + VOTES.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    (folder / "folds.csv").write_bytes(FOLDS.rstrip().replace("\n", "\r\n").encode())
    table = read_oasis(folder, Problems()).table
    assert table.ids == plain.ids and dict(table.columns) == dict(plain.columns)
    np.testing.assert_array_equal(table.votes, plain.votes)


def test_photos_elsewhere_and_unused_photos(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("photos")
    for name in ("Lake1.jpg", "Lake2.png", "Dog.jpg", "More.jpg"):
        (other / name).touch()
    imported = read_oasis(folder, Problems(), OasisOptions(images=other))
    assert imported.table.image_path(0) == other / "Lake1.jpg"
    assert imported.report[-1].endswith("are in no row of votes.csv: More.jpg")


def test_without_folds(folder):
    (folder / "folds.csv").unlink()
    assert list(read_oasis(folder, Problems()).table.columns) == ["theme", "category"]


DEFECTS = [
    ("Lake1.jpg,Lake,Scene,1,2", 2, "expected 6 fields as in the header, got 5"),
    ("Lake1.jpg,Lake,Scene,1,2,x", 2, "expected a whole number >= 0 in column 'v3', got 'x'"),
    ("Lake1.jpg,Lake,Scene,1,-2,3", 2, "expected a whole number >= 0 in column 'v2', got '-2'"),
    ("Lake1.jpg,Lake,Scene,1.5,2,3", 2, "in column 'v1', got '1.5'"),
    ("Lake1.jpg,Lake,Scene,0,0,0", 2, "expected at least one vote for 'Lake1.jpg', got none"),
    (",Lake,Scene,1,2,3", 2, "expected the name of a photo in column 'image', got ''"),
    ("Sea.jpg,Lake,Scene,1,2,3", 2, "the photo 'Sea.jpg' is not in"),
    ("../votes.csv,Lake,Scene,1,2,3", 2, "is not in"),
    ("", 2, "expected a row, got a blank line"),
]


@pytest.mark.parametrize(("line", "place", "reason"), DEFECTS)
def test_defects_of_votes_name_the_line(folder, line, place, reason):
    (folder / "folds.csv").unlink()
    (folder / "votes.csv").write_text(VOTES.replace("Lake1.jpg,Lake,Scene,1,2,3", line))
    with pytest.raises(AnnotationError) as caught:
        read_oasis(folder, Problems())
    assert caught.value.line == place and reason in str(caught.value) and f"line {place}" in str(caught.value)
    problems = Problems(keep_going=True)
    assert read_oasis(folder, problems).table.ids == ("Lake2", "Dog")
    assert [(problem.line, reason in problem.reason) for problem in problems.found] == [(place, True)]


def test_a_photo_twice_names_the_first_line(folder):
    (folder / "votes.csv").write_text(VOTES + "Lake1.png,Lake,Scene,1,1,1\n")
    with pytest.raises(AnnotationError, match=r"line 5: .*'Lake1\.png' appears twice: first on line 2 as 'Lake1\.jpg'"):
        read_oasis(folder, Problems())


FOLD_DEFECTS = [
    (FOLDS + "Sea.jpg,1,1\n", 5, "the photo 'Sea.jpg' is not in votes.csv", 3),
    (FOLDS + "Dog.jpg,1,1\n", 5, "'Dog.jpg' appears twice: first on line 2", 3),
    (FOLDS.replace("Dog.jpg,1,0\n", ""), None, "every photo of votes.csv once, but 'Dog.jpg' is not there", 2),
    (FOLDS.replace("Dog.jpg,1,0", "Dog.jpg,,0"), 2, "expected a fold for 'Dog.jpg' in every column", 2),
]


@pytest.mark.parametrize(("text", "place", "reason", "left"), FOLD_DEFECTS)
def test_defects_of_folds_name_the_line(folder, text, place, reason, left):
    (folder / "folds.csv").write_text(text)
    with pytest.raises(AnnotationError) as caught:
        read_oasis(folder, Problems())
    assert caught.value.line == place and reason in str(caught.value)
    problems = Problems(keep_going=True)
    assert len(read_oasis(folder, problems).table) == left
    assert len(problems.found) == 1 and reason in problems.found[0].reason


def test_a_defect_of_votes_is_not_reported_again_for_folds(folder):
    (folder / "votes.csv").write_text(VOTES.replace("5,0,1", "5,0,x"))
    problems = Problems(keep_going=True)
    assert read_oasis(folder, problems).table.ids == ("Lake1", "Lake2")
    assert len(problems.found) == 1


def test_headers_and_missing_files(folder):
    with pytest.raises(UsageError, match=r"expected a folder with votes\.csv and images/"):
        read_oasis(folder / "votes.csv", Problems())
    (folder / "folds.csv").write_text(FOLDS.replace("fold_a", "theme"))
    with pytest.raises(AnnotationError, match=r"folds\.csv, line 1: expected names of folds .* got 'theme'"):
        read_oasis(folder, Problems())
    (folder / "folds.csv").write_text(FOLDS.replace("image,", "photo,"))
    with pytest.raises(AnnotationError, match=r"line 1: expected the header image,FOLD,\.\.\., got photo,fold_a"):
        read_oasis(folder, Problems())
    (folder / "votes.csv").write_text(VOTES.replace("v2", "v4"))
    with pytest.raises(AnnotationError, match=r"line 1: expected the header image,theme,category,v1,v2"):
        read_oasis(folder, Problems())
    (folder / "votes.csv").write_text("image,theme,category,v1,v2\na.jpg,x,y,0,z\n")
    (folder / "folds.csv").unlink()
    with pytest.raises(AnnotationError, match="no photo with usable votes is left"):
        read_oasis(folder, Problems(keep_going=True))
    (folder / "votes.csv").unlink()
    with pytest.raises(AnnotationError, match=r"votes\.csv: cannot be read: No such file"):
        read_oasis(folder, Problems())
    with pytest.raises(MilnetError, match="expected a folder of photos"):
        read_oasis(folder, Problems(), OasisOptions(images=folder / "none"))


def test_the_oasis_photos(test_data: Path):
    folder = test_data / "data" / "oasis"
    table = read_oasis(folder, Problems()).table
    assert len(table) == 677 and len(table.values) == 7 and len(set(table.column("theme"))) == 212
    assert table.threshold == 4 and set(table.column("fold_random")) == set("01234")
    assert table.votes.sum() == 129267
    assert (table.totals.min(), table.totals.max()) == (104, 368)
    assert all(table.image_path(row).is_file() for row in range(len(table)))
