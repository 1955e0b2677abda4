"""What a photo shows beside its score: technical values, when it was taken, where it is light and dark. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from milnet import bursts
from milnet.images import Photo
from milnet.signals import Signals, measure


@dataclass(frozen=True)
class Aside:
    """What a photo shows beside its score."""

    signals: Signals | None = None
    taken: float | None = None  # capture time in seconds, for differences
    layout: bytes = b""  # where it is light and dark (bursts.layout)

    def to_json(self) -> dict[str, Any]:
        """For a cache."""
        return {**asdict(self), "layout": self.layout.hex()}

    @staticmethod
    def of_json(data: Mapping[str, Any]) -> Aside | None:
        """What `to_json` gave; None for what is not to be understood, which is then made again."""
        try:
            signals, layout = data["signals"], bytes.fromhex(data["layout"])
            return Aside(None if signals is None else Signals(**signals), data["taken"], layout)
        except (KeyError, TypeError, ValueError):
            return None


def look(photo: Photo) -> Aside:
    """All of it, of a decoded photo."""
    taken = bursts.capture_time(photo.exif)
    # a photo that nobody knows the time of is in no burst
    layout = b"" if taken is None else bursts.layout(photo.pixels).tobytes()
    return Aside(measure(photo.pixels, photo.size), taken, layout)
