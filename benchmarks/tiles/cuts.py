"""Lists of tiles worth timing: what won on some device, and what came close to it.

Owns the numbers alone; `candidates` knows what they mean and where they fit.
"""

from __future__ import annotations

import dataclasses

# Columns, depth, warps, stages, swap.
Cut = tuple[int, int, int, int, bool]
# Columns, depth (0: all of it), warps of matrix-vector kernels; linear ones know only all of it.
VectorCut = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """By op: of tiles of up to 32 rows, of tiles of more, and of matrix-vector kernels."""

    few_rows: dict[str, tuple[Cut, ...]]
    many_rows: dict[str, tuple[Cut, ...]]
    vectors: dict[str, tuple[VectorCut, ...]]


# Of weights of the model's type, on an H200.
PLAIN = Cuts(
    few_rows={
        "gate_up": (
            (32, 128, 4, 3, False), (32, 256, 4, 2, False), (32, 256, 4, 3, False),
            (64, 64, 4, 4, False), (64, 128, 4, 2, False), (64, 128, 4, 3, False),
            (128, 64, 8, 3, False), (16, 256, 4, 3, False), (64, 64, 4, 4, True),
            (64, 64, 4, 6, True), (64, 128, 4, 2, True), (64, 128, 4, 3, True),
            (64, 128, 8, 3, True), (128, 64, 8, 3, True),
        ),
        "down": (
            (32, 128, 4, 4, False), (32, 256, 4, 3, False), (64, 64, 4, 5, False),
            (64, 128, 4, 3, False), (64, 128, 4, 4, False), (64, 256, 4, 2, False),
            (128, 64, 4, 4, False), (128, 128, 4, 2, False), (128, 128, 8, 3, False),
            (64, 64, 4, 5, True), (64, 128, 4, 3, True), (64, 128, 4, 4, True),
            (64, 256, 4, 2, True), (128, 64, 4, 4, True), (128, 128, 8, 3, True),
        ),
        "linear": (
            (32, 128, 4, 4, False), (32, 256, 4, 3, False), (64, 64, 4, 5, False),
            (64, 128, 4, 4, False), (128, 64, 4, 4, False), (64, 64, 4, 6, True),
            (64, 128, 4, 4, True),
        ),
    },
    many_rows={
        "gate_up": (
            (64, 64, 4, 4, False), (64, 64, 8, 4, False), (64, 128, 4, 3, True),
            (128, 64, 4, 3, False), (128, 64, 4, 4, False), (128, 64, 8, 3, False),
            (128, 64, 8, 4, False),
        ),
        "down": (
            (64, 128, 4, 3, True), (128, 64, 4, 4, False), (128, 64, 8, 4, False),
            (128, 128, 8, 3, False), (256, 64, 8, 3, False), (256, 64, 8, 4, False),
        ),
        "linear": (
            (32, 128, 4, 4, False), (64, 64, 4, 5, False), (64, 128, 4, 4, False),
            (128, 64, 4, 4, False), (64, 64, 4, 6, True), (128, 64, 8, 4, False),
        ),
    },
    vectors={
        "gate_up": (
            (2, 0, 4), (2, 0, 8), (4, 0, 8), (2, 1024, 2), (4, 512, 4), (4, 1024, 4), (8, 256, 4),
            (8, 512, 4), (8, 1024, 8), (16, 128, 4),
        ),
        "down": (
            (4, 0, 4), (8, 0, 4), (8, 0, 8), (16, 0, 8), (4, 256, 2), (8, 256, 4), (16, 128, 4),
            (16, 256, 4), (32, 128, 4), (32, 256, 4),
        ),
        "linear": ((2, 0, 4), (4, 0, 4), (4, 0, 8), (8, 0, 4), (8, 0, 8), (16, 0, 8), (16, 0, 16)),
    },
)  # fmt: skip

