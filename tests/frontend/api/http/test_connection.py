"""A connection's manners, over real sockets: two lengths, long headers, clients that end their side
or all of it, bodies that nobody reads, and handshakes that do not come."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from frontend.api.application import application
from frontend.api.http import connection
from frontend.api.http import encrypted as encryption
from frontend.api.http.connection import MAX_HEADER_BYTES
from frontend.api.http.server import HttpServer
from frontend.api.tls import ssl_context
from frontend.service.service import Service
from tests.frontend.certificates import Authority
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend
from tests.frontend.http_fakes import get, raw, running_http
from tests.waiting import until

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def on(loop_factory: Callable[[], asyncio.AbstractEventLoop], case: Awaitable[None]) -> None:
    """Run a case in a loop of that kind; servers run in uvloop's, tests in asyncio's."""

    async def bounded() -> None:
        async with asyncio.timeout(8):
            await case

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())


def request(body: dict[str, Any], *headers: str, version: str = "1.1") -> bytes:
    data = json.dumps({"model": MODEL, "prompt": "abc", **body}).encode()
    lines = [f"POST /v1/completions HTTP/{version}", "host: x", *headers]
    return "\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data


# ---- what is no HTTP ----


async def test_a_body_of_two_lengths_is_refused_with_all_that_follows() -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
    smuggled = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with running_http() as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(smuggled + GET)
        data = await reader.read()
        writer.close()
        assert data.startswith(b"HTTP/1.1 400 ")
        assert data.count(b"HTTP/1.1") == 1
        assert b"Content-Length or Transfer-Encoding" in data
        assert not http.engine.requests


async def test_a_header_has_a_bound_however_it_arrives() -> None:
    rest = len(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: \r\n\r\n")
    async with running_http() as http:
        fits = "x: " + "a" * (MAX_HEADER_BYTES - rest)
        assert (await get(http.port, "/health", fits))[0] == 200
        for large in (fits + "a", "x: " + "a" * 100_000, "x:" + " " * 40_000 + "a"):
            status, headers, body = await get(http.port, "/health", large)
            assert (status, headers["connection"]) == (431, "close")
            assert b"32768 bytes" in body


async def test_what_is_no_http_is_refused_also_in_the_middle_of_a_body() -> None:
    chunked = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with running_http() as http:
        assert (await raw(http.port, b"what\r\n\r\n"))[0] == 400
        assert (await raw(http.port, chunked + b"no number\r\n"))[0] == 400
        other = b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n"
        assert (await raw(http.port, other))[0] == 501
        await until(lambda: not http.server._server.server_state.tasks)


# ---- targets ----


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/health", "evil.example", 200), ("http://localhost", "localhost", 404),
        ("HTTP://localhost:1/health?x=/", "x", 200), ("https://[::1]/v1/models/", "x", 200),
        ("http://evil.example/health", "localhost", 403), ("http://evil.example?/", "x", 403),
        ("http:///health", "localhost", 400), ("http://%25/health", "localhost", 403),
    ],
)  # fmt: skip
async def test_a_whole_url_is_its_path_and_its_host(target: str, host: str, status: int) -> None:
    """As proxies that forward requests send it; the Host beside it does not count."""
    asked = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    async with running_http(local_host="127.0.0.1") as http:
        assert (await raw(http.port, asked.encode()))[0] == status


# ---- clients that end their side ----


async def half_closed(port: int, data: bytes, go: asyncio.Event | None = None) -> bytes:
    """What comes back when the client's side ends first; ``go`` is set once that is known."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    if go is not None:
        assert await reader.readexactly(len(INTERIM)) == INTERIM
        go.set()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_client_that_ends_its_side_gets_its_answer(loop_factory: Any) -> None:
    async def case() -> None:
        async with running_http() as running:
            running.engine.go.clear()
            whole = await half_closed(
                running.port, request({"max_tokens": 5}), go=running.engine.go
            )
            while whole.startswith(INTERIM):
                whole = whole.removeprefix(INTERIM)
            head, _, body = whole.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert json.loads(body)["choices"][0]["text"] == answer_text("abc", 5)
            streamed = await half_closed(running.port, request({"max_tokens": 5, "stream": True}))
            assert streamed.count(b"data: [DONE]\n\n") == 1
            assert streamed.endswith(b"0\r\n\r\n")
            events = [line[6:] for line in streamed.split(b"\n") if line.startswith(b"data: {")]
            texts = [json.loads(event)["choices"][0]["text"] for event in events]
            assert "".join(texts) == answer_text("abc", 5)
            assert not running.engine.aborted

    on(loop_factory, case())


async def test_pipelined_requests_before_the_end_are_all_answered() -> None:
    async with running_http() as running:
        data = await half_closed(running.port, request({"max_tokens": 1}) + GET + GET)
        assert data.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed_though_its_end_looks_the_same(
    loop_factory: Any, stream: bool
) -> None:
    async def case() -> None:
        async with running_http() as running:
            running.engine.hold_at = 2
            running.engine.go.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(request({"max_tokens": 9, "stream": stream}))
            await until(lambda: running.engine.running)
            if stream:
                await reader.readuntil(b"\n\n")
            writer.close()
            await until(lambda: running.engine.aborted)
            await running.service.idle()

    on(loop_factory, case())


