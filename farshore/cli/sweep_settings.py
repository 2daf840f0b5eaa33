"""Turn the arguments of ``farshore sweep`` into the configuration of a sweep, and check all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..core.nodes import nearest_name

if TYPE_CHECKING:
    from ..core.session import Workload
    from ..simulations.sweeps.config import SweepConfig

_YAML = (".yaml", ".yml")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def read_sweep(name: str, grid: Sequence[str], set_: Sequence[str], options: Mapping[str, Any]) -> SweepConfig:
    """Return the configuration of a sweep of a method, or of a scenario file, with the command line's arguments.

    Parameters
    ----------
    name : str
        A method, or a YAML file with settings of :class:`~farshore.simulations.sweeps.config.SweepConfig`.
    grid, set_ : sequence of str
        ``KEY=VALUE,VALUE`` and ``KEY=VALUE``, which override the file's.
    options : Mapping
        Settings of the sweep by name; None = not given.

    Raises
    ------
    NotFoundError
        There is no such method; the hint names the nearest.
    ConfigError
        A key or value is invalid, or the method does not run on one node alone.
    """
    from ..core.workloads import load
    from ..simulations.sweeps.cells import method_of
    from ..simulations.sweeps.config import SweepConfig
    from .settings import resolve

    given = _read_file(name) if name.endswith(_YAML) else {"method": name}
    workload = load(given["method"])
    settings, texts = _mapping(given, "settings"), _grid_texts(given, grid)
    first = [f"{key}={values[0]}" for key, values in texts.items()]
    base = resolve(workload.config, settings, [*set_, *first]).model_dump(mode="json", exclude_unset=True)
    for key in texts:
        _remove(base, key)
    values = {
        key: [_read(workload, settings, [*set_, *first[:place], *first[place + 1 :]], key, text) for text in each]
        for place, (key, each) in enumerate(texts.items())
    }
    given |= {key: value for key, value in options.items() if value is not None}
    config = resolve(SweepConfig, {**given, "settings": base, "grid": values}, ())
    assert isinstance(config, SweepConfig)
    if config.halving is not None and config.halving.key.partition(".")[0] not in workload.config.model_fields:
        near = nearest_name(config.halving.key, workload.config.model_fields)
        raise ConfigError(f"halving: '{workload.name}' has no setting '{config.halving.key}'", hint=near)
    method_of(config)
    return config


def _remove(values: dict[str, Any], key: str) -> None:
    """Remove a setting, and its section if nothing else is in it."""
    section, _, rest = key.partition(".")
    if rest and isinstance(values.get(section), dict):
        _remove(values[section], rest)
        if values[section]:
            return
    values.pop(section, None)


def _read_file(name: str) -> dict[str, Any]:
    """Read a scenario; a project's methods are registered from the ``pyproject.toml`` beside it."""
    from ..core.projects import methods_of, use_project
    from .settings import read_yaml

    if methods_of(Path(name).parent):
        use_project(Path(name).parent)
    given = read_yaml(Path(name))
    if not isinstance(given.get("method"), str):
        raise ConfigError(f"{name} names no method", hint="write method: NAME")
    return given


def _mapping(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"'{name}' is not a mapping of settings to values")
    return value


def _grid_texts(given: Mapping[str, Any], pairs: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each swept setting as texts, as for ``--set``."""
    found: dict[str, list[str]] = {}
    for key, values in _mapping(given, "grid").items():
        if not isinstance(values, list | str) or not values:
            raise ConfigError(f"the grid's '{key}' is not a list of values", hint=f"write {key}: [A, B]")
        found[key] = _values(key, values) if isinstance(values, str) else [_text(value) for value in values]
    named = set()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            raise ConfigError(f"--grid {pair}: not of the form KEY=VALUE,VALUE", hint="for example --grid lr=0.1,0.01")
        if key in named:
            raise ConfigError(f"--grid gives '{key}' twice", hint=f"write its values with commas: --grid {key}=A,B")
        named.add(key)
        found[key] = _values(key, text)
    return found


def _values(key: str, text: str) -> list[str]:
    """Split values at commas that are not within brackets, and expand ranges of integers."""
    from ..simulations.sweeps.config import expand

    found: list[str] = []
    for part in _split(text):
        match = _RANGE.fullmatch(part)
        try:
            found += map(str, expand(int(match[1]), int(match[2]))) if match else [part]
        except ValueError as error:
            raise ConfigError(f"the grid's {key}={text}: {error}") from None
    if not all(found):
        raise ConfigError(f"the grid's {key}={text}: a value is empty", hint=f"for example {key}=1,2")
    return found


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # JSON is YAML


def _read(workload: Workload, settings: Mapping[str, Any], pairs: Sequence[str], key: str, text: str) -> Any:
    """Return one value of the grid as the method reads it."""
    from .settings import resolve

    value: Any = resolve(workload.config, settings, [*pairs, f"{key}={text}"]).model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value
