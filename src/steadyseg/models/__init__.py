"""Methods, one file each. The folder is the registry: `dcfm` is models/dcfm.py."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError

__all__ = ["method", "names"]


def names() -> list[str]:
    """Return the method names: the files of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def method(name: str) -> type[VideoSegmenter]:
    """Return the class METHOD of models/<name>.py.

    Raises:
        ConfigError: if there is no such file, with the nearest known name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(names())}"
        raise ConfigError(f"unknown method '{name}'{hint}")
    return import_module(f"{__name__}.{name}").METHOD
