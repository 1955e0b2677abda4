"""Where photos come from besides folders: tar shards, Parquet files, object storage.

    find_sources(arguments) -> Photos, a sequence of Item: a name, and where its bytes are
    opened(items) -> (key, a path or bytes), read ahead by threads

A `Photos` names; it holds no bytes of photos, and some hundred bytes for each. An item can be sent to another machine,
which opens it there. Tar shards are those of WebDataset (uncompressed; what is no photo in them is left out), Parquet
files those of Hugging Face (a column of bytes, or of structs with a field `bytes`). URLs go to pyarrow where it knows
their file system (s3, gs), else to fsspec.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import itertools
import os
import re
import tarfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, overload
from urllib.parse import parse_qsl

from milnet.errors import ImageError, MilnetError, MissingExtraError, UsageError, in_short
from milnet.images import SUFFIXES
from milnet.library import find_photos, listed_names

Key = TypeVar("Key")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAGIC = re.compile("[*?[]")
_SHARDS = (".tar", ".parquet")
_IMAGES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "img", "image_bytes")  # columns that hold photos
_NAMES = ("path", "__key__", "id", "image_id", "filename", "file_name", "name", "key")  # columns that name them
_THREADS = 8  # that read photos ahead; they wait for a disk or a network most of the time
_WAITS = (1.0, 4.0)  # seconds before a file far away that could not be read is tried again
_PATIENCE = 8  # photos of a piece that are waited for in vain, before the others are tried once only
_WHOLE = -1  # as the start of an item: all of its file


class Item(NamedTuple):
    """One photo: its name for people, and where its bytes are."""

    name: str
    place: str  # path of a file, or URL with whatever its file system needs to be told
    start: int = _WHOLE  # first byte of a member of a tar, row of a Parquet file
    size: int = 0  # bytes of a member of a tar
    column: str = ""  # of a Parquet file: the column with the bytes, "image.bytes" for a field of a struct


@dataclass
class Photos(Sequence[Item]):
    """Photos by name and place, kept as columns: some hundred bytes a photo."""

    names: list[str] = field(default_factory=list)
    _files: list[tuple[str, str]] = field(default_factory=list)  # place and column of shards
    _shard: array[int] = field(default_factory=lambda: array("l"))  # of each photo; -1: a file of its own
    _start: array[int] = field(default_factory=lambda: array("q"))
    _size: array[int] = field(default_factory=lambda: array("q"))
    _urls: dict[int, str] = field(default_factory=dict)  # where they say more than the names

    def add_file(self, name: str, place: str) -> None:
        """A file of its own."""
        if place != name:
            self._urls[len(self.names)] = place
        self._add(name, -1, _WHOLE, 0)

    def add_shard(self, place: str, column: str, members: Iterable[tuple[str, int, int]]) -> None:
        """Photos (name, start, size) of one tar or Parquet file."""
        self._files.append((place, column))
        for name, start, size in members:
            self._add(name, len(self._files) - 1, start, size)

    def _add(self, name: str, shard: int, start: int, size: int) -> None:
        self.names.append(name)
        self._shard.append(shard)
        self._start.append(start)
        self._size.append(size)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        name, shard = self.names[at], self._shard[at]
        if shard < 0:
            return Item(name, self._urls.get(at if at >= 0 else at + len(self), name))
        place, column = self._files[shard]
        return Item(name, place, self._start[at], self._size[at], column)


@dataclass(frozen=True)
class Sources:
    """What the arguments of a command name."""

    photos: Photos
    failures: tuple[ImageError, ...]  # what was named or found and cannot be a photo
    notes: tuple[str, ...]  # what people should know about files that were left out


def is_far(argument: str | Path) -> bool:
    """Whether an argument names more than files and folders of this machine: a URL, tar or Parquet shards."""
    text = str(argument)
    return bool(_URL.match(text)) or text.lower().endswith(_SHARDS)


def is_near(item: Item) -> bool:
    """Whether an item is a file of its own on this machine."""
    return item.start == _WHOLE and not _URL.match(item.place)


def absolute(item: Item) -> Item:
    """The same photo for a process in another folder."""
    return item if _URL.match(item.place) else item._replace(place=str(Path.cwd() / item.place))


def find_sources(
    arguments: Iterable[str | Path] = (),
    *,
    files_from: str | Path | None = None,
    image_column: str | None = None,
) -> Sources:
    """The photos named by `arguments` and the list `files_from`.

    Files, folders and patterns of this machine as `library.find_photos` finds them, the .tar and .parquet files among
    them opened; then URLs of a file, a folder or prefix, or a pattern. `{000..120}` in an argument stands for each of
    these numbers. In folders and prefixes only files with the suffix of an image are taken: tar and Parquet files are
    named, or matched by a pattern. A shard that cannot be read is a failure and the rest goes on.

    Raises UsageError where an argument leads to nothing, MissingExtraError where pyarrow is needed and not there.
    """
    wanted = list(itertools.chain.from_iterable(_numbered(str(argument)) for argument in arguments))
    near = [one for one in wanted if not _URL.match(one)]
    listed: list[str] = [] if files_from is None else list(listed_names(files_from))
    far = [one for one in listed if _URL.match(one)]
    found = Photos()
    failures: list[ImageError] = []
    notes: tuple[str, ...] = ()
    shards: list[tuple[str, str]] = []  # name, place
    here = [one for one in listed if not _URL.match(one)]
    if near or here or not (wanted or files_from is not None):
        library = find_photos(near, files_from=here if here else None)
        failures += library.failures
        notes = library.notes
        for path in library.photos:
            name = _as_text(str(path))
            if name != str(path):
                failures.append(ImageError(name, "its name is not valid UTF-8, so no output could hold it: rename it"))
            elif path.suffix.lower() in _SHARDS:
                shards.append((name, name))
            else:
                found.add_file(name, name)
    places = [*itertools.chain.from_iterable(_at_url(url) for url in wanted if _URL.match(url)), *far]
    for place in {_object(place): place for place in places}.values():  # each once
        name = shown(place)
        if _as_text(name) != name:
            failures.append(ImageError(_as_text(name), "its name is not valid UTF-8, so no output could hold it"))
        elif name.lower().endswith(_SHARDS):
            shards.append((name, place))
        else:
            found.add_file(name, place)
    _take_shards(found, failures, shards, image_column)
    if not len(found) and not failures and (wanted or listed):
        raise UsageError(f"no photos in {', '.join([*wanted, *listed][:5])}")
    return Sources(found, tuple(failures), notes)


def shown(place: str) -> str:
    """A place as it may be printed: a URL without user, password and options."""
    if not _URL.match(place):
        return place
    url = _Url.of(place)
    path = re.split("[?#]", url.path)[0] if url.scheme in _HTTP else url.path
    return f"{url.scheme}://{url.host.rpartition('@')[2]}{path}"


def _object(place: str) -> str:
    """What a place means, whoever asks for it: without user, password and passing signatures."""
    url = _Url.of(place) if _URL.match(place) else None
    where = "" if url is None or url.scheme in _HTTP else dict(parse_qsl(url.options)).get("endpoint_override", "")
    return f"{shown(place)}\t{where}"


def fingerprint(items: Iterable[Item]) -> dict[str, Any]:
    """By which work on these photos knows, when it goes on, that they are still the same.

    Of a tar or Parquet file that is its size and the time of its last change, too: one that was written anew has other
    photos in the same places.
    """
    count, named, shards = 0, hashlib.sha256(), hashlib.sha256()
    known: dict[str, str] = {}  # shards: the rows of a table may lead from one to the other and back
    for item in items:
        count += 1
        where = known.get(item.place) or _object(item.place)
        if item.start != _WHOLE and item.place not in known:
            known[item.place] = where
            with suppress(Exception):  # what cannot be read now fails photo by photo; file systems have own errors
                shards.update(f"{where}\t{_state(item.place)}\n".encode())
        named.update(f"{item.name}\t{where}\t{item.start}\t{item.size}\t{item.column}\n".encode())
    return {"photos": {"count": count, "digest": named.hexdigest()}, "shards": shards.hexdigest()}


def _as_text(name: str) -> str:
    """A name as an output can hold it: itself, or with escapes for what is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _numbered(text: str) -> Iterator[str]:
    """`a-{00..12}.tar` as a-00.tar, a-01.tar, ..., each number as wide as the first; any number of such braces."""
    braces = _BRACES.search(text)
    if braces is None or (not _URL.match(text) and Path(text).exists()):
        yield text
        return
    first, last = braces[1], braces[2]
    if int(last) < int(first):
        raise UsageError(f"{text}: expected ascending numbers, got {{{first}..{last}}}")
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{text[: braces.start()]}{number:0{len(first)}}{text[braces.end() :]}")


