"""The overlay: colours, lines, untouched pixels, and a legend that holds still."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import CLASSES, PALETTE, pictures

from steadyseg.types import IGNORE, ShapeError
from steadyseg.video import Overlay, overlay, read


def halves(size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    """Labels: road at the left, car at the right."""
    preds = torch.zeros(size, dtype=torch.uint8)
    preds[:, size[1] // 2 :] = 2
    return preds


def test_colors_are_blended() -> None:
    image, preds = pictures(1)[0], halves()
    drawn = Overlay(CLASSES, PALETTE, opacity=0.25, boundaries=False, legend=False)(image, preds)
    colors = torch.tensor(PALETTE)[preds.long()].permute(2, 0, 1)  # [3, H, W]
    expected = 0.75 * image.float() + 0.25 * colors.float()
    assert drawn.shape == image.shape and drawn.dtype == torch.uint8
    assert (drawn.float() - expected).abs().max() <= 0.5


def test_opacity_at_its_ends() -> None:
    image, preds = pictures(1)[0], halves()
    plain = {value: Overlay(CLASSES, PALETTE, opacity=value, boundaries=False, legend=False) for value in (0, 1)}
    assert torch.equal(plain[0](image, preds), image)
    assert tuple(plain[1](image, preds)[:, 10, 60].tolist()) == PALETTE[2]


def test_unlabelled_pixels_stay_untouched() -> None:
    image, preds = pictures(1)[0], halves()
    preds[5:10, 5:10] = IGNORE
    preds[20:25, 5:10] = len(CLASSES)
    drawn = Overlay(CLASSES, PALETTE, legend=False)(image, preds)
    unlabelled = preds >= len(CLASSES)
    assert torch.equal(drawn[:, unlabelled], image[:, unlabelled])
    assert not torch.equal(drawn, image)


def test_lines_are_only_where_classes_meet() -> None:
    image, preds = pictures(1)[0], halves()
    with_lines = Overlay(CLASSES, PALETTE, legend=False)(image, preds)
    without = Overlay(CLASSES, PALETTE, legend=False, boundaries=False)(image, preds)
    columns = (with_lines != without).any(0).any(0).nonzero().flatten().tolist()
    assert columns and set(columns) <= {31, 32}


def test_input_is_not_changed() -> None:
    image, preds = pictures(1)[0], halves()
    before = image.clone(), preds.clone()
    Overlay(CLASSES, PALETTE)(image, preds)
    assert torch.equal(image, before[0]) and torch.equal(preds, before[1])


def test_the_legend_only_grows_and_never_moves() -> None:
    draw = Overlay(CLASSES, PALETTE)
    image = torch.zeros(3, 180, 320, dtype=torch.uint8)
    preds = torch.zeros(180, 320, dtype=torch.uint8)
    first = draw(image, preds)[:, 180:]
    preds[:, :100] = 2
    second = draw(image, preds)[:, 180:]
    third = draw(image, torch.zeros_like(preds))[:, 180:]
    assert first.shape == second.shape and first.shape[1] % 2 == 0
    assert torch.equal(second, third)
    changed = (first != second).any(0).any(0).nonzero().flatten()
    assert changed.numel() > 0
    left = int(changed.min())
    assert torch.equal(first[..., :left], second[..., :left]) and left > 20
    for color, count in zip(PALETTE, (1, 0, 1), strict=True):
        found = (second == torch.tensor(color).reshape(3, 1, 1)).all(0)  # [h, W]
        assert bool(found.any()) == bool(count)
    draw.reset()
    assert torch.equal(draw(image, torch.zeros_like(preds))[:, 180:], first)


def test_a_few_stray_pixels_do_not_enter_the_legend() -> None:
    draw = Overlay(CLASSES, PALETTE)
    image, preds = torch.zeros(3, 180, 320, dtype=torch.uint8), torch.zeros(180, 320, dtype=torch.uint8)
    first = draw(image, preds)[:, 180:]
    preds[0, :3] = 1
    assert torch.equal(draw(image, preds)[:, 180:], first)


def test_too_many_classes_are_counted() -> None:
    classes = [f"class_number_{index}" for index in range(100)]
    palette = [(index, 255 - index, 7) for index in range(100)]
    image = torch.zeros(3, 100, 320, dtype=torch.uint8)
    drawn = {}
    for count in (5, 100):
        preds = (torch.arange(320) % count).to(torch.uint8).expand(100, 320)
        drawn[count] = overlay(image, preds, classes=classes, palette=palette)
    assert drawn[5].shape == drawn[100].shape
    listed = [
        sum(bool((drawn[count][:, 100:] == torch.tensor(color).reshape(3, 1, 1)).all(0).any()) for color in palette)
        for count in (5, 100)
    ]
    assert 1 <= listed[0] <= 5 and listed[0] <= listed[1] < 30


def test_one_row_when_slightly_smaller_letters_fit() -> None:
    classes = ("sky", "building", "pole", "road", "sidewalk", "tree", "sign symbol", "fence", "car", "pedestrian")
    image, preds = torch.zeros(3, 540, 960, dtype=torch.uint8), torch.zeros(540, 960, dtype=torch.uint8)
    drawn = overlay(image, preds, classes=classes, palette=[(1, 2, 3)] * len(classes))
    assert 540 < drawn.shape[1] < 590


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 40)])
def test_tiny_frames_have_no_legend(size: tuple[int, int]) -> None:
    image, preds = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    assert overlay(image, preds, classes=CLASSES, palette=PALETTE).shape == image.shape


def test_beside() -> None:
    image, preds = pictures(1, (90, 160))[0], halves((90, 160))
    drawn = Overlay(CLASSES, PALETTE, beside=True)(image, preds)
    alone = Overlay(CLASSES, PALETTE, legend=False)(image, preds)
    assert drawn.shape[2] == 320 and drawn.shape[1] > 90
    assert torch.equal(drawn[:, :90, :160], image)
    assert torch.equal(drawn[:, :90, 160:], alone)


def test_wrong_shapes() -> None:
    image, preds = pictures(1)[0], halves()
    with pytest.raises(ShapeError, match=r"preds has shape \[47, 64\]; expected \[48, 64\]"):
        overlay(image, preds[1:], classes=CLASSES, palette=PALETTE)
    with pytest.raises(ShapeError, match="palette has 2 colours; expected 3"):
        Overlay(CLASSES, PALETTE[:2])


def test_real_frame(data_root: Path) -> None:
    frame = next(read(data_root / "video" / "solidWhiteRight.mp4"))
    drawn = overlay(frame.image, halves((540, 960)), classes=CLASSES, palette=PALETTE)
    assert drawn.shape[2] == 960 and drawn.shape[1] > 540
    # The picture stays visible through the colours.
    pair = torch.stack((drawn[0, :540, :470].flatten(), frame.image[0, :, :470].flatten())).float()
    assert torch.corrcoef(pair)[0, 1] > 0.9
