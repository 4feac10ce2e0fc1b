"""The pipeline writes what one stage after the other would, in any form, and leaves nothing behind when it fails."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from steadyseg import cli, models
from steadyseg.engine import pipeline
from steadyseg.engine import predict as prediction
from steadyseg.engine.checkpoint import save_model
from steadyseg.engine.predict import PredictConfig, predict, predict_together, takes_turns
from steadyseg.engine.stream import Stream, segment
from steadyseg.engine.streams import Streams
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, DataError, Frame
from steadyseg.video import LabelWriter, Overlay, Writer, probe, read

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def build(name: str = "reuse", **options: Any) -> VideoSegmenter:
    torch.manual_seed(0)
    kind = models.method(name)
    return kind(kind.Config(**options), 11).eval()


def render(path: Path, *, length: int, size: str = "64x96", video: int = 0) -> Path:
    words = ["data", "render", str(path), "--size", size, "--length", str(length), "--video", str(video)]
    assert cli.main(words) == 0
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of one size and one of another, of different lengths."""
    folder = tmp_path_factory.mktemp("clips")
    shapes = [(9, "64x96"), (6, "64x96"), (4, "48x64"), (7, "64x96")]
    return [
        render(folder / f"{number}.mp4", length=length, size=size, video=number)
        for number, (length, size) in enumerate(shapes)
    ]


