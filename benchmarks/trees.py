"""Commands of this tree and of another one, such as a git worktree of an older version, each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "import sys; from steadyseg.cli import main; sys.exit(main())"


def trees(other: Path | None) -> dict[str, Path]:
    """Return the trees to compare: "this", and "other" if one is given; each holds src/."""
    here = Path(__file__).parents[1]
    return {"this": here} if other is None else {"this": here, "other": other.resolve()}


def call(tree: Path, words: Sequence[str], **variables: str) -> float:
    """Run a command of a tree, with environment variables added; returns its seconds, from start to end of Python.

    Raises:
        SystemExit: with the last line of its errors, if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), **variables}
    begin = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    return spent
