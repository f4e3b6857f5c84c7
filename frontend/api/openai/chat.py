"""POST /v1/chat/completions: from its body to `Service.chat`, and back in OpenAI's chunks.

Owns the shape of chat completions. Tools are `frontend.api.openai.tools`'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from frontend.api.openai.job import (
    FINISH_REASONS,
    Chunk,
    read_streaming,
    usage_object,
)
from frontend.api.openai.json_fields import Fields
from frontend.api.openai.logprobs import TokenTexts, chat_logprobs, token_ids
from frontend.api.openai.merge import with_free_id
from frontend.api.openai.messages import chat_messages
from frontend.api.openai.parameters import generate_request
from frontend.api.openai.tool_calls import ChoiceDelta, TurnReader
from frontend.api.openai.tools import ToolUse, tool_use
from frontend.bounds import MAX_TOP_LOGPROBS
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob:
    """One chat completion; see `frontend.api.openai.job.Job`."""

    asked: pb.ChatRequest
    tools: ToolUse
    stream: bool
    include_usage: bool
    names: Mapping[str, str]
    head: Mapping[str, Any]

    async def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[Chunk], None]:
        """What is new of each choice, its role first, then usage."""
        asked = self.asked.request
        readers: dict[int, TurnReader] = {}
        events = with_free_id(lambda: service.chat(self.asked, caller, streams=self.stream), asked)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.HasField("delta"):
                    delta, chunks = event.delta, []
                    if asked.output.logprobs:
                        await texts.load(token_ids(delta.token_ids, delta.top_logprobs))
                    if delta.index not in readers:
                        readers[delta.index] = self.tools.reader()
                        role = {"role": "assistant", "content": ""}
                        chunks.append(self._chunk(delta.index, role))
                    chunks += self._delta_chunks(delta, readers[delta.index], texts)
                    if chunks:
                        yield chunks
                elif event.HasField("finished") and (self.include_usage or not self.stream):
                    usage = usage_object([event.finished.usage])
                    yield [{**self.head, "choices": [], "usage": usage}]

    def _delta_chunks(self, delta: pb.Delta, reader: TurnReader, texts: TokenTexts) -> list[Chunk]:
        """What one message of the service says of one choice."""
        is_last = delta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
        said = reader.push(delta.text) + (reader.flush() if is_last else [])
        logprobs = None
        if self.asked.request.output.logprobs and delta.token_ids:
            logprobs = {"content": chat_logprobs(delta, texts), "refusal": None}
            said = said or [{"content": ""}]
        chunks = []
        for part in said:
            chunks.append(self._chunk(delta.index, part, logprobs))
            logprobs = None
        if is_last:
            reason = FINISH_REASONS[delta.finish_reason]
            if reader.num_calls and reason == "stop":
                reason = "tool_calls"
            chunks.append(self._chunk(delta.index, {}, finish_reason=reason))
        return chunks

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> Chunk:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = {**self.head, "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The choices' deltas, added up."""
        choices: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            for part in chunk["choices"]:
                choice = choices.setdefault(part["index"], _empty_choice(part["index"]))
                _add_delta(choice["message"], part["delta"])
                if part["logprobs"]:
                    choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                    choice["logprobs"]["content"] += part["logprobs"]["content"]
                choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
        for choice in choices.values():
            if "tool_calls" in choice["message"]:
                choice["message"]["content"] = choice["message"]["content"] or None
        ordered = [choices[index] for index in sorted(choices)]
        head = {**self.head, "object": "chat.completion"}
        return {**head, "choices": ordered, "usage": chunks[-1]["usage"]}


def read_chat(fields: Fields, request_id: str, model: str) -> ChatJob:
    """The job of a body.

    Args:
        model: served name.

    Raises:
        RequestError: a parameter is of the wrong type, or asks for what there is not.
    """
    stream, include_usage = read_streaming(fields)
    limit = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    asked = generate_request(fields, fields.integer(limit))
    asked.request_id = request_id
    tools = tool_use(fields)
    names = {"stop_conditions.max_new_tokens": limit}
    if tools.schema_json:
        if asked.HasField("constraint"):
            raise fields.wrong("tool_choice", "asks for a call, and response_format for a language")
        asked.constraint.json_schema = tools.schema_json
        names["constraint.json_schema"] = "tools"
    _set_logprobs(fields, asked.output)
    kwargs = fields.child("chat_template_kwargs")
    return ChatJob(
        asked=pb.ChatRequest(
            messages=chat_messages(fields),
            request=asked,
            template_kwargs_json=json.dumps(fields.raw("chat_template_kwargs")) if kwargs else "",
            tools_json=tools.tools_json,
        ),
        tools=tools,
        stream=stream,
        include_usage=include_usage,
        names=names,
        head={
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        },
    )


def _set_logprobs(fields: Fields, output: pb.OutputOptions) -> None:
    output.logprobs = fields.flag("logprobs")
    top = fields.integer("top_logprobs", high=MAX_TOP_LOGPROBS) or 0
    if top and not output.logprobs:
        raise fields.wrong("top_logprobs", "needs logprobs: true")
    output.top_logprobs = top


def _empty_choice(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "", "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add_delta(message: dict[str, Any], delta: ChoiceDelta) -> None:
    message["content"] += delta.get("content", "")
    for call in delta.get("tool_calls", ()):
        if "id" in call:
            known = {key: value for key, value in call.items() if key != "index"}
            message.setdefault("tool_calls", []).append(known)
        else:
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"][
                "arguments"
            ]
