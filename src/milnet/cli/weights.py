"""weights add, weights get: backbone weights that are kept on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, app, command
from milnet.errors import UsageError

if TYPE_CHECKING:
    from milnet.weights import Added

weights = typer.Typer(no_args_is_help=True, help="Backbone weights that are kept on this machine.")
app.add_typer(weights, name="weights")


@command("add", weights)
def add(
    context: Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="torchvision's mobilenet_v2 (IMAGENET1K_V1), mobilenetv2-12.onnx of the ONNX zoo, or the same as "
            "safetensors.",
            show_default=False,
        ),
    ],
) -> Mapping[str, Any]:
    """Check a file with the weights `standard`, and keep them: models made with them find them from now on."""
    from milnet.weights import add_weights

    return _told(context, add_weights(file))


@command("get", weights)
def get(
    context: Context,
    name: Annotated[str, typer.Argument(help="standard", show_default=False)],
    url: Annotated[str, typer.Option(help="Address of the file, http or https.", show_default=False)],
) -> Mapping[str, Any]:
    """Download a file with weights, check it and keep it. Stopped at any moment, the same command goes on."""
    from milnet.weights import get_weights

    if context.offline:
        raise UsageError(
            "--offline forbids downloads: get the file on another machine, then run milnet weights add FILE"
        )
    with context.progress() as progress:
        added = get_weights(name, url, progress)
    return _told(context, added)


def _told(context: Context, added: Added) -> Mapping[str, Any]:
    """Say what is kept now."""
    context.say(f"{added.path}: kept, from a file of the kind {added.kind}, digest {added.digest[:12]}")
    context.say(f"milnet score now uses {added.name}: models made with these weights find them by themselves")
    return {"name": added.name, "path": str(added.path), "digest": added.digest, "kind": added.kind}
