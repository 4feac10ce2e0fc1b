"""Steady, fast video semantic segmentation: every pixel of every frame, with labels that hold still.

Importing the package is cheap: torch is loaded when a public name is first used.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyseg.engine.checkpoint import load_model as load_model
    from steadyseg.engine.stream import Stream as Stream
    from steadyseg.types import Clip as Clip
    from steadyseg.types import Frame as Frame

__version__ = metadata.version("steadyseg")
__all__ = ["Clip", "Frame", "Stream", "__version__", "load_model"]

_HOME = {
    "load_model": "steadyseg.engine.checkpoint",
    "Stream": "steadyseg.engine.stream",
    "Clip": "steadyseg.types",
    "Frame": "steadyseg.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steadyseg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
