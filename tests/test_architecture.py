"""The rules of the house that a program can check: who imports whom, sizes, names, no print."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "steadyseg"
FILES = sorted(PACKAGE.rglob("*.py"))
METHODS = [file for file in FILES if file.parent.name == "models" and file.stem not in ("__init__", "base")]

BOTTOM = {"types"}
PROGRAM = {"allocator", "arguments", "console"}
PRIMITIVES = {"ops", "losses", "metrics", "data", "video"}
MODEL = {"types", "flow", "ops", "backbones", "layers", "decoders", "losses"}
BELOW_ENGINE = MODEL | PRIMITIVES | {"models", "config"}
BELOW_TOOLS = BELOW_ENGINE | {"engine"}
GRAPHS = {"exported", "quantisation"}
TOOLS = {"costs", "cuda_graphs", "backends", "benchmark", "export", "cluster", "app"} | GRAPHS
ALLOWED = {
    "types": set(),
    **{name: set() for name in PROGRAM},
    "flow": BOTTOM,
    **dict.fromkeys(PRIMITIVES, BOTTOM),
    "metrics": BOTTOM | {"flow"},
    "layers": {"types", "ops"},
    "backbones": {"types", "ops", "layers"},
    "decoders": {"types", "ops", "layers"},
    "models": MODEL,
    "config": {"types", "models", "data"},
    "engine": BELOW_ENGINE,
    "costs": BELOW_ENGINE,
    "cuda_graphs": {"types", "models"},
    "graph_cache": BOTTOM,
    "backends": BELOW_TOOLS | {"graph_cache", "cuda_graphs"},
    **dict.fromkeys(GRAPHS, BELOW_TOOLS | {"backends"}),
    **dict.fromkeys(("export", "cluster", "app"), BELOW_TOOLS | GRAPHS | {"backends", "costs", "cuda_graphs"}),
    "benchmark": BELOW_TOOLS | {"backends", "costs", "cuda_graphs", "quantisation", "allocator"},  # starts programs
    "commands": BELOW_TOOLS | PROGRAM | TOOLS,
    "cli": PROGRAM | {"commands"},
    "": BELOW_TOOLS,  # the package's own __init__: public names
}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(file: Path, *, lazy: bool) -> set[str]:
    """Modules of the package that a file imports; `lazy` also takes imports inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node) or (not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "steadyseg")
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if (node.module or "").split(".")[0] == "steadyseg":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in MODULES else str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(file))
    return found - {module_name(file)}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_its_layers(module: str) -> None:
    mine = layer(module)
    assert mine in ALLOWED, f"{module}: no layer of that name in style.md"
    for other in imported(MODULES[module], lazy=True):
        if layer(other) != mine and other != "steadyseg":
            assert layer(other) in ALLOWED[mine], f"{module} must not import {other}"


def test_types_need_torch_only() -> None:
    nodes = list(ast.walk(tree(PACKAGE / "types.py")))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_method_file(file: Path) -> None:
    others = {module_name(other) for other in METHODS if other != file}
    assert not imported(file, lazy=True) & others, "a method never imports another method"
    assigned = [
        node.targets[0].id
        for node in tree(file).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    assert assigned.count("METHOD") == 1


def test_no_cycles_and_short_chains() -> None:
    graph = {
        module: {name for name in imported(file, lazy=False) if name in MODULES} for module, file in MODULES.items()
    }

    @cache
    def chain(module: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
        assert module not in above, f"import cycle: {' -> '.join((*above, module))}"
        longest = max((chain(other, (*above, module)) for other in graph[module]), key=len, default=())
        return (module, *longest)

    longest = max((chain(module) for module in graph), key=len)
    assert len(longest) <= 7, " -> ".join(longest)


def length(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef, lines: int) -> int:
    """Lines besides docstrings and texts under fields, which a limit on size must not make shorter."""
    texts = [
        text
        for text in ast.walk(node)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    ]
    return lines - sum((text.end_lineno or text.lineno) - text.lineno + 1 for text in texts)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_sizes(file: Path) -> None:
    lines = length(tree(file), len(file.read_text(encoding="utf-8").splitlines()))
    assert lines <= (500 if file in METHODS else 400), f"{lines} lines besides docstrings"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = length(node, (node.end_lineno or node.lineno) - node.lineno + 1)
            limit = 120 if (module_name(file), node.name) == ("steadyseg.engine.train", "train") else 60
            assert lines <= limit, f"{node.name} has {lines} lines besides docstrings"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_names_and_calls(file: Path) -> None:
    assert file.stem not in {"utils", "helpers", "common", "misc"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print in line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import steadyseg.cli, sys; sys.exit(', '.join({'torch', 'numpy', 'av', 'cv2', 'lightning'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
