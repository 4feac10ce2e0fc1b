"""Flow propagation: exact motion gives exactly moved scores; SegFormer's weights and results; the estimator's place."""

from __future__ import annotations

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from steadyseg import flow as estimators
from steadyseg import models
from steadyseg.flow import DISFlow
from steadyseg.layers import pointwise, warp
from steadyseg.models.flow import METHOD, FlowConfig
from steadyseg.types import Clip, ConfigError, Frame

SIZE = (64, 96)
OPTIONS = {"backbone": "mit_b0", "norm_eps": "hf", "width": 32, "dropout": 0.0}
WARPS = ["logits", "features"]
SegFormer = models.method("segformer")


class Known:
    """An estimator that knows the motion: the same displacement (dx, dy), in pixels of the full frame, everywhere."""

    name = "known"

    def __init__(self, dx: float, dy: float, width: int = SIZE[1]) -> None:
        self.shift, self.width = torch.tensor([dx, dy]), width
        self.sizes: list[tuple[int, ...]] = []

    def start(self, video: str) -> None: ...

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        assert first.image.dtype == second.image.dtype == torch.uint8
        size = tuple(first.image.shape[1:])
        self.sizes.append(size)
        return (self.shift * size[1] / self.width)[:, None, None].expand(2, *size)


def know(monkeypatch: pytest.MonkeyPatch, dx: float, dy: float, width: int = SIZE[1]) -> Known:
    known = Known(dx, dy, width)
    monkeypatch.setattr(estimators, "shared_flow", lambda name: known)
    return known


def segformer() -> SegFormer:
    torch.manual_seed(0)
    model = SegFormer(SegFormer.Config(**OPTIONS), 5)
    model.decoder.linear_fuse.bn.running_mean.normal_()
    model.decoder.linear_fuse.bn.running_var.uniform_(0.5, 2.0)
    return model.eval()


def adopted(**options: object) -> METHOD:
    model = METHOD(METHOD.adopt({**OPTIONS, **options}), 5)
    model.load_state_dict(segformer().state_dict())
    return model.eval()


def frames(length: int, batch: int = 1, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8))


def textured(height: int, width: int) -> Tensor:
    """uint8 [1, 3, H, W], smooth noise, coarse and fine: what optical flow can follow."""
    generator = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for sigma in (2, 6, 16):
        noise = cv2.GaussianBlur(generator.standard_normal((height, width, 3)).astype(np.float32), (0, 0), sigma)
        image += noise / noise.std()
    image = np.clip(128 + 40 * image, 0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)[None]  # [1, 3, H, W]


@pytest.mark.parametrize("warp", WARPS)
def test_interval_1_is_segformer(warp: str) -> None:
    theirs, ours = segformer(), adopted(interval=1, warp=warp)
    with torch.inference_mode():
        for frame, logits in zip(frames(3), ours.segment(frames(3)), strict=True):
            assert torch.equal(logits, theirs.step(frame)[0])


