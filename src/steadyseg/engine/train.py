"""Training: one visible loop on Lightning Fabric.

What happens in a step depends on the experiment, the weights, the optimiser and the step's number alone: the clips
are drawn from (seed, sample number), the learning rate is a function of the step, and every random generator is
seeded from (seed, step, process). A checkpoint therefore needs no generator states, and a run that was killed and
resumed takes the very same steps as one that was not.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from steadyseg import models
from steadyseg.config import Experiment, TrainConfig, load, to_dict
from steadyseg.data import open_source
from steadyseg.data.clips import DataConfig, median_frequency_weights, start_worker, training_clips
from steadyseg.data.source import VideoSource
from steadyseg.engine.checkpoint import load_backbone, load_fitting, save_model
from steadyseg.engine.curves import draw
from steadyseg.engine.evaluate import evaluate
from steadyseg.engine.optim import build_average, build_optimizer, set_rate
from steadyseg.engine.progress import Bar
from steadyseg.engine.published import read_pickle
from steadyseg.engine.signals import Stop, stop_signals
from steadyseg.metrics import build
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import CheckpointError, Clip, ConfigError, DataError, SteadysegError

CHECKPOINT, MODEL, BEST, CONFIG, LOG = "last.ckpt", "model.safetensors", "best.safetensors", "config.yaml", "log"
CURVES = "curves.png"
WORKER_GRACE = 60
"""Seconds that a worker goes on after SIGTERM, for the training process to finish its step."""
FREE = ("train.workers", "train.checkpoint_minutes", "train.log_every", "data.cache_mb")
"""Options that may change between a stop and its resumption, since no result depends on them."""


_LOG = logging.getLogger(__name__)


class InterruptError(SteadysegError):
    """Training was stopped by a signal, after saving; exit_status is 128 plus the signal's number."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.exit_status = 128 + number


def train(experiment: Experiment, out: Path, *, resume: bool = False) -> Path:
    """Train, and save checkpoints, logs and the final weights.

    Writes to `out`: config.yaml (the experiment, defaults written out), log/ (TensorBoard: the loss terms, their sum,
    the learning rate, the scores), curves.png (the same as a picture), last.ckpt (all that resuming needs),
    best.safetensors (the weights with the highest mIoU, where `eval_every` is set) and, at the end, model.safetensors.
    SIGINT and SIGTERM let the step finish and save.

    Args:
        experiment: what to train.
        out: the run's folder; must not exist, or be empty, unless resuming.
        resume: go on with the run in `out`; a finished run only writes its final weights again.

    Returns:
        The file of the final weights.

    Raises:
        ConfigError: if `out` holds something else, or a run of another experiment.
        CheckpointError: if initial weights or the checkpoint do not fit.
        SteadysegError: if a loss term or the gradient is not finite; names the term. The checkpoint stays.
        InterruptError: after a signal.
    """
    config = experiment.train
    _warn_of_warmup(config)
    sources = _open(experiment.data)  # first, so that missing data starts no processes
    scored = open_source(experiment.eval.source) if config.eval_every else None
    fabric = _launch(config)
    _agree(fabric, lambda: _problem(experiment, out, resume))
    model = _build(experiment, sources[0], fabric)
    dataset = training_clips(experiment.data, model.offsets, config.seed, dense=model.needs_dense_labels)
    _agree(fabric, lambda: _begin(experiment, out))  # what a mistake in the data or in `init` leaves behind is nothing
    network, optimizer = fabric.setup(_Terms(model), build_optimizer(model, config))
    run = _Run(experiment, fabric, model, optimizer, build_average(model, config.ema))
    run.restore(out / CHECKPOINT)
    if run.step == 0:
        _weigh_classes(model, dataset.sources, config)
    model.train()

    logger = TensorBoardLogger(out, name=LOG, version="", purge_step=run.step + 1) if fabric.is_global_zero else None
    begun, saved = time.monotonic() - run.seconds, time.monotonic()
    bar = Bar(run.step, run.iterations, show=fabric.is_global_zero)
    with closing(_clips(dataset, config, run, fabric)) as clips, bar, stop_signals() as stop:
        for clip in clips:
            rate = set_rate(optimizer, run.step, config, run.iterations)
            seed_step(config.seed, run.step, fabric.global_rank)
            terms: dict[str, Tensor] = network(clip.frames, clip.labels, clip.index)
            named, stopped, seconds = _share(terms, stop, time.monotonic() - begun, fabric)
            _check_finite(named, "loss term", run.step)

            fabric.backward(torch.stack(tuple(terms.values())).sum())
            _clip_gradients(run, network)
            optimizer.step()
            optimizer.zero_grad()
            run.count(seconds)

            logged = {"loss": sum(named.values()), "lr": rate, **{f"loss/{name}": x for name, x in named.items()}}
            written = run.is_done or run.step % config.log_every == 0
            bar.advance(run.step, run.iterations, named, rate, written=written)
            if scored is not None and (run.is_done or run.step % config.eval_every == 0):
                logged["mIoU"], written = run.score(scored, out / BEST, sources[0]), True
                bar.say(f"step {run.step}/{run.iterations}  mIoU {logged['mIoU']:.4f}, best {run.best:.4f}")
            if logger and written:
                logger.log_metrics(logged, run.step)
            if logger and (run.is_done or stopped or time.monotonic() - saved >= 60 * config.checkpoint_minutes):
                logger.save()  # first, so that the log never ends before the checkpoint
                run.save(out / CHECKPOINT)
                draw(out / LOG, out / CURVES)
                saved = time.monotonic()
            if run.is_done:
                break
            if stopped:
                raise InterruptError(f"stopped at step {run.step} of {run.iterations}; --resume goes on", stopped)
    if fabric.is_global_zero:
        save_model(out / MODEL, run.kept, sources[0])
    fabric.barrier()
    return out / MODEL


