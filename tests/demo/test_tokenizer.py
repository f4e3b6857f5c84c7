"""The tokenizer loses nothing, keeps digits and quoted letters apart, and renders ChatML."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo import tokenizer as demo_tokenizer
from demo.chat import Chat, Tool
from demo.corpus import draw_chat, encode
from demo.data import examples
from demo.model import Shape
from demo.tasks import TASKS
from demo.train import write_json

CHECKPOINT = Path(demo_tokenizer.__file__).with_name("checkpoint")
CHAT = [
    {"role": "system", "content": "Answer the question."},
    {"role": "user", "content": "What is 17 + 25?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": 'Reverse "abc".'},
]
RENDERED = (
    "<|im_start|>system\nAnswer the question.<|im_end|>\n"
    "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n"
    "<|im_start|>assistant\n42<|im_end|>\n"
    '<|im_start|>user\nReverse "abc".<|im_end|>\n'
    "<|im_start|>assistant\n"
)


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer(text).input_ids]


@pytest.mark.slow
@given(text=st.text())
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True).input_ids) == text


@pytest.mark.parametrize("task", TASKS)
def test_training_text_round_trips(tokenizer: PreTrainedTokenizerFast, task: str) -> None:
    for example in examples(task, "train", 50, seed=0):
        for text in (example.question, example.answer):
            assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_and_quoted_letters_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, "What is 17?") == ["What", " is", " ", "1", "7", "?"]
    assert pieces(tokenizer, 'word "word"') == [*"word", ' "', *"word", '"']
    assert pieces(tokenizer, "Reverse the word") == ["Reverse", " the", " word"]


def test_no_token_holds_two_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    assert all(sum(map(str.isdigit, token)) <= 1 for token in tokenizer.get_vocab())


def test_accents_and_emoji_take_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer("🦊").input_ids) == 4
    assert len(tokenizer("é").input_ids) == 2


def test_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == demo_tokenizer.VOCAB_SIZE == Shape().vocab_size
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert pieces(tokenizer, "<|im_start|>user\n") == ["<|im_start|>", "user", "\n"]


def test_template_renders_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED


def said_to_the_template(chat: Chat) -> list[dict[str, Any]]:
    """A chat's messages, with the thoughts of its last exchange."""
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    for exchange in chat.exchanges:
        told = exchange.messages(len(exchange.rounds))
        told.append({"role": "assistant", "content": exchange.answer})
        messages += told
    turns = [message for message in told if message["role"] == "assistant"]
    thinks = chat.thinking or (chat.thinking is None and exchange.thinks and not exchange.rounds)
    for turn, thought in zip(turns, exchange.thoughts(), strict=True):
        if thinks:
            turn["reasoning_content"] = thought
    return messages


def test_training_conversations_are_what_the_template_gives(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rng = Random(0)
    seen = Counter()
    for _ in range(400):
        chat = draw_chat(rng)
        ids, _ = encode(tokenizer.backend_tokenizer, chat)
        tools = [tool.schema() for tool in chat.tools] or None
        messages = said_to_the_template(chat)
        seen[chat.thinking, bool(tools)] += 1
        if chat.thinking is not False:
            rendered = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False)
            assert ids == rendered[:-1]  # the newline after the last turn is never generated
            continue
        asked = tokenizer.apply_chat_template(
            messages[:-1],
            tools=tools,
            return_dict=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        answer = f"{messages[-1]['content']}<|im_end|>"
        assert ids == [*asked, *tokenizer(answer).input_ids]
    assert len(seen) == 6


def test_template_opens_or_closes_thoughts_as_it_is_told(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def end(**told: object) -> str:
        text = tokenizer.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True, **told
        )
        return text.removeprefix(RENDERED)

    assert end(enable_thinking=True) == "<think>\n"
    assert end(enable_thinking=False) == "<think>\n\n</think>\n\n"


def test_template_shows_tools_by_name_and_leaves_old_thoughts_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    weather = Tool("get_weather", (("city", "string"), ("unit", "string")))
    call = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        CHAT[0],
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi!", "reasoning_content": "old"},
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": "", "reasoning_content": "new", "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "21"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[weather.schema()], tokenize=False)
    assert text == (
        '<|im_start|>system\nAnswer the question.\nTools:\n"get_weather" ("city", "unit")'
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nWhat is the weather in Rome?<|im_end|>\n<|im_start|>assistant\n"
        '<think>\nnew\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Rome"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n'
        "</tool_response>\n<tool_response>\n21\n</tool_response><|im_end|>\n"
    )


def test_is_the_committed_one_and_reloads_beside_a_qwen3_moe_config(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    demo_tokenizer.save(tokenizer, tmp_path)
    write_json(tmp_path / "config.json", Shape().hf_config(eos_token_id=2, pad_token_id=0))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (CHECKPOINT / name).read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no other
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert loaded(RENDERED).input_ids == tokenizer(RENDERED).input_ids
    assert loaded.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == RENDERED
    assert (loaded.eos_token_id, loaded.pad_token_id) == (2, 0)
