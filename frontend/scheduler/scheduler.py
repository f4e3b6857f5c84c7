"""Which sequences run in the next step, over all replicas.

Owns the open requests, and when they are admitted and preempted. `replica.py` chooses whom to
preempt, `crash_recovery.py` who goes on when the workers were lost. Knows no torch, no text and no
transport. Callers pass the time. Any number of steps may be in flight; their results arrive in
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from frontend.errors import RequestError, duplicate_id
from frontend.requests.request import Request
from frontend.scheduler.admission_queue import AdmissionQueue, check_room, expired
from frontend.scheduler.crash_recovery import Quarantine, poison_error, why_lost
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.placement import choose_replica, make_replicas
from frontend.scheduler.prefix_log import PrefixLog
from frontend.scheduler.sequence import Phase, Sequence, check_fits
from frontend.scheduler.slot_shares import yielding_sequence
from frontend.scheduler.step import ReplicaBatch, Step
from frontend.scheduler.step_times import StepTimes
from frontend.scheduler.token_budget import Budget, budget_of


class Scheduler:
    """Continuous batching: decodes first, prompts in chunks beside them, admission in queue order.

    ``schedule`` and ``complete`` come in pairs, in the same order, with any number of steps
    between. State runs ahead of results: a sequence whose prompt is scheduled decodes in the next
    step, since its token is already where the workers need it.

    Attributes:
        earliest_deadline: a lower bound of the queue deadlines of all waiting requests.
        preemptions: times a sequence lost its blocks, since the start.
        prefix_query_tokens, prefix_hit_tokens: prompt tokens of admitted requests, and of these
            those that the prefix cache had, since the start.

    Args:
        times: what steps take, which bounds the chunks of long prompts beside decodes.
        prefix_log: follows what can be found in the prefix caches.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        times: StepTimes | None = None,
        prefix_log: PrefixLog | None = None,
    ) -> None:
        self.limits = limits
        self._times = times or StepTimes()
        self._prefix_log = prefix_log or PrefixLog()
        self._begin_empty()
        self._waiting = AdmissionQueue()
        self._open: dict[str, Sequence] = {}
        self._quarantine = Quarantine()
        self._num_preempted = self._num_yielded = 0
        self._has_keys = False
        self.earliest_deadline = float("inf")
        self._num_submitted = 0
        self._scheduled_step = 0
        self._completed_step = 0
        self.preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0

    def submit(self, *requests: Request, first_alone: bool = False) -> None:
        """Put the samples of one call into the queue: all of them, or none.

        Args:
            requests: one per sample, of the same prompt and key.
            first_alone: the others wait until the first has computed the prompt, to find it in the
                prefix cache.

        Raises:
            RequestError: an id is taken, they could never run, or there is no room in the queue.
        """
        first = requests[0]
        self._has_keys = self._has_keys or bool(first.key)
        for request in requests:
            if request.id in self._open:
                raise duplicate_id(request.id)
        check_fits(self.limits, len(first.prompt_ids), first.stops.max_new_tokens)
        check_room(
            self._waiting,
            self.limits,
            self._times,
            key=first.key,
            num_running=len(self._open) - len(self._waiting),
            num_samples=len(requests),
            num_prompt=len(first.prompt_ids) + len(first.generated),
        )
        leader, *followers = [self._opened(request) for request in requests]
        self._waiting.push(leader)
        if first_alone and followers:
            self._waiting.hold(leader, followers)
        else:
            for sequence in followers:
                self._waiting.push(sequence)

    def _opened(self, request: Request) -> Sequence:
        sequence = Sequence(request, self._num_submitted, self.limits.max_model_len)
        self._num_submitted += 1
        self._open[request.id] = sequence
        self.earliest_deadline = min(self.earliest_deadline, request.queue_deadline)
        return sequence

    def abort(self, request_id: str) -> Request | None:
        """Forget an open request, and return it; None when there is none of this id."""
        sequence = self._open.get(request_id)
        if sequence is None:
            return None
        self._withdraw(sequence)
        return sequence.request

    def fail_all(self, error_for: Callable[[Request], RequestError], now: float) -> None:
        """End every open request with the error made for it."""
        for sequence in list(self._open.values()):
            self._withdraw(sequence)
            sequence.request.fail(error_for(sequence.request), now)

    def expire(self, now: float) -> None:
        """Fail the requests whose queue deadline passed before their first admission."""
        if now < self.earliest_deadline:
            return
        new = list(self._waiting.new())
        for sequence in new:
            request = sequence.request
            if request.queue_deadline > now:
                continue
            self._withdraw(sequence)
            request.fail(expired(len(self._waiting)), now)
        self.earliest_deadline = min(
            (seq.request.queue_deadline for seq in new if seq.phase is Phase.WAITING),
            default=float("inf"),
        )

    def schedule(self, now: float) -> Step | None:
        """The next step, or None when nothing can run before results or requests arrive."""
        self.expire(now)
        step_id = self._scheduled_step + 1
        batches = [ReplicaBatch() for _ in self._replicas]
        quarantined = self._quarantine.next()
        if quarantined is not None:
            if now < self._quarantine.opens_at:
                return None
            self._make_room_for(quarantined)
        elif self._waiting:
            self._yield_a_slot()
        for replica, batch in zip(self._replicas, batches, strict=True):
            for victim in replica.schedule_decodes(batch, step_id):
                self._preempt(victim)
        budget = budget_of(self.limits, self._times, max(batch.num_decodes for batch in batches))
        for replica, batch in zip(self._replicas, batches, strict=True):
            for victim in replica.schedule_prefills(batch, budget, step_id):
                self._preempt(victim)
        self._admit(batches, budget, step_id, quarantined, now)
        max_replica_tokens = max(batch.total_tokens for batch in batches)
        if max_replica_tokens == 0:
            return None
        self._scheduled_step = step_id
        return Step(step_id, batches, max_replica_tokens)

    def complete(self, step: Step, tokens: list[list[int]], ended: Iterable[Sequence]) -> None:
        """Take in the oldest outstanding step's results.

        Args:
            step: what ``schedule`` returned.
            tokens: for each replica one per draw, in the order of the rows; negative: none.
            ended: sequences whose request ended with its token.
        """
        assert step.step_id == self._completed_step + 1, "steps complete in their order"
        self._completed_step = step.step_id
        for replica, batch, drawn in zip(self._replicas, step.batches, tokens, strict=True):
            replica.complete(batch, drawn)
            if self._has_keys:
                for sequence in batch.sequences[: batch.num_decodes]:
                    self._waiting.charge(sequence.request.key, 1)
        for sequence in ended:
            self._withdraw(sequence)
        if self._num_preempted or self._num_yielded:
            self._requeue_preempted(step)
        for leader in self._waiting.leaders():
            if leader.request.first_token:
                self._waiting.release(leader)

    def resume_on(self, limits: SchedulerLimits, now: float) -> int:
        """Begin again on new workers: every open sequence waits, with the tokens it has.

        Steps in flight are forgotten, and the loss counts against the sequences in them.

        Args:
            limits: of the new workers, which are ready now.

        Returns:
            How many sequences will go on from where they were.
        """
        in_flight = [seq for seq in self._open.values() if seq.last_step > self._completed_step]
        poisonous = self._quarantine.record_crash(in_flight, now)
        if poisonous is not None:
            self._withdraw(poisonous)
            poisonous.request.fail(poison_error(poisonous.request), now)
        self.limits = limits
        self._begin_empty()
        self._num_preempted = self._num_yielded = 0
        self._completed_step = self._scheduled_step
        self._waiting.clear_preempted()
        num_replayed = 0
        for sequence in sorted(self._open.values(), key=lambda seq: seq.order):
            num_replayed += self._wait_again(sequence, now)
        return num_replayed

    def _begin_empty(self) -> None:
        """With new replicas."""
        self._replicas = make_replicas(self.limits)
        self._prefix_log.attach([replica.pool for replica in self._replicas])

    @property
    def running_requests(self) -> int:
        """Requests that hold a slot."""
        return sum(replica.num_running for replica in self._replicas)

    @property
    def queued_requests(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting) + self._num_preempted + self._num_yielded

    @property
    def kept_states(self) -> int:
        """Prefixes whose state is kept."""
        states = (replica.states for replica in self._replicas)
        return sum(each.num_found for each in states if each is not None)

    @property
    def kv_cache_usage(self) -> float:
        """Share of KV blocks in use, 0 to 1."""
        pools = [replica.pool for replica in self._replicas]
        return 1 - sum(pool.num_free for pool in pools) / sum(pool.size for pool in pools)

    @property
    def queued_prompt_tokens(self) -> int:
        """Tokens of waiting and running requests that no step has computed yet."""
        return self._waiting.num_tokens + sum(each.num_unscheduled for each in self._replicas)

    def _admit(
        self,
        batches: list[ReplicaBatch],
        budget: Budget,
        step_id: int,
        quarantined: Sequence | None,
        now: float,
    ) -> None:
        """Admit from the head of the queue while it fits; no sequence overtakes another.

        None overtakes a preempted sequence whose results are still in flight either. A quarantined
        sequence is admitted before all others, and none beside it.
        """
        while self._waiting and not self._num_preempted:
            sequence = self._waiting.head() if quarantined is None else quarantined
            if sequence.phase is not Phase.WAITING:
                return
            choice = choose_replica(self._replicas, batches, sequence, self.limits)
            if choice is None:
                return
            replica, matched = choice
            self._waiting.remove(sequence)
            sequence.has_yielded = False
            replica.admit(sequence, matched, batches[replica.index], budget, step_id)
            if len(sequence.tokens) > budget.long_prompt:
                self._times.forget_chunks()
            request = sequence.request
            if not request.admitted:
                request.admitted = now
                request.cached_tokens = min(
                    len(matched[0]) * self.limits.block_size, sequence.num_prompt
                )
                self.prefix_query_tokens += len(request.prompt_ids)
                self.prefix_hit_tokens += request.cached_tokens
                self._waiting.charge(request.key, len(sequence.tokens))
                request.output.admit()

    def _yield_a_slot(self) -> None:
        """Preempt a sequence whose key has more than its share of the slots, for another key's."""
        if self._num_preempted or self._num_yielded:
            return
        num_slots = self.limits.max_batch_size * self.limits.num_replicas
        sequence = yielding_sequence(self._replicas, num_slots, self._waiting.head())
        if sequence is not None:
            self._replicas[sequence.replica].release(sequence)
            sequence.phase, sequence.has_yielded = Phase.PREEMPTED, True
            self._preempt(sequence)

    def _make_room_for(self, quarantined: Sequence) -> None:
        """Preempt all other sequences."""
        for replica in self._replicas:
            for sequence in replica.running():
                if sequence is not quarantined:
                    replica.release(sequence)
                    sequence.phase = Phase.PREEMPTED
                    self._preempt(sequence)

    def _wait_again(self, sequence: Sequence, now: float) -> bool:
        """Let an open sequence wait for the new workers; true when it goes on from where it was."""
        request = sequence.request
        has_run = bool(request.admitted)
        error = why_lost(sequence, self.limits)
        if sequence.phase is Phase.WAITING and (sequence.has_yielded or (error and not has_run)):
            self._waiting.remove(sequence)
        if error is not None:
            del self._open[request.id]
            self._waiting.release(sequence)
            sequence.phase = Phase.DONE
            request.fail(error, now)
            return False
        if not has_run:
            return False
        sequence.restart()
        request.replays += 1
        self._waiting.push_preempted(sequence)
        return True

    def _preempt(self, victim: Sequence) -> None:
        """Queue a sequence that lost its blocks again, once its results have arrived."""
        self.preemptions += 1
        victim.request.preemptions += 1
        if victim.last_step <= self._completed_step:
            self._requeue(victim)
        elif victim.has_yielded:
            self._num_yielded += 1
        else:
            self._num_preempted += 1

    def _requeue_preempted(self, step: Step) -> None:
        """Queue preempted sequences again whose last results came with ``step``."""
        for batch in step.batches:
            for sequence in batch.sequences:
                if sequence.phase is Phase.PREEMPTED and sequence.last_step == step.step_id:
                    self._forget_in_flight(sequence)
                    self._requeue(sequence)

    def _forget_in_flight(self, preempted: Sequence) -> None:
        """A preempted sequence's last results have arrived, or nobody waits for them."""
        if preempted.has_yielded:
            self._num_yielded -= 1
        else:
            self._num_preempted -= 1

    def _requeue(self, sequence: Sequence) -> None:
        """Put a preempted sequence back into the queue: first of all, or first of its key."""
        sequence.phase = Phase.WAITING
        if sequence.has_yielded:
            self._waiting.push(sequence)
        else:
            self._waiting.push_preempted(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        """Remove a sequence whose request is over from the queue or its replica."""
        request = sequence.request
        del self._open[request.id]
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
        elif sequence.phase is Phase.PREEMPTED:
            self._forget_in_flight(sequence)
        else:
            self._replicas[sequence.replica].release(sequence)
        sequence.phase = Phase.DONE
        self._waiting.release(sequence)
