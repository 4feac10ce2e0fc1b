"""PSPNet: its head and losses on hand-made numbers, and the authors' weights by their own names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg import models
from steadyseg.losses import cross_entropy
from steadyseg.models.pspnet import METHOD, PSPNetConfig, from_semseg
from steadyseg.types import CheckpointError, Clip, ConfigError

SIZE = (64, 96)


def build(classes: int = 5, **options: object) -> METHOD:
    torch.manual_seed(0)
    return METHOD(PSPNetConfig(**{"backbone": "mit_b0", "width": 16, **options}), classes)


def clip(batch: int = 2) -> Clip:
    frames = torch.randint(0, 256, (batch, 1, 3, *SIZE), dtype=torch.uint8)
    return Clip(frames, torch.randint(0, 5, (batch, 1, *SIZE), dtype=torch.uint8), torch.zeros(batch, 1).long())


# ---- the authors' network, by their names ------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; the dilation is in the 3x3."""

    def __init__(self, before: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        inside = width // 4
        self.conv1 = nn.Conv2d(before, inside, 1, bias=False)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.conv3 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(count) for count in (inside, inside, width))
        if before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class TheirPSPNet(nn.Module):
    """PSPNet-50 with the module names of hszhao/semseg: layer0..layer4, ppm, cls, aux."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for before, width, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
            stem += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        before = 128
        for stage, (depth, stride, dilation) in enumerate(((3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4)), start=1):
            width = 128 * 2**stage
            blocks = [Bottleneck(before, width, stride, dilation)]
            blocks += [Bottleneck(width, width, 1, dilation) for _ in range(depth - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(cells), nn.Conv2d(2048, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU()
            )
            for cells in (1, 2, 3, 6)
        )
        self.cls = self.classifier(4096, 512, classes)
        self.aux = self.classifier(1024, 256, classes)

    def classifier(self, channels: int, width: int, classes: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        aux, x = self.aux(x), self.layer4(x)
        size = x.shape[2:]
        pooled = [F.interpolate(f(x), size=size, mode="bilinear", align_corners=True) for f in self.ppm.features]
        return self.cls(torch.cat([x, *pooled], dim=1)), aux


def test_the_authors_weights_give_the_authors_scores() -> None:
    torch.manual_seed(0)
    theirs = TheirPSPNet(5).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=generator)
    state = theirs.state_dict()
    assert {key.split(".")[0] for key in state} == {*(f"layer{n}" for n in range(5)), "ppm", "cls", "aux"}
    ours = METHOD(PSPNetConfig(backbone="resnet50s_ppm", width=512), 5).eval()
    ours.load_state_dict(from_semseg({f"module.{key}": value for key, value in state.items()}))
    frame = torch.randint(0, 256, (1, 3, 65, 73), dtype=torch.uint8)
    with torch.inference_mode():
        expected, auxiliary = theirs(ours.normalize(frame))
        logits, _ = ours.step(frame)
        stages = ours.backbone(ours.normalize(frame))
        torch.testing.assert_close(ours.auxiliary(stages["stage3"]), auxiliary, rtol=1e-3, atol=1e-4)
    assert logits.shape == (1, 5, 9, 10)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_the_authors_key_names() -> None:
    """Spelled out, so that no code names both sides; counters that old files lack are filled in."""
    tensor = torch.zeros(1)
    pairs = {
        "layer0.0.weight": "backbone.conv1.weight",
        "layer0.1.running_mean": "backbone.bn1.running_mean",
        "layer0.3.weight": "backbone.conv2.weight",
        "layer0.4.bias": "backbone.bn2.bias",
        "layer0.6.weight": "backbone.conv3.weight",
        "layer0.7.weight": "backbone.bn3.weight",
        "layer1.0.downsample.1.weight": "backbone.layer1.0.downsample.1.weight",
        "layer4.2.conv3.weight": "backbone.layer4.2.conv3.weight",
        "ppm.features.3.1.weight": "backbone.ppm.features.3.1.weight",
        "ppm.features.0.2.bias": "backbone.ppm.features.0.2.bias",
        "cls.0.weight": "head.0.weight",
        "cls.1.running_var": "head.1.running_var",
        "cls.4.bias": "head.4.bias",
        "aux.0.weight": "auxiliary.0.weight",
        "aux.4.weight": "auxiliary.4.weight",
    }
    renamed = from_semseg(dict.fromkeys(pairs, tensor))
    assert set(renamed) == {*pairs.values(), "head.1.num_batches_tracked"}
    with pytest.raises(CheckpointError, match=r"not keys of a PSPNet: decode_head\.conv_seg\.bias, layer0\.2\.weight"):
        from_semseg({"cls.4.bias": tensor, "layer0.2.weight": tensor, "decode_head.conv_seg.bias": tensor})


def test_parameter_counts() -> None:
    """PSPNet-50 as theirs, 49.18 M with both heads at 150 classes; the default at 19 classes, 12.62 M as it runs."""
    with torch.device("meta"):
        ours, theirs = METHOD(PSPNetConfig(backbone="resnet50s_ppm", width=512), 150), TheirPSPNet(150)
        small = METHOD(PSPNetConfig(), 19)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(ours) == count(theirs)
    assert count(ours) / 1e6 == pytest.approx(49.18, abs=0.005)
    assert (count(small) - count(small.auxiliary)) / 1e6 == pytest.approx(12.62, abs=0.005)


# ---- ours --------------------------------------------------------------------------------------------------------


def test_head_reads_stage4_alone() -> None:
    model = build().eval()
    frame = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    with torch.inference_mode():
        x = model.backbone(model.normalize(frame))["stage4"]
        conv, norm, _, _, classifier = model.head
        x = F.conv2d(x, conv.weight, padding=1)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5).clamp(min=0)
        expected = F.conv2d(x, classifier.weight, classifier.bias)
        torch.testing.assert_close(model.step(frame)[0], expected, rtol=1e-4, atol=1e-5)
        (graph,) = model.graphs(frame).values()
        assert torch.equal(graph.function(frame)[0], model.step(frame)[0])


def test_auxiliary_loss() -> None:
    """alpha times the cross-entropy of the head on stage 3 (Sec. 3.3)."""
    model, sample = build(aux_weight=0.25).eval(), clip()
    with torch.no_grad():
        terms = model(sample)
        stages = model.backbone(model.normalize(sample.frames[:, 0]))
        labels = sample.labels[:, 0]
        torch.testing.assert_close(terms["ce"], cross_entropy(model.head(stages["stage4"]), labels))
        torch.testing.assert_close(terms["aux_ce"], 0.25 * cross_entropy(model.auxiliary(stages["stage3"]), labels))


def test_without_the_auxiliary_head() -> None:
    model = build(aux_weight=0.0)
    assert not any(key.startswith("auxiliary") for key in model.state_dict())
    assert model(clip()).keys() == {"ce"}


def test_options() -> None:
    for options, message in (
        ({"aux_weight": -0.1}, r"model\.aux_weight is -0\.1"),
        ({"width": 0}, r"model\.width is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**options)
    with pytest.raises(ConfigError, match="weights that a SegFormer lacks"):
        models.method("pspnet").adopt({})
