import pytest
import tiny
import torch

from steadyseg.config import EvalConfig
from steadyseg.engine.evaluate import evaluate, resize_frame
from steadyseg.engine.stream import segment
from steadyseg.models import method
from steadyseg.types import CheckpointError, DataError


class Recorder:
    """Counts right pixels, and remembers what it was given."""

    def __init__(self):
        self.calls, self.preds = [], []
        self.right, self.all = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)

    def start(self, video):
        self.calls.append(video)

    def update(self, frame, preds):
        assert preds.dtype == torch.uint8 and preds.shape == frame.labels.shape
        self.calls.append(frame.index)
        self.preds.append(preds)
        self.right += (preds == frame.labels).sum()
        self.all += preds.numel()

    def compute(self):
        return {"right": float(self.right / self.all)}

    def totals(self):
        return [self.right, self.all]


class Colour(tiny.Tiny):
    """Predicts the class that the colour shows: always right."""

    def logits(self, frame):
        return frame.float()


class LookAhead(Colour):
    """Reads two frames ahead before it answers."""

    def segment(self, frames):
        waiting = []
        for frame in frames:
            waiting.append(frame)
            if len(waiting) == 3:
                yield self.logits(waiting.pop(0))
        for frame in waiting:
            yield self.logits(frame)


@pytest.mark.parametrize("kind", [Colour, LookAhead])
def test_every_frame_meets_its_own_prediction_once(kind):
    metric, frames = Recorder(), []
    scores = evaluate(kind(tiny.Config(), 3).eval(), tiny.TinySource(), [metric], on_frame=lambda: frames.append(1))
    assert scores == {"right": 1.0}
    assert metric.calls == ["video0", 0, 1, 2, 3, 4, "video1", 0, 1, 2, 3, 4]
    assert len(frames) == 10


def test_frames_are_read_one_at_a_time():
    class Counting(tiny.TinySource):
        most = 0

        def read(self, name, frames=None):
            for number, frame in enumerate(super().read(name)):
                self.most = max(self.most, number - len(metric.preds))
                yield frame

    metric, source = Recorder(), Counting(videos=1, frames=50)
    evaluate(Colour(tiny.Config(), 3).eval(), source, [metric])
    assert source.most == 0
    metric, source = Recorder(), Counting(videos=1, frames=50)
    evaluate(LookAhead(tiny.Config(), 3).eval(), source, [metric])
    assert source.most == 2


@pytest.mark.parametrize("resize", ["exact", "align32"])
def test_predictions_come_at_the_size_of_the_label(resize):
    metric = Recorder()
    config = EvalConfig(resize=resize, base=(24, 24))
    assert evaluate(Colour(tiny.Config(), 3).eval(), tiny.TinySource(), [metric], config=config)["right"] > 0.9
    assert metric.preds[0].shape == (tiny.SIZE, tiny.SIZE)


def test_state_does_not_leak_from_video_to_video():
    kind = method("sdcpc")
    model = kind(kind.Config(), 3).eval()

    class Large(tiny.TinySource):
        def read(self, name, frames=None):
            for frame in super().read(name):
                yield frame._replace(
                    image=frame.image.repeat_interleave(4, 1).repeat_interleave(4, 2),
                    labels=frame.labels.repeat_interleave(4, 0).repeat_interleave(4, 1),
                )

    metric = Recorder()
    evaluate(model, Large(videos=2, frames=3), [metric])
    assert all(torch.equal(one, other) for one, other in zip(metric.preds[:3], metric.preds[3:], strict=True))


def test_frames_alone_are_videos_of_one_frame():
    kind = method("dcfm")
    torch.manual_seed(0)
    model = kind(kind.Config(), 3).eval()
    frame = next(tiny.TinySource().read("video0"))
    shown = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = [frame._replace(image=image, index=index, labels=None) for index, image in enumerate(shown)]

    class Still(tiny.TinySource):
        def read(self, name, frames=None):
            for frame in video:
                yield frame._replace(labels=torch.zeros(64, 64, dtype=torch.uint8))

    alone, together, counted = Recorder(), Recorder(), []
    source = Still(videos=1, frames=6)
    config = EvalConfig(alone=True)
    evaluate(model, source, [alone], config=config, on_frame=lambda: counted.append(1))
    evaluate(model, source, [together])
    assert alone.calls == together.calls == ["video0", 0, 1, 2, 3, 4, 5], "metrics still see one video"
    assert len(counted) == 6
    each = [next(iter(segment(model, [frame])))[1] for frame in video]
    assert all(torch.equal(one, other) for one, other in zip(alone.preds, each, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(alone.preds, together.preds, strict=True))


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((480, 853), {}, (480, 853)),
        ((480, 853), {"resize": "align32"}, (480, 864)),
        ((1080, 1920), {"base": (480, 853)}, (480, 853)),
        ((480, 640), {"base": (480, 853)}, (480, 640)),
        ((1920, 1080), {"base": (853, 480), "resize": "align32"}, (864, 480)),
    ],
)
def test_sizes_after_resizing(size, options, expected):
    frame = torch.full((1, 3, *size), 77, dtype=torch.uint8)
    resized = resize_frame(frame, EvalConfig(**options))
    assert resized.shape[-2:] == expected and resized.dtype == torch.uint8
    assert (resized == 77).all()


def test_class_counts_must_agree():
    with pytest.raises(CheckpointError, match="the weights know 4 classes, the data has 3"):
        evaluate(Colour(tiny.Config(), 4), tiny.TinySource(), [Recorder()])


def test_a_frame_that_cannot_be_read_is_an_error():
    class Broken(tiny.TinySource):
        def read(self, name, frames=None):
            raise DataError("frame 0 is truncated")

    with pytest.raises(DataError, match="frame 0 is truncated"):
        evaluate(Colour(tiny.Config(), 3), Broken(), [Recorder()])


def test_processes_share_the_videos_and_the_sums(tmp_path, monkeypatch):
    """Two ranks one after the other: each takes half of the videos; the sum is that of the whole."""
    distributed = torch.distributed
    model, metrics = Colour(tiny.Config(), 3).eval(), []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    reduced = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "all_reduce", lambda total: reduced.append(int(total)) or total.mul_(10))
        metrics.append(Recorder())
        evaluate(model, tiny.TinySource(videos=3), [metrics[-1]])
    assert [call for call in metrics[0].calls if isinstance(call, str)] == ["video0", "video2"]
    assert [call for call in metrics[1].calls if isinstance(call, str)] == ["video1"]
    assert reduced == [640, 640, 320, 320]
    assert int(metrics[0].all) == 6400  # what the processes summed is put back into the metric
