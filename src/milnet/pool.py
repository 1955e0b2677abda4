"""Rated photos one may consult, and who is a reference of whom.

No photo is its own reference: pool photos of the same id, the same pixels, or a semantic cosine above .97 are left out,
at scoring too. Photos of the same group are left out when groups act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    canonical_json,
    digest_file,
    digest_text,
    new_folder,
    read_array,
    read_manifest,
    verify_files,
    write_array,
    write_manifest,
)
from milnet.errors import LeakError, UsageError
from milnet.features import FeatureSet, Progress, take_rows
from milnet.references import SAME_PHOTO, Exclusion, References, Similarity, same_photo_limit, search


@dataclass(frozen=True)
class Store:
    """`DATA/references/NAME/`: for every row of a table its nearest rows in the pool, found once.

    `index` [N, k] rows of DATA (-1: none), `value` [N, k] their similarity, both nearest first. `rows`: the pool that
    was searched; a smaller pool finds its references in here exactly, another one does not.
    """

    index: NDArray[Any]
    value: NDArray[Any]
    rows: IntArray
    similarity: Similarity
    near_duplicate: float | None

    def serves(self, pool: RatedPool, similarity: Similarity, k: int) -> bool:
        """Whether this store holds what a search for `k` references in `pool` would find."""
        alike = self.similarity == similarity and (similarity == "l2" or self.near_duplicate == pool.near_duplicate)
        return alike and k <= self.index.shape[1] and bool(np.isin(pool.rows, self.rows).all())

    def select(self, queries: IntArray, pool_rows: IntArray, exclude: Sequence[Exclusion], k: int) -> References:
        """The first `k` that lie in a smaller pool and are not excluded; rows with fewer than `k` left get -1."""
        position = np.full(int(max(self.index.max(initial=0), pool_rows.max(initial=0))) + 2, -1, np.int64)
        position[pool_rows] = np.arange(len(pool_rows))
        at = position[self.index[queries]]  # row -1 reads the last entry, which stays -1
        allowed = at >= 0
        for pair in exclude:
            own = pair.query[:, None]
            allowed &= ~((pair.pool[at] == own) & (own >= 0))
        order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
        enough = allowed.sum(1) >= k
        index = np.where(enough[:, None], np.take_along_axis(at, order, 1), -1)
        value = np.take_along_axis(np.asarray(self.value[queries], np.float32), order, 1)
        return References(index, np.where(enough[:, None], value, np.float32(-np.inf)))


@dataclass(frozen=True)
class RatedPool:
    """P rated photos. The feature arrays may be larger and memory-mapped: pool position i is their row `rows[i]`.

    `ids`, `pixels`, `groups` (texts, "" = none) of the P photos; `distributions` [P, S].
    """

    ids: tuple[str, ...]
    pixels: tuple[str, ...]
    groups: tuple[str, ...]
    distributions: FloatArray
    totals: FloatArray
    semantic: NDArray[Any]
    nodes: NDArray[Any]
    rows: IntArray
    near_duplicate: float | None = SAME_PHOTO  # likeness above which a pool photo is the query itself

    @staticmethod
    def of(table: Table, features: FeatureSet, rows: IntArray, group: str | None = None) -> RatedPool:
        """The photos of `rows`; each needs readable features and votes."""
        chosen = table.take(rows)
        chosen.check()
        if not features.readable[rows].all():
            raise UsageError("an unreadable photo cannot be in the pool")
        return RatedPool(
            ids=chosen.ids,
            pixels=tuple(features.pixels[row] for row in rows),
            groups=chosen.column(group) if group else ("",) * len(rows),
            distributions=chosen.distributions,
            totals=chosen.totals,
            semantic=features.semantic,
            nodes=features.nodes,
            rows=np.asarray(rows, np.int64),
            near_duplicate=same_photo_limit(features.semantic, np.asarray(rows, np.int64)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: IntArray) -> RatedPool:
        """A smaller pool, sharing the arrays."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in positions),
            pixels=tuple(self.pixels[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
            distributions=self.distributions[positions],
            totals=self.totals[positions],
            rows=self.rows[positions],
        )

    def nodes_at(self, positions: IntArray) -> NDArray[np.float32]:
        """Node features of pool positions, [n, D] float32."""
        return take_rows(self.nodes, self.rows[positions])

    def find(
        self,
        semantic: NDArray[Any],
        k: int,
        *,
        store: Store | None = None,
        queries: IntArray | None = None,
        ids: Sequence[str] | None = None,
        pixels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        similarity: Similarity = "cosine",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> References:
        """The `k` references of each query [Q, Ds]; what is the query itself, or of its group, is never among them.

        With a `store` and the `queries` as rows of its table, what it holds is used and only the rest is searched for.
        """
        exclude = [
            shared_codes(own, theirs)
            for own, theirs in ((ids, self.ids), (pixels, self.pixels), (groups, self.groups))
            if own is not None
        ]
        how: Any = {
            "similarity": similarity,
            "near_duplicate": self.near_duplicate,
            "device": device,
            "progress": progress,
        }
        if store is None or queries is None or not store.serves(self, similarity, k):
            return search(semantic, take_rows(self.semantic, self.rows), k, exclude=exclude, **how)
        found = store.select(queries, self.rows, exclude, k)
        open_ = np.flatnonzero(~found.found.all(1))
        if len(open_):
            some = [Exclusion(pair.query[open_], pair.pool) for pair in exclude]
            rest = search(semantic[open_], take_rows(self.semantic, self.rows), k, exclude=some, **how)
            found.index[open_], found.similarity[open_] = rest.index, rest.similarity
        return found


def shared_codes(query: Sequence[str], pool: Sequence[str]) -> Exclusion:
    """Texts of both sides as codes, equal where the texts are equal; "" is nobody (-1)."""
    number = {"": -1}
    codes = [np.array([number.setdefault(text, len(number)) for text in side], np.int64) for side in (query, pool)]
    return Exclusion(codes[0], codes[1])


def refuse_seen(table: Table, features: FeatureSet, rows: IntArray, seen: Sequence[tuple[str, str]], what: str) -> None:
    """Raise LeakError when a photo of `rows`, by id or pixels, is among `seen`: pairs of ("table:id", pixel digest)."""
    names = {name for name, _ in seen}
    pixels = {digest for _, digest in seen if digest}
    found = [
        table.ids[row] for row in rows if f"{table.name}:{table.ids[row]}" in names or features.pixels[row] in pixels
    ]
    if found:
        raise LeakError(
            f"{len(found)} of {len(rows)} test photos were seen in training by {what} (by id or by pixels); the first: "
            f"{', '.join(found[:5])}. Test on photos that no trained part has seen",
            found,
        )


def make_store(
    table: Table,
    features: FeatureSet,
    folder: Path,
    k: int,
    *,
    pool_rows: IntArray,
    group: str | None = None,
    similarity: Similarity = "cosine",
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Find the `k` nearest pool photos of every readable photo of `table` and write them to `folder`.

    `pool_rows`: who may be a reference (the training side). No photo finds itself, nor, with `group`, its own group.
    """
    rows = np.flatnonzero(features.readable)
    pool = RatedPool.of(table, features, pool_rows[features.readable[pool_rows]], group)
    taken = table.take(rows)
    found = pool.find(
        take_rows(features.semantic, rows),
        k,
        ids=taken.ids,
        pixels=[features.pixels[row] for row in rows],
        groups=taken.column(group) if group else None,
        similarity=similarity,
        device=device,
        progress=progress,
    )
    index = np.full((len(table), found.index.shape[1]), -1, np.int64)
    value = np.full(index.shape, -np.inf, np.float32)
    index[rows] = np.where(found.found, pool.rows[found.index], -1)
    value[rows] = found.similarity
    with new_folder(folder, "references", overwrite=overwrite) as building:
        write_array(building / "index.npy", index)
        write_array(building / "similarity.npy", value)
        write_array(building / "pool.npy", np.sort(pool.rows))
        manifest = Manifest(
            kind="references",
            format=FORMATS["references"],
            config={
                "k": k,
                "similarity": similarity,
                "exclude_group": group,
                "near_duplicate": pool.near_duplicate,
            },
            files={name: digest_file(building / name) for name in ("index.npy", "pool.npy", "similarity.npy")},
            inputs={"semantic": _semantic_digest(features)},
            counts={"photos": len(rows), "pool": len(pool), "short": int((~found.found).any(1).sum())},
        )
        write_manifest(building, manifest)
    return manifest


def find_store(data: Path, features: FeatureSet, pool_rows: IntArray, group: str | None) -> Store | None:
    """A finished store of `data` that was made from these features over a pool that holds `pool_rows`, or None."""
    folder = data / "references"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (path / "manifest.json").is_file():
            continue
        manifest = read_manifest(path, "references")
        config, fits = manifest.config, manifest.inputs["semantic"] == _semantic_digest(features)
        if not fits or config["exclude_group"] not in (None, group):
            continue
        verify_files(path, manifest)
        rows = read_array(path / "pool.npy")
        if np.isin(pool_rows[features.readable[pool_rows]], rows).all():
            index, value = (read_array(path / f"{name}.npy", mmap=True) for name in ("index", "similarity"))
            return Store(index, value, rows, config["similarity"], config["near_duplicate"])
    return None


def _semantic_digest(features: FeatureSet) -> str:
    part = features.config["semantic"]
    return digest_text(canonical_json([part["digest"], part["span"]]))
