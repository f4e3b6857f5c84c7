"""Calls as Llama 4 and others write them: the turn is a list of calls in Python's syntax,
``[NAME(KEY=VALUE, …), …]``, whose values are literals. Their words are those of Python or of JSON.
"""

from __future__ import annotations

import ast
import json
import math
from typing import Any

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.scan import ParsedCall, Parsing, Scan

BEGIN, END = "<|python_start|>", "<|python_end|>"
_WORDS = {"true": True, "false": False, "null": None}


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == BEGIN:
        yield from scan.blanks()
        yield from scan.need("[")
    begin = scan.place - 1
    yield from _to_the_lists_end(scan)
    try:
        calls = _calls(scan.text[begin : scan.place])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise scan.fail() from None
    if not calls or any(call.name not in tools for call in calls):
        raise scan.fail()
    return calls


def _to_the_lists_end(scan: Scan) -> Parsing[None]:
    """Goes on behind the bracket that closes the first."""
    depth, quote, is_escaped = 1, "", False
    while depth:
        while scan.place == len(scan.text):
            if scan.is_over:
                raise scan.fail()
            yield
        char = scan.text[scan.place]
        scan.place += 1
        if quote:
            if not is_escaped and char == quote:
                quote = ""
            is_escaped = not is_escaped and char == "\\"
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "[({") - (char in "])}")


def _calls(text: str) -> list[ParsedCall]:
    listed = ast.parse(text, mode="eval").body
    return [_call(each) for each in listed.elts] if isinstance(listed, ast.List) else []


def _call(call: ast.expr) -> ParsedCall:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("no call with named arguments")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("no named argument")
        arguments[keyword.arg] = _value(keyword.value)
    text = json.dumps(arguments, ensure_ascii=False)
    text.encode()  # half of a surrogate pair is no text
    return ParsedCall(ast.unparse(call.func), text)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elements) | ast.Tuple(elements):
            return [_value(each) for each in elements]
        case ast.Dict(keys, values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_key(key): _value(each) for key, each in pairs}
    value = ast.literal_eval(node)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("no number of JSON")
    if not isinstance(value, str | int | float | None):
        raise ValueError("no value of JSON")
    return value


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(str(key)):
            return key
    raise ValueError("no name of JSON")


PYTHONIC = TaggedFormat(
    name="pythonic",
    begins=("[", BEGIN),
    parse=_parse,
    closers=(END,),
    only_first=True,
    tags=(BEGIN, END),
)
