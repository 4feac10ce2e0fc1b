"""SD-CPC: static-dynamic class-level perception consistency.

"Static-Dynamic Class-level Perception Consistency in Video Semantic Segmentation", 2024, https://arxiv.org/abs/2412.08034

| paper | here | shape |
| --- | --- | --- |
| T = {0, -3, -6} | distances (3, 6), `offsets` | frames before the current one |
| F_i^t | stages["stage i"] | [B, C_i, h_i, w_i] |
| S^t | feature, state.features | [B, C, h, w], C = 256 at stride 8 |
| A^t (S^t after reading S^{t-3}) | aligned, state.aligned | [B, C, h, w] |
| G^t | the result of DSSA | [B, C, h, w] |
| N | dssa.points | 4, 9 or 16 points a pixel and reference |
| K (variates) | mcp.variates | 4 |
| V | variates | [B, V, d, h, w], d = 64 |
| P_{k,c} | prototypes | [P, V, d], P classes present |
| M | mask | [B, h, w] correct pixels |
| tau, alpha, beta | mcp.temperature, mcp.contrast_weight, mcp.similarity_weight | 0.1 each |

The paper leaves much open and its code is not public; the choices here follow its parameter and cost tables:
working width 256 at stride 8, one 1x1 fusion convolution, linear attention at stride 16 with 8 heads and no output
map, deformable convolution with 8 groups, offset networks of width C/2, weights shared over references and separate
per stage, one linear map each for Q, K and V after a LayerNorm, joint decision as the mean of the variates' logits.
The order of the references is progressive (t-6 is read through t-3) as its text on receptive fields says; `direct`
is the other reading. The loss is on the target frame alone, as in Eq. (7). Where older frames of a clip are labelled
too, `aux_ref_ce` = 0.5 gives more.

What data say of that, on CamVid after 300 steps, by seed (0; 1), where two seeds may be 2 points of mIoU and 1 of mVC8
apart (the ablation in docs/results.md): "direct" -0.3; +0.4 mIoU, +0.3; +0.2 mVC8; both losses of MCP-CL at the
paper's weights and temperature -0.2; 0.0 mIoU, +0.3; +0.3 mVC8; labels on older frames +0.1; -0.4 mIoU, +0.7; +0.1
mVC8; all of DSSA -0.1; -0.2 mIoU, +1.8; +1.9 mVC8; stride 4, seed 1 only, +0.5 mIoU, 0.0 mVC8.

Computed differently, with the same result:
- A 1x1 map commutes with a bilinear resize: levels are fused at their own size where that is smaller.
- Sampling commutes with affine maps: DSSA samples the normalised reference once and applies the key map to the
  query and the value map to the result (ops/selective_attention.py).
- The convolution over interleaved rows is split into a query part, shared by both steps of the progressive order,
  and a reference part, kept in the state in the direct order, where each is read twice. In the progressive order
  each reference part is read once, so keeping it would only cost memory; the same holds for keys and values.
- The mean of the variates' classifiers is one linear map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.layers import (
    ConvNorm,
    DeformableConv,
    Folding,
    apply_norm,
    classify,
    pointwise,
    resize,
    to_map,
    to_tokens,
)
from steadyseg.losses import class_prototypes, cross_entropy, draw, prototype_contrast, variate_similarity
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same
from steadyseg.ops.layer_norm import layer_norm
from steadyseg.ops.outer_products import outer_products
from steadyseg.ops.sample import place
from steadyseg.ops.selective_attention import selective_attention, selective_attention_reference
from steadyseg.types import IGNORE, Clip

EPS = 1e-6
"""Of every LayerNorm here."""
LEVELS = [levels for count in (1, 2, 3, 4) for levels in combinations((1, 2, 3, 4), count)]
"""What `ssea.levels` may be."""


@dataclass(frozen=True, kw_only=True)
class SSEAConfig:
    """Static semantic efficient aggregation."""

    la: bool = True
    """Linear attention."""
    dcn: bool = True
    """Deformable convolution."""
    levels: tuple[int, ...] = (1, 2, 3, 4)
    """Backbone stages that are fused; (4,) is the paper's row "w/o Multi-Scale"."""


