"""What a rank is told: the flags of ``python -m workers`` as one frozen record, checked once.

Torch-free, so that the launcher can refuse bad flags before anything heavy is imported. Knows
nothing of processes, devices or the model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

DTYPES = ("auto", "bfloat16", "float32")


DEVICES = ("auto", "cpu", "cuda")


LOAD_FORMATS = ("auto", "safetensors", "dummy")


ON_OFF = ("on", "off")


LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of a group of ranks; each is a flag of ``python -m workers``.

    ``None`` means "chosen from the model and the device" (see startup.py), of the secret: none.
    """

    model: Path
    listen: str
    device: str = "auto"
    dtype: str = "auto"
    load_format: str = "auto"
    max_batch_size: int = 256
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    num_blocks: int | None = None
    memory_fraction: float = 0.9
    seed: int = 0
    moe_runner: str = "auto"
    cuda_graphs: str = "on"
    link_secret_file: Path | None = None
    insecure_link: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("--device", self.device, DEVICES),
            ("--dtype", self.dtype, DTYPES),
            ("--load-format", self.load_format, LOAD_FORMATS),
            ("--cuda-graphs", self.cuda_graphs, ON_OFF),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        for name, size in (
            ("--max-batch-size", self.max_batch_size),
            ("--max-model-len", self.max_model_len),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--block-size", self.block_size),
            ("--num-blocks", self.num_blocks),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        self._check_listen()
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ValueError(
                f"--memory-fraction is {self.memory_fraction}; it must be above 0 and at most 1"
            )

    def _check_listen(self) -> None:
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
