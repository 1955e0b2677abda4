"""Scores of more photos than memory should hold, from anywhere (sources.py), made anywhere (cluster.py).

    bulk = score_all(scorer, photos, part, runner)     shards on the disk, a piece of photos each
    bulk.scores()                                      one Score after the other, in the order of the photos

A shard appears whole or not at all, so that work which was stopped goes on without any being made again. What depends
on all photos, places in the folder and in bursts, is found when all shards are there: of each photo some numbers are
held, and layouts and features only of photos that are near each other in time.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from milnet import bursts
from milnet.annotations import FloatArray, IntArray
from milnet.artifacts import (
    FORMATS,
    Manifest,
    atomic_path,
    canonical_json,
    differences,
    digest_file,
    new_folder,
    read_json,
    write_manifest,
    write_text,
)
from milnet.errors import ArtifactError, ImageError
from milnet.extraction import silent
from milnet.features import Progress
from milnet.outputs import columns, write_failures, write_parts
from milnet.scoring import Failure, Score, Scorer, Timed, burst_places, in_order, placed, score_of, sharpness_of
from milnet.sources import DEADLY, Item, Photos, Runner, fingerprint, opened
from milnet.version import __version__

_PIECE = 512  # photos a shard, at most
_TOGETHER = 50_000  # photos with a time whose bursts are found at once; more where no pause parts them
_SHARDS_READ = 64  # whose layouts and features are kept for the next photos, which are near in time and often in place


# ---- a shard ---------------------------------------------------------------------------------------------------------


def score_piece(scorer: Scorer, items: Sequence[tuple[int, Item]]) -> bytes:
    """A shard: the scores of a piece of photos, and what their places in the folder and in bursts are found by."""
    names = {row: item.name for row, item in items}
    failed: dict[int, ImageError] = {}
    found: list[dict[str, Any]] = []
    for row, result, seen in scorer.judged(opened(items, failed), names.__getitem__):
        if isinstance(result, Failure):
            found.append({"row": row, "photo": result.photo, "reason": result.reason})
            continue
        assert seen is not None
        one = {
            "row": row,
            "photo": result.photo,
            "score": result.score,
            "sharpness": sharpness_of(result),
            "json": json.dumps(result.to_json()),
        }
        timed = scorer.timed(seen.aside, seen.semantic)
        if timed is not None:
            one |= {"taken": timed.taken, "layout": timed.layout, "semantic": timed.semantic.tobytes()}
        found.append(one)
    found += [{"row": row, "photo": names[row], "reason": error.reason} for row, error in failed.items()]
    return _shard(sorted(found, key=lambda one: cast(int, one["row"])))


def _shard(rows: Sequence[dict[str, Any]]) -> bytes:
    import polars

    schema: dict[str, Any] = {
        "row": polars.Int64,
        "photo": polars.String,
        "score": polars.Float64,  # none where there is a reason why not
        "sharpness": polars.Float64,
        "taken": polars.Float64,
        "layout": polars.Binary,
        "semantic": polars.Binary,  # float16
        "json": polars.String,
        "reason": polars.String,
    }
    data = io.BytesIO()
    polars.DataFrame(rows, schema=schema, orient="row").write_parquet(data)
    return data.getvalue()


def _read(shard: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    """Columns of a shard, photo by photo."""
    import polars

    try:
        frame = polars.read_parquet(shard, columns=list(names))
    except (OSError, polars.exceptions.PolarsError) as error:
        raise ArtifactError(f"{shard} cannot be read ({error}): remove it, and run the command again") from error
    yield from frame.select(names).iter_rows()


# ---- all shards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bulk:
    """The scores of many photos, in shards: `starts` [n] the first row of each, ascending."""

    scorer: Scorer
    photos: str  # digest of which photos they are
    shards: tuple[Path, ...]
    starts: IntArray
    new: int  # photos that were worked on by this call
    failures: tuple[Failure, ...]
    score: FloatArray  # of each photo, NaN where it failed
    ordered: FloatArray  # as scoring.placed takes them
    group: IntArray  # number of the burst, 0 of photos that stand alone
    rank: IntArray
    keep: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(np.isfinite(self.score).sum())

    def chosen(self, min_score: float | None = None, top: int | None = None) -> IntArray:
        """Rows of the photos with at least `min_score`; with `top` the best so many, the best first."""
        rows = np.flatnonzero(np.isfinite(self.score) & (self.score >= (-np.inf if min_score is None else min_score)))
        return rows if top is None else rows[np.argsort(-self.score[rows], kind="stable")[:top]]

    def scores(self, rows: IntArray | None = None) -> Iterator[Score]:
        """The scores of all photos, or of `rows`: read as they are asked for where these ascend, else held."""
        rows = self.chosen() if rows is None else rows
        if len(rows) > 1 and not (np.diff(rows) > 0).all():
            held = dict(zip(np.sort(rows).tolist(), self.scores(np.sort(rows)), strict=True))
            yield from (held[row] for row in rows.tolist())
            return
        if not len(rows):  # nor need there be a shard
            return
        ends = np.searchsorted(rows, [*self.starts[1:], len(self.score)])
        for shard, (first, last) in zip(self.shards, pairwise([0, *ends.tolist()]), strict=True):
            wanted = set(rows[first:last].tolist())
            if wanted:
                for row, photo, text in _read(shard, "row", "photo", "json"):
                    if row in wanted:
                        yield self._placed(row, photo, text)

    def _placed(self, row: int, photo: str, text: str) -> Score:
        found = score_of(json.loads(text), photo)
        assert found is not None  # of another version the shards were refused
        if self.group[row]:
            found = replace(found, group=int(self.group[row]), rank=int(self.rank[row]), keep=bool(self.keep[row]))
        return placed(found, self.ordered, self.scorer.stars, self.scorer.stars_of)


def score_all(
    scorer: Scorer, photos: Photos, part: Path, runner: Runner, *, progress: Progress = silent, most: int = _PIECE
) -> Bulk:
    """Score `photos` into shards in the folder `part`, `most` photos each; those that are there are not made again.

    Raises ArtifactError where `part` holds shards of other photos, of another model or with other options.
    """
    identity = _identity(scorer, photos)
    _claim(part, identity)
    with _alone(part):
        done = np.zeros(len(photos), np.bool_)
        for leftover in part.glob(".*.tmp"):  # half a shard, of a run that was killed
            leftover.unlink()
        for shard in part.glob("*.parquet"):
            done[slice(*_rows_of(shard))] = True
        todo = np.flatnonzero(~done).tolist()
        finished = len(photos) - len(todo)
        progress(finished, len(photos), "photos")
        for rows, data in runner.run(scorer, score_piece, todo, photos.__getitem__, most):
            if data is None:
                data = _shard([{"row": row, "photo": photos.names[row], "reason": DEADLY} for row in rows])
            with atomic_path(part / f"{rows[0]:012}-{rows[-1] + 1:012}.parquet") as temporary:
                temporary.write_bytes(data)
            finished += len(rows)
            progress(finished, len(photos), "photos")
        return _gather(scorer, identity["photos"]["digest"], part, len(photos), len(todo))


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """One run at a time writes into `part`: the system frees the lock whatever ends this process."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    with (part / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"another run is writing to {part}: wait for it, or choose another output") from error
        except OSError:  # a disk without locks
            pass
        yield


