"""Multiply-adds against the papers' tables and an independent counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from steadyseg import models
from steadyseg.costs import costs, count, pingpong
from steadyseg.layers import Folding


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
        counts = count(lambda: model.step(frame))
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
        fold(model)
        counts = count(lambda: model.clip_logits(frames))
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
    found = costs(ours, [torch.zeros(1, 3, 64, 96, dtype=torch.uint8)])
    assert found["stream"]["published"].hooks == found["clip"]["published"].hooks == total


def test_clip_costs_more_than_a_frame_of_a_stream() -> None:
    kind = models.method("sdcpc")
    found = costs(kind(kind.Config(), 5).eval(), [torch.zeros(1, 3, 64, 96, dtype=torch.uint8)])
    for form in ("executed", "published"):
        assert found["stream"][form].hooks < 0.65 * found["clip"][form].hooks
        assert all(cost[form].hooks < cost[form].full for cost in found.values())


def test_costs_of_key_frames_and_those_between_are_averaged() -> None:
    kind = models.method("reuse")
    frames = [torch.zeros(1, 3, 64, 96, dtype=torch.uint8)] * 2
    hooks = [costs(kind(kind.Config(interval=n), 5).eval(), frames)["stream"]["executed"].hooks for n in (1, 2, 4)]
    between = 2 * hooks[1] - hooks[0]
    assert between < 0.9 * hooks[0]
    assert hooks[2] == pytest.approx((hooks[0] + 3 * between) / 4, abs=2)


def test_a_method_that_looks_ahead_costs_what_the_paper_says() -> None:
    """DCFM-B2, 480x853, 124 classes, interval 6: the mean of the interval is within 10 % of the paper's 12.3 G."""
    kind = models.method("dcfm")
    model = kind(kind.Config(backbone="mit_b2", interval=6), 124).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        frames = [fake_frames(1)[:, 0]] * 2
        fold(model)
        found = costs(model, frames)["segment"]
    assert found["published"].hooks / 1e9 == pytest.approx(12.3, rel=0.1)
    assert found["executed"].hooks < found["published"].hooks


def test_frames_never_jump() -> None:
    shown = [int(frame) for frame in pingpong([torch.tensor(i) for i in range(4)], 10)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
