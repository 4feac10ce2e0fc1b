"""ResNet: against transformers, against its definition on published keys, its sizes, and published weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones.resnet import (
    VARIANTS,
    PyramidPooling,
    ResNet,
    from_deep_stem,
    from_huggingface,
    from_torchvision,
)
from steadyseg.layers import plain_forms
from steadyseg.types import CheckpointError, ConfigError, ShapeError

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
State = dict[str, Tensor]


def norm_keys(name: str, width: int, *, counters: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{tensor}", (width,)
    if counters:
        yield f"{name}.num_batches_tracked", ()


def published(name: str, *, counters: bool = True) -> State:
    """The keys and shapes of an ImageNet file, written down from the architecture; tensors have no values."""
    plain = name.removesuffix("s")
    shapes: dict[str, tuple[int, ...]] = {}
    stem = [(1, 3, 64, 3), (2, 64, 64, 3), (3, 64, 128, 3)] if name.endswith("s") else [(1, 3, 64, 7)]
    for number, before, width, kernel in stem:
        shapes[f"conv{number}.weight"] = (width, before, kernel, kernel)
        shapes.update(norm_keys(f"bn{number}", width, counters=counters))
    before = stem[-1][2]
    for layer, depth in enumerate(DEPTHS[plain], start=1):
        inside = 32 * 2**layer
        width = inside if plain == "resnet18" else 4 * inside
        for block in range(depth):
            if plain == "resnet18":
                convs = [(width, before, 3), (width, width, 3)]
            else:
                convs = [(inside, before, 1), (inside, inside, 3), (width, inside, 1)]
            for number, (out, into, kernel) in enumerate(convs, start=1):
                shapes[f"layer{layer}.{block}.conv{number}.weight"] = (out, into, kernel, kernel)
                shapes.update(norm_keys(f"layer{layer}.{block}.bn{number}", out, counters=counters))
            if block == 0 and (layer > 1 or before != width):
                shapes[f"layer{layer}.0.downsample.0.weight"] = (width, before, 1, 1)
                shapes.update(norm_keys(f"layer{layer}.0.downsample.1", width, counters=counters))
            before = width
    shapes |= {"fc.weight": (1000, before), "fc.bias": (1000,)}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def randomise(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics, gains and shifts of their own."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, -0.2, 1.0),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model


# ---- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_transformers(name: str, training: bool) -> None:
    """The same weights, statistics and image give the same stages."""
    transformers = pytest.importorskip("transformers")
    is_basic = name == "resnet18"
    widths = [64 * 2**stage * (1 if is_basic else 4) for stage in range(4)]
    config = transformers.ResNetConfig(
        depths=list(DEPTHS[name]), hidden_sizes=widths, layer_type="basic" if is_basic else "bottleneck"
    )
    theirs = randomise(transformers.ResNetForImageClassification(config)).train(training)
    ours = ResNet(name, output_stride=32)
    ours.load_state_dict(from_huggingface(theirs.state_dict()))
    ours.train(training)
    if training:  # the statistics of a small batch amplify rounding
        theirs, ours = theirs.double(), ours.double()
    assert ours.strides == (4, 8, 16, 32) and ours.channels == tuple(widths)
    image = torch.randn(2, 3, 65, 97, dtype=ours.conv1.weight.dtype)
    with torch.inference_mode():
        _, *expected = theirs(image, output_hidden_states=True).hidden_states
        stages = ours(image)
    for stage, x in zip(stages.values(), expected, strict=True):
        torch.testing.assert_close(stage, x, rtol=1e-5, atol=1e-5)


def reference(state: State, x: Tensor, output_stride: int, *, training: bool = False) -> dict[str, Tensor]:
    """The network by its definition, on a state dict with published keys; training uses the batch's statistics."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2 * dilation, dilation=dilation)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = step(x, "conv1", "bn1", 2).relu()
    if "conv3.weight" in state:
        x = step(step(x, "conv2", "bn2").relu(), "conv3", "bn3").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    stages = {}
    stride, dilation = 4, 1
    for layer in (1, 2, 3, 4):
        shrink = 2 if layer > 1 else 1
        if stride * shrink > output_stride:
            shrink, dilation = 1, 2 * dilation
        stride *= shrink
        block = 0
        while (name := f"layer{layer}.{block}") + ".conv1.weight" in state:
            first = shrink if block == 0 else 1
            if f"{name}.conv3.weight" in state:
                inside = step(x, f"{name}.conv1", f"{name}.bn1").relu()
                inside = step(inside, f"{name}.conv2", f"{name}.bn2", first, dilation).relu()
                out = step(inside, f"{name}.conv3", f"{name}.bn3")
            else:
                inside = step(x, f"{name}.conv1", f"{name}.bn1", first).relu()
                out = step(inside, f"{name}.conv2", f"{name}.bn2", 1, dilation)
            if f"{name}.downsample.0.weight" in state:
                x = step(x, f"{name}.downsample.0", f"{name}.downsample.1", first)
            x = (out + x).relu()
            block += 1
        stages[f"stage{layer}"] = x
    if "ppm.features.0.1.weight" in state:
        levels = [x]
        for level, cells in enumerate((1, 2, 3, 6)):
            small = step(average(x, cells), f"ppm.features.{level}.1", f"ppm.features.{level}.2").relu()
            levels.append(enlarge(small, (x.shape[2], x.shape[3])))
        stages["stage4"] = torch.cat(levels, dim=1)
    return stages


