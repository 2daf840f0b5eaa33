"""Typed control messages: a protocol is a set of frozen dataclasses, which both of its ends use.

A control message travels as a :class:`~farshore.core.message.Message` whose field ``what`` names its type; the other
fields are those of the dataclass. A type without a name is the only one of its kind, such as the header of messages
with tensors; it is sent without ``what``. ::

    @dataclass(frozen=True, slots=True)
    class Form(Control, what="form"):
        rank: int
        names: tuple[str, ...]

    FROM_SERVER: Protocol[Form | Done] = Protocol(Form, Done)

    channel.send(Form(0, ("a", "b")).message())
    match FROM_SERVER.read(channel.receive(), "the server"):
        case Form(rank=rank): ...

Where the kind of a message varies, its fields alone are a dataclass: see :func:`fields_of` and :func:`read_fields`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from .errors import WireError
from .message import Message, Scalar, Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WHAT = "what"

#: Maximum number of entries of a mapping field.
MOST_VALUES = 256


@dataclass(frozen=True)
class Control:
    """Base class of control messages; a subclass is a frozen dataclass.

    Fields have the types bool, int, float, str, bytes, ``Literal`` of strings, ``tuple[int, ...]`` and
    ``tuple[str, ...]`` (sent as text with commas). At most one field is a ``Mapping[str, float]``,
    ``Mapping[str, int]`` or ``Mapping[str, Scalar]``: its entries become fields of the message. A field of the type
    ``T | None`` is not sent if it is None. ``__post_init__`` may raise ValueError for invalid values.

    Parameters
    ----------
    what : str
        Name of the type on the wire, unique among those of its kind in a protocol. Empty: messages have no name.
    kind : str
        Kind of the message in the ledger.
    """

    what: ClassVar[str] = ""
    kind: ClassVar[str] = "control"

    __slots__ = ()

    def __init_subclass__(cls, what: str = "", kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # dataclass(slots=True) makes the class a second time, without these arguments.
        cls.what = what or cls.what
        cls.kind = kind or cls.kind

    def message(
        self, *, round: int = 0, step: int = 0, micro: int = 0, tensors: Mapping[str, Tensor] | None = None
    ) -> Message:
        """Return the message to send."""
        name: dict[str, Scalar] = {_WHAT: self.what} if self.what else {}
        return Message(self.kind, round, step, micro, tensors or {}, {**name, **fields_of(self)})

    @classmethod
    def matches(cls, message: Message) -> bool:
        """Whether a message is of this type."""
        return message.kind == cls.kind and message.fields.get(_WHAT, "") == cls.what

    @classmethod
    def read(cls, message: Message, peer: str) -> Self:
        """Read a message of this type, sent by ``peer``.

        Raises
        ------
        WireError
            The message is of another type, or a field is missing, unknown, of a wrong type or invalid.
        """
        if not cls.matches(message):
            raise WireError(f"{peer}: expected '{_title(cls)}', got {describe(message)}")
        given = dict(message.fields)
        given.pop(_WHAT, None)
        return _read(cls, given, _title(cls), peer)


Controls = TypeVar("Controls", bound=Control)


class Protocol(Generic[Controls]):
    """The control messages that one end of a conversation accepts.

    Parameters
    ----------
    *messages : type of Control
    """

    def __init__(self, *messages: type[Controls]) -> None:
        self._types = {(each.kind, each.what): each for each in messages}
        assert len(self._types) == len(messages), "two types have the same kind and name"

    def accepts(self, message: Message) -> bool:
        """Whether a message is of one of the types."""
        return (message.kind, message.fields.get(_WHAT, "")) in self._types

    def read(self, message: Message, peer: str) -> Controls:
        """Read a message of any of the types.

        Raises
        ------
        WireError
            It is of none of them, or invalid; the error names ``peer``.
        """
        found = self._types.get((message.kind, str(message.fields.get(_WHAT, ""))))
        if found is None:
            expected = ", ".join(f"'{_title(each)}'" for each in self._types.values())
            raise WireError(f"{peer}: expected {expected}, got {describe(message)}")
        return found.read(message, peer)


Fields = TypeVar("Fields", bound="DataclassInstance")


def fields_of(values: DataclassInstance) -> dict[str, Scalar]:
    """Return the fields of a message, given a dataclass with fields of the types of :class:`Control`'s."""
    found: dict[str, Scalar] = {}
    for name, codec in _codecs(type(values)).items():
        value = getattr(values, name)
        if codec.takes_rest:
            assert _WHAT not in value, "a mapping field has the reserved name 'what'"
            found.update(value)
        elif value is not None:
            found[name] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return found


