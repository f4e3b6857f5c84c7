"""The worker link against ranks served by grpc.aio in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from frontend.config import FrontendConfig
from frontend.engine.engine import Engine
from frontend.group_info import GroupInfo
from frontend.link import rank_channel, worker_group
from frontend.link.group_check import group_info
from frontend.link.reconnect import GroupManager
from frontend.link.worker_group import GroupLost, WorkerGroup
from frontend.requests.request import SamplingParams
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import NewSequence, ReplicaBatch, Step, StepStats
from switchyard.worker.link import PROTOCOL, local_address
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc
from tests.frontend.builders import LIMITS, expected_output, make_request
from tests.frontend.fake_workers import FakeReplica
from tests.waiting import turns, until

Answer = Callable[[worker_pb2.StepRequest], worker_pb2.StepResult]


class FakeRank(worker_pb2_grpc.WorkerServiceServicer):
    """One rank: answers steps with ``answer``, keeps what it was sent.

    Attributes:
        num_steps: steps that it says it has run.
        goodbyes: of its streams, each with its ``end_rank``.
    """

    def __init__(self, info: worker_pb2.DescribeResponse, answer: Answer) -> None:
        self.info = info
        self.answer = answer
        self.received: list[bytes] = []
        self.epochs: list[int] = []
        self.num_steps = 0
        self.num_described = 0
        self.goodbyes: list[bool] = []

    async def Describe(self, request: Any, context: Any) -> worker_pb2.DescribeResponse:  # noqa: N802
        self.num_described += 1
        return self.info

    async def Execute(  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.ExecuteRequest], context: Any
    ) -> AsyncIterator[worker_pb2.ExecuteResponse]:
        async for request in requests:
            if request.WhichOneof("message") == "hello":
                assert request.hello.protocol == PROTOCOL
                self.epochs.append(request.hello.epoch)
                welcome = {"epoch": request.hello.epoch, "num_steps": self.num_steps}
                yield worker_pb2.ExecuteResponse(welcome=welcome)
                continue
            if request.WhichOneof("message") == "goodbye":
                self.goodbyes.append(request.goodbye.end_rank)
                return
            self.received.append(request.step.SerializeToString())
            if request.step.step_id == 666:
                await context.abort(grpc.StatusCode.INTERNAL, "out of luck")
            yield worker_pb2.ExecuteResponse(result=self.answer(request.step))


def rows_drawn(request: worker_pb2.StepRequest) -> int:
    return request.num_decodes + sum(request.draws)


def info(rank: int, dp: int = 1, tp: int = 1, **other: Any) -> worker_pb2.DescribeResponse:
    return worker_pb2.DescribeResponse(
        **{
            "protocol": PROTOCOL,
            "rank": rank,
            "world_size": dp * tp,
            "local_world_size": dp * tp,
            "tensor_parallel_size": tp,
            "data_parallel_size": dp,
            "num_blocks": 64,
            "vocab_size": 1000,
            "eos_token_ids": [1],
            "startup_seconds": float(rank),
            "bytes_per_second": 1e12 * rank,
            "flops_per_second": 1e15 * rank,
            **other,
        }
    )


class Ranks:
    """Fake ranks on unix sockets in a folder."""

    def __init__(self, folder: Path, dp: int = 1, tp: int = 1) -> None:
        self.address = f"unix:{folder}/rank-{{rank}}.sock"
        self.dp, self.tp = dp, tp
        self.ranks = [FakeRank(info(rank, dp, tp), self.answer_of(rank)) for rank in range(dp * tp)]
        self.servers: list[grpc.aio.Server] = []
        self.stack = AsyncExitStack()

    def answer_of(self, rank: int) -> Answer:
        """Tokens 100 · rank + row from the first rank of a replica, nothing from the others; and
        of `a_batch` the log-probabilities of its new sequence."""

        def answer(request: worker_pb2.StepRequest) -> worker_pb2.StepResult:
            count = rows_drawn(request) if rank % self.tp == 0 else 0
            tokens = [100 * rank + row for row in range(count)]
            result = worker_pb2.StepResult(step_id=request.step_id, token_ids=tokens)
            if request.new_sequences:
                result.prompt_logprobs.append(-1.0)
                result.prompt_top_token_ids.extend([4, 5])
                result.prompt_top_logprobs.extend([-1.5, -2.0])
            return result

        return answer

    async def start(self, number: int) -> None:
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self.ranks[number], server)
        server.add_insecure_port(local_address(self.address, number))
        await server.start()
        self.stack.push_async_callback(server.stop, None)
        self.servers.append(server)

    async def __aenter__(self) -> Ranks:
        for number in range(len(self.servers), len(self.ranks)):
            await self.start(number)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def connect(self) -> WorkerGroup:
        group = await WorkerGroup.connect([self.address], startup_timeout=5)
        self.stack.push_async_callback(group.close)
        return group


def a_batch(first: int) -> ReplicaBatch:
    """Two decodes and two prefill rows, of which one draws."""
    return ReplicaBatch(
        new_sequences=[
            NewSequence(
                slot=first + 2,
                sampling=SamplingParams(
                    temperature=0.5,
                    top_p=0.9,
                    top_k=7,
                    min_p=0.25,
                    seed=2**64 - 1,
                    repetition_penalty=1.5,
                    presence_penalty=0.5,
                    frequency_penalty=-0.5,
                    logit_bias=((4, 1.5), (9, -100.0)),
                    allowed_token_ids=(4, 9, 11),
                    banned_token_ids=(2, 3),
                    num_logprobs=3,
                    sample_index=2,
                ),
                suppressed_token_ids=[3, 5],
                suppress_until=9,
                history=[10, 11, 12],
                num_prompt=2,
                prompt_logprobs=True,
                from_state=4,
            )
        ],
        slots=[first, first + 1, first + 2, first + 3],
        positions=[4, 5, 0, 16],
        num_decodes=2,
        num_tokens=[3, 1],
        token_ids=[10, 11, 12, 13],
        draws=[False, True],
        num_new_blocks=[0, 1, 1, 0],
        new_blocks=[8, 9],
        total_tokens=6,
        num_draws=3,
    )


async def tokens_of(group: WorkerGroup) -> list[list[int]]:
    return [drawn.tokens for drawn in (await group.receive()).drawn]


async def test_every_rank_gets_its_replica_s_batch_and_first_ranks_answer(tmp_path: Path) -> None:
    async with Ranks(tmp_path, dp=2, tp=2) as ranks:
        group = await ranks.connect()
        assert group.description == ranks.ranks[0].info
        assert group.info == group_info(ranks.ranks[0].info)
        for step_id in (1, 2):
            await group.send(Step(step_id, [a_batch(0), ReplicaBatch()], 6))
        assert await tokens_of(group) == [[0, 1, 2], []]
        assert await tokens_of(group) == [[0, 1, 2], []]
        await group.send(Step(3, [ReplicaBatch(), a_batch(4)], 6))
        assert await tokens_of(group) == [[], [200, 201, 202]]
        assert len({rank.epochs[0] for rank in ranks.ranks}) == 1
        received = [rank.received for rank in ranks.ranks]
    assert received[0] == received[1]
    assert received[2] == received[3]
    sent = worker_pb2.StepRequest.FromString(received[0][0])
    batch = a_batch(0)
    assert (sent.step_id, sent.max_replica_tokens, sent.num_decodes) == (1, 6, 2)
    for name in ("slots", "positions", "num_tokens", "token_ids", "draws", "new_blocks"):
        assert list(getattr(sent, name)) == getattr(batch, name)
    assert list(sent.num_new_blocks) == batch.num_new_blocks
    [new] = sent.new_sequences
    assert (new.slot, new.seed, new.top_k, new.suppress_until) == (2, 2**64 - 1, 7, 9)
    assert (new.temperature, new.min_p, list(new.suppressed_token_ids)) == (0.5, 0.25, [3, 5])
    assert new.top_p == pytest.approx(0.9)
    assert (new.repetition_penalty, new.presence_penalty, new.frequency_penalty) == (1.5, 0.5, -0.5)
    assert (list(new.bias_token_ids), list(new.bias_values)) == ([4, 9], [1.5, -100.0])
    assert (list(new.allowed_token_ids), list(new.banned_token_ids)) == ([4, 9, 11], [2, 3])
    assert (new.num_logprobs, new.prompt_logprobs, new.sample_index) == (3, True, 2)
    assert (list(new.history_token_ids), new.num_prompt_tokens) == ([10, 11, 12], 2)
    assert new.from_state == 5
    empty = worker_pb2.StepRequest.FromString(received[2][0])
    assert empty == worker_pb2.StepRequest(step_id=1, max_replica_tokens=6, decode_only=False)


async def test_measures_are_of_the_group(tmp_path: Path) -> None:
    async with Ranks(tmp_path, tp=2) as ranks:
        group = await ranks.connect()
        ranks.ranks[0].answer = lambda request: worker_pb2.StepResult(
            step_id=request.step_id,
            device_seconds=0.5,
            floor_seconds=0.25,
            idle_seconds=0.125,
            bytes_moved=1e13,
            flops=1e14,
        )
        ranks.ranks[1].answer = lambda request: worker_pb2.StepResult(
            step_id=request.step_id,
            device_seconds=0.25,
            floor_seconds=0.375,
            idle_seconds=0.375,
            bytes_moved=3e13,
            flops=2e14,
        )
        await group.send(Step(1, [ReplicaBatch()], 0))
        assert (await group.receive()).stats == StepStats(
            device_seconds=0.5,
            floor_seconds=0.375,
            idle_seconds=0.125,
            bytes_moved=4e13,
            flops=3e14,
        )


async def test_workers_that_measure_nothing(tmp_path: Path) -> None:
    async with Ranks(tmp_path) as ranks:
        group = await ranks.connect()
        await group.send(Step(1, [ReplicaBatch()], 0))
        assert (await group.receive()).stats == StepStats()


async def test_a_step_says_whether_any_replica_prefills(tmp_path: Path) -> None:
    async with Ranks(tmp_path, dp=2) as ranks:
        group = await ranks.connect()
        decode = ReplicaBatch(
            slots=[0], positions=[4], num_decodes=1, num_new_blocks=[0], total_tokens=1, num_draws=1
        )
        for step_id, second in enumerate((ReplicaBatch(), a_batch(0), decode), 1):
            await group.send(Step(step_id, [decode, second], second.total_tokens))
            await group.receive()
        for rank in ranks.ranks:
            sent = [worker_pb2.StepRequest.FromString(each) for each in rank.received]
            assert [step.decode_only for step in sent] == [True, False, True]


async def test_epochs_grow(tmp_path: Path) -> None:
    async with Ranks(tmp_path) as ranks:
        for _ in range(2):
            await (await ranks.connect()).close()
        first, second = ranks.ranks[0].epochs
        assert first < second


async def test_epochs_grow_although_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Ranks(tmp_path) as ranks:
        workers = GroupManager(
            FrontendConfig(model=tmp_path, served_name="m", workers=(ranks.address,)), None
        )
        for hour in (2, 1):
            monkeypatch.setattr("time.time_ns", lambda hour=hour: hour * 3600 * 10**9)
            await workers.connect()
            await workers.close()
        first, second = ranks.ranks[0].epochs
        assert first < second


async def test_ranks_that_are_ready_late_have_time_to_answer_hello(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is left over a Hello starts again, which takes minutes."""
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed, time_ns=time.time_ns)
    for module in (worker_group, rank_channel):
        monkeypatch.setattr(module, "time", clock)

    class Late(FakeRank):
        async def Describe(self, request: Any, context: Any) -> worker_pb2.DescribeResponse:  # noqa: N802
            nonlocal passed
            passed = 5.0
            return await super().Describe(request, context)

    ranks = Ranks(tmp_path)
    ranks.ranks = [Late(info(0), ranks.answer_of(0))]
    async with ranks:
        group = await WorkerGroup.connect([ranks.address], startup_timeout=4.0)
        await group.close()
    assert ranks.ranks[0].goodbyes == [False]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED])
