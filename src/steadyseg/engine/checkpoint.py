"""Weights in and out: our safetensors files, and those of others as engine/published.py reads them.

No file is trusted: pickles are read without running code, and every key must be known, present and of the right shape.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

import steadyseg
from steadyseg import models
from steadyseg.backbones import Backbone
from steadyseg.backbones.huggingface import HuggingFaceBackbone, from_published
from steadyseg.config import check_options, options_from_dict, options_to_dict
from steadyseg.data.source import VideoSource
from steadyseg.engine.published import (
    Weights,
    below,
    in_file,
    read_backbone,
    read_model,
    read_safetensors,
)
from steadyseg.models.base import VideoSegmenter, check_classes
from steadyseg.types import CheckpointError, ConfigError

_LOG = logging.getLogger(__name__)
FOLDER = Path(steadyseg.__file__).parent / "weights"
"""The shipped weights, ``<config name>.safetensors``."""
METADATA = "steadyseg"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
SHARED = ("backbone", "norm_eps", "width", "dropout")
"""Options of a SegFormer that all methods which run its weights share."""


def names() -> list[str]:
    """Return the names of the shipped weights."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def save_model(
    path: str | Path, model: VideoSegmenter, source: VideoSource | None = None, *, half: bool = False
) -> None:
    """Write weights, method, Config, classes and palette to one safetensors file, whole or not at all.

    Args:
        path: the file; its folder exists.
        model: any method.
        source: the data it was trained on, for classes and palette; None keeps the model's own.
        half: store parameters as float16, which halves the file; buffers stay as they are.

    Raises:
        CheckpointError: if the classes do not fit, a parameter does not fit into float16, or the file cannot be
            written.
    """
    if source is not None:
        check_classes(model, source.classes)
        model.classes, model.palette = source.classes, source.palette
    about = {
        "method": _method_name(model),
        "config": options_to_dict(model.config),
        "classes": model.classes,
        "palette": model.palette,
        "version": steadyseg.__version__,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        for name in (name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32):
            state[name] = state[name].half()
            if not state[name].isfinite().all():
                raise CheckpointError(f"{name} does not fit into float16; save with half=False")
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_bytes(save(state, metadata={METADATA: json.dumps(about)}))  # with the user's own permissions
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> VideoSegmenter:
    """Load a model, ready to run: in evaluation mode, with its classes and palette.

    Args:
        path: a file of `save_model`; a training run's folder; a folder of transformers' SegFormer; a segmentation
            file of the SegFormer authors (.pth); the name of shipped weights; or a hub id "owner/name", which is
            downloaded.
        device: where to put it.
        method: run the weights of a SegFormer by this method, without training; None is the method of the file.
        options: changes of the method's options, as nested plain values such as {"interval": 6}; the rest are the
            file's. The weights must still fit.

    Raises:
        CheckpointError: if nothing is found; if the file is damaged or holds code; if keys are missing, extra or
            of the wrong shape, listing them.
        ConfigError: if there is no such method, or it cannot run these weights; if an option is unknown or wrong.
    """
    place = _locate(path)
    weights = _read_own(place) if place.suffix == ".safetensors" else read_model(place)
    if method is not None and method != weights.method:
        weights = _adopt(weights, method, place)
    check_options(weights.method, options or {})
    config = options_from_dict(weights.method, _merge(weights.options, options or {}))
    model = models.method(weights.method)(config, len(weights.classes))
    version = (weights.options.get("architecture") or {}).get("transformers_version")
    where = f"{place} (written with transformers {version})" if version else str(place)
    if options:
        where += f", with {', '.join(f'{key}={value}' for key, value in options.items())}"
    with in_file(place):
        state = _renewed(model.backbone, weights.state)
    _fill(model, state, where)
    model.classes, model.palette = weights.classes, weights.palette or model.palette  # type: ignore[assignment]
    return model.to(device).eval()


def load_backbone(model: VideoSegmenter, path: str | Path) -> None:
    """Start `model` from the backbone of other weights; its other parameters stay as they are.

    Args:
        model: any method.
        path: as in `load_model`; also ImageNet weights and other published ones of the same backbone: a folder or
            hub id of transformers, with any head or none; the authors' files.

    Raises:
        CheckpointError: as `load_model`; every key of the backbone must be there, but for pyramid pooling, which
            published files lack and our own may: it stays as it is. Of our own, a warning says so.
    """
    place = _locate(path)
    if place.suffix == ".safetensors":
        state, metadata = read_safetensors(place)
        if METADATA in metadata:
            with in_file(place):
                state = below(_renewed(model.backbone, state), "backbone.")
            _fill(model.backbone, state, f"{place}: backbone", model.backbone.unpublished)
            if left := _absent(state, model.backbone.unpublished):
                _LOG.warning("%s: the backbone has no %s, which keeps its random start", place, _some(list(left)))
            return
    state = read_backbone(model.backbone, place)
    _fill(model.backbone, state, f"{place}: backbone", model.backbone.unpublished)


def load_fitting(model: VideoSegmenter, path: str | Path) -> str:
    """Start `model` from every tensor of other weights that fits it by name and shape; the rest stays as it is.

    Args:
        model: any method.
        path: as in `load_model`.

    Returns:
        What stayed as it was, as a list for a reader; empty if all of the model was filled.

    Raises:
        CheckpointError: as `load_model`; also if the backbone does not fit.
    """
    place = _locate(path)
    weights = _read_own(place) if place.suffix == ".safetensors" else read_model(place)
    with in_file(place):
        state = _renewed(model.backbone, weights.state)
    own = model.state_dict()
    _fill(model.backbone, below(state, "backbone."), f"{place}: backbone")
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    model.load_state_dict(own | fitting)
    return _some([key for key in own if key not in fitting])


# ---- from a file to a model --------------------------------------------------------------------------------------


def _read_own(path: Path) -> Weights:
    state, metadata = read_safetensors(path)
    try:
        about = json.loads(metadata[METADATA])
        options = options_to_dict(options_from_dict(about["method"], about["config"]))
        classes, palette = tuple(map(str, about["classes"])), tuple(tuple(map(int, rgb)) for rgb in about["palette"])
        return Weights(about["method"], options, state, classes, palette)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say which model it holds; expected a file of steadyseg") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} does not fit this version of steadyseg: {error}") from error


