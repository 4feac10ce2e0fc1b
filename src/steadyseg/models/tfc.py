"""TFC: temporal feature correlation.

"Exploring Temporal Feature Correlation for Efficient and Stable Video Semantic Segmentation", AAAI 2024

| paper | here | shape |
| --- | --- | --- |
| I | interval | 4 |
| x^l | stages["stage l"] | [B, C_l, h_l, w_l], strides 4, 8, 16, 32 |
| v^l = FC_l(x^l) | `project` | [B, D, h_l, w_l], D = 256 |
| x^^l | v^l resized to stride 4 | [B, D, h_1, w_1] |
| z_k, z_t, z'_t | fused, of a key frame, of a frame after it, and mixed | [B, D, h_1, w_1] |
| w_t | correlation | float32 [B, 1, h_1, w_1], -1..1 |
| w^_t | the same, at least 0 | float32 [B, 1, h_1, w_1] |
| Omega, theta | mask, theta | [B, N], 0.8 |
| W'_m x^l, W_m | v^l, output | [B, D, h_l, w_l]; D -> D |
| b_i, Gamma | same, known | [T - 1, B, h_1, w_1] |

Of each interval the first frame is a key frame, a SegFormer. The others run two of the four stages, take the rest from
the key frame (Eq. (4)), refine by deformable attention the points that do not correlate with it (Eqs. (8) to (11)), and
mix all others with what it gave there (Eq. (7)).

The paper leaves much open and has no public code; the choices here follow its parameter and cost tables. The attention
comes before the mixing, which is defined just before the classifier. It is one encoder layer of Deformable DETR with
8 heads, 4 levels and 4 points, normalised over levels and points of each head, without dropout: that is the 0.7 M
parameters that all backbones gain. Its values are v^l as they are, since the paper's count of operations has no value
projection; `msda_value_proj` adds one. Attention and focal loss have no weight of their own, z_k is not detached, the
gradient of w flows into both frames, and the choice of points has none. The key frame's fixed weight is 0.9: the text
says 0.1, but only a heavy key frame gives the table's higher consistency and lower mIoU. b is read from the labels at
stride 4, nearest. Where w is negative its lower clamp lets the gradient of the loss pass, so that it can recover.
In a clip all frames are normalised as one batch, so equal frames give equal maps in training too.

Computed differently, with the same result:
- The fuse convolution is a sum over levels, and the share of stages 3 and 4 is computed once an interval.
- The classifier is linear and the weights of the mixture sum to one, so a stream mixes the scores, K channels, instead
  of z, D channels; a clip mixes z, for the sake of the dropout in between.
- The key frame's x^^ is kept divided by its length, as only its direction counts.
- Only the points of Omega are computed; with `msda` "dense" all are, and those outside Omega are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.decoders import SegFormerDecoder
from steadyseg.flow import displacement, shared_flow
from steadyseg.layers import classify, resize, to_map, to_tokens, warp
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same, sizes_are_fixed
from steadyseg.ops.deformable_attention import attend
from steadyseg.types import IGNORE, Clip

LEVELS, HEADS, POINTS = 4, 8, 4
"""L, M and P of the attention: levels, heads, and points of each head on each level."""
HARD = 0.8
"""Correlation from which `interp` "hard" takes the key frame."""
FIXED = 0.9
"""Weight of the key frame in `interp` "fixed"."""
EPS = 1e-8
"""Of Eq. (5)."""
NEAR_ZERO = 1e-4
"""Distance that the logarithms of Eq. (12) keep from 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class TFCConfig(ModelConfig):
    """Options of TFC."""

    width: int = 256
    """D, channels of the decoder and the attention."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifier."""
    interval: int = 4
    """I, frames from one key frame to the next, in a stream."""
    train_interval: int = 4
    """Frames of a training clip, of which the first is the key frame."""
    corr_level: Literal[2, 1] = 2
    """Stage whose features are correlated."""
    interp: Literal["cosine", "hard", "fixed", "off"] = "cosine"
    """Weight of the key frame in each point: the correlation, 1 or 0 by its threshold 0.8, 0.9, or 0."""
    msda: Literal["sparse", "dense", "off"] = "sparse"
    """Refine the points that do not correlate; "dense" computes all points and keeps the same ones."""
    theta: float = 0.8
    """Points that correlate less are refined; .inf takes all."""
    force_fraction: float | None = None
    """Share of an image's points to refine, those that correlate least, whatever `theta` says; null for `theta`."""
    msda_value_proj: bool = False
    """One more linear map on the values of the attention."""
    align: Literal["reuse", "flow"] = "reuse"
    """Take the key frame's stages 3 and 4 where they are, or moved along the optical flow."""
    flow: Literal["dis", "raft"] = "dis"
    """Estimator of that flow; RAFT needs torchvision and its weights."""
    bce: bool = True
    """Add the correlation term, wherever the correlation is used."""