async def test_ranks_that_will_never_answer_are_not_asked_again(
    tmp_path: Path, code: grpc.StatusCode
) -> None:
    class Refusing(FakeRank):
        async def Describe(self, request: Any, context: Any) -> worker_pb2.DescribeResponse:  # noqa: N802
            await context.abort(code, "no")
            raise AssertionError

    ranks = Ranks(tmp_path)
    ranks.ranks = [Refusing(info(0), ranks.answer_of(0))]
    async with ranks:
        with pytest.raises(ValueError, match=rf"rank 0 at unix.* {code.name} no"):
            await ranks.connect()


async def test_a_rank_that_reads_nothing_holds_no_send_of_a_group_that_is_given_up(
    tmp_path: Path,
) -> None:
    class Deaf(FakeRank):
        async def Execute(self, requests: Any, context: Any) -> Any:  # noqa: N802
            first = await anext(aiter(requests))
            welcome = worker_pb2.Welcome(epoch=first.hello.epoch)
            yield worker_pb2.ExecuteResponse(welcome=welcome)
            await asyncio.Event().wait()

    ranks = Ranks(tmp_path)
    ranks.ranks = [Deaf(info(0), ranks.answer_of(0))]
    big = dataclasses.replace(a_batch(0), token_ids=[10**6] * 10**6)
    async with ranks:
        group = await ranks.connect()
        for step_id in range(1, 20):
            sending = asyncio.create_task(group.send(Step(step_id, [big], 6)))
            if not (await asyncio.wait([sending], timeout=0.5))[0]:
                break
        assert not sending.done(), "the link holds whatever it is sent"
        group.lose("step 1 is not answered")
        async with asyncio.timeout(30):
            with pytest.raises(GroupLost, match="step 1 is not answered"):
                await sending


