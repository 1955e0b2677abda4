"""Several processes learn and predict what one does, and end together when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import made
import several
from milnet.checkpoints import load_model
from milnet.errors import UsageError
from milnet.losses import AdaptiveEMD, Loss, LossName, PublishedAdaEMD, make_loss
from milnet.model.common import synchronise
from milnet.processes import join
from milnet.recipe import Recipe, load_recipe, make_network
from milnet.samples import shares
from milnet.training import Run
from several import STILL
from test_cli import milnet
from test_reducer import data_folder, wide_features

STEPS = {16: 4, 5: 12}  # of the first epoch: 58 photos of the made table, by the size of a batch


def trained(folder: Path, processes: int, recipe: Recipe, **how: Any) -> tuple[list[float], list[dict[str, float]]]:
    """The losses of all steps and the lines of the epochs; all processes must have the same losses and weights."""
    folder.mkdir()
    several.run(processes, several.train, str(folder), recipe)
    losses = [json.loads((folder / f"losses-{i}.json").read_text()) for i in range(processes)]
    weights = [torch.load(folder / f"weights-{i}.pt", weights_only=True) for i in range(processes)]
    assert all(other == losses[0] for other in losses)
    assert all(torch.equal(weights[0][name], other[name]) for other in weights for name in other)
    return losses[0], load_model(folder / "model")[0].history


def same_losses(tmp_path: Path, recipe: Recipe, counts: tuple[int, ...]) -> None:
    """Every step and epoch to 1e-5, with the same global batch."""
    losses, lines = trained(tmp_path / "1", 1, recipe)
    assert recipe.batch is not None
    for count in counts:
        others, epochs = trained(tmp_path / str(count), count, recipe)
        np.testing.assert_allclose(others, losses, atol=1e-5, rtol=0)
        assert len(epochs) == len(lines)
        for name in ("loss", "emd2"):
            np.testing.assert_allclose([e[name] for e in epochs], [e[name] for e in lines], atol=1e-5, rtol=0)
        np.testing.assert_allclose([e["srcc"] for e in epochs], [e["srcc"] for e in lines], atol=1e-3)
    assert abs(losses[STEPS[recipe.batch] - 1] - losses[0]) > 1e-3  # and it moved: equal losses are no standstill


def test_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """Batches of 4 or 5 photos: shares of 2 and 3; the third process gets nothing of any."""
    same_losses(tmp_path, replace(STILL, batch=5, epochs=2, patience=2, refit=False), (2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"model": "single", "loss": "published_adaemd"}, {"model": "votes"}, {"adjacency": "transport"}],
    ids=["single", "votes", "transport"],
)
def test_each_model_has_the_losses_of_one_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    same_losses(tmp_path, replace(STILL, **changes), (2,))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_a_batch_is_shared_whole_and_in_order(photos: int, processes: int) -> None:
    parts = shares(np.arange(photos, dtype=np.int64), processes)
    assert len(parts) == processes
    assert np.concatenate(parts).tolist() == list(range(photos))
    lengths = [len(part) for part in parts]
    assert photos == 1 or 1 not in lengths
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(length for length in lengths if length) <= 1


@pytest.mark.parametrize("name", ["emd", "adaptive_emd", "published_adaemd", "published_emd"])
def test_shares_of_a_batch_give_its_loss_state_and_gradient(name: LossName) -> None:
    """Three shares whose distances are put together, against the batch in one piece."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    true = torch.softmax(torch.randn(7, 5, generator=generator, dtype=torch.float64), 1)
    cuts = [slice(0, 3), slice(3, 5), slice(5, 7)]
    one, parts = make_loss(name).double(), [make_loss(name).double() for _ in cuts]
    for _ in range(3):
        x = logits.clone().requires_grad_()
        whole = one(torch.softmax(x, 1), true)
        whole.backward()
        gradient = torch.zeros_like(logits)
        for loss, cut in zip(parts, cuts, strict=True):
            own = logits[cut].clone().requires_grad_()
            value = loss(torch.softmax(own, 1), true[cut], lambda e, c=cut, m=one: put_in(e, c, logits, true, m))
            assert value.item() == pytest.approx(whole.item(), abs=1e-12)
            value.backward()
            gradient[cut] = own.grad
        torch.testing.assert_close(gradient, x.grad)
        for loss in (one, *parts):
            loss.end_epoch()
        for loss in parts:
            for key, value in one.state_dict().items():
                torch.testing.assert_close(loss.state_dict()[key], value)
    if isinstance(one, AdaptiveEMD | PublishedAdaEMD):
        assert 0 < one.threshold < 1


