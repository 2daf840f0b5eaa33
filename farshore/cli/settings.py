"""``--set key=value`` and YAML files, through the method's pydantic model; mistakes get the nearest right answer."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError

_MISSPELT = 0.5


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file: a YAML mapping.

    Raises
    ------
    ConfigError
        It cannot be read, is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
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
    """Build a configuration: the model's defaults, then the file, then each ``key=value`` in order.

    Parameters
    ----------
    model : type of BaseModel
    pairs : sequence of str
        ``key=value`` with dotted keys; values are YAML (``3``, ``true``, ``[a, b]``).
    file : Path, optional

    Raises
    ------
    ConfigError
        A key is unknown or a value does not fit; the message names the nearest right one. Or a key is given as a
        whole and a key inside it too.
    """
    return resolve(model, read_yaml(file) if file else {}, pairs)


def resolve(model: type[BaseModel], given: Mapping[str, Any], pairs: Sequence[str]) -> BaseModel:
    """Build a configuration from values with each ``key=value`` over them; see :func:`build`."""
    values: dict[str, Any] = copy.deepcopy(dict(given))
    texts: dict[tuple[str, ...], str] = {}
    for pair in pairs:
        path, text = _split(pair)
        _check_apart(model, path, text, texts)
        _put(model, values, path, _value(text))
        texts[path] = text
    _check_keys(model, values)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # YAML reads `name=12` as a number and `rule=no` as false; where text is wanted, take what was typed.
        retyped = [tuple(map(str, e["loc"])) for e in error.errors() if e["type"] in ("string_type", "literal_error")]
        for path in set(retyped) & set(texts):
            _put(model, values, path, texts[path])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(model, error) from error


def read_pair(pair: str) -> tuple[str, Any]:
    """A ``key=value`` as key and YAML value.

    Raises
    ------
    ConfigError
        It has no ``=`` or no key.
    """
    path, text = _split(pair)
    return ".".join(path), _value(text)


def mapping(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` pairs of an option.

    Raises
    ------
    ConfigError
        One has no ``=``, no name, or a name given twice.
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
    """Read ``--data NAME=PATH`` pairs; paths become absolute.

    Raises
    ------
    ConfigError
        As for :func:`mapping`.
    """
    return {name: Path(path).expanduser().resolve() for name, path in mapping(pairs, "--data").items()}


def describe(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """One row per setting: key, type, default, meaning."""
    return list(_rows(model, ""))


# ---- inside ----------------------------------------------------------------------------------------------------------


def _split(pair: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = pair.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {pair}: not of the form KEY=VALUE", hint="write e.g. --set steps=100")
    return path, text


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError:
        return text


def _check_apart(
    model: type[BaseModel], path: tuple[str, ...], text: str, earlier: Mapping[tuple[str, ...], str]
) -> None:
    """A key as a whole and a key inside it do not go together, in either order: one would be lost."""
    for other, told in earlier.items():
        if path[: len(other)] == other != path and not isinstance(_value(told), dict):
            raise _at_odds(model, other, told, f"{'.'.join(path)}={text}")
        if other[: len(path)] == path != other:
            raise _at_odds(model, path, text, f"{'.'.join(other)}={told}")


def _at_odds(model: type[BaseModel], path: tuple[str, ...], whole: Any, inner: str) -> ConfigError:
    key = ".".join(path)
    spelled = " and ".join(f"{key}.{name}={value}" for name, value in _spelled_out(model, path, whole).items())
    hint = f"write {spelled} instead of {key}={whole}" if spelled else "give one of them"
    return ConfigError(f"'{key}={whole}' and '{inner}' are both given, and one would undo the other", hint=hint)


def _spelled_out(model: type[BaseModel], path: tuple[str, ...], whole: Any) -> dict[str, Any]:
    """The settings for which a plain value of a whole section stands; none where it stands for nothing."""
    section: type[BaseModel] | None = model
    for part in path:
        field = section.model_fields.get(part) if section else None
        section = _inner(field.annotation) if field else None
    try:
        return section.model_validate(whole).model_dump(exclude_unset=True) if section else {}
    except ValidationError:
        return {}


def _put(model: type[BaseModel], values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set ``value`` at ``path``; refused where a plain value, as a file may hold one, stands for the whole section."""
    *parents, last = path
    for depth, part in enumerate(parents, 1):
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise _at_odds(model, path[:depth], inner, f"{'.'.join(path)}={value}")
        values = inner
    values[last] = value


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, optional or not."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that ``--set`` may name."""
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
    """The dotted key as somebody would have typed it: down to the first value that is no mapping."""
    while isinstance(value, dict) and value:
        inner, value = next(iter(value.items()))
        name = f"{name}.{inner}"
    return name


def _unknown_key(model: type[BaseModel], key: str, prefix: str) -> ConfigError:
    known = list(_keys(model))
    leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = difflib.get_close_matches(key, known, n=1, cutoff=_MISSPELT)
    if not near or key.rpartition(".")[2] in leaves:
        # `--set rank=4` where the key is `wire.rank`: the right leaf in the wrong place beats a similar word.
        leaf = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=_MISSPELT)
        near = [leaves[leaf[0]]] if leaf else near
    if near:
        return ConfigError(f"there is no setting '{key}'", hint=f"did you mean '{near[0]}'?")
    here = [k for k in known if k.startswith(prefix)]
    return ConfigError(f"there is no setting '{key}'", hint=f"settings are {', '.join(sorted(here))}")


def _explain(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """The first complaint in plain words, with the nearest allowed value where values are listed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or model.__name__
    given = first.get("input")
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        return ConfigError(f"the setting '{key}' is missing", hint=f"give --set {key}=…")
    allowed = _allowed(first)
    if allowed:
        near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=_MISSPELT)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(allowed)}"
        return ConfigError(f"'{given}' is no value for '{key}'", hint=hint)
    if first["type"] in ("value_error", "assertion_error"):
        return ConfigError(f"the setting '{key}' is wrong: {message}" if first["loc"] else message)
    return ConfigError(f"'{given}' is no value for '{key}': it should be {message[:1].lower()}{message[1:]}")


def _allowed(complaint: Any) -> list[str]:
    if complaint["type"] not in ("literal_error", "enum"):
        return []
    listed = str(complaint.get("ctx", {}).get("expected", ""))
    return [part.strip().strip("'\"") for part in listed.replace(" or ", ", ").split(",") if part.strip()]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        yield f"{prefix}{name}", _type_name(field.annotation), default, field.description or ""


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(str(value) for value in get_args(annotation))
    return str(annotation).replace("typing.", "")
