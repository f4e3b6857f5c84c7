"""Plays a frontend to a runner of tables, and checks each result against its definition."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2
from tests.workers.sampling.sampled import (
    BLOCK,
    MAX_POSITIONS,
    NUM_SLOTS,
    Asker,
    TableModel,
    expected_logprobs,
    expected_token,
    mask_bytes,
)
from workers.step.runner import Runner, StepHandle


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Of a step.

    Attributes:
        given: its tokens; none: it is a decode.
        allowed: what a mask leaves its draw; None: it has no mask.
        trigger: the mask holds only behind this token; -1: it holds.
    """

    slot: int
    asker: Asker
    given: tuple[int, ...] = ()
    draws: bool = True
    allowed: frozenset[int] | None = None
    trigger: int = -1
    position: int = 0

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.given) or 1


class Columns:
    """Reads log-probabilities token by token, and compares each with the model's."""

    def __init__(self, logprobs: list[float], ids: list[int], top_logprobs: list[float]) -> None:
        self.logprobs, self.ids, self.top_logprobs = iter(logprobs), iter(ids), iter(top_logprobs)

    def take(self, num_logprobs: int) -> tuple[float, list[int], list[float]]:
        """The next token's."""
        top = num_logprobs - 1
        return (
            next(self.logprobs),
            list(itertools.islice(self.ids, top)),
            list(itertools.islice(self.top_logprobs, top)),
        )

    def check_all_read(self) -> None:
        assert not [*self.logprobs, *self.ids, *self.top_logprobs]


