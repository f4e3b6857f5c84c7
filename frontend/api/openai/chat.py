"""POST /v1/chat/completions: from its body to `Service.chat`, and back to OpenAI's objects.

Owns messages and the shape of chat completions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

from frontend.api.http.generation import with_free_id
from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.http.values import validated
from frontend.api.openai.generation import FINISH_REASONS, envelope, usage_of
from frontend.api.openai.logprobs import TokenTexts, chat_logprobs, token_ids
from frontend.api.openai.parameters.common import generate_request, refuse_unsupported
from frontend.api.openai.parameters.models import CalledFunction, ChatBody, Message
from frontend.api.openai.parameters.reasoning import REASONING_PARAMETERS, set_reasoning
from frontend.api.openai.prompt_logprobs import prompt_logprobs
from frontend.api.openai.response_models import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Envelope,
    FinishReason,
    PromptLogprobs,
    TokenLogprob,
    Usage,
)
from frontend.api.openai.tool_calling.tools import TOOL_PARAMETERS, chat_tools
from frontend.api.openai.tool_calling.turn_parts import deltas, message
from frontend.errors import invalid_field
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.tool_use import NO_TOOLS, ToolUse
from frontend.records import Caller
from frontend.service.service import Service
from frontend.service.turns import (
    Ended,
    Finished,
    Started,
    TurnDelta,
    TurnEvent,
    WholeTurn,
    turn_events,
)
from switchyard.v1 import inference_pb2 as pb

_ROLES: Mapping[str, pb.Role] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
    "function": pb.ROLE_TOOL,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob:
    """One chat completion; see `frontend.api.openai.generation.Job`.

    Attributes:
        is_legacy: the request has ``functions``, and its answer ``function_call``.
        num_top, num_prompt_top: alternatives of a token of the output, and of the prompt; None: the
            prompt's log-probabilities are not asked for.
    """

    request: pb.ChatRequest
    num_top: int
    num_prompt_top: int | None
    tools: ToolUse
    is_legacy: bool
    stream: bool
    include_usage: bool
    names: Mapping[str, str]
    answer_id: str
    model: str

    async def answer(self, service: Service, texts: TokenTexts, caller: Caller) -> ChatCompletion:
        """The whole answer."""
        choices: dict[int, _WholeChoice] = {}
        size = AnswerSize()
        prompt, usage = None, pb.Usage()
        async with contextlib.aclosing(self._events(service, caller)) as events:
            async for event in events:
                match event:
                    case Started(message) if self.num_prompt_top is not None:
                        prompt = await self._prompt_logprobs(message, texts, size)
                    case TurnDelta(index):
                        choice = choices.setdefault(index, _WholeChoice(size))
                        choice.add(event, await self._logprobs(event.message, texts))
                    case Finished(usage):
                        pass
        answer: ChatCompletion = {
            **self._envelope(),  # type: ignore[typeddict-item]  # it has no prompt_logprobs
            "object": "chat.completion",
            "choices": [self._choice(index, choices[index]) for index in sorted(choices)],
            "usage": usage_of([usage]),
        }
        if prompt is not None:
            answer["prompt_logprobs"] = cast(PromptLogprobs, prompt)
        return answer

    async def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[ChatChunk], None]:
        """What is new of each choice, its role first, then usage."""
        async with contextlib.aclosing(self._events(service, caller)) as events:
            async for event in events:
                match event:
                    case Started():
                        head = self._envelope()
                    case TurnDelta(index, is_first):
                        choices = [_chunk_choice(index, _ROLE)] if is_first else []
                        choices += await self._new_of(event, texts)
                        if choices:
                            yield [self._chunk(head, [choice]) for choice in choices]
                    case Finished(usage) if self.include_usage:
                        yield [self._chunk(head, [], usage_of([usage]))]

    def _envelope(self) -> Envelope:
        return envelope("chatcmpl", self.answer_id, self.model)

    def _events(self, service: Service, caller: Caller) -> AsyncGenerator[TurnEvent, None]:
        stream = with_free_id(
            lambda: service.chat(self.request, caller, streams=self.stream), self.request.request
        )
        return turn_events(stream, self.tools.reader)

    async def _prompt_logprobs(
        self, started: pb.GenerateStarted, texts: TokenTexts, size: AnswerSize
    ) -> JsonArray:
        assert self.num_prompt_top is not None, "asked for"
        output = self.request.request.output
        return await prompt_logprobs(started, self.num_prompt_top, output, texts, size)

    def _choice(self, index: int, whole: _WholeChoice) -> ChatChoice:
        """One choice of the whole answer."""
        ended = whole.turn.ended
        return {
            "index": index,
            "message": message(whole.turn, self.is_legacy),
            "logprobs": None if whole.logprobs is None else _chat_logprobs(whole.logprobs),
            "finish_reason": None if ended is None else self._finish_reason(ended),
        }

    async def _new_of(self, delta: TurnDelta, texts: TokenTexts) -> list[ChatChunkChoice]:
        """What one message of the service adds to one choice."""
        parts = deltas(delta.events, self.is_legacy)
        logprobs = await self._logprobs(delta.message, texts)
        if logprobs and not parts:
            parts = [{"content": ""}]
        choices = []
        for part in parts:
            choices.append(_chunk_choice(delta.index, part, logprobs))
            logprobs = None
        if delta.ended is not None:
            choices.append(_chunk_choice(delta.index, {}, None, self._finish_reason(delta.ended)))
        return choices

    async def _logprobs(self, delta: pb.Delta, texts: TokenTexts) -> ChatLogprobs | None:
        if not self.request.request.output.logprobs or not delta.token_ids:
            return None
        await texts.load(token_ids(delta.token_ids, delta.top_logprobs))
        return {"content": chat_logprobs(delta, self.num_top, texts), "refusal": None}

    def _finish_reason(self, ended: Ended) -> FinishReason:
        reason = FINISH_REASONS[ended.reason]
        if not ended.num_calls or reason != "stop":
            return reason
        return "function_call" if self.is_legacy else "tool_calls"

    def _chunk(
        self, head: Envelope, choices: list[ChatChunkChoice], usage: Usage | None = None
    ) -> ChatChunk:
        chunk: ChatChunk = {
            **head,  # type: ignore[typeddict-item]  # it has no usage
            "object": "chat.completion.chunk",
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk


class _WholeChoice:
    """A choice of an answer that is no stream, put together from its deltas."""

    def __init__(self, size: AnswerSize) -> None:
        self.turn = WholeTurn()
        self.logprobs: JsonArray | None = None
        self._size = size

    def add(self, delta: TurnDelta, logprobs: ChatLogprobs | None) -> None:
        """Go on with a delta.

        Raises:
            RequestError: the answer has become too large.
        """
        self._size.count(len(delta.message.text) + len(delta.message.reasoning))
        self.turn.add(delta)
        if logprobs is not None:
            if self.logprobs is None:
                self.logprobs = JsonArray(self._size)
            self.logprobs.extend(logprobs["content"])


def _chat_logprobs(content: JsonArray) -> ChatLogprobs:
    return {"content": cast(list[TokenLogprob], content), "refusal": None}


_ROLE: ChatDelta = {"role": "assistant", "content": ""}


def _chunk_choice(
    index: int,
    delta: ChatDelta,
    logprobs: ChatLogprobs | None = None,
    finish_reason: FinishReason | None = None,
) -> ChatChunkChoice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def read_chat(
    values: Mapping[str, Any], request_id: str, model: str, tool_format: ToolFormat
) -> ChatJob:
    """The job of a body.

    Args:
        values: the body's JSON object.
        model: served name.
        tool_format: of the model's calls.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    refuse_unsupported(values, "chat")
    body = validated(ChatBody, values)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    request, names = generate_request(body, getattr(body, limit))
    request.request_id = request_id
    tools, is_legacy = NO_TOOLS, False
    if not body.model_fields_set.isdisjoint(TOOL_PARAMETERS):
        tools, is_legacy = chat_tools(body, values, tool_format)
    names["stop_conditions.max_new_tokens"] = limit
    if tools.constraint is not None and request.HasField("constraint"):
        raise invalid_field(
            "tool_choice", f"forces a call, and {names['constraint']} names a language"
        )
    names = {**tools.fields, **names}
    _set_logprobs(body, request.output)
    kwargs = body.chat_template_kwargs
    chat = pb.ChatRequest(
        messages=_messages(body.messages or ()),
        request=request,
        template_kwargs_json="" if kwargs is None else json.dumps(kwargs),
        parse_special_tokens=bool(body.parse_special_tokens),
        continue_final_message=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt,
    )
    if not body.model_fields_set.isdisjoint(REASONING_PARAMETERS):
        names |= set_reasoning(body, chat.reasoning)
    if tools is not NO_TOOLS:
        tools.apply(chat)
    return ChatJob(
        request=chat,
        num_top=body.top_logprobs or 0,
        num_prompt_top=body.prompt_logprobs,
        tools=tools,
        is_legacy=is_legacy,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        names=names,
        answer_id=request_id,
        model=model,
    )


