"""Training batches, photo + 4 references of 6,144 numbers each: rows of one array against one pickle a photo.

    python benchmarks/batches.py

Ours: `milnet.samples.Samples.batch` on one float16 array, read from a memory map (what a data set above 1 GiB gets)
and from memory (a smaller one), both with the photo and its references gathered as the network sees them.
Theirs: the way of the authors' 2022 release (docs/method.md, section 2, golden values: one pickle a photo, named by the
bare id, (1, 6144) float32; votes and references found by scanning a table for the id). Two transcriptions:
by default the leanest, which scans arrays of whole numbers, once a table, and opens each file once: a lower bound;
with --pandas (pip install pandas) as the release does it, with data frames: votes looked up three times, references
once, the photo's own file opened twice.
The tables have a row for each of AVA's 235,574 training photos, and 100 references a row, as published; 20,000 of
the photos have files here, and batches are drawn from those. References are drawn at random, which does ours no favour:
photos of a batch share few. All files are in the page cache, which does theirs one. Both ways are shown to give the
same batches before they are timed.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet import samples as samples_module
from milnet.annotations import FloatArray, IntArray
from milnet.model.common import gather_nodes
from milnet.pool import RatedPool
from milnet.references import References
from milnet.samples import Samples
from timing import Ratio, alternate, machine

TOLERANCE = 1e-3  # float16 against float32, numbers in [0, 1)
REFERENCES = 4


@dataclass
class Published:
    """Pickles in `folder`; tables with a row a photo in another order than the photos', as files have them."""

    folder: Path
    label_ids: IntArray  # [M]
    labels: FloatArray  # [M, S] fractions
    reference_ids: IntArray  # [M, 1 + 100] the photo, its references

    def read(self, id_: int) -> NDArray[np.float32]:
        """The numbers of one photo, [1, D]."""
        with (self.folder / str(id_)).open("rb") as file:
            numbers: NDArray[np.float32] = pickle.load(file)
        return numbers

    def photo(self, id_: int) -> tuple[NDArray[np.float32], FloatArray]:
        """Nodes [1 + 4, D] and fractions [S] of one photo."""
        references = self.reference_ids[self.reference_ids[:, 0] == id_][0, 1 : 1 + REFERENCES]
        fractions = self.labels[self.label_ids == id_][0]
        return np.concatenate([self.read(name) for name in (id_, *references)]), fractions

    def batch(self, ids: IntArray) -> tuple[Tensor, Tensor]:
        """Nodes [B, 1 + 4, D] and fractions [B, S], collated sample by sample."""
        samples = [self.photo(int(id_)) for id_ in ids]
        nodes = torch.stack([torch.from_numpy(nodes) for nodes, _ in samples])
        return nodes, torch.stack([torch.from_numpy(fractions).float() for _, fractions in samples])


@dataclass
class PublishedFrames(Published):
    """The same with the lookups of the release: data frames, filtered again for each thing that is wanted."""

    def __post_init__(self) -> None:
        pandas: Any = import_module("pandas")
        fractions = {i + 1: column for i, column in enumerate(self.labels.T)}
        mean = self.labels @ np.arange(1, self.labels.shape[1] + 1)
        self.votes = pandas.DataFrame({0: self.label_ids, **fractions, len(fractions) + 1: mean})
        self.references = pandas.DataFrame(self.reference_ids)

    def photo(self, id_: int) -> tuple[NDArray[np.float32], FloatArray]:
        """Nodes [1 + 4, D] and fractions [S] of one photo."""
        own = self.read(id_)
        nodes = self.read(id_)
        references = self.references[self.references[0] == id_].iloc[0, 1 : 1 + REFERENCES].values
        votes = self.votes[self.votes[0] == id_].iloc[0, 1:].values
        for name in references:
            nodes = np.concatenate([nodes, self.read(int(name))])
        fractions = self.votes[self.votes[0] == id_].iloc[0, 1:-1].values
        mean = self.votes[self.votes[0] == id_].iloc[0, -1]
        assert own.shape == (1, nodes.shape[1]) and votes[-1] == mean  # the release hands them on
        return nodes, np.array(fractions, np.float64)


def our_batch(samples: Samples, picks: IntArray) -> tuple[Tensor, Tensor]:
    """The same from ours."""
    batch = samples.batch(picks)
    assert batch.target is not None
    return gather_nodes(batch.photo, batch.pool, batch.index).float(), batch.target


