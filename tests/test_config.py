import dataclasses
from fnmatch import fnmatch
from functools import cache

import pytest
import torch
import yaml

from steadyseg import backbones, config, models
from steadyseg.types import ConfigError

CLASSES = {"vspw": 124, "cityscapes": 19, "camvid": 11, "streets": 11}
SHARED = ("segformer_mit_b0_camvid", "sdcpc_mit_b0_camvid", "tfc_mit_b0_camvid", "dcfm_mit_b0_camvid")
FIRST = tuple(f"{name}_first" for name in SHARED)
OWN_WORK = (*SHARED, *FIRST, "segformer_mit_b0_camvid_start", "smoke_streets")
"""Configs that repeat no published row."""
PUBLISHED = [name for name in config.names() if name not in OWN_WORK]
SCORES = {"mIoU", "wIoU", "mVC8", "mVC16", "TC", "mIoU_test"}
COSTS = {"params_m", "gflops", "fps"}
PARAMETERS_DIFFER: dict[str, str] = {}
"""Rows whose printed number of parameters is not ours, and why."""
RECIPES = {
    "segformer_*": (8, 160_000, 6e-5, 6e-4),
    "sdcpc_*": (4, 160_000, 2e-5, 2e-4),
    "dcfm_mit_b[12]_*": (16, 160_000, 6e-5, 6e-4),
    "dcfm_mit_b5_*": (16, 160_000, 4e-5, 6e-4),
    "dcfm_resnet18_*": (8, 80_000, 0.01, 0.01),
    "dcfm_resnet50s_*_cityscapes": (8, 80_000, 0.01, 0.01),
    "dcfm_resnet101s_*": (4, 80_000, 0.01, 0.01),
    "dcfm_resnet50s_*_camvid": (8, 40_000, 0.02, 0.02),
    "tfc_*": (16, 160_000, 6e-5, 6e-4),
    "reuse_*": (16, 160_000, 6e-5, 6e-4),
    "msaf_*": (8, 80_000, 6e-5, 6e-4),
    "pspnet_*": (16, 37_200, 0.01, 0.1),
}
"""Clips a step, steps, peak learning rates of backbone and head."""


@cache
def shipped(name):
    return config.load(name)


@cache
def defaults(method):
    return config.to_dict(config.from_dict({"method": method}))


def write(folder, **sections):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": "sdcpc", **sections}))
    return path


@pytest.mark.parametrize("name", {name.split("_")[0]: name for name in config.names()}.values())
def test_a_config_of_each_method_survives_plain_values(name):
    plain = config.to_dict(shipped(name))
    assert config.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == shipped(name)


@pytest.mark.parametrize("name", config.names())
def test_shipped_configs_say_what_they_are(name):
    experiment = shipped(name)
    assert (config.FOLDER / f"{name}.yaml").read_text().startswith("# ")
    assert experiment.reproduces.strip()
    if name == "smoke_streets":
        return
    backbone, dataset = experiment.model.backbone, experiment.eval.source.source
    assert backbone in backbones.names() and dataset in {entry.source for entry in experiment.data.train}
    stem = f"{experiment.method}_{backbone}_{dataset}"
    what = name.removeprefix(stem)
    if what.startswith("_k"):
        assert experiment.model.interval == int(what[2:])
    elif what.startswith("_n"):
        assert experiment.model.dssa.points == int(what[2:])
    elif what[1:].isdigit():
        assert min(experiment.eval.base) == int(what[1:])
    else:
        assert what in ("", "_first", "_start")


def test_shipped_configs_differ():
    contents = [dataclasses.replace(shipped(name), reproduces="", published={}) for name in config.names()]
    assert all(one != other for n, one in enumerate(contents) for other in contents[:n])


@pytest.mark.parametrize("name", config.names())
def test_shipped_configs_build(name):
    """On the device meta, where nothing is computed; and no row has another size than its paper prints."""
    experiment = shipped(name)
    with torch.device("meta"):
        model = models.method(experiment.method)(experiment.model, CLASSES[experiment.eval.source.source])
    assert model.offsets[-1] == 0
    printed = experiment.published.get("params_m")
    if printed is not None:
        ours = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert (abs(ours / printed - 1) > 0.03) == (name in PARAMETERS_DIFFER), (
            f"{ours:.2f} M here, {printed} M printed"
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows(name):
    experiment = shipped(name)
    assert " table, row " in experiment.reproduces
    assert set(experiment.published) <= SCORES | COSTS
    assert all(10 < experiment.published[key] < 100 for key in SCORES & set(experiment.published))
    assert experiment.train.init is not None
    assert experiment.eval.base is not None, "the test size is the paper's, whatever size the files have"
    assert experiment.data.augment.base_size is not None, "so is the size that the recipe scales"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    train = shipped(name).train
    (recipe,) = [recipe for pattern, recipe in RECIPES.items() if fnmatch(name, pattern)]
    clips, head = train.batch_size * train.devices * train.nodes, train.lr * train.head_lr_factor
    assert (clips, train.iterations, train.lr, pytest.approx(head)) == recipe


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_hold_only_what_differs(name):
    raw = yaml.safe_load((config.FOLDER / f"{name}.yaml").read_text())
    assert set(_restated(raw, defaults(raw["method"]))) <= {
        "method",
        "model.backbone",
        "data.augment.crop",
        "eval.source.split",
    }


def _restated(raw, default, where=""):
    """Yield the keys whose value is the default."""
    for key, value in raw.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            yield from _restated(value, default[key], f"{where}{key}.")
        elif value == default.get(key):
            yield where + key


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


def test_a_plain_on_or_off_and_infinity_mean_what_they_say() -> None:
    raw = {"msda": False, "interp": False, "theta": "inf"}  # as YAML reads msda: off
    options = config.options_from_dict("tfc", raw)
    assert (options.msda, options.interp, options.theta) == ("off", "off", float("inf"))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"model\.interp is 'on'; expected one of cosine"):
        config.options_from_dict("tfc", {"interp": True})


def test_options_of_a_call() -> None:
    assert config.parse_options("interval=6 adaptive.threshold=0.4") == {
        "interval": "6",
        "adaptive": {"threshold": "0.4"},
    }
    with pytest.raises(ConfigError, match="options have 'junk'; expected key=value"):
        config.parse_options("theta=1 junk")
    assert config.has_options("reuse", {"interval": 2}) and not config.has_options("sdcpc", {"interval": 2})
    with pytest.raises(ConfigError, match=r"method 'sdcpc' has no option 'interval', as it has no key frames; dcfm, "):
        config.check_options("sdcpc", {"interval": 2})
    with pytest.raises(ConfigError, match="did you mean 'theta'"):
        config.check_options("tfc", {"thetta": 2})


@pytest.mark.parametrize("part", [FIRST, SHARED], ids=["first", "second"])
def test_the_camvid_models_differ_in_their_method_alone(part):
    recipes = []
    for name in part:
        experiment = config.load(name)
        assert experiment.train.init == (f"runs/{name}_first" if part is SHARED else "segformer_mit_b0_camvid_start")
        assert experiment.model.backbone == "mit_b0"
        recipes.append((experiment.data, dataclasses.replace(experiment.train, init=""), experiment.eval))
    assert all(recipe == recipes[0] for recipe in recipes)
