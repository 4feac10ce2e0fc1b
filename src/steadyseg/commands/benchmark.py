"""The command benchmark."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

from steadyseg import console
from steadyseg.arguments import UsageError, near
from steadyseg.commands.choices import Backend, Device, device_name, merged_options, read_size

if TYPE_CHECKING:
    from steadyseg.benchmark import Setting

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
STOPPED = "stopped before it was measured"
INTERRUPTED = 130
"""The status of a program that Ctrl-C has ended."""
Job = tuple[str, "Setting"]
"""A method and what is measured of it."""


def benchmark(
    *methods: str,
    backbone: str = "mit_b0",
    interval: int | None = None,
    options: str = "",
    size: str = "480x853",
    classes: int = 124,
    precision: str = "fp32",
    device: Device = "cpu",
    backend: str = "torch",
    streams: str = "1",
    frames: int = 200,
    warmup: int = 20,
    threads: int | None = None,
    seed: int = 0,
    against: Literal["transformers", "clip"] | None = None,
    parts: bool = False,
    memory: int | None = None,
    stages: str | None = None,
    model: str | None = None,
    method: str | None = None,
    together: int = 1,
    json: bool = False,
) -> int:
    """Measure parameters, multiply-adds, latency, throughput and memory, with random weights.

    The time of a frame runs from the uint8 frame tensor to the uint8 label map of the frame's size, in a settled
    stream. One multiply-add counts as one; hooks leaves out the matrix products inside attention. Backbones, sizes,
    precisions, backends and streams may be lists, such as mit_b0,mit_b1; every combination is measured, each in a
    process of its own.

    Args:
        methods: methods by name; if none is given, all that have the options.
        backbone: backbones by name.
        interval: frames from one key frame to the next, for methods that have key frames.
        options: other changes of the methods' options, such as "msda=off".
        size: heights x widths of a frame.
        classes: number of classes.
        precision: arithmetic of the forward pass, fp32, bf16, fp16, or int8, which openvino and onnxruntime have.
        device: where to run.
        backend: what runs the methods, but not what they are compared with: torch, cuda_graphs, compile, openvino or
            onnxruntime; the last two need steadyseg[export] and a CPU.
        streams: how many videos at a time, as one batch.
        frames: timed frames of a video.
        warmup: frames before the first timed one.
        threads: CPU threads.
        seed: of the random weights.
        against: also time, frame by frame in turn, the SegFormer of the transformers package with the same backbone, or
            the method itself with nothing remembered, which runs its whole clip for every frame.
        parts: also time copying, normalising, the backbone, the rest of the method and the labels, each by itself.
        memory: instead, run a stream of this many frames, and tell by how much memory grows after frame 100; with
            --stages, run predict on as many frames of the video.
        stages: a video; time the stages of predict on it instead, each alone and all at once.
        model: the weights for --stages, as in predict.
        method: the method for --stages, as in predict.
        together: how many measurements to prepare at once; each is timed while the others wait. The memory must
            suffice for all.
        json: print one JSON document.
    """
    from steadyseg import benchmark as bench

    given = {"stages": stages, "model": model, "method": method, "methods": methods}
    _refuse(**given, against=against, memory=memory, parts=parts, together=together)
    changes = merged_options(interval, options)
    common: dict[str, Any] = {"device": device_name(device), "frames": memory or frames, "warmup": warmup}
    common |= {"threads": threads, "seed": seed, "options": changes, "classes": classes, "parts": parts}
    if against:
        common["against"] = against
    lists: dict[str, list[Any]] = {
        "backbone": _split(backbone, "--backbone"),
        "size": [read_size(text, "--size") for text in _split(size, "--size")],
        "backend": _split(backend, "--backend", get_args(Backend)),
        "precision": _split(precision, "--precision", PRECISIONS),
        "streams": [_number(text, "--streams") for text in _split(streams, "--streams")],
    }
    settings = [bench.Setting(**common, **dict(zip(lists, values, strict=True))) for values in product(*lists.values())]
    if stages and model:
        if len(settings) > 1:
            raise UsageError("benchmark: --stages times one video in one way; give no lists")
        return _video(stages, model, method, settings[0], in_memory=bool(memory), as_json=json)
    report: dict[str, Any] = bench.machine(*settings)
    report["setting"]["together"] = together
    jobs, report["left_out"] = _jobs(methods, changes, settings, against)
    if memory:
        report["memory"] = _run(bench.memory, jobs, report, together)
        console.memory(report, as_json=json)
    else:
        found = _run(bench.measure_and_compare if against else bench.measure, jobs, report, together)
        report["results"] = [each["result"] for each in found] if against else found
        report["comparisons"] = [each["comparison"] for each in found if each["comparison"]] if against else []
        console.benchmark(report, as_json=json)
    stopped = any(entry["why"] == STOPPED for entry in report["left_out"])
    return INTERRUPTED if stopped else int(any(entry["has_ended"] for entry in report["left_out"]))


def _refuse(**given: Any) -> None:
    """Refuse options that do not go together."""
    stages, with_methods = given["stages"], given["methods"] or given["against"] or given["parts"]
    if (stages is None) != (given["model"] is None) or (stages and with_methods):
        raise UsageError("benchmark: --stages takes --model, and neither methods nor --against nor --parts")
    if given["method"] and not stages:
        raise UsageError("benchmark: --method is for --stages; name the methods without it: benchmark tfc reuse")
    if given["memory"] is not None and (given["against"] or given["parts"]):
        raise UsageError("benchmark: --memory times nothing; leave out --against and --parts")
    if given["memory"] is not None and given["memory"] <= 100:
        raise UsageError(f"benchmark: --memory is {given['memory']}; expected more than 100 frames")
    if given["together"] < 1:
        raise UsageError(f"benchmark: --together is {given['together']}; expected at least 1")
    if given["together"] > 1 and stages:
        raise UsageError("benchmark: --stages is one measurement; leave out --together")


def _split(text: str, option: str, known: tuple[str, ...] = ()) -> list[str]:
    """Read "a,b" as a list without repeats."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if not word:
            raise UsageError(f"benchmark: {option} is '{text}'; expected one or more, with commas between")
        if known and word not in known:
            raise UsageError(f"benchmark: {option} is '{word}'; expected {', '.join(known)}{near(word, known)}")
    return words


