"""Photos of many requests -> scores. The model lives here, in one process; batches are made of whoever waits.

A photo that has been decoded joins those of its size. A batch goes as soon as a pass is free and it is full, or nobody
else is there; else it waits a few milliseconds for others (`WINDOW`, `BACK`), while the cores are busy with them.
Batches pass side by side, one thread each; one alone has all threads. What asyncio's thread does here is short:
decoding, passes and scores are made elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from milnet.errors import ImageError, NumericError
from milnet.preprocess import Preprocess
from milnet.scoring import Score, Scorer, Seen, introduction
from milnet.server.decoders import Decoders, Seeing
from milnet.server.memory import Key, Memory

WINDOW = 0.02  # seconds that a photo waits for others which are on their way, while all cores are busy
BACK = 0.006  # seconds that it waits, beside another pass, for whoever has just got an answer and may come again
FAIR = 0.1  # seconds after which a photo's batch goes next, whatever others there are
_INLINE = 1 << 20  # bytes up to which a digest is made at once
_JUDGED = 64  # photos known already that are judged at once
_RATE = 64  # photos over which the rate is measured


@dataclass(frozen=True)
class Served:
    """A model by the name it is asked for."""

    name: str
    scorer: Scorer
    made_here: bool = False  # a taste that was taught through the service
    photos: tuple[str, ...] = ()  # of such a taste: the digest of the file of each rated photo
    archive: bytes = b""  # of such a taste: its MODEL folder as a ZIP

    @property
    def introduction(self) -> str:
        """One line: what it is and how good."""
        return introduction(self.name, self.scorer)

    @property
    def preprocesses(self) -> tuple[Preprocess, ...]:
        """Of its one backbone, or of both."""
        one, other = self.scorer.nodes, self.scorer.semantic
        return (one.preprocess,) if other is one else (one.preprocess, other.preprocess)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The pool's photos -> their rows."""
        return {name: number for number, name in enumerate(self.scorer.pool.ids)}

    def key(self, digest: str) -> Key:
        """What a file is remembered by."""
        return digest, self.scorer.keys


@dataclass(frozen=True)
class Judged:
    """A photo that was scored; `digest`: of its file."""

    digest: str
    score: Score
    seen: Seen


@dataclass(eq=False)
class _Item:
    """A photo on its way: decoded, or seen before."""

    served: Served
    name: str
    digest: str
    seeing: Seeing | None
    seen: Seen | None
    done: asyncio.Future[Judged]
    began: float = field(default_factory=time.monotonic)

    @property
    def together(self) -> tuple[Any, ...]:
        """Photos for which this is equal can pass together: the same backbones, the same sizes."""
        if self.seeing is None:
            return ("seen", self.served.name)
        shapes = tuple(view.shape for one in self.seeing.decoded for view in one.views)
        return (*self.served.scorer.keys, shapes)


class Gate:
    """At most `most` photos inside: waiting, decoded or passing."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left: deque[float] = deque(maxlen=_RATE)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.inside >= self.most

    async def enter(self) -> None:
        """Wait for room, behind those who came before."""
        if not self.full and not self._waiting:
            self.inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever left has counted this one in
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                with suppress(ValueError):  # who left in this very moment has taken it out
                    self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Make room for the next."""
        self._left.append(time.monotonic())
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1

    def seconds(self) -> int:
        """After how long it is worth trying again: when half of those inside have left, 1 to 60."""
        if len(self._left) < 2 or (spent := self._left[-1] - self._left[0]) <= 0:
            return 1
        rate = (len(self._left) - 1) / spent
        return max(1, min(60, math.ceil((self.inside + len(self._waiting)) / 2 / rate)))


