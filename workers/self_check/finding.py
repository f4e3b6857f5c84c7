"""How far a kernel's numbers are from those of plain torch, and how far a right kernel's may be.

Owns the measure and its limits. Knows no kernel. "…" any rows.

Two limits, and a kernel must keep both. The largest error is that of a number over its own size
and the root mean square of its row: so one wrong number of a million is seen. The mean error, that
of all numbers over theirs, is known better: so a slight error of all is seen. A rounding to a type
changes a number by one unit at most and by 0.4 in the mean, and independent ones add up as squares
do. The limits are one unit for each rounding on the way for the mean, four for the largest: the
worst of a million sums of roundings is less than six times their mean. A wrong kernel (another
operand, a scale left out, the row of somebody else) is off by a hundred units and more.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

# Sums of fp32 in another order: the root of 65,536 inputs times 2^-24.
_SUM_ORDER = 2.0**-16
_TINY = 1e-30


class Tolerance(NamedTuple):
    """What is allowed of the mean error and of the largest."""

    mean: float
    largest: float


# Numbers that were made e4m3, which have an error of 1/16 of their size at most and 0.027 in the
# mean; and sums of such, whose worst of a million is less than six times the mean.
EIGHT_BITS = Tolerance(mean=0.06, largest=0.1)
SUMS_OF_EIGHT_BITS = Tolerance(mean=0.06, largest=0.25)
# Sums in fp32 of products of 16 bits: tensor cores drop bits where they add.
TENSOR_CORE_SUMS = Tolerance(mean=2.0**-12, largest=2.0**-10)
# fp32 arithmetic on few numbers: exponentials, quotients.
EXACT = Tolerance(mean=1e-5, largest=1e-4)


def roundings(count: int, dtype: torch.dtype) -> Tolerance:
    """Of a result that was rounded so often to ``dtype`` on its way, sums being those of fp32."""
    unit = max(torch.finfo(dtype).eps / 2, _SUM_ORDER)
    return Tolerance(mean=count * unit, largest=4 * count * unit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison.

    Attributes:
        what: the kernels, their shapes and the rows.
        measure: what ``error`` is.
        error, allowed: NaN is an error too.
    """

    what: str
    measure: str
    error: float
    allowed: float

    @property
    def is_right(self) -> bool:
        """Whether the kernel may be served with."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.what}: {self.measure} {self.error:.2g}, allowed {self.allowed:.2g}"


def compare(what: str, got: torch.Tensor, expected: torch.Tensor, allowed: Tolerance) -> Finding:
    """The error that is closer to its limit or beyond, of numbers ``[…, N]``.

    What is not finite by plain torch says nothing of a kernel: it comes from the model's weights.
    """
    is_number = expected.isfinite()
    wanted = expected.float().where(is_number, 0.0)
    error = (got.float() - wanted).where(is_number, 0.0).abs()
    square = wanted.square()
    sizes = wanted.abs() + square.mean(-1, keepdim=True).sqrt()
    largest = float((error / sizes.clamp(min=_TINY)).max())
    mean = float(error.square().mean().sqrt() / square.mean().sqrt().clamp(min=_TINY))
    if not mean / allowed.mean <= largest / allowed.largest:
        return Finding(what=what, measure="mean error", error=mean, allowed=allowed.mean)
    return Finding(what=what, measure="largest error", error=largest, allowed=allowed.largest)


def count(what: str, is_wrong: torch.Tensor, *, allowed: float = 0.0) -> Finding:
    """The share of wrong ones."""
    share = float(is_wrong.float().mean())
    return Finding(what=what, measure="share of wrong ones", error=share, allowed=allowed)


def told(num_rows: int) -> str:
    """For people."""
    return "1 row" if num_rows == 1 else f"{num_rows} rows"
