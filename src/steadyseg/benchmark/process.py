"""Fresh processes, which see nothing of what ran before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from steadyseg.types import SteadysegError

T = TypeVar("T")


class EndedError(SteadysegError):
    """The process of a measurement ended without a result."""


class Process:
    """A process that runs functions of this package for another, one at a time, until the end of the with-block.

    Args:
        ended: the message if it ends by itself.
        first: what it does before all else.
    """

    def __init__(self, ended: str, first: Callable[[], None] | None = None) -> None:
        self._ended = ended
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, function: Callable[..., T], *inputs: Any) -> T:
        """Return what `function` returns there, or raise what it raises.

        Raises:
            EndedError: if the process ends without a result.
        """
        try:
            return self._pool.submit(function, *inputs).result()
        except BrokenProcessPool:
            raise EndedError(self._ended) from None
