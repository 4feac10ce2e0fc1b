"""An experiment as frozen values: what to train, on what, how, and which published result it repeats.

A YAML file holds only what differs from the defaults. Reading is strict: an unknown key, a missing value or a wrong
type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from steadyseg import models
from steadyseg.data import SourceConfig
from steadyseg.data.clips import DataConfig
from steadyseg.models.base import ModelConfig
from steadyseg.types import ConfigError

FOLDER = Path(__file__).parent / "configs"
"""The shipped configs, ``<method>_<backbone>_<dataset>.yaml``."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the SegFormer recipe."""

    iterations: int = 160_000
    """Optimiser steps of the whole run, unless `time_budget` decides."""
    time_budget: str | None = None
    """Length of the run by the clock, such as "2h", "1h30m" or "45s", instead of `iterations`: the learning rate then
    follows the time spent, so another machine takes another number of steps."""
    batch_size: int = 2
    """Clips a process and step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW with betas 0.9 and 0.999, or stochastic gradient descent with momentum."""
    momentum: float = 0.9
    """Of SGD."""
    lr: float = 6e-5
    """Peak learning rate of the backbone."""
    head_lr_factor: float = 10.0
    """Everything outside the backbone learns this many times as fast."""
    warmup: int = 1500
    """Steps over which the rate rises linearly from a millionth of its value; 0 for none."""
    power: float = 1.0
    """Exponent of the polynomial decay; 1 is linear."""
    min_lr: float = 0.0
    """The rate at the end of the decay."""
    decay_after_warmup: bool = False
    """Whether the decay begins after the warm-up; otherwise it runs from the first step and multiplies the warm-up."""
    weight_decay: float = 0.01
    """Of the optimiser."""
    decay_norms: bool = False
    """Whether weight decay acts on norm layers too."""
    clip_norm: float | None = None
    """Largest L2 norm of the gradient; None does not clip."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the forward pass; weights and optimiser stay in 32 bits."""
    workers: int = 2
    """Processes that prepare clips, for each training process; 0 prepares them in between."""
    seed: int = 0
    """Decides initial weights, order and augmentation of the clips, dropout and drop path."""
    init: str | None = None
    """Weights that start the training: a file, a folder, a shipped name or a hub id; None is random."""
    init_part: Literal["backbone", "whole"] = "backbone"
    """What to take of them: the backbone, or every tensor that fits by name and shape, as for fine-tuning to other
    classes; what did not fit is named."""
    ema: float = 0.0
    """Decay a step of a running mean of the weights, which is what is then saved and scored; 0 saves the last ones.
    Early on the decay is smaller, (1 + step) / (10 + step), so that the initial weights are soon forgotten."""
    class_weights: Literal["none", "sqrt_median", "median"] = "none"
    """Weights of the cross-entropy: ones; median frequency / frequency of the class; or the square root of that."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; there is always one at the end."""
    log_every: int = 20
    """Steps between two logged values."""
    eval_every: int = 0
    """Steps between two scores on eval.source, of which the best weights are kept; 0 for none. There is one at the
    end."""
    channels_last: bool = False
    """Store convolution weights channels-last."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Kind of device."""
    devices: int | str = "auto"
    """Devices (training processes) a machine: a number, "auto", or a list such as "0,2"."""
    nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """How processes work together, by Lightning Fabric's name: "auto", "ddp" or "ddp_find_unused_parameters_true"."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError(f"train.{name} is {value}; expected at least {least}")
        for name in ("lr", "power", "clip_norm", "head_lr_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"train.{name} is {value}; expected more than 0")
        if not self.ema < 1:
            raise ConfigError(f"train.ema is {self.ema}; expected less than 1, such as 0.999")
        if self.time_budget is not None and not self.seconds:
            raise ConfigError(f"train.time_budget is '{self.time_budget}'; expected a time such as 2h, 1h30m or 45s")

    @property
    def seconds(self) -> int | None:
        """`time_budget` in seconds; None where `iterations` decide."""
        if self.time_budget is None:
            return None
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.time_budget)
        hours, minutes, seconds = (int(number or 0) for number in found.groups()) if found else (0, 0, 0)
        return 3600 * hours + 60 * minutes + seconds


_LEAST = {
    **dict.fromkeys(("iterations", "batch_size", "log_every", "nodes"), 1),
    **dict.fromkeys(("warmup", "weight_decay", "workers", "seed", "checkpoint_minutes", "momentum", "min_lr"), 0),
    **dict.fromkeys(("ema", "eval_every"), 0),
}


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How to evaluate."""

    source: SourceConfig = field(default_factory=lambda: SourceConfig(split="val"))
    """The split to score."""
    base: tuple[int, int] | None = None
    """Height and width, in pixels, that frames are scaled to fit, long side to long side; None: their own."""
    resize: Literal["exact", "align32"] = "exact"
    """Then leave the frame as it is, or stretch both sides up to multiples of 32."""
    starts: tuple[int, ...] = (0,)
    """First key frames: the split is run once for each, all into the same scores. DCFM's authors take 0 and 1 where one
    frame of a video is labelled, so that it counts once as a key frame and once between two."""
    alone: bool = False
    """Whether every frame begins a video of its own, so that nothing is remembered. For frames that are too far apart
    to be one."""

    def __post_init__(self) -> None:
        if not self.starts or min(self.starts) < 0:
            raise ConfigError(f"eval.starts is {self.starts}; expected at least one number, none negative")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a result."""

    method: str
    """A name of steadyseg.models.names()."""
    model: ModelConfig
    """That method's own Config."""
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    reproduces: str = ""
    """Paper, table and row."""
    published: Mapping[str, float] = field(default_factory=dict)
    """The published scores of that row by metric, as printed."""


