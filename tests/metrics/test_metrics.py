"""Metrics by name and the usual set of a source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from steadyseg.metrics import MetricConfig, build, names, standard
from steadyseg.types import ConfigError, Frame


@dataclass
class Source:
    """Two videos, of which only the second has neighbouring labels."""

    run: int = 20
    rate: float = 15.0
    classes: tuple[str, ...] = ("a", "b", "c")
    names: tuple[str, ...] = ("sparse", "dense")

    def labelled(self, name: str) -> tuple[int, ...]:
        return (0, 5, 9) if name == "sparse" else tuple(range(3, 3 + self.run))


class RawSource(Source):
    def raw_labels(self, name: str, frame: int) -> Tensor:
        return torch.zeros(2, 2, dtype=torch.uint8)


def protocols(source: Source, config: MetricConfig | None = None) -> list[str]:
    return [metric.protocol for metric in standard(source, config)]  # type: ignore[attr-defined]


def test_standard_set() -> None:
    assert protocols(Source()) == [
        "mIoU, wIoU (absent classes skipped)",
        "mVC8, mVC16 (full)",
        "TC (dis, nearest warp)",
    ]


def test_scores_have_their_published_names() -> None:
    metrics = standard(Source())
    for metric in metrics:
        metric.start("dense")
        for index in range(20):
            labels = torch.zeros(2, 2, dtype=torch.uint8)
            metric.update(Frame(torch.zeros(3, 2, 2, dtype=torch.uint8), index, 0.0, labels), labels)
    scores = {name: value for metric in metrics for name, value in metric.compute().items()}
    assert scores == {"mIoU": 1.0, "wIoU": 1.0, "mVC8": 1.0, "mVC16": 1.0, "TC": 1.0}


def test_raw_labels_mean_the_vspw_protocol() -> None:
    assert protocols(RawSource())[1] == "mVC8, mVC16 (vspw)"
    assert protocols(RawSource(), MetricConfig(protocol="full"))[1] == "mVC8, mVC16 (full)"
    assert protocols(Source(), MetricConfig(protocol="vspw"))[1] == "mVC8, mVC16 (vspw, ignored labels merged)"


def test_raw_labels_are_read() -> None:
    metric = build("vc", RawSource(), MetricConfig(lengths=(2,)))
    metric.start("dense")
    for index in range(3):
        labels = torch.full((2, 2), index, dtype=torch.uint8)
        metric.update(Frame(torch.zeros(3, 2, 2, dtype=torch.uint8), index, 0.0, labels), torch.zeros_like(labels))
    assert metric.compute() == {"mVC2": 1.0}


@pytest.mark.parametrize(
    ("source", "count"),
    [(Source(run=9), 3), (Source(run=8), 2), (Source(run=0), 2), (Source(rate=1.0), 1), (Source(names=()), 2)],
)
def test_what_cannot_be_scored_is_left_out(source: Source, count: int) -> None:
    assert len(standard(source)) == count


def test_options_arrive() -> None:
    config = MetricConfig(absent="zero", lengths=(4,), protocol="strict", mode="vspw_exact")
    assert protocols(Source(), config) == [
        "mIoU, wIoU (absent classes count 0)",
        "mVC4_strict (strict)",
        "TC (dis, vspw_exact)",
    ]


def test_names() -> None:
    assert names()[:3] == ["iou", "vc", "tc"]
    for name in names():
        assert all(math.isnan(score) for score in build(name, Source()).compute().values())
    with pytest.raises(ConfigError, match="unknown metric 'miou'; did you mean 'iou'"):
        build("miou", Source())
    with pytest.raises(ConfigError, match="unknown metric 'psnr'; known are iou, vc, tc"):
        build("psnr", Source())
    with pytest.raises(ConfigError, match="got Source: choose flow 'dis'"):
        build("tc", Source(), MetricConfig(flow="source"))