# ---- tar and Parquet -------------------------------------------------------------------------------------------------


def _take_shards(
    found: Photos, failures: list[ImageError], shards: Sequence[tuple[str, str]], image_column: str | None
) -> None:
    """List what is in each shard, several at once: a remote one is asked for a header a photo."""

    def listed(shard: tuple[str, str]) -> tuple[str, list[tuple[str, int, int]], str]:
        name, place = shard
        try:
            if name.lower().endswith(".tar"):
                return "", *_members(name, place)
            return *_rows(name, place, image_column), ""
        except UsageError as error:
            if len(shards) == 1:
                raise
            return "", [], str(error)
        except MilnetError:
            raise
        except Exception as error:  # file systems have errors of their own
            return "", [], f"cannot be listed ({in_short(error)})"

    if not shards:
        return
    if any(_URL.match(place) or place.lower().endswith(".parquet") for _, place in shards):
        _import_pyarrow()  # here, so that one that is missing is said at once
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="milnet-list") as executor:
        for (name, place), (column, members, trouble) in zip(shards, executor.map(listed, shards), strict=True):
            found.add_shard(place, column, members)
            if trouble:
                failures.append(ImageError(name, trouble))


def _members(name: str, place: str) -> tuple[list[tuple[str, int, int]], str]:
    """The photos in a tar: name, first byte, bytes of each; and what is wrong with it, "" if nothing is."""
    found: list[tuple[str, int, int]] = []
    links: list[str] = []
    unnamed: list[str] = []
    with _file(place) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as shard:
                while (member := shard.next()) is not None:
                    shard.members = []  # type: ignore[attr-defined]  # it would keep them all
                    if _suffix(member.name) not in SUFFIXES or _is_hidden(member.name):
                        continue
                    if not (member.isfile() or member.islnk() or member.issym()):
                        continue
                    if not member.isfile():
                        links.append(member.name)
                        continue
                    if (text := _as_text(member.name)) != member.name:
                        unnamed.append(text)
                        continue
                    if member.offset_data + member.size > size:
                        return found, f"is cut short: {member.name} and what follows it is missing"
                    found.append((f"{name}/{member.name}", member.offset_data, member.size))
                trouble = [_end_of_tar(file, shard.offset)]
        except tarfile.TarError as error:
            return found, f"is damaged, or no uncompressed tar ({in_short(error)})"
    if links:
        trouble.append(f"{len(links):,} photos in it are links, and left out ({links[0]})")
    if unnamed:
        trouble.append(f"the names of {len(unnamed):,} photos in it are not UTF-8, and left out ({unnamed[0]})")
    return found, "; ".join(filter(None, trouble))


