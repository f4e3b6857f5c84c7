"""All methods of the service without a transport: checks, submits and streams requests.

Owns whether new requests are taken, and what happens to each. Takes and returns `switchyard.v1`
messages and raises `RequestError`; knows nothing of gRPC, sockets or signals, so that every API can
call it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

from frontend.backend import Backend
from frontend.bounds import MAX_ABORTED_IDS, MAX_MESSAGE_BYTES
from frontend.engine.load import EngineLoad
from frontend.errors import Code, RequestError, internal_error, too_many
from frontend.group_info import GroupInfo
from frontend.prefixes import CacheBatch
from frontend.processing import preprocess
from frontend.processing.constraints.structured_output import Compiler
from frontend.processing.tool_calls.format import ToolFormat
from frontend.records import UNKNOWN_CALLER, Caller, Observer
from frontend.requests.request import TextDecoder
from frontend.service import info, responses, tokenization
from frontend.service.calls import Call, KeyLimit, LiveCalls, check_request_id
from switchyard.v1 import inference_pb2 as pb

logger = logging.getLogger(__name__)

# Behind an event with so many tokens other tasks of the loop run before the next.
MANY_TOKENS = 32


class State(enum.Enum):
    """Whether requests are taken; the value says why not."""

    STARTING = "the model is still loading"
    SERVING = ""
    DRAINING = "the server is shutting down"
    LOST = "the workers are gone"


class Service:
    """All that `switchyard.v1.InferenceService` does.

    Args:
        model: served name.
        version: this release.
        observers: get the record of every request that is over.
        key_limit: bounds the live requests of a key; None: no bound.
        may_raise_priority: whether requests of a key may have a priority value below 0.
        may_read_kv_events: whether a key may read the tokens of all prompts in the prefix cache.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        observers: Sequence[Observer] = (),
        key_limit: KeyLimit | None = None,
        may_raise_priority: Callable[[str], bool] = lambda _: True,
        may_read_kv_events: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._observers = observers
        self._key_limit = key_limit or KeyLimit()
        self._may_raise_priority = may_raise_priority
        self._may_read_kv_events = may_read_kv_events
        self._model = model
        self._version = version
        self._started = responses.now()
        self._state = State.STARTING
        self._backend: Backend | None = None
        self._compiler: Compiler | None = None
        self._live = LiveCalls()

    # ---- life ----

    def open(self, backend: Backend) -> None:
        """Takes requests from now on."""
        self._backend = backend
        self._compiler = Compiler(
            None if backend.tokenizer is None else backend.tokenizer.library_tokenizer,
            vocab_size=backend.info.vocab_size,
            eos_token_ids=backend.end_token_ids,
        )
        self._state = State.SERVING

    async def prepare(self) -> None:
        """Does at once what the first request of a kind would hold the others up for."""
        assert self._compiler is not None, "opened"
        await self._compiler.prepare()

    def renew(self, info: GroupInfo) -> None:
        """Goes on with other workers."""
        if self._backend is not None:
            self._backend = dataclasses.replace(self._backend, info=info)

    @property
    def max_requests_per_key(self) -> int:
        """Live requests that a key may have; 0 is any number."""
        return self._key_limit.limit

    @property
    def state(self) -> State:
        """Whether requests are taken, or why not."""
        return self._state

    @property
    def takes_requests(self) -> bool:
        """Whether new requests are taken."""
        return self._state is State.SERVING

    def drain(self) -> int:
        """Refuses new requests from now on; returns how many are live and go on."""
        self._state = State.DRAINING
        self._end_kv_events()
        return len(self._live)

    def lose(self) -> None:
        """Refuses everything, for the engine is gone. It has ended its own requests."""
        self._end_kv_events()
        self._state = State.LOST
        self._backend = None

    def _end_kv_events(self) -> None:
        if self._backend is not None and self._backend.kv_events is not None:
            self._backend.kv_events.close()

    async def idle(self) -> None:
        """Waits until no request is live."""
        await self._live.idle()

    def abort_all(self) -> None:
        """Ends every live request with FINISH_REASON_ABORTED."""
        if self._backend is not None:
            for call in self._live.all():
                call.abort(self._backend.engine)

    # ---- generation ----

    def generate(
        self, request: pb.GenerateRequest, caller: Caller = UNKNOWN_CALLER, *, streams: bool = True
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Streams the continuations of a prompt. Closing the generator aborts the request.

        Args:
            streams: output is sent as it comes; False: all of it at the end.

        Raises (when iterated):
            RequestError: refused, or ended by a fault.
        """
        return self._observed(request, Call("Generate", caller, streams=streams))

    def chat(
        self, chat: pb.ChatRequest, caller: Caller = UNKNOWN_CALLER, *, streams: bool = True
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Streams the assistant's turn; as `generate` in everything else.

        Paths of fields in errors are those of the GenerateRequest that the chat holds, but for the
        chat's own fields.
        """
        return self._observed(chat, Call("Chat", caller, streams=streams))

    async def complete(
        self, message: pb.CompleteRequest, caller: Caller = UNKNOWN_CALLER
    ) -> pb.CompleteResponse:
        """The stream of `generate`, gathered in one message."""
        call = Call("Complete", caller, streams=False, max_bytes=MAX_MESSAGE_BYTES)
        return await responses.gathered(self._observed(message.request, call))

    async def _observed(
        self, message: preprocess.Message, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one call; the observers get its record when it is over."""
        call.arrived = time.monotonic()
        call.code = "CANCELLED"  # unless the end comes from here
        self._end_lost(preprocess.generation_of(message), call.caller.key)
        try:
            with self._key_limit.samples(call.caller.key, preprocess.generation_of(message).n):
                async with contextlib.aclosing(self._stream(message, call)) as stream:
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
        self, message: preprocess.Message, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Events of one call, whose id is live until its last output is taken."""
        backend, request = self._serving(), preprocess.generation_of(message)
        self._check(request, call.caller)
        call.request_id = request.request_id or uuid.uuid4().hex
        self._live.enter(call)
        try:
            await self._begin(backend, message, call)
            await call.leader.output.admitted()
            if request.output.prompt_logprobs:
                await call.samples[0].output.begun()
            yield call.counted(
                await responses.started(call.request_id, call.samples, self._model, request.output)
            )
            if request.output.echo:
                text = await preprocess.echo_text(backend, request, call.leader.prompt_ids)
                for event in responses.echoed(len(call.samples), text):
                    yield call.counted(event)
            while not call.is_over:
                taken = await call.take()
                if call.is_over:
                    self._live.leave(call)
                for index, delta in taken:
                    for event in responses.deltas(index, delta, request.output):
                        yield call.counted(event)
                        if len(event.delta.token_ids) >= MANY_TOKENS:
                            await asyncio.sleep(0)
            yield responses.finished(call.leader, call.samples)
        except RequestError:
            raise
        except Exception as error:
            logger.exception("request %s failed", call.request_id)
            raise internal_error(call.request_id) from error
        finally:
            call.close(backend.engine)
            self._live.leave(call)

    def _end_lost(self, request: pb.GenerateRequest, key: str) -> None:
        """Ends the live stream that a request goes on from, whose reader is gone unnoticed."""
        lost = self._live.get(key, request.request_id) if request.generated else None
        if lost is not None and self._backend is not None:
            lost.abort(self._backend.engine)
            self._live.leave(lost)

    async def _begin(self, backend: Backend, message: preprocess.Message, call: Call) -> None:
        """Makes the call's samples and submits them: the first alone where the others can find the
        prompt in the prefix cache once the first has computed it.
        """
        assert self._compiler is not None, "opened with the backend"
        samples = await preprocess.make_requests(
            backend,
            self._compiler,
            message,
            call.engine_id,
            key=call.caller.key,
            in_one_message=call.max_bytes is not None,
        )
        output = preprocess.generation_of(message).output
        call.begin(samples, output.min_tokens_per_message, self._live.pacer)
        shares = backend.prefix_cache and len(samples[0].prompt_ids) > backend.info.block_size
        call.submit(self._attached().engine, first_alone=shares)

    def _serving(self) -> Backend:
        """The backend, for new work."""
        if self._state is not State.SERVING:
            raise self._unavailable()
        return self._attached()

    def _attached(self) -> Backend:
        """The backend, for requests taken before a drain and for questions."""
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

    def _check(self, request: pb.GenerateRequest, caller: Caller) -> None:
        if request.model and request.model != self._model:
            raise RequestError(
                Code.NOT_FOUND,
                f"no such model here; this server has {self._model}",
                reason="MODEL_NOT_FOUND",
                field="model",
            )
        check_request_id(request.request_id)
        if request.priority < 0 and not self._may_raise_priority(caller.key):
            raise RequestError(
                Code.PERMISSION_DENIED,
                f"is {request.priority}, and key {caller.key} has no right to go before others; "
                "send 0 or more",
                reason="PRIORITY_DENIED",
                field="priority",
                opens_with_field=True,
            )

    # ---- everything else ----

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Text to token ids."""
        return await tokenization.tokenize(self._serving(), request)

    async def tokenize_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to token ids, however many they are."""
        return await tokenization.text_ids(self._serving(), text, add_special_tokens)

    async def tokenize_chat(self, chat: pb.ChatRequest) -> list[int]:
        """A conversation to the token ids of its prompt."""
        return await preprocess.chat_ids(self._serving(), chat)

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        """Token ids to text, also during a drain, for streams that go on."""
        return await tokenization.detokenize(self._attached(), request)

    def decoder(self, keep_special_tokens: bool) -> TextDecoder | None:
        """What makes text of one sequence's tokens as they come; None without a tokenizer."""
        tokenizer = self._attached().tokenizer
        return None if tokenizer is None else tokenizer.decoder((), False, keep_special_tokens)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be read and written; RequestError while there is no model."""
        return self._attached().tokenizer is not None

    @property
    def tool_format(self) -> ToolFormat:
        """The form in which the model writes calls; RequestError while there is no model."""
        return self._attached().tool_format

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

    def why_not_ready(self) -> str:
        """Why no request is worked on, in one line; empty while they are."""
        try:
            restarting = self.engine_load().restarting
        except RequestError as error:
            return error.message
        if not self.takes_requests:
            return State.DRAINING.value
        return "the workers are lost, and not back yet" if restarting else ""

    async def expert_load(self) -> pb.GetExpertLoadResponse:
        """How many tokens each expert had; no layers for a dense model."""
        experts = self._attached().experts
        return pb.GetExpertLoadResponse() if experts is None else await experts.get()

    def kv_events(
        self, after: int | None = 0, caller: Caller = UNKNOWN_CALLER
    ) -> AsyncGenerator[CacheBatch, None]:
        """Streams changes of the prefix cache; see `KvEvents.read`.

        Raises:
            RequestError: there is no prefix cache, or the key may not read what others asked.
        """
        readers = self._serving().kv_events
        if readers is None:
            raise RequestError(
                Code.UNIMPLEMENTED,
                "there are no KV events without a prefix cache (--no-prefix-cache)",
                reason="NO_PREFIX_CACHE",
            )
        if not self._may_read_kv_events(caller.key):
            raise RequestError(
                Code.PERMISSION_DENIED,
                f"KV events hold the tokens of all callers' prompts, and key {caller.key} has no "
                "right to read them; write :kv-events after it in the key file",
                reason="KV_EVENTS_DENIED",
            )
        return readers.read(after)

    def abort(self, request: pb.AbortRequest, caller: Caller = UNKNOWN_CALLER) -> pb.AbortResponse:
        """Ends requests of the caller's key by id; their streams end with FINISH_REASON_ABORTED."""
        engine = self._attached().engine
        if len(request.request_ids) > MAX_ABORTED_IDS:
            raise too_many("request_ids", len(request.request_ids), MAX_ABORTED_IDS, "ids")
        live = ((each, self._live.get(caller.key, each)) for each in request.request_ids)
        ended = [each for each, call in live if call is not None and call.abort(engine)]
        return pb.AbortResponse(aborted_request_ids=ended)
