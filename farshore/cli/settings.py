"""Build settings from ``--set key=value`` and YAML files with a pydantic model; errors suggest valid keys."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..core.errors import ConfigError
from ..core.yaml_text import load_yaml

_SIMILARITY = 0.5


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file: a YAML mapping.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = load_yaml(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a mapping of keys to values")
    return values


def build(model: type[BaseModel], pairs: Sequence[str], file: Path | None = None) -> BaseModel:
    """Build a configuration from the model's defaults, then the file, then each ``key=value`` in order.

    Parameters
    ----------
    model : type of BaseModel
    pairs : sequence of str
        ``key=value`` with dotted keys; values are YAML (``3``, ``true``, ``[a, b]``).
    file : Path, optional

    Raises
    ------
    ConfigError
        A key is unknown or a value is invalid (the message suggests the closest valid one), or both a section and a
        key inside it are given.
    """
    return resolve(model, read_yaml(file) if file else {}, pairs)


def resolve(model: type[BaseModel], given: Mapping[str, Any], pairs: Sequence[str]) -> BaseModel:
    """Build a configuration from ``given``, overridden by each ``key=value``; see :func:`build`."""
    values: dict[str, Any] = copy.deepcopy(dict(given))
    texts: dict[tuple[str, ...], str] = {}
    for pair in pairs:
        path, text = _split(pair)
        _check_conflict(model, path, text, texts)
        _put(model, values, path, _value(text))
        texts[path] = text
    _check_keys(model, values)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # YAML reads `name=12` as a number and `rule=no` as false; for text settings use the literal text.
        as_text = [tuple(map(str, e["loc"])) for e in error.errors() if e["type"] in ("string_type", "literal_error")]
        for path in set(as_text) & set(texts):
            _put(model, values, path, texts[path])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, error) from error


def read_pair(pair: str) -> tuple[str, Any]:
    """Parse ``key=value`` into the key and a YAML value.

    Raises
    ------
    ConfigError
        There is no ``=`` or no key.
    """
    path, text = _split(pair)
    return ".".join(path), _value(text)


def seconds(text: str, option: str) -> float:
    """Read a duration such as ``90``, ``90s``, ``10m``, ``1.5h`` or ``2d``; returns seconds.

    Raises
    ------
    ConfigError
        It is not of this form, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip())
    value = float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2] or "s"] if match else 0.0
    if not value:
        raise ConfigError(f"{option} {text}: not a duration", hint="write e.g. 90s, 10m or 2h")
    return value


