"""Flicker, and the contact sheet of a video of any length."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from samples import CLASSES, PALETTE, pictures

from steadyseg.types import ShapeError
from steadyseg.video import ContactSheet, contact_sheet, flicker


def test_flicker_is_a_changed_label_on_an_unchanged_picture() -> None:
    preds = torch.zeros(3, 2, 2, dtype=torch.uint8)
    preds[1, 0, 0] = 1  # changes, and changes back
    preds[2, 1, 1] = 2
    images = torch.full((3, 3, 2, 2), 100, dtype=torch.uint8)
    images[2, 1, 1, 1] = 140  # one channel of the picture changed as well
    everywhere = flicker(preds)
    assert everywhere.dtype == torch.bool and everywhere.shape == (2, 2, 2)
    assert everywhere.nonzero().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert flicker(preds, images).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]
    assert torch.equal(flicker(preds, images, tolerance=40), everywhere)
    images[1] = 90  # darker, over the wrap of uint8
    assert flicker(preds, images).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_flicker_of_a_single_frame_is_empty() -> None:
    assert flicker(torch.zeros(1, 2, 2, dtype=torch.uint8)).shape == (0, 2, 2)


def sheet_of(count: int, *, flickers_after: int) -> torch.Tensor:
    """Sheet of a still video in which the right half changes its label in every frame from one on."""
    sheet = ContactSheet(CLASSES, PALETTE, columns=3, width=300)
    image = torch.full((3, 40, 80), 120, dtype=torch.uint8)
    for index in range(count):
        preds = torch.zeros(40, 80, dtype=torch.uint8)
        if index >= flickers_after:
            preds[:, 40:] = index % 2
        sheet.add(image, preds, index / 10)
    return sheet.image()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 13, 50, 200])
def test_a_sheet_of_any_length_has_its_columns(count: int) -> None:
    sheet = sheet_of(count, flickers_after=count)
    assert sheet.shape[0] == 3 and sheet.dtype == torch.uint8
    per_column = 100
    assert sheet.shape[2] // per_column == min(count, 3)


def test_flicker_glows_in_the_columns_where_it_was() -> None:
    steady = sheet_of(60, flickers_after=60)
    bottom = slice(steady.shape[1] * 2 // 3, None)
    for start, left in ((45, 200), (0, 0)):  # frame 45 belongs to the third of three columns
        sheet = sheet_of(60, flickers_after=start)
        glowing = sheet[:, bottom].int().sum(0) > steady[:, bottom].int().sum(0) + 300
        columns = (glowing.sum(0) > 20).nonzero().flatten()  # a tile's height, not a letter's
        assert left + 50 < columns.min() < left + 100 and 260 < columns.max() < 330
        assert glowing.sum() > 50 * 25  # half a tile at least


def test_memory_does_not_grow() -> None:
    sheet = ContactSheet(CLASSES, PALETTE, columns=3, width=90)
    for index in range(500):
        sheet.add(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8), index)
        assert len(sheet._kept) <= 12
    assert sum(column.steps for column in sheet._kept) == 499
    times = [column.time for column in sheet._kept]
    assert times[0] == 0 and times[-1] > 400
    assert len({after - before for before, after in pairwise(times)}) == 1


def test_rows_show_frames_then_labels() -> None:
    images = torch.stack(pictures(2, (60, 100)))
    preds = torch.full((2, 60, 100), 1, dtype=torch.uint8)
    sheet = contact_sheet(
        images, preds, shares=torch.zeros(2, 60, 100), classes=CLASSES, palette=PALETTE, times=[0.0, 0.5]
    )
    assert any(
        torch.equal(sheet[:, top : top + 40, left : left + 100], images[0, :, :40])
        for top in range(20, 60)
        for left in range(5, 20)
    )
    green = (sheet == torch.tensor(PALETTE[1]).reshape(3, 1, 1)).all(0)  # [H, W]
    assert green.sum() >= 2 * 60 * 100
    assert not (sheet == torch.tensor(PALETTE[2]).reshape(3, 1, 1)).all(0).any(), "car does not occur"


def test_an_empty_sheet_and_wrong_shapes() -> None:
    sheet = ContactSheet(CLASSES, PALETTE)
    with pytest.raises(ShapeError, match="contact sheet is empty"):
        sheet.image()
    with pytest.raises(ShapeError, match="preds has shape"):
        sheet.add(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 9, dtype=torch.uint8), 0.0)
