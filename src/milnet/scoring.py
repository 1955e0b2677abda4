"""Any photo -> its score: `Scorer`. Many files, of which nothing is made twice: files.py.

A photo goes through the backbone that made the model's features, finds its references in the model's pool (never
itself), and the network predicts the distribution of votes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from milnet import bursts
from milnet.annotations import FloatArray, deviation
from milnet.artifacts import canonical_json, digest_text, read_manifest
from milnet.aside import Aside, look
from milnet.checkpoints import load_model
from milnet.doubt import Doubt
from milnet.errors import ArtifactError, ImageError, UsageError, WeightsError
from milnet.explanation import Explanation, explain
from milnet.extraction import Extracted, Extractor, load_extractor
from milnet.features import Progress, torch_threads
from milnet.images import MAX_PIXELS, Source
from milnet.places import find_model
from milnet.pool import RatedPool
from milnet.recipes import Model
from milnet.references import References
from milnet.shipped import BETTER
from milnet.signals import Signals
from milnet.taste import Taste, load_taste
from milnet.version import __version__
from milnet.weights import KNOWN, require, stand_in

_LEAST = 4  # photos that are judged at once
_FEW = 16  # photos that are scored together, by one thread
STARS = (10.0, 35.0, 65.0, 90.0)  # percentiles in the pool from which a photo has 2, 3, 4, 5 stars
StarsOf = Literal["percentile", "folder_percentile", "score"]  # what the limits of the stars are limits of
_STEP = 0.01  # between two limits of stars at least
LISTED = 8  # references of a photo that are shown at most
_NOTHING = Aside()
SIGNALS = tuple(field.name for field in fields(Signals))  # columns of the technical measurements
_CHUNK = 64  # photos that go through the first of two backbones before they go through the second


@dataclass(frozen=True)
class Reference:
    """A rated photo that was consulted: id, likeness (cosine), how people voted, and what it did to the score."""

    id: str
    similarity: float
    votes: tuple[float, ...]  # how many chose each value
    influence: float  # what it added to the score, in its units


@dataclass(frozen=True)
class Score:
    """What milnet says about one photo. All scores are in units of the model's values (for example 1..7).

    score = base + own + the references' influences + rest, to 1e-4. low, high, unlike and percentile are None where the
    model was not calibrated, or its pool has changed since.
    """

    photo: str
    score: float  # mean of the predicted distribution
    low: float | None  # 90 % interval for the mean vote of a large panel
    high: float | None
    spread: float | None  # expected standard deviation of the votes: how much viewers disagree; None of one's own taste
    percentile: float | None  # 100 x share of pool photos whose out-of-fold predicted score is lower
    stars: int | None  # 1 + how many of the scorer's `stars` (percentiles, or scores) are reached
    folder_percentile: float | None  # the same among the photos of this call
    unlike: float | None  # 1 - share of pool photos whose own nearest similarity is lower: above .97, outside the pool
    distribution: tuple[float, ...]  # share of votes at each value
    base: float  # mean vote of the pool the model learned from
    own: float  # what the photo itself adds to it
    references: tuple[Reference, ...]  # all, nearest first; of more than 8, the 8 that moved the score most
    rest: float  # what the other references add; of a graph network also what its parts do not explain
    values: tuple[float, ...]
    model: str  # digest of the model
    milnet: str = __version__
    signals: Signals | None = None  # technical measurements; they take no part in the score
    group: int | None = None  # number of its burst among the photos of this call; None: it stands alone
    rank: int | None = None  # place in its burst, 1 = the best
    keep: bool | None = None  # advice: whether it is worth keeping of its burst

    def row(self) -> dict[str, Any]:
        """The columns of the output files, in their order."""
        return {
            "photo": self.photo,
            "score": self.score,
            "low": self.low,
            "high": self.high,
            "spread": self.spread,
            "percentile": self.percentile,
            "stars": self.stars,
            "folder_percentile": self.folder_percentile,
            "unlike": self.unlike,
            "group": self.group,
            "rank": self.rank,
            "keep": self.keep,
            **{f"p_{value:g}": p for value, p in zip(self.values, self.distribution, strict=True)},
            "base": self.base,
            "own": self.own,
            "references": json.dumps([reference.__dict__ for reference in self.references]),
            "rest": self.rest,
            **(dict.fromkeys(SIGNALS) if self.signals is None else asdict(self.signals)),
            "model": self.model,
            "milnet": self.milnet,
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, for a cache."""
        return {
            **self.__dict__,
            "references": [reference.__dict__ for reference in self.references],
            "signals": None if self.signals is None else asdict(self.signals),
        }


