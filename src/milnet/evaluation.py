"""Honest numbers: cross-validation, and a trained model on a test split, both refusing photos that were seen."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet import processes, splits
from milnet.annotations import FloatArray, IntArray, Table
from milnet.artifacts import atomic_path, canonical_json, digest_text, write_text
from milnet.errors import ArtifactError, UsageError
from milnet.features import FeatureSet, Progress
from milnet.metrics import check_distributions
from milnet.pool import Store, refuse_seen
from milnet.recipe import Recipe
from milnet.recipes import Model, fit, require_maps
from milnet.references import References, same_photo_limit
from milnet.results import Predictions
from milnet.splits import Folds, Split
from milnet.training import Run

_PAIRS = 20_000  # photos up to which every pair is compared for likeness


@dataclass(frozen=True)
class SamePhotos:
    """Which photos of a table are the same one under two names: `pairs` of rows [E, 2], and the sets they form."""

    pairs: NDArray[np.int64]
    sets: tuple[tuple[int, ...], ...]


def find_same_photos(table: Table, features: FeatureSet) -> SamePhotos:
    """Same pixels, or semantic cosine above .97 where that means something (see `same_photo_limit`).

    Likeness is compared up to 20,000 photos; above, pixels alone decide.
    """
    readable = features.readable
    limit = same_photo_limit(features.semantic, np.flatnonzero(readable)) if len(table) <= _PAIRS else None
    pairs = splits.same_photos(features.pixel_codes(), features.semantic, readable, limit)
    codes = splits.components(len(table), pairs)
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return SamePhotos(pairs, tuple(tuple(part.tolist()) for part in parts if len(part) > 1))


def find_references(
    model: Model,
    table: Table,
    features: FeatureSet,
    rows: IntArray,
    *,
    store: Store | None = None,
    device: str = "cpu",
) -> References | None:
    """The references in the model's pool of rows of a table; none is the photo itself. None where none are consulted.

    `store`: references of the table, found before. Raises UsageError when the model's pool is not from that table.
    """
    if not model.uses_references:
        return None
    own = table.name == model.table_name
    if store is not None:
        at = rows_of_pool(model, table)
        if at is None:
            raise UsageError("these references belong to another table than the model's pool: evaluate without them")
        model = replace(model, pool=replace(model.pool, table_rows=at))
    return model.find(
        features.semantic,
        rows=rows,
        store=store,
        ids=[table.ids[row] if own else f"{table.name}:{table.ids[row]}" for row in rows],  # as a grown pool has them
        pixels=[features.pixels[row] for row in rows],
        groups=groups_of(model, table.take(rows)),
        device=device,
    )


def groups_of(model: Model, table: Table) -> list[str] | None:
    """The group of each photo of a table as the model's pool names it; None where groups do not act or are unknown.

    Another table's groups are others, whatever they are called: "table:group".
    """
    if model.group is None or model.group not in table.columns:
        return None
    own = table.name == model.table_name
    return [group if own or not group else f"{table.name}:{group}" for group in table.column(model.group)]


def rows_of_pool(model: Model, table: Table) -> IntArray | None:
    """The row of `table` of each pool photo, [P]; None when the pool has photos that are not there."""
    if table.name != model.table_name:
        return None
    row_of = {id_: row for row, id_ in enumerate(table.ids)}
    found = np.array([row_of.get(id_, -1) for id_ in model.pool.ids], np.int64)
    return None if (found < 0).any() else found


def predict_rows(
    model: Model,
    table: Table,
    features: FeatureSet,
    rows: IntArray,
    *,
    store: Store | None = None,
    device: str = "cpu",
) -> FloatArray:
    """Distributions [n, S] of rows of a table, beside the model's pool; none consults itself."""
    references = find_references(model, table, features, rows, store=store, device=device)
    p = model.predict(model.numbers(features, rows, device=device), references, device=device)
    check_distributions(p)
    return p


