"""Labels at full size from logits at the decoder's size: bilinear resize and arg-max as one operation.

`upsample_argmax_reference` is the plain way. `upsample_argmax` gives the same labels on every input without making the
[K, H, W] tensor. On the CPU there are two ways to do so: the kernel in ops/cpu_kernels, and, where that is not chosen,
one in torch that works on *cells*, the output pixels that lie between the same low-resolution samples (the *corners* of
the cell):

1. A sample is *sure* when its best class leads by more than the rounding bound below. Where all corners are sure of the
   same class, every pixel of the cell has that label.
2. In the other cells, a class whose largest corner is below another class's smallest corner cannot win. The classes
   that are left are interpolated for the pixels of these cells only.
3. Where the two best of them are closer than the rounding bound, `torch.nn.functional.interpolate` itself decides,
   on the candidate classes only: it treats each channel alone, so a channel's values do not depend on the others. Their
   number matters in one case: with one thread, maps of three channels are resized by other code, which rounds
   otherwise.

**Rounding bound.** With u = 2**-24, an interpolated float32 value is a sum of four products, each touched by at most
four roundings, with non-negative weights w that are the same for all classes. Hence it differs from the exact
``sum_i w_i v_i`` by at most ``g * sum_i w_i |v_i|`` with g = 4u / (1 - 4u), and sum_i w_i is 1 within 2u. So

- class k beats class j in a pixel when at each corner ``v_k - v_j > g (|v_k| + |v_j|)``; as
  ``|v_j| <= |v_k| + (v_k - v_j)``, it is enough that ``v_k - v_j > 2g / (1 - g) |v_k|``, about 8u |v_k|;
- a pixel's value lies within (g + 2u) A, about 6u A, of the range of its corners, where A is the largest of their
  magnitudes;
- two evaluations of a pixel differ by at most 2g A a class, so a lead of 4g A, about 16u A, has the same sign in both.

The code uses 16u, 16u and 32u (a factor of two to spare for the roundings of the tests themselves), and adds 2**-100
for results that underflow. Tensors with a magnitude above 2**100, an infinity or a NaN take the plain way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops import cpu_kernels, kernels
from steadyseg.types import ShapeError

_UNIT = 2.0**-24
_LEAD = 16 * _UNIT
_CLOSE = 32 * _UNIT
_TINY = 2.0**-100
_HUGE = 2.0**100
_SMALL_OUTPUT = 4096
"""Up to this many output pixels the plain way is taken: it costs less than the bookkeeping."""
_MOST_CELLS = 0.85
_MOST_PAIRS = 0.1
"""Shares of cells to interpolate, and of class-pixel pairs, above which the plain way is faster."""
_MOST_DOUBTS = 0.02
"""Share of doubtful pixels above which it is, where the kernel labels the others."""


class Lines(NamedTuple):
    """What N lines (rows or columns) of pixels read of n samples."""

    first: Tensor
    """int64 [N] the first sample."""
    last: Tensor
    """int64 [N] the last one: the first or the one after it."""
    near: Tensor
    """float32 [N] weight of the first."""
    far: Tensor
    """float32 [N] weight of the last; 0 where it is the first."""


class _Axis(NamedTuple):
    """How one axis of n samples is resized to N lines (rows or columns); R cells of at most P lines."""

    first: Tensor
    """int64 [R] first corner sample of each cell."""
    last: Tensor
    """int64 [R] last corner sample of each cell: the first or the one after it."""
    cell: Tensor
    """int64 [N] the cell of each line."""
    lines: Tensor
    """int64 [P, R] the lines of each cell; a cell with fewer repeats its last one."""
    near: Tensor
    """float32 [P, R] weight of the first corner sample in each of `lines`."""
    far: Tensor
    """float32 [P, R] weight of the last one; 0 where it is the first."""


class _Block(NamedTuple):
    """M cells that must be interpolated, those with most candidates first, and the weights of their pixels."""

    pixels: Tensor
    """int64 [P, Q, M] index of each pixel in the flattened image; P rows and Q columns a cell."""
    near_y: Tensor
    """float32 [P, M] weight of the top corners in each row."""
    far_y: Tensor
    """float32 [P, M] weight of the bottom corners in each row."""
    near_x: Tensor
    """float32 [Q, M] weight of the left corners in each column."""
    far_x: Tensor
    """float32 [Q, M] weight of the right corners in each column."""
    bound: Tensor
    """float32 [M] a lead above it is beyond doubt."""
    classes: tuple[Tensor, ...]
    """int64 [m] each, m falling from M: a candidate of every cell, another of each cell that has two, and so on."""
    corners: tuple[Tensor, ...]
    """float32 [4, m] each, the logits of `classes`: top left, top right, bottom left, bottom right."""


def upsample_argmax_reference(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits bilinearly in float32 and take the best class of every pixel; ties go to the lowest class.

    Args:
        logits: float [B, K, h, w], 1 <= K <= 256; float16, bfloat16 and float64 are converted to float32 first.
        size: (H, W) of the result.

    Returns:
        uint8 [B, H, W] class index.

    Raises:
        ShapeError: if `logits` or `size` is not as described.
    """
    _check(logits, size)
    with torch.no_grad():
        return _plain(logits.float().contiguous(), size)


