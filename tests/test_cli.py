"""The command line as a person uses it: what works, and one line and the right exit status for what does not."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from steadyseg import cli, config, models
from steadyseg.data.source import VideoSource
from steadyseg.data.streets import StreetsSource
from steadyseg.engine import evaluate as evaluation
from steadyseg.engine import predict as prediction
from steadyseg.engine import stream
from steadyseg.engine.checkpoint import save_model
from steadyseg.models.base import MEAN, STD
from steadyseg.video import read

SIZE = (64, 96)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random SD-CPC for the 11 classes of streets."""
    torch.manual_seed(0)
    kind = models.method("sdcpc")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, kind(kind.Config(), 11), StreetsSource(split="val", size=SIZE, length=2, videos=1))
    return str(path)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 6 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    assert cli.main(["data", "render", str(path), "--size", "64x96", "--length", "6"]) == 0
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a call that must fail with one line on stderr; returns the line."""

    def run(status: int, *words: object) -> str:
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == status
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("steadyseg: ")]
        assert len(lines) == 1, err
        assert "Traceback" not in out + err
        return lines[0]

    return run


def write_images(folder: Path, *sizes: tuple[int, int], mode: str = "RGB") -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        Image.fromarray(pixels, "RGBA").convert(mode).save(folder / f"{number}.png")
    return folder


# ---- what works ----------------------------------------------------------------------------------------------------


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("steadyseg 0.")
    assert cli.main([]) == 2


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"steadyseg {command}" in text
    for parameter in inspect.signature(cli.COMMANDS[command]).parameters.values():
        shown = parameter.name.upper() if parameter.kind is not parameter.KEYWORD_ONLY else f"--{parameter.name}"
        assert shown.replace("_", "-") in text or shown in text


def test_predict_writes_a_video_of_the_same_length(weights: str, clip: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    assert cli.main(["predict", str(clip), "-o", str(out), "--model", weights, "--sheet", str(sheet)]) == 0
    with av.open(str(clip)) as before, av.open(str(out)) as after:
        times = [[frame.time for frame in container.decode(video=0)] for container in (before, after)]
    assert len(times[0]) == 6
    assert times[0] == pytest.approx(times[1])
    with Image.open(sheet) as picture:
        assert picture.width > 100


def test_predict_in_half_precision(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    plain = stream.to_labels

    def spy(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append(logits.dtype)
        return plain(logits, size)

    monkeypatch.setattr(stream, "to_labels", spy)
    words = ["predict", str(clip), "--model", "segformer_mit_b0_camvid", "--format", "labels", "--device", "cpu"]
    labels = []
    for precision in ("fp32", "bf16"):
        assert cli.main([*words, "-o", str(tmp_path / precision), "--precision", precision]) == 0
        labels.append(np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / precision).glob("*.png"))]))
    assert seen == [torch.float32] * 6 + [torch.bfloat16] * 6
    assert (labels[0] == labels[1]).mean() > 0.97


def test_options_and_files_in_any_order(weights: str, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    words = ["predict", "--format", "labels", "--max-frames=2", "-o", out, clip, "--model", weights, "--device", "cpu"]
    assert cli.main([str(word) for word in words]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["000000.png", "000001.png"]
    with Image.open(out / "000001.png") as labels:
        assert labels.mode == "P"
        assert labels.size == (96, 64)
        assert np.asarray(labels).max() < 11


def test_methods_that_run_the_weights_of_a_segformer(clip: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    """A folder that transformers wrote: per frame as transformers computes it, reused, and steadied."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = {number: f"thing {number}" for number in range(150)}
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(id2label=labels)).eval()
    theirs.save_pretrained(tmp_path / "model")
    words = ["predict", str(clip), "--model", str(tmp_path / "model"), "--format", "labels"]
    outputs = {}
    for method, interval in (("segformer", 0), ("tfc", 3), ("reuse", 3), ("flow", 3), ("tfc", 1)):
        out = tmp_path / f"{method}{interval}"
        options = ["--interval", str(interval)] if interval else []
        assert cli.main([*words, "-o", str(out), "--method", method, *options]) == 0
        outputs[out.name] = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
    for number, frame in enumerate(read(clip)):
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        with torch.no_grad():
            logits = theirs(((frame.image - mean) / std)[None]).logits
        full = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
        per_frame = outputs["segformer0"][number]
        assert (full.argmax(1)[0].numpy() == per_frame).mean() > 0.999
        assert np.array_equal(outputs["tfc1"][number], per_frame)
        if number % 3 == 0:
            assert all(np.array_equal(outputs[name][number], per_frame) for name in ("tfc3", "reuse3", "flow3"))
    assert any(not np.array_equal(a, b) for a, b in zip(outputs["tfc3"], outputs["segformer0"], strict=True))
    line = fails(2, *words, "-o", tmp_path / "x", "--method", "sdcpc")
    assert "train it" in line
    assert "interval" in fails(2, *words, "-o", tmp_path / "x", "--interval", "4")


