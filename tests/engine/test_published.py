"""Weights of others: whole SegFormers, and backbones under any head or none, each key asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from steadyseg.backbones.hrnet import HRNet
from steadyseg.backbones.resnet import ResNet
from steadyseg.engine.checkpoint import load_backbone, load_model, save_model
from steadyseg.models import method
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import CheckpointError

transformers = pytest.importorskip("transformers")

IMAGE = torch.arange(3 * 45 * 70).reshape(1, 3, 45, 70).remainder(251).to(torch.uint8)
SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
CONVNEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]}
DINO = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "use_swiglu_ffn": True}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
HEAD = {"model.last_layer.3.weight": torch.zeros(19, 270, 1, 1), "model.last_layer.3.bias": torch.zeros(19)}
FULL = [  # class, its config, the class of the backbone alone, the prefix of its keys
    ("SwinForImageClassification", transformers.SwinConfig(**SWIN), "SwinBackbone", "swin."),
    ("SwinForMaskedImageModeling", transformers.SwinConfig(**SWIN), "SwinBackbone", "swin."),
    ("SwinModel", transformers.SwinConfig(**SWIN), "SwinBackbone", ""),
    ("ConvNextForImageClassification", transformers.ConvNextConfig(**CONVNEXT), "ConvNextBackbone", "convnext."),
    ("Dinov2ForImageClassification", transformers.Dinov2Config(**DINO), "Dinov2Backbone", "dinov2."),
    ("Dinov2Model", transformers.Dinov2Config(**DINO), "Dinov2Backbone", ""),
]


def publish(folder: Path, name: str, config: Any) -> Path:
    """Save a model with random weights in every tensor, as the library publishes it."""
    torch.manual_seed(7)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def build(folder: Path, name: str = "segformer", **options: Any) -> VideoSegmenter:
    torch.manual_seed(0)
    cls = method(name)
    return cls(cls.Config(backbone=str(folder), width=16, **options), 3).eval()


def change(folder: Path, **changes: Any) -> None:
    """Change tensors of a published file; None takes one out."""
    state = load_file(folder / "model.safetensors") | changes
    save_file({key: value for key, value in state.items() if value is not None}, folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    """Change entries of a published config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "swin"
    return publish(folder, "SwinForImageClassification", transformers.SwinConfig(**SWIN))


@pytest.fixture
def mine(swin: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return Path(shutil.copytree(swin, tmp_path / "mine"))


# ---- backbones of transformers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "alone", "prefix"), FULL)
def test_a_full_model_starts_a_backbone(tmp_path: Path, name: str, config: Any, alone: str, prefix: str) -> None:
    folder = publish(tmp_path / "hub", name, config)
    keys = list(load_file(folder / "model.safetensors"))
    assert any(key.startswith(f"{prefix}embeddings.") for key in keys)
    model = build(folder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone(model, folder)
    theirs = getattr(transformers, alone).from_pretrained(folder, out_indices=[1, 2, 3, 4])
    with torch.inference_mode():
        image = model.normalize(IMAGE)
        for x, expected in zip(model.backbone(image).values(), theirs(image).feature_maps, strict=True):
            assert torch.equal(x, expected)
    still = [key for key, value in model.state_dict().items() if torch.equal(value, before[key])]
    assert all(key.startswith(("decoder.", "backbone.model.hidden_states_norms.")) for key in still)
    assert {key for key in before if key.startswith("decoder.")} <= set(still)


def test_a_segmentation_model_starts_a_backbone(tmp_path: Path) -> None:
    """The backbone of UperNet comes with the norms behind its stages."""
    config = transformers.UperNetConfig(
        backbone_config=transformers.SwinConfig(**SWIN, out_features=STAGES),
        hidden_size=16,
        pool_scales=[1],
        use_auxiliary_head=False,
    )
    folder = publish(tmp_path / "hub", "UperNetForSemanticSegmentation", config)
    model = build(folder)
    load_backbone(model, folder)
    theirs = transformers.UperNetForSemanticSegmentation.from_pretrained(folder).backbone
    with torch.inference_mode():
        image = model.normalize(IMAGE)
        for x, expected in zip(model.backbone(image).values(), theirs(image).feature_maps, strict=True):
            assert torch.equal(x, expected)
    change(folder, **{"backbone.hidden_states_norms.stage2.bias": None})
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.hidden_states_norms\.stage2\.bias\)"):
        load_backbone(model, folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.safetensors"])
def test_other_files_of_published_weights(swin: Path, tmp_path: Path, name: str) -> None:
    state = load_file(swin / "model.safetensors")
    (tmp_path / "config.json").write_bytes((swin / "config.json").read_bytes())
    save_file(state, tmp_path / name) if name.endswith(".safetensors") else torch.save(state, tmp_path / name)
    model, other = build(swin), build(swin)
    load_backbone(model, tmp_path if name == "pytorch_model.bin" else tmp_path / name)
    load_backbone(other, swin)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_every_key_of_the_backbone_is_asked_for(mine: Path) -> None:
    model = build(mine)
    key = "swin.encoder.layers.2.blocks.1.output.dense.weight"
    change(mine, **{key: None, "swin.embeddings.norm.weight": torch.zeros(5)})
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, mine)
    text = str(error.value)
    assert "1 missing (model.swin.encoder.layers.2.blocks.1.mlp.fc2.weight)" in text
    assert "1 wrongly shaped (model.swin.embeddings.norm.weight [5] instead of [8])" in text
    assert "\n" not in text and str(mine) in text
    save_file({"unknown.weight": torch.zeros(1)}, mine / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ missing \(model\..* and \d+ more\)"):
        load_backbone(model, mine)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "vit"}, "holds a model of type vit; expected swin"),
        ({"num_heads": [2, 2, 2, 2]}, r"num_heads is \[2, 2, 2, 2\]; expected \[1, 1, 2, 2\]: its weights are for"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 0.001; expected 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act is relu; expected gelu"),
        ({"depths": "deep"}, "'config.json' is not a swin that this version of transformers knows: "),
    ],
)
def test_another_network_of_the_same_shapes_is_refused(mine: Path, changes: dict[str, Any], text: str) -> None:
    model = build(mine)
    configure(mine, **changes)
    with pytest.raises(CheckpointError, match=text):
        load_backbone(model, mine)


