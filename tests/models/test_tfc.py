"""TFC: the paper's equations on hand-made numbers, its ablation table, its sizes, and streaming."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg import models
from steadyseg.flow import displacement
from steadyseg.layers import warp
from steadyseg.models.tfc import METHOD, SparseAttention, TFCConfig, correlate, correlation_loss, to_direction
from steadyseg.ops.deformable_attention import query_points
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

SIZE = (48, 64)
REUSE = {"interp": "off", "msda": "off"}

ABLATION = {  # the rows of the paper's table, and the other values of each option
    "TFC": {},
    "feature reuse": REUSE,
    "linear": {**REUSE, "interp": "cosine"},
    "hard": {**REUSE, "interp": "hard"},
    "fixed": {**REUSE, "interp": "fixed"},
    "sparse (0.8)": {"interp": "off"},
    "sparse (1.0)": {"interp": "off", "theta": math.inf},
    "sparse (0.5)": {"interp": "off", "theta": 0.5},
    "flow warping": {**REUSE, "align": "flow"},
    "level 1": {"corr_level": 1},
    "without focal loss": {"bce": False},
    "20 % of the points": {"force_fraction": 0.2},
    "all points": {"force_fraction": 1.0},
    "dense": {"msda": "dense"},
    "value projection": {"msda_value_proj": True},
    "flow and all else": {"align": "flow"},
    "interval 2": {"interval": 2},
    "interval 6": {"interval": 6},
}


def build(classes: int = 5, **options: object) -> METHOD:
    torch.manual_seed(0)
    model = METHOD(TFCConfig(**options), classes)
    with torch.no_grad():  # the attention starts with zeros and the norm as identity; move them so that they are tested
        for name, parameter in model.named_parameters():
            if name.startswith(("attention.offsets", "attention.weights")) or parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.decoder.linear_fuse.bn.running_var.uniform_(0.5, 2.0)
        model.decoder.linear_fuse.bn.running_mean.normal_(std=0.2)
    return model


def frames(length: int, batch: int = 1, size: tuple[int, int] = SIZE) -> list[Tensor]:
    """Noise of which every frame changes another part, so that all correlations occur."""
    generator = torch.Generator().manual_seed(0)
    first, *others = torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8)
    for number, frame in enumerate(others, start=1):
        frame[..., : 16 * (number % 5)] = first[..., : 16 * (number % 5)]
    return [first, *others]


def clip(length: int = 4, batch: int = 2) -> Clip:
    images = torch.stack(frames(length, batch), dim=1)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (batch, 1, *SIZE), generator=generator, dtype=torch.uint8).repeat(1, length, 1, 1)
    labels[:, 1:, 32:] = torch.randint(0, 5, (batch, length - 1, 16, 64), generator=generator, dtype=torch.uint8)
    labels[:, 0, :5] = IGNORE
    labels[:, 2:, :, :7] = IGNORE
    return Clip(images, labels, torch.arange(length).expand(batch, length))


def stream(model: METHOD, images: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return list(model.segment(images))


# ---- the rows of the paper's tables --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ABLATION)
def test_every_ablation_row_trains(row: str) -> None:
    model = build(**ABLATION[row])
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), weight_decay=0.0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    terms = model(clip())
    uses_w = model.config.interp in ("cosine", "hard") or model.config.msda != "off"
    assert set(terms) == {"ce"} | ({"correlation"} if uses_w and model.config.bce else set())
    sum(terms.values()).backward()
    dead = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not [key for key in dead if not key.endswith("key.bias")]
    assert all(value.grad.isfinite().all() for value in model.parameters())
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in model.named_parameters() if key not in dead)


@pytest.mark.parametrize("row", ABLATION)
def test_streaming_equals_clips(row: str) -> None:
    """Frame by frame gives what an interval gives at once, frames k..t in each of its batches."""
    model = build(**ABLATION[row]).eval()
    images = frames(7, batch=2, size=(45, 67))
    interval = model.config.interval
    followed = stream(model, images)
    for first in range(0, len(images), interval):
        with torch.inference_mode():
            whole, _ = model.segment_clip(torch.stack(images[first : first + interval], dim=1))
        for logits, expected in zip(followed[first : first + interval], whole, strict=True):
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "row", ["TFC", "feature reuse", "fixed", "sparse (0.8)", "flow and all else", "20 % of the points"]
)
def test_graphs_stream_like_step(row: str) -> None:
    """A loop over the two graphs, with the kept tensors in its own hands, gives what `step` gives."""
    model = build(**ABLATION[row]).eval()
    images = frames(7)
    with torch.inference_mode():
        graphs = model.graphs(images[0])
        for number, expected in enumerate(stream(model, images)):
            if number % model.period == 0:
                logits, *kept = graphs["key"].function(images[number])
                key = images[number]
                assert len(kept) == len(graphs["key"].outputs) - 1
            else:
                flow = [displacement("dis", images[number], key)] if model.config.align == "flow" else []
                (logits,) = graphs["between"].function(images[number], *kept, *flow)
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert tuple(graphs["between"].inputs)[1:] == (*graphs["key"].outputs[1:], *["flow"] * len(flow))


def test_options_export() -> None:
    """What the default model's graphs, which the contract exports, do not have: a flow, a threshold, chosen points."""
    model = build(align="flow", interp="hard", force_fraction=0.5, corr_level=1, msda_value_proj=True).eval()
    graph = model.graphs(frames(1)[0])["between"]
    inputs = tuple(graph.inputs.values())
    with torch.no_grad():
        (ours,) = torch.export.export(_Function(graph.function), inputs).module()(*inputs)
        torch.testing.assert_close(ours, graph.function(*inputs)[0], rtol=1e-4, atol=1e-5)


