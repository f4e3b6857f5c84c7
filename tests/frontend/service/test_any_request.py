"""Any message at all gets an answer or a refusal that names a field, never a bug's error."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.errors import Code, RequestError
from frontend.records import RequestRecord
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, backend

pytestmark = pytest.mark.slow

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "a", "abcdefghij", MODEL, "{}", "[]", '{"type": "object"}', "[a-z]{2}", 'start: "a"']
    ),
)
FLOATS = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, 100.0]), st.floats(0, 1)
)
SMALL = st.integers(0, 5)
VALUES: dict[int, st.SearchStrategy[object]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_UINT32: st.one_of(SMALL, st.integers(0, 2**32 - 1)),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.one_of(SMALL, st.integers(-(2**63), 2**63 - 1)),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 6),
}


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], often: float = 0.3) -> Message:
    """A message of any type with some of its fields set, to what is likely or to anything."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if draw(st.floats(0, 1)) > often:
            continue
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            key, value = field.message_type.fields
            entries = st.dictionaries(VALUES[key.type], VALUES[value.type], max_size=3)
            getattr(message, field.name).update(draw(entries))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            nested = messages(field.message_type._concrete_class, often)
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(nested, max_size=3)))
            else:
                getattr(message, field.name).CopyFrom(draw(nested))
        elif field.is_repeated:
            values = draw(st.lists(VALUES[field.type], max_size=4))
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, draw(VALUES[field.type]))
    return message


class Records(list[RequestRecord]):
    def request_ended(self, record: RequestRecord) -> None:
        self.append(record)


async def outcome(asked: pb.GenerateRequest | pb.ChatRequest) -> RequestError | list[str]:
    """The refusal, or the kinds of event; either leaves nothing behind."""
    engine, records = FakeEngine(), Records()
    service = Service(model=MODEL, version="1", observers=[records])
    service.open(backend(engine))
    call = service.chat if isinstance(asked, pb.ChatRequest) else service.generate
    result: RequestError | list[str]
    try:
        result = [event.WhichOneof("event") async for event in call(asked)]
    except RequestError as error:
        result = error
    [record] = records
    assert record.code == (result.code.name if isinstance(result, RequestError) else "OK")
    assert not engine.running
    await asyncio.wait_for(service.idle(), 1.0)
    return result


def check(asked: pb.GenerateRequest | pb.ChatRequest) -> None:
    result = asyncio.run(outcome(asked))
    if isinstance(result, RequestError):
        assert result.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), result.message
        assert result.field
        assert "\n" not in result.message
    else:
        assert result[0] == "started"
        assert result[-1] == "finished"


any_request = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@any_request
@given(messages(pb.GenerateRequest))
def test_generate_answers_or_names_the_field(asked: pb.GenerateRequest) -> None:
    check(asked)


@any_request
@given(messages(pb.GenerateRequest, 0.08))
def test_most_fields_alone_are_answered_too(asked: pb.GenerateRequest) -> None:
    """Few fields at a time reach further than many."""
    asked.prompt.text = "abcdefgh"
    asked.model = ""
    check(asked)


@any_request
@given(messages(pb.ChatRequest))
def test_chat_answers_or_names_the_field(asked: pb.ChatRequest) -> None:
    asked.request.ClearField("prompt")
    check(asked)
