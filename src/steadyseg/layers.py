"""Blocks that at least two files use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.ops.layer_norm import is_fused, layer_norm
from steadyseg.ops.sample import grouped_sample, is_exporting, is_for_runtime, place, sample

LARGEST_SCORES = 2**27
"""Elements of an attention matrix that training on the CPU may keep."""
MANY_CLASSES = 64
"""Classes from which on `classify` changes its order; measured on a CPU at 25,680 pixels."""
_PLAIN = ContextVar("plain", default=False)


@contextmanager
def plain_forms() -> Iterator[None]:
    """Within this context every Folding module computes its paper's literal form: to count its cost, or to compare."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


@torch.compiler.assume_constant_result
def _is_plain() -> bool:
    return _PLAIN.get()


class Folding(nn.Module, ABC):
    """A module whose chain of linear maps merges into fewer tensors, and which keeps its literal form as a reference.

    The merged tensors are computed with gradients while training, and once, then kept, while the module is in
    evaluation mode and gradients are off. Changing the mode, device, dtype or weights discards what was kept; only
    a change that autograd does not see either, through ``.data``, needs ``model.train().eval()`` after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folded: tuple[Tensor, ...] | None = None
        self._versions: tuple[int, ...] = ()

    @abstractmethod
    def fold(self) -> tuple[Tensor, ...]:
        """Merge the module's parameters; the normalisation too if, and only if, the module is in evaluation mode."""

    @property
    def is_plain(self) -> bool:
        """Whether the literal form is asked for, by `plain_forms`."""
        return _is_plain()

    def folded(self) -> tuple[Tensor, ...]:
        """Return `fold()`, kept where that is safe. Always computed without autocast."""
        versions = self._versions
        if not torch.compiler.is_compiling():  # a graph that is being traced keeps what it finds
            tensors = (*self.parameters(), *self.buffers())
            versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        if self._folded is not None and self._versions == versions and not torch.is_grad_enabled():
            return self._folded
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            folded = self.fold()
        if not self.training and not torch.is_grad_enabled():
            self._folded, self._versions = folded, versions
        return folded

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:  # else what was recorded or compiled may still read it
            self._folded = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._folded = None
        return super()._apply(fn, recurse)


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, N, C]; a view where the map is stored channels-last."""
    return x.flatten(2).transpose(1, 2)  # [B, N, C]


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, N, C] -> [B, C, h, w], stored channels-last; always a view."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)  # [B, C, h, w], the batch's stride right for a batch of one


def apply_norm(norm: nn.LayerNorm, x: Tensor, *, rounded: bool = False) -> Tensor:
    """Normalise x [..., C] by a LayerNorm over C, as a kernel where there is one; `rounded` as in `ops.layer_norm`."""
    return layer_norm(x, norm.weight, norm.bias, norm.eps, rounded=rounded) if is_fused(x) else norm(x)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map [B, C, h, w] to `size`, bilinear with half-pixel centres (align_corners = False)."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear map [D, C] to every pixel of a map: [B, C, h, w] -> [B, D, h, w], stored channels-last."""
    if is_for_runtime():  # which chooses the layout
        return F.conv2d(x, weight[:, :, None, None], bias)
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(b * h * w, c)  # [B * N, C]
    return F.linear(pixels, weight, bias).unflatten(0, (b, h, w)).permute(0, 3, 1, 2)  # [B, D, h, w]


