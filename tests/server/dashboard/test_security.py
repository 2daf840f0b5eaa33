"""Security of the dashboard: read-only, no leaked secrets, escaping, cross-site requests, sign-in, TLS."""

from __future__ import annotations

import hashlib
import itertools
import json
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from farshore.core.errors import ConfigError, RefusedError, StorageError
from farshore.runs.store import RunStore
from farshore.server.dashboard.app import Dashboard
from farshore.server.dashboard.middleware import CONTENT_SECURITY_POLICY
from farshore.server.dashboard.options import TOKEN_FILE, DashboardOptions
from farshore.server.rate_limit import RateLimit

from .homes import EVIL, SECRETS, Home

PAGES = ("/runs", "/nodes", "/runs/r1", "/runs/evil", "/compare", "/compare?run=r1&run=r2", "/login")
OTHER_PATHS = ("/runs/none", "/none", "/assets/none", "/assets/page.css", "/assets/plotly.js", "/", "/live/runs/none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("dashboard") / "server")
    home.node("a")
    home.run("r1")
    home.run("r2", state="failed", reason="node a: it broke")
    home.run("evil", EVIL, metric=EVIL, kind=EVIL, config={EVIL: EVIL, "password": "PASS-SECRET-5"}, reason=EVIL)
    return home


@pytest.fixture(scope="module")
def client(home: Home) -> Iterator[TestClient]:
    with home.client() as client:
        yield client


@pytest.fixture
def guarded(home: Home) -> Iterator[TestClient]:
    with home.client(login=True) as client:
        yield client


# ---- read-only


def test_pages_accept_only_get_and_head(client: TestClient, home: Home) -> None:
    before = hashlib.sha256((home.path / "runs.sqlite").read_bytes()).digest()
    for path, method in itertools.product(
        (*PAGES, *OTHER_PATHS), ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X")
    ):
        if (method, path) != ("POST", "/login"):
            assert client.request(method, path).status_code == 405, (method, path)
    assert client.head("/live/runs").status_code == 405
    assert client.head("/runs").status_code == 200
    assert hashlib.sha256((home.path / "runs.sqlite").read_bytes()).digest() == before


def test_the_run_store_is_opened_read_only(home: Home) -> None:
    store = RunStore(home.path / "runs.sqlite", read_only=True)
    with pytest.raises(StorageError, match="readonly"):
        store.create_run("vhl")
    assert len(store.runs()) == 3


# ---- no files and secrets of the server


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../admin.token",
        "/assets/%2e%2e/admin.token",
        "/assets/..%2f..%2fadmin.token",
        "/assets//etc/passwd",
        "/assets/..%5cadmin.token",
        "/assets/page.css%00.txt",
        "/runs/..%2f..%2fadmin.token",
        "/runs/../admin.token",
        "/runs/%2fetc%2fpasswd",
        "/live/runs/..%2f..%2fetc%2fpasswd",
        "/compare?run=../admin.token&run=/etc/passwd",
    ],
)
def test_paths_cannot_escape_to_other_files(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404, response.text
    assert "root:" not in response.text
    assert not any(secret in response.text for secret in SECRETS.values())


def test_no_response_contains_a_secret(guarded: TestClient, home: Home) -> None:
    token = (home.path / TOKEN_FILE).read_text().strip()
    signed_in = guarded.post("/login", data={"token": token})
    session = signed_in.headers["set-cookie"].partition("=")[2].partition(";")[0]
    secrets = [*SECRETS.values(), token, session, "HASH-SECRET-4", "PASS-SECRET-5", str(home.path)]
    for path in (*PAGES, *OTHER_PATHS):
        response = guarded.get(path)
        whole = response.text + str(response.headers)
        assert [secret for secret in secrets if secret in whole] == [], path
    assert "(hidden)" in guarded.get("/runs/evil").text


# ---- escaping


class ScriptFinder(HTMLParser):
    """Collects what a browser would execute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.suspects: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attributes))
        for name, value in attributes:
            if name.startswith("on") or name == "style" or "javascript:" in (value or "").lower():
                self.suspects.append(f"{tag} {name}")
        if tag in ("iframe", "object", "embed", "base", "style") or (tag, "x") == (tag, dict(attributes).get("src")):
            self.suspects.append(tag)


@pytest.mark.parametrize(
    "path", [*PAGES, f"/runs?q={EVIL}&state={EVIL}", f"/nodes?q={EVIL}&sort={EVIL}", f"/runs/{EVIL}"]
)
def test_names_of_runs_methods_metrics_and_kinds_are_escaped(client: TestClient, path: str) -> None:
    text = client.get(path).text
    finder = ScriptFinder(text)
    assert finder.suspects == []
    for script in finder.scripts:
        assert script.get("type") == "application/json" or str(script.get("src")).startswith("/assets/"), script
    assert "'49'" not in text


def test_names_in_chart_data_are_escaped_for_plotly(client: TestClient) -> None:
    data = client.get("/runs/evil").text.partition('id="charts">')[2].partition("</script>")[0]
    texts = list(strings(json.loads(data)))
    assert any("alert(1)" in text for text in texts)  # the kind is included
    assert not any("<" in text for text in texts)


def strings(value: object) -> Iterator[str]:
    """Yield every string in JSON except hover templates, which hold no names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from () if name == "hovertemplate" else strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)