def read_fields(cls: type[Fields], message: Message, peer: str) -> Fields:
    """Read the fields of a message of any kind, sent by ``peer``.

    Raises
    ------
    WireError
        A field is missing, unknown, of a wrong type or invalid.
    """
    return _read(cls, dict(message.fields), message.kind, peer)


def _read(cls: type[Fields], given: dict[str, Scalar], title: str, peer: str) -> Fields:
    codecs = _codecs(cls)
    values, rest = {}, ""
    try:
        for name, codec in codecs.items():
            if codec.takes_rest:
                rest = name
            elif name in given:
                values[name] = codec.read(given.pop(name))
            elif codec.required:
                raise ValueError(f"'{name}' is missing")
        if rest:
            values[rest], given = codecs[rest].read(given), {}
        if given:
            raise ValueError(f"unknown field '{next(iter(given))[:40]}'")
        return cls(**values)
    except ValueError as error:
        raise WireError(f"{peer}: invalid '{title[:40]}' message: {str(error)[:200]}") from None


def _title(cls: type[Control]) -> str:
    """Return what error messages call a type."""
    return cls.what or cls.kind


def describe(message: Message) -> str:
    """Return what a message is, for error messages; at most 80 characters of it come from the peer."""
    what = message.fields.get(_WHAT)
    named = f" '{str(what)[:40]}'" if what is not None else ""
    return f"a '{message.kind[:40]}' message{named}"


class _Codec:
    """Reads one field."""

    __slots__ = ("read", "required", "takes_rest")

    def __init__(self, annotation: Any, required: bool) -> None:
        origin = get_origin(annotation)
        self.takes_rest = origin is not None and isinstance(origin, type) and issubclass(origin, Mapping)
        self.required = required
        self.read = _reader(annotation)


#: By class; filled when a class is first used, as annotations cannot be resolved earlier.
_CODECS: dict[type[DataclassInstance], Mapping[str, _Codec]] = {}


def _codecs(cls: type[DataclassInstance]) -> Mapping[str, _Codec]:
    found = _CODECS.get(cls)
    if found is None:
        found = _CODECS[cls] = _make_codecs(cls)
    return found


def _make_codecs(cls: type[DataclassInstance]) -> Mapping[str, _Codec]:
    hints = get_type_hints(cls)
    found = {
        field.name: _Codec(hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(cls)
    }
    assert sum(codec.takes_rest for codec in found.values()) <= 1, f"{cls.__name__} has two mapping fields"
    return found


def _reader(annotation: Any) -> Callable[[Any], Any]:
    """Return what converts a scalar (or, for mappings, all remaining fields) to a type; it raises ValueError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if types.NoneType in arguments:
        remaining = [each for each in arguments if each is not types.NoneType]
        return _reader(Union[tuple(remaining)])  # noqa: UP007 - of a list
    if origin is Literal:
        return lambda value: _choice(value, arguments)
    if origin is tuple:
        scalar = _integer if arguments[0] is int else str
        return lambda value: tuple(scalar(part) for part in _checked(value, (str,)).split(",") if part)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        allowed = _scalar_types(arguments[1])
        return lambda values: _values(values, allowed)
    allowed = _scalar_types(annotation)
    return lambda value: value if type(value) in allowed else _checked(value, allowed)


def _scalar_types(annotation: Any) -> tuple[type, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(get_args(annotation))
    assert annotation in (bool, int, float, str, bytes), f"{annotation} is not a type of control fields"
    return (annotation,)


def _checked(value: Any, allowed: tuple[type, ...]) -> Any:
    if type(value) not in allowed:
        expected = " or ".join(each.__name__ for each in allowed)
        raise ValueError(f"expected {expected}, got {type(value).__name__}")
    return value


def _integer(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("an integer exceeds 64 bits")
    return value


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(map(str, choices))}, got '{str(value)[:40]}'")
    return value


def _values(values: Mapping[str, Any], allowed: tuple[type, ...]) -> dict[str, Any]:
    if not values:
        return {}
    if len(values) > MOST_VALUES:
        raise ValueError(f"{len(values)} values exceed the limit of {MOST_VALUES}")
    return {name: _checked(value, allowed) for name, value in values.items()}
