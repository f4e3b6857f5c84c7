"""Real processes: `python -m frontend` with a fake worker, the supervisor with tiny children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from frontend import __main__
from frontend.config import FrontendConfig
from frontend.engine.engine import Engine
from frontend.link.supervisor_socket import Supervision
from frontend.probe import Verdict, probe
from frontend.scheduler.scheduler import Scheduler
from switchyard.client import AsyncClient, ServerError
from tests.frontend.builders import LIMITS
from tests.frontend.fake_workers import FakeGroup
from tests.frontend.fakes import FakeWorker, backend, running_server, running_worker
from tests.processes import ENVIRONMENT, ROOT
from tests.waiting import HANG_SECONDS, until, wait_until

pytestmark = pytest.mark.processes


# ---- python -m frontend ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@contextlib.asynccontextmanager
async def frontend(
    model: Path, worker: str, *flags: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "frontend", "--model", str(model), "--workers", worker,
        "--port", "0", "--no-http", *flags, cwd=ROOT, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def address_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), HANG_SECONDS)).decode()
    assert line.startswith("switchyard: serving "), line
    return line.split(" on ", 1)[1].split(" ", 1)[0]


async def test_it_serves_and_drains(model: Path) -> None:
    async with (
        running_worker(FakeWorker(seconds=0.02)) as (_, worker),
        frontend(model, worker, "--served-model-name", "m") as process,
        AsyncClient(await address_of(process)) as client,
    ):
        assert (await client.model_info()).model == "m"
        answer = await client.complete([5, 6], max_new_tokens=4)
        assert len(answer.outputs[0].token_ids) == 4
        async with client.generate([5, 6, 7], max_new_tokens=40) as stream:
            deltas = aiter(stream)
            ids = list((await anext(deltas)).token_ids)
            process.send_signal(signal.SIGTERM)
            ids += [token async for delta in deltas for token in delta.token_ids]
        assert len(ids) == 40
        assert stream.finished.usage.completion_tokens == 40
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0


async def test_a_second_signal_ends_it_now(model: Path) -> None:
    async with (
        running_worker(FakeWorker(seconds=0.5)) as (_, worker),
        frontend(model, worker) as process,
        AsyncClient(await address_of(process)) as client,
    ):
        async with client.generate([5], max_new_tokens=60) as stream:
            deltas = aiter(stream)
            await anext(deltas)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while not (await process.stderr.readline()).startswith(b"switchyard: stopping"):
                assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            reasons = [delta.finish_reason async for delta in deltas]
        assert reasons[-1] == 4  # FINISH_REASON_ABORTED
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0


async def test_lost_workers_end_streams_and_the_process(model: Path) -> None:
    async with (
        running_worker(FakeWorker(seconds=0.05)) as (ranks, worker),
        frontend(model, worker, "--max-restarts", "0", "--no-request-log") as process,
        AsyncClient(await address_of(process), resume_seconds=0.0) as client,
    ):
        async with client.generate([5], max_new_tokens=60) as stream:
            deltas = aiter(stream)
            await anext(deltas)
            await ranks.stop(None)
            with pytest.raises(ServerError) as caught:
                [delta async for delta in deltas]
        assert caught.value.reason == "STREAM_LOST"
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 1
        assert process.stderr is not None
        lines = (await process.stderr.read()).decode().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("switchyard: the workers are lost: rank 0 at ")


async def test_it_stops_when_told_while_no_workers_come_back(model: Path) -> None:
    """What is open waits for them as long as a drain may take, and ends with what it has."""
    async with (
        running_worker(FakeWorker(seconds=0.05)) as (ranks, worker),
        frontend(model, worker, "--drain-timeout", "0.5") as process,
        AsyncClient(await address_of(process)) as client,
    ):
        async with client.generate([5], max_new_tokens=60) as stream:
            deltas = aiter(stream)
            await anext(deltas)
            await ranks.stop(None)
            waiting = asyncio.create_task(client.complete([5], max_queue_time=0.3))
            with pytest.raises(ServerError) as caught:
                await waiting
            process.send_signal(signal.SIGTERM)
            reasons = [delta.finish_reason async for delta in deltas]
        assert reasons[-1] == 4  # FINISH_REASON_ABORTED
        assert caught.value.reason == "QUEUE_DEADLINE"
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0


async def test_a_bug_is_not_told_as_a_loss_of_the_workers(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        async def run(self, *_: object) -> None:
            raise AssertionError("block 7 was freed twice")

    async with running_server() as running, AsyncClient(running.address) as client:
        engine = Engine(Scheduler(LIMITS), FakeGroup(LIMITS))
        running.service.open(backend(engine))
        waiting = asyncio.create_task(client.complete([5], request_id="mine"))
        await until(lambda: engine.load().queued_requests)
        stop = types.SimpleNamespace(drain=asyncio.Event(), now=asyncio.Event())
        config = FrontendConfig(model=ROOT, served_name="m", workers=("127.0.0.1:1",))
        parts = (running.service, running.server, engine, Failing(), stop, Supervision(None))
        assert await __main__._run(config, (1, None), *parts) == 1  # type: ignore[arg-type]
        with pytest.raises(ServerError, match="quote request mine") as caught:
            await waiting
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "block 7 was freed twice" in capsys.readouterr().err
    assert "the workers are lost" not in caplog.text
    assert "Traceback" in caplog.text


async def test_it_listens_while_the_workers_load_and_stops_when_told(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"127.0.0.1:{port}"
    flags = ("--startup-timeout", "60", "--port", str(port))
    async with frontend(model, "127.0.0.1:1", *flags) as process:
        verdict, _ = await asyncio.to_thread(probe, address, "", 20.0)
        assert verdict is Verdict.UNHEALTHY
        async with AsyncClient(address, resume_seconds=0.0) as client:
            with pytest.raises(ServerError) as caught:
                await client.complete([1])
        assert caught.value.reason == "STARTING"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0


async def test_workers_that_never_come_are_one_line(model: Path) -> None:
    async with frontend(model, "127.0.0.1:1", "--startup-timeout", "0.5") as process:
        _, err = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
    assert process.returncode == 1
    assert err.decode().count("\n") == 1
    assert "rank 0 at 127.0.0.1:1" in err.decode()


async def test_a_template_for_a_folder_that_cannot_use_it_is_one_line(model: Path) -> None:
    async with (
        running_worker(FakeWorker()) as (_, worker),
        frontend(model, worker, "--chat-template", "mine.jinja") as process,
    ):
        _, err = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
    assert process.returncode == 2
    assert err.decode() == f"switchyard: --chat-template needs a tokenizer; {model} has none\n"


async def test_a_port_in_use_is_one_line(model: Path) -> None:
    async with running_worker(FakeWorker()) as (_, worker):
        port = worker.rpartition(":")[2]
        async with frontend(model, worker, "--port", port) as process:
            _, err = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
    assert process.returncode == 2
    assert err.decode() == (
        f"switchyard: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "pass another --host or --port\n"
    )


# ---- the supervisor ----

# Says that it is there, and to a supervisor that it is ready; then does as told on SIGTERM.
CHILD = """
import json, os, pathlib, signal, socket, sys, time
name, on_term, *then = sys.argv[1:]
supervisor = None
if "--supervisor" in then:
    place = then.index("--supervisor")
    supervisor = socket.socket(fileno=int(then[place + 1]))
    pathlib.Path(name + ".flags").write_text(" ".join(then[place + 2:]))
    then = then[:place]
    if not pathlib.Path(name + ".unready").exists():
        message = {"ready_at": time.monotonic(), "flags": ["--port", "7"]}
        supervisor.send(json.dumps(message).encode() + b"\\n")
