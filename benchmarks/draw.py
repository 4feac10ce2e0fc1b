"""Draw what `steadyseg benchmark --json` measured: speed against parameters, cost against frame size, streams.

    python benchmarks/draw.py                            every picture whose default files are there
    python benchmarks/draw.py sizes results/cpu_sizes.json results/cpu_sizes_dcfm.json

Each picture goes to benchmarks/results/PICTURE.png. The exponent of a line in `sizes` is the slope of the least squares
line through log(ms) over log(pixels): 1 means that twice the pixels take twice the time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

RESULTS = Path(__file__).parent / "results"


class Point(NamedTuple):
    """One measurement of a method."""

    method: str
    backbone: str
    options: str
    pixels: int
    """Of one frame."""
    size: str
    backend: str
    precision: str
    streams: int
    parameters: float
    """In millions."""
    ms: float
    """Mean time of a frame: of a round, by its streams."""
    fps: float
    """Of all streams together."""
    machine: str

    def name(self, *keys: str) -> str:
        """Return the method and the given fields as words."""
        values = {key: str(getattr(self, key)) for key in ("method", *keys, "options")}
        return " ".join(f"{value} streams" if key == "streams" else value for key, value in values.items() if value)


def points(files: Sequence[Path]) -> list[Point]:
    """Read the measurements of documents of the command benchmark, in the order of their dates.

    Raises:
        ValueError: if one of them is no such document.
    """
    reports = []
    for file in files:
        report = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not {"date", "setting", "machine", "results"} <= report.keys():
            raise ValueError(f"{file} is no document of steadyseg benchmark --json; expected setting, machine, results")
        reports.append(report)
    reports.sort(key=lambda report: report["date"])
    return [_point(report, result) for report in reports for result in report["results"]]


def _point(report: dict[str, Any], result: dict[str, Any]) -> Point:
    about = {"backend": "torch", "streams": 1, "options": {}} | report["setting"] | result
    machine, (height, width) = report["machine"], about["size"]
    return Point(
        method=result["method"],
        backbone=result["backbone"],
        options=" ".join(f"{key}={value}" for key, value in about["options"].items()),
        pixels=height * width,
        size=f"{height}x{width}",
        backend=about["backend"],
        precision=about["precision"],
        streams=about["streams"],
        parameters=result["parameters"] / 1e6,
        ms=1e3 / result["fps"],
        fps=result["fps"],
        machine=f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads",
    )


# ---- the pictures ------------------------------------------------------------------------------------------------


def parameters(found: Sequence[Point], axis: Axes) -> None:
    """Frames per second over millions of parameters: a line a method, a point a backbone."""
    for name, group in _groups(
        found, lambda point: point.name(*_varied(found, "size", "backend", "precision", "streams"))
    ):
        line = sorted(group, key=lambda point: point.parameters)
        axis.plot([point.parameters for point in line], [point.fps for point in line], "o-", label=name, markersize=4)
        for point in line:
            where = (point.parameters, point.fps)
            axis.annotate(point.backbone, where, (3, 4), textcoords="offset points", fontsize=7)
    axis.set(xscale="log", yscale="log", xlabel="parameters, millions", ylabel="frames per second")
    _plain(axis.xaxis)
    _plain(axis.yaxis)


def sizes(found: Sequence[Point], axis: Axes) -> None:
    """Milliseconds a frame over its pixels, with the fitted exponent."""
    kinds = ("backbone", *_varied(found, "backend", "precision", "streams"))
    for name, group in _groups(found, lambda point: point.name(*kinds)):
        line = sorted(group, key=lambda point: point.pixels)
        label = f"{name}, exponent {exponent(line):.2f}" if len({point.pixels for point in line}) > 1 else name
        axis.plot([point.pixels for point in line], [point.ms for point in line], "o-", label=label, markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="frame", ylabel="ms a frame")
    _plain(axis.yaxis)
    ticks = {point.pixels: point.size for point in found}
    axis.set_xticks(list(ticks), list(ticks.values()), rotation=30, ha="right", fontsize=8)
    axis.set_xticks([], minor=True)


def streams(found: Sequence[Point], axis: Axes) -> None:
    """Frames per second of all streams over their number."""
    kinds = ("backbone", *_varied(found, "size", "backend", "precision"))
    for name, group in _groups(found, lambda point: point.name(*kinds)):
        line = sorted(group, key=lambda point: point.streams)
        axis.plot([point.streams for point in line], [point.fps for point in line], "o-", label=name, markersize=4)
    axis.set(xscale="log", xlabel="streams at a time", ylabel="frames per second, all streams", ylim=(0, None))
    ticks = sorted({point.streams for point in found})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)


def _plain(axis: Axis) -> None:
    """Number a logarithmic axis 1, 2, 5, 10 ... as people write them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


