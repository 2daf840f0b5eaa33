"""Validation and conversion of the profiles and labels in nodes' hello messages."""

from __future__ import annotations

from google.protobuf.message import Message

from ..core.bounds import cut
from ..core.errors import ConfigError, RefusedError
from ..core.nodes import Accelerator, NodeInfo, NodeProfile, check_label
from ..proto import control_pb2 as pb
from .registry import Node

#: Limits on a node's hello message.
MAX_LABELS, MAX_ACCELERATORS, MAX_PROGRAMS, MAX_TEXT = 64, 64, 1000, 100
MAX_PACKAGES, MAX_METHODS, MAX_COMMAND = 100, 1000, 1000


def check_hello(hello: pb.Hello) -> None:
    """Check the labels and the profile of a node; too long texts of versions and hardware are cut.

    Raises
    ------
    RefusedError
        There are too many labels, accelerators or programs, or a label is invalid.
    """
    profile = hello.profile
    for message in (hello.versions, profile, *profile.accelerators[:MAX_ACCELERATORS]):
        _cut_texts(message)
    if len(hello.labels) > MAX_LABELS or len(profile.accelerators) > MAX_ACCELERATORS:
        raise RefusedError(f"a node can have at most {MAX_LABELS} labels and {MAX_ACCELERATORS} accelerators")
    if len(profile.packages) > MAX_PACKAGES or len(profile.methods) > MAX_METHODS:
        raise RefusedError(f"a node can report at most {MAX_PACKAGES} packages and {MAX_METHODS} methods")
    for texts in (profile.packages, profile.methods):
        texts[:] = [cut(text, MAX_TEXT) for text in texts]
    if len(hello.running) > MAX_PROGRAMS:
        raise RefusedError(f"a node can run at most {MAX_PROGRAMS} programs")
    for key, value in hello.labels.items():
        try:
            check_label(key, value)
        except ConfigError as error:
            raise RefusedError(error.message, hint=error.hint) from error


def _cut_texts(message: Message) -> None:
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, cut(value, MAX_COMMAND if field.name == "install" else MAX_TEXT))


def profile_of(node: Node) -> NodeProfile:
    """Return the profile that a node has reported."""
    reported = node.hello.profile
    return NodeProfile(
        cores=reported.cores,
        memory_bytes=reported.memory_bytes,
        os=reported.os,
        machine=reported.machine,
        matmul_gflops=reported.matmul_gflops,
        onnxruntime=reported.onnxruntime,
        torch=reported.torch or node.hello.versions.torch,
        accelerators=tuple(Accelerator(a.kind, a.name, a.memory_bytes) for a in reported.accelerators),
    )


def info_of(node: Node | None, name: str, role: str, shard: tuple[int, int]) -> NodeInfo:
    """Return a node's description for the programs of a run; only the name if the server does not know the node."""
    if node is None:
        return NodeInfo(name, role, shard)
    return NodeInfo(name, role, shard, dict(node.hello.labels), profile_of(node))
