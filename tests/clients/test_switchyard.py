"""This project's own client, over gRPC: thoughts come apart, calls are in the text as the model
writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from switchyard.client import Client
from tests.clients.cases import CHAIN, CHAIN_ANSWER, CHAIN_THOUGHT, KEY, MIA, MIA_PERSON, Person
from tests.clients.loops import Loop, Run, check_at_once
from tests.server import Server

pytestmark = pytest.mark.processes

CALL = re.compile(r"<tool_call>\n(.+)\n</tool_call>")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address, api_key=KEY) as client:
        yield client


def say(client: Client, messages: list[Any], **options: Any) -> tuple[str, str, Any]:
    """What is thought, what is said, and the usage."""
    thought = text = ""
    with client.chat(messages, **options) as stream:
        for delta in stream:
            thought += delta.reasoning
            text += delta.text
    assert stream.finished is not None
    return thought, text, stream.finished.usage


def test_loops_of_tools(client: Client) -> None:
    def check(loop: Loop) -> None:
        run = Run()
        options = {"tools": loop.schemas(), "template_kwargs": loop.template_kwargs}
        messages: list[Any] = [{"role": "user", "content": loop.question}]
        while True:
            thought, text, usage = say(client, messages, **options)
            run.prompt_tokens.append(usage.prompt_tokens)
            run.thoughts += [thought] if thought else []
            calls = [
                {"id": f"{len(messages)}-{place}", **json.loads(call)}
                for place, call in enumerate(CALL.findall(text))
            ]
            if not calls:
                break
            messages.append({"role": "assistant", "reasoning": thought, "tool_calls": calls})
            for call in calls:
                result = run.toolbox.call(call["name"], call["arguments"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        run.answer = text
        run.check(loop)

    check_at_once(check)


def test_thoughts_come_apart_from_the_answer(client: Client) -> None:
    thought, text, usage = say(client, [{"role": "user", "content": CHAIN}])
    assert (thought, text) == (CHAIN_THOUGHT, CHAIN_ANSWER)
    assert usage.reasoning_tokens > 0


def test_output_is_filled_rightly(client: Client) -> None:
    schema = Person.model_json_schema()
    _, text, _ = say(client, [{"role": "user", "content": MIA}], json_schema=schema)
    assert Person.model_validate_json(text) == MIA_PERSON
