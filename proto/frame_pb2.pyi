from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    BOOL: _ClassVar[Dtype]
    U8: _ClassVar[Dtype]
    I8: _ClassVar[Dtype]
    U16: _ClassVar[Dtype]
    I16: _ClassVar[Dtype]
    U32: _ClassVar[Dtype]
    I32: _ClassVar[Dtype]
    U64: _ClassVar[Dtype]
    I64: _ClassVar[Dtype]
    F16: _ClassVar[Dtype]
    BF16: _ClassVar[Dtype]
    F32: _ClassVar[Dtype]
    F64: _ClassVar[Dtype]
DTYPE_UNSPECIFIED: Dtype
BOOL: Dtype
U8: Dtype
I8: Dtype
U16: Dtype
I16: Dtype
U32: Dtype
I32: Dtype
U64: Dtype
I64: Dtype
F16: Dtype
BF16: Dtype
F32: Dtype
F64: Dtype

class Scalar(_message.Message):
    __slots__ = ("flag", "integer", "real", "text", "blob")
    FLAG_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    flag: bool
    integer: int
    real: float
    text: str
    blob: bytes
    def __init__(self, flag: bool = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ..., blob: _Optional[bytes] = ...) -> None: ...

class TensorEntry(_message.Message):
    __slots__ = ("name", "dtype", "shape", "encoding", "offset", "length", "side")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    encoding: str
    offset: int
    length: int
    side: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., encoding: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., side: _Optional[int] = ...) -> None: ...

class FrameHeader(_message.Message):
    __slots__ = ("kind", "round", "step", "micro", "tensors", "fields", "key")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scalar
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    round: int
    step: int
    micro: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorEntry]
    fields: _containers.MessageMap[str, Scalar]
    key: str
    def __init__(self, kind: _Optional[str] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., micro: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorEntry, _Mapping]]] = ..., fields: _Optional[_Mapping[str, Scalar]] = ..., key: _Optional[str] = ...) -> None: ...
