"""Where milnet keeps what belongs to a user, and where it finds what is shipped with it.

The user's folder holds backbone weights that were added, the places of a pool's photos, and how often the shipped pool
was looked at. Nothing is ever written where the package is installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from milnet.errors import ArtifactError, UsageError

BUNDLED = Path(__file__).parent / "bundled"
POOL = "bundled"  # how the shipped DATA is named where a DATA folder is asked for
MODELS = {"pocket": "pocket", "standard": "mobilenetv2_100"}  # shipped models, and their features of the shipped pool


def user_folder() -> Path:
    """`MILNET_HOME`, else the system's place for such files: ~/.cache/milnet (or XDG_CACHE_HOME) on Linux.

    Raises UsageError where the system names no home.
    """
    given = os.environ.get("MILNET_HOME")
    try:
        if given:
            return Path(given).expanduser()
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "milnet"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "milnet"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milnet"
    except RuntimeError as error:  # a user whom the system does not know
        raise UsageError(f"no home folder is known ({error}): set MILNET_HOME to a folder") from error


def bundled(name: str) -> Path:
    """A file or folder that is shipped inside the package; ArtifactError where it was removed."""
    path = BUNDLED / name
    if not path.exists():
        raise ArtifactError(
            f"this installation of milnet has no {name}: its bundled data were removed. Install milnet anew to have "
            f"them, or name your own DATA and MODEL"
        )
    return path


def find_model(name: str | Path) -> Path:
    """The folder of a MODEL: as given, or that of a shipped one where no folder of that name is there."""
    return bundled(str(name)) if str(name) in MODELS and not Path(name).is_dir() else Path(name)


def find_data(name: str | Path) -> Path:
    """The folder of a DATA: as given, or the shipped pool for "bundled" where no folder of that name is there."""
    return bundled("pool") if str(name) == POOL and not Path(name).is_dir() else Path(name)


def is_bundled(folder: Path) -> bool:
    """Whether a folder is part of what is shipped, whatever way its path goes."""
    return folder.resolve().is_relative_to(BUNDLED.resolve())


def looks_folder(data: Path) -> Path:
    """Where it is written down that a split of DATA was looked at: there, or for the shipped pool with the user."""
    return user_folder() if is_bundled(data) else data
