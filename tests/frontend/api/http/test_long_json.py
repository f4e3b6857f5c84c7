"""JSON in pieces is JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.api.http.long_json import AnswerSize, JsonArray, LongJSONResponse

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def in_pieces(value: Any, cuts: list[int]) -> Any:
    """The value; its lists of no containers are JsonArrays, cut in pieces."""
    if isinstance(value, dict):
        return {key: in_pieces(each, cuts) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    if any(isinstance(each, dict) for each in value):
        return [in_pieces(each, cuts) for each in value]
    array, start = JsonArray(AnswerSize()), 0
    for cut in [*cuts, len(value)]:
        array.extend(value[start:cut])
        start = max(start, cut)
    return array


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=3), VALUES), st.lists(st.integers(0, 4)).map(sorted))
def test_json_in_pieces_is_json(value: dict[str, Any], cuts: list[int]) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(LongJSONResponse(in_pieces(value, cuts))({}, receive, send))
    body = b"".join(message["body"] for message in sent[1:])
    assert json.loads(body) == value
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body)
    assert [message.get("more_body", False) for message in sent[1:]][-1] is False
