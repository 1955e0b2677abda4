"""The one door to learning: `fit(recipe, table, features, split, seed) -> Model`.

Everything that is fitted (standardiser, reducer, network, number of epochs, doubt) is fitted in here, from
the training rows alone:

    1. choose     15 % of the training rows are set aside (carved the way the folds are, out of the pool); the number of
                  epochs with the lowest validation EMD2 is taken (smoothed over its neighbours when a refit follows)
    2. refit      the network is trained anew on all training rows for that number of epochs (below 5,000 photos; above,
                  the network of step 1 as it was after its best epoch is kept, and the set-aside photos join the pool)
    3. calibrate  what networks predict for pool photos that they have not seen gives the tables of doubt.py (only when
                  asked): by cross-fitting after a refit, else for the set-aside photos

The network of `votes` holds a one-photo network, which is what these steps train; then `tuning.tune` learns how to read
the references, each training photo predicted from the votes of the others.

Where the recipe has a reducer, it goes first in each step, on the same photos: the network of step 1 sees numbers of a
reducer that has not learned from the set-aside photos, and each network of step 3 those of a reducer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from milnet import processes, splits
from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import read_json
from milnet.doubt import Doubt, fit_doubt
from milnet.errors import ArtifactError, UsageError
from milnet.features import FeatureSet, Maps, Progress, stored_rows, torch_threads
from milnet.losses import make_loss
from milnet.metrics import emd_rows, srcc
from milnet.model.reducer import Reducer
from milnet.model.single import Single
from milnet.model.votes import Votes
from milnet.pool import RatedPool, Store
from milnet.recipe import SMALL, Network, Recipe, make_network
from milnet.references import References
from milnet.samples import Samples
from milnet.splits import Split
from milnet.training import Plan, Run, best_epoch, moments, predict, train_epochs
from milnet.tuning import tune

_REDUCED_AT_ONCE = 64  # photos whose maps are in memory together while they are reduced


@dataclass
class Model:
    """A fitted recipe: predicts the distribution of photos from their features, beside its pool.

    `recipe` is resolved; `values` [S]; `features` what the numbers are made of; `seen` pairs ("table:id", pixel digest)
    of every photo a trained part learned from; `doubt` the tables of this pool, or empty ones.
    `reducer` makes node features of wide maps: learned with the network when the recipe has one, else the one that made
    the node features it was trained on, or None.
    """

    recipe: Recipe
    network: Network
    values: FloatArray
    pool: RatedPool
    features: Mapping[str, Any]
    seen: tuple[tuple[str, str], ...]
    seed: int
    table_name: str
    threshold: float
    side: str
    group: str | None
    epochs: int
    history: list[dict[str, float]]
    doubt: Doubt
    inputs: Mapping[str, str]
    reducer: Reducer | None = None
    reducer_recipe: Recipe | None = None
    reducer_history: list[dict[str, float]] = field(default_factory=list)

    @property
    def node_features(self) -> Mapping[str, Any]:
        """What the network's input is made of: the part `maps` of `features` where it learned from maps."""
        part: Mapping[str, Any] = self.features["maps" if self.recipe.takes_maps else "nodes"]
        return part

    @property
    def uses_references(self) -> bool:
        """Whether a prediction consults the pool."""
        return self.network.uses != "nothing"

    def find(
        self,
        semantic: NDArray[Any],
        *,
        rows: IntArray | None = None,
        ids: Sequence[str] | None = None,
        pixels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        store: Store | None = None,
        device: str = "cpu",
    ) -> References | None:
        """References of each photo [n, Ds], or of the `rows` of a larger array; None where photos are scored alone."""
        if not self.uses_references:
            return None
        return self.pool.find(
            semantic,
            self.recipe.looks_for(len(self.pool)),
            rows=rows,
            store=store,
            queries=rows,
            ids=ids,
            pixels=pixels,
            groups=groups if self.group else None,
            similarity=self.recipe.similarity,
            device=device,
        )

    def numbers(self, features: FeatureSet, rows: IntArray, *, device: str = "cpu") -> NDArray[Any]:
        """What `predict` takes of `rows` [n] of a DATA folder: their node features, maps, or reduced maps."""
        if not self.recipe.takes_maps:
            return stored_rows(features.nodes, rows)
        maps = require_maps(features)
        return stored_rows(maps, rows) if self.recipe.model == "reducer" else self.reduce(maps, rows, device=device)

    def reduce(self, maps: NDArray[Any] | Maps, rows: IntArray, *, device: str = "cpu") -> NDArray[np.float16]:
        """Node features [n, 3C] of `rows` [n] of wide maps [N, 25, D], by the model's reducer."""
        assert self.reducer is not None
        found = np.empty((len(rows), self.reducer.outputs), np.float16)
        reduce_together(found, self.reducer, maps, rows, np.arange(len(rows)), device=device)
        return found

    def predict(
        self, nodes: NDArray[Any], references: References | None = None, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Distributions [n, S] of photos with node features [n, D] (or maps [n, 25, D]), beside what `find` gave."""
        device = self.recipe.device(device)
        return predict(self.network.to(device), self.samples(nodes, references), device=device)

    def samples(self, nodes: NDArray[Any], references: References | None = None) -> Samples:
        """Photos with node features [n, D] (or maps [n, 25, D]) beside what `find` gave, for the network."""
        rows, few = np.arange(len(nodes), dtype=np.int64), self.recipe.model == "votes"
        return Samples(nodes, rows, self.pool, references, whole=self.recipe.whole, few=few)


def last_layer(recipe: Recipe, features: Mapping[str, Any]) -> tuple[int, int] | None:
    """Which columns of the node features are the backbone's last layer, by the config of a feature set.

    None where they do not hold it, or nothing else, or are made of maps, and for a recipe that does not ask.
    """
    nodes = features.get("nodes", {})
    if recipe.model != "votes" or recipe.takes_maps or "span" not in nodes:
        return None
    start, end = nodes["span"]
    first, last = nodes.get("extraction", {}).get("ranges", {}).get("last", (0, 0))
    inside = start <= first < last <= end and (first, last) != (start, end)
    return (first - start, last - start) if inside else None


def require_maps(features: FeatureSet) -> NDArray[Any] | Maps:
    """The wide maps of a feature set; UsageError that says how to make them when there are none."""
    if features.maps is None:
        raise UsageError(
            "this recipe learns from wide maps, and the features have none: extract them with `milnet features --wide`"
        )
    return features.maps


def reduce_into(
    target: NDArray[np.float16],
    reducer: Reducer,
    maps: NDArray[Any] | Maps,
    rows: IntArray,
    places: IntArray,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Reduce the maps of `rows` [n] and put the numbers [n, 3C] at `places` [n] of `target`."""
    reducer.eval().to(device)
    with torch.inference_mode():
        for start in range(0, len(rows), _REDUCED_AT_ONCE):
            part = slice(start, start + _REDUCED_AT_ONCE)
            x = torch.from_numpy(np.ascontiguousarray(stored_rows(maps, rows[part]))).to(device)
            target[places[part]] = reducer.reduce(x).half().cpu().numpy()
            if progress is not None:
                progress(min(start + _REDUCED_AT_ONCE, len(rows)), len(rows), "photos reduced")


def reduce_together(
    target: NDArray[np.float16],
    reducer: Reducer,
    maps: NDArray[Any] | Maps,
    rows: IntArray,
    places: IntArray,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """`reduce_into`, dealt out to all processes in whole blocks: the same bits as of one."""
    blocks = np.split(np.arange(len(rows)), range(_REDUCED_AT_ONCE, len(rows), _REDUCED_AT_ONCE))
    own = processes.share(blocks)
    mine = np.concatenate([blocks[0][:0], *own])
    reduce_into(target, reducer, maps, rows[mine], places[mine], device=device, progress=progress)
    if isinstance(target, np.memmap):  # one file of all processes
        target.flush()
        processes.meet()
    elif processes.world() > 1:
        found = processes.gathered([target[places[block]] for block in own], len(blocks))
        target[places] = np.concatenate(found)


def load_reducer(folder: Path) -> tuple[Reducer, Recipe, list[dict[str, float]]]:
    """The reducer that a folder holds, its recipe, and the lines of its epochs while their number was chosen."""
    try:
        data = read_json(folder / "reducer.json")
        recipe = Recipe.of(data["recipe"])
        network = make_network(recipe, int(data["channels"]), int(data["values"]), 0)
        network.load_state_dict(load_file(folder / "reducer.safetensors"))
        history: list[dict[str, float]] = data.get("history", [])
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise ArtifactError(f"the reducer in {folder} does not hold together ({error}): make it again") from error
    assert isinstance(network, Reducer)
    return network.eval(), recipe, history


@dataclass(frozen=True)
class _Fit:
    """What the steps of one fit share. `recipe` is resolved; `nodes` what its network takes: features, or maps."""

    recipe: Recipe
    table: Table
    features: FeatureSet
    nodes: NDArray[Any] | Maps
    group: str | None
    seed: int
    device: str
    run: Run
    store: Store | None
    progress: Progress | None

    def pool(self, rows: IntArray) -> RatedPool:
        features = self.features
        if isinstance(self.nodes, np.ndarray) and self.nodes.ndim == 2:
            features = replace(features, nodes=self.nodes)
        return RatedPool.of(self.table, features, rows, self.group)

    def samples(self, rows: IntArray, pool: RatedPool, *, targets: bool) -> Samples:
        """The photos of `rows` with their references in `pool`, with their votes when they are `targets`."""
        references = None
        if self.recipe.model in ("graph", "votes"):
            references = self.find(rows, pool, self.recipe.looks_for(len(pool)))
        votes = self.table.take(rows).distributions if targets else None
        few = self.recipe.model == "votes"
        return Samples(self.nodes, rows, pool, references, votes, whole=self.recipe.whole, few=few)

    def find(self, rows: IntArray, pool: RatedPool, k: int) -> References:
        """The `k` references in `pool` of each of `rows`; none is the photo itself, nor of its group."""
        return pool.find(
            self.features.semantic,
            k,
            rows=rows,
            store=self.store,
            queries=rows,
            ids=[self.table.ids[row] for row in rows],
            pixels=[self.features.pixels[row] for row in rows],
            groups=[self.table.column(self.group)[row] for row in rows] if self.group else None,
            similarity=self.recipe.similarity,
            device=self.device,
        )

    def new_network(self, rows: IntArray) -> Network:
        """A fresh network whose standardiser knows the training photos `rows`."""
        last = last_layer(self.recipe, self.features.config)
        network = make_network(self.recipe, self.nodes.shape[-1], self.table.votes.shape[1], self.seed, last)
        if self.recipe.standardise:
            network.standardise.set(*moments(self.nodes, rows))
        return network

    def train(
        self, phase: str, rows: IntArray, epochs: int, validation: IntArray | None = None, *, keep_best: bool = False
    ) -> tuple[Network, list[dict[str, float]]]:
        """Train a fresh network on `rows`, which are also its pool; a phase that is finished already is read back."""
        network = self.new_network(rows)
        if phase in self.run.results:
            self.run.load_network(phase, network)
            history: list[dict[str, float]] = self.run.results[phase]
            return network.to(self.device), history
        pool, r = self.pool(rows), self.recipe
        assert r.batch and r.learning_rate and r.decay is not None and r.weight_decay is not None
        plan = Plan(
            r.batch, r.learning_rate, r.weight_decay, r.decay, r.decay_epochs, self.seed, self.device, r.precision
        )
        history = train_epochs(
            network,
            make_loss(r.loss, r.r),
            self.samples(rows, pool, targets=True),
            epochs,
            plan,
            phase=phase,
            run=self.run,
            validate=None if validation is None else self.validator(validation, pool),
            patience=None if validation is None else r.patience,
            keep_best=keep_best,
            progress=self.progress,
        )
        self.run.finish_phase(phase, history, network)
        return network, history

    def validator(self, rows: IntArray, pool: RatedPool) -> Callable[[nn.Module], dict[str, float]]:
        """A function that measures a network on `rows`, which are not in `pool`."""
        samples, values = self.samples(rows, pool, targets=False), self.table.values
        true = self.table.take(rows).distributions

        def validate(network: nn.Module) -> dict[str, float]:
            guess = predict(network, samples, device=self.device)
            return {"emd2": float(emd_rows(true, guess, 2).mean()), "srcc": srcc(true @ values, guess @ values)}

        return validate

    def predicted(self, network: Network, rows: IntArray, pool: RatedPool) -> FloatArray:
        """Predicted distributions [n, S] of `rows`, beside `pool`."""
        return predict(network, self.samples(rows, pool, targets=False), device=self.device)

    def alone(self) -> _Fit:
        """The same for the network of `votes` that sees the photo alone; of another recipe, itself."""
        return replace(self, recipe=replace(self.recipe, model="single")) if self.recipe.model == "votes" else self

    def beside(self, own: Network, rows: IntArray) -> Votes:
        """The network of `votes` around its trained `own`, tuned on `rows`, which are also its pool."""
        network = self.new_network(rows)
        assert isinstance(network, Votes) and isinstance(own, Single)
        network.own = own
        pool = self.pool(rows)
        samples, r = self.samples(rows, pool, targets=True), self.recipe
        tune(network, samples, pool, lambda: make_loss(r.loss, r.r), device=self.device)
        processes.equalise(network)  # each has found the same, but for machines that differ
        return network

    def beneath(self) -> _Fit | None:
        """The same for the recipe's reducer, on the wide maps; None where there is none."""
        if self.recipe.reducer is None:
            return None
        return replace(self, recipe=self.recipe.reducer, nodes=require_maps(self.features))

    def reduced(self, phase: str, reducer: Network, rows: IntArray) -> _Fit:
        """The same with the numbers that `reducer` makes of `rows` as nodes; the other rows hold NaN."""
        assert isinstance(reducer, Reducer)
        nodes = self.run.array(phase, (len(self.table), reducer.outputs))
        maps = require_maps(self.features)
        reduce_together(nodes, reducer, maps, rows, rows, device=self.device, progress=self.progress)
        return replace(self, nodes=nodes)

    def out_of_fold(self, rows: IntArray, epochs: int, reducer_epochs: int) -> FloatArray:
        """Distributions [n, S] of `rows`, each by a network that has not seen it: cross-fitting. `votes`: alone."""
        groups = self.table.codes(self.group)[rows] if self.group else None
        folds = splits.make_folds(len(rows), self.recipe.calibration_folds, self.seed, groups)
        found = np.empty((len(rows), len(self.table.values)))
        for fold in range(self.recipe.calibration_folds):
            inside, outside = rows[folds != fold], rows[folds == fold]
            job, beneath = self, self.beneath()
            if beneath is not None:
                reducer, _ = beneath.train(f"calibrate-{fold}-reducer", inside, reducer_epochs)
                job = self.reduced(f"calibrate-{fold}", reducer, rows)
            job = job.alone()
            network, _ = job.train(f"calibrate-{fold}", inside, epochs)
            found[folds == fold] = job.predicted(network, outside, job.pool(inside))
        return found

    def doubt(self, rows: IntArray, p: FloatArray, pool: RatedPool) -> Doubt:
        """The tables of `pool`, from out-of-fold predictions [n, S] of `rows`."""
        found = replace(self, store=None).find(rows, pool, 1)  # searched, as at scoring, whatever lists were published
        return fit_doubt(p, self.table.take(rows).distributions, found.similarity[:, 0], self.table.values)


def doubt_of_votes(model: Model, *, device: str = "cpu") -> Doubt:
    """The tables of a `votes` model's pool: each photo beside the others (its group left out where groups act).

    What a photo is alone must be known of it (`pool.alone`); the others take no part.
    """
    device = model.recipe.device(device)
    pool, network = model.pool, model.network.to(device).eval()
    assert isinstance(network, Votes) and pool.alone is not None
    known = np.flatnonzero(np.isfinite(pool.alone[:, 0]))
    who: Any = {
        "rows": pool.rows[known],
        "ids": [pool.ids[i] for i in known],
        "pixels": [pool.pixels[i] for i in known],
        "groups": [pool.groups[i] for i in known],
        "device": device,
    }
    references = model.find(pool.semantic, **who)
    assert references is not None
    samples = Samples(pool.nodes, pool.rows[known], pool, references, whole=model.recipe.whole, few=True)
    picks = np.array_split(np.arange(len(known)), -(-len(known) // 256))
    parts: list[FloatArray] = []
    with torch.inference_mode():
        for some, (batch, _) in zip(picks, samples.batches(picks), strict=True):
            item = batch.to(torch.device(device))
            alone = torch.from_numpy(pool.alone[known[some]]).to(device)
            found = network.weighed(alone, network.consult(item.photo, item.pool, item.index, item.keep))
            p = network.joined(found, item.pool, item.index)
            parts.append((p / p.sum(1, keepdim=True)).cpu().numpy())
    if not references.index.shape[1]:  # none is consulted, but how like the pool a photo is can be told all the same
        references = replace(model, recipe=replace(model.recipe, references=1)).find(pool.semantic, **who)
        assert references is not None
    return fit_doubt(np.concatenate(parts), pool.distributions[known], references.similarity[:, 0], model.values)


def fit(
    recipe: Recipe,
    table: Table,
    features: FeatureSet,
    split: Split,
    seed: int,
    *,
    device: str = "cpu",
    run: Run | None = None,
    store: Store | None = None,
    calibrate: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Learn from `split.train` alone; the only door to learning.

    Rows whose photo could not be read are left out. `calibrate` adds the tables of doubt, which costs
    `calibration_folds` more trainings below 5,000 photos and none above. `store`: references found before, over a pool
    that contains `split.train`. One `seed` decides everything that is random.
    """
    rows = np.sort(split.train[features.readable[split.train]])
    recipe = recipe.resolve(len(rows))
    device = recipe.device(device)
    run = run or Run(None, {})
    nodes = require_maps(features) if recipe.model == "reducer" else features.nodes
    # Small networks gain nothing from a second thread, and on a busy machine they lose much by waiting for it. With
    # one, the weights do not depend on the number of cores either. A reducer is never small.
    with torch_threads(1 if len(rows) < SMALL and not recipe.takes_maps else run.threads):
        job = _Fit(recipe, table, features, nodes, split.group, seed, device, run, store, progress)
        return _fit(job, rows, calibrate)


def _fit(job: _Fit, rows: IntArray, calibrate: bool) -> Model:
    recipe, table, features = job.recipe, job.table, job.features
    assert recipe.epochs is not None
    groups = table.codes(job.group) if job.group else None
    kept, validation = splits.carve(rows, recipe.validation, job.seed, groups)
    if len(kept) < 2:
        raise UsageError(
            f"expected at least 2 training photos beside the set-aside ones, got {len(kept)} of {len(rows)}"
        )
    beneath, reducer, reducer_epochs, chosen = job.beneath(), None, 0, job
    lines: list[dict[str, float]] = []
    if beneath is not None:
        assert beneath.recipe.epochs is not None
        reducer, lines = beneath.train("choose-reducer", kept, beneath.recipe.epochs, validation, keep_best=True)
        reducer_epochs = best_epoch(lines)
        chosen = job.reduced("choose", reducer, rows)
    chosen = chosen.alone()
    network, history = chosen.train("choose", kept, recipe.epochs, validation, keep_best=not recipe.refit)
    alone, of = np.empty((0, 0)), rows[:0]
    if recipe.refit:
        epochs = best_epoch(history)
        if beneath is not None:
            reducer, _ = beneath.train("refit-reducer", rows, reducer_epochs)
            chosen = job.reduced("refit", reducer, rows).alone()
        network, _ = chosen.train("refit", rows, epochs)
        if calibrate:
            of, alone = rows, job.out_of_fold(rows, epochs, reducer_epochs)
    else:
        epochs = 1 + int(np.argmin([line["emd2"] for line in history]))
        if calibrate:
            of, alone = validation, chosen.predicted(network, validation, chosen.pool(kept))
    if recipe.model == "votes":
        chosen = replace(chosen, recipe=recipe)
        network = chosen.beside(network, rows)
    network.eval()
    pool = chosen.pool(rows)
    if recipe.model == "votes" and calibrate:
        known = np.full((len(rows), len(table.values)), np.nan)
        known[np.searchsorted(rows, of)] = alone
        pool = replace(pool, alone=known)
    used = {"semantic", "maps" if recipe.takes_maps else "nodes"}
    learned = [(f"{table.id_space}:{table.ids[row]}", features.pixels[row]) for row in rows]
    model = Model(
        recipe=recipe,
        network=network,
        values=table.values,
        pool=pool,
        features={role: part for role, part in features.config.items() if role in used},
        seen=tuple(dict.fromkeys([*learned, *features.seen])),
        seed=job.seed,
        table_name=table.name,
        threshold=table.threshold,
        side=table.side,
        group=job.group,
        epochs=epochs,
        history=history,
        doubt=Doubt() if recipe.model == "votes" or not calibrate else job.doubt(of, alone, pool),
        inputs={role: str(part["digest"]) for role, part in features.config.items() if role in used},
    )
    if pool.alone is not None:
        model.doubt = doubt_of_votes(model, device=job.device)
    if isinstance(reducer, Reducer):
        model.reducer, model.reducer_recipe, model.reducer_history = reducer.eval(), recipe.reducer, lines
    elif features.reducer is not None and not recipe.takes_maps:
        model.reducer, model.reducer_recipe, model.reducer_history = load_reducer(features.reducer)
    return model
