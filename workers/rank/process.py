"""One rank's process, forked by a group: start, listen, run steps while frontends come and go."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import logging
import os
import signal
import sys
import time
from typing import NoReturn

from triton.errors import TritonError

from moe.base.parallel import ParallelConfig
from switchyard.worker.link import local_address
from switchyard.worker.prctl import die_with, name_process
from workers.config import WorkerConfig
from workers.launcher.epochs import Epochs
from workers.launcher.reports import REFUSED, Reporter
from workers.rank import gil_watchdog
from workers.rank.description import describe, summary
from workers.rank.expert_load import LoadReport
from workers.rank.frontends import Frontends
from workers.rank.service import WorkerService
from workers.rank.startup import start

STILL_SECONDS = 3.0
"""A serving rank whose interpreter stands still for so long ends itself."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankTask:
    """What every rank of a group is to do; each learns its number from torchrun's environment.

    Attributes:
        secret: what frontends must know; None: nothing.
        epochs: the frontends that ranks of this and of earlier groups have seen.
    """

    config: WorkerConfig
    parallel: ParallelConfig
    secret: str | None
    epochs: Epochs
    reporter: Reporter

    def run(self) -> NoReturn:
        """Be a rank, in a process of its own; ends with the process."""
        die_with(os.getpgrp())  # the group's process leads its session
        _be_a_process_of_its_own()
        rank = int(os.environ.get("RANK", "0"))
        name_process(f"rank {rank}")
        self.reporter.rank(rank)
        try:
            service = self._service()
            ready = start(self.config, self.parallel)
            description = describe(ready, self.parallel, _seconds_alive())
            load = LoadReport(
                ready.model.expert_load,
                ready.model_config.moe_layers,
                self.parallel,
                ready.groups.tp_rank,
            )
            service.open(description)
        except (ValueError, OSError, RuntimeError, TritonError) as error:
            self._leave(str(error), REFUSED)
        self.reporter.ready()
        if not ready.groups.rank:
            sys.stderr.write(f"{summary(ready, self.parallel)}\n")
            sys.stderr.flush()
        gc.collect()
        gc.freeze()
        gil_watchdog.start(STILL_SECONDS)
        service.run(ready.runner, load)
        raise AssertionError("a rank ran out of steps")

    def _service(self) -> WorkerService:
        """The service, its address taken before the long work of loading."""
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        frontends = Frontends(
            lambda reason: self._leave(reason, 0),
            newest_epoch=self.epochs.newest(),
            saw_epoch=functools.partial(self.epochs.saw, local_rank),
            timeout=self.config.frontend_timeout,
        )
        service = WorkerService(
            lambda reason, failed: self._leave(reason, int(failed)), frontends, secret=self.secret
        )
        service.bind(local_address(self.config.listen, local_rank))
        return service

    def _leave(self, reason: str, code: int) -> NoReturn:
        """End the process at once: threads may be inside collectives that never return."""
        self.reporter.leaves(reason)
        os._exit(code)


def _be_a_process_of_its_own() -> None:
    """Undo what the group's process and torchrun's engine had set up for themselves."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    for package in ("workers", "moe"):
        logging.getLogger(package).setLevel(logging.INFO)


def _seconds_alive() -> float:
    """Seconds since this process was started (Linux)."""
    with open("/proc/self/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
