"""What fills a street, block by block: lots with houses and parks, furniture, and belts of traffic and people."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from steadyseg.data import textures
from steadyseg.data.props import (
    add_boundary,
    add_car,
    add_cyclist,
    add_house,
    add_person,
    add_post,
    add_shop_sign,
    add_tree,
    tree_kinds,
)
from steadyseg.data.scene import BLOCK, HATCH, PAVEMENT, STEP, STOP, TREE, ZEBRA, ZIGZAG, Block, Builder, Street
from steadyseg.data.textures import Array

_LOTS = ((6, 1, 1, 0.6, 0.6), (1, 6, 0.3, 1.6, 0.5), (2, 0.5, 6, 1, 1.2), (0.7, 1.2, 0.6, 6, 1.2))
"""Per style of a street: weights of terraces, houses, offices, parks and open places."""
_LENGTHS = ((20, 40), (10, 15), (18, 34), (14, 30), (14, 24))
"""Shortest and longest lot of each kind in metres."""
_OPEN = 1000.0
"""Distance of the kerb where a side street opens."""
_KERB, _EDGE, _BEYOND, _TOP, _MARKS, _ISLAND, _VERGE = range(7)


def _front(rng: np.random.Generator, *, office: bool = False) -> int:
    """Return the kind of a front: every fifth is an office."""
    return int(rng.integers(12)) * 5 + (4 if office else int(rng.integers(4)))


def _rows(span: tuple[float, float]) -> slice:
    """Return the rows of a block's ground tables from z span[0] to span[1]."""
    start = round(span[0] % BLOCK / STEP)
    return slice(start, start + max(1, round((span[1] - span[0]) / STEP)))


