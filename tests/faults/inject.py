"""Faults inside a rank: a `sitecustomize` that makes steps with certain tokens go wrong."""

from __future__ import annotations

from pathlib import Path

POISON = 397
"""A prompt token over which a rank dies, every time."""

STALL = 398
"""A prompt token over which a rank sleeps, once."""

GRIP = 399
"""A prompt token over which a rank sleeps and lets no other thread run, once."""

_CODE = """
import ctypes, importlib.abc, importlib.util, os, pathlib, signal, sys, time

ONCE = pathlib.Path({once!r})


def first_time(token):
    try:
        (ONCE / str(token)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def spoil(runner):
    launch = runner.Runner.launch

    def spoilt(self, step, *args, **kwargs):
        if {poison} in step.token_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if {stall} in step.token_ids and first_time({stall}):
            time.sleep(1000)
        if {grip} in step.token_ids and first_time({grip}):
            ctypes.PyDLL(None).sleep(1000)
        return launch(self, step, *args, **kwargs)

    runner.Runner.launch = spoilt


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "workers.step.runner":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            spoil(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def spoil_ranks(folder: Path) -> Path:
    """A folder to put first in the search path of a server whose ranks shall fail."""
    code = _CODE.format(once=str(folder), poison=POISON, stall=STALL, grip=GRIP)
    (folder / "sitecustomize.py").write_text(code)
    return folder
