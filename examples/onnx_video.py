"""Segment a video with an exported SD-CPC, by nothing but NumPy, ONNX Runtime and PyAV.

steadyseg export sdcpc_mit_b0_camvid -o exported
python examples/onnx_video.py exported my_video.mp4 overlay.mp4
"""

from __future__ import annotations

import json
import sys
from collections import deque
from pathlib import Path

import av
import numpy as np
import onnxruntime

BAND = 32
"""Rows of the label map that are computed at once, so that memory stays small."""


class Segmenter:
    """Remembers what SD-CPC reads of earlier frames; one for each video."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "steadyseg.json").read_text(encoding="utf-8"))
        if about["method"] != "sdcpc":
            raise SystemExit(f"{folder} holds the method {about['method']}; this example runs sdcpc")
        self.size: list[int] | None = about["size"]  # height and width; None for any
        self.palette = np.array(about["palette"], np.uint8)  # [K, 3]
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
            for name, graph in about["graphs"].items()
        }
        self.features: deque[np.ndarray] = deque(maxlen=7)  # of this frame and the six before it, [1, C, h, w]
        self.parts: deque[list[np.ndarray]] = deque(maxlen=7)
        self.aligned: deque[np.ndarray] = deque(maxlen=4)

    def run(self, name: str, *maps: np.ndarray) -> list[np.ndarray]:
        """Run one graph; it takes as many of the maps as it has inputs."""
        session = self.sessions[name]
        return session.run(None, dict(zip([entry.name for entry in session.get_inputs()], maps, strict=False)))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Segment the next frame: uint8 RGB [H, W, 3] -> uint8 [H, W], a class index for every pixel."""
        feature, *part = self.run("encode", np.ascontiguousarray(frame.transpose(2, 0, 1))[None])
        self.features.append(feature)
        near, far = before(self.features, 3), before(self.features, 6)
        if "align" in self.sessions:  # the progressive order: t-6 is read through t-3
            self.aligned.extend(self.run("align", feature, near, *part))
            (logits,) = self.run("decide", feature, before(self.aligned, 3), far, *part)
        else:
            self.parts.append(part)
            (logits,) = self.run("decide", feature, near, far, *before(self.parts, 3), *before(self.parts, 6))
        return to_labels(logits[0], frame.shape[:2])


def before(entries: deque, distance: int):
    """The entry so many frames before the last one, or the first frame's where the video is shorter."""
    return entries[max(len(entries) - 1 - distance, 0)]


def to_labels(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize scores [K, h, w] bilinearly, half-pixel centres, and take the best class: uint8 [H, W]."""
    top, bottom, down = neighbours(logits.shape[1], size[0])
    left, right, across = neighbours(logits.shape[2], size[1])
    wide = logits[:, :, left] * (1 - across) + logits[:, :, right] * across  # [K, h, W]
    labels = np.empty(size, np.uint8)
    for first in range(0, size[0], BAND):
        rows = slice(first, first + BAND)
        share = down[rows, None]
        labels[rows] = (wide[:, top[rows]] * (1 - share) + wide[:, bottom[rows]] * share).argmax(0)
    return labels


def neighbours(small: int, large: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every cell of a large axis the two cells of the small one around it, and the share of the second."""
    place = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, None).astype(np.float32)
    first = place.astype(int)
    return first, np.minimum(first + 1, small - 1), place - first


def main(folder: str, source: str, target: str) -> None:
    """Write the video with the colours of the classes over it; it appears whole or not at all."""
    segment = Segmenter(Path(folder))
    part = Path(target).with_name(f".part.{Path(target).name}")
    try:
        with av.open(source) as video, av.open(str(part), "w") as written:
            stream = video.streams.video[0]
            height, width = segment.size or (stream.height, stream.width)
            encoder = written.add_stream("libx264", rate=stream.average_rate)
            encoder.width, encoder.height, encoder.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
            for frame in video.decode(stream):
                image = frame.to_ndarray(format="rgb24", width=width, height=height)  # [H, W, 3]
                shown = image // 2 + segment.palette[segment(image)] // 2
                even = np.ascontiguousarray(shown[: encoder.height, : encoder.width])
                written.mux(encoder.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            written.mux(encoder.encode(None))
        part.replace(target)
        print(target)  # noqa: T201
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("expected: python examples/onnx_video.py FOLDER VIDEO OUT.mp4")
    main(*sys.argv[1:])
