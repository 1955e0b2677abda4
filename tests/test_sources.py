"""Photos out of tar shards, Parquet files and object storage: each item leads to the bytes that were put there."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import made
from milnet import sources
from milnet.errors import ImageError, UsageError
from milnet.sources import Here, Item, Photos, find_sources, opened, pieces, shown

pyarrow = pytest.importorskip("pyarrow")


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    made.photo(seed).save(stream, "JPEG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as shard:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


def contents(photos: Photos) -> dict[str, bytes]:
    """What is read of each photo, by its name; in the order of the photos."""
    failed: dict[int, ImageError] = {}
    found = {
        photos[row].name: source if isinstance(source, bytes) else source.read_bytes()
        for row, source in opened(enumerate(photos), failed)
    }
    assert not failed
    return found


def test_tar_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {f"{i:03}.jpg": jpeg(i) for i in range(7)}
    names = list(data)
    write_tar(Path("p-08.tar"), {names[0]: data[names[0]], "000.json": b"{}", "below/a.JPG": data[names[1]]})
    long = "d/" * 80 + "long.jpg"
    write_tar(Path("p-09.tar"), {"000.cls": b"1", long: data[names[2]]}, tarfile.GNU_FORMAT)
    write_tar(Path("p-10.tar"), {name: data[name] for name in names[3:]})
    found = find_sources(["p-{08..10}.tar"])
    assert contents(found.photos) == {
        "p-08.tar/000.jpg": data[names[0]],
        "p-08.tar/below/a.JPG": data[names[1]],
        f"p-09.tar/{long}": data[names[2]],
        **{f"p-10.tar/{name}": data[name] for name in names[3:]},
    }
    assert not found.failures
    assert list(find_sources(["p-*.tar"]).photos) == list(found.photos)
    assert found.photos[-1] == found.photos[len(found.photos) - 1] and len(found.photos[2:5]) == 3


def test_damaged_tars(tmp_path: Path) -> None:
    whole = {f"{i}.jpg": jpeg(i) for i in range(3)}
    write_tar(tmp_path / "whole.tar", whole)
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "zip.tar").write_bytes(b"PK\x03\x04" + data[:2000])
    found = find_sources([tmp_path / f"{name}.tar" for name in ("cut", "zip", "whole")])
    assert [(Path(error.file).name, error.reason[:12]) for error in found.failures] == [
        ("cut.tar", "is cut short"),
        ("zip.tar", "is damaged, "),
    ]
    read = contents(found.photos)  # what lies before the damage is whole
    assert {name: read[f"{tmp_path}/whole.tar/{name}"] for name in whole} == whole
    assert 0 < len(read) - len(whole) < len(whole)


def test_a_tar_that_ends_early_or_goes_on(tmp_path: Path) -> None:
    """Python takes whatever is no header for the end: what follows it would be missing without a word."""
    write_tar(tmp_path / "whole.tar", {f"{i}.jpg": jpeg(i) for i in range(4)}, tarfile.USTAR_FORMAT)
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as shard:
        third = shard.getmembers()[2].offset
    damaged = {
        "checksum": data[:third] + b"\xff" + data[third + 1 :],
        "hole": data[:third] + bytes(512) + data[third + 512 :],
        "header": data[: third + 100],
        "end": data[:third],
        "twice": data + data,
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        found = find_sources([tmp_path / f"{name}.tar"])
        assert len(found.photos) == (4 if name == "twice" else 2)
        (failure,) = found.failures
        said = {"end": "has no end mark", "twice": "is damaged at byte "}.get(name, f"is damaged at byte {third:,}, or")
        assert failure.reason.startswith(said), name
    assert not find_sources([tmp_path / "whole.tar"]).failures


def test_members_that_are_no_files_or_have_no_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as shard:
        for name, kind in (("0.jpg", tarfile.REGTYPE), ("1.jpg", tarfile.LNKTYPE), ("2.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "" if kind == tarfile.REGTYPE else "0.jpg"
            member.size = len(jpeg(0)) if kind == tarfile.REGTYPE else 0
            shard.addfile(member, io.BytesIO(jpeg(0)) if member.size else None)
        member = tarfile.TarInfo(os.fsdecode(b"caf\xe9.jpg"))
        member.size = len(jpeg(1))
        shard.addfile(member, io.BytesIO(jpeg(1)))
    found = find_sources([tmp_path / "a.tar"])
    assert list(found.photos.names) == [f"{tmp_path}/a.tar/0.jpg"]
    (failure,) = found.failures
    assert "2 photos in it are links, and left out (1.jpg)" in failure.reason
    assert "the names of 1 photos in it are not UTF-8, and left out (caf\\xe9.jpg)" in failure.reason


def table(path: Path, columns: dict[str, list[object]], rows: int = 3) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet  # noqa: F401

    data = [jpeg(i) for i in range(8)]
    plain, hugging, keyed, bare = (str(tmp_path / f"{name}.parquet") for name in ("plain", "hugging", "keyed", "bare"))
    table(Path(plain), {"id": [f"p{i}" for i in range(8)], "image": data})
    table(Path(hugging), {"label": [1] * 8, "image": [{"bytes": d, "path": f"{i}.jpg"} for i, d in enumerate(data)]})
    table(Path(keyed), {"__key__": list("abcdefgh"), "jpg": data, "png": data[::-1]})
    table(Path(bare), {"other": data[::-1], "mine": data})
    assert contents(find_sources([plain]).photos) == {f"{plain}/p{i}": d for i, d in enumerate(data)}
    assert contents(find_sources([hugging]).photos) == {f"{hugging}/{i}.jpg": d for i, d in enumerate(data)}
    assert contents(find_sources([keyed]).photos) == dict(zip((f"{keyed}/{k}" for k in "abcdefgh"), data, strict=True))
    assert contents(find_sources([bare], image_column="mine").photos) == {f"{bare}/{i}": d for i, d in enumerate(data)}
    flat = str(tmp_path / "flat.parquet")  # as a flattened struct is written
    table(Path(flat), {"image.bytes": data, "id": list("abcdefgh")})
    assert contents(find_sources([flat]).photos) == {f"{flat}/{k}": d for k, d in zip("abcdefgh", data, strict=True)}
    wrong = tmp_path / "wrong.parquet"
    table(wrong, {"n": [1]})
    both = find_sources([wrong, bare], image_column=None)  # one that does not fit is a failure, the rest goes on
    assert len(both.photos) == 8 and "expected a column with the bytes" in both.failures[0].reason
    photos = find_sources([hugging]).photos
    some = [photos[i] for i in (7, 0, 4)]  # of other row groups than those read before
    assert [bytes_ for _, bytes_ in opened(enumerate(some), {})] == [data[7], data[0], data[4]]


def test_parquet_says_what_is_wrong(tmp_path: Path) -> None:
    import pyarrow.parquet  # noqa: F401

    table(tmp_path / "a.parquet", {"image": ["no", "bytes"], "n": [1, 2]})
    with pytest.raises(UsageError, match=r"expected a column with the bytes of photos.*there are: image, n"):
        find_sources([tmp_path / "a.parquet"])
    with pytest.raises(UsageError, match="called 'x'"):
        find_sources([tmp_path / "a.parquet"], image_column="x")
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    assert "cannot be listed" in find_sources([tmp_path / "b.parquet"]).failures[0].reason
    table(tmp_path / "c.parquet", {"image": [None, b"x"]})
    failed: dict[int, ImageError] = {}
    assert [key for key, _ in opened(enumerate(find_sources([tmp_path / "c.parquet"]).photos), failed)] == [1]
    assert "the row holds no bytes" in failed[0].reason and failed[0].file.endswith("c.parquet/0")


def test_files_of_this_machine(tmp_path: Path) -> None:
    """As without shards: paths, which the decoder opens itself."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.jpg", "a.jpg", "notes.txt"):
        (folder / name).write_bytes(jpeg(1))
    found = find_sources([folder])
    assert found.photos.names == [str(folder / "a.jpg"), str(folder / "b.jpg")]
    assert [source for _, source in opened(enumerate(found.photos), {})] == [folder / "a.jpg", folder / "b.jpg"]
    assert find_sources([f"file://{folder}"]).photos.names == [f"file://{folder}/a.jpg", f"file://{folder}/b.jpg"]
    with pytest.raises(UsageError, match="no such file, folder or pattern"):
        find_sources([tmp_path / "none"])
    with pytest.raises(UsageError, match=r"expected ascending numbers, got \{3\.\.1\}"):
        find_sources(["a{3..1}.tar"])
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(jpeg(1))
    assert "not valid UTF-8" in find_sources([folder]).failures[0].reason


