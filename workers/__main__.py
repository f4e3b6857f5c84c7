"""``python -m workers``: keeps this machine's ranks of a group alive.

``python -m workers --model FOLDER --nproc N [--nnodes M --node-rank I --rdzv-endpoint H:P]``

Owns the flags of the process. Exits 0 when told to end, 2 for what cannot start.
"""

from __future__ import annotations

import argparse
import os
import sys

from moe.base.parallel import ParallelConfig
from switchyard.worker.link import read_secret
from workers.config import WorkerConfig
from workers.flags import configure, parser
from workers.launcher.launcher import Launcher
from workers.launcher.reports import REFUSED, Reporter


def main() -> int:
    """Check the flags, then keep the group alive; returns the exit status."""
    flags_parser = parser()
    flags_parser.add_argument("--nproc", type=int, default=None, help="ranks on this machine")
    flags_parser.add_argument("--nnodes", type=int, default=1)
    flags_parser.add_argument("--node-rank", type=int, default=0)
    flags_parser.add_argument("--rdzv-endpoint", default=None, help="host:port of the first node")
    flags = flags_parser.parse_args()
    try:
        config, parallel = configure(flags)
        secret = read_secret(config.link_secret_file)
        nproc = _ranks_here(flags, parallel)
        endpoint = _endpoint(flags)
    except ValueError as error:
        sys.stderr.write(f"switchyard workers: {error}\n")
        return REFUSED
    sys.stderr.write(f"{parallel.log_line}\n{parallel.reason}\n")
    sys.stderr.flush()
    return _launch(config, parallel, secret, nproc, flags, endpoint)


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


def _endpoint(flags: argparse.Namespace) -> tuple[str, int]:
    """Host and port to meet at; on one machine a free port that no other can reach."""
    if flags.nnodes == 1:
        return "127.0.0.1", 0
    host, _, port = flags.rdzv_endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--rdzv-endpoint is {flags.rdzv_endpoint!r}; give HOST:PORT")
    if not 0 <= flags.node_rank < flags.nnodes:
        raise ValueError(f"--node-rank {flags.node_rank} must be 0 to {flags.nnodes - 1}")
    return host.strip("[]"), int(port)


def _launch(
    config: WorkerConfig,
    parallel: ParallelConfig,
    secret: str | None,
    nproc: int,
    flags: argparse.Namespace,
    endpoint: tuple[str, int],
) -> int:
    # Here, not above: bad flags are refused without waiting for torch.
    from workers.launcher.rank_session import run_group
    from workers.launcher.rendezvous import Meeting
    from workers.rank.process import RankTask

    host, port = endpoint
    meeting = Meeting(host=host, port=port, node_rank=flags.node_rank, num_nodes=flags.nnodes)

    def one_group(reporter: Reporter, newest_epoch: int) -> None:
        task = RankTask(
            config=config,
            parallel=parallel,
            secret=secret,
            newest_epoch=newest_epoch,
            reporter=reporter,
        )
        run_group(meeting, nproc, task.run, reporter)

    return Launcher(one_group, nproc).run()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch would take longer to be taken down than ranks to end
