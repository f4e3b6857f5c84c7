"""How fast each pair of dimensions turns, and how long cosines and sines are: a `RopeSpec` in fp32.

The formulas are those of transformers' ROPE_INIT_FUNCTIONS, in their order of operations. R turned
dimensions.
"""

from __future__ import annotations

import math

import torch

from workers.layers.rope_spec import (
    AlphaScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeSpec,
    YarnScaling,
)


def frequencies(spec: RopeSpec, max_positions: int, device: torch.device) -> torch.Tensor:
    """Radians a position ``[R/2]``, fp32.

    Args:
        max_positions: of the longest sequence that is served, by which longrope chooses once.
    """
    scaling, theta = spec.scaling, spec.theta
    if isinstance(scaling, AlphaScaling):
        theta *= scaling.alpha ** (spec.dim / (spec.dim - 2))
    powers = torch.arange(0, spec.dim, 2, dtype=torch.float32, device=device) / spec.dim
    periods = theta**powers
    match scaling:
        case LinearScaling():
            return 1.0 / periods / scaling.factor
        case Llama3Scaling():
            return _llama3(1.0 / periods, scaling)
        case YarnScaling():
            return _yarn(periods, spec, scaling)
        case LongRopeScaling():
            is_long = max_positions > scaling.original
            factors = scaling.long_factors if is_long else scaling.short_factors
            return 1.0 / (torch.tensor(factors, dtype=torch.float32, device=device) * periods)
        case _:
            return 1.0 / periods


def amplitude(spec: RopeSpec, max_positions: int) -> float:
    """What cosines and sines are multiplied by; ``max_positions`` as in `frequencies`."""
    match spec.scaling:
        case YarnScaling() as scaling:
            return scaling.amplitude
        case LongRopeScaling() as scaling:
            is_long = max_positions > scaling.original
            return scaling.long_amplitude if is_long else scaling.short_amplitude
        case _:
            return 1.0


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Divided by the factor, with a ramp to those that turn often within the training's length."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / plain
    share = (scaling.original / wavelengths - low) / (high - low)
    mixed = (1 - share) * plain / scaling.factor + share * plain
    is_short = wavelengths < scaling.original / high
    is_long = wavelengths > scaling.original / low
    return torch.where(is_short, plain, torch.where(is_long, plain / scaling.factor, mixed))


def _yarn(periods: torch.Tensor, spec: RopeSpec, scaling: YarnScaling) -> torch.Tensor:
    """Divided by the factor behind a ramp over the dimensions."""

    def dimension(num_turns: float) -> float:
        """That which turns so often within the training's length."""
        wavelength = scaling.original / (num_turns * 2 * math.pi)
        return spec.dim * math.log(wavelength) / (2 * math.log(spec.theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.dim - 1)
    if first == last:
        last += 0.001
    steps = torch.arange(spec.dim // 2, dtype=torch.float32, device=periods.device)
    unscaled = 1 - ((steps - first) / (last - first)).clamp(0, 1)
    return 1.0 / (scaling.factor * periods) * (1 - unscaled) + 1.0 / periods * unscaled
