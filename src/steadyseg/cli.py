"""The command line: names of commands, and the call.

A command is a function in steadyseg.commands; its parameters are the options, its docstring is the help.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence

import steadyseg
from steadyseg import console
from steadyseg.allocator import keep_freed_memory
from steadyseg.arguments import build_parser, parse, select, usage
from steadyseg.commands.benchmark import benchmark
from steadyseg.commands.data import data_check, data_render
from steadyseg.commands.evaluate import evaluate
from steadyseg.commands.export import export
from steadyseg.commands.listing import list_names
from steadyseg.commands.predict import predict
from steadyseg.commands.train import train

_WARNINGS = console.Warnings(logging.WARNING)

COMMANDS: dict[str, Callable[..., int | None]] = {
    "predict": predict,
    "train": train,
    "eval": evaluate,
    "data check": data_check,
    "data render": data_render,
    "list": list_names,
    "benchmark": benchmark,
    "export": export,
}


# ---- the call ----------------------------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> int:
    """Run one call and return its exit status; errors are raised."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        console.line(usage((steadyseg.__doc__ or "").splitlines()[0], COMMANDS))
        return 0 if argv else 2
    if argv[0] == "--version":
        console.line(f"steadyseg {steadyseg.__version__}")
        return 0
    if argv[1:2] in (["-h"], ["--help"]) and (group := _group(argv[0])):
        console.line(usage(f"{argv[0]} is the first word of several commands.", group))
        return 0
    name, rest = select(COMMANDS, argv)
    if "-h" in rest or "--help" in rest:
        console.line(build_parser(name, COMMANDS[name]).format_help())
        return 0
    positional, options = parse(name, COMMANDS[name], rest)
    logging.getLogger("steadyseg").addHandler(_WARNINGS)
    return COMMANDS[name](*positional, **options) or 0


def _group(word: str) -> dict[str, Callable[..., int | None]]:
    return {name: command for name, command in COMMANDS.items() if name.startswith(f"{word} ")}


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after the program's name; None takes them from the process.

    Returns:
        The exit status: 0 when all went well, 1 for wrong data, 2 for a wrong call, 130 when interrupted, 143 when
        told to end.
    """
    if argv is None:  # as a program: SIGTERM unwinds like Ctrl-C, so that nothing half-written stays
        signal.signal(signal.SIGTERM, _end)
        keep_freed_memory()
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except SystemExit as exc:  # rich's way to end when the reader of stdout has gone
        return exc.code if isinstance(exc.code, int) else 1
    except OSError as exc:
        console.error(f"error: {': '.join(str(part) for part in (exc.filename, exc.strerror) if part) or exc}")
        return 1
    except Exception as exc:
        status = getattr(exc, "exit_status", None)  # steadyseg's own errors; naming their class would load torch here
        if status is None:
            raise
        console.error(f"error: {exc}")
        return status
