import dataclasses
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import steadyseg
from steadyseg.engine import checkpoint
from steadyseg.engine.checkpoint import load_backbone, load_model, save_model
from steadyseg.models import method, sdcpc
from steadyseg.models.base import check_classes
from steadyseg.models.segformer import SegFormer, SegFormerConfig
from steadyseg.types import CheckpointError, ConfigError

IMAGE = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64).remainder(251).to(torch.uint8)


def build(name="segformer", classes=5, **options):
    kind = method(name)
    return kind(kind.Config(**options), classes).eval()


def nvlabs(model):
    """Return a SegFormer's weights as the authors' files hold them."""
    state = {key.replace("decoder.", "decode_head."): value for key, value in model.state_dict().items()}
    unused = {"decode_head.conv_seg.weight": torch.zeros(5, 128, 1, 1), "decode_head.conv_seg.bias": torch.zeros(5)}
    return {"meta": {"epoch": 1}, "state_dict": state | unused, "optimizer": {}}


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    """Return a folder of transformers' SegFormer with random weights, and that model."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub") / "segformer"
    settings = transformers.SegformerConfig(
        decoder_hidden_size=32, id2label={0: "road", 1: "car", 2: "tree"}, label2id={"road": 0, "car": 1, "tree": 2}
    )
    theirs = transformers.SegformerForSemanticSegmentation(settings).eval()
    theirs.save_pretrained(folder)
    return folder, theirs


@pytest.mark.parametrize(("name", "half"), [("segformer", False), ("sdcpc", True)])
def test_round_trip(tmp_path, name, half):
    model = build(name, 3)
    path = tmp_path / "weights.safetensors"
    save_model(path, model, tiny.TinySource(), half=half)
    loaded = load_model(path)
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    assert (loaded.classes, loaded.palette) == (tiny.TinySource.classes, tiny.TinySource.palette)
    for key, value in model.state_dict().items():
        expected = value.half().float() if half and key in dict(model.named_parameters()) else value
        assert torch.equal(loaded.state_dict()[key], expected), key
    assert torch.isclose(loaded.step(IMAGE)[0], model.step(IMAGE)[0], rtol=0, atol=0.05 if half else 0).all()
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    assert steadyseg.load_model is load_model


def test_float16_halves_the_file_and_refuses_what_overflows(tmp_path):
    model = build(classes=2)
    for half in (False, True):
        save_model(tmp_path / f"{half}.safetensors", model, half=half)
    assert (tmp_path / "True.safetensors").stat().st_size < 0.55 * (tmp_path / "False.safetensors").stat().st_size
    model.decoder.linear_pred.bias.data[0] = 1e6
    with pytest.raises(CheckpointError, match=r"decoder\.linear_pred\.bias does not fit into float16"):
        save_model(tmp_path / "new.safetensors", model, half=True)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"cannot write .*absent"):
        save_model(tmp_path / "absent" / "a.safetensors", build())

    def fill_the_disk(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*: .*No space left on device"):
        save_model(tmp_path / "a.safetensors", build())
    assert not list(tmp_path.iterdir())


def test_class_counts_must_agree(tmp_path):
    with pytest.raises(CheckpointError, match="the weights know 19 classes, the data has 3"):
        check_classes(build(classes=19), tiny.TinySource.classes)
    with pytest.raises(CheckpointError, match="19 classes"):
        save_model(tmp_path / "x.safetensors", build(classes=19), tiny.TinySource())


def test_keys_that_do_not_fit_are_listed(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_model(path, build())
    about = {
        "steadyseg": json.dumps(
            {"method": "segformer", "config": {}, "classes": list("abcde"), "palette": [[0, 0, 0]] * 5}
        )
    }
    state = load_file(path)
    state["backbone.extra.weight"] = state.pop("backbone.norm1.weight")
    state["backbone.norm2.bias"] = torch.zeros(7)
    save_file(state, path, metadata=about)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    text = str(error.value)
    assert "1 missing (backbone.norm1.weight)" in text
    assert "1 extra (backbone.extra.weight)" in text
    assert "1 wrongly shaped (backbone.norm2.bias [7] instead of [64])" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (None, "does not say which model it holds"),
        ({"steadyseg": "{"}, "does not say which model it holds"),
        ({"steadyseg": json.dumps({"method": "segformer"})}, "does not say which model it holds"),
        (
            {"steadyseg": json.dumps({"method": "segformer", "config": {"wdth": 3}, "classes": [], "palette": []})},
            "does not fit this version of steadyseg: unknown key 'wdth' in model; did you mean 'width'?",
        ),
        (
            {"steadyseg": json.dumps({"method": "nothing", "config": {}, "classes": [], "palette": []})},
            "unknown method 'nothing'",
        ),
    ],
)
def test_files_of_others_are_refused(tmp_path, metadata, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "a.safetensors")
    assert text in str(error.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", "truncated"])
def test_damaged_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    if content == "truncated":
        model = build()
        save_model(path, model) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert name in str(error.value) and "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.exploded = True",))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, save):
    save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="could run code; not loaded"):
        load_model(tmp_path / "bomb.pth")
    assert not hasattr(__import__("builtins"), "exploded")


@pytest.mark.parametrize("value", [[1, 2], {"state_dict": {"a": 3}}, {"epoch": 3}])
def test_a_pickle_without_weights_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected"):
        load_model(tmp_path / "a.pth")


def test_nvlabs_segmentation_file(tmp_path):
    model = build(backbone="mit_b1", width=48)
    state = nvlabs(model)
    state["state_dict"] = {f"module.{key}": value for key, value in state["state_dict"].items()}
    torch.save(state, tmp_path / "segformer.pth")
    loaded = load_model(tmp_path / "segformer.pth")
    assert (loaded.config.backbone, loaded.config.width, loaded.num_classes) == ("mit_b1", 48, 5)
    assert torch.equal(loaded.step(IMAGE)[0], model.step(IMAGE)[0])


def test_nvlabs_file_with_other_keys_is_refused(tmp_path):
    state = nvlabs(build())
    state["state_dict"]["auxiliary.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"auxiliary\.weight"):
        load_model(tmp_path / "a.pth")
    del state["state_dict"]["auxiliary.weight"], state["state_dict"]["backbone.norm1.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(backbone\.norm1\.bias\)"):
        load_model(tmp_path / "a.pth")
    del state["state_dict"]["decode_head.linear_pred.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing key decoder\.linear_pred\.weight"):
        load_model(tmp_path / "a.pth")


def test_sizes_that_no_backbone_has_are_refused(tmp_path):
    state = {key: value for key, value in nvlabs(build())["state_dict"].items() if "block3.1" not in key}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no MiT has \(32, 64, 160, 256\) channels and \(2, 2, 1, 2\) blocks"):
        load_model(tmp_path / "a.pth")


def test_imagenet_file_starts_a_backbone_but_is_no_model(tmp_path):
    model, start = build("sdcpc"), build()
    state = dict(start.backbone.state_dict()) | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "mit_b0.pth")
    head = model.head.state_dict()
    load_backbone(model, tmp_path / "mit_b0.pth")
    assert all(
        torch.equal(value, start.backbone.state_dict()[key]) for key, value in model.backbone.state_dict().items()
    )
    assert all(torch.equal(value, head[key]) for key, value in model.head.state_dict().items())
    with pytest.raises(CheckpointError, match=r"a backbone without a decoder; use it to start training: train\.init"):
        load_model(tmp_path / "mit_b0.pth")


def test_backbone_from_a_whole_model(tmp_path):
    model, start = build("sdcpc"), build()
    torch.save(nvlabs(start), tmp_path / "a.pth")
    save_model(tmp_path / "a.safetensors", start, half=True)
    for name in ("a.pth", "a.safetensors"):
        load_backbone(model, tmp_path / name)
        key = "block4.1.attn.kv.weight"
        assert torch.allclose(model.backbone.state_dict()[key], start.backbone.state_dict()[key], atol=1e-3)
        assert model.backbone.state_dict()[key].dtype == torch.float32


def test_pyramid_pooling_may_be_missing_in_a_backbone(tmp_path, caplog):
    start, model = build("pspnet", backbone="resnet18"), build("pspnet", backbone="resnet18_ppm")
    pooling = {key: value.clone() for key, value in model.backbone.ppm.state_dict().items()}
    save_model(tmp_path / "plain.safetensors", start)
    load_backbone(model, tmp_path / "plain.safetensors")
    assert "plain.safetensors: the backbone has no ppm., which keeps its random start" in caplog.text
    loaded = model.backbone.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in start.backbone.state_dict().items())
    assert all(torch.equal(value, loaded[f"ppm.{key}"]) for key, value in pooling.items())


def test_backbone_of_another_size_is_refused(tmp_path):
    save_model(tmp_path / "b1.safetensors", build(backbone="mit_b1"))
    with pytest.raises(CheckpointError, match=r"wrongly shaped \(.*patch_embed1\.proj\.weight \[64, 3, 7, 7\]"):
        load_backbone(build(), tmp_path / "b1.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*176 missing \(.* and 168 more\); 1 extra \(a\)"):
        load_backbone(build(), tmp_path / "a.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"steadyseg": "{}"})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no key starts with backbone\."):
        load_backbone(build(), tmp_path / "a.safetensors")


def test_transformers_folder(huggingface):
    folder, theirs = huggingface
    ours = load_model(folder)
    assert ours.classes == ("road", "car", "tree")
    assert (ours.config.backbone, ours.config.width, ours.config.norm_eps) == ("mit_b0", 32, "hf")
    with torch.inference_mode():
        expected = theirs(ours.normalize(IMAGE)).logits
        torch.testing.assert_close(ours.step(IMAGE)[0], expected, rtol=1e-5, atol=1e-5)
    model = build("sdcpc")
    load_backbone(model, folder)
    assert torch.equal(model.backbone.patch_embed1.proj.weight, ours.backbone.patch_embed1.proj.weight)


def test_transformers_folder_with_a_pickle(huggingface, tmp_path):
    folder, _ = huggingface
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        load_model(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(tmp_path).step(IMAGE)[0], load_model(folder).step(IMAGE)[0])


def test_class_names_must_be_as_many_as_the_classes(huggingface, tmp_path):
    folder, _ = huggingface
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "road"}}))
    with pytest.raises(CheckpointError, match="id2label names 1 classes; the weights have 3"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "id2label"}))
    assert load_model(tmp_path).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "has no readable config.json"),
        ('{"model_type": "vit"}', "holds a model of type vit; expected segformer"),
        ("[]", "holds a model of type None; expected segformer"),
        ('{"model_type": "segformer", "num_attention_heads": [1, 1, 1, 1]}', r"heads is \[1, 1, 1, 1\]; expected"),
    ],
)
def test_transformers_folders_that_do_not_fit(huggingface, tmp_path, config, text):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes((huggingface[0] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=text):
        load_model(tmp_path)


def test_transformers_encoder_alone_is_no_model(huggingface, tmp_path):
    folder, _ = huggingface
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    encoder = {key: value for key, value in state.items() if key.startswith("segformer.encoder.")}
    save_file(encoder | {"classifier.weight": torch.zeros(1000, 256)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a backbone without a decoder"):
        load_model(tmp_path)
    load_backbone(build(), tmp_path)


class Every(SegFormer):
    """A method that runs the weights of a SegFormer, with an option of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SegFormerConfig):
        interval: int = 4

    @classmethod
    def adopt(cls, options):
        return cls.Config(**options)


