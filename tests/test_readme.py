"""Runs what the README shows, in its order and in one folder, on a tiny video and tiny data; checks the recipes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steadyseg import benchmark, cli, config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SIZE = (64, 96)

QUICK = {
    "train": [
        *("train.iterations=2", "train.batch_size=1", "train.warmup=0", "train.workers=0", "train.precision=32-true"),
        *("data.augment.base_size=[64,96]", "data.augment.crop=[64,64]", "data.cache_mb=0", "train.class_weights=none"),
    ],
    "benchmark": ["--size", "64x96", "--classes", "5", "--frames", "2", "--warmup", "1"],
    "export": ["--size", "64x96"],
}
"""What is added to a command so that it takes a moment."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def needs_camvid(line: str) -> bool:
    words = shlex.split(line)
    if words[1] == "train" and words[2] in config.names():
        return any(source.source == "camvid" for source in config.load(words[2]).data.train)
    return "--data" in words and words[words.index("--data") + 1] == "camvid"


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
OURS = [line for line in COMMANDS if line.startswith("steadyseg ")]
ON_CAMVID = [line for line in OURS if needs_camvid(line)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes for granted: a video, data of one's own, the files it spells out."""
    folder = tmp_path_factory.mktemp("readme")
    words = ["data", "render", str(folder / "my_video.mp4"), "--size", "64x96", "--length", "4"]
    assert cli.main(words) == 0
    for block in blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(block, encoding="utf-8")
    rng = np.random.default_rng(0)
    for part, (name, depth) in {"images": ("3.jpg", (3,)), "masks": ("3.png", ())}.items():
        (folder / "my_data" / part / "one").mkdir(parents=True)
        picture = rng.integers(0, 3, (*SIZE, *depth), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "my_data" / part / "one" / name)
    (folder / "my_data" / "splits").mkdir()
    for split in ("train", "val"):
        (folder / "my_data" / "splits" / f"{split}.txt").write_text("one\n")
    transformers = pytest.importorskip("transformers")
    labels = {number: f"thing {number}" for number in range(150)}
    own = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(id2label=labels))
    own.save_pretrained(folder / "my_segformer")
    return folder


@pytest.fixture(scope="module")
def few_of_camvid(place: Path) -> Path:
    """A data root with the first and last frames of each split of the real CamVid."""
    whole = Path(os.environ["STEADYSEG_DATA"]) / "camvid"
    for split in ("train", "val", "test"):
        listed = (whole / "splits" / f"{split}.txt").read_text().split()
        names = listed[:3] + listed[-3:]
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            target = place / "data" / "camvid" / kind / split
            target.mkdir(parents=True)
            for name in names:
                shutil.copy(whole / kind / split / f"{name}.{suffix}", target)
        (place / "data" / "camvid" / "splits").mkdir(exist_ok=True)
        (place / "data" / "camvid" / "splits" / f"{split}.txt").write_text("\n".join(names))
    return place / "data"


def test_the_readme_shows_commands() -> None:
    shown = {line.split()[1] for line in OURS}
    assert shown == {name.split()[0] for name in cli.COMMANDS}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in OURS])
def test_commands_of_other_programs(line: str) -> None:
    """Not run here, as they install things and take long; what they name must be there."""
    program, *words = shlex.split(line)
    if program == "make":
        assert subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, check=False).returncode == 0
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "pip"
        assert (ROOT / words[words.index("-c") + 1]).is_file()
        assert words[-1] == ".[hf]"


@pytest.mark.xdist_group("readme")
def test_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the text, as later commands use what earlier ones wrote."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(benchmark, "apart", lambda function, name, setting: function(name, setting))
    for line in OURS:
        if line not in ON_CAMVID:
            run(line)


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("line", ON_CAMVID)
def test_commands_on_camvid(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if "STEADYSEG_DATA" not in os.environ:
        pytest.skip("STEADYSEG_DATA is not set: no CamVid here")
    monkeypatch.setenv("STEADYSEG_DATA", str(request.getfixturevalue("few_of_camvid")))
    monkeypatch.chdir(place)
    run(line)


def run(line: str) -> None:
    _, *words = shlex.split(line)
    assert cli.main([*words, *QUICK.get(words[0], [])]) == 0, line


def test_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 5
    names: dict[str, object] = {}
    exec(code, names)
    assert tuple(names["preds"].shape) == SIZE  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links(path: str) -> None:
    file, _, anchor = path.partition("#")
    assert (ROOT / file).exists()
    headings = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
    assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("recipe", blocks("diff", CONTRIBUTING), ids=["method", "data set", "metric"])
def test_recipes_apply(recipe: str) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    command = ["git", "apply", "--check"]
    done = subprocess.run(command, cwd=ROOT, input=recipe, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
