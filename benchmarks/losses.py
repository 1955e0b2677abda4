"""AdaEMD on a batch, forward and backward: the vectorised losses against a loop over samples and bins.

    python benchmarks/losses.py

The loop is the straightforward transcription of what the method says (docs/method.md, section 2, rows 1 and 2, on the
authors' 2022 release): for each sample the prefix sums of its bins one after the other, the root, the branch at the
threshold; then the mean. It keeps a running prefix sum, where the release adds up every prefix anew, and it does not
update the state, which ours does in every call: the ratios are lower bounds. Both ways are shown to give the same loss
and the same gradient before they are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from milnet.losses import AdaptiveEMD, Loss, PublishedAdaEMD, emd, prefix_l1
from timing import Ratio, alternate, machine

LoopLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TOLERANCE = 1e-6  # of loss and gradient, float32


def loop_distance(p: Tensor, q: Tensor, *, published: bool) -> Tensor:
    """EMD (r = 2) of one sample, p and q [S]; `published`: the absolute value inside the prefix sum."""
    prefix, total = p.new_zeros(()), p.new_zeros(())
    for i in range(len(p)):
        gap = p[i] - q[i]
        prefix = prefix + (gap.abs() if published else gap)
        total = total + prefix**2
    return torch.sqrt(total / len(p))


def loop_published(p: Tensor, q: Tensor, threshold: Tensor, offset: Tensor) -> Tensor:
    """AdaEMD as published, e if e < t else (C + e) * e, sample by sample; p and q [B, S]."""
    losses = []
    for one, other in zip(p, q, strict=True):
        e = loop_distance(one, other, published=True)
        losses.append(e if e < threshold else (offset + e) * e)
    return torch.stack(losses).mean()


def loop_adaptive(p: Tensor, q: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """The weighting of `AdaptiveEMD` on the true EMD, sample by sample; p and q [B, S]."""
    losses = []
    for one, other in zip(p, q, strict=True):
        e = loop_distance(one, other, published=False)
        losses.append(e if e < threshold else e + (e - threshold) ** 2 / (2 * scale))
    return torch.stack(losses).mean()


def in_training(p: Tensor, q: Tensor) -> list[tuple[Loss, LoopLoss, Tensor, Tensor]]:
    """Both losses as in the middle of a training, each with its loop, threshold and second number.

    The threshold lies between the two middle distances, so half of the samples take either branch.
    """

    def middle(distances: Tensor) -> Tensor:
        ordered = distances.detach().sort().values
        return ordered[(len(ordered) - 1) // 2 :][:2].mean()

    adaptive, published = AdaptiveEMD(), PublishedAdaEMD()
    adaptive.threshold.copy_(middle(emd(p, q)))
    adaptive.scale.copy_(emd(p, q).detach().mean())
    published.threshold.copy_(middle(prefix_l1(p, q)))
    published.offset.fill_(0.1)
    return [
        (adaptive, loop_adaptive, adaptive.threshold.clone(), adaptive.scale.clone()),
        (published, loop_published, published.threshold.clone(), published.offset.clone()),
    ]


def step(loss: Callable[[], Tensor], p: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: the loss, and its gradient at the leaf `p`."""
    p.grad = None
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    return value.detach(), p.grad


def compare(
    loss: Loss, loop: LoopLoss, threshold: Tensor, other: Tensor, p: Tensor, q: Tensor, rounds: int, calls: int
) -> tuple[float, Ratio]:
    """The largest disagreement of loss and gradient, then the times. Raises SystemExit when they do not agree."""
    loss.eval()  # the state stands still
    pairs = zip(step(lambda: loss(p, q), p), step(lambda: loop(p, q, threshold, other), p), strict=True)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    if not apart < TOLERANCE:
        raise SystemExit(f"{type(loss).__name__}: loss or gradient differ by {apart:.2g}, allowed {TOLERANCE:g}")
    loss.train()
    return apart, alternate(
        lambda: step(lambda: loss(p, q), p),
        lambda: step(lambda: loop(p, q, threshold, other), p),
        rounds,
        ours_calls=50 * calls,
        theirs_calls=calls,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="samples in a batch (default 128)")
    parser.add_argument("--bins", type=int, default=10, help="score values (default 10)")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds, ours and the loop in turn (default 11)")
    parser.add_argument(
        "--calls", type=int, default=4, help="loop calls a round; ours gets 50 times as many (default 4)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    print(f"loss and gradient of {options.batch} samples, {options.bins} bins, float32")
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(options.batch, options.bins, generator=generator).softmax(1) for _ in range(2))
    p.requires_grad_()
    found = []
    for loss, loop, threshold, other in in_training(p, q):
        apart, ratio = compare(loss, loop, threshold, other, p, q, options.rounds, options.calls)
        print(f"{type(loss).__name__}: {ratio.times()}; apart by {apart:.1g} at most; {ratio}")
        found.append(ratio)
    print(min(found, key=lambda ratio: ratio.median))


if __name__ == "__main__":
    main()
