"""Let timm import next to a torch without CUDA.

timm imports torchvision, and the registry's torchvision is built against CUDA: beside a CPU torch its compiled
operators do not load, and `import torchvision` stops with "operator torchvision::nms does not exist". Declaring the two
operator schemas first lets the pure Python parts import; nothing of ours calls those operators.
"""

from __future__ import annotations

import sys
from typing import Any

_declared: list[Any] = []  # torch forgets a schema when its Library object dies


def make_torchvision_importable() -> None:
    """Import torchvision, with the missing schemas declared first where that is what it lacks."""
    if "torchvision" in sys.modules:
        return
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import torchvision  # noqa: F401
