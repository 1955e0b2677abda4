"""The Python client: against the real service, and against a false one that is busy, lost or talks nonsense."""

from __future__ import annotations

import io
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made import photo
from milnet.client import (
    AnswerError,
    BusyError,
    Client,
    Explained,
    Failed,
    LostError,
    NotRememberedError,
    Photo,
    RefusedError,
    Scored,
)
from milnet.errors import MissingExtraError, UsageError
from milnet.scoring import Scorer
from served import Served, service

TOKEN = "a-token-of-the-tests"
ODD = 'Türkçe 写真/a"b\\c; d=%22 \u2028e\x85.jpg'


def jpeg(seed: int, *, lighter: int = 0, taken: str = "") -> bytes:
    """A made photo; `taken`: when, for bursts."""
    stream, block = io.BytesIO(), Image.Exif()
    if taken:
        block[0x8769] = {0x9003: taken}
    photo(seed).point([min(255, value + lighter) for value in range(256)] * 3).save(stream, "JPEG", exif=block)
    return stream.getvalue()


def mosaic(seed: int) -> bytes:
    """Less like each other than `photo` makes them, so that a taste can tell them apart."""
    rng, stream = np.random.default_rng(seed), io.BytesIO()
    side = int(rng.integers(2, 24))
    small = rng.integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    small = small[..., :1].repeat(3, axis=-1) if seed % 3 == 0 else small
    way = [Image.Resampling.NEAREST, Image.Resampling.BICUBIC][seed % 2]
    Image.fromarray(small).resize((128, 96), way).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that wants a token and takes photos of at most 1 MB."""
    with service(tmp_path_factory.mktemp("served"), "--max-bytes", 1, environment={"MILNET_TOKEN": TOKEN}) as running:
        running.token = TOKEN
        yield running


@pytest.fixture
def client(there: Served) -> Iterator[Client]:
    with Client(there.url, TOKEN) as one:
        yield one


# ---- the real service ------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_scorer(client: Client, tmp_path: Path) -> None:
    """Paths, bytes, named bytes; one or many."""
    paths = [tmp_path / f"{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(jpeg(seed))
    paths.append(tmp_path / "last.jpg")
    paths[3].write_bytes(jpeg(5))
    found = client.score([paths[0], str(paths[1]), jpeg(2), ("sub/d.jpg", jpeg(5))], "pocket")
    assert [one.photo for one in found] == [str(paths[0]), str(paths[1]), "photo 3", "sub/d.jpg"]
    assert [one.index for one in found] == [0, 1, 2, 3]
    scorer = Scorer.load("pocket")
    for one, wanted in zip(found, scorer.score(paths), strict=True):
        assert isinstance(one, Scored)
        for name in ("score", "low", "high", "spread", "percentile", "unlike"):
            assert getattr(one, name) == pytest.approx(getattr(wanted, name), abs=1e-4), name
        assert one.distribution == pytest.approx(wanted.distribution, abs=1e-5)
        assert one.stars == wanted.stars and one.folder_percentile == pytest.approx(wanted.folder_percentile)
        assert one.signals is not None and one.signals.width == 96 and one.signals.height == 72
    for alone in (paths[0], str(paths[0]), jpeg(0), ("x", jpeg(0))):
        (one,) = client.score(alone)
        assert isinstance(one, Scored)
        assert one.score == pytest.approx(found[0].score, abs=1e-5)  # type: ignore[union-attr]
    assert client.score([]) == [] and client.again([]) == [] and list(client.stream([])) == []


def test_what_cannot_be_scored_stays_in_its_place(client: Client, tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    good.write_bytes(jpeg(1))
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes((1 << 20) + 1))
    photos: list[Photo] = [
        b"no image",
        tmp_path / "none.jpg",
        good,
        tmp_path,
        large,
        ("big", bytes((1 << 20) + 1)),
        "\0.jpg",
    ]
    for found in (client.score(photos), sorted(client.stream(photos), key=lambda one: one.index)):
        assert [isinstance(one, Scored) for one in found] == [False, False, True, False, False, False, False]
        assert [one.photo for one in found] == ["photo 1", str(photos[1]), str(good), str(tmp_path), str(large), "big",
                                                "\0.jpg"]  # fmt: skip
        reasons = [one.reason for one in found if isinstance(one, Failed)]
        assert re.search("image|decoded", reasons[0]), reasons[0]
        assert reasons[1] == reasons[2] == "no such file"
        assert reasons[3] == reasons[4] == "too large for the service: expected at most 1048576 bytes, got 1048577"
    (alone,) = client.score(b"no image")  # the service refuses a call of which nothing can be scored
    assert isinstance(alone, Failed) and alone.id is not None
    (nothing,) = client.score(tmp_path / "none.jpg")
    assert isinstance(nothing, Failed) and nothing.id is None
    with pytest.raises(UsageError, match=r"photo 1: expected a path, bytes or \(name, bytes\), got int"):
        client.score([good, 5])  # type: ignore[list-item]


def test_many_photos_are_one_folder(client: Client, there: Served) -> None:
    """More than go in one request: bursts and folder percentiles as in one call of all."""
    photos = [(f"{seed}.jpg", jpeg(seed)) for seed in range(37)]
    photos += [(f"burst {n}.jpg", jpeg(3, lighter=n, taken=f"2024:05:06 07:08:0{n}")) for n in range(3)]
    found = client.score(photos)
    whole = there.form("/v1/score", photos).json()["scores"]
    assert len(found) == len(whole) == 40
    for one, wanted in zip(found, whole, strict=True):
        assert isinstance(one, Scored)
        assert one.folder_percentile == wanted["folder_percentile"]
        assert (one.group, one.rank, one.keep) == (wanted["group"], wanted["rank"], wanted["keep"])
        assert one.score == pytest.approx(wanted["score"], abs=1e-5) and one.id == wanted["id"]
    assert [isinstance(one, Scored) and one.group for one in found[-3:]] == [1, 1, 1]
    ids = [one.id for one in found if one.id is not None]
    groups = there.post("/v1/bursts", {"ids": ids}).json()["bursts"]
    assert [vars(one) for one in client.bursts(ids)] == groups and [one["id"] for one in groups] == ids[-3:]


def test_stream_gives_each_photo_once(client: Client) -> None:
    photos = [(f"{seed}.jpg", jpeg(seed) if seed % 7 else b"none") for seed in range(50)]
    found = list(client.stream(iter(photos)))
    assert sorted(one.index for one in found) == list(range(50))
    assert all(one.photo == f"{one.index}.jpg" for one in found)
    assert {one.index for one in found if isinstance(one, Failed)} == set(range(0, 50, 7))
    again = {one.index: one for one in client.score(photos)}
    for one in found:
        if isinstance(one, Scored):
            other = again[one.index]
            assert isinstance(other, Scored) and one.folder_percentile is None
            assert other.score == pytest.approx(one.score, abs=1e-5)


def test_explanations_add_up(client: Client) -> None:
    found = client.explain([jpeg(3), jpeg(4)])
    streamed = sorted(client.stream([jpeg(3), jpeg(4)], explain=True), key=lambda one: one.index)
    for one, other in zip(found, streamed, strict=True):
        assert isinstance(one, Explained) and isinstance(other, Explained)
        parts = one.base + one.own + sum(reference.influence for reference in one.references) + one.rest
        assert parts == pytest.approx(one.score, abs=1e-4)
        assert 1 <= len(one.references) <= 8
        for reference, again in zip(one.references, other.references, strict=True):  # in another batch, perhaps
            assert (reference.id, reference.votes) == (again.id, again.votes)
            assert reference.similarity == pytest.approx(again.similarity, abs=1e-6)
            assert reference.influence == pytest.approx(again.influence, abs=1e-5)
        assert all(reference.photo is None and len(reference.votes) == 7 for reference in one.references)


def test_names_are_labels(client: Client, tmp_path: Path) -> None:
    """Whatever ends lines elsewhere, quotes, and names that are no text."""
    names = [ODD, "two\nlines", "\udcff.jpg", "", "x" * 3000]
    for found in (client.score([(name, jpeg(1)) for name in names]), list(client.stream((n, jpeg(1)) for n in names))):
        assert [one.photo for one in sorted(found, key=lambda one: one.index)] == names
        assert all(isinstance(one, Scored) for one in found)


def test_models_and_limits(client: Client, there: Served) -> None:
    found, wanted = client.models(), there.get("/v1/models").json()
    (model,) = found.models
    assert found.default == model.name == "pocket" and found.limits.bytes == 1 << 20
    said = wanted["models"][0]
    assert model.values == tuple(said["values"]) and model.srcc == said["quality"]["srcc"] and model.checked is None
    others = [one.name for one in fields(model) if one.name not in ("values", "stars", "srcc", "checked")]
    assert {name: getattr(model, name) for name in others} == {name: said[name] for name in others}


def test_a_taste_from_teaching_to_forgetting(client: Client, tmp_path: Path) -> None:
    photos = [mosaic(seed) for seed in range(14)]
    ids = [one.id for one in client.score(photos) if isinstance(one, Scored)]
    with pytest.raises(NotRememberedError, match=r"409: .*send them to /v1/score") as missing:
        client.teach({ids[0]: 3, "0" * 64: 4, "1" * 64: 5})
    assert missing.value.missing == ("0" * 64, "1" * 64)
    with pytest.raises(RefusedError) as few:
        client.teach({one: 1 + n for n, one in enumerate(ids[:3])})
    assert few.value.status == 422 and few.value.expected is not None and "10 or more" in few.value.expected
    taste = client.teach({one: 1 + n % 5 for n, one in enumerate(ids)}, "my taste", "pocket")
    try:
        assert taste.kind == "taste" and taste.removable and taste.values == (1, 2, 3, 4, 5)
        assert taste.checked is not None and taste.checked.photos == 14 and taste.checked.verdict
        with pytest.raises(RefusedError, match="409: a model of that name is there already") as taken:
            client.teach({one: 1 + n % 5 for n, one in enumerate(ids)}, "my taste")
        assert not isinstance(taken.value, NotRememberedError) and taken.value.got == "my taste"
        known, unknown = client.again([ids[0], "0" * 64], "my taste")
        assert isinstance(known, Scored) and isinstance(unknown, Failed) and unknown.unknown
        assert client.again(["0" * 64])[0].id == "0" * 64
        (explained,) = client.explain(photos[0], "my taste")
        assert isinstance(explained, Explained) and {one.photo for one in explained.references} <= set(ids)
        path = client.download_taste("my taste", tmp_path / "taste.zip")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
        own = Scorer.load(tmp_path / "my taste").score([photos[0]])[0]
        assert own.score == pytest.approx(known.score, abs=1e-4) and own.model == taste.digest
        with pytest.raises(UsageError, match=r"taste\.zip is there already"):
            client.download_taste("my taste", path)
    finally:
        client.remove_taste("my taste")
    with pytest.raises(RefusedError) as gone:
        client.score(photos[0], "my taste")
    assert (gone.value.status, gone.value.expected, gone.value.got) == (404, "pocket", "my taste")
    with pytest.raises(RefusedError, match="404: no such model here"):
        list(client.stream(photos, "my taste"))


def test_the_token_is_asked_for(there: Served) -> None:
    for wrong in (None, "another-token-of-the-tests"):
        with Client(there.url, wrong) as stranger:
            stranger.wait_until_ready(30)  # that needs none
            with pytest.raises(RefusedError) as refused:
                stranger.score(jpeg(1))
        assert refused.value.status == 401 and refused.value.expected == "Authorization: Bearer TOKEN"
        assert TOKEN not in str(refused.value) and (wrong is None or wrong not in str(refused.value))


def test_it_is_light() -> None:
    code = "import milnet.client, sys; milnet.client.Client(); " + (
        "print([m for m in ('torch', 'fastapi', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"milnet\.client needs .*'httpx'.*pip install 'milnet\[client\]'"):
        Client()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8500", "expected an address like"),
        ("ftp://host", "expected an address like"),
        ("http://host:port", "not an address"),
        ("http://host/?token=secret", "expected an address like"),
        ("http://user:secret@host", "pass the token as token="),
    ],
)
def test_addresses(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        Client(url)
    assert "secret@" not in str(refused.value)
    with pytest.raises(UsageError, match="requests 0, timeout 1, patience 1: expected 1 or more"):
        Client(requests=0, timeout=1, patience=1)


# ---- a false service -------------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {
    "index": 0, "photo": "x", "id": "0" * 64, "score": 4.0, "low": None, "high": None, "spread": 1.0,
    "percentile": None, "stars": None, "unlike": None, "outside": False, "distribution": [0.5, 0.5], "signals": None,
    "group": None, "rank": None, "keep": None, "folder_percentile": None,
}  # fmt: skip


@dataclass
class Request:
    """What was asked."""

    head: str
    body: bytes

    @property
    def photos(self) -> list[bytes]:
        """The files of the form."""
        return re.findall(rb'name="photos".*?\r\n\r\n(.*?)\r\n--', self.body, re.DOTALL)


@dataclass
class Fake:
    """Answers each request with `answer(request)`, as it is, and closes the connection. Limits are told by itself."""

    answer: Callable[[Request], bytes | None]
    asked: list[Request] = field(default_factory=list)
    limit: int = 100
    url: str = ""

    def talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            head = "".join(iter(lambda: stream.readline().decode("latin-1"), "\r\n"))
            if not head:
                return
            length = re.search(r"(?i)\r\ncontent-length: (\d+)", head)
            request = Request(head, stream.read(int(length[1])) if length else b"")
            if head.startswith("GET /v1/models "):
                most = {"bytes": 1 << 20, "pixels": 1, "photos": self.limit}
                connection.sendall(answered(200, {"models": [], "default": "none", "limits": most}))
                return
            self.asked.append(request)
            text = self.answer(request)
            if text is not None:
                connection.sendall(text)


@contextmanager
def fake(answer: Callable[[Request], bytes | None], **more: Any) -> Iterator[Fake]:
    one = Fake(answer, **more)
    with socket.create_server(("127.0.0.1", 0)) as server:
        one.url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=quiet, args=(connection,), daemon=True).start()

        def quiet(connection: socket.socket) -> None:
            with suppress(OSError):  # the client has gone
                one.talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield one
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def answered(status: int, data: Any, kind: str = "application/json", **headers: str) -> bytes:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + "".join(f"{n.replace('_', '-')}: {v}\r\n" for n, v in headers.items()) + "\r\n").encode() + body


def problem(status: int, **members: Any) -> bytes:
    after = {"Retry_After": members.pop("after")} if "after" in members else {}
    return answered(status, {"status": status, **members}, "application/problem+json", **after)


def cut(*rows: Any) -> bytes:
    """Lines whose end never comes."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + f"{len(text):x}\r\n".encode() + text + b"\r\n"


