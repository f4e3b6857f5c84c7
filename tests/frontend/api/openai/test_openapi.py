"""/openapi.json and /docs: complete, true to what is sent, and closed to nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from frontend.api.anthropic import openapi as anthropic
from frontend.api.application import application
from frontend.api.http.errors import STATUSES
from frontend.api.http.openapi import openapi_document
from frontend.api.openai import openapi, response_models
from frontend.api.openai.openapi import docs_page
from frontend.api.openai.parameters.models import ChatBody, CompletionBody, GenerationBody
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL
from tests.frontend.http_fakes import ScriptedService, get, only_key, post, running_http, says


def document(*, has_metrics: bool) -> dict[str, Any]:
    return openapi_document([openapi.described(has_metrics=has_metrics), anthropic.described()])


DOCUMENT = document(has_metrics=True)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 20
    assert not [name for name in SCHEMAS if "__" in name], "several models have one name"
    for reference in found:
        place: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_every_route_and_every_status_is_described() -> None:
    app = application(
        Service(model=MODEL, version="1"), model=MODEL, metrics=lambda: (b"", "text/plain")
    )
    routes = {
        (re.sub(r"\{.*\}", "{model}", route.path), method.lower())
        for route in app.router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    described = {(path, method) for path, each in DOCUMENT["paths"].items() for method in each}
    assert described == routes
    without = document(has_metrics=False)["paths"]
    assert set(DOCUMENT["paths"]) - set(without) == {"/metrics"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        responses = DOCUMENT["paths"][path]["post"]["responses"]
        sent = {str(status) for status in STATUSES.values()} | {
            "200",
            "403",
            "405",
            "408",
            "413",
            "415",
        }
        assert set(responses) == sent


def test_every_parameter_that_is_read_is_described() -> None:
    properties = {*SCHEMAS["ChatBody"]["properties"], *SCHEMAS["CompletionBody"]["properties"]}
    page = (Path(__file__).parents[4] / "docs" / "http.md").read_text(encoding="utf-8")
    table = page.partition("| taken | remarks |")[2].partition("\n\n")[0]
    names = {
        name.partition(".")[0]
        for row in table.splitlines()
        for name in re.findall(r"`([a-z_.]+)`", row.split("|")[1] if "|" in row else "")
    }
    assert len(names) > 30
    assert names <= properties
    assert SCHEMAS["ChatBody"]["required"] == ["messages"]
    assert SCHEMAS["CompletionBody"]["required"] == ["prompt"]
    stop = SCHEMAS["ChatBody"]["properties"]["stop"]["anyOf"]
    assert {"type": "string"} in stop


@pytest.mark.parametrize("model", [GenerationBody, ChatBody, CompletionBody])
def test_every_parameter_may_be_null(model: type[GenerationBody]) -> None:
    """Unset and null are the same; a completion's prompt alone has to be there."""
    values: dict[str, Any] = dict.fromkeys(model.model_fields)
    if model is CompletionBody:
        values["prompt"] = "a"
    for value in model.model_validate(values).model_dump(exclude={"prompt"}).values():
        assert value is None


async def test_what_is_described_needs_no_key_and_names_no_model() -> None:
    async with running_http(authenticate=only_key) as http:
        status, headers, body = await get(http.port, "/openapi.json")
        assert (status, headers["content-type"]) == (200, "application/json")
        assert json.loads(body) == document(has_metrics=False)
        assert f'"{MODEL}"' not in body.decode()
        status, headers, body = await get(http.port, "/docs")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert body.decode() == docs_page()


def test_the_page_loads_nothing_from_elsewhere() -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)|https?://|@import""", docs_page())


def check(name: str, value: Any) -> None:
    """Compares an object with a response's model; validation drops keys that it does not know."""
    model: TypeAdapter[Any] = TypeAdapter(getattr(response_models, name))
    assert model.validate_python(value, strict=True) == value


WEATHER = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def scripted() -> ScriptedService:
    delta = says("x" + CALL, logprobs=[-1.0] * (1 + len(CALL)))
    delta.top_logprobs.extend(
        pb.TopLogprobs(token_ids=[97], logprobs=[-1.0]) for _ in delta.token_ids
    )
    return ScriptedService([delta], prompt_logprobs=[-0.5])


BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("/chat/completions", "Chat", {"messages": [{"role": "user", "content": "a"}]}),
    (
        "/chat/completions",
        "Chat",
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [WEATHER],
            "logprobs": True,
            "top_logprobs": 1,
        },
    ),
    ("/completions", "", {"prompt": "ab"}),
    ("/completions", "", {"prompt": "ab", "logprobs": 1, "echo": True}),
]


@pytest.mark.parametrize(("path", "kind", "body"), BODIES)
async def test_answers_and_chunks_are_what_the_models_say(
    path: str, kind: str, body: dict[str, Any]
) -> None:
    streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with running_http(scripted()) as http:
        answers = [
            await post(http.port, json.dumps(each).encode(), path=f"/v1{path}")
            for each in (body, streaming)
        ]
    assert [status for status, _, _ in answers] == [200, 200]
    check(f"{kind}Completion", json.loads(answers[0][2]))
    *events, done = re.findall(rb"data: (.*)\n\n", answers[1][2])
    assert done == b"[DONE]"
    assert len(events) >= 2
    for event in events:
        check("ChatChunk" if kind else "CompletionChunk", json.loads(event))


async def test_models_health_and_errors_are_what_the_models_say() -> None:
    async with running_http() as http:
        for path, name in (
            ("/v1/models", "ModelList"),
            (f"/v1/models/{MODEL}", "Model"),
            ("/health", "Health"),
            ("/v1/models/other", "ErrorResponse"),
            ("/nowhere", "ErrorResponse"),
        ):
            check(name, json.loads((await get(http.port, path))[2]))
