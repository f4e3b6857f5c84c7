"""Which sequences run in the next step, over all replicas, and what a step's results mean.

Owns the queue, admission, preemption and the open requests. Knows no torch, no clock but the one
it is told, no transport and no pipeline depth: any number of steps may be in flight, and their
results arrive in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from frontend.blocks import BlockPool
from frontend.errors import Code, RequestError
from frontend.limits import Limits, SchedulerLoad, check_fits
from frontend.logprobs import LogprobReader
from frontend.replica import Replica
from frontend.request import Request
from frontend.sequence import Phase, Sequence
from frontend.step import Drawn, LogprobColumns, Slice, Step

RETRY_AFTER_SECONDS = 1.0
"""What a caller is told who finds the queue full."""

BUSIER_SHARE = 8
"""A replica is clearly busier when it runs max_batch_size / BUSIER_SHARE more than another."""


class Scheduler:
    """Continuous batching: decodes first, prompts in chunks beside them, admission in order.

    ``schedule`` and ``complete`` come in pairs, in the same order, with any number of steps
    between. State runs ahead of results: a sequence whose prompt is scheduled decodes in the next
    step, since its token is already where the workers need it.

    Attributes:
        earliest_deadline: no waiting request's queue deadline is before it.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._replicas = [
            Replica(
                index,
                BlockPool(limits.num_blocks, limits.block_size),
                num_slots=limits.max_batch_size,
                enable_prefix_cache=limits.enable_prefix_cache,
            )
            for index in range(limits.num_replicas)
        ]
        self._waiting: deque[Sequence] = deque()
        self._open: dict[str, Sequence] = {}
        self._num_draining = 0
        self.earliest_deadline = float("inf")
        self._num_submitted = 0
        self._scheduled_step = 0
        self._completed_step = 0
        self._preemptions = 0
        self._prefix_query_tokens = 0
        self._prefix_hit_tokens = 0
        self._generated_tokens = 0

    @property
    def generated_tokens(self) -> int:
        """Tokens that requests have been given, since the start."""
        return self._generated_tokens

    def submit(self, request: Request) -> None:
        """Put a request at the end of the queue.

        Raises:
            RequestError: its id is taken, it could never run, or the queue is full.
        """
        limits = self.limits
        if request.id in self._open:
            raise RequestError(
                Code.ALREADY_EXISTS,
                f"request_id {request.id!r} is in use by a live request; choose another",
                reason="DUPLICATE_REQUEST_ID",
                field="request_id",
            )
        check_fits(limits, len(request.prompt_ids), request.stops.max_new_tokens)
        num_running = sum(replica.num_running for replica in self._replicas)
        free_slots = limits.max_batch_size * limits.num_replicas - num_running
        if len(self._waiting) >= limits.max_queued_requests + free_slots:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"the queue is full: {num_running} requests run, {len(self._waiting)} wait, "
                f"at most {limits.max_queued_requests} may; try again later",
                reason="QUEUE_FULL",
                retry_after=RETRY_AFTER_SECONDS,
            )
        sequence = Sequence(request, self._num_submitted, limits.max_model_len)
        self._num_submitted += 1
        self._open[request.id] = sequence
        self._waiting.append(sequence)
        self.earliest_deadline = min(self.earliest_deadline, request.queue_deadline)

    def abort(self, request_id: str, now: float) -> bool:
        """End a request with what it has; false when there is none of this id."""
        sequence = self._open.get(request_id)
        if sequence is None:
            return False
        self._withdraw(sequence, sequence.phase)
        sequence.abort(now)
        return True

    def fail_all(self, error_for: Callable[[Request], RequestError], now: float) -> None:
        """End every open request with the error made for it."""
        for sequence in list(self._open.values()):
            self._withdraw(sequence, sequence.phase)
            sequence.fail(error_for(sequence.request), now)

    def expire(self, now: float) -> None:
        """Fail the requests whose queue deadline passed before they were ever admitted."""
        if now < self.earliest_deadline:
            return
        fresh = [seq for seq in self._waiting if not seq.request.admitted]
        for sequence in fresh:
            request = sequence.request
            if request.queue_deadline > now:
                continue
            self._withdraw(sequence, sequence.phase)
            error = RequestError(
                Code.DEADLINE_EXCEEDED,
                f"not admitted within max_queue_time, {len(self._waiting)} requests still wait; "
                "raise it or try again later",
                reason="QUEUE_DEADLINE",
                field="max_queue_time",
            )
            sequence.fail(error, now)
        self.earliest_deadline = min(
            (seq.request.queue_deadline for seq in fresh if seq.phase is Phase.WAITING),
            default=float("inf"),
        )

    def schedule(self, now: float) -> Step | None:
        """The next step, or None when nothing can run before results or requests arrive."""
        self.expire(now)
        step_id = self._scheduled_step + 1
        budget = self.limits.max_num_batched_tokens
        slices = [Slice() for _ in self._replicas]
        for replica, part in zip(self._replicas, slices, strict=True):
            for victim in replica.schedule_decodes(part, step_id):
                self._preempt(victim)
            replica.schedule_prefills(part, budget, step_id)
        self._admit(slices, step_id, now)
        max_replica_tokens = max(part.total_tokens for part in slices)
        if max_replica_tokens == 0:
            return None
        self._scheduled_step = step_id
        return Step(step_id, slices, max_replica_tokens)

    def complete(self, step: Step, drawn_per_replica: list[Drawn], now: float) -> None:
        """Take in the oldest outstanding step's results.

        Args:
            step: what ``schedule`` returned.
            drawn_per_replica: for each slice what its draws gave.
            now: time.monotonic().
        """
        assert step.step_id == self._completed_step + 1, "steps complete in their order"
        self._completed_step = step.step_id
        drained: list[Sequence] = []
        columns = zip(self._replicas, step.slices, drawn_per_replica, strict=True)
        for replica, part, drawn in columns:
            tokens = drawn.tokens
            assert len(tokens) == part.num_draws, f"{len(tokens)} of {part.num_draws} tokens"
            logprobs = LogprobReader(drawn.logprobs) if drawn.logprobs.logprobs else None
            self._complete_decodes(replica, part, tokens, logprobs, now)
            if drawn.prompt_logprobs.logprobs:
                _take_prompt_logprobs(part, drawn.prompt_logprobs)
            self._complete_prefills(replica, part, tokens[part.num_decodes :], logprobs, now)
            drained += [
                seq
                for seq in part.sequences
                if seq.phase is Phase.DRAINING and seq.last_step == step.step_id
            ]
        for sequence in drained:
            self._num_draining -= 1
            self._requeue(sequence)

    def load(self) -> SchedulerLoad:
        """Where things stand."""
        pools = [replica.pool for replica in self._replicas]
        num_free = sum(pool.num_free for pool in pools)
        unscheduled = sum(len(seq.tokens) for seq in self._waiting)
        unscheduled += sum(replica.num_unscheduled for replica in self._replicas)
        return SchedulerLoad(
            running_requests=sum(replica.num_running for replica in self._replicas),
            queued_requests=len(self._waiting) + self._num_draining,
            kv_cache_usage=1 - num_free / sum(pool.size for pool in pools),
            queued_prompt_tokens=unscheduled,
            preemptions=self._preemptions,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            generated_tokens=self._generated_tokens,
        )

    def _admit(self, slices: list[Slice], step_id: int, now: float) -> None:
        """Admit from the head of the queue while it fits; nobody overtakes.

        Nor does anybody overtake a preempted sequence whose results are still in flight.
        """
        budget = self.limits.max_num_batched_tokens
        while self._waiting and not self._num_draining:
            sequence = self._waiting[0]
            choice = self._choose_replica(sequence, slices)
            if choice is None:
                return
            replica, matched = choice
            self._waiting.popleft()
            part = slices[replica.index]
            replica.admit(sequence, matched, part, budget - part.total_tokens, step_id)
            request = sequence.request
            if not request.admitted:
                request.admitted = now
                request.cached_tokens = len(matched) * self.limits.block_size
                self._prefix_query_tokens += len(request.prompt_ids)
                self._prefix_hit_tokens += request.cached_tokens
                request.output.admit()

    def _choose_replica(
        self, sequence: Sequence, slices: list[Slice]
    ) -> tuple[Replica, list[int]] | None:
        """Of the replicas with room the one with the longest prefix, unless clearly busier."""
        budget = self.limits.max_num_batched_tokens
        choices = []
        for replica, part in zip(self._replicas, slices, strict=True):
            if part.total_tokens < budget:
                matched = replica.match(sequence)
                if replica.has_room(sequence, matched):
                    choices.append((replica, matched))
        if not choices:
            return None
        slack = max(1, self.limits.max_batch_size // BUSIER_SHARE)
        busiest = min(replica.num_running for replica, _ in choices) + slack
        fair = [choice for choice in choices if choice[0].num_running <= busiest]
        return min(fair, key=lambda choice: (-len(choice[1]), choice[0].num_running))

    def _preempt(self, victim: Sequence) -> None:
        """Let a sequence that lost its blocks wait again, once its results have arrived."""
        self._preemptions += 1
        victim.request.preemptions += 1
        if victim.last_step > self._completed_step:
            self._num_draining += 1
        else:
            self._requeue(victim)

    def _requeue(self, sequence: Sequence) -> None:
        """Put a preempted sequence back where its age says: before all that were never admitted."""
        sequence.phase = Phase.WAITING
        waiting = self._waiting
        place = 0
        while place < len(waiting) and waiting[place].order < sequence.order:
            place += 1
        waiting.insert(place, sequence)

    def _withdraw(self, sequence: Sequence, phase: Phase) -> None:
        """Take a sequence that is over, or about to be, out of where it was in ``phase``."""
        del self._open[sequence.request.id]
        if phase is Phase.WAITING:
            self._waiting.remove(sequence)
        elif phase is Phase.DRAINING:
            self._num_draining -= 1
        else:
            self._replicas[sequence.replica].release(sequence)

    def _complete_decodes(
        self,
        replica: Replica,
        part: Slice,
        tokens: list[int],
        logprobs: LogprobReader | None,
        now: float,
    ) -> None:
        block_size = self.limits.block_size
        running, done = Phase.RUNNING, Phase.DONE
        num_taken = 0
        # Decodes draw first, so the shorter list of rows ends the loop.
        for sequence, token in zip(part.sequences[: part.num_decodes], tokens, strict=False):
            phase = sequence.phase
            beside = logprobs.read(sequence) if logprobs is not None else None
            if phase is done:
                continue
            # What led to no token is not for others to reuse.
            if phase is running and token >= 0 and len(sequence.tokens) % block_size == 0:
                replica.publish(sequence, len(sequence.tokens))
            num_taken += token >= 0
            if sequence.take(token, now, beside):
                self._withdraw(sequence, phase)
        self._generated_tokens += num_taken

    def _complete_prefills(
        self,
        replica: Replica,
        part: Slice,
        tokens: list[int],
        logprobs: LogprobReader | None,
        now: float,
    ) -> None:
        drawn = iter(tokens)
        for row in range(part.num_decodes, len(part.sequences)):
            sequence = part.sequences[row]
            phase = sequence.phase
            index = row - part.num_decodes
            token = next(drawn) if part.draws[index] else None
            beside = logprobs.read(sequence) if logprobs is not None and part.draws[index] else None
            if phase is Phase.RUNNING and (token is None or token >= 0):
                replica.publish(sequence, part.positions[row] + part.num_tokens[index])
            if token is not None and phase is not Phase.DONE:
                self._generated_tokens += token >= 0
                if sequence.take(token, now, beside):
                    self._withdraw(sequence, phase)


def _take_prompt_logprobs(part: Slice, columns: LogprobColumns) -> None:
    """Give each prompt that asked the log-probabilities of what this step computed of it."""
    reader = LogprobReader(columns)
    for row in range(part.num_decodes, len(part.sequences)):
        sequence = part.sequences[row]
        if not sequence.wants_prompt_logprobs:
            continue
        start, num_tokens = part.positions[row], part.num_tokens[row - part.num_decodes]
        last = min(start + num_tokens, sequence.num_prompt - 1)
        read = [reader.read(sequence) for _ in range(start, last)]
        sequence.request.prompt_logprobs += [each for each in read if each is not None]