def one_after_the_other(model: VideoSegmenter, video: Path, out: Path, config: PredictConfig) -> None:
    """The same, without any thread."""
    labels = config.format == "labels"
    draw = Overlay(
        model.classes, model.palette, opacity=config.opacity, legend=config.legend, beside=config.format == "side"
    )
    writer = LabelWriter(out, model.palette) if labels else Writer(out, probe(video))
    stream = Stream(model, reset_on_cut=config.reset_on_cut)
    frames = list(read(video, on_error=config.on_error))[: config.max_frames]
    pairs = segment(model, frames) if config.look_ahead else ((frame, stream(frame.image)) for frame in frames)
    with writer:
        for frame, preds in pairs:
            if isinstance(writer, LabelWriter):
                writer.write(preds, frame.index)
            else:
                writer.write(draw(frame.image, preds), frame.time)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("reuse", {}),
        ("reuse", {"format": "side", "opacity": 0.3, "legend": False}),
        ("sdcpc", {"format": "labels", "reset_on_cut": True}),
        ("dcfm", {"format": "labels", "look_ahead": True}),
        ("segformer", {"max_frames": 3}),
    ],
)
def test_it_writes_what_one_stage_after_the_other_would(
    method: str, options: dict[str, Any], clips: list[Path], tmp_path: Path
) -> None:
    config = PredictConfig(**options)
    model = build(method)
    suffix = "" if config.format == "labels" else ".mp4"
    mine, theirs = tmp_path / f"mine{suffix}", tmp_path / f"theirs{suffix}"
    steps: list[int] = []
    count = predict(model, clips[0], out=mine, config=config, on_frame=lambda: steps.append(1))
    one_after_the_other(model, clips[0], theirs, config)
    assert count == len(steps) == min(9, config.max_frames or 9)
    if config.format == "labels":
        names = sorted(file.name for file in mine.iterdir())
        assert names == sorted(file.name for file in theirs.iterdir())
        assert len(names) == count
        assert all((mine / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    else:
        assert mine.read_bytes() == theirs.read_bytes()


def test_memory_does_not_grow_with_the_video(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the last stage, only so many frames are decoded ahead of it."""
    decoded, written, most = [0], [0], [0]
    picture = next(iter(read(clips[0]))).image

    def endless(*args: object, **options: object) -> Iterator[Frame]:
        for number in range(60):
            decoded[0] += 1
            most[0] = max(most[0], decoded[0] - written[0])
            yield Frame(picture, number, number / 25)

    write = Writer.write

    def slowly(self: Writer, image: Tensor, when: float) -> None:
        time.sleep(0.01)
        write(self, image, when)
        written[0] += 1

    monkeypatch.setattr(prediction, "read", endless)
    monkeypatch.setattr(Writer, "write", slowly)
    monkeypatch.setattr(Stream, "__call__", lambda self, frame: torch.zeros(frame.shape[1:], dtype=torch.uint8))
    assert predict(build(), clips[0], out=tmp_path / "out.mp4") == 60
    assert 2 * pipeline.DEPTH <= most[0] <= 2 * pipeline.DEPTH + 8


def broken_source(*args: object, **options: object) -> Iterator[Frame]:
    yield Frame(torch.zeros(3, *SIZE, dtype=torch.uint8), 0, 0.0)
    raise DataError("frame 1 is broken")


def broken_model(self: Stream, frame: Tensor) -> Tensor:
    raise DataError("the model is broken")


def broken_drawing(self: Overlay, image: Tensor, preds: Tensor) -> Tensor:
    raise DataError("the drawing is broken")


def full_disk(self: Writer, image: Tensor, when: float) -> None:
    raise DataError("the disk is full")


@pytest.mark.parametrize(
    ("place", "name", "failing", "text"),
    [
        (prediction, "read", broken_source, "frame 1 is broken"),
        (Stream, "__call__", broken_model, "the model is broken"),
        (Overlay, "__call__", broken_drawing, "the drawing is broken"),
        (Writer, "write", full_disk, "the disk is full"),
    ],
)
def test_an_error_of_any_stage_is_the_callers(
    place: Any, name: str, failing: Any, text: str, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, failing)
    with pytest.raises(DataError, match=f"^{text}$"):
        predict(build(), clips[0], out=tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_caller_leaves_nothing(clips: list[Path], tmp_path: Path) -> None:
    """Even at the last frame, when all but the end is written."""
    seen: list[int] = []

    def on_frame() -> None:
        seen.append(1)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(build(), clips[0], out=tmp_path / "out.mp4", on_frame=on_frame)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Stream, "__call__", broken_model)
    with pytest.raises(ConfigError, match="Permission denied"):
        predict(build(), clips[0], out=tmp_path / "out.mp4")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_program_cleanly(number: int, status: int, tmp_path: Path) -> None:
    video = render(tmp_path / "long.mp4", length=400, size="96x160")
    out = tmp_path / "out"
    out.mkdir()
    words = ["predict", str(video), "-o", str(out / "out.mp4"), "--method", "segformer"]
    code = "from steadyseg.cli import main; raise SystemExit(main())"
    program = [sys.executable, "-c", code, *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if any(part.stat().st_size for part in out.glob(".*.part")):
                break
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert not list(out.iterdir())


# ---- several videos --------------------------------------------------------------------------------------------------


def labels_of(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("streams", [2, 3, 8])
@pytest.mark.parametrize("method", ["tfc", "sdcpc"])
def test_several_videos_at_a_time_have_the_labels_of_one_by_one(
    method: str, streams: int, clips: list[Path], tmp_path: Path
) -> None:
    model = build(method)
    config = PredictConfig(format="labels")
    steps: list[int] = []
    videos = {tmp_path / f"{clip.stem}": clip for clip in clips}
    count = predict_together(model, videos, streams=streams, config=config, on_frame=lambda: steps.append(1))
    assert count == len(steps) == 9 + 6 + 4 + 7
    for out, clip in videos.items():
        one_after_the_other(model, clip, tmp_path / "alone", config)
        found, expected = labels_of(out), labels_of(tmp_path / "alone")
        assert len(found) == len(expected) == probe(clip).frames
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine != theirs).mean() < 1e-3  # rounding
        for file in (tmp_path / "alone").iterdir():
            file.unlink()


def test_nothing_is_remembered_of_videos_that_ended(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []

    class Watched(Streams):
        def __call__(self, frames: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
            labels = super().__call__(frames)
            most.append(len(self._videos))
            return labels

    monkeypatch.setattr(prediction, "Streams", Watched)
    videos = {tmp_path / f"{clip.stem}.mp4": clip for clip in clips}
    predict_together(build(), videos, streams=2)
    assert max(most) == 2


def test_looking_ahead_the_videos_take_turns(clips: list[Path], tmp_path: Path) -> None:
    model = build("dcfm", interval=3)
    config = PredictConfig(format="labels", look_ahead=True)
    assert takes_turns(model, config)
    assert not takes_turns(model, PredictConfig())
    predict_together(model, {tmp_path / "0": clips[0], tmp_path / "1": clips[1]}, streams=2, config=config)
    for number in (0, 1):
        one_after_the_other(model, clips[number], tmp_path / f"alone{number}", config)
        pairs = zip(labels_of(tmp_path / f"{number}"), labels_of(tmp_path / f"alone{number}"), strict=True)
        assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_an_error_in_one_video_ends_all_and_keeps_what_is_complete(clips: list[Path], tmp_path: Path) -> None:
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(clips[0].read_bytes())
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        Image.new("RGB", (96, 64)).save(images / f"{number}.png")
    (images / "8.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    out.mkdir()
    videos = {out / "short.mp4": clips[1], out / "broken.mp4": images, out / "long.mp4": clips[3]}
    with pytest.raises(DataError, match="frame 8"):
        predict_together(build(), videos, streams=2)
    assert [file.name for file in out.iterdir()] == ["short.mp4"]
    with av.open(str(out / "short.mp4")) as done:
        assert sum(1 for _ in done.decode(video=0)) == 6


def test_wrong_wishes_for_several_videos(clips: list[Path], tmp_path: Path) -> None:
    videos = {tmp_path / "out.mp4": clips[0]}
    with pytest.raises(ConfigError, match="streams is 0; expected at least 1"):
        predict_together(build(), videos, streams=0)
    with pytest.raises(ConfigError, match="a sheet shows one"):
        predict_together(build(), videos, streams=2, config=PredictConfig(sheet=tmp_path / "sheet.png"))
    assert not list(tmp_path.iterdir())


def test_the_command_runs_several_videos(clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = models.method("dcfm")
    schedule = type(kind.Config().adaptive)(threshold=0.3)
    for name, options in {"plain": {}, "adaptive": {"adaptive": schedule}}.items():
        save_model(tmp_path / f"{name}.safetensors", build("dcfm", **options))
        out = tmp_path / name
        words = ["predict", *map(str, clips[:3]), "-o", str(out), "--streams", "2", "--max-frames", "3"]
        assert cli.main([*words, "--model", str(tmp_path / f"{name}.safetensors")]) == 0
        text = capsys.readouterr()
        assert text.out.split() == [str(out / f"{number}.mp4") for number in range(3)]
        assert ("take turns" in text.err) == (name == "adaptive")
        assert sorted(file.name for file in out.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    assert cli.main(["predict", str(clips[0]), "-o", str(tmp_path / "x.mp4"), "--streams", "0"]) == 2
    assert "--streams is 0" in capsys.readouterr().err