def _is_hidden(path: str) -> bool:
    """Whether a file or one of its folders is hidden, as those that macOS puts beside each photo (`._x.jpg`) are."""
    return any(part.startswith(".") and part.strip(".") for part in path.split("/"))


def _end_of_tar(file: Any, at: int) -> str:
    """What is wrong with the end of a tar, whose last header was before `at`: zeros alone should follow.

    Python takes whatever is no header for the end.
    """
    file.seek(at)
    if not (block := file.read(512)):
        return "has no end mark: it may be cut short"
    while block:
        if block.strip(b"\0"):
            return f"is damaged at byte {at:,}, or several tars in one: what follows there is missing"
        block = file.read(1 << 16)
    return ""


def _rows(name: str, place: str, image_column: str | None) -> tuple[str, list[tuple[str, int, int]]]:
    """The column that holds the photos of a Parquet file, and each photo: name, row, 0."""
    parquet = _import_parquet()
    with parquet.ParquetFile(_arrow_file(place)) as file:
        column, names = _columns(name, file.schema_arrow, image_column)
        ids: list[Any] = [None] * file.metadata.num_rows
        if names:
            at = 0
            for batch in file.iter_batches(65_536, columns=[names]):
                values = batch.column(0)
                if _import_pyarrow().types.is_struct(values.type):
                    values = values.field(names.rpartition(".")[2])
                ids[at : at + len(batch)] = values.to_pylist()
                at += len(batch)
    return column, [(f"{name}/{row if id_ is None else id_}", row, 0) for row, id_ in enumerate(ids)]


