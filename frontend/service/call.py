"""One call on its way: its samples, what the engine was given of them, and what became of it.

Owns the order in which samples are handed over, the merging of their output, and the call's end.
Knows nothing of queues, of other calls or of how events travel.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time

from frontend.backend import EngineClient
from frontend.bounds import MAX_MESSAGE_BYTES
from frontend.errors import answer_too_large
from frontend.records import Caller, RequestRecord
from frontend.requests.output import Delta, FinishReason
from frontend.requests.pacing import Pacer
from frontend.requests.request import Request
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(slots=True)
class Call:
    """One call, which has as many requests of the engine as it wants samples.

    Attributes:
        whole: its reader wants everything at the end.
        requests: one a sample, once the prompt is encoded.
        is_aborted: what the engine has not been given yet will end at once.
    """

    method: str
    caller: Caller
    whole: bool = False
    arrived: float = 0.0
    request_id: str = ""
    code: str = ""
    reason: str = ""
    requests: list[Request] = dataclasses.field(default_factory=list)
    is_aborted: bool = False
    _min_tokens: int = 1
    _num_submitted: int = 0
    _num_bytes: int = 0
    _open: set[int] = dataclasses.field(default_factory=set)
    _takes: dict[int, asyncio.Task[Delta]] = dataclasses.field(default_factory=dict)

    def begin(self, requests: list[Request], min_tokens: int, pacer: Pacer) -> Request:
        """Take on the requests, whose deltas but the first and last shall have ``min_tokens``.

        Returns:
            The first request.
        """
        self.requests = requests
        self._min_tokens = sys.maxsize if self.whole else max(1, min_tokens)
        self._open = set(range(len(requests)))
        for request in requests:
            request.key = self.caller.key
            if self.whole:
                request.output.min_tokens = sys.maxsize
            else:
                request.output.pacer = pacer
        return requests[0]

    @property
    def is_over(self) -> bool:
        """Every sample's last delta has been taken."""
        return not self._open

    @property
    def is_submitted(self) -> bool:
        """The engine has been given every sample."""
        return self._num_submitted == len(self.requests)

    def submit(self, engine: EngineClient, count: int) -> None:
        """Give the engine what it has not got of the first ``count`` samples.

        Raises:
            RequestError: one is refused.
        """
        for request in self.requests[self._num_submitted : count]:
            if self.is_aborted:
                request.finish_reason = FinishReason.ABORTED
                request.output.finish(FinishReason.ABORTED)
            else:
                engine.submit(request)
            self._num_submitted += 1

    def submit_rest(self, engine: EngineClient) -> None:
        """Give the engine all that is left, which the first's admission speaks for.

        Raises:
            RequestError: the workers are gone.
        """
        for request in self.requests[self._num_submitted :]:
            request.queue_deadline, request.bypasses_queue_limits = float("inf"), True
        self.submit(engine, len(self.requests))

    def told(self, event: pb.GenerateResponse) -> pb.GenerateResponse:
        """An event that the caller is told now.

        Raises:
            RequestError: the answer is to be one message, and has become too large for it.
        """
        if self.whole:
            self._num_bytes += event.ByteSize()
            if self._num_bytes > MAX_MESSAGE_BYTES:
                raise answer_too_large()
        return event

    async def take(self) -> list[tuple[int, Delta]]:
        """Wait for new output of any sample; what there is, by sample.

        Raises:
            RequestError: a sample failed.
        """
        if len(self.requests) == 1:
            taken = [(0, await self._take_one(0))]
        else:
            taken = await self._take_any()
        for index, delta in taken:
            if delta.finish_reason is not None:
                self._open.discard(index)
        return taken

    async def _take_one(self, index: int) -> Delta:
        output = self.requests[index].output
        delta = await output.take()
        output.min_tokens = self._min_tokens
        return delta

    async def _take_any(self) -> list[tuple[int, Delta]]:
        for index in self._open - self._takes.keys():
            self._takes[index] = asyncio.create_task(self._take_one(index))
        await asyncio.wait(self._takes.values(), return_when=asyncio.FIRST_COMPLETED)
        ready = [index for index, task in sorted(self._takes.items()) if task.done()]
        return [(index, self._takes.pop(index).result()) for index in ready]

    def abort(self, engine: EngineClient) -> bool:
        """End all samples with what they have; whether any was still on its way."""
        is_pending = not self.requests or not self.is_submitted
        self.is_aborted = True
        ended = [engine.abort(request.id) for request in self.requests[: self._num_submitted]]
        return is_pending or any(ended)

    def close(self, engine: EngineClient) -> None:
        """Nobody reads on: end what is left."""
        for task in self._takes.values():
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._takes.clear()
        if not self.is_over:
            self.abort(engine)

    def record(self) -> RequestRecord:
        """What is worth knowing once it is over."""
        requests = self.requests
        first = requests[0] if requests else None
        return RequestRecord(
            request_id=self.request_id,
            method=self.method,
            caller=self.caller,
            code=self.code,
            reason=self.reason,
            finish_reasons=tuple(
                each.finish_reason.name for each in requests if each.finish_reason is not None
            ),
            prompt_tokens=len(first.prompt_ids) if first else 0,
            cached_tokens=first.cached_tokens if first else 0,
            completion_tokens=sum(each.num_generated for each in requests),
            arrived=self.arrived,
            admitted=first.admitted if first else 0.0,
            first_token=first.first_token if first else 0.0,
            finished=time.monotonic(),
            preemptions=sum(each.preemptions for each in requests),
            replays=max((each.replays for each in requests), default=0),
        )
