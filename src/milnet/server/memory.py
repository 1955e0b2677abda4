"""What the backbones made of photos sent before, so that none need pass twice: in memory, the least used goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from milnet.scoring import Seen

_EACH = 2048  # bytes of a photo beside its numbers

Key = tuple[str, tuple[str, str]]  # digest of the file, keys of the two backbones


@dataclass(frozen=True)
class Remembered:
    """A photo by the name it was last sent with."""

    name: str
    seen: Seen


class Memory:
    """At most `most` bytes; used by one thread."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._kept: OrderedDict[Key, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Remembered | None:
        """What is known of a file by two backbones."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, name: str, seen: Seen) -> None:
        """Remember a photo, or its new name."""
        self._drop(key)
        self._kept[key] = Remembered(name, seen)
        self.bytes += _size(seen)
        while self.bytes > self.most and self._kept:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self.bytes -= _size(before.seen)


def _size(seen: Seen) -> int:
    own = seen.nodes.nbytes
    return _EACH + own + (0 if seen.semantic is seen.nodes else seen.semantic.nbytes)
