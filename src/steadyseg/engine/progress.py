"""What a training run shows while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """A progress bar on a terminal, plain lines elsewhere; to be used in a ``with`` statement."""

    def __init__(self, done: int, total: int, *, show: bool) -> None:
        """Prepare to show steps after `done` of `total`; nothing is shown unless `show`."""
        self.console = Console(stderr=True, quiet=not show)
        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            refresh_per_second=2,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task("", total=total, completed=done, pace="")
        self.begun, self.first, self.is_complete = time.monotonic(), done, done >= total

    def __enter__(self) -> Bar:
        self.bar.start()
        if self.first:
            self.say("the run is finished" if self.is_complete else f"going on after step {self.first}")
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, step: int, total: int, terms: Mapping[str, float], rate: float, *, written: bool) -> None:
        """Show a finished step; `written` steps become a line where there is no terminal.

        Args:
            step: steps taken, of the whole run.
            total: steps of the whole run, so far as known.
            terms: the loss by term.
            rate: learning rate.
            written: whether this step is logged.
        """
        if not written and not self.console.is_terminal:
            return
        loss = f"loss {sum(terms.values()):.4f}"
        if len(terms) > 1:
            loss += " (" + ", ".join(f"{name} {value:.4f}" for name, value in terms.items()) + ")"
        speed = (step - self.first) / (time.monotonic() - self.begun)
        self.bar.update(self.task, completed=step, total=total, description=loss, pace=f"{speed:.2f} it/s")
        if not self.console.is_terminal:
            left = timedelta(seconds=round((total - step) / speed))
            self.say(f"step {step}/{total}  {loss}  lr {rate:.2e}  {speed:.2f} it/s  {left} left")

    def say(self, text: str) -> None:
        """Write a line, above the bar where there is one."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
