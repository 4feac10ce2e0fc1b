"""Triton kernels against float64 references, values and gradients: on a GPU, or else in Triton's interpreter.

The interpreter cuts numbers off at bfloat16 where a GPU rounds them, so what is stored as bfloat16 may be off by 2**-7.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg import models
from steadyseg.costs import count
from steadyseg.models.base import fixed_sizes
from steadyseg.ops import kernels
from steadyseg.ops.deformable_attention import deformable_attention, deformable_attention_reference
from steadyseg.ops.deformable_conv import deformable_conv, deformable_conv_reference
from steadyseg.ops.depthwise_gelu import depthwise_gelu, depthwise_gelu_reference
from steadyseg.ops.layer_norm import layer_norm
from steadyseg.ops.sample import gather_rows, sample, sample_reference
from steadyseg.ops.selective_attention import selective_attention, selective_attention_reference
from steadyseg.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference
from steadyseg.types import ConfigError

pytest.importorskip("triton", reason="triton is not importable: pip install -c constraints.txt -e '.[kernels]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = range(50)
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Of the scale of the result, or of 1 where that is smaller."""

LARGE = 11
"""A seed that gives several of everything: images, queries, points, levels."""

every_shape = pytest.mark.parametrize("seed", SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEADYSEG_KERNELS", "triton")


def fused(name: str) -> Callable[..., Tensor]:
    """The kernel's function; its file needs triton."""
    return getattr(importlib.import_module(f"steadyseg.ops.kernels.{name}"), name)


# ---- inputs ------------------------------------------------------------------------------------------------------


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def places(sizes: Sequence[tuple[int, int]], shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 [L, *shape, 2]: points in maps and around them; some lie on pixels and borders, some far away."""
    size = torch.tensor([[w, h] for h, w in sizes]).view(len(sizes), *[1] * len(shape), 2)
    points = torch.rand(len(sizes), *shape, 2) * (size + 4) - 2.5
    kind = torch.rand(points.shape)
    points = torch.where(kind < 0.1, points.round(), points)
    points = torch.where((kind > 0.9) & (kind < 0.95), 0.5 - 1e6, points)
    return torch.where(kind > 0.95, 0.5 + 1e6, points) if seed % 2 else points


def leaves(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The same numbers twice, both with gradients: as they are on the device, and in float64."""
    ours = [x.to(DEVICE).requires_grad_() for x in tensors]
    return ours, [x.double().requires_grad_() for x in tensors]


# ---- comparison --------------------------------------------------------------------------------------------------


def assert_equal(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the scale, and the last rounding where `ours` is stored as bfloat16."""
    scale = max(1.0, float(exact.detach().abs().max())) if exact.numel() else 1.0
    stored = 2.0**-7 if ours.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(ours.detach().cpu().double(), exact.detach(), rtol=stored, atol=tolerance * scale)


def compare(
    kernel: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    *,
    points: int = -1,
    is_fused: bool = False,
) -> None:
    """Compare results and all gradients; those of `tensors[points]` only where they exist, between the pixels.

    A kernel of kernels/ is also compared as it is in inference, with a result that is not rounded.
    """
    ours, exact = leaves(tensors)
    out, expected = kernel(*ours), reference(*exact)
    if is_fused:
        with torch.no_grad():
            assert_equal(kernel(*ours, dtype=torch.float32), expected, 1e-5)
    tolerance = TOLERANCE[tensors[0].dtype]
    assert out.shape == expected.shape
    assert_equal(out, expected, tolerance)
    upstream = torch.randn(out.shape)
    gradients = torch.autograd.grad(out, ours, upstream.to(out))
    theirs = torch.autograd.grad(expected, exact, upstream.to(out.dtype).double(), materialize_grads=True)
    for number, (mine, right) in enumerate(zip(gradients, theirs, strict=True)):
        assert mine.dtype == tensors[number].dtype
        between = tensors[number] != tensors[number].round() if number == points else 1
        assert_equal(mine.cpu() * between, right * between, tolerance)


def assert_slope(kernel: Callable[..., Tensor], reference: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
    """The kernel's gradient along a direction is the difference quotient of the float64 reference."""
    ours, exact = leaves(tensors)
    upstream = torch.randn(kernel(*ours).shape)
    gradients = torch.autograd.grad(kernel(*ours), ours, upstream.to(DEVICE))
    for number, gradient in enumerate(gradients):
        direction, step = torch.randn(gradient.shape).double(), 1e-7
        ends = []
        for sign in (step, -step):
            moved = [x.detach() + sign * direction if i == number else x.detach() for i, x in enumerate(exact)]
            ends.append((reference(*moved) * upstream).sum())
        expected = (ends[0] - ends[1]) / (2 * step)
        assert expected.abs() > 1e-3
        torch.testing.assert_close((gradient.cpu().double() * direction).sum(), expected, rtol=1e-4, atol=1e-4)


# ---- selective attention -----------------------------------------------------------------------------------------


def attention_case(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], tuple[int, int]]:
    draw = random.Random(seed)
    size = (draw.randint(1, 6), draw.randint(1, 7))
    batch, queries, count, width = draw.randint(1, 2), draw.choice([0, 1, 7, 13]), 1 + seed % 3, draw.randint(1, 40)
    source = tensor(batch, size[0] * size[1], width, dtype=dtype)
    return [tensor(batch, queries, width, dtype=dtype), source, places([size], (batch, queries, count), seed)[0]], size


@every_shape
@every_dtype
def test_selective_attention(seed: int, dtype: torch.dtype) -> None:
    tensors, size = attention_case(seed, dtype)
    compare(
        lambda *x, **options: fused("selective_attention")(*x, size, **options),
        lambda query, source, points: selective_attention_reference(query, source, source, points, size),
        tensors,
        points=2,
        is_fused=True,
    )


def test_selective_attention_slope() -> None:
    size = (4, 5)
    points = torch.rand(2, 6, 3, 2) * 0.9 + torch.randint(0, 3, (2, 6, 3, 2)) + 0.05  # between the pixels
    tensors = [tensor(2, 6, 8), tensor(2, 20, 8), points]
    assert_slope(
        lambda *x: selective_attention(*x, size),
        lambda query, source, points: selective_attention_reference(query, source, source, points, size),
        tensors,
    )


def test_large_scores_do_not_overflow() -> None:
    tensors, size = attention_case(LARGE, torch.float32)
    query, source, points = tensors[0] * 1e4, *tensors[1:]
    out = selective_attention(query.to(DEVICE), source.to(DEVICE), points.to(DEVICE), size)
    exact = selective_attention_reference(query.double(), source.double(), source.double(), points.double(), size)
    assert out.isfinite().all() and out.numel()
    assert_equal(out, exact, 1e-2)  # scores of 1e4 are known to 1e-3


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_points_are_seen() -> None:
    """A point that is not a number must not become a place, nor leave the map."""
    tensors, size = attention_case(LARGE, torch.float32)
    tensors[2][0, 0, 0, 0] = torch.nan
    out = selective_attention(*(x.to(DEVICE) for x in tensors), size)
    assert out[0, 0].isnan().all() and not out[0, 1:].isnan().any()


# ---- rows --------------------------------------------------------------------------------------------------------


def rows_plainly(tokens: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """The formula of `gather_rows`."""
    rows = [(share[..., None] * table[cells]).sum(1) for table, share, cells in zip(tokens, weight, index, strict=True)]
    return torch.stack(rows)


@every_shape
@every_dtype
def test_gather_rows(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    batch, cells, width = draw.randint(1, 3), draw.choice([1, 2, 9, 30]), draw.randint(1, 40)
    sums, terms = draw.choice([0, 1, 5, 40]), draw.randint(1, 9)
    index = torch.randint(0, cells, (batch, sums, terms))
    weight = torch.where(torch.rand(batch, sums, terms) < 0.2, 0.0, tensor(batch, sums, terms))
    compare(
        lambda tokens, weight, **options: fused("gather_rows")(tokens, index.to(DEVICE), weight, **options),
        lambda tokens, weight: rows_plainly(tokens, weight, index),
        [tensor(batch, cells, width, dtype=dtype), weight],
        is_fused=True,
    )


def test_gather_rows_slope() -> None:
    index = torch.randint(0, 9, (2, 5, 3))
    assert_slope(
        lambda tokens, weight: gather_rows(tokens, index.to(DEVICE), weight),
        lambda tokens, weight: rows_plainly(tokens, weight, index),
        [tensor(2, 9, 7), tensor(2, 5, 3)],
    )


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (3, 1)])
def test_sampling_goes_through_it(padding: str, size: tuple[int, int]) -> None:
    tensors = [tensor(2, size[0] * size[1], 6), places([size], (2, 15), 1)[0]]
    compare(lambda *x: sample(*x, size, padding), lambda *x: sample_reference(*x, size, padding), tensors, points=1)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6)])
