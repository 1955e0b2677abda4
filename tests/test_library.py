"""Which files a user means: folders with links, loops and odd entries, patterns, lists in every form."""

from __future__ import annotations

import glob
import io
import os
import sys
import time
from pathlib import Path

import pytest

from milnet import heif, library, raw
from milnet.errors import UsageError
from milnet.library import Library, find_photos, photos_below

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links and names")
needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder"
)


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(found: Library, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in found.photos]


def failed(found: Library) -> dict[str, str]:
    return {Path(error.file).name: error.reason for error in found.failures}


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_order_and_what_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "b.JPG", "a.png", "B.jpg", "notes.txt", "a.xmp", "sub/c.webp", "sub/a/d.gif", "z.jpg/e.jpg")
    put(
        tmp_path, ".hidden.png", "._a.png", ".thumbnails/t.jpg", "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "#recycle/r.jpg"
    )
    put(tmp_path, "$RECYCLE.BIN/r.jpg", "Catalog Previews.lrdata/p.jpg", "__MACOSX/m.jpg")
    put(tmp_path, "My.photoslibrary/originals/0/o.jpg", "My.photoslibrary/resources/derivatives/o.jpg")
    found = find_photos([tmp_path])
    assert names(found, tmp_path) == [
        "B.jpg", "a.png", "b.JPG", "My.photoslibrary/originals/0/o.jpg", "sub/c.webp", "sub/a/d.gif", "z.jpg/e.jpg",
    ]  # fmt: skip
    assert not found.failures
    assert found.skipped == {"hidden": 3, "folders of other programs": 6, "other files": 2}
    assert photos_below(tmp_path) == list(found.photos)
    named = find_photos(
        [tmp_path / ".thumbnails", tmp_path / ".hidden.png", tmp_path / "@eaDir", tmp_path / "notes.txt"]
    )
    assert names(named, tmp_path) == [
        ".thumbnails/t.jpg", ".hidden.png", "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "notes.txt",
    ]  # fmt: skip


@needs_links
def test_links_and_loops(tmp_path: Path) -> None:
    put(tmp_path, "lib/z/photo.jpg", "lib/m/other.jpg", "elsewhere/far.jpg")
    lib = tmp_path / "lib"
    (lib / "a").symlink_to(lib / "z")  # comes first by name, and is not the photo's own place
    (lib / "m/up").symlink_to(lib)
    (lib / "m/self").symlink_to("self")
    (lib / "m/self.jpg").symlink_to("self.jpg")
    (lib / "out").symlink_to(tmp_path / "elsewhere")
    (lib / "b.jpg").symlink_to("z/photo.jpg")
    (lib / "c.jpg").symlink_to("../elsewhere/far.jpg")
    (lib / "gone.jpg").symlink_to("nowhere.jpg")
    (lib / "gone").symlink_to("nowhere")
    found = find_photos([lib])
    assert names(found, lib) == ["m/other.jpg", "z/photo.jpg", "out/far.jpg"]
    reasons = failed(found)
    assert reasons.pop("gone.jpg") == "is a link to a file that does not exist"
    assert reasons.pop("self.jpg") == "is a loop of links"
    assert not reasons
    # through links alone
    assert names(find_photos([lib / "c.jpg", lib / "b.jpg", lib / "out", lib / "z"]), lib) == ["c.jpg", "b.jpg"]
    around = lib / "m/up/m/up/z/../z/photo.jpg"
    assert find_photos([around, lib / "z/photo.jpg"]).photos == (around,)