class Engine:
    """The models with their backbones, the decoders, and all photos on their way."""

    def __init__(
        self,
        served: Sequence[Served],
        decoders: Decoders,
        *,
        queue: int,
        memory: int,
        window: float = WINDOW,
        passed: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self.models = {one.name: one for one in served}
        self.default = served[0].name
        self.decoders, self.gate, self.memory, self.window = decoders, Gate(queue), Memory(memory), window
        self.passed = passed  # told the photos and seconds of each pass
        self._threads = torch.get_num_threads()
        self._passes = min(one.scorer.nodes.side_by_side for one in served)
        self._executor = ThreadPoolExecutor(self._passes, "milnet-forward")
        self._waiting: dict[tuple[Any, ...], deque[_Item]] = {}
        self._running = 0
        self._decoding = 0
        self._freed = 0.0  # when a pass ended
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the decoders, and pass a black photo through each model, which makes the first real one fast."""
        await asyncio.to_thread(self.decoders.start)
        black = b"P6 64 48 255\n" + bytes(64 * 48 * 3)
        for served in self.models.values():
            await self.score(served, "black", black, remember=False)

    def stop(self) -> None:
        """End what runs beside; nothing must be on its way."""
        self.decoders.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def score(self, served: Served, name: str, data: bytes, *, remember: bool = True) -> Judged:
        """Score a file. Raises ImageError for one that cannot be read, NumericError for one that gives no numbers."""
        digest = await digest_of(data)
        known = self.memory.get(served.key(digest))
        if known is not None:
            self.memory.put(served.key(digest), name, known.seen)
            return await self._join(served, name, digest, None, known.seen)
        self._decoding += 1
        try:
            seeing = await asyncio.wrap_future(self.decoders.see(data, served.preprocesses))
        finally:
            self._decoding -= 1
            if not self._decoding:
                self._send()  # those who waited for this one
        del data
        judged = await self._join(served, name, digest, seeing, None)
        if remember:
            self.memory.put(served.key(digest), name, judged.seen)
        return judged

    async def again(self, served: Served, digest: str) -> Judged | None:
        """Score a photo that was sent before; None where it is not remembered."""
        known = self.memory.get(served.key(digest))
        return None if known is None else await self._join(served, known.name, digest, None, known.seen)

    async def _join(self, served: Served, name: str, digest: str, seeing: Seeing | None, seen: Seen | None) -> Judged:
        item = _Item(served, name, digest, seeing, seen, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(item.together, deque()).append(item)
        self._send()
        return await item.done

    # ---- batches ----

    def _send(self) -> None:
        """Let go what can go."""
        while self._running < self._passes and (group := self._next()):
            alone = not (self._running or self._waiting or self._decoding)
            self._running += 1
            threads = self._threads if alone else max(1, self._threads // self._passes)
            loop = asyncio.get_running_loop()
            task = loop.run_in_executor(self._executor, _work, group, threads)
            task.add_done_callback(lambda task, group=group: self._finished(task, group))  # type: ignore[misc]

    def _next(self) -> list[_Item]:
        """The next batch: the fullest, or that of a photo which has waited for long; none if it had better wait on."""
        for key, items in list(self._waiting.items()):
            for item in [item for item in items if item.done.done()]:  # nobody waits for it any more
                items.remove(item)
            if not items:
                del self._waiting[key]
        if not self._waiting:
            return []
        now = time.monotonic()
        key = min(self._waiting, key=lambda key: self._waiting[key][0].began)
        if now - self._waiting[key][0].began < FAIR:  # the fullest, so that passes are cheap
            key = max(self._waiting, key=lambda key: min(len(self._waiting[key]), _most(self._waiting[key][0])))
        items, all_ = self._waiting[key], sum(map(len, self._waiting.values()))
        # where as many wait, but of several sizes, there is work enough
        if all_ < _most(items[0]) and (waits := self._waits(items[0], now)) > 0:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(waits, self._on_time)
            return []
        group = [items.popleft() for _ in range(min(len(items), _most(items[0])))]
        if not items:
            del self._waiting[key]
        return group

    def _waits(self, first: _Item, now: float) -> float:
        """Seconds that a batch which is not full had better wait; a core is without work for `BACK` at most."""
        if not self._running and not self._decoding:
            return 0.0  # nobody else is there
        if self._running + self._decoding >= self._passes:  # others are coming, and all cores are busy meanwhile
            return max(first.began, self._freed) + self.window - now
        return self._freed + BACK - now  # whoever has just got an answer may come again

    def _on_time(self) -> None:
        self._timer = None
        self._send()

    def _finished(self, task: asyncio.Future[Any], group: list[_Item]) -> None:
        self._running -= 1
        self._freed = time.monotonic()
        error = task.exception()
        if error is None:
            results, seconds, passed = task.result()
            if passed:
                self.passed(passed, seconds)
        else:
            results = [error] * len(group)
        for item, result in zip(group, results, strict=True):
            if item.done.done():
                continue
            if isinstance(result, BaseException):
                item.done.set_exception(result)
            else:
                item.done.set_result(result)
        self._send()


def _most(item: _Item) -> int:
    return _JUDGED if item.seeing is None else item.served.scorer.batch


async def digest_of(data: bytes) -> str:
    """sha256 of a file, hexadecimal: the id of a photo."""
    if len(data) <= _INLINE:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


def _work(group: list[_Item], threads: int) -> tuple[list[Judged | Exception], float, int]:
    """Pass and judge a batch, in a thread of its own: what became of each photo, seconds, photos that passed."""
    torch.set_num_threads(threads)
    began = time.monotonic()
    scorer = group[0].served.scorer
    try:
        found = _judged(group, _pass(scorer, group))
    except NumericError as error:
        if len(group) == 1:
            return [error], time.monotonic() - began, 1
        alone = [_work([item], threads)[0][0] for item in group]  # one of them spoils the others
        return alone, time.monotonic() - began, len(group)
    return found, time.monotonic() - began, sum(item.seeing is not None for item in group)


def _judged(group: list[_Item], seen: list[Seen]) -> list[Judged | Exception]:
    """Each by the model it was sent to."""
    found: list[Judged | Exception] = [ImageError(item.name, "not scored") for item in group]
    for model in dict.fromkeys(item.served.name for item in group):
        places = [i for i, item in enumerate(group) if item.served.name == model]
        names, some = [group[i].name for i in places], [seen[i] for i in places]
        for i, score in zip(places, group[places[0]].served.scorer.judge(names, some), strict=True):
            found[i] = Judged(group[i].digest, score, seen[i])
    return found


def _pass(scorer: Scorer, group: list[_Item]) -> list[Seen]:
    """What the backbones make of photos of one size, in a batch of as many as there are.

    What one alone gives differs from what it gives in a full batch by rounding: on 3,177 photos scores by at most
    5.4e-6 (docs/experiments.md), for half the time.
    """
    if group[0].seeing is None:
        return [item.seen for item in group if item.seen is not None]
    extractors = [scorer.nodes] if scorer.semantic is scorer.nodes else [scorer.nodes, scorer.semantic]
    results = []
    for i, extractor in enumerate(extractors):
        decoded = [(n, item.seeing.decoded[i]) for n, item in enumerate(group) if item.seeing is not None]
        with ExitStack() as stack:
            backbone = None
            if extractor.device.type == "cpu":
                backbone = stack.enter_context(extractor.backbone.borrowed())
            results.append(replace(extractor, batch=len(decoded)).forward(decoded, backbone))
    seen = [scorer.seen(*pair) for pair in zip(results[0], results[-1], strict=True)]
    for one in seen:
        if isinstance(one, ImageError):
            raise one
    return [one for one in seen if isinstance(one, Seen)]
