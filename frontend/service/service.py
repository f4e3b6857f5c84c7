"""The service without a transport: validate, admit, stream.

Owns whether new requests are taken, and the way of each. Speaks `switchyard.v1` messages and
`RequestError`; knows nothing of gRPC, sockets or signals, so that any adapter can call it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from frontend.backend import Backend
from frontend.bounds import MAX_ABORTED_IDS
from frontend.engine.load import EngineLoad
from frontend.errors import Code, RequestError, internal_error
from frontend.group_info import GroupInfo
from frontend.processing import preprocess, sampling_params, validation
from frontend.processing.structured_output import Compiler
from frontend.records import ANYBODY, Caller, Observer
from frontend.requests.request import Request
from frontend.service import info, responses, tokenization
from frontend.service.call import Call
from frontend.service.key_limit import KeyLimit
from frontend.service.live_calls import LiveCalls
from switchyard.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)


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
        key_limit: bounds the live requests of a key; None: nothing does.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        observers: Sequence[Observer] = (),
        key_limit: KeyLimit | None = None,
    ) -> None:
        self._observers = observers
        self._key_limit = key_limit or KeyLimit()
        self._model = model
        self._version = version
        self._started = responses.now()
        self._state = State.STARTING
        self._backend: Backend | None = None
        self._compiler: Compiler | None = None
        self._live = LiveCalls()

    # ---- life ----

    def open(self, backend: Backend) -> None:
        """Take requests from now on."""
        self._backend = backend
        self._compiler = Compiler(
            backend.tokenizer.to_json if backend.tokenizer is not None else lambda: None,
            vocab_size=backend.info.vocab_size,
            eos_token_ids=backend.info.eos_token_ids,
        )
        self._state = State.SERVING

    def renew(self, info: GroupInfo) -> None:
        """Go on with other workers."""
        if self._backend is not None:
            self._backend = dataclasses.replace(self._backend, info=info)

    @property
    def max_requests_per_key(self) -> int:
        """Live requests that a key may have; 0 is any number."""
        return self._key_limit.most

    @property
    def takes_requests(self) -> bool:
        """Whether new requests are let in."""
        return self._state is State.SERVING

    def drain(self) -> None:
        """Refuse new requests from now on; those that are live go on."""
        self._state = State.DRAINING

    def lose(self) -> None:
        """The engine is gone: refuse everything. It has ended its own requests."""
        self._state = State.LOST
        self._backend = None

    async def idle(self) -> None:
        """Wait until no request is live."""
        await self._live.idle()

    def abort_all(self) -> None:
        """End every live request with FINISH_REASON_ABORTED."""
        if self._backend is not None:
            for call in self._live.all():
                call.abort(self._backend.engine)

    # ---- generation ----

    def generate(
        self, asked: pb.GenerateRequest, caller: Caller = ANYBODY
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream the continuations of a prompt. Closing the generator aborts the request.

        Raises (when iterated):
            RequestError: refused, or ended by a fault.
        """
        call = Call("Generate", caller)
        return self._observed(
            asked, lambda backend: preprocess.prompt_ids(backend, asked.prompt), call
        )

    def chat(
        self, asked: pb.ChatRequest, caller: Caller = ANYBODY
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream the assistant's turn; as `generate` in everything else."""
        call = Call("Chat", caller)
        return self._observed(
            asked.request, lambda backend: preprocess.chat_ids(backend, asked), call
        )

    async def complete(
        self, asked: pb.CompleteRequest, caller: Caller = ANYBODY
    ) -> pb.CompleteResponse:
        """The stream of `generate`, gathered."""
        stream = self._observed(
            asked.request,
            lambda backend: preprocess.prompt_ids(backend, asked.request.prompt),
            Call("Complete", caller, whole=True),
        )
        return await responses.gathered(stream)

    async def _observed(
        self, asked: pb.GenerateRequest, encode: preprocess.Encode, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one request, which the observers hear of when it is over."""
        call.arrived = time.monotonic()
        call.code = "CANCELLED"  # unless the end comes from here
        try:
            with self._key_limit.one(call.caller.key):
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
        self, asked: pb.GenerateRequest, encode: preprocess.Encode, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one request."""
        backend = self._serving()
        self._check(asked)
        call.request_id = asked.request_id or uuid.uuid4().hex
        self._live.enter(call)
        try:
            first = await self._begin(backend, asked, encode, call)
            await first.output.admitted()
            if asked.output.prompt_logprobs:
                await first.output.begun()
            yield call.told(responses.started(first, self._model, asked.output))
            if asked.output.echo:
                ids = first.prompt_ids
                text = await preprocess.threaded(
                    len(ids), preprocess.echo_text, backend, asked, ids
                )
                for index in range(len(call.requests)):
                    for event in responses.echoed(index, text):
                        yield call.told(event)
            if not call.is_submitted:
                await first.output.begun()
                call.submit_rest(self._attached().engine)
            while not call.is_over:
                taken = await call.take()
                if call.is_over:
                    self._live.leave(call)
                for index, delta in taken:
                    for event in responses.deltas(index, delta, asked.output):
                        yield call.told(event)
            yield responses.finished(call.requests)
        except RequestError:
            raise
        except Exception as error:
            logger.exception("request %s failed", call.request_id)
            raise internal_error(call.request_id) from error
        finally:
            call.close(backend.engine)
            self._live.leave(call)

    async def _begin(
        self, backend: Backend, asked: pb.GenerateRequest, encode: preprocess.Encode, call: Call
    ) -> Request:
        """Make the call's requests and submit the first; all, where they share no work by waiting.

        The others find the prompt in the prefix cache once the first has computed it.
        """
        assert self._compiler is not None, "opened with the backend"
        requests = await preprocess.make_requests(
            backend, self._compiler, asked, call.request_id, encode
        )
        if call.whole:
            sampling_params.check_whole_answer(asked)
        first = call.begin(requests, asked.output.min_tokens_per_message, self._live.pacer)
        shares = backend.prefix_cache and len(first.prompt_ids) > backend.info.block_size
        call.submit(self._attached().engine, 1 if shares else len(requests))
        return first

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

    def _check(self, asked: pb.GenerateRequest) -> None:
        if asked.model and asked.model != self._model:
            raise RequestError(
                Code.NOT_FOUND,
                f"no such model here; this server has {self._model}",
                reason="MODEL_NOT_FOUND",
                field="model",
            )
        validation.check_request_id(asked.request_id)

    # ---- everything else ----

    async def tokenize(self, asked: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Text to token ids."""
        return await tokenization.tokenize(self._serving(), asked)

    async def detokenize(self, asked: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Token ids to text; those of streams that were let in before a drain too."""
        return await tokenization.detokenize(self._attached(), asked)

    def model_info(self) -> pb.GetModelInfoResponse:
        """Facts of the model."""
        return info.model_info(self._attached(), self._model)

    def server_info(self) -> pb.GetServerInfoResponse:
        """Facts of the server and its workers."""
        return info.server_info(self._attached(), self._version, self._started)

    def load(self) -> pb.GetLoadResponse:
        """The engine's snapshot, as a message."""
        return info.load(self.engine_load())

    def engine_load(self) -> EngineLoad:
        """The engine's snapshot; RequestError while there is no engine."""
        return self._attached().engine.load()

    async def expert_load(self) -> pb.GetExpertLoadResponse:
        """How many tokens each expert had; no layers for a dense model."""
        experts = self._attached().experts
        return pb.GetExpertLoadResponse() if experts is None else await experts.get()

    def abort(self, asked: pb.AbortRequest, caller: Caller = ANYBODY) -> pb.AbortResponse:
        """End requests of this key by id; their streams end with FINISH_REASON_ABORTED."""
        engine = self._attached().engine
        validation.check_count(len(asked.request_ids), MAX_ABORTED_IDS, "request_ids", "ids")
        live = ((each, self._live.get(each)) for each in asked.request_ids)
        ended = [
            each
            for each, call in live
            if call is not None and call.caller.key == caller.key and call.abort(engine)
        ]
        return pb.AbortResponse(aborted_request_ids=ended)
