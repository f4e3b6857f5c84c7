"""How matrices of 4-bit integers, their scales and their zero points stand in memory and in a
checkpoint.

Owns `Int4Format`. Imports no torch, so that a launcher can check it before anything heavy starts.
Knows nothing of config.json. N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

STORED = ("gptq", "gptq_v2", "awq", "compressed", "plain")
SCALE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
UNIT = 32  # inputs that lie packed together in memory: see `int4_pack`
MIDDLE = 8  # the zero point of a group that has none of its own
_WORD = 8  # numbers of four bits in 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Format:
    """One format, the same for all matrices that have it: (number − zero point) · scale.

    Attributes:
        group: inputs of a row that share a scale and a zero point; None: all of them.
        zero_points: whether groups have zero points of their own; without they are `MIDDLE`.
        stored: what a checkpoint holds for a matrix: "gptq" and "gptq_v2" (AutoGPTQ's and
            GPTQModel's, which differ by one in their zero points), "awq" (AutoAWQ's `gemm`),
            "compressed" (compressed-tensors' `pack-quantized`); "plain": values of another type,
            which are quantized as they are read.
        scale_type: of the scales, in memory as in the checkpoint.
        has_group_index: a "gptq" checkpoint says of each input which group it is of.
    """

    group: int | None = 128
    zero_points: bool = False
    stored: str = "plain"
    scale_type: str = "float16"
    has_group_index: bool = False

    def __post_init__(self) -> None:
        assert self.stored in STORED and self.scale_type in SCALE_BYTES
        assert self.group is None or self.group % UNIT == 0
        assert self.zero_points or self.stored != "awq"

    @property
    def label(self) -> str:
        """For people: how it stands in memory."""
        groups = "by row" if self.group is None else f"by {self.group}"
        return f"int4 {groups}{' with zero points' if self.zero_points else ''}"

    @property
    def multiples(self) -> tuple[int, int]:
        """A rank's share of a matrix must have multiples of so many rows and columns."""
        packs_rows = self.stored in ("gptq", "gptq_v2", "awq")
        packs_rows |= self.stored == "compressed" and self.zero_points
        return _WORD if packs_rows else 1, self.group or UNIT

    @property
    def scale_suffix(self) -> str:
        """What stands behind a module's name in that of its scales."""
        return "weight_scale" if self.stored == "compressed" else "scales"

    def block_of(self, num_columns: int) -> tuple[int, int]:
        """The values that share a scale, in a matrix of so many columns."""
        return 1, self.group or num_columns

    def num_bytes(self, rows: float, columns: float) -> float:
        """Of a matrix, its scales and its zero points in memory, in the mean of layers of so many
        of each."""
        groups = rows * (columns / self.group if self.group else 1)
        return rows * columns / 2 + (SCALE_BYTES[self.scale_type] + self.zero_points) * groups
