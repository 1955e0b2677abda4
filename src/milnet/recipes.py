"""The one door to learning: `fit(recipe, table, features, split, seed) -> Model`.

Everything that is fitted (standardiser, network, number of epochs, percentile table) is fitted in here, from the
training rows alone:

    1. choose     15 % of the training rows are set aside (carved the way the folds are, out of the pool); the number of
                  epochs with the lowest validation EMD2 is taken (smoothed over its neighbours when a refit follows)
    2. refit      the network is trained anew on all training rows for that number of epochs (below 5,000 photos; above,
                  the network of step 1 as it was after its best epoch is kept, and the set-aside photos join the pool)
    3. calibrate  scores predicted for pool photos by networks that have not seen them give the percentile table (only
                  when asked): by cross-fitting after a refit, else those of the set-aside photos
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from milnet import splits
from milnet.annotations import FloatArray, IntArray, Table
from milnet.errors import UsageError
from milnet.features import FeatureSet, Progress, take_rows, torch_threads
from milnet.losses import LossName, make_loss
from milnet.metrics import emd_rows, srcc
from milnet.model.graph import Adjacency, Graph
from milnet.model.single import Single
from milnet.pool import RatedPool, Store
from milnet.references import References, Similarity
from milnet.splits import Split
from milnet.training import (
    Plan,
    Precision,
    Run,
    Samples,
    best_epoch,
    moments,
    predict,
    train_epochs,
)

SMALL = 5000  # training photos below which `refit` is on and the small defaults hold


@dataclass(frozen=True)
class Recipe:
    """Everything one chooses about learning. None: chosen by the number of training photos, see `resolve`."""

    name: str = "single"  # for reports
    model: Literal["single", "graph"] = "single"  # the photo alone, or the published graph over photo + references
    references: int = 4  # references a photo (graph only)
    adjacency: Adjacency = "similarity"  # what the graph's edges are
    similarity: Similarity = "cosine"  # how references are found
    width: int | None = None  # channels inside the network
    depth: int | None = None  # graph layers
    dropout: float | None = None  # share of inputs and of read-out numbers dropped while training
    standardise: bool = True  # features to mean 0 and deviation 1 over the training photos
    loss: LossName = "emd"  # what is minimised
    r: float = 2.0  # exponent of the EMD
    batch: int | None = None  # photos a step
    learning_rate: float | None = None  # of Adam
    weight_decay: float | None = None  # of Adam, on matrices only
    decay: float | None = None  # the rate is multiplied by this after every decay_epochs
    decay_epochs: int = 3  # epochs between two falls of the rate
    epochs: int | None = None  # at most so many; validation chooses
    patience: int | None = None  # stop choosing when so many epochs brought nothing better
    validation: float = 0.15  # share of the training photos set aside to choose the number of epochs
    refit: bool | None = None  # train anew on all training photos with the chosen number of epochs
    calibration_folds: int = 5  # folds of the cross-fitting behind the percentile table
    precision: Precision = "no"  # "bf16" on GPUs that have it

    def __post_init__(self) -> None:
        positive = ("references", "width", "depth", "batch", "learning_rate", "epochs", "patience", "decay_epochs", "r")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"recipe {self.name}: expected {name} > 0, got {value}")
        if not 0 < self.validation < 1 or not 0 <= (self.dropout or 0) < 1 or self.calibration_folds < 2:
            raise UsageError(
                f"recipe {self.name}: expected 0 < validation < 1, 0 <= dropout < 1 and calibration_folds >= 2, got "
                f"{self.validation}, {self.dropout} and {self.calibration_folds}"
            )

    def resolve(self, photos: int) -> Recipe:
        """Fill what was left open. Below 5,000 training photos: a small network, many epochs; above: as published."""
        chosen = _SMALL if photos < SMALL else _LARGE
        return replace(self, **{name: value for name, value in chosen.items() if getattr(self, name) is None})


# The published values (Adam 3e-4, a tenth after every third epoch, 10 epochs, batch 128, width 512, 6 layers).
_LARGE: dict[str, Any] = {
    "width": 512, "depth": 6, "dropout": 0.0, "batch": 128, "learning_rate": 3e-4, "weight_decay": 0.0, "decay": 0.1,
    "epochs": 10, "patience": 10, "refit": False,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "width": 128, "depth": 3, "dropout": 0.5, "batch": 32, "learning_rate": 1e-3, "weight_decay": 1e-4, "decay": 1.0,
    "epochs": 60, "patience": 15, "refit": True,
}  # fmt: skip
Network = Single | Graph
RECIPES = {"single": Recipe(), "published": Recipe(name="published", model="graph")}


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A built-in recipe, or a FILE.toml of recipe fields (`base` names a built-in to start from), then `field=value`.

    Raises UsageError naming the unknown field, the wrong value, or what there is to choose from.
    """
    if name in RECIPES:
        recipe = RECIPES[name]
    elif name.endswith(".toml"):
        try:
            data = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"cannot read the recipe {name}: {error}") from error
        base = RECIPES.get(str(data.pop("base", "single")))
        if base is None:
            raise UsageError(f"{name}: base must be one of {', '.join(RECIPES)}")
        recipe = _with({"name": Path(name).stem, **data}, base, name)
    else:
        raise UsageError(f"unknown recipe {name!r}: expected {', '.join(RECIPES)} or a FILE.toml")
    changes: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected field=value")
        changes[field.strip()] = value.strip()
    return _with(changes, recipe, "--set")


