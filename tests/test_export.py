"""Exported graphs, streamed in ONNX Runtime and OpenVINO, give what torch gives; what is written is whole."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts import load_script
from steadyseg import backends, cli, models
from steadyseg import export as exporting
from steadyseg import exported as exported_files
from steadyseg.backbones import mit
from steadyseg.config import options_from_dict
from steadyseg.engine.checkpoint import save_model
from steadyseg.engine.stream import Stream
from steadyseg.export import Report, export
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, DataError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
if importlib.util.find_spec("openvino") is None:  # imported by backends.needs alone, which keeps it quiet
    pytest.skip("openvino is not installed", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("export")  # what is exported serves several tests
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_video.py"
CLASSES, SIZE = 5, (64, 96)
CASES: dict[str, tuple[str, dict]] = {
    "segformer": ("segformer", {}),
    "sdcpc": ("sdcpc", {"width": 64}),
    "sdcpc direct": ("sdcpc", {"width": 64, "dssa": {"order": "direct"}}),
    "sdcpc without stages": ("sdcpc", {"width": 64, "dssa": {"stages": []}}),
    "tfc": ("tfc", {}),
    "tfc, nothing to refine": ("tfc", {"theta": -2.0}),
    "tfc, all moved along flow": ("tfc", {"align": "flow", "corr_level": 1, "msda": "dense", "interp": "hard"}),
    "dcfm": ("dcfm", {"interval": 3}),
    "dcfm, adaptive": ("dcfm", {"neighbours": 1, "head_layers": 1, "adaptive": {"threshold": 1.1}}),
    "msaf": ("msaf", {"backbone": "mit_b0", "width": 64}),
    "msaf on a ResNet": ("msaf", {}),
    "pspnet": ("pspnet", {}),
    "reuse": ("reuse", {}),
    "flow": ("flow", {}),
    "flow, features": ("flow", {"warp": "features"}),
}
QUICK = ("segformer", "sdcpc", "tfc")
"""What is exported in every run of the tests; the others are marked exhaustive."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MiT, with one block a stage: tracing takes a third of the time."""
    monkeypatch.setitem(mit.VARIANTS, "mit_b0", mit.Variant((8, 16, 40, 64), (1, 1, 1, 1)))


def build(case: str) -> VideoSegmenter:
    """A model whose every parameter and statistic is random, so that no zero initialisation hides a path."""
    torch.manual_seed(0)
    name, options = CASES[case]
    model = models.method(name)(options_from_dict(name, options), CLASSES)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):
                tensor.add_(torch.randn(tensor.shape) * 0.02)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Report]]:
    """Export a case once, for all tests of this file."""
    done: dict[str, tuple[Path, Report]] = {}

    def find(case: str) -> tuple[Path, Report]:
        if case not in done:
            folder = tmp_path_factory.mktemp("exported") / "graphs"
            done[case] = folder, export(build(case), folder, size=SIZE)
        return done[case]

    return find


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.exhaustive) for c in CASES])
def test_both_runtimes_stream_like_torch(case: str, exported: Callable[[str], tuple[Path, Report]]) -> None:
    folder, report = exported(case)
    model = build(case)
    assert [entry.runtime for entry in report.differences] == ["onnxruntime", "openvino"]
    for entry in report.differences:
        assert entry.length >= max(9, 2 * model.period + 1)
        assert 0 < entry.scores < 1e-4
        assert entry.labels <= 1e-4 * entry.pixels
    about = json.loads((folder / "steadyseg.json").read_text())
    graphs = model.graphs(torch.zeros(1, 3, *SIZE, dtype=torch.uint8))
    assert {name: len(graph.inputs) for name, graph in graphs.items()} == {
        name: len(graph["inputs"]) for name, graph in about["graphs"].items()
    }
    assert report.batch == (None if model.is_periodic else 1)


