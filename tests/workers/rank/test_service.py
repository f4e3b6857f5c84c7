"""The worker's streams: epochs, protocol, step order, the next frontend, and what ends the rank."""

from __future__ import annotations

import contextlib
import functools
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import grpc
import pytest
import torch

from moe.base.parallel import resolve_parallel
from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
from tests.processes import ENVIRONMENT
from tests.waiting import wait_until
from workers.rank.expert_load import LoadReport, Snapshot
from workers.rank.frontends import Frontends
from workers.rank.service import QueuedStep, WorkerService


class FakeHandle:
    """A launched step that draws its own number."""

    def __init__(self, step: worker_pb2.StepRequest) -> None:
        self.step = step

    def result(self) -> worker_pb2.StepResult:
        return worker_pb2.StepResult(step_id=self.step.step_id, token_ids=[self.step.step_id])


class Link:
    """One Execute stream from the frontend's side."""

    def __init__(self, stub: worker_pb2_grpc.WorkerServiceStub) -> None:
        self.requests: queue.SimpleQueue[worker_pb2.ExecuteRequest | None] = queue.SimpleQueue()
        self.answers = stub.Execute(iter(self.requests.get, None), timeout=10)

    def hello(self, epoch: int, protocol: int = PROTOCOL) -> worker_pb2.ExecuteResponse:
        hello = worker_pb2.Hello(epoch=epoch, protocol=protocol)
        self.requests.put(worker_pb2.ExecuteRequest(hello=hello))
        return next(self.answers)

    def goodbye(self, *, end_rank: bool = False) -> None:
        goodbye = worker_pb2.Goodbye(end_rank=end_rank)
        self.requests.put(worker_pb2.ExecuteRequest(goodbye=goodbye))

    def step(self, step_id: int) -> None:
        step = worker_pb2.StepRequest(step_id=step_id)
        self.requests.put(worker_pb2.ExecuteRequest(step=step))


Left = queue.SimpleQueue[tuple[str, bool]]


NO_LOAD = LoadReport(
    None, (), resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=False), 0
)


def make_service(left: Left, **options: Any) -> WorkerService:
    frontends = Frontends(lambda reason: left.put((reason, False)), **options)
    return WorkerService(lambda reason, failed: left.put((reason, failed)), frontends)


class FakeRunner:
    """Launches every step it is given; with a gate, when that is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.got_step = threading.Event()

    def launch(self, step: worker_pb2.StepRequest) -> FakeHandle:
        self.got_step.set()
        self.gate.wait(30.0)
        return FakeHandle(step)


def running(service: WorkerService) -> FakeRunner:
    """Run the service's steps on a thread."""
    runner = FakeRunner()
    threading.Thread(target=service.run, args=(runner, NO_LOAD), daemon=True).start()
    return runner


@contextlib.contextmanager
def opened(service: WorkerService, folder: Path) -> Iterator[worker_pb2_grpc.WorkerServiceStub]:
    address = f"unix:{folder}/rank.sock"
    service.bind(address)
    service.open(worker_pb2.DescribeResponse(protocol=PROTOCOL, world_size=1))
    try:
        with grpc.insecure_channel(address) as channel:
            yield worker_pb2_grpc.WorkerServiceStub(channel)
    finally:
        service.server.stop(None)
        running(service)  # ends the streams of a test that ran no steps; Python waits for them


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[tuple[WorkerService, worker_pb2_grpc.WorkerServiceStub, Left]]:
    left: Left = queue.SimpleQueue()
    service = make_service(left)
    with opened(service, tmp_path) as stub:
        yield service, stub, left


def test_steps_come_in_and_results_go_out_in_order(rank) -> None:
    service, stub, left = rank
    running(service)
    assert stub.Describe(worker_pb2.DescribeRequest()).world_size == 1
    link = Link(stub)
    assert link.hello(7).welcome.epoch == 7
    for step_id in (5, 6):
        link.step(step_id)
    for step_id in (5, 6):
        assert next(link.answers).result.token_ids == [step_id]
    assert left.empty()


@pytest.mark.parametrize("second", [6, 7, 8])
def test_a_second_frontend_is_refused(rank, second: int) -> None:
    _, stub, left = rank
    first = Link(stub)  # held: a call that nobody holds is cancelled
    assert first.hello(7).welcome.epoch == 7
    with pytest.raises(grpc.RpcError) as refused:
        Link(stub).hello(second)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"epoch {second} is refused: the rank has seen epoch 7" in refused.value.details()
    assert left.empty()


@pytest.mark.parametrize(("epoch", "taken"), [(6, False), (7, False), (8, True)])
def test_an_epoch_must_be_newer_than_any_seen_before(
    tmp_path: Path, epoch: int, taken: bool
) -> None:
    seen: list[int] = []
    service = make_service(queue.SimpleQueue(), newest_epoch=7, saw_epoch=seen.append)
    with opened(service, tmp_path) as stub:
        link = Link(stub)
        if taken:
            assert link.hello(epoch).welcome.epoch == epoch
        else:
            with pytest.raises(grpc.RpcError) as refused:
                link.hello(epoch)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "seen epoch 7" in refused.value.details()
    assert seen == [8] * taken


