"""The headers that a key comes in, over a socket."""

from __future__ import annotations

import json

import pytest

from tests.frontend.http_fakes import get, only_key, running_http


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("authorization: Bearer key",), 200),
        (("x-api-key: key",), 200),
        (("x-api-key: key", "authorization: Bearer key"), 200),
        ((), 401),
        (("x-api-key: other",), 401),
        (("x-api-key: Bearer key",), 401),
        (("x-api-key: key", "authorization: Bearer other"), 400),
        (("x-api-key: other", "authorization: Bearer key"), 400),
        (("x-api-key: key", "authorization: Basic key"), 400),
        (("x-api-key: key", "x-api-key: key"), 400),
        (("authorization: Bearer key", "authorization: Bearer key"), 400),
    ],
)
async def test_a_key_comes_in_one_of_two_headers(headers: tuple[str, ...], status: int) -> None:
    async with running_http(authenticate=only_key) as http:
        got, _, answer = await get(http.port, "/v1/models", *headers)
        assert got == status
        if status == 400:
            assert json.loads(answer)["error"]["code"] == "several_api_keys"


async def test_a_request_has_its_id_under_both_names() -> None:
    async with running_http() as http:
        _, headers, _ = await get(http.port, "/v1/models", "x-request-id: mine")
        assert headers["x-request-id"] == headers["request-id"] == "mine"
