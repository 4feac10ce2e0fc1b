"""Tiny videos of every kind, and what FFmpeg itself reads back from a video."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

CLASSES = ("road", "tree", "car")
PALETTE = ((128, 64, 128), (107, 142, 35), (0, 0, 142))


def pictures(count: int, size: tuple[int, int] = (48, 64), *, noise: int = 30) -> list[Tensor]:
    """Frames uint8 [3, H, W]: a bright upper left corner, a colour that changes by frame, some noise."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        picture = np.empty((3, *size), dtype=np.int64)
        picture[:] = np.array([40 + 5 * index % 150, 90, 60]).reshape(3, 1, 1)  # [3, 1, 1]
        picture[:, : size[0] // 2, : size[1] // 2] = 220
        picture += generator.integers(-noise, noise + 1, picture.shape)
        found.append(torch.from_numpy(picture.clip(0, 255).astype(np.uint8)))
    return found


def write_video(
    path: Path,
    ticks: Sequence[int] = range(12),
    *,
    size: tuple[int, int] = (48, 64),
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: int | None = None,
    sound: str | None = None,
    seconds: float = 0.5,
) -> Path:
    """Write a video of `pictures` at the given ticks, with a tone of `seconds` in codec `sound`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.max_b_frames = 0
        if rotation is not None:
            stream.set_display_rotation(rotation)
        voice = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for tick, picture in zip(ticks, pictures(len(ticks), size), strict=True):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            _write_tone(container, voice, seconds)
    return path


def _write_tone(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    tone = (8000 * np.sin(0.05 * np.arange(int(48000 * seconds)))).astype(np.int16)
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48000)
    for start in range(0, len(tone), 960):
        block = av.AudioFrame.from_ndarray(tone[None, start : start + 960], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = 48000, start, Fraction(1, 48000)
        for converted in resampler.resample(block):
            container.mux(stream.encode(converted))
    container.mux(stream.encode(None))


def write_sound(path: Path) -> Path:
    """Write a file that holds sound only."""
    with av.open(str(path), "w") as container:
        _write_tone(container, container.add_stream("aac", rate=48000, layout="mono"), 0.3)
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """Copy the packets of a video into another container."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.stream = copy
                written.mux(packet)
    return target


def damage(source: Path, target: Path, frame: int) -> Path:
    """Copy a video without B-frames and spoil the data of one frame."""
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        begins, length = packets[frame].pos, packets[frame].size
    data = bytearray(source.read_bytes())
    for place in range(begins + 6, begins + length):
        data[place] ^= 0x5A
    target.write_bytes(data)
    return target


class Content(NamedTuple):
    times: list[float]
    """Of every decoded frame, seconds."""
    end: float
    """Of the video stream, seconds."""
    duration: float
    """Of the file, seconds."""
    sound: list[bytes]
    """The packets."""
    sound_times: list[float]
    size: tuple[int, int]
    pixels: str


def content(path: Path) -> Content:
    """Read a file with FFmpeg alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [
            (float(frame.pts * stream.time_base), frame.height, frame.width) for frame in container.decode(stream)
        ]
        pixels = stream.codec_context.pix_fmt
        end = float(((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base)
        duration = container.duration / av.time_base
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size] if container.streams.audio else []
        sound = [bytes(packet) for packet in packets]
        starts = [float(packet.pts * packet.time_base) for packet in packets]
    return Content([frame[0] for frame in frames], end, duration, sound, starts, frames[0][1:], pixels)