@pytest.fixture
def every(monkeypatch):
    """Make `Every` known under its name."""
    monkeypatch.setattr("steadyseg.models.method", lambda name: Every if name == "every" else method(name))


def files_of_segformers(huggingface, tmp_path):
    """Return a folder of transformers, an authors' file and one of ours."""
    torch.save(nvlabs(build(width=48)), tmp_path / "a.pth")
    save_model(tmp_path / "a.safetensors", build(width=24, drop_path=0.3, dropout=0.2), half=True)
    return huggingface[0], tmp_path / "a.pth", tmp_path / "a.safetensors"


@pytest.mark.usefixtures("every")
def test_another_method_runs_the_weights_of_a_segformer(huggingface, tmp_path):
    for place in files_of_segformers(huggingface, tmp_path):
        plain = load_model(place)
        model = load_model(place, method="every", options={"interval": 6})
        assert type(model) is Every and not model.training
        assert model.config.interval == 6
        shared = [field.name for field in dataclasses.fields(plain.config)]
        assert [getattr(model.config, name) for name in shared] == [getattr(plain.config, name) for name in shared]
        assert (model.classes, model.palette) == (plain.classes, plain.palette)
        assert torch.equal(model.step(IMAGE)[0], plain.step(IMAGE)[0])
        assert load_model(place, method="every").config.interval == 4
        assert type(load_model(place, method="segformer")) is type(plain)


