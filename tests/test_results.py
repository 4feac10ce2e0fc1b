"""What docs/results.md shows: its tables are those that the files in benchmarks/results give, its pictures exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^<!-- python benchmarks/compare\.py (.+?) -->\n\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)


def test_every_marked_table_is_there() -> None:
    assert len(TABLES) == PAGE.count("<!-- python") > 0


@pytest.mark.parametrize(("words", "shown"), TABLES, ids=[words for words, _ in TABLES])
def test_tables_are_those_of_the_result_files(
    words: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "benchmarks" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    assert spec is not None and spec.loader is not None
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    monkeypatch.setattr(sys, "argv", [str(path), *shlex.split(words)])
    compare.main()
    assert capsys.readouterr().out.strip() == shown.strip()
