"""Time every Triton kernel against its reference and torch.compile of it, in turn, on the shapes of real models.

    python benchmarks/kernels.py            a table
    python benchmarks/kernels.py --json     a document with all numbers

Shapes are those of a 480x853 frame: SD-CPC's attention and deformable convolution at stride 8, TFC's attention over
four levels for a tenth of the points, and labels of 124 classes from logits at stride 4. "training" is forward and
backward. Every result is also compared with float64 on the same inputs; the command fails where one is wrong. It needs
a GPU; the kernels' tests do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steadyseg.ops import kernels
from steadyseg.ops.deformable_attention import deformable_attention, deformable_attention_reference
from steadyseg.ops.sample import corners, gather_rows
from steadyseg.ops.selective_attention import selective_attention, selective_attention_reference
from steadyseg.ops.upsample_argmax import upsample_argmax
from steadyseg.types import ConfigError

WIDTH, GROUPS, HEADS, POINTS, CLASSES = 256, 8, 8, 4, 124
"""Channels, groups of the deformable convolution, heads and points of the attentions, classes."""
CALLS = 20
"""Between two readings of the clock."""
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Largest error, of the scale of the result, beside the last rounding of what is stored as bfloat16."""
SIDES = ("kernel", "reference", "compiled")


class Case(NamedTuple):
    """One operation on one set of inputs."""

    name: str
    run: Callable[..., Tensor]
    """Of `inputs`; chooses the kernel by itself."""
    exact: Callable[..., Tensor]
    """The same in plain PyTorch, of inputs in float64."""
    inputs: tuple[Tensor, ...]
    is_training: bool

    def call(self, run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the result and, in training, the gradients of its sum."""
        if not self.is_training:
            with torch.no_grad():
                return (run(*inputs),)
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = run(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out)))


def main() -> None:
    """Run the benchmark of the command line."""
    options = parse()
    torch.manual_seed(options.seed)
    rows = []
    for batch in options.batch:
        for dtype in ALLOWED:
            for case in cases(options.size, batch, dtype, "cuda"):
                error = check(case)
                times = clock(case, options.repeats)
                rows.append({"case": case.name, "batch": batch, "dtype": str(dtype)[6:], "error": error, **times})
    report(rows, options)
    wrong = [row for row in rows if row["error"] > 1]
    if wrong:
        sys.exit("; ".join(f"{row['case']}, batch {row['batch']}, {row['dtype']} is wrong" for row in wrong))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 853), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--repeats", type=int, default=25, help=f"readings of the clock, of {CALLS} calls each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print a document with all numbers")
    options = parser.parse_args()
    if min(*options.size, *options.batch) < 1 or options.repeats < 2:
        parser.error("expected sizes and batches of at least 1, and at least 2 repeats")
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; run this on a machine with a GPU")
    try:
        if not kernels.are_chosen(torch.zeros(1, device="cuda")):
            parser.error("the kernels are not chosen here; set STEADYSEG_KERNELS=triton, which says why")
    except ConfigError as error:
        parser.error(str(error))
    return options


# ---- cases -------------------------------------------------------------------------------------------------------


def cases(size: Sequence[int], batch: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Make every operation on random inputs of the shapes that a frame of `size` gives."""
    levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    for is_training in (False, True):
        yield attention(levels[1], batch, dtype, device, is_training)
        yield convolution(levels[1], batch, dtype, device, is_training)
        yield pyramid(levels, batch, dtype, device, is_training)
    logits = torch.randn(batch, CLASSES, *levels[0], device=device).to(dtype)
    shown = (size[0], size[1])
    yield Case("labels", lambda x: upsample_argmax(x, shown), lambda x: best(x, shown), (logits,), False)


def attention(low: tuple[int, int], batch: int, dtype: torch.dtype, device: str, is_training: bool) -> Case:
    """Make SD-CPC's attention: every pixel reads four places around it."""
    count = low[0] * low[1]
    query, source = (torch.randn(batch, count, WIDTH, device=device).to(dtype) for _ in range(2))
    points = grid(low, device)[:, None] + 4 * torch.randn(batch, count, POINTS, 2, device=device)  # [B, N, P, 2]
    return Case(
        "selective attention" + ", training" * is_training,
        lambda *x: selective_attention(*x, low),
        lambda query, source, points: selective_attention_reference(query, source, source, points, low),
        (query, source, points),
        is_training,
    )


def convolution(low: tuple[int, int], batch: int, dtype: torch.dtype, device: str, is_training: bool) -> Case:
    """Make what a deformable convolution of the third version gathers: nine places for each of eight groups."""
    count = low[0] * low[1]
    tokens = torch.randn(batch, count * GROUPS, WIDTH // GROUPS, device=device).to(dtype)
    points = grid(low, device)[:, None, None] + 2 * torch.randn(batch, count, GROUPS, 9, 2, device=device)
    index, weight = corners(points, low, "zeros")  # [B, N, G, 9, 4]
    index = index * GROUPS + torch.arange(GROUPS, device=device)[:, None, None]
    rows, weight = index.flatten(3).flatten(1, 2), weight.flatten(3).flatten(1, 2)  # [B, N * G, 36]

    def plainly(tokens: Tensor, weight: Tensor) -> Tensor:
        start = torch.arange(batch, device=device)[:, None, None] * tokens.shape[1]
        table, parts = tokens.flatten(0, 1), zip((rows + start).unbind(2), weight.unbind(2), strict=True)
        total = tokens.new_zeros(batch, rows.shape[1], tokens.shape[2])
        for row, share in parts:  # each [B, N * G]
            total = total + share[..., None] * table[row]
        return total

    name = "deformable convolution" + ", training" * is_training
    return Case(name, lambda tokens, weight: gather_rows(tokens, rows, weight), plainly, (tokens, weight), is_training)


def pyramid(levels: Sequence[tuple[int, int]], batch: int, dtype: torch.dtype, device: str, is_training: bool) -> Case:
    """Make TFC's attention of a tenth of the pixels of every image over four levels."""
    count = levels[0][0] * levels[0][1]
    chosen = torch.randperm(batch * count, device=device)[: max(1, batch * count // 10)].sort().values  # [Q]
    values = [torch.randn(batch, h * w, WIDTH, device=device).to(dtype) for h, w in levels]
    here = (grid(levels[0], device)[chosen % count] + 0.5).T  # [2, Q]
    scale = torch.tensor([[w / levels[0][1], h / levels[0][0]] for h, w in levels], device=device).T  # [2, L]
    centre = (here[:, None] * scale[..., None] - 0.5)[..., None, None]  # [2, L, Q, 1, 1]
    points = centre + 3 * torch.randn(2, len(levels), len(chosen), HEADS, POINTS, device=device)
    weights = torch.rand(len(levels), len(chosen), HEADS, POINTS, device=device) / (len(levels) * POINTS)
    return Case(
        "deformable attention" + ", training" * is_training,
        lambda points, weights, *x: deformable_attention(x, levels, points, weights, chosen // count),
        lambda points, weights, *x: deformable_attention_reference(x, levels, points, weights, chosen // count),
        (points, weights, *values),
        is_training,
    )


def grid(size: tuple[int, int], device: str) -> Tensor:
    """Return float32 [N, 2], (x, y) of every pixel, row by row."""
    axes = (torch.arange(count, device=device, dtype=torch.float32) for count in size)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1).flip(-1)


# ---- checking and timing -----------------------------------------------------------------------------------------


def best(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return scores float64 [B, K, H, W], with which labels are compared."""
    return F.interpolate(logits, size=size, mode="bilinear")


def check(case: Case) -> float:
    """Compare the kernel's results with float64.

    Returns:
        The largest error, as a share of what is allowed.
    """
    ours = case.call(case.run, case.inputs)
    if ours[0].dtype == torch.uint8:
        return max(lost(case, image, labels) for image, labels in zip(case.inputs[0], ours[0], strict=True))
    errors = []
    for mine, right in zip(ours, case.call(case.exact, [x.double() for x in case.inputs]), strict=True):
        scale = float(right.abs().max())
        stored = 2.0**-7 if mine.dtype == torch.bfloat16 else 0.0
        allowed = ALLOWED[case.inputs[-1].dtype] * scale + stored * right.abs()
        errors.append(float(((mine.double() - right).abs() / allowed).max()))
    return max(errors)


def lost(case: Case, image: Tensor, labels: Tensor) -> float:
    """By how much the score of a label uint8 [H, W] is below the best one, as a share of what is allowed."""
    scores = case.exact(image[None].double())[0]  # [K, H, W]
    gap = scores.amax(0) - scores.gather(0, labels[None].long())[0]  # [H, W]
    return float(gap.max()) / (ALLOWED[torch.float32] * float(scores.abs().max()))


def clock(case: Case, repeats: int) -> dict[str, float]:
    """Time the sides in turn, another one first in every round; microseconds a call."""
    torch._dynamo.reset()
    runs = {"kernel": case.run, "reference": case.run, "compiled": torch.compile(case.run)}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(-3, repeats):
        first = number % len(SIDES)
        for side in (*SIDES[first:], *SIDES[:first]):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                if side == "reference":
                    with kernels.references_only():
                        case.call(runs[side], case.inputs)
                else:
                    case.call(runs[side], case.inputs)
            end.record()
            torch.cuda.synchronize()
            if number >= 0:  # the rounds before compile and warm up
                times[side].append(1e3 * start.elapsed_time(end) / CALLS)
    found = {f"{side}_median_us": median(values) for side, values in times.items()}
    return found | {f"{side}_p95_us": quantiles(values, n=20)[-1] for side, values in times.items()}


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table or the document."""
    machine = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if options.json:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        versions = {"torch": torch.__version__, "triton": version("triton")}
        settings = vars(options) | {"calls": CALLS}
        document = {"date": date, "machine": machine, "versions": versions, "settings": settings, "rows": rows}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    table = Table(title=f"{options.size[0]}x{options.size[1]} on {machine['gpu']}; microseconds a call, median (p95)")
    for head in ("case", "batch", "type", *SIDES, "reference / kernel", "compiled / kernel", "error, of allowed"):
        table.add_column(head, justify="left" if head == "case" else "right")
    for row in rows:
        times = [f"{row[f'{side}_median_us']:.0f} ({row[f'{side}_p95_us']:.0f})" for side in SIDES]
        ratios = [f"{row[f'{side}_median_us'] / row['kernel_median_us']:.2f}" for side in SIDES[1:]]
        table.add_row(row["case"], str(row["batch"]), row["dtype"], *times, *ratios, f"{row['error']:.2g}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
