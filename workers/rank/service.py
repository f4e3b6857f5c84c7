"""The worker's gRPC service: Describe, and Execute with its epochs and step order.

Owns the one live stream of this rank, and who may open it. A stream that breaks ends the process: a
half-sent step would leave the other ranks hanging in a collective. Knows nothing of what a step
computes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc

from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
from workers.rank.auth import LinkAuth
from workers.rank.expert_load import LoadReport, Snapshot
from workers.step.runner import Runner, StepHandle

_MAX_MESSAGE_BYTES = 64 << 20
_SNAPSHOT_SECONDS = 5.0
_PEER_MS = 5_000  # a frontend is asked so often whether it is there, and has as long to answer

log = logging.getLogger(__name__)

Snapshots = futures.Future[Snapshot | None]
Steps = queue.SimpleQueue[worker_pb2.StepRequest | Snapshots]
Handles = queue.SimpleQueue[StepHandle]


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Serves one rank.

    Args:
        leave: called with a one-line reason, and whether it is a failure, when the rank must end;
            does not return.
        secret: what callers must know; None: nothing.
        newest_epoch: the newest epoch that this rank has seen in an earlier life.
        saw_epoch: called with the one that it serves.
    """

    def __init__(
        self,
        leave: Callable[[str, bool], None],
        *,
        secret: str | None = None,
        newest_epoch: int = 0,
        saw_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self.description = worker_pb2.DescribeResponse()
        self.leave = leave
        self.steps: Steps = queue.SimpleQueue()
        self.handles: Handles = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.newest_epoch = newest_epoch
        self.saw_epoch = saw_epoch
        self.serving = False
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
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self.server)

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
        """Answer from now on; ``description`` is Describe's answer."""
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
        if not context.add_callback(lambda: self.leave("the frontend is gone", False)):
            self.leave("the frontend is gone", False)  # while it said Hello
        yield worker_pb2.ExecuteResponse(welcome=worker_pb2.Welcome(epoch=epoch))
        reader = threading.Thread(target=self._read, args=(request_iterator,), daemon=True)
        reader.start()
        while True:
            yield worker_pb2.ExecuteResponse(result=self._next_result())

    def GetExpertLoad(  # noqa: N802
        self, request: worker_pb2.GetExpertLoadRequest, context: grpc.ServicerContext
    ) -> worker_pb2.GetExpertLoadResponse:
        wanted: Snapshots = futures.Future()
        self.steps.put(wanted)
        try:
            snapshot = wanted.result(_SNAPSHOT_SECONDS)
        except TimeoutError:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the rank is busy with a step")
        return worker_pb2.GetExpertLoadResponse() if snapshot is None else snapshot.answer()

    def run(self, runner: Runner, load: LoadReport) -> None:
        """Launch steps as they come, on the calling thread, and copy counts between them; ends
        only with the process."""
        while True:
            work = self.steps.get()
            try:
                if isinstance(work, futures.Future):
                    work.set_result(load.snapshot())
                else:
                    self.handles.put(runner.launch(work))
            except Exception as error:
                self._fail(error)

    def _next_result(self) -> worker_pb2.StepResult:
        """The oldest launched step's, where an error of the device shows."""
        try:
            return self.handles.get().result()
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
        hello = first.hello
        if hello.protocol != PROTOCOL:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the frontend speaks protocol {hello.protocol}, this worker {PROTOCOL}",
            )
        with self.lock:
            newest, serving = self.newest_epoch, self.serving
            refused = serving or hello.epoch <= newest
            if not refused:
                self.newest_epoch, self.serving = hello.epoch, True
        if refused:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"epoch {hello.epoch} is refused: the rank has seen epoch {newest}"
                + (" and serves a frontend" if serving else ""),
            )
        # Once in a rank's life: what it tells its launcher must fit the pipe between them.
        self.saw_epoch(hello.epoch)
        return hello.epoch

    def _read(self, requests: Iterator[worker_pb2.ExecuteRequest]) -> None:
        expected: int | None = None
        try:
            for request in requests:
                step = request.step
                if request.WhichOneof("message") != "step" or step.step_id != (
                    step.step_id if expected is None else expected
                ):
                    self.leave(
                        f"protocol error: expected step {expected}, got {request!s:.80}", True
                    )
                expected = step.step_id + 1
                self.steps.put(step)
        except grpc.RpcError:
            pass  # a broken stream ends as a finished one does
        self.leave("the frontend is gone", False)