def lines(*rows: Any) -> bytes:
    return cut(*rows, {"done": {}}) + b"0\r\n\r\n"


def score(index: int, **more: Any) -> dict[str, Any]:
    return {"score": {**LINE, "index": index, **more}}


def all_of(request: Request) -> bytes:
    """A score for each photo: the number that it holds."""
    return lines(*(score(i, score=float(data)) for i, data in enumerate(request.photos)))


def in_turn(*answers: bytes | Callable[[Request], bytes | None] | None) -> Callable[[Request], bytes | None]:
    left = iter(answers)

    def answer(request: Request) -> bytes | None:
        one = next(left)
        return one(request) if callable(one) else one

    return answer


def test_busy_is_waited_for() -> None:
    with fake(in_turn(problem(429, after="1"), problem(429, after="0"), all_of)) as there, Client(there.url) as client:
        began = time.monotonic()
        (one,) = client.stream(b"7")
        assert isinstance(one, Scored) and one.score == 7 and time.monotonic() - began >= 1
        assert len(there.asked) == 3 and {request.body.count(b"photos") for request in there.asked} == {1}


def test_busy_for_too_long() -> None:
    refusal = problem(429, detail="too much", expected="less", after="60")
    for patience, count in ((59.0, 1), (0.0, 1)):
        with fake(lambda _: refusal) as there, Client(there.url, patience=patience) as client:
            for ask in (lambda c=client: list(c.stream(b"1")), lambda c=client: c.score(b"1")):
                began, before = time.monotonic(), len(there.asked)
                with pytest.raises(BusyError, match=r"429: too much \(expected less\)") as busy:
                    ask()
                assert time.monotonic() - began < 30 and len(there.asked) - before == count
                assert busy.value.status == 429 and busy.value.expected == "less" and busy.value.got is None
    with fake(lambda _: problem(429, after="0")) as there, Client(there.url, patience=0.2) as client:
        with pytest.raises(BusyError):  # "at once" is not for ever
            client.again(["0" * 64])
        assert 2 <= len(there.asked) <= 6


