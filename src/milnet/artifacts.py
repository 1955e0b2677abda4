"""A folder on disk: arrays, text columns and a `manifest.json` that says what it was made from.

Every stage writes one. Files appear under a temporary name and are renamed, the manifest last, so a folder that has
a manifest is complete. The digest of an artifact covers its kind, format, configuration, inputs and the content of its
files, never dates, paths or versions: the same inputs give the same digest whether or not the work was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.errors import ArtifactError, UsageError
from milnet.places import is_bundled
from milnet.version import __version__

MANIFEST = "manifest.json"
# The newest format this version writes, by kind. A reader refuses a newer one and says what to do with an older one.
FORMATS = {"data": 1, "features": 1, "references": 1, "model": 3, "taste": 1, "export": 1, "scores": 1}


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def strict(value: Any) -> Any:
    """NaN and infinities (the correlation of something constant) as null, which is what JSON has."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_name(name: str, option: str) -> str:
    """`name`, which becomes one folder below ours; raises UsageError when it would lead elsewhere or be hidden."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "_-." for c in name):
        raise UsageError(f"{option} {name}: expected letters, digits, '_', '-' and '.', and no '.' at the start")
    return name


def digest_text(text: str) -> str:
    """sha256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_array(array: NDArray[Any]) -> str:
    """sha256 of dtype, shape and values in C order."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def make_ordinary(path: Path) -> None:
    """Give a file or folder that was made for its owner alone the permissions that others have."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success flush it to disk and rename it onto `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        make_ordinary(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write one value a line. A value with a line break would shift all later rows, so it is refused."""
    for row, line in enumerate(lines):
        if "\n" in line or "\r" in line:
            raise ArtifactError(f"{path}: the value of row {row} contains a line break: {line!r}")
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> tuple[str, ...]:
    """Read a file written by `write_lines`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: the folder is incomplete; make it again") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text ({error}): make the folder again") from error
    return tuple(text.split("\n")[:-1])


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file (no pickled objects) under a temporary name, then rename it."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path, *, mmap: bool = False) -> NDArray[Any]:
    """Read a `.npy` file; arrays of objects, which could run code, are refused."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: the folder is incomplete; make it again") from None
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is not a readable .npy array ({error}): make the folder again") from error
    return array


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name, then rename it; what JSON does not have becomes null."""
    write_text(path, json.dumps(strict(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours; ArtifactError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: the folder is incomplete; make it again") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON ({error}): make the folder again") from error


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made from."""

    kind: str  # "data", "features", "references", "model"
    config: Mapping[str, Any]  # everything that decides the content; part of the digest
    files: Mapping[str, str]  # file name -> sha256; part of the digest
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> digest of what it was made from
    counts: Mapping[str, Any] = field(default_factory=dict)  # for people
    notes: Mapping[str, Any] = field(default_factory=dict)  # paths, dates: not part of the digest
    format: int = 1
    milnet: str = __version__

    def place(self, folder: Path, name: str) -> Path:
        """Where a file of `folder` lies: in it; of what is shipped, where the note `borrowed` says that it is."""
        borrowed = self.notes.get("borrowed")
        if isinstance(borrowed, Mapping) and name in borrowed and is_bundled(folder):
            return folder / str(borrowed[name])
        return folder / name

    @property
    def digest(self) -> str:
        """Identity of the content: 64 hexadecimal digits."""
        return digest_text(
            canonical_json([self.kind, self.format, dict(self.config), dict(self.files), dict(self.inputs)])
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`: the last file of a folder, which makes it complete."""
    data = {**manifest.__dict__, "digest": manifest.digest}
    write_text(
        folder / MANIFEST, json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    )


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read and check the manifest of `folder`.

    Raises ArtifactError when the folder is no artifact, is of another kind than `kind`, or of another format.
    """
    path = folder / MANIFEST
    expected = f"a milnet {kind} folder" if kind else "a milnet folder"
    if not path.is_file():
        state = "does not exist" if not folder.exists() else f"has no {MANIFEST} (unfinished, or not made by milnet)"
        raise ArtifactError(f"expected {expected}, but {folder} {state}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = set(Manifest.__dataclass_fields__)
        manifest = Manifest(**{name: value for name, value in data.items() if name in names})
        recorded, digest = data["digest"], manifest.digest
        newest = FORMATS.get(manifest.kind)
        readable = newest is not None and manifest.format <= newest
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a milnet manifest ({error!r}): make the folder again") from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"expected {expected}, but {folder} is a {manifest.kind!r} folder")
    if not readable:
        raise ArtifactError(
            f"{folder}: {manifest.kind} format {manifest.format} was written by milnet {manifest.milnet}; this is "
            f"milnet {__version__}, which reads up to {newest}: upgrade milnet, or make the folder again"
        )
    if recorded != digest:
        raise ArtifactError(f"{path} was changed by hand: its digest does not fit its content; make the folder again")
    return manifest


def verify_files(folder: Path, manifest: Manifest, names: Sequence[str] | None = None) -> None:
    """Compare files of `folder` with the sha256 in its manifest; ArtifactError names the first that differs."""
    for name, expected in manifest.files.items():
        if names is not None and name not in names:
            continue
        path = manifest.place(folder, name)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: the folder is incomplete; make it again")
        if digest_file(path) != expected:
            raise ArtifactError(f"{path} does not have the content its manifest names: it was changed or damaged")


def check_new_folder(target: Path, kind: str, *, overwrite: bool = False) -> None:
    """Raise ArtifactError, before any work is done, when `new_folder` would refuse `target`."""
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target} exists already: choose another name, or pass --overwrite to replace it")
    ours = (target / MANIFEST).is_file() or (target.is_dir() and not any(target.iterdir()))
    if target.exists() and not ours:
        raise ArtifactError(
            f"{target} was not made by milnet (it has no {MANIFEST}), so --overwrite does not replace it: "
            f"choose another name"
        )
    if (target / MANIFEST).is_file():
        read_manifest(target, kind)  # a DATA folder is not replaced by a MODEL


@contextmanager
def new_folder(target: Path, kind: str, *, overwrite: bool = False, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Build a folder under a temporary name beside `target`, then rename it into place.

    An existing `target` is refused unless `overwrite`; then it is replaced only after the new one is complete, and
    only when it is a milnet folder of the same `kind` or empty: what a user keeps there is never removed. What `keep`
    names is taken over from the old folder.
    """
    check_new_folder(target, kind, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield building
        make_ordinary(building)
        put_in_place(building, target, keep)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(finished: Path, target: Path, keep: Sequence[str] = ()) -> None:
    """Rename a finished folder onto `target`; what is there goes only afterwards, but for what `keep` names.

    Half-written files that a kill left in `finished` are removed first.
    """
    for leftover in finished.glob(".*.tmp"):
        leftover.unlink()
    old: Path | None = None
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
        target.replace(old)
    finished.replace(target)
    if old is not None:
        for name in keep:
            if (old / name).exists():
                (old / name).replace(target / name)
        shutil.rmtree(old)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings of two nested configurations differ, as "name: old -> new"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(differences(a, b))
        elif a != b:
            found.append(f"{name}: {str(a)[:40]} -> {str(b)[:40]}")
    return ", ".join(text for text in found if text)
