"""What commands show: lines, tables, progress and warnings."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def line(text: object) -> None:
    """Write one line to stdout as it is."""
    out.print(str(text), markup=False)


def error(text: object) -> None:
    """Write one line to stderr, after the program's name."""
    err.print(f"steadyseg: {text}", markup=False)


class Warnings(logging.Handler):
    """Shows what the library logs as a warning, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to stderr."""
        error(f"warning: {record.getMessage()}")


def table(*columns: str) -> Table:
    """Return a plain table with these column heads."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows


@contextmanager
def progress(name: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a live bar with frames per second and time left on stderr; yields what to call after every frame."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[fps]}")
    started = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=err) as bar:
        task = bar.add_task(escape(name), total=total, fps="")

        def advance() -> None:
            done = bar.tasks[task].completed + 1
            bar.update(task, completed=done, fps=f"{done / (time.monotonic() - started):.1f} FPS")

        yield advance


def scores(report: dict[str, Any], *, per_class: bool, as_json: bool) -> None:
    """Show the scores that the command eval took, in percent, and how each was taken; or all as JSON."""
    if as_json:
        defined = {
            kind: {name: None if math.isnan(value) else value for name, value in report[kind].items()}
            for kind in ("scores", "IoU")
        }
        line(json.dumps({**report, **defined}, indent=2))
        return
    rows = table("metric", "%")
    for name, value in {**report["scores"], **(report["IoU"] if per_class else {})}.items():
        rows.add_row(escape(name), "undefined" if math.isnan(value) else f"{100 * value:.2f}")
    out.print(rows)
    for protocol in report["protocols"]:
        line(protocol)


def configs(experiments: Sequence[tuple[str, Any]], costs: Mapping[str, Any]) -> None:
    """Show every config with the numbers that its paper prints, and the parameters and multiply-adds counted here.

    Args:
        experiments: names and what they hold.
        costs: what was counted, by name.
    """
    rows = table("config", "published, %", "M par.", "printed", "G mult-adds", "printed", "for")
    for name, experiment in experiments:
        printed, ours = experiment.published, costs.get(name, {})
        rows.add_row(
            name,
            " ".join(f"{key} {value:g}" for key, value in printed.items() if key not in _COSTS),
            f"{ours['parameters'] / 1e6:.1f}" if ours else "",
            f"{printed['params_m']:g}" if "params_m" in printed else "",
            f"{ours['multiply_adds'] / 1e9:.1f}" if ours else "",
            f"{printed['gflops']:g}" if "gflops" in printed else "",
            _OF[ours["of"]] if ours else "",
        )
    for column in rows.columns:
        column.no_wrap = True
    out.print(rows, width=max(out.width, 140), crop=False)  # a terminal breaks long lines better than a table its cells
    line("Multiply-adds: at the test size, as papers count them (benchmarks/README.md). The config names its table.")


def exported(batch: int | None, differences: Iterable[Any]) -> None:
    """Show how many frames a call of exported graphs takes, None for any, and how they differ from torch."""
    line(f"frames a call: {'any' if batch is None else batch}")
    for entry in differences:
        line(
            f"{entry.runtime}, {entry.length} frames, {entry.frames}: largest difference of a score {entry.scores:.1e} "
            f"of the largest; {entry.labels} of {entry.pixels} labels differ"
        )


_AGAINST = {"transformers": "transformers' SegFormer", "clip": "whole clips"}
_COSTS = ("params_m", "gflops", "fps")
_OF = {"stream": "one frame", "segment": "one frame", "clip": "one clip"}


def benchmark(report: dict[str, Any], *, as_json: bool) -> None:
    """Show what the command benchmark measured, as tables or as JSON."""
    if as_json:
        line(json.dumps(report, indent=2))
        return
    setting, about = report["setting"], report["machine"]
    height, width = setting["size"]
    line(
        f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {report['versions']['torch']}, "
        f"{setting['backend']}, {setting['precision']}, {height}x{width}, {setting['classes']} classes, "
        f"{setting['frames']} frames"
    )
    cost = table("G multiply-adds", "of", "layers", "hooks", "full", "sampling")
    speed = table("method", "M parameters", "mean ms", "median ms", "p95 ms", "FPS", "peak MiB")
    for result in report["results"]:
        name = f"{result['method']} {result['backbone']}"
        for what, forms in result["multiply_adds"].items():
            for form, counts in forms.items():
                cost.add_row(name, what, form, *(f"{counts[kind] / 1e9:.2f}" for kind in ("hooks", "full", "sampling")))
        time = result["latency_ms"]
        numbers = (time["mean"], time["median"], time["p95"], result["fps"], result["peak_memory_mib"])
        speed.add_row(name, f"{result['parameters'] / 1e6:.2f}", *(f"{number:.1f}" for number in numbers))
    out.print(cost)
    out.print(speed)
    for pair in report["comparisons"]:
        ours, theirs = (pair[side]["latency_ms"]["mean"] for side in ("ours", "theirs"))
        same = f"; {pair['differing']} of {pair['pixels']} labels differ" if "pixels" in pair else ""
        same += f", where scores differ by {pair['gap']:.0e} of the largest" if pair.get("gap") else ""
        line(
            f"{pair['method']} {pair['backbone']}: {ours:.1f} ms; {_AGAINST[pair['against']]}: {theirs:.1f} ms; "
            f"{pair['speedup']:.2f} times as fast{same}"
        )


def stages(report: dict[str, Any], *, as_json: bool) -> None:
    """Show how long the stages of predict take, alone and together, as a table or as JSON."""
    if as_json:
        line(json.dumps(report, indent=2))
        return
    about, result = report["machine"], report["result"]
    video = result["video"]
    line(
        f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {report['versions']['torch']}, "
        f"{report['setting']['precision']}, {result['model']}, {video['height']}x{video['width']}, "
        f"{video['frames']} frames"
    )
    rows = table("stage", "mean ms", "median ms", "p95 ms")
    for name, summary in {**result["stages"], "predict, all at once": result["predict"]}.items():
        rows.add_row(name, *(f"{summary['latency_ms'][kind]:.2f}" for kind in ("mean", "median", "p95")))
    out.print(rows)
    line(
        f"predict: {result['predict']['fps']:.2f} FPS; {result['against_slowest']:.2f} times the time of its slowest "
        f"thread ({result['slowest']}); one stage after the other: {result['one_by_one_ms']:.1f} ms a frame"
    )
