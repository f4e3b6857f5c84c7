"""What launching any kernel of ours has in common.

Owns the options of programmatic dependent launch and the precision of dots. Knows no kernel.
"""

from __future__ import annotations

from typing import Any

import torch


def launch_options(pdl: bool) -> dict[str, Any]:
    """Options of a launch; with ``pdl`` the kernel may start before its predecessor has ended and
    must call gdc_wait before it touches what an earlier kernel wrote."""
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of tl.dot: fp32 stays fp32 (no tf32), so that a batch changes nothing."""
    return "ieee" if dtype == torch.float32 else "tf32"