def test_deformable_convolution_goes_through_it(size: tuple[int, int]) -> None:
    tensors = [tensor(2, 4, *size), 2 * tensor(2, 18, *size), tensor(5, 4, 3, 3), tensor(5)]
    compare(deformable_conv, deformable_conv_reference, tensors)


# ---- deformable attention ----------------------------------------------------------------------------------------


def pyramid_case(seed: int, dtype: torch.dtype) -> tuple[list[Tensor], list[tuple[int, int]], Tensor]:
    """Values, points [2, L, Q, M, P] and weights; sizes; images. Every fifth selection is empty."""
    draw = random.Random(seed)
    sizes = [(draw.randint(1, 6), draw.randint(1, 7)) for _ in range(1 + seed % 2)]
    batch, heads, count, width = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 2), draw.randint(1, 16)
    queries = 0 if seed % 5 == 0 else draw.choice([1, 4, 9])
    values = [tensor(batch, h * w, heads * width, dtype=dtype) for h, w in sizes]
    points = places(sizes, (queries, heads, count), seed).movedim(-1, 0).contiguous()
    return [*values, points, tensor(len(sizes), queries, heads, count)], sizes, torch.randint(0, batch, (queries,))


@every_shape
@every_dtype
def test_deformable_attention(seed: int, dtype: torch.dtype) -> None:
    tensors, sizes, image = pyramid_case(seed, dtype)
    compare(
        lambda *x, **options: fused("deformable_attention")(x[:-2], sizes, *x[-2:], image.to(DEVICE), **options),
        lambda *x: deformable_attention_reference(x[:-2], sizes, *x[-2:], image),
        tensors,
        points=len(sizes),
        is_fused=True,
    )