class _Function(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def test_parameters() -> None:
    """The paper's +0.7 M, the same for every backbone; mixing has no parameters (Sec. "Linear interpolation")."""

    def count(backbone: str, **options: object) -> int:
        with torch.device("meta"):
            model = METHOD(TFCConfig(backbone=backbone, **options), 124)
        return sum(parameter.numel() for parameter in model.parameters())

    for backbone, millions in (("mit_b0", 4.5), ("mit_b1", 14.5), ("mit_b5", 82.8)):
        with torch.device("meta"):
            segformer = models.method("segformer")
            plain = sum(p.numel() for p in segformer(segformer.Config(backbone=backbone), 124).parameters())
        assert count(backbone) - plain == 691_072
        assert count(backbone) / 1e6 == pytest.approx(millions, rel=0.015)
        assert count(backbone, msda="off") == plain
    assert count("mit_b0", msda_value_proj=True) - count("mit_b0") == 65_792


def test_what_training_needs() -> None:
    model = build()
    assert model.offsets == (-3, -2, -1, 0) and model.period == 4 and model.needs_dense_labels
    model = build(train_interval=2, interval=9)
    assert model.offsets == (-1, 0) and model.period == 9


# ---- the literal form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
def test_literal_interval(level: int) -> None:
    """Eqs. (1) to (11) layer by layer on whole maps, the mixture before the classifier."""
    model = build(corr_level=level).eval()
    images = frames(3, batch=2)
    decoder, up = model.decoder, lambda x: F.interpolate(x, (12, 16), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        stages = [model.backbone(model.normalize(image)) for image in images]
        pyramids = [stages[0]] + [{**stages[0], "stage1": s["stage1"], "stage2": s["stage2"]} for s in stages[1:]]
        results = []
        for pyramid in pyramids:
            v = [
                torch.einsum("bchw,dc->bdhw", pyramid[stage], linear.proj.weight) + linear.proj.bias[:, None, None]
                for stage, linear in zip(
                    ("stage1", "stage2", "stage3", "stage4"),
                    (decoder.linear_c1, decoder.linear_c2, decoder.linear_c3, decoder.linear_c4),
                    strict=True,
                )
            ]
            fuse = decoder.linear_fuse
            z = F.relu(fuse.bn(fuse.conv(torch.cat([up(v[3]), up(v[2]), up(v[1]), v[0]], dim=1))))
            if not results:
                z_key, v_key = z, v
            else:
                a, b = up(v_key[level - 1]), up(v[level - 1])
                w = (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt() + 1e-8)  # Eq. (5)
                assert 0.05 < (w < 0.8).float().mean() < 0.95
                every = torch.arange(2 * 12 * 16)
                refined = model.attention.update(z.permute(0, 2, 3, 1).reshape(-1, 256), v, every, (12, 16))
                refined = refined.reshape(2, 12, 16, 256).permute(0, 3, 1, 2)
                z = torch.where((w < 0.8)[:, None], refined, z)
                weight = w.clamp(0, 1)[:, None]
                z = weight * z_key + (1 - weight) * z  # Eq. (7)
            results.append(decoder.linear_pred(z))
        for ours, expected in zip(stream(model, images), results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_attention_layer_equals_transformers() -> None:
    """Values given, all points: an encoder layer of Deformable DETR, whose own projection of the values is identity."""
    transformers = pytest.importorskip("transformers")
    modelling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    width, sizes = 32, [(8, 11), (4, 6), (2, 3), (1, 2)]
    ours = SparseAttention(width).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    config = transformers.DeformableDetrConfig(
        d_model=width,
        encoder_attention_heads=8,
        encoder_n_points=4,
        num_feature_levels=4,
        encoder_ffn_dim=4 * width,
        activation_function="relu",
    )
    theirs = modelling.DeformableDetrEncoderLayer(config).eval()
    xy_last = lambda x: x.unflatten(0, (2, 4, 8, 4)).movedim((0, 1, 2, 3), (3, 1, 0, 2)).flatten(0, 3)  # noqa: E731
    state = {
        "self_attn.sampling_offsets.weight": xy_last(ours.offsets.weight),
        "self_attn.sampling_offsets.bias": xy_last(ours.offsets.bias),
        "self_attn.value_proj.weight": torch.eye(width),
        "self_attn.value_proj.bias": torch.zeros(width),
    }
    names = {
        "weights": "self_attn.attention_weights",
        "output": "self_attn.output_proj",
        "norm1": "self_attn_layer_norm",
        "hidden": "mlp.fc1",
        "narrow": "mlp.fc2",
        "norm2": "final_layer_norm",
    }
    for mine, other in names.items():
        for kind in ("weight", "bias"):
            state[f"{other}.{kind}"] = getattr(getattr(ours, mine), kind)
    theirs.load_state_dict(state)
    fused = torch.randn(2, width, *sizes[0])
    values = [torch.randn(2, width, *size) for size in sizes]
    tokens = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
    y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(11) + 0.5) / 11, indexing="ij")
    centres = torch.stack((x, y), dim=-1).reshape(1, -1, 1, 2).expand(2, -1, 4, -1)  # [B, N, L, 2]
    with torch.no_grad():
        attended, _ = theirs.self_attn(
            hidden_states=tokens(fused),
            encoder_hidden_states=torch.cat([tokens(value) for value in values], dim=1),
            reference_points=centres,
            spatial_shapes=torch.tensor(sizes),
            spatial_shapes_list=sizes,
        )
        first = theirs.self_attn_layer_norm(tokens(fused) + attended)
        expected = theirs.final_layer_norm(first + theirs.mlp(first))  # [B, N, D]
        every = ours(fused, values, torch.ones(2, 88, dtype=torch.bool), dense=False)
    torch.testing.assert_close(tokens(every), expected, rtol=1e-5, atol=1e-5)


def test_attention_starts_like_deformable_detr() -> None:
    """Every head looks its own way, its points 1 to 4 steps off; equal weights."""
    attention = SparseAttention(16)
    assert not attention.offsets.weight.any() and not attention.weights.weight.any()
    offset = attention.offsets.bias.detach().unflatten(0, (2, 4, 8, 4))  # [2, L, M, P]
    ways = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(ways).T[:, None, :, None] * torch.arange(1.0, 5.0)
    torch.testing.assert_close(offset, expected.expand(-1, 4, -1, -1), rtol=1e-5, atol=1e-6)


def test_points_lie_around_the_query() -> None:
    """r_q = ((column + 0.5) / W_1, (row + 0.5) / H_1), at every level."""
    sizes = [(8, 12), (4, 6), (3, 5), (1, 2)]
    points = query_points(torch.zeros(2, 4, 1, 8, 4), torch.tensor([2 * 12 + 7]), (8, 12), sizes)
    for level, (x, y) in enumerate(
        [(7.0, 2.0), (3.25, 0.75), (7.5 / 12 * 5 - 0.5, 2.5 / 8 * 3 - 0.5), (0.75, -0.1875)]
    ):
        torch.testing.assert_close(points[0, level], torch.full((1, 8, 4), x))
        torch.testing.assert_close(points[1, level], torch.full((1, 8, 4), y))


# ---- correlation ---------------------------------------------------------------------------------------------------


def test_correlation_by_hand() -> None:
    """Eq. (5): parallel, at right angles, opposite, 3-4-5, and a zero vector."""
    key = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [3.0, 4.0], [0.0, 0.0]]).T.reshape(1, 2, 1, 5)
    now = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, 0.0], [4.0, 3.0], [1.0, 1.0]]).T.reshape(1, 2, 1, 5)
    w = correlate(to_direction(key), now)
    torch.testing.assert_close(w, torch.tensor([1.0, 0.0, -1.0, 0.96, 0.0]).reshape(1, 1, 1, 5))