def test_a_row_group_is_read_once_for_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its photos may be many thousands, those of a piece some hundreds; a file that is written anew is read anew."""
    data, place, reads = [jpeg(i) for i in range(12)], tmp_path / "a.parquet", []
    real = sources._row_group
    monkeypatch.setattr(sources, "_row_group", lambda item: reads.append(item.start) or real(item))

    def work(state: None, items: Sequence[tuple[int, Item]]) -> bytes:
        return b"".join(bytes(one) for _, one in opened(items, {}))  # type: ignore[arg-type]

    for given in (data, data[::-1]):
        table(place, {"image": given}, rows=6)
        photos = find_sources([place]).photos
        found = list(Here().run(None, work, range(12), photos.__getitem__, 3))
        assert [one for _, one in found] == [b"".join(given[at : at + 3]) for at in range(0, 12, 3)]
    assert len(reads) == 4
    assert sources._kept.group.values is None  # nothing is held when all is done


def test_bad_moments_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be read is tried again; not for ever where nothing can be."""
    tries: list[str] = []

    def read(self: object, item: Item) -> bytes:
        tries.append(item.name)
        if item.name == "none":
            raise FileNotFoundError(item.place)
        if item.name.startswith("never") or tries.count(item.name) < 3:
            raise ConnectionResetError("reset")
        return item.name.encode()

    monkeypatch.setattr(sources, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(sources._Reader, "_read", read)
    failed: dict[int, ImageError] = {}
    names = ["once", "none", "never"]
    found = dict(opened(enumerate(Item(name, "s3://bucket/x") for name in names), failed))
    assert found == {0: b"once"} and failed[1].reason == "does not exist"
    assert failed[2].reason == "cannot be read (ConnectionResetError: reset)"
    assert [tries.count(name) for name in names] == [3, 1, 3]
    tries.clear()
    dead = [Item(f"never {number}", "s3://bucket/x") for number in range(200)]
    assert list(opened(enumerate(dead), failed)) == [] and len(failed) == 200
    assert len(tries) < 200 + 2 * (sources._PATIENCE + sources._THREADS) + 1
    tries.clear()
    list(opened([(0, Item("near", "a.tar", 0, 5))], failed))
    assert tries == ["near"]  # a disk has none


def test_any_file_system(tmp_path: Path) -> None:
    """What fsspec knows, here its memory."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    data = {f"/some/x/{i}.jpg": jpeg(i) for i in range(3)}
    for name, one in data.items():
        memory.pipe(name, one)
    memory.pipe("/some/readme.txt", b"no photo")
    write_tar(tmp_path / "t.tar", {"in.jpg": data["/some/x/0.jpg"]})
    memory.pipe("/some/t.tar", (tmp_path / "t.tar").read_bytes())
    try:
        found = contents(find_sources(["memory://some"]).photos)
        assert list(found.values()) == list(data.values())
        assert next(iter(found)).startswith("memory://") and next(iter(found)).endswith("some/x/0.jpg")
        assert list(contents(find_sources(["memory://some/*.tar"]).photos).values()) == [data["/some/x/0.jpg"]]
        assert list(contents(find_sources(["memory://some/x/[12].jpg"]).photos).values()) == list(data.values())[1:]
        with pytest.raises(UsageError, match="there is no such file, folder of photos or pattern"):
            find_sources(["memory://some/y*.jpg"])
        failed: dict[int, ImageError] = {}
        assert list(opened([(0, Item("n", "memory://none.jpg"))], failed)) == []
        assert str(failed[0]) == "n: does not exist"
    finally:
        memory.rm("/some", recursive=True)
    with pytest.raises(UsageError, match="no way to read such a URL here"):
        find_sources(["nonsense://a/b.jpg"])


def test_patterns_go_folder_by_folder() -> None:
    """As in a shell: `*` is no way into another folder, `**` is one."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("a-1.jpg", "b/a-2.jpg", "b/c/a-3.jpg", "b/c/d.tar"):
        memory.pipe(f"/box/{name}", b"-")
    names = lambda pattern: [one.split("box/")[1] for one in find_sources([pattern]).photos.names]  # noqa: E731
    try:
        assert names("memory://box/*.jpg") == ["a-1.jpg"]
        assert names("memory://box/*/a-?.jpg") == ["b/a-2.jpg"]
        assert names("memory://box/**/a-*.jpg") == ["a-1.jpg", "b/a-2.jpg", "b/c/a-3.jpg"]
        assert names("memory://box/b/**") == ["b/a-2.jpg", "b/c/a-3.jpg"]
        assert names("memory://box/b*/**/*.jpg") == ["b/a-2.jpg", "b/c/a-3.jpg"]
    finally:
        memory.rm("/box", recursive=True)


def test_addresses_of_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed address is opened as it is, and its name in outputs lets nobody in."""
    pytest.importorskip("aiohttp")
    data, asked = jpeg(1), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path == "/a/b.jpg?Signature=x%2By&Expires=5"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(data) if found else 0))
            self.end_headers()
            self.wfile.write(data if found else b"")

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        here = f"http://127.0.0.1:{server.server_port}/a/b.jpg"
        assert contents(find_sources([f"{here}?Signature=x%2By&Expires=5"]).photos) == {here: data}
        with pytest.raises(UsageError, match=r"a/c\.jpg: (there is no such file|cannot be listed)"):
            find_sources([here.replace("b.jpg", "c.jpg?Signature=z")])
    finally:
        server.shutdown()
        server.server_close()


def test_a_list_may_name_both(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    write_tar(tmp_path / "t.tar", {"in.jpg": jpeg(2)})
    listed = tmp_path / "list"
    lines = ["s3://bucket/b.jpg", str(tmp_path / "a.jpg"), str(tmp_path / "none.jpg"), "memory://box/t.tar"]
    listed.write_text("\n".join(lines))
    fsspec.filesystem("memory").pipe("/box/t.tar", (tmp_path / "t.tar").read_bytes())
    try:
        found = find_sources(files_from=listed)
    finally:
        fsspec.filesystem("memory").rm("/box", recursive=True)
    assert found.photos.names == [str(tmp_path / "a.jpg"), "s3://bucket/b.jpg", "memory://box/t.tar/in.jpg"]
    assert [error.reason for error in found.failures] == ["does not exist"]


def test_each_is_taken_once_and_hidden_ones_not(tmp_path: Path) -> None:
    """However often and by however many URLs it is named; files that macOS puts beside photos are none."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    write_tar(
        tmp_path / "t.tar",
        {"./a.jpg": jpeg(1), "./._a.jpg": b"-", "__MACOSX/x/._b.jpg": b"-", ".t/c.jpg": jpeg(2), "..d.jpg": jpeg(3)},
    )
    for name, data in {"p/1.jpg": b"-", "p/q/2.jpg": b"-", "p/q/._2.jpg": b"-", "p/.r/3.jpg": b"-"}.items():
        memory.pipe(f"/box/{name}", data)
    memory.pipe("/box/t.tar", (tmp_path / "t.tar").read_bytes())
    listed = tmp_path / "list"
    listed.write_text("memory://box/p/1.jpg\nmemory://box/t.tar\nmemory://box/p/1.jpg\n")
    names = lambda *urls, **how: [one.split("box/")[1] for one in find_sources(urls, **how).photos.names]  # noqa: E731
    try:
        assert names("memory://box/p", "memory://box/p/q", files_from=listed) == [
            "p/1.jpg",
            "p/q/2.jpg",
            "t.tar/./a.jpg",
        ]
        assert names("memory://box/t.tar", "memory://box/*.tar") == ["t.tar/./a.jpg"]
        assert names("memory://box/p/**/*.jpg") == ["p/1.jpg", "p/q/2.jpg"]
        assert names("memory://box/p/.r/*.jpg") == ["p/.r/3.jpg"]
    finally:
        memory.rm("/box", recursive=True)


