"""Weights in and out: our safetensors files, transformers' SegFormer folders, the SegFormer authors' files.

No file is trusted: pickles are read without running code, and every key must be known, present and of the right shape.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import steadyseg
from steadyseg import models
from steadyseg.backbones import mit
from steadyseg.config import options_from_dict, options_to_dict
from steadyseg.data.source import VideoSource
from steadyseg.models import segformer
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import CheckpointError, ConfigError

FOLDER = Path(steadyseg.__file__).parent / "weights"
"""The shipped weights, ``<config name>.safetensors``."""
METADATA = "steadyseg"
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_ENCODER = "segformer.encoder."


def names() -> list[str]:
    """Return the names of the shipped weights."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def save_model(path: Path, model: VideoSegmenter, source: VideoSource | None = None, *, half: bool = False) -> None:
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
        check_classes(model, source)
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
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_bytes(save(state, metadata={METADATA: json.dumps(about)}))  # with the user's own permissions
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> VideoSegmenter:
    """Load a model, ready to run: in evaluation mode, with its classes and palette.

    Args:
        path: a file of `save_model`; a training run's folder; a folder of transformers' SegFormer; a segmentation
            file of the SegFormer authors (.pth); the name of shipped weights; or a hub id "owner/name", which is
            downloaded.
        device: where to put it.

    Raises:
        CheckpointError: if nothing is found; if the file is damaged or holds code; if keys are missing, extra or
            of the wrong shape, listing them.
    """
    place = _locate(path)
    if place.is_dir():
        model = _load_huggingface(place)
    elif place.suffix == ".safetensors":
        model = _load_own(place)
    else:
        model = _load_nvlabs(place)
    return model.to(device).eval()


def load_backbone(model: VideoSegmenter, path: str | Path) -> None:
    """Start `model` from the backbone of other weights; its other parameters stay as they are.

    Args:
        model: any method.
        path: as in `load_model`; also ImageNet weights (a folder or hub id of transformers, mit_b*.pth).

    Raises:
        CheckpointError: as `load_model`; every key of the backbone must be there.
    """
    place = _locate(path)
    if place.is_dir():
        state = mit.from_huggingface(_inside(_read_huggingface(place), _ENCODER, place))
    elif place.suffix == ".safetensors":
        state = _inside(_read_safetensors(place)[0], "backbone.", place)
    else:
        raw = _read_nvlabs(place)
        whole = any(key.startswith("backbone.") for key in raw)
        state = mit.from_nvlabs(_inside(raw, "backbone.", place) if whole else raw)
    _fill(model.backbone, state, f"{place}: backbone")


def check_classes(model: VideoSegmenter, source: VideoSource) -> None:
    """Raise CheckpointError unless `model` predicts as many classes as `source` has."""
    if model.num_classes != len(source.classes):
        raise CheckpointError(
            f"the weights know {model.num_classes} classes, the data has {len(source.classes)}; "
            "use weights trained on these classes"
        )


# ---- the layouts -------------------------------------------------------------------------------------------------