def test_lost_in_the_middle_sends_the_rest_again() -> None:
    photos = [b"10", b"11", b"12", b"13"]
    first = cut(score(2, score=12.0), {"failure": {"index": 0, "photo": "x", "reason": "none"}})
    with fake(in_turn(first, all_of)) as there, Client(there.url) as client:
        found = sorted(client.stream(photos), key=lambda one: one.index)
        assert [request.photos for request in there.asked] == [photos, [b"11", b"13"]]
        assert [one.score if isinstance(one, Scored) else one.reason for one in found] == ["none", 11, 12, 13]


@pytest.mark.parametrize("first", [None, lines(), b"HTTP/1.1 200 OK\r\nContent-Len"])
def test_lost_twice(first: bytes | None) -> None:
    with fake(lambda _: first) as there, Client(there.url) as client:
        with pytest.raises(LostError, match="the connection was lost"):
            list(client.stream([b"1", b"2"]))
        assert len(there.asked) == 2
    with fake(in_turn(first, all_of)) as there, Client(there.url) as client:
        assert len(list(client.stream([b"1", b"2"]))) == 2


def test_lost_once_for_a_whole_answer() -> None:
    whole = answered(200, {"scores": [LINE], "failures": []})
    with fake(in_turn(None, whole, None, None)) as there, Client(there.url) as client:
        assert isinstance(client.score(b"1")[0], Scored) and len(there.asked) == 2
        with pytest.raises(LostError):
            client.bursts(["0" * 64])
        assert len(there.asked) == 4


