"""Read a map at fractional points, bilinearly: the reference, and a version that gathers whole rows of channels.

Formats such as ONNX know neither bags of rows nor a loop over them: a graph that is exported reads by ``grid_sample``
or by plain gathers, with the same result up to rounding. A runtime that can call back needs neither: within
`kept_nodes`, a graph that is traced holds a call of such a function as a node of the domain "steadyseg", and `NODES`
says how to run it.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal, NamedTuple, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Padding = Literal["border", "zeros"]

# ---- functions that a traced graph may leave to torch ----------------------------------------------------------------

DOMAIN = "steadyseg"
ARGUMENTS = "arguments"
"""Attribute of a node: what the function takes after its tensors, as JSON."""
_KEPT = ContextVar("kept", default=False)

P = ParamSpec("P")
Shape = Callable[..., Sequence[Any]]
"""Shapes of the tensors that a function takes -> that of its result."""


class Node(NamedTuple):
    """How to run a node."""

    function: Callable[..., Tensor]
    """Takes the node's tensors, then its other arguments; the result has the first tensor's dtype."""
    shape: Shape


NODES: dict[str, Node] = {}
"""By the function's name, which is also the node's."""


def may_be_node(shape: Shape) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Decorate a function of tensors, then of what JSON can hold, that may stay one node."""

    def decorate(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        name, signature = function.__name__, inspect.signature(function)
        NODES[name] = Node(function, shape)

        @wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> Tensor:
            if not is_for_runtime():
                return function(*given, **named)
            arguments = signature.bind(*given, **named).args
            tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{name}",
                tensors,
                {ARGUMENTS: json.dumps(arguments[len(tensors) :])},
                dtype=tensors[0].dtype,
                shape=list(shape(*(tensor.shape for tensor in tensors))),
                version=1,
            )

        return call

    return decorate


def is_exporting() -> bool:
    """Say whether the code runs to be exported; torch before 2.12 calls what ``torch.compile`` reads an export too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


@torch.compiler.assume_constant_result
def _are_kept() -> bool:
    return _KEPT.get()


def is_for_runtime() -> bool:
    """Say whether the code runs to be traced for a runtime that can call back; such a one lays out maps by itself."""
    return is_exporting() and _are_kept()


@contextmanager
def kept_nodes() -> Iterator[None]:
    """Within this context a graph that is traced holds such functions as nodes."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


# ---- reading ---------------------------------------------------------------------------------------------------------


def sample_reference(tokens: Tensor, points: Tensor, size: tuple[int, int], padding: Padding) -> Tensor:
    """Plain form of `sample`, by ``grid_sample`` with half-pixel centres.

    Args:
        tokens: float [B, N, C], an h x w map row by row.
        points: float [B, M, 2] (x, y) in pixels of that map; (0, 0) is the centre of the first pixel.
        size: (h, w).
        padding: "border" clamps the coordinates to the map; "zeros" reads zero outside it.

    Returns:
        float [B, M, C].
    """
    x = tokens.transpose(1, 2).unflatten(2, size)  # [B, C, h, w]
    grid = to_grid(points, size)[:, None].to(x.dtype)  # [B, 1, M, 2]
    read = F.grid_sample(x, grid, padding_mode=padding, align_corners=False)  # [B, C, 1, M]
    return read[:, :, 0].transpose(1, 2)  # [B, M, C]


def to_grid(points: Tensor, size: tuple[int, int]) -> Tensor:
    """float [..., 2] (x, y) in pixels of an h x w map -> the same in units of ``grid_sample``, -1..1 from edge to edge.

    What lies more than a pixel outside is moved up to there, where the same is read and no number overflows.
    """
    h, w = size
    x, y = points[..., 0].clamp(-1, w), points[..., 1].clamp(-1, h)
    return torch.stack(((x + 0.5) * (2.0 / w) - 1.0, (y + 0.5) * (2.0 / h) - 1.0), dim=-1)  # [..., 2]


def pixel_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return float32 [N, 2], the (x, y) coordinate of every pixel of an h x w grid, row by row."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()  # [N, 2]