if pathlib.Path(name + ".forks").exists():
    os.unlink(name + ".forks")
    rank = os.fork()
    if not rank:
        time.sleep(60)
    pathlib.Path(name + ".rank").write_text(str(rank))
def told(*_):
    pathlib.Path(name + ".told").touch()
    if on_term != "ignore":
        sys.exit(int(on_term))
signal.signal(signal.SIGTERM, told)
pathlib.Path(name + ".pid.tmp").write_text(str(os.getpid()))
os.rename(name + ".pid.tmp", name + ".pid")
if then:
    pids = [pathlib.Path(name).with_name(each + ".pid") for each in ("front", "group")]
    while not all(pid.exists() for pid in pids):
        time.sleep(0.01)
    time.sleep(float(then[0])); sys.exit(int(then[1]))
if supervisor is not None:
    supervisor.recv(1)
    pathlib.Path(name + ".alone").touch()
while True:
    signal.pause()
"""

SUPERVISE = """
import pathlib, sys
from frontend.cli import supervisor
front, group = sys.argv[1].split("|"), sys.argv[2].split("|")
supervisor.KILL_AFTER_SECONDS = 1.0
supervisor.LAST_WORDS_SECONDS = 1.0
child = [sys.executable, "-c", sys.argv[3]]
def frontend(descriptor):
    return child + front + ["--supervisor", str(descriptor)]
