"""Optical flow, for temporal consistency and for methods that warp: estimators by name, .flo files, and warps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.types import ConfigError, DataError, Frame, ShapeError, check_shape

NAMES = ("dis", "files", "source", "raft")
UNKNOWN = 255
"""What a warped prediction holds where the flow leaves the image or is not known."""

_TAG = 202021.25
_DIS_SIDE = 48
"""OpenCV's DIS reads outside its memory on some images with a side below 16, and keeps settings of small ones."""
_RAFT_SIDE = 128


@runtime_checkable
class FlowEstimator(Protocol):
    """Where every point of one frame went in another.

    Attributes:
        name: what a report calls it; numbers of different estimators do not compare.
    """

    name: str

    def start(self, video: str) -> None:
        """Begin a new video."""
        ...

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        """Return float32 [2, H, W]: the displacement (dx, dy) in pixels of every pixel of `first` to `second`."""
        ...


@runtime_checkable
class FlowSource(Protocol):
    """A data set that knows its own motion."""

    def flow(self, name: str, frame: int) -> Tensor:
        """Return float32 [2, H, W], the displacement (dx, dy) in pixels from `frame` to the next."""
        ...

    def visible(self, name: str, frame: int) -> Tensor:
        """Return bool [H, W], where the point seen in `frame` is seen in the next."""
        ...


def build_flow(name: str, *, root: str | Path | None = None, source: Any = None) -> FlowEstimator:
    """Build a flow estimator.

    Args:
        name: "dis", "files", "source" or "raft".
        root: for "files", and only then, the folder of the .flo files.
        source: for "source", a data set with flow(name, frame) and visible(name, frame).

    Raises:
        ConfigError: for an unknown name, one whose library, folder or source is missing, or a folder that the name
            does not read. Nothing else is taken in its place.
    """
    if root is not None and name in NAMES and name != "files":
        raise ConfigError(f"flow '{name}' reads no files; leave the folder {root} out, or choose flow 'files'")
    if name == "dis":
        return DISFlow()
    if name == "raft":
        return RAFTFlow()
    if name == "files":
        if root is None:
            raise ConfigError("flow 'files' needs the folder of the .flo files: give its root, or choose flow 'dis'")
        return FileFlow(root)
    if name == "source":
        if not isinstance(source, FlowSource):
            kind = "no source" if source is None else type(source).__name__
            raise ConfigError(f"flow 'source' needs a source that knows its flow; got {kind}: choose flow 'dis'")
        return SourceFlow(source)
    raise ConfigError(f"unknown flow '{name}'; expected one of {', '.join(NAMES)}")


def shared_flow(name: str) -> FlowEstimator:
    """Return "dis" or "raft" for use inside a model.

    It belongs to no model, so models can be copied and shared between threads: DIS holds work space, takes a moment to
    make, and is new each time; RAFT is loaded once a process.

    Raises:
        ConfigError: as `build_flow`.
    """
    return _raft() if name == "raft" else build_flow(name)


@torch.no_grad()
def displacement(name: str, frame: Tensor, key: Tensor) -> Tensor:
    """Estimate where every point of a frame was in the key frame, inside a model.

    Args:
        name: "dis" or "raft", see `shared_flow`.
        frame: uint8 [B, 3, H, W].
        key: uint8 [B, 3, H, W], the key frame of each.

    Returns:
        float32 [B, 2, H, W], displacement (dx, dy) in pixels, on the device of the frame; in full precision also
        within autocast, and without gradients.

    Raises:
        ShapeError: if the two differ in shape, or are not uint8 batches of RGB images.
        ConfigError: as `shared_flow`.
    """
    check_shape("frame", frame, ("B", 3, "H", "W"), torch.uint8)
    check_shape("key frame", key, tuple(frame.shape), torch.uint8)
    find = shared_flow(name)
    with torch.autocast(frame.device.type, enabled=False):
        flows = [find(Frame(now, 1, 0.0), Frame(before, 0, 0.0)) for now, before in zip(frame, key, strict=True)]
    return torch.stack(flows).to(frame.device)  # [B, 2, H, W]


@cache
def _raft() -> FlowEstimator:
    return build_flow("raft")


class DISFlow:
    """Dense inverse search (Kroeger et al., ECCV 2016), OpenCV's medium preset, on grey images."""

    name = "dis"

    def __init__(self) -> None:
        self._search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def start(self, video: str) -> None:
        """Begin a new video; pairs do not depend on each other."""

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        """Return float32 [2, H, W]; an image with a side below 48 pixels is grown by repeating its border."""
        height, width = first.image.shape[-2:]
        flow = np.asarray(self._search.calc(_grey(first), _grey(second), None))[:height, :width]  # [H, W, 2]
        return torch.from_numpy(np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32))  # [2, H, W]


