"""Files -> their scores: nothing is made twice, and a bad file is listed.

What the cache knows of a file's content is not made again; a copy waits for the first; a file that changed meanwhile
is scored but not kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from milnet.aside import Aside
from milnet.cache import Cache, Content, Kept, state_of
from milnet.errors import ImageError
from milnet.features import Progress
from milnet.images import Source
from milnet.scoring import Failure, Score, Scorer, Seen, Timed, in_bursts, ranked, score_of


@dataclass(frozen=True)
class Scored:
    """Scores of files, in the files' order, and the bad ones. `forward`: photos that went through a backbone."""

    scores: list[Score]
    failures: list[Failure]
    forward: int = 0


def score_files(
    scorer: Scorer, photos: Sequence[Path], cache: Cache | None = None, *, progress: Progress | None = None
) -> Scored:
    """Score files in their order: the scores of the good ones, the bad ones as failures.

    What the `cache` knows of their contents is not made again, and what is made goes there as it is made.
    """
    work = _Work(scorer, cache, len(photos), progress)
    work.run(photos)
    scores = work.in_bursts([photo for photo in photos if photo in work.found])
    return Scored(ranked(scores, scorer.stars, scorer.stars_of), work.failures, work.forward)


def see_files(
    scorer: Scorer, photos: Sequence[Path], cache: Cache | None = None, *, progress: Progress | None = None
) -> tuple[dict[Path, Seen], list[Failure]]:
    """What the backbones make of files, out of the cache where it knows them; the bad ones as failures."""
    work = _Work(scorer, cache, len(photos), progress, judges=False)
    work.run(photos)
    return {photo: work.seen[photo] for photo in photos if photo in work.seen}, work.failures


class _Beside(NamedTuple):
    """What a cache knows of a photo beside its score."""

    aside: Aside
    semantic: NDArray[np.float32]  # all numbers of the semantic backbone
    pixels: str  # digest


