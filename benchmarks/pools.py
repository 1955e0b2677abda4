"""Large pools: exact search and three indexes, and what a compact pool costs and saves.

    python benchmarks/pools.py search --sizes 1000,10000,100000,500000,2000000 --folder DIR -o pools.json
    python benchmarks/pools.py call --size 200000 --folder DIR
    python benchmarks/pools.py compact -o compact.json

`search`: a seeded synthetic pool (float16, written block by block into DIR) of each size; each way in a process of its
own: seconds to build, memory that is not a mapped file while it is built (beside the plan's estimate) and the peak of
all, bytes, queries a second in a batch and one by one, photos judged a second (references, an untrained `published`
network beside them, the parts of the score: what `score` does behind the backbone, 16 photos at once), recall at 4 and
64 against the exact search, and how much a planted score (softmax(10 cosine) over the votes of 4 and of 64 references)
moves, in deviations of that score. hnsw is built up to --hnsw-most photos; beyond, its row is the power law through
those sizes, and says so. Exponents of time against pool size and against K follow.
`call`: one photo against a pool of this size, as a scorer asks: the first call and later ones, beside a search that
reads the pool at each call.
`compact`: the shipped pool in theme folds: bytes a pool photo and held-out scores before and after `milnet pool
compact`, the difference of SRCC with its 95 % interval by theme; and with references from an index.

Synthetic photos: what all have in common, 5,000 centres of heavy-tailed sizes, numbers whose deviations fall like those
of real features, and noise of 16 directions around each. `search` prints how alike neighbours are beside the shipped
features.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from growth import make
from milnet.annotations import load_table
from milnet.artifacts import write_json
from milnet.compact import compact
from milnet.evaluation import find_same_photos, predict_rows
from milnet.explanation import explain
from milnet.features import load_feature_set
from milnet.index import KINDS, Index, build_index, choose, index_blocks
from milnet.metrics import Task, paired_difference, srcc
from milnet.places import find_data
from milnet.pool import HELD, RatedPool
from milnet.recipe import load_recipe
from milnet.recipes import Model, fit
from milnet.references import Prepared, References, read_rows, search
from milnet.splits import Split, without_twins
from timing import machine

WIDTH, CENTRES, INTRINSIC, BLOCK = 1280, 5000, 16, 8192
K = 64
WAYS = ("exact", *KINDS)
Rows = NDArray[Any]


def spectrum() -> NDArray[np.float32]:
    """Deviations [WIDTH] of the numbers of a photo."""
    return ((1 + np.arange(WIDTH) / 10) ** -0.6).astype(np.float32)


def photos(count: int, seed: int) -> Callable[[int], NDArray[np.float16]]:
    """Block after block of the synthetic photos: start -> [BLOCK or fewer, WIDTH]. Any start gives the same rows."""
    base = np.random.default_rng(0)
    centres = (base.standard_normal((CENTRES, WIDTH), np.float32) + 1.4) * spectrum()  # 1.4: alike in any two
    directions = base.standard_normal((64, INTRINSIC, WIDTH), np.float32) * spectrum() / INTRINSIC**0.5
    sizes = 1 / (1 + np.arange(CENTRES)) ** 0.7
    share = np.cumsum(sizes / sizes.sum())

    def block(start: int) -> NDArray[np.float16]:
        rng, n = np.random.default_rng([seed, start]), min(BLOCK, count - start)
        which = np.searchsorted(share, rng.random(n)).clip(0, CENTRES - 1)
        x = centres[which] + 0.1 * rng.standard_normal((n, WIDTH), np.float32) * spectrum()
        scale = rng.uniform(0.3, 1.3, n).astype(np.float32)
        for kind in np.unique(which % 64):
            own = which % 64 == kind
            z = rng.standard_normal((int(own.sum()), INTRINSIC), np.float32)
            x[own] += scale[own, None] * (z @ directions[kind])
        found: NDArray[np.float16] = x.astype(np.float16)
        return found

    return block


def make_pool(path: Path, count: int) -> None:
    """Write the pool, unless it is there."""
    if path.exists():
        return
    block = photos(count, 1)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (count, WIDTH)})
        for start in range(0, count, BLOCK):
            file.write(block(start).tobytes())
    part.replace(path)


def queries(count: int) -> NDArray[np.float16]:
    """Photos of the same kind that are not in the pool."""
    block = photos(count, 2)
    return np.concatenate([block(start) for start in range(0, count, BLOCK)])


def peak() -> float:
    """Peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Anonymous:
    """The most memory of this process that is no mapped file, in bytes above that at the start of a `with`."""

    def __enter__(self) -> Anonymous:
        self.start = self.most = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _anonymous())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, _anonymous())

    @property
    def grown(self) -> int:
        return self.most - self.start


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def worker(options: argparse.Namespace) -> dict[str, Any]:
    """One way at one size; its references go to a file for the comparison."""
    torch.set_num_threads(options.threads)
    pool = np.load(options.pool, mmap_mode="r")[: options.size]
    rows, asked = np.arange(options.size), queries(options.queries)
    before = peak()
    began, index = time.perf_counter(), None
    about: dict[str, Any] = {"form": "float32", "bytes": 4 * options.size * WIDTH}
    if options.way == "exact":
        held = Prepared.of(pool, rows, "cosine")

        def find(q: Rows, k: int) -> References:
            return search(q, pool, k, prepared=held)

    else:
        plan = choose(options.size, WIDTH, kind=options.way, memory=options.memory)
        with Anonymous() as held_meanwhile:
            index = build_index(pool, rows, plan)
        about_memory = {"planned": plan.peak, "anonymous": held_meanwhile.grown, "planned bytes": plan.bytes}
        with tempfile.TemporaryDirectory(dir=Path(options.pool).parent) as folder:
            index.save(Path(folder))
            about = {"form": plan.form, "bytes": (Path(folder) / "index.faiss").stat().st_size, **about_memory}

        def find(q: Rows, k: int) -> References:
            found = list(index_blocks(q, pool, index, k, near_duplicate=0.97))
            order = np.argsort(np.concatenate([places for places, _ in found]))
            each = [one for _, one in found]
            return References(
                np.concatenate([one.index for one in each])[order],
                np.concatenate([one.similarity for one in each])[order],
            )

    build = time.perf_counter() - began
    find(asked[:8], K)  # warm
    found = find(asked, K)
    batch = {str(k): len(asked) / seconds(lambda k=k: find(asked, k)) for k in (1, 4, 16, 64)}  # type: ignore[misc]
    ones = min(len(asked), options.ones)
    alone = ones / seconds(lambda: [find(asked[i : i + 1], 4) for i in range(ones)])
    np.savez(options.found, index=found.index, similarity=found.similarity)
    before_judging = peak()
    # the exact search above what a scorer keeps of a pool reads all of it for every 16 photos
    about["judged"] = judged(pool, index, asked[: 160 if index is not None or 4 * options.size * WIDTH <= HELD else 32])
    return {
        "way": options.way, "size": options.size, "build": build, "peak": before_judging, "before": before, **about,
        "batch": batch, "one": alone,
    }  # fmt: skip


