"""The things of a street, put together from surfaces: cars, people, bicycles, trees, houses, fences, signs, posts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from steadyseg.data import sprites, textures
from steadyseg.data.scene import (
    BICYCLIST,
    BUILDING,
    CAR,
    FACING,
    FENCE,
    FIXED,
    PEDESTRIAN,
    POLE,
    SHADE,
    SIGN,
    TREE,
    Builder,
    Look,
    Vector,
)
from steadyseg.data.textures import Array

_TREES = ((0.32, 0.32, 0.06, 0.16, 0.08, 0.06), (0.04, 0.04, 0.34, 0.14, 0.22, 0.22))
"""Shares of the six kinds of trees in summer and in winter: 0, 1 and 4 in leaf, 2 and 5 bare, 3 evergreen."""


def add_car(b: Builder, s: float, z: float, *, oncoming: bool, speed: float = 0.0) -> None:
    """Add a car whose middle is at (s, z); `oncoming` turns its front to the camera."""
    rng, light = b.rng, b.street.light
    kind = int(rng.choice(7, p=(0.29, 0.17, 0.17, 0.12, 0.06, 0.03, 0.16)))
    paint = int(rng.integers(len(sprites.PAINTS)))
    shape = sprites.SHAPES[kind]
    length, width, height = shape.length, shape.width, shape.height
    actor = b.actor(s, z, heading=(np.pi if oncoming else 0.0) + rng.normal(0, 0.01), speed=speed)
    patch = ((-width / 2 - 0.25, -0.01, length / 2 + 0.2), (width + 0.5, 0, 0), (0, 0, -length - 0.4))
    b.surface(actor, patch, Look(sprites.shadow(), SHADE, reach=60))
    x, end, shade = width / 2, length / 2, rng.uniform(0.9, 1.05)
    gains = (light.left, light.right) if oncoming else (light.right, light.left)
    for sign, gain in zip((-1, 1), gains, strict=True):
        flank = ((sign * x, -height, -sign * end), (0, 0, sign * length), (0, height, 0))
        picture = sprites.car_side(kind, paint, facing_left=sign < 0)
        b.surface(actor, flank, Look(picture, CAR, gain * shade))
    for sign, belt_at, roof_at in ((-1, shape.rear, shape.roof_end), (1, shape.hood, shape.screen)):
        belt = shape.belt * height
        z_belt, z_roof = end - belt_at * length, end - roof_at * length
        upper, lower = sprites.car_end(kind, paint, front=sign > 0)
        across = (-sign * width, 0, 0)
        window = ((sign * x, -height, z_roof), across, (0, belt, z_belt - z_roof))
        b.surface(actor, window, Look(upper, CAR, light.ahead * shade * 1.05, (0, 0.1)))
        if abs(sign * end - z_belt) > 0.25:
            lid = ((sign * x, belt - height, z_belt), across, (0, 0.08, sign * end - z_belt))
            b.surface(actor, lid, Look(sprites.plain(*sprites.PAINTS[paint]), CAR, light.ground, (0, 0.1)))
        face = ((sign * x, belt - height, sign * end), across, (0, height - belt, 0))
        b.surface(actor, face, Look(lower, CAR, light.ahead * shade, (0, 0.1)))


def _clothes(rng: np.random.Generator) -> Array:
    """Return the colour of a piece of clothing, most often dark."""
    tone = rng.uniform(0.1, 0.42) if rng.random() < 0.7 else rng.uniform(0.4, 0.95)
    return tone * (1 + rng.normal(0, 0.22, 3)).clip(0.4, 1.7)


def add_person(
    b: Builder, place: tuple[float, float], *, speed: float = 0.0, stride: float = 0.0, sway: Vector = (0, 0, 0)
) -> None:
    """Add a person at `place` (s, z) whose legs and arms swing by `stride` radians."""
    rng, light = b.rng, b.street.light.ahead
    actor = b.actor(*place, kind=FACING, speed=speed, sway=sway)
    size = rng.uniform(1.55, 1.88)
    coat, trousers = _clothes(rng) * light, _clothes(rng) * light * 0.8
    beat = (rng.uniform(0.8, 1.05), rng.uniform(0, 6.28))
    kind, reach = int(rng.integers(60)), 65.0
    broad, skirt = size * rng.uniform(0.24, 0.3), rng.uniform(0.44, 0.62)
    limb = sprites.person("limb", kind % 3)
    for side in (-1, 1):
        hip = (side * 0.055 * size, -0.5 * size, 0.0)
        area = (hip[0] - 0.055 * size, hip[1], 0.11 * size, 0.5 * size)
        b.upright(actor, area, Look(limb, PEDESTRIAN, trousers, (0, 1), (side * stride, *beat, *hip), reach))
    torso = (-broad / 2, -0.87 * size, broad, skirt * size)
    b.upright(actor, torso, Look(sprites.person("torso", kind % 8), PEDESTRIAN, coat, (0, 2), reach=reach))
    for side in (-1, 1):
        shoulder = (side * broad * 0.42, -0.83 * size, 0.0)
        area = (shoulder[0] - 0.035 * size, shoulder[1], 0.07 * size, 0.38 * size)
        turn = (-side * stride * 0.8, *beat, *shoulder)
        b.upright(actor, area, Look(limb, PEDESTRIAN, coat * 0.86, (0, 3), turn, reach))
    head = (-0.058 * size, -size, 0.116 * size, 0.15 * size)
    b.upright(actor, head, Look(sprites.person("head", kind), PEDESTRIAN, light, (0, 4), reach=reach))


def add_cyclist(b: Builder, s: float, z: float, *, speed: float, oncoming: bool) -> None:
    """Add a person on a bicycle."""
    rng, light, reach = b.rng, b.street.light.ahead, 75.0
    kind = int(rng.integers(60))
    machine = b.actor(s, z, heading=np.pi if oncoming else 0.0, speed=speed)
    for sign in (-1, 1):
        flank = ((0, -1.05, -sign * 0.9), (0, 0, sign * 1.8), (0, 1.05, 0))
        b.surface(machine, flank, Look(sprites.bicycle(kind % 4, facing_left=sign < 0), BICYCLIST, light, reach=reach))
    rider = b.actor(s, z, kind=FACING, speed=speed)
    coat, trousers = _clothes(rng) * light, _clothes(rng) * light * 0.8
    if rng.random() < 0.3:
        coat = np.array([0.85, 0.95, 0.25]) * light
    limb, beat = sprites.person("limb", kind % 3), (rng.uniform(0.9, 1.3), rng.uniform(0, 6.28))
    b.upright(rider, (-0.035, -0.68, 0.07, 0.68), Look(sprites.plain(26, 26, 28), BICYCLIST, 1.0, (0, 1), reach=reach))
    for side in (-1, 1):
        hip = (side * 0.11, -1.0, 0.0)
        area = (hip[0] - 0.085, hip[1], 0.17, 0.78)
        b.upright(rider, area, Look(limb, BICYCLIST, trousers, (0, 2), (side * 0.12, *beat, *hip), reach))
    torso = sprites.person("torso", kind % 8)
    b.upright(rider, (-0.24, -1.55, 0.48, 0.68), Look(torso, BICYCLIST, coat, (0, 3), reach=reach))
    for side in (-1, 1):
        arm = (side * 0.24 - 0.06, -1.46, 0.12, 0.5)
        b.upright(rider, arm, Look(limb, BICYCLIST, coat * 0.9, (0, 4), reach=reach))
    head = sprites.person("head", kind)
    b.upright(rider, (-0.1, -1.78, 0.2, 0.26), Look(head, BICYCLIST, light, (0, 5), reach=reach))


def tree_kinds(b: Builder, count: int) -> list[int]:
    """Draw `count` kinds of trees that suit the season."""
    return [int(b.rng.integers(8)) * 6 + int(b.rng.choice(6, p=_TREES[int(b.street.is_winter)])) for _ in range(count)]


def add_tree(
    b: Builder, place: tuple[float, float], size: float, *, rank: float = 0.0, kind: int | None = None
) -> None:
    """Add a tree of `size` metres at `place` (s, z), painted at z + `rank`."""
    rng, light = b.rng, b.street.light
    kind = tree_kinds(b, 1)[0] if kind is None else kind
    tint = rng.uniform(0.75, 1.15) * (light.left if place[0] < 0 else light.right)
    actor = b.actor(*place, kind=FACING)
    wide = size * rng.uniform(0.75, 1.05)
    texture = sprites.tree(b.street.key[0], kind)
    b.upright(actor, (-wide / 2, -size, wide, size * 1.01), Look(texture, TREE, tint, (rank, 1)))


def _points(b: Builder, offset: float, zs: Array | tuple[float, ...]) -> list[Array]:
    """Return world points on the ground, `offset` metres to the right of the middle, for each z."""
    return [np.array([offset + b.street.centre(z), 0.0, z]) for z in zs]


def add_house(
    b: Builder,
    side: int,
    span: tuple[float, float],
    *,
    line: float,
    kind: int,
    height: float,
    rank: float | None = None,
) -> None:
    """Add a house whose front of `kind` stands `line` metres from the middle along `span`, painted at z = `rank`."""
    rng, street = b.rng, b.street
    pool, light = street.key[0], street.light
    tint = rng.uniform(0.85, 1.12) * (1 + rng.normal(0, 0.03, 3))
    gain = light.left if side < 0 else light.right
    actor = b.actor(0, 0, kind=FIXED)
    first, last = _points(b, side * line, span)
    start, end = (first, last) if side < 0 else (last, first)
    up, depth, along = np.array([0, -height, 0]), rng.uniform(7, 12), end - start
    pitched = rng.random() < (0.75, 0.95, 0.1, 0.6)[street.style]
    order = (span[1] if rank is None else rank, 0.0)
    b.surface(
        actor, (start + up, along, -up), Look(textures.facade(pool, kind), BUILDING, tint * gain, order, reach=160)
    )
    rise = depth * rng.uniform(0.28, 0.45) if pitched else 0.0
    ridge = height + rise
    corner = first if side > 0 else first - np.array([depth, 0, 0])
    wall = textures.end_wall(pool, int(rng.integers(12)), gable=pitched)
    face = (corner - np.array([0, ridge, 0]), (depth, 0, 0), (0, ridge, 0))
    b.surface(actor, face, Look(wall, BUILDING, tint * light.ahead, order, reach=160))
    if not pitched:
        return
    slope = np.array([-side * depth / 2, rise, 0])
    tiles = textures.roof(int(rng.integers(12)))
    b.surface(actor, (start + up - slope, along, slope), Look(tiles, BUILDING, gain * 1.05, order, reach=160))
    for share in rng.uniform(0.05, 0.9, rng.integers(0, 3)):
        x, _, z = start + share * along
        stack = ((x + side * depth / 2 - 0.45, -ridge - 1.0, z), (0.9, 0, 0), (0, 1.2, 0))
        b.surface(actor, stack, Look(sprites.plain(112, 78, 62), BUILDING, light.ahead, (order[0], -0.1)))


def add_boundary(
    b: Builder, side: int, span: tuple[float, float], *, line: float, kind: str, kerb: bool = False
) -> None:
    """Add a fence, wall or hedge of pieces of about 4 m, `line` metres from the middle, at the kerb or around a lot."""
    label = {"railing": FENCE, "planks": FENCE, "wall": BUILDING, "hedge": TREE}[kind]
    texture = textures.boundary(kind, int(b.rng.integers(8)))
    gain = (b.street.light.left if side < 0 else b.street.light.right) * b.rng.uniform(0.8, 1.1)
    up = np.array([0, -texture.metres[1] * b.rng.uniform(0.8, 1.3), 0])
    actor = b.actor(0, 0, kind=FIXED)
    edges = _points(b, side * line, np.linspace(*span, max(1, round((span[1] - span[0]) / 4)) + 1))
    for near, far in pairwise(edges):
        start, end = (near, far) if side < 0 else (far, near)
        order = (near[2], 0.0) if kerb else (span[1], 2 - far[2] * 1e-4)
        b.surface(actor, (start + up, end - start, -up), Look(texture, label, gain, order, reach=90))


def add_shop_sign(b: Builder, side: int, z: float, line: float) -> None:
    """Add a sign that sticks out of a house, or a board on its front."""
    rng, light = b.rng, b.street.light
    texture = sprites.sign(5, int(rng.integers(24)))
    if rng.random() < 0.6:
        wide, tall = rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.2)
        actor = b.actor(side * (line - wide / 2), z)
        b.upright(actor, (-wide / 2, -rng.uniform(2.8, 4.2), wide, tall), Look(texture, SIGN, light.ahead))
        return
    actor = b.actor(side * (line - 0.06), z)
    wide, tall, top = rng.uniform(1.2, 3.0), rng.uniform(0.6, 1.4), rng.uniform(2.8, 4.0)
    corners = ((0, -top, side * wide / 2), (0, 0, -side * wide), (0, tall, 0))
    b.surface(actor, corners, Look(texture, SIGN, light.left if side < 0 else light.right))


def add_post(b: Builder, s: float, z: float, *, kind: str, side: int) -> None:
    """Add a "lamp", "sign", "lights", "board", "bollard" or "island" (the sign of an island) on its post."""
    rng, light = b.rng, b.street.light.ahead
    actor = b.actor(s, z, kind=FACING if kind == "bollard" else 1)
    grey = int(rng.integers(3))
    paint = sprites.plain(*((118, 122, 122), (52, 56, 56), (40, 60, 50))[grey])
    if kind == "lamp":
        tall, arm = rng.uniform(5.5, 9.0), rng.uniform(0.8, 2.2)
        b.upright(actor, (-0.05, -tall, 0.1, tall), Look(paint, POLE, light))
        b.upright(actor, (-0.07, -1.4, 0.14, 1.4), Look(paint, POLE, light))
        left = 0.0 if side < 0 else -arm
        b.upright(actor, (left, -tall, arm, 0.06), Look(paint, POLE, light))
        b.upright(
            actor, (left + (arm - 0.5 if side < 0 else 0), -tall - 0.05, 0.5, 0.15), Look(paint, POLE, light * 1.3)
        )
    elif kind == "bollard":
        tone = sprites.plain(*((30, 32, 34), (196, 196, 190), (90, 72, 58))[grey])
        b.upright(actor, (-0.065, -1.0, 0.13, 1.0), Look(tone, POLE, light, reach=60))
    elif kind == "lights":
        b.upright(actor, (-0.05, -3.0, 0.1, 3.0), Look(paint, POLE, light))
        b.upright(actor, (-0.17, -3.2, 0.34, 0.9), Look(sprites.sign(4, int(rng.integers(3))), SIGN, 1.0, (0, 1)))
    elif kind == "board":
        wide, tall, low = rng.uniform(0.7, 1.8), rng.uniform(0.6, 1.7), rng.uniform(0.6, 2.4)
        b.upright(actor, (-0.06, -low, 0.12, low), Look(paint, POLE, light))
        face = sprites.sign(3, int(rng.integers(18)))
        b.upright(actor, (-wide / 2, -low - tall, wide, tall), Look(face, SIGN, light, (0, 1)))
    elif kind == "island":
        b.upright(actor, (-0.2, -1.1, 0.4, 1.1), Look(sprites.plain(232, 226, 206), SIGN, light))
        b.upright(actor, (-0.17, -1.0, 0.34, 0.34), Look(sprites.sign(6, 0), SIGN, light, (0, 1)))
    else:
        tall, wide = rng.uniform(2.1, 3.0), rng.uniform(0.55, 0.8)
        b.upright(actor, (-0.035, -tall, 0.07, tall), Look(paint, POLE, light))
        for row in range(int(rng.integers(1, 3))):
            picture = sprites.sign(int(rng.integers(3)), int(rng.integers(12)))
            area = (-wide / 2, -tall - 0.1 + row * wide * 1.05, wide, wide)
            b.upright(actor, area, Look(picture, SIGN, light, (0, 1)))
