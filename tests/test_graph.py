"""The networks: golden outputs of the published code, an independent forward pass, and what must stay true of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milnet.errors import WeightsError
from milnet.model.common import Pool, Standardise
from milnet.model.graph import Adjacency, Graph, GraphLayer, covariance, matrix_power, monge_kantorovich
from milnet.model.single import Single
from milnet.published import graph_from_state, predict, published_names, read_checkpoint

# Of docs/method.md: the published network in float64 with the state of `golden_state` on `golden_nodes`.
GOLDEN = [
    [0.2003950, 0.1462709, 0.0663204, 0.0412278, 0.0557864, 0.1127462, 0.1548423, 0.1055152, 0.0591771, 0.0577186],
    [0.1999960, 0.1452021, 0.0663015, 0.0416938, 0.0565898, 0.1133631, 0.1540150, 0.1048840, 0.0594291, 0.0585255],
]
ADJACENCIES = get_args(Adjacency)


def golden_state(window: tuple[int, ...] = (1, 1), prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a published checkpoint of sizes 8-4-4 with 5 nodes and 10 bins, filled by the formula."""

    def block(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        norm = {f"{name}.1.{entry}": (outputs,) for entry in ("weight", "bias", "running_mean", "running_var")}
        return {
            f"{name}.0.weight": (outputs, inputs, *window),
            f"{name}.0.bias": (outputs,),
            **norm,
            f"{name}.1.num_batches_tracked": (),
        }

    shapes = block("refer_reduce_fc", 8, 4)
    for layer in range(1, 7):
        for part in ("g", "W", "theta", "phi"):
            shapes |= block(f"gcn{layer}.{part}", 4, 4)
    shapes |= {"gcn_fc.weight": (10, 20), "gcn_fc.bias": (10,), "fc.weight": (10, 20), "fc.bias": (10,)}
    state = {}
    for t, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            state[prefix + name] = torch.tensor(0)
            continue
        wave = torch.sin(1 + 0.37 * torch.arange(int(np.prod(shape)), dtype=torch.float64) + t).reshape(shape)
        state[prefix + name] = 1 + 0.5 * wave.abs() if name.endswith("running_var") else 0.3 * wave
    return state


def golden_nodes() -> NDArray[np.float64]:
    b, n, d = np.indices((2, 5, 8))
    return np.sin(0.1 * (100 * b + 10 * n + d))


def random_graph(adjacency: Adjacency = "similarity", seed: int = 0, **sizes: int) -> Graph:
    """A network whose every number is random, the ones that start at zero too; evaluation mode, float64."""
    torch.manual_seed(seed)
    network = Graph(7, 5, **{"width": 6, "depth": 3, "references": 4, **sizes}, adjacency=adjacency).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "scale")):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3)
    return network.eval()


def sample(photos: int = 3, references: int = 4, seed: int = 1) -> tuple[Tensor, Pool, Tensor]:
    """Photos [B, 7], a pool of 20 and who is a reference of whom [B, K]."""
    generator = torch.Generator().manual_seed(seed)
    photo = torch.randn(photos, 7, generator=generator, dtype=torch.float64)
    nodes = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    index = torch.stack([torch.randperm(20, generator=generator)[:references] for _ in range(photos)])
    return photo, Pool(nodes, torch.full((20, 5), 0.2)), index


# ---- golden values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(1, 1), (1,), ()])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_the_published_network(window: tuple[int, ...], prefix: str, tmp_path: Path) -> None:
    state = golden_state(window, prefix)
    assert len(state) == 179
    torch.save(state, tmp_path / "checkpoint.pth")
    network = graph_from_state(read_checkpoint(tmp_path / "checkpoint.pth"))
    np.testing.assert_allclose(predict(network, golden_nodes()), GOLDEN, rtol=0, atol=1e-6)
    names = [name.removeprefix(prefix) for name in state if "gcn_fc" not in name]
    assert list(published_names(6)) == names


def test_the_published_size() -> None:
    """9,526,804 parameters are published, 25,610 of them in a layer that is never used."""
    network = Graph(6144, 10, width=512, depth=6, references=4)
    assert sum(p.numel() for p in network.parameters()) == 9_501_194
    assert len(network.state_dict()) == 179 - 2 + 2  # without the unused layer, with our standardiser


# ---- an independent forward pass -------------------------------------------------------------------------------------


