"""Memory of a long stream: what it takes when it has settled, and how much more at its end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from steadyseg.benchmark.host import memory_in_use, peak_memory
from steadyseg.benchmark.setting import Setting, about, autocast, prepare, rounds
from steadyseg.benchmark.subject import attach, attach_for_video, build, follow, street
from steadyseg.engine.checkpoint import load_model
from steadyseg.types import ConfigError
from steadyseg.video import probe

SETTLED = 100
"""Frames after which memory should grow no more."""


def memory(name: str, setting: Setting) -> dict[str, Any]:
    """Stream `setting.frames` frames through a method with random weights; call it in a fresh process.

    Args:
        name: a method.
        setting: what is measured, and how.

    Returns:
        What was measured, as `about` says it, and what `_growth` says.

    Raises:
        ConfigError: if there are not more than SETTLED frames, or as in `measure`.
    """
    _check_frames(setting.frames)
    prepare(setting)
    frames = street(setting)
    run = follow(attach(build(name, setting, frames[0]), setting, frames), setting)
    record = _Record(setting)
    for images in rounds(frames, setting, setting.frames):
        run(images)
        record.add()
    return {**about(name, setting), **record.growth()}


def memory_of_predict(name: str, setting: Setting, *, video: str | Path, method: str | None = None) -> dict[str, Any]:
    """Run `predict` on up to `setting.frames` frames of a video; call it in a fresh process.

    Args:
        name: weights, as `load_model` takes them.
        setting: device, precision, backend, frames, threads and options; the rest is not read.
        video: a video, an image, a folder of images or a glob.
        method: runs weights of a SegFormer by another method.

    Returns:
        Model and video, and what `memory` says.

    Raises:
        ConfigError: if there are not more than SETTLED frames, or as in `predict`.
        DataError: if the video cannot be read.
    """
    from steadyseg.engine.predict import PredictConfig, predict  # needed by this measurement only

    _check_frames(setting.frames)
    prepare(setting)
    model = load_model(name, setting.device, method=method, options=dict(setting.options))
    info, record = probe(video), _Record(setting)
    attach_for_video(model, setting, video)
    with tempfile.TemporaryDirectory() as folder, autocast(setting):
        config = PredictConfig(max_frames=setting.frames)
        predict(model, video, out=Path(folder) / "out.mp4", config=config, on_frame=record.add)
    _check_frames(record.count, f"{info.path.name} has {record.count} frames")
    what = {"model": name, "method": method, "video": info.path.name, "size": [info.height, info.width]}
    return {**what, **record.growth()}


def _check_frames(count: int, given: str = "") -> None:
    if count <= SETTLED:
        given = given or f"--memory is {count}"
        raise ConfigError(f"{given}; memory is compared with that after frame {SETTLED}: expected more frames")


class _Record:
    """Memory while frames go by."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.count = 0
        self.settled: dict[str, Any] = {}

    def add(self) -> None:
        """Count a frame."""
        self.count += 1
        if self.count == SETTLED:
            self.settled = self.now()

    def now(self) -> dict[str, Any]:
        return {"in_use_mib": memory_in_use(self.setting), "peak_mib": peak_memory(self.setting)}

    def growth(self) -> dict[str, Any]:
        """Return "frames"; "settled" and "end", each MiB in use and at its peak so far; "growth_percent" of both."""
        end = self.now()
        return {
            "frames": self.count,
            "settled_after": SETTLED,
            "settled": self.settled,
            "end": end,
            "growth_percent": {
                kind.removesuffix("_mib"): None if end[kind] is None else 100 * (end[kind] / self.settled[kind] - 1)
                for kind in end
            },
        }
