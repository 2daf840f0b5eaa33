"""``--set`` and YAML files are validated by the method's model; errors suggest the closest valid key or value."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from farshore.cli.settings import build, data_paths, describe, mapping
from farshore.core.errors import ConfigError
from farshore.engines.federated.config import Downlink, FederatedConfig, Uplink


class Wire(BaseModel):
    rank: int = Field(8, ge=1, description="width of the code")
    up: Literal["raw", "int4", "int8"] = "raw"


class Settings(BaseModel):
    task: str = "docstrings"
    steps: int = Field(100, ge=1)
    lr: float = 1e-4
    layers: list[int] = []
    wire: Wire = Wire()
    limit: int | None = None


def built(*pairs: str, file: Path | None = None) -> Settings:
    settings = build(Settings, pairs, file)
    assert isinstance(settings, Settings)
    return settings


def test_values_are_yaml_and_keys_are_dotted() -> None:
    settings = built("steps=7", "lr=1e-3", "layers=[1, 2]", "wire.rank=4", "wire.up=int4", "limit=null")
    assert settings == Settings(steps=7, lr=1e-3, layers=[1, 2], wire=Wire(rank=4, up="int4"))


def test_the_last_value_wins_and_may_contain_an_equals_sign() -> None:
    assert built("task=a", "task=b=c").task == "b=c"


@pytest.mark.parametrize("text", ["12", "no", "null", "1.5", "2026-01-01"])
def test_text_settings_keep_the_literal_text(text: str) -> None:
    assert built(f"task={text}").task == text


def test_set_overrides_the_file_and_the_file_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("steps: 5\nwire: {rank: 2, up: int8}\n")
    assert built("wire.rank=3", file=file) == Settings(steps=5, wire=Wire(rank=3, up="int8"))


@pytest.mark.parametrize(
    ("pair", "suggestion"),
    [("stps=3", "steps"), ("rank=3", "wire.rank"), ("wire.rnk=3", "wire.rank"), ("wires.up=raw", "wire.up")],
)
def test_an_unknown_key_suggests_the_closest_one(pair: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(pair)
    assert f"'{pair.partition('=')[0]}'" in caught.value.message
    assert caught.value.hint == f"did you mean '{suggestion}'?"


def test_a_key_without_a_close_match_lists_all_keys() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'qqqq'") as caught:
        built("qqqq=1")
    assert "steps" in caught.value.hint
    assert "wire.rank" in caught.value.hint


def test_an_invalid_choice_suggests_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"invalid value 'int5' for 'wire\.up'") as caught:
        built("wire.up=int5")
    assert "int" in caught.value.hint


@pytest.mark.parametrize("pair", ["steps=0", "steps=many", "wire=3", "lr=fast"])
def test_an_invalid_value_is_reported_with_its_key(pair: str) -> None:
    with pytest.raises(ConfigError, match=f"'{pair.partition('=')[0]}'"):
        built(pair)


@pytest.mark.parametrize("pair", ["steps", "=3", "wire..rank=3"])
def test_a_malformed_pair_is_rejected(pair: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        built(pair)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "3: 4", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_not_a_mapping_is_rejected(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        built(file=file)


def test_name_value_pairs_are_validated() -> None:
    assert mapping(["a=b", "c=d=e"], "--data") == {"a": "b", "c": "d=e"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ConfigError, match="--data"):
            mapping(wrong, "--data")
    assert data_paths(["a=."])["a"].is_absolute()


def test_every_setting_is_described_with_its_dotted_key() -> None:
    rows = {key: (kind, default, meaning) for key, kind, default, meaning in describe(Settings)}
    assert rows["wire.rank"] == ("int", "8", "width of the code")
    assert rows["wire.up"] == ("raw | int4 | int8", "raw", "")
    assert rows["layers"][0] == "list[int]"


class Wide(BaseModel):
    wire: Wire = Wire(rank=64)


class Nested(BaseModel):
    name: str
    outer: Wide = Wide(wire=Wire(rank=2, up="int8"))
    plain: Wide = Wide()
    optional: Wire | None = None


def test_defaults_of_nested_settings_are_those_that_a_run_uses() -> None:
    rows = {key: default for key, _, default, _ in describe(Nested)}
    assert rows == {
        "name": "required",
        "outer.wire.rank": "2",
        "outer.wire.up": "int8",
        "plain.wire.rank": "64",
        "plain.wire.up": "raw",
        "optional.rank": "8",
        "optional.up": "raw",
    }


def federated(*pairs: str, file: Path | None = None) -> FederatedConfig:
    made = build(FederatedConfig, pairs, file)
    assert isinstance(made, FederatedConfig)
    return made


def test_an_encoding_may_be_set_by_its_name_alone() -> None:
    made = federated("uplink=topk", "downlink=int8")
    assert (made.uplink, made.downlink) == (Uplink(encoding="topk"), Downlink(encoding="int8"))
    with pytest.raises(ConfigError, match=r"invalid value 'int5' for 'uplink\.encoding'") as caught:
        federated("uplink=int5")
    assert "int" in caught.value.hint


@pytest.mark.parametrize("pairs", [("uplink=topk", "uplink.fraction=0.5"), ("uplink.fraction=0.5", "uplink=topk")])
def test_a_section_and_a_key_inside_it_cannot_both_be_set(pairs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        federated(*pairs)
    assert "'uplink=topk' and 'uplink.fraction=0.5' are both given" in caught.value.message
    assert caught.value.hint == "use uplink.encoding=topk instead of uplink=topk"
    fixed = federated("uplink.encoding=topk", "uplink.fraction=0.5").uplink
    assert fixed == Uplink(encoding="topk", fraction=0.5)


def test_an_invalid_section_value_and_a_key_inside_it_cannot_both_be_set() -> None:
    for pairs in (("wire=3", "wire.rank=2"), ("wire.rank=2", "wire=3"), ("wire.rank=2", "wire={up: int4}")):
        with pytest.raises(ConfigError, match="both given"):
            built(*pairs)
    assert built("wire={up: int4}", "wire.rank=2") == Settings(wire=Wire(rank=2, up="int4"))
    assert built("wire.rank=2", "wire.rank=3").wire.rank == 3


def test_set_conflicts_with_a_short_form_in_a_file_but_may_replace_a_section(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("uplink: topk\n")
    with pytest.raises(ConfigError, match=r"'uplink=topk' and 'uplink\.fraction=0\.5' are both given"):
        federated("uplink.fraction=0.5", file=file)
    file.write_text("uplink: {encoding: topk, fraction: 0.5}\n")
    assert federated("uplink=int8", file=file).uplink == Uplink(encoding="int8")
    file.write_text("uplink:\n")
    assert federated("uplink.encoding=int8", file=file).uplink == Uplink(encoding="int8")


@pytest.mark.parametrize(
    ("pairs", "owner"),
    [
        (["uplink.fraction=0.01"], "topk, not to raw"),
        (["uplink.fraction=0.5", "uplink.encoding=int8"], "topk, not to int8"),
        (["uplink.encoding=topk", "uplink.rank=4"], "lowrank, not to topk"),
        (["uplink.encoding=int4", "uplink.values=fp16"], "topk or lowrank, not to int4"),
    ],
)
def test_a_setting_of_another_encoding_is_rejected_even_at_its_default(pairs: list[str], owner: str) -> None:
    with pytest.raises(ConfigError, match=owner) as caught:
        federated(*pairs)
    assert "invalid setting 'uplink'" in caught.value.message