def _number(text: str, option: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"benchmark: {option} is '{text}'; expected whole numbers of at least 1")
    return int(text)


def _jobs(
    methods: tuple[str, ...], changes: dict[str, Any], settings: list[Setting], against: str | None
) -> tuple[list[Job], list[dict[str, Any]]]:
    """Return what can be measured, and what not with the reason, both found before the work.

    Raises:
        ConfigError: if a method that is named lacks an option, or nothing can be measured.
    """
    from steadyseg import benchmark as bench
    from steadyseg.config import check_options, has_options
    from steadyseg.models import names
    from steadyseg.types import ConfigError

    chosen = methods or tuple(name for name in names() if has_options(name, changes))
    for name in chosen:
        check_options(name, changes)
    jobs: list[Job] = []
    left_out: list[dict[str, Any]] = []
    first: ConfigError | None = None
    for name, setting in product(chosen, settings):
        try:
            bench.check(name, setting)
            if against == "transformers":
                bench.check_transformers(setting.backbone)
            jobs.append((name, setting))
        except ConfigError as exc:
            first = first or exc
            left_out.append(_left_out(name, setting, exc, has_ended=False))
    if first is not None and not jobs:
        raise first
    for why in dict.fromkeys(entry["why"] for entry in left_out):
        console.error(f"warning: left out: {why}")
    return jobs, left_out


def _left_out(name: str, setting: Setting, why: Exception, *, has_ended: bool) -> dict[str, Any]:
    from steadyseg import benchmark as bench

    return {**bench.about(name, setting), "why": str(why), "has_ended": has_ended}


def _run(
    function: Callable[..., dict[str, Any]], jobs: list[Job], report: dict[str, Any], together: int
) -> list[dict[str, Any]]:
    """Do the jobs, up to so many at once; one whose process ends is left out, the others go on.

    Ctrl-C leaves out what is not done yet: what was measured is not lost.

    Returns:
        The results in the order of the jobs; what is left out is added to the report.
    """
    from steadyseg import benchmark as bench

    outcomes: dict[int, dict[str, Any] | bench.EndedError] = {}
    reasons: dict[int, Exception] = {}

    def begin(number: int) -> None:
        name, setting = jobs[number]
        status.update(f"measuring {name} {setting.backbone}, {number + 1} of {len(jobs)}")

    def end(number: int, outcome: dict[str, Any] | bench.EndedError) -> None:
        outcomes[number] = outcome
        why = outcome if isinstance(outcome, bench.EndedError) else outcome.get("why")
        if why is not None:
            reasons[number] = bench.EndedError(str(why))
            console.error(f"warning: left out: {why}")

    with console.err.status("measuring") as status:
        try:
            bench.in_turns(partial(bench.apart, function), jobs, together=together, begin=begin, end=end)
        except KeyboardInterrupt:
            reasons |= {number: UsageError(STOPPED) for number in range(len(jobs)) if number not in outcomes}
    results = [outcome for _, outcome in sorted(outcomes.items()) if not isinstance(outcome, bench.EndedError)]
    report["left_out"] += [_left_out(*jobs[number], reasons[number], has_ended=True) for number in sorted(reasons)]
    if len(outcomes) < len(jobs):
        console.error(f"warning: stopped; {len(results)} of {len(jobs)} were measured")
    return results


def _video(video: str, model: str, method: str | None, setting: Setting, *, in_memory: bool, as_json: bool) -> int:
    """Measure predict on a video."""
    from steadyseg import benchmark as bench

    function = bench.memory_of_predict if in_memory else bench.stages
    with console.err.status("measuring"):
        result = bench.apart(partial(function, video=video, method=method), model, setting)
    if in_memory:
        console.memory({**bench.machine(setting), "memory": [result]}, as_json=as_json)
    else:
        console.stages({**bench.machine(setting), "result": result}, as_json=as_json)
    return 0
