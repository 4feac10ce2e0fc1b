"""Graphs in 8-bit integers: what is quantised, from which frames, and folders of graphs that commands run."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steadyseg import benchmark, cli, console, models
from steadyseg import export as exporting
from steadyseg.backbones import mit
from steadyseg.backends import open_onnxruntime, open_openvino, quiet
from steadyseg.benchmark import subject
from steadyseg.config import has_options, options_from_dict
from steadyseg.engine import evaluate as evaluation
from steadyseg.engine.checkpoint import save_model
from steadyseg.export import Difference, _calibrate, _check, _stretches, export
from steadyseg.exported import OUTSIDE, ExportedGraphs, _cure, attach_folder, identity
from steadyseg.models.base import VideoSegmenter
from steadyseg.quantisation import attach_int8, quantise, record
from steadyseg.types import ConfigError, DataError, Frame, ShapeError
from steadyseg.video import write_image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
if importlib.util.find_spec("openvino") is None:  # imported by backends.needs alone, which keeps it quiet
    pytest.skip("openvino is not installed", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("int8")  # one export serves several tests
CLASSES, SIZE = 11, (64, 96)
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
        assert cli.main(["data", "render", str(video), "--size", "64x96", "--length", "16"]) == 0
        words = ["export", str(weights), "-o", str(out), "--size", "64x96", "--int8", str(video)]
        assert cli.main(words) == 0
    return weights, video, out


# ---- one graph -----------------------------------------------------------------------------------------------------


def network(nodes: list[tuple[str, list[str], str]], shapes: dict[str, list[int]], **weights: np.ndarray) -> Any:
    """ONNX of nodes (type, inputs, output, which is also the name), with inputs of shapes and an output "result"."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    entries = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    made = [helper.make_node(type_, inputs, [output], name=output) for type_, inputs, output in nodes]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    result = helper.make_tensor_value_info("result", kind, None)
    graph = helper.make_graph(made, "graph", entries, [result], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


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
    for open_session in (open_onnxruntime, open_openvino):
        (gram,) = open_session(found.SerializeToString())(x)
        assert np.abs(gram.numpy() - product @ product.T).max() <= 0.03 * np.abs(product @ product.T).max()


def test_a_graph_without_weights_stays_as_it_is() -> None:
    graph, _ = two_products()
    del graph.graph.node[:2]  # type: ignore[attr-defined]
    graph.graph.input[0].name = "kept"  # type: ignore[attr-defined]
    assert quantise(graph, [(torch.ones(2, 8),)]) is graph


@pytest.mark.parametrize(
    ("kind", "shape", "sides"), [("Conv", [1, 3, 16, 16], [3, 3, 1, 1]), ("MatMul", [256, 3], [3, 3])]
)
def test_the_product_that_ends_a_graph_stays_in_float(kind: str, shape: list[int], sides: list[int]) -> None:
    weight = np.random.default_rng(0).normal(size=sides).astype(np.float32)
    nodes = [(kind, ["x", "w"], "first"), ("Sigmoid", ["first"], "kept"), (kind, ["kept", "v"], "last")]
    graph = network([*nodes, ("Transpose", ["last"], "result")], {"x": shape}, w=weight, v=weight)
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(*shape, generator=generator),) for _ in range(4)]
    found = quantise(graph, samples)
    makers = {name: node.op_type for node in found.graph.node for name in node.output}
    inputs = {node.name: [makers.get(name) for name in node.input] for node in found.graph.node}
    assert inputs["first"] == ["DequantizeLinear"] * 2 and "DequantizeLinear" not in inputs["last"]
    (scores,) = open_onnxruntime(found.SerializeToString())(*samples[0])
    assert len(scores.unique()) > 256
    assert {entry.domain for entry in found.opset_import} == {""}


