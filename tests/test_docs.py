"""What docs/ says: links lead somewhere, commands parse, names, numbers and pictures are those of the code."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts import load_script
from steadyseg import backbones, cli, config, data, models
from steadyseg.arguments import build_parser, parse, select
from steadyseg.commands.choices import DEFAULT_MODEL, Backend, merged_options
from steadyseg.config import options_from_dict, parse_options
from steadyseg.costs import count
from steadyseg.engine import checkpoint
from steadyseg.layers import to_map, to_tokens
from steadyseg.metrics import MetricConfig
from steadyseg.models.base import ModelConfig, VideoSegmenter
from steadyseg.types import ConfigError

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "methods"
PAGES = sorted(DOCS.rglob("*.md"))
METHODS = sorted(page.stem for page in FOLDER.glob("*.md") if page.stem != "README")
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in (DOCS.parent / "src").rglob("*.py"))
SIZE, CLASSES = (480, 853), 124


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)


def tables(page: Path) -> Iterator[list[dict[str, str]]]:
    """The tables of a page, each a list of rows by column."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text(page), flags=re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().split("\n"))
        yield [dict(zip(head, row, strict=True)) for row in rows]


def rows_with(page: Path, column: str) -> list[dict[str, str]]:
    return [row for table in tables(page) for row in table if column in row]


def bare(cell: str) -> str:
    return cell.strip("`")


def name_of(page: Path) -> str | None:
    """The method that a page is about."""
    return page.stem if page.stem in METHODS else None


# ---- pages, links, names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page_and_a_picture(method: str) -> None:
    page = text(FOLDER / f"{method}.md")
    assert f"]({method}.svg)" in page
    assert f"](../../src/steadyseg/models/{method}.py)" in page
    assert f"]({method}.md)" in text(FOLDER / "README.md")


def test_every_page_is_about_a_method_and_every_published_method_has_one() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {*METHODS, "README"}
    assert set(METHODS) <= set(models.names())
    published = (config.load(name) for name in config.names())
    assert {experiment.method for experiment in published if experiment.published} <= set(METHODS)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text(page)):
        place, _, part = link.partition("#")
        target = (page.parent / place).resolve()
        assert target.exists(), link
        if part:
            assert part in map(anchor, re.findall(r"^#+ (.*)$", text(target), flags=re.MULTILINE)), link


@pytest.mark.parametrize("method", METHODS)
def test_paper(method: str) -> None:
    """The page links the paper that the file's header names, and gives its title."""
    header = ast.get_docstring(ast.parse(text(DOCS.parent / "src" / "steadyseg" / "models" / f"{method}.py"))) or ""
    page = text(FOLDER / f"{method}.md")
    assert re.findall(r"https://\S+", header.split("| paper |")[0]) == re.findall(r"\(?(https://[^\s)]+)", page)
    title = re.search(r'"([^"]+)"', header)
    assert title is not None
    assert title[1] in page