def test_what_is_refused_is_no_epoch_seen(tmp_path: Path) -> None:
    seen: list[int] = []
    service = make_service(queue.SimpleQueue(), saw_epoch=seen.append)
    with opened(service, tmp_path) as stub:
        first = Link(stub)
        first.hello(7)
        for epoch in (8, 9):
            with pytest.raises(grpc.RpcError) as refused:
                Link(stub).hello(epoch)
            assert "seen epoch 7 and serves a frontend" in refused.value.details()
    assert seen == [7]


def test_counts_are_copied_between_steps_on_the_thread_that_launches(rank) -> None:
    service, stub, left = rank
    threads = []

    class Report:
        def snapshot(self) -> Snapshot:
            threads.append(threading.current_thread().name)
            load_LE = torch.tensor([[1, 2, 3], [4, 5, 6]])
            return Snapshot(layers=[1, 3], load_LE=load_LE, copied=None)

    runs = threading.Thread(target=service.run, args=(None, Report()), name="runs", daemon=True)
    runs.start()
    answer = stub.GetExpertLoad(worker_pb2.GetExpertLoadRequest(), timeout=5)
    assert (list(answer.layers), answer.num_experts) == ([1, 3], 3)
    assert list(answer.tokens) == [1, 2, 3, 4, 5, 6]
    assert threads == ["runs"]
    assert left.empty()


