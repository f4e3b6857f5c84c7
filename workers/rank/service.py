"""The worker's gRPC service: Describe, Execute with its step order, GetExpertLoad.

Owns the streams of this rank and the queue of its steps; `frontends.py` admits who may open one.
Knows nothing of what a step computes.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NoReturn

import grpc

from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
from workers.rank.auth import LinkAuth
from workers.rank.expert_load import LoadReport, Snapshot
from workers.rank.frontends import Frontends
from workers.step.runner import Runner, StepHandle

_MAX_MESSAGE_BYTES = 64 << 20
_SNAPSHOT_SECONDS = 5.0
_PEER_MS = 5_000  # a frontend is asked so often whether it is there, and has as long to answer

log = logging.getLogger(__name__)

Handles = queue.SimpleQueue[StepHandle | None]
"""Launched steps of one stream, oldest first; None behind the last."""


@dataclasses.dataclass(frozen=True, slots=True)
class QueuedStep:
    """A step to launch, and where its handle goes."""

    step: worker_pb2.StepRequest
    handles: Handles


@dataclasses.dataclass(frozen=True, slots=True)
class StreamEnd:
    """Stands behind the last step of a stream."""

    handles: Handles
    said_goodbye: bool


Snapshots = futures.Future[Snapshot | None]
Work = queue.SimpleQueue[QueuedStep | StreamEnd | Snapshots]


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Serves one rank.

    Args:
        leave: called with a one-line reason, and whether it is a failure, when the rank must end;
            does not return.
        frontends: admits one frontend at a time.
        secret: what callers must know; None: nothing.
    """

    def __init__(
        self,
        leave: Callable[[str, bool], None],
        frontends: Frontends,
        *,
        secret: str | None = None,
    ) -> None:
        self.description = worker_pb2.DescribeResponse()
        self.leave = leave
        self.frontends = frontends
        self.work: Work = queue.SimpleQueue()
        self.num_steps = 0
        self.server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="grpc"),
            interceptors=[] if secret is None else [LinkAuth(secret)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # A frontend whose machine is gone says nothing, and no other gets this rank.
                ("grpc.keepalive_time_ms", _PEER_MS),
                ("grpc.keepalive_timeout_ms", _PEER_MS),
                ("grpc.http2.ping_timeout_ms", _PEER_MS),
                ("grpc.http2.max_pings_without_data", 0),
            ],
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self, self.server
        )

    def bind(self, address: str) -> None:
        """Take ``host:port`` or ``unix:/path``, before the long work of loading.

        Raises:
            ValueError: the address can't be had.
        """
        try:
            self.server.add_insecure_port(address)
        except RuntimeError:
            raise ValueError(f"--listen {address}: the address is in use or not ours") from None

    def open(self, description: worker_pb2.DescribeResponse) -> None:
        """Answer from now on; `workers.rank.description` makes Describe's answer."""
        self.description = description
        self.server.start()

    def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> worker_pb2.DescribeResponse:
        return self.description

    def Execute(  # noqa: N802
        self, request_iterator: Iterator[worker_pb2.ExecuteRequest], context: grpc.ServicerContext
    ) -> Iterator[worker_pb2.ExecuteResponse]:
        epoch = self._accept(request_iterator, context)
        handles: Handles = queue.SimpleQueue()
        welcome = worker_pb2.Welcome(epoch=epoch, num_steps=self.num_steps)
        # Whatever becomes of this generator, the reader sees the end of the stream.
        threading.Thread(target=self._read, args=(request_iterator, handles), daemon=True).start()
        yield worker_pb2.ExecuteResponse(welcome=welcome)
        while (handle := handles.get()) is not None:
            yield worker_pb2.ExecuteResponse(result=self._result(handle))

    def GetExpertLoad(  # noqa: N802
        self, request: worker_pb2.GetExpertLoadRequest, context: grpc.ServicerContext
    ) -> worker_pb2.GetExpertLoadResponse:
        wanted: Snapshots = futures.Future()
        self.work.put(wanted)
        try:
            snapshot = wanted.result(_SNAPSHOT_SECONDS)
        except TimeoutError:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the rank is busy with a step")
        return worker_pb2.GetExpertLoadResponse() if snapshot is None else snapshot.answer()

    def run(self, runner: Runner, load: LoadReport) -> NoReturn:
        """Launch steps as they come, on the calling thread, and copy counts between them; ends
        only with the process."""
        last: StepHandle | None = None
        while True:
            work = self.work.get()
            try:
                if isinstance(work, QueuedStep):
                    last = runner.launch(work.step)
                    self.num_steps += 1
                    work.handles.put(last)
                elif isinstance(work, StreamEnd):
                    self._end_stream(work, last)
                    last = None
                else:
                    work.set_result(load.snapshot())
            except Exception as error:
                self._fail(error)

    def _end_stream(self, end: StreamEnd, last: StepHandle | None) -> None:
        """Wait for the stream's last step, then for the next frontend."""
        if last is not None:
            last.result()
        end.handles.put(None)
        self.frontends.steps_ended(said_goodbye=end.said_goodbye)
        if not end.said_goodbye and not self.description.rank:
            log.warning(
                "switchyard workers: the frontend is gone; the ranks wait %g s for the next",
                self.frontends.timeout,
            )

    def _result(self, handle: StepHandle) -> worker_pb2.StepResult:
        """What a launched step gave, where an error of the device shows."""
        try:
            return handle.result()
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        log.exception("a step failed")
        self.leave(f"a step failed: {error}", True)

    def _accept(
        self, requests: Iterator[worker_pb2.ExecuteRequest], context: grpc.ServicerContext
    ) -> int:
        """Take the stream's Hello, or refuse the stream."""
        first = next(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be hello")
        assert first is not None
        hello = first.hello
        if hello.protocol != PROTOCOL:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the frontend speaks protocol {hello.protocol}, this worker {PROTOCOL}",
            )
        refusal = self.frontends.enter(hello.epoch)
        if refusal is not None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal)
        return hello.epoch

    def _read(self, requests: Iterator[worker_pb2.ExecuteRequest], handles: Handles) -> None:
        """Queue a stream's steps and, behind them, its end."""
        said_goodbye = self._queue_steps(requests, handles)
        self.frontends.stream_ended()
        self.work.put(StreamEnd(handles, said_goodbye))

    def _queue_steps(self, requests: Iterator[worker_pb2.ExecuteRequest], handles: Handles) -> bool:
        """Returns whether the stream ended with a Goodbye."""
        expected: int | None = None
        try:
            for request in requests:
                kind, step = request.WhichOneof("message"), request.step
                if kind == "goodbye":
                    if request.goodbye.end_rank:
                        self.leave("the frontend gave the group up", False)
                    return True
                if kind != "step" or (expected is not None and step.step_id != expected):
                    self.leave(
                        f"protocol error: expected step {expected}, got {request!s:.80}", True
                    )
                expected = step.step_id + 1
                self.work.put(QueuedStep(step, handles))
        except grpc.RpcError:
            pass  # the stream broke
        return False