async def test_an_end_before_the_bodys_end_and_one_of_http_1_0_are_a_client_that_left() -> None:
    async with running_http() as running:
        assert await half_closed(running.port, request({})[:-1]) == b""
        running.engine.go.clear()
        assert await half_closed(running.port, request({}, version="1.0")) == b""
        await running.service.idle()


# ---- bodies that nobody reads ----


def upload(port: int, size: int, chunked: bool) -> tuple[int, bytes]:
    """As http.client does it, which reads no response before its body is sent."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body: Any = (b"x" * (1 << 20) for _ in range(size >> 20)) if chunked else b"x" * size
    client.request("POST", "/v1/completions", body, encode_chunked=chunked)
    response = client.getresponse()
    answer = response.status, response.read()
    client.close()
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_client_can_read_why_its_body_is_too_large(loop_factory: Any) -> None:
    async def case() -> None:
        async with running_http() as running:
            for chunked in (False, True):
                status, answer = await asyncio.to_thread(upload, running.port, 12 << 20, chunked)
                assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")
            await until(lambda: not running.server._server.server_state.connections)

    on(loop_factory, case())


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_the_rest_of_a_body_is_dropped_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    async with running_http() as running, asyncio.timeout(30):
        connections = running.server._server.server_state.connections
        for name, value in (("LINGER_SECONDS", 0.05), ("LINGER_BYTES", 1 << 20)):
            with monkeypatch.context() as patch:
                patch.setattr(connection, name, value)
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(head)
                assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
                assert connections
                if name == "LINGER_BYTES":
                    writer.write(b"x" * (2 << 20))
                await until(lambda: not connections)
                writer.close()


# ---- handshakes ----

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def encrypted(authority: Authority) -> AsyncIterator[tuple[HttpServer, int]]:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine()))
    context = ssl_context(authority.server())
    server = HttpServer(application(service, model=MODEL), "127.0.0.1", 0, context)
    try:
        yield server, await server.start()
    finally:
        await server.stop(0.0)


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca))


async def encrypted_get(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    data = await reader.read()
    writer.close()
    return data


@needs_openssl
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_encrypted_requests_are_answered(authority: Authority, loop_factory: Any) -> None:
    async def case() -> None:
        async with encrypted(authority) as (server, port):
            for _ in range(3):
                data = await encrypted_get(port, trusting(authority))
                assert data.startswith(b"HTTP/1.1 200 ")
            await plain(port, GET)
            await until(lambda: not server._server.server_state.connections)

    on(loop_factory, case())


async def plain(port: int, data: bytes) -> None:
    """Return when a connection that does not encrypt is closed; a TLS alert may come first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with suppress(ConnectionError):
        await reader.read()
    writer.close()


@needs_openssl
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_request_that_comes_with_the_handshakes_end_is_kept(
    authority: Authority, loop_factory: Any
) -> None:
    """The client's last message and its request in one write."""

    async def case() -> None:
        async with encrypted(authority) as (_, port):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(1 << 16))
            tls.write(GET)
            writer.write(outgoing.read())
            answer = b""
            while b"200 OK" not in answer:
                incoming.write(await reader.read(1 << 16))
                while incoming.pending:
                    try:
                        answer += tls.read()
                    except ssl.SSLWantReadError:
                        break
            writer.close()

    on(loop_factory, case())


@needs_openssl
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_connections_without_a_handshake_are_counted_and_closed(
    authority: Authority, loop_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def case() -> None:
        async with encrypted(authority) as (server, port):
            await until(lambda: server._server.started)
            (listener,) = server._server.servers
            assert isinstance(listener, encryption.EncryptedListener)
            with monkeypatch.context() as patch:
                patch.setattr(connection, "MAX_CONNECTIONS", 1)
                _, first = await asyncio.open_connection("127.0.0.1", port)
                await until(lambda: listener.handshakes)
                reader, second = await asyncio.open_connection("127.0.0.1", port)
                assert await is_closed(reader)
                first.close()
                second.close()
                await until(lambda: not listener.handshakes)
            with monkeypatch.context() as patch:
                patch.setattr(encryption, "HANDSHAKE_SECONDS", 0.05)
                reader, silent = await asyncio.open_connection("127.0.0.1", port)
                assert await is_closed(reader)
                silent.close()
            assert (await encrypted_get(port, trusting(authority))).startswith(b"HTTP/1.1 200 ")
            _, held = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: listener.handshakes)
            await server.stop(0.0)
            assert not listener.handshakes
            held.close()

    on(loop_factory, case())


@pytest.mark.slow
@needs_openssl
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_an_encrypted_client_can_read_why_its_body_is_too_large(
    authority: Authority, loop_factory: Any
) -> None:
    def upload_encrypted(port: int) -> int:
        client = http.client.HTTPSConnection("127.0.0.1", port, context=trusting(authority))
        client.request("POST", "/v1/completions", b"x" * (12 << 20))
        status = client.getresponse().status
        client.close()
        return status

    async def case() -> None:
        async with encrypted(authority) as (_, port):
            assert await asyncio.to_thread(upload_encrypted, port) == 413

    on(loop_factory, case())
