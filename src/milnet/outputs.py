"""Scores as files: CSV, JSONL, Parquet with the columns of `Score.row`, XMP; each appears whole or not at all."""

from __future__ import annotations

import csv
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from milnet.artifacts import atomic_path
from milnet.cache import Cache
from milnet.errors import ImageError, UsageError
from milnet.features import Progress
from milnet.scoring import SIGNALS, Failure, Score
from milnet.xmp import Entry, Outcome, write_rating

SUFFIXES = (".csv", ".jsonl", ".parquet")
_PART = 50_000  # scores a Parquet file has in a folder of them, and memory holds while it is written: some 200 MB


def check_suffix(path: Path) -> None:
    """Raise UsageError unless the suffix says a format we write."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: expected a name ending in {', '.join(SUFFIXES)}")


def is_folder(path: Path) -> bool:
    """Whether scores go into a folder of this name: Parquet files and a manifest."""
    return not path.suffix


def check_output(path: Path, values: Sequence[float]) -> None:
    """Raise UsageError, before any work is done, when scores cannot or must not be written to `path`."""
    check_suffix(path)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"-o {path}: is a folder, or its folder does not exist")
    if path.exists() and not _is_ours(path, columns(values)[:3]):
        raise UsageError(f"-o {path}: exists and holds no scores of milnet; choose another name")
    errors = errors_path(path)
    if errors.exists() and not _is_ours(errors, ["photo", "reason"]):
        raise UsageError(f"{errors} exists and was not made by milnet; choose another name for -o")


def _is_ours(path: Path, first: Sequence[str]) -> bool:
    """Whether a file begins with these columns (or is empty)."""
    if path.suffix.lower() == ".parquet":
        import polars

        try:
            return polars.read_parquet_schema(path).keys() >= set(first)
        except (polars.exceptions.PolarsError, OSError):
            return path.stat().st_size == 0
    with path.open("rb") as file:
        line = file.readline(100_000).decode("utf-8", "replace").strip()
    return not line or (
        line.startswith(",".join(first)) if path.suffix.lower() == ".csv" else line.startswith(f'{{"{first[0]}": ')
    )


def errors_path(path: Path) -> Path:
    """Where the photos that could not be scored are listed: NAME.errors.csv."""
    return path.with_name(f"{path.stem}.errors.csv")


def write_scores(path: Path, scores: Iterable[Score], values: Sequence[float]) -> None:
    """Write the scores in the format of the suffix, as they come; with no scores, the columns alone."""
    check_suffix(path)
    with atomic_path(path) as temporary:
        match path.suffix.lower():
            case ".csv":
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fieldnames=columns(values), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(
                        {k: str(v).lower() if v is True or v is False else v for k, v in score.row().items()}
                        for score in scores
                    )
            case ".jsonl":
                with temporary.open("w", newline="\n", encoding="utf-8") as file:
                    for score in scores:
                        row = score.row()
                        row["references"] = json.loads(row["references"])
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
            case _:
                _write_parquet(temporary, scores, values)


def _write_parquet(path: Path, scores: Iterable[Score], values: Sequence[float]) -> None:
    """One file; of very many scores from parts on the disk, so that memory holds no more than a part."""
    import polars

    some = iter(scores)
    first = list(itertools.islice(some, _PART))
    if len(first) < _PART:
        _frame(first, values).write_parquet(path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
        names = [part.name for part in write_parts(Path(folder), itertools.chain(first, some), values)]
        polars.scan_parquet([Path(folder) / name for name in names]).sink_parquet(path)


def write_parts(folder: Path, scores: Iterable[Score], values: Sequence[float]) -> Iterator[Part]:
    """Write Parquet files `scores-00000.parquet`, ..., of so many scores each, one at least; each as it is written."""
    some = iter(scores)
    for number in itertools.count():
        part = list(itertools.islice(some, _PART))
        if number and not part:
            return
        path = folder / f"scores-{number:05}.parquet"
        with atomic_path(path) as temporary:
            _frame(part, values).write_parquet(temporary)
        yield Part(path.name, len(part))


class Part(NamedTuple):
    """A file of a folder of scores, and how many it has."""

    name: str
    scores: int


def _frame(scores: Sequence[Score], values: Sequence[float]) -> Any:
    """The scores as a table of polars."""
    import polars

    schema: dict[str, Any] = {
        name: polars.String
        if name in _TEXTS
        else polars.Int64
        if name in _WHOLE
        else polars.Boolean
        if name == "keep"
        else polars.Float64
        for name in columns(values)
    }
    return polars.DataFrame([score.row() for score in scores], schema=schema, orient="row")


_TEXTS = ("photo", "references", "model", "milnet")
_WHOLE = ("stars", "group", "rank", "width", "height")


def columns(values: Sequence[float]) -> list[str]:
    """Names of the columns, in order."""
    shares = [f"p_{value:g}" for value in values]
    before = ["photo", "score", "low", "high", "spread", "percentile", "stars", "folder_percentile", "unlike"]
    bursts = ["group", "rank", "keep"]
    return [*before, *bursts, *shares, "base", "own", "references", "rest", *SIGNALS, "model", "milnet"]


def select(scores: Sequence[Score], min_score: float | None = None, top: int | None = None) -> list[Score]:
    """Those with at least `min_score`; with `top` the best so many, the best first, else in their order."""
    chosen = [score for score in scores if min_score is None or score.score >= min_score]
    return chosen if top is None else sorted(chosen, key=lambda score: -score.score)[:top]


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Write photo,reason of what could not be scored."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo", "reason"])
        writer.writerows((failure.photo, failure.reason) for failure in failures)


def write_ratings(
    scores: Sequence[Score], cache: Cache | None = None, progress: Progress | None = None, **how: Any
) -> tuple[dict[str, Outcome], list[Failure]]:
    """Write stars and scores as XMP, `how` as `xmp.write_rating` says: {photo: what was done}, and what was refused.

    What the `cache` knows of a photo it knows of the file with its new metadata, too.
    """
    outcomes: dict[str, Outcome] = {}
    refused: list[Failure] = []
    for done, score in enumerate(scores, 1):
        entry = Entry(
            stars=score.stars,
            score=score.score,
            low=score.low,
            high=score.high,
            percentile=score.percentile,
            folder_percentile=score.folder_percentile,
            unlike=score.unlike,
            model=score.model,
        )
        photo = Path(score.photo)
        try:
            changes = cache is not None and how.get("embed") and not how.get("dry_run")
            with cache.pixels_stay(photo) if cache is not None and changes else nullcontext():
                outcomes[score.photo] = write_rating(photo, entry, **how)
        except ImageError as error:
            refused.append(Failure(score.photo, error.reason))
        if progress is not None:
            progress(done, len(scores), "ratings")
    return outcomes, refused
