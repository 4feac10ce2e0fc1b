"""Time every graph of a method, started kernel by kernel and as one recording, in turn.

    python benchmarks/cuda_graphs.py --methods segformer sdcpc dcfm --backbone mit_b1
    python benchmarks/cuda_graphs.py --precision fp32 --json

Weights are random. The results of both are compared. It needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steadyseg import models
from steadyseg.cuda_graphs import CudaGraphs, record
from steadyseg.types import SteadysegError

CLASSES = 124
CALLS = 20
"""Between two readings of the clock."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Run the benchmark of the command line."""
    options = parse()
    rows = []
    enabled = options.precision != "fp32"
    with torch.inference_mode(), torch.autocast("cuda", dtype=DTYPES[options.precision], enabled=enabled):
        for name, key, function, recording, inputs in graphs(options):
            pairs = zip(recording(*inputs), function(*inputs), strict=True)
            error = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
            rows.append({"method": name, "graph": key, "error": error, **clock(function, recording, inputs, options)})
    report(rows, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=("segformer", "sdcpc", "dcfm", "tfc", "reuse"))
    parser.add_argument("--backbone", default="mit_b1")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 853), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25, help=f"readings of the clock, of {CALLS} calls each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print a document with all numbers")
    options = parser.parse_args()
    if min(*options.size, options.batch) < 1 or options.repeats < 2:
        parser.error("expected a size and a batch of at least 1, and at least 2 repeats")
    try:
        for name in options.methods:
            models.method(name)
    except SteadysegError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; run this on a machine with a GPU")
    return options


def graphs(options: argparse.Namespace) -> Iterator[tuple[str, str, Callable, Callable, list[Tensor]]]:
    """Yield every graph: its method, its name, its function, its recording and its inputs."""
    for name in options.methods:
        torch.manual_seed(options.seed)
        cls = models.method(name)
        config = cls.Config(backbone=options.backbone)
        model = cls(config, CLASSES).to("cuda").eval()
        model.backend = CudaGraphs()  # whose graphs are listed
        frame = torch.randint(0, 256, (options.batch, 3, *options.size), dtype=torch.uint8, device="cuda")
        for key, graph in model.graphs(frame).items():
            yield name, key, graph.function, record(graph), list(graph.inputs.values())


def clock(
    function: Callable, recording: Callable, inputs: list[Tensor], options: argparse.Namespace
) -> dict[str, float]:
    """Time both in turn, another one first in every round; microseconds a call."""
    runs = {"eager": function, "recorded": recording}
    times: dict[str, list[float]] = {side: [] for side in runs}
    for number in range(-3, options.repeats):
        for side in sorted(runs, reverse=bool(number % 2)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                runs[side](*inputs)
            end.record()
            torch.cuda.synchronize()
            if number >= 0:  # the rounds before warm up
                times[side].append(1e3 * start.elapsed_time(end) / CALLS)
    found = {f"{side}_median_us": median(values) for side, values in times.items()}
    return found | {f"{side}_p95_us": quantiles(values, n=20)[-1] for side, values in times.items()}


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table or the document."""
    machine = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if options.json:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        settings = vars(options) | {"calls": CALLS, "classes": CLASSES}
        document = {"date": date, "machine": machine, "torch": torch.__version__, "settings": settings, "rows": rows}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    size = f"{options.size[0]}x{options.size[1]}, {options.backbone}, {options.precision}"
    table = Table(title=f"{size} on {machine['gpu']}; microseconds a call, median (p95)")
    for head in ("method", "graph", "eager", "recorded", "eager / recorded", "largest difference"):
        table.add_column(head, justify="left" if head in ("method", "graph") else "right")
    for row in rows:
        times = [f"{row[f'{side}_median_us']:.0f} ({row[f'{side}_p95_us']:.0f})" for side in ("eager", "recorded")]
        ratio = row["eager_median_us"] / row["recorded_median_us"]
        table.add_row(row["method"], row["graph"], *times, f"{ratio:.2f}", f"{row['error']:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