def test_a_url_that_nobody_reads_is_a_failure_of_its_own(tmp_path: Path) -> None:
    failed: dict[int, ImageError] = {}
    assert list(opened([(0, Item("nonsense://a/b.jpg", "nonsense://a/b.jpg"))], failed)) == []
    assert str(failed[0]).startswith("nonsense://a/b.jpg: no way to read such a URL here (ValueError: ")


def test_a_fingerprint_knows_no_secret_and_all_else() -> None:
    def of(place: str, *more: Any) -> object:
        return sources.fingerprint([Item("n", place, *more)])["photos"]

    here = "s3://b/x.jpg?endpoint_override=here"
    assert of(here) == of("s3://me:secret@b/x.jpg?endpoint_override=here&region=r")
    assert of("https://h/x.jpg?Signature=1") == of("https://h/x.jpg?Signature=2")
    several = [of(here), of(here.replace("here", "there")), of("s3://c/x.jpg"), of("x.jpg"), of("x.tar", 5, 7)]
    several += [of("x.tar", 5, 8), of("x.tar", 6, 7), of("x.parquet", 5, 7, "image"), of("x.parquet", 5, 7, "thumb")]
    assert len({str(one) for one in several}) == len(several)


def test_a_fingerprint_asks_each_shard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table's rows may lie in any order in many shards far away: one question each, not one a photo."""
    asked: list[str] = []
    monkeypatch.setattr(sources, "_state", lambda place: asked.append(place) or (1, 1))
    items = [Item(f"{row}", f"s3://b/{row % 3}.tar", row, 5) for row in range(30)]
    sources.fingerprint([*items, Item("own", "s3://b/own.jpg")])
    assert sorted(asked) == ["s3://b/0.tar", "s3://b/1.tar", "s3://b/2.tar"]


