"""Values that cross borders."""

from __future__ import annotations

import pytest
import torch

import steadyseg
from steadyseg.types import CheckpointError, Clip, ConfigError, DataError, ShapeError, check_shape


def test_check_shape_names_what_is_wrong() -> None:
    check_shape("frame", torch.zeros(2, 3, 4, 4), ("B", 3, "N", "N"))
    with pytest.raises(ShapeError, match=r"frame has shape \[2, 3, 4, 5\]; expected \[B, 3, N, N\]"):
        check_shape("frame", torch.zeros(2, 3, 4, 5), ("B", 3, "N", "N"))
    with pytest.raises(ShapeError, match="expected"):
        check_shape("frame", torch.zeros(2, 3), ("B", 3, "H"))
    with pytest.raises(ShapeError, match=r"torch\.float32; expected torch\.uint8"):
        check_shape("frame", torch.zeros(1), ("B",), torch.uint8)


def test_clips_stack_and_move() -> None:
    clip = Clip(
        torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.ones(2, 4, 5, dtype=torch.uint8), torch.tensor([4, 7])
    )
    batch = Clip.stack([clip, clip]).to("cpu")
    assert batch.frames.shape == (2, 2, 3, 4, 5)
    assert batch.labels.shape == (2, 2, 4, 5)
    assert batch.index.tolist() == [[4, 7], [4, 7]]


def test_exit_statuses() -> None:
    assert ConfigError.exit_status == 2
    assert DataError.exit_status == CheckpointError.exit_status == ShapeError.exit_status == 1


def test_public_names() -> None:
    for name in steadyseg.__all__:
        assert getattr(steadyseg, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = steadyseg.nothing_here