def mapping(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Parse the ``NAME=VALUE`` pairs of an option.

    Raises
    ------
    ConfigError
        A pair has no ``=``, name or value, or a name is given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {pair}: not of the form NAME=VALUE")
        if name in found:
            raise ConfigError(f"{option} gives '{name}' twice")
        found[name] = value
    return found


def data_paths(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse ``--data NAME=PATH`` pairs; paths become absolute.

    Raises
    ------
    ConfigError
        As for :func:`mapping`.
    """
    return {name: Path(path).expanduser().resolve() for name, path in mapping(pairs, "--data").items()}


def describe(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """List the settings as rows of key, type, default, description."""
    return list(_rows(model, ""))


def _split(pair: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = pair.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {pair}: not of the form KEY=VALUE", hint="for example --set steps=100")
    return path, text


def _value(text: str) -> Any:
    try:
        return load_yaml(text) if text.strip() else ""
    except yaml.YAMLError:
        return text


def _check_conflict(
    model: type[BaseModel], path: tuple[str, ...], text: str, earlier: Mapping[tuple[str, ...], str]
) -> None:
    """Raise an error if a section and a key inside it are both set, in either order: one would overwrite the other."""
    for other, other_text in earlier.items():
        if path[: len(other)] == other != path and not isinstance(_value(other_text), dict):
            raise _conflict(model, other, other_text, f"{'.'.join(path)}={text}")
        if other[: len(path)] == path != other:
            raise _conflict(model, path, text, f"{'.'.join(other)}={other_text}")


def _conflict(model: type[BaseModel], path: tuple[str, ...], whole: Any, inner: str) -> ConfigError:
    key = ".".join(path)
    expanded = " and ".join(f"{key}.{name}={value}" for name, value in _expanded(model, path, whole).items())
    hint = f"use {expanded} instead of {key}={whole}" if expanded else "give one of them"
    return ConfigError(f"'{key}={whole}' and '{inner}' are both given and contradict each other", hint=hint)


def _expanded(model: type[BaseModel], path: tuple[str, ...], whole: Any) -> dict[str, Any]:
    """Expand the short form of a section (``uplink=topk``) to its settings; empty if the value is not a short form."""
    section: type[BaseModel] | None = model
    for part in path:
        field = section.model_fields.get(part) if section else None
        section = _inner(field.annotation) if field else None
    try:
        return section.model_validate(whole).model_dump(exclude_unset=True) if section else {}
    except ValidationError:
        return {}


def _put(model: type[BaseModel], values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set ``value`` at ``path``; an error if a file gives the section in its short form."""
    *parents, last = path
    for depth, part in enumerate(parents, 1):
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise _conflict(model, path[:depth], inner, f"{'.'.join(path)}={value}")
        values = inner
    values[last] = value


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the model class of a field's annotation, optional or not."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that ``--set`` accepts."""
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
        yield f"{prefix}{name}"


def _check_keys(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "", top: Any = None) -> None:
    top = top or model
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            raise _unknown_key(top, prefix + _first_leaf(name, value), prefix)
        inner = _inner(field.annotation)
        if inner is not None and isinstance(value, dict):
            _check_keys(inner, value, f"{prefix}{name}.", top)


def _first_leaf(name: str, value: Any) -> str:
    """Return the dotted key down to the first value that is not a mapping."""
    while isinstance(value, dict) and value:
        inner, value = next(iter(value.items()))
        name = f"{name}.{inner}"
    return name


def _unknown_key(model: type[BaseModel], key: str, prefix: str) -> ConfigError:
    known = list(_keys(model))
    leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
    matches = difflib.get_close_matches(key, known, n=1, cutoff=_SIMILARITY)
    if not matches or key.rpartition(".")[2] in leaves:
        # `--set rank=4` for `wire.rank`: prefer the same last part elsewhere over a similar spelling.
        leaf = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=_SIMILARITY)
        matches = [leaves[leaf[0]]] if leaf else matches
    if matches:
        return ConfigError(f"unknown setting '{key}'", hint=f"did you mean '{matches[0]}'?")
    candidates = [k for k in known if k.startswith(prefix)]
    return ConfigError(f"unknown setting '{key}'", hint=f"settings are {', '.join(sorted(candidates))}")


def _explain(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """Convert the first validation error to a ConfigError, suggesting the closest allowed value of a choice."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or model.__name__
    given = first.get("input")
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        return ConfigError(f"the setting '{key}' is missing", hint=f"give --set {key}=…")
    allowed = _allowed(first)
    if allowed:
        matches = difflib.get_close_matches(str(given), allowed, n=1, cutoff=_SIMILARITY)
        hint = f"did you mean '{matches[0]}'?" if matches else f"allowed are {', '.join(allowed)}"
        return ConfigError(f"invalid value '{given}' for '{key}'", hint=hint)
    if first["type"] in ("value_error", "assertion_error"):
        return ConfigError(f"invalid setting '{key}': {message}" if first["loc"] else message)
    return ConfigError(f"invalid value '{given}' for '{key}': expected {message[:1].lower()}{message[1:]}")


def _allowed(details: Any) -> list[str]:
    if details["type"] not in ("literal_error", "enum"):
        return []
    listed = str(details.get("ctx", {}).get("expected", ""))
    return [part.strip().strip("'\"") for part in listed.replace(" or ", ", ").split(",") if part.strip()]


def _rows(
    model: type[BaseModel], prefix: str, defaults: BaseModel | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a model; ``defaults``: the instance that is the default of the field with this model."""
    for name, field in model.model_fields.items():
        required = defaults is None and field.is_required()
        default = None if required else _default(field, name, defaults)
        inner = _inner(field.annotation)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
            continue
        text = "required" if required else str(default)
        yield f"{prefix}{name}", _type_name(field.annotation), text, field.description or ""


def _default(field: FieldInfo, name: str, defaults: BaseModel | None) -> Any:
    return getattr(defaults, name) if defaults is not None else field.get_default(call_default_factory=True)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(str(value) for value in get_args(annotation))
    return str(annotation).replace("typing.", "")
