"""All methods on one recipe: the same data and training, the scores, and the speed; one command a row.

    python benchmarks/compare.py camvid_first sdcpc         train, score and time one row
    python benchmarks/compare.py camvid sdcpc               then the second part of its recipe
    python benchmarks/compare.py camvid sdcpc --seed 1      the same from another seed
    python benchmarks/compare.py camvid_noise --group ablation --iterations 300
    python benchmarks/compare.py camvid_start segformer_b1 fcn --parts train
                                                            what rows on MiT-B1 and ResNet-18 start from
    python benchmarks/compare.py camvid_gpu sdcpc_b1 --device cuda --workers 3
    python benchmarks/compare.py camvid --table             the table of all rows so far

All rows of a recipe have its data, its augmentation and its training: the same number of steps and of
target frames, crops, optimiser groups, and initial backbone. CamVid's recipe has two parts: `camvid_first` is the
config segformer_mit_b0_camvid_first; `camvid`, segformer_mit_b0_camvid, goes on from the first part's run of seed 0 and
adds noise to the frames. `camvid_third` is the second part once more, from the weights in the package, which are the
second part's seed 0. `camvid_noise` is the first part with that noise, and SD-CPC's labels, from its beginning;
`camvid_gpu` is that with 2000 steps of eight clips. On DAVIS only the data differ from the first part. Rows on MiT-B0
start from the weights segformer_mit_b0_camvid_start; those on other backbones from runs of `camvid_start`, which sees
as many frames, in fewer steps: SegFormer-B1, and for ResNet-18 a plain FCN. TFC's clips have four labelled frames,
SD-CPC's three in all recipes with noise, the others' one. Rows that need no training of their own run SegFormer's
weights. DCFM looks ahead, but for the row "online". Scores "alone" take every frame as a video of its own, as the
frames of CamVid's test are a second apart. Speed is that on the first validation video, fp32, frame tensor to labels of
its size.
What comes out is one file a row and seed in results/compare/DATA/ITERATIONS/.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from steadyseg import config
from steadyseg.allocator import keep_freed_memory
from steadyseg.benchmark import Setting, machine
from steadyseg.config import EvalConfig
from steadyseg.data import SourceConfig, open_source
from steadyseg.engine import checkpoint
from steadyseg.engine.evaluate import evaluate
from steadyseg.engine.stream import segment
from steadyseg.engine.train import MODEL, train
from steadyseg.metrics import standard
from steadyseg.models.base import VideoSegmenter

RESULTS = Path(__file__).parent / "results" / "compare"
START, FIRST, SECOND = (f"segformer_mit_b0_camvid{part}" for part in ("_start", "_first", ""))
MACHINE = "machine.json"
"""In a run's folder: what trained it, when, and with which versions."""
METRICS = ("mIoU", "wIoU", "mVC8", "mVC16", "TC")


class Row(NamedTuple):
    """One line of the table."""

    run: str
    """What is trained; rows may share it."""
    method: str | None = None
    """Another method that runs those weights."""
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """What differs when it runs."""


