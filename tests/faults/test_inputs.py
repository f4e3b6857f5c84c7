"""Any bytes at all: an answer or a refusal, never a bug's error, and nothing left behind.

The targets are those of `tests.faults.fuzz`, on what hypothesis draws; and the worker's reading of
steps, which is no stranger's but must not write where it was not told to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from frontend.link.rank_channel import GroupLost
from frontend.link.worker_group import WorkerGroup
from frontend.processing.tool_calls.events import Text
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.processing.tool_calls.held_output import ListOfCalls
from frontend.scheduler.step import ReplicaBatch, Step
from switchyard.worker.v1 import worker_pb2
from tests.faults.fuzz.calls import METHODS, valid_messages
from tests.faults.fuzz.messages import fill
from tests.faults.fuzz.oracle import FindingError
from tests.faults.fuzz.stack import INFO, model_folder
from tests.faults.fuzz.targets import Targets
from tests.faults.fuzz.values import Bytes
from tests.frontend.processing.tool_calls.reading import tools_of
from tests.workers.steps import decode_step, prefill_step
from workers.step.batch import BatchBuilder
from workers.step.block_tables import in_groups

pytestmark = pytest.mark.slow

_some_inputs = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    # Clients that earlier tests have left close themselves as tasks of whatever loop runs when they
    # are collected, and fail there: it is not the one they were opened on.
    gc.collect()
    loop = asyncio.new_event_loop()
    made = Targets(model_folder(tmp_path_factory.mktemp("model")), loop)
    yield made
    made.close()
    loop.close()


@_some_inputs
@given(st.binary(max_size=200))
def test_any_bytes_as_any_message(targets: Targets, data: bytes) -> None:
    targets.run("wire", data)


@_some_inputs
@given(st.sampled_from(valid_messages()), st.data())
def test_good_messages_with_some_bytes_changed(
    targets: Targets, valid: tuple[str, bytes], data: st.DataObject
) -> None:
    method, message = valid
    places = st.tuples(st.integers(0, max(0, len(message) - 1)), st.binary(max_size=3))
    for place, bytes_there in data.draw(st.lists(places, max_size=4)):
        message = message[:place] + bytes_there + message[place + 1 :]
    targets.run("wire", bytes([list(METHODS).index(method)]) + message)


_NAMES = ["messages", "languages", "chat", "routers", "http", "results", "calls"]


@pytest.mark.parametrize("name", _NAMES)
def test_targets_keep_to_the_contract(targets: Targets, name: str) -> None:
    @_some_inputs
    @given(st.binary(min_size=1, max_size=400))
    def run(data: bytes) -> None:
        targets.run(name, data)

    run()


def test_the_oracle_notices_a_bug(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that raises over a certain text is found, and the next input has another."""

    async def broken(*_: Any) -> None:
        raise KeyError("a bug")

    [(_, tokenize)] = [each for each in valid_messages() if each[0].endswith("/Tokenize")]
    number = next(i for i, name in enumerate(METHODS) if name.endswith("/Tokenize"))
    with monkeypatch.context() as patch:
        patch.setattr("frontend.service.tokenization.tokenize", broken)
        with pytest.raises(FindingError, match="INTERNAL"):
            targets.run("wire", bytes([number]) + tokenize)
    targets.run("wire", bytes([number]) + tokenize)


# ---- what was found ----


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e308", "1e400"])
@pytest.mark.parametrize("name", ["max_tokens", "seed", "temperature", "n", "priority"])
def test_numbers_of_any_size_in_a_body(targets: Targets, name: str, number: str) -> None:
    targets.post("/v1/completions", f'{{"prompt": "a", "{name}": {number}}}')


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a", "guided_json": %s}',
        '{"messages": [{"role": "user", "content": "a"}], "tool_choice": "required",'
        ' "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": %s}}}]}',
        '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": %s}}',
        '{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant",'
        ' "content": [{"type": "tool_use", "name": "f", "input": %s}]}, {"role": "user",'
        ' "content": [{"type": "tool_result", "tool_use_id": "a"}]}]}',
        '{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}],'
        ' "output_config": {"format": {"type": "json_schema", "schema": {"a": %s}}}}',
    ],
)
def test_json_of_any_depth_in_a_body(targets: Targets, body: str) -> None:
    """Some depth can just be read, and not be written again."""
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    if "max_tokens" in body:
        path = "/v1/messages"
    for depth in range(840, 1000, 2):
        targets.post(path, body % ('{"items":' * depth + "true" + "}" * depth))


@pytest.mark.parametrize("text", ['{"name": "f", "arguments": "\\ud800"}', '{"name": "\\udfff"}'])
def test_a_model_that_writes_half_a_character_in_a_call(text: str) -> None:
    for reader, said in (
        (HERMES.reader(tools_of("f")), f"<tool_call>{text}</tool_call>"),
        (ListOfCalls({"f"}), text),
    ):
        assert reader.push(said) + reader.flush() == [Text(said)]


# ---- the worker link ----


