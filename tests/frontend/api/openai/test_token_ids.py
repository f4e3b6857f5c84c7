"""/tokenize and /detokenize, and the other paths that have no module of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from switchyard.release import release
from tests.frontend.fakes import MAX_CONTEXT, MODEL
from tests.frontend.http_fakes import get, only_key, post, raw, running_http


async def call(port: int, path: str, **values: Any) -> tuple[int, Any]:
    status, _, answer = await post(port, json.dumps(values).encode(), path=path)
    return status, json.loads(answer)


async def test_a_prompt_becomes_ids_and_ids_become_text() -> None:
    async with running_http() as http:
        status, answer = await call(http.port, "/tokenize", model=MODEL, prompt="abc")
        assert (status, answer) == (
            200,
            {"count": 3, "max_model_len": MAX_CONTEXT, "tokens": [97, 98, 99], "token_strs": None},
        )
        _, answer = await call(
            http.port, "/tokenize", prompt="ab", add_special_tokens=False, return_token_strs=True
        )
        assert (answer["tokens"], answer["token_strs"]) == ([97, 98], ["a", "b"])
        status, answer = await call(http.port, "/detokenize", model=MODEL, tokens=[97, 98, 99])
        assert (status, answer) == (200, {"prompt": "abc"})
        assert await call(http.port, "/detokenize", tokens=[]) == (200, {"prompt": ""})
        assert not http.engine.requests


async def test_a_chat_has_the_ids_that_its_completion_has() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    async with running_http() as http:
        status, answer = await call(http.port, "/tokenize", **chat, add_generation_prompt=True)
        assert status == 200
        await call(http.port, "/v1/chat/completions", **chat, max_tokens=1)
        (request,) = http.engine.requests.values()
        assert answer["tokens"] == list(request.prompt_ids)
        assert answer["count"] == len(request.prompt_ids)


@pytest.mark.parametrize(
    ("path", "values", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
            400,
            "continue_final_message",
        ),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a" * ((1 << 20) + 1)}, 400, "prompt"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [1 << 70]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [256]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
async def test_what_cannot_be_answered_names_the_parameter(
    path: str, values: dict[str, Any], status: int, param: str
) -> None:
    async with running_http() as http:
        got, answer = await call(http.port, path, **values)
        assert (got, answer["error"]["param"]) == (status, param)


async def test_tokens_need_a_key_and_the_release_and_ping_need_none() -> None:
    async with running_http(authenticate=only_key) as http:
        assert (await call(http.port, "/tokenize", prompt="a"))[0] == 401
        assert (await call(http.port, "/detokenize", tokens=[1]))[0] == 401
        status, _, body = await get(http.port, "/version")
        assert (status, json.loads(body)) == (200, {"version": release()})
        assert (await get(http.port, "/ping"))[0] == 200
        http.service.drain()
        assert (await get(http.port, "/ping"))[0] == 503


async def test_a_path_may_end_with_a_slash() -> None:
    async with running_http(authenticate=only_key) as http:
        key = "authorization: Bearer key"
        assert (await get(http.port, "/health/"))[0] == 200
        for path in ("/v1/models/", f"/v1/models/{MODEL}/", "/v1/models?x=/"):
            assert (await get(http.port, path, key))[0] == 200
            assert (await get(http.port, path))[0] == 401
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        assert (await post(http.port, body, key, path="/v1/completions/"))[0] == 200
        assert (await get(http.port, "/", key))[0] == 404


async def test_head_is_get_without_its_body() -> None:
    async with running_http() as http:
        for path in ("/health", "/v1/models", "/version", "/ping", "/docs", "/openapi.json"):
            status, headers, body = await get(http.port, path)
            request = f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            got, head, nothing = await raw(http.port, request.encode())
            assert (got, head["content-length"]) == (status, str(len(body)))
            assert (head["content-type"], nothing) == (headers["content-type"], b"")
        request = "HEAD /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        status, headers, _ = await raw(http.port, request.encode())
        assert (status, headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings/", "/v1/audio/speech", "/v1/files", "/v1/fine_tuning/jobs", "/api/chat",
    ],
)  # fmt: skip
async def test_paths_of_other_servers_say_what_to_use(path: str) -> None:
    async with running_http() as http:
        for status, _, answer in (
            await get(http.port, path),
            await post(http.port, b"{}", path=path),
        ):
            error = json.loads(answer)["error"]
            assert (status, error["code"]) == (404, "not_found")
            assert "not offered here; use /v1/chat/completions" in error["message"]
        _, _, answer = await get(http.port, "/v1/filesx")
        assert "no such path" in json.loads(answer)["error"]["message"]


async def test_two_keys_are_none() -> None:
    async with running_http(authenticate=only_key) as http:
        right, wrong = "authorization: Bearer key", "Authorization: Bearer other"
        for pair in ((right, wrong), (wrong, right), (right, right)):
            status, _, answer = await get(http.port, "/v1/models", *pair)
            assert (status, json.loads(answer)["error"]["code"]) == (400, "several_api_keys")
        assert (await get(http.port, "/v1/models", right))[0] == 200
