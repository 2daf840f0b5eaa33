"""What a browser, a page of another site, a node or a guest may not do to the dashboard, or by it."""

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
from farshore.server.dashboard.middleware import POLICY
from farshore.server.dashboard.options import TOKEN_FILE, DashboardOptions
from farshore.server.rate_limit import RateLimit

from .homes import EVIL, SECRETS, Home

PAGES = ("/runs", "/nodes", "/runs/r1", "/runs/evil", "/compare", "/compare?run=r1&run=r2", "/login")
ODD = ("/runs/none", "/none", "/assets/none", "/assets/page.css", "/assets/plotly.js", "/", "/live/runs/none")


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


# ---- nothing can be changed


def test_no_method_but_get_reaches_any_page(client: TestClient, home: Home) -> None:
    before = hashlib.sha256((home.path / "runs.sqlite").read_bytes()).digest()
    for path, method in itertools.product((*PAGES, *ODD), ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X")):
        if (method, path) != ("POST", "/login"):
            assert client.request(method, path).status_code == 405, (method, path)
    assert client.head("/live/runs").status_code == 405
    assert client.head("/runs").status_code == 200
    assert hashlib.sha256((home.path / "runs.sqlite").read_bytes()).digest() == before


def test_the_store_itself_refuses_to_be_written(home: Home) -> None:
    store = RunStore(home.path / "runs.sqlite", only_read=True)
    with pytest.raises(StorageError, match="readonly"):
        store.create_run("vhl")
    assert len(store.runs()) == 3


# ---- nothing else can be read


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
def test_no_path_leads_to_a_file_that_is_not_ours(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404, answer.text
    assert "root:" not in answer.text
    assert not any(secret in answer.text for secret in SECRETS.values())


def test_no_answer_holds_a_secret(guarded: TestClient, home: Home) -> None:
    token = (home.path / TOKEN_FILE).read_text().strip()
    signed = guarded.post("/login", data={"token": token})
    session = signed.headers["set-cookie"].partition("=")[2].partition(";")[0]
    secrets = [*SECRETS.values(), token, session, "HASH-SECRET-4", "PASS-SECRET-5", str(home.path)]
    for path in (*PAGES, *ODD):
        answer = guarded.get(path)
        whole = answer.text + str(answer.headers)
        assert [secret for secret in secrets if secret in whole] == [], path
    assert "(hidden)" in guarded.get("/runs/evil").text


# ---- names are text


class Looked(HTMLParser):
    """Collects what a browser would run."""

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
def test_names_of_runs_methods_metrics_and_kinds_are_text(client: TestClient, path: str) -> None:
    text = client.get(path).text
    looked = Looked(text)
    assert looked.suspects == []
    for script in looked.scripts:
        assert script.get("type") == "application/json" or str(script.get("src")).startswith("/assets/"), script
    assert "'49'" not in text


def test_what_goes_into_charts_is_text_for_the_script_too(client: TestClient) -> None:
    data = client.get("/runs/evil").text.partition('id="charts">')[2].partition("</script>")[0]
    words = list(strings(json.loads(data)))
    assert any("alert(1)" in word for word in words)  # the kind is there
    assert not any("<" in word for word in words)


def strings(value: object) -> Iterator[str]:
    """Every string in JSON, but the templates of hovers, which are ours."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from () if name == "hovertemplate" else strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)


# ---- headers, and who may ask


@pytest.mark.parametrize("path", [*PAGES, *ODD])
def test_every_answer_has_its_headers(client: TestClient, path: str) -> None:
    for answer in (client.get(path), client.get(path, headers={"host": "evil.example"}), client.put(path)):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == (
            "no-cache" if "page.css" in path or "plotly.js" in path else "no-store"
        ) or (answer.status_code in (400, 405))
    assert "unsafe" not in POLICY


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "@127.0.0.1:x", "0x7f.1"]
)
def test_a_name_that_is_not_ours_is_not_answered(client: TestClient, host: str) -> None:
    assert client.get("/runs", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "board.example"])
def test_our_names_are_answered(home: Home, host: str) -> None:
    with home.client(hostnames=("board.example",)) as client:
        assert client.get("/runs", headers={"host": host}).status_code == 200


def test_a_page_of_another_site_gets_nothing(client: TestClient) -> None:
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


# ---- signing in


def test_nothing_is_shown_before_one_has_signed_in(guarded: TestClient) -> None:
    for path in ("/", "/runs", "/nodes", "/runs/r1", "/runs/none", "/compare", "/none"):
        answer = guarded.get(path)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", ""), path
    assert guarded.get("/live/runs").status_code == 401
    assert guarded.get("/live/runs/r1").text == "sign in"


def test_whoever_has_the_token_signs_in_and_out(guarded: TestClient, home: Home) -> None:
    file = home.path / TOKEN_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    answer = guarded.post("/login", data={"token": f" {file.read_text()}"})
    cookie = answer.headers["set-cookie"].lower()
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get("/runs").status_code == 200
    session = guarded.cookies["farshore"]
    assert guarded.post("/logout").status_code == 303
    guarded.cookies.clear()
    assert guarded.get("/runs", headers={"cookie": f"farshore={session}"}).status_code == 303


def test_a_token_in_an_address_signs_nobody_in(guarded: TestClient, home: Home) -> None:
    token = (home.path / TOKEN_FILE).read_text().strip()
    for answer in (guarded.get(f"/login?token={token}"), guarded.get("/runs", headers={"authorization": token})):
        assert "set-cookie" not in answer.headers
    assert guarded.post(f"/login?token={token}", data={"token": ""}).status_code == 403


def test_guessing_is_slowed_down(home: Home) -> None:
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
def test_a_cookie_that_is_made_up_opens_nothing(guarded: TestClient, cookie: str) -> None:
    assert guarded.get("/runs", headers={"cookie": cookie.encode("latin-1")}).status_code == 303


def test_a_form_that_is_too_long_is_refused(guarded: TestClient) -> None:
    assert guarded.post("/login", content=b"token=" + b"a" * 100_000).status_code == 413


# ---- off loopback


def test_off_loopback_it_is_tls_and_a_token(home: Home, tmp_path: Path) -> None:
    options = DashboardOptions(home.path, host="0.0.0.0")
    assert options.needs_login
    with pytest.raises(RefusedError, match="without TLS"):
        options.pair()
    with pytest.raises(ConfigError, match="needs its key"):
        DashboardOptions(home.path, certificate=tmp_path / "c.pem").pair()
    (home.path / "self_signed.pem").write_text("x")
    assert options.pair() == (home.path / "self_signed.pem", home.path / "self_signed.key")
    dashboard = Dashboard(options)
    token = (home.path / TOKEN_FILE).read_text()
    with TestClient(dashboard.application, base_url="https://192.0.2.7", follow_redirects=False) as client:
        assert client.get("/runs").status_code == 303
        cookie = client.post("/login", data={"token": token}).headers["set-cookie"]
        assert cookie.startswith("__Host-farshore=")
        assert {"secure", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
        assert client.get("/runs", headers={"host": "evil.example"}).status_code == 400
