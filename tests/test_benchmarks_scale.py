"""The capacity model computes what it says; exponents are slopes; both commands run."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from made import photo

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_the_capacity_of_given_figures(capsys: Any, tmp_path: Path) -> None:
    """3.6 ms a photo are one core-hour for a million photos; 3 GFLOP at 30 TFLOP/s are 100 us of a GPU."""
    kinds = ("photo as it is", "12-megapixel JPEG")
    seconds = {f"m: decode, {kind}": [0.001, 0.001, 0.5] for kind in kinds}  # the median counts
    seconds |= {"m: forward": [0.0021], "m: judge, pool of 9": [0.0004], "write parquet": [0.0001]}
    sizes = {**dict.fromkeys(kinds, 2_000_000), "score in parquet": 500}
    file = tmp_path / "capacity.json"
    figures = {"machine": "made", "photos": 3, "seconds": seconds, "flops": {"m": 3e9}, "bytes": sizes}
    file.write_text(json.dumps(figures))
    import_module("capacity").main(["--from", str(file), "--price-core", "2", "--price-gpu", "10", "--cores", "10"])
    said = capsys.readouterr().out
    assert "m, photo as it is: 3.6 core-ms a photo; the most is forward (58%)" in said
    assert "100 us of it a photo (arithmetic); it needs 15 cores" in said
    cells = [line.split() for line in said.splitlines() if line.strip().startswith("100,000,000")]
    assert cells[0] == ["100,000,000", "100", "200", "0.42", "2.8", "42", "111", "200.0", "0.05"]
    assert len(cells) == len(kinds)


def test_capacity_measures(capsys: Any, tmp_path: Path) -> None:
    for seed in range(4):
        photo(seed).save(tmp_path / f"{seed}.jpg")
    file = tmp_path / "capacity.json"
    import_module("capacity").main([str(tmp_path), "--photos", "4", "--rounds", "1", "-o", str(file)])
    data = json.loads(file.read_text())
    assert {"pocket: forward", "pocket: judge, pool of 677", "write csv"} <= data["seconds"].keys()
    assert all(0 < second < 60 for rounds in data["seconds"].values() for second in rounds)
    assert data["flops"]["pocket"] > 1e8
    assert all(size > 100 for size in data["bytes"].values())
    assert "1,000,000" in capsys.readouterr().out


def test_capacity_wants_one_of_both(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        import_module("capacity").main([])
    assert "expected either IMAGES to measure with, or --from FILE" in capsys.readouterr().err


def test_an_exponent_is_a_slope() -> None:
    growth = import_module("growth")
    assert growth.exponent([10, 100, 1000], [0.5, 5.0, 50.0]) == pytest.approx(1)
    assert growth.exponent([2, 4, 8], [4.0, 16.0, 64.0]) == pytest.approx(2)


def test_growth_command(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    sizes = ["--pool", "50,100", "--references", "2,4", "--among", "60", "--photos", ""]
    import_module("growth").main([*sizes, "--rounds", "1", "-o", str(file)])
    found = json.loads(file.read_text())
    assert len(found) == 4  # the machine, two kinds of models against pools, one against references
    assert capsys.readouterr().out.count("exponent") == 3
