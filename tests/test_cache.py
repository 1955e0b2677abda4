"""Nothing is computed twice: by content and model, whatever the file is called, whenever the run was stopped."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import made
from milnet.cache import Cache, Kept, cache_file, state_of
from milnet.checkpoints import save_model
from milnet.errors import ArtifactError
from milnet.extraction import Extractor
from milnet.features import load_feature_set
from milnet.files import Scored, score_files, see_files
from milnet.outputs import columns
from milnet.preprocess import Preprocess
from milnet.recipe import Recipe
from milnet.recipes import fit
from milnet.scoring import Score, Scorer, Seen
from milnet.signals import measure
from milnet.splits import Split
from milnet.storing import extract


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made_here = Cache(tmp_path / "cache.sqlite")
    yield made_here
    made_here.close()


def contents(cache: Cache, *photos: Path) -> list[str]:
    return [content.digest for content in cache.contents(photos)]


def test_content(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read once, and again when it was changed; what cannot be read has no content."""
    read: list[Path] = []
    from milnet import cache as module

    monkeypatch.setattr(
        module, "digest_file", lambda path, original=module.digest_file: read.append(path) or original(path)
    )
    one, other, same = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    same.write_bytes(b"one")
    first = contents(cache, one, other, same)
    assert first[0] == first[2] != first[1] and all(len(digest) == 64 for digest in first)
    assert len(read) == 3
    assert contents(cache, one, other, same) == first
    assert len(read) == 3
    before = one.stat()
    one.write_bytes(b"eno")  # same size, and the time is put back: the time of the change of its entry tells
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents(cache, one)[0] not in first
    moved = tmp_path / "folder"
    moved.mkdir()
    other.rename(moved / "renamed")
    assert contents(cache, moved / "renamed") == [first[1]]
    os.mkfifo(tmp_path / "pipe")  # would wait for ever
    assert contents(cache, tmp_path / "gone", tmp_path, tmp_path / "pipe") == ["", "", ""]
    assert state_of(tmp_path / "gone") == ""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.jpg"))
    odd.write_bytes(b"odd")
    assert contents(cache, odd) == contents(cache, odd) != [""]


def test_what_was_put_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.sqlite"
    cache = Cache(path)
    numbers = np.random.default_rng(0).normal(size=50).astype(np.float32)
    notes: dict[str, Any] = {"taken": 1.5, "signals": None}
    cache.put_features("c", "b", Kept(numbers, "pixels", notes))
    cache.put_features("c", "wide", Kept(None, "pixels", {}))
    cache.put_score("c", "m", {"score": 0.1 + 0.2})
    cache.put_score("d", "m", {"score": 1})  # closing commits, too
    cache.close()
    cache = Cache(path)
    found = cache.features("c", "b")
    assert found is not None and found.numbers is not None
    np.testing.assert_array_equal(found.numbers, numbers)
    assert (found.pixels, found.notes) == ("pixels", notes)
    wide = cache.features("c", "wide")
    assert wide is not None and wide.numbers is None
    assert cache.score("c", "m") == {"score": 0.1 + 0.2}
    assert cache.score("c", "other") is cache.score("x", "m") is cache.features("c", "m") is None
    counts = cache.counts()
    assert (counts["photos"], counts["backbones"], counts["models"]) == (2, {"b": 1, "wide": 1}, {"m": 2})
    cache.close(remove=True)
    assert not list(path.parent.iterdir())