def judged(pool: Rows, index: Index | None, asked: Rows) -> float:
    """Photos a second whose references are found and that are predicted beside them, with the parts of their scores."""
    model = make("published", len(pool), 4, pool)
    model = replace(model, pool=replace(model.pool, index=index, near_duplicate=0.97))
    some = [asked[at : at + 16].astype(np.float32) for at in range(0, len(asked), 16)]
    explain(model, some[0], model.pool.find(some[0], 4))  # makes the pool ready
    return len(asked) / seconds(lambda: [explain(model, one, model.pool.find(one, 4)) for one in some])


def planted(similarity: Rows, index: Rows, votes: Rows, k: int) -> Rows:
    """What `k` references say: their votes, weighted by softmax(10 cosine)."""
    weight = np.exp(10 * (similarity[:, :k] - similarity[:, :1]).astype(np.float64))
    return np.asarray((weight * votes[index[:, :k]]).sum(1) / weight.sum(1))


def votes_of(pool: Rows, size: int) -> Rows:
    """A score [size] for each photo: a smooth function of it, and chance."""
    direction = np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)
    found = np.empty(size)
    for start in range(0, size, BLOCK):
        part = read_rows(pool, np.arange(start, min(start + BLOCK, size)), "cosine").numpy()
        found[start : start + len(part)] = part @ direction
    return np.asarray(found / found.std() + 0.5 * np.random.default_rng(4).standard_normal(size))


