"""All methods on one data set: a short common training, the scores, and the speed; one command a row.

    python benchmarks/compare.py camvid sdcpc          train, score and time one row
    python benchmarks/compare.py camvid --table        the table of all rows so far

Every row of a data set has the same number of steps and target frames, the same crops and augmentation, and the same
initial weights: those of the shipped SegFormer for rows on MiT-B0. Rows on ResNet-18 start from random weights, as no
pretrained ones are in this repository. TFC's clips have four labelled frames, the others' one. Rows that need no
training of their own run SegFormer's. DCFM looks ahead, but for the row "online". Speed is that on the first validation
video, fp32, frame tensor to labels of full size.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steadyseg import config
from steadyseg.benchmark import Setting, machine
from steadyseg.data import open_source
from steadyseg.engine.checkpoint import load_model
from steadyseg.engine.evaluate import evaluate
from steadyseg.engine.stream import segment
from steadyseg.engine.train import train
from steadyseg.metrics import standard

RESULTS = Path(__file__).parent / "results"
METRICS = ("mIoU", "wIoU", "mVC8", "mVC16", "TC")


class Row(NamedTuple):
    """One line of the table."""

    run: str
    """What is trained; rows may share it."""
    method: str | None = None
    """Another method that runs those weights."""
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """What differs when it runs."""


MODELS = {
    "segformer": {"backbone": "mit_b0"},
    "sdcpc": {"backbone": "mit_b0"},
    "tfc": {"backbone": "mit_b0"},
    "dcfm": {"backbone": "mit_b0"},
    "pspnet": {"backbone": "resnet18_ppm"},
    "msaf": {"backbone": "resnet18"},
}
ROWS = {
    "segformer": Row("segformer"),
    "reuse": Row("segformer", "reuse", {"interval": 4}),
    "flow": Row("segformer", "flow", {"interval": 4}),
    "tfc_untrained": Row("segformer", "tfc", {"interval": 4}),
    "tfc": Row("tfc"),
    "dcfm_k2": Row("dcfm", None, {"interval": 2}),
    "dcfm_k6": Row("dcfm", None, {"interval": 6}),
    "dcfm_k6_online": Row("dcfm", None, {"interval": 6, "neighbours": 1}),
    "sdcpc": Row("sdcpc"),
    "pspnet": Row("pspnet"),
    "msaf": Row("msaf"),
}
DATA: dict[str, dict[str, Any]] = {
    "camvid": {
        "data": {
            "train": [{"source": "camvid", "split": "train", "still": True}],
            "augment": {"base_size": [360, 480], "crop": [240, 320]},
        },
        "eval": {"source": {"source": "camvid", "split": "val"}},
    },
    "davis": {
        "data": {
            "train": [{"source": "davis", "split": "train"}],
            "augment": {"base_size": [240, 427], "crop": [192, 320]},
        },
        "eval": {"source": {"source": "davis", "split": "val"}},
    },
}
TRAIN = {
    "iterations": 150,
    "batch_size": 4,
    "lr": 2.0e-4,
    "warmup": 15,
    "clip_norm": 1.0,
    "precision": "bf16-mixed",
    "class_weights": "sqrt_median",
    "workers": 1,
}


def experiment(data: str, name: str, iterations: int) -> config.Experiment:
    """Return what trains `name` on `data`."""
    started = MODELS[name]["backbone"] == "mit_b0"
    start = {"init": "segformer_mit_b0_camvid"} if started else {}
    recipe = {**TRAIN, **start, "iterations": iterations}
    return config.from_dict({"method": name, "model": MODELS[name], "train": recipe, **DATA[data]})


def speed(path: Path, row: Row, source: Any, frames: int) -> dict[str, float]:
    """Return milliseconds and frames per second over real frames, after a few that are not timed.

    As in the scores, a method that looks ahead does so.
    """
    model = load_model(path, method=row.method, options=row.options)
    video = list(islice(source.read(source.names[0]), frames))
    video = video[: len(video) // model.period * model.period]
    for _ in segment(model, video[: 2 * model.period + 6]):
        pass
    begin = time.perf_counter()
    count = sum(1 for _ in segment(model, video))
    spent = (time.perf_counter() - begin) / count
    return {"ms": 1e3 * spent, "fps": 1 / spent}


def table(data: str) -> str:
    """Return the rows so far as Markdown."""
    found = json.loads((RESULTS / f"compare_{data}.json").read_text())
    lines = [
        "| row | mIoU | wIoU | mVC8 | mVC16 | TC | ms | FPS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in ROWS if "scores" in found.get(name, {})):
        scores, fast = found[name]["scores"], found[name].get("speed")
        cells = [f"{100 * scores[metric]:.1f}" for metric in METRICS]
        cells += [f"{fast['ms']:.0f}", f"{fast['fps']:.1f}"] if fast else ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="rows of the table; none for all")
    parser.add_argument("--parts", default="train,score,speed", help="any of train, score, speed, with commas")
    parser.add_argument("--iterations", type=int, default=TRAIN["iterations"])
    parser.add_argument("--frames", type=int, default=60, help="timed frames")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--table", action="store_true", help="only show the table")
    arguments = parser.parse_args()
    if not arguments.table:
        for name in arguments.rows or ROWS:
            measure(name, arguments)
    print(table(arguments.data))  # noqa: T201


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Do the asked parts for one row, and put what they give into the result file."""
    row, parts = ROWS[name], arguments.parts.split(",")
    wanted = experiment(arguments.data, row.run, arguments.iterations)
    run = arguments.runs / arguments.data / str(arguments.iterations) / row.run
    if "train" in parts and not (run / "model.safetensors").is_file():
        train(wanted, run, resume=run.is_dir())
    source = open_source(wanted.eval.source)
    given: dict[str, Any] = {"iterations": arguments.iterations, "options": row.options, "trained": row.run}
    if "score" in parts:
        model = load_model(run, method=row.method, options=row.options)
        metrics = standard(source)
        given["scores"] = evaluate(model, source, metrics)
        given["protocols"] = [metric.protocol for metric in metrics]
        given["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if "speed" in parts:
        given["speed"] = speed(run, row, source, arguments.frames)
        size = tuple(next(source.read(source.names[0], [0])).image.shape[1:])
        given["machine"] = machine(replace(Setting(), size=size, classes=len(source.classes), frames=arguments.frames))
    path = RESULTS / f"compare_{arguments.data}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    found[name] = {**found.get(name, {}), **given}
    path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