def classify(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear map [K, C] to every pixel: [B, C, h, w] -> [B, K, h, w], as `pointwise`, for scores of classes.

    With many classes they are stored class by class, as the resize to labels reads them, which saves a copy; with few
    the other order of the product is faster all the same.
    """
    if len(weight) < MANY_CLASSES or torch.is_grad_enabled() or is_for_runtime():
        return pointwise(x, weight, bias)
    if is_exporting():  # of any batch
        scores = torch.matmul(weight, x.flatten(2))  # [B, K, N]
        scores = scores if bias is None else scores + bias[:, None]
    else:
        rest = weight.new_zeros(1, 1) if bias is None else bias[:, None]
        each = [torch.addmm(rest, weight, image.flatten(1)) for image in x]  # [K, N]
        scores = torch.stack(each) if len(each) > 1 else each[0][None]
    return scores.unflatten(2, x.shape[2:])


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query @ key.T / sqrt(d)) @ value for each head.

    That is ``scaled_dot_product_attention``, whose backward pass in half precision is slow on the CPU; there, training
    multiplies the matrices one by one, as long as the scores need no more than 256 MiB.

    Args:
        query: float [B, heads, N, d].
        key: float [B, heads, M, d].
        value: float [B, heads, M, d].

    Returns:
        float [B, heads, N, d].
    """
    is_half = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if is_half and query.requires_grad and torch.is_grad_enabled():  # asked first: an exported graph has no fixed sizes
        scores_count = query.shape[:-1].numel() * key.shape[2]
        if scores_count <= LARGEST_SCORES:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [B, heads, N, M]
            return scores.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class DropPath(nn.Module):
    """Drop the whole residual branch of single samples with probability `rate` (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x [B, ...] -> x with some samples zero and the others scaled by 1 / (1 - rate); identity in evaluation."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)  # [B, 1..]
        return x * (mask / keep)


class ConvNorm(nn.Module):
    """A 1x1 convolution without bias and a batch norm, with the names of published decode heads (conv, bn).

    Called, it computes convolution, norm and ReLU. Folding modules apply `merged` themselves, each where it is
    cheapest, and then `finish`.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, D, h, w]."""
        return torch.relu(self.bn(self.conv(x)))

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return weight [D, C] and bias [D] of the convolution; with the norm inside in evaluation mode."""
        weight = self.conv.weight[:, :, 0, 0]
        if self.training:
            return weight, torch.zeros_like(self.bn.bias)
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        return weight * scale[:, None], self.bn.bias - self.bn.running_mean * scale

    def finish(self, x: Tensor) -> Tensor:
        """What follows the merged convolution: the norm where it is not inside yet, and the ReLU; x [B, D, h, w]."""
        return (self.bn(x) if self.training else x).relu_()


class DeformableConv(nn.Module):
    """Deformable convolution of the third version (DCNv3): 3x3, stride 1, soft-max modulated, grouped.

    Source: "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions", Sec. 3.1.
    Every group of every pixel reads 3x3 points, each moved by a learned offset, zero outside the map.
    """

    window: Tensor

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.value = nn.Linear(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.offset = nn.Linear(width, groups * 9 * 2)
        self.modulation = nn.Linear(width, groups * 9)
        self.output = nn.Linear(width, width)
        for layer in (self.offset, self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        window = torch.tensor([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)])  # x slow, y fast
        self.register_buffer("window", window, persistent=False)  # [9, 2]

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """tokens [B, N, C] of an h x w map -> [B, N, C]."""
        value = self.value(tokens).unflatten(2, (self.groups, -1))  # [B, N, G, C/G]
        z = F.gelu(self.norm(to_tokens(self.depthwise(to_map(tokens, size)))))  # [B, N, C]
        offset = self.offset(z).unflatten(2, (self.groups, 9, 2))  # [B, N, G, 9, 2]
        modulation = self.modulation(z).float().unflatten(2, (self.groups, 9)).softmax(-1)  # [B, N, G, 9]
        points = place(self.window + offset.float(), size)  # [B, N, G, 9, 2]
        read = grouped_sample(value, points, modulation, size)  # [B, N, G, C/G]
        return self.output(read.flatten(2))  # [B, N, C]


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Read a map where optical flow leads, bilinearly, its border outside; cells lie at half-pixel centres.

    Args:
        x: float [B, C, h, w].
        flow: float32 [B, 2, H, W] of any size, the displacement (dx, dy) in pixels of H x W.

    Returns:
        [B, C, h, w].
    """
    size = (x.shape[2], x.shape[3])
    dx, dy = to_tokens(resize(flow, size)).unbind(2)  # each [B, N], in pixels of H x W
    shift = torch.stack((dx * (size[1] / flow.shape[3]), dy * (size[0] / flow.shape[2])), dim=2)  # [B, N, 2], in cells
    return to_map(sample(to_tokens(x), place(shift, size), size, "border"), size)  # [B, C, h, w]
