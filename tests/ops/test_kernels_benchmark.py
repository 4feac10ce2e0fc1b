"""What benchmarks/kernels.py does without a GPU: it refuses to time, and its comparisons hold on a small frame."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_it_needs_a_gpu() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("torch finds no CUDA device here; run this on a machine with a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_cases_are_right(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its comparison sees a wrong result."""
    pytest.importorskip("triton", reason="triton is not importable: pip install -c constraints.txt -e '.[kernels]'")
    monkeypatch.setenv("STEADYSEG_KERNELS", "triton")
    benchmark = load_script(SCRIPT)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = list(benchmark.cases((24, 32), 1, dtype, device))
    assert len(cases) == 7
    for case in cases:
        assert benchmark.check(case) <= 1, case.name
        assert benchmark.check(case._replace(run=lambda *x, run=case.run: spoilt(run(*x)))) > 1, case.name


def spoilt(out: torch.Tensor) -> torch.Tensor:
    return out // 2 if out.dtype == torch.uint8 else 1.02 * out
