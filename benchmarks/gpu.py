"""Make the measurements that need a GPU and are not there yet, the most wanted first.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --seconds 600
    python benchmarks/gpu.py cuda_mit_b1_bf16 cuda_kernels

A row that takes longer than its share of the time is stopped by Ctrl-C, upon which `steadyseg benchmark` writes what it
has; such a file is incomplete, and made anew by the next call, whose file takes its place if it holds no less. Files go
to benchmarks/results; a training that is stopped goes on in the next call, from its folder in runs/. Trainings read
$STEADYSEG_DATA/camvid. The status is 1 if something that was asked for is still missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CARD = "--device cuda --precision bf16"
TOGETHER = "--together 8 --json"
"""Eight measurements are prepared at once; each is timed alone."""
MEMORY = f"--size 1080x1920 --memory 10000 {CARD} --backend cuda_graphs {TOGETHER}"
TRAINED = ("sdcpc_b1", "tfc_b1", "dcfm_b1_k6", "sdcpc", "tfc")
TRAINING = "--parts train,score --device cuda --workers 5"


class Row(NamedTuple):
    """One measurement."""

    command: str
    """What prints a document, or writes files by itself.

    FILE in it stands for the result file, where that is written, not printed; MISSING for the rows of compare.py whose
    files are not there; VIDEO for a file in a temporary folder.
    """
    seconds: int
    """What it may take at most."""
    question: str
    first: str = ""
    """A command to run before, in the same time."""
    files: tuple[str, ...] = ()
    """The result files, under results/, of a command that prints no document."""


ROWS = {
    "cuda_mit_b1_bf16": Row(
        f"steadyseg benchmark sdcpc segformer --backbone mit_b1 {CARD} --backend compile,cuda_graphs "
        f"--against transformers {TOGETHER}",
        240,
        "the window method and its baseline",
    ),
    "cuda_keyframes_mit_b1_bf16": Row(
        f"steadyseg benchmark dcfm tfc reuse --backbone mit_b1 --interval 4 {CARD} --backend cuda_graphs "
        f"--against transformers {TOGETHER}",
        150,
        "methods with key frames",
    ),
    "cuda_kernels": Row(
        "python benchmarks/kernels.py --json",
        300,
        "every Triton kernel against its reference, torch.compile and float64",
    ),
    "cuda_memory_1080p": Row(
        f"steadyseg benchmark segformer sdcpc dcfm tfc reuse {MEMORY}",
        400,
        "memory of a long stream",
    ),
    "cuda_memory_1080p_resnet18": Row(
        f"steadyseg benchmark pspnet msaf --backbone resnet18 {MEMORY}",
        400,
        "memory of a long stream, on dilated ResNets",
    ),
    "cuda_graphs_mit_b1_bf16": Row(
        "python benchmarks/cuda_graphs.py --json", 120, "every graph, kernel by kernel and recorded"
    ),
    "cuda_mit_b1_fp32": Row(
        "steadyseg benchmark sdcpc segformer --backbone mit_b1 --device cuda --backend cuda_graphs "
        f"--against transformers {TOGETHER}",
        120,
        "the window method in fp32",
    ),
    "cuda_resnet18_bf16": Row(
        f"steadyseg benchmark pspnet msaf --backbone resnet18 {CARD} --backend cuda_graphs {TOGETHER}",
        80,
        "dilated ResNets",
    ),
    "cuda_streams_sdcpc": Row(
        f"python benchmarks/streams.py {CARD} --streams 1 2 4 8 16 --out FILE", 120, "several videos as one batch"
    ),
    "cuda_mit_b5_bf16": Row(
        f"steadyseg benchmark segformer sdcpc --backbone mit_b5 {CARD} --backend cuda_graphs {TOGETHER}",
        100,
        "large backbones",
    ),
    "cuda_parts_mit_b1_bf16": Row(
        f"steadyseg benchmark segformer sdcpc dcfm tfc --backbone mit_b1 {CARD} --backend cuda_graphs --parts "
        f"{TOGETHER}",
        100,
        "parts of a frame",
    ),
    "cuda_sizes": Row(
        f"steadyseg benchmark sdcpc dcfm tfc segformer {CARD} --backend cuda_graphs "
        f"--size 240x427,480x853,720x1280,1080x1920,1440x2560,2160x3840 {TOGETHER}",
        400,
        "cost against frame size",
    ),
    "cuda_stages_sdcpc": Row(
        f"steadyseg benchmark --stages VIDEO --model sdcpc_mit_b0_camvid {CARD} --backend cuda_graphs --json",
        120,
        "the stages of predict, and predict as a whole",
        first="steadyseg data render VIDEO --size 540x960 --length 300",
    ),
    "camvid_gpu": Row(
        f"python benchmarks/compare.py camvid_gpu MISSING {TRAINING}",
        3000,
        "larger backbones on CamVid, trained on the GPU",
        first="python benchmarks/compare.py camvid_start segformer_b1 --parts train --device cuda --workers 5",
        files=tuple(f"compare/camvid_gpu/2000/{row}_0.json" for row in TRAINED),
    ),
    "camvid_third": Row(
        f"python benchmarks/compare.py camvid_third MISSING --iterations 10000 {TRAINING}",
        6000,
        "CamVid at a longer budget",
        files=tuple(f"compare/camvid_third/10000/{row}_0.json" for row in ("segformer", "sdcpc")),
    ),
}


def main() -> None:
    """Run the measurements of the command line."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what runs is stopped first
    if options.list:
        for name in options.rows:
            sys.stdout.write(f"{name}: {'measured' if is_complete(name) else 'awaiting'}\n  {ROWS[name].command}\n")
        return
    end = time.monotonic() + options.seconds
    for name in options.rows:
        if not options.again and is_complete(name):
            continue
        left = min(end - time.monotonic(), ROWS[name].seconds)
        if left < 20:
            sys.stderr.write(f"{name}: no time left\n")
            continue
        begun = time.monotonic()
        outcome = measure(name, left)
        sys.stderr.write(f"{name}: {outcome}, {time.monotonic() - begun:.0f} s\n")
    if missing := [name for name in options.rows if not is_complete(name)]:
        sys.exit(f"not complete: {', '.join(missing)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows by name; all by default")
    parser.add_argument("--seconds", type=float, default=3600, help="for all rows together")
    parser.add_argument("--again", action="store_true", help="also what is measured already; trainings are only scored")
    parser.add_argument("--list", action="store_true", help="say which rows there are, and measure nothing")
    options = parser.parse_args()
    options.rows = options.rows or list(ROWS)
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return options


