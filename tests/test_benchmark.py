"""The report is complete, the labels agree, and what is timed is what users run."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch
from torch import Tensor, nn

from steadyseg import benchmark, cli, models
from steadyseg.types import ConfigError
from steadyseg.video import Writer

TINY = benchmark.Setting(size=(64, 96), classes=5, frames=3, warmup=1, seed=1)


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


def test_compare_gives_equal_labels_on_equal_weights() -> None:
    pytest.importorskip("transformers")
    result = benchmark.compare("segformer", TINY)
    assert result["pixels"] == 4 * 64 * 96
    assert result["differing"] == 0
    ours, theirs = (result[side]["latency_ms"]["mean"] for side in ("ours", "theirs"))
    assert result["speedup"] == pytest.approx(theirs / ours)


def test_gap_is_that_of_the_two_labels() -> None:
    class Fixed(nn.Module):
        def step(self, frame: Tensor) -> tuple[Tensor, None]:
            return torch.tensor([1.0, 4.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2), None

    ours, theirs = torch.ones(2, 2, dtype=torch.uint8), torch.tensor([[1, 1], [1, 2]], dtype=torch.uint8)
    frame = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert benchmark._gap(Fixed(), frame, {"ours": ours, "theirs": theirs}) == 0.25  # type: ignore[arg-type]


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
    frames = benchmark._frames(TINY)
    for name in models.names():
        labels = benchmark._stream(benchmark._build(name, TINY, frames[0]), TINY)(frames[0])
        assert len(labels.unique()) >= 3


def test_a_fresh_process_measures_and_passes_errors_on() -> None:
    with pytest.raises(ConfigError, match="unknown backbone"):
        benchmark.apart(benchmark.measure, "segformer", dataclasses.replace(TINY, backbone="mit_b9"))


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
