"""DCFM: deep common feature mining.

"Deep Common Feature Mining for Efficient Video Semantic Segmentation", 2024, https://arxiv.org/abs/2403.02689

| paper | here | shape |
| --- | --- | --- |
| Enc, Conv | `backbone`, `common` | stages -> [B, C, h, w] |
| Enc_lo | `backbone` up to `cut` | [B, C_1, h_1, w_1], stride 4 |
| F_co^k | common | [B, C, h, w], C = 256 at stride 4 (MiT), 320 or 1280 at stride 8 (ResNet) |
| F_in^t | own | [B, C_1, h, w] |
| FFM | `ffm` | reads the first C_1 / 2 channels of own |
| Dec | `head` | [B, C, h, w] -> logits [B, K, h, w] |
| Y^k, Y^{t<-k}, Y^t | logits | [B, K, h, w] |
| K (key interval) | config.interval | 2 |
| lambda_1, lambda_2 | between_weight, consistency_weight | 0.4, 10 |
| R | distance | 1 |
| M | agree | [B, 1, h, w] |
| theta, MinK, MaxK | adaptive.threshold, .min_interval, .max_interval | 0 (off), 2, 6 |

The paper's numbers look ahead: a frame between two key frames reads both, so it waits for the later one. `segment`
does that; `step` reads the key frame before it only, and so does `segment` with neighbours = 1.

Differences from the paper: none. Differences from the authors' code:
- F_in is resized, then normalised, in testing as in training; their test code swaps the two for ResNet.
- The two key views of the consistency term are not computed where its weight is 0.
- A video that ends before the first key frame is due has its last frame as key frame; theirs fails.
- Their key interval of the adaptive schedule ends at 5 by default, the paper's at 6.

Computed differently, with the same result:
- The shallow map of a key frame is the beginning of its deep path, in training and in testing.
- The convolution of FFM is a sum of two: a key frame keeps W_co F_co + b, and every frame adds its W_in F_in. In
  evaluation the norm is inside both.
- The first layer of the head is linear and has no bias before its norm: it is applied to the FFM's output, and its
  result divided by the length of each pixel's vector.
- The classifier is linear and has no bias: the views of a frame are added before it.
- What follows the backbone treats every pixel alone: a CPU computes it a few rows at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones import Backbone
from steadyseg.decoders import SegFormerDecoder
from steadyseg.layers import ConvNorm, Folding, classify, pointwise, resize
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same
from steadyseg.ops.sample import is_for_runtime
from steadyseg.types import Clip, ConfigError, ShapeError

EPS = 1e-12
"""Least length by which a vector is divided."""
BAND = 2**19
"""Numbers in the part of a map that a CPU decodes at once, 2 MiB: each of two threads then works in its own cache."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Adaptive key frame scheduling (AKS): a new key frame when the image has changed enough."""

    threshold: float = 0.0
    """theta, mean absolute difference of the normalised images; 0 turns the schedule off."""
    min_interval: int = 2
    """MinK, least distance of two key frames; takes the place of `interval`."""
    max_interval: int = 6
    """MaxK, largest distance of two key frames."""


@dataclass(frozen=True, kw_only=True)
class DCFMConfig(ModelConfig):
    """Options of DCFM."""

    interval: int = 2
    """K, distance of two key frames."""
    neighbours: Literal[2, 1] = 2
    """Key frames that a frame between two reads in `segment`: both, which looks ahead, or the one before it."""
    start: int = 0
    """The first key frame, where `segment` looks ahead; less than the (least) interval."""
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    cut: str | None = None
    """Backbone unit where the shallow path ends; None is the backbone's choice. For MiT stage1.embed is the authors'
    vit0, stage1.block1 their vit1 (the default), stage1 their vit3."""
    common_channels: int | None = None
    """C, channels of the common feature; None is 256 for a pyramid, else five times C_1, at most the backbone's."""
    head_layers: Literal[0, 1] = 0
    """Layers of the head before its classifier: 0 on VSPW, 1 on Cityscapes and CamVid."""
    dropout: float = 0.1
    """Channel-wise dropout after the fusion of a pyramid, and before the classifier."""
    use_in_key: bool = True
    """Whether key frames read F_in; otherwise their feature is F_co."""
    use_in_nonkey: bool = True
    """Whether the other frames read F_in; otherwise their feature is the key frame's F_co."""
    use_co_key: bool = True
    """Whether key frames read F_co; otherwise their feature is F_in and zeros."""
    use_co_nonkey: bool = True
    """Whether the other frames read F_co; otherwise their feature is F_in and zeros."""
    between_weight: float = 0.4
    """lambda_1, weight of the cross-entropy of the non-key view."""
    consistency_weight: float = 10.0
    """lambda_2, weight of the consistency term; 0 is the paper's row without it."""
    distance: int = 1
    """R, frames between the target and its unlabelled neighbour, 1 to 6."""

    @property
    def schedule(self) -> AdaptiveConfig:
        """The schedule in use: the adaptive one, or the same rule with both limits at `interval`."""
        if self.adaptive.threshold > 0:
            return self.adaptive
        return AdaptiveConfig(min_interval=self.interval, max_interval=self.interval)


