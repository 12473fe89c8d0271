"""Who may ask, how much, and what a browser is told never to do."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from checkpoints.explore.guard import CONTENT_SECURITY_POLICY, Guard
from checkpoints.explore.server import build_app, page_files
from checkpoints.explore.session import Session

JSON = {"content-type": "application/json"}


def test_every_answer_forbids_what_the_page_does_not_need(client: TestClient) -> None:
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/api/run", "/none", "/api/document"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control")]
    for word in ("default-src 'none'", "script-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert word in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[0:0:0:0:0:0:0:1]"])
def test_names_of_loopback_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:8000",
        "localhost@evil",
        "10.0.0.7:8000",
        "",
        "[::2]",
        "localhost:x",
        "127.0.0.1:8000/x",
    ],
)
def test_other_names_are_not(client: TestClient, host: str) -> None:
    response = client.get("/api/run", headers={"host": host})
    assert response.status_code == 421
    assert "is not one of this server's names; the option `names` adds some" in response.json()["message"]


def test_told_names_are_answered_and_numbers_where_others_may_ask(session: Session) -> None:
    app = build_app(session)
    open_to_all = TestClient(Guard(app, {"Box.Local"}, 1000, by_address=True))
    for host, status in (("box.local:80", 200), ("10.0.0.7:8000", 200), ("evil.example", 421)):
        assert open_to_all.get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({**JSON, "origin": "http://evil.example"}, 403, "is not this server"),
        ({**JSON, "origin": "null"}, 403, "is not this server"),
        ({**JSON, "origin": "http://127.0.0.1:9"}, 403, "is not this server"),
        ({**JSON, "sec-fetch-site": "cross-site"}, 403, "a page of another site asked"),
        ({**JSON, "sec-fetch-site": "same-site"}, 403, "a page of another site asked"),
        ({"content-type": "text/plain"}, 415, "content-type is 'text/plain', must be application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "must be application/json"),
        ({}, 415, "must be application/json"),
    ],
)
def test_other_pages_cannot_post(client: TestClient, headers: dict[str, str], status: int, message: str) -> None:
    response = client.post("/api/trace", content='{"text": "the"}', headers=headers)
    assert response.status_code == status
    assert message in response.json()["message"]


def test_the_page_itself_can(client: TestClient) -> None:
    headers = {**JSON, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client.post("/api/trace", content='{"text": "the"}', headers=headers).status_code == 200


def test_links_from_elsewhere_lead_to_the_page_and_not_to_data(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/api/run", headers=headers).status_code == 403
    assert client.get("/app.js", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_put_or_deleted(client: TestClient, method: str) -> None:
    response = client.request(method, "/api/trace")
    assert response.status_code == 405
    assert "this server reads only" in response.json()["message"]


def test_what_is_too_long_is_refused_before_it_is_read(client: TestClient) -> None:
    most = 20_000
    response = client.post("/api/trace", json={"text": "a" * (most + 1)})
    assert response.status_code == 413
    assert (
        response.json()["message"] == "text has 20,001 characters, limits.text=20,000 are taken; shorten it, or raise the limit"
    )
    assert client.post("/api/trace", json={"text": "\U0001f600" * 100, "prompt": "a" * (most + 1)}).status_code == 413
    huge = client.post("/api/trace", content=b'{"text": "' + b"a" * 10_000_000 + b'"}', headers=JSON)
    assert huge.status_code == 413
    assert "the request has more than" in huge.json()["message"]

    def chunks() -> Any:
        yield b'{"text": "'
        for _ in range(100):
            yield b"a" * 100_000

    response = client.post("/api/trace", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert "the request has more than" in response.json()["message"]


@pytest.mark.parametrize(
    "path", ["/..%2fserver.py", "/../../../etc/passwd", "/%2e%2e/guard.py", "/static/app.js", "/docs", "/openapi.json", "/api/x"]
)
def test_only_the_files_of_the_page_are_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_makes_no_markup_of_texts_and_asks_nobody_else() -> None:
    files = page_files()
    assert {"index.html", "app.js", "style.css", "icon.svg"} <= set(files)
    for name, data in files.items():
        text = data.decode()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "DOMParser",
            "srcdoc",
            "createContextualFragment",
        ):
            assert word not in text, (name, word)
        for word in ("https://", "http://", "//cdn", "@import", "url("):
            assert word not in text.replace("http://www.w3.org/2000/svg", ""), (name, word)
    page = files["index.html"].decode()
    assert " style=" not in page
    assert " onclick=" not in page
    assert "<script>" not in page
    assert "<style" not in page
