import os
import random
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from steadyseg import config
from steadyseg.data import open_source
from steadyseg.engine import train as training
from steadyseg.engine.checkpoint import load_model, save_model
from steadyseg.engine.evaluate import evaluate
from steadyseg.engine.progress import Bar
from steadyseg.engine.train import InterruptError, seed_step, train
from steadyseg.metrics import build, standard
from steadyseg.types import CheckpointError, ConfigError, DataError, SteadysegError


@pytest.fixture(autouse=True)
def tiny_method(monkeypatch):
    tiny.install(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch):
    """Logs of one second are read in the order of a counter of the whole process, as text: 10 before 9.

    TensorBoard has no public name for that counter, and runs that go on within a second are these tests' alone.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def with_hook(monkeypatch, hook):
    monkeypatch.setattr(training, "training_clips", lambda *args, dense: tiny.TinyClips(hook))


def losses(out):
    events = EventAccumulator(str(out / "log"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/ce")}


def assert_same_weights(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-6)


def test_loss_falls_on_eight_clips(tmp_path):
    weights = train(tiny.experiment(iterations=60, batch_size=8, lr=0.02), tmp_path / "run")
    seen = losses(tmp_path / "run")
    assert sorted(seen) == list(range(1, 61))
    assert seen[60] < 0.5 * seen[1]
    model = load_model(weights)
    assert model.classes == tiny.TinySource.classes and model.palette == tiny.TinySource.palette
    image, labels = tiny.picture(1)
    assert (model.step(image[None])[0].argmax(1)[0] == labels).float().mean() > 0.8
    assert config.load(tmp_path / "run" / "config.yaml").train.iterations == 60


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_stop_by_signal_and_resume_equals_not_stopping(tmp_path, monkeypatch, number, workers):
    whole = train(tiny.experiment(precision="bf16-mixed", clip_norm=1.0), tmp_path / "whole")
    process = os.getpid()
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: os.kill(process, number) if i == 6 else None)
        before = signal.getsignal(number)
        with pytest.raises(InterruptError, match=r"stopped at step \d of 8") as stop:
            train(tiny.experiment(precision="bf16-mixed", clip_norm=1.0, workers=workers), tmp_path / "run")
        assert stop.value.exit_status == 128 + number
        assert signal.getsignal(number) is before
    assert 1 <= torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] <= 4
    assert not (tmp_path / "run" / "model.safetensors").exists()
    random.random(), np.random.rand(), torch.rand(1)  # other draws in between change nothing
    resumed = train(tiny.experiment(precision="bf16-mixed", clip_norm=1.0), tmp_path / "run", resume=True)
    assert_same_weights(whole, resumed)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_resumed_run_says_where_it_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    train(tiny.experiment(iterations=4, warmup=1), out)
    assert "going on" not in capsys.readouterr().err
    train(tiny.experiment(iterations=4, warmup=1), out, resume=True)
    assert "the run is finished" in capsys.readouterr().err
    with Bar(3, 4, show=True):
        pass
    assert "going on after step 3" in capsys.readouterr().err


@pytest.mark.parametrize(("warmup", "is_said"), [(3, False), (4, True)])
def test_a_warm_up_that_never_ends_is_named(tmp_path, caplog, warmup, is_said):
    train(tiny.experiment(iterations=4, warmup=warmup), tmp_path / "run")
    assert (f"warm-up takes {warmup} of 4 steps" in caplog.text) == is_said


@pytest.mark.gpu
def test_half_precision_resumes_with_its_loss_scale(tmp_path, monkeypatch):
    options = {"precision": "16-mixed", "clip_norm": 1.0, "accelerator": "gpu"}
    whole = train(tiny.experiment(**options), tmp_path / "whole")
    with_hook(monkeypatch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 9 else None)
    with pytest.raises(InterruptError):
        train(tiny.experiment(**options), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["precision"]["scale"] > 0
    with_hook(monkeypatch, lambda i: None)
    assert_same_weights(whole, train(tiny.experiment(**options), tmp_path / "run", resume=True))


def test_killed_at_a_random_moment_and_resumed_equals_not_killed(tmp_path):
    whole = train(tiny.experiment(iterations=60), tmp_path / "whole")
    out = tmp_path / "run"
    process = subprocess.Popen(tiny.command(out, 60, checkpoint_minutes=0.0, pause=0.02), stderr=subprocess.PIPE)
    try:
        while not (out / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        time.sleep(random.Random().uniform(0, 0.5))
    finally:
        process.kill()
        process.communicate()
    step = torch.load(out / "last.ckpt", weights_only=True)["step"]
    assert 1 <= step < 60
    resumed = train(tiny.experiment(iterations=60), out, resume=True)
    assert_same_weights(whole, resumed)


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    model = tiny.Config(dropout=0.0)
    one = train(tiny.experiment(model, batch_size=4, iterations=4), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = tiny.command(tmp_path / "two", 4, devices=2, strategy="ddp", dropout=0.0)
    settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(command, env=os.environ | settings | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for process in processes:
        text = process.communicate(timeout=120)[1].decode()
        assert process.returncode == 0, text
    first, second = load_file(one), load_file(tmp_path / "two" / "model.safetensors")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5)
    seen, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert seen == pytest.approx(expected, abs=1e-5)


def test_a_term_that_is_not_finite_stops_and_is_named(tmp_path):
    with pytest.raises(SteadysegError, match=r"loss term 'extra' is nan at step 3; lower train\.lr"):
        train(tiny.experiment(tiny.Config(nan_from=6), checkpoint_minutes=0.0), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_gradient_that_is_not_finite_stops(tmp_path, monkeypatch):
    def forward(self, clip):
        return {"root": (self.logits(clip.frames[:, -1]) * 0).sum().sqrt()}

    monkeypatch.setattr(tiny.Tiny, "forward", forward)
    with pytest.raises(SteadysegError, match="gradient 'norm' is nan at step 0"):
        train(tiny.experiment(clip_norm=1.0), tmp_path / "run")


def test_a_full_disk_is_an_error_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def fill_the_disk(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("writing failed:\nno space")

    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 3 else None)
        with pytest.raises(InterruptError):
            train(tiny.experiment(), tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*last\.ckpt: writing failed: no space"):
        train(tiny.experiment(), tmp_path / "run", resume=True)
    assert [path.read_bytes() for path in (tmp_path / "run").glob("last.ckpt*")] == [before]


def test_mistakes_leave_no_folder_and_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .* to resume"):
        train(tiny.experiment(), tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="nowhere"):
        train(tiny.experiment(init="nowhere.safetensors"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists; pass --resume or another --out"):
        train(tiny.experiment(), tmp_path)
    with pytest.raises(ConfigError, match="is not a run folder"):
        train(tiny.experiment(), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="is a file"):
        train(tiny.experiment(), tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="cannot write to"):
        train(tiny.experiment(), tmp_path / "notes.txt" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_another_experiment_is_refused_and_a_finished_one_returns(tmp_path):
    weights = train(tiny.experiment(iterations=2), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"a run with train\.lr 0\.01, not 0\.5; pass the same or another --out"):
        train(tiny.experiment(iterations=2, lr=0.5), tmp_path / "run", resume=True)
    before = weights.read_bytes()
    assert train(tiny.experiment(iterations=2, log_every=7), tmp_path / "run", resume=True) == weights
    assert weights.read_bytes() == before


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    train(tiny.experiment(iterations=2), tmp_path / "run")
    checkpoint = tmp_path / "run" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    del state["optimizer"]
    torch.save(state, checkpoint)
    with pytest.raises(CheckpointError, match=r"last\.ckpt does not fit this experiment: 'optimizer'"):
        train(tiny.experiment(iterations=2), tmp_path / "run", resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tiny.experiment(iterations=2), tmp_path / "run", resume=True)


def test_initial_weights_start_the_backbone_only(tmp_path, monkeypatch):
    model = tiny.Tiny(tiny.Config(), 5)
    save_model(tmp_path / "init.safetensors", model)
    built = []
    monkeypatch.setattr(training, "build_optimizer", lambda model, config: built.append(model) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny.experiment(init=str(tmp_path / "init.safetensors")), tmp_path / "run")
    torch.testing.assert_close(built[0].backbone.state_dict(), model.backbone.state_dict())
    assert built[0].num_classes == 3


def test_whole_initial_weights_keep_what_fits_and_name_the_rest(tmp_path, monkeypatch, caplog):
    model = tiny.Tiny(tiny.Config(), 3)
    other = tiny.Tiny(tiny.Config(), 5)
    save_model(tmp_path / "same.safetensors", model)
    save_model(tmp_path / "other.safetensors", other)
    built = []
    monkeypatch.setattr(training, "build_optimizer", lambda model, config: built.append(model) or 1 / 0)
    for number, name in enumerate(("same", "other")):
        with pytest.raises(ZeroDivisionError):
            options = {"init": str(tmp_path / f"{name}.safetensors"), "init_part": "whole"}
            train(tiny.experiment(**options), tmp_path / f"run{number}")
    torch.testing.assert_close(built[0].state_dict(), model.state_dict())
    torch.testing.assert_close(built[1].backbone.state_dict(), other.backbone.state_dict())
    assert built[1].num_classes == 3
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "what did not fit keeps its random start: head.weight, head.bias"
    ]


def test_the_running_mean_is_what_is_saved_and_survives_a_stop(tmp_path, monkeypatch):
    steps = []
    count = training._Run.count

    def watch(self, seconds):
        count(self, seconds)
        steps.append({name: value.detach().clone() for name, value in self.model.named_parameters()})

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "count", watch)
        whole = train(tiny.experiment(ema=0.4), tmp_path / "whole")
    expected = steps[0]
    for number, values in enumerate(steps[1:], start=1):
        keep = min(0.4, (1 + number) / (10 + number))
        expected = {name: keep * value + (1 - keep) * values[name] for name, value in expected.items()}
    saved = load_file(whole)
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value)
        assert not torch.equal(saved[name], steps[-1][name])
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 9 else None)
        with pytest.raises(InterruptError):
            train(tiny.experiment(ema=0.4), tmp_path / "run")
    assert_same_weights(whole, train(tiny.experiment(ema=0.4), tmp_path / "run", resume=True))


def test_scores_on_the_way_keep_the_best_weights_over_a_stop(tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.1])
    monkeypatch.setattr(training, "evaluate", lambda *args, **options: {"mIoU": next(scores)})
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 11 else None)
        with pytest.raises(InterruptError, match="step 6 of 8"):
            train(tiny.experiment(eval_every=2), tmp_path / "run")
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    train(tiny.experiment(eval_every=2), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best
    events = EventAccumulator(str(tmp_path / "run" / "log"))
    events.Reload()
    seen = [(event.step, round(event.value, 3)) for event in events.Scalars("mIoU")]
    assert seen == [(2, 0.5), (4, 0.7), (6, 0.6), (8, 0.1)]


def test_a_score_is_that_of_the_saved_weights(tmp_path):
    train(tiny.experiment(eval_every=8, iterations=8, ema=0.5), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "log"))
    events.Reload()
    model, source = load_model(tmp_path / "run"), tiny.TinySource()
    scores = evaluate(model, source, [build("iou", source)])
    assert events.Scalars("mIoU")[-1].value == pytest.approx(scores["mIoU"])
    assert_same_weights(tmp_path / "run" / "best.safetensors", tmp_path / "run" / "model.safetensors")


def test_a_time_budget_ends_the_run_and_shapes_the_rate(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    with_hook(monkeypatch, lambda i: now.__setitem__(0, now[0] + 1.0))  # two seconds a step of two clips
    options = {"iterations": 10**6, "time_budget": "40s", "warmup": 0, "lr": 0.01, "checkpoint_minutes": 100.0}
    train(tiny.experiment(**options), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "log"))
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert sorted(rates) == list(range(1, 21))
    for step in (2, 5, 11, 20):
        assert rates[step] == pytest.approx(0.01 * (1 - 2 * (step - 1) / 40), rel=0.02)


def test_a_time_budget_goes_on_after_a_stop(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    options = {"time_budget": "20s", "checkpoint_minutes": 100.0}

    def tick(i):
        now[0] += 1.0
        if i == 9:
            signal.raise_signal(signal.SIGTERM)

    with_hook(monkeypatch, tick)
    with pytest.raises(InterruptError, match="stopped at step 5 of 10"):
        train(tiny.experiment(**options), tmp_path / "run")
    now[0] += 1000.0  # the pause does not count
    with_hook(monkeypatch, lambda i: now.__setitem__(0, now[0] + 1.0))
    train(tiny.experiment(**options), tmp_path / "run", resume=True)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 10
    for wrong in ("soon", "2", "", "0s", "-1h"):
        with pytest.raises(ConfigError, match="expected a time such as 2h"):
            tiny.experiment(time_budget=wrong)


def test_a_stop_before_anything_is_logged_draws_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 3 else None)
        with pytest.raises(InterruptError):
            train(tiny.experiment(log_every=20), tmp_path / "run")
    assert not (tmp_path / "run" / "curves.png").exists()
    train(tiny.experiment(log_every=20), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_checkpoint_without_times_and_scores_goes_on(tmp_path, monkeypatch):
    """As the first version wrote it."""
    whole = train(tiny.experiment(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 9 else None)
        with pytest.raises(InterruptError):
            train(tiny.experiment(), tmp_path / "run")
    path = tmp_path / "run" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    torch.save({key: state[key] for key in state if key not in ("seconds", "best", "average")}, path)
    assert_same_weights(whole, train(tiny.experiment(), tmp_path / "run", resume=True))


def test_the_curves_are_a_picture(tmp_path):
    train(tiny.experiment(eval_every=4), tmp_path / "run")
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.width == 800 and picture.height > 600  # three panels: loss, mIoU, learning rate
        colours = picture.convert("RGB").getcolors(maxcolors=2**20)
    assert len(colours) > 50


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_that_cannot_be_read_gives_one_line(tmp_path, monkeypatch, workers):
    def fail(i):
        raise DataError("frame0.png is truncated")

    with_hook(monkeypatch, fail)
    with pytest.raises(DataError) as error:
        train(tiny.experiment(workers=workers), tmp_path / "run")
    assert str(error.value) == "frame0.png is truncated"


def test_other_errors_of_a_worker_keep_their_text(tmp_path, monkeypatch):
    with_hook(monkeypatch, lambda i: 1 // 0)
    with pytest.raises(ZeroDivisionError, match="worker process 0"):
        train(tiny.experiment(workers=1), tmp_path / "run")


def test_a_signal_to_all_processes_leaves_the_workers_to_the_trainer(tmp_path):
    out = tmp_path / "run"
    command = tiny.command(out, 10_000, checkpoint_minutes=0.0, workers=1, pause=0.01)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while not (out / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        text = process.communicate(timeout=30)[1].decode()
    finally:
        process.kill()
    assert "InterruptError: stopped at step" in text
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)


def test_sources_must_agree_on_the_classes(tmp_path, monkeypatch):
    class More(tiny.TinySource):
        classes = ("a", "b", "c", "d")

    sources = iter([tiny.TinySource(), More()])
    monkeypatch.setattr(training, "open_source", lambda entry: next(sources))
    overrides = ["data.train=[{source: streets}, {source: camvid}]", "train.workers=0"]
    with pytest.raises(ConfigError, match="have 3 and 4 classes"):
        train(config.load("smoke_streets", overrides), tmp_path / "run")
    other = tiny.TinySource()
    other.classes = ("road", "tree", "car")
    sources = iter([tiny.TinySource(), other])
    with pytest.raises(ConfigError, match=r"class 1 is 'car' in one source of data\.train and 'tree' in another"):
        train(config.load("smoke_streets", overrides), tmp_path / "again")
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        train(config.load("smoke_streets", ["data.train=[]"]), tmp_path / "other")


def test_class_weights_are_used_and_survive_a_stop(tmp_path, monkeypatch):
    whole = train(tiny.experiment(class_weights="median"), tmp_path / "whole")
    plain = train(tiny.experiment(), tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same_weights(whole, plain)
    with monkeypatch.context() as patch:
        with_hook(patch, lambda i: signal.raise_signal(signal.SIGTERM) if i == 9 else None)
        with pytest.raises(InterruptError):
            train(tiny.experiment(class_weights="median"), tmp_path / "run")
    assert_same_weights(whole, train(tiny.experiment(class_weights="median"), tmp_path / "run", resume=True))


def test_class_weights_are_read_where_clips_keep_frames(tmp_path, monkeypatch):
    clips = tiny.TinyClips()
    clips.sources = (tiny.TinySource(videos=1, frames=1),)
    reads = []
    read = clips.sources[0].read
    monkeypatch.setattr(clips.sources[0], "read", lambda *asked: reads.append(asked) or read(*asked))
    monkeypatch.setattr(training, "training_clips", lambda *args, dense: clips)
    train(tiny.experiment(class_weights="median"), tmp_path / "run")
    assert reads == [("video0", [0])]


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot run on accelerator cpu, devices 0"):
        train(tiny.experiment(devices=0), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.precision=16-mixed needs a GPU; use bf16-mixed"):
        train(tiny.experiment(precision="16-mixed"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_step_and_process_draws_its_own_numbers():
    def draw(*key):
        seed_step(*key)
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    draws = {draw(0, step, rank) for step in range(3) for rank in range(2)}
    assert len(draws) == 6
    assert draw(0, 1, 1) == draw(0, 1, 1) != draw(1, 1, 1)


def test_a_real_method_on_real_data(tmp_path, monkeypatch):
    monkeypatch.undo()
    overrides = ["train.iterations=2", "train.warmup=0", "train.precision=bf16-mixed", "train.channels_last=true"]
    weights = train(config.load("smoke_streets", overrides), tmp_path / "run")
    model = load_model(weights)
    logits, _ = model.step(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert logits.shape[:2] == (1, 11) and logits.isfinite().all()


def test_a_real_method_stopped_three_times_scores_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.undo()
    overrides = ["train.iterations=6", "train.warmup=1", "train.precision=bf16-mixed", "train.ema=0.9"]
    experiment = config.load("smoke_streets", overrides)
    whole = train(experiment, tmp_path / "whole")
    draw = training.seed_step
    for stop in (2, 3, 5):

        def stopping(seed, step, rank, stop=stop):
            draw(seed, step, rank)
            if step == stop - 1:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(training, "seed_step", stopping)
        with pytest.raises(InterruptError, match=f"stopped at step {stop} of 6"):
            train(experiment, tmp_path / "run", resume=stop > 2)
    monkeypatch.setattr(training, "seed_step", draw)
    resumed = train(experiment, tmp_path / "run", resume=True)
    assert_same_weights(whole, resumed)
    source = open_source(config.load("smoke_streets").eval.source)
    source.names = source.names[:1]
    found = [evaluate(load_model(path), source, standard(source)) for path in (whole, resumed)]
    assert found[0] == found[1] and found[0]["mIoU"] > 0
