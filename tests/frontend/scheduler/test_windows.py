"""Groups of layers with windows: their blocks are freed, reused, and found again.

The workers of these tests read what a query sees and nothing else, so a block that was freed too
early, or is in two sequences, makes another output or an assertion.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.cache_groups import CacheGroups
from frontend.errors import RequestError
from frontend.prefixes import PrefixBlock
from frontend.scheduler.kv_blocks import FREED, BlockPool, extend_prefixes
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.prefix_match import longest_match
from frontend.scheduler.scheduler import Scheduler
from tests.frontend.builders import (
    LIMITS,
    Driver,
    Losing,
    check_while_lost,
    expected_output,
    make_request,
    random_limits,
    random_request,
    taken,
    tight,
)

MIXED = dataclasses.replace(LIMITS, windows=(0, 6, 6), max_model_len=256, num_blocks=120)
WINDOWS = [(0, 2), (0, 5, 5), (0, 0, 3), (9,), (4, 4), (0, 2, 17), (2,), (0, 1)]


def random_windows(rng: random.Random) -> SchedulerLimits:
    return tight(dataclasses.replace(random_limits(rng), windows=rng.choice(WINDOWS)), rng)


def check_held(scheduler: Scheduler) -> None:
    """Blocks are held by those whose lists have them, and prompts by no more than their share."""
    limits = scheduler.limits
    for replica in scheduler._replicas:
        holders = [0] * limits.num_blocks
        for sequence in replica.running():
            for group, blocks in enumerate(sequence.blocks):
                freed = sequence.num_freed[group]
                assert blocks[:freed] == [FREED] * freed
                assert FREED not in blocks[freed:]
                assert freed <= limits.groups.first_seen(group, sequence.num_scheduled)
                for block in blocks[freed:]:
                    holders[block] += 1
            if sequence in replica._prefilling:
                for group, blocks in enumerate(sequence.blocks):
                    held = len(blocks) - sequence.num_freed[group]
                    assert held <= limits.groups.most_blocks(group, sequence.prefill_end)
        assert holders == replica.pool._holders


@pytest.mark.parametrize("seed", range(120))
def test_outputs_are_those_of_each_request_alone(seed: int) -> None:
    """In caches of just enough blocks, with any number of steps in flight; workers are lost."""
    rng = random.Random(seed)
    limits = random_windows(rng)
    driver = Losing(limits, depth=rng.choice([1, 2, 3, 5]))
    requests = [random_request(rng, f"r{number}", limits) for number in range(12)]
    check_while_lost(driver, rng, requests, lambda: check_held(driver.scheduler))


def test_a_long_sequence_holds_what_its_windows_see() -> None:
    """As it is prefilled in chunks and as it decodes."""
    driver = Driver(MIXED, depth=2)
    request = make_request("r", list(range(50)) * 4, max_new_tokens=50)
    driver.scheduler.submit(request)
    most = [0, 0, 0]
    while driver.turn():
        for sequence in driver.scheduler._replicas[0].running():
            for group, blocks in enumerate(sequence.blocks):
                held = len(blocks) - sequence.num_freed[group]
                most[group] = max(most[group], held)
    assert most[0] == 63  # 249 positions
    bound = MIXED.groups.most_blocks(1, 250)
    assert bound == 8 + 2  # two steps of 16 tokens in blocks of 4
    assert all(4 <= each <= bound for each in most[1:])
    assert taken(request).token_ids == expected_output(request, MIXED)
    driver.assert_at_rest()


def test_decoding_frees_block_by_block() -> None:
    driver = Driver(dataclasses.replace(MIXED, windows=(6,), num_blocks=11), depth=1)
    request = make_request("r", [1, 2, 3], max_new_tokens=200)
    driver.scheduler.submit(request)
    held = set()
    while driver.turn():
        for sequence in driver.scheduler._replicas[0].running():
            held.add(len(sequence.blocks[0]) - sequence.num_freed[0])
    assert held == {1, 2, 3}, "6 positions are in up to 3 blocks of 4"
    assert len(taken(request).token_ids) == 200
    assert request.preemptions == 0


def test_what_is_too_long_for_the_cache_is_refused_and_what_fits_runs() -> None:
    """40 blocks: 20 positions of windowed layers take 10 in each of two groups."""
    limits = dataclasses.replace(MIXED, num_blocks=40)
    groups = limits.groups
    longest = groups.longest(40, limits.max_model_len)
    assert longest == 80
    assert [groups.needed(longest), groups.needed(longest + 1)] == [40, 41]
    with pytest.raises(RequestError, match="need 81 tokens of KV cache, which holds 80"):
        Driver(limits).scheduler.submit(make_request("r", [1] * 60, max_new_tokens=22))
    request = make_request("fits", list(range(45)), max_new_tokens=36)
    Driver(limits).run(request)
    assert taken(request).token_ids == expected_output(request, limits)
    assert request.preemptions == 0


@pytest.mark.parametrize("windows", [(0,), (0, 0), (0, 8, 8, 8), (8,)])
def test_longest_is_the_longest_that_fits(windows: tuple[int, ...]) -> None:
    groups = CacheGroups(block_size=4, windows=windows, step_tokens=8)
    for num_blocks in (len(windows), 17, 30, 99):
        longest = groups.longest(num_blocks, 200)
        assert longest == max(n for n in range(0, 201, 4) if groups.needed(n) <= num_blocks)


def test_a_conversation_goes_on_from_its_windows_last_blocks() -> None:
    """Its prefix is found though the first blocks of windowed groups have become another's."""
    limits = dataclasses.replace(MIXED, num_blocks=64)
    driver = Driver(limits)
    first = make_request("a", list(range(40, 50)) * 4, max_new_tokens=9)
    driver.run(first)
    pool = driver.scheduler._replicas[0].pool
    other = pool.allocate(limits.num_blocks - 12 - 2 * 3)  # of those freed first
    pool.free(other)
    turn = [*first.prompt_ids, *taken(first).token_ids, 7, 8]
    second = make_request("b", turn)
    driver.run(second)
    assert second.cached_tokens == 48
    assert taken(second).token_ids == expected_output(second, limits)
    row = driver.workers.steps[-5].batches[0]
    assert len(row.num_new_blocks) == 3


