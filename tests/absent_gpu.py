"""Launches compiled for a GPU that is not there: Triton's interpreter runs what no compiler takes.

For a process of its own, without the interpreter: it replaces Triton's driver and launches. A test
runs such a process by `compiled`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = 227 << 10  # that a program may have on a Hopper GPU


class _Hopper:
    """As much of a driver as compiling takes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


class Launch(NamedTuple):
    """A kernel, its bytes of shared memory, and what Triton made of it before LLVM."""

    name: str
    shared: int
    ttgir: str


def compile_for_hopper() -> None:
    """Kernels are compiled for a Hopper GPU from now on, whatever this machine has."""
    driver.set_active(_Hopper())


def compile_launches() -> list[Launch]:
    """From now on a launch, with tensors on the meta device, compiles its kernel and runs nothing.

    Returns:
        The launches; it grows.
    """
    launches: list[Launch] = []

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def compile_kernel(*args: Any, **options: Any) -> None:
            compiled = kernel.run(*args, grid=grid, warmup=True, **options)
            shared, ttgir = compiled.metadata.shared, compiled.asm["ttgir"]
            launches.append(Launch(kernel.__name__, shared, ttgir))

        return compile_kernel

    compile_for_hopper()
    JITFunction.__getitem__ = launcher
    return launches


def tell(launches: list[Launch]) -> None:
    """Write what `compiled` reads."""
    for name, shared, _ in launches:
        sys.stdout.write(f"{name} {shared}\n")


def compiled(module: str, *arguments: str) -> list[str]:
    """Kernels of the launches that ``python -m module`` has compiled and told; all fit a Hopper
    GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    launches = [line.split() for line in result.stdout.splitlines()]
    assert max(int(shared) for _, shared in launches) <= SHARED_BYTES
    return [name for name, _ in launches]
