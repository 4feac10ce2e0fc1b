"""The report is complete, the labels agree, and what is timed is what users run."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadyseg import allocator, benchmark, cli, models
from steadyseg.benchmark import growth, host, speed
from steadyseg.benchmark.clock import summary
from steadyseg.benchmark.parts import parts
from steadyseg.benchmark.process import Process
from steadyseg.benchmark.reference import TransformersProcess
from steadyseg.benchmark.setting import rounds
from steadyseg.benchmark.speed import label_gap
from steadyseg.benchmark.subject import build, follow, street
from steadyseg.engine.stream import Stream
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError
from steadyseg.video import Writer

TINY = benchmark.Setting(size=(64, 96), classes=5, frames=3, warmup=1, seed=1)


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak is looked for with matrices that take a moment."""
    monkeypatch.setattr(host, "SIDES", {"cpu": 256})


def test_measure_reports_everything() -> None:
    result = benchmark.measure("sdcpc", TINY)
    assert json.loads(json.dumps(result)) == result
    assert set(result["latency_ms"]) == {"mean", "median", "p95"}
    assert result["latency_ms"]["median"] <= result["latency_ms"]["p95"]
    assert result["fps"] == pytest.approx(1e3 / result["latency_ms"]["mean"])
    assert result["parameters"] == sum(
        p.numel() for p in models.method("sdcpc")(models.method("sdcpc").Config(), 5).parameters()
    )
    assert result["peak_memory_mib"] > 50
    assert set(result["multiply_adds"]) == {"stream", "clip"}
    operations = 2 * result["multiply_adds"]["stream"]["executed"]["full"] * result["fps"]
    assert result["share_of_peak"] == pytest.approx(operations / (1e9 * result["peak_gflops"]))
    assert result["size"] == [64, 96] and result["streams"] == 1 and result["backend"] == "torch"


def test_both_at_once_is_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    built: list[str] = []
    monkeypatch.setattr(speed, "build", lambda name, *rest: built.append(name) or build(name, *rest))
    both = benchmark.measure_and_compare("sdcpc", TINY)
    assert built == ["sdcpc"]
    assert set(both) == {"result", "comparison"} and both["result"]["fps"] > 0
    assert both["comparison"]["theirs"]["latency_ms"]["mean"] > 0


def test_compare_gives_equal_labels_on_equal_weights() -> None:
    pytest.importorskip("transformers")
    result = benchmark.compare("segformer", TINY)
    assert result["pixels"] == 4 * 64 * 96
    assert result["differing"] == 0
    ours, theirs = (result[side]["latency_ms"]["mean"] for side in ("ours", "theirs"))
    assert result["speedup"] == pytest.approx(theirs / ours)
    assert result["paired"]["low"] <= result["paired"]["median"] <= result["paired"]["high"]


def test_gap_is_that_of_the_two_labels() -> None:
    class Fixed(nn.Module):
        def step(self, frame: Tensor) -> tuple[Tensor, None]:
            return torch.tensor([1.0, 4.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2), None

    ours, theirs = torch.ones(2, 2, dtype=torch.uint8), torch.tensor([[1, 1], [1, 2]], dtype=torch.uint8)
    frame = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert label_gap(Fixed(), [frame], {"ours": [ours], "theirs": [theirs]}) == 0.25  # type: ignore[arg-type]


def test_compare_takes_other_methods_and_precisions() -> None:
    pytest.importorskip("transformers")
    result = benchmark.compare("sdcpc", dataclasses.replace(TINY, precision="bf16", frames=2))
    assert "differing" not in result
    assert result["ours"]["fps"] > 0


def test_options_reach_the_method() -> None:
    """Key frames and those between are timed in their true shares."""
    setting = dataclasses.replace(TINY, frames=4, options={"interval": 3})
    result = benchmark.measure("reuse", setting)
    often = benchmark.measure("reuse", dataclasses.replace(setting, options={"interval": 1}))
    mine, every = (x["multiply_adds"]["stream"]["executed"]["hooks"] for x in (result, often))
    assert mine < 0.95 * every
    with pytest.raises(ConfigError, match="did you mean 'interval'"):
        benchmark.measure("reuse", dataclasses.replace(setting, options={"intervall": 3}))


def test_an_adaptive_schedule_has_no_cost_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"adaptive\.threshold to 0"):
        benchmark.measure("dcfm", dataclasses.replace(TINY, options={"adaptive": {"threshold": 0.4}}))


