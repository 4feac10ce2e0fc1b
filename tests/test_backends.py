"""Graphs that leave some functions to torch, and the cache of traced graphs."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steadyseg import backends, graph_cache
from steadyseg.backbones import mit
from steadyseg.config import options_from_dict
from steadyseg.models import method
from steadyseg.models.base import VideoSegmenter
from steadyseg.ops.sample import NODES

onnx = pytest.importorskip("onnx")
if importlib.util.find_spec("openvino") is None:  # imported by backends.needs alone, which keeps it quiet
    pytest.skip("openvino is not installed", allow_module_level=True)

SIZE = (64, 96)
USED = {
    "sdcpc": {"place", "selective_attention", "grouped_sample"},
    "tfc": {"attend"},
    "dcfm": set(),
    "segformer": set(),
}
"""Which of the functions the graphs of a method have."""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEADYSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MiT, with one block a stage: tracing takes a third of the time."""
    monkeypatch.setitem(mit.VARIANTS, "mit_b0", mit.Variant((8, 16, 40, 64), (1, 1, 1, 1)))


def build(name: str) -> VideoSegmenter:
    torch.manual_seed(0)
    options = {"backbone": "mit_b0", **({} if name == "dcfm" else {"width": 64})}
    model = method(name)(options_from_dict(name, options), 5).eval()
    for parameter in model.parameters():  # offsets begin at zero, and would then read whole pixels only
        if not parameter.any():
            parameter.data.normal_(0, 0.05)
    return model


def frames(count: int, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 1, 3, *size), generator=generator, dtype=torch.uint8))


@torch.inference_mode()
def stream(model: VideoSegmenter, count: int = 9) -> list[Tensor]:
    state, found = None, []
    for frame in frames(count):
        logits, state = model.step(frame, state)
        found.append(logits)
    return found


