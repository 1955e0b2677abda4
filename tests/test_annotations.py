"""The table of rated photos: what it refuses, what it computes, and the DATA folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.annotations import Problems, Table, load_table, save_table
from milnet.errors import AnnotationError, ArtifactError, NumericError, UsageError


def table(**changes: Any) -> Table:
    return Table(
        **{
            "name": "small",
            "ids": ("a", "b", "c"),
            "votes": np.array([[1.0, 0, 3, 0], [2, 2, 2, 2], [0, 0, 0, 5]]),
            "values": np.array([1.0, 1.5, 2.0, 2.5]),
            "columns": {"theme": ("x", "", "x"), "split": ("train", "train", "test")},
            "images": ("a.jpg", "sub/b.png", ""),
            "image_root": Path("/photos"),
            "groups": ("theme",),
            "threshold": 1.75,
            "side": ">",
            "source": {"format": "test"},
            **changes,
        }
    )


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    with pytest.raises(UsageError, match=r"expected votes of shape \(3, 4\) for 3 ids and 4 values, got \(3, 5\)"):
        table(votes=np.ones((3, 5)))
    with pytest.raises(UsageError, match=r"expected votes of shape \(3, 4\)"):
        table(votes=np.ones(3))
    with pytest.raises(UsageError, match="column 'theme' has 2 values for 3 photos"):
        table(columns={"theme": ("x", "y")})
    with pytest.raises(UsageError, match="column 'images' has 1 values for 3 photos"):
        table(images=("a.jpg",))
    assert len(table()) == 3 and table(images=()).images == ()


@pytest.mark.parametrize("values", [[1, 2, 3, 5], [4, 3, 2, 1], [2, 2, 2, 2], [1, 2, 3, np.nan]])
def test_values(values: list[float]) -> None:
    with pytest.raises(UsageError, match="expected at least 2 increasing, equally spaced values, got "):
        table(values=np.array(values, np.float64))


def test_one_value_is_no_scale() -> None:
    with pytest.raises(UsageError, match=r"at least 2 increasing, equally spaced values, got \[1\.0\]"):
        table(votes=np.ones((3, 1)), values=np.array([1.0]))


def test_ids_are_unique() -> None:
    with pytest.raises(UsageError, match="photo ids must be unique; more than once: b"):
        table(ids=("b", "a", "b"))


def test_groups_are_columns() -> None:
    with pytest.raises(UsageError, match="group column 'burst' is not a column; there are: theme, split"):
        table(groups=("burst",))
    with pytest.raises(UsageError, match="group column 'burst' is not a column; there are: none"):
        table(columns={}, groups=("burst",))


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [1, -1, 3, 2], [np.nan, 1, 1, 1], [np.inf, 0, 0, 0]])
def test_votes_that_are_no_distribution(bad: list[float], tmp_path: Path) -> None:
    votes = table().votes.copy()
    votes[1] = bad
    broken = table(votes=votes)
    with pytest.raises(NumericError, match="1 of 3 photos have no usable votes; the first is 'b': expected numb"):
        broken.check()
    with pytest.raises(NumericError, match="the first is 'b'"):
        save_table(broken, tmp_path / "data", inputs={})
    assert not any(tmp_path.iterdir())
    table().check()


# ---- what is computed ------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    found = table()
    assert found.totals.tolist() == [4, 8, 5]
    assert found.distributions.tolist() == [[0.25, 0, 0.75, 0], [0.25] * 4, [0, 0, 0, 1]]
    assert found.scores.tolist() == pytest.approx([1.75, 1.75, 2.5])
    assert found.spreads.tolist() == pytest.approx([(0.25 * 0.5625 + 0.75 * 0.0625) ** 0.5, 0.3125**0.5, 0])


@given(st.integers(1, 9), st.integers(2, 11), st.integers(0, 10**6))
@settings(deadline=None)
def test_against_the_votes_one_by_one(n: int, s: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    votes = generator.integers(0, 30, (n, s)).astype(np.float64)
    votes[np.arange(n), generator.integers(0, s, n)] += 1
    values = generator.normal() + generator.uniform(0.1, 2) * np.arange(s)
    found = Table("t", tuple(map(str, range(n))), votes, values)
    for row in range(n):
        each = np.repeat(values, votes[row].astype(int))
        assert found.scores[row] == pytest.approx(each.mean(), abs=1e-9)
        assert found.spreads[row] == pytest.approx(each.std(), abs=1e-7)  # the root of a small difference
        assert found.distributions[row].sum() == pytest.approx(1, abs=1e-12)


def test_columns() -> None:
    found = table()
    assert found.column("split") == ("train", "train", "test")
    assert found.rows_where("split", "train").tolist() == [0, 1]
    codes = found.codes("theme")
    assert codes[0] == codes[2] >= 0 and codes[1] == -1
    with pytest.raises(UsageError, match="there is no column 'burst'; there are: theme, split"):
        found.column("burst")
    with pytest.raises(UsageError, match="there is no column 'burst'; there are: none"):
        table(columns={}, groups=()).codes("burst")
    with pytest.raises(UsageError, match="no photo has split = 'valid'; there are: test, train"):
        found.rows_where("split", "valid")


def test_take() -> None:
    found = table().take([2, 0])
    assert found.ids == ("c", "a") and found.images == ("", "a.jpg")
    assert found.columns == {"theme": ("x", "x"), "split": ("test", "train")}
    np.testing.assert_array_equal(found.votes, table().votes[[2, 0]])
    assert (found.threshold, found.side, found.groups, found.name) == (1.75, ">", ("theme",), "small")
    assert table(images=()).take([1]).images == ()
    assert len(table().take([])) == 0
    with pytest.raises(UsageError, match="photo ids must be unique; more than once: a"):
        table().take([0, 0])


def test_image_paths() -> None:
    found = table()
    assert [found.image_path(row) for row in (0, 1)] == [Path("/photos/a.jpg"), Path("/photos/sub/b.png")]
    with pytest.raises(UsageError, match="the file of photo 'c' is not known: import the table again with --im"):
        found.image_path(2)
    with pytest.raises(UsageError, match="the file of photo 'a' is not known"):
        table(images=()).image_path(0)
    lost = table(image_root=None, images=("a.jpg", "/else/b.jpg", ""))
    assert lost.image_path(1) == Path("/else/b.jpg")
    with pytest.raises(UsageError, match="the folder of the photos is not known: pass --images DIR"):
        lost.image_path(0)


# ---- DATA ------------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    odd = table(ids=("ünïcode", " spaces ", "a,b;c"), columns={"theme": ("", "\u2028x", "\x85"), "split": ("",) * 3})
    for number, data in enumerate((table(image_root=tmp_path), odd, table(images=(), image_root=None))):
        folder = tmp_path / str(number)
        manifest = save_table(data, folder, inputs={"labels": "abc"})
        found, again = load_table(folder)
        assert again == manifest and manifest.inputs == {"labels": "abc"}
        assert found.ids == data.ids and found.columns == data.columns and found.groups == data.groups
        np.testing.assert_array_equal(found.votes, data.votes)
        np.testing.assert_array_equal(found.values, data.values)
        assert found.images == (data.images or ("", "", "")) and found.image_root == data.image_root
        assert (found.name, found.threshold, found.side, found.source) == ("small", 1.75, ">", {"format": "test"})
        assert manifest.counts == {"photos": 3, "values": 4, "votes": 17.0}


def test_the_digest_is_of_the_labels(tmp_path: Path) -> None:
    def digest(name: str, **changes: Any) -> str:
        return save_table(table(**changes), tmp_path / name, inputs={}).digest

    first = digest("a")
    assert digest("b", image_root=Path("/elsewhere")) == first  # the same photos in another place
    changes: list[dict[str, Any]] = [
        {"votes": table().votes + 1},
        {"threshold": 2.0},
        {"side": ">="},
        {"groups": ()},
        {"ids": ("a", "b", "d")},
        {"source": {"format": "other"}},
    ]
    assert len({first, *(digest(f"c{i}", **change) for i, change in enumerate(changes))}) == 7


@pytest.mark.parametrize("name", ["a/b", "", "..", ".hidden", "a b", "a\n"])
def test_column_names_are_file_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected letters, digits, '_', '-' or '\.'"):
        save_table(table(columns={"theme": ("x",) * 3, name: ("x",) * 3}), tmp_path / "data", inputs={})
    assert not any(tmp_path.iterdir())


def test_folders_that_do_not_hold_together(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save_table(table(), folder, inputs={})
    (folder / "ids.txt").write_text("a\nb\nz\n")
    with pytest.raises(ArtifactError, match=r"ids\.txt does not have the content its manifest names"):
        load_table(folder)
    assert load_table(folder, verify=False)[0].ids == ("a", "b", "z")
    (folder / "ids.txt").write_text("a\nb\n")
    with pytest.raises(ArtifactError, match=r"does not hold together \(expected votes of .*import it again"):
        load_table(folder, verify=False)
    (folder / "ids.txt").unlink()
    with pytest.raises(ArtifactError, match=r"ids\.txt is missing: the folder is incomplete"):
        load_table(folder, verify=False)
    with pytest.raises(ArtifactError, match="exists already"):
        save_table(table(), folder, inputs={})
    save_table(table(), folder, inputs={}, overwrite=True)
    assert load_table(folder)[0].ids == ("a", "b", "c")


# ---- defects ---------------------------------------------------------------------------------------------------------


def test_problems() -> None:
    with pytest.raises(AnnotationError, match=r"^votes\.csv, line 3: expected a number$") as caught:
        Problems().add("expected a number", file="votes.csv", line=3)
    assert (caught.value.file, caught.value.line, caught.value.reason) == ("votes.csv", 3, "expected a number")
    going = Problems(keep_going=True)
    going.add("one", file="a")
    going.add("two", file="b", line=1)
    assert [str(error) for error in going.found] == ["a: one", "b, line 1: two"]
