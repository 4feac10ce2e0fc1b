"""Fresh processes, which see nothing of what ran before."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from steadyseg.types import SteadysegError

T = TypeVar("T")


class EndedError(SteadysegError):
    """The process of a measurement ended without a result."""


class Process:
    """A process that runs functions of this package for another, one at a time, until the end of the with-block.

    Where the block ends in an error, or the program in a signal, the process does not finish what it is at.

    Args:
        ended: the message if it ends by itself.
        first: what it does before all else.
    """

    def __init__(self, ended: str, first: Callable[[], None] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._ended = ended
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, first))
        self._process.start()
        theirs.close()  # else this end would never see that the other is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self._line.close()
        self._process.join()

    def __call__(self, function: Callable[..., T], *inputs: Any) -> T:
        """Return what `function` returns there, or raise what it raises.

        Raises:
            EndedError: if the process ends without a result.
        """
        try:
            self._line.send((function, inputs))
            result, error = self._line.recv()
        except (EOFError, ConnectionError):
            raise EndedError(self._ended) from None
        if error is not None:
            raise error
        return result


def _serve(line: Connection, first: Callable[[], None] | None) -> None:
    """Answer calls until nobody is there to ask, or the one who asks ends this process: Ctrl-C is for that one."""
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
