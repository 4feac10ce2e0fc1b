"""Stages of a pipeline, each in a thread of its own: while one works on an item, the one before works on the next.

`ahead` runs what comes before the caller, `behind` what comes after; both may be nested, and a stage may use them too.
Video, OpenCV and torch calls do not hold Python's lock, so a pipeline takes about as long as its slowest stage.
Settings that torch keeps for each thread, such as autocast, are not those of the caller: enter them inside the stage.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 4
"""Items that may wait between two stages; they even out how long frames take, as key frames take longer than others."""


class StoppedError(Exception):
    """Raised in a stage where it asks for the next item, so that it keeps nothing: what comes before it has failed."""


class _Channel(Generic[T]):
    """A bounded queue between two threads, which both may close."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_asked = self._is_refused = self._is_ended = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Hand over an item as soon as there is room; False where nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._is_refused)
            if not self._is_refused:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_refused

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._is_asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._is_ended)
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # while waiting for the next one, this one is free

    def end(self, error: BaseException | None = None, *, at_once: bool = False) -> None:
        """Put no more; the taker gets `error` after what was put, or instead of it."""
        with self._changed:
            self._is_ended, self._error = True, error
            if at_once:
                self._items.clear()
            self._changed.notify_all()

    def refuse(self) -> None:
        """Take no more."""
        with self._changed:
            self._is_refused = True
            self._items.clear()
            self._changed.notify_all()

    def wait_until_asked(self) -> None:
        """Wait until the taker asks for its first item, or never will."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_asked or self._is_refused)


@contextmanager
def ahead(source: Iterable[T], *, depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """Iterate over `source` in a thread of its own, at most `depth` items ahead; order is kept.

    An error of the source is raised where its item was due. The thread has ended, and a generator is closed, when the
    ``with`` block has.

    Args:
        source: what to iterate over, such as a generator that decodes a video; only the new thread touches it.
        depth: the most items that wait.

    Yields:
        An iterator over the same items.
    """
    channel: _Channel[T] = _Channel(depth)

    def work() -> None:
        try:
            for item in source:
                if not channel.put(item):
                    break
            if isinstance(source, Generator):
                source.close()
            channel.end()
        except BaseException as error:
            channel.end(error)

    thread = _thread(work)
    try:
        thread.start()
        yield iter(channel)
    finally:
        channel.refuse()
        _join(thread)


@contextmanager
def behind(stage: Callable[[Iterable[T]], object], *, depth: int = DEPTH) -> Iterator[Callable[[T], None]]:
    """Run `stage` in a thread of its own, on the items that the caller puts; order is kept.

    The ``with`` block begins when the stage asks for its first item, and ends when the stage has. If the block ends
    well, so do the items of the stage; if it fails, the stage gets a StoppedError where it asks for the next item.
    An error of the stage is raised in the block at the next item, or at its end.

    Args:
        stage: a function of an iterable, such as one that encodes a video.
        depth: the most items that wait.

    Yields:
        What to call with every item; it waits while `depth` items wait.
    """
    channel: _Channel[T] = _Channel(depth)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            stage(channel)
        except StoppedError:
            pass
        except BaseException as error:
            failure.append(error)
        finally:
            channel.refuse()

    def put(item: T) -> None:
        if not channel.put(item) and failure:
            raise failure[0]

    thread = _thread(work)
    try:
        thread.start()
        channel.wait_until_asked()
        if failure:
            raise failure[0]
        yield put
        channel.end()
        thread.join()
    except BaseException:
        channel.end(StoppedError("an earlier stage has failed"), at_once=True)
        _join(thread)
        raise
    if failure:
        raise failure[0]


def _thread(work: Callable[[], None]) -> threading.Thread:
    """Return a thread, not yet started, in which context variables are those of the caller."""
    return threading.Thread(target=contextvars.copy_context().run, args=(work,))


def _join(thread: threading.Thread) -> None:
    """Wait for a thread to end, if it was started: an interrupt may come before."""
    if thread.ident is not None:
        thread.join()