def _columns(name: str, schema: Any, wanted: str | None) -> tuple[str, str]:
    """Where the bytes of photos are, and what names them ("" if nothing does)."""
    pa = _import_pyarrow()

    def holds(column: str) -> str:
        """The leaf with the bytes, "" if there is none."""
        kind = schema.field(column).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return column
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{column}.bytes"
        return ""

    candidates = [wanted] if wanted is not None else [*(c for c in _IMAGES if c in schema.names), *schema.names]
    column = next((column for column in candidates if column in schema.names and holds(column)), None)
    if column is None:
        raise UsageError(
            f"{name}: expected a column with the bytes of photos"
            + (" (--image-column)" if wanted is None else f" called {wanted!r}")
            + f", binary or a struct with a field `bytes`; there are: {', '.join(schema.names)}"
        )
    leaf = holds(column)
    if leaf != column and schema.field(column).type.get_field_index("path") >= 0:
        return leaf, f"{column}.path"
    return leaf, next((one for one in _NAMES if one in schema.names and one != column), "")


def _suffix(name: str) -> str:
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


# ---- file systems ----------------------------------------------------------------------------------------------------


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.fs
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", "photos by URL or in Parquet files") from error
    return pyarrow


def _import_parquet() -> Any:
    _import_pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet


_ARROW = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss", "viewfs")  # schemes that pyarrow knows
_HTTP = ("http", "https")  # their options are a part of the address
_systems: dict[tuple[str, str, str], tuple[Any, str]] = {}  # by scheme, host with user, options: each logs in once


class _Url(NamedTuple):
    """A URL, taken apart: names of objects may hold `#`, `%` and `?`, so only `?name=value` at its end is an option.

    A name that itself ends in such a text is followed by `?=`, which is no option.
    """

    scheme: str
    host: str  # with user and password
    path: str
    options: str

    @staticmethod
    def of(place: str) -> _Url:
        scheme, _, rest = place.partition("://")
        before, mark, options = rest.rpartition("?")
        if not mark or "=" not in options:
            before, options = rest, ""
        host, slash, path = before.partition("/")
        return _Url(scheme.lower(), host, slash + path, options if options != "=" else "")


def _system(place: str) -> tuple[Any, str, str]:
    """The file system of a URL, the path in it, and which part of that stands for the host."""
    pa, url = _import_pyarrow(), _Url.of(place)
    key = (url.scheme, url.host, url.options) if url.scheme in _ARROW else (url.scheme, "", "")
    if key not in _systems:
        try:
            if url.scheme in _ARROW:  # without the path: not each that is there may stand in an address
                system, root = pa.fs.FileSystem.from_uri(f"{url.scheme}://{url.host}/?{url.options}".rstrip("?"))
                _systems[key] = system, root.rstrip("/")
            else:
                import fsspec

                _systems[key] = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fsspec.filesystem(url.scheme))), ""
        except (ImportError, TypeError, ValueError) as error:
            raise UsageError(f"{shown(place)}: no way to read such a URL here ({in_short(error)})") from error
    system, root = _systems[key]
    if url.scheme in _HTTP:
        return system, place, root
    if url.scheme not in _ARROW and url.scheme != "file":
        root = url.host.rpartition("@")[2]
    return system, root + url.path, root


