"""Stages run at the same time, keep order, hand on errors, and end; nothing is left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import pytest

from steadyseg.engine.pipeline import StoppedError, ahead, behind


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def slow(count: int, seconds: float = 0.0) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_order_and_everything_arrives() -> None:
    taken: list[int] = []
    with behind(taken.extend) as put, ahead(slow(100)) as numbers:
        for number in numbers:
            put(10 * number)
    assert taken == list(range(0, 1000, 10))


def test_three_stages_work_at_the_same_time() -> None:
    """Nobody gets past the barrier before the source has item n + 2, the caller n + 1 and the last stage n."""
    barrier = threading.Barrier(3, timeout=60)
    count = 10

    def source() -> Iterator[int]:
        for number in range(count):
            if number >= 2:
                barrier.wait()
            yield number

    def save(items: Iterable[int]) -> None:
        for number in items:
            if number < count - 2:
                barrier.wait()

    with behind(save) as put, ahead(source()) as numbers:
        for number in numbers:
            if 1 <= number < count - 1:
                barrier.wait()
            put(number)


def test_the_number_of_waiting_items_is_bounded() -> None:
    made: list[int] = []
    saved: list[int] = []
    go = threading.Event()

    def source() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    def save(items: Iterable[int]) -> None:
        for item in items:
            go.wait()
            saved.append(item)

    with behind(save, depth=2) as put, ahead(source(), depth=3) as numbers:
        assert next(numbers) == 0
        deadline = time.monotonic() + 60
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == 5  # one taken, three waiting, one in hand
        for number in (1, 2, 3):
            put(number)
        late = threading.Thread(target=put, args=(4,))
        late.start()
        late.join(0.1)
        assert late.is_alive()  # one in hand, two waiting: no room
        go.set()
        late.join()
    assert saved == [1, 2, 3, 4]


def test_an_error_of_the_source_comes_where_its_item_was_due() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("frame 2 is broken")

    taken: list[int] = []
    ended: list[str] = []

    def save(items: Iterable[int]) -> None:
        try:
            taken.extend(items)
        except StoppedError:
            ended.append("stopped")
            raise

    with (
        pytest.raises(ValueError, match="frame 2 is broken"),
        behind(save) as put,
        ahead(source()) as numbers,
    ):
        seen = []
        for number in numbers:
            seen.append(number)
            put(number)
    assert seen == [1, 2]
    assert ended == ["stopped"]


def test_an_error_of_the_last_stage_ends_the_others() -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.current_thread() is threading.main_thread())

    def save(items: Iterable[int]) -> None:
        for item in items:
            if item == 7:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"), behind(save) as put, ahead(source()) as numbers:
        for number in numbers:
            put(number)
    assert closed == [False]  # by the thread that opened it


def test_an_error_after_the_last_item_is_not_lost() -> None:
    def save(items: Iterable[int]) -> None:
        list(items)
        raise OSError("cannot finish")

    with pytest.raises(OSError, match="cannot finish"), behind(save) as put:
        put(1)


def test_a_stage_that_cannot_begin_is_known_before_the_work() -> None:
    def save(items: Iterable[int]) -> None:
        raise OSError("no such folder")

    began = False
    with pytest.raises(OSError, match="no such folder"), behind(save):
        began = True
    assert not began


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_error_of_the_caller_stops_all(error: type[BaseException]) -> None:
    kept: list[int] = []

    def save(items: Iterable[int]) -> None:
        kept.extend(list(items))  # only if all went well

    with pytest.raises(error), behind(save) as put, ahead(slow(10**9)) as numbers:
        put(next(numbers))
        raise error
    assert kept == []


def test_an_interrupt_while_the_last_stage_finishes_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second join is that after the interrupt."""
    join, calls = threading.Thread.join, []

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        join(self, timeout)

    def save(items: Iterable[int]) -> None:
        for _ in items:
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt), behind(save) as put:
        monkeypatch.setattr(threading.Thread, "join", interrupted)
        for number in range(4):
            put(number)
    assert len(calls) == 2


def test_the_caller_may_leave_early() -> None:
    with ahead(slow(10**9)) as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]


def test_context_variables_reach_the_stages() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    variable.set("inside")
    seen: list[str] = []
    with behind(lambda items: seen.extend(variable.get() for _ in items)) as put, ahead([1]) as numbers:
        put(next(numbers))
    assert seen == ["inside"]
