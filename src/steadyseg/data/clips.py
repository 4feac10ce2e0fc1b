"""Training clips: an endless stream in which everything follows from a seed and the number of the clip."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from steadyseg.data import SourceConfig, open_source
from steadyseg.data.augment import Augment, AugmentConfig, build_augment
from steadyseg.data.kept import KeptFrames
from steadyseg.data.sampling import Sampler, at_offsets, still
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, Clip, ConfigError, DataError

SLOWEST = 10.0
"""Frames per second below which neighbours differ by more than motion."""
BLOCK = 1000
"""Clips in which the shares of several sources are kept exactly, to a thousandth."""
_LOG = logging.getLogger(__name__)
_ORDER, _ITEM, _MIX, _PART = range(4)
"""What a draw is for; keeps the dice of one seed apart."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on."""

    train: tuple[SourceConfig, ...] = (SourceConfig(),)
    """One or more sources of clips, mixed by their weights."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the clips."""
    reverse: float = 0.5
    """Probability that a clip of several frames plays backwards."""
    cache_mb: int = 1024
    """Decoded frames that each process (each worker) keeps in memory, in MiB; 0 for none. Those read for class weights
    are in memory once for all workers where these are forked; elsewhere the training process keeps them for itself."""

    def __post_init__(self) -> None:
        if not 0 <= self.reverse <= 1:
            raise ConfigError(f"data.reverse is {self.reverse}; expected a probability in [0, 1]")
        if self.cache_mb < 0:
            raise ConfigError(f"data.cache_mb is {self.cache_mb}; expected at least 0")


def training_clips(config: DataConfig, offsets: Sequence[int], seed: int, *, dense: bool = False) -> MixedClips:
    """Open the sources of an experiment as one stream of clips of equal shape [T, 3, crop height, crop width].

    Args:
        config: sources and their changes.
        offsets: the T frames of a clip relative to its target, target (0) last.
        seed: decides the order and all draws.
        dense: whether every frame of a clip needs labels; videos with unlabelled frames then only give `still` clips.

    Raises:
        ConfigError: if there is no source, a weight is not positive, or a source's folder is missing.
        DataError: if a source has no labelled frame, or too few of them where `dense`.
    """
    parts = []
    for number, entry in enumerate(config.train):
        if len(offsets) > 1 and not entry.still:
            _check_motion(open_source(entry), entry.source, dense=dense)
        sample = still(len(offsets)) if entry.still else at_offsets(offsets, reverse=config.reverse)
        augment = build_augment(config.augment, still=entry.still, offsets=offsets)
        part = ClipDataset(
            open_source(entry),
            sample,
            augment,
            seed=_seed(seed, _PART, number),
            cache_mb=config.cache_mb // len(config.train),
        )
        parts.append(part)
    return MixedClips(parts, [entry.weight for entry in config.train], seed=seed)


