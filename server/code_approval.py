"""Whether a server executes code that comes with a run: what its operator accepted, and whom it asks about the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..core.errors import RefusedError
from ..core.session import Code
from .run import Run


def not_approved(code: Code) -> RefusedError:
    """What whoever brought the code is told."""
    return RefusedError(
        f"the server does not accept {code.what} with the hash {code.digest}",
        hint=f"its operator can: farshore server up … --accept-apps {code.digest}",
    )


class CodeApproval:
    """What a server's operator has accepted.

    Parameters
    ----------
    accepted : frozenset of str
        SHA-256 of code, accepted whoever brings it.
    ask : callable or None
        ``await ask(what, digest)``: the operator's answer about other code; None = it is refused.
    """

    def __init__(self, accepted: frozenset[str], ask: Callable[[str, str], Awaitable[bool]] | None) -> None:
        self._accepted = accepted
        self._ask = ask
        self._asking = asyncio.Lock()  # a person reads one question at a time

    def check(self, code: Code | None, *, admitted: bool) -> None:
        """Refuse at once what nobody will accept: before there is a run, or while it has not begun.

        Raises
        ------
        RefusedError
            The code is neither accepted nor ``admitted`` for this run, and there is nobody to ask.
        """
        if code is not None and self._ask is None and not admitted and code.digest not in self._accepted:
            raise not_approved(code)

    def given(self, run: Run) -> bool:
        """Whether the run brings no code, or code that is accepted."""
        return run.code is None or run.admitted or run.code.digest in self._accepted

    async def obtain(self, run: Run) -> None:
        """Return once the run's code is accepted; its ``reason`` says so meanwhile.

        Raises
        ------
        RefusedError
            The answer was no, or there is nobody to ask.
        """
        if run.code is None or self.given(run):
            return
        self.check(run.code, admitted=False)
        assert self._ask is not None
        run.reason = f"waiting for the server's operator to accept {run.code.what} with the hash {run.code.digest}"
        run.notify()
        async with self._asking:
            run.admitted = await self._ask(run.code.what, run.code.digest)
        if not run.admitted:
            raise not_approved(run.code)
