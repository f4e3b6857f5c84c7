"""Times launches on a CUDA device, one behind the other in a graph.

Owns the graph and how often it is replayed. Does not know what is launched.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from triton.errors import TritonError

Call = Callable[[], Any]
# What tiles that a device or a compiler cannot take raise.
REFUSALS = (TritonError, RuntimeError, AssertionError, ValueError)

_REPLAYS = 5
_REPLAY_US = 1000.0  # so long a replay is long beside the clock's steps
_FEWEST_COPIES, _MOST_COPIES = 4, 256
_L2_SHARE = 3  # copies that are read between two reads of one, in sizes of L2


def num_copies(touched_bytes: float, whole_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """Copies of weights, of which a launch reads `touched_bytes`, that L2 cannot hold."""
    wanted = min(max(-(-_L2_SHARE * l2_bytes // touched_bytes), _FEWEST_COPIES), _MOST_COPIES)
    return int(max(1, min(wanted, free_bytes // 2 // whole_bytes)))


def time_us(calls: list[Call], floor_us: float) -> float:
    """Microseconds of one of `calls`, which follow each other in a CUDA graph: the median replay.

    Raises one of `REFUSALS` where the device cannot take them.
    """
    repeats = int(max(1, min(32, _REPLAY_US / (len(calls) * max(floor_us, 3.0)))))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for call in calls:
                call()
    graph.replay()
    times = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / (repeats * len(calls)))
    return statistics.median(times)
