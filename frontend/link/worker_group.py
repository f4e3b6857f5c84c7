"""The frontend's end of the worker link: one Execute stream per rank.

Connects to the ranks, checks that they belong together, sends steps and receives results. Knows
nothing of requests. A failure on one rank fails the whole group.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from frontend.link.group_check import check_agreement, check_first, group_info
from frontend.link.rank_channel import GroupLost, RankChannel
from frontend.link.result_check import ExpectedColumns, LogprobSlots, drawn_of, stats_problem
from frontend.scheduler.step import NewSequence, ReplicaBatch, Step, StepResults, StepStats
from switchyard.worker.link import local_address
from switchyard.worker.v1 import worker_pb2

__all__ = ["GroupLost", "WorkerGroup"]

HELLO_SECONDS = 10.0
"""How long ranks may take to open their streams once they are described."""

_T = TypeVar("_T")


class WorkerGroup:
    """All ranks of one group, in rank order; ``connect`` makes one.

    Attributes:
        info: what the group is and can hold.
        description: rank 0's, which the next group's is compared with.
        lost: set, with a `GroupLost`, when any stream breaks.
    """

    def __init__(
        self,
        ranks: Sequence[RankChannel],
        description: worker_pb2.DescribeResponse,
        streams: AsyncExitStack,
    ) -> None:
        self.info = info = group_info(description)
        self.description = description
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._ranks = ranks
        self._streams = streams
        self._logprob_slots = [LogprobSlots() for _ in range(max(1, info.data_parallel_size))]
        self._expected: deque[tuple[int, list[ExpectedColumns]]] = deque()
        self._readers = [asyncio.create_task(self._read(rank)) for rank in ranks]

    @classmethod
    async def connect(
        cls,
        addresses: Sequence[str],
        *,
        startup_timeout: float = 600.0,
        secret: str | None = None,
        epoch: int | None = None,
    ) -> WorkerGroup:
        """Wait for all ranks, check that they agree, open their streams.

        Args:
            addresses: one for each machine: ``host:port`` of its first rank, whose local rank l
                listens on port + l, or ``unix:/path/rank-{rank}.sock``.
            startup_timeout: seconds until ranks that are not there are given up.
            secret: the link's secret; None: there is none.
            epoch: newer than any that the ranks have seen; None: the time.

        Raises:
            GroupLost: a rank is not reachable in time, or breaks its stream.
            ValueError: the ranks do not belong together, or speak another protocol.
        """
        deadline = time.monotonic() + startup_timeout
        async with AsyncExitStack() as stack:

            def rank_at(number: int, address: str) -> RankChannel:
                rank = RankChannel(number, address, secret=secret)
                stack.push_async_callback(rank.close)
                return rank

            ranks = [rank_at(0, local_address(addresses[0], 0))]
            first = await ranks[0].describe(deadline)
            check_first(first, addresses)
            for number in range(1, first.world_size):
                machine, local = divmod(number, first.local_world_size)
                ranks.append(rank_at(number, local_address(addresses[machine], local)))
            others = await asyncio.gather(*(rank.describe(deadline) for rank in ranks[1:]))
            check_agreement([first, *others], ranks)
            # Hello has its own time-out, separate from the one of the start.
            # Rank 0 first: of two frontends that compete, the loser has opened no other rank.
            deadline = time.monotonic() + HELLO_SECONDS
            newest = epoch or time.time_ns()
            num_steps = [await ranks[0].open(newest, deadline)]
            opening = (rank.open(newest, deadline) for rank in ranks[1:])
            num_steps += await asyncio.gather(*opening)
            if len(set(num_steps)) > 1:
                await _say_goodbye(ranks, end_ranks=True)
                raise GroupLost(f"the ranks have run {num_steps} steps, not all the same")
            return cls(ranks, first, stack.pop_all())

    async def send(self, step: Step) -> None:
        """Write the step to every rank; all ranks of a replica get its batch.

        Raises:
            GroupLost: a stream is broken.
        """
        pairs = zip(self._logprob_slots, step.batches, strict=True)
        self._expected.append((step.step_id, [slots.expected(batch) for slots, batch in pairs]))
        size = self.info.tensor_parallel_size
        messages = [_encode(step, batch) for batch in step.batches]
        writes = [_begun(rank.write(messages[rank.number // size])) for rank in self._ranks]
        await self._unless_lost(asyncio.gather(*writes))

    async def receive(self) -> StepResults:
        """The results of the oldest outstanding step.

        Returns:
            For each replica the tokens of its first rank, and the stats over all ranks.

        Raises:
            GroupLost: a stream is broken, or a result is of another step, or cannot be true.
        """
        step_id, expected = self._expected.popleft()
        size = self.info.tensor_parallel_size
        results = []
        for rank in self._ranks:
            result = await rank.results.get()
            if isinstance(result, GroupLost):
                raise result
            if result.step_id != step_id:
                raise self._lose(rank, f"answered step {result.step_id}, expected {step_id}")
            problem = stats_problem(result)
            if not problem and rank.number % size == 0:
                problem = expected[rank.number // size].problem(result, self.info.vocab_size)
            if problem:
                raise self._lose(rank, f"step {step_id} {problem}")
            results.append(result)
        return StepResults([drawn_of(each) for each in results[::size]], _stats_of(results))

    def lose(self, cause: str) -> None:
        """Give the group up: everything that waits for it gets a `GroupLost`."""
        self._fail(GroupLost(cause))

    async def expert_load(self) -> list[worker_pb2.GetExpertLoadResponse]:
        """What each rank counted for each expert, in rank order.

        Raises:
            GroupLost: the group is lost, or a rank does not answer.
        """
        return await self._unless_lost(
            asyncio.gather(*(rank.expert_load() for rank in self._ranks))
        )

    async def close(self) -> None:
        """End all streams: the ranks of a group that is lost exit, others wait for a frontend."""
        await _say_goodbye(self._ranks, end_ranks=self.lost.done())
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._streams.aclose()

    async def _unless_lost(self, work: asyncio.Future[_T]) -> _T:
        """The result of ``work``, which would never end if a rank is gone or stands still.

        Raises:
            GroupLost: the group is lost.
        """
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            done, _ = await asyncio.wait((work, self.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if self.lost.done() and (work not in done or work.exception()):
            raise self.lost.result()
        return work.result()

    async def _read(self, rank: RankChannel) -> None:
        """Queue one rank's results until its stream ends."""
        try:
            while True:
                rank.results.put_nowait(await rank.read_result())
        except GroupLost as error:
            self._fail(error)

    def _lose(self, rank: RankChannel, cause: str) -> GroupLost:
        error = GroupLost(f"{rank}: {cause}")
        self._fail(error)
        return error

    def _fail(self, error: GroupLost) -> None:
        """Pass the first error to everything that waits for a rank."""
        if not self.lost.done():
            self.lost.set_result(error)
            for rank in self._ranks:
                rank.results.put_nowait(error)


