"""The numbers of photos: `DATA/features/NAME/` on disk, and the two sets of them that the method sees.

On disk: `features.npy` float16 [N, D] (row = row of DATA; NaN where the photo could not be read), `pixels.txt` (sha256
of the decoded sRGB pixels, "" where unreadable), `errors.csv`, the manifest. `extraction.py` makes them.

Where asked for, `wide.npy` beside them holds the feature maps in 5x5 cells, [N, 25, C] (mlsp.py): as float16, or as
bytes with the lowest value and the step of each channel of each photo in `wide_range.npy` float16 [N, 2, C].
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import IntArray, Table
from milnet.artifacts import (
    canonical_json,
    digest_text,
    read_array,
    read_lines,
    read_manifest,
    verify_files,
    write_text,
)
from milnet.errors import ArtifactError, UsageError

Progress = Callable[[int, int, str], None]  # done, total, what: called from the main thread
_VERIFIED = 1 << 30  # bytes up to which every load compares features with their digest; above, `milnet info --verify`


def photos_digest(table: Table) -> str:
    """Identity of the photos of a table (ids and files), whatever their votes: what features belong to."""
    return digest_text(canonical_json([table.name, list(table.ids), list(table.images)]))


class Maps(Protocol):
    """Feature maps of N photos in 5x5 cells, [N, 25, C], as an array that gives rows when asked: `maps[rows]`."""

    shape: tuple[int, ...]
    itemsize: int

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """The maps of `rows` [n], [n, 25, C] float16."""
        ...


WideForm = Literal["float16", "int8"]  # how wide maps are stored: 2 bytes a number, or 1.16


class PackedMaps:
    """Maps stored as bytes: number = low + byte * step, with low and step of each channel of each photo.

    `codes` uint8 [N, 25, C], `scales` float16 [N, 2, C]; both may be memory-mapped.
    """

    itemsize = 2  # of what it gives

    def __init__(self, codes: NDArray[np.uint8], scales: NDArray[np.float16]) -> None:
        self.codes, self.scales = codes, scales
        self.shape: tuple[int, ...] = codes.shape

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        codes, scales = torch.from_numpy(np.asarray(self.codes[rows])), torch.from_numpy(np.asarray(self.scales[rows]))
        low, step = scales[..., :1, :].float(), scales[..., 1:, :].float()
        unpacked: NDArray[np.float16] = (low + codes * step).half().numpy()
        return unpacked


def pack_maps(maps: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Maps [..., 25, C] as bytes, and scales [..., 2, C]; off by half a step, 1/510 of a channel's range, at most."""
    low = maps.min(-2, keepdims=True).astype(np.float16)
    step = ((maps.max(-2, keepdims=True) - low) / np.float32(255)).astype(np.float16)
    # The smallest steps are not numbers of float16; a channel that varies so little is flat.
    safe = np.where(step > 0, step, np.float16(1)).astype(np.float32)
    codes = np.rint((maps - low.astype(np.float32)) / safe).clip(0, 255).astype(np.uint8)
    return codes, np.concatenate([low, step], axis=-2)