def test_what_is_written_says_what_it_is(exported: Callable[[str], tuple[Path, Report]]) -> None:
    folder, report = exported("sdcpc")
    assert {file.name for file in folder.iterdir()} == set(report.files)
    about = json.loads((folder / "steadyseg.json").read_text())
    assert about["method"] == "sdcpc" and about["size"] == list(SIZE) and about["batch"] is None
    assert about["config"]["width"] == 64 and len(about["classes"]) == len(about["palette"]) == CLASSES
    assert list(about["graphs"]) == ["encode", "align", "decide"]
    assert about["graphs"]["encode"]["inputs"] == [{"name": "frame", "dtype": "uint8", "shape": [None, 3, *SIZE]}]
    assert [entry["name"] for entry in about["graphs"]["decide"]["inputs"]] == ["feature", "aligned", "far", "part"]
    assert len(about["state"]["features"]) == 6 and len(about["state"]["aligned"]) == 3
    inside = onnx.load(folder / "encode.onnx")
    (entry,) = inside.metadata_props
    stored = json.loads(entry.value)
    assert stored.pop("graph") == "encode"
    assert stored == {key: value for key, value in about.items() if key != "graphs"}
    onnx.checker.check_model(inside)


def test_example_gives_the_labels_of_a_stream(exported: Callable[[str], tuple[Path, Report]], tmp_path: Path) -> None:
    folder, _ = exported("sdcpc")
    example = load_script(EXAMPLE)
    segment, stream = example.Segmenter(folder), Stream(build("sdcpc"))
    frames = torch.randint(0, 256, (9, 3, *SIZE), dtype=torch.uint8)
    differing = sum(
        int((torch.from_numpy(segment(frame.permute(1, 2, 0).numpy())) != stream(frame)).sum()) for frame in frames
    )
    assert differing <= 1e-4 * frames[:, 0].numel()
    video, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    assert cli.main(["data", "render", str(video), "--size", "72x100", "--length", "3"]) == 0
    done = subprocess.run([sys.executable, str(EXAMPLE), str(folder), str(video), str(out)], check=False)
    assert done.returncode == 0
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []
    from steadyseg.video import probe

    assert (probe(out).frames, probe(out).height, probe(out).width) == (3, *SIZE)


