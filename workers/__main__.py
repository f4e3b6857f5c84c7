"""``python -m workers``: keeps this machine's ranks of a group alive.

``python -m workers --model FOLDER --nproc N [--nnodes M --node-rank I --rdzv-endpoint H:P]``

Owns the flags of the process. Exits 0 after a signal to end, 2 for what cannot start.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.config import resolve_runner
from switchyard.flags import add_flags, read
from switchyard.model_files import shown
from switchyard.parser import Parser
from switchyard.worker.limits import check_limits
from switchyard.worker.link import read_secret
from switchyard.worker.output import lossy_output
from workers.checkpoint import Checkpoint
from workers.config import LauncherConfig, ParallelFlags, WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.launcher.launcher import Launcher
from workers.launcher.reports import REFUSED, Reporter
from workers.model_checkpoint import open_checkpoint
from workers.scale_blocks import with_quantization

_MAX_NAMES = 5  # of unknown keys, in one line


def parser() -> Parser:
    """All flags of a group of ranks and of its launcher."""
    parser = Parser(
        prog="python -m workers",
        description="Start a group of worker ranks, one per GPU (or CPU processes).",
    )
    for table in (WorkerConfig, ParallelFlags, LauncherConfig):
        add_flags(parser, table)
    return parser


def configure(
    flags: argparse.Namespace,
) -> tuple[WorkerConfig, ParallelConfig, LauncherConfig, ModelConfig]:
    """Flags to configs that fit the model's config.json, and what that says.

    Raises:
        ValueError: one line naming the flag or the file, the numbers and the choices.
    """
    config, layout = read(WorkerConfig, flags), read(ParallelFlags, flags)
    resolve_runner(config.moe_runner)
    model = ModelConfig.from_folder(config.model)
    parallel = resolve_parallel(
        tp=layout.tp,
        dp=layout.dp,
        ep=layout.ep,
        backend=layout.moe_ep_backend,
        has_experts=model.moe is not None and any(model.moe_layers),
    )
    model.check_tensor_parallel(parallel.tp)
    model = with_quantization(model, config.quantization, parallel, made_up=config.makes_up_weights)
    return config, parallel, read(LauncherConfig, flags), model


def main() -> int:
    """Check the flags, then keep the group alive; returns the exit status."""
    flags = parser().parse_args()
    gc.disable()  # little of what imports make is garbage; the launcher looks at it once
    try:
        check_limits(ranks=True)
        config, parallel, launch, model = configure(flags)
        secret = read_secret(config.link_secret_file)
        nproc = launch.ranks_here(parallel.tp, parallel.dp)
        checkpoint = None
        if not config.makes_up_weights:
            checkpoint, model = open_checkpoint(config.model, model)
    except ValueError as error:
        sys.stderr.write(f"switchyard workers: {error}\n")
        return REFUSED
    sys.stderr.write(f"{parallel.log_line}\n{parallel.reason}\n{_unknown(model.unknown_keys)}")
    sys.stderr.write(_left_out(model.left_out, checkpoint))
    sys.stderr.flush()
    try:
        _check_tensors(model, checkpoint)
    except ValueError as error:
        sys.stderr.write(f"switchyard workers: {error}\n")
        return REFUSED
    return _run(config, parallel, launch, secret, nproc)


def _unknown(keys: tuple[str, ...]) -> str:
    """The line that tells of keys in config.json that may mean another model; none without."""
    if not keys:
        return ""
    names = ", ".join(map(shown, keys[:_MAX_NAMES]))
    more = f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else ""
    return (
        f"switchyard workers: config.json has {names}{more}, which nothing here reads: answers are "
        "another model's if that changes the mathematics\n"
    )


def _left_out(prefixes: tuple[str, ...], checkpoint: Checkpoint | None) -> str:
    """The line that tells of tensors which are not served; none without."""
    if checkpoint is None or not checkpoint.num_left_out:
        return ""
    names = ", ".join(f"{each}*" for each in prefixes)
    return f"switchyard workers: {checkpoint.num_left_out} tensors are left out: {names}\n"


def _check_tensors(model: ModelConfig, checkpoint: Checkpoint | None) -> None:
    """Refuse a checkpoint of another model, before a rank takes a card or joins the others."""
    if checkpoint is None:
        return
    # Here, not above: it needs torch, but nothing of what ranks need besides.
    from workers.rank.model_plan import check_checkpoint

    check_checkpoint(model, checkpoint)


def _run(
    config: WorkerConfig,
    parallel: ParallelConfig,
    launch: LauncherConfig,
    secret: str | None,
    nproc: int,
) -> int:
    # Here, not above: bad flags are refused without waiting for torch.
    from workers.launcher.epochs import Epochs
    from workers.launcher.rank_session import run_group
    from workers.launcher.rendezvous import Meeting
    from workers.rank.process import RankTask

    host, port = launch.endpoint
    meeting = Meeting(host=host, port=port, node_rank=launch.node_rank, num_nodes=launch.nnodes)

    def one_group(reporter: Reporter, epochs: Epochs) -> None:
        task = RankTask(
            config=config,
            parallel=parallel,
            secret=secret,
            epochs=epochs,
            reporter=reporter,
        )
        run_group(meeting, nproc, task.run, reporter)

    return Launcher(one_group, nproc).run()


if __name__ == "__main__":
    with lossy_output():
        status = main()
    os._exit(status)  # torch would take longer to be taken down than ranks to end