def test_a_rank_in_a_long_step_says_so(rank, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stub, _ = rank
    monkeypatch.setattr("workers.rank.service._SNAPSHOT_SECONDS", 0.05)
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetExpertLoad(worker_pb2.GetExpertLoadRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "busy with a step" in refused.value.details()


def test_another_protocol_is_refused_with_both_numbers(rank) -> None:
    _, stub, _ = rank
    with pytest.raises(grpc.RpcError) as refused:
        Link(stub).hello(1, protocol=PROTOCOL + 1)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"protocol {PROTOCOL + 1}, this worker {PROTOCOL}" in refused.value.details()


def test_the_first_message_must_be_hello(rank) -> None:
    _, stub, _ = rank
    link = Link(stub)
    link.step(1)
    with pytest.raises(grpc.RpcError) as refused:
        next(link.answers)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("wrong", [3, 5])
def test_a_gap_or_a_repeat_ends_the_rank(rank, wrong: int) -> None:
    _, stub, left = rank
    link = Link(stub)
    link.hello(1)
    link.step(3)
    link.step(wrong)
    reason, failed = left.get(timeout=5)
    assert failed
    assert "expected step 4" in reason


def test_the_next_frontend_is_served_when_one_is_gone(rank) -> None:
    """It waits for the steps of the one before, whose results go nowhere."""
    service, stub, left = rank
    runner = running(service)
    first = Link(stub)
    assert first.hello(7).welcome.num_steps == 0
    runner.gate.clear()
    first.step(1)
    first.step(2)
    wait_until(lambda: service.work.empty() is False)
    first.answers.cancel()
    threading.Timer(0.2, runner.gate.set).start()
    _second, welcome = next_link(stub, 9)
    assert (welcome.epoch, welcome.num_steps) == (9, 2)
    with pytest.raises(grpc.RpcError) as stale:
        Link(stub).hello(8)
    assert "epoch 8 is refused: the rank has seen epoch 9" in stale.value.details()
    assert left.empty()


def next_link(
    stub: worker_pb2_grpc.WorkerServiceStub, epoch: int
) -> tuple[Link, worker_pb2.Welcome]:
    """Say Hello until the rank has noticed that the frontend before is gone; run a step."""
    refusal = "serves a frontend"
    while "serves a frontend" in refusal:
        link = Link(stub)
        try:
            welcome = link.hello(epoch).welcome
        except grpc.RpcError as error:
            refusal = error.details()
        else:
            link.step(1)
            assert next(link.answers).result.token_ids == [1]
            return link, welcome
    raise AssertionError(refusal)


def test_steps_that_outlast_their_frontend_end_the_rank(
    rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a collective does that another rank was never told of."""
    monkeypatch.setattr("workers.rank.frontends.IDLE_SECONDS", 0.1)
    service, stub, left = rank
    runner = running(service)
    runner.gate.clear()
    link = Link(stub)
    link.hello(1)
    link.step(1)
    assert runner.got_step.wait(60.0)
    link.answers.cancel()
    assert left.get(timeout=30) == ("the frontend is gone in the middle of a step", False)
    runner.gate.set()


class HeldTimer:
    """A timer that ends when the test says so."""

    made: ClassVar[list[HeldTimer]] = []

    def __init__(self, seconds: float, end: Callable[..., None], args: tuple[str, ...]) -> None:
        self.seconds = seconds
        self.leave = end
        self.end = functools.partial(end, *args)
        self.is_running = False
        self.made.append(self)

    def start(self) -> None:
        self.is_running = True

    def cancel(self) -> None:
        self.is_running = False


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Callable[[WorkerService], list[HeldTimer]]:
    """Those of a service that run; none has ended by itself.

    The threads of another test's service may end now, and have timers of their own.
    """
    monkeypatch.setattr(HeldTimer, "made", [])
    held = SimpleNamespace(Condition=threading.Condition, Timer=HeldTimer)
    monkeypatch.setattr("workers.rank.frontends.threading", held)

    def running_timers(service: WorkerService) -> list[HeldTimer]:
        leave = service.frontends._leave
        return [timer for timer in HeldTimer.made if timer.is_running and timer.leave is leave]

    return running_timers


def test_a_rank_waits_without_end_for_the_next_frontend_when_the_last_said_goodbye(
    rank, timers
) -> None:
    service, stub, left = rank
    running(service)
    link = Link(stub)
    link.hello(1)
    link.goodbye()
    assert list(link.answers) == []
    assert HeldTimer.made, "steps have a while to end"
    wait_until(lambda: not timers(service))
    assert next_link(stub, 2)[1].epoch == 2
    assert left.empty()


def test_a_rank_waits_for_a_while_for_the_next_frontend_when_the_last_is_gone(
    tmp_path: Path, timers
) -> None:
    left: Left = queue.SimpleQueue()
    service = make_service(left, timeout=7.5)
    running(service)
    with opened(service, tmp_path) as stub:
        link = Link(stub)
        link.hello(1)
        link.answers.cancel()
        wait_until(lambda: [timer.seconds for timer in timers(service)] == [7.5])
        assert left.empty()
        [timer] = timers(service)
        timer.end()
        reason = "no frontend came within 7.5 s of the last one's end"
        assert left.get(timeout=5) == (reason, False)


def test_a_frontend_that_comes_in_time_ends_the_wait(rank, timers) -> None:
    service, stub, left = rank
    running(service)
    link = Link(stub)
    link.hello(1)
    link.answers.cancel()
    wait_until(lambda: timers(service))
    _held = next_link(stub, 2)
    assert not timers(service)
    assert left.empty()


def test_a_rank_of_a_group_that_is_given_up_ends_at_once(rank) -> None:
    service, stub, left = rank
    runner = running(service)
    runner.gate.clear()
    link = Link(stub)
    link.hello(1)
    link.step(1)
    link.goodbye(end_rank=True)
    assert left.get(timeout=5) == ("the frontend gave the group up", False)
    runner.gate.set()


SILENT_FRONTEND = """
import sys
import grpc
from tests.workers.launched import Stream
from switchyard.worker.v1 import worker_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stream = Stream(worker_pb2_grpc.WorkerServiceStub(channel), epoch=1)
    print("open", flush=True)
    next(stream.answers)
"""


@pytest.mark.processes
def test_a_frontend_whose_machine_is_gone_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes nothing and answers nothing, like a process that is stopped."""
    monkeypatch.setattr("workers.rank.service._PEER_MS", 500)
    left: Left = queue.SimpleQueue()
    service = make_service(left, timeout=0.0)
    running(service)
    with opened(service, tmp_path):
        command = [sys.executable, "-c", SILENT_FRONTEND, f"unix:{tmp_path}/rank.sock"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as frontend:
            try:
                assert frontend.stdout is not None
                assert frontend.stdout.readline() == b"open\n"
                frontend.send_signal(signal.SIGSTOP)
                reason = "no frontend came within 0 s of the last one's end"
                assert left.get(timeout=10) == (reason, False)
            finally:
                frontend.kill()


def test_a_step_that_fails_ends_the_rank(rank) -> None:
    service, _, left = rank

    class Broken:
        def launch(self, step: worker_pb2.StepRequest) -> FakeHandle:
            if step.step_id == 2:
                raise SystemExit
            raise RuntimeError("no such block")

    for step_id in (1, 2):
        step = worker_pb2.StepRequest(step_id=step_id)
        service.work.put(QueuedStep(step, queue.SimpleQueue()))
    with pytest.raises(SystemExit):
        service.run(Broken(), NO_LOAD)
    assert left.get(timeout=5) == ("a step failed: no such block", True)


def test_an_error_of_the_device_ends_the_rank_as_a_failure(rank) -> None:
    service, stub, left = rank
    link = Link(stub)
    link.hello(1)

    class Faulty:
        def launch(self, step: worker_pb2.StepRequest) -> Faulty:
            return self

        def result(self) -> worker_pb2.StepResult:
            raise RuntimeError("device-side assert")

    threading.Thread(target=service.run, args=(Faulty(), NO_LOAD), daemon=True).start()
    link.step(1)
    assert left.get(timeout=5) == ("a step failed: device-side assert", True)
    with pytest.raises(grpc.RpcError):
        next(link.answers)


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    first = make_service(queue.SimpleQueue())
    port = first.server.add_insecure_port("127.0.0.1:0")
    second = make_service(queue.SimpleQueue())
    with pytest.raises(ValueError, match=f"--listen 127.0.0.1:{port}"):
        second.bind(f"127.0.0.1:{port}")
