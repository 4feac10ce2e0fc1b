"""DCFM: the paper's equations in their literal form, both schedules, its ablation table, sizes and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from steadyseg.costs import count
from steadyseg.layers import plain_forms
from steadyseg.models import dcfm
from steadyseg.models.dcfm import (
    FFM,
    METHOD,
    AdaptiveConfig,
    DCFMConfig,
    DCFMState,
    Head,
    consistency,
    is_key,
    next_key,
)
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

aten = torch.ops.aten
SIZE = (33, 52)
CLASSES = 5

SWITCHES = {  # the paper's ablation table, the switches of the code only, and the other options
    "DCFM": {},
    "key without F_in": {"use_in_key": False},
    "non-key without F_in": {"use_in_nonkey": False},
    "without F_in": {"use_in_key": False, "use_in_nonkey": False},
    "key without F_co": {"use_co_key": False},
    "non-key without F_co": {"use_co_nonkey": False},
    "key without F_in, non-key without F_co": {"use_in_key": False, "use_co_nonkey": False},
    "key without F_co, non-key without F_in": {"use_co_key": False, "use_in_nonkey": False},
    "without L_con": {"consistency_weight": 0.0},
    "one layer": {"head_layers": 1},
    "vit0": {"cut": "stage1.embed"},
    "vit3": {"cut": "stage1"},
    "common channels": {"common_channels": 48},
    "ResNet": {"backbone": "resnet18"},
    "ResNet and pyramid pooling": {"backbone": "resnet18_ppm", "head_layers": 1},
    "ResNet, key without F_co": {"backbone": "resnet18", "use_co_key": False},
}
AKS = AdaptiveConfig(threshold=0.6, min_interval=2, max_interval=5)


def build(**options: object) -> METHOD:
    """A model in evaluation mode whose norms and biases are not those it starts with."""
    torch.manual_seed(0)
    model = METHOD(DCFMConfig(**options), CLASSES)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
        if hasattr(model, "ffm"):
            model.ffm.conv.bias.normal_(std=0.1)
    return model.eval()


def video(length: int, *, batch: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8))


def clip(batch: int = 2, size: tuple[int, int] = (48, 64)) -> Clip:
    images = torch.stack(video(2, batch=batch, size=size), dim=1)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (batch, 2, *size), generator=generator, dtype=torch.uint8)
    labels[:, :, :5] = IGNORE
    return Clip(images, labels, torch.arange(2).expand(batch, 2))


def brightness(length: int, seed: int) -> list[Tensor]:
    """Tiny frames whose brightness wanders, now slowly and now fast."""
    generator = torch.Generator().manual_seed(seed)
    pace = torch.rand((), generator=generator) * 30
    level = (128 + pace * torch.randn(length, generator=generator).cumsum(0)).clamp(0, 255)
    noise = torch.randint(-8, 9, (length, 1, 3, 32, 32), generator=generator)
    return list((level[:, None, None, None, None] + noise).clamp(0, 255).to(torch.uint8))


# ---- the paper, literally: every view of every frame is computed from its images alone -----------------------------


def norm(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=1e-12)


def features(model: METHOD, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. (1) and (2): F_co and F_in, the shallow path run for itself."""
    image = (frame.float() - model.mean) / model.std
    stages = model.backbone(image)
    if "stage1" in stages and model.backbone.strides == (4, 8, 16, 32):
        size = stages["stage1"].shape[2:]
        levels = []
        for level in (4, 3, 2, 1):
            linear = getattr(model.common.fuse, f"linear_c{level}").proj
            x = F.conv2d(stages[f"stage{level}"], linear.weight[:, :, None, None], linear.bias)
            levels.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        fuse = model.common.fuse.linear_fuse
        common = F.relu(fuse.bn(fuse.conv(torch.cat(levels, dim=1))))
    else:
        common = model.common.conv(stages["stage4"])
    shallow = model.backbone(image, stop=model.cut)[model.cut]
    own = F.interpolate(shallow, size=common.shape[2:], mode="bilinear", align_corners=False)
    return norm(common), norm(own)


