"""Validation of a submitted run: the complete configuration, and what the method requires."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError
from ..core.nodes import Role, may_join, roles_of
from ..core.session import Code, Workload
from ..core.workloads import load, method_code


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
    def validate(cls, workload_name: str, config_json: str) -> Submission:
        """Look up a method and validate its configuration.

        Raises
        ------
        NotFoundError, MissingExtraError
            No method has this name, or it needs a package that is not installed.
        ConfigError
            A key or value is invalid.
        MethodError
            The method's own code fails.
        """
        workload = load(workload_name)
        config = parse_config(workload, config_json)
        code_of = getattr(workload, "code", None)
        with method_code(f"the method '{workload_name}' failed on its configuration"):
            return cls(
                config.model_dump_json(),
                roles_of(workload, config),
                may_join(workload),
                bool(getattr(workload, "node_may_open", False)),
                code_of(config) if code_of is not None else None,
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
