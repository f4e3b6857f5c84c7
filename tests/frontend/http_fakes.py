"""An HTTP server on a free port, and a service that says what a test wrote down."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest import mock

import uvicorn.server
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from frontend.api.application import application
from frontend.api.http.server import HttpServer
from frontend.errors import Code, RequestError
from frontend.processing.text_decoders import ByteDecoder, complete_text
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.records import UNKNOWN_CALLER, Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, backend


class ScriptedService:
    """Answers every request with the same deltas; a byte is a token.

    Attributes:
        requests, streams: the requests that came, in order, and whether each was to be streamed.
        prompt_logprobs: of the prompt's tokens from the second on.
    """

    def __init__(self, deltas: Sequence[pb.Delta], prompt_logprobs: Sequence[float] = ()) -> None:
        self.deltas = deltas
        self.prompt_logprobs = prompt_logprobs
        self.requests: list[Any] = []
        self.streams: list[bool] = []
        self.reasoning_tokens = 0
        self.tool_format: ToolFormat = HERMES

    async def generate(
        self, request: pb.GenerateRequest, caller: Caller = UNKNOWN_CALLER, *, streams: bool = True
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.streams.append(streams)
        async for event in self._events(request):
            yield event

    async def chat(
        self, request: pb.ChatRequest, caller: Caller = UNKNOWN_CALLER, *, streams: bool = True
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.streams.append(streams)
        async for event in self._events(request.request):
            yield event

    async def _events(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        started = pb.GenerateStarted(model=MODEL, prompt_tokens=3, cached_prompt_tokens=1)
        started.prompt_logprobs.extend(self.prompt_logprobs)
        if request.output.top_logprobs:
            started.prompt_top_logprobs.extend(
                pb.TopLogprobs(token_ids=[ord("z")], logprobs=[-0.125])
                for _ in self.prompt_logprobs
            )
        yield pb.GenerateResponse(started=started)
        for delta in self.deltas:
            yield pb.GenerateResponse(delta=delta)
        count = sum(len(delta.token_ids) for delta in self.deltas)
        usage = pb.Usage(
            prompt_tokens=3,
            cached_prompt_tokens=1,
            completion_tokens=count,
            reasoning_tokens=self.reasoning_tokens,
        )
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage))

    async def tokenize_text(self, text: str) -> list[int]:
        return list(text.encode())

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=bytes(request.token_ids).decode(errors="replace"))

    def decoder(self, keep_special_tokens: bool) -> ByteDecoder:
        return ByteDecoder({byte: complete_text(bytes([byte])) for byte in range(256)})


def says(text: str, reason: int = pb.FINISH_REASON_EOS, index: int = 0, **more: Any) -> pb.Delta:
    """A whole answer as one delta, a token a letter."""
    return pb.Delta(
        index=index,
        text=text,
        token_ids=text.encode(),
        finish_reason=reason,  # type: ignore[arg-type]
        **more,
    )


@dataclasses.dataclass(frozen=True)
class Http:
    """A server that runs, and a client of it."""

    client: AsyncOpenAI
    port: int
    engine: FakeEngine
    service: Any
    server: HttpServer


class _ShortSleeps:
    """asyncio for uvicorn, which looks every tenth of a second whether it shall stop."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


@contextlib.asynccontextmanager
async def running_http(
    service: Any = None, ready: bool = True, **options: Any
) -> AsyncIterator[Http]:
    """Serve HTTP; without a service, a real one on a fake engine."""
    engine = FakeEngine()
    if service is None:
        service = Service(model=MODEL, version="1.2.3")
        if ready:
            service.open(backend(engine))
    server = HttpServer(application(service, model=MODEL, **options), "127.0.0.1", 0)
    with mock.patch.object(uvicorn.server, "asyncio", _ShortSleeps()):
        port = await server.start()
        client = AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key="key",
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(verify=False),  # loads no authorities of the web
        )
        try:
            async with client:
                yield Http(client, port, engine, service, server)
        finally:
            await server.stop(0.0)


async def raw(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request written by hand; the connection is closed after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


async def get(port: int, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    lines = [f"GET {path} HTTP/1.1", "host: x", "connection: close", *headers, "", ""]
    return await raw(port, "\r\n".join(lines).encode())


async def post(
    port: int, body: bytes, *headers: str, path: str = "/v1/completions"
) -> tuple[int, dict[str, str], bytes]:
    lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", *headers]
    lines += [f"content-length: {len(body)}", "", ""]
    return await raw(port, "\r\n".join(lines).encode() + body)


def only_key(authorization: str | None) -> str:
    if authorization != "Bearer key":
        raise RequestError(Code.UNAUTHENTICATED, "send a key", reason="NO_KEY")
    return "alice"
