"""Messages of any type with fields from bytes; and bodies of the HTTP API.

Owns which value goes where. Knows no service: what a field means is told by its name alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.faults.fuzz import languages
from tests.faults.fuzz.values import Bytes

_INTEGERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 6),
}
TEXTS: Mapping[str, Callable[[Bytes], str]] = {
    "json_schema": languages.schema_text,
    "regex": languages.regex_text,
    "grammar": languages.grammar_text,
    "tools_json": languages.tools_json,
    "template_kwargs_json": lambda data: data.json_text(template_kwargs(data)),
    "arguments_json": Bytes.json_text,
    "request_id": lambda data: data.pick(("", "r", "r", "a b", "é", "x" * 128, "x" * 129, "r·1")),
    "model": lambda data: data.pick(("", "", "", "fake", "other", "\n")),
}
# How often a field is set, of 256.
_OFTEN: Mapping[str, int] = {
    "prompt": 250, "text": 200, "request": 250, "messages": 250, "sampling": 120, "content": 240,
    "role": 255, "stop_conditions": 120, "output": 120, "constraint": 30, "model": 20, "name": 220,
    "sampling_params": 240, "tokenized": 120, "prompt_token_ids": 200, "input_ids": 200, "ids": 250,
}  # fmt: skip
_SELDOM = 70
# So many equal values pass every bound there is.
_MANY = (17, 65, 129, 257, 1025, 4097, 9000)
_MOST_BYTES = 1 << 17


def fill(message: Message, data: Bytes, depth: int = 6) -> None:
    """Set some of a message's fields."""
    for field in message.DESCRIPTOR.fields:
        if data.is_over:
            return
        if not data.chance(_OFTEN.get(field.name, _SELDOM)):
            continue
        if _is_map(field):
            _fill_map(getattr(message, field.name), field, data)
        elif field.message_type is not None:
            if depth:
                _fill_child(message, field, data, depth - 1)
        elif field.is_repeated:
            values = [_value(field, data) for _ in range(data.below(5))]
            if values and data.chance(12):
                values *= _many(sum(len(str(value)) for value in values), data)
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, _value(field, data))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _fill_map(values: Any, field: FieldDescriptor, data: Bytes) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    if value.message_type is not None:
        return  # only in what is refused as a whole
    for _ in range(data.below(5)):
        values[_value(key, data)] = _value(value, data)
    if key.type == FieldDescriptor.TYPE_UINT32 and data.chance(6):
        values.update(dict.fromkeys(range(1030), 1.0))


def _fill_child(message: Message, field: FieldDescriptor, data: Bytes, depth: int) -> None:
    child = getattr(message, field.name)
    if not field.is_repeated:
        child.SetInParent()
        fill(child, data, depth)
        return
    for _ in range(data.below(4)):
        fill(child.add(), data, depth)
    if len(child) and data.chance(6):
        child.extend([child[0]] * _many(child[0].ByteSize(), data))


