"""What all commands share: the options that work everywhere, progress, tables, exit codes.

Exit codes: 0 all done; 1 some photos or lines failed (listed); 2 usage, bad input, or a
disk that cannot be written; 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from milnet.errors import ArtifactError, MilnetError, UsageError
from milnet.places import find_data, find_model
from milnet.version import __version__

if TYPE_CHECKING:
    from milnet.annotations import IntArray, Table
    from milnet.artifacts import Manifest
    from milnet.cluster import Cluster
    from milnet.features import FeatureSet
    from milnet.index import Kind, Plan
    from milnet.pool import Store
    from milnet.recipe import Recipe
    from milnet.recipes import Model

app = typer.Typer(
    name="milnet",
    help="Image aesthetics, judged beside photos that people have already judged.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# Options that several commands share.
def find_any(value: Path) -> Path:
    """A typer callback: what is shipped by its name."""
    return find_model(find_data(value))


Data = Annotated[
    Path,
    typer.Argument(
        help="DATA folder, as `milnet import` made it, or `bundled`: the shipped pool.",
        show_default=False,
        callback=find_data,
    ),
]
# What a command writes into: not the shipped one.
OwnData = Annotated[Path, typer.Argument(help="DATA folder, as `milnet import` made it.", show_default=False)]
ModelFolder = Annotated[
    Path, typer.Argument(help="MODEL folder, or pocket | standard.", show_default=False, callback=find_model)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Semantic = Annotated[str | None, typer.Option(help="Features for retrieval, NAME[:range].", show_default="NAME:last")]
Nodes = Annotated[str | None, typer.Option(help="Features for the network, NAME[:range].", show_default="NAME:taps")]
Stored = Annotated[
    str | None,
    typer.Option("--references", help="References found before, by name.", show_default="those that fit, else none"),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe.")
]
RecipeName = Annotated[str, typer.Option("--recipe", help="single | published | votes | reducer | milnet | FILE.toml")]
Group = Annotated[
    str | None,
    typer.Option(help="Column whose photos stay together and do not consult each other.", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")]
IndexOption = Annotated[
    str,
    typer.Option(help="exact (all are compared) | faiss (the kind that fits) | faiss:flat, faiss:hnsw, faiss:ivf-pq"),
]
Memory = Annotated[
    str | None, typer.Option(help="What an index may take while it is built: 4GB, 500MB.", show_default="no limit")
]
Workers = Annotated[
    str | None,
    typer.Option(metavar="N|ray", help="Decoding threads; or `ray`: worker processes.", show_default="one a core"),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With --workers ray: a running cluster, auto | HOST:PORT | ray://HOST:PORT.", show_default="started here"
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        min=1, help="With --workers ray: how many, each with --threads processors.", show_default="all that fit"
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(help="Of Parquet files: the column with the photos' bytes.", show_default="image, bytes, jpg, ..."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides everything that is random.")]


def _console(*, stderr: bool) -> Console:
    """A terminal has a width to respect; a file should hold whole lines."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if stream.isatty() else 1000)