class _Terms(nn.Module):
    """Takes a clip apart, since Fabric's and DDP's wrappers handle tensors, not our frozen values."""

    def __init__(self, model: VideoSegmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """frames [B, T, 3, H, W], labels [B, T, H, W], index [B, T] -> the model's loss terms."""
        terms: dict[str, Tensor] = self.model(Clip(frames, labels, index))
        return terms


# ---- before the loop ---------------------------------------------------------------------------------------------


def _launch(config: TrainConfig) -> Fabric:
    if config.precision == "16-mixed" and (config.accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("train.precision=16-mixed needs a GPU; use bf16-mixed")
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=config.precision,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        wish = f"accelerator {config.accelerator}, devices {config.devices}, strategy {config.strategy}"
        raise ConfigError(f"train: cannot run on {wish}: {' '.join(str(error).split())}") from error
    fabric.launch()
    return fabric


def _warn_of_warmup(config: TrainConfig) -> None:
    if config.time_budget is None and config.warmup >= config.iterations:
        known, steps = f"{config.warmup} of {config.iterations} steps", max(config.iterations // 10, 1)
        _LOG.warning("warm-up takes %s, so the learning rate stays low; try train.warmup=%d", known, steps)


def _agree(fabric: Fabric, check: Callable[[], str | None]) -> None:
    """Let the first process check something, and stop all with what it finds wrong."""
    problem = fabric.broadcast(check() if fabric.is_global_zero else None)
    if problem:
        raise ConfigError(problem)


def _problem(experiment: Experiment, out: Path, resume: bool) -> str | None:
    """Return what is wrong with the run folder, if anything."""
    if out.exists() and not out.is_dir():
        return f"{out} is a file; expected a folder for the run"
    if not out.is_dir() or not any(out.iterdir()):
        return f"no run in {out} to resume; leave out --resume to start one there" if resume else None
    if not resume:
        return f"run folder {out} exists; pass --resume or another --out"
    if not (out / CONFIG).is_file():
        return f"{out} is not a run folder: no {CONFIG}; pass another --out"
    return _difference(to_dict(load(out / CONFIG)), to_dict(experiment), str(out))


def _begin(experiment: Experiment, out: Path) -> str | None:
    """Make the run folder and write the config, unless they are there; returns why that is impossible."""
    if (out / CONFIG).is_file():
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f"{CONFIG}.part"
        partial.write_text(yaml.safe_dump(to_dict(experiment), sort_keys=False), encoding="utf-8")
        partial.replace(out / CONFIG)
    except OSError as error:
        return f"cannot write to {out}: {error.strerror}"
    return None


def _difference(run: Any, new: Any, where: str, key: str = "") -> str | None:
    """Return the first value in which two experiments differ, as a message; None if a run may go on."""
    if isinstance(run, dict) and isinstance(new, dict):
        for name in {**run, **new}:
            inner = f"{key}.{name}" if key else name
            free = inner in FREE or inner.split(".")[0] in ("eval", "published")
            problem = None if free else _difference(run.get(name), new.get(name), where, inner)
            if problem:
                return problem
        return None
    return None if run == new else f"{where} is a run with {key} {run}, not {new}; pass the same or another --out"


def _open(data: DataConfig) -> list[VideoSource]:
    """Open the training data, which must agree on the classes."""
    sources = [open_source(entry) for entry in data.train]
    if not sources:
        raise ConfigError("data.train is empty; expected at least one source")
    for other in sources[1:]:
        if len(other.classes) != len(sources[0].classes):
            counts = " and ".join(str(len(source.classes)) for source in (sources[0], other))
            raise ConfigError(f"the sources in data.train have {counts} classes; expected the same classes in all")
        for number, (one, another) in enumerate(zip(sources[0].classes, other.classes, strict=True)):
            if one != another:
                raise ConfigError(
                    f"class {number} is '{one}' in one source of data.train and '{another}' in another; "
                    "expected the same classes in all, in the same order"
                )
    return sources


def _build(experiment: Experiment, source: VideoSource, fabric: Fabric) -> VideoSegmenter:
    """Build the model for the classes of the training data, equal in all processes."""
    config = experiment.train
    torch.manual_seed(config.seed)
    model = models.method(experiment.method)(experiment.model, len(source.classes))
    model.classes, model.palette = source.classes, source.palette
    if config.init is not None and config.init_part == "whole":
        left = load_fitting(model, config.init)
        if left and fabric.is_global_zero:
            _LOG.warning("%s: what did not fit keeps its random start: %s", config.init, left)
    elif config.init is not None:
        load_backbone(model, config.init)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.channels_last:
        nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _weigh_classes(model: VideoSegmenter, sources: Sequence[VideoSource], config: TrainConfig) -> None:
    """Set the model's class weights as the config says."""
    if config.class_weights != "none":
        weights = median_frequency_weights(sources)
        model.class_weights.copy_(weights.sqrt() if config.class_weights == "sqrt_median" else weights)


# ---- inside the loop ---------------------------------------------------------------------------------------------


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every random generator (torch on all devices, numpy, Python) for one step of one process."""
    drawn = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    torch.manual_seed(drawn)
    np.random.seed(drawn % 2**32)
    random.seed(drawn)


def _clips(dataset: Dataset[Clip], config: TrainConfig, run: _Run, fabric: Fabric) -> Generator[Clip]:
    """Yield this process's batches of the steps to come; sample numbers are dealt to the processes in turn."""
    together = config.batch_size * fabric.world_size
    last = config.iterations * together if config.seconds is None else sys.maxsize
    numbers = () if run.is_done else range(run.step * together + fabric.global_rank, last, fabric.world_size)
    loader = DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=numbers,
        num_workers=config.workers,
        collate_fn=Clip.stack,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=_prepare_worker,
    )
    try:
        for clip in loader:
            yield clip.to(fabric.device)
        return
    except Exception as error:
        if not config.workers:
            raise
        failure = error.with_traceback(None)
    # Raised without its traceback: that would keep the loader alive, and its workers could not end. It is in the text;
    # of a DataError only the last line, the message, is for the user.
    if isinstance(failure, DataError):
        failure = DataError(str(failure).strip().splitlines()[-1].removeprefix("steadyseg.types.DataError: "))
    raise failure


def _prepare_worker(worker: int) -> None:
    """Let the training process decide when its workers end, also where a signal goes to all processes at once."""
    start_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE) and None)


