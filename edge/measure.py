"""Measures a node's capabilities: cores, memory, accelerators, matrix products. Imports no heavy packages."""

from __future__ import annotations

import os
import platform
import time

import numpy as np
import psutil

from ..core.packages import install_command, present
from ..core.version import installed
from ..core.workloads import names
from ..proto.control_pb2 import Accelerator, NodeProfile
from .accelerators import accelerators

#: Number of timed products needed for a reliable best time.
_MIN_PRODUCTS = 50


def measure_node(seconds: float = 0.2) -> NodeProfile:
    """Measure this machine; the throughput measurement takes about ``seconds``."""
    return NodeProfile(
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        matmul_gflops=matmul_gflops(seconds),
        onnxruntime=installed("onnxruntime"),
        torch=installed("torch"),
        packages=present(),
        install=install_command(),
        methods=sorted(names()),
        accelerators=[Accelerator(kind=a.kind, name=a.name, memory_bytes=a.memory_bytes) for a in accelerators()],
    )


def matmul_gflops(seconds: float = 0.2, size: int = 256) -> float:
    """Return the best throughput of a float32 ``size`` x ``size`` matrix product over about ``seconds``, in GFLOP/s.

    The best of many short products is used, not the mean: other load slows single products down, nothing speeds them
    up. On a machine so busy that few products finish in ``seconds``, the measurement takes up to ten times as long.
    """
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    out = np.empty_like(a)
    best, count = float("inf"), 0
    begun = time.perf_counter()
    while True:
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        now = time.perf_counter()
        best, count = min(best, now - start), count + 1
        if now - begun >= seconds * (1 if count >= _MIN_PRODUCTS else 10):
            return 2 * size**3 / max(best, 1e-9) / 1e9