class Features:
    """The finished features of a DATA folder: `values` [N, D] float16 (memory-mapped), `pixels` digests, `ranges`.

    `maps` [N, 25, C] where wide maps are stored, else None; `seen`: photos that a trained part of them has learned
    from; `reducer`: the folder itself when they are reduced and hold the network that did it, else None.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, "features")
        if self.manifest.inputs["photos"] != photos_digest(table):
            raise ArtifactError(
                f"{folder} holds features of other photos than DATA ({table.name}, {len(table)} photos): expected "
                f"photos {photos_digest(table)[:12]}..., got {self.manifest.inputs['photos'][:12]}...; extract again"
            )
        self.name = folder.name
        files = self.manifest.files
        self.values = read_array(folder / "features.npy", mmap=True)
        self.maps = self._maps()
        if self.values.nbytes < _VERIFIED:
            small = [name for name in files if not name.startswith("wide") or self._bytes("wide.npy") < _VERIFIED]
            verify_files(folder, self.manifest, small)
        self.pixels = read_lines(folder / "pixels.txt")
        self.ranges: dict[str, tuple[int, int]] = {k: (v[0], v[1]) for k, v in self.manifest.config["ranges"].items()}
        if self.values.shape != (len(table), self.width) or len(self.pixels) != len(table):
            raise ArtifactError(
                f"{folder}: expected {len(table)} x {self.width}, got {self.values.shape}; extract again"
            )
        # Photos without a pixel digest could not be read, unless the folder says otherwise.
        self.readable: NDArray[np.bool_] = (
            read_array(folder / "readable.npy").astype(np.bool_)
            if "readable.npy" in files
            else np.array([bool(digest) for digest in self.pixels])
        )
        if (
            "reducer" in self.manifest.config
            and not {"seen.txt", "reducer.safetensors", "reducer.json"} <= files.keys()
        ):
            raise ArtifactError(
                f"{folder} holds reduced features without the network that made them and the photos it has seen: "
                f"make them again with `milnet reduce`"
            )
        self.seen = read_seen(folder / "seen.txt") if "seen.txt" in files else ()
        self.reducer = folder if "reducer.safetensors" in files else None

    def _bytes(self, name: str) -> int:
        return (self.folder / name).stat().st_size if name in self.manifest.files else 0

    def _maps(self) -> NDArray[Any] | Maps | None:
        if "wide.npy" not in self.manifest.files:
            return None
        wide = read_array(self.folder / "wide.npy", mmap=True)
        if "wide_range.npy" not in self.manifest.files:
            return wide
        return PackedMaps(wide, read_array(self.folder / "wide_range.npy", mmap=True))

    @property
    def width(self) -> int:
        """D."""
        return max(end for _, end in self.ranges.values())

    def span(self, name: str) -> tuple[int, int]:
        """First and last + 1 column of a named range; raises UsageError listing the names."""
        if name not in self.ranges:
            raise UsageError(f"{self.folder.name} has no range {name!r}; there are: {', '.join(sorted(self.ranges))}")
        return self.ranges[name]


def read_seen(file: Path) -> tuple[tuple[str, str], ...]:
    """Photos that a trained part has learned from: pairs ("table:id", pixel digest)."""
    return tuple((name, digest) for name, _, digest in (line.partition("\t") for line in read_lines(file)))


def seen_lines(seen: Sequence[tuple[str, str]]) -> list[str]:
    """The lines of the file that `read_seen` reads."""
    return [f"{name}\t{digest}" for name, digest in seen]


def write_errors(path: Path, errors: Iterable[tuple[str, str, str]]) -> None:
    """Write errors.csv: id, file and reason of each photo that could not be read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "file", "reason"])
    writer.writerows(errors)
    write_text(path, text.getvalue())


def stored_rows(array: NDArray[Any] | Maps, rows: IntArray) -> NDArray[Any]:
    """Rows of a (memory-mapped) array in the order asked, as stored; read once each and in ascending order.

    A memory map gives ascending rows about three times faster than scattered ones.
    """
    if len(rows) < 2 or (rows[1:] > rows[:-1]).all():
        return np.asarray(array[rows])
    unique, inverse = np.unique(rows, return_inverse=True)
    return np.asarray(array[unique])[inverse]


def take_rows(array: NDArray[Any], rows: IntArray) -> NDArray[np.float32]:
    """The same as float32 (torch widens float16 several times faster than numpy)."""
    widened: NDArray[np.float32] = torch.from_numpy(stored_rows(array, rows)).float().numpy()
    return widened


def same_pixels(table: Table, features: Features) -> list[tuple[str, ...]]:
    """Ids of photos whose decoded pixels are identical, a tuple for each set of two or more."""
    found: dict[str, list[str]] = {}
    for id_, digest in zip(table.ids, features.pixels, strict=True):
        if digest:
            found.setdefault(digest, []).append(id_)
    return [tuple(ids) for ids in found.values() if len(ids) > 1]


