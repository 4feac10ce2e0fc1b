"""The one abstraction of this folder: a video segmenter is pure, and time is a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from hashlib import sha256
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from steadyseg.backbones import Backbone, NormEps, build_backbone
from steadyseg.types import IGNORE, CheckpointError, Clip, ConfigError, ShapeError, check_shape, default_palette

State = Any
"""A NamedTuple of tensors, ints and tuples of them; each method declares its own, in its own file.

All tensors have the batch as their first axis; what a field named `size` begins with is the batch."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet statistics in 0..255, the normalisation of all published MiT and ResNet weights."""


Backend = Callable[..., tuple[Tensor, ...]]
"""Runs a graph elsewhere: name, function and input tensors -> the tensors that the function returns. One that starts a
large graph faster than a few small ones says so by an attribute `takes_whole_steps`."""


class Graph(NamedTuple):
    """One exportable function: tensors in, tensors out."""

    function: Callable[..., tuple[Tensor, ...]]
    inputs: dict[str, Tensor]
    """Example inputs, by name."""
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every method's Config has."""

    backbone: str = "mit_b0"
    """Backbone by name, such as mit_b1 (see steadyseg.backbones.names()), or a model of the transformers library by
    folder or hub id "owner/name", of which only the architecture is read; train.init reads weights."""
    drop_path: float = 0.1
    """Stochastic depth of the last block of a MiT; the rate grows linearly from 0. Other backbones have none."""
    norm_eps: NormEps = "nvlabs"
    """Whose LayerNorm epsilon a MiT uses: the authors' or transformers'."""
    architecture: Mapping[str, Any] | None = None
    """Sizes of a backbone of the transformers library, its config.json; filled in when it is named."""


