"""Validation and conversion of the profiles and labels in nodes' hello messages."""

from __future__ import annotations

from ..core.errors import ConfigError, RefusedError
from ..core.nodes import Accelerator, NodeInfo, NodeProfile, check_label
from ..proto import control_pb2 as pb
from .registry import Node

#: Limits on a node's hello message.
MAX_LABELS, MAX_ACCELERATORS, MAX_TEXT = 64, 64, 200


def check_hello(hello: pb.Hello) -> None:
    """Check the labels and the profile of a node.

    Raises
    ------
    RefusedError
        There are too many, one is too long, or a label is invalid.
    """
    profile = hello.profile
    texts = [profile.os, profile.machine, profile.onnxruntime, profile.torch]
    texts += [text for device in profile.accelerators for text in (device.kind, device.name)]
    if len(hello.labels) > MAX_LABELS or len(profile.accelerators) > MAX_ACCELERATORS:
        raise RefusedError(f"a node can have at most {MAX_LABELS} labels and {MAX_ACCELERATORS} accelerators")
    if any(len(text) > MAX_TEXT for text in texts):
        raise RefusedError(f"a text in a node's profile exceeds {MAX_TEXT} characters")
    for key, value in hello.labels.items():
        try:
            check_label(key, value)
        except ConfigError as error:
            raise RefusedError(error.message, hint=error.hint) from error


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
