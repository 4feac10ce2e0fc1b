"""Procedural textures of the street scenes: noise, ground tiles, sky, walls with windows, roofs, fences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

Array = np.ndarray
Colour = tuple[float, float, float]

TEXELS = 32
"""Texels per metre of walls."""

_WALLS: tuple[Colour, ...] = (
    (132, 84, 66),
    (166, 146, 112),
    (150, 128, 98),
    (214, 208, 194),
    (196, 186, 160),
    (148, 146, 142),
    (96, 74, 64),
    (176, 120, 92),
    (190, 196, 200),
    (122, 118, 108),
)


class Texture:
    """An RGBA image and its smaller versions, halved in width and in height separately.

    Each version has a border of one repeated texel, so that neighbouring surfaces leave no seam.

    Args:
        image: uint8 [h, w, 4] RGB and opacity.
        metres: width and height of what it shows.
    """

    def __init__(self, image: Array, metres: tuple[float, float] = (1.0, 1.0)) -> None:
        self.image = image
        self.metres = metres
        self._levels: dict[tuple[int, int], Array] = {}

    def level(self, across: int, down: int) -> Array:
        """Return the texture halved `across` times in width and `down` times in height, uint8 [h+2, w+2, 4]."""
        key = (across, down)
        if key not in self._levels:
            height, width = self.image.shape[:2]
            size = (max(1, width >> across), max(1, height >> down))
            image = (
                self.image if size == (width, height) else cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
            )
            self._levels[key] = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        return self._levels[key]


def generator(*key: int) -> np.random.Generator:
    """Return a generator that depends on the non-negative numbers of `key` alone."""
    return np.random.default_rng(list(key))


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: float, octaves: int = 4) -> Array:
    """Return smooth noise, float32 [h, w], about -1..1, with `cells` bumps across the width in the coarsest octave."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        across = max(2, int(cells * 2**octave))
        down = max(2, round(across * height / width))
        grid = rng.random((min(down, height), min(across, width)), dtype=np.float32) * 2 - 1
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total


def rgba(colour: Array, alpha: Array | float = 255) -> Array:
    """Join a colour image [h, w, 3] and an opacity 0..255 ([h, w] or one number) to uint8 [h, w, 4]."""
    image = np.empty((*colour.shape[:2], 4), np.uint8)
    image[..., :3] = np.clip(colour, 0, 255)
    image[..., 3] = np.clip(alpha, 0, 255)
    return image


def box(image: Array, area: tuple[float, float, float, float], colour: Sequence[float]) -> None:
    """Fill a rectangle of `image` in place; `area` is left, top, right, bottom in texels."""
    left, top, right, bottom = (max(0, round(edge)) for edge in area)
    image[top:bottom, left:right] = np.clip(colour, 0, 255)


