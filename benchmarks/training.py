"""Training throughput of this tree, in turn with that of another, such as a git worktree of an older version.

    python benchmarks/training.py sdcpc_mit_b0_camvid_first
    python benchmarks/training.py sdcpc_mit_b0_camvid_first --against ../first --other sdcpc_mit_b0_camvid --json

Each run trains a few steps of a config through the command line, from random weights and with everything on (loading,
augmentation, logging), with one thread and one worker; the first steps are not timed. $STEADYSEG_DATA holds the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trees import call, trees

from steadyseg import config
from steadyseg.benchmark import Setting, machine


def run(tree: Path, name: str, steps: int, skipped: int) -> list[float]:
    """Train in a process of its own; returns the seconds of each timed step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [name, "--out", f"{folder}/run", f"train.iterations={steps + skipped}", "train.log_every=1"]
        changes = ["train.init=null", "train.workers=1", "train.checkpoint_minutes=1000"]
        call(tree, ["train", *words, *changes], OMP_NUM_THREADS="1")
        events = EventAccumulator(f"{folder}/run/log")
        events.Reload()
        times = [event.wall_time for event in events.Scalars("loss")][skipped - 1 :]
    return [after - before for before, after in itertools.pairwise(times)]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config, by name or file")
    parser.add_argument("--against", type=Path, help="another tree, which holds src/")
    parser.add_argument("--other", help="the config's name in that tree, if it is another")
    parser.add_argument("--steps", type=int, default=10, help="timed steps a run")
    parser.add_argument("--skipped", type=int, default=3, help="steps before them")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tree, in turn")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sides = trees(arguments.against)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, tree in sides.items():
            wanted = (name == "other" and arguments.other) or arguments.config
            seconds[name] += run(tree, wanted, arguments.steps, arguments.skipped)
    experiment = config.load(arguments.config)
    size = experiment.data.augment.crop
    report: dict[str, Any] = {
        "config": arguments.config,
        "batch_size": experiment.train.batch_size,
        "crop": list(size),
        "precision": experiment.train.precision,
        "seconds_a_step": {name: median(values) for name, values in seconds.items()},
        "machine": machine(replace(Setting(), size=size)),
    }
    if arguments.against:
        report["speedup"] = report["seconds_a_step"]["other"] / report["seconds_a_step"]["this"]
    if arguments.json:
        print(json.dumps(report, indent=2))  # noqa: T201
        return
    for name, value in report["seconds_a_step"].items():
        clips = experiment.train.batch_size / value
        print(f"{name}: {value:.3f} s a step of {experiment.train.batch_size} clips, {clips:.2f} clips a second")  # noqa: T201
    if arguments.against:
        print(f"{report['speedup']:.2f} times as fast as the other")  # noqa: T201


if __name__ == "__main__":
    main()
