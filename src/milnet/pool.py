"""Rated photos one may consult, and who is a reference of whom.

No photo is its own reference: pool photos of the same id, the same pixels, or a semantic cosine above .97 are left out,
at scoring too. Photos of the same group are left out when groups act.

A pool of millions may carry an index (index.py), which proposes candidates; without one it is searched exactly. What a
search for a few photos needs of the pool is kept from one call to the next, where it is not too large.

While it is made, a store lives in a hidden folder beside its place, with a mark for each finished row; killed at any
moment, the next run goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import (
    FORMATS,
    Manifest,
    canonical_json,
    digest_array,
    digest_file,
    digest_text,
    read_array,
    read_lines,
    read_manifest,
    verify_files,
    write_array,
    write_manifest,
    write_text,
)
from milnet.errors import ArtifactError, LeakError, UsageError
from milnet.features import FeatureSet, Progress, evenly, stored_rows, take_rows, torch_threads
from milnet.index import INDEX_FILES, Index, Plan, build_index, index_blocks
from milnet.model.common import Pool
from milnet.references import (
    BLOCK,
    SAME_PHOTO,
    Exclusion,
    Prepared,
    References,
    Similarity,
    held_bytes,
    read_rows,
    same_photo_limit,
    search,
    search_blocks,
)

_RANKED = 20_000  # pool photos up to which all of them are sorted without a search
HELD = 4 << 30  # bytes of float32 up to which a pool stays in memory between searches for a few photos
_SELECTED = 4096  # rows of a store that are looked through at once
_MEAN = 4096  # photos whose mean is the mean photo


@dataclass(frozen=True)
class Store:
    """`DATA/references/NAME/`: for every row of a table its nearest rows in the pool, found once.

    `index` [N, k] rows of DATA (-1: none), `value` [N, k] their similarity, both nearest first. `rows`: the pool that
    was searched; a smaller pool finds its references in here exactly, another one does not. A list that others
    published (`similarity` is "published") counts as what it says, whatever we would find; so does one that an index
    found (`approximate`), which is why it is only used where it is named.
    """

    index: NDArray[Any]
    value: NDArray[Any]
    rows: IntArray
    similarity: Similarity | Literal["published"]
    near_duplicate: float | None
    approximate: bool = False

    def serves(self, pool: RatedPool, similarity: Similarity, k: int) -> bool:
        """Whether this store holds what a search for `k` references in `pool` would find, or is to be used instead."""
        if self.similarity == "published":
            return bool(k <= self.index.shape[1])
        alike = self.similarity == similarity and (similarity == "l2" or self.near_duplicate == pool.near_duplicate)
        return bool(alike and k <= self.index.shape[1] and np.isin(pool.stored_as, self.rows).all())

    def select(self, queries: IntArray, pool_rows: IntArray, exclude: Sequence[Exclusion], k: int) -> References:
        """The first `k` that lie in a smaller pool and are not excluded; rows with fewer than `k` left get -1."""
        position = np.full(int(max(self.rows.max(initial=0), pool_rows.max(initial=0))) + 2, -1, np.int64)
        position[pool_rows] = np.arange(len(pool_rows))
        index = np.full((len(queries), k), -1, np.int64)
        value = np.full(index.shape, -np.inf, np.float32)
        for start in range(0, len(queries), _SELECTED):
            part = slice(start, start + _SELECTED)
            at = position[stored_rows(self.index, queries[part])]  # row -1 reads the last entry, which stays -1
            allowed = at >= 0
            for pair in exclude:
                allowed &= ~pair.meet(part, at)
            order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
            enough = (allowed.sum(1) >= k)[:, None]
            stored = np.asarray(stored_rows(self.value, queries[part]), np.float32)
            index[part] = np.where(enough, np.take_along_axis(at, order, 1), -1)
            value[part] = np.where(enough, np.take_along_axis(stored, order, 1), np.float32(-np.inf))
        return References(index, value)


@dataclass(frozen=True)
class RatedPool:
    """P rated photos. The feature arrays may be larger and memory-mapped: pool position i is their row `rows[i]`.

    `ids`, `pixels`, `groups` (texts, "" = none) of the P photos; `distributions` [P, S]. `alone` [P, S]: what a
    one-photo network that has not seen a photo predicts of it (`votes`, once calibrated; NaN where unknown). `index`
    over these P photos proposes references for searches of its similarity; None: all are compared.
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
    table_rows: IntArray | None = None  # rows of DATA that a store of references means; None: `rows`
    alone: FloatArray | None = None
    index: Index | None = None

    @property
    def stored_as(self) -> IntArray:
        """How a store of references names the P photos."""
        return self.rows if self.table_rows is None else self.table_rows

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
            table_rows=None if self.table_rows is None else self.table_rows[positions],
            alone=None if self.alone is None else self.alone[positions],
            index=None,  # that of the larger pool would propose others
        )

    def judged(self, positions: IntArray) -> tuple[Tensor, Tensor]:
        """Distributions [n, S] and numbers of votes [n] of pool positions, for a network."""
        found = (self.distributions[positions], self.totals[positions])
        return torch.from_numpy(found[0].astype(np.float32)), torch.from_numpy(found[1].astype(np.float32))

    @cached_property
    def tensors(self) -> Pool:
        """The whole pool for a network, made once."""
        return Pool(torch.from_numpy(stored_rows(self.nodes, self.rows)), *self.judged(np.arange(len(self))))

    @cached_property
    def mean_distribution(self) -> FloatArray:
        """The mean of all distributions [S]."""
        return np.asarray(self.distributions.mean(0))

    @cached_property
    def mean_nodes(self) -> NDArray[np.float32]:
        """The mean node features [D] of (at most 4,096, evenly taken) pool photos."""
        some = np.sort(self.rows)[evenly(len(self), _MEAN)]
        return np.asarray(stored_rows(self.nodes, some).astype(np.float64).mean(0), np.float32)

    def nodes_at(self, positions: IntArray) -> NDArray[np.float32]:
        """Node features of pool positions, [n, D] float32."""
        return take_rows(self.nodes, self.rows[positions])

    def find(
        self,
        semantic: NDArray[Any],
        k: int,
        *,
        rows: IntArray | None = None,
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

        The queries are the rows `rows` [Q] of `semantic`, which may be large and memory-mapped and is read block by
        block; without `rows`, all of it. `ids`, `pixels`, `groups` [Q] belong to the queries. With a `store` and the
        `queries` [Q] as rows of its table, what it holds is used and only the rest is searched for.
        """
        wanted = np.arange(len(semantic)) if rows is None else np.asarray(rows, np.int64)
        if not k:
            return References(np.empty((len(wanted), 0), np.int64), np.empty((len(wanted), 0), np.float32))
        exclude = self._exclusions(ids, pixels, groups)
        if k >= len(self) and similarity == "cosine" and len(self) <= _RANKED:
            return self._ranked(semantic, wanted, exclude, k)
        how: Any = {"similarity": similarity, "device": device, "progress": progress}
        if store is None or queries is None or not store.serves(self, similarity, k):
            return self._search(semantic, k, wanted, exclude, **how)
        found = store.select(queries, self.stored_as, exclude, k)
        open_ = np.flatnonzero(~found.found.all(1))
        if len(open_):
            some = [Exclusion(pair.query[open_], pair.pool) for pair in exclude]
            rest = self._search(semantic, k, wanted[open_], some, **how)
            found.index[open_], found.similarity[open_] = rest.index, rest.similarity
        return found

    def _search(
        self,
        semantic: NDArray[Any],
        k: int,
        rows: IntArray,
        exclude: Sequence[Exclusion],
        *,
        similarity: Similarity,
        device: str,
        progress: Progress | None,
    ) -> References:
        """By the index where there is one. A few photos search the pool that the last call has read."""
        index = np.full((len(rows), k), -1, np.int64)
        best = np.full(index.shape, -np.inf, np.float32)
        how: Any = {"pool_rows": self.rows, "near_duplicate": self.near_duplicate, "exclude": exclude}
        if self.index is not None and self.index.plan.similarity == similarity:
            done = 0
            for places, found in index_blocks(semantic, self.semantic, self.index, k, query_rows=rows, **how):
                index[places], best[places] = found.index, found.similarity
                done += len(places)
                if progress is not None:
                    progress(done, len(rows), "searches")
            return References(index, best)
        how |= {"similarity": similarity, "device": device, "progress": progress}
        if len(rows) <= BLOCK:
            if self.stays:
                how["prepared"] = self._held(similarity, device)
            how["memory"] = HELD
        return search(semantic, self.semantic, k, query_rows=rows, **how)

    @property
    def stays(self) -> bool:
        """Whether an exact search for a few photos keeps the pool in memory for the next; else it reads it again."""
        return held_bytes(len(self), self.semantic.shape[1]) <= HELD

    def _held(self, similarity: Similarity, device: str) -> Prepared:
        key = (similarity, device)
        if key not in self._prepared:
            with torch_threads(1):
                self._prepared[key] = Prepared.of(self.semantic, self.rows, similarity, device)
        return self._prepared[key]

    @cached_property
    def _prepared(self) -> dict[tuple[Similarity, str], Prepared]:
        return {}

    def _ranked(self, semantic: NDArray[Any], rows: IntArray, exclude: Sequence[Exclusion], k: int) -> References:
        """All of a small pool by similarity, as `search` would rank it: nothing has to be looked for, only sorted."""
        index = np.full((len(rows), k), -1, np.int64)
        best = np.full(index.shape, -np.inf, np.float32)
        everyone = np.arange(len(self))[None]
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            found = (read_rows(semantic, rows[part], "cosine").double() @ self._units.T).numpy()
            allowed = np.ones(found.shape, np.bool_) if self.near_duplicate is None else found <= self.near_duplicate
            for pair in exclude:
                allowed &= ~pair.meet(part, everyone)
            values = np.where(allowed, found, -np.inf).astype(np.float32)
            order = np.argsort(-values, axis=1, kind="stable")
            sorted_ = np.take_along_axis(values, order, 1)
            index[part, : len(self)] = np.where(sorted_ > -np.inf, order, -1)
            best[part, : len(self)] = sorted_
        return References(index, best)

    @cached_property
    def _units(self) -> Tensor:
        """Semantic features [P, Ds] of length 1, as a search has them, float64."""
        return read_rows(self.semantic, self.rows, "cosine").double()

    def find_blocks(
        self,
        semantic: NDArray[Any],
        k: int,
        *,
        rows: IntArray,
        ids: Sequence[str] | None = None,
        pixels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        similarity: Similarity = "cosine",
        device: str = "cpu",
        block: int = BLOCK,
        memory: int | None = None,
    ) -> Iterator[tuple[IntArray, References]]:
        """The same, block by block: positions among `rows` and their references. `memory`: as for a search."""
        how: Any = {
            "query_rows": rows,
            "pool_rows": self.rows,
            "exclude": self._exclusions(ids, pixels, groups),
            "near_duplicate": self.near_duplicate,
            "block": block,
        }
        if self.index is not None and self.index.plan.similarity == similarity:
            yield from index_blocks(semantic, self.semantic, self.index, k, **how)
        else:
            how |= {"similarity": similarity, "device": device, "memory": memory}
            yield from search_blocks(semantic, self.semantic, k, **how)

    def _exclusions(
        self, ids: Sequence[str] | None, pixels: Sequence[str] | None, groups: Sequence[str] | None
    ) -> list[Exclusion]:
        sides = (("ids", ids), ("pixels", pixels), ("groups", groups))
        return [self._codes(name).shared(own) for name, own in sides if own is not None]

    def _codes(self, name: str) -> Codes:
        if name not in self._coded:
            self._coded[name] = Codes(getattr(self, name))
        return self._coded[name]

    @cached_property
    def _coded(self) -> dict[str, Codes]:
        return {}


class Codes:
    """Texts of a pool as numbers, equal where the texts are equal; "" is nobody (-1). Made once: pools are large."""

    def __init__(self, pool: Sequence[str]) -> None:
        self._number = {"": -1}
        self.pool = np.array([self._number.setdefault(text, len(self._number)) for text in pool], np.int64)

    def shared(self, query: Sequence[str]) -> Exclusion:
        """Who has the same text as whom."""
        unknown = len(self._number)
        return Exclusion(np.array([self._number.get(text, unknown) for text in query], np.int64), self.pool)


def refuse_seen(
    table: Table, features: FeatureSet | None, rows: IntArray, seen: Sequence[tuple[str, str]], what: str
) -> None:
    """Raise LeakError when a photo of `rows`, by id or pixels, is among `seen`: pairs of ("table:id", pixel digest).

    Before there are features the ids alone are compared.
    """
    names = {name for name, _ in seen}
    pixels = {digest for _, digest in seen if digest}
    how = "by id" if features is None else "by id or by pixels"
    space = table.id_space  # EVA's ids are AVA's: a photo of the one is known to a model of the other
    found = [
        table.ids[row]
        for row in rows
        if f"{space}:{table.ids[row]}" in names or (features is not None and features.pixels[row] in pixels)
    ]
    if found:
        raise LeakError(
            f"{len(found)} of {len(rows)} test photos were seen in training by {what} ({how}); the first: "
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
    block: int = BLOCK,
    save_seconds: float = 5.0,
    plan: Plan | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> Manifest:
    """Find the `k` nearest pool photos of every readable photo of `table` and write them to `folder`.

    `pool_rows`: who may be a reference (the training side). No photo finds itself, nor, with `group`, its own group.
    Goes on where a killed run stopped: `block` photos are searched for at once, and finished blocks are saved every
    `save_seconds`. With a `plan` an index is built first (from `seed`) and proposes them; a killed run finds it built.
    `memory`: bytes that an exact search may hold of the pool. Raises ArtifactError when `folder` is complete already
    (unless `overwrite`), is no store, or when an unfinished run had other photos, features or options.
    """
    replaceable(folder, overwrite=overwrite)
    rows = np.flatnonzero(features.readable)
    pool = RatedPool.of(table, features, pool_rows[features.readable[pool_rows]], group)
    groups = table.column(group) if group else None
    config: dict[str, Any] = {
        "k": k, "similarity": similarity, "exclude_group": group, "near_duplicate": pool.near_duplicate,
    }  # fmt: skip
    if plan is not None:
        config["index"] = {**plan.config, "seed": seed}
    inputs = {"semantic": _semantic_digest(features)}
    photos = [list(table.ids), list(features.pixels), None if groups is None else list(groups)]
    identity = {
        **config,
        **inputs,
        "photos": digest_text(canonical_json([*photos, digest_array(features.readable)])),
        "pool": digest_array(pool.rows),
    }
    unfinished = _Unfinished(folder.parent / f".{folder.name}.part", len(table), k, identity)
    todo = rows[~unfinished.done[rows]]
    if plan is not None:
        pool = replace(pool, index=unfinished.index_of(pool, plan, seed, progress))
    if progress is not None:
        progress(len(rows) - len(todo), len(rows), "searches")
    blocks = pool.find_blocks(
        features.semantic,
        k,
        rows=todo,
        ids=[table.ids[row] for row in todo],
        pixels=[features.pixels[row] for row in todo],
        groups=None if groups is None else [groups[row] for row in todo],
        similarity=similarity,
        device=device,
        block=block,
        memory=memory,
    )
    finished, saved = len(rows) - len(todo), time.monotonic()
    try:
        for places, found in blocks:
            unfinished.put(todo[places], np.where(found.found, pool.rows[found.index], -1), found.similarity)
            finished += len(places)
            if time.monotonic() - saved > save_seconds:
                unfinished.save()
                saved = time.monotonic()
            if progress is not None:
                progress(finished, len(rows), "searches")
    finally:
        unfinished.save()  # whatever stopped it, finished blocks are not searched for again
    counts = {"photos": len(rows), "pool": len(pool), "short": int((unfinished.index[rows, k - 1] < 0).sum())}
    return unfinished.finish(folder, config, inputs, np.sort(pool.rows), counts)


def replaceable(folder: Path, *, overwrite: bool) -> None:
    """Raise ArtifactError unless a store may be written here: there is nothing, or a store and `overwrite`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ArtifactError(f"{folder} exists already: choose another name, or pass --overwrite to replace it")
    read_manifest(folder, "references")  # what a user keeps there is never removed


class _Unfinished:
    """Arrays of a store under way. A row counts as done only after its numbers have been flushed to disk."""

    def __init__(self, part: Path, n: int, k: int, identity: Mapping[str, Any]) -> None:
        self.part = part
        self.unsaved: list[IntArray] = []
        names = part / "identity.json"
        identity = json.loads(canonical_json(identity))
        old = json.loads(names.read_text(encoding="utf-8")) if names.exists() else None
        if old is not None and old != identity:
            differ = [name for name in sorted(old.keys() | identity.keys()) if old.get(name) != identity.get(name)]
            told = ", ".join(f"{name}: {str(old.get(name))[:12]} -> {str(identity.get(name))[:12]}" for name in differ)
            raise ArtifactError(
                f"{part} holds an unfinished search with other options or photos: run it with the same ones ({told}), "
                f"or remove that folder"
            )
        fresh = old is None
        part.mkdir(parents=True, exist_ok=True)
        mode: Literal["w+", "r+"] = "w+" if fresh else "r+"
        open_memmap = np.lib.format.open_memmap
        self.index = open_memmap(part / "index.npy", mode, np.int64, (n, k) if fresh else None)
        self.value = open_memmap(part / "similarity.npy", mode, np.float32, (n, k) if fresh else None)
        self.marks = open_memmap(part / "done.npy", mode, np.uint8, (n,) if fresh else None)
        if fresh:
            self.index[:] = -1
            self.value[:] = -np.inf
            self.save()
            write_text(names, canonical_json(identity))  # last: without it the three arrays are made anew

    def index_of(self, pool: RatedPool, plan: Plan, seed: int, progress: Progress | None) -> Index:
        """The index over the pool: as an earlier run has built it, else built now."""
        if (self.part / "index.json").exists():
            return Index.load(self.part)
        index = build_index(pool.semantic, pool.rows, plan, seed=seed, progress=progress)
        index.save(self.part)
        return index

    @property
    def done(self) -> NDArray[np.bool_]:
        return np.asarray(self.marks, dtype=np.bool_)

    def put(self, rows: IntArray, index: IntArray, value: NDArray[np.float32]) -> None:
        self.index[rows], self.value[rows] = index, value
        self.unsaved.append(rows)

    def save(self) -> None:
        self.index.flush()
        self.value.flush()
        for rows in self.unsaved:
            self.marks[rows] = 1
        self.marks.flush()
        self.unsaved = []

    def finish(
        self,
        folder: Path,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        pool_rows: IntArray,
        counts: Mapping[str, int],
    ) -> Manifest:
        for left in self.part.glob(".*.tmp"):  # of a run that was killed while it wrote a file
            left.unlink()
        write_array(self.part / "pool.npy", pool_rows)
        manifest = Manifest(
            kind="references",
            format=FORMATS["references"],
            config=config,
            files={name: digest_file(self.part / name) for name in ("index.npy", "pool.npy", "similarity.npy")},
            inputs=inputs,
            counts=counts,
        )
        write_manifest(self.part, manifest)
        # Renamed first: killed while it is removed, half an old store would stand in the place of the new one.
        old = folder.parent / f".{folder.name}.old"
        if folder.exists():
            if old.exists():
                shutil.rmtree(old)
            folder.replace(old)
        self.part.replace(folder)
        if old.exists():
            shutil.rmtree(old)
        # Only now: had these gone earlier, a kill in between would have lost the work.
        for name in ("identity.json", "done.npy", *INDEX_FILES):
            (folder / name).unlink(missing_ok=True)
        return manifest


def ids_digest(ids: Sequence[str]) -> str:
    """Identity of the rows of a DATA folder, whatever their votes and files: what a published list belongs to."""
    return digest_text(canonical_json(list(ids)))


def find_store(
    data: Path, features: FeatureSet, pool_rows: IntArray, group: str | None, name: str | None = None
) -> Store | None:
    """A finished store of `data` that was made from these features over a pool that holds `pool_rows`, or None.

    With `name` that store and no other: UsageError where it does not exist (lists the names) or does not fit. A list
    that others published is only used by its name, with any features; ArtifactError when it is of other photos. One
    that an index found is only used by its name, too: it may lack what a search would find.
    """
    folder = data / "references"
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    finished = [path for path in paths if not path.name.startswith(".") and (path / "manifest.json").is_file()]
    chosen = [path for path in finished if name in (None, path.name)]
    if name is not None and not chosen:
        names = ", ".join(path.name for path in finished) or "none: run `milnet references` first"
        raise UsageError(f"{data} has no references {name!r}; there are: {names}")
    readable = pool_rows[features.readable[pool_rows]]
    for path in chosen:
        manifest = read_manifest(path, "references")
        config = manifest.config
        published = config["similarity"] == "published"
        unfit = ""
        approximate = not config.get("index", {"exact": True})["exact"]
        if (published or approximate) and name is None:
            continue
        if not published and manifest.inputs["semantic"] != _semantic_digest(features):
            unfit = (
                f"was made from other features: expected {_semantic_digest(features)[:12]}..., "
                f"got {manifest.inputs['semantic'][:12]}..."
            )
        elif config["exclude_group"] not in (None, group):
            unfit = f"leaves out photos of the same {config['exclude_group']}, expected {group or 'no group'}"
        if not unfit:
            verify_files(path, manifest)
            rows = read_array(path / "pool.npy")
            index, value = (read_array(path / f"{part}.npy", mmap=True) for part in ("index", "similarity"))
            if published and manifest.inputs["ids"] != ids_digest(read_lines(data / "ids.txt")):
                raise ArtifactError(f"{path} was made for other photos than those of {data}: make it again")
            if published or np.isin(readable, rows).all():
                return Store(index, value, rows, config["similarity"], config["near_duplicate"], approximate)
            unfit = f"lacks {int((~np.isin(readable, rows)).sum()):,} of the {len(readable):,} photos of this pool"
        if name is not None:
            raise UsageError(f"{path} {unfit}: choose another one, or make it again")
    return None


def _semantic_digest(features: FeatureSet) -> str:
    part = features.config["semantic"]
    return digest_text(canonical_json([part["digest"], part["span"]]))