def _grey(frame: Frame) -> np.ndarray:
    grey = cv2.cvtColor(frame.image.permute(1, 2, 0).cpu().contiguous().numpy(), cv2.COLOR_RGB2GRAY)  # [H, W]
    below, right = (max(_DIS_SIDE - side, 0) for side in grey.shape)
    return cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE)


class FileFlow:
    """Flow from files: root/<video>/<frame:6>.flo to the next frame, <frame:6>_back.flo to the previous one."""

    name = "files"

    def __init__(self, root: str | Path) -> None:
        """Name the folder.

        Raises:
            ConfigError: if it does not exist.
        """
        self._root = Path(root)
        self._video = ""
        if not self._root.is_dir():
            raise ConfigError(f"flow files: found no folder {root}; expected {root}/<video>/<frame:6>.flo")

    def start(self, video: str) -> None:
        """Begin a new video, whose files lie in the folder of its name."""
        self._video = video

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        """Return float32 [2, H, W] as the file holds it.

        Raises:
            DataError: if the file is missing, damaged, or not of the frame's size.
        """
        back = "" if second.index > first.index else "_back"
        path = self._root / self._video / f"{first.index:06d}{back}.flo"
        flow = read_flo(path)
        if flow.shape[1:] != first.image.shape[1:]:
            given, expected = ("x".join(str(side) for side in x.shape[1:]) for x in (flow, first.image))
            raise DataError(f"{path} is {given}; expected {expected}, the size of the frame")
        return flow


class SourceFlow:
    """The exact flow that a source knows, from a frame to the next."""

    name = "source"

    def __init__(self, source: FlowSource) -> None:
        self._source = source
        self._video = ""

    def start(self, video: str) -> None:
        """Begin a new video of the source."""
        self._video = video

    def __call__(self, first: Frame, second: Frame) -> Tensor:
        """Return float32 [2, H, W].

        Raises:
            DataError: if `second` is not the frame after `first`.
        """
        if second.index != first.index + 1:
            raise DataError(f"flow from frame {first.index} to {second.index}: the source knows it to the next only")
        return self._source.flow(self._video, first.index)

    def visible(self, first: Frame) -> Tensor:
        """Return bool [H, W]: what is seen in `first` and in the frame after it."""
        return self._source.visible(self._video, first.index)