@dataclass(frozen=True)
class Failure:
    """A photo that could not be scored, and why."""

    photo: str
    reason: str


@dataclass(frozen=True)
class Seen:
    """What the backbones made of a photo: all numbers of each, `nodes` [D] or maps [25, D], and `semantic` [D']."""

    nodes: NDArray[np.float32]
    semantic: NDArray[np.float32]
    pixels: str  # digest
    aside: Aside = _NOTHING


class Timed(NamedTuple):
    """What bursts are found by."""

    taken: float  # capture time in seconds
    layout: bytes
    semantic: NDArray[np.float16]  # half the bytes: thousands of photos are held until the last is scored


def where_weights(part: Mapping[str, Any], given: str | Path | None, option: str) -> tuple[str, str]:
    """Where the weights of a backbone are, and the digest they must have there.

    As given, else where they were for the features, else what was added with `milnet weights add`. What was added has
    passed its check, and may differ from the weights of the features by rounding: then the digest is its own.
    """
    source = str(given) if given is not None else str(part["weights"])
    digest = str(part["extraction"].get("weights", ""))  # none where no network of ours made them
    if source in KNOWN:
        added = require(source)
        # features made with what was added, here or elsewhere, or with the weights that it stands for
        ours = part.get("weights") == source or digest == KNOWN[source].digest
        return str(added.path), added.digest if ours else digest
    if given is not None or source.startswith("random:") or source == "cached":
        return source, digest
    if source == "hub":
        return "cached", digest  # it was downloaded for the features; here nobody has asked for a download
    if Path(source).exists():
        return source, digest
    found = stand_in(digest)
    if found is None:
        known = any(digest == one.digest for one in KNOWN.values())
        raise WeightsError(
            f"the model's backbone weights were at {source}, which is not there any more: pass {option} FILE "
            f"with the file whose weights have sha256 {digest[:12]}..."
            + (", or add it once and for all: milnet weights add FILE" if known else "")
        )
    return str(found.path), found.digest


