"""Procedural street scenes with CamVid's 11 classes: videos with exact labels and exact optical flow.

Every frame is a function of (split, video, frame number, size), so frames can be read in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from steadyseg.data.camvid import CLASSES, PALETTE
from steadyseg.data.renderer import Picture, render
from steadyseg.data.source import VideoSource
from steadyseg.data.textures import Array
from steadyseg.data.town import Finish, Video
from steadyseg.types import ConfigError, DataError, Frame

SPLITS = ("train", "val", "test")


@lru_cache(maxsize=8)
def _video(split: int, number: int) -> Video:
    return Video(split, number)


@lru_cache(maxsize=2)
def _grain() -> Array:
    """Return noise that is cut into pieces for the frames, float32 [1024, 1024, 3]."""
    rng = np.random.default_rng(77)
    grain = rng.standard_normal((1024, 1024, 3), np.float32)
    return 0.7 * grain + 0.9 * cv2.GaussianBlur(grain, (0, 0), 0.8)


def _tone(video: Video, time: float) -> Array:
    """Return the curve from painted to recorded values, uint8 [1, 256, 3]: exposure, gamma, colour balance."""
    light, finish, phase = video.street.light, video.finish, video.street.sway[0]
    exposure = 1 + finish.flicker * (np.sin(0.8 * time + phase) + 0.3 * np.sin(3.7 * time + 2 * phase))
    values = np.linspace(0, 1, 256) ** light.gamma * (exposure * finish.exposure)
    values = (values - 0.45) * finish.contrast + 0.45 - 0.06 * (finish.contrast - 1)
    values = np.where(values < 0.06, 0.06 * np.exp((values - 0.06) / 0.06), values)  # shadows keep some drawing
    curve = values[:, None] * np.array(light.balance) * 255
    return np.clip(curve, 0, 255).astype(np.uint8)[None]


def _record(image: Array, video: Video, time: float, frame: int) -> Array:
    """Return what the camera records of a painted picture: lens blur, exposure, noise, JPEG; uint8 [H, W, 3] RGB."""
    finish: Finish = video.finish
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), finish.blur * max(height / 360, 0.7))
    image = cv2.LUT(image, _tone(video, time))
    rng = np.random.default_rng([21, *video.key, frame])
    grain = _grain()
    repeat = (-(-height // 700), -(-width // 700), 1)
    grain = np.tile(grain, repeat) if max(height, width) > 700 else grain
    y, x = (int(rng.integers(0, have - want + 1)) for have, want in zip(grain.shape, (height, width), strict=False))
    noisy = cv2.add(image, grain[y : y + height, x : x + width] * np.float32(finish.grain), dtype=cv2.CV_8U)
    if finish.fall_off:
        rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        weight = (1 - finish.fall_off * (rows**2 + columns**2) / 2).astype(np.float32)
        noisy = cv2.multiply(noisy, cv2.merge([weight] * 3), dtype=cv2.CV_8U)
    if finish.quality:
        _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, finish.quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return noisy


class StreetsSource(VideoSource):
    """Street scenes drawn by a program; every frame has exact labels and exact flow.

    Args:
        split: "train", "val" or "test"; they share no video.
        size: height and width of the frames in pixels.
        length: frames in each video.
        videos: number of videos.

    Raises:
        ConfigError: an unknown split, or a size, length or number of videos below 1.
    """

    rate = 15.0

    def __init__(
        self, *, split: str = "train", size: tuple[int, int] = (360, 480), length: int = 40, videos: int = 64
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"streets has no split '{split}'; choose one of {', '.join(SPLITS)}")
        if min(*size, length, videos) < 1:
            given = f"size {size[0]}x{size[1]}, length {length}, videos {videos}"
            raise ConfigError(f"streets: {given} given; all must be at least 1")
        self.classes, self.palette = CLASSES, PALETTE
        self.names = tuple(f"{split}-{number:04d}" for number in range(videos))
        self.size = (int(size[0]), int(size[1]))
        self._split = SPLITS.index(split)
        self._length = length
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def length(self, name: str) -> int:
        """Return the number of frames of video `name`."""
        self._video(name)
        return self._length

    def labelled(self, name: str) -> tuple[int, ...]:
        """Return all frame numbers of video `name`: every frame has labels."""
        return tuple(range(self.length(name)))

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield frames of video `name` lazily, in the order asked for (see VideoSource)."""
        video = self._video(name)
        for frame in range(self._length) if frames is None else frames:
            time = self._time(name, frame)
            (view,) = video.views([time], self.size)
            picture, _ = render(view, self.size, time)
            image = _record(picture.image, video, time, frame)
            yield Frame(
                torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # [3, H, W]
                int(frame),
                time,
                torch.from_numpy(picture.labels),
            )

    def flow(self, name: str, frame: int) -> Tensor:
        """Return where each pixel's point of the scene is in the next frame.

        Args:
            name: one of ``names``.
            frame: frame number; the last one has a next moment too.

        Returns:
            float32 [2, H, W], (dx, dy) in pixels; 0 where the point passes behind the camera.
        """
        return torch.from_numpy(self._motion(name, frame)[0])

    def visible(self, name: str, frame: int) -> Tensor:
        """Return whether each pixel's point is seen in frame + 1, bool [H, W]: inside it and not hidden."""
        return torch.from_numpy(self._motion(name, frame)[1])

    def _video(self, name: str) -> Video:
        if name not in self._numbers:
            raise DataError(
                f"streets has no video '{name}'; its {len(self.names)} are {self.names[0]} .. {self.names[-1]}"
            )
        return _video(self._split, self._numbers[name])

    def _time(self, name: str, frame: int) -> float:
        if not 0 <= frame < self._length:
            raise DataError(f"{name}: frame {frame} asked for; it has frames 0..{self._length - 1}")
        return frame / self.rate

    def _motion(self, name: str, frame: int) -> tuple[Array, Array]:
        """Return flow float32 [2, H, W] and visibility bool [H, W]."""
        time = self._time(name, frame)
        times = (time, (frame + 1) / self.rate)
        views = self._video(name).views(times, self.size)
        (now, maps), (then, next_maps) = (render(view, self.size, t) for view, t in zip(views, times, strict=True))
        return _displacement(now, maps, then, next_maps)


def _displacement(now: Picture, maps: Array, then: Picture, next_maps: Array) -> tuple[Array, Array]:
    """Return the motion between two moments: flow float32 [2, H, W] and visibility bool [H, W].

    A pixel's point keeps its place on its surface, so pixel -> surface -> next pixel is one homography per surface.
    """
    height, width = now.surfaces.shape
    numbers = now.surfaces % len(maps)  # GROUND is the last
    present = np.unique(numbers)
    moves = np.zeros_like(maps)
    moves[present] = next_maps[present] @ np.linalg.inv(maps[present])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    move = moves[numbers]  # [H, W, 3, 3]
    point = move[..., 0] * x[..., None] + move[..., 1] * y[..., None] + move[..., 2]
    front = point[..., 2] > 1e-9
    scale = np.where(front, point[..., 2], 1.0)
    flow = np.where(front, np.stack((point[..., 0] / scale - x, point[..., 1] / scale - y)), 0)
    column, row = np.rint(x + flow[0]).astype(np.int64), np.rint(y + flow[1]).astype(np.int64)
    inside = front & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = then.surfaces[np.where(inside, row, 0), np.where(inside, column, 0)]
    return flow.astype(np.float32), inside & (there == now.surfaces)