def test_a_taste_is_not_taught_twice() -> None:
    with fake(lambda _: None) as there, Client(there.url) as client:
        with pytest.raises(LostError):
            client.teach({"0" * 64: 3})
        with pytest.raises(LostError):
            client.remove_taste("a/b ?")
        assert [request.head.split(" HTTP")[0] for request in there.asked] == [
            "POST /v1/tastes", "DELETE /v1/tastes/a%2Fb%20%3F"]  # fmt: skip


def test_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with Client(url) as client:
        assert client.ready() is False
        with pytest.raises(LostError, match=r"not ready after 0\.2 s; does `milnet serve` run there"):
            client.wait_until_ready(0.2)
        with pytest.raises(LostError, match="cannot be reached; does `milnet serve` run there"):
            client.models()


def test_ready() -> None:
    with fake(in_turn(problem(503), answered(200, {}), answered(404, b""))) as there, Client(there.url) as client:
        client.wait_until_ready(30)
        assert len(there.asked) == 2
        with pytest.raises(RefusedError, match="404: an answer that is not of milnet's service"):
            client.ready()


def test_no_answer_in_time() -> None:
    silent = threading.Event()

    def answer(_: Request) -> None:
        silent.wait(30)

    with fake(answer) as there, Client(there.url, timeout=2) as client:
        with pytest.raises(LostError, match="no answer in time"):
            list(client.stream(b"1"))
        assert len(there.asked) == 1
        silent.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lines("{no json"), "a line: expected JSON, got b'{no json'"),
        (answered(200, b"<html>"), None),
        (lines("[1]"), r"a line: expected a JSON object, got \[1\]"),
        (lines({"score": None}), "a score: expected a JSON object, got null"),
        (lines({"other": 1}), "a score: expected a JSON object, got null"),
        (lines(score(0, score="4")), 'a score: score: expected a number, got "4"'),
        (lines(score(0, outside=1)), "a score: outside: expected true or false, got 1"),
        (lines(score(0, distribution=[True])), r"a score: distribution: expected numbers, got \[true\]"),
        (lines({"score": {"index": True}}), "a score: index: expected a whole number, got true"),
        (lines({"score": {"index": 0}}), "a score: photo: expected a text, got nothing"),
        (lines(score(1)), "a result for photo 1, expected 0 to 0"),
        (lines(score(-1)), "a result for photo -1, expected 0 to 0"),
        (lines(score(0), score(0)), "two results for photo 0"),
        (lines({"failure": {"index": 0, "photo": "x"}}), "a failure: reason: expected a text, got nothing"),
    ],
)
def test_nonsense(answer: bytes, message: str | None) -> None:
    with fake(lambda _: answer) as there, Client(there.url) as client:
        with pytest.raises(AnswerError if message else LostError, match=message):
            list(client.stream(b"1"))
        with pytest.raises(AnswerError):
            client.score(b"1")