def upsample_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Give the labels of `upsample_argmax_reference`, all equal, in a fraction of its time where logits are smooth.

    The time depends on how much of the image lies near a border between classes. Where classes tie in many pixels, and
    without the kernel on noise, it is that of the plain way and a little more. Results with few pixels and results not
    larger than the logits take the plain way. So do tensors on another device than the CPU, but where the kernel in
    ops/kernels is chosen; its labels may differ from the plain way's where two classes tie up to rounding.

    Args:
        logits: float [B, K, h, w], 1 <= K <= 256; float16, bfloat16 and float64 are converted to float32 first.
        size: (H, W) of the result.

    Returns:
        uint8 [B, H, W] class index.

    Raises:
        ShapeError: if `logits` or `size` is not as described.
    """
    _check(logits, size)
    if kernels.are_chosen(logits):
        from steadyseg.ops.kernels.upsample_argmax import upsample_argmax as fused

        return fused(logits.detach(), size)
    samples, pixels = logits.shape[2] * logits.shape[3], size[0] * size[1]
    with torch.no_grad():
        logits = logits.float().contiguous()
        if logits.device.type != "cpu" or pixels <= max(_SMALL_OUTPUT, samples) or samples == 1 or logits.shape[1] == 1:
            return _plain(logits, size)
        label = _kernel_labels if cpu_kernels.are_chosen(logits) else _labels
        return torch.stack([label(image, size) for image in logits])  # [B, H, W]


def _check(logits: Tensor, size: tuple[int, int]) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise ShapeError(f"logits are {logits.dtype} {list(logits.shape)}; expected a floating point [B, K, h, w]")
    if logits.shape[1] > 256:
        raise ShapeError(f"logits have {logits.shape[1]} classes; labels are uint8: use at most 256")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"size is {tuple(size)}; expected (height, width), both at least 1")


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W]."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _resize_some(maps: Tensor, size: tuple[int, int], classes: int) -> Tensor:
    """Resize maps [k, h, w] by the code that resizes those of all classes, [k, H, W]; see 3. above."""
    if (len(maps) == 3) != (classes == 3):
        missing = 3 - len(maps) if classes == 3 else 1
        padded = torch.cat((maps, maps.new_zeros(missing, *maps.shape[1:])))
        return _resize(padded[None], size)[0, : len(maps)]
    return _resize(maps[None], size)[0]


def _plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 contiguous [B, K, h, w] -> uint8 [B, H, W]."""
    return _resize(logits, size).argmax(1).to(torch.uint8)