def numpy_forward(state: Mapping[str, NDArray[np.float64]], x: NDArray[np.float64], depth: int) -> NDArray[np.float64]:
    """Photo by photo and with node vectors as rows, [N, C]; `similarity` only."""

    def linear_norm(name: str, v: NDArray[np.float64]) -> NDArray[np.float64]:
        v = np.einsum("oi,ni->no", state[f"{name}.0.weight"], v) + state[f"{name}.0.bias"]
        v = (v - state[f"{name}.1.running_mean"]) / np.sqrt(state[f"{name}.1.running_var"] + 1e-5)
        return v * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]

    result = []
    for nodes in (x - state["standardise.mean"]) / state["standardise.scale"]:
        v = np.maximum(linear_norm("reduce", nodes.clip(-8, 8)), 0)
        for layer in range(depth):
            theta, phi, g = (np.maximum(linear_norm(f"layers.{layer}.{n}", v), 0) for n in ("theta", "phi", "g"))
            message = np.zeros_like(v)
            for i in range(len(v)):
                for j in range(len(v)):
                    message[i] += (theta[i] @ phi[j]) / len(v) * g[j]
            v = v + linear_norm(f"layers.{layer}.out", message)
        logits = np.array([sum(row[c * len(v) + n] * v[n, c] for c in range(v.shape[1]) for n in range(len(v)))
                           for row in state["read.weight"]]) + state["read.bias"]  # fmt: skip
        result.append(np.exp(logits) / np.exp(logits).sum())
    return np.array(result)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("references", [1, 4, 7])
def test_against_an_independent_forward_pass(seed: int, references: int) -> None:
    network = random_graph(seed=seed, references=references)
    photo, pool, index = sample(references=references, seed=seed)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    nodes = np.stack([np.concatenate([photo[i : i + 1], pool.nodes[index[i]]]) for i in range(len(photo))])
    expected = numpy_forward(state, nodes, 3)
    with torch.no_grad():
        found = network(photo, pool, index).exp().numpy()
    assert expected.std(0).max() > 1e-3  # the photos do differ
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    with torch.no_grad():
        np.testing.assert_allclose(network.from_nodes(torch.from_numpy(nodes)).exp(), expected, rtol=0, atol=1e-9)


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjacency", ADJACENCIES)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_starts_as_the_identity(adjacency: Adjacency, training: bool) -> None:
    v = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    layer = GraphLayer(6, 5, adjacency).train(training)
    assert torch.equal(layer(v), v)
    nn.init.ones_(layer.out[1].weight)
    assert not torch.allclose(layer(v), v)


