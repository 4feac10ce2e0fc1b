"""MSAF: the paper's equations in their literal form, its ablation table, its sizes, and streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from steadyseg.models.msaf import (
    METHOD,
    Alignment,
    AttentionBlock,
    JointAttention,
    Motion,
    MSAFConfig,
    PixelDescriptors,
    Reduction,
    TwoConvs,
    assign,
    attend_few,
    attend_many,
    describe_regions,
    look,
)
from steadyseg.ops.deformable_conv import deformable_conv_reference
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

SIZE = (64, 96)
CLASSES = 5

ABLATION = {  # the nine rows of the paper's table, and the options outside it
    "Baseline": {"motion": "off", "state": False, "assignment": False},
    "Baseline + TR": {"motion": "vanilla", "state": False, "assignment": False},
    "Motion only": {"state": False, "assignment": False},
    "State only": {"motion": "off", "assignment": False},
    "w/o Motion": {"motion": "off"},
    "w/o State": {"state": False},
    "w/o Semantics": {"assignment": False, "mean_of_masks": True},
    "w/o DCN": {"dcn": False},
    "MSAF": {},
    "offsets from the pair": {"offset_from_pair": True},
    "soft region weights": {"region_weight": "softmax"},
    "TR in the whole": {"motion": "vanilla"},
}
TERMS = {  # what has a loss
    **{row: {"ce"} for row in ("Baseline", "Baseline + TR", "Motion only", "State only")},
    "w/o Semantics": {"ce_region", "ce_pixel"},
}
every_row = pytest.mark.parametrize("row", ABLATION)


def build(**options: object) -> METHOD:
    torch.manual_seed(0)
    return enliven(METHOD(MSAFConfig(**{"backbone": "mit_b0", "width": 32, **options}), CLASSES))


def enliven(module: nn.Module) -> nn.Module:
    """Move what starts at zero or one, so that no path is hidden; sharpen what starts small."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("backbone"):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
    return module


def frames(length: int, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (length, batch, 3, *SIZE), generator=generator, dtype=torch.uint8))


