"""explain, info, doctor: why a score, and what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from milnet.cli.common import Context, command, find_any
from milnet.cli.showing import ModelName, Stars, find_library, interval, load_scorer, tell_failures, whole_percent
from milnet.version import __version__


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
    from milnet.files import score_files
    from milnet.scoring import star_signs

    library = find_library(context, photos)
    name, scorer = load_scorer(context, model, stars, weights)
    with context.progress() as progress:
        scored = score_files(scorer, library.photos, progress=progress)
    scores, failures = scored.scores, [*library.failures, *scored.failures]
    whose, panel = "the pool's", "the mean vote of a large panel"
    base, own = "the mean vote of the photos it learned from", "what the photo itself adds"
    if scorer.taste is not None:
        whose, panel = "your", "your rating"
        base, own = "the mean of your ratings", "what people in general say of the photo, on your scale"
    for s in scores:
        context.say(f"{s.photo}: {s.score:.2f} on a scale of {s.values[0]:g} to {s.values[-1]:g}")
        if s.low is not None:
            context.say(f"  90 % interval for {panel}: {interval(s)}")
        votes = _bars(s.distribution)
        context.say(f"  predicted votes {votes}" + ("" if s.spread is None else f", spread {s.spread:.2f}"))
        if s.percentile is not None:
            context.say(
                f"  scores higher than {whole_percent(s.percentile)} % of {whose} {len(scorer.pool):,} photos: "
                f"{star_signs(s.stars, len(scorer.stars) + 1)}"
            )
        if s.unlike is not None:
            context.say(
                f"  unlike {s.unlike:.2f}: {s.unlike:.0%} of {whose} photos have a nearer neighbour than this photo"
                + (". It is outside what the pool shows: trust neither score nor interval" if s.unlike > UNLIKE else "")
            )
        rows = [[f"base: {base}", "", "", "", f"{s.base:.3f}"], [f"own: {own}", "", "", "", f"{s.own:+.3f}"]]
        for reference in s.references:
            mean = sum(v * n for v, n in zip(s.values, reference.votes, strict=True)) / sum(reference.votes)
            rows.append(
                [reference.id, f"{reference.similarity:.3f}", _bars(reference.votes), f"{mean:.2f}",
                 f"{reference.influence:+.3f}"]
            )  # fmt: skip
        if s.references:
            others = len(scorer.pool) - len(s.references) if scorer.whole else 0
            what = f"the rest of the pool ({others:,} photos)" if others else "the other references"
            rows.append([what if scorer.exact else "not explained by leaving one out", "", "", "", f"{s.rest:+.3f}"])
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
                    "tensorboard", "matplotlib", "onnx", "pi-heif", "rawpy"):  # fmt: skip
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
        ("pi-heif", "heif"),
        ("rawpy", "raw"),
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