def exponent(x: list[float], y: list[float]) -> float:
    """Of the power law through points: 1 is in proportion."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


def likeness(rows: Rows, name: str) -> None:
    """How alike neighbours are, and how much 256 directions hold."""
    x = read_rows(rows, np.arange(len(rows)), "cosine").double()
    products = x @ x.T
    products.fill_diagonal_(-1)
    spread = torch.linalg.svdvals(x - x.mean(0)).square()
    print(
        f"  {name}: nearest cosine, median {products.max(1).values.median():.3f}, any two {products.mean():.3f}; "
        f"256 directions hold {spread[:256].sum() / spread.sum():.3f} of what varies"
    )


def run_search(options: argparse.Namespace) -> dict[str, Any]:
    """All ways at all sizes, each in a process of its own."""
    sizes = sorted(int(size) for size in options.sizes.split(","))
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"pool-{sizes[-1]}.npy"
    print(
        f"{machine()}\npool {sizes[-1]:,} x {WIDTH:,}: written in {seconds(lambda: make_pool(path, sizes[-1])):.0f} s"
    )
    stored = np.load(path, mmap_mode="r")
    data = find_data(Path("bundled"))
    features = load_feature_set(data, load_table(data)[0], semantic="mobilenetv2_100", nodes="mobilenetv2_100")
    likeness(features.semantic, f"shipped features ({len(features.semantic)})")
    likeness(stored[: len(features.semantic)], "synthetic, as many")
    rows: list[dict[str, Any]] = []
    print(
        "                       build   peak  planned/grown  index   queries/s: batch K=4  K=64    one   judged/s   "
        "recall@4  @64   score moves"
    )
    for size in sizes:
        exact: References | None = None
        votes = votes_of(stored, size)
        for way in options.ways.split(","):
            if (way == "hnsw" and size > options.hnsw_most) or (way == "ivf-pq" and size < 1000):
                continue
            found = options.folder / "found.npz"
            command = [
                sys.executable, __file__, "worker", "--way", way, "--size", str(size), "--pool", str(path), "--found",
                str(found), "--queries", str(options.queries), "--ones", str(options.ones), "--threads",
                str(options.threads), *(["--memory", str(options.memory)] if options.memory else []),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{size:>9,} {way:7s} failed: {done.stderr.strip().splitlines()[-1:]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            with np.load(found) as arrays:
                some = References(arrays["index"], arrays["similarity"])
            if exact is None:
                exact = some
            for k in (4, K):
                pairs = zip(some.index[:, :k], exact.index[:, :k], strict=True)
                row[f"recall{k}"] = float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))
                moved = np.abs(
                    planted(some.similarity, some.index, votes, k) - planted(exact.similarity, exact.index, votes, k)
                )
                row[f"moved{k}"] = [float(moved.mean()), float(moved.max())]
            rows.append(row)
            print(
                f"{size:>9,} {way:7s} {row['build']:7.1f} s {row['peak']:5.2f} {row.get('planned', 0) / 1e9:5.2f}/"
                f"{row.get('anonymous', 0) / 1e9:.2f} {row['bytes'] / 1e9:6.3f} GB {row['batch']['4']:10.1f} "
                f"{row['batch']['64']:8.1f} {row['one']:8.1f} {row['judged']:8.1f}    {row['recall4']:.4f} "
                f"{row['recall64']:.4f}  mean {row['moved4'][0]:.4f} max {row['moved4'][1]:.3f} (K=4)  {row['form']}",
                flush=True,
            )
    fits = {}
    for way in options.ways.split(","):
        of = [row for row in rows if row["way"] == way and row["size"] >= options.fit_from]
        if len(of) < 2:
            continue
        x = [row["size"] for row in of]
        fits[way] = {
            "build": exponent(x, [row["build"] for row in of]),
            "batch": exponent(x, [1 / row["batch"]["4"] for row in of]),
            "one": exponent(x, [1 / row["one"] for row in of]),
            "references": exponent([1, 4, 16, 64], [1 / of[-1]["batch"][str(k)] for k in (1, 4, 16, 64)]),
        }
        print(
            f"{way}: time grows with size ^ {fits[way]['build']:.2f} to build, ^ {fits[way]['batch']:.2f} a query in a "
            f"batch, ^ {fits[way]['one']:.2f} one by one (from {options.fit_from:,}); "
            f"with K ^ {fits[way]['references']:.2f}"
        )
        if way == "hnsw" and sizes[-1] > x[-1]:
            last, factor = of[-1], sizes[-1] / x[-1]
            print(
                f"hnsw at {sizes[-1]:,}, extrapolated from {x[0]:,} .. {x[-1]:,}, not measured: build "
                f"{last['build'] * factor ** fits[way]['build']:.0f} s, {last['bytes'] * factor / 1e9:.2f} GB, "
                f"{last['batch']['4'] * factor ** -fits[way]['batch']:.0f} queries/s"
            )
    return {"machine": machine(), "rows": rows, "exponents": fits}


def run_call(options: argparse.Namespace) -> dict[str, Any]:
    """One photo at a time."""
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"pool-{options.size}.npy"
    make_pool(path, options.size)
    stored, asked = np.load(path, mmap_mode="r"), queries(9)
    nobody = ("",) * options.size
    empty = np.empty((options.size, 0))
    pool = RatedPool(nobody, nobody, nobody, empty, empty, stored, stored, np.arange(options.size))
    reading = [seconds(lambda i=i: search(asked[i : i + 1], stored, 4)) for i in range(3)]  # type: ignore[misc]
    kept = [seconds(lambda i=i: pool.find(asked[i : i + 1], 4)) for i in range(9)]  # type: ignore[misc]
    same = np.array_equal(search(asked, stored, 4).index, pool.find(asked, 4).index)
    print(
        f"{machine()}\n{options.size:,} x {WIDTH:,}, one photo: {np.median(reading) * 1e3:.0f} ms where the pool is "
        f"read at each call; kept: first call {kept[0] * 1e3:.0f} ms, then {np.median(kept[1:]) * 1e3:.1f} ms; "
        f"same references: {same}"
    )
    return {"size": options.size, "reading": reading, "kept": kept, "same": same}


def feature_bytes(model: Model) -> int:
    """Bytes of features a pool photo takes in the model's folder: the semantic ones may be columns of the nodes."""
    pool = model.pool
    numbers = int(pool.nodes.shape[1])
    if pool.nodes.base is not None and pool.nodes.base is pool.semantic.base:
        return 2 * numbers
    width, packed = int(pool.semantic.shape[1]), hasattr(pool.semantic, "codes")
    return 2 * numbers + (width + 4 if packed else 2 * width)


