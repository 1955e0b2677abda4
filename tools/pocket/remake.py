"""Remake the pocket network: views, training, and what is shipped of it.

    python tools/pocket/remake.py PHOTOS WEIGHTS WORK [--bfloat16] [--threads N]

PHOTOS: a folder with imagenet_sample/, imagen/ and bsds500/ of small JPEGs. WEIGHTS: the safetensors of
mobilenetv2_100. WORK: a folder for views (6.5 GB) and checkpoints; the same command goes on where it was stopped.
Writes src/milnet/bundled/pocket.safetensors and tools/pocket/log.csv. `tools/bundle.py` then makes the model.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from milnet.places import BUNDLED

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("weights")
    parser.add_argument("work", type=Path)
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor has it")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    views, run = args.work / "views", args.work / "run"
    how = ["--threads", str(args.threads), *(["--bfloat16"] if args.bfloat16 else [])]
    for script in (
        ["views.py", args.photos, args.weights, str(views), "--workers", str(args.threads)],
        ["train.py", str(views), str(run), *how],
    ):
        subprocess.run([sys.executable, str(HERE / script[0]), *script[1:]], check=True)
    BUNDLED.mkdir(exist_ok=True)
    shutil.copyfile(run / "pocket.safetensors", BUNDLED / "pocket.safetensors")
    shutil.copy(run / "log.csv", HERE)


if __name__ == "__main__":
    main()
