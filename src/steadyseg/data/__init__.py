"""Data sets, one file each; a source is one split of one of them."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from steadyseg.types import ConfigError

if TYPE_CHECKING:
    from steadyseg.data.source import VideoSource

__all__ = ["SourceConfig", "names", "open_source"]

_SOURCES = {
    "streets": "StreetsSource",
    "camvid": "CamVidSource",
    "vspw": "VSPWSource",
    "cityscapes": "CityscapesSource",
    "davis": "DAVISSource",
    "folder": "FolderSource",
}
_FOLDERS = {"davis": ("davis2016val", "davis")}
"""Where $STEADYSEG_DATA holds a source under another name than its own; the first that is there counts."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One split of one data set, as named in a config or on the command line."""

    source: str = "streets"
    """A name of steadyseg.data.names()."""
    root: str | None = None
    """Folder of the data set; None is $STEADYSEG_DATA/<source>, for davis also davis2016val. Streets needs none."""
    split: str = "train"
    """Usually train, val or test."""
    only: str | None = None
    """Only the videos whose names match this pattern, such as "Seq05VD*"; None for all."""
    still: bool = False
    """Training clips come from single labelled frames moved by a random camera path, not from real neighbours."""
    weight: float = 1.0
    """Share among several training sources."""
    size: tuple[int, int] = (360, 480)
    """Streets only: height and width of a frame."""
    length: int = 40
    """Streets only: frames a video."""
    videos: int = 64
    """Streets only: number of videos."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"weight of source '{self.source}' is {self.weight}; expected more than 0")


def names() -> list[str]:
    """Return the names of the data sets."""
    return list(_SOURCES)


def open_source(config: SourceConfig) -> VideoSource:
    """Open one split; only the file of that data set is imported.

    Raises:
        ConfigError: if the name or the split is unknown, no folder is given or found, streets is given one, or no
            video matches `only`.
        DataError: if the folder does not hold the data set.
    """
    if config.source not in _SOURCES:
        near = difflib.get_close_matches(config.source, _SOURCES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(_SOURCES)}"
        raise ConfigError(f"unknown source '{config.source}'{hint}")
    kind = getattr(import_module(f"{__name__}.{config.source}"), _SOURCES[config.source])
    if config.source == "streets":
        if config.root is not None:
            raise ConfigError(f"source 'streets' is made, not read; leave its root {config.root} out")
        source = kind(split=config.split, size=config.size, length=config.length, videos=config.videos)
    else:
        source = kind(_root(config), config.split)
    return source if config.only is None else _select(source, config.split, config.only)


def _select(source: VideoSource, split: str, only: str) -> VideoSource:
    chosen = tuple(name for name in source.names if fnmatchcase(name, only))
    if not chosen:
        shown = ", ".join(source.names[:8]) + (" and others" if len(source.names) > 8 else "")
        raise ConfigError(f"no video of split '{split}' matches '{only}'; expected a pattern for names such as {shown}")
    source.names = chosen
    return source


def _root(config: SourceConfig) -> Path:
    if config.root is not None:
        root = Path(config.root).expanduser()
        if not root.is_dir():
            raise ConfigError(f"root {config.root} of source '{config.source}' is not a folder")
        return root
    home = os.environ.get("STEADYSEG_DATA")
    if not home:
        raise ConfigError(
            f"source '{config.source}' has no folder: set its root, or set STEADYSEG_DATA to a folder that holds "
            f"{config.source}/"
        )
    roots = [Path(home).expanduser() / folder for folder in _FOLDERS.get(config.source, (config.source,))]
    for root in roots:
        if root.is_dir():
            return root
    raise ConfigError(f"source '{config.source}': {roots[-1]} is not a folder; set its root, or change STEADYSEG_DATA")
