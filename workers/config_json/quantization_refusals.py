"""What a description of quantized weights asks for and is not built: refused by the method's name.

Torch-free. Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from switchyard.model_files import shown


def refusal(key: str, method: Any, detail: str = "") -> ValueError:
    named = shown(method) if method else "a method without a name"
    return ValueError(
        f"{key} asks for weights quantized by {named}{detail and f' {detail}'}, which are not "
        "built; serve the model's checkpoint in bfloat16, float16 or float32"
    )


def only(
    key: str, method: str, said: Mapping[str, Any], name: str, allowed: tuple[Any, ...]
) -> None:
    """Refuse a value that is none of the allowed ones; True is not 1 here."""
    value = said.get(name)
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise refusal(key, method, f"with {name} {shown(value)}")
