"""Requests of `switchyard.v1` from plain Python values.

Owns the names of options and where each stands in a message. Checks no value: the server does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from switchyard.v1 import inference_pb2 as pb

Prompt = str | Sequence[int]
Message = Mapping[str, str]


class Options(TypedDict, total=False):
    """What can be said beside the prompt; the server decides what is left out."""

    model: str
    request_id: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_new_tokens: int
    min_new_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    skip_detokenize: bool
    keep_special_tokens: bool
    min_tokens_per_message: int
    echo: bool


def generate_request(prompt: Prompt | None, **options: Unpack[Options]) -> pb.GenerateRequest:
    """A request of a prompt (text or token ids; None for a chat's) and options by name."""
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        request.prompt.text = prompt
    elif prompt is not None:
        request.prompt.tokens.ids.extend(prompt)
    parts = (request, request.sampling, request.stop_conditions, request.output)
    for name, value in options.items():
        part = next((part for part in parts if name in part.DESCRIPTOR.fields_by_name), None)
        if part is None:
            raise TypeError(f"no option {name}; take one of {', '.join(Options.__annotations__)}")
        if isinstance(value, Sequence) and not isinstance(value, str):
            getattr(part, name).extend(value)
        else:
            setattr(part, name, value)
    return request


def chat_request(
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> pb.ChatRequest:
    """A request of turns (``{"role": "user", "content": …}``) and options by name."""
    return pb.ChatRequest(
        messages=[
            pb.ChatMessage(
                role=f"ROLE_{message['role'].upper()}",
                content=message["content"],
                tool_call_id=message.get("tool_call_id", ""),
            )
            for message in messages
        ],
        request=generate_request(None, **options),
        template_kwargs_json=json.dumps(dict(template_kwargs)) if template_kwargs else "",
    )
