"""``farshore.split`` against a real server process, with TLS, the relay and a run process; this process is the node."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

import farshore
from farshore.client.interactive import InteractiveNode
from farshore.client.options import AgentOptions
from farshore.core.errors import ConfigError, FarshoreError, PeerLostError, RefusedError, RunFailedError
from farshore.runs.directory import RunDirectory

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

CUT = ("bert.encoder.layer.0", "bert.encoder.layer.3")


def _train(model, batch, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        loss = model(**batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_a_training_loop_over_a_real_server_equals_the_local_one(server, classifier, batch):
    whole = classifier()
    mine = copy.deepcopy(whole)
    expected = _train(whole, batch)
    arguments = server.arguments()
    model = farshore.split(mine, cut=CUT, **arguments)
    assert model is mine
    with model.farshore:
        assert _train(model, batch) == pytest.approx(expected, abs=1e-6)
        state = model.state_dict()
        for name, value in whole.state_dict().items():
            # A key's bias shifts all scores of a query alike: its gradient is only rounding, which Adam scales up.
            assert torch.allclose(state[name], value, atol=1e-2 if "key.bias" in name else 1e-5), name
        run_id = model.farshore.run
    info = server.ended(run_id, 5)  # immediately, without waiting for a heartbeat
    assert info.state == "finished"
    assert json.loads(info.result_json)["steps"] == 4
    assert list(info.nodes) == ["user"]
    directory = RunDirectory.open(Path(info.directory))
    rows = directory.read_ledger().to_pylist()
    dense = 4 * 9 * 32 * 4
    for kind in ("activation", "gradient"):
        for way in ("up", "down"):
            sizes = [r["dense_bytes"] for r in rows if (r["kind"], r["direction"]) == (kind, way)]
            assert len(sizes) == 4
            assert all(dense <= size <= dense + 16 for size in sizes), (kind, way, sizes)
    assert [m["learning_rate"] for m in directory.read_metrics()] == [1e-3] * 4
    with server.admin as admin:
        (node,) = admin.nodes()
    assert (node.state, node.reason) == ("lost", "it left")
    # The node's key is kept: the next script needs no token.
    again = farshore.split(classifier(), cut=CUT, rank=4, **{**arguments, "token": None})
    _train(again, batch, 1)
    again.farshore.close()
    again.farshore.close()
    assert server.ended(again.farshore.run).state == "finished"


def test_a_killed_server_raises_a_clear_error(server, classifier, batch, monkeypatch):
    monkeypatch.setattr("farshore.client.interactive.PATIENCE_SECONDS", 1.0)
    model = farshore.split(classifier(), cut=CUT, **server.arguments())
    _train(model, batch, 1)
    os.kill(server.process.pid, signal.SIGKILL)
    with pytest.raises(PeerLostError, match="lost the server"):
        _train(model, batch, 1000)
    with pytest.raises(PeerLostError, match="lost the server"):
        model.state_dict()
    with pytest.raises(FarshoreError):
        model.farshore.close()


@pytest.mark.slow
def test_a_killed_run_process_ends_the_run_with_its_reason(server, classifier, batch):
    model = farshore.split(classifier(), cut=CUT, **server.arguments())
    _train(model, batch, 1)
    (child,) = [
        c for c in psutil.Process(server.process.pid).children() if "farshore.server.run_process" in c.cmdline()
    ]
    child.kill()
    with pytest.raises(RunFailedError, match="killed by signal 9"):
        _train(model, batch, 1000)
    with pytest.raises(FarshoreError):
        model.farshore.close()
    assert server.ended(model.farshore.run).state == "failed"
    with server.admin as admin, pytest.raises(ConfigError, match="run the script again"):
        admin.resume(model.farshore.run)


@pytest.mark.slow
def test_a_killed_user_process_releases_its_run_and_its_name(server, classifier, tmp_path):
    arguments = server.arguments()
    torch_model = tmp_path / "model.py"
    torch_model.write_text(
        "import os, signal, sys, transformers as t, farshore\n"
        "config = t.BertConfig(num_hidden_layers=5, hidden_size=32, num_attention_heads=4, vocab_size=99)\n"
        "model = t.BertForSequenceClassification(config)\n"
        f"farshore.split(model, {arguments['server']!r}, cut={CUT!r}, token={arguments['token']!r}, name='user',"
        f" home={str(arguments['home'])!r})\n"
        "print(model.farshore.run, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-P", torch_model], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    model = farshore.split(classifier(), cut=CUT, **{**arguments, "token": None})
    assert server.ended(done.stdout.strip()).state == "failed"
    model.farshore.close()
    assert server.ended(model.farshore.run).state == "finished"


@pytest.mark.slow
def test_a_script_that_ends_without_close_finishes_its_run(server, tmp_path):
    arguments = server.arguments()
    script = tmp_path / "script.py"
    script.write_text(
        "import transformers as t, farshore\n"
        "config = t.BertConfig(num_hidden_layers=5, hidden_size=32, num_attention_heads=4, vocab_size=99)\n"
        f"model = farshore.split(t.BertForSequenceClassification(config), {arguments['server']!r}, cut={CUT!r},"
        f" name='user', home={str(arguments['home'])!r})\n"
        "print(model.farshore.run, flush=True)\n"
    )
    environment = {**os.environ, "FARSHORE_TOKEN": arguments["token"]}
    done = subprocess.run(
        [sys.executable, "-P", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.ended(done.stdout.strip(), 5).state == "finished"


def test_runs_that_a_node_may_not_open_are_refused(server):
    arguments = server.arguments()
    options = AgentOptions(arguments["server"], "user", Path(arguments["home"]), arguments["token"])
    for workload, config, said in (
        ("ping", "{}", "nodes may not open runs of 'ping'"),
        ("nonsense", "{}", "no method is called 'nonsense'"),
        ("split_segment", "[]", "configuration of 'split_segment' is invalid"),
        ("split_segment", "{}", "configuration of 'split_segment' is invalid: recipe"),
        ("split_segment", " " * (1 << 19), "characters"),
    ):
        node = InteractiveNode(options)
        try:
            with pytest.raises(RefusedError, match=said):
                node.open(workload, config)
        finally:
            node.close()
    node = InteractiveNode(options)
    try:
        with pytest.raises(ConfigError, match="another process is running as the node 'user'"):
            InteractiveNode(options)
    finally:
        node.close()


def test_other_runs_are_never_assigned_to_a_users_process(server):
    arguments = server.arguments()
    node = InteractiveNode(AgentOptions(arguments["server"], "user", Path(arguments["home"]), arguments["token"]))
    try:
        with server.admin as admin:
            run = admin.run(admin.submit("ping", {"rounds": 1}, node_count=1).id)
        assert run.state == "waiting"
        assert "user (takes part only in runs that it opens itself)" in run.reason
    finally:
        node.close()


def test_an_unreachable_server_and_a_wrong_token_are_refused_at_once(server, classifier, tmp_path):
    arguments = server.arguments()
    secret = arguments["token"].split(".")
    wrong = ".".join([*secret[:2], "x" * len(secret[2]), secret[3]])
    with pytest.raises(RefusedError, match="not known"):
        farshore.split(classifier(), cut=CUT, **{**arguments, "token": wrong})
    with pytest.raises(FarshoreError, match="no server answers"):
        farshore.split(classifier(), cut=CUT, **{**arguments, "server": "127.0.0.1:1", "home": tmp_path / "other"})
    with pytest.raises(ConfigError, match="rank"):
        farshore.split(classifier(), cut=CUT, rank=99, **arguments)
