"""Street scenes: determinism, random access, exact labels and exact flow."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from steadyseg.data import renderer, textures
from steadyseg.data.blocks import belt_block, belts, street_block
from steadyseg.data.scene import BLOCK, CAR, camera_at, pose
from steadyseg.data.streets import CLASSES, PALETTE, StreetsSource
from steadyseg.data.town import Video, draw_light, draw_street
from steadyseg.types import ConfigError, DataError

SMALL = (90, 120)


@pytest.fixture(scope="module")
def source() -> StreetsSource:
    return StreetsSource(size=SMALL, length=12, videos=12)


def test_layout_of_frames(source: StreetsSource) -> None:
    frame = next(source.read("train-0001", [7]))
    assert frame.image.shape == (3, *SMALL) and frame.image.dtype == torch.uint8
    assert frame.labels is not None and frame.labels.shape == SMALL and frame.labels.dtype == torch.uint8
    assert int(frame.labels.max()) < 11
    assert frame.index == 7 and frame.time == pytest.approx(7 / 15)
    assert source.length("train-0001") == 12 and source.labelled("train-0001") == tuple(range(12))
    assert source.names == tuple(f"train-{number:04d}" for number in range(12))
    assert len(source.classes) == len(source.palette) == 11


def test_classes_are_those_of_camvid() -> None:
    assert CLASSES[0] == "Sky" and CLASSES[3] == "Road" and CLASSES[10] == "Bicyclist"
    assert PALETTE[4] == (60, 40, 222) and len(set(PALETTE)) == 11


def test_frames_do_not_depend_on_the_order_of_reading(source: StreetsSource) -> None:
    name = "train-0002"
    in_order = list(source.read(name))
    assert [frame.index for frame in in_order] == list(range(12))
    for number in (11, 0, 5, 5):
        again = next(StreetsSource(size=SMALL, length=12, videos=3).read(name, [number]))
        assert torch.equal(again.image, in_order[number].image)
        assert torch.equal(again.labels, in_order[number].labels)


def test_a_video_built_anew_is_the_same() -> None:
    one, two = Video(0, 5), Video(0, 5)
    assert one.street == two.street
    views = [video.views([1.0], SMALL)[0] for video in (one, two)]
    pictures = [renderer.render(view, SMALL, 1.0)[0] for view in views]
    for first, second in zip(*pictures, strict=True):
        np.testing.assert_array_equal(first, second)


def test_splits_and_videos_differ() -> None:
    frames = [
        next(StreetsSource(split=split, size=SMALL, videos=2).read(f"{split}-000{video}", [0]))
        for split in ("train", "val", "test")
        for video in (0, 1)
    ]
    for i, one in enumerate(frames):
        for two in frames[:i]:
            assert (one.image.float() - two.image.float()).abs().mean() > 5


def test_the_scene_moves(source: StreetsSource) -> None:
    moving = next(name for name in source.names if Video(0, int(name[-4:])).street.speed > 3)
    first, last = source.read(moving, [0, 8])
    assert (first.labels != last.labels).float().mean() > 0.02
    assert source.flow(moving, 0).abs().max() > 1


def test_all_classes_appear(source: StreetsSource) -> None:
    counts = torch.zeros(11)
    for name in source.names:
        for frame in source.read(name, [3]):
            counts += torch.bincount(frame.labels.flatten(), minlength=11)
    share = counts / counts.sum()
    assert (share > 0).all(), dict(zip(CLASSES, share.tolist(), strict=True))
    assert share[CLASSES.index("Road")] > 0.2 and share[CLASSES.index("Building")] > 0.08


@pytest.mark.parametrize("name", ["train-0005", "train-0006", "train-0009"])
def test_flow_takes_labels_and_colours_to_the_next_frame(name: str) -> None:
    source = StreetsSource(size=(180, 240), length=12)
    now, then = source.read(name, [4, 5])
    flow, visible = source.flow(name, 4), source.visible(name, 4)
    assert flow.shape == (2, 180, 240) and flow.dtype == torch.float32 and torch.isfinite(flow).all()
    assert visible.shape == (180, 240) and visible.dtype == torch.bool and visible.float().mean() > 0.6
    rows, columns = np.mgrid[0:180, 0:240].astype(np.float32)
    x, y = columns + flow[0].numpy(), rows + flow[1].numpy()
    labels = cv2.remap(then.labels.numpy(), x, y, cv2.INTER_NEAREST)
    seen = visible.numpy()
    assert (labels == now.labels.numpy())[seen].mean() >= 0.995
    before, after = (frame.image.permute(1, 2, 0).numpy().astype(np.float32) for frame in (now, then))
    moved = np.abs(cv2.remap(after, x, y, cv2.INTER_LINEAR) - before)[seen].mean()
    still = np.abs(after - before)[seen].mean()
    assert moved < 8 and moved < 0.75 * still


def test_flow_is_the_motion_of_the_scene_point() -> None:
    """A corner of a surface, projected by hand at both moments, moves as the flow at its pixel says."""
    video, size = Video(0, 2), (180, 240)
    source = StreetsSource(size=size, length=12)
    times = (4 / 15, 5 / 15)
    views = video.views(times, size)
    picture, _ = renderer.render(views[0], size, times[0])
    flow = source.flow("train-0002", 4).numpy()
    middles = []
    for view, time in zip(views, times, strict=True):
        corners, _ = pose(view.block, view.street, view.camera, time)
        point = (corners[:, 0] + 0.5 * corners[:, 1] + 0.5 * corners[:, 2]) @ view.camera.lens.T
        middles.append(point[:, :2] / point[:, 2:])
    checked = 0
    for number in np.unique(picture.surfaces[picture.surfaces >= views[0].backdrop]):
        x, y = np.rint(middles[0][number]).astype(int)
        if 0 <= x < size[1] and 0 <= y < size[0] and picture.surfaces[y, x] == number:
            np.testing.assert_allclose(flow[:, y, x], middles[1][number] - middles[0][number], atol=0.6)
            checked += 1
    assert checked >= 5


def test_hidden_points_are_not_visible(source: StreetsSource) -> None:
    hidden = ~source.visible("train-0002", 0)
    flow = source.flow("train-0002", 0)
    rows, columns = torch.meshgrid(torch.arange(SMALL[0]), torch.arange(SMALL[1]), indexing="ij")
    leaves = (columns + flow[0] < -0.6) | (columns + flow[0] > SMALL[1] - 0.4)
    leaves |= (rows + flow[1] < -0.6) | (rows + flow[1] > SMALL[0] - 0.4)
    assert leaves.any() and hidden[leaves].all()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 61), (48, 129)])
def test_any_size_and_one_frame(size: tuple[int, int]) -> None:
    source = StreetsSource(split="val", size=size, length=1, videos=1)
    (frame,) = source.read("val-0000")
    assert frame.image.shape == (3, *size) and frame.labels.shape == size
    assert source.flow("val-0000", 0).shape == (2, *size)


def test_large_frames_have_noise_everywhere() -> None:
    (frame,) = StreetsSource(size=(20, 1500), length=1, videos=1).read("train-0000")
    assert frame.image.shape == (3, 20, 1500)


def test_a_long_video_goes_on() -> None:
    source = StreetsSource(size=SMALL, length=40_000, videos=3)
    for frame in source.read("train-0001", [20_000, 39_999]):
        assert len(frame.labels.unique()) >= 4


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match="no split 'dev'; choose one of train, val, test"):
        StreetsSource(split="dev")
    with pytest.raises(ConfigError, match="length 0"):
        StreetsSource(length=0)


def test_wrong_names_and_frames(source: StreetsSource) -> None:
    with pytest.raises(DataError, match="no video 'train-9999'"):
        next(source.read("train-9999"))
    with pytest.raises(DataError, match=r"frame 12 asked for; it has frames 0\.\.11"):
        next(source.read("train-0000", [12]))
    with pytest.raises(DataError, match="frame -1"):
        source.flow("train-0000", -1)


def test_cars_keep_clear_of_the_camera() -> None:
    for number in range(12):
        street = Video(0, number).street
        for block in range(int(street.start // BLOCK) - 1, int(street.start // BLOCK) + 2):
            moving = belt_block(street, 0, block, np.random.default_rng(number))
            cars = moving.actors[np.unique(moving.owner[moving.labels == CAR])]
            own_lane = np.abs(cars[:, 0] - street.camera[3]) < 1.5
            gap = cars[own_lane, 1] - street.start
            assert not ((gap > -14) & (gap < 6)).any()


def test_blocks_do_not_depend_on_their_neighbours() -> None:
    video = Video(1, 3)
    later = video.block(-1, 9)
    fresh = Video(1, 3)
    fresh.block(-1, 8)
    np.testing.assert_array_equal(later.corners, fresh.block(-1, 9).corners)
    assert later.ground is not None and later.ground.shape[0] == 2


@pytest.mark.parametrize("style", range(4))
def test_every_style_builds(style: int) -> None:
    rng = np.random.default_rng(style)
    streets = (draw_street(np.random.default_rng([style, i]), (0, i)) for i in range(200))
    street = next(street for street in streets if street.style == style)
    for number in range(4):
        assert len(street_block(street, number, rng).labels) > 10
    for belt in range(len(belts(street))):
        belt_block(street, belt, 0, rng)


def test_light_of_all_kinds() -> None:
    lights = [draw_light(np.random.default_rng(i)) for i in range(40)]
    assert any(light.sun > 0 for light in lights) and any(light.sun < 0 for light in lights)
    assert min(light.ahead for light in lights) < 0.45
    assert max(light.ahead for light in lights) > 0.8


def test_camera_is_a_rotation_above_the_ground() -> None:
    camera = camera_at(Video(0, 1).street, 2.0, SMALL)
    np.testing.assert_allclose(camera.turn @ camera.turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.turn) == pytest.approx(1)
    assert camera.place[1] < -1 and camera.turn[2, 2] > 0.8


def test_texture_levels_halve() -> None:
    texture = textures.Texture(np.full((64, 32, 4), 200, np.uint8))
    assert texture.level(0, 0).shape == (66, 34, 4)
    assert texture.level(2, 1).shape == (34, 10, 4)
    assert texture.level(9, 9).shape == (3, 3, 4)
    assert (texture.level(3, 3) == 200).all()


def test_ground_tile_repeats() -> None:
    tile = textures.ground_tile().astype(np.float32)[..., 0]
    seam = np.abs(tile[0] - tile[-1]).mean()
    inside = np.abs(np.diff(tile, axis=0)).mean()
    assert seam < 1.6 * inside
