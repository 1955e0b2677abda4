"""Train the pocket network to see what the teacher sees in the views of `views.py`.

    python tools/pocket/train.py VIEWS OUT [--samples N] [--widths ...] [--optimiser muon|adamw] [--bfloat16]

Checkpoints every few minutes into OUT/checkpoint.pt and goes on from there; another --samples then stretches or
shortens what is left of the schedule. Writes OUT/log.csv (the loss on views of held-out photos as it falls) and
OUT/pocket.safetensors (batch norms folded, averaged weights).
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from milnet.artifacts import atomic_path
from milnet.pocket import DEPTHS, POCKET_CONFIG, SEMANTIC, WIDTHS, PocketNetwork, fold
from views import CELLS, LEVELS, from_bytes

LEVEL_WEIGHT, POOLED_WEIGHT = 0.3, 2.0
MIRRORED = 0.25  # share of the steps that see their views mirrored
MEAN, STD = (torch.tensor(POCKET_CONFIG[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))


def normalised(views: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W], channels last in memory."""
    return (views.permute(0, 3, 1, 2).float() - MEAN) / STD


class Pupil(nn.Module):
    """The pocket network and, for the training alone, a reader of the teacher's level at each of its stages."""

    def __init__(self, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        self.network = PocketNetwork(widths, depths, channels=SEMANTIC, norm=True)
        self.readers = nn.ModuleList(
            nn.Conv2d(width, channels, 1) for width, channels in zip(widths[1:], LEVELS.values(), strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-> semantic [B, cells, SEMANTIC] and levels [B, cells, 288]."""
        *stages, semantic = self.network.maps(x)
        levels = [
            reader(torch.nn.functional.adaptive_avg_pool2d(stage, CELLS))
            for reader, stage in zip(self.readers, stages, strict=True)
        ]
        return tuple(part.float().flatten(2).mT for part in (semantic, torch.cat(levels, 1)))  # type: ignore[return-value]


class Loss:
    """Squared errors in parts of the teacher's variance: of cells, of means over a view, of levels.

    A principal component counts with the power 3/4 of its variance: nearly as much as in the teacher's own cosine, but
    the small ones a little more.
    """

    def __init__(self, variance: Tensor, targets: Tensor) -> None:
        self.weights = variance**0.75 / (variance**0.75).sum()
        semantic = from_bytes(targets)[..., :SEMANTIC]
        self.cells = (self.weights * semantic.var((0, 1))).sum()
        self.pooled = (self.weights * semantic.mean(1).var(0)).sum()

    def __call__(self, found: tuple[Tensor, Tensor], targets: Tensor, *, mirrored: bool = False) -> Tensor:
        """[3]: cells, pooled, levels.

        The maps of a mirrored picture are not the mirrored maps: strides begin at the left, so that a fifth of the
        variance of the last one differs. Of a mirrored view the mean over its cells alone counts, a tenth off.
        """
        semantic, levels = found
        off = semantic - targets[..., :SEMANTIC]
        cells = float(not mirrored)
        return torch.stack(
            [
                cells * (self.weights * off.square().mean((0, 1))).sum() / self.cells,
                (self.weights * off.mean(1).square().mean(0)).sum() / self.pooled,
                cells * (levels - targets[..., SEMANTIC:]).square().mean(),
            ]
        )


def total(parts: Tensor) -> Tensor:
    """What is made small."""
    value: Tensor = parts @ parts.new_tensor([1.0, POOLED_WEIGHT, LEVEL_WEIGHT])
    return value


def orthogonal(g: Tensor, *, half: bool) -> Tensor:
    """The nearest orthogonal matrix, by five steps of Newton and Schulz (Jordan 2024, Muon)."""
    x = g / (g.norm() + 1e-7)
    x = x.bfloat16() if half else x
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    result: Tensor = x.T if tall else x
    return result.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for convolutions as matrices [out, in * height * width].

    The step is scaled by the sides of that matrix (Jordan's code takes the last two axes of the kernel, which gives 1).
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, decay: float, *, half: bool) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})
        self.half = half

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                momentum = state["momentum"] = state.get("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = p.grad.lerp(momentum, 0.95).flatten(1)
                rows, columns = update.shape
                scale = max(1.0, rows / columns) ** 0.5
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(orthogonal(update, half=self.half).view_as(p), alpha=-group["lr"] * scale)


def natural(network: PocketNetwork, targets: Path) -> PocketNetwork:
    """The network with its last map in the teacher's own units, as pocket.CHANNELS says."""
    with np.load(targets) as file:
        mean, variance, directions = (torch.from_numpy(file[n]) for n in ("mean", "variance", "directions"))
    inside = directions.T @ mean
    rest = (mean.square().sum() - inside.square().sum()).clamp_min(0).sqrt()
    last, deviation = nn.Conv2d(network.semantic.in_channels, len(inside) + 1, 1), variance.sqrt()
    last.weight.data.zero_()
    last.weight.data[:-1] = network.semantic.weight.data * deviation[:, None, None, None]
    bias = network.semantic.bias
    assert bias is not None and last.bias is not None
    last.bias.data = torch.cat([bias.data * deviation + inside, rest[None]])
    network.semantic = last
    return network


def read_views(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    """All shards of a kind: views uint8 [N, 112, 112, 3] and targets uint8 [N, 49, 544]."""
    paths = sorted(folder.glob(f"{kind}-*.npz"))
    if not paths:
        raise SystemExit(f"{folder} has no {kind}-*.npz: make them with views.py")
    with np.load(paths[0]) as first:
        count, shape, width = len(first["views"]), first["views"].shape[1:], first["targets"].shape[-1]
    views = np.empty((count * len(paths), *shape), np.uint8)
    targets = np.empty((count * len(paths), CELLS * CELLS, width), np.uint8)
    for k, path in enumerate(paths):
        with np.load(path) as shard:
            views[k * count : (k + 1) * count] = shard["views"]
            targets[k * count : (k + 1) * count] = shard["targets"].reshape(count, CELLS * CELLS, -1)
    return torch.from_numpy(views), torch.from_numpy(targets)


def batch_of(views: Tensor, targets: Tensor, rows: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
    """Network input and targets; all mirrored where `flip`."""
    x, y = views[rows], targets[rows]
    if flip:
        x = x.flip(2)
        y = y.view(len(y), CELLS, CELLS, -1).flip(2).flatten(1, 2)
    return normalised(x), from_bytes(y)


@torch.inference_mode()
def held_out(pupil: Pupil, loss: Loss, views: Tensor, targets: Tensor) -> Tensor:
    """The loss on views of held-out photos, [3]."""
    pupil.eval()
    parts = [
        loss(pupil(x), y) * len(y)
        for x, y in (batch_of(views, targets, rows, False) for rows in torch.split(torch.arange(len(views)), 128))
    ]
    pupil.train()
    return torch.stack(parts).sum(0) / len(views)


def train(args: argparse.Namespace) -> None:
    """The whole run."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    with np.load(args.views / "targets.npz") as file:
        variance = torch.from_numpy(file["variance"])
    views, targets = read_views(args.views, "learn")
    others = read_views(args.views, "choose")
    loss = Loss(variance, others[1])
    pupil: Pupil = Pupil(args.widths, args.depths).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(pupil)
    matrices = [p for p in pupil.parameters() if p.ndim == 4 and p.shape[1] > 3 and args.optimiser == "muon"]
    rest = [p for p in pupil.parameters() if not any(p is m for m in matrices)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.02, betas=(0.9, 0.98)),
        *([Muon(matrices, 0.02, 0.03, half=args.bfloat16)] if matrices else []),
    ]
    base = [group["lr"] for o in optimisers for group in o.param_groups]
    steps, step, spent = args.samples // args.batch, 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        pupil.load_state_dict(state["pupil"])
        average.load_state_dict(state["average"])
        for optimiser, part in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(part)
        step, spent = state["step"], state["spent"]
    log = args.out / "log.csv"
    if step == 0:
        log.write_text("samples,seconds,train_cells,train_pooled,train_levels,cells,pooled,levels\n")
    began, saved, running = time.monotonic() - spent, time.monotonic(), torch.zeros(3)
    order = torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(step)
    count = 0
    while step < steps:
        if len(order) < args.batch:
            order = torch.randperm(len(views), generator=generator)
        rows, order = order[: args.batch], order[args.batch :]
        mirrored = bool(torch.rand(1, generator=generator) < MIRRORED)
        x, y = batch_of(views, targets, rows, mirrored)
        rate = min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, lr in zip((g for o in optimisers for g in o.param_groups), base, strict=True):
            group["lr"] = lr * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            found = pupil(x)
        parts = loss(found, y, mirrored=mirrored)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        total(parts).backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if not mirrored:
            running += parts.detach()
            count += 1
        with torch.no_grad():
            keep = min(0.999, (step + 1) / (step + 10))
            for a, b in zip(average.state_dict().values(), pupil.state_dict().values(), strict=True):
                if a.is_floating_point():
                    a.lerp_(b, 1 - keep)
        if time.monotonic() - saved > args.every or step == steps:
            seconds = time.monotonic() - began
            numbers = [*(running / count).tolist(), *held_out(average, loss, *others).tolist()]
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([step * args.batch, round(seconds), *(f"{x:.4f}" for x in numbers)])
            print(
                f"{step}/{steps}, {step * args.batch / seconds:.0f} views/s:",
                *(f"{x:.4f}" for x in numbers),
                flush=True,
            )
            state = {
                "pupil": pupil.state_dict(),
                "average": average.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "step": step,
                "spent": time.monotonic() - began,
            }
            with atomic_path(checkpoint) as part:
                torch.save(state, part)
            saved, running, count = time.monotonic(), torch.zeros(3), 0
    folded = natural(fold(average.network.eval(), args.widths, args.depths), args.views / "targets.npz")
    save_file(
        {name: tensor.half().contiguous() for name, tensor in folded.state_dict().items()},
        args.out / "pocket.safetensors",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=1_600_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs=4, default=list(WIDTHS))
    parser.add_argument("--depths", type=int, nargs=3, default=list(DEPTHS))
    parser.add_argument("--optimiser", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor has it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=float, default=120, help="seconds between checkpoints")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
