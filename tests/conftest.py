"""What all tests share: one thread a process, since several processes share the cores; kernels that
Triton interprets where there is no GPU; and markers that say what a test costs.

A test that starts Python processes or interprets a kernel fails without the marker that says so,
so that `make check` leaves out what it should.
"""

import gc
import multiprocessing.process
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are defined

from triton.runtime.interpreter import InterpretedFunction

from tests.interpreter import patch_cost, patch_fp8_casts, patch_once_a_launch, patch_scalar_masks

if os.environ.get("TRITON_INTERPRET") == "1":
    patch_once_a_launch()
    patch_cost()
    patch_fp8_casts()
    patch_scalar_masks()


def _is_python(command: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Whether a command line starts this interpreter; openssl, say, is quick."""
    return not isinstance(command, str) and bool(command) and command[0] == sys.executable


# Tests that no default run has cost what they like.
_FREE = ("gpu", "grid", "netns", "podman")
# The marker: who needs it, by the functions that do what it names and when their arguments matter.
_GUARDED: dict[str, list[tuple[type, str, Callable[..., bool]]]] = {
    "processes": [
        (subprocess.Popen, "__init__", _is_python),
        (multiprocessing.process.BaseProcess, "start", lambda: True),
    ],
    "interpreter": [(InterpretedFunction, "run", lambda *args, **kwargs: True)],
}


def _guarded(item: pytest.Item, marker: str, owner: type, name: str, counts: Any) -> Any:
    original = getattr(owner, name)

    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if counts(*args, **kwargs):
            pytest.fail(f"{item.nodeid} needs the marker {marker!r} (see pyproject.toml)")
        return original(self, *args, **kwargs)

    return guarded


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is collected stays: the collector of garbage need not look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for marker, functions in _GUARDED.items():
            if not any(item.get_closest_marker(name) for name in (marker, *_FREE)):
                for owner, name, counts in functions:
                    patch.setattr(owner, name, _guarded(item, marker, owner, name, counts))
        return (yield)
