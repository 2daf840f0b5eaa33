"""What clients remember from round to round, by client: SCAFFOLD's control variates, a momentum that is kept."""

from __future__ import annotations

from typing import Protocol

import torch

#: Named tensors of one client.
ClientState = dict[str, torch.Tensor]


class ClientStates(Protocol):
    """A place for every client's memory."""

    def of(self, client: int, round_index: int) -> ClientState:
        """The client's memory, for round ``round_index`` to change; empty before its first round."""

    def put(self, client: int, memory: ClientState) -> None:
        """Keep it."""

    def keep(self) -> None:
        """A checkpoint of the run was saved."""


class LocalClientStates:
    """ClientStates in this process."""

    def __init__(self) -> None:
        self.all: dict[int, ClientState] = {}

    def of(self, client: int, round_index: int) -> ClientState:
        return self.all.setdefault(client, {})

    def put(self, client: int, memory: ClientState) -> None:
        if memory:
            self.all[client] = memory
        else:
            self.all.pop(client, None)

    def keep(self) -> None:
        """Nothing: they die with this process."""
