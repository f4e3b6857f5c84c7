"""A public router before two replicas: their answers, and what the loss of one costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from switchyard.client import Client
from switchyard.v1 import inference_pb2 as pb
from tests.processes import descendants, send
from tests.server import Server
from tests.waiting import until, wait_until

SMG = shutil.which("smg", path=os.path.dirname(sys.executable)) or shutil.which("smg")
MODEL = "demo"
FLAGS = ("--device", "cpu", "--max-batch-size", "16")
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]

pytestmark = [pytest.mark.processes, pytest.mark.skipif(SMG is None, reason="smg is not installed")]


@contextlib.contextmanager
def router(addresses: list[str], folder: Path) -> Iterator[str]:
    """smg before the replicas, which is all it is told; its base URL."""
    port, metrics_port = free_port(), free_port()
    command = [str(SMG), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(metrics_port), "--policy", "round_robin"]
    command += ["--worker-startup-check-interval", "1"]
    command += ["--worker-urls", *(f"grpc://{address}" for address in addresses)]
    with (folder / "smg.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_serving(url, len(addresses), folder / "smg.log")
        yield f"{url}/v1"
    finally:
        child.kill()
        child.wait()


def wait_until_serving(url: str, num_replicas: int, log: Path) -> None:
    def serves() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/workers", timeout=5) as answer:
                ready = answer.read().count(b'"status":"ready"')
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                return ready == num_replicas and MODEL.encode() in answer.read()
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        wait_until(serves)
    except AssertionError:
        raise AssertionError(f"no replicas are taken:\n{log.read_text()[-4000:]}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(server: Server) -> None:
    """SIGKILL to the replica, workers and all."""
    for pid in [server.pid, *descendants(server.pid)]:
        send(pid, signal.SIGKILL)


def prompt_tokens(server: Server) -> int:
    with Client(server.address) as client:
        return int(client.stub.GetLoad(pb.GetLoadRequest()).prefix_query_tokens)


@pytest.mark.timeout(180)
async def test_a_router_serves_two_replicas_and_survives_one(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        replicas = [Server(tmp_path, *FLAGS) for _ in "12"]
        starting = [asyncio.to_thread(stack.enter_context, each) for each in replicas]
        one, other = await asyncio.gather(*starting)
        url = stack.enter_context(router([one.address, other.address], tmp_path))
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        async with client:
            await check_answers(client)
            assert prompt_tokens(one) > 0
            assert prompt_tokens(other) > 0
            await check_loss(client, one)


async def check_answers(client: openai.AsyncOpenAI) -> None:
    """Chat and completion, whole and streamed, on either replica."""
    create: Any = client.chat.completions.create
    for _ in range(2):
        answer = await create(model=MODEL, messages=SUM, n=2, logprobs=True, top_logprobs=1)
        assert [choice.message.content for choice in answer.choices] == ["42", "42"]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == 6
        first = answer.choices[0].logprobs.content[0]
        assert first.token == "4"
        assert -0.5 < first.logprob <= 0.0
        assert first.top_logprobs[0].logprob == first.logprob
        chunks = [chunk async for chunk in await create(model=MODEL, messages=SUM, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "42"
        assert chunks[-1].choices[0].finish_reason == "stop"
        stopped = await create(model=MODEL, messages=SUM, stop=["2"])
        assert stopped.choices[0].message.content == "4"
    complete: Any = client.completions.create
    options = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 24}
    options["extra_body"] = {"ignore_eos": True}
    whole = await complete(**options)
    assert whole.usage.completion_tokens == 24
    chunks = [chunk async for chunk in await complete(**options, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


async def check_loss(client: openai.AsyncOpenAI, victim: Server) -> None:
    """Streams of the lost replica end as errors, those of the other end well; whoever comes later
    notices nothing."""
    begun: list[str] = []
    flying = [asyncio.create_task(story(client, begun=begun)) for _ in range(6)]
    await until(lambda: len(begun) == len(flying))
    kill(victim)
    later = []
    for _ in range(8):
        later.append(asyncio.create_task(story(client, num_tokens=16)))
        await asyncio.sleep(0.1)
    ends = await asyncio.gather(*flying)
    assert sorted(ends) == ["error"] * 3 + ["length"] * 3
    assert await asyncio.gather(*later) == ["length"] * 8


async def story(
    client: openai.AsyncOpenAI, num_tokens: int = 300, begun: list[str] | None = None
) -> str:
    """How a stream ended: its finish reason, or error. Its name is appended once it has begun."""
    create: Any = client.chat.completions.create
    reason = "nothing"
    try:
        stream = await create(
            model=MODEL,
            messages=STORY,
            max_tokens=num_tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if begun is not None and chunk.id not in begun:
                begun.append(chunk.id)
            reason = chunk.choices[0].finish_reason or reason
    except openai.APIError:
        return "error"
    return reason
