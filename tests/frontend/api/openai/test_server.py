"""The HTTP server around the API: health, keys, limits, errors, clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import openai
import pytest

from frontend.api.application import application
from frontend.api.http import body as upload
from frontend.api.http import connection
from frontend.api.http.errors import STATUSES
from frontend.api.http.server import HttpServer
from frontend.api.openai.errors import KINDS
from frontend.errors import Code, RequestError
from frontend.records import RequestRecord
from frontend.service.service import Service
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend, queue_full
from tests.frontend.http_fakes import Http, get, only_key, post, raw, running_http
from tests.waiting import HANG_SECONDS, until

HELLO: list[Any] = [{"role": "user", "content": "abc"}]


async def test_health_says_why_not() -> None:
    async with running_http(ready=False) as http:
        status, _, body = await get(http.port, "/health")
        assert (status, "loading" in body.decode()) == (503, True)
        with pytest.raises(openai.InternalServerError) as caught:
            await http.client.models.list()
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        http.service.open(backend(http.engine))
        assert (await get(http.port, "/health"))[0] == 200
        http.service.drain()
        status, _, body = await get(http.port, "/health")
        assert (status, "shutting down" in body.decode()) == (503, True)


async def test_models_are_told() -> None:
    async with running_http() as http:
        models = (await http.client.models.list()).data
        assert [model.id for model in models] == [MODEL]
        assert (await http.client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError) as caught:
            await http.client.models.retrieve("other")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError) as caught:
            await http.client.completions.create(model="other", prompt="a")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("path", ["lab/model", "lab%2Fmodel", "lab/model/"])
async def test_a_models_name_may_have_a_slash(path: str) -> None:
    service = Service(model="lab/model", version="1")
    service.open(backend(FakeEngine()))
    server = HttpServer(application(service, model="lab/model"), "127.0.0.1", 0)
    port = await server.start()
    status, _, body = await get(port, f"/v1/models/{path}")
    await server.stop(0.0)
    assert (status, json.loads(body)["id"]) == (200, "lab/model")


async def test_metrics_come_from_the_hook() -> None:
    async with running_http(metrics=lambda: (b"up 1\n", "text/plain; version=0.0.4")) as http:
        status, headers, body = await get(http.port, "/metrics")
    assert (status, headers["content-type"], body) == (200, "text/plain; version=0.0.4", b"up 1\n")
    async with running_http() as http:
        assert (await get(http.port, "/metrics"))[0] == 404


class Notes:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def request_ended(self, record: RequestRecord) -> None:
        self.records.append(record)


async def test_everything_but_health_asks_for_a_key() -> None:
    notes = Notes()
    service = Service(model=MODEL, version="1", observers=[notes])
    service.open(backend(FakeEngine()))
    async with running_http(service, authenticate=only_key, metrics=lambda: (b"", "")) as http:
        assert (await get(http.port, "/health"))[0] == 200
        for path in ("/v1/models", "/metrics", "/nowhere", "/tokenize", "/invocations"):
            status, headers, _ = await get(http.port, path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
        with pytest.raises(openai.AuthenticationError):
            await http.client.with_options(api_key="wrong").models.list()
        await http.client.completions.create(
            model=MODEL, prompt="a", max_tokens=1, extra_headers={"traceparent": "00-ab-cd-01"}
        )
    (record,) = notes.records
    assert (record.caller.key, record.caller.traceparent) == ("alice", "00-ab-cd-01")
    assert record.caller.peer.startswith("127.0.0.1:")


async def test_every_code_is_a_status() -> None:
    async with running_http() as http:
        for code in Code:
            http.engine.refuse = RequestError(code, "no", reason="SOME_REASON")
            with pytest.raises(openai.APIStatusError) as caught:
                await http.client.completions.create(model=MODEL, prompt="a")
            error: Any = caught.value
            assert (error.status_code, error.type) == (STATUSES[code], KINDS[code])
            assert (error.code, error.body["message"]) == ("some_reason", "no")


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with running_http() as http:
        http.engine.refuse = queue_full()
        with pytest.raises(openai.RateLimitError) as caught:
            await http.client.chat.completions.create(model=MODEL, messages=HELLO)
        assert caught.value.response.headers["retry-after"] == "2"
        http.engine.refuse = None
        assert not http.engine.running


async def test_a_bug_is_opaque(caplog: pytest.LogCaptureFixture) -> None:
    async with running_http() as http:
        http.engine.refuse = ZeroDivisionError("secret")
        with pytest.raises(openai.InternalServerError) as caught:
            await http.client.completions.create(
                model=MODEL, prompt="a", extra_headers={"x-request-id": "mine"}
            )
    assert "secret" not in caught.value.message
    assert "mine" in caught.value.message
    assert "secret" in caplog.text


async def test_an_error_in_a_stream_is_its_last_event() -> None:
    async with running_http() as http:
        http.engine.hold_at = 2
        http.engine.go.clear()
        stream = await http.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=5, stream=True
        )
        chunks = aiter(stream)
        got = ""
        while len(got) < 2:
            got += (await anext(chunks)).choices[0].delta.content or ""
        http.engine.fail_all(RequestError(Code.UNAVAILABLE, "workers gone", reason="LOST"))
        with pytest.raises(openai.APIError, match="gone"):
            await anext(chunks)
        assert got == answer_text("abc", 2)


async def test_the_clients_id_is_used_and_sent_back() -> None:
    async with running_http() as http:
        create = http.client.completions.with_raw_response.create
        for given, used in (("mine-1", True), ("not good", False), ("x" * 129, False)):
            answer = await create(
                model=MODEL, prompt="a", max_tokens=1, extra_headers={"x-request-id": given}
            )
            request_id = answer.headers["x-request-id"]
            assert (request_id == given) == used
            assert answer.parse().id == f"cmpl-{request_id}"
            assert request_id in http.engine.requests


async def test_an_id_that_is_live_gets_a_new_one() -> None:
    async with running_http() as http:
        http.engine.go.clear()
        headers = {"x-request-id": "twice"}
        calls = [
            asyncio.create_task(
                http.client.completions.create(
                    model=MODEL, prompt="a", max_tokens=3, extra_headers=headers
                )
            )
            for _ in range(2)
        ]
        await until(lambda: len(http.engine.running) == 2)
        http.engine.go.set()
        answers = await asyncio.gather(*calls)
    assert [answer.choices[0].text for answer in answers] == [answer_text("a", 3)] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["abc", ["abc", "xyz"]], ids=["one", "several"])
async def test_a_client_that_leaves_ends_its_requests(stream: bool, prompt: Any) -> None:
    async with running_http() as http:
        http.engine.hold_at = 2
        http.engine.go.clear()
        count = 1 if isinstance(prompt, str) else len(prompt)
        create: Any = http.client.completions.create
        call = asyncio.create_task(create(model=MODEL, prompt=prompt, max_tokens=9, stream=stream))
        await until(lambda: len(http.engine.running) == count)
        if stream:
            await (await call).close()
        else:
            call.cancel()
        await until(lambda: len(http.engine.aborted) == count)
        assert not http.engine.running
        await asyncio.wait_for(http.service.idle(), 1)


async def test_a_timeout_of_the_client_ends_its_request() -> None:
    async with running_http() as http:
        http.engine.go.clear()
        with pytest.raises(openai.APITimeoutError):
            await http.client.with_options(timeout=0.2).completions.create(model=MODEL, prompt="a")
        await until(lambda: len(http.engine.aborted) == 1)


async def test_a_reader_that_pauses_gets_everything_in_few_writes() -> None:
    """Output that nobody reads is gathered, not queued message by message."""
    async with running_http() as http:
        http.engine.hold_at = 1
        http.engine.go.clear()
        stream = await http.client.completions.create(
            model=MODEL, prompt="abc", max_tokens=40, stream=True
        )
        text, chunks = "", 0
        async for chunk in stream:
            http.engine.go.set()
            text += chunk.choices[0].text
            chunks += 1
        assert text == answer_text("abc", 40)
        assert chunks <= 42


BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'{"prompt": NaN}', 400),
    (b'{"prompt": "\\ud800"}', 400),
    (b'{"prompt": "\xff"}', 400),
    (b"[" * 10_000, 400),
    (b"[" * 100_000, 413),
    (b'{"prompt": "a", "max_tokens": 1, "x": 1e999}', 200),
    (b'{"prompt": "a", "max_tokens": 1, "stop": null, "what": {}}', 200),
    (b'{"prompt": "a", "temperature": 1e999}', 400),
]


async def test_any_body_gets_an_answer() -> None:
    async with running_http() as http:
        for body, status in BODIES:
            got, headers, answer = await post(http.port, body)
            assert (got, headers["content-type"]) == (status, "application/json"), body[:40]
            error = json.loads(answer).get("error", {})
            assert error.get("type") == (None if status == 200 else "invalid_request_error")


async def test_a_large_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MAX_BODY_BYTES", 1000)
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    chunked = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with running_http() as http:
        assert (await post(http.port, b'{"prompt": "' + b"a" * 50 + b'"}'))[0] == 400
        status, _, answer = await post(http.port, b"x" * 1001)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")
        assert (await raw(http.port, chunked + chunk))[0] == 413


async def test_a_slow_body_and_a_slow_header_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload, "BODY_SECONDS", 0.05)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    async with running_http() as http, asyncio.timeout(5):
        assert (await raw(http.port, head))[0] == 408
        with monkeypatch.context() as patch:
            patch.setattr(connection, "HEADER_SECONDS", 0.05)
            for begun in (b"", b"GET /health HTTP/1.1\r\nhost"):
                reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
                writer.write(begun)
                assert await is_closed(reader)
                writer.close()
        assert (await get(http.port, "/health"))[0] == 200


async def test_a_connection_too_many_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
    async with running_http() as http, asyncio.timeout(5):
        _, first = await asyncio.open_connection("127.0.0.1", http.port)
        await until(lambda: http.server._server.server_state.connections)
        reader, second = await asyncio.open_connection("127.0.0.1", http.port)
        assert await is_closed(reader)
        first.close()
        second.close()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection on which nothing was said."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_large_headers_and_unknown_paths() -> None:
    async with running_http() as http:
        endless = b"GET /health HTTP/1.1\r\nx: " + b"a" * 40_000
        assert (await raw(http.port, endless))[0] == 431
        assert (await get(http.port, "/v1/embeddings"))[0] == 404
        status, headers, _ = await get(http.port, "/v1/completions")
        assert (status, headers["allow"]) == (405, "POST")


async def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        app = application(Service(model=MODEL, version="1"), model=MODEL)
        with pytest.raises(OSError, match=f"127.0.0.1:{port}.*in use.*--http-port"):
            await HttpServer(app, "127.0.0.1", port).start()


async def test_a_drain_lets_a_stream_end_with_its_logprobs() -> None:
    async with running_http() as http:
        http.engine.hold_at = 1
        http.engine.go.clear()
        stream = await http.client.completions.create(
            model=MODEL, prompt="abc", max_tokens=4, logprobs=1, stream=True
        )
        chunks = aiter(stream)
        await anext(chunks)
        http.service.drain()
        http.engine.go.set()
        tokens = [token async for chunk in chunks for token in _tokens(chunk)]
        assert "d" + "".join(tokens) == answer_text("abc", 4)
        with pytest.raises(openai.InternalServerError) as caught:
            await http.client.completions.create(model=MODEL, prompt="a")
        assert caught.value.status_code == 503


def _tokens(chunk: Any) -> list[str]:
    logprobs = chunk.choices[0].logprobs
    return logprobs.tokens if logprobs else []


async def test_stopping_gives_responses_their_grace() -> None:
    async with running_http() as http:
        http.engine.hold_at = 2
        http.engine.go.clear()
        stream = await http.client.completions.create(
            model=MODEL, prompt="abc", max_tokens=4, stream=True
        )
        stopping = asyncio.create_task(_stop(http))
        async with asyncio.timeout(HANG_SECONDS):
            while await _accepts(http.port):
                await asyncio.sleep(0.005)
        assert not stopping.done()
        http.engine.go.set()
        text = "".join([chunk.choices[0].text async for chunk in stream])
        await asyncio.wait_for(stopping, 5)
    assert text == answer_text("abc", 4)


async def _stop(http: Http) -> None:
    await http.server.stop(5.0)


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True
