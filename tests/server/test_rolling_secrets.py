"""The rolling secret of a node: deaths while it is replaced are survived, a second user of the key is noticed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from farshore.core.errors import RefusedError
from farshore.runs.store import RunStore
from farshore.server.credentials import Credentials
from farshore.server.rolling_secrets import RollingSecrets, StaleSecretError


@dataclass
class _Node:
    """What a node has on its disk."""

    secrets: tuple[str, str] = ("", "")

    def store(self, secret: str) -> None:
        self.secrets = (secret, self.secrets[0])

    def copy(self) -> _Node:
        return _Node(self.secrets)


@dataclass
class _Setting:
    path: Path
    node: _Node = field(default_factory=_Node)

    def __post_init__(self) -> None:
        self.restart_server()
        self.node.store(self.server.create("a"))

    def restart_server(self) -> None:
        self.server = RollingSecrets(RunStore(self.path))

    def connect(self, node: _Node) -> None:
        secret = self.server.offer("a", node.secrets)
        node.store(secret)
        self.server.confirm("a", secret)


@pytest.fixture
def setting(tmp_path: Path) -> _Setting:
    return _Setting(tmp_path / "runs.sqlite")


def test_each_connection_replaces_the_secret_and_outdates_the_earlier_ones(setting: _Setting) -> None:
    seen = [setting.node.copy()]
    for _ in range(4):
        setting.connect(setting.node)
        seen.append(setting.node.copy())
    assert len({node.secrets[0] for node in seen}) == 5
    for node in seen[:-2]:
        with pytest.raises(StaleSecretError):
            setting.server.offer("a", node.secrets)
    # The one before the last holds what the last one presents as "previous", and still is not accepted.
    with pytest.raises(StaleSecretError):
        setting.server.offer("a", seen[-2].secrets)
    setting.connect(setting.node)


@pytest.mark.parametrize("server_restarts", [False, True])
@pytest.mark.parametrize(
    "point", ["before it received", "before it stored", "before it confirmed", "before it was heard"]
)
def test_a_node_that_dies_while_its_secret_is_replaced_connects_again(
    setting: _Setting, point: str, server_restarts: bool
) -> None:
    setting.connect(setting.node)
    for _ in range(3):  # also if it dies again and again
        offered = setting.server.offer("a", setting.node.secrets)
        if point == "before it confirmed":
            setting.node.store(offered)
        if server_restarts:
            setting.restart_server()
    setting.connect(setting.node)
    setting.connect(setting.node)


def test_a_server_that_loses_its_last_write_still_accepts_the_node(setting: _Setting, tmp_path: Path) -> None:
    setting.connect(setting.node)
    backup = RunStore(setting.path).secrets()
    setting.node.store(setting.server.offer("a", setting.node.secrets))
    RunStore(setting.path).save_secret(backup[0])
    setting.restart_server()
    setting.connect(setting.node)


def test_whoever_uses_a_copied_key_second_is_noticed(setting: _Setting) -> None:
    setting.connect(setting.node)
    copy = setting.node.copy()
    setting.connect(copy)
    with pytest.raises(StaleSecretError):
        setting.connect(setting.node)

    setting.node = copy
    copy = setting.node.copy()
    setting.connect(setting.node)
    with pytest.raises(StaleSecretError):
        setting.connect(copy)


def test_a_copy_that_never_confirms_is_noticed_or_gains_nothing(setting: _Setting) -> None:
    setting.connect(setting.node)
    copy = setting.node.copy()
    offered = setting.server.offer("a", copy.secrets)  # and never confirmed
    secret = setting.server.offer("a", setting.node.secrets)
    setting.node.store(secret)
    with pytest.raises(StaleSecretError, match="another connection"):
        setting.server.confirm("a", offered)
    setting.server.confirm("a", secret)
    with pytest.raises(StaleSecretError):
        setting.server.offer("a", copy.secrets)


def test_a_contest_survives_a_restart_and_ends_by_trust(setting: _Setting) -> None:
    setting.server.contest("a", "seen at 192.0.2.7")
    setting.server.contest("a", "seen again")
    setting.restart_server()
    contest = setting.server.contested("a")
    assert contest is not None
    assert contest.reason == "seen at 192.0.2.7"
    setting.server.trust("a")
    setting.restart_server()
    assert setting.server.contested("a") is None
    setting.connect(setting.node)


def test_the_store_holds_no_secret(setting: _Setting, tmp_path: Path) -> None:
    setting.connect(setting.node)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(secret.encode() not in content for secret in setting.node.secrets)


# ---- joining -----------------------------------------------------------------------------------------------------


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    clock = _Clock()
    return Credentials(RunStore(tmp_path / "runs.sqlite", clock), "f" * 64, clock)


def _token(credentials: Credentials, uses: int = 0) -> str:
    _, identifier, secret, _ = str(credentials.create_token(600, uses)).split(".")
    return f"{identifier}.{secret}"


def test_a_join_whose_reply_was_lost_is_repeated_with_the_same_token(credentials: Credentials) -> None:
    token = _token(credentials, uses=1)
    first = credentials.join(token, "a", "attempt").key
    with pytest.raises(RefusedError):
        credentials.join(token, "a", "of somebody else")
    second, secret = credentials.join(token, "a", "attempt")
    with pytest.raises(RefusedError):
        credentials.authenticate(first)
    assert credentials.authenticate(second) == "a"
    credentials.rolling.confirm("a", credentials.rolling.offer("a", [secret]))
    with pytest.raises(RefusedError, match="used up"):
        credentials.join(token, "a", "attempt")


def test_a_contested_node_joins_again_with_a_token_created_since(credentials: Credentials) -> None:
    old = _token(credentials)
    first = credentials.join(old, "a").key
    credentials.rolling.contest("a", "seen twice")
    with pytest.raises(RefusedError, match="after this token was created"):
        credentials.join(old, "a")
    second = credentials.join(_token(credentials), "a").key
    assert credentials.rolling.contested("a") is None
    assert credentials.authenticate(second) == "a"
    with pytest.raises(RefusedError):
        credentials.authenticate(first)
