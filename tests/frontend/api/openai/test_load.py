"""Load, facts and experts over HTTP: the messages of gRPC, with their names and as numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from frontend.api.openai import load
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, backend
from tests.frontend.http_fakes import get, only_key, running_http

TYPES: list[tuple[Any, Any]] = [
    (load.Load, pb.GetLoadResponse),
    (load.StepTotals, pb.StepTotals),
    (load.ServerInfo, pb.GetServerInfoResponse),
    (load.ExpertLoad, pb.GetExpertLoadResponse),
    (load.LayerExpertLoad, pb.LayerExpertLoad),
]


class Experts:
    async def get(self) -> pb.GetExpertLoadResponse:
        answer = pb.GetExpertLoadResponse()
        answer.layers.add(layer=3, tokens=[2**53 - 1, 0], imbalance=1.5)
        return answer


@pytest.mark.parametrize(("shown", "message"), TYPES)
def test_the_types_have_every_field_of_the_contract(shown: Any, message: Any) -> None:
    assert list(shown.__annotations__) == [field.name for field in message.DESCRIPTOR.fields]


async def test_what_is_told_is_what_grpc_tells() -> None:
    service = Service(model=MODEL, version="1.2.3")
    service.open(backend(FakeEngine(), experts=Experts()))
    async with running_http(service) as http:
        told = [
            json.loads((await get(http.port, path))[2])
            for path in ("/load", "/server_info", "/expert_load")
        ]
    for value, kind in zip(told, (load.Load, load.ServerInfo, load.ExpertLoad), strict=True):
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        assert adapter.validate_python(value, strict=True) == value
    message = service.load()
    assert told[0]["running_requests"] == message.running_requests > 0
    assert told[0]["steps"]["floor_seconds"] == message.steps.floor_seconds
    assert (told[1]["version"], told[1]["device"]) == ("1.2.3", "cpu")
    assert told[1]["started"] == service.server_info().started.seconds
    assert told[2] == {"layers": [{"layer": 3, "tokens": [2**53 - 1, 0], "imbalance": 1.5}]}


async def test_a_dense_model_has_no_layers() -> None:
    async with running_http() as http:
        assert json.loads((await get(http.port, "/expert_load"))[2]) == {"layers": []}


@pytest.mark.parametrize("path", ["/load", "/server_info", "/expert_load"])
async def test_it_needs_a_key_and_a_model(path: str) -> None:
    async with running_http(authenticate=only_key) as http:
        assert (await get(http.port, path))[0] == 401
        assert (await get(http.port, path, "authorization: Bearer key"))[0] == 200
    async with running_http(ready=False) as http:
        assert (await get(http.port, path))[0] == 503
