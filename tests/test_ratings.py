"""A person's own ratings: from XMP, tables, Lightroom's catalogue and digiKam's database."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import made
from made_xmp import ENTRY, packet, rated, state
from milnet.annotations import Problems
from milnet.errors import AnnotationError, UsageError
from milnet.ratings import NOT_FOUND, REJECTED, STARS, UNRATED, LeftOut, Ratings, read_ratings
from milnet.xmp import write_rating


def photos_in(folder: Path, *names: str) -> list[Path]:
    """Files that stand for photos: only XMP looks into them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GIF89a")
    return [folder / name for name in names]


def given_to(ratings: Ratings) -> dict[str, float]:
    return {path.name: rating for path, rating in zip(ratings.photos, ratings.ratings, strict=True)}


def reasons(ratings: Ratings) -> dict[str, str]:
    return {one.photo.name: one.reason for one in ratings.left_out}


def test_xmp(tmp_path: Path) -> None:
    photos = []
    for name in ("sidecar", "inside", "none", "rejected", "ours", "broken", "microsoft"):
        path = tmp_path / f"{name}.jpg"
        made.photo(1).save(path, **({"xmp": rated(4).encode()} if name == "inside" else {}))
        photos.append(path)
    (tmp_path / "sidecar.xmp").write_text(rated(3))
    (tmp_path / "rejected.jpg.xmp").write_text(rated(-1))
    (tmp_path / "broken.jpg.xmp").write_text(rated(-1)[:50])
    (tmp_path / "microsoft.jpg.xmp").write_text(packet('MicrosoftPhoto:Rating="99"'))
    write_rating(tmp_path / "ours.jpg", ENTRY)
    before = state(tmp_path)
    ratings = read_ratings([*photos, tmp_path / "gone.jpg"], "xmp")
    assert given_to(ratings) == {"sidecar.jpg": 3, "inside.jpg": 4, "microsoft.jpg": 5}
    assert ratings.values == STARS and len(ratings) == 3 and state(tmp_path) == before
    broken = reasons(ratings).pop("broken.jpg")
    assert broken.startswith(f"{tmp_path / 'broken.jpg.xmp'}: is not well-formed XML (line 1")
    assert reasons(ratings) == {
        "none.jpg": UNRATED, "rejected.jpg": REJECTED, "ours.jpg": UNRATED, "broken.jpg": broken,
        "gone.jpg": "there is no such file",
    }  # fmt: skip
    assert ratings.report == [
        "3 of 8 photos are rated in XMP: 1 x 3, 1 x 4, 1 x 5",
        "left out: 2 unrated, 1 rejected",
        f"left out: {photos[5]}: {broken}",
        f"left out: {tmp_path / 'gone.jpg'}: there is no such file",
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str, name: str = "my.csv") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    photos = photos_in(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    rows = [("a.jpg", 5), ("b.jpg", 3), ("c.jpg", 0), ("d.jpg", -1), ("z.jpg", 2)]
    source = tmp_path / ("my.csv" if kind == "semicolons" else f"my.{kind}")
    if kind == "parquet":
        pl.DataFrame({"Photo": [name for name, _ in rows], "Stars": [stars for _, stars in rows]}).write_parquet(source)
    elif kind == "jsonl":
        lines = [json.dumps({"Photo": name, "Stars": stars, "tags": ["x"], "note": None}) for name, stars in rows]
        source.write_text("\n".join(lines))
    else:
        separator = {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind]
        lines = [separator.join(map(str, row)) for row in [("Photo", "Stars"), *rows]]
        source.write_text("\n".join(lines))
    ratings = read_ratings(photos, str(source))
    assert given_to(ratings) == {"a.jpg": 5.0, "b.jpg": 3.0}
    assert reasons(ratings) == {"c.jpg": UNRATED, "d.jpg": REJECTED, "e.jpg": NOT_FOUND}
    assert ratings.unmatched == ("z.jpg",) and ratings.values == STARS
    assert ratings.report[0] == f"2 of 5 photos are rated in {source.name}, column 'Stars': 1 x 3, 1 x 5"
    assert ratings.report[1:] == [
        "left out: 1 unrated, 1 rejected, 1 has no rating in the table",
        "rated, but not among the photos: 1: z.jpg",
        "these are stars: 0 or an empty cell is unrated, -1 is rejected; of a scale that has 0 or -1, name the levels: "
        "--levels 0,1,2,3,4,5",
    ]


@pytest.mark.parametrize(
    ("cells", "expected", "values"),
    [
        (("1", "7", "3"), [1, 7, 3], None),
        (("0", "10", "5"), [0, 10, 5], None),  # on such a scale 0 is a rating
        (("0.5", "4.5", "0"), [0.5, 4.5, 0], None),
        (("-2", "2", "-1"), [-2, 2, -1], None),
        (("4.0", "", "2"), [4, 2], STARS),
        (("1e0", " 5 ", "2"), [1, 5, 2], STARS),
    ],
)
def test_scales(tmp_path: Path, cells: tuple[str, ...], expected: list[float], values: object) -> None:
    photos = photos_in(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    source = table(tmp_path, "image,rating\n" + "".join(f"{p.name},{c}\n" for p, c in zip(photos, cells, strict=True)))
    ratings = read_ratings(photos, source)
    assert list(ratings.ratings) == expected and ratings.values == values


def test_levels_that_have_zero(tmp_path: Path) -> None:
    """On a scale from 0 to 5, 0 is a rating; on one from 1 to 5 it is none, said or not."""
    photos = photos_in(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    source = table(tmp_path, "image,rating\na.jpg,0\nb.jpg,5\nc.jpg,\nd.jpg,3\n")
    ratings = read_ratings(photos, source, levels=[0, 1, 2, 3, 4, 5])
    assert given_to(ratings) == {"a.jpg": 0, "b.jpg": 5, "d.jpg": 3} and ratings.values is None
    assert reasons(ratings) == {"c.jpg": UNRATED} and ratings.notes == ()
    for levels in (None, STARS):
        ratings = read_ratings(photos, source, levels=levels)
        assert given_to(ratings) == {"b.jpg": 5, "d.jpg": 3} and ratings.values == STARS
        assert reasons(ratings) == {"a.jpg": UNRATED, "c.jpg": UNRATED} and ("--levels" in ratings.notes[0]) == (
            levels is None
        )
    lower = table(tmp_path, "image,rating\na.jpg,-1\nb.jpg,1\nc.jpg,0\n")
    assert given_to(read_ratings(photos, lower, levels=[-1, 0, 1])) == {"a.jpg": -1, "b.jpg": 1, "c.jpg": 0}


def test_columns(tmp_path: Path) -> None:
    photos = photos_in(tmp_path, "a.jpg")
    for header in ("SourceFile,Rating", "FILE NAME,STARS", "path,score", "file,my,rating", "Image,Rating,theme"):
        cells = "a.jpg" + ",4" * header.count(",")
        assert given_to(read_ratings(photos, table(tmp_path, f"{header}\n{cells}\n"))) == {"a.jpg": 4}
    both = table(tmp_path, "photo,file,rating,stars\na.jpg,b.jpg,2,3\n")
    with pytest.raises(AnnotationError, match="columns photo and file could both be the photo: say which"):
        read_ratings(photos, both)
    with pytest.raises(AnnotationError, match="columns rating and stars could both be the rating"):
        read_ratings(photos, both, photo_column="photo")
    assert given_to(read_ratings(photos, both, photo_column="photo", rating_column="stars")) == {"a.jpg": 3}
    with pytest.raises(UsageError, match="--rating-column 'x': there is no such column; there are: photo, file"):
        read_ratings(photos, both, photo_column="photo", rating_column="x")
    with pytest.raises(AnnotationError, match="expected a column rating, stars, score, got photo, value: say which"):
        read_ratings(photos, table(tmp_path, "photo,value\na,1\n"))
    scores = table(tmp_path, "photo,score,low,high,model,milnet\na.jpg,4,3,5,abc,0.1\n")
    with pytest.raises(UsageError, match="these are scores that milnet gave, not ratings of yours"):
        read_ratings(photos, scores)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full path, path from the table, path from here, name, name without ending; capitals; folders that were moved."""
    here, library = tmp_path / "here", tmp_path / "library"
    here.mkdir()
    photos = photos_in(library, "a.jpg", "x/b.jpg", "x/c.JPG", "y/c.jpg", "d.jpg", "ü.jpg", "2021/e.jpg", "2022/e.jpg")
    photos += photos_in(here, "f.jpg")
    monkeypatch.chdir(here)
    lines = [
        f"{library / 'a.jpg'},1", "x/b.jpg,2", "Y/C.jpg,3", "D,4", "u\u0308.JPG,5", "C:\\Photos\\2021\\e.jpg,1",
        "/Volumes/p/2022/e.jpg,2", "../here/f.jpg,3",
    ]  # fmt: skip
    ratings = read_ratings(photos, table(library, "photo,rating\n" + "\n".join(lines)))
    assert list(ratings.ratings) == [1, 2, 3, 4, 5, 1, 2, 3] and reasons(ratings) == {"c.JPG": NOT_FOUND}
    assert ratings.unmatched == ()
    # Where two photos fit equally well, neither has the rating.
    ratings = read_ratings(photos, table(library, "photo,rating\ne.jpg,1\nz/c.gif,2\n"))
    assert not ratings.photos
    found = {one.photo: one.reason for one in ratings.left_out}
    expected = f"ambiguous: 'e.jpg' (line 2) could be {photos[6]} or {photos[7]}"
    assert found[photos[6]] == found[photos[7]] == expected and f"left out: {photos[6]}: {expected}" in ratings.report
    assert found[photos[2]].startswith("ambiguous: 'z/c.gif' (line 3)")
    # One spelling of two is the one that is written.
    twins = photos_in(tmp_path / "twins", "g.jpg", "g.JPG")
    assert given_to(read_ratings(twins, table(library, "photo,rating\ng.JPG,1\ng.jpg,2\n"))) == {"g.jpg": 2, "g.JPG": 1}
    # A link is the photo it leads to.
    (tmp_path / "link.jpg").symlink_to(photos[0])
    source = table(library, f"photo,rating\n{photos[0]},5\n")
    assert given_to(read_ratings([tmp_path / "link.jpg"], source)) == {"link.jpg": 5}


def test_a_raw_and_its_jpeg(tmp_path: Path) -> None:
    photos = photos_in(tmp_path, "a.jpg", "a.CR3", "b.jpg")
    source = table(tmp_path, "photo,rating\na.CR3,5\na.jpg,2\nb.CR3,3\n")
    assert given_to(read_ratings(photos, source)) == {"a.jpg": 2, "a.CR3": 5, "b.jpg": 3}


def test_defects_have_lines(tmp_path: Path) -> None:
    photos = photos_in(tmp_path, "a.jpg", "b.jpg")
    text = "photo,rating\na.jpg,good\n,3\nb.jpg,nan\nb.jpg,2,2\na.jpg,4\nb.jpg,3\na.jpg,4\nb.jpg,5\n"
    source = table(tmp_path, text)
    with pytest.raises(AnnotationError) as caught:
        read_ratings(photos, source)
    # The number of fields is looked at first.
    assert caught.value.line == 5 and str(caught.value).startswith(f"{source}, line 5: expected 2 fields")
    problems = Problems(keep_going=True)
    ratings = read_ratings(photos, source, problems=problems)
    assert [(error.line, error.reason) for error in problems.found] == [
        (5, "expected 2 fields as in the header, got 3"),
        (2, "expected a number in column 'rating', got 'good'"),
        (3, "expected a photo in column 'photo', got ''"),
        (4, "expected a number in column 'rating', got 'nan'"),
        (9, "photo 'b.jpg' is rated otherwise on line 7"),
    ]
    assert given_to(ratings) == {"a.jpg": 4}
    assert reasons(ratings) == {"b.jpg": "ambiguous: line 7 and line 9 rate it differently"}
    # An empty cell says nothing beside a rating.
    assert given_to(read_ratings(photos, table(tmp_path, "photo,rating\na.jpg,\na.jpg,3\n"))) == {"a.jpg": 3}


def test_defects_of_jsonl(tmp_path: Path) -> None:
    photos = photos_in(tmp_path, "a.jpg")
    lines = [
        '{"photo": "a.jpg", "rating": 3}',
        "[1]",
        '{"photo": ',
        '{"photo": "\\ud800", "rating": 2}',
        '{"rating": 2}',
    ]
    source = table(tmp_path, "\n".join([*lines, '{"photo": "b", "rating": true}', "[" * 100_000]), "my.jsonl")
    problems = Problems(keep_going=True)
    assert given_to(read_ratings(photos, source, problems=problems)) == {"a.jpg": 3}
    assert [error.line for error in problems.found] == [2, 3, 4, 7, 5, 6]
    assert problems.found[0].reason == "expected a JSON object, got '[1]'"
    assert problems.found[-1].reason == "expected a number in column 'rating', got 'true'"


def test_what_is_no_source(tmp_path: Path) -> None:
    expected = r"; expected 'xmp' or a file \(.csv, .tsv, .jsonl, .parquet, .lrcat, digikam4.db\)$"
    for source in ("Catalog.lrcat", "nowhere.csv", "my/ratings", str(tmp_path / "none")):
        with pytest.raises(UsageError, match=f"^{re.escape(source)} does not exist{expected}"):
            read_ratings([], source)
    for source in ("XMP", "lightroom"):
        with pytest.raises(UsageError, match=f"^ratings '{source}'{expected}"):
            read_ratings([], source)
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path))} is a folder{expected}"):
        read_ratings([], str(tmp_path))
    for name, content in (("my.xlsx", b"PK\x03\x04 sheet"), ("x.csv", b"PK\x03\x04 catalogue")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnnotationError, match=r"a spreadsheet\? save it as csv; a zipped copy of a catalogue\?"):
            read_ratings([], str(tmp_path / name))
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(AnnotationError, match="the file is empty"):
        read_ratings([], str(tmp_path / "empty.csv"))
    database = tmp_path / "other.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(AnnotationError, match="got a database with the tables songs"):
        read_ratings([], str(database))
    database.write_bytes(database.read_bytes()[:100] + bytes(5000))
    with pytest.raises(AnnotationError, match="cannot be read as a catalogue"):
        read_ratings([], str(database))


@pytest.mark.parametrize("name", ["Catalog.lrcat", "OLD.LRCAT", "digikam4.db"])
@pytest.mark.parametrize("content", [b"", bytes(5000), b"photo,rating\na.jpg,3\n", b"SQLite format 2\0", b"PAR1"])
def test_a_catalogue_that_is_no_database(tmp_path: Path, name: str, content: bytes) -> None:
    """It is not read as a table, whatever it holds."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnnotationError, match=rf"{name}: is no SQLite database, which a catalogue is: it is damaged"):
        read_ratings([], str(tmp_path / name))
    (tmp_path / name).write_bytes(b"PK\x03\x04 catalogue")
    with pytest.raises(AnnotationError, match="a zipped copy of a catalogue"):
        read_ratings([], str(tmp_path / name))


@pytest.mark.parametrize("header", ["photo", "photo|rating", '"photo,rating"', "\nphoto,rating", "photo rating"])
def test_a_table_of_one_column(tmp_path: Path, header: str) -> None:
    """What to do is said in words of the commands that read ratings, which have no --separator."""
    with pytest.raises(AnnotationError, match="line 1: expected a table whose first line names a column") as caught:
        read_ratings([], table(tmp_path, f"{header}\na.jpg,3\n"))
    assert "--" not in caught.value.reason


def test_separators(tmp_path: Path) -> None:
    """The one that makes most columns, whatever stands in quotes."""
    photos = photos_in(tmp_path, "a.jpg")
    for text in (
        '"my, own, photo";rating\na.jpg;4\n',
        '"my,\nown, photo";"rating"\na.jpg;4\n',
        "photo\trating\na.jpg\t4\n",
        "\ufeffphoto;rating\r\na.jpg;4\r\n",
    ):
        source = tmp_path / "my.csv"
        source.write_bytes(text.encode())
        column = "my, own, photo" if "own" in text else None
        assert given_to(read_ratings(photos, str(source), photo_column=column)) == {"a.jpg": 4}
    for content, reason in ((b"\xff\xfep\0", "expected UTF-8, got other bytes"), (b'a"b","x"y\n', "is not valid csv")):
        source.write_bytes(content)
        with pytest.raises(AnnotationError, match=reason):
            read_ratings(photos, str(source))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 9)), min_size=1, max_size=8), st.randoms())