def crossvalidate(
    recipe: Recipe,
    table: Table,
    features: FeatureSet,
    folds: Folds,
    seeds: Sequence[int],
    *,
    device: str = "cpu",
    run: Path | None = None,
    same: SamePhotos | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[Predictions, list[dict[str, Any]]]:
    """Each fold predicted by a model trained on the others, for each seed; also a line about each training.

    A training photo that is the same as a test photo is left out of that training. With `run` each finished training
    is kept there, and a killed call goes on.
    """
    same = same or find_same_photos(table, features)
    tested = np.flatnonzero((folds.codes >= 0) & features.readable)
    place = np.full(len(table), -1, np.int64)
    place[tested] = np.arange(len(tested))
    found = np.full((len(seeds), len(tested), len(table.values)), np.nan)
    lines: list[dict[str, Any]] = []
    total, done = len(seeds) * len(folds.names), 0
    for s, seed in enumerate(seeds):
        for fold, name in enumerate(folds.names):
            test = tested[folds.codes[tested] == fold]
            train, twins = splits.without_twins(np.flatnonzero(folds.codes != fold), test, same.pairs)
            identity = _identity(recipe, table, features, train, test, seed, device)
            cell = None if run is None else run / f"{recipe.name}-{digest_text(canonical_json(identity))[:16]}"
            if progress is not None:
                progress(done, total, f"{recipe.name}, seed {seed}, fold {name}")
            p, line = _cell(
                cell, identity, recipe, table, features, Split(train, test, folds.group), seed, device, store
            )
            found[s, place[test]] = p
            lines.append({"seed": seed, "fold": name, "twins": len(twins), **line})
            done += 1
    if progress is not None:
        progress(total, total, recipe.name)
    predictions = Predictions(tested, folds.codes[tested], folds.names, tuple(seeds), found)
    return predictions, lines


def _identity(
    recipe: Recipe, table: Table, features: FeatureSet, train: IntArray, test: IntArray, seed: int, device: str
) -> dict[str, Any]:
    """What decides the outcome of one training."""
    import torch

    return {
        "recipe": asdict(recipe),
        "photos": digest_text(canonical_json([table.name, table.ids, table.votes.tolist()])),
        "features": {role: part["digest"] for role, part in features.config.items()},
        "rows": digest_text(canonical_json([train.tolist(), test.tolist()])),
        "seed": seed,
        "device": device,
        "torch": torch.__version__,
    }


def _cell(
    folder: Path | None,
    identity: Mapping[str, Any],
    recipe: Recipe,
    table: Table,
    features: FeatureSet,
    split: Split,
    seed: int,
    device: str,
    store: Store | None,
) -> tuple[FloatArray, dict[str, Any]]:
    """One training and its test predictions, read back when it is finished already."""
    stored = None if folder is None else folder / "predictions.npz"

    def read() -> tuple[FloatArray, dict[str, Any]] | None:
        if stored is None or not stored.exists():
            return None
        with np.load(stored, allow_pickle=False) as data:
            return data["p"], json.loads(str(data["line"]))

    known = processes.from_first(read)
    if known is not None:
        return known
    model = fit(recipe, table, features, split, seed, device=device, run=Run(folder, identity), store=store)
    refuse_seen(table, features, split.test, model.seen, f"this fold's {recipe.name}")
    p = predict_rows(model, table, features, split.test, device=device)
    line = {"epochs": model.epochs, "pool": len(model.pool)}
    if stored is not None and processes.first():
        with atomic_path(stored) as temporary, temporary.open("wb") as file:
            np.savez(file, p=p, line=np.array(json.dumps(line)))
        for name in stored.parent.iterdir():  # the predictions are all that is needed from here on
            if name.name not in ("predictions.npz", "identity.json"):
                name.unlink()
    return p, line


def evaluate(
    model: Model,
    table: Table,
    features: FeatureSet,
    rows: IntArray,
    *,
    split: str,
    store: Store | None = None,
    device: str = "cpu",
) -> Predictions:
    """Predictions for test photos that no trained part has seen. `store`: references of the table, found before.

    Refuses (LeakError) photos that were seen or sit in the pool, by id or pixels; features of another kind than those
    the model was trained on (ArtifactError); a table with other score values (UsageError).
    """
    refuse_other_features(model, features)
    refuse_other_values(model, table)
    usable = rows[features.readable[rows]]
    if not len(usable):
        raise UsageError(f"no photo of the split {split!r} could be read")
    refuse_seen(table, features, usable, model.seen, "the model")
    p = predict_rows(model, table, features, usable, store=store, device=device)
    return Predictions(usable, np.zeros(len(usable), np.int64), (split,), (model.seed,), p[None])


def refuse_other_values(model: Model, table: Table) -> None:
    """Raise UsageError, naming both, unless the table has the score values that the model predicts."""
    if not np.array_equal(model.values, table.values):
        raise UsageError(
            f"the model predicts values {model.values.tolist()}, but {table.name} has {table.values.tolist()}: "
            f"they cannot be compared"
        )


def refuse_other_features(model: Model, features: FeatureSet) -> None:
    """Raise ArtifactError, naming both, unless `features` were made the way the model's were."""
    if model.recipe.takes_maps:
        require_maps(features)
    for role, got in features.config.items():
        wanted = model.features.get(role, {})
        for part in ("extraction", "span", "pooling"):
            if part in wanted and wanted[part] != got[part]:
                raise ArtifactError(
                    f"the model was trained on {role} features {wanted.get('name')} ({_short(wanted[part])}), but "
                    f"these are {got['name']} ({_short(got[part])}): extract the same kind, or choose with --{role}"
                )


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        size = value.get("preprocess", {}).get("size")
        return f"{value.get('backbone')}, weights {str(value.get('weights'))[:8]}, size {size}"
    return str(value)


def note_look(data: Path, model_digest: str, split: str, rows: IntArray) -> int:
    """Write down that a split was looked at; returns how often it has been, this time included."""
    path = data / "looks.jsonl"
    of = digest_text(canonical_json([split, rows.tolist()]))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        looks = 1 + sum(bool(json.loads(line)["rows"] == of) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}): it counts how often a split was looked at; mend it"
        ) from error
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lines.append(json.dumps({"date": date, "split": split, "rows": of, "model": model_digest}))
    write_text(path, "\n".join(lines) + "\n")
    return looks