# Of FP8 weights: half the bytes a tile, so that more of them are in flight. A block of scales ends
# at 128 rows and inputs.
FP8 = Cuts(
    few_rows={
        "gate_up": (
            (32, 128, 2, 5, False), (32, 128, 4, 4, False), (32, 128, 4, 6, False),
            (64, 64, 4, 6, False), (64, 128, 2, 4, False), (64, 128, 4, 3, False),
            (64, 128, 4, 4, False), (64, 128, 4, 5, False), (64, 128, 8, 4, False),
            (128, 128, 4, 3, False), (128, 128, 8, 3, False), (128, 128, 8, 4, False),
            (32, 128, 4, 5, True), (64, 128, 4, 4, True), (128, 128, 8, 3, True),
        ),
        "down": (
            (32, 128, 4, 6, False), (64, 128, 2, 5, False), (64, 128, 4, 4, False),
            (64, 128, 4, 6, False), (128, 64, 4, 6, False), (128, 128, 4, 3, False),
            (128, 128, 4, 4, False), (128, 128, 4, 5, False), (128, 128, 8, 4, False),
            (128, 128, 8, 6, False), (64, 128, 4, 5, True), (128, 128, 8, 4, True),
        ),
        "linear": (
            (32, 128, 4, 6, False), (64, 128, 2, 6, False), (64, 128, 4, 4, False),
            (64, 128, 4, 6, False), (128, 128, 4, 4, False), (128, 128, 8, 4, False),
            (64, 128, 4, 3, True), (64, 128, 4, 5, True), (64, 128, 4, 7, True),
            (128, 128, 4, 2, True), (128, 128, 4, 4, True), (128, 128, 8, 4, True),
        ),
    },
    many_rows={
        "gate_up": (
            (64, 64, 4, 4, False), (64, 128, 4, 3, False), (64, 128, 8, 3, False),
            (128, 64, 8, 4, False), (128, 128, 8, 3, False), (64, 128, 4, 3, True),
        ),
        "down": (
            (64, 128, 4, 4, False), (128, 128, 4, 4, False), (128, 128, 8, 3, False),
            (128, 128, 8, 4, False), (64, 128, 4, 4, True), (128, 128, 8, 3, True),
        ),
        "linear": (
            (64, 128, 4, 4, False), (64, 128, 8, 4, False), (128, 128, 4, 4, False),
            (128, 128, 8, 3, False), (64, 128, 4, 3, True), (64, 128, 4, 5, True),
            (128, 128, 4, 2, True), (128, 128, 4, 4, True), (128, 128, 8, 3, True),
        ),
    },
    vectors={
        "gate_up": (
            (2, 0, 2), (2, 0, 4), (4, 0, 4), (4, 0, 8), (8, 0, 4), (8, 0, 8), (4, 1024, 4),
            (8, 1024, 4), (8, 512, 4),
        ),
        "down": (
            (4, 0, 2), (4, 0, 4), (8, 0, 2), (8, 0, 4), (16, 0, 4), (16, 0, 8), (8, 256, 2),
            (16, 256, 4), (32, 256, 4), (32, 256, 8),
        ),
        "linear": (
            (2, 0, 2), (2, 0, 4), (4, 0, 4), (4, 0, 8), (8, 0, 4), (8, 0, 8), (16, 0, 8),
        ),
    },
)  # fmt: skip

