"""What is known of photos already, by the content of their files: no photo goes through a backbone twice.

    files      path, state (size, times, inode) -> content, the sha256 of the file: an unchanged file is not read again
    features   content, backbone -> its numbers, the digest of the pixels, notes (technical signals, capture time)
    scores     content, model -> a score

A photo that was moved or copied is known by its content, a changed one is not. Another model on the same backbone,
one's own taste for example, finds the numbers here. One SQLite file (write-ahead log): several processes may use it at
once, nothing is locked between two entries, and a killed one loses nothing that it had made.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.artifacts import digest_file
from milnet.errors import ArtifactError
from milnet.places import user_folder

_FORMAT = 1  # counted up whenever the same file would give other numbers: older caches are then made anew
_AHEAD = 64  # files whose content is found out ahead of the photo that is wanted
_DAY = 86_400
_PATIENCE = 60.0  # seconds that another process may hold the cache
_TABLES = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, content TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_content ON files (content);
CREATE TABLE IF NOT EXISTS features (content TEXT, backbone TEXT, numbers BLOB, pixels TEXT, notes TEXT, used INTEGER,
    PRIMARY KEY (content, backbone));
CREATE TABLE IF NOT EXISTS scores (content TEXT, model TEXT, score TEXT, used INTEGER, PRIMARY KEY (content, model));
"""


@dataclass(frozen=True)
class Kept:
    """What a backbone made of a photo: `numbers` [D] float32, or None where they are too many to keep."""

    numbers: NDArray[np.float32] | None
    pixels: str  # digest
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """A file and the sha256 of its bytes; "" where it cannot be read. `state`: what told that it has not changed."""

    photo: Path
    digest: str
    state: str


def cache_file() -> Path:
    """The cache of this user."""
    return user_folder() / "cache.sqlite"