def test_pruning(cache: Cache, tmp_path: Path) -> None:
    photos = [tmp_path / name for name in "abc"]
    for photo in photos:
        photo.write_text(photo.name)
    digests = contents(cache, *photos)
    for digest in digests:
        cache.put_features(digest, "b", Kept(None, "", {}))
        for model in ("m1", "m2"):
            cache.put_score(digest, model, {})
    photos[0].unlink()
    shutil.copy(photos[1], tmp_path / "copy")
    contents(cache, tmp_path / "copy")
    photos[1].unlink()  # its copy is still there
    everything = cache.rows()
    assert everything == {"files": 4, "features": 3, "scores": 6}
    assert cache.prune(missing=True, dry_run=True) == {"files": 2, "features": 1, "scores": 2}
    assert cache.rows() == everything
    assert cache.prune(missing=True) == {"files": 2, "features": 1, "scores": 2}
    assert cache.score(digests[0], "m1") is None
    assert cache.score(digests[1], "m1") == {}
    assert cache.prune(model="m2") == {"files": 0, "features": 0, "scores": 2}
    assert cache.prune(unused=0)["scores"] == 0  # all was used today
    cache._execute("UPDATE scores SET used = used - 10 WHERE content = ?", (digests[1],))
    cache._execute("UPDATE features SET used = used - 10")
    assert cache.features(digests[2], "b") is not None  # looked at today
    assert cache.prune(unused=10) == {"files": 0, "features": 0, "scores": 0}
    assert cache.prune(unused=9) == {"files": 0, "features": 1, "scores": 1}


def test_many_begin_at_once(tmp_path: Path) -> None:
    """Processes that find no cache make one together; killed half-way, what is there is no hindrance."""
    for round_ in range(10):
        path = tmp_path / str(round_)
        with ThreadPoolExecutor(4) as executor:
            assert list(executor.map(lambda _, path=path: bool(Cache(path).rows()), range(4))) == [True] * 4


def test_when_it_cannot_be_written_the_work_goes_on(cache: Cache) -> None:
    cache._database.execute(f"PRAGMA max_page_count = {cache._database.execute('PRAGMA page_count').fetchone()[0] + 2}")
    for i in range(200):
        cache.put_features(str(i), "b", Kept(np.zeros(500, np.float32), "", {}))
    assert "cannot be written (database or disk is full)" in cache.trouble
    assert cache.features("0", "b") is not None  # what was kept before is there
    held = Cache(cache.path)
    held._database.execute("BEGIN IMMEDIATE")
    cache.trouble = ""
    cache._database.execute("PRAGMA busy_timeout = 10")
    cache.put_score("c", "m", {})
    assert "another program holds it, try again later" in cache.trouble
    held.close()


def test_metadata_alone(cache: Cache, tmp_path: Path) -> None:
    """A file whose metadata we change stays known; one that somebody else changed meanwhile does not."""
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"pixels")
    (digest,) = contents(cache, photo)
    cache.put_score(digest, "m", {"score": 1})
    with cache.pixels_stay(photo):
        photo.write_bytes(b"metadata, pixels")
    (changed,) = contents(cache, photo)
    assert changed != digest and cache.score(changed, "m") == {"score": 1}
    photo.write_bytes(b"other pixels")
    with cache.pixels_stay(photo):
        photo.write_bytes(b"metadata, other pixels")
    assert cache.score(contents(cache, photo)[0], "m") is None


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database at all, but a text of some length" * 10)
    with pytest.raises(ArtifactError, match=r"cannot be used as a cache.*remove it and run again"):
        Cache(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE accounts (name TEXT)")
    other.close()
    with pytest.raises(ArtifactError, match="is no cache of this milnet"):
        Cache(tmp_path / "other")
    Cache(tmp_path / "newer").close()
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ArtifactError, match="format 99, expected 1"):
        Cache(tmp_path / "newer")


def test_a_damaged_entry_is_made_again(cache: Cache) -> None:
    cache.put_score("c", "m", {"score": 1})
    cache.put_features("c", "b", Kept(None, "", {}))
    for table in ("score", "feature"):
        column = "score" if table == "score" else "notes"
        cache._execute(f"UPDATE {table}s SET {column} = '{{\"half'")
    assert cache.score("c", "m") is cache.features("c", "b") is None