def _kernel_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 contiguous [K, h, w] -> uint8 [H, W] by the kernel for the CPU, the plain way where that does not pay."""
    from steadyseg.ops.cpu_kernels.upsample_argmax import Bounds, labels_and_doubts

    skips_rows = size[0] < logits.shape[1]  # which `interpolate` may read all the same, times zero
    if skips_rows and not _is_within(logits):
        return _plain(logits[None], size)[0]
    found = labels_and_doubts(logits, size, Bounds(_LEAD, _CLOSE, _TINY, _HUGE))
    if found is None:
        return _plain(logits[None], size)[0]
    labels, doubts = found
    doubtful = doubts.view(-1).nonzero()[:, 0]  # [d]
    if len(doubtful) > _MOST_DOUBTS * labels.numel():
        return _plain(logits[None], size)[0]
    if len(doubtful):
        labels.view(-1)[doubtful] = _settle(logits, labels.shape, doubtful)
    return labels


def _is_within(logits: Tensor) -> bool:
    """Say whether all magnitudes are within the bounds; False for NaN."""
    lowest, highest = logits.aminmax()
    return bool(lowest > -_HUGE and highest < _HUGE)


def _settle(logits: Tensor, size: torch.Size, pixels: Tensor) -> Tensor:
    """Let `interpolate` choose in each of the pixels, int64 [d] in the flattened image; uint8 [d].

    As it treats each place of each channel alone, the first close class of all pixels can share one channel, and so on,
    as long as no two of them put different classes at one sample.
    """
    rows, columns = read_lines(logits.shape[1], size[0]), read_lines(logits.shape[2], size[1])
    y, x = pixels // size[1], pixels % size[1]  # [d]
    at = [row[y] * logits.shape[2] + column[x] for row in rows[:2] for column in columns[:2]]
    corners = torch.stack(at)  # [4, d]
    samples = logits.flatten(1)  # [K, h * w]
    values = samples[:, corners]  # [K, 4, d]
    weights = torch.stack([near_y[y] * near_x[x] for near_y in rows[2:] for near_x in columns[2:]])  # [4, d]
    score, magnitude = (values * weights).sum(1), values.abs().amax(1)  # [K, d]
    best, winner = score.max(0)  # [d]
    close = score >= best - (_CLOSE * torch.maximum(magnitude, magnitude.gather(0, winner[None])) + _TINY)  # [K, d]
    count = close.sum(0)  # [d]
    most = int(count.max())
    classes = close.int().sort(dim=0, descending=True, stable=True).indices[:most]  # [most, d], ascending while close
    is_close = torch.arange(most)[:, None] < count  # [most, d]
    rank, pixel = is_close.nonzero().T  # [pairs]
    taken = values[classes[rank, pixel], :, pixel]  # [pairs, 4]
    places = corners[:, pixel].T  # [pairs, 4]
    shared = samples.new_zeros(most, samples.shape[1])  # [most, h * w]
    shared[rank[:, None], places] = taken
    resized = _resize_some(shared.unflatten(1, logits.shape[1:]), (size[0], size[1]), len(logits))  # [most, H, W]
    found = resized.flatten(1)[:, pixels]  # [most, d]
    found[~is_close] = -torch.inf
    chosen = classes.gather(0, found.argmax(0)[None])[0].to(torch.uint8)  # [d]
    mixed = torch.zeros_like(count, dtype=torch.bool)  # [d]
    mixed[pixel[(shared[rank[:, None], places] != taken).any(1)]] = True
    if mixed.any():
        chosen[mixed] = _decide(logits, size, close[:, mixed].any(1).nonzero()[:, 0], pixels[mixed])
    return chosen


def _labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 contiguous [K, h, w] -> uint8 [H, W] by cells, the plain way where that does not pay."""
    if not _is_within(logits):
        return _plain(logits[None], size)[0]
    rows, columns = _axis(logits.shape[1], size[0]), _axis(logits.shape[2], size[1])
    known = _cell_labels(logits, rows, columns)  # [R, C]
    unknown = (known < 0).nonzero()  # [M, 2]
    if len(unknown) > _MOST_CELLS * known.numel():
        return _plain(logits[None], size)[0]
    labels = known.to(torch.uint8)[rows.cell][:, columns.cell]  # [H, W]
    if len(unknown):
        corners = _corners(logits, unknown, rows, columns)  # [K, 4, M]
        candidate, bound = _candidates(corners)  # [K, M], [M]
        pairs = int(candidate.sum()) * rows.lines.shape[0] * columns.lines.shape[0]
        if pairs > _MOST_PAIRS * logits.shape[0] * labels.numel():
            return _plain(logits[None], size)[0]
        order = candidate.sum(0).argsort(descending=True)  # [M]
        row, column = unknown[order].T  # [M]
        block = _Block(
            rows.lines[:, row][:, None] * size[1] + columns.lines[:, column],  # [P, Q, M]
            *(rows.near[:, row], rows.far[:, row], columns.near[:, column], columns.far[:, column]),
            bound[order],
            *_by_rank(corners, candidate, order),
        )
        _fill(labels, logits, block)
    return labels


