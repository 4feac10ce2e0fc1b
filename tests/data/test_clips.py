import gc
import pickle
from collections.abc import Iterator, Sequence

import av
import pytest
import torch
from torch.utils.data import DataLoader

from steadyseg.data import SourceConfig, clips
from steadyseg.data.augment import AugmentConfig, build_augment
from steadyseg.data.clips import (
    ClipDataset,
    DataConfig,
    MixedClips,
    median_frequency_weights,
    start_worker,
    training_clips,
)
from steadyseg.data.kept import KeptFrames
from steadyseg.data.sampling import Sampler, at_offsets, still
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, Clip, ConfigError, DataError, Frame


class TinySource(VideoSource):
    """Videos "a" and "b" of 12 and 7 frames; blue is the frame number; every third frame is labelled."""

    classes = ("left", "right", "never")
    palette = ((0, 0, 0), (9, 9, 9), (99, 99, 99))
    lengths = {"a": 12, "b": 7}  # noqa: RUF012
    names = ("a", "b")

    def __init__(self, size: tuple[int, int] = (24, 32), every: int = 3) -> None:
        self.size, self.every = size, every
        self.reads: list[tuple[str, int]] = []

    def length(self, name: str) -> int:
        return self.lengths[name]

    def labelled(self, name: str) -> tuple[int, ...]:
        return tuple(range(0, self.lengths[name], self.every)) if self.every else ()

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        for number in range(self.length(name)) if frames is None else frames:
            self.reads.append((name, number))
            image = torch.zeros(3, *self.size, dtype=torch.uint8)
            image[0] = torch.arange(self.size[1])
            image[2] = number
            labels = torch.zeros(self.size, dtype=torch.uint8)
            labels[:, self.size[1] * 3 // 4 :] = 1
            yield Frame(image, number, number / self.rate, labels if number in self.labelled(name) else None)


class MixedSizes(TinySource):
    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        for frame in super().read(name, frames):
            yield frame._replace(image=frame.image[:, : 24 - frame.index])


def untouched(clip: Clip, generator: torch.Generator) -> Clip:
    return clip


PAST = at_offsets((-2, -1, 0), reverse=0)
RECIPE = build_augment(AugmentConfig(crop=(16, 16)))


def equal(a: Clip, b: Clip) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


# ---- one source --------------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_labelled_frame_once_in_its_own_order() -> None:
    source = TinySource()
    dataset = ClipDataset(source, PAST, untouched)
    everything = [(name, frame) for name in source.names for frame in source.labelled(name)]
    assert len(dataset) == len(everything) == 7
    targets = [dataset.target(i) for i in range(28)]
    epochs = [targets[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [ClipDataset(source, PAST, untouched, seed=1).target(i) for i in range(28)] != targets


def test_clip_holds_the_sampled_frames_and_ignores_the_unlabelled() -> None:
    dataset = ClipDataset(TinySource(), PAST, untouched)
    for i in range(7):
        clip, (_, target) = dataset[i], dataset.target(i)
        assert clip.index.tolist() == [max(target - 2, 0), max(target - 1, 0), target]
        assert clip.frames[:, 2, 0, 0].tolist() == clip.index.tolist()
        assert clip.frames.dtype == clip.labels.dtype == torch.uint8 and clip.index.dtype == torch.int64
        for t, number in enumerate(clip.index.tolist()):
            assert bool((clip.labels[t] == IGNORE).all()) == (number % 3 != 0)
        assert set(clip.labels[-1].unique().tolist()) == {0, 1}


def test_a_repeated_frame_is_read_once() -> None:
    source = TinySource()
    clip = ClipDataset(source, still(4), untouched)[0]
    assert clip.frames.shape == (4, 3, 24, 32) and len(source.reads) == 1


def test_everything_follows_from_seed_and_number() -> None:
    one, two = (ClipDataset(TinySource(), at_offsets((-2, 0)), RECIPE, seed=5) for _ in range(2))
    forward = [one[i] for i in range(20)]
    backward = [two[i] for i in reversed(range(20))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    other = ClipDataset(TinySource(), at_offsets((-2, 0)), RECIPE, seed=6)
    assert not all(equal(forward[i], other[i]) for i in range(20))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    def batches(count: int) -> list[Clip]:
        parts = [ClipDataset(TinySource(), at_offsets((-2, 0)), RECIPE, seed=s, cache_mb=1) for s in (1, 2)]
        dataset = MixedClips(parts, (0.7, 0.3))
        options = {"num_workers": count, "collate_fn": Clip.stack, "worker_init_fn": lambda number: start_worker()}
        return list(DataLoader(dataset, batch_size=3, sampler=range(4, 22), **options))

    alone, shared = batches(0), batches(workers)
    assert len(alone) == 6 and alone[0].frames.shape == (3, 2, 3, 16, 16)
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))


class Collects(TinySource):
    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        gc.collect()
        yield from super().read(name, frames)


def test_workers_leave_video_frames_of_the_process_before_alone() -> None:
    """A forked process that frees such a frame waits for threads which it does not have."""
    frame = av.VideoFrame(640, 480, "yuv420p")
    frame.reformat(format="rgb24")
    gc.disable()
    try:
        cycle: list[object] = [frame]
        cycle.append(cycle)
        del cycle, frame
        parts = [ClipDataset(Collects(), at_offsets((-2, 0)), RECIPE, seed=1, cache_mb=1)]
        options = {"num_workers": 1, "timeout": 30, "worker_init_fn": lambda number: start_worker()}
        loader = DataLoader(MixedClips(parts, (1.0,)), sampler=range(2), collate_fn=Clip.stack, **options)
        assert len(list(loader)) == 2
    finally:
        gc.enable()


def test_cache_changes_nothing_but_the_number_of_reads() -> None:
    plain, cached = TinySource(every=1), TinySource(every=1)
    without = ClipDataset(plain, PAST, RECIPE)
    within = ClipDataset(cached, PAST, RECIPE, cache_mb=1)
    for i in range(3 * len(without)):
        assert equal(without[i], within[i])
    assert len(cached.reads) == len(set(cached.reads)) == 19 < len(plain.reads)


def test_frames_read_for_class_weights_are_not_read_again() -> None:
    source = TinySource(every=1)
    dataset = MixedClips([ClipDataset(source, PAST, RECIPE, cache_mb=1)], [1.0])
    weights = median_frequency_weights(dataset.sources)
    assert torch.equal(weights, median_frequency_weights([TinySource(every=1)]))
    assert len(source.reads) == 19
    without = MixedClips([ClipDataset(TinySource(every=1), PAST, RECIPE)], [1.0])
    assert all(equal(without[i], dataset[i]) for i in range(19))
    assert len(source.reads) == 19


def test_kept_frames_come_in_the_order_asked_for() -> None:
    source = TinySource(every=1)
    kept = KeptFrames(source, 1)
    assert [frame.index for frame in kept.read("a", [3, 3, 1])] == [3, 3, 1]
    source.reads.clear()
    found = list(kept.read("a", [5, 3, 5, 1, 0]))
    assert [frame.index for frame in found] == [int(frame.image[2, 0, 0]) for frame in found] == [5, 3, 5, 1, 0]
    assert source.reads == [("a", 5), ("a", 5), ("a", 0)]
    assert len(list(kept.read("a"))) == 12 and kept.length("b") == 7 and kept.rate == source.rate


class TooMany(TinySource):
    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        yield from super().read(name, [*(frames or ()), 0])


class TooFew(TinySource):
    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        yield from super().read(name, list(frames or ())[:-1])


def test_a_source_gives_as_many_frames_as_were_asked_for() -> None:
    with pytest.raises(DataError, match="video a: more than the 2 frames"):
        list(KeptFrames(TooMany(), 1).read("a", [1, 2]))
    with pytest.raises(DataError, match="video a ended before frame 2"):
        list(KeptFrames(TooFew(), 1).read("a", [1, 2]))


def test_a_pickled_copy_begins_without_frames() -> None:
    kept = KeptFrames(TinySource(size=(100, 100)), 1)
    empty = len(pickle.dumps(kept))
    list(kept.read("a"))
    assert len(pickle.dumps(kept)) < empty + 1000  # the list of reads
    copy = pickle.loads(pickle.dumps(kept))
    assert len(list(copy.read("b"))) == len(list(copy.read("b"))) == 7
    assert copy._source.reads[12:] == [("b", number) for number in range(7)]


def test_cache_is_bounded() -> None:
    source = TinySource(size=(300, 400), every=1)  # 480,000 bytes a frame: two fit into a megabyte
    dataset = ClipDataset(source, still(1), untouched, cache_mb=1)
    for i in range(2 * len(dataset)):
        dataset[i]
    assert len(source.reads) == 19 + 17


def test_errors_of_a_source() -> None:
    with pytest.raises(DataError, match="TinySource has no labelled frame"):
        ClipDataset(TinySource(every=0), PAST, untouched)
    dataset = ClipDataset(MixedSizes(), still(1), untouched)
    with pytest.raises(DataError, match=r"video .: frames and labels \[\d+\] are .*24x32; expected one size"):
        for i in range(7):
            dataset[i]


# ---- several sources ---------------------------------------------------------------------------------------------


def parts(count: int, sample: Sampler = PAST) -> list[ClipDataset]:
    return [ClipDataset(TinySource(), sample, untouched, seed=seed) for seed in range(count)]


def test_mixing_follows_the_weights_and_leaves_nothing_out() -> None:
    mixed = MixedClips(parts(3), (5, 3, 2))
    places = [mixed.place(i) for i in range(2000)]
    for part, share in enumerate((0.5, 0.3, 0.2)):
        mine = [number for which, number in places if which == part]
        assert mine == list(range(int(2000 * share))), "each stream in its order, none left out"
        assert abs(sum(which == part for which, _ in places[:200]) - 200 * share) < 30, "well shuffled"
    assert [mixed.place(i) for i in range(1999, -1, -1)][::-1] == places
    assert places != [MixedClips(parts(3), (5, 3, 2), seed=1).place(i) for i in range(2000)]


def test_a_mixed_item_is_the_item_of_its_stream() -> None:
    streams = parts(2)
    mixed = MixedClips(streams, (1, 1))
    for i in range(6):
        part, number = mixed.place(i)
        assert equal(mixed[i], streams[part][number])


def test_a_tiny_weight_still_counts() -> None:
    mixed = MixedClips(parts(3), (1e-6, 1, 1e-6))
    assert {mixed.place(i)[0] for i in range(int(mixed.counts.sum()))} == {0, 1, 2}


def test_errors_of_a_mixture() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        MixedClips([], [])
    with pytest.raises(ConfigError, match=r"weights of data\.train are \[1, 0\]"):
        MixedClips(parts(2), (1, 0))


# ---- from a config -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "open_source", lambda entry: TinySource(entry.size))


@pytest.mark.usefixtures("tiny")
def test_training_clips() -> None:
    moving = SourceConfig(source="streets", size=(24, 32), weight=0.5)
    frozen = SourceConfig(source="streets", size=(30, 40), still=True, weight=0.5)
    config = DataConfig(train=(moving, frozen), augment=AugmentConfig(crop=(16, 20)), cache_mb=2)
    dataset = training_clips(config, (-2, -1, 0), seed=3)
    drawn = [dataset[i] for i in range(24)]
    assert all(clip.frames.shape == (3, 3, 16, 20) and clip.labels.shape == (3, 16, 20) for clip in drawn)
    for i, clip in enumerate(drawn):
        frozen_clip = dataset.place(i)[0] == 1
        assert (len(set(clip.index.tolist())) == 1) == frozen_clip
        assert (clip.labels[0] != IGNORE).any() or not frozen_clip, "a still clip has labels in every frame"
    again = training_clips(config, (-2, -1, 0), seed=3)
    assert all(equal(again[i], clip) for i, clip in enumerate(drawn))
    assert not equal(training_clips(config, (-2, -1, 0), seed=4)[0], drawn[0])


def test_clips_labelled_throughout_need_such_videos_or_stills(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"a": 3}
    monkeypatch.setattr(clips, "open_source", lambda entry: TinySource(entry.size, every["a"]))
    moving = SourceConfig(source="streets", size=(24, 32))
    frozen = SourceConfig(source="streets", size=(24, 32), still=True)
    augment = AugmentConfig(crop=(16, 20))
    with pytest.raises(DataError, match=r"4 of the 12 frames of 'a' are labelled.*still: true"):
        training_clips(DataConfig(train=(moving,), augment=augment), (-1, 0), seed=0, dense=True)
    training_clips(DataConfig(train=(frozen,), augment=augment), (-1, 0), seed=0, dense=True)
    every["a"] = 1
    training_clips(DataConfig(train=(moving,), augment=augment), (-1, 0), seed=0, dense=True)


def test_frames_far_apart_in_time_are_no_clips(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TinySource, "rate", 1.0)
    monkeypatch.setattr(clips, "open_source", lambda entry: TinySource(entry.size, 1))
    config = DataConfig(train=(SourceConfig(source="streets", size=(24, 32)),), augment=AugmentConfig(crop=(16, 20)))
    with pytest.raises(DataError, match=r"1 s apart.*still: true"):
        training_clips(config, (-1, 0), seed=0, dense=True)
    assert not caplog.messages
    training_clips(config, (0,), seed=0)
    assert not caplog.messages, "a single frame needs no neighbour"
    training_clips(config, (-1, 0), seed=0)
    assert "1 s apart" in caplog.messages[0]


@pytest.mark.usefixtures("tiny")
def test_two_entries_of_one_source_draw_differently() -> None:
    entry = SourceConfig(size=(24, 32))
    one, two = training_clips(DataConfig(train=(entry, entry), augment=AugmentConfig(crop=(16, 20))), (0,), 0).parts
    assert not all(equal(one[i], two[i]) for i in range(5))


@pytest.mark.usefixtures("tiny")
def test_reversal_can_be_switched_off() -> None:
    entry = SourceConfig(size=(24, 32))

    def backward(reverse: float) -> int:
        config = DataConfig(train=(entry,), augment=AugmentConfig(crop=(16, 20)), reverse=reverse)
        dataset = training_clips(config, (-1, 0), 0)
        return sum(int(dataset[i].index.diff()) > 0 for i in range(30))

    assert backward(1.0) < 10 < backward(0.0), "clips that do not run forward in their numbers are backward"


def test_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"data\.reverse is 2"):
        DataConfig(reverse=2)
    with pytest.raises(ConfigError, match=r"data\.cache_mb is -1"):
        DataConfig(cache_mb=-1)


# ---- class weights -----------------------------------------------------------------------------------------------


def test_median_frequency_weights() -> None:
    weights = median_frequency_weights([TinySource()])
    # shares 3/4 and 1/4 in every labelled image; their median is 1/2; "never" is not shown
    assert torch.allclose(weights, torch.tensor([2 / 3, 2.0, 1.0]))
    assert weights.dtype == torch.float32
    assert torch.allclose(median_frequency_weights([TinySource()], cap=1.5), torch.tensor([2 / 3, 1.5, 1.0]))
    assert torch.allclose(median_frequency_weights([TinySource()] * 2), weights)


class Corner(TinySource):
    """Every image is class 0; the first labelled one has a corner of class 1 and a void row."""

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        for frame in super().read(name, frames):
            labels = torch.zeros(self.size, dtype=torch.uint8)
            if (name, frame.index) == ("a", 0):
                labels[0], labels[-4:, -4:] = IGNORE, 1
            yield frame._replace(labels=labels)


def test_frequency_is_over_the_images_that_show_the_class() -> None:
    whole, first = 24 * 32, 23 * 32
    share = torch.tensor([(first - 16 + 6 * whole) / (first + 6 * whole), 16 / first])
    expected = share.mean() / share
    assert torch.allclose(median_frequency_weights([Corner()], cap=1e9)[:2], expected)


def test_class_weights_read_only_some_images_of_a_large_source() -> None:
    source = TinySource(every=1)
    median_frequency_weights([source], limit=5)
    assert len(source.reads) == 5 and source.reads[0] == ("a", 0) and source.reads[-1] == ("b", 6)