class DCFMState(NamedTuple):
    """What the frames after a key frame need."""

    kept: Tensor
    """[B, C, h, w] the key frame's share in the FFM, W_co F_co + b; F_co itself where no FFM reads it."""
    age: int
    """Frames since the key frame; 0 right after it."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""
    image: tuple[Tensor, ...]
    """With the adaptive schedule the key frame, uint8 [1, 3, H, W]; else empty."""


class DCFM(VideoSegmenter):
    """The whole network on key frames, its first block on the others, and one fusion layer for both."""

    Config = DCFMConfig
    config: DCFMConfig

    def __init__(self, config: DCFMConfig, num_classes: int) -> None:
        super().__init__(config, num_classes, cuts=(config.cut or "shallow",))
        self.cut = config.cut or self.backbone.shallow
        _check(config, self.cut)
        self.common = CommonFeature(config, self.backbone)
        width, shallow = self.common.width, self.backbone.channels[0]
        if not (config.use_co_key and config.use_co_nonkey) and shallow > width:
            raise ConfigError(f"model.common_channels is {width}; without F_co expected at least C_1 = {shallow}")
        self.nonkey_fuses = config.use_in_nonkey and config.use_co_nonkey
        if self.nonkey_fuses or (config.use_in_key and config.use_co_key):
            self.ffm = FFM(width, shallow // 2)
        self.head = Head(config, width, num_classes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """(-R, 0)."""
        return (-self.config.distance, 0)

    @property
    def period(self) -> int:
        """The key interval, the least one of the adaptive schedule."""
        return self.config.schedule.min_interval

    @property
    def is_periodic(self) -> bool:
        """Not with the adaptive schedule, which follows the video."""
        return not self.config.adaptive.threshold

    @property
    def encoder(self) -> tuple[nn.Parameter, ...]:
        """Parameters of the backbone, with its pyramid pooling, and, for a pyramid, of the layers that fuse it."""
        parts = (self.backbone, self.common) if self.common.is_pyramid else (self.backbone,)
        return tuple(p for part in parts for p in part.parameters())

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce", "ce_between" and, where its weight is not 0, "consistency" of Eq. (12).

        Of the neighbour (in a clip of one frame: the frame itself) only the image is read, not its labels.
        """
        frames = torch.cat((clip.frames[:, 0], clip.frames[:, -1]))  # [2 * B, 3, H, W]: neighbours, then targets
        common, own = self.encode(frames)
        kept = self.keep(common)
        (common_u, common_l), (own_u, own_l), (kept_u, kept_l) = (x.chunk(2) for x in (common, own, kept))
        key = self.key_feature(common_l, own_l, kept_l)
        logits = self.head(key)
        between = self.head(self.between_feature(kept_u, own_l))
        labels = clip.labels[:, -1]
        terms = {
            "ce": cross_entropy(logits, labels, self.class_weights),  # Eq. (8)
            "ce_between": self.config.between_weight * cross_entropy(between, labels, self.class_weights),  # Eq. (9)
        }
        if self.config.consistency_weight:
            key_u = self.key_feature(common_u, own_u, kept_u)
            with torch.no_grad():
                agree = logits.argmax(1, keepdim=True) == self.head(key_u).argmax(1, keepdim=True)  # [B, 1, h, w]
            terms["consistency"] = self.config.consistency_weight * consistency(key, key_u, agree)
        return terms

    def encode(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """frame uint8 [B, 3, H, W] -> F_co [B, C, h, w] and F_in [B, C_1, h, w] (Eqs. (1), (2))."""
        stages = self.backbone(self.normalize(frame), stop=self.cut)
        stages |= self.backbone(stages[self.cut], start=self.cut)
        common = self.common(stages)
        return common, _own(stages[self.cut], common)

    def keep(self, common: Tensor) -> Tensor:
        """What a key frame leaves for the frames around it: F_co [B, C, h, w] -> [B, C, h, w]."""
        return self.ffm.share(common) if self.nonkey_fuses else common

    def key_feature(self, common: Tensor, own: Tensor, kept: Tensor) -> Tensor:
        """F_co, F_in and what the frame keeps -> F^k of Eq. (3) before its norm, which the head applies; all maps."""
        if not self.config.use_in_key:
            return common
        if not self.config.use_co_key:
            return _widen(own, self.common.width)
        return self.ffm(kept if self.nonkey_fuses else self.ffm.share(common), own)

    def between_feature(self, kept: Tensor, own: Tensor) -> Tensor:
        """What key frame k keeps, and F_in^t -> F^{t<-k} of Eq. (5) before its norm, as in `key_feature`; all maps."""
        if not self.config.use_in_nonkey:
            return kept
        if not self.config.use_co_nonkey:
            return _widen(own, self.common.width)
        return self.ffm(kept, own)

    def key(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Segment a key frame.

        Args:
            frame: uint8 [B, 3, H, W].

        Returns:
            logits [B, K, h, w], Eq. (4), and what the frame keeps, [B, C, h, w].
        """
        common, own = self.encode(frame)
        kept = self.keep(common)
        return self.by_bands(lambda *maps: self.head(self.key_feature(*maps)), common, own, kept), kept

    def between(self, frame: Tensor, *kept: Tensor) -> Tensor:
        """Segment a frame between key frames.

        Args:
            frame: uint8 [B, 3, H, W].
            kept: what one or both neighbouring key frames kept, each [B, C, h, w].

        Returns:
            logits [B, K, h, w], Eq. (6) or (7).
        """
        image = self.normalize(frame)
        own = kept[0]  # a stand-in that is not read
        if self.config.use_in_nonkey:
            own = _own(self.backbone(image, stop=self.cut)[self.cut], kept[0])
        return self.by_bands(lambda own, *kept: self.head(*(self.between_feature(k, own) for k in kept)), own, *kept)

    def by_bands(self, decode: Callable[..., Tensor], *maps: Tensor) -> Tensor:
        """Decode maps [B, C_i, h, w], each pixel of which counts for itself in evaluation, to logits [B, K, h, w].

        On a CPU a few rows at a time, so that what lies between fits its cache: it takes half the time.
        """
        if self.training or maps[0].device.type != "cpu" or torch.compiler.is_compiling():
            return decode(*maps)
        height = max(1, BAND // (self.common.width * maps[0].shape[3]))
        bands = zip(*(x.split(height, dim=2) for x in maps), strict=True)  # each [B, C_i, up to height, w]
        return torch.cat([decode(*band) for band in bands], dim=2)

    def step(self, frame: Tensor, state: DCFMState | None = None) -> tuple[Tensor, DCFMState]:
        """Segment the next frame from the key frame before it; see VideoSegmenter.step.

        The first frame of a video is a key frame.

        Raises:
            ShapeError: as VideoSegmenter.step; or for more than one video with the adaptive schedule.
        """
        size = self.admit(frame, None if state is None else state.size)
        schedule = self.config.schedule
        if state is not None:
            last, distance = state, state.age + 1
            if not is_key(schedule, distance, lambda: self.change(frame, last.image[0])):
                return self.view(frame, last.kept), last._replace(age=distance)
        logits, kept = self.compute("key", self.key, frame)
        image = (frame.clone(),) if schedule.threshold else ()  # the caller may fill its frame anew
        return logits, DCFMState(kept, 0, size, image)

    def segment(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Segment a video; with two neighbours each frame waits for the key frame after it. See VideoSegmenter.segment.

        Frames before the first and after the last key frame read one. Memory is constant: at most the frames up to
        the next key frame, and what the two key frames around them kept.

        Raises:
            ShapeError: as `step`.
        """
        if self.config.neighbours == 1:
            yield from super().segment(frames)
            return
        ahead = Ahead(self.admitted(frames))
        kept: tuple[Tensor, ...] = ()
        first = self.config.start + 1
        distance = first if ahead.has(first) else len(ahead.frames)
        while distance:
            *waiting, key = ahead.take(distance)
            logits, now = self.compute("key", self.key, key)
            for frame in waiting:
                yield self.view(frame, *kept, now)  # Eq. (7)
            yield logits
            kept = (now,)
            distance = self.next_key(ahead, key)
        for frame in ahead.frames:
            yield self.view(frame, *kept)

    def view(self, frame: Tensor, *kept: Tensor) -> Tensor:
        """Compute "between" or, with two key frames, "between_two"; arguments and result as of `between`."""
        (logits,) = self.compute("between" if len(kept) == 1 else "between_two", self.between, frame, *kept)
        return logits

    def next_key(self, ahead: Ahead, key: Tensor) -> int:
        """Return the distance of the next key frame from the last one, uint8 [B, 3, H, W]; 0 if there is none."""
        return next_key(self.config.schedule, ahead.has, lambda distance: self.change(ahead.frames[distance - 1], key))

    def admitted(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the frames as they are, or raise what `admit` does."""
        size: tuple[int, int, int] | None = None
        for frame in frames:
            size = self.admit(frame, size)
            yield frame

    def admit(self, frame: Tensor, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return batch, height and width of a frame, which must be `size` if that is given.

        Raises:
            ShapeError: if they differ, or there is more than one video and the schedule is adaptive.
        """
        size = check_same(frame, size)
        if size[0] > 1 and self.config.schedule.threshold:
            raise ShapeError(f"frame holds {size[0]} videos; an adaptive schedule follows one: segment them one by one")
        return size

    def change(self, frame: Tensor, key: Tensor) -> float:
        """The score of the adaptive schedule for two images uint8 [1, 3, H, W]."""
        return float(*self.compute("change", self.difference, frame, key))

    def difference(self, frame: Tensor, key: Tensor) -> Tensor:
        """Mean absolute difference of two normalised images uint8 [1, 3, H, W]; scalar."""
        return (self.normalize(frame) - self.normalize(key)).abs().mean()

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "key" (frame -> logits, kept) and "between" (frame, kept -> logits), the two parts of `step`.

        Where `segment` looks ahead also "between_two" (frame, kept_before, kept_after -> logits), and with the adaptive
        schedule "change" (frame, image -> score).
        """
        with torch.no_grad():
            _, kept = self.key(frame)

        def between(*tensors: Tensor) -> tuple[Tensor, ...]:
            return (self.between(*tensors),)

        graphs = {
            "key": Graph(self.key, {"frame": frame}, ("logits", "kept")),
            "between": Graph(between, {"frame": frame, "kept": kept}, ("logits",)),
        }
        if self.config.neighbours == 2:
            two = {"frame": frame, "kept_before": kept, "kept_after": kept}
            graphs["between_two"] = Graph(between, two, ("logits",))
        if self.config.schedule.threshold:
            images = {"frame": frame, "image": frame}
            graphs["change"] = Graph(lambda *pair: (self.difference(*pair),), images, ("score",))
        return graphs


# ---- Eqs. (1), (2): the two features of a frame ---------------------------------------------------------------------


class CommonFeature(nn.Module):
    """F_co: a pyramid fused to stride 4, or the deepest of maps of equal strides through a 1x1 convolution."""

    def __init__(self, config: DCFMConfig, backbone: Backbone) -> None:
        super().__init__()
        channels = backbone.channels
        self.is_pyramid = len({*backbone.strides}) == len(backbone.strides)
        if self.is_pyramid:
            self.width = config.common_channels or 256
            self.fuse = SegFormerDecoder(channels, self.width, None, dropout=config.dropout)
        else:
            self.width = config.common_channels or min(5 * channels[0], channels[3])
            self.conv = nn.Conv2d(channels[3], self.width, 1, bias=False)
            nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, stages: dict[str, Tensor]) -> Tensor:
        """stages [B, C_i, h_i, w_i] -> F_co [B, C, h, w], Eq. (1)."""
        if self.is_pyramid:
            return unit(self.fuse.dropout(self.fuse.features(stages)))
        return unit(pointwise(stages["stage4"], self.conv.weight[:, :, 0, 0]))


def _own(shallow: Tensor, common: Tensor) -> Tensor:
    """F_in of Eq. (2): a shallow map [B, C_1, h_1, w_1] at the size of `common` [B, C, h, w], and of unit length."""
    return unit(resize(shallow, (common.shape[2], common.shape[3])))


def _widen(own: Tensor, width: int) -> Tensor:
    """F_in [B, C_1, h, w] as the first channels of a map of zeros [B, C, h, w]."""
    return F.pad(own, (0, 0, 0, 0, 0, width - own.shape[1]))


def unit(x: Tensor) -> Tensor:
    """norm(x) of the paper: the vector of every pixel of a map [B, C, h, w] at unit length."""
    return x / length(x)


def length(x: Tensor) -> Tensor:
    """L2 norm over the channels of a map [B, C, h, w], at least EPS; float32 [B, 1, h, w]."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(EPS)


# ---- Eqs. (3), (5): feature fusion module ---------------------------------------------------------------------------


class FFM(Folding):
    """A 1x1 convolution over the common feature and the first channels of the own one, norm, ReLU.

    The convolution is a sum over its two inputs. `share` is the part of the common feature, which a key frame keeps;
    in its literal form the module keeps the common feature itself.

    Args:
        width: C.
        own: how many channels of F_in are read.
    """

    def __init__(self, width: int, own: int) -> None:
        super().__init__()
        self.own = own
        self.conv = nn.Conv2d(width + own, width, 1)
        self.bn = nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def fold(self) -> tuple[Tensor, ...]:
        """Return W_co [C, C], W_in [C, own] and the bias [C]; with the norm inside in evaluation mode."""
        weight, bias = self.conv.weight[:, :, 0, 0], self.conv.bias
        assert bias is not None
        if not self.training:
            assert self.bn.running_mean is not None and self.bn.running_var is not None
            scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
            weight, bias = weight * scale[:, None], (bias - self.bn.running_mean) * scale + self.bn.bias
        return *weight.split((weight.shape[1] - self.own, self.own), dim=1), bias

    def share(self, common: Tensor) -> Tensor:
        """F_co [B, C, h, w] -> [B, C, h, w], stored channels-last."""
        if self.is_plain:
            return common
        weight, _, bias = self.folded()
        return pointwise(common, weight, bias)

    def forward(self, share: Tensor, own: Tensor) -> Tensor:
        """share [B, C, h, w], F_in [B, C_1, h, w] -> [B, C, h, w]."""
        own = own[:, : self.own]
        if self.is_plain:
            return torch.relu(self.bn(self.conv(torch.cat((share, own), dim=1))))
        _, weight, _ = self.folded()
        if is_for_runtime():  # the runtime adds as it multiplies, where it need not turn the map
            x = share + pointwise(own, weight)  # [B, C, h, w]
        else:
            rows = _rows(share).addmm(_rows(own), weight.T)  # [B * N, C]
            x = rows.view(share.shape[0], *share.shape[2:], -1).permute(0, 3, 1, 2)  # [B, C, h, w]
        return (self.bn(x) if self.training else x).relu_()


def _rows(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B * N, C], a view where the map is stored channels-last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)  # [B * N, C]


# ---- Eqs. (4), (6), (7): segmentation head --------------------------------------------------------------------------


class Head(Folding):
    """No or one 1x1 layer, then a classifier without bias; takes features of any length, and adds their logits."""

    def __init__(self, config: DCFMConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = ConvNorm(width, width) if config.head_layers else None
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        nn.init.kaiming_normal_(self.classifier.weight)
        if self.hidden is not None:
            nn.init.kaiming_normal_(self.hidden.conv.weight)

    def fold(self) -> tuple[Tensor, ...]:
        """Return weight [C, C] and bias [C] of the hidden layer, if there is one; the norm inside in evaluation."""
        return () if self.hidden is None else self.hidden.merged()

    def forward(self, *features: Tensor) -> Tensor:
        """One or two maps [B, C, h, w] -> logits [B, K, h, w], the sum of Dec(norm(feature))."""
        if self.is_plain:
            layer = nn.Identity() if self.hidden is None else self.hidden
            first, *others = (self.classifier(self.dropout(layer(unit(x)))) for x in features)
            return sum(others, start=first)
        classifier = self.classifier.weight[:, :, 0, 0]
        if self.hidden is None and len(features) == 1:
            return classify(self.dropout(features[0]), classifier) / length(features[0])
        first, *others = (self.layer(x) for x in features)
        return classify(self.dropout(sum(others, start=first)), classifier)

    def layer(self, x: Tensor) -> Tensor:
        """What the classifier reads: feature [B, C, h, w] of any length -> [B, C, h, w]."""
        if self.hidden is None:
            return unit(x)
        weight, bias = self.folded()
        return self.hidden.finish(torch.addcdiv(bias[:, None, None], pointwise(x, weight), length(x)))


# ---- key frames: fixed and adaptive schedule ------------------------------------------------------------------------


class Ahead:
    """The frames of a video that lie ahead of the last key frame, read as far as they are asked for."""

    def __init__(self, video: Iterable[Tensor]) -> None:
        self.video = iter(video)
        self.frames: deque[Tensor] = deque()

    def has(self, distance: int) -> bool:
        """Say whether the video goes on for `distance` frames; they are then in `frames`."""
        self.frames.extend(islice(self.video, max(distance - len(self.frames), 0)))
        return len(self.frames) >= distance

    def take(self, count: int) -> list[Tensor]:
        """Remove and return the first `count` frames."""
        return [self.frames.popleft() for _ in range(count)]


def next_key(schedule: AdaptiveConfig, has: Callable[[int], bool], score: Callable[[int], float]) -> int:
    """Return the distance from a key frame to the next one, looking ahead; 0 if the video ends before.

    Args:
        schedule: its limits and threshold.
        has: whether the frame at a distance exists.
        score: how much the frame at a distance differs from the key frame.
    """
    distance = schedule.min_interval
    if not has(distance):
        return 0
    while distance < schedule.max_interval and score(distance) < schedule.threshold and has(distance + 1):
        distance += 1
    return distance


def is_key(schedule: AdaptiveConfig, distance: int, score: Callable[[], float]) -> bool:
    """Say whether a frame at a distance from the last key frame is one too, without looking ahead.

    Args:
        schedule: its limits and threshold.
        distance: at least 1.
        score: how much the frame differs from the key frame; asked for only where it decides.
    """
    if distance < schedule.min_interval:
        return False
    return distance >= schedule.max_interval or score() >= schedule.threshold


# ---- consistency, and options ---------------------------------------------------------------------------------------


def consistency(one: Tensor, other: Tensor, agree: Tensor) -> Tensor:
    """Mean squared difference of two features at unit length where the predicted labels agree (Eqs. (10), (11)).

    Args:
        one, other: float [B, C, h, w] of any length.
        agree: bool [B, 1, h, w]; other pixels count as equal, not as absent.

    Returns:
        Scalar float32.
    """
    with torch.autocast(one.device.type, enabled=False):
        difference = unit(one.float()) - unit(other.float())
        return (difference.square() * agree).mean()


def _check(config: DCFMConfig, cut: str) -> None:
    adaptive, least = config.adaptive, config.schedule.min_interval
    width = config.common_channels
    limits = f"at least adaptive.min_interval, {adaptive.min_interval}"
    check_options(
        config,
        ("interval", config.interval > 0, "at least 1"),
        ("neighbours", config.neighbours in (1, 2), "1 or 2"),
        ("adaptive.threshold", adaptive.threshold >= 0, "at least 0"),
        ("adaptive.min_interval", adaptive.min_interval > 0, "at least 1"),
        ("adaptive.max_interval", adaptive.max_interval >= adaptive.min_interval, limits),
        ("start", 0 <= config.start < least, f"at least 0 and less than the interval, {least}"),
        ("start", config.start == 0 or config.neighbours == 2, "0 with neighbours 1"),
        ("cut", cut.split(".", 1)[0] == "stage1", "a unit of stage1"),
        ("common_channels", width is None or width > 0, "at least 1, or null"),
        ("head_layers", config.head_layers in (0, 1), "0 or 1"),
        ("dropout", 0 <= config.dropout < 1, "at least 0 and less than 1"),
        ("use_co_key", config.use_in_key or config.use_co_key, "true, or use_in_key true"),
        ("use_co_nonkey", config.use_in_nonkey or config.use_co_nonkey, "true, or use_in_nonkey true"),
        ("use_co_nonkey", config.use_co_key or config.use_co_nonkey, "true, or use_co_key true"),
        ("between_weight", config.between_weight > 0, "more than 0"),
        ("consistency_weight", config.consistency_weight >= 0, "at least 0"),
        ("distance", 1 <= config.distance <= 6, "1 to 6"),
    )


METHOD = DCFM