def test_no_secret_is_shown() -> None:
    place = "s3://key:secret@bucket/a/b.jpg?endpoint_override=http%3A%2F%2Fhere%3A1"
    assert shown(place) == "s3://bucket/a/b.jpg"
    assert shown("a/b.jpg?x") == "a/b.jpg?x"
    assert shown("https://me:secret@host/a.jpg?token#x") == "https://host/a.jpg"


def test_what_vanishes_meanwhile_is_a_failure(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(30)})
    photos = find_sources([tmp_path / "a.tar"]).photos
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    failed: dict[int, ImageError] = {}
    read = dict(opened(enumerate(photos), failed))
    assert read.keys() | failed.keys() == set(range(30)) and not read.keys() & failed.keys()
    assert len(read) > 5 and len(failed) > 5
    assert all("cannot be read (OSError: the tar ends after" in error.reason for error in failed.values())


def test_pieces() -> None:
    assert [list(one) for one in pieces([0, 1, 2, 3, 7, 8, 10], 3)] == [[0, 1, 2], [3], [7, 8], [10]]
    assert pieces([], 3) == []
    assert [list(one) for one in pieces(range(5), 2)] == [[0, 1], [2, 3], [4]]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server of this machine."""
    pytest.importorskip("moto.server")
    pytest.importorskip("pyarrow.fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    sources._systems.clear()


def fill(s3: str, bucket: str, files: dict[str, bytes]) -> None:
    storage = pyarrow.fs.S3FileSystem(
        endpoint_override=s3, access_key="a", secret_key="b", region="us-east-1", allow_bucket_creation=True
    )
    storage.create_dir(bucket)
    for name, data in files.items():
        with storage.open_output_stream(f"{bucket}/{name}") as stream:
            stream.write(data)


def by_name(numbered: tuple[int, str]) -> str:
    return numbered[1]


def options(s3: str) -> str:
    return f"?scheme=http&region=us-east-1&endpoint_override={s3.removeprefix('http://')}"


def test_object_storage(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix, tar shards and Parquet in S3; where the server is, by the URL or by the environment."""
    import pyarrow.parquet  # noqa: F401

    data = {f"2021/{i}.jpg": jpeg(i) for i in range(5)}
    write_tar(tmp_path / "0.tar", {"key.jpg": data["2021/3.jpg"]})
    table(tmp_path / "0.parquet", {"id": ["x"], "image": [data["2021/4.jpg"]]})
    shards = {f"shards/{name}": (tmp_path / name).read_bytes() for name in ("0.tar", "0.parquet")}
    fill(s3, "photos", data | shards | {"2021/notes.txt": b"-"})
    url = f"s3://a:b@photos/2021{options(s3)}"
    found = contents(find_sources([url]).photos)
    assert found == {f"s3://photos/{name}": one for name, one in data.items()}
    assert contents(find_sources([f"s3://a:b@photos/shards/0.tar{options(s3)}"]).photos) == {
        "s3://photos/shards/0.tar/key.jpg": data["2021/3.jpg"]
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert contents(find_sources(["s3://photos/shards/*.parquet"]).photos) == {
        "s3://photos/shards/0.parquet/x": data["2021/4.jpg"]
    }
    assert len(find_sources(["s3://photos/2021/[0-2].jpg"]).photos) == 3
    with pytest.raises(UsageError, match="s3://photos/2022: there is no such file"):
        find_sources(["s3://photos/2022"])
    names = ["a b.jpg", "\u00fc#1.jpg", "p%20q.jpg", "what?.jpg", "[x]*.jpg", "a?b=c.jpg", "\u6771/\u4eac.jpg"]
    fill(s3, "names", {name: jpeg(i) for i, name in enumerate(names)})
    photos = find_sources(["s3://names"]).photos
    sources._systems.clear()  # a worker has only the items
    assert contents(photos) == {f"s3://names/{name}": jpeg(i) for i, name in sorted(enumerate(names), key=by_name)}
    assert contents(find_sources(["s3://names/[x]*.jpg"]).photos) == {"s3://names/[x]*.jpg": jpeg(4)}
    sources._systems.clear()
    assert contents(find_sources([f"s3://a:b@names/what?.jpg{options(s3)}"]).photos) == {
        "s3://names/what?.jpg": jpeg(3)
    }
