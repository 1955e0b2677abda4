"""What the timing benchmarks share: facts about the machine, and two ways timed in turn."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


def machine() -> str:
    """What the figures depend on: cores, versions, threads."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}; {torch.get_num_threads()} torch threads"
    )


@dataclass(frozen=True)
class Ratio:
    """Seconds a call of `ours` and of `theirs`, one number a round."""

    ours: list[float]
    theirs: list[float]

    @property
    def rounds(self) -> list[float]:
        """How many times as long theirs takes, in each round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def median(self) -> float:
        """The ratio that is reported."""
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        rounds = self.rounds
        return f"ratio: {self.median:.1f} x ({min(rounds):.1f} .. {max(rounds):.1f} over {len(rounds)} rounds)"

    def times(self) -> str:
        """Median milliseconds a call of both."""
        ours, theirs = (statistics.median(seconds) * 1e3 for seconds in (self.ours, self.theirs))
        return f"ours {ours:.3f} ms, theirs {theirs:.3f} ms"


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, *, ours_calls: int = 1, theirs_calls: int = 1
) -> Ratio:
    """Time both in turn, so that a slow moment of the machine meets both; the first round warms up and is dropped."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for seconds, call, count in ((found[0], ours, ours_calls), (found[1], theirs, theirs_calls)):
            began = time.perf_counter()
            for _ in range(count):
                call()
            seconds.append((time.perf_counter() - began) / count)
    return Ratio(found[0][1:], found[1][1:])