class _Work:
    """Files on their way to their scores: out of the cache, of numbers that the cache has, or of a forward pass."""

    def __init__(
        self, scorer: Scorer, cache: Cache | None, total: int, progress: Progress | None, *, judges: bool = True
    ) -> None:
        self.scorer, self.cache, self.total, self.progress, self.judges = scorer, cache, total, progress, judges
        self.found: dict[Path, Score] = {}
        self.seen: dict[Path, Seen] = {}  # instead of scores, where none are wanted
        self.failures: list[Failure] = []
        self.timed: dict[Path, Timed] = {}
        self.forward = 0
        self._open: dict[str, list[Path]] = {}  # content that is on its way -> the files that have it
        self._again: list[Path] = []
        self._waiting: list[tuple[Content, Seen, bool]] = []

    def run(self, photos: Sequence[Path]) -> None:
        """Score them all."""
        readable = []
        for photo in dict.fromkeys(photos):
            try:
                str(photo).encode()
            except UnicodeEncodeError:
                name = os.fsencode(photo).decode("utf-8", "backslashreplace")
                self.fail(name, "its name is not valid UTF-8, so no output could hold it: rename it")
            else:
                readable.append(photo)
        while readable:  # copies of a file that turned out bad, or was changed meanwhile, have a chance of their own
            self._run(readable)
            readable, self._again = self._again, []
        order = {str(photo): i for i, photo in enumerate(photos)}
        self.failures.sort(key=lambda failure: order.get(failure.photo, -1))

    def _run(self, photos: Sequence[Path]) -> None:
        for content, result in self.scorer.see(self._new(photos)):
            keep = bool(content.digest) and state_of(content.photo) == content.state
            if isinstance(result, ImageError) or not keep:
                others = [photo for photo in self._open.pop(content.digest, []) if photo != content.photo]
                self._again += others
            if isinstance(result, ImageError):
                self.fail(str(content.photo), result.reason)
                continue
            self.forward += 1
            if keep and self.cache is not None:
                self._keep(self.cache, content.digest, result)
            self._judge_later(content, result, keep)
        self._judge()

    def _new(self, photos: Sequence[Path]) -> Iterator[tuple[Content, Source]]:
        """The files that have to go through the backbones; the others are dealt with on the way."""
        contents = (Content(photo, "", "") for photo in photos) if self.cache is None else self.cache.contents(photos)
        for content in contents:
            if self.cache is not None and content.digest:
                if content.digest in self._open:  # a copy of one that is under way
                    self._open[content.digest].append(content.photo)
                    continue
                beside = self._beside(self.cache, content.digest)
                known = self.cache.score(content.digest, self.scorer.digest) if beside and self.judges else None
                score = None if known is None else score_of(known, str(content.photo))
                if score is not None and beside is not None:
                    self._done(content.photo, score, beside.aside, beside.semantic)
                    continue
                self._open[content.digest] = [content.photo]
                seen = self._kept(self.cache, content.digest, beside) if beside else None
                if seen is not None:
                    self._judge_later(content, seen, True)
                    continue
            yield content, content.photo

    def _beside(self, cache: Cache, content: str) -> _Beside | None:
        """What is known of a photo beside its score; None where it must be seen again."""
        kept = cache.features(content, self.scorer.keys[1])
        aside = None if kept is None else Aside.of_json(kept.notes)
        if kept is None or kept.numbers is None or aside is None:
            return None
        signals = aside.signals
        if signals is not None and signals.width * signals.height > self.scorer.nodes.max_pixels:
            return None  # to be refused, as it would be without a cache
        return _Beside(aside, kept.numbers, kept.pixels)

    def _kept(self, cache: Cache, content: str, beside: _Beside) -> Seen | None:
        """What the backbones made of a photo earlier."""
        nodes_key, semantic_key = self.scorer.keys
        if nodes_key == semantic_key:
            return Seen(beside.semantic, beside.semantic, beside.pixels, beside.aside)
        nodes = cache.features(content, nodes_key)
        if nodes is None or nodes.numbers is None:
            return None
        return Seen(nodes.numbers, beside.semantic, nodes.pixels, Aside.of_json(nodes.notes) or Aside())

    def _keep(self, cache: Cache, content: str, seen: Seen) -> None:
        nodes_key, semantic_key = self.scorer.keys
        notes = seen.aside.to_json()
        if not self.scorer.takes_maps:  # of those there are too many numbers
            cache.put_features(content, nodes_key, Kept(seen.nodes, seen.pixels, notes))
        if semantic_key != nodes_key:
            cache.put_features(content, semantic_key, Kept(seen.semantic, seen.pixels, notes))

    def _judge_later(self, content: Content, seen: Seen, keep: bool) -> None:
        """Several are judged at once. `keep`: whether its score goes into the cache: not of a file that has changed."""
        self._waiting.append((content, seen, keep))
        if len(self._waiting) >= self.scorer.together:
            self._judge()

    def _judge(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not self.judges:
            for content, one, keep in waiting:
                for photo in self._all_of(content, keep):
                    self.seen[photo] = one
                    self._tell()
            return
        if not waiting:
            return
        names, seen = [str(content.photo) for content, *_ in waiting], [seen for _, seen, _ in waiting]
        for (content, one, keep), score in zip(waiting, self.scorer.judge(names, seen), strict=True):
            if keep and self.cache is not None:
                self.cache.put_score(content.digest, self.scorer.digest, score.to_json())
            for photo in self._all_of(content, keep):
                self._done(photo, replace(score, photo=str(photo)), one.aside, one.semantic)

    def _all_of(self, content: Content, keep: bool) -> list[Path]:
        """The files that have this content; of one that changed meanwhile itself alone: others may wait under it."""
        return self._open.pop(content.digest, [content.photo]) if keep else [content.photo]

    def _done(self, photo: Path, score: Score, aside: Aside, semantic: NDArray[np.float32]) -> None:
        self.found[photo] = score
        timed = self.scorer.timed(aside, semantic)
        if timed is not None:
            self.timed[photo] = timed
        self._tell()

    def in_bursts(self, photos: Sequence[Path]) -> list[Score]:
        """The scores of these photos, each with its place in its burst."""
        unique = list(dict.fromkeys(photos))
        return in_bursts([self.found[photo] for photo in unique], [self.timed.get(photo) for photo in unique])

    def fail(self, photo: str, reason: str) -> None:
        """A photo cannot be scored."""
        self.failures.append(Failure(photo, reason))
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            done = len(self.found) + len(self.seen) + len(self.failures)
            self.progress(done, self.total, "photos")
