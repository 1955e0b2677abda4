"""Several processes that train one network: `torchrun --nproc-per-node N -m milnet train ...`, or `accelerate launch`.

Each process computes its share of every batch; the gradients are averaged between them (by torch, as accelerate sets it
up), and whatever the loss keeps comes from the gathered batch. What is decided, written and said once is the first
process's: `from_first`. Work of many equal pieces (predictions) is dealt out piece by piece and put together again in
its order: `share`, `gathered`. In a process of its own none of this does anything.

Between CPUs the processes talk by gloo, between GPUs by NCCL. A process that dies closes its connections, so the others
end at once; one that stands still is waited for `PATIENCE` long.
"""

from __future__ import annotations

import datetime
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from milnet.errors import ProcessError, UsageError

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)
_ENDED = (
    "another process of this run has ended, or this one was told to: the reason stands above, unless it was killed. "
    "What was finished is kept: run it again (train, reduce: with --resume), with any number of processes"
)
_store: Any = None  # what all processes can read and write; under torchrun it outlives them


def join() -> None:
    """Join the other processes that torchrun or accelerate started; each of them must call it before any work.

    Raises UsageError where the launcher did not say who this process is, and where the others are.
    """
    global _store
    if torch.cuda.is_available() and "LOCAL_RANK" not in os.environ:
        raise UsageError(
            "WORLD_SIZE is set and LOCAL_RANK is not: expected the number of this process on its machine, which says "
            "which GPU is its own; start the processes with torchrun or accelerate launch"
        )
    try:
        _store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but this process cannot join the others ({error}): start "
            f"them with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from error
    _store.set_timeout(PATIENCE)
    both = torch.cuda.is_available() and dist.is_nccl_available()
    if both and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if both else "gloo",
        store=dist.PrefixStore("milnet", _store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun says 1; who says nothing gets his share of the cores
        share = max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        os.environ["OMP_NUM_THREADS"] = str(share)
        torch.set_num_threads(share)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _told_to_end)


def leave() -> None:
    """Wait for the others and take leave of them: the last call of a run that succeeded."""
    global _store
    if world() > 1:
        meet()
        dist.destroy_process_group()
    _store = None


def _told_to_end(*_: object) -> None:
    _is_ending()
    raise ProcessError(_ENDED)


def _is_ending() -> None:
    """Who is ending need not be told to: the word would come between the reason and its being said."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def world() -> int:
    """How many processes work together; 1 alone."""
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(dist.get_rank()) if dist.is_available() and dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def local_rank() -> int:
    """Which of the processes of this machine this one is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone calls it; all wait for it.

    An error there is raised in all of them (in the others as ProcessError with the same text).
    """
    if world() == 1:
        return work()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if first():
        try:
            outcome[0] = work()
        except Exception as error:
            failure, outcome[1] = error, str(error)
    dist.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise ProcessError(outcome[1])
    result: T = outcome[0]
    return result


def share(pieces: Sequence[T]) -> list[T]:
    """The pieces of work that this process does: every so many-th."""
    return list(pieces[rank() :: world()])


def gathered(done: list[T], count: int) -> list[T]:
    """What came of all `count` pieces, in their order, from what came of each process's `share`."""
    if world() == 1:
        return done
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, done)
    return [parts[i % world()][i // world()] for i in range(count)]


def meet() -> None:
    """Wait until all processes are here."""
    gathered([None], world())


def joined(own: Tensor, sizes: Sequence[int]) -> Tensor:
    """The numbers of all processes one after the other, [sum of `sizes`], `sizes[i]` of process i.

    Gradients flow into this process's `own` alone. A process with size 0 worked in place of nothing, so that it takes
    part in all exchanges: what it found does not count.
    """
    sent = own.detach().new_zeros(max(sizes))
    sent[: sizes[rank()]] = own.detach()[: sizes[rank()]]
    parts = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(parts, sent)
    found = [own[:size] if i == rank() else parts[i][:size] for i, size in enumerate(sizes)]
    return torch.cat(found) + (0 if sizes[rank()] else 0 * own.sum())


def equalise(network: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if world() > 1:
        with torch.no_grad():
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def speaks() -> bool:
    """Whether this process is to say why all of them end: the first one that asks, so that it is said once."""
    if _store is None:
        return True
    _is_ending()
    try:
        return int(_store.add("milnet/spoken", 1)) == 1
    except RuntimeError:  # whoever held the store is gone
        return True


def lost(error: BaseException) -> ProcessError | None:
    """What to say of an error that stands for the death of another process; None for any other one."""
    about = isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)
    if world() == 1 or not isinstance(error, RuntimeError) or not about:
        return None
    _is_ending()
    return ProcessError(_ENDED)
