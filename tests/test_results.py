"""What docs/results.md shows: its tables are those that the files in benchmarks/results give, its pictures exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^<!-- python benchmarks/compare\.py (.+?) -->\n\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)


def test_every_marked_table_is_there() -> None:
    assert len(TABLES) == PAGE.count("<!-- python") > 0


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "compare.py")


@pytest.mark.parametrize(("words", "shown"), TABLES, ids=[words for words, _ in TABLES])
def test_tables_are_those_of_the_result_files(
    words: str, shown: str, compare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *shlex.split(words)])
    compare.main()
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize(
    ("recipe", "row", "iterations", "batch", "init"),
    [
        ("camvid_first", "sdcpc", 1500, 4, "segformer_mit_b0_camvid_start"),
        ("camvid", "sdcpc", 750, 4, "runs/camvid_first/1500/sdcpc_0"),
        ("camvid_third", "sdcpc", 750, 4, "sdcpc_mit_b0_camvid"),
        ("camvid_start", "fcn", 2000, 16, None),
        ("camvid_gpu", "sdcpc_b1", 2000, 8, "runs/camvid_start/2000/segformer_b1_0"),
        ("camvid_gpu", "pspnet", 2000, 8, "runs/camvid_start/2000/fcn_0"),
    ],
)
def test_what_is_trained(
    compare: ModuleType, recipe: str, row: str, iterations: int, batch: int, init: str | None
) -> None:
    wanted = compare.experiment(recipe, row, iterations=None, seed=3, runs=Path("runs")).train
    assert (wanted.iterations, wanted.batch_size, wanted.init, wanted.seed) == (iterations, batch, init, 3)
    shorter = compare.experiment(recipe, row, iterations=iterations // 10, seed=3, runs=Path("runs"), workers=5).train
    assert (shorter.iterations, shorter.warmup, shorter.workers) == (iterations // 10, wanted.warmup // 10, 5)
    assert compare.steps(recipe) == iterations


@pytest.mark.parametrize(
    ("recipe", "row", "message"),
    [
        ("camvid_gpu", "msaf", "first run: python benchmarks/compare.py camvid_start fcn --parts train"),
        ("camvid_third", "sdcpc_b1", "no weights sdcpc_b1_mit_b0_camvid in the package"),
    ],
)
def test_a_start_that_is_not_there_is_named_before_the_work(
    compare: ModuleType,
    recipe: str,
    row: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [recipe, "segformer", row, "--runs", str(tmp_path), "--parts", "train"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_there(compare: ModuleType, tmp_path: Path) -> None:
    wanted = compare.experiment("camvid_gpu", "msaf", iterations=None, seed=0, runs=tmp_path)
    Path(wanted.train.init).mkdir(parents=True)
    Path(wanted.train.init, "model.safetensors").touch()
    assert compare.start_of(wanted, tmp_path) is None


def test_rows_say_which_seeds_a_gpu_trained(compare: ModuleType) -> None:
    gpu, cpu = ({"trained_on": {"machine": {"gpu": name}}} for name in ("Card", None))
    assert compare._title("row", [gpu, gpu]) == "row (Card)"
    assert compare._title("row", [gpu, cpu, {}]) == "row (1 of 3 on Card)"
    assert compare._title("row", [cpu, {}]) == "row"