@dataclass(frozen=True, kw_only=True)
class DSSAConfig:
    """Dynamic semantic selective aggregation."""

    stages: tuple[int, ...] = (1, 2)
    """Which of the coarse (1) and fine (2) stage to run; () is the row "w/o DSSA"."""
    points: int = 4
    """N, points read per pixel and reference: 4, 9 or 16."""
    order: Literal["progressive", "direct"] = "progressive"
    """Whether t-6 is read through t-3, or both are read straight."""
    interleave: Literal["rows", "columns"] = "rows"
    """Axis along which stage 1 interleaves query and reference."""


@dataclass(frozen=True, kw_only=True)
class MCPConfig:
    """Multivariate class prototypes with contrastive learning (training only, but for the head's variates)."""

    losses: bool = True
    """Add the contrastive and the similarity term."""
    variates: int = 4
    """K of the paper."""
    width: int = 64
    """Channels of one variate."""
    temperature: float = 0.1
    """tau."""
    contrast_weight: float = 0.1
    """alpha of Eq. (7)."""
    similarity_weight: float = 0.1
    """beta of Eq. (7)."""
    query_cap: int | None = None
    """At most this many query pixels an image in the contrastive term, drawn uniformly; None takes all."""


@dataclass(frozen=True, kw_only=True)
class SDCPCConfig(ModelConfig):
    """Options of SD-CPC."""

    width: int = 256
    """C, channels of the working map."""
    stride: Literal[8, 4] = 8
    """Stride of the working map."""
    dropout: float = 0.1
    """Channel-wise dropout of the variates before the classifiers."""
    aux_ref_ce: float = 0.0
    """Weight of a cross-entropy on the labelled reference frames, read straight from SSEA."""
    ssea: SSEAConfig = field(default_factory=SSEAConfig)
    dssa: DSSAConfig = field(default_factory=DSSAConfig)
    mcp: MCPConfig = field(default_factory=MCPConfig)