sys.exit(supervisor.supervise(frontend=frontend, workers=child + group))
"""


_supervisors: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_supervisor_outlives_its_test() -> Iterator[None]:
    yield
    for process in _supervisors:
        process.kill()  # its children die with it
        process.wait()
    _supervisors.clear()


class Family:
    """A supervisor and its two children."""

    def __init__(self, folder: Path, front: str, group: str) -> None:
        self._folder = folder
        arguments = [f"{folder / 'front'}|{front}", f"{folder / 'group'}|{group}", CHILD]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, *arguments],
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=(folder / "said").open("w"),
        )
        _supervisors.append(self.process)
        wait_until(lambda: all(self._file(name, "pid").exists() for name in ("front", "group")))

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / f"{name}.{kind}"

    def pid(self, name: str) -> int:
        return int(self._file(name, "pid").read_text())

    def kill(self, name: str) -> None:
        """Kill a child; the file that names its process is its successor's, once there is one."""
        os.kill(self.pid(name), signal.SIGKILL)
        wait_until(lambda: not self.alive(name))

    def said(self) -> list[str]:
        return (self._folder / "said").read_text().splitlines()

    def told(self, name: str) -> bool:
        return self._file(name, "told").exists()

    def alive(self, name: str) -> bool:
        try:
            state = Path(f"/proc/{self.pid(name)}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # the latter where it ends meanwhile
            return False
        return state != "Z"


@pytest.mark.parametrize(
    ("front", "group", "code"),
    [
        ("0|0.2|7", "0", 7),
        ("0", "0|0.2|3", 3),
        ("0|0.2|5", "ignore", 5),
    ],
)
def test_what_ends_first_ends_the_other(tmp_path: Path, front: str, group: str, code: int) -> None:
    family = Family(tmp_path, front, group)
    assert family.process.wait(HANG_SECONDS) == code
    assert not family.alive("front")
    assert not family.alive("group")


@pytest.mark.parametrize("name", ["front", "group"])
def test_a_killed_child_is_started_again_and_the_other_lives_on(tmp_path: Path, name: str) -> None:
    family = Family(tmp_path, "0", "0")
    before = {each: family.pid(each) for each in ("front", "group")}
    family.kill(name)
    wait_until(lambda: family.pid(name) != before[name])
    [other] = {"front", "group"} - {name}
    assert family.pid(other) == before[other]
    assert not family.told(other)
    family.process.terminate()
    assert family.process.wait(HANG_SECONDS) == 0
    assert not family.alive("front")
    assert not family.alive("group")


@pytest.mark.parametrize("name", ["front", "group"])
def test_a_stopped_child_is_continued(tmp_path: Path, name: str) -> None:
    family = Family(tmp_path, "0", "0")
    pid = family.pid(name)
    which = "frontend" if name == "front" else "workers' launcher"
    line = f"switchyard: the {which} was stopped by SIGSTOP; continuing it"
    for count in (1, 2):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda count=count: family.said() == [line] * count)
    family.process.terminate()
    assert family.process.wait(HANG_SECONDS) == 0
    assert family.told("front")
    assert family.pid(name) == pid


