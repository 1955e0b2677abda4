"""The general format: counts, fractions, means, ratings; csv and Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.annotations import Problems, load_table, save_table
from milnet.datasets import TableOptions, read_dataset
from milnet.datasets.columns import expand, parse_values
from milnet.datasets.oasis import read_oasis
from milnet.datasets.table import read_table
from milnet.entropy import maximum_entropy
from milnet.errors import AnnotationError, MilnetError, UsageError

COUNTS = "image,v1,v2,v3,theme\na.jpg,1,2,3,sea\nb.PNG,0,0,4,sky\ndir/c,5.0,0,1,sea\n"


def read(tmp_path, text, problems=None, name="labels.csv", **options):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(file, problems or Problems(), TableOptions(**options))


def test_counts(tmp_path):
    imported = read(tmp_path, COUNTS, group_columns="theme")
    table = imported.table
    assert table.ids == ("a", "b", "dir/c") and table.name == "labels"
    np.testing.assert_array_equal(table.votes, [[1, 2, 3], [0, 0, 4], [5, 0, 1]])
    assert table.values.tolist() == [1, 2, 3] and table.threshold == 2
    assert dict(table.columns) == {"theme": ("sea", "sky", "sea")} and table.groups == ("theme",)
    assert table.images == ("a.jpg", "b.PNG", "") and table.image_root is None
    assert imported.report[0] == "3 photos; 'image' names them; counts in v1, v2, v3"
    save_table(table, tmp_path / "data", inputs=imported.inputs)
    assert load_table(tmp_path / "data")[0].source == table.source


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip(),
        lambda text: text + "\n\r\n",
        lambda text: text.replace(",1", ", 1 ").replace("image,", "image ,"),
        lambda text: text.replace("sea", '"sea"'),
    ],
)
def test_harmless_differences(tmp_path, change):
    plain, table = read(tmp_path, COUNTS).table, read(tmp_path, change(COUNTS)).table
    assert table.ids == plain.ids and dict(table.columns) == dict(plain.columns)
    np.testing.assert_array_equal(table.votes, plain.votes)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("1", "2", "3"), [1, 2, 3]),
        (("s0", "s1", "s2"), [0, 1, 2]),
        (("score_1.0", "score_1.5", "score_2.0"), [1, 1.5, 2]),
        (("c_3", "c_2", "c_1"), [1, 2, 3]),
    ],
)
def test_values_by_the_names_of_columns(tmp_path, names, values):
    imported = read(tmp_path, f"id,photo,{','.join(names)}\n1,a,1,2,3\n2,b,4,5,6\n")
    assert imported.table.values.tolist() == values
    assert imported.table.votes[0].tolist() == ([3, 2, 1] if names[0] == "c_3" else [1, 2, 3])


def test_named_columns(tmp_path):
    text = "file,bad,good,best,tag1,tag2,tag3\na.jpg,1,2,3,7,8,9\n"
    table = read(tmp_path, text, count_columns="bad,good,best", values="1:3").table
    assert table.votes.tolist() == [[1, 2, 3]] and list(table.columns) == ["tag1", "tag2", "tag3"]
    with pytest.raises(UsageError, match="the names bad, good, best do not tell the values: say them with --values"):
        read(tmp_path, text, count_columns="bad,good,best")
    with pytest.raises(UsageError, match=r"3 columns of votes \(bad, good, best\) for 4 values"):
        read(tmp_path, text, count_columns="bad,good,best", values="1:4")
    with pytest.raises(UsageError, match="there is no column 'worst'; there are: file, bad"):
        read(tmp_path, text, count_columns="worst,bad")


def test_columns_of_tanet(tmp_path):
    text = "image_id," + ",".join(f"score{k}" for k in range(2, 12)) + "\n9," + ",".join("1234567891") + "\n"
    with pytest.raises(UsageError, match=r"score2 to score11 would mean the values 2, 3, .* --values 1:10"):
        read(tmp_path, text)
    table = read(tmp_path, text, values="1:10").table
    assert table.ids == ("9",) and table.values.tolist() == list(range(1, 11)) and table.totals[0] == 46


def test_fractions(tmp_path):
    text = "image_name,c1,c2,c3,c_total,MOS,set\na.jpg,.1,.2,.7,50,60,training\nb.jpg,.3337,.3333,.3333,3,50,test\n"
    imported = read(tmp_path, text, split_column="set")
    assert imported.table.votes[0].tolist() == pytest.approx([5, 10, 35])
    assert imported.table.totals.tolist() == pytest.approx([50, 3], abs=1e-12)
    assert dict(imported.table.columns) == {"MOS": ("60", "50"), "split": ("training", "test")}
    assert "number of votes: column 'c_total'" in imported.report
    alone = read(tmp_path, text.replace("c_total", "n"), fraction_columns="c*")
    assert alone.table.totals.tolist() == pytest.approx([1, 1])
    assert "number of votes: not known, each photo has one" in alone.report


def test_means(tmp_path):
    text = "image,mean,sd,total\na.jpg,2.5,0.8,10\nb.jpg,4,0,20\n"
    with pytest.raises(UsageError, match="means in column 'mean' need their limits"):
        read(tmp_path, text)
    imported = read(tmp_path, text, values="1:5")
    wanted = maximum_entropy([2.5, 4], [0.8, 0], np.arange(1.0, 6)) * [[10], [20]]
    np.testing.assert_array_equal(imported.table.votes, wanted)
    assert imported.table.scores.tolist() == pytest.approx([2.5, 4]) and imported.table.spreads[0] == pytest.approx(0.8)
    alone = read(tmp_path, "image,score\na.jpg,2.5\n", mean_column="score", values="0:10").table
    np.testing.assert_array_equal(alone.votes, maximum_entropy([2.5], None, np.arange(11.0)))
    assert alone.threshold == 5
    assert (
        read(tmp_path, "image,score\na.jpg,2\n", mean_column="score", values="0:10", threshold=6).table.threshold == 6
    )


RATINGS = "rater,image,rating,theme,seen\n1,a.jpg,3,sea,x\n1,b.jpg,1,sky,x\n2,a.jpg,3,sea,y\n2,b.jpg,2,sky,x\n"


def test_ratings(tmp_path):
    imported = read(tmp_path, RATINGS, group_columns="theme")
    assert imported.table.ids == ("a", "b") and imported.table.values.tolist() == [1, 2, 3]
    assert imported.table.votes.tolist() == [[0, 0, 2], [1, 1, 0]]
    assert dict(imported.table.columns) == {"theme": ("sea", "sky")}
    report = "\n".join(imported.report)
    assert "4 ratings by 2 raters" in report and "column 'seen' differs between rows of one photo" in report
    wide = read(tmp_path, RATINGS, values="0:4:0.5").table
    assert wide.values.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4] and wide.votes[1, 2] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2,a.jpg,2.5,sea,y", "expected one of the values 1, 2, 3 (whole numbers unless --values says otherwise)"),
        ("2,a.jpg,,sea,y", "in column 'rating', got ''"),
        ("1,a.jpg,3,sea,y", "rater '1' rates 'a.jpg' twice: first on line 2"),
        (",a.jpg,3,sea,y", "expected a rater in column 'rater', got ''"),
        ("2,,3,sea,y", "expected a photo in column 'image', got ''"),
        ("2,a.png,3,sea,y", "photo 'a.png' is 'a.jpg' on line 2: is it the same photo?"),
        ("2,a.jpg,3,sky,y", "photo 'a.jpg' has 'sky' in column 'theme', but 'sea' on line 2"),
    ],
)
def test_defects_of_ratings_name_the_line(tmp_path, line, reason):
    text = RATINGS.replace("2,a.jpg,3,sea,y", line)
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text, group_columns="theme")
    assert caught.value.line == 4 and reason in str(caught.value)
    problems = Problems(keep_going=True)
    table = read(tmp_path, text, problems, group_columns="theme").table
    assert [(problem.line, reason in problem.reason) for problem in problems.found] == [(4, True)]
    assert table.votes.tolist() == [[0, 0, 1], [1, 1, 0]]


def test_ratings_without_values(tmp_path):
    with pytest.raises(AnnotationError, match=r"do not tell the values: expected at least two different whole numbers"):
        read(tmp_path, "image,rating\na,3\nb,3\n")
    with pytest.raises(AnnotationError, match=r"line 3: expected one of the values 1, 2, \.\.\., 7 in .* got '8'"):
        read(tmp_path, "image,rating\na,3\nb,8\n", values="1:7")
    twice = read(tmp_path, "image,rating\na,3\na,3\nb,1\n").table  # nobody says who rated
    assert twice.votes.tolist() == [[0, 0, 2], [1, 0, 0]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b.PNG,0,0,4", "expected 5 fields as in the header, got 4"),
        ("b.PNG,0,0,4,sky,", "got 6"),
        ("", "expected a row, got a blank line"),
        ("b.PNG,0,x,4,sky", "expected a whole number >= 0 in column 'v2', got 'x'"),
        ("b.PNG,0,-1,4,sky", "in column 'v2', got '-1'"),
        ("b.PNG,0,nan,4,sky", "in column 'v2', got 'nan'"),
        ("b.PNG,0,1_0,4,sky", "in column 'v2', got '1_0'"),
        ("b.PNG,0,1.5,4,sky", "in column 'v2', got '1.5'"),
        ("b.PNG,0,0,0,sky", "expected at least one vote, got none"),
        (",0,0,4,sky", "expected photo in column 'image', got ''"),
        ("a.png,0,0,4,sky", "photo 'a.png' appears twice: first on line 2 as 'a.jpg'"),
        ("a.jpg,0,0,4,sky", "photo 'a.jpg' appears twice: first on line 2"),
        ("b.PNG,0,0,4,s\0y", "expected text, got a NUL character"),
        ("b.PNG,0,0,4,s\udcffy", "expected UTF-8, got other bytes"),
        ('b.PNG,0,0,4,"sky"x', "is not valid csv"),
    ],
)
def test_defects_of_counts_name_the_line(tmp_path, line, reason):
    data = COUNTS.replace("b.PNG,0,0,4,sky", line).encode(errors="surrogateescape")
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, data)
    assert caught.value.line == 3 and reason in str(caught.value) and "labels.csv, line 3: " in str(caught.value)
    problems = Problems(keep_going=True)
    assert read(tmp_path, data, problems).table.ids == ("a", "dir/c")
    assert [(problem.line, reason in problem.reason) for problem in problems.found] == [(3, True)]


@pytest.mark.parametrize(
    ("line", "reason", "options"),
    [
        ("b,.5,.4,0,9", "expected fractions that sum to 1 within 0.001, got 0.9", {}),
        ("b,.5,.6,-.1,9", "expected a fraction >= 0 in column 'c3', got '-.1'", {}),
        ("b,.5,.5,0,0", "expected votes > 0 in column 'total', got '0'", {}),
        ("b,.5,.5,0,many", "expected votes > 0 in column 'total', got 'many'", {}),
        ("b,5.1,.5,0,9", "a mean from 1 to 5 in column 'c1', got '5.1'", {"mean_column": "c1", "values": "1:5"}),
        (
            "b,2.5,.4,0,9",
            "expected a standard deviation from 0.5 to 1.93649 (all that is possible with the mean 2.5",
            {"mean_column": "c1", "sd_column": "c2", "values": "1:5"},
        ),
    ],
)
def test_defects_of_fractions_and_means_name_the_line(tmp_path, line, reason, options):
    first = "2,1,0,9" if options else ".2,.3,.5,9"
    text = f"image,c1,c2,c3,total\na,{first}\n{line}\nc,{first}\n"
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text, **options)
    assert caught.value.line == 3 and reason in str(caught.value)
    problems = Problems(keep_going=True)
    assert read(tmp_path, text, problems, **options).table.ids == ("a", "c")
    assert [(problem.line, reason in problem.reason) for problem in problems.found] == [(3, True)]


def test_lines_count_breaks_inside_quotes(tmp_path):
    text = 'image,v1,v2,v3,caption\na,1,2,3,"two\nlines, ""quoted"""\nb,1,x,3,c\n'
    with pytest.raises(AnnotationError, match=r"line 4: .*got 'x'"):
        read(tmp_path, text)
    imported = read(tmp_path, text, Problems(keep_going=True))
    assert imported.table.column("caption") == ('two lines, "quoted"',)
    assert "column 'caption': line breaks in 1 rows became blanks" in imported.report
    with pytest.raises(AnnotationError, match=r"line 2: is not valid csv \(unexpected end of data\)"):
        read(tmp_path, 'image,v1,v2,v3\n"a,1,2,3\nb,1,2,3\n')


