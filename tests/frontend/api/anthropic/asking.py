"""Asks /v1/messages over a socket, and checks events by the types of Anthropic's own package."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.frontend.fakes import MODEL
from tests.frontend.http_fakes import Http, post

HELLO: list[Any] = [{"role": "user", "content": "abc"}]
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@contextlib.asynccontextmanager
async def client_of(http: Http, **options: Any) -> AsyncIterator[AsyncAnthropic]:
    url = f"http://127.0.0.1:{http.port}"
    transport = DefaultAsyncHttpxClient(verify=False)  # loads no authorities of the web
    options = {"api_key": "key", **options}
    async with AsyncAnthropic(
        base_url=url, max_retries=0, http_client=transport, **options
    ) as client:
        yield client


def body(**parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 50, "messages": HELLO, **parameters}


async def asked(
    http: Http, *headers: str, path: str = "/v1/messages", **parameters: Any
) -> tuple[int, dict[str, str], Any]:
    """Status, headers, and the JSON of an answer that is no stream."""
    sent = json.dumps(body(**parameters)).encode()
    status, got, answer = await post(http.port, sent, *headers, path=path)
    return status, got, json.loads(answer)


async def events_of(http: Http, **parameters: Any) -> list[dict[str, Any]]:
    """The events of a stream, in the order that Anthropic has them in."""
    sent = json.dumps(body(stream=True, **parameters)).encode()
    status, _, answer = await post(http.port, sent, path="/v1/messages")
    assert status == 200, answer
    found = []
    for event in _joined(answer).split("\n\n"):
        if not event:
            continue
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def _joined(chunked: bytes) -> str:
    """A body without its chunks' sizes."""
    text = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        text += rest[: int(size, 16)]
        chunked = rest[int(size, 16) + 2 :]
    return text.decode()


def check_order(events: list[dict[str, Any]]) -> None:
    """Blocks are numbered, each begins and ends before the next, and deltas are of its kind."""
    for event in events:
        _EVENT.validate_python(event)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    num_blocks, opened = 0, ""
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert not opened
                opened = event["content_block"]["type"]
                assert event["index"] == num_blocks
            case "content_block_delta":
                assert event["index"] == num_blocks
                assert (
                    event["delta"]["type"]
                    in {
                        "thinking": ("thinking_delta", "signature_delta"),
                        "text": ("text_delta",),
                        "tool_use": ("input_json_delta",),
                    }[opened]
                )
            case "content_block_stop":
                assert opened
                assert event["index"] == num_blocks
                num_blocks, opened = num_blocks + 1, ""
    assert not opened


def content_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The message's content, put together as clients do."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"]})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[-1]
            if delta["type"] == "input_json_delta":
                block["json"] = block.get("json", "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("json", "{}"))
    return blocks