class VideoSegmenter(nn.Module, ABC):
    """A method. `step` maps a frame and a state to logits and a new state, and changes nothing else.

    Attributes:
        config: this method's Config.
        num_classes: K.
        classes: K class names.
        palette: K RGB colours, 0..255.
        backbone: the shared feature extractor; all other parameters are "head".
        class_weights: float32 [K] weights of the cross-entropy; ones unless training sets them.
        backend: what runs the graphs of `step`; None for torch as it is. See steadyseg.backends.
    """

    Config: ClassVar[type[ModelConfig]]
    needs_dense_labels: ClassVar[bool] = False
    """Whether training needs labels on every frame of a clip, not only on its target."""
    backbone: Backbone
    class_weights: Tensor
    backend: Backend | None = None

    def __init__(self, config: ModelConfig, num_classes: int, *, cuts: Sequence[str] = ()) -> None:
        """Build what every method has.

        Args:
            config: this method's Config.
            num_classes: K, at most 255.
            cuts: backbone units after which this method stops or starts; "shallow" is the backbone's own choice.

        Raises:
            ConfigError: if an option is out of range, there are too many classes, or the backbone is unknown or lacks
                one of the `cuts`.
        """
        super().__init__()
        if num_classes > IGNORE:
            raise ConfigError(
                f"the model has {num_classes} classes; labels are uint8 and {IGNORE} means ignore, so at most {IGNORE}"
            )
        check_options(config, ("drop_path", 0 <= config.drop_path < 1, "at least 0 and less than 1"))
        self.backbone = build_backbone(
            config.backbone,
            drop_path=config.drop_path,
            norm_eps=config.norm_eps,
            architecture=config.architecture,
            cuts=cuts,
        )
        self.config = replace(config, architecture=self.backbone.architecture)
        self.num_classes = num_classes
        self.classes: tuple[str, ...] = tuple(f"class {c}" for c in range(num_classes))
        self.palette: tuple[tuple[int, int, int], ...] = default_palette(num_classes)
        self.register_buffer("class_weights", torch.ones(num_classes), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)  # [1, 3, 1, 1]
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)  # [1, 3, 1, 1]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Frame offsets of a training clip relative to its target frame, target (0) last."""
        return (0,)

    @property
    def period(self) -> int:
        """Frames after which the work of `step` repeats: the key interval of a method that has one."""
        return 1

    @property
    def is_periodic(self) -> bool:
        """Whether key frames come at fixed distances; where the video decides, no cost can be counted beforehand."""
        return True

    @classmethod
    def adopt(cls, options: Mapping[str, Any]) -> ModelConfig:
        """Return the Config with which this method runs the weights of a SegFormer as they are, without training.

        Args:
            options: the SegFormer's options that all such methods share: backbone, norm_eps, width, dropout.

        Raises:
            ConfigError: if this method has weights that a SegFormer lacks.
        """
        name = cls.__module__.rpartition(".")[2]
        raise ConfigError(f"{name} has weights that a SegFormer lacks: train it by one of its configs (steadyseg list)")

    def normalize(self, frame: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] RGB into the network's float input; the only place that knows mean and std.

        Raises:
            ShapeError: if `frame` is not a uint8 batch of RGB images, or is too small for the backbone.
        """
        check_shape("frame", frame, ("B", 3, "H", "W"), torch.uint8)
        height, width = frame.shape[2:]
        least = self.backbone.minimum
        if min(height, width) < least:
            raise ShapeError(f"frame is {height}x{width}; this backbone needs at least {least}x{least}: enlarge it")
        return (frame - self.mean) / self.std  # type: ignore[operator]

    @abstractmethod
    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return named scalar loss terms, already weighted; the loss is their sum.

        "ce" is that of what is predicted, unless only its parts have a loss, as in MSAF with `mean_of_masks`.
        """

    @abstractmethod
    def step(self, frame: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Segment the next frame of a video.

        Only the schedule is decided here: all arithmetic is in the functions of `graphs`, called through `compute` but
        where that is not worth a graph, as on the first frame of a video.

        Args:
            frame: uint8 [B, 3, H, W] RGB.
            state: what the previous call returned; None starts a video.

        Returns:
            logits [B, K, h, w] at the decoder's stride, and the state for the next frame.

        Raises:
            ShapeError: if `frame` is not a uint8 batch of RGB images, is too small, or differs in size from the state.
        """

    def compute(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one of the functions that `graphs` lists: here, or by the model's backend.

        Args:
            name: of the graph.
            function: its function; one tensor may stand for a tuple of one.
            tensors: its inputs.

        Returns:
            Its outputs.
        """
        if self.backend is not None:
            return self.backend(name, function, *tensors)
        results = function(*tensors)
        return results if isinstance(results, tuple) else (results,)

    @property
    def takes_whole_steps(self) -> bool:
        """Whether the backend starts one large graph faster than a few small ones."""
        return getattr(self.backend, "takes_whole_steps", False)

    def clip_logits(self, frames: Tensor) -> Tensor:
        """Segment the target frame of a clip with nothing remembered, as papers count the cost of a window method.

        Folds `step`, which is right for methods that read the frame before; a window method overrides it.

        Args:
            frames: uint8 [B, T, 3, H, W], at `offsets` from the target; fewer at the start of a video.

        Returns:
            logits [B, K, h, w] of the last frame.
        """
        state: State | None = None
        for frame in frames.unbind(1):
            logits, state = self.step(frame, state)
        return logits

    def segment(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Fold `step` over a video; yields logits [B, K, h, w] for every frame [B, 3, H, W]."""
        state: State | None = None
        for frame in frames:
            logits, state = self.step(frame, state)
            yield logits

    @abstractmethod
    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return the tensor-only functions that `step` chooses among, with example inputs made from `frame`.

        The names are those that `step` gives to `compute`.
        """

    @property
    def encoder(self) -> tuple[nn.Parameter, ...]:
        """Parameters that learn at the backbone's rate: all of its own but those that published weights lack."""
        new = self.backbone.unpublished
        return tuple(p for name, p in self.backbone.named_parameters() if not name.startswith(new))

    def parameter_groups(self, lr: float, *, head: float = 10.0, decay_norms: bool = False) -> list[dict[str, Any]]:
        """Split the parameters for the optimiser.

        Args:
            lr: learning rate of the `encoder`.
            head: factor of the rate of all other parameters.
            decay_norms: whether weight decay acts on norm layers too.

        Returns:
            Groups with "name", "params", "lr" and, for norms that do not decay, "weight_decay" 0. Every parameter is
            in exactly one.
        """
        norms = {
            id(p)
            for module in self.modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase)
            for p in module.parameters(recurse=False)
        }
        inside = {id(p) for p in self.encoder}
        groups: list[dict[str, Any]] = []
        for name, in_backbone, factor in (("backbone", True, 1.0), ("head", False, head)):
            mine = [p for p in self.parameters() if (id(p) in inside) == in_backbone and p.requires_grad]
            plain = [p for p in mine if id(p) not in norms]
            normed = [p for p in mine if id(p) in norms]
            groups.append({"name": name, "params": plain, "lr": lr * factor})
            decay = {} if decay_norms else {"weight_decay": 0.0}
            groups.append({"name": f"{name} norms", "params": normed, "lr": lr * factor, **decay})
        return [group for group in groups if group["params"]]


_FIXED = ContextVar("fixed", default=False)


@contextmanager
def fixed_sizes(*, on: bool = True) -> Iterator[None]:
    """Within this context no method makes a tensor whose size depends on values: a recording can hold none."""
    token = _FIXED.set(on)
    try:
        yield
    finally:
        _FIXED.reset(token)


@torch.compiler.assume_constant_result
def sizes_are_fixed() -> bool:
    """Say whether the context `fixed_sizes` is on."""
    return _FIXED.get()


def fingerprint(model: VideoSegmenter) -> str:
    """Return the SHA-256 of all parameters and statistics, by name."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_options(config: ModelConfig, *rules: tuple[str, bool, str]) -> None:
    """Raise for the first option that does not fit.

    Args:
        config: a method's Config.
        rules: each the name of an option, such as "width" or "adaptive.threshold", whether it fits, and what is
            expected of it.

    Raises:
        ConfigError: naming the option, its value and what is expected.
    """
    for name, fits, expected in rules:
        if not fits:
            value = attrgetter(name)(config)
            shown = list(value) if isinstance(value, tuple) else value  # as a config file writes it
            raise ConfigError(f"model.{name} is {shown}; expected {expected}")


def check_classes(model: VideoSegmenter, classes: Sequence[str]) -> None:
    """Raise CheckpointError unless `model` predicts as many classes as the data has."""
    if model.num_classes != len(classes):
        raise CheckpointError(
            f"the weights know {model.num_classes} classes, the data has {len(classes)}; use weights trained on these "
            "classes"
        )


def check_same(frame: Tensor, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Check that a frame continues a video.

    Args:
        frame: uint8 [B, 3, H, W].
        size: batch, height and width of the frames before; None for the first frame.

    Returns:
        Batch, height and width of the frame, which the state keeps.

    Raises:
        ShapeError: if they are not `size`, or `frame` is not a uint8 batch of RGB images.
    """
    check_shape("frame", frame, ("B", 3, "H", "W"), torch.uint8)
    batch, _, height, width = frame.shape
    if size not in (None, (batch, height, width)):
        raise ShapeError(
            f"frame has batch, height and width {(batch, height, width)}; the frames before had {size}: "
            "start again with state None when the size or the batch changes"
        )
    return batch, height, width


# ---- states of several videos ------------------------------------------------------------------------------------


def state_layout(state: State) -> Hashable:
    """Return all of a state but the values in its tensors and the batch: states that are alike in it can be joined."""
    if isinstance(state, Tensor):
        return state.dtype, tuple(state.shape[1:])
    if isinstance(state, tuple):
        fields = getattr(state, "_fields", ("",) * len(state))
        return tuple(
            part[1:] if name == "size" else state_layout(part) for name, part in zip(fields, state, strict=True)
        )
    return state


def join_states(states: Sequence[State]) -> State:
    """Return the states of several videos as that of one batch, in order.

    Args:
        states: of the same `state_layout`; each of a batch of any number of videos, or None.
    """
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(tuple(states))
    if not isinstance(first, tuple):
        return first
    if not hasattr(first, "_fields"):
        return tuple(join_states(parts) for parts in zip(*states, strict=True))
    parts = {name: [getattr(state, name) for state in states] for name in first._fields}  # type: ignore[attr-defined]
    joined = {name: join_states(values) for name, values in parts.items()}
    if "size" in parts:
        joined["size"] = (sum(size[0] for size in parts["size"]), *first.size[1:])  # type: ignore[attr-defined]
    return type(first)(**joined)


def pick_state(state: State, index: int) -> State:
    """Return the state of one video of a batch; its tensors share memory with those of the batch.

    Args:
        state: of a batch of videos, or None.
        index: which video.
    """
    if isinstance(state, Tensor):
        return state[index : index + 1]
    if not isinstance(state, tuple):
        return state
    if not hasattr(state, "_fields"):
        return tuple(pick_state(part, index) for part in state)
    picked = {name: pick_state(part, index) for name, part in zip(state._fields, state, strict=True)}
    if "size" in picked:
        picked["size"] = (1, *picked["size"][1:])
    return type(state)(**picked)