# Of FP8 weights and activations: two sums of 128 columns a tile and the one of a step beside them
# fill the registers of eight warps; smaller tiles leave room for a second program. The swapped ones
# are for activations of the model's type.
BOTH_FP8 = Cuts(
    few_rows=FP8.few_rows,
    many_rows={
        "gate_up": (
            (128, 128, 8, 3, False), (128, 128, 8, 4, False), (128, 128, 4, 4, False),
            (64, 128, 8, 3, False), (64, 128, 8, 4, False), (64, 128, 4, 3, False),
            (64, 128, 4, 4, False), (128, 128, 8, 3, True),
        ),
        "down": (
            (256, 128, 8, 3, False), (256, 128, 8, 4, False), (256, 128, 8, 2, False),
            (256, 64, 8, 4, False), (128, 128, 8, 3, False), (128, 128, 8, 4, False),
            (128, 128, 4, 3, False), (128, 128, 4, 4, False), (64, 128, 4, 4, False),
            (128, 128, 8, 4, True),
        ),
        "linear": (
            (256, 128, 8, 3, False), (256, 128, 8, 4, False), (256, 128, 8, 2, False),
            (128, 128, 8, 3, False), (128, 128, 8, 4, False), (128, 128, 8, 5, False),
            (128, 128, 4, 3, False), (128, 128, 4, 4, False), (128, 128, 8, 3, True),
        ),
    },
    vectors=FP8.vectors,
)  # fmt: skip

# Of weights of four bits, not measured yet: swapped, so that tensor cores take them from registers,
# as deep as a group. A sum of a step beside those of a tile takes registers.
INT4 = Cuts(
    few_rows={
        "gate_up": (
            (64, 128, 4, 3, True), (64, 128, 4, 4, True), (64, 128, 4, 5, True),
            (64, 128, 4, 6, True), (64, 128, 4, 8, True), (64, 64, 4, 6, True),
            (128, 128, 8, 3, True), (128, 128, 8, 4, True), (128, 128, 8, 6, True),
            (128, 128, 4, 3, True), (128, 128, 4, 4, True), (32, 128, 4, 4, False),
            (32, 128, 2, 5, False), (64, 128, 4, 4, False),
        ),
        "down": (
            (64, 128, 4, 3, True), (64, 128, 4, 4, True), (64, 128, 4, 6, True),
            (64, 64, 4, 6, True), (128, 128, 4, 3, True), (128, 128, 4, 4, True),
            (128, 128, 4, 6, True), (128, 128, 8, 4, True), (128, 128, 8, 6, True),
            (32, 128, 4, 4, False), (64, 128, 4, 4, False),
        ),
        "linear": (
            (64, 128, 4, 4, True), (64, 128, 4, 6, True), (64, 128, 4, 8, True),
            (64, 64, 4, 6, True), (128, 128, 4, 4, True), (128, 128, 8, 4, True),
            (32, 128, 4, 4, False), (64, 128, 4, 4, False),
        ),
    },
    many_rows={
        "gate_up": (
            (64, 128, 4, 3, True), (64, 128, 4, 4, True), (128, 128, 8, 2, True),
            (128, 128, 8, 3, True), (128, 128, 8, 4, True), (64, 64, 4, 4, True),
            (64, 128, 4, 3, False), (128, 128, 8, 3, False),
        ),
        "down": (
            (64, 128, 4, 3, True), (64, 128, 4, 4, True), (128, 128, 4, 3, True),
            (128, 128, 8, 3, True), (128, 128, 8, 4, True), (128, 64, 8, 4, True),
            (128, 128, 8, 3, False),
        ),
        "linear": (
            (64, 128, 4, 4, True), (128, 128, 4, 3, True), (128, 128, 8, 3, True),
            (128, 128, 8, 4, True), (128, 64, 8, 4, True), (128, 128, 8, 3, False),
        ),
    },
    vectors={
        "gate_up": (
            (2, 0, 2), (4, 0, 2), (4, 0, 4), (8, 0, 4), (8, 0, 8), (16, 0, 8), (8, 1024, 4),
            (16, 512, 4),
        ),
        "down": (
            (8, 0, 2), (8, 0, 4), (16, 0, 2), (16, 0, 4), (32, 0, 4), (32, 0, 8), (16, 256, 4),
            (32, 256, 4),
        ),
        "linear": ((2, 0, 2), (4, 0, 2), (4, 0, 4), (8, 0, 4), (8, 0, 8), (16, 0, 4), (16, 0, 8)),
    },
)  # fmt: skip
