"""Draw the pictures of docs/results.md: python docs/draw_results.py

The charts come from the files in benchmarks/results/compare alone. With --clip NAMES the same frames go through the
runs that those rows were scored with, which needs runs/compare and $STEADYSEG_DATA.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steadyseg.data import SourceConfig, open_source
from steadyseg.engine.checkpoint import load_model
from steadyseg.engine.stream import segment
from steadyseg.video import flicker

FOLDER = Path(__file__).parent / "results"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "compare"


class Look(NamedTuple):
    """How a row appears in every chart."""

    title: str
    colour: str
    marker: str
    place: tuple[int, int] = (0, 8)
    """Where the title stands in charts, in points from the marker; elsewhere than above where another row is close."""
    align: str = "center"
    """Of the title, across."""


LOOKS = {
    "segformer": Look("SegFormer-B0", "#33639c", "o"),
    "reuse": Look("feature reuse", "#7d9fc9", "v", place=(9, -3), align="left"),
    "flow": Look("flow", "#9a9890", "^"),
    "tfc_untrained": Look("TFC, untrained", "#d9a95b", "D"),
    "tfc": Look("TFC-B0", "#a56310", "D"),
    "dcfm_k2": Look("DCFM-B0, K = 2", "#7fb78f", "s"),
    "dcfm_k6": Look("DCFM-B0, K = 6", "#2f7047", "s"),
    "dcfm_k6_online": Look("DCFM-B0, K = 6, online", "#54a06c", "s", place=(0, -16)),
    "sdcpc": Look("SD-CPC-B0", "#b0352b", "*"),
    "pspnet": Look("PSPNet-18", "#6a4aa8", "P"),
    "msaf": Look("MSAF-R18", "#a78fd6", "P"),
}


def rows(place: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the result files of one data set and budget by row, in the order of LOOKS; a file for each seed."""
    found = {
        name: [json.loads(file.read_text()) for file in sorted(place.glob(f"{name}_[0-9]*.json"))] for name in LOOKS
    }
    return {name: entries for name, entries in found.items() if entries}


def score(entries: Sequence[dict[str, Any]], split: str, metric: str) -> float:
    """Return the mean over seeds, in percent."""
    return 100 * mean(entry["scores"][split][metric] for entry in entries)


def draw_speed(found: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Accuracy, and consistency, against speed."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = {"accuracy: val mIoU, %": ("val", "mIoU"), "consistency: val mVC16, %": ("val", "mVC16")}
    for axis, (title, (split, metric)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, entries in found.items():
            timed = [entry["speed"]["fps"] for entry in entries if "speed" in entry]
            if timed:
                _point(axis, LOOKS[name], mean(timed), score(entries, split, metric))
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.margins(0.16, 0.12)
        axis.set_xlabel("frames per second, 360x480, two cores")
        axis.set_title(title, loc="left")
        axis.grid(alpha=0.3)
    _save(figure, out)


def _point(axis: Axes, look: Look, x: float, y: float) -> None:
    axis.scatter([x], [y], s=110, color=look.colour, marker=look.marker, zorder=3)
    axis.annotate(look.title, (x, y), xytext=look.place, textcoords="offset points", ha=look.align, fontsize=8)


def draw_classes(found: dict[str, list[dict[str, Any]]], split: str, out: Path) -> None:
    """The IoU of every class, a row for each method."""
    classes = list(next(iter(found.values()))[0]["scores"][split]["IoU"])
    values = np.array(
        [
            [100 * mean(entry["scores"][split]["IoU"][label] for entry in entries) for label in classes]
            for entries in found.values()
        ]
    )
    figure = Figure(figsize=(11, 0.9 + 0.36 * len(found)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(values, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(found)), [LOOKS[name].title for name in found])
    axis.tick_params(length=0)
    axis.set_title(f"IoU of each class, CamVid {split}, %", loc="left")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > 60 else "black"
        axis.text(
            column, row, "-" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", color=ink, fontsize=9
        )
    _save(figure, out)


def draw_clip(names: Sequence[str], found: dict[str, list[dict[str, Any]]], runs: Path, out: Path) -> None:
    """The same frames through every method: labels a fifth of a second apart, and where they flicker in the clip."""
    source = open_source(SourceConfig(source="camvid", split="val"))
    frames = list(islice(source.read(source.names[0]), 60))
    images, shown = torch.stack([frame.image for frame in frames]), (24, 27, 30)
    figure = Figure(figsize=(11, 2.1 * (len(names) + 1)), layout="constrained")
    axes = figure.subplots(len(names) + 1, len(shown) + 1)
    for axis, number in zip(axes[0], shown, strict=False):
        axis.imshow(images[number].permute(1, 2, 0).numpy())
        axis.set_title(f"frame {number}", fontsize=9)
    axes[0, -1].set_title("label changed, picture did not", fontsize=9)
    palette = np.array(source.palette, dtype=np.uint8)
    for line, name in zip(axes[1:], names, strict=True):
        entry = found[name][0]
        model = load_model(
            runs / f"{entry['trained']}_{entry['seed']}", method=entry["method"], options=entry["options"]
        )
        preds = torch.stack([labels for _, labels in segment(model, frames)])  # [T, H, W]
        for axis, number in zip(line, shown, strict=False):
            axis.imshow(palette[preds[number].numpy()])
        share = flicker(preds, images).float().mean(0)  # [H, W]
        line[-1].imshow(share.sqrt().numpy(), cmap="inferno", vmin=0, vmax=0.5)
        line[-1].set_xlabel(f"{100 * share.mean():.2f} % of pixels a frame", fontsize=8)
        line[0].set_ylabel(LOOKS[name].title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0, -1].set_facecolor("none")
    _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=750, help="budget of the rows")
    parser.add_argument("--clip", nargs="*", default=[], choices=[*LOOKS, []], help="rows to draw the clip for")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    arguments = parser.parse_args()
    place = Path("camvid", str(arguments.iterations))
    found = rows(RESULTS / place)
    draw_speed(found, FOLDER / "speed.png")
    draw_classes(found, "test", FOLDER / "classes.png")
    if arguments.clip:
        draw_clip(arguments.clip, found, arguments.runs / place, FOLDER / "clip.png")


if __name__ == "__main__":
    main()
