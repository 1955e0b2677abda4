"""How much of the speed of the forward pass alone is left when whole photos are scored.

    python benchmarks/scoring.py pocket PHOTOS/ --photos 600 --rounds 5
    python benchmarks/scoring.py standard PHOTOS/ --weights mobilenetv2_100.safetensors --photos 60

Rounds alternate between: the backbone alone on decoded batches, one after the other by all of torch's threads; the same
batches side by side, as the extractor passes them; extraction from files; scores from files with technical values; and
`score_files` with a new cache, which is what `milnet score` does. Photos a second are medians; ratios are of one round.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import numpy as np

from milnet.cache import Cache
from milnet.extraction import _Passes
from milnet.files import score_files
from milnet.library import find_photos
from milnet.scoring import Scorer


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    found = find_photos([str(options.folder)]).photos
    files = [found[i] for i in np.random.default_rng(0).permutation(len(found))[: options.photos]]
    scorer = Scorer.load(options.model, weights=options.weights)
    bare = replace(scorer.nodes, look=None)
    batches: list[Any] = [group for _, group in bare._batches(enumerate(files)) if isinstance(group, list)]

    def one_by_one() -> None:
        for group in batches:
            bare.forward(group)

    def side_by_side() -> None:
        passes: _Passes[int] = _Passes(bare)
        for group in batches:
            for _ in passes.give(group):
                pass
        for _ in passes.rest():
            pass
        passes.close()

    def scored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(Path(folder) / "cache.sqlite")
            if score_files(scorer, files, cache).forward != len(files):
                raise SystemExit("not every photo could be scored, or some are the same: expected good, different ones")
            cache.close()

    steps = {
        "forward, one by one": one_by_one,
        "forward, side by side": side_by_side,
        "extraction": lambda: [None for _ in bare.stream(enumerate(files))],
        "scores": lambda: [None for _ in scorer.stream(enumerate(files))],
        "score_files": scored,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for attempt in range(options.rounds + 1):
        for name, step in steps.items():
            took = seconds(step)
            if attempt:  # the first one warms up
                times[name].append(took)
    print(f"{len(files)} photos in {len(batches)} batches of {bare.batch}, {len(scorer.pool):,} in the pool")
    for name, spent in times.items():
        shares = [np.array(times[base]) / np.array(spent) for base in ("forward, one by one", "forward, side by side")]
        print(
            f"{name:<22} {len(files) / np.median(spent):7.1f} photos/s, "
            + ", ".join(
                f"{np.median(share):.2f} ({share.min():.2f} .. {share.max():.2f}) of {what}"
                for share, what in zip(shares, ("one by one", "side by side"), strict=True)
            )
        )


if __name__ == "__main__":
    main()
