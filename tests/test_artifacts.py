"""Folders with a manifest: complete or absent, what they were made from, and every way they can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnet.artifacts import (
    FORMATS,
    Manifest,
    atomic_path,
    canonical_json,
    digest_array,
    digest_file,
    digest_text,
    new_folder,
    plain_name,
    read_array,
    read_lines,
    read_manifest,
    strict,
    verify_files,
    write_array,
    write_lines,
    write_manifest,
    write_text,
)
from milnet.errors import ArtifactError, UsageError
from milnet.version import __version__


def artifact(folder: Path, **changes: Any) -> Manifest:
    """A small data folder with one file."""
    folder.mkdir(exist_ok=True)
    write_array(folder / "votes.npy", np.arange(6.0))
    manifest = Manifest(
        **{
            "kind": "data",
            "config": {"name": "small", "threshold": 5.0},
            "files": {"votes.npy": digest_file(folder / "votes.npy")},
            "inputs": {"labels": "abc"},
            "counts": {"photos": 6},
            "notes": {"date": "2026-01-01"},
            **changes,
        }
    )
    write_manifest(folder, manifest)
    return manifest


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the text of a manifest, as a hand would."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "file.txt"
    for old in (None, "old"):
        if old is not None:
            write_text(target, old)
        with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
            temporary.write_text("half")
            assert temporary.parent == target.parent  # on the same disk, so that the rename is one step
            assert not target.exists() or target.read_text() == old
            raise ZeroDivisionError
        assert [path.name for path in target.parent.iterdir()] == ([] if old is None else ["file.txt"])
    assert target.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX")
def test_written_files_are_ordinary(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
        with new_folder(tmp_path / "folder", "data") as building:
            write_text(building / "b", "text")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), max_size=8))
@settings(deadline=None)
def test_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    """Any text comes back, other line separators of Unicode and empty lines too."""
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    write_lines(path, lines)
    assert read_lines(path) == tuple(lines)
    assert path.read_bytes() == "".join(f"{line}\n" for line in lines).encode()


@pytest.mark.parametrize("line", ["a\nb", "a\rb", "\n", "a\r\n"])
def test_line_breaks_are_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"ids\.txt: the value of row 2 .* line break: {re.escape(repr(line))}"):
        write_lines(tmp_path / "ids.txt", ["x", "y", line])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.float16), np.array([True, False])])
def test_arrays(array: np.ndarray, tmp_path: Path) -> None:
    write_array(tmp_path / "a.npy", array)
    for mmap in (False, True):
        found = read_array(tmp_path / "a.npy", mmap=mmap and array.size > 0)
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert isinstance(read_array(tmp_path / "a.npy", mmap=array.size > 0), np.memmap) == (array.size > 0)


def test_arrays_that_could_run_code(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    assert not any(tmp_path.iterdir())
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"a\.npy is not a readable \.npy array"):
        read_array(tmp_path / "a.npy")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for read in (read_array, read_lines):
        with pytest.raises(ArtifactError, match="none is missing: the folder is incomplete; make it again"):
            read(tmp_path / "none")
    write_array(tmp_path / "a.npy", np.arange(100.0))
    whole = (tmp_path / "a.npy").read_bytes()
    for data in (b"", whole[:40], whole[:-8], b"\x93NUMPY", b"hello" * 20):
        (tmp_path / "a.npy").write_bytes(data)
        for mmap in (False, True):
            with pytest.raises(ArtifactError, match=r"a\.npy is not a readable \.npy array .*make the folder again"):
                read_array(tmp_path / "a.npy", mmap=mmap)
    (tmp_path / "ids.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ArtifactError, match=r"ids\.txt is not UTF-8 text"):
        read_lines(tmp_path / "ids.txt")


# ---- digests ---------------------------------------------------------------------------------------------------------


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xc3\xa9")
    expected = hashlib.sha256(b"caf\xc3\xa9").hexdigest()
    assert digest_file(tmp_path / "a") == digest_text("café") == expected
    array = np.arange(12.0).reshape(3, 4)
    assert digest_array(array) == digest_array(np.asfortranarray(array)) == digest_array(np.repeat(array, 2, 0)[::2])
    others = [array.reshape(4, 3), array.astype(np.float32), array + 1, array.T]
    assert len({digest_array(x) for x in (array, *others)}) == 5


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, "é"], "a": 1.5}) == '{"a":1.5,"b":[1,"é"]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_the_digest_is_of_the_content() -> None:
    base = Manifest("data", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "2"})
    same = [
        Manifest("data", {"b": 2, "a": 1}, {"x": "1"}, {"labels": "2"}),
        Manifest("data", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "2"}, {"n": 3}, {"date": "today", "path": "/x"}),
        Manifest("data", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "2"}, milnet="99.0"),
    ]
    others = [
        Manifest("model", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "2"}),
        Manifest("data", {"a": 1, "b": 3}, {"x": "1"}, {"labels": "2"}),
        Manifest("data", {"a": 1, "b": 2}, {"y": "1"}, {"labels": "2"}),
        Manifest("data", {"a": 1, "b": 2}, {"x": "2"}, {"labels": "2"}),
        Manifest("data", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "3"}),
        Manifest("data", {"a": 1, "b": 2}, {"x": "1"}, {"labels": "2"}, format=2),
    ]
    assert {manifest.digest for manifest in same} == {base.digest}
    assert len({manifest.digest for manifest in (base, *others)}) == 7
    assert len(base.digest) == 64 and set(base.digest) <= set("0123456789abcdef")


# ---- reading a manifest ----------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    manifest = artifact(tmp_path / "data")
    assert read_manifest(tmp_path / "data") == read_manifest(tmp_path / "data", "data") == manifest
    assert manifest.milnet == __version__
    verify_files(tmp_path / "data", manifest)
    edit(tmp_path / "data", lambda data: data["notes"].update(date="2027-01-01"))
    edit(tmp_path / "data", lambda data: data["counts"].update(photos=7))
    assert read_manifest(tmp_path / "data", "data").digest == manifest.digest  # only told to people


def test_folders_that_are_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected a milnet data folder, but .*none does not exist"):
        read_manifest(tmp_path / "none", "data")
    with pytest.raises(ArtifactError, match=r"expected a milnet folder, but .* has no manifest\.json \(unfinished"):
        read_manifest(tmp_path)
    artifact(tmp_path / "data")
    with pytest.raises(ArtifactError, match=r"expected a milnet model folder, but .*data is a 'data' folder"):
        read_manifest(tmp_path / "data", "model")


def test_formats_to_come(tmp_path: Path) -> None:
    newest = FORMATS["data"]
    artifact(tmp_path / "data", format=newest + 1, milnet="98.7")
    with pytest.raises(
        ArtifactError,
        match=rf"data format {newest + 1} was written by milnet 98\.7; this is milnet {re.escape(__version__)}, which "
        rf"reads up to {newest}: upgrade milnet, or make the folder again",
    ):
        read_manifest(tmp_path / "data", "data")
    artifact(tmp_path / "data", kind="dreams")
    with pytest.raises(ArtifactError, match=r"dreams format 1 .*upgrade milnet"):
        read_manifest(tmp_path / "data")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["config"].update(name="large"),
        lambda data: data["files"].update({"votes.npy": "0" * 64}),
        lambda data: data["inputs"].update(labels="abd"),
        lambda data: data["inputs"].clear(),
        lambda data: data.update(digest="0" * 64),
    ],
)
def test_changed_by_hand(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    artifact(tmp_path / "data")
    edit(tmp_path / "data", change)
    with pytest.raises(ArtifactError, match=r"manifest\.json was changed by hand: its digest does not fit its content"):
        read_manifest(tmp_path / "data", "data")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*Manifest.__dataclass_fields__, "digest"]


@given(json_values | st.dictionaries(st.sampled_from(FIELDS), json_values), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_json_is_told_apart(tmp_path_factory: pytest.TempPathFactory, data: Any, whole: bool) -> None:
    """A manifest with foreign values is an ArtifactError, never anything else, and never passes."""
    folder = tmp_path_factory.getbasetemp() / "any"
    artifact(folder)
    good = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    changed = data if whole or not isinstance(data, dict) else {**good, **data}
    (folder / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")
    told = {"counts", "notes", "milnet"}  # not part of the digest
    if isinstance(changed, dict) and all(changed.get(name) == good[name] for name in good.keys() - told):
        return
    with pytest.raises(ArtifactError):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"kind": "data"}', '{"kind": 1, "digest": ""}'])
def test_what_is_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a milnet manifest .*make the folder again"):
        read_manifest(tmp_path)


def test_files_are_compared(tmp_path: Path) -> None:
    manifest = artifact(tmp_path / "data")
    (tmp_path / "data" / "more.txt").write_text("files of others do no harm")
    verify_files(tmp_path / "data", manifest)
    file = tmp_path / "data" / "votes.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"votes\.npy does not have the content .*changed or dam"):
        verify_files(tmp_path / "data", manifest)
    verify_files(tmp_path / "data", manifest, names=["other.npy"])
    with pytest.raises(ArtifactError, match="changed or damaged"):
        verify_files(tmp_path / "data", manifest, names=["votes.npy"])
    file.unlink()
    with pytest.raises(ArtifactError, match=r"votes\.npy is missing: the folder is incomplete"):
        verify_files(tmp_path / "data", manifest)


# ---- new folders -----------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    write_text(folder / "file", text)
    write_manifest(folder, Manifest("data", {"text": text}, {}))


def test_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data"
    with new_folder(target, "data") as building:
        fill(building, "one")
        assert not target.exists()
    assert (target / "file").read_text() == "one" and names(target.parent) == ["data"]
    with (
        pytest.raises(ArtifactError, match=r"data exists already: choose another.* --overwrite"),
        new_folder(target, "data"),
    ):
        pytest.fail("the work must not begin")
    with new_folder(target, "data", overwrite=True) as building:
        fill(building, "two")
        assert (target / "file").read_text() == "one"  # replaced only when complete
    assert (target / "file").read_text() == "two" and names(target.parent) == ["data"]


def test_a_folder_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with pytest.raises(ZeroDivisionError), new_folder(target, "data") as building:
        fill(building, "half")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with new_folder(target, "data") as building:
        fill(building, "one")
    with pytest.raises(KeyboardInterrupt), new_folder(target, "data", overwrite=True) as building:
        fill(building, "two")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "one" and names(tmp_path) == ["data"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with new_folder(tmp_path / "data", "data") as building:
        fill(building, "one")
    assert names(tmp_path) == ["data"] and (tmp_path / "data" / "file").exists()


def test_what_others_made_is_never_removed(tmp_path: Path) -> None:
    photos, file = tmp_path / "photos", tmp_path / "file"
    photos.mkdir()
    (photos / "cat.jpg").write_text("a cat")
    file.write_text("text")
    for target in (photos, file):
        with pytest.raises(ArtifactError, match="exists already"), new_folder(target, "data"):
            pytest.fail("the work must not begin")
        message = r"was not made by milnet \(it has no manifest\.json\), so --overwrite does not replace it"
        with pytest.raises(ArtifactError, match=message), new_folder(target, "data", overwrite=True):
            pytest.fail("the work must not begin")
    assert (photos / "cat.jpg").read_text() == "a cat" and file.read_text() == "text"
    assert names(tmp_path) == ["file", "photos"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    manifest = Manifest(kind="data", config={}, files={})
    with new_folder(tmp_path / "d", "data") as building:
        write_manifest(building, manifest)
    other = r"expected a milnet model folder, but .* is a 'data' folder"
    with pytest.raises(ArtifactError, match=other), new_folder(tmp_path / "d", "model", overwrite=True):
        pytest.fail("the work must not begin")
    assert read_manifest(tmp_path / "d", "data").digest == manifest.digest


@pytest.mark.parametrize("name", ["..", "../x", "/abs", "a/b", ".hidden", "", "a b"])
def test_a_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(UsageError, match=r"--name .*: expected letters"):
        plain_name(name, "--name")
    assert plain_name("timm-x.y_1", "--name") == "timm-x.y_1"


def test_strict() -> None:
    assert strict({"a": [1.0, float("nan")], "b": (float("inf"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}
