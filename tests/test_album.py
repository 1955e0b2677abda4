"""Where the photos of a pool lie: found by name and pixels, remembered, and shown only while they are the same."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import made
from milnet.album import known_photos, match_photos, places_file, remember, thumbnail
from milnet.checkpoints import save_model
from milnet.errors import ArtifactError, UsageError
from milnet.images import open_photo
from milnet.pool import RatedPool
from milnet.recipe import load_recipe
from milnet.recipes import fit
from milnet.splits import Split
from test_cli import milnet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of the test's own."""
    monkeypatch.setenv("MILNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pool(ids: Sequence[str], pixels: Sequence[str]) -> RatedPool:
    """A pool with these photos; nothing else of it matters here."""
    n = len(ids)
    nothing = np.zeros((n, 1), np.float32)
    return RatedPool(
        tuple(ids), tuple(pixels), ("",) * n, np.full((n, 2), 0.5), np.ones(n), nothing, nothing, np.arange(n)
    )


def save(path: Path, seed: int) -> str:
    """Write a picture; returns the digest of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.photo(seed).save(path)
    return open_photo(path).digest


def test_names(tmp_path: Path) -> None:
    """By stem, by file name, by the path below the folder, of another table, and whatever the capitals and accents."""
    folder = tmp_path / "photos"
    files = {
        "stem": "stem.png",
        "whole.png": "whole.png",
        "in/deep/er": "in/deep/er.png",
        "deeper": "in/deep/deeper.png",
        "a.b": "a.b.png",
        "other:7": "7.png",
        "Upper": "uPPer.PNG",
        "caf\u00e9": "cafe\u0301.png",
        "two": "x/two.png",
        "Acorns1": "Acorns 1.png",  # as OASIS is published
    }
    digests = [save(folder / name, seed) for seed, name in enumerate(files.values())]
    save(folder / "a" / "two.png", 99)  # the same name, another photo: looked at first, and not taken
    (folder / "notes.txt").write_text("no photo")
    matched = match_photos(pool(list(files), digests), folder)
    assert matched.found == {d: (folder / name).resolve() for d, name in zip(digests, files.values(), strict=True)}
    assert all(path.is_absolute() for path in matched.found.values())
    assert matched.other == matched.missing == matched.unreadable == ()


def test_what_is_not_found(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    good, cropped = save(folder / "good.png", 1), save(folder / "cropped.png", 2)
    made.photo(2).crop((0, 0, 50, 50)).save(folder / "cropped.png")
    hidden = [save(folder / name, 3 + i) for i, name in enumerate((".hidden.png", ".folder/hidden2.png"))]
    save(folder / "undigested.png", 5)
    (folder / "broken.jpg").write_bytes(b"no image")
    renamed = save(folder / "new name.png", 6)
    calls: list[tuple[int, int]] = []
    ids = ["good", "cropped", ".hidden", "hidden2", "undigested", "broken", "old name", ""]
    matched = match_photos(
        pool(ids, [good, cropped, *hidden, "", "f" * 64, renamed, "e" * 64]),
        folder,
        lambda done, total, what: calls.append((done, total)),
    )
    assert matched.found == {good: (folder / "good.png").resolve()}
    assert matched.other == ("cropped",)
    assert matched.unreadable == ("broken",)
    assert matched.missing == (".hidden", "hidden2", "undigested", "old name", "")
    assert calls == [(i + 1, 8) for i in range(8)]


def test_only_what_fits_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {name: save(tmp_path / f"{name}.png", i) for i, name in enumerate("abc")}
    opened: list[str] = []

    def spy(path: Path) -> object:
        opened.append(path.name)
        return open_photo(path)

    monkeypatch.setattr("milnet.album.open_photo", spy)
    assert list(match_photos(pool(["b"], [digests["b"]]), tmp_path).found) == [digests["b"]]
    assert opened == ["b.png"]


def test_a_photo_that_a_pool_has_twice(tmp_path: Path) -> None:
    digest = save(tmp_path / "one.png", 1)
    matched = match_photos(pool(["one", "twin"], [digest, digest]), tmp_path)
    assert (len(matched.found), matched.missing) == (1, ())


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none: expected a folder with photos; there is none"):
        match_photos(pool([], []), tmp_path / "none")
    save(tmp_path / "a.png", 1)
    with pytest.raises(UsageError, match="there is a file"):
        match_photos(pool([], []), tmp_path / "a.png")


def test_remembering(tmp_path: Path, home: Path) -> None:
    assert known_photos() == {}
    first, second = save(tmp_path / "1" / "a.png", 1), save(tmp_path / "1" / "b.png", 2)
    remember(match_photos(pool(["a", "b"], [first, second]), tmp_path / "1").found)
    assert places_file() == home / "photos.json"
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    third = save(tmp_path / "2" / "c \u2603.png", 3)
    remember(match_photos(pool(["b", "c \u2603"], [second, third]), tmp_path / "2").found)
    assert known_photos() == {
        first: tmp_path / "1" / "a.png",
        second: tmp_path / "2" / "b.png",
        third: tmp_path / "2" / "c \u2603.png",
    }
    assert [path.name for path in home.iterdir()] == ["photos.json"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b""])
def test_damaged_places(tmp_path: Path, home: Path, content: bytes) -> None:
    home.mkdir()
    places_file().write_bytes(content)
    digest = save(tmp_path / "photos" / "a.png", 1)
    matched = match_photos(pool(["a"], [digest]), tmp_path / "photos")
    for action in (known_photos, lambda: remember(matched.found)):
        with pytest.raises(
            ArtifactError, match=r"photos\.json.*cannot be read.*remove it and run `milnet pool images`"
        ):
            action()
    assert places_file().read_bytes() == content
    places_file().unlink()
    remember(matched.found)
    assert len(known_photos()) == 1


def test_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    digest = save(path, 1)  # 96 x 72
    small = thumbnail(path, digest, 48)
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (48, 36), "RGB")
        expected = np.asarray(made.photo(1).resize((48, 36), Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(image, float) - expected).mean() < 4
    large = thumbnail(path, None, 500)
    assert large is not None
    with Image.open(io.BytesIO(large)) as image:
        assert image.size == (96, 72)


def test_a_changed_photo_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    digest = save(path, 1)
    pixels = np.array(made.photo(1))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert thumbnail(path, digest, 48) is None
    assert thumbnail(path, None, 48) is not None
    path.write_bytes(b"no image")
    assert thumbnail(path, digest, 48) is thumbnail(path, None, 48) is None
    path.unlink()
    assert thumbnail(path, digest, 48) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, some of them spoilt, and a `model` whose pool they are."""
    folder = tmp_path_factory.mktemp("album")
    table = made.table(30)
    made.photo_folder(folder / "photos", table)
    digests = tuple(open_photo(folder / "photos" / name).digest for name in table.images)
    features = replace(made.features(table), pixels=digests)
    split = Split(np.arange(30), np.arange(0))
    save_model(fit(load_recipe("single", ["epochs=1"]), table, features, split, 0, calibrate=False), folder / "model")
    made.photo(99).save(folder / "photos" / "photo003.png")
    (folder / "photos" / "photo004.png").write_bytes(b"no image")
    for i in range(5, 12):
        (folder / "photos" / f"photo{i:03}.png").unlink()
    return folder


def test_the_command(place: Path, home: Path) -> None:
    done = milnet("pool", "images", place / "model", place / "photos")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"21 of the pool's 30 photos found in {place / 'photos'}; {home / 'photos.json'}")
    assert lines[1] == "1 have a file of their name with other pixels (saved anew, or cropped): photo003"
    assert lines[2] == "1 have a file of their name that cannot be read: photo004"
    assert lines[3].startswith("7 have no file of their name: photo005, photo006, ")
    assert lines[3].endswith("photo009, ...")
    assert done.stderr == ""
    known = known_photos()
    assert len(known) == 21
    assert all(open_photo(path).digest == digest for digest, path in known.items())


