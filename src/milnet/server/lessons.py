"""Tastes that are taught through the service: in memory, until they are downloaded."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from milnet.scoring import Scorer, Seen
from milnet.server.engine import Served
from milnet.taste import fit_taste, load_taste, save_taste

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
MOST = 20  # tastes at once


def teach(
    name: str,
    general: Served,
    photos: Sequence[str],
    names: Sequence[str],
    seen: Sequence[Seen],
    ratings: Sequence[float],
) -> Served:
    """The taste of rated photos that were sent before; UsageError for too few, or ratings that are all equal.

    `photos`: digests of the files. It is kept as the very MODEL folder that a download gives, so that scores name the
    same digest before and after.
    """
    scorer = general.scorer
    nodes, semantic = scorer.entering(seen)
    pixels = [one.pixels for one in seen]
    ids = _ids(photos, names)
    taste = fit_taste(scorer.model, nodes, semantic, pixels, ids, list(ratings), list(LEVELS), device=scorer.device)
    with tempfile.TemporaryDirectory(prefix="milnet-", dir=_memory()) as place:
        folder = Path(place) / name
        save_taste(
            taste, folder, notes={"command": "milnet serve", "ratings": "given in the page", "general": general.name}
        )
        taste, manifest = load_taste(folder, device=scorer.device)
        archive = _zip(folder)
    own = Scorer(scorer.model, scorer.nodes, scorer.semantic, manifest.digest, device=scorer.device, taste=taste)
    return Served(name, own, True, tuple(photos), archive)


def _ids(photos: Sequence[str], names: Sequence[str]) -> list[str]:
    """The photos' names; of those that have the same one, with the start of their digest."""
    return [
        name if names.count(name) == 1 else f"{name} ({photo[:12]})" for photo, name in zip(photos, names, strict=True)
    ]


def _memory() -> str | None:
    """A folder in memory, where the system has one: a person's ratings need not touch the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def _zip(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent).as_posix())
    return stream.getvalue()