@lru_cache(maxsize=64)
def read_lines(samples: int, lines: int) -> Lines:
    """Read the samples and weights of an axis off `interpolate` itself, so that they are those it uses.

    The other axis is kept as it is (its weights are exactly 1 and 0), and is long enough that `interpolate` runs the
    same code as for the logits: it has another one for outputs with height + width up to 128.
    """
    width = max(samples, 129)
    probe = torch.eye(samples, width)[None, None]  # [1, 1, n, width]
    weights = _resize(probe, (lines, width))[0, 0, :, :samples]  # [N, n]
    first = (weights > 0).int().argmax(1)  # [N]
    after = (first + 1).clamp(max=samples - 1)  # [N]
    near = weights.gather(1, first[:, None])[:, 0]  # [N]
    far = torch.where(after > first, weights.gather(1, after[:, None])[:, 0], 0.0)  # [N]
    return Lines(first, torch.where(far > 0, after, first), near, far)


@lru_cache(maxsize=64)
def _axis(samples: int, lines: int) -> _Axis:
    """Gather the lines of an axis in cells."""
    read = read_lines(samples, lines)
    key, cell, count = (read.first + read.last).unique_consecutive(return_inverse=True, return_counts=True)
    start = count.cumsum(0) - count  # [R]
    block = start + torch.minimum(torch.arange(int(count.max()))[:, None], count - 1)  # [P, R]
    return _Axis(key // 2, key // 2 + key % 2, cell, block, read.near[block], read.far[block])


def _cell_labels(logits: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Return int64 [R, C]: the label of each cell whose corners are sure of the same class, -1 for the others."""
    best, label = logits.max(0)  # [h, w]
    second = logits.scatter(0, label[None], -torch.inf).amax(0)  # [h, w]
    label[best - second <= _LEAD * best.abs() + _TINY] = -1
    top, bottom = label[rows.first], label[rows.last]  # [R, w]
    corner, *others = (line[:, end] for line in (top, bottom) for end in (columns.first, columns.last))  # [R, C]
    same = torch.ones_like(corner, dtype=torch.bool)
    for other in others:
        same &= corner == other
    return torch.where(same, corner, -1)


def _corners(logits: Tensor, cells: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Gather float32 [K, 4, M], the logits at the corners of the cells int64 [M, 2] (row, column)."""
    row, column = cells.T
    width = logits.shape[2]
    at = [y[row] * width + x[column] for y in (rows.first, rows.last) for x in (columns.first, columns.last)]
    return logits.flatten(1).index_select(1, torch.cat(at)).view(len(logits), 4, -1)


def _candidates(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Say which classes may win in a cell, bool [K, M], and which lead is beyond doubt there, float32 [M]."""
    lowest, highest = corners.amin(1), corners.amax(1)  # [K, M]
    magnitude = torch.maximum(highest, -lowest)  # [K, M]
    floor = (lowest - _LEAD * magnitude).amax(0)  # [M]
    candidate = highest + _LEAD * magnitude + _TINY >= floor  # [K, M]
    return candidate, _CLOSE * (magnitude * candidate).amax(0) + _TINY


def _by_rank(corners: Tensor, candidate: Tensor, order: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Make `_Block.classes` and `_Block.corners` of the cells in the given order."""
    cell, label = candidate.T.nonzero().T  # [pairs], by cell, then by class
    count = candidate.sum(0)  # [M]
    rank = torch.arange(len(cell)) - (count.cumsum(0) - count)[cell]  # [pairs]
    queue = (rank * len(order) + order.argsort()[cell]).argsort()  # [pairs]
    label, cell = label[queue], cell[queue]
    values = corners[label, :, cell].T.contiguous()  # [4, pairs]
    sizes = rank.bincount().tolist()
    return label.split(sizes), values.split(sizes, 1)


def _values(block: _Block, corners: Tensor, cells: slice | Tensor) -> Tensor:
    """Interpolate float32 [4, m], one class in each of the m cells; float32 [P, Q, m]."""
    a, b, c, d = corners
    near_x, far_x = block.near_x[:, cells], block.far_x[:, cells]  # [Q, m]
    top = (a * near_x).addcmul_(b, far_x)  # [Q, m]
    bottom = (c * near_x).addcmul_(d, far_x)  # [Q, m]
    return (top * block.near_y[:, None, cells]).addcmul_(bottom, block.far_y[:, None, cells])


def _fill(labels: Tensor, logits: Tensor, block: _Block) -> None:
    """Write the labels of the pixels of the block into `labels` uint8 [H, W]."""
    best = torch.full(block.pixels.shape, -torch.inf)  # [P, Q, M]
    second = best.clone()  # [P, Q, M]
    winner = torch.zeros_like(best, dtype=torch.uint8)  # [P, Q, M]
    for classes, corners in zip(block.classes, block.corners, strict=True):
        part = slice(len(classes))
        value = _values(block, corners, part)  # [P, Q, m]
        lead, runner_up, label = best[..., part], second[..., part], winner[..., part]
        torch.maximum(runner_up, torch.minimum(lead, value), out=runner_up)
        label.copy_(torch.where(value > lead, classes.to(torch.uint8), label))
        torch.maximum(lead, value, out=lead)
    flat = labels.view(-1)  # [H * W]
    flat[block.pixels] = winner
    doubtful = best - second <= block.bound  # [P, Q, M]
    if doubtful.any():
        pixels = block.pixels[doubtful]
        flat[pixels] = _decide(logits, labels.shape, _rivals(block, best, doubtful), pixels)


def _rivals(block: _Block, best: Tensor, doubtful: Tensor) -> Tensor:
    """List the classes that are close to the best in a doubtful pixel; int64, ascending."""
    cells = doubtful.any(0).any(0).nonzero()[:, 0]  # [d]
    rivals = []
    for classes, corners in zip(block.classes, block.corners, strict=True):
        some = cells[cells < len(classes)]  # [up to d]
        value = _values(block, corners[:, some], some)  # [P, Q, up to d]
        close = (value >= best[..., some] - block.bound[some]) & doubtful[..., some]
        rivals.append(classes[some[close.any(0).any(0)]])
    return torch.cat(rivals).unique()


def _decide(logits: Tensor, size: torch.Size, classes: Tensor, pixels: Tensor) -> Tensor:
    """Let `interpolate` choose among the given classes (ascending: ties go to the lowest); uint8 like `pixels`."""
    values = _resize_some(logits[classes], (size[0], size[1]), len(logits))  # [k, H, W]
    return classes[values.flatten(1)[:, pixels].argmax(0)].to(torch.uint8)
