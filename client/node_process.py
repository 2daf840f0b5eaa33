"""One run's node program in a process of its own: ``python -m farshore.client.node_process``, spawned by the agent."""

from __future__ import annotations

import logging
import os
import sys

from pydantic import ValidationError

from ..core.errors import ConfigError, RunFailedError
from ..core.processes import Json, Parent, place_of
from ..core.workloads import load


def main() -> int:
    """Run the node program that the agent asks for; returns the exit code."""
    parent = Parent.find()
    specification = parent.first()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        _run(parent, specification)
    except Exception as error:
        return int(parent.failed(error))
    except SystemExit as error:  # a user's code must not look as if it had done its work
        return int(parent.failed(RunFailedError(f"the program called exit({error.code}){place_of(error)}")))
    return 0


def _run(parent: Parent, specification: Json) -> None:
    from .node_session import NodeProcessSession

    workload = load(str(specification["workload"]))
    try:
        config = workload.config.model_validate_json(specification["config"])
    except ValidationError as error:
        raise ConfigError(f"the configuration of '{workload.name}' is wrong: {error}") from error
    with NodeProcessSession(specification, parent) as session:
        session.agree()
        workload.node_program(session, config)


if __name__ == "__main__":
    code = main()
    # Libraries' atexit hooks and their threads must not keep a finished program alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