def is_complete(name: str) -> bool:
    """Say whether a row has its files, and the file of a document all that was asked for."""
    if files := ROWS[name].files:
        return all((RESULTS / file).exists() for file in files)
    file = RESULTS / f"{name}.json"
    return file.exists() and not any(entry["has_ended"] for entry in json.loads(file.read_text()).get("left_out", ()))


def measure(name: str, seconds: float) -> str:
    """Run a row for so many seconds at most; write its file if it gives a document; -> what became of it."""
    row, end = ROWS[name], time.monotonic() + seconds
    file = RESULTS / f"{name}.json"
    new = file.with_suffix(".new.json")
    missing = [path for path in row.files if not (RESULTS / path).exists()] or row.files
    with tempfile.TemporaryDirectory() as folder:
        places = {"FILE": [str(new)], "VIDEO": [str(Path(folder, "video.mp4"))]}
        places["MISSING"] = [Path(path).stem.rpartition("_")[0] for path in missing]
        try:
            if row.first and (status := run(row.first, places, end=end)[0]) != 0:
                return f"{_ending(status)} before it began"
            status, printed = run(row.command, places, end=end)
            if row.files:
                there = sum((RESULTS / path).exists() for path in row.files)
                return "measured" if status == 0 else f"{_ending(status)}, {there} of {len(row.files)} files"
            if "FILE" not in row.command:
                new.write_text(printed)
            return keep(new, file) or f"{_ending(status)}, nothing measured"
        finally:
            new.unlink(missing_ok=True)


def run(command: str, places: dict[str, list[str]], *, end: float) -> tuple[int | None, str]:
    """Run a command in the root, until `end` at most; -> its status, None if it was stopped, and what it printed."""
    words = [word for words in shlex.split(command) for word in places.get(words, [words])]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return None, stop(process)
    except BaseException:  # this program is stopped
        stop(process)
        raise
    return process.returncode, printed


def stop(process: subprocess.Popen[str]) -> str:
    """Give a command Ctrl-C and 20 seconds to end, then kill it and all that it started; -> what it printed."""
    printed = ""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        printed, _ = process.communicate(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return printed


def _ending(status: int | None) -> str:
    """Say how a command ended."""
    return "stopped" if status is None else f"failed with status {status}"


def keep(new: Path, file: Path) -> str:
    """Put a document in the place of an older one that holds no more; -> what became of it, nothing if it is none."""
    try:
        found = json.loads(new.read_text())
    except (OSError, ValueError):
        return ""
    if file.exists() and count(found) < count(json.loads(file.read_text())):
        return "measured less than before, which is kept"
    new.replace(file)
    return "measured" if is_complete(file.stem) else "measured in part"


def count(document: dict[str, Any]) -> int:
    """Count the measurements of a document."""
    return sum(len(document.get(key, ())) for key in ("results", "comparisons", "rows", "memory"))


if __name__ == "__main__":
    main()