def test_predict_can_look_ahead(clip: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    torch.manual_seed(0)
    kind = models.method("dcfm")
    save_model(tmp_path / "dcfm.safetensors", kind(kind.Config(interval=3), 5))
    words = ["predict", str(clip), "--model", str(tmp_path / "dcfm.safetensors"), "--format", "labels"]
    assert cli.main([*words, "-o", str(tmp_path / "online")]) == 0
    assert cli.main([*words, "-o", str(tmp_path / "ahead"), "--look-ahead"]) == 0
    online, ahead = (
        [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).glob("*.png"))]
        for name in ("online", "ahead")
    )
    same = [np.array_equal(a, b) for a, b in zip(online, ahead, strict=True)]
    assert same[0] and same[3], "key frames stand alone"
    assert not all(same)
    assert "leave one out" in fails(2, *words, "-o", tmp_path / "x", "--look-ahead", "--reset-on-cut")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_predict_takes_several_and_grey_or_transparent_images(
    weights: str, clip: Path, tmp_path: Path, mode: str
) -> None:
    images = write_images(tmp_path / "frames", SIZE, SIZE, mode=mode)
    out = tmp_path / "out"
    words = ["predict", clip, images, "-o", out, "--model", weights, "--max-frames", "1", "--legend", "false"]
    assert cli.main([str(word) for word in words]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["clip.mp4", "frames.mp4"]
    again = [*words, "--format", "side", "--opacity", "1", "--reset-on-cut", "--overwrite"]
    assert cli.main([str(word) for word in again]) == 0
    with av.open(str(out / "frames.mp4")) as side:
        assert side.streams.video[0].width == 2 * 96


def test_train_eval_and_predict_with_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "smoke_streets", "--out", str(run), "train.iterations=2", "train.batch_size=2", "data.cache_mb=0"]
    assert cli.main([*words, "data.train.0.length=4", "data.train.0.videos=1", "train.warmup=0"]) == 0
    assert (run / "model.safetensors").is_file()
    capsys.readouterr()
    source = tmp_path / "data"
    write_folder_source(source, classes=11)
    scored = ["eval", "--model", str(run), "--data", "folder", "--root", str(source)]
    assert cli.main([*scored, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["scores"]) >= {"mIoU", "wIoU"}
    assert 0 <= report["scores"]["mIoU"] <= 1
    each = [value for value in report["IoU"].values() if value is not None]
    assert len(report["IoU"]) == 11 and sum(each) / len(each) == pytest.approx(report["scores"]["mIoU"])
    assert (
        cli.main([*scored, "--metrics", "iou,vc", "--protocol", "full", "--base", "64x96", "--resize", "align32"]) == 0
    )
    text = capsys.readouterr().out
    assert "mVC16" in text and "undefined" in text and "(full)" in text and next(iter(report["IoU"])) not in text
    assert cli.main([*scored, "--metrics", "iou", "--per-class", "--only", "*"]) == 0
    assert all(name in text for text in [capsys.readouterr().out] for name in report["IoU"])
    assert cli.main([*scored, "--only", "nothing*"]) == 2
    assert "no video of split 'val' matches 'nothing*'; expected a pattern for names such as" in capsys.readouterr().err


def test_train_takes_a_time_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "smoke_streets", "--out", str(tmp_path / "run"), "data.train.0.length=4", "data.train.0.videos=1"]
    assert cli.main([*words, "--time-budget", "soon"]) == 2
    assert "train.time_budget is 'soon'; expected a time such as 2h, 1h30m or 45s" in capsys.readouterr().err
    assert cli.main([*words, "--time-budget", "1s"]) == 0
    assert "for 1s" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_eval_takes_data_and_sizes_from_a_config(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    source = "{source: streets, split: test, size: [64, 96], length: 2, videos: 1}"
    config.write_text(f"method: sdcpc\neval:\n  source: {source}\n  base: [48, 72]\n  resize: align32\n")
    words = ["eval", "--model", weights, "--config", str(config), "--metrics", "iou", "--json"]
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    expected = {"data": "streets", "split": "test", "base": [48, 72], "resize": "align32"}
    assert {key: report[key] for key in expected} == expected
    assert cli.main([*words, "--split", "val", "--resize", "exact"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["split"], report["resize"], report["base"]) == ("val", "exact", [48, 72])
    assert not report["alone"]
    assert cli.main([*words, "--alone"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["alone"] and "alone" in report["protocols"][-1]


def test_eval_runs_once_for_each_first_key_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All into one score: the labelled frame counts once as a key frame and once between two."""
    torch.manual_seed(0)
    kind = models.method("dcfm")
    save_model(tmp_path / "dcfm.safetensors", kind(kind.Config(), 11))
    source = "{source: streets, split: val, size: [64, 96], length: 3, videos: 1}"
    (tmp_path / "c.yaml").write_text(f"method: dcfm\neval:\n  source: {source}\n  starts: [0, 1]\n")
    seen: list[tuple[int, int]] = []
    real = evaluation.evaluate

    def watched(model: models.VideoSegmenter, source: VideoSource, scorers: list, **options: object) -> dict:
        scores = real(model, source, scorers, **options)  # type: ignore[arg-type]
        seen.append((model.config.start, int(scorers[0].totals()[0].sum())))  # type: ignore[attr-defined]
        return scores

    monkeypatch.setattr(evaluation, "evaluate", watched)
    words = ["--model", str(tmp_path / "dcfm.safetensors"), "--config", str(tmp_path / "c.yaml"), "--metrics", "iou"]
    assert cli.main(["eval", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["starts"] == [0, 1]
    assert [start for start, _ in seen] == [0, 1]
    assert seen[1][1] == 2 * seen[0][1], "both runs go into the same totals"


def write_folder_source(root: Path, *, classes: int, value: int = 0) -> None:
    """Three labelled frames of one video, all of class `value`."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        write_images(root / part / "one", *[SIZE] * 3, mode="RGB")
    for mask in (root / "masks" / "one").iterdir():
        Image.fromarray(np.full(SIZE, value, np.uint8)).save(mask)
    names = ", ".join(f"class{number}" for number in range(classes))
    (root / "classes.yaml").write_text(f"names: [{names}]\n")


def test_data_check_finds_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_folder_source(good, classes=2)
    write_folder_source(bad, classes=2, value=7)
    assert cli.main(["data", "check", "folder", "--root", str(good)]) == 0
    assert "0 findings" in capsys.readouterr().out
    assert cli.main(["data", "check", "folder", "--root", str(bad)]) == 1
    text = capsys.readouterr().out
    assert "label value" in text and "1.png" in text and "3 findings" in text


def test_help_of_commands_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert "data check" in text and "data render" in text and "predict" not in text


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut, however narrow the terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("sdcpc", "mit_b5", "camvid", "smoke_streets"))
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in config.names())
    assert "mIoU 43.7 wIoU 63.7 mVC8 87.7 mVC16 83.2" in text
    assert cli.main(["list", "--costs"]) == 0
    assert "24.8    24.8     21.4         22.9     one frame" in capsys.readouterr().out


def test_benchmark_shows_and_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from steadyseg import benchmark

    monkeypatch.setattr(benchmark, "apart", lambda function, name, setting: function(name, setting))
    words = ["benchmark", "segformer", "--size", "64x96", "--classes", "5", "--frames", "2", "--warmup", "1"]
    assert cli.main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["method"] == "segformer"
    assert report["comparisons"] == []
    pytest.importorskip("transformers")
    assert cli.main([*words, "--against", "transformers"]) == 0
    assert "0 of 18432 labels differ" in capsys.readouterr().out


# ---- wrong calls: exit status 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["predit"], "did you mean 'predict'"),
        (["data"], "data check"),
        (["data", "chekc"], "did you mean 'data check'"),
        (["predict", "-o", "x.mp4"], "no video given"),
        (["predict", "x.mp4"], "-o is missing"),
        (["predict", "x.mp4", "-o"], "-o needs a value"),
        (["predict", "x.mp4", "-o", "y.mp4", "--opacty", "1"], "did you mean '--opacity'"),
        (["predict", "x.mp4", "-o", "y.mp4", "--opacity", "1.5"], "opacity is 1.5"),
        (["predict", "x.mp4", "-o", "y.mp4", "--opacity", "much"], "--opacity is 'much'; expected a number"),
        (["predict", "x.mp4", "-o", "y.mp4", "--max-frames", "1.5"], "expected a whole number"),
        (["predict", "x.mp4", "-o", "y.mp4", "--max-frames", "0"], "max_frames is 0"),
        (["predict", "x.mp4", "-o", "y.mp4", "--legend", "maybe"], "expected true or false"),
        (["predict", "x.mp4", "-o", "y.mp4", "--format", "overlya"], "did you mean 'overlay'"),
        (["predict", "a.mp4", "b.mp4", "-o", "y", "--sheet", "s.png"], "one video"),
        (["list", "more"], "more"),
        (["train"], "CONFIG is missing"),
        (["train", "smoke_stret"], "did you mean 'smoke_streets'"),
        (["train", "smoke_streets", "train.lrr=1"], "did you mean 'lr'"),
        (["train", "smoke_streets", "train.lr=fast"], "train.lr is 'fast'"),
        (["train", "nowhere/some.yaml"], "no config file"),
        (["eval", "--model", "x"], "no data given"),
        (["eval", "--model", "m", "--data", "camvit"], "did you mean 'camvid'"),
        (["eval", "--model", "m", "--data", "streets", "--metrics", "iuo"], "did you mean 'iou'"),
        (["eval", "--model", "m", "--data", "streets", "--base", "big"], "height x width"),
        (["data", "check", "camvid", "--root", "nowhere"], "not a folder"),
        (["data", "render", "x.mp4", "--length", "0"], "--length"),
        (["benchmark", "sdcpd"], "did you mean 'sdcpc'"),
        (["benchmark", "sdcpc", "--interval", "4"], "'sdcpc' has no option 'interval'"),
        (["predict", "x.mp4", "-o", "y.mp4", "--interval", "4", "--options", "interval=2"], "leave one out"),
        (["predict", "x.mp4", "-o", "y.mp4", "--options", "junk"], "expected key=value"),
        (["benchmark", "segformer", "--size", "480"], "expected height x width"),
    ],
)
def test_wrong_calls(
    fails: Callable[..., str], words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in fails(2, *words)
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be(fails: Callable[..., str], weights: str, clip: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.mp4"
    there.write_bytes(b"mine")
    call = ["predict", clip, "--model", weights, "-o"]
    assert "--overwrite" in fails(2, *call, there)
    assert "--overwrite" in fails(2, *call[:2], "--model", "not looked at before", "-o", there)
    assert "name of a video" in fails(2, *call, tmp_path / "a.mp4", "--format", "labels")
    assert "is the input itself" in fails(2, *call, clip, "--overwrite")
    assert "no folder" in fails(2, *call, tmp_path / "no" / "out.mp4")
    assert "ending" in fails(2, *call, tmp_path / "out.txt")
    assert "no folder" in fails(2, *call, tmp_path / "a.mp4", "--sheet", tmp_path / "no" / "sheet.png")
    assert "no image ending" in fails(2, *call, tmp_path / "a.mp4", "--sheet", tmp_path / "sheet.txt")
    assert "one file" in fails(2, "predict", clip, clip, "--model", weights, "-o", tmp_path / "out.mp4")
    assert "same name" in fails(2, "predict", clip, clip, "--model", weights, "-o", tmp_path / "out")
    assert there.read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["there.mp4"]


# ---- wrong data: exit status 1 ---------------------------------------------------------------------------------------


def truncated(path: Path, clip: Path) -> Path:
    path.write_bytes(clip.read_bytes()[:2000])
    return path


def audio(path: Path, clip: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    return path


def empty(path: Path, clip: Path) -> Path:
    path.touch()
    return path


def folder(path: Path, clip: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path, clip: path, "does not exist"),
        (folder, "holds no image"),
        (empty, "0 bytes"),
        (truncated, "video"),
        (audio, "no video stream"),
        (lambda path, clip: write_images(path, (1, 1)), "at least 32x32"),
        (lambda path, clip: write_images(path, (7, 5)), "at least 32x32"),
        (lambda path, clip: write_images(path, SIZE, SIZE, (32, 32)), "frame 2"),
    ],
    ids=["missing", "folder", "empty", "truncated", "audio", "1x1", "7x5", "size change"],
)
def test_videos_that_cannot_be_used(
    fails: Callable[..., str], weights: str, clip: Path, tmp_path: Path, make: Callable[[Path, Path], Path], text: str
) -> None:
    video = make(tmp_path / "video.mp4", clip)
    out = tmp_path / "out"
    out.mkdir()
    assert text in fails(1, "predict", video, "-o", out / "out.mp4", "--model", weights)
    assert not list(out.iterdir())


def test_a_corrupt_frame_is_named_and_skipped_on_demand(
    fails: Callable[..., str], weights: str, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "frames", SIZE, SIZE, SIZE)
    (images / "1.png").write_bytes(b"no picture")
    out = tmp_path / "labels"
    call = ["predict", images, "-o", out, "--format", "labels", "--model", weights]
    assert "frame 1" in fails(1, *call)
    assert not out.exists()
    assert "warning: frame 1 skipped" in fails(0, *call, "--on-error", "skip")
    assert sorted(file.name for file in out.iterdir()) == ["000000.png", "000002.png"]


class Trap:
    """Pickled, it runs code when loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))


def test_checkpoints_that_cannot_be_used(
    fails: Callable[..., str], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "trap.pth"
    trap.write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=2))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x00" * 50)
    for model in (trap, torn, "no_such_weights"):
        fails(1, "predict", clip, "-o", tmp_path / "out.mp4", "--model", model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["torn.safetensors", "trap.pth"]


def test_data_that_does_not_fit(fails: Callable[..., str], weights: str, tmp_path: Path) -> None:
    write_folder_source(tmp_path / "two", classes=2)
    write_folder_source(tmp_path / "wrong", classes=11, value=200)
    call = ["eval", "--model", weights, "--data", "folder", "--metrics", "iou", "--root"]
    assert "11 classes, the data has 2" in fails(1, *call, tmp_path / "two")
    assert "label value 200" in fails(1, *call, tmp_path / "wrong")


# ---- interruptions -------------------------------------------------------------------------------------------------


def test_interrupt_leaves_nothing(
    weights: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def stop(self: prediction.Stream, frame: torch.Tensor) -> torch.Tensor:
        calls.append(frame)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.zeros(frame.shape[1:], dtype=torch.uint8)

    monkeypatch.setattr(prediction.Stream, "__call__", stop)
    assert cli.main(["predict", str(clip), "-o", str(tmp_path / "out.mp4"), "--model", weights]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_request_to_end_leaves_nothing(
    weights: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(self: prediction.Stream, frame: torch.Tensor) -> torch.Tensor:
        assert list(tmp_path.iterdir())  # the unfinished output
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(frame.shape[1:], dtype=torch.uint8)

    monkeypatch.setattr(prediction.Stream, "__call__", end)
    words = ["steadyseg", "predict", str(clip), "-o", str(tmp_path / "out.mp4"), "--model", weights]
    monkeypatch.setattr("sys.argv", words)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main() == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_system_errors_are_one_line(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out.mp4")

    monkeypatch.setitem(cli.COMMANDS, "list", full)
    assert "out.mp4: No space left on device" in fails(1, "list")


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "list", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"]])
def test_a_closed_pipe_is_quiet(words: list[str]) -> None:
    code = f"import sys; from steadyseg.cli import main; sys.stdin.read(); sys.exit(main({words}))"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
