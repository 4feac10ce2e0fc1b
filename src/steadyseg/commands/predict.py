"""The command predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steadyseg import console
from steadyseg.arguments import UsageError
from steadyseg.commands.choices import (
    Backend,
    Device,
    Precision,
    load_network,
    merged_options,
    shipped_weights,
)

if TYPE_CHECKING:
    from steadyseg.engine.predict import PredictConfig
    from steadyseg.models.base import VideoSegmenter

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Endings that only a video has."""


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
    streams: int = 1,
    overwrite: bool = False,
    device: Device = "auto",
    backend: Backend = "torch",
    graphs: str | None = None,
    precision: Precision = "fp32",
) -> None:
    """Segment videos.

    Args:
        videos: videos, folders of images, or globs in quotes such as "frames/*.jpg".
        out: the output, a video file, or a folder for labels; for several videos a folder of such.
        model: name of shipped weights (see steadyseg list), a weights file, the folder of a run or of transformers'
            save_pretrained, or a hub id owner/name; sdcpc_mit_b0_camvid if neither this nor a method is given.
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
        streams: how many videos run at a time; those of one size go through the model as one batch.
        overwrite: replace an existing output.
        device: where to run.
        backend: what runs the model; cuda_graphs needs a GPU, openvino and onnxruntime a CPU and steadyseg[export].
        graphs: a folder that steadyseg export wrote for this model, which openvino or onnxruntime then run.
        precision: arithmetic of the model; of exported graphs in 8-bit integers, that of the rest.
    """
    if not videos:
        raise UsageError("predict: no video given; expected steadyseg predict VIDEO -o OUT")
    if sheet and len(videos) > 1:
        raise UsageError("predict: --sheet shows one video; give one video, or leave it out")
    if streams < 1:
        raise UsageError(f"predict: --streams is {streams}; expected at least 1")
    from steadyseg.engine.predict import PredictConfig, looks_ahead
    from steadyseg.video.output import Output

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
    changes = merged_options(interval, options)
    counts = [_count(video, max_frames) for video in videos]
    targets = _targets(videos, Path(out), "" if format == "labels" else ".mp4")
    for target, video in zip(targets, videos, strict=True):
        Output(target, source=Path(video), overwrite=overwrite)  # a name that cannot be is found before the work
    chosen = model or shipped_weights(method)
    network = load_network(
        chosen, device, method=method, options=changes, backend=backend, graphs=graphs, precision=precision
    )
    if method and not model:
        console.error(f"--method {method} runs the weights {chosen}")
    if look_ahead and not looks_ahead(network):
        console.error("warning: --look-ahead changes nothing: this method never reads later frames")
    pairs = dict(zip(targets, videos, strict=True))
    _run(network, pairs, counts, streams=streams, config=config, precision=precision)
    for written in (*targets, *([sheet] if sheet else [])):
        console.line(written)


def _run(
    network: VideoSegmenter,
    pairs: dict[Path, str],
    counts: Sequence[int | None],
    *,
    streams: int,
    config: PredictConfig,
    precision: Precision,
) -> None:
    """Segment all videos."""
    from steadyseg.backends import autocast

    with autocast(network.class_weights.device.type, precision):
        if streams > 1 and len(pairs) > 1:
            _together(network, pairs, counts, streams, config)
        else:
            _in_turn(network, pairs, counts, config)


def _in_turn(
    network: VideoSegmenter, pairs: dict[Path, str], counts: Sequence[int | None], config: PredictConfig
) -> None:
    """Segment videos one after the other."""
    from steadyseg.engine.predict import predict as segment

    for (target, video), count in zip(pairs.items(), counts, strict=True):
        with console.progress(Path(video).name, count) as advance:
            segment(network, video, out=target, config=config, on_frame=advance)


def _together(
    network: VideoSegmenter, pairs: dict[Path, str], counts: Sequence[int | None], streams: int, config: PredictConfig
) -> None:
    """Segment several videos at a time."""
    from steadyseg.engine.predict import predict_together, takes_turns

    if takes_turns(network, config):
        console.error("warning: --streams: this method takes one video a call, so the videos take turns")
    with console.progress(f"{len(pairs)} videos", sum(filter(None, counts)) if all(counts) else None) as advance:
        predict_together(network, pairs, streams=streams, config=config, on_frame=advance)


def _count(video: str, most: int | None) -> int | None:
    """Return how many frames of a video will be segmented, None if that is not known before."""
    from steadyseg.video import probe

    known = probe(video).frames
    return min(known or most, most) if most else known


def _targets(videos: Sequence[str], out: Path, suffix: str) -> list[Path]:
    """Return the output of each video; several videos, or an existing folder of videos, give files named alike."""
    if not suffix and out.suffix in VIDEOS:
        raise UsageError(f"predict: --format labels writes a folder of PNG images; {out} is the name of a video")
    if len(videos) == 1 and not (suffix and out.is_dir()):
        return [out]
    if out.suffix and not out.is_dir():
        raise UsageError(f"predict: {len(videos)} videos do not go into one file {out}; give a folder")
    targets = [out / f"{Path(video).stem}{suffix}" for video in videos]
    if len(set(targets)) < len(targets):
        raise UsageError("predict: two of the videos have the same name; give them one by one")
    out.mkdir(parents=True, exist_ok=True)
    return targets