def _share(terms: dict[str, Tensor], stop: Stop, seconds: float, fabric: Fabric) -> tuple[dict[str, float], int, float]:
    """Return the terms' means over all processes, the number of the signal that any got, or 0, and mean seconds."""
    numbers = torch.stack([*(term.detach().float() for term in terms.values())])  # [terms]
    message = torch.cat((numbers / fabric.world_size, numbers.new_tensor([seconds / fabric.world_size, stop.number])))
    *values, seconds, signals = fabric.all_reduce(message, reduce_op="sum").tolist()  # type: ignore[union-attr]
    return dict(zip(terms, values, strict=True)), stop.number or (int(signal.SIGTERM) if signals else 0), seconds


def _clip_gradients(run: _Run, network: nn.Module) -> None:
    """Shorten the gradient to the config's norm; one that is not finite is an error."""
    config = run.experiment.train
    if config.clip_norm is not None:
        norm = run.fabric.clip_gradients(network, run.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        assert norm is not None
        if config.precision != "16-mixed":  # whose scaler skips such a step and lowers its scale
            _check_finite({"norm": float(norm)}, "gradient", run.step)


def _check_finite(values: dict[str, float], what: str, step: int) -> None:
    bad = [f"'{name}' is {value}" for name, value in values.items() if not np.isfinite(value)]
    if bad:
        advice = "lower train.lr, set train.clip_norm, or use train.precision=32-true"
        raise SteadysegError(f"{what} {', '.join(bad)} at step {step}; {advice}")


# ---- checkpoint -------------------------------------------------------------------------------------


class _Run:
    """What a checkpoint holds, and where the run stands."""

    def __init__(
        self,
        experiment: Experiment,
        fabric: Fabric,
        model: VideoSegmenter,
        optimizer: Optimizer,
        average: AveragedModel | None,
    ) -> None:
        self.experiment, self.fabric = experiment, fabric
        self.model, self.optimizer, self.average = model, optimizer, average
        self.step, self.seconds, self.best = 0, 0.0, -1.0

    @property
    def kept(self) -> VideoSegmenter:
        """The model whose weights are scored and saved."""
        return self.model if self.average is None else cast("VideoSegmenter", self.average.module)

    @property
    def iterations(self) -> int:
        """Steps of the whole run; with a time budget an estimate, from the pace so far."""
        config = self.experiment.train
        if config.seconds is None:
            return config.iterations
        share = min(self.seconds / config.seconds, 1.0)
        return max(round(self.step / share), self.step + (share < 1)) if self.step else 1

    @property
    def is_done(self) -> bool:
        config = self.experiment.train
        return self.step >= config.iterations if config.seconds is None else self.seconds >= config.seconds

    def count(self, seconds: float) -> None:
        """Note that a step was taken, `seconds` after the start."""
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self.seconds = seconds

    def score(self, source: VideoSource, path: Path, known: VideoSource) -> float:
        """Return mIoU on `source`, of which every process takes its share; the best weights so far go to `path`."""
        training = self.kept.training
        score = evaluate(self.kept.eval(), source, [build("iou", source)], config=self.experiment.eval)["mIoU"]
        self.kept.train(training)
        if score > self.best and self.fabric.is_global_zero:
            save_model(path, self.kept, known)
        self.best = max(self.best, score)
        return score

    def save(self, path: Path) -> None:
        """Write all that resuming needs, so that `path` holds the old or the new checkpoint at any moment."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "class_weights": self.model.class_weights,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "experiment": json.dumps(to_dict(self.experiment)),
        }
        partial = path.with_name(f"{path.name}.part")
        try:
            torch.save(state, partial)
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"cannot write {path}: {' '.join(str(error).split())}; make room there") from error

    def restore(self, path: Path) -> None:
        """Load a checkpoint if there is one."""
        if not path.is_file():
            return
        state = read_pickle(path)
        try:
            self.model.load_state_dict(state["model"])
            self.model.class_weights.copy_(state["class_weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.step = int(state["step"])
            self.seconds, self.best = float(state.get("seconds", 0.0)), float(state.get("best", -1.0))
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this experiment: {' '.join(str(error).split())}") from error