@pytest.mark.parametrize("name", ["sdcpc", "msaf"])
def test_a_stream_gives_the_labels_of_whole_clips(name: str) -> None:
    setting = dataclasses.replace(TINY, against="clip", frames=8)
    result = benchmark.compare(name, setting)
    assert result["pixels"] == 9 * 64 * 96
    assert result["differing"] < 1e-4 * result["pixels"]


def test_random_weights_predict_many_classes() -> None:
    """Constant labels would make the label path look faster than it is."""
    frames = street(TINY)
    for name in models.names():
        (labels,) = follow(build(name, TINY, frames[0]), TINY)(frames[:1])
        assert len(labels.unique()) >= 3


def test_a_fresh_process_measures_and_passes_errors_on() -> None:
    with pytest.raises(ConfigError, match="unknown backbone"):
        benchmark.apart(benchmark.measure, "segformer", dataclasses.replace(TINY, backbone="mit_b9"))
    with pytest.raises(benchmark.EndedError, match=r"segformer: the process ended .* frames are 64x96, 1 at a time"):
        benchmark.apart(end_the_process, "segformer", TINY)
    if sys.platform == "linux":
        assert benchmark.apart(count_faults, "segformer", TINY)["faults"] < 8000  # 80000 if all were small pages


def test_an_error_ends_what_runs_in_a_process() -> None:
    with pytest.raises(KeyboardInterrupt), Process("ended") as process:
        assert process(os.getpid) != os.getpid()
        process._line.send((time.sleep, (600,)))
        raise KeyboardInterrupt
    assert process._process.exitcode is not None
    with Process("ended") as process, pytest.raises(ZeroDivisionError) as caught:
        process(divmod, 1, 0)
    assert "divmod" not in str(caught.value) and "in its process" in caught.value.__notes__[0]
    assert process._process.exitcode == 0


def test_the_reference_runs_as_in_a_plain_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(allocator.HUGE_PAGES, "1")  # as the command line sets it
    frame = street(TINY)[0]
    with TransformersProcess(TINY, frame, tmp_path) as theirs:
        spent, (labels,) = theirs([frame])
        assert spent > 0 and labels.dtype == torch.uint8 and labels.shape == frame.shape[1:]
        if sys.platform == "linux":
            assert theirs._process(count_faults, "segformer", TINY)["faults"] > 1000, "freed memory goes back"
        assert theirs._process(os.getenv, allocator.HUGE_PAGES) is None
        with pytest.raises(benchmark.EndedError, match="the process of transformers' SegFormer ended"):
            theirs._process(end_the_process, "segformer", TINY)


def end_the_process(name: str, setting: benchmark.Setting) -> dict[str, Any]:
    os._exit(9)


