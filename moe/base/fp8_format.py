"""How matrices of 8-bit floats (e4m3) and their scales stand in memory and in a checkpoint.

Owns `Fp8Format`. Imports no torch, so that a launcher can check it before anything heavy starts.
Knows nothing of config.json. N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

_SCALE_BYTES = 4

STORED = ("blocks", "scalar", "vector", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Format:
    """One format, the same for all matrices that have it.

    Attributes:
        block: rows and columns of the values that share a scale in memory; None: each row has one.
        stored: what a checkpoint holds for a matrix's scales: "blocks", fp32 or bf16 [N/bn, K/bk],
            or [N, 1] without a block; "scalar" [] or "vector" [1], one scale, which counts for
            every row; "plain": none, the values are of another type and quantized as they are read.
        suffix: a tensor's scales have its name and this.
    """

    block: tuple[int, int] | None = None
    stored: str = "blocks"
    suffix: str = "_scale"

    def __post_init__(self) -> None:
        assert self.stored in STORED
        assert self.block is None or self.stored in ("blocks", "plain")

    @property
    def label(self) -> str:
        """For people: how it stands in memory."""
        return "fp8 by row" if self.block is None else f"fp8 {self.block[0]}x{self.block[1]}"

    @property
    def multiples(self) -> tuple[int, int]:
        """A rank's share of a matrix must have multiples of so many rows and columns."""
        return self.block or (1, 1)

    def block_of(self, num_columns: int) -> tuple[int, int]:
        """The values that share a scale, in a matrix of so many columns."""
        return self.block or (1, num_columns)

    def num_bytes(self, rows: float, columns: float) -> float:
        """Of a matrix and its scales in memory, in the mean of layers of so many of each."""
        scales = rows if self.block is None else rows * columns / (self.block[0] * self.block[1])
        return rows * columns + _SCALE_BYTES * scales