def ffm(model: METHOD, common: Tensor, own: Tensor) -> Tensor:
    half = own[:, : own.shape[1] // 2]
    return F.relu(model.ffm.bn(model.ffm.conv(torch.cat((common, half), dim=1))))


def view(model: METHOD, common: Tensor, own: Tensor, *, is_key_view: bool) -> Tensor:
    """F^k of Eq. (3) or F^{t<-k} of Eq. (5), with the switches of the ablation."""
    config = model.config
    use_in, use_co = (
        (config.use_in_key, config.use_co_key) if is_key_view else (config.use_in_nonkey, config.use_co_nonkey)
    )
    if not use_in:
        return common
    if not use_co:
        padded = torch.zeros_like(common)
        padded[:, : own.shape[1]] = own
        return padded
    return norm(ffm(model, common, own))


def decode(model: METHOD, feature: Tensor) -> Tensor:
    if model.head.hidden is not None:
        feature = F.relu(model.head.hidden.bn(model.head.hidden.conv(feature)))
    return model.head.classifier(feature)


def key_frames(length: int, start: int, following: Callable[[int], int | None]) -> list[int]:
    """The key frames of a video by the paper's loop, which looks at the whole video at once."""
    keys = [min(start, length - 1)] if length else []
    while keys and (then := following(keys[-1])) is not None:
        keys.append(then)
    return keys


def look_ahead(config: DCFMConfig, length: int, score: Callable[[int, int], float]) -> list[int]:
    """The adaptive schedule as the authors loop; without a threshold the fixed interval."""
    adaptive = config.adaptive
    step = adaptive.min_interval if adaptive.threshold else config.interval

    def following(k: int) -> int | None:
        t = k + step
        if t >= length:
            return None
        while adaptive.threshold and score(t, k) < adaptive.threshold and t < length - 1:
            if t - k >= adaptive.max_interval:
                break
            t += 1
        return t

    return key_frames(length, config.start, following)


def online(config: DCFMConfig, length: int, score: Callable[[int, int], float]) -> list[int]:
    adaptive = config.adaptive
    keys: list[int] = []
    for t in range(length):
        if not keys:
            keys.append(t)
        elif not adaptive.threshold:
            if t % config.interval == 0:
                keys.append(t)
        elif t - keys[-1] >= adaptive.min_interval and (
            score(t, keys[-1]) >= adaptive.threshold or t - keys[-1] >= adaptive.max_interval
        ):
            keys.append(t)
    return keys


def neighbours(t: int, keys: list[int], count: int) -> list[int]:
    """The key frames that frame t reads; [t] for a key frame."""
    before = [k for k in keys if k <= t][-1:]
    after = [k for k in keys if k > t][:1]
    return before if t in before or count == 1 else before + after


def image_change(frames: list[Tensor]) -> Callable[[int, int], float]:
    mean, std = (np.array(x).reshape(1, 3, 1, 1) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    images = [(frame.numpy() - mean) / std for frame in frames]
    return lambda t, k: float(np.abs(images[t] - images[k]).mean())


def literal(model: METHOD, maps: list[tuple[Tensor, Tensor]], keys: list[int], count: int) -> list[Tensor]:
    """Eqs. (3) to (7) for a whole video, given F_co and F_in of every frame."""
    results = []
    for t, (_, own) in enumerate(maps):
        views = [view(model, maps[k][0], own, is_key_view=k == t) for k in neighbours(t, keys, count)]
        results.append(sum(decode(model, feature) for feature in views))
    return results


def follow(model: METHOD, frames: list[Tensor]) -> list[Tensor]:
    """Fold `step` over a video."""
    results, state = [], None
    for frame in frames:
        logits, state = model.step(frame, state)
        results.append(logits)
    return results


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ---- streaming ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    return video(14)


@pytest.fixture(scope="module")
def maps(frames: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    model = build()
    with torch.inference_mode():
        return [features(model, frame) for frame in frames]


@pytest.mark.parametrize("interval", [1, 2, 3, 6])
def test_segment_is_the_literal_method(interval: int, frames: list[Tensor], maps: list) -> None:
    """Lengths around the interval and several starts, against frames computed from the images alone."""
    with torch.inference_mode():
        for start in {0, 1 % interval, interval - 1}:
            model = build(interval=interval, start=start)
            for length in {0, 1, start, interval + 1, 2 * interval + 2}:
                keys = look_ahead(model.config, length, image_change(frames))
                assert keys == [min(start, length - 1)][:length] + list(range(start + interval, length, interval))
                assert_close(list(model.segment(iter(frames[:length]))), literal(model, maps[:length], keys, 2))


@pytest.mark.parametrize("row", SWITCHES)
def test_every_switch_segments_and_streams_literally(row: str, frames: list[Tensor]) -> None:
    model = build(**SWITCHES[row], interval=3)
    score = image_change(frames)
    keys, causal = look_ahead(model.config, 6, score), online(model.config, 6, score)
    with torch.inference_mode():
        maps = [features(model, frame) for frame in frames[:6]]
        expected = literal(model, maps, keys, 2)
        assert_close(list(model.segment(frames[:6])), expected)
        with plain_forms():
            assert_close(list(model.segment(frames[:6])), expected)
        assert_close(follow(model, frames[:6]), literal(model, maps, causal, 1))


def test_one_neighbour_is_step() -> None:
    model = build(interval=3, neighbours=1)
    images = video(8)
    with torch.inference_mode():
        followed = follow(model, images)
        assert all(torch.equal(a, b) for a, b in zip(model.segment(images), followed, strict=True))


def test_merged_logits_keep_their_sum_when_resized() -> None:
    """Eq. (7) adds resized logits; adding before the resize is the same."""
    one, other = torch.randn(2, 1, 4, 5, 7)
    enlarge = lambda x: F.interpolate(x, size=(33, 52), mode="bilinear", align_corners=False)  # noqa: E731
    torch.testing.assert_close(enlarge(one + other), enlarge(one) + enlarge(other))


@pytest.mark.parametrize("interval", [1, 2, 3, 6])
def test_only_key_frames_run_the_deep_path(interval: int) -> None:
    model = build(interval=interval)
    deep: list[int] = []
    model.backbone.patch_embed2.register_forward_hook(lambda *_: deep.append(1))
    state, ages = None, []
    with torch.inference_mode():
        for t, frame in enumerate(video(9)):
            before = len(deep)
            _, state = model.step(frame, state)
            assert len(deep) - before == (t % interval == 0)
            ages.append(state.age)
        deep.clear()
        assert len(list(model.segment(video(9)))) == 9
    assert ages == [t % interval for t in range(9)]
    assert len(deep) == -(-9 // interval)
    assert model.period == interval


def test_a_key_frame_runs_its_shallow_path_once() -> None:
    model = build()
    calls: list[str] = []
    for name, module in model.backbone.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.inference_mode():
        model.step(video(1)[0])
    assert calls.count("patch_embed1") == calls.count("block1.0") == calls.count("block1.1") == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_segment_reads_no_further_than_it_must(adaptive: bool) -> None:
    """Constant memory: no frame is read before it is needed, none is held after it is answered."""
    model = build(interval=3, **({"adaptive": AdaptiveConfig(threshold=9.0, max_interval=4)} if adaptive else {}))
    most, read = (4 if adaptive else 3), 0

    def feed() -> Iterator[Tensor]:
        nonlocal read
        for frame in video(20, size=(32, 32)):
            read += 1
            yield frame

    with torch.inference_mode():
        for done, _ in enumerate(model.segment(feed())):
            assert read - done <= most
    assert read == 20


@pytest.mark.parametrize("options", [{}, {"adaptive": AKS}, {"use_in_nonkey": False}])
def test_state_does_not_grow(options: dict) -> None:
    model = build(**options)
    state, sizes = None, []
    with torch.inference_mode():
        for frame in brightness(12, seed=3):
            _, state = model.step(frame, state)
            assert isinstance(state, DCFMState)
            sizes.append(state.kept.numel() + sum(x.numel() for x in state.image))
    assert len(set(sizes)) == 1
    assert sizes[0] == 256 * 8 * 8 + (3 * 32 * 32 if model.config.adaptive.threshold else 0)


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch, frames: list[Tensor]) -> None:
    for options in ({}, {"head_layers": 1}, {"backbone": "resnet18"}):
        model = build(**options)
        images = [torch.cat((one, other)) for one, other in zip(frames[:4], frames[4:8], strict=True)]
        with torch.inference_mode():
            whole = list(model.segment(images))
            monkeypatch.setattr(dcfm, "BAND", 1)  # one row
            assert_close(list(model.segment(images)), whole)
            monkeypatch.undo()


def test_graphs_stream_like_step() -> None:
    for options in ({}, {"use_in_nonkey": False}, {"use_co_nonkey": False, "head_layers": 1}):
        model = build(interval=3, **options)
        images = video(7)
        state = None
        with torch.inference_mode():
            graphs = model.graphs(images[0])
            for t, frame in enumerate(images):
                expected, state = model.step(frame, state)
                if t % 3 == 0:
                    logits, kept = graphs["key"].function(frame)
                else:
                    (logits,) = graphs["between"].function(frame, kept)
                assert torch.equal(logits, expected)


# ---- schedules ------------------------------------------------------------------------------------------------------


def schedules() -> Iterator[tuple[int, DCFMConfig, int]]:
    """100 videos: seed, options, length."""
    dice = np.random.default_rng(0)
    for seed in range(100):
        least = int(dice.integers(1, 4))
        adaptive = AdaptiveConfig(
            threshold=float(dice.uniform(0.05, 1.5)), min_interval=least, max_interval=int(dice.integers(least, 8))
        )
        yield seed, DCFMConfig(adaptive=adaptive, start=int(dice.integers(0, least))), int(dice.integers(1, 25))


def test_schedules_equal_the_paper_on_random_scores() -> None:
    dice = np.random.default_rng(1)
    lengths = set()
    for _, config, length in schedules():
        scores = dice.uniform(0, 2, (length, length))
        expected = look_ahead(config, length, lambda t, k, scores=scores: scores[t, k])
        keys = [min(config.start, length - 1)]
        while step := next_key(
            config.adaptive,
            lambda d, keys=keys, length=length: keys[-1] + d < length,
            lambda d, keys=keys, scores=scores: scores[keys[-1] + d, keys[-1]],
        ):
            keys.append(keys[-1] + step)
        assert keys == expected
        causal = [0]
        for t in range(1, length):
            if is_key(config.adaptive, t - causal[-1], lambda t=t, k=causal[-1], scores=scores: scores[t, k]):
                causal.append(t)
        assert causal == online(config, length, lambda t, k, scores=scores: scores[t, k])
        lengths |= {after - before for before, after in pairwise(keys)}
    assert lengths == {1, 2, 3, 4, 5, 6, 7}


def test_schedules_equal_the_paper_on_random_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which frames `segment` and `step` treat as key frames, and which key frames the others read."""
    model = build()
    index: dict[int, int] = {}
    monkeypatch.setattr(model, "key", lambda frame: (torch.tensor([index[id(frame)]]), torch.tensor(index[id(frame)])))
    monkeypatch.setattr(model, "between", lambda frame, *kept: torch.tensor([int(k) for k in kept]))
    adaptive = 0
    for seed, config, length in schedules():
        model.config = config
        images = brightness(length, seed)
        index = {id(frame): t for t, frame in enumerate(images)}
        score = image_change(images)
        keys = look_ahead(config, length, score)
        adaptive += len({after - before for before, after in pairwise(keys)}) > 1
        assert [x.tolist() for x in model.segment(images)] == [neighbours(t, keys, 2) for t in range(length)]
        causal = online(config, length, score)
        assert [x.tolist() for x in follow(model, images)] == [neighbours(t, causal, 1) for t in range(length)]
    assert adaptive > 30


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_key_frames_concentrate_where_something_moves(looks_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 still frames, then 24 of a camera that pans over a picture."""
    schedule = AdaptiveConfig(threshold=0.2, min_interval=1, max_interval=6)
    model = build(adaptive=schedule, neighbours=2 if looks_ahead else 1)
    picture = F.interpolate(torch.rand(1, 3, 8, 64, generator=torch.Generator().manual_seed(0)) * 255, (32, 256))
    images = [picture[..., max(0, t - 24) * 4 :][..., :32].to(torch.uint8) for t in range(48)]
    keys: list[int] = []
    index = {id(image): t for t, image in enumerate(images)}
    run = model.key
    monkeypatch.setattr(model, "key", lambda frame: (keys.append(index[id(frame)]), run(frame))[1])
    with torch.inference_mode():
        assert len(list(model.segment(images))) == 48
    still = [t for t in keys if t <= 24]
    assert still == [0, 6, 12, 18, 24]
    assert len(keys) - len(still) >= 15


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_a_threshold_of_zero_is_the_fixed_interval(interval: int) -> None:
    for limit in (interval, 7):
        off = AdaptiveConfig(min_interval=interval, max_interval=limit)
        assert next_key(off, lambda d: True, lambda d: 0.0) == interval
        assert next_key(off, lambda d: d < interval, lambda d: 0.0) == 0
        assert [is_key(off, d, lambda: 0.0) for d in range(1, interval + 1)] == [False] * (interval - 1) + [True]
    assert DCFMConfig(interval=interval).schedule == AdaptiveConfig(min_interval=interval, max_interval=interval)
    assert DCFMConfig(adaptive=AKS).schedule == AKS
    assert build(adaptive=AKS).period == 2


def test_change_by_hand() -> None:
    """Two pixels, one of them changed by 40, 20 and 0 of 255."""
    model = build()
    key = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    frame = key.clone()
    frame[0, 0, :, :16] += 40
    frame[0, 1, :, :16] -= 20
    assert model.change(frame, key) == pytest.approx((40 / 58.395 + 20 / 57.12) / 2 / 3, rel=1e-5)
    assert model.change(key, frame) == model.change(frame, key)


def test_adaptive_segment_is_the_literal_method() -> None:
    """The adaptive schedule with real maps, in both modes."""
    model = build(adaptive=AdaptiveConfig(threshold=0.4, min_interval=1, max_interval=4))
    images = brightness(9, seed=5)
    score = image_change(images)
    keys, causal = look_ahead(model.config, 9, score), online(model.config, 9, score)
    assert 2 < len(keys) < 9
    with torch.inference_mode():
        maps = [features(model, frame) for frame in images]
        assert_close(list(model.segment(images)), literal(model, maps, keys, 2))
        assert_close(follow(model, images), literal(model, maps, causal, 1))


def test_the_key_frame_is_kept_as_it_was() -> None:
    """A camera may write each frame into the same memory."""
    model = build(adaptive=AKS)
    images = brightness(6, seed=2)
    buffer = torch.empty_like(images[0])
    states: list = [None, None]
    with torch.inference_mode():
        for frame in images:
            buffer.copy_(frame)
            for which, each in enumerate((frame, buffer)):
                _, states[which] = model.step(each, states[which])
            assert states[0].age == states[1].age


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SWITCHES)
def test_every_switch_trains(row: str) -> None:
    model = build(**SWITCHES[row]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in model.named_parameters()}
    terms = model(clip())
    assert set(terms) == {"ce", "ce_between"} | ({"consistency"} if model.config.consistency_weight else set())
    sum(terms.values()).backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    optimizer.step()
    still = [key for key, value in model.named_parameters() if torch.equal(before[key], value)]
    assert not [key for key in still if before[key].ndim > 1]


@pytest.mark.parametrize(
    ("row", "training"), [*((row, True) for row in SWITCHES), ("DCFM", False), ("one layer", False)]
)
def test_terms_are_the_literal_loss(row: str, training: bool) -> None:
    """Eqs. (8) to (12); in training every view has its own batch statistics."""
    model = build(**SWITCHES[row], dropout=0.0, drop_path=0.0).train(training)
    sample = clip()
    with torch.no_grad():
        model.head.classifier.weight *= 20  # so that each view has labels of its own
        terms = model(sample)
        frames = torch.cat((sample.frames[:, 0], sample.frames[:, 1]))
        common, own = features(model, frames)
        (common_u, common_l), (own_u, own_l) = common.chunk(2), own.chunk(2)
        key_l = view(model, common_l, own_l, is_key_view=True)
        key_u = view(model, common_u, own_u, is_key_view=True)
        other = view(model, common_u, own_l, is_key_view=False)
        small_l, small_u, small_other = (decode(model, feature) for feature in (key_l, key_u, other))
        labels = sample.labels[:, 1].long()
        enlarge = lambda x: F.interpolate(x, size=labels.shape[1:], mode="bilinear", align_corners=False)  # noqa: E731
        entropy = lambda x: F.cross_entropy(enlarge(x), labels, ignore_index=IGNORE)  # noqa: E731
        mask = (small_l.argmax(1) == small_u.argmax(1))[:, None]
        expected = {"ce": entropy(small_l), "ce_between": 0.4 * entropy(small_other)}
        if model.config.consistency_weight:
            expected["consistency"] = 10 * F.mse_loss(key_l * mask, key_u * mask)
            assert mask.any() and (row != "DCFM" or not mask.all())
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_clip_of_one_frame_is_its_own_neighbour() -> None:
    model = build()
    sample = clip()
    alone = Clip(sample.frames[:, 1:], sample.labels[:, 1:], sample.index[:, 1:])
    twice = Clip(*(torch.cat((x[:, 1:], x[:, 1:]), dim=1) for x in (sample.frames, sample.labels, sample.index)))
    with torch.no_grad():
        terms, expected = model(alone), model(twice)
    assert terms == expected
    assert terms["consistency"] == 0
    assert terms["ce_between"] == pytest.approx(0.4 * terms["ce"].item())


def test_labels_of_the_neighbour_are_never_read() -> None:
    model = build()
    sample = clip()
    other = Clip(sample.frames, sample.labels.clone(), sample.index)
    other.labels[:, 0] = 1
    with torch.no_grad():
        assert model(sample) == model(other)


def test_without_labels_only_consistency_is_left() -> None:
    model = build().train()
    sample = clip()
    terms = model(Clip(sample.frames, torch.full_like(sample.labels, IGNORE), sample.index))
    assert terms["ce"] == terms["ce_between"] == 0
    assert terms["consistency"] > 0


def test_consistency_by_hand() -> None:
    """Two channels, two pixels, of which one counts; the vectors are normalised first."""
    one = torch.tensor([3.0, 4.0, 1.0, 0.0]).view(1, 2, 2).permute(0, 2, 1)[..., None]  # (3, 4) and (1, 0)
    other = torch.tensor([0.0, 2.0, 0.0, 7.0]).view(1, 2, 2).permute(0, 2, 1)[..., None]  # (0, 2) and (0, 7)
    agree = torch.tensor([True, False]).view(1, 1, 2, 1)
    expected = ((0.6 - 0.0) ** 2 + (0.8 - 1.0) ** 2) / 4
    assert consistency(one, other, agree).item() == pytest.approx(expected, rel=1e-6)
    assert consistency(one, other, ~agree).item() == pytest.approx(2 / 4, rel=1e-6)


def test_consistency_has_gradients_on_both_sides_and_none_through_the_mask() -> None:
    model = build().train()
    model(clip())["consistency"].backward()
    assert model.head.classifier.weight.grad is None
    assert model.ffm.conv.weight.grad.any()
    one, other = (torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2))
    consistency(one, other, torch.ones(1, 1, 2, 2, dtype=torch.bool)).backward()
    assert one.grad.any() and other.grad.any()


def test_offsets_and_rates() -> None:
    model = METHOD(DCFMConfig(distance=3), CLASSES)
    assert model.offsets == (-3, 0)
    fused = {id(p) for p in model.common.parameters()}
    groups = model.parameter_groups(1e-3)
    slow = {id(p) for group in groups if "backbone" in group["name"] for p in group["params"]}
    assert fused < slow
    assert not any(name.startswith("common.fuse.linear_pred") for name, _ in model.named_parameters())
    trunk = METHOD(DCFMConfig(backbone="resnet18_ppm"), CLASSES)
    assert [*map(id, trunk.encoder)] == [*map(id, trunk.backbone.parameters())]


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_ffm(training: bool) -> None:
    """One convolution of the concatenation; only the first channels of F_in count."""
    torch.manual_seed(0)
    layer = FFM(12, 4).train(training)
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2.0)
    layer.conv.bias.data.normal_()
    common, own = torch.randn(2, 12, 5, 7), torch.randn(2, 8, 5, 7)
    expected = F.relu(layer.bn(F.conv2d(torch.cat((common, own[:, :4]), 1), layer.conv.weight, layer.conv.bias)))
    torch.testing.assert_close(layer(layer.share(common), own), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [0, 1])
