"""Which web pages may call, over a socket: Host, Origin, and the preflights of browsers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frontend.api.auth import is_for_local_callers
from frontend.config import FrontendConfig
from tests.frontend.http_fakes import only_key, raw, running_http

PAGE = "https://page.example"
BODY = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()


async def ask(
    port: int, *headers: str, host: str | None = "localhost", method: str = "GET", body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """A request to /v1/models, or to /v1/completions if it has a body."""
    path = "/v1/completions" if body else "/v1/models"
    lines = [f"{method} {path} HTTP/1.{1 if host else 0}", "connection: close", *headers]
    lines += [f"host: {host}"] if host else []
    lines += [f"content-length: {len(body)}"] if body else []
    return await raw(port, "\r\n".join([*lines, "", ""]).encode() + body)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("localhost.:1", 200), ("127.0.0.1:80", 200),
        ("127.9.9.9", 200), ("[::1]:8000", 200), ("bound.example:1", 200), (None, 200),
        ("evil.example:8000", 403), ("localhost.evil.example", 403), ("192.0.2.7", 403),
        ("[2001:db8::1]:8000", 403), ("127.0.0.1.evil.example", 403), ("0.0.0.0:8000", 403),
    ],
)  # fmt: skip
async def test_a_local_server_answers_to_its_own_names(host: str | None, status: int) -> None:
    async with running_http(local_host="bound.example") as http:
        got, _, answer = await ask(http.port, host=host)
        assert got == status
        if status == 403:
            error = json.loads(answer)["error"]
            assert error["code"] == "host_not_allowed"
            assert "--api-key-file" in error["message"]
    async with running_http() as http:
        assert (await ask(http.port, host=host))[0] == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200), (PAGE, 200), ("https://localhost:8000", 403),
        ("http://localhost:3000", 403), ("http://evil.example", 403), ("null", 403), ("", 403),
        (f"{PAGE}.evil.example", 403),
    ],
)  # fmt: skip
async def test_a_local_server_takes_calls_of_its_own_and_of_named_pages(
    origin: str, status: int
) -> None:
    async with running_http(local_host="127.0.0.1", origins=(PAGE,)) as http:
        headers = (f"origin: {origin}", "content-type: application/json")
        for body in (b"", BODY):
            method = "POST" if body else "GET"
            got, _, answer = await ask(
                http.port, *headers, host="localhost:8000", method=method, body=body
            )
            assert got == status
            if status == 403:
                assert json.loads(answer)["error"]["code"] == "origin_not_allowed"
        assert len(http.engine.requests) == (status == 200)


async def test_two_origins_are_not_one_that_is_allowed() -> None:
    async with running_http(local_host="127.0.0.1", origins=(PAGE,)) as http:
        for pair in ((PAGE, "http://evil.example"), ("http://evil.example", PAGE)):
            assert (await ask(http.port, *(f"origin: {each}" for each in pair)))[0] == 403


def preflight(origin: str) -> tuple[str, ...]:
    return (
        f"origin: {origin}",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization,content-type,x-stainless-os",
    )


async def test_a_named_page_asks_without_a_key_and_calls_with_it() -> None:
    async with running_http(authenticate=only_key, origins=(PAGE,)) as http:
        status, headers, _ = await ask(http.port, *preflight(PAGE), method="OPTIONS")
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert "POST" in headers["access-control-allow-methods"]
        assert "authorization" in headers["access-control-allow-headers"]
        assert "x-stainless-os" in headers["access-control-allow-headers"]
        status, headers, _ = await ask(http.port, f"origin: {PAGE}", "authorization: Bearer key")
        assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
        assert "x-request-id" in headers["access-control-expose-headers"]
        status, headers, _ = await ask(http.port, f"origin: {PAGE}")
        assert (status, headers["access-control-allow-origin"]) == (401, PAGE)
        status, headers, _ = await ask(
            http.port, *preflight("http://evil.example"), method="OPTIONS"
        )
        assert status == 400
        assert "access-control-allow-origin" not in headers
        assert not http.engine.requests


async def test_no_page_is_named_unless_it_is_asked_for() -> None:
    async with running_http(authenticate=only_key) as http:
        assert (await ask(http.port, *preflight(PAGE), method="OPTIONS"))[0] == 401
        _, headers, _ = await ask(http.port, f"origin: {PAGE}", "authorization: Bearer key")
        assert "access-control-allow-origin" not in headers
    async with running_http(origins=("*",), local_host="127.0.0.1") as http:
        status, headers, _ = await ask(http.port, f"origin: {PAGE}")
        assert (status, headers["access-control-allow-origin"]) == (200, "*")


def config(**changes: Any) -> FrontendConfig:
    facts: dict[str, Any] = {"model": Path(), "served_name": "m", "workers": ("a:1",)}
    return FrontendConfig(**(facts | changes))


def test_pages_are_told_apart_where_nothing_else_is_asked() -> None:
    assert is_for_local_callers(config())
    assert is_for_local_callers(config(host="::1", cors_origin=(PAGE,)))
    assert not is_for_local_callers(config(api_key_file=Path("k")))
    assert not is_for_local_callers(config(api_key="k"))
    assert not is_for_local_callers(config(insecure=True))
    assert not is_for_local_callers(config(host="0.0.0.0", insecure=True))
    pair = {"tls_cert": Path("c"), "tls_key": Path("k")}
    assert is_for_local_callers(config(**pair))
    assert not is_for_local_callers(config(tls_client_ca=Path("ca"), **pair))


@pytest.mark.parametrize(
    "origin", ["", "page.example", "https://", "https://page.example/", "https://*.example", "**"]
)
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    for good in (
        PAGE,
        "*",
        "null",
        "http://localhost:3000",
        "http://[::1]:80",
        "app://obsidian.md",
    ):
        assert config(cors_origin=(good, PAGE)).cors_origin == (good, PAGE)
    with pytest.raises(ValueError, match=r"--cors-origin is .*https://example.com"):
        config(cors_origin=(PAGE, origin))
