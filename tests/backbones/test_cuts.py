"""Running a backbone in two parts equals running it at once, bit for bit, for every cut; sizes, and MiT's weights."""

from __future__ import annotations

import pytest
import torch

from steadyseg.backbones import build_backbone, hrnet, mit, names, resnet
from steadyseg.backbones.base import STAGES
from steadyseg.backbones.mit import from_huggingface, from_nvlabs, to_huggingface
from steadyseg.layers import to_tokens
from steadyseg.types import CheckpointError, ConfigError

FAMILIES = ("mit_b0", "resnet18", "resnet50s_ppm", "hrnet_w18")
SIZES = {4: (120, 214), 8: (60, 107), 16: (30, 54), 32: (15, 27)}
"""Of a map of an image of 480x853, by stride."""


def test_names_are_those_of_the_families() -> None:
    assert names() == [*mit.VARIANTS, *resnet.VARIANTS, *hrnet.WIDTHS]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cut_is_exact(name: str) -> None:
    backbone = build_backbone(name).eval()
    image = torch.randn(2, 3, 39, 57)
    with torch.inference_mode():
        whole = backbone(image)
        assert list(whole) == list(STAGES)
        value = image  # what the units up to here pass on
        *cuts, last = backbone.units()
        assert last[0] == "stage4"
        for cut, unit in cuts:
            value = unit(value)
            first = backbone(image, stop=cut)
            second = backbone(value, start=cut)
            assert torch.equal(first[cut], backbone.output(cut, value))
            assert {*first, *second} == {*STAGES, cut} and not {*first} & {*second}, cut
            for stage, expected in whole.items():
                assert torch.equal((first | second)[stage], expected), (cut, stage)


@pytest.mark.parametrize("name", names())
def test_sizes_and_channels(name: str) -> None:
    """480x853 gives 120x214, 60x107, 30x54, 15x27."""
    with torch.device("meta"):
        backbone = build_backbone(name)
        stages = backbone(torch.empty(2, 3, 480, 853))
    assert [tuple(x.shape[1:]) for x in stages.values()] == [
        (channels, *SIZES[stride]) for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_smallest_and_odd_images(name: str, size: tuple[int, int]) -> None:
    """Every stage has pixels, and maps are stored channels-last or are parts of such a map."""
    backbone = build_backbone(name).eval()
    assert backbone.minimum == 32
    with torch.inference_mode():
        for stage, x in backbone(torch.randn(1, 3, *size)).items():
            stride = backbone.strides[STAGES.index(stage)]
            assert x.shape[2:] == tuple(-(-side // stride) for side in size)
            assert x.isfinite().all()
            assert x.stride(1) == 1 and to_tokens(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("name", FAMILIES)
def test_units_leave_their_input_alone(name: str) -> None:
    backbone = build_backbone(name)
    value = torch.randn(2, 3, 33, 47)
    for mode in (True, False):
        backbone.train(mode)
        with torch.inference_mode():
            for unit, function in backbone.units():
                maps = value if isinstance(value, tuple) else (value,)
                before = [x.clone() for x in maps]
                passed_on = function(value)
                assert all(torch.equal(x, copy) for x, copy in zip(maps, before, strict=True)), unit
                value = passed_on
        value = torch.randn(2, 3, 33, 47)


def test_parameter_counts() -> None:
    expected = {
        "mit_b0": 3.319,
        "mit_b1": 13.151,
        "mit_b2": 24.196,
        "mit_b3": 44.072,
        "mit_b4": 60.843,
        "mit_b5": 81.443,
    }
    with torch.device("meta"):
        for name, millions in expected.items():
            count = sum(p.numel() for p in build_backbone(name).parameters())
            assert count / 1e6 == pytest.approx(millions, abs=6e-4), name


def test_unknown_units_and_names() -> None:
    backbone = build_backbone("mit_b0")
    with pytest.raises(KeyError, match=r"stage2\.block1"):
        backbone(torch.zeros(1, 3, 64, 64), stop="stage9")
    with pytest.raises(KeyError):
        backbone(torch.zeros(1, 3, 64, 64), start="stage3", stop="stage2")
    with pytest.raises(ConfigError, match="did you mean 'mit_b0'"):
        build_backbone("mit-b0")


def test_published_names_round_trip() -> None:
    ours = build_backbone("mit_b0").state_dict()
    again = from_huggingface(to_huggingface(ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    file = {**ours, "head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    assert from_nvlabs(file).keys() == ours.keys()
    with pytest.raises(CheckpointError, match="mystery"):
        from_huggingface({"mystery.weight": torch.zeros(1)})
    with pytest.raises(KeyError):
        to_huggingface({"mystery.weight": torch.zeros(1)})


def test_norm_epsilons() -> None:
    """Authors: 1e-6 for block and stage norms, 1e-5 after embedding and reduction; transformers: 1e-5 everywhere."""
    ours = build_backbone("mit_b0", norm_eps="nvlabs")
    assert ours.block1[0].norm1.eps == ours.block1[0].norm2.eps == ours.norm1.eps == 1e-6
    assert ours.patch_embed1.norm.eps == ours.block1[0].attn.norm.eps == 1e-5
    theirs = build_backbone("mit_b0", norm_eps="hf")
    assert {m.eps for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}


def test_drop_path_grows_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("mit_b0", drop_path=0.7)
    rates = [block.drop_path.rate for stage in (1, 2, 3, 4) for block in getattr(backbone, f"block{stage}")]
    assert rates == pytest.approx(torch.linspace(0, 0.7, 8).tolist())
    drop = backbone.block4[1].drop_path.train()
    out = drop(torch.ones(1000, 2, 3))
    per_sample = out.flatten(1)
    assert ((per_sample == 0).all(1) | torch.isclose(per_sample, torch.tensor(1 / 0.3)).all(1)).all()
    assert (per_sample[:, 0] == 0).float().mean() == pytest.approx(0.7, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3)), torch.ones(3))
