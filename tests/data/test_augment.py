import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steadyseg.data.augment import (
    MEAN_COLOUR,
    AugmentConfig,
    CameraConfig,
    _Colours,
    _draw_colours,
    _draw_jitter,
    _jitter,
    _recolour,
    build_augment,
    camera_path,
    choose_window,
    is_mixed,
)
from steadyseg.types import IGNORE, Clip, ConfigError

HEIGHT, WIDTH = 90, 120
LOUD = CameraConfig(shift=0.05, zoom=0.1, turn=3.0, light=0.0)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(**changes: Any) -> AugmentConfig:
    """Crops of 48x64, any class mixture, geometry only."""
    return AugmentConfig(**{"crop": (48, 64), "class_max": 1.0, "photometric": False, **changes})


def coordinates(count: int = 3, *, label: str = "x") -> Clip:
    """A clip of equal frames: red is x, green is y, labels are one of them; pixel (x, y) is known by its colour."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)]).byte()
    labels = {"x": x, "y": y}[label].byte()
    return Clip(torch.stack([image] * count), torch.stack([labels] * count), torch.arange(count))


def plain(count: int, level: int) -> Clip:
    """A clip of frames of one grey."""
    frames = torch.full((count, 3, 64, 96), level, dtype=torch.uint8)
    return Clip(frames, torch.zeros(count, 64, 96, dtype=torch.uint8), torch.arange(count))


def equal(a: Clip, b: Clip) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


# ---- one geometry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rotate", [0, 20])
def test_all_frames_share_the_geometry(seed: int, rotate: float) -> None:
    clip = build_augment(config(rotate=rotate))(coordinates(), dice(seed))
    assert clip.frames.shape == (3, 3, 48, 64) and clip.labels.shape == (3, 48, 64)
    assert clip.frames.dtype == clip.labels.dtype == torch.uint8
    for t in (0, 1):
        assert torch.equal(clip.frames[t], clip.frames[2]) and torch.equal(clip.labels[t], clip.labels[2])


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("rotate", [0, 20])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_labels_lie_where_the_image_is(axis: str, rotate: float, still: bool) -> None:
    augment = build_augment(config(camera=LOUD, rotate=rotate), still=still, offsets=(-6, -3, 0))
    differences = []
    for seed in range(12):
        clip = augment(coordinates(label=axis), dice(seed))
        colour = clip.frames[:, "xy".index(axis)]
        known = clip.labels != IGNORE
        differences.append((colour.float() - clip.labels.float())[known])
        assert differences[-1].abs().max() <= 1, "a pixel and its label come from the same place"
    assert abs(float(torch.cat(differences).mean())) < 0.1, "no shift by half a pixel"


def test_scale_one_crops_and_flips_without_interpolation() -> None:
    augment = build_augment(config(scale=(1, 1), flip=0.5))
    flips = set()
    for seed in range(10):
        source = coordinates()
        x, y = augment(source, dice(seed)).frames[-1, :2].long()
        flips.add(int(x[0, 1] - x[0, 0]))
        assert torch.equal(x.float().diff(dim=1).abs(), torch.ones(48, 63))
        assert torch.equal(source.frames[0, 1][y, x].long(), y)
        assert torch.equal(y.diff(dim=0), torch.ones(47, 64, dtype=torch.long)), "never upside down"
    assert flips == {-1, 1}


def test_scale_is_relative_to_the_base_size_and_keeps_the_aspect() -> None:
    half = build_augment(config(base_size=(45, 60), scale=(1, 1), crop=(45, 60), flip=0))
    clip = half(coordinates(), dice())
    expected = torch.arange(60) * 2 + 0.5  # centres of pixels twice as large
    assert (clip.frames[0, 0, 0] - expected).abs().max() <= 0.5
    assert not (clip.labels == IGNORE).any()
    tall = config(base_size=(45, 60), scale=(1, 1), crop=(99, 99))
    assert choose_window(tall, np.zeros((120, 90), np.uint8), dice()).size == (60, 45), "long side to long side"
    wide = config(base_size=(45, 60), scale=(1, 1), crop=(99, 99))
    assert choose_window(wide, np.zeros((60, 240), np.uint8), dice()).size == (15, 60), "fits inside"


def test_scale_range_is_used_and_kept() -> None:
    factors = [1 / choose_window(config(), np.zeros((90, 120), np.uint8), dice(s)).matrix[1, 1] for s in range(200)]
    assert 0.49 < min(factors) < 0.6 and 1.9 < max(factors) < 2.01


def test_crop_first_draws_the_size_of_the_window() -> None:
    """A window of u times the crop, u uniform in [0.5, 2], is the scale 1 / u."""
    settings = config(crop_first=True)
    sizes = [choose_window(settings, np.zeros((90, 120), np.uint8), dice(s)).matrix[1, 1] for s in range(400)]
    assert 0.49 < min(sizes) < 0.51 and 1.98 < max(sizes) < 2.01
    assert np.histogram(sizes, bins=3, range=(0.49, 2.01))[0].min() > 100
    high = config(crop_first=True, scale=(1.0, 2.0))
    sizes = [choose_window(high, np.zeros((90, 120), np.uint8), dice(s)).matrix[1, 1] for s in range(100)]
    assert 0.49 < min(sizes) < 0.52 and 0.98 < max(sizes) < 1.01


def test_crop_positions_reach_all_borders() -> None:
    augment = build_augment(config(scale=(1, 1), flip=0, crop=(88, 118)))
    corners = {tuple(augment(coordinates(1), dice(seed)).frames[0, :2, 0, 0].tolist()) for seed in range(100)}
    assert corners == {(x, y) for x in range(3) for y in range(3)}


@pytest.mark.parametrize("still", [False, True])
def test_padding_is_the_mean_colour_and_ignored(still: bool) -> None:
    loud = config(crop=(100, 160), scale=(0.5, 0.5), photometric=True, camera=LOUD)
    clip = build_augment(loud, still=still)(coordinates(), dice(1))
    inside = torch.zeros(100, 160, dtype=torch.bool)
    inside[:45, :60] = True
    assert (clip.labels[:, ~inside] == IGNORE).all()
    assert (clip.frames[:, :, ~inside] == torch.tensor(MEAN_COLOUR)[:, None]).all()
    assert (clip.labels[-1, inside] != IGNORE).all(), "the target's own pixels keep their labels"


def test_one_pixel_frame() -> None:
    tiny = Clip(torch.full((2, 3, 1, 1), 9, dtype=torch.uint8), torch.zeros(2, 1, 1).byte(), torch.zeros(2).long())
    for still in (False, True):
        clip = build_augment(config(), still=still)(tiny, dice())
        assert clip.frames.shape == (2, 3, 48, 64) and int(clip.frames[-1, 0, 0, 0]) == 9


# ---- rotation ----------------------------------------------------------------------------------------------------


def test_a_turn_is_about_the_middle_within_its_bound() -> None:
    settings = config(rotate=20, scale=(1, 1), crop=(HEIGHT, WIDTH), flip=0)
    angles = []
    for seed in range(200):
        window = choose_window(settings, np.zeros((HEIGHT, WIDTH), np.uint8), dice(seed))
        assert np.allclose(window.matrix[:2, :2] @ window.matrix[:2, :2].T, np.eye(2)), "a turn and nothing else"
        middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1])
        assert np.allclose(window.matrix @ middle, middle)
        angles.append(float(np.degrees(np.arctan2(window.matrix[1, 0], window.matrix[0, 0]))))
    assert -20 <= min(angles) < -19 and 19 < max(angles) <= 20


def test_a_turn_is_one_of_the_resized_frame() -> None:
    """Rounding makes 9x13 to 5x7, which squeezes the two axes differently; angles are those that one sees."""
    settings = config(rotate=60, scale=(1, 1), base_size=(5, 7), crop=(9, 9), flip=0)
    matrix = choose_window(settings, np.zeros((9, 13), np.uint8), dice(1)).matrix[:2, :2]
    seen = np.diag([7 / 13, 5 / 9]) @ matrix
    assert np.allclose(seen @ seen.T, np.eye(2)) and abs(seen[0, 1]) > 0.1


def test_a_turned_pixel_is_interpolated_once() -> None:
    settings = config(rotate=20, scale=(0.9, 1.5))
    y, x = np.mgrid[0:48, 0:64]
    for seed in range(6):
        clip = build_augment(settings)(coordinates(1), dice(seed))
        matrix = choose_window(settings, np.zeros((HEIGHT, WIDTH), np.uint8), dice(seed)).matrix
        place = np.einsum("ij,jrc->irc", matrix, np.stack([x, y, np.ones_like(x)]))  # [3, 48, 64]
        inner = (place[0] > 0) & (place[0] < WIDTH - 1) & (place[1] > 0) & (place[1] < HEIGHT - 1)
        assert np.abs(clip.frames[0, :2].numpy() - place[:2])[:, inner].max() < 0.6, "rounded once"


@pytest.mark.parametrize("still", [False, True])
def test_corners_of_a_turn_are_padding(still: bool) -> None:
    settings = config(rotate=20, scale=(1, 1), crop=(HEIGHT, WIDTH), flip=0, photometric=True, camera=LOUD)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    corners = 0
    for seed in range(8):
        clip = build_augment(settings, still=still)(coordinates(), dice(seed))
        matrix = choose_window(settings, np.zeros((HEIGHT, WIDTH), np.uint8), dice(seed)).matrix
        x0, y0, _ = np.einsum("ij,jrc->irc", matrix, np.stack([x, y, np.ones_like(x)]))  # [H, W] each
        outside = torch.from_numpy((x0 < -0.6) | (x0 > WIDTH - 0.4) | (y0 < -0.6) | (y0 > HEIGHT - 0.4))
        inside = torch.from_numpy((x0 > -0.4) & (x0 < WIDTH - 0.6) & (y0 > -0.4) & (y0 < HEIGHT - 0.6))
        assert (clip.labels[:, outside] == IGNORE).all()
        assert (clip.frames[:, :, outside] == torch.tensor(MEAN_COLOUR)[:, None]).all()
        assert (clip.labels[-1, inside] != IGNORE).all(), "the target's own pixels keep their labels"
        corners += int(outside.sum())
    assert corners > 1000


def test_class_cap_looks_at_the_turned_frame() -> None:
    labels = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    labels[:, 30:60, :30] = 1
    clip = Clip(coordinates(1).frames, labels, torch.arange(1))

    def good(class_max: float) -> int:
        augment = build_augment(config(rotate=90, scale=(1, 1), crop=(24, 24), class_max=class_max))
        return sum(is_mixed(augment(clip, dice(seed)).labels[0].numpy(), 0.6) for seed in range(60))

    assert good(0.6) >= 15 and good(1.0) <= 5


# ---- class cap ---------------------------------------------------------------------------------------------------


def test_mixture_of_a_crop() -> None:
    labels = np.array([[0, 0, 0, 1], [IGNORE] * 4], np.uint8)
    assert not is_mixed(labels, 0.75), "exactly 75 % is too much"
    assert is_mixed(labels, 0.76)
    assert not is_mixed(np.zeros((2, 2), np.uint8), 0.99), "one class"
    assert not is_mixed(np.full((2, 2), IGNORE, np.uint8), 0.99)
    assert is_mixed(np.zeros((2, 2), np.uint8), 1.0), "no limit"


def test_class_cap_looks_at_the_target_frame() -> None:
    labels = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    labels[-1, :, 60:] = 1  # only the target has two classes
    clip = Clip(coordinates().frames, labels, torch.arange(3))

    def good(class_max: float) -> int:
        augment = build_augment(config(scale=(1, 1), crop=(32, 32), class_max=class_max))
        shares = [augment(clip, dice(seed)).labels[-1].float().mean() for seed in range(60)]
        return sum(0.25 < float(share) < 0.75 for share in shares)

    assert good(0.75) >= 50
    assert good(1.0) <= 30


def test_an_impossible_cap_takes_the_last_position() -> None:
    clip = Clip(coordinates().frames, torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), torch.arange(3))
    assert not (build_augment(config(scale=(1, 1), class_max=0.5))(clip, dice()).labels == IGNORE).any()


# ---- camera path -------------------------------------------------------------------------------------------------

TIMES = range(-40, 1)


def camera(**rates: Any) -> CameraConfig:
    return CameraConfig(**{"shift": 0.0, "zoom": 0.0, "turn": 0.0, "light": 0.0, **rates})


def path(config: CameraConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return camera_path(config, TIMES, (HEIGHT, WIDTH), dice(seed))


def assert_bounded_and_smooth(values: np.ndarray, limit: float) -> float:
    """Speed within `limit` a frame, acceleration within what the shortest period allows; returns the top speed."""
    speed = np.abs(np.diff(values))
    assert speed.max() <= limit + 1e-9
    assert np.abs(np.diff(values, n=2)).max() <= limit * 2 * np.pi / 8 + 1e-9
    return float(speed.max())


@pytest.mark.parametrize("rate", ["shift", "zoom", "turn", "light"])
def test_path_is_smooth_within_its_bound_and_uses_it(rate: str) -> None:
    top = 0.0
    for seed in range(60):
        matrices, gains = path(camera(**{rate: 0.1}), seed)
        scale = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
        values = {
            "shift": matrices[:, 0, 2],
            "zoom": np.log(scale),
            "turn": np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])),
            "light": np.log(gains),
        }
        limit = 0.1 * WIDTH if rate == "shift" else 0.1
        top = max(top, assert_bounded_and_smooth(values.pop(rate), limit) / limit)
        if rate in ("shift", "light"):
            assert np.allclose(values["zoom"], 0) and np.allclose(values["turn"], 0)
        if rate == "shift":
            assert_bounded_and_smooth(matrices[:, 1, 2], limit / 2)
    assert top > 0.7


def test_path_stands_at_the_target() -> None:
    for seed in range(10):
        matrices, gains = path(CameraConfig(), seed)
        assert np.allclose(matrices[-1], np.eye(3)) and gains[-1] == 1


def test_zoom_and_turn_keep_a_point_near_the_middle() -> None:
    for seed in range(20):
        matrices, _ = path(camera(zoom=0.05, turn=2.0), seed)
        x, y = np.linalg.solve(matrices[0, :2, :2] - np.eye(2), -matrices[0, :2, 2])
        assert WIDTH / 4 <= x <= WIDTH * 3 / 4 and HEIGHT / 4 <= y <= HEIGHT * 3 / 4


def test_still_leaves_the_target_and_moves_the_others() -> None:
    plain, moving = build_augment(config()), build_augment(config(camera=LOUD), still=True, offsets=(-6, -3, 0))
    motion = torch.zeros(3)
    for seed in range(10):
        before, after = plain(coordinates(), dice(seed)), moving(coordinates(), dice(seed))
        assert torch.equal(before.frames[-1], after.frames[-1]) and torch.equal(before.labels[-1], after.labels[-1])
        motion += (before.frames.float() - after.frames.float()).abs().mean(dim=(1, 2, 3)) / 10
    assert motion[0] > motion[1] > 1


def test_still_frames_know_their_offsets() -> None:
    near, far = (
        build_augment(config(camera=LOUD), still=True, offsets=offsets)(coordinates(2), dice(2))
        for offsets in ((-1, 0), (-12, 0))
    )
    assert torch.equal(near.frames[1], far.frames[1]) and not torch.equal(near.frames[0], far.frames[0])
    assert equal(near, build_augment(config(camera=LOUD), still=True)(coordinates(2), dice(2))), "default: neighbours"


def test_outside_of_the_image_is_ignored_and_only_there() -> None:
    window_only = config(scale=(1, 1), crop=(HEIGHT, WIDTH), flip=0, camera=camera(shift=0.05))
    seen = 0
    for seed in range(10):
        clip = build_augment(window_only, still=True, offsets=(-8, 0))(coordinates(2), dice(seed))
        generator = dice(seed)
        choose_window(window_only, clip.labels[-1].numpy(), generator)
        matrices, _ = camera_path(window_only.camera, (-8, 0), (HEIGHT, WIDTH), generator)
        x = torch.arange(WIDTH) + matrices[0, 0, 2]
        y = torch.arange(HEIGHT)[:, None] + matrices[0, 1, 2]
        outside = (x < -0.6) | (x > WIDTH - 0.4) | (y < -0.6) | (y > HEIGHT - 0.4)
        inside = (x > -0.4) & (x < WIDTH - 0.6) & (y > -0.4) & (y < HEIGHT - 0.6)
        assert (clip.labels[0][outside] == IGNORE).all() and (clip.labels[0][inside] != IGNORE).all()
        assert not (clip.labels[1] == IGNORE).any()
        seen += int(outside.sum())
    assert seen > 100


def test_light_changes_over_a_still_clip() -> None:
    grey = Clip(
        torch.full((3, 3, 60, 60), 100, dtype=torch.uint8), torch.zeros(3, 60, 60).byte(), torch.zeros(3).long()
    )
    clip = build_augment(config(camera=camera(light=0.05)), still=True, offsets=(-6, -3, 0))(grey, dice(1))
    first, middle, target = (float(frame[:, 20, 20].float().mean()) for frame in clip.frames)
    assert target == 100 and first != 100 and min(first, target) <= middle <= max(first, target)


# ---- colours -----------------------------------------------------------------------------------------------------


def pixel(*rgb: int) -> np.ndarray:
    return np.array([[rgb]], np.uint8)


@pytest.mark.parametrize(
    ("colours", "before", "after"),
    [
        (_Colours(), (10, 200, 77), (10, 200, 77)),
        (_Colours(brightness=30), (10, 200, 250), (40, 230, 255)),
        (_Colours(brightness=-30), (10, 200, 250), (0, 170, 220)),
        (_Colours(contrast=1.5), (10, 100, 200), (15, 150, 255)),
        (_Colours(contrast=0.5, contrast_first=False), (10, 100, 200), (5, 50, 100)),
        (_Colours(brightness=100, contrast=0.5), (200, 200, 200), (128, 128, 128)),  # clipped in between
        (_Colours(saturation=0.5), (200, 0, 0), (200, 100, 100)),
        (_Colours(saturation=1.5), (200, 100, 100), (200, 50, 50)),
        (_Colours(hue=60), (200, 0, 0), (0, 200, 0)),
        (_Colours(hue=-60), (200, 0, 0), (0, 0, 200)),
    ],
)
def test_colours(colours: _Colours, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    changed = _recolour(pixel(*before), colours, 1.0)
    assert np.abs(changed.astype(int) - pixel(*after)).max() <= 1


def test_light_is_a_factor() -> None:
    assert _recolour(pixel(10, 100, 250), _Colours(), 1.1).tolist() == [[[11, 110, 255]]]


def test_the_order_of_contrast_and_saturation() -> None:
    first, last = (
        _recolour(pixel(200, 100, 100), _Colours(contrast=1.5, saturation=0.5, contrast_first=is_first), 1.0).tolist()
        for is_first in (True, False)
    )
    assert first[0][0] == pytest.approx([255, 202, 202], abs=2)  # (255, 150, 150), then half the saturation
    assert last[0][0] == pytest.approx([255, 225, 225], abs=2)  # (200, 150, 150), then half as bright again


def test_colour_draws_follow_the_recipe() -> None:
    generator = dice()
    draws = [_draw_colours(generator) for _ in range(400)]
    for values, low, high, neutral in (
        ([d.brightness for d in draws], -32, 32, 0),
        ([d.contrast for d in draws], 0.5, 1.5, 1),
        ([d.saturation for d in draws], 0.5, 1.5, 1),
        ([d.hue for d in draws], -18, 18, 0),
    ):
        assert low <= min(values) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(values) <= high
        assert 0.4 < sum(value == neutral for value in values) / 400 < 0.6
    assert 0.4 < sum(d.contrast_first for d in draws) / 400 < 0.6


@pytest.mark.parametrize(
    ("kind", "amount", "before", "after"),
    [
        ("brightness", 1.2, (10, 100, 250), (12, 120, 255)),
        ("contrast", 0.5, (100, 100, 100), (100, 100, 100)),  # of one pixel, all is the mean
        ("saturation", 0.5, (200, 100, 100), (165, 115, 115)),  # grey 0.299 * 200 + 0.701 * 100 = 130
        ("saturation", 1.5, (200, 100, 100), (235, 85, 85)),
        ("hue", 1 / 3, (200, 0, 0), (0, 200, 0)),
        ("hue", -1 / 3, (200, 0, 0), (0, 0, 200)),
    ],
)
def test_jitter(kind: str, amount: float, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    assert np.abs(_jitter(pixel(*before), ((kind, amount),)).astype(int) - pixel(*after)).max() <= 1


def test_jitter_keeps_its_order() -> None:
    dark_first, grey_first = (("brightness", 2.0), ("saturation", 0.0)), (("saturation", 0.0), ("brightness", 2.0))
    assert _jitter(pixel(200, 0, 0), dark_first)[0, 0].tolist() == pytest.approx([76] * 3, abs=1)  # 0.299 * 255
    assert _jitter(pixel(200, 0, 0), grey_first)[0, 0].tolist() == pytest.approx([120] * 3, abs=1)
    assert _jitter(pixel(9, 8, 7), ())[0, 0].tolist() == [9, 8, 7]


def test_jitter_draws_follow_the_recipe() -> None:
    generator = dice()
    draws = [_draw_jitter(0.2, generator) for _ in range(400)]
    for kind, low, high in (
        ("brightness", 0.8, 1.2),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.8, 1.2),
        ("hue", -0.2, 0.2),
    ):
        values = [dict(draw)[kind] for draw in draws]
        assert low <= min(values) < low + 0.02 and high - 0.02 < max(values) <= high
    assert len({tuple(kind for kind, _ in draw) for draw in draws}) == 24, "all orders"


def test_contrast_is_about_the_mean_of_the_whole_frame() -> None:
    """Grey 50 beside grey 250: a crop shows one of them, and it moves towards the 150 that it does not show."""
    frames = torch.full((1, 3, 60, 120), 50, dtype=torch.uint8)
    frames[..., 60:] = 250
    clip = Clip(frames, torch.zeros(1, 60, 120, dtype=torch.uint8), torch.arange(1))
    augment = build_augment(config(scale=(1, 1), crop=(8, 8), jitter=0.5))
    tried = 0
    for seed in range(40):
        generator = dice(seed)
        choose_window(config(scale=(1, 1), crop=(8, 8)), clip.labels[0].numpy(), generator)
        drawn = dict(_draw_jitter(0.5, generator))
        light, contrast = drawn["brightness"], drawn["contrast"]
        expected = [light * (150 + (value - 150) * contrast) for value in (50, 250)]
        if max(250 * light, 150 + 100 * contrast, *expected) < 255 and min(expected) > 0:  # no clipping in any order
            seen = augment(clip, dice(seed)).frames[0, 0].unique().tolist()
            assert all(min(abs(value - e) for e in expected) <= 2 for value in seen)
            tried += 1
    assert tried >= 5


@pytest.mark.parametrize(("which", "alike"), [("all", [False] * 3), ("target", [True, True, False])])
def test_jitter_changes_all_frames_or_the_target(which: str, alike: list[bool]) -> None:
    plain = build_augment(config())(coordinates(), dice(1))
    clip = build_augment(config(jitter=0.3, jitter_frames=which))(coordinates(), dice(1))
    assert [torch.equal(a, b) for a, b in zip(plain.frames, clip.frames, strict=True)] == alike
    assert torch.equal(plain.labels, clip.labels)
    assert not torch.equal(clip.frames[0], clip.frames[1]) or which == "target", "drawn for each frame"


@pytest.mark.parametrize("per_frame", [True, False])
def test_colours_per_frame_or_per_clip(per_frame: bool) -> None:
    augment = build_augment(config(photometric=True, photometric_per_frame=per_frame))

    def same(frames: Tensor) -> bool:
        return torch.equal(frames[0], frames[1])

    alike = sum(same(augment(coordinates(2), dice(seed)).frames) for seed in range(20))
    assert alike < 10 if per_frame else alike == 20


def test_noise_is_that_of_every_pixel_and_frame() -> None:
    grey = plain(2, 128)
    augment = build_augment(config(scale=(1, 1), crop=(64, 96), noise=20.0))
    clips = [augment(grey, dice(seed)).frames.float() - 128 for seed in range(40)]
    levels = torch.stack([clip.std() for clip in clips])
    assert levels.max() < 21 and levels.min() < 3 and levels.mean() == pytest.approx(10, abs=2.5)
    one, other = max(clips, key=lambda clip: float(clip.std()))
    assert abs(float((one * other).mean())) < 0.05 * float(one.var()), "drawn for each frame"
    assert abs(float((one[0] * one[1]).mean())) < 0.1 * float(one.var()), "and for each colour"
    assert abs(float(one.mean())) < 1


def test_noise_stays_between_black_and_white() -> None:
    noisy = build_augment(config(scale=(1, 1), crop=(64, 96), noise=20.0))(plain(1, 0), dice(3)).frames
    assert 0 < int(noisy.max()) < 128


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_the_dice_decide_and_the_clip_stays() -> None:
    augment = build_augment(AugmentConfig(crop=(48, 64)), still=True)
    source, before = coordinates(), coordinates()
    assert equal(augment(source, dice(1)), augment(source, dice(1)))
    assert not equal(augment(source, dice(1)), augment(source, dice(2)))
    assert equal(source, before)
    assert equal(pickle.loads(pickle.dumps(augment))(source, dice(1)), augment(source, dice(1)))


def test_options_that_are_off_throw_no_dice() -> None:
    """A run without them draws what such a run has always drawn; the numbers are of the time before they existed."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    generator = dice(5)
    window = choose_window(config(), labels, generator)
    assert window.matrix[0].tolist() == pytest.approx([-0.5741626794258373, 0, 111.7488038277512])
    assert window.matrix[1].tolist() == pytest.approx([0, 0.5732484076433121, 7.238853503184713])
    assert float(torch.rand((), generator=generator)) == pytest.approx(0.04071521759033203)
    for still, expected in ((False, 0.3741426467895508), (True, 0.42039555311203003)):
        generator = dice(5)
        build_augment(AugmentConfig(crop=(48, 64)), still=still)(coordinates(), generator)
        assert float(torch.rand((), generator=generator)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (AugmentConfig, {"crop": (0, 5)}, r"data\.augment\.crop is \(0, 5\)"),
        (AugmentConfig, {"base_size": (-1, 5)}, r"base_size"),
        (AugmentConfig, {"scale": (2.0, 0.5)}, r"scale is \(2\.0, 0\.5\); expected 0 < smallest"),
        (AugmentConfig, {"flip": 1.5}, r"flip is 1\.5"),
        (AugmentConfig, {"class_max": -0.1}, r"class_max"),
        (AugmentConfig, {"rotate": -5}, r"data\.augment\.rotate is -5; expected degrees in \[0, 180\]"),
        (AugmentConfig, {"jitter": 0.6, "photometric": False}, r"jitter is 0\.6; expected a value in \[0, 0\.5\]"),
        (AugmentConfig, {"noise": -1.0}, r"noise is -1\.0; expected levels in \[0, 64\]"),
        (AugmentConfig, {"jitter": 0.2}, r"jitter replaces photometric; set data\.augment\.photometric to false"),
        (CameraConfig, {"zoom": -1}, r"data\.augment\.camera\.zoom is -1"),
        (CameraConfig, {"period": (0, 5)}, r"period"),
    ],
)
def test_config_errors(kind: type, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**changes)