class _RawRank:
    """A rank on a socket that answers its first step with certain bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def execute(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for data in requests:
            request = worker_pb2.ExecuteRequest.FromString(data)
            if request.HasField("hello"):
                welcome = worker_pb2.ExecuteResponse(welcome={"epoch": request.hello.epoch})
                yield welcome.SerializeToString()
            elif request.HasField("step"):
                yield self._answer

    async def describe(self, request: bytes, context: Any) -> bytes:
        return INFO.SerializeToString()

    async def start(self) -> tuple[grpc.aio.Server, str]:
        handlers = {
            "Execute": grpc.stream_stream_rpc_method_handler(self.execute),
            "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
        }
        server = grpc.aio.server()
        service = "switchyard.worker.v1.WorkerService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


async def _ask(group: WorkerGroup, step: Step) -> None:
    await group.send(step)
    await group.receive()


def _result(**changes: Any) -> bytes:
    result = worker_pb2.StepResult(**{"step_id": 1, "token_ids": [3], **changes})
    return worker_pb2.ExecuteResponse(result=result).SerializeToString()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\xff\xff", "no ExecuteResponse"),
        (b"", "where a StepResult was due"),
        (worker_pb2.ExecuteResponse(welcome={"epoch": 1}).SerializeToString(), "was due"),
        (_result(step_id=2), "answered step 2, expected 1"),
        (_result(token_ids=[]), "drew 0 tokens, expected 1"),
        (_result(token_ids=[INFO.vocab_size]), "vocabulary"),
        (_result(token_ids=[-2]), "vocabulary"),
        (_result(logprobs=[-1.0]), "1 logprobs, expected 0"),
        (_result(prompt_top_token_ids=[1]), "1 prompt_top_token_ids, expected 0"),
        (_result(device_seconds=float("nan")), "device_seconds nan"),
        (_result(flops=float("inf")), "flops inf"),
    ],
)
async def test_an_answer_that_cannot_be_true_loses_the_group(
    answer: bytes, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a socket: the group is lost at once, not when the step is overdue."""
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    server, address = await _RawRank(answer).start()
    group = await WorkerGroup.connect([address], startup_timeout=5.0)
    try:
        row = ReplicaBatch(
            slots=[0], positions=[0], num_tokens=[1], token_ids=[1], draws=[True],
            num_new_blocks=[1], new_blocks=[0], total_tokens=1, num_draws=1,
        )  # fmt: skip
        with pytest.raises(GroupLost, match=complaint):
            await asyncio.wait_for(_ask(group, Step(1, [row], 1)), 5.0)
        assert isinstance(group.lost.result(), GroupLost)
    finally:
        await group.close()
        await server.stop(None)


# ---- the worker's reading of steps ----

NUM_SLOTS, MAX_BLOCKS, BLOCK, NUM_GROUPS = 4, 8, 4, 2


def _builder() -> BatchBuilder:
    builder = BatchBuilder(
        num_slots=NUM_SLOTS,
        max_blocks=MAX_BLOCKS,
        block_size=BLOCK,
        max_tokens=64,
        device=torch.device("cpu"),
        num_groups=NUM_GROUPS,
    )
    for slot in (0, 1):
        builder.build(in_groups(prefill_step(slot, slot, [1, 2, 3], [slot]), NUM_GROUPS))
    return builder


def _a_step(data: Bytes) -> worker_pb2.StepRequest:
    """A good step with some of its columns changed, or any at all."""
    match data.below(3):
        case 0:
            step = decode_step(2, [0, 1], [3, 3], [[], [5]])
        case 1:
            step = prefill_step(2, 2, [7, 8, 9, 10, 11], [2, 3], temperature=1.0)
        case _:
            step = decode_step(2, [1], [3], [[]])
            step.MergeFrom(prefill_step(2, 3, [7, 8], [6]))
            step.decode_only = False
    in_groups(step, NUM_GROUPS)
    columns = [
        field for field in step.DESCRIPTOR.fields if field.is_repeated and not field.message_type
    ]
    for _ in range(data.below(4)):
        column = getattr(step, data.pick(columns).name)
        lowest = -(2**31) if column is step.mask_triggers else 0
        value = data.integer(lowest, lowest + 2**32 - 1)
        if len(column) and data.below(2):
            column[data.below(len(column))] = value if column is not step.draws else bool(value & 1)
        elif len(column) and data.below(2):
            del column[-1]
        elif column is not step.draws:
            column.append(value)
    if data.below(4) == 0:
        step.num_decodes = data.integer(0, 2**32 - 1)
    if data.below(4) == 0:
        fill(step.new_sequences.add(), data)
    return step


@settings(parent=_some_inputs, max_examples=600)
@given(st.binary(max_size=120))
@example(b"")
def test_a_step_is_a_batch_within_bounds_or_refused(data: bytes) -> None:
    builder, step = _builder(), _a_step(Bytes(data))
    try:
        batch = builder.build(step)
    except ValueError:
        return
    rows = batch.rows
    columns = [getattr(rows, field.name) for field in dataclasses.fields(rows)]
    assert {len(column) for column in columns} == {len(step.slots)}
    if not len(rows.slots):
        return
    assert 0 <= rows.slots.min() <= rows.slots.max() < NUM_SLOTS
    assert len(np.unique(rows.slots)) == len(rows.slots)
    assert rows.positions.min() >= 0
    assert rows.num_tokens.min() >= 1
    # What a row writes has a place in each of its own tables.
    lengths_GS = builder.tables.lengths_GS
    assert (rows.lengths <= lengths_GS[:, rows.slots] * BLOCK).all()
    assert lengths_GS.max() <= MAX_BLOCKS
    assert batch.forward.attention.positions_T.max() < MAX_BLOCKS * BLOCK
