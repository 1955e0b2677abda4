"""Approximate search for pools that are too large to be compared with as a whole, by faiss (extra `faiss`).

An index proposes candidates; their similarity is then computed as the exact search computes it, in float64 from the
rows on disk, ties to the lower pool position, with the same exclusions. So a similarity is never approximate; only who
was looked at is.

    flat      every pool photo is looked at. As many candidates are ranked as it takes to prove that no other can be
              among the k best: the same bits as the exact search.
    hnsw      a graph of neighbours over PCA-reduced vectors, in float16 or bytes
    ivf-pq    lists around centres, each photo a few bytes: the least memory

Where exclusions leave a photo fewer than k candidates, more are asked for, and in the end it is searched for exactly.

Reproducible: flat and ivf-pq for the same versions and number of threads; hnsw only when it was built by one thread,
because several insert in an order that differs from run to run. Searching an index that is built is reproducible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milnet.annotations import IntArray
from milnet.artifacts import atomic_path, read_array, read_json, write_array, write_json
from milnet.errors import ArtifactError, MissingExtraError, UsageError
from milnet.features import Progress, evenly, torch_threads
from milnet.references import (
    BLOCK,
    Exclusion,
    Prepared,
    References,
    Similarity,
    check_shapes,
    forget_pages,
    ranked,
    read_rows,
    rounding,
    search,
    similarities,
)

Kind = Literal["flat", "ivf-pq", "hnsw"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FEWEST = 1000  # photos below which ivf-pq has nothing to learn its codes from
_FLAT = 20_000  # photos up to which looking at all of them is quick
_REDUCED = 256  # numbers a photo has in an index at most
_PCA_ROWS = 65_536  # photos that the directions are learned from
_LINKS = 32  # neighbours of a photo in the graph
_BUILD_REACH = 80  # candidates for them while it is built
_ROWS = 8192  # rows added at once
_TOGETHER = 32  # queries whose candidates are read from disk together
_WIDER = 4  # times as many candidates where those were not enough
INDEX_FILES = ("index.json", "index.faiss", "index_labels.npy")


def import_faiss() -> Any:
    """faiss, or MissingExtraError that says how to get it."""
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "faiss", "an approximate index") from None
    return faiss


@contextmanager
def _threads(faiss: Any) -> Iterator[None]:
    """Run with as many threads as torch has, then set the number back."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True)
class Plan:
    """What an index is to be: everything that decides its content. Bytes are estimates."""

    kind: Kind
    form: str  # as faiss calls it: PCA256,HNSW32,SQfp16 (np: codes in no particular order, which is quick to learn)
    similarity: Similarity
    reach: int  # lists (ivf-pq) or candidates (hnsw) that a query looks at, at least; 0: all photos
    learned_from: int  # photos that its centres and codes are learned from
    bytes: int  # of the finished index in memory
    peak: int  # bytes while it is built

    def candidates(self, k: int) -> int:
        """How many are ranked for `k` references, before exclusions ask for more."""
        return {"flat": k + 16, "hnsw": 2 * k + 64, "ivf-pq": 8 * k + 192}[self.kind]

    @property
    def config(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"kind": self.kind, "form": self.form, "reach": self.reach, "exact": self.exact}

    @property
    def exact(self) -> bool:
        """Whether it finds what the exact search finds, to the bit."""
        return self.kind == "flat"


