"""A workload without training, to measure the simulator alone: clients return the state unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from farshore.core.seeds import Seed
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, Update, Work
from farshore.engines.federated.tree import NamedArrays
from farshore.engines.federated.workload import FederatedWorkload
from farshore.models.flat_params import FlatModel


class EchoConfig(FederatedConfig):
    """Settings of the rounds and the number of model parameters."""

    parameters: int = Field(10_000, ge=1)


class EchoMethod(FedAvg):
    """FedAvg without training: loads the state into the resident model and returns it."""

    def local(self, flat: FlatModel, down: NamedArrays, work: Work) -> Update:
        flat.load(down[FLOATS], down[INTEGERS])
        return Update({FLOATS: flat.floats.numpy(), INTEGERS: flat.integers.numpy()}, work.samples, 1, 0.0)


class EchoTask:
    """Task without data; see :class:`~farshore.engines.federated.task.Task`."""

    notes = ()

    def __init__(self, parameters: int) -> None:
        self._parameters = parameters

    def model(self) -> FlatModel:
        module = nn.Module()
        module.register_parameter("w", nn.Parameter(torch.linspace(-1, 1, self._parameters)))
        return FlatModel(module)

    def method(self, flat: FlatModel) -> FederatedMethod:
        return EchoMethod()

    def work(self, flat: FlatModel, client: int, number: int) -> Work:
        return Work(lambda batch: torch.zeros(()), (), 1 + client % 7, Sgd(0.1))

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        return {"mean": float(state[FLOATS].mean())}


class Echo(FederatedWorkload[EchoConfig]):
    """Workload for local simulations, loaded by its import path."""

    name = "_echo:ECHO"
    summary = "clients return the model unchanged"
    config: type[BaseModel] = EchoConfig

    def task(self, config: EchoConfig, seed: Seed, find: Callable[[str], Path], population: int) -> Any:
        return EchoTask(config.parameters)


ECHO = Echo()
