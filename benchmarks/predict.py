"""How long predict takes on a video, in turn with that of another tree, such as a git worktree of an older version.

    python benchmarks/predict.py solidWhiteRight.mp4
    python benchmarks/predict.py solidWhiteRight.mp4 --against ../first --json
    python benchmarks/predict.py solidWhiteRight.mp4 --against ../first --options="--backend openvino --precision bf16"

Each run is the whole command: starting Python, loading the weights, decoding, the model, drawing and encoding. Each
tree runs its own weights of that name. Graphs that a backend traces are kept from run to run, in a folder of this
program's own: the first run traces them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from trees import call, trees

from steadyseg.benchmark import Setting, machine


def run(tree: Path, video: Path, *, model: str, frames: int | None, options: list[str]) -> float:
    """Return the seconds of one run in a process of its own, with further options of the command."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["predict", str(video), "-o", f"{folder}/out.mp4", "--model", model, *options]
        words += ["--max-frames", str(frames)] if frames else []
        return call(tree, words)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--against", type=Path, help="another tree, which holds src/")
    parser.add_argument("--model", default="sdcpc_mit_b0_camvid", help="name of shipped weights")
    parser.add_argument("--frames", type=int, help="only the first frames")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tree, in turn")
    parser.add_argument("--options", default="", help="of this tree's command, such as '--backend openvino'")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cache = tempfile.TemporaryDirectory()
    os.environ["STEADYSEG_CACHE"] = cache.name
    sides = trees(arguments.against)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, tree in sides.items():
            options = shlex.split(arguments.options) if name == "this" else []
            words: dict[str, Any] = {"model": arguments.model, "frames": arguments.frames, "options": options}
            seconds[name].append(run(tree, arguments.video.resolve(), **words))
    report: dict[str, Any] = {
        "video": arguments.video.name,
        "frames": arguments.frames,
        "model": arguments.model,
        "options": arguments.options,
        "seconds": seconds,
        "median": {name: median(values) for name, values in seconds.items()},
        "machine": machine(Setting()),
    }
    if arguments.against:
        report["speedup"] = report["median"]["other"] / report["median"]["this"]
    if arguments.json:
        print(json.dumps(report, indent=2))  # noqa: T201
        return
    for name, value in report["median"].items():
        print(f"{name}: {value:.1f} s")  # noqa: T201
    if arguments.against:
        print(f"{report['speedup']:.2f} times as fast as the other")  # noqa: T201


if __name__ == "__main__":
    main()
