import doctest
import pickle

import pytest
import torch

from steadyseg.data import sampling
from steadyseg.data.sampling import at_offsets, still
from steadyseg.types import ConfigError


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_doctests() -> None:
    result = doctest.testmod(sampling)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_frames_lie_in_the_video_and_the_target_is_last(reverse: float) -> None:
    sample = at_offsets((-6, -3, 0), reverse=reverse)
    for length in (1, 2, 5, 13, 30):
        for target in range(length):
            frames = sample(target, length, dice(target))
            assert len(frames) == 3 and frames[-1] == target
            assert all(0 <= frame < length for frame in frames)
            assert sorted(frames) in (frames, frames[::-1]), "one direction of time"


def test_reverses_as_often_as_asked() -> None:
    sample, generator = at_offsets((-2, 0), reverse=0.25), dice()
    backward = sum(sample(10, 20, generator) == [12, 10] for _ in range(2000))
    assert abs(backward / 2000 - 0.25) < 0.03


def test_never_reversed_clips_clamp_at_the_first_frame() -> None:
    sample = at_offsets((-6, -3, 0), reverse=0)
    assert sample(2, 40, dice()) == [0, 0, 2]


def test_the_other_side_serves_where_frames_are_missing() -> None:
    sample = at_offsets((-6, -3, 0), reverse=0.5)
    for seed in range(20):
        assert sample(2, 40, dice(seed)) == [8, 5, 2]
        assert sample(38, 40, dice(seed)) == [32, 35, 38]


def test_the_dice_decide() -> None:
    sample = at_offsets((-6, -3, 0))
    assert [sample(20, 40, dice(3)) for _ in range(3)] == [sample(20, 40, dice(3))] * 3
    assert len({tuple(sample(20, 40, dice(seed))) for seed in range(20)}) == 2


def test_samplers_travel_to_worker_processes() -> None:
    for sample in (at_offsets((-1, 0), reverse=0), still(2)):
        assert pickle.loads(pickle.dumps(sample))(5, 9, dice()) == sample(5, 9, dice())


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"\(0, 1\).*target, 0, as the last"):
        at_offsets((0, 1))
    with pytest.raises(ConfigError, match="target"):
        at_offsets(())
    with pytest.raises(ConfigError, match=r"reverse is 1\.5"):
        at_offsets((0,), reverse=1.5)
    with pytest.raises(ConfigError, match="still clip of 0 frames"):
        still(0)
