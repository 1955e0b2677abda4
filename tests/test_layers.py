"""The shape of the package: imports point one way, few public names, the promised commands, only `cli` prints."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import milnet

# From the ground up. A module imports only from those above it in this list (or from its own package).
ORDER = [
    "version", "errors", "places", "artifacts", "client", "annotations", "entropy",
    "exif", "heif", "raw", "images", "signals", "bursts", "aside", "preprocess", "library",
    "packets", "embedded", "xmp",
    "datasets", "sources", "cluster", "ratings", "splits",
    "_torchvision", "features", "mlsp", "pocket", "pickles", "backbones", "weights", "runtime", "extraction", "storing",
    "references", "index", "model", "pool", "album", "published_files", "losses", "metrics", "processes",
    "samples", "training", "tuning",
    "recipe", "doubt", "recipes", "compact", "checkpoints", "reduction", "published", "results", "evaluation",
    "growing", "figures", "explanation", "taste", "shipped",
    "cache", "scoring", "files", "outputs", "bulk", "export",
    "report", "demo", "server", "cli", "__main__",
]  # fmt: skip
COMMANDS = [
    "demo",
    "import",
    "features",
    "reduce",
    "references",
    "train",
    "test",
    "evaluate",
    "crossvalidate",
    "convert",
    "figures",
    "score",
    "cache",
    "explain",
    "info",
    "doctor",
    "taste",
    "serve",
    "export",
    "pool add",
    "pool images",
    "pool remove",
    "pool compact",
    "pool index",
    "weights add",
    "weights get",
]


def package() -> Path:
    spec = importlib.util.find_spec("milnet")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules() -> dict[str, list[Path]]:
    """Layer -> its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(package().rglob("*.py")):
        parts = path.relative_to(package()).with_suffix("").parts
        if parts != ("__init__",):
            found.setdefault(parts[0], []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Layers of milnet that a file imports, anywhere in it."""
    layers = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        layers |= {name.split(".")[1] for name in names if name.startswith("milnet.")}
    return layers


def test_every_module_has_its_place() -> None:
    assert sorted(modules()) == sorted(ORDER)


def test_imports_point_one_way() -> None:
    for layer, paths in modules().items():
        for path in paths:
            for other in imported(path) - {layer, "__version__"}:
                assert ORDER.index(other) < ORDER.index(layer), f"{path.name} ({layer}) imports {other}"


def test_the_networks_know_nothing_of_the_rest() -> None:
    for path in modules()["model"]:
        assert imported(path) <= {"model"}, path


def test_public_names() -> None:
    assert milnet.__all__ == sorted(milnet.__all__, key=str)
    assert len(milnet.__all__) <= 12
    for name in milnet.__all__:
        assert getattr(milnet, name) is not None
    assert callable(milnet.published.predict)


def test_importing_is_light() -> None:
    """Neither `import milnet` nor building the command line waits for torch."""
    code = "import milnet.cli, sys; print([m for m in ('torch', 'numpy', 'polars', 'timm', 'PIL') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_training_and_scoring_do_not_import_polars() -> None:
    """Tables are for reading published formats and writing results; a GPU machine may lack the package."""
    code = "import milnet.recipes, milnet.scoring, milnet.evaluation, sys; print('polars' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_the_commands_are_those_promised() -> None:
    from typer.main import get_command

    from milnet.cli import app

    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {one}": inner[one] for one in inner}
    assert list(found) == COMMANDS
    for name, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--device", "--threads", "--offline", "--json", "--quiet"} <= options, name


def test_only_the_command_line_prints() -> None:
    for layer, paths in modules().items():
        for path in paths:
            calls = [
                node.func
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Call)
            ]
            printing = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
            assert not printing or layer == "cli", path
