"""MSAF: motion-state alignment framework.

"Motion-state Alignment for Video Semantic Segmentation", CVPR workshops 2023, https://arxiv.org/abs/2304.08820

| paper | here | shape |
| --- | --- | --- |
| F_3, F_4, F_5 | stages["stage2"], stages["stage3"], stages["stage4"] | [B, C_s, h, w], stride 8 |
| f_3, f_4, f_5 | maps; f_5 of the frames t-2, t-1 is `before` | [B, C, h, w], C = 256 |
| D^{t-2}, D^{t-1}, D^t | pyramid | [B, C, h, w] |
| A^{t-2}, A^{t-1}, A^t | aligned | [B, C, h, w] |
| M^t | motion | [B, C, h, w] |
| P | pixels | [B, C, h, w] |
| M' | masks | [B, K, h, w] |
| R | regions | [B, K, C] |
| S | the result of `assign` | [B, K, h, w] |
| DS, US, rates of the pyramid | avg_pool2d, resize, RATES | 4, 2, 1 for t-2, t-1, t |

The paper leaves much open and its code is not public; the choices here are: working width 256 behind a 1x1
reduction of every stage, 8 heads, an MLP of four times the width, average pooling and bilinear resizing in the
pyramid, no positions in space, learned embeddings of time and of stage that start at zero (of time in the joint
attention of the row "Baseline + TR" too), offsets from the neighbour alone (`offset_from_pair` is the other reading),
the stage tokens side by side before the first of the two convolutions, one more 1x1 map for the supervised pixel
logits, raw logits as region weights, no temperature. The per-pixel loss of the state branch stays in the row "w/o
State", which takes out the stage attention and keeps the two convolutions.

Where the paper says "argmin of a matrix product" it means the smallest cosine distance, so the largest of S, which
is not divided by |P|: that is a positive factor that all classes share.

Computed differently, with the same result:
- The 1x1 reductions run at a stage's own size and their result is resized to the grid of F_3, where a backbone's
  deeper stages are coarser than that (a MiT): the linear part commutes with a bilinear resize.
- Only M^t is read, so frames t-2 and t-1 are keys and values of the temporal attention, without a query or an MLP.
  The same holds for the joint attention of the row "Baseline + TR".
- In `step` the pixel logits are left out where they serve the loss only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.layers import ConvNorm, Folding, classify, pointwise, resize, to_map, to_tokens
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same
from steadyseg.ops.deformable_conv import deformable_conv
from steadyseg.types import Clip

EPS = 1e-6
"""Of every LayerNorm here, and the least length of a region descriptor."""
RATES = (4, 2, 1)
"""Pooling of the frames t-2, t-1, t in the pyramid (Eq. (2))."""


@dataclass(frozen=True, kw_only=True)
class MSAFConfig(ModelConfig):
    """Options of MSAF; the rows of its ablation table are combinations of the switches."""

    backbone: str = "resnet18"
    """As everywhere; the paper takes ResNet-18/50/101, these with pyramid pooling, and HRNet-W48."""
    width: int = 256
    """C, channels of the working maps."""
    heads: int = 8
    """Heads of every attention."""
    mlp_ratio: int = 4
    """Hidden width of every MLP, in working widths."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifiers."""
    motion: Literal["on", "off", "vanilla"] = "on"
    """Motion branch; "vanilla" is one attention over all pixels of the three frames, "off" takes f_5 as it is."""
    dcn: bool = True
    """Align the two earlier frames by deformable convolution."""
    offset_from_pair: bool = False
    """Predict its offsets from the earlier and the current frame, not from the earlier alone."""
    state: bool = True
    """Attention over the stages of the current frame."""
    assignment: bool = True
    """Give each pixel the class of the nearest region descriptor."""
    region_weight: Literal["logits", "softmax"] = "logits"
    """What weighs the pixels in a region descriptor."""
    mean_of_masks: bool = False
    """Without assignment: predict the mean of both branches' soft masks."""


