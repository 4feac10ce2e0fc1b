"""One street video: its street, light and paint drawn from a seed, and its blocks, built when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from steadyseg.data.blocks import belt_block, belts, street_block
from steadyseg.data.renderer import Paint, View
from steadyseg.data.scene import (
    BLOCK,
    BUILDING,
    ENDLESS,
    SKY,
    TREE,
    Block,
    Builder,
    Light,
    Look,
    Street,
    camera_at,
    join,
)
from steadyseg.data.textures import markings, noise, skyline
from steadyseg.data.textures import sky as sky_texture

_BEHIND, _AHEAD = 8.0, 150.0
"""How far behind and ahead of the camera blocks are drawn, in metres."""


class Finish(NamedTuple):
    """What the lens and the camera do to the picture."""

    blur: float
    grain: float
    quality: int
    """Of the JPEG the picture goes through; 0 for none."""
    exposure: float
    contrast: float
    """Steepness of the tone curve in the middle."""
    flicker: float
    fall_off: float


class Video:
    """One video: its street, what it is painted with, and its blocks as far as they were needed.

    Args:
        split: number of the split.
        number: number of the video.
    """

    def __init__(self, split: int, number: int) -> None:
        self.key = (split, number)
        rng = self._rng(0)
        self.street = draw_street(rng, self.key)
        self.paint = draw_paint(rng, self.street)
        self.finish = Finish(
            blur=rng.uniform(0.3, 0.6),
            grain=rng.uniform(0.8, 4.0),
            quality=int(rng.choice([0, 75, 88, 94])),
            exposure=float(np.exp(rng.normal(0, 0.18))),
            contrast=rng.uniform(1.0, 1.35),
            flicker=rng.uniform(0.01, 0.08),
            fall_off=rng.uniform(0, 0.2),
        )
        self.backdrop = draw_backdrop(rng, self.street)
        self.block = lru_cache(maxsize=64)(self._block)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([20, *self.key, *key])

    def _block(self, belt: int, number: int) -> Block:
        """Return block `number` of the street itself (belt -1) or of a moving belt."""
        rng = self._rng(1, belt + 1, number + 1_000_000)
        return street_block(self.street, number, rng) if belt < 0 else belt_block(self.street, belt, number, rng)

    def numbers(self, time: float) -> list[tuple[int, int]]:
        """Return belt and number of the blocks that are near the camera at `time`."""
        middle = self.street.start + self.street.speed * time
        found = []
        for belt, speed in enumerate([0.0, *belts(self.street)], -1):
            place = middle - speed * time
            ahead = _AHEAD if belt < 2 else 80.0
            found += [(belt, n) for n in range(int((place - _BEHIND) // BLOCK), int((place + ahead) // BLOCK) + 1)]
        return found

    def views(self, times: Sequence[float], size: tuple[int, int]) -> list[View]:
        """Return the views of several moments on one common block, so that a surface keeps its number."""
        wanted = [set(self.numbers(time)) for time in times]
        keys = sorted(set().union(*wanted))
        blocks = [self.block(*key) for key in keys]
        scene = join([self.backdrop, *blocks])
        street = [(n, block) for (belt, n), block in zip(keys, blocks, strict=True) if belt < 0]
        tables = np.concatenate([block.ground for _, block in street if block.ground is not None], -1)
        sizes = [len(self.backdrop.labels), *(len(block.labels) for block in blocks)]
        return [
            View(
                scene,
                backdrop=sizes[0],
                drawn=np.repeat([True, *(key in seen for key in keys)], sizes),
                street=self.street,
                camera=camera_at(self.street, time, size),
                paint=self.paint,
                tables=(street[0][0] * BLOCK, tables),
            )
            for seen, time in zip(wanted, times, strict=True)
        ]


def draw_light(rng: np.random.Generator) -> Light:
    """Draw the light and the weather: sunny, overcast, against the light, or dusk."""
    kind = int(rng.choice(4, p=(0.4, 0.2, 0.28, 0.12)))
    level = rng.uniform(*((0.95, 1.3), (0.65, 0.95), (0.38, 0.66), (0.2, 0.42))[kind])
    other = level * rng.uniform(*((0.3, 0.6), (0.9, 1.1), (0.7, 1.9), (0.9, 1.1))[kind])
    side = int(rng.choice([-1, 1]))
    zenith = ((96, 146, 214), (222, 228, 234), (246, 250, 254), (112, 124, 140))[kind]
    horizon = ((226, 236, 246), (248, 249, 250), (255, 255, 255), (180, 186, 192))[kind]
    pale = rng.uniform(0, 1.1) if kind == 0 else 0.0
    warm = rng.normal(-0.015, 0.03)
    return Light(
        left=level if side > 0 else other,
        right=other if side > 0 else level,
        ahead=level * rng.uniform(*((0.45, 0.9), (0.9, 1.1), (0.85, 1.1), (0.85, 1.05))[kind]),
        ground=rng.uniform(*((0.8, 1.1), (0.7, 0.95), (0.55, 0.85), (0.28, 0.5))[kind]),
        zenith=(zenith[0] + pale * 130, zenith[1] + pale * 90, zenith[2] + pale * 36),
        horizon=horizon,
        cloud=rng.uniform(*((0.0, 0.7), (0.3, 1.0), (0.0, 0.5), (0.4, 1.0))[kind]),
        haze=(horizon[0] * 0.88, horizon[1] * 0.88, horizon[2] * 0.9),
        haze_length=rng.uniform(160, 700),
        gamma=rng.uniform(0.85, 1.2),
        balance=(1 + warm, 1.0, 1 - warm),
        sun=side * rng.uniform(0.3, 1.4) if kind == 0 else 0.0,
    )


def draw_street(rng: np.random.Generator, key: tuple[int, int]) -> Street:
    """Draw the constants of a video."""
    style = int(rng.choice(4, p=(0.54, 0.17, 0.18, 0.11)))
    own = int(rng.choice([-1, 1], p=(0.65, 0.35)))
    lanes = int(rng.choice([1, 2], p=(0.86, 0.14)))
    lane = rng.uniform(2.7, 3.6)
    parking = (2.1 if rng.random() < 0.3 else 0.0, 2.1 if rng.random() < 0.3 else 0.0)
    half = lanes * lane + max(parking)
    grassy = rng.random(2) < (0.06, 0.4, 0.2, 0.5)[style]
    verge = (rng.uniform(1.2, 3.0) * float(grassy[0]), rng.uniform(1.2, 3.0) * float(grassy[1]))
    pavement = (rng.uniform(1.8, 5.2) + verge[0], rng.uniform(1.8, 5.2) + verge[1])
    speed = 0.0 if rng.random() < 0.12 else rng.uniform(2, 12)
    height = rng.uniform(1.2, 1.6) if rng.random() < 0.85 else rng.uniform(1.6, 2.3)
    across = own * lane * (0.5 + (rng.integers(lanes) if lanes > 1 else 0)) + rng.normal(0, 0.25)
    return Street(
        key=key,
        style=style,
        own=own,
        lanes=lanes,
        lane=lane,
        half=half,
        parking=parking,
        pavement=pavement,
        verge=verge,
        is_winter=bool(rng.random() < 0.55),
        bend=(rng.uniform(0, 7), rng.uniform(160, 340), rng.uniform(0, 6.28)),
        speed=speed,
        start=rng.uniform(200, 1200),
        camera=(height, rng.uniform(1.05, 1.65), rng.uniform(0.42, 0.58), across),
        sway=(rng.uniform(0, 6.28), rng.uniform(0, 6.28), rng.uniform(0, 6.28)),
        traffic=rng.uniform(0.05, 0.65),
        crowd=rng.uniform(0.3, 3.0) if style in (0, 2) else rng.uniform(0.2, 1.2),
        bicycles=rng.uniform(0.2, 1.4),
        tall=rng.uniform(0.9, 1.35),
        light=draw_light(rng),
    )


def draw_paint(rng: np.random.Generator, street: Street) -> Paint:
    """Draw the colours of the ground and the road markings."""
    grey = rng.uniform(88, 132)
    road = grey * (1 + rng.normal(0, 0.025, 3))
    pavement = rng.uniform(112, 168) * (1 + rng.normal(0, 0.02, 3)) * np.array([1.03, 1.0, 0.95])
    grass = np.array(((92, 108, 58), (116, 120, 66), (110, 98, 70))[rng.integers(3)]) * rng.uniform(0.8, 1.15)
    stencil = markings(rng, street.half, lanes=street.lanes, yellow=bool(rng.random() < 0.35))
    patches = np.clip(128 + 44 * noise(rng, (256, 128), 16, 4), 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 7)):
        top, left = rng.integers(0, 240), rng.integers(0, 120)
        tall, wide = rng.integers(2, 16), rng.integers(2, 8)
        patches[top : top + tall, left : left + wide] = rng.integers(50, 150)
    return Paint(
        colours=np.stack((road, pavement, grass)).astype(np.float32),
        contrast=np.array((rng.uniform(0.004, 0.009), rng.uniform(0.004, 0.008), 0.008), np.float32),
        stencil=stencil,
        patches=patches,
    )


def draw_backdrop(rng: np.random.Generator, street: Street) -> Block:
    """Return the sky, a far row of roofs and a far tree line, endlessly far away."""
    b = Builder(street, rng)
    light = street.light
    actor = b.actor(0, 0, kind=ENDLESS)
    dome = sky_texture(rng, light.zenith, light.horizon, light.cloud)
    b.surface(actor, ((-2.2, -1.3, 1), (4.4, 0, 0), (0, 1.45, 0)), Look(dome, SKY))
    for label, chance, tall in ((BUILDING, 0.75, 0.11), (TREE, 0.75, 0.08)):
        if rng.random() < chance:
            high = tall * rng.uniform(0.5, 1.4)
            tint = 0.45 * light.ahead * np.ones(3) + 0.3 * np.array(light.haze) / 128
            picture = skyline(rng, trees=label == TREE)
            b.surface(actor, ((-2.2, -high, 1), (4.4, 0, 0), (0, high + 0.006, 0)), Look(picture, label, tint))
    return b.build()