def _load_own(path: Path) -> VideoSegmenter:
    state, metadata = _read_safetensors(path)
    try:
        about = json.loads(metadata[METADATA])
        method, options = about["method"], options_from_dict(about["method"], about["config"])
        classes, palette = tuple(map(str, about["classes"])), tuple(tuple(map(int, rgb)) for rgb in about["palette"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not say which model it holds; expected a file of steadyseg") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} does not fit this version of steadyseg: {error}") from error
    return _assemble(method, options, state, (classes, palette), path)


def _load_huggingface(folder: Path) -> VideoSegmenter:
    config = _read_huggingface_config(folder)
    state = _read_huggingface(folder)
    if not any(key.startswith("decode_head.") for key in state):
        raise CheckpointError(f"{folder} holds a backbone without a decoder; use it to start training: train.init")
    state = segformer.from_huggingface(state)
    if config.get("num_attention_heads", list(mit.HEADS)) != list(mit.HEADS):
        raise CheckpointError(f"{folder} has {config['num_attention_heads']} heads; expected {list(mit.HEADS)}")
    labels = sorted((int(number), str(label)) for number, label in config.get("id2label", {}).items())
    classes = tuple(label for _, label in labels)
    return _load_segformer(state, classes, folder, norm_eps="hf")


def _load_nvlabs(path: Path) -> VideoSegmenter:
    state = _read_nvlabs(path)
    if not any(key.startswith("decode_head.") for key in state):
        raise CheckpointError(f"{path} holds a backbone without a decoder; use it to start training: train.init")
    return _load_segformer(segformer.from_nvlabs(state), (), path, norm_eps="nvlabs")


def _load_segformer(state: dict[str, Tensor], classes: tuple[str, ...], path: Path, **options: Any) -> VideoSegmenter:
    """Build the SegFormer whose sizes are those of `state`, and fill it."""
    variant = _variant(_inside(state, "backbone.", path), path)
    head = state.get("decoder.linear_pred.weight")
    if head is None:
        raise CheckpointError(f"{path}: missing key decoder.linear_pred.weight")
    config = options_from_dict("segformer", {"backbone": variant, "width": head.shape[1], **options})
    if classes and len(classes) != head.shape[0]:
        raise CheckpointError(f"{path}: id2label names {len(classes)} classes; the weights have {head.shape[0]}")
    classes = classes or tuple(f"class {number}" for number in range(head.shape[0]))
    return _assemble("segformer", config, state, (classes, None), path)


def _assemble(
    method: str, options: Any, state: dict[str, Tensor], labels: tuple[Any, Any], path: Path
) -> VideoSegmenter:
    classes, palette = labels
    model = models.method(method)(options, len(classes))
    _fill(model, state, str(path))
    model.classes, model.palette = classes, palette or model.palette
    return model


def _variant(backbone: dict[str, Tensor], path: Path) -> str:
    """Return the name of the MiT with these weights' widths and depths."""
    widths = tuple(len(backbone.get(f"patch_embed{stage}.proj.bias", ())) for stage in (1, 2, 3, 4))
    blocks = {match.groups() for key in backbone if (match := re.match(r"block(\d)\.(\d+)\.", key))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    for name, variant in mit.VARIANTS.items():
        if (variant.channels, variant.depths) == (widths, depths):
            return name
    raise CheckpointError(
        f"{path}: no MiT has {widths} channels and {depths} blocks; known are {', '.join(mit.VARIANTS)}"
    )


def _fill(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load `state`, which must fit `module` exactly; float16 becomes the module's own dtype.

    Raises:
        CheckpointError: listing missing, extra and wrongly shaped keys.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    wrong = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    lists = {"missing": missing, "extra": extra, "wrongly shaped": wrong}
    problems = [f"{len(keys)} {kind} ({', '.join(keys)})" for kind, keys in lists.items() if keys]
    if problems:
        raise CheckpointError(f"{where}: keys do not fit the model: {'; '.join(problems)}")
    module.load_state_dict(state)


def _inside(state: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not inside:
        raise CheckpointError(f"{path} has no key that starts with {prefix}; expected weights with a MiT backbone")
    return inside


def _method_name(model: VideoSegmenter) -> str:
    return type(model).__module__.rpartition(".")[2]


# ---- files -------------------------------------------------------------------------------------------------------


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
    if place.suffix in (".safetensors", *PICKLES) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        shipped = ", ".join(names()) or "none"
        raise CheckpointError(
            f"no weights '{name}': neither a file, a folder, a shipped name ({shipped}) nor owner/name"
        )
    patterns = ["config.json", "model.safetensors", "pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no file or folder '{name}', and the Hugging Face hub does not give it: {reason}"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def _read_nvlabs(path: Path) -> dict[str, Tensor]:
    state = read_pickle(path)
    state = state["state_dict"] if isinstance(state.get("state_dict"), dict) else state
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path}: not tensors: {', '.join(strange)}; expected the weights of a SegFormer")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _read_huggingface_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable config.json; expected a SegFormer of transformers") from error
    if not isinstance(config, dict) or config.get("model_type") != "segformer":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{folder} holds a model of type {kind}; expected segformer")
    return config


def _read_huggingface(folder: Path) -> dict[str, Tensor]:
    _read_huggingface_config(folder)
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")[0]
    if (folder / "pytorch_model.bin").is_file():
        return read_pickle(folder / "pytorch_model.bin")
    raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
