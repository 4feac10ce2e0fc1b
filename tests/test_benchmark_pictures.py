"""Pictures of benchmark results: what is read, what is fitted, and that files appear whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts import load_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def draw() -> Any:
    return load_script(ROOT / "benchmarks" / "draw.py")


def write(path: Path, results: list[dict[str, Any]], *, date: str = "2026-01-01T00:00:00+00:00") -> Path:
    document = {
        "date": date,
        "machine": {"cpu": "a CPU", "gpu": None, "threads": 2},
        "versions": {},
        "setting": {"options": {}, "precision": "fp32", "backend": "torch"},
        "results": [{"method": "sdcpc", "backbone": "mit_b1", "parameters": 15e6, "streams": 1} | r for r in results],
    }
    path.write_text(json.dumps(document))
    return path


def test_exponent_is_that_of_the_power(draw: Any, tmp_path: Path) -> None:
    sizes = [[240, 427], [480, 853], [1080, 1920]]
    results = [{"size": [h, w], "fps": 1e6 / (h * w) ** 1.1} for h, w in sizes]
    found = draw.points([write(tmp_path / "a.json", results)])
    assert [point.size for point in found] == ["240x427", "480x853", "1080x1920"]
    assert draw.exponent(found) == pytest.approx(1.1)


def test_every_picture_is_drawn(draw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        {"method": method, "backbone": backbone, "size": [h, 2 * h], "streams": n, "fps": 1e5 / h + n}
        for method in ("sdcpc", "tfc")
        for backbone in ("mit_b0", "mit_b1")
        for h in (64, 128)
        for n in (1, 4)
    ]
    file = write(tmp_path / "all.json", results)
    for picture in draw.PICTURES:
        assert draw.main([picture, str(file), "--out", str(tmp_path)]) == 0
        with Image.open(tmp_path / f"{picture}.png") as image:
            assert image.size == (840, 504)
    assert not list(tmp_path.glob("*.part"))
    assert str(tmp_path / "sizes.png") in capsys.readouterr().out


def test_the_newest_of_equal_measurements_counts(draw: Any, tmp_path: Path) -> None:
    new = write(tmp_path / "new.json", [{"size": [64, 96], "fps": 20.0}], date="2026-02-01T00:00:00+00:00")
    old = write(tmp_path / "old.json", [{"size": [64, 96], "fps": 10.0}])
    assert [point.fps for point in draw.newest(draw.points([new, old]))] == [20.0]


def test_what_cannot_be_drawn_is_said(
    draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw, "RESULTS", tmp_path)
    assert draw.main(["--out", str(tmp_path)]) == 1
    assert "sizes: not drawn, as" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    assert draw.main(["sizes", str(tmp_path / "other.json")]) == 1
    assert "is no document of steadyseg benchmark --json" in capsys.readouterr().out
    assert draw.main(["sizes", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_earlier_documents_are_read(draw: Any) -> None:
    every = sorted((ROOT / "benchmarks" / "results").glob("cpu_*.json"))
    files = [file for file in every if "memory" not in file.name]
    found = draw.points(files)
    assert {point.method for point in found} >= {"segformer", "sdcpc", "dcfm", "tfc", "msaf"}
    assert all(point.ms == pytest.approx(1e3 / point.fps) for point in found)
