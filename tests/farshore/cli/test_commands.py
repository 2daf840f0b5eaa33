"""Commands against a real admin service over TLS: requests, output and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from pydantic import BaseModel

from farshore.cli import main as cli
from farshore.core import workloads
from farshore.core.errors import ExitCode
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from farshore.runs.directory import RunDirectory
from farshore.server.certificates import fingerprint, self_signed

TOKEN = "the-admin-token"


class RecordingAdminService(AdminServicer):
    """An admin service that records requests and answers with one run and one node."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.run = pb.RunInfo(id="r1", workload="toy", state="waiting", reason="waiting for 1 of 1 nodes", created=1.0)
        self.events: list[pb.RunEvent] = []

    def _admit(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if dict(context.invocation_metadata()).get("farshore-admin") != TOKEN:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the admin token is wrong")

    def ListNodes(self, request, context):  # noqa: N802
        self._admit(request, context)
        profile = pb.NodeProfile(cores=4, memory_bytes=8_000_000_000, matmul_gflops=120.4)
        return pb.NodeList(nodes=[pb.NodeInfo(name="a", state="connected", profile=profile, data=["sst2"])])

    def Submit(self, request, context):  # noqa: N802
        self._admit(request, context)
        return self.run

    def ListRuns(self, request, context):  # noqa: N802
        self._admit(request, context)
        return pb.RunList(runs=[pb.RunInfo(id="r0", created=0.5), self.run])

    def ShowRun(self, request, context):  # noqa: N802
        self._admit(request, context)
        if request.id != "r1":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no run is called '{request.id}'")
        return self.run

    def Follow(self, request, context):  # noqa: N802
        self._admit(request, context)
        for event in self.events:
            self.run.MergeFrom(event.run)
            yield event

    def Cancel(self, request, context):  # noqa: N802
        self._admit(request, context)
        return pb.RunInfo(id=request.id, state="cancelled")

    Resume = ShowRun

    def CreateToken(self, request, context):  # noqa: N802
        self._admit(request, context)
        return pb.TokenReply(
            token="fs1.id.secret.ff", id="id", expires=7.0, addresses=["203.0.113.7:50051", "127.0.0.1:50051"]
        )

    def Revoke(self, request, context):  # noqa: N802
        self._admit(request, context)
        return pb.Empty()


class ToySettings(BaseModel):
    steps: int = 3
    text: str = "x"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = SimpleNamespace(name="toy", summary="A toy.", config=ToySettings)
    monkeypatch.setattr(workloads, "load", lambda name: toy)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SimpleNamespace]:
    pair = self_signed()
    recorded = RecordingAdminService()
    server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="admin"))
    add_AdminServicer_to_server(recorded, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair.key, pair.certificate)]))
    server.start()
    home = tmp_path / "home"
    home.mkdir()
    (home / "address").write_text(f"127.0.0.1:{port}\n")
    (home / "admin.token").write_text(TOKEN + "\n")
    (home / "certificate.pem").write_bytes(pair.certificate)
    yield SimpleNamespace(recorded=recorded, home=home, address=f"127.0.0.1:{port}", pair=pair, stop=server.stop)
    server.stop(None).wait()


@pytest.fixture
def farshore(service: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*line: str) -> tuple[int, str, str]:
        code = cli.execute([*line, "--home", str(service.home)])
        return (code, *capsys.readouterr())

    return call


def event(state: str, done: int = 0, reason: str = "", **values: float) -> pb.RunEvent:
    run = pb.RunInfo(id="r1", workload="toy", state=state, reason=reason, done=done, total=4)
    run.progress_json = json.dumps(values)
    if state == "finished":
        run.result_json = json.dumps({"accuracy": 0.875})
    return pb.RunEvent(run=run)


def test_run_submits_validated_settings_and_follows_the_run_to_its_result(service, farshore) -> None:
    moving = event("running", 2, loss=0.5, frame_up=2_000_000, frame_down=10)
    service.recorded.events = [event("waiting", reason="waiting for 1 of 1 nodes"), moving, event("finished", 4)]
    code, out, err = farshore(
        "run", "toy", "--set", "text=12", "--node", "a", "--node", "b", "--seed", "7", "--data", "d=p"
    )
    assert (code, err) == (0, "")
    sent = service.recorded.requests[0]
    assert json.loads(sent.config_json) == {"steps": 3, "text": "12"}
    (asked,) = sent.roles
    assert (list(asked.nodes), asked.role, asked.least, asked.most) == (["a", "b"], "", 2, 2)
    assert (sent.seed, dict(sent.data)) == (7, {"d": "p"})
    assert "waiting for 1 of 1 nodes" in out
    assert "step 2/4" in out
    assert "loss 0.500" in out
    assert "up 2.00 MB" in out
    assert "accuracy" in out
    assert "0.8750" in out


