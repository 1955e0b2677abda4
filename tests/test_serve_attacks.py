"""`milnet serve` under attack: whatever is sent, it answers with a refusal or not at all, lives, and forgets it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import re
import resource
import signal
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

import made
import made_files
from milnet.errors import ImageError
from milnet.preprocess import Preprocess
from milnet.server import child
from milnet.server.decoders import DecoderError, Decoders, _understood
from milnet.server.problems import Problem
from milnet.server.uploads import Room, chunks, label
from served import Served, assert_gone, form_of, read_answer, read_answers, service, silent

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, to look at processes")

# ---- files -----------------------------------------------------------------------------------------------------------


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """A photo in a format of Pillow's."""
    stream = io.BytesIO()
    (made.photo(1) if image is None else image).save(stream, kind, **options)
    return stream.getvalue()


def large(seed: int, width: int = 5000, height: int = 4000) -> bytes:
    """A JPEG that takes a while to decode, of few bytes."""
    return encoded("JPEG", made.photo(seed, 50, 40).resize((width, height)), quality=40)


def formats() -> dict[str, bytes]:
    """A good photo in each format."""
    array = np.asarray(made.photo(1))
    found = {kind: encoded(kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")}
    found["progressive"] = encoded("JPEG", progressive=True)
    found["LZW"] = encoded("TIFF", compression="tiff_lzw")
    if features.check("avif"):
        found["AVIF"] = encoded("AVIF")
    return {**found, "HEIC": made_files.heic(array), "DNG": made_files.dng(array)}


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, *chunks: bytes, data: bytes | None = None) -> bytes:
    """A PNG that says it has these sides."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes((width * 3 + 1) * height)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that claim to be, or grow to, something huge."""
    zeros = zlib.compress(bytes(200 << 20), 9)
    jpeg, exif = encoded("JPEG"), b"Exif\0\0" + made_files.exif_block()
    frame = jpeg.index(b"\xff\xc0") + 5
    gif, webp, bmp = encoded("GIF"), encoded("WEBP", lossless=True), encoded("BMP")
    claims = exif.replace(b"\x03\x90\x02\0\x14\0\0\0", b"\x03\x90\x02\0\xff\xff\xff\x7f")
    at = gif.index(b"\x2c\0\0\0\0") + 5
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    huge: list[made_files.Entry] = [
        (256, made_files.LONG, 200_000), (257, made_files.LONG, 200_000), (258, made_files.SHORT, 8),
        (259, made_files.SHORT, 1), (262, made_files.SHORT, 1), (273, made_files.LONG, 8),
        (277, made_files.SHORT, 1), (278, made_files.LONG, 200_000), (279, made_files.LONG, 4_000_000_000),
    ]  # fmt: skip
    return {
        "png sides": png_of(100_000, 100_000, data=zeros[:2000]),
        "png largest sides": png_of(0x7FFFFFFF, 0x7FFFFFFF, data=b""),
        "png no sides": png_of(0, 0, data=zlib.compress(b"")),
        "png that grows": png_of(11_000, 12_000, data=zeros),
        "png profile": png_of(20, 20, png_chunk(b"iCCP", b"x\0\0" + zeros)),
        "png text": png_of(20, 20, png_chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "png exif": png_of(20, 20, png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros)),
        "png international text": png_of(20, 20, png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)),
        "png chunk without end": png_of(20, 20)[:33] + struct.pack(">I", 0xFFFFFFFF) + b"IDAT",
        "png thousands of chunks": png_of(20, 20, *[png_chunk(b"tEXt", b"a\0b")] * 20_000)[:-60],
        "jpeg sides": jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :],
        "jpeg no sides": jpeg[:frame] + bytes(4) + jpeg[frame + 4 :],
        "jpeg exif in a ring": encoded("JPEG", exif=loop)[:-40],
        "jpeg exif that claims much": encoded("JPEG", exif=claims)[:-40],
        "jpeg of markers": b"\xff\xd8" + b"\xff\xe1\0\x02" * 100_000,
        "gif sides": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "gif frame": gif[:6] + b"\xff\xff\xff\xff" + gif[10:at] + b"\xff\xff\xff\xff" + gif[at + 4 :],
        "webp sides": webp[:21] + b"\xff\xff\xff\x0f" + webp[25:],
        "bmp sides": bmp[:18] + struct.pack("<ii", 0x7FFFFFFF, 0x7FFFFFFF) + bmp[26:],
        "bmp negative sides": bmp[:18] + struct.pack("<ii", -5, -0x80000000) + bmp[26:],
        "ppm sides": b"P6 100000 100000 255\n" + bytes(100),
        "ppm number": b"P6 " + b"9" * 100_000 + b" 1 255\n",
        "tiff sides": b"II*\0\x08\0\0\0" + made_files.ifd(huge, 8),
        "tiff in a ring": b"II*\0\x08\0\0\0" + b"\x01\0\0\x01\x03\0\x01\0\0\0\x05\0\0\0" + b"\x08\0\0\0",
        "tiff of entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(200),
        "heic claims": made_files.heic(np.asarray(made.photo(1)), claimed=(60_000, 60_000)),
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(12) + b"\xff\xff\xff\xffmoov",
        "boxes in boxes": b"\0\0\0\x18ftypheic" + bytes(12) + b"\x7f\xff\xff\xffmeta" * 5000,
    }  # fmt: skip


