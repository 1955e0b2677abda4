"""Ray Data: the same features to the bit, the same scores; whatever dies meanwhile, nothing is lost or made twice."""

from __future__ import annotations

import csv
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

import made
from milnet import cluster as module
from milnet.annotations import Table, load_table
from milnet.artifacts import read_manifest
from milnet.backbones import load_backbone
from milnet.bulk import score_all
from milnet.cluster import Cluster
from milnet.errors import MissingExtraError, ProcessError, UsageError
from milnet.extraction import Extractor
from milnet.files import score_files
from milnet.preprocess import Decoded, Preprocess
from milnet.scoring import Scorer
from milnet.sources import DEADLY, Item, find_sources
from milnet.storing import extract

ray = pytest.importorskip("ray")
slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",  # files and sockets of Ray's own
)


class Deadly(Extractor):
    """An extractor whose process ends at a photo called deadly.jpg, as at one that makes a decoder crash."""

    def _decode(self, source: Any) -> Decoded | Any:
        if isinstance(source, Path) and source.name == "deadly.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._decode(source)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with Cluster(workers=2) as one:
        yield one
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """60 real photos and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in sorted((test_data / "data" / "oasis" / "images").glob("*.jpg"))[:60]:
        (folder / photo.name).symlink_to(photo)
    (folder / "Broken.jpg").write_bytes(b"no photo")
    return folder


def table_of(folder: Path) -> Table:
    names = sorted(path.name for path in folder.iterdir())
    votes = np.ones((len(names), 3))
    return Table("made", tuple(names), votes, np.array([1.0, 2.0, 3.0]), images=tuple(names), image_root=folder)


def extractor_of(*, pooling: Any = None, batch: int = 4) -> Extractor:
    backbone = load_backbone("pocket", "cached")
    return Extractor.build(backbone, Preprocess(), batch=batch, workers=1, pooling=pooling)


def workers_of(process: int) -> list[int]:
    """Processes of Ray's workers that have the network, which were started by `process` or below it."""
    return [pid for pid in below(process) if "ray::" in command(pid) and "MapWorker" in command(pid)]


