"""SD-CPC: the paper's equations in their literal form, its ablation table, its sizes, and streaming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg import models
from steadyseg.models.sdcpc import (
    DSSA,
    METHOD,
    DSSAConfig,
    Fusion,
    InterleavedOffsets,
    LinearAttention,
    MCPConfig,
    SDCPCConfig,
    SelectiveStep,
    SSEAConfig,
    VariateHead,
)
from steadyseg.ops.sample import sample_reference
from steadyseg.ops.selective_attention import selective_attention_reference
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

SIZE = (64, 96)

ABLATION = {  # the 13 rows of the paper's table, and N = 9, 16
    "SD-CPC": {},
    "only DSSA": {"ssea": SSEAConfig(la=False, dcn=False), "mcp": MCPConfig(losses=False)},
    "only SSEA": {"dssa": DSSAConfig(stages=()), "mcp": MCPConfig(losses=False)},
    "w/o DSSA": {"dssa": DSSAConfig(stages=())},
    "w/o SSEA": {"ssea": SSEAConfig(la=False, dcn=False)},
    "w/o MCP-CL": {"mcp": MCPConfig(losses=False)},
    "w/o stage 1": {"dssa": DSSAConfig(stages=(2,))},
    "w/o stage 2": {"dssa": DSSAConfig(stages=(1,))},
    "MCP-CL (K=1)": {"mcp": MCPConfig(variates=1)},
    "w/o LA": {"ssea": SSEAConfig(la=False)},
    "w/o DCN": {"ssea": SSEAConfig(dcn=False)},
    "w/o Multi-Scale": {"ssea": SSEAConfig(levels=(4,))},
    "N = 9": {"dssa": DSSAConfig(points=9)},
    "N = 16": {"dssa": DSSAConfig(points=16)},
    "direct": {"dssa": DSSAConfig(order="direct")},
    "direct w/o stage 2": {"dssa": DSSAConfig(order="direct", stages=(1,))},
    "columns": {"dssa": DSSAConfig(interleave="columns")},
    "stride 4": {"stride": 4},
    "reference cross-entropy": {"aux_ref_ce": 0.4},
    "query cap": {"mcp": MCPConfig(query_cap=16)},
}


def build(classes: int = 5, **options: object) -> METHOD:
    torch.manual_seed(0)
    model = METHOD(SDCPCConfig(**options), classes)
    with torch.no_grad():  # offsets start at zero; move them so that sampling is tested
        for name, parameter in model.named_parameters():
            if (".output." in name and "offsets" in name) or "deform.offset" in name or "deform.modulation" in name:
                parameter.normal_(std=0.2)
    return model


def frames(length: int, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (length, batch, 3, *SIZE), generator=generator, dtype=torch.uint8))


def clip(batch: int = 2) -> Clip:
    images = torch.stack(frames(3, batch), dim=1)
    labels = torch.randint(0, 5, (batch, 3, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Clip(images, labels, torch.arange(3).expand(batch, 3))


@pytest.mark.parametrize("row", ABLATION)
def test_every_ablation_row_trains_and_streams(row: str) -> None:
    model = build(**ABLATION[row])
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=0.0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    terms = model(clip())
    mcp = model.config.mcp
    assert set(terms) == {"ce"} | ({"contrast", "similarity"} if mcp.losses else set()) | (
        {"reference_ce"} if model.config.aux_ref_ce else set()
    )
    sum(terms.values()).backward()
    still = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not still
    optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in model.named_parameters())
    model.eval()
    with torch.inference_mode():
        for logits in model.segment(frames(8)):
            assert torch.isfinite(logits).all()


@pytest.mark.parametrize("row", ABLATION)
def test_step_equals_clip(row: str) -> None:
    """Streaming gives what a fresh evaluation of frames t-6, t-3, t gives, from the first frame on."""
    model = build(**ABLATION[row]).eval()
    images = frames(11)
    with torch.inference_mode():
        for t, logits in enumerate(model.segment(images)):
            three = torch.stack([images[max(t - 6, 0)], images[max(t - 3, 0)], images[t]], dim=1)
            expected = model.head(model.aggregate(model.encode_clip(three)))
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_target_logits_of_forward_equal_step() -> None:
    """The cross-entropy of `forward` in evaluation mode is that of `step`'s logits."""
    model = build().eval()
    images = frames(7)
    labels = torch.randint(0, 5, (1, 3, *SIZE), dtype=torch.uint8)
    sample = Clip(torch.stack([images[0], images[3], images[6]], dim=1), labels, torch.tensor([[0, 3, 6]]))
    with torch.inference_mode():
        *_, logits = model.segment(images)
        full = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
        expected = F.cross_entropy(full, labels[:, -1].long())
        torch.testing.assert_close(model(sample)["ce"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", ["SD-CPC", "direct", "w/o stage 1", "w/o stage 2", "w/o DSSA"])
def test_graphs_stream_like_step(row: str) -> None:
    """A loop over the graphs alone, with its own ring buffers, gives what `step` gives."""
    model = build(**ABLATION[row]).eval()
    images = frames(9)
    with torch.inference_mode():
        graphs = model.graphs(images[0])
        run = lambda name, *maps: graphs[name].function(*maps)  # noqa: E731
        features, parts, aligned = [], [], []
        for t, logits in enumerate(model.segment(images)):
            feature, *part = run("encode", images[t])
            features.append(feature)
            parts.append(part)
            near, far = max(t - 3, 0), max(t - 6, 0)
            if "align" in graphs:
                aligned += run("align", feature, features[near], *part)
                read = (feature, aligned[near], features[far], *part)
            else:
                read = (feature, features[near], features[far], *parts[near], *parts[far])
            (result,) = run("decide", *read[: len(graphs["decide"].inputs)])
            torch.testing.assert_close(result, logits, rtol=1e-5, atol=1e-5)


def test_state_does_not_grow() -> None:
    for options in ({}, {"dssa": DSSAConfig(order="direct")}):
        model = build(**options).eval()
        state, counts = None, []
        with torch.inference_mode():
            for frame in frames(12):
                _, state = model.step(frame, state)
                counts.append(sum(len(entry) for entry in state))
        assert counts[6:] == [counts[6]] * 6


def test_size_change_is_refused() -> None:
    for options in ({}, {"dssa": DSSAConfig(stages=())}):
        model = build(**options).eval()
        with torch.inference_mode():
            _, state = model.step(frames(1)[0])
            with pytest.raises(ShapeError, match="state None"):
                model.step(frames(1)[0][..., :64], state)


def test_parameter_counts() -> None:
    """The paper's 15.0 / 26.0 / 83.5 M with 124 classes, within 1.5 %."""
    for backbone, millions in (("mit_b1", 15.0), ("mit_b2", 26.0), ("mit_b5", 83.5)):
        with torch.device("meta"):
            model = METHOD(SDCPCConfig(backbone=backbone), 124)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dssa": DSSAConfig(points=5)}, "expected 4, 9 or 16"),
        ({"dssa": DSSAConfig(stages=(3,))}, r"dssa\.stages"),
        ({"ssea": SSEAConfig(levels=())}, r"ssea\.levels"),
        ({"ssea": SSEAConfig(levels=(4, 4))}, r"ssea\.levels"),
        ({"width": 100}, "multiple of 8"),
        ({"stride": 16}, "4 or 8"),
        ({"mcp": MCPConfig(variates=0)}, r"mcp\.variates"),
        ({"mcp": MCPConfig(width=0)}, r"mcp\.width"),
        ({"mcp": MCPConfig(temperature=0.0)}, r"mcp\.temperature"),
        ({"mcp": MCPConfig(query_cap=0)}, r"mcp\.query_cap"),
        ({"drop_path": 1.5}, "drop_path"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHOD(SDCPCConfig(**options), 5)


# ---- equations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [8, 4])
def test_fusion_is_a_convolution_of_the_concatenation(training: bool, stride: int) -> None:
    """Eq. (1), first line."""
    torch.manual_seed(0)
    fusion = Fusion(SDCPCConfig(stride=stride, width=16), (4, 8, 6, 10)).train(training)
    fusion.fuse.bn.running_mean.normal_()
    sizes = [(20, 27), (10, 14), (5, 7), (3, 4)]
    stages = {f"stage{i + 1}": torch.randn(2, c, *s) for i, (c, s) in enumerate(zip((4, 8, 6, 10), sizes, strict=True))}
    size = sizes[0] if stride == 4 else sizes[1]
    all_levels = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in stages.values()]
    expected = F.relu(fusion.fuse.bn(fusion.fuse.conv(torch.cat(all_levels, dim=1))))
    torch.testing.assert_close(fusion(stages), expected, rtol=1e-4, atol=1e-5)


def test_linear_attention() -> None:
    """The quadratic form of the same attention, in NumPy."""
    torch.manual_seed(0)
    layer = LinearAttention(16, heads=2)
    tokens = torch.randn(1, 11, 16)
    with torch.no_grad():
        q, k, v = layer.qkv(tokens)[0].numpy().reshape(11, 3, 2, 8).transpose(1, 2, 0, 3).astype(np.float64)
        result = layer(tokens)[0].numpy().reshape(11, 2, 8)
    phi = lambda u: np.where(u > 0, u, np.expm1(u)) + 1  # noqa: E731
    for head in range(2):
        weight = phi(q[head]) @ phi(k[head]).T  # [N, N]
        expected = weight @ v[head] / (weight.sum(1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(result[:, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_interleaved_offsets(axis: str) -> None:
    """Stage 1: interleave, convolve with stride 1, norm, ReLU, convolve with stride 2 along the interleaved axis."""
    torch.manual_seed(0)
    net = InterleavedOffsets(8, 4, axis).eval()
    net.output.weight.data.normal_()
    net.output.bias.data.normal_()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2.0)
    net.norm.weight.data.normal_()
    net.norm.bias.data.normal_()
    query, reference = torch.randn(2, 2, 8, 5, 7)
    if axis == "rows":
        mixed = torch.empty(2, 8, 10, 7)
        mixed[:, :, 0::2], mixed[:, :, 1::2] = query, reference
        stride = (2, 1)
    else:
        mixed = torch.empty(2, 8, 5, 14)
        mixed[..., 0::2], mixed[..., 1::2] = query, reference
        stride = (1, 2)
    hidden = F.relu(net.norm(F.conv2d(mixed, net.hidden.weight, padding=1)))
    offset = F.conv2d(hidden, net.output.weight, net.output.bias, stride=stride, padding=1)  # [B, 2P, h, w]
    assert offset.shape == (2, 8, 5, 7)
    base = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
    y, x = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    here = torch.stack((x, y), dim=-1).reshape(35, 1, 2)
    expected = here + base + offset.flatten(2).transpose(1, 2).reshape(2, 35, 4, 2)
    points = net(net.query_part(query), net.reference_part(reference))
    torch.testing.assert_close(points, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("points", [4, 9, 16])
def test_selective_step(points: int) -> None:
    """Eq. (2) with separate query, key and value maps on normalised maps."""
    torch.manual_seed(0)
    dssa = DSSA(SDCPCConfig(width=8, dssa=DSSAConfig(points=points)))
    step: SelectiveStep = dssa.stage2
    for parameter in step.parameters():
        parameter.data.normal_()
    query, reference = torch.randn(2, 2, 8, 5, 7)
    where = torch.rand(2, 35, points, 2) * 12 - 3
    tokens_q = step.norm_query(query.flatten(2).transpose(1, 2))
    tokens_r = step.norm_reference(reference.flatten(2).transpose(1, 2))
    read = selective_attention_reference(step.query(tokens_q), step.key(tokens_r), step.value(tokens_r), where, (5, 7))
    expected = query + read.transpose(1, 2).reshape(2, 8, 5, 7)
    torch.testing.assert_close(step(query, reference, where), expected, rtol=1e-3, atol=1e-4)


def test_windows_and_points_are_the_same() -> None:
    """The paper's window layout, tiles of s x s in a (s h) x (s w) map, equals the explicit axis of points."""
    torch.manual_seed(0)
    h, w, c, s = 4, 5, 6, 2
    query, keys, values = torch.randn(3, 1, h * w, c)
    points = torch.rand(1, h * w, s * s, 2) * torch.tensor([w - 1.0, h - 1.0])
    tile = lambda x: x.reshape(h, w, s, s, c).permute(0, 2, 1, 3, 4).reshape(s * h, s * w, c)  # noqa: E731
    key = tile(sample_reference(keys, points.flatten(1, 2), (h, w), "border"))
    value = tile(sample_reference(values, points.flatten(1, 2), (h, w), "border"))
    repeated = query.reshape(h, w, c).repeat_interleave(s, 0).repeat_interleave(s, 1)
    score = (repeated * key).sum(-1) / c**0.5  # [s h, s w]
    windows = score.reshape(h, s, w, s).permute(0, 2, 1, 3).reshape(h, w, s * s).softmax(-1)
    weight = windows.reshape(h, w, s, s).permute(0, 2, 1, 3).reshape(s * h, s * w, 1)
    expected = (weight * value).reshape(h, s, w, s, c).sum((1, 3)).reshape(1, h * w, c)
    result = selective_attention_reference(query, keys, values, points, (h, w))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_orders() -> None:
    """Progressive: t reads t-3 after t-3 read t-6. Direct: t reads t-3, then t-6. Then stage 2 on the same two maps."""
    for order in ("progressive", "direct"):
        model = build(dssa=DSSAConfig(order=order)).eval()
        dssa = model.dssa
        with torch.inference_mode():
            far, near, now = model.encode_clip(torch.stack(frames(3), dim=1))

            def coarse(query: Tensor, reference: Tensor, dssa: DSSA = dssa) -> Tensor:
                net = dssa.offsets1
                return dssa.stage1(query, reference, net(net.query_part(query), net.reference_part(reference)))

            if order == "progressive":
                first = coarse(near, far)
                fused = coarse(now, first)
            else:
                first = near
                fused = coarse(coarse(now, near), far)
            for reference in (first, far):
                fused = dssa.stage2(fused, reference, dssa.offsets2(fused, reference))
            torch.testing.assert_close(model.aggregate((far, near, now)), fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_head_is_the_mean_of_independent_classifiers(training: bool) -> None:
    torch.manual_seed(0)
    head = VariateHead(SDCPCConfig(width=16, dropout=0.0, mcp=MCPConfig(variates=3, width=5)), 4).train(training)
    head.project.bn.running_mean.normal_()
    fused = torch.randn(2, 16, 6, 7)
    variates = F.relu(head.project.bn(head.project.conv(fused)))
    weights = head.classifiers.weight.reshape(3, 4, 5, 1, 1)
    biases = head.classifiers.bias.reshape(3, 4)
    each = [F.conv2d(variates[:, 5 * k : 5 * k + 5], weights[k], biases[k]) for k in range(3)]
    torch.testing.assert_close(head(fused), torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def test_prototype_terms_against_numpy() -> None:
    """Eqs. (4) to (7) by loops over pixels, classes and variates."""
    model = build()
    generator = torch.Generator().manual_seed(4)
    variates = torch.randn(2, 4, 64, 8, 12, generator=generator)
    logits = torch.randn(2, 5, 8, 12, generator=generator)
    labels = torch.randint(0, 4, (2, 64, 96), generator=generator, dtype=torch.uint8)  # class 4 is absent
    labels[:, :16] = IGNORE
    terms = model.prototype_terms(variates, logits, labels)

    small = labels[:, ::8, ::8].numpy()  # nearest down-sampling by 8
    correct = (logits.argmax(1).numpy() == small) & (small != IGNORE)
    pixels = variates.permute(0, 3, 4, 1, 2).numpy().astype(np.float64)  # [B, h, w, V, d]
    prototypes = {
        c: pixels[correct & (small == c)].mean(0) for c in range(5) if (correct & (small == c)).any()
    }  # each [V, d]
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    contrast, count = 0.0, 0
    for b, y, x in zip(*correct.nonzero(), strict=True):
        for k in range(4):
            scores = {c: unit(pixels[b, y, x, k]) @ unit(p[k]) / 0.1 for c, p in prototypes.items()}
            contrast -= scores[small[b, y, x]] - np.log(sum(np.exp(s) for s in scores.values()))
            count += 1
    pairs = [(k, j) for k in range(4) for j in range(k + 1, 4)]
    similarity = np.mean([np.mean([unit(p[k]) @ unit(p[j]) for k, j in pairs]) for p in prototypes.values()])
    assert len(prototypes) == 4
    assert terms["contrast"].item() == pytest.approx(0.1 * contrast / count, rel=1e-4)
    assert terms["similarity"].item() == pytest.approx(0.1 * similarity, rel=1e-4)


def test_cross_entropy_term_against_numpy() -> None:
    model = build().eval()
    sample = clip()
    sample.labels[:, -1, :9] = IGNORE
    with torch.inference_mode():
        logits = model.head(model.aggregate(model.encode_clip(sample.frames)))
        value = model(sample)["ce"].item()
    full = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=False).numpy().astype(np.float64)
    log_probability = full - np.log(np.exp(full).sum(1, keepdims=True))
    labels = sample.labels[:, -1].numpy()
    b, y, x = (labels != IGNORE).nonzero()
    assert value == pytest.approx(-log_probability[b, labels[b, y, x], y, x].mean(), rel=1e-4)


def test_losses_do_not_reach_through_the_mask() -> None:
    """No gradient flows through the correct-prediction mask: the prototype terms do not move the classifiers."""
    model = build()
    terms = model(clip())
    (terms["contrast"] + terms["similarity"]).backward()
    assert model.head.classifiers.weight.grad is None
    assert model.head.project.conv.weight.grad is not None


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SDCPCConfig().width = 3  # type: ignore[misc]
    assert models.method("sdcpc") is METHOD


class Elsewhere:
    """A backend that starts one large graph faster than a few small ones."""

    takes_whole_steps = True

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        self.names.append(name)
        return function(*tensors)


def test_whole_steps_equal_steps_in_parts() -> None:
    model = models.method("sdcpc")(models.method("sdcpc").Config(), 5).eval()
    for parameter in model.dssa.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    frames = torch.randint(0, 256, (9, 1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        parts = list(model.segment(frames))
        model.backend = Elsewhere()
        whole = list(model.segment(frames))
    assert model.backend.names == ["whole"] * 8, "the first frame has nothing to refer to"
    for ours, expected in zip(whole, parts, strict=True):
        assert torch.equal(ours, expected)