def test_what_stands_between() -> None:
    """A proxy's page is no answer of the service, whatever it says of itself."""
    pages = [answered(502, b"<html>Bad Gateway", "text/html"), answered(302, b"", Location="http://127.0.0.1:1/"),
             answered(500, b"no json", "application/problem+json"), problem(500)]  # fmt: skip
    with fake(in_turn(*pages)) as there, Client(there.url, TOKEN) as client:
        for status, detail in (
            (502, "not of milnet"),
            (302, "not of milnet"),
            (500, "not of milnet"),
            (500, "no reason"),
        ):
            with pytest.raises(RefusedError, match=detail) as refused:
                client.again(["0" * 64])
            assert refused.value.status == status
        assert len(there.asked) == 4
        assert all(f"authorization: bearer {TOKEN}" in request.head.lower() for request in there.asked)
        assert all(TOKEN not in request.head.split("\r\n")[0] for request in there.asked)


def test_stopping_early_ends_what_is_under_way() -> None:
    waiting = problem(429, after="60")
    with fake(lambda r: all_of(r) if b"0" in r.photos else waiting) as there, Client(there.url) as client:
        began = time.monotonic()
        with closing(client.stream(str(n).encode() for n in itertools.count())) as results:
            assert next(results).index < 16
        assert time.monotonic() - began < 30 and len(there.asked) <= 6


