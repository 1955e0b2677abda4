"""Which input the pocket network is used with: how well its features of whole photos give the teacher's.

    python tools/pocket/choose.py PHOTOS WEIGHTS [--pocket FILE]

Ridge regression from the pupil's features to the teacher's at 320 pixels (each standardised), learned on every second
photo that the network learned from, explained variance on the held-out ones; and on these the correlation of the
cosines of `last` with the teacher's. No rated photo takes part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.linalg import solve

from milnet.annotations import FloatArray
from milnet.backbones import Backbone, load_backbone
from milnet.extraction import Extractor
from milnet.preprocess import Preprocess
from views import split_photos

SIZES = (96, 128, 160, 192, 224, 256, 320)
SEVERAL = ((128, 192), (160, 224), (128, 192, 256), (160, 224, 320), (128, 160, 224), (128, 160, 192, 224, 256))
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the ridge; the best counts


def features(backbone: Backbone, files: list[Path], size: int) -> FloatArray:
    """[N, D] of the whole photos."""
    found = np.empty((len(files), backbone.width))
    for result in Extractor.build(backbone, Preprocess(size)).stream(enumerate(files)):
        assert result.features is not None
        found[result.key] = result.features
    return found


def explained(x: FloatArray, y: FloatArray, n: int) -> float:
    """Share of the variance of `y` [N, E] that `x` [N, D] explains, learned on the first `n` rows, on the rest."""
    x, y = ((a - a[:n].mean(0)) / (a[:n].std(0) + 1e-8) for a in (x, y))
    kernel = x @ x[:n].T / x.shape[1]
    errors = [
        np.square(y[n:] - kernel[n:] @ solve(kernel[:n] + strength * np.eye(n), y[:n], assume_a="pos")).mean()
        for strength in STRENGTHS
    ]
    return float(1 - min(errors) / np.square(y[n:]).mean())


def alike(x: FloatArray, y: FloatArray) -> float:
    """Correlation of the cosines of all pairs of rows."""
    pairs = np.triu_indices(len(x), 1)
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return float(np.corrcoef((a @ a.T)[pairs], (b @ b.T)[pairs])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--pocket", default="cached", help="safetensors of another run (default: what is shipped)")
    args = parser.parse_args()
    split = split_photos(args.photos)
    learned = split["learn"][::2]
    files = [args.photos / name for name in (*learned, *split["choose"])]
    n = len(learned)
    teacher, pupil = load_backbone("timm/mobilenetv2_100", args.weights), load_backbone("pocket", args.pocket)
    wanted, last = features(teacher, files, 320), slice(*teacher.ranges["last"])
    own = slice(*pupil.ranges["last"])
    found = {size: features(pupil, files, size) for size in SIZES}
    print("| long side | `last` from all | all from all | `last` from `last` | cosines |")
    for sizes in (*((size,) for size in SIZES), *SEVERAL):
        x = np.mean([found[size] for size in sizes], axis=0)
        cells = (
            explained(x, wanted[:, last], n),
            explained(x, wanted, n),
            explained(x[:, own], wanted[:, last], n),
            alike(x[n:, own], wanted[n:, last]),
        )
        print("|", " + ".join(map(str, sizes)), "|", " | ".join(f"{cell:.3f}" for cell in cells), "|", flush=True)


if __name__ == "__main__":
    main()