def spd(seed: int, n: int = 5, batch: int = 4) -> Tensor:
    x = torch.randn(batch, n, 2 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT / n


def test_matrix_power() -> None:
    a = spd(0)
    torch.testing.assert_close(matrix_power(a, 2), a @ a, rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix_power(a, -1), torch.linalg.inv(a), rtol=0, atol=1e-9)
    root = matrix_power(a, 0.5)
    torch.testing.assert_close(root @ root, a, rtol=0, atol=1e-9)


def test_transport() -> None:
    a, b = spd(0), spd(1)
    t = monge_kantorovich(a, b)
    torch.testing.assert_close(t @ a @ t, b, rtol=0, atol=1e-8)
    torch.testing.assert_close(t, t.mT, rtol=0, atol=1e-9)
    assert (torch.linalg.eigvalsh((t + t.mT) / 2) > 0).all()  # of all maps with T A T = B, the one of least cost
    identity = torch.eye(5, dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(monge_kantorovich(a, a), identity, rtol=0, atol=1e-8)
    # commuting covariances: the ratio of the deviations
    x, y = (torch.diag_embed(torch.tensor([values], dtype=torch.float64)) for values in ([1, 4, 9], [4, 4, 1]))
    torch.testing.assert_close(monge_kantorovich(x, y)[0].diagonal(), torch.tensor([2, 1, 1 / 3]).double())


def test_covariance() -> None:
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = covariance(x, ridge=0)
    for one, expected in zip(found, x, strict=True):
        # rows of numpy's are variables; the 1e-6 on the diagonal keeps the matrix positive
        np.testing.assert_allclose(one, np.cov(expected, bias=True) + 1e-6 * np.eye(5), rtol=0, atol=1e-12)
    flat = covariance(torch.ones(1, 5, 40, dtype=torch.float64))
    assert (torch.linalg.eigvalsh(flat) > 0).all()


def test_adjacency() -> None:
    torch.manual_seed(0)
    v = torch.rand(3, 5, 6, dtype=torch.float64)
    layers = {name: GraphLayer(6, 5, name).double().eval() for name in ADJACENCIES}
    state = layers["similarity"].state_dict()
    relation = {}
    for name, layer in layers.items():
        layer.load_state_dict(state, strict=name != "random")
        with torch.no_grad():
            relation[name] = layer.relation(v)
            theta, phi = layer.theta(v), layer.phi(v)
    torch.testing.assert_close(relation["fusion"], relation["similarity"] + relation["transport"], rtol=0, atol=1e-12)
    for b in range(3):
        for i in range(5):
            for j in range(5):
                expected = float((theta[b, i] * phi[b, j]).sum()) / 5
                assert relation["similarity"][b, i, j].item() == pytest.approx(expected, abs=1e-12)
    t = relation["transport"]
    torch.testing.assert_close(t @ covariance(theta) @ t, covariance(phi), rtol=0, atol=1e-8)
    assert torch.equal(relation["random"], layers["random"].random.expand(3, -1, -1))


def test_the_random_adjacency_is_seeded_and_stored() -> None:
    def build(seed: int) -> Graph:
        return Graph(7, 5, width=6, depth=2, adjacency="random", seed=seed)

    first, same, other = build(3), build(3), build(4)
    matrices = [layer.random for layer in first.layers]
    assert not torch.equal(*matrices)
    assert all(torch.equal(a, b.random) for a, b in zip(matrices, same.layers, strict=True))
    assert not torch.equal(matrices[0], other.layers[0].random)
    assert {"layers.0.random", "layers.1.random"} <= first.state_dict().keys()
    assert "layers.0.random" not in dict(first.named_parameters())
    other.load_state_dict(first.state_dict())
    assert torch.equal(matrices[0], other.layers[0].random)
    torch.manual_seed(99)
    assert torch.equal(build(3).layers[0].random, matrices[0])  # whatever the global generator did


# ---- gradients -------------------------------------------------------------------------------------------------------


def moved(adjacency: Adjacency) -> dict[str, float]:
    """Largest gradient of each parameter of the first layer."""
    network = random_graph(adjacency)
    photo, pool, index = sample()
    network(photo, pool, index)[:, 0].sum().backward()
    return {
        name.removeprefix("layers.0."): 0.0 if p.grad is None else p.grad.abs().max().item()
        for name, p in network.named_parameters()
        if name.startswith("layers.0.")
    }


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_gradients(adjacency: Adjacency) -> None:
    """Everything learns, but that the transport is taken as it is and the random matrix needs no theta and phi."""
    largest = moved(adjacency)
    for name, value in largest.items():
        idle = adjacency in ("transport", "random") and name.startswith(("theta", "phi"))
        assert (value == 0) if idle else (value > 0), name


def test_no_gradient_passes_the_transport() -> None:
    """The gradient through `fusion` is what it would be with the transport as a constant."""
    network = random_graph("fusion", depth=1)
    photo, pool, index = sample()
    network(photo, pool, index)[:, 0].sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    layer = network.layers[0]
    with torch.no_grad():
        v = network.reduce(network.standardise(torch.cat([photo[:, None], pool.nodes[index]], 1)))
        constant = monge_kantorovich(covariance(layer.theta(v)), covariance(layer.phi(v)))
    layer.relation = lambda v: layer.theta(v) @ layer.phi(v).mT / 5 + constant
    network.zero_grad()
    network(photo, pool, index)[:, 0].sum().backward()
    for name, p in network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, found[name], rtol=0, atol=1e-10)


# ---- the contract ----------------------------------------------------------------------------------------------------


def networks() -> list[Graph | Single]:
    torch.manual_seed(0)
    return [*(random_graph(adjacency) for adjacency in ADJACENCIES), Single(7, 5, width=6).double().eval()]


@pytest.mark.parametrize("network", networks(), ids=[*ADJACENCIES, "single"])
def test_a_photo_is_scored_alone(network: Graph | Single) -> None:
    """In evaluation the other photos of a batch change nothing, and log p is a distribution."""
    photo, pool, index = sample(photos=6)
    with torch.no_grad():
        whole = network(photo, pool, index)
        other = photo.clone()
        other[1:] = 100 * torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        assert torch.equal(network(other, pool, index)[0], whole[0])
        turned = network(photo.flip(0), pool, index.flip(0)).flip(0)
        # another position or batch size may sum in another order; the transport magnifies that by its condition
        torch.testing.assert_close(turned, whole, rtol=0, atol=1e-8)
        torch.testing.assert_close(network(photo[2:3], pool, index[2:3]), whole[2:3], rtol=0, atol=1e-8)
    assert whole.shape == (6, 5) and not torch.allclose(whole[0], whole[1], atol=1e-6)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_only_the_references_matter() -> None:
    network = random_graph()
    photo, pool, index = sample()
    with torch.no_grad():
        before = network(photo, pool, index)
        unread = torch.ones(20, dtype=torch.bool)
        unread[index.unique()] = False
        assert unread.any()
        pool.nodes[unread] = torch.nan
        assert torch.equal(network(photo, pool, index), before)
        pool.nodes[index[0, 3]] += 1
        assert not torch.allclose(network(photo, pool, index)[0], before[0], atol=1e-6)


def test_the_order_of_references_matters_to_the_graph() -> None:
    """As published: the read-out knows the places. The photo stays node 0."""
    network = random_graph()
    photo, pool, index = sample()
    with torch.no_grad():
        assert not torch.allclose(network(photo, pool, index), network(photo, pool, index.flip(1)), atol=1e-4)


def test_single_ignores_the_pool() -> None:
    torch.manual_seed(0)
    network = Single(7, 5, width=6).double().eval()
    photo, pool, index = sample()
    with torch.no_grad():
        alone = network(photo)
        assert torch.equal(network(photo, pool, index, torch.rand(3, 4), torch.ones(3, 4, dtype=torch.bool)), alone)
        pool.nodes.fill_(torch.nan)
        assert torch.equal(network(photo, pool, index), alone)
    assert (Single.uses, Graph.uses) == ("nothing", "references")


def test_the_graph_wants_its_references() -> None:
    photo, pool, index = sample()
    with pytest.raises(ValueError, match="built for 4 references a photo, got none"):
        random_graph()(photo)
    with pytest.raises(ValueError, match="built for 4 references a photo, got 3"):
        random_graph()(photo, pool, index[:, :3])


def test_a_dropped_feature_is_dropped_in_all_nodes() -> None:
    """In training a photo and its references lose the same features; the rest grows by 1 / (1 - share)."""
    torch.manual_seed(0)
    network = Graph(200, 5, width=6, depth=1, references=4, dropout=0.25).double().train()
    seen: list[Tensor] = []
    network.reduce.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = 1 + torch.rand(50, 5, 200, dtype=torch.float64)
    network.from_nodes(x)
    kept = seen[0] != 0
    assert (kept == kept[:, :1]).all() and (kept[0] != kept[1]).any()
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)  # four standard errors of 10,000 draws
    torch.testing.assert_close(seen[0][kept], x[kept] / 0.75, rtol=0, atol=1e-12)
    network.eval().from_nodes(x)
    assert torch.equal(seen[1], x)


