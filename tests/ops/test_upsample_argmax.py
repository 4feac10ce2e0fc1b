"""Both fast label paths give the plain path's labels on every input, and are really taken."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops import cpu_kernels
from steadyseg.ops import upsample_argmax as module
from steadyseg.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference
from steadyseg.types import ShapeError

pytest.importorskip("numba", reason="numba is not importable here, and every test takes the kernel, too")
from steadyseg.ops.cpu_kernels import upsample_argmax as kernel


@pytest.fixture(autouse=True, params=["kernel", "cells"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take the kernel for the CPU, and then the way without it."""
    monkeypatch.setenv("STEADYSEG_KERNELS", "auto" if request.param == "kernel" else "reference")
    with torch.no_grad():
        assert cpu_kernels.are_chosen(torch.zeros(1)) == (request.param == "kernel")
    return str(request.param)


@pytest.fixture
def always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fast way whatever it costs, so that rough inputs test it too."""
    monkeypatch.setattr(module, "_MOST_CELLS", 2.0)
    monkeypatch.setattr(module, "_MOST_PAIRS", 2.0)
    monkeypatch.setattr(module, "_MOST_DOUBTS", 2.0)


def smooth(shape: tuple[int, int, int, int], seed: int, scale: float = 3.0) -> Tensor:
    """Random float32 [B, K, h, w] that varies slowly, as logits do."""
    b, k, h, w = shape
    coarse = torch.randn(b, k, max(1, h // 5), max(1, w // 5), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse * scale, size=(h, w), mode="bilinear").contiguous()


def near_ties(k: int, h: int, w: int, seed: int) -> Tensor:
    """Classes that differ by nothing or by one step of float32; the lead drifts over the image."""
    g = torch.Generator().manual_seed(seed)
    base = smooth((1, 1, h, w), seed).expand(1, k, h, w)
    steps = (smooth((1, k, h, w), seed + 1) + torch.rand(1, k, h, w, generator=g)).round().clamp(0, 3)
    for step in (1, 2, 3):
        base = torch.where(steps >= step, torch.nextafter(base, torch.tensor(torch.inf)), base)
    return base


def both(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return upsample_argmax(logits, size), upsample_argmax_reference(logits, size)


def assert_equal(logits: Tensor, size: tuple[int, int]) -> None:
    fast, plain = both(logits, size)
    assert fast.dtype == plain.dtype == torch.uint8
    assert fast.shape == plain.shape == (len(logits), *size)
    assert int((fast != plain).sum()) == 0


def test_reference_is_interpolate_then_argmax() -> None:
    logits = torch.tensor([[[[0.0, 4.0]], [[3.0, 0.0]]]])  # [1, 2, 1, 2]; class 1 leads on the left
    # Half-pixel centres: the samples sit at columns 0.5 and 2.5 of 4; they cross at 0.5 + 2 * 3/7 = 1.36.
    assert upsample_argmax_reference(logits, (1, 4)).tolist() == [[[1, 1, 0, 0]]]
    assert upsample_argmax_reference(torch.zeros(1, 3, 2, 2), (3, 3)).unique().tolist() == [0]


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("seed", range(40))
def test_equal_on_random_shapes(seed: int) -> None:
    draw = random.Random(seed)
    k, h, w = draw.choice([2, 3, 11, 30]), draw.choice([1, 2, 9, 17, 24]), draw.choice([1, 3, 8, 31, 40])
    size = (draw.randint(66, 140), draw.randint(66, 180))
    if seed % 4 == 0:
        size = (h * 8, w * 8)
    logits = smooth((1 + seed % 2, k, h, w), seed, scale=10.0 ** draw.uniform(-2, 3))
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    assert_equal(logits + draw.choice([0.0, 1e-6, 0.1, 3.0]) * logits.abs().amax() * noise, size)


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.round(),
        lambda x: x.clamp(-1, 1),
        torch.zeros_like,
        lambda x: x + 1e4,
        lambda x: x * 1e29,
        lambda x: x * 1e35,
        lambda x: x * 1e-38,
        lambda x: x * 1e-44,
        lambda x: x.index_fill(1, torch.tensor([1, 4]), -1e9),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.double(),
        lambda x: x.transpose(2, 3),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, ::2, ::2],
        lambda x: x.index_fill(1, torch.tensor([2]), -torch.inf),
    ],
    ids=[
        "ties",
        "plateaus",
        "constant",
        "offset",
        "big",
        "huge",
        "tiny",
        "denormal",
        "masked",
        "half",
        "bf16",
        "double",
        "turned",
        "nhwc",
        "strided",
        "inf",
    ],
)
def test_equal_on_unusual_values(change, seed: int) -> None:  # type: ignore[no-untyped-def]
    assert_equal(change(smooth((1, 7, 18, 22), seed)), (101, 87))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("seed", range(30))
def test_equal_on_near_ties(seed: int) -> None:
    assert_equal(near_ties(2 + seed % 5, 12, 15, seed), ((96, 120), (83, 101), (300, 600))[seed % 3])


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("constant", ["_LEAD", "_CLOSE"])
def test_the_rounding_bounds_are_needed(constant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either bound some near tie comes out wrong: the inputs above do test the bounds."""
    monkeypatch.setattr(module, constant, 0.0)
    monkeypatch.setattr(module, "_TINY", 0.0)
    sizes = ((96, 120), (83, 101), (300, 600))  # in the last, tiles are as narrow as cells
    differs = [not torch.equal(*both(near_ties(2 + s % 5, 12, 15, s), sizes[s % 3])) for s in range(30)]
    assert any(differs)