def _at_url(place: str) -> list[str]:
    """The URLs of the files that a URL names: itself, what is below it, or what matches it (`**`: at any depth)."""
    pa, url = _import_pyarrow(), _Url.of(place)
    parts: list[str] = []
    try:
        system, path, root = _system(place)
        if system.get_file_info(path).type == pa.fs.FileType.File:
            return [place]
        if _MAGIC.search(path) and url.scheme not in _HTTP:  # list the folder before the first part that is a pattern
            parts = path.split("/")
            fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
            path, parts = "/".join(parts[:fixed]), parts[fixed:]
        entries = system.get_file_info(pa.fs.FileSelector(path, recursive=len(parts) != 1 or parts == ["**"]))
    except FileNotFoundError:
        entries = []
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(place)}: cannot be listed ({in_short(error)})") from error
    names = sorted(entry.path for entry in entries if entry.type == pa.fs.FileType.File)
    if parts:
        names = [name for name in names if _matches(_below(name, path).split("/"), parts)]
    if not parts or parts[-1] == "**":
        names = [name for name in names if _suffix(name) in SUFFIXES and not _is_hidden(_below(name, path))]
    if not names:
        raise UsageError(f"{shown(place)}: there is no such file, folder of photos or pattern")

    def found(name: str) -> str:
        options = url.options or ("=" if "?" in name else "")
        return f"{url.scheme}://{url.host}/{_below(name, root)}" + (f"?{options}" if options else "")

    return [name if _URL.match(name) else found(name) for name in names]


def _below(path: str, folder: str) -> str:
    """A path as seen from a folder it lies in; some file systems begin theirs with a slash, some do not."""
    return path.lstrip("/").removeprefix(folder.strip("/")).lstrip("/")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, folder by folder; hidden names only fit where the pattern has the dot."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        hidden = next((i for i, part in enumerate(parts) if part.startswith(".")), len(parts))
        return any(_matches(parts[i:], pattern[1:]) for i in range(hidden + 1))
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _arrow_file(place: str) -> Any:
    """A file for pyarrow, opened to be read anywhere."""
    if not _URL.match(place):
        return _import_pyarrow().OSFile(place)
    system, path, _ = _system(place)
    return system.open_input_file(path)


def _file(place: str) -> io.BufferedIOBase:
    """The same as a file of Python; of a URL some bytes are read ahead."""
    if not _URL.match(place):
        return Path(place).open("rb")
    return cast(io.BufferedIOBase, _arrow_file(place))


# ---- reading ---------------------------------------------------------------------------------------------------------


class _RowGroup(NamedTuple):
    """The part of a Parquet file that was read last. It may hold far more photos than a piece of work."""

    file: tuple[str, Any, Any] = ("", 0, 0)  # its place, size and time of the last change
    column: str = ""
    first: int = 0
    last: int = 0  # the row behind it
    values: Any = None


class _Kept:
    """What this process keeps from a piece of work to the next."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.group = _RowGroup()

    def forget(self) -> None:
        """No piece follows."""
        self.group = _RowGroup()


_kept = _Kept()


class _Reader:
    """Reads items, from several threads. Keeps the file that it read last."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._open_files: set[Any] = set()
        self._lock = threading.Lock()
        self._parquet: dict[str, tuple[str, Any, Any]] = {}
        self._vain = 0

    def read(self, item: Item) -> bytes:
        """The bytes of a photo; OSError or ValueError where they cannot be had. What is far is tried three times."""
        for wait in _WAITS if _URL.match(item.place) and self._vain < _PATIENCE else ():
            try:
                return self._read(item)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:  # a network has bad moments
                self._own.place = None  # the file that it came from may be the trouble
                time.sleep(wait)
        try:
            return self._read(item)
        except OSError:
            self._vain += 1  # a lost count of two threads does no harm
            raise

    def _read(self, item: Item) -> bytes:
        if item.column:
            return self._row(item)
        if item.start == _WHOLE:
            system, path, _ = _system(item.place)
            with system.open_input_file(path) as file:
                return bytes(file.readall())
        file = self._open(item.place)
        file.seek(item.start)
        data = bytes(file.read(item.size))
        if len(data) < item.size:
            raise OSError(f"the tar ends after {len(data)} of {item.size} bytes")
        return data

    def _open(self, place: str) -> Any:
        if getattr(self._own, "place", None) != place:
            file = _file(place)
            old, self._own.file, self._own.place = getattr(self._own, "file", None), file, place
            with self._lock:
                self._open_files.add(file)
                self._open_files.discard(old)
            if old is not None:
                old.close()
        return self._own.file

    def close(self) -> None:
        """Nothing more is read."""
        for file in self._open_files:
            file.close()

    def _row(self, item: Item) -> bytes:
        with _kept.lock:  # neighbours wait for the same part anyway
            if item.place not in self._parquet:  # asked once a piece: a file may be written anew between two commands
                self._parquet[item.place] = (item.place, *_state(item.place))
            file, group = self._parquet[item.place], _kept.group
            if (file, item.column) != (group.file, group.column) or not group.first <= item.start < group.last:
                _kept.forget()  # two of them would be in memory else
                _kept.group = group = _RowGroup(file, item.column, *_row_group(item))
            data = group.values[item.start - group.first].as_py()
        if data is None:
            raise ValueError("the row holds no bytes")
        return bytes(data)