def test_nothing_is_written_where_the_graphs_differ(
    exported: Callable[[str], tuple[Path, Report]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.load(exported("segformer")[0] / "frame.onnx")
    bias = next(x for x in wrong.graph.initializer if list(x.dims) == [CLASSES])
    monkeypatch.setattr(exporting, "_trace_all", lambda *_: {"frame": wrong})
    for values, shown in ((torch.arange(CLASSES) * 0.1, r"\d"), (torch.full((CLASSES,), float("nan")), "nan")):
        bias.raw_data = values.numpy().tobytes()
        with pytest.raises(
            DataError, match=rf"in onnxruntime the exported graphs differ from torch by {shown}.* not wr"
        ):
            export(build("segformer"), tmp_path / "out", size=SIZE)
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_that_a_runtime_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: str) -> None:
        raise RuntimeError("Exception from src/x.cpp:1:\nno such operation")

    monkeypatch.setattr(exported_files, "open_onnxruntime", refuse)
    with pytest.raises(DataError, match=r"onnxruntime cannot read what was made \(no such operation\), so nothing"):
        export(build("segformer"), tmp_path / "out", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_text("")
    with pytest.raises(ConfigError, match="exists; name another"):
        export(build("segformer"), tmp_path, size=SIZE)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"also holds notes.txt, which is no .onnx or .json"):
        export(build("segformer"), tmp_path, size=SIZE, overwrite=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["segformer", "sdcpc", "tfc", "dcfm"])
def test_frames_of_any_size(case: str, tmp_path: Path) -> None:
    report = export(build(case), tmp_path / "out", size=None)
    assert report.batch is None and all(entry.scores < 1e-4 for entry in report.differences)


def test_the_check_streams_thirty_frames_of_a_video(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    assert cli.main(["data", "render", str(video), "--size", "64x96", "--length", "32"]) == 0
    report = export(build("segformer"), tmp_path / "out", size=SIZE, video=video)
    lengths = {(entry.frames, entry.length) for entry in report.differences}
    assert lengths == {("random", 9), (str(video), 30)}


@pytest.mark.exhaustive
def test_command_writes_openvino_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, video, out = tmp_path / "weights.safetensors", tmp_path / "video.mp4", tmp_path / "out"
    save_model(weights, build("segformer"))
    assert cli.main(["data", "render", str(video), "--size", "72x100", "--length", "3"]) == 0
    words = ["export", str(weights), "-o", str(out), "--format", "openvino", "--size", "64x96", "--video", str(video)]
    assert cli.main(words) == 0
    assert {file.name for file in out.iterdir()} == {"frame.xml", "frame.bin", "steadyseg.json"}
    shown = capsys.readouterr().out
    assert "openvino, 9 frames, random: largest difference" in shown and f"openvino, 3 frames, {video}" in shown


# ---- backends ------------------------------------------------------------------------------------------------------


def follow(model: VideoSegmenter, frames: Tensor) -> list[Tensor]:
    """Fold `step` over frames [T, B, 3, H, W]."""
    found, state = [], None
    with torch.inference_mode():
        for frame in frames:
            logits, state = model.step(frame, state)
            found.append(logits)
    return found


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("compile", marks=pytest.mark.exhaustive)])
def test_backend_gives_what_torch_gives(name: backends.Name) -> None:
    """A graph is compiled for the sizes it meets; what it returned stays as it is in later calls."""
    model = build("segformer")
    for size in (SIZE, (32, 64)):
        frames = torch.randint(0, 256, (3, 1, 3, *size), dtype=torch.uint8)
        plain = follow(model, frames)
        backends.attach(model, name)
        for ours, theirs in zip(follow(model, frames), plain, strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        backends.attach(model, "torch")
        assert model.backend is None


def test_openvino_computes_as_it_is_told() -> None:
    """Its own choice on some machines is bf16."""
    model = build("segformer")
    frames = torch.randint(0, 256, (2, 1, 3, *SIZE), dtype=torch.uint8)
    for precision, bound in (("fp32", 1e-4), ("bf16", 0.1)):
        backends.attach(model, "torch")
        plain = follow(model, frames)
        backends.attach(model, "openvino", precision=precision)
        for ours, theirs in zip(follow(model, frames), plain, strict=True):
            assert (ours - theirs).norm() < bound * theirs.norm()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = build("segformer")
    with pytest.raises(ConfigError, match="runs in fp32, not in bf16: take --precision fp32"):
        backends.attach(model, "onnxruntime", precision="bf16")
    with pytest.raises(ConfigError, match="has no fp16 on a CPU"):
        backends.attach(model, "openvino", precision="fp16")
    with pytest.raises(ConfigError, match="cuda_graphs runs on an NVIDIA GPU, and the model is on cpu: take another"):
        backends.attach(model, "cuda_graphs")
    with pytest.raises(ConfigError, match="runs on the CPU, and the model is on meta: take --device cpu"):
        backends.attach(build("segformer").to("meta"), "openvino")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="there is no no-such-compiler"):
        backends.attach(model, "compile")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: backends.attach(model, "onnxruntime"), lambda: export(model, tmp_path / "out", size=SIZE)):
        with pytest.raises(ConfigError, match=r"needs the package onnxruntime: pip install 'steadyseg\[export\]'"):
            call()
    assert model.backend is None and list(tmp_path.iterdir()) == []


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Its import would send an event to its makers, and leave a number for the user in the home folder."""
    code = (
        "import sys; from steadyseg.backends import needs; needs('openvino'); print(sys.modules['openvino_telemetry'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
    assert not list(tmp_path.iterdir())


SIGNALS = """
import signal, subprocess, sys
from onnx import TensorProto, helper
from steadyseg.backends import open_openvino

number = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
node = helper.make_node("Identity", ["x"], ["y"])
graph = helper.make_graph([node], "same", [number], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
first, second = open_openvino(model), open_openvino(model)
del first, second
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


def test_graphs_that_end_leave_signals_as_they_were() -> None:
    """Python handles signals on a stack of its own where faulthandler is on, as in tests."""
    command = [sys.executable, "-X", "faulthandler", "-c", SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "alive", (done.returncode, done.stderr)