@pytest.mark.parametrize(
    ("text", "options", "error", "reason"),
    [
        ("", {}, AnnotationError, "expected labels, but the file is empty"),
        ("image,v1,v2,v3\n", {}, AnnotationError, "no photo with usable votes is left"),
        ("\nimage,v1,v2,v3\n", {}, AnnotationError, "line 1: expected a header of at least 2 columns"),
        ("image;v1;v2\na;1;2\n", {}, AnnotationError, r"line 1: .*Say which with --separator"),
        ("image,v1,v1\na,1,2\n", {}, AnnotationError, "line 1: column 'v1' appears more than once"),
        (b"im\xffge,v1,v2,v3\n", {}, AnnotationError, "line 1: expected UTF-8"),
        ('"im"age,v1\na,1\n', {}, AnnotationError, "line 1: is not valid csv"),
        ("who,v1,v2,v3\na,1,2,3\n", {}, AnnotationError, r"expected a photo column .* say which with --photo-column"),
        ("image,file,v1,v2,v3\na,b,1,2,3\n", {}, AnnotationError, "columns image and file could both be the photo"),
        ("image,x\na,1\n", {}, AnnotationError, "expected votes as counts"),
        ("image,a1,a2,a3,b1,b2,b3\na,1,2,3,1,2,3\n", {}, AnnotationError, r"could be in a1\.\.a3 .* or in b1\.\.b3"),
        ("image,a1,a2,a3,rating\na,1,2,3,1\n", {}, AnnotationError, r"could be in a1\.\.a3 .* or in rating"),
        ("image,x y,x_y,v1,v2,v3\na,1,2,3,4,5\n", {}, AnnotationError, "'x y' and 'x_y' would both be 'x_y'"),
        ("image,X,x,v1,v2,v3\na,1,2,3,4,5\n", {}, AnnotationError, "'X' and 'x' would both be 'x'"),
        ("image,v1,v2,v3\na,1,2,3\n", {"photo_column": "f"}, UsageError, "--photo-column 'f': there is no such column"),
        (COUNTS, {"separator": "::"}, UsageError, "--separator '::': expected one character, or tab"),
        (COUNTS, {"split_column": "set"}, UsageError, "--split-column 'set': there is no such column"),
        (
            COUNTS,
            {"total_column": "theme"},
            UsageError,
            "--total-column goes with fractions or mean, but the votes are",
        ),
        (COUNTS, {"sd_column": "theme"}, UsageError, "--sd-column goes with mean, but the votes are counts"),
        (COUNTS, {"rater_column": "theme"}, UsageError, "--rater-column goes with ratings"),
        (COUNTS, {"count_columns": "v*", "mean_column": "v1"}, UsageError, "--count-columns and --mean-column exclude"),
        (COUNTS, {"count_columns": "v1..v9"}, UsageError, "'v1..v9': expected the first and the last of columns"),
        (COUNTS, {"count_columns": "v1..v2,v2"}, UsageError, "names a column twice"),
        (COUNTS, {"count_columns": "v*", "group_columns": "v1"}, UsageError, "named for two things"),
        (COUNTS, {"group_columns": "image"}, UsageError, "column 'image' cannot be a group or the split"),
        (COUNTS, {"values": "1:2"}, UsageError, "3 columns of votes"),
        (b"PAR1 not really", {}, AnnotationError, "is not a readable Parquet file"),
        (b"PK\x03\x04...", {}, AnnotationError, "expected csv or Parquet, got something else"),
    ],
)
def test_refusals(tmp_path, text, options, error, reason):
    with pytest.raises(error, match=reason):
        read(tmp_path, text, **options)


