"""A training run's log as one picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOOTHING = 25
"""Logged values in the running mean that is drawn over the losses."""


def draw(log: Path, out: Path) -> None:
    """Draw what a run has logged so far: the loss and its terms, the scores, and the learning rate, over the steps.

    Args:
        log: folder of TensorBoard's event files, as `train` writes them.
        out: the picture, PNG; replaced whole. Left as it is where nothing was logged yet.
    """
    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    logged = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    series = {
        tag: ([event.step for event in values], [event.value for event in values])
        for tag, values in logged.items()
        if values
    }
    if "loss" not in series:  # stopped before the first logged step
        return
    terms = sorted(tag for tag in series if tag.startswith("loss/"))
    panels = [["loss"] if len(terms) < 2 else ["loss", *terms], *([[tag] for tag in ("mIoU", "lr") if tag in series])]
    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    for axis, tags in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for number, tag in enumerate(tags):
            steps, values = series[tag]
            is_loss, colour = tag.startswith("loss"), f"C{number}"
            axis.plot(steps, values, color=colour, alpha=0.25 if is_loss else 1.0, label=None if is_loss else tag)
            if is_loss:
                axis.plot(steps, _smooth(values), color=colour, label=tag.removeprefix("loss/"))
        axis.set_ylabel("loss" if tags[0] == "loss" else tags[0])
        axis.grid(alpha=0.3)
        if min(value for tag in tags for value in series[tag][1]) > 0 and tags[0] == "loss":
            axis.set_yscale("log")
        if len(tags) > 1:
            axis.legend(loc="upper right")
    axis.set_xlabel("step")
    partial = out.with_name(f"{out.name}.part")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(out)


def _smooth(values: list[float]) -> list[float]:
    """Return the mean of each value and up to SMOOTHING - 1 before it."""
    windows = [values[max(end - SMOOTHING, 0) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
