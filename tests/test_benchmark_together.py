"""Of several measurements at once each is timed while the others stand still, and none is waited for in vain."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from steadyseg import benchmark, cli
from steadyseg.benchmark import host, speed, turns
from steadyseg.benchmark.process import Process, Wish, alone
from steadyseg.benchmark.turns import StoppedError, Turn, Turns

TINY = benchmark.Setting(size=(64, 96), classes=5, frames=3, warmup=5, seed=1)
WORDS = ["--size", "64x96", "--classes", "5", "--frames", "2", "--warmup", "1", "--json"]


# ---- turns -------------------------------------------------------------------------------------------------------


def ask(turn: Turn, wish: Wish) -> threading.Thread:
    """Ask in another thread, and return it when the wish is known."""
    thread = threading.Thread(target=turn, args=(wish,), daemon=True)
    thread.start()
    while True:
        with turn._turns._changed:
            if turn._turns._wishes.get(turn) is wish:
                return thread


def ended(thread: threading.Thread) -> None:
    thread.join(60)
    assert not thread.is_alive()


def test_one_is_alone_while_the_others_stand_still() -> None:
    every = Turns()
    first, second, third = (Turn(every) for _ in range(3))
    first(Wish.ON)
    second(Wish.ON)
    assert every._working == {first, second}
    first_alone = ask(first, Wish.ALONE)
    assert every._working == {second}
    third_on = ask(third, Wish.ON)
    assert every._working == {second}, "a newcomer waits for who waits to be alone"
    second_alone = ask(second, Wish.ALONE)
    assert every._working == {first}, "it asked first"
    ended(first_alone)
    first_on = ask(first, Wish.ON)
    assert every._working == {second}, "who waits to be alone is before who waits to go on"
    ended(second_alone)
    every.leave(second)
    assert every._working == {first, third}
    ended(first_on)
    ended(third_on)


def test_whoever_leaves_is_waited_for_no_more() -> None:
    every = Turns()
    first, second, third = (Turn(every) for _ in range(3))
    with pytest.raises(ZeroDivisionError), first:
        thread = ask(second, Wish.ALONE)
        assert every._working == {first}
        raise ZeroDivisionError
    ended(thread)
    assert every._working == {second}
    stopped = threading.Event()

    def wait() -> None:
        with pytest.raises(StoppedError), third:
            raise AssertionError("it may not work")
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    every.stop()
    assert stopped.wait(60)
    with pytest.raises(StoppedError):
        second(Wish.ON)


def test_many_jobs_all_get_their_turn() -> None:
    busy: list[int] = []
    lock = threading.Lock()

    @contextmanager
    def working(number: int) -> Iterator[None]:
        with lock:
            busy.append(number)
        yield
        with lock:
            busy.remove(number)

    def work(number: int, turn: Turn) -> int:
        for _ in range(5):
            with working(number):
                time.sleep(0)
            turn(Wish.ALONE)
            with working(number):
                time.sleep(0.001)
                assert busy == [number]
            turn(Wish.ON)
        if number % 7 == 0:
            turn(Wish.ALONE)
            raise benchmark.EndedError("gone while alone")
        return -number

    done: dict[int, Any] = {}
    jobs = [(number,) for number in range(40)]
    benchmark.in_turns(work, jobs, together=12, begin=lambda number: None, end=done.__setitem__)
    assert set(done) == set(range(40))
    assert all(isinstance(done[number], benchmark.EndedError) for number in range(0, 40, 7))
    assert all(done[number] == -number for number in range(40) if number % 7)


def test_an_error_ends_all_jobs() -> None:
    def work(number: int, turn: Turn) -> None:
        if number == 1:
            raise ZeroDivisionError
        while True:
            turn(Wish.ON)

    with pytest.raises(ZeroDivisionError):
        benchmark.in_turns(
            work, [(0,), (1,), (2,)], together=2, begin=lambda number: None, end=lambda number, outcome: None
        )


def test_no_more_than_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before, handed_in, done = threading.active_count(), threading.Event(), []

    def wait(*inputs: Any, **options: Any) -> Any:
        done.append(threading.active_count() - before)
        handed_in.set()
        return wait_for_all(*inputs, **options)

    wait_for_all = turns.wait
    monkeypatch.setattr(turns, "wait", wait)
    jobs = [(number,) for number in range(9)]
    benchmark.in_turns(
        lambda number, turn: handed_in.wait(60),
        jobs,
        together=3,
        begin=lambda number: None,
        end=lambda number, _: done.append(number),
    )
    assert done[0] == 3 and sorted(done[1:]) == list(range(9))


# ---- what is timed alone -----------------------------------------------------------------------------------------


def nap_alone(error: bool) -> int:
    with alone():
        if error:
            raise ZeroDivisionError
    return os.getpid()


def test_a_process_waits_for_its_turn() -> None:
    assert nap_alone(False) == os.getpid(), "elsewhere it asks nobody"
    wishes: list[Wish] = []
    with Process("ended", permit=wishes.append) as process:
        assert process(nap_alone, False) != os.getpid()
        assert wishes == [Wish.ALONE, Wish.ON]
        with pytest.raises(ZeroDivisionError):
            process(nap_alone, True)
        assert wishes == 2 * [Wish.ALONE, Wish.ON]
    with Process("ended") as process:
        process(nap_alone, False)


def test_times_are_taken_alone_and_all_else_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, seen = False, []

    @contextmanager
    def turn() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    def noted(name: str, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        seen.append((name, inside))
        return function(*inputs, **options)

    def follow(*inputs: Any) -> Any:
        return partial(noted, "frame", run(*inputs))

    run = speed.follow
    monkeypatch.setattr(speed, "alone", turn)
    monkeypatch.setattr(speed, "follow", follow)
    monkeypatch.setattr(host, "SIDES", {"cpu": 256})
    for name in ("build", "attach", "parts", "peak_memory", "costs", "peak_gflops"):
        monkeypatch.setattr(speed, name, partial(noted, name, getattr(speed, name)))
    benchmark.measure("segformer", dataclasses.replace(TINY, parts=True))
    rounds = [("frame", False)] * 2 + [("frame", True)] * 6
    assert seen[:11] == [("build", False), ("attach", False), *rounds, ("peak_memory", True)]
    assert seen[11:] == [("parts", True), ("peak_gflops", True), ("costs", False)]
    seen.clear()
    benchmark.compare("segformer", dataclasses.replace(TINY, against="clip"))
    assert seen == [("build", False), ("attach", False), *rounds]


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_times_two_methods_in_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Turn, Wish]] = []
    ask = Turn.__call__

    def noted(self: Turn, wish: Wish) -> None:
        ask(self, wish)
        asked.append((self, wish))

    monkeypatch.setattr(Turn, "__call__", noted)
    assert cli.main(["benchmark", "reuse", "segformer", *WORDS, "--together", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["method"] for result in report["results"]] == ["reuse", "segformer"]
    assert report["setting"]["together"] == 2 and report["left_out"] == []
    for turn in {turn for turn, _ in asked}:
        assert [wish for other, wish in asked if other is turn] == [Wish.ON, Wish.ALONE, Wish.ON]
    assert len(asked) == 6


def test_results_are_in_the_order_of_the_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = threading.Event()

    def apart(function: Any, name: str, setting: benchmark.Setting, turn: Turn) -> dict[str, Any]:
        if name == "tfc":
            raise benchmark.EndedError("tfc: the process ended")
        if name == "dcfm":
            last.set()
        if name == "segformer":
            assert last.wait(60)  # then reuse has ended
        return benchmark.about(name, setting)

    monkeypatch.setattr(benchmark, "apart", apart)
    words = ["benchmark", "segformer", "tfc", "reuse", "dcfm", "--memory", "200", *WORDS, "--together", "2"]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [entry["method"] for entry in report["memory"]] == ["segformer", "reuse", "dcfm"]
    assert [(entry["method"], entry["why"]) for entry in report["left_out"]] == [("tfc", "tfc: the process ended")]
    assert "left out: tfc: the process ended" in captured.err


def hang_or_end(name: str, setting: benchmark.Setting) -> dict[str, Any]:
    """Give a result for segformer, end for reuse, and else leave a file and never end, tfc while it is alone."""
    if name == "segformer":
        return benchmark.about(name, setting)
    if name == "reuse":
        os._exit(9)
    folder = Path(os.environ["TOGETHER_TEST_FOLDER"])
    if name == "tfc":
        with alone():
            (folder / name).touch()
            time.sleep(600)
    (folder / name).touch()
    with alone():
        time.sleep(600)
    return {}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_all_and_reports_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOGETHER_TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(benchmark, "memory", hang_or_end)
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.is_set() and {file.name for file in tmp_path.iterdir()} != {"tfc", "dcfm"}:
            time.sleep(0.05)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    words = ["benchmark", "segformer", "reuse", "tfc", "dcfm", "sdcpc", "--memory", "200", *WORDS, "--together", "2"]
    try:
        assert cli.main(words) == 130
    finally:
        ended.set()
        thread.join()
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [entry["method"] for entry in report["memory"]] == ["segformer"]
    assert [entry["method"] for entry in report["left_out"]] == ["reuse", "tfc", "dcfm", "sdcpc"]
    assert [entry["why"].startswith("stopped") for entry in report["left_out"]] == [False, True, True, True]
    assert "stopped; 1 of 5 were measured" in captured.err


def run_out_of_memory(name: str, setting: benchmark.Setting) -> dict[str, Any]:
    raise torch.OutOfMemoryError("2 GiB more")


def test_a_full_gpu_leaves_out_one_measurement() -> None:
    with pytest.raises(benchmark.EndedError, match=r"segformer: the process ended .* as when memory runs out"):
        benchmark.apart(run_out_of_memory, "segformer", TINY)
    with pytest.raises(benchmark.EndedError, match="or a smaller --together"), Turn(Turns()) as turn:
        benchmark.apart(run_out_of_memory, "segformer", TINY, turn=turn)


def fail_in_a_driver(name: str, setting: benchmark.Setting) -> dict[str, Any]:
    raise RuntimeError("CUDA error:\nno handle")


def test_what_fails_in_torch_leaves_out_one_measurement() -> None:
    with pytest.raises(benchmark.EndedError, match="segformer failed: CUDA error: no handle"):
        benchmark.apart(fail_in_a_driver, "segformer", TINY)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["segformer", "--together", "0"], "--together is 0; expected at least 1"),
        (["--stages", "a.mp4", "--model", "m", "--together", "2"], "leave out --together"),
    ],
)
def test_wrong_calls(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", *words]) == 2
    assert text in " ".join(capsys.readouterr().err.split())