def test_the_order_of_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], random: object
) -> None:
    """Against a dictionary: photos whose rows agree have that rating, in the order of the photos."""
    folder = tmp_path_factory.mktemp("order")
    photos = photos_in(folder, *(f"{name}.jpg" for name in "abcde"))
    random.shuffle(rows)  # type: ignore[attr-defined]
    source = table(folder, "photo,rating\n" + "".join(f"{name}.jpg,{rating}\n" for name, rating in [*rows, ("q", 9)]))
    seen: dict[str, set[int]] = {}
    for name, rating in rows:
        seen.setdefault(f"{name}.jpg", set()).add(rating)
    ratings = read_ratings(photos, source, problems=Problems(keep_going=True))
    assert given_to(ratings) == {name: min(them) for name, them in sorted(seen.items()) if len(them) == 1}
    assert len(ratings) + len(ratings.left_out) == 5


# ---- catalogues ------------------------------------------------------------------------------------------------------

# The tables and columns that are read, with the types the programs declare.
LIGHTROOM = """
CREATE TABLE AgLibraryRootFolder (id_local INTEGER PRIMARY KEY, id_global UNIQUE NOT NULL, absolutePath UNIQUE NOT NULL
DEFAULT '', name NOT NULL DEFAULT '', relativePathFromCatalog);
CREATE TABLE AgLibraryFolder (id_local INTEGER PRIMARY KEY, id_global UNIQUE NOT NULL, pathFromRoot NOT NULL DEFAULT '',
rootFolder INTEGER NOT NULL DEFAULT 0);
CREATE TABLE AgLibraryFile (id_local INTEGER PRIMARY KEY, id_global UNIQUE NOT NULL, baseName NOT NULL DEFAULT '',
extension NOT NULL DEFAULT '', folder INTEGER NOT NULL DEFAULT 0, idx_filename NOT NULL DEFAULT '',
originalFilename NOT NULL DEFAULT '', sidecarExtensions);
CREATE TABLE Adobe_images (id_local INTEGER PRIMARY KEY, id_global UNIQUE NOT NULL, copyName, masterImage INTEGER,
pick NOT NULL DEFAULT 0, rating, rootFile INTEGER NOT NULL DEFAULT 0);
"""
DIGIKAM = """
CREATE TABLE AlbumRoots (id INTEGER PRIMARY KEY, label TEXT, status INTEGER NOT NULL, type INTEGER NOT NULL,
identifier TEXT, specificPath TEXT, UNIQUE(identifier, specificPath));
CREATE TABLE Albums (id INTEGER PRIMARY KEY, albumRoot INTEGER NOT NULL, relativePath TEXT NOT NULL, date DATE,
caption TEXT, collection TEXT, icon INTEGER, UNIQUE(albumRoot, relativePath));
CREATE TABLE Images (id INTEGER PRIMARY KEY, album INTEGER, name TEXT NOT NULL, status INTEGER NOT NULL,
category INTEGER NOT NULL, modificationDate DATETIME, fileSize INTEGER, uniqueHash TEXT, UNIQUE (album, name));
CREATE TABLE ImageInformation (imageid INTEGER PRIMARY KEY, rating INTEGER, creationDate DATETIME);
CREATE TABLE Tags (id INTEGER PRIMARY KEY, pid INTEGER, name TEXT NOT NULL, UNIQUE (name, pid));
CREATE TABLE ImageTags (imageid INTEGER NOT NULL, tagid INTEGER NOT NULL, UNIQUE (imageid, tagid));
"""