def sdcpc(**model: Any) -> tuple[str, dict[str, Any]]:
    """Return SD-CPC with some of its options changed."""
    return "sdcpc", {"backbone": "mit_b0", **model}


ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "sdcpc_no_dssa": sdcpc(dssa={"stages": []}),
    "sdcpc_no_ssea": sdcpc(ssea={"la": False, "dcn": False}),
    "sdcpc_no_mcp_cl": sdcpc(mcp={"losses": False}),
    "sdcpc_no_stage1": sdcpc(dssa={"stages": [2]}),
    "sdcpc_no_stage2": sdcpc(dssa={"stages": [1]}),
    "sdcpc_k1": sdcpc(mcp={"variates": 1}),
    "sdcpc_n9": sdcpc(dssa={"points": 9}),
    "sdcpc_direct": sdcpc(dssa={"order": "direct"}),
    "sdcpc_stride4": sdcpc(stride=4),
    "sdcpc_target_labels": sdcpc(aux_ref_ce=0.0),
    "sdcpc_no_dssa_target_labels": sdcpc(dssa={"stages": []}, aux_ref_ce=0.0),
}
"""What is trained for the ablation, beside what it is compared with: method and model section."""
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "segformer": ("segformer", {"backbone": "mit_b0"}),
    "sdcpc": sdcpc(),
    "tfc": ("tfc", {"backbone": "mit_b0"}),
    "dcfm": ("dcfm", {"backbone": "mit_b0"}),
    "segformer_b1": ("segformer", {"backbone": "mit_b1"}),
    "sdcpc_b1": sdcpc(backbone="mit_b1"),
    "tfc_b1": ("tfc", {"backbone": "mit_b1"}),
    "dcfm_b1": ("dcfm", {"backbone": "mit_b1"}),
    "fcn": ("pspnet", {"backbone": "resnet18"}),
    "pspnet": ("pspnet", {"backbone": "resnet18_ppm"}),
    "msaf": ("msaf", {"backbone": "resnet18"}),
    **ABLATION,
}
"""All that is trained."""
STARTS = {"mit_b1": "segformer_b1", "resnet18": "fcn"}
"""The run of `camvid_start` whose backbone starts the others, by backbone."""
ROWS = {
    "segformer": Row("segformer"),
    "reuse": Row("segformer", "reuse", {"interval": 4}),
    "flow": Row("segformer", "flow", {"interval": 4}),
    "tfc_untrained": Row("segformer", "tfc", {"interval": 4}),
    "tfc": Row("tfc"),
    "dcfm_k2": Row("dcfm", None, {"interval": 2}),
    "dcfm_k6": Row("dcfm", None, {"interval": 6}),
    "dcfm_k6_online": Row("dcfm", None, {"interval": 6, "neighbours": 1}),
    "sdcpc": Row("sdcpc"),
    "segformer_b1": Row("segformer_b1"),
    "tfc_b1": Row("tfc_b1"),
    "dcfm_b1_k2": Row("dcfm_b1", None, {"interval": 2}),
    "dcfm_b1_k6": Row("dcfm_b1", None, {"interval": 6}),
    "sdcpc_b1": Row("sdcpc_b1"),
    "fcn": Row("fcn"),
    "pspnet": Row("pspnet"),
    "msaf": Row("msaf"),
    **{name: Row(name) for name in ABLATION},
}
OTHERS = [name for name, row in ROWS.items() if RUNS[row.run][1]["backbone"] != "mit_b0"]
GROUPS = {
    "methods": [name for name in ROWS if name not in {*ABLATION, *OTHERS}],
    "others": OTHERS,
    "ablation": ["segformer", "sdcpc", *ABLATION],
    "all": list(ROWS),
}
"""Rows that one command makes; "others" are on other backbones than MiT-B0."""


class Recipe(NamedTuple):
    """How all rows are trained."""

    base: str
    """The config."""
    change: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """What differs from it."""
    after: str | None = None
    """The recipe from whose runs of seed 0, at their full number of steps, the rows go on."""
    weights: str | None = None
    """The weights in the package from which the rows go on; {} stands for the run's name."""
    model: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (never changed)
    """What differs in the model section, by method; a row's own options win."""


OLDER_LABELS = {"sdcpc": {"aux_ref_ce": 0.5}}
RECIPES = {
    "camvid_start": Recipe(START, {"train": {"iterations": 2000, "batch_size": 16, "warmup": 200, "eval_every": 0}}),
    "camvid": Recipe(SECOND, after="camvid_first", model=OLDER_LABELS),
    "camvid_first": Recipe(FIRST),
    "camvid_third": Recipe(SECOND, weights="{}_mit_b0_camvid", model=OLDER_LABELS),
    "camvid_noise": Recipe(FIRST, {"data": {"augment": {"noise": 12.0}}}, model=OLDER_LABELS),
    "camvid_gpu": Recipe(
        FIRST,
        {"data": {"augment": {"noise": 12.0}}, "train": {"iterations": 2000, "batch_size": 8}},
        model=OLDER_LABELS,
    ),
    "davis": Recipe(
        FIRST,
        {
            "data": {
                "train": [{"source": "davis", "split": "train"}],
                "augment": {"base_size": [240, 427], "crop": [192, 320]},
            },
            "eval": {"source": {"source": "davis", "split": "val"}},
        },
    ),
}
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
CAMVID_TEST = SourceConfig(source="camvid", split="test")
UNSEEN = replace(CAMVID_TEST, only="Seq05VD*")
CAMVID = {
    "val": EvalConfig(source=SourceConfig(source="camvid", split="val")),
    "test": EvalConfig(source=CAMVID_TEST),
    "Seq05VD": EvalConfig(source=UNSEEN),
    "test alone": EvalConfig(source=CAMVID_TEST, alone=True),
    "Seq05VD alone": EvalConfig(source=UNSEEN, alone=True),
}
DAVIS = {"val": EvalConfig(source=SourceConfig(source="davis", split="val"))}
SCORED = {data: DAVIS if data == "davis" else CAMVID for data in RECIPES}
"""What is scored, by name; the first is also what speed is measured on."""