def _adopt(weights: Weights, method: str, path: Path) -> Weights:
    """Hand the weights of a SegFormer to another method, whose keys are the same."""
    kind = models.method(method)
    if weights.method != "segformer":
        raise ConfigError(
            f"{path} holds a model of method {weights.method}, which only that method can run, not {method}; "
            "expected the weights of a segformer"
        )
    whole = options_to_dict(options_from_dict(weights.method, weights.options))
    adopted = options_to_dict(kind.adopt({name: whole[name] for name in SHARED}))
    kept = {name: whole[name] for name in ("drop_path", "architecture")}
    return weights._replace(method=method, options=adopted | kept)


def _merge(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `options` with `changes`; another backbone does not keep the architecture of the old one."""
    merged = dict(options)
    if "backbone" in changes and changes["backbone"] != options.get("backbone"):
        merged.pop("architecture", None)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _renewed(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the backbone's keys in a model's `state` where another version of transformers wrote them."""
    prefix = "backbone.model."
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not isinstance(backbone, HuggingFaceBackbone) or inside.keys() in (set(), backbone.model.state_dict().keys()):
        return state
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    return rest | {f"backbone.{key}": value for key, value in from_published(backbone, inside).items()}


def _fill(module: nn.Module, state: dict[str, Tensor], where: str, lacking: tuple[str, ...] = ()) -> None:
    """Load `state`, which must fit `module` exactly; float16 becomes the module's own dtype.

    Where `state` has no key at all that starts with one of `lacking`, the module's own values there stay.

    Raises:
        CheckpointError: listing missing, extra and wrongly shaped keys.
    """
    own = module.state_dict()
    absent = _absent(state, lacking)
    missing = [key for key in own if key not in state and not key.startswith(absent)]
    extra = [key for key in state if key not in own]
    wrong = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    lists = {"missing": missing, "extra": extra, "wrongly shaped": wrong}
    problems = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in lists.items() if keys]
    if problems:
        raise CheckpointError(f"{where}: keys do not fit the model: {'; '.join(problems)}")
    module.load_state_dict(own | state)


def _absent(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prefixes that no key starts with."""
    return tuple(prefix for prefix in prefixes if not any(key.startswith(prefix) for key in state))


def _some(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _method_name(model: VideoSegmenter) -> str:
    return type(model).__module__.rpartition(".")[2]


# ---- where a file is ---------------------------------------------------------------------------------------------


def _locate(path: str | Path) -> Path:
    """Return the file or folder that a path, a shipped name or a hub id means."""
    place, name = Path(path), str(path)
    if place.is_dir() and not (place / "config.json").is_file() and (place / "model.safetensors").is_file():
        return place / "model.safetensors"  # a training run's folder
    if place.is_file() and place.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(f"{place} is not a weights file; expected .safetensors, {', '.join(PICKLES)}")
    if place.is_dir() and not (place / "config.json").is_file():
        hint = "; the run in it has not finished: steadyseg train --resume" if (place / "config.yaml").is_file() else ""
        raise CheckpointError(
            f"{place} has no readable config.json (a SegFormer of transformers) and no model.safetensors "
            f"(a finished run){hint}"
        )
    if place.exists():
        return place
    if name in names():
        return FOLDER / f"{name}.safetensors"
    if place.parts[:1] == ("runs",):  # where training writes: no owner on a hub
        raise CheckpointError(f"no run in {name}: train it first, as with steadyseg train {place.name}")
    if place.suffix in (".safetensors", *PICKLES) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"shipped are {', '.join(names()) or 'none'}"
        raise CheckpointError(f"no weights '{name}': neither a file, a folder, a shipped name nor owner/name; {hint}")
    patterns = ["config.json", "model.safetensors", "pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no file or folder '{name}', and the Hugging Face hub does not give it: {reason}"
        ) from error
