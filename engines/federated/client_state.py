"""State that clients keep between rounds, such as SCAFFOLD's control variates or momentum."""

from __future__ import annotations

from typing import Protocol

import torch

#: Named tensors of one client.
ClientState = dict[str, torch.Tensor]


class ClientStates(Protocol):
    """Storage for the states of all clients."""

    def get(self, client: int, round_index: int) -> ClientState:
        """Return the client's state, to be changed in round ``round_index``; empty before its first round."""

    def put(self, client: int, state: ClientState) -> None:
        """Store the client's state."""

    def commit(self) -> None:
        """Make the current states those of the run's newest checkpoint, which was just saved."""


class LocalClientStates:
    """ClientStates in the memory of this process."""

    def __init__(self) -> None:
        self.states: dict[int, ClientState] = {}

    def get(self, client: int, round_index: int) -> ClientState:
        return self.states.setdefault(client, {})

    def put(self, client: int, state: ClientState) -> None:
        if state:
            self.states[client] = state
        else:
            self.states.pop(client, None)

    def commit(self) -> None:
        """Do nothing: these states do not outlive the process."""
