"""Running the service: sockets, signals, and time limits of connections.

uvicorn ends a stopped server by sending itself the signal again, so that the process ends with 143. Here SIGTERM and
SIGINT close the door: no new connection, what was accepted is finished, and the process ends with 0. A second signal
ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from milnet.errors import UsageError
from milnet.server.guard import RAW_HEADERS
from milnet.server.problems import MEDIA_TYPE, Problem

log = logging.getLogger("milnet.serve")

_HEADERS = 10.0  # seconds that a client may take to say what it wants
_IDLE = 10  # seconds that a connection may be idle between requests
_UNREAD = 60.0  # seconds in which a client must have taken something of its answer ...
_HURRY = 5.0  # ... while the service is stopping
_SETTLE = 0.25  # seconds after the signal to stop, for what had been sent before it
_FINISH = 60  # seconds for what was accepted, after the signal to stop
_CONNECTIONS = 1000


class _Connection(H11Protocol):
    """A connection that has to say something soon, and one of not too many."""

    _patience: asyncio.TimerHandle | None = None
    _unread, _since = 0, 0.0  # bytes of answers not yet taken, and since when they do not become fewer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            transport.abort()
            return
        self._wait()

    def _wait(self) -> None:
        self._patience = self.loop.call_later(_HEADERS, self._impatient)

    def _impatient(self) -> None:
        self._patience = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.abort()

    def _calm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the headers of a request are there
            self._calm()
        elif (self.cycle is None or self.cycle.response_complete) and self._patience is None:
            self._wait()  # the first bytes of another one

    def _should_upgrade(self) -> bool:
        return False  # no websockets, and no advice in the log on how to have them

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as all else is answered; close where an answer has begun."""
        with contextlib.suppress(h11.LocalProtocolError):
            answer = Problem(400, "the request is no HTTP that is understood here", expected="HTTP/1.1").response()
            body = bytes(answer.body)
            headers = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                (b"connection", b"close"),
                *RAW_HEADERS,
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def check_reader(self, patience: float) -> None:
        """Give up a client that does not read its answer, even where we have closed already; called every second."""
        unread, now = self.transport.get_write_buffer_size(), self.loop.time()
        if not unread or not self._unread or unread < self._unread:
            self._since = now
        elif now - self._since > patience:
            log.warning("a client does not read its answer: the connection is closed")
            self.transport.abort()
        self._unread = unread

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn with our signals."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._told = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the server, and nothing else."""

        def stop(number: int, _: Any) -> None:
            if self.should_exit:
                self.force_exit = True
            self.should_exit = True
            log.info("stopping: what was accepted is finished first")

        numbers = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def main_loop(self) -> None:
        """Until a signal; clients are watched to the very end."""
        self._watching = asyncio.create_task(self._watch())
        await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what had been sent before the signal, and close."""
        await asyncio.sleep(_SETTLE)
        await super().shutdown(sockets)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            for connection in list(self.server_state.connections):
                if isinstance(connection, _Connection):
                    connection.check_reader(_HURRY if self.should_exit else _UNREAD)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._told()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; UsageError where that address cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        found = socket.socket(family, kind)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(512)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there ({error}); choose another port") from error
    return found


def serve(app: ASGIApp, listening: socket.socket, started: Callable[[], None]) -> bool:
    """Run until a signal stops it; False where it could not start."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_FINISH,
        h11_max_incomplete_event_size=32 << 10,
    )
    server = Server(config, started)
    server.run(sockets=[listening])
    return server.started


def log_to(stream: TextIO, *, quiet: bool) -> None:
    """One line a request on `stream`; with `quiet` only what is wrong."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # what its parser says of each damaged body, with bytes of it
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    for name in ("milnet.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "milnet.serve" and not quiet else logging.WARNING)
