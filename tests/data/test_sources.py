"""Sources by name, and where their folders are."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import vspw_tree

from steadyseg.data import SourceConfig, names, open_source
from steadyseg.types import ConfigError


def test_names_have_a_file_each() -> None:
    assert set(names()) >= {"streets", "camvid", "vspw", "cityscapes", "folder"}


def test_unknown_source_suggests_the_near_name() -> None:
    with pytest.raises(ConfigError, match="unknown source 'camvit'; did you mean 'camvid'"):
        open_source(SourceConfig(source="camvit"))
    with pytest.raises(ConfigError, match="known are streets, camvid"):
        open_source(SourceConfig(source="qqq"))


def test_root_comes_from_the_config_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vspw_tree(tmp_path / "vspw")
    monkeypatch.setenv("STEADYSEG_DATA", str(tmp_path))
    assert open_source(SourceConfig(source="vspw", split="val")).names == ("b",)
    with pytest.raises(ConfigError, match=r"camvid is not a folder; set its root, or change STEADYSEG_DATA"):
        open_source(SourceConfig(source="camvid"))
    monkeypatch.delenv("STEADYSEG_DATA")
    with pytest.raises(ConfigError, match="set its root, or set STEADYSEG_DATA to a folder that holds vspw/"):
        open_source(SourceConfig(source="vspw"))
    assert open_source(SourceConfig(source="vspw", split="val", root=str(tmp_path / "vspw"))).names == ("b",)
    with pytest.raises(ConfigError, match="nowhere of source 'vspw' is not a folder"):
        open_source(SourceConfig(source="vspw", root=str(tmp_path / "nowhere")))


def test_streets_need_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEADYSEG_DATA", raising=False)
    source = open_source(SourceConfig(size=(32, 48), length=3, videos=2))
    assert len(source.names) == 2
    assert source.length(source.names[0]) == 3
    assert source.files(source.names[0]) is None
    with pytest.raises(ConfigError, match="'streets' is made, not read; leave its root here out"):
        open_source(SourceConfig(root="here"))


def test_weight_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="weight of source 'vspw' is 0"):
        SourceConfig(source="vspw", weight=0)


def test_only_the_videos_that_match():
    every = open_source(SourceConfig(split="val", videos=12))
    some = open_source(SourceConfig(split="val", videos=12, only="val-001*"))
    assert some.names == ("val-0010", "val-0011") == every.names[10:]
    with pytest.raises(
        ConfigError, match=r"no video of split 'val' matches 'test\*'; expected a pattern for names such as val-0000, "
    ):
        open_source(SourceConfig(split="val", videos=12, only="test*"))
