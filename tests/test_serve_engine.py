"""The engine of `milnet serve`: whoever sends photos together, in whatever order, each gets the score it gets alone."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made
from milnet.errors import ImageError, NumericError
from milnet.scoring import Scorer, Seen
from milnet.server import engine as engines
from milnet.server.decoders import Decoders
from milnet.server.engine import WINDOW, Engine, Gate, Served
from milnet.server.memory import Memory

pytest.importorskip("fastapi")
SHAPES = [(96, 72), (72, 96), (160, 64), (96, 72)]


def picture(seed: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    made.photo(seed, *SHAPES[seed % len(SHAPES)]).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load("pocket")


def with_engine(
    scorer: Scorer,
    work: Callable[[Engine], Awaitable[Any]],
    *,
    others: tuple[Served, ...] = (),
    memory: int = 1 << 26,
    window: float = WINDOW,
    passed: Callable[[int, float], None] = lambda count, seconds: None,
) -> Any:
    async def run() -> Any:
        decoders = Decoders(2, max_bytes=1 << 24, max_pixels=1 << 24)
        served = [Served("pocket", scorer), *others]
        engine = Engine(served, decoders, queue=64, memory=memory, window=window, passed=passed)
        await engine.start()
        try:
            return await work(engine)
        finally:
            engine.stop()

    return asyncio.run(run())


def test_each_photo_gets_its_own_score(scorer: Scorer) -> None:
    """Many at once, of several shapes, some twice: as the scorer says of each alone, to 1e-5."""
    photos = [picture(seed) for seed in range(30)]
    expected = [scorer.score(photo)[0] for photo in photos]

    async def work(engine: Engine) -> list[Any]:
        order = [*range(30), 3, 3, 17]
        found = await asyncio.gather(*(engine.score(engine.models["pocket"], str(i), photos[i]) for i in order))
        return list(zip(order, found, strict=True))

    for i, judged in with_engine(scorer, work):
        assert judged.score.photo == str(i)
        assert judged.score.score == pytest.approx(expected[i].score, abs=1e-5)
        assert np.allclose(judged.score.distribution, expected[i].distribution, atol=1e-5)
        assert judged.score.low == pytest.approx(expected[i].low, abs=1e-4)
        assert [one.id for one in judged.score.references] == [one.id for one in expected[i].references]
        assert judged.score.signals == expected[i].signals


def test_batches(scorer: Scorer) -> None:
    """Photos that come together pass together, never more than a batch; one alone need not wait for others."""
    sizes: list[int] = []

    async def work(engine: Engine) -> None:
        sizes.clear()
        served = engine.models["pocket"]
        await engine.score(served, "alone", picture(0))
        assert sizes == [1]
        sizes.clear()
        same = [picture(4 * seed) for seed in range(1, 25)]
        await asyncio.gather(*(engine.score(served, str(i), photo) for i, photo in enumerate(same)))

    # a window in which others come however slowly they are decoded; when none is left it is not waited for
    with_engine(scorer, work, window=30, passed=lambda count, seconds: sizes.append(count))
    assert sum(sizes) == 24
    assert max(sizes) <= scorer.batch
    assert len(sizes) < 16, sizes


def test_what_was_seen_passes_once(scorer: Scorer) -> None:
    passes: list[int] = []

    async def work(engine: Engine) -> None:
        passes.clear()
        served, other = engine.models["pocket"], engine.models["other"]
        first = await engine.score(served, "first", picture(1))
        second = await engine.score(served, "second", picture(1))
        assert replace(first.score, photo="second") == second.score
        again = await engine.again(other, first.digest)
        assert again is not None
        assert again.score == second.score
        assert await engine.again(served, "0" * 64) is None
        assert passes == [1]

    others = (Served("other", scorer),)
    with_engine(scorer, work, others=others, passed=lambda count, seconds: passes.append(count))


def test_nothing_is_remembered_without_memory(scorer: Scorer) -> None:
    async def work(engine: Engine) -> None:
        judged = await engine.score(engine.models["pocket"], "a", picture(1))
        assert await engine.again(engine.models["pocket"], judged.digest) is None

    with_engine(scorer, work, memory=0)


def test_bad_photos(scorer: Scorer) -> None:
    async def work(engine: Engine) -> None:
        served = engine.models["pocket"]
        bad = [b"", b"junk", picture(2)[:200], b"\x89PNG\r\n\x1a\n" + bytes(100)]
        found = await asyncio.gather(
            *(engine.score(served, str(i), data) for i, data in enumerate([*bad, picture(2)])), return_exceptions=True
        )
        assert all(isinstance(one, ImageError) for one in found[:4]), found
        assert not isinstance(found[4], BaseException)

    with_engine(scorer, work)


def test_one_photo_does_not_spoil_its_batch(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engines._pass

    def poisoned(scorer: Scorer, group: list[Any]) -> list[Seen]:
        if any(item.name == "poison" for item in group):
            raise NumericError("features that are not finite")
        return whole(scorer, group)

    async def work(engine: Engine) -> list[Any]:
        monkeypatch.setattr(engines, "_pass", poisoned)
        names = ["a", "b", "poison", "c"]
        served = engine.models["pocket"]
        calls = [engine.score(served, name, picture(4 * i)) for i, name in enumerate(names)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    found = with_engine(scorer, work)
    assert [isinstance(one, NumericError) for one in found] == [False, False, True, False]
    assert [one.score.photo for i, one in enumerate(found) if i != 2] == ["a", "b", "c"]


def test_who_has_gone_does_not_pass(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo given up while it is decoded never reaches the model."""
    passed: list[int] = []

    async def work(engine: Engine) -> None:
        passed.clear()
        held: Future[Any] = Future()
        see = engine.decoders.see
        monkeypatch.setattr(engine.decoders, "see", lambda data, preprocesses: held)
        task = asyncio.create_task(engine.score(engine.models["pocket"], "gone", picture(1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.cancelled()
        monkeypatch.setattr(engine.decoders, "see", see)
        await engine.score(engine.models["pocket"], "there", picture(2))
        assert passed == [1]

    with_engine(scorer, work, passed=lambda count, seconds: passed.append(count))


# ---- the gate --------------------------------------------------------------------------------------------------------


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_gate_lets_in_in_order() -> None:
    async def work() -> None:
        gate, order = Gate(2), []
        await gate.enter()
        await gate.enter()
        assert gate.full

        async def later(name: str) -> None:
            await gate.enter()
            order.append(name)

        tasks = [asyncio.create_task(later(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert order == []
        gate.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["a"]
        tasks[1].cancel()
        await asyncio.sleep(0)
        gate.leave()
        gate.leave()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c"]
        assert gate.inside == 1
        gate.leave()
        assert gate.inside == 0

    run(work())


def test_gate_gives_on_what_was_given_to_one_who_left() -> None:
    """Cancelled in the very moment it was let in: its place is not lost."""

    async def work() -> None:
        gate = Gate(1)
        await gate.enter()
        task = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert gate.inside == 0
        await asyncio.wait_for(gate.enter(), 1)

    run(work())


def test_gate_when_who_waits_leaves_first() -> None:
    """Cancelled in the very moment that it would be its turn: it ends as cancelled, and no place is lost."""

    async def work() -> None:
        gate = Gate(1)
        await gate.enter()
        task = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        task.cancel()
        gate.leave()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.inside == 0

    run(work())


def test_who_has_gone_holds_no_bytes() -> None:
    """A photo that nobody waits for any more is let go at once, though the decoders are busy."""
    decoders = Decoders(1, max_bytes=1 << 24, max_pixels=1 << 24)  # never started: all wait
    future = decoders.see(bytes(1000), [])
    future.cancel()
    item = decoders._jobs.get()
    assert item is not None
    assert item[2] == []


def test_who_reads_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a client that takes nothing for a while is; one with a new, long answer has its time."""
    from types import SimpleNamespace

    from milnet.server import running

    now, waiting, aborted = [1000.0], [0], []
    connection: Any = running._Connection.__new__(running._Connection)
    connection.loop = SimpleNamespace(time=lambda: now[0])
    connection.transport = SimpleNamespace(
        get_write_buffer_size=lambda: waiting[0], abort=lambda: aborted.append(now[0])
    )

    def seconds(count: int, taken: int) -> None:
        for _ in range(count):
            now[0] += 1
            waiting[0] -= taken
            connection.check_reader(60)

    waiting[0] = 1_000_000
    seconds(200, 1000)  # slowly, but it reads
    assert aborted == []
    waiting[0] = 0
    seconds(5, 0)
    waiting[0] = 1_000_000
    seconds(55, 0)
    assert aborted == []
    seconds(10, 0)
    assert aborted


def test_gate_says_when_to_come_again() -> None:
    async def work() -> None:
        gate = Gate(100)
        assert gate.seconds() == 1
        for _ in range(80):
            await gate.enter()
        gate._left.extend([0.0, 1.0, 2.0, 3.0])  # one a second
        assert gate.seconds() == 40
        gate._left.extend([3.0 + i / 100 for i in range(64)])  # a hundred a second
        assert gate.seconds() == 1

    run(work())


# ---- memory ----------------------------------------------------------------------------------------------------------


def seen(width: int) -> Seen:
    nodes = np.zeros(width, np.float32)
    return Seen(nodes, nodes, "0" * 64)


def test_memory_forgets_the_least_used() -> None:
    each = 2048 + 4 * 1000
    memory = Memory(3 * each)
    for name in "abc":
        memory.put((name, ("x", "x")), name, seen(1000))
    assert memory.bytes == 3 * each
    assert memory.get(("a", ("x", "x"))) is not None
    memory.put(("d", ("x", "x")), "d", seen(1000))
    assert [memory.get((name, ("x", "x"))) is not None for name in "abcd"] == [True, False, True, True]
    memory.put(("d", ("x", "x")), "new name", seen(1000))
    assert memory.bytes == 3 * each
    found = memory.get(("d", ("x", "x")))
    assert found is not None
    assert found.name == "new name"
    memory.put(("huge", ("x", "x")), "huge", seen(10_000))
    assert len(memory) == 0
    assert memory.bytes == 0


def test_photos_of_real_life(scorer: Scorer, test_data: Path) -> None:
    """Real photos of mixed shapes through the engine and through the command's own way: equal to 1e-5."""
    from milnet.files import score_files
    from milnet.library import find_photos

    paths = find_photos([str(test_data / "data" / "photos")]).photos[::40][:60]
    expected = {score.photo: score.score for score in score_files(scorer, paths).scores}

    async def work(engine: Engine) -> list[Any]:
        served = engine.models["pocket"]
        return list(await asyncio.gather(*(engine.score(served, str(path), path.read_bytes()) for path in paths)))

    found = with_engine(scorer, work)
    assert len(found) == len(paths) == 60
    worst = max(abs(judged.score.score - expected[judged.score.photo]) for judged in found)
    assert worst < 1e-5


# ---- the command -----------------------------------------------------------------------------------------------------


def test_what_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_cli import milnet

    monkeypatch.delenv("MILNET_TOKEN", raising=False)
    done = milnet("serve", "--host", "0.0.0.0", "--port", 0, "--quiet", code=2)
    assert "needs a token, and nobody would see one made here: --token-file, or MILNET_TOKEN" in done.stderr
    (tmp_path / "token").write_text("short\n")
    done = milnet("serve", "--token-file", tmp_path / "token", code=2)
    assert "expected 16 to 512 printable ASCII characters" in done.stderr
    assert "cannot be read" in milnet("serve", "--token-file", tmp_path / "none", code=2).stderr
    assert "cannot listen there" in milnet("serve", "--host", "300.1.1.1", code=2).stderr
    done = milnet("serve", "--model", "pocket", "--model", "pocket", "--port", 0, code=2)
    assert "another model is called pocket, too" in done.stderr
