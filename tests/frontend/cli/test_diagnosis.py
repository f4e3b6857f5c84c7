"""Why a client gets no answer: every kind of port, asked with and without encryption."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from frontend.api.application import application
from frontend.api.grpc.server import GrpcServer
from frontend.api.http.server import HttpServer
from frontend.api.tls import ServerTls, ssl_context
from frontend.cli import main
from frontend.cli.client_flags import grpc_address
from frontend.cli.diagnosis import why_no_answer
from frontend.service.service import Service
from switchyard.channel import Tls
from tests.frontend.certificates import Authority
from tests.processes import ENVIRONMENT, ROOT

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def grpc_port(tls: ServerTls | None = None) -> AsyncIterator[str]:
    server = GrpcServer(Service(model="m", version="0"), "127.0.0.1", 0, tls=tls)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


@contextlib.asynccontextmanager
async def http_port(tls: ServerTls | None = None) -> AsyncIterator[str]:
    app = application(Service(model="m", version="0"), model="m")
    server = HttpServer(app, "127.0.0.1", 0, None if tls is None else ssl_context(tls))
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


async def told(address: str, tls: Tls | None = None) -> str:
    line = await asyncio.to_thread(why_no_answer, address, tls)
    assert address in line
    assert "\n" not in line
    return line.replace(address, "ADDRESS")


async def test_a_server_that_does_not_encrypt() -> None:
    async with grpc_port() as address:
        said = await told(address, Tls())
        assert said == "the server at ADDRESS does not encrypt; leave --tls and its files out"
        assert "broke off" in await told(address)  # it is there after all


@needs_openssl
async def test_a_server_that_encrypts(authority: Authority, tmp_path: Path) -> None:
    async with grpc_port(authority.server()) as address:
        assert "ADDRESS encrypts; pass --tls" in await told(address)
        stranger = Authority(tmp_path, "stranger").client()
        assert "ADDRESS is refused: unable to get local issuer" in await told(address, stranger)
        wrong = Tls(ca=authority.ca, server_name="elsewhere.example")
        assert "'elsewhere.example'; pass" in await told(address, wrong)
        assert "broke off" in await told(address, authority.client())


@needs_openssl
async def test_a_server_that_asks_for_certificates(authority: Authority, tmp_path: Path) -> None:
    async with grpc_port(authority.server(client_ca=authority.ca)) as address:
        assert "ADDRESS encrypts; pass --tls" in await told(address)
        assert "asks for a client's certificate; pass" in await told(address, authority.client())
        cert, key = Authority(tmp_path, "stranger").issue("intruder")
        intruder = Tls(ca=authority.ca, cert=cert, key=key)
        assert f"ADDRESS refuses {cert}; pass" in await told(address, intruder)
        assert "broke off" in await told(address, authority.client("friend"))


@needs_openssl
async def test_ports_of_http(authority: Authority) -> None:
    async with http_port() as plain, http_port(authority.server()) as encrypted:
        for address in (plain, encrypted):
            for tls in (None, authority.client()):
                assert "ADDRESS is HTTP's port; pass --address" in await told(address, tls)


async def test_nobody_and_somebody_else(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        closing = asyncio.create_task(asyncio.to_thread(hang_up))
        assert "is no gRPC server; pass another --address" in await told(address)
        await closing
    assert "no server at ADDRESS; start one with `switchyard serve`" in await told(address)
    assert "no server at ADDRESS" in await told(f"unix:{tmp_path}/nowhere")


@pytest.mark.slow
@pytest.mark.usefixtures("no_retries")
async def test_every_command_names_the_mistake_in_one_line(capsys) -> None:
    async with grpc_port() as grpc_address, http_port() as http_address:
        for words, line in (
            (("generate", "x", "--tls", "--address", grpc_address), "does not encrypt"),
            (("chat", "--tls", "--address", grpc_address), "does not encrypt"),
            (("top", "--tls", "--address", grpc_address), "does not encrypt"),
            (("top", "--once", "--address", http_address), "is HTTP's port"),
            (("generate", "x", "--address", http_address), "is HTTP's port"),
        ):
            assert await asyncio.to_thread(main.main, words) == 1
            out, err = capsys.readouterr()
            assert line in err
            assert (out, err.count("\n")) == ("", 1)
        health = ("health", "--tls", "--address", grpc_address)
        assert await asyncio.to_thread(main.main, health) == 2
        out, err = capsys.readouterr()
        assert "does not encrypt" in out
        assert not err


@pytest.mark.processes
async def test_grpcs_core_adds_no_line_of_its_own() -> None:
    """Its lines are written by C++, unless it is told before it is imported."""
    environment = {name: ENVIRONMENT[name] for name in ENVIRONMENT if name != "GRPC_VERBOSITY"}
    async with grpc_port() as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "frontend.cli", "generate", "x", "--tls", "--address", address,
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)
    assert b"does not encrypt" in err


@pytest.mark.parametrize("command", ["generate", "health", "top"])
@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("http://127.0.0.1:50051", "http://127.0.0.1:50051 is a URL; pass HOST:PORT of gRPC"),
        ("https://host", "such as 127.0.0.1:50051, and --tls"),
        ("localhost", "localhost has no port; pass HOST:PORT"),
        ("localhost:grpc", "has no port"),
    ],
)
def test_an_address_of_another_kind_is_refused_at_once(
    command: str, address: str, hint: str, capsys
) -> None:
    words = [command, "--address", address, *(["x"] if command == "generate" else [])]
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    assert caught.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("address", ["[::1]:7", "unix:/a/b", "dns:///name:50051", "host:1"])
def test_addresses_that_grpc_takes_pass(address: str) -> None:
    assert grpc_address(address) == address
