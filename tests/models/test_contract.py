"""What every method must do, on every kind of backbone. A new file in models/ is picked up by itself."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steadyseg import models
from steadyseg.engine.stream import Stream
from steadyseg.layers import plain_forms
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

CLASSES = 5
SIZE = (64, 96)

SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 16,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
"""A small hierarchical network of the transformers library, which runs as a whole only."""
BACKBONES: dict[str, dict] = {
    "mit_b0": {"backbone": "mit_b0"},
    "resnet18": {"backbone": "resnet18"},
    "resnet18_ppm": {"backbone": "resnet18_ppm"},
    "hrnet_w18": {"backbone": "hrnet_w18"},
    "swin": {"backbone": "a/swin", "architecture": SWIN},
}
"""One of each family, beside the method's own choice."""
REFUSED = {(name, "swin") for name in ("dcfm", "tfc", "reuse")} | {(name, "hrnet_w18") for name in ("tfc", "reuse")}
"""Methods that run parts of a backbone do not take one that lacks those parts."""
OWN = {name: models.method(name).Config().backbone for name in models.names()}
CASES = [f"{name}-{backbone}" for name in models.names() for backbone in BACKBONES if (name, backbone) not in REFUSED]
DEFAULTS = [f"{name}-{backbone}" for name, backbone in OWN.items()]


def build(case: str) -> VideoSegmenter:
    torch.manual_seed(0)
    name, backbone = case.split("-")
    cls = models.method(name)
    return cls(cls.Config(**BACKBONES[backbone]), CLASSES)


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
    """Fold `step` over a video."""
    results, state = [], None
    with torch.inference_mode():
        for frame in frames:
            logits, state = model.step(frame, state)
            results.append(logits)
    return results


every_case = pytest.mark.parametrize("case", CASES)
own_backbone = pytest.mark.parametrize("case", DEFAULTS)


@every_case
def test_terms_are_finite_and_named(case: str) -> None:
    model = build(case)
    terms = model(clip(model))
    assert terms
    for key, value in terms.items():
        assert isinstance(key, str)
        assert value.ndim == 0 and torch.isfinite(value), key


@every_case
def test_every_parameter_gets_a_gradient(case: str) -> None:
    model = liven(build(case)).train()
    sum(model(clip(model)).values()).backward()
    learning = {  # the transformers library norms every stage, also those that a method does not read
        key: value
        for key, value in model.named_parameters()
        if value.requires_grad and "hidden_states_norms" not in key
    }
    missing = [key for key, value in learning.items() if value.grad is None]
    assert not missing
    dead = [key for key, value in learning.items() if not value.grad.any() and not key.endswith("key.bias")]
    assert not dead


@own_backbone
def test_clip_without_labels_gives_zero_cross_entropy(case: str) -> None:
    model = build(case)
    sample = clip(model)
    terms = model(Clip(sample.frames, torch.full_like(sample.labels, IGNORE), sample.index))
    assert all(torch.isfinite(value) for value in terms.values())
    assert terms["ce"] == 0


@own_backbone
def test_clips_down_to_one_frame(case: str) -> None:
    model = build(case)
    for length in range(1, len(model.offsets) + 1):
        assert all(torch.isfinite(value) for value in model(clip(model, length=length)).values())


@own_backbone
def test_step_is_pure(case: str) -> None:
    model = liven(build(case)).eval()
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


@own_backbone
def test_interleaved_videos_do_not_touch(case: str) -> None:
    model = liven(build(case)).eval()
    one, two = video(8, seed=1), video(8, seed=2)
    alone = stream(model, one), stream(model, two)
    states: list = [None, None]
    with torch.inference_mode():
        for number in range(8):
            for which, frames in enumerate((one, two)):
                logits, states[which] = model.step(frames[number], states[which])
                assert torch.equal(logits, alone[which][number])


@every_case
def test_batch_equals_items(case: str) -> None:
    model = liven(build(case)).eval()
    frames = video(8, batch=2)
    together = stream(model, frames)
    for item in range(2):
        for number, logits in enumerate(stream(model, [frame[item : item + 1] for frame in frames])):
            torch.testing.assert_close(together[number][item : item + 1], logits, rtol=1e-4, atol=1e-5)


@own_backbone
@pytest.mark.parametrize("size", [(33, 32), (50, 131)])
def test_odd_sizes(case: str, size: tuple[int, int]) -> None:
    for logits in stream(build(case).eval(), video(3, size=size)):
        assert logits.shape[:2] == (1, CLASSES)
        assert torch.isfinite(logits).all()