def clip(model: METHOD, batch: int = 2) -> Clip:
    count = len(model.offsets)
    images = torch.stack(frames(count, batch), dim=1)
    labels = torch.randint(0, 5, (batch, count, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels[:, :, :9] = IGNORE
    return Clip(images, labels, torch.arange(count).expand(batch, count))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the whole ------------------------------------------------------------------------------------------------------


@every_row
def test_every_ablation_row_trains_and_streams(row: str) -> None:
    model = build(**ABLATION[row])
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=0.0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    terms = model(clip(model))
    assert set(terms) == TERMS.get(row, {"ce", "ce_pixel", "ce_region"})
    sum(terms.values()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), key
        assert value.grad.any() or key.endswith("key.bias"), key  # a soft-max does not see its keys' bias
    optimizer.step()
    still = [key for key, value in model.named_parameters() if torch.equal(before[key], value)]
    assert not [key for key in still if not key.endswith("key.bias")]
    model.eval()
    with torch.inference_mode():
        for logits in model.segment(frames(4)):
            assert logits.shape == (1, CLASSES, 8, 12)
            assert torch.isfinite(logits).all()


@every_row
def test_streaming_equals_clips(row: str) -> None:
    """Streaming gives what a fresh evaluation of frames t-2, t-1, t gives, from the first frame on.

    In float64, as a batch of three is rounded differently from one, and random weights make much of it.
    """
    model = build(**ABLATION[row]).eval().double()
    images = frames(5)
    with torch.inference_mode():
        for t, logits in enumerate(model.segment(images)):
            three = [images[max(t + offset, 0)] for offset in model.offsets]
            torch.testing.assert_close(logits, model.clip_logits(torch.stack(three, dim=1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", ["MSAF", "Baseline", "Baseline + TR", "State only", "w/o Motion"])
def test_loss_of_the_prediction_is_that_of_step(row: str) -> None:
    model = build(**ABLATION[row]).eval()
    images = frames(3)
    sample = clip(model, batch=1)
    sample = Clip(torch.stack(images[-len(model.offsets) :], dim=1), sample.labels, sample.index)
    with torch.inference_mode():
        *_, logits = model.segment(images)
        full = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
        expected = F.cross_entropy(full, sample.labels[:, -1].long(), ignore_index=IGNORE)
        torch.testing.assert_close(model(sample)["ce"], expected, rtol=1e-5, atol=1e-5)


def test_losses_are_weighted_by_class() -> None:
    model = build().eval()
    sample = clip(model)
    with torch.inference_mode():
        plain = model(sample)
        model.class_weights = torch.tensor([5.0, 1.0, 1.0, 1.0, 0.2])
        for name, value in model(sample).items():
            assert value != plain[name], name


def test_mean_of_masks() -> None:
    """The row "w/o Semantics" gives the average of both branches' probabilities."""
    model = build(**ABLATION["w/o Semantics"]).eval()
    with torch.inference_mode():
        maps = model.encode(frames(1)[0], targets=1)
        before = (random(*maps[-1].shape, seed=1), random(*maps[-1].shape, seed=2))
        outputs = model.outputs(maps, before, with_losses=True)
        expected = (outputs["ce_region"].softmax(1) + outputs["ce_pixel"].softmax(1)) / 2
        result = model.decide(maps, before)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 12))


def test_what_serves_the_loss_only_is_left_out() -> None:
    model = build().eval()
    with torch.inference_mode():
        maps = model.encode(frames(1)[0], targets=1)
        full = model.outputs(maps, (maps[-1], maps[-1]), with_losses=True)
        short = model.outputs(maps, (maps[-1], maps[-1]), with_losses=False)
    assert set(full) - set(short) == {"ce_pixel"}
    assert torch.equal(full["ce"], short["ce"])


def test_short_clips_repeat_the_first_frame() -> None:
    model = build().eval()
    sample = clip(model)
    first, last = sample.frames[:, :1], sample.frames[:, 2:]
    with torch.inference_mode():
        for short, whole in (((last,), (last, last, last)), ((first, last), (first, first, last))):
            terms = [model(Clip(torch.cat(x, 1), sample.labels[:, -1:], sample.index)) for x in (short, whole)]
            for name in terms[0]:
                torch.testing.assert_close(terms[0][name], terms[1][name], rtol=1e-5, atol=1e-6)


def test_long_clips_are_read_from_their_end() -> None:
    for row in ("MSAF", "Baseline"):
        model = build(**ABLATION[row]).eval()
        images = torch.stack(frames(5), dim=1)
        with torch.inference_mode():
            short = model.clip_logits(images[:, -len(model.offsets) :])
            torch.testing.assert_close(model.clip_logits(images), short, rtol=1e-5, atol=1e-5)


def test_only_target_frames_are_read_at_shallow_stages() -> None:
    model = build().eval()
    images = torch.cat(frames(3, batch=2))  # [T * B, 3, H, W]
    with torch.inference_mode():
        f3, f4, f5 = model.encode(images, targets=2)
        alone = model.encode(images[4:], targets=2)
    assert [len(x) for x in (f3, f4, f5)] == [2, 2, 6]
    for mine, theirs in zip((f3, f4, f5[4:]), alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@every_row
def test_graphs_stream_like_step(row: str) -> None:
    """A loop over the graphs alone, with its own memory, gives what `step` gives."""
    model = build(**ABLATION[row]).eval()
    images = frames(4)
    with torch.inference_mode():
        graphs = model.graphs(images[0])
        deep: list[Tensor] = []
        for t, logits in enumerate(model.segment(images)):
            maps = graphs["encode"].function(images[t])
            deep.append(maps[-1])
            before = [deep[max(t + offset, 0)] for offset in model.offsets[:-1]]
            inputs = dict(zip(graphs["decide"].inputs, (*maps, *before), strict=True))
            (result,) = graphs["decide"].function(*inputs.values())
            torch.testing.assert_close(result, logits, rtol=1e-5, atol=1e-5)


def test_state_holds_two_maps() -> None:
    model = build().eval()
    state, sizes = None, []
    with torch.inference_mode():
        for frame in frames(5):
            _, state = model.step(frame, state)
            sizes.append([x.shape for x in state.before])
    assert sizes == [[(1, 32, 8, 12)] * 2] * 5
    off = build(motion="off").eval()
    with torch.inference_mode():
        assert off.step(frames(1)[0])[1].before == ()


def test_size_change_is_refused() -> None:
    for options in ({}, {"motion": "off"}):
        model = build(**options).eval()
        with torch.inference_mode():
            _, state = model.step(frames(1)[0])
            with pytest.raises(ShapeError, match="state None"):
                model.step(frames(1)[0][..., :64], state)


PARAMETERS = {  # beside the backbone, at the channels of a ResNet-50 and 19 classes
    "Baseline": 1_120_019,
    "Baseline + TR": 1_910_547,
    "Motion only": 5_542_967,
    "State only": 3_550_227,
    "w/o Motion": 4_145_446,
    "w/o State": 6_793_802,
    "w/o Semantics": 9_158_474,
    "w/o DCN": 7_895_334,
    "MSAF": 9_158_474,
}


@pytest.mark.parametrize("row", PARAMETERS)
def test_parameter_counts(row: str) -> None:
    """The layers' formulas, written out."""
    d, k, channels = 256, 19, (512, 1024, 2048)
    config = MSAFConfig(**ABLATION[row])
    block = 12 * d * d + 13 * d  # 4 d^2 + 4 d for attention, 8 d^2 + 5 d for the MLP, 4 d for the norms
    convs = lambda inputs, out: 9 * inputs * d + 2 * d + d * out + out  # noqa: E731
    expected = sum(c * d + 2 * d for c in (channels if config.state else channels[-1:]))
    if config.motion == "vanilla":
        expected += block + 3 * d
    if config.motion == "on":
        expected += 4 * block + 3 * d
        expected += 2 * (9 * d * 18 + 18 + 9 * d * d + d) if config.dcn else 0
    if config.state:
        tokens = 3 if config.motion == "off" else 4
        expected += tokens * d + block + convs(tokens * d, d)
    elif config.assignment:
        expected += convs(2 * d, d)
    if config.state or config.assignment:
        expected += d * k + k
    if not config.state or config.assignment or config.mean_of_masks:
        expected += convs(d, k)
    with torch.device("meta"):
        model = METHOD(MSAFConfig(backbone="mit_b0", **ABLATION[row]), k)
        model.reduce.update({f"stage{i + 2}": Reduction(c, d) for i, c in enumerate(channels) if config.state or i > 1})
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    assert count == expected == PARAMETERS[row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100}, "multiple of 8"),
        ({"width": 0}, "multiple of 8"),
        ({"heads": 0}, "model.heads is 0"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"dropout": 1.0}, "dropout"),
        ({"motion": "fast"}, "on, off or vanilla"),
        ({"region_weight": "mean"}, "logits or softmax"),
        ({"motion": "off", "state": False}, "model.assignment is True"),
        ({"assignment": False}, "model.mean_of_masks is False; expected True"),
        ({"motion": "vanilla", "assignment": False}, "model.mean_of_masks is False; expected True"),
        ({"mean_of_masks": True}, "model.mean_of_masks is True"),
        ({"mean_of_masks": True, "assignment": False, "state": False}, "model.mean_of_masks is True"),
        ({"mean_of_masks": True, "assignment": False, "motion": "off"}, "model.mean_of_masks is True"),
        ({"region_weight": "softmax", "assignment": False, "state": False}, "logits without assignment"),
        ({"offset_from_pair": True, "dcn": False}, "offset_from_pair"),
        ({"offset_from_pair": True, "motion": "vanilla"}, "offset_from_pair"),
        ({"backbone": "mit_b9"}, "unknown backbone"),
        ({"drop_path": 1.5}, "drop_path"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHOD(MSAFConfig(**{"backbone": "mit_b0", **options}), 5)


# ---- equations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_reduction_reads_the_resized_stage(training: bool) -> None:
    """Convolution, norm and ReLU of a coarse stage resized to the grid of F_3."""
    layer = enliven(Reduction(6, 8)).train(training)
    x = random(2, 6, 4, 5)
    large = F.interpolate(x, size=(13, 19), mode="bilinear", align_corners=False)
    expected = F.relu(layer.layer.bn(F.conv2d(large, layer.layer.conv.weight)))
    torch.testing.assert_close(layer(x, (13, 19)), expected, rtol=1e-4, atol=1e-5)


def mhsa(block: AttentionBlock, tokens: Tensor) -> Tensor:
    """Eq. (3) for one sequence of tokens [T, C], head by head, in float64."""
    weights = {name: value.detach().double().numpy() for name, value in block.named_parameters()}
    linear = lambda x, name: x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]  # noqa: E731

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = tokens.double().numpy()
    normed = norm(x, "norm_attention")
    q, k, v = (linear(normed, name) for name in ("query", "key", "value"))
    read = np.zeros_like(x)
    width = x.shape[1] // block.heads
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
        read[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
    x = x + linear(read, "output")
    hidden = linear(norm(x, "norm_mlp"), "mlp.0")
    return torch.from_numpy(x + linear(F.gelu(torch.from_numpy(hidden)).numpy(), "mlp.2")).float()


def block(attend=attend_many, width: int = 16) -> AttentionBlock:
    torch.manual_seed(0)
    layer = AttentionBlock(MSAFConfig(width=width, heads=4), attend)
    with torch.no_grad():
        layer.query.weight.mul_(40.0)  # far from an even soft-max
    return enliven(layer)


def test_attention_over_all_pixels() -> None:
    layer = block()
    tokens = random(2, 11, 16)
    with torch.inference_mode():
        result = layer(tokens)
        for item in range(2):
            torch.testing.assert_close(result[item], mhsa(layer, tokens[item]), rtol=1e-4, atol=1e-4)


def test_attention_over_few_tokens() -> None:
    layer = block(attend_few)
    tokens = random(2, 5, 4, 16)
    with torch.inference_mode():
        result = layer(tokens)
        for item in range(2):
            for pixel in range(5):
                torch.testing.assert_close(result[item, pixel], mhsa(layer, tokens[item, pixel]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attend", "shape"), [(attend_few, (2, 7, 3, 16)), (attend_many, (2, 21, 16))])
def test_skipping_queries_equals_computing_them(attend, shape: tuple[int, ...]) -> None:
    layer = block(attend)
    tokens = random(*shape)
    full = layer(tokens)
    for asking in range(1, 4):
        torch.testing.assert_close(layer(tokens, asking=asking), full[..., -asking:, :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 37, 700, 1500])
def test_attention_does_not_depend_on_its_chunks(count: int) -> None:
    query, key, value = random(3, 1, count, 2, 8)
    scores = torch.einsum("bnhd,bmhd->bhnm", 3 * query.double(), key.double()) / 8**0.5
    expected = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value.double())
    torch.testing.assert_close(attend_many(3 * query, key, value).double(), expected, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the most values that any operation within this context gives, forward or backward."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            self.values = max(self.values, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_never_stores_all_scores(precision: torch.dtype) -> None:
    layer = block()
    tokens = random(1, 600, 16).requires_grad_()
    with Largest() as largest, torch.autocast("cpu", dtype=precision, enabled=precision is torch.bfloat16):
        layer(tokens).sum().backward()
        with torch.inference_mode():
            layer(tokens)
    assert tokens.grad.any()
    assert largest.values == 600 * 64  # inside the MLP; the scores of one head would be 600 * 600


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_pyramid_by_hand() -> None:
    """Eq. (2): windows at the border are averaged over the pixels inside; resized back, bilinear."""
    x = torch.arange(15.0).view(1, 1, 3, 5)
    pooled = torch.tensor([[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]])  # 2x2 windows of a 3x5 map
    expected = F.interpolate(pooled, size=(3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(look(x, 2, Same()), expected)
    pooled = torch.tensor([[[[6.5, 9.0]]]])  # 4x4 windows: columns 0..3 and 4
    expected = F.interpolate(pooled, size=(3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(look(x, 4, Same()), expected)
    assert torch.equal(look(x, 1, Same()), x)
    # Half-pixel centres: pixel 0 of 5 lies at -0.1 of 3, clamped to 0; pixel 1 at 0.4.
    torch.testing.assert_close(look(x, 2, Same())[0, 0, 0, 1].item(), 3.0 * 0.6 + 5.0 * 0.4)


def literal_motion(model: Motion, deep: list[Tensor]) -> list[Tensor]:
    """Eqs. (2), (5), (6) as they stand: M of all three frames."""
    size = deep[0].shape[2:]
    pyramid = []
    for x, rate, layer in zip(deep, (4, 2, 1), model.spatial, strict=True):
        small = F.avg_pool2d(x, rate, ceil_mode=True) if rate > 1 else x
        tokens = torch.stack([mhsa(layer, item.flatten(1).T) for item in small])
        small = tokens.transpose(1, 2).unflatten(2, small.shape[2:])
        pyramid.append(F.interpolate(small, size=size, mode="bilinear", align_corners=False))
    aligned = list(pyramid)
    for number, align in enumerate(model.align or ()):
        source = torch.cat((pyramid[number], pyramid[2]), 1) if align.from_pair else pyramid[number]
        offset = F.conv2d(source, align.offset.weight, align.offset.bias, padding=1)
        aligned[number] = deformable_conv_reference(pyramid[number], offset, align.conv.weight, align.conv.bias)
    outputs = torch.zeros(3, *deep[0].shape)
    for item in range(len(deep[0])):
        for row in range(size[0]):
            for column in range(size[1]):
                tokens = torch.stack([x[item, :, row, column] for x in aligned]) + model.times
                outputs[:, item, :, row, column] = mhsa(model.temporal, tokens)
    return list(outputs)


@pytest.mark.parametrize("options", [{}, {"dcn": False}, {"offset_from_pair": True}])
def test_motion_branch(options: dict) -> None:
    """The frames meet their own weights, pooling and embedding; what `Motion` skips does not change M^t."""
    torch.manual_seed(0)
    model = enliven(Motion(MSAFConfig(width=16, heads=2, **options)))
    deep = [random(2, 16, 5, 7, seed=number) for number in range(3)]
    with torch.inference_mode():
        torch.testing.assert_close(model(deep), literal_motion(model, deep)[2], rtol=1e-4, atol=1e-4)


def test_offsets_start_at_zero() -> None:
    torch.manual_seed(0)
    layer = Alignment(MSAFConfig(width=8))
    x = random(1, 8, 5, 6)
    torch.testing.assert_close(layer(x, x), layer.conv(x), rtol=1e-4, atol=1e-5)


def test_joint_attention() -> None:
    """The row "Baseline + TR": all pixels of the three frames in one sequence, the last frame's are read."""
    torch.manual_seed(0)
    model = enliven(JointAttention(MSAFConfig(width=16, heads=2)))
    deep = [random(1, 16, 3, 4, seed=number) for number in range(3)]
    tokens = torch.cat([x[0].flatten(1).T + time for x, time in zip(deep, model.times.detach(), strict=True)])
    with torch.inference_mode():
        expected = mhsa(model.joint, tokens)[24:].T.reshape(1, 16, 3, 4)
        torch.testing.assert_close(model(deep), expected, rtol=1e-4, atol=1e-4)


def two_convs(layer: TwoConvs, x: Tensor) -> Tensor:
    hidden = F.relu(layer.bn(F.conv2d(x, layer.conv.weight, padding=1)))
    return F.conv2d(hidden, layer.out.conv.weight, layer.out.conv.bias)


@pytest.mark.parametrize("motion", ["on", "off"])
def test_state_branch(motion: str) -> None:
    """Eq. (9): the tokens f_3, f_4, f_5, M^t of a pixel, in this order, then two convolutions of all side by side."""
    torch.manual_seed(0)
    model = enliven(PixelDescriptors(MSAFConfig(width=16, heads=2, motion=motion))).eval()
    *maps, moved = (random(2, 16, 3, 4, seed=number) for number in range(4))
    inputs = [*maps, moved] if motion == "on" else maps
    outputs = torch.zeros(2, 16 * len(inputs), 3, 4)
    with torch.inference_mode():
        for item in range(2):
            for row in range(3):
                for column in range(4):
                    tokens = torch.stack([x[item, :, row, column] for x in inputs]) + model.kinds
                    outputs[item, :, row, column] = mhsa(model.across, tokens).flatten()
        torch.testing.assert_close(model(maps, moved), two_convs(model.convs, outputs), rtol=1e-4, atol=1e-4)


def test_pixels_without_the_state_branch() -> None:
    torch.manual_seed(0)
    model = enliven(PixelDescriptors(MSAFConfig(width=16, heads=2, state=False))).eval()
    deep, motion = random(2, 2, 16, 3, 4)
    expected = two_convs(model.convs, torch.cat((motion, deep), dim=1))
    torch.testing.assert_close(model((deep,), motion), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_channel_wise_and_before_the_classifier() -> None:
    torch.manual_seed(0)
    layer = TwoConvs(4, 8, 8, dropout=0.5)
    with torch.no_grad():
        layer.out.conv.weight.copy_(torch.eye(8)[:, :, None, None])
        layer.out.conv.bias.zero_()
        layer.bn.bias.fill_(3.0)
    dropped = (layer(random(1, 4, 5, 6)) == 0).flatten(2).float().mean(2)  # [1, 8]
    assert ((dropped == 1) | (dropped < 0.5)).all()
    assert 0 < (dropped == 1).sum() < 8


def test_regions_by_hand() -> None:
    """R_j is the mean over all pixels of logit times motion, with the logit's sign."""
    masks = torch.tensor([[[[1.0, -2.0, 0.0]], [[0.0, 3.0, 0.0]]]])  # [1, 2, 1, 3]
    motion = torch.tensor(
        [[[[4.0, 1.0, 6.0]], [[0.0, 5.0, 0.0]], [[2.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]]]]
    )  # [1, 4, 1, 3]
    expected = torch.tensor([[[2.0, -10.0, -2.0, 0.0], [3.0, 15.0, 6.0, 0.0]]]) / 3
    torch.testing.assert_close(describe_regions(masks, motion), expected)
    share = 1 / (1 + np.exp([-1.0, 5.0, 0.0]))  # of class 0 at the three pixels
    rows = [[float((x * part).mean()) for x in motion[0, :, 0].numpy()] for part in (share, 1 - share)]
    torch.testing.assert_close(describe_regions(masks, motion, "softmax"), torch.tensor([rows]))


def test_assignment_is_the_nearest_region() -> None:
    """Eq. (13): the largest S is the smallest cosine distance; Eq. (14): S is the product with the unit vector."""
    pixels, regions = random(2, 6, 7, 9), random(2, 5, 6, seed=1)
    scores = assign(pixels, regions)
    cosines = F.cosine_similarity(pixels[:, None], regions[:, :, :, None, None], dim=2)  # [B, K, h, w]
    assert torch.equal(scores.argmax(1), (1 - cosines).argmin(1))
    torch.testing.assert_close(scores, cosines * pixels.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_assignment_by_hand() -> None:
    pixels = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    regions = torch.tensor([[[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [1e-7, 0.0]]])
    torch.testing.assert_close(assign(pixels, regions).flatten(), torch.tensor([2.6, -1.0, 0.0, 0.3]))


def test_regions_and_scores_are_full_precision() -> None:
    """Sums over many pixels and their direction stay in float32 under autocast."""
    masks, motion, pixels = random(1, 5, 60, 80), random(1, 16, 60, 80, seed=1), random(1, 16, 60, 80, seed=2)
    plain = describe_regions(masks, motion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regions = describe_regions(masks, motion)
        scores = assign(pixels, regions)
    assert torch.equal(regions, plain)
    assert torch.equal(scores, assign(pixels, plain))
