"""Small data the tests make themselves: rated photos with a planted structure."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from milnet.annotations import Table
from milnet.features import FeatureSet

THEMES = 15

# Not pytest.importorskip: beside a CPU torch, timm imports only after milnet has helped torchvision.
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs the extra timm")


@dataclass(frozen=True)
class NoBackbone:
    """In the place of an extractor where features are given and no photo is seen."""

    batch: int = 1
    look: Any = None
    config: ClassVar[dict[str, str]] = {}


def table(n: int = 90, seed: int = 0, values: int = 5, name: str = "made") -> Table:
    """`n` photos in themes of like photos; votes around a theme's level."""
    rng = np.random.default_rng(seed)
    theme = np.arange(n) % THEMES
    level = rng.normal(size=THEMES)[theme] + 0.5 * rng.normal(size=n)
    grid = np.arange(1, values + 1)
    shape = np.exp(-0.5 * (grid[None] - (values + 1) / 2 - level[:, None]) ** 2)
    votes = rng.poisson(40 * shape / shape.sum(1, keepdims=True)) + 1.0
    return Table(
        name=name,
        ids=tuple(f"photo{i:03}" for i in range(n)),
        votes=votes,
        values=grid.astype(float),
        columns={
            "theme": tuple(f"t{t}" for t in theme),
            "fold": tuple(str(f) for f in rng.permutation(np.arange(n) % 3)),
            "fold_theme": tuple(str(t % 3) for t in theme),
            "split": tuple("test" if i % 4 == 3 else "train" for i in range(n)),
        },
        images=tuple(f"photo{i:03}.png" for i in range(n)),
        groups=("theme",),
        threshold=(values + 1) / 2,
    )


def features(of: Table, seed: int = 0, width: int = 24, semantic: int = 8) -> FeatureSet:
    """Node features that tell the score, semantic ones (the last columns) that tell the theme; all photos readable."""
    rng = np.random.default_rng(seed)
    theme = np.array([int(t[1:]) for t in of.columns["theme"]])
    scores = of.scores if np.isfinite(of.votes).all() else np.zeros(len(of))
    nodes = 0.5 * rng.normal(size=(len(of), width)) + scores[:, None] * rng.normal(size=width)
    nodes[:, -semantic:] = rng.normal(size=(THEMES, semantic))[theme] + 0.3 * rng.normal(size=(len(of), semantic))
    nodes = nodes.astype(np.float16)
    return FeatureSet(
        semantic=nodes[:, -semantic:],
        nodes=nodes,
        pixels=tuple(f"{i:064x}" for i in range(len(of))),
        readable=np.ones(len(of), np.bool_),
        config={
            "semantic": {"name": "made:last", "span": [width - semantic, width], "digest": "s" * 64, "extraction": {}},
            "nodes": {"name": "made:taps", "span": [0, width], "digest": "n" * 64, "extraction": {}},
        },
    )


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A smooth coloured picture, different for each seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def photo_folder(folder: Path, of: Table) -> None:
    """Write the photos of a table as PNG files, of several shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [(96, 72), (72, 96), (96, 96), (128, 64)]
    for i, name in enumerate(of.images):
        photo(i, *sizes[i % len(sizes)]).save(folder / name)


def votes_csv(path: Path, of: Table) -> None:
    """Write a table in the general csv form."""
    head = ["image", *of.columns, *(f"v{v:g}" for v in of.values)]
    lines = [",".join(head)]
    for i, name in enumerate(of.images):
        lines.append(",".join([name, *(c[i] for c in of.columns.values()), *(f"{v:.0f}" for v in of.votes[i])]))
    path.write_text("\n".join(lines) + "\n")
