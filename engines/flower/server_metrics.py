"""What a ServerApp computes itself: its own evaluations, and the metrics that its strategy aggregates.

An app hands them to nobody but its own code, so the two methods through which every strategy goes are watched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...core.session import ServerSession
from .compat import Server, Strategy

#: Entries of a list metric that become metrics of their own.
_MOST_ENTRIES = 64


def flat_metrics(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers by name; those of a list as ``name_0``, ``name_1``, …"""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
        elif isinstance(value, list | tuple):
            numbers = [v for v in value[:_MOST_ENTRIES] if isinstance(v, int | float)]
            found |= {f"{prefix}{name}_{index}": float(number) for index, number in enumerate(numbers)}
    return found


class ServerMetrics:
    """Writes the ServerApp's evaluations to the run's metrics as they are made, and keeps the last ones.

    Attributes
    ----------
    last : dict of float
        The newest value of each metric, for the run's result.
    """

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self.last: dict[str, float] = {}

    def add(self, round_index: int, values: Mapping[str, Any]) -> None:
        """Add the evaluation of a round; round 0 is that of the initial model."""
        found = flat_metrics("server_", values)
        if found:
            self._session.metrics(round_index, **found)
            self.last |= found

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Add what the strategies' evaluations return within the context, in apps of both of Flower's interfaces."""
        start, fit = Strategy.start, Server.fit

        @functools.wraps(start)
        def watched_start(strategy: Any, *args: Any, **options: Any) -> Any:
            evaluate = options.get("evaluate_fn")
            if evaluate is not None:
                options["evaluate_fn"] = self._watched(evaluate)
            return start(strategy, *args, **options)

        @functools.wraps(fit)
        def watched_fit(server: Any, *args: Any, **options: Any) -> Any:
            evaluate = server.strategy.evaluate

            def watched(server_round: int, parameters: Any) -> Any:
                result = evaluate(server_round, parameters)
                if result is not None:
                    self.add(server_round, {"loss": result[0], **result[1]})
                return result

            server.strategy.evaluate = watched
            try:
                return fit(server, *args, **options)
            finally:
                del server.strategy.evaluate

        Strategy.start, Server.fit = watched_start, watched_fit  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            Strategy.start, Server.fit = start, fit  # type: ignore[method-assign]

    def _watched(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(evaluate)
        def watched(server_round: int, arrays: Any) -> Any:
            record = evaluate(server_round, arrays)
            if record is not None:
                self.add(server_round, record)
            return record

        return watched
