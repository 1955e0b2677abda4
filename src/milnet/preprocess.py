"""Photos -> the pixels a backbone takes: the whole photo, a crop, or its own size.

Torch is not needed here, so that processes which only decode (server/child.py) start fast and stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from milnet.errors import ImageError, UsageError
from milnet.images import (
    LEAST_SIDE,
    MAX_PIXELS,
    Photo,
    Source,
    open_photo,
    resize_crop,
    resize_original,
    resize_whole,
    to_array,
)

Fit = Literal["whole", "crop", "original"]
Views = tuple[NDArray[np.uint8], ...]  # a photo's pixels HWC at each size
SCREEN = 800  # `draft_side` at least: leaves a long side of 1,600, at which a screen shows whether a photo is sharp


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes the input of a backbone."""

    # pixels: long side of a whole photo, side of the crop, largest long side of an original photo; several: ascending
    size: int | tuple[int, ...] = 320
    fit: Fit = "whole"  # the whole photo at one long side; the centre square; or the whole photo at its own size
    multiple: int = 32  # sides of a whole photo are rounded to multiples of this
    crop_fraction: float = 0.875  # share of the short side that a crop keeps
    # let libjpeg shrink very large JPEGs while decoding, as the largest size allows (images.open_photo: the tolerance)
    draft: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.size, int):  # one set of sizes has one form; a manifest gives a list
            ascending = tuple(sorted(self.size))
            object.__setattr__(self, "size", ascending[0] if len(ascending) == 1 else ascending)
        shown = ",".join(map(str, self.sizes))
        if min(self.sizes, default=0) < self.multiple or self.multiple < 1 or not 0 < self.crop_fraction <= 1:
            raise UsageError(
                f"expected size >= multiple >= 1 and 0 < crop fraction <= 1, got size {shown}, multiple "
                f"{self.multiple}, crop fraction {self.crop_fraction}"
            )
        if self.fit == "original" and len(self.sizes) > 1:
            raise UsageError(f"--size {shown}: with --fit original expected one size, the largest long side")
        if self.fit == "original" and self.sizes[0] < LEAST_SIDE:
            raise UsageError(f"--size {shown}: photos at their own size have at least {LEAST_SIDE} pixels a side")
        if len({(2 * size + self.multiple) // (2 * self.multiple) for size in self.sizes}) < len(self.sizes):
            raise UsageError(
                f"--size {shown}: expected sizes that differ after rounding to the nearest multiple of {self.multiple}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes in pixels, ascending: one, or several."""
        return (self.size,) if isinstance(self.size, int) else self.size

    def __call__(self, source: Source, max_pixels: int = MAX_PIXELS) -> tuple[Views, str]:
        """For each size the pixels HWC uint8 in [0, 255] at input size; and the digest of the photo's own pixels."""
        photo = self.open(source, max_pixels)
        return self.views(photo, source), photo.digest

    def open(self, source: Source, max_pixels: int = MAX_PIXELS) -> Photo:
        """The photo, decoded as its sizes allow. Raises ImageError."""
        return open_photo(source, max_pixels=max_pixels, draft_side=max(SCREEN, *self.sizes) if self.draft else None)

    def views(self, photo: Photo, source: Source) -> Views:
        """For each size the pixels HWC uint8 in [0, 255] at input size; ImageError, naming `source`, for a strip."""
        if self.fit == "original":
            try:
                resized = [resize_original(photo.pixels, limit=self.sizes[0])]
            except UsageError as error:
                name = source if isinstance(source, str | Path) else f"<{type(source).__name__}>"
                raise ImageError(name, str(error)) from error
        elif self.fit == "whole":
            resized = [resize_whole(photo.pixels, size=size, multiple=self.multiple) for size in self.sizes]
        else:
            resized = [resize_crop(photo.pixels, size=size, crop_fraction=self.crop_fraction) for size in self.sizes]
        return tuple(map(to_array, resized))


class Decoded(NamedTuple):
    """A photo on its way to the backbone."""

    views: Views
    pixels: str  # digest
    looked: Any  # what was wanted of the photo beside its views


def decode(
    source: Source, preprocess: Preprocess, look: Callable[[Photo], Any] | None = None, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Open a photo once: its views, its digest, and what `look` makes of it. Raises ImageError."""
    photo = preprocess.open(source, max_pixels)
    looked = None if look is None else look(photo)
    return Decoded(preprocess.views(photo, source), photo.digest, looked)
