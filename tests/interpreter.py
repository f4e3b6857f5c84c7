"""Triton's interpreter at a third less cost: it patches Triton's language at every call of one
device function by another, a millisecond each, where once a launch is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


class _Patches:
    """Stands for the interpreter's `_patch_lang`: of a launch, the first patch of each module."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self._patch = patch
        self._modules: dict[Any, frozenset[int]] = {}
        self._patched: frozenset[int] = frozenset()

    def __call__(self, function: Any) -> _Patches:
        wanted = self._modules.get(function)
        if wanted is None:
            names = function.__globals__.values()
            wanted = frozenset(id(each) for each in names if each is tl or each is tl.core)
            self._modules[function] = wanted
        if not wanted <= self._patched:
            if not self._patched:
                self._scope = self._patch(function)
            else:
                self._patch(function)  # as in Triton, it stays
            self._patched |= wanted
        return self

    def restore(self) -> None:
        """A launch ends; no launch is within another."""
        self._scope.restore()
        self._patched = frozenset()


def patch_once_a_launch() -> None:
    """For the rest of this process; a second call changes nothing."""
    if not isinstance(interpreter._patch_lang, _Patches):
        interpreter._patch_lang = _Patches(interpreter._patch_lang)
