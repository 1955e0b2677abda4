"""More rated photos for a trained model's pool, or fewer, without training it again.

The networks stay as they are; the new photos' votes are read at the next prediction. What was learned of doubt belongs
to the old pool: for `votes` it is made anew from the new one (a new photo was never trained on, so what the own network
says of it is honest), for other recipes it is marked stale and no longer given. An index follows where its kind can,
else it is built anew. What was removed has still been seen: trained parts learned from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milnet.annotations import FloatArray, IntArray, Table
from milnet.compact import PackedRows, entered
from milnet.errors import UsageError
from milnet.evaluation import groups_of, refuse_other_features, refuse_other_values
from milnet.features import FeatureSet, stored_rows
from milnet.index import build_index, forms
from milnet.model.votes import Votes
from milnet.pool import RatedPool
from milnet.recipe import MANY, WHOLE
from milnet.recipes import Model, doubt_of_votes
from milnet.references import read_rows
from milnet.training import predict


@dataclass(frozen=True)
class Added:
    """Ids of the photos that came into the pool, of those that were in it already, and of those without features."""

    added: tuple[str, ...]
    known: tuple[str, ...]
    unreadable: tuple[str, ...]


def add_to_pool(
    model: Model, table: Table, features: FeatureSet, rows: IntArray, *, device: str = "cpu"
) -> tuple[Model, Added]:
    """The model with the photos `rows` of a table in its pool too; one that is there already, by id or pixels, is not.

    Photos of another table than the model's get ids "table:id", and groups "table:group" if that table has the column.
    Where the whole pool was consulted and has become too large for that, it is the 64 nearest from then on.
    Raises UsageError for a model that consults no pool, or other score values; ArtifactError for features of another
    kind than the model's.
    """
    if not model.uses_references:
        raise UsageError(
            f"a model of the recipe {model.recipe.name} scores photos alone: a larger pool would change nothing but "
            f"its percentiles; train one with --recipe votes"
        )
    refuse_other_features(model, features)
    refuse_other_values(model, table)
    pool, own = model.pool, table.name == model.table_name
    # A table may name the photos of the model's (EVA's ids are AVA's): then they are the same ones under either name.
    learned, space = {name for name, _ in model.seen}, f"{table.id_space}:"
    own_space = model.seen[0][0].startswith(space)  # it begins with the first training photo
    alike = own_space and any(space + id_ in learned for id_ in pool.ids)
    ids, pixels = set(pool.ids), {digest for digest in pool.pixels if digest}
    added: list[int] = []
    names, known, unreadable = [], [], []
    for row in map(int, rows):
        name = table.ids[row] if own else f"{table.name}:{table.ids[row]}"
        if not features.readable[row]:
            unreadable.append(name)
        elif name in ids or (alike and table.ids[row] in ids) or features.pixels[row] in pixels:
            known.append(name)
        else:
            added.append(row)
            names.append(name)
            ids.add(name)
            pixels |= {features.pixels[row]} - {""}
    told = Added(tuple(names), tuple(known), tuple(unreadable))
    if not added:
        return model, told
    new = np.array(added, np.int64)
    judged = table.take(new)
    judged.check()
    nodes, place = model.numbers(features, new, device=device), model.recipe.device(device)
    groups = groups_of(model, judged)
    grown = RatedPool(
        ids=(*pool.ids, *told.added),
        pixels=(*pool.pixels, *(features.pixels[row] for row in new)),
        groups=(*pool.groups, *(groups or [""] * len(new))),
        distributions=np.concatenate([pool.distributions, judged.distributions]),
        totals=np.concatenate([pool.totals, judged.totals]),
        semantic=_followed(pool, stored_rows(features.semantic, new)),
        nodes=np.concatenate([stored_rows(pool.nodes, pool.rows), entered(model.network, nodes, device=place)]),
        rows=np.arange(len(pool) + len(new), dtype=np.int64),
        near_duplicate=pool.near_duplicate,
        alone=_alone(model, table, features, new, nodes, device),
    )
    if pool.index is not None:
        rows_of = read_rows(features.semantic, new, pool.index.plan.similarity).numpy()
        grown = replace(grown, index=pool.index.added(rows_of))
    seen = [(f"{table.id_space}:{table.ids[row]}", features.pixels[row]) for row in new]
    recipe = model.recipe
    if recipe.whole and len(grown) > WHOLE:
        recipe = replace(recipe, references=MANY)
    larger = replace(model, recipe=recipe, pool=grown, seen=tuple(dict.fromkeys([*model.seen, *seen])))
    return _doubted(larger, device), told


def _doubted(model: Model, device: str) -> Model:
    """The model with the tables of doubt of its new pool, or with those of the old one marked stale."""
    if model.pool.alone is not None:
        model.doubt = doubt_of_votes(model, device=device)
    elif len(model.doubt.percentiles):
        model.doubt = replace(model.doubt, stale=True)
    return model


def _followed(pool: RatedPool, semantic: NDArray[Any]) -> Any:
    """The pool's semantic features with further rows [n, Ds] behind them, kept as they are kept."""
    if isinstance(pool.semantic, PackedRows):
        return pool.semantic.taken(pool.rows).followed_by(semantic)
    return np.concatenate([stored_rows(pool.semantic, pool.rows), semantic])


