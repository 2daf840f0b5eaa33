"""The nodes of a run: roles, labels, profiles of the machines, and changes of the cohort."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .errors import ConfigError

if TYPE_CHECKING:
    from .session import Workload

#: Name of the only role of a workload that names none.
DEFAULT_ROLE = "node"

#: What a node can offer beyond cores and memory.
Capability: TypeAlias = Literal["torch", "onnxruntime", "accelerator"]

_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A compute device beside the CPU.

    Attributes
    ----------
    kind : str
        ``cuda``, ``rocm`` or ``mps``: how torch reaches it.
    name : str
        As its driver reports it.
    memory_bytes : int
        0 where it is unknown or shared with the CPU.
    """

    kind: str
    name: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """A machine as it measured itself; zero and empty values are unknown.

    Attributes
    ----------
    matmul_gflops : float
        Rate of a float32 matrix product on the CPU, 10^9 operations per second.
    onnxruntime, torch : str
        Versions, empty where the package is not installed.
    """

    cores: int = 0
    memory_bytes: int = 0
    os: str = ""
    machine: str = ""
    matmul_gflops: float = 0.0
    onnxruntime: str = ""
    torch: str = ""
    accelerators: tuple[Accelerator, ...] = ()

    def offers(self, capability: Capability) -> bool:
        """Whether the machine has a capability."""
        match capability:
            case "torch":
                return bool(self.torch)
            case "onnxruntime":
                return bool(self.onnxruntime)
            case "accelerator":
                return bool(self.accelerators)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node of a run.

    Attributes
    ----------
    name, role : str
    shard : (int, int)
        ``(index, count)`` among the nodes of its role: which part of a shared data set it works on.
    labels : Mapping[str, str]
        As given to ``farshore node join --label KEY=VALUE``.
    profile : NodeProfile
    """

    name: str
    role: str = DEFAULT_ROLE
    shard: tuple[int, int] = (0, 1)
    labels: Mapping[str, str] = field(default_factory=dict)
    profile: NodeProfile = field(default_factory=NodeProfile)

    def to_json(self) -> dict[str, Any]:
        """The node as JSON-able values, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NodeInfo:
        """The node that :meth:`to_json` described."""
        profile = dict(values["profile"])
        profile["accelerators"] = tuple(Accelerator(**a) for a in profile["accelerators"])
        index, count = values["shard"]
        return cls(values["name"], values["role"], (index, count), dict(values["labels"]), NodeProfile(**profile))


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A change of the cohort while a run is in progress.

    Attributes
    ----------
    kind : {"lost", "returned", "joined"}
        ``lost``: its program or its machine is gone. ``returned``: a new program of a lost node is ready. ``joined``: a
        node that did not belong to the run before is ready.
    reason : str
        Description of why a node is lost.
    """

    kind: Literal["lost", "returned", "joined"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """A part that nodes play in a run.

    Attributes
    ----------
    name : str
    count : int
        How many nodes, unless the run is given another number; 0 = none unless asked for.
    data : sequence of sequences of str
        Data sets that each node must hold: for each, the names that will do.
    needs : tuple of {"torch", "onnxruntime", "accelerator"}
    labels : Mapping[str, str]
        Labels that each node must carry.
    packages : tuple of str
        Packages that each node's program imports, of those in :data:`~farshore.core.packages.EXTRAS`.
    memory_bytes : int
        Main memory that each node must have; 0 = not known.
    """

    name: str
    count: int = 1
    data: Sequence[Sequence[str]] = ()
    needs: tuple[Capability, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RoleCount:
    """How many nodes play a role.

    Attributes
    ----------
    least : int
        Nodes with which the run begins.
    most : int
        Nodes that it may grow to while it is in progress; equal to ``least`` where none may join.
    """

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> RoleCount:
        """Read ``4`` (exactly four), ``4..8`` (four, and up to eight may join) or ``4+`` (any number may join).

        Raises
        ------
        ConfigError
            The text is none of these.
        """
        match = re.fullmatch(r"(\d{1,6})(?:(\+)|\.\.(\d{1,6}))?", text.strip())
        if match is None:
            raise ConfigError(f"'{text}' is not a number of nodes", hint="write 4, 4..8 (up to 8 may join) or 4+")
        least = int(match[1])
        most = _ANY if match[2] else int(match[3] or least)
        if most < least or not most:
            raise ConfigError(f"'{text}' nodes are none or fewer than the run begins with", hint="write 4, 4..8 or 4+")
        return cls(least, most)


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """What the submitter of a run asks for one role.

    Attributes
    ----------
    role : str
        Empty = the workload's only role.
    nodes : tuple of str
        By name; empty = any that fit.
    """

    role: str
    count: RoleCount
    nodes: tuple[str, ...] = ()


#: No bound on the nodes that may join.
_ANY = 1_000_000


def roles_of(workload: Workload, config: Any) -> tuple[Role, ...]:
    """The roles of a workload; one role called ``node`` where it names none."""
    named = getattr(workload, "roles", None)
    if named is not None:
        return tuple(named(config))
    data = tuple(tuple(names) for names in workload.node_data(config))
    packages = getattr(workload, "node_packages", None)
    memory = getattr(workload, "node_memory", None)
    return (
        Role(
            DEFAULT_ROLE,
            data=data,
            packages=tuple(packages(config)) if packages is not None else (),
            memory_bytes=int(memory(config)) if memory is not None else 0,
        ),
    )


def may_join(workload: Workload) -> bool:
    """Whether nodes may join a run of this workload while it is in progress."""
    return bool(getattr(workload, "nodes_may_join", False)) and workload.on_lost_node == "continue"


def check_node_name(name: str) -> str:
    """Return ``name`` if it is a valid node name.

    Raises
    ------
    ConfigError
        ``name`` is empty, too long or contains other characters.
    """
    if not _NODE_NAME.fullmatch(name):
        shown = "".join(c if c.isprintable() else "?" for c in name[:80])
        ascii_name = unicodedata.normalize("NFKD", name.strip()).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name).strip("._-")[:64].rstrip("._-")
        meant = f", e.g. '{plain}'" if plain else ""
        raise ConfigError(
            f"'{shown}' is not a valid node name",
            hint=f"use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit{meant}",
        )
    return name


def check_label(key: str, value: str) -> None:
    """Check a label.

    Raises
    ------
    ConfigError
        A key or value is not 1 to 63 letters, digits, ``-``, ``_`` and ``.``, the first and last a letter or digit.
    """
    for text in (key, value):
        if not _LABEL.fullmatch(text):
            raise ConfigError(
                f"'{key[:64]}={value[:64]}' is not a label",
                hint="write KEY=VALUE of letters, digits, '-', '_' and '.', 63 each at most",
            )


def place(nodes: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Shards of a cohort: node -> role becomes node -> (index, count) among the nodes of its role."""
    counts: dict[str, int] = {}
    indices = {}
    for name, role in nodes.items():
        indices[name] = counts.setdefault(role, 0)
        counts[role] += 1
    return {name: (indices[name], counts[role]) for name, role in nodes.items()}


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the known name that is closest to ``name``; empty if none is close."""
    found = difflib.get_close_matches(name[:200], list(known), n=1, cutoff=0.5)
    return f"did you mean '{found[0]}'?" if found else ""