def test_two_processes_may_use_it_at_once(cache: Cache) -> None:
    """What one has put the other sees at once; nobody waits."""
    other = Cache(cache.path)
    cache.put_score("c", "m", {"score": 1})
    other.put_score("d", "m", {"score": 2})
    assert other.score("c", "m") == {"score": 1} and cache.score("d", "m") == {"score": 2}
    other.close()


def test_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILNET_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "cache.sqlite"


# ---- scoring with it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on one small backbone, `one` and `two`, and twelve photos in `new`."""
    from milnet.backbones import load_backbone

    folder = tmp_path_factory.mktemp("cached")
    table = replace(made.table(40), image_root=folder / "photos")
    made.photo_folder(folder / "photos", table)
    extractor = Extractor.build(load_backbone("pocket"), Preprocess(size=64), workers=0)
    extract(table, folder / "data" / "features" / "f", extractor, weights="cached")
    features = load_feature_set(folder / "data", table)
    rows = np.arange(len(table))
    for name, recipe in (("one", "votes"), ("two", "single")):
        recipe = Recipe(name=recipe, model=recipe, width=8, epochs=3, patience=3, batch=16, calibration_folds=2)  # type: ignore[arg-type]
        save_model(fit(recipe, table, features, Split(rows, rows[:0]), 0, calibrate=True), folder / name)
    (folder / "new").mkdir()
    for i in range(12):
        made.photo(1000 + i, *[(96, 72), (72, 96), (160, 64)][i % 3]).save(folder / "new" / f"n{i:02}.png")
    return folder


@pytest.fixture
def photos(place: Path, tmp_path: Path) -> list[Path]:
    shutil.copytree(place / "new", tmp_path / "new")
    return sorted((tmp_path / "new").iterdir())


def same(one: list[Score], other: list[Score]) -> None:
    """Equal but for the last bits, which depend on the photos that are judged together."""
    assert [score.photo for score in one] == [score.photo for score in other]
    for a, b in zip(one, other, strict=True):
        assert [r.id for r in a.references] == [r.id for r in b.references]
        assert (a.stars, a.signals) == (b.stars, b.signals)
        for name in ("score", "low", "high", "spread", "percentile", "folder_percentile", "unlike", "own", "rest"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-6), name


def test_only_what_is_new_goes_through_the_backbone(place: Path, photos: list[Path], cache: Cache) -> None:
    scorer = Scorer.load(place / "one", workers=0)
    expected = score_files(scorer, photos)
    assert (len(expected.scores), expected.forward) == (12, 12)
    part = score_files(scorer, photos[:7], cache)
    assert part.forward == 7
    whole = score_files(scorer, photos, cache)
    assert whole.forward == 5
    same(whole.scores, expected.scores)
    again = score_files(scorer, photos, cache)
    assert (again.scores, again.forward) == (whole.scores, 0)

    made.photo(5000).save(photos[2])  # changed
    photos[3].rename(photos[3].with_name("moved.png"))
    photos[3] = photos[3].with_name("moved.png")
    shutil.copy(photos[4], photos[4].with_name("copied.png"))
    photos.append(photos[4].with_name("copied.png"))
    changed = score_files(scorer, photos, cache)
    assert changed.forward == 1
    assert [score.photo for score in changed.scores] == [str(photo) for photo in photos]
    fresh = score_files(scorer, photos)
    same(changed.scores, fresh.scores)
    assert changed.scores[2].score != expected.scores[2].score


def test_another_model_on_the_same_backbone_needs_no_pass(place: Path, photos: list[Path], cache: Cache) -> None:
    score_files(Scorer.load(place / "one", workers=0), photos, cache)
    two = Scorer.load(place / "two", workers=0)
    found = score_files(two, photos, cache)
    assert found.forward == 0
    same(found.scores, score_files(two, photos).scores)
    assert {score.model for score in found.scores} == {two.digest}


