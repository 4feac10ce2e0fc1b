"""Time the exact fast label path against plain interpolation and arg-max, in turn, on the same logits.

    python benchmarks/labels.py                                   logits drawn around real CamVid labels
    python benchmarks/labels.py --weights sdcpc_mit_b0_camvid     logits of a trained model on CamVid frames

The data set is found in $STEADYSEG_DATA/camvid. Prints a table and writes benchmarks/results/labels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from steadyseg.engine.checkpoint import load_model
from steadyseg.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference

LOW_SIZES = ((60, 107), (120, 214))


def main() -> None:
    """Run the benchmark of the command line."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    frames = camvid_frames(options.frames)
    rows = []
    for low in LOW_SIZES:
        sets = {
            **{f"{source}, {low[0]}x{low[1]}": logits for source, logits in smooth_logits(frames, low, options)},
            f"Gaussian noise, {low[0]}x{low[1]}": [torch.randn(1, options.classes, *low)],
        }
        rows += [{"logits": name, **compare(logits, options)} for name, logits in sets.items()]
    report(rows, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a trained model; without it, logits are drawn around the labels")
    parser.add_argument("--classes", type=int, default=124)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 853), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=4, help="CamVid test frames, spread over the split")
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs on every frame")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labels.json")
    options = parser.parse_args()
    if not (Path(os.environ.get("STEADYSEG_DATA", "")) / "camvid" / "images" / "test").is_dir():
        parser.error("found no CamVid; set STEADYSEG_DATA to the folder that holds camvid/images/test")
    if min(options.frames, options.repeats) < 1 or options.frames * options.repeats < 2:
        parser.error("expected at least one frame and two timed pairs in all")
    return options


def camvid_frames(count: int) -> list[tuple[Tensor, Tensor]]:
    """Return `count` test frames of CamVid: image uint8 [3, H, W] and labels uint8 [H, W]."""
    root = Path(os.environ["STEADYSEG_DATA"]) / "camvid"
    files = sorted((root / "images" / "test").glob("*.jpg"))
    frames = []
    for path in files[:: len(files) // count][:count]:
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)  # [3, H, W]
        labels = torch.from_numpy(np.array(Image.open(root / "labels" / "test" / f"{path.stem}.png")))  # [H, W]
        frames.append((image, labels))
    return frames


def smooth_logits(
    frames: list[tuple[Tensor, Tensor]], low: tuple[int, int], options: argparse.Namespace
) -> list[tuple[str, list[Tensor]]]:
    """Return named lists of logits float32 [1, K, h, w], one for each frame."""
    if options.weights is None:
        drawn = [drawn_logits(labels, low, options.classes) for _, labels in frames]
        return [("drawn around real labels", drawn)]
    model = load_model(options.weights)
    real = [model_logits(model, image, low, tuple(options.size)) for image, _ in frames]
    extended = [extend(logits, options.classes) for logits in real]
    name = Path(options.weights).name
    return [(f"{name}, {real[0].shape[1]} classes", real), (f"{name}, extended to {options.classes} classes", extended)]


def drawn_logits(labels: Tensor, low: tuple[int, int], classes: int) -> Tensor:
    """Draw logits whose arg-max follows real labels: a blurred one-hot map, slow noise a class, and fine noise.

    The true class leads by 9 inside a region; the noise has a standard deviation of 1 at an eighth of the
    resolution and of 0.2 between neighbours.
    """
    present = F.one_hot(labels.long().clamp(max=classes - 1), classes).permute(2, 0, 1)[None].float()  # [1, K, H, W]
    shape = F.interpolate(present, size=low, mode="bilinear", antialias=True)  # [1, K, h, w]
    shape = F.avg_pool2d(F.pad(shape, (1, 1, 1, 1), mode="replicate"), 3, stride=1)  # [1, K, h, w]
    coarse = torch.randn(1, classes, low[0] // 8, low[1] // 8)
    slow = F.interpolate(coarse, size=low, mode="bicubic")  # [1, K, h, w]
    return (9 * shape + slow + 0.2 * torch.randn(1, classes, *low)).contiguous()


@torch.inference_mode()
def model_logits(model: torch.nn.Module, image: Tensor, low: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return a model's logits float32 [1, K, h, w] for a frame resized to `size`, at the decoder's size or averaged."""
    frame = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)  # [1, 3, H, W]
    logits, _ = model.step(frame.round().clamp(0, 255).to(torch.uint8))  # type: ignore[operator]
    return logits if logits.shape[2:] == low else F.interpolate(logits, size=low, mode="bilinear", antialias=True)


def extend(logits: Tensor, classes: int) -> Tensor:
    """Fill up to `classes` channels with the given ones lowered by 2 to 6 and slow noise: rivals that seldom win."""
    extra = torch.arange(classes - logits.shape[1]) % logits.shape[1]
    coarse = torch.randn(1, len(extra), logits.shape[2] // 8, logits.shape[3] // 8)
    slow = F.interpolate(coarse, size=logits.shape[2:], mode="bicubic")  # [1, K', h, w]
    lowered = logits[:, extra] - 2 - 4 * torch.rand(1, len(extra), 1, 1) + slow
    return torch.cat([logits, lowered], 1).contiguous()


def compare(logits: list[Tensor], options: argparse.Namespace) -> dict[str, float | int | bool]:
    """Time both ways in turn, each first in every other pair; milliseconds."""
    size = (options.size[0], options.size[1])
    ways = {"plain": upsample_argmax_reference, "fast": upsample_argmax}
    times: dict[str, list[float]] = {name: [] for name in ways}
    equal = True
    for one in logits:
        equal &= torch.equal(*(way(one, size) for way in ways.values()))  # also warms up
        for repeat in range(options.repeats):
            for name in sorted(ways, reverse=bool(repeat % 2)):
                times[name].append(clock(ways[name], one, size))
    result: dict[str, float | int | bool] = {"classes": logits[0].shape[1], "equal": equal}
    for name, values in times.items():
        result |= {f"{name}_median_ms": median(values), f"{name}_p95_ms": quantiles(values, n=20)[-1]}
    return result | {"ratio": median(p / f for p, f in zip(times["plain"], times["fast"], strict=True))}


def clock(way: Callable[[Tensor, tuple[int, int]], Tensor], logits: Tensor, size: tuple[int, int]) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    way(logits, size)
    return 1e3 * (time.perf_counter() - start)


def report(rows: list[dict], options: argparse.Namespace) -> None:
    """Print the table and write the JSON file."""
    table = Table(title=f"logits to {options.size[0]}x{options.size[1]} labels, CPU, {options.threads} threads")
    for head in ("logits", "classes", "plain ms (p95)", "fast ms (p95)", "plain / fast", "equal"):
        table.add_column(head, justify="left" if head == "logits" else "right")
    for row in rows:
        times = [f"{row[f'{way}_median_ms']:.1f} ({row[f'{way}_p95_ms']:.1f})" for way in ("plain", "fast")]
        table.add_row(row["logits"], str(row["classes"]), *times, f"{row['ratio']:.1f}", str(row["equal"]))
    Console(width=120).print(table)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"date": date, "machine": machine, "torch": torch.__version__, "settings": settings, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def cpu_model() -> str:
    """Return the processor's name, such as "AMD EPYC"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
