"""Backbones of the transformers library: whatever its AutoBackbone can run, such as Swin, ConvNeXt, DINOv2 and DINOv3.

The network is transformers' own, so that its feature maps equal AutoBackbone's bit for bit. Here it is only decided
which four of its outputs are our stages, and with what strides: the four (or last four) stages of a network that
becomes coarser, or four evenly spaced layers of a plain ViT, whose stages all have the stride of its patches.

Images come normalised by ImageNet's mean and standard deviation, with which these models were trained; a model whose
preprocessor_config.json says otherwise (BEiT) gets ImageNet's all the same. Sizes that a patch does not divide lose
the rest at the right and at the bottom where the model does not pad, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steadyseg.backbones.base import STAGES, Backbone
from steadyseg.types import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROBE = 256
"""Side of the square image whose maps tell the strides."""
LEAST = 32
"""Every backbone takes images of this size and above, unless its last stride is larger."""
ALTERNATIVES = "take a Swin, ConvNeXt, DINOv2, DINOv3, ResNet or PVT v2"
_IGNORED = (  # keys of a config.json that say nothing about the network, change what it returns, or load other code
    *("architectures", "dtype", "torch_dtype", "id2label", "label2id", "problem_type", "quantization_config"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_cache", "return_class_token"),
    *("auto_map", "attn_implementation", "experts_implementation", "kernel_config", "fusion_config"),
)
_FREE = (  # keys of a config.json that two networks may differ in and still compute the same maps from the same weights
    *("image_size", "pretrain_image_size"),  # where they matter, the shapes of the weights show them
    *("out_features", "out_indices", "stage_names", "reshape_hidden_states", "apply_layernorm"),  # what is returned
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale", "use_mask_token", "mask_ratio"),  # training
    *("encoder_stride", "vocab_size", "use_mean_pooling", "pool_scales", "head_config"),  # heads
    *("semantic_loss_ignore_index", "normalize_pixel_loss"),
)
_FREE_PARTS = ("drop", "init", "auxiliary_", "decoder_", "layerscale_value")
"""What the names of other such keys contain: rates of dropout, first values of weights, heads."""
LISTED = 8
"""Keys that an error names."""


class HuggingFaceBackbone(Backbone):
    """A network that runs as a whole, with random weights.

    A parameter that the four stages do not depend on, such as the token of masked image modelling, does not learn.

    Args:
        architecture: the contents of the model's config.json.
        name: what to call the model in errors.

    Raises:
        ConfigError: if transformers is not installed or has no such backbone; if `architecture` has wrong values; if
            the backbone has fewer than four feature maps, or takes images of some sizes only.
    """

    unpublished = ("model.hidden_states_norms.",)

    def __init__(self, architecture: Mapping[str, Any], name: str = "model.architecture") -> None:
        super().__init__()
        transformers = _transformers(name)
        config = _read_config(architecture, name)
        config.out_indices = _choose_stages(config, name)
        with _blame(f"'{name}' cannot be built"):
            self.model = transformers.AutoBackbone.from_config(config)
        with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
            twin = transformers.AutoBackbone.from_config(config).eval()
            maps = _run(twin, (PROBE, PROBE), name)
            self.channels = tuple(x.shape[1] for x in maps)  # type: ignore[assignment]
            self.strides = tuple(round(PROBE / x.shape[2]) for x in maps)  # type: ignore[assignment]
            self.minimum = max(LEAST, *self.strides)
            for size in ((self.minimum, self.minimum), (self.minimum + 5, 2 * self.minimum + 13)):
                _run(twin, size, name)
            used = torch.autograd.grad([x.sum() for x in maps], [*twin.parameters()], allow_unused=True)
        for parameter, gradient in zip(self.model.parameters(), used, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.architecture = _plain(config)

    def units(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Yield nothing."""
        return iter(())

    def forward(self, x: Tensor, *, start: str | None = None, stop: str = STAGES[-1]) -> dict[str, Tensor]:
        """x float [B, 3, H, W] normalised image -> "stage1".."stage4", each [B, C_i, h_i, w_i].

        Raises:
            KeyError: if `start` or `stop` asks for less than the whole.
        """
        if start is not None or stop != STAGES[-1]:
            raise KeyError(f"cannot run from {start!r} to {stop!r}; this backbone runs from the image to {STAGES[-1]}")
        return dict(zip(STAGES, self.model(x).feature_maps, strict=True))


