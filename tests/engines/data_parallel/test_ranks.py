"""Training on two processes that communicate with gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Ranks:
    """Two processes that execute the same task at once."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("training_ranks.py")
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), "2", str(folder / "store")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def __call__(self, task: str, **settings: Any) -> list[Any]:
        """Run a task on all ranks; return the results in rank order."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"task": task, "settings": settings}) + "\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        errors = [answer["error"] for answer in answers if "error" in answer]
        assert not errors, "\n".join(errors)
        return [answer["result"] for answer in answers]

    def _answer(self, process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        return {"error": "the process ended"}

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    found = Ranks(tmp_path_factory.mktemp("ranks"))
    yield found
    found.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3},
        {"accumulate": 2, "sampled": True},
        {"sampled": True},
        {"optimizer": "adamw", "clip": 0.1, "lr": 0.01},
        {"ema": 0.5, "optimizer": "adam", "eps": 1e-3},
    ],
    ids=str,
)
def test_two_ranks_train_what_one_process_trains_with_both_batches(ranks: Ranks, settings: dict[str, Any]) -> None:
    both = ranks("train", **settings)
    alone = ranks("train", alone=True, size=8, **settings)
    assert both[0]["digest"] == both[1]["digest"]
    assert both[0]["weights"] == pytest.approx(alone[0]["weights"], abs=2e-6)


@pytest.mark.parametrize("exchange", ["owner", "allreduce"])
def test_dp_kfac_keeps_the_ranks_equal_with_accumulation_clipping_and_fp16(ranks: Ranks, exchange: str) -> None:
    settings = {
        "preconditioner": "dp_kfac",
        "preconditioning": {"factor_steps": 1, "inv_steps": 2, "grad_exchange": exchange, "fisher": "mc1"},
        "accumulate": 2,
        "clip": 1.0,
        "precision": "fp16",
    }
    both = ranks("train", **settings)
    assert both[0]["digest"] == both[1]["digest"]
    plain = ranks("train", accumulate=2)
    assert both[0]["weights"] != pytest.approx(plain[0]["weights"], abs=1e-4)


def test_dp_kfac_computes_the_same_with_scaled_gradients(ranks: Ranks) -> None:
    settings = {"preconditioner": "dp_kfac", "preconditioning": {"factor_steps": 1, "inv_steps": 1}}
    full, scaled = ranks("train", **settings), ranks("train", precision="fp16", scale=256.0, **settings)
    assert scaled[0]["scale"] == 256
    # fp16 has 11 bits.
    assert scaled[0]["weights"] == pytest.approx(full[0]["weights"], abs=2e-2)


def test_dp_kfac_gets_its_first_factors_after_steps_that_overflow(ranks: Ranks) -> None:
    settings = {"preconditioner": "dp_kfac", "preconditioning": {"factor_steps": 100, "inv_steps": 100}}
    both = ranks("train", precision="fp16", scale=2.0**21, steps=12, **settings)
    assert both[0]["digest"] == both[1]["digest"]
    assert both[0]["scale"] < 2**21, "no step overflowed"
    assert both[0]["inverses"] + both[1]["inverses"] == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_rank_without_a_checkpoint_gets_the_whole_state(ranks: Ranks, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "ema": 0.9, "precision": "fp16", "eval_every": 1, "keep_best": True}
    both = ranks("share", **settings)
    assert both[0]["shared"] == both[1]["shared"]
    assert both[0]["after"] == both[1]["after"]
    slots = {"sgd": {"momentum_buffer"}}.get(optimizer, {"exp_avg", "exp_avg_sq", "step"})
    assert {name.rpartition("/")[2] for name in both[0]["names"] if name.startswith("optimizer.")} == slots
    assert {"scaler", "score", "task.memory", "average_count"} <= set(both[0]["names"])


def test_parameters_that_never_got_a_gradient_have_no_state_to_share(ranks: Ranks) -> None:
    both = ranks("share", optimizer="adam", sampled=True)
    assert both[0]["shared"] == both[1]["shared"]


def test_all_ranks_stop_at_the_evaluation_of_rank_0(ranks: Ranks) -> None:
    settings = {"eval_every": 1, "early_stop": 2}
    both = ranks("score", errors=[0.5, 0.3, 0.4, 0.35, 0.6], **settings)
    assert both[0] == both[1] == {"stopped": [False, False, False, True, True], "best": 2}
