"""A training method of one's own: a small network learns a noisy wave and its slope, on any number of nodes."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from farshore.core.seeds import Seed
from farshore.engines.data_parallel.config import TrainingConfig
from farshore.engines.data_parallel.nested import device_of
from farshore.engines.data_parallel.task import Loss, ParameterGroup, Score, TrainTask, decay_groups
from farshore.engines.data_parallel.workload import FindData, TrainingWorkload


class WaveConfig(TrainingConfig):
    """What 'farshore run' can --set, besides all settings of training; with defaults of one's own."""

    steps: int = Field(300, ge=1, description="training steps")
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(0.01, gt=0)
    width: int = Field(32, ge=1, description="units of the hidden layers")
    noise: float = Field(0.05, ge=0, description="standard deviation of the noise on the wave")


class WaveTask(TrainTask[dict[str, Tensor]]):
    metrics = ("error",)
    score = Score("error", higher_is_better=False)

    def __init__(self, config: WaveConfig, seed: Seed) -> None:
        self.config, self.seed = config, seed.child("batches")
        # The engine seeds torch before it makes a task: the initial weights are the same on all ranks.
        layers = (nn.Linear(1, config.width), nn.Tanh(), nn.Linear(config.width, config.width), nn.Tanh())
        self.model = nn.Sequential(*layers, nn.Linear(config.width, 2))

    def parameter_groups(self) -> list[ParameterGroup]:
        return decay_groups(self.model)  # no weight decay for biases

    def steps_per_epoch(self, ranks: int) -> int:
        return 100

    def batch(self, index: int, rank: int, ranks: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed.child(index, rank).value)
        x = torch.rand(self.config.batch, 1, generator=generator) * 6
        noise = torch.randn(x.shape, generator=generator) * self.config.noise
        return {"x": x, "wave": x.sin() + noise, "slope": x.cos()}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        outputs = model(batch["x"])
        wave = functional.mse_loss(outputs[:, :1], batch["wave"])
        slope = functional.mse_loss(outputs[:, 1:], batch["slope"])
        return Loss(wave + 0.5 * slope, {"wave": wave, "slope": slope}, outputs, "normal")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x = torch.linspace(0, 6, 200, device=device_of(model))[:, None]
        return {"error": float((model(x)[:, :1] - x.sin()).abs().mean())}


class Wave(TrainingWorkload[WaveConfig]):
    name, summary = "wave", "learns a noisy wave and its slope"
    config: type[BaseModel] = WaveConfig

    def task(self, config: WaveConfig, seed: Seed, find: FindData) -> WaveTask:
        return WaveTask(config, seed)  # find("NAME") would be the path of a data set


WORKLOAD = Wave()
