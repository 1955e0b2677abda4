"""The pocket network: what it computes, what folding keeps, that it needs nothing beside torch; its recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from milnet.backbones import load_backbone
from milnet.errors import WeightsError
from milnet.extraction import Extractor
from milnet.pocket import CHANNELS, SEMANTIC, PocketNetwork, fold
from milnet.preprocess import Preprocess

TOOLS = Path(__file__).parents[1] / "tools" / "pocket"


@pytest.fixture(scope="module")
def tools() -> Any:
    """The modules `views` and `train` of tools/pocket."""
    if not TOOLS.is_dir():
        pytest.skip("needs the source tree")
    sys.path.insert(0, str(TOOLS))
    try:
        import train
        import views

        yield SimpleNamespace(train=train, views=views)
    finally:
        sys.path.remove(str(TOOLS))


def test_maps() -> None:
    network = PocketNetwork().eval()
    shapes = [tuple(m.shape[2:]) for m in network.maps(torch.zeros(1, 3, 128, 160))]
    assert shapes == [(32, 40), (16, 20), (8, 10), (8, 10)]
    x = torch.randn(2, 3, 96, 112)
    torch.testing.assert_close(network(x), network.maps(x)[-1].mean((2, 3)))
    assert network(x).shape == (2, CHANNELS)


def test_folding_changes_nothing() -> None:
    """Against the network with its batch norms, whose statistics are random."""
    torch.manual_seed(0)
    widths, depths = (8, 12, 16, 24), (1, 2, 1)
    trained = PocketNetwork(widths, depths, channels=SEMANTIC, norm=True)
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    trained.eval()
    folded = fold(trained, widths, depths)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(folded(x), trained(x), rtol=1e-4, atol=1e-4)


def test_backbone() -> None:
    shipped, untrained = load_backbone("pocket"), load_backbone("pocket", "random:0")
    assert shipped.ranges["last"][1] == shipped.width == untrained.width
    assert shipped.digest != untrained.digest
    assert load_backbone("pocket", digest=shipped.digest).digest == shipped.digest
    with pytest.raises(WeightsError, match="not those the features were made with"):
        load_backbone("pocket", "random:1", digest=shipped.digest)
    x = torch.randint(0, 256, (3, 3, 128, 160), dtype=torch.uint8)
    together, alone = shipped(x), torch.cat([shipped(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.std(0).max() > 0.01  # it tells photos apart


def test_other_weights(tmp_path: Path) -> None:
    network = PocketNetwork()
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    assert load_backbone("pocket", str(tmp_path / "mine.safetensors")).digest != load_backbone("pocket").digest
    save_file(PocketNetwork((8, 8, 8, 8)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="of another shape"):
        load_backbone("pocket", str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        load_backbone("pocket", str(tmp_path / "none.safetensors"))


def test_needs_no_timm() -> None:
    code = (
        "import sys; sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "from milnet.backbones import load_backbone; print(load_backbone('pocket').width)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == load_backbone("pocket").width


def test_lists(tools: Any) -> None:
    """50 of the 200 categories of imagen whole, and 100 scenes, stay out; choices are made on still others."""
    out, held = tools.views.listed("left_out.txt"), tools.views.listed("held_out.txt")
    assert not set(out) & set(held)
    kinds = [name.split("/")[0] for name in out]
    assert kinds.count("imagen") == 250
    assert kinds.count("bsds500") == 100
    category = lambda names, kind: {n.split("/")[1].split("_")[0] for n in names if n.startswith(kind)}  # noqa: E731
    assert len(category(out, "imagen/")) == 50
    assert category(out, "imagenet_sample/") <= category(out, "imagen/")
    assert not category(held, "imagen") & category(out, "imagen/")


def test_the_left_out_take_no_part(tools: Any, test_data: Path) -> None:
    found = tools.views.split_photos(test_data / "data" / "photos")
    assert {kind: len(files) for kind, files in found.items()} == {"learn": 1989, "choose": 120, "out": 391}
    away = {name.split("/")[1].split("_")[0] for name in found["out"] if name.startswith("imagen/")}
    assert not any(name.split("/")[1].split("_")[0] in away for name in found["learn"] + found["choose"])


def made_photos() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (90 + 10 * i, 120, 3), dtype=np.uint8) for i in range(5)]


def test_views(tools: Any) -> None:
    v = tools.views
    first = v.make_views(made_photos(), 3, 12)
    assert torch.equal(first, v.make_views(made_photos(), 3, 12))
    assert not torch.equal(first, v.make_views(made_photos(), 4, 12))
    small = v.halved(first)
    assert small.shape == (12, 3, v.SIDE // 2, v.SIDE // 2)
    corner = first[:, :, :2, :2].float().mean((2, 3))
    assert (small[:, :, 0, 0].float() - corner).abs().max() <= 0.5
    numbers = torch.linspace(-6, 6, 1000)
    assert (v.from_bytes(torch.from_numpy(v.to_bytes(numbers))) - numbers).abs().max() <= 0.5 / 20 + 1e-6


def test_loss(tools: Any) -> None:
    """0 for what the teacher says; 1 for its mean."""
    codes = torch.randint(60, 196, (64, 49, SEMANTIC + 288), dtype=torch.uint8)
    loss = tools.train.Loss(torch.linspace(3, 0.1, SEMANTIC), codes)
    y = tools.views.from_bytes(codes)
    assert loss((y[..., :SEMANTIC], y[..., SEMANTIC:]), y).abs().max() < 1e-6
    mean = y[..., :SEMANTIC].mean((0, 1)).expand(64, 49, SEMANTIC)
    found = loss((mean, y[..., SEMANTIC:]), y)
    torch.testing.assert_close(found[:2], torch.ones(2), rtol=0.05, atol=0.05)


def test_muon_steps_are_orthogonal(tools: Any) -> None:
    for shape in ((8, 40), (40, 8)):
        singular = torch.linalg.svdvals(tools.train.orthogonal(torch.randn(shape), half=False))
        assert singular.min() > 0.5
        assert singular.max() < 1.4


def test_training_stops_and_goes_on(tools: Any, tmp_path: Path) -> None:
    """The whole recipe on noise: shards, training, a stop, the rest, and weights that are the averaged network."""
    rng = np.random.default_rng(0)
    views = tmp_path / "views"
    views.mkdir()
    for kind in ("learn", "choose"):
        np.savez(
            views / f"{kind}-0000.npz",
            views=rng.integers(0, 256, (32, 112, 112, 3), dtype=np.uint8),
            targets=rng.integers(60, 196, (32, 7, 7, SEMANTIC + 288), dtype=np.uint8),
        )
    directions = np.linalg.qr(rng.normal(size=(1280, SEMANTIC)))[0].astype(np.float32)
    mean = rng.uniform(0, 1, 1280).astype(np.float32)
    variance = np.linspace(3, 0.1, SEMANTIC).astype(np.float32)
    np.savez(views / "targets.npz", mean=mean, variance=variance, directions=directions)

    def options(samples: int) -> Any:
        return SimpleNamespace(
            views=views, out=tmp_path / "out", samples=samples, batch=16, widths=[8, 8, 8, 8], depths=[1, 1, 1],
            optimiser="muon", bfloat16=False, threads=1, every=0.0,
        )  # fmt: skip

    tools.train.train(options(32))
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 2
    tools.train.train(options(64))
    lines = (tmp_path / "out" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["samples", "16", "32", "48", "64"]
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    pupil = tools.train.Pupil([8, 8, 8, 8], [1, 1, 1])
    pupil.load_state_dict(state["average"])
    shipped = PocketNetwork((8, 8, 8, 8), (1, 1, 1))
    shipped.load_state_dict(load_file(tmp_path / "out" / "pocket.safetensors"))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        known, got = pupil.eval().network(x), shipped(x)
    inside = directions.T @ mean
    expected = known * torch.from_numpy(np.sqrt(variance)) + torch.from_numpy(inside)
    torch.testing.assert_close(got[:, :-1], expected, rtol=0.02, atol=0.1)
    rest = torch.full((2,), float(np.sqrt(mean @ mean - inside @ inside)))
    torch.testing.assert_close(got[:, -1], rest, rtol=0.01, atol=0.01)


def test_shipped_features_are_the_networks(test_data: Path) -> None:
    """The pool's features are what the shipped network makes of the photos, up to their storage as float16."""
    from milnet.annotations import load_table
    from milnet.features import Features
    from milnet.places import bundled

    table, _ = load_table(bundled("pool"))
    stored = Features(bundled("pool") / "features" / "pocket", table)
    config = stored.manifest.config
    extractor = Extractor.build(load_backbone("pocket", digest=config["weights"]), Preprocess(**config["preprocess"]))
    rows = [0, 100, 300, 450, 600]
    files = [(row, test_data / "data" / "oasis" / table.images[row]) for row in rows]
    for result in extractor.stream(files):
        assert result.features is not None
        assert result.pixels == stored.pixels[result.key]
        np.testing.assert_allclose(result.features, stored.values[result.key].astype(np.float32), rtol=2e-2, atol=2e-2)
