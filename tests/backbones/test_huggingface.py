"""Backbones of transformers: equal to AutoBackbone bit for bit, built without a folder, and fit for every method."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from steadyseg.backbones import Backbone, build_backbone
from steadyseg.backbones.huggingface import deciding
from steadyseg.config import options_from_dict, options_to_dict
from steadyseg.models import method
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import IGNORE, Clip, ConfigError, ShapeError

transformers = pytest.importorskip("transformers")

HEADS = {"num_hidden_layers": 6, "num_attention_heads": 2, "hidden_size": 16, "image_size": 56}
MODELS: dict[str, dict[str, Any]] = {
    "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    "dinov2": HEADS,
    "dinov3_vit": {**HEADS, "intermediate_size": 32, "num_register_tokens": 2},
    "dinov3_convnext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    "resnet": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"},
}
PLAIN = {"dinov2": 14, "dinov3_vit": 16}  # patch sizes
SIZES = [(32, 32), (33, 63), (45, 70)]


def architecture(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **MODELS.get(kind, {}), **changes}


@cache
def shared(kind: str) -> Backbone:
    """A backbone that no test changes."""
    return build(kind)


def build(kind: str, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone("some/model", architecture=architecture(kind, **changes)).eval()


def segmenter(name: str, kind: str) -> VideoSegmenter:
    torch.manual_seed(0)
    cls = method(name)
    return cls(cls.Config(backbone="some/model", architecture=architecture(kind), width=16), 5)


def frames(length: int, size: tuple[int, int], batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (length, batch, 3, *size), generator=generator, dtype=torch.uint8))


@pytest.mark.parametrize("kind", MODELS)
def test_equals_autobackbone_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """The same seed gives the same weights and, at every size, the same maps as the library alone."""
    config = transformers.AutoConfig.for_model(**architecture(kind))
    config.save_pretrained(tmp_path)
    torch.manual_seed(1)
    ours = build_backbone(str(tmp_path)).eval()
    config = transformers.AutoConfig.for_model(**architecture(kind))
    config.out_indices = [1, 3, 4, 6] if kind in PLAIN else [1, 2, 3, 4]
    torch.manual_seed(1)
    theirs = transformers.AutoBackbone.from_config(config).eval()
    assert all(torch.equal(ours.state_dict()[f"model.{key}"], value) for key, value in theirs.state_dict().items())
    with torch.inference_mode():
        for size in SIZES:
            image = torch.randn(2, 3, *size)
            stages = ours(image)
            assert list(stages) == ["stage1", "stage2", "stage3", "stage4"]
            for x, expected in zip(stages.values(), theirs(image).feature_maps, strict=True):
                assert torch.equal(x, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_channels_strides_and_sizes(kind: str) -> None:
    backbone = shared(kind)
    patch = PLAIN.get(kind)
    assert backbone.strides == ((patch,) * 4 if patch else (4, 8, 16, 32))
    assert (backbone.minimum, list(backbone.units())) == (32, [])
    with torch.inference_mode():
        for height, width in SIZES:
            for x, channels, stride in zip(
                backbone(torch.randn(1, 3, height, width)).values(), backbone.channels, backbone.strides, strict=True
            ):
                assert x.shape[:2] == (1, channels)
                lowest = (max(height // stride, 1), max(width // stride, 1))  # some pad, others lose the rest
                highest = (-(-height // stride), -(-width // stride))
                assert all(a <= n <= b for a, n, b in zip(lowest, x.shape[2:], highest, strict=True))


def test_sizes_do_not_leave_traces() -> None:
    backbone, fresh = build("swin"), shared("swin")
    with torch.inference_mode():
        for size in SIZES:
            backbone(torch.randn(1, 3, *size))
        image = torch.randn(1, 3, 64, 96)
        for x, expected in zip(backbone(image).values(), fresh(image).values(), strict=True):
            assert torch.equal(x, expected)


def test_runs_only_as_a_whole() -> None:
    backbone = shared("convnext")
    with pytest.raises(KeyError, match="from the image to stage4"):
        backbone(torch.zeros(1, 3, 64, 64), stop="stage2")
    with pytest.raises(KeyError):
        backbone(torch.zeros(1, 8, 16, 16), start="stage1")
    with pytest.raises(ConfigError, match=r"up to 'stage1'; 'a/b' has no such unit, it runs as a whole only: take one"):
        build_backbone("a/b", architecture=architecture("convnext"), cuts=("shallow",))


def test_outputs_of_a_plain_vit() -> None:
    """Four layers that a config names stay; otherwise they are spread evenly, the last one among them."""
    assert shared("dinov2").architecture["out_indices"] == [1, 3, 4, 6]
    assert build("dinov2", num_hidden_layers=8).architecture["out_indices"] == [2, 4, 6, 8]
    assert build("dinov2", out_indices=[2, 4, 5, 6]).architecture["out_indices"] == [2, 4, 5, 6]
    assert build("dinov2", out_indices=[2, 6]).architecture["out_indices"] == [1, 3, 4, 6]
    assert build("swin", out_indices=[0, 1, 2, 3]).architecture["out_indices"] == [1, 2, 3, 4]
    tokens = build("dinov2", reshape_hidden_states=False)  # a config that asks for tokens still gives maps
    assert tokens(torch.zeros(1, 3, 42, 28))["stage1"].shape == (1, 16, 3, 2)


@pytest.mark.parametrize("kind", ["swin", "convnext", "dinov2"])
def test_architecture_builds_the_same_network_again(kind: str) -> None:
    backbone = build(kind, torch_dtype="float16", id2label={"0": "a"}, return_dict=False)
    plain = backbone.architecture
    assert json.loads(json.dumps(plain)) == plain
    assert not {"id2label", "torch_dtype", "dtype"} & set(plain)
    torch.manual_seed(0)
    again = build_backbone("elsewhere/unknown", architecture=plain).eval()
    assert again.architecture == plain
    image = torch.randn(1, 3, 45, 70)
    for x, expected in zip(again(image).values(), backbone(image).values(), strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, expected)


def test_what_decides_the_values_of_the_maps() -> None:
    """Defaults are filled in; what only changes training, heads or the choice of outputs is left out."""
    plain = deciding({"model_type": "swin", "depths": (1, 1, 2, 1), "num_heads": [1, 1, 2, 2], "path_norm": True})
    sizes = {"depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 7, "hidden_act": "gelu", "embed_dim": 96}
    assert sizes.items() <= plain.items()
    free = {"image_size", "drop_path_rate", "hidden_dropout_prob", "initializer_range", "encoder_stride", "path_norm"}
    assert not (free | {"out_indices", "out_features", "stage_names", "id2label", "transformers_version"}) & set(plain)
    for kind in MODELS:
        assert deciding(architecture(kind, image_size=112, drop_path_rate=0.3)) == deciding(architecture(kind))
        assert deciding(architecture(kind, hidden_act="silu")) != deciding(architecture(kind))
        assert {"num_hidden_layers", "depths"} & set(deciding(architecture(kind)))
    assert {"rope_theta", "num_register_tokens"} <= set(deciding(architecture("dinov3_vit")))
    assert {"downsample_in_bottleneck", "layer_type"} <= set(deciding(architecture("resnet")))


def test_a_config_cannot_bring_code() -> None:
    """Attention from the hub, remote modules and quantisation in a config.json are left out, not run."""
    code = {"attn_implementation": "owner/kernel", "_attn_implementation": "owner/kernel"}
    backbone = build("dinov2", **code, auto_map={"AutoModel": "owner/code--file.Class"}, quantization_config={"a": 1})
    assert backbone.architecture == shared("dinov2").architecture
    assert backbone.model.config._attn_implementation == shared("dinov2").model.config._attn_implementation


def test_architecture_passes_through_options_and_yaml() -> None:
    options = segmenter("segformer", "swin").config
    assert options.architecture["model_type"] == "swin"
    plain = options_to_dict(options)
    assert options_from_dict("segformer", plain) == options
    assert options_from_dict("segformer", yaml.safe_load(yaml.safe_dump(plain))) == options
    assert options_from_dict("segformer", json.loads(json.dumps(plain))) == options
    text = {"architecture": "{model_type: swin, layer_norm_eps: 1e-5}"}  # as an override gives it
    assert options_from_dict("segformer", text).architecture == {"model_type": "swin", "layer_norm_eps": 1e-5}
    with pytest.raises(ConfigError, match=r"model\.architecture is 3; expected a mapping or null"):
        options_from_dict("segformer", {"architecture": 3})


def test_hub_id_reads_the_architecture_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    transformers.AutoConfig.for_model(**architecture("convnext")).save_pretrained(tmp_path)

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert build_backbone("owner/name").channels == (8, 12, 16, 20)
    assert asked == [("owner/name", "config.json")]

    def fail(name: str, file: str) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        ConfigError, match=r"model\.backbone 'owner/name' is no folder, nor on the hub: no route to host"
    ):
        build_backbone("owner/name")


def test_a_model_around_a_backbone(tmp_path: Path) -> None:
    config = transformers.UperNetConfig(
        backbone_config=transformers.SwinConfig(**MODELS["swin"], out_features=["stage1", "stage2", "stage3", "stage4"])
    )
    config.save_pretrained(tmp_path)
    assert build_backbone(str(tmp_path)).architecture["model_type"] == "swin"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model_type": "bert"}, "'a/b' is a bert, which transformers cannot run as a backbone; take a Swin, ConvNeXt"),
        ({"model_type": "segformer"}, "'a/b' is a segformer, which transformers cannot run as a backbone; take mit_b0"),
        ({"model_type": "nothing"}, "'a/b' is not a nothing that this version of transformers knows: "),
        ({"depths": [1]}, "'a/b' has no model_type in its config.json"),
        (architecture("swin", depths="deep"), "'a/b' is not a swin that this version of transformers knows: "),
        (architecture("swin", embed_dim="nine"), "'a/b' is not a swin that this version of transformers knows: "),
        (architecture("swin", hidden_act="none"), "'a/b' cannot be built: "),
        (
            architecture("swin", depths=[1, 1, 1], num_heads=[1, 1, 1]),
            "'a/b' has 3 stages; a method needs four feature maps: take a Swin, ",
        ),
        (architecture("dinov2", num_hidden_layers=3), "'a/b' has 3 stages; a method needs four feature maps"),
        ({"model_type": "hiera"}, "'a/b' does not take images of 256x256; a method needs any size; take a Swin, "),
    ],
)
def test_what_cannot_be_a_backbone_is_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_backbone("a/b", architecture=options)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        build_backbone(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_architecture_of_our_own_backbones_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture is for models of transformers; 'mit_b0' has its own"):
        build_backbone("mit_b0", architecture=architecture("swin"))


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for options in (None, architecture("swin")):
        with pytest.raises(ConfigError, match=r"'a/b' needs the transformers library: pip install 'steadyseg\[hf\]'"):
            build_backbone("a/b", architecture=options)


def test_the_library_is_not_loaded_for_our_own_backbones() -> None:
    code = "import sys, steadyseg.models as m; m.method('segformer'); sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "kind"), [("segformer", "swin"), ("sdcpc", "dinov2")])
def test_methods_train(name: str, kind: str) -> None:
    """Every parameter that learns gets a gradient; those the maps do not depend on do not learn."""
    model = segmenter(name, kind).train()
    length = len(model.offsets)
    images = torch.stack(frames(length, (64, 96), batch=2), dim=1)
    labels = torch.randint(0, 5, (2, length, 64, 96), dtype=torch.uint8)
    labels[:, :, :5] = IGNORE
    terms = model(Clip(images, labels, torch.arange(length).expand(2, length)))
    sum(terms.values()).backward()
    learning = {key: p for key, p in model.backbone.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())
    rest = set(dict(model.backbone.named_parameters())) - set(learning)
    last = "model.swin.layernorm."
    assert rest == {"dinov2": {"model.embeddings.mask_token"}, "swin": {f"{last}weight", f"{last}bias"}}[kind]
    grouped = [p for group in model.parameter_groups(1e-3) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "kind"), [*(("segformer", kind) for kind in MODELS), ("sdcpc", "swin"), ("sdcpc", "dinov2")]
)
def test_methods_stream_at_any_size(name: str, kind: str) -> None:
    model = segmenter(name, kind).eval()
    with torch.inference_mode():
        for size in SIZES[1:]:
            together = list(model.segment(frames(2, size, batch=2)))
            for number, logits in enumerate(model.segment([frame[1:] for frame in frames(2, size, batch=2)])):
                assert logits.shape[:2] == (1, 5)
                torch.testing.assert_close(together[number][1:], logits, rtol=1e-4, atol=1e-5)
        with pytest.raises(ShapeError, match="at least 32x32"):
            model.step(frames(1, (31, 64))[0])


@pytest.mark.parametrize("kind", ["convnext", "dinov2"])
def test_graphs_export(kind: str) -> None:
    model = segmenter("segformer", kind).eval()
    graph = model.graphs(frames(1, (45, 70))[0])["frame"]

    class Module(torch.nn.Module):
        def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
            return graph.function(frame)

    with torch.no_grad():
        program = torch.export.export(Module(), tuple(graph.inputs.values()))
        torch.testing.assert_close(program.module()(*graph.inputs.values()), graph.function(*graph.inputs.values()))


def test_names_of_ours_win_over_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.AutoConfig.for_model(**architecture("convnext")).save_pretrained(tmp_path / "mit_b0")
    shutil.copytree(tmp_path / "mit_b0", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert build_backbone("mit_b0").architecture is None
    assert build_backbone("mine").channels == (8, 12, 16, 20)
