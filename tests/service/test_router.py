"""A public router before two replicas: their answers over each of its APIs, where it sends prompts
that begin alike, and what the loss of a replica costs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
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

import anthropic
import openai
import pytest

from switchyard.client import Client
from switchyard.v1 import inference_pb2 as pb
from tests.clients.anthropic.anthropic_loop import run_messages
from tests.clients.loops import Loop, check_at_once
from tests.clients.openai_loop import run_chat, run_responses
from tests.processes import descendants, send
from tests.server import Server
from tests.waiting import until, wait_until

SMG = shutil.which("smg", path=os.path.dirname(sys.executable)) or shutil.which("smg")
MODEL = "demo"
FLAGS = ("--device", "cpu", "--max-batch-size", "16")
THINKS = ("--reasoning-parser", "qwen3")
BLOCK_SIZE = 16
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]

pytestmark = [pytest.mark.processes, pytest.mark.skipif(SMG is None, reason="smg is not installed")]


@dataclasses.dataclass(frozen=True)
class Router:
    """Where a router answers, and where it shows its metrics."""

    url: str
    metrics_url: str

    def metric(self, name: str) -> float:
        """The sum of a metric's series; labels may follow the name."""
        with urllib.request.urlopen(self.metrics_url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def router(addresses: list[str], folder: Path, policy: str, *flags: str) -> Iterator[Router]:
    """smg before the replicas; of the model it is told how it writes calls, and by ``flags``."""
    port, metrics_port = free_port(), free_port()
    command = [str(SMG), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(metrics_port), "--policy", policy]
    command += ["--worker-startup-check-interval", "1", "--tool-call-parser", "qwen", *flags]
    command += ["--worker-urls", *(f"grpc://{address}" for address in addresses)]
    with (folder / "smg.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_serving(url, len(addresses), folder / "smg.log")
        yield Router(url, f"http://127.0.0.1:{metrics_port}/metrics")
    finally:
        child.kill()
        child.wait()


def wait_until_serving(url: str, num_replicas: int, log: Path) -> None:
    def serves() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/workers", timeout=5) as answer:
                ready = answer.read().count(b'"status":"ready"')
            # Its own copy of the tokenizer comes last.
            asked = {"model": MODEL, "messages": SUM, "max_tokens": 1}
            return ready == num_replicas and bool(post(f"{url}/v1/chat/completions", asked))
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        wait_until(serves)
    except AssertionError:
        raise AssertionError(f"no replicas are taken:\n{log.read_text()[-4000:]}") from None


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a JSON body; for APIs whose client is not here."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


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
        addresses = [one.address, other.address]
        by_turns = stack.enter_context(router(addresses, tmp_path, "round_robin"))
        async with client_of(by_turns) as client:
            await check_answers(client)
            assert prompt_tokens(one) > 0
            assert prompt_tokens(other) > 0
            await check_responses(client)
            await asyncio.to_thread(check_messages, by_turns)
            await asyncio.to_thread(check_tools, by_turns)
            with router(addresses, tmp_path, "cache_aware", *THINKS) as by_prefix:
                await check_placement(by_prefix)
                await asyncio.to_thread(check_thoughts, by_prefix)
            await check_loss(client, one)


def client_of(router: Router) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=60
    )


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


async def check_responses(client: openai.AsyncOpenAI) -> None:
    """OpenAI's Responses, which the router makes of the same streams."""
    create: Any = client.responses.create
    question = {"model": MODEL, "input": SUM[0]["content"], "store": False}
    whole = await create(**question)
    assert (whole.output_text, whole.status) == ("42", "completed")
    assert whole.usage.output_tokens == 3
    events = [event async for event in await create(**question, stream=True)]
    deltas = (each.delta for each in events if each.type == "response.output_text.delta")
    assert "".join(deltas) == "42"
    assert events[-1].type == "response.completed"


def check_messages(router: Router) -> None:
    """Anthropic's Messages, likewise."""
    question = {"model": MODEL, "messages": SUM}
    whole = post(f"{router.url}/v1/messages", question | {"max_tokens": 8})
    assert [part["text"] for part in whole["content"]] == ["42"]
    assert whole["stop_reason"] == "end_turn"
    counted = post(f"{router.url}/v1/messages/count_tokens", question)
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]


def check_tools(router: Router) -> None:
    """Loops of tools over each API, without thoughts."""
    options: Any = {"api_key": "none", "max_retries": 0}
    with (
        openai.OpenAI(base_url=f"{router.url}/v1", **options) as client,
        anthropic.Anthropic(base_url=router.url, **options) as other,
    ):

        def check(loop: Loop) -> None:
            if not loop.thinks:
                run_chat(client, loop, {}).check(loop)
                run_responses(client, loop, {}).check(loop)
                run_messages(other, loop).check(loop)

        check_at_once(check)


def check_thoughts(router: Router) -> None:
    """The router that reads thoughts leaves the lines' ends beside them."""
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:

        def check(loop: Loop) -> None:
            if loop.thinks:
                run = run_chat(client, loop, loop.body)
                run.answer = run.answer.strip()
                run.thoughts = [thought.strip() for thought in run.thoughts]
                run.check_words(loop)

        check_at_once(check)


async def check_placement(router: Router) -> None:
    """A router that follows KV events sends a prompt to the replica that has its beginning."""
    long = [{"role": "user", "content": "Which of these words is a number? " * 8}]
    create: Any
    async with client_of(router) as client:
        create = client.chat.completions.create
        first = await create(model=MODEL, messages=long, max_tokens=4)
        # A prompt's last token is always computed.
        num_blocks = (first.usage.prompt_tokens - 1) // BLOCK_SIZE
        assert num_blocks > 2
        await until(lambda: router.metric("smg_kv_index_blocks") >= num_blocks)
        for _ in range(6):
            again = await create(model=MODEL, messages=long, max_tokens=4)
            assert again.usage.prompt_tokens_details.cached_tokens == num_blocks * BLOCK_SIZE
    assert router.metric('smg_cache_aware_policy_branch_total{branch="event_hit"}') >= 6
    assert router.metric("smg_kv_event_parentless_stores_total") == 0
    assert router.metric("smg_kv_event_gaps_total") == 0


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
