"""What launching any kernel of ours has in common.

Owns programmatic dependent launch, its options and its wait, and the precision of dots. Knows no
kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """With PDL: wait until what earlier kernels wrote is there, and let the next kernel start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def launch_options(pdl: bool) -> dict[str, Any]:
    """Options of a launch; with ``pdl`` the kernel may start before its predecessor has ended and
    must call `wait_for_previous` before it touches what an earlier kernel wrote."""
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of tl.dot: fp32 stays fp32 (no tf32), so that a batch changes nothing."""
    return "ieee" if dtype == torch.float32 else "tf32"
