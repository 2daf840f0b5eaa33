"""Reads the ``pyproject.toml`` of a Flower app: its components and its run configuration."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from .config import Value


@dataclass(frozen=True, slots=True)
class Project:
    """Components and configuration of a Flower app.

    Attributes
    ----------
    server, client : str
        ``module:attribute`` of the ServerApp and the ClientApp.
    config : dict
        Run configuration, with nested keys joined by dots.
    requirements : tuple of str
        The app's ``project.dependencies``.
    flower : dict
        The whole table ``[tool.flwr.app]``.
    """

    server: str
    client: str
    config: dict[str, Value]
    flower: dict[str, Any]
    requirements: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Project:
        """Read the ``pyproject.toml`` in ``folder``.

        Raises
        ------
        ConfigError
            The folder is not a Flower app.
        """
        path = folder / "pyproject.toml"
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{folder} is not a Flower app: it has no pyproject.toml") from error
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        flower = found.get("tool", {}).get("flwr", {}).get("app", {})
        requirements = found.get("project", {}).get("dependencies", [])
        listed = tuple(str(text) for text in requirements) if isinstance(requirements, list) else ()
        parts = flower.get("components", {})
        server, client = parts.get("serverapp"), parts.get("clientapp")
        for name, reference in (("serverapp", server), ("clientapp", client)):
            if not isinstance(reference, str) or not all(reference.partition(":")):
                raise ConfigError(
                    f"{path} names no {name}", hint=f'[tool.flwr.app.components] needs {name} = "module:app"'
                )
        return cls(server, client, _flat(flower.get("config", {}), path), flower, listed)

    def fused(self, changes: Mapping[str, Value]) -> dict[str, Value]:
        """The run configuration with overrides.

        Raises
        ------
        ConfigError
            The app has no such key, or its value has another type.
        """
        return {**self.config, **{key: self._checked(key, value) for key, value in changes.items()}}

    def _checked(self, key: str, value: Value) -> Value:
        if key not in self.config:
            near = difflib.get_close_matches(key, self.config, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"its keys: {', '.join(sorted(self.config)) or 'none'}"
            raise ConfigError(f"the app's configuration has no key '{key}'", hint=hint)
        kind = type(self.config[key])
        if kind is float and type(value) is int:
            return float(value)
        if kind is not type(value):
            raise ConfigError(f"the app's '{key}' must be {kind.__name__}, not '{value}'")
        return value


def _flat(nested: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= _flat(value, path, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            found[prefix + name] = value
        else:
            raise ConfigError(
                f"{path}: '{prefix}{name}' in the app's configuration must be a number, string or boolean"
            )
    return found
