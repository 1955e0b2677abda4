"""What consulting the pool adds to feature extraction: the same photos through the extractor and through `Scorer`.

    python benchmarks/scoring.py MODEL PHOTOS/ --photos 60 --rounds 5

Rounds alternate between the two; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported

import numpy as np

from milnet.library import find_photos
from milnet.scoring import Scorer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    files = find_photos([str(options.folder)]).photos[: options.photos]
    scorer = Scorer.load(options.model)
    alone, whole = [], []
    for attempt in range(options.rounds + 1):
        began = time.perf_counter()
        for _ in scorer.nodes.stream(enumerate(files)):
            pass
        middle = time.perf_counter()
        for _ in scorer.stream(enumerate(files)):
            pass
        if attempt:  # the first one warms up
            alone.append(middle - began)
            whole.append(time.perf_counter() - middle)
    a, b = np.median(alone), np.median(whole)
    print(
        f"{len(files)} photos beside {len(scorer.model.pool):,}: extraction {len(files) / a:.2f} photos/s, scoring "
        f"{len(files) / b:.2f} photos/s; scoring adds {100 * (b / a - 1):.1f} % "
        f"({min(x / y for x, y in zip(whole, alone, strict=True)) * 100 - 100:.1f} .. "
        f"{max(x / y for x, y in zip(whole, alone, strict=True)) * 100 - 100:.1f} % in single rounds)"
    )


if __name__ == "__main__":
    main()