def names() -> list[str]:
    """Return the names of the shipped configs."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def costs() -> dict[str, Any]:
    """Return what benchmarks/costs.py counted for each shipped config: "parameters", "multiply_adds" and "of"."""
    found: dict[str, Any] = json.loads((FOLDER / "costs.json").read_text(encoding="utf-8"))
    return found


def load(name: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a config.

    Args:
        name: a YAML file, or the name of a shipped config.
        overrides: assignments that win over the file, such as "train.lr=6e-5" or "data.train.0.root=/data/camvid".

    Raises:
        ConfigError: if there is no such config; if a key is unknown, with the nearest known one; if a value has
            the wrong type, with the expected one.
    """
    raw = _read_yaml(_find(name))
    for override in overrides:
        _assign(raw, override)
    return from_dict(raw)


def from_dict(raw: Mapping[str, Any]) -> Experiment:
    """Build an experiment from plain values, as a config file or `to_dict` gives them.

    Raises:
        ConfigError: as `load`.
    """
    if not isinstance(raw.get("method"), str):
        raise ConfigError(f"the config needs a method, one of {', '.join(models.names())}; got {raw.get('method')!r}")
    options = models.method(raw["method"]).Config
    sections: dict[str, Any] = {"model": {}, "data": {}, "train": {}, "eval": {}}
    filled = {**sections, **{key: value for key, value in raw.items() if value is not None}}
    experiment: Experiment = _build(Experiment, filled, "", {"model": options, "published": dict[str, float]})
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as plain dicts, lists, strings and numbers, with every default written out."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(experiment))
    return plain


