"""Feature extractors of four stages that can be cut after any named unit."""

from __future__ import annotations

import difflib

from steadyseg.backbones.base import Backbone
from steadyseg.backbones.mit import VARIANTS as MIT
from steadyseg.backbones.mit import MiT, NormEps
from steadyseg.types import ConfigError

__all__ = ["Backbone", "build_backbone", "names"]


def names() -> list[str]:
    """Return the names that `build_backbone` takes."""
    return list(MIT)


def build_backbone(name: str, *, drop_path: float = 0.1, norm_eps: NormEps = "nvlabs") -> Backbone:
    """Build a backbone with freshly initialised weights.

    Raises:
        ConfigError: if `name` is unknown, with the nearest known name.
    """
    if name in MIT:
        return MiT(name, drop_path=drop_path, norm_eps=norm_eps)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(names())}"
    raise ConfigError(f"unknown backbone '{name}'{hint}")
