"""Random access to video files."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from trees import movie, write

from steadyseg.data.movie import Movie
from steadyseg.types import DataError


def test_movie_reads_any_order(tmp_path: Path) -> None:
    values = [n * 4 for n in range(60)]
    clip = Movie(movie(tmp_path / "m.mkv", values))
    assert len(clip.times) == 60
    assert clip.rate == pytest.approx(30, rel=1e-2)
    order = [59, 0, 1, 2, 30, 29, 29, 58, 7]
    assert [round(float(image.float().mean()) / 4) for image in clip.read(order)] == order


def test_movie_is_turned_upright(tmp_path: Path) -> None:
    file = tmp_path / "m.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        left_white = np.zeros((16, 32, 3), np.uint8)
        left_white[:, :16] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(left_white, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(file.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 16 * one, 0, 1 << 30)  # a turn clockwise
    file.write_bytes(data)
    (image,) = Movie(file).read([0])
    assert image.shape == (3, 32, 16)
    assert image[:, :12].min() > 200
    assert image[:, 20:].max() < 50


def test_movie_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.mp4 cannot be read as a video"):
        Movie(write(tmp_path / "t.mp4", "no video"))
    with av.open(str(tmp_path / "s.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(DataError, match=r"s\.wav has no video stream"):
        Movie(tmp_path / "s.wav")


def test_movie_frames_that_are_gone_are_named(tmp_path: Path) -> None:
    file = movie(tmp_path / "m.mp4", range(0, 240, 20))
    clip = Movie(file)
    movie(file, range(0, 60, 20))
    with pytest.raises(DataError, match=r"m\.mp4: frame 11 cannot be decoded"):
        list(clip.read([0, 11]))
    file.unlink()
    with pytest.raises(DataError, match=re.escape(f"{file}: frame 0 cannot be decoded")):
        list(clip.read([0]))


def test_movie_damaged_frames_are_named(tmp_path: Path) -> None:
    """FFmpeg gives a picture for them all the same, patched from its neighbours."""
    file = movie(tmp_path / "m.mp4", [n * 37 % 250 for n in range(40)], size=96)
    with av.open(str(file)) as container:
        damaged = [packet for packet in container.demux(video=0) if packet.size][20]
    data = bytearray(file.read_bytes())
    assert damaged.pos is not None
    start, end = damaged.pos + 8, damaged.pos + damaged.size
    data[start:end] = np.random.default_rng(0).integers(0, 256, end - start, dtype=np.uint8).tobytes()
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"m\.mp4: frame 19 cannot be decoded"):
        list(Movie(file).read(range(40)))
