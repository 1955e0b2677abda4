"""AVA: its label file in both forms, its lists, its two splits."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.annotations import Problems, load_table, save_table
from milnet.datasets import AvaOptions, TableOptions, format_name, read_dataset
from milnet.datasets.ava import read_ava
from milnet.errors import AnnotationError, MilnetError, UsageError

ROWS = [
    "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396",
    "2 953958 10 7 15 26 26 21 10 8 1 2 15 21 1396",
    "3 954184 0 0 4 8 41 56 10 3 4 0 0 0 0",
    "4 954113 0 1 4 6 48 37 23 5 2 2 15 65 1396",
]
LABELS = "\n".join(ROWS) + "\n"
FRACTIONS = "953619 0 0 0 0 .5 .5 0 0 0 0 5.5\n7 0.1 0.1 0.1 0.1 0.1 0.1 0.1 0.1 0.1 0.1 5.5\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "AVA.txt").write_text(LABELS)
    (tmp_path / "aesthetics_image_lists").mkdir()
    (tmp_path / "aesthetics_image_lists" / "generic_test.jpgl").write_text("954184\n277832\n953958\n")
    (tmp_path / "ILG_train.txt").write_bytes(b"953619\r\n1\r\n953958\r\n")
    (tmp_path / "ILG_test.txt").write_bytes(b"954184\r\n")
    (tmp_path / "tags.txt").write_text("1 Abstract\n15 Nature\n21 Black and White\n22 Candid\n65 Insects, etc\n")
    return tmp_path


def test_the_official_split(folder):
    imported = read_dataset("ava", folder, Problems())
    table = imported.table
    assert table.ids == ("953619", "953958", "954184", "954113")
    assert table.votes[0].tolist() == [0, 1, 5, 17, 38, 36, 15, 6, 5, 1]
    assert table.values.tolist() == list(range(1, 11)) and table.threshold == 5 and table.side == ">="
    assert dict(table.columns) == {
        "split": ("train", "test", "test", "train"),
        "challenge": ("1396", "1396", "", "1396"),
        "tag1": ("Abstract", "Nature", "", "Nature"),
        "tag2": ("Candid", "Black and White", "", "Insects, etc"),
    }
    assert table.images[0] == "953619.jpg" and table.image_root is None
    assert sorted(imported.inputs) == ["labels", "tags", "test_list"]
    report = "\n".join(imported.report)
    assert "3 listed in generic_test.jpgl, 2 found in the labels, 1 missing: 277832" in report
    assert "(19,930)" in report and "training: the other 2 photos" in report
    assert table.source["protocol"] == "AVA 19928"
    assert table.source["test_ids_sha256"] == hashlib.sha256(b"953958\n954184\n").hexdigest()
    save_table(table, folder / "data", inputs=imported.inputs)
    assert load_table(folder / "data")[0].source == table.source


def test_the_split_of_ilgnet(folder):
    imported = read_dataset("AVA_19998", folder, Problems())
    assert imported.table.column("split") == ("train", "train", "test", "")
    assert imported.table.name == "ava" and imported.table.source["train_photos"] == 2
    assert "1 photos are in neither list" in imported.report
    assert sorted(imported.inputs) == ["labels", "tags", "test_list", "train_list"]


def test_names_of_formats():
    assert format_name("AVA_19928") == format_name("ava") == "ava-19928"
    assert format_name("Ava-ILG") == "ava-19998"
    with pytest.raises(UsageError, match=r"no format 'avb'; there are: table, oasis, ava-19928 \(ava\), ava-19998"):
        format_name("avb")
    with pytest.raises(UsageError, match="the format ava is read with AvaOptions, got TableOptions"):
        read_dataset("ava", Path(), Problems(), TableOptions())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.rstrip(),
        lambda data: data + b"\n \r\n\n",
        lambda data: data.replace(b" ", b"\t"),
        lambda data: data.replace(b" ", b"  ").replace(b"\n", b" \n "),
        lambda data: data.replace(b"954113", b"000954113"),
    ],
)
def test_harmless_differences(folder, change):
    plain = read_ava(folder, Problems()).table
    (folder / "AVA.txt").write_bytes(change(LABELS.encode()))
    table = read_ava(folder, Problems()).table
    assert table.ids == plain.ids and dict(table.columns) == dict(plain.columns)
    np.testing.assert_array_equal(table.votes, plain.votes)


def test_the_form_with_fractions(folder):
    (folder / "AVA.txt").write_text(FRACTIONS)
    (folder / "list.txt").write_text("7.jpg")
    table = read_ava(folder, Problems(), AvaOptions(test_list=folder / "list.txt")).table
    assert table.ids == ("953619", "7") and list(table.columns) == ["split"]
    assert table.scores.tolist() == pytest.approx([5.5, 5.5], abs=1e-12)
    assert table.totals.tolist() == pytest.approx([1, 1], abs=1e-12)


def test_photos_are_looked_for_once(folder):
    (folder / "images").mkdir()
    (folder / "images" / "954113.jpg").touch()
    (folder / "other").mkdir()
    imported = read_ava(folder, Problems())
    assert imported.table.images == ("", "", "", "954113.jpg")
    assert imported.table.image_path(3) == folder / "images" / "954113.jpg"
    assert "3 missing: 953619.jpg" in imported.report[-1]
    assert set(read_ava(folder, Problems(), AvaOptions(images=folder / "other")).table.images) == {""}
    with pytest.raises(UsageError, match="expected a folder of photos"):
        read_ava(folder, Problems(), AvaOptions(images=folder / "none"))


ROW = "3 954184 0 0 4 8 41 56 10 3 4 0 0 0 0"
DEFECTS = [
    (ROW + " 1", "expected 15 fields separated by blanks, got 16"),
    ("3 954184 0 0 4", "expected 15 fields separated by blanks, got 5"),
    ("", "expected 15 fields, got a blank line"),
    (ROW.replace("954184", "953619"), "image id 953619 appears twice: first on line 1"),
    (ROW.replace("56", "-56"), "at most 9 digits in field 8 (count of 6), got '-56'"),
    (ROW.replace("56", "1.5"), "in field 8 (count of 6), got '1.5'"),
    (ROW.replace("56", "1e3"), "got '1e3'"),
    (ROW.replace("56", "+3"), "got '+3'"),
    (ROW.replace("56", "1_0"), "got '1_0'"),
    (ROW.replace("56", "٣"), "got '٣'"),
    (ROW.replace("56", "5\0"), r"got '5\x00'"),
    (ROW.replace("56", "9" * 30), "got '9999"),
    (ROW.replace("954184", "x"), "in field 2 (image id), got 'x'"),
    ("3 954184 0 0 0 0 0 0 0 0 0 0 0 0 0", "expected at least one vote, got none"),
    (ROW.replace(" 56 ", "\u00a056 "), "expected fields separated by blanks"),
    (ROW.replace("56", "5\r6"), "got 16"),
]


@pytest.mark.parametrize(("line", "reason"), DEFECTS)
def test_defects_of_labels_name_the_line(folder, line, reason):
    (folder / "AVA.txt").write_text(LABELS.replace(ROW, line), newline="")
    with pytest.raises(AnnotationError) as caught:
        read_ava(folder, Problems())
    assert caught.value.line == 3 and reason in str(caught.value) and "AVA.txt, line 3: " in str(caught.value)
    problems = Problems(keep_going=True)
    assert read_ava(folder, problems).table.ids == ("953619", "953958", "954113")
    assert [(problem.line, reason in problem.reason) for problem in problems.found] == [(3, True)]


def test_bytes_that_are_not_text(folder):
    (folder / "AVA.txt").write_bytes(LABELS.encode().replace(b"954184", b"95\xff"))
    with pytest.raises(AnnotationError, match=r"line 3: .*got '95\\udcff'"):
        read_ava(folder, Problems())
    (folder / "AVA.txt").write_bytes(b"\n\r\n ")
    with pytest.raises(AnnotationError, match=r"AVA\.txt: expected labels, but the file is empty"):
        read_ava(folder, Problems())
    (folder / "AVA.txt").write_bytes(b"image,score\n\n" * 3)
    with pytest.raises(AnnotationError, match=r"line 1: expected 15 fields \(counts\) or 12 \(fractions and mean\)"):
        read_ava(folder, Problems())
    with pytest.raises(AnnotationError, match="no photo with usable votes is left"):
        read_ava(folder, Problems(keep_going=True))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7 0 0 0 0 .5 .4 0 0 0 0 5.5", "expected fractions that sum to 1 within 0.001, got 0.9"),
        ("7 0 0 0 0 .5 .5 0 0 0 0 5.6", "expected the mean of the fractions, 5.5000, in the last field, got 5.6"),
        ("7 0 0 0 -.5 .5 1 0 0 0 0 5.5", "expected fractions >= 0, got -0.5"),
        ("7 0 0 0 nan .5 .5 0 0 0 0 5.5", "expected a number in field 5, got 'nan'"),
        ("x 0 0 0 0 .5 .5 0 0 0 0 5.5", "as image id, got 'x'"),
        (ROW, "expected 12 fields separated by blanks, got 15"),
        ("7 0 0 0 0 .5 .5 0 0 0 0\u00a05.5", "expected fields separated by blanks"),
    ],
)
def test_defects_of_fractions_name_the_line(folder, line, reason):
    (folder / "AVA.txt").write_text(FRACTIONS.replace("\n7", f"\n{line}\n8", 1))
    options = AvaOptions(test_list=folder / "list.txt")
    (folder / "list.txt").write_text("8")
    with pytest.raises(AnnotationError) as caught:
        read_ava(folder, Problems(), options)
    assert caught.value.line == 2 and reason in str(caught.value)
    assert read_ava(folder, Problems(keep_going=True), options).table.ids == ("953619", "8")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("954184\nx1\n", 2, "expected one image id, got 'x1'"),
        ("954184\n1 2\n", 2, "expected one image id, got '1 2'"),
        ("954184\n\n954113\n", 2, "expected one image id, got ''"),
        ("954184\n954184.jpg\n", 2, "image id 954184 appears twice: first on line 1"),
    ],
)
def test_defects_of_lists_name_the_line(folder, text, line, reason):
    file = folder / "list.txt"
    file.write_text(text)
    with pytest.raises(AnnotationError) as caught:
        read_ava(folder, Problems(), AvaOptions(test_list=file))
    assert caught.value.line == line and reason in str(caught.value) and "list.txt" in str(caught.value)
    problems = Problems(keep_going=True)
    assert "954184" in read_ava(folder, problems, AvaOptions(test_list=file)).table.ids
    assert len(problems.found) == 1


def test_splits_that_cannot_be(folder):
    file = folder / "list.txt"
    file.write_text("953619\n954184\n")
    for keep_going in (False, True):
        with pytest.raises(
            AnnotationError, match=r"list\.txt, line 2: 1 photos are also in generic_test\.jpgl \(line 1\)"
        ):
            read_ava(folder, Problems(keep_going=keep_going), AvaOptions(train_list=file))
    file.write_text("1\n2\n")
    with pytest.raises(AnnotationError, match="none of its 2 ids is in the labels"):
        read_ava(folder, Problems(), AvaOptions(test_list=file))


@pytest.mark.parametrize(
    ("line", "reason"),
    [("Abstract", "expected the number of a tag and its name"), ("15 Sea", "tag 15 appears twice")],
)
def test_defects_of_tags_name_the_line(folder, line, reason):
    (folder / "tags.txt").write_text(f"15 Nature\n{line}\n")
    with pytest.raises(AnnotationError, match=rf"tags\.txt, line 2: {reason}"):
        read_ava(folder, Problems())
    imported = read_ava(folder, Problems(keep_going=True))
    assert imported.table.column("tag1") == ("1", "Nature", "", "Nature")
    assert any("keep their number: 1, 21, 22, 65" in line for line in imported.report)


def test_which_file(folder):
    (folder / "AVA_19928.txt").write_text(LABELS)
    with pytest.raises(
        UsageError, match=r"could be the labels: AVA\.txt, AVA_19928\.txt; say which with --labels FILE"
    ):
        read_ava(folder, Problems())
    assert len(read_ava(folder, Problems(), protocol="19998").table) == 4
    assert len(read_ava(folder / "AVA.txt", Problems()).table) == 4
    assert len(read_ava(folder, Problems(), AvaOptions(labels=folder / "AVA.txt")).table) == 4
    with pytest.raises(UsageError, match="the labels are named twice"):
        read_ava(folder / "AVA.txt", Problems(), AvaOptions(labels=folder / "AVA.txt"))
    with pytest.raises(UsageError, match=r"--labels .*none: there is no such file"):
        read_ava(folder, Problems(), AvaOptions(labels=folder / "none"))
    with pytest.raises(UsageError, match=r"expected the folder of AVA or its AVA\.txt"):
        read_ava(folder / "none", Problems())
    (folder / "ILG_train.txt").unlink()
    with pytest.raises(
        UsageError, match=r"expected the list of training photos in .* as ILG_train\.txt or train_19998"
    ):
        read_ava(folder / "AVA.txt", Problems(), protocol="19998")


def simple_reader(data: bytes) -> dict[str, list[int]] | None:
    """Another reader of the form with counts, field by field; None when it would not accept the file."""
    rows: dict[str, list[int]] = {}
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = [line[:-1] if line.endswith(b"\r") else line for line in data.split(b"\n")]
    while lines and not lines[-1].decode("utf-8", "replace").strip():
        lines.pop()
    for line in lines:
        fields = [field for field in line.replace(b"\t", b" ").split(b" ") if field]
        if len(fields) != 15 or any(len(f) > 9 or set(f) - set(b"0123456789") for f in fields):
            return None
        name, counts = str(int(fields[1])), [int(field) for field in fields[2:12]]
        if name in rows or not sum(counts):
            return None
        rows[name] = counts
    return rows or None


SMALL = "\r\n".join(ROWS[:3]).encode()


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SMALL)),
            st.integers(0, 4),
            st.one_of(st.binary(max_size=3), st.sampled_from([b" ", b"\n", b"\r\n", b"\t", b"0", b"9", b".", b"\0"])),
        ),
        max_size=3,
    )
)
def test_any_damage_is_a_defect_or_harmless(changes):
    """Nothing but MilnetError is raised, and what is accepted is what another reader accepts and reads."""
    data = SMALL
    for at, length, text in changes:
        data = data[:at] + text + data[at + length :]
    expected = simple_reader(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "AVA.txt").write_bytes(data)
        # A list that always has a photo in common with the labels, when they can be read at all.
        first = next(iter(expected), "1") if expected else "1"
        (folder / "generic_test.jpgl").write_text(f"{first}\n953619\n" if first != "953619" else "953619\n")
        try:
            table = read_ava(folder, Problems()).table
        except MilnetError:
            assert expected is None
        else:
            assert expected == {photo: votes.tolist() for photo, votes in zip(table.ids, table.votes, strict=True)}
        try:
            read_ava(folder, Problems(keep_going=True))
        except MilnetError:
            assert expected is None


def test_as_many_rows_as_the_release(tmp_path):
    n = 255_530
    counts = np.random.default_rng(0).integers(0, 60, (n, 10))
    counts[:, 4] += 1
    (tmp_path / "AVA.txt").write_text(
        "".join(f"{row + 1} {row + 53} {' '.join(map(str, counts[row]))} 1 22 1396\n" for row in range(n))
    )
    (tmp_path / "generic_test.jpgl").write_text("".join(f"{row}\n" for row in range(1000, 21000)))
    table = read_ava(tmp_path, Problems()).table
    np.testing.assert_array_equal(table.votes, counts)
    assert table.source["test_photos"] == 20_000 and table.source["train_photos"] == n - 20_000


def test_real_labels(test_data: Path):
    folder = test_data / "data" / "ava"
    official = read_ava(folder, Problems()).table
    ilg = read_ava(folder, Problems(), protocol="19998").table
    assert len(official) == len(ilg) == 48_604
    assert official.column("split").count("test") == 3_719
    assert (ilg.column("split").count("test"), ilg.column("split").count("train")) == (3_734, 41_440)
    assert (official.totals.min(), official.totals.max()) == (80, 549)
    raw = np.loadtxt(folder / "AVA_sample.txt", dtype=np.int64)
    np.testing.assert_array_equal(official.votes, raw[:, 2:12])
    assert official.ids == tuple(map(str, raw[:, 1]))