def write_photos(folder: Path, photos: int, width: int, generator: np.random.Generator) -> NDArray[Any]:
    """Random numbers in [0, 1) as one float16 array and as one float32 pickle a photo; the array, memory-mapped."""
    path = folder / "features.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float16, (photos, width))
    (folder / "pickles").mkdir()
    for row in range(photos):
        numbers = generator.random((1, width), np.float32) * np.float32(0.999)  # below 1 in float16 as well
        array[row] = numbers
        with (folder / "pickles" / str(row)).open("wb") as file:
            pickle.dump(numbers, file)
    array.flush()
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


def published_tables(
    distributions: FloatArray, index: IntArray, table: int, generator: np.random.Generator
) -> tuple[IntArray, FloatArray, IntArray]:
    """Label ids, fractions and reference lists of `table` photos, shuffled; only the first of them have files."""
    rows = np.arange(table, dtype=np.int64)
    fractions = distributions[rows % len(distributions)]
    lists = np.zeros((table, 101), np.int64)
    lists[:, 0] = rows
    lists[: len(index), 1 : 1 + REFERENCES] = index
    order = generator.permutation(table)
    return rows[order], fractions[order], lists[order[::-1]]


def make_both(
    folder: Path,
    photos: int,
    width: int,
    generator: np.random.Generator,
    kind: type[Published] = Published,
    table: int = 0,
) -> tuple[Published, Samples, Samples]:
    """The same synthetic photos for theirs, ours from the memory map, ours in memory."""
    nodes = write_photos(folder, photos, width, generator)
    distributions = generator.dirichlet(np.ones(10), photos)
    rows = np.arange(photos, dtype=np.int64)
    steps = generator.permuted(np.tile(np.arange(1, min(photos, 64)), (photos, 1)), axis=1)[:, :REFERENCES]
    index = (rows[:, None] + steps * (photos // min(photos, 64))) % photos  # 4 others, each once
    similarity = np.sort(generator.random((photos, REFERENCES), np.float32))[:, ::-1].copy()
    ids, empty = tuple(map(str, rows)), ("",) * photos
    totals = np.ones(photos)
    pool = RatedPool(ids, empty, empty, distributions, totals, nodes[:, :1], nodes, rows, None)
    published = kind(folder / "pickles", *published_tables(distributions, index, max(table, photos), generator))
    limit = samples_module.IN_MEMORY
    both = []
    for bytes_ in (0, 1 << 40):  # which branch is taken is decided when the samples are made
        samples_module.IN_MEMORY = bytes_
        both.append(Samples(nodes, rows, pool, References(index, similarity), distributions))
    samples_module.IN_MEMORY = limit
    return published, both[0], both[1]


def measure(published: Published, samples: Samples, batches: list[IntArray], rounds: int) -> tuple[float, Ratio]:
    """The largest disagreement over all batches, then the times. Raises SystemExit when they do not agree."""
    apart = max(
        float((a - b).abs().max())
        for picks in batches
        for a, b in zip(our_batch(samples, picks), published.batch(picks), strict=True)
    )
    if not apart < TOLERANCE:
        raise SystemExit(f"the batches differ by {apart:.2g}, allowed {TOLERANCE:g}")

    def each(make: Callable[[IntArray], object]) -> Callable[[], object]:
        following: Iterator[IntArray] = cycle(batches)
        return lambda: make(next(following))

    ratio = alternate(
        each(lambda picks: our_batch(samples, picks)),
        each(published.batch),
        rounds,
        ours_calls=len(batches),
        theirs_calls=len(batches),
    )
    return apart, ratio


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000, help="photos; 37 kB of disk each (default 20,000)")
    parser.add_argument("--table", type=int, default=235_574, help="rows of the published tables (default 235,574)")
    parser.add_argument("--width", type=int, default=6144, help="numbers a photo (default 6144)")
    parser.add_argument("--batch", type=int, default=128, help="photos in a batch (default 128)")
    parser.add_argument("--batches", type=int, default=20, help="different batches, all made each round (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, ours and theirs in turn (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--pandas", action="store_true", help="theirs looks up with data frames, as the release does")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    print(f"{options.photos:,} photos; batches of {options.batch} x (1 + {REFERENCES}) x {options.width} numbers")
    kind = PublishedFrames if options.pandas else Published
    print(f"theirs looks up by {'pandas data frames' if options.pandas else 'scans of numpy arrays'}")
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        published, mapped, memory = make_both(
            Path(folder), options.photos, options.width, generator, kind, options.table
        )
        batches = [
            generator.choice(options.photos, options.batch, replace=False).astype(np.int64)
            for _ in range(options.batches)
        ]
        ratios = {}
        for name, samples in (("in memory", memory), ("memory map", mapped)):
            apart, ratios[name] = measure(published, samples, batches, options.rounds)
            print(f"{name}: {ratios[name].times()} a batch; apart by {apart:.1g} at most; {ratios[name]}")
    print(ratios["memory map"])


if __name__ == "__main__":
    main()
