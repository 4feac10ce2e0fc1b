"""How long predict takes on a video, in turn with that of another tree, such as a git worktree of an older version.

    python benchmarks/predict.py solidWhiteRight.mp4
    python benchmarks/predict.py solidWhiteRight.mp4 --against ../first --json

Each run is the whole command: starting Python, loading the weights, decoding, the model, drawing and encoding. Each
tree runs its own weights of that name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from steadyseg.benchmark import Setting, machine

HERE = Path(__file__).parents[1]


def run(tree: Path, video: Path, model: str, frames: int | None) -> float:
    """Return the seconds of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["predict", str(video), "-o", f"{folder}/out.mp4", "--model", model]
        words += ["--max-frames", str(frames)] if frames else []
        program = "import sys; from steadyseg.cli import main; sys.exit(main())"
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
        )
        spent = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return spent


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--against", type=Path, help="another tree, which holds src/")
    parser.add_argument("--model", default="sdcpc_mit_b0_camvid", help="name of shipped weights")
    parser.add_argument("--frames", type=int, help="only the first frames")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tree, in turn")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    trees = {"this": HERE, **({"other": arguments.against.resolve()} if arguments.against else {})}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(arguments.repeats):
        for name, tree in trees.items():
            seconds[name].append(run(tree, arguments.video.resolve(), arguments.model, arguments.frames))
    report: dict[str, Any] = {
        "video": arguments.video.name,
        "frames": arguments.frames,
        "model": arguments.model,
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
