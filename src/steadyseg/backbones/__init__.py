"""Feature extractors of four stages that can be cut after any named unit; only the family in use is imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from steadyseg.backbones.base import Backbone, NormEps
from steadyseg.types import ConfigError

__all__ = ["Backbone", "NormEps", "build_backbone", "names"]

MIT = ("mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5")
_PLAIN = ("resnet18", "resnet50", "resnet101", "resnet50s", "resnet101s")
RESNET = (*_PLAIN, *(f"{name}_ppm" for name in _PLAIN))
HRNET = ("hrnet_w18", "hrnet_w48")


def names() -> list[str]:
    """Return the names that `build_backbone` takes."""
    return [*MIT, *RESNET, *HRNET]


def build_backbone(
    name: str,
    *,
    drop_path: float = 0.1,
    norm_eps: NormEps = "nvlabs",
    architecture: Mapping[str, Any] | None = None,
    cuts: Sequence[str] = (),
) -> Backbone:
    """Build a backbone with freshly initialised weights.

    Args:
        name: one of `names()`, or a model of the transformers library by folder or hub id "owner/name".
        drop_path: stochastic depth of the last block of a MiT.
        norm_eps: whose LayerNorm epsilon a MiT uses.
        architecture: sizes of a model of the transformers library, its config.json, instead of reading them by name.
        cuts: units after which the caller will stop or start; "shallow" stands for the backbone's `shallow`.

    Raises:
        ConfigError: if `name` is unknown, with the nearest known name; if the backbone lacks one of the `cuts`.
    """
    backbone = _build(name, drop_path, norm_eps, architecture)
    units = [unit for unit, _ in backbone.units()]
    for cut in (backbone.shallow if cut == "shallow" else cut for cut in cuts):
        if cut not in units:
            has = f"its units are {', '.join(units)}" if units else "it runs as a whole only"
            raise ConfigError(
                f"this method runs its backbone in parts, up to '{cut}'; '{name}' has no such unit, {has}: "
                f"take one of {', '.join((*MIT, *RESNET))}"
            )
    return backbone


def _build(name: str, drop_path: float, norm_eps: NormEps, architecture: Mapping[str, Any] | None) -> Backbone:
    if name in names() and architecture is not None:
        raise ConfigError(f"model.architecture is for models of transformers; '{name}' has its own: set it to null")
    if name in MIT:
        from steadyseg.backbones.mit import MiT

        return MiT(name, drop_path=drop_path, norm_eps=norm_eps)
    if name in RESNET:
        from steadyseg.backbones.resnet import ResNet

        return ResNet(name)
    if name in HRNET:
        from steadyseg.backbones.hrnet import HRNet

        return HRNet(name)
    from steadyseg.backbones.huggingface import build_huggingface, is_huggingface

    if architecture is not None or is_huggingface(name):
        return build_huggingface(name, architecture)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(names())}"
    raise ConfigError(f"unknown backbone '{name}'{hint}")
