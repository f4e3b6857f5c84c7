"""A whole service over workers that are played: real scheduler, engine, texts and grammars.

The workers keep `fake_workers`' books. They draw any token of the vocabulary, obey masks, tell
samples apart and report log-probabilities: all of it follows from the tokens before.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from frontend.engine.engine import Engine
from frontend.processing.tokenizer import Tokenizer
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Drawn, ReplicaBatch, Step, StepLogprobs
from frontend.service.service import Service
from tests.frontend.builders import LIMITS
from tests.frontend.fake_workers import FakeGroup, FakeReplica, FakeWorkers, _Slot
from tests.frontend.fakes import MODEL, backend, group

PLAYED_LIMITS = dataclasses.replace(LIMITS, max_model_len=256, num_blocks=128)


Say = Callable[[list[int]], int]
"""What a model would draw behind some output, prompt not counted."""


class PlayedReplica(FakeReplica):
    """Draws what follows from the tokens before, or what it is made to say, where that is allowed.

    Attributes:
        num_triggered: masks that a token before, which the frontend did not know, let hold.
    """

    def __init__(self, limits: SchedulerLimits, vocab_size: int, say: Say | None = None) -> None:
        super().__init__(limits)
        self._vocab_size = vocab_size
        self._say = say
        self.num_triggered = 0

    def drawn(self, batch: ReplicaBatch) -> Drawn:
        masks = zip(batch.draw_masks, batch.mask_triggers, strict=True)
        self._masks = dict(zip(batch.masked_draws, masks, strict=True))
        self._num_draws = 0
        self._logprobs = StepLogprobs()
        tokens = self.run(batch)
        prompts = _prompt_logprobs(batch)
        return Drawn(tokens=tokens, logprobs=self._logprobs, prompt_logprobs=prompts)

    def _draw(self, slot: _Slot, prefix: bytes) -> int:
        new, position = slot.new, slot.next_position
        assert position is not None
        banned = set(new.suppressed_token_ids) if position < new.suppress_until else set()
        mask = -1  # all
        bits, trigger = self._masks.get(self._num_draws, (b"", -1))
        self.num_triggered += trigger == slot.last_token
        if bits and trigger in (-1, slot.last_token):
            mask = int.from_bytes(bits, "little")
        self._num_draws += 1

        def is_allowed(token: int) -> bool:
            return bool(mask >> token & 1) and token not in banned

        sampling = new.sampling
        if self._say is not None:
            output = self._entries(slot, 0, new.num_prompt, position)
            said = self._say([token for _, token, _ in output])
            tokens = range(self._vocab_size)
            assert said in tokens
            return said if is_allowed(said) else next(filter(is_allowed, tokens))
        chance = int.from_bytes(prefix, "little") ^ sampling.seed ^ sampling.sample_index << 20
        allowed = list(filter(is_allowed, range(self._vocab_size)))
        token = allowed[chance % 8191 % len(allowed)]
        _report(self._logprobs, token, position, sampling.num_logprobs)
        return token


def _prompt_logprobs(batch: ReplicaBatch) -> StepLogprobs:
    """Of the prompt tokens that follow those of each row."""
    reported = StepLogprobs()
    for row, num_tokens in enumerate(batch.num_tokens, start=batch.num_decodes):
        sequence, start = batch.sequences[row], batch.positions[row]
        if sequence.wants_prompt_logprobs:
            for position in range(start + 1, min(start + num_tokens + 1, sequence.num_prompt)):
                num_logprobs = sequence.request.sampling.num_logprobs
                _report(reported, sequence.tokens[position], position, num_logprobs)
    return reported


def _report(to: StepLogprobs, token: int, position: int, num_logprobs: int) -> None:
    if num_logprobs:
        to.logprobs.append(-(token + position / 128))
        to.top_ids.extend(token + other for other in range(1, num_logprobs))
        to.top_logprobs.extend(-float(position + other) for other in range(1, num_logprobs))


class PlayedWorkers(FakeWorkers):
    def __init__(self, limits: SchedulerLimits, vocab_size: int, say: Say | None) -> None:
        super().__init__(limits)
        self._played = [PlayedReplica(limits, vocab_size, say) for _ in range(limits.num_replicas)]

    @property
    def num_triggered(self) -> int:
        """See `PlayedReplica`."""
        return sum(replica.num_triggered for replica in self._played)

    def run(self, step: Step) -> list[Drawn]:
        self.steps.append(step)
        columns = zip(self._played, step.batches, strict=True)
        return [replica.drawn(batch) for replica, batch in columns]


async def lose_workers(
    engine: Engine, num_sent: int, tokenizer: Tokenizer, say: Say
) -> asyncio.Task[None]:
    """Lose the workers of a played service after so many steps; returns its run with others."""
    group = engine._group
    while len(group.workers.steps) < num_sent:
        await asyncio.sleep(0)
    group.lose("rank 0: gone")
    while not engine.load().restarting:
        await asyncio.sleep(0)
    other = FakeGroup(PLAYED_LIMITS)
    other.workers = PlayedWorkers(PLAYED_LIMITS, tokenizer.vocab_size, say)
    other.workers.last_step = engine._scheduler._scheduled_step
    engine.resume_on(other, PLAYED_LIMITS)
    return asyncio.create_task(engine.run())


@contextlib.asynccontextmanager
async def played_service(
    tokenizer: Tokenizer, say: Say | None = None, end_ids: tuple[int, ...] = ()
) -> AsyncIterator[tuple[Service, Engine]]:
    """A service that takes requests, and its engine; the model's end token is the tokenizer's 0.

    Args:
        say: what the model says; None: anything.
        end_ids: the model's end tokens, if others.
    """
    workers = FakeGroup(PLAYED_LIMITS)
    workers.workers = PlayedWorkers(PLAYED_LIMITS, tokenizer.vocab_size, say)
    engine, service = Engine(Scheduler(PLAYED_LIMITS), workers), Service(model=MODEL, version="1")
    info = dataclasses.replace(
        group(),
        eos_token_ids=end_ids or group().eos_token_ids,
        vocab_size=tokenizer.vocab_size,
        max_model_len=PLAYED_LIMITS.max_model_len,
        num_blocks=PLAYED_LIMITS.num_blocks,
    )
    service.open(backend(engine, tokenizer=tokenizer, info=info))
    running = asyncio.create_task(engine.run())
    try:
        yield service, engine
    finally:
        running.cancel()
        await asyncio.wait([running])
