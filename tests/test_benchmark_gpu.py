"""The measurements that need a GPU: all are listed, what is measured is kept, what is cut is made anew."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
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
        places = {f"{Path('results', file).parent}/" for file in row.files} or {f"results/{name}.json"}
        assert all(f"`{place}`" in page for place in places), name
    for names in re.findall(r"`python benchmarks/gpu\.py ([a-z][^`]*)`", page):
        assert set(names.split()) <= set(gpu.ROWS)


def test_trainings_write_the_files_that_are_awaited(gpu: ModuleType) -> None:
    compare = load_script(ROOT / "benchmarks" / "compare.py")
    for row in gpu.ROWS.values():
        for file in row.files:
            folder, recipe, steps, name = Path(file).parts
            words = row.command.split()
            assert (folder, recipe) == ("compare", words[2]) and name.removesuffix("_0.json") in compare.ROWS
            asked = words[words.index("--iterations") + 1] if "--iterations" in words else compare.steps(recipe)
            assert steps == str(asked)


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
    assert gpu.measure("row", 60) == "failed with status 3, nothing measured"
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
    """What is stopped between them is asked for again, without what is there."""
    write = "import pathlib, sys; [pathlib.Path(sys.argv[1], f'{row}_0.json').touch() for row in sys.argv[2:]]"
    command = f"{python(write)} {tmp_path}"
    files = ("one_0.json", "two_0.json")
    gpu.ROWS = {"row": gpu.Row(python("raise SystemExit(2)"), 60, "", files=files)}
    assert gpu.measure("row", 60) == "failed with status 2, 0 of 2 files"
    gpu.ROWS = {"row": gpu.Row(python(f"{write}; raise SystemExit(1)") + f" {tmp_path} one", 60, "", files=files)}
    assert gpu.measure("row", 60) == "failed with status 1, 1 of 2 files" and not gpu.is_complete("row")
    (tmp_path / "one_0.json").write_text("old")
    gpu.ROWS = {"row": gpu.Row(f"{command} MISSING", 60, "", files=files)}
    assert gpu.measure("row", 60) == "measured" and gpu.is_complete("row")
    assert (tmp_path / "one_0.json").read_text() == "old" and not (tmp_path / "row.json").exists()


def test_commands_run_in_the_root(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gpu.ROWS = {"row": gpu.Row(python("import json, os; print(json.dumps({'at': os.getcwd()}))"), 60, "")}
    assert gpu.measure("row", 60) == "measured"
    assert json.loads((tmp_path / "row.json").read_text()) == {"at": str(ROOT)}


def test_a_command_before_that_takes_all_the_time(gpu: ModuleType, tmp_path: Path) -> None:
    gpu.ROWS = {"row": gpu.Row(python("print('{}')"), 60, "", python("import time; time.sleep(60)"))}
    assert gpu.measure("row", 1) == "stopped before it began"
    assert not list(tmp_path.iterdir())


def test_what_is_missing_gives_a_status(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.ROWS = {"row": gpu.Row(python("print('{}')"), 60, ""), "other": gpu.Row(python("raise SystemExit(3)"), 60, "")}
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)  # not for this process
    monkeypatch.setattr(sys, "argv", ["gpu.py", "row"])
    gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="not complete: other"):
        gpu.main()


def test_what_is_started_ends_with_the_program(tmp_path: Path) -> None:
    """SIGTERM, too, reaches the command, which has a session of its own, and half a document does not stay."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import pathlib, gpu
gpu.RESULTS = pathlib.Path({str(tmp_path)!r})
sleep = '''
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text("half")
print(os.getpid(), file=open("{tmp_path}/pid", "w"), flush=True)
time.sleep(600)
'''
gpu.ROWS = {{"row": gpu.Row(gpu.shlex.join([sys.executable, "-c", sleep]) + " FILE", 600, "")}}
sys.argv = ["gpu.py"]
gpu.main()
"""
    program = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert program.poll() is None
        time.sleep(0.05)
    program.terminate()
    assert program.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert [file.name for file in tmp_path.iterdir()] == ["pid"]


@pytest.mark.parametrize("key", ["results", "memory"])
def test_less_than_before_is_not_kept(gpu: ModuleType, tmp_path: Path, key: str) -> None:
    (tmp_path / "row.json").write_text(json.dumps({key: [1, 2], "left_out": [{"has_ended": True}]}))
    gpu.ROWS = {"row": gpu.Row(python(f"print('{{\"{key}\": [3]}}')"), 60, "")}
    assert gpu.measure("row", 60) == "measured less than before, which is kept"
    assert json.loads((tmp_path / "row.json").read_text())[key] == [1, 2]
    assert len(list(tmp_path.iterdir())) == 1