def lightroom(file: Path, root: str, relative: str | None, images: list[tuple[object, ...]]) -> str:
    """A catalogue; images: folder below the root, file, rating, pick, master, endings beside it."""
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(LIGHTROOM)
        database.execute("INSERT INTO AgLibraryRootFolder VALUES (1, 'r', ?, 'library', ?)", (root, relative))
        folders: dict[object, int] = {}
        for number, (folder, name, rating, pick, master, beside) in enumerate(images, 1):
            if folder not in folders:
                folders[folder] = len(folders) + 1
                database.execute("INSERT INTO AgLibraryFolder VALUES (?, ?, ?, 1)", (folders[folder],) * 2 + (folder,))
            stem, _, ending = str(name).rpartition(".")
            database.execute(
                "INSERT INTO AgLibraryFile VALUES (?, ?, ?, ?, ?, ?, 'IMG.CR3', ?)",
                (number, number, stem, ending, folders[folder], str(name).lower(), beside),
            )
            database.execute(
                "INSERT INTO Adobe_images VALUES (?, ?, NULL, ?, ?, ?, ?)",
                (number, number, master, pick, rating, number),
            )
    return str(file)


def test_lightroom(tmp_path: Path) -> None:
    library = tmp_path / "library"
    photos = photos_in(library, "2021/a.jpg", "2021/b.JPG", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg", "2022/a.jpg")
    source = lightroom(
        tmp_path / "my.lrcat",
        f"{library}/",
        None,
        [
            ("2021/", "a.jpg", 5.0, 0, None, None),
            ("2021/", "b.JPG", 3, -1, None, ""),  # rated and flagged as rejected: rated
            ("", "c.jpg", None, 0, None, None),
            ("", "d.jpg", None, -1.0, None, None),
            ("", "e.jpg", 0, 1, None, None),
            ("", "f.CR3", 4, 0, None, "JPG,xmp"),  # taken as RAW and JPEG
            ("2021/", "a2.jpg", 1, 0, 1, None),
        ],
    )
    with closing(sqlite3.connect(source)) as database, database:  # a virtual copy of the first, rated otherwise
        database.execute("UPDATE Adobe_images SET rootFile = 1 WHERE id_local = 7")
    ratings = read_ratings(photos, source)
    assert [path.relative_to(library).as_posix() for path in ratings.photos] == ["2021/a.jpg", "2021/b.JPG", "f.jpg"]
    assert ratings.ratings == (5, 3, 4)
    assert [(one.photo.name, one.reason) for one in ratings.left_out] == [
        ("c.jpg", UNRATED), ("d.jpg", REJECTED), ("e.jpg", UNRATED), ("g.jpg", NOT_FOUND), ("a.jpg", NOT_FOUND),
    ]  # fmt: skip
    assert ratings.values == STARS and ratings.unmatched == () and ratings.source == "Lightroom: my.lrcat"


def test_lightroom_libraries_that_moved(tmp_path: Path) -> None:
    """The path from the root folder's name has to agree; a name alone, which cameras repeat, will not."""
    images = [("2021/", "a.jpg", 5, 0, None, None), ("", "b.jpg", 4, 0, None, None)]
    source = lightroom(tmp_path / "my.lrcat", "D:/old/library/", None, images)
    photos = photos_in(tmp_path / "new/library", "2021/a.jpg", "b.jpg", "2022/a.jpg")
    photos += photos_in(tmp_path / "other", "2021/a.jpg", "b.jpg")
    ratings = read_ratings(photos, source)
    assert list(ratings.photos) == photos[:2] and ratings.ratings == (5, 4)
    # The catalogue may know where the photos are from where it is itself.
    beside = lightroom(tmp_path / "moved.lrcat", "/gone/x/", "other/", images)
    assert list(read_ratings(photos, beside).photos) == photos[3:]
    # Two copies of the library: which is meant?
    copies = photos_in(tmp_path / "copy/library", "2021/a.jpg")
    found = read_ratings([photos[0], *copies], source)
    assert not found.photos and all("ambiguous: 'library/2021/a.jpg'" in one.reason for one in found.left_out)


def test_an_older_lightroom_without_some_columns(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "library", "a.jpg")
    source = lightroom(tmp_path / "my.lrcat", f"{tmp_path}/library/", None, [("", "a.jpg", 2, 0, None, None)])
    with closing(sqlite3.connect(source)) as database, database:
        for name, column in (
            ("AgLibraryRootFolder", "relativePathFromCatalog"),
            ("AgLibraryFile", "sidecarExtensions"),
            ("Adobe_images", "pick"),
        ):
            database.execute(f"ALTER TABLE {name} DROP COLUMN {column}")
    assert given_to(read_ratings(photos, source)) == {"a.jpg": 2}
    with closing(sqlite3.connect(source)) as database, database:
        database.execute("ALTER TABLE Adobe_images DROP COLUMN rating")
    with pytest.raises(AnnotationError, match=r"cannot be read as a catalogue \(no such column: image.rating\)"):
        read_ratings(photos, source)


def test_an_open_catalogue(tmp_path: Path) -> None:
    """Locked by its program, it is read all the same, and nothing is written: no lock, no log."""
    photos = photos_in(tmp_path / "library", "a.jpg", "b.jpg")
    images = [("", "a.jpg", 2, 0, None, None), ("", "b.jpg", 3, 0, None, None)]
    folder = tmp_path / "odd # ? %20 name"
    folder.mkdir()
    source = lightroom(folder / "my.lrcat", f"{tmp_path}/library/", None, images)
    with closing(sqlite3.connect(source, isolation_level=None)) as program:
        program.execute("PRAGMA locking_mode = EXCLUSIVE")
        program.execute("BEGIN EXCLUSIVE")
        with (
            closing(sqlite3.connect(source, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("SELECT * FROM Adobe_images").fetchall()
        before = state(folder)
        assert given_to(read_ratings(photos, source)) == {"a.jpg": 2, "b.jpg": 3}
        assert state(folder) == before
        program.execute("ROLLBACK")
    with closing(sqlite3.connect(source)) as program:
        program.execute("PRAGMA journal_mode = WAL")
        program.execute("UPDATE Adobe_images SET rating = 5")
        program.commit()
        before = state(folder)
        ratings = read_ratings(photos, source)
        assert ratings.notes == (
            "my.lrcat is open in another program: ratings it has not written yet are missing; close it",
        )
        assert ratings.report[-1] == ratings.notes[0] and state(folder) == before
    assert given_to(read_ratings(photos, source)) == {"a.jpg": 5, "b.jpg": 5}  # closed, it says all
    folder.chmod(0o555)
    try:
        Path(source).chmod(0o444)
        with closing(sqlite3.connect(source)):
            assert len(read_ratings(photos, source)) == 2
    finally:
        folder.chmod(0o755)


def digikam(file: Path, roots: list[tuple[str, str]], images: list[tuple[object, ...]]) -> str:
    """A database; images: root, album, name, status, rating, rejected."""
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(DIGIKAM)
        database.execute("INSERT INTO Tags VALUES (1, 0, '_Digikam_Internal_Tags_'), (2, 1, 'Pick Label Rejected')")
        for number, (identifier, specific) in enumerate(roots, 1):
            database.execute("INSERT INTO AlbumRoots VALUES (?, NULL, 0, 1, ?, ?)", (number, identifier, specific))
        albums: dict[tuple[object, object], int] = {}
        for number, (root, album, name, status, rating, rejected) in enumerate(images, 1):
            if (root, album) not in albums:
                albums[root, album] = len(albums) + 1
                database.execute(
                    "INSERT INTO Albums (id, albumRoot, relativePath) VALUES (?, ?, ?)",
                    (albums[root, album], root, album),
                )
            database.execute(
                "INSERT INTO Images (id, album, name, status, category) VALUES (?, ?, ?, ?, 1)",
                (number, albums[root, album], name, status),
            )
            if rating is not None:
                database.execute("INSERT INTO ImageInformation (imageid, rating) VALUES (?, ?)", (number, rating))
            if rejected:
                database.execute("INSERT INTO ImageTags VALUES (?, 2)", (number,))
    return str(file)


def test_digikam(tmp_path: Path) -> None:
    library, share = tmp_path / "my photos+", tmp_path / "share"
    photos = photos_in(library, "a.jpg", "2021/b.jpg", "2021/c.jpg", "2021/d.jpg", "e.jpg", "h.jpg")
    photos += photos_in(share, "f.jpg", "in/g.jpg")
    volume = f"volumeid:?path={str(library).replace(' ', '%20').replace('/', '%2F')}&fileuuid=1"
    source = digikam(
        tmp_path / "digikam4.db",
        [(volume, "/"), (f"networkshareid:?mountpath={share}", "/"), ("volumeid:?uuid=0123-4567", str(share / "in"))],
        [
            (1, "/", "a.jpg", 1, 5, False),
            (1, "/2021", "b.jpg", 2, 1, True),
            (1, "/2021", "c.jpg", 1, -1, False),
            (1, "/2021", "d.jpg", 1, 0, True),
            (1, "/", "e.jpg", 3, 4, False),  # in the bin
            (1, "/", "h.jpg", 1, None, False),
            (2, "/", "f.jpg", 1, 2, False),
            (3, "/", "g.jpg", 1, 3, False),
        ],
    )
    ratings = read_ratings(photos, source)
    assert given_to(ratings) == {"a.jpg": 5, "b.jpg": 1, "f.jpg": 2, "g.jpg": 3}
    assert reasons(ratings) == {"c.jpg": UNRATED, "d.jpg": REJECTED, "e.jpg": NOT_FOUND, "h.jpg": NOT_FOUND}
    assert ratings.source == "digiKam: digikam4.db" and ratings.values == STARS
    assert ratings.report[1] == "left out: 1 unrated, 1 rejected, 2 have no rating in the catalogue"
    # Moved: from the root folder's name on.
    moved = photos_in(tmp_path / "elsewhere/my photos+", "2021/b.jpg") + photos_in(tmp_path / "elsewhere", "2021/b.jpg")
    assert list(read_ratings(moved, source).photos) == moved[:1]
    # A library at "/" has no root folder's name, and a photo's own name is not enough.
    bare = digikam(tmp_path / "bare.db", [("volumeid:?path=%2F", "/")], [(1, "/", "b.jpg", 1, 5, False)])
    assert not read_ratings(moved[:1], bare).photos
    with pytest.raises(UsageError, match="is a catalogue, whose columns are known"):
        read_ratings(photos, source, rating_column="rating")


def test_results_say_what_they_hold() -> None:
    ratings = Ratings("XMP", (), (), (LeftOut(Path("a"), UNRATED),), STARS)
    assert ratings.report == ["0 of 1 photos are rated in XMP", "left out: 1 unrated"] and len(ratings) == 0
    odd = replace(ratings, left_out=tuple(LeftOut(Path(f"{number}"), "odd") for number in range(12)))
    assert len(odd.report) == 11 and odd.report[-1] == "left out: 3 more for reasons of this kind"
    more = replace(ratings, unmatched=tuple(f"{number}.jpg" for number in range(12)))
    assert more.report[-1].endswith("9.jpg and 2 more")


def test_real_ratings(test_data: Path, tmp_path: Path) -> None:
    """The ratings of one of the people of OASIS, as a table of their own."""
    frame = pl.read_csv(test_data / "data/oasis/ratings.csv")
    rater = frame["rater"][0]
    own = frame.filter(pl.col("rater") == rater)
    photos = sorted((test_data / "data/oasis/images").glob("*.jpg"))
    own.write_csv(tmp_path / "own.csv")
    ratings = read_ratings(photos, str(tmp_path / "own.csv"))
    expected = {f"{Path(name).stem}.jpg": float(stars) for name, stars in own.select("image", "rating").iter_rows()}
    assert given_to(ratings) == expected and len(expected) > 100
    assert {one.reason for one in ratings.left_out} == {NOT_FOUND} and not ratings.unmatched