async def test_of_two_frontends_the_second_leaves_the_other_ranks_alone(tmp_path: Path) -> None:
    """Else each of them would get some of the ranks, and all would have to start again."""

    class Taken(FakeRank):
        async def Execute(self, requests: Any, context: Any) -> Any:  # noqa: N802
            await asyncio.sleep(0.2)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "serves a frontend")
            yield

    ranks = Ranks(tmp_path, tp=2)
    ranks.ranks[0] = Taken(info(0, tp=2), ranks.answer_of(0))
    async with ranks:
        with pytest.raises(GroupLost, match=r"rank 0 at .*serves a frontend"):
            await ranks.connect()
        assert ranks.ranks[1].epochs == []


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_goodbye_says_whether_the_ranks_are_wanted_again(
    tmp_path: Path, is_lost: bool
) -> None:
    async with Ranks(tmp_path, tp=2) as ranks:
        group = await ranks.connect()
        if is_lost:
            group.lose("step 1 is not answered")
        await group.close()
        assert [rank.goodbyes for rank in ranks.ranks] == [[is_lost], [is_lost]]


async def test_ranks_that_have_run_different_steps_are_given_up(tmp_path: Path) -> None:
    async with Ranks(tmp_path, tp=2) as ranks:
        ranks.ranks[0].num_steps, ranks.ranks[1].num_steps = 8, 7
        with pytest.raises(GroupLost, match=r"have run \[8, 7\] steps"):
            await ranks.connect()
        assert [rank.goodbyes for rank in ranks.ranks] == [[True], [True]]
        ranks.ranks[1].num_steps = 8
        await (await ranks.connect()).close()


