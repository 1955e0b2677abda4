"""What is shipped inside the package: a rated pool with features and no pixels, and two models trained on it.

    bundled/pool       DATA: 677 photos, how people voted on them, themes, folds, features of two backbones
    bundled/pocket     MODEL on the features of the shipped network: works at once
    bundled/standard   MODEL on mobilenetv2_100, whose weights `milnet weights add` takes: better

`bundled/NOTICE` says whose the votes are. The folder may be removed; then data and models must be named.
"""

from __future__ import annotations

from importlib.util import find_spec

from milnet.weights import kept

BETTER = "milnet weights add FILE"  # what makes `standard` usable


def best_model() -> str:
    """The best shipped model that works here: `standard` once its backbone can be had, else `pocket`."""
    return "standard" if find_spec("timm") is not None and kept("standard") is not None else "pocket"
