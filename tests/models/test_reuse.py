"""Feature reuse: SegFormer's weights and results, and streaming against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg import models
from steadyseg.losses import cross_entropy
from steadyseg.models.reuse import METHOD, ReuseConfig
from steadyseg.types import IGNORE, Clip, ConfigError

SIZE = (64, 96)
OPTIONS = {"backbone": "mit_b0", "norm_eps": "hf", "width": 32, "dropout": 0.0}
SegFormer = models.method("segformer")


def segformer() -> SegFormer:
    torch.manual_seed(0)
    model = SegFormer(SegFormer.Config(**OPTIONS), 5)
    model.decoder.linear_fuse.bn.running_mean.normal_()
    model.decoder.linear_fuse.bn.running_var.uniform_(0.5, 2.0)
    return model.eval()


def adopted(**options: object) -> METHOD:
    model = METHOD(METHOD.adopt({**OPTIONS, **options}), 5)
    model.load_state_dict(segformer().state_dict())
    return model.eval()


def frames(length: int, batch: int = 1, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8))


def pair(batch: int = 2) -> Clip:
    images = torch.stack(frames(2, batch), dim=1)
    labels = torch.randint(0, 5, (batch, 2, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Clip(images, labels, torch.tensor([[0, 3]]).expand(batch, 2))


def literal(model: METHOD, now: Tensor, key: Tensor) -> Tensor:
    """The definition: SegFormer's decoder as in its paper, on shallow levels of one frame and deep ones of another."""
    new, old = model.backbone(model.normalize(now)), model.backbone(model.normalize(key))
    decoder, size = model.decoder, new["stage1"].shape[2:]
    levels = []
    for level in (4, 3, 2, 1):
        stage = (old if level >= model.config.reuse_from else new)[f"stage{level}"]
        projected = getattr(decoder, f"linear_c{level}").proj(stage.movedim(1, -1)).movedim(-1, 1)
        levels.append(F.interpolate(projected, size=size, mode="bilinear", align_corners=False))
    fused = F.relu(decoder.linear_fuse.bn(decoder.linear_fuse.conv(torch.cat(levels, dim=1))))
    return decoder.linear_pred(fused)


def test_interval_1_is_segformer() -> None:
    theirs, ours = segformer(), adopted(interval=1)
    with torch.inference_mode():
        for frame, logits in zip(frames(3), ours.segment(frames(3)), strict=True):
            torch.testing.assert_close(logits, theirs.step(frame)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reuse_from", [2, 3, 4])
@pytest.mark.parametrize("interval", [2, 4])
def test_streaming_is_the_definition(reuse_from: int, interval: int) -> None:
    model = adopted(reuse_from=reuse_from, interval=interval)
    images = frames(9, batch=2, size=(67, 90))
    with torch.inference_mode():
        for t, logits in enumerate(model.segment(images)):
            expected = literal(model, images[t], images[t - t % interval])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_key_frames_run_everything_and_others_only_the_shallow_stages() -> None:
    model = adopted()
    runs: list[str] = []
    for stage in (1, 2, 3, 4):
        name = f"norm{stage}"
        getattr(model.backbone, name).register_forward_hook(lambda *_, name=name: runs.append(name))
    state, ages = None, []
    with torch.inference_mode():
        for frame in frames(6):
            _, state = model.step(frame, state)
            ages.append(state.age)
    assert ages == [0, 1, 2, 3, 0, 1]
    key, between = ["norm1", "norm2", "norm3", "norm4"], ["norm1", "norm2"]
    assert runs == key + between * 3 + key + between
    assert model.period == 4


def test_graphs_stream_like_step() -> None:
    model = adopted()
    images = frames(6)
    with torch.inference_mode():
        graphs = model.graphs(images[0])
        for t, logits in enumerate(model.segment(images)):
            if t % 4 == 0:
                mine, deep = graphs["key"].function(images[t])
            else:
                (mine,) = graphs["between"].function(images[t], deep)
            assert torch.equal(mine, logits)


def test_training_is_segformers() -> None:
    clip = pair()
    single = Clip(clip.frames[:, -1:], clip.labels[:, -1:], clip.index[:, -1:])
    model = adopted()
    assert model.offsets == (0,)
    terms = model(single)
    assert set(terms) == {"ce"}
    torch.testing.assert_close(terms["ce"], segformer()(single)["ce"], rtol=1e-5, atol=1e-6)


def test_training_with_reuse() -> None:
    """In evaluation mode, so that statistics do not depend on the batch, the terms are those of `step`'s logits."""
    model = adopted(train_reuse=True)
    assert model.offsets == (-3, 0)
    clip = pair()
    clip.labels[:, :, :9] = IGNORE
    with torch.inference_mode():
        terms = model(clip)
        key, state = model.step(clip.frames[:, 0])
        target, _ = model.step(clip.frames[:, 1], state)
        torch.testing.assert_close(terms["key_ce"], cross_entropy(key, clip.labels[:, 0]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(terms["ce"], cross_entropy(target, clip.labels[:, 1]), rtol=1e-5, atol=1e-6)
    assert set(model(Clip(clip.frames[:, 1:], clip.labels[:, 1:], clip.index[:, 1:]))) == {"ce"}
    assert adopted(train_reuse=True, interval=1).offsets == (0,)


def test_the_target_teaches_all_that_ran_on_the_key_frame() -> None:
    """The gradients of "ce" are those of the definition, in which nothing is cut off."""
    model, same = adopted(train_reuse=True), adopted(train_reuse=True)
    clip = pair()
    model(clip)["ce"].backward()
    cross_entropy(literal(same, clip.frames[:, 1], clip.frames[:, 0]), clip.labels[:, 1]).backward()
    for (name, ours), theirs in zip(model.named_parameters(), same.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_key_frame_needs_no_labels() -> None:
    model = adopted(train_reuse=True).train()
    clip = pair()
    clip.labels[:, 0] = IGNORE
    terms = model(clip)
    assert terms["key_ce"] == 0
    terms["ce"].backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert not missing
    assert model.backbone.norm4.weight.grad.any()


def test_options() -> None:
    assert METHOD.adopt(OPTIONS) == ReuseConfig(**OPTIONS)
    with pytest.raises(ConfigError, match=r"model\.interval is 0; expected at least 1"):
        METHOD(ReuseConfig(interval=0), 5)
    with pytest.raises(ConfigError, match=r"model\.reuse_from is 1; expected 2, 3 or 4"):
        METHOD(ReuseConfig(reuse_from=1), 5)  # type: ignore[arg-type]