@dataclass
class Context:
    """What every command gets first: where to compute, and how to talk."""

    device: str = "auto"
    threads: int | None = None
    offline: bool = False
    json: bool = False
    quiet: bool = False
    failed: bool = False  # some photos or lines failed: exit code 1
    first: bool = True  # of several processes: the one that speaks
    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def say(self, text: str = "") -> None:
        """A line for people, on standard output; silent with --json and --quiet."""
        if self.first and not (self.json or self.quiet):
            self.out.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line on standard error, always."""
        if not self.first:
            return
        self.err.print(text, markup=False)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for people: the first column to the left, the others to the right."""
        if self.json or self.quiet or not self.first:
            return
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # a photo may be called [x].jpg: no markup
        self.out.print(table)

    def compute_device(self) -> str:
        """cpu, cuda or mps; `auto` takes what is there. Sets the number of threads.

        Several processes compute on CPUs, or each on a GPU of its own.
        """
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if several_asked():
            gpus, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            if self.device == "cuda" and gpus < wanted:
                raise UsageError(f"--device cuda: expected a GPU for each of {wanted} processes, got {gpus}")
            there.update(cuda=there["cuda"] and gpus >= wanted, mps=False)
        if self.device == "auto":
            return next(name for name in ("cuda", "mps", "cpu") if there[name])
        if not there.get(self.device, False):
            usable = ", ".join(name for name, ok in there.items() if ok)
            raise UsageError(f"--device {self.device}: not available here; there is: {usable}")
        return self.device

    def progress(self) -> Progress:
        """Progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""
        return Progress(self.err, silent=self.quiet or not self.first)


class Progress:
    """Callable(done, total, what) that shows rate and remaining time; a context manager that cleans up."""

    def __init__(self, console: Console, *, silent: bool) -> None:
        self.console, self.silent = console, silent
        self.total, self.began, self.first, self.last, self.shown = -1, 0.0, 0, 0, time.monotonic()
        self.live = console.status("") if console.is_terminal and not silent else None

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line about a step that is done; kept above a bar."""
        if not self.silent:
            self.console.print(text, markup=False)

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if total != self.total or done < self.last:  # another piece of work
            self.total, self.began, self.first = total, now, done
        self.last = done
        if self.silent or (self.live is None and now - self.shown < 10):
            return
        self.shown = now
        rate = (done - self.first) / (now - self.began) if now > self.began else 0.0
        left = f", {rate:.3g}/s, {_clock((total - done) / rate)} left" if rate > 0 and done < total else ""
        text = f"{what}: {done:,} of {total:,}{left}"
        if self.live is not None:
            self.live.update(text)
        else:
            self.console.print(text, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def command_line() -> str:
    """The command as it was typed, for results and manifests."""
    return shlex.join(["milnet", *sys.argv[1:]])


def training_side(context: Context, table: Table, features: FeatureSet, split: str | None) -> tuple[IntArray, IntArray]:
    """Rows to learn from and rows of the test split; says what is left out, and why."""
    from milnet.evaluation import find_same_photos
    from milnet.splits import test_rows, training_rows, without_twins

    rows, tested = training_rows(table, split), test_rows(table)
    rows, twins = without_twins(rows, tested, find_same_photos(table, features).pairs)
    if len(twins):
        context.say(
            f"left out of training, the same photo is in the test split: {', '.join(table.ids[i] for i in twins[:20])}"
            + (f" and {len(twins) - 20:,} more" if len(twins) > 20 else "")
        )
    unreadable = int((~features.readable[rows]).sum())
    if unreadable:
        context.warn(f"{unreadable:,} training photos have no features and take no part")
    return rows, tested


@dataclass(frozen=True)
class Measured:
    """A model and the photos it is measured on."""

    model: Model
    digest: str  # of the MODEL folder
    seen: Any  # what its trained parts have seen, in words
    table: Table
    data: Manifest
    features: FeatureSet
    rows: IntArray
    store: Store | None


def load_measured(
    context: Context,
    model: Path,
    data: Path,
    split: str,
    *,
    semantic: str | None,
    nodes: str | None,
    references: str | None,
) -> Measured:
    """What `evaluate` and `figures` begin with: a MODEL or a converted checkpoint, and a split of DATA."""
    import numpy as np

    from milnet.annotations import load_table
    from milnet.artifacts import read_manifest
    from milnet.checkpoints import load_model
    from milnet.evaluation import rows_of_pool
    from milnet.features import load_feature_set
    from milnet.pool import find_store
    from milnet.published import beside_pool
    from milnet.splits import training_rows

    table, data_manifest = load_table(data)
    features = load_feature_set(data, table, semantic=semantic, nodes=nodes)
    rows = np.arange(len(table)) if split == "all" else table.rows_where("split", split)
    manifest = read_manifest(model, "model")
    if "checkpoint" in manifest.inputs:
        fitted = beside_pool(model, table, features, training_rows(table))
        context.warn(f"photos seen in training: {manifest.config['seen']}; a leak cannot be checked")
    else:
        fitted, _ = load_model(model, device=context.compute_device())
        if "unknown" in manifest.config["seen"]:
            context.warn(f"photos seen in training: {manifest.config['seen']}; a leak there cannot be checked")
    store = None
    if references is not None or rows_of_pool(fitted, table) is not None:
        store = find_store(data, features, training_rows(table), fitted.group, references)
    return Measured(fitted, manifest.digest, manifest.config.get("seen"), table, data_manifest, features, rows, store)


def plan_index(
    context: Context, photos: int, width: int, kind: Kind | None, memory: int | None, similarity: str
) -> Plan:
    """The index that fits, said."""
    from milnet.index import choose

    how: Any = {"kind": kind, "memory": memory, "similarity": similarity}
    plan = choose(photos, width, **how)
    context.say(
        f"index {plan.kind} ({plan.form}) over {photos:,} photos x {width:,}: about {plan.bytes / 1e6:,.1f} MB, "
        f"{plan.peak / 1e6:,.1f} MB while it is built"
    )
    return plan


def several_asked() -> bool:
    """Whether torchrun or accelerate started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or "1") > 1


def refuse_several(name: str) -> None:
    """Raise UsageError where a command that one process does was started as several."""
    if several_asked():
        raise UsageError(
            f"milnet {name} is done by one process: run it without torchrun or accelerate launch (several processes: "
            f"train, reduce, crossvalidate, evaluate and test)"
        )


def warn_of_norms(context: Context, recipe: Recipe, device: str) -> None:
    """Say where several processes do not compute what one does."""
    beneath = recipe.reducer
    if several_asked() and device == "cpu" and "batch" in (recipe.norm, beneath.norm if beneath else recipe.norm):
        context.warn(
            f"recipe {recipe.name} has batch norm, whose statistics each process takes from its own share of a batch "
            f"on CPUs: the figures differ a little from those of one process (--set norm=layer has no such statistics)"
        )


def read_workers(
    context: Context, workers: str | None, address: str | None, ray_workers: int | None, runtime: str
) -> tuple[int | None, Cluster | None]:
    """What --workers says: decoding threads, and Ray if it is to do the work (not started yet)."""
    if workers == "ray":
        from milnet.cluster import Cluster

        if runtime == "auto":
            raise UsageError(
                "--runtime auto with --workers ray: each worker would measure and choose for itself, and numbers of "
                "both would be mixed: pass torch or onnx"
            )
        context.threads = threads = context.threads or 1  # what a worker has: the number belongs to the features
        cluster = Cluster(workers=ray_workers, threads=threads, address=address, device=context.compute_device())
        return threads, cluster
    if address is not None or ray_workers is not None:
        raise UsageError("--address and --ray-workers say how Ray works: pass --workers ray, too")
    if workers is not None and not workers.isdecimal():
        raise UsageError(f"--workers {workers}: expected a number of decoding threads, or ray")
    return (None if workers is None else int(workers)), None


def run_folder(output: Path, *, resume: bool, overwrite: bool) -> Path:
    """`OUTPUT.run`, where a training under way is kept; a leftover is taken up, removed, or an error."""
    from milnet import processes

    folder = output.with_name(output.name + ".run")
    processes.from_first(lambda: _clear(folder, resume=resume, overwrite=overwrite))
    return folder


def _clear(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if folder.exists() and not resume:
        if any(folder.iterdir()) and not (folder / "identity.json").exists():
            raise ArtifactError(f"{folder} was not made by milnet, and a training would be kept there: move it away")
        if not overwrite:
            raise ArtifactError(
                f"{folder} holds an unfinished training: pass --resume to go on, or --overwrite to start anew"
            )
        shutil.rmtree(folder)


def _everywhere(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Everywhere", **settings)


_COMMON = [
    ("device", Annotated[str, _everywhere(help="auto | cpu | cuda | mps")], "auto"),
    ("threads", Annotated[int | None, _everywhere(min=1, help="Threads for computing.")], None),
    ("offline", Annotated[bool, _everywhere("--offline", help="Forbid downloads.")], False),
    ("json", Annotated[bool, _everywhere("--json", help="Print the result as JSON.")], False),
    ("quiet", Annotated[bool, _everywhere("--quiet", "-q", help="Print nothing but errors.")], False),
]


def command(
    name: str, of: typer.Typer = app, *, several: bool = False
) -> Callable[[Callable[..., Mapping[str, Any]]], Callable[..., None]]:
    """Register a command, `of` a group if any. The function gets a Context first and returns what --json prints.

    `several`: whether several processes can do it together, as torchrun starts them.
    """

    def register(function: Callable[..., Mapping[str, Any]]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        common = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, annotation, default in _COMMON
        ]

        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            context = Context(**{option: arguments.pop(option) for option, _, _ in _COMMON})
            if context.offline:
                os.environ["HF_HUB_OFFLINE"] = "1"
            from milnet.artifacts import strict  # here: it imports numpy, which --help need not wait for

            together = several_asked()
            try:
                if together:
                    from milnet import processes

                    processes.join()
                    context.first = processes.first()
                    if not several:
                        refuse_several(name)
                result = function(context, **arguments)
                if together:
                    processes.leave()
            except RuntimeError as error:
                raise (processes.lost(error) if together else None) or error from None
            except KeyboardInterrupt:  # here: the command line's library would end without a word
                context.warn("interrupted; what was finished is kept: run it again (train: with --resume)")
                raise typer.Exit(130) from None
            if context.json and context.first:
                print(json.dumps(strict(result), indent=1, ensure_ascii=False, allow_nan=False, default=str))
            if together:  # all is written and told; torch's own threads were seen to abort a process at its very end
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(context.failed))
            if context.failed:
                raise typer.Exit(1)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.several = several  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        of.command(name)(run)
        return run

    return register


def _version(value: bool) -> None:
    if value:
        print(f"milnet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a MilnetError is printed, not traced, and ends with 2."""
    # torch's threads wait for each other by spinning. On a machine that does other work too, that made a forward pass
    # fourteen times slower; read by the OpenMP library when torch is imported, which happens later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a terminal or file that has no sign for a star shows another
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except MilnetError as error:
        _complain(error)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept: run it again (train: with --resume)", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # a full disk, a folder without permission: the message names the path
        _complain(error)


def _complain(error: Exception) -> NoReturn:
    """Say what is wrong, of several processes once, and end with 2."""
    said = False
    if several_asked():
        from milnet import processes

        said = not processes.speaks()
    if not said:
        print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
