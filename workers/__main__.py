"""The launcher: starts a group of ranks with torchrun's engine, and ends what is left of a broken
one at once.

``python -m workers --model FOLDER --nproc N [--nnodes M --node-rank I --rdzv-endpoint H:P]``
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

from moe.config import ParallelConfig
from workers.flags import configure, parser


def main() -> int:
    """Check the flags, then run the group until it ends; returns the exit status."""
    flags_parser = parser()
    flags_parser.add_argument("--nproc", type=int, default=None, help="ranks on this machine")
    flags_parser.add_argument("--nnodes", type=int, default=1)
    flags_parser.add_argument("--node-rank", type=int, default=0)
    flags_parser.add_argument("--rdzv-endpoint", default=None, help="host:port of the first node")
    flags = flags_parser.parse_args()
    try:
        _, parallel = configure(flags)
        nproc = _ranks_here(flags, parallel)
    except ValueError as error:
        sys.stderr.write(f"switchyard workers: {error}\n")
        return 2
    sys.stderr.write(f"{parallel.log_line}\n{parallel.reason}\n")
    sys.stderr.flush()
    arguments = [*_rank_arguments(sys.argv[1:]), "--launcher-pid", str(os.getpid())]
    return _run(flags, nproc, arguments)


def _ranks_here(flags: argparse.Namespace, parallel: ParallelConfig) -> int:
    """Ranks to start on this machine; all machines together must make tp × dp."""
    needed = parallel.tp * parallel.dp
    nproc = flags.nproc if flags.nproc is not None else needed // flags.nnodes
    if nproc * flags.nnodes != needed:
        raise ValueError(
            f"--nproc {nproc} × --nnodes {flags.nnodes} is not --tp {parallel.tp} × "
            f"--dp {parallel.dp} = {needed}"
        )
    if flags.nnodes > 1 and flags.rdzv_endpoint is None:
        raise ValueError("--nnodes above 1 needs --rdzv-endpoint HOST:PORT of the first node")
    return nproc


def _rank_arguments(argv: list[str]) -> list[str]:
    """The command line without the launcher's own flags."""
    own = {"--nproc", "--nnodes", "--node-rank", "--rdzv-endpoint"}
    kept: list[str] = []
    skip = False
    for argument in argv:
        if skip:
            skip = False
        elif argument in own:
            skip = True
        elif argument.partition("=")[0] not in own:
            kept.append(argument)
    return kept


def _run(flags: argparse.Namespace, nproc: int, rank_arguments: list[str]) -> int:
    # Here, not above: bad flags are refused without waiting for torch.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The ranks speak for themselves; what the engine would add is tables and tracebacks.
    logging.disable(logging.CRITICAL)
    one_machine = flags.nnodes == 1
    if one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=flags.nnodes,
        max_nodes=flags.nnodes,
        nproc_per_node=nproc,
        run_id="switchyard",
        role="rank",
        rdzv_backend="c10d" if one_machine else "static",
        rdzv_endpoint="127.0.0.1:0" if one_machine else flags.rdzv_endpoint,
        rdzv_configs={} if one_machine else {"rank": flags.node_rank},
        local_addr="127.0.0.1" if one_machine else None,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder in /tmp stays behind
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "workers.rank", *rank_arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return 0
    finally:
        # The engine's handlers raise, also in the middle of the interpreter's exit.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
