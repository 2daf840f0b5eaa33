"""Reads YAML as ``yaml.safe_load`` does, but refuses keys that are given twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TextIO

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of several equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # a key may override one that is merged in
            key = self.construct_object(key_node, deep=True)
            try:
                given_before = key in seen
                seen.add(key)
            except TypeError:  # a list or mapping, possibly within a tuple
                problem = "a key of a mapping is a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark) from None
            if given_before:
                problem = f"the key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(text: str | TextIO) -> Any:
    """Parse one YAML document of plain values.

    Raises
    ------
    yaml.YAMLError
        It is not YAML, has tags of other types, or gives a key of a mapping twice; the error names the line.
    """
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # e.g. a date that does not exist
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()