def _with(changes: Mapping[str, Any], recipe: Recipe, where: str) -> Recipe:
    hints = get_type_hints(Recipe)
    for field, value in changes.items():
        if field not in hints:
            raise UsageError(f"{where}: a recipe has no field {field!r}; there are: {', '.join(hints)}")
        recipe = replace(recipe, **{field: _parse(value, hints[field], f"{where}: {field}")})
    return recipe


def _parse(value: Any, hint: Any, where: str) -> Any:
    """`value` (a text from the command line, or what TOML gave) as the type `hint`, or UsageError."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if type(None) in get_args(hint) else [hint]
    kind = kinds[0]
    if value in (None, "none") and type(None) in get_args(hint):
        return None
    if get_args(kind):  # a Literal
        if value in get_args(kind):
            return value
        raise UsageError(f"{where}: expected {', '.join(map(str, get_args(kind)))}, got {value!r}")
    if kind is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise UsageError(f"{where}: expected true or false, got {value!r}")
    try:
        parsed = kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: expected {kind.__name__}, got {value!r}") from None
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise UsageError(f"{where}: expected a finite number, got {value!r}")
    return parsed


@dataclass
class Model:
    """A fitted recipe: predicts the distribution of photos from their features, beside its pool.

    `recipe` is resolved; `values` [S]; `features` what the numbers are made of; `seen` pairs ("table:id", pixel digest)
    of every photo a trained part learned from; `percentiles` sorted out-of-fold scores of pool
    photos, or empty.
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
    percentiles: FloatArray
    inputs: Mapping[str, str]

    @property
    def uses_references(self) -> bool:
        """Whether a prediction consults the pool."""
        return self.network.uses != "nothing"

    def find(
        self,
        semantic: NDArray[Any],
        *,
        ids: Sequence[str] | None = None,
        pixels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> References | None:
        """References of each photo [n, Ds], or None for a model that scores the photo alone."""
        if not self.uses_references:
            return None
        return self.pool.find(
            semantic,
            self.recipe.references,
            ids=ids,
            pixels=pixels,
            groups=groups if self.group else None,
            similarity=self.recipe.similarity,
            device=device,
        )

    def predict(
        self, nodes: NDArray[Any], references: References | None = None, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Distributions [n, S] of photos with node features [n, D] and the references that `find` gave."""
        return self.predict_rows(nodes, np.arange(len(nodes), dtype=np.int64), references, device=device)

    def predict_rows(
        self, nodes: NDArray[Any], rows: IntArray, references: References | None = None, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """The same for chosen `rows` [n] of a larger, perhaps memory-mapped array; `references` belong to the rows."""
        samples = Samples(nodes, rows, self.pool, references)
        return predict(self.network.to(device), samples, device=device)

    def percentile(self, scores: FloatArray) -> FloatArray:
        """100 x the share of pool photos (ties half) whose out-of-fold predicted score is lower; NaN if no table."""
        if not len(self.percentiles):
            return np.full(len(scores), np.nan)
        below = np.searchsorted(self.percentiles, scores, "left") + np.searchsorted(self.percentiles, scores, "right")
        return np.asarray(50.0 * below / len(self.percentiles))


def make_network(recipe: Recipe, features: int, bins: int, seed: int) -> Network:
    """The network of a resolved recipe, its weights drawn from `seed` alone."""
    assert recipe.width is not None and recipe.depth is not None and recipe.dropout is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.model == "single":
            network: Network = Single(features, bins, width=recipe.width, dropout=recipe.dropout)
        else:
            network = Graph(
                features,
                bins,
                width=recipe.width,
                depth=recipe.depth,
                references=recipe.references,
                adjacency=recipe.adjacency,
                dropout=recipe.dropout,
                seed=seed,
            )
    if not recipe.standardise:
        network.standardise.limit = float("inf")  # features as they are
    return network


@dataclass(frozen=True)
class _Fit:
    """What the steps of one fit share. `recipe` is resolved."""

    recipe: Recipe
    table: Table
    features: FeatureSet
    group: str | None
    seed: int
    device: str
    run: Run
    store: Store | None
    progress: Progress | None

    def pool(self, rows: IntArray) -> RatedPool:
        return RatedPool.of(self.table, self.features, rows, self.group)

    def samples(self, rows: IntArray, pool: RatedPool, *, targets: bool) -> Samples:
        """The photos of `rows` with their references in `pool`, with their votes when they are `targets`."""
        references = None
        if self.recipe.model != "single":
            references = pool.find(
                take_rows(self.features.semantic, rows),
                self.recipe.references,
                store=self.store,
                queries=rows,
                ids=[self.table.ids[row] for row in rows],
                pixels=[self.features.pixels[row] for row in rows],
                groups=[self.table.column(self.group)[row] for row in rows] if self.group else None,
                similarity=self.recipe.similarity,
                device=self.device,
            )
        votes = self.table.take(rows).distributions if targets else None
        return Samples(self.features.nodes, rows, pool, references, votes)

    def new_network(self, rows: IntArray) -> Network:
        """A fresh network whose standardiser knows the training photos `rows`."""
        network = make_network(self.recipe, self.features.nodes.shape[1], self.table.votes.shape[1], self.seed)
        if self.recipe.standardise:
            network.standardise.set(*moments(self.features.nodes, rows))
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

    def scores(self, network: Network, rows: IntArray, pool: RatedPool) -> FloatArray:
        """Predicted scores of `rows`, beside `pool`."""
        samples = self.samples(rows, pool, targets=False)
        return np.asarray(predict(network, samples, device=self.device) @ self.table.values)

    def out_of_fold_scores(self, rows: IntArray, epochs: int) -> FloatArray:
        """Predicted score of each of `rows` by a network that has not seen it: cross-fitting."""
        groups = self.table.codes(self.group)[rows] if self.group else None
        folds = splits.make_folds(len(rows), self.recipe.calibration_folds, self.seed, groups)
        scores = np.empty(len(rows))
        for fold in range(self.recipe.calibration_folds):
            inside, outside = rows[folds != fold], rows[folds == fold]
            network, _ = self.train(f"calibrate-{fold}", inside, epochs)
            scores[folds == fold] = self.scores(network, outside, self.pool(inside))
        return scores


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

    Rows whose photo could not be read are left out. `calibrate` adds the percentile table, which costs
    `calibration_folds` more trainings below 5,000 photos and none above. `store`: references found before, over a pool
    that contains `split.train`. One `seed` decides everything that is random.
    """
    rows = np.sort(split.train[features.readable[split.train]])
    recipe = recipe.resolve(len(rows))
    run = run or Run(None, {})
    # Small networks gain nothing from a second thread, and on a busy machine they lose much by waiting for it. With
    # one, the weights do not depend on the number of cores either.
    with torch_threads(1 if len(rows) < SMALL else run.threads):
        return _fit(_Fit(recipe, table, features, split.group, seed, device, run, store, progress), rows, calibrate)


def _fit(job: _Fit, rows: IntArray, calibrate: bool) -> Model:
    recipe, table, features = job.recipe, job.table, job.features
    assert recipe.epochs is not None
    groups = table.codes(job.group) if job.group else None
    kept, validation = splits.carve(rows, recipe.validation, job.seed, groups)
    network, history = job.train("choose", kept, recipe.epochs, validation, keep_best=not recipe.refit)
    percentiles = np.empty(0)
    if recipe.refit:
        epochs = best_epoch(history)
        network, _ = job.train("refit", rows, epochs)
        if calibrate:
            percentiles = job.out_of_fold_scores(rows, epochs)
    else:
        epochs = 1 + int(np.argmin([line["emd2"] for line in history]))
        if calibrate:
            percentiles = job.scores(network, validation, job.pool(kept))
    network.eval()
    return Model(
        recipe=recipe,
        network=network,
        values=table.values,
        pool=job.pool(rows),
        features=features.config,
        seen=tuple((f"{table.name}:{table.ids[row]}", features.pixels[row]) for row in rows),
        seed=job.seed,
        table_name=table.name,
        threshold=table.threshold,
        side=table.side,
        group=job.group,
        epochs=epochs,
        history=history,
        percentiles=np.sort(percentiles),
        inputs={role: str(part["digest"]) for role, part in features.config.items()},
    )
