"""What Triton's interpreter does not do well.

Cost: it patches Triton's language at every call of one device function by another, a millisecond
each, where once a launch is enough. Casts to FP8: it rounds ties up, and wrongly where that carries
into the exponent; devices round to even, as torch does. Masks: a comparison of scalars that is
spread over a block becomes one of int32, which from Triton 3.9 on is no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
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


_convert = interpreter._convert_float
_FROM = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}


def _convert_float(values: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
    """As the interpreter's, but for FP8 of e4m3, which torch rounds."""
    if target != tl.float8e4nv or source not in _FROM:
        return _convert(values, source, target, rounding_mode)
    words = np.ascontiguousarray(values).view(np.uint8)
    floats = torch.from_numpy(words.copy()).view(_FROM[source])
    rounded = floats.to(torch.float8_e4m3fn).view(torch.uint8)
    return rounded.numpy().reshape(values.shape)


def patch_fp8_casts() -> None:
    """For the rest of this process."""
    interpreter._convert_float = _convert_float


_splat = interpreter.InterpreterBuilder.create_splat


def _create_splat(builder: Any, block_type: Any, scalar: Any) -> Any:
    """As the interpreter's, but for truth values, which stay some."""
    block = _splat(builder, block_type, scalar)
    if scalar.data.dtype != np.bool_:
        return block
    return interpreter.TensorHandle(block.data.astype(np.bool_), tl.int1)


def patch_scalar_masks() -> None:
    """For the rest of this process."""
    interpreter.InterpreterBuilder.create_splat = _create_splat