@pytest.mark.parametrize(
    ("interp", "expected"),
    [
        ("cosine", [7.0, 7.0, 7 - 5 * 0.5, 7 - 5 * 0.8, 2.0]),
        ("hard", [7.0, 7.0, 7.0, 2.0, 2.0]),
        ("fixed", [2.5] * 5),
        ("off", [7.0] * 5),
    ],
)
def test_mixing_by_hand(interp: str, expected: list[float]) -> None:
    """Eqs. (6) and (7) where the key frame has 2 and the frame has 7."""
    model = build(interp=interp)
    w = torch.tensor([-0.5, 0.0, 0.5, 0.8, 1.0]).reshape(1, 1, 1, 5)
    mixed = model.mix(torch.full((1, 3, 1, 5), 7.0), torch.full((1, 3, 1, 5), 2.0), w)
    torch.testing.assert_close(mixed, torch.tensor(expected).expand(1, 3, 1, 5))


def test_focal_loss_by_hand() -> None:
    """Eq. (12) with gamma = 1 on two frames after the key frame; labels at four times the size, nearest."""
    w = torch.tensor([[0.9, 0.25, 0.6], [-0.3, 1.0, 0.5]]).reshape(2, 1, 1, 1, 3).requires_grad_()
    small = torch.tensor([[1, 2, 3], [1, 4, IGNORE], [1, 2, 0]], dtype=torch.uint8).reshape(3, 1, 1, 3)
    labels = torch.full((3, 1, 4, 12), 9, dtype=torch.uint8)
    labels[:, :, ::4, ::4] = small
    first = (-0.1 * math.log(0.9) - 0.25 * math.log(0.75)) / 2  # same, other, ignored
    second = (-1.0 * math.log(1e-4) + 0.0 + -0.5 * math.log(0.5)) / 3  # same but opposite, same and equal, other
    loss = correlation_loss(w, labels)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    loss.backward()
    slope = w.grad.flatten() * torch.tensor([4.0, 4.0, 4.0, 6.0, 6.0, 6.0])
    assert slope[0].item() == pytest.approx(math.log(0.9) - 0.1 / 0.9, rel=1e-4)
    assert slope[1].item() == pytest.approx(-math.log(0.75) + 0.25 / 0.75, rel=1e-4)
    assert slope[2] == 0
    assert slope[3].item() == pytest.approx(math.log(1e-4), rel=1e-4)  # passes the lower clamp, and pulls w up
    assert slope[5].item() == pytest.approx(-math.log(0.5) + 0.5 / 0.5, rel=1e-4)


