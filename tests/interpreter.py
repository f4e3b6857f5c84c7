"""What Triton's interpreter does not do well.

Cost: it patches Triton's language at every call of one device function by another, a millisecond
each, where once a launch is enough. It describes a type and a shape anew at every operation, which
takes longer than the operation. It works out whether integers overflow, for an assertion that only
a debugger's options let it make. Sums by exclusive or, of which sorts are made, go by the element.
Casts to FP8: it rounds ties up, and wrongly where that carries into the exponent; devices round to
even, as torch does. Masks: a comparison of scalars that is spread over a block becomes one of
int32, which from Triton 3.9 on is no mask.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
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


_KINDS: dict[str, np.dtype[Any]] = {}
_BLOCKS: dict[tuple[str, tuple[int, ...]], Any] = {}
_SHAPES: dict[tuple[int, ...], tuple[Any, Any]] = {}

_numpy_kind = interpreter._get_np_dtype
_describe_block = tl.core.block_type.__init__
_broadcast_at_length = TritonSemantic.broadcast_impl_value
_reduce_by_element = interpreter.ReduceOps.apply_impl


def _kind(dtype: Any) -> np.dtype[Any]:
    """numpy's type of Triton's, found once for each."""
    found = _KINDS.get(dtype.name)
    if found is None:
        found = _KINDS[dtype.name] = _numpy_kind(dtype)
    return found


def _init_block(block: Any, element_ty: Any, shape: Any) -> None:
    """As Triton's, but what follows from type and shape is worked out once for each."""
    sizes = tuple([each.value if type(each) is tl.constexpr else each for each in shape])
    found = _BLOCKS.get((element_ty.name, sizes))
    if found is None:
        _describe_block(block, element_ty, shape)
        _BLOCKS[element_ty.name, sizes] = block.shape, block.numel, block.name
        return
    block.element_ty = element_ty
    block.shape, block.numel, block.name = found


def _init_tensor(tensor: Any, handle: Any, kind: Any) -> None:
    """As Triton's, but tensors of one shape share its description."""
    sizes = tuple(kind.shape.values) if kind.is_block() else ()
    found = _SHAPES.get(sizes)
    if found is None:
        values = tl.tuple([tl.constexpr(each) for each in sizes])
        found = _SHAPES[sizes] = tl.constexpr(math.prod(sizes)), values
    tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
    tensor.numel, tensor.shape = found


def _broadcast(semantic: Any, one: Any, other: Any) -> tuple[Any, Any]:
    """As Triton's, which compares shapes of blocks at length."""
    blocks = one.type.is_block() and other.type.is_block()
    if blocks and one.type.shape.values == other.type.shape.values:
        return one, other
    return _broadcast_at_length(semantic, one, other)


def _reduce(reduction: Any, values: Any) -> Any:
    """As the interpreter's, but numpy takes exclusive or too."""
    if reduction.combine_fn != tl.standard._xor_combine:
        return _reduce_by_element(reduction, values)
    [block] = values
    data = np.bitwise_xor.reduce(
        block.handle.data, axis=reduction.axis, keepdims=reduction.keep_dims
    )
    return reduction.to_tensor(data, block.dtype)


def patch_cost() -> None:
    """For the rest of this process."""
    TritonSemantic.broadcast_impl_value = _broadcast
    interpreter.ReduceOps.apply_impl = _reduce
    interpreter._get_np_dtype = _kind
    tl.core.block_type.__init__ = _init_block
    tl.core.tensor.__init__ = _init_tensor
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    interpreter.interpreter_builder.options = options
