import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from steadyseg.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones(2**22)
before = faults()
for _ in range(20):
    torch.ones(2**22)  # 16 MiB
print(faults() - before)
"""


def count(keep, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "THP_"))}
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    done = subprocess.run(program, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_freed_memory_is_used_again_without_asking_the_system():
    assert count(keep=False) > 1000
    assert count(keep=True) < 100
    assert count(keep=True, MALLOC_TRIM_THRESHOLD_="131072") > 1000  # the user's own choice stays
