"""Who may ask: by which name, from which page, with which token; and the headers of every answer."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from telescopic.cli import app as command
from telescopic.cli.serve import _token
from telescopic.limits import Limits
from telescopic.serve.door import Door

CROSS = "https://other.example"
TOKEN = "abcdefghijklmnop-0123456789"


async def behind(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    own = [(b"content-security-policy", b"own")] if scope["path"] == "/" else []
    await send({"type": "http.response.start", "status": 200, "headers": own})
    await send({"type": "http.response.body", "body": b"{}"})


def client(host: str = "localhost:8000", **more: Any) -> TestClient:
    return TestClient(Door(behind, **more), base_url=f"http://{host}")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "192.168.1.7:8000", "LOCALHOST"]
)
def test_addresses_cannot_be_made_to_lead_elsewhere(host: str) -> None:
    assert client().get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "", "a:b:c", "é"]
)
def test_other_names_are_refused_unless_they_are_allowed(host: str) -> None:
    door = client(hosts=["laptop.local"])
    told = door.get("/health", headers={"host": host.encode()})
    assert told.status_code == 421 and "--allow-host" in told.json()["error"]
    assert door.get("/health", headers={"host": "laptop.local:8000"}).status_code == 200
    assert client(hosts=["*"]).get("/health", headers={"host": host.encode()}).status_code == 200


def test_pages_of_other_sites_may_not_ask() -> None:
    for origin in (CROSS, "null", "http://localhost:8001", "http://localhost", "https://[bad"):
        told = client().post("/predict", headers={"origin": origin})
        assert told.status_code == 403 and "access-control-allow-origin" not in told.headers
        assert client().options("/predict", headers={"origin": origin}).status_code == 403
    assert client().post("/predict", headers={"origin": "http://localhost:8000"}).status_code == 200
    assert client().post("/predict", headers={"origin": "https://LOCALHOST:8000"}).status_code == 200  # behind TLS
    asked = client(origins=[CROSS])
    told = asked.post("/predict", headers={"origin": CROSS})
    assert told.status_code == 200 and told.headers["access-control-allow-origin"] == CROSS
    assert (
        "content-type" in asked.options("/predict", headers={"origin": CROSS}).headers["access-control-allow-headers"]
    )
    assert asked.post("/predict", headers={"origin": "https://third.example"}).status_code == 403


def test_a_token_guards_all_that_tells_anything() -> None:
    door = client(token=TOKEN)
    for path in ("/predict", "/members", "/load", "/metrics", "/openapi.json"):
        told = door.get(path)
        assert told.status_code == 401 and told.headers["www-authenticate"] == "Bearer", path
        for wrong in ("", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN):
            assert door.get(path, headers={"authorization": wrong}).status_code == 401
        assert door.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/page.js", "/page.css", "/health"):
        assert door.get(path).status_code == 200
    assert door.post("/health").status_code == 401


def test_every_answer_says_what_browsers_may_do_with_it() -> None:
    for told in (
        client().get("/load"),
        client().get("/load", headers={"host": "evil"}),
        client(token="x").get("/load"),
    ):
        assert told.headers["x-content-type-options"] == "nosniff"
        assert told.headers["referrer-policy"] == "no-referrer"
        assert told.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert told.headers["cross-origin-resource-policy"] == "same-origin"
    assert client().get("/").headers.get_list("content-security-policy") == ["own"]


def test_a_token_is_read_from_a_file_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert _token(file) == TOKEN
    for bad in ("", "short", "two words of a token", "x" * 5000, "tökentökentökentöken", "line\nline-of-a-token"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match="a token is 16 to 4096"):
            _token(file)


def test_the_help_says_every_bound() -> None:
    told = " ".join(CliRunner().invoke(command, ["serve", "--help"], env={"COLUMNS": "200"}).output.split())
    for option in ("--max-body", "--max-connections", "--max-pixels", "--allow-host", "--allow-origin", "--token-file"):
        assert option in told
    limits = Limits()
    for bound in (f"{limits.head:,} bytes", f"{limits.bodies:,}", f"{limits.idle_seconds:g} s", "pipelined"[:0]):
        assert bound in told
    with pytest.raises(ValueError, match="head is more than 0, not 0"):
        Limits(head=0)
