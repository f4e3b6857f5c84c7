"""Calls: one call's samples and their merged output; the calls that are live; each key's bound.

Owns the order in which samples are submitted, that a key's id is live once, the bound of a key, and
the pace of the calls that stream. Knows nothing of queues or of how events travel.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator

from frontend.backend import EngineClient
from frontend.errors import Code, RequestError, answer_too_large, duplicate_id, invalid_field
from frontend.records import Caller, RequestRecord
from frontend.requests.output import Delta, FinishReason, Pacer
from frontend.requests.request import Request
from switchyard.v1 import inference_pb2 as pb

KEY_LIMIT_RETRY_SECONDS = 1.0
_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")


@dataclasses.dataclass(slots=True)
class Call:
    """One call, with one request of the engine for each sample.

    Attributes:
        streams: output is sent as it comes; False: all of it at the end.
        max_bytes: size of the one message that the whole answer must fit; None: there is no limit.
        samples: the engine's requests, once the prompt is encoded.
        is_aborted: samples that the engine does not have yet end at once.
    """

    method: str
    caller: Caller
    streams: bool = True
    max_bytes: int | None = None
    arrived: float = 0.0
    request_id: str = ""
    code: str = ""
    reason: str = ""
    samples: list[Request] = dataclasses.field(default_factory=list)
    is_aborted: bool = False
    _unfinished: list[Request] = dataclasses.field(default_factory=list)
    _min_tokens: int = 1
    _is_submitted: bool = False
    _num_bytes: int = 0
    _open: set[int] = dataclasses.field(default_factory=set)
    _takes: dict[int, asyncio.Task[Delta]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        """Its key and its id: what it is while it is live."""
        return self.caller.key, self.request_id

    @property
    def engine_id(self) -> str:
        """The engine's id of its first sample: unique, since a key's name holds no colon."""
        return ":".join(filter(None, self.name))

    def begin(self, samples: list[Request], min_tokens: int, pacer: Pacer) -> None:
        """Sets the samples; each delta but the first and the last has ``min_tokens`` at least."""
        self.samples = samples
        self._unfinished = [sample for sample in samples if sample.finish_reason is None]
        self._min_tokens = max(1, min_tokens) if self.streams else sys.maxsize
        self._open = set(range(len(samples)))
        for sample in samples:
            sample.key = self.caller.key
            if self.streams:
                sample.output.pacer = pacer
            else:
                sample.output.min_tokens = sys.maxsize

    @property
    def leader(self) -> Request:
        """The first sample that the engine works on; where it has none to, the first of all."""
        return next(iter(self._unfinished), self.samples[0])

    @property
    def is_over(self) -> bool:
        """Whether every sample's last delta has been taken."""
        return not self._open

    def submit(self, engine: EngineClient, *, first_alone: bool) -> None:
        """Submits all samples, but for those that had ended when an earlier stream was lost.

        Args:
            first_alone: the others wait until the first has computed the prompt they share.

        Raises:
            RequestError: they are refused.
        """
        if self.is_aborted:
            for sample in self._unfinished:
                sample.finish_reason = FinishReason.ABORTED
                sample.output.finish(FinishReason.ABORTED)
            return
        for sample in self._unfinished[1:]:
            sample.queue_deadline = float("inf")  # the call is admitted once its first sample is
        if self._unfinished:
            engine.submit(*self._unfinished, first_alone=first_alone)
        self._is_submitted = True

    def counted(self, event: pb.GenerateResponse) -> pb.GenerateResponse:
        """The event, whose bytes count towards ``max_bytes``.

        Raises:
            RequestError: INVALID_ARGUMENT; the answer has become too large for one message.
        """
        if self.max_bytes is not None:
            self._num_bytes += event.ByteSize()
            if self._num_bytes > self.max_bytes:
                raise answer_too_large()
        return event

    async def take(self) -> list[tuple[int, Delta]]:
        """Waits for new output of any sample; returns pairs of a sample's index and its delta.

        Raises:
            RequestError: a sample failed.
        """
        if len(self.samples) == 1:
            taken = [(0, await self._take_one(0))]
        else:
            taken = await self._take_any()
        for index, delta in taken:
            if delta.finish_reason is not None:
                self._open.discard(index)
        return taken

    async def _take_one(self, index: int) -> Delta:
        output = self.samples[index].output
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
        """Ends all samples with what they have; returns whether any had not ended yet."""
        self.is_aborted = True
        if not self._is_submitted:
            return True
        ended = [engine.abort(sample.id) for sample in self.samples]
        return any(ended)

    def close(self, engine: EngineClient) -> None:
        """Ends the samples that are left, for nobody reads on."""
        for task in self._takes.values():
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._takes.clear()
        if not self.is_over:
            self.abort(engine)

    def record(self) -> RequestRecord:
        """The call's record for observers, once it is over."""
        samples = self.samples
        first = self.leader if samples else None
        return RequestRecord(
            request_id=self.request_id,
            method=self.method,
            caller=self.caller,
            code=self.code,
            reason=self.reason,
            finish_reasons=tuple(
                each.finish_reason.name for each in samples if each.finish_reason is not None
            ),
            prompt_tokens=len(first.prompt_ids) if first else 0,
            cached_tokens=first.cached_tokens if first else 0,
            completion_tokens=sum(each.num_generated for each in samples),
            resumed_tokens=sum(len(each.generated) for each in samples),
            arrived=self.arrived,
            admitted=first.admitted if first else 0.0,
            first_token=first.first_token if first else 0.0,
            finished=time.monotonic(),
            preemptions=sum(each.preemptions for each in samples),
            replays=max((each.replays for each in samples), default=0),
        )