class RAFTFlow:
    """RAFT (Teed and Deng, ECCV 2020) from torchvision, weights C_T_V2 (chairs, then things), 20 iterations."""

    name = "raft"

    def __init__(self) -> None:
        """Load the network; the weights are fetched once.

        Raises:
            ConfigError: if torchvision is not installed or the weights cannot be fetched.
        """
        try:
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        except ImportError:
            raise ConfigError("flow 'raft' needs torchvision: install it, or choose flow 'dis'") from None
        try:
            self._model = raft_large(weights=Raft_Large_Weights.C_T_V2, progress=False).eval()
        except OSError as error:
            raise ConfigError(f"flow 'raft': could not fetch the weights ({error}); choose flow 'dis'") from None

    def start(self, video: str) -> None:
        """Begin a new video; pairs do not depend on each other."""

    @torch.no_grad()
    def __call__(self, first: Frame, second: Frame) -> Tensor:
        """Return float32 [2, H, W], on the device of the frames; in full precision also within autocast."""
        height, width = first.image.shape[-2:]
        # RAFT takes multiples of 8, at least 128; as in the VSPW evaluation the border is repeated on both sides.
        rows, columns = (max(-(-side // 8) * 8, _RAFT_SIDE) - side for side in (height, width))
        top, left = rows // 2, columns // 2
        padding = (left, columns - left, top, rows - top)
        pair = [F.pad(f.image[None].float() / 127.5 - 1, padding, mode="replicate") for f in (first, second)]
        with torch.autocast(first.image.device.type, enabled=False):
            flow = self._model.to(first.image.device)(*pair, num_flow_updates=20)[-1][0]  # [2, H', W']
        return flow[:, top : top + height, left : left + width]


def read_flo(path: str | Path) -> Tensor:
    """Read flow: float32 tag 202021.25, int32 width and height, then height x width x (dx, dy) float32, little endian.

    Returns:
        float32 [2, H, W].

    Raises:
        DataError: naming the file that is missing or is not such a file.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the flow ({error.strerror}); expected a .flo file") from None
    tag = np.frombuffer(raw[:4], "<f4") if len(raw) >= 12 else np.zeros(1)
    if tag[0] != _TAG:
        raise DataError(f"{path} is no .flo file: it does not begin with {_TAG}")
    width, height = (int(side) for side in np.frombuffer(raw[4:12], "<i4"))
    if min(width, height) < 1 or len(raw) != 12 + 8 * width * height:
        raise DataError(f"{path} has {len(raw)} bytes; a .flo file of {height}x{width} has {12 + 8 * width * height}")
    flow = np.frombuffer(raw[12:], "<f4").reshape(height, width, 2)  # [H, W, 2]
    return torch.from_numpy(flow.transpose(2, 0, 1).astype(np.float32))  # [2, H, W]


def write_flo(path: str | Path, flow: Tensor) -> None:
    """Write flow in the layout of `read_flo`.

    Args:
        path: the file, whose folder exists.
        flow: float [2, H, W].

    Raises:
        DataError: if the file cannot be written.
    """
    height, width = flow.shape[1:]
    values = flow.permute(1, 2, 0).cpu().numpy().astype("<f4")  # [H, W, 2]
    head = np.array([_TAG], "<f4").tobytes() + np.array([width, height], "<i4").tobytes()
    try:
        Path(path).write_bytes(head + values.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot write the flow ({error.strerror})") from None


def _targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return where every pixel goes: its column and its row, float32 [H, W] each."""
    height, width = flow.shape[1:]
    columns = torch.arange(width, device=flow.device) + flow[0]  # [H, W]
    rows = torch.arange(height, device=flow.device)[:, None] + flow[1]  # [H, W]
    return columns, rows


def warp_nearest(preds: Tensor, flow: Tensor) -> Tensor:
    """Look up the nearest pixel of the next frame.

    Args:
        preds: uint8 [H, W] of the next frame.
        flow: float32 [2, H, W] displacement (dx, dy) in pixels to the next frame.

    Returns:
        uint8 [H, W]; 255 where the flow leaves the image or is not known.
    """
    if flow.shape[1:] != preds.shape:
        raise ShapeError(f"flow has shape {list(flow.shape)}; expected [2, {preds.shape[0]}, {preds.shape[1]}]")
    columns, rows = (torch.floor(x + 0.5) for x in _targets(flow))
    inside = (columns >= 0) & (columns < preds.shape[1]) & (rows >= 0) & (rows < preds.shape[0])
    columns, rows = (torch.where(inside, x, 0).long() for x in (columns, rows))
    return preds[rows, columns].masked_fill(~inside, UNKNOWN)


def consistent(forward: Tensor, backward: Tensor) -> Tensor:
    """Check flow forth and back (Sundaram et al., ECCV 2010): |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5.

    Args:
        forward: float32 [2, H, W] from the first frame to the second.
        backward: float32 [2, H, W] from the second to the first; read at the point where `forward` leads.

    Returns:
        bool [H, W]: where a point is seen in both frames.
    """
    height, width = forward.shape[1:]
    columns, rows = _targets(forward)
    grid = torch.stack((columns * 2 / max(width - 1, 1) - 1, rows * 2 / max(height - 1, 1) - 1), -1)  # [H, W, 2]
    there = F.grid_sample(backward[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    size = forward.square().sum(0) + there.square().sum(0)
    return (forward + there).square().sum(0) < 0.01 * size + 0.5


def warp_vspw(preds: Tensor, flow: Tensor) -> Tensor:
    """Return uint8 [H, W] as the VSPW script warps: a grid for corners at -1 and 1, read as if edges were there."""
    height, width = preds.shape
    columns, rows = _targets(flow)
    grid = torch.stack((2.0 * columns / max(width - 1, 1) - 1.0, 2.0 * rows / max(height - 1, 1) - 1.0), -1)
    warped = F.grid_sample(preds[None, None].float(), grid[None], mode="nearest", align_corners=False)[0, 0]
    return warped.to(torch.uint8)


def warp_etc(preds: Tensor, flow: Tensor) -> Tensor:
    """Return uint8 [H, W] as ETC's layer warps: four products rounded to float32, added in float32, then cut."""
    height, width = preds.shape
    columns, rows = _targets(flow)
    alpha, beta = ((x - x.floor()).double() for x in (columns, rows))
    left, right = (columns.floor().add(i).clamp(0, width - 1).long() for i in (0, 1))
    top, bottom = (rows.floor().add(i).clamp(0, height - 1).long() for i in (0, 1))
    values = preds.double()
    total = torch.zeros_like(flow[0])
    for row, down in ((top, 1.0 - beta), (bottom, beta)):
        for column, across in ((left, 1.0 - alpha), (right, alpha)):
            total = total + (across * down * values[row, column]).float()
    return total.to(torch.uint8)