async def test_waits_for_ranks_that_come_later(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, tp=2)
    connecting = asyncio.create_task(ranks.connect())
    await turns()
    await ranks.start(0)
    await until(lambda: ranks.ranks[0].num_described)
    await turns()
    assert not connecting.done()
    async with ranks:
        group = await connecting
        assert group.info.world_size == 2


async def test_ranks_that_never_come_are_named(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/rank-{{rank}}.sock"
    with pytest.raises(GroupLost, match=r"rank 0 at unix.* cannot be reached.*workers running"):
        await WorkerGroup.connect([address], startup_timeout=0.3)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (info(1, tp=2, num_blocks=63), "rank 1 at .* has num_blocks 63, rank 0 has 64"),
        (info(1, tp=2, protocol=PROTOCOL + 1), "rank 1 at .* has protocol"),
        (info(1, tp=2, graph_batch_sizes=[1, 2]), r"rank 1 at .* has graph_batch_sizes \[1, 2\]"),
        (info(1, tp=2, quantization="fp8"), "rank 1 at .* has quantization fp8, rank 0 has ;"),
        (info(0, tp=2), "says it is rank 0"),
    ],
)
async def test_ranks_that_disagree_are_refused(
    tmp_path: Path, second: worker_pb2.DescribeResponse, message: str
) -> None:
    ranks = Ranks(tmp_path, tp=2)
    ranks.ranks[1].info = second
    async with ranks:
        with pytest.raises(ValueError, match=message):
            await ranks.connect()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (info(0, protocol=99), "speak protocol 99 .*this frontend"),
        (info(0, tp=2, local_world_size=1), "2 ranks, 1 on each machine, but 1 worker address"),
    ],
)
async def test_first_rank_is_checked_before_the_others(
    tmp_path: Path, first: worker_pb2.DescribeResponse, message: str
) -> None:
    ranks = Ranks(tmp_path)
    ranks.ranks[0].info = first
    async with ranks:
        with pytest.raises(ValueError, match=message):
            await ranks.connect()


