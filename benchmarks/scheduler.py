"""What a step of decodes costs the frontend: schedule, process (detokenization) and complete.

Runs no workers and no event loop: tokens are random, two steps are in flight, nobody reads.
Prompts differ in length, so that block boundaries are spread over the steps, and the prefix cache
is on. One figure is the median over repeats of the mean over a repeat's steps, in CPU time of the
thread: what else runs on the machine does not count, except through shared caches and clocks.

    python -m benchmarks.scheduler [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections import deque

from rich.console import Console
from rich.table import Table

from frontend.engine.output_processor import OutputProcessor
from frontend.processing.text_decoders import ByteDecoder, complete_text
from frontend.requests.output import Output
from frontend.requests.request import Request, SamplingParams, StopConditions
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Drawn, Step

VOCAB_SIZE = 32_768
DEPTH = 2
GOAL_MS = {1: 0.1, 256: 1.0}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """CPU milliseconds a step, at ``num_running`` decoding sequences."""

    num_running: int
    schedule_ms: float
    complete_ms: float
    step_ms: float
    goal_ms: float | None


def make_pieces(rng: random.Random) -> dict[int, str | bytes]:
    """A byte-level vocabulary: words of one to eight letters, and every 64th half a character."""
    letters = b"abcdefghijklmnopqrstuvwxyz "
    words = [bytes(rng.choices(letters, k=rng.randint(1, 8))) for _ in range(VOCAB_SIZE)]
    words[::64] = [b"\xc3"] * len(words[::64])
    return {token: complete_text(word) for token, word in enumerate(words)}


def start(num_running: int, num_steps: int, pieces: dict[int, str | bytes]) -> Scheduler:
    """A scheduler whose sequences will decode for at least ``num_steps`` more steps."""
    rng = random.Random(num_running)
    max_model_len = 2 * 1024 + num_steps
    limits = SchedulerLimits(
        max_batch_size=num_running,
        max_num_batched_tokens=8192,
        max_model_len=max_model_len,
        block_size=16,
        num_blocks=num_running * (max_model_len // 16 + 1),
        max_queued_requests=num_running,
        max_queued_tokens=num_running * max_model_len,
    )
    scheduler = Scheduler(limits)
    for number in range(num_running):
        request = Request(
            id=f"request-{number}",
            prompt_ids=rng.choices(range(VOCAB_SIZE), k=rng.randint(512, 1024)),
            sampling=SamplingParams(seed=number),
            stops=StopConditions(
                max_new_tokens=max_model_len, eos_token_ids=frozenset({VOCAB_SIZE})
            ),
            decoder=ByteDecoder(pieces),
            output=Output(),
        )
        scheduler.submit(request)
    return scheduler


def measure(
    num_running: int, num_steps: int, pieces: dict[int, str | bytes]
) -> tuple[float, float]:
    """Mean CPU seconds of one schedule, and of processing and completing a step of decodes."""
    outputs = OutputProcessor()
    scheduler = start(num_running, num_steps, pieces)
    rng = random.Random(0)
    draws = [rng.choices(range(VOCAB_SIZE), k=num_running) for _ in range(64)]
    in_flight: deque[Step] = deque()
    schedule_s, complete_s, num_timed = 0.0, 0.0, 0
    while num_timed < num_steps:
        begun = time.thread_time()
        step = scheduler.schedule(begun)
        scheduled = time.thread_time()
        assert step is not None, "sequences decode to the end of the run"
        in_flight.append(step)
        if len(in_flight) < DEPTH:
            continue
        oldest = in_flight.popleft()
        tokens = draws[oldest.step_id % 64][: oldest.batches[0].num_draws]
        before = time.thread_time()
        drawn = [Drawn(tokens=tokens)]
        ended = outputs.process(oldest, drawn, before)
        scheduler.complete(oldest, [each.tokens for each in drawn], ended)
        after = time.thread_time()
        if oldest.batches[0].num_decodes == num_running:
            schedule_s += scheduled - begun
            complete_s += after - before
            num_timed += 1
    return schedule_s / num_steps, complete_s / num_steps


def run(sizes: list[int], num_steps: int, repeats: int) -> list[Result]:
    """One result a size."""
    pieces = make_pieces(random.Random(0))
    results = []
    for num_running in sizes:
        measure(num_running, num_steps // 10 + 1, pieces)
        times = [measure(num_running, num_steps, pieces) for _ in range(repeats)]
        results.append(
            Result(
                num_running=num_running,
                schedule_ms=1e3 * statistics.median(schedule for schedule, _ in times),
                complete_ms=1e3 * statistics.median(complete for _, complete in times),
                step_ms=1e3 * statistics.median(map(sum, times)),
                goal_ms=GOAL_MS.get(num_running),
            )
        )
    return results


def show(results: list[Result]) -> None:
    """Print a table."""
    table = Table(title="Frontend CPU time of a decode step, ms")
    for heading in ("running", "schedule", "complete", "both", "goal"):
        table.add_column(heading, justify="right")
    for result in results:
        goal = f"≤ {result.goal_ms:g}" if result.goal_ms is not None else ""
        values = (result.schedule_ms, result.complete_ms, result.step_ms)
        table.add_row(str(result.num_running), *(f"{value:.3f}" for value in values), goal)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 8, 64, 256], metavar="N")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    results = run(args.running, args.steps, args.repeats)
    if args.json:
        print(json.dumps([dataclasses.asdict(result) for result in results]))
    else:
        show(results)


if __name__ == "__main__":
    main()
