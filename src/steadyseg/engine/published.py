"""Weights of others: read without running code, and renamed to our keys.

Whole models: transformers' SegFormer folders and the SegFormer authors' files. Backbones: those, ImageNet files, and
folders of transformers. Every layout is told by its keys and by its config.json, never guessed by what happens to fit.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steadyseg.backbones import Backbone, hrnet, huggingface, mit, resnet
from steadyseg.backbones.hrnet import HRNet
from steadyseg.backbones.huggingface import HuggingFaceBackbone
from steadyseg.backbones.mit import MiT
from steadyseg.backbones.resnet import ResNet
from steadyseg.models import pspnet, segformer
from steadyseg.types import CheckpointError, ConfigError

_ENCODER = "segformer.encoder."
_MIT = {
    "num_attention_heads": list(mit.HEADS),
    "hidden_act": "gelu",
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "sr_ratios": list(mit.REDUCTIONS),
    "mlp_ratios": [mit.MLP_RATIO] * 4,
}
"""What the config.json of a SegFormer may only say; these are transformers' defaults too."""
_RESNET = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
"""The same of a ResNet."""


class Weights(NamedTuple):
    """A model as a file holds it."""

    method: str
    """A name of steadyseg.models.names()."""
    options: dict[str, Any]
    """That method's Config as plain values."""
    state: dict[str, Tensor]
    """All parameters and buffers, with our names."""
    classes: tuple[str, ...]
    """K names."""
    palette: tuple[tuple[int, ...], ...] | None
    """K colours; None where the file has none."""


def read_model(place: Path) -> Weights:
    """Read a whole model: a SegFormer in a folder of transformers or a file of its authors, or a PSPNet of semseg's.

    Raises:
        CheckpointError: if it is damaged, holds code, another model or a backbone alone.
    """
    config = read_config(place) if place.is_dir() else None
    state = read_weights(place)
    with in_file(place):
        if config is not None:
            return _huggingface_segformer(state, config)
        return _semseg_pspnet(state) if "cls.0.weight" in state else _nvlabs_segformer(state)


def read_backbone(backbone: Backbone, place: Path) -> dict[str, Tensor]:
    """Read published weights for `backbone`, renamed to its keys; they may lack its `unpublished` ones.

    Args:
        backbone: what they are for; it stays as it is.
        place: a folder of transformers, or a file of torch.save or safetensors.

    Raises:
        CheckpointError: if the file is damaged or holds code; if it holds another kind of backbone.
    """
    config = read_config(place) if place.is_dir() else None
    state = read_weights(place)
    with in_file(place):
        if isinstance(backbone, HuggingFaceBackbone):
            return _for_huggingface(backbone, state, config)
        if isinstance(backbone, ResNet):
            return _for_resnet(backbone, state, config)
        if isinstance(backbone, HRNet):
            _expect_type(config, "hrnet")
            return hrnet.from_hrnet(_without_head(state))
        if isinstance(backbone, MiT):
            return _for_mit(state, config)
        kind = type(backbone).__name__
        raise CheckpointError(f"no published weights are known for a {kind}; expected a file of steadyseg")


# ---- backbones ---------------------------------------------------------------------------------------------------