def test_prompts_that_share_freed_blocks_get_on() -> None:
    """What one frees is still the other's, so less comes free than was taken."""
    limits = dataclasses.replace(MIXED, num_blocks=70, max_batch_size=4)
    driver = Driver(limits, depth=3)
    prompt = list(range(48))
    driver.run(make_request("first", prompt, max_new_tokens=1))
    requests = [make_request(f"r{n}", [*prompt, *[n] * 20], max_new_tokens=30) for n in range(4)]
    driver.run(*requests)
    for request in requests:
        assert taken(request).token_ids == expected_output(request, limits)


def test_an_admission_leaves_what_a_prompt_has_yet_to_take() -> None:
    """25 blocks are its prompt's in the first group, and up to 10 in each of the others."""
    driver = Driver(dataclasses.replace(MIXED, num_blocks=70))
    driver.scheduler.submit(make_request("long", list(range(40)) * 2 + [9] * 20))
    driver.scheduler.submit(make_request("next", list(range(40, 49)) * 2))
    driver.schedule()
    (replica,), head = driver.scheduler._replicas, driver.scheduler._waiting.head()
    assert replica.pool.num_free == 70 - 25 - 4 - 4
    kept = 3 + (10 - 4) + (10 - 4)  # for a decode, and for its chunks
    needed = MIXED.groups.needed(18)
    assert needed == 15
    taken_by_others = replica.pool.num_free - kept - needed
    blocks = replica.pool.allocate(taken_by_others)
    assert replica.has_room(head, replica.match(head))
    blocks += replica.pool.allocate(1)
    assert not replica.has_room(head, replica.match(head))
    replica.pool.free(blocks)
    driver.run()


def test_where_blocks_run_out_the_oldest_prompt_takes_the_newest_one_s() -> None:
    """Which does not happen but where what is freed is another's too; here nobody knows of it."""
    driver = Driver(MIXED, depth=20)
    older, newer = (make_request(name, [n] * 90, max_new_tokens=9) for n, name in enumerate("ab"))
    driver.scheduler.submit(older)
    driver.scheduler.submit(newer)
    while driver.schedule() is not None:
        pass
    assert newer.admitted, "the older one waited for its steps in flight"
    (replica,) = driver.scheduler._replicas
    assert len(replica._prefilling) == 2
    while driver.in_flight:
        driver.complete()
    missing = replica.pool.allocate(replica.pool.num_free)
    assert driver.schedule() is not None
    assert (older.preemptions, newer.preemptions) == (0, 1)
    replica.pool.free(missing)
    driver.run()
    for request in (older, newer):
        assert taken(request).token_ids == expected_output(request, MIXED)


CACHED = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=3, max_size=3)


@given(
    cached=CACHED,
    windows=st.sampled_from([(0, 1, 4), (0, 0, 7), (3, 5, 5), (0, 2, 9), (6, 40, 40)]),
    num_blocks=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_the_longest_hit_is_that_of_trying_all(
    cached: list[list[bool]], windows: tuple[int, ...], num_blocks: int
) -> None:
    size = 2
    groups = CacheGroups(block_size=size, windows=windows, step_tokens=1)
    prefixes: list[PrefixBlock] = []
    extend_prefixes(prefixes, list(range(18)), 9, size)
    pool = BlockPool(27, size, num_groups=3)
    for group, row in enumerate(cached):
        for prefix, is_cached in zip(prefixes, row, strict=True):
            if is_cached:
                (block,) = pool.allocate(1)
                pool.publish(block, prefix, group)

    def goes_on(length: int) -> bool:
        """By what the query at its end sees, position by position."""
        position = length * size
        return all(
            cached[group][place // size]
            for group, window in enumerate(windows)
            for place in range(max(0, position - window + 1) if window else 0, position)
        )

    found = longest_match(pool, groups, prefixes[:num_blocks])
    longest = max(length for length in range(num_blocks + 1) if goes_on(length))
    assert {len(blocks) for blocks in found} == {longest}
    for group, blocks in enumerate(found):
        first = groups.first_seen(group, longest * size)
        assert blocks[:first] == [FREED] * first
        expected = [pool.match([prefix], group) for prefix in prefixes[first:longest]]
        assert blocks[first:] == [block for (block,) in expected]
