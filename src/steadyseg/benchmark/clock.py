"""Times: taken on any device, and told by mean, median, 95th percentile and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def clocked(work: Callable[..., Any], *inputs: Any, is_cuda: bool) -> tuple[float, Any]:
    """Return the seconds that `work` takes, on a GPU until it has done all, and what it returns."""
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work(*inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def summary(times: Sequence[float], *, period: int = 1, first: int = 0, streams: int = 1) -> dict[str, Any]:
    """Summarise the seconds of neighbouring rounds.

    Args:
        times: at least one, in order.
        period: rounds from one key frame to the next.
        first: number of the first of them in its stream; key frames are those whose number `period` divides.
        streams: frames of one round.

    Returns:
        "latency_ms" with mean, median and p95 of a round; "spread", see `spread`, of whole periods; "fps", frames of
        all streams by the sum of the times, None where that is 0; where the period is more than 1 also "key" and
        "between", the same for the two kinds of frames, where there are any.
    """
    ordered = sorted(times)
    result: dict[str, Any] = {
        "latency_ms": {
            "mean": 1e3 * statistics.mean(ordered),
            "median": 1e3 * statistics.median(ordered),
            "p95": 1e3 * ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)],
        },
        "spread": spread(of_periods(times, period)),
        "fps": streams / statistics.mean(ordered) if ordered[-1] else None,
    }
    if period > 1:
        kinds: dict[str, list[float]] = {"key": [], "between": []}
        for number, spent in enumerate(times, first):
            kinds["between" if number % period else "key"].append(spent)
        result |= {kind: summary(spent, streams=streams) for kind, spent in kinds.items() if spent}
    return result


def of_periods(times: Sequence[float], period: int) -> list[float]:
    """Return the sums of neighbouring times, `period` at a time; what is left over at the end is left out."""
    return [sum(times[start : start + period]) for start in range(0, len(times) - period + 1, period)]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return "low", "median" and "high": a quarter of the values is below the first, a quarter above the last."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    return {"low": low, "median": median, "high": high}


def spread(values: Sequence[float]) -> float | None:
    """Return the distance between the quartiles by the median; None for fewer than two values, or a median of 0."""
    if len(values) < 2:
        return None
    found = quartiles(values)
    return (found["high"] - found["low"]) / found["median"] if found["median"] else None
