"""Work on many photos by Ray Data: worker processes here, or those of a running cluster.

    with Cluster(workers=2) as cluster:
        for rows, made in cluster.run(extractor, extract_piece, rows, item, most): ...

Ray schedules, moves results, spills them to the disk where they do not fit and starts workers anew that died. Here is
only what it does not know: the photos go out as descriptions, some hundred a piece, and the bytes of photos are read
where they are decoded; a piece whose worker dies twice comes back in smaller pieces, at last photo by photo, until the
one that kills is known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from milnet.errors import MilnetError, MissingExtraError, ProcessError, UsageError, in_short
from milnet.sources import Item, absolute, pieces
from milnet.version import __version__

_ROUND = 2000  # pieces that Ray Data is given at once: bounds what their descriptions take
_FIRST = 16  # pieces for each worker at first, until one is finished: to see soon where nothing works
_SMALLER = 16  # a piece that killed its worker comes back in so many parts
_PER_WORKER = 8  # pieces a worker has to do at least, where there are enough photos: so that none waits for the last
_LEAST = 16  # photos a piece, where there are enough
_BLAMED = 16  # photos that kill their worker, after which nothing that works means that no worker works

Work = Callable[[Any, Sequence[tuple[int, Item]]], bytes]


class _Worker:
    """What Ray starts as often as there are workers: has the network in memory, works on a piece after the other."""

    def __init__(self, state: bytes, work: Work, threads: int, version: str) -> None:
        self.other = (
            ""
            if version == __version__
            else (f"it has milnet {__version__} and the command {version}: install the same version on every node")
        )
        if self.other:
            return
        import ray
        import torch

        torch.set_num_threads(threads)
        self.state, self.work = ray.get(pickle.loads(state)), work  # noqa: S301  (all of it is our own driver's)

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        at, items = batch.column("at")[0].as_py(), pickle.loads(batch.column("items")[0].as_py())  # noqa: S301
        data, trouble = b"", self.other
        try:
            data = b"" if trouble else self.work(self.state, items)
        except MemoryError:
            raise  # a smaller piece may do
        except MilnetError as error:
            trouble = str(error)
        except Exception as error:
            trouble = in_short(error)
        return {"at": [at], "data": [data], "trouble": [trouble]}


class Cluster:
    """Workers of Ray, for the time of a `with`; Ray that runs in this process already is used and left running.

    `workers`: how many, by default as many as there are processors; `threads` of computing, as many processors, and on
    `device` "cuda" one GPU for each. `address`: of a running cluster ("auto", "host:port", "ray://host:port"), by
    default Ray is started here and ended again. Raises MissingExtraError, ProcessError where Ray does not start.
    """

    def __init__(
        self, *, workers: int | None = None, threads: int = 1, address: str | None = None, device: str = "cpu"
    ) -> None:
        if threads < 1 or (workers is not None and workers < 1):
            raise UsageError(f"expected workers >= 1 and threads >= 1, got {workers} and {threads}")
        self.workers, self.threads, self.address = workers or 0, threads, address
        self.gpus = 1 if device.startswith("cuda") else 0
        self._started = False

    def __enter__(self) -> Cluster:
        ray = _import_ray()
        if not ray.is_initialized():
            _start(ray, self.address, max(os.cpu_count() or 1, self.workers * self.threads))
            self._started = True
        try:
            there = ray.cluster_resources()
            self.workers = self.workers or max(1, int(there.get("CPU", 1)) // self.threads)
            for what, need in (("CPU", self.threads), ("GPU", self.gpus)):
                if there.get(what, 0) < need:
                    raise UsageError(f"a worker needs {need} {what}, and Ray has {there.get(what, 0):g} of them")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            _import_ray().shutdown()
            self._started = False

    def run(
        self, state: Any, work: Work, rows: Sequence[int], item: Callable[[int], Item], most: int
    ) -> Iterator[tuple[Sequence[int], bytes | None]]:
        """See sources.Runner. `state` is sent once and must not change; `work` is a function of a module.

        Raises ProcessError where the workers cannot start, where one of them raised an error, or where none finished
        anything.
        """
        ray = _import_ray()
        reference = ray.put(state)  # held here: a worker that starts anew asks for it again
        sent = ray.cloudpickle.dumps(reference)
        size = max(1, min(most, max(_LEAST, len(rows) // (_PER_WORKER * self.workers))))
        waiting, smaller, dead = pieces(rows, size), [], []
        any_finished, alone = False, 0
        while waiting:
            count = alone or (_ROUND if any_finished else _FIRST * self.workers)
            now, waiting, finished, alone = waiting[:count], waiting[count:], set[int](), 0
            for at, data in self._pass(sent, work, now, item):
                if at not in finished:
                    finished.add(at)
                    any_finished = True
                    yield now[at], data
            unfinished = [piece for at, piece in enumerate(now) if at not in finished]
            dead += [piece for piece in unfinished if len(piece) == 1]
            unfinished = [piece for piece in unfinished if len(piece) > 1]
            if any_finished:
                for piece in dead:
                    yield piece, None
                dead.clear()
                smaller += [part for piece in unfinished for part in pieces(piece, max(1, len(piece) // _SMALLER))]
            elif len(dead) > _BLAMED:
                raise ProcessError(
                    f"each of {len(dead):,} photos ended the worker that had it, and none was finished: the "
                    f"workers lack memory, or cannot run here (Ray's logs are in /tmp/ray/session_latest/logs)"
                )
            elif unfinished:  # some photos alone tell whether anything works, before everything is tried in parts
                first, *others = unfinished
                some = pieces(first[: _BLAMED + 1], 1)
                alone, waiting = len(some), [*some, *filter(len, [first[_BLAMED + 1 :]]), *others, *waiting]
            if not waiting:
                waiting, smaller = smaller, []
        for piece in dead:
            yield piece, None

    def _pass(
        self, state: bytes, work: Work, waiting: Sequence[Sequence[int]], item: Callable[[int], Item]
    ) -> Iterator[tuple[int, bytes]]:
        """What became of each piece by its place; nothing of one whose worker died twice."""
        import ray.data

        described = [
            {"at": at, "items": pickle.dumps([(row, absolute(item(row))) for row in piece])}
            for at, piece in enumerate(waiting)
        ]
        with _quiet(ray.data.DataContext.get_current().copy()):
            made = ray.data.from_items(described, override_num_blocks=len(described)).map_batches(
                _Worker,
                batch_size=None,  # a row is a block, and a block a task
                batch_format="pyarrow",
                fn_constructor_args=(state, work, self.threads, __version__),
                # One piece a worker: what waits at a worker that dies would count as what killed it.
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.workers, len(described)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=self.threads,
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=1,  # by default a photo that kills would do so for ever
            )
            try:
                for block in made.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for at, data, trouble in zip(*(block.column(c) for c in ("at", "data", "trouble")), strict=True):
                        if trouble.as_py():
                            row = waiting[at.as_py()][0]
                            raise ProcessError(
                                f"a worker stopped at one of {len(waiting[at.as_py()]):,} photos from "
                                f"{item(row).name} on: {trouble.as_py()}"
                            )
                        yield at.as_py(), data.as_py()
            except ray.exceptions.RayError as error:
                raise ProcessError(f"Ray cannot go on: {in_short(error)}") from error


@contextlib.contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Ray Data that shows no bars, and goes on after a piece that failed."""
    from ray.data import DataContext

    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context), warnings.catch_warnings():
            # of how `max_restarts` is passed: the new way is not in older versions
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Standard error goes nowhere, below Python: Ray's core says there at which level it is going to be silent."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _import_ray() -> Any:
    # Read when it is imported: nothing is sent home, and its processes log to files what only Ray's makers can read.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray", "--workers ray") from error
    return ray


def _start(ray: Any, address: str | None, cpus: int) -> None:
    how: dict[str, Any] = {"address": address}
    if address is None:
        how = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        if address is not None and address != "auto":  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _unheard():
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **how)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:  # ConnectionError is an OSError
        where = "here" if address is None else f"at {address} (--address)"
        token = "" if address is None else "; if the cluster asks for a token, set RAY_AUTH_MODE=token here, too"
        raise ProcessError(f"Ray does not start or answer {where}: {in_short(error)}{token}") from error
    with contextlib.suppress(ImportError, AttributeError):  # "a worker died": what it means is said by us
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
