"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from steadyseg import console
from steadyseg.commands.choices import load_network, merged_options, read_size


def export(
    model: str,
    *,
    out: str,
    method: str | None = None,
    interval: int | None = None,
    options: str = "",
    format: Literal["onnx", "openvino"] = "onnx",
    size: str = "480x853",
    video: str | None = None,
    int8: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as ONNX or OpenVINO files, one a graph, and check that they compute the same.

    Args:
        model: name of shipped weights (see steadyseg list), a weights file, the folder of a run or of transformers'
            save_pretrained, or a hub id owner/name.
        out: the folder.
        method: run the weights of a SegFormer by another method, without training: tfc, reuse, flow, or segformer.
        interval: frames from one key frame to the next, for methods that have key frames.
        options: other changes of the method's options, such as "msda=dense".
        format: of the files.
        size: height x width of a frame, or dynamic.
        video: also check on the first frames of this video.
        int8: compute in 8-bit integers, calibrated on this video, folder of images or glob, which should look like the
            videos to be segmented.
        overwrite: replace an existing folder of exported graphs.
    """
    from steadyseg import export as exporting

    wanted = None if size == "dynamic" else read_size(size, "--size")
    network = load_network(model, "cpu", method=method, options=merged_options(interval, options))
    with console.err.status("exporting"):
        report = exporting.export(
            network, Path(out), format=format, size=wanted, video=video, calibration=int8, overwrite=overwrite
        )
    for file in report.files:
        console.line(str(Path(out) / file))
    console.exported(report.batch, report.differences)
