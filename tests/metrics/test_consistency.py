"""Video consistency: the spec's vectors by hand, and every protocol against window-by-window NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from label_videos import Video, feed, image, random_video

from steadyseg.metrics.consistency import VideoConsistency
from steadyseg.types import IGNORE, ConfigError, Frame, ShapeError

LENGTHS = (8, 16)


# ---- the definitions, window by window ---------------------------------------------------------------------------


def windows(labels: np.ndarray, preds: np.ndarray, length: int, *, last: bool) -> list[float]:
    """Scores of all windows of one run; NaN where nothing holds still."""
    scores = []
    for start in range(len(labels) - length + int(last)):
        truth, guess = labels[start : start + length], preds[start : start + length]
        still = (truth == truth[0]).all(0)
        steady = (guess == guess[0]).all(0)
        scores.append((still & steady).sum() / still.sum() if still.any() else math.nan)
    return scores


def windows_without_ignored(labels: np.ndarray, preds: np.ndarray, length: int, *, correct: bool) -> list[float]:
    scores = []
    for start in range(len(labels) - length + 1):
        truth, guess = labels[start : start + length], preds[start : start + length]
        still = (truth == truth[0]).all(0) & (truth != IGNORE).all(0)
        steady = (guess == guess[0]).all(0)
        if correct:
            steady &= (guess == truth).all(0)
        scores.append((still & steady).sum() / still.sum() if still.any() else math.nan)
    return scores


def mean(scores: list[float]) -> float:
    defined = [score for score in scores if not math.isnan(score)]
    return sum(defined) / len(defined) if defined else math.nan


def reference(videos: list[Video], protocol: str) -> dict[str, float]:
    lists: dict[int, list[float]] = {}
    for n in LENGTHS:
        lists[n] = []
        for video in videos:
            if protocol in ("vspw", "mixed") and len(video.raw) > n:
                lists[n] += windows(video.raw, video.preds, n, last=False)
            if protocol == "cffm_skip16" and len(video.raw) > 16:
                lists[n] += windows(video.labels, video.preds, n, last=False)
            if protocol in ("full", "strict"):
                lists[n] += windows_without_ignored(video.labels, video.preds, n, correct=protocol == "strict")
    if protocol == "mixed":
        return {"mVC8_mixed": mean(lists[8]), "mVC16_mixed": mean(lists[8] + lists[16])}
    suffix = "_strict" if protocol == "strict" else ""
    return {f"mVC{n}{suffix}": mean(lists[n]) for n in LENGTHS}


def metric_of(protocol: str, videos: list[Video]) -> VideoConsistency:
    """A metric that reads the raw labels of videos named by their place in the list, where the protocol does."""

    def raw(name: str, index: int) -> torch.Tensor:
        return torch.from_numpy(videos[int(name)].raw[index])

    return VideoConsistency(LENGTHS, protocol, raw_labels=raw if protocol in ("vspw", "mixed") else None)


@pytest.mark.parametrize("protocol", ["vspw", "cffm_skip16", "full", "strict", "mixed"])
def test_equals_reference(protocol: str) -> None:
    rng = np.random.default_rng(3)
    videos = [random_video(rng) for _ in range(200)]
    whole, parts, defined = metric_of(protocol, videos), [metric_of(protocol, videos) for _ in range(3)], 0
    for number, video in enumerate(videos):
        alone = metric_of(protocol, [video])
        feed(alone, "0", video)
        expected = reference([video], protocol)
        assert alone.compute() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        defined += not math.isnan(min(expected.values()))
        feed(whole, str(number), video)
        feed(parts[number % 3], str(number), video)
    assert 30 < defined < 170  # both defined and undefined videos were met
    assert whole.compute() == pytest.approx(reference(videos, protocol), abs=1e-12)
    for part in parts[1:]:  # parts of a split, scored apart, merge by addition
        for mine, other in zip(parts[0].totals(), part.totals(), strict=True):
            mine.add_(other)
    assert parts[0].compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert torch.equal(parts[0].counts, whole.counts)


def test_the_protocols_differ() -> None:
    rng = np.random.default_rng(4)
    videos = [random_video(rng) for _ in range(50)]
    scores = [tuple(reference(videos, protocol).values()) for protocol in ("vspw", "cffm_skip16", "full", "strict")]
    assert len(set(scores)) == 4


# ---- the spec's vectors --------------------------------------------------------------------------------------------


def score(labels: np.ndarray, preds: np.ndarray, protocol: str, lengths: tuple[int, ...] = LENGTHS) -> dict[str, float]:
    metric = VideoConsistency(lengths, protocol)
    feed(metric, "video", Video(labels + np.uint8(1), preds))
    return metric.compute()


def constant(length: int, value: int = 1) -> np.ndarray:
    return np.full((length, 2, 2), value, np.uint8)


@pytest.mark.parametrize("protocol", ["vspw", "cffm_skip16", "full"])
@pytest.mark.parametrize("value", [1, 3])
def test_constant_is_perfect_even_if_wrong(protocol: str, value: int) -> None:
    assert score(constant(20), constant(20, value), protocol) == {"mVC8": 1.0, "mVC16": 1.0}


def test_strict_wants_the_right_label() -> None:
    assert score(constant(20), constant(20), "strict") == {"mVC8_strict": 1.0, "mVC16_strict": 1.0}
    assert score(constant(20), constant(20, 3), "strict") == {"mVC8_strict": 0.0, "mVC16_strict": 0.0}
    assert VideoConsistency(LENGTHS, "strict").protocol == "mVC8_strict, mVC16_strict (strict)"


@pytest.mark.parametrize("n", LENGTHS)
def test_short_videos(n: int) -> None:
    """L = n is undefined where the last window is dropped; L = n + 1 has one window, whose last frame is unread."""
    name = f"mVC{n}"
    assert math.isnan(score(constant(n), constant(n), "vspw", (n,))[name])
    assert score(constant(n), constant(n), "full", (n,)) == {name: 1.0}
    assert math.isnan(score(constant(n - 1), constant(n - 1), "full", (n,))[name])
    early, late = constant(n + 1), constant(n + 1)
    early[1, 0, 0] = 2
    late[n, 0, 0] = 2
    assert score(constant(n + 1), early, "vspw", (n,)) == {name: 0.75}
    assert score(constant(n + 1), late, "vspw", (n,)) == {name: 1.0}
    assert score(constant(n + 1), late, "full", (n,)) == {name: (1 + 0.75) / 2}


def test_undefined_where_no_label_holds_still() -> None:
    labels = constant(20) + (np.arange(20, dtype=np.uint8) % 2)[:, None, None]
    for protocol in ("vspw", "full"):
        assert all(math.isnan(value) for value in score(labels, constant(20), protocol).values())


def test_windows_not_videos_are_averaged() -> None:
    flicker = constant(10)
    flicker[::2] = 2
    metric = VideoConsistency((8,))
    feed(metric, "long", Video(constant(17) + np.uint8(1), constant(17)))
    feed(metric, "short", Video(constant(10) + np.uint8(1), flicker))
    assert metric.compute() == {"mVC8": pytest.approx(10 / 13)}


def test_cffm_skips_short_videos_for_both_lengths() -> None:
    assert math.isnan(score(constant(16), constant(16), "cffm_skip16")["mVC8"])
    late = constant(17)
    late[15, 0, 0] = 2  # last read by the 8-frame window of frames 8 to 15; 9 windows in all
    assert score(constant(17), late, "cffm_skip16") == {"mVC8": pytest.approx((8 + 0.75) / 9), "mVC16": 0.75}


def test_mixed_never_empties_its_list() -> None:
    """17 frames: nine 8-frame windows and one of 16, in one list."""
    preds = constant(17)
    preds[0, 0, 0] = 2  # breaks the first window of each length
    assert score(constant(17), preds, "mixed") == {
        "mVC8_mixed": pytest.approx((8 + 0.75) / 9),
        "mVC16_mixed": pytest.approx((8 + 0.75 + 0.75) / 10),
    }


def test_raw_labels_keep_others_and_void_apart() -> None:
    raw = np.full((9, 1, 2), 7, np.uint8)
    raw[:, 0, 1] = (0, 255) * 4 + (0,)
    preds = np.zeros_like(raw)
    preds[3, 0, 1] = 1
    video = Video(raw, preds)
    apart, merged = metric_of("vspw", [video]), VideoConsistency(LENGTHS, "vspw")
    for metric in (apart, merged):
        feed(metric, "0", video)
    assert apart.compute()["mVC8"] == 1.0  # the flipping pixel is not common
    assert merged.compute()["mVC8"] == 0.5
    assert (apart.protocol, merged.protocol) == (
        "mVC8, mVC16 (vspw)",
        "mVC8, mVC16 (vspw, ignored labels merged)",
    )


# ---- what must not matter, and where runs end ----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["full", "strict"])
def test_ignored_pixels_never_matter(protocol: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        video = random_video(rng)
        noise = rng.integers(0, 256, video.preds.shape).astype(np.uint8)
        other = Video(video.raw, np.where(video.labels == IGNORE, noise, video.preds))
        results = []
        for which in (video, other):
            metric = VideoConsistency((2, 8), protocol)
            feed(metric, "0", which)
            results.append(torch.cat([total.double() for total in metric.totals()]))
        assert torch.equal(*results)


def run_lengths(frames: list[Frame]) -> list[int]:
    """How many windows of 2, 3 and 4 frames a metric found."""
    metric = VideoConsistency((2, 3, 4))
    metric.start("video")
    for frame in frames:
        metric.update(frame, torch.zeros(frame.image.shape[1:], dtype=torch.uint8))
    return metric.counts.tolist()


def labelled(index: int, height: int = 2) -> Frame:
    return Frame(image(height, 2), index, float(index), torch.ones(height, 2, dtype=torch.uint8))


def test_runs_end_at_gaps_unlabelled_frames_and_size_changes() -> None:
    assert run_lengths([labelled(i) for i in (3, 4, 5, 6)]) == [3, 2, 1]
    assert run_lengths([labelled(i) for i in (3, 4, 6, 7)]) == [2, 0, 0]
    assert run_lengths([labelled(0), labelled(1), labelled(2)._replace(labels=None), labelled(3)]) == [1, 0, 0]
    assert run_lengths([labelled(0), labelled(1), labelled(2, height=3), labelled(3, height=3)]) == [2, 0, 0]


def test_a_dropped_last_window_does_not_come_back_after_a_gap() -> None:
    metric = VideoConsistency((2,), "vspw")
    metric.start("video")
    for frame in (labelled(0), labelled(1), labelled(5), labelled(6)):
        metric.update(frame, torch.zeros(2, 2, dtype=torch.uint8))
    assert metric.counts.tolist() == [0]


def test_no_window_spans_two_videos() -> None:
    metric = VideoConsistency((2,))
    for index, name in enumerate(("a", "b")):
        metric.start(name)
        metric.update(labelled(index), torch.zeros(2, 2, dtype=torch.uint8))
    assert metric.counts.tolist() == [0]


def test_memory_does_not_grow_and_long_runs_do_not_overflow() -> None:
    metric = VideoConsistency((8, 255), "cffm_skip16")
    metric.start("video")
    for index in range(600):
        metric.update(labelled(index), torch.zeros(2, 2, dtype=torch.uint8))
        assert metric._run is not None
        assert len(metric._run.waiting) <= 256
    assert metric.counts.tolist() == [600 - 8, 600 - 255]
    assert metric.compute() == {"mVC8": 1.0, "mVC255": 1.0}
    assert int(metric._run.labels_age.max()) == 255


# ---- errors --------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    with pytest.raises(ConfigError, match="protocol is 'vpsw'; expected one of vspw, cffm_skip16, full, strict, mixed"):
        VideoConsistency(protocol="vpsw")
    for lengths in ((), (1, 8), (8, 256)):
        with pytest.raises(ConfigError, match="expected at least one, each from 2 to 255"):
            VideoConsistency(lengths)
    with pytest.raises(ConfigError, match="'full' does not read raw labels"):
        VideoConsistency(protocol="full", raw_labels=lambda video, index: torch.zeros(2, 2))
    metric = VideoConsistency(protocol="vspw", raw_labels=lambda video, index: torch.zeros(1, 1, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="preds has shape"):
        metric.update(labelled(0), torch.zeros(3, 3, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="raw labels has shape"):
        metric.update(labelled(0), torch.zeros(2, 2, dtype=torch.uint8))


def test_lengths_are_sorted() -> None:
    assert list(VideoConsistency((16, 8, 8)).compute()) == ["mVC8", "mVC16"]
