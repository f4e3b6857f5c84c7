"""From the parameters of thoughts to `switchyard.v1.ReasoningOptions`."""

from __future__ import annotations

from frontend.api.openai.parameters.models import ChatBody
from frontend.errors import invalid_field
from switchyard.v1 import inference_pb2 as pb

_BUDGET_NAMES = ("max_thinking_tokens", "thinking_budget", "thinking_token_budget")
REASONING_PARAMETERS = {"include_reasoning", "reasoning_effort", *_BUDGET_NAMES}
"""A body without these says nothing of thoughts."""


def set_reasoning(body: ChatBody, reasoning: pb.ReasoningOptions) -> dict[str, str]:
    """Sets the options of thoughts.

    Returns:
        The parameters that fields come from, by their paths.

    Raises:
        RequestError: the budget is given twice.
    """
    reasoning.leave_out = body.include_reasoning is False
    reasoning.effort = body.reasoning_effort or ""
    given = [name for name in _BUDGET_NAMES if getattr(body, name) is not None]
    if len(given) > 1:
        raise invalid_field(given[0], f"and {given[1]} are the same; send one")
    names = {"reasoning.effort": "reasoning_effort", "reasoning.max_tokens": "reasoning_effort"}
    if given:
        reasoning.max_tokens = getattr(body, given[0])
        names["reasoning.max_tokens"] = given[0]
    return names
