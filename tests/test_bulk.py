"""Scores in shards: the same rows, to the last bit, as one process gives that holds all of them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image
from typer.testing import CliRunner

import made
import made_scenes
from milnet import bulk as module
from milnet import bursts, outputs
from milnet.annotations import Table
from milnet.artifacts import read_manifest, verify_files
from milnet.backbones import load_backbone
from milnet.bulk import score_all, write_folder
from milnet.cli import app
from milnet.errors import ArtifactError
from milnet.extraction import Extractor
from milnet.files import Scored, score_files
from milnet.outputs import select, write_scores
from milnet.preprocess import Preprocess
from milnet.scoring import Score, Scorer
from milnet.sources import DEADLY, Here, Photos, find_sources
from milnet.storing import extract

FIELDS = 0x9003  # DateTimeOriginal


def write_photos(folder: Path, count: int = 40) -> list[Path]:
    """Scenes, some of them several times within seconds, some without a time, one broken, two the same."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    for i in range(count):
        now += timedelta(seconds=2 if i % 4 else 600)
        image = made_scenes.scene(i // 4 * 5, 160, 120)
        exif = image.getexif()
        if i % 7:
            exif.get_ifd(0x8769)[FIELDS] = now.strftime("%Y:%m:%d %H:%M:%S")
        noisy = np.asarray(image).astype(int) + rng.integers(-3, 4, (120, 160, 3))
        name = folder / f"{(i * 7) % count:03}.jpg"  # in another order than the times
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(name, quality=90, exif=exif)
    shutil.copy(folder / "003.jpg", folder / "004.jpg")
    (folder / "010.jpg").write_bytes(b"broken")
    return sorted(folder.glob("*.jpg"))


def write(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def same(one: Sequence[Score], other: Sequence[Score]) -> None:
    """The same scores to 1e-5, which is what company changes; places, stars, bursts, references the same."""
    assert [score.photo for score in one] == [score.photo for score in other]
    for a, b in zip(one, other, strict=True):
        first, second = a.row(), b.row()
        assert [one.id for one in a.references] == [one.id for one in b.references]
        for name in first.keys() - {"references"}:
            if isinstance(first[name], float):
                assert first[name] == pytest.approx(second[name], abs=1e-5 if name == "score" else 1e-4), name
            else:
                assert first[name] == second[name], (a.photo, name)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load("pocket", workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "photos"
    write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def whole(scorer: Scorer, folder: Path) -> Scored:
    scored = score_files(scorer, sorted(folder.glob("*.jpg")))
    groups = {score.group for score in scored.scores} - {None}
    assert len(groups) > 3 and any(score.group is None for score in scored.scores)
    return scored


@dataclass
class Counting:
    """Works here, and counts; ends after so many pieces as a killed driver does, without a word."""

    pieces: int = 1 << 30
    rows: list[int] = field(default_factory=list)
    deadly: Sequence[int] = ()

    def run(self, state: Any, work: Any, rows: Sequence[int], item: Any, most: int) -> Iterator[Any]:
        rows = [row for row in rows if row not in self.deadly]
        # not in their order: the last pieces first
        made = list(Here().run(state, work, rows, item, most))[::-1]
        for done, (some, data) in enumerate(made):
            if done == self.pieces:
                raise KeyboardInterrupt
            self.rows += some
            yield some, data
        for row in self.deadly:
            yield [row], None


def test_the_same_as_at_once(
    scorer: Scorer, folder: Path, whole: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 6)  # bursts are found in several goes
    monkeypatch.setattr(module, "_SHARDS_READ", 2)
    photos = find_sources([folder]).photos
    made = score_all(scorer, photos, tmp_path / "one", Here())
    assert list(made.scores()) == whole.scores
    made = score_all(scorer, photos, tmp_path / "part", Counting(), most=7)
    same(list(made.scores()), whole.scores)
    assert list(made.failures) == whole.failures
    assert len(made) == len(whole.scores) and made.new == len(photos)
    least = float(np.mean(sorted(score.score for score in whole.scores)[15:17]))
    # 004 has the pixels of 003: which of the two is better is chance, and no more is asked of it
    unlike = lambda found: [score for score in found if Path(score.photo).name != "004.jpg"]  # noqa: E731
    for how in ({"min_score": least}, {"top": 4}, {"min_score": least, "top": 100}):
        same(unlike(made.scores(made.chosen(**how))), unlike(select(whole.scores, **how)))


def test_bursts_are_parted_at_pauses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 3)
    times = np.array([50.0, np.nan, 0, 10, 40, 1000, 2000, 2001, 2002, 5000, np.nan])
    parts = [part.tolist() for part in module._near_in_time(times)]
    assert parts == [[0, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert bursts.GAP >= 30.0
    assert not list(module._near_in_time(np.full(3, np.nan)))


def test_what_is_finished_is_not_made_again(scorer: Scorer, folder: Path, whole: Scored, tmp_path: Path) -> None:
    photos, part = find_sources([folder]).photos, tmp_path / "part"
    first = Counting(pieces=3)
    with pytest.raises(KeyboardInterrupt):
        score_all(scorer, photos, part, first, most=5)
    (part / ".000000000000-000000000005.parquet.x.tmp").write_bytes(b"half")
    second = Counting()
    told: list[tuple[int, int]] = []
    made = score_all(scorer, photos, part, second, most=4, progress=lambda done, total, _: told.append((done, total)))
    assert sorted(first.rows + second.rows) == list(range(len(photos))) and len(first.rows) == 15
    assert told[0] == (15, 40) and told[-1] == (40, 40)
    same(list(made.scores()), whole.scores)
    assert made.new == 25
    assert not list(part.glob(".*.tmp"))


def test_other_photos_or_options_are_refused(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    photos, part = find_sources([folder]).photos, tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        score_all(scorer, photos, part, Counting(pieces=0), most=5)
    fewer = Photos()
    fewer.add_file(photos.names[0], photos.names[0])
    with pytest.raises(ArtifactError, match=r"unfinished scores of other photos or with other options.*count: 40 -> 1"):
        score_all(scorer, fewer, part, Counting())
    other = Scorer(scorer.model, replace(scorer.nodes, batch=2), scorer.semantic, scorer.digest)
    with pytest.raises(ArtifactError, match=r"batch: 4 -> 2\), or remove that folder"):
        score_all(other, photos, part, Counting())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("-")
    with pytest.raises(ArtifactError, match="was not made by milnet, and unfinished scores would be kept there"):
        score_all(scorer, photos, tmp_path / "mine", Counting())


def test_other_pixels_of_the_same_names_are_refused(scorer: Scorer, tmp_path: Path) -> None:
    """Another column of a Parquet file, or the file written anew."""
    parquet = tmp_path / "a.parquet"
    pytest.importorskip("pyarrow")
    data = [write(made.photo(seed)) for seed in range(6)]
    polars.DataFrame({"image": data, "thumb": data[::-1]}).write_parquet(parquet)
    whole, other = (find_sources([parquet], image_column=column).photos for column in ("image", "thumb"))
    with pytest.raises(KeyboardInterrupt):
        score_all(scorer, whole, tmp_path / "part", Counting(pieces=1), most=2)
    with pytest.raises(ArtifactError, match="unfinished scores of other photos"):
        score_all(scorer, other, tmp_path / "part", Counting())
    os.utime(parquet, ns=(1, 1))
    with pytest.raises(ArtifactError, match="unfinished scores of other photos"):
        score_all(scorer, whole, tmp_path / "part", Counting())


def test_a_shard_elsewhere_that_is_written_anew_is_refused(scorer: Scorer, tmp_path: Path) -> None:
    """Names, places and sizes of its photos may all be the same; the size of the file or its time is not."""
    from milnet import sources

    pytest.importorskip("pyarrow")
    fsspec = pytest.importorskip("fsspec")
    data = [write(made.photo(seed)) for seed in range(6)]
    place, url = tmp_path / "a.parquet", f"file://{tmp_path}/a.parquet"
    polars.DataFrame({"image": data}).write_parquet(place)
    with pytest.raises(KeyboardInterrupt):
        score_all(scorer, find_sources([url]).photos, tmp_path / "part", Counting(pieces=1), most=2)
    assert sources.fingerprint(find_sources([url]).photos) == sources.fingerprint(find_sources([url]).photos)
    os.utime(place, ns=(1, 1))
    with pytest.raises(ArtifactError, match="unfinished scores of other photos"):
        score_all(scorer, find_sources([url]).photos, tmp_path / "part", Counting())
    memory = fsspec.filesystem("memory")
    try:
        found = []
        for some in (data, [*data[:5], data[5] + b"\0"]):  # what this file system knows of a file is its size
            polars.DataFrame({"image": some}).write_parquet(place)
            memory.pipe("/box/a.parquet", place.read_bytes())
            found.append(sources.fingerprint(find_sources(["memory://box/a.parquet"]).photos))
        assert found[0]["photos"] == found[1]["photos"] and found[0]["shards"] != found[1]["shards"]
    finally:
        memory.rm("/box", recursive=True)


def test_a_photo_that_got_lost_is_noticed(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    """Whatever has happened to the shards: nothing is left out, or counted twice, without a word."""
    photos, part = find_sources([folder]).photos, tmp_path / "part"
    score_all(scorer, photos, part, Counting(), most=20)
    shard = min(part.glob("*.parquet"))
    rows = polars.read_parquet(shard)
    for wrong in (rows[:-1], polars.concat([rows[:-1], rows[:1]])):
        wrong.write_parquet(shard)
        with pytest.raises(ArtifactError, match=r"each of 40 photos once, and [12] are missing"):
            score_all(scorer, photos, part, Counting())


def test_one_run_at_a_time(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    photos, part = find_sources([folder]).photos, tmp_path / "part"

    class Nested(Counting):
        def run(self, *inputs: Any) -> Any:
            with pytest.raises(ArtifactError, match=r"another run is writing to .*part: wait for it"):
                score_all(scorer, photos, part, Counting())
            yield from super().run(*inputs)

    assert len(score_all(scorer, photos, part, Nested())) == len(score_all(scorer, photos, part, Counting())) > 0


def test_a_damaged_shard_is_named(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    photos, part = find_sources([folder]).photos, tmp_path / "part"
    score_all(scorer, photos, part, Counting(), most=20)
    shard = min(part.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=f"{shard.name} cannot be read .*: remove it, and run the command again"):
        score_all(scorer, photos, part, Counting())
    shard.unlink()
    assert score_all(scorer, photos, part, Counting()).new == 20


def test_a_photo_that_nobody_can_work_on(scorer: Scorer, folder: Path, whole: Scored, tmp_path: Path) -> None:
    photos = find_sources([folder]).photos
    made = score_all(scorer, photos, tmp_path / "part", Counting(deadly=[20]), most=7)
    assert [failure.reason for failure in made.failures if failure.photo == photos.names[20]] == [DEADLY]
    expected = {score.photo: score.score for score in whole.scores if score.photo != photos.names[20]}
    assert {score.photo: score.score for score in made.scores()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_are_the_same(
    suffix: str, scorer: Scorer, folder: Path, whole: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = scorer.values.tolist()
    write_scores(tmp_path / f"whole{suffix}", whole.scores, values)
    made = score_all(scorer, find_sources([folder]).photos, tmp_path / "part", Here())
    monkeypatch.setattr(outputs, "_PART", 10)
    write_scores(tmp_path / f"parts{suffix}", made.scores(), values)
    if suffix == ".parquet":
        one, other = (polars.read_parquet(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
        assert one.equals(other) and one.schema == other.schema and len(one) == len(whole.scores)
    else:
        assert (tmp_path / f"whole{suffix}").read_bytes() == (tmp_path / f"parts{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", f"parts{suffix}", f"whole{suffix}"]


def test_a_folder_of_scores(
    scorer: Scorer, folder: Path, whole: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = score_all(scorer, find_sources([folder]).photos, tmp_path / "part", Here())
    monkeypatch.setattr(outputs, "_PART", 25)
    manifest = write_folder(tmp_path / "out", made, made.failures, made.chosen())
    assert manifest.config["rows"] == {"scores-00000.parquet": 25, "scores-00001.parquet": 14}
    assert read_manifest(tmp_path / "out", "scores") == manifest
    verify_files(tmp_path / "out", manifest)
    rows = polars.read_parquet(tmp_path / "out" / "*.parquet").to_dicts()
    assert rows == [score.row() for score in whole.scores]
    assert (tmp_path / "out" / "errors.csv").read_text().count("\n") == 2
    again = write_folder(tmp_path / "out", made, made.failures, made.chosen(top=3))  # takes its place
    assert again.counts["photos"] == 3 and again.digest != manifest.digest
    empty = write_folder(tmp_path / "none", made, (), made.chosen(min_score=100.0))
    assert empty.config["rows"] == {"scores-00000.parquet": 0}
    assert polars.read_parquet(tmp_path / "none" / "scores-00000.parquet").columns == manifest.config["columns"]


def test_the_command(folder: Path, whole: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tar shards without Ray: the same scores under other names; resumed after a kill; what cannot be is refused."""
    import tarfile

    monkeypatch.chdir(tmp_path)
    for number, names in enumerate((slice(0, 25), slice(25, 40))):
        with tarfile.open(f"t-{number}.tar", "w") as shard:
            for photo in sorted(folder.glob("*.jpg"))[names]:
                shard.add(photo, photo.name)
    run = CliRunner().invoke
    result = run(app, ["score", "t-{0..1}.tar", "--model", "pocket", "--workers", "1", "-o", "out"])
    assert result.exit_code == 1, result.output
    assert "39 photos scored" in result.output and "not scored: t-0.tar/010.jpg: not an image" in result.output
    rows = polars.read_parquet("out/*.parquet").to_dicts()
    assert [row["photo"].partition("/")[2] for row in rows] == [Path(score.photo).name for score in whole.scores]
    assert [row["score"] for row in rows] == pytest.approx([score.score for score in whole.scores], abs=1e-5)
    assert not list(tmp_path.glob(".*"))
    result = run(app, ["score", "t-0.tar", "t-1.tar", "--model", "pocket", "--top", "2", "--files", "-q"])
    best = sorted(whole.scores, key=lambda score: -score.score)[:2]
    assert [Path(line).name for line in result.stdout.split()] == [Path(score.photo).name for score in best]
    result = run(app, ["score", "t-1.tar", "--model", "pocket", "--json"])
    assert len(json.loads(result.stdout)["scores"]) == 15
    for arguments, text in (
        (["t-0.tar", "--report", "r.html"], "--report is for photos that are files here"),
        (["t-0.tar", "--xmp"], "score these with -o, and the chosen ones again as files"),
        (["x", "--address", "auto"], "--address and --ray-workers say how Ray works: pass --workers ray, too"),
        (["x", "--workers", "many"], "--workers many: expected a number of decoding threads, or ray"),
        ([str(folder), "-o", "out2"], "expected a name ending in"),
        (["t-0.tar", "-o", str(folder)], "was not made by milnet"),
    ):
        result = run(app, ["score", *arguments, "--model", "pocket"])
        assert result.exit_code != 0 and text in str(result.exception), (arguments, result.output)


def test_features_of_photos_in_shards(folder: Path, tmp_path: Path) -> None:
    """A table's photos are found by name in a tar, and by id in a Parquet file: the same bits as from a folder."""
    import tarfile

    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F811

    names = [photo.name for photo in sorted(folder.glob("*.jpg"))][:12]
    (tmp_path / "votes.csv").write_text(
        "image,v1,v2,v3\n" + "".join(f"{name},1,2,1\n" for name in [*names, "none.jpg"])
    )
    with tarfile.open(tmp_path / "p.tar", "w") as shard:
        for name in names:
            shard.add(folder / name, name)
    data = [(folder / name).read_bytes() for name in names]
    keys = [Path(name).stem for name in names]
    pyarrow.parquet.write_table(pyarrow.table({"__key__": keys, "jpg": data}), tmp_path / "p.parquet")
    run = CliRunner().invoke
    digests = []
    for images in (folder, tmp_path / "p.tar", tmp_path / "p.parquet"):
        target = tmp_path / f"data-{images.name}"
        call = ["import", "table", str(tmp_path / "votes.csv"), "-o", str(target)]
        assert run(app, call).exit_code == 0
        result = run(app, ["features", str(target), "--backbone", "pocket", "--images", str(images)])
        assert result.exit_code == 1 and "11 photos x 993" in result.output, result.output  # one broken, one missing
        digests.append(read_manifest(target / "features" / "pocket").files)
        errors = (target / "features" / "pocket" / "errors.csv").read_text()
        reason = "photos/none.jpg,does not exist" if images == folder else "none,,no file is known for this photo"
        assert reason in errors
    assert digests[0] == digests[1] == digests[2]


def test_features_of_other_photos_are_not_gone_on_with(tmp_path: Path) -> None:
    """Another column, tar or folder of photos of the same names: half of each would be nobody's features."""
    pytest.importorskip("pyarrow")
    votes = np.ones((8, 3))
    table = Table("made", tuple("abcdefgh"), votes, np.array([1.0, 2.0, 3.0]))
    data, parquet = [write(made.photo(seed)) for seed in range(8)], tmp_path / "a.parquet"
    polars.DataFrame({"id": list("abcdefgh"), "image": data, "thumb": data[::-1]}).write_parquet(parquet)
    extractor = Extractor.build(load_backbone("pocket", weights="cached"), Preprocess(64), workers=0, batch=2)

    class Stopped(Counting):
        def run(self, state: Any, work: Any, rows: Sequence[int], item: Any, most: int) -> Iterator[Any]:
            return super().run(state, work, rows, item, 2)

    def go_on(column: str, **how: Any) -> Any:
        photos = find_sources([parquet], image_column=column).photos
        return extract(table, tmp_path / "f", extractor, weights="cached", items=photos.__getitem__, **how)

    with pytest.raises(KeyboardInterrupt):
        go_on("image", runner=Stopped(pieces=1))
    with pytest.raises(ArtifactError, match="an unfinished extraction with other options or photos"):
        go_on("thumb")
    os.utime(parquet, ns=(1, 1))
    with pytest.raises(ArtifactError, match="an unfinished extraction with other options or photos"):
        go_on("image")


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl", "scores.parquet", "scores"])
def test_nothing_could_be_listed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is no tar: it is named, and the output has the columns and no rows."""
    monkeypatch.chdir(tmp_path)
    Path("bad.tar").write_bytes(bytes(range(256)) * 10)
    result = CliRunner().invoke(app, ["score", "bad.tar", "--model", "pocket", "-o", name])
    assert result.exit_code == 1, result.output
    assert "bad.tar: is damaged, or no uncompressed tar" in result.stderr
    if name == "scores":
        assert read_manifest(tmp_path / name, "scores").counts == {"photos": 0, "unreadable": 1}
    else:
        assert "bad.tar" in (tmp_path / "scores.errors.csv").read_text()