@pytest.mark.parametrize("name", USED)
def test_openvino_has_torch_read_at_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores as torch, with each such function run as one node, and those functions alone."""
    model, called = build(name), set()
    expected = stream(model)

    def watch(key: str) -> Any:
        node = NODES[key]

        def function(*arguments: Any) -> Tensor:
            called.add(key)
            return node.function(*arguments)

        return node._replace(function=function)

    for key in list(NODES):
        monkeypatch.setitem(NODES, key, watch(key))
    found = stream(backends.attach(model, "openvino"))
    assert called == USED[name]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_bf16_keeps_points_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision reaches products, not coordinates, which it would move by up to half a pixel at 128."""
    node, read = NODES["selective_attention"], []

    def watch(query: Tensor, source: Tensor, points: Tensor, size: Any) -> Tensor:
        read.append(points.clone())
        return node.function(query, source, points, size)

    monkeypatch.setitem(NODES, "selective_attention", node._replace(function=watch))
    (frame,) = frames(1, (64, 1600))  # 200 columns of the working map
    scores = []
    for precision in ("fp32", "bf16"):
        model = backends.attach(build("sdcpc"), "openvino", precision=precision)  # type: ignore[arg-type]
        with torch.inference_mode(), backends.autocast("cpu", precision):  # as commands run it, for what stays in torch
            scores.append(model.step(frame)[0])
    exact, ours = read[0], read[len(read) // 2]
    assert exact.max() > 190
    assert float((exact - ours).abs().max()) < 0.1
    assert float((ours != ours.bfloat16().float()).float().mean()) > 0.5
    assert float((scores[0].argmax(1) == scores[1].argmax(1)).float().mean()) > 0.95


@pytest.mark.parametrize(("name", "function"), [("sdcpc", "selective_attention"), ("tfc", "attend")])
def test_what_a_call_back_raises_arrives(name: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C above all, which reaches the main thread there; and the session works again after it."""
    node = NODES[function]
    model = backends.attach(build(name), "openvino")
    expected = stream(model, 2)

    raised: list[type[BaseException]] = []

    def interrupt(*arguments: Any) -> Tensor:
        raised.append(ValueError if raised else KeyboardInterrupt)  # of several the first says what happened
        raise raised[-1]

    monkeypatch.setitem(NODES, function, node._replace(function=interrupt))
    with pytest.raises(KeyboardInterrupt):
        stream(model, 2)
    assert raised == [KeyboardInterrupt]  # nothing is computed from what was not
    monkeypatch.setitem(NODES, function, node)
    assert torch.equal(stream(model, 2)[-1], expected[-1])


@pytest.mark.parametrize("is_kept", [False, True])
def test_ctrl_c_while_a_graph_is_opened(is_kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for a graph that cannot be opened, whether that was traced now or kept."""
    if is_kept:
        stream(backends.attach(build("sdcpc"), "openvino"), 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backends, "_node_class", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream(backends.attach(build("sdcpc"), "openvino"), 1)


def test_ctrl_c_while_shapes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream(backends.attach(build("sdcpc"), "openvino"), 1)  # keeps the graphs, whose tracing asks for shapes too

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(NODES, "place", NODES["place"]._replace(shape=interrupt))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        stream(backends.attach(build("sdcpc"), "openvino"), 1)


@pytest.mark.parametrize("name", ["sdcpc", "tfc"])
def test_a_session_frees_its_nodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes hold the graph they are in, with its weights."""
    made: list[weakref.ref[Any]] = []
    plain = backends._Nodes.add

    def add(nodes: Any, node: Any) -> None:
        made.append(weakref.ref(node))
        plain(nodes, node)

    monkeypatch.setattr(backends._Nodes, "add", add)
    model = backends.attach(build(name), "openvino")
    stream(model)
    count = len(made)
    stream(model, 40)
    alive = sum(entry() is not None for entry in made)
    assert count > 0 and alive < 160  # TFC's sizes are free: nodes come and go
    model.backend = None
    gc.collect()
    assert not any(entry() is not None for entry in made)


def test_files_for_others_have_no_such_node() -> None:
    model = build("sdcpc")
    graph = model.graphs(frames(1)[0])["encode"]
    proto = backends.trace(model, graph.function, graph.inputs).model_proto
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert "GridSample" in {node.op_type for node in proto.graph.node}


def count_traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    done: list[int] = []
    plain = backends.trace

    def trace(*arguments: Any, **options: Any) -> Any:
        done.append(1)
        return plain(*arguments, **options)

    monkeypatch.setattr(backends, "trace", trace)
    return done


def test_a_graph_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again only for another size, other weights or another runtime."""
    done = count_traces(monkeypatch)
    first = stream(backends.attach(build("segformer"), "openvino"), 2)
    assert len(done) == 1
    second = stream(backends.attach(build("segformer"), "openvino", precision="bf16"), 2)
    third = stream(backends.attach(build("segformer"), "openvino"), 2)
    assert len(done) == 1
    assert torch.equal(first[-1], third[-1]) and not torch.equal(first[-1], second[-1])
    smaller = backends.attach(build("segformer"), "openvino")
    with torch.inference_mode():
        smaller.step(frames(1, (64, 64))[0])
    assert len(done) == 2
    other = build("segformer")
    other.decoder.linear_pred.bias.data += 1
    moved = stream(backends.attach(other, "openvino"), 2)
    assert len(done) == 3
    torch.testing.assert_close(moved[-1], first[-1] + 1, rtol=1e-4, atol=1e-4)
    stream(backends.attach(build("segformer"), "onnxruntime"), 2)
    assert len(done) == 4


def test_weights_that_change_under_a_backend_do_not_spoil_the_cache() -> None:
    expected = stream(build("segformer"), 1)
    model = build("segformer")
    backends.attach(model, "openvino")
    smaller = frames(1, (64, 64))[0]
    with torch.inference_mode():
        model.step(smaller)
    model.decoder.linear_pred.bias.data += 1
    stream(model, 1)  # another size, so traced now
    found = stream(backends.attach(build("segformer"), "openvino"), 1)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


def test_another_class_is_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that the cache does not know is never kept."""
    done = count_traces(monkeypatch)
    for _ in range(2):
        model = build("segformer")
        model.__class__ = type("Mine", (type(model),), {"__module__": "mine"})
        stream(backends.attach(model, "openvino"), 1)
    assert len(done) == 2


def test_constants_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The normalisation is in the graph, and not among the weights."""
    done = count_traces(monkeypatch)
    stream(backends.attach(build("segformer"), "openvino"), 1)
    other = build("segformer")
    other.mean += 10
    expected = stream(other, 1)
    found = stream(backends.attach(other, "openvino"), 1)
    assert len(done) == 2
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


def test_the_cache_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEADYSEG_CACHE", "off")
    done = count_traces(monkeypatch)
    for _ in range(2):
        stream(backends.attach(build("segformer"), "openvino"), 1)
    assert len(done) == 2
    assert not (tmp_path / "cache").exists()


def test_a_spoilt_graph_is_traced_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = stream(backends.attach(build("segformer"), "openvino"), 1)
    (file,) = (tmp_path / "cache").glob("*.onnx")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done = count_traces(monkeypatch)
    with caplog.at_level(logging.WARNING, "steadyseg"):
        found = stream(backends.attach(build("segformer"), "openvino"), 1)
    assert len(done) == 1 and "cannot be opened" in caplog.text
    assert torch.equal(found[0], expected[0])
    assert file.stat().st_size == len(whole)


def test_old_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "LIMIT", 250)
    for number in range(3):
        graph_cache.write(f"graph{number}", bytes(100))
        place = graph_cache.folder()
        assert place is not None
        stamp = 1_000_000_000 + number
        os.utime(place / f"graph{number}.onnx", (stamp, stamp))
    assert graph_cache.read("graph0") is None
    assert graph_cache.read("graph1") == bytes(100)  # read now: the next to go is graph2
    graph_cache.write("graph3", bytes(100))
    assert graph_cache.read("graph2") is None
    assert graph_cache.read("graph1") == bytes(100)
    assert sorted(path.name for path in place.iterdir()) == ["graph1.onnx", "graph3.onnx"]


def test_a_place_that_takes_nothing_is_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STEADYSEG_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "steadyseg"):
        graph_cache.write("a", b"1")
        graph_cache.write("b", b"2")
    assert caplog.text.count("cannot be kept") == 1
    assert graph_cache.read("a") is None


def test_the_key_depends_on_sizes_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    key = graph_cache.key("config", "weights", "graph", [["torch.uint8", 1, 3, 8, 8]], True)
    assert key == graph_cache.key("config", "weights", "graph", [["torch.uint8", 1, 3, 8, 8]], True)
    assert key != graph_cache.key("config", "weights", "graph", [["torch.uint8", 1, 3, 8, 9]], True)
    graph_cache._sources.cache_clear()
    monkeypatch.setattr(graph_cache, "version", lambda name: "another")
    assert key != graph_cache.key("config", "weights", "graph", [["torch.uint8", 1, 3, 8, 8]], True)
    graph_cache._sources.cache_clear()
