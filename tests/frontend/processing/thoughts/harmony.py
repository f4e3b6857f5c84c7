"""A tokenizer with the envelope of Harmony, and what its decoders make of a text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from frontend.processing.thoughts.envelope import Envelope
from frontend.processing.thoughts.plan import ThoughtPlan, thought_plan
from frontend.requests.output import Output
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.processing.chat import templates

TOKENIZER = templates.tokenizer_of(templates.HARMONY, *templates.HARMONY_TOKENS)
ENVELOPE = TOKENIZER.thought_tags
assert isinstance(ENVELOPE, Envelope)
IDS = {token: TOKENIZER.encode(token)[0] for token in templates.HARMONY_TOKENS}
END_IDS = (IDS["<|return|>"], IDS["<|call|>"])
"""The model's end tokens."""
PROMPT = "<|start|>user<|message|>hi<|end|><|start|>assistant"
NEXT = "<|end|><|start|>assistant"
THOUGHTS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>"
KEPT = TOKENIZER.tool_format.kept_tokens


def header(name: str) -> str:
    """Of a call."""
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"


def plan_of(prompt: str = PROMPT, chat: pb.ChatRequest | None = None) -> ThoughtPlan:
    made = thought_plan(
        ENVELOPE, chat or pb.ChatRequest(), TOKENIZER.encode(prompt), TOKENIZER.vocab_size
    )
    assert made is not None
    return made


def told(
    tokens: Sequence[int], prompt: str = PROMPT, kept: Collection[str] = ()
) -> tuple[str, str, int]:
    """Thoughts and answer of an output, and how many of its tokens are thoughts."""
    output = Output()
    decoder = plan_of(prompt).decoder(
        lambda _: TOKENIZER.decoder((), False, False, kept=kept),
        lambda: TOKENIZER.decoder((), False, False),
        output,
    )
    text = "".join([decoder.push(token) for token in tokens]) + decoder.flush()
    return output._delta.reasoning, text, decoder.num_thought_tokens


def of(text: str, prompt: str = PROMPT, kept: Collection[str] = ()) -> tuple[str, str]:
    """The same of a text, without the number."""
    return told(TOKENIZER.encode(text), prompt, kept)[:2]
