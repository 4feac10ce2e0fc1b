"""The values a street scene is made of: the street, its camera, and blocks of surfaces that move in closed form.

World axes are x to the right, y down (0 is the ground) and z along the street, in metres; time is in seconds.
A place in the street is (s, z): s is the distance to the right of the middle of the road, which bends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from steadyseg.data.textures import Array, Texture

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
SHADE = 255
"""Label of a surface that only darkens what it lies on."""

PLAIN, ZEBRA, STOP, ZIGZAG, HATCH = range(5)
"""Road markings of a ground table: those of the whole street, or special ones."""

FIXED, HEADED, FACING, ENDLESS = range(4)
"""How an actor stands: in world axes, turned with the street, turned to the camera, or endlessly far away."""

BLOCK = 48.0
"""Length of a block of the street in metres."""
STEP = 0.025
"""Length of one entry of a block's ground tables in metres."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """The light of a video; factors on colours."""

    left: float
    right: float
    ahead: float
    ground: float
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    cloud: float
    haze: tuple[float, float, float]
    haze_length: float
    gamma: float
    balance: tuple[float, float, float]
    sun: float
    """Metres of shadow across the street per metre of height; 0 without sun, the sign is the side."""


@dataclass(frozen=True, kw_only=True)
class Street:
    """The constants of one video, all drawn from its seed."""

    key: tuple[int, int]
    """Number of the split and number of the video."""
    style: int
    """0 town, 1 suburb, 2 offices, 3 parks."""
    own: int
    """Side of the street the camera drives on: -1 left, 1 right."""
    lanes: int
    lane: float
    half: float
    parking: tuple[float, float]
    pavement: tuple[float, float]
    verge: tuple[float, float]
    """Width of the grass between kerb and pavement, left and right."""
    is_winter: bool
    """Whether most trees are bare."""
    bend: tuple[float, float, float]
    speed: float
    start: float
    camera: tuple[float, float, float, float]
    """Height in metres, focal length and row of the horizon in heights of the picture, place s across the street."""
    sway: tuple[float, float, float]
    """Phases of the camera's sway."""
    traffic: float
    crowd: float
    bicycles: float
    tall: float
    light: Light

    def centre(self, z: Any) -> Any:
        """Return x of the middle of the road at `z`, a number or an array."""
        return self.bend[0] * np.sin(z * (2 * np.pi / self.bend[1]) + self.bend[2])

    def slope(self, z: Any) -> Any:
        """Return the derivative of ``centre``."""
        wave = 2 * np.pi / self.bend[1]
        return self.bend[0] * wave * np.cos(z * wave + self.bend[2])


class Camera(NamedTuple):
    """Where the camera is and where it looks."""

    place: Array
    """float64 [3] world position."""
    turn: Array
    """float64 [3, 3]; rows are the camera's right, down and forward axes in the world."""
    lens: Array
    """float64 [3, 3] from camera axes to pixels."""
    z: float


def camera_at(street: Street, time: float, size: tuple[int, int]) -> Camera:
    """Return the camera of `street` at `time` seconds for frames of `size` (height, width)."""
    height, focal, horizon, across = street.camera
    one, two, three = street.sway
    z = street.start + street.speed * time + 0.25 * np.sin(0.7 * time + two)
    s = across + 0.18 * np.sin(0.5 * time + one)
    yaw = np.arctan(street.slope(z + 9)) + 0.03 * np.sin(0.45 * time + two) + 0.008 * np.sin(2.1 * time + three)
    pitch = 0.006 * np.sin(1.3 * time + three) + 0.003 * np.sin(5.1 * time + one)
    roll = 0.007 * np.sin(0.8 * time + one)
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    down = np.cross(forward, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    rows, columns = size
    lens = np.array([[focal * rows, 0, (columns - 1) / 2], [0, focal * rows, horizon * rows], [0, 0, 1.0]])
    bounce = 0.012 * np.sin(6.3 * time + two)
    place = np.array([street.centre(z) + s, -height + bounce, z])
    return Camera(place, np.stack((right, down, forward)), lens, float(z))


@dataclass(frozen=True)
class Block:
    """Actors and their surfaces, as arrays; A actors, N surfaces. A surface is a flat parallelogram with a texture."""

    actors: Array
    """float64 [A, 8]: s, z at time 0, speed along z, heading, kind; amplitude, frequency, phase of its sway in s."""
    owner: Array
    """int64 [N] actor of each surface."""
    corners: Array
    """float64 [N, 3, 3]: top left corner and the vectors along the top and down the left side, in the actor's axes."""
    swing: Array
    """float64 [N, 6]: amplitude (radians), frequency, phase and the point (x, y, z) the surface swings about."""
    order: Array
    """float64 [N, 2]: z of painting relative to the actor's, and the order among surfaces of equal z."""
    tint: Array
    """float32 [N, 3] factor on the texture's colours."""
    labels: Array
    """uint8 [N]."""
    reach: Array
    """float64 [N] distance in metres up to which a surface is drawn."""
    textures: tuple[Texture, ...]
    ground: Array | None = None
    """float32 [2, 7, n] for the left and right side, per STEP of z: distance of the kerb from the middle, end of the
    pavement, class beyond it, height of what throws a shadow, special markings (PLAIN to HATCH), half the width of a
    traffic island, and width of the grass along the kerb; None where the block is not the street itself."""


class Look(NamedTuple):
    """How a surface looks and how it is painted."""

    texture: Texture
    label: int
    tint: Sequence[float] | Array | float = 1.0
    """Factor on the texture's colours."""
    order: tuple[float, float] = (0.0, 0.0)
    """See ``Block.order``."""
    swing: tuple[float, ...] = (0, 0, 0, 0, 0, 0)
    """See ``Block.swing``."""
    reach: float = 130.0
    """Distance in metres up to which it is drawn."""


Vector = Sequence[float] | Array


@dataclass
class Builder:
    """Collects the actors and surfaces of one block."""

    street: Street
    rng: np.random.Generator
    actors: list[tuple[float, ...]] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)
    textures: list[Texture] = field(default_factory=list)
    shift: tuple[float, float] = (0.0, 0.0)
    """Added to the order of every new surface."""

    def actor(
        self, s: float, z: float, *, kind: int = HEADED, heading: float = 0, speed: float = 0, sway: Vector = (0, 0, 0)
    ) -> int:
        """Add an actor (see ``Block.actors``) and return its number."""
        self.actors.append((s, z, speed, heading, kind, *sway))
        return len(self.actors) - 1

    def surface(self, actor: int, corners: tuple[Vector, Vector, Vector], look: Look) -> None:
        """Add a surface with its `corners` (see ``Block.corners``) to `actor`."""
        tint = (look.tint,) * 3 if isinstance(look.tint, float | int) else look.tint
        order = (look.order[0] + self.shift[0], look.order[1] + self.shift[1])
        self.rows.append(
            (actor, *corners[0], *corners[1], *corners[2], *look.swing, *order, *tint, look.label, look.reach)
        )
        self.textures.append(look.texture)

    def upright(self, actor: int, area: tuple[float, float, float, float], look: Look) -> None:
        """Add an upright surface facing back along the street: `area` is its left x, top y, width and height."""
        x, y, width, height = area
        self.surface(actor, ((x, y, 0), (width, 0, 0), (0, height, 0)), look)

    def build(self, ground: Array | None = None) -> Block:
        """Return the block."""
        rows = np.array(self.rows, np.float64).reshape(-1, 23)
        return Block(
            actors=np.array(self.actors, np.float64).reshape(-1, 8),
            owner=rows[:, 0].astype(np.int64),
            corners=rows[:, 1:10].reshape(-1, 3, 3),
            swing=rows[:, 10:16],
            order=rows[:, 16:18],
            tint=rows[:, 18:21].astype(np.float32),
            labels=rows[:, 21].astype(np.uint8),
            reach=rows[:, 22],
            textures=tuple(self.textures),
            ground=ground,
        )


