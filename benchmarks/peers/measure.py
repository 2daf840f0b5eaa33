"""Run a system's work as child processes and measure CPU time, wall time and memory."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
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
#: Name of an environment -> requirements.
PEERS = {
    "flower": ["flwr[simulation]>=1.41,<1.43", "torch>=2.11"],
    "pfl": ["pfl[pytorch]>=0.6,<0.7", "torch>=2.11"],
}
_VERSIONS = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
_REPORTED = ("flwr", "ray", "pfl", "torch", "numpy")
_SAMPLE_SECONDS = 0.5
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Cost:
    """Cost of a system.

    ``cpu`` and ``wall``: seconds per round without the first; CPU of the whole process tree. ``memory``: peak
    proportional set size, bytes. ``start``: CPU seconds until the end of the first round.
    """

    cpu: float
    wall: float
    memory: int
    start: float


@dataclass(frozen=True)
class Command:
    """Command lines of a system's processes; the first process prints the time stamps."""

    arguments: Sequence[Sequence[str]]
    rounds: int
    environments: Sequence[dict[str, str]] = field(default_factory=lambda: [{}])


class Peers:
    """Virtual environments of the other systems.

    Parameters
    ----------
    folder : Path or None
        Folder of the environments; None for no other systems.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.expanduser().resolve() if folder else None

    def make(self) -> None:
        """Create the missing environments."""
        if self._folder is None:
            return
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        for name, requirements in PEERS.items():
            if self.has(name):
                continue
            print(f"creating the environment of {name} …", flush=True)
            environment = self._folder / name
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
            install = [uv, "pip", "install", "--quiet", "--compile-bytecode", *requirements]
            subprocess.run(install, check=True, env={**os.environ, "VIRTUAL_ENV": str(environment)})

    def has(self, name: str) -> bool:
        """Whether an environment exists."""
        return self._folder is not None and self._python(name).exists()

    def versions(self) -> dict[str, list[str]]:
        """Versions of the main packages of each environment."""
        found = {}
        for name in filter(self.has, PEERS):
            command = [str(self._python(name)), "-c", _VERSIONS]
            packages = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            found[name] = sorted(w for w in packages if w.split("==")[0] in _REPORTED)
        return found

    def commands(self, system: str, work: Work, images: Path) -> Command:
        """Build the command of a system for a work."""
        given = [work.dumps(), str(images)]
        match system:
            case "bare":
                return Command([[sys.executable, str(HERE / "bare_side.py"), *given]], work.rounds)
            case "farshore" | "farshore, default":
                execution = "auto" if system == "farshore" else "default"
                return Command([[sys.executable, str(HERE / "farshore_side.py"), *given, execution]], work.rounds)
            case "flower" | "flower, defaults":
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
    """Make orphaned descendants children of this process, so that their CPU time is counted and they end (Linux)."""
    set_child_subreaper = 36
    _libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds, so that children are ended


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also if that is killed (Linux)."""
    set_parent_death_signal = 1
    _libc.prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def measure(command: Command) -> Cost:
    """Run a system to its end and measure it.

    Raises
    ------
    RuntimeError
        The system ended without its time stamps; includes the last lines of its output.
    """
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    discard = subprocess.DEVNULL
    processes = [
        subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if index == 0 else discard,
            stderr=subprocess.STDOUT if index == 0 else discard,
            text=True,
            env={**os.environ, **one, **environment},
            preexec_fn=_end_with_parent,
        )
        for index, (arguments, environment) in enumerate(zip(command.arguments, command.environments, strict=True))
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
    """Read CPU and wall seconds at both time stamps."""
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
    """CPU seconds of all descendants, including terminated ones."""
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
    """Kill and reap all remaining descendants."""
    remaining = psutil.Process().children(recursive=True)
    for process in remaining:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(remaining, timeout=10)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


class _Memory:
    """Samples the peak of the descendants' total proportional set size."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
