"""Multiply-adds against the papers' tables and an independent counter; the report is complete and the labels agree."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from steadyseg import benchmark, models
from steadyseg.layers import Folding
from steadyseg.types import ConfigError

TINY = benchmark.Setting(size=(64, 96), classes=5, frames=3, warmup=1, seed=1)


def build(name: str, backbone: str) -> models.VideoSegmenter:
    kind = models.method(name)
    return kind(kind.Config(backbone=backbone), 124).eval()


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Merge weights, so that the counted run does not."""
    for module in model.modules():
        if isinstance(module, Folding):
            module.folded()


def fake_frames(count: int) -> Tensor:
    return torch.zeros(1, count, 3, 480, 853, dtype=torch.uint8)


@pytest.mark.parametrize(("backbone", "hooks", "full"), [("mit_b0", 11.36, 13.87), ("mit_b1", 21.51, 26.54)])
def test_segformer_costs_what_the_tables_say(backbone: str, hooks: float, full: float) -> None:
    """480x853, 124 classes, decoder width 256; shapes alone decide, so nothing is computed."""
    model = build("segformer", backbone)
    with FakeTensorMode(allow_non_fake_inputs=True):
        frame = fake_frames(1)[:, 0]
        fold(model)
        counts = benchmark.count(lambda: model.step(frame))
    assert counts["published"].hooks / 1e9 == pytest.approx(hooks, abs=0.006)
    assert counts["published"].full / 1e9 == pytest.approx(full, abs=0.006)
    assert counts["executed"].hooks < 0.7 * counts["published"].hooks
    assert counts["executed"].sampling == 0


@pytest.mark.parametrize(("backbone", "paper"), [("mit_b1", 69.2), ("mit_b2", 107.1), ("mit_b5", 324.9)])
def test_sdcpc_costs_what_the_paper_says(backbone: str, paper: float) -> None:
    """Three frames, nothing remembered, attention products left out: within 8 % of the paper's G."""
    model = build("sdcpc", backbone)
    with FakeTensorMode(allow_non_fake_inputs=True):
        frames = fake_frames(3)

        def run() -> Tensor:
            return model.head(model.aggregate(model.encode_clip(frames)))

        fold(model)
        counts = benchmark.count(run)
    assert counts["published"].hooks / 1e9 == pytest.approx(paper, rel=0.08)
    assert counts["executed"].hooks < counts["published"].hooks
    assert counts["executed"].sampling > 0


def test_counts_equal_an_independent_counter() -> None:
    """Hooks on the layers of transformers' model, which merges nothing, give the published count."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(decoder_hidden_size=256, id2label={0: "a", 1: "b", 2: "c"})
    theirs = transformers.SegformerForSemanticSegmentation(config).eval()
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output.numel() // module.weight.shape[0]

    for module in theirs.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        theirs(torch.zeros(1, 3, 64, 96))
    kind = models.method("segformer")
    ours = kind(kind.Config(), 3).eval()
    costs = benchmark.costs(ours, torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert costs["stream"]["published"].hooks == costs["clip"]["published"].hooks == total


def test_clip_costs_more_than_a_frame_of_a_stream() -> None:
    kind = models.method("sdcpc")
    costs = benchmark.costs(kind(kind.Config(), 5).eval(), torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    for form in ("executed", "published"):
        assert costs["stream"][form].hooks < 0.65 * costs["clip"][form].hooks
        assert all(cost[form].hooks < cost[form].full for cost in costs.values())


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


def test_random_weights_predict_many_classes() -> None:
    """Constant labels would make the label path look faster than it is."""
    frames = benchmark._frames(TINY)
    for name in models.names():
        labels = benchmark._stream(benchmark._build(name, TINY, frames[0]), TINY)(frames[0])
        assert len(labels.unique()) >= 3


def test_frames_never_jump() -> None:
    shown = [int(frame) for frame in benchmark._pingpong([torch.tensor(i) for i in range(4)], 10)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]


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
