"""Many videos, one batch: what a Stream does, for several videos at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from steadyseg.engine.stream import is_cut, thumbnail, to_labels
from steadyseg.models.base import State, VideoSegmenter, join_states, pick_state, state_layout
from steadyseg.types import ShapeError, check_shape

Name = Hashable
"""Of a video, chosen by the caller."""


class _Batch(NamedTuple):
    """Videos that went through the last `step` together."""

    names: tuple[Name, ...]
    state: State


class _Memory(NamedTuple):
    """What is remembered of one video."""

    batch: _Batch
    age: int
    """Frames since its start, or its last cut."""
    size: tuple[int, int]
    thumbnail: Tensor | None


class Streams:
    """Segment several videos frame by frame, those of one size as a batch; each as a `Stream` would, up to rounding.

    Only videos at the same point of their schedule share a call of `step`: those whose states differ in nothing but
    the values in their tensors. So that they meet, a video that begins waits until one of its size has a key frame. A
    method whose key frames the video decides takes one video a call. The model is put in evaluation mode.

    Args:
        model: any method, on any device.
        reset_on_cut: as in `Stream`.
    """

    def __init__(self, model: VideoSegmenter, *, reset_on_cut: bool = False) -> None:
        self.model = model.eval()
        self.reset_on_cut = reset_on_cut
        self._videos: dict[Name, _Memory] = {}

    def forget(self, name: Name) -> None:
        """Forget a video, which has ended; a frame of this name then starts a video."""
        self._videos.pop(name, None)

    @torch.inference_mode()
    def __call__(self, frames: Mapping[Name, Tensor]) -> dict[Name, Tensor]:
        """Segment the next frame of every video that need not wait; at least one is segmented.

        Args:
            frames: the next frame of each video, uint8 [3, H, W] RGB, all on one device.

        Returns:
            uint8 [H, W] class index, on the frames' device. A video that must wait is missing: give the same frame
            again in the next call.

        Raises:
            ShapeError: if a frame is not a uint8 RGB image, or its size is not that of the video's frames before.
        """
        small = {name: self._admit(name, frame) for name, frame in frames.items()}
        running = {name for name in frames if self._continues(name, small[name])}
        groups: dict[Hashable, list[Name]] = {}
        for name, frame in frames.items():
            others = [other for other in running if frames[other].shape == frame.shape]
            if name in running:
                layout = state_layout(self._videos[name].batch.state)
            elif self.model.is_periodic and others and not any(self._has_key(other) for other in others):
                continue
            else:
                layout = None
            alone = None if self.model.is_periodic else name
            groups.setdefault((frame.shape, name in running, layout, alone), []).append(name)
        labels: dict[Name, Tensor] = {}
        for names in groups.values():
            labels |= self._step(tuple(names), frames, small, begins=names[0] not in running)
        return labels

    def _admit(self, name: Name, frame: Tensor) -> Tensor | None:
        """Check a frame, and return its thumbnail where cuts are looked for."""
        check_shape("frame", frame, (3, "H", "W"), torch.uint8)
        size = (frame.shape[1], frame.shape[2])
        if name in self._videos and self._videos[name].size != size:
            height, width = self._videos[name].size
            raise ShapeError(
                f"frame of video {name} is {size[0]}x{size[1]}, the frames before were {height}x{width}; "
                "call forget() before a video of another size, or resize the frame"
            )
        return thumbnail(frame) if self.reset_on_cut else None

    def _continues(self, name: Name, small: Tensor | None) -> bool:
        """Say whether a video's past counts for its next frame."""
        if name not in self._videos:
            return False
        before = self._videos[name].thumbnail
        return small is None or before is None or not is_cut(before, small)

    def _has_key(self, name: Name) -> bool:
        """Say whether the next frame of a video is a key frame; always where the method has none."""
        return self._videos[name].age % self.model.period == 0

    def _step(
        self,
        names: tuple[Name, ...],
        frames: Mapping[Name, Tensor],
        small: Mapping[Name, Tensor | None],
        *,
        begins: bool,
    ) -> dict[Name, Tensor]:
        """Segment one frame of each of these videos, in one batch."""
        first = frames[names[0]]
        size = (first.shape[1], first.shape[2])
        images = torch.stack([frames[name] for name in names]).to(self.model.class_weights.device)  # [B, 3, H, W]
        logits, state = self.model.step(images, None if begins else self._joined(names))
        labels = to_labels(logits, size).to(first.device)  # [B, H, W]
        batch = _Batch(names, state)
        for name in names:
            age = 1 if begins else self._videos[name].age + 1
            self._videos[name] = _Memory(batch, age, size, small[name])
        return dict(zip(names, labels, strict=True))

    def _joined(self, names: tuple[Name, ...]) -> State:
        """Return the state of these videos as one batch; as it is where they were one before."""
        batches = [self._videos[name].batch for name in names]
        if names == batches[0].names and all(batch is batches[0] for batch in batches):
            return batches[0].state
        return join_states(
            [pick_state(batch.state, batch.names.index(name)) for name, batch in zip(names, batches, strict=True)]
        )
