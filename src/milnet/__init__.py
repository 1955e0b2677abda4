"""milnet: image aesthetics, judged beside photos that people have already judged."""

from milnet.version import __version__

__all__ = ["__version__"]