def test_a_frontend_that_starts_again_gets_the_flags_that_the_last_one_gave(tmp_path: Path) -> None:
    family = Family(tmp_path, "0", "0")
    assert (tmp_path / "front.flags").read_text() == ""
    family.kill("front")
    wait_until(lambda: (tmp_path / "front.flags").read_text() == "--port 7")


@pytest.mark.parametrize("name", ["front", "group"])
def test_a_child_that_never_gets_ready_is_not_started_for_ever(tmp_path: Path, name: str) -> None:
    (tmp_path / "front.unready").touch()
    family = Family(tmp_path, "0", "0")
    for _ in range(5):
        wait_until(lambda: family.alive(name))
        family.kill(name)
    assert family.process.wait(HANG_SECONDS) == 128 + signal.SIGKILL
    assert not family.alive("front")
    assert not family.alive("group")
    said = family.said()
    which = "frontend" if name == "front" else "workers' launcher"
    assert [line.partition("SIGKILL; ")[2] for line in said] == [
        "starting it again",
        *(f"starting it again in {delay} s" for delay in ("0.2", "0.4", "0.8")),
        "5 starts in a row failed",
    ]
    assert all(line.startswith(f"switchyard: the {which} was killed by ") for line in said)


def test_a_process_of_a_killed_launcher_is_waited_for(tmp_path: Path) -> None:
    """Its ports and its memory are not free before."""
    (tmp_path / "group.forks").touch()
    family = Family(tmp_path, "0", "0")
    launcher, rank = family.pid("group"), int((tmp_path / "group.rank").read_text())
    family.kill("group")
    wait_until(lambda: len(family.said()) == 1)
    time.sleep(0.3)  # it would start at once
    assert family.pid("group") == launcher
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: family.pid("group") != launcher)


def test_a_frontend_whose_workers_ended_hears_of_it(tmp_path: Path) -> None:
    family = Family(tmp_path, "0", "0|0.5|3")
    assert family.process.wait(HANG_SECONDS) == 3
    assert (tmp_path / "front.alone").exists()


def test_a_frontend_that_never_was_ready_has_nobody_to_tell(tmp_path: Path) -> None:
    """It may still be loading: what cannot be served ends the start at once."""
    (tmp_path / "front.unready").touch()
    family = Family(tmp_path, "0", "0|0|3")
    assert family.process.wait(HANG_SECONDS) == 3
    assert family.told("front")
    assert not (tmp_path / "front.alone").exists()


def test_a_frontend_whose_workers_ended_may_end_by_itself(tmp_path: Path) -> None:
    family = Family(tmp_path, "0|0.6|1", "0|0.2|3")
    assert family.process.wait(HANG_SECONDS) == 3
    assert not family.told("front")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_frontend_first(tmp_path: Path, number: signal.Signals) -> None:
    family = Family(tmp_path, "ignore", "0")
    family.process.send_signal(number)
    wait_until(lambda: family.told("front"))
    time.sleep(0.2)  # it would be told at once
    assert not family.told("group")
    assert family.alive("group")
    os.kill(family.pid("front"), signal.SIGKILL)
    assert family.process.wait(HANG_SECONDS) == 128 + signal.SIGKILL
    assert family.told("group")


def test_a_drained_frontend_is_a_good_end(tmp_path: Path) -> None:
    family = Family(tmp_path, "0", "0")
    family.process.terminate()
    assert family.process.wait(HANG_SECONDS) == 0
    assert not family.alive("group")


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    family = Family(tmp_path, "ignore", "0")
    family.process.kill()
    family.process.wait(HANG_SECONDS)
    wait_until(lambda: not family.alive("front") and not family.alive("group"))
    assert not family.alive("front")
    assert not family.alive("group")
