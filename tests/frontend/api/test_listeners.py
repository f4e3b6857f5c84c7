"""Real processes: a frontend with keys, a certificate, metrics and logs, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from switchyard.channel import Tls
from switchyard.client import AsyncClient, ServerError
from tests.frontend.certificates import Authority
from tests.frontend.fakes import FakeWorker, running_worker
from tests.processes import ENVIRONMENT, ROOT
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.processes

KEY, OTHER = "a-key-that-is-long-enough", "another-key-of-this-test"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"tester:{KEY}\n")
    path.chmod(0o600)
    return path


def command(model: Path, worker: str, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "frontend", "--model", str(model), "--workers", worker, *flags
    ]  # fmt: skip


# ---- what does not start ----


def refused(model: Path, *flags: str) -> str:
    """The one line of a start that ends with exit code 2, long before workers are awaited."""
    done = subprocess.run(
        command(model, "127.0.0.1:9", "--port", "0", "--http-port", "0", *flags),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    [line] = done.stderr.splitlines()
    return line


def test_other_machines_are_not_let_in_by_default(model: Path) -> None:
    line = refused(model, "--host", "0.0.0.0")
    assert "--host 0.0.0.0 can be reached from other machines" in line
    assert "--api-key-file" in line


def test_files_that_cannot_be_used_end_the_start(model: Path) -> None:
    assert "cannot be read: No such file" in refused(model, "--api-key-file", "nowhere")
    bad = model / "bad.pem"
    bad.write_text("bad")
    assert "cannot be used" in refused(model, "--tls-cert", str(bad), "--tls-key", str(bad))
    assert "is no URL" in refused(model, "--otlp-endpoint", "collector")
    assert "needs keys" in refused(model, "--max-requests-per-key", "2")


def test_a_taken_http_port_ends_the_start(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(model, "--http-port", str(taken.getsockname()[1]))
    assert "cannot listen on" in line
    assert "pass another --host or --http-port, or --no-http" in line


def test_one_port_for_both_apis_ends_the_start(model: Path) -> None:
    """--port is HTTP's in other servers."""
    line = refused(model, "--port", "8000", "--http-port", "8000")
    assert "--port and --http-port are both 8000; --port is gRPC's" in line


# ---- what does ----


class Frontend:
    """One that serves; ``stderr`` is filled when it has ended."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, http: str) -> None:
        self.process, self.address, self.http = process, address, http
        self.stderr: list[str] = []

    def get(
        self, path: str, key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> tuple[int, str]:
        host, _, port = self.http.rpartition(":")
        if tls is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
        else:
            connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=tls)
        with contextlib.closing(connection):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def frontend(model: Path, *flags: str) -> AsyncIterator[Frontend]:
    """With one fake worker; ends by SIGTERM, and must end well."""
    async with running_worker(FakeWorker(seconds=0.01)) as (_, worker):
        ports = ("--port", "0", "--http-port", "0")
        process = await asyncio.create_subprocess_exec(
            *command(model, worker, "--served-model-name", "m", *ports, *flags),
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = [
                (await asyncio.wait_for(process.stdout.readline(), HANG_SECONDS)).decode()
                for _ in range(2)
            ]
            address = lines[0].split(" on ", 1)[1].split(" ", 1)[0]
            running = Frontend(process, address, lines[1].split(" on ", 1)[1].strip())
            yield running
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0
            running.stderr = (await process.stderr.read()).decode().splitlines()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def num_tokens(client: AsyncClient, **options: Any) -> int:
    async with client.generate([5, 6], max_new_tokens=6, timeout=30, **options) as stream:
        return sum([len(delta.token_ids) async for delta in stream])


async def test_keys_logs_and_metrics_of_one_server(model: Path, key_file: Path) -> None:
    async with frontend(model, "--api-key-file", str(key_file)) as running:
        async with AsyncClient(running.address, api_key=KEY) as client:
            assert await num_tokens(client, request_id="one") == 6
            assert await num_tokens(client) == 6
        async with AsyncClient(running.address) as stranger:
            with pytest.raises(ServerError) as caught:
                await num_tokens(stranger)
            assert caught.value.reason == "NO_API_KEY"
        assert (await asyncio.to_thread(running.get, "/health"))[0] == 200
        assert (await asyncio.to_thread(running.get, "/metrics"))[0] == 401
        assert (await asyncio.to_thread(running.get, "/v1/models"))[0] == 401
        status, page = await asyncio.to_thread(running.get, "/metrics", KEY)
        assert status == 200
        values = {
            (sample.name, sample.labels.get("code"), sample.labels.get("le")): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
        assert values["switchyard:requests_total", "OK", None] == 2
        assert values["switchyard:unauthenticated_total", None, None] == 3
        assert values["vllm:generation_tokens_total", None, None] == 12
        assert values["vllm:time_to_first_token_seconds_count", None, None] == 2
        # Two requests alone: all but the first token of each came a step after the one before.
        assert values["vllm:inter_token_latency_seconds_count", None, None] == 10
        assert values["switchyard:ready", None, None] == 1
        # A key that is added and one that is taken away, without a restart.
        key_file.write_text(f"tester:{OTHER}\n")
        running.signal(signal.SIGHUP)
        async with (
            AsyncClient(running.address, api_key=OTHER) as client,
            asyncio.timeout(HANG_SECONDS),
        ):
            while True:
                with contextlib.suppress(ServerError):
                    assert await num_tokens(client) == 6
                    break
                await asyncio.sleep(0.05)
        async with AsyncClient(running.address, api_key=KEY) as client:
            with pytest.raises(ServerError):
                await num_tokens(client)
    records = [json.loads(line) for line in running.stderr if line.startswith("{")]
    assert [record["code"] for record in records] == ["OK"] * 3
    assert records[0]["request_id"] == "one"
    assert {record["key"] for record in records} == {"tester"}
    assert all(record["completion_tokens"] == 6 for record in records)
    assert KEY not in "".join(running.stderr)
    assert OTHER not in "".join(running.stderr)


@needs_openssl
async def test_one_certificate_at_both_ports(model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    flags = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    async with frontend(model, *flags, "--no-request-log") as running:
        async with AsyncClient(running.address, tls=authority.client()) as client:
            assert await num_tokens(client) == 6
        context = ssl.create_default_context(cafile=str(authority.ca))
        status, _ = await asyncio.to_thread(running.get, "/health", None, context)
        assert status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            await asyncio.to_thread(running.get, "/health")
    assert running.stderr == ["switchyard: stopping: no request is open"]


@needs_openssl
async def test_client_certificates_at_both_ports(model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    flags = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    async with frontend(model, *flags, "--tls-client-ca", str(authority.ca)) as running:
        friend = authority.client("friend")
        async with AsyncClient(running.address, tls=friend) as client:
            assert await num_tokens(client) == 6
        async with AsyncClient(running.address, tls=Tls(ca=authority.ca)) as client:
            with pytest.raises(ServerError):
                async with asyncio.timeout(20):
                    await client.generate([5], timeout=2).__aiter__().__anext__()
        context = ssl.create_default_context(cafile=str(authority.ca))
        with pytest.raises(OSError):
            await asyncio.to_thread(running.get, "/health", None, context)
        assert friend.cert is not None
        assert friend.key is not None
        context.load_cert_chain(friend.cert, friend.key)
        status, _ = await asyncio.to_thread(running.get, "/health", None, context)
        assert status == 200