def test_photos_are_read_when_it_is_their_turn() -> None:
    taken = itertools.count()
    held, go = [], threading.Event()

    def photos() -> Iterator[bytes]:
        for n in taken:
            held.append(n)
            yield str(n).encode()

    def answer(request: Request) -> bytes:
        go.wait(5)
        return all_of(request)

    with fake(answer) as there, Client(there.url, requests=2) as client, closing(client.stream(photos())) as results:
        timer = threading.Timer(0.5, go.set)
        timer.start()
        next(results)
        assert len(held) <= 2 * 16 + 1, "two chunks, and the first photo of the next one"
        found = [one.index for one in itertools.islice(results, 200)]
        assert len(set(found)) == 200 and max(found) < 264
        assert len(held) <= 300
        timer.join()


def test_chunks_keep_within_the_limits() -> None:
    with fake(all_of, limit=3) as there, Client(there.url, requests=1) as client:
        found = list(client.stream(str(n).encode() for n in range(8)))
        assert [len(request.photos) for request in there.asked] == [3, 3, 2]
        assert [one.score for one in found if isinstance(one, Scored)] == list(range(8))


def test_what_is_forgotten_is_not_compared() -> None:
    """Folder percentiles are of all photos, or of none."""
    forgotten = answered(200, {"scores": [{**LINE, "folder_percentile": 5.0}], "failures": [
        {"index": n, "photo": "x", "reason": "not remembered", "unknown": True} for n in range(1, 20)]})  # fmt: skip
    remembered = answered(
        200, {"scores": [{**LINE, "index": n, "folder_percentile": 5.0 * n} for n in range(20)], "failures": []}
    )
    for second, wanted in ((forgotten, [None] * 20), (remembered, [5.0 * n for n in range(20)])):

        def answer(request: Request, second: bytes = second) -> bytes:
            return all_of(request) if request.photos else second

        with fake(answer) as there, Client(there.url) as client:
            found = client.score([str(n).encode() for n in range(20)])
        assert [one.folder_percentile for one in found if isinstance(one, Scored)] == wanted
        assert [replace(one, folder_percentile=None).score for one in found if isinstance(one, Scored)] == [*range(20)]


def test_ids_of_a_call() -> None:
    """Client and service agree on how many go."""
    pytest.importorskip("fastapi")
    from milnet import client
    from milnet.server import uploads

    assert client._IDS <= uploads._IDS
