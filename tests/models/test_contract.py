"""What every method must do. A new file in models/ is picked up by itself."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from steadyseg import models
from steadyseg.layers import plain_forms
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import IGNORE, Clip, ShapeError

CLASSES = 5
SIZE = (64, 96)


def build(name: str) -> VideoSegmenter:
    torch.manual_seed(0)
    cls = models.method(name)
    return cls(cls.Config(), CLASSES)


def liven(model: VideoSegmenter) -> VideoSegmenter:
    """Give every parameter and statistic a random value, so that no zero initialisation hides a path."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 1 or not tensor.any():
                tensor.add_(
                    torch.randn(tensor.shape, generator=generator) * 0.02
                ) if tensor.is_floating_point() else None
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    model.mean = torch.full_like(model.mean, 120.0)
    model.std = torch.full_like(model.std, 60.0)
    return model


def video(length: int, *, batch: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8)
    return list(frames)


def clip(model: VideoSegmenter, *, batch: int = 2, length: int | None = None) -> Clip:
    generator = torch.Generator().manual_seed(3)
    count = len(model.offsets) if length is None else length
    frames = torch.randint(0, 256, (batch, count, 3, *SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch, count, *SIZE), generator=generator, dtype=torch.uint8)
    labels[:, :, :5] = IGNORE
    return Clip(frames, labels, torch.arange(count).expand(batch, count))


def stream(model: VideoSegmenter, frames: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return list(model.segment(frames))


pytestmark = pytest.mark.parametrize("name", models.names())


def test_terms_are_finite_and_named(name: str) -> None:
    model = build(name)
    terms = model(clip(model))
    assert terms
    for key, value in terms.items():
        assert isinstance(key, str)
        assert value.ndim == 0 and torch.isfinite(value), key


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = liven(build(name)).train()
    sum(model(clip(model)).values()).backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None]
    assert not missing
    dead = [key for key, value in model.named_parameters() if not value.grad.any() and not key.endswith("key.bias")]
    assert not dead


def test_clip_without_labels_gives_zero_cross_entropy(name: str) -> None:
    model = build(name)
    sample = clip(model)
    terms = model(Clip(sample.frames, torch.full_like(sample.labels, IGNORE), sample.index))
    assert all(torch.isfinite(value) for value in terms.values())
    assert terms["ce"] == 0


def test_clips_down_to_one_frame(name: str) -> None:
    model = build(name)
    for length in range(1, len(model.offsets) + 1):
        assert all(torch.isfinite(value) for value in model(clip(model, length=length)).values())


def test_step_is_pure(name: str) -> None:
    model = liven(build(name)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        frames = video(5)
        state = None
        for frame in frames[:4]:
            _, state = model.step(frame, state)
        copy = _clone(state)
        first, _ = model.step(frames[4], state)
        again, _ = model.step(frames[4], state)
    assert torch.equal(first, again)
    _assert_same(state, copy)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_interleaved_videos_do_not_touch(name: str) -> None:
    model = liven(build(name)).eval()
    one, two = video(8, seed=1), video(8, seed=2)
    alone = stream(model, one), stream(model, two)
    states: list = [None, None]
    with torch.inference_mode():
        for number in range(8):
            for which, frames in enumerate((one, two)):
                logits, states[which] = model.step(frames[number], states[which])
                assert torch.equal(logits, alone[which][number])


def test_batch_equals_items(name: str) -> None:
    model = liven(build(name)).eval()
    frames = video(8, batch=2)
    together = stream(model, frames)
    for item in range(2):
        for number, logits in enumerate(stream(model, [frame[item : item + 1] for frame in frames])):
            torch.testing.assert_close(together[number][item : item + 1], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(63, 97), (33, 32), (50, 131)])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    for logits in stream(build(name).eval(), video(3, size=size)):
        assert logits.shape[:2] == (1, CLASSES)
        assert torch.isfinite(logits).all()


def test_wrong_frames_are_refused(name: str) -> None:
    model = build(name).eval()
    frame = video(1)[0]
    with pytest.raises(ShapeError, match="uint8"):
        model.step(frame.float())
    with pytest.raises(ShapeError, match="frame has shape"):
        model.step(frame[0])


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (31, 64)])
def test_too_small_frames_are_refused(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="at least 32x32"):
        build(name).eval().step(video(1, size=size)[0])


def test_checkpoint_round_trip(name: str) -> None:
    model = liven(build(name)).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(name).eval()
    stream(other, video(1))  # folded tensors of the old weights must not survive the load
    other.load_state_dict(torch.load(file, weights_only=True))
    other.mean, other.std = model.mean, model.std
    for ours, theirs in zip(stream(model, video(4)), stream(other, video(4)), strict=True):
        assert torch.equal(ours, theirs)


def test_parameter_groups_hold_every_parameter_once(name: str) -> None:
    model = build(name)
    groups = model.parameter_groups(1e-3)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["backbone"] == 1e-3
    assert rates["head"] == pytest.approx(1e-2)
    assert all(group["weight_decay"] == 0 for group in groups if "norms" in group["name"])


def test_graphs_match_eager(name: str) -> None:
    model = liven(build(name)).eval()
    with torch.inference_mode():
        for key, graph in model.graphs(video(1)[0]).items():
            results = graph.function(*graph.inputs.values())
            assert len(results) == len(graph.outputs), key
    for key, graph in model.graphs(video(1)[0]).items():
        with torch.no_grad():
            expected = graph.function(*graph.inputs.values())
            program = torch.export.export(_Module(graph.function), tuple(graph.inputs.values()))
            exported = program.module()(*graph.inputs.values())
        for a, b in zip(expected, exported, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


def test_bf16_stays_close(name: str) -> None:
    model = liven(build(name)).eval()
    plain = stream(model, video(4))[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = stream(model, video(4))[-1]
    assert torch.isfinite(half).all()
    assert (half.float() - plain).norm() / plain.norm() < 0.1


def test_plain_forms_agree(name: str) -> None:
    """The paper's literal form, module by module, gives the same logits."""
    model = liven(build(name)).eval()
    fast = stream(model, video(8))
    with plain_forms():
        for ours, plain in zip(fast, stream(model, video(8)), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_folding_changes_nothing(name: str) -> None:
    """Folded (kept, no gradients) and unfolded (gradients on) evaluation agree."""
    model = liven(build(name)).eval()
    frames = video(3)
    kept = stream(model, frames)
    state = None
    for number, frame in enumerate(frames):
        logits, state = model.step(frame, state)
        torch.testing.assert_close(logits.detach(), kept[number].clone(), rtol=1e-4, atol=1e-5)


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def _clone(value):
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_clone(item) for item in value)
    return value


def _assert_same(value, copy) -> None:
    if isinstance(value, Tensor):
        assert torch.equal(value, copy)
    elif isinstance(value, tuple):
        assert len(value) == len(copy)
        for a, b in zip(value, copy, strict=True):
            _assert_same(a, b)
    else:
        assert value == copy
