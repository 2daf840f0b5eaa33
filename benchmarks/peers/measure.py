"""Runs one system's work as processes of its own and takes down what it cost."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .work import Work

HERE = Path(__file__).resolve().parent
#: What the others need, by the name of their environment.
PEERS = {
    "flower": ["flwr[simulation]>=1.41,<1.43", "torch>=2.11"],
    "pfl": ["pfl[pytorch]>=0.6,<0.7", "torch>=2.11"],
}
_VERSIONS = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
_TOLD = ("flwr", "ray", "pfl", "torch", "numpy")
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Cost:
    """What a system took.

    ``cpu`` and ``wall``: seconds per round, the first left out, CPU of the whole process tree. ``memory``: peak
    proportional set size, bytes. ``start``: CPU seconds until the first round had ended.
    """

    cpu: float
    wall: float
    memory: int
    start: float


@dataclass(frozen=True)
class Command:
    """Processes that make up a system; the first one tells its stamps."""

    arguments: Sequence[Sequence[str]]
    rounds: int
    environments: Sequence[dict[str, str]] = field(default_factory=lambda: [{}])


class Peers:
    """The environments of the others.

    Parameters
    ----------
    folder : Path or None
        Where they are; None: there are none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.expanduser().resolve() if folder else None

    def make(self) -> None:
        """Make those that are missing."""
        if self._folder is None:
            return
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        for name, wanted in PEERS.items():
            if self.has(name):
                continue
            print(f"making the environment of {name} …", flush=True)
            place = self._folder / name
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(place)], check=True)
            install = [uv, "pip", "install", "--quiet", "--compile-bytecode", *wanted]
            subprocess.run(install, check=True, env={**os.environ, "VIRTUAL_ENV": str(place)})

    def has(self, name: str) -> bool:
        """Whether an environment is there."""
        return self._folder is not None and self._python(name).exists()

    def versions(self) -> dict[str, list[str]]:
        """The main packages of each."""
        found = {}
        for name in filter(self.has, PEERS):
            command = [str(self._python(name)), "-c", _VERSIONS]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            found[name] = sorted(w for w in told if w.split("==")[0] in _TOLD)
        return found

    def commands(self, system: str, work: Work, images: Path) -> Command:
        """How a system is started on a work."""
        given = [work.dumps(), str(images)]
        match system:
            case "farshore" | "bare":
                return Command([[sys.executable, str(HERE / f"{system}_side.py"), *given]], work.rounds)
            case "flower" | "flower, as it comes":
                more = ["defaults"] if system != "flower" else []
                python = str(self._python("flower"))
                return Command([[python, str(HERE / "flower_side.py"), *given, *more]], work.rounds)
            case _:
                both = [[str(self._python("pfl")), str(HERE / "pfl_side.py"), *given]] * 2
                addresses = f"localhost:{_free_port()},localhost:{_free_port()}"
                ranks = [{"PFL_WORKER_ADDRESSES": addresses, "PFL_WORKER_RANK": str(rank)} for rank in (0, 1)]
                return Command(both, work.rounds, ranks)

    def _python(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / name / "bin" / "python"


def become_reaper() -> None:
    """Processes whose parents die become this one's children, so that none escapes the accounts (Linux)."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def measure(command: Command) -> Cost:
    """Run a system to its end.

    Raises
    ------
    RuntimeError
        It ended without its stamps; its last lines are told.
    """
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    said = subprocess.DEVNULL
    processes = [
        subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if place == 0 else said,
            stderr=subprocess.STDOUT if place == 0 else said,
            text=True,
            env={**os.environ, **one, **environment},
        )
        for place, (arguments, environment) in enumerate(zip(command.arguments, command.environments, strict=True))
    ]
    memory = _Memory()
    before = _tree_cpu()
    try:
        begun, ended = _stamps(processes[0])
        for process in processes:
            process.communicate(timeout=120)
    finally:
        memory.stop()
        _end_all()
    cpu, wall = ended[0] - begun[0], ended[1] - begun[1]
    return Cost(cpu / command.rounds, wall / command.rounds, memory.peak, begun[0] - before)


def _stamps(process: subprocess.Popen[str]) -> tuple[tuple[float, float], tuple[float, float]]:
    """CPU and wall seconds at both stamps."""
    assert process.stdout is not None
    assert process.stdin is not None
    found: dict[str, tuple[float, float]] = {}
    last: list[str] = []
    for line in process.stdout:
        last = [*last[-20:], line]
        if line.startswith('{"event"'):
            found[json.loads(line)["event"]] = (_tree_cpu(), time.monotonic())
            process.stdin.write("\n")
            process.stdin.flush()
        if "ended" in found:
            return found["begun"], found["ended"]
    raise RuntimeError("a system ended early:\n" + "".join(last))


def _tree_cpu() -> float:
    """CPU seconds of all descendants, those that have ended included."""
    own = psutil.Process().cpu_times()
    total = own.children_user + own.children_system
    for process in psutil.Process().children(recursive=True):
        try:
            t = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += t.user + t.system + t.children_user + t.children_system
    return float(total)


def _end_all() -> None:
    """Whatever a system left behind is ended and reaped."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


class _Memory:
    """Watches the peak of the descendants' proportional set sizes."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