def others() -> dict[str, bytes]:
    """No photos at all."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    return {
        "one byte": b"\0",
        "zeros": bytes(100_000),
        "text": b"no image at all\n" * 50,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!doctype html><script>alert(1)</script>",
        "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999999 9999999\n(/etc/passwd) (r) file\n",
        "zip": archive.getvalue(),
        "elf": b"\x7fELF" + bytes(200),
        "icon": b"\0\0\x01\0\xff\xff" + bytes(200),
        "pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
        "xpm": b'/* XPM */\nstatic char *x[] = {"99999 99999 1 1", "a c None"};',
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "signature alone": b"\xff\xd8\xff",
        "another signature": b"\x89PNG\r\n\x1a\n",
        "avi": b"RIFF\xff\xff\xff\xffAVI LIST",
        "webp with nothing": b"RIFF\x04\0\0\0WEBP",
    }


def malformed(seed: int, count: int = 200) -> list[tuple[str, bytes, bool]]:
    """Files that are wrong: what it is, the bytes, and whether none of it can be a photo."""
    rng = random.Random(seed)
    found = [(what, data, True) for what, data in (bombs() | others()).items() if what not in HARMLESS]
    found += [(what, bombs()[what], False) for what in HARMLESS]
    good = list(formats().items())
    while len(found) < count:
        kind, data = good[len(found) % len(good)]
        spoilt = bytearray(data)
        how = rng.choice(("cut", "cut", "bits", "hole", "twice"))
        if how == "cut":
            spoilt = spoilt[: rng.randrange(1, max(2, len(data) * 2 // 3))]
        elif how == "bits":
            for _ in range(rng.randrange(1, 30)):
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        elif how == "hole":
            at = rng.randrange(len(data))
            spoilt[at : at + rng.randrange(1, 400)] = rng.randbytes(200)
        else:
            at = rng.randrange(len(data))
            spoilt = bytearray(data[:at] + data[rng.randrange(len(data)) :])
        found.append((f"{kind}, {how}", bytes(spoilt), how == "cut"))
    return found


# What surrounds a picture is damaged, and the picture is not: it may be scored.
HARMLESS = ("png profile", "png text", "png exif", "png international text")

# ---- services --------------------------------------------------------------------------------------------------------

# Limits of time that a test can wait for.
QUICK = """
import milnet.server.running, milnet.server.uploads
milnet.server.running._HEADERS = 1.0
milnet.server.running._IDLE = 1
milnet.server.running._UNREAD = 1.0
milnet.server.uploads._QUIET = 1.0
milnet.server.uploads._GRACE = 1.5
room, begin = milnet.server.uploads.Room, milnet.server.uploads.Room.__init__
room.__init__ = lambda self, most: begin(self, 12 << 20)
"""


# Limits of time that no refusal can be taken for: where one is awaited, its test fails.
PATIENT = """
import milnet.server.running, milnet.server.uploads
milnet.server.running._HEADERS = 120.0
milnet.server.running._IDLE = 120
milnet.server.uploads._QUIET = milnet.server.uploads._GRACE = 120.0
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with small limits, except those of time."""
    folder = tmp_path_factory.mktemp("attacked")
    with service(folder, "--max-bytes", 4, "--max-photos", 20, before=PATIENT) as one:
        yield one


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that is not patient, and has file descriptors for as many connections as it allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 4096)), before[1]))
    with service(tmp_path_factory.mktemp("quick"), "--decoders", 2, "--queue", 6, before=QUICK) as one:
        yield one
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


GOOD = encoded("JPEG")


def score_of(served: Served) -> float:
    """Of a good photo."""
    answer = served.post("/v1/score", GOOD)
    assert answer.status == 200, answer
    (score,) = answer.json()["scores"]
    return float(score["score"])


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def assert_at_rest(served: Served, files: int) -> None:
    """It is ready, and holds nothing of what was sent."""

    def resting() -> bool:
        figures = served.figures()
        return figures[("milnet_held_bytes",)] == figures[("milnet_waiting_photos",)] == 0

    until(resting)
    until(lambda: served.open_files() <= files)
    assert served.get("/v1/ready").status == 200


def wrong(served: Served) -> list[str]:
    """What its log has beside the lines of requests."""
    return [line for line in served.log().splitlines() if not re.match(r"\S+ \S+ INFO ", line)]


def statuses(served: Served) -> set[int]:
    """All statuses it has answered with (0: the client did not wait for one)."""
    return {int(key[-1]) for key in served.figures() if key[0] == "milnet_requests_total"}


# ---- files that are wrong --------------------------------------------------------------------------------------------


def test_malformed_uploads(served: Served) -> None:
    """200 files, in two rounds: refused, each with a reason, and nothing is left of them."""
    before, resident, found = score_of(served), [], Counter[int]()
    files = served.open_files()
    for seed in (1, 2):
        for what, data, never in malformed(seed):
            answer = served.post("/v1/score", data)
            assert answer.status in ((422, 413) if never else (422, 413, 200)), (what, answer)
            if answer.status == 422:
                (failure,) = answer.json()["failures"]
                assert len(failure["id"]) == 64 and 5 < len(failure["reason"]) < 600, what
            found[answer.status] += 1
        assert_at_rest(served, files)
        resident.append(served.resident())
    assert found[422] > 250 and found.total() == 400
    assert resident[1] < 1.03 * resident[0]
    assert score_of(served) == pytest.approx(before, abs=1e-6)
    assert not wrong(served)


def test_malformed_among_good_ones(served: Served) -> None:
    """In one form, and for the preview: the good ones are scored as ever."""
    before = score_of(served)
    bad = [(what, data) for what, data, never in malformed(3) if never][::4][:18]
    answer = served.form("/v1/score", [("first", GOOD), *bad, ("last", GOOD)])
    assert answer.status == 200
    scores, failures = answer.json()["scores"], answer.json()["failures"]
    assert [one["photo"] for one in scores] == ["first", "last"]
    assert [one["photo"] for one in failures] == [what for what, _ in bad]
    assert [one["index"] for one in failures] == list(range(1, 19))
    assert all(one["score"] == pytest.approx(before, abs=1e-5) for one in scores)
    for what, data in bad:
        preview = served.post("/v1/preview", data)
        assert preview.status == 422 and preview.json()["detail"], what
    assert not wrong(served)


# ---- HTTP that is wrong ----------------------------------------------------------------------------------------------

HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /v1/score HTTP/1.1\r\n" + HOST
JPEG = b"Content-Type: image/jpeg\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=abc\r\n"
PART = b'--abc\r\nContent-Disposition: form-data; name="photos"; filename="a"\r\n\r\n'


def sized(body: bytes, head: bytes = POST + FORM) -> bytes:
    """With the right Content-Length."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*parts: bytes, head: bytes = POST + JPEG) -> bytes:
    """As chunks, without the last one."""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)


