"""A synthetic DATA folder of AVA's size, to time every step on: what is made here says nothing about photographs.

    python benchmarks/ava_size.py make FOLDER            # 237,108 photos, 4 GB, about two minutes
    python benchmarks/ava_size.py make FOLDER --photos 5000
    milnet references FOLDER -k 100 --semantic semantic
    milnet train FOLDER --semantic semantic --nodes nodes --recipe published -o MODEL

217,110 photos of the split `train` and 19,998 of `test`, as in ILGnet's split of AVA; 1..10 points, about 210 votes a
photo. What is planted: photos belong to themes; a theme has a level and a photo its own deviation, which make its
latent score, around which votes are drawn. `features/semantic` (2,048 numbers, as a ResNet-50 gives) lie around a
centre of the theme; `features/nodes` (6,144, as the reducer gives) are noise plus the latent score along one direction.
No photo has a file. Everything is seeded: the same command gives the same bytes. Written block by block.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import FloatArray, IntArray, Table, save_table
from milnet.artifacts import FORMATS, Manifest, digest_file, digest_text, new_folder, write_lines, write_manifest
from milnet.features import photos_digest

PHOTOS, TEST = 237_108, 19_998
SEMANTIC, NODES = 2048, 6144
THEME = 100  # photos in a theme, on average
SIGNAL = 2.0  # length of the latent score's direction in the nodes, in standard deviations of their noise
BLOCK = 2048  # photos made at once: 50 MB of nodes


def planted(photos: int, seed: int) -> tuple[IntArray, FloatArray]:
    """Theme and latent score (mean 0, standard deviation 1) of each photo, both [N]."""
    generator = np.random.default_rng([seed, 0])
    theme = generator.integers(0, max(1, photos // THEME), photos)
    level = generator.standard_normal(max(1, photos // THEME))
    return theme, np.sqrt(0.5) * (level[theme] + generator.standard_normal(photos))


def rated(photos: int, seed: int) -> Table:
    """The table: ids, votes, split, theme."""
    theme, latent = planted(photos, seed)
    generator = np.random.default_rng([seed, 1])
    values = np.arange(1.0, 11.0)
    centre = 5.4 + 0.75 * latent[:, None]
    width = generator.uniform(1.1, 1.8, (photos, 1))
    shares = np.exp(-0.5 * ((values - centre) / width) ** 2)
    shares /= shares.sum(1, keepdims=True)
    votes = generator.multinomial(np.maximum(generator.poisson(210, photos), 1), shares).astype(np.float64)
    test = np.zeros(photos, np.bool_)
    test[generator.permutation(photos)[: round(photos * TEST / PHOTOS)]] = True
    return Table(
        name=f"ava-size-{photos}",
        ids=tuple(str(1000 + row) for row in range(photos)),
        votes=votes,
        values=values,
        columns={
            "split": tuple("test" if is_test else "train" for is_test in test),
            "theme": tuple(f"t{number}" for number in theme),
        },
        images=("",) * photos,
        groups=("theme",),
        threshold=5.0,
        source={"synthetic": {"photos": photos, "seed": seed}},
    )


def semantic_blocks(photos: int, seed: int) -> Iterator[NDArray[Any]]:
    """Rows around the centre of their theme, nearer or farther from photo to photo."""
    theme, _ = planted(photos, seed)
    centres = np.random.default_rng([seed, 2]).standard_normal((theme.max() + 1, SEMANTIC), np.float32)
    for start in range(0, photos, BLOCK):
        part = theme[start : start + BLOCK]
        generator = np.random.default_rng([seed, 3, start])
        spread = generator.uniform(0.5, 1.0, (len(part), 1)).astype(np.float32)
        yield centres[part] + spread * generator.standard_normal((len(part), SEMANTIC), np.float32)


def node_blocks(photos: int, seed: int) -> Iterator[NDArray[Any]]:
    """Noise plus the latent score along one direction."""
    _, latent = planted(photos, seed)
    direction = np.random.default_rng([seed, 4]).standard_normal(NODES)
    direction *= SIGNAL / np.linalg.norm(direction)
    for start in range(0, photos, BLOCK):
        part = latent[start : start + BLOCK]
        generator = np.random.default_rng([seed, 5, start])
        yield generator.standard_normal((len(part), NODES), np.float32) + np.outer(part, direction).astype(np.float32)


def write_features(folder: Path, table: Table, blocks: Iterator[NDArray[Any]], width: int, ranges: list[str]) -> None:
    """A features folder, as an extraction writes it, from blocks of rows [n, width]; each range is all columns."""
    with new_folder(folder, "features") as building:
        # Written, not mapped: pages of a map would count as memory until the system takes them back.
        with (building / "features.npy").open("wb") as file:
            header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": (len(table), width)}
            np.lib.format.write_array_header_1_0(file, header)
            for part in blocks:
                file.write(part.astype(np.float16).data)
        write_lines(building / "pixels.txt", [digest_text(f"{table.name}:{id_}") for id_ in table.ids])
        (building / "errors.csv").write_text("id,file,reason\n", encoding="utf-8")
        manifest = Manifest(
            kind="features",
            format=FORMATS["features"],
            config={
                "backbone": "synthetic",
                "weights": digest_text("synthetic"),
                "preprocess": {},
                "normalisation": {},
                "ranges": {name: [0, width] for name in ranges},
            },
            files={name: digest_file(building / name) for name in ("features.npy", "pixels.txt")},
            inputs={"photos": photos_digest(table)},
            counts={"photos": len(table), "unreadable": 0},
            notes={"weights": "synthetic"},
        )
        write_manifest(building, manifest)


def make(folder: Path, photos: int = PHOTOS, seed: int = 0) -> None:
    """Write the DATA folder with both sets of features."""
    table = rated(photos, seed)
    save_table(table, folder, inputs={})
    write_features(folder / "features" / "semantic", table, semantic_blocks(photos, seed), SEMANTIC, ["last", "taps"])
    write_features(folder / "features" / "nodes", table, node_blocks(photos, seed), NODES, ["taps"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make", help="write the DATA folder")
    command.add_argument("folder", type=Path, help="where to; must not be there")
    command.add_argument("--photos", type=int, default=PHOTOS, help=f"how many (default {PHOTOS:,})")
    command.add_argument("--seed", type=int, default=0, help="another seed, other photos (default 0)")
    options = parser.parse_args(arguments)
    if options.photos < 20:
        sys.exit(f"--photos {options.photos}: expected at least 20")
    make(options.folder, options.photos, options.seed)
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{options.folder}: {options.photos:,} photos, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