def test_deformable_attention_slope() -> None:
    tensors, sizes, image = pyramid_case(LARGE, torch.float32)
    cell = torch.rand_like(tensors[-2]) * 0.9 + 0.05
    tensors[-2] = cell + torch.randint(-1, 3, cell.shape)
    assert_slope(
        lambda *x: deformable_attention(x[:-2], sizes, *x[-2:], image.to(DEVICE)),
        lambda *x: deformable_attention_reference(x[:-2], sizes, *x[-2:], image),
        tensors,
    )


# ---- labels ------------------------------------------------------------------------------------------------------


@every_shape
@every_dtype
def test_upsample_argmax(seed: int, dtype: torch.dtype) -> None:
    """The label scores best in float64; of classes with the same scores, which there are, it is the lowest."""
    draw = random.Random(seed)
    batch, classes, low = draw.randint(1, 2), draw.choice([1, 2, 5, 11]), (draw.randint(1, 9), draw.randint(1, 9))
    size = (draw.randint(1, 30), draw.randint(1, 30))
    logits = tensor(batch, classes, *low, dtype=dtype)
    logits = logits[:, torch.randint(0, classes, (classes,))]  # some classes twice
    logits = logits.round() if seed % 3 == 0 else logits
    logits = logits.contiguous(memory_format=torch.channels_last) if seed % 2 else logits
    labels = upsample_argmax(logits.to(DEVICE), size).cpu()
    assert labels.dtype == torch.uint8 and labels.shape == (batch, *size)
    scores = F.interpolate(logits.double(), size=size, mode="bilinear")  # [B, K, H, W]
    taken = scores.gather(1, labels[:, None].long())  # [B, 1, H, W]
    best = scores.amax(1, keepdim=True)
    assert (best - taken).max() <= 1e-5 * max(1.0, scores.abs().max())
    same = (logits[:, :, None] == logits[:, None]).flatten(3).all(3)  # [B, K, K]
    lowest = same.int().argmax(2)  # [B, K], the first class with the same logits everywhere
    assert torch.equal(lowest.gather(1, labels.flatten(1).long()), labels.flatten(1).long())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_upsample_argmax_on_ties_and_nan() -> None:
    constant = torch.zeros(1, 3, 2, 2, device=DEVICE)
    assert upsample_argmax(constant, (5, 5)).unique().tolist() == [0]
    assert upsample_argmax(constant - torch.inf, (5, 5)).unique().tolist() == [0]
    constant[:, 1:] = torch.nan
    assert upsample_argmax(constant, (5, 5)).unique().tolist() == [1]
    logits = tensor(1, 4, 3, 3)
    logits[0, 2, 0, 0] = torch.nan
    logits[0, 3, 0, 2] = torch.inf
    found = upsample_argmax(logits.to(DEVICE), (9, 9)).cpu()[0]
    assert (found[:4, :4] == 2).all() and (found[:2, 7:] == 3).all()
    finite = upsample_argmax(logits.nan_to_num(0.0, posinf=0.0).to(DEVICE), (9, 9)).cpu()[0]
    assert torch.equal(found[5:], finite[5:])
    logits = torch.tensor([[[[0.0, 4.0]], [[3.0, 0.0]]]], device=DEVICE)
    assert upsample_argmax(logits, (1, 4)).tolist() == [[[1, 1, 0, 0]]]
    wide = tensor(1, 256, 3, 3).to(DEVICE)
    assert torch.equal(upsample_argmax(wide, (3, 3)).long(), wide.argmax(1))


