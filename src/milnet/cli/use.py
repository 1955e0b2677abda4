"""score, explain, info, doctor: using a model, and looking at what is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, command, find_any
from milnet.cli.showing import ModelName, Stars, interval, load_scorer, show_scores, tell_failures
from milnet.version import __version__


@command("score")
def score(
    context: Context,
    photos: Annotated[list[str], typer.Argument(help="Photos, folders, patterns.", show_default=False)],
    model: ModelName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="scores.csv, .jsonl or .parquet.", show_default=False)
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Photos a forward pass.", show_default="4 on a CPU (1 above 512 pixels), else 64"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding threads.", show_default="one a core")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse photos with more pixels.", show_default="200 million")
    ] = None,
    stars: Stars = None,
) -> Mapping[str, Any]:
    """Score photos. Bad ones are listed and the rest is scored; with -o, a stopped run goes on where it was."""
    from milnet.images import MAX_PIXELS
    from milnet.library import find_photos
    from milnet.outputs import check_output, check_suffix, errors_path, write_failures, write_scores
    from milnet.scoring import Journal, score_files

    if output is not None:
        check_suffix(output)
    files = find_photos(photos).photos
    how = {"batch": batch, "workers": workers, "max_pixels": max_pixels or MAX_PIXELS}
    name, scorer = load_scorer(context, model, stars, weights, **how)
    if output is not None:
        check_output(output, scorer.model.values.tolist())
    journal = None if output is None else Journal(output.with_name(output.name + ".journal"), scorer.digest)
    began = time.monotonic()
    try:
        with context.progress() as progress:
            scores, failures = score_files(scorer, files, journal, progress=progress)
    except BaseException:
        if journal is not None:
            journal.close(remove=False)
        raise
    seconds = time.monotonic() - began
    if output is not None and journal is not None:
        write_scores(output, scores, scorer.model.values.tolist())
        if failures:
            write_failures(errors_path(output), failures)
        else:
            errors_path(output).unlink(missing_ok=True)  # left by an earlier run
        journal.close(remove=True)
    show_scores(context, scorer, scores, 20 if output else len(scores))
    if output and len(scores) > 20:
        context.say(f"... and {len(scores) - 20:,} more in {output}")
    context.say(f"{len(scores):,} photos, {seconds:.1f} s" + (f", {output}" if output else ""))
    tell_failures(context, failures)
    return {
        "model": name,
        "scores": [s.row() for s in scores],
        "failures": [failure.__dict__ for failure in failures],
        "seconds": seconds,
    }


@command("explain")
def explain(
    context: Context,
    photos: Annotated[list[str], typer.Argument(help="Photos, folders, patterns.", show_default=False)],
    model: ModelName = None,
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    stars: Stars = None,
) -> Mapping[str, Any]:
    """Say which rated photos moved the score of a photo, by how much, and how far the score can be trusted."""
    from milnet.doubt import UNLIKE
    from milnet.library import find_photos
    from milnet.scoring import score_files, star_signs

    files = find_photos(photos).photos
    name, scorer = load_scorer(context, model, stars, weights)
    with context.progress() as progress:
        scores, failures = score_files(scorer, files, progress=progress)
    fitted = scorer.model
    exact = fitted.recipe.model != "graph"
    for s in scores:
        context.say(f"{s.photo}: {s.score:.2f} on a scale of {s.values[0]:g} to {s.values[-1]:g}")
        if s.low is not None:
            context.say(f"  90 % interval for the mean vote of a large panel: {interval(s)}")
        votes = _bars(s.distribution)
        context.say(f"  predicted votes {votes}, spread {s.spread:.2f}")
        if s.percentile is not None:
            context.say(
                f"  scores higher than {s.percentile:.0f} % of the pool's {len(fitted.pool):,} photos: "
                f"{star_signs(s.stars, len(scorer.stars) + 1)}"
            )
        if s.unlike is not None:
            context.say(
                f"  unlike {s.unlike:.2f}: {s.unlike:.0%} of the pool's photos have a nearer neighbour than this photo"
                + (". It is outside what the pool shows: trust neither score nor interval" if s.unlike > UNLIKE else "")
            )
        rows = [["base: the mean vote of the photos it learned from", "", "", "", f"{s.base:.3f}"]]
        rows += [["own: what the photo itself adds", "", "", "", f"{s.own:+.3f}"]]
        for reference in s.references:
            mean = sum(v * n for v, n in zip(s.values, reference.votes, strict=True)) / sum(reference.votes)
            rows.append(
                [reference.id, f"{reference.similarity:.3f}", _bars(reference.votes), f"{mean:.2f}",
                 f"{reference.influence:+.3f}"]
            )  # fmt: skip
        if s.references:
            others = len(fitted.pool) - len(s.references) if fitted.recipe.whole else 0
            what = f"the rest of the pool ({others:,} photos)" if others else "the other references"
            rows.append([what if exact else "not explained by leaving one out", "", "", "", f"{s.rest:+.3f}"])
        rows.append(["score", "", "", "", f"{s.score:.3f}"])
        context.table(["  photo", "similarity", "votes", "mean vote", "adds"], [[f"  {r[0]}", *r[1:]] for r in rows])
    tell_failures(context, failures)
    return {
        "model": name,
        "digest": scorer.digest,
        "scores": [{**s.row(), "references": [r.__dict__ for r in s.references]} for s in scores],
        "failures": [failure.__dict__ for failure in failures],
    }


def _bars(votes: Sequence[float]) -> str:
    """A histogram in one line, the highest bar full."""
    most = max(votes)
    return "".join("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"[min(7, int(8 * n / most))] for n in votes)


@command("info")
def info(
    context: Context,
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of milnet: DATA, features, references, MODEL; or bundled, pocket, standard.",
            show_default=False,
            callback=find_any,
        ),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its digest.")] = False,
) -> Mapping[str, Any]:
    """Say what a folder is, what it was made from, and whether it is whole."""
    from milnet.artifacts import read_manifest, verify_files

    manifest = read_manifest(folder)
    context.say(f"{folder}: {manifest.kind}, format {manifest.format}, written by milnet {manifest.milnet}")
    context.say(f"digest {manifest.digest}")
    parts = {
        "counts": manifest.counts,
        "made from": manifest.inputs,
        "settings": manifest.config,
        "notes": manifest.notes,
    }
    for title, part in parts.items():
        for name, value in part.items():
            context.say(f"  {title}: {name} = {value}")
    if verify:
        verify_files(folder, manifest)
        context.say(f"{len(manifest.files)} files are as the manifest says")
    return {**manifest.__dict__, "digest": manifest.digest, "verified": verify}


@command("doctor")
def doctor(context: Context) -> Mapping[str, Any]:
    """Check this installation: versions, devices, optional parts, and what would mend what is missing."""
    import importlib.metadata
    import os
    import platform

    import torch

    from milnet.places import BUNDLED
    from milnet.shipped import best_model

    packages: dict[str, str | None] = {}
    for package in ("torch", "accelerate", "safetensors", "numpy", "scipy", "polars", "pillow", "timm", "torchvision",
                    "tensorboard", "matplotlib", "onnx"):  # fmt: skip
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = None
    trouble: list[str] = []
    for package, extra in (
        ("timm", "timm"),
        ("torchvision", "timm"),
        ("tensorboard", "tensorboard"),
        ("matplotlib", "plots"),
    ):
        if packages[package] is None:
            trouble.append(f"{package} is missing (optional): pip install 'milnet[{extra}]'")
    backbones = "not installed"
    if packages["timm"] is not None:
        from milnet.backbones import load_backbone

        try:
            load_backbone("timm/resnet18", "random:0")
            backbones = "work"
        except Exception as error:  # whatever breaks the import of a foreign package is what the user wants to read
            backbones = f"{type(error).__name__}: {error}"
            trouble.append(f"timm is installed but does not work: {backbones}")
    facts: dict[str, Any] = {
        "milnet": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": context.compute_device(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backbones": backbones,
        "model": best_model(context.warn) if BUNDLED.is_dir() else "none: the bundled data were removed",
        "packages": packages,
    }
    for name, value in facts.items():
        if name != "packages":
            context.say(f"{name}: {value}")
    context.say("packages: " + ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items()))
    for line in trouble:
        context.say(f"! {line}")
    if not trouble:
        context.say("all is well")
    return {**facts, "trouble": trouble}
