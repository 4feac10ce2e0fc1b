"""The command line: one function a command; its parameters are the options, its docstring is the help.

Heavy modules are imported inside the command that needs them, so that help is instant.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

import steadyseg
from steadyseg import console
from steadyseg.allocator import keep_freed_memory
from steadyseg.arguments import UsageError, build_parser, parse, select, usage

if TYPE_CHECKING:
    from steadyseg.models.base import VideoSegmenter

_WARNINGS = console.Warnings(logging.WARNING)
DEFAULT_MODEL = "sdcpc_mit_b0_camvid"
Device = Literal["auto", "cpu", "cuda"]


# ---- predict -----------------------------------------------------------------------------------------------------


def predict(
    *videos: str,
    out: str,
    model: str | None = None,
    method: str | None = None,
    interval: int | None = None,
    options: str = "",
    look_ahead: bool = False,
    format: Literal["overlay", "side", "labels"] = "overlay",
    sheet: str | None = None,
    opacity: float = 0.5,
    legend: bool = True,
    reset_on_cut: bool = False,
    max_frames: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    device: Device = "auto",
) -> None:
    """Segment videos.

    Args:
        videos: videos, folders of images, or globs in quotes such as "frames/*.jpg".
        out: the output, a video file, or a folder for labels; for several videos a folder of such.
        model: name of shipped weights (see steadyseg list), a weights file, a run's folder, or a hub id owner/name;
            sdcpc_mit_b0_camvid if neither this nor a method is given.
        method: run the weights of a SegFormer by another method, without training: tfc, reuse, flow, or segformer.
        interval: frames from one key frame to the next, for methods that have key frames.
        options: other changes of the method's options, such as "theta=0.7 corr_level=1".
        look_ahead: let a method that can read later frames do so.
        format: colours over the frames, both side by side, or labels as indexed PNG images.
        sheet: also write a picture of some frames, their labels, and where labels flickered.
        opacity: of the colours, 0 to 1.
        legend: whether to draw the legend.
        reset_on_cut: forget the past where the scene changes.
        max_frames: stop after this many frames of a video.
        on_error: what to do at a broken frame, which is named in both cases.
        overwrite: replace an existing output.
        device: where to run.
    """
    if not videos:
        raise UsageError("predict: no video given; expected steadyseg predict VIDEO -o OUT")
    if sheet and len(videos) > 1:
        raise UsageError("predict: --sheet shows one video; give one video, or leave it out")
    from steadyseg.engine.predict import PredictConfig, looks_ahead
    from steadyseg.engine.predict import predict as segment
    from steadyseg.video import probe

    config = PredictConfig(
        format=format,
        sheet=Path(sheet) if sheet else None,
        opacity=opacity,
        legend=legend,
        reset_on_cut=reset_on_cut,
        look_ahead=look_ahead,
        max_frames=max_frames,
        on_error=on_error,
        overwrite=overwrite,
    )
    changes = _options(interval, options)
    counts = [probe(video).frames for video in videos]
    targets = _targets(videos, Path(out), "" if format == "labels" else ".mp4")
    network = _load(model or _weights(method), device, method, changes)
    if look_ahead and not looks_ahead(network):
        console.error("warning: --look-ahead changes nothing: this method never reads later frames")
    for video, count, target in zip(videos, counts, targets, strict=True):
        known = [number for number in (count, max_frames) if number is not None]
        with console.progress(Path(video).name, min(known, default=None)) as advance:
            segment(network, video, out=target, config=config, on_frame=advance)
        for written in (target, *([sheet] if sheet else [])):
            console.line(str(written))


def _targets(videos: Sequence[str], out: Path, suffix: str) -> list[Path]:
    """Return the output of each video; several videos, or an existing folder of videos, give files named alike."""
    if len(videos) == 1 and not (suffix and out.is_dir()):
        return [out]
    if out.suffix and not out.is_dir():
        raise UsageError(f"predict: {len(videos)} videos do not go into one file {out}; give a folder")
    targets = [out / f"{Path(video).stem}{suffix}" for video in videos]
    if len(set(targets)) < len(targets):
        raise UsageError("predict: two of the videos have the same name; give them one by one")
    out.mkdir(parents=True, exist_ok=True)
    return targets


# ---- train, eval, data -------------------------------------------------------------------------------------------


def train(
    config: str, *overrides: str, out: str | None = None, resume: bool = False, time_budget: str | None = None
) -> None:
    """Train a method as a config says.

    Args:
        config: a YAML file, or the name of a shipped config (see steadyseg list).
        overrides: values that win over the config, such as train.lr=6e-5.
        out: folder of the run; runs/ and the config's name if not given.
        resume: go on with the run in that folder.
        time_budget: how long to train, such as 2h, 1h30m or 45s, instead of the config's number of steps; the learning
            rate follows the clock.
    """
    from steadyseg.config import load
    from steadyseg.engine.train import train as run_training

    budget = [f"train.time_budget={time_budget}"] if time_budget else []
    experiment = load(config, (*overrides, *budget))
    parts = [f"{entry.source} {entry.split}{' (stills)' if entry.still else ''}" for entry in experiment.data.train]
    length = experiment.train.time_budget or f"{experiment.train.iterations} steps"
    console.line(f"training {experiment.method} on {', '.join(parts)} for {length}")
    weights = run_training(experiment, Path(out or f"runs/{Path(config).stem}"), resume=resume)
    console.line(f"weights: {weights}")


def evaluate(
    *,
    model: str,
    method: str | None = None,
    interval: int | None = None,
    options: str = "",
    data: str | None = None,
    config: str | None = None,
    root: str | None = None,
    split: str | None = None,
    only: str | None = None,
    metrics: str | None = None,
    absent: Literal["skip", "zero", "mpvss"] = "skip",
    protocol: Literal["auto", "vspw", "cffm_skip16", "full", "strict", "mixed"] = "auto",
    flow: Literal["dis", "files", "source", "raft"] = "dis",
    flow_root: str | None = None,
    tc_mode: Literal["ours", "etc_exact", "vspw_exact"] = "ours",
    occlusion: bool = False,
    base: str | None = None,
    resize: Literal["exact", "align32"] | None = None,
    per_class: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> None:
    """Score a model on a data set.

    Args:
        model: name of shipped weights (see steadyseg list), a weights file, a run's folder, or a hub id owner/name.
        method: run the weights of a SegFormer by another method, without training: tfc, reuse, flow, or segformer.
        interval: frames from one key frame to the next, for methods that have key frames.
        options: other changes of the method's options, such as "neighbours=1".
        data: data set by name.
        config: a config, by file or name, whose eval section gives what --data, --split, --base and --resize do not.
        root: folder of the data; $STEADYSEG_DATA and its name if not given.
        split: which part of it; val if neither this nor a config says.
        only: only the videos whose names match this pattern, such as "Seq05VD*".
        metrics: any of iou (mIoU, wIoU), vc (mVC8, mVC16) and tc (TC), with commas; what suits the data if not given.
        absent: what mIoU does with classes that have no ground truth.
        protocol: of mVC; auto is vspw for VSPW, else full.
        flow: optical flow of TC.
        flow_root: folder of the .flo files, for flow files.
        tc_mode: TC as defined here, or as two published scripts count it.
        occlusion: leave pixels that are hidden in the next frame out of TC.
        base: scale frames to fit these sides, such as 512x1024, before the model; labels keep their size.
        resize: then keep the size (exact, if nothing else is said), or stretch it to multiples of 32 (align32).
        per_class: also show the IoU of every class; JSON always has it.
        device: where to run.
        json: print one JSON document.
    """
    from steadyseg import metrics as scoring
    from steadyseg.config import EvalConfig, load
    from steadyseg.data import SourceConfig, open_source
    from steadyseg.engine import evaluate as engine

    if data is None and config is None:
        raise UsageError("eval: no data given; expected --data, or --config whose eval section names it")
    section = load(config).eval if config else EvalConfig()
    sizes: dict[str, Any] = {"base": _size(base, "--base") if base else None, "resize": resize}
    section = replace(section, **{name: value for name, value in sizes.items() if value is not None})
    entry = section.source if data is None else SourceConfig(source=data, split="val")
    place: dict[str, Any] = {"root": root, "split": split, "only": only}
    entry = replace(entry, **{name: value for name, value in place.items() if value is not None})
    variants = scoring.MetricConfig(
        absent=absent, protocol=protocol, flow=flow, flow_root=flow_root, mode=tc_mode, occlusion=occlusion
    )
    source = open_source(entry)
    named = metrics.split(",") if metrics is not None else ()
    scorers = [scoring.build(name, source, variants) for name in named] or scoring.standard(source, variants)
    changes = _options(interval, options)
    frames = len(section.starts) * sum(map(source.length, source.names))
    with console.progress(f"{entry.source} {entry.split}", frames) as advance:
        for start in section.starts:
            network = _load(model, device, method, {**changes, "start": start} if start else changes)
            scores = engine.evaluate(network, source, scorers, config=section, on_frame=advance)
    about: dict[str, Any] = {"model": model, "method": method, "interval": interval, "options": options or None}
    about |= {"starts": section.starts, "data": entry.source, "split": entry.split, "only": entry.only}
    about |= {"base": section.base, "resize": section.resize, "scores": scores}
    classes = {name: value for scorer in scorers for name, value in _each_class(scorer, source.classes).items()}
    report = {**about, "protocols": [scorer.protocol for scorer in scorers], "IoU": classes}
    console.scores(report, per_class=per_class, as_json=json)


def _each_class(metric: object, classes: Sequence[str]) -> dict[str, float]:
    """Return the IoU of every class from a metric that has it."""
    each = metric.per_class().tolist() if hasattr(metric, "per_class") else []
    return dict(zip(classes, each, strict=False))


def data_check(source: str, *, root: str | None = None, split: str = "train") -> int:
    """Audit a data set; the exit status is 1 when something is wrong.

    Args:
        source: data set by name.
        root: its folder; $STEADYSEG_DATA and its name if not given.
        split: which part of it.
    """
    from steadyseg.data import SourceConfig, open_source
    from steadyseg.data.check import check

    found = open_source(SourceConfig(source=source, root=root, split=split))
    stored = sum(found.length(name) if found.files(name) else 3 for name in found.names)
    with console.progress(f"{source} {split}", stored) as advance:
        findings = check(found, on_frame=advance)
    if findings:
        rows = console.table("kind", "file", "what")
        for finding in findings:
            rows.add_row(finding.kind, escape(finding.file), escape(finding.text))
        console.out.print(rows)
    console.line(f"{source} {split}: {len(found.names)} videos, {stored} frames looked at, {len(findings)} findings")
    return 1 if findings else 0


def data_render(
    out: str, *, size: str = "360x480", length: int = 75, video: int = 0, split: str = "val", overwrite: bool = False
) -> None:
    """Render a made-up street scene as a video.

    Args:
        out: the video file.
        size: height x width of a frame.
        length: number of frames.
        video: which scene of the split, from 0.
        split: train, val or test.
        overwrite: replace an existing output.
    """
    from steadyseg.data.streets import StreetsSource
    from steadyseg.engine.predict import render

    if length < 1 or video < 0:
        raise UsageError("data render: expected --length of at least 1 and --video of at least 0")
    source = StreetsSource(split=split, size=_size(size, "--size"), length=length, videos=video + 1)
    with console.progress(Path(out).name, length) as advance:
        render(source, source.names[video], out=Path(out), overwrite=overwrite, on_frame=advance)
    console.line(out)


def benchmark(
    *methods: str,
    backbone: str = "mit_b0",
    interval: int | None = None,
    options: str = "",
    size: str = "480x853",
    classes: int = 124,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: Device = "cpu",
    frames: int = 200,
    warmup: int = 20,
    threads: int | None = None,
    seed: int = 0,
    against: Literal["transformers", "clip"] | None = None,
    json: bool = False,
) -> None:
    """Measure parameters, multiply-adds, latency, throughput and memory, with random weights.

    The time of a frame runs from the uint8 frame tensor to the uint8 label map of the frame's size, in a settled
    stream of one video. One multiply-add counts as one; hooks leaves out the matrix products inside attention.

    Args:
        methods: methods by name; if none is given, all that have the options.
        backbone: backbone by name.
        interval: frames from one key frame to the next, for methods that have key frames.
        options: other changes of the methods' options, such as "msda=off".
        size: height x width of a frame.
        classes: number of classes.
        precision: arithmetic of the forward pass.
        device: where to run.
        frames: timed frames.
        warmup: frames before the first timed one.
        threads: CPU threads.
        seed: of the random weights.
        against: also time, frame by frame in turn, the SegFormer of the transformers package with the same backbone, or
            the method itself with nothing remembered, which runs its whole clip for every frame.
        json: print one JSON document.
    """
    from steadyseg import benchmark as bench
    from steadyseg.config import check_options, has_options, options_from_dict
    from steadyseg.models import names

    changes = _options(interval, options)
    chosen = methods or tuple(name for name in names() if has_options(name, changes))
    for name in chosen:  # what is wrong is found before the work
        check_options(name, changes)
        options_from_dict(name, {"backbone": backbone, **changes})
    setting = bench.Setting(
        backbone=backbone,
        size=_size(size, "--size"),
        classes=classes,
        precision=precision,
        device=_device(device),
        frames=frames,
        warmup=warmup,
        threads=threads,
        seed=seed,
        against=against or "transformers",
        options=changes,
    )
    report: dict[str, Any] = bench.machine(setting)
    with console.err.status("measuring"):
        report["results"] = [bench.apart(bench.measure, name, setting) for name in chosen]
        report["comparisons"] = [bench.apart(bench.compare, name, setting) for name in chosen if against]
    console.benchmark(report, as_json=json)


def list_names() -> None:
    """List methods, backbones, weights, and configs: what was published, and what we count for the same row."""
    from steadyseg import backbones, config, data, models
    from steadyseg.engine import checkpoint

    shipped = []
    for name in checkpoint.names():
        model = checkpoint.load_model(name)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        shipped.append(f"{name} ({millions:.2f} M parameters, {model.num_classes} classes)")
    table = console.table("kind", "names")
    for kind, names in {
        "methods": models.names(),
        "backbones": backbones.names(),
        "data": data.names(),
        "weights": shipped,
    }.items():
        table.add_row(kind, ", ".join(names))
    console.out.print(table)
    console.line("")
    console.configs([(name, config.load(name)) for name in config.names()], config.costs())


# ---- what several commands need ----------------------------------------------------------------------------------


def _device(name: str) -> str:
    """Turn "auto" into cuda where there is one.

    Raises:
        UsageError: for cuda where there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device is cuda; torch finds none here: take --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


