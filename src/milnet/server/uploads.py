"""Bodies -> photos, in memory and within limits: one image, a multipart form, or ids of photos sent before.

Nothing is spooled to the disk. A photo is given on as soon as its last byte is there, while the rest is still coming.
File names are labels: they are never opened.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from milnet.server.problems import Problem, busy

FIELD = "photos"
_NAME = 500  # characters of a name that are kept
_OTHER = 1 << 20  # bytes of other fields of a form
_JSON = 2 << 20  # bytes of a JSON body at most
_BRACKETS = 5000  # lists and objects in it: a million empty ones take seconds to read
_IDS = 20_000  # ids a call: about as many as are remembered
_QUIET = 15.0  # seconds without a byte after which a body is given up
_SLOWEST = 20_000.0  # bytes a second that a body must have in the mean ...
_GRACE = 20.0  # ... after so many seconds
_ID = re.compile("[0-9a-f]{64}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What one call, and all calls together, may send."""

    photo: int = 64 << 20  # bytes
    photos: int = 100  # a call
    pixels: int = 120_000_000
    together: int = 512 << 20  # bytes of all calls that are in memory


@dataclass(frozen=True)
class Upload:
    """A photo of a call: its file, or None where `id` was named instead."""

    index: int
    name: str
    data: bytes | None
    id: str = ""


class Room:
    """Bytes of files in memory, of all calls together."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, count: int) -> None:
        """Hold more; Problem 429 where that is too much."""
        if self.held + count > self.most:
            raise busy(2)
        self.held += count

    def give(self, count: int) -> None:
        """Hold less."""
        self.held -= count


def check_length(request: Request, limits: Limits) -> None:
    """Refuse a body that says itself that it is too long, before it is read."""
    text = request.headers.get("content-length")
    if text is None:
        return
    most = limits.photo if _kind(request)[0] != "multipart/form-data" else limits.photo * limits.photos
    if not text.isdecimal() or int(text) > most:
        raise too_long(text, most)


def too_long(got: object, most: int, what: str = "body") -> Problem:
    """413."""
    return Problem(
        413,
        f"the {what} is too long: send smaller photos, or fewer at once",
        expected=f"at most {most} bytes",
        got=f"{got} bytes",
        limit=most,
    )


def _kind(request: Request) -> tuple[str, dict[bytes, bytes]]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1").lower(), options


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; Problem 408 for one that comes too slowly."""
    loop = asyncio.get_running_loop()
    spent, count, stream = 0.0, 0, request.stream()
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(_QUIET):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise Problem(400, "the client went away in the middle of the body") from None
        except TimeoutError:
            raise Problem(
                408, "the body came too slowly", expected=f"a byte every {_QUIET:g} s", headers={"Connection": "close"}
            ) from None
        count += len(chunk)
        spent += loop.time() - began  # without the time in which we were busy with what had come
        if spent > _GRACE and count < _SLOWEST * (spent - _GRACE):
            raise Problem(
                408,
                "the body came too slowly",
                expected=f"{_SLOWEST:g} bytes a second",
                got=f"{count / spent:.0f}",
                headers={"Connection": "close"},
            )
        if chunk:
            yield chunk


async def uploads(request: Request, limits: Limits, room: Room) -> AsyncGenerator[Upload, None]:
    """The photos of a body, in order. Whoever takes one gives its bytes back to `room`."""
    kind, options = _kind(request)
    check_length(request, limits)
    if kind == "multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 200:
            raise Problem(
                400, "a multipart body without boundary", expected="Content-Type: multipart/form-data; boundary=..."
            )
        async with aclosing(_multipart(request, boundary, limits, room)) as parts:
            async for upload in parts:
                yield upload
    elif kind == "application/json":
        for upload in _ids(await read_json(request, room)):
            yield upload
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = await _one(request, limits, room)
        yield Upload(0, label(request.query_params.get("name", "")) or "photo", data)
    else:
        raise Problem(
            415,
            "not a kind of body that photos come in",
            expected="multipart/form-data with parts named `photos`, image/*, application/octet-stream, or "
            'application/json {"ids": [...]}',
            got=kind[:100] or "no Content-Type",
        )