def put_in(e: torch.Tensor, cut: slice, logits: torch.Tensor, true: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The distances [7] of the whole batch, those of one share in their place."""
    distance = loss.distance if hasattr(loss, "distance") else several.emd
    whole = distance(torch.softmax(logits, 1), true, 2).clone()
    whole[cut] = e
    return whole


def test_predictions_are_gathered_exactly(tmp_path: Path) -> None:
    """Odd sizes, fewer batches than processes, none at all: the same bits in all processes, in order, none twice."""
    sizes = [1, 2, 255, 256, 257, 700, 1025]
    several.run(1, several.predict, str(tmp_path), sizes)
    alone = np.load(tmp_path / "found-0.npz")
    one = [alone[name] for name in alone.files]
    assert [len(found) for found in one] == sizes
    several.run(3, several.predict, str(tmp_path), sizes)
    for rank in range(3):
        with np.load(tmp_path / f"found-{rank}.npz") as data:
            for name, expected in zip(data.files, one, strict=True):
                np.testing.assert_array_equal(data[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_reduced_numbers_are_gathered(tmp_path: Path, in_memory: bool) -> None:
    """A reducer's numbers, from memory or from one file of all processes; four blocks for three of them."""
    found = {}
    for count in (1, 3):
        (tmp_path / str(count)).mkdir()
        several.run(count, several.reduce, str(tmp_path / str(count)), in_memory)
        found[count] = [np.load(tmp_path / str(count) / f"reduced-{rank}.npy") for rank in range(count)]
        assert all(np.array_equal(found[count][0], other) for other in found[count])
        found[count].append(json.loads((tmp_path / str(count) / "losses-0.json").read_text()))
    np.testing.assert_allclose(found[3][0], found[1][0], atol=2e-3)
    np.testing.assert_allclose(found[3][-1], found[1][-1], atol=1e-5)


def test_layer_norm_sees_one_photo_at_a_time() -> None:
    """In training too; batch norm, the default, does not, and takes no other weights than before."""
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    for norm, alone in (("layer", True), ("batch", False)):
        recipe = Recipe(dropout=0.0, norm=norm).resolve(100)  # type: ignore[arg-type]
        network = make_network(recipe, 24, 5, 0).train()
        assert torch.allclose(network(x)[:3], network(x[:3]), atol=1e-6) is alone
    assert load_recipe("single", ["norm=layer"]).norm == "layer"
    stored = asdict(Recipe())
    del stored["norm"]  # as it was written before there was a choice
    assert Recipe.of(stored) == Recipe()


@pytest.mark.parametrize("model", ["single", "graph", "reducer"])
def test_synchronised_norms_keep_the_network(model: Any) -> None:
    """The same state under the same names, and in evaluation the same numbers."""
    recipe = Recipe(model=model, width=16, depth=2).resolve(100)
    network = make_network(recipe, 24, 5, 0)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    nodes = np.random.default_rng(0).normal(size=(9, 24) if model != "reducer" else (9, 25, 24)).astype(np.float32)
    photos = torch.from_numpy(nodes)

    def found() -> torch.Tensor:
        network.eval()
        if model == "graph":
            return network.from_nodes(photos[:, None].expand(-1, 5, -1))  # type: ignore[union-attr]
        return network(photos)

    before, state = found(), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    norms = sum(isinstance(module, torch.nn.BatchNorm1d) for module in network.modules())
    synchronise(network)
    assert norms == sum(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules()) > 0
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in network.modules())
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(found(), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adjacency", ["similarity", "random", "transport"])
def test_synchronised_norms_train_what_was_trained(adjacency: Any) -> None:
    """The same parameters: what a network has frozen stays frozen, or the others would wait for its gradient."""
    recipe = Recipe(model="graph", adjacency=adjacency, width=16, depth=2).resolve(100)
    network = make_network(recipe, 24, 5, 0)
    before = dict(network.named_parameters())
    synchronise(network)
    after = dict(network.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(parameter.requires_grad for parameter in after.values()) is (adjacency == "similarity")


def test_gpus_are_not_shared_out_by_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="LOCAL_RANK is not: expected the number of this process on its machine"):
        join()


# ---- going on, and ending --------------------------------------------------------------------------------------------

DIED = "ProcessError: another process of this run has ended, or this one was told to"
ENDS = {  # how process 1 of 2 ends: the exit codes, and what is said once
    "kill": ([2, -9], DIED),
    "terminate": ([2, 2], DIED),
    "nan": ([2, 2], "NumericError: the loss is nan: training diverged"),
    "raise": ([2, 2], "OSError: the disk has gone"),
}


def stopped(folder: Path, processes: int, recipe: Recipe, how: str = "kill", at: int = 6, who: int = -1) -> list[int]:
    """The exit codes of a training that ends at step `at`, having saved its state at every step; RUN stays."""
    folder.mkdir(exist_ok=True)
    work = several.start(processes, several.train, str(folder), recipe, at, how, who, 0)
    codes = several.finish(work, 40)
    assert (folder / "run" / "state.pt").exists()
    assert not (folder / "model").exists()
    return codes


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("at", [6, 30])
def test_another_number_of_processes_goes_on(tmp_path: Path, first: int, then: int, at: int) -> None:
    """The same batches in the same order from where the first ones were killed, and the same figures."""
    losses, lines = trained(tmp_path / "whole", 1, STILL)
    folder = tmp_path / "stopped"
    assert stopped(folder, first, STILL, at=at)[-1] == -9
    several.run(then, several.train, str(folder), STILL)
    rest = json.loads((folder / "losses-0.json").read_text())
    np.testing.assert_allclose(rest, losses[len(losses) - len(rest) :], atol=1e-5, rtol=0)
    assert len(losses) - len(rest) in (at - 1, at - 2)  # the state was saved at the last step, or a process was behind
    model, _ = load_model(folder / "model")
    for name in ("loss", "emd2", "srcc"):
        np.testing.assert_allclose([line[name] for line in model.history], [line[name] for line in lines], atol=1e-3)


@pytest.mark.slow
def test_the_same_number_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Dropout, batch norm and their states included."""
    recipe = replace(STILL, norm="batch", dropout=0.3)
    trained(tmp_path / "whole", 2, recipe)
    stopped(tmp_path / "stopped", 2, recipe)
    several.run(2, several.train, str(tmp_path / "stopped"), recipe)
    whole, resumed = (load_model(tmp_path / name / "model")[1] for name in ("whole", "stopped"))
    assert whole.files == resumed.files


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("who", [0, 1])
def test_all_end_when_one_does(tmp_path: Path, how: str, who: int) -> None:
    """Soon, with one message and no success; one process or two finish what was begun."""
    codes, text = ENDS[how]
    assert stopped(tmp_path / "run", 2, STILL, how, who=who) == (codes if who else codes[::-1])
    said = (tmp_path / "run" / "said.txt").read_text().splitlines()
    assert len(said) == 1 and said[0].startswith(text)
    several.run(1 + who, several.train, str(tmp_path / "run"), STILL)
    assert load_model(tmp_path / "run" / "model")[0].epochs


def test_what_the_first_refuses_all_refuse(tmp_path: Path) -> None:
    """RUN of another training: read by the first process alone, and said once."""
    several.run(2, several.keep, str(tmp_path), 1)
    assert several.finish(several.start(2, several.keep, str(tmp_path), 2)) == [2, 2]
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert len(said) == 1 and "holds an unfinished training of other data, options, seed" in said[0]


def test_threads_go_with_the_number_of_processes(tmp_path: Path) -> None:
    """A run goes on with the threads it had, unless other processes had them."""
    for there, expected in (({}, 7), ({"processes": 1}, 7), ({"processes": 2}, torch.get_num_threads())):
        path = tmp_path / f"run{len(there)}{expected}" / "identity.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"identity": {"number": 1}, "threads": 7, **there}))
        assert Run(path.parent, {"number": 1}).threads == expected
        assert Run(path.parent, {"number": 1}).threads == expected


# ---- the commands ----------------------------------------------------------------------------------------------------


def torchrun(processes: int, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`milnet` by torchrun, alone in this process; the exit code must be `code` (torchrun gives 1 for any failure)."""
    if processes == 1:
        return milnet(*arguments, code=code)
    done = subprocess.run(command(processes, *arguments), capture_output=True, text=True, timeout=600, env=ALONE)
    assert done.returncode == code, done.stdout + done.stderr
    return done


ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(processes: int, *arguments: object) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*torchrun, "-m", "milnet", *map(str, arguments)]


