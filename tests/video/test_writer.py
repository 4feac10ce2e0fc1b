"""Writing videos: same times, duration and sound as the input, complete or not at all."""

from __future__ import annotations

import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from samples import content, pictures, write_video

from steadyseg.types import ConfigError, DataError, ShapeError
from steadyseg.video import Writer, probe, read


def copy(source: Path, target: Path, **options: object) -> None:
    """Read and write a video frame by frame."""
    with Writer(target, probe(source), **options) as writer:  # type: ignore[arg-type]
        for frame in read(source):
            writer.write(frame.image, frame.time)


@pytest.mark.parametrize(
    ("ticks", "time_base"),
    [
        (range(12), Fraction(1, 30)),
        (range(12), Fraction(1001, 30000)),
        ([0, 3, 4, 9, 10, 30, 31, 200], Fraction(1, 1000)),
        ([15, 16, 17, 20], Fraction(1, 30)),
        ([5], Fraction(1, 25)),
    ],
)
def test_times_and_duration_are_kept(tmp_path: Path, ticks: list[int], time_base: Fraction) -> None:
    source = write_video(tmp_path / "a.mp4", ticks, time_base=time_base)
    copy(source, tmp_path / "out.mp4")
    before, after = content(source), content(tmp_path / "out.mp4")
    assert after.times == pytest.approx(before.times, abs=1e-9)
    assert len(after.times) == len(ticks)
    assert after.pixels == "yuv420p"
    info = probe(source), probe(tmp_path / "out.mp4")
    assert info[1].duration == pytest.approx(info[0].duration, abs=1e-6)


def test_sound_is_copied_packet_by_packet(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", range(30), sound="aac", seconds=1.02)
    copy(source, tmp_path / "out.mp4")
    before, after = content(source), content(tmp_path / "out.mp4")
    assert len(before.sound) > 40
    assert after.sound == before.sound
    assert after.sound_times == pytest.approx(before.sound_times)
    assert (after.duration, after.end) == (before.duration, before.end)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_sound_of_other_containers_stays_in_step(tmp_path: Path, name: str) -> None:
    source = write_video(tmp_path / name, range(30), sound="aac", seconds=1)
    copy(source, tmp_path / "out.mp4")
    before, after = content(source), content(tmp_path / "out.mp4")
    lag = [found.times[0] - found.sound_times[0] for found in (before, after)]
    assert lag[1] == pytest.approx(lag[0], abs=2e-3)
    assert len(after.sound) == len(before.sound) and len(after.times) == 30


def test_sound_that_does_not_fit_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_video(tmp_path / "a.mkv", sound="pcm_u8")
    with caplog.at_level(logging.WARNING):
        copy(source, tmp_path / "out.mp4")
    assert "its sound (pcm_u8) is left out" in caplog.text
    assert content(tmp_path / "out.mp4").sound == []
    copy(source, tmp_path / "out.mkv")
    assert content(tmp_path / "out.mkv").sound == content(source).sound


def test_stopping_early_ends_the_sound_there(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", range(30), sound="aac", seconds=1)
    with Writer(tmp_path / "out.mp4", probe(source)) as writer:
        for frame in read(source):
            if frame.index == 10:
                break
            writer.write(frame.image, frame.time)
    found = content(tmp_path / "out.mp4")
    assert len(found.times) == 10 and found.end == pytest.approx(10 / 30, abs=1e-3)
    assert found.sound_times[-1] < 10 / 30


def test_the_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", range(4))
    info = probe(source)
    with Writer(tmp_path / "slow.mp4", info) as writer:
        for index, picture in enumerate(pictures(4)):
            writer.write(picture, [0, 0.02, 0.03, 0.031][index])
    # The input ends at 4/30 s, so the last frame lasts from 0.031 s to then; its time is not the input's last.
    assert probe(tmp_path / "slow.mp4").duration == pytest.approx(0.031 + 1 / 30, abs=2e-3)
    with Writer(tmp_path / "same.mp4", info) as writer:
        for index, picture in enumerate(pictures(4)):
            writer.write(picture, [0, 0.02, 0.03, 0.1][index])
    assert probe(tmp_path / "same.mp4").duration == pytest.approx(4 / 30, abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (48, 63), (47, 64)])
def test_odd_sizes_get_one_more_row_or_column(tmp_path: Path, size: tuple[int, int]) -> None:
    source = write_video(tmp_path / "a.mp4", range(2))
    image = torch.full((3, *size), 40, dtype=torch.uint8)
    image[:, :, -1] = 200
    with Writer(tmp_path / "out.mp4", probe(source)) as writer:
        writer.write(image, 0.0)
    found = next(read(tmp_path / "out.mp4")).image
    assert found.shape == (3, size[0] + size[0] % 2, size[1] + size[1] % 2)
    if size[1] % 2:
        assert found[:, :, -1].float().mean() == pytest.approx(200, abs=6)


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 0, 255), (20, 200, 90), (128, 128, 128)])
def test_colors_survive(tmp_path: Path, color: tuple[int, int, int]) -> None:
    image = torch.tensor(color, dtype=torch.uint8).reshape(3, 1, 1).expand(3, 48, 64)  # [3, 48, 64]
    with Writer(tmp_path / "out.mp4", probe(write_video(tmp_path / "a.mp4", range(1)))) as writer:
        writer.write(image, 0.0)
    found = next(read(tmp_path / "out.mp4")).image.float()
    assert (found - image.float()).abs().max() <= 4


