"""`python -m workers` on the demo model, its processes, and a frontend's half of the link."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from demo import CHECKPOINT
from switchyard.worker.link import PROTOCOL, SECRET_KEY, local_address
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
from tests.processes import ENVIRONMENT, ranks_below

START_SECONDS = 60.0


class Launched:
    """A launcher that runs, and what it writes."""

    def __init__(self, process: subprocess.Popen[bytes], listen: str, log: Path) -> None:
        self.process = process
        self.listen = listen
        self._log = log

    def ranks(self) -> dict[int, int]:
        return ranks_below(self.process.pid)

    def lines(self) -> list[str]:
        """What it has said of itself."""
        words = self._log.read_text().splitlines()
        prefix = "switchyard workers: "
        return [line.removeprefix(prefix) for line in words if line.startswith(prefix)]

    def log(self) -> str:
        return self._log.read_text()

    def address(self, local_rank: int) -> str:
        return local_address(self.listen, local_rank)

    def describe(
        self, local_rank: int = 0, secret: str | None = None
    ) -> worker_pb2.DescribeResponse:
        """Wait for a rank to answer."""
        deadline = time.monotonic() + START_SECONDS
        while (answer := self._ask(local_rank, secret)) is None:
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        return answer

    def _ask(self, local_rank: int, secret: str | None) -> worker_pb2.DescribeResponse | None:
        request = worker_pb2.DescribeRequest()
        try:
            with link(self.address(local_rank)) as stub:
                return stub.Describe(request, timeout=5, metadata=metadata(secret))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise
            return None


@contextlib.contextmanager
def launched(
    folder: Path,
    *flags: str,
    listen: str | None = None,
    model: Path = CHECKPOINT,
    **environment: str,
) -> Iterator[Launched]:
    """Start a launcher of CPU ranks; it is killed in the end."""
    listen = listen or f"unix:{folder}/rank-{{rank}}.sock"
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    command = [sys.executable, "-m", "workers", "--model", str(model), "--listen", listen]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--max-batch-size", "8", *flags],
            stderr=file,
            env=ENVIRONMENT | environment,
        )
    try:
        yield Launched(process, listen, log)
    finally:
        process.kill()
        process.wait()


def metadata(secret: str | None) -> list[tuple[str, str]]:
    return [] if secret is None else [(SECRET_KEY, secret)]


@contextlib.contextmanager
def link(address: str) -> Iterator[worker_pb2_grpc.WorkerServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield worker_pb2_grpc.WorkerServiceStub(channel)


class Stream:
    """One Execute stream from the frontend's side."""

    def __init__(
        self, stub: worker_pb2_grpc.WorkerServiceStub, epoch: int, secret: str | None = None
    ) -> None:
        self._requests: queue.SimpleQueue[worker_pb2.ExecuteRequest | None] = queue.SimpleQueue()
        self.answers = stub.Execute(
            iter(self._requests.get, None), timeout=60, metadata=metadata(secret)
        )
        hello = worker_pb2.Hello(epoch=epoch, protocol=PROTOCOL)
        self._requests.put(worker_pb2.ExecuteRequest(hello=hello))
        assert next(self.answers).welcome.epoch == epoch

    def send(self, step: worker_pb2.StepRequest) -> None:
        self._requests.put(worker_pb2.ExecuteRequest(step=step))

    def receive(self) -> worker_pb2.StepResult:
        return next(self.answers).result

    def goodbye(self, *, end_rank: bool) -> None:
        """End the stream, and wait until the rank has ended it."""
        goodbye = worker_pb2.Goodbye(end_rank=end_rank)
        self._requests.put(worker_pb2.ExecuteRequest(goodbye=goodbye))
        with contextlib.suppress(grpc.RpcError):
            assert list(self.answers) == []

    def leave(self) -> None:
        self.answers.cancel()