def remove_from_pool(model: Model, ids: Sequence[str], *, device: str = "cpu") -> tuple[Model, bool]:
    """The model without these photos in its pool, and whether an index over it had to be built anew.

    They stay among what its parts have seen. Raises UsageError for ids that are not in the pool (naming them), a model
    that consults no pool, or a pool that would be too small.
    """
    if not model.uses_references:
        raise UsageError(f"a model of the recipe {model.recipe.name} scores photos alone: it consults nobody")
    pool, gone = model.pool, set(ids)
    unknown = sorted(gone - set(pool.ids))
    if unknown:
        raise UsageError(
            f"{len(unknown):,} of {len(gone):,} ids are not in the pool: {', '.join(unknown[:5])}; expected ids as "
            f"pool/ids.txt has them"
        )
    if not gone:
        return model, False
    out = np.array([id_ in gone for id_ in pool.ids])
    left = np.flatnonzero(~out)
    least = 2 if model.recipe.model == "votes" else model.recipe.looks_for(len(pool)) + 1
    if len(left) < least:
        raise UsageError(f"{len(left):,} photos would be left of {len(pool):,}: the model needs at least {least}")
    smaller, built = pool.take(left), False
    if pool.index is not None:
        index = pool.index.without(np.flatnonzero(out))
        built = index is None
        if index is None:
            plan, width = pool.index.plan, pool.semantic.shape[1]
            possible = forms(plan.kind, len(left), width, plan.similarity)
            if plan.form not in (one.form for one in possible):  # too few photos are left for it
                plan = possible[0]
            index = build_index(pool.semantic, smaller.rows, plan)
        smaller = replace(smaller, index=index)
    return _doubted(replace(model, pool=smaller), device), built


def _alone(
    model: Model, table: Table, features: FeatureSet, rows: IntArray, nodes: FloatArray, device: str
) -> FloatArray | None:
    """`alone` of the larger pool; None where that of the old one is not known. NaN for photos that were trained on."""
    network = model.network
    if model.pool.alone is None or not isinstance(network, Votes):
        return None
    samples = replace(model, network=network.own, recipe=replace(model.recipe, model="single")).samples(nodes)
    device = model.recipe.device(device)
    found = predict(network.own.to(torch.device(device)), samples, device=device)
    names, digests = {name for name, _ in model.seen}, {digest for _, digest in model.seen if digest}
    for i, row in enumerate(rows):
        if f"{table.id_space}:{table.ids[row]}" in names or features.pixels[row] in digests:
            found[i] = np.nan
    return np.concatenate([model.pool.alone, found])