def test_missing_file_and_long_names(tmp_path):
    with pytest.raises(AnnotationError, match=r"none\.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv", Problems())
    with pytest.raises(AnnotationError, match=r"column name 'xxx.*is too long: shorten it"):
        read(tmp_path, f"image,v1,v2,v3,{'x' * 300}\na,1,2,3,4\n")


def test_names_of_columns(tmp_path):
    imported = read(tmp_path, ",image,v1,v2,v3,my theme/2,.hidden\n0,a,1,2,3,x,y\n", group_columns="my theme/2")
    assert dict(imported.table.columns) == {"my_theme_2": ("x",), "_.hidden": ("y",)}
    assert imported.table.groups == ("my_theme_2",)
    assert "column 1 has no name and is left out" in imported.report
    assert "column 'my theme/2' is called 'my_theme_2'" in imported.report


def test_other_separators(tmp_path):
    for separator, option in (("\t", "tab"), (";", ";"), ("=", "=")):
        assert len(read(tmp_path, COUNTS.replace(",", separator), separator=option).table) == 3


@pytest.mark.parametrize("row", [".5,.1,.1,9", "x,.3,.5,9", ".2,.3,.5,0"])
def test_nothing_left(tmp_path, row):
    with pytest.raises(AnnotationError, match="no photo with usable votes is left"):
        read(tmp_path, f"image,c1,c2,c3,total\na,{row}\n", Problems(keep_going=True), fraction_columns="c*")