@pytest.mark.usefixtures("every")
def test_methods_that_cannot_run_the_weights(huggingface, tmp_path):
    for place in files_of_segformers(huggingface, tmp_path):
        with pytest.raises(
            ConfigError, match=r"sdcpc has weights that a SegFormer lacks: train it by one of its configs"
        ):
            load_model(place, method="sdcpc")
        with pytest.raises(ConfigError, match=r"unknown method 'segfomer'; did you mean 'segformer'\?"):
            load_model(place, method="segfomer")
    save_model(tmp_path / "sdcpc.safetensors", build("sdcpc"))
    assert type(load_model(tmp_path / "sdcpc.safetensors", method="sdcpc")) is method("sdcpc")
    for name in ("segformer", "every"):
        with pytest.raises(ConfigError, match=r"holds a model of method sdcpc, which only that method can run, not "):
            load_model(tmp_path / "sdcpc.safetensors", method=name)


def test_options_change_the_file_s_own(tmp_path):
    path = tmp_path / "a.safetensors"
    save_model(path, build("sdcpc", drop_path=0.3, mcp=sdcpc.MCPConfig(temperature=0.2)))
    model = load_model(path, options={"dssa": {"order": "direct"}, "mcp": {"query_cap": "7"}, "drop_path": 0})
    assert model.config.dssa == sdcpc.DSSAConfig(order="direct")
    assert model.config.mcp == sdcpc.MCPConfig(temperature=0.2, query_cap=7)
    assert model.config.drop_path == 0
    assert load_model(path, options={}).config == load_model(path).config
    for options, text in (
        ({"dsa": {}}, "method 'sdcpc' has no option 'dsa'; did you mean 'dssa'?"),
        ({"dssa": {"points": "many"}}, "model.dssa.points is 'many'; expected int"),
        ({"dssa": {"points": 5}}, "model.dssa.points is 5; expected 4, 9 or 16"),
    ):
        with pytest.raises(ConfigError) as error:
            load_model(path, options=options)
        assert text in str(error.value)
    with pytest.raises(CheckpointError, match=r"wrongly shaped \(dssa\.offsets1\.output\.weight \[8, 128, 3, 3\]"):
        load_model(path, options={"dssa": {"points": 9}})


