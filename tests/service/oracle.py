"""transformers' own greedy tokens, and the rule for near ties.

A first difference where the oracle's margin between its two best logits is below TIE is a tie: the
rounding of either implementation decides it. Ties are counted, and reported as warnings.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence

import torch

from switchyard.client import AsyncClient

TIE = 1e-4


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The next ``num_tokens`` tokens, end tokens ignored; by whole forwards, without a cache."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@torch.inference_mode()
def check_tokens(
    model: torch.nn.Module,
    prompt: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    tie: float = TIE,
) -> int:
    """Assert that the tokens are the same up to a tie; the number of ties, 0 or 1."""
    assert len(ours) == len(theirs)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            logits = model(torch.tensor([[*prompt, *theirs[:index]]])).logits[0, -1]
            best, second = logits.topk(2).values.tolist()
            assert best - second < tie, (
                f"token {index} is {mine}, the oracle's is {other} by a margin of {best - second}"
            )
            warnings.warn(f"tie at token {index}: margin {best - second:.2g}", stacklevel=2)
            return 1
    return 0


@torch.inference_mode()
def check_greedy(
    model: torch.nn.Module, prompt: Sequence[int], ours: Sequence[int], tie: float = TIE
) -> int:
    """Assert that each token is the best behind those before it, or ties with it; the number of
    ties. One whole forward."""
    logits = model(torch.tensor([[*prompt, *ours[:-1]]])).logits[0, len(prompt) - 1 :]
    best = logits.max(dim=1).values
    margins = (best - logits[torch.arange(len(ours)), torch.tensor(ours)]).tolist()
    others = [(index, margin) for index, margin in enumerate(margins) if margin > 0]
    for index, margin in others:
        assert margin < tie, f"token {index} is {ours[index]}, below the best by {margin}"
        warnings.warn(f"tie at token {index}: margin {margin:.2g}", stacklevel=2)
    return len(others)


async def generate(
    address: str, prompts: Sequence[Sequence[int]], **options: object
) -> list[list[int]]:
    """Every prompt's tokens, all requests at once over one connection."""
    async with AsyncClient(address) as client:

        async def one(prompt: Sequence[int]) -> list[int]:
            async with client.generate(prompt, skip_detokenize=True, **options) as stream:  # type: ignore[arg-type]
                return [token async for delta in stream for token in delta.token_ids]

        return await asyncio.gather(*(one(prompt) for prompt in prompts))
