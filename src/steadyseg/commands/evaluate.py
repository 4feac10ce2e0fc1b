"""The command eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steadyseg import console
from steadyseg.arguments import UsageError
from steadyseg.commands.choices import (
    Backend,
    Device,
    Precision,
    device_name,
    load_network,
    merged_options,
    read_size,
)

if TYPE_CHECKING:
    from steadyseg.config import EvalConfig


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
    alone: bool = False,
    per_class: bool = False,
    device: Device = "auto",
    backend: Backend = "torch",
    graphs: str | None = None,
    precision: Precision = "fp32",
    json: bool = False,
) -> None:
    """Score a model on a data set.

    Args:
        model: name of shipped weights (see steadyseg list), a weights file, the folder of a run or of transformers'
            save_pretrained, or a hub id owner/name.
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
        alone: begin anew with every frame, for data whose frames are too far apart to be a video.
        per_class: also show the IoU of every class; JSON always has it.
        device: where to run.
        backend: what runs the model; cuda_graphs needs a GPU, openvino and onnxruntime a CPU and steadyseg[export].
        graphs: a folder that steadyseg export wrote for this model, which openvino or onnxruntime then run.
        precision: arithmetic of the forward pass; of exported graphs in 8-bit integers, that of the rest.
        json: print one JSON document.
    """
    from steadyseg import metrics as scoring
    from steadyseg.backends import autocast
    from steadyseg.data import open_source
    from steadyseg.engine import evaluate as engine

    if data is None and config is None:
        raise UsageError("eval: no data given; expected --data, or --config whose eval section names it")
    section = _section(config, data, {"root": root, "split": split, "only": only})
    sizes = _given({"base": read_size(base, "--base") if base else None, "resize": resize})
    section = replace(section, **sizes, alone=alone or section.alone)
    entry = section.source
    variants = scoring.MetricConfig(
        absent=absent, protocol=protocol, flow=flow, flow_root=flow_root, mode=tc_mode, occlusion=occlusion
    )
    source = open_source(entry)
    named = metrics.split(",") if metrics is not None else ()
    scorers = [scoring.build(name, source, variants) for name in named] or scoring.standard(source, variants)
    runner: dict[str, Any] = {"backend": backend, "graphs": graphs, "precision": precision}
    frames = len(section.starts) * sum(map(source.length, source.names))
    with console.progress(f"{entry.source} {entry.split}", frames) as advance, autocast(device_name(device), precision):
        for start in section.starts:
            started = merged_options(interval, options) | ({"start": start} if start else {})
            network = load_network(model, device, method=method, options=started, **runner)
            scores = engine.evaluate(network, source, scorers, config=section, on_frame=advance)
    about: dict[str, Any] = {"model": model, "method": method, "interval": interval, "options": options or None}
    about |= {"starts": section.starts, **runner, "precision": _arithmetic(graphs, precision)}
    about |= {"data": entry.source, "split": entry.split, "only": entry.only, "base": section.base}
    about |= {"resize": section.resize, "alone": section.alone}
    classes = {name: value for scorer in scorers for name, value in _each_class(scorer, source.classes).items()}
    protocols = [scorer.protocol for scorer in scorers] + ["every frame alone, nothing remembered"] * section.alone
    report = {**about, "scores": scores, "protocols": protocols, "IoU": classes}
    console.scores(report, per_class=per_class, as_json=json)


def _section(config: str | None, data: str | None, place: dict[str, str | None]) -> EvalConfig:
    """Return the eval section of a config, or the default one, with the data that is given instead."""
    from steadyseg.config import EvalConfig, load
    from steadyseg.data import SourceConfig

    section = load(config).eval if config else EvalConfig()
    entry = section.source if data is None else SourceConfig(source=data, split="val")
    return replace(section, source=replace(entry, **_given(place)))


def _arithmetic(graphs: str | None, precision: Precision) -> str:
    """Return the precision of what was run: for graphs in int8 also that of their floats, where it is not fp32."""
    from steadyseg.exported import read_about

    if graphs is None or read_about(Path(graphs)).precision == "fp32":
        return precision
    return "int8" if precision == "fp32" else f"int8 and {precision}"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _each_class(metric: object, classes: Sequence[str]) -> dict[str, float]:
    """Return the IoU of every class from a metric that has it."""
    each = metric.per_class().tolist() if hasattr(metric, "per_class") else []
    return dict(zip(classes, each, strict=False))