def test_the_command_in_json(place: Path) -> None:
    result = json.loads(milnet("pool", "images", place / "model", place / "photos", "--json").stdout)
    assert {key: result[key] for key in ("pool", "found", "other", "unreadable")} == {
        "pool": 30, "found": 21, "other": ["photo003"], "unreadable": ["photo004"],
    }  # fmt: skip
    assert result["missing"] == [f"photo{i:03}" for i in range(5, 12)]
    assert result["photos"] == {digest: str(path) for digest, path in known_photos().items()}


def test_the_command_finds_nothing(place: Path, tmp_path: Path, home: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = milnet("pool", "images", place / "model", tmp_path / "empty", code=1)
    assert done.stderr.startswith("none of the pool's 30 photos found in ")
    assert done.stdout.startswith("30 have no file of their name: photo000, ")
    assert not home.exists()
    assert "expected a folder with photos" in milnet("pool", "images", place / "model", tmp_path / "no", code=2).stderr
    assert "does not exist" in milnet("pool", "images", tmp_path / "no", place / "photos", code=2).stderr


def test_oasis(test_data: Path) -> None:
    """The published photos against a pool made of them, one of which is a PNG with transparency in a .jpg."""
    from milnet.annotations import Problems
    from milnet.datasets import read_dataset

    table = read_dataset("oasis", test_data / "data" / "oasis", Problems()).table
    rows = [*range(0, len(table), 45), table.ids.index("Monkey3")]
    ids = [table.ids[row] for row in rows]
    digests = [open_photo(table.image_path(row)).digest for row in rows]
    folder = test_data / "data" / "oasis" / "images"
    with (folder / "Monkey3.jpg").open("rb") as file:
        assert file.read(4) == b"\x89PNG"
    matched = match_photos(pool([*ids, "Nobody1"], [*digests, "f" * 64]), folder)
    assert matched.found == {digest: (folder / f"{i}.jpg").resolve() for i, digest in zip(ids, digests, strict=True)}
    assert (matched.other, matched.missing, matched.unreadable) == ((), ("Nobody1",), ())
    assert thumbnail(matched.found[digests[-1]], digests[-1], 160) is not None
