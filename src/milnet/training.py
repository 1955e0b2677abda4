"""The training loop: batches, epochs, and a run that can be killed at any moment and ends with the same bits.

The order of an epoch is a pure function of (seed, phase, epoch); dropout draws from a generator set at the start of
each epoch; the state on disk holds everything else. So it does not matter when a run was last saved.

Several processes (processes.py) share each batch of that same order; the loss is that of the whole batch, and dropout
draws from generators set at each step of each process. The first one alone writes; any number of them goes on with what
it wrote.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from milnet import processes
from milnet.annotations import IntArray
from milnet.artifacts import atomic_path, canonical_json, differences, write_text
from milnet.errors import ArtifactError, MissingExtraError, NumericError, UsageError
from milnet.features import Maps, Progress, evenly
from milnet.losses import Loss
from milnet.model.common import synchronise
from milnet.samples import IN_MEMORY, Batch, Samples, epoch_batches, shares

Precision = Literal["no", "bf16", "fp16"]
_LESS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """`RUN/`: the state of a training under way. With `folder` None nothing is written and nothing resumes.

    `identity.json` says of what; `results.json` and `PHASE.safetensors` hold the finished phases, `state.pt` (tensors
    and numbers, loaded weights-only) the one under way, `log.jsonl` a line an epoch. Another identity is refused. Of
    several processes the first reads and writes, and tells the others.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], *, save_seconds: float = 30.0) -> None:
        self.folder, self.save_seconds = folder, save_seconds
        self.results: dict[str, Any] = {}
        self.threads = torch.get_num_threads()  # sums depend on it: a resumed run goes on with the recorded number
        if folder is not None:
            self.threads, self.results = processes.from_first(lambda: self._open(folder, identity))

    def _open(self, folder: Path, identity: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Threads to go on with, and the phases that are finished."""
        path = folder / "identity.json"
        if folder.exists() and not path.exists() and any(folder.iterdir()):
            raise ArtifactError(f"{folder} was not made by milnet, and a training would be kept there: move it away")
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if old is not None and canonical_json(old["identity"]) != canonical_json(identity):
            what = differences(old["identity"], json.loads(canonical_json(identity)))
            raise ArtifactError(
                f"{folder} holds an unfinished training of other data, options, seed or versions ({what}): run it with "
                f"the same ones, or remove that folder"
            )
        threads = self.threads
        if old is not None and old.get("processes", 1) == processes.world():
            threads = int(old["threads"])
        else:
            how = {"threads": threads, "processes": processes.world()}
            write_text(path, canonical_json({"identity": identity, **how}))
        done = folder / "results.json"
        return threads, json.loads(done.read_text(encoding="utf-8")) if done.exists() else {}

    @property
    def _writes(self) -> Path | None:
        """The folder, for the process that writes there."""
        return self.folder if processes.first() else None

    def finish_phase(self, name: str, result: Any, network: nn.Module | None = None) -> None:
        """Keep the result of a phase (JSON) and its network; the state under way is no longer needed."""
        self.results[name] = result
        if self._writes is not None:
            if network is not None:
                with atomic_path(self._writes / f"{name}.safetensors") as temporary:
                    save_file(contiguous_state(network), temporary)
            write_text(self._writes / "results.json", json.dumps(self.results))
            (self._writes / "state.pt").unlink(missing_ok=True)

    def load_network(self, name: str, network: nn.Module) -> None:
        """The network that `finish_phase` kept."""
        assert self.folder is not None
        path = self.folder / f"{name}.safetensors"
        network.load_state_dict(processes.from_first(lambda: load_file(path)))

    def load(self, phase: str) -> dict[str, Any] | None:
        """The state of `phase`, if that is the one under way."""
        if self.folder is None:
            return None
        path = self.folder / "state.pt"

        def read() -> dict[str, Any] | None:
            if not path.exists():
                return None
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            return state if state["phase"] == phase else None

        return processes.from_first(read)

    def save(self, state: dict[str, Any]) -> float:
        """Write the state under a temporary name, then rename it. Returns the seconds to wait until the next time.

        A large state is saved less often, so that saving takes at most a twentieth of the time.
        """
        began = time.monotonic()
        if self._writes is not None:
            with atomic_path(self._writes / "state.pt") as temporary:
                torch.save(state, temporary)
        return max(self.save_seconds, 20 * (time.monotonic() - began)) if self.save_seconds else 0.0

    def array(self, name: str, shape: tuple[int, int]) -> NDArray[np.float16]:
        """A float16 array of NaN, on the disk of this run where it is large; all processes then write into the one."""
        if self.folder is None or 2 * math.prod(shape) <= IN_MEMORY:
            return np.full(shape, np.nan, np.float16)
        path = self.folder / f"{name}.npy"

        def make() -> None:
            np.lib.format.open_memmap(path, "w+", np.float16, shape)[:] = np.nan

        processes.from_first(make)
        array: NDArray[np.float16] = np.lib.format.open_memmap(path, "r+")
        return array

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`. After a resume an epoch may stand there twice; the last one counts."""
        if self._writes is not None:
            with (self._writes / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **line}) + "\n")

    def waited(self) -> float:
        """Share of the time of all epochs that the first process spent waiting for batches, by `log.jsonl`."""
        path = None if self._writes is None else self._writes / "log.jsonl"
        if path is None or not path.exists():
            return 0.0
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return float(sum(line["loading"] for line in lines) / max(sum(line["seconds"] for line in lines), 1e-9))

    def remove_if_empty(self) -> None:
        """Remove the folder when nothing worth resuming is in it: the training was refused before it began."""
        if self._writes is not None and not self.results and not (self._writes / "state.pt").exists():
            self.remove()

    def remove(self) -> None:
        """Remove the folder: the work is finished and stored elsewhere."""
        if self._writes is not None:
            shutil.rmtree(self._writes, ignore_errors=True)