def check_request_id(request_id: str) -> None:
    """Refuses an id that is not 1 to 128 printable ASCII characters; an empty one is unset."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        raise invalid_field("request_id", "must be 1 to 128 printable ASCII characters")


class LiveCalls:
    """The calls that have entered and not left.

    Attributes:
        pacer: says how often their streams may write.
    """

    def __init__(self) -> None:
        self.pacer = Pacer()
        self._calls: dict[tuple[str, str], Call] = {}  # each key has ids of its own
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, call: Call) -> None:
        """Makes a call's id live.

        Raises:
            RequestError: ALREADY_EXISTS; the id is live under the same key.
        """
        if call.name in self._calls:
            raise duplicate_id(call.request_id)
        self._calls[call.name] = call
        self._idle.clear()
        if call.streams:
            self.pacer.enter()

    def leave(self, call: Call) -> None:
        """Frees a call's id, if it is still this call's; a call may leave twice."""
        if self._calls.get(call.name) is call:
            del self._calls[call.name]
            if call.streams:
                self.pacer.leave()
        if not self._calls:
            self._idle.set()

    def get(self, key: str, request_id: str) -> Call | None:
        """The live call of a key's id."""
        return self._calls.get((key, request_id))

    def __len__(self) -> int:
        """How many are live."""
        return len(self._calls)

    def all(self) -> tuple[Call, ...]:
        """The calls that are live now."""
        return tuple(self._calls.values())

    async def idle(self) -> None:
        """Wait until none is live."""
        await self._idle.wait()


class KeyLimit:
    """Bounds the live samples of each key: a request with n of them counts n times.

    Args:
        limit: live samples of one key; 0 is any number. Callers without a key have no bound.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._live: Counter[str] = Counter()

    @contextlib.contextmanager
    def samples(self, key: str, n: int) -> Iterator[None]:
        """Counts the ``n`` samples of one request of ``key`` as live while the block runs; 0 is 1.

        Raises:
            RequestError: RESOURCE_EXHAUSTED, the key is at its limit; INVALID_ARGUMENT, n is above
                the limit.
        """
        if not self.limit or not key:
            yield
            return
        count = max(1, n)
        if count > self.limit:
            raise invalid_field("n", f"is {n}, and a key may have {self.limit} live samples")
        if self._live[key] + count > self.limit:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"key {key} has {self._live[key]} live samples, this request has {count}, and it "
                f"may have {self.limit}; wait for one to end",
                reason="KEY_LIMIT",
                retry_after=KEY_LIMIT_RETRY_SECONDS,
            )
        self._live[key] += count
        try:
            yield
        finally:
            self._live[key] -= count
            if not self._live[key]:
                del self._live[key]
