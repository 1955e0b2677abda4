"""Checkpoints of the published code: round trips, what is refused, and that no code in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from milnet.artifacts import read_manifest
from milnet.checkpoints import load_model
from milnet.errors import ArtifactError, MilnetError, UsageError, WeightsError
from milnet.model.graph import Graph
from milnet.published import convert, graph_from_state, load_converted, predict, read_checkpoint


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """A published state dict of sizes 6-3-3, 4 nodes, 5 bins, 2 layers: small random numbers, float32."""
    generator = torch.Generator().manual_seed(seed)

    def block(name: str, inputs: int) -> dict[str, Tensor]:
        return {
            f"{name}.0.weight": 0.1 * torch.randn(3, inputs, 1, 1, generator=generator),
            f"{name}.0.bias": torch.randn(3, generator=generator),
            f"{name}.1.weight": torch.randn(3, generator=generator),
            f"{name}.1.bias": torch.randn(3, generator=generator),
            f"{name}.1.running_mean": torch.randn(3, generator=generator),
            f"{name}.1.running_var": 1 + torch.rand(3, generator=generator),
            f"{name}.1.num_batches_tracked": torch.tensor(7),
        }

    state = block("refer_reduce_fc", 6)
    for layer in (1, 2):
        for part in ("g", "W", "theta", "phi"):
            state |= block(f"gcn{layer}.{part}", 3)
    for name in ("gcn_fc", "fc"):
        state[f"{name}.weight"] = 0.1 * torch.randn(5, 12, generator=generator)
        state[f"{name}.bias"] = torch.randn(5, generator=generator)
    return state


def nodes(photos: int = 9) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(photos, 4, 6)) * 20  # far outside +-8: nothing may be clamped


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(random_state(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


# ---- round trips -----------------------------------------------------------------------------------------------------


def test_convert(checkpoint: Path, tmp_path: Path) -> None:
    direct = predict(graph_from_state(read_checkpoint(checkpoint)), nodes())
    manifest = convert(checkpoint, tmp_path / "model")
    np.testing.assert_array_equal(predict(tmp_path / "model", nodes()), direct)
    np.testing.assert_array_equal(predict(str(tmp_path / "model"), nodes()), direct)
    np.testing.assert_allclose(direct.sum(1), 1, rtol=0, atol=1e-6)  # float32 inside
    assert direct.shape == (9, 5) and direct.std(0).min() > 1e-3
    assert read_manifest(tmp_path / "model", "model") == manifest
    assert manifest.config["seen"] == "unknown (net.pth)" and manifest.config["values"] == [1, 2, 3, 4, 5]
    network = load_converted(tmp_path / "model")
    assert manifest.counts["parameters"] == sum(p.numel() for p in network.parameters())
    assert (network.references, len(network.layers), network.training) == (3, 2, False)


def test_the_features_are_taken_as_they_are(checkpoint: Path) -> None:
    """No standardiser, no clamping: ten times the features is ten times the input of the first layer."""
    network = graph_from_state(read_checkpoint(checkpoint))
    x = torch.from_numpy(nodes()).float()
    assert torch.equal(network.standardise(1000 * x), 1000 * x)


def test_batches_change_nothing(checkpoint: Path) -> None:
    network = graph_from_state(read_checkpoint(checkpoint))
    whole = predict(network, nodes())
    np.testing.assert_allclose(predict(network, nodes(), batch=2), whole, rtol=0, atol=1e-6)  # float32 sums
    assert predict(network, nodes()[:0]).shape == (0, 5)
    assert predict(network, torch.from_numpy(nodes()).float()).tolist() == whole.tolist()


def test_float64_stays_float64(tmp_path: Path) -> None:
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in random_state().items()}
    torch.save(state, tmp_path / "net.pth")
    convert(tmp_path / "net.pth", tmp_path / "model")
    assert load_converted(tmp_path / "model").read.weight.dtype == torch.float64
    direct = predict(graph_from_state(state), nodes())
    np.testing.assert_array_equal(predict(tmp_path / "model", nodes()), direct)
    single = predict(graph_from_state(random_state()), nodes())
    np.testing.assert_allclose(single, direct, rtol=0, atol=1e-5)  # float32 against float64
    assert (single != direct).any()


@pytest.mark.parametrize("key", ["state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module.", "module.model."])
def test_wrapped_checkpoints(key: str, prefix: str, tmp_path: Path) -> None:
    state = random_state()
    torch.save({key: {prefix + n: t for n, t in state.items()}, "epoch": 3, "best": 0.7}, tmp_path / "net.pth")
    found = read_checkpoint(tmp_path / "net.pth")
    assert list(found) == list(state) and all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_other_files(tmp_path: Path) -> None:
    """The format before zip, and safetensors."""
    state = random_state()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "net.safetensors")
    expected = predict(graph_from_state(state), nodes())
    for name in ("old.pth", "net.safetensors"):
        np.testing.assert_array_equal(predict(graph_from_state(read_checkpoint(tmp_path / name)), nodes()), expected)


def test_a_folder_is_replaced_only_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    first = convert(checkpoint, tmp_path / "model")
    with pytest.raises(ArtifactError, match="exists already"):
        convert(checkpoint, tmp_path / "model")
    again = convert(checkpoint, tmp_path / "model", overwrite=True)
    assert again.digest == first.digest
    torch.save(random_state(1), checkpoint)
    assert convert(checkpoint, tmp_path / "model", overwrite=True).digest != first.digest


# ---- what is refused -------------------------------------------------------------------------------------------------


class Evil:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_no_code_runs(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "net.pth"
    data = {**random_state(), "extra": Evil(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(data, protocol=2))
        pickle.loads(path.read_bytes())["extra"].close()
    else:
        torch.save(data, path, _use_new_zipfile_serialization=kind == "zip")
        torch.load(path, weights_only=False)["extra"].close()
    assert mark.exists()  # the file is as bad as it should be
    mark.unlink()
    with pytest.raises(WeightsError, match=r"cannot be loaded as plain tensors .*pickled code are refused"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="pickled code are refused"):
        convert(path, tmp_path / "model")
    assert not mark.exists() and not (tmp_path / "model").exists()


def test_damaged_files(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    damaged = [whole[:size] for size in (0, 1, 10, len(whole) // 2, len(whole) - 30)]
    for data in [*damaged, b"\x80", b"\x80\x02.", b"PK\x03\x04", b"hello", b"\x80\x02}."]:
        checkpoint.write_bytes(data)
        with pytest.raises(WeightsError, match=r"net\.pth (cannot be loaded as plain tensors|holds no state dict)"):
            read_checkpoint(checkpoint)
    (tmp_path / "net.safetensors").write_bytes(b"hello")
    with pytest.raises(WeightsError, match="cannot be loaded as plain tensors"):
        read_checkpoint(tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="is no file: expected a checkpoint of the published code"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is no file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("data", [[1, 2], {}, {"a": 1}, torch.ones(3), {"state_dict": {}}, {"model": {"a": "b"}}])
def test_what_is_no_state_dict(data: object, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="holds no state dict: expected names with tensors"):
        read_checkpoint(tmp_path / "net.pth")


def test_another_network_is_named(tmp_path: Path) -> None:
    state = random_state()
    del state["gcn1.phi.1.bias"]
    state["gcn2.extra"] = torch.ones(2)
    state["gcn2.g.0.bias"] = torch.ones(4)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError,
        match=r"net.pth is not of the published graph network: 1 entries missing \(gcn1.phi.1.bias\), 1 unknown "
        r"\(gcn2.extra\), 1 of another size \(gcn2.g.0.bias\)",
    ):
        convert(tmp_path / "net.pth", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("shape", [(4, 6), (9, 5, 6), (9, 4, 7), (9, 4, 6, 1)])
def test_nodes_of_another_shape(shape: tuple[int, ...], checkpoint: Path) -> None:
    network = graph_from_state(read_checkpoint(checkpoint))
    with pytest.raises(UsageError, match=r"expected node features \[B, 4, 6\], got \("):
        predict(network, np.zeros(shape))


def test_a_converted_model_sees_no_photos(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "model")
    with pytest.raises(UsageError, match=r"is a converted checkpoint: it has no pool.*published\.predict"):
        load_model(tmp_path / "model")


def test_a_damaged_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="changed or damaged"):
        predict(tmp_path / "model", nodes())
    with pytest.raises(MilnetError, match="does not exist"):
        predict(tmp_path / "none", nodes())


def test_a_network_can_be_passed() -> None:
    network = graph_from_state(random_state())
    assert isinstance(network, Graph) and predict(network, nodes()).dtype == np.float64