def values_of(options: Any) -> dict[str, Any]:
    """Options and their values, those of nested sections by dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{key}": inner for key, inner in values_of(value).items()}
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


OPTIONS = {method: values_of(models.method(method).Config()) for method in METHODS}
FLAGS = {
    flag
    for name, command in cli.COMMANDS.items()
    for action in build_parser(name, command)._actions
    for flag in action.option_strings
}
VARIANTS = {value for hint in typing.get_type_hints(MetricConfig).values() for value in typing.get_args(hint)}
NAMES = {*METHODS, *config.names(), *checkpoint.names(), *backbones.names(), *data.names(), *cli.COMMANDS, *VARIANTS}
NAMES |= set(typing.get_args(Backend))


METHOD_OF = {name: config.load(name).method for name in config.names()}


def is_known(code: str, method: str | None) -> bool:
    """Whether a piece of code in the text names something that there is."""
    own = OPTIONS[method] if method else {name for options in OPTIONS.values() for name in options}
    first, *rest = code.removeprefix("steadyseg ").split(" ", 1)
    if first in cli.COMMANDS or first in FLAGS:
        return all(word in NAMES | FLAGS or re.search(r'^"?[\w.]+(=|"?$)', word) for word in " ".join(rest).split())
    if code in NAMES | {*own}:
        return True
    key, equals, _ = code.removeprefix("model.").partition("=")
    if equals and " " not in key:
        return key in own
    if re.search(r"[_.]", code) and re.fullmatch(r"[a-z][\w.]*", code):  # it looks like an option or a config
        return f"def {code}(" in SOURCE
    return all(re.search(rf"\b{word}\b", SOURCE) for word in re.findall(r"[A-Za-z]\w+", code))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        assert code.startswith("python ") or is_known(code, name_of(page)), code


# ---- commands ------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = [(page.stem, line) for page in PAGES for line in commands(page)]


METHOD_OF |= {
    words[words.index("--out") + 1].removeprefix("runs/"): METHOD_OF[words[2]]
    for page in PAGES
    for words in map(shlex.split, commands(page))
    if words[:2] == ["steadyseg", "train"] and "--out" in words and words[2] in METHOD_OF
}
"""The method of every shipped config, and of every run that a page trains from one."""


def method_of(model: str | None, method: str | None) -> str:
    """The method that a call runs."""
    if method is not None:
        return method
    name = (model or DEFAULT_MODEL).removeprefix("runs/")
    assert name in METHOD_OF, f"{name}: a run of no shipped config"
    return METHOD_OF[name]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands(page: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "python":  # benchmarks and pictures, which take long
        assert (DOCS.parent / words[0]).is_file()
        return
    assert program == "steadyseg"
    name, rest = select(cli.COMMANDS, words)
    positional, given = parse(name, cli.COMMANDS[name], rest)
    if name == "train":
        config.load(positional[0], positional[1:])
        return
    changes = merged_options(given["interval"], given["options"])
    if given.get("config"):
        config.load(given["config"])
    if given.get("data"):
        assert given["data"] in data.names()
    if name == "benchmark":
        for method in positional:
            options_from_dict(method, {"backbone": given["backbone"], **changes})
        return
    assert name in ("predict", "eval", "export")
    method = method_of(positional[0] if name == "export" else given["model"], given["method"])
    options_from_dict(method, changes)
    if given["method"]:
        models.method(method).adopt({"backbone": "mit_b0", "norm_eps": "hf", "width": 256, "dropout": 0.1})
    if "=" in line and page in METHODS:
        assert method == page


@pytest.mark.parametrize("method", METHODS)
def test_every_page_shows_the_commands(method: str) -> None:
    shown = {line.split()[1] for page, line in COMMANDS if page == method}
    assert shown == {"predict", "eval", "benchmark"} | ({"train"} if method in METHOD_OF.values() else set())


# ---- tables of options and published scores ------------------------------------------------------------------------


@pytest.mark.parametrize("page", [FOLDER / f"{name}.md" for name in (*METHODS, "README")], ids=lambda page: page.stem)
def test_options(page: Path) -> None:
    method = name_of(page)
    defaults = OPTIONS[method] if method else values_of(ModelConfig())
    rows = rows_with(page, "option")
    assert rows
    for row in rows:
        assert yaml.safe_load(bare(row["default"])) == defaults[bare(row["option"])], row


CHANGES = [
    (method, row)
    for method in METHODS
    for row in rows_with(FOLDER / f"{method}.md", "option")
    if row["change it"] == "any time"
]
"""Options that any weights must fit."""
OTHERS = {
    "flow": "dis",
    "flow_scale": "0.25",
    "force_fraction": "0.5",
    "neighbours": "1",
    "reuse_from": "4",
    "warp": "features",
}


@pytest.mark.parametrize(("method", "row"), CHANGES, ids=lambda value: value if isinstance(value, str) else None)
def test_options_of_any_time_fit_the_same_weights(method: str, row: dict[str, str]) -> None:
    option = bare(row["option"])
    value = OTHERS.get(option) or str(1 + yaml.safe_load(bare(row["default"])))
    changed = parse_options(f"{option}={value}")
    shapes = []
    for options in ({}, changed):
        with torch.device("meta"):
            model = models.method(method)(options_from_dict(method, options), 5)
        shapes.append({key: tensor.shape for key, tensor in model.state_dict().items()})
    assert shapes[0] == shapes[1]


SCORES = {"mIoU", "wIoU", "mVC8", "mVC16", "TC"}
CONFIG_ROWS = [(page.stem, row) for page in PAGES for row in rows_with(page, "config")]


@pytest.mark.parametrize(("page", "row"), CONFIG_ROWS, ids=lambda value: value if isinstance(value, str) else None)
def test_rows_of_configs(page: str, row: dict[str, str]) -> None:
    """What is printed is what the config has, and all of it; sizes are those it tests at; costs are those shipped."""
    name = bare(row["config"])
    experiment = config.load(name)
    assert page in (experiment.method, "README")
    for column in SCORES & row.keys():
        assert (float(row[column]) if row[column] else None) == experiment.published.get(column), column
    for column in {"size", "tested at"} & row.keys():
        assert row[column] == "x".join(map(str, experiment.eval.base or ())), column
    for column, key in {"printed M": "params_m", "printed G": "gflops"}.items():
        if column in row:
            assert (float(row[column]) if row[column] else None) == experiment.published.get(key), column
    counted = config.costs().get(name)
    if counted and "parameters M" in row:
        assert float(row["parameters M"]) == round(counted["parameters"] / 1e6, 2)
        if row["as the paper counts G"]:
            assert float(row["as the paper counts G"]) == pytest.approx(counted["multiply_adds"] / 1e9, abs=0.006)


def test_every_published_row_is_shown() -> None:
    shown = {bare(row["config"]) for page, row in CONFIG_ROWS if page in METHODS}
    assert shown >= {name for name in config.names() if "mIoU" in config.load(name).published}


# ---- the comparison ------------------------------------------------------------------------------------------------

COMPARED = [
    (link[1], row) if (link := re.search(r"\]\((\w+)\.md\)", row["method"])) else ("dcfm", row)
    for row in rows_with(FOLDER / "README.md", "remembers MB")
]


def build(method: str, row: dict[str, str]) -> VideoSegmenter:
    """The model of a row: on MiT-B1, with what its first cell changes."""
    options: dict[str, Any] = {"backbone": "mit_b1"}
    for code in re.findall(r"`([^`]+)`", row["method"]):
        options |= parse_options(code) if "=" in code else {"backbone": code}
    with torch.device("meta"):
        return models.method(method)(options_from_dict(method, options), CLASSES).eval()


def size_of(state: Any) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(size_of, state)) if isinstance(state, tuple) else 0


def fill_in_what_has_no_shape(model: VideoSegmenter, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow estimator, which runs outside torch, and TFC's choice of points: a tenth of them."""
    if method == "flow":
        monkeypatch.setattr(type(model), "motion", lambda self, frame, image: torch.zeros(1, 2, *self.flow_size(frame)))
    if method == "tfc":

        def refine(fused: Tensor, values: Any, mask: Tensor, *, dense: bool) -> Tensor:
            chosen = torch.arange(round(0.1 * mask.shape[1]))
            rows = to_tokens(fused)[0]  # [N, D]
            size = (fused.shape[2], fused.shape[3])
            refined = model.attention.update(rows[chosen], values, chosen, size)  # type: ignore[union-attr,operator]
            return to_map(rows.index_copy(0, chosen, refined)[None], size)

        monkeypatch.setattr(model.attention, "forward", refine)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "row"), COMPARED, ids=[row["method"] for _, row in COMPARED])