def test_focal_loss_without_labels() -> None:
    w = torch.rand(3, 2, 1, 4, 6, requires_grad=True)
    labels = torch.full((4, 2, 16, 24), IGNORE, dtype=torch.uint8)
    labels[1:] = 2  # known after the key frame only
    loss = correlation_loss(w, labels)
    loss.backward()
    assert loss == 0 and not w.grad.any()


def test_terms_of_a_clip() -> None:
    """ "ce" is the plain mean over the frames, each by its own labelled pixels and the class weights."""
    model = build(dropout=0.0).eval()
    model.class_weights.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]))
    sample = clip()
    with torch.inference_mode():
        terms = model(sample)
        expected = 0.0
        for t, logits in enumerate(stream(model, list(sample.frames.unbind(1)))):
            full = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
            expected += F.cross_entropy(full, sample.labels[:, t].long(), model.class_weights, ignore_index=IGNORE) / 4
    torch.testing.assert_close(terms["ce"], expected, rtol=1e-4, atol=1e-5)
    nothing = model(Clip(sample.frames, torch.full_like(sample.labels, IGNORE), sample.index))
    assert nothing["ce"] == 0 and nothing["correlation"] == 0
    assert set(model(clip(length=1))) == {"ce"}


def test_gradient_reaches_both_frames() -> None:
    """Through w of Eq. (7) and of the loss alone; the choice of points has none."""
    model = build(msda="off")
    _, correlation = model.segment_clip(clip().frames)
    correlation_loss(correlation, clip().labels.transpose(0, 1)).backward()
    assert model.decoder.linear_c2.proj.weight.grad.any() and model.backbone.patch_embed1.proj.weight.grad.any()
    assert model.decoder.linear_c1.proj.weight.grad is None
    key, now = torch.randn(2, 1, 4, 2, 3, requires_grad=True)
    w = correlate(to_direction(key), now)
    assert not model.select(w).requires_grad
    for grad in torch.autograd.grad(model.mix(torch.ones(1, 4, 2, 3), torch.zeros(1, 4, 2, 3), w).sum(), (key, now)):
        assert grad.any()


