"""The service without a transport: validate, admit, stream.

Owns which requests are live and whether new ones are taken. Speaks `switchyard.v1` messages and
`RequestError`; knows nothing of gRPC, sockets or signals, so that any adapter can call it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from frontend import events, intake, validation
from frontend.backend import Backend, Engine
from frontend.errors import Code, RequestError
from frontend.observer import ANYBODY, Caller, Observer, RequestRecord
from frontend.request import FinishReason, Request
from switchyard.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)

# A field path that starts with one of these is told below the message that wraps the request.
_GENERATE_FIELDS = frozenset(pb.GenerateRequest.DESCRIPTOR.fields_by_name)


def internal_error(request_id: str) -> RequestError:
    """INTERNAL for a bug: opaque, with the id under which the log has the rest."""
    return RequestError(
        Code.INTERNAL, f"internal error; quote request {request_id}", reason="INTERNAL"
    )


@dataclasses.dataclass(slots=True)
class Call:
    """One call on its way: who made it how, and what became of it.

    Attributes:
        path: what stands before a field's path in errors.
        whole: its reader wants everything at the end.
        requests: what the engine was given for it.
    """

    method: str
    caller: Caller
    path: str
    whole: bool = False
    arrived: float = 0.0
    request_id: str = ""
    code: str = ""
    reason: str = ""
    requests: list[Request] = dataclasses.field(default_factory=list)

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


class State(enum.Enum):
    """Whether requests are taken; the value is the reason they are not."""

    STARTING = "the model is still loading"
    SERVING = ""
    DRAINING = "the server is shutting down"
    LOST = "the workers are gone"


class Service:
    """All that `switchyard.v1.InferenceService` does.

    Args:
        model: served name.
        version: this release.
        observers: are told of every request that is over.
    """

    def __init__(self, *, model: str, version: str, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._model = model
        self._version = version
        self._started = events.now()
        self._state = State.STARTING
        self._backend: Backend | None = None
        self._live: set[str] = set()
        self._encoding: dict[str, bool] = {}  # live, not submitted yet; whether it was aborted
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- life ----

    def open(self, backend: Backend) -> None:
        """Take requests from now on."""
        self._backend = backend
        self._state = State.SERVING

    def drain(self) -> None:
        """Refuse new requests from now on; those that are live go on."""
        self._state = State.DRAINING

    def lose(self) -> None:
        """The engine is gone: refuse everything. It has ended its own requests."""
        self._state = State.LOST
        self._backend = None

    async def idle(self) -> None:
        """Wait until no request is live."""
        await self._idle.wait()

    def abort_all(self) -> None:
        """End every live request with FINISH_REASON_ABORTED."""
        if self._backend is not None:
            for request_id in tuple(self._live):
                self._end(self._backend.engine, request_id)

    # ---- generation ----

    def generate(
        self, asked: pb.GenerateRequest, caller: Caller = ANYBODY
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream one continuation. Closing the generator aborts the request.

        Raises (when iterated):
            RequestError: refused, or ended by a fault.
        """
        call = Call("Generate", caller, path="")
        return self._observed(
            asked, lambda backend: intake.prompt_ids(backend, asked.prompt, ""), call
        )

    def chat(
        self, asked: pb.ChatRequest, caller: Caller = ANYBODY
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream the assistant's turn; as `generate` in everything else."""
        call = Call("Chat", caller, path="request.")
        return self._observed(asked.request, lambda backend: intake.chat_ids(backend, asked), call)

    async def complete(
        self, asked: pb.CompleteRequest, caller: Caller = ANYBODY
    ) -> pb.CompleteResponse:
        """The stream of `generate`, gathered."""
        stream = self._observed(
            asked.request,
            lambda backend: intake.prompt_ids(backend, asked.request.prompt, "request."),
            Call("Complete", caller, path="request.", whole=True),
        )
        answer, output = pb.CompleteResponse(), pb.Delta()
        async with contextlib.aclosing(stream):
            async for event in stream:
                if event.HasField("started"):
                    answer.started.CopyFrom(event.started)
                elif event.HasField("delta"):
                    text = output.text + event.delta.text
                    output.MergeFrom(event.delta)
                    output.text = text
                else:
                    answer.finished.CopyFrom(event.finished)
        answer.outputs.append(output)
        return answer

    async def _observed(
        self, asked: pb.GenerateRequest, encode: intake.Encode, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one request, which the observers hear of when it is over."""
        call.arrived = time.monotonic()
        call.code = "CANCELLED"  # unless the end comes from here
        try:
            async with contextlib.aclosing(self._stream(asked, encode, call)) as stream:
                async for event in stream:
                    yield event
            call.code = "OK"
        except RequestError as error:
            call.code, call.reason = error.code.name, error.reason
            raise
        finally:
            record = call.record()
            for observer in self._observers:
                observer.request_ended(record)

    async def _stream(
        self, asked: pb.GenerateRequest, encode: intake.Encode, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one request."""
        path, whole = call.path, call.whole
        backend = self._serving()
        self._check(asked, path)
        request_id = call.request_id = asked.request_id or uuid.uuid4().hex
        ended = False
        self._enter(request_id)
        try:
            self._encoding[request_id] = False
            request = await intake.make_request(backend, asked, request_id, encode, path)
            request.key = call.caller.key
            call.requests.append(request)
            if whole:
                request.output.min_tokens = sys.maxsize
            if self._encoding.pop(request_id):
                request.output.finish(FinishReason.ABORTED)
            else:
                self._attached().engine.submit(request)
            await request.output.admitted()
            yield events.started(request, self._model)
            if asked.output.echo:
                ids = request.prompt_ids
                text = await intake.threaded(len(ids), intake.echo_text, backend, asked, ids)
                yield events.echoed(text)
            while not ended:
                delta = await request.output.take()
                if not whole:
                    request.output.min_tokens = max(1, asked.output.min_tokens_per_message)
                ended = delta.finish_reason is not None
                if ended:
                    self._leave(request_id)
                yield events.delta(delta)
            yield events.finished(request)
        except RequestError as error:
            if error.field is not None and error.field.partition(".")[0] in _GENERATE_FIELDS:
                error.field = path + error.field
            raise
        except Exception as error:
            logger.exception("request %s failed", request_id)
            raise internal_error(request_id) from error
        finally:
            if not ended:
                backend.engine.abort(request_id)
                self._leave(request_id)

    def _serving(self) -> Backend:
        """The backend, for new work."""
        if self._state is not State.SERVING:
            raise self._unavailable()
        return self._attached()

    def _attached(self) -> Backend:
        """The backend, for what was let in before a drain and for questions."""
        if self._backend is None:
            raise self._unavailable()
        return self._backend

    def _unavailable(self) -> RequestError:
        return RequestError(
            Code.UNAVAILABLE,
            f"{self._state.value}; try again in a moment",
            reason=self._state.name,
            retry_after=1.0,
        )

    def _check(self, asked: pb.GenerateRequest, path: str) -> None:
        if asked.model and asked.model != self._model:
            raise RequestError(
                Code.NOT_FOUND,
                f"no such model here; this server has {self._model}",
                reason="MODEL_NOT_FOUND",
                field=f"{path}model",
            )
        validation.check_request_id(asked.request_id, path)

    def _enter(self, request_id: str) -> None:
        if request_id in self._live:
            raise RequestError(
                Code.ALREADY_EXISTS,
                f"request {request_id} is live; send another id",
                reason="DUPLICATE_REQUEST_ID",
                field="request_id",
            )
        self._live.add(request_id)
        self._idle.clear()

    def _leave(self, request_id: str) -> None:
        self._live.discard(request_id)
        self._encoding.pop(request_id, None)
        if not self._live:
            self._idle.set()

    # ---- everything else ----

    async def tokenize(self, asked: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Text to token ids."""
        tokenizer = intake.tokenizer_of(self._serving())
        ids = await intake.threaded(
            len(asked.text), tokenizer.encode, asked.text, not asked.skip_special_tokens
        )
        return pb.TokenizeResponse(token_ids=ids)

    async def detokenize(self, asked: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Token ids to text."""
        backend = self._serving()
        tokenizer = intake.tokenizer_of(backend)
        validation.check_token_ids(asked.token_ids, backend.info.vocab_size, "token_ids")
        ids = list(asked.token_ids)
        text = await intake.threaded(len(ids), tokenizer.decode, ids, asked.keep_special_tokens)
        return pb.DetokenizeResponse(text=text)

    def model_info(self) -> pb.GetModelInfoResponse:
        """Facts of the model."""
        backend = self._attached()
        info = backend.info
        said = dataclasses.asdict(backend.defaults)
        return pb.GetModelInfoResponse(
            model=self._model,
            architecture=info.architecture,
            max_context_tokens=info.max_model_len,
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
            weights_sha256=info.weights_sha256,
            default_sampling=pb.SamplingParams(
                **{field: value for field, value in said.items() if value is not None}
            ),
            has_chat_template=backend.tokenizer is not None and backend.tokenizer.has_chat_template,
        )

    def server_info(self) -> pb.GetServerInfoResponse:
        """Facts of the server and its workers."""
        backend = self._attached()
        info = backend.info
        replicas = info.data_parallel_size
        return pb.GetServerInfoResponse(
            version=self._version,
            started=self._started,
            world_size=info.world_size,
            max_running_requests=info.max_batch_size * replicas,
            max_queued_requests=backend.max_queued_requests,
            max_prompt_tokens=info.max_model_len - 1,
            tensor_parallel_size=info.tensor_parallel_size,
            data_parallel_size=replicas,
            expert_parallel_size=info.expert_parallel_size,
            moe_ep_backend=info.moe_ep_backend,
            device=info.device,
            dtype=info.dtype,
            kv_cache_tokens=info.num_blocks * info.block_size * replicas,
            block_size=info.block_size,
            bytes_per_second=info.bytes_per_second,
            flops_per_second=info.flops_per_second,
            graph_batch_sizes=info.graph_batch_sizes,
        )

    def load(self) -> pb.GetLoadResponse:
        """The engine's snapshot."""
        load = self._attached().engine.load()
        steps = load.steps
        return pb.GetLoadResponse(
            running_requests=load.running_requests,
            queued_requests=load.queued_requests,
            kv_cache_usage=load.kv_cache_usage,
            generated_tokens_per_second=steps.generated_tokens_per_second,
            queued_prompt_tokens=load.queued_prompt_tokens,
            preemptions=load.preemptions,
            prefix_query_tokens=load.prefix_query_tokens,
            prefix_hit_tokens=load.prefix_hit_tokens,
            floor_share=steps.floor_share,
            decode_floor_share=steps.decode_floor_share,
            device_busy=steps.device_busy,
            step_seconds=steps.step_seconds,
            idle_seconds_per_step=steps.idle_seconds_per_step,
            steps=pb.StepTotals(**dataclasses.asdict(steps.steps)),
            decode_steps=pb.StepTotals(**dataclasses.asdict(steps.decode_steps)),
        )

    def abort(self, asked: pb.AbortRequest) -> pb.AbortResponse:
        """End requests by id; their streams end with FINISH_REASON_ABORTED."""
        engine = self._attached().engine
        ended = [each for each in asked.request_ids if self._end(engine, each)]
        return pb.AbortResponse(aborted_request_ids=ended)

    def _end(self, engine: Engine, request_id: str) -> bool:
        """End one request; what is still being encoded ends when it would be submitted."""
        if request_id in self._encoding:
            self._encoding[request_id] = True
            return True
        return engine.abort(request_id)
