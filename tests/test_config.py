import dataclasses

import pytest
import yaml

from steadyseg import config
from steadyseg.types import ConfigError


def write(folder, **sections):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": "sdcpc", **sections}))
    return path


@pytest.mark.parametrize("name", config.names())
def test_shipped_configs_load_and_survive_plain_values(name):
    experiment = config.load(name)
    assert name.startswith(experiment.method) or name.startswith("smoke")
    plain = config.to_dict(experiment)
    assert config.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == experiment


def test_file_holds_only_what_differs(tmp_path):
    experiment = config.load(write(tmp_path, train={"lr": "6e-4", "batch_size": 3}, model={"ssea": {"dcn": False}}))
    assert experiment.train == dataclasses.replace(config.TrainConfig(), lr=6e-4, batch_size=3)
    assert experiment.model.ssea.dcn is False and experiment.model.ssea.la is True
    assert experiment.eval == config.EvalConfig()


def test_overrides_win_and_are_typed(tmp_path):
    path = write(tmp_path, data={"train": [{"source": "camvid"}]}, train={"clip_norm": 1.0})
    overrides = [
        "train.lr=6e-5",
        "train.clip_norm=null",
        "train.channels_last=true",
        "train.devices=2",
        "data.train.0.root=2024",
        "data.augment.crop=[64, 96]",
        "eval.base=[480, 853]",
        "eval.source={source: vspw, split: val}",
    ]
    experiment = config.load(path, overrides)
    assert (experiment.train.lr, experiment.train.clip_norm, experiment.train.channels_last) == (6e-5, None, True)
    assert experiment.train.devices == 2
    assert experiment.data.train[0].root == "2024"
    assert experiment.data.augment.crop == (64, 96)
    assert experiment.eval.base == (480, 853)
    assert experiment.eval.source.source == "vspw"


def test_a_list_of_sections_can_be_overridden_whole():
    experiment = config.load("smoke_streets", ["data.train=[{source: camvid, still: true}, {source: streets}]"])
    assert [(entry.source, entry.still) for entry in experiment.data.train] == [("camvid", True), ("streets", False)]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.learning=1", "unknown key 'learning' in train; known are iterations, "),
        ("train.batchsize=1", "unknown key 'batchsize' in train; did you mean 'batch_size'?"),
        ("modle.width=1", "unknown key 'modle' in the config; did you mean 'model'?"),
        ("model.mcp.wieght=1", "unknown key 'wieght' in model.mcp"),
        ("data.train.0.sorce=x", "unknown key 'sorce' in data.train.0; did you mean 'source'?"),
        ("train.lr=fast", "train.lr is 'fast'; expected float"),
        ("train.batch_size=1.5", "train.batch_size is '1.5'; expected int"),
        ("train.channels_last=3", "train.channels_last is '3'; expected bool"),
        ("train.precision=bf8", "train.precision is 'bf8'; expected one of 32-true, bf16-mixed, 16-mixed"),
        ("train.clip_norm=x", "train.clip_norm is 'x'; expected float or null"),
        ("data.augment.crop=[1]", "data.augment.crop is '[1]'; expected tuple[int, int]"),
        ("data.train=streets", "data.train is 'streets'; expected a list"),
        ("data.train.7.source=x", "override 'data.train.7.source=x': there is no '7' in a list of 1"),
        ("train.lr.peak=1", "override 'train.lr.peak=1': there is no 'peak' in the value"),
        ("model.ssea=3", "model.ssea is 3; expected a mapping of "),
        ("model.ssea={", "model.ssea is '{'; expected YAML"),
        ("train.lr", "override 'train.lr' is not of the form section.key=value"),
        ("method=sdcp", "unknown method 'sdcp'; did you mean 'sdcpc'?"),
        ("train.iterations=0", "train.iterations is 0; expected at least 1"),
        ("train.workers=-1", "train.workers is -1; expected at least 0"),
        ("train.lr=0", "train.lr is 0.0; expected more than 0"),
        ("train.clip_norm=0", "train.clip_norm is 0.0; expected more than 0"),
    ],
)
def test_a_wrong_override_is_one_line(override, text):
    with pytest.raises(ConfigError) as error:
        config.load("smoke_streets", [override])
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- a\n- b\n", "holds list; expected the sections"),
        ("", "holds NoneType; expected the sections"),
        ("a: [", "is not YAML"),
        ("train: {lr: 1}\n", "the config needs a method, one of "),
        ("method: sdcpc\ntrain: 3\n", "train is 3; expected a mapping"),
        ("method: sdcpc\ntrain: {lr: }\n", "train.lr is empty; expected float"),
        ("method: sdcpc\ndata: {train: {source: camvid}}\n", "data.train is {'source': 'camvid'}; expected a list"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, text):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_section_means_the_defaults(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("method: segformer\nmodel:\ntrain:\n")
    assert config.load(path).train == config.TrainConfig()


def test_an_unknown_config_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown config 'sdcpc_mit_b0_camvd'; did you mean 'sdcpc_mit_b0_camvid'\?"):
        config.load("sdcpc_mit_b0_camvd")
    with pytest.raises(ConfigError, match=r"no config file .*absent\.yaml"):
        config.load(tmp_path / "absent.yaml")


def test_a_field_without_default_is_asked_for():
    @dataclasses.dataclass(frozen=True)
    class Needy:
        size: int

    with pytest.raises(ConfigError, match=r"model\.size is missing; it has no default"):
        config._build(Needy, {}, "model")


def test_options_of_a_method_survive_plain_values():
    options = config.load("smoke_streets", ["model.ssea.la=false"]).model
    assert config.options_from_dict("sdcpc", config.options_to_dict(options)) == options
