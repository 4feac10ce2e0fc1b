"""Time several videos through one model: each with a Stream of its own, against all as one batch, in turn.

    python benchmarks/streams.py --streams 1 2 4
    python benchmarks/streams.py --device cuda --precision bf16 --streams 1 2 4 8 16

From uint8 frames to uint8 labels, in milliseconds a frame. Prints a table and writes benchmarks/results/streams.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steadyseg.backends import autocast
from steadyseg.benchmark import Setting, machine
from steadyseg.data.streets import StreetsSource
from steadyseg.engine.checkpoint import load_model
from steadyseg.engine.stream import Stream
from steadyseg.engine.streams import Streams
from steadyseg.models.base import VideoSegmenter

Way = Callable[[dict[int, Tensor]], dict[int, Tensor]]


def main() -> None:
    """Run the benchmark of the command line."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(options.weights, options.device)
    rows = [{"streams": streams, **compare(model, streams, options)} for streams in options.streams]
    report(rows, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="sdcpc_mit_b0_camvid")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=40, help="timed frames of every video")
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streams.json")
    options = parser.parse_args()
    if min(*options.streams, options.frames - 1) < 1:
        parser.error("expected at least one stream and two frames")
    return options


def rounds(streams: int, options: argparse.Namespace) -> Iterator[dict[int, Tensor]]:
    """Yield the next frame of every video, each of a street of its own, forwards and backwards without end."""
    size = (options.size[0], options.size[1])
    source = StreetsSource(split="val", size=size, length=8, videos=streams)
    videos = [[frame.image.to(options.device) for frame in source.read(name)] for name in source.names]
    for number in count():
        yield {key: frames[abs((number + 7) % 14 - 7)] for key, frames in enumerate(videos)}


def compare(model: VideoSegmenter, streams: int, options: argparse.Namespace) -> dict[str, float]:
    """Time both ways in turn, who begins changes; milliseconds a frame, and the share of labels that differ."""
    single = [Stream(model) for _ in range(streams)]
    ways: dict[str, Way] = {
        "alone": lambda frames: {key: single[key](frame) for key, frame in frames.items()},
        "together": Streams(model),  # type: ignore[dict-item]
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    differing = 0.0
    for number, frames in zip(range(options.warmup + options.frames), rounds(streams, options), strict=False):
        labels = {}
        for name in sorted(ways, reverse=bool(number % 2)):
            spent, labels[name] = clock(ways[name], frames, options)
            if number >= options.warmup:
                times[name].append(1e3 * spent / streams)
        wrong = [(labels["alone"][key] != labels["together"][key]).float().mean().item() for key in frames]
        differing += sum(wrong) / len(wrong) / (options.warmup + options.frames)
    result = {"differing": differing}
    for name, values in times.items():
        result |= {f"{name}_median_ms": median(values), f"{name}_p95_ms": quantiles(values, n=20)[-1]}
    return result | {"ratio": median(a / t for a, t in zip(times["alone"], times["together"], strict=True))}


def clock(way: Way, frames: dict[int, Tensor], options: argparse.Namespace) -> tuple[float, dict[int, Tensor]]:
    """Return the seconds of one round, on a GPU until it has done all, and the labels."""
    finish = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    finish()
    start = time.perf_counter()
    with autocast(options.device, options.precision):
        labels = way(frames)
    finish()
    return time.perf_counter() - start, labels


def report(rows: list[dict[str, float]], options: argparse.Namespace) -> None:
    """Print the table and write the JSON file."""
    table = Table(title=f"{options.weights} at {options.size[0]}x{options.size[1]}, {options.device}, a frame")
    for head in ("streams", "one by one ms (p95)", "one batch ms (p95)", "one by one / batch", "labels that differ"):
        table.add_column(head, justify="right")
    for row in rows:
        times = [f"{row[f'{way}_median_ms']:.2f} ({row[f'{way}_p95_ms']:.2f})" for way in ("alone", "together")]
        table.add_row(str(row["streams"]), *times, f"{row['ratio']:.2f}", f"{row['differing']:.1e}")
    Console(width=120).print(table)
    about = machine(Setting(device=options.device, threads=options.threads))
    about["setting"] = {name: value for name, value in vars(options).items() if name != "out"}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
