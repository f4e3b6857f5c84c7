"""`docker compose up`, really: `pytest -m podman tests/containers`.

Needs images that are built (`docker compose build`). $COMPOSE names another command than
`docker compose`, such as `podman-compose`; $COMPOSE_FILE may add files of one's own, as both
programs read it. The published ports are free ones.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import yaml

from frontend.probe import Verdict
from switchyard.v1 import inference_pb2, inference_pb2_grpc
from tests.containers.stack import ANSWER, QUESTION, ROOT, Stack, free_ports

pytestmark = [pytest.mark.podman, pytest.mark.timeout(600)]

NUM_TOKENS = 300
KILL = r"""
import os, pathlib, sys
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if int(folder.name) in (1, os.getpid()):
        continue
    if sys.argv[1].encode() in (folder / sys.argv[2]).read_bytes().replace(b"\0", b" "):
        os.kill(int(folder.name), 9)
        break
else:
    raise SystemExit(f"no {sys.argv[1]} runs here")
"""
ASK_A_RANK = """
import grpc, sys
from switchyard.worker.link import SECRET_KEY
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
metadata = [(SECRET_KEY, open(path).read().strip()) for path in sys.argv[1:]]
for port in (50061, 50062):
    with grpc.insecure_channel(f"ranks:{port}") as channel:
        rank = worker_pb2_grpc.WorkerServiceStub(channel)
        try:
            answer = rank.Describe(worker_pb2.DescribeRequest(), metadata=metadata, timeout=10)
            print("OK", answer.rank)
        except grpc.RpcError as error:
            print(error.code().name)
"""
# Command lines and environments of every process that this user may look into.
SEARCH_PROCESSES = """
import os, pathlib
secret = pathlib.Path("/run/link/secret").read_bytes().strip()
processes = list(pathlib.Path("/proc").glob("[0-9]*"))
files = [each / name for each in processes for name in ("cmdline", "environ")]
seen = [file.read_bytes() for file in files if os.access(file, os.R_OK)]
print(len(secret), len(seen) > 3, any(secret in each for each in seen))
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.up("test", free_ports()) as stack:
        yield stack


