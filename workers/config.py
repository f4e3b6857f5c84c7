"""The settings of a group of ranks and of its launcher, each a flag of ``python -m workers``.

Owns three tables: what a rank does, how ranks divide the work, and where they run. Torch-free, so
that bad flags are refused before anything heavy is imported. Knows nothing of processes, devices or
the model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe.base.parallel import BACKENDS
from moe.config import RUNNER_NAMES
from switchyard import flags
from switchyard.flags import flag

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParallelFlags:
    """How ranks divide attention and experts, as it was asked for; see `moe.base.parallel`."""

    tp: int = flag(
        "ranks that share one copy of the attention weights",
        1, aliases=("--tensor-parallel-size",), at_least=1,
    )  # fmt: skip
    dp: int = flag("attention replicas", 1, aliases=("--data-parallel-size",), at_least=1)
    ep: int | None = flag(
        "ranks that the experts are spread over: 1 or tp·dp",
        None, aliases=("--expert-parallel-size",), at_least=1,
        unset="tp·dp, or 1 with the backend disabled", seldom=True,
    )  # fmt: skip
    moe_ep_backend: str = flag(
        "how tokens and experts meet",
        "auto",
        metavar=f"{{auto,{','.join(BACKENDS[:-1])}}}",
        seldom=True,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of each rank of a group. None is "chosen from the model and the device"."""

    model: Path = flag("folder in Hugging Face layout", metavar="FOLDER", shared=False)
    listen: str = flag(
        "rank i of this machine takes port + i, or unix:/dir/rank-{rank}.sock",
        "127.0.0.1:50061", metavar="HOST:PORT", shared=False,
    )  # fmt: skip
    device: str = flag(
        "auto takes CUDA where there is one", "auto", choices=("auto", "cpu", "cuda")
    )
    dtype: str = flag(
        "of weights and activations", "auto", choices=("auto", "bfloat16", "float32"),
        spellings=(("bf16", "bfloat16"), ("fp32", "float32"), ("float", "float32")),
    )  # fmt: skip
    kv_cache_dtype: str = flag(
        "of keys and values; fp8_e4m3 holds twice the tokens, auto is that of activations", "auto",
        choices=("auto", "fp8_e4m3"), spellings=(("fp8", "fp8_e4m3"),),
    )  # fmt: skip
    load_format: str = flag(
        "dummy makes weights up",
        "auto",
        choices=("auto", "safetensors", "dummy"),
        seldom=True,
    )
    quantization: str = flag(
        "fp8 and int4 make weights of 8 and 4 bits of those that have more; auto: as they are read",
        "auto", choices=("auto", "fp8", "int4"),
    )  # fmt: skip
    load_progress: str = flag(
        "how reading weights is shown; auto: a bar on a terminal, else lines",
        "auto", choices=("auto", "bar", "lines"), seldom=True,
    )  # fmt: skip
    max_batch_size: int = flag(
        "sequences that run at once on a replica", 256, aliases=("--max-num-seqs",), at_least=1
    )
    kept_states: int | None = flag(
        "states of prefixes that later sequences may find, of models whose layers keep states",
        None, at_least=0, unset="half of max-batch-size",
    )  # fmt: skip
    max_model_len: int | None = flag(
        "prompt plus output of one sequence",
        None, unit="tokens", at_least=1, unset="the model's",
    )  # fmt: skip
    max_num_batched_tokens: int | None = flag(
        "tokens of one step of a replica",
        None, unit="tokens", at_least=1, unset="8192 on CUDA, 1024 on a CPU",
    )  # fmt: skip
    block_size: int = flag("tokens in a KV block", 16, unit="tokens", at_least=1, seldom=True)
    num_blocks: int | None = flag(
        "KV blocks of a replica", None, at_least=1, unset="what fits", seldom=True
    )
    memory_fraction: float = flag(
        "share of the device's memory to use",
        0.9, aliases=("--gpu-memory-utilization",), above=0, at_most=1,
    )  # fmt: skip
    seed: int = flag("of made-up weights", 0, seldom=True)
    moe_runner: str = flag(
        "kernels of the experts",
        "auto",
        metavar=f"{{auto,{','.join(RUNNER_NAMES)}}}",
        seldom=True,
    )
    cuda_graphs: str = flag(
        "off launches steps kernel by kernel", "on", choices=("on", "off"), seldom=True
    )
    self_check: str = flag(
        "compare kernels and exchanges with plain torch before serving", "on",
        choices=("on", "off"), seldom=True,
    )  # fmt: skip
    link_secret_file: Path | None = flag(
        "secret that frontends must know to be served", None, unset="none", shared=False
    )
    insecure_link: bool = flag("serve any frontend, from any machine", False, shared=False)
    frontend_timeout: float = flag(
        "wait of the ranks for the next frontend after one that died", 60.0, unit="seconds",
        at_least=0, seldom=True,
    )  # fmt: skip

    @property
    def makes_up_weights(self) -> bool:
        """Whether no checkpoint is read."""
        return self.load_format == "dummy"

    def __post_init__(self) -> None:
        flags.check(self)
        if self.listen.startswith("unix:"):
            return
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"--listen is {self.listen!r}; give HOST:PORT or unix:/dir/rank-{{rank}}.sock"
            )
        if host not in LOOPBACK and self.link_secret_file is None and not self.insecure_link:
            raise ValueError(
                f"--listen {self.listen} can be reached from other machines by anybody; pass "
                "--link-secret-file FILE here and to the frontend, or --insecure-link"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LauncherConfig:
    """Where the ranks of a group run."""

    nproc: int | None = flag(
        "ranks on this machine", None, at_least=1, unset="tp·dp ÷ nnodes", shared=False
    )
    nnodes: int = flag("machines", 1, at_least=1, shared=False)
    node_rank: int = flag("number of this machine, from 0", 0, at_least=0, shared=False)
    rdzv_endpoint: str | None = flag(
        "the first machine, which the others meet at",
        None, metavar="HOST:PORT", unset="none; needed for --nnodes above 1", shared=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        flags.check(self)
        if self.node_rank >= self.nnodes:
            raise ValueError(f"--node-rank {self.node_rank} must be 0 to {self.nnodes - 1}")
        if self.nnodes == 1:
            return
        if self.rdzv_endpoint is None:
            raise ValueError("--nnodes above 1 needs --rdzv-endpoint HOST:PORT of the first node")
        host, _, port = self.rdzv_endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--rdzv-endpoint is {self.rdzv_endpoint!r}; give HOST:PORT")

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port to meet at; on one machine a free port that no other can reach."""
        if self.nnodes == 1 or self.rdzv_endpoint is None:
            return "127.0.0.1", 0
        host, _, port = self.rdzv_endpoint.rpartition(":")
        return host.strip("[]"), int(port)

    def ranks_here(self, tp: int, dp: int) -> int:
        """Ranks to start on this machine.

        Raises:
            ValueError: all machines together would not make tp × dp.
        """
        nproc = self.nproc if self.nproc is not None else tp * dp // self.nnodes
        if nproc * self.nnodes != tp * dp:
            raise ValueError(
                f"--nproc {nproc} × --nnodes {self.nnodes} is not --tp {tp} × --dp {dp} = {tp * dp}"
            )
        return nproc
