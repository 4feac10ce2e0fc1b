"""What a method costs: parameters, multiply-adds, latency, throughput and memory, on this machine.

The time of a frame runs from a uint8 frame tensor to a uint8 label map of the frame's size, through `Stream`, once
the stream has settled; with several streams, from one frame of each to their label maps, through `Streams`. The device
is synchronised before and after.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyseg.benchmark.growth import memory as memory
    from steadyseg.benchmark.growth import memory_of_predict as memory_of_predict
    from steadyseg.benchmark.host import apart as apart
    from steadyseg.benchmark.host import machine as machine
    from steadyseg.benchmark.pipeline import stages as stages
    from steadyseg.benchmark.process import EndedError as EndedError
    from steadyseg.benchmark.reference import check_transformers as check_transformers
    from steadyseg.benchmark.setting import Setting as Setting
    from steadyseg.benchmark.setting import about as about
    from steadyseg.benchmark.speed import compare as compare
    from steadyseg.benchmark.speed import measure as measure
    from steadyseg.benchmark.speed import measure_and_compare as measure_and_compare
    from steadyseg.benchmark.subject import check as check
    from steadyseg.benchmark.turns import in_turns as in_turns

_FILES = {
    "growth": ("memory", "memory_of_predict"),
    "host": ("apart", "machine"),
    "pipeline": ("stages",),
    "process": ("EndedError",),
    "reference": ("check_transformers",),
    "setting": ("Setting", "about"),
    "speed": ("compare", "measure", "measure_and_compare"),
    "subject": ("check",),
    "turns": ("in_turns",),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steadyseg.benchmark' has no attribute {name!r}")
    return getattr(import_module(f"steadyseg.benchmark.{_HOME[name]}"), name)
