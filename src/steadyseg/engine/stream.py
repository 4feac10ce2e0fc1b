"""Frames in, labels out: the one place that turns logits into labels, and the one object that remembers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.models.base import State, VideoSegmenter
from steadyseg.ops.upsample_argmax import upsample_argmax
from steadyseg.types import Frame, ShapeError, check_shape

CUT_THUMBNAIL = (18, 32)
"""Height and width to which frames are averaged before they are compared."""
CUT_IN_PLACE = 25.0
"""A cut changes the thumbnail's values by more than this on average, place by place (of 255)."""
CUT_IN_COLOURS = 8.0
"""A cut also changes the thumbnail's colours by more than this, wherever they are (of 255)."""


def to_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits bilinearly to the frame and take the best class of every pixel; ties go to the lowest class.

    Args:
        logits: float [B, K, h, w], K <= 256.
        size: (H, W) of the frame.

    Returns:
        uint8 [B, H, W] class index.

    Raises:
        ShapeError: if `logits` is not such a tensor, or `size` is not two positive numbers.
    """
    return upsample_argmax(logits, size)


def is_cut(before: Tensor, after: Tensor) -> bool:
    """Say whether a new scene begins between two neighbouring frames.

    Two distances must both be large. The one compares the thumbnails place by place: light that changes slowly
    keeps it small. The other compares the sorted values of each colour channel (the earth mover's distance of the
    two histograms): it does not see where things are, so it stays small when the camera moves.

    Args:
        before: float [3, h, w] thumbnail of the earlier frame, see `thumbnail`.
        after: float [3, h, w] thumbnail of the later frame.
    """
    in_place = (before - after).abs().mean()
    sorted_before, sorted_after = (x.flatten(1).sort(1).values for x in (before, after))  # [3, h * w]
    in_colours = (sorted_before - sorted_after).abs().mean()
    return bool((in_place > CUT_IN_PLACE) & (in_colours > CUT_IN_COLOURS))


def thumbnail(frame: Tensor) -> Tensor:
    """Average a frame uint8 [3, H, W] down to the size at which cuts are looked for; float32 [3, h, w], 0..255."""
    return F.adaptive_avg_pool2d(frame.float(), CUT_THUMBNAIL)


@torch.inference_mode()
def segment(
    model: VideoSegmenter, frames: Iterable[Frame], *, prepare: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Frame, Tensor]]:
    """Segment a whole video as the method's paper does, which may look at later frames, in constant memory.

    Frames wait for their labels no longer than the method looks ahead; most methods do not, and equal a `Stream`.

    Args:
        model: in evaluation mode, on any device.
        frames: the video.
        prepare: what to do with each frame, uint8 [1, 3, H, W], before the model sees it, such as a resize.

    Yields:
        Every frame, in order, and its preds uint8 [H, W], at the size of its labels or, without any, of its image.
    """
    waiting: deque[Frame] = deque()
    device = model.class_weights.device

    def feed() -> Iterator[Tensor]:
        for frame in frames:
            waiting.append(frame)
            image = frame.image[None].to(device)  # [1, 3, H, W]
            yield image if prepare is None else prepare(image)

    for logits in model.segment(feed()):
        frame = waiting.popleft()
        shown = frame.image if frame.labels is None else frame.labels
        yield frame, to_labels(logits, (shown.shape[-2], shown.shape[-1]))[0].cpu()  # [H, W]


class Stream:
    """Segment a video frame by frame: the object that remembers, around a model that does not.

    One Stream follows one video; make one for each video, or call `reset` between them. The model is put in
    evaluation mode and may be shared by several streams.

    Args:
        model: any method, on any device.
        reset_on_cut: forget the past when a new scene begins (see `is_cut`), so that nothing of the old scene
            reaches the new one.
    """

    def __init__(self, model: VideoSegmenter, *, reset_on_cut: bool = False) -> None:
        self.model = model.eval()
        self.reset_on_cut = reset_on_cut
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next frame starts a video, and may have another size."""
        self._state: State | None = None
        self._size: tuple[int, int] | None = None
        self._thumbnail: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, frame: Tensor) -> Tensor:
        """Segment the next frame of the video.

        Args:
            frame: uint8 [3, H, W] RGB, on any device; it is moved to the model's.

        Returns:
            uint8 [H, W] class index, on the frame's device.

        Raises:
            ShapeError: if `frame` is not a uint8 RGB image, or its size is not that of the frames before; the
                stream is then as it was before the call.
        """
        check_shape("frame", frame, (3, "H", "W"), torch.uint8)
        size = (frame.shape[1], frame.shape[2])
        if self._size not in (None, size):
            height, width = self._size
            raise ShapeError(
                f"frame is {size[0]}x{size[1]}, the frames before were {height}x{width}; "
                "call reset() before a video of another size, or resize the frame"
            )
        frames = frame[None].to(next(self.model.parameters()).device)  # [1, 3, H, W]
        small = thumbnail(frames[0]) if self.reset_on_cut else None
        state = self._state
        if small is not None and self._thumbnail is not None and is_cut(self._thumbnail, small):
            state = None
        logits, state = self.model.step(frames, state)  # [1, K, h, w]
        labels = to_labels(logits, size)[0].to(frame.device)  # [H, W]
        self._state, self._size, self._thumbnail = state, size, small
        return labels