def _many(size: int, data: Bytes) -> int:
    """How often to repeat what takes ``size`` bytes: below a message's bound by far."""
    return min(data.pick(_MANY), 1 + _MOST_BYTES // (size + 1))


def _value(field: FieldDescriptor, data: Bytes) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return TEXTS.get(field.name, Bytes.text)(data)
        case FieldDescriptor.TYPE_BYTES:
            return data.take(data.below(64))
        case FieldDescriptor.TYPE_BOOL:
            return bool(data.below(2))
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return data.real()
        case kind:
            return data.integer(*_INTEGERS[kind])


_KWARGS = (
    "shout", "enable_thinking", "documents", "tools", "messages", "add_generation_prompt", "self",
    "chat_template", "tokenize", "conversation", "return_dict", "range", "raise_exception",
    "", "loop",
    "strftime_now", "namespace", "m", "é", "budget", "tokenizer_kwargs", "cls", "kwargs",
    "environment",
)  # fmt: skip


def template_kwargs(data: Bytes) -> dict[str, Any]:
    """Arguments of a chat template."""
    return {data.pick(_KWARGS): data.json(2) for _ in range(data.below(4))}


_CALL_PARTS = (
    "<tool_call>", "</tool_call>", "<tool_", "call>", "\n", " ", '{"name": "f", "arguments": ',
    '{"name": "f"', '"parameters": ', ', "arguments": ', "{}", "}", "[", "]", ",", '"\\ud800"',
    "null", '"é"', "1e999", "text", "🙂",
)  # fmt: skip


def model_text(data: Bytes) -> str:
    """Some text as a model writes it that knows tools."""
    match data.below(8):
        case 0:
            return data.text()
        case 1:
            return data.json_text()
        case _:
            return data.pick(_CALL_PARTS)


# ---- the HTTP API ----

_FIELDS = (
    "model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n", "best_of", "stop", "stop_token_ids", "max_tokens",
    "min_tokens",
    "max_completion_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
    "logit_bias", "allowed_token_ids", "logprobs", "top_logprobs", "echo", "suffix", "stream",
    "stream_options", "priority", "user", "response_format", "guided_json", "guided_regex",
    "guided_grammar", "guided_choice", "structured_outputs", "chat_template_kwargs", "tools",
    "tool_choice", "parallel_tool_calls", "messages", "prompt", "parse_special_tokens", "unknown",
    "continue_final_message", "add_generation_prompt", "bad_words", "prompt_logprobs",
    "use_beam_search", "structural_tag",
)  # fmt: skip
_FITTING: Mapping[str, Callable[[Bytes], Any]] = {
    "n": lambda data: data.below(8),
    "max_tokens": lambda data: data.below(80),
    "max_completion_tokens": lambda data: data.below(80),
    "logprobs": lambda data: data.pick((True, False, 0, 1, 5, 20, 21)),
    "top_logprobs": lambda data: data.below(22),
    "stream": lambda data: bool(data.below(2)),
    "stream_options": lambda data: {"include_usage": bool(data.below(2))},
    "echo": lambda data: bool(data.below(2)),
    "logit_bias": lambda data: {str(data.below(420)): data.real() for _ in range(data.below(4))},
    "stop": lambda data: [data.text() for _ in range(data.below(4))],
    "tools": languages.tools,
    "tool_choice": lambda data: data.pick(
        ("auto", "none", "required", {"type": "function", "function": {"name": "f"}}, "f")
    ),
    "chat_template_kwargs": template_kwargs,
    "guided_json": languages.schema_object,
    "guided_regex": languages.regex_text,
    "guided_grammar": languages.grammar_text,
    "guided_choice": lambda data: [data.text() for _ in range(data.below(4))],
    "structured_outputs": lambda data: {
        data.pick(("json", "regex", "grammar", "choice", "json_object")): data.json(1)
    },
    "response_format": lambda data: {
        "type": data.pick(("text", "json_object", "json_schema")),
        "json_schema": {"name": "s", "schema": languages.schema_object(data)},
    },
}


HTTP_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens",
)  # fmt: skip


def http_body(data: Bytes, path: str) -> bytes:
    """A body for a path."""
    body: dict[str, Any] = {}
    if data.below(16):
        match path:
            case "/v1/completions":
                body["prompt"] = _prompts(data)
            case "/v1/responses":
                body |= _response(data)
            case "/v1/messages" | "/v1/messages/count_tokens":
                body |= _anthropic(data)
            case _:
                body["messages"] = _turns(data)
    for _ in range(data.below(6)):
        name = data.pick(_FIELDS)
        fitting = _FITTING.get(name)
        body[name] = data.json(2) if fitting is None or data.below(4) == 0 else fitting(data)
    return data.json_text(body).encode(errors="surrogatepass")


