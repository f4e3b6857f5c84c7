"""A loop of tools by pydantic-ai's agents, whichever API they ask."""

from __future__ import annotations

from typing import Any

from tests.clients.loops import Loop


async def run_loop(agent: Any, loop: Loop) -> Any:
    """The run, after its answer was right."""
    if loop.streams:
        async with agent.run_stream(loop.question) as run:
            output = await run.get_output()
    else:
        run = await agent.run(loop.question)
        output = run.output
    assert output == loop.answer
    return run


def _responses(run: Any) -> list[Any]:
    return [message for message in run.all_messages() if message.kind == "response"]


def thoughts_of(run: Any) -> list[str]:
    """Those of each turn that has any; of responses they are no summaries, and kept apart."""
    parts = (part for response in _responses(run) for part in response.parts)
    thoughts = (part for part in parts if part.part_kind == "thinking")
    return [part.content or "".join(part.provider_details["raw_content"]) for part in thoughts]


def prompt_tokens_of(run: Any) -> list[int]:
    """Of each turn."""
    return [response.usage.input_tokens for response in _responses(run)]
