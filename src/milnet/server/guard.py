"""Who may ask what: host, origin and token of every request are checked here, and every answer gets its headers.

    host      the names this service is known by: another site whose name leads here (DNS rebinding) is refused
    origin    what a browser sends for a page of another site is refused, so that no page can use the service unseen
    token     where one is set, in `Authorization: Bearer ...`, compared in constant time; never in an address

Each request is logged with method, route, status and time: no names, no bytes of photos.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from milnet.errors import UsageError
from milnet.server.gauges import Gauges
from milnet.server.problems import Problem

log = logging.getLogger("milnet.serve")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MOST, _LONGEST = 200, 32 << 10  # headers of a request, and bytes of all of them
OPEN = ("/v1/health", "/v1/ready")  # what needs no token
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def names_of(host: str, more: Sequence[str] = ()) -> frozenset[str]:
    """The names that requests may call this service by."""
    names = {*LOOPBACK, host.strip("[]").lower(), *(name.lower() for name in more)}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


def host_name(header: str) -> str:
    """The name in a Host header, without its port; "" for none that makes sense."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.path or parts.query or parts.fragment or parts.username or "@" in header:
        return ""
    return (parts.hostname or "").rstrip(".").lower()


def check_token(token: str) -> str:
    """A token that can be a header, or UsageError."""
    if not (16 <= len(token) <= 512 and token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token: expected 16 to 512 printable ASCII characters without spaces, in one line")
    return token


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(
        self, app: ASGIApp, *, names: frozenset[str], everywhere: bool, token: str | None, gauges: Gauges, most: int
    ) -> None:
        """`everywhere`: it listens beyond loopback, so that addresses (which no site can take over) may name it."""
        self.app, self.names, self.everywhere, self.gauges = app, names, everywhere, gauges
        self.token = None if token is None else token.encode()
        self.most, self.open = most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, log."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in RAW_HEADERS if header[0] not in given),
                    *([] if b"cache-control" in given else [(b"cache-control", b"no-store")]),
                ]
            await send(message)

        self.open += 1
        try:
            problem = self._refused(scope)
            if problem is None:
                await self.app(scope, receive, sending)
            else:
                await problem.response()(scope, receive, sending)
        finally:
            self.open -= 1
            seconds, route = time.monotonic() - began, _route(scope)
            self.gauges.requests.labels(route, status).inc()
            self.gauges.seconds.labels(route).observe(seconds)
            log.info("%s %s %s %.0f ms", scope["method"], route, status or "closed", 1000 * seconds)

    def _refused(self, scope: Scope) -> Problem | None:
        headers: dict[bytes, bytes] = {}
        if len(scope["headers"]) > _MOST or sum(len(n) + len(value) for n, value in scope["headers"]) > _LONGEST:
            return Problem(431, "too many headers, or too long ones", expected=f"at most {_MOST}, {_LONGEST} bytes")
        for name, value in scope["headers"]:
            if name in headers and name in (b"host", b"origin", b"authorization", b"content-length"):
                return Problem(400, f"the header {name.decode()} stands there twice", expected="once", got="twice")
            headers[name] = value
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._known(host_name(host)):
            return Problem(
                421,
                "this service does not go by that name; start it with --name to add one",
                expected=", ".join(sorted(self.names)),
                got=host[:200] or "no Host",
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
            return Problem(
                403, "a page of another site may not use this service", expected=f"Origin: http://{host}",
                got=origin.decode("latin-1")[:200],
            )  # fmt: skip
        site = headers.get(b"sec-fetch-site", b"none")
        if site not in (b"none", b"same-origin") and scope["path"] not in ("/", "/about"):
            return Problem(403, "a page of another site may not use this service", got=site.decode("latin-1")[:40])
        if self.token is not None and scope["path"].startswith("/v1/") and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
                return Problem(
                    401,
                    "a token is needed, in a header",
                    expected="Authorization: Bearer TOKEN",
                    got="another one" if given else "none",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self.open > self.most and scope["path"] not in OPEN:
            self.gauges.refused.inc()
            return Problem(
                429, "too many requests at once", expected=f"at most {self.most}", headers={"Retry-After": "1"}
            )
        return None

    def _known(self, name: str) -> bool:
        if name in self.names:
            return True
        if not self.everywhere:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _route(scope: Scope) -> Any:
    """The route, not the address: what a client makes up is no name of a figure."""
    route = scope.get("route")
    return getattr(route, "path", "other")
