"""The VHL task: scores, virtual batches, and the simulated time of SCAFFOLD's extra pass."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from farshore.algorithms.vhl.task import VHLTask
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.runs.history import read_history
from farshore.simulations.clock import Devices
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"rounds": 1, "per_round": 2, "local_epochs": 1, "batch": 64, "partition": {"kind": "iid"}}


def config(**more: Any) -> Any:
    virtual = {"per_class": 5, "batch": 20, **more.pop("virtual", {})}
    return WORKLOAD.config.model_validate({**SMALL, **more, "virtual": virtual})


def task(settings: Any) -> VHLTask:
    made = WORKLOAD.task(settings, Seed(3), Path, 2)
    assert isinstance(made, VHLTask)
    return made


def test_scores_over_all_outputs_and_over_natural_outputs() -> None:
    problem = task(config(lr=0.1))
    flat = problem.model()
    method = problem.method(flat)
    state = method.start(flat)
    update = method.local(flat, state, problem.work(flat, 0, 1))
    flat.load(update.tensors["floats"], update.tensors["integers"])
    with torch.no_grad():  # so that virtual outputs are largest for about half of the images
        flat.module.eval()
        logits = flat.module(problem._prepare(problem._test_x))[0]
        ahead = logits[:, :10].amax(1) - logits[:, 10:].amax(1)
        flat.module.linear.bias[10:] += ahead.median()  # type: ignore[union-attr,index]
        logits = flat.module(problem._prepare(problem._test_x))[0]
    floats = flat.floats.numpy().copy()
    found = problem.evaluate(flat, {"floats": floats, "integers": update.tensors["integers"]})
    y, own = problem._test_y, logits[:, :10]
    assert found["acc"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert found["acc_nat"] == pytest.approx(float((own.argmax(1) == y).float().mean()))
    assert found["test_loss"] == pytest.approx(float(F.cross_entropy(own, y)), rel=1e-5)
    assert found["acc"] < found["acc_nat"] - 0.1  # the scores must differ
    assert flat.module.training


def test_virtual_batches_are_full_shuffled_and_endless() -> None:
    problem = task(config())
    batches = list(islice(problem._virtual_batches(Seed(1)), 4))
    assert [len(labels) for _, labels in batches] == [20] * 4  # 50 images: ten are dropped in each pass
    for first in (0, 2):
        images = torch.cat([x for x, _ in batches[first : first + 2]])
        assert len({image.numpy().tobytes() for image in images}) == 40  # no image occurs twice in a pass
    assert not torch.equal(batches[0][1], batches[2][1])
    assert len(set(batches[0][1].tolist())) > 5
    known = {
        image.numpy().tobytes(): int(y)
        for image, y in zip(
            problem._prepare_virtual(problem.virtual_data.images), problem.virtual_data.labels, strict=True
        )
    }
    for images, labels in batches:
        assert [known[image.numpy().tobytes()] for image in images] == labels.tolist()


def test_scaffold_option_1_takes_simulated_devices_one_more_epoch(tmp_path: Path) -> None:
    devices = Devices.model_validate({"population": {"groups": [{}]}, "seconds_per_step": 0.01})
    seconds = {}
    for option in (1, 2):
        settings = config(method="scaffold", scaffold_option=option)
        made = Simulation(WORKLOAD, settings, tmp_path / str(option), 2, seed=3, devices=devices)
        made.run()
        (entry,) = read_history(tmp_path / str(option), 1)
        seconds[option] = entry["round_seconds"]
    steps = max(len(task(config()).work(task(config()).model(), k, 1).batches) for k in range(2))
    assert seconds[2] == pytest.approx(0.01 * steps)
    assert seconds[1] == pytest.approx(2 * seconds[2])
