"""YAML with a key that is given twice is refused, with its line."""

from __future__ import annotations

import pytest
import yaml

from farshore.core.yaml_text import load_yaml


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: 2\na: 3\n", 3), ("x:\n  a: 1\n  a: 1\n", 3), ("x: [{a: 1, a: 2}]\n", 1)]
)
def test_a_key_given_twice_is_refused(text: str, line: int) -> None:
    with pytest.raises(yaml.YAMLError, match=rf"the key 'a' is given twice(.|\n)*line {line}"):
        load_yaml(text)


def test_everything_else_is_read_as_by_safe_load() -> None:
    text = "base: &b {a: 1, c: [1, 2.5, yes, null, text]}\nother:\n  <<: *b\n  a: 2\n1: one\n"
    assert load_yaml(text) == yaml.safe_load(text)
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("text", ["[a]: 1", "{a: 1}: 2", "? !!python/tuple [a, [b]]\n: 1", "a:\n  - [x, y]: 1"])
def test_a_key_that_is_a_list_or_mapping_is_an_error_of_the_text(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="line "):
        load_yaml(text)


@pytest.mark.parametrize("text", ["a: 2001-99-99", "!!int 5x", "[" * 2000])
def test_values_that_cannot_be_built_are_errors_of_the_text(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