def contiguous_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network as safetensors wants it: on the CPU, contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class Plan:
    """How one network is trained."""

    batch: int  # photos a step, of all processes together
    learning_rate: float
    weight_decay: float
    decay: float  # the rate is multiplied by this after every `decay_epochs` epochs
    decay_epochs: int
    seed: int
    device: str = "cpu"
    precision: Precision = "no"


Validate = Callable[[nn.Module], Mapping[str, float]]


def train_epochs(
    network: nn.Module,
    loss: Loss,
    samples: Samples,
    epochs: int,
    plan: Plan,
    *,
    phase: str,
    run: Run,
    validate: Validate | None = None,
    patience: int | None = None,
    keep_best: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train for `epochs` epochs and return a line a finished epoch (loss, rate, what `validate` measured).

    `validate` gives at least "emd2", the number that is compared. With `patience` it stops once that has not improved
    for so many epochs; with `keep_best` the network ends as it was after its best epoch. Raises NumericError when the
    loss is not finite.
    """
    accelerator, rank, world = _accelerator(plan), processes.rank(), processes.world()
    if world > 1 and accelerator.device.type == "cuda":
        synchronise(network)
    optimizer = torch.optim.Adam(_parameter_groups(network, plan.weight_decay), lr=plan.learning_rate)
    loss.to(accelerator.device)
    network, optimizer = accelerator.prepare(network, optimizer)
    on_gpu = [accelerator.device] if accelerator.device.type == "cuda" else []
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=plan.precision == "fp16")
    state = run.load(phase)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    first_epoch, first_step, running = 0, 0, 0.0
    with torch.random.fork_rng(devices=on_gpu):
        if state is not None:
            accelerator.unwrap_model(network).load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            loss.load_state_dict(state["loss"])
            history, best = [dict(line) for line in state["history"]], state["best"]
            first_epoch, first_step, running = state["epoch"], state["step"], state["running"]
        processes.equalise(accelerator.unwrap_model(network))
        saved, pause = time.monotonic(), run.save_seconds
        for epoch in range(first_epoch, epochs):
            if stalled(history, patience):
                break
            rate = plan.learning_rate * plan.decay ** (epoch // plan.decay_epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(zlib.crc32(f"{plan.seed}/{phase}/{epoch}".encode()))
            if first_step and state is not None:
                torch.set_rng_state(state["rng"])
            network.train()
            loss.train()
            batches = epoch_batches(len(samples), plan.batch, plan.seed, phase, epoch)
            parts = [shares(batch, world) for batch in batches]
            # Who gets nothing of a short batch takes part with two of its photos, which do not count.
            own = [part[rank] if len(part[rank]) else batch[:2] for part, batch in zip(parts, batches, strict=True)]
            began, waited = time.perf_counter(), 0.0
            for step, (batch, waiting) in enumerate(samples.batches(own[first_step:]), first_step):
                waited += waiting
                if world > 1 or on_gpu:  # so that nothing of other processes' or a GPU's generators need be kept
                    torch.manual_seed(zlib.crc32(f"{plan.seed}/{phase}/{epoch}/{step}/{rank}".encode()))
                sizes = [len(part) for part in parts[step]]
                lost = _step(network, loss, optimizer, accelerator, scaler, plan.precision, batch, sizes)
                running += lost * len(batches[step])
                if time.monotonic() - saved >= pause and step + 1 < len(batches):
                    pause = run.save(
                        _state(phase, epoch, step + 1, running, network, optimizer, loss, history, best, accelerator)
                    )
                    saved = time.monotonic()
            first_step = 0
            seconds = time.perf_counter() - began
            loss.end_epoch()
            processes.equalise(accelerator.unwrap_model(network))  # running statistics: each one has its own
            network.eval()
            line = {"epoch": float(epoch + 1), "loss": running / len(samples), "rate": rate}
            running = 0.0
            if validate is not None:
                line.update(validate(accelerator.unwrap_model(network)))
            if keep_best and line["emd2"] < min((old["emd2"] for old in history), default=float("inf")):
                best = {k: v.detach().cpu().clone() for k, v in accelerator.unwrap_model(network).state_dict().items()}
            history.append(line)
            run.log({"phase": phase, **line, "seconds": round(seconds, 3), "loading": round(waited, 3)})
            if progress is not None:
                progress(epoch + 1, epochs, phase)
            if time.monotonic() - saved >= pause:
                pause = run.save(_state(phase, epoch + 1, 0, 0.0, network, optimizer, loss, history, best, accelerator))
                saved = time.monotonic()
    if best:
        accelerator.unwrap_model(network).load_state_dict(best)
    network.eval()
    return history


def stalled(history: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the best epoch is `patience` or more epochs old."""
    return patience is not None and len(history) > patience and len(history) - best_epoch(history) >= patience


def best_epoch(history: list[dict[str, float]]) -> int:
    """The number of epochs with the lowest validation EMD2, smoothed over an epoch and its neighbours; 1-based."""
    values = np.array([line["emd2"] for line in history])
    padded = np.pad(values, 1, mode="edge")
    return int(np.argmin((padded[:-2] + padded[1:-1] + padded[2:]) / 3)) + 1


def _step(
    network: nn.Module,
    loss: Loss,
    optimizer: Any,
    accelerator: Any,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    batch: Batch,
    sizes: list[int],
) -> float:
    """The loss of the whole batch, of which process i has `sizes[i]` photos; all take the same step.

    Less precision is for the steps alone: what is measured and kept is what the network gives in float32.
    """
    batch = batch.to(accelerator.device)
    assert batch.target is not None
    with torch.autocast(accelerator.device.type, _LESS.get(precision), enabled=precision in _LESS):
        log_p = network(batch.photo, batch.pool, batch.index, batch.similarity, batch.keep)
    several = len(sizes) > 1
    together = (lambda e: processes.joined(e, sizes)) if several else None
    value = loss(log_p.float().exp(), batch.target, together)
    if not torch.isfinite(value):
        raise NumericError(f"the loss is {value.item()}: training diverged; lower the learning rate")
    optimizer.zero_grad()
    # Each has the gradient of its own photos' part of the mean; the mean over processes is taken of them.
    accelerator.backward(scaler.scale(value * len(sizes) if several else value))
    scaler.step(optimizer)
    scaler.update()
    return float(value.item())


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay acts on matrices; biases and norms are left free."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _accelerator(plan: Plan) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if plan.precision == "fp16" and plan.device == "cpu":
        raise UsageError("precision=fp16: expected a GPU; on the CPU set precision=no")
    if processes.world() == 1:  # of an earlier training, which may have had another device
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=plan.device == "cpu")
    assert accelerator.num_processes == processes.world()
    return accelerator


