"""Rows hold whole conversations, and only answers are learnt."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from demo import tokenizer as demo_tokenizer
from demo.corpus import Rows, build_corpus, build_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> Rows:
    return build_rows(tokenizer.backend_tokenizer, num_rows=40, row_tokens=512, seed=5)


def test_conversations_are_whole(tokenizer: PreTrainedTokenizerFast, rows: Rows) -> None:
    for tokens, positions in zip(rows.tokens, rows.positions, strict=True):
        starts = [*np.flatnonzero((positions == 0) & (tokens != tokenizer.pad_token_id)), None]
        assert len(starts) > 1
        for first, end in itertools.pairwise(starts):
            text = tokenizer.decode(tokens[first:end]).replace("<|endoftext|>", "")
            assert text.startswith(("<|im_start|>user\n", "<|im_start|>system\n"))
            assert text.endswith("<|im_end|>")


def test_positions_count_within_a_conversation(
    tokenizer: PreTrainedTokenizerFast, rows: Rows
) -> None:
    step = np.diff(rows.positions, axis=1)
    inside = rows.positions[:, 1:] > 0
    assert (step[inside] == 1).all()
    assert (rows.positions[rows.tokens == tokenizer.pad_token_id] == 0).all()


def test_learnt_tokens_are_what_the_model_says(
    tokenizer: PreTrainedTokenizerFast, rows: Rows
) -> None:
    """All of its turns but what the template gave: parts of them, each to the turn's end."""
    thought_first = re.compile(r"<think>\n(?!\n)|(?=<think>\n\n)")
    for tokens, learnt in zip(rows.tokens, rows.learnt, strict=True):
        said = tokenizer.decode(tokens[learnt])
        turns = tokenizer.decode(tokens).split("<|im_start|>assistant\n")[1:]
        at = 0
        for turn in turns:
            text = turn.split("<|im_end|>")[0] + "<|im_end|>"
            for part in (
                text,
                text.removeprefix("<think>\n\n</think>\n\n"),
                thought_first.sub("", text),
            ):
                if said.startswith(part, at):
                    at += len(part)
                    break
        assert at == len(said)
        assert len(said) > 0.5 * sum(len(turn.split("<|im_end|>")[0]) for turn in turns)


@pytest.mark.processes
def test_corpus_is_seeded_whatever_the_processes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    demo_tokenizer.save(tokenizer, tmp_path)

    def corpus(seed: int, num_processes: int) -> Rows:
        return build_corpus(
            tmp_path / "tokenizer.json",
            num_rows=2060,
            row_tokens=48,
            seed=seed,
            num_processes=num_processes,
        )

    one, two, other = corpus(0, 1), corpus(0, 2), corpus(1, 1)
    assert one.tokens.shape == (2060, 48)
    assert (one.tokens == two.tokens).all()
    assert (one.tokens != other.tokens).any()
    assert not (one.tokens[:12] == one.tokens[2048:]).all()
