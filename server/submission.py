"""Validation of a submitted run: the complete configuration, and what the method requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ..core.bounds import MAX_CONFIG, MAX_NAME, MAX_VALUES
from ..core.descriptors import LIMIT_HINT, DescriptorLimit
from ..core.errors import ConfigError, DataError, MissingExtraError
from ..core.nodes import Role, RoleRequest, may_join, roles_of
from ..core.packages import extras_of, missing
from ..core.session import Code, Workload
from ..core.workloads import load, method_code
from ..proto import control_pb2 as pb

_MAX_NODES, _MAX_PATH = 10_000, 4096


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated method and configuration.

    Attributes
    ----------
    config_json : str
        The configuration with all defaults.
    roles : tuple of Role
        The parts that nodes play, and what they need for it.
    may_join : bool
        Whether nodes can join a run of this method while it is in progress.
    node_may_open : bool
        Whether a node may open a run of this method.
    code : Code or None
        The code submitted with the run.
    """

    config_json: str
    roles: tuple[Role, ...]
    may_join: bool
    node_may_open: bool
    code: Code | None

    @classmethod
    def validate(cls, workload_name: str, config_json: str, data: Mapping[str, str] | None = None) -> Submission:
        """Look up a method and validate its configuration, and what its server program needs.

        Parameters
        ----------
        workload_name, config_json : str
        data : Mapping[str, str], optional
            Paths of data sets on the server by name.

        Raises
        ------
        NotFoundError, MissingExtraError
            No method has this name, or it needs a package that is not installed here.
        ConfigError
            A key or value is invalid, or does not fit the model; or the configuration is too long.
        MethodError
            The method's own code fails.
        """
        check_config_size(config_json)
        workload = load(workload_name)
        config = parse_config(workload, config_json)
        code_of = getattr(workload, "code", None)
        with method_code(f"the method '{workload_name}' failed on its configuration"):
            complete = config.model_dump_json()
            check_config_size(complete)
            _check_server(workload, config, data or {})
            return cls(
                complete,
                roles_of(workload, config),
                may_join(workload),
                bool(getattr(workload, "node_may_open", False)),
                code_of(config) if code_of is not None else None,
            )


def _check_server(workload: Workload, config: BaseModel, data: Mapping[str, str]) -> None:
    """Check what a method's server program needs, as far as the method says so."""
    needed = getattr(workload, "server_packages", None)
    if needed is not None and (lacking := missing(needed(config))):
        raise MissingExtraError(lacking[0], extras_of(lacking) or "all")
    check = getattr(workload, "check", None)
    if check is None:
        return

    def find(name: str) -> Path:
        if name not in data:
            raise DataError(f"the server has no data set '{name}'")
        return Path(data[name])

    with suppress(DataError):  # what the server does not have, it cannot check
        check(config, find)


def check_request(request: pb.SubmitRequest) -> None:
    """Check the sizes of a submitter's request.

    Raises
    ------
    ConfigError
        A text or a list is too long.
    """
    names = [request.workload, *request.data, *(role.role for role in request.roles)]
    if any(len(name) > MAX_NAME for name in names):
        raise ConfigError(f"a name in the request exceeds {MAX_NAME} characters")
    if any(len(path) > _MAX_PATH for path in request.data.values()):
        raise ConfigError(f"the path of a data set exceeds {_MAX_PATH} characters")
    nodes = [*request.nodes, *(node for role in request.roles for node in role.nodes)]
    if len(nodes) > _MAX_NODES or any(len(node) > MAX_NAME for node in nodes):
        raise ConfigError(f"a run can name at most {_MAX_NODES} nodes, of at most {MAX_NAME} characters each")
    if len(request.data) > MAX_VALUES or len(request.roles) > MAX_VALUES:
        raise ConfigError(f"a run can have at most {MAX_VALUES} data sets and roles")
    check_config_size(request.config_json)


def check_capacity(requests: Sequence[RoleRequest]) -> None:
    """Raise :class:`ConfigError` if a run needs more nodes than this server has file descriptors for."""
    wanted, limit = sum(request.count.least for request in requests), DescriptorLimit.current()
    if wanted > limit.nodes:
        raise ConfigError(
            f"this server can carry {limit.nodes} nodes in a run with its limit of {limit.soft} open files, "
            f"not {wanted}",
            hint=LIMIT_HINT,
        )


def check_config_size(text: str) -> None:
    """Raise :class:`ConfigError` if a configuration is too long for one message."""
    if (size := len(text.encode())) > MAX_CONFIG:
        raise ConfigError(
            f"the configuration has {size / 1e6:.1f} MB, at most {MAX_CONFIG / 1e6:.1f} MB are possible",
            hint="put large inputs into a data set",
        )


def parse_config(workload: Workload, text: str) -> BaseModel:
    """Parse a method's configuration from JSON; :class:`ConfigError` names the first invalid key."""
    with method_code(f"the method '{workload.name}' failed on its configuration"):
        try:
            return workload.config.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"the configuration of '{workload.name}' is invalid: {where}: {first['msg']}") from error