class SDCPCState(NamedTuple):
    """What the next frame needs; the current frame's entry is last."""

    features: tuple[Tensor, ...]
    """S of the last six frames (fewer at the start of a video), each [B, C, h, w]."""
    aligned: tuple[Tensor, ...]
    """Progressive order: A of the last three frames, each [B, C, h, w]; else empty."""
    parts: tuple[Tensor, ...]
    """Direct order: reference part of stage 1's offset convolution of the last six frames, each [B, C, h, w]."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""


class SDCPC(VideoSegmenter):
    """SSEA on every frame, DSSA from the frames at distance 3 and 6, a multivariate head."""

    Config = SDCPCConfig
    config: SDCPCConfig

    def __init__(self, config: SDCPCConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        _check(config)
        self.ssea = SSEA(config, self.backbone.channels)
        self.dssa = DSSA(config)
        self.head = VariateHead(config, num_classes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """(-6, -3, 0)."""
        return (-6, -3, 0)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce", "contrast" and "similarity" of Eq. (7), and "reference_ce" where `aux_ref_ce` is set.

        Frames before the target are taken as t-6 and t-3; in shorter clips the first frame is repeated.
        """
        features = self.encode_clip(clip.frames)
        variates = self.head.variates(self.aggregate(features))
        logits = self.head.classify(variates)
        labels = clip.labels[:, -1]
        terms = {"ce": cross_entropy(logits, labels, self.class_weights)}
        if self.config.mcp.losses:
            terms |= self.prototype_terms(variates, logits, labels)
        if self.config.aux_ref_ce and len(features) > 1:
            before = self.head(torch.cat(features[:-1]))  # [(T-1) * B, K, h, w]
            known = clip.labels[:, :-1].transpose(0, 1).flatten(0, 1)  # [(T-1) * B, H, W]
            terms["reference_ce"] = self.config.aux_ref_ce * cross_entropy(before, known, self.class_weights)
        return terms

    def clip_logits(self, frames: Tensor) -> Tensor:
        """frames uint8 [B, T, 3, H, W] at t-6, t-3, t (fewer: the first is repeated) -> logits [B, K, h, w]."""
        return self.head(self.aggregate(self.encode_clip(frames)))

    def encode_clip(self, frames: Tensor) -> tuple[Tensor, ...]:
        """frames uint8 [B, T, 3, H, W] -> T maps S, each [B, C, h, w]; all frames in one batch."""
        count = frames.shape[1]
        stacked = frames.transpose(0, 1).flatten(0, 1)  # [T * B, 3, H, W]
        return self.feature(stacked).chunk(count)

    def feature(self, frame: Tensor) -> Tensor:
        """frame uint8 [B, 3, H, W] -> S [B, C, h, w]."""
        return self.ssea(self.backbone(self.normalize(frame)))

    def aggregate(self, features: tuple[Tensor, ...]) -> Tensor:
        """S of the frames t-6, t-3, t (fewer: the first is repeated) -> G [B, C, h, w]."""
        near, far = features[max(len(features) - 2, 0)], features[max(len(features) - 3, 0)]
        if self.dssa.is_progressive:
            near = self.dssa.align(near, far)
        return self.dssa(features[-1], near, far)

    def prototype_terms(self, variates: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The two terms of MCP-CL, weighted (Eqs. (4) to (7)).

        Args:
            variates: float [B, V, d, h, w].
            logits: float [B, K, h, w].
            labels: uint8 [B, H, W].
        """
        mcp = self.config.mcp
        size = logits.shape[-2:]
        small = F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()  # [B, h, w]
        mask = (logits.detach().argmax(1) == small) & (small != IGNORE)  # [B, h, w]
        with torch.autocast(logits.device.type, enabled=False):
            pixels = variates.float().permute(0, 3, 4, 1, 2).flatten(0, 2)  # [B * N, V, d]
            prototypes, present = class_prototypes(pixels, small.flatten(), mask.flatten(), self.num_classes)
            query = draw(mask.flatten(1), mcp.query_cap).flatten()  # [B * N]
            contrast = prototype_contrast(pixels[query], small.flatten()[query], prototypes, present, mcp.temperature)
            similarity = variate_similarity(prototypes)
        return {"contrast": mcp.contrast_weight * contrast, "similarity": mcp.similarity_weight * similarity}

    def encode(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Compute what depends on one frame alone.

        Args:
            frame: uint8 [B, 3, H, W].

        Returns:
            S [B, C, h, w] and, with stage 1, its part in that stage's offset convolution [B, C, h, w]: as a query in
            the progressive order, as a reference in the direct one.
        """
        feature = self.feature(frame)
        if 1 not in self.config.dssa.stages:
            return (feature,)
        offsets = self.dssa.offsets1
        return feature, offsets.query_part(feature) if self.dssa.is_progressive else offsets.reference_part(feature)

    def decide(self, *maps: Tensor) -> Tensor:
        """The inputs of `DSSA.progressive`, of `DSSA.direct` or, without any stage, S -> logits [B, K, h, w]."""
        if not self.config.dssa.stages:
            return self.head(*maps)
        return self.head(self.dssa.progressive(*maps) if self.dssa.is_progressive else self.dssa.direct(*maps))

    def whole(self, frame: Tensor, near: Tensor, far: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """All of `step` in the progressive order as one function.

        Args:
            frame: uint8 [B, 3, H, W].
            near: S of the frame three before, [B, C, h, w].
            far: S of the frame six before, [B, C, h, w].
            before: A of the frame three before, [B, C, h, w].

        Returns:
            logits [B, K, h, w], S and A.
        """
        feature, part = self.encode(frame)
        return self.decide(feature, before, far, part), feature, self.dssa.align(feature, near, part)

    def step(self, frame: Tensor, state: SDCPCState | None = None) -> tuple[Tensor, SDCPCState]:
        """Segment the next frame with one backbone pass; see VideoSegmenter.step. Logits have the working stride."""
        size = check_same(frame, None if state is None else state.size)
        if self.dssa.is_progressive and self.takes_whole_steps:
            if state is None:  # nothing to refer to, which happens once: not worth a graph
                feature, *part = self.encode(frame)
                moved = self.dssa.align(feature, feature, *part)
                return self.decide(feature, moved, feature, *part), SDCPCState((feature,), (moved,), (), size)
            references = (_before(state.features, 2), _before(state.features, 5), _before(state.aligned, 2))
            logits, feature, moved = self.compute("whole", self.whole, frame, *references)
            return logits, SDCPCState((*state.features[-5:], feature), (*state.aligned[-2:], moved), (), size)
        feature, *part = self.compute("encode", self.encode, frame)
        if not self.config.dssa.stages:
            (logits,) = self.compute("decide", self.decide, feature)
            return logits, SDCPCState((), (), (), size)
        if state is None:
            state = SDCPCState((), (), (), size)
        features = (*state.features, feature)
        near, far = _before(features, 3), _before(features, 6)
        parts, aligned = state.parts, state.aligned
        if self.dssa.is_progressive:
            aligned = (*aligned, *self.compute("align", self.dssa.align, feature, near, *part))
            read = (feature, _before(aligned, 3), far, *part)
        else:
            parts = (*parts, *part)
            read = (feature, near, far, *(_before(parts, distance) for distance in (3, 6) if parts))
        (logits,) = self.compute("decide", self.decide, *read)
        return logits, SDCPCState(features[-6:], aligned[-3:], parts[-6:], size)

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return the parts of `step` on tensors: which maps they read from the state is `step`'s business.

        "encode" (frame -> feature, part); in the progressive order "align" (feature, near, part -> aligned); "decide"
        (feature, aligned, far, part -> logits), in the direct order (feature, near, far, near_part, far_part ->
        logits). Parts are missing without stage 1, references without any stage. Where `takes_whole_steps` there is
        also "whole" (frame, near, far, aligned -> logits, feature, aligned of the frame).
        """
        with torch.no_grad():
            feature, *part = self.encode(frame)
        own = dict.fromkeys(["part"][: len(part)], *part)
        graphs = {"encode": Graph(self.encode, {"frame": frame}, ("feature", *own))}
        if self.dssa.is_progressive:
            inputs = {"feature": feature, "near": feature, **own}
            graphs["align"] = Graph(lambda *maps: (self.dssa.align(*maps),), inputs, ("aligned",))
            references = {"aligned": feature, "far": feature, **own}
        else:
            references = dict.fromkeys(("near", "far"), feature) if self.config.dssa.stages else {}
            references |= {f"{name}_part": map_ for name in ("near", "far") for map_ in part}
        inputs = {"feature": feature, **references}
        graphs["decide"] = Graph(lambda *maps: (self.decide(*maps),), inputs, ("logits",))
        if self.dssa.is_progressive and self.takes_whole_steps:
            inputs = {"frame": frame, **dict.fromkeys(("near", "far", "aligned"), feature)}
            graphs["whole"] = Graph(self.whole, inputs, ("logits", "feature", "new_aligned"))
        return graphs


# ---- SSEA, Eq. (1): static semantic efficient aggregation -----------------------------------------------------------


class SSEA(nn.Module):
    """Multi-scale fusion, linear attention at stride 16, deformable convolution (Eq. (1)); each frame alone."""

    def __init__(self, config: SDCPCConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.fusion = Fusion(config, channels)
        width = config.width
        self.parts = config.ssea
        if config.ssea.la:
            self.norm_attention = nn.LayerNorm(width, eps=EPS)
            self.attention = LinearAttention(width)
        if config.ssea.dcn:
            self.norm_deform = nn.LayerNorm(width, eps=EPS)
            self.deform = DeformableConv(width)

    def forward(self, stages: dict[str, Tensor]) -> Tensor:
        """stages [B, C_i, h_i, w_i] -> S [B, C, h, w]."""
        x = self.fusion(stages)
        size = (x.shape[2], x.shape[3])
        if self.parts.la:
            small = (stages["stage3"].shape[2], stages["stage3"].shape[3])
            tokens = apply_norm(self.norm_attention, to_tokens(resize(x, small)))  # [B, N / 4, C]
            x = x + resize(to_map(self.attention(tokens), small), size)
        if self.parts.dcn:
            x = to_map(to_tokens(x) + self.deform(apply_norm(self.norm_deform, to_tokens(x), rounded=True), size), size)
        return x


class Fusion(Folding):
    """All levels to the working grid, one 1x1 convolution over their concatenation, norm, ReLU; computed per level."""

    def __init__(self, config: SDCPCConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = config.ssea.levels
        self.grid = f"stage{ {4: 1, 8: 2}[config.stride] }"
        self.widths = [channels[level - 1] for level in self.levels]
        self.fuse = ConvNorm(sum(self.widths), config.width)

    def fold(self) -> tuple[Tensor, ...]:
        """Return the bias [C] and one weight [C, C_i] a level; the norm is in both in evaluation."""
        weight, bias = self.fuse.merged()
        return bias, *weight.split(self.widths, dim=1)

    def forward(self, stages: dict[str, Tensor]) -> Tensor:
        """stages [B, C_i, h_i, w_i] -> [B, C, h, w]."""
        size = (stages[self.grid].shape[2], stages[self.grid].shape[3])
        if self.is_plain:
            return self.fuse(torch.cat([resize(stages[f"stage{level}"], size) for level in self.levels], dim=1))
        bias, *weights = self.folded()
        fused = bias[:, None, None]  # [C, 1, 1]
        for level, weight in zip(self.levels, weights, strict=True):
            x = stages[f"stage{level}"]
            if x.shape[2] > size[0]:
                fused = fused + pointwise(resize(x, size), weight)
            else:
                fused = fused + resize(pointwise(x, weight), size)
        return self.fuse.finish(fused)


class LinearAttention(nn.Module):
    """Attention with the feature map elu + 1, whose cost is linear in the number of pixels; 8 heads, no output map."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, C] -> [B, N, C]; the sums run in float32, as their denominator underflows in half precision."""
        q, k, v = self.qkv(tokens).float().unflatten(2, (3, self.heads, -1)).unbind(2)  # each [B, N, heads, d]
        with torch.autocast(tokens.device.type, enabled=False):
            q, k = F.elu(q) + 1, F.elu(k) + 1
            context = outer_products(k, v)  # [B, heads, d, d]
            mass = torch.einsum("bnhd,bhd->bnh", q, k.sum(1)) + EPS
            out = torch.einsum("bnhd,bhde->bnhe", q, context) / mass[..., None]
        return out.flatten(2).to(tokens.dtype)  # [B, N, C]


# ---- DSSA, Eq. (2): dynamic semantic selective aggregation ----------------------------------------------------------


class DSSA(nn.Module):
    """Two passes over two references: coarse offsets from interleaving, fine ones from subtraction."""

    def __init__(self, config: SDCPCConfig) -> None:
        super().__init__()
        width, points = config.width, config.dssa.points
        self.stages = config.dssa.stages
        self.is_progressive = config.dssa.order == "progressive" and 1 in self.stages
        if 1 in self.stages:
            self.offsets1 = InterleavedOffsets(width, points, config.dssa.interleave)
            self.stage1 = SelectiveStep(width)
        if 2 in self.stages:
            self.offsets2 = DifferenceOffsets(width, points)
            self.stage2 = SelectiveStep(width)

    def forward(self, feature: Tensor, *references: Tensor) -> Tensor:
        """S^t and its references, each [B, C, h, w] -> G^t.

        The references are (A^{t-3}, S^{t-6}) in the progressive order, (S^{t-3}, S^{t-6}) in the direct one; without
        any stage they are not read.
        """
        if not self.stages:
            return feature
        near, far = references
        return self.progressive(feature, near, far) if self.is_progressive else self.direct(feature, near, far)

    def align(self, feature: Tensor, near: Tensor, part: Tensor | None = None) -> Tensor:
        """Progressive order, first step: A = stage 1 of S [B, C, h, w] reading the S three frames before it.

        `part` is stage 1's query part of `feature`, computed here if None.
        """
        part = self.offsets1.query_part(feature) if part is None else part
        return self.stage1(feature, near, self.offsets1(part, self.offsets1.reference_part(near)))

    def progressive(self, feature: Tensor, aligned: Tensor, far: Tensor, part: Tensor | None = None) -> Tensor:
        """S^t, A^{t-3}, S^{t-6}, each [B, C, h, w] -> G^t; `part` as in `align`."""
        fused = self.align(feature, aligned, part)
        return self.refine(fused, aligned, far)

    def direct(self, feature: Tensor, near: Tensor, far: Tensor, *parts: Tensor) -> Tensor:
        """S^t, S^{t-3}, S^{t-6}, each [B, C, h, w] -> G^t.

        `parts` are stage 1's reference parts of `near` and `far`, computed here if there are none.
        """
        fused = feature
        if 1 in self.stages:
            parts = parts or (self.offsets1.reference_part(near), self.offsets1.reference_part(far))
            for reference, part in zip((near, far), parts, strict=True):
                fused = self.stage1(fused, reference, self.offsets1(self.offsets1.query_part(fused), part))
        return self.refine(fused, near, far)

    def refine(self, fused: Tensor, *references: Tensor) -> Tensor:
        """Stage 2, where it is on: `fused` [B, C, h, w] reads each reference in turn."""
        if 2 in self.stages:
            for reference in references:
                fused = self.stage2(fused, reference, self.offsets2(fused, reference))
        return fused


class SelectiveStep(Folding):
    """One selective cross-attention step (Eq. (2)): every pixel reads N positions of a reference map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width, eps=EPS)
        self.norm_reference = nn.LayerNorm(width, eps=EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def fold(self) -> tuple[Tensor, ...]:
        """Return the query map (with the key map inside) and the value map on plainly normalised maps.

        The key's bias adds the same score to all points of a pixel, so the soft-max does not see it; the zero term
        below keeps it in the graph of gradients, where its exact gradient is zero.
        """
        gain_q, shift_q = self.norm_query.weight, self.norm_query.bias
        gain_r, shift_r = self.norm_reference.weight, self.norm_reference.bias
        key = (self.key.weight * gain_r).T  # [C, C]
        query_weight = key @ (self.query.weight * gain_q)
        query_bias = key @ (self.query.weight @ shift_q + self.query.bias) + 0.0 * self.key.bias
        value_weight = self.value.weight * gain_r
        value_bias = self.value.weight @ shift_r + self.value.bias
        return query_weight, query_bias, value_weight, value_bias

    def forward(self, query: Tensor, reference: Tensor, points: Tensor) -> Tensor:
        """query and reference [B, C, h, w], points [B, N, P, 2] (x, y) in pixels -> query + what it read."""
        size = (query.shape[2], query.shape[3])
        if self.is_plain:
            q, r = self.norm_query(to_tokens(query)), self.norm_reference(to_tokens(reference))  # [B, N, C]
            read = selective_attention_reference(self.query(q), self.key(r), self.value(r), points, size)
            return query + to_map(read, size)
        query_weight, query_bias, value_weight, value_bias = self.folded()
        q = F.linear(layer_norm(to_tokens(query), None, None, EPS, rounded=True), query_weight, query_bias)  # [B, N, C]
        source = layer_norm(to_tokens(reference), None, None, EPS, rounded=True)  # [B, N, C]
        read = selective_attention(q, source, points, size)  # [B, N, C]
        return to_map(to_tokens(query) + F.linear(read, value_weight, value_bias), size)


class Offsets(nn.Module):
    """The end of both offset networks: hidden maps to absolute points."""

    base: Tensor

    def __init__(self, width: int, points: int) -> None:
        super().__init__()
        self.points = points
        self.hidden = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width // 2)
        self.output = nn.Conv2d(width // 2, 2 * points, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)
        side = round(points**0.5)
        axis = torch.arange(side) - (side - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("base", torch.stack((x, y), dim=-1).flatten(0, 1), persistent=False)  # [P, 2]

    def place(self, offset: Tensor) -> Tensor:
        """offset [B, 2P, h, w] -> points float32 [B, N, P, 2]: own position + s x s base grid + offset."""
        moved = to_tokens(offset).float().unflatten(2, (self.points, 2))  # [B, N, P, 2]
        return place(self.base + moved, (offset.shape[2], offset.shape[3]))


class InterleavedOffsets(Offsets, Folding):
    """Stage 1 of DSSA: convolutions over the rows of query and reference in turn, the second with stride 2.

    Row 2r of the interleaved map is query row r, row 2r + 1 is reference row r. A 3x3 convolution there is a sum of
    convolutions of the two maps, so the map is never built: `query_part` and `reference_part` hold the sums for even
    and odd rows side by side. In evaluation the norm is in their weights, and the second convolution reads even and
    odd rows as channels.
    """

    def __init__(self, width: int, points: int, axis: Literal["rows", "columns"]) -> None:
        super().__init__(width, points)
        self.transposed = axis == "columns"

    def rows(self, x: Tensor) -> Tensor:
        """Swap rows and columns of a map or a kernel where columns are interleaved; else do nothing."""
        return x.transpose(2, 3) if self.transposed else x

    def fold(self) -> tuple[Tensor, ...]:
        """Return the normed kernel [C/2, C, 3, 3], its shift of even and odd rows [C], the output's [2P, C, 2, 3]."""
        norm = self.norm
        assert norm.running_var is not None and norm.running_mean is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()  # [C/2]
        shift = norm.bias - norm.running_mean * gain
        output = self.rows(self.output.weight)  # [2P, C/2, 3, 3]
        even = F.pad(output[:, :, 1:2], (0, 0, 1, 0))  # [2P, C/2, 2, 3], of rows r - 1 and r
        return self.hidden.weight * gain[:, None, None, None], shift.repeat(2), torch.cat((even, output[:, :, ::2]), 1)

    @property
    def kernel(self) -> Tensor:
        """The first convolution's kernel [C/2, C, 3, 3], along rows; with the norm in it in evaluation."""
        return self.rows(self.hidden.weight if self.is_split else self.folded()[0])

    @property
    def is_split(self) -> bool:
        """Whether the norm is a step of its own, as in training, where it needs the rows' statistics."""
        return self.is_plain or self.training

    def query_part(self, query: Tensor) -> Tensor:
        """query [B, C, h, w] -> its share of even and odd rows, [B, C, h, w]."""
        kernel, query = self.kernel, self.rows(query)
        even = F.conv2d(query, kernel[:, :, 1:2], padding=(0, 1))  # row 2r holds query row r
        odd = F.conv2d(F.pad(query, (1, 1, 0, 1)), kernel[:, :, ::2])  # row 2r + 1 lies between query rows r, r + 1
        return torch.cat((even, odd), dim=1)

    def reference_part(self, reference: Tensor) -> Tensor:
        """reference [B, C, h, w] -> its share of even and odd rows, [B, C, h, w]."""
        kernel, reference = self.kernel, self.rows(reference)
        even = F.conv2d(F.pad(reference, (1, 1, 1, 0)), kernel[:, :, ::2])  # row 2r lies between reference rows r-1, r
        odd = F.conv2d(reference, kernel[:, :, 1:2], padding=(0, 1))
        return torch.cat((even, odd), dim=1)

    def forward(self, query_part: Tensor, reference_part: Tensor) -> Tensor:
        """Both parts [B, C, h, w] -> points [B, N, P, 2]."""
        total = query_part + reference_part  # [B, C, h, w]
        if not self.is_split:
            _, shift, output = self.folded()
            hidden = torch.relu(total + shift[:, None, None])
            return self.place(self.rows(F.conv2d(F.pad(hidden, (1, 1, 1, 0)), output, self.output.bias)))
        even, odd = total.chunk(2, dim=1)  # each [B, C/2, h, w]
        rows = torch.stack((even, odd), dim=3).flatten(2, 3)  # [B, C/2, 2h, w]
        even, odd = torch.relu(self.norm(rows)).unflatten(2, (-1, 2)).unbind(3)  # each [B, C/2, h, w]
        kernel = self.rows(self.output.weight)  # [2P, C/2, 3, 3]
        offset = F.conv2d(even, kernel[:, :, 1:2], self.output.bias, padding=(0, 1))
        offset = offset + F.conv2d(F.pad(odd, (1, 1, 1, 0)), kernel[:, :, ::2])  # [B, 2P, h, w]
        return self.place(self.rows(offset))


class DifferenceOffsets(Offsets):
    """Stage 2 of DSSA: convolutions over query minus reference."""

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        """query and reference [B, C, h, w] -> points [B, N, P, 2]."""
        return self.place(self.output(torch.relu(self.norm(self.hidden(query - reference)))))


# ---- MCP-CL, Eqs. (3) to (7): multivariate class prototypes ---------------------------------------------------------


class VariateHead(Folding):
    """Several variates a pixel, an independent classifier each, and the mean of their logits as joint decision."""

    def __init__(self, config: SDCPCConfig, num_classes: int) -> None:
        super().__init__()
        self.count, self.width = config.mcp.variates, config.mcp.width
        self.project = ConvNorm(config.width, self.count * self.width)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifiers = nn.Conv2d(self.count * self.width, self.count * num_classes, 1, groups=self.count)

    def fold(self) -> tuple[Tensor, ...]:
        """Return weight and bias of the projection (with the norm in evaluation) and of the mean classifier."""
        weight, bias = self.project.merged()
        each = self.classifiers.weight.unflatten(0, (self.count, -1))[..., 0, 0]  # [V, K, d]
        mean = each.transpose(0, 1).flatten(1) / self.count  # [K, V * d]
        assert self.classifiers.bias is not None
        return weight, bias, mean, self.classifiers.bias.unflatten(0, (self.count, -1)).mean(0)

    def variates(self, fused: Tensor) -> Tensor:
        """G [B, C, h, w] -> V [B, V, d, h, w]."""
        if self.is_plain:
            return self.project(fused).unflatten(1, (self.count, self.width))
        weight, bias, *_ = self.folded()
        return self.project.finish(pointwise(fused, weight, bias)).unflatten(1, (self.count, self.width))

    def classify(self, variates: Tensor) -> Tensor:
        """V [B, V, d, h, w] -> logits [B, K, h, w]."""
        x = self.dropout(variates.flatten(1, 2))  # [B, V * d, h, w]
        if self.is_plain:
            return self.classifiers(x).unflatten(1, (self.count, -1)).mean(1)
        *_, weight, bias = self.folded()
        return classify(x, weight, bias)

    def forward(self, fused: Tensor) -> Tensor:
        """G [B, C, h, w] -> logits [B, K, h, w]."""
        return self.classify(self.variates(fused))


def _before(entries: tuple[Tensor, ...], distance: int) -> Tensor:
    """The entry `distance` frames before the last, or the first frame's where the video is shorter."""
    return entries[max(len(entries) - 1 - distance, 0)]


def _check(config: SDCPCConfig) -> None:
    dssa, ssea, mcp = config.dssa, config.ssea, config.mcp
    groups = 8  # heads of the linear attention, groups of the deformable convolution
    check_options(
        config,
        ("width", config.width > 0 and config.width % groups == 0, f"a positive multiple of {groups}"),
        ("stride", config.stride in (4, 8), "4 or 8"),
        ("dssa.points", dssa.points in (4, 9, 16), "4, 9 or 16"),
        ("dssa.stages", dssa.stages in ((1, 2), (1,), (2,), ()), "[1, 2], [1], [2] or []"),
        ("ssea.levels", ssea.levels in LEVELS, "some of 1, 2, 3, 4, rising"),
        ("mcp.variates", mcp.variates > 0, "at least 1"),
        ("mcp.width", mcp.width > 0, "at least 1"),
        ("mcp.temperature", mcp.temperature > 0, "more than 0"),
        ("mcp.query_cap", mcp.query_cap is None or mcp.query_cap > 0, "at least 1, or null for all"),
    )


METHOD = SDCPC
