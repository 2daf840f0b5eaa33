"""What may arrive in a federated run follows from its model: neither end decodes more than a state or an update."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.errors import WireError
from farshore.core.message import Message, Tensor
from farshore.core.seeds import Seed
from farshore.engines.federated.client import Client
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.messages import STATE, UPDATE
from farshore.engines.federated.methods import FLOATS, FedAvg
from farshore.engines.federated.node_round import bound_updates
from farshore.engines.federated.supervised import Supervised
from farshore.models.flat_params import FlatModel
from farshore.wire.encodings import LowRank
from farshore.wire.memory import pair


def task() -> Supervised:
    x = torch.zeros(4, 3)
    y = torch.zeros(4, dtype=torch.int64)
    return Supervised(x, y, x, y, [np.arange(4)], Seed(1), lambda: nn.Linear(3, 2), lambda _: Sgd(0.1))


def large(kind: str) -> Message:
    """A small frame that stands for much more than the model of eight numbers."""
    return Message(kind, 1, tensors={FLOATS: Tensor(np.ones((200, 200), np.float32), LowRank(1))})


def test_an_update_larger_than_the_model_is_refused_before_it_is_decoded() -> None:
    server, node = pair("a")
    session: Any = SimpleNamespace(channels={"a": server})
    flat = task().model()
    assert isinstance(flat, FlatModel)
    bound_updates(session, FedAvg(), FedAvg().start(flat))
    node.send(Message(UPDATE, 1, tensors={FLOATS: Tensor(np.ones(8, np.float32))}))
    assert server.receive(1).array(FLOATS).sum() == 8
    node.send(large(UPDATE))
    with pytest.raises(WireError, match="160000 decoded bytes, at most 65664 are expected"):
        server.receive(1)


def test_a_state_larger_than_the_model_is_refused_by_the_client() -> None:
    server, node = pair("a")
    session: Any = SimpleNamespace(channel=node, shard=(0, 1), resume_step=None, node="a")
    client = Client(session, task(), UpdateCodec())
    server.send(large(STATE))
    with pytest.raises(WireError, match="at most 32 are expected"):
        client.run()