# ---- kernels without gradients -----------------------------------------------------------------------------------


@every_shape
@every_dtype
def test_depthwise_gelu(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    size, batch, width = (draw.randint(1, 11), draw.randint(1, 19)), draw.randint(0, 2), draw.choice([1, 8, 70, 130])
    tensors = [tensor(batch, size[0] * size[1], width, dtype=dtype), tensor(width, 1, 3, 3, dtype=dtype), tensor(width)]
    with torch.inference_mode():
        out = depthwise_gelu(tensors[0].to(DEVICE), size, *(x.to(DEVICE) for x in tensors[1:]))
    exact = [x.double() for x in tensors]
    assert out.dtype == dtype
    assert_equal(out, depthwise_gelu_reference(exact[0], size, *exact[1:]), 1e-5)


@every_shape
@every_dtype
def test_layer_norm(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    shape = (draw.randint(1, 3), draw.choice([0, 1, 7, 40]), draw.choice([2, 8, 70, 160, 512]))
    x, weight, bias = (3 * tensor(*shape) + 2).to(dtype), tensor(shape[-1]), tensor(shape[-1])
    scale, shift = (weight if seed % 2 else None), (bias if seed % 3 else None)
    with torch.inference_mode():
        out = layer_norm(x.to(DEVICE), *(y if y is None else y.to(DEVICE) for y in (scale, shift)), 1e-6)
    exact = F.layer_norm(x.double(), shape[-1:], *(y if y is None else y.double() for y in (scale, shift)), 1e-6)
    assert out.dtype == dtype
    assert_equal(out, exact, 1e-5)


def test_layer_norm_is_rounded_where_autocast_would() -> None:
    x = tensor(5, 8).to(DEVICE)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        wide, narrow = (layer_norm(x, None, None, 1e-6, rounded=rounded) for rounded in (False, True))
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert_equal(narrow, wide.double().cpu(), 0.0)


# ---- choice ------------------------------------------------------------------------------------------------------


@every_dtype
def test_results_have_the_type_of_the_inputs(dtype: torch.dtype) -> None:
    """Through the ops' own functions, which choose the kernels; and none of them changes an input."""
    (query, source, points), size = attention_case(LARGE, dtype)
    (*values, places_, weights), sizes, image = pyramid_case(LARGE, dtype)
    index = torch.randint(0, source.shape[1], points.shape[:3]).to(DEVICE)
    ours = [x.to(DEVICE).requires_grad_() for x in (query, source, points, places_, weights, *values)]
    before = [x.detach().clone() for x in ours]
    query, source, points, places_, weights, *values = ours
    results = {
        "_SelectiveAttentionBackward": selective_attention(query, source, points, size),
        "_GatherRowsBackward": gather_rows(source, index, points[..., 0]),
        "_DeformableAttentionBackward": deformable_attention(values, sizes, places_, weights, image.to(DEVICE)),
    }
    for name, out in results.items():
        assert out.dtype == dtype and out.numel()
        assert name in {out.grad_fn.name(), *(before.name() for before, _ in out.grad_fn.next_functions if before)}
    exact = selective_attention_reference(*(x.detach().cpu().double() for x in (query, source, source, points)), size)
    assert_equal(results["_SelectiveAttentionBackward"], exact, 1e-5)
    assert all(torch.equal(x, y) for x, y in zip(ours, before, strict=True))


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, device=DEVICE)
    assert kernels.are_chosen(x)
    assert not kernels.are_chosen(x, x.double())
    with kernels.references_only():
        assert not kernels.are_chosen(x)
    torch.use_deterministic_algorithms(True)
    try:
        assert not kernels.are_chosen(x)
        with torch.no_grad():
            assert kernels.are_chosen(x)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("STEADYSEG_KERNELS", "reference")
    assert not kernels.are_chosen(x)
    for automatic in ("auto", ""):
        monkeypatch.setenv("STEADYSEG_KERNELS", automatic)
        assert kernels.are_chosen(x) == (DEVICE == "cuda")
    monkeypatch.setenv("STEADYSEG_KERNELS", "fast")
    with pytest.raises(ConfigError, match="STEADYSEG_KERNELS is 'fast'; expected auto, triton or reference"):
        selective_attention(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(1, 1, 1, 2), (1, 1))
    monkeypatch.setenv("STEADYSEG_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.are_chosen(x.cpu())


class _Sampler(nn.Module):
    def forward(self, query: Tensor, source: Tensor, points: Tensor) -> Tensor:
        return selective_attention(query, source, points, (5, 7))


@pytest.mark.parametrize("name", ["sdcpc", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("tfc", "dcfm"))])
def test_compiled_methods_are_one_graph_with_kernels(name: str) -> None:
    cls = models.method(name)
    model = cls(cls.Config(), 5).to(DEVICE).eval()
    frame = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, device=DEVICE)
    called: list[str] = []

    def look(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        called.extend(str(node.target).split(".")[1] for node in graph.graph.nodes if "steadyseg" in str(node.target))
        return graph.forward

    with torch.inference_mode(), fixed_sizes():
        for graph in model.graphs(frame).values():
            torch._dynamo.reset()
            compiled = torch.compile(graph.function, backend=look, fullgraph=True)(*graph.inputs.values())
            for ours, eager in zip(compiled, graph.function(*graph.inputs.values()), strict=True):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
    own = {"sdcpc": {"gather_rows", "selective_attention"}, "tfc": {"deformable_attention"}}
    assert set(called) == {"depthwise_gelu"} | own.get(name, set())


def test_compiling_with_gradients_and_exporting_take_the_reference() -> None:
    inputs = (tensor(1, 35, 4), tensor(1, 35, 4), places([(5, 7)], (1, 35, 2), 0)[0])
    with kernels.references_only():
        expected = selective_attention(*inputs, (5, 7))
    compiled = torch.compile(lambda *x: selective_attention(*x, (5, 7)), backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, expected)
    exported = torch.export.export(_Sampler(), inputs)
    assert "grid_sampler" in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs), expected)


