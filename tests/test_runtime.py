"""onnxruntime beside PyTorch: the same features up to rounding, made once, and the faster one by measurement."""

from __future__ import annotations

import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import made
import milnet.runtime as subject
from milnet.backbones import Backbone
from milnet.cli import app
from milnet.errors import MissingExtraError, UsageError
from milnet.extraction import Extractor
from milnet.places import user_folder
from milnet.pocket import POCKET_CONFIG, PocketNetwork
from milnet.preprocess import Preprocess
from milnet.runtime import Engine, ExportError, backbone_file, export_backbone, make_engine, open_session
from milnet.scoring import Scorer

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path]:
    """A small backbone, and its ONNX file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PocketNetwork((8, 8, 8, 8), (1, 1, 1), channels=16)
    backbone = Backbone("small", network, "random:0", POCKET_CONFIG)
    path = tmp_path_factory.mktemp("runtime") / "small.onnx"
    export_backbone(backbone, path)
    return backbone, path


@pytest.fixture
def small(exported: tuple[Backbone, Path]) -> Backbone:
    """The backbone, whose file the user of this test has already."""
    backbone, path = exported
    place = user_folder() / "onnx"
    place.mkdir(parents=True)
    before = set(place.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "export_backbone", lambda _backbone, target: target.write_bytes(path.read_bytes()))
        assert backbone_file(backbone) not in before
    return backbone


def extractor(backbone: Backbone, runtime: str = "torch", **how: Any) -> Extractor:
    return Extractor.build(backbone, Preprocess((64, 96)), workers=0, runtime=runtime, **how)


def features(one: Extractor, photos: list[Any]) -> np.ndarray[Any, Any]:
    found = {result.key: result.features for result in one.stream(enumerate(photos))}
    return np.stack([found[i] for i in range(len(photos))])


def pictures() -> list[Any]:
    return [made.photo(i, *[(96, 72), (72, 96), (160, 64)][i % 3]) for i in range(11)]


def test_features_are_those_of_pytorch(small: Backbone) -> None:
    expected = features(extractor(small), pictures())
    for batch in (1, 4):
        found = features(extractor(small, "onnx", batch=batch), pictures())
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    alone = features(extractor(small, "onnx"), pictures()[:1])
    assert np.array_equal(alone[0], features(extractor(small, "onnx"), pictures())[0])  # padded to the same batch


def test_the_file_is_made_once_and_by_its_weights(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    path = backbone_file(small)
    monkeypatch.setattr(subject, "export_backbone", lambda *_: pytest.fail("made again"))
    assert backbone_file(small) == path
    asked = []
    monkeypatch.setattr(subject, "export_backbone", lambda _, target: asked.append(target) or target.write_bytes(b"x"))
    other = small.replica()
    other.network = PocketNetwork((8, 8, 8, 8), (1, 1, 1), channels=16).eval()
    assert backbone_file(other) != path
    assert len(asked) == 1


def test_a_file_that_was_damaged(small: Backbone) -> None:
    path = backbone_file(small)
    path.write_bytes(b"no network")
    with pytest.raises(ExportError, match=r"\.onnx cannot be run by onnxruntime \(.*\): remove it and try again"):
        features(extractor(small, "onnx"), pictures()[:1])


def test_where_onnxruntime_cannot_auto_takes_pytorch(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = features(extractor(small), pictures())
    backbone_file(small).write_bytes(b"no network")
    one = extractor(small, "auto")
    np.testing.assert_array_equal(features(one, pictures()), expected)
    assert one.engine is not None and "PyTorch: " in one.engine.said and "remove it and try again" in one.engine.said

    class Session:
        def run(self, _: Any, feed: dict[str, Any]) -> list[Any]:
            raise RuntimeError("a shape that it was not made for")

    monkeypatch.setattr(subject, "open_session", lambda *_: Session())
    one = extractor(small, "auto")
    np.testing.assert_array_equal(features(one, pictures()), expected)
    assert one.engine is not None and "a shape that it was not made for" in one.engine.said
    with pytest.raises(ExportError, match=r"the backbone small fails in onnxruntime on photos of \d+x\d+ \(.*a shape"):
        features(extractor(small, "onnx"), pictures())
    monkeypatch.setattr(subject, "backbone_file", made_nowhere)
    one = extractor(small, "auto")
    assert one.engine is not None and one.engine.said == "PyTorch: no place to write to"


def made_nowhere(_: Backbone) -> Path:
    raise OSError("no place to write to")


def test_a_network_that_branches_by_the_size_is_refused(tmp_path: Path) -> None:
    """The exporter follows one size alone: what it wrote is compared at others, too."""

    class Branches(PocketNetwork):
        def forward_features(self, x: torch.Tensor) -> Any:
            return super().forward_features(x if x.shape[2] <= x.shape[3] else x * 0.5)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone("branches", Branches((8, 8, 8, 8), (1, 1, 1), channels=16), "random:0", POCKET_CONFIG)
    with pytest.raises(ExportError, match="the backbone branches "):
        export_backbone(backbone, tmp_path / "branches.onnx")


def test_an_export_that_computes_something_else_is_refused(
    exported: tuple[Backbone, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, path = exported
    other = backbone.replica()
    other.mean = backbone.mean + 20
    monkeypatch.setattr(
        subject, "write_onnx", lambda _n, _e, _i, _o, target, **_: target.write_bytes(path.read_bytes())
    )
    with pytest.raises(ExportError, match="the backbone small as ONNX gives other features than PyTorch"):
        export_backbone(other, tmp_path / "other.onnx")


def test_the_faster_one_is_taken_and_said(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Backbone.forward
    passed: list[float] = []  # seconds of a clock that only passes move: on a real one a busy machine could choose
    monkeypatch.setattr(subject, "time", SimpleNamespace(perf_counter=lambda: sum(passed)))
    for onnx_takes, torch_takes, chosen in ((0.02, 0.001, "PyTorch"), (0.001, 0.02, "onnxruntime")):

        class Session:
            def run(self, _: Any, feed: dict[str, Any], seconds: float = onnx_takes) -> list[Any]:
                passed.append(seconds)
                return [np.zeros((len(feed["photo"]), small.width), np.float32)]

        def forward(self: Backbone, x: torch.Tensor, seconds: float = torch_takes) -> torch.Tensor:
            passed.append(seconds)
            return plain(self, x)

        monkeypatch.setattr(subject, "open_session", lambda *_, made=Session: made())
        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "forward", forward)
            one = extractor(small, "auto")
            assert one.engine is not None and one.engine.said == ""
            found = features(one, pictures())
        assert one.engine.said.startswith(f"{chosen} passes the photos through small: onnxruntime ")
        assert (found == 0).all() == (chosen == "onnxruntime")


def test_an_engine_in_another_process(small: Backbone) -> None:
    one = extractor(small, "onnx")
    assert one.engine is not None
    expected = features(one, pictures()[:2])
    again = pickle.loads(pickle.dumps(one.engine))
    assert np.array_equal(features(replace(one, engine=again), pictures()[:2]), expected)


def test_what_onnxruntime_does_not_do(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    how: Any = {"device": "cpu", "passes": 1, "maps": False}
    assert make_engine(small, "torch", **how) is None
    with pytest.raises(UsageError, match="--runtime tensorrt: expected torch, onnx or auto"):
        make_engine(small, "tensorrt", **how)
    with pytest.raises(UsageError, match="--runtime onnx: wide maps are made by PyTorch alone"):
        make_engine(small, "onnx", **{**how, "maps": True})
    with pytest.raises(UsageError, match="onnxruntime computes on the CPU here, not on cuda; pass --device cpu"):
        make_engine(small, "onnx", **{**how, "device": "cuda"})
    assert make_engine(small, "auto", **{**how, "maps": True}) is None
    assert make_engine(small, "auto", **{**how, "device": "cuda"}) is None

    def refused(*_: Any) -> None:
        raise ExportError("the backbone small cannot be written as ONNX (why): PyTorch alone runs it")

    monkeypatch.setattr(subject, "backbone_file", refused)
    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        make_engine(small, "onnx", **how)
    engine = make_engine(small, "auto", **how)
    assert engine is not None
    assert not engine.wanted([])
    assert engine.said == "PyTorch: the backbone small cannot be written as ONNX (why): PyTorch alone runs it"


def test_without_the_packages(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    find = subject.importlib.util.find_spec
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None if name in lacking else find(name))
    lacking = ["onnxruntime"]
    for runtime in ("onnx", "auto"):
        missing = r"--runtime onnx needs .*'onnxruntime'.*pip install 'milnet\[onnx\]'"
        with pytest.raises(MissingExtraError, match=missing):
            make_engine(small, runtime, device="cpu", passes=1, maps=False)
    lacking = ["onnx", "onnxscript"]  # what is there already is run without them
    assert make_engine(small, "onnx", device="cpu", passes=1, maps=False) is not None
    backbone_file(small).unlink()
    with pytest.raises(MissingExtraError, match="writing the backbone small as ONNX needs the package 'onnx'"):
        make_engine(small, "onnx", device="cpu", passes=1, maps=False)


def test_a_session_has_the_threads_of_a_pass(small: Backbone) -> None:
    assert open_session(backbone_file(small), 1).get_session_options().intra_op_num_threads == 1
    engine = Engine(small, probe=False, passes=1)
    engine(np.zeros((1, 64, 64, 3), np.uint8))
    assert list(engine._sessions) == [torch.get_num_threads()]


def test_commands_take_the_runtime(tmp_path: Path) -> None:
    """`features` and `score`, of files and of a tar; with Ray nobody could say which one made a number."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{seed}.png" for seed in range(4)]
    for seed, name in enumerate(names):
        made.photo(seed).save(folder / name)
    (tmp_path / "votes.csv").write_text("image,v1,v2,v3\n" + "".join(f"{name},1,2,1\n" for name in names))
    with tarfile.open(tmp_path / "t.tar", "w") as shard:
        shard.add(folder, "in")
    run = CliRunner().invoke
    numbers = []
    for runtime in ("torch", "onnx", "auto"):
        data = tmp_path / runtime
        assert run(app, ["import", "table", str(tmp_path / "votes.csv"), "-o", str(data)]).exit_code == 0
        call = ["features", str(data), "--backbone", "pocket", "--images", str(folder), "--runtime", runtime]
        result = run(app, call)
        assert result.exit_code == 0, result.output
        assert ("passes the photos through pocket: onnxruntime " in result.output) == (runtime == "auto")
        numbers.append(np.load(data / "features" / "pocket" / "features.npy").astype(float))
        result = run(app, ["score", str(tmp_path / "t.tar"), "--model", "pocket", "--runtime", runtime])
        assert result.exit_code == 0 and "4 photos scored" in result.output, result.output
        assert ("passes the photos through pocket: onnxruntime " in result.output) == (runtime == "auto")
    assert 0 < abs(numbers[0] - numbers[1]).max() < 0.01  # float16, and made by another engine
    for call in (["score", str(folder)], ["features", str(tmp_path / "auto"), "--backbone", "pocket", "--name", "x"]):
        result = run(app, [*call, "--workers", "ray", "--runtime", "auto"])
        assert result.exit_code != 0 and "each worker would measure and choose for itself" in str(result.exception)


@pytest.mark.slow
def test_the_command_scores_the_same(test_data: Path, tmp_path: Path) -> None:
    """Far inside what a cache is shared at: 1e-5, as over batches and threads."""
    paths = [*sorted((test_data / "data" / "oasis" / "images").iterdir())[::20]]
    paths += sorted((test_data / "data" / "photos").rglob("*.jpg"))[::50]
    plain = Scorer.load("pocket").score(paths)
    found = Scorer.load("pocket", runtime="onnx").score(paths)
    assert max(abs(a.score - b.score) for a, b in zip(plain, found, strict=True)) < 1e-5
    listed = tmp_path / "list"
    listed.write_text("\n".join(map(str, paths[:12])))
    arguments = ["score", "--files-from", str(listed), "--model", "pocket", "--no-cache", "--runtime", "auto"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "passes the photos through pocket: onnxruntime " in result.output