# ---- the standardiser ------------------------------------------------------------------------------------------------


def test_standardise() -> None:
    layer = Standardise(4, limit=2).double()
    x = torch.tensor([[1.0, 5, 7, 0], [3, 5, 7, 0], [5, 5, 7, 6]], dtype=torch.float64)
    layer.set(x.mean(0), x.std(0, correction=0))
    found = layer(x)
    assert found[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], abs=1e-12)
    torch.testing.assert_close(found[:, [0, 3]].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, [0, 3]].std(0, correction=0), torch.ones(2).double(), rtol=0, atol=1e-12)
    assert (found[:, 1:3] == 0).all()  # constant in training: 0 there, and not blown up elsewhere
    assert layer(torch.tensor([[0, 5.5, -50, 0]]).double())[0, 1:3].tolist() == [0.5, -2]
    assert layer(x.half()).dtype == torch.float64 and set(layer.state_dict()) == {"mean", "scale"}


# ---- states that do not fit ------------------------------------------------------------------------------------------


def test_states_that_do_not_fit() -> None:
    state = golden_state()
    with pytest.raises(WeightsError, match=r"expected refer_reduce_fc\.0\.weight, fc\.weight"):
        graph_from_state({"layer.weight": torch.ones(3)})
    with pytest.raises(WeightsError, match=r"1 entries missing \(gcn3.W.0.bias\), 0 unknown \(\), 0 of another size"):
        graph_from_state({name: tensor for name, tensor in state.items() if name != "gcn3.W.0.bias"})
    with pytest.raises(WeightsError, match=r"0 entries missing \(\), 1 unknown \(gcn3.V.0.bias\)"):
        graph_from_state(state | {"gcn3.V.0.bias": torch.ones(4)})
    with pytest.raises(WeightsError, match=r"1 of another size \(gcn2.g.1.weight\)"):
        graph_from_state(state | {"gcn2.g.1.weight": torch.ones(5)})
    with pytest.raises(WeightsError, match=r"1 of another size \(gcn2.g.0.weight\)"):  # as many numbers, other places
        graph_from_state(state | {"gcn2.g.0.weight": torch.ones(2, 8, 1, 1)})
    with pytest.raises(WeightsError, match=r"^somewhere is not .* 28 entries missing \(gcn4.W.0.bias"):
        graph_from_state({name: t for name, t in state.items() if not name.startswith("gcn4.")}, "somewhere")
    assert len(graph_from_state({n: t for n, t in state.items() if not n.startswith("gcn6.")}).layers) == 5
    assert len(graph_from_state({n: t for n, t in state.items() if not n.startswith("gcn_fc.")}).layers) == 6