def _state(
    phase: str,
    epoch: int,
    step: int,
    running: float,
    network: nn.Module,
    optimizer: Any,
    loss: Loss,
    history: list[dict[str, float]],
    best: dict[str, Tensor],
    accelerator: Any,
) -> dict[str, Any]:
    return {
        "phase": phase,
        "epoch": epoch,
        "step": step,
        "running": running,
        "network": accelerator.unwrap_model(network).state_dict(),
        "optimizer": optimizer.state_dict(),
        "loss": loss.state_dict(),
        "history": history,
        "best": best,
        "rng": torch.get_rng_state(),
    }


def predict(network: nn.Module, samples: Samples, *, device: str = "cpu") -> NDArray[np.float64]:
    """Distributions [n, S] of all samples, in evaluation mode, rows sum to 1.

    Several processes deal the batches out among them, and each gets all that was found: the same bits as one alone.
    """
    network.eval()
    where, size = torch.device(device), 64 if samples.are_maps else 256
    picks = np.split(np.arange(len(samples), dtype=np.int64), range(size, len(samples), size))
    parts: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for batch, _ in samples.batches(processes.share(picks)):
            item = batch.to(where)
            log_p = network(item.photo, item.pool, item.index, item.similarity, item.keep)
            p = log_p.double().exp().cpu().numpy()
            parts.append(p / p.sum(1, keepdims=True))
    return np.concatenate(processes.gathered(parts, len(picks)))