def test_points_must_be_chosen_once() -> None:
    """As where TFC refines none: nothing would give scales to what follows."""
    nodes = [
        ("NonZero", ["mask"], "which"),
        ("Gather", ["x", "which"], "points"),
        ("MatMul", ["points", "w"], "product"),
        ("Relu", ["product"], "result"),
    ]
    graph = network(nodes, {"mask": [4], "x": [4, 2]}, w=np.eye(2, 3, dtype=np.float32))
    none, one, x = torch.zeros(4), torch.tensor([0.0, 1, 0, 0]), torch.rand(4, 2)
    with pytest.raises(DataError, match="no point is refined in any of the 2 calls"):
        quantise(graph, [(none, x), (none, x)])
    (result,) = open_onnxruntime(quantise(graph, [(none, x), (one, x)]).SerializeToString())(one, x)
    torch.testing.assert_close(result[0, 0, :2], x[1], atol=0.02, rtol=0)


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


@pytest.mark.parametrize("known", [True, False])
def test_stretches_are_spread_over_the_whole_video(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(video: str, on_error: str) -> Iterator[Frame]:
        for number in range(int(video)):
            yield Frame(torch.full((3, 2, 2), number, dtype=torch.uint8), number, 0.0)

    monkeypatch.setattr(exporting, "read", read)
    monkeypatch.setattr(exporting, "probe", lambda video: SimpleNamespace(frames=int(video) if known else None))

    def found(count: int, length: int) -> list[list[int]]:
        return [[int(image[0, 0, 0]) for image in images] for images in _stretches(str(count), length)]

    assert found(100, 8) == [[*range(first, first + 8)] for first in (0, 46, 92)]
    assert found(18, 20) == [[*range(18)]]
    assert {number for numbers in found(16, 2) for number in numbers} == {*range(16)}
    with pytest.raises(DataError, match="15 has 15 frames for --int8; expected at least 16"):
        found(15, 8)


def test_broken_frames_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, image in enumerate(images(20)):
        write_image(tmp_path / f"{number}.png", image[0])
    (tmp_path / "7.png").write_bytes(b"no picture")
    assert 16 <= sum(map(len, _stretches(tmp_path, 2))) <= 24
    assert "7.png cannot be decoded" in caplog.text


def test_calibration_needs_every_graph(written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, video, _ = written
    with pytest.raises(ConfigError, match="with interval 1 the graph 'between' never runs: take --interval 2 or more"):
        _calibrate(build("reuse", interval=1), SIZE, video)
    moving = {"threshold": 1e-9, "min_interval": 1}
    with pytest.raises(
        DataError, match=r"the graph 'between' never runs on 24 frames of .*video.mp4: give --int8 anot"
    ):
        _calibrate(build("dcfm", adaptive=moving), SIZE, video)
    calls, count = _calibrate(build("dcfm", adaptive={"threshold": 1e9}), SIZE, video)
    assert set(calls) == {"key", "between", "between_two", "change"} and count == 24
    short, out = tmp_path / "short.mp4", tmp_path / "out"
    assert cli.main(["data", "render", str(short), "--size", "64x96", "--length", "1"]) == 0
    with pytest.raises(DataError, match=r"short.mp4 has 1 frames for --int8; expected at least 16"):
        export(build(), out, size=SIZE, calibration=short)
    assert list(tmp_path.iterdir()) == [short]


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_exported_integers_give_nearly_the_same(written: tuple[Path, Path, Path]) -> None:
    _, _, folder = written
    assert {file.name for file in folder.iterdir()} == {"frame.onnx", "steadyseg.json"}
    about = json.loads((folder / "steadyseg.json").read_text())
    assert (about["precision"], about["calibration_frames"]) == ("int8", 24)
    assert about["graphs"]["frame"]["inputs"][0]["shape"] == [None, 3, *SIZE]
    kinds = [node.op_type for node in onnx.load(folder / "frame.onnx").graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    model, (frame,) = build(), images(1)
    with torch.inference_mode():
        plain, _ = model.step(frame)
        for name in ("onnxruntime", "openvino"):
            ours, _ = attach_folder(model, folder, name).step(frame)  # type: ignore[arg-type]
            assert 1e-4 * plain.norm() < (ours - plain).norm() < 0.3 * plain.norm()
            model.backend = None


def test_a_folder_for_any_size(
    written: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, _, _ = written
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number, image in enumerate(images(16)):
        write_image(pictures / f"{number}.png", image[0])
    words = ["export", str(weights), "-o", str(out), "--format", "openvino", "--size", "dynamic"]
    assert cli.main([*words, "--int8", str(pictures)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"of {16 * SIZE[0] * SIZE[1]} labels differ" in shown and "% are the same" in shown  # at the pictures' size
    assert {file.name for file in out.iterdir()} == {"frame.xml", "frame.bin", "steadyseg.json"}
    model, frame = attach_folder(build(), out, "openvino"), images(1)[0].transpose(2, 3).contiguous()
    with torch.inference_mode():
        ours, _ = model.step(frame)
        model.backend = None
        plain, _ = model.step(frame)
    assert 1e-4 * plain.norm() < (ours - plain).norm() < 0.3 * plain.norm()
    with pytest.raises(ConfigError, match="holds OpenVINO's files, which onnxruntime cannot read"):
        attach_folder(model, out, "onnxruntime")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "options"), [("dcfm", {}), ("tfc", {"theta": 2.0}), ("msaf", {"backbone": "mit_b0"})])
def test_methods_that_remember(name: str, options: dict, written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, video, _ = written
    report = export(build(name, **options), tmp_path / "out", size=SIZE, calibration=video)
    assert {entry.runtime for entry in report.differences} == {"onnxruntime", "openvino"}
    assert all(1e-4 < entry.scores < 0.5 for entry in report.differences)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that folders ran."""
    names: list[str] = []
    real = ExportedGraphs.__call__

    def call(self: ExportedGraphs, name: str, *rest: Any) -> tuple[Tensor, ...]:
        names.append(name)
        return real(self, name, *rest)

    monkeypatch.setattr(ExportedGraphs, "__call__", call)
    return names


def test_predict_runs_the_folder(written: tuple[Path, Path, Path], tmp_path: Path, ran: list[str]) -> None:
    weights, video, folder = written
    words = ["predict", str(video), "-o", str(tmp_path / "labels"), "--format", "labels", "--max-frames", "2"]
    words += ["--model", str(weights), "--graphs", str(folder)]
    assert cli.main([*words, "--backend", "onnxruntime"]) == 0
    assert len(list((tmp_path / "labels").iterdir())) == 2
    assert ran == ["frame"] * 2


def test_eval_runs_the_folder(
    written: tuple[Path, Path, Path],
    tmp_path: Path,
    ran: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, _, folder = written
    config, is_half = tmp_path / "streets.yaml", []
    source = "{source: streets, split: test, size: [64, 96], length: 2, videos: 1}"
    config.write_text(f"method: segformer\neval:\n  source: {source}\n")
    real = evaluation.evaluate

    def watched(*words: Any, **options: Any) -> dict[str, float]:
        is_half.append(torch.is_autocast_enabled("cpu"))
        return real(*words, **options)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    words = ["eval", "--model", str(weights), "--config", str(config), "--metrics", "iou", "--json"]
    in_folder = ["--graphs", str(folder), "--backend", "openvino"]
    reports = []
    for more in ([], ["--precision", "bf16"], in_folder, [*in_folder, "--precision", "bf16"]):
        assert cli.main([*words, *more]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [report["precision"] for report in reports] == ["fp32", "bf16", "int8", "int8 and bf16"]
    assert is_half == [False, True, False, True] and ran == ["frame"] * 4
    assert all(0 <= report["scores"]["mIoU"] <= 1 for report in reports)
    assert cli.main([*words, *in_folder, "--precision", "fp16"]) == 2
    assert "backend openvino has no fp16 on a CPU" in capsys.readouterr().err


def test_eval_with_several_first_key_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run's option is in no graph, so the folder serves both."""
    model, weights, config = build("dcfm"), tmp_path / "dcfm.safetensors", tmp_path / "dcfm.yaml"
    save_model(weights, model)
    source = "{source: streets, split: val, size: [64, 96], length: 3, videos: 1}"
    config.write_text(f"method: dcfm\neval:\n  source: {source}\n  starts: [0, 1]\n")
    about = {**identity(model), "precision": "fp32", "graphs": {}}
    (tmp_path / "steadyseg.json").write_text(json.dumps(about))
    ran = []

    def in_torch(self: ExportedGraphs, name: str, function: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ran.append(name)
        results = function(*tensors)
        return results if isinstance(results, tuple) else (results,)

    monkeypatch.setattr(ExportedGraphs, "__call__", in_torch)
    words = ["--model", str(weights), "--config", str(config), "--metrics", "iou", "--graphs", str(tmp_path)]
    assert cli.main(["eval", *words, "--backend", "onnxruntime"]) == 0
    assert ran == ["key", "key", "between_two", "key", "between", "between"]


@pytest.mark.parametrize("name", models.names())
def test_options_outside_the_graphs(name: str) -> None:
    """Other values of these options give the same graphs, whatever the method."""
    others = {"start": 1, "interval": 3, "dropout": 0.5, "drop_path": 0.3}
    assert others.keys() == OUTSIDE
    changed = {key: value for key, value in others.items() if has_options(name, {key: value})}
    small = {"backbone": "mit_b0"} if name in ("pspnet", "msaf") else {}
    one, two = build(name, **small), build(name, **small, **changed)
    two.load_state_dict(one.state_dict())
    (frame,) = images(1)
    with torch.inference_mode():
        graphs, others_graphs = one.graphs(frame), two.graphs(frame)
        assert graphs.keys() == others_graphs.keys()
        for key, graph in graphs.items():
            found = others_graphs[key].function(*graph.inputs.values())
            expected = graph.function(*graph.inputs.values())
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs)


def test_other_models_and_calls_are_refused(written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, folder = written
    with pytest.raises(ConfigError, match="holds graphs of segformer; the model is pspnet"):
        attach_folder(build("pspnet", backbone="mit_b0"), folder, "openvino")
    with pytest.raises(ConfigError, match="holds graphs with width 256; the model has width 64"):
        attach_folder(build(width=64), folder, "openvino")
    with pytest.raises(ConfigError, match="of a model with other weights"):
        attach_folder(build(seed=1), folder, "openvino")
    with pytest.raises(ConfigError, match="backend torch runs no exported graphs"):
        attach_folder(build(), folder, "torch")
    with pytest.raises(ConfigError, match="onnxruntime runs in fp32, not in bf16"):
        attach_folder(build(), folder, "onnxruntime", precision="bf16")
    model = attach_folder(build(), folder, "onnxruntime")
    with pytest.raises(
        ShapeError, match=r"frame \[any, 3, 64, 96\]; given \[1, 3, 96, 64\]: export with --size 96x64,"
    ):
        model.step(images(1)[0].transpose(2, 3).contiguous())
    assert _cure(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), (1, 3, 64, 96)) == "run 1 at a time (--streams)"
    for name, count in (("key", 1), ("frame", 2)):
        with pytest.raises(DataError, match=f"has no graph '{name}' of {count} inputs: export again"):
            model.compute(name, max, *[torch.zeros(1)] * count)
    with pytest.raises(DataError, match=r"holds no steadyseg.json; expected a folder"):
        attach_folder(build(), tmp_path, "openvino")


def test_broken_folders_are_refused(written: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, folder = written
    broken, model = tmp_path / "broken", build()
    shutil.copytree(folder, broken)
    (broken / "frame.onnx").write_bytes(b"no graph")
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(DataError, match=rf"frame.onnx cannot be read by {name} \(.+\): export again, or install"):
            attach_folder(model, broken, name)  # type: ignore[arg-type]
    (broken / "frame.onnx").unlink()
    with pytest.raises(DataError, match=r"lacks frame\.onnx: export again"):
        attach_folder(model, broken, "openvino")
    about = json.loads((broken / "steadyseg.json").read_text())
    for change, text in [
        ({"graphs": {"frame": {"inputs": []}}}, "does not say file: export again"),
        ({"graphs": {"frame": {"file": "frame.onnx", "inputs": [{"name": "frame"}]}}}, "does not say shape"),
        ({"graphs": ["frame"]}, "steadyseg.json cannot be read"),
        ({"config": "mit_b0"}, "steadyseg.json cannot be read"),
    ]:
        (broken / "steadyseg.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(DataError, match=text):
            attach_folder(model, broken, "openvino")
    for plain, text in ({k: v for k, v in about.items() if k != "weights"}, "not say weights"), ([], "cannot be read"):
        (broken / "steadyseg.json").write_text(json.dumps(plain))
        with pytest.raises(DataError, match=text):
            attach_folder(model, broken, "openvino")


def test_labels_that_differ_are_refused(tmp_path: Path) -> None:
    half = Difference("openvino", "a video", 9, 0.4, labels=50, pixels=100)
    _check(half, tmp_path, is_exact=False)
    with pytest.raises(DataError, match=r"openvino the exported graphs give 49.0 % of torch's labels"):
        _check(half._replace(labels=51), tmp_path, is_exact=False)
    with pytest.raises(DataError, match=r"differ from torch by 4\.0e-01"):
        _check(half, tmp_path, is_exact=True)
    with pytest.raises(DataError, match="are no numbers"):
        _check(half._replace(scores=float("nan")), tmp_path, is_exact=False)


# ---- a model in this process -----------------------------------------------------------------------------------------


def test_a_model_runs_in_integers() -> None:
    model, frames = build("reuse", interval=2), images(2)
    with torch.inference_mode():
        plain, _ = model.step(frames[0])
        ours, state = attach_int8(model, "onnxruntime", frames[:1]).step(frames[0])
        assert 1e-4 * plain.norm() < (ours - plain).norm() < 0.3 * plain.norm()
        with pytest.raises(DataError, match="the graph 'between' did not run on the 1 calibration frames"):
            model.step(frames[1], state)
        with pytest.raises(
            ShapeError, match=r"takes inputs of shapes \[\[1, 3, 64, 96\]\]; given \[\[2, 3, 64, 96\]\]"
        ):
            model.step(torch.cat(frames))
    with pytest.raises(ConfigError, match="backend compile has no int8"):
        attach_int8(build(), "compile", frames)


def test_benchmark_in_integers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "apart", lambda function, name, setting: function(name, setting))
    words = ["benchmark", "segformer", "--size", "64x96", "--classes", "5", "--frames", "2", "--warmup", "1", "--json"]
    assert cli.main([*words, "--backend", "openvino", "--precision", "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["setting"]["precision"] == "int8" and {"onnxruntime", "openvino"} <= report["versions"].keys()
    (result,) = report["results"]
    assert result["fps"] > 0 and result["peak_gflops"] is None and result["share_of_peak"] is None
    console.benchmark(report, as_json=False)
    assert "GFLOP/s" not in capsys.readouterr().out


def test_a_video_is_one_stream_and_is_read_for_integers_alone(
    written: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video, _ = written
    seen: list[Tensor] = []
    monkeypatch.setattr(subject, "attach_int8", lambda model, name, frames: seen.extend(frames))
    subject.attach_for_video(build(), benchmark.Setting(precision="int8", streams=2), video)
    assert [tuple(frame.shape) for frame in seen] == [(1, 3, *SIZE)] * 8
    model = subject.attach_for_video(build(), benchmark.Setting(), "no such video")
    assert model.backend is None


def test_warnings_of_others_are_seen_while_a_graph_is_traced() -> None:
    records: list[logging.LogRecord] = []
    root, handler = logging.getLogger(), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    root.addHandler(handler)
    try:
        with quiet():
            logging.getLogger("steadyseg.video.reader").warning("ours")
            logging.getLogger("onnxscript").warning("theirs")
            root.warning("theirs, on the root")
        root.warning("after")
    finally:
        root.removeHandler(handler)
    assert [record.getMessage() for record in records] == [
        "ours",
        "after",
    ]
