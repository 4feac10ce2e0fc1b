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

torch.ones(2**24)
before = faults()
for _ in range(20):
    torch.ones(2**24)  # 64 MiB
print(faults() - before)
"""


def run(program, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


def count(keep, **variables):
    return run(PROGRAM.format(keep=keep), **variables)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_freed_memory_is_used_again_without_asking_the_system():
    cleared = count(keep=False)  # pages; few of 2 MiB or many of 4 KiB, as the system has them
    assert 4 * count(keep=True) < cleared
    for choice in ({"MALLOC_TRIM_THRESHOLD_": "131072"}, {"MALLOC_MMAP_MAX_": "65536"}):
        assert 4 * count(keep=True, **choice) > cleared  # the user's own choice stays


THREADS = """
import threading
from steadyseg.allocator import keep_freed_memory
keep_freed_memory()
import torch

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

def work(number):
    for turn in range(4):
        together.wait()
        if turn == number:
            torch.ones(12 * 2**20)  # 48 MiB

torch.ones(12 * 2**20)
before = resident()
together = threading.Barrier(4)
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(round(resident() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_threads_use_what_others_have_freed():
    """Each in its turn needs as much; the process grows only where each keeps an arena of its own."""
    assert min(run(THREADS) for _ in range(3)) < 72  # where something lies right behind the heap, it cannot grow as one
    assert run(THREADS, MALLOC_ARENA_MAX="8") > 96  # the user's own choice stays
