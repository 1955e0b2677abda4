"""export: a model for programs without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, ModelFolder, Overwrite, command


@command("export")
def export(
    context: Context,
    model: ModelFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="DIR to be made.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    semantic_weights: Annotated[
        str | None,
        typer.Option(help="The same for the backbone that finds references.", show_default="as at training"),
    ] = None,
    overwrite: Overwrite = False,
) -> Mapping[str, Any]:
    """Write a model, backbone and pool included, as one ONNX network: photo in, distribution and references out."""
    from milnet.artifacts import check_new_folder
    from milnet.errors import UsageError
    from milnet.export import TOLERANCE, export_model
    from milnet.scoring import Scorer

    if context.device not in ("auto", "cpu"):
        raise UsageError(f"--device {context.device}: a model is exported on the CPU; pass --device cpu, or none")
    check_new_folder(output, "export", overwrite=overwrite)
    scorer = Scorer.load(
        model, weights=weights, semantic_weights=semantic_weights, offline=context.offline, workers=0, batch=1
    )
    manifest, worst = export_model(scorer, output, overwrite=overwrite)
    size = sum((output / name).stat().st_size for name in manifest.files)
    context.say(
        f"{output}: {size / 1e6:.1f} MB, a pool of {manifest.counts['pool']:,} photos inside, opset "
        f"{manifest.config['opset']}; on made pictures its scores are within {worst:.1g} of PyTorch's "
        f"({TOLERANCE:g} at most)"
    )
    return {"export": str(output), "digest": manifest.digest, "bytes": size, "difference": worst, **manifest.counts}
