"""What runs in a decoding process: photos in through standard input, pixels out through standard output.

A message is the length of its head (4 bytes, big-endian), the head (JSON), and as many bytes as the head tells. No
pickle: what a broken or taken-over decoder says can do nothing but be wrong. The process may not write files, has a
limit of memory, and knows neither token nor network address of the service.

    job      {"bytes": n, "max_pixels": m, "preprocess": [{...}, ...]}, the file
             {"bytes": n, "max_pixels": m, "preview": long side}, the file
    answer   {"shapes": [[H, W, 3] for each size of each preprocess], "counts": [sizes of each], "pixels": digest,
              "aside": {...}, "bytes": n}, the views
             {"preview": [width, height], "pixels": digest, "bytes": n}, a WebP
             {"error": reason, "bytes": 0}
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from milnet.aside import look
from milnet.errors import ImageError
from milnet.images import open_photo
from milnet.preprocess import Preprocess

HEAD = 1 << 16  # bytes of a head at most
BYTES_A_PIXEL = 16  # that decoding takes at most, of the widest formats
ROOM = 512 << 20  # bytes beside those of the pixels


def send(stream: Any, head: Mapping[str, Any], parts: Sequence[Any] = ()) -> None:
    """Write a message; `parts` together have the number of bytes that its head tells."""
    text = json.dumps(head).encode()
    stream.write(struct.pack(">I", len(text)) + text)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: Any, most: int) -> tuple[dict[str, Any], bytearray]:
    """Read a message of at most `most` bytes; EOFError where it ends early, ValueError where it is none."""
    (length,) = struct.unpack(">I", _exactly(stream, 4))
    if length > HEAD:
        raise ValueError(f"a head of {length} bytes, expected at most {HEAD}")
    head = json.loads(bytes(_exactly(stream, length)))
    count = head["bytes"]
    if not isinstance(count, int) or not 0 <= count <= most:
        raise ValueError(f"{count!r} bytes, expected 0 to {most}")
    return head, _exactly(stream, count)


def _exactly(stream: Any, count: int) -> bytearray:
    found = bytearray(count)
    view, at = memoryview(found), 0
    while at < count:
        got = stream.readinto(view[at:])
        if not got:
            raise EOFError
        at += got
    return found


def answer(job: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], list[Any]]:
    """What is said to a job: a head, and its bytes in parts."""
    try:
        if "preview" in job:
            return _preview(data, int(job["preview"]), job["max_pixels"])
        preprocesses = [Preprocess(**one) for one in job["preprocess"]]
        # of two backbones each has its own idea of how small a JPEG may be decoded
        photo = preprocesses[0].open(data, job["max_pixels"])
        views = [list(preprocesses[0].views(photo, data))]
        for other in preprocesses[1:]:
            same = other.draft == preprocesses[0].draft and other.sizes[-1] == preprocesses[0].sizes[-1]
            views.append(list(other.views(photo if same else other.open(data, job["max_pixels"]), data)))
        several = [view for some in views for view in some]
        head = {
            "shapes": [view.shape for view in several],
            "counts": [len(some) for some in views],
            "pixels": photo.digest,
            "aside": look(photo).to_json(),
            "bytes": sum(view.nbytes for view in several),
        }
        return head, [view.data.cast("B") for view in several]
    except ImageError as error:
        return {"error": error.reason, "bytes": 0}, []
    except MemoryError:
        return {"error": "not enough memory to decode it", "bytes": 0}, []


def _preview(data: bytes, side: int, max_pixels: int) -> tuple[dict[str, Any], list[Any]]:
    # never reduced while decoding: the digest of the full pixels is what a pool's photo is known by
    photo = open_photo(data, max_pixels=max_pixels)
    digest = photo.digest
    photo.pixels.thumbnail((side, side))
    stream = io.BytesIO()
    photo.pixels.save(stream, "WEBP", quality=82)
    picture = stream.getvalue()
    return {"preview": photo.pixels.size, "pixels": digest, "bytes": len(picture)}, [picture]


def confine(max_pixels: int) -> None:
    """Limits that hold for this process from now on, where the system has such: no files written, so much memory."""
    try:
        import resource
    except ImportError:  # Windows
        return
    if sys.platform == "linux":  # where memory is short, this process goes and not the service
        with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = used + ROOM + BYTES_A_PIXEL * max_pixels
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Answer jobs until there are no more."""
    max_pixels, most = (int(argument) for argument in sys.argv[1:3])
    # Answers go where standard output was; what a library prints goes nowhere.
    reading, writing = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    confine(max_pixels)
    while True:
        try:
            job, data = receive(reading, most)
        except EOFError:  # the service has ended
            return
        send(writing, *answer(job, bytes(data)))
        del data


if __name__ == "__main__":
    main()