def test_costs_count_the_reference() -> None:
    (query, source, points), size = attention_case(LARGE, torch.float32)
    cost = count(lambda: selective_attention(query.to(DEVICE), source.to(DEVICE), points.to(DEVICE), size))["executed"]
    reads = points.shape[0] * points.shape[1] * points.shape[2]
    assert (cost.full, cost.sampling) == (2 * reads * query.shape[2], 4 * reads * query.shape[2])


def test_inference_mode_and_labels_equal_the_reference() -> None:
    """What `Stream` does: no gradients, a tensor made in inference mode."""
    with torch.inference_mode():
        logits = torch.randn(1, 7, 6, 8, device=DEVICE)
        assert torch.equal(upsample_argmax(logits, (31, 40)), upsample_argmax_reference(logits, (31, 40)))
        assert kernels.are_chosen(logits)


# ---- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["sdcpc", "tfc"])
def test_methods_run_on_kernels(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frames and a training step: what a method hands over fits the kernels, types under autocast included."""
    cls = models.method(name)
    model = cls(cls.Config(width=32), 5).to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    frames = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8, device=DEVICE)
    results = []
    for choice in ("reference", "triton"):
        monkeypatch.setenv("STEADYSEG_KERNELS", choice)
        model.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            _, state = model.eval().step(frames[0])
            logits, _ = model.step(frames[1], state)
        logits.float().square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((logits.detach().float(), gradient.float()))
    for plain, ours in zip(*results, strict=True):
        assert plain.norm() > 0
        assert (ours - plain).norm() / plain.norm() < (5e-2 if autocast else 1e-4)
