"""HRNet: against its definition on published keys, its layout, its sizes, and published weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones import build_backbone
from steadyseg.backbones.hrnet import WIDTHS, HRNet, from_hrnet
from steadyseg.layers import plain_forms
from steadyseg.types import CheckpointError, ConfigError, ShapeError

State = dict[str, Tensor]
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def step_keys(conv: str, norm: str, shape: tuple[int, int, int]) -> Shapes:
    """Keys and shapes of a convolution of (outputs, inputs, side of the kernel), and of its norm."""
    out, into, kernel = shape
    yield f"{conv}.weight", (out, into, kernel, kernel)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{tensor}", (out,)
    yield f"{norm}.num_batches_tracked", ()


def branch_keys(name: str, width: int) -> Shapes:
    for block in range(4):
        for number in (1, 2):
            yield from step_keys(f"{name}.{block}.conv{number}", f"{name}.{block}.bn{number}", (width, width, 3))


def fuse_keys(name: str, widths: list[int]) -> Shapes:
    for to in range(len(widths)):
        for origin in range(len(widths)):
            path = f"{name}.{to}.{origin}"
            if origin > to:
                yield from step_keys(f"{path}.0", f"{path}.1", (widths[to], widths[origin], 1))
            for number in range(to - origin):
                last = number == to - origin - 1
                shape = (widths[to] if last else widths[origin], widths[origin], 3)
                yield from step_keys(f"{path}.{number}.0", f"{path}.{number}.1", shape)


def all_keys(width: int) -> Shapes:
    """What is in the authors' files below the head, written down from the architecture."""
    yield from step_keys("conv1", "bn1", (64, 3, 3))
    yield from step_keys("conv2", "bn2", (64, 64, 3))
    for block in range(4):
        name = f"layer1.{block}"
        for number, shape in enumerate(((64, 256 if block else 64, 1), (64, 64, 3), (256, 64, 1)), start=1):
            yield from step_keys(f"{name}.conv{number}", f"{name}.bn{number}", shape)
        if block == 0:
            yield from step_keys(f"{name}.downsample.0", f"{name}.downsample.1", (256, 64, 1))
    widths = [width, 2 * width, 4 * width, 8 * width]
    yield from step_keys("transition1.0.0", "transition1.0.1", (width, 256, 3))
    yield from step_keys("transition1.1.0.0", "transition1.1.0.1", (2 * width, 256, 3))
    yield from step_keys("transition2.2.0.0", "transition2.2.0.1", (4 * width, 2 * width, 3))
    yield from step_keys("transition3.3.0.0", "transition3.3.0.1", (8 * width, 4 * width, 3))
    for stage, count in ((2, 1), (3, 4), (4, 3)):
        for number in range(count):
            for branch in range(stage):
                yield from branch_keys(f"stage{stage}.{number}.branches.{branch}", widths[branch])
            yield from fuse_keys(f"stage{stage}.{number}.fuse_layers", widths[:stage])


def published(width: int) -> State:
    """An ImageNet file's body; tensors have no values."""
    return {key: torch.empty(shape, device="meta") for key, shape in all_keys(width)}


def live(variant: str = "hrnet_w18") -> HRNet:
    """A network whose maps neither vanish nor explode, in evaluation mode."""
    model = HRNet(variant).eval()
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-0.3, 0.6, generator=generator)
            module.bias.data.uniform_(-0.2, 0.3, generator=generator)
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


# ---- the network -------------------------------------------------------------------------------------------------


