"""Bursts: photos of one thing taken at one time, and which of them to keep. Advice alone: nothing is moved or deleted.

    capture_time(exif), layout(pixels) -> find_bursts(times, layouts, features) -> rank_bursts(...)

Photos belong together when they were taken within seconds *and* look alike. Alike means: the same light and dark parts
in the same places, whatever the exposure, after a small move of the camera; or partly so, while the model sees nearly
the same in both. The limits are those of benchmarks/bursts.py, chosen there on one half of the photos.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milnet import exif
from milnet.errors import UsageError

GAP = 30.0  # seconds between a photo and the burst it joins, at most: brackets and series take time, themes minutes
ALIKE = 0.45  # likeness of layouts from which two photos are alike
PARTLY = 0.2  # likeness of layouts that is enough if the model's features agree
AGREE = 0.95  # cosine of the model's semantic features from which they agree
SOFT = 15.0  # points of sharpness (signals.py) below the sharpest of the burst that put a photo behind
ROUNDING = 1e-5  # scores no further apart are equal: that much may change with the photos a batch holds
LAYOUT = 256  # bytes of a layout

_SIDE = 16  # of the picture that a layout is
_MOVE = 3  # sixteenths of the sides by which two layouts are moved against each other at most
_OPEN = 32  # bursts that stay open at most: a scanner may give thousands of photos one moment
_LATEST = 4  # photos of a burst that a new one is compared with, so that a camera that is panned stays one burst


@dataclass(frozen=True)
class Place:
    """Where a photo stands in its burst."""

    group: int  # number of the burst, from 1, in the order of time
    rank: int  # 1 = the best
    keep: bool  # whether it is worth keeping


# ---- when ------------------------------------------------------------------------------------------------------------

_TAKEN = ((0x9003, 0x9291), (0x9004, 0x9292))  # DateTimeOriginal, DateTimeDigitized; each with its SubSecTime
_DATE = re.compile(r"(\d{4})[:./-](\d\d?)[:./-](\d\d?)[ T](\d\d?):(\d\d?):(\d\d?)(?:\.(\d+))?")


def capture_time(data: bytes) -> float | None:
    """When a photo was taken, in seconds, by its EXIF block (TIFF structure, "Exif\\0\\0" before it or not).

    DateTimeOriginal, else DateTimeDigitized, with their parts of a second. DateTime is not used: it is when the file
    was last changed. The camera's clock is taken as UTC, so only differences mean something. None if there is no time
    or the block is damaged; never an error.
    """
    found = exif.texts(exif.block(data))
    for tag, fine in _TAKEN:
        date = _DATE.match(found.get(tag, ""))
        if date is None:
            continue
        part = re.match(r"\d+", date[7] or found.get(fine, ""))
        try:
            moment = datetime(*map(int, date.groups()[:6]), tzinfo=UTC)  # type: ignore[misc, arg-type]
        except ValueError:  # zeros of a clock that was never set, the 31st of February
            continue
        return moment.timestamp() + (float(f"0.{part[0]}") if part else 0.0)
    return None


# ---- how alike -------------------------------------------------------------------------------------------------------


def layout(pixels: Image.Image) -> NDArray[np.uint8]:
    """Where an upright photo, mode RGB or L, is light and dark, [256] uint8: ranks of the brightness of 16 x 16 parts.

    Ranks, because they stay as they are when the exposure changes, but for what is clipped.
    """
    # Shrunk roughly first: a tenth of the time, and the parts are means of many pixels either way.
    small = pixels.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    _, places, counts = np.unique(np.asarray(small), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2  # of equal parts the mean of their ranks
    return ranks[places].round().astype(np.uint8).ravel()


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Likeness of two layouts, -1..1: the correlation of their details where it is best, moved against each other."""
    return float((_moved(first) * _moved(second)[::-1]).sum(1).max())


def _masks() -> NDArray[np.float32]:
    """For each move the part of a picture that overlaps with another moved by it, [49, 16, 16]."""
    found = np.zeros((len(_MOVES), _SIDE, _SIDE), np.float32)
    for one, (down, right) in zip(found, _MOVES, strict=True):
        one[max(down, 0) : _SIDE + min(down, 0), max(right, 0) : _SIDE + min(right, 0)] = 1
    return found


# The move of the one photo is the opposite of that of the other, and stands as far from the end as that from the start.
_MOVES = [(down, right) for down in range(-_MOVE, _MOVE + 1) for right in range(-_MOVE, _MOVE + 1)]
_MASKS = _masks()
# For each move where each part comes from when what overlaps is pushed to the corner, [49, 256].
_PLACES = np.stack(
    [
        np.roll(np.arange(LAYOUT).reshape(_SIDE, _SIDE), (-max(down, 0), -max(right, 0)), (0, 1)).ravel()
        for down, right in _MOVES
    ]
)