def below(process: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:
                continue
    found, waiting = [], [process]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, of in parents.items() if of == parent]
        found += children
        waiting += children
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@slow
@pytest.mark.parametrize("wide", [None, "int8"])
def test_features_are_the_same_bits(wide: Any, cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    table, extractor = table_of(photos), extractor_of(pooling=wide and "area")
    one = extract(table, tmp_path / "one", extractor, weights="cached", wide=wide)
    two = extract(table, tmp_path / "two", extractor, weights="cached", wide=wide, runner=cluster)
    assert two.digest == one.digest and two.counts == one.counts == {"photos": 60, "unreadable": 1}
    for name in (*one.files, "errors.csv", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}


@slow
def test_scores_are_the_same(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    scorer = Scorer.load("pocket", workers=1)
    whole = score_files(scorer, sorted(photos.glob("*.jpg")))
    told: list[int] = []
    made = score_all(
        scorer, find_sources([photos]).photos, tmp_path / "part", cluster,
        progress=lambda done, *_: told.append(done), most=16,
    )  # fmt: skip
    assert [failure.photo for failure in made.failures] == [str(photos / "Broken.jpg")]
    for one, other in zip(made.scores(), whole.scores, strict=True):
        assert one.photo == other.photo and one.stars == other.stars and one.group == other.group
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.folder_percentile == pytest.approx(other.folder_percentile, abs=1e-4)
    assert told[0] == 0 and told[-1] == 61 and len(told) > 3


@slow
def test_object_storage(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    """Workers read an S3 server; the same scores as of the files."""
    pytest.importorskip("moto.server")
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        storage = pyarrow.fs.S3FileSystem(
            endpoint_override=f"http://{host}:{port}", access_key="a", secret_key="b", region="us-east-1",
            allow_bucket_creation=True,
        )  # fmt: skip
        storage.create_dir("bucket")
        names = sorted(photos.glob("*.jpg"))[:20]
        with tarfile.open(tmp_path / "t.tar", "w") as shard:
            for photo in names[10:15]:
                shard.add(photo.resolve(), photo.name)
        rows = {"path": [photo.name for photo in names[15:]], "image": [photo.read_bytes() for photo in names[15:]]}
        polars.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
        shards = [tmp_path / "t.tar", tmp_path / "p.parquet"]
        for file, folder in [*((name, "below") for name in names[:10]), *((name, "shards") for name in shards)]:
            with storage.open_output_stream(f"bucket/{folder}/{file.name}") as stream:
                stream.write(file.read_bytes())
        place = f"s3://a:b@bucket/%s?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
        scorer = Scorer.load("pocket", workers=1)
        found_there = find_sources([place % "below", place % "shards/*"]).photos
        made = score_all(scorer, found_there, tmp_path / "part", cluster)
    finally:
        server.stop()
    found = {score.photo: score.score for score in made.scores()}
    assert [len([name for name in found if part in name]) for part in ("/below/", "t.tar/", "p.parquet/")] == [10, 5, 5]
    found = {Path(photo).name: score for photo, score in found.items()}
    expected = {Path(score.photo).name: score.score for score in score_files(scorer, names).scores}
    assert len(found) == 20 and found == pytest.approx(expected, abs=1e-5)


@slow
def test_a_worker_that_is_killed_changes_nothing(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    table, extractor = table_of(photos), extractor_of()
    killed: list[int] = []
    done: list[int] = []

    def progress(now: int, total: int, what: str) -> None:
        done.append(now)
        if 0 < now < total and not killed:
            killed.extend(workers_of(os.getpid())[:1])
            os.kill(killed[0], signal.SIGKILL)

    manifest = extract(table, tmp_path / "two", extractor, weights="cached", runner=cluster, progress=progress)
    assert len(killed) == 1
    assert done == list(range(62))  # each photo once
    assert manifest.digest == extract(table, tmp_path / "one", extractor, weights="cached").digest


@slow
def test_a_photo_that_kills_its_worker(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    """All others have their features; it is listed with the reason."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted(photos.glob("*.jpg"))[:40]:
        (folder / photo.name).symlink_to(photo.resolve())
    table, plain = table_of(folder), extractor_of()
    good = extract(table, tmp_path / "good", plain, weights="cached")
    (folder / "deadly.jpg").symlink_to(sorted(photos.glob("*.jpg"))[50].resolve())
    table = table_of(folder)
    deadly = Deadly(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    made = extract(table, tmp_path / "made", deadly, weights="cached", runner=cluster)
    assert made.counts == {"photos": 40, "unreadable": 1} and good.counts == {"photos": 40, "unreadable": 0}
    with (tmp_path / "made" / "errors.csv").open(newline="") as file:
        errors = {row["id"]: row for row in csv.DictReader(file)}
    assert errors["deadly.jpg"] == {"id": "deadly.jpg", "file": str(folder / "deadly.jpg"), "reason": DEADLY}
    rows = [row for row, id_ in enumerate(table.ids) if id_ != "deadly.jpg"]
    assert np.array_equal(
        np.load(tmp_path / "made" / "features.npy")[rows], np.load(tmp_path / "good" / "features.npy"), equal_nan=True
    )


@slow
def test_scores_beside_a_photo_that_kills(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    """Named in the errors; all others are scored once, in their order."""
    names = sorted(photos.glob("*.jpg"))[:24]
    scorer = Scorer.load("pocket", workers=1)
    whole = {Path(score.photo).name: score.score for score in score_files(scorer, names).scores}
    for name in names:
        (tmp_path / name.name).symlink_to(name.resolve())
    (tmp_path / "deadly.jpg").symlink_to(sorted(photos.glob("*.jpg"))[30].resolve())
    deadly = Deadly(**{name: getattr(scorer.nodes, name) for name in scorer.nodes.__dataclass_fields__})
    scorer.nodes = scorer.semantic = deadly
    made = score_all(scorer, find_sources([tmp_path]).photos, tmp_path / "part", cluster)
    assert [(Path(failure.photo).name, failure.reason) for failure in made.failures] == [("deadly.jpg", DEADLY)]
    found = [(Path(score.photo).name, score.score) for score in made.scores()]
    assert [name for name, _ in found] == sorted(whole) and dict(found) == pytest.approx(whole, abs=1e-5)


def boast(size: int, items: Sequence[tuple[int, Item]]) -> bytes:
    return bytes([items[0][0] % 256]) * size


def complain(state: Any, items: Sequence[tuple[int, Item]]) -> bytes:
    raise {"ours": UsageError("this is not how it is used"), "other": ValueError("some mistake")}[state]


def end(state: Any, items: Sequence[tuple[int, Item]]) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def item(row: int) -> Item:
    return Item(f"photo {row}", "nowhere")


@slow
def test_a_worker_that_raises_stops_the_work(cluster: Cluster) -> None:
    for state, text in (("ours", "this is not how it is used"), ("other", "ValueError: some mistake")):
        with pytest.raises(ProcessError, match=f"a worker stopped at one of 16 photos from photo .* on: {text}"):
            list(cluster.run(state, complain, range(64), item, 16))


@slow
def test_workers_of_another_version_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__version__", "0.0.0")
    with pytest.raises(ProcessError, match=r"and the command 0\.0\.0: install the same version on every node"):
        list(cluster.run(1, boast, range(8), item, 4))


@slow
def test_workers_that_all_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLAMED", 2)
    with pytest.raises(ProcessError, match="each of 3 photos ended the worker that had it, and none was finished"):
        list(cluster.run(None, end, range(3), item, 1))
    monkeypatch.setattr(module, "_FIRST", 1)
    tried: list[int] = []
    with pytest.raises(ProcessError, match="each of 3 photos ended the worker that had it, and none was finished"):
        list(cluster.run(None, end, range(5000), lambda row: tried.append(row) or item(row), 16))
    assert len(tried) <= 2 * 16 + 3  # seen after the first pieces, not after each photo alone


def end_some(state: set[int], items: Sequence[tuple[int, Item]]) -> bytes:
    if state & {row for row, _ in items}:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(row for row, _ in items)


@slow
@pytest.mark.parametrize("deadly", [{5}, {0, 1, 2, 17}, set(range(16))])
def test_each_photo_is_done_once_or_known_to_kill(deadly: set[int], cluster: Cluster) -> None:
    """Also where the first pieces, or the first photos alone, end all workers they meet."""
    done: list[int] = []
    dead: list[int] = []
    for rows, data in cluster.run(deadly, end_some, range(40), item, 16):
        done += data or b""
        assert data is None or data == bytes(rows)
        if data is None:
            dead += rows
    assert sorted(done) == sorted(set(range(40)) - deadly) and sorted(dead) == sorted(deadly)


SPILL = """
import sys, ray, test_cluster
ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
from milnet.cluster import Cluster
from ray._private.internal_api import memory_summary
with Cluster(workers=2) as cluster:
    held = ray.put(bytes(60 << 20))  # most of the store is taken by someone else
    found = {}
    for rows, data in cluster.run(30 << 20, test_cluster.boast, range(20), test_cluster.item, 1):
        assert data == bytes([rows[0]]) * (30 << 20)
        assert rows[0] not in found
        found[rows[0]] = len(data)
    print(len(found), "Spilled" in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
ray.shutdown()
"""


@slow
def test_an_object_store_that_is_too_small() -> None:
    """80 MB for 600 MB of results: what does not fit goes to the disk, and all of it arrives."""
    run = subprocess.run(
        [sys.executable, "-c", SPILL], env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.stdout.split()[-2:] == ["20", "True"], run.stdout + run.stderr


def start(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "milnet", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def many(folder: Path, photos: Path, times: int = 4) -> None:
    folder.mkdir()
    for number in range(times):
        for photo in photos.glob("*.jpg"):
            (folder / f"{number}-{photo.name}").write_bytes(photo.read_bytes())


@slow
def test_a_driver_that_is_killed(photos: Path, tmp_path: Path) -> None:
    """Its workers end with it; what was finished is not done again."""
    many(tmp_path / "photos", photos)
    output = tmp_path / "scores.csv"
    arguments = ["score", str(tmp_path / "photos"), "--model", "pocket", "--workers", "ray", "-o", str(output)]
    process = start(*arguments)
    part = tmp_path / ".scores.csv.part"
    wait_for(lambda: len(list(part.glob("*.parquet"))) >= 2 or process.poll() is not None)
    children = below(process.pid)
    assert workers_of(process.pid)
    process.kill()
    process.communicate()
    shards = {path.name: path.stat().st_mtime_ns for path in part.glob("*.parquet")}
    finished = sum(int(name[13:25]) - int(name[:12]) for name in shards)
    assert 0 < finished < 244
    # What works ends at once; two small helpers of Ray find out within a minute.
    wait_for(lambda: not any("MapWorker" in command(pid) or "raylet/raylet" in command(pid) for pid in children), 30)
    again = start(*arguments)
    told = again.communicate()[0]
    assert "240 photos scored" in told and f"({244 - finished:,} new" in told, told
    assert again.returncode == 1 and not part.exists()
    with output.open(newline="") as file:
        rows = [row["photo"] for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 240


@slow
def test_an_interrupted_driver(photos: Path, tmp_path: Path) -> None:
    """Ctrl-C: a word about how to go on, no process stays, and Ray says nothing."""
    many(tmp_path / "photos", photos)
    data = tmp_path / "data"
    made.votes_csv(tmp_path / "votes.csv", table_of(tmp_path / "photos"))
    subprocess.run(
        [sys.executable, "-m", "milnet", "import", "table", str(tmp_path / "votes.csv"), "-o", str(data), "-q",
         "--images", str(tmp_path / "photos")], check=True,
    )  # fmt: skip
    process = start("features", str(data), "--backbone", "pocket", "--workers", "ray", start_new_session=True)
    marks = data / "features" / ".pocket.part" / "done.npy"
    wait_for(lambda: (marks.exists() and np.load(marks).any()) or process.poll() is not None)
    children = below(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("photos:")]
    assert process.returncode == 130, said
    assert lines == ["interrupted; what was finished is kept: run it again (train: with --resume)"]
    wait_for(lambda: not any("ray" in command(pid) for pid in children), 30)
    finished = int(np.load(marks).sum())
    torch.set_num_threads(1)
    told: list[int] = []
    manifest = extract(
        load_table(data)[0], data / "features" / "pocket", extractor_of(), weights="cached",
        progress=lambda done, *_: told.append(done),
    )  # fmt: skip
    assert told[0] == finished > 0 and manifest.counts == {"photos": 240, "unreadable": 4}  # goes on without Ray


@slow
def test_a_running_cluster(photos: Path, tmp_path: Path) -> None:
    """Photos named by a table, in tar shards, by a cluster that was there before and stays."""
    address = "127.0.0.1:26379"
    # A cluster may ask for a token, and does where Ray has made one for this user: this one has its own.
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    head = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--port", "26379", "--num-cpus", "2",
         "--include-dashboard", "false", "--disable-usage-stats"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        names = sorted(photos.glob("*.jpg"))
        for number in range(2):
            with tarfile.open(tmp_path / f"p-{number}.tar", "w") as shard:
                for photo in names[number::2]:
                    shard.add(photo.resolve(), photo.name)
        made.votes_csv(tmp_path / "votes.csv", table_of(photos))
        data = tmp_path / "data"
        call = [sys.executable, "-m", "milnet"]
        subprocess.run([*call, "import", "table", tmp_path / "votes.csv", "-o", data, "-q"], check=True)
        run = subprocess.run(
            [*call, "features", data, "--backbone", "pocket", "--workers", "ray", "--address", address, "--images",
             "p-{0..1}.tar"], capture_output=True, text=True, env=environment, cwd=tmp_path,  # no worker is there
        )  # fmt: skip
        assert "60 photos x" in run.stdout and "photos: 61 of 61 in" in run.stdout, run.stdout + run.stderr
        assert head.poll() is None
    finally:
        children = below(head.pid)
        head.terminate()
        head.wait()
        wait_for(lambda: not any("ray" in command(pid) for pid in children), 60)
    plain = extract(table_of(photos), tmp_path / "plain", extractor_of(), weights="cached")
    made_there = read_manifest(data / "features" / "pocket")
    assert made_there.files == plain.files  # the same bits


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="expected workers >= 1 and threads >= 1, got 0 and 1"):
        Cluster(workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--workers ray needs the package 'ray'.*pip install 'milnet\[ray\]'"):
        Cluster().__enter__()


@slow
def test_no_cluster_there(tmp_path: Path) -> None:
    made.photo(1).save(tmp_path / "a.png")
    run = start("score", str(tmp_path), "--model", "pocket", "--workers", "ray", "--address", "127.0.0.1:9")
    said = run.communicate()[1]
    assert "Ray does not start or answer at 127.0.0.1:9 (--address)" in said and "RAY_AUTH_MODE=token" in said
