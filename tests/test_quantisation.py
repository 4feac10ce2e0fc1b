"""Graphs in 8-bit integers: what is quantised, from which frames, and folders of graphs that commands run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from steadyseg import cli, models
from steadyseg.backbones import mit
from steadyseg.backends import open_onnxruntime, open_openvino
from steadyseg.config import options_from_dict
from steadyseg.engine.checkpoint import save_model
from steadyseg.export import Difference, _check, export
from steadyseg.exported import attach_folder
from steadyseg.models.base import VideoSegmenter
from steadyseg.quantisation import attach_int8, quantise, record
from steadyseg.types import ConfigError, DataError, ShapeError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

pytestmark = pytest.mark.xdist_group("int8")  # one export serves several tests
CLASSES, SIZE = 5, (64, 96)
TINY = mit.Variant((8, 16, 40, 64), (1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mit.VARIANTS, "mit_b0", TINY)


def build(name: str = "segformer", seed: int = 0, **options: object) -> VideoSegmenter:
    """A method with random weights, whose classes all win somewhere."""
    torch.manual_seed(seed)
    model = models.method(name)(options_from_dict(name, options), CLASSES).eval()
    if name == "segformer":
        with torch.no_grad():
            logits, _ = model.step(images(1)[0])
            model.decoder.linear_pred.bias -= logits.mean((0, 2, 3))  # type: ignore[union-attr, operator]
    return model


def images(count: int) -> list[Tensor]:
    """Smooth pictures that move, each uint8 [1, 3, H, W]."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in SIZE), indexing="ij")
    waves = [[torch.sin(x / 9 + c + t / 5) * torch.cos(y / (7 + c)) for c in range(3)] for t in range(count)]
    return [(127 + 120 * torch.stack(wave)).to(torch.uint8)[None] for wave in waves]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Weights, a video, and a folder that the command export made of them."""
    folder = tmp_path_factory.mktemp("int8")
    weights, video, out = folder / "weights.safetensors", folder / "video.mp4", folder / "graphs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mit.VARIANTS, "mit_b0", TINY)
        save_model(weights, build())
        assert cli.main(["data", "render", str(video), "--size", "64x96", "--length", "9"]) == 0
        words = ["export", str(weights), "-o", str(out), "--size", "64x96", "--int8", str(video)]
        assert cli.main(words) == 0
    return weights, video, out


# ---- one graph -----------------------------------------------------------------------------------------------------


def two_products() -> tuple[object, np.ndarray]:
    """ONNX of x [2, 8] -> relu(x @ w) @ its own transpose [2, 2], and w [8, 4] whose channels differ by a thousand."""
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) * np.float32([1, 10, 100, 1000])
    entry, result = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [2, 8]), ("gram", [2, 2]))
    )
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"], name="weights"),
        onnx.helper.make_node("Relu", ["product"], ["kept"], name="relu"),
        onnx.helper.make_node("Transpose", ["kept"], ["turned"], name="turn"),
        onnx.helper.make_node("MatMul", ["kept", "turned"], ["gram"], name="attention"),
    ]
    graph = onnx.helper.make_graph(nodes, "two", [entry], [result], [onnx.numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), weight


def test_products_with_weights_become_integers() -> None:
    graph, weight = two_products()
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.rand(2, 8, generator=generator) * 4 - 1,) for _ in range(20)]
    found = quantise(graph, samples)
    onnx.checker.check_model(found)
    nodes = {node.name: node for node in found.graph.node}
    makers = {name: node.op_type for node in found.graph.node for name in node.output}
    assert [makers[name] for name in nodes["weights"].input] == ["DequantizeLinear"] * 2
    assert "DequantizeLinear" not in [makers[name] for name in nodes["attention"].input]
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in found.graph.initializer}
    (integers,) = (array for array in stored.values() if array.dtype == np.int8 and array.ndim == 2)
    scales = next(array for array in stored.values() if array.shape == (4,) and array.dtype == np.float32)
    assert (np.abs(integers * scales - weight) <= scales / 2 + 1e-6).all()  # one scale for every output channel
    low, high = (min(s[0].min() for s in samples), max(s[0].max() for s in samples))
    steps = [array for array in stored.values() if array.shape == () and array.dtype == np.float32]
    assert any(float(step) == pytest.approx(float(high - low) / 255, rel=1e-3) for step in steps)
    (x,) = samples[0]
    product = np.maximum(x.numpy() @ weight, 0)
    for start in (open_onnxruntime, open_openvino):
        (gram,) = start(found.SerializeToString())(x)
        assert np.abs(gram.numpy() - product @ product.T).max() <= 0.03 * np.abs(product @ product.T).max()


def test_a_graph_without_weights_stays_as_it_is() -> None:
    graph, _ = two_products()
    del graph.graph.node[:2]  # type: ignore[attr-defined]
    graph.graph.input[0].name = "kept"  # type: ignore[attr-defined]
    assert quantise(graph, [(torch.ones(2, 8),)]) is graph


def test_calls_hold_what_is_remembered() -> None:
    model, frames = build("sdcpc", width=64), images(5)
    calls = record(model, frames)
    assert model.backend is None
    assert {name: len(entry.inputs) for name, entry in calls.items()} == {"encode": 5, "align": 5, "decide": 5}
    with torch.inference_mode():
        first, part = model.encode(frames[0])  # type: ignore[operator]
        last, _ = model.encode(frames[4])  # type: ignore[operator]
        second, _ = model.encode(frames[1])  # type: ignore[operator]
    feature, near, *_ = calls["align"].inputs[4]
    assert torch.equal(feature, last) and torch.equal(near, second)  # three frames before
    assert torch.equal(calls["align"].inputs[0][2], part) and torch.equal(calls["encode"].inputs[2][0], frames[2])
    assert torch.equal(calls["decide"].inputs[4][2], first)


def test_calls_hold_those_of_later_frames() -> None:
    model = build("dcfm", interval=3, neighbours=2)
    counts = {name: len(entry.inputs) for name, entry in record(model, images(7)).items()}
    assert counts == {"key": 3 + 3, "between": 4, "between_two": 4}  # frames 0, 3, 6 are keys


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_exported_integers_give_nearly_the_same(written: tuple[Path, Path, Path]) -> None:
    _, _, folder = written
    assert {file.name for file in folder.iterdir()} == {"frame.onnx", "steadyseg.json"}
    about = json.loads((folder / "steadyseg.json").read_text())
    assert about["precision"] == "int8" and about["graphs"]["frame"]["inputs"][0]["shape"] == [None, 3, *SIZE]
    kinds = [node.op_type for node in onnx.load(folder / "frame.onnx").graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    model, (frame,) = build(), images(1)
    with torch.inference_mode():
        plain, _ = model.step(frame)
        for name in ("onnxruntime", "openvino"):
            ours, _ = attach_folder(model, folder, name).step(frame)  # type: ignore[arg-type]
            assert 1e-4 * plain.norm() < (ours - plain).norm() < 0.3 * plain.norm()
            model.backend = None


def test_commands_run_the_folder(written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    weights, video, folder = written
    words = ["predict", str(video), "-o", str(tmp_path / "labels"), "--format", "labels", "--max-frames", "2"]
    words += ["--model", str(weights), "--graphs", str(folder)]
    assert cli.main([*words, "--backend", "onnxruntime"]) == 0
    assert len(list((tmp_path / "labels").iterdir())) == 2


def test_other_models_are_refused(written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, folder = written
    with pytest.raises(ConfigError, match="holds graphs of segformer; the model is pspnet"):
        attach_folder(build("pspnet", backbone="mit_b0"), folder, "openvino")
    with pytest.raises(ConfigError, match="holds graphs with width 256; the model has width 64"):
        attach_folder(build(width=64), folder, "openvino")
    with pytest.raises(ConfigError, match="of a model with other weights"):
        attach_folder(build(seed=1), folder, "openvino")
    with pytest.raises(ConfigError, match="backend torch runs no exported graphs"):
        attach_folder(build(), folder, "torch")
    with pytest.raises(ConfigError, match="in fp32, not in bf16"):
        attach_folder(build(), folder, "onnxruntime", precision="bf16")
    model = attach_folder(build(), folder, "onnxruntime")
    with pytest.raises(ShapeError, match=r"frame \[any, 3, 64, 96\]; given \[1, 3, 96, 64\]: export with this --size"):
        model.step(images(1)[0].transpose(2, 3).contiguous())
    with pytest.raises(DataError, match=r"holds no steadyseg.json; expected a folder"):
        attach_folder(build(), tmp_path, "openvino")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "frame.onnx").write_bytes(b"no graph")
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(DataError, match=rf"frame.onnx is damaged, {name} cannot read it"):
            attach_folder(build(), broken, name)  # type: ignore[arg-type]
    (broken / "frame.onnx").unlink()
    with pytest.raises(DataError, match=r"lacks frame\.onnx: export again"):
        attach_folder(build(), broken, "openvino")
    about = json.loads((broken / "steadyseg.json").read_text())
    about.pop("weights")
    (broken / "steadyseg.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="does not say weights: export again"):
        attach_folder(build(), broken, "openvino")


def test_labels_that_differ_are_refused(tmp_path: Path) -> None:
    half = Difference("openvino", "a video", 9, 0.4, labels=50, pixels=100)
    _check(half, tmp_path, is_exact=False)
    with pytest.raises(DataError, match=r"openvino the exported graphs give 49.0 % of torch's labels"):
        _check(half._replace(labels=51), tmp_path, is_exact=False)
    with pytest.raises(DataError, match=r"differ from torch by 4\.0e-01"):
        _check(half, tmp_path, is_exact=True)


def test_ranges_need_every_graph(tmp_path: Path) -> None:
    video, out = tmp_path / "video.mp4", tmp_path / "out"
    assert cli.main(["data", "render", str(video), "--size", "64x96", "--length", "1"]) == 0
    with pytest.raises(DataError, match=r"the graph 'between' never runs on the 1 frames of .*video.mp4: give --int8"):
        export(build("reuse"), out, size=SIZE, int8=video)
    assert not out.exists()


# ---- a model in this process -----------------------------------------------------------------------------------------


def test_a_model_runs_in_integers() -> None:
    model, frames = build(), images(4)
    with torch.inference_mode():
        plain, _ = model.step(frames[1])
        ours, _ = attach_int8(model, "onnxruntime", frames).step(frames[1])
    assert 1e-4 * plain.norm() < (ours - plain).norm() < 0.3 * plain.norm()
    with pytest.raises(ConfigError, match="backend compile has no int8"):
        attach_int8(build(), "compile", frames)
