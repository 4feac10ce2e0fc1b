"""Kernels for the CPU against float64 references, when they are chosen, and how they share their work among threads."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from steadyseg.ops import cpu_kernels, kernels
from steadyseg.ops.cpu_kernels import in_threads
from steadyseg.ops.deformable_attention import deformable_attention, deformable_attention_reference
from steadyseg.ops.selective_attention import selective_attention, selective_attention_reference

pytest.importorskip("numba", reason="numba is not importable here, so torch computes all")
from steadyseg.ops.cpu_kernels.deformable_attention import deformable_attention as fused_deformable
from steadyseg.ops.cpu_kernels.selective_attention import selective_attention as fused_selective

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGE = 11
"""A seed that gives several of everything: images, queries, points, levels."""

every_shape = pytest.mark.parametrize("seed", range(50))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _no_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STEADYSEG_KERNELS", "auto")
    with torch.no_grad():
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


# ---- inputs and comparison ---------------------------------------------------------------------------------------


def places(size: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """float32 [*shape, 2]: points in a map and around it; some lie on pixels and borders, some far away."""
    points = torch.rand(*shape, 2) * (torch.tensor([size[1], size[0]]) + 4) - 2.5
    kind = torch.rand(points.shape)
    points = torch.where(kind < 0.1, points.round(), points)
    points = torch.where((kind > 0.9) & (kind < 0.95), -1e6, points)
    return torch.where(kind > 0.95, 1e6, points)


def selective_case(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], tuple[int, int]]:
    """Query, source and points, and the size of the map."""
    draw = random.Random(seed)
    size = (draw.randint(1, 6), draw.randint(1, 7))
    batch, queries, count, width = draw.randint(1, 3), draw.choice([0, 1, 7, 50]), 1 + seed % 5, draw.randint(1, 70)
    query, source = torch.randn(batch, queries, width).to(dtype), torch.randn(batch, size[0] * size[1], width).to(dtype)
    return [query, source, places(size, (batch, queries, count))], size


def deformable_case(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], list[tuple[int, int]], list[Tensor]]:
    """Values, the sizes of the levels, and points, weights and images."""
    draw = random.Random(seed)
    sizes = [(draw.randint(1, 6), draw.randint(1, 7)) for _ in range(1 + seed % 3)]
    batch, heads, width = draw.randint(1, 3), draw.choice([1, 2, 8]), draw.randint(1, 40)
    queries, count = draw.choice([0, 1, 9, 150]), 1 + seed % 4
    values = [torch.randn(batch, h * w, heads * width).to(dtype) for h, w in sizes]
    points = torch.stack([places(size, (queries, heads, count)) for size in sizes]).movedim(-1, 0)
    weights, image = torch.randn(len(sizes), queries, heads, count), torch.randint(0, batch, (queries,))
    return values, sizes, [points, weights, image]


def assert_equal(ours: Tensor, exact: Tensor) -> None:
    """Within 1e-5 of the scale, and the last rounding where `ours` is stored in half precision."""
    assert ours.shape == exact.shape
    scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    stored = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(ours.dtype, 0.0)
    torch.testing.assert_close(ours.double(), exact, rtol=stored, atol=1e-5 * scale)


@every_dtype
@every_shape
def test_selective_attention_equals_float64(seed: int, dtype: torch.dtype, threads: int) -> None:
    (query, source, points), size = selective_case(seed, dtype)
    ours = fused_selective(query, source, points, size)
    assert ours.dtype == dtype
    wide = source.double()
    assert_equal(ours, selective_attention_reference(query.double(), wide, wide, points.double(), size))


@every_dtype
@every_shape
def test_deformable_attention_equals_float64(seed: int, dtype: torch.dtype, threads: int) -> None:
    values, sizes, (points, weights, image) = deformable_case(seed, dtype)
    ours = fused_deformable(values, sizes, points, weights, image)
    assert ours.dtype == dtype
    wide = [value.double() for value in values]
    assert_equal(ours, deformable_attention_reference(wide, sizes, points.double(), weights.double(), image))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nothing_outside_the_map_is_read(bad: float) -> None:
    """A coordinate that is no number is read as one at the border; rows that are not asked for never show."""
    (query, source, points), size = selective_case(LARGE, torch.float32)
    assert torch.isfinite(fused_selective(query, source, torch.full_like(points, bad), size)).all()
    values, sizes, (points, weights, image) = deformable_case(LARGE, torch.float32)
    read = fused_deformable(values, sizes, torch.full_like(points, bad), weights, image)
    assert torch.equal(read, torch.zeros_like(read))


# ---- choice ------------------------------------------------------------------------------------------------------


def test_operations_are_kernels_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    values, sizes, others = deformable_case(LARGE, torch.float32)
    (query, source, points), size = selective_case(LARGE, torch.float32)
    assert torch.equal(deformable_attention(values, sizes, *others), fused_deformable(values, sizes, *others))
    assert torch.equal(selective_attention(query, source, points, size), fused_selective(query, source, points, size))
    for function in (fused_deformable, fused_selective):
        monkeypatch.setattr(sys.modules[function.__module__], "in_threads", None)  # raises where it is called
    for call in (
        lambda: deformable_attention(values, sizes, *others),
        lambda: selective_attention(query, source, points, size),
    ):
        with pytest.raises(TypeError, match="NoneType"):
            call()
    monkeypatch.setenv("STEADYSEG_KERNELS", "reference")
    deformable_attention(values, sizes, *others)
    selective_attention(query, source, points, size)


def test_sizes_may_be_lists() -> None:
    """As they are in a call back, whose arguments were JSON."""
    values, sizes, others = deformable_case(LARGE, torch.float32)
    lists = [list(size) for size in sizes]
    assert torch.equal(fused_deformable(values, lists, *others), fused_deformable(values, sizes, *others))  # type: ignore[arg-type]
    (query, source, points), size = selective_case(LARGE, torch.float32)
    same = fused_selective(query, source, points, list(size))  # type: ignore[arg-type]
    assert torch.equal(same, fused_selective(query, source, points, size))
    signatures = sys.modules[fused_selective.__module__]._attend.signatures
    assert len(signatures) == 1  # not compiled once more


def test_shapes_that_do_not_fit_are_refused() -> None:
    """A kernel would read what is not there."""
    (query, source, points), (height, width) = selective_case(LARGE, torch.float32)
    with pytest.raises(AssertionError):
        fused_selective(query, source, points, (height + 1, width))
    values, sizes, (points, weights, image) = deformable_case(LARGE, torch.float32)
    with pytest.raises(AssertionError):
        fused_deformable([values[0][:, 1:], *values[1:]], sizes, points, weights, image)
    with pytest.raises(AssertionError):
        fused_deformable(values, sizes, points, weights[:, 1:], image)


def test_when_kernels_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    assert cpu_kernels.are_chosen(x, x.bfloat16())
    assert not cpu_kernels.are_chosen(x, x.double())
    assert not cpu_kernels.are_chosen(x, x.to("meta"))
    with FakeTensorMode():
        assert not cpu_kernels.are_chosen(torch.zeros(2))
    with torch.enable_grad():
        assert not cpu_kernels.are_chosen(x)
    with kernels.references_only():
        assert not cpu_kernels.are_chosen(x)
    for wish, are_chosen in (("", True), ("auto", True), ("reference", False), ("triton", False)):
        monkeypatch.setenv("STEADYSEG_KERNELS", wish)
        assert cpu_kernels.are_chosen(x) == are_chosen


@pytest.mark.parametrize("is_installed", [True, False])
def test_without_numba_torch_computes(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it is installed for another NumPy, that is said once."""

    def fail(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.5 or less")

    cpu_kernels._is_numba_there.cache_clear()
    monkeypatch.setattr(cpu_kernels, "import_module", fail)
    if not is_installed:
        monkeypatch.setattr(cpu_kernels, "find_spec", lambda name: None)
    try:
        assert not cpu_kernels.are_chosen(torch.zeros(2))
        assert not cpu_kernels.are_chosen(torch.zeros(2))
    finally:
        cpu_kernels._is_numba_there.cache_clear()
    assert [record.getMessage()[:55] for record in caplog.records] == (
        ["numba cannot be imported (Numba needs NumPy 2.5 or less"] if is_installed else []
    )


def test_where_machine_code_cannot_be_kept_it_is_made_anew(tmp_path: Path) -> None:
    """As in a container without a home, whose packages cannot be written."""
    script = """
import numba
def refuse(*, cache=False, **options):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return lambda function: function
numba.njit = refuse
from steadyseg.ops.cpu_kernels import compiled
print(compiled(len, is_entry=True)([1, 2]), compiled(fastmath={"contract"})(len)([1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1"]


# ---- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_all_parts_run_once_and_in_order(count: int, threads: int) -> None:
    parts = in_threads(lambda first, end: list(range(first, end)), count, 3)
    assert list(itertools.chain(*parts)) == list(range(count))
    assert len(parts) <= 4 * threads


def test_other_threads_take_part() -> None:
    """Two parts that wait for each other end only if two threads have one each."""
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)
    assert sorted(in_threads(lambda first, end: both.wait(), 2, 1)) == [0, 1]


def test_several_callers_at_once() -> None:
    torch.set_num_threads(3)
    with ThreadPoolExecutor(4) as callers:
        found = callers.map(lambda count: in_threads(lambda first, end: end - first, count, 1), range(200))
        assert [sum(parts) for parts in found] == list(range(200))


@pytest.mark.parametrize("kind", [ValueError, IndexError, KeyboardInterrupt])
def test_an_error_in_a_part_is_raised_when_all_have_ended(kind: type[BaseException]) -> None:
    torch.set_num_threads(2)
    both, ended = threading.Barrier(2, timeout=30), []

    def run(first: int, end: int) -> None:
        both.wait()  # two threads are at work
        if first == 0:
            raise kind("the first part")
        time.sleep(0.05)
        ended.append(first)

    with pytest.raises(kind, match="the first part"):
        in_threads(run, 2, 1)
    assert ended == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads: int) -> None:
    assert sum(in_threads(lambda first, end: end - first, 100, 1)) == 100
    child = multiprocessing.get_context("fork").Process(target=_work_in_child)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def _work_in_child() -> None:
    os._exit(0 if sum(in_threads(lambda first, end: end - first, 100, 1)) == 100 else 1)
