"""A split fine-tuning run that was killed and resumed equals an uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farshore.core.errors import PeerLostError, RunFailedError
from farshore.core.message import Message
from farshore.models.state_arrays import to_arrays
from farshore.runs.checkpoints import CheckpointStore

#: 12 steps, 3 per epoch; checkpoints after 3, 6, 9 and 12, averages after 4, 8 and 12: mostly at different steps.
CHANGES = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1, "epochs": 4}
CHANGES |= {"micro_batches": 2, "average_every": 4, "checkpoint_every": 3, "eval_every": 5}


class Killed(BaseException):
    """Simulates the death of a program."""


def kill(owner: str, kind: str, step: int, micro: int) -> Callable[[str, Message], Message]:
    """Return a hook that kills ``owner`` at a message."""

    def hook(who: str, message: Message) -> Message:
        if (who, message.kind, message.step, message.micro) == (owner, kind, step, micro):
            raise Killed
        return message

    return hook


@pytest.fixture(scope="module")
def whole(new_runner: Callable[[], Any]) -> Any:
    """The uninterrupted run of :data:`CHANGES` with two edges."""
    runner = new_runner()
    return runner.run(runner.config(**CHANGES), 2)


def state(outcome: Any) -> dict[str, torch.Tensor]:
    """Return weights and Adam's moments of all sides."""
    found = outcome.weights()
    sides = {"cloud": (outcome.cloud.trunk, outcome.cloud.optimizer)}
    sides |= {n: (e.front, e.optimizer) for n, e in outcome.edges.items() if e.trains}
    for side, (module, optimizer) in sides.items():
        found |= {f"{side}/{n}": torch.from_numpy(a) for n, a in to_arrays(module, optimizer).items()}
    return found


@pytest.mark.parametrize(
    ("owner", "kind", "step", "micro", "resumed"),
    [
        ("server", "activation", 4, 1, 3),
        ("server", "weights", 8, 0, 6),
        ("server", "evaluation", 10, 0, 9),
        ("edge-1", "gradient", 7, 0, 6),
        ("edge-0", "gradient", 10, 1, 9),
        ("edge-1", "activation", 1, 1, None),
        ("edge-0", "weights", 4, 0, 3),
    ],
)
def test_killed_run_equals_uninterrupted_run(
    runner: Any, whole: Any, tmp_path: Path, owner: str, kind: str, step: int, micro: int, resumed: int | None
) -> None:
    config, directory = runner.config(**CHANGES), tmp_path / "killed"
    killer = kill(owner, kind, step, micro)
    with pytest.raises((Killed, RunFailedError)):
        runner.run(config, 2, directory=directory, on_send=killer, on_receive=killer)
    again = runner.run(config, 2, directory=directory)
    assert again.cloud.session.resume_step == resumed
    a, b = state(whole), state(again)
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    assert any(n.startswith("edge-1/optimizer.") for n in a)
    assert again.losses == whole.losses
    assert again.result == whole.result


def test_sides_with_different_checkpoints_resume_from_the_newest_common_one(
    runner: Any, whole: Any, tmp_path: Path
) -> None:
    config, directory = runner.config(**CHANGES), tmp_path / "apart"
    killer = kill("server", "activation", 6, 0)
    with pytest.raises(Killed):
        runner.run(config, 2, directory=directory, on_receive=killer)
    newest = max(CheckpointStore(directory / "server").steps())
    (directory / "server" / f"step-{newest:012d}.safetensors").unlink()
    assert max(CheckpointStore(directory / "edge-0").steps()) == newest == 6
    again = runner.run(config, 2, directory=directory)
    assert again.cloud.session.resume_step == 3
    assert again.losses == whole.losses
    a, b = state(whole), state(again)
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


def test_a_frozen_front_never_runs_ahead_of_the_trunks_checkpoints(runner: Any, tmp_path: Path) -> None:
    """A frozen front receives no gradients; without the ``saved`` message it could finish before the trunk starts."""
    config = runner.config(**CHANGES | {"freeze": "front+codec", "checkpoint_every": 1})
    directory = tmp_path / "frozen"
    whole = runner.run(config, 2)
    killer = kill("server", "activation", 8, 1)
    with pytest.raises(Killed):
        runner.run(config, 2, directory=directory, on_receive=killer)
    again = runner.run(config, 2, directory=directory)
    assert again.cloud.session.resume_step == 8
    a, b = state(whole), state(again)
    assert [n for n in a if not torch.equal(a[n], b[n])] == []
    assert again.result == whole.result


def test_rerunning_a_finished_run_returns_its_result_without_training(runner: Any, tmp_path: Path) -> None:
    config, directory = runner.config(**CHANGES), tmp_path / "finished"
    first = runner.run(config, 2, directory=directory)
    again = runner.run(config, 2, directory=directory)
    assert again.result == first.result
    assert {r.kind for r in again.rows} == {"control"}


def test_a_lost_server_ends_the_edges(runner: Any) -> None:
    seen: list[BaseException] = []
    killer = kill("server", "activation", 1, 0)

    def watch(who: str, message: Message) -> Message:
        try:
            return killer(who, message)
        except Killed as error:
            seen.append(error)
            raise PeerLostError("gone") from error

    with pytest.raises(PeerLostError, match="gone"):
        runner.run(runner.config(), 2, on_receive=watch)
    assert seen
