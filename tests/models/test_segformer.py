"""SegFormer against the plain form of its decoder and against transformers on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from steadyseg import models
from steadyseg.models import segformer
from steadyseg.types import CheckpointError

SegFormer = models.method("segformer")


def test_parameter_counts() -> None:
    """Spec: 3.75 M and 13.71 M for 124 classes at decoder width 256; 82.00 M for B5."""
    for backbone, millions in (("mit_b0", 3.75), ("mit_b1", 13.71), ("mit_b2", 24.75), ("mit_b5", 82.00)):
        with torch.device("meta"):
            model = SegFormer(SegFormer.Config(backbone=backbone), 124)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("training", [False, True])
def test_folded_decoder_is_the_papers(training: bool) -> None:
    """Linear per level, resize, concatenate deepest first, fuse, norm, ReLU, classify (Sec. 3.2)."""
    torch.manual_seed(0)
    decoder = SegFormer(SegFormer.Config(dropout=0.0), 7).decoder.train(training)
    decoder.linear_fuse.bn.running_mean.normal_()
    decoder.linear_fuse.bn.running_var.uniform_(0.5, 2.0)
    sizes, channels = [(20, 27), (10, 14), (5, 7), (3, 4)], [32, 64, 160, 256]
    stages = {f"stage{i + 1}": torch.randn(2, c, *s) for i, (c, s) in enumerate(zip(channels, sizes, strict=True))}
    levels = []
    for level in (4, 3, 2, 1):
        x = getattr(decoder, f"linear_c{level}").proj(stages[f"stage{level}"].movedim(1, -1)).movedim(-1, 1)
        levels.append(F.interpolate(x, size=sizes[0], mode="bilinear", align_corners=False))
    fused = F.relu(decoder.linear_fuse.bn(decoder.linear_fuse.conv(torch.cat(levels, dim=1))))
    expected = decoder.linear_pred(fused)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(decoder(stages), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mit_b0", "mit_b1", "mit_b2"])
def test_equals_transformers(backbone: str, tmp_path: Path) -> None:
    """A random model saved by transformers gives the same logits, to 1e-5 of their largest, and the same labels."""
    transformers = pytest.importorskip("transformers")
    from steadyseg.backbones.mit import VARIANTS

    torch.manual_seed(0)
    variant = VARIANTS[backbone]
    width = 768 if backbone == "mit_b2" else 256
    config = transformers.SegformerConfig(
        hidden_sizes=list(variant.channels), depths=list(variant.depths), decoder_hidden_size=width, num_labels=19
    )
    theirs = transformers.SegformerForSemanticSegmentation(config).eval()
    theirs.decode_head.batch_norm.running_mean.normal_()
    theirs.decode_head.batch_norm.running_var.uniform_(0.5, 2.0)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    ours = SegFormer(SegFormer.Config(backbone=backbone, norm_eps="hf", width=width), 19).eval()
    ours.load_state_dict(segformer.from_huggingface(state))
    frame = torch.randint(0, 256, (1, 3, 97, 131), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs(pixel_values=ours.normalize(frame)).logits
        logits, _ = ours.step(frame)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    back = segformer.to_huggingface(ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_nvlabs_names_round_trip() -> None:
    """The authors' names load, the unused layer is dropped by name, nothing is lost on the way to transformers."""
    torch.manual_seed(0)
    ours = SegFormer(SegFormer.Config(), 4).state_dict()
    theirs = {key.replace("decoder.", "decode_head."): value for key, value in ours.items()}
    theirs |= {"decode_head.conv_seg.weight": torch.zeros(4, 128, 1, 1), "decode_head.conv_seg.bias": torch.zeros(4)}
    loaded = segformer.from_nvlabs(theirs)
    assert loaded.keys() == ours.keys()
    again = segformer.from_huggingface(segformer.to_huggingface(loaded))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"decode_head\.extra\.weight"):
        segformer.from_huggingface({"decode_head.extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"block\.0\.0\.surprise"):
        segformer.from_huggingface({"segformer.encoder.block.0.0.surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no matching value"):
        segformer.from_huggingface({"segformer.encoder.block.0.0.attention.self.key.weight": torch.zeros(1)})


def test_folded_tensors_follow_the_weights() -> None:
    model = SegFormer(SegFormer.Config(), 4).eval()
    frame = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        before, _ = model.step(frame)
    assert model.decoder._folded is not None
    model.train()
    assert model.decoder._folded is None
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model.step(frame)[0], before)
    with torch.no_grad():
        model.decoder.linear_fuse.conv.weight.mul_(2)  # in evaluation mode, as an average of weights would
    with torch.inference_mode():
        after, _ = model.step(frame)
    assert not torch.allclose(before, after)