# ---- the points of the attention -----------------------------------------------------------------------------------


def test_selection() -> None:
    w = torch.tensor([[0.1, 0.8, 0.79, -0.5, 1.0, 0.3], [0.9] * 6]).reshape(2, 1, 2, 3)
    chosen = lambda **options: build(**options).select(w).int().tolist()  # noqa: E731
    assert chosen() == [[1, 0, 1, 1, 0, 1], [0] * 6]
    assert chosen(theta=0.5) == [[1, 0, 0, 1, 0, 1], [0] * 6]
    assert chosen(theta=math.inf) == [[1] * 6] * 2
    assert chosen(force_fraction=1 / 3)[0] == [1, 0, 0, 1, 0, 0]
    assert [sum(row) for row in chosen(force_fraction=0.5)] == [3, 3]
    assert chosen(force_fraction=0.0) == [[0] * 6] * 2


def test_sparse_equals_dense() -> None:
    """In values and in gradients, for points of several images in one list."""
    attention = SparseAttention(16)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = [(8, 11), (4, 6), (2, 3), (1, 2)]
    mask = torch.rand(3, 88) < torch.tensor([[0.3], [0.0], [0.7]])
    fused, values = torch.randn(3, 16, 8, 11), [torch.randn(3, 16, *size) for size in sizes]
    results = []
    for dense in (False, True):
        leaves = [x.clone().requires_grad_() for x in (fused, *values)]
        attention.zero_grad()
        out = attention(leaves[0], leaves[1:], mask, dense=dense)
        (out * torch.arange(88.0).reshape(8, 11)).square().mean().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in attention.parameters())])
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-3, atol=1e-4)
    untouched = ~mask.reshape(3, 1, 8, 11).expand(-1, 16, -1, -1)
    assert torch.equal(results[0][0][untouched], fused[untouched])
    assert not torch.equal(results[0][0], fused)


def test_no_point_is_legal() -> None:
    """Equal frames: nothing to refine, and the key frame's logits come out; training goes on."""
    model = build().eval()
    image = frames(1, batch=2)[0]
    first, *others = stream(model, [image, image.clone(), image.clone()])
    for logits in others:
        torch.testing.assert_close(logits, first, rtol=1e-4, atol=1e-5)
    model.train()
    still = clip()
    terms = model(Clip(still.frames[:, :1].repeat(1, 4, 1, 1, 1), still.labels, still.index))
    sum(terms.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.attention.parameters())


