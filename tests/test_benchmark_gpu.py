"""The measurements that need a GPU: all are listed, what is measured is kept, what is cut is made anew."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from scripts import load_script
from steadyseg.commands.benchmark import benchmark
from steadyseg.commands.choices import Backend

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(tmp_path: Path) -> ModuleType:
    """The script, with a folder of results of its own."""
    module = load_script(ROOT / "benchmarks" / "gpu.py")
    module.RESULTS = tmp_path
    return module


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_every_row_is_documented(gpu: ModuleType) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for name, row in gpu.ROWS.items():
        assert f"results/{name}.json" in page or {str(Path("results", file).parent) for file in row.files} == {
            folder for folder in re.findall(r"`(results/compare/[^`]*)/`", page) if name in folder
        }
    for names in re.findall(r"`python benchmarks/gpu\.py ([a-z][^`]*)`", page):
        assert set(names.split()) <= set(gpu.ROWS)


def test_commands_are_the_projects_own(gpu: ModuleType) -> None:
    for row in gpu.ROWS.values():
        program, first, *rest = shlex.split(row.command)
        assert (program, first) == ("steadyseg", "benchmark") or (ROOT / first).exists()
        assert not row.first or row.first.startswith(("steadyseg data render VIDEO", "python benchmarks/compare.py"))
        if program == "steadyseg":
            assert rest[-1] == "--json" and benchmark.__kwdefaults__ is not None
            flags = {word[2:] for word in rest if word.startswith("--")}
            assert flags <= set(benchmark.__kwdefaults__)
            assert set(rest[rest.index("--backend") + 1].split(",")) <= set(get_args(Backend))


def test_documents_are_kept(gpu: ModuleType, tmp_path: Path) -> None:
    gpu.ROWS = {"row": gpu.Row(python("print('{}')"), 60, "")}
    assert gpu.measure("row", 60) == "measured"
    assert gpu.is_complete("row") and json.loads((tmp_path / "row.json").read_text()) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["row.json"]


def test_what_fails_leaves_the_file_as_it_was(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text("{}")
    gpu.ROWS = {"row": gpu.Row(python("print('half a docu'); raise SystemExit(3)"), 60, "")}
    assert gpu.measure("row", 60) == "failed with status 3"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("row.json", "{}")]


def test_what_is_cut_is_made_anew(gpu: ModuleType, tmp_path: Path) -> None:
    """At its limit a command gets Ctrl-C, and what it then prints is kept, but is not complete."""
    code = """
import json, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(json.dumps({"results": [1], "left_out": [{"has_ended": True}]}))
"""
    gpu.ROWS = {"row": gpu.Row(python(code), 60, "")}
    assert gpu.measure("row", 3) == "measured in part"
    assert not gpu.is_complete("row") and json.loads((tmp_path / "row.json").read_text())["results"] == [1]


def test_files_of_commands_that_write_one(gpu: ModuleType, tmp_path: Path) -> None:
    gpu.ROWS = {"row": gpu.Row(python("import sys; open(sys.argv[1], 'w').write('{}')") + " FILE", 60, "")}
    assert gpu.measure("row", 60) == "measured"
    assert (tmp_path / "row.json").read_text() == "{}"


def test_a_command_before_makes_the_video(gpu: ModuleType, tmp_path: Path) -> None:
    first = python("import sys; open(sys.argv[1], 'w').write('{\"n\": 7}')") + " VIDEO"
    gpu.ROWS = {"row": gpu.Row(python("import sys; print(open(sys.argv[1]).read())") + " VIDEO", 60, "", first)}
    assert gpu.measure("row", 60) == "measured"
    assert (tmp_path / "row.json").read_text() == '{"n": 7}\n'
    gpu.ROWS = {"row": gpu.Row(python("print('{}')"), 60, "", python("raise SystemExit(3)"))}
    assert gpu.measure("row", 60) == "failed with status 3 before it began"


def test_what_writes_several_files_is_complete_with_the_last(gpu: ModuleType, tmp_path: Path) -> None:
    """What is stopped between them is asked for again."""
    write = "import sys; open(sys.argv[1], 'w').write('{}')"
    files = ("one.json", "two.json")
    gpu.ROWS = {"row": gpu.Row(f"{python(write)} {tmp_path / 'one.json'}", 60, "", files=files)}
    assert gpu.measure("row", 60) == "measured in part, status 0" and not gpu.is_complete("row")
    gpu.ROWS = {"row": gpu.Row(f"{python(write)} {tmp_path / 'two.json'}", 60, "", files=files)}
    assert gpu.measure("row", 60) == "measured" and gpu.is_complete("row")
    assert not (tmp_path / "row.json").exists()


@pytest.mark.parametrize("key", ["results", "memory"])
def test_less_than_before_is_not_kept(gpu: ModuleType, tmp_path: Path, key: str) -> None:
    (tmp_path / "row.json").write_text(json.dumps({key: [1, 2], "left_out": [{"has_ended": True}]}))
    gpu.ROWS = {"row": gpu.Row(python(f"print('{{\"{key}\": [3]}}')"), 60, "")}
    assert gpu.measure("row", 60) == "measured less than before, which is kept"
    assert json.loads((tmp_path / "row.json").read_text())[key] == [1, 2]
    assert len(list(tmp_path.iterdir())) == 1