def test_images_become_a_video(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for number in range(5):
        Image.new("RGB", (64, 48), (40 * number, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    info = probe(tmp_path / "frames", rate=Fraction(10))
    with Writer(tmp_path / "out.mp4", info) as writer:
        for frame in read(tmp_path / "frames", rate=10):
            writer.write(frame.image, frame.time)
    found = content(tmp_path / "out.mp4")
    assert found.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4]) and found.end == pytest.approx(0.5)


@pytest.mark.parametrize(("codec", "name"), [("mpeg4", "out.mp4"), ("libx265", "out.mkv"), ("libvpx-vp9", "out.webm")])
def test_other_encoders(tmp_path: Path, codec: str, name: str) -> None:
    source = write_video(tmp_path / "a.mp4")
    copy(source, tmp_path / name, codec=codec)
    assert content(tmp_path / name).times == pytest.approx(content(source).times, abs=1e-3)


def test_the_index_is_in_front(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    copy(source, tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_nothing_is_left_after_an_interruption(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", sound="aac")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), Writer(tmp_path / "out.mp4", probe(source)) as writer:
            for frame in read(source):
                writer.write(frame.image, frame.time)
                assert not (tmp_path / "out.mp4").exists()
                if frame.index == 5:
                    raise error
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interruption_keeps_the_older_output(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    (tmp_path / "out.mp4").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "out.mp4", probe(source), overwrite=True) as writer:
        writer.write(pictures(1)[0], 0.0)
        raise KeyboardInterrupt
    assert (tmp_path / "out.mp4").read_bytes() == b"older"
    copy(source, tmp_path / "out.mp4", overwrite=True)
    assert len(content(tmp_path / "out.mp4").times) == 12


def test_names_that_are_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    info = probe(source)
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.mp4" / "x").touch()
    (tmp_path / "there.mp4").touch()
    refused = {
        source: "is the input itself",
        tmp_path / "link.mp4": "is the input itself",
        tmp_path / "out.xyz": "no known video ending",
        tmp_path / "none" / "out.mp4": "there is no folder",
        tmp_path / "a.mp4" / "out.mp4": "there is no folder|cannot be written",
    }
    for path, message in refused.items():
        with pytest.raises(ConfigError, match=message) as caught:
            Writer(path, info, overwrite=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="exists; name another or allow"):
        Writer(tmp_path / "there.mp4", info)
    with pytest.raises(ConfigError, match="is a folder"), Writer(tmp_path / "folder.mp4", info, overwrite=True):
        pass
    assert content(source).times


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files")
def test_unwritable_folder_is_found_before_any_work(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4"))
    with pytest.raises(ConfigError, match=r"output /proc/out\.mp4 cannot be written"), Writer("/proc/out.mp4", info):
        pytest.fail("the work began")


def test_encoders_that_are_refused(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4"))
    with pytest.raises(ConfigError, match=r"no encoder 'libnone'; choose one of: libx264"):
        Writer(tmp_path / "out.mp4", info, codec="libnone")
    with pytest.raises(ConfigError, match="does not write yuv420p"):
        Writer(tmp_path / "out.mp4", info, codec="aac")
    with pytest.raises(ConfigError, match=r"webm file cannot hold libx264"):
        Writer(tmp_path / "out.webm", info)


def test_frames_that_are_refused(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4"))
    image = pictures(1)[0]
    with pytest.raises(DataError, match="does not come after"), Writer(tmp_path / "out.mp4", info) as writer:
        writer.write(image, 0.1)
        writer.write(image, 0.1)
    with pytest.raises(ShapeError, match="image is 63x48; expected 64x48"), Writer(tmp_path / "o.mp4", info) as writer:
        writer.write(image, 0.1)
        writer.write(image[..., 1:], 0.2)
    with pytest.raises(DataError, match="no frame was written"), Writer(tmp_path / "out.mp4", info):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", range(60), size=(120, 160))
    code = (
        "import resource, sys\n"
        "from steadyseg.video import Writer, probe, read\n"
        "from steadyseg.types import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "try:\n"
        "    with Writer(sys.argv[2], probe(sys.argv[1])) as writer:\n"
        "        for frame in read(sys.argv[1]):\n"
        "            writer.write(frame.image, frame.time)\n"
        "except DataError as error:\n"
        "    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("out.mp4: the disk is full; nothing was kept, free some space and run again")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_real_video_with_sound(tmp_path: Path, data_root: Path) -> None:
    source = data_root / "video" / "carnd_vehicle_test_video.mp4"
    copy(source, tmp_path / "out.mp4")
    before, after = content(source), content(tmp_path / "out.mp4")
    assert after.times == before.times and after.sound == before.sound
    assert (after.duration, after.end) == (before.duration, before.end)
