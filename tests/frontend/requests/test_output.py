"""The pending delta, whatever is added before it is taken."""

from __future__ import annotations

from frontend.requests.output import Delta, FinishReason, Output


async def test_thoughts_behind_text_are_a_delta_of_their_own() -> None:
    output = Output(min_tokens=100)
    for token, (thought, text) in enumerate([("a", ""), ("", "b"), ("c", ""), ("d", "e")]):
        if thought:
            output.add_reasoning(thought)
        output.add(token, text)
    output.add_reasoning("f")
    output.finish(FinishReason.EOS, text="g")
    assert [await output.take() for _ in range(3)] == [
        Delta(reasoning="a", text="b", token_ids=[0, 1]),
        Delta(reasoning="cd", text="e", token_ids=[2, 3]),
        Delta(reasoning="f", text="g", finish_reason=FinishReason.EOS),
    ]