def run_compact(options: argparse.Namespace) -> dict[str, Any]:
    """What a compact pool and an index do to held-out scores."""
    torch.set_num_threads(options.threads)
    data = find_data(Path("bundled"))
    table, _ = load_table(data)
    task = Task(table.values, table.threshold, table.side)
    themes = table.codes("theme")
    rows: list[dict[str, Any]] = []
    for name in options.features.split(","):
        features = load_feature_set(data, table, semantic=name, nodes=name)
        same, folds = find_same_photos(table, features).pairs, np.array(table.columns["fold_theme"])
        for recipe, settings in (("published", []), ("votes", []), ("votes", ["references=64"])):
            found: dict[str, NDArray[np.float64]] = {}
            bytes_: dict[str, float] = {}
            for fold in np.unique(folds)[: options.folds]:
                test = np.flatnonzero(folds == fold)
                train = without_twins(np.flatnonzero(folds != fold), test, same)[0]
                chosen = load_recipe(recipe, [*settings, *options.settings])
                model = fit(chosen, table, features, Split(train, test, "theme"), 0)
                variants = {"whole": model}
                for form in ("float16", "int8"):
                    variants[f"compact {form}"] = compact(model, semantic=form)
                if not chosen.resolve(len(train)).whole:
                    pool = model.pool
                    plan = choose(len(pool), features.semantic.shape[1], kind="hnsw")
                    index = build_index(pool.semantic, pool.rows, plan)
                    variants["index hnsw"] = replace(model, pool=replace(pool, index=index))
                for what, one in variants.items():
                    p = found.setdefault(what, np.full_like(table.distributions, np.nan))
                    p[test] = predict_rows(one, table, features, test)
                    bytes_[what] = feature_bytes(one)
            tested = np.flatnonzero(np.isfinite(found["whole"][:, 0]))
            whole, true = found["whole"][tested], table.distributions[tested]
            title = f"{name}, {recipe} {' '.join(settings)}"
            print(f"{title}: SRCC {srcc(table.scores[tested], whole @ table.values):.4f}, {bytes_['whole']:,.0f} bytes")
            for what, p in found.items():
                if what == "whole":
                    continue
                moved = np.abs((p[tested] - whole) @ table.values)
                d = paired_difference(true, [p[tested]], [whole], task, themes[tested])["srcc"]
                rows.append({
                    "features": name, "recipe": recipe, "settings": settings, "what": what, "bytes": bytes_[what],
                    "before": bytes_["whole"], "mean": float(moved.mean()), "max": float(moved.max()), "srcc": d,
                })  # fmt: skip
                print(
                    f"  {what:16s} {bytes_[what]:6,.0f} bytes of features a pool photo; scores move by "
                    f"{moved.mean():.5f} on average, {moved.max():.4f} at most; SRCC {d['difference']:+.4f} "
                    f"[{d['low']:+.4f}, {d['high']:+.4f}] by theme",
                    flush=True,
                )
    return {"machine": machine(), "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["search", "call", "compact", "worker"])
    parser.add_argument("--sizes", default="1000,10000,100000,500000,2000000", help="photos in the pools")
    parser.add_argument("--ways", default=",".join(WAYS), help="the first is what the others are compared with")
    parser.add_argument("--hnsw-most", type=int, default=500_000, help="largest pool that hnsw is built over")
    parser.add_argument("--fit-from", type=int, default=10_000, help="smallest pool of the power laws")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--ones", type=int, default=50, help="queries asked one by one")
    parser.add_argument("--memory", type=int, help="bytes an index may take while it is built")
    parser.add_argument("--folder", type=Path, default=Path("pools"), help="where the synthetic pool is kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=200_000, help="of `call`")
    parser.add_argument("--features", default="mobilenetv2_100,pocket", help="of `compact`")
    parser.add_argument("--folds", type=int, default=5, help="of `compact`")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of `compact`: field=value")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--pool", help=argparse.SUPPRESS)
    parser.add_argument("--found", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part == "worker":
        print(json.dumps(worker(options)))
        return
    run = {"search": run_search, "call": run_call, "compact": run_compact}[options.part]
    result = run(options)
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
