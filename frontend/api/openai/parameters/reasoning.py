"""From the parameters of thoughts to `switchyard.v1.ReasoningOptions` and the template's arguments.

Owns what an effort means: the chat template is told, in the names that templates have for it, and
the thoughts get a number of tokens, whether or not the template knows of efforts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontend.api.openai.parameters.models import ChatBody
from frontend.errors import invalid_field
from switchyard.v1 import inference_pb2 as pb

BUDGETS: Mapping[str, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Tokens of thoughts for each effort; None: as many as the model likes."""
_BUDGET_NAMES = ("max_thinking_tokens", "thinking_budget", "thinking_token_budget")
_NO_THOUGHTS = {"enable_thinking": False, "thinking": False}


def set_reasoning(body: ChatBody, reasoning: pb.ReasoningOptions) -> dict[str, str]:
    """Sets the options of thoughts.

    Returns:
        The parameter that the budget comes from, by the path of its field.

    Raises:
        RequestError: budgets are given twice.
    """
    reasoning.leave_out = body.include_reasoning is False
    given = [name for name in _BUDGET_NAMES if getattr(body, name) is not None]
    if len(given) > 1:
        raise invalid_field(given[0], f"and {given[1]} are the same; send one")
    names = {}
    if given:
        reasoning.max_tokens = getattr(body, given[0])
        names = {"reasoning.max_tokens": given[0]}
    elif body.reasoning_effort is not None:
        budget = BUDGETS[body.reasoning_effort]
        if budget is not None:
            reasoning.max_tokens = budget
            names = {"reasoning.max_tokens": "reasoning_effort"}
    return names


def template_kwargs(body: ChatBody) -> dict[str, Any]:
    """The template's arguments: the caller's own, and what follows from the effort."""
    effort, own = body.reasoning_effort, body.chat_template_kwargs or {}
    if effort is None:
        return own
    return {"reasoning_effort": effort, **(_NO_THOUGHTS if effort == "none" else {}), **own}
