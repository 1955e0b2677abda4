"""Killed at any moment, a run ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

import killed
import made
from milnet.artifacts import read_manifest, verify_files
from milnet.errors import ArtifactError
from milnet.training import Run


def test_twenty_kills_of_a_training_change_no_bit(tmp_path: Path) -> None:
    killed.survives(made.table)  # the server that starts processes is warm now: the times below are those of the work
    seconds = killed.duration(killed.train, str(tmp_path / "whole"))
    whole = read_manifest(tmp_path / "whole" / "model", "model")
    # 7 kills in the middle of a write, 13 at any time; each run goes on where the last one was killed
    kills: list[tuple[int, float | None]] = [(n, None) for n in (1, 2, 9, 3, 17, 1, 5)]
    kills[3:3] = [(0, delay) for delay in killed.delays(0.6 * seconds, 13, seed=1)]
    deaths, finished = 0, 0
    for number, (in_write, delay) in enumerate(kills):
        folder = tmp_path / f"killed{finished}"
        deaths += not killed.survives(killed.train, str(folder), in_write, seconds=delay)
        if number == len(kills) - 1 and not (folder / "model").exists():
            assert killed.survives(killed.train, str(folder))
        if (folder / "model").exists():
            resumed = read_manifest(folder / "model", "model")
            verify_files(folder / "model", resumed)
            assert resumed.files == whole.files
            assert resumed.digest == whole.digest
            finished += 1
    assert finished >= 1
    assert deaths >= 15  # a run may come to its end before its kill


@made.needs_timm
def test_kills_of_an_extraction_change_no_byte(tmp_path: Path) -> None:
    made.photo_folder(tmp_path / "photos", made.table())
    killed.survives(made.table)
    seconds = killed.duration(killed.extract, str(tmp_path / "whole"), str(tmp_path / "photos"))
    done = 0
    for delay in killed.delays(seconds, 12, seed=2):
        done += not killed.survives(killed.extract, str(tmp_path / "killed"), str(tmp_path / "photos"), seconds=delay)
        if (tmp_path / "killed" / "features").exists():
            break
    assert done >= 1
    if not (tmp_path / "killed" / "features").exists():
        assert killed.survives(killed.extract, str(tmp_path / "killed"), str(tmp_path / "photos"))
    whole, resumed = (read_manifest(tmp_path / name / "features", "features") for name in ("whole", "killed"))
    assert whole.digest == resumed.digest
    verify_files(tmp_path / "killed" / "features", resumed)
    assert sorted(p.name for p in (tmp_path / "killed" / "features").iterdir()) == [
        "errors.csv", "features.npy", "manifest.json", "pixels.txt",
    ]  # fmt: skip


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "run", {"seed": 1})
    Run(tmp_path / "run", {"seed": 1})
    with pytest.raises(ArtifactError, match="unfinished training of other data, options, seed or versions"):
        Run(tmp_path / "run", {"seed": 2})
