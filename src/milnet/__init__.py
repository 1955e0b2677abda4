"""milnet: image aesthetics, judged beside photos that people have already judged.

scorer = milnet.Scorer.load("MODEL")
for score in scorer.score(["a.jpg", "b.png"]):
    print(score.photo, score.score, score.distribution, score.references)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milnet.version import __version__

if TYPE_CHECKING:
    from milnet.annotations import Table, load_table
    from milnet.checkpoints import load_model, save_model
    from milnet.errors import MilnetError
    from milnet.features import load_feature_set
    from milnet.recipe import Recipe
    from milnet.recipes import Model, fit
    from milnet.scoring import Score, Scorer

# Loaded when first asked for: `import milnet` and `milnet --help` should not wait for torch.
_WHERE = {
    "MilnetError": "errors",
    "Model": "recipes",
    "Recipe": "recipe",
    "Score": "scoring",
    "Scorer": "scoring",
    "Table": "annotations",
    "fit": "recipes",
    "load_feature_set": "features",
    "load_model": "checkpoints",
    "load_table": "annotations",
    "save_model": "checkpoints",
}

__all__ = [
    "MilnetError",
    "Model",
    "Recipe",
    "Score",
    "Scorer",
    "Table",
    "__version__",
    "fit",
    "load_feature_set",
    "load_model",
    "load_table",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"milnet.{_WHERE[name]}"), name)
    if name == "published":  # a module: milnet.published.predict
        return importlib.import_module("milnet.published")
    raise AttributeError(f"module 'milnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