def count_faults(name: str, setting: benchmark.Setting) -> dict[str, Any]:
    """Memory is handed out as by the command line: what is freed is used again."""
    torch.ones(2**22)  # 16 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**22)
    return {"faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="transformers has no SegFormer on 'resnet18'"):
        benchmark.compare("segformer", dataclasses.replace(TINY, backbone="resnet18"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is cuda"):
            benchmark.measure("segformer", dataclasses.replace(TINY, device="cuda"))


def test_machine_names_versions_and_setting() -> None:
    about = benchmark.machine(TINY)
    assert about["versions"]["torch"] == torch.__version__
    assert about["setting"]["size"] == (64, 96)
    assert about["machine"]["cpu"]
    assert about["date"].endswith("+00:00")


def test_machine_of_several_settings_holds_what_they_share() -> None:
    pytest.importorskip("onnxruntime")
    about = benchmark.machine(TINY, dataclasses.replace(TINY, backend="onnxruntime", size=(96, 64)))
    assert about["setting"].keys() == {field.name for field in dataclasses.fields(TINY)} - {"backend", "size"}
    assert "onnxruntime" in about["versions"]


# ---- times -------------------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    """Frames 5..10 of a stream with a key frame every third: 6 and 9 are key frames."""
    times = [0.001, 0.010, 0.001, 0.003, 0.014, 0.003]
    found = summary(times, period=3, first=5, streams=2)
    assert found["latency_ms"]["mean"] == pytest.approx(32 / 6)
    assert found["latency_ms"]["median"] == pytest.approx(3)
    assert found["latency_ms"]["p95"] == pytest.approx(14)
    assert found["fps"] == pytest.approx(2 * 6 / 0.032)
    assert found["spread"] == pytest.approx((18 - 14) / 16)  # of the sums 12 and 20: quartiles 14, 16, 18
    assert found["key"]["latency_ms"]["mean"] == pytest.approx(12)
    assert found["between"]["latency_ms"]["median"] == pytest.approx(2)
    assert found["key"]["spread"] == pytest.approx(2 / 12)
    assert summary([1.0])["spread"] is None
    assert summary([0.0, 0.0])["fps"] is summary([0.0, 0.0])["spread"] is None  # a part that does not run
    assert "key" not in summary(times)


@pytest.mark.parametrize("name", ["reuse", "flow", "tfc", "dcfm"])
def test_key_frames_are_those_of_the_schedule(name: str) -> None:
    setting = dataclasses.replace(TINY, options={"interval": 3})
    frames = street(setting)
    model = build(name, setting, frames[0])
    called: list[str] = []

    def note(graph: str, function: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        called.append(graph)
        results = function(*tensors)
        return results if isinstance(results, tuple) else (results,)

    model.backend = note
    run = follow(model, setting)
    for number, frame in enumerate(rounds(frames, setting, 7)):
        called.clear()
        run(frame)
        assert ("key" in called) == (number % model.period == 0)


def test_streams_are_several_videos_at_a_time() -> None:
    setting = dataclasses.replace(TINY, streams=2, frames=2, options={"interval": 2})
    result = benchmark.measure("reuse", setting)
    assert result["streams"] == 2
    assert result["fps"] == pytest.approx(2e3 / result["latency_ms"]["mean"])
    assert {"key", "between"} <= result.keys()
    frames = street(setting)
    model = build("reuse", setting, frames[0])
    together, alone = follow(model, setting), [Stream(model), Stream(model)]
    for images in rounds(frames, setting, 3):
        assert not torch.equal(*images)
        for labels, stream, image in zip(together(images), alone, images, strict=True):
            assert (labels != stream(image)).float().mean() < 1e-3


def test_streams_of_the_reference_are_batches() -> None:
    pytest.importorskip("transformers")
    result = benchmark.compare("segformer", dataclasses.replace(TINY, streams=2, frames=1))
    assert result["pixels"] == 2 * 2 * 64 * 96
    assert result["differing"] == 0


def test_parts_are_timed_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = dataclasses.replace(TINY, parts=True, options={"interval": 3})
    normalize = VideoSegmenter.normalize

    def slowly(self: VideoSegmenter, frame: Tensor) -> Tensor:
        time.sleep(0.3)
        return normalize(self, frame)

    frames = street(setting)
    model = build("reuse", setting, frames[0])
    monkeypatch.setattr(VideoSegmenter, "normalize", slowly)
    found = parts(model, setting, frames)
    assert list(found) == ["copy", "normalise", "backbone", "method", "labels"]
    means = {part: times["latency_ms"]["mean"] for part, times in found.items()}
    assert min(means.values()) > 0
    assert means["normalise"] >= 300 > found["copy"]["latency_ms"]["median"]
    assert "normalize" not in vars(model) and "forward" not in vars(model.backbone)
    model.backend = lambda name, function, *tensors: VideoSegmenter.compute(plain, name, function, *tensors)
    plain = build("reuse", setting, frames[0])
    found = parts(model, setting, frames)
    assert list(found) == ["copy", "graph key", "graph between", "rest", "labels"]
    assert found["graph key"]["between"]["latency_ms"]["mean"] == 0 < found["graph key"]["key"]["latency_ms"]["mean"]


def test_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([2e-3, 1e-3, 4e-3])
    monkeypatch.setattr(host, "clocked", lambda *_, **__: (next(spent), None))
    assert host.peak_gflops(TINY, seconds=0) == pytest.approx(2 * 256**3 / 1e-3 / 1e9)


# ---- memory ------------------------------------------------------------------------------------------------------


def test_memory_of_a_stream_shows_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SETTLED", 4)
    setting = dataclasses.replace(TINY, frames=8)
    calm = growth.memory("segformer", setting)
    assert json.loads(json.dumps(calm)) == calm
    assert calm["frames"] == 8 and calm["settled_after"] == 4
    assert calm["growth_percent"]["peak"] == pytest.approx(
        100 * (calm["end"]["peak_mib"] / calm["settled"]["peak_mib"] - 1)
    )
    kept = []
    monkeypatch.setattr(growth, "follow", lambda model, setting: lambda frames: kept.append(torch.ones(2**23)))
    leaking = growth.memory("segformer", setting)
    assert leaking["end"]["in_use_mib"] - leaking["settled"]["in_use_mib"] > 120  # 4 times 32 MiB
    assert leaking["growth_percent"]["in_use"] > calm["growth_percent"]["in_use"]
    with pytest.raises(ConfigError, match=r"--memory is 4; .* after frame 4: expected more frames"):
        growth.memory("segformer", dataclasses.replace(TINY, frames=4))


def test_memory_of_predict(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SETTLED", 5)
    setting = dataclasses.replace(TINY, frames=8, options={"interval": 4})
    found = growth.memory_of_predict("segformer_mit_b0_camvid", setting, video=clip, method="reuse")
    assert found["frames"] == 8 and found["size"] == [64, 96] and found["method"] == "reuse"
    assert found["end"]["peak_mib"] >= found["settled"]["peak_mib"] > 50
    monkeypatch.setattr(growth, "SETTLED", 20)
    with pytest.raises(ConfigError, match=r"clip\.mp4 has 20 frames; .* expected more frames"):
        growth.memory_of_predict("segformer_mit_b0_camvid", dataclasses.replace(TINY, frames=30), video=clip)


# ---- the command -------------------------------------------------------------------------------------------------

WORDS = ["--classes", "5", "--frames", "2", "--warmup", "1"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process."""
    monkeypatch.setattr(benchmark, "apart", lambda function, name, setting: function(name, setting))


def test_the_command_measures_every_combination(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["--backbone", "mit_b0,resnet18", "--size", "64x96,96x64", "--backend", "torch,onnxruntime"]
    pytest.importorskip("onnxruntime")
    assert cli.main(["benchmark", "segformer", *WORDS, *lists, "--precision", "bf16", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    every = [[backbone, size] for backbone in ("mit_b0", "resnet18") for size in ([64, 96], [96, 64])]
    assert [[result["backbone"], result["size"]] for result in report["results"]] == every
    assert [[entry["backbone"], entry["size"]] for entry in report["left_out"]] == every
    assert {result["backend"] for result in report["results"]} == {"torch"}
    assert {entry["backend"] for entry in report["left_out"]} == {"onnxruntime"}
    assert "onnxruntime runs in fp32, not in bf16" in report["left_out"][0]["why"]
    assert captured.err.count("left out") == 1
    assert report["setting"]["streams"] == 1 and "size" not in report["setting"]


def test_the_table_fits_a_terminal(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "64x96", "--streams", "1,2", "--interval", "2", "--parts"]
    assert cli.main(["benchmark", "reuse", *WORDS, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch, fp32, 64x96, 5 classes, 2 frames" in lines[0]
    text = "\n".join(lines)
    assert "reuse mit_b0 1 stream " in text and "reuse mit_b0 2 streams " in text
    assert sum(line.startswith("  key ") for line in lines) == sum(line.startswith("  between ") for line in lines) == 2
    assert all(part in text for part in ("copy", "normalise", "backbone", "method", "labels", "GFLOP/s"))
    assert max(map(len, (line for line in lines[1:] if not line.startswith("Spread")))) <= 100


def test_the_command_goes_on_without_what_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apart(function: Any, name: str, setting: benchmark.Setting) -> dict[str, Any]:
        if setting.size == (96, 64):
            raise benchmark.EndedError(f"{name}: the process ended")
        return function(name, setting)

    monkeypatch.setattr(benchmark, "apart", apart)
    assert cli.main(["benchmark", "segformer", *WORDS, "--size", "96x64,64x96", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [result["size"] for result in report["results"]] == [[64, 96]]
    assert [entry["size"] for entry in report["left_out"]] == [[96, 64]]


def test_the_command_shows_memory(
    here: None, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["benchmark", "segformer", "--size", "64x96", "--classes", "5", "--memory", "101"]) == 0
    assert "segformer mit_b0" in capsys.readouterr().out
    monkeypatch.setattr(growth, "SETTLED", 10)
    words = ["--stages", clip, "--model", "segformer_mit_b0_camvid", "--method", "reuse", "--interval", "3"]
    assert cli.main(["benchmark", "--memory", "101", *words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["memory"]
    assert found["frames"] == 20 and found["growth_percent"]["peak"] >= 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["segformer", "--precision", "bf61"], "--precision is 'bf61'; expected fp32, bf16, fp16, int8; did you mean"),
        (["segformer", "--backend", "torch,"], "expected one or more, with commas between"),
        (["segformer", "--streams", "1,0"], "--streams is '0'; expected whole numbers of at least 1"),
        (["segformer", "--frames", "0"], "frames is 0; expected at least 1"),
        (["segformer", "--backbone", "mit_b0,mit_b9", "--backend", "onnxruntime", "--precision", "bf16"], "in fp32"),
        (["segformer", "--backbone", "mit_b9"], "unknown backbone 'mit_b9'"),
        (["segformer", "--backbone", "resnet18", "--against", "transformers"], "has no SegFormer on 'resnet18'"),
        (["segformer", "--memory", "100"], "expected more than 100 frames"),
        (["segformer", "--memory", "200", "--parts"], "--memory times nothing"),
        (["tfc", "--method", "tfc"], "--method is for --stages"),
        (["--stages", "a.mp4", "--model", "m", "--size", "64x96,96x64"], "give no lists"),
        (["--stages", "a.mp4", "--model", "m", "--parts"], "neither methods nor --against nor --parts"),
    ],
)
def test_wrong_calls(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", *words]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


# ---- the stages of predict ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    assert cli.main(["data", "render", str(path), "--size", "64x96", "--length", "20"]) == 0
    return str(path)


def test_stages_are_those_of_predict(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage is timed once a frame; a slow one shows in its own row and in predict."""
    write = Writer.write

    def slowly(self: Writer, image: Tensor, when: float) -> None:
        time.sleep(0.15)
        write(self, image, when)

    monkeypatch.setattr(Writer, "write", slowly)
    setting = dataclasses.replace(TINY, frames=12, warmup=8)
    result = benchmark.stages("segformer_mit_b0_camvid", setting, video=clip)
    assert json.loads(json.dumps(result)) == result
    assert list(result["stages"]) == ["decode", "copy", "model", "labels", "draw", "encode"]
    assert result["video"] == {"name": "clip.mp4", "height": 64, "width": 96, "frames": 12}
    means = {stage: summary["latency_ms"]["mean"] for stage, summary in result["stages"].items()}
    assert result["one_by_one_ms"] == pytest.approx(sum(means.values()))
    assert result["slowest"] == "encode"
    assert means["encode"] > 150
    whole = result["predict"]["latency_ms"]["mean"]
    assert whole == pytest.approx(means["encode"] * result["against_slowest"])
    assert 0.9 * means["encode"] < whole < result["one_by_one_ms"]


def test_stages_need_a_frame_after_the_warm_up(clip: str) -> None:
    with pytest.raises(ConfigError, match="20 frames, 20 of them warm-up; lower --warmup"):
        benchmark.stages("segformer_mit_b0_camvid", dataclasses.replace(TINY, warmup=20), video=clip)


def test_the_command_shows_the_stages(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "--stages", clip, "--frames", "3", "--warmup", "2"]
    assert cli.main([*words, "--model", "segformer_mit_b0_camvid"]) == 0
    text = capsys.readouterr().out
    assert all(stage in text for stage in ("decode", "encode", "predict, all at once", "slowest"))
    assert cli.main([*words, "--model", "segformer_mit_b0_camvid", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["result"]["stages"]) == {"decode", "copy", "model", "labels", "draw", "encode"}
    assert cli.main(words) == 2
    assert "--stages takes --model" in capsys.readouterr().err
    reuse = ["--model", "segformer_mit_b0_camvid", "--method", "reuse", "--options", "interval=2"]
    assert cli.main([*words, *reuse, "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["result"]["stages"]["model"]
    assert {"key", "between"} <= model.keys()


def test_ctrl_c_reports_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(function: Any, name: str, setting: benchmark.Setting) -> dict[str, Any]:
        if name != "segformer":
            raise KeyboardInterrupt
        return function(name, setting)

    monkeypatch.setattr(host, "apart", run)
    words = ["benchmark", "segformer", "sdcpc", "tfc", "--size", "64x96", "--frames", "2", "--warmup", "1", "--json"]
    assert cli.main(words) == 130
    report = json.loads(capsys.readouterr().out)
    assert [entry["method"] for entry in report["results"]] == ["segformer"]
    assert [entry["method"] for entry in report["left_out"]] == ["sdcpc", "tfc"]


@pytest.mark.parametrize("kind", [benchmark.EndedError, torch.OutOfMemoryError])
def test_a_result_outlives_its_comparison(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")

    def end(*_: Any) -> None:
        raise kind("gone")

    monkeypatch.setattr(speed, "_in_turn", end)
    both = benchmark.measure_and_compare("sdcpc", TINY)
    assert both["result"]["fps"] > 0 and both["comparison"] is None and both["why"] == "gone"
