"""Which dimensions of a head a rotary embedding turns, how fast, and for how long. Torch-free.

A model's embedding may be scaled for contexts longer than those of its training; transformers'
ROPE_INIT_FUNCTIONS say how each kind is. `workers.config_json.rope_keys` reads these numbers from
config.json, `workers.layers.rope_frequencies` computes with them.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions divided by ``factor``."""

    factor: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScaling:
    """A base that grows with sequences beyond max_position_embeddings, none of which is served: up
    to there it is the embedding without a scaling."""

    factor: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlphaScaling:
    """A base that is ``alpha`` to the power of R / (R - 2) times as high: HunYuanMoEV1's."""

    alpha: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are those of `LinearScaling`, short ones stay, between them is a ramp.

    Attributes:
        original: positions of the training.
        low_freq_factor, high_freq_factor: turns within ``original`` at the ends of the ramp.
    """

    factor: float
    original: int
    low_freq_factor: float
    high_freq_factor: float


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """What YaRN makes scores' temperature of (Peng et al., 2023, equation 22), its square root."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """As `Llama3Scaling`, with a ramp over dimensions, and longer vectors (Peng et al., 2023).

    Attributes:
        original: positions of the training.
        attention_factor: length of what is turned; None: by ``factor`` or by both mscales.
        mscale, mscale_all_dim: DeepSeek's. The latter has part in the scale of its scores too.
        beta_fast, beta_slow: turns within ``original`` at the ends of the ramp.
        truncate: the ramp begins and ends at whole dimensions.
    """

    factor: float
    original: int
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            whole = yarn_mscale(self.factor, self.mscale_all_dim)
            return yarn_mscale(self.factor, self.mscale) / whole
        return yarn_mscale(self.factor)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """Every wavelength by a factor of its own (Ding et al., 2024).

    Attributes:
        original: positions up to which the short factors hold, beyond them the long ones.
        short_factors, long_factors: R/2 each.
        short_amplitude, long_amplitude: what cosines and sines are multiplied by.
    """

    original: int
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    short_amplitude: float
    long_amplitude: float


RopeScaling = (
    LinearScaling | DynamicScaling | AlphaScaling | Llama3Scaling | YarnScaling | LongRopeScaling
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """A rotary embedding (Su et al., 2021) as numbers.

    Attributes:
        dim: R, leading dimensions of a head that are turned, even; the rest stays as it is.
        theta: base of the wavelengths.
        interleaved: pairs are (2i, 2i + 1), as in GPT-J, not (i, i + R/2), as in Llama.
        scaling: None: the wavelengths are those of the training.
    """

    dim: int
    theta: float
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def check_length(self, length: int, max_position_embeddings: int) -> None:
        """Refuse a longest sequence that the embedding does not reach.

        YaRN's folders give max_position_embeddings before or after the scaling: both are served.

        Raises:
            ValueError: one line with the flag and the limit.
        """
        limit, why = max_position_embeddings, f"max_position_embeddings {max_position_embeddings}"
        if isinstance(self.scaling, YarnScaling):
            reach = int(self.scaling.factor * self.scaling.original)
            if reach > limit:
                limit, why = (
                    reach,
                    (
                        f"{reach} positions, YaRN's factor {self.scaling.factor:g} times "
                        f"original_max_position_embeddings {self.scaling.original}"
                    ),
                )
        if isinstance(self.scaling, DynamicScaling):
            why += ", beyond which dynamic scaling changes with each sequence and is not built"
        if length > limit:
            raise ValueError(f"--max-model-len {length} is above the model's {why}")
