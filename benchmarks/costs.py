"""Count parameters and multiply-adds of every shipped config, at its test size; mostly from shapes alone.

    python benchmarks/costs.py              all of them
    python benchmarks/costs.py NAME ...     only these, into the numbers of the others

Writes src/steadyseg/configs/costs.json, which `steadyseg list` shows. Multiply-adds are those of the layers as the
papers write them ("published"), without the matrix products inside attention: for a method that looks ahead, of one
frame averaged over its key interval; for a window method, of one whole clip; for the others, of one frame of a stream.
TFC refines the tenth of the points that its paper names; which ones they are depends on values, so its configs are run
for real, with random weights.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from rich.progress import track
from torch._subclasses.fake_tensor import FakeTensorMode

from steadyseg import config, models
from steadyseg.costs import costs

CLASSES = {"vspw": 124, "cityscapes": 19, "camvid": 11, "streets": 11}
SIZES = {"vspw": (480, 853), "cityscapes": (1024, 2048), "camvid": (360, 480), "streets": (360, 480)}

TOLD = {"tfc": {"force_fraction": 0.1}}
"""Options of methods whose cost depends on what they see."""


def count(name: str) -> dict[str, float | str | list[int]]:
    """Return the numbers of one config."""
    experiment = config.load(name)
    source = experiment.eval.source
    size = experiment.eval.base or SIZES[source.source]
    told = TOLD.get(experiment.method, {})
    method, options = models.method(experiment.method), replace(experiment.model, **told)
    frames = [torch.zeros(1, 3, *size, dtype=torch.uint8)] * 2
    if told:
        model = method(options, CLASSES[source.source]).eval()
        found = costs(model, frames)
    else:
        with torch.device("meta"):
            model = method(options, CLASSES[source.source]).eval()
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            found = costs(model, [torch.empty_like(frame) for frame in frames])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    of = "segment" if "segment" in found else "clip" if model.period == 1 < len(model.offsets) else "stream"
    return {"parameters": parameters, "multiply_adds": found[of]["published"].hooks, "of": of, "size": list(size)}


def main() -> None:
    """Write the file."""
    wanted = sys.argv[1:] or config.names()
    known = {name: numbers for name, numbers in config.costs().items() if name in config.names()}
    found = dict(sorted({**known, **{name: count(name) for name in track(wanted, "counting")}}.items()))
    (config.FOLDER / "costs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
