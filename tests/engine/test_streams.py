"""Several videos as one batch give the labels of each alone, and share calls wherever the method allows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg import models
from steadyseg.engine.stream import Stream
from steadyseg.engine.streams import Streams
from steadyseg.models.base import VideoSegmenter, join_states, pick_state, state_layout
from steadyseg.types import ShapeError

SIZE = (64, 96)
PERIODIC = {"reuse": {"interval": 3}, "flow": {"interval": 3}, "tfc": {"interval": 3}, "dcfm": {"interval": 3}}


def build(name: str, **options: object) -> VideoSegmenter:
    torch.manual_seed(0)
    kind = models.method(name)
    model = kind(kind.Config(**(PERIODIC.get(name, {}) | options)), 5).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


def film(seed: int, length: int, size: tuple[int, int] = SIZE) -> list[Tensor]:
    """A smooth picture that moves a little, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 12, generator=generator) * 255
    wide = F.interpolate(coarse, size=(size[0], size[1] + 2 * length), mode="bicubic").clamp(0, 240)[0]
    noise = torch.randint(0, 12, (length, 3, *size), generator=generator)
    return [(wide[:, :, 2 * t : 2 * t + size[1]] + noise[t]).to(torch.uint8) for t in range(length)]


def together(streams: Streams, films: dict[str, list[Tensor]], starts: dict[str, int]) -> dict[str, list[Tensor]]:
    """Run films that begin in different rounds, as fast as they may; forget those that end."""
    done: dict[str, list[Tensor]] = {name: [] for name in films}
    for round_ in range(1000):
        on = [name for name in films if starts[name] <= round_ and len(done[name]) < len(films[name])]
        labels = streams({name: films[name][len(done[name])] for name in on})
        assert labels or not on, "every call with a frame segments one"
        for name, preds in labels.items():
            done[name].append(preds)
            if len(done[name]) == len(films[name]):
                streams.forget(name)
        if all(len(done[name]) == len(films[name]) for name in films):
            return done
    raise AssertionError("a video waits forever")


def alone(model: VideoSegmenter, frames: list[Tensor], *, reset_on_cut: bool = False) -> list[Tensor]:
    stream = Stream(model, reset_on_cut=reset_on_cut)
    return [stream(frame) for frame in frames]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == torch.uint8
        assert (mine != theirs).float().mean() < 1e-3  # rounding