def _moved(ranks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The details of a layout for each move, what overlaps pushed to the corner, mean 0 and length 1: [49, 256]."""
    x = ranks.reshape(_SIDE, _SIDE).astype(np.float32)
    wide = np.pad(x, 2, mode="edge")
    around = sum(wide[i : i + _SIDE, j : j + _SIDE] for i in range(5) for j in range(5)) / 25
    x = x - around  # the details alone: sky above and ground below is in every second photo
    x = (x - (x * _MASKS).sum((1, 2), keepdims=True) / _MASKS.sum((1, 2), keepdims=True)) * _MASKS
    length = np.sqrt((x * x).sum((1, 2), keepdims=True))
    x = np.divide(x, length, out=np.zeros_like(x), where=length > 1e-3)
    return np.take_along_axis(x.reshape(len(_MOVES), LAYOUT), _PLACES, axis=1)


# ---- which belong together -------------------------------------------------------------------------------------------


@dataclass
class _Open:
    """A burst that photos may still join."""

    members: list[int]
    latest: list[tuple[float, int]]  # its latest photos: time, number


def join(
    times: Sequence[tuple[float, int]], alike: Callable[[int, int], bool], *, gap: float, share: float = 0.5
) -> list[list[int]]:
    """Photos (time in seconds, number), in the order of time, to groups of their numbers, of one photo or more.

    A photo joins a group when it is `alike` to at least this share of those of its latest 4 photos that were taken at
    most `gap` seconds before; of several groups the one of which it is alike to most, the younger one if equal.
    """
    groups: list[list[int]] = []
    open_ones: list[_Open] = []
    for now, i in times:
        open_ones = [one for one in open_ones[-_OPEN:] if now - one.latest[-1][0] <= gap]
        best, chosen = 0.0, None
        for one in open_ones:
            near = [alike(i, other) for time, other in one.latest if now - time <= gap]
            if sum(near) / len(near) >= max(best, share):
                best, chosen = sum(near) / len(near), one
        if chosen is None or not best:
            chosen = _Open([], [])
            groups.append(chosen.members)
        else:
            open_ones.remove(chosen)
        open_ones.append(chosen)
        chosen.members.append(i)
        chosen.latest = [*chosen.latest, (now, i)][-_LATEST:]
    return groups


def find_bursts(
    taken: Sequence[float | None],
    layouts: NDArray[np.uint8],
    features: NDArray[np.float32] | None = None,
    *,
    gap: float = GAP,
) -> list[int | None]:
    """The number of each photo's burst, from 1 in the order of time; None of photos that stand alone or have no time.

    `taken`: seconds (capture_time); `layouts`: [n, 256]; `features`: semantic features [n, D] of the model in use,
    which find bursts in which much moves. How photos come together: `join`; what is alike: the head of this module. The
    order of the photos does not matter. Raises UsageError when the lengths differ.
    """
    count = len(taken)
    if layouts.shape != (count, LAYOUT) or (features is not None and len(features) != count):
        raise UsageError(
            f"bursts of {count} photos: expected layouts of {count} x {LAYOUT} and as many features, got layouts of "
            f"{' x '.join(map(str, layouts.shape))} and {'no' if features is None else len(features)} features"
        )
    times = [(float(time), i) for i, time in enumerate(taken) if time is not None]

    def looks(i: int) -> bytes:
        return bytes(layouts[i].tobytes() + (b"" if features is None else features[i].tobytes()))

    # Photos of the same moment by their looks, which do not depend on how they were given.
    times.sort(key=lambda one: (one[0], looks(one[1])))

    moved = lru_cache(maxsize=2 * _OPEN * _LATEST)(lambda i: _moved(layouts[i]))

    def alike(i: int, other: int) -> bool:
        found = float((moved(i) * moved(other)[::-1]).sum(1).max())
        return found >= ALIKE or (
            found >= PARTLY and features is not None and cosine(features[i], features[other]) >= AGREE
        )

    found: list[int | None] = [None] * count
    for number, photos in enumerate((photos for photos in join(times, alike, gap=gap) if len(photos) > 1), 1):
        for i in photos:
            found[i] = number
    return found


def cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine of two features [D], 0 where one of them is nothing."""
    return float(first @ second) / max(float(np.linalg.norm(first)) * float(np.linalg.norm(second)), 1e-12)


# ---- which to keep ---------------------------------------------------------------------------------------------------


def rank_burst(scores: Sequence[float], sharpness: Sequence[float]) -> list[int]:
    """Rank of each photo of one burst, 1 = the best: by score, but soft photos behind all others.

    Soft is a photo whose sharpness is more than 15 points below that of the sharpest of the burst, a blur of about half
    a pixel of what was measured. Equal scores (to ROUNDING) go by sharpness, then by their order.
    """
    limit = max(sharpness, default=0.0) - SOFT
    levels, level, last = [0] * len(scores), 0, math.inf
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        level += last - scores[i] > ROUNDING
        levels[i], last = level, scores[i]
    order = sorted(range(len(scores)), key=lambda i: (sharpness[i] < limit, levels[i], -sharpness[i]))
    ranks = [0] * len(scores)
    for rank, i in enumerate(order, 1):
        ranks[i] = rank
    return ranks


def rank_bursts(
    groups: Sequence[int | None], scores: Sequence[float], sharpness: Sequence[float], *, near: float = 0.0
) -> list[Place | None]:
    """The place of each photo in its burst (`groups`: find_bursts); None of photos that stand alone.

    Worth keeping are the best of each burst and those that are nearly as good: not soft, and not more than `near` below
    the best in score, in its units. Raises UsageError when the lengths differ.
    """
    if not len(groups) == len(scores) == len(sharpness):
        raise UsageError(
            f"expected a score and a sharpness for each of {len(groups)} photos, got {len(scores)} and {len(sharpness)}"
        )
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(i)
    found: list[Place | None] = [None] * len(groups)
    for group, photos in members.items():
        ranks = rank_burst([scores[i] for i in photos], [sharpness[i] for i in photos])
        best = scores[photos[ranks.index(1)]]
        limit = max(sharpness[i] for i in photos) - SOFT
        for i, rank in zip(photos, ranks, strict=True):
            keep = rank == 1 or (sharpness[i] >= limit and scores[i] >= best - near - ROUNDING)
            found[i] = Place(group, rank, keep)
    return found