def test_comparison(method: str, row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes alone decide, so nothing is computed."""
    model = build(method, row)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert float(row["parameters M"]) == round(parameters / 1e6, 2)
    fill_in_what_has_no_shape(model, method, monkeypatch)
    state: Any = None

    def interval() -> None:
        nonlocal state
        for _ in range(model.period):
            _, state = model.step(frame, state)

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cpu")
        frame = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
        for _ in range(6 // model.period + 1):  # until it remembers all it ever will
            interval()
        found = count(interval)["executed"].hooks // model.period
    assert float(row["remembers MB"]) == pytest.approx(size_of(state) / 1e6, abs=0.051)
    assert float(row["multiply-adds G"]) == pytest.approx(found / 1e9, abs=0.006)


@pytest.mark.parametrize(("method", "row"), COMPARED, ids=[row["method"] for _, row in COMPARED])
def test_backbones_of_the_comparison(method: str, row: dict[str, str]) -> None:
    if row["backbones"] == "the same":
        return
    families = {"MiT": "mit_b0", "ResNet": "resnet18_ppm", "HRNet": "hrnet_w18"}
    works = []
    for family, backbone in families.items():
        try:
            with torch.device("meta"):
                models.method(method)(models.method(method).Config(backbone=backbone), 5)
        except ConfigError:
            continue
        works.append(family)
    assert row["backbones"] == ", ".join(works) or (row["backbones"] == "any" and len(works) == len(families))


# ---- pictures ------------------------------------------------------------------------------------------------------


DRAW = load_script(DOCS / "draw_methods.py")


@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_what_the_script_draws(method: str) -> None:
    svg = DRAW.to_svg(DRAW.SCENES[method])
    assert text(FOLDER / f"{method}.svg") == svg, "run python docs/draw_methods.py"
    root = ElementTree.fromstring(svg)
    sizes = [float(element.attrib["font-size"]) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sizes
    assert min(sizes) >= 12


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def extent(shape: Any) -> Box:
    """The place of a rectangle, or of a text."""
    if isinstance(shape, DRAW.Rect):
        return shape.x, shape.y, shape.right, shape.bottom
    width = DRAW.text_width(shape.text, shape.size)
    left = shape.x - width / 2 if shape.is_centred else shape.x
    return left, shape.y - 0.75 * shape.size, left + width, shape.y + 0.2 * shape.size


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_a_picture_covers_another(method: str) -> None:
    shapes, height = DRAW.draw(DRAW.SCENES[method])
    rects = [shape for shape in shapes if isinstance(shape, DRAW.Rect)]
    boxes = [extent(rect) for rect in rects if rect.role in ("box", "bar", "key")]
    texts = [extent(shape) for shape in shapes if isinstance(shape, DRAW.Text)]
    for one, other in [*combinations(boxes, 2), *combinations(texts, 2)]:
        assert not overlap(one, other), (one, other)
    for words in texts:
        assert all(
            not overlap(words, box) or (box[0] <= words[0] and words[2] <= box[2] and box[1] <= words[1])
            for box in boxes
        ), words
    for left, top, right, bottom in (*boxes, *texts):
        assert 0 < left < right < DRAW.WIDTH
        assert 0 < top < bottom < height


@pytest.mark.parametrize("method", METHODS)
def test_arrows_pass_through_nothing(method: str) -> None:
    shapes, _ = DRAW.draw(DRAW.SCENES[method])
    solid = [extent(s) for s in shapes if isinstance(s, DRAW.Text) or (isinstance(s, DRAW.Rect) and s.role != "paper")]
    for arrow in (shape for shape in shapes if isinstance(shape, DRAW.Arrow)):
        for (x0, y0), (x1, y1) in pairwise(arrow.points):
            assert x0 == x1 or y0 == y1
            inside = (min(x0, x1) - 0.1, min(y0, y1) - 0.1, max(x0, x1) + 0.1, max(y0, y1) + 0.1)
            for left, top, right, bottom in solid:
                assert not overlap(inside, (left + 0.5, top + 0.5, right - 0.5, bottom - 0.5)), arrow


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_reads_and_remembers_as_the_method_does(method: str) -> None:
    """A method without state has no bar; one with key frames has them; only one that looks ahead reads backwards."""
    scene = DRAW.SCENES[method]
    kind = models.method(method)
    model = kind(kind.Config(), 5).eval()
    with torch.no_grad():
        _, state = model.step(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert bool(scene.memories) == bool(size_of(state))
    keys = [number for number, frame in enumerate(scene.frames) if frame.is_key]
    assert keys == (list(range(0, len(scene.frames), model.period)) if model.period > 1 else [])
    ahead = any(column < memory.column for memory in scene.memories for column, _ in memory.read)
    assert ahead == (kind.segment is not VideoSegmenter.segment)


def test_a_text_too_wide_for_its_box_is_an_error() -> None:
    frame = DRAW.Frame("frame t", {"part": DRAW.Part("a text that is much too long for any of these boxes")})
    with pytest.raises(ValueError, match="shorten it"):
        DRAW.draw(DRAW.Scene("title", (frame,) * 3))
