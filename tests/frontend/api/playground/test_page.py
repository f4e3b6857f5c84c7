"""The page at /: who is shown it, with which headers, and that its files are whole and harmless."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from frontend.api.auth import ApiKeys, has_playground
from frontend.api.listeners import Listeners
from frontend.api.playground.page import FILES, PAGE, playground_routes
from frontend.config import FrontendConfig
from frontend.observability.metrics import Metrics
from frontend.service.service import Service
from tests.frontend.fakes import MODEL
from tests.frontend.http_fakes import get, only_key, raw, running_http

KEY = "a-key-that-is-long-enough"
CERTIFICATES = {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_client_ca": Path("ca")}
SCRIPTS = sorted(FILES.glob("*.js"))
PATHS = ["/", *(f"/playground/{path.name}" for path in sorted(FILES.iterdir()))]


def config(**changes: Any) -> FrontendConfig:
    facts: dict[str, Any] = {"model": Path(), "served_name": "m", "workers": ("a:1",)}
    return FrontendConfig(**(facts | changes))


@pytest.mark.parametrize(
    ("changes", "is_shown"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"api_key": KEY}, True),
        ({"api_key_file": Path("k"), "host": "0.0.0.0"}, True),
        ({"api_key": KEY, "insecure": True}, True),
        ({**CERTIFICATES, "host": "0.0.0.0"}, True),
        ({"insecure": True}, False),
        ({"insecure": True, "host": "0.0.0.0"}, False),
        ({"playground": False}, False),
        ({"playground": False, "api_key": KEY}, False),
    ],
)
def test_it_is_shown_where_every_caller_is_local_or_known(
    changes: dict[str, Any], is_shown: bool
) -> None:
    assert has_playground(config(**changes)) is is_shown


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 200), ({"api_key": KEY}, 200), ({"insecure": True}, 404), ({"playground": False}, 404)],
)
async def test_the_listeners_of_a_server_show_it_or_not(
    changes: dict[str, Any], status: int
) -> None:
    settings = config(port=0, http_port=0, **changes)
    service = Service(model=MODEL, version="1")
    listeners = Listeners(settings, service, ApiKeys(key=settings.api_key), Metrics(MODEL))
    _, port = await listeners.start()
    assert port is not None
    try:
        for path in ("/", "/playground/main.js"):
            request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            assert (await raw(port, request.encode()))[0] == status, path
    finally:
        await listeners.stop(0.0)


async def test_with_keys_it_needs_none_and_what_it_shows_does() -> None:
    async with running_http(authenticate=only_key, pages=playground_routes()) as http:
        for path in PATHS:
            assert (await get(http.port, path))[0] == 200, path
        for path in ("/v1/models", "/load", "/playground", "/playground/page.py", "/index.html"):
            assert (await get(http.port, path))[0] == 401, path


async def test_a_name_that_is_pointed_to_this_machine_is_not_shown_it() -> None:
    async with running_http(local_host="127.0.0.1", pages=playground_routes()) as http:
        request = "GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
        assert (await raw(http.port, request.encode()))[0] == 403


@pytest.mark.parametrize("path", PATHS)
async def test_every_file_forbids_what_it_does_not_need(path: str) -> None:
    async with running_http(pages=playground_routes()) as http:
        status, headers, body = await get(http.port, path)
    assert (status, len(body)) == (200, int(headers["content-length"]))
    policy = dict(
        directive.split(" ", 1) for directive in headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert headers["content-type"].partition(";")[0] == kinds[path.rpartition(".")[2].strip("/")]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {f"/{name}" for name in named} <= set(PATHS)
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"https?:|//\w+\.|@import|url\(", text), path.name
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (FILES / name).exists(), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_html_of_text(path: Path) -> None:
    ways = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|setHTML|srcdoc"
    assert not re.findall(ways, path.read_text(encoding="utf-8"))


def test_every_element_that_a_script_asks_for_is_in_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    asked = {
        name for path in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', path.read_text())
    }
    assert len(asked) > 20
    assert asked <= set(ids)
