"""How much of the bare forward pass is left when photos come from files: decoding, resizing, digests, batches.

    python benchmarks/extraction.py PHOTOS --backbone resnet50 --backbone mlsp --photos 32

The pipeline is `Extractor.stream` on the files, decoding in its threads while the network computes; beside it the same
batches, decoded before the clock starts, through the network alone. Both in turn, so that a slow moment meets both.
Weights are random: they cost as much as any. With --wide the maps in 5x5 cells are made too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from milnet.backbones import load_backbone
from milnet.extraction import Extractor
from milnet.library import find_photos
from milnet.preprocess import Preprocess
from timing import Ratio, alternate, machine


def make(name: str, *, wide: bool, batch: int | None = None, weights: str = "random:0") -> Extractor:
    """The extractor that `milnet features --backbone NAME` uses."""
    original = name == "mlsp"
    how = Preprocess(1024 if original else 320, "original" if original else "whole", 1 if original else 32)
    return Extractor.build(load_backbone(name, weights), how, batch=batch, pooling="area" if wide else None)


def batches(extractor: Extractor, files: list[Path]) -> list[Tensor]:
    """The inputs of the forward passes that the pipeline makes of the files."""
    groups: dict[tuple[int, ...], list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = {}
    for file in files:
        (pixels,), _ = extractor.preprocess(file)
        groups.setdefault(pixels.shape, []).append(pixels)
    made = []
    for shape, photos in groups.items():
        for start in range(0, len(photos), extractor.batch):
            stack = np.zeros((extractor.batch, *shape), np.uint8)
            for row, pixels in enumerate(photos[start : start + extractor.batch]):
                stack[row] = pixels
            made.append(torch.from_numpy(stack).permute(0, 3, 1, 2))
    return made


def both(extractor: Extractor, files: list[Path]) -> tuple[Callable[[], int], Callable[[], int]]:
    """The pipeline and the forward pass alone, each over all files; both return the number of photos."""
    ready = batches(extractor, files)

    def pipeline() -> int:
        return sum(result.features is not None for result in extractor.stream(enumerate(files)))

    def alone() -> int:
        for x in ready:
            if extractor.pooling is None:
                extractor.backbone(x)
            else:
                extractor.backbone.wide(x, extractor.pooling)
        return len(files)

    return pipeline, alone


def measure(extractor: Extractor, files: list[Path], rounds: int) -> Ratio:
    """Seconds of both, in turn. Raises SystemExit when a photo could not be read."""
    pipeline, alone = both(extractor, files)
    if pipeline() != alone():
        raise SystemExit("some photos could not be read: time readable ones")
    return alternate(pipeline, alone, rounds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of photos")
    parser.add_argument("--backbone", action="append", help="default: resnet50 and mlsp")
    parser.add_argument("--photos", type=int, default=32, help="how many photos (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument("--batch", type=int, help="photos a forward pass (default: as milnet features)")
    parser.add_argument("--wide", action="store_true", help="make the maps in 5x5 cells as well")
    options = parser.parse_args(arguments)
    files = list(find_photos([options.folder]).photos[: options.photos])
    print(machine())
    for name in options.backbone or ["resnet50", "mlsp"]:
        extractor = make(name, wide=options.wide, batch=options.batch)
        ratio = measure(extractor, files, options.rounds)
        ours, alone = (len(files) / np.median(seconds) for seconds in (ratio.ours, ratio.theirs))
        shares = [100 * share for share in ratio.rounds]
        print(
            f"{name}{' wide' if options.wide else ''}, batch {extractor.batch}: pipeline {ours:.2f} photos/s, forward "
            f"pass alone {alone:.2f}; {np.median(shares):.1f} % of it ({min(shares):.1f} .. {max(shares):.1f} over "
            f"{len(shares)} rounds of {len(files)} photos)"
        )


if __name__ == "__main__":
    main()