def average(x: Tensor, cells: int) -> Tensor:
    """Mean over cells x cells windows; window i of n over h pixels goes from floor(i h / n) to ceil((i + 1) h / n)."""
    window = lambda i, side: slice(i * side // cells, -(-(i + 1) * side // cells))  # noqa: E731
    rows = [
        torch.stack([x[:, :, window(i, x.shape[2]), window(j, x.shape[3])].mean((2, 3)) for j in range(cells)], dim=2)
        for i in range(cells)
    ]
    return torch.stack(rows, dim=2)  # [B, C, cells, cells]


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation that puts the corner pixels' centres on each other, as two matrices of weights."""

    def weights(small: int, large: int) -> Tensor:
        place = torch.arange(large, dtype=torch.float64) * (small - 1) / max(large - 1, 1)  # [large]
        return (1 - (place[:, None] - torch.arange(small)).abs()).clamp(min=0).to(x.dtype)  # [large, small]

    return weights(x.shape[2], size[0]) @ x @ weights(x.shape[3], size[1]).T


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18_ppm", 8), ("resnet50s_ppm", 8), ("resnet18", 16), ("resnet50", 8), ("resnet50", 32)],
)
def test_equals_its_definition(name: str, output_stride: int, training: bool) -> None:
    dtype = torch.float64 if training else torch.float32  # the statistics of a small batch amplify rounding
    model = randomise(ResNet(name, output_stride=output_stride)).train(training).to(dtype)
    image = torch.randn(2, 3, 49, 71, dtype=dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        stages = model(image)
        for stage, expected in reference(state, image, output_stride, training=training).items():
            torch.testing.assert_close(stages[stage], expected, rtol=1e-4, atol=2e-5)


def test_where_stride_and_dilation_are() -> None:
    """Output stride 8: 3x3 of a bottleneck and second 3x3 of a basic block dilate by 2 and 4, in all blocks alike."""
    with torch.device("meta"):
        basic, deep = ResNet("resnet18"), ResNet("resnet101s")
    for layer, dilation in ((1, 1), (2, 1), (3, 2), (4, 4)):
        for block in (*getattr(basic, f"layer{layer}"), *getattr(deep, f"layer{layer}")):
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert block.conv1.dilation == (1, 1)
        stride = (2, 2) if layer == 2 else (1, 1)
        assert getattr(basic, f"layer{layer}")[0].conv1.stride == stride
        assert getattr(deep, f"layer{layer}")[0].conv2.stride == stride
        assert getattr(deep, f"layer{layer}")[0].downsample[0].stride == stride


@pytest.mark.parametrize(("stride", "strides"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16)), (32, (4, 8, 16, 32))])
def test_output_strides(stride: int, strides: tuple[int, ...]) -> None:
    model = ResNet("resnet18", output_stride=stride).eval()
    assert model.strides == strides
    with torch.inference_mode():
        assert [x.shape[2] for x in model(torch.randn(1, 3, 96, 64)).values()] == [96 // s for s in strides]
    with pytest.raises(ConfigError, match="expected 8, 16 or 32"):
        ResNet("resnet18", output_stride=4)


def test_merged_norms_follow_the_weights() -> None:
    """Convolutions with the norm inside agree with the literal form, also after a change and under gradients."""
    model = randomise(ResNet("resnet18_ppm")).eval()
    image = torch.randn(1, 3, 41, 55)

    def check() -> None:
        with torch.inference_mode():
            stages = model(image)
            with plain_forms():
                for stage, expected in model(image).items():
                    torch.testing.assert_close(stages[stage], expected, rtol=1e-4, atol=1e-5)
        for stage, x in model(image).items():
            torch.testing.assert_close(x.detach(), stages[stage].clone(), rtol=1e-4, atol=1e-5)

    check()
    with torch.no_grad():
        model.layer3[1].bn2.running_mean.add_(1.0)
        model.bn1.weight.mul_(-1.5)
    check()


def test_every_parameter_learns() -> None:
    model = ResNet("resnet18_ppm").train()
    sum(x.square().mean() for x in model(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 6)])