def join(blocks: Sequence[Block]) -> Block:
    """Return all actors and surfaces of `blocks` as one block without ground."""
    first = np.cumsum([0, *(len(block.actors) for block in blocks)])
    return Block(
        actors=np.concatenate([block.actors for block in blocks]),
        owner=np.concatenate([block.owner + start for block, start in zip(blocks, first, strict=False)]),
        corners=np.concatenate([block.corners for block in blocks]),
        swing=np.concatenate([block.swing for block in blocks]),
        order=np.concatenate([block.order for block in blocks]),
        tint=np.concatenate([block.tint for block in blocks]),
        labels=np.concatenate([block.labels for block in blocks]),
        reach=np.concatenate([block.reach for block in blocks]),
        textures=tuple(texture for block in blocks for texture in block.textures),
    )


def _swing(corners: Array, swing: Array, time: float) -> Array:
    """Return `corners` after each surface with a swing has turned in its own x-y plane."""
    moving = np.flatnonzero(swing[:, 0])
    if not len(moving):
        return corners
    corners = corners.copy()
    amplitude, frequency, phase = swing[moving, :3].T
    angle = amplitude * np.sin(2 * np.pi * frequency * time + phase)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    part = corners[moving]
    part[:, 0] -= swing[moving, 3:]
    x, y = part[..., 0].copy(), part[..., 1].copy()
    part[..., 0], part[..., 1] = cos * x - sin * y, sin * x + cos * y
    part[:, 0] += swing[moving, 3:]
    corners[moving] = part
    return corners


def pose(block: Block, street: Street, camera: Camera, time: float) -> tuple[Array, Array]:
    """Place all surfaces of `block` in the camera's axes at `time`.

    Returns:
        corners: float64 [N, 3, 3] corner and side vectors (see Block) in camera axes.
        order: float64 [N, 3] keys of painting, far first when sorted down by z, then up by order, then down by depth.
    """
    s, start, speed, heading, kind, amplitude, frequency, phase = block.actors.T
    z = start + speed * time
    across = s + amplitude * np.sin(frequency * time + phase)
    place = np.stack((street.centre(z) + across, np.zeros_like(z), z), -1)  # [A, 3]
    heading = heading + np.arctan(street.slope(z))
    ahead = np.stack((np.sin(heading), np.zeros_like(z), np.cos(heading)), -1)
    view = place - camera.place
    view[:, 1] = 0
    view /= np.maximum(np.linalg.norm(view, axis=1, keepdims=True), 1e-6)
    ahead = np.where((kind == FACING)[:, None], view, ahead)
    still = (kind == FIXED) | (kind == ENDLESS)
    ahead[still] = (0, 0, 1)
    place[kind == FIXED] = 0
    place[kind == ENDLESS] = camera.place
    right = np.stack((ahead[:, 2], np.zeros_like(z), -ahead[:, 0]), -1)
    axes = np.stack((right, np.broadcast_to((0.0, 1.0, 0.0), right.shape), ahead), 1)[block.owner]  # [N, 3, 3]
    world = _swing(block.corners, block.swing, time) @ axes
    world[:, 0] += place[block.owner] - camera.place
    corners = world @ camera.turn.T
    middle = corners[:, 0, 2] + 0.5 * (corners[:, 1, 2] + corners[:, 2, 2])
    base = np.where(kind == FIXED, 0, z)[block.owner]
    return corners, np.stack((base + block.order[:, 0], block.order[:, 1], middle), -1)