def _options(interval: int | None, options: str) -> dict[str, Any]:
    """Return the changes of a method's options that a call asks for."""
    from steadyseg.config import parse_options

    given = parse_options(options)
    if interval is None:
        return given
    for other in ("interval", "adaptive"):
        if other in given:
            raise UsageError(f"--interval and '{other}' in --options both set the key frames: leave one out")
    return {"interval": interval, **given}


def _load(model: str, device: str, method: str | None, options: dict[str, Any]) -> VideoSegmenter:
    from steadyseg.engine.checkpoint import load_model

    return load_model(model, _device(device), method=method, options=options)


def _weights(method: str | None) -> str:
    """Return the shipped weights for a method: its own, or those of a SegFormer, which some methods can run."""
    from steadyseg.engine.checkpoint import names

    if method is None:
        return DEFAULT_MODEL
    own = f"{method}_mit_b0_camvid"
    return own if own in names() else "segformer_mit_b0_camvid"


def _size(text: str, option: str) -> tuple[int, int]:
    """Read "480x853", height x width."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UsageError(f"{option} is '{text}'; expected height x width, such as 480x853")
    return int(found[1]), int(found[2])


COMMANDS: dict[str, Callable[..., int | None]] = {
    "predict": predict,
    "train": train,
    "eval": evaluate,
    "data check": data_check,
    "data render": data_render,
    "list": list_names,
    "benchmark": benchmark,
}


# ---- the call ----------------------------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> int:
    """Run one call and return its exit status; errors are raised."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.line(usage((steadyseg.__doc__ or "").splitlines()[0], COMMANDS))
        return 0 if argv else 2
    if argv[0] == "--version":
        console.line(f"steadyseg {steadyseg.__version__}")
        return 0
    name, rest = select(COMMANDS, argv)
    if "-h" in rest or "--help" in rest:
        console.line(build_parser(name, COMMANDS[name]).format_help())
        return 0
    positional, options = parse(name, COMMANDS[name], rest)
    logging.getLogger("steadyseg").addHandler(_WARNINGS)
    return COMMANDS[name](*positional, **options) or 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; None takes them from the process.

    Returns:
        The exit status: 0 when all went well, 1 for wrong data, 2 for a wrong call, 130 when interrupted, 143 when
        told to end.
    """
    if argv is None:  # as a program: SIGTERM unwinds like Ctrl-C, so that nothing half-written stays
        signal.signal(signal.SIGTERM, _end)
        keep_freed_memory()
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except SystemExit as exc:  # rich's way to end when the reader of stdout has gone
        return exc.code if isinstance(exc.code, int) else 1
    except OSError as exc:
        console.error(f"error: {': '.join(str(part) for part in (exc.filename, exc.strerror) if part) or exc}")
        return 1
    except Exception as exc:
        status = getattr(exc, "exit_status", None)  # steadyseg's own errors; naming their class would load torch here
        if status is None:
            raise
        console.error(f"error: {exc}")
        return status