@own_backbone
def test_wrong_frames_are_refused(case: str) -> None:
    model = build(case).eval()
    frame = video(1)[0]
    with pytest.raises(ShapeError, match="uint8"):
        model.step(frame.float())
    with pytest.raises(ShapeError, match="frame has shape"):
        model.step(frame[0])


@every_case
def test_an_odd_size_on_every_backbone(case: str) -> None:
    assert all(torch.isfinite(logits).all() for logits in stream(build(case).eval(), video(2, size=(63, 97))))


@own_backbone
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (31, 64)])
def test_too_small_frames_are_refused(case: str, size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="at least 32x32"):
        build(case).eval().step(video(1, size=size)[0])


@every_case
def test_checkpoint_round_trip(case: str) -> None:
    model = liven(build(case)).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(case).eval()
    stream(other, video(1))  # folded tensors of the old weights must not survive the load
    other.load_state_dict(torch.load(file, weights_only=True))
    other.mean, other.std = model.mean, model.std
    for ours, theirs in zip(stream(model, video(4)), stream(other, video(4)), strict=True):
        assert torch.equal(ours, theirs)


@own_backbone
def test_another_size_or_batch_is_refused(case: str) -> None:
    """Whether or not the next frame is a key frame; a method that remembers nothing takes any."""
    model = build(case).eval()
    others = [video(1, size=SIZE[::-1])[0], video(1, batch=2)[0], video(1, size=(SIZE[0] - 1, SIZE[1]))[0]]
    with torch.inference_mode():
        for count in sorted({1, max(model.period, 2)}):
            state = None
            for frame in video(count):
                _, state = model.step(frame, state)
            for other in others:
                if not state:
                    assert len(model.step(other, state)[0]) == len(other)
                    continue
                with pytest.raises(ShapeError, match="start again with state None"):
                    model.step(other, state)


@pytest.mark.parametrize("name", models.names())
def test_labels_hold_255_classes(name: str) -> None:
    cls = models.method(name)
    with torch.device("meta"):
        assert cls(cls.Config(), 255).num_classes == 255
    with pytest.raises(ConfigError, match="the model has 256 classes; labels are uint8 and 255 means ignore, so at m"):
        cls(cls.Config(), 256)


@every_case
def test_parameters_without_published_weights_learn_at_the_rate_of_the_head(case: str) -> None:
    model = build(case)
    rates = {id(p): group["lr"] for group in model.parameter_groups(1e-3) for p in group["params"]}
    learning = {key: p for key, p in model.backbone.named_parameters() if p.requires_grad}
    fresh = {key for key in learning if key.startswith(model.backbone.unpublished)}
    assert bool(fresh) == case.endswith(("swin", "_ppm"))
    if case.startswith("dcfm"):
        fresh = set()  # its recipe takes the backbone as a whole
    assert {key: rates[id(p)] for key, p in learning.items()} == {
        key: pytest.approx(1e-2 if key in fresh else 1e-3) for key in learning
    }


@own_backbone
def test_parameter_groups_hold_every_parameter_once(case: str) -> None:
    model = build(case)
    groups = model.parameter_groups(1e-3)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["backbone"] == 1e-3
    assert rates["head"] == pytest.approx(1e-2)
    assert all(group["weight_decay"] == 0 for group in groups if "norms" in group["name"])


