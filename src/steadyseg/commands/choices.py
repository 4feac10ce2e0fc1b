"""What several commands let the user choose: device, backend, weights, options and sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steadyseg.arguments import UsageError

if TYPE_CHECKING:
    from steadyseg.models.base import VideoSegmenter

DEFAULT_MODEL = "sdcpc_mit_b0_camvid"
Device = Literal["auto", "cpu", "cuda"]
Backend = Literal["torch", "cuda_graphs", "compile", "openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16"]


def device_name(name: str) -> str:
    """Turn "auto" into cuda where there is one.

    Raises:
        UsageError: for cuda where there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device is cuda; torch finds none here: take --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


def merged_options(interval: int | None, options: str) -> dict[str, Any]:
    """Return the changes of a method's options that a call asks for."""
    from steadyseg.config import parse_options

    given = parse_options(options)
    if interval is None:
        return given
    for other in ("interval", "adaptive"):
        if other in given:
            raise UsageError(f"--interval and '{other}' in --options both set the key frames: leave one out")
    return {"interval": interval, **given}


def load_network(
    model: str,
    device: str,
    *,
    method: str | None,
    options: dict[str, Any],
    backend: Backend = "torch",
    graphs: str | None = None,
    precision: Precision = "fp32",
) -> VideoSegmenter:
    """Load a model, and have it run by a backend, from a folder of exported graphs if one is given."""
    from steadyseg.backends import attach
    from steadyseg.engine.checkpoint import load_model
    from steadyseg.exported import attach_folder

    network = load_model(model, device_name(device), method=method, options=options)
    if graphs is None:
        return attach(network, backend, precision=precision)
    return attach_folder(network, Path(graphs), backend, precision=precision)


def shipped_weights(method: str | None) -> str:
    """Return the shipped weights for a method: its own, or those of a SegFormer, which some methods can run."""
    from steadyseg.engine.checkpoint import names

    if method is None:
        return DEFAULT_MODEL
    own = f"{method}_mit_b0_camvid"
    return own if own in names() else "segformer_mit_b0_camvid"


def read_size(text: str, option: str) -> tuple[int, int]:
    """Read "480x853", height x width."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UsageError(f"{option} is '{text}'; expected height x width, such as 480x853")
    return int(found[1]), int(found[2])