def _terrace(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill `span` with houses wall to wall, with shop signs or small front gardens."""
    rng, street = b.rng, b.street
    z, stop = span
    garden = rng.uniform(1.5, 4) if rng.random() < (0.15, 0.8, 0.1, 0.5)[street.style] else 0.0
    fence = str(rng.choice(["railing", "wall", "hedge", "planks"], p=(0.4, 0.3, 0.2, 0.1)))
    while z < stop - 3:
        kind = _front(rng)
        metres = textures.facade(street.key[0], kind).metres
        far = z + metres[0] * rng.uniform(0.85, 1.2)
        far = stop if stop - far < 4 else far
        height = metres[1] * rng.uniform(0.85, 1.1) * street.tall
        add_house(b, side, (z, far), line=edge + garden, kind=kind, height=height)
        ground[_TOP, _rows((z, far))] = height
        if garden:
            add_boundary(b, side, (z, far), line=edge + 0.1, kind=fence)
        for _ in range(0 if garden else rng.integers(0, 3)):
            add_shop_sign(b, side, rng.uniform(z + 1, far - 1), edge)
        z = far


def _house(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill `span` with one detached house behind a front garden."""
    rng, street = b.rng, b.street
    near, far = span
    back = rng.uniform(3.5, 9)
    for _ in range(rng.integers(1, 4)):
        place = (side * (edge + back + rng.uniform(10, 22)), rng.uniform(near, far))
        add_tree(b, place, rng.uniform(7, 14), rank=far + 0.2 - place[1])
    kind, gap = _front(rng), rng.uniform(0.5, 3)
    height = min(textures.facade(street.key[0], kind).metres[1], 7.5) * rng.uniform(0.85, 1.0)
    house = (near + gap, max(near + gap + 5, far - gap))
    add_house(b, side, house, line=edge + back, kind=kind, height=height, rank=far)
    for _ in range(rng.integers(0, 4)):
        place = (side * (edge + rng.uniform(1.0, back)), rng.uniform(near, far))
        add_tree(b, place, rng.uniform(2, 8), rank=far - place[1])
    fence = str(rng.choice(["railing", "wall", "hedge", "planks", "none"], p=(0.16, 0.24, 0.3, 0.2, 0.1)))
    if fence != "none":
        add_boundary(b, side, span, line=edge + 0.1, kind=fence)
    ground[_BEYOND, _rows(span)] = TREE


def _office(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill `span` with one long building, one front repeated."""
    kind = _front(b.rng, office=True)
    metres = textures.facade(b.street.key[0], kind).metres
    back, height = b.rng.uniform(0, 5), metres[1] * b.street.tall
    edges = np.linspace(*span, max(1, round((span[1] - span[0]) / metres[0])) + 1)
    for near, far in pairwise(edges.tolist()):
        add_house(b, side, (near, far), line=edge + back, kind=kind, height=height)
    ground[_TOP, _rows(span)] = height


def _park(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill `span` with grass and trees, often behind a fence or hedge."""
    rng = b.rng
    near, far = span
    kinds = tree_kinds(b, 3)
    for depth in (22, 13, 7, 3):
        for z in np.arange(near, far, rng.uniform(4, 9)):
            if depth < 10 and rng.random() < 0.45:
                continue
            place = (side * (edge + depth * rng.uniform(0.75, 1.2)), z + rng.uniform(0, 3))
            add_tree(b, place, rng.uniform(5, 13), rank=far + depth * 0.02 - place[1], kind=kinds[rng.integers(3)])
    fence = str(rng.choice(["railing", "planks", "wall", "hedge", "none"], p=(0.36, 0.14, 0.14, 0.16, 0.2)))
    if fence != "none":
        add_boundary(b, side, span, line=edge + 0.1, kind=fence)
    ground[_BEYOND, _rows(span)] = TREE
    ground[_TOP, _rows(span)] = 5.0


def _place(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill `span` with an open place: cars parked on it, a low building far back."""
    rng = b.rng
    kind = _front(rng)
    height = min(textures.facade(b.street.key[0], kind).metres[1], 8.0)
    add_house(b, side, span, line=edge + rng.uniform(16, 24), kind=kind, height=height)
    for z in np.arange(span[0] + 2, span[1] - 2, 5.5):
        if rng.random() < 0.6:
            b.shift = (span[1] - z, 0.5 - z * 1e-4)
            add_car(b, side * (edge + rng.uniform(5, 7)), z, oncoming=bool(rng.integers(2)))
    b.shift = (0.0, 0.0)
    if rng.random() < 0.6:
        add_boundary(b, side, span, line=edge + 0.1, kind=str(rng.choice(["railing", "hedge", "wall"])))
    if rng.random() < 0.5:
        ground[_BEYOND, _rows(span)] = TREE


_FILLERS = (_terrace, _house, _office, _park, _place)


def _lots(b: Builder, side: int, span: tuple[float, float], edge: float, ground: Array) -> None:
    """Fill one side of the street along `span` with lots."""
    weights = np.array(_LOTS[b.street.style])
    z, stop = span
    while z < stop - 2:
        kind = int(b.rng.choice(5, p=weights / weights.sum()))
        far = z + b.rng.uniform(*_LENGTHS[kind])
        far = stop if stop - far < 8 else far
        _FILLERS[kind](b, side, (z, far), edge, ground)
        z = far


def _side_street(b: Builder, side: int, span: tuple[float, float], ground: Array) -> None:
    """Open a side street along `span`: round kerbs, a house at its end, signs or lights at its corners."""
    rng, street = b.rng, b.street
    near, far = span
    pavement, radius = 2.2, 3.5
    rows = np.arange(ground.shape[1]) * STEP + (near // BLOCK) * BLOCK
    inside = np.minimum(rows - near - pavement, far - pavement - rows)
    corner = (inside > -radius) & (inside <= 0)
    bow = radius - np.sqrt(np.maximum(radius**2 - (radius + inside[corner]) ** 2, 0))
    ground[_KERB, corner] += bow
    ground[_KERB, inside > 0] = _OPEN
    ground[_EDGE, (rows >= near) & (rows <= far)] = _OPEN
    ground[_TOP, (rows >= near) & (rows <= far)] = 0
    ground[_VERGE, inside > -radius] = 0
    edge = street.half + street.pavement[side > 0]
    kind = _front(rng)
    height = textures.facade(street.key[0], kind).metres[1]
    add_house(b, side, (near - 4, far), line=edge + rng.uniform(22, 40), kind=kind, height=height)
    for z in (near + 1.2, far - 1.2):
        add_post(b, side * (street.half + 0.7), z, kind=str(rng.choice(["lights", "sign", "lights"])), side=side)
    if rng.random() < 0.5:
        add_car(b, side * (street.half + rng.uniform(5, 9)), (near + far) / 2, oncoming=bool(rng.integers(2)))


def _is_free(b: Builder, ground: Array, z: float, room: float) -> bool:
    """Return whether no side street opens within `room` metres of z."""
    first = z // BLOCK * BLOCK
    part = ground[_KERB, _rows((max(first, z - room), min(first + BLOCK - STEP, z + room)))]
    return bool(part.max() < b.street.half + 0.2)


def _furniture(b: Builder, side: int, start: float, ground: Array) -> None:
    """Put posts, signs and street trees along one side of a block."""
    rng, street = b.rng, b.street
    kerb, lamp = street.half, start + rng.uniform(0, 18)
    posts = [(z, 0.5, "lamp") for z in (lamp, lamp + rng.uniform(24, 30)) if z < start + BLOCK and rng.random() < 0.65]
    for z in start + rng.uniform(0, BLOCK, rng.integers(1, 4)):
        posts.append((z, 0.6, str(rng.choice(["sign", "sign", "board", "lamp"]))))
    if rng.random() < 0.25:
        row = start + rng.uniform(0, BLOCK - 14) + 2.0 * np.arange(rng.integers(3, 7))
        posts += [(z, 0.35, "bollard") for z in row]
    for z, inward, kind in posts:
        if _is_free(b, ground, z, 0.5):
            add_post(b, side * (kerb + inward), z, kind=kind, side=side)
    if rng.random() < (0.12, 0.35, 0.35, 0.5)[street.style]:
        for z in start + np.arange(2, BLOCK - 2, rng.uniform(8, 16)):
            if _is_free(b, ground, z, 1):
                add_tree(b, (side * (kerb + 0.9), z), rng.uniform(4.5, 9))


def _standing(b: Builder, side: int, start: float, ground: Array) -> None:
    """Put standing people and parked cars along one side of a block."""
    rng, street = b.rng, b.street
    kerb, wide = street.half, street.pavement[side > 0]
    for z in start + rng.uniform(0, BLOCK, rng.poisson(street.crowd)):
        add_person(b, (side * (kerb + rng.uniform(0.6, wide - 0.3)), z))
    z = start + rng.uniform(2.5, 6)
    while street.parking[side > 0] and z < start + BLOCK - 2.5:
        if rng.random() < 0.5 and _is_free(b, ground, z, 3):
            oncoming = (side != street.own) == (rng.random() < 0.85)
            add_car(b, side * (kerb - 1.05 + rng.normal(0, 0.08)), z, oncoming=oncoming)
        z += rng.uniform(5.3, 7.5)


def street_block(street: Street, number: int, rng: np.random.Generator) -> Block:
    """Build block `number` of the street itself, from z = number * BLOCK on: everything that stands still."""
    b = Builder(street, rng)
    start = number * BLOCK
    count = round(BLOCK / STEP)
    ground = np.zeros((2, 7, count), np.float32)
    junction = rng.random() < 0.45
    sides = rng.random() < 0.4, rng.random() < 0.7
    for side in (-1, 1):
        table = ground[int(side > 0)]
        edge = street.half + street.pavement[side > 0]
        table[_KERB], table[_EDGE], table[_BEYOND] = street.half, edge, PAVEMENT
        table[_VERGE] = street.verge[side > 0]
        stop = start + BLOCK
        if junction and (sides[0] or (side > 0) == sides[1]):
            stop -= rng.uniform(9, 14)
            _side_street(b, side, (stop, start + BLOCK), table)
        _lots(b, side, (start, stop), edge, table)
        _furniture(b, side, start, table)
        _standing(b, side, start, table)
    if junction:
        _crossing(b, ground, start)
    if rng.random() < 0.12 * street.crowd:
        pace, phase = rng.uniform(0.18, 0.3), rng.uniform(0, 6.28)
        place = (0.0, start + rng.uniform(0, BLOCK))
        add_person(b, place, stride=0.4, sway=(street.half + 1.5, pace, phase))
    return b.build(ground)


def _crossing(b: Builder, ground: Array, start: float) -> None:
    """Mark the junction at the end of a block: hatching, a crossing with zigzag lines, a stop line, an island."""
    rng, street = b.rng, b.street
    z = start + BLOCK - 18.0
    if rng.random() < 0.3:
        ground[:, _MARKS, _rows((start + BLOCK - 12, start + BLOCK))] = HATCH
    if rng.random() < 0.5:
        ground[:, _MARKS, _rows((z - 10, z + 11))] = ZIGZAG
        ground[:, _MARKS, _rows((z, z + rng.uniform(2.4, 3.6)))] = ZEBRA
    if rng.random() < 0.6:
        ground[int(street.own > 0), _MARKS, _rows((z - 1.4, z - 1.1))] = STOP
    if rng.random() < 0.5:
        wide = min(0.75, street.lane * 0.5 - 1.0)
        far = z + rng.uniform(-3.5, 3)
        ground[:, _ISLAND, _rows((z - 5, far))] = wide
        for at in (z - 4.5, far - 0.5):
            add_post(b, 0.0, at, kind="island", side=-1)
        if rng.random() < 0.4:
            add_post(b, 0.0, z - 3.5, kind=str(rng.choice(["lights", "sign", "lamp"])), side=-1)
    for side in (-1, 1):
        if rng.random() < 0.5:
            span = (z - rng.uniform(6, 16), z + rng.uniform(-2, 2))
            add_boundary(b, side, span, line=street.half + 0.3, kind="railing", kerb=True)


def belts(street: Street) -> list[float]:
    """Return the speeds (m/s along z) of what moves: cars ahead, cars towards us, 2 of bicycles, 4 of walkers."""
    return [street.speed, -max(5.0, street.speed * 0.9), 4.2, -4.2, 1.35, -1.2, 1.1, -1.4]


def belt_block(street: Street, belt: int, number: int, rng: np.random.Generator) -> Block:
    """Build block `number` of a moving belt; its z counts from where the belt is at time 0."""
    b = Builder(street, rng)
    speed, start = belts(street)[belt], number * BLOCK
    driveway = street.lanes * street.lane
    if belt < 2:
        side = street.own if belt == 0 else -street.own
        for lane in range(street.lanes):
            z = start + rng.uniform(2, 18)
            while z < start + BLOCK - 5:
                is_clear = (
                    belt == 1
                    or abs(side * (lane + 0.5) * street.lane - street.camera[3]) > 1.5
                    or z > street.start + 10
                )
                is_clear = is_clear and not (belt == 0 and -14 < z - street.start < 7)
                if rng.random() < street.traffic and is_clear:
                    s = side * (lane + 0.5) * street.lane + rng.normal(0, 0.12)
                    add_car(b, s, z, oncoming=belt == 1, speed=speed)
                z += rng.uniform(8, 26)
    elif belt < 4:
        side = street.own if belt == 2 else -street.own
        for z in start + rng.uniform(0, BLOCK, rng.poisson(street.bicycles)):
            if belt == 3 or z > street.start + 7:
                add_cyclist(b, side * (driveway - 0.55), z, speed=speed, oncoming=belt == 3)
    else:
        side = -1 if belt < 6 else 1
        for z in start + rng.uniform(0, BLOCK, rng.poisson(street.crowd)):
            s = side * (street.half + b.rng.uniform(0.7, street.pavement[side > 0] - 0.4))
            for company in range(int(rng.choice([1, 2], p=(0.7, 0.3)))):
                place = (s + 0.6 * side * company, z + 0.2 * company)
                add_person(b, place, speed=speed, stride=rng.uniform(0.1, 0.2))
    return b.build()