def _set_logprobs(body: ChatBody, output: pb.OutputOptions) -> None:
    if body.top_logprobs and not body.logprobs:
        raise invalid_field("top_logprobs", "needs logprobs: true")
    output.logprobs = bool(body.logprobs)
    output.top_logprobs = max(output.top_logprobs, body.top_logprobs or 0)


def _messages(messages: Sequence[Message]) -> list[pb.ChatMessage]:
    return [
        pb.ChatMessage(
            role=_ROLES[message.role],
            content="".join(getattr(part, part.type) or "" for part in message.content),
            tool_call_id=message.tool_call_id or "",
            tool_calls=_calls(message, f"messages[{index}]"),
            reasoning=message.reasoning_content or message.reasoning or "",
        )
        for index, message in enumerate(messages)
    ]


def _calls(message: Message, path: str) -> list[pb.ToolCall]:
    """The calls of an assistant's turn, in either form."""
    calls = [
        _call(call.function, call.id, f"{path}.tool_calls[{number}].function")
        for number, call in enumerate(message.tool_calls or ())
    ]
    if message.function_call is not None:
        calls.append(_call(message.function_call, None, f"{path}.function_call"))
    return calls


def _call(function: CalledFunction | None, call_id: str | None, path: str) -> pb.ToolCall:
    if function is None or not function.name:
        raise invalid_field(path, "has no name; send {name, arguments}")
    return pb.ToolCall(
        id=call_id or "", name=function.name, arguments_json=function.arguments or "{}"
    )