@pytest.mark.parametrize("warp", WARPS)
def test_no_motion_repeats_the_key_frame(warp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, 0, 0)
    model = adopted(warp=warp)
    images = frames(9)
    ages, state = [], None
    with torch.inference_mode():
        for t, frame in enumerate(images):
            logits, state = model.step(frame, state)
            ages.append(state.age)
            assert torch.equal(logits, segformer().step(images[t - t % 4])[0])
    assert ages == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert model.period == 4


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scores_move_by_whole_cells(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A displacement of (8, -4) pixels is (2, -1) cells at stride 4."""
    known = know(monkeypatch, 8, -4)
    model = adopted(flow_scale=scale)
    with torch.inference_mode():
        key, state = model.step(frames(1)[0])
        logits, _ = model.step(frames(2)[1], state)
    assert known.sizes == [(int(64 * scale), int(96 * scale))]
    torch.testing.assert_close(logits[:, :, 1:, :-2], key[:, :, :-1, 2:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits[:, :, 0], logits[:, :, 1], rtol=1e-5, atol=1e-6)  # the border is repeated


def test_features_move_by_whole_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 pixels are whole cells of all four stages; near the border, resizing mixes in others."""
    know(monkeypatch, 32, 0, width=160)
    model = adopted(warp="features")
    image = frames(1, size=(64, 160))[0]
    with torch.inference_mode():
        key, state = model.step(image)
        logits, _ = model.step(image, state)
    torch.testing.assert_close(logits[..., 4:-12], key[..., 12:-4], rtol=1e-4, atol=1e-5)


def test_moving_the_scores_is_moving_the_fused_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier and the warp change places: what the header says."""
    know(monkeypatch, 5.3, -2.9)
    model = adopted()
    one, two = frames(2)
    with torch.inference_mode():
        _, state = model.step(one)
        logits, _ = model.step(two, state)
        fused = warp(model.decoder.features(model.backbone(model.normalize(one))), model.motion(two, one))
        expected = pointwise(fused, model.decoder.linear_pred.weight[:, :, 0, 0], model.decoder.linear_pred.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_warp_against_its_definition() -> None:
    """Eq. (3) in image coordinates, cell by cell with half-pixel centres, where cells are no whole pixels."""
    height, width, h, w = 50, 83, 13, 21
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, h, w, generator=generator)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flow = torch.stack((3.7 + 0.11 * column - 0.05 * row, -2.2 + 0.07 * row)).expand(
        2, 2, -1, -1
    )  # linear: read exactly
    warped = warp(x, flow).numpy()
    for i in range(1, h - 1):
        for j in range(1, w - 1):
            px, py = (j + 0.5) * width / w - 0.5, (i + 0.5) * height / h - 0.5
            qx, qy = px + 3.7 + 0.11 * px - 0.05 * py, py - 2.2 + 0.07 * py
            u, v = (qx + 0.5) * w / width - 0.5, (qy + 0.5) * h / height - 0.5
            u, v = min(max(u, 0), w - 1), min(max(v, 0), h - 1)
            expected = sum(
                max(0, 1 - abs(u - b)) * max(0, 1 - abs(v - a)) * x[:, :, a, b].numpy()
                for a in range(h)
                for b in range(w)
                if abs(u - b) < 1 and abs(v - a) < 1
            )
            np.testing.assert_allclose(warped[:, :, i, j], expected, rtol=1e-3, atol=1e-4)


def test_the_size_of_the_flow_does_not_matter() -> None:
    """The same motion, told in pixels of another size."""
    x = torch.randn(1, 4, 16, 24)
    large = torch.tensor([6.0, -3.0])[None, :, None, None].expand(1, 2, 64, 96)
    small = torch.tensor([3.0, -1.5])[None, :, None, None].expand(1, 2, 32, 48)
    torch.testing.assert_close(warp(x, large), warp(x, small))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dis_finds_the_motion_of_a_shifted_image(scale: float) -> None:
    """The camera moves by (8, 4) pixels; each item of the batch has its own motion, the second none."""
    world = textured(136, 200)
    key, now = world[:, :, :128, :192], world[:, :, 4:132, 8:200]
    model = adopted(flow_scale=scale)
    with torch.inference_mode():
        flow = model.motion(torch.cat((now, key)), torch.cat((key, key)))
        assert flow.shape == (2, 2, int(128 * scale), int(192 * scale))
        inside = flow[0, :, 16:-16, 16:-16] / scale
        assert (inside - torch.tensor([8.0, 4.0])[:, None, None]).abs().mean() < 0.3
        assert flow[1].abs().max() < 0.05
        before, state = model.step(torch.cat((key, key)))
        logits, _ = model.step(torch.cat((now, key)), state)
    labels, old = logits.argmax(1), before.argmax(1)
    assert len(old.unique()) > 1
    assert (labels[0, :-4, :-4] == old[0, 1:-3, 2:-2]).float().mean() > 0.95
    assert (labels[1] == old[1]).float().mean() > 0.99


def test_frames_shrink_to_the_mean_of_what_they_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adopted(flow_scale=0.25)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        DISFlow, "__call__", lambda self, first, second: seen.append(first.image) or torch.zeros(2, 1, 1)
    )
    frame = frames(1)[0]
    model.motion(frame, frame)
    expected = frame.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)).round()[0]
    assert torch.equal(seen[0], expected.to(torch.uint8))


def test_training_is_segformers() -> None:
    sample = Clip(
        torch.stack(frames(1, 2), dim=1),
        torch.randint(0, 5, (2, 1, *SIZE), dtype=torch.uint8),
        torch.zeros(2, 1).long(),
    )
    model = adopted()
    assert model.offsets == (0,)
    assert model(sample).keys() == {"ce"}
    assert torch.equal(model(sample)["ce"], segformer()(sample)["ce"])


@pytest.mark.parametrize("warp", WARPS)
def test_graphs_stream_like_step(warp: str) -> None:
    model = adopted(warp=warp)
    images = frames(6)
    with torch.inference_mode():
        graphs = model.graphs(images[0])
        assert set(graphs["between"].inputs) - {"flow"} <= set(graphs["key"].outputs)
        for t, logits in enumerate(model.segment(images)):
            if t % 4 == 0:
                named = dict(zip(graphs["key"].outputs, graphs["key"].function(images[t]), strict=True))
                mine, image = named["logits"], images[t]
            else:
                maps = [named[name] for name in graphs["between"].inputs if name != "flow"]
                (mine,) = graphs["between"].function(*maps, model.motion(images[t], image))
            assert torch.equal(mine, logits)


def test_a_caller_may_reuse_its_frame() -> None:
    model = adopted()
    buffer, now = (image.clone() for image in frames(2))
    with torch.inference_mode():
        _, state = model.step(buffer)
        buffer.zero_()
        logits, _ = model.step(now, state)
        _, state = model.step(frames(1)[0])
        assert torch.equal(logits, model.step(now, state)[0])


def test_a_model_can_be_copied() -> None:
    """OpenCV's objects cannot; the model holds none."""
    model = adopted()
    images = frames(2)
    with torch.inference_mode():
        *_, expected = model.segment(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            *_, logits = other.segment(images)
            assert torch.equal(logits, expected)


def test_estimators(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAFT is loaded once, when a model is built; what it lacks is said then. DIS is new every time."""
    assert isinstance(estimators.shared_flow("dis"), DISFlow)
    assert estimators.shared_flow("dis") is not estimators.shared_flow("dis")
    asked: list[str] = []
    monkeypatch.setattr(estimators, "build_flow", lambda name: asked.append(name) or Known(0, 0))
    estimators._raft.cache_clear()
    try:
        adopted(flow="raft")
        adopted(flow="raft")
        assert asked == ["raft"]
    finally:
        estimators._raft.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, r"model\.interval is 0; expected at least 1"),
        ({"flow_scale": 0.0}, r"model\.flow_scale is 0\.0; expected above 0 and at most 1"),
        ({"flow_scale": 1.5}, r"model\.flow_scale is 1\.5"),
        ({"flow": "files"}, r"model\.flow is files; expected dis or raft"),
        ({"warp": "labels"}, r"model\.warp is labels; expected features or logits"),
    ],
)
def test_options(options: dict, message: str) -> None:
    assert METHOD.adopt(OPTIONS) == FlowConfig(**OPTIONS)
    with pytest.raises(ConfigError, match=message):
        METHOD(FlowConfig(**options), 5)
