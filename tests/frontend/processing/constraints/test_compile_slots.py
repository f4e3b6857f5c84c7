"""Slots of compilations: bounds, order among keys, and who leaves while it waits."""

from __future__ import annotations

import asyncio

import pytest

from frontend.bounds import MAX_WAITING_COMPILES
from frontend.errors import Code, RequestError
from frontend.processing.constraints import compile_slots
from frontend.processing.constraints.compile_slots import CompileSlots

MAX_COMPILES = 4


@pytest.fixture(autouse=True)
def slots_of_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_slots, "MAX_COMPILES", MAX_COMPILES)


async def taking(slots: CompileSlots, key: str, count: int) -> list[asyncio.Task[None]]:
    """Tasks that take a slot each, as far as they get at once."""
    tasks = [asyncio.create_task(slots.take(key)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def num_done(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def test_a_key_leaves_half_to_others() -> None:
    slots = CompileSlots()
    alice, bob = await taking(slots, "alice", 4), await taking(slots, "bob", 1)
    nobody = await taking(slots, "", 4)
    assert (num_done(alice), num_done(bob), num_done(nobody)) == (2, 1, 1)
    assert slots.num_taken == MAX_COMPILES
    for key in ("alice", "", "alice", "bob"):
        slots.give(key)
    await asyncio.sleep(0)
    assert (num_done(alice), num_done(nobody)) == (4, 3)
    for task in nobody:
        task.cancel()


async def test_a_slot_goes_to_the_key_that_has_the_fewest() -> None:
    slots = CompileSlots()
    await taking(slots, "", MAX_COMPILES)
    alice, bob = await taking(slots, "alice", 3), await taking(slots, "bob", 1)
    order = []
    for _ in range(3):
        slots.give("")
        await asyncio.sleep(0)
        order.append((num_done(alice), num_done(bob)))
    assert order == [(1, 0), (1, 1), (2, 1)]
    alice[-1].cancel()


async def test_so_many_wait() -> None:
    slots = CompileSlots()
    await taking(slots, "", MAX_COMPILES)
    half = MAX_WAITING_COMPILES // 2
    waiting = await taking(slots, "alice", half)
    with pytest.raises(RequestError, match=f"{half} constraints wait.*, {half} of this") as caught:
        await slots.take("alice")
    assert (caught.value.code, caught.value.reason) == (
        Code.RESOURCE_EXHAUSTED,
        "TOO_MANY_CONSTRAINTS",
    )
    waiting += await taking(slots, "", half)
    with pytest.raises(RequestError, match=f"{MAX_WAITING_COMPILES} constraints wait"):
        await slots.take("bob")
    for task in waiting:
        task.cancel()


async def test_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_slots, "COMPILE_WAIT_SECONDS", 0.01)
    slots = CompileSlots()
    await taking(slots, "", MAX_COMPILES)
    with pytest.raises(RequestError, match="4 constraints were compiled for"):
        await slots.take("bob")


async def test_who_leaves_while_it_waits_keeps_no_slot() -> None:
    slots = CompileSlots()
    await taking(slots, "", MAX_COMPILES)
    [early, late, last] = await taking(slots, "", 3)
    early.cancel()
    await asyncio.sleep(0)
    slots.give("")
    late.cancel()  # its turn has come, and it has not seen it
    await asyncio.sleep(0)
    await last
    assert slots.num_taken == MAX_COMPILES
    for _ in range(MAX_COMPILES):
        slots.give("")
    assert not slots.num_taken