def test_head(layers: int, training: bool) -> None:
    torch.manual_seed(0)
    head = Head(DCFMConfig(head_layers=layers, dropout=0.0), 6, 4).train(training)
    one, other = torch.randn(2, 2, 6, 5, 7).relu()
    one[:, :, 2, 3] = 0  # a vector without length
    expected = 0
    for x in (one, other):
        feature = norm(x)
        if layers:
            feature = F.relu(head.hidden.bn(head.hidden.conv(feature)))
        expected = expected + F.conv2d(feature, head.classifier.weight)
    torch.testing.assert_close(head(one, other), expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(head(one)).all()
    assert head.classifier.bias is None


def test_shallow_maps_are_resized_then_normalised() -> None:
    shallow = torch.zeros(1, 2, 2, 2)
    shallow[0, 0, 0] = 1.0
    shallow[0, 1, 1] = 3.0
    own = dcfm._own(shallow, torch.zeros(1, 5, 1, 1))
    torch.testing.assert_close(own.flatten(), torch.tensor([0.5, 1.5]) / 2.5**0.5)


# ---- sizes, costs, options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "width"), [("mit_b0", 256), ("mit_b2", 256), ("resnet18_ppm", 320), ("resnet50s_ppm", 1280)]
)
def test_common_channels_of_the_paper(backbone: str, width: int) -> None:
    with torch.device("meta"):
        model = METHOD(DCFMConfig(backbone=backbone), CLASSES)
    assert model.common.width == width
    assert model.ffm.conv.in_channels == width + model.backbone.channels[0] // 2


