"""Fresh processes, which see nothing of what ran before."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

import torch

from steadyseg.types import SteadysegError

T = TypeVar("T")


class EndedError(SteadysegError):
    """The process of a measurement ended without a result."""


class Wish(Enum):
    """What a process waits for in the middle of a function."""

    ALONE = "to have the machine for itself"
    ON = "to go on beside others"


def at_once(wish: Wish) -> None:
    """Permit everything: nothing else runs."""


class Process:
    """A process that runs functions of this package for another, one at a time, until the end of the with-block.

    Where the block ends in an error, or the program in a signal, the process does not finish what it is at.

    Args:
        ended: the message if it ends by itself.
        first: what it does before all else.
        permit: called with each wish of the process, see `alone`; what was wished for begins when it returns.
    """

    def __init__(
        self, ended: str, *, first: Callable[[], None] | None = None, permit: Callable[[Wish], None] = at_once
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._ended, self._permit = ended, permit
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, first))
        self._process.start()
        theirs.close()  # else this end would never see that the other is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        self._line.close()
        self._process.join()

    def kill(self) -> None:
        """End it, also from another thread than the one that waits for it, which then raises EndedError."""
        self._process.kill()

    def __call__(self, function: Callable[..., T], *inputs: Any) -> T:
        """Return what `function` returns there, or raise what it raises.

        Raises:
            EndedError: if the process ends without a result.
        """
        try:
            self._line.send((function, inputs))
            while isinstance(answer := self._line.recv(), Wish):
                self._permit(answer)
                self._line.send(None)
        except (EOFError, ConnectionError):
            raise EndedError(self._ended) from None
        result, error = answer
        if error is not None:
            raise error
        return result


@contextmanager
def alone() -> Iterator[None]:
    """Have the machine for this process alone in the with-block, as far as measurements go that one command makes.

    In a `Process` it waits for permission before the block, and after it to go on beside others. Elsewhere it does
    nothing. Nothing that this process has given to a GPU still runs there while it waits.
    """
    _wait(Wish.ALONE)
    try:
        yield
    finally:
        _wait(Wish.ON)


_parent: Connection | None = None
"""In a `Process`: the line to the one that asks."""


def _wait(wish: Wish) -> None:
    if _parent is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    _parent.send(wish)
    _parent.recv()


def _serve(line: Connection, first: Callable[[], None] | None) -> None:
    """Answer calls until nobody is there to ask, or the one who asks ends this process: Ctrl-C is for that one."""
    global _parent  # noqa: PLW0603 (whom `alone` asks)
    _parent = line
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if first is not None:
        first()
    while True:
        try:
            function, inputs = line.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(*inputs), None)
        except Exception as error:
            error.add_note(f"in its process:\n{''.join(traceback.format_exception(error))}")
            answer = (None, error)
        line.send(answer)
