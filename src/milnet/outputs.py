"""Scores as files: CSV, JSONL, Parquet, with the columns of `Score.row`; each appears whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from milnet.artifacts import atomic_path
from milnet.errors import UsageError
from milnet.scoring import Failure, Score

SUFFIXES = (".csv", ".jsonl", ".parquet")


def check_suffix(path: Path) -> None:
    """Raise UsageError unless the suffix says a format we write."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: expected a name ending in {', '.join(SUFFIXES)}")


def write_scores(path: Path, scores: Sequence[Score], values: Sequence[float]) -> None:
    """Write the scores in the format of the suffix; with no scores, the columns alone."""
    check_suffix(path)
    rows = [score.row() for score in scores]
    with atomic_path(path) as temporary:
        match path.suffix.lower():
            case ".csv":
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, fieldnames=columns(values), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
            case ".jsonl":
                lines = [
                    json.dumps({**row, "references": json.loads(row["references"])}, ensure_ascii=False) for row in rows
                ]
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            case _:
                import polars

                schema: dict[str, Any] = {
                    name: polars.String if name in _TEXTS else polars.Float64 for name in columns(values)
                }
                polars.DataFrame(rows, schema=schema, orient="row").write_parquet(temporary)


_TEXTS = ("photo", "references", "model", "milnet")


def columns(values: Sequence[float]) -> list[str]:
    """Names of the columns, in order."""
    shares = [f"p_{value:g}" for value in values]
    before = ["photo", "score", "low", "high", "spread", "percentile", "folder_percentile", "unlike"]
    return [*before, *shares, "own", "references", "model", "milnet"]


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write photo,reason of what could not be scored."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo", "reason"])
        writer.writerows((failure.photo, failure.reason) for failure in failures)
