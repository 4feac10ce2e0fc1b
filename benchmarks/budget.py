"""Estimate what training a config takes on GPUs: hours and memory.

    python benchmarks/budget.py sdcpc_mit_b1_vspw tfc_mit_b1_vspw
    python benchmarks/budget.py sdcpc_mit_b1_vspw --tflops 380 --share 0.25

One step on one clip of random pixels is run here, in float32. Counted are the operations of its forward and backward
pass, and the bytes that the backward pass keeps: float32 on a GPU needs that for each clip, half precision a little
more than half. Hours are operations over what the GPUs compute: `--tflops` each at best, of which training reaches
`--share`. Both are yours to measure; the defaults are a guess at a card of the middle of the range. Time that a card
waits, for data or for other cards, is not in it.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from steadyseg import config, models
from steadyseg.types import Clip

CLASSES = {"vspw": 124, "cityscapes": 19, "camvid": 11, "streets": 11}
STATE = 16
"""Bytes a parameter: itself, its gradient, and two running means of AdamW, each float32."""


class Step(NamedTuple):
    """What one clip costs in training."""

    operations: int
    """Of the forward and the backward pass; a multiply-add is two."""
    kept: int
    """Bytes that the forward pass leaves for the backward pass, float32."""
    state: int
    """Bytes of weights, gradients and optimiser, whatever the batch."""


class Kept:
    """Bytes of the distinct tensors that a backward pass keeps."""

    def __init__(self, own: set[int]) -> None:
        self.own, self.sizes = own, dict[int, int]()
        self.alive: list[Tensor] = []  # so that no address is given twice

    def __call__(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved, unless it is a weight."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self.own and place not in self.sizes:
            self.sizes[place] = storage.nbytes()
            self.alive.append(tensor)
        return tensor


def measure(experiment: config.Experiment) -> Step:
    """Run one step on one clip of random pixels."""
    classes = CLASSES[experiment.data.train[0].source]
    height, width = experiment.data.augment.crop
    model = models.method(experiment.method)(experiment.model, classes).train()
    length = len(model.offsets)
    clip = Clip(
        torch.randint(0, 256, (2, length, 3, height, width), dtype=torch.uint8),  # batch norm needs two
        torch.randint(0, classes, (2, length, height, width), dtype=torch.uint8),
        torch.arange(length).expand(2, length),
    )
    kept = Kept({tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())})
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(kept, lambda tensor: tensor):
        sum(model(clip).values(), torch.zeros(())).backward()
    state = STATE * sum(parameter.numel() for parameter in model.parameters())
    return Step(counter.get_total_flops() // 2, sum(kept.sizes.values()) // 2, state)


def row(name: str, tflops: float, share: float) -> str:
    """Return one line of the table."""
    experiment = config.load(name)
    train, found = experiment.train, measure(experiment)
    clips = train.batch_size
    cards = train.devices if train.nodes == 1 else f"{train.nodes} nodes x {train.devices}"
    hours = found.operations * clips * train.iterations / (1e12 * tflops * share) / 3600
    memory = (found.state + found.kept * clips) / 2**30
    size = "x".join(map(str, experiment.data.augment.crop))
    cells = (f"`{name}`", size, f"{train.iterations}", f"{cards} x {clips}", f"{found.operations / 1e9:.0f}")
    return f"| {' | '.join(cells)} | {hours:.1f} | {memory:.1f} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--tflops", type=float, default=100.0, help="of one card, at best")
    parser.add_argument("--share", type=float, default=0.3, help="of that, reached in training")
    arguments = parser.parse_args()
    print("| recipe | crop | steps | cards x clips | G operations a clip | hours | GiB a card, fp32 |")  # noqa: T201
    print("| --- " * 7 + "|")  # noqa: T201
    for name in arguments.configs:
        print(row(name, arguments.tflops, arguments.share), flush=True)  # noqa: T201


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