_MOMENTS = 4096  # photos of whose maps the moments are taken


def moments(nodes: NDArray[Any] | Maps, rows: IntArray, block: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of the rows, in float64, block by block.

    Of maps [N, 25, D] over their cells too, from at most 4,096 evenly taken photos: reading them all takes an epoch.
    """
    ordered = np.sort(rows)
    if len(nodes.shape) > 2:
        block //= 25
        ordered = ordered[evenly(len(ordered), _MOMENTS)]

    def numbers() -> Iterator[NDArray[np.float64]]:
        for start in range(0, len(ordered), block):
            yield nodes[ordered[start : start + block]].astype(np.float64).reshape(-1, nodes.shape[-1])

    count = len(ordered) * math.prod(nodes.shape[1:-1])
    mean = sum((part.sum(0) for part in numbers()), np.zeros(nodes.shape[-1])) / count
    square = sum((((part - mean) ** 2).sum(0) for part in numbers()), np.zeros(nodes.shape[-1])) / count
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(square)).float()


def write_tensorboard(run: Run, folder: Path) -> None:
    """The lines of `log.jsonl` as TensorBoard curves, one a phase and quantity (extra `tensorboard`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "tensorboard", "--tensorboard") from None
    assert run.folder is not None
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    latest = {(line["phase"], line["epoch"]): line for line in lines}  # after a resume the last one counts
    writer: Any = SummaryWriter(str(folder))
    for (phase, epoch), line in latest.items():
        for name, value in line.items():
            if name not in ("phase", "epoch", "time", "seconds", "loading"):
                writer.add_scalar(f"{phase}/{name}", value, int(epoch), walltime=line["time"])
    writer.close()
