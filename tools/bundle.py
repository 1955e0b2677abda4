"""Make what is shipped in src/milnet/bundled: the rated pool with features and no pixels, and the models on it.

    python tools/bundle.py OASIS WEIGHTS WORK      (some ten minutes on two cores)

OASIS: images/, votes.csv, folds.csv. WEIGHTS: the safetensors of mobilenetv2_100. WORK: a folder for what lies between.
`pocket.safetensors` (tools/pocket) must be in the bundled folder already. The same input gives the same digests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from milnet.artifacts import read_manifest, write_manifest
from milnet.places import BUNDLED, MODELS

# Input sizes, `--draft` or not: docs/experiments.md says how they were chosen.
FEATURES = {
    "pocket": (MODELS["pocket"], "pocket", "160,224"),
    "standard": (MODELS["standard"], "timm/mobilenetv2_100", "224,320,448,576,704"),
}
_DROPPED = ("command", "image_root", "date")  # notes about the machine on which it was made


def milnet(*arguments: str) -> None:
    """Run the command line; a failure ends this program."""
    print("+ milnet", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "milnet", *arguments], check=True)


def notes(folder: Path, change: dict[str, Any]) -> None:
    """Change the notes of a manifest, which are no part of what it is; None takes one out."""
    manifest = read_manifest(folder)
    found = {k: v for k, v in {**manifest.notes, **change}.items() if v is not None}
    write_manifest(folder, dataclasses.replace(manifest, notes=found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oasis")
    parser.add_argument("weights")
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=("pocket", "standard"), help="leave the other model as it is")
    args = parser.parse_args()
    data = args.work / "pool"
    chosen = [args.only] if args.only else list(FEATURES)
    if not data.exists():
        milnet("import", "oasis", args.oasis, "-o", str(data))
    for model in chosen:
        name, backbone, sizes = FEATURES[model]
        milnet(
            "features", str(data), "--backbone", backbone, "--name", name, "--size", sizes, "--draft", "--batch", "4",
            "--overwrite",
            *(["--weights", args.weights] if model == "standard" else []),
        )  # fmt: skip
        how = ("--semantic", name, "--nodes", name, "-o", str(args.work / model), "--overwrite")
        milnet("train", str(data), "--recipe", "votes", *how)

    pool = BUNDLED / "pool"
    kept = {name: pool / "features" / name for name, *_ in FEATURES.values()}
    aside = args.work / "features"
    shutil.rmtree(aside, ignore_errors=True)
    if pool.exists():
        shutil.copytree(pool / "features", aside)
        shutil.rmtree(pool)
    shutil.copytree(data, pool, ignore=shutil.ignore_patterns("features", "*.run"))
    notes(pool, {"image_root": None, "command": None})
    for model, (name, _, _) in FEATURES.items():
        shutil.copytree(data / "features" / name if model in chosen else aside / name, kept[name])
        # where the weights are: shipped, or what `milnet weights add` keeps
        notes(kept[name], {"weights": "cached" if model == "pocket" else "standard", "command": None})
        if model not in chosen:
            continue
        target = BUNDLED / model
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(args.work / model, target)
        nodes = target / "pool" / "nodes.npy"
        if nodes.read_bytes() != (kept[name] / "features.npy").read_bytes():
            raise SystemExit(f"{nodes} is not the same file as the pool's features")
        nodes.unlink()
        parts = read_manifest(target).notes["features"]
        weights = "cached" if model == "pocket" else "standard"
        notes(
            target,
            {
                "borrowed": {"pool/nodes.npy": f"../pool/features/{name}/features.npy"},
                "command": None,
                "features": {role: {**part, "weights": weights} for role, part in parts.items()},
            },
        )
    total = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    print(json.dumps({"bytes": total, "MiB": round(total / 2**20, 2)}))


if __name__ == "__main__":
    main()