def _response(data: Bytes) -> dict[str, Any]:
    """What is /v1/responses' alone."""
    tools = [
        {"type": data.pick(("function", "custom", "namespace", "mcp")), "name": data.text(),
         "tools": [{"type": "function", "name": "f"}]}
        for _ in range(data.below(3))
    ]  # fmt: skip
    text = {"type": "json_schema", "schema": languages.schema_object(data)}
    body = {
        "input": [_item(data) for _ in range(data.below(5))] if data.below(4) else data.json(2),
        "instructions": data.text(),
        "tools": tools,
        "text": {"format": text if data.chance(60) else {"type": "text"}},
        "reasoning": {"effort": data.pick(("low", "none")), "summary": data.pick((None, "auto"))},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "max_output_tokens": 1 + data.below(8),
        "stream": bool(data.below(2)),
    }
    return {name: value for name, value in body.items() if name == "input" or data.below(4)}


def _item(data: Bytes) -> Any:
    parts = [{"type": data.pick(("input_text", "output_text", "input_image")), "text": data.text()}]
    called = {"call_id": data.pick(("c", "d")), "name": data.text()}
    return data.pick(
        (
            {"role": data.pick(("user", "assistant", "developer", "tool")), "content": data.text()},
            {"type": "message", "role": "user", "content": parts},
            {"type": "reasoning", "summary": [], "content": parts},
            {"type": "reasoning", "encrypted_content": data.pick(("switchyard-YQ==", data.text()))},
            {"type": "function_call", "arguments": data.json_text(), **called},
            {"type": "custom_tool_call", "input": data.text(), **called},
            {"type": "function_call_output", "call_id": "c", "output": data.text()},
            data.json(2),
        )
    )


def _anthropic(data: Bytes) -> dict[str, Any]:
    """What is /v1/messages' alone."""
    tool = {"name": data.text() or "f", "input_schema": languages.schema_object(data)}
    format_ = {"type": "json_schema", "schema": languages.schema_object(data)}
    body = {
        "messages": [
            {
                "role": data.pick(("user", "assistant", "system", "tool")),
                "content": [_block(data) for _ in range(data.below(4))] or data.text(),
            }
            for _ in range(1 + data.below(4))
        ],
        "system": [_block(data)] if data.below(2) else data.text(),
        "tools": [tool] if data.below(2) else data.json(2),
        "tool_choice": {"type": data.pick(("auto", "any", "tool", "none")), "name": "f"},
        "thinking": {"type": data.pick(("enabled", "adaptive", "disabled")), "budget_tokens": 2},
        "output_config": {"effort": "low", "format": format_ if data.chance(60) else None},
        "max_tokens": 1 + data.below(8),
        "stream": bool(data.below(2)),
    }
    needed = ("messages", "max_tokens")
    return {name: value for name, value in body.items() if name in needed or data.below(3) == 0}


def _block(data: Bytes) -> Any:
    text = {"type": "text", "text": data.text()}
    return data.pick(
        (
            text,
            {"type": "thinking", "thinking": data.text(), "signature": ""},
            {"type": "tool_use", "id": "t", "name": data.text(), "input": data.json(2)},
            {"type": "tool_result", "tool_use_id": "t", "content": [text], "is_error": True},
            {"type": data.pick(("image", "redacted_thinking", "document"))},
            data.json(2),
        )
    )


def _turns(data: Bytes) -> list[Any]:
    turns: list[Any] = [{"role": "user", "content": data.text() or "a"}]
    for _ in range(data.below(4)):
        turn: dict[str, Any] = {
            "role": data.pick(("system", "user", "assistant", "tool", "developer", "other")),
            "content": data.text() if data.below(3) else data.json(2),
        }
        if data.chance(60):
            turn["content"] = [{"type": data.pick(("text", "image_url")), "text": data.text()}]
        if data.chance(60):
            function = {"name": data.text(), "arguments": data.json_text()}
            turn["tool_calls"] = [{"id": data.text(), "type": "function", "function": function}]
        turns.append(turn)
    return turns


def _prompts(data: Bytes) -> Any:
    match data.below(5):
        case 0 | 1:
            return data.text()
        case 2:
            return [data.below(420) for _ in range(data.below(40))]
        case 3:
            return [data.text() for _ in range(data.below(5))]
        case _:
            return [[data.below(420)] * data.below(70) for _ in range(data.below(3))]
