"""What the server knows of a run's method before the run starts: its whole configuration and the data it needs."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from ..core.errors import ConfigError
from ..core.session import Code, Workload
from ..core.workloads import load


@dataclass(frozen=True, slots=True)
class Submission:
    """A method as it was asked for.

    Attributes
    ----------
    config_json : str
        The configuration, defaults included.
    needs : tuple of tuple of str
        Data sets that each node must hold; for each, the names under which it will do.
    node_may_open : bool
        Whether a node may open a run of it for itself.
    code : Code or None
        What the run brings to be executed.
    """

    config_json: str
    needs: tuple[tuple[str, ...], ...]
    node_may_open: bool
    code: Code | None

    @classmethod
    def of(cls, name: str, config_json: str) -> Submission:
        """Look a method up and check a configuration for it.

        Raises
        ------
        NotFoundError, MissingExtraError
            No method has that name, or it needs a package that is not installed.
        ConfigError
            A key or value is wrong.
        """
        workload = load(name)
        config = configuration(workload, config_json)
        needs = tuple(tuple(names) for names in workload.node_data(config))
        brought = getattr(workload, "code", None)
        return cls(
            config.model_dump_json(),
            needs,
            bool(getattr(workload, "node_may_open", False)),
            brought(config) if brought is not None else None,
        )


def configuration(workload: Workload, text: str) -> BaseModel:
    """A method's configuration from JSON; :class:`ConfigError` names the first wrong key."""
    try:
        return workload.config.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the configuration of '{workload.name}' is invalid: {where}: {first['msg']}") from error