@needs_links
def test_what_is_no_file(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null.png").symlink_to("/dev/null")
    found = find_photos([tmp_path])
    assert names(found, tmp_path) == ["a.jpg"]
    assert failed(found) == dict.fromkeys(("pipe.jpg", "null.png"), "is not a regular file")
    assert failed(find_photos([tmp_path / "pipe"])) == {"pipe": "is not a regular file"}


@needs_permissions
def test_folders_without_permission(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        found = find_photos([tmp_path])
        assert names(found, tmp_path) == ["a.jpg"]
        assert failed(found) == {"closed": "no permission to list this folder"}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "bad/b.jpg", "closed/c.jpg", "d/e.jpg")
    listing = os.scandir

    def scandir(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        if folder.name == "bad":
            raise OSError(5, "Input/output error")
        return listing(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_photos([tmp_path])
    assert names(found, tmp_path) == ["a.jpg", "d/e.jpg"]
    assert failed(found)["closed"] == "no permission to list this folder"
    assert failed(found)["bad"].startswith("cannot be opened (")
    assert photos_below(tmp_path) == list(found.photos)


def test_what_an_extra_would_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "a.NEF", "b.jpg", "b.nef", "c.heic")
    monkeypatch.setattr(heif, "is_available", lambda: True)
    monkeypatch.setattr(raw, "is_available", lambda: True)
    assert names(find_photos([tmp_path]), tmp_path) == ["a.NEF", "a.jpg", "b.jpg", "b.nef", "c.heic"]
    monkeypatch.setattr(heif, "is_available", lambda: False)
    monkeypatch.setattr(raw, "is_available", lambda: False)
    found = find_photos([tmp_path])
    assert names(found, tmp_path) == ["a.jpg", "b.jpg"]
    assert (found.skipped["heif"], found.skipped["raw"]) == (1, 2)
    assert found.notes == (
        "1 HEIC file was left out: pip install 'milnet[heif]' to read such files",
        "2 RAW files were left out: pip install 'milnet[raw]' to read such files",
    )
    assert names(find_photos([tmp_path / "a.NEF"]), tmp_path) == ["a.NEF"]  # named: it fails with the reason
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    kinds = "expected JPEG, PNG, WebP, AVIF, TIFF or GIF files"
    with pytest.raises(UsageError, match=rf"no photos in .*: {kinds}; 1 HEIC file was left out: .*; 2 RAW files were "):
        find_photos([tmp_path])


def test_many_files(tmp_path: Path) -> None:
    """10,000 files in 100 folders in well under the time that one photo needs."""
    for folder in range(100):
        (tmp_path / f"{folder:02}").mkdir()
        for file in range(100):
            (tmp_path / f"{folder:02}/{file:03}.jpg").touch()
    began = time.process_time()
    found = find_photos([tmp_path])
    assert time.process_time() - began < 3
    assert list(found.photos) == sorted(found.photos)
    assert len(found.photos) == 10_000


def test_deep_folders(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "a.jpg").touch()
    assert len(find_photos([tmp_path]).photos) == 1


# ---- arguments and patterns ------------------------------------------------------------------------------------------


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "lib/a.jpg", "lib/b.txt", "lib/a.xmp", "home/h.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert [str(p) for p in find_photos(["lib/b.txt", "lib", "./lib/../lib/a.jpg"]).photos] == [
        str(Path("lib/b.txt")), str(Path("lib/a.jpg")),
    ]  # fmt: skip
    assert find_photos(["~/h.jpg"]).photos == (tmp_path / "home/h.jpg",)
    for missing in ("none.jpg", "lib/*.png", "~nobody-here/x.jpg", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match="there is no such file, folder or pattern"):
            find_photos(["lib", missing])
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(heif, "is_available", lambda: True)
    monkeypatch.setattr(raw, "is_available", lambda: True)
    message = "no photos in empty: expected JPEG, PNG, WebP, AVIF, TIFF, GIF, HEIC or RAW files"
    with pytest.raises(UsageError, match=f"^{message}$"):
        find_photos(["empty"])
    with pytest.raises(UsageError, match=r"^no photos were named: expected "):
        find_photos()
    assert find_photos(["lib/a.jpg", "lib/a.xmp"]).skipped == {"sidecars": 1}  # as folder/* names them
    with pytest.raises(UsageError, match=r"no photos in lib/a\.xmp"):
        find_photos(["lib/a.xmp"])


PATTERNS = ["*.jpg", "**/*.jpg", "a/**/*.jpg", "?/b/*", "a/[!b]*", "**/b", "**/.h*", "*/*", "**/**/*.png", "a/b/**"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_against_glob(pattern: str, absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/c/4.jpg", "a/5.png", "b/b/6.txt", ".h/7.jpg", "a/.h.jpg")
    monkeypatch.chdir(tmp_path)
    text = str(tmp_path / pattern) if absolute else pattern
    expected = {Path(p) for p in glob.glob(text, recursive=True)}  # noqa: PTH207
    found = library._expand(Path(text))
    assert found == sorted(found)
    if pattern.endswith("**"):  # the folder, with what is below it, instead of everything one by one
        assert found == [Path(text).parent]
    else:
        assert set(found) == expected


@needs_links
def test_patterns_end_at_loops(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    for link in ("a/x", "a/y", "b/x", "b/y"):
        (tmp_path / link).symlink_to(tmp_path)
    assert names(find_photos([tmp_path / "**/*.jpg"]), tmp_path) == ["a/1.jpg", "b/2.jpg"]
    assert names(find_photos([tmp_path / "**"]), tmp_path) == ["a/1.jpg", "b/2.jpg"]


@needs_links
def test_odd_names(tmp_path: Path) -> None:
    odd = ["[1].jpg", "a*.jpg", "ünïcode 写真.jpg", "two\nlines.jpg", " .jpg", "-x.jpg", "q?.jpg"]
    put(tmp_path, *odd)
    latin = os.fsdecode(b"caf\xe9.jpg")
    put(tmp_path, latin)
    assert names(find_photos([tmp_path]), tmp_path) == sorted([*odd, latin])
    (tmp_path / os.fsdecode(b"gone\xff.jpg")).symlink_to("nowhere")
    (failure,) = find_photos([tmp_path]).failures
    assert failure.file == f"{tmp_path}/gone\\xff.jpg"
    for name in [*odd, latin]:  # as it is before it is a pattern
        assert names(find_photos([tmp_path / name]), tmp_path) == [name]


# ---- lists -----------------------------------------------------------------------------------------------------------


@needs_links
@pytest.mark.parametrize("form", ["lines", "windows", "nul", "nul at the end", "utf-16", "no end"])
def test_lists(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "b c.txt", "lib/d.jpg", "é*.jpg")
    wanted = ["é*.jpg", "a.jpg", "b c.txt", "none.jpg", "lib", "a.jpg"]
    ends = {"windows": "\r\n", "nul": "\0", "nul at the end": "\0"}.get(form, "\n")
    text = ends.join(["", *wanted, " "]) if form != "no end" else ends.join(wanted)
    data = text.encode("utf-16" if form == "utf-16" else "utf-8-sig" if form == "windows" else "utf-8")
    (tmp_path / "list").write_bytes(data + (b"\0" if form == "nul at the end" else b""))
    monkeypatch.chdir(tmp_path)
    found = find_photos(files_from="list")
    assert names(found, tmp_path) == ["é*.jpg", "a.jpg", "b c.txt", "lib/d.jpg"]
    assert failed(found) == {"none.jpg": "does not exist"}
    assert names(find_photos(["a.jpg"], files_from=tmp_path / "list"), tmp_path)[0] == "a.jpg"


@needs_links
def test_a_list_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "two\nlines.jpg", os.fsdecode(b"caf\xe9.jpg"))
    paths = [os.fsencode(tmp_path) + b"/two\nlines.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\0".join(paths))))
    assert [os.fsencode(path) for path in find_photos(files_from="-").photos] == paths


@pytest.mark.parametrize("content", [b"", b"\n\r\n \n", b"\0", b"\xef\xbb\xbf", b"\xff\xfe\n\0"])
def test_an_empty_list(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was new, which is no error; a folder without photos beside it still is."""
    (tmp_path / "list").write_bytes(content)
    assert find_photos(files_from=tmp_path / "list") == Library((), (), {})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert find_photos(files_from="-") == Library((), (), {})
    put(tmp_path, "a.jpg")
    assert find_photos([tmp_path / "a.jpg"], files_from=tmp_path / "list").photos == (tmp_path / "a.jpg",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"^no photos in .*empty: expected"):
        find_photos([tmp_path / "empty"], files_from=tmp_path / "list")


def test_wrong_lists(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the list .*none cannot be read: "):
        find_photos(files_from=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text(f"\n{tmp_path / 'empty'}\n")  # a path, but no photo
    with pytest.raises(UsageError, match=r"^no photos in the list .*list: expected JPEG"):
        find_photos(files_from=tmp_path / "list")
    with pytest.raises(UsageError, match=r"^no photos in .*empty, the list .*list: expected JPEG"):
        find_photos([tmp_path / "empty"], files_from=tmp_path / "list")
    (tmp_path / "list").write_bytes(b"\xff\xfea")
    with pytest.raises(UsageError, match=r"^the list .*list is damaged: "):
        find_photos(files_from=tmp_path / "list")
    (tmp_path / "list").write_text("none.jpg\n" + "x" * 5000)
    found = find_photos(files_from=tmp_path / "list")
    assert not found.photos
    assert [error.reason[:16] for error in found.failures] == ["does not exist", "cannot be opened"]
