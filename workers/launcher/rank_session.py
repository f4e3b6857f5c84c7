"""One group of ranks of this machine, started by torchrun's engine and watched without it.

Runs in a process of its own, the leader of a session that holds the ranks and nothing else. The
first rank that ends or is stopped ends the whole session at once: the engine would ask politely,
and a stopped process does not hear.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from workers.launcher.rendezvous import BACKEND, Meeting, register
from workers.launcher.reports import Reporter

_NEVER = 1e6  # seconds between the engine's own looks at the ranks
_NO_CHILD_YET_SECONDS = 0.01


def run_group(
    meeting: Meeting, nproc: int, rank_main: Callable[[], None], reporter: Reporter
) -> NoReturn:
    """Start the ranks and end with the first of them.

    Args:
        nproc: ranks of this machine.
        rank_main: what a rank's process does; it is forked from this one.
    """
    # The ranks speak for themselves; what the engine would add is tables and tracebacks.
    logging.disable(logging.CRITICAL)
    # The engine asks for GPUs. Asked in any other way, CUDA would not work in what is forked later.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if meeting.num_nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")

    def end_with_peers() -> None:
        reporter.peers()
        _end()

    register(meeting, end_with_peers)
    config = LaunchConfig(
        min_nodes=meeting.num_nodes,
        max_nodes=meeting.num_nodes,
        nproc_per_node=nproc,
        run_id=BACKEND,
        role="rank",
        rdzv_backend=BACKEND,
        start_method="fork",  # what is imported is shared: a rank starts seconds earlier
        max_restarts=0,
        monitor_interval=_NEVER,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder in /tmp stays behind
    )
    threading.Thread(target=_watch, args=(reporter,), daemon=True).start()
    try:
        elastic_launch(config, rank_main)()
    except (ValueError, RuntimeError, OSError) as error:
        reporter.leaves(str(error))
    _end()


def _watch(reporter: Reporter) -> None:
    """Report the first rank that ends or is stopped, leaving it to be waited for."""
    while True:
        try:
            event = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        except ChildProcessError:
            time.sleep(_NO_CHILD_YET_SECONDS)
            continue
        if event is not None:
            reporter.ended(event.si_pid, event.si_code, event.si_status)
            _end()


def _end() -> NoReturn:
    """Kill this session, this process with it."""
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a process outlived its SIGKILL")
