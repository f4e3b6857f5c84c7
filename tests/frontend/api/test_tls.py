"""TLS and mTLS at the gRPC port and for Python's ssl: who gets in, and what a renewed file does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from frontend import probe
from frontend.api.grpc.server import GrpcServer
from frontend.api.tls import ServerTls, ssl_context
from frontend.service.service import Service
from switchyard.channel import Tls
from switchyard.client import AsyncClient, Client, ServerError
from tests.frontend.certificates import Authority
from tests.frontend.fakes import FakeEngine, answer_text, backend

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    pytest.mark.usefixtures("no_retries"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[str]:
    service = Service(model="fake", version="0")
    service.open(backend(FakeEngine()))
    server = GrpcServer(service, "127.0.0.1", 0, tls=tls)
    port = await server.start()
    await server.health.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


async def generated(address: str, tls: Tls | None) -> str:
    async with AsyncClient(address, tls=tls) as client, asyncio.timeout(20):
        stream = client.generate("abc", max_new_tokens=4)
        return "".join([delta.text async for delta in stream])


async def refused(address: str, tls: Tls | None) -> None:
    with pytest.raises(ServerError) as caught:
        await generated(address, tls)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_tls_lets_in_who_trusts_the_server_and_nobody_else(
    authority: Authority, tmp_path: Path
) -> None:
    async with serving(authority.server()) as address:
        assert await generated(address, authority.client()) == answer_text("abc", 4)
        await refused(address, None)
        await refused(address, Authority(tmp_path, "stranger").client())


async def test_mtls_lets_in_certificates_of_its_authority_only(
    authority: Authority, tmp_path: Path
) -> None:
    async with serving(authority.server(client_ca=authority.ca)) as address:
        assert await generated(address, authority.client("friend")) == answer_text("abc", 4)
        await refused(address, authority.client())
        cert, key = Authority(tmp_path, "stranger").issue("intruder")
        await refused(address, Tls(ca=authority.ca, cert=cert, key=key))


@pytest.mark.slow
async def test_the_synchronous_client_and_the_probe_speak_tls(authority: Authority) -> None:
    files = authority.server()
    async with serving(files) as address:

        def ask() -> str:
            with Client(address, tls=authority.client()) as client:
                return client.complete("abc", max_new_tokens=3).outputs[0].text

        assert await asyncio.to_thread(ask) == answer_text("abc", 3)
        for trusted in (authority.ca, files.cert):  # containers have the server's own at hand
            said = await asyncio.to_thread(probe.main, [address, "--tls-ca", str(trusted)])
            assert said == probe.Verdict.HEALTHY
        said = await asyncio.to_thread(probe.main, [address, "--timeout", "0.5"])
        assert said == probe.Verdict.NO_CONNECTION


async def test_a_name_can_be_given_where_the_address_is_not_in_the_certificate(
    authority: Authority,
) -> None:
    async with serving(authority.server()) as address:
        port = address.rpartition(":")[2]
        wrong = Tls(ca=authority.ca, server_name="elsewhere.example")
        await refused(f"127.0.0.1:{port}", wrong)
        right = Tls(ca=authority.ca, server_name="localhost")
        assert await generated(f"127.0.0.1:{port}", right) == answer_text("abc", 4)


def serial_at(port: int, authority: Authority) -> str:
    context = ssl.create_default_context(cafile=str(authority.ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return str(secure.getpeercert()["serialNumber"])


def renew(authority: Authority, tls: ServerTls) -> None:
    """Put another certificate in place of the server's, as certificate managers do."""
    for new, old in zip(authority.issue("renewed"), (tls.cert, tls.key), strict=True):
        os.replace(new, old)


async def test_grpc_serves_a_renewed_certificate(authority: Authority) -> None:
    tls = authority.server("renewable")
    async with serving(tls) as address:
        port = int(address.rpartition(":")[2])
        before = await asyncio.to_thread(serial_at, port, authority)
        assert await asyncio.to_thread(serial_at, port, authority) == before
        renew(authority, tls)
        after = await asyncio.to_thread(serial_at, port, authority)
        assert after != before
        assert await generated(address, authority.client()) == answer_text("abc", 4)


async def test_a_renewed_certificate_that_is_broken_is_left(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = authority.server("breakable")
    async with serving(tls) as address:
        port = int(address.rpartition(":")[2])
        before = await asyncio.to_thread(serial_at, port, authority)
        tls.cert.write_text("no certificate")
        with caplog.at_level(logging.ERROR):
            assert await asyncio.to_thread(serial_at, port, authority) == before
        assert "the certificate stays as it was" in caplog.text


async def test_pythons_ssl_serves_a_renewed_certificate(authority: Authority) -> None:
    tls = authority.server("http")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=ssl_context(tls))
    async with server:
        port = server.sockets[0].getsockname()[1]
        before = await asyncio.to_thread(serial_at, port, authority)
        renew(authority, tls)
        assert await asyncio.to_thread(serial_at, port, authority) != before


def test_old_protocols_and_clients_without_certificates_are_refused(authority: Authority) -> None:
    context = ssl_context(authority.server("strict", client_ca=authority.ca))
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("cert", ("--tls-cert", "breakage.pem", "cannot be used")),
        ("key", ("--tls-key", "breakage-key.pem", "cannot be used")),
        ("client_ca", ("--tls-client-ca", "authorities.pem", "cannot be used")),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    authority: Authority, tmp_path: Path, broken: str, words: tuple[str, ...]
) -> None:
    client_ca = tmp_path / "authorities.pem"
    shutil.copy(authority.ca, client_ca)
    tls = authority.server("breakage", client_ca=client_ca)
    getattr(tls, broken).write_text("-----BEGIN NONSENSE-----\n")
    with pytest.raises(ValueError) as caught:
        tls.context()
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    getattr(tls, broken).unlink()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        tls.context()


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    one, other = authority.server("one"), authority.server("other")
    with pytest.raises(ValueError, match="KEY_VALUES_MISMATCH"):
        ServerTls(cert=one.cert, key=other.key).context()