def build_huggingface(name: str, architecture: Mapping[str, Any] | None) -> HuggingFaceBackbone:
    """Build a backbone from `architecture`, or without one from the config.json that `name` means.

    Args:
        name: a folder, or a hub id "owner/name", of which only config.json is downloaded.
        architecture: the contents of a config.json; nothing is read then.

    Raises:
        ConfigError: if there is no config.json; as HuggingFaceBackbone.
    """
    _transformers(name)
    return HuggingFaceBackbone(read_architecture(name) if architecture is None else architecture, name)


def is_huggingface(name: str) -> bool:
    """Whether `name` means a model of transformers: a folder with a config.json, or anything with a slash."""
    return "/" in name or (Path(name) / "config.json").is_file()


def read_architecture(name: str) -> dict[str, Any]:
    """Return the contents of a model's config.json; of its `backbone_config` where it has one, as UperNet.

    Raises:
        ConfigError: if it is not there, cannot be downloaded or is not JSON.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(name)
    try:
        path = folder / "config.json" if folder.is_dir() else Path(hf_hub_download(name, "config.json"))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        what = "is a folder without a readable config.json" if folder.is_dir() else "is no folder, nor on the hub"
        raise ConfigError(f"model.backbone '{name}' {what}: {_one_line(error)}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"model.backbone '{name}': its config.json holds no mapping")
    return inner_config(config)


def inner_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that describes the backbone: its `backbone_config` where it has one."""
    inner = config.get("backbone_config")
    return inner if isinstance(inner, dict) else config


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the values that a network computes from its weights: sizes, heads, activation and the like.

    Args:
        config: the contents of a config.json; what it leaves out has transformers' default.

    Returns:
        Plain values. Image size, dropout, initialisation, heads, and which maps are returned, are not among them.

    Raises:
        ConfigError: if transformers cannot read it.
    """
    complete = _read_config(config, "config.json")
    general = _transformers("config.json").PretrainedConfig().to_dict()
    own = [key for key in type(complete)().to_dict() if key not in general and key not in _FREE]
    plain = _plain(complete)
    return {key: plain.get(key) for key in own if not any(part in key for part in _FREE_PARTS)}


def from_published(backbone: HuggingFaceBackbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to the keys of `backbone`, with transformers' own rules for prefixes and old names.

    Args:
        backbone: the backbone they are for; it stays as it is.
        state: the weights of a model of its type, with or without a head.

    Returns:
        Those of its keys that `state` has. A tensor of the wrong shape comes without values, on the device meta.

    Raises:
        CheckpointError: if transformers cannot convert them; if they have tensors inside the network, such as more
            layers, that `backbone` has no place for. Those of a head, and the token of masked images, are left out.
    """
    model = backbone.model
    try:
        with _quiet():
            loaded, report = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=dict(state),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"not weights of a {model.config.model_type}: {_one_line(error)}") from error
    if extra := _extra(model, report["unexpected_keys"]):
        names = ", ".join(extra[:LISTED]) + (f" and {len(extra) - LISTED} more" if len(extra) > LISTED else "")
        raise CheckpointError(
            f"{len(extra)} keys without a place in this {model.config.model_type} ({names}); "
            "expected the weights of a network of the same sizes"
        )
    found = {key: value for key, value in loaded.state_dict().items() if key not in report["missing_keys"]}
    found |= {key: torch.empty(shape, device="meta") for key, shape, _ in report["mismatched_keys"]}
    return {f"model.{key}": value for key, value in found.items()}