@dataclass(frozen=True)
class FeatureSet:
    """What the method sees of N photos: two sets of numbers and the identity of the pixels.

    `semantic` [N, Ds] serves retrieval, `nodes` [N, Dn] enters the network; both may be memory-mapped. Rows where
    `readable` is False hold NaN and take no part. `config` is what a scorer needs to make the same numbers again.
    `maps` [N, 25, C]: the wide maps behind the nodes, where there are any: what a reducer learns from. `seen`: photos
    that the features themselves have learned from ("table:id", pixel digest), and `reducer` the folder of the network
    that made them.
    """

    semantic: NDArray[Any]
    nodes: NDArray[Any]
    pixels: tuple[str, ...]
    readable: NDArray[np.bool_]
    config: Mapping[str, Any]
    maps: NDArray[Any] | Maps | None = None
    seen: tuple[tuple[str, str], ...] = ()
    reducer: Path | None = None

    def pixel_codes(self) -> IntArray:
        """Whole numbers [N], equal where the pixels are the same; -1 where unknown."""
        codes = np.unique(np.array(self.pixels), return_inverse=True)[1].astype(np.int64)
        return np.where(np.array([bool(digest) for digest in self.pixels]), codes, np.int64(-1))


def _choose(data: Path, wanted: str | None, default_range: str, option: str) -> tuple[Path, str]:
    folder = data / "features"
    names = (
        sorted(path.name for path in folder.iterdir() if (path / "manifest.json").is_file()) if folder.is_dir() else []
    )
    if not names:
        raise UsageError(f"{data} has no features yet: run `milnet features {data} --backbone timm/...` first")
    name, _, span = (wanted or "").partition(":")
    if not name and len(names) > 1:
        raise UsageError(f"{data} has several extractions ({', '.join(names)}): choose one with {option} NAME[:range]")
    name = name or names[0]
    if name not in names:
        raise UsageError(f"{data} has no features {name!r}; there are: {', '.join(names)}")
    return folder / name, span or default_range


def load_feature_set(data: Path, table: Table, *, semantic: str | None = None, nodes: str | None = None) -> FeatureSet:
    """The two feature sets of a DATA folder, each "NAME[:range]"; with one extraction neither is needed.

    Defaults: `last` for semantic, `taps` for nodes. Raises UsageError listing the names where a choice is needed.
    """
    (semantic_folder, semantic_range) = _choose(data, semantic, "last", "--semantic")
    (nodes_folder, nodes_range) = _choose(data, nodes, "taps", "--nodes")
    first = Features(semantic_folder, table)
    second = first if nodes_folder == semantic_folder else Features(nodes_folder, table)
    spans = first.span(semantic_range), second.span(nodes_range)
    config: dict[str, dict[str, Any]] = {}
    for role, features, span_name, span in (
        ("semantic", first, semantic_range, spans[0]),
        ("nodes", second, nodes_range, spans[1]),
    ):
        extraction = dict(features.manifest.config)
        if "reducer" not in extraction:
            extraction.pop("wide", None)  # maps that lie beside them: no part of what the features are
        config[role] = {
            "name": f"{features.name}:{span_name}",
            "span": list(span),
            "digest": features.manifest.digest,
            "extraction": extraction,
            "weights": features.manifest.notes.get("weights", ""),
        }
    if second.maps is not None:
        wide = second.manifest.config["wide"]
        config["maps"] = {
            **{key: config["nodes"][key] for key in ("digest", "extraction", "weights")},
            "name": f"{second.name}:wide",
            "span": [0, second.maps.shape[2]],
            "pooling": wide["pooling"],
        }
    return FeatureSet(
        semantic=first.values[:, spans[0][0] : spans[0][1]],
        nodes=second.values[:, spans[1][0] : spans[1][1]],
        pixels=tuple(a or b for a, b in zip(first.pixels, second.pixels, strict=True)),
        readable=first.readable & second.readable,
        config=config,
        maps=second.maps,
        seen=first.seen if first is second else (*first.seen, *second.seen),
        reducer=second.reducer,
    )


def evenly(n: int, count: int) -> IntArray:
    """At most `count` of the places 0 .. n - 1, ascending and evenly taken."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads, then set the number back: the last bits of a sum depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