@may_be_node(lambda shift: shift)
def place(shift: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn shifts from every pixel's own place into points.

    Args:
        shift: float [B, N, ..., 2] (x, y) in pixels of an h x w map, row by row. Half precision has room for a shift,
            but not for a coordinate: at 128 its steps are a pixel.
        size: (h, w).

    Returns:
        float32 [B, N, ..., 2] (x, y); (0, 0) is the centre of the first pixel.
    """
    here = pixel_centres(size, shift.device)
    return here.view(len(here), *[1] * (shift.ndim - 3), 2) + shift.float()


@may_be_node(lambda tokens, points: (tokens[0], points[1], tokens[2]))
def sample(tokens: Tensor, points: Tensor, size: tuple[int, int], padding: Padding) -> Tensor:
    """Read `tokens` at `points`; arguments and result as in `sample_reference`, equal up to rounding."""
    if is_exporting():
        return sample_reference(tokens, points, size, padding)
    index, weight = corners(points, size, padding)  # [B, M, 4]
    return gather_rows(tokens, index, weight)  # [B, M, C]


def corners(
    points: Tensor,
    size: tuple[int, int],
    padding: Padding,
    *,
    gain: Tensor | None = None,
    step: int = 1,
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the four map cells around each point and their bilinear weights.

    Args:
        points: float [..., 2] (x, y) in pixels.
        size: (h, w) of the map.
        padding: what to do outside the map, as in `sample_reference`.
        gain: float [...], a factor of all four weights of a point; None is one.
        step: rows from one cell to the next, where the rows of several maps lie interleaved.
        first: int32 [...], the row of a map's first cell; None is zero.

    Returns:
        index int32 [..., 4], row-by-row cell numbers times `step` plus `first`, always inside the map; weight
        float [..., 4]. Gradients flow to the points and the gain through the weights.
    """
    h, w = size
    x, y = points.unbind(-1)
    lefts, xs = _axis(x, w, padding)
    tops, ys = _axis(y, h, padding)
    columns = [cell * step if first is None else cell * step + first for cell in lefts]
    rows = [cell * (w * step) for cell in tops]
    if gain is not None:
        ys = (ys[0] * gain, ys[1] * gain)
    index = torch.stack([row + column for row in rows for column in columns], dim=-1)  # [..., 4]
    return index, torch.stack([below * beside for below in ys for beside in xs], dim=-1)  # [..., 4]


def _axis(x: Tensor, size: int, padding: Padding) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the two cells int32 [...] around each coordinate [...] of an axis, always inside, and their weights."""
    # beyond one pixel outside, every weight for "zeros" is zero whatever the distance
    x = x.clamp(0, size - 1) if padding == "border" else x.clamp(-1, size)
    before = x.detach().floor()
    after = before + 1
    near = x - before
    far = 1 - near
    if padding == "zeros":
        far = far * ((before >= 0) & (before < size))
        near = near * (after < size)
    return (before.clamp(0, size - 1).int(), after.clamp(max=size - 1).int()), (far, near)


def gather_rows(tokens: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Return weighted sums of rows: out[b, m] = sum_j weight[b, m, j] * tokens[b, index[b, m, j]].

    Args:
        tokens: float [B, N, C].
        index: int32 or int64 [B, M, J] in 0..N-1.
        weight: float [B, M, J].

    Returns:
        float [B, M, C]; gradients flow to `tokens` and `weight`.
    """
    if is_exporting():
        return gather_rows_reference(tokens, index, weight)
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports

    if kernels.are_chosen(tokens, weight):
        from steadyseg.ops.kernels.gather_rows import gather_rows as fused

        return fused(tokens, index, weight)
    b, n, c = tokens.shape
    rows = _rows(index, n)  # [B * M, J]
    table = tokens.reshape(b * n, c)
    weight = weight.flatten(0, 1)  # [B * M, J]
    if torch.is_grad_enabled():
        table = _wide(table)  # torch has no gradient of bags in half precision
        weight = weight.to(table.dtype)
        if table.device.type == "cpu":
            read = _GatherRows.apply(table, rows, weight, b).to(tokens.dtype)
        else:
            read = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weight).to(tokens.dtype)
    else:
        read = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weight.to(table.dtype))
    return read.unflatten(0, (b, -1))  # [B, M, C]


def row_products(query: Tensor, tokens: Tensor, index: Tensor) -> Tensor:
    """Return inner products with rows: out[b, m, j] = sum_c query[b, m, c] * tokens[b, index[b, m, j], c]; on the CPU.

    No tensor of B * M * J * C elements is made.

    Args:
        query: float [B, M, C].
        tokens: float [B, N, C].
        index: int32 or int64 [B, M, J] in 0..N-1.

    Returns:
        float32 (float64 if that is given) [B, M, J]; gradients flow to `query` and `tokens`.
    """
    b, n, c = tokens.shape
    table, left = _wide(tokens.reshape(b * n, c)), _wide(query.flatten(0, 1))
    return _RowProducts.apply(left, table, _rows(index, n), b).unflatten(0, (b, -1))  # [B, M, J]


def _wide(x: Tensor) -> Tensor:
    """Return half precision as float32."""
    return x if x.dtype == torch.float64 else x.float()


def _rows(index: Tensor, n: int) -> Tensor:
    """index [B, M, J] into N rows of each image -> [B * M, J] into those of all images in turn."""
    if len(index) == 1:
        return index[0]
    start = torch.arange(0, len(index) * n, n, dtype=index.dtype, device=index.device)[:, None, None]
    return (index + start).flatten(0, 1)  # [B * M, J]


