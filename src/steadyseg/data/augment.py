"""Random changes of training clips: one draw of the geometry serves all frames of a clip.

Resize, rotation, crop, flip and, for still images, the camera path compose to one affine map a frame, so that every
pixel is interpolated once and only the crop is computed. The colours change before the crop is padded: the jitter,
whose contrast is about the mean of a whole frame, before the crop, all else inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from steadyseg.types import IGNORE, Clip, ConfigError

Augment = Callable[[Clip, torch.Generator], Clip]
"""One draw of the dice for all frames of an unbatched clip."""

MEAN_COLOUR = (124, 116, 104)
"""RGB of the padding: 0 after the normalisation of published weights, to the nearest integer."""
CROP_DRAWS = 10
"""Crop positions tried until one has a good mixture of classes."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """The random camera path over a still image. Rates are bounds on the speed at any moment of the path.

    Each clip draws a calmness in [0, 1] that scales all its rates, so that some clips hardly move. The defaults suit
    driving video of 15 Hz. The target frame, at time 0, does not move.
    """

    shift: float = 0.02
    """Fraction of the frame's width a frame, sideways; half of it up and down. 0.02 is 9.6 pixels of 480."""
    zoom: float = 0.06
    """Natural logarithm of the scale a frame, in or out: 0.06 is a factor of 1.43 in 6 frames."""
    turn: float = 0.4
    """Degrees a frame about the line of sight."""
    light: float = 0.01
    """Natural logarithm of the brightness a frame: 0.01 is a factor of 1.06 in 6 frames."""
    period: tuple[float, float] = (8.0, 40.0)
    """Shortest and longest period, in frames, in which the speed sways."""

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "turn", "light"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"data.augment.camera.{name} is {getattr(self, name)}; expected at least 0")
        if not 0 < self.period[0] <= self.period[1]:
            raise ConfigError(f"data.augment.camera.period is {self.period}; expected 0 < shortest <= longest")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training clip; the defaults are the SegFormer recipe for video at 480 lines."""

    base_size: tuple[int, int] | None = None
    """Height and width, in pixels, that frames are first scaled to fit, long side to long side; None: their own."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest further factor of height and width, drawn uniformly."""
    crop_first: bool = False
    """Draw 1 / factor uniformly instead, which is to cut out a window of random size and resize that to `crop`."""
    rotate: float = 0.0
    """Largest turn to either side, in degrees, about the middle of the frame; its corners become padding."""
    crop: tuple[int, int] = (480, 480)
    """Height and width of the clip, in pixels; smaller frames are padded at the right and at the bottom."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    class_max: float = 0.75
    """Largest share of the target frame's labelled pixels that one class of the crop should have; 1 for no limit."""
    photometric: bool = True
    """Change brightness (by up to 32 of 255), contrast and saturation (half to one and a half) and hue (36 degrees)."""
    photometric_per_frame: bool = True
    """Draw these changes for each frame; otherwise once a clip."""
    jitter: float = 0.0
    """Instead of `photometric`, factors of brightness, contrast and saturation in 1 +- this and a change of hue by up
    to this share of a full turn, in random order, drawn for each frame."""
    jitter_frames: Literal["all", "target"] = "all"
    """Which frames to jitter."""
    noise: float = 0.0
    """Largest standard deviation, in levels of 255, of normal noise drawn for every pixel, colour and frame; each clip
    draws its deviation uniformly between 0 and this."""
    camera: CameraConfig = field(default_factory=CameraConfig)
    """The camera path that makes clips of still images."""

    def __post_init__(self) -> None:
        sizes = {"crop": self.crop, "base_size": self.base_size or (1, 1)}
        for name, size in sizes.items():
            if min(size) < 1:
                raise ConfigError(f"data.augment.{name} is {size}; expected height and width of at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"data.augment.scale is {self.scale}; expected 0 < smallest <= largest")
        if not 0 <= self.rotate <= 180:
            raise ConfigError(f"data.augment.rotate is {self.rotate}; expected degrees in [0, 180]")
        if not 0 <= self.jitter <= 0.5:
            raise ConfigError(f"data.augment.jitter is {self.jitter}; expected a value in [0, 0.5]")
        if self.jitter and self.photometric:
            raise ConfigError("data.augment.jitter replaces photometric; set data.augment.photometric to false")
        if not 0 <= self.noise <= 64:
            raise ConfigError(f"data.augment.noise is {self.noise}; expected levels in [0, 64]")
        for name in ("flip", "class_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.augment.{name} is {getattr(self, name)}; expected a value in [0, 1]")


def build_augment(config: AugmentConfig, *, still: bool = False, offsets: Sequence[int] | None = None) -> Augment:
    """Return the function that changes one unbatched clip at random, and always in the same way for the same dice.

    It takes frames uint8 [T, 3, H, W] of any size and returns them, their labels and numbers at the crop's size.

    Args:
        config: what to change, and how much.
        still: also move and light the frames along a smooth random camera path; what it shows from outside the
            frame is a mirror image with label IGNORE.
        offsets: the T frames' times on that path, in frames from the target; None is one frame apart, target last.
    """
    return _Augment(config, still, None if offsets is None else tuple(offsets))


@dataclass(frozen=True)
class _Augment:
    config: AugmentConfig
    still: bool
    offsets: tuple[int, ...] | None

    def __call__(self, clip: Clip, generator: torch.Generator) -> Clip:
        config, (count, _, height, width) = self.config, clip.frames.shape
        labels = clip.labels.numpy()  # [T, H, W]
        window = choose_window(config, labels[-1], generator)
        path, gains = np.tile(np.eye(3), (count, 1, 1)), np.ones(count)
        if self.still:
            times = range(1 - count, 1) if self.offsets is None else self.offsets
            path, gains = camera_path(config.camera, times, (height, width), generator)
        colours = self._colours(count, generator)
        jitters = self._jitters(count, generator)
        noise = config.noise and config.noise * _uniform(generator)

        rows, columns = window.size
        frames_out = np.empty((count, 3, *config.crop), np.uint8)
        frames_out[:] = np.array(MEAN_COLOUR, np.uint8)[:, None, None]
        labels_out = np.full((count, *config.crop), IGNORE, np.uint8)
        seen = window.inside((height, width)) if config.rotate else True  # [rows, columns]
        for t in range(count):
            matrix = (path[t] @ window.matrix)[:2]
            image = cv2.merge(list(clip.frames[t].numpy()))  # [H, W, 3]
            image = _jitter(image, jitters[t])
            image = _warp(image, matrix, window.size, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101)
            image = _recolour(image, colours[t], gains[t])
            image = _add_noise(image, noise, generator).transpose(2, 0, 1)  # [3, rows, columns]
            border = cv2.BORDER_CONSTANT if self.still else cv2.BORDER_REPLICATE
            mask = _warp(labels[t], matrix, window.size, cv2.INTER_NEAREST, border)
            np.copyto(frames_out[t, :, :rows, :columns], image, where=seen)
            np.copyto(labels_out[t, :rows, :columns], mask, where=seen)
        return Clip(torch.from_numpy(frames_out), torch.from_numpy(labels_out), clip.index)

    def _colours(self, count: int, generator: torch.Generator) -> list[_Colours]:
        """Draw every frame's photometric change."""
        if not self.config.photometric:
            return [_Colours()] * count
        if self.config.photometric_per_frame:
            return [_draw_colours(generator) for _ in range(count)]
        return [_draw_colours(generator)] * count

    def _jitters(self, count: int, generator: torch.Generator) -> list[_Jitter]:
        """Draw every frame's jitter; an empty one changes nothing."""
        if not self.config.jitter:
            return [()] * count
        changed = 1 if self.config.jitter_frames == "target" else count
        drawn = [_draw_jitter(self.config.jitter, generator) for _ in range(changed)]
        return [()] * (count - changed) + drawn


# ---- geometry ----------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Where a crop lies in its frame."""

    matrix: NDArray[np.float64]
    """[3, 3] from (x, y, 1) of a pixel of the crop to that of the frame."""
    size: tuple[int, int]
    """Rows and columns of the crop that the frame fills, from its upper left corner; the rest is padding."""

    def inside(self, frame: tuple[int, int]) -> NDArray[np.bool_]:
        """Return where the crop shows a frame of this height and width: [rows, columns]; a turned one has corners."""
        there = np.zeros(frame, np.uint8)
        return _warp(there, self.matrix[:2], self.size, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) != IGNORE


def choose_window(config: AugmentConfig, labels: NDArray[np.uint8], generator: torch.Generator) -> Window:
    """Draw scale, turn, crop position and flip, for labels uint8 [H, W] of the target frame."""
    height, width = labels.shape
    base, (low, high) = config.base_size or (height, width), config.scale
    scale = 1 / _uniform(generator, 1 / high, 1 / low) if config.crop_first else _uniform(generator, low, high)
    factor = min(max(base) / max(height, width), min(base) / min(height, width)) * scale
    resized = max(1, round(height * factor)), max(1, round(width * factor))
    size = min(resized[0], config.crop[0]), min(resized[1], config.crop[1])
    dy, dx = height / resized[0], width / resized[1]  # frame pixels a crop pixel
    turn = np.eye(3)
    if config.rotate:
        angle = math.radians(_uniform(generator, -config.rotate, config.rotate))
        turn = _turn(angle, (height, width), aspect=dx / dy)
        if config.class_max < 1:  # the crop's mixture is that of the turned frame
            labels = _warp(labels, turn[:2], (height, width), cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)

    top = left = 0
    for u, v in torch.rand(CROP_DRAWS, 2, generator=generator).tolist():
        top, left = int(u * (resized[0] - size[0] + 1)), int(v * (resized[1] - size[1] + 1))
        below = slice(int(top * dy), math.ceil((top + size[0]) * dy))
        if is_mixed(labels[below, int(left * dx) : math.ceil((left + size[1]) * dx)], config.class_max):
            break
    # the centre of pixel 0 of the resized frame lies at (0 + 0.5) * step - 0.5 of the frame
    y, x = (top + 0.5) * dy - 0.5, (left + 0.5) * dx - 0.5
    if _uniform(generator) < config.flip:
        x, dx = x + dx * (size[1] - 1), -dx
    return Window(turn @ np.array([[dx, 0, x], [0, dy, y], [0, 0, 1]]), size)


def _turn(angle: float, size: tuple[int, int], *, aspect: float) -> NDArray[np.float64]:
    """Return [3, 3], a turn about the middle of a frame; `aspect` is the width of its pixels over their height."""
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    cosine, right, down = math.cos(angle), aspect * math.sin(angle), math.sin(angle) / aspect
    return np.array(
        [[cosine, -right, x - cosine * x + right * y], [down, cosine, y - down * x - cosine * y], [0, 0, 1]]
    )


def is_mixed(labels: NDArray[np.uint8], class_max: float) -> bool:
    """Return whether labels uint8 [h, w] show two classes at least, none with `class_max` of the labelled pixels."""
    if class_max >= 1:
        return True
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()  # [256]
    counts = np.delete(counts, IGNORE)
    return bool((counts > 0).sum() > 1 and counts.max() < class_max * counts.sum())


def camera_path(
    config: CameraConfig, times: Sequence[int], size: tuple[int, int], generator: torch.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a smooth camera path over a frame.

    Args:
        config: bounds on its speed.
        times: T times in frames; at time 0 the camera shows the frame itself.
        size: height and width of the frame, in pixels.
        generator: the dice.

    Returns:
        float64 [T, 3, 3] from (x, y, 1) of the frame at time 0 to the pixel seen there at each time, and float64 [T]
        factors of brightness.
    """
    height, width = size
    calm = _uniform(generator)
    limits = (config.shift * width, config.shift * width / 2, config.zoom, math.radians(config.turn), config.light)
    x, y, zoom, turn, light = (_drift(calm * limit, times, config.period, generator) for limit in limits)
    centre_x, centre_y = width * _uniform(generator, 0.25, 0.75), height * _uniform(generator, 0.25, 0.75)
    cosine, sine = np.exp(zoom) * np.cos(turn), np.exp(zoom) * np.sin(turn)
    matrices = np.zeros((len(times), 3, 3))
    # turn and scale about the centre, then shift
    matrices[:, 0] = np.stack([cosine, -sine, centre_x - cosine * centre_x + sine * centre_y + x], axis=1)
    matrices[:, 1] = np.stack([sine, cosine, centre_y - sine * centre_x - cosine * centre_y + y], axis=1)
    matrices[:, 2, 2] = 1
    return matrices, np.exp(light)


def _drift(
    limit: float, times: Sequence[int], period: tuple[float, float], generator: torch.Generator
) -> NDArray[np.float64]:
    """Draw a smooth float64 [T] path, 0 at time 0: the integral of rate * (1 - sway + sway * cos), |rate| <= limit."""
    rate, sway = _uniform(generator, -limit, limit), _uniform(generator)
    phase, speed = _uniform(generator, 0, 2 * math.pi), 2 * math.pi / _uniform(generator, *period)
    t = np.array(times, np.float64)
    return rate * ((1 - sway) * t + sway * (np.sin(speed * t + phase) - math.sin(phase)) / speed)


def _warp(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int], filter_: int, border: int
) -> NDArray[np.uint8]:
    """Sample uint8 [H, W] or [H, W, 3] at the frame pixels of a crop of `size` rows and columns."""
    flags = filter_ | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=border, borderValue=IGNORE)
    return np.asarray(warped, np.uint8)


# ---- colours -----------------------------------------------------------------------------------------------------


class _Colours(NamedTuple):
    """Changes of a frame's colours; the defaults change nothing."""

    brightness: float = 0.0
    """Added to 0..255."""
    contrast: float = 1.0
    """Factor of R, G and B."""
    contrast_first: bool = True
    """Whether contrast changes before saturation and hue, or after."""
    saturation: float = 1.0
    """Factor of the saturation."""
    hue: int = 0
    """Added to the hue, in units of 2 degrees."""


_Jitter = tuple[tuple[str, float], ...]
"""Changes of a frame's colours in their order: brightness, contrast or saturation by a factor, hue by a share."""


def _draw_colours(generator: torch.Generator) -> _Colours:
    def maybe(low: float, high: float, neutral: float) -> float:
        drawn, coin = _uniform(generator, low, high), _uniform(generator) < 0.5
        return drawn if coin else neutral

    return _Colours(
        brightness=maybe(-32, 32, 0),
        contrast=maybe(0.5, 1.5, 1),
        contrast_first=_uniform(generator) < 0.5,
        saturation=maybe(0.5, 1.5, 1),
        hue=round(maybe(-18, 18, 0)),
    )


def _recolour(image: NDArray[np.uint8], colours: _Colours, gain: float) -> NDArray[np.uint8]:
    """Change uint8 [h, w, 3] RGB: light, brightness, contrast, saturation and hue, contrast; clipped after each."""
    levels = np.arange(256, dtype=np.float32)
    table = np.clip(np.clip(levels * gain, 0, 255) + colours.brightness, 0, 255)
    if colours.contrast_first:
        table = np.clip(table * colours.contrast, 0, 255)
    image = _look_up(image, table)
    image = _change_hsv(image, colours.saturation, colours.hue)
    return image if colours.contrast_first else _look_up(image, np.clip(levels * colours.contrast, 0, 255))


def _change_hsv(image: NDArray[np.uint8], factor: float, shift: int) -> NDArray[np.uint8]:
    """Change uint8 [h, w, 3] RGB: the saturation by a factor, the hue by a shift in units of 2 degrees."""
    if factor == 1 and not shift:
        return image
    levels = np.arange(256, dtype=np.float32)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    hue = _look_up(np.asarray(hue, np.uint8), (levels + shift) % 180)
    saturation = _look_up(np.asarray(saturation, np.uint8), np.clip(levels * factor, 0, 255))
    return np.asarray(cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB), np.uint8)


def _draw_jitter(amount: float, generator: torch.Generator) -> _Jitter:
    drawn = [(kind, _uniform(generator, 1 - amount, 1 + amount)) for kind in ("brightness", "contrast", "saturation")]
    drawn.append(("hue", _uniform(generator, -amount, amount)))
    return tuple(drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist())


def _jitter(image: NDArray[np.uint8], changes: _Jitter) -> NDArray[np.uint8]:
    """Change uint8 [h, w, 3] RGB; as in torchvision, contrast is about the image's mean, saturation about its grey."""
    levels = np.arange(256, dtype=np.float32)
    for kind, amount in changes:
        if kind == "brightness":
            image = _look_up(image, np.clip(levels * amount, 0, 255))
        elif kind == "contrast":
            mean = round(float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()))
            image = _look_up(image, np.clip(mean + (levels - mean) * amount, 0, 255))
        elif kind == "saturation":
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = np.asarray(cv2.addWeighted(image, amount, grey, 1 - amount, 0), np.uint8)
        else:
            image = _change_hsv(image, 1.0, round(amount * 180))
    return image


def _add_noise(image: NDArray[np.uint8], deviation: float, generator: torch.Generator) -> NDArray[np.uint8]:
    """Add normal noise to uint8 [h, w, 3]; its deviation is in levels."""
    if not deviation:
        return image
    noise = torch.randn(image.shape, generator=generator).numpy() * np.float32(deviation)
    return np.asarray(np.rint(np.clip(image + noise, 0, 255)), np.uint8)


def _look_up(image: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Replace each value of `image` by its entry in `table`, float [256] in 0..255."""
    return np.asarray(cv2.LUT(image, np.rint(table).astype(np.uint8)), np.uint8)


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
