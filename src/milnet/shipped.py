"""What is shipped inside the package: a rated pool with features and no pixels, and two models trained on it.

    bundled/pool       DATA: 677 photos, how people voted on them, themes, folds, features of two backbones
    bundled/pocket     MODEL on the features of the shipped network: works at once
    bundled/standard   MODEL on mobilenetv2_100, whose weights `milnet weights add` takes: better

`bundled/NOTICE` says whose the votes are. The folder may be removed; then data and models must be named.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from milnet.errors import MilnetError
from milnet.weights import kept

BETTER = "milnet weights add FILE"  # what makes `standard` usable


def best_model(warn: Callable[[str], None]) -> str:
    """The best shipped model that works here: `standard` once its backbone can be had, else `pocket`.

    `warn` is told what stands in the way where weights were added and cannot be used.
    """
    try:
        if kept("standard") is None:
            return "pocket"
    except (MilnetError, OSError) as error:  # damaged, or a home that cannot be read: no reason to score nothing
        warn(f"the model standard cannot be used: {error}")
        return "pocket"
    if find_spec("timm") is None:
        warn("the model standard cannot be used: its backbone needs timm: pip install 'milnet[timm]'")
        return "pocket"
    return "standard"
