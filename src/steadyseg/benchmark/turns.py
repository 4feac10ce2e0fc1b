"""Several measurements at once, of which each has the machine for itself while it is timed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

from steadyseg.benchmark.process import EndedError, Process, Wish
from steadyseg.types import SteadysegError

T = TypeVar("T")


class StoppedError(SteadysegError):
    """A job may not go on, as all are stopped."""


class Turns:
    """Says which jobs may work: many beside each other, or one alone.

    A job that wishes to be alone waits until no other works, the first that asked before the next; a job that wishes to
    go on waits until none is alone or waits to be. So what is timed runs while every other job stands still, and every
    job gets its turn as long as each asks, or leaves, at some time.
    """

    def __init__(self) -> None:
        self.has_stopped = False
        self._changed = threading.Condition()
        self._wishes: dict[Turn, Wish] = {}  # the last one of every job, in the order of asking
        self._working: set[Turn] = set()
        self._processes: dict[Turn, Process] = {}

    def ask(self, turn: Turn, wish: Wish) -> None:
        """Stop the work of a job, and return when it may do what it wishes.

        Raises:
            StoppedError: if all are stopped.
        """
        with self._changed:
            self._forget(turn)
            self._wishes[turn] = wish
            self._permit()
            self._changed.wait_for(lambda: self.has_stopped or turn in self._working)
            self._go_on_unless_stopped()

    def leave(self, turn: Turn) -> None:
        """Wait no more for a job."""
        with self._changed:
            self._forget(turn)
            self._processes.pop(turn, None)
            self._permit()

    def hold(self, turn: Turn, process: Process) -> None:
        """Remember the process of a job, which `stop` ends.

        Raises:
            StoppedError: if all are stopped.
        """
        with self._changed:
            self._go_on_unless_stopped()
            self._processes[turn] = process

    def stop(self) -> None:
        """End all jobs."""
        with self._changed:
            self.has_stopped = True
            for process in self._processes.values():
                process.kill()
            self._changed.notify_all()

    def _forget(self, turn: Turn) -> None:
        self._wishes.pop(turn, None)
        self._working.discard(turn)

    def _permit(self) -> None:
        """Let those work that may."""
        alone = [turn for turn, wish in self._wishes.items() if wish is Wish.ALONE]
        if not alone:
            self._working.update(self._wishes)
        elif not self._working:
            self._working.add(alone[0])
        self._changed.notify_all()

    def _go_on_unless_stopped(self) -> None:
        if self.has_stopped:
            raise StoppedError("stopped")


class Turn:
    """The turn of one job, which works in the with-block where nothing else is asked for.

    Args:
        turns: those of all jobs.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> Self:
        self(Wish.ON)
        return self

    def __exit__(self, *_: object) -> None:
        self._turns.leave(self)

    def __call__(self, wish: Wish) -> None:
        """Wait until the job may do what it wishes."""
        self._turns.ask(self, wish)

    def holds(self, process: Process) -> None:
        """Say which process does the job."""
        self._turns.hold(self, process)


def in_turns(
    work: Callable[..., T],
    jobs: Sequence[tuple[Any, ...]],
    *,
    together: int,
    begin: Callable[[int], None],
    end: Callable[[int, T | EndedError], None],
) -> None:
    """Do jobs, up to so many at once; an error other than EndedError, or Ctrl-C, ends all.

    Args:
        work: does a job, with its `turn` where several are done at once.
        jobs: the inputs of each.
        together: how many at once.
        begin: called with the number of a job before it.
        end: called with the number of a job that is done, and its result or why its process ended. Where several are
            done at once, both are called from the threads of the jobs.

    Raises:
        Exception: what a job raises, besides EndedError.
    """

    def do(number: int, **turn: Turn) -> None:
        begin(number)
        try:
            outcome: T | EndedError = work(*jobs[number], **turn)
        except EndedError as error:
            if turns.has_stopped:
                raise StoppedError("stopped") from None
            outcome = error
        end(number, outcome)

    def take_turn(number: int) -> None:
        with Turn(turns) as turn:
            do(number, turn=turn)

    turns = Turns()
    if together == 1:
        for number in range(len(jobs)):
            do(number)
        return
    with ThreadPoolExecutor(together) as pool:
        try:
            futures = [pool.submit(take_turn, number) for number in range(len(jobs))]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            turns.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