def test_pyramid_pooling_at_any_size(size: tuple[int, int]) -> None:
    pooling = PyramidPooling(8).eval()
    x = torch.randn(1, 8, *size)
    with torch.no_grad():
        expected = pooling(x)
        assert expected.shape == (1, 16, *size)
        assert torch.equal(expected[:, :8], x)
        exported = torch.export.export(pooling, (x,)).module()(x)
    torch.testing.assert_close(exported, expected)


def test_pyramid_pooling_needs_two_images_in_training() -> None:
    with pytest.raises(ShapeError, match="at least 2 images"):
        PyramidPooling(8).train()(torch.randn(1, 8, 6, 6))


# ---- published sizes and weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet101", 44_549_160)]
)
def test_parameter_counts(name: str, count: int) -> None:
    """Torchvision's counts, with the classifier of 1000 classes."""
    with torch.device("meta"):
        model = ResNet(name)
    assert sum(p.numel() for p in model.parameters()) + 1000 * (model.channels[3] + 1) == count


def test_parameter_counts_of_the_parts() -> None:
    """Three convolutions instead of one, a wider first block; four 1x1 convolutions to a quarter, and their norms."""
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in ResNet(name).parameters()) for name in VARIANTS}
    stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) - 49 * 3 * 64 + 2 * (64 + 128) + 64 * (64 + 256)
    for name in ("resnet50", "resnet101"):
        assert counts[f"{name}s"] - counts[name] == stem
        assert counts[f"{name}s_ppm"] - counts[f"{name}s"] == 4 * (2048 * 512 + 2 * 512)
    assert counts["resnet18_ppm"] - counts["resnet18"] == 4 * (512 * 128 + 2 * 128)


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.has_pooling])
def test_published_weights_fit(name: str, counters: bool) -> None:
    """All keys and shapes of an ImageNet file, from data-parallel training or not, old or new, are those of ours."""
    file = published(name, counters=counters)
    load = from_deep_stem if name.endswith("s") else from_torchvision
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in ResNet(name).state_dict().items()}
        pooled = ResNet(f"{name}_ppm")
    for prefix in ("", "module."):
        loaded = load({prefix + key: value for key, value in file.items()})
        assert {key: value.shape for key, value in loaded.items()} == wanted
    assert all(loaded[key] is value for key, value in file.items() if not key.startswith("fc."))
    assert {key for key in pooled.state_dict() if not key.startswith(pooled.unpublished)} == {*wanted}


def test_weights_that_do_not_fit() -> None:
    file = published("resnet50")
    with pytest.raises(CheckpointError, match=r"not keys of a ResNet: mystery\.weight"):
        from_torchvision(file | {"mystery.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 missing \(layer2\.1\.conv2\.weight\)"):
        from_torchvision({key: value for key, value in file.items() if key != "layer2.1.conv2.weight"})
    with pytest.raises(CheckpointError, match=r"1 unknown \(layer1\.1\.downsample\.0\.weight\)"):
        from_torchvision(file | {"layer1.1.downsample.0.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"\(3, 4, 6, 0\) blocks"):
        from_torchvision({key: value for key, value in file.items() if not key.startswith("layer4")})
    with pytest.raises(CheckpointError, match=r"7x7 stem .* expected a stem of three"):
        from_deep_stem(file)
    with pytest.raises(CheckpointError, match=r"stem of three convolutions .* expected a 7x7 stem"):
        from_torchvision(published("resnet50s"))
    with pytest.raises(CheckpointError, match=r"transformers' ResNet: embedder\.mystery"):
        from_huggingface({"embedder.mystery": torch.zeros(1)})
