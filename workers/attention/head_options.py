"""What is done with q, k and v between their projection and attention. Torch-free."""

from __future__ import annotations

import dataclasses

from workers.attention.spec import AttentionSpec, QkNorm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """In this order: a bias is added and the sum rounded, then norm, clip and rotation.

    Attributes:
        norm: see `AttentionSpec`; ``head_after_rotary`` comes last.
        clip: bounds q and k, once they are normed, and v on both sides.
        interleaved: see `RopeSpec`.
        norm_widths: of ``all_heads``: of how many numbers of q and of k the mean square is, those
            of all ranks; None: of this rank's.
    """

    norm: QkNorm = "head"
    clip: float | None = None
    interleaved: bool = False
    norm_widths: tuple[int, int] | None = None

    @classmethod
    def of(cls, spec: AttentionSpec) -> HeadOptions:
        """Those of a layer."""
        widths = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        return cls(
            norm=spec.qk_norm,
            clip=spec.clip_qkv,
            interleaved=spec.rope is not None and spec.rope.interleaved,
            norm_widths=widths,
        )


HEAD_NORM = HeadOptions()
