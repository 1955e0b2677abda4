"""A recipe: everything one chooses about learning, and the network it asks for."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from milnet.errors import UsageError
from milnet.losses import LossName
from milnet.model.common import Norm
from milnet.model.graph import Adjacency, Graph
from milnet.model.reducer import Reducer, Variant
from milnet.model.single import Single
from milnet.model.votes import Votes
from milnet.references import Similarity
from milnet.training import Precision

WHOLE, MANY = 10_000, 64  # pool photos that `votes` consults as a whole at most, and references of a larger pool
SMALL = 5000  # training photos below which `refit` is on and the small defaults hold


@dataclass(frozen=True)
class Recipe:
    """Everything one chooses about learning. None: chosen by the number of training photos, see `resolve`."""

    name: str = "single"  # for reports
    # the photo alone; the published graph over photo + references; photo + references with their votes; the photo's
    # wide maps alone (model/reducer.py)
    model: Literal["single", "graph", "votes", "reducer"] = "single"
    references: int | Literal["all"] | None = None  # references a photo (graph, votes); "all": the whole pool (votes)
    adjacency: Adjacency = "similarity"  # what the graph's edges are
    similarity: Similarity = "cosine"  # how references are found
    width: int | None = None  # channels inside the network
    depth: int | None = None  # graph layers
    dropout: float | None = None  # share of inputs and of read-out numbers dropped while training
    norm: Norm = "batch"  # inside the network; "layer" has no statistics of the batch: any number of processes agrees
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
    calibration_folds: int = 5  # folds of the cross-fitting behind the tables of doubt
    precision: Precision = "no"  # "bf16" on GPUs that have it
    variant: Variant = "milnet"  # of a reducer: with our corrections, or as published
    reducer: Recipe | None = None  # learned first, on wide maps; its numbers are then the nodes

    def __post_init__(self) -> None:
        positive = ("width", "depth", "batch", "learning_rate", "epochs", "patience", "decay_epochs", "r")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"recipe {self.name}: expected {name} > 0, got {value}")
        if not 0 < self.validation < 1 or not 0 <= (self.dropout or 0) < 1 or self.calibration_folds < 2:
            raise UsageError(
                f"recipe {self.name}: expected 0 < validation < 1, 0 <= dropout < 1 and calibration_folds >= 2, got "
                f"{self.validation}, {self.dropout} and {self.calibration_folds}"
            )
        least = 1 if self.model == "graph" else 0  # the photo alone takes none
        if self.references == "all":
            if self.model == "graph":
                raise UsageError(f"recipe {self.name}: expected references to be a number, the graph is of one size")
        elif self.references is not None and self.references < least:
            raise UsageError(f"recipe {self.name}: expected references >= {least}, got {self.references}")
        if self.reducer is not None and (self.model == "reducer" or self.reducer.model != "reducer"):
            raise UsageError(
                f"recipe {self.name}: expected reducer to be a recipe of model reducer, under one of another model"
            )

    @property
    def takes_maps(self) -> bool:
        """Whether it learns from the photos' wide maps."""
        return self.model == "reducer" or self.reducer is not None

    def looks_for(self, pool: int) -> int:
        """How many references a photo gets of so many pool photos (of a resolved recipe)."""
        assert self.references is not None
        if self.model != "votes":
            assert isinstance(self.references, int)
            return self.references
        if self.references != "all":
            return min(self.references, pool)
        if pool > WHOLE:
            raise UsageError(
                f"recipe {self.name}: a pool of {pool:,} photos cannot be consulted as a whole (at most {WHOLE:,}: "
                f"memory grows with its square); expected references to be a number, for example {MANY}"
            )
        return pool

    def device(self, device: str) -> str:
        """Where its network computes: `votes` needs float64, which "mps" does not have."""
        return "cpu" if self.model == "votes" and device == "mps" else device

    @property
    def whole(self) -> bool:
        """Whether a photo consults the whole pool."""
        return self.references == "all"

    def resolve(self, photos: int) -> Recipe:
        """Fill what was left open. Below 5,000 training photos: a small network, many epochs; above: as published."""
        chosen = _SMALL if photos < SMALL else _LARGE
        if self.model == "reducer":
            chosen = {**chosen, **(_SMALL_REDUCER if photos < SMALL else _LARGE_REDUCER)}
        chosen = {**chosen, "references": ("all" if photos < SMALL else MANY) if self.model == "votes" else 4}
        filled = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        beneath = None if self.reducer is None else self.reducer.resolve(photos)
        return replace(self, **filled, reducer=beneath)

    def to_json(self) -> dict[str, Any]:
        """All fields, but those that came later where they stand at their default: digests of older models stay."""
        data = asdict(self)
        for one in (data, data["reducer"]):
            if one is not None and one["norm"] == "batch":
                del one["norm"]
        return data

    @staticmethod
    def of(data: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` or `dataclasses.asdict` took apart."""
        beneath = data.get("reducer")
        return Recipe(**{**data, "reducer": None if beneath is None else Recipe.of(beneath)})


# The published values (Adam 3e-4, a tenth after every third epoch, 10 epochs, batch 128, width 512, 6 layers).
_LARGE: dict[str, Any] = {
    "width": 512, "depth": 6, "dropout": 0.0, "batch": 128, "learning_rate": 3e-4, "weight_decay": 0.0, "decay": 0.1,
    "epochs": 10, "patience": 10, "refit": False,
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "width": 128, "depth": 3, "dropout": 0.5, "batch": 32, "learning_rate": 1e-3, "weight_decay": 1e-4, "decay": 1.0,
    "epochs": 60, "patience": 15, "refit": True,
}  # fmt: skip
# The reducer as published: Adam 3e-5, the rest like the graph; 3 x 2,048 numbers.
_LARGE_REDUCER: dict[str, Any] = {"width": 2048, "depth": 1, "dropout": 0.25, "learning_rate": 3e-5}
_SMALL_REDUCER: dict[str, Any] = {
    "width": 512, "depth": 1, "dropout": 0.25, "learning_rate": 1e-4, "epochs": 30, "patience": 6,
}  # fmt: skip
Network = Single | Graph | Votes | Reducer
_REDUCER = Recipe(name="reducer", model="reducer")
RECIPES = {
    "single": Recipe(),
    "published": Recipe(name="published", model="graph"),
    "votes": Recipe(name="votes", model="votes"),
    "reducer": _REDUCER,
    "milnet": Recipe(name="milnet", model="graph", reducer=_REDUCER),
}


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
        field, dot, inner = field.partition(".")
        if dot and field == "reducer":  # reducer.width: a field of the recipe beneath
            recipe = replace(recipe, reducer=_with({inner: value}, recipe.reducer or _REDUCER, where))
            continue
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
    if kind is Recipe:
        if isinstance(value, Mapping):  # a table of a TOML file
            return _with(value, _REDUCER, where)
        if value == "reducer":
            return _REDUCER
        raise UsageError(f"{where}: expected reducer or none, got {value!r}")
    if any(get_args(other) and value in get_args(other) for other in kinds[1:]):  # int | Literal["all"]
        return value
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


def make_network(recipe: Recipe, features: int, bins: int, seed: int, last: tuple[int, int] | None = None) -> Network:
    """The network of a resolved recipe, its weights drawn from `seed` alone.

    `last`: which of its `features` are the backbone's last layer, if any (votes only).
    """
    assert recipe.width is not None and recipe.depth is not None and recipe.dropout is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.model == "reducer":
            network: Network = Reducer(
                features, bins, width=recipe.width, dropout=recipe.dropout, variant=recipe.variant, norm=recipe.norm
            )
        elif recipe.model == "single":
            network = Single(features, bins, width=recipe.width, dropout=recipe.dropout, norm=recipe.norm)
        elif recipe.model == "votes":
            network = Votes(features, bins, width=recipe.width, dropout=recipe.dropout, last=last, norm=recipe.norm)
        else:
            assert isinstance(recipe.references, int)
            network = Graph(
                features,
                bins,
                width=recipe.width,
                depth=recipe.depth,
                references=recipe.references,
                adjacency=recipe.adjacency,
                dropout=recipe.dropout,
                seed=seed,
                norm=recipe.norm,
            )
    if not recipe.standardise:
        network.standardise.limit = float("inf")  # features as they are
    return network