async def test_a_broken_stream_loses_the_group_and_names_rank_and_cause(tmp_path: Path) -> None:
    async with Ranks(tmp_path, dp=2) as ranks:
        group = await ranks.connect()
        ranks.ranks[0].answer = lambda request: worker_pb2.StepResult(step_id=request.step_id)

        async def step() -> None:
            """The first rank may answer before the other has been sent the step."""
            await group.send(Step(666, [ReplicaBatch(), ReplicaBatch()], 0))
            await group.receive()

        with pytest.raises(GroupLost, match=r"rank [01] at .*INTERNAL out of luck"):
            await step()
        assert isinstance(group.lost.result(), GroupLost)


async def test_loss_is_noticed_with_no_step_in_flight(tmp_path: Path) -> None:
    async with Ranks(tmp_path, tp=2) as ranks:
        group = await ranks.connect()
        await ranks.servers[1].stop(None)
        async with asyncio.timeout(1):
            error = await group.lost
        assert "rank 1 at" in str(error)
        with pytest.raises(GroupLost, match="rank 1 at"):
            await group.send(Step(1, [ReplicaBatch()], 0))
        with pytest.raises(GroupLost, match="rank 1 at"):
            await group.receive()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (worker_pb2.StepResult(step_id=7), "answered step 7, expected 1"),
        (worker_pb2.StepResult(step_id=1, token_ids=[1]), "step 1 drew 1 tokens, expected 3"),
    ],
)
async def test_wrong_answers_lose_the_group(
    tmp_path: Path, result: worker_pb2.StepResult, message: str
) -> None:
    async with Ranks(tmp_path) as ranks:
        ranks.ranks[0].answer = lambda _: result
        group = await ranks.connect()
        await group.send(Step(1, [a_batch(0)], 6))
        with pytest.raises(GroupLost, match=message):
            await group.receive()
        assert group.lost.done()


async def test_engine_over_the_real_link(tmp_path: Path) -> None:
    """The model of the fake workers, fed with messages instead of objects."""
    limits = dataclasses.replace(LIMITS, num_blocks=20)
    ranks = Ranks(tmp_path)
    replica = FakeReplica(limits)

    def answer(request: worker_pb2.StepRequest) -> worker_pb2.StepResult:
        names = [f.name for f in request.DESCRIPTOR.fields if f.is_repeated]
        columns = {name: list(getattr(request, name)) for name in names}
        total = request.num_decodes + sum(request.num_tokens)
        batch = ReplicaBatch(**columns, num_decodes=request.num_decodes, total_tokens=total)
        return worker_pb2.StepResult(step_id=request.step_id, token_ids=replica.run(batch))

    ranks.ranks[0].answer = answer
    async with ranks:
        engine = Engine(Scheduler(limits), await ranks.connect())
        running = asyncio.create_task(engine.run())
        requests = [make_request(f"r{n}", [n] * 9, max_new_tokens=9 + n) for n in range(8)]
        for request in requests:
            engine.submit(request)
        for request in requests:
            tokens: list[int] = []
            finished = None
            while finished is None:
                delta = await request.output.take()
                tokens += delta.token_ids
                finished = delta.finish_reason
            assert tokens == expected_output(request, limits)
        running.cancel()
        await asyncio.wait([running])


def test_the_frontend_knows_a_group_as_its_first_rank_describes_it() -> None:
    description = worker_pb2.DescribeResponse()
    expected: dict[str, Any] = {}
    for number, field in enumerate(dataclasses.fields(GroupInfo), 1):
        kind = type(getattr(description, field.name))
        if kind in (bool, int, float, str):
            expected[field.name] = kind(number)
            setattr(description, field.name, kind(number))
        else:
            expected[field.name] = (number, number + 1)
            getattr(description, field.name).extend(expected[field.name])
    assert group_info(description) == GroupInfo(**expected)


def test_local_addresses() -> None:
    assert local_address("10.0.0.1:7100", 3) == "10.0.0.1:7103"
    assert local_address("unix:/run/x/rank-{rank}.sock", 2) == "unix:/run/x/rank-2.sock"
    with pytest.raises(ValueError, match="must be host:port"):
        local_address("unix:/run/x.sock", 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin when they are due")
async def test_a_step_leaves_before_woken_streams_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    async with Ranks(tmp_path, tp=2) as ranks:
        group = await ranks.connect()
        write = rank_channel.RankChannel.write

        async def seen_write(self: rank_channel.RankChannel, message: bytes) -> None:
            seen.append(str(self).split(" at")[0])
            await write(self, message)

        monkeypatch.setattr(rank_channel.RankChannel, "write", seen_write)
        asyncio.get_running_loop().call_soon(seen.append, "stream")
        await group.send(Step(1, [a_batch(0)], 6))
        assert seen == ["rank 0", "rank 1", "stream"]