def test_photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "dir").mkdir(parents=True)
    for name in ("a.jpg", "dir/c.webp"):
        (folder / name).touch()
    imported = read(tmp_path, COUNTS, images=folder)
    assert imported.table.images == ("a.jpg", "", "dir/c.webp")
    assert imported.table.image_path(2) == folder / "dir" / "c.webp"
    assert imported.report[-1] == f"photos: 2 in {folder}, 1 missing: b.PNG"
    (folder / "dir" / "c.png").touch()
    with pytest.raises(UsageError, match=r"photo 'dir/c' could be dir/c\.png or dir/c\.webp"):
        read(tmp_path, COUNTS, images=folder)


def test_parquet_is_csv(tmp_path):
    frame = pl.DataFrame(
        {
            "image": ["a.jpg", "b.PNG", "dir/c"],
            "v1": [1, 0, 5],
            "v2": pl.Series([2, 0, 0], dtype=pl.Float32),
            "v3": [3, 4, 1],
            "theme": pl.Series(["sea", "sky", None], dtype=pl.Categorical),
            "taken": pl.Series([0, 1, 2], dtype=pl.Duration("ms")),
            "box": [[1], [2], [3]],
        }
    )
    frame.write_parquet(tmp_path / "labels.bin")  # told by its content, not by its name
    imported = read_table(tmp_path / "labels.bin", Problems())
    np.testing.assert_array_equal(imported.table.votes, read(tmp_path, COUNTS).table.votes)
    assert dict(imported.table.columns) == {"theme": ("sea", "sky", ""), "taken": ("0", "1", "2")}
    assert "column 'box' holds lists or bytes and is left out" in imported.report
    frame.with_columns(v3=pl.Series([3.0, float("nan"), 1.0])).write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(AnnotationError, match=r"bad\.parquet: row 2: expected a whole number >= 0 in column 'v3'"):
        read_table(tmp_path / "bad.parquet", Problems())
    (tmp_path / "text.parquet").write_text(COUNTS)
    with pytest.raises(AnnotationError, match="expected csv or Parquet"):
        read_table(tmp_path / "text.parquet", Problems())
    pl.DataFrame({"image": ["a", "a"], "v1": [1, 1], "v2": [1, 1], "v3": [1, 1]}).write_parquet(tmp_path / "twice")
    with pytest.raises(AnnotationError, match="row 2: photo 'a' appears twice: first on row 1"):
        read_table(tmp_path / "twice", Problems())
    pl.DataFrame({"image": ["a"], " x": [1], "x": [2]}).write_parquet(tmp_path / "names")
    with pytest.raises(AnnotationError, match="column 'x' appears more than once"):
        read_table(tmp_path / "names", Problems())


