"""The command benchmark."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from steadyseg import console
from steadyseg.arguments import UsageError
from steadyseg.commands.choices import Backend, Device, device_name, merged_options, read_size


def benchmark(
    *methods: str,
    backbone: str = "mit_b0",
    interval: int | None = None,
    options: str = "",
    size: str = "480x853",
    classes: int = 124,
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    device: Device = "cpu",
    backend: Backend = "torch",
    frames: int = 200,
    warmup: int = 20,
    threads: int | None = None,
    seed: int = 0,
    against: Literal["transformers", "clip"] | None = None,
    stages: str | None = None,
    model: str | None = None,
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
        precision: arithmetic of the forward pass; int8 needs backend openvino or onnxruntime.
        device: where to run.
        backend: what runs the methods, but not what they are compared with; openvino and onnxruntime need
            steadyseg[export] and a CPU.
        frames: timed frames.
        warmup: frames before the first timed one.
        threads: CPU threads.
        seed: of the random weights.
        against: also time, frame by frame in turn, the SegFormer of the transformers package with the same backbone, or
            the method itself with nothing remembered, which runs its whole clip for every frame.
        stages: a video; time the stages of predict on it instead, each alone and all at once.
        model: the weights for --stages, as in predict.
        json: print one JSON document.
    """
    from steadyseg import benchmark as bench
    from steadyseg.config import check_options, has_options, options_from_dict
    from steadyseg.models import names

    changes = merged_options(interval, options)
    if (stages is None) != (model is None) or (stages and (methods or against)):
        raise UsageError("benchmark: --stages takes --model, and neither methods nor --against")
    common: dict[str, Any] = {"precision": precision, "device": device_name(device), "frames": frames, "warmup": warmup}
    common |= {"threads": threads, "seed": seed, "options": changes, "backend": backend}
    if stages and model:
        setting = bench.Setting(**common)
        with console.err.status("measuring"):
            result = bench.apart(partial(bench.stages, video=stages), model, setting)
        console.stages({**bench.machine(setting), "result": result}, as_json=json)
        return
    chosen = methods or tuple(name for name in names() if has_options(name, changes))
    for name in chosen:  # what is wrong is found before the work
        check_options(name, changes)
        options_from_dict(name, {"backbone": backbone, **changes})
    setting = bench.Setting(
        backbone=backbone,
        size=read_size(size, "--size"),
        classes=classes,
        against=against or "transformers",
        **common,
    )
    report: dict[str, Any] = bench.machine(setting)
    with console.err.status("measuring"):
        report["results"] = [bench.apart(bench.measure, name, setting) for name in chosen]
        report["comparisons"] = [bench.apart(bench.compare, name, setting) for name in chosen if against]
    console.benchmark(report, as_json=json)
