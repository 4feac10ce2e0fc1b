"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # must be known before torch imports triton, which it does to export


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Every test starts from the same seed and uses one thread, as several tests may run at a time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _graph_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Traced graphs of tests, and of the programs that they start, stay out of the user's folder."""
    os.environ["STEADYSEG_CACHE"] = str(tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def data_root() -> Path:
    """The folder of real data sets, $STEADYSEG_DATA; the test is skipped where it is not set."""
    root = os.environ.get("STEADYSEG_DATA")
    if not root:
        pytest.skip("STEADYSEG_DATA is not set: no real data here")
    return Path(root)


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