def _rows_of(shard: Path) -> tuple[int, int]:
    first, _, last = shard.stem.partition("-")
    return int(first), int(last)


def _identity(scorer: Scorer, photos: Photos) -> dict[str, Any]:
    return {
        **fingerprint(photos),
        "model": scorer.digest,
        "backbones": list(scorer.keys),
        "batch": scorer.batch,
        "max_pixels": scorer.nodes.max_pixels,
        "milnet": __version__,
    }


def _claim(part: Path, identity: dict[str, Any]) -> None:
    """Make the folder of unfinished scores, or take up one of the same photos and options."""
    names = part / "identity.json"
    if names.exists():
        old = read_json(names)
        if old != identity:
            raise ArtifactError(
                f"{part} holds unfinished scores of other photos or with other options: run it with the same ones "
                f"({differences(old, identity)}), or remove that folder"
            )
        return
    if part.exists() and any(part.iterdir()):
        raise ArtifactError(f"{part} was not made by milnet, and unfinished scores would be kept there: move it away")
    part.mkdir(parents=True, exist_ok=True)
    write_text(names, canonical_json(identity))


def _gather(scorer: Scorer, photos: str, part: Path, total: int, new: int) -> Bulk:
    """What is found out only when all shards are there."""
    shards = tuple(sorted(part.glob("*.parquet")))
    score, sharpness, taken = np.full((3, total), np.nan)
    times = np.zeros(total, np.int8)
    failures = []
    for shard in shards:
        for row, photo, *numbers, reason in _read(shard, "row", "photo", "score", "sharpness", "taken", "reason"):
            times[row] += 1
            if reason is not None:
                failures.append(Failure(photo, reason))
                continue
            score[row], sharpness[row] = numbers[:2]
            taken[row] = np.nan if numbers[2] is None else numbers[2]
    if wrong := int((times != 1).sum()):
        raise ArtifactError(
            f"{part}: expected each of {total:,} photos once, and {wrong:,} are missing or twice: remove it"
        )
    starts = np.array([_rows_of(shard)[0] for shard in shards], np.int64)
    group, rank, keep = np.zeros(total, np.int64), np.zeros(total, np.int64), np.zeros(total, np.bool_)
    bulk = Bulk(
        scorer, photos, shards, starts, new, tuple(failures), score, in_order(score[np.isfinite(score)].tolist()),
        group, rank, keep,
    )  # fmt: skip
    looks, number = _Looks(shards, starts), 0
    for rows in _near_in_time(taken):
        timed = [Timed(float(taken[row]), *looks[row]) for row in rows.tolist()]
        places = burst_places(timed, score[rows].tolist(), sharpness[rows].tolist())
        for row, place in zip(rows.tolist(), places, strict=True):
            if place is not None:
                group[row], rank[row], keep[row] = number + place.group, place.rank, place.keep
        number = max(number, int(group[rows].max()))
    return bulk