@pytest.mark.parametrize(("backbone", "millions"), [("mit_b2", 24.8), ("mit_b5", 82.1)])
def test_parameter_counts(backbone: str, millions: float) -> None:
    with torch.device("meta"):
        model = METHOD(DCFMConfig(backbone=backbone), 124)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("backbone", "paper"), [("mit_b2", {2: 22.9, 6: 12.3}), ("mit_b5", {2: 57.0, 6: 23.6})])
def test_costs_of_the_paper(backbone: str, paper: dict[int, float]) -> None:
    """Average over an interval, look-ahead, literal, attention products left out: within 10 % of the paper's G."""
    with torch.device("meta"), torch.no_grad(), plain_forms():
        model = METHOD(DCFMConfig(backbone=backbone), 124).eval()
        frame = torch.empty(1, 3, 480, 853, dtype=torch.uint8)
        kept = torch.empty(1, 256, 120, 214)
        key, between = (
            multiply_adds(run) for run in (lambda: model.key(frame), lambda: model.between(frame, kept, kept))
        )
    assert between == pytest.approx(6.88, abs=0.01)
    for interval, cost in paper.items():
        assert (key + (interval - 1) * between) / interval == pytest.approx(cost, rel=0.1)


def multiply_adds(run: Callable[[], object]) -> float:
    """Of convolutions and linear maps, in G."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(name, 0) for name in (aten.convolution, aten.addmm, aten.mm)) / 2e9


def test_what_is_computed_is_less() -> None:
    """A frame between key frames costs the shallow path, 32 of 288 channels of the FFM, and one classifier."""
    model = build(backbone="mit_b1")
    frame = video(1, size=(64, 96))[0]
    pixels = 16 * 24
    with torch.no_grad():
        _, kept = model.key(frame)
        image = model.normalize(frame)
        shallow = count(lambda: model.backbone(image, stop="stage1.block1"))["executed"].hooks
        costs = count(lambda: model.between(frame, kept, kept))
    assert costs["executed"].hooks - shallow == pixels * (2 * 32 * 256 + 256 * CLASSES)
    assert costs["published"].hooks - shallow == pixels * 2 * (288 * 256 + 256 * CLASSES)


def test_wrong_frames() -> None:
    model = build()
    with torch.inference_mode():
        _, state = model.step(video(1)[0])
        for other in (video(1, size=(33, 64))[0], video(1, batch=2)[0]):
            with pytest.raises(ShapeError, match="state None"):
                model.step(other, state)
            with pytest.raises(ShapeError, match="state None"):
                list(model.segment([*video(2), other]))
        adaptive = build(adaptive=AKS)
        for run in (adaptive.step, lambda frame: list(adaptive.segment([frame]))):
            with pytest.raises(ShapeError, match="one by one"):
                run(video(1, batch=2)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "model.interval is 0; expected at least 1"),
        ({"neighbours": 3}, "expected 1 or 2"),
        ({"start": 2}, "less than the interval, 2"),
        ({"start": -1}, "model.start"),
        ({"start": 1, "neighbours": 1}, "0 with neighbours 1"),
        ({"adaptive": AdaptiveConfig(threshold=-1.0)}, r"adaptive\.threshold"),
        ({"adaptive": AdaptiveConfig(min_interval=0)}, r"adaptive\.min_interval"),
        ({"adaptive": AdaptiveConfig(min_interval=7)}, r"adaptive\.max_interval is 6; expected at least"),
        ({"cut": "stage2"}, "a unit of stage1"),
        ({"cut": "stage1.block9"}, "no such unit"),
        ({"common_channels": 0}, "common_channels"),
        ({"common_channels": 16, "use_co_key": False}, "at least C_1 = 32"),
        ({"head_layers": 2}, "0 or 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"use_in_key": False, "use_co_key": False}, "use_co_key is False; expected true"),
        ({"use_in_nonkey": False, "use_co_nonkey": False}, "use_co_nonkey is False"),
        ({"use_co_key": False, "use_co_nonkey": False}, "use_co_nonkey is False"),
        ({"between_weight": 0.0}, "more than 0"),
        ({"consistency_weight": -1.0}, "consistency_weight"),
        ({"distance": 7}, "1 to 6"),
        ({"distance": 0}, "1 to 6"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        METHOD(DCFMConfig(**options), CLASSES)
