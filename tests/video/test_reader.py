"""Reading videos: counts, times, turning, pixel formats, and every kind of damage."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from samples import damage, pictures, remux, write_sound, write_video

from steadyseg.types import ConfigError, DataError
from steadyseg.video import probe, read


def test_frames_and_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    frames = list(read(path))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([tick / 30 for tick in range(12)], abs=1e-9)
    expected = pictures(12)
    for frame, picture in zip(frames, expected, strict=True):
        assert frame.image.shape == (3, 48, 64) and frame.image.dtype == torch.uint8
        assert frame.image.is_contiguous()
        means = [x.float()[:, :20, :28].mean((1, 2)) for x in (frame.image, picture)]
        assert torch.allclose(*means, atol=6)


def test_probe(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", sound="aac"))
    assert (info.width, info.height, info.frames, info.rotation) == (64, 48, 12, 0)
    assert (info.rate, info.codec, info.has_audio, info.pixel_aspect) == (30, "h264", True, 1)
    assert info.duration == pytest.approx(12 / 30) and info.last == pytest.approx(11 / 30)


def test_varying_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    ticks = [0, 3, 4, 9, 10, 30, 31]
    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, ticks, time_base=Fraction(1, 1000))
        assert [frame.time for frame in read(path)] == pytest.approx([tick / 1000 for tick in ticks], abs=1e-9)


def test_a_late_first_frame_stays_late(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [15, 16, 17])
    assert next(read(path)).time == pytest.approx(0.5)


def test_transport_stream_starts_at_zero(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts")
    times = [frame.time for frame in read(path)]
    assert times == pytest.approx([tick / 30 for tick in range(12)], abs=1e-4)
    assert probe(path).duration == pytest.approx(12 / 30, abs=1e-3)


def test_raw_stream_without_times_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264")
    assert [frame.time for frame in read(path)] == pytest.approx([tick / 30 for tick in range(12)])
    info = probe(path)
    assert (info.duration, info.last, info.frames) == (None, None, None)
    assert info.time_base == Fraction(1, 30)


@pytest.mark.parametrize(("rotation", "degrees"), [(90, 270), (-90, 90), (180, 180)])
def test_rotation_is_applied(tmp_path: Path, rotation: int, degrees: int) -> None:
    path = write_video(tmp_path / "a.mp4", rotation=rotation)
    info, frame = probe(path), next(read(path))
    assert info.rotation == degrees
    assert (info.height, info.width) == frame.image.shape[1:] == ((48, 64) if degrees == 180 else (64, 48))
    # The bright corner is stored in the upper left; turning clockwise moves it to the right, then down.
    bright = frame.image.float().mean(0)
    corners = {90: bright[:15, -15:], 180: bright[-15:, -15:], 270: bright[-15:, :15]}
    assert corners[degrees].mean() > 190
    assert bright.mean() < 150


def test_mirrored_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])
        frame = av.VideoFrame.from_ndarray(pictures(1)[0].permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert next(read(path)).image[:, :15, -15:].float().mean() > 190


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_tiny_and_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", range(3), size=size, pixels="yuv444p")
    frames = list(read(path))
    assert len(frames) == 3 and frames[0].image.shape == (3, *size)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("libx264", "yuv420p10le"), ("ffv1", "gray"), ("ffv1", "bgra"), ("ffv1", "gray16le")]
)
def test_pixel_formats_become_rgb(tmp_path: Path, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / "a.mkv", range(2), codec=codec, pixels=pixels)
    image, picture = next(read(path)).image.float(), pictures(1)[0].float()
    if "gray" in pixels:
        assert torch.equal(image[0], image[1])
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # [3, 1, 1]
        picture = (picture * weights).sum(0).expand(3, -1, -1)
    assert (image.mean((1, 2)) - picture.mean((1, 2))).abs().max() < 6


def test_animated_image_is_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", codec="gif", pixels="rgb8")
    assert len(list(read(path))) == 12


def test_folder_glob_and_single_image(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (7, 5), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, str(tmp_path / "*.png")):
        frames = list(read(path, rate=4))
        assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 10]
        assert [frame.time for frame in frames] == [0, 0.25, 0.5]
    info = probe(tmp_path, rate=4)
    assert (info.frames, info.duration, info.width, info.height, info.codec) == (3, 0.75, 7, 5, "images")
    assert len(list(read(tmp_path / "f2.png"))) == 1


def test_probe_looks_past_a_broken_first_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        probe(tmp_path)
    Image.new("RGB", (7, 5)).save(tmp_path / "b.png")
    assert probe(tmp_path).width == 7


def test_a_broken_frame_is_named_and_skipped_only_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_video(tmp_path / "whole.mp4", range(30))
    path = damage(whole, tmp_path / "broken.mp4", 20)
    seen = []
    with pytest.raises(DataError, match=r"broken\.mp4: frame 20 at 0\.667 s is broken.*--on-error skip"):
        seen += [frame.index for frame in read(path)]
    assert not seen or seen == list(range(20))
    with caplog.at_level(logging.WARNING):
        frames = list(read(path, on_error="skip"))
    assert "frame 20 at 0.667 s is broken; skipped" in caplog.text
    assert 20 not in [frame.index for frame in frames]
    assert [frame.index for frame in frames][:20] == list(range(20))
    assert frames[-1].time == pytest.approx(29 / 30)


def test_a_broken_frame_among_b_frames_keeps_its_place_in_time(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2", "b-adapt": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in pictures(30):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = [float(packet.pts * packet.time_base) for packet in packets]
    assert times != sorted(times), "needs B-frames"
    path = damage(whole, tmp_path / "broken.mp4", 16)
    with pytest.raises(DataError, match=f"frame {sorted(times).index(times[16])} at {times[16]:.3f} s is broken"):
        list(read(path))


def test_cut_off_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_video(tmp_path / "whole.mp4", range(60), size=(120, 160))
    front = remux(whole, tmp_path / "front.mp4", movflags="+faststart")
    sources = {"a.mp4": whole, "b.mp4": front, "c.mkv": remux(whole, tmp_path / "whole.mkv")}
    for name, source in sources.items():
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.mp4 is no video that can be read, or was cut off"):
        probe(tmp_path / "a.mp4")
    for name in ("b.mp4", "c.mkv"):
        with pytest.raises(DataError, match=rf"{name}: .*(is broken|cut off)"):
            list(read(tmp_path / name))
        frames = list(read(tmp_path / name, on_error="skip"))
        assert 10 < len(frames) < 60
        assert "cut off at" in caplog.text
        caplog.clear()


def test_sound_that_lasts_longer_is_no_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", range(12), sound="aac", seconds=3)
    assert len(list(read(path))) == 12


def test_a_size_change_in_mid_stream(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{size[0]}.ts", range(6), size=size) for size in ((48, 64), (96, 128))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(DataError, match=r"joined\.ts: frame 6 at \S+ s is 128x96, the first is 64x48"):
        list(read(joined))


def test_times_that_fall_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = write_video(tmp_path / "part.ts", range(6)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    with pytest.raises(DataError, match=r"frame 6 has the time 0\.000 s, not after the frame before it .0\.167 s"):
        list(read(tmp_path / "joined.ts"))
    assert len(list(read(tmp_path / "joined.ts", on_error="skip"))) == 6
    assert "frame 7 has the time" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.mp4", b"", "is empty"),
        ("a.mp4", b"hello " * 50, "is no video that can be read"),
        ("a.xyz", b"hello " * 50, "is no video that can be read"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    for function in (probe, lambda path: list(read(path))):
        with pytest.raises(DataError, match=message) as caught:
            function(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_places_without_video(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(DataError, match=r"has no video stream \(it holds: audio\)"):
        probe(tmp_path / "sound.mp4")
    with pytest.raises(DataError, match="does not exist"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="holds no image"):
        probe(tmp_path)
    with pytest.raises(DataError, match=r"holds no image \(1 other"):
        probe(tmp_path / "*.mp4")
    with pytest.raises(DataError, match=r"cannot be opened|does not exist"):
        probe(tmp_path / ("x" * 400))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        probe("/dev/null")


def test_unknown_codec(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(DataError, match="video codec is unknown"):
        probe(tmp_path / "b.mp4")


def test_nothing_can_be_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(1), codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.size)
        begins, length = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[begins + 8 : begins + 8 + length] = bytes(length)
    path.write_bytes(data)
    with pytest.raises(DataError, match="no frame of it can be decoded"):
        probe(path)
    with pytest.raises(DataError, match="none of its 1 frames can be decoded"):
        list(read(path, on_error="skip"))


def test_wrong_options(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="on_error is 'ignore'"):
        read(tmp_path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rate is 0"):
        read(tmp_path, rate=0)


def test_real_videos(data_root: Path) -> None:
    path = data_root / "video" / "solidWhiteRight.mp4"
    info = probe(path)
    assert (info.width, info.height, info.frames, info.duration, info.has_audio) == (960, 540, 221, 8.84, True)
    assert sum(1 for _ in read(path)) == 221
