"""Requests of `switchyard.v1` from plain Python values.

Owns the names of options and where each stands in a message. Checks no value: the server does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from switchyard.v1 import inference_pb2 as pb

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class Options(TypedDict, total=False):
    """What can be said beside the prompt; the server decides what is left out.

    The names are those of the fields of `switchyard.v1.GenerateRequest` and the messages in it,
    where their ranges stand. ``json_schema`` may be a dict, ``max_queue_time`` is in seconds. Of
    ``json_schema``, ``json_object``, ``regex`` and ``grammar`` the last one given counts.
    """

    model: str
    request_id: str
    n: int
    priority: int
    max_queue_time: float
    # how tokens are drawn
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_token_ids: Sequence[int]
    bad_words: Sequence[str]
    # when it ends
    max_new_tokens: int
    min_new_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    up_to_context: bool
    # what the stream carries
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: bool
    skip_detokenize: bool
    keep_special_tokens: bool
    kept_tokens: Sequence[str]
    min_tokens_per_message: int
    echo: bool
    # what the output must look like
    json_schema: str | Mapping[str, Any]
    json_object: bool
    regex: str
    grammar: str
    json_schemas: Mapping[str, str]
    trigger: str


class ChatOptions(Options, total=False):
    """The same of a chat, and the names of `switchyard.v1.ChatRequest`."""

    parse_special_tokens: bool
    continue_final_message: bool
    add_generation_prompt: bool
    reasoning: Mapping[str, Any]  # by the names of ReasoningOptions


_CHAT_ALONE = ChatOptions.__annotations__.keys() - Options.__annotations__.keys()


def generate_request(prompt: Prompt | None, **options: Unpack[Options]) -> pb.GenerateRequest:
    """A request of a prompt (text or token ids; None for a chat's) and options by name."""
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        request.prompt.text = prompt
    elif prompt is not None:
        request.prompt.tokens.ids.extend(prompt)
    parts = (
        request,
        request.sampling,
        request.stop_conditions,
        request.output,
        request.constraint,
    )
    for name, value in options.items():
        part = next((part for part in parts if name in part.DESCRIPTOR.fields_by_name), None)
        if part is None or name not in Options.__annotations__:
            raise TypeError(f"no option {name}; take one of {', '.join(Options.__annotations__)}")
        _set(part, name, value)
    return request


def _set(part: Any, name: str, value: Any) -> None:
    """Set a field to a value in the form that `Options` has it."""
    if name == "max_queue_time":
        part.max_queue_time.FromNanoseconds(round(value * 1e9))
    elif name == "json_schema":
        part.json_schema = value if isinstance(value, str) else json.dumps(dict(value))
    elif isinstance(value, Mapping):
        getattr(part, name).update(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        getattr(part, name).extend(value)
    else:
        setattr(part, name, value)


def chat_request(
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **options: Unpack[ChatOptions],
) -> pb.ChatRequest:
    """A request of turns and options by name.

    Args:
        messages: turns, ``{"role": "user", "content": …}``; an assistant's may have ``reasoning``,
            and ``tool_calls``, each ``{"id": …, "name": …, "arguments": {…}}``; a tool's has
            ``tool_call_id``.
        template_kwargs: what the chat template knows by name.
        tools: what the model may call, as its chat template wants them.
    """
    shared: dict[str, Any] = dict(options)
    own = {name: shared.pop(name) for name in _CHAT_ALONE & shared.keys()}
    return pb.ChatRequest(
        messages=[_turn(message) for message in messages],
        request=generate_request(None, **shared),
        template_kwargs_json=json.dumps(dict(template_kwargs)) if template_kwargs else "",
        tools_json=json.dumps([dict(tool) for tool in tools]) if tools else "",
        **own,
    )


def _turn(message: Message) -> pb.ChatMessage:
    turn = pb.ChatMessage(
        role=f"ROLE_{message['role'].upper()}",
        content=message.get("content") or "",
        tool_call_id=message.get("tool_call_id", ""),
        reasoning=message.get("reasoning") or "",
    )
    for call in message.get("tool_calls", ()):
        turn.tool_calls.add(
            id=call.get("id", ""),
            name=call["name"],
            arguments_json=json.dumps(call.get("arguments", {})),
        )
    return turn
