"""What a method costs: parameters, multiply-adds, latency, throughput and memory, on this machine.

The time of a frame runs from a uint8 frame tensor to a uint8 label map of the frame's size, through `Stream`, once
the stream has settled; with several streams, from one frame of each to their label maps, through `Streams`. The device
is synchronised before and after.
"""

from steadyseg.benchmark.growth import memory, memory_of_predict
from steadyseg.benchmark.host import EndedError, apart, machine
from steadyseg.benchmark.pipeline import stages
from steadyseg.benchmark.reference import check_transformers
from steadyseg.benchmark.setting import DTYPES, Setting, check
from steadyseg.benchmark.speed import compare, measure

__all__ = [
    "DTYPES",
    "EndedError",
    "Setting",
    "apart",
    "check",
    "check_transformers",
    "compare",
    "machine",
    "measure",
    "memory",
    "memory_of_predict",
    "stages",
]