PICTURES: dict[str, Callable[[Sequence[Point], Axes], None]] = {
    "parameters": parameters,
    "sizes": sizes,
    "streams": streams,
}
DEFAULTS = {
    "parameters": ("cpu_parameters.json", "cpu_parameters_resnet.json"),
    "sizes": ("cpu_sizes.json", "cpu_sizes_large.json", "cpu_sizes_dcfm_1440.json"),
    "streams": ("cpu_streams.json",),
}
"""The files in results/ that a picture is drawn from, where none are named."""


def exponent(line: Iterable[Point]) -> float:
    """Return e of the best fit of ms = c * pixels^e, in the sense of least squares of the logarithms."""
    logs = np.array([(math.log(point.pixels), math.log(point.ms)) for point in line])  # [N, 2]
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def newest(found: Sequence[Point]) -> list[Point]:
    """Return the last of each group of measurements of the same thing."""
    return list({point[: Point._fields.index("ms")]: point for point in found}.values())


def draw(picture: str, found: Sequence[Point], out: Path) -> None:
    """Write one picture as PNG, whole or not at all.

    Args:
        picture: one of PICTURES.
        found: what was measured, in the order of dates.
        out: the file; it is replaced.
    """
    found = newest(found)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    PICTURES[picture](found, axis)
    common = [
        f"{next(iter(values))}" for key in ("size", "backend", "precision") if len(values := _values(found, key)) == 1
    ]
    axis.set_title(", ".join((*sorted(_values(found, "machine")), *common)), fontsize=9)
    axis.grid(alpha=0.3, which="major")
    axis.legend(fontsize=8)
    partial = out.with_name(f"{out.name}.part")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(out)


def _values(found: Sequence[Point], key: str) -> set[Any]:
    return {getattr(point, key) for point in found}


def _varied(found: Sequence[Point], *keys: str) -> tuple[str, ...]:
    """Return those of the keys that have several values."""
    return tuple(key for key in keys if len(_values(found, key)) > 1)


def _groups(found: Sequence[Point], key: Callable[[Point], str]) -> list[tuple[str, list[Point]]]:
    groups: dict[str, list[Point]] = {}
    for point in found:
        groups.setdefault(key(point), []).append(point)
    return list(groups.items())


# ---- the call ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; the exit status is 1 when nothing was drawn, or a file is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", choices=tuple(PICTURES))
    parser.add_argument("files", nargs="*", type=Path, help="documents of steadyseg benchmark --json")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pictures")
    options = parser.parse_args(argv)
    drawn, failed = 0, False
    for picture in [options.picture] if options.picture else PICTURES:
        files = options.files or [RESULTS / name for name in DEFAULTS[picture] if (RESULTS / name).is_file()]
        if not files:
            _say(f"{picture}: not drawn, as {RESULTS.name}/ has no {' or '.join(DEFAULTS[picture])}")
            continue
        try:
            draw(picture, points(files), options.out / f"{picture}.png")
        except (OSError, ValueError) as exc:
            _say(f"{picture}: not drawn: {exc}")
            failed = True
            continue
        drawn += 1
        _say(str(options.out / f"{picture}.png"))
    return int(failed or not drawn)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