def count_calls(model: VideoSegmenter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the batch size of every call of `step`."""
    sizes: list[int] = []
    step = model.step

    def counting(frame: Tensor, state: object = None) -> tuple[Tensor, object]:
        sizes.append(frame.shape[0])
        return step(frame, state)

    monkeypatch.setattr(model, "step", counting)
    return sizes


@pytest.mark.parametrize("name", models.names())
def test_labels_are_those_of_each_video_alone(name: str) -> None:
    """Videos join late, end early, and one has another size."""
    model = build(name)
    films = {"a": film(1, 11), "b": film(2, 9), "c": film(3, 5, (48, 80)), "d": film(4, 6)}
    found = together(Streams(model), films, {"a": 0, "b": 0, "c": 1, "d": 4})
    for key, frames in films.items():
        assert_same(found[key], alone(model, frames))
    assert any(len(preds.unique()) > 1 for preds in found["a"]), "labels that never change would show nothing"


@pytest.mark.parametrize("name", models.names())
def test_states_join_and_part(name: str) -> None:
    """Two videos on their own for two frames, then as one batch, then on their own again."""
    model = build(name)
    films = [film(1, 6), film(2, 6)]
    with torch.inference_mode():
        expected = [list(model.segment([frame[None] for frame in frames])) for frames in films]
        if name == "dcfm":  # its segment looks ahead
            expected = [[], []]
            for frames, results in zip(films, expected, strict=True):
                state = None
                for frame in frames:
                    logits, state = model.step(frame[None], state)
                    results.append(logits)
        states: list[object] = [None, None]
        for t in range(2):
            states = [model.step(frames[t][None], state)[1] for frames, state in zip(films, states, strict=True)]
        assert state_layout(states[0]) == state_layout(states[1])
        state = join_states(states)
        for t in range(2, 4):
            logits, state = model.step(torch.stack([frames[t] for frames in films]), state)
            for index in (0, 1):
                torch.testing.assert_close(logits[index : index + 1], expected[index][t], rtol=1e-3, atol=1e-4)
        assert state_layout(state) == state_layout(pick_state(state, 1))
        for index, frames in enumerate(films):
            own = pick_state(state, index)
            for t in range(4, 6):
                logits, own = model.step(frames[t][None], own)
                torch.testing.assert_close(logits, expected[index][t], rtol=1e-3, atol=1e-4)


def test_states_at_other_points_of_the_schedule_are_told_apart() -> None:
    model = build("reuse")
    frames = film(1, 3)
    states: list[object] = [None]
    with torch.inference_mode():
        for frame in frames:
            states.append(model.step(frame[None], states[-1])[1])
    assert len({state_layout(state) for state in states}) == 4


def test_videos_that_begin_together_share_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tfc")
    sizes = count_calls(model, monkeypatch)
    films = {name: film(seed, 7) for seed, name in enumerate("abc")}
    together(Streams(model), films, dict.fromkeys(films, 0))
    assert sizes == [3] * 7


def test_a_late_video_waits_for_a_key_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("reuse")  # key frames 0, 3, 6
    sizes = count_calls(model, monkeypatch)
    films = {"a": film(1, 9), "b": film(2, 6)}
    found = together(Streams(model), films, {"a": 0, "b": 1})
    assert sizes == [1, 1, 1, *[1, 1], *[2] * 5]  # b is offered in round 1, begins in round 3, and then shares
    assert_same(found["b"], alone(model, films["b"]))


def test_without_key_frames_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a late video remembers as much as the others it has calls of its own."""
    model = build("sdcpc")
    sizes = count_calls(model, monkeypatch)
    films = {"a": film(1, 10), "b": film(2, 9)}
    together(Streams(model), films, {"a": 0, "b": 1})
    assert sizes == [1, *[1, 1] * 6, *[2] * 3]


def test_videos_out_of_step_let_a_third_in() -> None:
    """No round has key frames of both; the new one joins either."""
    model = build("reuse")
    streams = Streams(model)
    frames = film(1, 12)
    streams({"a": frames[0]})
    streams({"a": frames[1]})
    streams({"b": frames[0]})
    rounds = 0
    while "c" not in streams(dict.fromkeys("abc", frames[2 + rounds])):
        rounds += 1
    assert rounds <= 2


def test_a_video_follows_its_own_cuts() -> None:
    model = build("tfc")
    day, night = film(1, 5), [(frame * 0.2).to(torch.uint8).flip(1) for frame in film(9, 5)]
    films = {"cut": [*day, *night], "calm": film(3, 10)}
    found = together(Streams(model, reset_on_cut=True), films, {"cut": 0, "calm": 0})
    assert_same(found["cut"], alone(model, films["cut"], reset_on_cut=True))
    assert_same(found["calm"], alone(model, films["calm"], reset_on_cut=True))
    plain = alone(model, films["cut"])
    assert any((a != b).float().mean() > 1e-3 for a, b in zip(found["cut"], plain, strict=True)), "the cut matters"


def test_where_the_video_chooses_key_frames_each_has_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = models.method("dcfm")
    adaptive = type(kind.Config().adaptive)(threshold=0.2)
    model = build("dcfm", adaptive=adaptive)
    sizes = count_calls(model, monkeypatch)
    films = {"a": film(1, 5), "b": film(2, 4)}
    found = together(Streams(model), films, {"a": 0, "b": 0})
    assert sizes == [1] * 9
    for key, frames in films.items():
        assert_same(found[key], alone(model, frames))


def test_wrong_frames_and_a_new_video_of_the_same_name() -> None:
    streams = Streams(build("segformer"))
    streams({"a": film(1, 1)[0]})
    with pytest.raises(ShapeError, match=r"video a is 48x80, the frames before were 64x96; call forget\(\)"):
        streams({"a": film(1, 1, (48, 80))[0]})
    with pytest.raises(ShapeError, match="float32"):
        streams({"a": film(1, 1)[0].float()})
    streams.forget("a")
    assert streams({"a": film(1, 1, (48, 80))[0]})["a"].shape == (48, 80)
    assert streams({}) == {}