def test_150_classes_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = {number: f"thing {number}" for number in range(150)}
    settings = transformers.SegformerConfig(decoder_hidden_size=16, id2label=names)
    theirs = transformers.SegformerForSemanticSegmentation(settings).eval()
    theirs.save_pretrained(tmp_path)
    for name in (None, "segformer"):
        model = load_model(tmp_path, method=name)
        assert model.classes == tuple(names.values())
        with torch.inference_mode():
            expected = theirs(model.normalize(IMAGE)).logits
            torch.testing.assert_close(model.step(IMAGE)[0], expected, rtol=1e-5, atol=1e-5)


def test_names_paths_and_hub_ids(tmp_path, monkeypatch, huggingface):
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path)
    save_model(tmp_path / "my_model.safetensors", build())
    assert checkpoint.names() == ["my_model"]
    assert load_model("my_model").num_classes == 5
    asked = []
    monkeypatch.setattr(
        checkpoint, "snapshot_download", lambda name, allow_patterns: asked.append(name) or str(huggingface[0])
    )
    assert load_model("owner/name").num_classes == 3
    assert asked == ["owner/name"]
    with pytest.raises(CheckpointError, match=r"no run in runs/absent: train it first, .* train absent$"):
        load_model("runs/absent")
    for wrong in ("absent", "a/b/c", "owner/name.safetensors", "./x"):
        with pytest.raises(
            CheckpointError, match=r"neither a file, a folder, a shipped name nor owner/name; shipped are my_model"
        ):
            load_model(wrong)
    with pytest.raises(CheckpointError, match="did you mean 'my_model'"):
        load_model("my_modle")
    assert asked == ["owner/name"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def fail(name, allow_patterns):
        raise OSError("no route\nto host")

    monkeypatch.setattr(checkpoint, "snapshot_download", fail)
    with pytest.raises(
        CheckpointError, match=r"no file or folder 'owner/name', and .* hub does not give it: no route$"
    ):
        load_model("owner/name")


def test_run_folder_and_wrong_kinds_of_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no readable config\.json"):
        load_model(tmp_path)
    save_model(tmp_path / "model.safetensors", build())
    assert load_model(tmp_path).num_classes == 5
    (tmp_path / "video.mp4").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not a weights file"):
        load_model(tmp_path / "video.mp4")
