"""`milnet serve` as a user starts it: the real command in a process group of its own, stopped and looked at."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_START = 300.0  # seconds for starting: many on a busy machine, and no test is about it
_STOP = 60.0  # seconds for stopping: as long as the service gives to what it has accepted
_ADDRESS = re.compile(r"^(http://\S+?)/ is there; ", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers with small letters, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Served:
    """A running service. `folder` holds what it said (`out`, `err`), its working folder and its TMPDIR."""

    process: subprocess.Popen[bytes]
    folder: Path
    home: Path
    url: str = ""
    host: str = ""
    port: int = 0
    token: str | None = None
    ended: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Of the process with the model."""
        return self.process.pid

    def said(self) -> str:
        """Its standard output so far."""
        return (self.folder / "out").read_text()

    def log(self) -> str:
        """Its standard error so far."""
        return (self.folder / "err").read_text()

    def connect(self, seconds: float = 30.0) -> socket.socket:
        """A connection to it."""
        return socket.create_connection((self.host, self.port), seconds)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        seconds: float = 60.0,
        own: bool = True,
    ) -> Answer:
        """One request on a connection of its own. `own`: with the headers a client sends by itself."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        given = {name.lower() for name, _ in pairs}
        if own:
            mine = [("Host", f"{self.host}:{self.port}"), ("Connection", "close")]
            if body or method == "POST":
                mine.append(("Content-Length", str(len(body))))
            if self.token is not None:
                mine.append(("Authorization", f"Bearer {self.token}"))
            pairs = [pair for pair in mine if pair[0].lower() not in given] + pairs
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n"
        with self.connect(seconds) as connection:
            # a refusal may come, and the connection be closed, before all is sent
            with contextlib.suppress(ConnectionError):
                connection.sendall(head.encode("latin-1") + body)
            return read_answer(connection, method)

    def get(self, path: str, headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> Answer:
        """GET."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, data: Any, kind: str = "image/jpeg", **headers: str) -> Answer:
        """POST bytes of a kind, or anything else as JSON."""
        if not isinstance(data, bytes):
            data, kind = json.dumps(data).encode(), "application/json"
        return self.ask("POST", path, data, {"Content-Type": kind, **headers})

    def form(self, path: str, photos: Sequence[tuple[str, bytes]], **headers: str) -> Answer:
        """POST photos, (name, file) each, as a browser's form does."""
        body, kind = form_of(photos)
        return self.post(path, body, kind, **headers)

    def figures(self) -> dict[tuple[str, ...], float]:
        """/v1/metrics: (name, label, value, label, value ...) -> number."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.get("/v1/metrics").body.decode()
        return {
            (sample.name, *(part for pair in sorted(sample.labels.items()) for part in pair)): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def children(self) -> list[int]:
        """Process ids of its decoders."""
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=False).stdout
        return [int(line) for line in found.split()]

    def resident(self) -> int:
        """Bytes of memory of the process with the model."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        """How many file descriptors it has."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def stop(self, number: int = signal.SIGTERM, *, code: int = 0, seconds: float = _STOP) -> None:
        """End it, and see that it ended as it should and left no process behind."""
        if self.ended:
            return
        children = self.children()
        self.process.send_signal(number)
        try:
            self.ended.append(self.process.wait(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds:g} s: {self.log()[-2000:]}") from None
        assert self.ended == [code], (self.ended, self.log()[-4000:])
        assert_gone(children)

    def kill(self) -> None:
        """End it whatever it does, with its decoders."""
        for pid in [*self.children(), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def assert_gone(pids: Sequence[int], seconds: float = 60.0) -> None:
    """None of the processes is there any more."""
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def form_of(photos: Sequence[tuple[str, bytes]], field_name: str = "photos") -> tuple[bytes, str]:
    """A multipart body of (name, file) and its Content-Type; names are written as browsers do (HTML, 4.10.21.8)."""
    boundary, body = "----made7MA4YWxkTrZu0gW", bytearray()
    for name, data in photos:
        safe = name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field_name}"; filename="{safe}"\r\n'
        body += f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + b"\r\n"
    return bytes(body) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def read_answer(connection: socket.socket, method: str = "GET") -> Answer:
    """Read one answer; ConnectionError where it ends before it is whole."""
    return read_answers(connection, 1, method)[0]


def read_answers(connection: socket.socket, count: int, method: str = "GET") -> list[Answer]:
    """Read several answers that come one after another; ConnectionError where one is not whole."""
    stream, found = connection.makefile("rb"), []
    with stream:
        for _ in range(count):
            line = stream.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError(f"closed after {line!r}")
            headers: dict[str, str] = {}
            while (one := stream.readline()) != b"\r\n":
                if not one.endswith(b"\r\n"):
                    raise ConnectionError(f"closed within the headers: {one!r}")
                name, _, value = one.decode("latin-1").partition(":")
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value.strip()
            status = int(line.split()[1])
            body = b"" if method == "HEAD" else _read_body(stream, status, headers)
            found.append(Answer(status, headers, body))
    return found


def _read_body(stream: Any, status: int, headers: Mapping[str, str]) -> bytes:
    if status in (204, 304) or status < 200:
        return b""
    if headers.get("transfer-encoding") == "chunked":
        body = bytearray()
        while size := int(_line(stream), 16):
            body += _exactly(stream, size)
            assert stream.readline() == b"\r\n"
        assert stream.readline() == b"\r\n"
        return bytes(body)
    if "content-length" in headers:
        return _exactly(stream, int(headers["content-length"]))
    return bytes(stream.read())


def _line(stream: Any) -> bytes:
    line: bytes = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("closed within the body")
    return line


def _exactly(stream: Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise ConnectionError(f"closed after {len(data)} of {count} bytes")
    return data


@contextlib.contextmanager
def service(
    folder: Path,
    *options: object,
    model: object = "pocket",
    home: Path | None = None,
    environment: Mapping[str, str] | None = None,
    connect_to: str = "127.0.0.1",
    stop: bool = True,
    before: str = "",
) -> Iterator[Served]:
    """`milnet serve --port 0` in `folder`; at the end it is stopped, and its exit code looked at.

    `before`: Python that its process runs first, as to make a limit of time shorter than a test is patient.
    """
    for name in ("work", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    home = home or folder / "home"
    start = ["-c", f"{before}\nfrom milnet.cli import main\nmain()"] if before else ["-m", "milnet"]
    first = [] if model is None else ["--model", str(model)]
    command = [sys.executable, *start, "serve", "--port", "0", *first, *(str(option) for option in options)]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder / "work",
            env={
                **{name: value for name, value in os.environ.items() if name != "MILNET_TOKEN"},
                "MILNET_HOME": str(home),
                "TMPDIR": str(folder / "tmp"),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
                **(environment or {}),
            },
            start_new_session=True,
        )
    served = Served(process, folder, home)
    try:
        _wait(served)
        served.host = connect_to
        served.port = int(served.url.rpartition(":")[2])
        yield served
        if stop:
            served.stop()
    finally:
        if not served.ended:
            served.kill()


def _wait(served: Served) -> None:
    until = time.monotonic() + _START
    while (found := _ADDRESS.search(served.said())) is None:
        code = served.process.poll()
        assert code is None, f"ended by itself with {code}: {served.log()[-4000:]}"
        assert time.monotonic() < until, f"not there after {_START:g} s: {served.said()} {served.log()[-4000:]}"
        time.sleep(0.02)
    served.url = found[1]


def silent(connection: socket.socket, seconds: float) -> bool:
    """Whether nothing comes, and it is not closed, for so long."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return not selector.select(seconds)