def gather_rows_reference(tokens: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Plain form of `gather_rows`, with all rows that are read in memory at once."""
    b, n, c = tokens.shape
    start = torch.arange(b, device=index.device)[:, None, None] * n
    read = F.embedding(index + start, tokens.reshape(b * n, c))  # [B, M, J, C]
    return (read * weight.to(tokens.dtype)[..., None]).sum(2)


def grouped_sample_reference(value: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Weighted sums of points read from a map whose channels are in groups, each with its own points; plain form.

    Args:
        value: float [B, N, G, C], an h x w map row by row; C channels in each of G groups.
        points: float [B, Q, G, P, 2], (x, y) in pixels; (0, 0) is the centre of the first, outside the map is zero.
        weights: float [B, Q, G, P].
        size: (h, w).

    Returns:
        float [B, Q, G, C].
    """
    batch, groups = value.shape[0], value.shape[2]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)  # [B * G, C, h, w]
    grid = to_grid(points, size).transpose(1, 2).flatten(0, 1)  # [B * G, Q, P, 2]
    read = F.grid_sample(maps, grid.to(maps.dtype), align_corners=False)  # [B * G, C, Q, P]
    shares = weights.to(maps.dtype).transpose(1, 2).flatten(0, 1)  # [B * G, Q, P]
    total = (read * shares[:, None]).sum(3)  # [B * G, C, Q]
    return total.unflatten(0, (batch, groups)).permute(0, 3, 1, 2)  # [B, Q, G, C]


@may_be_node(lambda value, points, weights: (value[0], points[1], value[2], value[3]))
def grouped_sample(value: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as one gather of rows; arguments and result as in `grouped_sample_reference`."""
    if is_exporting():
        return grouped_sample_reference(value, points, weights, size)
    groups, count = value.shape[2], points.shape[1]
    group = torch.arange(groups, dtype=torch.int32, device=value.device)[:, None]  # [G, 1]
    index, share = corners(  # [B, Q, G, P, 4], rows of value seen as [B, N * G, C]
        points, size, padding="zeros", gain=weights, step=groups, first=group
    )
    read = gather_rows(value.flatten(1, 2), index.flatten(3).flatten(1, 2), share.flatten(3).flatten(1, 2))
    return read.unflatten(1, (count, groups))  # [B, Q, G, C]


class _GatherRows(torch.autograd.Function):
    """`embedding_bag` with a backward pass that is about four times faster on the CPU.

    The weights are a sparse matrix [M, R] of J entries a row. The gradient of the table is its transpose times the
    gradient of the result; the gradient of the weights is a dense product sampled at the entries.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weight: Tensor, images: int) -> Tensor:
        ctx.save_for_backward(table, rows, weight)
        ctx.images = images
        return _bags(table, rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        table, rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_table = _transposed_bags(grad, rows, weight, len(table), ctx.images) if ctx.needs_input_grad[0] else None
        grad_weight = _sampled_product(grad, table, rows) if ctx.needs_input_grad[2] else None
        return grad_table, None, grad_weight, None


class _RowProducts(torch.autograd.Function):
    """A dense product sampled at the entries of a sparse matrix; its gradients are products with that matrix."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, table: Tensor, rows: Tensor, images: int) -> Tensor:
        ctx.save_for_backward(left, table, rows)
        ctx.images = images
        return _sampled_product(left, table, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, table, rows = ctx.saved_tensors
        grad = grad.contiguous()
        grad_left = _bags(table, rows, grad) if ctx.needs_input_grad[0] else None
        grad_table = _transposed_bags(left, rows, grad, len(table), ctx.images) if ctx.needs_input_grad[1] else None
        return grad_left, grad_table, None, None


def _bags(table: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """table [R, C], rows [M, J], weight [M, J] -> [M, C], sums of weighted rows."""
    return F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=weight.detach())


def _transposed_bags(values: Tensor, rows: Tensor, weight: Tensor, count: int, images: int) -> Tensor:
    """values [B * M, C], rows [B * M, J], weight [B * M, J] -> [count, C]: what `_bags` reads is written instead.

    Each row of the result is a bag too, over the entries sorted by row. Every image has rows of its own, and is sorted
    alone: numbers that fit into 16 bits sort in half the time.
    """
    span = count // images
    kind = torch.int16 if span <= 2**16 else torch.int32
    least = torch.iinfo(kind).min if kind == torch.int16 else 0
    bins = torch.arange(least, least + span, dtype=torch.int32).to(kind)  # [count / B]
    written = []
    for image, (value, own, share) in enumerate(
        zip(values.detach().chunk(images), rows.chunk(images), weight.detach().chunk(images), strict=True)
    ):
        row, entry = (own.flatten() + (least - image * span)).to(kind).sort()  # [M * J]
        starts = torch.searchsorted(row, bins)
        shares = share.flatten().index_select(0, entry)
        bag = entry // own.shape[1]
        written.append(F.embedding_bag(bag, value, starts, mode="sum", per_sample_weights=shares))  # [count / B, C]
    return torch.cat(written)


def _sampled_product(left: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """left [M, C], table [R, C], rows [M, J] -> [M, J], the entries (m, rows[m, j]) of left @ table.T."""
    count = rows.shape[1]
    if len(table) <= count:  # a sparse matrix cannot hold more entries than it has places
        return (left @ table.T).gather(1, rows.long())
    starts = torch.arange(0, rows.numel() + 1, count, dtype=torch.int32)  # [M + 1]
    values = left.new_zeros(rows.numel())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        entries = torch.sparse_csr_tensor(
            starts, rows.flatten().int(), values, (len(rows), len(table)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(entries, left, table.T, beta=0.0).values().view_as(rows)