@own_backbone
def test_graphs_match_eager(case: str) -> None:
    model = liven(build(case)).eval()
    with torch.inference_mode():
        for key, graph in model.graphs(video(1)[0]).items():
            results = graph.function(*graph.inputs.values())
            assert len(results) == len(graph.outputs), key
            assert len({*graph.inputs, *graph.outputs}) == len(graph.inputs) + len(graph.outputs), "names of a graph"
    for key, graph in model.graphs(video(1)[0]).items():
        with torch.no_grad():
            expected = graph.function(*graph.inputs.values())
            program = torch.export.export(_Module(graph.function), tuple(graph.inputs.values()))
            exported = program.module()(*graph.inputs.values())
        for a, b in zip(expected, exported, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


class Watch(TorchDispatchMode):
    """Notes which operators run while no graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.is_inside = False
        self.outside: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.is_inside:
            self.outside.add(func.__name__)
        return func(*args, **(kwargs or {}))


@own_backbone
def test_step_computes_in_its_graphs_alone(case: str) -> None:
    """Every call names a graph, gives it inputs of its sizes and takes its outputs; beside that a step only copies."""
    model = liven(build(case)).eval()
    frames = video(8)
    plain = stream(model, frames)
    graphs, called = model.graphs(frames[0]), set()
    with Watch() as watch:

        def backend(name: str, function, *tensors: Tensor) -> tuple[Tensor, ...]:
            watch.is_inside = True
            called.add(name)
            assert [x.shape for x in tensors] == [x.shape for x in graphs[name].inputs.values()]
            results = graphs[name].function(*tensors)
            assert len(results) == len(graphs[name].outputs)
            watch.is_inside = False
            return results

        model.backend = backend
        followed = stream(model, frames)
    for ours, theirs in zip(followed, plain, strict=True):  # torch may take other kernels while it is watched
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert called == set(graphs) - {"between_two"}  # which looks ahead
    if not case.startswith("flow"):  # an estimator of motion is no graph
        assert watch.outside <= {"clone.default"}


@own_backbone
def test_bf16_stays_close(case: str) -> None:
    model = liven(build(case)).eval()
    plain = stream(model, video(4))[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = stream(model, video(4))[-1]
    assert torch.isfinite(half).all()
    assert (half.float() - plain).norm() / plain.norm() < 0.1


@own_backbone
def test_plain_forms_agree(case: str) -> None:
    """The paper's literal form, module by module, gives the same logits."""
    model = liven(build(case)).eval()
    fast = stream(model, video(8))
    with plain_forms():
        for ours, plain in zip(fast, stream(model, video(8)), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@own_backbone
def test_folding_changes_nothing(case: str) -> None:
    """Folded (kept, no gradients) and unfolded (gradients on) evaluation agree."""
    model = liven(build(case)).eval()
    frames = video(3)
    kept = stream(model, frames)
    state = None
    for number, frame in enumerate(frames):
        logits, state = model.step(frame, state)
        torch.testing.assert_close(logits.detach(), kept[number].clone(), rtol=1e-4, atol=1e-5)


@own_backbone
def test_streaming_equals_clips(case: str) -> None:
    """From the first frame on: what lies before the video is its first frame, or nothing."""
    model = liven(build(case)).eval()
    frames = video(8, batch=2)
    followed = stream(model, frames)
    period = model.period
    for number, logits in enumerate(followed):
        first = number // period * period  # a key frame, where there are such
        chosen = [max(number + offset, 0) for offset in model.offsets] if period == 1 else range(first, number + 1)
        with torch.inference_mode():
            alone = model.clip_logits(torch.stack([frames[index] for index in chosen], dim=1))
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


@own_backbone
@pytest.mark.parametrize("length", [0, 1, 2, 3, 8])
def test_segment_gives_every_frame_one_map(case: str, length: int) -> None:
    """In order and of the right size; a method that does not look ahead gives what `step` gives."""
    model = liven(build(case)).eval()
    frames = video(length, batch=2)
    with torch.inference_mode():
        whole = list(model.segment(iter(frames)))
    followed = stream(model, frames)
    assert [x.shape for x in whole] == [x.shape for x in followed]
    if type(model).segment is VideoSegmenter.segment:
        assert all(torch.equal(a, b) for a, b in zip(whole, followed, strict=True))


@own_backbone
def test_nothing_of_the_old_scene_reaches_the_new(case: str) -> None:
    model = liven(build(case)).eval()
    old, new = ([frame[0] // 4 + light for frame in video(3, seed=light)] for light in (0, 190))
    stream = Stream(model, reset_on_cut=True)
    after_cut = [stream(frame) for frame in old + new][3:]
    stream.reset()
    assert all(torch.equal(stream(frame), labels) for frame, labels in zip(new, after_cut, strict=True))


@pytest.mark.parametrize(("name", "backbone"), sorted(REFUSED))
def test_a_backbone_that_cannot_be_cut_is_refused_where_it_must_be(name: str, backbone: str) -> None:
    cls = models.method(name)
    with pytest.raises(ConfigError, match="runs its backbone in parts"):
        cls(cls.Config(**BACKBONES[backbone]), CLASSES)


@pytest.mark.parametrize(
    ("name", "backbone", "millions"),
    [
        ("segformer", "mit_b0", 3.8),
        ("segformer", "mit_b1", 13.8),
        ("segformer", "mit_b5", 82.1),
        ("sdcpc", "mit_b1", 15.0),
        ("sdcpc", "mit_b2", 26.0),
        ("sdcpc", "mit_b5", 83.5),
        ("dcfm", "mit_b2", 24.8),
        ("dcfm", "mit_b5", 82.1),
        ("tfc", "mit_b0", 4.5),
        ("tfc", "mit_b1", 14.5),
        ("tfc", "mit_b5", 82.8),
        ("reuse", "mit_b0", 3.8),
    ],
)
def test_parameters_are_those_of_the_paper(name: str, backbone: str, millions: float) -> None:
    """VSPW, 124 classes."""
    cls = models.method(name)
    with torch.device("meta"):
        model = cls(cls.Config(backbone=backbone), 124)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


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