def label(name: str) -> str:
    """A name as it is echoed: no control characters, not endless."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", name)[:_NAME]


async def one_image(request: Request, limits: Limits, room: Room) -> bytes:
    """The bytes of a single image; whoever takes them gives them back to `room`."""
    kind, _ = _kind(request)
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise Problem(
            415, "expected the bytes of one image", expected="image/* or application/octet-stream", got=kind[:100]
        )
    check_length(request, limits)
    return await _one(request, limits, room)


async def _one(request: Request, limits: Limits, room: Room) -> bytes:
    data = bytearray()
    try:
        async for chunk in chunks(request):
            if len(data) + len(chunk) > limits.photo:
                raise too_long(f"more than {limits.photo}", limits.photo)
            room.take(len(chunk))
            data += chunk
        if not data:
            raise Problem(400, "the body is empty", expected="the bytes of an image", got="0 bytes")
    except BaseException:
        room.give(len(data))
        raise
    return bytes(data)


async def read_json(request: Request, room: Room) -> Any:
    """The JSON of a body."""
    data = bytearray()
    try:
        async for chunk in chunks(request):
            if len(data) + len(chunk) > _JSON:
                raise too_long(f"more than {_JSON}", _JSON)
            room.take(len(chunk))
            data += chunk
        if data.count(b"[") + data.count(b"{") > _BRACKETS:
            raise Problem(422, "too many lists and objects in the body", expected=f"at most {_BRACKETS}")
        return json.loads(bytes(data), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is no JSON", expected="JSON", got=str(error)[:200]) from None
    finally:
        room.give(len(data))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def ids_of(body: Any) -> list[str]:
    """The ids that a JSON body names."""
    found = body.get("ids") if isinstance(body, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= _IDS:
        got = f"{len(found)} ids" if isinstance(found, list) else type(body).__name__
        raise Problem(422, "no ids of photos", expected=f'{{"ids": [...]}} with 1 to {_IDS} ids', got=got)
    for one in found:
        if not isinstance(one, str) or not _ID.fullmatch(one):
            raise Problem(422, "not an id of a photo", expected="64 hexadecimal digits", got=str(one)[:80])
    return found


def _ids(body: Any) -> list[Upload]:
    return [Upload(i, one[:12], None, one) for i, one in enumerate(ids_of(body))]


class _Parts:
    """What the parser's callbacks collect."""

    def __init__(self, limits: Limits, room: Room) -> None:
        self.limits, self.room = limits, room
        self.finished: list[tuple[str, bytes]] = []
        self.count, self.parts, self.other, self.ended = 0, 0, 0, False
        self.headers: dict[str, str] = {}
        self.field, self.value, self.data = bytearray(), bytearray(), bytearray()
        self.wanted, self.name = False, ""

    def callbacks(self) -> Any:
        """For the parser, which limits the headers of a part itself."""
        return {
            "on_part_begin": self.begin,
            "on_header_field": self.on_field,
            "on_header_value": self.on_value,
            "on_header_end": self.on_header,
            "on_headers_finished": self.on_headers,
            "on_part_data": self.on_data,
            "on_part_end": self.on_part,
            "on_end": self.on_end,
        }

    def begin(self) -> None:
        self.headers, self.data, self.wanted, self.name = {}, bytearray(), False, ""
        self.field, self.value = bytearray(), bytearray()
        self.parts += 1
        if self.parts > self.limits.photos + 16:
            raise Problem(
                413, "too many parts", expected=f"at most {self.limits.photos} photos", limit=self.limits.photos
            )

    def on_field(self, data: bytes, start: int, end: int) -> None:
        self.field += data[start:end]

    def on_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header(self) -> None:
        self.headers[self.field.decode("latin-1").lower()] = self.value.decode("utf-8", "replace")
        self.field, self.value = bytearray(), bytearray()

    def on_headers(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", "").encode("utf-8", "replace"))
        if options.get(b"name", b"").decode("utf-8", "replace") == FIELD:
            self.wanted = True
            self.count += 1
            if self.count > self.limits.photos:
                most = self.limits.photos
                raise Problem(413, "too many photos in one call", expected=f"at most {most}", limit=most)
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            # browsers and most programs write a quote so (WHATWG HTML, multipart/form-data encoding)
            self.name = label(name.replace("%22", '"')) or f"photo {self.count}"

    def on_data(self, data: bytes, start: int, end: int) -> None:
        if not self.wanted:
            self.other += end - start
            if self.other > _OTHER:
                raise too_long(f"more than {_OTHER} in other fields than `{FIELD}`", _OTHER, "form")
            return
        if len(self.data) + end - start > self.limits.photo:
            raise too_long(f"more than {self.limits.photo}", self.limits.photo, "photo")
        self.room.take(end - start)
        self.data += data[start:end]

    def on_part(self) -> None:
        if self.wanted:
            self.finished.append((self.name, bytes(self.data)))
        self.data, self.wanted = bytearray(), False

    def on_end(self) -> None:
        self.ended = True

    def drop(self) -> None:
        """Give back what nobody takes any more."""
        self.room.give(len(self.data) + sum(len(data) for _, data in self.finished))
        self.data, self.finished = bytearray(), []


async def _multipart(request: Request, boundary: bytes, limits: Limits, room: Room) -> AsyncGenerator[Upload, None]:
    parts = _Parts(limits, room)
    index, most = 0, limits.photo * limits.photos + (1 << 20)
    try:
        parser = MultipartParser(boundary, parts.callbacks(), max_size=most)
        async for chunk in chunks(request):
            parser.write(chunk)
            while parts.finished:
                name, data = parts.finished.pop(0)
                yield Upload(index, name, data)
                index += 1
        parser.finalize()
    except MultipartParseError as error:
        raise Problem(
            400, "the multipart body is damaged", expected="multipart/form-data", got=str(error)[:200]
        ) from None
    finally:
        parts.drop()
    if not parts.ended:
        raise Problem(400, "the multipart body ends too early", expected="a closing boundary", got="none")
    if not index:
        raise Problem(422, "no photo in the form", expected=f"parts named `{FIELD}`", got=f"{parts.parts} other parts")
