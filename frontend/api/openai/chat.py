"""POST /v1/chat/completions: from its body to `Service.chat`, and back to OpenAI's objects.

Owns messages and the shape of chat completions. `tools.py` has the tools.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

from frontend.api.http.generation import with_free_id
from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.http.validation import validated
from frontend.api.openai.generation import FINISH_REASONS, envelope, usage_of
from frontend.api.openai.logprobs import TokenTexts, chat_logprobs, token_ids
from frontend.api.openai.parameters.common import generate_request, refuse_unsupported
from frontend.api.openai.parameters.models import CalledFunction, ChatBody, Message
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
from frontend.api.openai.tool_calling.function_call import with_function_call
from frontend.api.openai.tool_calling.tool_calls import TurnReader, whole_message
from frontend.api.openai.tool_calling.tools import NO_TOOLS, ToolUse, tool_use
from frontend.errors import invalid_field
from frontend.records import Caller
from frontend.service import responses
from frontend.service.service import Service
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
        num_top, num_prompt_top: alternatives of a token of the output, and of the prompt; None: the
            prompt's log-probabilities are not asked for.
    """

    request: pb.ChatRequest
    num_top: int
    num_prompt_top: int | None
    tools: ToolUse
    stream: bool
    include_usage: bool
    names: Mapping[str, str]
    envelope: Envelope

    async def answer(self, service: Service, texts: TokenTexts, caller: Caller) -> ChatCompletion:
        """The whole answer."""
        logprobs: dict[int, JsonArray] = {}
        size = AnswerSize()
        events = self._without_logprobs(self._events(service, caller), texts, logprobs, size)
        gathered = await responses.gathered(events)
        choices = [self._choice(each, logprobs.get(each.index)) for each in gathered.outputs]
        answer: ChatCompletion = {
            **self.envelope,  # type: ignore[typeddict-item]  # it has no prompt_logprobs
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_of([gathered.finished.usage]),
        }
        if self.num_prompt_top is not None:
            output = self.request.request.output
            array = await prompt_logprobs(
                gathered.started, self.num_prompt_top, output, texts, size
            )
            answer["prompt_logprobs"] = cast(PromptLogprobs, array)
        return answer

    async def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[ChatChunk], None]:
        """What is new of each choice, its role first, then usage."""
        readers: dict[int, TurnReader] = {}
        async with contextlib.aclosing(self._events(service, caller)) as events:
            async for event in events:
                if event.HasField("delta"):
                    delta, choices = event.delta, []
                    if delta.index not in readers:
                        readers[delta.index] = self.tools.reader()
                        choices.append(_chunk_choice(delta.index, _ROLE))
                    choices += await self._new_of(delta, readers[delta.index], texts)
                    if choices:
                        yield [self._chunk([choice]) for choice in choices]
                elif event.HasField("finished") and self.include_usage:
                    yield [self._chunk([], usage_of([event.finished.usage]))]

    def _events(
        self, service: Service, caller: Caller
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        return with_free_id(
            lambda: service.chat(self.request, caller, streams=self.stream), self.request.request
        )

    async def _without_logprobs(
        self,
        events: AsyncGenerator[pb.GenerateResponse, None],
        texts: TokenTexts,
        logprobs: dict[int, JsonArray],
        size: AnswerSize,
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The events; what they say of log-probabilities goes to its choice's array at once."""
        async with contextlib.aclosing(events):
            async for event in events:
                size.count(len(event.delta.text))
                new = await self._logprobs(event.delta, texts)
                if new is not None:
                    array = logprobs.setdefault(event.delta.index, JsonArray(size))
                    array.extend(new["content"])
                    event.delta.ClearField("top_logprobs")
                yield event

    def _choice(self, output: pb.Delta, logprobs: JsonArray | None) -> ChatChoice:
        """One choice of the whole answer, from all of its text and tokens."""
        reader = self.tools.reader()
        parts = reader.push(output.text) + reader.flush()
        return {
            "index": output.index,
            "message": with_function_call(whole_message(parts), parts),
            "logprobs": None if logprobs is None else _chat_logprobs(logprobs),
            "finish_reason": self._finish_reason(output, reader),
        }

    async def _new_of(
        self, delta: pb.Delta, reader: TurnReader, texts: TokenTexts
    ) -> list[ChatChunkChoice]:
        """What one message of the service adds to one choice."""
        is_last = delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        parts = reader.push(delta.text) + (reader.flush() if is_last else [])
        logprobs = await self._logprobs(delta, texts)
        if logprobs and not parts:
            parts = [{"content": ""}]
        choices = []
        for part in parts:
            choices.append(_chunk_choice(delta.index, part, logprobs))
            logprobs = None
        if is_last:
            choices.append(_chunk_choice(delta.index, {}, None, self._finish_reason(delta, reader)))
        return choices

    async def _logprobs(self, delta: pb.Delta, texts: TokenTexts) -> ChatLogprobs | None:
        if not self.request.request.output.logprobs or not delta.token_ids:
            return None
        await texts.load(token_ids(delta.token_ids, delta.top_logprobs))
        return {"content": chat_logprobs(delta, self.num_top, texts), "refusal": None}

    def _finish_reason(self, delta: pb.Delta, reader: TurnReader) -> FinishReason:
        reason = FINISH_REASONS[delta.finish_reason]
        if not reader.num_calls or reason != "stop":
            return reason
        return "function_call" if self.tools.is_legacy else "tool_calls"

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        chunk: ChatChunk = {
            **self.envelope,  # type: ignore[typeddict-item]  # it has no usage
            "object": "chat.completion.chunk",
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk


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


def read_chat(values: Mapping[str, Any], request_id: str, model: str) -> ChatJob:
    """The job of a body.

    Args:
        values: the body's JSON object.
        model: served name.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    refuse_unsupported(values, "chat")
    body = validated(ChatBody, values)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    request, names = generate_request(body, getattr(body, limit))
    request.request_id = request_id
    of_tools = (body.tools, body.tool_choice, body.functions, body.function_call)
    names_tools = any(value is not None for value in of_tools)
    tools = tool_use(body, values) if names_tools else NO_TOOLS
    names["stop_conditions.max_new_tokens"] = limit
    if tools.schema_json:
        if request.HasField("constraint"):
            raise invalid_field(
                "tool_choice", f"forces a call, and {names['constraint']} names a language"
            )
        request.constraint.json_schema = tools.schema_json
        names["constraint.json_schema"] = names["constraint"] = tools.schema_field
    _set_logprobs(body, request.output)
    kwargs = body.chat_template_kwargs
    return ChatJob(
        request=pb.ChatRequest(
            messages=_messages(body.messages or ()),
            request=request,
            template_kwargs_json="" if kwargs is None else json.dumps(kwargs),
            tools_json=tools.tools_json,
            parse_special_tokens=bool(body.parse_special_tokens),
            continue_final_message=bool(body.continue_final_message),
            add_generation_prompt=body.add_generation_prompt,
        ),
        num_top=body.top_logprobs or 0,
        num_prompt_top=body.prompt_logprobs,
        tools=tools,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        names=names,
        envelope=envelope("chatcmpl", request_id, model),
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