def test_without_a_seed_option_the_server_draws_the_seed(service, farshore) -> None:
    farshore("run", "toy", "--detach", "--nodes", "3")
    sent = service.recorded.requests[0]
    assert not sent.HasField("seed")
    assert [role.least for role in sent.roles] == [3]


def test_run_with_json_prints_one_event_per_line_and_ends_with_the_result(service, farshore) -> None:
    service.recorded.events = [event("running", 2, loss=0.5), event("finished", 4)]
    code, out, _ = farshore("run", "toy", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [e["event"] for e in events] == ["submitted", "progress", "progress", "ended"]
    assert events[1]["loss"] == 0.5
    assert events[-1]["result"] == {"accuracy": 0.875}


@pytest.mark.parametrize(
    ("state", "code"),
    [("failed", ExitCode.RUN_FAILED), ("interrupted", ExitCode.RUN_FAILED), ("cancelled", ExitCode.RUN_CANCELLED)],
)
def test_a_run_without_a_result_exits_with_its_reason_and_code(service, farshore, state: str, code: int) -> None:
    service.recorded.events = [event(state, reason="node a ran out of memory")]
    found, _, err = farshore("run", "toy")
    assert found == code
    assert "node a ran out of memory" in err


def test_an_invalid_setting_is_rejected_before_submission(service, farshore) -> None:
    code, out, err = farshore("run", "toy", "--set", "step=3")
    assert (code, out) == (ExitCode.CONFIG, "")
    assert "did you mean 'steps'?" in err
    assert service.recorded.requests == []


def test_nodes_are_listed(farshore) -> None:
    code, out, _ = farshore("nodes", "ls")
    assert code == 0
    assert out.splitlines()[1].split()[:5] == ["a", "connected", "4", "8.00", "GB"]
    _, out, _ = farshore("nodes", "ls", "--json")
    assert json.loads(out)[0]["profile"]["matmul_gflops"] == 120.4


def test_runs_are_listed_newest_first_and_shown(farshore) -> None:
    _, out, _ = farshore("runs", "ls", "--json")
    assert [run["id"] for run in json.loads(out)] == ["r1", "r0"]
    _, out, _ = farshore("runs", "ls")
    assert "waiting for 1 of 1 nodes" in out
    _, out, _ = farshore("runs", "show", "r1")
    assert "run r1: toy, waiting" in out


def test_imported_runs_are_listed_with_the_runs_of_the_server(service, farshore) -> None:
    for name, created in (("moved", 5e9), ("r1", 6e9)):
        data = {"id": name, "workload": "toy", "config": {}, "seed": 0, "nodes": ["x"], "created": created}
        RunDirectory.create(service.home / "runs" / name, data)
    (service.home / "runs" / "broken").mkdir()
    (service.home / "runs" / "broken" / "run.json").write_text("{")
    _, out, _ = farshore("runs", "ls", "--json")
    assert [run["id"] for run in json.loads(out)] == ["moved", "r1", "r0"]
    service.stop(None).wait()
    code, out, _ = farshore("runs", "ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["r1", "moved"]


def test_runs_show_lists_the_files_of_a_run_on_this_machine(service, farshore, tmp_path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "states").mkdir()
    for name in ("metrics.jsonl", "states/last.safetensors"):
        (tmp_path / name).touch()
    service.recorded.run.directory = str(tmp_path)
    _, out, _ = farshore("runs", "show", "r1")
    files = out.partition(f"files in {tmp_path}\n")[2].splitlines()
    assert [line.split()[0] for line in files] == ["metrics.jsonl", "states/last.safetensors"]
    assert all(len(line.split()) > 3 for line in files)


def test_an_unknown_run_is_reported_in_one_line(farshore) -> None:
    code, out, err = farshore("runs", "show", "r9")
    assert (code, out) == (ExitCode.NOT_FOUND, "")
    assert err == "error: no run is called 'r9'\n"


def test_logs_are_streamed(service, farshore) -> None:
    service.recorded.events = [pb.RunEvent(log=["one", "two"]), pb.RunEvent(log=["three"])]
    code, out, _ = farshore("runs", "logs", "r1", "--follow")
    assert (code, out) == (0, "one\ntwo\nthree\n")
    requests = service.recorded.requests[0]
    assert (requests.follow, requests.logs) == (True, True)


def test_cancel_revoke_and_new_token_send_their_arguments(service, farshore) -> None:
    assert "r1: cancelled" in farshore("runs", "cancel", "r1")[1]
    assert farshore("server", "token", "revoke", "id")[0] == 0
    assert farshore("nodes", "revoke", "a")[0] == 0
    assert [service.recorded.requests[1].token_id, service.recorded.requests[2].node] == ["id", "a"]
    _, out, _ = farshore("server", "token", "new", "--hours", "2", "--uses", "3")
    assert "farshore node join 203.0.113.7:50051 --token fs1.id.secret.ff" in out
    assert "or with the address 127.0.0.1:50051" in out
    assert (service.recorded.requests[3].valid_seconds, service.recorded.requests[3].uses) == (7200.0, 3)


def test_a_wrong_admin_token_is_rejected(service, farshore) -> None:
    (service.home / "admin.token").write_text("wrong")
    code, _, err = farshore("nodes", "ls")
    assert code == ExitCode.REFUSED
    assert "the admin token is wrong" in err


def test_an_unexpected_certificate_is_rejected(service, farshore) -> None:
    (service.home / "certificate.pem").write_bytes(self_signed().certificate)
    code, _, err = farshore("nodes", "ls")
    assert code == ExitCode.REFUSED
    assert "certificate" in err


def test_a_stopped_server_is_unreachable(service, farshore) -> None:
    service.stop(None).wait()
    code, _, err = farshore("nodes", "ls")
    assert code == ExitCode.UNREACHABLE
    assert service.address in err


def test_a_remote_server_is_verified_by_fingerprint_or_certificate(service, capsys: pytest.CaptureFixture[str]) -> None:
    remote = ["--server", service.address, "--admin-token-file", str(service.home / "admin.token")]
    right = fingerprint(service.pair.certificate)
    with_colons = ":".join(right[i : i + 2] for i in range(0, 64, 2)).upper()
    assert cli.execute(["nodes", "ls", *remote, "--fingerprint", with_colons]) == 0
    assert cli.execute(["nodes", "ls", *remote, "--certificate", str(service.home / "certificate.pem")]) == 0
    requests = len(service.recorded.requests)
    assert cli.execute(["nodes", "ls", *remote, "--fingerprint", "00" * 32]) == ExitCode.REFUSED
    assert len(service.recorded.requests) == requests, "the token must not be sent to an unverified server"
    assert cli.execute(["nodes", "ls", *remote]) == ExitCode.REFUSED
    assert "--fingerprint" in capsys.readouterr().err


def test_methods_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["methods"]) == 0
    assert "A toy." in capsys.readouterr().out
    assert cli.execute(["methods", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"]["properties"]["steps"]["default"] == 3


def test_certs_create_an_authority_and_issue_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--dir", str(tmp_path / "ca")]
    assert cli.execute(["certs", "init", *folder]) == 0
    assert cli.execute(["certs", "init", *folder]) == ExitCode.STORAGE, "an authority is never overwritten"
    capsys.readouterr()
    assert cli.execute(["certs", "issue", "cloud.example", *folder, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert Path(data["key"]).stat().st_mode & 0o077 == 0
    assert b"BEGIN CERTIFICATE" in Path(data["certificate"]).read_bytes()


def test_a_server_says_where_other_machines_reach_it_before_its_loopback(capsys: pytest.CaptureFixture[str]) -> None:
    from farshore.cli.server import _print_ready
    from farshore.server.api import ServerReady

    ready = ServerReady(
        address="127.0.0.1:50051",
        addresses=("203.0.113.7:50051", "127.0.0.1:50051"),
        port=50051,
        token="fs1.id.secret.ff",
        fingerprint="ff",
        admin_token_file=Path("admin.token"),
        certificate_file=None,
        home=Path(),
    )
    _print_ready(ready, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "server listening on 203.0.113.7:50051, 127.0.0.1:50051"
    assert "  farshore node join 203.0.113.7:50051 --token fs1.id.secret.ff" in lines
