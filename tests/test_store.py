"""A search for references, killed at any moment, ends with the same bytes and searches nothing twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import killed
import killed_store
import made
from milnet import pool
from milnet.artifacts import MANIFEST, read_manifest, verify_files
from milnet.errors import ArtifactError
from milnet.pool import make_store
from milnet.references import search_blocks

FILES = ["index.npy", "manifest.json", "pool.npy", "similarity.npy"]


def same_bytes(one: Path, other: Path) -> None:
    verify_files(other, read_manifest(other, "references"))
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def make(folder: Path, **options: Any) -> None:
    table = made.table()
    make_store(table, made.features(table), folder, **{"k": 5, "pool_rows": np.arange(60), "block": 8, **options})


def test_kills_change_no_byte(tmp_path: Path) -> None:
    killed.survives(made.table)
    seconds = killed.duration(killed_store.search, str(tmp_path / "whole"))
    whole = tmp_path / "whole" / "store"
    assert sorted(path.name for path in whole.iterdir()) == FILES
    # At any time, and between the steps of saving; each run goes on where the last one was killed. A run that comes to
    # its end before its kill is compared, and the next one begins anew: how far each comes is up to the machine.
    moments = [("", 0)] * 8 + [("flush", count) for count in (1, 2, 3, 4, 5, 6, 7, 50)]
    left = [moments[at] for at in np.random.default_rng(1).permutation(len(moments))]
    finished, marks, furthest = 0, [0], 0
    for delay in killed.delays(0.4 * seconds, 80, seed=2):
        target, (moment, count) = tmp_path / f"killed{finished}", left[0]
        if not killed.survives(killed_store.search, str(target), moment, count, seconds=None if moment else delay):
            del left[0]
        done = target / ".store.part" / "done.npy"
        if (target / "store").exists():
            same_bytes(whole, target / "store")
            finished, marks = finished + 1, [0]
        elif done.exists() and (target / ".store.part" / "identity.json").exists():
            marks.append(int(np.load(done).sum()))
        assert marks == sorted(marks)
        furthest = max(furthest, marks[-1])
        if not left:
            break
    assert not left and furthest > 0
    target = tmp_path / f"killed{finished}"
    for moment, count in (("rename", 1), ("rename", 2), ("move", 0)):
        assert not killed.survives(killed_store.search, str(target), moment, count)
    assert killed.survives(killed_store.search, str(target))
    same_bytes(whole, target / "store")
    assert sorted(path.name for path in (target / "store").iterdir()) == FILES
    assert [path.name for path in target.iterdir()] == ["store"]


def test_kills_while_an_old_store_is_replaced(tmp_path: Path) -> None:
    killed.survives(made.table)
    folder = tmp_path / "store"
    assert killed.survives(killed_store.search, str(tmp_path))
    shutil.copytree(folder, tmp_path / "whole")
    for moment in ("move", "removal", "moved"):
        assert not killed.survives(killed_store.search, str(tmp_path), moment, 0, True)
        if moment != "move":  # between the two renamings there is none, and the next run sets the new one there
            same_bytes(tmp_path / "whole", folder)  # the old one or the new one, never half of either
    assert killed.survives(killed_store.search, str(tmp_path), "", 0, True)
    same_bytes(tmp_path / "whole", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "whole"]
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_finished_blocks_are_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after three blocks, saved or not: the next run looks for the rest, and its progress counts the first."""
    make(tmp_path / "whole")
    seen: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        for places, found in search_blocks(*arguments, **options):
            seen.append(len(places))
            yield places, found

    monkeypatch.setattr(pool, "search_blocks", counted)

    def stop(done: int, total: int, what: str) -> None:
        assert (total, what) == (90, "searches")
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "store", progress=stop)
    assert seen == [8, 8, 8] and not (tmp_path / "store").exists()
    told: list[int] = []
    make(tmp_path / "store", progress=lambda done, total, what: told.append(done))
    assert sum(seen) == 90 and told[:3] == [24, 32, 40] and told[-1] == 90
    same_bytes(tmp_path / "whole", tmp_path / "store")


def test_other_options_are_refused(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "store", progress=stop)
    for options, text in (
        ({"k": 6}, r"unfinished search with other options or photos: .*\(k: 5 -> 6\), or remove that folder"),
        ({"group": "theme"}, r"\(exclude_group: None -> theme, photos: [0-9a-f]{12} -> [0-9a-f]{12}\)"),
        ({"similarity": "l2"}, r"\(similarity: cosine -> l2\)"),
        ({"pool_rows": np.arange(59)}, r"\(pool: [0-9a-f]{12} -> [0-9a-f]{12}\)"),
    ):
        with pytest.raises(ArtifactError, match=text):
            make(tmp_path / "store", **options)
    make(tmp_path / "store")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with pytest.raises(ArtifactError, match="exists already: choose another name, or pass --overwrite"):
        make(tmp_path / "store")
    make(tmp_path / "store", overwrite=True, k=4)
    assert read_manifest(tmp_path / "store", "references").config["k"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (tmp_path / "store" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"a milnet references folder, but .* has no manifest"):
        make(tmp_path / "store", overwrite=True)
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