class MSAFState(NamedTuple):
    """What the next frame needs."""

    before: tuple[Tensor, ...]
    """f_5 of the last two frames, the current one last, each [B, C, h, w]; empty without motion."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""


class MSAF(VideoSegmenter):
    """A descriptor a class from the motion of three frames, a descriptor a pixel from the stages of one."""

    Config = MSAFConfig
    config: MSAFConfig

    def __init__(self, config: MSAFConfig, num_classes: int) -> None:
        _check(config)
        super().__init__(config, num_classes)
        width, dropout = config.width, config.dropout
        levels = (2, 3, 4) if config.state else (4,)
        channels = self.backbone.channels
        self.reduce = nn.ModuleDict({f"stage{level}": Reduction(channels[level - 1], width) for level in levels})
        self.motion = {"on": Motion, "vanilla": JointAttention, "off": CurrentFrame}[config.motion](config)
        has_pixels = config.state or config.assignment
        has_masks = config.assignment or config.mean_of_masks or not config.state
        self.pixels = PixelDescriptors(config) if has_pixels else None
        self.classify = Classifier(width, num_classes, dropout) if has_pixels else None
        self.masks = TwoConvs(width, width, num_classes, dropout) if has_masks else None

    @property
    def offsets(self) -> tuple[int, ...]:
        """(-2, -1, 0); only (0,) without motion."""
        return (0,) if self.config.motion == "off" else (-2, -1, 0)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return the cross-entropies of Eq. (15): "ce" of what is predicted, "ce_pixel" and "ce_region" of what it is
        made of, where that has a loss of its own. A mean of two masks has none, only its masks do.
        """
        labels = clip.labels[:, -1]
        outputs = self.outputs(*self.encode_clip(clip.frames), with_losses=True)
        return {name: cross_entropy(logits, labels, self.class_weights) for name, logits in outputs.items()}

    def clip_logits(self, frames: Tensor) -> Tensor:
        """Segment the last frame of a clip, all frames in one batch; see VideoSegmenter.clip_logits."""
        return self.decide(*self.encode_clip(frames))

    def encode_clip(self, frames: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """frames uint8 [B, T, 3, H, W] -> `maps` and `before` of the target frame, as in `outputs`.

        In clips that are shorter than `offsets` the first frame is repeated.
        """
        frames = frames[:, -len(self.offsets) :]
        stacked = frames.transpose(0, 1).flatten(0, 1)  # [T * B, 3, H, W]
        *maps, deep = self.encode(stacked, targets=len(frames))
        each = deep.chunk(frames.shape[1])  # T maps [B, C, h, w]
        repeated = [each[0]] * (len(self.offsets) - len(each))
        return (*maps, each[-1]), [*repeated, *each[:-1]]

    def encode(self, frames: Tensor, targets: int | None = None) -> tuple[Tensor, ...]:
        """Run the backbone and reduce what is read of it.

        Args:
            frames: uint8 [M, 3, H, W].
            targets: B, how many frames, the last ones, are target frames; None: all.

        Returns:
            With the state branch f_3 and f_4 of the target frames, each [B, C, h, w]; f_5 of all, [M, C, h, w].
        """
        stages = self.backbone(self.normalize(frames))
        size = (stages["stage2"].shape[2], stages["stage2"].shape[3])
        *earlier, last = self.reduce.items()
        first = 0 if targets is None else len(frames) - targets
        maps = [reduce(stages[stage][first:], size) for stage, reduce in earlier]
        return *maps, last[1](stages[last[0]], size)

    def outputs(self, maps: Sequence[Tensor], before: Sequence[Tensor], *, with_losses: bool) -> dict[str, Tensor]:
        """Run both branches and the assignment.

        Args:
            maps: f_3, f_4 and f_5 of frame t, or only f_5 without the state branch, each [B, C, h, w].
            before: f_5 of the frames t-2 and t-1; not read without motion.
            with_losses: also return what the prediction does not need.

        Returns:
            Logits [B, K, h, w] by the name of their loss term; "ce" is what is predicted, where a loss acts on it.
        """
        config = self.config
        motion = self.motion((*before, maps[-1]))  # M^t
        found: dict[str, Tensor] = {}
        if self.masks is not None:
            found["ce_region"] = self.masks(motion)  # M', Eq. (12)
        if self.pixels is not None and self.classify is not None:
            pixels = self.pixels(maps, motion)  # P
            if with_losses or not config.assignment:
                found["ce_pixel"] = self.classify(pixels)  # Eq. (10)
            if config.assignment:
                regions = describe_regions(found["ce_region"], motion, config.region_weight)
                found["ce"] = assign(pixels, regions)
        return found if len(found) > 1 else {"ce": next(iter(found.values()))}

    def decide(self, maps: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
        """Arguments as in `outputs` -> what `step` returns, [B, K, h, w]."""
        outputs = self.outputs(maps, before, with_losses=False)
        if self.config.mean_of_masks:
            return (outputs["ce_region"].softmax(1) + outputs["ce_pixel"].softmax(1)) / 2
        return outputs["ce"]

    def step(self, frame: Tensor, state: MSAFState | None = None) -> tuple[Tensor, MSAFState]:
        """Segment the next frame with one backbone pass; see VideoSegmenter.step. Logits have the stride of stage2.

        The first frame of a video stands for the two before it. With `mean_of_masks` the "logits" are probabilities.
        """
        size = check_same(frame, None if state is None else state.size)
        maps = self.compute("encode", self.encode, frame)
        deep = maps[-1]
        before: tuple[Tensor, ...] = ()
        if self.config.motion != "off":
            before = (deep, deep) if state is None else state.before
        (logits,) = self.compute("decide", self.decide_flat, *maps, *before)
        return logits, MSAFState((before[-1], deep) if before else (), size)

    def decide_flat(self, *tensors: Tensor) -> Tensor:
        """`maps` and `before`, one after the other -> what `decide` returns."""
        count = len(self.reduce)
        return self.decide(tensors[:count], tensors[count:])

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "encode" (frame -> f3, f4, f5) and "decide" (f3, f4, f5, and f5 of t-2 and t-1 -> logits).

        f3 and f4 are missing without the state branch, f5 of the earlier frames without motion.
        """
        with torch.no_grad():
            maps = self.encode(frame)
        names = ("f3", "f4", "f5")[-len(maps) :]
        earlier = ("f5_two_before", "f5_one_before")[: len(self.offsets) - 1]
        inputs = dict(zip(names, maps, strict=True)) | dict.fromkeys(earlier, maps[-1])
        return {
            "encode": Graph(self.encode, {"frame": frame}, names),
            "decide": Graph(lambda *x: (self.decide_flat(*x),), inputs, ("logits",)),
        }


class Reduction(Folding):
    """1x1 convolution, norm and ReLU on the grid of F_3; a coarser stage is resized between convolution and ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer = ConvNorm(channels, width)

    def fold(self) -> tuple[Tensor, ...]:
        """Return weight [C, C_s] and bias [C] of the convolution, with the norm inside in evaluation."""
        return self.layer.merged()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """F_s [B, C_s, h_s, w_s] -> f_s [B, C, h, w] of the given size (h, w)."""
        if self.is_plain:
            return self.layer(resize(x, size))
        return self.layer.finish(resize(pointwise(x, *self.folded()), size))


# ---- Eq. (3): attention over all pixels, or over few tokens a pixel -------------------------------------------------

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query [..., Q, heads, d], key and value [..., T, heads, d] -> [..., Q, heads, d]."""


class AttentionBlock(nn.Module):
    """MHSA of Eq. (3): attention, then an MLP, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, config: MSAFConfig, attend: Attend) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.heads, self.attend = config.heads, attend
        self.norm_attention = nn.LayerNorm(width, eps=EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, asking: int | None = None) -> Tensor:
        """tokens [..., T, C] -> the last `asking` of them (None: all), [..., asking, C]; all T are attended to."""
        first = 0 if asking is None else tokens.shape[-2] - asking
        normed = self.norm_attention(tokens)
        query = self.query(normed[..., first:, :]).unflatten(-1, (self.heads, -1))  # [..., asking, heads, d]
        key, value = (layer(normed).unflatten(-1, (self.heads, -1)) for layer in (self.key, self.value))
        read = self.attend(query, key, value).flatten(-2)  # [..., asking, C]
        x = tokens[..., first:, :] + self.output(read)
        return x + self.mlp(self.norm_mlp(x))


def attend_many(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over all pixels; see Attend, with one leading axis. The matrix of scores is never stored whole."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, heads, N, d]
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # [B, N, heads, d]


def attend_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over the few tokens of each pixel; see Attend, with the leading axes B and N."""
    scores = torch.einsum("bnqhd,bnthd->bnhqt", query, key) * query.shape[-1] ** -0.5  # [B, N, heads, Q, T]
    return torch.einsum("bnhqt,bnthd->bnqhd", scores.softmax(-1), value)  # [B, N, Q, heads, d]


# ---- motion branch, Eqs. (2), (5), (6) ------------------------------------------------------------------------------


class Motion(nn.Module):
    """Pyramid spatial transformer, then aligned temporal transformer; only its last output M^t is computed."""

    def __init__(self, config: MSAFConfig) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(AttentionBlock(config, attend_many) for _ in RATES)  # of t-2, t-1, t
        self.align = nn.ModuleList(Alignment(config) for _ in RATES[:-1]) if config.dcn else None  # of t-2, t-1
        self.times = nn.Parameter(torch.zeros(len(RATES), config.width))
        self.temporal = AttentionBlock(config, attend_few)

    def forward(self, deep: Sequence[Tensor]) -> Tensor:
        """f_5 of the frames t-2, t-1, t, each [B, C, h, w] -> M^t [B, C, h, w]."""
        size = (deep[-1].shape[2], deep[-1].shape[3])
        pyramid = [look(x, rate, block) for x, rate, block in zip(deep, RATES, self.spatial, strict=True)]
        *aligned, now = pyramid
        if self.align is not None:
            aligned = [align(x, now) for align, x in zip(self.align, aligned, strict=True)]
        tokens = torch.stack([to_tokens(x) for x in (*aligned, now)], dim=2) + self.times  # [B, N, 3, C], Eq. (6)
        return to_map(self.temporal(tokens, asking=1)[:, :, 0], size)


def look(x: Tensor, rate: int, block: nn.Module) -> Tensor:
    """Eq. (2) for one frame: pool, attend over all pixels, resize back; f_5 [B, C, h, w] -> D [B, C, h, w].

    Windows that reach over the border are averaged over the pixels inside.
    """
    small = F.avg_pool2d(x, rate, ceil_mode=True, count_include_pad=False) if rate > 1 else x  # DS
    tokens = block(to_tokens(small))  # [B, N / rate^2, C]
    return resize(to_map(tokens, (small.shape[2], small.shape[3])), (x.shape[2], x.shape[3]))  # US


class Alignment(nn.Module):
    """Deformable convolution of an earlier frame (Eq. (5)); its offsets start at zero."""

    def __init__(self, config: MSAFConfig) -> None:
        super().__init__()
        self.from_pair = config.offset_from_pair
        self.offset = nn.Conv2d((2 if self.from_pair else 1) * config.width, 2 * 9, 3, padding=1)
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor, now: Tensor) -> Tensor:
        """D of an earlier frame and D^t, each [B, C, h, w] -> A of that frame [B, C, h, w]."""
        assert self.conv.bias is not None
        offset = self.offset(torch.cat((x, now), dim=1) if self.from_pair else x)  # [B, 18, h, w]
        return deformable_conv(x, offset, self.conv.weight, self.conv.bias)


class CurrentFrame(nn.Module):
    """Without motion: f_5 of the current frame stands for M^t."""

    def __init__(self, config: MSAFConfig) -> None:
        super().__init__()

    def forward(self, deep: Sequence[Tensor]) -> Tensor:
        """f_5 of the current frame, last in `deep` -> itself."""
        return deep[-1]


class JointAttention(nn.Module):
    """Row "Baseline + TR" of the ablation: one attention over all pixels of the three frames."""

    def __init__(self, config: MSAFConfig) -> None:
        super().__init__()
        self.times = nn.Parameter(torch.zeros(len(RATES), config.width))
        self.joint = AttentionBlock(config, attend_many)

    def forward(self, deep: Sequence[Tensor]) -> Tensor:
        """f_5 of the frames t-2, t-1, t, each [B, C, h, w] -> the output of frame t [B, C, h, w]."""
        size = (deep[-1].shape[2], deep[-1].shape[3])
        tokens = [to_tokens(x) + time for x, time in zip(deep, self.times, strict=True)]  # each [B, N, C]
        return to_map(self.joint(torch.cat(tokens, dim=1), asking=tokens[-1].shape[1]), size)


# ---- state branch, Eqs. (9) to (11) ---------------------------------------------------------------------------------


class PixelDescriptors(nn.Module):
    """Attention over the stages of each pixel and M^t, then two convolutions of the tokens side by side.

    Without motion there is no token M^t. Without the attention the convolutions read M^t and f_5.
    """

    def __init__(self, config: MSAFConfig) -> None:
        super().__init__()
        self.with_motion = config.motion != "off"
        count = 3 + self.with_motion if config.state else 2
        self.kinds = nn.Parameter(torch.zeros(count, config.width)) if config.state else None
        self.across = AttentionBlock(config, attend_few) if config.state else None
        self.convs = TwoConvs(count * config.width, config.width, config.width)

    def forward(self, maps: Sequence[Tensor], motion: Tensor) -> Tensor:
        """f_3, f_4, f_5 (without attention only f_5) and M^t, each [B, C, h, w] -> P [B, C, h, w]."""
        size = (motion.shape[2], motion.shape[3])
        if self.across is None or self.kinds is None:
            return self.convs(torch.cat((motion, maps[-1]), dim=1))
        inputs = (*maps, motion) if self.with_motion else maps
        tokens = torch.stack([to_tokens(x) for x in inputs], dim=2) + self.kinds  # [B, N, 4, C]
        return self.convs(to_map(self.across(tokens).flatten(2), size))


class TwoConvs(nn.Module):
    """3x3 convolution, norm, ReLU, channel-wise dropout and a 1x1 convolution."""

    def __init__(self, channels: int, width: int, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.out = Classifier(width, out, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C_in, h, w] -> [B, C_out, h, w]."""
        return self.out(torch.relu(self.bn(self.conv(x))))


class Classifier(nn.Module):
    """Channel-wise dropout and a 1x1 convolution."""

    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C_out, h, w]."""
        return classify(self.dropout(x), self.conv.weight[:, :, 0, 0], self.conv.bias)


# ---- semantic assignment, Eqs. (12) to (14) -------------------------------------------------------------------------


def describe_regions(masks: Tensor, motion: Tensor, weight: Literal["logits", "softmax"] = "logits") -> Tensor:
    """Average the motion map once a class: R_j = (1/n) * sum_p M'_j(p) * M^t(p).

    Args:
        masks: M', float [B, K, h, w].
        motion: M^t, float [B, C, h, w].
        weight: take the logits as they are, with their sign, or their soft-max over the classes.

    Returns:
        float32 [B, K, C]; the sum over all pixels runs in float32 in any precision.
    """
    with torch.autocast(masks.device.type, enabled=False):
        weights = masks.float().flatten(2)  # [B, K, N]
        if weight == "softmax":
            weights = weights.softmax(1)
        return weights @ to_tokens(motion.float()) / weights.shape[2]


def assign(pixels: Tensor, regions: Tensor) -> Tensor:
    """Score each pixel against each region by the product of P and the unit vector along R_j (Eqs. (13), (14)).

    The largest score is the smallest cosine distance: the length of P is the same factor for all classes.

    Args:
        pixels: P, float [B, C, h, w].
        regions: R, float32 [B, K, C].

    Returns:
        S, float32 [B, K, h, w].
    """
    with torch.autocast(pixels.device.type, enabled=False):
        units = regions / regions.norm(dim=2, keepdim=True).clamp(min=EPS)
        scores = to_tokens(pixels.float()) @ units.transpose(1, 2)  # [B, N, K]
    return to_map(scores, (pixels.shape[2], pixels.shape[3]))


def _check(config: MSAFConfig) -> None:
    motion, state, assignment = config.motion, config.state, config.assignment
    heads, both = config.heads, motion != "off" and state
    check_options(
        config,
        ("heads", heads > 0, "at least 1"),
        ("width", config.width > 0 and config.width % max(heads, 1) == 0, f"a positive multiple of {heads}"),
        ("mlp_ratio", config.mlp_ratio > 0, "at least 1"),
        ("dropout", 0 <= config.dropout < 1, "at least 0 and less than 1"),
        ("motion", motion in ("on", "off", "vanilla"), "on, off or vanilla"),
        ("region_weight", config.region_weight in ("logits", "softmax"), "logits or softmax"),
        ("assignment", not assignment or motion != "off" or state, "False without motion and without state"),
        ("region_weight", assignment or config.region_weight == "logits", "logits without assignment"),
        ("offset_from_pair", not config.offset_from_pair or (motion == "on" and config.dcn), "False without dcn"),
        (
            "mean_of_masks",
            config.mean_of_masks == (both and not assignment),
            "True with motion and state but without assignment, False in all other cases",
        ),
    )


METHOD = MSAF
