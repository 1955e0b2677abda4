"""Killed at any moment, a run ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import killed
import made
from milnet.artifacts import Manifest, read_manifest, verify_files
from milnet.errors import ArtifactError
from milnet.training import Run


def test_twenty_kills_of_a_training_change_no_bit(tmp_path: Path) -> None:
    killed.survives(made.table)  # the server that starts processes is warm now: the times below are those of the work
    seconds = killed.duration(killed.train, str(tmp_path / "whole"))
    whole = read_manifest(tmp_path / "whole" / "model", "model")
    # Of 20 deaths 7 come in the middle of a write, the others at any time; each run goes on where the last one was
    # killed. A run that comes to its end before its kill is compared, and the next one begins anew.
    delays = killed.delays(0.6 * seconds, 60, seed=1)
    writes = [1, 2, 9, 3, 17, 1, 5]
    deaths, finished = 0, 0
    for delay in delays:
        folder = tmp_path / f"killed{finished}"
        in_write = writes[0] if writes and deaths % 3 == 0 else 0
        if killed.survives(killed.train, str(folder), in_write, seconds=None if in_write else delay):
            compare(folder / "model", whole)
            finished += 1
        else:
            deaths += 1
            writes = writes[1:] if in_write else writes
        if deaths == 20:
            break
    assert (deaths, writes) == (20, [])
    folder = tmp_path / f"killed{finished}"
    assert killed.survives(killed.train, str(folder))
    compare(folder / "model", whole)


def compare(folder: Path, whole: Manifest) -> None:
    """A model has the same files, bit for bit, as one that nobody disturbed."""
    resumed = read_manifest(folder, "model")
    verify_files(folder, resumed)
    assert resumed.files == whole.files
    assert resumed.digest == whole.digest


@made.needs_timm
def test_kills_of_an_extraction_change_no_byte(tmp_path: Path) -> None:
    made.photo_folder(tmp_path / "photos", made.table())
    killed.survives(made.table)
    seconds = killed.duration(killed.extract, str(tmp_path / "whole"), str(tmp_path / "photos"))
    deaths, unharmed = 0, 0
    for delay in killed.delays(seconds, 24, seed=2):
        folder = tmp_path / f"killed{unharmed}"
        deaths += not killed.survives(killed.extract, str(folder), str(tmp_path / "photos"), seconds=delay)
        if (folder / "features").exists():
            if deaths:
                break
            unharmed += 1  # it came to its end before its kill: the next one begins anew
    assert deaths >= 1
    if not (folder / "features").exists():
        assert killed.survives(killed.extract, str(folder), str(tmp_path / "photos"))
    whole, resumed = (read_manifest(one / "features", "features") for one in (tmp_path / "whole", folder))
    assert whole.digest == resumed.digest
    verify_files(folder / "features", resumed)
    assert sorted(p.name for p in (folder / "features").iterdir()) == [
        "errors.csv", "features.npy", "manifest.json", "pixels.txt", "wide.npy", "wide_range.npy",
    ]  # fmt: skip


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "run", {"seed": 1})
    Run(tmp_path / "run", {"seed": 1})
    with pytest.raises(ArtifactError, match=r"training of other data, options, seed or versions \(seed: 1 -> 2\)"):
        Run(tmp_path / "run", {"seed": 2})