# ---- headers, host names and cross-site requests


@pytest.mark.parametrize("path", [*PAGES, *OTHER_PATHS])
def test_every_response_has_security_headers(client: TestClient, path: str) -> None:
    for response in (client.get(path), client.get(path, headers={"host": "evil.example"}), client.put(path)):
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in response.headers
        assert response.headers["cache-control"] == (
            "no-cache" if "page.css" in path or "plotly.js" in path else "no-store"
        ) or (response.status_code in (400, 405))
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "@127.0.0.1:x", "0x7f.1"]
)
def test_unknown_host_names_are_rejected(client: TestClient, host: str) -> None:
    assert client.get("/runs", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "board.example"])
def test_loopback_and_configured_host_names_are_accepted(home: Home, host: str) -> None:
    with home.client(hostnames=("board.example",)) as client:
        assert client.get("/runs", headers={"host": host}).status_code == 200


def test_cross_site_requests_are_rejected(client: TestClient) -> None:
    fetch = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    frame = {**link, "sec-fetch-dest": "iframe"}
    assert client.get("/runs", headers=fetch).status_code == 403
    assert client.get("/runs", headers=frame).status_code == 403
    assert client.get("/runs", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/runs", headers={"origin": "null"}).status_code == 403
    assert client.post("/login", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/runs", headers=link).status_code == 200
    assert client.get("/runs", headers={"sec-fetch-site": "same-origin"}).status_code == 200


# ---- sign-in


def test_every_page_requires_sign_in(guarded: TestClient) -> None:
    for path in ("/", "/runs", "/nodes", "/runs/r1", "/runs/none", "/compare", "/none"):
        response = guarded.get(path)
        assert (response.status_code, response.headers["location"], response.text) == (303, "/login", ""), path
    assert guarded.get("/live/runs").status_code == 401
    assert guarded.get("/live/runs/r1").text == "sign-in required"


def test_the_token_opens_a_session_and_sign_out_closes_it(guarded: TestClient, home: Home) -> None:
    file = home.path / TOKEN_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    response = guarded.post("/login", data={"token": f" {file.read_text()}"})
    cookie = response.headers["set-cookie"].lower()
    assert (response.status_code, response.headers["location"]) == (303, "/runs")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get("/runs").status_code == 200
    session = guarded.cookies["farshore"]
    assert guarded.post("/logout").status_code == 303
    guarded.cookies.clear()
    assert guarded.get("/runs", headers={"cookie": f"farshore={session}"}).status_code == 303


def test_a_token_in_the_url_or_a_header_opens_no_session(guarded: TestClient, home: Home) -> None:
    token = (home.path / TOKEN_FILE).read_text().strip()
    for response in (guarded.get(f"/login?token={token}"), guarded.get("/runs", headers={"authorization": token})):
        assert "set-cookie" not in response.headers
    assert guarded.post(f"/login?token={token}", data={"token": ""}).status_code == 403


def test_failed_sign_ins_are_rate_limited(home: Home) -> None:
    now = [0.0]
    dashboard = Dashboard(DashboardOptions(home.path, login=True), RateLimit(clock=lambda: now[0]))
    token = (home.path / TOKEN_FILE).read_text().strip()
    with TestClient(dashboard.application, base_url="http://127.0.0.1", follow_redirects=False) as client:
        codes = [client.post("/login", data={"token": f"guess {n}"}).status_code for n in range(12)]
        assert codes == [403] * 10 + [429] * 2
        assert client.post("/login", data={"token": token}).status_code == 429
        now[0] = 61.0
        assert client.post("/login", data={"token": token}).status_code == 303


@pytest.mark.parametrize(
    "cookie", ["farshore=", "farshore=x", "farshore=;;;", "=", "farshore=" + "a" * 9000, "farshore=\xff"]
)
def test_a_forged_cookie_is_rejected(guarded: TestClient, cookie: str) -> None:
    assert guarded.get("/runs", headers={"cookie": cookie.encode("latin-1")}).status_code == 303


def test_a_large_form_is_rejected(guarded: TestClient) -> None:
    assert guarded.post("/login", content=b"token=" + b"a" * 100_000).status_code == 413


# ---- other interfaces than loopback


def test_off_loopback_tls_and_sign_in_are_required(home: Home, tmp_path: Path) -> None:
    options = DashboardOptions(home.path, host="0.0.0.0")
    assert options.needs_login
    with pytest.raises(RefusedError, match="without TLS"):
        options.tls_files()
    with pytest.raises(ConfigError, match="needs its key"):
        DashboardOptions(home.path, certificate=tmp_path / "c.pem").tls_files()
    (home.path / "self_signed.pem").write_text("x")
    assert options.tls_files() == (home.path / "self_signed.pem", home.path / "self_signed.key")
    dashboard = Dashboard(options)
    token = (home.path / TOKEN_FILE).read_text()
    with TestClient(dashboard.application, base_url="https://192.0.2.7", follow_redirects=False) as client:
        assert client.get("/runs").status_code == 303
        cookie = client.post("/login", data={"token": token}).headers["set-cookie"]
        assert cookie.startswith("__Host-farshore=")
        assert {"secure", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
        assert client.get("/runs", headers={"host": "evil.example"}).status_code == 400
