"""The forms that matrices with fewer bits than the model's type have, by one name.

Imports no torch.
"""

from __future__ import annotations

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format

WeightFormat = Fp8Format | Int4Format