def experiment(
    data: str, name: str, *, iterations: int | None, seed: int, runs: Path, **training: Any
) -> config.Experiment:
    """Return what trains `name`; None takes the recipe's number of steps. `runs` holds the runs of all recipes.

    `training` are further options of the train section.
    """
    recipe, (method, model) = RECIPES[data], RUNS[name]
    base = config.to_dict(config.load(recipe.base))
    changed = {section: {**base[section], **values} for section, values in recipe.change.items()}
    if "augment" in recipe.change.get("data", {}):
        changed["data"]["augment"] = {**base["data"]["augment"], **recipe.change["data"]["augment"]}
    wanted = {**base, **changed, "method": method, "model": recipe.model.get(method, {}) | model, "reproduces": ""}
    wanted["train"] = {**wanted["train"], "seed": seed, **training}
    if iterations is not None:
        shorter = iterations / wanted["train"]["iterations"]
        wanted["train"] |= {"iterations": iterations, "warmup": round(shorter * wanted["train"]["warmup"])}
    if recipe.weights is not None:
        wanted["train"]["init"] = recipe.weights.format(name)
    elif recipe.after is not None:
        wanted["train"]["init"] = str(runs / recipe.after / str(steps(recipe.after)) / f"{name}_0")
    elif wanted["train"]["init"] is not None and (start := STARTS.get(model["backbone"].removesuffix("_ppm"))):
        wanted["train"]["init"] = str(runs / "camvid_start" / str(steps("camvid_start")) / f"{start}_0")
    return config.from_dict(wanted)


def steps(data: str) -> int:
    """Return the number of steps of a recipe."""
    recipe = RECIPES[data]
    changed: int | None = recipe.change.get("train", {}).get("iterations")
    return changed or config.load(recipe.base).train.iterations


def start_of(wanted: config.Experiment, runs: Path) -> str | None:
    """Say what an experiment starts from that is not there, and what makes it; None if all is there."""
    init, weights = wanted.train.init, checkpoint.names()
    if init is None or init in weights or (Path(init) / MODEL).is_file():
        return None
    if not Path(init).is_relative_to(runs):
        return f"no weights {init} in the package; there are {', '.join(weights)}"
    recipe, _, name = Path(init).parts[-3:]
    return f"{init} is not there; first run: python benchmarks/compare.py {recipe} {name[:-2]} --parts train"