def test_a_config_may_leave_defaults_out_but_not_differ_by_them(mine: Path) -> None:
    """What a config.json leaves out has transformers' default, which for num_heads is that of Swin-T."""
    model = build(mine)
    config = json.loads((mine / "config.json").read_text())
    short = {key: value for key, value in config.items() if key not in ("hidden_act", "layer_norm_eps", "mlp_ratio")}
    (mine / "config.json").write_text(json.dumps(short))
    load_backbone(model, mine)
    del short["num_heads"]
    (mine / "config.json").write_text(json.dumps(short))
    with pytest.raises(CheckpointError, match=r"num_heads is \[3, 6, 12, 24\]; expected \[1, 1, 2, 2\]"):
        load_backbone(model, mine)


def test_what_does_not_decide_the_maps_may_differ(mine: Path) -> None:
    model = build(mine)
    configure(mine, image_size=96, drop_path_rate=0.5, hidden_dropout_prob=0.2, out_indices=[4], path_norm=True)
    configure(mine, initializer_range=0.5, encoder_stride=16, out_features=["stage4"], id2label={"0": "road"})
    load_backbone(model, mine)
    assert torch.equal(
        model.backbone.model.swin.embeddings.norm.weight,
        load_file(mine / "model.safetensors")["swin.embeddings.norm.weight"],
    )


DEEPER = [  # class and config of a deeper network, what the shallower one has instead
    (
        "SwinForImageClassification",
        transformers.SwinConfig(**SWIN | {"depths": [1, 1, 3, 1]}),
        {"depths": [1, 1, 2, 1]},
    ),
    ("SwinModel", transformers.SwinConfig(**SWIN | {"depths": [1, 1, 3, 1]}), {"depths": [1, 1, 2, 1]}),
    ("ConvNextModel", transformers.ConvNextConfig(**CONVNEXT), {"depths": [1, 1, 1, 1]}),
    (
        "Dinov2ForImageClassification",
        transformers.Dinov2Config(**DINO | {"num_hidden_layers": 8}),
        {"num_hidden_layers": 4},
    ),
    (
        "DINOv3ViTModel",
        transformers.DINOv3ViTConfig(
            hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, image_size=64
        ),
        {"num_hidden_layers": 4},
    ),
]