@pytest.mark.parametrize("k", [1, 2, 256])
def test_number_of_classes(k: int) -> None:
    assert_equal(smooth((1, k, 12, 14), 0), (75, 90))


@pytest.mark.parametrize("size", [(5, 9), (60, 60), (6, 300), (64, 65), (128, 33), (37, 112), (300, 401)])
def test_sizes_up_and_down(size: tuple[int, int]) -> None:
    assert_equal(smooth((2, 5, 37, 56), 3), size)


def test_smooth_logits_take_the_fast_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and ties take the plain one where it is the faster."""
    calls: list[int] = []
    plain = module._plain
    monkeypatch.setattr(module, "_plain", lambda logits, size: calls.append(1) or plain(logits, size))
    upsample_argmax(smooth((1, 40, 30, 40), 1), (240, 320))
    assert not calls
    noise = torch.randn(1, 40, 30, 40, generator=torch.Generator().manual_seed(0))
    upsample_argmax(noise, (240, 320))
    assert bool(calls) == (way == "cells")
    calls.clear()
    upsample_argmax(noise.round(), (240, 320))
    assert calls


@pytest.mark.usefixtures("always_fast")
def test_any_number_of_threads() -> None:
    logits, before = smooth((1, 9, 60, 70), 4), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert_equal(logits, (480, 500))
    finally:
        torch.set_num_threads(before)


def test_pixels_that_share_samples_with_other_classes_are_settled(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two doubtful pixels between the same samples, one between classes 0 and 1, the other between 1 and 2."""
    logits = torch.zeros(1, 4, 40, 40)
    logits[:, 3] = 1.0  # wins elsewhere
    # with eight pixels from one sample to the next, 0 equals 1 at 3/16 of the way, and 1 equals 2 at 11/16
    logits[0, :3, 20, 20:22] = torch.tensor([[9.0, 3.0], [7.5, 9.5], [-2.125, 13.875]])
    logits[0, :3, 19] = logits[0, :3, 21] = logits[0, :3, 20]
    calls: list[int] = []
    decide = module._decide
    monkeypatch.setattr(module, "_decide", lambda *given: calls.append(1) or decide(*given))
    assert_equal(logits, (40 * 8, 40 * 8))
    assert calls


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_no_pixel_needs_are_read_all_the_same(value: float) -> None:
    """Each third row has all the weight; the plain way adds the one after it times zero."""
    logits = smooth((1, 4, 30, 40), 0)
    logits[0, 2, 2::3, 7] = value
    assert_equal(logits, (10, 500))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("classes", [3, 4, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_class_that_is_masked_takes_no_part(classes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    logits = near_ties(classes, 12, 15, 3)
    logits[:, 1] = -1e9
    assert_equal(logits, (83, 101))


def test_most_pixels_of_smooth_logits_are_not_interpolated() -> None:
    logits = smooth((1, 9, 30, 40), 1)[0]
    rows, columns = module._axis(30, 240), module._axis(40, 320)
    known = module._cell_labels(logits, rows, columns)
    assert (known >= 0).float().mean() > 0.5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(70, 90), (64, 129), (131, 77)])
@pytest.mark.parametrize("classes", [2, 3, 4, 37])
def test_interpolate_treats_each_channel_alone(classes: int, size: tuple[int, int], threads: int) -> None:
    """The fast way rests on it: bit for bit the same values for some channels as for all."""
    torch.set_num_threads(threads)
    logits = smooth((1, classes, 13, 17), 5)
    every = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    for some in ([0], [1, 0], [0, 1, 2], [3, 1, 0], [1, 7, 20, 21, 30]):
        if max(some) < classes:
            alone = module._resize_some(logits[0, some], size, classes)
            assert torch.equal(alone, every[0, some])


@pytest.mark.parametrize(("samples", "lines"), [(7, 56), (9, 70), (53, 853), (107, 853), (1, 5), (40, 13)])
def test_axis_weights_are_those_of_half_pixel_centres(samples: int, lines: int) -> None:
    axis = module._axis(samples, lines)
    position = ((torch.arange(lines, dtype=torch.float64) + 0.5) * samples / lines - 0.5).clamp(0, samples - 1)
    found = torch.full((lines,), torch.nan, dtype=torch.float64)
    found[axis.lines] = (axis.near * axis.first + axis.far * axis.last).double()
    assert torch.allclose(found, position, atol=1e-4)
    assert torch.equal(axis.lines[0][axis.cell] <= torch.arange(lines), torch.ones(lines, dtype=torch.bool))


def test_input_is_unchanged_and_no_graph_is_made() -> None:
    logits = smooth((1, 5, 20, 20), 2)
    before = logits.clone()
    labels = upsample_argmax(logits.requires_grad_(), (100, 100))
    assert torch.equal(logits, before)
    assert not labels.requires_grad


@pytest.mark.usefixtures("always_fast")
def test_works_in_and_out_of_inference_mode() -> None:
    """What is kept of the one serves the other, and doubtful pixels are among them."""
    for kept in (module._axis, module.read_lines, kernel._rows, kernel._columns):
        kept.cache_clear()
    logits = near_ties(4, 12, 15, 3)
    with torch.inference_mode():
        inside = upsample_argmax(logits, (100, 100))
    assert torch.equal(upsample_argmax(logits, (100, 100)), inside)


@pytest.mark.parametrize(
    ("logits", "size", "says"),
    [
        (torch.zeros(3, 4, 4), (8, 8), "expected a floating point"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), (8, 8), "torch.int64"),
        (torch.zeros(1, 0, 4, 4), (8, 8), "expected a floating point"),
        (torch.zeros(1, 257, 4, 4), (8, 8), "257 classes"),
        (torch.zeros(1, 3, 4, 4), (0, 8), "size is"),
        (torch.zeros(1, 3, 4, 4), (8,), "size is"),
    ],
)
@pytest.mark.parametrize("function", [upsample_argmax, upsample_argmax_reference])
def test_wrong_input(function, logits: Tensor, size: tuple[int, int], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ShapeError, match=says):
        function(logits, size)