def speed(model: VideoSegmenter, source: Any, frames: int) -> dict[str, float]:
    """Return milliseconds and frames per second over real frames, after a few that are not timed.

    As in the scores, a method that looks ahead does so.
    """
    video = list(islice(source.read(source.names[0]), frames))
    video = video[: len(video) // model.period * model.period]
    for _ in segment(model, video[: 2 * model.period + 6]):
        pass
    begin = time.perf_counter()
    count = sum(1 for _ in segment(model, video))
    spent = (time.perf_counter() - begin) / count
    return {"ms": 1e3 * spent, "fps": 1 / spent}


def scores(model: VideoSegmenter, how: EvalConfig) -> dict[str, Any]:
    """Return the scores of one split, how and on which GPU, if any, each was taken, and the IoU of every class."""
    source = open_source(how.source)
    metrics = standard(source)
    found = evaluate(model, source, metrics, config=how)
    each = dict(zip(source.classes, metrics[0].per_class().tolist(), strict=True))  # type: ignore[attr-defined]
    gpu = torch.cuda.get_device_name() if model.class_weights.is_cuda else None
    return {**found, "protocols": [metric.protocol for metric in metrics], "gpu": gpu, "IoU": each}


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Do the asked parts for one row and seed, and put what they give into its file."""
    row, parts, data, device = ROWS[name], arguments.parts.split(","), arguments.data, arguments.device
    run = folder_of(name, arguments)
    if "train" in parts and not (run / MODEL).is_file():
        train(wanted_of(name, arguments), run, resume=run.is_dir())
        known = {key: value for key, value in machine(Setting(device=device)).items() if key != "setting"}
        (run / MACHINE).write_text(json.dumps(known, indent=2) + "\n")
    if not {"score", "speed"} & set(parts):
        return
    model = checkpoint.load_model(run, device, method=row.method, options=row.options)
    path = RESULTS / data / run.parent.name / f"{name}_{arguments.seed}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    found |= {"row": name, "seed": arguments.seed, "trained": row.run, "method": row.method, "options": row.options}
    if "score" in parts:
        splits = arguments.splits.split(",") if arguments.splits else SCORED[data]
        new = {split: scores(model, SCORED[data][split]) for split in splits}
        found["scores"] = found.get("scores", {}) | new
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        found["trained_on"] = json.loads((run / MACHINE).read_text()) if (run / MACHINE).is_file() else None
    if "speed" in parts:
        source = open_source(next(iter(SCORED[data].values())).source)
        found["speed"] = speed(model, source, arguments.frames)
        size = tuple(next(source.read(source.names[0], [0])).image.shape[1:])
        setting = replace(Setting(), size=size, classes=len(source.classes), frames=arguments.frames, device=device)
        found["machine"] = machine(setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def wanted_of(name: str, arguments: argparse.Namespace) -> config.Experiment:
    """Return what trains a row, as the command line says."""
    where = {"accelerator": ACCELERATORS[arguments.device], "workers": arguments.workers}
    run, iterations, seed = ROWS[name].run, arguments.iterations, arguments.seed
    return experiment(arguments.data, run, iterations=iterations, seed=seed, runs=arguments.runs, **where)


def folder_of(name: str, arguments: argparse.Namespace) -> Path:
    """Return the folder of a row's run."""
    iterations = arguments.iterations or steps(arguments.data)
    return Path(arguments.runs, arguments.data, str(iterations), f"{ROWS[name].run}_{arguments.seed}")


def table(data: str, iterations: int, names: list[str]) -> str:
    """Return the rows so far as Markdown; of several seeds the mean, and half the distance of the extremes.

    What no row has, scores of a split or the speed, is left out.
    """
    rows = {name: _entries(data, iterations, name) for name in names}
    every = [entry for entries in rows.values() for entry in entries]
    columns = [
        (split, metric)
        for split in SCORED[data]
        for metric in (METRICS if split == "val" else METRICS[:1])
        if any(split in entry["scores"] for entry in every)
    ]
    is_timed = any("speed" in entry for entry in every)
    heads = ["row", "seeds", *(metric if split == "val" else f"{split} {metric}" for split, metric in columns)]
    heads += ["ms", "FPS"] if is_timed else []
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, entries in rows.items():
        if not entries:
            continue
        cells = [
            _cell([100 * entry["scores"][split][metric] for entry in entries if split in entry["scores"]])
            for split, metric in columns
        ]
        fast = [entry["speed"]["ms"] for entry in entries if "speed" in entry]
        times = [f"{mean(fast):.0f}", f"{1e3 / mean(fast):.1f}"] if fast else ["", ""]
        lines.append(
            f"| {' | '.join([_title(name, entries), str(len(entries)), *cells, *(times if is_timed else [])])} |"
        )
    return "\n".join(lines)


def _entries(data: str, iterations: int, name: str) -> list[dict[str, Any]]:
    """Return what is known of a row that has been scored, by seed."""
    files = sorted((RESULTS / data / str(iterations)).glob(f"{name}_[0-9]*.json"))
    found = [json.loads(file.read_text()) for file in files]
    return [entry for entry in found if "scores" in entry]


def _title(name: str, entries: list[dict[str, Any]]) -> str:
    """Return a row's name, and the GPUs that trained it; where some of its seeds were trained on a CPU, how many."""
    cards = [entry["trained_on"]["machine"]["gpu"] for entry in entries if entry.get("trained_on")]
    cards = [card for card in cards if card]
    if not cards:
        return name
    share = "" if len(cards) == len(entries) else f"{len(cards)} of {len(entries)} on "
    return f"{name} ({share}{', '.join(sorted(set(cards)))})"


def _cell(values: list[float]) -> str:
    """Return mean and spread; nothing where a row has not been scored so."""
    if not values:
        return ""
    spread = f" ±{(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=RECIPES, help="the recipe, named after its data")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="rows of the table; none for all of the group")
    parser.add_argument("--group", choices=GROUPS, default="methods")
    parser.add_argument("--parts", default="train,score,speed", help="any of train, score, speed, with commas")
    parser.add_argument("--splits", help="what is scored, such as 'val,test alone'; all of the data set if not given")
    parser.add_argument("--iterations", type=int, help="steps of each training; the recipe's if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=60, help="timed frames")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--device", choices=ACCELERATORS, default="cpu", help="what trains, scores and is timed")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare clips")
    parser.add_argument("--table", action="store_true", help="only show the table")
    arguments = parser.parse_args()
    names = arguments.rows or GROUPS[arguments.group]
    if unknown := set(filter(None, (arguments.splits or "").split(","))) - SCORED[arguments.data].keys():
        parser.error(f"--splits has {sorted(unknown)}; expected some of {', '.join(SCORED[arguments.data])}")
    if not arguments.table:
        new = [name for name in names if not (folder_of(name, arguments) / MODEL).is_file()]
        new = new if "train" in arguments.parts.split(",") else []
        if missing := list(filter(None, (start_of(wanted_of(name, arguments), arguments.runs) for name in new))):
            parser.error(missing[0])
        for name in names:
            measure(name, arguments)
    iterations = arguments.iterations or steps(arguments.data)
    print(table(arguments.data, iterations, names))  # noqa: T201


if __name__ == "__main__":
    keep_freed_memory()
    torch.manual_seed(0)
    main()