def remove_cache(path: Path) -> None:
    """Remove a cache with the files that SQLite keeps beside it, whatever state it is in."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def state_of(photo: Path) -> str:
    """What changes when a file does; "" where there is no regular file to be read."""
    try:
        info = photo.stat()
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(info.st_mode):  # a pipe could be read for ever
        return ""
    return f"{info.st_size}/{info.st_mtime_ns}/{info.st_ctime_ns}/{info.st_ino}"


class UnwritableError(ArtifactError):
    """The cache is whole and cannot be written: a full disk, no permission, another program that holds it."""


class Cache:
    """One SQLite file. Every method may raise ArtifactError: the file is damaged or foreign.

    When it cannot be written, making one raises UnwritableError. Later, `trouble` says why, and nothing more is kept:
    the work that it serves goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.trouble = path, ""
        self._day = int(time.time()) // _DAY
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # each entry is lasting by itself: whoever waits for an image must not keep others from writing
            self._database = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._prepare()
        except OSError as error:
            raise UnwritableError(f"{path} cannot be written ({error})") from error
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        """Make the tables; ArtifactError when the file is somebody else's, or a newer milnet's."""
        database, until = self._database, time.monotonic() + _PATIENCE
        while database.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                database.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError:  # of two that begin at once, one is told so without waiting
                if time.monotonic() > until or not os.access(self.path, os.W_OK):
                    raise
                time.sleep(0.05)
        database.execute("PRAGMA synchronous=NORMAL")
        if database.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
            database.execute("UPDATE files SET state = state WHERE path = x''")  # whether it can be written
            return
        database.execute("BEGIN IMMEDIATE")
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if tables and (found > _FORMAT or not found or not tables <= {"files", "features", "scores"}):
                raise ArtifactError(
                    f"{self.path} is no cache of this milnet (format {found}, expected {_FORMAT}): "
                    f"remove it and run again"
                )
            if found < _FORMAT:
                for table in tables:
                    database.execute(f"DROP TABLE {table}")
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _write(self, statement: str, values: Sequence[Any]) -> None:
        """Keep something, unless that is not possible any more."""
        if self.trouble:
            return
        try:
            self._execute(statement, values)
        except UnwritableError as error:
            self.trouble = str(error)

    def _unusable(self, error: Exception) -> ArtifactError:
        said = str(error)
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in said:
            held = ": another program holds it, try again later" if "locked" in said or "busy" in said else ""
            return UnwritableError(f"{self.path} cannot be written ({said}){held}")
        return ArtifactError(f"{self.path} cannot be used as a cache ({said}): remove it and run again")

    # ---- looking up --------------------------------------------------------------------------------------------------

    def contents(self, photos: Iterable[Path]) -> Iterator[Content]:
        """The content of each photo, in order. Files that are new or have changed are read, several at once."""
        waiting: deque[tuple[Path, str, str | Future[str]]] = deque()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), thread_name_prefix="milnet-content") as executor:
            try:
                for photo in photos:
                    state = state_of(photo)
                    known = self._known(photo, state)
                    waiting.append((photo, state, known or executor.submit(_digest, photo)))
                    if len(waiting) > _AHEAD:
                        yield self._content(*waiting.popleft())
                while waiting:
                    yield self._content(*waiting.popleft())
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _known(self, photo: Path, state: str) -> str:
        row = self._execute("SELECT state, content FROM files WHERE path = ?", (_key(photo),)).fetchone()
        return str(row[1]) if row is not None and state and row[0] == state else ""

    def _content(self, photo: Path, state: str, found: str | Future[str]) -> Content:
        if isinstance(found, str):
            return Content(photo, found, state)
        digest = found.result()
        if digest and state and state_of(photo) == state:
            self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (_key(photo), state, digest))
            return Content(photo, digest, state)
        return Content(photo, "", "")  # it cannot be read, or is being written: nothing is kept of it

    def score(self, content: str, model: str) -> dict[str, Any] | None:
        """The score that was kept of a photo by this model, as JSON gives it; None where there is none."""
        row = self._execute(
            "SELECT score, used FROM scores WHERE content = ? AND model = ?", (content, model)
        ).fetchone()
        if row is None:
            return None
        if row[1] != self._day:
            self._write("UPDATE scores SET used = ? WHERE content = ? AND model = ?", (self._day, content, model))
        return _mapping(row[0])

    def features(self, content: str, backbone: str) -> Kept | None:
        """What was kept of a photo by this backbone."""
        row = self._execute(
            "SELECT numbers, pixels, notes, used FROM features WHERE content = ? AND backbone = ?", (content, backbone)
        ).fetchone()
        if row is None:
            return None
        notes = _mapping(row[2])
        if notes is None or (row[0] is not None and len(row[0]) % 4):
            return None
        if row[3] != self._day:
            self._write(
                "UPDATE features SET used = ? WHERE content = ? AND backbone = ?", (self._day, content, backbone)
            )
        return Kept(None if row[0] is None else np.frombuffer(row[0], "<f4"), str(row[1]), notes)

    # ---- writing down ------------------------------------------------------------------------------------------------

    def put_features(self, content: str, backbone: str, kept: Kept) -> None:
        """Keep what a backbone made of a photo."""
        numbers = None if kept.numbers is None else np.ascontiguousarray(kept.numbers, "<f4").tobytes()
        self._write(
            "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?, ?)",
            (content, backbone, numbers, kept.pixels, json.dumps(kept.notes), self._day),
        )

    def put_score(self, content: str, model: str, score: Mapping[str, Any]) -> None:
        """Keep a score."""
        values = (content, model, json.dumps(score), self._day)
        self._write("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", values)

    @contextlib.contextmanager
    def pixels_stay(self, photo: Path) -> Iterator[None]:
        """What is known of a photo stays known though its file is changed in here, by metadata alone."""
        before = self._known(photo, state_of(photo))  # "" where somebody else has changed it since
        yield
        if not before:
            return
        for content in self.contents([photo]):
            if content.digest and content.digest != before:
                for table, columns in (("features", "backbone, numbers, pixels, notes"), ("scores", "model, score")):
                    self._write(
                        f"INSERT OR REPLACE INTO {table} (content, {columns}, used) "
                        f"SELECT ?, {columns}, used FROM {table} WHERE content = ?",
                        (content.digest, before),
                    )

    def close(self, *, remove: bool = False) -> None:
        """Close; with `remove` the file goes."""
        self._database.close()
        if remove:
            remove_cache(self.path)

    # ---- looking after it --------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """How much is here: files, photos (contents), and entries of each backbone and each model."""
        one = "SELECT count(*) FROM (SELECT content FROM features UNION SELECT content FROM scores)"
        return {
            "files": self._execute("SELECT count(*) FROM files").fetchone()[0],
            "photos": self._execute(one).fetchone()[0],
            "backbones": dict(self._execute("SELECT backbone, count(*) FROM features GROUP BY backbone").fetchall()),
            "models": dict(self._execute("SELECT model, count(*) FROM scores GROUP BY model").fetchall()),
            "bytes": sum(
                path.stat().st_size
                for path in (self.path, self.path.with_name(self.path.name + "-wal"))
                if path.exists()
            ),
        }

    def prune(
        self, *, missing: bool = False, unused: int | None = None, model: str | None = None, dry_run: bool = False
    ) -> dict[str, int]:
        """Remove entries, and say how many of each table.

        `missing`: of files that are not at their place any more, unless another file has the same content; `unused`:
        not looked at for so many days; `model`: scores of the model whose digest begins so. `dry_run`: only counted.
        """
        before = self.rows()
        self._execute("BEGIN IMMEDIATE")
        try:
            if model is not None:
                self._execute("DELETE FROM scores WHERE substr(model, 1, ?) = ?", (len(model), model))
            if unused is not None:
                for table in ("features", "scores"):
                    self._execute(f"DELETE FROM {table} WHERE used < ?", (self._day - unused,))
            if missing:
                for (path,) in self._execute("SELECT path FROM files").fetchall():
                    if not os.path.lexists(path):
                        self._execute("DELETE FROM files WHERE path = ?", (path,))
                for table in ("features", "scores"):
                    self._execute(f"DELETE FROM {table} WHERE content NOT IN (SELECT content FROM files)")
            removed = {name: count - self.rows()[name] for name, count in before.items()}
            self._execute("ROLLBACK" if dry_run else "COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        if not dry_run:
            with contextlib.suppress(sqlite3.DatabaseError):  # the space is given back later, if it is in use
                self._database.execute("VACUUM")
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def rows(self) -> dict[str, int]:
        """Number of entries in each table."""
        tables = ("files", "features", "scores")
        return {table: self._execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def _key(photo: Path) -> bytes:
    return os.fsencode(os.path.abspath(photo))  # noqa: PTH100  (links stay as they are)


def _digest(photo: Path) -> str:
    try:
        return digest_file(photo) if state_of(photo) else ""
    except OSError:
        return ""


def _mapping(text: str) -> dict[str, Any] | None:
    """A damaged entry counts as none: it is made again."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