@pytest.mark.parametrize(("name", "config", "less"), DEEPER)
def test_a_deeper_network_is_not_cut_short(tmp_path: Path, name: str, config: Any, less: dict[str, Any]) -> None:
    """With a config its sizes tell, in a plain file the keys that have no place."""
    folder = publish(tmp_path / "hub", name, config)
    architecture = json.loads((folder / "config.json").read_text())
    for key in ("out_indices", "out_features", "stage_names"):
        architecture.pop(key, None)
    model = build(tmp_path / "gone", architecture=architecture | less)
    ((key, value),) = less.items()
    with pytest.raises(CheckpointError) as error:
        load_backbone(model, folder)
    assert f"{folder}: {key} is {getattr(config, key)}; expected {value}" in str(error.value)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shutil.copy(folder / "model.safetensors", tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors: \d+ keys without a place in this \w+ \(.*\);"):
        load_backbone(model, tmp_path / "plain.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_backbone(build(tmp_path / "gone", architecture=architecture), tmp_path / "plain.safetensors")


def test_fewer_layers_than_a_checkpoint_has_are_refused(swin: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "a.safetensors", build(swin))
    with pytest.raises(
        CheckpointError, match=r"keys without a place in this swin \(swin\.encoder\.layers\.2\.blocks\.1"
    ):
        load_model(tmp_path / "a.safetensors", options={"architecture": {"depths": [1, 1, 1, 1]}})


def test_nothing_is_said_about_what_is_checked_here(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build(mine)
    capfd.readouterr()
    load_backbone(model, mine)
    assert capfd.readouterr() == ("", "")


def test_weights_of_other_families_are_refused(swin: Path) -> None:
    ours = method("segformer")(method("segformer").Config(), 3)
    with pytest.raises(CheckpointError, match="holds a model of type swin; expected segformer"):
        load_backbone(ours, swin)
    with pytest.raises(CheckpointError, match="holds a model of type swin; expected segformer"):
        load_model(swin)
    strange = SimpleNamespace(backbone=nn.Identity())
    with pytest.raises(CheckpointError, match="no published weights are known for a Identity"):
        load_backbone(strange, swin)


@pytest.mark.parametrize(("name", "half"), [("segformer", False), ("sdcpc", True)])
def test_a_checkpoint_needs_neither_folder_nor_hub(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, half: bool
) -> None:
    model = build(mine, name)
    load_backbone(model, mine)
    save_model(tmp_path / "a.safetensors", model, half=half)
    shutil.rmtree(mine)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.config == model.config and loaded.config.architecture["model_type"] == "swin"
    torch.testing.assert_close(loaded.step(IMAGE)[0], model.step(IMAGE)[0], rtol=0, atol=0.05 if half else 0)
    other = build(tmp_path / "gone", architecture=model.config.architecture)
    load_backbone(other, tmp_path / "a.safetensors")
    for key, value in other.backbone.state_dict().items():
        assert torch.equal(value, loaded.backbone.state_dict()[key]), key


def test_options_and_methods_keep_the_architecture(swin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "gone", architecture=json.loads((swin / "config.json").read_text()))
    save_model(tmp_path / "a.safetensors", model)

    class Other(type(model)):
        """A method whose adopt knows of no architecture."""

        @classmethod
        def adopt(cls, options: Any) -> Any:
            assert set(options) == {"backbone", "norm_eps", "width", "dropout"}
            return cls.Config(**options)

    monkeypatch.setattr("steadyseg.models.method", lambda name: Other if name == "other" else method(name))
    for options in ({}, {"dropout": 0.3}, {"architecture": {"drop_path_rate": "0.4"}}):
        loaded = load_model(tmp_path / "a.safetensors", method="other", options=options)
        assert torch.equal(loaded.step(IMAGE)[0], model.step(IMAGE)[0])
    assert loaded.backbone.model.config.drop_path_rate == 0.4
    with pytest.raises(CheckpointError, match=r"keys do not fit the model: \d+ missing \(backbone\.patch_embed1"):
        load_model(tmp_path / "a.safetensors", options={"backbone": "mit_b0"})


def test_a_checkpoint_with_key_names_of_an_older_transformers(swin: Path, tmp_path: Path) -> None:
    model = build(swin)
    save_model(tmp_path / "new.safetensors", model)
    model.backbone.model.save_pretrained(tmp_path / "old")  # in the names of all published files
    with (tmp_path / "new.safetensors").open("rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    state = {key: value for key, value in load_file(tmp_path / "new.safetensors").items() if "backbone" not in key}
    old = {f"backbone.model.{key}": value for key, value in load_file(tmp_path / "old" / "model.safetensors").items()}
    assert not set(old) <= set(model.state_dict())
    save_file(state | old, tmp_path / "old.safetensors", metadata=about)
    assert torch.equal(load_model(tmp_path / "old.safetensors").step(IMAGE)[0], model.step(IMAGE)[0])
    del old["backbone.model.embeddings.norm.bias"]
    save_file(state | old, tmp_path / "old.safetensors", metadata=about)
    with pytest.raises(CheckpointError, match=r"written with transformers [\d.]+.*: .* 1 missing \(backbone\.model\."):
        load_model(tmp_path / "old.safetensors")


# ---- SegFormers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.SegformerConfig(decoder_hidden_size=16, num_labels=3)
    return publish(tmp_path_factory.mktemp("hub") / "segformer", "SegformerForSemanticSegmentation", config)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_attention_heads": [1, 1, 1, 1]}, r"num_attention_heads is \[1, 1, 1, 1\]; expected \[1, 2, 5, 8\]"),
        ({"hidden_act": "relu"}, "hidden_act is relu; expected gelu"),
        ({"strides": [4, 2, 2, 1]}, r"strides is \[4, 2, 2, 1\]; expected \[4, 2, 2, 2\]"),
        ({"patch_sizes": [7, 3, 3, 5]}, r"patch_sizes is \[7, 3, 3, 5\]; expected \[7, 3, 3, 3\]"),
        ({"sr_ratios": [8, 4, 2, 2]}, r"sr_ratios is \[8, 4, 2, 2\]; expected \[8, 4, 2, 1\]"),
        ({"mlp_ratios": [4, 4, 4, 2]}, r"mlp_ratios is \[4, 4, 4, 2\]; expected \[4, 4, 4, 4\]"),
    ],
)
def test_a_segformer_of_other_sizes_is_refused(
    segformer: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    folder = Path(shutil.copytree(segformer, tmp_path / "other"))
    configure(folder, **changes)
    with pytest.raises(CheckpointError, match=text):
        load_model(folder)
    with pytest.raises(CheckpointError, match=text):
        load_backbone(method("segformer")(method("segformer").Config(), 3), folder)


def test_a_segformer_may_leave_its_sizes_out(segformer: Path, tmp_path: Path) -> None:
    """What is expected where a config.json says nothing is what transformers takes."""
    folder = Path(shutil.copytree(segformer, tmp_path / "other"))
    (folder / "config.json").write_text('{"model_type": "segformer"}')
    assert torch.equal(load_model(folder).step(IMAGE)[0], load_model(segformer).step(IMAGE)[0])
    known = json.loads((segformer / "config.json").read_text())  # of SegformerConfig's defaults
    for key in ("num_attention_heads", "hidden_act", "patch_sizes", "strides", "sr_ratios", "mlp_ratios"):
        assert key in known, f"transformers has no {key} any more; nothing would check it"


def test_the_layout_of_the_last_stage_matters_to_the_decoder_only(segformer: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(segformer, tmp_path / "other"))
    configure(folder, reshape_last_stage=False)
    with pytest.raises(CheckpointError, match="reshape_last_stage is False; expected True"):
        load_model(folder)
    load_backbone(method("segformer")(method("segformer").Config(), 3), folder)


# ---- ResNets and HRNet -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 in torchvision's layout."""
    torch.manual_seed(3)
    state = ResNet("resnet18").state_dict()
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_pyramid_pooling_stays_where_a_file_has_none(imagenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(imagenet, tmp_path / "resnet18.pth")
    torch.manual_seed(0)
    backbone = ResNet("resnet18_ppm")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load_backbone(SimpleNamespace(backbone=backbone), tmp_path / "resnet18.pth")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("ppm.") else imagenet[key]), key
    torch.save(
        {key: value for key, value in imagenet.items() if key != "layer3.0.bn1.weight"}, tmp_path / "resnet18.pth"
    )
    with pytest.raises(CheckpointError, match=r"resnet18\.pth: .*1 missing \(layer3\.0\.bn1\.weight\)"):
        load_backbone(SimpleNamespace(backbone=backbone), tmp_path / "resnet18.pth")


def test_resnet_of_transformers(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    folder = publish(tmp_path / "hub", "ResNetForImageClassification", config)
    backbone = ResNet("resnet18", output_stride=32).eval()
    load_backbone(SimpleNamespace(backbone=backbone), folder)
    theirs = transformers.ResNetBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4])
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for x, expected in zip(backbone(image).values(), theirs(image).feature_maps, strict=True):
            assert (x - expected).norm() < 1e-5 * expected.norm()
    plain = (folder / "config.json").read_text()
    for changes, text in (
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True; expected False"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage is True; expected False"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu; expected relu"),
    ):
        configure(folder, **changes)
        with pytest.raises(CheckpointError, match=text):
            load_backbone(SimpleNamespace(backbone=backbone), folder)
        (folder / "config.json").write_text(plain)
    (folder / "config.json").write_text('{"model_type": "resnet"}')  # the rest is transformers' default
    load_backbone(SimpleNamespace(backbone=backbone), folder)


def test_another_stem_is_refused(tmp_path: Path) -> None:
    torch.save(ResNet("resnet50s").state_dict(), tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=r"deep\.pth: the weights have a stem of three convolutions"):
        load_backbone(SimpleNamespace(backbone=ResNet("resnet50")), tmp_path / "deep.pth")


def test_hrnet_of_its_authors(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = HRNet("hrnet_w18").state_dict()
    torch.save({f"model.{key}": value for key, value in theirs.items()} | HEAD, tmp_path / "hrnet.pth")
    backbone = HRNet("hrnet_w18")
    load_backbone(SimpleNamespace(backbone=backbone), tmp_path / "hrnet.pth")
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.state_dict().items())
    torch.save(ResNet("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"resnet18\.pth: .* expected those of an HRNetV2"):
        load_backbone(SimpleNamespace(backbone=backbone), tmp_path / "resnet18.pth")