class Driver:
    """One replica's frontend. Sequences stand at most at one slot each."""

    def __init__(self, runner: Runner, model: TableModel) -> None:
        self.runner = runner
        self.model = model
        self.num_scheduled: dict[int, int] = {}
        self.flying: list[tuple[StepHandle, list[Row]]] = []
        self.num_steps = 0
        self.num_checked = 0
        self.num_triggered = 0
        self.new: list[worker_pb2.NewSequence] = []

    def begin(self, slot: int, asker: Asker) -> None:
        """The sequence takes the slot with the next step, whose tokens must all be known."""
        self.num_scheduled[slot] = 0
        self.new.append(asker.new_sequence(slot))

    def launch(self, rows: list[Row]) -> None:
        """Send a step, decodes first; once as many fly as may, the oldest lands."""
        rows = [dataclasses.replace(row, position=self.num_scheduled[row.slot]) for row in rows]
        for row in rows:
            self.num_scheduled[row.slot] += row.length
        step = self._step(rows)
        self.num_steps += 1
        self.new = []
        self.flying.append((self.runner.launch(step), rows))
        if len(self.flying) == MAX_STEPS_IN_FLIGHT:
            self.land()

    def land_all(self) -> None:
        """Nothing is in flight any more."""
        while self.flying:
            self.land()

    def land(self) -> None:
        """Take the oldest result and check it."""
        handle, rows = self.flying.pop(0)
        result = handle.result()
        tokens = iter(result.token_ids)
        columns = Columns(result.logprobs, result.top_token_ids, result.top_logprobs)
        for row in rows:
            if row.draws:
                self._check_draw(row, next(tokens), columns)
        assert not list(tokens)
        columns.check_all_read()
        columns = Columns(
            result.prompt_logprobs, result.prompt_top_token_ids, result.prompt_top_logprobs
        )
        for row in rows:
            if row.given and row.asker.params.get("prompt_logprobs"):
                self._check_prompt(row, columns)
        columns.check_all_read()

    def _check_draw(self, row: Row, token: int, columns: Columns) -> None:
        asker = row.asker
        num_logprobs = asker.params.get("num_logprobs", 0)
        seen = columns.take(num_logprobs) if num_logprobs else None
        if asker.ended:  # a frontend that has heard of it ignores what comes
            return
        last = row.position + row.length - 1
        raw_V = self.model.raw(asker.tokens[last], last)
        holds = row.trigger in (-1, asker.tokens[last])
        allowed = row.allowed if holds else None
        assert token == expected_token(raw_V, asker, allowed), (asker, last)
        self.num_triggered += holds and row.trigger >= 0
        self.num_checked += 1
        if token < 0:
            asker.ended = True
            assert seen is None or seen == (0.0, [0] * len(seen[1]), [0.0] * len(seen[2]))
            return
        asker.tokens.append(token)
        if seen is not None:
            check_logprobs(seen, expected_logprobs(raw_V, token, num_logprobs - 1))

    def _check_prompt(self, row: Row, columns: Columns) -> None:
        asker = row.asker
        for position in range(row.position, min(row.position + row.length, asker.num_prompt - 1)):
            raw_V = self.model.raw(asker.tokens[position], position)
            num_logprobs = asker.params["num_logprobs"]
            expected = expected_logprobs(raw_V, asker.tokens[position + 1], num_logprobs - 1)
            check_logprobs(columns.take(num_logprobs), expected)
            self.num_checked += 1

    def _step(self, rows: list[Row]) -> worker_pb2.StepRequest:
        step = worker_pb2.StepRequest(step_id=self.num_steps, new_sequences=self.new)
        num_draws = 0
        for row in rows:
            held, needed = (
                -(-tokens // BLOCK) for tokens in (row.position, row.position + row.length)
            )
            first = row.slot * (MAX_POSITIONS // BLOCK)
            step.slots.append(row.slot)
            step.positions.append(row.position)
            step.num_new_blocks.append(needed - held)
            step.new_blocks.extend(range(first + held, first + needed))
            if row.given:
                step.num_tokens.append(len(row.given))
                step.token_ids.extend(row.given)
                step.draws.append(row.draws)
            if row.allowed is not None:
                step.masked_draws.append(num_draws)
                step.draw_masks += mask_bytes(row.allowed, self.model.of_token.shape[1])
                step.mask_triggers.append(row.trigger)
            num_draws += row.draws
        step.num_decodes = len(rows) - len(step.num_tokens)
        step.max_replica_tokens = step.num_decodes + len(step.token_ids)
        step.decode_only = not step.num_tokens
        if set(step.mask_triggers) == {-1}:  # as a frontend leaves them out
            del step.mask_triggers[:]
        return step


def check_logprobs(
    seen: tuple[float, list[int], list[float]], expected: tuple[float, list[int], list[float]]
) -> None:
    assert seen[1] == expected[1]
    assert [seen[0], *seen[2]] == pytest.approx([expected[0], *expected[2]], abs=1e-5)


def drive_at_random(driver: Driver, askers: list[Asker], seed: int, num_steps: int) -> None:
    """Sequences come to free slots, prefill in chunks and decode; some lose their slot and come
    again with all their tokens; some draws have masks, which may leave nothing."""
    rng = random.Random(seed)
    waiting, running, unread = list(askers), {}, {}
    vocab_size = driver.model.of_token.shape[1]
    for _ in range(num_steps):
        rows = []
        for slot, asker in list(running.items()):
            full = driver.num_scheduled[slot] >= MAX_POSITIONS - 1
            lost = not unread[slot] and rng.random() < 0.05
            if asker.ended or full or lost:
                del running[slot]
                if lost and not asker.ended:
                    driver.land_all()
                    asker.params["prompt_logprobs"] = False
                    waiting.append(asker)
            elif not unread[slot] and rng.random() < 0.8:
                rows.append(Row(slot, asker))
        for slot in range(NUM_SLOTS):
            if slot not in running and waiting and rng.random() < 0.5:
                asker = running[slot] = waiting.pop(rng.randrange(len(waiting)))
                unread[slot] = tuple(asker.tokens)
                driver.begin(slot, asker)
            if slot in running and unread[slot]:
                size = rng.randint(1, len(unread[slot]))
                given, unread[slot] = unread[slot][:size], unread[slot][size:]
                rows.append(Row(slot, running[slot], given, draws=not unread[slot]))
        for number, row in enumerate(rows):
            if row.draws and rng.random() < 0.15:
                allowed = frozenset(rng.sample(range(vocab_size), rng.choice([1, 5, 40])))
                trigger = rng.choice([-1, row.asker.tokens[-1]]) if not row.given else -1
                rows[number] = dataclasses.replace(row, allowed=allowed, trigger=trigger)
        driver.launch(rows)
    driver.land_all()