def _for_mit(state: dict[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    _expect_type(config, "segformer")
    _expect_same(config or {}, _MIT)
    if config is not None or any(key.startswith(_ENCODER) for key in state):
        return mit.from_huggingface(below(state, _ENCODER))
    return mit.from_nvlabs(_without_head(state))


def _for_resnet(backbone: ResNet, state: dict[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    _expect_type(config, "resnet")
    _expect_same(config or {}, _RESNET)
    if config is not None or any(key.startswith("resnet.") for key in state):
        return resnet.from_huggingface(state)
    rename = resnet.from_deep_stem if backbone.has_deep_stem else resnet.from_torchvision
    return rename(_without_head(state))


def _for_huggingface(
    backbone: HuggingFaceBackbone, state: dict[str, Tensor], config: dict[str, Any] | None
) -> dict[str, Tensor]:
    if config is not None:
        ours, theirs = backbone.architecture or {}, huggingface.inner_config(config)
        _expect_type(theirs, str(ours.get("model_type")))
        try:
            found = huggingface.deciding(theirs)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        _expect_same(found, huggingface.deciding(ours))
    return huggingface.from_published(backbone, _without_head(state))


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what is below "backbone." in a segmentation model's weights, or all of a backbone's own."""
    return {
        key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")
    } or state


# ---- whole models ------------------------------------------------------------------------------------------------


def _huggingface_segformer(state: dict[str, Tensor], config: Mapping[str, Any]) -> Weights:
    _expect_type(config, "segformer")
    _expect_decoder(state)
    _expect_same(config, _MIT | {"reshape_last_stage": True})
    labels = sorted((int(number), str(label)) for number, label in config.get("id2label", {}).items())
    return _segformer(segformer.from_huggingface(state), tuple(label for _, label in labels), norm_eps="hf")


def _nvlabs_segformer(state: dict[str, Tensor]) -> Weights:
    _expect_decoder(state)
    return _segformer(segformer.from_nvlabs(state), (), norm_eps="nvlabs")


def _semseg_pspnet(state: dict[str, Tensor]) -> Weights:
    deep = "layer3.22.conv1.weight" in state
    options = {
        "backbone": "resnet101s_ppm" if deep else "resnet50s_ppm",
        "width": state["cls.0.weight"].shape[0],
        "aux_weight": 0.4 if "aux.0.weight" in state else 0.0,
    }
    count = state["cls.4.weight"].shape[0] if "cls.4.weight" in state else 0
    classes = tuple(f"class {number}" for number in range(count))
    return Weights("pspnet", options, pspnet.from_semseg(state), classes, None)


def _segformer(state: dict[str, Tensor], classes: tuple[str, ...], **options: Any) -> Weights:
    """Describe the SegFormer whose sizes are those of `state`."""
    variant = _variant(below(state, "backbone."))
    head = state.get("decoder.linear_pred.weight")
    if head is None:
        raise CheckpointError("missing key decoder.linear_pred.weight")
    if classes and len(classes) != head.shape[0]:
        raise CheckpointError(f"id2label names {len(classes)} classes; the weights have {head.shape[0]}")
    classes = classes or tuple(f"class {number}" for number in range(head.shape[0]))
    return Weights("segformer", {"backbone": variant, "width": head.shape[1], **options}, state, classes, None)


def _variant(backbone: dict[str, Tensor]) -> str:
    """Return the name of the MiT with these weights' widths and depths."""
    widths = tuple(len(backbone.get(f"patch_embed{stage}.proj.bias", ())) for stage in (1, 2, 3, 4))
    blocks = {match.groups() for key in backbone if (match := re.match(r"block(\d)\.(\d+)\.", key))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    for name, variant in mit.VARIANTS.items():
        if (variant.channels, variant.depths) == (widths, depths):
            return name
    raise CheckpointError(f"no MiT has {widths} channels and {depths} blocks; known are {', '.join(mit.VARIANTS)}")


def _expect_decoder(state: Mapping[str, Tensor]) -> None:
    if not any(key.startswith("decode_head.") for key in state):
        raise CheckpointError("holds a backbone without a decoder; use it to start training: train.init")


# ---- what a file holds -------------------------------------------------------------------------------------------


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below `prefix`, without it.

    Raises:
        CheckpointError: if there are none.
    """
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not inside:
        raise CheckpointError(f"no key starts with {prefix}; expected weights with such a backbone")
    return inside


def _expect_type(config: Mapping[str, Any] | None, expected: str) -> None:
    """Check the type of model that a folder's config.json names; a file has none."""
    if config is not None and config.get("model_type") != expected:
        raise CheckpointError(f"holds a model of type {config.get('model_type')}; expected {expected}")


def _expect_same(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check what `config` says about `expected`; what it leaves out is as expected."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key} is {config[key]}; expected {value}: its weights are for another network")


@contextmanager
def in_file(place: Path) -> Iterator[None]:
    """Begin the errors about what a file holds with its name."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


# ---- files -------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder of transformers.

    Raises:
        CheckpointError: if it is not there or not JSON.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable config.json; expected a model of transformers") from error
    return config if isinstance(config, dict) else {}


def read_weights(place: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or of a folder of transformers, with their own names.

    Raises:
        CheckpointError: if there are none, or the file is damaged or holds code.
    """
    if place.is_dir():
        files = [place / name for name in ("model.safetensors", "pytorch_model.bin") if (place / name).is_file()]
        if not files:
            raise CheckpointError(f"{place} has neither model.safetensors nor pytorch_model.bin")
        place = files[0]
    if place.suffix == ".safetensors":
        return read_safetensors(place)[0]
    state = read_pickle(place)
    state = state["state_dict"] if isinstance(state.get("state_dict"), dict) else state
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{place}: not tensors: {', '.join(strange)}; expected weights")
    return {key.removeprefix("module."): value for key, value in state.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is not a mapping)
            return state, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of torch.save that holds tensors and plain values, without running code.

    Raises:
        CheckpointError: if it is damaged or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds Python objects, which could run code; not loaded. "
            "Save it again as tensors only, or as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged or not a file of torch.save") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; expected a dict of tensors")
    return state