def _state(place: str) -> tuple[Any, Any]:
    """Size of a file and the time of its last change."""
    if not _URL.match(place):
        found = Path(place).stat()
        return found.st_size, found.st_mtime_ns
    system, path, _ = _system(place)
    info = system.get_file_info(path)
    return info.size, info.mtime_ns


def _row_group(item: Item) -> tuple[int, int, Any]:
    """The row group that a row is in: its first row, its last row + 1, the column with the photos."""
    pa = _import_pyarrow()
    with _import_parquet().ParquetFile(_arrow_file(item.place)) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if item.start < first + count:
                values = file.read_row_group(group, columns=[item.column]).column(0)  # in chunks: it may be large
                if pa.types.is_struct(values.type):
                    values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks])
                return first, first + count, values
            first += count
    raise OSError(f"the file ends before row {item.start}")


def opened(items: Iterable[tuple[Key, Item]], failed: dict[Key, ImageError]) -> Iterator[tuple[Key, Path | bytes]]:
    """What can be decoded: a path for a file of this machine, else the bytes, read ahead by threads.

    In the order of `items`; one whose bytes cannot be had is left out, and its error put into `failed`.
    """
    reader = _Reader()

    def read(item: Item) -> bytes | ImageError:
        try:
            return reader.read(item)
        except FileNotFoundError:
            return ImageError(item.name, "does not exist")
        except UsageError as error:
            return ImageError(item.name, str(error).removeprefix(f"{shown(item.place)}: "))
        except MilnetError:
            raise
        except Exception as error:  # file systems have errors of their own
            return ImageError(item.name, f"cannot be read ({in_short(error)})")

    waiting: deque[tuple[Key, Path | Future[bytes | ImageError]]] = deque()

    def first() -> Iterator[tuple[Key, Path | bytes]]:
        key, source = waiting.popleft()
        if isinstance(source, Path):
            yield key, source
            return
        data = source.result()
        if isinstance(data, ImageError):
            failed[key] = data
        else:
            yield key, data

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="milnet-read") as executor:
        try:
            for key, item in items:
                waiting.append((key, Path(item.place) if is_near(item) else executor.submit(read, item)))
                if len(waiting) > 2 * _THREADS:
                    yield from first()
            while waiting:
                yield from first()
        finally:
            executor.shutdown(cancel_futures=True)
            reader.close()


# ---- work ------------------------------------------------------------------------------------------------------------

# What is said of a photo that ends its worker, sent alone and again.
DEADLY = (
    "the process that worked on it ended, twice: it makes a decoder crash, or takes more memory than there is "
    "(--max-pixels refuses large photos)"
)


class Runner(Protocol):
    """Who does work on photos piece by piece, somewhere."""

    def run(
        self,
        state: Any,
        work: Callable[[Any, Sequence[tuple[int, Item]]], bytes],
        rows: Sequence[int],
        item: Callable[[int], Item],
        most: int,
    ) -> Iterator[tuple[Sequence[int], bytes | None]]:
        """`work(state, [(row, item), ...])` for all `rows`, at most so many at once: what it gave for each piece.

        In no order, each row once. None for a single row that cannot be worked on by anyone: DEADLY.
        """
        ...


class Here:
    """Work in this process, a piece after the other."""

    def run(
        self,
        state: Any,
        work: Callable[[Any, Sequence[tuple[int, Item]]], bytes],
        rows: Sequence[int],
        item: Callable[[int], Item],
        most: int,
    ) -> Iterator[tuple[Sequence[int], bytes | None]]:
        """See Runner."""
        try:
            for piece in pieces(rows, most):
                yield piece, work(state, [(row, item(row)) for row in piece])
        finally:
            _kept.forget()


def pieces(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """The rows in pieces of at most `size` that follow each other without a gap."""
    found, first = [], 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or at - first == size or rows[at] != rows[at - 1] + 1:
            found.append(rows[first:at])
            first = at
    return found
