"""Recordings: what surrounds them on any machine, and the recordings themselves on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from steadyseg import cuda_graphs, models
from steadyseg.backbones import mit
from steadyseg.backends import attach
from steadyseg.cuda_graphs import (
    CudaGraphs,
    KeptCasts,
    buffers_like,
    fill,
    hand_out,
    no_weight_cache,
    plain_mode,
    record,
    signature,
)
from steadyseg.engine.stream import Stream
from steadyseg.models.base import fixed_sizes
from steadyseg.types import ConfigError, ShapeError

RECORDED = ("segformer", "sdcpc", "dcfm", "reuse", "tfc", "msaf", "pspnet")


def test_fill_copies_and_keeps_the_layout() -> None:
    tensors = [
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.arange(6, dtype=torch.uint8),
    ]
    buffers = buffers_like(tensors)
    fill(buffers, tensors)
    for buffer, tensor in zip(buffers, tensors, strict=True):
        assert torch.equal(buffer, tensor)
        assert buffer.stride() == tensor.stride() and buffer.data_ptr() != tensor.data_ptr()


def test_buffers_may_be_filled_with_and_without_inference_mode() -> None:
    with torch.inference_mode():
        buffers = buffers_like([torch.zeros(3)])
        fill(buffers, [torch.ones(3)])
    fill(buffers, [torch.full((3,), 2.0)])
    assert buffers[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([torch.zeros(2, 3)], "got 1 tensors; the recording has 2 inputs"),
        ([torch.zeros(2, 3), torch.zeros(5)], r"input 1 is torch.float32 \[5\] on cpu; it was recorded with"),
        ([torch.zeros(2, 3), torch.zeros(4).double()], r"input 1 is torch.float64 \[4\] on cpu"),
    ],
)
def test_other_tensors_are_refused(tensors: list[torch.Tensor], message: str) -> None:
    buffers = buffers_like([torch.zeros(2, 3), torch.zeros(4)])
    fill(buffers, [torch.ones(2, 3), torch.ones(4)])
    with pytest.raises(ShapeError, match=message):
        fill(buffers, tensors)
    assert buffers[0].all(), "nothing is copied before all is checked"


def test_results_are_the_callers_own() -> None:
    """The next call overwrites what the recording holds, not what was handed out; inputs are passed on uncopied."""
    buffers, tensors, held = [torch.zeros(3)], [torch.ones(3)], torch.full((3,), 7.0)
    new, same = hand_out((held, buffers[0]), buffers, tensors)
    held.zero_()
    assert new.tolist() == [7, 7, 7]
    assert same is tensors[0]


def test_signature_sees_what_matters() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert signature([x]) == signature([x + 1])
    assert signature([x]) == signature([x.contiguous(memory_format=torch.channels_last)])  # `fill` takes any layout
    others = [x[:1], x.double()]
    assert all(signature([other]) != signature([x]) for other in others)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = signature([x])
    assert inside != signature([x])


def test_autocast_keeps_no_weights_inside() -> None:
    before = torch.is_autocast_cache_enabled()
    with no_weight_cache():
        assert not torch.is_autocast_cache_enabled()
    assert torch.is_autocast_cache_enabled() == before


@pytest.mark.parametrize("name", RECORDED)
def test_weights_are_converted_once(name: str) -> None:
    """The third run casts inputs and what it computes alone; the results follow the inputs, and are what they were."""
    cls = models.method(name)
    model = cls(cls.Config(), 5).eval()
    first, second = torch.randint(0, 256, (2, 1, 3, 64, 96), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16), no_weight_cache(), fixed_sizes(), plain_mode():
        for graph in model.graphs(first).values():
            inputs = [first if key == "frame" else value.clone() for key, value in graph.inputs.items()]
            casts = KeptCasts(inputs)
            for _ in range(2):
                casts.run(graph.function, *inputs)
            for tensor in inputs:
                tensor.copy_(second) if tensor.dtype == torch.uint8 else tensor.mul_(1.5)
            with Casts() as plain:
                expected = graph.function(*inputs)
            with Casts() as kept:
                results = casts.run(graph.function, *inputs)
            assert kept.casts < plain.casts and not kept.parameters
            for ours, exact in zip(results, expected, strict=True):
                assert torch.equal(ours, exact)


class Casts(TorchDispatchMode):
    """Counts conversions."""

    def __init__(self) -> None:
        super().__init__()
        self.casts = self.parameters = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype):
            self.casts += 1
            self.parameters += isinstance(args[0], torch.nn.Parameter)
        return operation(*args, **(kwargs or {}))


def test_sparse_attention_is_dense_where_sizes_are_fixed() -> None:
    """TFC refines the same points, though it computes all: how many there are depends on the video."""
    cls = models.method("tfc")
    model = cls(cls.Config(), 5).eval()
    torch.nn.init.normal_(model.attention.narrow.weight, std=0.1)
    frames = torch.randint(0, 256, (2, 1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        sparse = list(model.segment(frames))
        with fixed_sizes():
            dense = list(model.segment(frames))
    for ours, exact in zip(dense, sparse, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="need tensors on one GPU; these are on cpu"):
        CudaGraphs()("key", lambda x: (x,), torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RECORDED)
def test_recordings_equal_eager(name: str, precision: torch.dtype | None) -> None:
    cls = models.method(name)
    model = cls(cls.Config(), 5).cuda().eval()
    first, second = torch.randint(0, 256, (2, 1, 3, 128, 160), dtype=torch.uint8, device="cuda")
    with torch.inference_mode(), torch.autocast("cuda", dtype=precision, enabled=precision is not None):
        for graph in model.graphs(first).values():
            recording = record(graph)
            kept: list[tuple[torch.Tensor, ...]] = []
            expected = []
            for frame in (first, second):
                inputs = [frame if key == "frame" else value for key, value in graph.inputs.items()]
                expected.append(graph.function(*inputs))
                kept.append(recording(*inputs))
            for ours, eager in zip(kept, expected, strict=True):
                for a, b in zip(ours, eager, strict=True):
                    torch.testing.assert_close(a.float(), b.float(), rtol=1e-2 if precision else 1e-4, atol=1e-3)


def test_what_is_read_is_held() -> None:
    """Merged weights, which the model may compute anew, and parameters live as long as what read them."""
    model = models.method("sdcpc")(models.method("sdcpc").Config(), 5).eval()
    frame = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with plain_mode():
        merged = model.head.folded()
        casts = KeptCasts([frame])
        for _ in range(2):
            feature = casts.run(model.encode, frame)[0]
        decided = KeptCasts([feature])
        decided.run(model.head, feature)
    held = {tensor.data_ptr() for tensor in decided.read.values()}
    assert {tensor.data_ptr() for tensor in merged} <= held
    parameters = {parameter.data_ptr() for parameter in model.backbone.parameters()}
    read = {tensor.data_ptr() for tensor in casts.read.values()}
    assert parameters <= read
    assert len(casts.read) < len(list(model.ssea.parameters())) + len(parameters) + 40, "nothing that it made itself"


def test_the_last_sizes_of_a_name_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def recording(function: Any, tensors: Any, **_: Any) -> Any:
        made.append(len(tensors[0]))
        return function

    monkeypatch.setattr(cuda_graphs, "Recording", recording)
    graphs = CudaGraphs()
    for size in (1, 2, 3, 4, 1, 5, 1, 2):  # the fifth size takes the place of 2, which was used least lately
        graphs("double", lambda x: (2 * x,), torch.ones(size))
        graphs("other", lambda x: (x,), torch.ones(9))
    assert [size for size in made if size < 9] == [1, 2, 3, 4, 5, 2] and made.count(9) == 1


def test_patches_equal_the_strided_convolution() -> None:
    """Rows and columns that fill no patch are left out."""
    attention = mit.ReducedAttention(8, 1, 4)
    tokens = torch.randn(2, 11 * 14, 8)
    torch.testing.assert_close(attention.reduce_patches(tokens, (11, 14)), attention.reduce(tokens, (11, 14)))


def test_a_new_stream_leaves_merged_weights_as_they_are() -> None:
    model = models.method("segformer")(models.method("segformer").Config(), 5).eval()
    with torch.inference_mode():
        merged = model.decoder.folded()
        Stream(model)
        assert model.decoder.folded()[0] is merged[0]
        assert model.train().eval().decoder.folded()[0] is not merged[0]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda_graphs", "compile"])
@pytest.mark.parametrize("name", ["sdcpc", "tfc"])
def test_streams_equal_those_of_torch(name: str, backend: str) -> None:
    """What users run: several frames, two videos one after the other, two sizes in turn, other work in between."""
    cls = models.method(name)
    model = cls(cls.Config(), 5).cuda().eval()
    plain, own = copy.deepcopy(model), attach(model, backend)
    for size in ((128, 160), (96, 128), (128, 160)):
        frames = torch.randint(0, 256, (9, 3, *size), dtype=torch.uint8, device="cuda")
        expected, found = Stream(plain), Stream(own)
        for frame in frames:
            different = (found(frame) != expected(frame)).float().mean()
            assert different < 1e-3
            torch.full((1 << 22,), float("nan"), device="cuda")  # over what was freed


@pytest.mark.gpu
def test_another_size_is_recorded_too() -> None:
    graphs = CudaGraphs()
    for size in (4, 4, 6):
        x = torch.randn(size, device="cuda")
        torch.testing.assert_close(graphs("double", lambda x: (2 * x,), x)[0], 2 * x)
    assert len(graphs.recordings) == 2
