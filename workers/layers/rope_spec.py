"""Which dimensions of a head a rotary embedding turns, and how fast. Torch-free."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """A rotary embedding (Su et al., 2021) as numbers.

    Attributes:
        dim: R, leading dimensions of a head that are turned, even; the rest stays as it is.
        theta: base of the wavelengths.
        interleaved: pairs are (2i, 2i + 1), as in GPT-J, not (i, i + R/2), as in Llama.
    """

    dim: int
    theta: float
    interleaved: bool = False