def _near_in_time(taken: FloatArray) -> Iterator[IntArray]:
    """Rows of photos with a time, ascending, parted only at pauses that no burst goes across."""
    rows = np.flatnonzero(np.isfinite(taken))
    rows = rows[np.argsort(taken[rows], kind="stable")]
    first = 0
    for pause in [*(np.flatnonzero(np.diff(taken[rows]) > bursts.GAP) + 1).tolist(), len(rows)]:
        if pause - first >= _TOGETHER or (pause == len(rows) and pause > first):
            yield np.sort(rows[first:pause])
            first = pause


class _Looks:
    """Layout and semantic features of photos by their row, read a shard at a time."""

    def __init__(self, shards: Sequence[Path], starts: IntArray) -> None:
        self._shards, self._starts = shards, starts
        self._kept: OrderedDict[int, dict[int, tuple[bytes, NDArray[np.float16]]]] = OrderedDict()

    def __getitem__(self, row: int) -> tuple[bytes, NDArray[np.float16]]:
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        if shard not in self._kept:
            self._kept[shard] = {
                at: (layout, np.frombuffer(semantic, np.float16))
                for at, layout, semantic in _read(self._shards[shard], "row", "layout", "semantic")
                if layout is not None
            }
            if len(self._kept) > _SHARDS_READ:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shard)
        return self._kept[shard][row]


def write_folder(target: Path, bulk: Bulk, failures: Sequence[Failure], rows: IntArray) -> Manifest:
    """Write the scores of `rows` as a folder: Parquet files, errors.csv, the manifest.

    A folder of scores that is there is replaced when the new one is complete.
    """
    values = bulk.scorer.values.tolist()
    with new_folder(target, "scores", overwrite=target.exists()) as folder:
        parts = list(write_parts(folder, bulk.scores(rows), values))
        write_failures(folder / "errors.csv", failures)
        manifest = Manifest(
            kind="scores",
            format=FORMATS["scores"],
            config={
                "columns": columns(values),
                "stars": list(bulk.scorer.stars),
                "stars_of": bulk.scorer.stars_of,
                "rows": {part.name: part.scores for part in parts},
            },
            files={part.name: digest_file(folder / part.name) for part in parts},
            inputs={"model": bulk.scorer.digest, "photos": bulk.photos},
            counts={"photos": sum(part.scores for part in parts), "unreadable": len(failures)},
        )
        write_manifest(folder, manifest)
    return manifest