def reference(state: State, x: Tensor, *, training: bool) -> tuple[Tensor, list[Tensor]]:
    """The network by its definition, on a state dict with published keys: the first stage, and the four last maps."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    def path(x: Tensor, name: str, origin: int, to: int, size: torch.Size) -> Tensor:
        if origin > to:
            return F.interpolate(step(x, f"{name}.0", f"{name}.1"), size=size, mode="bilinear", align_corners=False)
        for number in range(to - origin):
            x = step(x, f"{name}.{number}.0", f"{name}.{number}.1", 2)
            x = x if number == to - origin - 1 else x.relu()
        return x

    x = step(x, "conv1", "bn1", 2).relu()
    x = step(x, "conv2", "bn2", 2).relu()
    for block in range(4):
        name = f"layer1.{block}"
        out = step(step(x, f"{name}.conv1", f"{name}.bn1").relu(), f"{name}.conv2", f"{name}.bn2").relu()
        shortcut = step(x, f"{name}.downsample.0", f"{name}.downsample.1") if block == 0 else x
        x = (step(out, f"{name}.conv3", f"{name}.bn3") + shortcut).relu()
    first = x
    maps = [step(x, "transition1.0.0", "transition1.0.1").relu()]
    maps.append(step(x, "transition1.1.0.0", "transition1.1.0.1", 2).relu())
    for stage, count in ((2, 1), (3, 4), (4, 3)):
        if stage > 2:
            name = f"transition{stage - 1}.{stage - 1}.0"
            maps.append(step(maps[-1], f"{name}.0", f"{name}.1", 2).relu())
        for number in range(count):
            for branch in range(stage):
                for block in range(4):
                    name = f"stage{stage}.{number}.branches.{branch}.{block}"
                    out = step(maps[branch], f"{name}.conv1", f"{name}.bn1").relu()
                    maps[branch] = (step(out, f"{name}.conv2", f"{name}.bn2") + maps[branch]).relu()
            name = f"stage{stage}.{number}.fuse_layers"
            maps = [
                sum(path(maps[o], f"{name}.{to}.{o}", o, to, maps[to].shape[2:]) for o in range(stage)).relu()
                for to in range(stage)
            ]
    return first, maps


@pytest.mark.parametrize("training", [False, True])
def test_equals_its_definition(training: bool) -> None:
    dtype = torch.float64 if training else torch.float32  # the statistics of a small batch amplify rounding
    model = live().train(training).to(dtype)
    image = torch.randn(2, 3, 49, 71, dtype=dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        stages = model(image)
        first, maps = reference(state, image, training=training)
        resized = [F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False) for x in maps]
    assert [tuple(x.shape[2:]) for x in maps] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    assert 0.01 < maps[0].std() < 100
    expected = {"stage1": first, "stage2": resized[0], "stage3": maps[1], "stage4": torch.cat(resized, dim=1)}
    for stage, x in expected.items():
        torch.testing.assert_close(stages[stage], x, rtol=1e-4, atol=1e-5)


def test_units() -> None:
    with torch.device("meta"):
        names = [name for name, _ in HRNet("hrnet_w48").units()]
    modules = ["stage2.block1", *(f"stage3.block{n}" for n in (1, 2, 3, 4)), *(f"stage4.block{n}" for n in (1, 2, 3))]
    assert names == ["stem", "stage1.block1", "stage1.block2", "stage1.block3", "stage1", *modules, "stage4"]


def test_cuts_between_branches_need_all_maps() -> None:
    """`forward` shows one map for a unit that passes on several; going on from that map is an error, not a guess."""
    model = live()
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        shown = model(image, stop="stage3.block2")
        assert shown["stage3.block2"].shape == (1, 18 + 36 + 72, 4, 6)
        for unit in ("stage2.block1", "stage3.block2", "stage4.block3"):
            with pytest.raises(ShapeError, match="expected one a branch"):
                model(shown["stage3.block2"], start=unit)
    for cut in ("stage2", "stage3"):
        with pytest.raises(ConfigError, match=f"up to '{cut}'; 'hrnet_w18' has no such unit"):
            build_backbone("hrnet_w18", cuts=("shallow", cut))


def test_merged_norms_agree_with_the_literal_form() -> None:
    model = live()
    image = torch.randn(1, 3, 41, 55)
    with torch.inference_mode():
        stages = model(image)
        with plain_forms():
            for stage, expected in model(image).items():
                torch.testing.assert_close(stages[stage], expected, rtol=1e-4, atol=1e-5)
    for stage, x in model(image).items():  # with gradients, nothing is kept
        torch.testing.assert_close(x.detach(), stages[stage].clone(), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns() -> None:
    model = HRNet("hrnet_w18").train()
    sum(x.square().mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


# ---- published sizes and weights ---------------------------------------------------------------------------------


def classifier(width: int) -> int:
    """Parameters of the ImageNet head: a bottleneck a branch to 128..1024 channels, three steps down, 2048, 1000."""
    count = 0
    for branch, inside in enumerate((32, 64, 128, 256)):
        into, out = width * 2**branch, 4 * inside
        count += into * inside + 9 * inside**2 + inside * out + into * out + 2 * (inside + inside + out + out)
    for into, out in ((128, 256), (256, 512), (512, 1024)):
        count += 9 * into * out + out + 2 * out
    return count + 1024 * 2048 + 2048 + 2 * 2048 + 2048 * 1000 + 1000


@pytest.mark.parametrize(("name", "count"), [("hrnet_w18", 21_299_004), ("hrnet_w48", 77_469_864)])
def test_parameter_counts(name: str, count: int) -> None:
    """The published ImageNet networks, 21.3 M and 77.5 M, less their head."""
    with torch.device("meta"):
        model = HRNet(name)
    assert sum(p.numel() for p in model.parameters()) + classifier(WIDTHS[name]) == count


def test_parameter_count_of_the_segmentation_network() -> None:
    """HRNetV2-W48 on Cityscapes: 65.86 M with its head, a 1x1 convolution, a norm and a classifier on 720 channels."""
    with torch.device("meta"):
        model = HRNet("hrnet_w48")
    head = 720 * 720 + 720 + 2 * 720 + 720 * 19 + 19
    assert (sum(p.numel() for p in model.parameters()) + head) / 1e6 == pytest.approx(65.86, abs=0.005)


@pytest.mark.parametrize("name", WIDTHS)
def test_published_weights_fit(name: str) -> None:
    """Files for ImageNet, for segmentation and with object contexts, from data-parallel training or not."""
    body = published(WIDTHS[name])
    imagenet = ("incre_modules.0.0.conv1.weight", "downsamp_modules.0.0.bias", "final_layer.1.running_var")
    contexts = ("aux_head.0.weight", "conv3x3_ocr.1.bias", "ocr_gather_head.x", "ocr_distri_head.y.1", "cls_head.bias")
    files = {"": (*imagenet, "classifier.weight"), "module.": ("last_layer.0.weight",), "model.": contexts}
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in HRNet(name).state_dict().items()}
    for prefix, heads in files.items():
        file = {prefix + key: value for key, value in body.items()}
        file |= {prefix + key: torch.zeros(1) for key in heads} | {"loss.criterion.weight": torch.zeros(19)}
        assert {key: value.shape for key, value in from_hrnet(file).items()} == wanted
    old = {key: value for key, value in body.items() if not key.endswith("num_batches_tracked")}
    assert from_hrnet(old).keys() == wanted.keys()


def test_weights_that_do_not_fit() -> None:
    body = published(18)
    with pytest.raises(CheckpointError, match=r"an hrnet_w18: 1 unknown \(mystery\.weight\)"):
        from_hrnet(body | {"mystery.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 missing \(stage4\.2\.fuse_layers\.3\.0\.2\.0\.weight\)"):
        from_hrnet({key: value for key, value in body.items() if key != "stage4.2.fuse_layers.3.0.2.0.weight"})
    with pytest.raises(CheckpointError, match=r"missing \(stage3\.2\..*, \.\.\.\)"):
        from_hrnet({key: value for key, value in body.items() if not key.startswith(("stage3.2.", "stage3.3."))})
    with pytest.raises(CheckpointError, match="width 32; expected hrnet_w18 or hrnet_w48"):
        from_hrnet(published(32))
    with pytest.raises(CheckpointError, match=r"no key transition1\.0\.0\.weight"):
        from_hrnet({"conv1.weight": torch.zeros(1)})
