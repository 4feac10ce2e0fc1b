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


def configs(experiments: Sequence[tuple[str, Any]]) -> None:
    """Show every config with the scores that its paper prints."""
    rows = []
    for name, experiment in experiments:
        scores = (f"{key} {value:g}" for key, value in experiment.published.items() if key not in _COSTS)
        rows.append((name, " ".join(scores)))
    _lines(("config", "published, %"), rows)


def costs(experiments: Sequence[tuple[str, Any]], counted: Mapping[str, Any]) -> None:
    """Show the parameters and multiply-adds of every config, as its paper prints them and as counted here.

    Args:
        experiments: names and what they hold.
        counted: what was counted, by name.
    """
    rows = []
    for name, experiment in experiments:
        printed, ours = experiment.published, counted.get(name, {})
        rows.append(
            (
                name,
                f"{ours['parameters'] / 1e6:.1f}" if ours else "",
                f"{printed['params_m']:g}" if "params_m" in printed else "",
                f"{ours['multiply_adds'] / 1e9:.1f}" if ours else "",
                f"{printed['gflops']:g}" if "gflops" in printed else "",
                _OF[ours["of"]] if ours else "",
            )
        )
    _lines(("config", "M par.", "printed", "G mult-adds", "printed", "for"), rows)
    line("Multiply-adds: at the test size, as papers count them (benchmarks/README.md). The config names its table.")


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show columns as wide as what is in them; a narrow terminal breaks lines, but nothing is cut."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def exported(batch: int | None, differences: Iterable[Any]) -> None:
    """Show how many frames a call of exported graphs takes, None for any, and how they differ from torch."""
    line(f"frames a call: {'any' if batch is None else batch}")
    for entry in differences:
        line(
            f"{entry.runtime}, {entry.length} frames, {entry.frames}: largest difference of a score {entry.scores:.1e} "
            f"of the largest; {entry.labels} of {entry.pixels} labels differ, "
            f"{100 * (1 - entry.labels / entry.pixels):.2f} % are the same"
        )


_AGAINST = {"transformers": "transformers' SegFormer", "clip": "whole clips"}
_KINDS = ("key", "between")
_COSTS = ("params_m", "gflops", "fps")
_OF = {"stream": "one frame", "segment": "one frame", "clip": "one clip"}


_SUBJECT = ("size", "backend", "precision", "streams")
"""What may differ between the measurements of one command, beside method and backbone."""


def benchmark(report: dict[str, Any], *, as_json: bool) -> None:
    """Show what the command benchmark measured, as tables or as JSON."""
    if as_json:
        line(json.dumps(report, indent=2))
        return
    results = report["results"]
    varied = _heading(report, f"{report['setting']['frames']} frames")
    cost = table("G multiply-adds", "M par.", "of", "layers", "hooks", "full", "sampling")
    speed = table("", "mean ms", "median ms", "p95 ms", "spread %", "FPS", "% of peak", "peak MiB")
    for result in results:
        _add_times(speed, _subject(result, varied), result)
    for name, result in {_subject(result, varied & {"size"}): result for result in results}.items():
        parameters = f"{result['parameters'] / 1e6:.2f}"
        for what, forms in result["multiply_adds"].items():
            for form, counts in forms.items():
                numbers = (f"{counts[kind] / 1e9:.2f}" for kind in ("hooks", "full", "sampling"))
                cost.add_row(name, parameters, what, form, *numbers)
    _show(cost)
    _show(speed)
    peaks = sorted({round(result["peak_gflops"]) for result in results if result["peak_gflops"] is not None})
    if results:
        shown = " to ".join(str(peak) for peak in dict.fromkeys((*peaks[:1], *peaks[-1:])))
        peak = f" Peak: a large matrix product, {shown} GFLOP/s." if peaks else ""
        line(f"Spread: distance of the quartiles by the median, of whole key intervals.{peak}")
    for result in results:
        if "parts" in result:
            _parts(_subject(result, varied), result["parts"])
    for pair in report["comparisons"]:
        _comparison(_subject(pair, varied), pair)


def _heading(report: dict[str, Any], frames: str) -> set[str]:
    """Write one line on what all measurements have in common, and return what differs."""
    setting, about = report["setting"], report["machine"]
    common = [_word(key, setting[key]) for key in ("backend", "precision", "size", "streams") if key in setting]
    first = f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {report['versions']['torch']}"
    line(", ".join((first, *common, f"{setting['classes']} classes", frames)))
    return {key for key in _SUBJECT if key not in setting}


