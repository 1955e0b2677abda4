"""Processes that decode: a crash, a bomb or an endless photo ends one of them, which is replaced, and nothing else."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from milnet.aside import Aside
from milnet.errors import ImageError, MilnetError
from milnet.preprocess import Decoded, Preprocess, Views
from milnet.server.child import receive, send

SECONDS = 30.0  # that decoding one photo may take
_PHOTOS = 1000  # after which a process is replaced: what it may have lost of memory comes back
_ANSWER = 512 << 20  # bytes of an answer at most
_PIPE = 1 << 20  # bytes that a pipe holds, as far as an ordinary user may have them on Linux
_STOPPED = "the service is stopping"


class DecoderError(MilnetError):
    """A decoding process cannot be started, or talks nonsense."""


@dataclass(frozen=True)
class Seeing:
    """A photo decoded for one or two backbones: one `Decoded` for each."""

    decoded: tuple[Decoded, ...]


class Decoders:
    """`count` threads, each with a process of its own. Jobs wait in order; the caller bounds how many."""

    def __init__(
        self,
        count: int,
        *,
        max_bytes: int,
        max_pixels: int,
        seconds: float = SECONDS,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        self.count, self.max_bytes, self.max_pixels = count, max_bytes, max_pixels
        self.seconds, self.died = seconds, died
        self._jobs: queue.SimpleQueue[tuple[Future[Any], dict[str, Any], list[bytes]] | None] = queue.SimpleQueue()
        self._workers = [_Worker(self, number) for number in range(count)]
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._kill_late, name="milnet-watch", daemon=True)

    def start(self) -> None:
        """Start all processes; DecoderError where one does not come up."""
        for worker in self._workers:
            worker.begin()
        self._watch.start()

    def alive(self) -> bool:
        """Whether photos can be decoded."""
        return not self._stop.is_set() and all(worker.thread.is_alive() for worker in self._workers)

    def see(self, data: bytes, preprocesses: Sequence[Preprocess]) -> Future[Seeing]:
        """Decode a file for backbones: the result, or ImageError."""
        return self._submit({"preprocess": [vars(one) for one in preprocesses]}, data)

    def preview(self, data: bytes, side: int) -> Future[tuple[bytes, str]]:
        """A WebP with a long side of at most `side`, and the digest of the photo's pixels; or ImageError."""
        return self._submit({"preview": side}, data)

    def _submit(self, job: dict[str, Any], data: bytes) -> Future[Any]:
        future: Future[Any] = Future()
        held = [data]  # let go at once when nobody waits any more, though its turn may be far
        future.add_done_callback(lambda done: held.clear() if done.cancelled() else None)
        self._jobs.put((future, job, held))
        return future

    def stop(self) -> None:
        """End all processes; what still waits fails."""
        self._stop.set()
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.end()

    def _kill_late(self) -> None:
        while not self._stop.wait(0.25):
            for worker in self._workers:
                worker.check()

    def processes(self) -> list[int]:
        """The process ids."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]


class _Worker:
    """A thread and its process."""

    def __init__(self, decoders: Decoders, number: int) -> None:
        self.decoders = decoders
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = float("inf")
        self.late = False
        self.done = 0
        self.thread = threading.Thread(target=self._run, name=f"milnet-decode-{number}", daemon=True)

    def begin(self) -> None:
        """Start the process, and the thread."""
        self._start()
        self.thread.start()

    def _start(self) -> None:
        ours = self.decoders
        hidden = {name: value for name, value in os.environ.items() if name != "MILNET_TOKEN"}
        limits = [str(ours.max_pixels), str(ours.max_bytes)]
        command = [sys.executable, "-m", "milnet.server.child", *limits]
        # The last two are for glibc: else each photo's memory goes back to the system and comes anew, a quarter slower.
        environment = {
            **hidden,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
        }
        try:
            # its own session: Ctrl-C in the terminal is for the service, which lets its photos finish
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=_PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DecoderError(f"no decoding process can be started: {error}") from error
        self.done, self.late = 0, False
        _widen(self.process.stdin, self.process.stdout)

    def check(self) -> None:
        """Kill the process if its photo takes too long; called by another thread."""
        process = self.process
        if process is not None and time.monotonic() > self.deadline:
            self.late = True
            process.kill()

    def end(self) -> None:
        """End the process, and the thread."""
        if self.process is not None:
            self.process.kill()
        self.thread.join(5)
        self._end_process()

    def _run(self) -> None:
        jobs = self.decoders._jobs
        while (item := jobs.get()) is not None:
            future, job, held = item
            del item
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            if self.decoders._stop.is_set():
                future.set_exception(DecoderError(_STOPPED))
                continue
            data = held.pop()
            try:
                result = self._do(job, data)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del data, future

    def _do(self, job: dict[str, Any], data: bytes) -> Any:
        for attempt in (1, 2):  # the first process may have died of something else than this photo
            try:
                result = self._ask(job, data)
                break
            except (OSError, EOFError):
                late = self.late
                self._replace()
                self.decoders.died()
                if self.decoders._stop.is_set():
                    raise DecoderError(_STOPPED) from None
                if late:
                    seconds = self.decoders.seconds
                    raise ImageError("<bytes>", f"took more than {seconds:g} s to decode") from None
                if attempt == 2:
                    reason = "cannot be decoded: it brings the decoder down, or takes more memory than it may"
                    raise ImageError("<bytes>", reason) from None
            except (ValueError, LookupError, TypeError, ArithmeticError) as error:
                self._replace()
                self.decoders.died()
                reason = "cannot be decoded: the decoder gave no answer that makes sense"
                raise ImageError("<bytes>", reason) from error
        self.done += 1
        if isinstance(result, ImageError):
            raise result
        return result

    def _ask(self, job: dict[str, Any], data: bytes) -> Any:
        if self.process is None or self.done >= _PHOTOS:
            self._replace()
        assert self.process is not None
        self.late = False
        self.deadline = time.monotonic() + self.decoders.seconds
        try:
            head = {**job, "bytes": len(data), "max_pixels": self.decoders.max_pixels}
            send(self.process.stdin, head, [data])
            return _understood(*receive(self.process.stdout, _ANSWER))
        finally:
            self.deadline = float("inf")

    def _replace(self) -> None:
        self._end_process()
        if not self.decoders._stop.is_set():
            self._start()

    def _end_process(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not sent
                        stream.close()


def _widen(*pipes: Any) -> None:
    """Pipes that take a photo in one go, where the system has such: each stop costs a change of process."""
    try:
        import fcntl

        for pipe in pipes:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    except (ImportError, AttributeError, OSError):
        pass


def _understood(answer: Mapping[str, Any], rest: bytearray) -> Any:
    """What a decoder says, checked: it had a foreign file in its hands."""
    if "error" in answer:
        return ImageError("<bytes>", str(answer["error"])[:500])
    digest = str(answer["pixels"])
    if len(digest) != 64:
        raise ValueError("a digest that is none")
    if "preview" in answer:
        if rest[:4] != b"RIFF":
            raise ValueError("a picture that is none")
        return bytes(rest), digest
    aside = Aside.of_json(answer["aside"])
    if aside is None:
        raise ValueError("nothing seen beside")
    pixels, at, views = np.frombuffer(rest, np.uint8), 0, []
    for shape in answer["shapes"]:
        height, width, channels = (int(side) for side in shape)
        if min(height, width) < 1 or channels != 3:
            raise ValueError("a view that is none")
        size = height * width * channels
        views.append(pixels[at : at + size].reshape(height, width, channels))
        at += size
    found: list[Views] = []
    for count in answer["counts"]:
        found.append(tuple(views[:count]))
        views = views[count:]
    if at != len(rest) or views or not all(found):
        raise ValueError("views that do not fit")
    return Seeing(tuple(Decoded(some, digest, aside) for some in found))
