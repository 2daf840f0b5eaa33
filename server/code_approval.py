"""The operator's approval of code submitted with a run: by hash, by the submitter's token, or by a question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..core.errors import RefusedError
from ..core.session import Code
from .run import Run


def not_approved(code: Code) -> RefusedError:
    """Return the error for code that the operator has not approved."""
    return RefusedError(
        f"the server does not accept {code.what} with the hash {code.digest}",
        hint=f"its operator can: farshore server up … --accept-apps {code.digest}",
    )


class CodeApproval:
    """Decides which code a server may execute.

    Parameters
    ----------
    accepted : frozenset of str
        SHA-256 of code that is approved for every run.
    ask : callable or None
        ``await ask(what, digest)`` returns the operator's answer about other code; None = it is refused.
    """

    def __init__(self, accepted: frozenset[str], ask: Callable[[str, str], Awaitable[bool]] | None) -> None:
        self._accepted = accepted
        self._ask = ask
        self._question = asyncio.Lock()  # one question at a time

    def check(self, code: Code | None, *, admitted: bool) -> None:
        """Raise if the code can never be approved, so that the run is refused when it is submitted.

        Raises
        ------
        RefusedError
            The code is neither approved nor ``admitted`` for this run, and ``ask`` is None.
        """
        if code is not None and self._ask is None and not admitted and code.digest not in self._accepted:
            raise not_approved(code)

    def is_approved(self, run: Run) -> bool:
        """Return whether the run has no code of its own, or approved code."""
        return run.code is None or run.admitted or run.code.digest in self._accepted

    async def request(self, run: Run) -> None:
        """Wait until the run's code is approved; meanwhile, the run's ``reason`` says what it waits for.

        Raises
        ------
        RefusedError
            The operator refused the code, or ``ask`` is None.
        """
        if run.code is None or self.is_approved(run):
            return
        self.check(run.code, admitted=False)
        assert self._ask is not None
        run.reason = f"waiting for the server's operator to accept {run.code.what} with the hash {run.code.digest}"
        run.notify()
        async with self._question:
            run.admitted = await self._ask(run.code.what, run.code.digest)
        if not run.admitted:
            raise not_approved(run.code)