def _subject(result: dict[str, Any], varied: Iterable[str]) -> str:
    """Return method, backbone and what differs between the measurements."""
    words = (_word(key, result[key]) for key in _SUBJECT if key in varied)
    return " ".join((result["method"], result["backbone"], *words))


def _word(key: str, value: Any) -> str:
    if key == "size":
        return f"{value[0]}x{value[1]}"
    return f"{value} stream{'s' * (value > 1)}" if key == "streams" else str(value)


def _add_times(rows: Table, name: str, result: dict[str, Any]) -> None:
    """Add the row of a summary, and those of its key frames and the frames between."""
    for kind, summary in {name: result, **{f"  {kind}": result[kind] for kind in _KINDS if kind in result}}.items():
        time, spread = summary["latency_ms"], summary["spread"]
        numbers = [f"{time[which]:.1f}" for which in ("mean", "median", "p95")]
        numbers += ["" if spread is None else f"{100 * spread:.1f}", f"{summary['fps']:.1f}"]
        if "peak_memory_mib" in summary:
            share = summary["share_of_peak"]
            numbers += ["" if share is None else f"{100 * share:.0f}", f"{summary['peak_memory_mib']:.0f}"]
        rows.add_row(escape(kind), *numbers)


def _parts(name: str, parts: dict[str, Any]) -> None:
    """Show what the parts of a frame take."""
    whole = sum(summary["latency_ms"]["mean"] for summary in parts.values())
    kinds = [kind for kind in _KINDS if all(kind in summary for summary in parts.values())]
    rows = table(name, "mean ms", "median ms", "p95 ms", "% of all", *(f"mean ms, {kind}" for kind in kinds))
    for part, summary in parts.items():
        time = summary["latency_ms"]
        numbers = [*(f"{time[which]:.1f}" for which in ("mean", "median", "p95")), f"{100 * time['mean'] / whole:.0f}"]
        rows.add_row(part, *numbers, *(f"{summary[kind]['latency_ms']['mean']:.1f}" for kind in kinds))
    _show(rows)


def _comparison(name: str, pair: dict[str, Any]) -> None:
    ours, theirs = (pair[side]["latency_ms"]["mean"] for side in ("ours", "theirs"))
    found = pair["paired"]
    same = f"; {pair['differing']} of {pair['pixels']} labels differ" if "pixels" in pair else ""
    same += f", where scores differ by {pair['gap']:.0e} of the largest" if pair.get("gap") else ""
    line(
        f"{name}: {ours:.1f} ms; {_AGAINST[pair['against']]}: {theirs:.1f} ms; {pair['speedup']:.2f} times as fast "
        f"(median of pairs {found['median']:.2f}, quartiles {found['low']:.2f} and {found['high']:.2f}){same}"
    )


def memory(report: dict[str, Any], *, as_json: bool) -> None:
    """Show how the memory of long streams grows, as a table or as JSON."""
    if as_json:
        line(json.dumps(report, indent=2))
        return
    varied = _heading(report, f"up to {report['setting']['frames']} frames")
    after = " or ".join(sorted({f"after {result['settled_after']}" for result in report["memory"]}))
    rows = table("MiB", "frames", f"in use, {after}", "at the end", "+ %", f"peak, {after}", "at the end", "+ %")
    for result in report["memory"]:
        name = _subject(result, varied) if "backbone" in result else f"predict, {result['model']}, {result['video']}"
        numbers = []
        for kind in ("in_use", "peak"):
            sizes = [result[when][f"{kind}_mib"] for when in ("settled", "end")]
            growth = result["growth_percent"][kind]
            numbers += ["" if size is None else f"{size:.1f}" for size in sizes]
            numbers.append("" if growth is None else f"{growth:.2f}")
        rows.add_row(escape(name), str(result["frames"]), *numbers)
    _show(rows)


def _show(rows: Table) -> None:
    """Write a table of numbers, at the right of their columns and not broken over lines, at least 100 columns wide."""
    for column in rows.columns[1:]:
        column.no_wrap, column.justify = True, "right"
    Console(soft_wrap=True, highlight=False, width=max(out.width, 100)).print(rows)


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
        for kind, part in {name: summary, **{f"  {kind}": summary[kind] for kind in _KINDS if kind in summary}}.items():
            rows.add_row(kind, *(f"{part['latency_ms'][which]:.2f}" for which in ("mean", "median", "p95")))
    _show(rows)
    line(
        f"predict: {result['predict']['fps']:.2f} FPS; {result['against_slowest']:.2f} times the time of its slowest "
        f"thread ({result['slowest']}); one stage after the other: {result['one_by_one_ms']:.1f} ms a frame"
    )
