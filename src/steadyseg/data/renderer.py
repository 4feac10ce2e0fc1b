"""Paints one moment of a street: colours, labels, and for every pixel the number of the surface it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from steadyseg.data.scene import (
    HATCH,
    PAVEMENT,
    PLAIN,
    ROAD,
    SHADE,
    STEP,
    STOP,
    TREE,
    ZEBRA,
    ZIGZAG,
    Block,
    Camera,
    Street,
    pose,
)
from steadyseg.data.textures import Array, Texture, ground_tile

NEAR = 0.4
"""Nearest depth in metres that is drawn."""
GROUND = -1
"""Number of the ground in ``Picture.surfaces``."""


class Picture(NamedTuple):
    """One rendered moment."""

    image: Array
    """uint8 [H, W, 3] RGB."""
    labels: Array
    """uint8 [H, W]."""
    surfaces: Array
    """int32 [H, W] number of the surface in the block that was drawn, or GROUND."""


class Paint(NamedTuple):
    """What the ground of a video is painted with."""

    colours: Array
    """float32 [3, 3] of road, pavement and grass."""
    contrast: Array
    """float32 [3] of their texture."""
    stencil: Array
    """float32 [rows, columns, 2] road markings, 16 per metre: opacity of white and yellow."""
    patches: Array
    """uint8 [h, w] large stains, 2 per metre; 128 is neutral."""


class View(NamedTuple):
    """A block as one moment sees it."""

    block: Block
    """All surfaces; the first ``backdrop`` of them are endlessly far and lie behind the ground."""
    backdrop: int
    drawn: Array
    """bool [N], which surfaces belong to this moment."""
    street: Street
    camera: Camera
    paint: Paint
    tables: tuple[float, Array]
    """First z and float32 [2, 7, n] of the ground tables (see ``Block.ground``)."""


def homographies(corners: Array, camera: Camera) -> Array:
    """Return float64 [N, 3, 3] from (u, v, 1) on each surface to pixels, for corners [N, 3, 3] in camera axes."""
    columns = corners[:, (1, 2, 0)]  # [N, 3, 3] side, side, corner
    return np.einsum("ij,nkj->nik", camera.lens, columns)


def ground_homography(camera: Camera) -> Array:
    """Return float64 [3, 3] from ground points (x, z, 1) to pixels."""
    columns = np.array([[1.0, 0, 0], [0, 0, 1.0], -camera.place])
    return camera.lens @ camera.turn @ columns.T


def _clip(corners: Array) -> tuple[Array, Array]:
    """Return the part of each surface that is in front of the camera.

    Returns:
        spans: float64 [N, 4], first and last u, first and last v.
        front: bool [N], whether anything is left.
    """
    depth, along, down = corners[:, 0, 2], corners[:, 1, 2], corners[:, 2, 2]
    spans = np.tile(np.array([0.0, 1.0, 0.0, 1.0]), (len(corners), 1))
    nearest = depth + np.minimum(along, 0) + np.minimum(down, 0)
    front = np.ones(len(corners), bool)
    for i in np.flatnonzero(nearest < NEAR):
        axis = 0 if abs(along[i]) >= abs(down[i]) else 1
        slope, other = (along[i], down[i]) if axis == 0 else (down[i], along[i])
        limit = (NEAR - depth[i] - min(0.0, other)) / slope if slope else 2.0
        start, stop = (max(0.0, limit), 1.0) if slope > 0 else (0.0, min(1.0, limit))
        front[i] = stop - start > 1e-3 and abs(slope) > 1e-6
        spans[i, 2 * axis : 2 * axis + 2] = start, stop
    return spans, front


def _outlines(maps: Array, spans: Array) -> Array:
    """Return float64 [N, 4, 2] the pixels of the corners of the clipped surfaces, clockwise from the top left."""
    u, v = spans[:, (0, 1, 1, 0)], spans[:, (2, 2, 3, 3)]
    points = np.einsum("nij,nkj->nki", maps, np.stack((u, v, np.ones_like(u)), -1))
    return points[..., :2] / points[..., 2:]


def _ground_point(street: Street, camera: Camera, rows: Array, columns: Array) -> tuple[Array, Array, Array]:
    """Return s, z and distance of the ground under pixels, float32 [h, w] each; beyond the horizon 400 m."""
    back = np.linalg.inv(camera.lens @ camera.turn)
    x, y = columns[None].astype(np.float32), rows[:, None].astype(np.float32)
    ray = [(np.float32(r[0]) * x + np.float32(r[1]) * y + np.float32(r[2])) for r in back]
    scale = np.float32(-camera.place[1]) / np.maximum(ray[1], np.float32(-camera.place[1] / 400))
    across, ahead = scale * ray[0], scale * ray[2]
    z = ahead + np.float32(camera.z)
    table = np.arange(-20.0, 1000.0, 0.5)
    bend = (street.centre(table + camera.z) - camera.place[0]).astype(np.float32)
    index = np.clip((ahead + 20) * 2, 0, len(table) - 2)
    whole = index.astype(np.int32)
    bow = bend[whole] + (bend[whole + 1] - bend[whole]) * (index - whole)
    return (across - bow).astype(np.float32), z.astype(np.float32), ahead.astype(np.float32)


def _paint_ground(canvas: Array, surfaces: Array, view: View) -> Array:
    """Paint the ground into `canvas` and `surfaces` in place, below the horizon; return its labels, uint8 [H, W]."""
    street, camera, paint = view.street, view.camera, view.paint
    height, width = surfaces.shape
    normal = camera.turn[:, 1] @ np.linalg.inv(camera.lens)
    horizon = [-(normal[0] * x + normal[2]) / normal[1] for x in (0, width - 1)]
    top = int(np.clip(min(horizon) + 1, 0, height - 1))
    s, z, ahead = _ground_point(street, camera, np.arange(top, height), np.arange(width))
    first, rows = view.tables
    count = rows.shape[2]
    row = np.clip((z - np.float32(first)) * np.float32(1 / STEP), 0, count - 1).astype(np.int32)
    row += (s > 0) * np.int32(count)
    table = np.concatenate((rows[0], rows[1]), 1)
    kerb, end, beyond, roof, marks, island, verge = (np.take(part, row) for part in table)
    distance = np.abs(s)
    is_road = (distance < kerb) & (distance >= island)
    labels = np.where(is_road, np.float32(ROAD), np.where(distance < end, np.float32(PAVEMENT), beyond)).astype(
        np.uint8
    )
    labels[(distance > kerb + 0.16) & (distance < kerb + verge)] = TREE
    is_grass = labels == TREE
    z -= np.float32(camera.z // 192 * 192)
    tile = cv2.remap(ground_tile(), s * 64, z * 64, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    texture = np.where(is_road, tile[..., 0], np.where(is_grass, tile[..., 2], tile[..., 1])).astype(np.float32)
    kind = np.where(is_road, np.uint8(0), np.where(is_grass, np.uint8(2), np.uint8(1)))
    stains = cv2.remap(paint.patches, s * 2, z * 2, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).astype(np.float32)
    tone = (texture - 128) * np.minimum(np.float32(9) / np.maximum(ahead, 1), 1) * paint.contrast[kind]
    tone += (stains - 128) * np.float32(0.003) + 1
    step = np.where((island > 0) & (distance < island + 0.3), island - distance, distance - kerb)
    tone[(step > 0) & (step < 0.16)] *= np.float32(1.18)
    tone[(step < 0) & (step > -0.13)] *= np.float32(0.72)
    marked = is_road & (kerb <= street.half + 0.01)
    colour = np.take(paint.colours, kind, 0)
    _add_marks(colour, paint, (s, z), np.where(marked, marks, np.float32(-1)))
    tone *= _sunlight(street, s, roof + (beyond == TREE) * (stains - 128) * np.float32(0.06))
    clear = np.exp(ahead * np.float32(-1 / street.light.haze_length))
    colour *= (tone * clear)[..., None]
    for channel, haze in enumerate(street.light.haze):
        colour[..., channel] += np.float32(haze) * (1 - clear)
    near = cv2.cvtColor(np.clip(colour, 0, 255).astype(np.uint8), cv2.COLOR_RGB2RGBA)
    np.copyto(canvas[top:], near, where=(ahead < 399)[..., None])
    surfaces[top:] = GROUND
    whole = np.zeros((height, width), np.uint8)
    whole[top:] = labels
    return whole


def _add_marks(colour: Array, paint: Paint, point: tuple[Array, Array], kind: Array) -> None:
    """Add road markings to float32 [h, w, 3] `colour` at s, z in place; kind is -1 where there are none."""
    s, z = point
    columns = paint.stencil.shape[1]
    across = s * 16 + np.float32(columns / 2 - 0.5)
    marks = cv2.remap(paint.stencil, across, z * 16, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    white, yellow = np.ascontiguousarray(marks[..., 0]), np.ascontiguousarray(marks[..., 1])
    for special in np.unique(kind[kind > 0]):
        spot = np.flatnonzero(kind == special)
        x, y = s.ravel()[spot] + 504, z.ravel()[spot] + 504
        if special == ZEBRA:
            white.ravel()[spot] = (x % 1.2 < 0.6) * 0.85
        elif special == STOP:
            white.ravel()[spot] = 0.8
        elif special == ZIGZAG:
            white.ravel()[spot] = (np.abs((x + 0.5) % 2.1 - 0.5 - 0.5 * np.abs(y % 4 - 2)) < 0.09) * 0.8
        else:
            white.ravel()[spot] = 0
            yellow.ravel()[spot] = (((x + y) % 2.4 < 0.14) | ((x - y) % 2.4 < 0.14)) * 0.8
    white, yellow = white * (kind >= 0), yellow * ((kind == PLAIN) | (kind == HATCH))
    base = paint.colours[0]
    for channel, (light, warm) in enumerate(zip((226, 226, 220), (206, 176, 60), strict=True)):
        colour[..., channel] += (np.float32(light) - base[channel]) * white + (
            np.float32(warm) - base[channel]
        ) * yellow


def _sunlight(street: Street, s: Array, roof: Array) -> Array | np.float32:
    """Return the factor of the light on the ground, float32 [h, w]: dark in the shadow of the houses."""
    ground, sun = np.float32(street.light.ground), street.light.sun
    if not sun:
        return ground
    toward = s * np.float32(np.sign(sun))
    line = np.float32(street.half + 3) - roof * np.float32(abs(sun))
    return np.where((toward > 0) & (toward > line), ground * np.float32(0.55), ground * np.float32(1.08))


class Patches(NamedTuple):
    """How the texture of each of n surfaces comes into the picture."""

    levels: Array
    """int64 [n, 2] how often the texture is halved in width and in height."""
    crops: Array
    """int64 [n, 4] left, top, right, bottom of the part of the texture that is in front of the camera."""
    areas: Array
    """int64 [n, 4] left, top, right, bottom of the pixels it may cover."""
    maps: Array
    """float64 [n, 3, 3] from texels of the crop to pixels of the area."""


def _patches(textures: Sequence[Texture], maps: Array, spans: Array, outlines: Array, size: tuple[int, int]) -> Patches:
    """Find the texture level, crop and pixels of surfaces from their maps, clipped spans and outlines."""
    shapes = np.array([texture.image.shape[1::-1] for texture in textures], np.int64).reshape(
        -1, 2
    )  # [n, 2] width, height
    edges = np.abs(outlines - np.roll(outlines, 1, 1)).max(-1)  # [n, 4] left, top, right, bottom side
    extent = np.maximum(np.stack((np.maximum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 0], edges[:, 2])), -1), 1)
    share = spans[:, 1::2] - spans[:, ::2]
    levels = np.log2(np.maximum(shapes * share / extent, 1)).astype(np.int64)
    shapes = np.maximum(shapes >> levels, 1)
    first = (spans[:, ::2] * shapes).astype(np.int64)
    last = np.minimum(np.ceil(spans[:, 1::2] * shapes).astype(np.int64), shapes)
    low = np.maximum(np.floor(outlines.min(1)), 0).astype(np.int64)
    high = np.minimum(np.ceil(outlines.max(1)) + 1, size[::-1]).astype(np.int64)
    to_uv = np.zeros((len(maps), 3, 3))
    to_uv[:, (0, 1), (0, 1)] = 1 / shapes
    to_uv[:, :2, 2] = (first - 0.5) / shapes
    to_uv[:, 2, 2] = 1
    shift = np.tile(np.eye(3), (len(maps), 1, 1))
    shift[:, :2, 2] = -low
    crops = np.concatenate((first, last + 2), -1)
    return Patches(levels, crops, np.concatenate((low, high), -1), shift @ maps @ to_uv)


def _paint_patches(
    target: tuple[Array, Array], block: Block, numbers: Array, *, colours: Array, patches: Patches
) -> None:
    """Paint surfaces in the order of `numbers` into target: uint8 [H, W, 4] and int32 [H, W] of their numbers."""
    canvas, surfaces = target
    listed = (part.tolist() for part in (numbers, block.labels[numbers], patches.levels, patches.crops, patches.areas))
    for index, (number, label, level, crop, area) in enumerate(zip(*listed, strict=True)):
        left, top, right, bottom = area
        if right <= left or bottom <= top:
            continue
        image = block.textures[number].level(*level)[crop[1] : crop[3], crop[0] : crop[2]]
        warped = cv2.warpPerspective(image, patches.maps[index], (right - left, bottom - top), flags=cv2.INTER_LINEAR)
        warped = cv2.transform(warped, colours[number])
        alpha = warped[..., 3]
        cover = alpha * np.float32(1 / 255)
        below = canvas[top:bottom, left:right]
        cv2.blendLinear(warped, below, cover, 1 - cover, below)
        if label != SHADE:
            np.copyto(surfaces[top:bottom, left:right], number, where=alpha >= 128)


def _colour_matrices(block: Block, street: Street, depth: Array) -> Array:
    """Return float32 [N, 4, 5] for ``cv2.transform``: tint and haze by depth."""
    light = street.light
    clear = np.exp(-np.maximum(depth, 0) / light.haze_length)
    matrices = np.zeros((len(depth), 4, 5), np.float32)
    for channel in range(3):
        matrices[:, channel, channel] = block.tint[:, channel] * clear
        matrices[:, channel, 4] = light.haze[channel] * (1 - clear)
    matrices[:, 3, 3] = 1
    return matrices


def render(view: View, size: tuple[int, int], time: float) -> tuple[Picture, Array]:
    """Paint the moment `time`.

    Args:
        view: the scene.
        size: height and width of the picture.
        time: seconds.

    Returns:
        The picture, and float64 [N + 1, 3, 3] from points on each surface to pixels; the last is the ground's,
        so that GROUND indexes it.
    """
    block, street, camera = view.block, view.street, view.camera
    corners, order = pose(block, street, camera, time)
    maps = homographies(corners, camera)
    spans, visible = _clip(corners)
    outlines = _outlines(maps, spans)
    depth = np.maximum(order[:, 2], 0)
    low, high = outlines.min(1), outlines.max(1)
    extent = high - low
    visible &= view.drawn & (order[:, 2] - 0.5 * np.abs(corners[:, 1, 2]) < block.reach)
    visible &= (high > 0).all(1) & (low < (size[1], size[0])).all(1) & (extent.max(1) > 1.2)
    visible &= np.linalg.det(maps) > 0
    depth[: view.backdrop] = 0
    colours = _colour_matrices(block, street, depth)
    sequence = np.lexsort((-order[:, 2], order[:, 1], -order[:, 0]))
    sequence = sequence[visible[sequence] & (sequence >= view.backdrop)]
    shade = block.labels[sequence] == SHADE
    canvas, surfaces = np.zeros((*size, 4), np.uint8), np.zeros(size, np.int32)

    def draw(numbers: Array) -> None:
        textures = [block.textures[number] for number in numbers]
        patches = _patches(textures, maps[numbers], spans[numbers], outlines[numbers], size)
        _paint_patches((canvas, surfaces), block, numbers, colours=colours, patches=patches)

    draw(np.array([0]))
    labels = _paint_ground(canvas, surfaces, view)
    draw(np.arange(1, view.backdrop))
    draw(np.concatenate((sequence[shade], sequence[~shade])))
    labels = np.where(surfaces == GROUND, labels, block.labels[surfaces])
    image = cv2.cvtColor(canvas, cv2.COLOR_RGBA2RGB)
    return Picture(image, labels, surfaces), np.concatenate((maps, ground_homography(camera)[None]))