def test_a_score_of_another_version_is_made_again(place: Path, photos: list[Path], cache: Cache) -> None:
    scorer = Scorer.load(place / "one", workers=0)
    expected = score_files(scorer, photos, cache).scores
    cache._execute('UPDATE scores SET score = replace(score, \'"milnet": "\', \'"milnet": "older\')')
    assert score_files(scorer, photos, cache).forward == 0  # of the numbers that are there
    known = cache.score(next(iter(cache.contents(photos[:1]))).digest, scorer.digest)
    assert known is not None and known["milnet"] == expected[0].milnet


def test_copies_go_through_once(place: Path, photos: list[Path], cache: Cache) -> None:
    copies = []
    for i in range(3):
        copies.append(photos[0].with_name(f"copy{i}.png"))
        shutil.copy(photos[0], copies[-1])
    scorer = Scorer.load(place / "one", workers=0)
    found = score_files(scorer, [*photos[:2], *copies], cache)
    assert found.forward == 2
    assert all(replace(score, photo=str(photos[0])) == found.scores[0] for score in found.scores[2:])
    assert [Path(score.photo).name for score in found.scores] == ["n00.png", "n01.png", *(c.name for c in copies)]
    assert score_files(scorer, [photos[0], photos[0]], cache).scores == score_files(scorer, photos[:1], cache).scores
    bad = [photos[0].with_name(f"bad{i}.png") for i in range(2)]
    for path in bad:
        path.write_bytes(b"no photo")
    failed = score_files(scorer, [*bad, photos[0]], cache)
    assert [failure.photo for failure in failed.failures] == [str(path) for path in bad]
    assert len(failed.scores) == 1 and failed.forward == 0


def test_whatever_stops_it_what_was_made_is_kept(place: Path, photos: list[Path], tmp_path: Path) -> None:
    scorer = Scorer.load(place / "one", workers=0, batch=2)

    def stop(done: int, total: int, what: str) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache = Cache(tmp_path / "c")
        score_files(scorer, [*photos, *photos[:0]], cache, progress=stop)
    reader = Cache(tmp_path / "c")  # as another process sees it
    rest = score_files(scorer, photos, reader)
    assert rest.forward <= 4
    same(rest.scores, score_files(scorer, photos).scores)
    cache.close()
    reader.close()


def test_a_copy_of_a_file_that_goes_has_its_own_chance(place: Path, photos: list[Path], cache: Cache) -> None:
    copy = photos[0].with_name("copy.png")
    shutil.copy(photos[0], copy)
    scorer = Scorer.load(place / "one", workers=0)
    original = scorer.see

    def see(items: Any) -> Any:
        def going() -> Any:
            for key, source in items:
                photos[0].unlink(missing_ok=True)
                yield key, source

        yield from original(going())

    scorer.see = see  # type: ignore[method-assign]
    found = score_files(scorer, [photos[0], copy], cache)
    assert [failure.photo for failure in found.failures] == [str(photos[0])]
    assert [score.photo for score in found.scores] == [str(copy)]


def test_more_pixels_than_allowed_are_refused_though_they_are_known(
    place: Path, photos: list[Path], cache: Cache
) -> None:
    score_files(Scorer.load(place / "one", workers=0), photos[:2], cache)
    strict = score_files(Scorer.load(place / "one", workers=0, max_pixels=10), photos[:2], cache)
    assert (len(strict.failures), strict.scores) == (2, [])


def test_a_file_that_changes_while_it_is_read_is_not_kept(place: Path, photos: list[Path], cache: Cache) -> None:
    scorer = Scorer.load(place / "one", workers=0)
    original = scorer.see

    def see(items: Any) -> Any:
        for key, result in original(items):
            os.utime(photos[0], ns=(1, 1))
            yield key, result

    scorer.see = see  # type: ignore[method-assign]
    assert score_files(scorer, photos[:2], cache).forward == 2
    scorer.see = original  # type: ignore[method-assign]
    assert score_files(scorer, photos[:2], cache).forward == 1