def test_without_points_only_mixing_is_left() -> None:
    """theta below -1 refines nothing: the model without attention."""
    model, plain = build(theta=-2.0).eval(), build(msda="off").eval()
    plain.load_state_dict({key: x for key, x in model.state_dict().items() if not key.startswith("attention.")})
    for ours, expected in zip(stream(model, frames(4)), stream(plain, frames(4)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# ---- weights of a SegFormer ----------------------------------------------------------------------------------------


def test_adopts_a_segformer() -> None:
    """All its weights and no others; key frames are its own, and with interval 1 every frame is."""
    segformer = models.method("segformer")
    torch.manual_seed(0)
    plain = segformer(segformer.Config(width=64), 7).eval()
    config = METHOD.adopt({"backbone": "mit_b0", "norm_eps": "nvlabs", "width": 64, "dropout": 0.1})
    assert (config.interp, config.msda, config.interval) == ("cosine", "off", 4)
    images = frames(6)
    expected = stream(plain, images)
    for interval in (1, 4):
        model = METHOD(replace(config, interval=interval), 7)
        model.eval().load_state_dict(plain.state_dict())
        for number, logits in enumerate(stream(model, images)):
            if number % interval == 0:
                torch.testing.assert_close(logits, expected[number], rtol=1e-4, atol=1e-5)
            else:
                assert (logits - expected[number]).abs().max() > 1e-3


def test_mixing_steadies() -> None:
    """Where the key frame counts 0.9, the scores move a tenth as far as with reuse alone."""
    reuse, fixed = build(**REUSE).eval(), build(**{**REUSE, "interp": "fixed"}).eval()
    images = frames(3)
    key, *moved = stream(reuse, images)
    for ours, plain in zip(stream(fixed, images)[1:], moved, strict=True):
        torch.testing.assert_close(ours - key, 0.1 * (plain - key), rtol=1e-3, atol=1e-5)


# ---- optical flow --------------------------------------------------------------------------------------------------


def test_warp_by_hand() -> None:
    """16 pixels to the right is a cell of stride 16, half a cell of stride 32; the border repeats."""
    flow = torch.zeros(2, 2, 64, 96)
    flow[0, 0], flow[1, 1] = 16, -16
    x = torch.randn(2, 3, 4, 6)
    moved = warp(x, flow)
    torch.testing.assert_close(moved[0], x[0][:, :, [1, 2, 3, 4, 5, 5]])
    torch.testing.assert_close(moved[1], x[1][:, [0, 0, 1, 2]])
    coarse = torch.randn(2, 3, 2, 3)
    moved = warp(coarse, flow)
    torch.testing.assert_close(moved[0, :, :, :2], (coarse[0, :, :, :2] + coarse[0, :, :, 1:]) / 2)
    torch.testing.assert_close(moved[0, :, :, 2], coarse[0, :, :, 2])
    torch.testing.assert_close(warp(x, torch.zeros_like(flow)), x)


def test_still_flow_is_reuse() -> None:
    model, plain = build(align="flow", **REUSE).eval(), build(**REUSE).eval()
    plain.load_state_dict(model.state_dict())
    image, other = frames(2)
    with torch.inference_mode():
        _, *moved = model.key(image)
        _, *kept = plain.key(image)
        ours = model.between(other, *moved, torch.zeros(1, 2, *SIZE))
        torch.testing.assert_close(ours, plain.between(other, *kept), rtol=1e-4, atol=1e-5)


def test_state_keeps_its_own_key_frame() -> None:
    """A caller may write the next frame into the same memory."""
    model = build(align="flow", **REUSE).eval()
    images = frames(3)
    expected = stream(model, images)
    buffer, state = torch.empty_like(images[0]), None
    with torch.inference_mode():
        for image, logits in zip(images, expected, strict=True):
            result, state = model.step(buffer.copy_(image), state)
            assert torch.equal(result, logits)


# ---- state and options ---------------------------------------------------------------------------------------------


def test_state_holds_what_is_used() -> None:
    image = frames(1)[0]
    shapes = lambda group: [tuple(x.shape[1:]) for x in group]  # noqa: E731
    share, v3, v4, logits = (256, 12, 16), (256, 3, 4), (256, 2, 2), (5, 12, 16)
    expected = {
        "TFC": ([share, v3, v4], [share], [logits], []),
        "feature reuse": ([share], [], [], []),
        "fixed": ([share], [], [logits], []),
        "sparse (0.8)": ([share, v3, v4], [share], [], []),
        "flow warping": ([(160, 3, 4), (256, 2, 2)], [], [], [(3, *SIZE)]),
    }
    for row, groups in expected.items():
        with torch.inference_mode():
            _, state = build(**ABLATION[row]).eval().step(image)
        assert [shapes(group) for group in state[:4]] == list(groups), row
        assert state.age == 0


def test_key_frames_come_every_interval() -> None:
    model = build(interval=3).eval()
    state, ages = None, []
    with torch.inference_mode():
        for image in frames(8):
            _, state = model.step(image, state)
            ages.append(state.age)
    assert ages == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("row", ["TFC", "flow warping"])
def test_another_size_is_refused(row: str) -> None:
    model = build(**ABLATION[row]).eval()
    with torch.inference_mode():
        _, state = model.step(frames(1)[0])
        for due in (state, state._replace(age=model.config.interval - 1)):
            for other in (frames(1, size=(64, 48))[0], frames(1, size=(47, 64))[0], frames(1, batch=2)[0]):
                with pytest.raises(ShapeError, match="start again with state None"):
                    model.step(other, due)


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"train_interval": 0},
        {"width": 100},
        {"corr_level": 3},
        {"interp": "linear"},
        {"msda": "on"},
        {"theta": math.nan},
        {"force_fraction": 1.5},
        {"align": "warp"},
        {"align": "flow", "flow": "farneback"},
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{list(options)[-1]} is .*; expected"):
        METHOD(TFCConfig(**options), 5)
