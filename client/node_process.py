"""The node process: executes one run's node program; spawned by the agent.

Entry point of ``python -m farshore.client.node_process``. The agent sends the launch parameters
(:func:`farshore.client.programs.launch_parameters`) as the first message.
"""

from __future__ import annotations

import logging
import os
import sys

from pydantic import ValidationError

from ..core.errors import ConfigError, RunFailedError
from ..core.processes import Json, Parent, user_code_location
from ..core.workloads import load


def main() -> int:
    """Run the node program that the agent requests; returns the exit code."""
    parent = Parent.connect()
    parameters = parent.receive_first()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        _run(parent, parameters)
    except Exception as error:
        return int(parent.report_failure(error))
    except SystemExit as error:  # exit(0) in user code must not count as success
        return int(
            parent.report_failure(RunFailedError(f"the program called exit({error.code}){user_code_location(error)}"))
        )
    return 0


def _run(parent: Parent, parameters: Json) -> None:
    from .node_session import NodeProcessSession

    workload = load(str(parameters["workload"]))
    try:
        config = workload.config.model_validate_json(parameters["config"])
    except ValidationError as error:
        raise ConfigError(f"the configuration of '{workload.name}' is invalid: {error}") from error
    with NodeProcessSession(parameters, parent) as session:
        session.handshake()
        workload.node_program(session, config)


if __name__ == "__main__":
    code = main()
    # Skip atexit hooks and non-daemon threads of libraries: they can keep a finished process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
