"""Every API over HTTP tells the same when the workers are lost after any step: thoughts, text, a
call."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.frontend.http_fakes import Http, post, running_http
from tests.frontend.played_service import lose_workers, played_service
from tests.frontend.processing.chat import templates
from tests.frontend.service.test_thinking_turns import CALLS, Script

# What the model's thoughts and calls are told by.
SIGNS = '{% if tools and arguments %}<tool_call>{"arguments": {% endif %}'
TOKENIZER = templates.tokenizer_of(
    f"{templates.CHATML}{SIGNS}{{% if opens %}}<think>\n{{% endif %}}"
)
SCRIPT = Script(CALLS["hermes"], False)
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
APIS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": FUNCTION}],
        "stream_options": {"include_usage": True},
    },
    "/v1/responses": {"input": "hi", "tools": [{"type": "function", **FUNCTION}]},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2048,
    },
}


async def asked(http: Http, path: str, *, stream: bool) -> str:
    """What is said, but for names and times that are new in each answer."""
    body = json.dumps({"stream": stream, "seed": 1, **APIS[path]}).encode()
    status, _, answer = await post(http.port, body, "content-type: application/json", path=path)
    text = answer.decode()
    assert status == 200, text
    text = re.sub(r'"(?:id|item_id|call_id|signature)":"[^"]*"', '"id":""', text)
    text = re.sub(r'"(?:created|created_at|completed_at)":[0-9.]+', '"created":0', text)
    return re.sub(r'"(?:cached_tokens|cache_read_input_tokens|input_tokens)":[0-9]+', '"n":0', text)


def told(path: str, text: str) -> list[str]:
    """All words of a stream, however they were cut into events."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    words: dict[str, str] = {}
    for event in events:
        match path:
            case "/v1/chat/completions":
                deltas = [choice["delta"] for choice in event["choices"]]
                for delta in deltas:
                    calls = delta.get("tool_calls", [])
                    for kind in ("reasoning_content", "content"):
                        words[kind] = words.get(kind, "") + (delta.get(kind) or "")
                    for call in calls:
                        words["call"] = words.get("call", "") + json.dumps(call["function"])
            case _:
                kind = event["type"]
                delta = event.get("delta")
                if isinstance(delta, dict):
                    kind = delta.get("type", kind)
                    delta = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
                if isinstance(delta, str):
                    words[kind] = words.get(kind, "") + delta
    return [f"{kind}: {said}" for kind, said in words.items()]


@pytest.mark.slow
@pytest.mark.parametrize("path", APIS)
async def test_a_loss_after_any_step_changes_nothing(path: str) -> None:
    async with (
        played_service(TOKENIZER, SCRIPT) as (service, engine),
        running_http(service) as http,
    ):
        streamed = told(path, await asked(http, path, stream=True))
        num_steps = len(engine._group.workers.steps)
        whole = await asked(http, path, stream=False)
    assert num_steps > 100
    said = json.dumps(streamed)
    for words in ("so <tool_call>", "well, ", "then stop", '{\\"x\\": 1}'):
        assert words in said.replace('\\\\"', '\\"'), said
    for num_sent in range(1, num_steps, 11):
        for stream in (True, False):
            async with (
                played_service(TOKENIZER, SCRIPT) as (service, engine),
                running_http(service) as http,
            ):
                answer = asyncio.create_task(asked(http, path, stream=stream))
                running = await lose_workers(engine, num_sent, TOKENIZER, SCRIPT)
                text = await answer
                assert engine.load().replayed_requests == 1
                if stream:
                    assert told(path, text) == streamed, f"lost after step {num_sent}"
                else:
                    assert text == whole, f"lost after step {num_sent}"
                running.cancel()
                await asyncio.wait([running])