class TFCState(NamedTuple):
    """What the next frame needs of the key frame; what this model does not use is empty."""

    deep: tuple[Tensor, ...]
    """Share of stages 3 and 4 in the fuse convolution [B, D, h_1, w_1], then v^3 and v^4 for the attention; or, to be
    moved along the flow, x^3 and x^4 themselves."""
    direction: tuple[Tensor, ...]
    """x^^ of `corr_level` over its length, float32 [B, D, h_1, w_1]."""
    logits: tuple[Tensor, ...]
    """Scores [B, K, h_1, w_1]."""
    image: tuple[Tensor, ...]
    """The key frame uint8 [B, 3, H, W], to estimate the flow from."""
    age: int
    """Frames since the key frame."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""


class TFC(VideoSegmenter):
    """SegFormer on key frames; between them two stages, correlation, sparse attention and mixing."""

    Config = TFCConfig
    config: TFCConfig
    needs_dense_labels = True

    def __init__(self, config: TFCConfig, num_classes: int) -> None:
        _check(config)
        super().__init__(config, num_classes, cuts=("stage2",))
        self.decoder = SegFormerDecoder(self.backbone.channels, config.width, num_classes, dropout=config.dropout)
        self.has_attention = config.msda != "off"
        self.has_correlation = self.has_attention or config.interp in ("cosine", "hard")
        if self.has_attention:
            self.attention = SparseAttention(config.width, value_proj=config.msda_value_proj)
        if config.align == "flow":
            shared_flow(config.flow)  # what it needs and lacks is said now, not in the middle of a video

    @classmethod
    def adopt(cls, options: Mapping[str, Any]) -> TFCConfig:
        """Take all options, and leave out the attention, whose weights a SegFormer lacks; see VideoSegmenter.adopt."""
        return TFCConfig(**options, interp="cosine", msda="off")

    @property
    def offsets(self) -> tuple[int, ...]:
        """The last `train_interval` frames: (-3, -2, -1, 0)."""
        return tuple(range(1 - self.config.train_interval, 1))

    @property
    def period(self) -> int:
        """The key interval."""
        return self.config.interval

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce", the mean over all frames, and "correlation" of Eq. (12); both 0 without labels.

        The first frame is the key frame of all others. A clip of one frame has no "correlation".
        """
        labels = clip.labels.transpose(0, 1)  # [T, B, H, W]
        logits, correlation = self.segment_clip(clip.frames)
        each = [cross_entropy(*pair, self.class_weights) for pair in zip(logits, labels, strict=True)]
        terms = {"ce": torch.stack(each).mean()}  # L_seg of Eq. (12)
        if correlation is not None and self.config.bce:
            terms["correlation"] = correlation_loss(correlation, labels)
        return terms

    def segment_clip(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Segment one interval, its frames in as few batches as there are stretches of the network.

        Args:
            frames: uint8 [B, T, 3, H, W], the key frame first.

        Returns:
            logits [T, B, K, h_1, w_1], and w float32 [T - 1, B, 1, h_1, w_1], None where no frame has or uses it.
        """
        batch, count = frames.shape[:2]
        stacked = frames.transpose(0, 1).flatten(0, 1)  # [T * B, 3, H, W], the key frames first
        stages = self.backbone(self.normalize(stacked), stop="stage2")
        size = (stages["stage1"].shape[2], stages["stage1"].shape[3])
        deep = self.clip_deep(frames, self.backbone(stages["stage2"][:batch], start="stage2"), size)
        fused = self.decoder.features(stages, kept=deep[0])  # [T * B, D, h_1, w_1]
        if count == 1:
            return self.classify(fused).unflatten(0, (1, batch)), None
        key, now = fused[:batch], fused[batch:]
        projected = correlation = None
        if self.has_correlation:
            every = self.project(stages, self.config.corr_level)  # [T * B, D, h_l, w_l]
            projected = every[batch:]
            direction = to_direction(resize(every[:batch], size)).repeat(count - 1, 1, 1, 1)
            correlation = correlate(direction, resize(projected, size))  # [(T - 1) * B, 1, h_1, w_1]
        after = {name: x[batch:] for name, x in stages.items()}
        moved = tuple(x[batch:] for x in deep[1:])
        now = self.refine(now, after, deep=moved, projected=projected, correlation=correlation)
        mixed = torch.cat((key, self.mix(now, key.repeat(count - 1, 1, 1, 1), correlation)))  # [T * B, D, h_1, w_1]
        logits = self.classify(mixed).unflatten(0, (count, batch))  # [T, B, K, h_1, w_1]
        return logits, None if correlation is None else correlation.unflatten(0, (count - 1, batch))

    def clip_deep(self, frames: Tensor, key: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """frames uint8 [B, T, 3, H, W], stages 3 and 4 of the first -> `deep` of all frames, each [T * B, ...]."""
        image, *others = frames.unbind(1)
        if self.config.align == "reuse":
            return tuple(x.repeat(len(others) + 1, 1, 1, 1) for x in self.deep(key, size))
        flows = [displacement(self.config.flow, frame, image) for frame in others]
        moved = {name: torch.cat((x, *(warp(x, flow) for flow in flows))) for name, x in key.items()}
        return self.deep(moved, size)

    def deep(self, stages: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Stages 3 and 4 -> their share in the fuse convolution [B, D, h_1, w_1], and v^3, v^4 for the attention."""
        share = self.decoder.partial({name: stages[name] for name in ("stage3", "stage4")}, size)
        return (share, *(self.project(stages, level) for level in (3, 4))) if self.has_attention else (share,)

    def project(self, stages: dict[str, Tensor], level: int) -> Tensor:
        """Stages -> v^l, the decoder's linear map of a level at its own size, [B, D, h_l, w_l]."""
        return self.decoder.project(stages, level, (stages[f"stage{level}"].shape[2], stages[f"stage{level}"].shape[3]))

    def classify(self, fused: Tensor) -> Tensor:
        """Fused [B, D, h_1, w_1] -> logits [B, K, h_1, w_1]."""
        classifier = self.decoder.linear_pred
        return classify(self.decoder.dropout(fused), classifier.weight[:, :, 0, 0], classifier.bias)

    def refine(
        self,
        fused: Tensor,
        stages: dict[str, Tensor],
        *,
        deep: tuple[Tensor, ...],
        projected: Tensor | None,
        correlation: Tensor | None,
    ) -> Tensor:
        """Refine the points of Omega, where the attention is on.

        Args:
            fused: z_t [B, D, h_1, w_1].
            stages: stages 1 and 2 of the same frames.
            deep: v^3 and v^4 of their key frames.
            projected: v^l of `corr_level`.
            correlation: w float32 [B, 1, h_1, w_1].

        Returns:
            z_t [B, D, h_1, w_1].
        """
        if not self.has_attention:
            return fused
        assert projected is not None and correlation is not None
        other = self.project(stages, 3 - self.config.corr_level)
        values = (other, projected, *deep) if self.config.corr_level == 2 else (projected, other, *deep)  # Eq. (10)
        dense = self.config.msda == "dense" or sizes_are_fixed()
        return self.attention(fused, values, self.select(correlation), dense=dense)

    def select(self, correlation: Tensor) -> Tensor:
        """w [B, 1, h_1, w_1] -> Omega, bool [B, N] (Eq. (8)); no gradient."""
        flat = correlation.detach().flatten(1)  # [B, N]
        if self.config.force_fraction is None:
            return flat < self.config.theta
        count = round(self.config.force_fraction * flat.shape[1])
        least = flat.topk(count, dim=1, largest=False).indices  # [B, count]
        return torch.zeros_like(flat, dtype=torch.bool).scatter(1, least, True)

    def mix(self, now: Tensor, key: Tensor, correlation: Tensor | None) -> Tensor:
        """Two maps [B, C, h_1, w_1] and w [B, 1, h_1, w_1] -> w^ key + (1 - w^) now (Eq. (7))."""
        if self.config.interp == "off":
            return now
        if self.config.interp == "fixed":
            return torch.lerp(now, key, FIXED)
        assert correlation is not None
        weight = correlation.clamp(0, 1) if self.config.interp == "cosine" else (correlation >= HARD)  # Eq. (6)
        return torch.lerp(now, key, weight.to(now.dtype))

    @property
    def kept(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Names of what a key frame leaves: `deep`, `direction` and `logits` of the state."""
        deep = ("share", "value3", "value4") if self.has_attention else ("share",)
        return (
            ("stage3", "stage4") if self.config.align == "flow" else deep,
            ("direction",) if self.has_correlation else (),
            () if self.config.interp == "off" else ("key_logits",),
        )

    def key(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Key frame uint8 [B, 3, H, W] -> logits [B, K, h_1, w_1] and what it leaves, as in `kept`; see TFCState."""
        stages = self.backbone(self.normalize(frame))
        size = (stages["stage1"].shape[2], stages["stage1"].shape[3])
        deep = self.deep(stages, size)
        shallow = {name: stages[name] for name in ("stage1", "stage2")}
        logits = self.classify(self.decoder.features(shallow, kept=deep[0]))  # Eqs. (1) to (3)
        left = (stages["stage3"], stages["stage4"]) if self.config.align == "flow" else deep
        if self.has_correlation:
            left = (*left, to_direction(resize(self.project(stages, self.config.corr_level), size)))
        return (logits, *left) if self.config.interp == "off" else (logits, *left, logits)

    def between(self, frame: Tensor, *tensors: Tensor) -> Tensor:
        """Segment a frame that is not a key frame.

        Args:
            frame: uint8 [B, 3, H, W].
            tensors: what the key frame left, as in `kept`; then, where the features are moved, the displacement to the
                key frame, float32 [B, 2, H, W].

        Returns:
            logits [B, K, h_1, w_1].
        """
        (deep, direction, before), flow = self.group(tensors)
        stages = self.backbone(self.normalize(frame), stop="stage2")
        size = (stages["stage1"].shape[2], stages["stage1"].shape[3])
        if flow:
            moved = (warp(x, *flow) for x in deep)
            deep = self.deep(dict(zip(("stage3", "stage4"), moved, strict=True)), size)
        fused = self.decoder.features(stages, kept=deep[0])  # Eq. (4)
        projected = correlation = None
        if self.has_correlation:
            projected = self.project(stages, self.config.corr_level)
            correlation = correlate(direction[0], resize(projected, size))
        fused = self.refine(
            fused, stages, deep=deep[1:], projected=projected, correlation=correlation
        )  # Eqs. (8) to (11)
        logits = self.classify(fused)
        return self.mix(logits, before[0], correlation) if before else logits

    def group(self, tensors: Sequence[Tensor]) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """Split what `key` returns after the logits into the groups of `kept`, and what follows them."""
        rest = iter(tensors)
        return [tuple(next(rest) for _ in names) for names in self.kept], tuple(rest)

    def step(self, frame: Tensor, state: TFCState | None = None) -> tuple[Tensor, TFCState]:
        """Segment the next frame; see VideoSegmenter.step. Frames 0, interval, 2 interval, ... are key frames."""
        size = check_same(frame, None if state is None else state.size)
        moves = self.config.align == "flow"
        if state is None or state.age + 1 >= self.config.interval:
            logits, *left = self.compute("key", self.key, frame)
            (deep, direction, before), _ = self.group(left)
            image = (frame.clone(),) if moves else ()  # a caller may reuse its frame
            return logits, TFCState(deep, direction, before, image, 0, size)
        flow = (displacement(self.config.flow, frame, *state.image),) if moves else ()  # an estimator is no graph
        left = [*state.deep, *state.direction, *state.logits]
        (logits,) = self.compute("between", self.between, frame, *left, *flow)
        return logits, state._replace(age=state.age + 1)

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "key" (frame -> logits, kept tensors) and "between" (frame, kept tensors[, flow] -> logits).

        The kept tensors are those of the state, in its order; the flow is an input, as an estimator is no graph. How
        many points the attention refines depends on the video, unless `msda` is "dense".
        """
        with torch.no_grad():
            _, *left = self.key(frame)
        names = [name for group in self.kept for name in group]
        inputs = dict(zip(names, left, strict=True))
        if self.config.align == "flow":
            inputs["flow"] = torch.ones(frame.shape[0], 2, *frame.shape[2:], device=frame.device)  # [B, 2, H, W]
        return {
            "key": Graph(self.key, {"frame": frame}, ("logits", *names)),
            "between": Graph(lambda *x: (self.between(*x),), {"frame": frame, **inputs}, ("logits",)),
        }


# ---- correlation, Eqs. (5), (6) and (12) ---------------------------------------------------------------------------


def to_direction(x: Tensor) -> Tensor:
    """[B, D, h, w] -> the same over its length in each point, float32 [B, D, h, w]."""
    x = x.float()
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)


def correlate(direction: Tensor, now: Tensor) -> Tensor:
    """Cosine in each point (Eq. (5)).

    Args:
        direction: float32 [B, D, h, w] of the key frame, of length 1.
        now: [B, D, h, w] of the frame.

    Returns:
        float32 [B, 1, h, w], -1..1.
    """
    now = now.float()
    return (direction * now).sum(1, keepdim=True) / (torch.linalg.vector_norm(now, dim=1, keepdim=True) + EPS)


def correlation_loss(correlation: Tensor, labels: Tensor) -> Tensor:
    """Teach the correlation whether the label has changed: focal cross-entropy with gamma = 1 (Eq. (12)).

    Args:
        correlation: w float32 [T - 1, B, 1, h, w] of all frames but the first.
        labels: uint8 [T, B, H, W].

    Returns:
        Scalar: the mean over frames of the mean over the points that are labelled in both; 0 where there is none.
    """
    small = F.interpolate(labels.float(), size=correlation.shape[3:], mode="nearest")  # [T, B, h, w]
    key, now = small[:1], small[1:]
    same, known = key == now, (key != IGNORE) & (now != IGNORE)  # [T - 1, B, h, w]
    w = correlation[:, :, 0]  # [T - 1, B, h, w]
    w = torch.where(w < 0, w - w.detach(), w.clamp(max=1))  # below 0 it is 0 and lets the gradient pass
    safe = w.clamp(NEAR_ZERO, 1 - NEAR_ZERO)
    focal = torch.where(same, -(1 - w) * safe.log(), -w * (1 - safe).log())  # [T - 1, B, h, w]
    return ((focal * known).sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)).mean()


# ---- sparse multi-scale deformable attention, Eqs. (8) to (11) -----------------------------------------------------


class SparseAttention(nn.Module):
    """An encoder layer of Deformable DETR on chosen points: attention, then a feed-forward network, both post-norm."""

    def __init__(self, width: int, *, value_proj: bool = False) -> None:
        super().__init__()
        self.offsets = nn.Linear(width, 2 * LEVELS * HEADS * POINTS)
        self.weights = nn.Linear(width, HEADS * LEVELS * POINTS)
        self.value = nn.Linear(width, width) if value_proj else nn.Identity()
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width)
        for layer in (self.value, self.output, self.hidden, self.narrow):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        with torch.no_grad():  # each head looks its own way, each point one step further
            angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
            way = torch.stack((angle.cos(), angle.sin()))  # [2, M]
            way = way / way.abs().amax(0)
            steps = way[:, None, :, None] * torch.arange(1, POINTS + 1)  # [2, 1, M, P]
            self.offsets.bias.copy_(steps.expand(-1, LEVELS, -1, -1).flatten())  # [2 * L * M * P]

    def forward(self, fused: Tensor, values: Sequence[Tensor], mask: Tensor, *, dense: bool) -> Tensor:
        """Refine the points of a mask.

        Args:
            fused: z_t [B, D, h_1, w_1].
            values: v^1..v^4, each [B, D, h_l, w_l].
            mask: bool [B, N], the points to refine.
            dense: compute all points, and keep those of the mask.

        Returns:
            z_t [B, D, h_1, w_1].
        """
        size = (fused.shape[2], fused.shape[3])
        tokens = to_tokens(fused)  # [B, N, D]
        batch, count, _ = tokens.shape
        rows = tokens.flatten(0, 1)  # [B * N, D]
        if dense:
            every = torch.arange(batch * count, device=fused.device)
            refined = self.update(rows, values, every, size)
            return to_map(torch.where(mask[..., None], refined.unflatten(0, (batch, count)), tokens), size)
        chosen = mask.flatten().nonzero()[:, 0]  # [Q]
        refined = self.update(rows[chosen], values, chosen, size)
        return to_map(rows.index_copy(0, chosen, refined).unflatten(0, (batch, count)), size)

    def update(self, queries: Tensor, values: Sequence[Tensor], chosen: Tensor, size: tuple[int, int]) -> Tensor:
        """Refine some points.

        Args:
            queries: float [Q, D].
            values: as in `forward`.
            chosen: int64 [Q] in 0..B * N - 1, which point of which image each query is.
            size: (h_1, w_1).

        Returns:
            float [Q, D], of the type of `queries`.
        """
        sizes = [(value.shape[2], value.shape[3]) for value in values]
        tokens = [self.value(to_tokens(value)) for value in values]  # each [B, N_l, D]
        offsets = self.offsets(queries).unflatten(1, (2, LEVELS, HEADS * POINTS))  # [Q, 2, L, M * P]
        offsets = offsets.permute(1, 2, 0, 3).float().contiguous().unflatten(3, (HEADS, POINTS))  # [2, L, Q, M, P]
        weights = self.weights(queries).unflatten(1, (HEADS, -1)).float().softmax(-1)  # [Q, M, L * P]
        weights = weights.unflatten(2, (LEVELS, POINTS)).permute(2, 0, 1, 3).contiguous()  # [L, Q, M, P]
        read = attend(offsets, weights, chosen, *tokens, size, sizes)  # Eq. (9)
        x = self.norm1(queries + self.output(read))
        return self.norm2(x + self.narrow(torch.relu_(self.hidden(x)))).to(queries.dtype)


def _check(config: TFCConfig) -> None:
    share = config.force_fraction
    step = 1 if config.msda == "off" else HEADS
    check_options(
        config,
        ("width", config.width > 0 and config.width % step == 0, f"a positive multiple of {step}"),
        ("interval", config.interval >= 1, "at least 1"),
        ("train_interval", config.train_interval >= 1, "at least 1"),
        ("corr_level", config.corr_level in (1, 2), "1 or 2"),
        ("interp", config.interp in ("cosine", "hard", "fixed", "off"), "cosine, hard, fixed or off"),
        ("msda", config.msda in ("sparse", "dense", "off"), "sparse, dense or off"),
        ("theta", not math.isnan(config.theta), "a number"),
        ("force_fraction", share is None or 0 <= share <= 1, "0..1, or null for theta"),
        ("align", config.align in ("reuse", "flow"), "reuse or flow"),
        ("flow", config.flow in ("dis", "raft"), "dis or raft"),
    )


METHOD = TFC
