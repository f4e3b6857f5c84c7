"""Calls of tools over HTTP, as OpenAI's client streams them; each is what it is undisturbed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import Any

import openai

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 31},
            "minItems": 4,
            "maxItems": 8,
        },
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("weather", "tides")
]


@dataclasses.dataclass(slots=True)
class Called:
    """What one answer called: names and arguments by place; and how it ended."""

    names: dict[int, str] = dataclasses.field(default_factory=dict)
    arguments: dict[int, str] = dataclasses.field(default_factory=dict)
    content: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0


async def tool_calls(http_address: str, seeds: Iterable[int]) -> list[Called]:
    """An answer a seed, all at once; at most as many as are compiled at once."""
    async with open_client(http_address) as client:
        return await asyncio.gather(*(call_tools(client, seed) for seed in seeds))


def open_client(http_address: str) -> openai.AsyncOpenAI:
    """One that does not try again."""
    url = f"http://{http_address}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


async def call_tools(client: openai.AsyncOpenAI, seed: int) -> Called:
    """One answer that must call; asserts what must hold of any."""
    called = Called()
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": f"Which days are fine? {seed}"}],
        tools=TOOLS,
        tool_choice="required",
        reasoning_effort="none",
        temperature=1.7,
        seed=seed,
        max_tokens=160,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.usage is not None:
            called.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            assert called.finish_reason is None, "something after the end"
            called.content += choice.delta.content or ""
            called.finish_reason = choice.finish_reason
            for part in choice.delta.tool_calls or ():
                assert part.function is not None
                if part.function.name:
                    assert part.index not in called.names, "a call began twice"
                    called.names[part.index] = part.function.name
                arguments = called.arguments.get(part.index, "")
                called.arguments[part.index] = arguments + (part.function.arguments or "")
    assert called.finish_reason in ("tool_calls", "length")
    assert called.completion_tokens > 0
    return called
