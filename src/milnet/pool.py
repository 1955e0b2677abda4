"""Rated photos one may consult, and who is a reference of whom.

No photo is its own reference: pool photos of the same id, the same pixels, or a semantic cosine above .97 are left out,
at scoring too. Photos of the same group are left out when groups act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milnet.annotations import FloatArray, IntArray, Table
from milnet.errors import LeakError, UsageError
from milnet.features import FeatureSet, take_rows
from milnet.references import Exclusion, References, Similarity, search


@dataclass(frozen=True)
class RatedPool:
    """P rated photos. The feature arrays may be larger and memory-mapped: pool position i is their row `rows[i]`.

    `ids`, `pixels`, `groups` (texts, "" = none) of the P photos; `distributions` [P, S].
    """

    ids: tuple[str, ...]
    pixels: tuple[str, ...]
    groups: tuple[str, ...]
    distributions: FloatArray
    totals: FloatArray
    semantic: NDArray[Any]
    nodes: NDArray[Any]
    rows: IntArray

    @staticmethod
    def of(table: Table, features: FeatureSet, rows: IntArray, group: str | None = None) -> RatedPool:
        """The photos of `rows`; each needs readable features and votes."""
        chosen = table.take(rows)
        chosen.check()
        if not features.readable[rows].all():
            raise UsageError("an unreadable photo cannot be in the pool")
        return RatedPool(
            ids=chosen.ids,
            pixels=tuple(features.pixels[row] for row in rows),
            groups=chosen.column(group) if group else ("",) * len(rows),
            distributions=chosen.distributions,
            totals=chosen.totals,
            semantic=features.semantic,
            nodes=features.nodes,
            rows=np.asarray(rows, np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: IntArray) -> RatedPool:
        """A smaller pool, sharing the arrays."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in positions),
            pixels=tuple(self.pixels[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
            distributions=self.distributions[positions],
            totals=self.totals[positions],
            rows=self.rows[positions],
        )

    def nodes_at(self, positions: IntArray) -> NDArray[np.float32]:
        """Node features of pool positions, [n, D] float32."""
        return take_rows(self.nodes, self.rows[positions])

    def find(
        self,
        semantic: NDArray[Any],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        pixels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        similarity: Similarity = "cosine",
        device: str = "cpu",
    ) -> References:
        """The `k` references of each query [Q, Ds]; what is the query itself, or of its group, is never among them."""
        exclude = [
            shared_codes(own, theirs)
            for own, theirs in ((ids, self.ids), (pixels, self.pixels), (groups, self.groups))
            if own is not None
        ]
        pool = take_rows(self.semantic, self.rows)
        return search(semantic, pool, k, exclude=exclude, similarity=similarity, device=device)


def shared_codes(query: Sequence[str], pool: Sequence[str]) -> Exclusion:
    """Texts of both sides as codes, equal where the texts are equal; "" is nobody (-1)."""
    number = {"": -1}
    codes = [np.array([number.setdefault(text, len(number)) for text in side], np.int64) for side in (query, pool)]
    return Exclusion(codes[0], codes[1])


def refuse_seen(table: Table, features: FeatureSet, rows: IntArray, seen: Sequence[tuple[str, str]], what: str) -> None:
    """Raise LeakError when a photo of `rows`, by id or pixels, is among `seen`: pairs of ("table:id", pixel digest)."""
    names = {name for name, _ in seen}
    pixels = {digest for _, digest in seen if digest}
    found = [
        table.ids[row] for row in rows if f"{table.name}:{table.ids[row]}" in names or features.pixels[row] in pixels
    ]
    if found:
        raise LeakError(
            f"{len(found)} of {len(rows)} test photos were seen in training by {what} (by id or by pixels); the first: "
            f"{', '.join(found[:5])}. Test on photos that no trained part has seen",
            found,
        )
