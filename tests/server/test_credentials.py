"""Join tokens and node keys: which are accepted and which refused, and that the store contains no secret."""

from pathlib import Path

import pytest

from farshore.core.errors import NotFoundError, RefusedError
from farshore.runs.store import RunStore
from farshore.server.credentials import Credentials, RevokedError


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def credentials(tmp_path: Path, clock: _Clock) -> Credentials:
    path = tmp_path / "runs.sqlite"
    return Credentials(RunStore(path, clock), "f" * 64, clock)


def _part(token: object) -> str:
    _, identifier, secret, _ = str(token).split(".")
    return f"{identifier}.{secret}"


def test_the_key_of_a_join_authenticates_its_node(credentials: Credentials) -> None:
    key = credentials.join(_part(credentials.create_token(60)), "edge-1").key
    assert credentials.authenticate(key) == "edge-1"


def test_the_store_and_its_journal_contain_no_secret(tmp_path: Path, credentials: Credentials) -> None:
    token = credentials.create_token(60)
    key = credentials.join(_part(token), "edge-1").key
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert token.secret.encode() not in content
        assert key.partition(":")[2].encode() not in content


def test_last_seen_is_persistent_and_never_decreases(tmp_path: Path, clock: _Clock) -> None:
    first = Credentials(RunStore(tmp_path / "runs.sqlite", clock), "f" * 64, clock)
    key = first.join(_part(first.create_token(60)), "edge-1").key
    for when in (1200.0, 1100.0):
        first.update_last_seen("edge-1", when)
    first.update_last_seen("nobody", 1300.0)
    second = Credentials(RunStore(tmp_path / "runs.sqlite", clock), "f" * 64, clock)
    assert [(row.name, row.last_seen) for row in second.nodes()] == [("edge-1", 1200.0)]
    assert second.authenticate(key) == "edge-1", "the key is unchanged"


def test_tokens_and_keys_are_persistent(tmp_path: Path, clock: _Clock) -> None:
    first = Credentials(RunStore(tmp_path / "runs.sqlite", clock), "f" * 64, clock)
    token = first.create_token(60, uses=2)
    key = first.join(_part(token), "edge-1").key
    second = Credentials(RunStore(tmp_path / "runs.sqlite", clock), "f" * 64, clock)
    assert second.authenticate(key) == "edge-1"
    second.join(_part(token), "edge-2")
    with pytest.raises(RefusedError, match="used up"):
        second.join(_part(token), "edge-3")


def test_an_expired_token_is_refused(credentials: Credentials, clock: _Clock) -> None:
    token = credentials.create_token(60)
    clock.now += 61
    with pytest.raises(RefusedError, match="expired"):
        credentials.join(_part(token), "edge-1")


def test_a_revoked_token_is_refused_but_keys_from_it_stay_valid(credentials: Credentials) -> None:
    token = credentials.create_token(60)
    key = credentials.join(_part(token), "edge-1").key
    credentials.revoke_token(token.id)
    with pytest.raises(RefusedError, match="revoked"):
        credentials.join(_part(token), "edge-2")
    assert credentials.authenticate(key) == "edge-1"


def test_a_token_with_two_uses_allows_two_joins(credentials: Credentials) -> None:
    token = _part(credentials.create_token(60, uses=2))
    credentials.join(token, "a")
    credentials.join(token, "b")
    with pytest.raises(RefusedError, match="used up"):
        credentials.join(token, "c")


def test_a_refused_join_does_not_count_as_a_use(credentials: Credentials) -> None:
    token = _part(credentials.create_token(60, uses=2))
    credentials.join(token, "a")
    with pytest.raises(RefusedError, match="another node"):
        credentials.join(token, "a")
    credentials.join(token, "b")


@pytest.mark.parametrize("secret", ["", "x", "wrong-secret-of-some-length"])
def test_a_wrong_secret_is_refused(credentials: Credentials, secret: str) -> None:
    token = credentials.create_token(60)
    with pytest.raises(RefusedError, match="not known"):
        credentials.join(f"{token.id}.{secret}", "edge-1")


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "../x", "a\n", "ä", "x" * 65])
def test_an_invalid_name_is_refused(credentials: Credentials, name: str) -> None:
    with pytest.raises(RefusedError, match="not a valid node name"):
        credentials.join(_part(credentials.create_token(60)), name)


def test_a_revoked_node_cannot_join_again_with_its_old_token(credentials: Credentials, clock: _Clock) -> None:
    token = _part(credentials.create_token(600))
    key = credentials.join(token, "edge-1").key
    clock.now += 1
    credentials.revoke_node("edge-1")
    with pytest.raises(RevokedError):
        credentials.authenticate(key)
    with pytest.raises(RevokedError):
        credentials.join(token, "edge-1")
    clock.now += 1
    fresh = credentials.join(_part(credentials.create_token(60)), "edge-1").key
    assert credentials.authenticate(fresh) == "edge-1"
    with pytest.raises(RefusedError):
        credentials.authenticate(key)


def test_revoking_an_unknown_node_or_token_raises_not_found(credentials: Credentials) -> None:
    with pytest.raises(NotFoundError):
        credentials.revoke_node("nobody")
    with pytest.raises(NotFoundError):
        credentials.revoke_token("none")


@pytest.mark.parametrize("key", ["", ":", "edge-1", "edge-1:", "edge-1:x", "other:x"])
def test_a_wrong_key_is_refused(credentials: Credentials, key: str) -> None:
    credentials.join(_part(credentials.create_token(60)), "edge-1")
    with pytest.raises(RefusedError):
        credentials.authenticate(key)
