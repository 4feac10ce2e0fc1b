"""The command train."""

from __future__ import annotations

from pathlib import Path

from steadyseg import console


def train(
    config: str, *overrides: str, out: str | None = None, resume: bool = False, time_budget: str | None = None
) -> None:
    """Train a method as a config says.

    Args:
        config: a YAML file, or the name of a shipped config (see steadyseg list).
        overrides: values that win over the config, such as train.lr=6e-5.
        out: folder of the run; runs/ and the config's name if not given.
        resume: go on with the run in that folder.
        time_budget: how long to train, such as 2h, 1h30m or 45s, instead of the config's number of steps; the learning
            rate follows the clock.
    """
    from steadyseg.config import load
    from steadyseg.engine.train import train as run_training

    budget = [f"train.time_budget={time_budget}"] if time_budget else []
    experiment = load(config, (*overrides, *budget))
    parts = [f"{entry.source} {entry.split}{' (stills)' if entry.still else ''}" for entry in experiment.data.train]
    length = experiment.train.time_budget or f"{experiment.train.iterations} steps"
    console.line(f"training {experiment.method} on {', '.join(parts)} for {length}")
    weights = run_training(experiment, Path(out or f"runs/{Path(config).stem}"), resume=resume)
    console.line(f"weights: {weights}")