# what, bytes, the statuses that may come (None: closed without an answer)
REQUESTS: list[tuple[str, bytes, set[int | None]]] = [
    ("nothing", b"", {None}),
    ("binary", bytes(range(256)) * 50, {400, None}),
    ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500), {400, None}),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {421}),
    ("another protocol", b"EHLO example.org\r\n", {400, None}),
    ("HTTP/0.9", b"GET /\r\n", {400, None}),
    ("HTTP/1.0 without Host", b"GET /v1/health HTTP/1.0\r\n\r\n", {421}),
    ("HTTP/1.1 without Host", b"GET /v1/health HTTP/1.1\r\n\r\n", {400}),
    ("two hosts", b"GET /v1/health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", {400}),
    ("another version", b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", {400, 505, 421, 200, None}),
    ("a method of its own", b"MOVE /v1/score HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    ("a whole address", b"GET http://example.org/v1/health HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
    ("websocket", b"GET /v1/score HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", {405}),
    ("space in the name of a header", b"GET / HTTP/1.1\r\n" + HOST + b"a b: c\r\n\r\n", {400}),
    ("folded header", b"GET / HTTP/1.1\r\n" + HOST + b" folded: x\r\n\r\n", {400, 421}),
    ("zero in a header", b"GET / HTTP/1.1\r\n" + HOST + b"a: b\0c\r\n\r\n", {400}),
    ("a header of 100 KB", b"GET / HTTP/1.1\r\n" + HOST + b"a: " + b"b" * 100_000 + b"\r\n\r\n", {431, 400}),
    ("10,000 headers", b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 10_000 + b"\r\n", {431, 400}),
    ("an address of 100 KB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {404, 400}),
    ("odd escapes", b"GET /static/%00%ff%zz%2e%2e%2f HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    ("no length", POST + JPEG + b"\r\n", {400}),
    ("too short a body", POST + JPEG + b"Content-Length: 100000\r\n\r\n" + GOOD, {None, 400}),
    ("too long a body", POST + JPEG + b"Content-Length: 100\r\nConnection: close\r\n\r\n" + GOOD, {422}),
    ("a negative length", POST + JPEG + b"Content-Length: -1\r\n\r\n" + GOOD, {400}),
    ("a length that is none", POST + JPEG + b"Content-Length: x\r\n\r\n" + GOOD, {400}),
    ("a length with a sign", POST + JPEG + b"Content-Length: +5\r\n\r\n" + GOOD, {400}),
    ("a length of 30 digits", POST + JPEG + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + GOOD, {400, 413}),
    ("a length of 19 digits", POST + JPEG + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n" + GOOD, {413}),
    ("two lengths", POST + JPEG + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + GOOD, {400}),
    ("two lengths in one", POST + JPEG + b"Content-Length: 5, 6\r\n\r\n" + GOOD, {400}),
    ("chunks of nonsense", chunked() + b"zz\r\n" + GOOD, {400}),
    ("a negative chunk", chunked() + b"-5\r\n" + GOOD, {400}),
    ("an endless size of a chunk", chunked() + b"0" * 100_000, {400, None}),
    ("chunks that end early", chunked(GOOD[:100]), {None, 400}),
    ("chunks of a wrong size", chunked() + b"3\r\nabcdef\r\n0\r\n\r\n", {400}),
    ("another coding", POST + JPEG + b"Transfer-Encoding: gzip\r\n\r\n" + GOOD, {400, 501}),
    ("no type", POST + b"Content-Length: 5\r\n\r\nabcde", {415}),
    ("a type of nonsense", sized(GOOD, POST + b"Content-Type: \xff\xfe/;=;;\r\n"), {415}),
    ("another type", sized(GOOD, POST + b"Content-Type: text/plain\r\n"), {415}),
    ("JSON that is none", sized(b"{", POST + b"Content-Type: application/json\r\n"), {400}),
    ("JSON a million deep", sized(b"[" * 1_000_000, POST + b"Content-Type: application/json\r\n"), {422}),
    ("JSON of lists", sized(b"[" + b"[]," * 300_000 + b"0]", POST + b"Content-Type: application/json\r\n"), {422}),
    ("JSON of 3 MB", sized(b"[" + b"1," * 1_500_000 + b"0]", POST + b"Content-Type: application/json\r\n"), {413}),
    ("a number of 5,000 digits", sized(b"9" * 5000, POST + b"Content-Type: application/json\r\n"), {400}),
    ("ids that are none", sized(b'{"ids": [1]}', POST + b"Content-Type: application/json\r\n"), {422}),
    ("half a character", sized(b'{"ids": ["\\ud800"]}', POST + b"Content-Type: application/json\r\n"), {422}),
    ("no boundary", sized(PART + GOOD, POST + b"Content-Type: multipart/form-data\r\n"), {400}),
    ("a boundary of 300", sized(PART, POST + FORM.replace(b"abc", b"a" * 300)), {400}),
    ("a boundary of bytes", sized(PART, POST + FORM.replace(b"abc", b"\xff\xfe")), {400}),
    ("no closing boundary", sized(PART + GOOD + b"\r\n--abc"), {400}),
    ("another boundary", sized(PART.replace(b"abc", b"xyz") + GOOD), {400}),
    ("no part", sized(b"--abc--\r\n"), {422, 400}),
    ("an empty form", sized(b""), {400}),
    ("an empty photo", sized(PART + b"\r\n--abc--\r\n"), {422}),
    ("another field", sized(PART.replace(b"photos", b"photo") + GOOD + b"\r\n--abc--\r\n"), {422}),
    ("2 MB in another field", sized(PART.replace(b"photos", b"x") + bytes(2 << 20) + b"\r\n--abc--\r\n"), {413}),
    ("no name of a part", sized(b"--abc\r\n\r\n" + GOOD + b"\r\n--abc--\r\n"), {422}),
    ("forms in forms", sized(b'--abc\r\nContent-Type: multipart/mixed; boundary="abc"\r\n\r\n' * 30), {400}),
    ("30,000 parts", sized(b'--abc\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 30_000), {413}),
    ("21 photos of 20", sized((PART + GOOD + b"\r\n") * 21 + b"--abc--\r\n"), {413}),
    ("headers of a part without end", sized(b"--abc\r\na: " + b"b" * 500_000), {400}),
    ("1,000 headers of a part", sized(b"--abc\r\n" + b"a: b\r\n" * 1000 + b"\r\n"), {400}),
    ("half boundaries", sized(PART + b"\r\n--ab" * 100_000 + b"\r\n--abc--\r\n"), {422}),
    ("line ends before the first part", sized(b"\r\n" * 500_000), {400}),
    ("a photo of 5 MB where 4 may be", sized(PART + bytes(5 << 20) + b"\r\n--abc--\r\n"), {413}),
    ("5 MB where 4 may be", sized(bytes(5 << 20), POST + JPEG), {413}),
    ("5 MB in chunks", chunked(*[bytes(1 << 16)] * 80) + b"0\r\n\r\n", {413}),
    ("a form of 80 MB, as it says", POST + FORM + b"Content-Length: 90000000\r\n\r\n" + PART, {413}),
]  # fmt: skip


def outcome(served: Served, request: bytes, *, ends: bool) -> int | None:
    """Send bytes: the status of the answer, or None where the connection is closed. `ends`: and no more than those."""
    with served.connect(60) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        try:
            return read_answer(connection).status
        except ConnectionError:
            return None


@pytest.mark.parametrize(("what", "request_", "expected"), REQUESTS, ids=[what for what, _, _ in REQUESTS])
def test_wrong_http(served: Served, what: str, request_: bytes, expected: set[int | None]) -> None:
    """Refused or closed, at once."""
    began = time.monotonic()
    # where it is closed with something unread, the answer may be lost on its way
    assert outcome(served, request_, ends=None in expected) in expected | ({None} if len(request_) > 100_000 else set())
    assert time.monotonic() - began < 30


def test_after_wrong_http(served: Served) -> None:
    """Nothing is left of all that, and nothing of it was an error of the service."""
    assert_at_rest(served, served.open_files())
    assert all(line.endswith("WARNING Invalid HTTP request received.") for line in wrong(served)), wrong(served)[-20:]
    assert statuses(served) <= {0, 200, 400, 404, 405, 408, 413, 415, 421, 422, 431}
    score_of(served)


def test_what_is_no_http_is_answered_as_all_else(served: Served) -> None:
    """With all headers, as a problem."""
    with served.connect() as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        answer = read_answer(connection)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 400 and answer.json()["title"] == "Bad Request"
    normal = served.get("/v1/health")
    own = {"content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-opener-policy"}
    assert own <= answer.headers.keys()
    assert all(answer.headers[name] == normal.headers[name] for name in own)


def test_pipelining(served: Served) -> None:
    """Requests in one go are answered in order; one behind nonsense is not."""
    health = b"GET /v1/health HTTP/1.1\r\n" + HOST + b"\r\n"
    with served.connect() as connection:
        connection.sendall(health * 20 + sized(GOOD, POST + JPEG) + health.replace(b"health", b"none"))
        answers = read_answers(connection, 22)
    assert [one.status for one in answers] == [200] * 21 + [404]
    assert len(answers[20].json()["scores"]) == 1
    with served.connect() as connection:
        connection.sendall(health + b"nonsense\r\n\r\n" + health)
        assert [one.status for one in read_answers(connection, 2)] == [200, 400]
        assert not connection.recv(1)


def test_http_1_0(served: Served) -> None:
    """Without keeping the connection."""
    with served.connect() as connection:
        connection.sendall(sized(GOOD, POST.replace(b"1.1", b"1.0") + JPEG))
        answer = read_answer(connection)
        assert answer.status == 200 and len(answer.json()["scores"]) == 1
        assert not connection.recv(1)


def test_bytes_one_by_one(served: Served) -> None:
    """A good request in the smallest pieces is a good request, as chunks and as a form."""
    body, kind = form_of([("a", GOOD[:900])])
    head = POST + f"Content-Type: {kind}\r\n".encode()
    for request in (chunked(*(bytes([byte]) for byte in GOOD)) + b"0\r\n\r\n", sized(body, head)):
        with served.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(request), 7):
                connection.sendall(request[at : at + 7])
            assert read_answer(connection).status in (200, 422)


# ---- clients that go away, or do nothing -----------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    """Close in a way that the other side notices at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """The processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_aborted_anywhere(served: Served) -> None:
    """100 calls that end at a random point: sent in part, or whole and not waited for."""
    rng, files = random.Random(5), served.open_files()
    before = score_of(served)
    body, kind = form_of([(str(i), encoded("JPEG", made.photo(100 + i))) for i in range(6)])
    head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    for i in range(100):
        accept = "Accept: application/x-ndjson\r\n" if i % 3 == 0 else ""
        request = (head + accept + "\r\n").encode() + body
        connection = served.connect()
        connection.sendall(request if i % 4 == 0 else request[: rng.randrange(len(request))])
        if i % 2:
            time.sleep(rng.uniform(0, 0.02))
        if i % 5 == 0:
            connection.close()
        else:
            reset(connection)
    assert_at_rest(served, files)
    assert score_of(served) == pytest.approx(before, abs=1e-6)
    assert not [line for line in wrong(served) if "Invalid HTTP" not in line]
    assert 500 not in statuses(served)


def test_photos_of_a_client_that_has_gone_are_dropped(quick: Served) -> None:
    """Those not yet decoded are not decoded, and do not pass."""
    files = quick.open_files()
    body, kind = form_of([(str(i), large(i)) for i in range(6)])
    before = quick.figures()
    for accept in ("application/json", "application/x-ndjson"):
        connection = quick.connect()
        with stopped(quick.children()):  # so that none is decoded before all are there and the client has gone
            connection.sendall(
                b"POST /v1/score HTTP/1.1\r\n" + HOST + f"Accept: {accept}\r\nContent-Type: {kind}\r\n".encode()
                + b"Content-Length: %d\r\n\r\n" % len(body) + body
            )  # fmt: skip
            until(lambda: quick.figures()[("milnet_waiting_photos",)] == 6)
            reset(connection)
            until(lambda: quick.figures()[("milnet_waiting_photos",)] == 0)
        assert_at_rest(quick, files)
    passed = quick.figures()[("milnet_batch_photos_sum",)] - before[("milnet_batch_photos_sum",)]
    assert passed <= 4, f"{passed:g} of 12 photos passed"


def test_slow_clients(quick: Served) -> None:
    """Headers and bodies that come slowly are given up."""
    cases = {
        "headers": (b"GET / HTTP/1.1\r\nHost: 127", b"0", {None}),
        "headers of a second request": (b"GET /v1/health HTTP/1.1\r\n" + HOST + b"\r\nGET /", b"a", {200}),
        "a body that stops": (POST + JPEG + b"Content-Length: 5000\r\n\r\n" + GOOD[:100], b"", {408}),
        "a body that drips": (POST + JPEG + b"Content-Length: 5000\r\n\r\n" + GOOD[:100], b"x", {408}),
        "a form that drips": (POST + FORM + b"Content-Length: 5000\r\n\r\n" + PART, b"x", {408}),
        "JSON that drips": (POST + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n[", b" ", {408}),
        "a body that nobody reads": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 900\r\n\r\n", b"x", {405}),
    }
    found: dict[str, tuple[int | None, float]] = {}

    def drip(what: str, first: bytes, more: bytes) -> None:
        began, status = time.monotonic(), None
        with quick.connect() as connection:
            connection.sendall(first)
            with contextlib.suppress(ConnectionError, TimeoutError):
                while time.monotonic() - began < 40:
                    if status is None and not silent(connection, 0.2):
                        status = read_answer(connection).status
                        if not more:
                            break
                    connection.sendall(more)
                    time.sleep(0.1)
        found[what] = status, time.monotonic() - began

    threads = [threading.Thread(target=drip, args=(what, first, more)) for what, (first, more, _) in cases.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for what, (status, seconds) in found.items():
        assert status in cases[what][2], (what, status)
        assert seconds < 30, (what, seconds)
    assert len(found) == len(cases)


def test_a_thousand_that_say_nothing(quick: Served) -> None:
    """They are let go; meanwhile and afterwards others are answered."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2048:
        pytest.skip("needs more file descriptors than a process may have here")
    files, connections = quick.open_files(), []
    for _ in range(990):
        connections.append(quick.connect())  # noqa: PERF401  (those that are open are closed below)
    assert quick.get("/v1/health").status == 200
    more = [quick.connect() for _ in range(30)]
    until(lambda: quick.open_files() <= files + 2)
    for connection in connections + more:
        connection.settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert not connection.recv(1)
        connection.close()
    assert_at_rest(quick, files)
    score_of(quick)


def test_clients_that_do_not_read(quick: Served) -> None:
    """Neither one large answer nor many small ones are kept for a client that does not take them."""
    files = quick.open_files()
    digest = quick.post("/v1/score", GOOD).json()["scores"][0]["id"]
    ids = f'{{"ids": [{",".join([chr(34) + digest + chr(34)] * 4000)}]}}'.encode()
    explain = b"POST /v1/explain HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    asks = [
        sized(ids, explain),
        sized(ids, explain + b"Accept: application/x-ndjson\r\n"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 600,
    ]  # fmt: skip
    connections = []
    for ask in asks:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((quick.host, quick.port))
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError):
            connection.sendall(ask)
        connections.append(connection)
    time.sleep(0.5)
    assert quick.get("/v1/health").status == 200
    until(lambda: quick.open_files() <= files)
    for connection in connections:
        connection.close()
    assert_at_rest(quick, files)


def test_many_ids_leave_others_their_turn(served: Served) -> None:
    """One call of 2,000 known photos does not stop the service for others."""
    digest = served.post("/v1/score", GOOD).json()["scores"][0]["id"]
    done = threading.Event()
    waits: list[float] = []

    def others() -> None:
        while not done.is_set():
            began = time.monotonic()
            assert served.get("/v1/health").status == 200
            waits.append(time.monotonic() - began)

    thread = threading.Thread(target=others)
    thread.start()
    began = time.monotonic()
    answer = served.post("/v1/score", {"ids": [digest] * 2000})
    took = time.monotonic() - began
    done.set()
    thread.join()
    assert len(answer.json()["scores"]) == 2000
    assert [one["index"] for one in answer.json()["scores"]] == list(range(2000))
    assert max(waits) < max(1.0, took / 3) and len(waits) > 5


# ---- too much at once ------------------------------------------------------------------------------------------------


def test_a_full_queue(quick: Served) -> None:
    """429 with the time after which it is worth trying again; all who do are answered."""
    photo, refused, scored = large(7), Counter[int](), []
    assert quick.post("/v1/score", photo).status == 200

    def client(number: int) -> None:
        mine, end = large(100 + number), time.monotonic() + 180
        while time.monotonic() < end:
            answer = quick.post("/v1/score", mine)
            if answer.status == 200:
                scored.append(answer.json()["scores"][0]["score"])
                return
            assert answer.status == 429, answer
            wait = int(answer.headers["retry-after"])
            assert 1 <= wait <= 60 and f"again in {wait} s" in answer.json()["detail"]
            refused[number] += 1
            time.sleep(0.25)

    before = quick.figures()[("milnet_refused_total",)]
    for attempt in range(8):  # whether so many are there at once is up to the machine
        threads = [threading.Thread(target=client, args=(20 * attempt + number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(scored) == 20 * (attempt + 1)
        if refused:
            break
    assert refused.total() > 0
    assert quick.figures()[("milnet_refused_total",)] - before == refused.total()
    assert_at_rest(quick, quick.open_files())
    assert quick.post("/v1/preview", photo).status == 200


def test_a_call_larger_than_all_that_may_be_held(quick: Served) -> None:
    """It waits for its own photos, as they come: 40 MB where 12 may be in memory."""
    sent = [(str(i), encoded("BMP", made.photo(500 + i, 1200, 1100))) for i in range(10)]
    answer = quick.form("/v1/score", sent)
    assert answer.status == 200 and len(answer.json()["scores"]) == 10
    assert_at_rest(quick, quick.open_files())


class _Body:
    """A request whose body comes in pieces, with pauses."""

    def __init__(self, pieces: int, pause: float) -> None:
        self.pieces, self.pause = pieces, pause

    async def stream(self) -> AsyncIterator[bytes]:
        for _ in range(self.pieces):
            await asyncio.sleep(self.pause)
            yield bytes(100)


@pytest.mark.parametrize(("theirs", "ours", "slow"), [(0.0, 0.05, False), (0.05, 0.0, True)])
def test_whose_slowness_it_is(monkeypatch: pytest.MonkeyPatch, theirs: float, ours: float, slow: bool) -> None:
    """A client is not blamed for the time in which the service was busy with what had come."""
    monkeypatch.setattr("milnet.server.uploads._GRACE", 0.1)

    async def read() -> int:
        count = 0
        async for chunk in chunks(_Body(8, theirs)):  # type: ignore[arg-type]
            count += len(chunk)
            await asyncio.sleep(ours)
        return count

    if slow:
        with pytest.raises(Problem, match="too slowly") as caught:
            asyncio.run(read())
        assert caught.value.status == 408
    else:
        assert asyncio.run(read()) == 800


def test_room() -> None:
    """Bytes of all calls together are bounded; what is given back can be had again."""
    room = Room(100)
    room.take(60)
    with pytest.raises(Problem) as caught:
        room.take(41)
    assert caught.value.status == 429 and caught.value.headers["Retry-After"]
    assert room.held == 60
    room.give(60)
    room.take(100)


def test_labels() -> None:
    """Names are echoed without what could break a line, and not for ever."""
    assert label("a/../b\r\n\x00\x1bc\ud800") == "a/../b\ufffd\ufffd\ufffd\ufffdc\ufffd"
    assert len(label("x" * 10_000)) == 500


# ---- decoders --------------------------------------------------------------------------------------------------------


def test_killed_decoders(quick: Served) -> None:
    """A decoder that is killed while it decodes is replaced, and its photo tried once more; twice is once too many."""
    photo = large(8, 9000, 9000)
    expected = quick.post("/v1/score", photo).json()["scores"][0]["score"]
    died = quick.figures()[("milnet_decoders_died_total",)]

    def killing(times: int, name: bytes) -> Any:
        other, answers = encoded("JPEG", Image.open(io.BytesIO(photo)), quality=30, comment=name), []
        thread = threading.Thread(target=lambda: answers.append(quick.post("/v1/score", other)))
        thread.start()
        for n in range(times):
            # its work is seen by the time of the processor that it takes
            spent = {pid: _processor(pid) for pid in quick.children()}
            until(lambda: any(_processor(p) - spent.get(p, 9**9) >= 3 for p in quick.children()))  # noqa: B023
            busy = max(quick.children(), key=lambda p: _processor(p) - spent.get(p, 9**9))
            os.kill(busy, signal.SIGKILL)
            until(lambda: quick.figures()[("milnet_decoders_died_total",)] > died + n)  # noqa: B023
            until(lambda: len(quick.children()) == 2)
        thread.join()
        return answers[0]

    once = killing(1, b"once")
    assert once.status == 200
    assert once.json()["scores"][0]["score"] == pytest.approx(expected, abs=0.2)  # saved anew
    died = quick.figures()[("milnet_decoders_died_total",)]
    twice = killing(2, b"twice")
    assert twice.status == 422
    assert "brings the decoder down" in twice.json()["failures"][0]["reason"]
    assert quick.figures()[("milnet_decoders_died_total",)] == died + 2
    assert quick.get("/v1/ready").status == 200
    assert quick.post("/v1/score", photo).json()["scores"][0]["score"] == expected


def _processor(pid: int) -> int:
    """Hundredths of seconds that a process has used; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return int(fields[11]) + int(fields[12])


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """One decoder that has started: the first photo's time is that of the start, too."""
    found = Decoders(1, max_bytes=1 << 20, max_pixels=1_000_000, seconds=30.0, died=lambda: deaths.append(1))
    deaths.clear()
    found.start()
    found.see(GOOD, PREPROCESS).result(60)
    yield found
    found.stop()
    assert_gone(found.processes())


deaths: list[int] = []
PREPROCESS = [Preprocess()]


def test_a_photo_that_takes_too_long(decoders: Decoders) -> None:
    """Its process is ended, and the next photo is decoded."""
    good = decoders.see(GOOD, PREPROCESS).result(60)
    (pid,) = decoders.processes()
    os.kill(pid, signal.SIGSTOP)
    decoders.seconds, began = 1.0, time.monotonic()
    with pytest.raises(ImageError, match="took more than 1 s to decode"):
        decoders.see(GOOD, PREPROCESS).result(60)
    assert 0.9 < time.monotonic() - began < 25
    decoders.seconds = 30.0  # the new process has to start
    again = decoders.see(GOOD, PREPROCESS).result(60)
    assert decoders.processes() != [pid] and deaths == [1]
    np.testing.assert_array_equal(again.decoded[0].views[0], good.decoded[0].views[0])
    assert decoders.alive()


def test_a_decoder_that_was_killed_while_idle(decoders: Decoders) -> None:
    """No photo is blamed for it."""
    for _ in range(2):
        os.kill(decoders.processes()[0], signal.SIGKILL)
        assert decoders.see(GOOD, PREPROCESS).result(60).decoded
    assert deaths == [1, 1]


def test_waiting_photos_when_it_stops() -> None:
    """They fail, and nothing hangs."""
    found = Decoders(1, max_bytes=1 << 20, max_pixels=1_000_000)
    found.start()
    found.see(GOOD, PREPROCESS).result(30)
    (pid,) = found.processes()
    os.kill(pid, signal.SIGSTOP)
    waiting = [found.see(GOOD, PREPROCESS) for _ in range(3)]
    given_up = found.see(GOOD, PREPROCESS)
    assert given_up.cancel()
    time.sleep(0.1)
    found.stop()
    for one in waiting:
        with pytest.raises(DecoderError, match="stopping"):
            one.result(5)
    assert not found.alive()
    assert_gone([pid])


def test_more_pixels_than_it_may(decoders: Decoders) -> None:
    """Refused by what the file says of itself."""
    with pytest.raises(ImageError, match="pixels"):
        decoders.see(encoded("PNG", Image.new("RGB", (1500, 1000))), PREPROCESS).result(60)
    assert not deaths


ASIDE = {"signals": None, "taken": None, "layout": ""}
NONSENSE: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"pixels": "short", "aside": ASIDE, "shapes": [], "counts": []}, 0),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [], "counts": []}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 3]], "counts": [1]}, 11),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 3]], "counts": [1]}, 13),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 3]], "counts": [2, 0]}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 3]], "counts": []}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[-2, -2, 3]], "counts": [1]}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 4]], "counts": [1]}, 16),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 6]], "counts": [1]}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": "all", "counts": [1]}, 12),
    ({"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2**40, 2**40, 3]], "counts": [1]}, 12),
    ({"pixels": "f" * 64, "aside": {"layout": "zz"}, "shapes": [[2, 2, 3]], "counts": [1]}, 12),
    ({"pixels": "f" * 64, "aside": [], "shapes": [[2, 2, 3]], "counts": [1]}, 12),
    ({"preview": [1, 1], "pixels": "f" * 64}, 12),
]  # fmt: skip


@pytest.mark.parametrize(("head", "count"), NONSENSE)
def test_nonsense_of_a_decoder(head: dict[str, Any], count: int) -> None:
    """What a process says that had a foreign file in its hands is not believed."""
    with pytest.raises((ValueError, LookupError, TypeError, ArithmeticError)):
        _understood(head, bytearray(count))
    sound = {"pixels": "f" * 64, "aside": ASIDE, "shapes": [[2, 2, 3]], "counts": [1]}
    assert _understood(sound, bytearray(12)).decoded[0].views[0].shape == (2, 2, 3)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack(">I", child.HEAD + 1) + bytes(100),
        struct.pack(">I", 4) + b"none",
        struct.pack(">I", 14) + b'{"bytes": 200}',
        struct.pack(">I", 13) + b'{"bytes": -1}',
        struct.pack(">I", 14) + b'{"bytes": 1.5}',
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 2) + b"[]",
    ],
)
def test_messages_that_are_none(message: bytes) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        child.receive(io.BytesIO(message), 100)


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_stopped_under_load(tmp_path: Path) -> None:
    """What had been sent whole before the signal is answered; what came later is refused before a byte of an answer."""
    found: list[tuple[float, str]] = []
    stop, halves = threading.Event(), []
    # on a busy machine it may take the service longer to read what had been sent than it has for that otherwise
    slower = "import milnet.server.running\nmilnet.server.running._SETTLE = 3.0"
    with service(tmp_path, "--queue", 64, stop=False, before=slower) as one:

        def client(number: int) -> None:
            n = 0
            while not stop.is_set():
                n += 1
                body = encoded("JPEG", made.photo(1000 * number + n, 400, 300))
                request = sized(body, POST + JPEG + b"Connection: close\r\n" * (n % 2))
                connection = None
                try:
                    connection = one.connect()
                    connection.sendall(request)
                except OSError:
                    found.append((time.monotonic(), "refused"))
                    return
                sent = time.monotonic()
                with connection:
                    try:
                        found.append((sent, str(read_answer(connection).status)))
                    except ConnectionError as error:
                        found.append((sent, str(error)))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in clients:
            thread.start()
        until(lambda: len(found) > 30)
        halves = [one.connect() for _ in range(3)]
        body = encoded("JPEG", made.photo(9))
        request = sized(body, POST + JPEG)
        halves[0].sendall(request[: len(request) - 5])
        time.sleep(0.1)
        idle = one.connect()
        idle.sendall(b"GET /v1/health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert read_answer(idle).status == 200
        halves[1].sendall(request)  # just before
        children, began = one.children(), time.monotonic()
        one.process.send_signal(signal.SIGTERM)
        time.sleep(4)  # the door is closed by then
        halves[0].sendall(request[len(request) - 5 :])  # its headers were there: it may end its body
        assert read_answer(halves[0]).status == 200
        assert read_answer(halves[1]).status == 200
        assert not halves[2].recv(1) and not idle.recv(1)
        assert one.process.wait(45) == 0
        one.ended.append(0)
        stop.set()
        for thread in clients:
            thread.join()
        assert len(children) >= 1
        assert_gone(children)
        for connection in [*halves, idle]:
            connection.close()
        assert time.monotonic() - began < 45
    before = Counter(what for sent, what in found if sent < began)
    assert set(before) == {"200"} and before["200"] > 30, before
    # afterwards: answered, or closed without a byte of an answer
    assert {what for _, what in found} <= {"200", "refused", "closed after b''", "[Errno 104] Connection reset by peer"}
    assert all(re.match(r"\S+ \S+ INFO ", line) for line in one.log().splitlines()), one.log()[-2000:]


def test_stopped_with_a_client_that_does_not_read(tmp_path: Path) -> None:
    """It is not waited for as long as others."""
    with service(tmp_path) as one:
        digest = one.post("/v1/score", GOOD).json()["scores"][0]["id"]
        ids = f'{{"ids": [{",".join([chr(34) + digest + chr(34)] * 3000)}]}}'.encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((one.host, one.port))
        connection.sendall(sized(ids, b"POST /v1/explain HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"))
        until(lambda: ("milnet_requests_total", "route", "/v1/explain", "status", "200") in one.figures())
        one.stop(seconds=45)  # the service has 60 for others
        connection.close()
    assert "a client does not read its answer" in one.log()


def test_a_service_that_is_killed_leaves_no_decoder(tmp_path: Path) -> None:
    """They notice that nobody asks them any more, even in the middle of a photo."""
    with service(tmp_path, stop=False) as one:
        connection = one.connect()
        connection.sendall(sized(large(1, 9000, 9000), POST + JPEG))
        time.sleep(0.1)
        children = one.children()
        one.process.kill()
        one.ended.append(one.process.wait(10))
        assert_gone(children)
        connection.close()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Though a client is still sending."""
    patient = "import milnet.server.uploads as uploads\nuploads._QUIET = uploads._GRACE = 300.0"
    with service(tmp_path, "--decoders", 1, stop=False, before=patient) as one, one.connect() as connection:
        connection.sendall(POST + JPEG + b"Content-Length: 5000\r\n\r\n" + GOOD[:100])
        until(lambda: one.figures()[("milnet_held_bytes",)] > 0)
        children = one.children()
        one.process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        assert one.process.poll() is None
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(45) is not None  # it would give the client 60
        one.ended.append(0)
        assert_gone(children)