QUICK = [f"--set={setting}" for setting in ("norm=layer", "dropout=0", "epochs=2", "width=8", "batch=16")]


def test_torchrun_trains_and_speaks_once(tmp_path: Path) -> None:
    data_folder(tmp_path / "data", made.table(), wide_features(made.table()))
    options = ["train", tmp_path / "data", "-o", tmp_path / "model", "--recipe", "single", "--json"]
    done = torchrun(2, *options, *QUICK)
    result = json.loads(done.stdout)  # one process has printed
    assert "batch norm" not in done.stderr
    alone = json.loads(milnet(*options, "--overwrite", *QUICK).stdout)
    assert result["pool"] == alone["pool"]
    assert result["validation"]["loss"] == pytest.approx(alone["validation"]["loss"], abs=1e-5)
    assert not (tmp_path / "model.run").exists()
    load_model(tmp_path / "model")
    loose = torchrun(2, *options, "--overwrite", *QUICK[1:])  # with batch norm
    assert loose.stderr.count("batch norm") == 1


@pytest.mark.slow
def test_accelerate_launch_trains(tmp_path: Path) -> None:
    """On CPUs several processes are started by --multi_gpu, too, as docs/scale.md says."""
    data_folder(tmp_path / "data", made.table(), wide_features(made.table()))
    options = ["train", tmp_path / "data", "-o", tmp_path / "model", "--recipe", "single", "--json"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "milnet"]
    called = [sys.executable, *launch, *map(str, options), *QUICK]
    done = subprocess.run(called, capture_output=True, text=True, timeout=600, env=ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = json.loads(milnet(*options, "--overwrite", *QUICK).stdout)
    assert json.loads(done.stdout)["validation"]["loss"] == pytest.approx(alone["validation"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_command_of_one_process_is_refused_to_several(tmp_path: Path) -> None:
    done = torchrun(2, "score", tmp_path, code=1)
    assert done.stderr.count("error: milnet score is done by one process: run it without torchrun") == 1


def test_one_of_several_that_finds_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    done = milnet("train", tmp_path, "-o", tmp_path / "model", code=2)
    assert "error: WORLD_SIZE is 2, but this process cannot join the others" in done.stderr


@pytest.mark.slow
def test_the_commands_give_the_same_figures(tmp_path: Path) -> None:
    """reduce, train, evaluate and crossvalidate, by two processes and by one."""
    results: dict[int, list[dict[str, Any]]] = {}
    for processes in (1, 2):
        place = tmp_path / str(processes)
        data_folder(place / "data", made.table(), wide_features(made.table()))
        torchrun(processes, "reduce", place / "data", "--name", "reduced", *QUICK)
        own = ["--semantic", "made", "--nodes", "reduced"]
        torchrun(processes, "train", place / "data", "-o", place / "model", *own, *QUICK)
        torchrun(processes, "evaluate", place / "model", place / "data", "-o", place / "test.json", *own)
        options = ["--recipe", "published", "--folds", "3", "--seeds", "1", "-o", place / "cross.json"]
        done = torchrun(processes, "crossvalidate", place / "data", *options, "--nodes", "made", "--semantic", "made",
                        *QUICK)  # fmt: skip
        assert done.stdout.count("1 seed,") == 1
        assert not list(place.glob("*.run"))
        results[processes] = [json.loads((place / name).read_text()) for name in ("test.json", "cross.json")]
        assert results[processes][0]["looks"] == 1
    for one, two in zip(results[1], results[2], strict=True):
        for name in ("emd2", "mse", "srcc"):
            assert two["metrics"][name]["mean"] == pytest.approx(one["metrics"][name]["mean"], abs=1e-3)
    one, two = (np.load(tmp_path / f"{n}/data/features/reduced/features.npy").astype(float) for n in (1, 2))
    assert np.isfinite(two).all()
    np.testing.assert_allclose(one, two, atol=2e-3)


@pytest.mark.slow
def test_a_killed_worker_of_torchrun_ends_the_run(tmp_path: Path) -> None:
    data_folder(tmp_path / "data", made.table(), wide_features(made.table()))
    long = [*QUICK, "--set=epochs=300", "--set=patience=300", "--set=refit=false"]
    train = ["train", tmp_path / "data", "-o", tmp_path / "model", "--recipe", "single"]
    with subprocess.Popen(command(2, *train, *long), stderr=subprocess.PIPE, text=True, env=ALONE) as launcher:
        log = tmp_path / "model.run" / "log.jsonl"
        began = time.monotonic()
        while not log.exists() or log.read_text().count("\n") < 3:
            assert launcher.poll() is None and time.monotonic() - began < 60
            time.sleep(0.05)
        workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        second = [int(pid) for pid in workers if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
        assert len(workers) == 2 and len(second) == 1
        os.kill(second[0], signal.SIGKILL)
        killed = time.monotonic()
        _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert time.monotonic() - killed < 40
    assert said.count("error: another process of this run has ended, or this one was told to") == 1, said
    assert "--resume" in milnet(*train, *long, code=2).stderr
    milnet(*train, *long, "--resume")
    assert len(load_model(tmp_path / "model")[0].history) == 300


@pytest.mark.slow
def test_the_benchmark_measures_what_it_says(tmp_path: Path) -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "processes.py"
    sizes = ["--rows", "600", "--width", "32", "--steps", "4", "--recipes", ""]
    subprocess.run([sys.executable, str(benchmark), *sizes, "-o", str(tmp_path / "found.json")], check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    differences = {(line["norm"], line["processes"]): line["largest_difference_of_a_loss"] for line in found["speed"]}
    assert differences["layer", 2] < 1e-5 < differences["batch", 2]
    assert all(line["steps_a_second"] > 0 for line in found["speed"])
