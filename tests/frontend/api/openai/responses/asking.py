"""A request to /v1/responses without HTTP: what it becomes, and the events of a scripted answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from frontend.api.http.long_json import encoded
from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.responses.job import ResponseJob
from frontend.api.openai.responses.request import ResponseRequest, read_response
from frontend.records import UNKNOWN_CALLER
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.http_fakes import ScriptedService

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PATCH: dict[str, Any] = {"type": "custom", "name": "patch", "description": "Change files."}

AGENTS: dict[str, Any] = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "ask", "parameters": {}}, PATCH],
}


def read(input_: Any = "a", **values: Any) -> ResponseRequest:
    """What a body becomes."""
    return read_response({"input": input_, **values}, "r", "m", ScriptedService([]).tool_format)


def job(service: ScriptedService, **values: Any) -> ResponseJob:
    any_service: Any = service
    return ResponseJob(read(**values), any_service, TokenTexts(any_service), UNKNOWN_CALLER)


async def whole(deltas: Sequence[pb.Delta], **values: Any) -> dict[str, Any]:
    """The whole response, which OpenAI's own package takes."""
    answer: dict[str, Any] = json.loads(
        encoded(await job(ScriptedService(deltas), **values).answer())
    )
    Response.model_validate(answer)
    return answer


async def events(deltas: Sequence[pb.Delta], **values: Any) -> list[dict[str, Any]]:
    """The events of a stream, each as OpenAI's own package has its type, numbered from 0."""
    told = []
    async for several in job(ScriptedService(deltas), stream=True, **values).chunks():
        told += [json.loads(encoded(event)) for event in several]
    for number, event in enumerate(told):
        assert EVENTS.validate_python(event).type == event["type"]
        assert event["sequence_number"] == number
    return told


def without_ids(value: Any) -> Any:
    """The same without ids, which are new each time."""
    if isinstance(value, dict):
        hidden = ("id", "item_id", "call_id", "created_at")
        return {key: without_ids(each) for key, each in value.items() if key not in hidden}
    return [without_ids(each) for each in value] if isinstance(value, list) else value