def _photo_part(extraction: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a backbone, without what is done with them later."""
    return {key: extraction.get(key) for key in ("backbone", "weights", "preprocess", "normalisation")}


class Scorer:
    """A model with its backbones: `Scorer.load(MODEL).score([...])`.

    `nodes` makes what enters the network (with a reducer: wide maps), `semantic` what references are found by: the same
    extractor, or two. With a `taste` the model is the general one beneath it, and values, pool and doubt are the
    person's.
    """

    def __init__(
        self,
        model: Model,
        nodes: Extractor,
        semantic: Extractor,
        digest: str,
        *,
        device: str = "cpu",
        stars: Sequence[float] | None = None,
        stars_of: StarsOf = "percentile",
        taste: Taste | None = None,
    ) -> None:
        self.model, self.digest, self.device = model, digest, device
        self.nodes = replace(nodes, look=look)
        self.semantic = self.nodes if semantic is nodes else semantic
        self.taste = taste
        if stars is None:
            stars, stars_of = (STARS if taste is None else as_rated(taste)), "percentile"
        self.stars, self.stars_of = check_stars(stars, stars_of), stars_of
        self.semantic_span = slice(*model.features["semantic"]["span"])
        self._spans = {role: slice(*part["span"]) for role, part in model.features.items()}
        # what decides the numbers of each backbone: by these a cache knows them
        config = nodes.config if not self.takes_maps else {**nodes.config, "pooling": nodes.pooling}
        self.keys = digest_text(canonical_json(config)), digest_text(canonical_json(semantic.config))

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        weights: str | Path | None = None,
        semantic_weights: str | Path | None = None,
        device: str = "cpu",
        offline: bool = False,
        batch: int | None = None,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        stars: Sequence[float] | None = None,
        stars_of: StarsOf = "percentile",
        runtime: str = "torch",
    ) -> Scorer:
        """Load a MODEL folder, or a shipped model by its name, and the backbones its features were made with.

        A folder that `milnet taste` made is a MODEL, too. `stars`: ascending percentiles in the pool from which a
        photo has 2, 3, ... stars, with `stars_of` percentiles in the folder, or scores; by default (10, 35, 65, 90), of
        a taste each number of stars as often as the person gave it.
        `weights`, `semantic_weights`: where the weights of the node and the semantic backbone are now ("hub" may
        download them); by default where they were for the features, or the hub's cache. A model of one backbone needs
        the first alone. `runtime`: what passes photos through the backbones: torch, onnx (onnxruntime, on a CPU), or
        auto, the faster of the two here; scores differ by rounding. Raises ArtifactError for a folder that is no model,
        WeightsError when the backbone's weights are missing or not the same, UsageError when the features were not made
        from photos.
        """
        model = find_model(model)
        taste: Taste | None = None
        if read_manifest(model).kind == "taste":
            taste, manifest = load_taste(model, device=device)
            fitted = taste.general
        else:
            fitted, manifest = load_model(model, device=device)
        part, semantic = fitted.node_features, fitted.features["semantic"]
        wide = part["extraction"].get("wide") or {}
        pooling = part.get("pooling") or wide.get("pooling")
        if "reducer" in semantic["extraction"]:
            raise UsageError(
                f"{model} finds its references by reduced features ({semantic.get('name')}), which photos cannot be "
                f"scored with: train it with the features of a backbone as --semantic"
            )
        if "reducer" in part["extraction"] and fitted.reducer is None:
            raise ArtifactError(f"{model} lacks the reducer that its node features were made with: train it again")
        if pooling is None and fitted.reducer is not None:
            raise ArtifactError(f"{model} reduces wide maps but does not say how they were pooled: train it again")
        how: Any = {
            "offline": offline, "device": device, "batch": batch, "workers": workers, "max_pixels": max_pixels,
            "runtime": runtime,
        }  # fmt: skip
        own: Any = {"device": device, "stars": stars, "stars_of": stars_of, "taste": taste}
        place, expected = where_weights(part, weights, "--weights")
        extractor = load_extractor(part["extraction"], place, digest=expected, pooling=pooling, **how)
        if _photo_part(semantic["extraction"]) == _photo_part(part["extraction"]):
            return cls(fitted, extractor, extractor, manifest.digest, **own)
        place, expected = where_weights(semantic, semantic_weights, "--semantic-weights")
        second = load_extractor(semantic["extraction"], place, digest=expected, **how)
        return cls(fitted, extractor, second, manifest.digest, **own)

    @property
    def values(self) -> FloatArray:
        """The values [S] of the scores: the model's, or the levels of a person's ratings."""
        return self.model.values if self.taste is None else self.taste.values

    @property
    def pool(self) -> RatedPool:
        """The rated photos that are consulted: the model's, or a person's own."""
        return self.model.pool if self.taste is None else self.taste.pool

    @property
    def doubt(self) -> Doubt:
        """How far scores can be trusted: of the model among its pool, or of a person's taste."""
        return self.model.doubt if self.taste is None else self.taste.doubt

    @property
    def whole(self) -> bool:
        """Whether each photo consults the whole pool."""
        return self.taste is not None or self.model.recipe.whole

    @property
    def exact(self) -> bool:
        """Whether the parts of a score explain all of it; of a graph network they leave a remainder."""
        return self.taste is not None or self.model.recipe.model != "graph"

    @property
    def batch(self) -> int:
        """Photos a forward pass."""
        return self.nodes.batch

    @property
    def probed(self) -> list[str]:
        """What was measured to choose between PyTorch and onnxruntime; nothing before the first photos have passed."""
        engines = dict.fromkeys((self.nodes.engine, self.semantic.engine))
        return [engine.said for engine in engines if engine is not None and engine.said]

    def score(self, photos: Sequence[Source] | Source, *, progress: Progress | None = None) -> list[Score]:
        """Score paths, bytes, PIL images or arrays (HWC uint8 RGB in [0, 255]), one or many, in their order.

        Raises ImageError for the first photo that cannot be read; `stream` goes on instead.
        """
        several: list[Source] = list(photos) if isinstance(photos, list | tuple) else [photos]  # type: ignore[list-item]
        found: dict[int, Score] = {}
        for key, result in self.stream(enumerate(several)):
            if isinstance(result, Failure):
                raise ImageError(result.photo, result.reason)
            found[key] = result
            if progress is not None:
                progress(len(found), len(several), "photos")
        return ranked([found[i] for i in range(len(several))], self.stars, self.stars_of)

    def stream(self, items: Iterable[tuple[Any, Source]]) -> Iterator[tuple[Any, Score | Failure]]:
        """Yield (key, Score or Failure) for each (key, source), as they are made, not in their order."""
        names: dict[Any, str] = {}

        def named() -> Iterator[tuple[Any, Source]]:
            for key, source in items:
                names[key] = str(source) if isinstance(source, str | Path) else f"<{type(source).__name__} {key}>"
                yield key, source

        for key, result, _ in self.judged(named(), names.pop):
            yield key, result

    def judged(
        self, items: Iterable[tuple[Any, Source]], name: Callable[[Any], str]
    ) -> Iterator[tuple[Any, Score | Failure, Seen | None]]:
        """`stream` with what the backbones made of each photo; `name` gives what the photo of a key is called."""
        waiting: list[tuple[Any, Seen]] = []

        def scores() -> Iterator[tuple[Any, Score, Seen]]:
            found = self.judge([name(key) for key, _ in waiting], [seen for _, seen in waiting])
            for (key, seen), score in zip(waiting, found, strict=True):
                yield key, score, seen

        for key, result in self.see(items):
            if isinstance(result, ImageError):
                yield key, Failure(name(key), result.reason), None
                continue
            waiting.append((key, result))
            if len(waiting) >= self.together:
                yield from scores()
                waiting = []
        if waiting:
            yield from scores()

    @property
    def together(self) -> int:
        """Photos that are judged at once."""
        return max(self.batch, _FEW)

    def see(self, items: Iterable[tuple[Any, Source]]) -> Iterator[tuple[Any, Seen | ImageError]]:
        """What the backbones make of each photo. For two of them each photo is decoded twice, some at a time."""
        if self.semantic is self.nodes:
            for result in self.nodes.stream(items):
                yield result.key, self.seen(result, result)
            return
        following = iter(items)
        while chunk := list(itertools.islice(following, _CHUNK)):
            semantic = {result.key: result for result in self.semantic.stream(chunk)}
            for result in self.nodes.stream(chunk):
                yield result.key, self.seen(result, semantic[result.key])

    def seen(self, nodes: Extracted[Any], semantic: Extracted[Any]) -> Seen | ImageError:
        """What both backbones made of one photo."""
        error = nodes.error or semantic.error
        if error is not None:
            return error
        assert nodes.features is not None and semantic.features is not None
        entering = nodes.maps if self.takes_maps else nodes.features
        assert entering is not None
        return Seen(entering, semantic.features, nodes.pixels, nodes.looked or Aside())

    @property
    def takes_maps(self) -> bool:
        """Whether the network learned from wide maps, of which there are too many numbers to keep."""
        return self.model.reducer is not None or self.model.recipe.model == "reducer"

    def entering(self, seen: Sequence[Seen]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """What the model takes of n photos: node features [n, D], or maps [n, 25, D]; semantic features [n, Ds]."""
        nodes: NDArray[Any] = np.stack([one.nodes for one in seen])
        if self.model.reducer is not None:
            nodes = self.model.reduce(nodes, np.arange(len(nodes), dtype=np.int64), device=self.device)
        elif not self.takes_maps:
            nodes = nodes[:, self._spans["nodes"]]
        return nodes, np.stack([one.semantic[self.semantic_span] for one in seen])

    def timed(self, aside: Aside, semantic: NDArray[np.float32]) -> Timed | None:
        """What bursts are found by; None of a photo that nobody knows the time of."""
        if aside.taken is None or len(aside.layout) != bursts.LAYOUT:
            return None
        return Timed(aside.taken, aside.layout, semantic[self.semantic_span].astype(np.float16))

    def judge(self, photos: Sequence[str], seen: Sequence[Seen]) -> list[Score]:
        """Scores of photos from what the backbones made of them.

        Fewer than 4 are judged as 4, the last one again and again: products of one, two or three rows are summed in
        another order, which moved scores by up to 1e-5.
        """
        padded = [*seen, *([seen[-1]] * (_LEAST - len(seen)))]
        nodes, semantic = self.entering(padded)
        # A few photos are too little for several threads, which would wait for each other and for the decoding ones.
        with torch_threads(1 if len(nodes) <= _FEW and nodes.ndim == 2 else torch.get_num_threads()):
            scores = self.score_features(
                nodes,
                semantic,
                photos=[*photos, *([photos[-1]] * (_LEAST - len(seen)))],
                pixels=[one.pixels for one in padded],
            )
        return [replace(score, signals=one.aside.signals) for score, one in zip(scores, seen, strict=False)]

    def score_features(
        self,
        nodes: NDArray[Any],
        semantic: NDArray[np.float32],
        *,
        photos: Sequence[str],
        pixels: Sequence[str] | None = None,
    ) -> list[Score]:
        """Scores from node features [n, D] (of a model of maps alone: [n, 25, D]) and semantic features [n, Ds]."""
        doubt = self.doubt
        how: Any = {"pixels": pixels, "device": self.device}
        if self.taste is None:
            references = self.model.find(semantic, **how)
            parts = explain(self.model, nodes, references, device=self.device)
        else:
            references = self.taste.find(semantic, **how)
            parts = self.taste.explain(nodes, semantic, references, **how)
        p = parts.distribution
        scores, deviations = p @ self.values, deviation(p, self.values)
        nearest = self._nearest(semantic, references, pixels)
        low, high = doubt.within(scores, deviations, nearest, self.values)
        percentiles, unlike, spreads = doubt.percentile(scores), doubt.unlike(nearest), doubt.spread(deviations)
        values = tuple(self.values.tolist())
        found = []
        for i in range(len(p)):
            listed, rest = self._references(i, references, parts)
            found.append(
                Score(
                    photo=photos[i],
                    score=float(scores[i]),
                    low=_known(low[i]),
                    high=_known(high[i]),
                    spread=None if self.taste is not None else float(spreads[i]),  # one person does not disagree
                    percentile=_known(percentiles[i]),
                    stars=None,  # given with the folder's percentiles: they are the user's choice, not the model's
                    folder_percentile=None,
                    unlike=_known(unlike[i]),
                    distribution=tuple(p[i].tolist()),
                    base=float(parts.base[i]),
                    own=float(parts.own[i]),
                    references=listed,
                    rest=rest,
                    values=values,
                    model=self.digest,
                )
            )
        return found

    def _nearest(
        self, semantic: NDArray[np.float32], references: References | None, pixels: Sequence[str] | None
    ) -> NDArray[np.float32]:
        """Similarity [n] of the nearest pool photo that is not the photo itself."""
        if references is None or not references.index.shape[1]:
            if not len(self.doubt.nearest):
                return np.full(len(semantic), np.nan, np.float32)
            how: Any = {"similarity": self.model.recipe.similarity, "device": self.device}
            references = self.model.pool.find(semantic, 1, pixels=pixels, **how)
        return references.similarity[:, 0]

    def _references(
        self, photo: int, references: References | None, parts: Explanation
    ) -> tuple[tuple[Reference, ...], float]:
        """The references of one photo that are shown, and what the score owes to none of them."""
        if references is None:
            return (), float(parts.remainder[photo])
        pool, index, influence = self.pool, references.index[photo], parts.influence[photo]
        places = np.flatnonzero(index >= 0)
        if len(places) > LISTED:  # those that moved the score most
            places = places[np.argsort(-np.abs(influence[places]), kind="stable")[:LISTED]]
        rows = index[places]
        votes = (pool.distributions[rows] * pool.totals[rows, None]).round(6).tolist()
        listed = tuple(
            Reference(pool.ids[row], round(likeness, 6), tuple(of_each), adds)
            for row, likeness, of_each, adds in zip(
                rows.tolist(),
                references.similarity[photo, places].tolist(),
                votes,
                influence[places].tolist(),
                strict=True,
            )
        )
        return listed, float(influence.sum() - influence[places].sum() + parts.remainder[photo])


def _known(x: float) -> float | None:
    return None if np.isnan(x) else float(x)


def check_stars(limits: Sequence[float], of: StarsOf = "percentile") -> tuple[float, ...]:
    """Limits from which a photo has 2, 3, ... stars; UsageError unless they ascend, percentiles within 0 .. 100."""
    found = tuple(float(x) for x in limits)
    inside = all(np.isfinite(x) if of == "score" else 0 < x < 100 for x in found)
    if not found or list(found) != sorted(set(found)) or not inside:
        example = "2.5,3.5,4.5,5.5" if of == "score" else ",".join(f"{x:g}" for x in STARS)
        raise UsageError(
            f"stars {','.join(f'{x:g}' for x in found) or 'none'}: expected ascending "
            + ("scores" if of == "score" else "percentiles between 0 and 100")
            + f", for example {example}: from each of them on a photo has one star more"
        )
    return found


def as_rated(taste: Taste) -> tuple[float, ...]:
    """Percentiles that give a person's photos each level as often as the person does."""
    shares = 100 * np.cumsum(taste.pool.distributions.mean(0))[:-1]
    steps = np.arange(len(shares)) * _STEP  # limits of levels that were never given would be equal
    return tuple((np.clip(shares, _STEP, 100 - (len(shares) + 1) * _STEP) + steps).tolist())


def star_signs(stars: int | None, of: int) -> str:
    """Stars as signs, filled ones first; nothing where the model cannot tell."""
    return "" if stars is None else "\u2605" * stars + "\u2606" * (of - stars)


def ranked(scores: Sequence[Score], stars: Sequence[float] = STARS, stars_of: StarsOf = "percentile") -> list[Score]:
    """The same scores with their stars, and 100 x the share of the others of this call that score lower (ties half).

    A tie is what differs by the last bits alone (bursts.ROUNDING), as the same picture in two batches does.
    """
    ordered = in_order(score.score for score in scores)
    return [placed(score, ordered, stars, stars_of) for score in scores]


def in_order(scores: Iterable[float]) -> FloatArray:
    """The scores of a call, ascending, as `placed` takes them."""
    return np.sort(np.fromiter(scores, np.float64))


def placed(score: Score, ordered: FloatArray, stars: Sequence[float], stars_of: StarsOf) -> Score:
    """A score with its place among those of its call (`in_order`), and its stars."""
    folder = None
    if len(ordered) > 1:
        low = np.searchsorted(ordered, score.score - bursts.ROUNDING, "left")
        high = np.searchsorted(ordered, score.score + bursts.ROUNDING, "right")
        folder = float(100 * (low + (high - low - 1) / 2) / (len(ordered) - 1))  # ties without the photo itself
    found = replace(score, folder_percentile=folder)
    of: float | None = getattr(found, stars_of)
    return replace(found, stars=None if of is None else 1 + sum(of >= limit for limit in stars))


def in_bursts(scores: Sequence[Score], timed: Sequence[Timed | None]) -> list[Score]:
    """The scores of photos, each with its place in its burst; those without a time stand alone."""
    found = list(scores)
    known = [(i, one) for i, one in enumerate(timed) if one is not None]
    sharpness = [sharpness_of(scores[i]) for i, _ in known]
    places = burst_places([one for _, one in known], [scores[i].score for i, _ in known], sharpness)
    for (i, _), place in zip(known, places, strict=True):
        if place is not None:
            found[i] = replace(found[i], group=place.group, rank=place.rank, keep=place.keep)
    return found


def sharpness_of(score: Score) -> float:
    """What soft photos of a burst are known by; 0 where it was not measured."""
    return score.signals.sharpness if score.signals else 0.0


def burst_places(
    timed: Sequence[Timed], scores: Sequence[float], sharpness: Sequence[float]
) -> list[bursts.Place | None]:
    """The place of each photo in its burst; None of those that stand alone."""
    if len(timed) < 2:
        return [None] * len(timed)
    layout = np.stack([np.frombuffer(one.layout, np.uint8) for one in timed])
    features = np.stack([one.semantic for one in timed]).astype(np.float32)
    groups = bursts.find_bursts([one.taken for one in timed], layout, features)
    return bursts.rank_bursts(groups, scores, sharpness)


def introduction(name: str, scorer: Scorer) -> str:
    """One line: which model scores, how good it is on photos it has not seen, how to get a better one."""
    quality = None if scorer.doubt.stale else scorer.doubt.srcc
    crossvalidated = "not cross-validated" if quality is None else f"cross-validated SRCC {quality:.2f}"
    values = f"{scorer.values[0]:g} to {scorer.values[-1]:g}"
    if scorer.taste is not None:
        return (
            f"{name}: your taste, from {len(scorer.pool):,} photos you rated, {crossvalidated} with your ratings; "
            f"scores {values}"
        )
    fitted = scorer.model
    return (
        f"{name}: {fitted.recipe.name} on {len(fitted.pool):,} rated photos of {fitted.table_name}, {crossvalidated}; "
        f"scores {values}" + (f". A better model: `{BETTER}`" if name == "pocket" else "")
    )


def score_of(data: Mapping[str, Any], photo: str) -> Score | None:
    """The score of `photo` that `Score.to_json` gave; None for what is no score of this milnet: it is made again."""
    try:
        if data["milnet"] != __version__:  # of the same numbers it may make another score
            return None
        references = tuple(Reference(**{**item, "votes": tuple(item["votes"])}) for item in data["references"])
        return Score(
            **{
                **data,
                "photo": photo,
                "references": references,
                "distribution": tuple(data["distribution"]),
                "values": tuple(data["values"]),
                "signals": None if data["signals"] is None else Signals(**data["signals"]),
            }
        )
    except (KeyError, TypeError):
        return None
