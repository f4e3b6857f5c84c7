"""Fields are counted as the parser would find them, in messages of any kind."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from frontend.api.grpc.wire_fields import has_more_fields
from switchyard.v1 import inference_pb2 as pb

TEXTS = st.text(max_size=200)
CALLS = st.builds(pb.ToolCall, id=TEXTS, name=TEXTS, arguments_json=TEXTS)
TURNS = st.builds(
    pb.ChatMessage,
    role=st.sampled_from([0, 1, 300]),  # type: ignore[arg-type]
    content=TEXTS,
    tool_calls=st.lists(CALLS, max_size=3),
)
SAMPLING = st.builds(
    pb.SamplingParams,
    temperature=st.floats(0, 2),
    seed=st.integers(0, 2**64 - 1),
    bad_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=9),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(-1, 1), max_size=5),
)
REQUESTS = st.builds(pb.GenerateRequest, n=st.integers(0, 2**32 - 1), sampling=SAMPLING)
CHATS = st.builds(pb.ChatRequest, messages=st.lists(TURNS, max_size=5), request=REQUESTS)


def fields_of(message: Message) -> int:
    """A message's fields as they are on the wire."""
    count = 0
    for field, value in message.ListFields():
        if field.message_type is None:
            each_alone = isinstance(value, str | bytes | int | float) or field.is_packed
            count += 1 if each_alone else len(value)
        elif field.message_type.GetOptions().map_entry:
            count += 3 * len(value)
        else:
            inner = value if field.is_repeated else [value]
            count += sum(1 + fields_of(each) for each in inner)
    return count


@given(CHATS)
def test_fields_are_counted_as_they_are_on_the_wire(chat: pb.ChatRequest) -> None:
    data, count = chat.SerializeToString(), fields_of(chat)
    assert not has_more_fields(data, pb.ChatRequest.DESCRIPTOR, count)
    assert count == 0 or has_more_fields(data, pb.ChatRequest.DESCRIPTOR, count - 1)


@given(st.binary(max_size=300) | CHATS.map(lambda chat: chat.SerializeToString()[:-1]))
def test_what_is_no_message_is_left_to_the_parser(data: bytes) -> None:
    has_more_fields(data, pb.ChatRequest.DESCRIPTOR, 5)


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_walk_ends_where_there_are_too_many(repeats: int) -> None:
    class Counted(bytes):
        reads = 0

        def __getitem__(self, place):  # type: ignore[no-untyped-def]
            Counted.reads += 1
            return super().__getitem__(place)

    data = Counted(b"\n\x00" * 100_000 * repeats)
    assert has_more_fields(data, pb.ChatRequest.DESCRIPTOR, 1000)
    assert Counted.reads <= 2 * 1001
