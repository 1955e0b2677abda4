"""serve: a page and an HTTP API."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnet.cli.common import Context, command
from milnet.cli.showing import Runtime, Stars, read_stars
from milnet.errors import ArtifactError, MilnetError, MissingExtraError, UsageError
from milnet.places import MODELS, find_model

if TYPE_CHECKING:
    from milnet.server.engine import Served

_EXTRA = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_LIMITS = "Limits"
_NETWORK = "Network"
TOKEN = "MILNET_TOKEN"


class ServiceError(MilnetError):
    """The service cannot run here."""


@command("serve")
def serve(
    context: Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL folder, or a shipped model; again for more. The first is the default.",
            show_default="every shipped model that works here",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Beyond this machine a token is needed.", rich_help_panel=_NETWORK)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.", rich_help_panel=_NETWORK)] = 8500,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name that it is reached by, as behind a proxy; again for more.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token; else the variable MILNET_TOKEN; else one is made and shown.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Largest file of a photo, in MB.", rich_help_panel=_LIMITS)
    ] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse photos with more pixels.", rich_help_panel=_LIMITS)
    ] = 120_000_000,
    max_photos: Annotated[int, typer.Option(min=1, help="Photos of one call.", rich_help_panel=_LIMITS)] = 100,
    queue: Annotated[
        int, typer.Option(min=1, help="Photos accepted and not yet scored; beyond that: 429.", rich_help_panel=_LIMITS)
    ] = 128,
    memory: Annotated[
        int,
        typer.Option(
            min=0, help="MB for what is remembered of photos sent before (12 KB each).", rich_help_panel=_LIMITS
        ),
    ] = 256,
    decoders: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode.", show_default="one a core", rich_help_panel=_LIMITS),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now.", show_default="as at training")
    ] = None,
    stars: Stars = None,
    runtime: Runtime = "torch",
) -> Mapping[str, Any]:
    """Score photos in a page, and for other programs over HTTP. Photos stay in memory; nothing is written."""
    for package in _EXTRA:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "serve", "milnet serve")
    import secrets
    import sys

    from milnet.server.api import State, create_app
    from milnet.server.decoders import Decoders
    from milnet.server.engine import Engine
    from milnet.server.gauges import Gauges
    from milnet.server.guard import Guard, check_token, is_loopback, names_of
    from milnet.server.running import listen, log_to
    from milnet.server.running import serve as run
    from milnet.server.uploads import Limits

    token = _token(token_file)
    everywhere = not is_loopback(host)
    made = token is None and everywhere
    if made:
        if context.quiet or context.json:
            raise UsageError(
                f"--host {host} needs a token, and nobody would see one made here: --token-file, or {TOKEN}"
            )
        token = secrets.token_urlsafe(24)
    if token is not None:
        check_token(token)
    with listen(host, port) as listening:
        served = _load(context, model, weights, stars, runtime)
        for one in served:
            context.say(one.introduction)
        limits = Limits(max_bytes << 20, max_photos, max_pixels, max(512, 2 * max_bytes) << 20)
        gauges = Gauges()
        count = min(os.cpu_count() or 1, 8) if decoders is None else decoders
        children = Decoders(
            count, max_bytes=limits.photo, max_pixels=limits.pixels, died=lambda: gauges.decoders_died.inc()
        )
        engine = Engine(served, children, queue=queue, memory=memory << 20, passed=gauges.passed)
        state = State(engine, limits, gauges, needs_token=token is not None)
        app = Guard(
            create_app(state),
            names=names_of(host, name or ()),
            everywhere=everywhere,
            token=token,
            gauges=gauges,
            most=4 * queue,
        )
        log_to(sys.stderr, quiet=context.quiet)
        shown, number = (f"[{host}]" if ":" in host else host), listening.getsockname()[1]

        def started() -> None:
            for line in dict.fromkeys(line for one in served for line in one.scorer.probed):
                context.say(line)
            context.say(f"http://{shown}:{number}/ is there; Ctrl-C ends it")
            if made:
                context.say(f"token: {token} (the page asks for it; programs send it as Authorization: Bearer)")
            sys.stdout.flush()

        if not run(app, listening, started):
            raise ServiceError("the service could not start; the lines above say why")
    return {"models": [one.name for one in served], "host": host, "port": number}


def _token(file: Path | None) -> str | None:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file}: cannot be read ({error})") from error
    return os.environ.get(TOKEN, "").strip() or None


def _load(
    context: Context, models: list[str] | None, weights: str | None, stars: str | None, runtime: str
) -> list[Served]:
    """The models that are named, else the shipped ones that work here."""
    from milnet.scoring import Scorer
    from milnet.server.engine import Served
    from milnet.shipped import best_model

    how = {"device": context.compute_device(), "offline": context.offline, "runtime": runtime, **read_stars(stars)}
    if not models:
        best = best_model(context.warn)
        models = [best, *(name for name in MODELS if name != best and name == "pocket")]
    found: dict[str, Served] = {}
    for text in models:
        short = Path(text).resolve().name if text not in MODELS else text
        if short in found:
            raise UsageError(f"--model {text}: another model is called {short}, too; rename its folder")
        try:
            scorer = Scorer.load(find_model(text), weights=weights, **how)
        except ArtifactError as error:
            raise ArtifactError(f"--model {text}: {error}") from error
        found[short] = Served(short, scorer)
    return list(found.values())