def options_to_dict(options: ModelConfig) -> dict[str, Any]:
    """Return a method's Config as plain dicts, lists, strings and numbers."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(options))
    return plain


def options_from_dict(method: str, raw: Mapping[str, Any]) -> ModelConfig:
    """Build a method's Config from plain values.

    Raises:
        ConfigError: as `load`.
    """
    options: ModelConfig = _build(models.method(method).Config, raw, "model")
    return options


def has_options(method: str, raw: Mapping[str, Any]) -> bool:
    """Whether a method has all these options, whatever their values."""
    return set(raw) <= {field.name for field in dataclasses.fields(models.method(method).Config)}


def check_options(method: str, raw: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have.

    Raises:
        ConfigError: naming the method and the option, with the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(models.method(method).Config)]
    for key in raw:
        if key not in known:
            cure = _suggest(str(key), known)
            if key == "interval":
                able = [name for name in models.names() if has_options(name, raw)]
                cure = f", as it has no key frames; {', '.join(able)} have it"
            raise ConfigError(f"method '{method}' has no option '{key}'{cure}")


def parse_options(text: str) -> dict[str, Any]:
    """Read changes of a method's options, such as "interval=6 adaptive.threshold=0.4", as nested plain values.

    Raises:
        ConfigError: if a word is not of the form key=value.
    """
    raw: dict[str, Any] = {}
    for word in text.split():
        if not re.fullmatch(r"[\w.]+=.+", word):
            raise ConfigError(f"options have '{word}'; expected key=value, such as theta=0.7")
        _assign(raw, word)
    return raw


# ---- files and overrides -----------------------------------------------------------------------------------------


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in names():
        return FOLDER / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"no config file {path}")
    raise ConfigError(f"unknown config '{name}'{_suggest(str(name), names())}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}; expected the sections method, model, data, train, eval")
    return raw


def _assign(raw: dict[str, Any], override: str) -> None:
    """Apply "a.b.c=value" to nested dicts and lists."""
    key, equals, value = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise ConfigError(f"override '{override}' is not of the form section.key=value")
    place: Any = raw
    for part in parents:
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[part] if isinstance(place, dict) else _item(place, part, override)
    if isinstance(place, dict):
        place[last] = value
    else:
        _item(place, last, override)
        place[int(last)] = value


def _item(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    held = f"a list of {len(place)}" if isinstance(place, list) else f"the value {place!r}"
    raise ConfigError(f"override '{override}': there is no '{part}' in {held}")


# ---- from plain values to dataclasses ----------------------------------------------------------------------------


def _build(kind: type, raw: Any, where: str, changed: Mapping[str, Any] | None = None) -> Any:
    """Make dataclass `kind` of a mapping; `changed` replaces the types of some fields."""
    raw = _parse(raw, where)
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"{where} is {raw!r}; expected a mapping of {', '.join(f.name for f in dataclasses.fields(kind))}"
        )
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in raw:
        if key not in fields:
            raise ConfigError(f"unknown key '{key}' in {where or 'the config'}{_suggest(str(key), list(fields))}")
    hints = {**typing.get_type_hints(kind), **(changed or {})}
    prefix = f"{where}." if where else ""
    values = {key: _convert(hints[key], value, prefix + key) for key, value in raw.items()}
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name} is missing; it has no default")
    return kind(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check `value` against a type hint; numbers in strings are read, since YAML takes 6e-5 for a string."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type", hint), value, key)
    options, arguments = typing.get_origin(hint), typing.get_args(hint)
    if options is Literal and isinstance(value, bool):  # YAML reads a plain on or off so
        value = "on" if value else "off"
    if hint is float and value in ("inf", "-inf"):  # YAML writes .inf
        value = float(value)
    optional = options in (typing.Union, types.UnionType) and type(None) in arguments
    if value is None:
        if optional:
            return None
        raise ConfigError(f"{key} is empty; expected {_describe(hint)}")
    inner: Any = next((argument for argument in arguments if dataclasses.is_dataclass(argument)), None)
    if optional and inner is not None:
        return None if value == "null" else _build(inner, value, key)
    if options is tuple and inner is not None:
        items = _parse(value, key)
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise ConfigError(f"{key} is {value!r}; expected a list")
        return tuple(_build(inner, item, f"{key}.{number}") for number, item in enumerate(items))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": value}).value
    except ArgumentError as error:
        raise ConfigError(f"{key} is {value!r}; expected {_describe(hint)}") from error


def _parse(value: Any, key: str) -> Any:
    """Read a string as YAML: an override may hold a whole section or list."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} is {value!r}; expected YAML") from error


def _describe(hint: Any) -> str:
    """Return a type as a person would write it."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _describe(argument) for argument in arguments)
    if typing.get_origin(hint) is Mapping:
        return "a mapping"
    return hint.__name__ if isinstance(hint, type) and not arguments else str(hint).replace("typing.", "")


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
