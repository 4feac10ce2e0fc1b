"""Temporal consistency: known motion, which pairs count, the published variants, occlusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from steadyseg.flow import SourceFlow, write_flo
from steadyseg.metrics.consistency import TemporalConsistency
from steadyseg.types import ConfigError, DataError, Frame, ShapeError

HEIGHT, WIDTH, CLASSES = 6, 8, 4


class Motion:
    """An estimator with one known flow."""

    name = "known"

    def __init__(self, dx: float = 0.0, dy: float = 0.0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        self.flow = torch.tensor([dx, dy], dtype=torch.float32).view(2, 1, 1).expand(2, *size).contiguous()
        self.pairs: list[tuple[int, int]] = []
        self.videos: list[str] = []

    def start(self, video: str) -> None:
        self.videos.append(video)

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        self.pairs.append((first.index, second.index))
        return self.flow if second.index > first.index else -self.flow


def frame(index: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Frame:
    return Frame(torch.zeros(3, *size, dtype=torch.uint8), index, float(index))


def panorama(seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (40, 40), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def view(x: int, y: int = 0) -> Tensor:
    return panorama()[y : y + HEIGHT, x : x + WIDTH]


def score(metric: TemporalConsistency, preds: list[Tensor], video: str = "video") -> float:
    metric.start(video)
    for index, each in enumerate(preds):
        metric.update(frame(index), each)
    return metric.compute()["TC"]


def reference(pairs: list[tuple[np.ndarray, np.ndarray]], dx: int, dy: int) -> float:
    """The definition, pixel by pixel, for whole-pixel motion."""
    together, either = np.zeros(CLASSES), np.zeros(CLASSES)
    for first, second in pairs:
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if 0 <= y + dy < HEIGHT and 0 <= x + dx < WIDTH:
                    a, b = first[y, x], second[y + dy, x + dx]
                    together[a] += a == b
                    either[a] += 1
                    either[b] += a != b
    return float(np.mean(together[either > 0] / either[either > 0]))


def test_a_moving_camera_is_consistent_with_its_own_flow() -> None:
    preds = [view(x, y) for x, y in ((0, 0), (2, 1), (4, 2), (6, 3))]
    assert score(TemporalConsistency(CLASSES, Motion(-2, -1)), preds) == 1.0
    assert score(TemporalConsistency(CLASSES, Motion(0, 0)), preds) < 0.5
    assert score(TemporalConsistency(CLASSES, Motion(2, 1)), preds) < 0.5


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -1), (-2, 4)])
def test_equals_reference(dx: int, dy: int) -> None:
    rng = np.random.default_rng(6)
    for classes in (1, 2, CLASSES):
        maps = [rng.integers(0, classes, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(5)]
        metric = TemporalConsistency(CLASSES, Motion(dx, dy))
        expected = reference(list(pairwise(maps)), dx, dy)
        assert score(metric, [torch.from_numpy(each) for each in maps]) == pytest.approx(expected, abs=1e-12)


def test_parts_add_up() -> None:
    rng = np.random.default_rng(7)
    whole, parts = (
        TemporalConsistency(CLASSES, Motion(1, 0)),
        [TemporalConsistency(CLASSES, Motion(1, 0)) for _ in "ab"],
    )
    for number in range(6):
        preds = [torch.from_numpy(rng.integers(0, CLASSES, (HEIGHT, WIDTH)).astype(np.uint8)) for _ in range(4)]
        score(whole, preds, str(number))
        score(parts[number % 2], preds, str(number))
    for mine, other in zip(parts[0].totals(), parts[1].totals(), strict=True):
        mine.add_(other)
    assert torch.equal(parts[0].matrix, whole.matrix)
    assert parts[0].compute() == whole.compute()


def test_only_neighbours_of_one_video_and_size_are_pairs() -> None:
    motion = Motion()
    metric = TemporalConsistency(CLASSES, motion)
    metric.start("a")
    for index in (0, 1, 3, 4):
        metric.update(frame(index), view(0))
    metric.start("b")
    metric.update(frame(5), view(0))
    metric.update(frame(6, (4, 4)), torch.zeros(4, 4, dtype=torch.uint8))
    metric.update(frame(7, (4, 4)), torch.zeros(2, 2, dtype=torch.uint8))
    assert motion.pairs == [(0, 1), (3, 4)]
    assert motion.videos == ["a", "b"]


def test_undefined_without_a_pair() -> None:
    assert math.isnan(score(TemporalConsistency(CLASSES, Motion()), [view(0)]))
    assert math.isnan(score(TemporalConsistency(CLASSES, Motion(99, 0)), [view(0), view(0)]))


def test_flow_is_scaled_to_the_preds() -> None:
    """Flow of 1 pixel at half the size is 2 pixels of the predictions."""
    metric = TemporalConsistency(CLASSES, Motion(-1, 0, (HEIGHT // 2, WIDTH // 2)))
    for index, x in enumerate((0, 2, 4)):
        metric.update(frame(index, (HEIGHT // 2, WIDTH // 2)), view(x))
    assert metric.compute()["TC"] == 1.0
    assert int(metric.matrix.sum()) == 2 * HEIGHT * (WIDTH - 2)


def with_stripes() -> tuple[Tensor, Tensor]:
    first, second = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    second[0] = 2  # a class that the first map does not have
    return first, second


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("ours", (5 / 6 + 0) / 2), ("vspw_exact", 41 / 48), ("etc_exact", 5 / 6 / CLASSES)],
)
def test_modes_average_over_different_classes(mode: str, expected: float) -> None:
    """In "vspw_exact" the last column is read outside the image, as class 0, even where nothing moves."""
    metric = TemporalConsistency(CLASSES, Motion(), mode=mode)  # type: ignore[arg-type]
    assert score(metric, list(with_stripes())) == pytest.approx(expected)


def test_modes_treat_the_border_differently() -> None:
    """Everything moves out of the image: left out; class 0; the border repeated."""
    ones = torch.ones(HEIGHT, WIDTH, dtype=torch.uint8)
    scores = {
        mode: score(TemporalConsistency(2, Motion(50, 0), mode=mode), [ones, ones])  # type: ignore[arg-type]
        for mode in ("ours", "vspw_exact", "etc_exact")
    }
    assert math.isnan(scores["ours"])
    assert scores["vspw_exact"] == 0.0
    assert scores["etc_exact"] == pytest.approx(0.5)  # class 1 perfect, class 0 absent


@pytest.mark.parametrize("mode", ["vspw_exact", "etc_exact"])
def test_exact_modes_refuse_unknown_flow(mode: str) -> None:
    metric = TemporalConsistency(CLASSES, Motion(float("nan"), 0), mode=mode)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"flow of frame 0 is not finite; mode '{mode}'"):
        score(metric, [view(0), view(0)])


# ---- occlusion -----------------------------------------------------------------------------------------------------


def hidden(motion: Motion) -> Motion:
    """What lands in columns 0 to 3 did not come from where the flow says."""
    forth, back = motion.flow, -motion.flow
    back[:, :, :4] = 20.0
    motion.__class__ = type("Hidden", (Motion,), {"__call__": lambda self, a, b: forth if b.index > a.index else back})
    return motion


def test_forward_backward_check_leaves_out_hidden_pixels() -> None:
    first, second = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    second[:, :4] = 1
    assert score(TemporalConsistency(2, hidden(Motion())), [first, second]) == pytest.approx(0.25)
    metric = TemporalConsistency(2, hidden(Motion()), occlusion=True)
    assert score(metric, [first, second]) == 1.0
    assert int(metric.matrix.sum()) == HEIGHT * 4


def test_a_source_says_what_is_visible() -> None:
    class Source:
        def flow(self, name: str, frame: int) -> Tensor:
            return torch.zeros(2, HEIGHT, WIDTH)

        def visible(self, name: str, frame: int) -> Tensor:
            return torch.arange(WIDTH).expand(HEIGHT, WIDTH) >= 4

    first, second = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    second[:, :4] = 1
    metric = TemporalConsistency(2, SourceFlow(Source()), occlusion=True)
    assert score(metric, [first, second]) == 1.0
    assert metric.protocol == "TC (source, nearest warp, visible pixels)"


# ---- flow by name, errors ------------------------------------------------------------------------------------------


def test_dis_by_default() -> None:
    metric = TemporalConsistency(CLASSES)
    assert metric.protocol == "TC (dis, nearest warp)"
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    preds = torch.randint(0, CLASSES, (20, 30), dtype=torch.uint8)
    for index in range(3):
        metric.update(Frame(image, index, 0.0), preds)
    assert metric.compute()["TC"] > 0.99


def test_missing_flow_file_names_the_file(tmp_path: Path) -> None:
    from steadyseg.flow import FileFlow

    (tmp_path / "video").mkdir()
    write_flo(tmp_path / "video" / "000000.flo", torch.zeros(2, HEIGHT, WIDTH))
    metric = TemporalConsistency(CLASSES, FileFlow(tmp_path))
    assert score(metric, [view(0), view(0)]) == 1.0
    with pytest.raises(DataError, match=r"000001\.flo"):
        score(metric, [view(0), view(0), view(0)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemporalConsistency(2, mode="etc"), "mode is 'etc'; expected one of ours, etc_exact, vspw_exact"),  # type: ignore[arg-type]
        (lambda: TemporalConsistency(2, mode="etc_exact", occlusion=True), "'etc_exact' knows no occlusion"),
        (lambda: TemporalConsistency(0), "num_classes is 0"),
        (lambda: TemporalConsistency(2, "files"), "needs the folder"),
    ],
)
def test_wrong_options(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_wrong_input() -> None:
    with pytest.raises(DataError, match="preds hold class 3; expected 0 to 1"):
        score(TemporalConsistency(2, Motion()), [torch.full((HEIGHT, WIDTH), 3, dtype=torch.uint8)])
    with pytest.raises(ShapeError, match=r"preds is torch\.int64"):
        score(TemporalConsistency(2, Motion()), [torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)])
    with pytest.raises(ShapeError, match="flow has shape"):
        score(TemporalConsistency(CLASSES, Motion(0, 0, (2, 2))), [view(0), view(0)])