@lru_cache(maxsize=2)
def ground_tile() -> Array:
    """Return 8 m x 8 m of ground noise that repeats, uint8 [512, 512, 3] of asphalt, slabs, grass."""
    rng, size = generator(11), 512
    fine = rng.normal(0, 1, (size, size)).astype(np.float32)
    grain = cv2.GaussianBlur(np.tile(fine, (3, 3)), (0, 0), 1.0)[size : 2 * size, size : 2 * size] * 2
    soft = cv2.GaussianBlur(np.tile(fine, (3, 3)), (0, 0), 24)[size : 2 * size, size : 2 * size] * 40
    asphalt = 128 + 9 * grain + 7 * soft
    rows, columns = np.mgrid[0:size, 0:size]
    joints = ((rows % 64 < 2) | ((columns + 32 * (rows // 64 % 2)) % 64 < 2)).astype(np.float32)
    tone = np.kron(rng.normal(0, 7, (8, 8)), np.ones((64, 64)))
    slabs = 130 + 5 * grain + tone - 30 * joints + 4 * soft
    grass = 128 + 26 * grain + 14 * soft
    return np.clip(np.stack((asphalt, slabs, grass), -1), 0, 255).astype(np.uint8)


def markings(rng: np.random.Generator, half: float, *, lanes: int, yellow: bool) -> Array:
    """Return 24 m of road paint, float32 [384, 2 * half * 16, 2]: opacity of white and of yellow paint.

    Args:
        rng: random numbers.
        half: half the width of the road in metres.
        lanes: lanes per direction.
        yellow: whether double yellow lines run along the kerb.
    """
    unit = 32
    width, period = int(2 * half * unit), 24 * unit
    paint = np.zeros((period, width, 2), np.float32)
    centre, line = width / 2, 0.055 * unit
    dash = rng.choice([2.0, 4.0, 6.0]) * unit
    gap = rng.choice([2.0, 4.0, 6.0]) * unit
    kind = rng.integers(4)
    lines = [(centre, kind)] + [(centre + side * half / lanes * unit, 0) for side in (-1, 1) if lanes > 1]
    for x, style in lines:
        starts = (0,) if style in (1, 2) else np.arange(0, period, period / max(1, round(period / (dash + gap))))
        for start in starts:
            stop = period if style in (1, 2) else start + dash
            for shift in (-0.12 * unit, 0.12 * unit) if style == 2 else (0.0,):
                paint[int(start) : int(stop), int(x + shift - line) : int(x + shift + line) + 1, 0] = 1
    if yellow:
        for edge in (0.3, 0.5):
            for x in (edge * unit, width - edge * unit):
                paint[:, int(x - line) : int(x + line) + 1, 1] = 1
    elif rng.random() < 0.4:
        for x in (0.25 * unit, width - 0.25 * unit):
            paint[:, int(x - line) : int(x + line) + 1, 0] = 1
    wear = np.clip(0.75 + 0.5 * noise(rng, (period, width), 12, 4), 0.15, 1)
    return cv2.resize(paint * wear[..., None], (width // 2, period // 2), interpolation=cv2.INTER_AREA)


def sky(rng: np.random.Generator, zenith: Colour, horizon: Colour, cloud: float) -> Texture:
    """Return the sky as seen on a plane in front: a gradient with clouds, more of them for `cloud` near 1."""
    height, width = 320, 640
    up = np.linspace(1, 0, height, dtype=np.float32)[:, None, None]
    base = np.array(horizon) * (1 - up**0.6) + np.array(zenith) * up**0.6
    puffs = cv2.resize(noise(rng, (height, width), 5, 5), (width, height)) + 1.6 * cloud - 0.9
    dark = rng.uniform(0.02, 0.2)
    cover = np.clip(puffs * 1.4, 0, 1)[..., None] * np.clip(1.2 - 0.4 * up, 0, 1)
    shade = np.clip(1.03 - dark * np.roll(np.clip(puffs, 0, 1.2), 6, 0), 0.5, 1)[..., None]
    white = np.array([250, 250, 251]) * 0.5 + np.array(horizon) * 0.5
    return Texture(rgba(base * (1 - cover) + white * shade * cover))


def skyline(rng: np.random.Generator, *, trees: bool) -> Texture:
    """Return a far tree line or a far row of roofs on a transparent ground."""
    height, width = 128, 1024
    rows = np.arange(height)[:, None]
    if trees:
        top = height * (0.45 - 0.22 * noise(rng, (1, width), 8, 1)[0] - 0.18 * noise(rng, (1, width), 60, 3)[0])
        colour = np.array([84, 92, 76]) + 22 * noise(rng, (height, width), 90, 3)[..., None]
    else:
        steps = rng.integers(14, 46, 64)
        level = np.repeat(rng.uniform(0.15, 0.75, 64), steps)[:width]
        top = height * np.pad(level, (0, width - len(level)), mode="edge")
        tone = np.repeat(rng.uniform(0.75, 1.2, 64), steps)[:width]
        tone = np.pad(tone, (0, width - len(tone)), mode="edge")
        colour = np.array([128, 116, 108]) * tone[None, :, None] + 10 * noise(rng, (height, width), 90, 3)[..., None]
    return Texture(rgba(colour, np.where(rows > top[None], 255.0, 0.0)))


def _wall(rng: np.random.Generator, height: int, width: int, colour: Colour, *, brick: bool) -> Array:
    """Return a plain wall, float32 [height, width, 3], with dirt, and courses where it is of brick."""
    tone = 1 + 0.05 * noise(rng, (height, width), 5, 4)
    tone *= 1 + rng.normal(0, 0.03, (height, width)).astype(np.float32)
    if brick:
        courses = rng.normal(0, rng.uniform(0.015, 0.075), ((height + 2) // 3, (width + 7) // 8)).astype(np.float32)
        tone *= 1 + np.kron(courses, np.ones((3, 8), np.float32))[:height, :width]
        tone[::3] *= 1.06
    tone *= np.linspace(1.02, 0.9, height, dtype=np.float32)[:, None]
    return (tone[..., None] * np.array(colour, np.float32)).astype(np.float32)


def _window(rng: np.random.Generator, wall: Array, area: tuple[float, float, float, float], frame: Colour) -> None:
    """Draw a window with frame, bars, sill and reflection into `wall` in place (see ``box``)."""
    left, top, right, bottom = area
    box(wall, (left - 2, top - 3, right + 2, top), (frame[0] * 0.8, frame[1] * 0.8, frame[2] * 0.8))
    box(wall, (left - 3, bottom, right + 3, bottom + 3), (frame[0] * 0.95, frame[1] * 0.95, frame[2] * 0.95))
    box(wall, (left - 1, top - 1, right + 1, bottom + 1), frame)
    glass = rng.uniform(28, 82) * np.array([0.9, 1.0, 1.08])
    box(wall, (left + 2, top + 2, right - 2, bottom - 2), tuple(glass))
    if rng.random() < 0.45:
        bright = tuple(glass + rng.uniform(30, 120))
        box(wall, (left + 2, top + 2, right - 2, top + rng.uniform(0.2, 0.7) * (bottom - top)), bright)
    middle = (left + right) / 2
    if right - left > 14:
        box(wall, (middle - 1, top, middle + 1, bottom), frame)
    box(wall, (left, (top + bottom) / 2 - 1, right, (top + bottom) / 2 + 1), frame)
    box(wall, (left + 2, top + 1, right - 2, top + 4), (22, 24, 26))


def _shop(rng: np.random.Generator, wall: Array, top: int) -> None:
    """Draw a shop front with glass, door, goods, fascia and lettering below row `top` of `wall` in place."""
    height, width = wall.shape[:2]
    paint = tuple(rng.uniform(20, 200, 3)) if rng.random() < 0.7 else (232.0, 230.0, 224.0)
    box(wall, (0, top, width, height), (paint[0] * 0.7, paint[1] * 0.7, paint[2] * 0.7))
    box(wall, (0, top, width, top + 20), paint)
    ink = 240.0 if sum(paint) < 380 else 30.0
    letters = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVW& "), rng.integers(5, 11)))
    face = np.clip(wall[top : top + 20], 0, 255).astype(np.uint8)
    cv2.putText(face, letters, (int(width * 0.2), 16), cv2.FONT_HERSHEY_DUPLEX, 0.5, (ink, ink, ink), 1, cv2.LINE_AA)
    wall[top : top + 20] = face
    panes = max(2, round(width / 60))
    for pane in range(panes):
        left, right = pane * width / panes + 4, (pane + 1) * width / panes - 4
        box(wall, (left, top + 24, right, height - 14), tuple(rng.uniform(26, 74) * np.array([1.0, 1.0, 1.02])))
        for _ in range(rng.integers(2, 9)):
            x, y = rng.uniform(left, right - 8), rng.uniform(top + 30, height - 26)
            box(
                wall, (x, y, min(right, x + rng.uniform(4, 16)), y + rng.uniform(4, 16)), tuple(rng.uniform(40, 220, 3))
            )
    if rng.random() < 0.3:
        awning = rng.uniform(60, 220, 3)
        for x in range(0, width, 16):
            box(wall, (x, top + 20, x + 8, top + 32), tuple(awning))
            box(wall, (x + 8, top + 20, x + 16, top + 32), (225, 222, 214))


@lru_cache(maxsize=160)
def facade(pool: int, variant: int) -> Texture:
    """Return a front of a house: `variant` chooses its kind, `pool` keeps the splits apart."""
    rng = generator(21, pool, variant)
    office = variant % 5 == 4
    floors = int(rng.choice([3, 4, 5, 6]) if office else rng.choice([2, 2, 2, 3, 3, 4]))
    storey = rng.uniform(2.7, 3.3)
    metres = (rng.uniform(6, 13), floors * storey + rng.uniform(0.3, 0.8))
    width, height = int(metres[0] * TEXELS), int(metres[1] * TEXELS)
    colour = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.85, 1.12) + rng.normal(0, 6, 3)
    wall = _wall(rng, height, width, tuple(colour), brick=rng.random() < 0.6)
    frame = (236.0, 234.0, 228.0) if rng.random() < 0.7 else tuple(rng.uniform(30, 90, 3))
    columns = max(2, round(metres[0] / rng.uniform(1.7, 3.2)))
    span, rise = width / columns, storey * TEXELS
    if office and rng.random() < 0.6:
        wide, tall = 0.96, rng.uniform(0.45, 0.7)
    else:
        wide, tall = rng.uniform(0.34, 0.6), rng.uniform(0.42, 0.6)
    shop = not office and rng.random() < 0.5
    for floor in range(floors):
        ground = floor == floors - 1
        top = height - (floors - floor) * rise
        if ground and shop:
            _shop(rng, wall, int(top + 0.08 * rise))
            continue
        for column in range(columns):
            middle = (column + 0.5) * span
            area = (middle - wide * span / 2, top + 0.22 * rise, middle + wide * span / 2, top + (0.22 + tall) * rise)
            if ground and column == variant % columns and not office:
                door = tuple(rng.uniform(15, 130, 3))
                box(wall, (middle - 18, height - 2.3 * TEXELS, middle + 18, height), frame)
                box(wall, (middle - 15, height - 2.2 * TEXELS, middle + 15, height), door)
            else:
                _window(rng, wall, area, frame)
        if rng.random() < 0.35:
            box(wall, (0, top + 1, width, top + 5), tuple(colour * 1.15))
    box(wall, (0, 0, width, 5), tuple(colour * 0.6))
    box(wall, (0, 5, width, 9), tuple(np.minimum(colour * 1.2, 245)))
    box(wall, (0, 9, width, 14), tuple(colour * 0.72))
    for x in (2, width - 5):
        box(wall, (x, 8, x + 3, height), tuple(colour * 0.55))
    return Texture(rgba(wall), metres)


@lru_cache(maxsize=64)
def end_wall(pool: int, variant: int, *, gable: bool) -> Texture:
    """Return the side of a house, 9 m x 9 m; with a triangular top third where `gable`."""
    rng = generator(22, pool, variant, int(gable))
    size = 9 * TEXELS
    colour = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.85, 1.1)
    wall = _wall(rng, size, size, tuple(colour), brick=rng.random() < 0.7)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0.1, 0.8) * size, rng.uniform(0.35, 0.75) * size
        _window(rng, wall, (x, y, x + 30, y + 42), (232.0, 230.0, 224.0))
    alpha = np.full((size, size), 255, np.uint8)
    if gable:
        rows, columns = np.mgrid[0:size, 0:size] / size
        alpha[rows < 0.3 * np.abs(columns - 0.5) * 2] = 0
    return Texture(rgba(wall, alpha), (9.0, 9.0))


@lru_cache(maxsize=16)
def roof(variant: int) -> Texture:
    """Return a tiled roof, 8 m x 4 m."""
    rng = generator(23, variant)
    colour = ((112, 74, 62), (84, 82, 86), (98, 86, 76), (140, 92, 70))[variant % 4]
    image = _wall(rng, 128, 256, colour, brick=True)
    image[::6] *= 0.78
    return Texture(rgba(image), (8.0, 4.0))


@lru_cache(maxsize=32)
def boundary(kind: str, variant: int) -> Texture:
    """Return 4 m of what stands along a pavement: "railing", "planks", "wall" or "hedge"."""
    rng = generator(24, len(kind), variant)
    height, width = 64, 256
    rows, columns = np.mgrid[0:height, 0:width]
    if kind == "railing":
        tone = (26, 28, 30) if variant % 3 else (150, 154, 156)
        bars = (columns % 10 < 3) | (rows < 5) | (rows > height - 9) & (rows < height - 4)
        colour = np.broadcast_to(np.array(tone), (height, width, 3)) + rng.normal(0, 5, (height, width, 1))
        return Texture(rgba(colour, np.where(bars, 255, 138 if variant % 4 else 0)), (4.0, 1.1))
    if kind == "planks":
        wood = np.array(((126, 96, 70), (98, 84, 70), (150, 150, 146), (74, 90, 78))[variant % 4])
        shade = 1 + 0.1 * np.repeat(rng.normal(0, 1, 16), 16)[None] + 0.06 * noise(rng, (height, width), 12, 4)
        shade = shade * np.where(columns % 16 < 2, 0.55, 1)
        return Texture(rgba(shade[..., None] * wood), (4.0, 1.7))
    if kind == "wall":
        image = _wall(rng, height, width, _WALLS[variant % len(_WALLS)], brick=True)
        image[:6] *= 1.15
        return Texture(rgba(image), (4.0, 1.0))
    leaves = noise(rng, (height, width), 40, 3) * 0.35 + rng.normal(0, 0.22, (height, width))
    green = np.array([62, 78, 44]) * rng.uniform(0.7, 1.2) + rng.normal(0, 6, 3)
    colour = green * (1.05 + leaves - 0.5 * rows / height)[..., None]
    top = 9 + 7 * noise(rng, (1, width), 30, 3)[0]
    return Texture(rgba(colour, np.where(rows > top[None], 255, 0)), (4.0, 1.5))