def forms(kind: Kind, photos: int, width: int, similarity: Similarity) -> list[Plan]:
    """What an index of a kind can be for so many photos of `width` numbers, the best first."""
    rough = min(_REDUCED, width // 4 * 4 if width >= 4 else width, max(photos, 1))  # no more directions than photos
    pca = "" if rough == width else f"PCA{rough},"
    learning = 0 if not pca else 4 * (min(photos, _PCA_ROWS) * (width + rough) + 2 * width * width)
    block = 4 * _ROWS * 3 * width

    def plan(form: str, reach: int, learned_from: int, numbers: float) -> Plan:
        sample = max(learning, 4 * learned_from * rough)
        return Plan(kind, form, similarity, reach, learned_from, int(numbers), int(numbers + sample + block))

    if kind == "flat":
        return [plan("Flat", 0, 0, 4.0 * photos * width), plan("SQfp16", 0, 0, 2.0 * photos * width)]
    matrix = 4 * width * (rough + width) if pca else 0  # faiss keeps all directions
    if kind == "hnsw":
        sample = min(photos, _PCA_ROWS)
        return [
            plan(f"{pca}HNSW{links},{code}", 64, sample, photos * (each * rough + 8.4 * links + 16) + matrix)
            for links, code, each in ((_LINKS, "SQfp16", 2), (_LINKS, "SQ8", 1), (_LINKS // 2, "SQ8", 1))
        ]
    lists = 1 << max(2, round(np.log2(4 * photos**0.5)))  # near 4 sqrt(P)
    found = []
    for each in (4, 8):  # numbers a byte stands for
        if rough % each == 0:
            codes = rough // each
            tables = lists * (4 * rough + 1024 * codes) + 1024 * rough
            found.append(
                plan(
                    f"{pca}IVF{lists},PQ{codes}np",
                    min(lists, max(32, lists // 16)),
                    min(photos, max(50 * lists, _PCA_ROWS)),
                    photos * (codes + 8) * 1.15 + tables + matrix,  # lists grow by more than they need
                )
            )
    return found or [plan(f"{pca}IVF{lists},PQ{rough}np", lists, photos, photos * (rough + 8))]


def choose(
    photos: int,
    width: int,
    *,
    kind: Kind | None = None,
    memory: int | None = None,
    similarity: Similarity = "cosine",
) -> Plan:
    """The best index of a `kind` whose building stays within `memory` bytes (None: no limit).

    Without a kind: flat up to 20,000 photos, else the first of hnsw and ivf-pq that fits. Raises UsageError that says
    what would be needed where none does.
    """
    if kind == "ivf-pq" and photos < FEWEST:
        raise UsageError(f"an index of kind ivf-pq needs at least {FEWEST:,} photos, got {photos:,}: choose flat")
    order: list[Kind] = ["flat"] if photos <= _FLAT else ["hnsw", "ivf-pq"]
    if kind is None and photos >= FEWEST and "ivf-pq" not in order:
        order += ["hnsw", "ivf-pq"]
    every = [plan for one in ([kind] if kind else order) for plan in forms(one, photos, width, similarity)]
    fitting = [plan for plan in every if memory is None or plan.peak <= memory]
    if not fitting:
        least = min(every, key=lambda plan: plan.peak)
        raise UsageError(
            f"--memory {_size(memory or 0)} is too little for an index of kind {kind or 'flat, hnsw or ivf-pq'} over "
            f"{photos:,} photos x {width:,}: the smallest ({least.form}) needs {_size(least.peak)} while it is built "
            f"and {_size(least.bytes)} afterwards" + ("" if kind in (None, "ivf-pq") else "; ivf-pq needs less")
        )
    return fitting[0]


def _size(count: float) -> str:
    return f"{count / 1e9:.2f}GB" if count >= 1e8 else f"{count / 1e6:.2f}MB"


def read_memory(text: str) -> int:
    """Bytes that --memory names: "4GB", "500MB", "2GiB", or a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UsageError(f"--memory {text}: expected a size, for example 4GB or 500MB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))


def read_index(text: str) -> tuple[bool, Kind | None]:
    """What --index names: whether faiss is wanted, and which kind (None: the one that fits)."""
    engine, colon, kind = text.partition(":")
    if text == "exact":
        return False, None
    if engine != "faiss" or (colon and kind not in KINDS):
        raise UsageError(f"--index {text}: expected exact, faiss, {', '.join(f'faiss:{one}' for one in KINDS)}")
    return True, kind if kind in KINDS else None


@dataclass(frozen=True)
class Index:
    """An index over a pool of P photos. `longest`: of their vectors (1 for cosine).

    `labels` [P] ascending: what faiss calls each pool position, where photos were removed from the middle; None where
    it is the position itself.
    """

    plan: Plan
    faiss: Any
    photos: int
    longest: float
    labels: IntArray | None = None

    def __len__(self) -> int:
        return self.photos

    def propose(self, q: NDArray[np.float32], n: int) -> tuple[IntArray, NDArray[np.float32]]:
        """The `n` pool positions that seem nearest to each query [B, D], -1 for none, and what they seem [B, n].

        What they seem: products (flat cosine), else squared distances.
        """
        faiss = import_faiss()
        n = min(n, self.photos)
        inner = faiss.downcast_index(self.faiss)
        settings: Any = None
        if self.plan.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(efSearch=max(n, self.plan.reach))
        elif self.plan.kind == "ivf-pq":
            lists = faiss.extract_index_ivf(self.faiss).nlist
            share = max(1.0, n / self.plan.candidates(4))  # who asks for more must look into more lists
            settings = faiss.SearchParametersIVF(nprobe=min(lists, int(self.plan.reach * share)))
        if settings is not None and isinstance(inner, faiss.IndexPreTransform):
            settings = faiss.SearchParametersPreTransform(index_params=settings)
        with _threads(faiss):
            seems, labels = self.faiss.search(np.ascontiguousarray(q), n, params=settings)
        if self.labels is not None:
            labels = np.where(labels >= 0, np.searchsorted(self.labels, labels), -1)
        return labels.astype(np.int64), seems

    def added(self, rows: NDArray[np.float32]) -> Index:
        """The index with more photos behind the others, [n, D] as they are searched. Nothing is learned anew."""
        faiss = import_faiss()
        larger, count = faiss.clone_index(self.faiss), len(rows)
        labels = self.labels
        with _threads(faiss):
            if labels is None:
                larger.add(np.ascontiguousarray(rows))
            else:
                new = np.arange(count, dtype=np.int64) + (int(labels[-1]) + 1 if len(labels) else 0)
                larger.add_with_ids(np.ascontiguousarray(rows), new)
                labels = np.concatenate([labels, new])
        longest = max(self.longest, float(np.linalg.norm(rows, axis=1).max(initial=0)))
        return replace(self, faiss=larger, photos=self.photos + count, longest=longest, labels=labels)

    def without(self, positions: IntArray) -> Index | None:
        """The index without these pool positions; None where its kind cannot forget and it must be built anew."""
        if self.plan.kind == "hnsw":
            return None
        faiss = import_faiss()
        smaller = faiss.clone_index(self.faiss)
        labels = np.arange(self.photos) if self.labels is None else self.labels
        smaller.remove_ids(np.ascontiguousarray(labels[positions]))
        left = None if self.plan.kind == "flat" else np.delete(labels, positions)  # flat ones close the gaps
        return replace(self, faiss=smaller, photos=self.photos - len(positions), labels=left)

    def save(self, folder: Path) -> None:
        """Write index.faiss and index.json, and where photos were removed index_labels.npy, into `folder`."""
        faiss = import_faiss()
        with atomic_path(folder / "index.faiss") as temporary:
            faiss.write_index(self.faiss, str(temporary))
        if self.labels is not None:
            write_array(folder / "index_labels.npy", self.labels)
        write_json(
            folder / "index.json", {"plan": asdict(self.plan), "photos": self.photos, "longest": self.longest}
        )  # last: it makes the index complete

    @staticmethod
    def load(folder: Path) -> Index:
        """What `save` wrote; ArtifactError where it is damaged."""
        faiss = import_faiss()
        try:
            about = read_json(folder / "index.json")
            found = faiss.read_index(str(folder / "index.faiss"))
            names = folder / "index_labels.npy"
            index = Index(
                Plan(**about["plan"]),
                found,
                int(about["photos"]),
                float(about["longest"]),
                read_array(names) if names.exists() else None,
            )
            if found.ntotal != len(index):
                raise ValueError(f"{found.ntotal} photos instead of {len(index)}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"the index in {folder} does not hold together ({error}): make it again") from error
        return index


def build_index(
    array: NDArray[Any], rows: IntArray, plan: Plan, *, seed: int = 0, progress: Progress | None = None
) -> Index:
    """An index over the rows [P] of an array, which is read block by block and never held as a whole (but for flat)."""
    faiss = import_faiss()
    width, count = array.shape[1], len(rows)
    space = faiss.METRIC_INNER_PRODUCT if plan.exact and plan.similarity == "cosine" else faiss.METRIC_L2
    *before, first = plan.form.split(",", 1) if plan.form.startswith("PCA") else [plan.form]
    rough = int(before[0][3:]) if before else width

    def read(some: IntArray) -> NDArray[np.float32]:
        with torch_threads(1):
            found: NDArray[np.float32] = read_rows(array, some, plan.similarity).numpy()
        return found

    with _threads(faiss):
        index = faiss.index_factory(rough, first, space)
        _seed(faiss, index, seed)
        reduce = None
        if before:
            reduce = faiss.PCAMatrix(width, rough)
            reduce.train(read(rows[evenly(count, _PCA_ROWS)]))
            forget_pages(array)
        if plan.learned_from:
            chosen = rows[evenly(count, plan.learned_from)]
            sample = np.empty((len(chosen), rough), np.float32)
            for start in range(0, len(chosen), _ROWS):
                part = read(chosen[start : start + _ROWS])
                sample[start : start + len(part)] = part if reduce is None else reduce.apply(part)
                forget_pages(array)
            index.train(sample)
            del sample
        elif not index.is_trained:
            index.train(read(rows[:1]))  # float16: nothing is learned
        whole = index if reduce is None else faiss.IndexPreTransform(reduce, index)
        longest = 1.0 if plan.similarity == "cosine" else 0.0
        for start in range(0, count, _ROWS):
            part = read(rows[start : start + _ROWS])
            if plan.similarity == "l2":
                longest = max(longest, float(np.linalg.norm(part, axis=1).max()))
            whole.add(part)
            forget_pages(array)
            if progress is not None:
                progress(min(start + _ROWS, count), count, "photos indexed")
    return Index(plan, whole, count, longest)


def _seed(faiss: Any, index: Any, seed: int) -> None:
    """Everything random in an index comes from `seed`; few photos a centre are no reason for a warning."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIVFPQ):
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed + 1234
            clustering.min_points_per_centroid = 1
            clustering.niter = 10
        index.pq.cp.max_points_per_centroid = 64  # for each of 256; more took minutes and found no more neighbours
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.rng = faiss.RandomGenerator(seed + 12345)
        index.hnsw.efConstruction = _BUILD_REACH


def index_blocks(
    queries: NDArray[Any],
    pool: NDArray[Any],
    index: Index,
    k: int,
    *,
    query_rows: IntArray | None = None,
    pool_rows: IntArray | None = None,
    exclude: Sequence[Exclusion] = (),
    near_duplicate: float | None = None,
    block: int = BLOCK,
) -> Iterator[tuple[IntArray, References]]:
    """`references.search_blocks` with candidates from an index over `pool_rows`, always on the CPU.

    Raises UsageError where the index is not of so many photos.
    """
    check_shapes(queries, pool, k, block)
    wanted = np.arange(len(queries)) if query_rows is None else np.asarray(query_rows, np.int64)
    chosen = np.arange(len(pool)) if pool_rows is None else np.asarray(pool_rows, np.int64)
    if len(index) != len(chosen):
        raise UsageError(f"expected an index over the {len(chosen):,} photos of this pool, got one over {len(index):,}")
    order = np.argsort(wanted, kind="stable")
    for start in range(0, len(order), block):
        places = order[start : start + block]
        finder = _Finder(index, pool, chosen, k, near_duplicate if index.plan.similarity == "cosine" else None)
        with torch_threads(1):
            q = read_rows(queries, wanted[places], index.plan.similarity)
        own = [Exclusion(pair.query[places], pair.pool) for pair in exclude]
        found, open_ = finder.find(q, own)
        if len(open_):  # the exact search, for the few that no number of candidates was enough for
            rest = search(
                queries,
                pool,
                k,
                query_rows=wanted[places[open_]],
                pool_rows=chosen,
                exclude=[Exclusion(pair.query[open_], pair.pool) for pair in own],
                similarity=index.plan.similarity,
                near_duplicate=near_duplicate,
                memory=0,
            )
            found.index[open_], found.similarity[open_] = rest.index, rest.similarity
        forget_pages(pool)
        yield places, found


@dataclass(frozen=True)
class _Finder:
    """The references of one block of queries, from candidates that an index proposes."""

    index: Index
    pool: NDArray[Any]
    chosen: IntArray
    k: int
    limit: float | None  # cosine above which two photos are the same one

    def find(self, q: Tensor, exclude: Sequence[Exclusion]) -> tuple[References, IntArray]:
        """References of the queries [B, D], and the places of those that must be searched for exactly."""
        index = np.full((len(q), self.k), -1, np.int64)
        best = np.full(index.shape, -np.inf, np.float32)
        todo, n = np.arange(len(q)), self.index.plan.candidates(self.k)
        most = len(self.chosen) if self.index.plan.exact else len(self.chosen) // 4
        while len(todo):
            positions, seems = self.index.propose(q[torch.from_numpy(todo)].numpy(), n)
            enough = np.zeros(len(todo), np.bool_)
            for start in range(0, len(todo), _TOGETHER):
                part = slice(start, start + _TOGETHER)
                some = todo[part]
                own = [Exclusion(pair.query[some], pair.pool) for pair in exclude]
                with torch_threads(1):
                    found = self._ranked(q[torch.from_numpy(some)], positions[part], own)
                index[some], best[some] = found.index, found.similarity
                enough[part] = self._enough(q[torch.from_numpy(some)], found, seems[part], n)
            todo = todo[~enough]
            if n >= most:
                break
            n = min(n * _WIDER, max(most, 1))
        return References(index, best), todo

    def _ranked(self, q: Tensor, positions: IntArray, exclude: Sequence[Exclusion]) -> References:
        """The k best of candidates [B, n] that each query may have."""
        known, local = np.unique(positions, return_inverse=True)
        local = local.reshape(positions.shape)
        if known[0] < 0:  # what stands for none must be some row
            known, local = known[1:], (local - 1).clip(0)
        if not len(known):
            nobody = np.full((len(q), self.k), -1, np.int64)
            return References(nobody, np.full(nobody.shape, -np.inf, np.float32))
        similarity = self.index.plan.similarity
        near = Prepared.of(self.pool, self.chosen[known], similarity)
        candidates = torch.from_numpy(local)
        scores = similarities(q, near, candidates)
        allowed = positions >= 0
        for pair in exclude:
            allowed &= ~pair.meet(slice(None), positions)
        mask = torch.from_numpy(allowed)
        if self.limit is not None:
            mask &= scores <= self.limit
        found = ranked(torch.where(mask, scores.float(), -torch.inf), candidates, self.k)
        return References(np.where(found.found, known[found.index], -1), found.similarity)

    def _enough(self, q: Tensor, found: References, seems: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
        """Whether the k places [B] are filled; of a flat index, whether no other photo can belong there."""
        filled: NDArray[np.bool_] = np.asarray(found.found.all(1), np.bool_)
        if not self.index.plan.exact or n >= len(self.chosen):
            return filled
        lengths, longest = q.norm(dim=1).double().numpy(), self.index.longest
        error = 4 * rounding(q, longest).double().numpy()
        last, kth = seems[:, -1].astype(np.float64), found.similarity[:, -1].astype(np.float64)
        if self.index.plan.form == "SQfp16":  # half a unit in the 11th digit of each number
            error += (
                2.0**-11 * lengths * longest if self.index.plan.similarity == "cosine" else
                2.0**-11 * (lengths + longest) ** 2
            ) + 2.0**-24 * q.shape[1] ** 0.5 * (lengths + longest)  # fmt: skip
        if self.index.plan.similarity == "cosine":
            return filled & np.asarray(kth > last + error, np.bool_)
        nearest: NDArray[np.float64] = -(np.where(filled, kth, 0.0) ** 2) / 2
        return filled & np.asarray(nearest > error - last / 2, np.bool_)