def test_a_changed_file_does_not_stand_in_for_its_copy(
    place: Path, photos: list[Path], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file changes while it is judged, and a copy of what it was comes after it: both have a score."""
    copy = photos[0].with_name("z-copy.png")
    shutil.copy(photos[0], copy)
    scorer = Scorer.load(place / "one", workers=0)
    original = cache.contents

    def contents(files: Any) -> Any:
        for content in original(files):
            yield replace(content, state="before it changed") if content.photo == photos[0] else content

    monkeypatch.setattr(cache, "contents", contents)
    for work in (score_files, lambda *given: see_files(*given)):
        for order in ([photos[0], copy, photos[1]], [photos[0], photos[1], copy]):
            found = work(scorer, order, cache)
            names = [Path(score.photo) for score in found.scores] if isinstance(found, Scored) else list(found[0])
            assert sorted(names) == sorted(order)


def test_seeing_without_judging(place: Path, photos: list[Path], cache: Cache) -> None:
    """The numbers of files, from the cache where it knows them; a later score needs no forward pass."""
    scorer = Scorer.load(place / "one", workers=0)
    photos.append(photos[0].with_name("bad.png"))
    photos[-1].write_bytes(b"no photo")
    seen, failures = see_files(scorer, photos, cache)
    assert list(seen) == photos[:-1]
    assert [failure.photo for failure in failures] == [str(photos[-1])]
    for key, result in scorer.see((photo, photo) for photo in photos[:-1]):
        assert isinstance(result, Seen)
        np.testing.assert_array_equal(seen[key].nodes, result.nodes)
        assert seen[key].pixels == result.pixels
    scored = score_files(scorer, photos, cache)
    assert scored.forward == 0
    same(scored.scores, score_files(scorer, photos).scores)
    again, _ = see_files(scorer, photos, cache)
    assert all(np.array_equal(again[photo].nodes, seen[photo].nodes) for photo in seen)


def test_bursts_and_technical_values(place: Path, tmp_path: Path, cache: Cache) -> None:
    """Photos of one thing within seconds are a group, with a place in it; the cache knows that, too."""
    photos = []
    for thing in range(2):
        picture = made.photo(70 + thing, 400, 300)
        for shot in range(3):
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 12:{10 * thing:02}:{2 * shot:02}"
            photos.append(tmp_path / f"{thing}{shot}.jpg")
            picture.crop((4 * shot, 0, 380 + 4 * shot, 300)).save(photos[-1], exif=exif, quality=90)
    photos.append(tmp_path / "alone.jpg")
    made.photo(70, 400, 300).save(photos[-1], quality=90)  # no time: it stands alone
    scorer = Scorer.load(place / "one", workers=0)
    found = score_files(scorer, photos, cache).scores
    assert [score.group for score in found] == [1, 1, 1, 2, 2, 2, None]
    for group in (found[:3], found[3:6]):
        assert sorted(score.rank or 0 for score in group) == [1, 2, 3]
        assert [score.keep for score in group] == [score.rank == 1 for score in group]
        best = max(group, key=lambda score: score.score)
        assert best.rank == 1
    assert (found[-1].group, found[-1].rank, found[-1].keep) == (None, None, None)
    for score, photo in zip(found, photos, strict=True):
        with Image.open(photo) as image:
            assert score.signals == measure(image.convert("RGB"), image.size)
            assert (score.signals.width, score.signals.height) == image.size
    again = score_files(scorer, photos, cache)
    assert (again.scores, again.forward) == (found, 0)
    assert [score.group for score in score_files(scorer, photos[:1], cache).scores] == [None]  # the others are not here
    other = score_files(Scorer.load(place / "two", workers=0), photos, cache)
    assert ([score.group for score in other.scores], other.forward) == ([1, 1, 1, 2, 2, 2, None], 0)
    rows = [score.row() for score in found]
    assert list(rows[0]) == columns(scorer.values.tolist())
    assert rows[0]["width"] == 380 and rows[0]["keep"] in (True, False)
