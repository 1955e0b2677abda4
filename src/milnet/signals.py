"""Technical measurements of a photo: advice beside the score, never mixed into it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signals:
    """What can be measured of the upright photo's own pixels, whatever it shows."""

    width: int  # pixels
    height: int
    sharpness: float  # of the sharpest tile
    highlights: float  # share of pixels whose highlights are clipped, 0..1
    shadows: float  # share of pixels whose shadows are clipped, 0..1
    noise: float  # estimated standard deviation of the noise, in steps of 255