def http(stack: Stack, path: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{stack.http_address}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def test_the_demo_answers_from_outside(stack: Stack) -> None:
    assert stack.answer() == ANSWER
    with grpc.insecure_channel(stack.address) as channel:
        server = inference_pb2_grpc.InferenceServiceStub(channel)
        assert server.GetServerInfo(inference_pb2.GetServerInfoRequest()).world_size == 2


def test_the_demo_answers_over_http(stack: Stack) -> None:
    models = json.loads(http(stack, "/v1/models"))
    question = [{"role": "user", "content": QUESTION}]
    body = {"model": "demo", "messages": question, "temperature": 0}
    answer = json.loads(http(stack, "/v1/chat/completions", body))
    metrics = http(stack, "/metrics").decode()

    assert [each["id"] for each in models["data"]] == ["demo"]
    assert answer["choices"][0]["message"]["content"].strip() == ANSWER
    assert 'vllm:prompt_tokens_total{model_name="demo"}' in metrics


def test_health_checks_pass_inside(stack: Stack) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("workers", "frontend"):
        done = stack.exec(name, *services[name]["healthcheck"]["test"][1:])

        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", ["workers", "frontend"])
def test_containers_have_no_rights_to_spare(stack: Stack, name: str) -> None:
    assert stack.exec(name, "id", "-u").stdout.strip() == "10001"
    status = stack.exec(name, "cat", "/proc/self/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    for folder in ("/", "/opt/switchyard", "/model", "/run/link"):
        assert "Read-only file system" in stack.exec(name, "touch", f"{folder}/x").stderr
    assert stack.exec(name, "touch", "/tmp/x").returncode == 0


def test_the_frontend_has_no_torch(stack: Stack) -> None:
    has_torch = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"

    assert stack.python("frontend", has_torch) == "False"
    assert stack.python("workers", has_torch) == "True"


def test_workers_have_no_way_out(stack: Stack) -> None:
    routes = [
        line.split() for line in stack.exec("workers", "cat", "/proc/net/route").stdout.splitlines()
    ]

    assert len(routes) > 1
    assert "00000000" not in [route[1] for route in routes[1:]]


def test_ranks_refuse_a_stranger_on_their_own_network(stack: Stack) -> None:
    stranger = stack.python("frontend", ASK_A_RANK)
    friend = stack.python("frontend", ASK_A_RANK, "/run/link/secret")

    assert stranger.split("\n") == ["UNAUTHENTICATED"] * 2
    assert friend.split("\n") == ["OK 0", "OK 1"]


@pytest.mark.parametrize("name", ["workers", "frontend"])
def test_the_secret_is_in_its_file_alone(stack: Stack, name: str) -> None:
    assert stack.exec(name, "stat", "-c", "%a %u", "/run/link/secret").stdout.split() == [
        "600",
        "10001",
    ]
    assert stack.python(name, SEARCH_PROCESSES) == "64 True False"


def generate(stack: Stack, seed: int) -> list[int]:
    """Tokens of one long answer that hangs on its seed."""
    tokens: list[int] = []
    with stack.client() as client:
        options = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "seed": seed}
        with client.generate("What is", **options) as stream:
            for delta in stream:
                tokens += delta.token_ids
    return tokens


def test_streams_go_on_when_a_rank_is_killed(stack: Stack) -> None:
    seeds = range(4)
    alone = [generate(stack, seed) for seed in seeds]
    began = {name: stack.started_at(name) for name in ("workers", "frontend")}
    with ThreadPoolExecutor(len(seeds)) as pool:
        streams = [pool.submit(generate, stack, seed) for seed in seeds]
        stack.python("workers", KILL, "rank ", "comm")
        stack.wait(Verdict.UNHEALTHY)
        assert not any(stream.done() for stream in streams)
        took = stack.wait(Verdict.HEALTHY)
        after = [stream.result() for stream in streams]

    assert [len(tokens) for tokens in alone] == [NUM_TOKENS] * len(seeds)
    assert after == alone
    assert {name: stack.started_at(name) for name in began} == began
    assert took < 60
    assert stack.answer() == ANSWER


def test_a_killed_frontend_comes_back(stack: Stack) -> None:
    began = {name: stack.started_at(name) for name in ("workers", "frontend")}
    # The container ends with it, and the command inside with the container.
    stack.exec("frontend", "python", "-c", KILL, "python -m frontend", "cmdline")
    stack.wait(Verdict.HEALTHY)

    assert stack.answer() == ANSWER
    assert stack.started_at("frontend") != began["frontend"]
    assert stack.started_at("workers") == began["workers"]


def test_both_come_back_after_a_restart_of_the_frontend(stack: Stack) -> None:
    began = stack.started_at("workers")
    stack.run("restart", "frontend")
    stack.wait(Verdict.HEALTHY)

    assert stack.answer() == ANSWER
    assert stack.started_at("workers") == began


def test_a_request_in_flight_ends_before_a_frontend_that_is_stopped(stack: Stack) -> None:
    with stack.client() as client, ThreadPoolExecutor(1) as pool:
        with client.generate("What is", max_new_tokens=NUM_TOKENS, ignore_eos=True) as stream:
            deltas = iter(stream)
            num_tokens = len(next(deltas).token_ids)
            stopped = pool.submit(stack.run, "stop", "frontend")
            num_tokens += sum(len(delta.token_ids) for delta in deltas)
        stopped.result()
    assert num_tokens == NUM_TOKENS
    assert stack.verdict() is Verdict.NO_CONNECTION

    stack.run("start", "frontend")
    stack.wait(Verdict.HEALTHY)
    assert stack.answer() == ANSWER