def test_values():
    assert parse_values("1:7").tolist() == list(range(1, 8))
    assert parse_values("0:1:0.1").tolist() == pytest.approx(np.linspace(0, 1, 11))
    assert parse_values("1, 1.5,2").tolist() == [1, 1.5, 2]
    for text in ("", "1", "1:", "7:1", "1:2:0", "1:2:0.3", "1:2:3:4", "1,3,4", "2,1", "a,b", "0:1e9", "nan,1"):
        with pytest.raises(UsageError, match="expected FIRST:LAST"):
            parse_values(text)


def test_expand():
    names = ("image", "v10", "v2", "v1", "1", "2", "s_1.0", "s_1.5")
    assert expand(names, "v*") == ("v1", "v2", "v10")
    assert expand(names, "v1..v2") == ("v1", "v2")
    assert expand(names, "1..2, v10") == ("1", "2", "v10")
    assert expand(names, "s_*") == ("s_1.0", "s_1.5")


SHARES = "image,c1,c2,c3,total\na,.2,.3,.5,9\nb,.1,.1,.8,3\n"
MEANS = "image,mean,sd,total\na.jpg,2.5,.8,3\nb,4,0,2\n"


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([COUNTS, RATINGS, SHARES, MEANS]),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
)
def test_any_damage_is_a_defect_or_harmless(tmp_path_factory, text, changes):
    data = text.encode()
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length :]
    file = tmp_path_factory.mktemp("damaged") / "labels.csv"
    file.write_bytes(data)
    options = TableOptions(values="1:5" if text == MEANS else None)
    for keep_going in (False, True):
        try:
            imported = read_table(file, Problems(keep_going=keep_going), options)
        except MilnetError:
            continue
        save_table(imported.table, file.parent / "data", inputs=imported.inputs, overwrite=True)
        assert load_table(file.parent / "data")[0].ids == imported.table.ids


def test_ratings_one_by_one_are_the_votes(test_data: Path):
    """Two files of the same data, read by two readers."""
    folder = test_data / "data" / "oasis"
    oasis = read_oasis(folder, Problems()).table
    imported = read_dataset("table", folder / "ratings.csv", Problems(), TableOptions(images=folder / "images"))
    assert "129,267 ratings by 757 raters" in imported.report
    table = imported.table.take([imported.table.ids.index(photo) for photo in oasis.ids])
    assert table.ids == oasis.ids and len(imported.table) == 677
    np.testing.assert_array_equal(table.votes, oasis.votes)
    assert [table.image_path(row) for row in range(677)] == [oasis.image_path(row) for row in range(677)]
    counts = read_dataset("table", folder / "votes.csv", Problems()).table
    np.testing.assert_array_equal(counts.votes, oasis.votes)