def _begun(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that has begun, where Python can (3.12): its message leaves before streams that the
    last results woke have their turn."""
    if sys.version_info < (3, 12):
        return asyncio.create_task(work)
    return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)


async def _say_goodbye(ranks: Sequence[RankChannel], *, end_ranks: bool) -> None:
    await asyncio.gather(*(rank.say_goodbye(end_rank=end_ranks) for rank in ranks))


def _stats_of(results: Sequence[worker_pb2.StepResult]) -> StepStats:
    """One step's stats over the ranks."""
    return StepStats(
        device_seconds=max(result.device_seconds for result in results),
        floor_seconds=max(result.floor_seconds for result in results),
        idle_seconds=min(result.idle_seconds for result in results),
        bytes_moved=sum(result.bytes_moved for result in results),
        flops=sum(result.flops for result in results),
    )


def _encode(step: Step, batch: ReplicaBatch) -> bytes:
    """One replica's ExecuteRequest, serialized."""
    message = worker_pb2.StepRequest(
        step_id=step.step_id,
        new_sequences=[_new_sequence(new) for new in batch.new_sequences],
        slots=batch.slots,
        positions=batch.positions,
        num_decodes=batch.num_decodes,
        num_tokens=batch.num_tokens,
        token_ids=batch.token_ids,
        draws=batch.draws,
        num_new_blocks=batch.num_new_blocks,
        new_blocks=batch.new_blocks,
        max_replica_tokens=step.max_replica_tokens,
        decode_only=step.decode_only,
        masked_draws=batch.masked_draws,
        draw_masks=b"".join(batch.draw_masks),
        mask_triggers=batch.mask_triggers if max(batch.mask_triggers, default=-1) >= 0 else (),
        keep=_kept_states(batch) if batch.keep_rows else None,
    )
    return worker_pb2.ExecuteRequest(step=message).SerializeToString()


def _kept_states(batch: ReplicaBatch) -> worker_pb2.KeptStates:
    return worker_pb2.KeptStates(
        rows=batch.keep_rows, positions=batch.keep_positions, states=batch.keep_states
    )


def _new_sequence(new: NewSequence) -> worker_pb2.NewSequence:
    sampling = new.sampling
    return worker_pb2.NewSequence(
        slot=new.slot,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        sample_index=sampling.sample_index,
        suppressed_token_ids=new.suppressed_token_ids,
        suppress_until=new.suppress_until,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        bias_token_ids=[token for token, _ in sampling.logit_bias],
        bias_values=[bias for _, bias in sampling.logit_bias],
        allowed_token_ids=sampling.allowed_token_ids,
        banned_token_ids=sampling.banned_token_ids,
        num_logprobs=sampling.num_logprobs,
        prompt_logprobs=new.prompt_logprobs,
        history_token_ids=new.history,
        from_state=new.from_state + 1,
        num_prompt_tokens=new.num_prompt if new.history else 0,
    )
