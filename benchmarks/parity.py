"""How far the exported graphs of every method are from torch, streamed over the first frames of a video.

    python benchmarks/parity.py solidWhiteRight.mp4
    python benchmarks/parity.py solidWhiteRight.mp4 --methods sdcpc dcfm --json

The shipped weights of a method where there are some, SegFormer's for reuse and flow, else random ones. Each method is
exported as ONNX, which ends in an error where scores differ by more than 1e-4 of the largest, and the files run in ONNX
Runtime and OpenVINO beside torch, frame by frame with their states. "scores" is the largest difference of a score,
relative to the largest score of its frame; "labels" counts the pixels with another label.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from steadyseg import models
from steadyseg.allocator import keep_freed_memory
from steadyseg.benchmark import Setting, machine
from steadyseg.commands.choices import read_size
from steadyseg.engine.checkpoint import load_model, names
from steadyseg.export import export
from steadyseg.models.base import VideoSegmenter

OPTIONS: dict[str, dict[str, Any]] = {
    "flow": {"interval": 4},
    "msaf": {"backbone": "resnet18"},
    "pspnet": {"backbone": "resnet18_ppm"},
    "reuse": {"interval": 4},
    "tfc": {"msda": "dense"},
}
"""What a method runs with: TFC's number of points otherwise depends on the video."""


def build(name: str) -> tuple[str, VideoSegmenter]:
    """Return what the weights are, and a method in evaluation mode."""
    own = f"{name}_mit_b0_camvid"
    if own in names():
        return own, load_model(own, options=OPTIONS.get(name, {}))
    if name in ("reuse", "flow"):
        weights = "segformer_mit_b0_camvid"
        return weights, load_model(weights, method=name, options=OPTIONS[name])
    torch.manual_seed(0)
    kind = models.method(name)
    return "random", kind(kind.Config(**OPTIONS.get(name, {})), 11).eval()


def measure(name: str, video: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Export a method, and return its differences, one for each runtime."""
    weights, model = build(name)
    with tempfile.TemporaryDirectory() as folder:
        report = export(model, Path(folder) / name, size=size, video=video)
    found = [difference._asdict() for difference in report.differences if difference.frames != "random"]
    return [{"method": name, "weights": weights, **entry, "frames": video.name} for entry in found]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--methods", nargs="+", default=models.names(), choices=models.names())
    parser.add_argument("--size", default="240x427", help="height x width")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = read_size(arguments.size, "--size")
    rows = [row for name in arguments.methods for row in measure(name, arguments.video, size)]
    if arguments.json:
        print(json.dumps({"size": size, "rows": rows, "machine": machine(Setting())}, indent=2))  # noqa: T201
        return
    for row in rows:
        words = f"{row['method']}, {row['weights']} weights, {row['runtime']}, {row['length']} frames:"
        print(f"{words} scores {row['scores']:.1e}, labels {row['labels']} of {row['pixels']}")  # noqa: T201


if __name__ == "__main__":
    keep_freed_memory()
    main()