class ClipDataset(Dataset[Clip]):
    """Clips of one source; item i >= 0 of an endless stream, the same for any number of workers.

    Each epoch of ``len`` items takes every labelled frame as the target once, in an order of its own. Frames without
    ground truth have labels IGNORE. `source` keeps frames in memory, see `KeptFrames`.
    """

    def __init__(
        self, source: VideoSource, sample: Sampler, augment: Augment, *, seed: int = 0, cache_mb: int = 0
    ) -> None:
        """Prepare the stream.

        Args:
            source: where the frames come from.
            sample: which frames form a clip.
            augment: changes a clip.
            seed: decides the order and all draws.
            cache_mb: decoded frames to keep in memory, in MiB.

        Raises:
            DataError: if the source has no labelled frame.
        """
        self.source = KeptFrames(source, cache_mb)
        self.sample, self.augment, self.seed = sample, augment, seed
        self._labelled = [source.labelled(name) for name in source.names]
        self._ends = np.cumsum([len(frames) for frames in self._labelled])  # [videos]
        if not len(self):
            raise DataError(f"{type(source).__name__} has no labelled frame to train on; expected at least one")
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        """Return the number of clips of an epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> Clip:
        """Return clip `i` of the endless stream, unbatched."""
        name, target = self.target(i)
        dice = torch.Generator().manual_seed(_seed(self.seed, _ITEM, i))
        numbers = self.sample(target, self.source.length(name), dice)
        return self.augment(self._read(name, numbers), dice)

    def target(self, i: int) -> tuple[str, int]:
        """Return video and number of the target frame of clip `i`."""
        epoch, place = divmod(i, len(self))
        if self._order[0] != epoch:
            dice = torch.Generator().manual_seed(_seed(self.seed, _ORDER, epoch))
            self._order = (epoch, torch.randperm(len(self), generator=dice))
        chosen = int(self._order[1][place])
        video = int(np.searchsorted(self._ends, chosen, side="right"))
        return self.source.names[video], self._labelled[video][chosen - int(self._ends[video])]

    def _read(self, name: str, numbers: Sequence[int]) -> Clip:
        """Read each of the frames once, in rising order, and arrange them."""
        wanted = sorted(set(numbers))
        frames = dict(zip(wanted, self.source.read(name, wanted), strict=True))
        clip = [frames[number] for number in numbers]
        sizes = {tuple(x.shape[-2:]) for frame in clip for x in (frame.image, frame.labels) if x is not None}
        if len(sizes) > 1:
            found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise DataError(f"video {name}: frames and labels {sorted(set(numbers))} are {found}; expected one size")
        unknown = torch.full(sizes.pop(), IGNORE, dtype=torch.uint8)  # [H, W]
        labels = [unknown if frame.labels is None else frame.labels for frame in clip]
        return Clip(torch.stack([frame.image for frame in clip]), torch.stack(labels), torch.tensor(numbers))


class MixedClips(Dataset[Clip]):
    """Several streams mixed by weight to one; item i >= 0 of an endless stream, the same for any number of workers.

    Each block of about 1000 clips has every stream's share to the nearest clip, and at least one, in an order of its
    own. A stream's own clips come in its order, none left out.
    """

    def __init__(self, parts: Sequence[ClipDataset], weights: Sequence[float], *, seed: int = 0) -> None:
        """Prepare the stream.

        Args:
            parts: the streams.
            weights: one positive number a stream; only their ratios matter.
            seed: decides the order.

        Raises:
            ConfigError: if there is no stream, or a weight is not positive.
        """
        if not parts:
            raise ConfigError("data.train is empty; expected at least one source")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ConfigError(f"the weights of data.train are {list(weights)}; expected positive numbers")
        self.parts, self.seed = tuple(parts), seed
        ends = np.rint(np.cumsum(weights) / sum(weights) * BLOCK).astype(int)  # [parts]
        self.counts = np.maximum(np.diff(ends, prepend=0), 1)  # [parts]
        self._block: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def sources(self) -> tuple[VideoSource, ...]:
        """Where the streams' frames come from; what is read of them here is kept for the clips."""
        return tuple(part.source for part in self.parts)

    def __getitem__(self, i: int) -> Clip:
        """Return clip `i` of the endless stream, unbatched."""
        part, number = self.place(i)
        return self.parts[part][number]

    def place(self, i: int) -> tuple[int, int]:
        """Return the stream that clip `i` comes from, and its number there."""
        block, position = divmod(i, int(self.counts.sum()))
        if self._block[0] != block:
            dice = torch.Generator().manual_seed(_seed(self.seed, _MIX, block))
            cards = torch.repeat_interleave(torch.from_numpy(self.counts))  # [clips of a block]
            self._block = (block, cards[torch.randperm(len(cards), generator=dice)])
        cards = self._block[1]
        part = int(cards[position])
        return part, block * int(self.counts[part]) + int((cards[:position] == part).sum())


def median_frequency_weights(sources: Sequence[VideoSource], *, limit: int = 512, cap: float = 10.0) -> Tensor:
    """Return the weights of the cross-entropy that make rare classes count: median frequency / frequency.

    The frequency of a class is its share of the labelled pixels of the images that show it (Eigen and Fergus, ICCV
    2015).

    Args:
        sources: splits with the same K classes.
        limit: images a source that are counted, evenly spread over it.
        cap: largest weight.

    Returns:
        float32 [K]; 1 for a class that no counted image shows.
    """
    pixels, seen = torch.zeros(2, len(sources[0].classes), dtype=torch.float64)
    for source in sources:
        targets = [(name, frame) for name in source.names for frame in source.labelled(name)]
        chosen = np.unique(np.linspace(0, len(targets) - 1, min(limit, len(targets))).astype(int))
        for name, number in (targets[place] for place in chosen):
            labels = next(iter(source.read(name, [number]))).labels
            if labels is not None:
                here = labels[labels != IGNORE].long().bincount(minlength=len(pixels))  # [K]
                pixels += here
                seen += (here > 0) * here.sum()
    shown = pixels > 0
    frequency = pixels[shown] / seen[shown]
    weights = torch.ones(len(pixels))
    weights[shown] = (frequency.quantile(0.5) / frequency).clamp(max=cap).float()
    return weights


def start_worker() -> None:
    """Prepare a process that makes clips; to be called once, at its start.

    The garbage collector is told to leave alone what the process inherited: a video frame in it would wait for
    FFmpeg's threads, which a forked process does not have.
    """
    gc.freeze()
    cv2.setNumThreads(0)  # the workers are the threads


def _check_motion(source: VideoSource, name: str, *, dense: bool) -> None:
    """Refuse, or at least name, clips whose frames are too far apart in time, or not labelled where they must be."""
    cure = "set still: true, which makes clips of single labelled frames by a random camera path"
    if source.rate < SLOWEST:
        found = f"{name}: the frames are {1 / source.rate:.2g} s apart"
        if dense:
            raise DataError(f"{found}; this method learns from neighbours in a video: {cure}")
        _LOG.warning("%s, so the frames of a clip hardly show motion; %s", found, cure)
    for video in source.names if dense else ():
        labelled, length = len(source.labelled(video)), source.length(video)
        if labelled < length:
            raise DataError(
                f"{name}: {labelled} of the {length} frames of '{video}' are labelled; this method learns from clips "
                f"with labels on every frame: {cure}"
            )


def _seed(*keys: int) -> int:
    """Mix integers to a seed, so that near keys give unrelated draws."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
