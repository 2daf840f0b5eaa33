"""Training under torchrun, in Ray actors and in one process ends with the same model."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from farshore.runs.model_states import load_state
from farshore.torchrun import train

pytestmark = [pytest.mark.process, pytest.mark.timeout(240), pytest.mark.slow]
SETTINGS = ("model=mlp", "steps=12", "lr=0.05", "checkpoint_every=5", "schedule=constant")


def command(method: str, out: Path, batch: int) -> list[str]:
    pairs = [part for setting in (*SETTINGS, f"batch={batch}") for part in ("--set", setting)]
    return ["-m", "farshore.torchrun", method, *pairs, "--out", str(out)]


def run_agents(method: str, out: Path, port: int) -> list[str]:
    """Run two torchrun agents, as on two machines; return the printed lines."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    both = [
        subprocess.Popen(
            [*torchrun, *rendezvous, *command(method, out, 16)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            cwd=out.parent,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return "".join(printed).splitlines()


@pytest.mark.parametrize("method", ["data_parallel", "dp_kfac"])
def test_two_agents_train_the_same_model_as_one_process(method: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = [json.loads(line) for line in run_agents(method, tmp_path / "two", port) if line.startswith("{")]
    assert [line["step"] for line in lines if "step" in line] == [10, 12]
    assert lines[-1]["ended"]
    two = load_state(tmp_path / "two" / "last.safetensors")[0]
    if method == "dp_kfac":  # local factors differ from those of the whole batch
        assert all(np.isfinite(array).all() for array in two.values())
        return
    subprocess.run([sys.executable, *command(method, tmp_path / "one", 32)], check=True, timeout=200, cwd=tmp_path)
    one = load_state(tmp_path / "one" / "last.safetensors")[0]
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=0, atol=2e-6)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_ray_actors_train_the_same_model_as_one_process(tmp_path: Path) -> None:
    settings = {"model": "mlp", "steps": 12, "lr": 0.05, "checkpoint_every": 5, "schedule": "constant"}
    script = tmp_path / "on_ray.py"
    script.write_text(ON_RAY)
    arguments = json.dumps({**settings, "batch": 16})
    done = subprocess.run(
        [sys.executable, str(script), arguments, str(tmp_path / "two")], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    train("data_parallel", {**settings, "batch": 32}, tmp_path / "one")
    one, two = (load_state(tmp_path / name / "last.safetensors")[0] for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=0, atol=2e-6)


#: Runs in its own process: Ray leaves threads behind, and the default process group is global.
ON_RAY = """
import json, os, sys
from pathlib import Path
import ray

@ray.remote
class Rank:
    def train(self, rank, settings, out):
        import torch.distributed as dist
        from farshore.torchrun import train
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
        train("data_parallel", settings, Path(out))
        dist.destroy_process_group()

settings, out = json.loads(sys.argv[1]), sys.argv[2]
Path(out).mkdir()
where = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
ray.init(num_cpus=2, include_dashboard=False, runtime_env=where)
ray.get([rank.train.remote(place, settings, out) for place, rank in enumerate([Rank.remote(), Rank.remote()])])
"""


def test_a_restarted_launch_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = command("dp_kfac", tmp_path / "whole", 16)
    subprocess.run([sys.executable, *whole], check=True, timeout=100, cwd=tmp_path)
    subprocess.run(
        [sys.executable, *command("dp_kfac", tmp_path / "cut", 16), "--set", "steps=8"],
        check=True,
        timeout=100,
        cwd=tmp_path,
    )
    (tmp_path / "cut" / "last.safetensors").unlink()
    again = subprocess.run(
        [sys.executable, *command("dp_kfac", tmp_path / "cut", 16)],
        check=True,
        timeout=100,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert '"step": 10' in again.stdout
    one, other = (load_state(tmp_path / name / "last.safetensors")[0] for name in ("whole", "cut"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
