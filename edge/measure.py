"""A node measures itself: cores, memory and how fast it multiplies matrices. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import time

import numpy as np
import psutil

from ..core.version import installed
from ..proto.control_pb2 import NodeProfile

#: So few products tell nothing.
_FEW = 50


def measure_node(seconds: float = 0.2) -> NodeProfile:
    """Measure this machine; takes about ``seconds``."""
    return NodeProfile(
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        matmul_gflops=matmul_gflops(seconds),
        onnxruntime=installed("onnxruntime"),
    )


def matmul_gflops(seconds: float = 0.2, size: int = 256) -> float:
    """Best rate of a float32 ``size`` x ``size`` matrix product over about ``seconds``, in 10^9 operations per second.

    The best of many short products, not the mean: a busy machine slows some of them, nothing makes one too fast. Where
    it is so busy that there are few, it takes up to ten times as long.
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
        if now - begun >= seconds * (1 if count >= _FEW else 10):
            return 2 * size**3 / max(best, 1e-9) / 1e9