def _extra(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Return those `unexpected` keys that lie in one of the model's parts, such as its encoder, and not in a head."""
    prefix = f"{model.base_model_prefix}."
    parts = {key.removeprefix(prefix).partition(".")[0] for key in model.state_dict()}
    return sorted(
        key
        for key in unexpected
        if key.removeprefix(prefix).partition(".")[0] in parts and not key.endswith(".mask_token")
    )


# ---- the four stages ---------------------------------------------------------------------------------------------


def _read_config(architecture: Mapping[str, Any], name: str) -> PretrainedConfig:
    """Return transformers' config of a config.json, of a type that it has a backbone for."""
    transformers = _transformers(name)
    kind = architecture.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"'{name}' has no model_type in its config.json; expected a model of transformers")
    with _blame(f"'{name}' is not a {kind} that this version of transformers knows"):
        complete = _plain(transformers.AutoConfig.for_model(**_sizes(architecture)))
        config = transformers.AutoConfig.for_model(**complete)  # with lists where the defaults are tuples
    if type(config) not in transformers.MODEL_FOR_BACKBONE_MAPPING or not getattr(config, "stage_names", None):
        ours = "take mit_b0 to mit_b5" if kind == "segformer" else ALTERNATIVES
        raise ConfigError(f"'{name}' is a {kind}, which transformers cannot run as a backbone; {ours}")
    if hasattr(config, "reshape_hidden_states"):
        config.reshape_hidden_states = True  # maps, not tokens
    return config


def _choose_stages(config: PretrainedConfig, name: str) -> list[int]:
    """Return the indices of the four outputs; a plain ViT whose config names four keeps those."""
    transformers = _transformers(name)
    every = deepcopy(config)
    every.out_indices = [number for number, stage in enumerate(config.stage_names) if stage != "stem"]
    if len(every.out_indices) < len(STAGES):
        raise ConfigError(
            f"'{name}' has {len(every.out_indices)} stages; a method needs four feature maps: {ALTERNATIVES}"
        )
    with torch.device("meta"), torch.inference_mode():
        with _blame(f"'{name}' cannot be built"):
            twin = transformers.AutoBackbone.from_config(every).eval()
        sizes = {tuple(x.shape[2:]) for x in _run(twin, (PROBE, PROBE), name)}
    if len(sizes) > 1:
        return list(every.out_indices[-len(STAGES) :])
    if len(config.out_indices) == len(STAGES):
        return list(config.out_indices)
    depth = len(every.out_indices)
    return [every.out_indices[depth * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]


def _run(model: Any, size: tuple[int, int], name: str) -> tuple[Tensor, ...]:
    """Return the feature maps of an image of `size`, each [1, C, h, w], without values."""
    with _blame(f"'{name}' does not take images of {size[0]}x{size[1]}; a method needs any size; {ALTERNATIVES}"):
        maps: tuple[Tensor, ...] = model(torch.empty(1, 3, *size)).feature_maps
    shapes = [tuple(x.shape) for x in maps]
    if not all(len(shape) == 4 and min(shape) > 0 for shape in shapes):
        raise ConfigError(f"'{name}' gives {shapes} for an image of {size[0]}x{size[1]}; expected maps [1, C, h, w]")
    if size[0] == size[1] and any(shape[2] != shape[3] for shape in shapes):
        raise ConfigError(f"'{name}' has other strides along rows than along columns; {ALTERNATIVES}")
    return maps


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    """Return what a config says about the network, as JSON would hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(_sizes(config.to_dict())))
    return plain


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _IGNORED and not key.startswith("_")}


# ---- the library -------------------------------------------------------------------------------------------------


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the backbone '{name}' needs the transformers library: pip install 'steadyseg[hf]'"
        ) from error
    return transformers


@contextmanager
def _blame(problem: str) -> Iterator[None]:
    """Turn whatever the library raises about a user's config into one line."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{problem}: {_one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this context the library reports nothing: what it finds is checked and told by the caller."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__
